//! Writes.

use windlass::mem::{Published, Rights};
use windlass::transport::{Completion, HEADER, Payload, Refusal, Write};

use crate::rig::{ARENA, Fabric, Random, header, pair, write_to};

pub fn header_and_body_with_imm(fabric: &dyn Fabric) {
    let mut p = pair(fabric);
    let remote = p.net.ends[1].grant(p.b, 4096, 8192, Rights::Write);
    let body = Random(1).bytes(1000);
    p.net.ends[0].fill(64, &body);
    let body_slice = p.net.ends[0].pinned(64, 1000);
    let write = Write { header: Some(header(3)), body: body_slice, imm: Some(77), ..write_to(remote, 128) };
    p.net.write(0, p.a, write);
    assert_eq!(p.net.written(1, p.b), (77, 1064));
    let end = &p.net.ends[1];
    assert_eq!(end.bytes(4096 + 128, HEADER), header(3));
    assert_eq!(end.bytes(4096 + 128 + HEADER, 1000), body);
    assert_eq!(end.bytes(4096, 128), [0; 128], "before");
    assert_eq!(end.bytes(4096 + 128 + 1064, 64), [0; 64], "behind");
    assert!(p.net.ends[0].seen.is_empty(), "no Done was asked for");
}

pub fn every_shape(fabric: &dyn Fabric) {
    let mut p = pair(fabric);
    let remote = p.net.ends[1].grant(p.b, 0, 1 << 20, Rights::ReadWrite);
    let mut random = Random(2);
    let lengths = [0, 1, 7, 63, 64, 65, 255, 3967, 3968, 4031, 4032, 4033, 4096, 65_536, 262_144, 262_145];
    for (i, &length) in lengths.iter().enumerate() {
        for with_header in [false, true] {
            let body = random.bytes(length);
            p.net.ends[0].fill(0, &body);
            let head = with_header.then(|| header(i as u8));
            let offset = random.below(4096);
            let pinned = p.net.ends[0].pinned(0, length);
            let write = Write { header: head, body: pinned, imm: Some(9), ..write_to(remote, offset as u64) };
            let total = write.length();
            p.net.write(0, p.a, write);
            assert_eq!(p.net.written(1, p.b), (9, total as u32));
            let expected = [head.map_or(Vec::new(), |h| h.to_vec()), body].concat();
            assert!(p.net.ends[1].bytes(offset, total) == expected, "length {length}, header {with_header}");
        }
    }
    // Only a header, and nothing at all.
    p.net.write(0, p.a, Write { header: Some(header(200)), imm: Some(1), ..write_to(remote, 5) });
    assert_eq!(p.net.written(1, p.b), (1, 64));
    assert_eq!(p.net.ends[1].bytes(5, HEADER), header(200));
    p.net.write(0, p.a, Write { imm: Some(2), ..write_to(remote, 1 << 20) });
    assert_eq!(p.net.written(1, p.b), (2, 0));
}

pub fn longest(fabric: &dyn Fabric) {
    let mut p = pair(fabric);
    let limit = p.net.ends[0].transport.caps().max_write;
    let length = limit.min(ARENA - HEADER) - HEADER;
    let remote = p.net.ends[1].grant(p.b, 0, ARENA, Rights::Write);
    let body = Random(3).bytes(length);
    p.net.ends[0].fill(0, &body);
    let pinned = p.net.ends[0].pinned(0, length);
    p.net.write(0, p.a, Write { header: Some(header(1)), body: pinned, imm: Some(4), ..write_to(remote, 0) });
    assert_eq!(p.net.written(1, p.b), (4, (length + HEADER) as u32));
    assert_eq!(p.net.ends[1].bytes(0, HEADER), header(1));
    assert!(p.net.ends[1].bytes(HEADER, length) == body);
    if length + HEADER == limit {
        let pinned = p.net.ends[0].pinned(0, length + 1);
        let longer = Write { header: Some(header(1)), body: pinned, ..write_to(remote, 0) };
        let rejected = p.net.ends[0].transport.write(p.a, longer).unwrap_err();
        assert!(matches!(rejected.refusal, Refusal::OutOfBounds(_)));
    }
}

pub fn silent_before_the_next_imm(fabric: &dyn Fabric) {
    let mut p = pair(fabric);
    let remote = p.net.ends[1].grant(p.b, 0, 1 << 20, Rights::Write);
    for round in 0..50u8 {
        let body = Random(u64::from(round)).bytes(100_000);
        p.net.ends[0].fill(0, &body);
        let pinned = p.net.ends[0].pinned(0, 100_000);
        p.net.write(0, p.a, Write { body: pinned, ..write_to(remote, 64) });
        p.net.write(
            0,
            p.a,
            Write { header: Some(header(round)), imm: Some(round.into()), ..write_to(remote, 0) },
        );
        assert_eq!(p.net.written(1, p.b), (round.into(), 64));
        assert!(p.net.ends[1].bytes(64, 100_000) == body);
        assert!(p.net.ends[1].seen.is_empty(), "the body was silent");
    }
}

pub fn keeps_order_across_kinds(fabric: &dyn Fabric) {
    let mut p = pair(fabric);
    let remote = p.net.ends[1].grant(p.b, 0, 1 << 20, Rights::Write);
    let mut random = Random(5);
    let total = 2000u32;
    let (mut posted, mut next) = (0u32, 0u32);
    while next < total {
        while posted < total && posted < next + 64 {
            if posted % 3 == 0 {
                p.net.send(0, p.a, &posted.to_le_bytes());
            } else {
                let length = random.below(5000);
                let pinned = p.net.ends[0].pinned(0, length);
                p.net.write(0, p.a, Write { body: pinned, imm: Some(posted), ..write_to(remote, 0) });
            }
            posted += 1;
        }
        p.net.step();
        for completion in p.net.ends[1].seen.drain(..) {
            let number = match completion {
                Completion::Written { imm, .. } => {
                    assert_ne!(imm % 3, 0);
                    imm
                }
                Completion::Received { message, .. } => {
                    u32::from_le_bytes(message.bytes().try_into().unwrap())
                }
                other => panic!("{other:?}"),
            };
            assert_eq!(number, next);
            next += 1;
        }
    }
}

pub fn imm_values(fabric: &dyn Fabric) {
    let mut p = pair(fabric);
    let remote = p.net.ends[1].grant(p.b, 0, 4096, Rights::Write);
    for imm in [0, 1, 0x0102_0304, 0x8000_0000, u32::MAX] {
        p.net.write(0, p.a, Write { header: Some(header(0)), imm: Some(imm), ..write_to(remote, 0) });
        assert_eq!(p.net.written(1, p.b), (imm, 64));
    }
}

pub fn done_gives_the_body_back(fabric: &dyn Fabric) {
    let mut p = pair(fabric);
    let remote = p.net.ends[1].grant(p.b, 0, 1 << 20, Rights::Write);
    let pool = p.net.ends[0].pool(100_000, 4);
    for round in 0..40u64 {
        let mut buf = pool.lease(100_000).expect("Done gave a buffer back");
        let body = Random(round).bytes(100_000);
        buf.copy_in(0, &body);
        let write = Write {
            body: Some(Payload::Owned(buf)),
            imm: Some(1),
            context: Some(u64::MAX - round),
            ..write_to(remote, 0)
        };
        p.net.write(0, p.a, write);
        assert_eq!(p.net.done(0, p.a), u64::MAX - round);
        p.net.written(1, p.b);
        assert!(p.net.ends[1].bytes(0, 100_000) == body);
    }
    let all: Vec<_> = std::iter::from_fn(|| pool.lease(1)).collect();
    assert_eq!(all.len(), 4);
}

/// A published version goes out as it was while the next one is written, and is let go of when it has.
pub fn published_bodies(fabric: &dyn Fabric) {
    const FLOATS: usize = 25_000;
    let mut p = pair(fabric);
    let remote = p.net.ends[1].grant(p.b, 0, 1 << 20, Rights::Write);
    let transport = &mut p.net.ends[0].transport;
    let mut published = Published::new(FLOATS, 1, 1 << 20, |arena| transport.register(arena)).unwrap();
    for round in 0..40u8 {
        published.write(0).to.fill(f32::from(round));
        let pin = published.pin(0, 1, FLOATS - 1).expect("Done let go of the version before");
        let write = Write {
            body: Some(Payload::Published(pin)),
            imm: Some(1),
            context: Some(u64::from(round)),
            ..write_to(remote, 0)
        };
        p.net.ends[0].transport.write(p.a, write).unwrap();
        published.write(0).to.fill(-1.0);
        assert_eq!(p.net.done(0, p.a), u64::from(round));
        p.net.written(1, p.b);
        let came = p.net.ends[1].bytes(0, (FLOATS - 1) * 4);
        assert!(came.chunks(4).all(|value| value == f32::from(round).to_le_bytes()), "{round}");
    }
    assert_eq!(published.moves(), 40);
}

pub fn refused_locally(fabric: &dyn Fabric) {
    let mut p = pair(fabric);
    let remote = p.net.ends[1].grant(p.b, 0, 1000, Rights::Write);
    let read_only = p.net.ends[1].grant(p.b, 0, 1000, Rights::Read);
    let end = &mut p.net.ends[0];
    let pool = end.pool(1000, 1);
    let cases = [(remote, 0, 937), (remote, 1000, 1), (remote, u64::MAX, 1), (read_only, 0, 1)];
    for (remote, offset, length) in cases {
        let body = Some(Payload::Owned(pool.lease(length).expect("the refused body came back")));
        let write = Write { header: Some(header(0)), body, imm: Some(3), ..write_to(remote, offset) };
        let rejected = end.transport.write(p.a, write).unwrap_err();
        assert!(matches!(rejected.refusal, Refusal::OutOfBounds(_)), "{offset} {length}");
        assert_eq!(rejected.operation.imm, Some(3));
        assert_eq!(rejected.operation.body.map(|b| b.length()), Some(length));
    }
    let mut outside = end.slice(0, 64);
    outside.offset = ARENA - 63;
    let write = Write { body: Some(Payload::Pinned(outside)), ..write_to(remote, 0) };
    assert!(matches!(end.transport.write(p.a, write).unwrap_err().refusal, Refusal::OutOfBounds(_)));
    assert!(end.transport.authorise(p.a, end.region, ARENA - 10, 11, Rights::Read).is_err());
    assert!(end.transport.authorise(p.a, end.region, usize::MAX, 2, Rights::Read).is_err());
    p.net.ping((0, p.a), (1, p.b));
}

/// A peer goes on changing what it posted: the framing, the imm and the length are those of the call, every byte of the body is
/// one that stood there, and what is posted later is whole.
pub fn body_changed_after_posting(fabric: &dyn Fabric) {
    const BODY: usize = 300_000;
    let mut p = pair(fabric);
    let remote = p.net.ends[1].grant(p.b, 0, 1 << 20, Rights::Write);
    for round in 0..20u32 {
        p.net.ends[0].fill(0, &[1; BODY]);
        let body = p.net.ends[0].pinned(0, BODY);
        let (mut said, imm) = (header(round as u8), Some(round));
        p.net.write(
            0,
            p.a,
            Write { header: Some(said), body, imm, context: Some(7), ..write_to(remote, 64) },
        );
        // The header was copied at the call, and is not ours to change any more.
        said.fill(0xee);
        p.net.ends[0].fill(0, &[2; BODY]);
        assert_eq!(p.net.done(0, p.a), 7);
        assert_eq!(p.net.written(1, p.b), (round, (64 + BODY) as u32));
        let bytes = p.net.ends[1].bytes(64, 64 + BODY);
        assert_eq!(bytes[..64], header(round as u8));
        assert!(bytes[64..].iter().all(|b| matches!(b, 1 | 2)));
        p.net.ends[1].fill(64, &[0; 64]);
    }
    p.net.ping((0, p.a), (1, p.b));
}

/// A lent body may stay where it lies, and is read from there; its header never does. What can't be lent is written.
pub fn lent_bodies(fabric: &dyn Fabric) {
    let mut p = pair(fabric);
    let remote = p.net.ends[1].grant(p.b, 0, 1 << 20, Rights::Write);
    let mut loans = Vec::new();
    for (round, length) in [0usize, 4, 2048, 2052, 100_000, 262_144].into_iter().enumerate() {
        let body = Random(round as u64).bytes(length);
        let at = round * 300_000 + 4 * round;
        p.net.ends[0].fill(at, &body);
        let lent = Some(Payload::Lent(p.net.ends[0].slice(at, length)));
        let (head, imm) = (header(round as u8), round as u32);
        p.net.write(0, p.a, Write { header: Some(head), body: lent, imm: Some(imm), ..write_to(remote, 64) });
        let (id, total) = (p.b, (HEADER + length) as u32);
        let loan = p.net.wait(1, "Written or Lent", |c| match c {
            Completion::Written { endpoint, imm: i, length } if *endpoint == id => {
                assert_eq!((*i, *length), (imm, total));
                Some(None)
            }
            Completion::Lent { endpoint, imm: i, length, body } if *endpoint == id => {
                assert_eq!((*i, *length), (imm, total));
                Some(Some(body.clone()))
            }
            _ => None,
        });
        assert_eq!(p.net.ends[1].bytes(64, HEADER), head);
        match loan {
            None => assert!(p.net.ends[1].bytes(64 + HEADER, length) == body),
            Some(loan) => loans.push((loan, body)),
        }
    }
    // Loans outlive the endpoint, and the transport that gave them.
    drop(p.net.ends.remove(0));
    for (loan, body) in loans {
        assert_eq!(loan.length, body.len());
        let from = loan.arena.at(loan.offset, loan.length);
        // SAFETY: `at` proved the range; its owner is gone.
        assert!(unsafe { std::slice::from_raw_parts(from, loan.length) } == body);
    }
}

/// A peer writes over a slot that it has announced: its bytes change under the reader, nobody is told, and not a byte beside
/// the slot changes. Whoever decides by them has to copy them first.
pub fn slot_changed_after_written(fabric: &dyn Fabric) {
    let mut p = pair(fabric);
    let remote = p.net.ends[1].grant(p.b, 4096, 4096, Rights::Write);
    p.net.write(0, p.a, Write { header: Some(header(1)), imm: Some(9), ..write_to(remote, 0) });
    assert_eq!(p.net.written(1, p.b), (9, 64));
    let copy = p.net.ends[1].bytes(4096, 64);
    for round in 2..10 {
        p.net.write(0, p.a, Write { header: Some(header(round)), ..write_to(remote, 0) });
        p.net.ping((0, p.a), (1, p.b));
        assert_eq!(p.net.ends[1].bytes(4096, 64), header(round));
    }
    assert_eq!(copy, header(1), "the copy is the reader's own");
    assert!(p.net.ends[1].bytes(0, 4096).iter().all(|b| *b == 0));
    assert!(p.net.ends[1].bytes(4096 + 64, 8192).iter().all(|b| *b == 0));
    assert!(p.net.ends[1].seen.is_empty(), "nothing was announced: {:?}", p.net.ends[1].seen);
}
