//! What bytes and time do to a link.

use super::*;

impl Hub {
    /// Reads one turn and acts on what is there.
    pub(super) fn read(&mut self, id: LinkId, now: Instant) {
        let Some(link) = find(&mut self.links, id) else { return };
        let budget = match link.phase {
            Phase::Waiting { .. } | Phase::Connecting => return,
            Phase::Accepting(_) => PRE_AUTH_LIMIT,
            _ => READ_TURN,
        };
        let end = link.fill(&mut self.scratch, budget);
        if let Err(reason) = self.digest(id, now) {
            self.fail(id, reason);
            return;
        }
        match end {
            Ok(ReadEnd::Empty) => {}
            Ok(ReadEnd::More) => self.unread.push_back(id),
            Ok(ReadEnd::Closed) => self.ended(id, "connection closed", now),
            Err(Error::PeerLost { reason, .. }) => self.ended(id, &reason, now),
            Err(reason) => self.fail(id, reason),
        }
    }

    /// The peer has closed, or the connection broke.
    fn ended(&mut self, id: LinkId, how: &str, now: Instant) {
        let Some(link) = find(&mut self.links, id) else { return };
        match &link.phase {
            Phase::Closing { .. } => self.remove(id),
            // Not a refusal, which would have come as such: the acceptor was full, or is just going away.
            Phase::Dialling(_) => self.again(id, &format!("{how} during the handshake"), now),
            Phase::Accepting(_) => {
                let reason = link.lost(&format!("{how} during the handshake"));
                self.fail(id, reason);
            }
            _ => {
                let reason = link.lost(&how);
                self.fail(id, reason);
            }
        }
        // Nobody is left to wait for.
        if find(&mut self.links, id).is_some_and(|link| matches!(link.phase, Phase::Closing { .. })) {
            self.remove(id);
        }
    }

    /// Takes whole messages out of the link's input.
    fn digest(&mut self, id: LinkId, now: Instant) -> Result<()> {
        let Some(link) = find(&mut self.links, id) else { return Ok(()) };
        let mut out = Vec::new();
        let fed = match &mut link.phase {
            Phase::Dialling(dialler) => dialler.feed(&link.input, &mut out),
            Phase::Accepting(acceptor) => {
                let fed = acceptor.feed(&link.input, &mut out);
                link.peer = acceptor.peer().to_owned();
                fed
            }
            Phase::Up(_) => return self.frames(id, now),
            _ => return Ok(()),
        };
        link.output.extend(&out);
        let fed = fed?;
        link.input.drain(..fed.used);
        if let Some(established) = fed.established {
            self.establish(id, *established, now);
        }
        let Some(link) = find(&mut self.links, id) else { return Ok(()) };
        link.flush()?;
        if matches!(link.phase, Phase::Up(_)) { self.frames(id, now) } else { Ok(()) }
    }

    fn establish(&mut self, id: LinkId, established: Established, now: Instant) {
        let Some(link) = find(&mut self.links, id) else { return };
        let Established { peer, send_key, receive_key, export, chosen } = established;
        let (reader, writer) = (FrameReader::new(receive_key), FrameWriter::new(send_key));
        link.peer = format!("{peer} at {}", link.address);
        link.authenticated = true;
        link.phase = Phase::Up(Box::new(Session { peer: peer.clone(), reader, writer }));
        link.deadline = now + self.limits.peer_timeout;
        link.speak_at = now + self.limits.keepalive();
        let address = link.address;
        self.pending.push(Event::Up { link: id, peer, address, export, chosen });
    }

    fn frames(&mut self, id: LinkId, now: Instant) -> Result<()> {
        let Some(link) = find(&mut self.links, id) else { return Ok(()) };
        let mut used = 0;
        let outcome = loop {
            match link.next_frame(&mut used) {
                Ok(Some(ControlMessage::Keepalive)) => {}
                Ok(Some(message)) => self.pending.push(Event::Message { link: id, message }),
                Ok(None) => break Ok(()),
                Err(reason) => break Err(reason),
            }
        };
        if used > 0 {
            link.input.drain(..used);
            link.deadline = now + self.limits.peer_timeout;
        }
        outcome
    }

    /// The link is over. A Refuse that waits to be written still is.
    pub(super) fn fail(&mut self, id: LinkId, reason: Error) {
        let now = self.clock.now();
        let Some(link) = find(&mut self.links, id) else { return };
        let (address, name) = (link.address, link.peer.clone());
        match &link.phase {
            Phase::Closing { .. } => return self.remove(id),
            Phase::Accepting(_) => {
                let claimed = (name != address.to_string()).then_some(name);
                self.refused(address, claimed.as_deref(), reason, now);
            }
            _ => {
                let peer = link.identity().cloned();
                self.pending.push(Event::Down { link: id, peer, reason });
            }
        }
        if find(&mut self.links, id).is_some_and(|link| link.output.is_empty()) {
            return self.remove(id);
        }
        self.close(id);
    }

    /// Flushes a closing link, then says so to the peer.
    pub(super) fn finish_writing(&mut self, id: LinkId) {
        let Some(link) = find(&mut self.links, id) else { return };
        if link.flush().is_err() {
            return self.remove(id);
        }
        let (Phase::Closing { written }, Some(stream)) = (&mut link.phase, &link.stream) else { return };
        if link.output.is_empty() && !*written {
            *written = true;
            // If it is not connected any more, reading says so.
            let _ = stream.shutdown(std::net::Shutdown::Write);
        }
    }

    /// When time next matters.
    pub(super) fn next_timer(&self) -> Option<Instant> {
        let links = self.links.iter().flatten().map(|link| match &link.phase {
            Phase::Waiting { at } => *at,
            Phase::Up(_) => link.deadline.min(link.speak_at),
            _ => link.deadline,
        });
        links.chain(self.accept_at).min()
    }

    pub(super) fn timers(&mut self, now: Instant) {
        let due: Vec<LinkId> = self.ids().collect();
        for id in due {
            let Some(link) = find(&mut self.links, id) else { continue };
            let silent = self.limits.peer_timeout;
            let reason = match &link.phase {
                Phase::Waiting { at } if *at <= now => {
                    self.attempt(id, now);
                    continue;
                }
                Phase::Up(_) if link.deadline > now => {
                    if link.speak_at <= now {
                        self.keep_alive(id);
                    }
                    continue;
                }
                _ if link.deadline > now => continue,
                Phase::Up(_) => {
                    // If this process was stopped for a while, what came meanwhile counts.
                    self.read(id, now);
                    match find(&mut self.links, id) {
                        Some(link) if link.deadline <= now => link.lost(&format!("silent for {silent:?}")),
                        _ => continue,
                    }
                }
                Phase::Connecting => {
                    self.again(id, &"no answer", now);
                    continue;
                }
                Phase::Waiting { .. } => link.gave_up(self.limits.connect_timeout),
                Phase::Closing { .. } => {
                    self.remove(id);
                    continue;
                }
                Phase::Dialling(_) | Phase::Accepting(_) => Error::Timeout {
                    waited_for: format!("the handshake of {}", link.peer),
                    after: self.limits.handshake_timeout,
                },
            };
            self.fail(id, reason);
        }
    }

    fn keep_alive(&mut self, id: LinkId) {
        let (now, pause) = (self.clock.now(), self.limits.keepalive());
        match self.send(id, &ControlMessage::Keepalive) {
            Ok(()) => {}
            // A queue that is full keeps the link busy; if the peer stays silent too, it is lost.
            Err(Error::Limit { .. }) => {
                if let Some(link) = find(&mut self.links, id) {
                    link.speak_at = now + pause;
                }
            }
            // `send` has reported it.
            Err(_) => {}
        }
    }

    pub(super) fn blank(
        &self,
        address: SocketAddr,
        peer: String,
        dial: Option<Dial>,
        phase: Phase,
        deadline: Instant,
    ) -> Link {
        Link {
            generation: 0,
            peer,
            address,
            stream: None,
            phase,
            dial,
            since: self.clock.now(),
            deadline,
            connect_deadline: deadline,
            speak_at: deadline,
            authenticated: false,
            input: Vec::new(),
            output: VecDeque::new(),
        }
    }

    pub(super) fn insert(&mut self, mut link: Link) -> LinkId {
        self.generation += 1;
        link.generation = self.generation;
        let index = self.free.pop().unwrap_or(self.links.len());
        if index == self.links.len() {
            self.links.push(None);
        }
        self.links[index] = Some(link);
        LinkId::new(index, self.generation)
    }

    pub(super) fn register(&mut self, id: LinkId, stream: &mut TcpStream) -> Result<()> {
        let interest = Interest::READABLE | Interest::WRITABLE;
        let registered = self.poll.registry().register(stream, Token(id.index()), interest);
        registered.map_err(|e| Error::io("epoll", "control link", e))
    }

    /// Drops the socket; closing it takes it out of epoll.
    pub(super) fn remove(&mut self, id: LinkId) {
        if find(&mut self.links, id).is_some() {
            self.links[id.index()] = None;
            self.free.push(id.index());
        }
    }

    pub(super) fn live(&self) -> usize {
        self.links.len() - self.free.len()
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = LinkId> + '_ {
        let links = self.links.iter().enumerate();
        links.filter_map(|(index, link)| Some(LinkId::new(index, link.as_ref()?.generation)))
    }
}
