//! Back-pressure, budgets, fairness, and much of everything.

use std::collections::VecDeque;

use windlass::mem::Rights;
use windlass::transport::{Completion, Message, Payload, Read, Refusal, Write};

use crate::rig::{Fabric, Net, Random, header, pair, write_to};

pub fn full_gives_the_operation_back(fabric: &dyn Fabric) {
    let mut p = pair(fabric);
    let depth = p.net.ends[0].transport.caps().queue_depth;
    let remote = p.net.ends[1].grant(p.b, 0, depth * 4 * 256, Rights::Write);
    let pool = p.net.ends[0].pool(256, depth + 1);
    // Without a poll the queue takes its depth and no more; what it refuses comes back whole.
    let mut posted = 0u32;
    let refused = loop {
        let mut buf = pool.lease(256).expect("the queue takes no more than its depth");
        buf.copy_in(0, &[posted as u8; 256]);
        let offset = u64::from(posted) * 256;
        let body = Some(Payload::Owned(buf));
        let write = Write { body, imm: Some(posted), context: Some(5), ..write_to(remote, offset) };
        match p.net.ends[0].transport.write(p.a, write) {
            Ok(()) => posted += 1,
            Err(rejected) => break rejected,
        }
    };
    assert_eq!(refused.refusal, Refusal::Full);
    assert_eq!(posted as usize, depth);
    assert_eq!(refused.operation.imm, Some(posted));
    let mut returned = [0; 256];
    match refused.operation.body.as_ref().unwrap() {
        Payload::Owned(buf) => buf.copy_out(0, &mut returned),
        Payload::Pinned(_) => panic!("another body came back"),
    }
    assert_eq!(returned, [posted as u8; 256]);
    p.net.write(0, p.a, refused.operation);
    for i in 0..=posted {
        assert_eq!(p.net.written(1, p.b), (i, 256));
        assert_eq!(p.net.ends[1].bytes(i as usize * 256, 256), [i as u8; 256]);
        assert_eq!(p.net.done(0, p.a), 5);
    }
    let back: Vec<_> = std::iter::from_fn(|| pool.lease(1)).collect();
    assert_eq!(back.len(), depth + 1);
}

pub fn small_budgets_lose_nothing(fabric: &dyn Fabric) {
    let mut p = pair(fabric);
    p.net.ends[1].budget = 1;
    for i in 0..500u32 {
        p.net.send(0, p.a, &i.to_le_bytes());
    }
    for i in 0..500u32 {
        assert_eq!(p.net.received(1, p.b), i.to_le_bytes());
    }
    let before = p.net.ends[1].seen.len();
    let zero = p.net.ends[1].budget - 1;
    let end = &mut p.net.ends[1];
    end.transport.poll(&mut end.seen, zero);
    assert_eq!(end.seen.len(), before);
}

pub fn nobody_starves(fabric: &dyn Fabric) {
    let mut net = Net::new(fabric, 3);
    let (fast, fast_in) = net.join(1, 0);
    let (slow, slow_in) = net.join(2, 0);
    let remote = net.ends[0].grant(fast_in, 0, 1 << 20, Rights::Write);
    net.ends[0].budget = 8;
    let mut worst = 0;
    for _ in 0..30 {
        net.ends[2].transport.send(slow, Message::new(b"slow").unwrap()).unwrap();
        net.ends[2].transport.flush();
        let mut from_fast = 0;
        net.until("the slow sender's message", |net| {
            // The fast sender's queue is full before every poll.
            loop {
                let write = Write { header: Some(header(0)), imm: Some(0), ..write_to(remote, 0) };
                if net.ends[1].transport.write(fast, write).is_err() {
                    break;
                }
            }
            let mut found = false;
            for completion in net.ends[0].seen.drain(..) {
                match completion {
                    Completion::Written { endpoint, .. } if endpoint == fast_in => from_fast += 1,
                    Completion::Received { endpoint, .. } if endpoint == slow_in => found = true,
                    other => panic!("{other:?}"),
                }
            }
            found
        });
        worst = worst.max(from_fast);
    }
    assert!(worst < 2000, "{worst} completions of the fast sender before one of the slow");
}

enum Expected {
    Written { imm: u32, offset: usize, bytes: Vec<u8> },
    Received(Vec<u8>),
}

/// Writes, sends and reads in random order and size, in both directions at once, everything compared.
pub fn seeded_transfer(fabric: &dyn Fabric) {
    for seed in [1, 2, 3] {
        transfer(fabric, seed);
    }
}

const SLOTS: usize = 32;
const SLOT: usize = 300_000;
/// End 1 reads here what nobody writes.
const CONSTANT: usize = SLOTS * SLOT;

fn transfer(fabric: &dyn Fabric, seed: u64) {
    println!("seed {seed}");
    let mut random = Random(seed);
    let mut p = pair(fabric);
    let ids = [p.a, p.b];
    let constant = random.bytes(1 << 20);
    let mut remote = Vec::new();
    let mut constants = Vec::new();
    for end in [0, 1] {
        p.net.ends[end].fill(CONSTANT, &constant);
        remote.push(p.net.ends[end].grant(ids[end], 0, SLOTS * SLOT, Rights::Write));
        constants.push(p.net.ends[end].grant(ids[end], CONSTANT, 1 << 20, Rights::Read));
    }
    let pools = [0, 1].map(|end: usize| p.net.ends[end].pool(SLOT, 8));
    // Expected at end e, in order; slots in use at end e are those of its queued writes: at most SLOTS.
    let mut expected: [VecDeque<Expected>; 2] = Default::default();
    let mut reads: [VecDeque<(u64, usize, usize, usize)>; 2] = Default::default();
    let mut reads_made = 0;
    let (mut slot, mut posted, total) = ([0usize; 2], 0u64, 3000);
    let limit = std::time::Instant::now() + crate::rig::LIMIT;
    while posted < total || expected.iter().any(|e| !e.is_empty()) || reads.iter().any(|r| !r.is_empty()) {
        assert!(std::time::Instant::now() < limit, "seed {seed} takes too long after {posted} operations");
        for end in [0, 1] {
            let other = 1 - end;
            if posted >= total || expected[other].len() >= SLOTS {
                continue;
            }
            match random.below(10) {
                0..3 => {
                    let length = random.below(257);
                    let bytes = random.bytes(length);
                    let message = Message::new(&bytes).unwrap();
                    if p.net.ends[end].transport.send(ids[end], message).is_ok() {
                        expected[other].push_back(Expected::Received(bytes));
                        posted += 1;
                    }
                }
                3..5 if reads[end].len() < 4 => {
                    let length = random.below(100_000);
                    let from = random.below((1 << 20) - length);
                    let to = CONSTANT + (1 << 20) + reads_made % 8 * 100_000;
                    let local = p.net.ends[end].slice(to, length);
                    let read = Read { remote: constants[other], offset: from as u64, local, context: posted };
                    if p.net.ends[end].transport.read(ids[end], read).is_ok() {
                        reads[end].push_back((posted, from, length, to));
                        reads_made += 1;
                        posted += 1;
                    }
                }
                _ => {
                    let shift = random.below(19);
                    let length = random.below((1 << shift).min(SLOT - 64) + 1);
                    let Some(mut buf) = pools[end].lease(length) else { continue };
                    let body = random.bytes(length);
                    buf.copy_in(0, &body);
                    let head = (random.below(2) == 0).then(|| header(posted as u8));
                    let offset = slot[end] % SLOTS * SLOT;
                    let bytes = [head.map_or(Vec::new(), |h| h.to_vec()), body].concat();
                    let imm = posted as u32;
                    let write = Write {
                        header: head,
                        body: Some(Payload::Owned(buf)),
                        imm: Some(imm),
                        ..write_to(remote[other], offset as u64)
                    };
                    if p.net.ends[end].transport.write(ids[end], write).is_ok() {
                        slot[end] += 1;
                        expected[other].push_back(Expected::Written { imm, offset, bytes });
                        posted += 1;
                    }
                }
            }
        }
        if random.below(3) == 0 {
            p.net.step();
        }
        for end in [0, 1] {
            let seen = std::mem::take(&mut p.net.ends[end].seen);
            for completion in seen {
                match completion {
                    Completion::Done { context, .. } => {
                        let (number, from, length, to) = reads[end].pop_front().unwrap();
                        assert_eq!(context, number);
                        assert!(p.net.ends[end].bytes(to, length) == constant[from..from + length]);
                    }
                    Completion::Received { message, .. } => match expected[end].pop_front() {
                        Some(Expected::Received(bytes)) => assert_eq!(message.bytes(), bytes),
                        _ => panic!("seed {seed}: a message out of order"),
                    },
                    Completion::Written { imm, length, .. } => match expected[end].pop_front() {
                        Some(Expected::Written { imm: wanted, offset, bytes }) => {
                            assert_eq!((imm, length as usize), (wanted, bytes.len()));
                            assert!(
                                p.net.ends[end].bytes(offset, bytes.len()) == bytes,
                                "seed {seed}: {imm}"
                            );
                        }
                        _ => panic!("seed {seed}: a write out of order"),
                    },
                    other => panic!("seed {seed}: {other:?}"),
                }
            }
        }
    }
}
