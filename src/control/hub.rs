//! Listens, dials, authenticates, frames and keeps alive, on the one thread that polls it.
//!
//! What strangers can take is bounded: connections before authentication ([`Limits::pre_auth`]), their bytes (4 KiB) and
//! their time. When all places are taken, the oldest that has had a moment gives way; a legitimate dialler that this hits
//! dials again.

mod accept;
mod dial;
mod drive;

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token, Waker};
use socket2::{Domain, Protocol, Socket, Type};

use accept::Warnings;

use super::link::{Dial, Link, Phase, ReadEnd, Session};
use crate::config::Network;
use crate::error::{Error, Result};
use crate::proto::control::{ControlMessage, FrameReader, FrameWriter};
use crate::proto::filter;
use crate::proto::handshake::{Acceptor, Dialler, Established, Local, Nonce, PRE_AUTH_LIMIT, SessionKey};
use crate::proto::secret::Secret;
use crate::time::{SystemTime, TimeSource};
use crate::types::{Identity, Rank};

const WAKER: Token = Token(usize::MAX);
const LISTENER: Token = Token(usize::MAX - 1);
/// Events taken from the system in one poll.
const BATCH: usize = 256;
/// Connections accepted and bytes read from one link in one poll: the others have their turn.
const ACCEPT_TURN: usize = 64;
const READ_TURN: usize = 64 * 1024;
/// Connections that may wait to be accepted; the system caps it at net.core.somaxconn.
const BACKLOG: i32 = 4096;
/// How long a closed link may take to write what is queued, and its peer to close.
const LINGER: Duration = Duration::from_secs(1);
/// Pauses between attempts to dial.
const RETRY_FIRST: Duration = Duration::from_millis(20);
const RETRY_MOST: Duration = Duration::from_millis(500);
/// The longest silence of our own.
const KEEPALIVE_MOST: Duration = Duration::from_millis(500);
/// Pause after the system refused to accept (out of file descriptors).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What a hub keeps to.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Accepted connections that have not proved themselves.
    pub pre_auth: usize,
    /// How long a handshake may take, on either side.
    pub handshake_timeout: Duration,
    /// Links in all.
    pub links: usize,
    /// Bytes queued for one link that does not read.
    pub output_bytes: usize,
    /// Silence after which an authenticated peer is lost. The hub speaks four times as often, and at least twice a second,
    /// so that two hubs need not have the same limit if theirs are longer than a second.
    pub peer_timeout: Duration,
    /// How long a dial is retried.
    pub connect_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits::of(&Network::default())
    }
}

impl Limits {
    /// What `network` says.
    pub fn of(network: &Network) -> Limits {
        let given = &network.limits;
        Limits {
            pre_auth: given.strangers,
            handshake_timeout: given.handshake_timeout,
            links: given.links,
            output_bytes: given.control_bytes,
            peer_timeout: network.peer_timeout,
            connect_timeout: given.dial_timeout,
        }
    }

    /// How long a link may have nothing to say.
    fn keepalive(&self) -> Duration {
        (self.peer_timeout / 4).min(KEEPALIVE_MOST)
    }
}

/// Who a hub is and what it keeps to.
#[derive(Debug, Clone)]
pub struct HubConfig {
    /// Secret, job, identity and offers for handshakes.
    pub local: Local,
    /// Bounds.
    pub limits: Limits,
}

impl HubConfig {
    /// With the default limits and the filters that this build knows.
    pub fn new(secret: Secret, job: &str, identity: Identity) -> HubConfig {
        let local = Local { secret, job: job.to_owned(), identity, offers: filter::offers() };
        HubConfig { local, limits: Limits::default() }
    }
}

/// A link of one hub. Never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LinkId(pub u64);

impl LinkId {
    fn new(index: usize, generation: u32) -> LinkId {
        LinkId(u64::from(generation) << 32 | index as u64)
    }

    fn index(self) -> usize {
        (self.0 & u64::from(u32::MAX)) as usize
    }

    fn generation(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

/// What happened on a hub.
#[derive(Debug)]
pub enum Event {
    /// The peer is authenticated: messages may be sent.
    Up {
        /// The link, dialled or accepted.
        link: LinkId,
        /// Who it is.
        peer: Identity,
        /// Where it is.
        address: SocketAddr,
        /// The root of the keys of data-plane endpoints.
        export: SessionKey,
        /// What both ends know of what the dialler offered: filters by name and version.
        chosen: Vec<String>,
    },
    /// The peer said something.
    Message {
        /// Who.
        link: LinkId,
        /// What.
        message: ControlMessage,
    },
    /// A link that was up, or a dial that failed, is over. Not for links that we closed.
    Down {
        /// Which.
        link: LinkId,
        /// Who, if the link was up.
        peer: Option<Identity>,
        /// Why.
        reason: Error,
    },
    /// Somebody who dialled us was not let in; for information.
    Refused {
        /// From where.
        address: SocketAddr,
        /// Why; names whom it claimed to be.
        reason: Error,
    },
}

/// Wakes the thread that polls a hub.
#[derive(Debug, Clone)]
pub struct HubWaker(Arc<Waker>);

impl HubWaker {
    /// Makes the present or the next poll return at once.
    pub fn wake(&self) -> Result<()> {
        self.0.wake().map_err(|e| Error::io("wake", "control hub", e))
    }
}

/// See the module's head.
pub struct Hub {
    local: Local,
    limits: Limits,
    poll: Poll,
    system: Events,
    waker: Arc<Waker>,
    listener: Option<TcpListener>,
    /// Connections may be waiting: edge-triggered, so nobody tells us twice.
    accept_at: Option<Instant>,
    /// The next to be let in, as soon as there is a place before authentication.
    parked: Option<(TcpStream, SocketAddr)>,
    links: Vec<Option<Link>>,
    free: Vec<usize>,
    generation: u32,
    /// Links with bytes left behind by a turn.
    unread: VecDeque<LinkId>,
    pending: Vec<Event>,
    scratch: Vec<u8>,
    clock: SystemTime,
    warnings: Warnings,
}

impl Hub {
    /// A hub without links.
    pub fn new(config: HubConfig) -> Result<Hub> {
        config.local.validate()?;
        let fault = |e| Error::io("epoll", "control hub", e);
        let poll = Poll::new().map_err(fault)?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKER).map_err(fault)?);
        Ok(Hub {
            local: config.local,
            limits: config.limits,
            poll,
            system: Events::with_capacity(BATCH),
            waker,
            listener: None,
            accept_at: None,
            parked: None,
            links: Vec::new(),
            free: Vec::new(),
            generation: 0,
            unread: VecDeque::new(),
            pending: Vec::new(),
            scratch: vec![0; READ_TURN],
            clock: SystemTime,
            warnings: Warnings::default(),
        })
    }

    /// Listens on the first free port of `ports`, or on one that the system chooses.
    pub fn listen(&mut self, ip: IpAddr, ports: Option<RangeInclusive<u16>>) -> Result<SocketAddr> {
        if self.listener.is_some() {
            return Err(Error::Misuse { call: "Hub::listen", reason: "this hub listens already".into() });
        }
        let ports = ports.unwrap_or(0..=0);
        let shown = match (*ports.start(), *ports.end()) {
            (first, last) if first == last => SocketAddr::new(ip, first).to_string(),
            (first, last) => format!("{ip}, ports {first}-{last}"),
        };
        let mut last = io::Error::new(io::ErrorKind::InvalidInput, "the range is empty");
        for port in ports {
            match bind(SocketAddr::new(ip, port)) {
                Ok(listener) => return self.adopt(listener, &shown),
                Err(e) if e.kind() == io::ErrorKind::AddrInUse => last = e,
                Err(e) => return Err(Error::io("bind", shown, e)),
            }
        }
        Err(Error::io("bind", shown, last))
    }

    /// Dials `address` (`HOST:PORT`), which messages call `peer`; Up or Down follows; who it is that answered, Up says. While nobody listens there it is tried
    /// again, until the connect deadline. Blocks while a host name is resolved.
    pub fn dial(&mut self, address: &str, peer: &str) -> Result<LinkId> {
        let addresses: Vec<SocketAddr> = address
            .to_socket_addrs()
            .map_err(|e| Error::io("resolve", format!("{peer} at {address}"), e))?
            .collect();
        let Some(&first) = addresses.first() else {
            return Err(Error::config(format!("address of {peer}"), "a name with an address", address));
        };
        if self.live() >= self.limits.links {
            return Err(self.no_more_links());
        }
        let now = self.clock.now();
        let dial = Dial { addresses, next: 0, attempts: 0, last: None };
        let peer = format!("{peer} at {address}");
        let deadline = now + self.limits.connect_timeout;
        let mut link = self.blank(first, peer, None, Phase::Waiting { at: now }, deadline);
        link.dial = Some(dial);
        let id = self.insert(link);
        self.attempt(id, now);
        Ok(id)
    }

    /// Queues a message and writes what the socket takes. If the connection turns out to be broken, Down follows.
    pub fn send(&mut self, id: LinkId, message: &ControlMessage) -> Result<()> {
        let (now, limits) = (self.clock.now(), &self.limits);
        let gone = || Error::PeerLost { peer: format!("link {}", id.0), reason: "the link is closed".into() };
        let Some(link) = find(&mut self.links, id) else { return Err(gone()) };
        let Phase::Up(session) = &mut link.phase else {
            return Err(match link.phase {
                Phase::Closing { .. } => gone(),
                _ => Error::Misuse { call: "Hub::send", reason: "the link is not up yet".into() },
            });
        };
        if link.output.len() >= limits.output_bytes {
            return Err(Error::Limit {
                resource: format!("control messages queued for {}", link.peer),
                limit: limits.output_bytes as u64,
                asked: link.output.len() as u64,
            });
        }
        let mut frame = Vec::new();
        session.writer.encode(message, &mut frame)?;
        link.output.extend(&frame);
        link.speak_at = now + limits.keepalive();
        if link.flush().is_err() {
            // What the peer said before it closed is read first, by the next poll; reading then finds the end.
            self.unread.push_back(id);
        }
        Ok(())
    }

    /// Closes a link, after what is queued has been written. No Down follows.
    pub fn close(&mut self, id: LinkId) {
        let deadline = self.clock.now() + LINGER;
        let Some(link) = find(&mut self.links, id) else { return };
        if matches!(link.phase, Phase::Closing { .. }) {
            return;
        }
        if link.stream.is_none() || matches!(link.phase, Phase::Connecting) {
            self.remove(id);
            return;
        }
        link.phase = Phase::Closing { written: false };
        link.input = Vec::new();
        link.deadline = deadline;
        self.finish_writing(id);
    }

    /// Takes a link that is up out of the hub, as the bare connection that it was: nothing more is read from it or written to it
    /// here. `None` when there is no such link, or when something still waits to be written.
    pub fn take_stream(&mut self, id: LinkId) -> Option<std::net::TcpStream> {
        let link = find(&mut self.links, id)?;
        if link.flush().is_err() || !link.output.is_empty() || link.identity().is_none() {
            return None;
        }
        let mut stream = link.stream.take()?;
        // It is no longer polled even if the system refuses: the descriptor's place in the poll is that of a removed link.
        let _ = self.poll.registry().deregister(&mut stream);
        self.remove(id);
        Some(std::net::TcpStream::from(std::os::fd::OwnedFd::from(stream)))
    }

    /// Closes all links and waits, at most for `patience`, until what was queued is written and the peers have closed.
    pub fn shut_down(&mut self, patience: Duration) -> Result<()> {
        if let Some(mut listener) = self.listener.take() {
            // Dropping it closes it, whatever the deregistration says.
            let _ = self.poll.registry().deregister(&mut listener);
        }
        (self.accept_at, self.parked) = (None, None);
        let end = self.clock.now() + patience;
        let all: Vec<LinkId> = self.ids().collect();
        all.into_iter().for_each(|id| self.close(id));
        let mut events = Vec::new();
        while self.live() > 0 {
            let left = end.saturating_duration_since(self.clock.now());
            if left.is_zero() {
                break;
            }
            self.poll(&mut events, left)?;
            events.clear();
        }
        Ok(())
    }

    /// A handle with which other threads end a poll.
    pub fn waker(&self) -> HubWaker {
        HubWaker(self.waker.clone())
    }

    /// From now on handshakes say this rank.
    pub fn set_rank(&mut self, rank: Rank) {
        self.local.identity.rank = Some(rank);
    }

    /// The authenticated peer and its address for messages, while the link is up.
    pub fn peer_name(&self, id: LinkId) -> Option<&str> {
        let link = self.links.get(id.index())?.as_ref()?;
        (link.generation == id.generation() && link.identity().is_some()).then_some(link.peer.as_str())
    }

    /// Appends what has happened to `events`; waits for something to happen for at most `timeout`.
    pub fn poll(&mut self, events: &mut Vec<Event>, timeout: Duration) -> Result<()> {
        let now = self.clock.now();
        let timeout = if self.pending.is_empty() && self.unread.is_empty() {
            self.next_timer().map_or(timeout, |at| at.saturating_duration_since(now).min(timeout))
        } else {
            Duration::ZERO
        };
        match self.poll.poll(&mut self.system, Some(timeout)) {
            Err(e) if e.kind() != io::ErrorKind::Interrupted => {
                return Err(Error::io("epoll_wait", "control hub", e));
            }
            _ => {}
        }
        let now = self.clock.now();
        let ready: Vec<(Token, bool)> =
            self.system.iter().map(|e| (e.token(), e.is_writable() || e.is_error())).collect();
        let leftovers: Vec<LinkId> = self.unread.drain(..).collect();
        for &(token, writable) in &ready {
            match token {
                WAKER => {}
                LISTENER => self.accept_at = Some(now),
                Token(index) => self.ready(index, writable, now),
            }
        }
        leftovers.into_iter().for_each(|id| self.read(id, now));
        if self.parked.is_some() || self.accept_at.is_some_and(|at| at <= now) {
            self.accept(now);
        }
        self.timers(now);
        events.append(&mut self.pending);
        Ok(())
    }

    fn adopt(&mut self, mut listener: TcpListener, shown: &str) -> Result<SocketAddr> {
        let address = listener.local_addr().map_err(|e| Error::io("bind", shown, e))?;
        let registered = self.poll.registry().register(&mut listener, LISTENER, Interest::READABLE);
        registered.map_err(|e| Error::io("epoll", shown, e))?;
        self.listener = Some(listener);
        Ok(address)
    }

    fn ready(&mut self, index: usize, writable: bool, now: Instant) {
        let Some(link) = self.links.get(index).and_then(Option::as_ref) else { return };
        let id = LinkId::new(index, link.generation);
        if writable {
            match link.phase {
                Phase::Connecting => self.connected(id, now),
                Phase::Closing { .. } => self.finish_writing(id),
                _ => {
                    if let Some(link) = find(&mut self.links, id) {
                        // What the peer said before it closed is read first; reading then finds the end.
                        let _ = link.flush();
                    }
                }
            }
        }
        self.read(id, now);
    }
}

fn find(links: &mut [Option<Link>], id: LinkId) -> Option<&mut Link> {
    links.get_mut(id.index())?.as_mut().filter(|link| link.generation == id.generation())
}

/// With a backlog for a thousand nodes that start at once: 128 (mio's) overflows, and who is dropped waits a second for TCP to
/// try again.
fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(TcpListener::from_std(socket.into()))
}

fn nonce() -> Result<Nonce> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes)
        .map_err(|e| Error::io("getrandom", "handshake nonce", io::Error::other(e.to_string())))?;
    Ok(bytes)
}
