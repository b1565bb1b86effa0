//! What happens inside `poll`: events of the sockets, then one fair round of receiving, then one of sending, and the clock.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{Timespec, epoll};

use super::accept::Progress;
use super::endpoint::{Connection, RINGS, State};
use super::rx::{Context, out_of_step};
use super::tx::Tx;
use super::{Shm, socket};
use crate::error::{Error, Result};
use crate::mem::Arena;
use crate::mem::ring::OutOfStep;
use crate::transport::{Completion, EndpointId, Side, hand_over};

/// Tokens below this one are endpoints; from it on, pending connections.
const LOBBY: u64 = 1 << 40;
/// The listener's token.
pub(super) const LISTENER: u64 = u64::MAX - 2;
/// The timer's token.
pub(super) const TIMER: u64 = u64::MAX - 1;
/// Events taken from the system at once; more wait there.
const EVENTS: usize = 64;
/// How often deadlines are looked at while something is being connected.
const TICK: Duration = Duration::from_millis(100);
/// Polls in a row that look at the rings alone, and do not ask the system.
const UNASKED: u32 = 256;

/// Makes a descriptor known by a token.
pub(super) fn watch(epoll: &OwnedFd, file: impl AsFd, token: u64) -> Result<()> {
    epoll::add(epoll, file, epoll::EventData::new_u64(token), epoll::EventFlags::IN)
        .map_err(|e| Error::io("epoll_ctl", "shm", e.into()))
}

impl Shm {
    /// Whether nothing has come that a poll would find, nor is anything left to be done: most polls of a thread that spins end here, and
    /// how long they take is how late it sees what comes.
    pub(super) fn is_quiet(&self) -> bool {
        let idle = !(self.armed | self.unsent | self.clock_stale) && self.unasked + 1 < UNASKED;
        idle && self.outbox.is_empty()
            && self.turns.iter().all(|&index| match self.endpoints.look_at(index).map(|e| &e.state) {
                Some(State::Connected(c)) => c.is_quiet(),
                _ => true,
            })
    }

    /// A poll that finds something to do. By itself, so that the others are short.
    #[inline(never)]
    pub(super) fn progress(&mut self, completions: &mut Vec<Completion>, budget: usize) {
        self.collect();
        self.receive_round(budget);
        self.send_round();
        self.set_clock();
        hand_over(&mut self.outbox, completions, budget);
    }

    /// Asks the system what happened, now and then, and soon after it said that it may sleep.
    fn collect(&mut self) {
        self.unasked += 1;
        if std::mem::take(&mut self.armed) {
            self.each_connected(|_, c| {
                c.rx.consumer.awake();
                c.tx.producer.awake();
                Ok(())
            });
            // Most often a peer has rung: what it rang for is looked at first, and answered, then what is in the sockets.
            self.unasked = UNASKED;
            return;
        }
        if self.unasked < UNASKED {
            return;
        }
        self.unasked = 0;
        let mut events = [MaybeUninit::uninit(); EVENTS];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        // EINTR and nothing else can fail here; the events are still there the next time.
        let Ok((events, _)) = epoll::wait(&self.epoll, &mut events, Some(&now)) else { return };
        for event in events {
            match event.data.u64() {
                TIMER => self.tick(),
                LISTENER => self.accept(),
                place if place >= LOBBY => self.advance_pending((place - LOBBY) as usize),
                index => self.heard(index as u32),
            }
        }
    }

    /// Something happened on an endpoint's socket.
    fn heard(&mut self, index: u32) {
        let Some(endpoint) = self.endpoints.at(index) else { return };
        let State::Connected(c) = &mut endpoint.state else { return self.advance_dial(index) };
        // One packet: if there are more, the system says so again.
        let heard = c.rx.hear(&c.socket, &endpoint.peer);
        if c.rx.hung_up {
            // It would be reported again and again.
            let _ = epoll::delete(&self.epoll, &c.socket);
        }
        if let Err(error) = heard {
            self.end(index, Some(error));
        }
    }

    /// Does something with every connection; those where it fails end.
    fn each_connected(&mut self, mut f: impl FnMut(&str, &mut Connection) -> Result<()>) {
        for turn in (0..self.turns.len()).rev() {
            let index = self.turns[turn];
            let Some(endpoint) = self.endpoints.at(index) else { continue };
            let State::Connected(c) = &mut endpoint.state else { continue };
            if let Err(error) = f(&endpoint.peer, c) {
                self.end(index, Some(error));
            }
        }
    }

    /// One turn for each connection, until `budget` completions wait.
    fn receive_round(&mut self, budget: usize) {
        for _ in 0..self.turns.len() {
            if self.outbox.len() >= budget {
                break;
            }
            // Whoever had a turn goes to the back.
            let Some(index) = self.turns.pop_front() else { break };
            self.turns.push_back(index);
            let Some(endpoint) = self.endpoints.at(index) else { continue };
            let State::Connected(c) = &mut endpoint.state else { continue };
            let hung_up = c.rx.hung_up;
            let mut context = Context {
                endpoint: endpoint.id,
                peer: &endpoint.peer,
                socket: &c.socket,
                grants: &endpoint.grants,
                tx: &mut c.tx,
                reads: &mut c.reads,
                out: &mut self.outbox,
            };
            let turn = c.rx.turn(&mut context);
            if c.rx.consumer.release() {
                socket::ring(&c.socket);
            }
            match turn {
                Ok(false) if hung_up => {
                    let reason = "it closed the connection".to_owned();
                    let error = Error::PeerLost { peer: endpoint.peer.clone(), reason };
                    self.end(index, Some(error));
                }
                Ok(_) => {}
                Err(error) => self.end(index, Some(error)),
            }
        }
    }

    /// One turn of sending for each connection. True when there is more room than before.
    pub(super) fn send_round(&mut self) -> bool {
        self.unsent = false;
        let mut freed = false;
        self.each_tx(|tx, socket, done| {
            let retired = if tx.is_due() { tx.retire(done) } else { Ok(false) };
            let sent = retired.and_then(|some| {
                freed |= some;
                tx.pump(socket)
            });
            tx.ring(socket);
            sent
        });
        freed
    }

    /// Lets go of all that peers have taken.
    pub(super) fn retire_all(&mut self) {
        self.each_tx(|tx, _, done| tx.retire(done).map(drop));
    }

    /// Does something with the send side of every connection; those where it fails end.
    fn each_tx(
        &mut self,
        mut f: impl FnMut(&mut Tx, &OwnedFd, &mut dyn FnMut(u64)) -> std::result::Result<(), OutOfStep>,
    ) {
        for turn in (0..self.turns.len()).rev() {
            let index = self.turns[turn];
            let Some(endpoint) = self.endpoints.at(index) else { continue };
            let State::Connected(c) = &mut endpoint.state else { continue };
            let (id, outbox) = (endpoint.id, &mut self.outbox);
            let mut done = |context| outbox.push(Completion::Done { endpoint: id, context });
            if let Err(e) = f(&mut c.tx, &c.socket, &mut done) {
                let error = out_of_step(&endpoint.peer, &e);
                self.end(index, Some(error));
            }
        }
    }

    /// Whether nothing is there to be done before a peer rings. Every peer is told to.
    pub(super) fn may_sleep(&mut self) -> bool {
        if self.unasked >= UNASKED {
            return false; // what woke us is still to be asked for
        }
        self.set_clock();
        if self.send_round() {
            return false; // what was refused for want of room may find it now, and nobody rings for that again
        }
        self.armed = true;
        let mut idle = self.outbox.is_empty();
        self.each_connected(|_, c| {
            let news = c.rx.hung_up | c.rx.consumer.park();
            let room = c.tx.matters() && c.tx.producer.wait();
            idle &= !news && !room;
            Ok(())
        });
        idle
    }

    /// Ends an endpoint: nothing of it can be reached from now on, all it held is dropped, `Closed` is reported.
    pub(super) fn end(&mut self, index: u32, reason: Option<Error>) {
        let Some(endpoint) = self.endpoints.remove(index) else { return };
        let id = endpoint.id;
        self.turns.retain(|turn| *turn != index);
        // Not the peer's fault, nor an accident: what it shows has no room in this process. Where not even its rings have, the same may be
        // tried again, unless there is another way, which the peer has given up by then.
        let lasts = matches!(endpoint.state, State::Connected(_)) || self.beside;
        if let Some(why @ (Error::Limit { .. } | Error::Io { .. })) = reason.as_ref().filter(|_| lasts) {
            self.bar(endpoint.peer, why);
        }
        match endpoint.state {
            State::Connected(Connection { socket, tx, .. }) => {
                // The peer hears of the end only when it can no longer take what was announced.
                drop(tx);
                self.unwatch(&socket);
            }
            State::Dialing(dialer) => self.unwatch(&dialer.socket),
            State::Opened | State::Expecting { .. } => {}
        }
        self.outbox.push(Completion::Closed { endpoint: id, reason });
        self.clock_stale = true;
    }

    fn unwatch(&self, socket: &OwnedFd) {
        let _ = epoll::delete(&self.epoll, socket);
        socket::shut(socket);
    }

    fn connected(&mut self, index: u32, connection: Connection) {
        let Some(endpoint) = self.endpoints.at(index) else { return };
        endpoint.state = State::Connected(connection);
        self.outbox.push(Completion::Connected { endpoint: endpoint.id });
        self.turns.push_back(index);
        self.clock_stale = true;
    }

    fn advance_dial(&mut self, index: u32) {
        let Some(endpoint) = self.endpoints.at(index) else { return };
        let State::Dialing(dialer) = &mut endpoint.state else { return };
        match dialer.advance(&endpoint.peer) {
            Ok(None) => {}
            Err(error) => self.end(index, Some(error)),
            Ok(Some(rings)) => match std::mem::replace(&mut endpoint.state, State::Opened) {
                State::Dialing(dialer) => {
                    let connection = Connection::new(dialer.socket, rings, Side::Active, &self.config);
                    self.connected(index, connection);
                }
                other => endpoint.state = other,
            },
        }
    }

    fn accept(&mut self) {
        let Some(listener) = &self.listener else { return };
        // One at a time: more are reported again.
        let socket = match socket::accept(listener) {
            Ok(socket) => socket,
            Err(e) => {
                use std::io::ErrorKind::{ConnectionAborted, Interrupted, WouldBlock};
                if !matches!(e.kind(), WouldBlock | Interrupted | ConnectionAborted) {
                    // No descriptors or no memory, most likely: it would be reported again and again.
                    self.stalled = epoll::delete(&self.epoll, listener).is_ok();
                    self.clock_stale = true;
                }
                return;
            }
        };
        if !socket::is_same_user(&socket).unwrap_or(false) {
            return;
        }
        let until = Instant::now() + self.config.preamble_timeout;
        if let Some((place, socket)) = self.lobby.enter(socket, until)
            && watch(&self.epoll, socket, LOBBY + place as u64).is_err()
        {
            self.lobby.leave(place);
        }
        self.clock_stale = true;
    }

    fn advance_pending(&mut self, place: usize) {
        let Some(pending) = self.lobby.at(place) else { return };
        match pending.advance() {
            Progress::Waiting => {}
            Progress::Dialled(id) => {
                let awaited = self.endpoints.get(id).is_some_and(|e| {
                    e.side == Side::Passive && matches!(e.state, State::Opened | State::Expecting { .. })
                });
                if !awaited || !pending.challenge() {
                    self.lobby.leave(place);
                }
            }
            Progress::Proved(id) => self.judge(place, id),
            Progress::Gone => drop(self.lobby.leave(place)),
        }
    }

    /// Compares every proof that waits for this endpoint's key.
    pub(super) fn judge_waiting(&mut self, id: EndpointId) {
        for place in self.lobby.proofs_for(id) {
            self.judge(place, id);
        }
    }

    fn judge(&mut self, place: usize, id: EndpointId) {
        let state = self.endpoints.get(id).map(|endpoint| &mut endpoint.state);
        match state {
            // The key is not known yet: `connect` brings it.
            Some(State::Opened) => {}
            Some(State::Expecting { key, refused, .. }) => {
                let Some(pending) = self.lobby.leave(place) else { return };
                let (rings, file) = match Arena::both_write(RINGS) {
                    Ok(made) => made,
                    // It dials by another way, or says that it was refused.
                    Err(error) => return tracing::warn!("no shared memory with a peer: {error}"),
                };
                // Registered anew under the endpoint's token.
                let _ = epoll::delete(&self.epoll, &pending.socket);
                match pending.judge(key, file.as_fd()) {
                    Some(socket) if watch(&self.epoll, &socket, id.index.into()).is_ok() => {
                        let connection = Connection::new(socket, rings, Side::Passive, &self.config);
                        self.connected(id.index, connection);
                    }
                    _ => *refused += 1,
                }
            }
            Some(State::Dialing(_) | State::Connected(_)) | None => drop(self.lobby.leave(place)),
        }
    }

    /// Looks at every deadline.
    fn tick(&mut self) {
        self.timer.drain();
        if let Some(listener) = self.listener.as_ref().filter(|_| self.stalled) {
            self.stalled = watch(&self.epoll, listener, LISTENER).is_err();
        }
        let now = Instant::now();
        self.lobby.expire(now);
        let after = self.config.connect_timeout;
        let waits = |state: &State, peer: &str| match state {
            State::Expecting { until, refused, .. } if *until <= now => {
                Some(format!("{peer} to dial ({refused} dialled with another key)"))
            }
            State::Dialing(dialer) if dialer.until <= now => Some(format!("{peer} to answer the preamble")),
            _ => None,
        };
        let overdue: Vec<(u32, String)> =
            self.endpoints.iter().filter_map(|e| Some((e.id.index, waits(&e.state, &e.peer)?))).collect();
        for (index, waited_for) in overdue {
            self.end(index, Some(Error::Timeout { waited_for, after }));
        }
        self.clock_stale = true;
    }

    /// Sets the timer to what the endpoints need, if that may have changed.
    fn set_clock(&mut self) {
        if !std::mem::take(&mut self.clock_stale) {
            return;
        }
        let connecting = |state: &State| matches!(state, State::Expecting { .. } | State::Dialing(_));
        let needed =
            self.stalled || !self.lobby.is_empty() || self.endpoints.iter().any(|e| connecting(&e.state));
        self.timer.set(if needed { TICK } else { Duration::ZERO });
    }
}
