//! Reaching a peer that may still be starting.

use super::*;

/// How long one address may take to answer, before the next is tried.
const ATTEMPT: Duration = Duration::from_secs(3);

impl Hub {
    /// Starts the next attempt of a dial.
    pub(super) fn attempt(&mut self, id: LinkId, now: Instant) {
        let Some(link) = find(&mut self.links, id) else { return };
        let Some(dial) = &mut link.dial else { return };
        let address = dial.addresses[dial.next % dial.addresses.len()];
        dial.next += 1;
        dial.attempts += 1;
        link.address = address;
        match TcpStream::connect(address) {
            Ok(mut stream) => match self.register(id, &mut stream) {
                Ok(()) => {
                    if let Some(link) = find(&mut self.links, id) {
                        link.stream = Some(stream);
                        link.phase = Phase::Connecting;
                        link.deadline = link.connect_deadline.min(now + ATTEMPT);
                    }
                }
                Err(reason) => self.fail(id, reason),
            },
            Err(e) => self.again(id, &e, now),
        }
    }

    /// The socket of a dial is writable: it is connected, or has failed.
    pub(super) fn connected(&mut self, id: LinkId, now: Instant) {
        let Some(link) = find(&mut self.links, id) else { return };
        let Some(stream) = &link.stream else { return };
        let outcome = match stream.take_error() {
            Ok(Some(e)) | Err(e) => Err(e),
            Ok(None) => stream.peer_addr().and_then(|peer| Ok((peer, stream.local_addr()?))),
        };
        match outcome {
            // Dialling a port of the ephemeral range on which nobody listens may connect a socket to itself.
            Ok((peer, ours)) if peer == ours => {
                self.again(id, &io::Error::from(io::ErrorKind::ConnectionRefused), now);
            }
            Ok(_) => {
                // Only a matter of delay.
                let _ = stream.set_nodelay(true);
                if let Err(reason) = self.greet(id, now) {
                    self.fail(id, reason);
                }
            }
            Err(e) if e.kind() == io::ErrorKind::NotConnected => {}
            Err(e) => self.again(id, &e, now),
        }
    }

    /// A failed attempt: the next address, or a pause and all of them again, until the deadline.
    pub(super) fn again(&mut self, id: LinkId, reason: &dyn std::fmt::Display, now: Instant) {
        let Some(link) = find(&mut self.links, id) else { return };
        link.stream = None;
        link.input.clear();
        link.output.clear();
        let reason = link.lost(reason);
        let Some(dial) = &mut link.dial else { return };
        dial.last = Some(reason);
        let round = (dial.attempts as usize - 1) / dial.addresses.len();
        let pause = if dial.next % dial.addresses.len() == 0 {
            (RETRY_FIRST * (1 << round.min(5))).min(RETRY_MOST)
        } else {
            Duration::ZERO
        };
        if now + pause >= link.connect_deadline {
            let reason = link.gave_up(self.limits.connect_timeout);
            self.fail(id, reason);
            return;
        }
        link.deadline = link.connect_deadline;
        link.phase = Phase::Waiting { at: now + pause };
    }

    /// Sends the Hello.
    fn greet(&mut self, id: LinkId, now: Instant) -> Result<()> {
        let Some(link) = find(&mut self.links, id) else { return Ok(()) };
        let mut out = Vec::new();
        let dialler = Dialler::new(self.local.clone(), &link.peer, nonce()?, &mut out)?;
        link.output.extend(&out);
        link.phase = Phase::Dialling(Box::new(dialler));
        link.deadline = now + self.limits.handshake_timeout;
        link.flush()
    }
}
