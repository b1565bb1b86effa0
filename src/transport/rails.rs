//! Several ports beside each other, each a transport of its own: for each endpoint the one that its number says.
//!
//! What belongs to rail r of n has the ids r, r + n, r + 2n, … here, so nothing is looked up. An arena has the same id on all rails, since
//! all of them are told of it, and let go of it, together.

#![allow(clippy::result_large_err)] // a rejected operation is given back whole, without an allocation

use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use super::{
    Caps, Completion, EndpointId, Message, Read, Rejected, SessionKey, Side, Transport, Write, park,
};
use crate::error::{Error, Result};
use crate::mem::{Arena, RegionId, RemoteRegion, Rights};

/// A transport that can be one of several.
pub trait Rail: Transport {
    /// Whether a grant or an operation under way lies in a region, so that [`Transport::unregister`] would refuse.
    fn uses(&self, region: RegionId) -> bool;
}

/// See the module's head.
pub struct Rails<R> {
    rails: Vec<R>,
    /// Endpoints that are connected.
    connected: Vec<EndpointId>,
    caps: Caps,
    epoll: OwnedFd,
}

impl<R: Rail> Rails<R> {
    /// Of transports of one kind, at least one, without endpoints and arenas.
    pub fn new(rails: Vec<R>) -> Result<Rails<R>> {
        let Some(first) = rails.first() else {
            return Err(Error::Misuse { call: "rails", reason: "there is none".to_owned() });
        };
        let mut caps = first.caps().clone();
        for other in &rails[1..] {
            caps.one_sided &= other.caps().one_sided;
            caps.keys_per_peer &= other.caps().keys_per_peer;
            caps.queue_depth = caps.queue_depth.min(other.caps().queue_depth);
            caps.max_write = caps.max_write.min(other.caps().max_write);
        }
        let descriptors: Vec<RawFd> = rails.iter().map(Transport::waitable).collect();
        let epoll = park::any_of(&descriptors)?;
        let mut rails = Rails { rails, connected: Vec::new(), caps, epoll };
        rails.describe();
        Ok(rails)
    }

    /// Says in the caps what there is, and how much it is used.
    fn describe(&mut self) {
        let connected = |number| {
            let there = |id: &&EndpointId| id.index as usize % self.rails.len() == number;
            self.connected.iter().filter(there).count()
        };
        let rail = |(number, rail): (usize, &R)| {
            format!("rail {number}: {}, {} endpoints", rail.caps().detail, connected(number))
        };
        let all: Vec<String> = self.rails.iter().enumerate().map(rail).collect();
        self.caps.detail = all.join("; ");
    }

    /// Our name for what a rail calls `id`.
    fn ours(&self, rail: usize, id: EndpointId) -> EndpointId {
        EndpointId { index: id.index * self.rails.len() as u32 + rail as u32, generation: id.generation }
    }

    /// The rail of an endpoint, and its name there.
    fn theirs(&mut self, id: EndpointId) -> (&mut R, EndpointId) {
        let rails = self.rails.len() as u32;
        let theirs = EndpointId { index: id.index / rails, generation: id.generation };
        (&mut self.rails[(id.index % rails) as usize], theirs)
    }
}

impl<R: Rail> Transport for Rails<R> {
    fn caps(&self) -> &Caps {
        &self.caps
    }

    fn register(&mut self, arena: Arc<Arena>) -> Result<RegionId> {
        // All number alike, and run out of numbers at the same time.
        let ids =
            self.rails.iter_mut().map(|rail| rail.register(arena.clone())).collect::<Result<Vec<_>>>()?;
        match ids[..] {
            [first, ref others @ ..] if others.iter().all(|id| *id == first) => Ok(first),
            _ => {
                let reason = "a rail was told of an arena by somebody else".to_owned();
                Err(Error::Misuse { call: "register", reason })
            }
        }
    }

    fn unregister(&mut self, region: RegionId) -> bool {
        // All or none: else the same arena would not have the same id everywhere.
        if self.rails.iter().any(|rail| rail.uses(region)) {
            return false;
        }
        for rail in &mut self.rails {
            rail.unregister(region);
        }
        true
    }

    fn open(&mut self, side: Side, peer: &str) -> Result<(EndpointId, Vec<u8>)> {
        self.open_on(0, side, peer)
    }

    fn open_on(&mut self, number: u32, side: Side, peer: &str) -> Result<(EndpointId, Vec<u8>)> {
        let rail = number as usize % self.rails.len();
        let (theirs, address) = self.rails[rail].open(side, peer)?;
        Ok((self.ours(rail, theirs), address))
    }

    fn authorise(
        &mut self,
        endpoint: EndpointId,
        region: RegionId,
        offset: usize,
        length: usize,
        rights: Rights,
    ) -> Result<RemoteRegion> {
        let (rail, endpoint) = self.theirs(endpoint);
        rail.authorise(endpoint, region, offset, length, rights)
    }

    fn withdraw(&mut self, endpoint: EndpointId, remote: &RemoteRegion) -> Result<()> {
        let (rail, endpoint) = self.theirs(endpoint);
        rail.withdraw(endpoint, remote)
    }

    fn connect(&mut self, endpoint: EndpointId, address: &[u8], key: &SessionKey) -> Result<()> {
        let (rail, endpoint) = self.theirs(endpoint);
        rail.connect(endpoint, address, key)
    }

    fn send(&mut self, endpoint: EndpointId, message: Message) -> std::result::Result<(), Rejected<Message>> {
        let (rail, endpoint) = self.theirs(endpoint);
        rail.send(endpoint, message)
    }

    fn write(&mut self, endpoint: EndpointId, write: Write) -> std::result::Result<(), Rejected<Write>> {
        let (rail, endpoint) = self.theirs(endpoint);
        rail.write(endpoint, write)
    }

    fn read(&mut self, endpoint: EndpointId, read: Read) -> std::result::Result<(), Rejected<Read>> {
        let (rail, endpoint) = self.theirs(endpoint);
        rail.read(endpoint, read)
    }

    fn flush(&mut self) {
        self.rails.iter_mut().for_each(Transport::flush);
    }

    fn poll(&mut self, completions: &mut Vec<Completion>, budget: usize) {
        // An equal part for each, so that none starves another.
        let part = budget.div_ceil(self.rails.len());
        let mut changed = false;
        for rail in 0..self.rails.len() {
            let known = completions.len();
            self.rails[rail].poll(completions, part);
            for completion in &mut completions[known..] {
                let id = completion.endpoint_mut();
                *id = self.ours(rail, *id);
                match *completion {
                    Completion::Connected { endpoint } => self.connected.push(endpoint),
                    Completion::Closed { endpoint, .. } => self.connected.retain(|&other| other != endpoint),
                    _ => continue,
                }
                changed = true;
            }
        }
        if changed {
            self.describe();
        }
    }

    fn waitable(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }

    fn arm(&mut self) -> bool {
        // Each, whatever the others say.
        let mut idle = true;
        for rail in &mut self.rails {
            idle &= rail.arm();
        }
        idle
    }

    fn close(&mut self, endpoint: EndpointId) {
        let (rail, endpoint) = self.theirs(endpoint);
        rail.close(endpoint);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::park::park;
    use crate::transport::tcp::{Tcp, TcpConfig};
    use std::time::{Duration, Instant};

    impl Rail for Tcp {
        fn uses(&self, region: RegionId) -> bool {
            Tcp::uses(self, region)
        }
    }

    const PATIENCE: Duration = Duration::from_secs(30);

    fn tcp(listen: bool) -> Tcp {
        Tcp::new(TcpConfig { listen, ..TcpConfig::default() }).unwrap()
    }

    /// One that dials, over so many rails, and a server thread on each of them.
    struct Rig {
        near: Rails<Tcp>,
        far: Vec<Tcp>,
        links: Vec<(EndpointId, EndpointId)>,
        seen: Vec<Completion>,
    }

    impl Rig {
        fn new(rails: usize, threads: u32) -> Rig {
            let near = Rails::new((0..rails).map(|_| tcp(false)).collect()).unwrap();
            let far = (0..threads).map(|_| tcp(true)).collect();
            let mut rig = Rig { near, far, links: Vec::new(), seen: Vec::new() };
            for number in 0..threads {
                let (a, to_a) = rig.near.open_on(number, Side::Active, "far").unwrap();
                let (b, to_b) = rig.far[number as usize].open(Side::Passive, "near").unwrap();
                rig.far[number as usize].connect(b, &to_a, &[number as u8; 32]).unwrap();
                rig.near.connect(a, &to_b, &[number as u8; 32]).unwrap();
                rig.links.push((a, b));
            }
            let all = rig.links.clone();
            rig.until("connections", |seen| {
                let connected = |id| {
                    seen.iter().any(|c| matches!(c, Completion::Connected { endpoint } if *endpoint == id))
                };
                all.iter().all(|&(a, _)| connected(a))
            });
            rig
        }

        /// Until what the near end has reported is enough.
        fn until(&mut self, what: &str, enough: impl Fn(&[Completion]) -> bool) {
            let start = Instant::now();
            while !enough(&self.seen) {
                self.near.flush();
                self.near.poll(&mut self.seen, 8);
                for far in &mut self.far {
                    far.flush();
                    far.poll(&mut Vec::new(), 8);
                }
                assert!(start.elapsed() < PATIENCE, "{what}: {:?}", self.seen);
            }
        }
    }

    #[test]
    fn endpoints_go_by_their_numbers_and_have_names_of_their_own() {
        let mut rig = Rig::new(2, 5);
        let mut names: Vec<EndpointId> = rig.links.iter().map(|(a, _)| *a).collect();
        for (number, id) in names.iter().enumerate() {
            assert_eq!(id.index as usize % 2, number % 2);
        }
        names.sort();
        names.dedup();
        assert_eq!(names.len(), 5);
        let detail = rig.near.caps().detail.clone();
        assert!(detail.contains("rail 0: ") && detail.contains(", 3 endpoints; rail 1: "), "{detail}");
        assert!(detail.ends_with(", 2 endpoints"), "{detail}");

        // What each of them is sent is told under its own name.
        for number in 0..5 {
            let message = Message::new(&[number as u8]).unwrap();
            rig.far[number].send(rig.links[number].1, message).unwrap();
        }
        let all = rig.links.clone();
        rig.until("messages", |seen| {
            let arrived = |number: usize| {
                let (a, byte) = (all[number].0, [number as u8]);
                let told = |c: &Completion| matches!(c, Completion::Received { endpoint, message } if *endpoint == a && message.bytes() == byte);
                seen.iter().any(told)
            };
            (0..5).all(arrived)
        });

        let gone = rig.links[3].0;
        rig.near.close(gone);
        let is_gone =
            |c: &Completion| matches!(c, Completion::Closed { endpoint, reason: None } if *endpoint == gone);
        rig.until("the end of one", |seen| seen.iter().any(is_gone));
        assert!(rig.near.caps().detail.ends_with(", 1 endpoints"));
        let refused = rig.near.send(gone, Message::NOTHING).unwrap_err();
        assert_eq!(refused.refusal, crate::transport::Refusal::NotConnected);
        rig.near.send(rig.links[1].0, Message::NOTHING).unwrap();
    }

    #[test]
    fn an_arena_is_known_to_all_rails_by_one_id_for_as_long_as_one_of_them_uses_it() {
        let mut rig = Rig::new(3, 3);
        let arenas: Vec<_> = (0..3).map(|_| Arena::new(4096).unwrap()).collect();
        let ids: Vec<RegionId> = arenas.iter().map(|a| rig.near.register(a.clone()).unwrap()).collect();
        let (a, _) = rig.links[2];
        let grant = rig.near.authorise(a, ids[1], 0, 64, Rights::Write).unwrap();
        // The last rail uses it, so the first ones keep it, too: what is registered next gets another id.
        assert!(!rig.near.unregister(ids[1]));
        let next = rig.near.register(Arena::new(4096).unwrap()).unwrap();
        assert!(!ids.contains(&next));
        assert!(rig.near.authorise(rig.links[0].0, ids[1], 0, 64, Rights::Read).is_ok());
        rig.near.withdraw(a, &grant).unwrap();
        assert!(!rig.near.unregister(ids[1]), "rail 0 has a grant, now");
        assert!(rig.near.unregister(ids[0]));
        let again = rig.near.register(Arena::new(4096).unwrap()).unwrap();
        assert_eq!(again, ids[0]);
    }

    #[test]
    fn it_sleeps_until_any_rail_has_something() {
        for number in 0..3 {
            let mut rig = Rig::new(3, 3);
            // What is left of connecting.
            while !rig.near.arm() {
                rig.near.poll(&mut rig.seen, 8);
            }
            let (far, link) = (&mut rig.far[number], rig.links[number].1);
            far.send(link, Message::new(b"wake up").unwrap()).unwrap();
            far.flush();
            far.poll(&mut Vec::new(), 8);
            let start = Instant::now();
            park(&[rig.near.waitable()], PATIENCE).unwrap();
            assert!(start.elapsed() < PATIENCE, "nothing woke it");
            rig.until("the message", |seen| seen.iter().any(|c| matches!(c, Completion::Received { .. })));
        }
    }

    #[test]
    fn no_rails_are_refused() {
        assert!(Rails::<Tcp>::new(Vec::new()).is_err());
    }
}
