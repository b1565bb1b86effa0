//! Reads.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use windlass::mem::Rights;
use windlass::mem::epochs::{Epochs, HEAD, Judgement, Layout, Seen, judge};
use windlass::transport::{Completion, Read, Refusal, Write};

use crate::rig::{ARENA, Fabric, LIMIT, Pair, Random, pair, write_to};

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

/// As many reads as the transport takes, and more as soon as some are done, before the owner has seen that they are: it must not
/// take them for too many.
pub fn as_many_as_it_takes(fabric: &dyn Fabric) {
    const COUNT: u64 = 1000;
    let mut p = pair(fabric);
    let bytes = Random(4).bytes(64 * COUNT as usize);
    p.net.ends[1].fill(0, &bytes);
    let remote = p.net.ends[1].grant(p.b, 0, bytes.len(), Rights::Read);
    let [reader, owner] = &mut p.net.ends[..] else { unreachable!() };
    let (mut posted, mut done, limit) = (0, 0, Instant::now() + LIMIT);
    while done < COUNT {
        while posted < COUNT {
            let local = reader.slice(64 * posted as usize, 64);
            match reader.transport.read(p.a, Read { remote, offset: 64 * posted, local, context: posted }) {
                Ok(()) => posted += 1,
                Err(rejected) => {
                    assert_eq!(rejected.refusal, Refusal::Full);
                    break;
                }
            }
        }
        reader.transport.flush();
        // All is answered before the reader takes any of it.
        for _ in 0..8 {
            owner.transport.poll(&mut owner.seen, owner.budget);
            owner.transport.flush();
        }
        reader.transport.poll(&mut reader.seen, reader.budget);
        for completion in reader.seen.drain(..) {
            let Completion::Done { context, .. } = completion else { panic!("{completion:?}") };
            assert_eq!(context, done);
            done += 1;
        }
        assert!(Instant::now() < limit && owner.seen.is_empty(), "{done} of {posted}: {:?}", owner.seen);
    }
    assert!(reader.bytes(0, bytes.len()) == bytes);
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

/// A writer, on a thread of its own, publishes while the peer reads, at moments that follow from how far the reader is: of what
/// the check takes no value is of another epoch. Where reads can be torn this goes on until one was, and was not taken.
pub fn races_a_writer(fabric: &dyn Fabric) {
    const LENGTH: usize = 16 << 10;
    const WHOLE: u32 = 1000;
    let mut p = pair(fabric);
    let layout = Layout { length: LENGTH, buffers: 2 };
    let mut epochs = Epochs::new(layout, 1, 1).unwrap();
    epochs.register(|arena| p.net.ends[1].transport.register(arena)).unwrap();
    let (region, length) = (epochs.region().0, epochs.length());
    let remote = p.net.ends[1].transport.authorise(p.b, region, 0, length, Rights::Read).unwrap();
    epochs.publish(0, &[1.0; LENGTH], 1, (0, 0));
    // Reads that were posted, and whether there will be more.
    let (posted, over) = (AtomicU64::new(0), AtomicBool::new(false));
    let writer = || {
        let (mut random, mut values, mut due) = (Random(5), vec![0.0f32; LENGTH], 0);
        for version in 2u32..1 << 24 {
            while posted.load(Ordering::Relaxed) < due {
                if over.load(Ordering::Relaxed) {
                    return;
                }
                std::thread::yield_now();
            }
            values.fill(version as f32);
            epochs.publish(0, &values, version.into(), (0, 0));
            // Often at once: then the buffer that the head names is the one that is written.
            due = posted.load(Ordering::Relaxed) + random.below(10).saturating_sub(4) as u64;
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(writer);
        // However this ends, the writer does, too.
        let _end = OnDrop(|| over.store(true, Ordering::Relaxed));
        let read = |p: &mut Pair, parts: &[(u64, usize, usize)]| {
            for (context, &(offset, at, length)) in (0..).zip(parts) {
                let local = p.net.ends[0].slice(at, length);
                p.net.read(0, p.a, Read { remote, offset, local, context });
                posted.fetch_add(1, Ordering::Relaxed);
            }
            for _ in parts {
                p.net.done(0, p.a);
            }
        };
        let head = |p: &mut Pair| {
            read(p, &[(0, 0, HEAD)]);
            Seen::decode(&p.net.ends[0].bytes(0, HEAD).try_into().unwrap())
        };
        let (mut whole, mut again, mut torn) = (0, 0, 0);
        while whole < WHOLE || again == 0 || fabric.tears() && torn == 0 {
            let before = head(&mut p);
            let (stamp, value) = (layout.stamp(before.epoch), layout.value(before.epoch, 0));
            read(&mut p, &[(stamp, HEAD, HEAD), (value, 4096, LENGTH * 4)]);
            let after = head(&mut p);
            let stamp = p.net.ends[0].bytes(HEAD, HEAD).try_into().unwrap();
            let values = p.net.ends[0].bytes(4096, LENGTH * 4);
            let first: [u8; 4] = values[..4].try_into().unwrap();
            let one_value = values.chunks_exact(4).all(|v| v == first);
            torn += u32::from(!one_value);
            match judge(&layout, (&before, &after), &stamp, (1, 0, LENGTH as u32)).unwrap() {
                Judgement::Whole(version) => {
                    assert!(one_value && f32::from_le_bytes(first) == version as f32, "version {version}");
                    whole += 1;
                }
                Judgement::Again => again += 1,
            }
            assert!(whole + again < 1_000_000, "{whole} whole, {again} read again, {torn} torn");
        }
        println!("{whole} whole, {again} read again, of which {torn} were torn");
    });
}

struct OnDrop<F: FnMut()>(F);

impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        self.0();
    }
}
