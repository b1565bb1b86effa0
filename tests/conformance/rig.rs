//! Ends, how they are joined, and how they are driven.

use std::sync::Arc;
use std::time::{Duration, Instant};

use windlass::mem::{Arena, Kind, Pool, RegionId, RegionSlice, RemoteRegion, Rights};
use windlass::transport::park::park;
use windlass::transport::{
    Completion, EndpointId, HEADER, Message, Payload, Read, Refusal, SessionKey, Side, Transport, Write,
};

/// How long anything may take before the test fails.
pub const LIMIT: Duration = Duration::from_secs(30);
/// Size of every end's arena in bytes.
pub const ARENA: usize = 24 << 20;

/// Makes transports that can reach each other.
pub trait Fabric {
    fn transport(&self) -> Box<dyn Transport>;

    /// Whether a read goes on while its source is being written: then some are torn.
    fn tears(&self) -> bool {
        false
    }

    /// One end, in the memory that its transport likes best.
    fn end(&self) -> End {
        End::new(self.transport())
    }
}

/// One transport with one registered arena, and what it has reported so far.
pub struct End {
    pub transport: Box<dyn Transport>,
    pub arena: Arc<Arena>,
    pub region: RegionId,
    pub seen: Vec<Completion>,
    pub budget: usize,
    memory: Kind,
}

impl End {
    pub fn new(transport: Box<dyn Transport>) -> End {
        let memory = transport.memory();
        End::in_memory(transport, memory)
    }

    pub fn in_memory(mut transport: Box<dyn Transport>, memory: Kind) -> End {
        let arena = memory.arena(ARENA).unwrap();
        let region = transport.register(arena.clone()).unwrap();
        End { transport, arena, region, seen: Vec::new(), budget: 64, memory }
    }

    pub fn slice(&self, offset: usize, length: usize) -> RegionSlice {
        RegionSlice { arena: self.arena.clone(), region: self.region, offset, length }
    }

    pub fn pinned(&self, offset: usize, length: usize) -> Option<Payload> {
        Some(Payload::Pinned(self.slice(offset, length)))
    }

    pub fn pool(&mut self, bytes: usize, count: usize) -> Pool {
        Pool::of(self.memory, &[(bytes, count)], |arena| self.transport.register(arena)).unwrap()
    }

    pub fn fill(&self, offset: usize, bytes: &[u8]) {
        let to = self.arena.at(offset, bytes.len());
        // SAFETY: `at` proved the range; the tests fill bytes only while no operation touches them.
        unsafe { to.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) }
    }

    pub fn bytes(&self, offset: usize, length: usize) -> Vec<u8> {
        let mut out = vec![0; length];
        let from = self.arena.at(offset, length);
        // SAFETY: `at` proved the range; a peer may be writing it, and then the test sees a mixture and looks again.
        unsafe { from.copy_to_nonoverlapping(out.as_mut_ptr(), length) }
        out
    }

    pub fn grant(
        &mut self,
        endpoint: EndpointId,
        offset: usize,
        length: usize,
        rights: Rights,
    ) -> RemoteRegion {
        self.transport.authorise(endpoint, self.region, offset, length, rights).unwrap()
    }
}

/// Some ends, polled by turns.
pub struct Net {
    pub ends: Vec<End>,
    keys: u8,
}

/// Two connected endpoints of end 0 and end 1.
pub struct Pair {
    pub net: Net,
    pub a: EndpointId,
    pub b: EndpointId,
}

pub fn pair(fabric: &dyn Fabric) -> Pair {
    let mut net = Net::new(fabric, 2);
    let (a, b) = net.join(0, 1);
    Pair { net, a, b }
}

impl Net {
    pub fn new(fabric: &dyn Fabric, ends: usize) -> Net {
        Net::of((0..ends).map(|_| fabric.end()).collect())
    }

    pub fn of(ends: Vec<End>) -> Net {
        Net { ends, keys: 0 }
    }

    pub fn key(&mut self) -> SessionKey {
        self.keys = self.keys.wrapping_add(1);
        [self.keys; 32]
    }

    /// Opens an endpoint on each of two ends and starts to connect them; `active` dials.
    pub fn begin(&mut self, active: usize, passive: usize) -> (EndpointId, EndpointId) {
        let key = self.key();
        let (a, to_a) = self.ends[active].transport.open(Side::Active, &format!("end {passive}")).unwrap();
        let (b, to_b) = self.ends[passive].transport.open(Side::Passive, &format!("end {active}")).unwrap();
        self.ends[passive].transport.connect(b, &to_a, &key).unwrap();
        self.ends[active].transport.connect(a, &to_b, &key).unwrap();
        (a, b)
    }

    /// Connects two ends.
    pub fn join(&mut self, active: usize, passive: usize) -> (EndpointId, EndpointId) {
        let (a, b) = self.begin(active, passive);
        self.connected(active, a);
        self.connected(passive, b);
        (a, b)
    }

    pub fn connected(&mut self, end: usize, id: EndpointId) {
        self.wait(end, "Connected", |c| match c {
            Completion::Connected { endpoint } if *endpoint == id => Some(()),
            Completion::Closed { endpoint, reason } if *endpoint == id => {
                panic!("closed instead: {reason:?}")
            }
            _ => None,
        });
    }

    /// Flushes and polls every end once.
    pub fn step(&mut self) {
        let mut progress = false;
        for end in &mut self.ends {
            let before = end.seen.len();
            end.transport.flush();
            end.transport.poll(&mut end.seen, end.budget);
            progress |= end.seen.len() > before;
        }
        if !progress {
            std::thread::yield_now();
        }
    }

    /// Steps `count` times: for showing that nothing more comes.
    pub fn settle(&mut self, count: usize) {
        for _ in 0..count {
            self.step();
        }
    }

    /// Steps until `done`.
    pub fn until(&mut self, what: &str, mut done: impl FnMut(&mut Net) -> bool) {
        let limit = Instant::now() + LIMIT;
        while !done(self) {
            assert!(Instant::now() < limit, "waited in vain for {what}; seen: {:?}", self.summary());
            self.step();
        }
    }

    /// Like [`Net::until`], but after every step it sleeps on the descriptors if every end allows it, and takes it for a
    /// lost wake-up when a sleep ends by its time.
    pub fn until_sleeping(&mut self, what: &str, mut done: impl FnMut(&mut Net) -> bool) {
        while !done(self) {
            self.step();
            if done(self) {
                return;
            }
            let armed = self.ends.iter_mut().all(|end| end.transport.arm());
            if armed {
                let fds: Vec<_> = self.ends.iter().map(|e| e.transport.waitable()).collect();
                let start = Instant::now();
                match fds[..] {
                    [one] => park(&[one], LIMIT).map(drop).unwrap(),
                    [one, other] => park(&[one, other], LIMIT).map(drop).unwrap(),
                    _ => panic!("{} ends sleep together", fds.len()),
                }
                assert!(start.elapsed() < LIMIT, "slept through {what}");
            }
        }
    }

    /// Steps until a completion of `end` satisfies `pick`, takes it out of what was seen, and gives what `pick` made of it.
    pub fn wait<T>(&mut self, end: usize, what: &str, pick: impl Fn(&Completion) -> Option<T>) -> T {
        let mut looked = 0;
        let mut found = None;
        self.until(what, |net| {
            let seen = &mut net.ends[end].seen;
            looked = looked.min(seen.len());
            while looked < seen.len() {
                if let Some(value) = pick(&seen[looked]) {
                    seen.remove(looked);
                    found = Some(value);
                    return true;
                }
                looked += 1;
            }
            false
        });
        found.unwrap()
    }

    pub fn written(&mut self, end: usize, id: EndpointId) -> (u32, u32) {
        self.wait(end, "Written", |c| match c {
            Completion::Written { endpoint, imm, length } if *endpoint == id => Some((*imm, *length)),
            Completion::Closed { endpoint, reason } if *endpoint == id => panic!("closed: {reason:?}"),
            _ => None,
        })
    }

    pub fn received(&mut self, end: usize, id: EndpointId) -> Vec<u8> {
        self.wait(end, "Received", |c| match c {
            Completion::Received { endpoint, message } if *endpoint == id => Some(message.bytes().to_vec()),
            Completion::Closed { endpoint, reason } if *endpoint == id => panic!("closed: {reason:?}"),
            _ => None,
        })
    }

    pub fn done(&mut self, end: usize, id: EndpointId) -> u64 {
        self.wait(end, "Done", |c| match c {
            Completion::Done { endpoint, context } if *endpoint == id => Some(*context),
            Completion::Closed { endpoint, reason } if *endpoint == id => panic!("closed: {reason:?}"),
            _ => None,
        })
    }

    pub fn closed(&mut self, end: usize, id: EndpointId) -> Option<windlass::error::Error> {
        self.wait(end, "Closed", |c| match c {
            Completion::Closed { endpoint, reason } if *endpoint == id => Some(reason.clone()),
            _ => None,
        })
    }

    /// Posts a write, polling while there is no room.
    pub fn write(&mut self, end: usize, id: EndpointId, write: Write) {
        let mut next = Some(write);
        self.until("room for a write", |net| match net.ends[end].transport.write(id, next.take().unwrap()) {
            Ok(()) => true,
            Err(rejected) => {
                assert_eq!(rejected.refusal, Refusal::Full);
                next = Some(rejected.operation);
                false
            }
        });
    }

    /// Posts a message, polling while there is no room.
    pub fn send(&mut self, end: usize, id: EndpointId, bytes: &[u8]) {
        let message = Message::new(bytes).unwrap();
        self.until("room for a message", |net| match net.ends[end].transport.send(id, message) {
            Ok(()) => true,
            Err(rejected) => {
                assert_eq!(rejected.refusal, Refusal::Full);
                false
            }
        });
    }

    /// Posts a read, polling while there is no room.
    pub fn read(&mut self, end: usize, id: EndpointId, read: Read) {
        let mut next = Some(read);
        self.until("room for a read", |net| match net.ends[end].transport.read(id, next.take().unwrap()) {
            Ok(()) => true,
            Err(rejected) => {
                assert_eq!(rejected.refusal, Refusal::Full);
                next = Some(rejected.operation);
                false
            }
        });
    }

    /// A message goes and comes between two endpoints: both work.
    pub fn ping(&mut self, (end, id): (usize, EndpointId), (other, other_id): (usize, EndpointId)) {
        self.send(end, id, b"ping");
        assert_eq!(self.received(other, other_id), b"ping");
        self.send(other, other_id, b"pong");
        assert_eq!(self.received(end, id), b"pong");
    }

    /// What was seen and not taken, cut short, for messages.
    fn summary(&self) -> Vec<Vec<String>> {
        let last = |e: &End| e.seen.iter().rev().take(4).map(|c| format!("{c:?}")).collect();
        self.ends.iter().map(last).collect()
    }
}

/// A write with nothing in it yet.
pub fn write_to(remote: RemoteRegion, offset: u64) -> Write {
    Write { header: None, body: None, remote, offset, imm: None, context: None }
}

/// A header that can be told from others.
pub fn header(seed: u8) -> [u8; HEADER] {
    std::array::from_fn(|i| seed.wrapping_add(i as u8).wrapping_mul(31))
}

/// splitmix64 (Steele, Lea, Flood 2014): small, seeded, the same everywhere.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Less than `limit`.
    pub fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut out = Vec::with_capacity(count + 8);
        while out.len() < count {
            out.extend_from_slice(&self.next().to_le_bytes());
        }
        out.truncate(count);
        out
    }
}
