//! Workers that hold the job's secret and lie.

use proptest::prelude::*;

use super::*;
use crate::mem::{Arena, RegionId};
use crate::mem::{RemoteRegion, Rights};
use crate::store::Optimizers;
use crate::transport::EndpointId;
use crate::types::{FilterSpec, ServerInfo, Wire};

const SLOT: usize = HEADER + 4096;

/// A thread with two slots for each worker, a dense table 0 of four buckets of 16 elements, and a sparse table 1.
struct Rig {
    core: Core,
    sequences: Vec<u64>,
}

impl Rig {
    fn new(workers: u32) -> Rig {
        let server = ServerInfo { rank: 0, address: String::new(), threads: 1 };
        let view = View { epoch: 1, servers: vec![server], workers };
        let arena = Arena::new(workers as usize * 2 * SLOT).unwrap();
        let staging = Staging { arena, region: RegionId(0), slots: 2, slot_bytes: SLOT };
        let pool = Pool::new(&[(4096, 4)], |_| Ok(RegionId(1))).unwrap();
        let id = ShardId { server: 0, thread: 0 };
        let mut core = Core::new(id, view, Shard::new(Optimizers::default(), 1 << 30), staging, pool, 4);
        core.create_table(0, &TableSpec::dense("w", &[64]).segment_bytes(64)).unwrap();
        core.create_table(1, &TableSpec::sparse("s", 1)).unwrap();
        let region = RemoteRegion { address: 0, length: 1 << 20, key: 1, rights: Rights::Write };
        for rank in 0..workers {
            let endpoint = EndpointId { index: rank, generation: 0 };
            core.attach(rank, 7, Link::new(endpoint, format!("worker {rank}"), region, 256, region));
        }
        Rig { core, sequences: vec![0; workers as usize] }
    }

    fn send(&mut self, (rank, slot): (u32, u32), kind: RequestKind, clock: u64, bucket: u32) -> Result<()> {
        let length = if kind == RequestKind::Push { 64 } else { 0 };
        self.write((rank, slot), RequestHeader { bucket, count: 16, length, ..header(kind, clock) }, &[])
    }

    /// Pushes one key to the sparse table.
    fn push_key(&mut self, at: (u32, u32), key: u64) -> Result<()> {
        let bucket = TableSpec::sparse("s", 1).bucket_of(key);
        let body = [&bucket.to_le_bytes()[..], &1u32.to_le_bytes(), &key.to_le_bytes(), &[0; 4]].concat();
        let header = header(RequestKind::Push, 0);
        self.write(at, RequestHeader { table: 1, first: 1, count: 1, length: 20, ..header }, &body)
    }

    /// Writes a request into a slot, and lets the server take it.
    fn write(&mut self, (rank, slot): (u32, u32), header: RequestHeader, body: &[u8]) -> Result<()> {
        let header = RequestHeader { sequence: self.sequences[rank as usize], ..header };
        self.sequences[rank as usize] += 1;
        let at = self.core.staging.slot_at(rank, slot);
        self.core.staging.arena.copy_in(at, &header.encode());
        self.core.staging.arena.copy_in(at + HEADER, body);
        self.core.request(rank, slot, HEADER as u32 + header.length)
    }
}

fn header(kind: RequestKind, clock: u64) -> RequestHeader {
    RequestHeader {
        kind,
        after_push: kind == RequestKind::Pull,
        chain: 0,
        sequence: 0,
        clock,
        argument: 0,
        table: 0,
        bucket: 0,
        epoch: 1,
        first: 0,
        count: 0,
        length: 0,
        tag: 0,
    }
}

#[test]
fn a_slot_that_is_held_or_not_yet_given_back_is_not_the_workers_to_fill() {
    let mut rig = Rig::new(2);
    rig.send((1, 0), RequestKind::Push, 0, 0).unwrap();
    let error = rig.send((1, 0), RequestKind::Push, 0, 0).unwrap_err().to_string();
    assert!(error.contains("worker 1") && error.contains("slot"), "{error}");
    assert_eq!(rig.core.gate.held(), 1);
    let mut rig = Rig::new(2);
    rig.send((0, 0), RequestKind::Push, 0, 0).unwrap();
    let error = rig.send((0, 0), RequestKind::Push, 0, 0).unwrap_err().to_string();
    assert!(error.contains("worker 0") && error.contains("slot"), "{error}");
}

#[test]
fn a_dense_piece_that_does_not_fit_is_refused_when_it_comes() {
    let mut rig = Rig::new(2);
    let error = rig.send((1, 0), RequestKind::Push, 0, 99).unwrap_err().to_string();
    assert!(error.contains("worker 1") && error.contains("bucket"), "{error}");
    let mut rig = Rig::new(2);
    let short = RequestHeader { count: 16, length: 60, ..header(RequestKind::Push, 0) };
    let error = rig.write((1, 0), short, &[]).unwrap_err().to_string();
    assert!(error.contains("length: expected 64 for 16 values, found 60"), "{error}");
}

/// Whatever a worker writes into its slot while the gate holds what was there: no key is looked at that was not checked.
#[test]
fn keys_that_change_while_they_are_held_are_their_workers_fault() {
    let mut rig = Rig::new(2);
    rig.push_key((1, 0), 5).unwrap();
    rig.send((1, 1), RequestKind::Mark, 0, 0).unwrap();
    let flipped = 1u64.to_le_bytes();
    rig.core.staging.arena.copy_in(rig.core.staging.slot_at(1, 0) + HEADER + 8, &flipped);
    rig.send((0, 0), RequestKind::Mark, 0, 0).unwrap();
    rig.core.obey();
    assert!(
        matches!(&rig.core.faults[..], [(1, Error::Protocol { field: "keys", .. })]),
        "{:?}",
        rig.core.faults
    );
}

#[test]
fn after_a_fault_nothing_is_closed_taken_or_answered() {
    let mut rig = Rig::new(3);
    rig.send((1, 0), RequestKind::Push, 0, 0).unwrap();
    rig.push_key((2, 0), 5).unwrap();
    for rank in [1, 2] {
        rig.send((rank, 1), RequestKind::Mark, 0, 0).unwrap();
    }
    rig.core.staging.arena.copy_in(rig.core.staging.slot_at(2, 0) + HEADER + 8, &1u64.to_le_bytes());
    rig.send((0, 0), RequestKind::Pull, 0, 0).unwrap();
    // It lets the bad piece through, and would let the clock close without it.
    rig.send((0, 1), RequestKind::Mark, 0, 0).unwrap();
    let mut transport = crate::transport::build(&crate::config::Network::default(), true).unwrap();
    let mut failed = Vec::new();
    assert!(!rig.core.settle(transport.as_mut(), &mut failed));
    assert!(matches!(&failed[..], [(2, Error::Protocol { field: "keys", .. })]), "{failed:?}");
    assert_eq!(rig.core.shard.read_dense(0, 0, 0, 16).unwrap().version, 0);
    assert_eq!(rig.core.links[0].as_ref().unwrap().waiting.len(), 1);
    // A frame that was refused once would be refused again: it is not looked at.
    rig.send((1, 0), RequestKind::Push, 5, 0).unwrap();
    assert_eq!(rig.core.stats.pushes, 2);
}

#[test]
fn a_pull_of_the_last_clock_of_all_waits() {
    let mut rig = Rig::new(1);
    rig.send((0, 0), RequestKind::Pull, u64::MAX, 0).unwrap();
    let link = rig.core.links[0].as_ref().unwrap();
    assert_eq!(link.waiting[0].needed, u64::MAX);
}

#[test]
fn a_frame_of_another_chain_is_refused_by_name() {
    for kind in [RequestKind::Push, RequestKind::Pull] {
        let mut rig = Rig::new(1);
        let fp16 = Chains::of(&TableSpec::sparse("s", 1).wire(Wire::Fp16)).unwrap().push.check();
        let length = if kind == RequestKind::Push { 32 } else { 0 };
        let request = RequestHeader { chain: fp16, count: 16, length, ..header(kind, 0) };
        let error = rig.write((0, 0), request, &[]).unwrap_err().to_string();
        assert!(error.contains("worker 0 broke the protocol: chain: expected 0x0000 (fp32)"), "{error}");
    }
}

#[test]
fn a_body_that_is_longer_than_its_chain_makes_it_is_refused() {
    let mut rig = Rig::new(1);
    let spec = TableSpec::dense("half", &[64]).segment_bytes(64).wire(Wire::Fp16);
    rig.core.create_table(2, &spec).unwrap();
    let chain = Chains::of(&spec).unwrap().push.check();
    let push = RequestHeader { table: 2, chain, count: 16, length: 64, ..header(RequestKind::Push, 0) };
    let error = rig.write((0, 0), push, &[]).unwrap_err().to_string();
    assert!(error.contains("length: expected 32 for 16 values, found 64"), "{error}");
    // A pull of as many bytes as the worker's memory has left, and of one value more.
    for (argument, fits) in [((1 << 20) - 32, true), ((1 << 20) - 31, false)] {
        let mut rig = Rig::new(1);
        rig.core.create_table(2, &spec).unwrap();
        let pull = RequestHeader { table: 2, chain, count: 16, argument, ..header(RequestKind::Pull, 0) };
        assert_eq!(rig.write((0, 0), pull, &[]).is_ok(), fits, "{argument}");
    }
}

#[test]
fn a_table_with_an_unknown_filter_is_refused_with_what_is_known() {
    let mut rig = Rig::new(1);
    let newer = FilterSpec { minor: 7, ..FilterSpec::bf16() };
    let error = rig.core.create_table(2, &TableSpec::sparse("x", 1).pull_filters(vec![newer])).unwrap_err();
    let expected = "table \"x\": pull filter: expected fp16 1.0 or bf16 1.0, found bf16 1.7";
    assert_eq!(error.to_string(), expected);
    assert!(rig.core.shard.spec(2).is_none());
}

/// What one worker does in one clock: a push to each bucket in its own order, then the mark.
fn script(rank: u32, order: &[u32]) -> Vec<(u32, Option<u32>)> {
    order.iter().map(|bucket| (rank, Some(*bucket))).chain(std::iter::once((rank, None))).collect()
}

proptest! {
    /// Three workers with two slots each, their requests in any order, taken one at a time or many in one turn: the same
    /// bits as a sum by rank, and every slot comes back.
    #[test]
    fn arrival_and_turns_change_no_bit(
        orders in proptest::array::uniform3(Just(vec![0u32, 1, 2, 3]).prop_shuffle()),
        choices in proptest::collection::vec((any::<prop::sample::Index>(), proptest::bool::weighted(0.3)), 400),
    ) {
        const WORKERS: u32 = 3;
        let value = |rank: u32, clock: u64, bucket: u32, i: u64| {
            let noise = crate::types::mix64(u64::from(rank) << 48 | clock << 40 | u64::from(bucket) << 32 | i);
            (noise >> 40) as f32 / 16_777_216.0 - 0.5
        };
        let mut rig = Rig::new(WORKERS);
        let scripts: Vec<Vec<(u32, Option<u32>)>> =
            (0..WORKERS).zip(&orders).map(|(rank, order)| script(rank, order).repeat(2)).collect();
        let (mut next, mut clocks) = ([0usize; 3], [0u64; 3]);
        let free = |rig: &Rig, rank: u32| (0..2).find(|slot| rig.core.sessions[rank as usize].occupied >> slot & 1 == 0);
        for (choice, turn) in choices {
            let able: Vec<u32> = (0..WORKERS)
                .filter(|r| next[*r as usize] < scripts[*r as usize].len() && free(&rig, *r).is_some()).collect();
            if turn || able.is_empty() {
                rig.core.obey();
                prop_assert!(!rig.core.failed);
                // What the worker would do once it had heard of its credit.
                rig.core.links.iter_mut().flatten().for_each(Link::forget_freed);
                continue;
            }
            let rank = able[choice.index(able.len())];
            let (at, clock) = (&mut next[rank as usize], &mut clocks[rank as usize]);
            let slot = free(&rig, rank).unwrap();
            match scripts[rank as usize][*at].1 {
                Some(bucket) => {
                    let values: Vec<f32> = (0..16).map(|i| value(rank, *clock, bucket, i)).collect();
                    let push = RequestHeader { bucket, count: 16, length: 64, ..header(RequestKind::Push, *clock) };
                    rig.write((rank, slot), push, bytemuck::cast_slice(&values)).unwrap();
                }
                None => {
                    rig.send((rank, slot), RequestKind::Mark, *clock, 0).unwrap();
                    *clock += 1;
                }
            }
            rig.core.links[rank as usize].as_mut().unwrap().forget_freed();
            *at += 1;
        }
        rig.core.obey();
        prop_assert_eq!(rig.core.gate.closed(), 2, "not all choices were made");
        prop_assert!(rig.core.sessions.iter().all(|s| s.occupied == 0));
        for bucket in 0..4 {
            let mut expected = [0.0f32; 16];
            for clock in 0..2 {
                for (i, w) in expected.iter_mut().enumerate() {
                    let sum = (0..WORKERS).fold(0.0, |sum, rank| sum + value(rank, clock, bucket, i as u64));
                    *w -= 1.0 * (sum / WORKERS as f32);
                }
            }
            let reading = rig.core.shard.read_dense(0, bucket, 0, 16).unwrap();
            prop_assert_eq!(reading.values.iter().map(|v| v.to_bits()).collect::<Vec<_>>(), expected.map(f32::to_bits).to_vec());
            prop_assert_eq!(reading.version, 2);
        }
    }
}

/// The clock that somebody waits for is closed and answered; what belongs to a later one is left alone.
#[test]
fn a_thread_that_drains_takes_what_its_answers_need_and_nothing_more() {
    let mut rig = Rig::new(2);
    rig.send((0, 0), RequestKind::Push, 0, 0).unwrap();
    rig.send((0, 1), RequestKind::Mark, 0, 0).unwrap();
    rig.core.drain();
    assert!(!rig.core.is_drained());
    rig.send((0, 0), RequestKind::Push, 1, 0).unwrap();
    rig.send((0, 1), RequestKind::Mark, 1, 0).unwrap();
    assert_eq!((rig.core.stats.pushes, rig.core.clocks()), (1, vec![1, 0]));
    rig.send((1, 0), RequestKind::Push, 0, 0).unwrap();
    rig.send((1, 1), RequestKind::Mark, 0, 0).unwrap();
    assert_eq!((rig.core.stats.pushes, rig.core.gate.closed()), (2, 1));
    assert!(!rig.core.is_drained(), "it has not folded what the clock brought");
    rig.core.obey();
    assert_eq!(rig.core.shard.read_dense(0, 0, 0, 16).unwrap().version, 1);
    // The last credit has not been written yet, then has not left, then has.
    assert!(!rig.core.is_drained());
    rig.core.links.iter_mut().for_each(|link| *link = None);
    assert!(rig.core.is_drained());
}

#[test]
fn a_thread_to_which_nobody_owes_a_clock_is_drained_when_its_answers_have_left() {
    let mut rig = Rig::new(1);
    rig.core.drain();
    assert!(!rig.core.is_drained(), "its last header has not been written");
    rig.send((0, 0), RequestKind::Push, 0, 0).unwrap();
    assert_eq!(rig.core.stats.pushes, 0);
    rig.core.detach(0);
    assert!(rig.core.is_drained());
}
