//! Letting strangers in, as far as the limits go.

use super::*;

/// Keeps a flood of strangers from flooding the log: those without a name are counted and reported once a second.
#[derive(Default)]
pub(super) struct Warnings {
    since: Option<Instant>,
    unreported: u64,
}

impl Hub {
    /// Accepts what waits, at most one turn.
    pub(super) fn accept(&mut self, now: Instant) {
        self.accept_at = None;
        for _ in 0..ACCEPT_TURN {
            let Some(listener) = &self.listener else { return };
            match listener.accept() {
                Ok((stream, address)) => self.admit(stream, address, now),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(e)
                    if matches!(e.kind(), io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted) => {}
                Err(e) => {
                    tracing::warn!("control: accept: {e}");
                    self.accept_at = Some(now + ACCEPT_PAUSE);
                    return;
                }
            }
        }
        self.accept_at = Some(now);
    }

    fn admit(&mut self, mut stream: TcpStream, address: SocketAddr, now: Instant) {
        if self.live() >= self.limits.links {
            let reason = self.no_more_links();
            return self.refused(address, None, reason, now);
        }
        self.make_way(now);
        let acceptor = match nonce().and_then(|n| Acceptor::new(self.local.clone(), &address.to_string(), n))
        {
            Ok(acceptor) => acceptor,
            Err(reason) => return self.refused(address, None, reason, now),
        };
        // Only a matter of delay.
        let _ = stream.set_nodelay(true);
        let deadline = now + self.limits.handshake_timeout;
        let phase = Phase::Accepting(Box::new(acceptor));
        let id = self.insert(self.blank(address, address.to_string(), None, phase, deadline));
        match self.register(id, &mut stream) {
            Ok(()) => {
                if let Some(link) = find(&mut self.links, id) {
                    link.stream = Some(stream);
                }
                self.read(id, now);
            }
            Err(reason) => self.fail(id, reason),
        }
    }

    /// When all places before authentication are taken, the oldest connection that has said nothing gives way, or else the
    /// oldest.
    fn make_way(&mut self, now: Instant) {
        let mut taken = 0;
        let mut oldest: Option<(bool, Instant, LinkId)> = None;
        for (index, link) in self.links.iter().enumerate() {
            let Some(link) = link else { continue };
            if link.authenticated || link.dial.is_some() {
                continue;
            }
            taken += 1;
            let greeted = matches!(&link.phase, Phase::Accepting(acceptor) if acceptor.claimed().is_some());
            let candidate = (greeted, link.deadline, LinkId::new(index, link.generation));
            if oldest.is_none_or(|o| candidate < o) {
                oldest = Some(candidate);
            }
        }
        if let (true, Some((_, _, id))) = (taken >= self.limits.pre_auth, oldest) {
            let address = find(&mut self.links, id).map(|link| link.address);
            self.remove(id);
            if let Some(address) = address {
                let limit = self.limits.pre_auth as u64;
                let resource = "connections before authentication".into();
                self.refused(address, None, Error::Limit { resource, limit, asked: limit + 1 }, now);
            }
        }
    }

    /// Reports somebody who was not let in.
    pub(super) fn refused(
        &mut self,
        address: SocketAddr,
        claimed: Option<&str>,
        reason: Error,
        now: Instant,
    ) {
        let quiet = self.warnings.since.is_none_or(|since| now - since >= Duration::from_secs(1));
        if claimed.is_some() {
            tracing::warn!("control: {reason}");
        } else if quiet {
            let more = std::mem::take(&mut self.warnings.unreported);
            self.warnings.since = Some(now);
            tracing::warn!("control: {address} not let in: {reason} ({more} others before it)");
        } else {
            self.warnings.unreported += 1;
        }
        self.pending.push(Event::Refused { address, reason });
    }

    pub(super) fn no_more_links(&self) -> Error {
        let limit = self.limits.links as u64;
        Error::Limit { resource: "control links".into(), limit, asked: limit + 1 }
    }
}
