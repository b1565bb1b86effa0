//! Letting strangers in, as far as the limits go.

use super::*;

/// How long a stranger keeps its place in a crowd: many times what a handshake takes.
const GRACE: Duration = Duration::from_millis(20);

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
            let Some((stream, address)) = self.parked.take().or_else(|| self.next_stranger(now)) else {
                return;
            };
            if !self.make_way(now) {
                self.parked = Some((stream, address));
                return;
            }
            self.admit(stream, address, now);
        }
        self.accept_at = Some(now);
    }

    fn next_stranger(&mut self, now: Instant) -> Option<(TcpStream, SocketAddr)> {
        let listener = self.listener.as_ref()?;
        loop {
            match listener.accept() {
                Ok(stranger) => return Some(stranger),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return None,
                Err(e)
                    if matches!(e.kind(), io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted) => {}
                Err(e) => {
                    tracing::warn!("control: accept: {e}");
                    self.accept_at = Some(now + ACCEPT_PAUSE);
                    return None;
                }
            }
        }
    }

    fn admit(&mut self, mut stream: TcpStream, address: SocketAddr, now: Instant) {
        if self.live() >= self.limits.links {
            let reason = self.no_more_links();
            return self.refused(address, None, reason, now);
        }
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

    /// Whether there is a place before authentication. When all are taken, the oldest gives way, unless even that one has
    /// just come: then newcomers wait in the backlog, so that a crowd of legitimate nodes is served in turn.
    fn make_way(&mut self, now: Instant) -> bool {
        let strangers = self.links.iter().enumerate().filter_map(|(index, link)| {
            let link = link.as_ref().filter(|link| !link.authenticated && link.dial.is_none())?;
            Some((link.since, LinkId::new(index, link.generation)))
        });
        let (mut taken, mut oldest) = (0, None);
        for stranger in strangers {
            taken += 1;
            oldest = Some(oldest.map_or(stranger, |o| stranger.min(o)));
        }
        let Some((since, id)) = oldest.filter(|_| taken >= self.limits.pre_auth) else { return true };
        if now < since + GRACE {
            self.accept_at = Some(since + GRACE);
            return false;
        }
        let address = find(&mut self.links, id).map(|link| link.address);
        self.remove(id);
        if let Some(address) = address {
            let limit = self.limits.pre_auth as u64;
            let resource = "connections before authentication".into();
            self.refused(address, None, Error::Limit { resource, limit, asked: limit + 1 }, now);
        }
        true
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
