//! Shared memory, between processes of one user on one host.
//!
//! Nobody hands out memory that others could write. What a process sends from, it shows its peers for reading (a sealed memfd, see
//! [`Arena::shared`]); the side that is written to copies the bytes itself, from where they lie, to where its grant lets the peer
//! write, or reads a [lent](crate::transport::Payload::Lent) body in place. So a write is one copy, done by the side that needs the
//! bytes next, and each transport checks every grant against its own table, as over TCP: a key works for one endpoint, a grant that
//! was withdrawn is gone, and a peer can change nothing but its own memory and the two rings of its own connection.
//!
//! ```text
//!        active                                      passive
//!   ┌──────────────┐   ring of entries, 32 KiB   ┌──────────────┐
//!   │ Tx  producer │────────────────────────────▶│ consumer  Rx │
//!   │ Rx  consumer │◀────────────────────────────│ producer  Tx │
//!   └──────┬───────┘   ring of entries, 32 KiB   └───────┬──────┘
//!          └──────── Unix socket, SOCK_SEQPACKET ────────┘
//!            proofs, descriptors, doorbells, the end
//! ```
//!
//! | file | idea |
//! | --- | --- |
//! | `config` | limits |
//! | `frame` | the entries of a ring |
//! | `address` | what `open` hands out |
//! | `accept`, `dial` | authentication (`transport::preamble` has the bytes): the passive side, the active side |
//! | `rx`, `tx` | taking and announcing bytes; `mem::ring` has the counters |
//! | `endpoint` | state |
//! | `progress` | what `poll` does |
//! | `socket` | system calls |
//!
//! `Done` of a write means that the peer has taken its bytes or, of a loan, knows of it. Bodies of at most 2 KiB, and those in memory that
//! can't be shown (a program's own), are copied into the ring. A process whose arena has been shown can read all of that arena, not only
//! what was sent from it: what must not be seen by a peer must not lie in an arena that is sent from.
//!
//! A read's bytes are taken from the granted memory by the side that asked, which may be after a later operation of the same peer took
//! effect: as on verbs, who needs the order waits for `Done`.

mod accept;
mod address;
mod config;
mod dial;
mod endpoint;
mod frame;
mod post;
mod progress;
mod rx;
mod socket;
mod tx;

pub use address::boot_id;
pub use config::ShmConfig;

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::epoll;

use accept::Lobby;
use address::{Address, BootId, Name};
use dial::Dialer;
use endpoint::{Endpoints, State};
use progress::{LISTENER, TIMER, watch};

use super::arenas::Arenas;
use super::preamble::Secret;
use super::timer::Timer;
use super::{Caps, Completion, EndpointId, Message, Read, Rejected, SessionKey, Side, Transport, Write};
use crate::error::{Error, Result};
use crate::mem::{Arena, Kind, RegionId, RemoteRegion, Rights};

/// Reads that one endpoint may have without an answer. Part of the protocol: a peer that asks for more is closed, so that
/// it can't make us queue answers it does not take.
const MAX_READS: usize = 64;

/// For how long no memory is shared with a peer once that failed. What was in the way, such as a want of descriptors, may be gone by then;
/// and if it is not, a try costs no more than one connection a minute.
const BARRED: Duration = Duration::from_secs(60);

/// Refuses a host that lacks what this transport needs.
pub fn check() -> Result<()> {
    Shm::new(ShmConfig::default(), true)?;
    Arena::shared(1).map(drop)
}

/// The transport over shared memory of one thread.
#[derive(Debug)]
pub struct Shm {
    config: ShmConfig,
    caps: Caps,
    boot: BootId,
    epoll: OwnedFd,
    timer: Timer,
    /// What needs the timer has changed since it was set.
    clock_stale: bool,
    listener: Option<OwnedFd>,
    /// Nobody is accepted before the next tick.
    stalled: bool,
    name: Name,
    lobby: Lobby,
    arenas: Arenas,
    endpoints: Endpoints,
    /// Those that are connected, in the order of their next turns.
    turns: VecDeque<u32>,
    /// Peers were told to ring.
    armed: bool,
    /// Polls since the system was asked.
    unasked: u32,
    /// Operations were posted since the last round of sending.
    unsent: bool,
    /// Completions in the order in which they came about.
    outbox: Vec<Completion>,
    /// There is another way to every peer.
    beside: bool,
    /// Peers with whom memory can't be shared: to connect to them anew would soon end as it did.
    unfit: Vec<Unfit>,
}

/// A peer that shows memory for which this process had no room.
#[derive(Debug)]
struct Unfit {
    peer: String,
    until: Instant,
    why: Error,
}

impl Shm {
    /// A transport without endpoints; it listens at once if `listen`.
    pub fn new(config: ShmConfig, listen: bool) -> Result<Shm> {
        let system = |e: rustix::io::Errno| Error::io("epoll_create", "shm", e.into());
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(system)?;
        let timer = Timer::new()?;
        watch(&epoll, &timer, TIMER)?;
        let mut name = [0; 16];
        getrandom::fill(&mut name)
            .map_err(|e| Error::io("getrandom", "a name", std::io::Error::other(e.to_string())))?;
        let mut listener = None;
        if listen {
            let socket = socket::listen(&name)?;
            watch(&epoll, &socket, LISTENER)?;
            listener = Some(socket);
        }
        let caps = Caps {
            name: "shm",
            one_sided: false,
            keys_per_peer: true,
            queue_depth: config.queue_depth,
            max_write: config.max_write,
            detail: "memory of this host".to_owned(),
        };
        let places = if listen { config.max_pending } else { 0 };
        Ok(Shm {
            caps,
            boot: config.host.map_or_else(address::boot_id, Ok)?,
            epoll,
            timer,
            clock_stale: false,
            listener,
            stalled: false,
            name,
            lobby: Lobby::new(places),
            arenas: Arenas::new(config.max_write),
            endpoints: Endpoints::default(),
            turns: VecDeque::new(),
            armed: false,
            unasked: 0,
            unsent: false,
            outbox: Vec::new(),
            beside: false,
            unfit: Vec::new(),
            config,
        })
    }

    /// Makes an arena known by the number that another transport gave it.
    pub(super) fn register_as(&mut self, region: RegionId, arena: Arc<Arena>) {
        self.arenas.register_as(region, arena);
    }

    /// Whether an address is one of this host.
    pub(super) fn is_near(&self, address: &[u8]) -> bool {
        Address::decode(address).is_some_and(|address| address.boot == self.boot)
    }

    /// Whether a grant or an operation under way lies in a region.
    pub(super) fn uses(&mut self, region: RegionId) -> bool {
        self.retire_all();
        self.endpoints.iter().any(|e| e.uses(region))
    }

    /// Authorises by the key that another transport chose.
    pub(super) fn authorise_as(
        &mut self,
        endpoint: EndpointId,
        region: RegionId,
        range: (usize, usize),
        rights: Rights,
        key: u32,
    ) -> Result<RemoteRegion> {
        match self.endpoints.get(endpoint) {
            Some(known) => self.arenas.grant_as(&mut known.grants, region, range, rights, key),
            None => Self::misuse("authorise", "the endpoint is closed"),
        }
    }

    /// Says that another transport reaches every peer, too.
    pub(super) fn stand_beside(&mut self) {
        self.beside = true;
    }

    /// Shares no memory with a peer for a while.
    fn bar(&mut self, peer: String, why: &Error) {
        tracing::warn!("no shared memory with {peer} for {} s: {why}", BARRED.as_secs());
        self.unfit.retain(|unfit| unfit.peer != peer);
        self.unfit.push(Unfit { peer, until: Instant::now() + BARRED, why: why.clone() });
    }

    fn misuse<T>(call: &'static str, reason: &str) -> Result<T> {
        Err(Error::Misuse { call, reason: reason.to_owned() })
    }

    fn dial(&mut self, id: EndpointId, address: &[u8], key: &SessionKey) -> Result<()> {
        let Some(endpoint) = self.endpoints.get(id) else {
            return Self::misuse("connect", "the endpoint is closed");
        };
        let Some(address) = Address::decode(address) else {
            let found = format!("{} bytes", address.len());
            return Err(Error::protocol(&endpoint.peer, "address", "1, boot id, socket, endpoint", found));
        };
        if address.boot != self.boot {
            let reason = "it runs on another host: its kernel's boot id is another".to_owned();
            return Err(Error::Refused { peer: endpoint.peer.clone(), reason });
        }
        let until = Instant::now() + self.config.connect_timeout;
        let dialer = Dialer::new(&address, key, until, &endpoint.peer)?;
        watch(&self.epoll, &dialer.socket, id.index.into())?;
        endpoint.state = State::Dialing(Box::new(dialer));
        self.clock_stale = true;
        Ok(())
    }

    fn expect(&mut self, id: EndpointId, address: &[u8], key: &SessionKey) -> Result<()> {
        let Some(endpoint) = self.endpoints.get(id) else {
            return Self::misuse("connect", "the endpoint is closed");
        };
        if address != address::ACTIVE {
            return Err(Error::protocol(&endpoint.peer, "address", "the active side's", "another"));
        }
        let until = Instant::now() + self.config.connect_timeout;
        endpoint.state = State::Expecting { key: Secret(*key), until, refused: 0 };
        self.clock_stale = true;
        self.judge_waiting(id);
        Ok(())
    }
}

impl Transport for Shm {
    fn caps(&self) -> &Caps {
        &self.caps
    }

    fn memory(&self) -> Kind {
        Kind::Shared
    }

    fn sends_in_place(&self, endpoint: EndpointId, arena: &Arena) -> bool {
        match self.endpoints.look(endpoint).map(|e| &e.state) {
            Some(State::Connected(c)) => c.tx.may_show(arena),
            _ => arena.file().is_some(),
        }
    }

    fn lends(&self, _: EndpointId) -> bool {
        true
    }

    fn register(&mut self, arena: Arc<Arena>) -> Result<RegionId> {
        self.arenas.register(arena)
    }

    fn unregister(&mut self, region: RegionId) -> bool {
        if self.uses(region) {
            return false;
        }
        for &index in &self.turns {
            if let Some(State::Connected(c)) = self.endpoints.at(index).map(|e| &mut e.state) {
                c.tx.forget(region);
                self.unsent = true;
            }
        }
        self.arenas.unregister(region);
        true
    }

    /// Fails for a peer of whom an earlier endpoint has found, within the last minute, that this process can't map what it shows.
    fn open(&mut self, side: Side, peer: &str) -> Result<(EndpointId, Vec<u8>)> {
        let now = Instant::now();
        self.unfit.retain(|unfit| now < unfit.until);
        if let Some(unfit) = self.unfit.iter().find(|unfit| unfit.peer == peer) {
            return Err(unfit.why.clone());
        }
        match (side, &self.listener) {
            (Side::Active, _) => {
                Ok((self.endpoints.open(side, peer, State::Opened), address::ACTIVE.to_vec()))
            }
            (Side::Passive, Some(_)) => {
                let endpoint = self.endpoints.open(side, peer, State::Opened);
                Ok((endpoint, Address { boot: self.boot, name: self.name, endpoint }.encode()))
            }
            (Side::Passive, None) => Self::misuse(
                "open",
                "a passive endpoint needs a listener: make the transport with `listen: true`",
            ),
        }
    }

    fn authorise(
        &mut self,
        endpoint: EndpointId,
        region: RegionId,
        offset: usize,
        length: usize,
        rights: Rights,
    ) -> Result<RemoteRegion> {
        match self.endpoints.get(endpoint) {
            Some(known) => self.arenas.grant(&mut known.grants, region, (offset, length), rights),
            None => Self::misuse("authorise", "the endpoint is closed"),
        }
    }

    fn withdraw(&mut self, endpoint: EndpointId, remote: &RemoteRegion) -> Result<()> {
        self.retire_all();
        let Some(e) = self.endpoints.get(endpoint) else {
            // A closed endpoint reaches nothing.
            return Ok(());
        };
        if !e.grants.remove(remote.key) {
            return Self::misuse("withdraw", "the endpoint has no such authorisation");
        }
        // A payload on its way to or from that memory can't be finished, nor left out.
        if let State::Connected(c) = &e.state
            && (c.rx.writes_to(remote.key) || c.tx.answers_from(remote.key))
        {
            let error = Error::protocol(&e.peer, "key", "a grant that stands", "one withdrawn while in use");
            self.end(endpoint.index, Some(error));
        }
        Ok(())
    }

    fn connect(&mut self, endpoint: EndpointId, address: &[u8], key: &SessionKey) -> Result<()> {
        match self.endpoints.get(endpoint) {
            None => Self::misuse("connect", "the endpoint is closed"),
            Some(e) if !matches!(e.state, State::Opened) => {
                Self::misuse("connect", "the endpoint was connected before; open another")
            }
            Some(e) if e.side == Side::Active => self.dial(endpoint, address, key),
            Some(_) => self.expect(endpoint, address, key),
        }
    }

    fn send(&mut self, endpoint: EndpointId, message: Message) -> std::result::Result<(), Rejected<Message>> {
        self.post_send(endpoint, message)
    }

    fn write(&mut self, endpoint: EndpointId, write: Write) -> std::result::Result<(), Rejected<Write>> {
        self.post_write(endpoint, write)
    }

    fn read(&mut self, endpoint: EndpointId, read: Read) -> std::result::Result<(), Rejected<Read>> {
        self.post_read(endpoint, read)
    }

    fn flush(&mut self) {
        if self.unsent {
            self.send_round();
        }
    }

    fn poll(&mut self, completions: &mut Vec<Completion>, budget: usize) {
        if self.is_quiet() {
            self.unasked += 1;
        } else {
            self.progress(completions, budget);
        }
    }

    fn waitable(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }

    fn arm(&mut self) -> bool {
        self.may_sleep()
    }

    fn close(&mut self, endpoint: EndpointId) {
        if self.endpoints.get(endpoint).is_some() {
            self.end(endpoint.index, None);
        }
    }
}

#[cfg(test)]
mod tests;
