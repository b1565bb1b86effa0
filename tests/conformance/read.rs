//! Reads.

use windlass::mem::Rights;
use windlass::transport::{Read, Refusal, Write};

use crate::rig::{ARENA, Fabric, Random, pair, write_to};

pub fn brings_the_bytes(fabric: &dyn Fabric) {
    let mut p = pair(fabric);
    let limit = p.net.ends[0].transport.caps().max_write.min(ARENA / 2);
    let bytes = Random(1).bytes(limit);
    p.net.ends[1].fill(100, &bytes);
    let remote = p.net.ends[1].grant(p.b, 100, limit, Rights::Read);
    for (context, length) in [1, 0, 64, 4033, 300_000, limit].into_iter().enumerate() {
        let offset = (limit - length) / 2;
        p.net.ends[0].fill(0, &vec![0xee; length + 1]);
        let local = p.net.ends[0].slice(0, length);
        p.net.read(0, p.a, Read { remote, offset: offset as u64, local, context: context as u64 });
        assert_eq!(p.net.done(0, p.a), context as u64);
        let got = p.net.ends[0].bytes(0, length + 1);
        assert!(got[..length] == bytes[offset..offset + length], "length {length}");
        assert_eq!(got[length], 0xee, "no byte more");
    }
    assert!(p.net.ends[1].seen.is_empty(), "the owner is not told");
}

pub fn many_outstanding(fabric: &dyn Fabric) {
    let mut p = pair(fabric);
    let bytes = Random(2).bytes(1 << 20);
    p.net.ends[1].fill(0, &bytes);
    let remote = p.net.ends[1].grant(p.b, 0, 1 << 20, Rights::Read);
    let count = 500usize;
    for i in 0..count {
        let local = p.net.ends[0].slice(i * 2048, 2048);
        p.net.read(0, p.a, Read { remote, offset: (i * 2000) as u64, local, context: i as u64 });
    }
    for i in 0..count {
        assert_eq!(p.net.done(0, p.a), i as u64);
    }
    for i in 0..count {
        assert!(p.net.ends[0].bytes(i * 2048, 2048) == bytes[i * 2000..i * 2000 + 2048], "read {i}");
    }
}

/// Answers that leave in several turns, with as many requests behind them as the transport takes.
pub fn many_large_outstanding(fabric: &dyn Fabric) {
    let mut p = pair(fabric);
    let length = 4 << 20;
    let bytes = Random(3).bytes(5 << 20);
    p.net.ends[1].fill(0, &bytes);
    let remote = p.net.ends[1].grant(p.b, 0, 5 << 20, Rights::Read);
    for i in 0..100u64 {
        let local = p.net.ends[0].slice(0, length);
        p.net.read(0, p.a, Read { remote, offset: i * 7, local, context: i });
    }
    for i in 0..100 {
        assert_eq!(p.net.done(0, p.a), i);
    }
    assert!(p.net.ends[0].bytes(0, length) == bytes[99 * 7..99 * 7 + length]);
}

pub fn sees_an_earlier_write(fabric: &dyn Fabric) {
    let mut p = pair(fabric);
    let remote = p.net.ends[1].grant(p.b, 0, 1 << 20, Rights::ReadWrite);
    for round in 0..20 {
        let bytes = Random(round).bytes(70_000);
        p.net.ends[0].fill(0, &bytes);
        let body = p.net.ends[0].pinned(0, 70_000);
        p.net.write(0, p.a, Write { body, ..write_to(remote, round) });
        let local = p.net.ends[0].slice(1 << 20, 70_000);
        p.net.read(0, p.a, Read { remote, offset: round, local, context: round });
        assert_eq!(p.net.done(0, p.a), round);
        assert!(p.net.ends[0].bytes(1 << 20, 70_000) == bytes);
    }
}

pub fn refused_locally(fabric: &dyn Fabric) {
    let mut p = pair(fabric);
    let remote = p.net.ends[1].grant(p.b, 0, 1000, Rights::Read);
    let write_only = p.net.ends[1].grant(p.b, 0, 1000, Rights::Write);
    let end = &mut p.net.ends[0];
    for (remote, offset, length) in
        [(remote, 0, 1001), (remote, 1001, 0), (remote, u64::MAX, 2), (write_only, 0, 1)]
    {
        let read = Read { remote, offset, local: end.slice(0, length), context: 8 };
        let rejected = end.transport.read(p.a, read).unwrap_err();
        assert!(matches!(rejected.refusal, Refusal::OutOfBounds(_)), "{offset} {length}");
        assert_eq!(rejected.operation.context, 8);
    }
    p.net.ping((0, p.a), (1, p.b));
}
