//! Back-pressure, budgets, fairness, and much of everything.

use std::collections::VecDeque;
use std::time::Instant;

use windlass::mem::{Pool, RemoteRegion, Rights};
use windlass::transport::{Completion, EndpointId, HEADER, Message, Payload, Read, Refusal, Write};

use crate::rig::{Fabric, LIMIT, Net, Pair, Random, header, pair, write_to};

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
        Payload::Pinned(_) | Payload::Lent(_) | Payload::Published(_) => panic!("another body came back"),
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

/// Writes, sends and reads in random order and size, in both directions at once, everything compared.
pub fn seeded_transfer(fabric: &dyn Fabric) {
    for seed in [1, 2, 3] {
        println!("seed {seed}");
        let mut transfer = Transfer::new(fabric, seed);
        let limit = Instant::now() + LIMIT;
        while transfer.posted < OPERATIONS || !transfer.idle() {
            assert!(Instant::now() < limit, "too slow: {} operations", transfer.posted);
            transfer.post(0);
            transfer.post(1);
            if transfer.random.below(3) == 0 {
                transfer.net.step();
            }
            transfer.check(0);
            transfer.check(1);
        }
    }
}

const OPERATIONS: u64 = 3000;
/// Each end's arena: slots that the peer writes, bytes that the peer reads, room for what it reads itself.
const SLOTS: usize = 32;
const SLOT: usize = 300_000;
const CONSTANT: usize = SLOTS * SLOT;
const CONSTANT_LENGTH: usize = 1 << 20;
const LOCAL: usize = CONSTANT + CONSTANT_LENGTH;
const LONGEST_READ: usize = 100_000;
const READS: usize = 4;

enum Expected {
    Written { imm: u32, offset: usize, bytes: Vec<u8> },
    Received(Vec<u8>),
}

struct ExpectedRead {
    context: u64,
    from: usize,
    to: usize,
    length: usize,
}

struct Transfer {
    net: Net,
    ids: [EndpointId; 2],
    random: Random,
    constant: Vec<u8>,
    /// What each end granted the other.
    slots: [RemoteRegion; 2],
    constants: [RemoteRegion; 2],
    pools: [Pool; 2],
    /// What each end has still to report, in order.
    expected: [VecDeque<Expected>; 2],
    reads: [VecDeque<ExpectedRead>; 2],
    /// Operations taken.
    posted: u64,
    /// Writes and reads of each end.
    writes: [usize; 2],
    reads_posted: [usize; 2],
}

impl Transfer {
    fn new(fabric: &dyn Fabric, seed: u64) -> Transfer {
        let mut random = Random(seed);
        let Pair { mut net, a, b } = pair(fabric);
        let ids = [a, b];
        let constant = random.bytes(CONSTANT_LENGTH);
        for end in &net.ends {
            end.fill(CONSTANT, &constant);
        }
        let slots = [0, 1].map(|e: usize| net.ends[e].grant(ids[e], 0, SLOTS * SLOT, Rights::Write));
        let constants =
            [0, 1].map(|e: usize| net.ends[e].grant(ids[e], CONSTANT, CONSTANT_LENGTH, Rights::Read));
        let pools = [0, 1].map(|e: usize| net.ends[e].pool(SLOT, 8));
        let (expected, reads) = Default::default();
        let (posted, writes, reads_posted) = (0, [0; 2], [0; 2]);
        Transfer {
            net,
            ids,
            random,
            constant,
            slots,
            constants,
            pools,
            expected,
            reads,
            posted,
            writes,
            reads_posted,
        }
    }

    fn idle(&self) -> bool {
        self.expected.iter().all(VecDeque::is_empty) && self.reads.iter().all(VecDeque::is_empty)
    }

    /// Posts one operation at `end`, if there is room for it.
    fn post(&mut self, end: usize) {
        // A slot is used again only after its write was compared: no more than SLOTS are under way.
        if self.posted >= OPERATIONS || self.expected[1 - end].len() >= SLOTS {
            return;
        }
        let taken = match self.random.below(10) {
            0..3 => self.post_send(end),
            3..5 if self.reads[end].len() < READS => self.post_read(end),
            _ => self.post_write(end),
        };
        self.posted += u64::from(taken);
    }

    fn post_send(&mut self, end: usize) -> bool {
        let length = self.random.below(257);
        let bytes = self.random.bytes(length);
        let taken = self.net.ends[end].transport.send(self.ids[end], Message::new(&bytes).unwrap()).is_ok();
        if taken {
            self.expected[1 - end].push_back(Expected::Received(bytes));
        }
        taken
    }

    fn post_read(&mut self, end: usize) -> bool {
        let length = self.random.below(LONGEST_READ);
        let from = self.random.below(CONSTANT_LENGTH - length);
        // Counted for each end: by a common count one end could run into memory that a read of the other still fills.
        let to = LOCAL + self.reads_posted[end] % READS * LONGEST_READ;
        let context = self.posted;
        let local = self.net.ends[end].slice(to, length);
        let read = Read { remote: self.constants[1 - end], offset: from as u64, local, context };
        let taken = self.net.ends[end].transport.read(self.ids[end], read).is_ok();
        if taken {
            self.reads[end].push_back(ExpectedRead { context, from, to, length });
            self.reads_posted[end] += 1;
        }
        taken
    }

    fn post_write(&mut self, end: usize) -> bool {
        let shift = self.random.below(19);
        let length = self.random.below((1 << shift).min(SLOT - HEADER) + 1);
        let Some(mut buf) = self.pools[end].lease(length) else { return false };
        let body = self.random.bytes(length);
        buf.copy_in(0, &body);
        let head = (self.random.below(2) == 0).then(|| header(self.posted as u8));
        let offset = self.writes[end] % SLOTS * SLOT;
        let imm = self.posted as u32;
        let bytes = [head.map_or(Vec::new(), |h| h.to_vec()), body].concat();
        let remote = write_to(self.slots[1 - end], offset as u64);
        let write = Write { header: head, body: Some(Payload::Owned(buf)), imm: Some(imm), ..remote };
        let taken = self.net.ends[end].transport.write(self.ids[end], write).is_ok();
        if taken {
            self.expected[1 - end].push_back(Expected::Written { imm, offset, bytes });
            self.writes[end] += 1;
        }
        taken
    }

    /// Compares all that `end` has reported.
    fn check(&mut self, end: usize) {
        for completion in std::mem::take(&mut self.net.ends[end].seen) {
            if let Completion::Done { context: done, .. } = completion {
                let ExpectedRead { context, from, to, length } = self.reads[end].pop_front().unwrap();
                assert_eq!(done, context);
                assert!(self.net.ends[end].bytes(to, length) == self.constant[from..from + length]);
                continue;
            }
            match (completion, self.expected[end].pop_front()) {
                (Completion::Received { message, .. }, Some(Expected::Received(bytes))) => {
                    assert_eq!(message.bytes(), bytes);
                }
                (
                    Completion::Written { imm, length, .. },
                    Some(Expected::Written { imm: wanted, offset, bytes }),
                ) => {
                    assert_eq!((imm, length as usize), (wanted, bytes.len()));
                    assert!(self.net.ends[end].bytes(offset, bytes.len()) == bytes, "write {imm}");
                }
                (other, _) => panic!("out of order: {other:?}"),
            }
        }
    }
}

/// Whoever spins looks at whether it may sleep every so many polls: whatever their number, it soon may when nothing comes.
pub fn who_arms_now_and_then_may_sleep(fabric: &dyn Fabric) {
    let mut p = pair(fabric);
    for every in 1..=40 {
        for _ in 0..every {
            p.net.send(0, p.a, &[1]);
            p.net.received(1, p.b);
        }
        p.net.settle(20);
        let end = &mut p.net.ends[1];
        let may = (0..4).any(|_| {
            (0..every).for_each(|_| end.transport.poll(&mut end.seen, end.budget));
            end.transport.arm()
        });
        assert!(may, "polled {every} times between two questions");
    }
}
