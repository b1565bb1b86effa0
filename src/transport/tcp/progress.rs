//! What happens inside `poll`: events, then one fair round of receiving, then one of sending, and the clock.

use std::io;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use mio::event::Event;
use mio::net::TcpStream;
use mio::{Events, Interest, Token};
use socket2::SockRef;

use super::accept::{GRACE, Progress};
use super::config::Lending;
use super::endpoint::{Connection, State};
use super::rx::{Context, Turn};
use super::tx::Pumped;
use super::{Tcp, socket};
use crate::error::Error;
use crate::transport::{Completion, EndpointId, Side};

/// Tokens below this one are endpoints; from it on, pending connections.
const LOBBY: usize = 1 << 40;
/// The listener's token.
pub(super) const LISTENER: Token = Token(usize::MAX - 2);
/// The timer's token.
pub(super) const TIMER: Token = Token(usize::MAX - 1);
/// Connections accepted in one poll, so that a flood of them leaves room for the peers.
const ACCEPTS: usize = 32;
/// What a connection is asked for.
pub(super) const BOTH: Interest = Interest::READABLE.add(Interest::WRITABLE);
/// How often deadlines are looked at while something is being connected.
const TICK_CONNECTING: Duration = Duration::from_millis(100);
/// How often, at least, a connection is asked for its health within the time after which silence is loss.
const CHECKS: u32 = 5;

/// Polls in a row that do without asking the system what became ready. So long does anything but the connection that
/// brought something last wait, and so many turns of that one.
pub(super) const UNASKED: u32 = 8;
/// The same where nothing else can come but a dialler, or the end of something's time.
pub(super) const UNASKED_ALONE: u32 = 64;

impl Tcp {
    /// Whether this poll does with the connections at hand: those that have more, else the one that brought something last. What
    /// comes next most often comes from there, and to try costs no more than to ask, which would only come before it.
    pub(super) fn has_at_hand(&mut self) -> bool {
        if self.unasked >= UNASKED && (self.unasked >= UNASKED_ALONE || !self.is_alone()) {
            return false;
        }
        if self.rx_ready.is_empty() {
            let Some(index) = self.heard else { return false };
            self.queue_rx(index);
        }
        self.unasked += 1;
        true
    }

    /// Whether the connection that brought something last is the only one, and waits for nothing but what it is sent.
    pub(super) fn is_alone(&self) -> bool {
        let heard = self.heard.and_then(|index| self.endpoints.look_at(index));
        let receives = |c: &Connection| c.tx.is_empty() && !c.tx.has_lent();
        self.endpoints.len() == 1
            && matches!(heard.map(|e| &e.state), Some(State::Connected(c)) if receives(c))
    }

    /// Asks the system what became ready, for a poll: who polls looks at a connection that is apart, too.
    pub(super) fn ask(&mut self) {
        if !self.is_alone() {
            self.join_others();
        } else if self.unasked >= UNASKED_ALONE {
            self.set_apart();
        }
        self.collect();
        if let Some(index) = self.apart {
            self.queue_rx(index);
        }
    }

    /// Asks the system what became ready.
    pub(super) fn collect(&mut self) {
        self.unasked = 0;
        let mut events = std::mem::replace(&mut self.events, Events::with_capacity(0));
        // EINTR and nothing else can fail here; the events are still there the next time.
        let polled = self.poll.poll(&mut events, Some(Duration::ZERO));
        if polled.is_ok() {
            for event in &events {
                self.handle(event);
            }
        }
        self.events = events;
        if self.accept_more {
            self.accept();
        }
    }

    /// Takes the lone connection from those of which the system says when they become ready. Who polls so often without a sleep looks at it
    /// each time anyway, and to say so takes the sender's time: a thirtieth of the shortest round.
    fn set_apart(&mut self) {
        let Some(index) = self.heard.filter(|_| self.apart.is_none()) else { return };
        let Some(State::Connected(c)) = self.endpoints.at(index).map(|e| &mut e.state) else { return };
        if !c.ending && c.broken.is_none() && self.poll.registry().deregister(&mut c.stream).is_ok() {
            self.apart = Some(index);
        }
    }

    /// Puts the connection that is apart among the others again. The system says at once what it is ready for.
    pub(super) fn join_others(&mut self) {
        let Some(index) = self.apart.take() else { return };
        let Some(endpoint) = self.endpoints.at(index) else { return };
        let State::Connected(c) = &mut endpoint.state else { return };
        if let Err(e) = self.poll.registry().register(&mut c.stream, Token(index as usize), BOTH) {
            let error = Error::io("epoll_ctl", &endpoint.peer, e);
            self.end(index, Some(error));
        }
    }

    fn handle(&mut self, event: &Event) {
        match event.token() {
            TIMER => self.tick(),
            LISTENER => self.accept_more = true,
            Token(place) if place >= LOBBY => self.advance_pending(place - LOBBY),
            Token(index) => self.endpoint_event(index as u32, event),
        }
    }

    fn endpoint_event(&mut self, index: u32, event: &Event) {
        let Some(endpoint) = self.endpoints.at(index) else { return };
        match &mut endpoint.state {
            State::Dialing(_) => self.advance_dial(index),
            State::Connected(connection) => {
                let (id, fd, outbox) = (endpoint.id, connection.stream.as_raw_fd(), &mut self.outbox);
                let done = |context| outbox.push(Completion::Done { endpoint: id, context });
                // What the kernel says of lent bodies comes as an error, too.
                let said = event.is_error() && connection.tx.hear(fd, done).unwrap_or(false);
                connection.ending |= event.is_read_closed() || (event.is_error() && !said);
                if event.is_writable() {
                    connection.tx.blocked = false;
                }
                if event.is_readable() || connection.ending {
                    self.queue_rx(index);
                }
                self.queue_tx(index);
            }
            State::Opened | State::Expecting { .. } => {}
        }
    }

    /// Puts a connection into the queue of those to receive from.
    pub(super) fn queue_rx(&mut self, index: u32) {
        if let Some(State::Connected(c)) = self.endpoints.at(index).map(|e| &mut e.state)
            && !c.in_rx
        {
            c.in_rx = true;
            self.rx_ready.push_back(index);
        }
    }

    /// Puts a connection that has something to send, and may, into the queue of those to send to.
    pub(super) fn queue_tx(&mut self, index: u32) {
        if let Some(State::Connected(c)) = self.endpoints.at(index).map(|e| &mut e.state)
            && !c.in_tx
            && !c.tx.is_empty()
            && !c.tx.blocked
            && c.broken.is_none()
        {
            c.in_tx = true;
            self.tx_ready.push_back(index);
        }
    }

    /// One turn for each connection that has something to receive, until `budget` completions wait.
    pub(super) fn receive_round(&mut self, budget: usize) {
        for _ in 0..self.rx_ready.len() {
            if self.outbox.len() >= budget {
                break;
            }
            let Some(index) = self.rx_ready.pop_front() else { break };
            let Some(endpoint) = self.endpoints.at(index) else { continue };
            let State::Connected(connection) = &mut endpoint.state else { continue };
            connection.in_rx = false;
            let mut context = Context {
                endpoint: endpoint.id,
                peer: &endpoint.peer,
                grants: &endpoint.grants,
                tx: &mut connection.tx,
                reads: &mut connection.reads,
                out: &mut self.outbox,
            };
            let fd = connection.stream.as_raw_fd();
            let waiting = context.out.len();
            match connection.rx.turn(fd, connection.ending, &mut context) {
                Ok(Turn::More) => self.queue_rx(index),
                Ok(Turn::Drained) => {
                    if let Some(error) = connection.broken.take() {
                        self.end(index, Some(error));
                        continue;
                    }
                }
                Err(error) => {
                    self.end(index, Some(error));
                    continue;
                }
            }
            if self.outbox.len() > waiting {
                self.heard = Some(index);
            }
            self.queue_tx(index);
        }
    }

    /// One turn for each connection that has something to send.
    pub(super) fn send_round(&mut self) {
        for _ in 0..self.tx_ready.len() {
            let Some(index) = self.tx_ready.pop_front() else { break };
            let Some(endpoint) = self.endpoints.at(index) else { continue };
            let State::Connected(connection) = &mut endpoint.state else { continue };
            connection.in_tx = false;
            let (id, fd) = (endpoint.id, connection.stream.as_raw_fd());
            let outbox = &mut self.outbox;
            let done = |context| outbox.push(Completion::Done { endpoint: id, context });
            match connection.tx.pump(fd, done) {
                Ok(Pumped::More) => self.queue_tx(index),
                Ok(Pumped::Empty | Pumped::Blocked) => {}
                Err(e) => {
                    let reason = e.to_string();
                    connection.broken = Some(Error::PeerLost { peer: endpoint.peer.clone(), reason });
                    self.queue_rx(index);
                }
            }
        }
    }

    /// Makes a connection that both ends have authenticated the endpoint's.
    fn connected(&mut self, index: u32, mut stream: TcpStream, register: bool) {
        let token = Token(index as usize);
        let Some(endpoint) = self.endpoints.at(index) else { return };
        if register && let Err(e) = self.poll.registry().reregister(&mut stream, token, BOTH) {
            let error = Error::io("epoll_ctl", &endpoint.peer, e);
            return self.end(index, Some(error));
        }
        if let Ok(address) = stream.peer_addr() {
            endpoint.peer = format!("{} at {address}", endpoint.peer);
        }
        let lending = match self.config.lending {
            // Over loopback the kernel copies in any case.
            Lending::ToOthers if !socket::other_host(&stream) => Lending::Never,
            lending => lending,
        };
        endpoint.state = State::Connected(Connection::new(stream, self.config.queue_depth, lending));
        self.outbox.push(Completion::Connected { endpoint: endpoint.id });
        self.clock_stale = true;
        // Frames may have arrived together with the end of the preamble.
        self.queue_rx(index);
    }

    fn advance_dial(&mut self, index: u32) {
        let Some(endpoint) = self.endpoints.at(index) else { return };
        let State::Dialing(dialer) = &mut endpoint.state else { return };
        match dialer.advance(&endpoint.peer) {
            Ok(false) => {}
            Err(error) => self.end(index, Some(error)),
            Ok(true) => {
                if let State::Dialing(dialer) = std::mem::replace(&mut endpoint.state, State::Opened) {
                    self.connected(index, dialer.stream, false);
                }
            }
        }
    }

    fn accept(&mut self) {
        let Some(listener) = &self.listener else { return };
        for _ in 0..ACCEPTS {
            let now = Instant::now();
            if !self.lobby.has_room(now) {
                // The next waits in the backlog until the oldest has had its time.
                return self.stall();
            }
            let (stream, _) = match listener.accept() {
                Ok(accepted) => accepted,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    self.accept_more = false;
                    return;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                // That one is gone already; the next may be well.
                Err(e) if e.kind() == io::ErrorKind::ConnectionAborted => continue,
                // No descriptors or no memory, most likely.
                Err(_) => return self.stall(),
            };
            if socket::set_options(&SockRef::from(&stream), &self.config).is_err() {
                continue;
            }
            if let Some((place, stream)) = self.lobby.enter(stream, now, self.config.preamble_timeout)
                && self.poll.registry().register(stream, Token(LOBBY + place), Interest::READABLE).is_err()
            {
                self.lobby.leave(place);
            }
            self.clock_stale = true;
        }
    }

    /// Nobody is accepted before the next tick.
    fn stall(&mut self) {
        self.accept_more = false;
        self.accept_stalled = true;
        self.clock_stale = true;
    }

    fn advance_pending(&mut self, place: usize) {
        loop {
            let Some(pending) = self.lobby.at(place) else { return };
            match pending.advance() {
                Progress::Waiting => return,
                Progress::Dialled(id) => {
                    let awaited = self.endpoints.get(id).is_some_and(|e| {
                        e.side == Side::Passive && matches!(e.state, State::Opened | State::Expecting { .. })
                    });
                    if awaited && pending.challenge() {
                        continue;
                    }
                }
                Progress::Proved(id) => return self.judge(place, id),
                Progress::Gone => {}
            }
            self.lobby.leave(place);
            return;
        }
    }

    /// Compares every proof that waits for this endpoint's key.
    pub(super) fn judge_waiting(&mut self, id: EndpointId) {
        let waiting: Vec<usize> = self.lobby.proofs_for(id).collect();
        for place in waiting {
            self.judge(place, id);
        }
    }

    fn judge(&mut self, place: usize, id: EndpointId) {
        let Some(endpoint) = self.endpoints.get(id) else {
            self.lobby.leave(place);
            return;
        };
        match &mut endpoint.state {
            // The key is not known yet: `connect` brings it.
            State::Opened => {}
            State::Expecting { key, refused, .. } => {
                let Some(pending) = self.lobby.leave(place) else { return };
                match pending.judge(key) {
                    Some(stream) => self.connected(id.index, stream, true),
                    None => *refused += 1,
                }
            }
            State::Dialing(_) | State::Connected(_) => {
                self.lobby.leave(place);
            }
        }
    }

    /// Looks at every deadline.
    fn tick(&mut self) {
        self.timer.drain();
        let now = Instant::now();
        self.lobby.expire(now);
        self.see_off(now);
        self.accept_more |= std::mem::take(&mut self.accept_stalled);
        let overdue: Vec<(u32, Error)> =
            self.endpoints.iter().filter_map(|e| Some((e.id.index, self.overdue(e, now)?))).collect();
        for (index, error) in overdue {
            self.end(index, Some(error));
        }
        self.clock_stale = true;
    }

    fn overdue(&self, endpoint: &super::endpoint::Endpoint, now: Instant) -> Option<Error> {
        let after = self.config.connect_timeout;
        match &endpoint.state {
            State::Opened => None,
            State::Expecting { until, refused, .. } => (*until <= now).then(|| {
                let waited_for = format!("{} to dial ({refused} dialled with another key)", endpoint.peer);
                Error::Timeout { waited_for, after }
            }),
            State::Dialing(dialer) => (dialer.until <= now)
                .then(|| Error::Timeout { waited_for: dialer.waits_for(&endpoint.peer), after }),
            State::Connected(connection) => {
                socket::is_lost(connection.fd(), self.config.lost_after).then(|| Error::PeerLost {
                    peer: endpoint.peer.clone(),
                    reason: format!("its host has not answered for {:?}", self.config.lost_after),
                })
            }
        }
    }

    /// Sets the timer to what the endpoints need, if that may have changed.
    pub(super) fn set_clock(&mut self) {
        if !std::mem::take(&mut self.clock_stale) {
            return;
        }
        let mut period = Duration::ZERO;
        for endpoint in self.endpoints.iter() {
            match endpoint.state {
                State::Opened => {}
                State::Connected(_) => period = (self.config.lost_after / CHECKS).max(TICK_CONNECTING),
                State::Expecting { .. } | State::Dialing(_) => {
                    period = TICK_CONNECTING;
                    break;
                }
            }
        }
        if self.lobby.len() > 0 || !self.leaving.is_empty() {
            period = TICK_CONNECTING;
        }
        if self.accept_stalled {
            period = GRACE;
        }
        self.timer.set(period);
    }
}
