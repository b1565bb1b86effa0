//! The whole way of a request through a server thread, but for its transport: slots that workers filled with anything and go
//! on changing, connections that come and go, and a transport that is full at times.

use std::os::fd::RawFd;
use std::sync::Arc;

use windlass::error::{Error, Result};
use windlass::mem::{Arena, Pool, RegionId, RemoteRegion, Rights};
use windlass::proto::{HEADER, RequestHeader, RequestKind};
use windlass::server::core::{Core, Staging};
use windlass::server::link::Link;
use windlass::store::{Optimizers, Shard};
use windlass::transport::{
    Caps, Completion, EndpointId, Message, Read, Refusal, Rejected, SessionKey, Side, Transport, Write,
};
use windlass::types::{Consistency, ServerInfo, ShardId, TableSpec, View};

use super::Bytes;

const WORKERS: u32 = 3;
const SLOTS: usize = 3;
const SLOT: usize = HEADER + 1024;
/// Entries of a worker's reply ring: few, so that it fills up.
const RING: u32 = 8;
const RECEIVE: u64 = 4096;

struct Rig {
    core: Core,
    arena: Arc<Arena>,
    /// The number of each worker's next request.
    sequences: [u64; WORKERS as usize],
    endpoints: u32,
    transport: Sink,
}

impl Rig {
    fn new() -> Rig {
        let server = ServerInfo { rank: 0, address: String::new(), threads: 1 };
        let view = View { epoch: 1, servers: vec![server], workers: WORKERS };
        let arena = Arena::new(WORKERS as usize * SLOTS * SLOT).unwrap();
        let staging = Staging { arena: arena.clone(), region: RegionId(0), slots: SLOTS, slot_bytes: SLOT };
        let replies = Pool::new(&[(1024, 2)], |_| Ok(RegionId(1))).unwrap();
        let id = ShardId { server: 0, thread: 0 };
        let mut core =
            Core::new(id, view, Shard::new(Optimizers::default(), 1 << 20, 1 << 16), staging, replies, 3);
        let mut sparse = TableSpec::sparse("s", 2);
        if let windlass::types::TableKind::Sparse { buckets, .. } = &mut sparse.kind {
            *buckets = 4;
        }
        let dense = TableSpec::dense("d", &[60]).segment_bytes(64);
        let tables = [
            dense.clone(),
            sparse.clone(),
            dense.consistency(Consistency::Asp),
            sparse.consistency(Consistency::Ssp { staleness: 1 }),
        ];
        for (id, spec) in (0..).zip(tables) {
            core.create_table(id, &spec, |_| Ok(RegionId(2 + id))).unwrap();
        }
        let transport = Sink { full: false, kept: Vec::new() };
        let mut rig = Rig { core, arena, sequences: [0; WORKERS as usize], endpoints: 0, transport };
        (0..WORKERS).for_each(|rank| rig.attach(rank));
        rig
    }

    fn attach(&mut self, rank: u32) {
        let region = |key, length| RemoteRegion { address: 0, length, key, rights: Rights::Write };
        let endpoint = EndpointId { index: self.endpoints, generation: 0 };
        self.endpoints += 1;
        let (ring, receive) = (region(1, u64::from(RING) * HEADER as u64), region(2, RECEIVE));
        self.core.attach(rank, 7, Link::new(endpoint, format!("worker {rank}"), ring, RING, receive));
        self.core.connected(rank);
    }

    /// What a worker does at any time: writes into its own slots.
    fn write(&mut self, rank: u32, slot: usize, at: usize, bytes: &[u8]) {
        let bytes = &bytes[..bytes.len().min(SLOT - at)];
        let to = self.arena.at((rank as usize * SLOTS + slot) * SLOT + at, bytes.len());
        // SAFETY: `at` proved the range, and this is the only thread.
        unsafe { to.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) }
    }

    fn request(&mut self, rank: u32, slot: u32, input: &mut Bytes<'_>) -> Result<()> {
        let how = input.u8();
        let mut bytes: [u8; HEADER] =
            if how & 0x80 != 0 { input.array() } else { self.header(rank, how, input).encode() };
        let sparse = bytes[32] & 1 == 1;
        let shape = usize::from(input.u8());
        let body = if sparse && how & 0x40 == 0 {
            directory(shape, &mut bytes)
        } else {
            input.take(shape * 4).to_vec()
        };
        if how & 0x20 == 0 {
            bytes[52..56].copy_from_slice(&(body.len() as u32).to_le_bytes());
        }
        if how & 0x10 == 0 {
            bytes[8..16].copy_from_slice(&self.sequences[rank as usize].to_le_bytes());
            self.sequences[rank as usize] += 1;
        }
        let check = crc32c::crc32c(&bytes[..60]);
        bytes[60..].copy_from_slice(&check.to_le_bytes());
        let place = slot as usize % SLOTS;
        self.write(rank, place, 0, &bytes);
        self.write(rank, place, HEADER, &body);
        self.core.request(rank, slot, (HEADER + body.len()) as u32)
    }

    fn header(&self, rank: u32, how: u8, input: &mut Bytes<'_>) -> RequestHeader {
        let kind = [RequestKind::Push, RequestKind::Pull, RequestKind::Mark, RequestKind::Finish];
        let small = input.u8();
        let behind = u64::from(small >> 4 & 1);
        RequestHeader {
            kind: kind[usize::from(how & 3)],
            after_push: how & 4 != 0,
            sequence: 0,
            clock: self.core.clocks()[rank as usize].saturating_sub(behind),
            // Sometimes a region that the worker did not announce.
            region: u8::from(small == 0xff),
            chain: 0,
            argument: u64::from(small >> 5) * 640,
            table: u32::from(small & 3),
            bucket: u32::from(small >> 2 & 3),
            epoch: u32::from(how & 8 == 0),
            first: u32::from(how >> 2 & 1),
            count: u32::from(input.u8()) % 20,
            length: 0,
            tag: 1,
        }
    }
}

/// A sparse body in good order: `shape` says which buckets, how many keys each, and whether values follow. The header is told.
fn directory(shape: usize, header: &mut [u8; HEADER]) -> Vec<u8> {
    let spec = TableSpec {
        kind: windlass::types::TableKind::Sparse { dim: 2, buckets: 4 },
        ..TableSpec::sparse("s", 2)
    };
    let (mut entries, mut keys, mut total) = (Vec::new(), Vec::new(), 0u32);
    for bucket in (0..4u32).filter(|bucket| shape >> bucket & 1 == 1) {
        let count = 1 + (shape >> 4 & 3) as u32;
        let of_bucket = (0u64..).filter(|key| spec.bucket_of(*key) == bucket).take(count as usize);
        entries.extend([bucket, count].map(u32::to_le_bytes).concat());
        keys.extend(of_bucket.flat_map(u64::to_le_bytes));
        total += count;
    }
    header[44..48].copy_from_slice(&(entries.len() as u32 / 8).to_le_bytes());
    header[48..52].copy_from_slice(&total.to_le_bytes());
    let values = if header[3] == 1 { vec![1; total as usize * 8] } else { Vec::new() };
    [entries, keys, values].concat()
}

/// No input makes the thread panic or write where a worker did not let it; whatever is wrong is a worker's fault, by name.
pub fn requests(data: &[u8]) {
    let mut input = Bytes(data);
    let mut rig = Rig::new();
    let mut failed = Vec::new();
    while !input.is_empty() {
        let (op, which) = (input.u8(), input.u8());
        let (rank, slot) = (u32::from(which) % WORKERS, u32::from(which >> 4) % (SLOTS as u32 + 1));
        let done = match op % 8 {
            0..4 => rig.request(rank, slot, &mut input),
            4 => {
                let (at, length) = (usize::from(input.u16()) % SLOT, usize::from(input.u8() % 16));
                rig.write(rank, slot as usize % SLOTS, at, input.take(length));
                Ok(())
            }
            5 => {
                rig.core.detach(rank);
                if which & 0x80 != 0 {
                    rig.attach(rank);
                }
                Ok(())
            }
            6 => rig.core.message(rank, input.take(usize::from(op >> 4))),
            _ => {
                rig.transport.full = which & 0x80 != 0;
                if which & 0x40 != 0 {
                    rig.transport.kept.clear();
                }
                rig.core.settle(&mut rig.transport, &mut failed);
                Ok(())
            }
        };
        failed.extend(done.err().map(|error| (rank, error)));
    }
    rig.core.settle(&mut rig.transport, &mut failed);
    for (rank, error) in failed {
        let Error::Protocol { peer, .. } = &error else { panic!("{error}") };
        assert!(*peer == format!("worker {rank}") || peer == "a worker without endpoint", "{error}");
    }
    assert!(rig.core.stats().parameter_bytes <= 1 << 20);
}

pub fn seeds() -> Vec<Vec<u8>> {
    let request = |rank: u8, slot: u8, kind: u8, small: u8, count: u8, body: &[u8]| {
        let shape = (body.len() / 4) as u8;
        [&[0, slot << 4 | rank, kind, small, count, shape][..], body].concat()
    };
    let settle = [7, 0x40];
    let push = |rank, slot| request(rank, slot, 0, 0, 16, &[1; 64]);
    let mark = |rank, slot| request(rank, slot, 2, 0, 0, &[]);
    let ordered = [push(0, 0), mark(0, 1), push(1, 0), mark(1, 1), push(2, 0), mark(2, 1), settle.to_vec()];
    let pulled = [request(0, 2, 1, 0x20, 16, &[]), settle.to_vec()];
    // Held by the gate, changed under it, lost and found again, and then let through.
    let sparse = |rank: u8, slot: u8| vec![0, slot << 4 | rank, 0, 1, 0, 0x1f];
    let flipped =
        [sparse(1, 0), vec![4, 1, 64, 0, 4, 9, 9, 9, 9], vec![5, 0x81], mark(1, 1), mark(0, 0), mark(2, 0)];
    let pull_sparse = [vec![0, 0x20, 1, 1, 0, 0x1f], settle.to_vec()];
    let asp = [request(0, 0, 0, 2, 16, &[1; 64]), vec![0, 0x10, 0, 3, 0, 0x13], settle.to_vec()];
    let finished = [request(0, 0, 3, 0, 0, &[]), request(1, 0, 3, 0, 0, &[]), request(2, 0, 3, 0, 0, &[])];
    vec![
        [ordered.concat(), pulled.concat()].concat(),
        flipped.concat(),
        [asp.concat(), pull_sparse.concat()].concat(),
        finished.concat(),
    ]
}

/// A transport that takes everything, or nothing while it is full, and holds the server to the regions that it was given.
struct Sink {
    full: bool,
    /// Writes that are not done: they hold their buffers.
    kept: Vec<Write>,
}

impl Transport for Sink {
    fn write(&mut self, _: EndpointId, write: Write) -> std::result::Result<(), Rejected<Write>> {
        assert!(write.remote.contains(write.offset, write.length() as u64), "outside: {write:?}");
        if self.full {
            return Err(Rejected { operation: write, refusal: Refusal::Full });
        }
        self.kept.push(write);
        Ok(())
    }

    fn caps(&self) -> &Caps {
        unreachable!("not asked for by a server's core")
    }

    fn register(&mut self, _: Arc<Arena>) -> Result<RegionId> {
        unreachable!()
    }

    fn unregister(&mut self, _: RegionId) -> bool {
        unreachable!()
    }

    fn open(&mut self, _: Side, _: &str) -> Result<(EndpointId, Vec<u8>)> {
        unreachable!()
    }

    fn authorise(
        &mut self,
        _: EndpointId,
        _: RegionId,
        _: usize,
        _: usize,
        _: Rights,
    ) -> Result<RemoteRegion> {
        unreachable!()
    }

    fn withdraw(&mut self, _: EndpointId, _: &RemoteRegion) -> Result<()> {
        unreachable!()
    }

    fn connect(&mut self, _: EndpointId, _: &[u8], _: &SessionKey) -> Result<()> {
        unreachable!()
    }

    fn send(&mut self, _: EndpointId, _: Message) -> std::result::Result<(), Rejected<Message>> {
        unreachable!()
    }

    fn read(&mut self, _: EndpointId, _: Read) -> std::result::Result<(), Rejected<Read>> {
        unreachable!()
    }

    fn flush(&mut self) {}

    fn poll(&mut self, _: &mut Vec<Completion>, _: usize) {}

    fn waitable(&self) -> RawFd {
        unreachable!()
    }

    fn arm(&mut self) -> bool {
        unreachable!()
    }

    fn close(&mut self, _: EndpointId) {}
}
