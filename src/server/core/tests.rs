//! Workers that hold the job's secret and lie.

use proptest::prelude::*;

use super::*;
use crate::config::TransportKind;
use crate::mem::{Arena, RegionId};
use crate::mem::{RemoteRegion, Rights};
use crate::store::{Cause, Optimizers};
use crate::transport::EndpointId;
use crate::transport::choice::Seat;
use crate::types::{Consistency, FilterSpec, Quorum, ServerInfo, Stale, Wire};

mod lists;
mod non_finite;
mod stopped;

const SLOT: usize = HEADER + 4096;
const SPARSE: TableId = 9;

/// A thread with two slots for each worker, a dense table 0 of four buckets of 16 elements, and a sparse table [`SPARSE`].
struct Rig {
    core: Core,
    sequences: Vec<u64>,
}

impl Rig {
    fn new(workers: u32) -> Rig {
        Rig::with(workers, &[(4096, 4)], 1 << 20)
    }

    fn with(workers: u32, replies: &[(usize, usize)], spare_bytes: u64) -> Rig {
        let server = ServerInfo { rank: 0, address: String::new(), threads: 1, first: 0 };
        let view = View { epoch: 1, servers: vec![server], workers };
        let arena = Arena::new(workers as usize * 2 * SLOT).unwrap();
        let staging = Staging { arena, region: RegionId(0), slots: 2, slot_bytes: SLOT };
        let pool = Pool::new(replies, |_| Ok(RegionId(1))).unwrap();
        let id = ShardId { server: 0, thread: 0 };
        let mut core =
            Core::new(id, view, Shard::new(Optimizers::default(), 1 << 30, spare_bytes), staging, pool, 4, 0);
        let spec = TableSpec::dense("w", &[64]).segment_bytes(64);
        core.create_table(0, &spec, |_| Ok(RegionId(2))).unwrap();
        core.create_table(SPARSE, &TableSpec::sparse("s", 1), |_| Ok(RegionId(2))).unwrap();
        let mut rig = Rig { core, sequences: vec![0; workers as usize] };
        (0..workers).for_each(|rank| rig.attach(rank));
        rig
    }

    /// A new endpoint.
    fn attach(&mut self, rank: u32) {
        let region = RemoteRegion { address: 0, length: 1 << 20, key: 1, rights: Rights::Write };
        let endpoint = EndpointId { index: rank, generation: 0 };
        let link = Link::new(endpoint, format!("worker {rank}"), region, 256, region);
        self.core.attach(rank, 7, link);
    }

    fn send(&mut self, at: (u32, u32), kind: RequestKind, clock: u64, bucket: u32) -> Result<()> {
        self.write(at, |header| {
            (header.kind, header.clock, header.bucket) = (kind, clock, bucket);
            if kind == RequestKind::Push {
                header.argument = NO_BASE;
            }
        })
    }

    /// Worker 0 pulls bucket 0 to byte `argument` of a region, after its own clock.
    fn pull_into(&mut self, slot: u32, region: u8, argument: u64) -> Result<()> {
        self.write((0, slot), |header| (header.region, header.argument) = (region, argument))
    }

    /// Worker 0 sends a message.
    fn say(&mut self, message: WorkerMessage) -> Result<()> {
        let (bytes, length) = message.encode();
        self.core.message(0, &bytes[..length])
    }

    /// A worker fills a slot with a pull of bucket 0, but for what `change` makes of it.
    fn write(&mut self, (rank, slot): (u32, u32), change: impl FnOnce(&mut RequestHeader)) -> Result<()> {
        let mut header = RequestHeader { kind: RequestKind::Pull, ..push(0, 0, 0, 0) };
        change(&mut header);
        header.after_push = header.kind == RequestKind::Pull;
        header.length = if header.kind == RequestKind::Push { 64 } else { 0 };
        self.put((rank, slot), header, &[])
    }

    /// Pushes one key to the sparse table.
    fn push_key(&mut self, at: (u32, u32), key: u64) -> Result<()> {
        self.push_key_to(SPARSE, at, key, TableSpec::sparse("s", 1).bucket_of(key))
    }

    fn push_key_to(&mut self, table: TableId, at: (u32, u32), key: u64, bucket: u32) -> Result<()> {
        let body = [&bucket.to_le_bytes()[..], &1u32.to_le_bytes(), &key.to_le_bytes(), &[0; 4]].concat();
        let header = header(RequestKind::Push, 0);
        self.put(at, RequestHeader { table, first: 1, count: 1, length: 20, ..header }, &body)
    }

    /// A worker fills a slot with its next request.
    fn put(&mut self, (rank, slot): (u32, u32), header: RequestHeader, body: &[u8]) -> Result<()> {
        let header = RequestHeader { sequence: self.sequences[rank as usize], ..header };
        self.sequences[rank as usize] += 1;
        self.core.staging.arena.copy_in(self.core.staging.slot_at(rank, slot) + HEADER, body);
        self.frame((rank, slot), header)
    }

    fn frame(&mut self, (rank, slot): (u32, u32), header: RequestHeader) -> Result<()> {
        self.core.staging.arena.copy_in(self.core.staging.slot_at(rank, slot), &header.encode());
        self.core.request(rank, slot, HEADER as u32 + header.length, None)
    }
}

/// One request of a batch.
fn part(kind: RequestKind, clock: u64, bucket: u32) -> RequestHeader {
    let length = if kind == RequestKind::Push { 64 } else { 0 };
    let argument = if kind == RequestKind::Push { NO_BASE } else { 0 };
    RequestHeader { kind, bucket, argument, count: 16, length, ..RequestHeader::new(clock, 1) }
}

impl Rig {
    /// Fills a slot with a batch, whose header `change` may spoil.
    fn batch(
        &mut self,
        (rank, slot): (u32, u32),
        parts: &[RequestHeader],
        change: impl Fn(&mut RequestHeader),
    ) -> Result<()> {
        let at = self.core.staging.slot_at(rank, slot);
        let mut length = 0;
        for (number, part) in (0u64..).zip(parts) {
            let header = RequestHeader { sequence: number, ..*part };
            self.core.staging.arena.copy_in(at + HEADER + length, &header.encode());
            let values = [(rank + 1) as f32; 16];
            let values = &bytemuck::cast_slice(&values)[..part.length as usize];
            self.core.staging.arena.copy_in(at + 2 * HEADER + length, values);
            length += part.part_bytes();
        }
        let sequence = self.sequences[rank as usize];
        self.sequences[rank as usize] += 1;
        let (count, length) = (parts.len() as u32, length as u32);
        let clock = parts[0].clock;
        let kind = RequestKind::Batch;
        let mut header = RequestHeader { kind, sequence, count, length, ..RequestHeader::new(clock, 1) };
        change(&mut header);
        self.core.staging.arena.copy_in(at, &header.encode());
        self.core.request(rank, slot, HEADER as u32 + header.length, None)?;
        self.core.obey();
        Ok(())
    }

    fn occupied(&self, rank: u32) -> u64 {
        self.core.sessions[rank as usize].occupied
    }

    fn values(&self, bucket: u32) -> Vec<f32> {
        self.core.shard.read_dense(0, bucket, 0, 16).unwrap().values.to_vec()
    }
}

use RequestKind::{Finish, Mark, Pull, Push};

#[test]
fn a_batch_holds_its_slot_until_its_last_part_is_done_with() {
    let mut rig = Rig::new(2);
    let parts = [part(Push, 0, 0), part(Push, 0, 1), part(Mark, 0, 0)];
    rig.batch((1, 0), &parts, |_| ()).unwrap();
    assert_eq!((rig.core.gate.held(), rig.occupied(1)), (2, 1));
    rig.batch((0, 0), &parts[..2], |_| ()).unwrap();
    assert_eq!((rig.core.gate.closed(), rig.core.gate.held(), rig.occupied(1)), (0, 2, 1));
    assert_eq!(rig.occupied(0), 0);
    rig.batch((0, 1), &[part(Mark, 0, 0)], |_| ()).unwrap();
    assert_eq!((rig.core.gate.closed(), rig.core.gate.held(), rig.occupied(1)), (1, 0, 0));
    // What stands behind a mark is of the next clock, so it is of another batch; a pull may stand there.
    rig.batch((1, 1), &[part(Mark, 1, 0), part(Pull, 1, 0)], |_| ()).unwrap();
    // A batch of void parts, and a pull, whose keys are its own: free at once.
    let void = RequestHeader { void: true, ..part(Push, 7, 99) };
    let mut rig = Rig::new(1);
    rig.batch((0, 0), &[void, RequestHeader { clock: 7, ..part(Pull, 7, 0) }, void], |_| ()).unwrap();
    assert_eq!(rig.occupied(0), 0);
    assert_eq!(rig.core.links[0].as_ref().unwrap().waiting.len(), 1);
}

#[test]
fn a_replayed_batch_is_dropped_whole_but_for_its_pulls() {
    let mut rig = Rig::new(2);
    let parts = [part(Push, 0, 0), part(Pull, 0, 0), part(Pull, 0, 1)];
    rig.batch((1, 0), &parts, |_| ()).unwrap();
    rig.core.detach(1);
    let region = RemoteRegion { address: 0, length: 1 << 20, key: 1, rights: Rights::Write };
    let endpoint = EndpointId { index: 1, generation: 1 };
    rig.core.attach(1, 7, Link::new(endpoint, "worker 1".to_owned(), region, 256, region));
    rig.sequences[1] = 0;
    // The first pull was answered: the worker has made it void.
    let answered = RequestHeader { void: true, ..parts[1] };
    rig.batch((1, 0), &[parts[0], answered, parts[2]], |_| ()).unwrap();
    let waiting = &rig.core.links[1].as_ref().unwrap().waiting;
    assert_eq!(waiting.iter().map(|w| w.header.bucket).collect::<Vec<_>>(), [1]);
    assert_eq!((rig.core.stats.duplicates_dropped, rig.core.gate.held(), rig.occupied(1)), (1, 1, 1));
    rig.send((0, 0), Mark, 0, 0).unwrap();
    rig.send((1, 1), Mark, 0, 0).unwrap();
    rig.core.obey();
    assert_eq!((rig.core.gate.closed(), rig.occupied(1)), (1, 0));
    let update = rig.values(0)[0];
    assert!(update != 0.0);
    let mut alone = Rig::new(2);
    alone.batch((1, 0), &[part(Push, 0, 0), part(Mark, 0, 0)], |_| ()).unwrap();
    alone.send((0, 0), Mark, 0, 0).unwrap();
    alone.core.obey();
    assert_eq!(alone.values(0)[0], update, "the push was applied once");
}

#[test]
fn malformed_batches_name_the_worker_and_the_field() {
    let refused = |parts: &[RequestHeader], change: fn(&mut RequestHeader)| {
        let mut rig = Rig::new(2);
        let error = rig.batch((1, 0), parts, change).unwrap_err();
        let Error::Protocol { peer, field, .. } = error else { panic!("{error}") };
        assert_eq!(peer, "worker 1");
        assert!(rig.core.failed);
        field
    };
    let (push, mark) = (part(Push, 0, 0), part(Mark, 0, 0));
    assert_eq!(refused(&[push], |h| h.count = 0), "count");
    assert_eq!(refused(&[push], |h| h.count = u32::MAX), "count");
    assert_eq!(refused(&[push, mark], |h| h.length -= 64), "length");
    assert_eq!(refused(&[push, mark], |h| h.count = 1), "length");
    assert_eq!(refused(&[push, mark], |h| h.length = 4096 + 64), "length");
    assert_eq!(refused(&[RequestHeader { kind: RequestKind::Batch, ..push }], |_| ()), "kind");
    assert_eq!(refused(&[RequestHeader { epoch: 2, ..push }], |_| ()), "epoch");
    assert_eq!(refused(&[RequestHeader { table: 99, ..push }], |_| ()), "table");
    assert_eq!(refused(&[RequestHeader { argument: 0, ..push }], |_| ()), "argument");
    // A push behind its clock's mark, of that clock or of the next; two marks; more behind the end.
    assert_eq!(refused(&[mark, push], |_| ()), "clock");
    assert_eq!(refused(&[mark, RequestHeader { clock: 1, ..push }], |_| ()), "clock");
    assert_eq!(refused(&[mark, mark], |_| ()), "clock");
    assert_eq!(refused(&[part(Finish, 0, 0), push], |_| ()), "clock");
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
    let error = rig.put((1, 0), short, &[]).unwrap_err().to_string();
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

/// A body of `values` in memory of the worker's.
fn loan(values: &[f32; 16], offset: usize) -> Loan {
    let arena = Arena::new(4096).unwrap();
    arena.copy_in(offset, bytemuck::cast_slice(values));
    Loan { arena, offset, length: 64 }
}

impl Rig {
    /// A worker fills a slot's header and lends the body.
    fn lend(&mut self, (rank, slot): (u32, u32), header: RequestHeader, body: Loan) -> Result<()> {
        let header = RequestHeader { sequence: self.sequences[rank as usize], ..header };
        self.sequences[rank as usize] += 1;
        self.core.staging.arena.copy_in(self.core.staging.slot_at(rank, slot), &header.encode());
        self.core.request(rank, slot, HEADER as u32 + header.length, Some(body))
    }
}

#[test]
fn lent_values_are_folded_where_they_lie_and_given_back_with_the_slot() {
    let mut rig = Rig::new(2);
    let (held, slotted) = (loan(&[3.0; 16], 20), part(RequestKind::Push, 0, 1));
    let memory = held.arena.clone();
    rig.lend((1, 0), part(RequestKind::Push, 0, 0), held).unwrap();
    rig.put((1, 1), slotted, bytemuck::cast_slice(&[5.0f32; 16])).unwrap();
    rig.core.obey();
    assert_eq!(Arc::strong_count(&memory), 2, "the gate holds it");
    // The worker's endpoint is lost, and its frames come again over another: what was lent first is still what counts.
    rig.attach(1);
    let again = RequestHeader { sequence: 0, ..part(RequestKind::Push, 0, 0) };
    rig.core.staging.arena.copy_in(rig.core.staging.slot_at(1, 0), &again.encode());
    rig.core.request(1, 0, 128, Some(loan(&[3.0; 16], 0))).unwrap();
    rig.frame((1, 1), RequestHeader { sequence: 1, ..slotted }).unwrap();
    rig.send((0, 0), RequestKind::Mark, 0, 0).unwrap();
    rig.core.obey();
    assert_eq!(Arc::strong_count(&memory), 1, "it was folded");
    rig.core.links[1].as_mut().unwrap().forget_freed();
    rig.send((1, 0), RequestKind::Mark, 0, 0).unwrap();
    rig.core.obey();
    let step = |rig: &Rig, bucket| rig.values(bucket)[15];
    assert_eq!(step(&rig, 0) / step(&rig, 1), 3.0 / 5.0);
}

/// They are folded in the pass of the step, whenever they came; before it only where their worker's mark needs the slots.
#[test]
fn lent_pieces_wait_for_the_end_of_their_clock_while_their_worker_has_slots_left() {
    let mut rig = Rig::new(2);
    let push = |bucket| part(RequestKind::Push, 0, bucket);
    let lent = |value| loan(&[value; 16], 0);
    rig.lend((0, 0), push(0), lent(1.0)).unwrap();
    rig.core.obey();
    assert_eq!(rig.occupied(0), 0b01, "it waits for the others");
    rig.lend((0, 1), push(1), lent(2.0)).unwrap();
    rig.core.obey();
    assert_eq!(rig.occupied(0), 0, "no slot was left for the mark");
    rig.core.links[0].as_mut().unwrap().forget_freed();
    rig.lend((0, 0), push(0), lent(4.0)).unwrap();
    rig.send((0, 1), RequestKind::Mark, 0, 0).unwrap();
    rig.lend((1, 0), push(0), lent(8.0)).unwrap();
    rig.lend((1, 1), push(1), lent(16.0)).unwrap();
    rig.core.obey();
    assert_eq!((rig.occupied(0), rig.occupied(1)), (0, 0), "again");
    rig.core.links.iter_mut().flatten().for_each(Link::forget_freed);
    rig.lend((1, 0), push(0), lent(32.0)).unwrap();
    // One that is not lent takes those before it along.
    rig.put((1, 1), push(1), bytemuck::cast_slice(&[64.0f32; 16])).unwrap();
    rig.core.obey();
    assert_eq!(rig.occupied(1), 0);
    rig.core.links[1].as_mut().unwrap().forget_freed();
    rig.send((1, 0), RequestKind::Mark, 0, 0).unwrap();
    rig.core.obey();
    let step = |bucket| rig.values(bucket)[7];
    assert_eq!((step(0), step(1)), (-(1.0 + 4.0 + 8.0 + 32.0) / 2.0, -(2.0 + 16.0 + 64.0) / 2.0));
}

#[test]
fn only_values_of_dense_tables_can_be_lent() {
    let refused = |header: RequestHeader, body: Loan, field: &str| {
        let error = Rig::new(2).lend((1, 0), header, body).unwrap_err().to_string();
        assert!(error.contains("worker 1") && error.contains(field), "{error}");
    };
    let push = part(RequestKind::Push, 0, 0);
    refused(RequestHeader { table: SPARSE, ..push }, loan(&[1.0; 16], 0), "body");
    refused(RequestHeader { table: 77, ..push }, loan(&[1.0; 16], 0), "body");
    refused(RequestHeader { kind: RequestKind::Pull, ..push }, loan(&[1.0; 16], 0), "body");
    refused(RequestHeader { kind: RequestKind::Batch, ..push }, loan(&[1.0; 16], 0), "body");
    refused(push, Loan { length: 60, ..loan(&[1.0; 16], 0) }, "length");
    refused(push, loan(&[1.0; 16], 2), "source");
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
    let mut transport = crate::transport::choice::build(
        &crate::config::Network::default(),
        TransportKind::Tcp,
        Seat::Listens(0),
    )
    .unwrap();
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

/// Of nothing, from clock `clock`.
fn header(kind: RequestKind, clock: u64) -> RequestHeader {
    let argument = if kind == RequestKind::Push { NO_BASE } else { 0 };
    let after_push = kind == RequestKind::Pull;
    RequestHeader { kind, after_push, count: 0, length: 0, tag: 0, ..push(0, 0, clock, argument) }
}

/// A push of 16 elements to bucket 0.
fn push(table: u32, sequence: u64, clock: u64, argument: u64) -> RequestHeader {
    RequestHeader {
        kind: RequestKind::Push,
        after_push: false,
        void: false,
        keys: Default::default(),
        packed: false,
        sequence,
        clock,
        region: 0,
        chain: 0,
        argument,
        table,
        bucket: 0,
        epoch: 1,
        first: 0,
        count: 16,
        length: 64,
        tag: 5,
    }
}

/// A region of room for one answer and a bit.
const REGION: RemoteRegion = RemoteRegion { address: 0, length: 100, key: 2, rights: Rights::Write };

fn announce(number: u8) -> WorkerMessage {
    WorkerMessage::Announce { number, region: REGION }
}

/// The field that a worker is blamed for, by name.
#[track_caller]
fn blamed(outcome: Result<()>) -> &'static str {
    match outcome {
        Err(Error::Protocol { peer, field, .. }) => {
            assert_eq!(peer, "worker 0");
            field
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_pull_into_a_region_that_is_not_announced_or_too_small_is_refused() {
    assert_eq!(blamed(Rig::new(1).pull_into(0, 1, 0)), "region");
    assert_eq!(blamed(Rig::new(1).pull_into(0, u8::MAX, 0)), "region");
    for (argument, good) in [(0, true), (36, true), (37, false), (100, false), (u64::MAX, false)] {
        let mut rig = Rig::new(1);
        rig.say(announce(3)).unwrap();
        let pulled = rig.pull_into(0, 3, argument);
        assert_eq!(pulled.is_ok(), good, "{argument}");
        if !good {
            assert_eq!(blamed(pulled), "argument");
        }
    }
}

#[test]
fn regions_are_as_many_as_their_numbers_and_writable() {
    let mut rig = Rig::new(1);
    for number in 1..64 {
        rig.say(announce(number)).unwrap();
    }
    for number in [0, 64, 255] {
        let mut rig = Rig::new(1);
        assert_eq!(blamed(rig.say(announce(number))), "region", "{number}");
        let mut rig = Rig::new(1);
        assert_eq!(blamed(rig.say(WorkerMessage::Withdraw { number })), "region", "{number}");
    }
    assert_eq!(blamed(rig.say(announce(63))), "region", "a number that is in use");
    let region = RemoteRegion { rights: Rights::Read, ..REGION };
    assert_eq!(blamed(Rig::new(1).say(WorkerMessage::Announce { number: 1, region })), "region");
}

#[test]
fn a_withdrawn_region_is_acknowledged_and_not_used_again() {
    let mut rig = Rig::new(1);
    rig.say(announce(5)).unwrap();
    rig.say(WorkerMessage::Withdraw { number: 5 }).unwrap();
    assert!(rig.core.links[0].as_ref().unwrap().region(5).is_none());
    assert_eq!(blamed(rig.pull_into(0, 5, 0)), "region");
    let mut rig = Rig::new(1);
    assert_eq!(blamed(rig.say(WorkerMessage::Withdraw { number: 5 })), "region");
    // The number may be announced anew at once.
    let mut rig = Rig::new(1);
    for message in [announce(5), WorkerMessage::Withdraw { number: 5 }, announce(5)] {
        rig.say(message).unwrap();
    }
    rig.pull_into(0, 5, 0).unwrap();
}

#[test]
fn a_region_that_a_pull_under_way_names_is_not_withdrawn() {
    let mut rig = Rig::new(1);
    rig.say(announce(5)).unwrap();
    rig.say(announce(6)).unwrap();
    rig.pull_into(0, 5, 0).unwrap();
    rig.say(WorkerMessage::Withdraw { number: 6 }).unwrap();
    assert_eq!(blamed(rig.say(WorkerMessage::Withdraw { number: 5 })), "region");
    // The job ends; nothing is answered from then on.
    rig.send((0, 1), RequestKind::Mark, 0, 0).unwrap();
    assert_eq!(rig.core.gate.closed(), 0);
}

/// With a table 1 of one bucket, where only what is up to date is taken.
fn rig_that_rejects() -> Rig {
    let mut rig = Rig::new(1);
    let spec = TableSpec::dense("a", &[16]).segment_bytes(64).consistency(Consistency::Asp);
    let spec = spec.stale(Stale::Reject { max_age: 0 });
    rig.core.create_table(1, &spec, |_| Ok(RegionId(3))).unwrap();
    rig
}

#[test]
fn a_rejection_is_told_again_over_a_new_endpoint_and_counted_once() {
    let mut rig = rig_that_rejects();
    let told = |rig: &mut Rig| rig.core.links[0].as_mut().unwrap().next_rejected();
    let reconnect = |rig: &mut Rig| {
        rig.core.detach(0);
        rig.attach(0);
    };
    rig.frame((0, 0), push(1, 0, 0, 0)).unwrap();
    rig.frame((0, 1), push(1, 1, 0, 0)).unwrap();
    for _ in 0..3 {
        assert_eq!((told(&mut rig), told(&mut rig)), (Some(1), None));
        assert_eq!(rig.core.sessions[0].rejected[1].unwrap().rejection.cause, Cause::Stale { current: 1 });
        // The endpoint is lost before the answers come: both are sent again.
        reconnect(&mut rig);
        rig.frame((0, 0), push(1, 0, 0, 0)).unwrap();
        rig.frame((0, 1), push(1, 1, 0, 0)).unwrap();
    }
    let stats = rig.core.stats();
    assert_eq!((stats.stale_rejected, stats.duplicates_dropped), (1, 6));
    assert_eq!(rig.core.shard.read_dense(1, 0, 0, 16).unwrap().version, 1);
    // Now the worker hears of it, and fills the slot anew. That push is accepted, and stays so.
    assert_eq!(told(&mut rig), Some(1));
    for _ in 0..2 {
        reconnect(&mut rig);
        rig.frame((0, 1), push(1, 2, 0, NO_BASE)).unwrap();
        assert_eq!(told(&mut rig), None);
        assert_eq!(rig.core.shard.read_dense(1, 0, 0, 16).unwrap().version, 2);
    }
}

#[test]
fn a_slot_whose_rejection_has_not_been_told_is_not_the_workers_to_fill() {
    let mut rig = rig_that_rejects();
    rig.frame((0, 0), push(1, 0, 0, 0)).unwrap();
    rig.frame((0, 1), push(1, 1, 0, 0)).unwrap();
    let error = rig.frame((0, 1), push(1, 2, 0, 0)).unwrap_err().to_string();
    assert!(error.contains("worker 0") && error.contains("slot"), "{error}");
}

#[test]
fn a_base_version_under_bsp_is_refused() {
    let mut rig = Rig::new(1);
    let error = rig.frame((0, 1), push(0, 0, 0, 7)).unwrap_err().to_string();
    assert!(error.contains("argument") && error.contains("no base version"), "{error}");
}

#[test]
fn a_late_piece_that_does_not_fit_is_its_own_workers_fault() {
    for late in [Late::Drop, Late::Apply] {
        let mut rig = Rig::new(2);
        let spec = TableSpec::sparse("q", 1).quorum(Quorum { workers: 1, late });
        rig.core.create_table(1, &spec, |_| Ok(RegionId(3))).unwrap();
        rig.send((0, 0), RequestKind::Mark, 0, 0).unwrap();
        assert_eq!((rig.core.gate.closed(), rig.core.gate.closed_of(1)), (0, 1));
        rig.push_key_to(1, (1, 0), 5, spec.bucket_of(5) ^ 1).unwrap();
        rig.send((0, 1), RequestKind::Mark, 1, 0).unwrap();
        rig.core.obey();
        assert!(matches!(&rig.core.faults[..], [(1, Error::Protocol { field: "keys", .. })]));
        assert_eq!(rig.core.stats.late_dropped + rig.core.stats.late_applied, 0);
    }
}

/// Worker 0 sets and pushes, worker 1 pushes, all in one turn: sets stand behind the step that takes both pushes, in a table
/// with a quorum as in one without; and the mean is of those that count.
#[test]
fn pushes_and_sets_of_one_turn_close_together() {
    for (quorum, expected) in [(None, -1.0), (Some(Quorum { workers: 2, late: Late::Drop }), -1.5)] {
        let mut rig = Rig::new(3);
        let mut spec = TableSpec::dense("q", &[32]).segment_bytes(64);
        spec.quorum = quorum;
        rig.core.create_table(1, &spec, |_| Ok(RegionId(3))).unwrap();
        let pin = rig.core.shard.pin_dense(1, 0, 0, 16).unwrap();
        let ones = [1.0f32; 16];
        let piece = |kind| RequestHeader { table: 1, count: 16, length: 64, ..header(kind, 0) };
        let set =
            RequestHeader { count: 1, length: 4, argument: NO_BASE, first: 3, ..piece(RequestKind::Set) };
        rig.put((0, 0), set, bytemuck::bytes_of(&7.0f32)).unwrap();
        rig.put((0, 1), piece(RequestKind::Push), bytemuck::cast_slice(&ones)).unwrap();
        rig.put((1, 0), piece(RequestKind::Push), bytemuck::cast_slice(&ones.map(|v| 2.0 * v))).unwrap();
        rig.send((1, 1), RequestKind::Mark, 0, 0).unwrap();
        if quorum.is_none() {
            rig.send((2, 0), RequestKind::Mark, 0, 0).unwrap();
        }
        rig.core.obey();
        // Worker 0's slots are free again, its pieces are not: they are in the sum.
        rig.core.links[0].as_mut().unwrap().forget_freed();
        rig.send((0, 0), RequestKind::Mark, 0, 0).unwrap();
        rig.core.obey();
        assert!(!rig.core.failed && rig.core.sessions.iter().all(|s| s.occupied == 0));
        let mut weights = [expected; 16];
        weights[3] = 7.0;
        let reading = rig.core.shard.read_dense(1, 0, 0, 16).unwrap();
        assert_eq!((reading.values, reading.version), (&weights[..], 1));
        let mut kept = [1.0f32; 16];
        pin.slice().arena.copy_out(pin.slice().offset, bytemuck::cast_slice_mut(&mut kept));
        assert_eq!((kept, rig.core.shard.moves()), ([0.0; 16], 1), "what is being sent stays");
    }
}

#[test]
fn a_frame_of_another_chain_is_refused_by_name() {
    for kind in [RequestKind::Push, RequestKind::Pull] {
        let mut rig = Rig::new(1);
        let fp16 = Chains::of(&TableSpec::sparse("s", 1).wire(Wire::Fp16)).unwrap().push.check();
        let length = if kind == RequestKind::Push { 32 } else { 0 };
        let request = RequestHeader { chain: fp16, count: 16, length, ..header(kind, 0) };
        let error = rig.put((0, 0), request, &[]).unwrap_err().to_string();
        assert!(error.contains("worker 0 broke the protocol: chain: expected 0x0000 (fp32)"), "{error}");
    }
}

#[test]
fn a_body_that_is_longer_than_its_chain_makes_it_is_refused() {
    let mut rig = Rig::new(1);
    let spec = TableSpec::dense("half", &[64]).segment_bytes(64).wire(Wire::Fp16);
    rig.core.create_table(2, &spec, |_| Ok(RegionId(3))).unwrap();
    let chain = Chains::of(&spec).unwrap().push.check();
    let push = RequestHeader { table: 2, chain, count: 16, length: 64, ..header(RequestKind::Push, 0) };
    let error = rig.put((0, 0), push, &[]).unwrap_err().to_string();
    assert!(error.contains("length: expected 32 for 16 values, found 64"), "{error}");
    // A pull of as many bytes as the worker's memory has left, and of one value more.
    for (argument, fits) in [((1 << 20) - 32, true), ((1 << 20) - 31, false)] {
        let mut rig = Rig::new(1);
        rig.core.create_table(2, &spec, |_| Ok(RegionId(3))).unwrap();
        let pull = RequestHeader { table: 2, chain, count: 16, argument, ..header(RequestKind::Pull, 0) };
        assert_eq!(rig.put((0, 0), pull, &[]).is_ok(), fits, "{argument}");
    }
}

#[test]
fn a_table_with_an_unknown_filter_is_refused_with_what_is_known() {
    let mut rig = Rig::new(1);
    let newer = FilterSpec { minor: 7, ..FilterSpec::bf16() };
    let spec = TableSpec::sparse("x", 1).pull_filters(vec![newer]);
    let error = rig.core.create_table(2, &spec, |_| Ok(RegionId(3))).unwrap_err();
    let expected = "table \"x\": pull filter: expected fp16 1.0 or bf16 1.0, found bf16 1.7";
    assert_eq!(error.to_string(), expected);
    assert!(rig.core.shard.spec(2).is_none());
}

/// What one worker does in one clock: a push to each bucket in its own order, then the mark.
fn script(rank: u32, order: &[u32]) -> Vec<(u32, Option<u32>)> {
    order.iter().map(|bucket| (rank, Some(*bucket))).chain(std::iter::once((rank, None))).collect()
}

proptest! {
    /// Three workers with two slots each, their requests in any order, taken one at a time or many in one turn, their values lent or
    /// in the slot: the same bits as a sum by rank, and every slot comes back.
    #[test]
    fn arrival_and_turns_change_no_bit(
        orders in proptest::array::uniform3(Just(vec![0u32, 1, 2, 3]).prop_shuffle()),
        choices in proptest::collection::vec((any::<prop::sample::Index>(), proptest::bool::weighted(0.3)), 400),
        lent in any::<u32>(),
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
                    if (lent >> (rank * 8 + *clock as u32 * 4 + bucket)) & 1 == 1 {
                        rig.lend((rank, slot), push, loan(values.as_slice().try_into().unwrap(), 0)).unwrap();
                    } else {
                        rig.put((rank, slot), push, bytemuck::cast_slice(&values)).unwrap();
                    }
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

/// Told that its slot is free, the worker would take a push that nobody applied for done.
#[test]
fn what_came_too_late_for_a_thread_that_drains_is_no_duplicate_when_it_comes_again() {
    let mut rig = Rig::new(1);
    let spec = TableSpec::dense("a", &[16]).segment_bytes(64).consistency(Consistency::Asp);
    rig.core.create_table(1, &spec, |_| Ok(RegionId(3))).unwrap();
    rig.frame((0, 0), push(1, 0, 0, NO_BASE)).unwrap();
    rig.core.drain();
    rig.frame((0, 1), push(1, 1, 0, NO_BASE)).unwrap();
    rig.core.detach(0);
    rig.attach(0);
    for slot in 0..2 {
        rig.frame((0, slot), push(1, slot.into(), 0, NO_BASE)).unwrap();
    }
    assert_eq!((rig.core.stats.pushes, rig.core.stats.duplicates_dropped), (1, 1));
    let link = rig.core.links[0].as_mut().unwrap();
    assert!(!link.fill(0), "the first is given back");
    assert!(link.fill(1), "the second is not");
    // Nor does it make the thread wait for clocks that it has not promised to anybody.
    assert_eq!(rig.core.promised, 0);
}
