//! Shared memory to peers on this host, another transport to all others: for each endpoint the one that connects.
//!
//! Both transports open an endpoint, and the address names both. The active side dials by memory, which fails at once where the two are
//! not on one host, and by the other transport where that did not work. The passive side takes what comes. What has lost is closed.
//!
//! ```text
//! address    length of shm's address u16, shm's address, the other's address (little-endian)
//! ```
//! Shm's address is empty where shared memory has failed this peer within the last minute, since one side had no room for what the other
//! shows: the new endpoint is connected by the other transport, and keeps it.
//!
//! A grant has the same key on both, so that a [`RemoteRegion`] is right whichever connects.

#![allow(clippy::result_large_err)] // a rejected operation is given back whole, without an allocation

use std::collections::HashMap;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use super::shm::Shm;
use super::{
    Caps, Completion, EndpointId, Message, Read, Refusal, Rejected, SessionKey, Side, Transport, Write, park,
};
use crate::error::{Error, Result};
use crate::mem::{Arena, Kind, RegionId, RemoteRegion, Rights};

/// While no endpoint can be connected by it, the other transport is polled only so often, for what comes to its listener.
const SELDOM: u32 = 64;

/// By what an endpoint is, or may be, connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Memory,
    Wide,
}

/// One peer.
#[derive(Debug)]
struct Endpoint {
    peer: String,
    side: Side,
    memory: Option<EndpointId>,
    wide: Option<EndpointId>,
    chosen: Option<Way>,
    /// What is dialled when memory fails.
    next: Option<(Vec<u8>, SessionKey)>,
    /// The other end is on this host.
    near: bool,
    /// It was told to connect.
    begun: bool,
    closing: bool,
}

impl Endpoint {
    fn by(&mut self, way: Way) -> &mut Option<EndpointId> {
        match way {
            Way::Memory => &mut self.memory,
            Way::Wide => &mut self.wide,
        }
    }
}

#[derive(Debug, Default)]
struct Place {
    generation: u32,
    endpoint: Option<Endpoint>,
}

/// See the module's head.
pub struct Several {
    memory: Shm,
    wide: Box<dyn Transport>,
    caps: Caps,
    epoll: OwnedFd,
    places: Vec<Place>,
    free: Vec<u32>,
    /// Our endpoints by theirs.
    ours: HashMap<(bool, EndpointId), EndpointId>,
    /// Endpoints that are, or may be, connected by the other transport.
    wide_open: usize,
    polls: u32,
    /// It was said that a peer on this host is not reached by memory: what is in the way of one is, as a rule, in the way of all.
    warned: bool,
    inbox: Vec<Completion>,
}

impl Several {
    /// Of two transports without endpoints and arenas.
    pub fn new(mut memory: Shm, wide: Box<dyn Transport>) -> Result<Several> {
        memory.stand_beside();
        let epoll = park::any_of(&[memory.waitable(), wide.waitable()])?;
        let (a, b) = (memory.caps(), wide.caps());
        let mut caps = Caps {
            name: b.name,
            one_sided: false,
            keys_per_peer: a.keys_per_peer && b.keys_per_peer,
            queue_depth: a.queue_depth.min(b.queue_depth),
            max_write: a.max_write.min(b.max_write),
            detail: String::new(),
        };
        caps.detail = format!("{}; shm to peers on this host", b.detail);
        Ok(Several {
            memory,
            wide,
            caps,
            epoll,
            places: Vec::new(),
            free: Vec::new(),
            ours: HashMap::new(),
            wide_open: 0,
            polls: 0,
            warned: false,
            inbox: Vec::new(),
        })
    }

    fn look(&self, id: EndpointId) -> Option<&Endpoint> {
        self.places.get(id.index as usize).filter(|p| p.generation == id.generation)?.endpoint.as_ref()
    }

    fn get(&mut self, id: EndpointId) -> Option<&mut Endpoint> {
        let place = self.places.get_mut(id.index as usize).filter(|p| p.generation == id.generation)?;
        place.endpoint.as_mut()
    }

    fn remove(&mut self, id: EndpointId) {
        let Some(place) = self.places.get_mut(id.index as usize) else { return };
        if let Some(endpoint) = place.endpoint.take_if(|_| place.generation == id.generation) {
            place.generation = place.generation.wrapping_add(1);
            self.free.push(id.index);
            for (memory, theirs) in [(true, endpoint.memory), (false, endpoint.wide)] {
                theirs.map(|theirs| self.ours.remove(&(memory, theirs)));
            }
            self.wide_open -= usize::from(endpoint.wide.is_some());
            self.describe();
        }
    }

    /// Says in the caps what the endpoints use.
    fn describe(&mut self) {
        let open = || self.places.iter().filter_map(|p| p.endpoint.as_ref());
        let by_memory = open().filter(|e| e.chosen == Some(Way::Memory)).count();
        let wide = &self.wide.caps().detail;
        self.caps.detail = format!("{wide}; {by_memory} of {} endpoints by shm", open().count());
    }

    fn transport(&mut self, way: Way) -> &mut dyn Transport {
        match way {
            Way::Memory => &mut self.memory,
            Way::Wide => self.wide.as_mut(),
        }
    }

    /// Lets go of what an endpoint of ours has on one of the transports; gives its id there.
    fn part(&mut self, id: EndpointId, way: Way) -> Option<EndpointId> {
        let theirs = self.get(id)?.by(way).take()?;
        self.ours.remove(&(way == Way::Memory, theirs));
        self.wide_open -= usize::from(way == Way::Wide);
        Some(theirs)
    }

    /// Closes what an endpoint of ours still has on both transports, and forgets it: what they report of it concerns nobody.
    fn abandon(&mut self, id: EndpointId) {
        for way in [Way::Memory, Way::Wide] {
            if let Some(theirs) = self.part(id, way) {
                self.transport(way).close(theirs);
            }
        }
        self.remove(id);
    }

    /// The transport, and its endpoint, that an endpoint is connected by.
    fn connected(&mut self, id: EndpointId) -> Option<(Way, EndpointId)> {
        let endpoint = self.get(id)?;
        let way = endpoint.chosen?;
        Some((way, (*endpoint.by(way))?))
    }

    /// Memory has failed an endpoint that is not connected: the other transport's turn.
    fn fall_back(&mut self, id: EndpointId, why: &Error) -> Result<()> {
        let warned = self.warned;
        let Some(endpoint) = self.get(id) else { return Ok(()) };
        if let (Some(wide), Some((address, key))) = (endpoint.wide, endpoint.next.take()) {
            let (near, peer) = (endpoint.near, &endpoint.peer);
            // To another host there is nothing better; within this one something is in the way.
            if near && !warned {
                tracing::warn!("{peer} is on this host, but not reached by shared memory: {why} (said once)");
            } else {
                tracing::debug!("{peer} is not reached by shared memory: {why}");
            }
            self.warned |= near;
            return self.wide.connect(wide, &address, &key);
        }
        Ok(())
    }

    /// Translates what one transport reported.
    fn pass_on(&mut self, way: Way, completions: &mut Vec<Completion>) {
        let mut inbox = std::mem::take(&mut self.inbox);
        for mut completion in inbox.drain(..) {
            let theirs = *completion.endpoint_mut();
            let Some(&id) = self.ours.get(&(way == Way::Memory, theirs)) else { continue };
            *completion.endpoint_mut() = id;
            match &completion {
                Completion::Connected { .. } => {
                    let other = if way == Way::Memory { Way::Wide } else { Way::Memory };
                    if let Some(loser) = self.part(id, other) {
                        self.transport(other).close(loser);
                    }
                    if let Some(endpoint) = self.get(id) {
                        (endpoint.chosen, endpoint.next) = (Some(way), None);
                    }
                    self.describe();
                }
                Completion::Closed { reason, .. } => {
                    self.part(id, way);
                    let Some(endpoint) = self.get(id) else { continue };
                    let left = endpoint.memory.is_some() || endpoint.wide.is_some();
                    if left && endpoint.closing {
                        continue;
                    }
                    if left && let Some(why) = reason {
                        match self.fall_back(id, why) {
                            Ok(()) => continue,
                            Err(error) => {
                                self.abandon(id);
                                completions.push(Completion::Closed { endpoint: id, reason: Some(error) });
                                continue;
                            }
                        }
                    }
                    let closing = endpoint.closing;
                    self.remove(id);
                    if closing {
                        completion = Completion::Closed { endpoint: id, reason: None };
                    }
                }
                _ => {}
            }
            completions.push(completion);
        }
        self.inbox = inbox;
    }
}

fn misuse<T>(call: &'static str) -> Result<T> {
    Err(Error::Misuse { call, reason: "the endpoint is closed".to_owned() })
}

/// Both addresses.
fn join(memory: &[u8], wide: &[u8]) -> Vec<u8> {
    [&(memory.len() as u16).to_le_bytes(), memory, wide].concat()
}

/// The inverse of [`join`].
fn split(address: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = address.split_first_chunk()?;
    rest.split_at_checked(usize::from(u16::from_le_bytes(*length)))
}

fn not_connected<T>(operation: T) -> Rejected<T> {
    Rejected { operation, refusal: Refusal::NotConnected }
}

impl Transport for Several {
    fn caps(&self) -> &Caps {
        &self.caps
    }

    fn memory(&self) -> Kind {
        Kind::SharedIfPossible
    }

    fn sends_in_place(&self, endpoint: EndpointId, arena: &Arena) -> bool {
        match self.look(endpoint) {
            Some(Endpoint { chosen: Some(Way::Memory), memory: Some(theirs), .. }) => {
                self.memory.sends_in_place(*theirs, arena)
            }
            Some(Endpoint { wide: Some(theirs), .. }) => self.wide.sends_in_place(*theirs, arena),
            _ => true,
        }
    }

    fn lends(&self, endpoint: EndpointId) -> bool {
        matches!(self.look(endpoint), Some(Endpoint { chosen: Some(Way::Memory), .. }))
    }

    fn register(&mut self, arena: Arc<Arena>) -> Result<RegionId> {
        let region = self.wide.register(arena.clone())?;
        self.memory.register_as(region, arena);
        Ok(region)
    }

    fn unregister(&mut self, region: RegionId) -> bool {
        !self.memory.uses(region) && self.wide.unregister(region) && self.memory.unregister(region)
    }

    fn open(&mut self, side: Side, peer: &str) -> Result<(EndpointId, Vec<u8>)> {
        self.open_on(0, side, peer)
    }

    fn open_on(&mut self, number: u32, side: Side, peer: &str) -> Result<(EndpointId, Vec<u8>)> {
        let (wide, wide_address) = self.wide.open_on(number, side, peer)?;
        let (memory, address) = match self.memory.open(side, peer) {
            Ok((memory, address)) => (Some(memory), address),
            // It has said so when that began.
            Err(why) => {
                tracing::debug!("no shared memory with {peer}: {why}");
                (None, Vec::new())
            }
        };
        let index = self.free.pop().unwrap_or_else(|| {
            self.places.push(Place::default());
            (self.places.len() - 1) as u32
        });
        let place = &mut self.places[index as usize];
        let id = EndpointId { index, generation: place.generation };
        let wide = Some(wide);
        let peer = peer.to_owned();
        place.endpoint = Some(Endpoint {
            peer,
            side,
            memory,
            wide,
            chosen: None,
            next: None,
            near: false,
            begun: false,
            closing: false,
        });
        memory.map(|theirs| self.ours.insert((true, theirs), id));
        wide.map(|theirs| self.ours.insert((false, theirs), id));
        self.wide_open += 1;
        Ok((id, join(&address, &wide_address)))
    }

    fn authorise(
        &mut self,
        endpoint: EndpointId,
        region: RegionId,
        offset: usize,
        length: usize,
        rights: Rights,
    ) -> Result<RemoteRegion> {
        let Some(&mut Endpoint { memory, wide, .. }) = self.get(endpoint) else { return misuse("authorise") };
        let Some(wide) = wide else {
            return memory.map_or_else(
                || misuse("authorise"),
                |memory| self.memory.authorise(memory, region, offset, length, rights),
            );
        };
        let remote = self.wide.authorise(wide, region, offset, length, rights)?;
        let Some(memory) = memory else { return Ok(remote) };
        match self.memory.authorise_as(memory, region, (offset, length), rights, remote.key) {
            Ok(_) => Ok(remote),
            // Nobody was told of the key: on neither way may it stand. Why the other failed is the better reason.
            Err(error) => {
                let _ = self.wide.withdraw(wide, &remote);
                Err(error)
            }
        }
    }

    fn withdraw(&mut self, endpoint: EndpointId, remote: &RemoteRegion) -> Result<()> {
        let Some(&mut Endpoint { memory, wide, .. }) = self.get(endpoint) else { return Ok(()) };
        // Both ways, also when the first fails.
        let by_memory = memory.map_or(Ok(()), |memory| self.memory.withdraw(memory, remote));
        let by_wide = wide.map_or(Ok(()), |wide| self.wide.withdraw(wide, remote));
        by_memory.and(by_wide)
    }

    fn connect(&mut self, endpoint: EndpointId, address: &[u8], key: &SessionKey) -> Result<()> {
        let near = split(address).is_some_and(|(by_memory, _)| self.memory.is_near(by_memory));
        let Some(known) = self.get(endpoint) else { return misuse("connect") };
        let Some((by_memory, by_wide)) = split(address) else {
            let found = format!("{} bytes", address.len());
            return Err(Error::protocol(&known.peer, "address", "those of two transports", found));
        };
        let (side, memory, Some(wide), false) = (known.side, known.memory, known.wide, known.begun) else {
            let reason = "the endpoint was connected before; open another".to_owned();
            return Err(Error::Misuse { call: "connect", reason });
        };
        known.begun = true;
        let begun = match memory.filter(|_| !by_memory.is_empty()) {
            None => {
                if let Some(memory) = self.part(endpoint, Way::Memory) {
                    self.memory.close(memory);
                }
                self.wide.connect(wide, by_wide, key)
            }
            Some(memory) if side == Side::Passive => {
                let by_memory = self.memory.connect(memory, by_memory, key);
                by_memory.and_then(|()| self.wide.connect(wide, by_wide, key))
            }
            Some(memory) => {
                (known.next, known.near) = (Some((by_wide.to_vec(), *key)), near);
                self.memory.connect(memory, by_memory, key).or_else(|why| {
                    self.part(endpoint, Way::Memory);
                    self.memory.close(memory);
                    self.fall_back(endpoint, &why)
                })
            }
        };
        // What one way has begun must not go on when the other could not.
        begun.inspect_err(|_| self.close(endpoint))
    }

    fn send(&mut self, endpoint: EndpointId, message: Message) -> std::result::Result<(), Rejected<Message>> {
        match self.connected(endpoint) {
            Some((way, theirs)) => self.transport(way).send(theirs, message),
            None => Err(not_connected(message)),
        }
    }

    fn write(&mut self, endpoint: EndpointId, mut write: Write) -> std::result::Result<(), Rejected<Write>> {
        match self.connected(endpoint) {
            Some((Way::Memory, theirs)) => {
                // An address is the other transport's business.
                let address = std::mem::take(&mut write.remote.address);
                self.memory.write(theirs, write).map_err(|mut rejected| {
                    rejected.operation.remote.address = address;
                    rejected
                })
            }
            Some((Way::Wide, theirs)) => self.wide.write(theirs, write),
            None => Err(not_connected(write)),
        }
    }

    fn read(&mut self, endpoint: EndpointId, mut read: Read) -> std::result::Result<(), Rejected<Read>> {
        match self.connected(endpoint) {
            Some((Way::Memory, theirs)) => {
                let address = std::mem::take(&mut read.remote.address);
                self.memory.read(theirs, read).map_err(|mut rejected| {
                    rejected.operation.remote.address = address;
                    rejected
                })
            }
            Some((Way::Wide, theirs)) => self.wide.read(theirs, read),
            None => Err(not_connected(read)),
        }
    }

    fn flush(&mut self) {
        self.memory.flush();
        if self.wide_open > 0 {
            self.wide.flush();
        }
    }

    fn poll(&mut self, completions: &mut Vec<Completion>, budget: usize) {
        self.memory.poll(&mut self.inbox, budget);
        self.pass_on(Way::Memory, completions);
        self.polls += 1;
        if self.wide_open > 0 || self.polls >= SELDOM {
            self.polls = 0;
            self.wide.poll(&mut self.inbox, budget);
            self.pass_on(Way::Wide, completions);
        }
    }

    fn waitable(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }

    fn arm(&mut self) -> bool {
        self.polls = SELDOM;
        let by_memory = self.memory.arm();
        self.wide.arm() && by_memory
    }

    fn close(&mut self, endpoint: EndpointId) {
        let Some(known) = self.get(endpoint) else { return };
        known.closing = true;
        let (memory, wide) = (known.memory, known.wide);
        memory.into_iter().for_each(|theirs| self.memory.close(theirs));
        wide.into_iter().for_each(|theirs| self.wide.close(theirs));
    }
}

#[cfg(test)]
mod tests;
