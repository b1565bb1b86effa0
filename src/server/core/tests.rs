//! Workers that hold the job's secret and lie.

use super::*;
use crate::mem::{Arena, RegionId};
use crate::mem::{RemoteRegion, Rights};
use crate::store::Optimizers;
use crate::transport::EndpointId;
use crate::types::ServerInfo;

const SLOT: usize = HEADER + 4096;

/// A thread with two slots for each worker and a dense table 0 of four buckets of 16 elements.
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
        let region = RemoteRegion { address: 0, length: 1 << 20, key: 1, rights: Rights::Write };
        for rank in 0..workers {
            let endpoint = EndpointId { index: rank, generation: 0 };
            core.attach(rank, 7, Link::new(endpoint, format!("worker {rank}"), region, 256, region));
        }
        Rig { core, sequences: vec![0; workers as usize] }
    }

    fn send(&mut self, (rank, slot): (u32, u32), kind: RequestKind, clock: u64, bucket: u32) -> Result<()> {
        let header = RequestHeader {
            kind,
            after_push: kind == RequestKind::Pull,
            void: false,
            sequence: self.sequences[rank as usize],
            clock,
            argument: 0,
            table: 0,
            bucket,
            epoch: 1,
            first: 0,
            count: 16,
            length: if kind == RequestKind::Push { 64 } else { 0 },
            tag: 0,
        };
        self.sequences[rank as usize] += 1;
        self.core.staging.arena.copy_in(self.core.staging.slot_at(rank, slot), &header.encode());
        self.core.request(rank, slot, HEADER as u32 + header.length)
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
fn a_held_piece_that_does_not_fit_is_its_own_workers_fault() {
    let mut rig = Rig::new(2);
    rig.send((1, 0), RequestKind::Push, 0, 99).unwrap();
    rig.send((1, 1), RequestKind::Mark, 0, 0).unwrap();
    rig.send((0, 0), RequestKind::Mark, 0, 0).unwrap();
    assert_eq!(rig.core.faults.len(), 1);
    assert_eq!(rig.core.faults[0].0, 1);
}

#[test]
fn after_a_fault_nothing_is_closed_taken_or_answered() {
    let mut rig = Rig::new(3);
    for (rank, bucket) in [(1, 0), (2, 99)] {
        rig.send((rank, 0), RequestKind::Push, 0, bucket).unwrap();
        rig.send((rank, 1), RequestKind::Mark, 0, 0).unwrap();
    }
    rig.send((0, 0), RequestKind::Pull, 0, 0).unwrap();
    // It lets the bad piece through, and would let the clock close without it.
    rig.send((0, 1), RequestKind::Mark, 0, 0).unwrap();
    assert_eq!(rig.core.shard.read_dense(0, 0, 0, 16).unwrap().version, 0);
    let mut transport = crate::transport::build(&crate::config::Network::default(), true).unwrap();
    let mut failed = Vec::new();
    assert!(!rig.core.settle(transport.as_mut(), &mut failed));
    assert!(matches!(&failed[..], [(2, Error::Protocol { field: "bucket", .. })]), "{failed:?}");
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
