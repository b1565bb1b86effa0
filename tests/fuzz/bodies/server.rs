//! The whole way of a request through a server thread, but for its transport: slots that workers filled with anything and go
//! on changing, connections that come and go, and a transport that is full at times.

use std::os::fd::RawFd;
use std::sync::Arc;

use windlass::error::{Error, Result};
use windlass::mem::{Arena, Pool, RegionId, RemoteRegion, Rights};
use windlass::proto::{
    Chains, HEADER, ListName, NO_BASE, RequestHeader, RequestKind, ThreadStats, WorkerMessage,
};
use windlass::server::core::{Core, Staging};
use windlass::server::link::Link;
use windlass::store::{Optimizers, Shard};
use windlass::transport::{
    Caps, Completion, EndpointId, Message, Read, Refusal, Rejected, SessionKey, Side, Transport, Write,
};
use windlass::types::{
    Consistency, Late, NonFinite, Quorum, ServerInfo, ShardId, Stale, TableKind, TableSpec, View, Wire,
};

use super::Bytes;

const WORKERS: u32 = 3;
const SLOTS: usize = 3;
const SLOT: usize = HEADER + 1024;
/// Entries of a worker's reply ring: few, so that it fills up.
const RING: u32 = 8;
const RECEIVE: u64 = 4096;

/// Tables of all kinds, and the same again with filters.
fn tables() -> Vec<TableSpec> {
    let wires = [(Wire::Fp16, Wire::Fp16), (Wire::Bf16, Wire::Fp32), (Wire::Fp32, Wire::Bf16)];
    let filtered = plain_tables().into_iter().zip(wires.into_iter().cycle());
    let filtered = filtered.map(|(spec, (push, pull))| TableSpec {
        push_filters: push.filters(),
        pull_filters: pull.filters(),
        ..spec
    });
    plain_tables().into_iter().chain(filtered).collect()
}

/// Dense and sparse by turns, so that an odd number is a sparse table.
fn plain_tables() -> [TableSpec; 8] {
    let (ssp, quorum) = (Consistency::Ssp { staleness: 1 }, |late| Quorum { workers: 2, late });
    let dense = || TableSpec::dense("d", &[60]).segment_bytes(64);
    [
        dense(),
        sparse().non_finite(NonFinite::Count),
        dense().consistency(Consistency::Asp).non_finite(NonFinite::Count),
        sparse().consistency(ssp).non_finite(NonFinite::Reject),
        dense().quorum(quorum(Late::Apply)).non_finite(NonFinite::Reject),
        sparse().quorum(quorum(Late::Drop)),
        dense().consistency(ssp).quorum(quorum(Late::Drop)).stale(Stale::Reject { max_age: 1 }),
        sparse().consistency(Consistency::Asp).stale(Stale::Scale),
    ]
}

fn sparse() -> TableSpec {
    TableSpec { kind: TableKind::Sparse { dim: 2, buckets: 4 }, ..TableSpec::sparse("s", 2) }
}

struct Rig {
    core: Core,
    /// Of each table.
    chains: Vec<Chains>,
    arena: Arc<Arena>,
    /// The number of each worker's next request.
    sequences: [u64; WORKERS as usize],
    /// Whose each endpoint is.
    owners: Vec<u32>,
    transport: Sink,
}

impl Rig {
    fn new() -> Rig {
        let server = ServerInfo { rank: 0, address: String::new(), threads: 1, first: 0 };
        let view = View { epoch: 1, servers: vec![server], workers: WORKERS };
        let arena = Arena::new(WORKERS as usize * SLOTS * SLOT).unwrap();
        let staging = Staging { arena: arena.clone(), region: RegionId(0), slots: SLOTS, slot_bytes: SLOT };
        let replies = Pool::new(&[(1024, 2)], |_| Ok(RegionId(1))).unwrap();
        let id = ShardId { server: 0, thread: 0 };
        let shard = Shard::new(Optimizers::default(), 1 << 20, 1 << 16);
        let core = Core::new(id, view, shard, staging, replies, 3, 0);
        let mut core = core.keeping_lists(WORKERS as u64 * SLOT as u64 * 4);
        let mut chains = Vec::new();
        for (id, spec) in (0..).zip(tables()) {
            core.create_table(id, &spec, |_| Ok(RegionId(2 + id))).unwrap();
            chains.push(Chains::of(&spec).unwrap());
        }
        let transport = Sink { full: false, kept: Vec::new() };
        let sequences = [0; WORKERS as usize];
        let mut rig = Rig { core, chains, arena, sequences, owners: Vec::new(), transport };
        (0..WORKERS).for_each(|rank| rig.attach(rank));
        rig
    }

    fn attach(&mut self, rank: u32) {
        let region = |key, length| RemoteRegion { address: 0, length, key, rights: Rights::Write };
        let endpoint = EndpointId { index: self.owners.len() as u32, generation: 0 };
        self.owners.push(rank);
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
        let (mut header, body) = self.assembled(rank, how, input);
        if how & 0x10 == 0 {
            header[8..16].copy_from_slice(&self.next_sequence(rank));
        }
        self.ask(rank, slot, header, &body)
    }

    /// Up to four requests in one slot.
    fn batch(&mut self, rank: u32, slot: u32, input: &mut Bytes<'_>) -> Result<()> {
        let (count, mut parts) = (1 + u32::from(input.u8() & 3), Vec::new());
        for number in 0..u64::from(count) {
            let how = input.u8();
            let (mut header, body) = self.assembled(rank, how, input);
            if how & 0x10 == 0 {
                header[8..16].copy_from_slice(&number.to_le_bytes());
            }
            seal(&mut header);
            parts.extend([&header[..], &body].concat());
            parts.resize(parts.len().next_multiple_of(64), 0);
        }
        let empty = RequestHeader::new(self.core.clocks()[rank as usize], 1);
        let length = parts.len() as u32;
        let mut header = RequestHeader { kind: RequestKind::Batch, count, length, ..empty }.encode();
        header[8..16].copy_from_slice(&self.next_sequence(rank));
        self.ask(rank, slot, header, &parts)
    }

    /// A header, but for its sequence, and its body.
    fn assembled(&self, rank: u32, how: u8, input: &mut Bytes<'_>) -> ([u8; HEADER], Vec<u8>) {
        let mut bytes: [u8; HEADER] =
            if how & 0x80 != 0 { input.array() } else { self.header(rank, how, input).encode() };
        let sparse = bytes[32] & 1 == 1;
        let shape = usize::from(input.u8());
        let body = if sparse && how & 0x40 == 0 {
            let chains = self.chains[usize::from(bytes[32]) % self.chains.len()];
            directory(shape, chains.push.value_bytes(), &mut bytes)
        } else {
            input.take(shape * 4).to_vec()
        };
        let body = if sparse && how & 0x40 == 0 { listed(shape, &mut bytes, body) } else { body };
        if how & 0x20 == 0 {
            bytes[52..56].copy_from_slice(&(body.len() as u32).to_le_bytes());
        }
        (bytes, body)
    }

    fn next_sequence(&mut self, rank: u32) -> [u8; 8] {
        let next = &mut self.sequences[rank as usize];
        *next += 1;
        (*next - 1).to_le_bytes()
    }

    fn ask(&mut self, rank: u32, slot: u32, mut header: [u8; HEADER], body: &[u8]) -> Result<()> {
        seal(&mut header);
        let place = slot as usize % SLOTS;
        self.write(rank, place, 0, &header);
        self.write(rank, place, HEADER, body);
        self.core.request(rank, slot, (HEADER + body.len()) as u32, None)
    }

    fn header(&self, rank: u32, how: u8, input: &mut Bytes<'_>) -> RequestHeader {
        let (small, wide) = (input.u8(), input.u8());
        let kind = match how & 3 {
            0 if wide & 1 == 0 => RequestKind::Push,
            0 => RequestKind::Set,
            1 => RequestKind::Pull,
            2 => RequestKind::Mark,
            _ => RequestKind::Finish,
        };
        let pull = kind == RequestKind::Pull;
        let behind = u64::from(small >> 4 & 1);
        let table = small & 3 | wide & 4 | wide >> 2 & 8;
        let chains = self.chains[usize::from(table)];
        let right = match kind {
            RequestKind::Push | RequestKind::Set => chains.push.check(),
            RequestKind::Pull => chains.pull.check(),
            _ => 0,
        };
        RequestHeader {
            kind,
            after_push: how & 4 != 0,
            void: false,
            keys: Default::default(),
            packed: false,
            sequence: 0,
            clock: self.core.clocks()[rank as usize].saturating_sub(behind),
            // Sometimes one that the worker did not announce.
            region: if pull { wide >> 3 & 3 } else { 0 },
            chain: match wide >> 6 {
                0 => right,
                // That of the first table with filters.
                1 => self.chains[8].push.check(),
                2 => right ^ 1 << (small & 15),
                _ => 0,
            },
            argument: match small >> 5 {
                argument if pull => u64::from(argument) * 640,
                0 => NO_BASE,
                base => u64::from(base) - 1,
            },
            table: table.into(),
            bucket: u32::from(small >> 2 & 3),
            epoch: u32::from(how & 8 == 0),
            first: u32::from(how >> 2 & 1),
            count: u32::from(input.u8()) % 20,
            length: 0,
            tag: 1,
        }
    }

    /// All writes are done. The thread hears of headers even when they went over a lost endpoint: it must bear more than its
    /// transport tells it.
    fn deliver(&mut self) {
        for (endpoint, write) in self.transport.kept.drain(..) {
            if let Some(context) = write.context.or(write.header.map(|_| 0)) {
                self.core.done(self.owners[endpoint.index as usize], context);
            }
        }
    }

    /// What a worker says outside the slots, in good order or as any bytes.
    fn message(&mut self, rank: u32, input: &mut Bytes<'_>) -> Result<()> {
        let which = input.u8();
        let number = which & 63;
        let message = match which >> 6 {
            0 => {
                let (place, key) = (input.u8(), input.u8());
                let rights = [Rights::Write, Rights::ReadWrite, Rights::Read][usize::from(place & 3) % 3];
                let address = if place & 4 == 0 { 0 } else { u64::MAX - 64 };
                let length = if place & 8 == 0 { RECEIVE } else { input.u64() };
                let region = RemoteRegion { address, length, key: key.into(), rights };
                WorkerMessage::Announce { number, region }
            }
            1 => WorkerMessage::Withdraw { number },
            2 => WorkerMessage::RingRead(number.into()),
            _ => return self.core.message(rank, input.take(number.into())),
        };
        let (bytes, length) = message.encode();
        self.core.message(rank, &bytes[..length])
    }
}

/// A sparse body whose keys are to be kept under a name, are kept under it, or count as packed, as the upper bits of `shape` say.
fn listed(shape: usize, header: &mut [u8; HEADER], body: Vec<u8>) -> Vec<u8> {
    let place = (shape >> 4 & 3) as u32;
    let name = ListName { hash: [shape as u8 & 1; 16], place }.encode();
    let count = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let (entries, keys) = (count(44), count(48));
    let words = (entries as usize).saturating_add(keys as usize) * 8;
    header[4] |= [0, 4, 8, 16][shape >> 6 & 3];
    match shape >> 6 & 3 {
        1 => [&name, &body[..]].concat(),
        2 => {
            header[44..48].fill(0);
            [&name, &body[words.min(body.len())..]].concat()
        }
        3 => {
            header[36..40].copy_from_slice(&keys.wrapping_mul(8).to_le_bytes());
            body
        }
        _ => body,
    }
}

fn seal(header: &mut [u8; HEADER]) {
    let check = crc32c::crc32c(&header[..60]);
    header[60..].copy_from_slice(&check.to_le_bytes());
}

/// A sparse body in good order: `shape` says which buckets and how many keys each; the values, unless it is a pull's, are of
/// `value_bytes` each. The header is told.
fn directory(shape: usize, value_bytes: usize, header: &mut [u8; HEADER]) -> Vec<u8> {
    let spec = sparse();
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
    let values = if header[3] == 2 { Vec::new() } else { vec![1; total as usize * 2 * value_bytes] };
    [entries, keys, values].concat()
}

/// No input makes the thread panic or write where a worker did not let it; whatever is wrong is a worker's fault, by name.
pub fn requests(data: &[u8]) {
    let (stats, failed) = served(data);
    for (rank, error) in failed {
        let Error::Protocol { peer, .. } = &error else { panic!("{error}") };
        assert!(*peer == format!("worker {rank}") || peer == "a worker without endpoint", "{error}");
    }
    assert!(stats.parameter_bytes <= 1 << 20);
}

/// The server's figures after an input, and who broke the protocol.
pub fn served(data: &[u8]) -> (ThreadStats, Vec<(u32, Error)>) {
    let mut input = Bytes(data);
    let mut rig = Rig::new();
    let mut failed = Vec::new();
    while !input.is_empty() {
        let (op, which) = (input.u8(), input.u8());
        let (rank, slot) = (u32::from(which & 15) % WORKERS, u32::from(which >> 4) % (SLOTS as u32 + 1));
        let done = match op % 8 {
            0..3 => rig.request(rank, slot, &mut input),
            3 => rig.batch(rank, slot, &mut input),
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
            6 => rig.message(rank, &mut input),
            _ => {
                rig.transport.full = which & 0x80 != 0;
                if which & 0x40 != 0 {
                    rig.deliver();
                }
                if which & 0x20 != 0 {
                    rig.core.drain();
                }
                rig.core.settle(&mut rig.transport, &mut failed);
                Ok(())
            }
        };
        failed.extend(done.err().map(|error| (rank, error)));
    }
    rig.core.settle(&mut rig.transport, &mut failed);
    (rig.core.stats(), failed)
}

/// A seed's request. `small` and `wide` as in [`Rig::header`]; a `shape` says what a sparse body holds.
struct Ask {
    rank: u8,
    slot: u8,
    kind: u8,
    small: u8,
    wide: u8,
}

impl Ask {
    fn dense(self, count: u8, values: &[u8]) -> Vec<u8> {
        let Ask { rank, slot, kind, small, wide } = self;
        let shape = (values.len() / 4) as u8;
        [&[0, slot << 4 | rank, kind, small, wide, count, shape][..], values].concat()
    }

    fn sparse(self, shape: u8) -> Vec<u8> {
        let Ask { rank, slot, kind, small, wide } = self;
        vec![0, slot << 4 | rank, kind, small, wide, 0, shape]
    }
}

const PUSH: u8 = 0;
const PULL: u8 = 1;
/// Of `wide`: a push becomes a set; the second four tables; those with filters; the chain of the first of them.
const SET: u8 = 1;
const SECOND: u8 = 4;
const FILTERED: u8 = 0x20;
const FP16: u8 = 0x40;
/// Sixteen floats; halves.
const VALUES: [u8; 64] = [1; 64];
const HALVES: [u8; 32] = [1; 32];
/// Of three buckets two keys each.
const KEYS: u8 = 0x17;

pub fn seeds() -> Vec<Vec<u8>> {
    let settle = vec![7, 0x40];
    let ask = |rank, slot, kind, small, wide| Ask { rank, slot, kind, small, wide };
    let push = |rank, slot, table| ask(rank, slot, PUSH, table & 3, table & SECOND);
    let mark = |rank, slot| ask(rank, slot, 2, 0, 0).dense(0, &[]);
    let pull = |rank, slot, table, region: u8| ask(rank, slot, PULL, table & 3, table & SECOND | region << 3);
    let finish = |rank| ask(rank, 0, 3, 0, 0).dense(0, &[]);
    let say = |rank: u8, bytes: &[u8]| [&[6, rank][..], bytes].concat();
    let marked = |slot| (0..3).flat_map(|rank| mark(rank, slot)).collect::<Vec<u8>>();
    let based = |rank, slot, base: u8| ask(rank, slot, PUSH, (base + 1) << 5 | 2, SECOND);
    let announce = |rank, number: u8| say(rank, &[number, 0, 9]);
    let ordered: Vec<u8> = (0..3).flat_map(|rank| push(rank, 0, 0).dense(16, &VALUES)).collect();
    vec![
        // Values of three workers, and who reads them.
        [ordered, marked(1), settle.clone(), pull(0, 2, 0, 0).dense(16, &[]), settle.clone()].concat(),
        // Held by the gate, changed under it, lost and found again, and then let through.
        [
            push(1, 0, 1).sparse(KEYS),
            vec![4, 1, 64, 0, 4, 0, 0, 0, 0],
            vec![5, 0x81],
            marked(1),
            settle.clone(),
        ]
        .concat(),
        // No gate: asp, ssp and a pull of what they made.
        [
            push(0, 0, 2).dense(16, &VALUES),
            push(0, 1, 3).sparse(KEYS),
            settle.clone(),
            pull(0, 2, 3, 0).sparse(KEYS),
            settle.clone(),
        ]
        .concat(),
        // A set, dense and sparse, with and without the gate.
        [
            ask(0, 0, PUSH, 2, SET).dense(16, &VALUES),
            ask(0, 1, PUSH, 1, SET).sparse(KEYS),
            marked(2),
            settle.clone(),
        ]
        .concat(),
        // Two of three end the clock; the third comes late, once applied and once dropped.
        [
            push(0, 0, 4).dense(16, &VALUES),
            push(1, 0, 5).sparse(KEYS),
            mark(0, 1),
            mark(1, 1),
            push(2, 0, 4).dense(16, &VALUES),
            push(2, 1, 5).sparse(KEYS),
            settle.clone(),
        ]
        .concat(),
        // Taken, taken, and too old by one; then with the version as it is. A sparse one that is old is scaled.
        [
            based(0, 0, 0).dense(16, &VALUES),
            based(1, 0, 0).dense(16, &VALUES),
            based(2, 0, 0).dense(16, &VALUES),
            settle.clone(),
            based(2, 1, 2).dense(16, &VALUES),
            ask(0, 1, PUSH, 1 << 5 | 3, SECOND).sparse(KEYS),
            ask(1, 1, PUSH, 1 << 5 | 3, SECOND).sparse(KEYS),
            settle.clone(),
        ]
        .concat(),
        // NaNs: rejected once the gate lets them through, or counted and applied.
        [
            push(0, 0, 4).dense(16, &[0xFF; 64]),
            push(0, 1, 2).dense(16, &[0xFF; 64]),
            push(1, 0, 4).dense(16, &VALUES),
            settle.clone(),
        ]
        .concat(),
        // Values go to a region of the worker's own, which it withdraws.
        [
            announce(1, 2),
            pull(1, 0, 2, 2).dense(16, &[]),
            settle.clone(),
            say(1, &[0x80 | 1]),
            say(1, &[0x40 | 2]),
            settle.clone(),
            announce(1, 2),
        ]
        .concat(),
        // Told to stop with a pull under way, which needs a clock of another worker; what comes then is too late.
        [
            mark(0, 0),
            pull(0, 1, 0, 0).dense(16, &[]),
            vec![7, 0x20],
            mark(1, 0),
            mark(2, 0),
            push(1, 1, 2).dense(16, &VALUES),
            settle.clone(),
            settle.clone(),
        ]
        .concat(),
        // A push, a pull and a mark in one slot: a request without its operation and place is a part.
        [
            &[3, 0, 2][..],
            &push(0, 0, 2).dense(16, &VALUES)[2..],
            &pull(0, 0, 2, 0).dense(16, &[])[2..],
            &mark(0, 0)[2..],
            &settle,
        ]
        .concat(),
        // Halves from two workers, folded and read; rows pushed as bf16 and read as fp32.
        [
            ask(0, 0, PUSH, 0, FILTERED).dense(16, &HALVES),
            ask(1, 0, PUSH, 0, FILTERED | SET).dense(16, &HALVES),
            ask(2, 0, PUSH, 1, FILTERED).sparse(KEYS),
            marked(1),
            settle.clone(),
            ask(0, 2, PULL, 0, FILTERED).dense(16, &[]),
            ask(1, 2, PULL, 1, FILTERED).sparse(KEYS),
            settle.clone(),
        ]
        .concat(),
        // bf16 that comes late to a quorum; what is based on a version, and its rows as fp32.
        [
            ask(0, 0, PUSH, 0, FILTERED | SECOND).dense(16, &HALVES),
            mark(0, 1),
            mark(1, 1),
            ask(2, 0, PUSH, 0, FILTERED | SECOND).dense(16, &HALVES),
            ask(2, 1, PUSH, 1 << 5 | 3, FILTERED | SECOND).sparse(KEYS),
            settle.clone(),
            ask(2, 2, PULL, 3, FILTERED | SECOND).sparse(KEYS),
            settle.clone(),
        ]
        .concat(),
        [finish(0), finish(1), finish(2), settle.clone()].concat(),
    ]
}

/// A chain that is not the table's, each on its own: a pull and a push as fp16 of tables without filters, and fp32 for fp16.
pub fn refused_seeds() -> Vec<Vec<u8>> {
    let ask = |kind, small, wide| Ask { rank: 1, slot: 0, kind, small, wide };
    vec![
        ask(PULL, 2, FP16).dense(16, &[]),
        ask(PUSH, 2, FP16).dense(16, &HALVES),
        ask(PUSH, 0, FILTERED | 0xC0).dense(16, &VALUES),
    ]
}

/// A transport that takes everything, or nothing while it is full, and holds the server to the regions that it was given.
struct Sink {
    full: bool,
    /// Writes that are not done: they hold their buffers.
    kept: Vec<(EndpointId, Write)>,
}

impl Transport for Sink {
    fn write(&mut self, endpoint: EndpointId, write: Write) -> std::result::Result<(), Rejected<Write>> {
        assert!(write.remote.contains(write.offset, write.length() as u64), "outside: {write:?}");
        if self.full {
            return Err(Rejected { operation: write, refusal: Refusal::Full });
        }
        self.kept.push((endpoint, write));
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
