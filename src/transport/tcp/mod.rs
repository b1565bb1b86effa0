//! TCP, emulating one-sided operations: the peer's transport, not the peer's caller, places a write's bytes and answers a
//! read. One connection per endpoint, non-blocking, one thread.
//!
//! | file | idea |
//! | --- | --- |
//! | `config` | settings and limits |
//! | `frame` | the 32 bytes before every payload |
//! | `address` | what `open` hands out |
//! | `accept`, `dial` | authentication (`transport::preamble` has the bytes): the passive side, the active side |
//! | `rx`, `tx` | moving frames |
//! | `endpoint` | state |
//! | `progress` | what `poll` does |
//! | `leaving` | what has ended while the kernel still had a part of it |
//! | `socket` | system calls |
//!
//! `Done` of a write means that the kernel has its bytes, not that the peer does. `close` throws away what is queued, and
//! may cost the peer what it was sent and has not received.
//!
//! A read's bytes are taken from the granted memory when the answer leaves, which may be after a later operation of the
//! same peer took effect: as on verbs, who needs the order waits for `Done`.

mod accept;
mod address;
mod config;
mod dial;
mod endpoint;
mod frame;
mod leaving;
mod lent;
mod post;
mod progress;
mod rx;
mod socket;
mod tx;

pub use config::{Lending, TcpConfig};

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::Instant;

use mio::net::TcpListener;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};

use accept::Lobby;
use dial::Dialer;
use endpoint::{Endpoints, State};
use leaving::Leaving;
use progress::{BOTH, LISTENER, TIMER};

use super::arenas::Arenas;
use super::endpoints::PendingRead;
use super::preamble::Secret;
use super::timer::Timer;
use super::{
    Caps, Completion, EndpointId, Message, Read, Rejected, SessionKey, Side, Transport, Write, hand_over,
};
use crate::error::{Error, Result};
use crate::mem::{Arena, RegionId, RemoteRegion, Rights};

/// Reads that one endpoint may have without an answer. Part of the protocol: a peer that asks for more is closed, so that
/// it can't make us queue answers it does not take.
const MAX_READS: usize = 64;
/// Events taken from the system at once; more wait there.
const EVENTS: usize = 256;

/// The TCP transport of one thread.
#[derive(Debug)]
pub struct Tcp {
    config: TcpConfig,
    caps: Caps,
    poll: Poll,
    events: Events,
    timer: Timer,
    /// What needs the timer has changed since it was set.
    clock_stale: bool,
    listener: Option<TcpListener>,
    /// Where the listener listens.
    local: Option<SocketAddr>,
    /// The listener may have more to accept.
    accept_more: bool,
    /// Accepting waits for the next tick: for a place in the lobby, or a resource of the system.
    accept_stalled: bool,
    lobby: Lobby,
    arenas: Arenas,
    endpoints: Endpoints,
    leaving: Vec<Leaving>,
    /// Connections with something to receive, or to send; whoever had a turn goes to the back.
    rx_ready: VecDeque<u32>,
    tx_ready: VecDeque<u32>,
    /// The connection that brought something last, and polls since the system was asked what became ready.
    heard: Option<u32>,
    unasked: u32,
    /// The one connection of which the system does not say when it becomes ready: it is looked at with every poll.
    apart: Option<u32>,
    /// Completions in the order in which they came about.
    outbox: Vec<Completion>,
}

impl Tcp {
    /// A transport without endpoints; it listens at once if `config.listen`.
    pub fn new(config: TcpConfig) -> Result<Tcp> {
        config.check()?;
        let poll = Poll::new().map_err(|e| Error::io("epoll_create", "tcp", e))?;
        let register = |e| Error::io("epoll_ctl", "tcp", e);
        let timer = Timer::new()?;
        let fd = timer.as_raw_fd();
        poll.registry().register(&mut SourceFd(&fd), TIMER, Interest::READABLE).map_err(register)?;
        let (mut listener, mut local) = (None, None);
        let mut detail = socket::probe(&config)?;
        if config.listen {
            let mut l = socket::listen(&config)?;
            let address = l.local_addr().map_err(|e| Error::io("getsockname", config.bind, e))?;
            poll.registry().register(&mut l, LISTENER, Interest::READABLE).map_err(register)?;
            detail = format!("{address}, {detail}");
            (listener, local) = (Some(l), Some(address));
        }
        let caps = Caps {
            name: "tcp",
            one_sided: false,
            keys_per_peer: true,
            queue_depth: config.queue_depth,
            max_write: config.max_write,
            detail,
        };
        let places = if config.listen { config.max_pending } else { 0 };
        Ok(Tcp {
            caps,
            poll,
            events: Events::with_capacity(EVENTS),
            timer,
            clock_stale: false,
            listener,
            local,
            accept_more: false,
            accept_stalled: false,
            lobby: Lobby::new(places),
            arenas: Arenas::new(config.max_write),
            endpoints: Endpoints::default(),
            leaving: Vec::new(),
            rx_ready: VecDeque::new(),
            tx_ready: VecDeque::new(),
            heard: None,
            unasked: 0,
            apart: None,
            outbox: Vec::new(),
            config,
        })
    }

    /// Where it listens.
    pub fn local_address(&self) -> Option<SocketAddr> {
        self.local
    }

    fn misuse<T>(call: &'static str, reason: &str) -> Result<T> {
        Err(Error::Misuse { call, reason: reason.to_owned() })
    }

    /// Whether a grant or an operation under way lies in a region.
    pub(super) fn uses(&self, region: RegionId) -> bool {
        let leaves = |l: &Leaving| l.connection.tx.sends_from(region);
        self.endpoints.iter().any(|e| e.uses(region)) || self.leaving.iter().any(leaves)
    }

    fn dial(&mut self, id: EndpointId, address: &[u8], key: &SessionKey) -> Result<()> {
        let Some(endpoint) = self.endpoints.get(id) else {
            return Self::misuse("connect", "the endpoint is closed");
        };
        let Some((address, remote)) = address::decode(address) else {
            let expected = "4 or 6, IP address, port, endpoint";
            let found = format!("{} bytes", address.len());
            return Err(Error::protocol(&endpoint.peer, "address", expected, found));
        };
        let stream = socket::dial(address, &self.config)
            .map_err(|e| Error::io("connect", format!("{} at {address}", endpoint.peer), e))?;
        let until = Instant::now() + self.config.connect_timeout;
        let mut dialer = Box::new(Dialer::new(stream, address, remote, key, until)?);
        self.poll
            .registry()
            .register(&mut dialer.stream, Token(id.index as usize), BOTH)
            .map_err(|e| Error::io("epoll_ctl", address, e))?;
        endpoint.state = State::Dialing(dialer);
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

impl Transport for Tcp {
    fn caps(&self) -> &Caps {
        &self.caps
    }

    fn register(&mut self, arena: Arc<Arena>) -> Result<RegionId> {
        self.arenas.register(arena)
    }

    fn unregister(&mut self, region: RegionId) -> bool {
        if self.uses(region) {
            return false;
        }
        self.arenas.unregister(region);
        true
    }

    fn open(&mut self, side: Side, peer: &str) -> Result<(EndpointId, Vec<u8>)> {
        match (side, self.local) {
            (Side::Active, _) => {
                Ok((self.endpoints.open(side, peer, State::Opened), address::ACTIVE.to_vec()))
            }
            (Side::Passive, Some(local)) => {
                let id = self.endpoints.open(side, peer, State::Opened);
                Ok((id, address::encode(self.config.advertise.unwrap_or(local), id)))
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
        let Some(e) = self.endpoints.get(endpoint) else {
            // A closed endpoint reaches nothing.
            return Ok(());
        };
        if !e.grants.remove(remote.key) {
            return Self::misuse("withdraw", "the endpoint has no such authorisation");
        }
        // A payload on its way to or from that memory can't be finished, nor left out of the stream.
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
        self.send_round();
    }

    fn poll(&mut self, completions: &mut Vec<Completion>, budget: usize) {
        if !self.has_at_hand() {
            self.ask();
        }
        self.receive_round(budget);
        self.send_round();
        self.set_clock();
        // A thread that spins finds nothing again and again.
        if !self.outbox.is_empty() {
            hand_over(&mut self.outbox, completions, budget);
        }
    }

    fn waitable(&self) -> RawFd {
        self.poll.as_raw_fd()
    }

    fn arm(&mut self) -> bool {
        // Deadlines of what was begun since the last poll must be able to wake the sleeper too.
        self.set_clock();
        // Events that nobody has taken would end the sleep at once. Asked for here, and not by the next poll: whoever arms every so many
        // polls might always hit one that did not ask.
        let joins = self.apart.is_some();
        self.join_others();
        if self.unasked > 0 || joins {
            self.collect();
        }
        self.outbox.is_empty() && self.rx_ready.is_empty() && self.tx_ready.is_empty() && !self.accept_more
    }

    fn close(&mut self, endpoint: EndpointId) {
        if self.endpoints.get(endpoint).is_some() {
            self.end(endpoint.index, None);
        }
    }
}

#[cfg(test)]
mod tests;
