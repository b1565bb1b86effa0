//! Connections that have ended while the kernel had bodies that it was lent. What it has not sent it never will (`socket::break_off`), but a
//! packet may lie in the card's queue already, and the card reads its bytes when it sends it. So the bodies stay whose they are, and `Closed`
//! waits, until the kernel has said of all of them that it has done with them; at most as long as a peer may be silent.

use std::time::Instant;

use super::endpoint::{Connection, State};
use super::{Tcp, socket};
use crate::error::Error;
use crate::transport::{Completion, EndpointId};

/// See the module's head.
#[derive(Debug)]
pub(super) struct Leaving {
    id: EndpointId,
    reason: Option<Error>,
    pub connection: Connection,
    until: Instant,
}

impl Leaving {
    /// Whether the kernel has nothing more of it, or had its time. A card that takes longer than a lost peer has failed.
    fn is_over(&mut self, now: Instant) -> bool {
        !self.connection.lends() || self.until <= now
    }
}

impl Connection {
    /// Whether the kernel has any body that it was lent, after hearing what it says.
    fn lends(&mut self) -> bool {
        if self.tx.has_lent() {
            let fd = self.fd();
            // A call that fails says nothing; it is asked again. Whose body it was hears of `Closed` only.
            let _ = self.tx.hear(fd, |_| ());
        }
        self.tx.has_lent()
    }
}

impl Tcp {
    /// Ends an endpoint: nothing of it can be reached from now on, and all it held is dropped, but for bodies that the kernel has. `Closed` is
    /// reported when that has none.
    pub(super) fn end(&mut self, index: u32, reason: Option<Error>) {
        let Some(mut endpoint) = self.endpoints.remove(index) else { return };
        let id = endpoint.id;
        self.clock_stale = true;
        match std::mem::replace(&mut endpoint.state, State::Opened) {
            State::Connected(mut connection) => {
                if self.apart.take_if(|apart| *apart == index).is_none() {
                    let _ = self.poll.registry().deregister(&mut connection.stream);
                }
                if connection.tx.has_lent() {
                    socket::break_off(connection.fd());
                }
                // Both directions now, whatever else may hold the socket (a child that was forked).
                let _ = connection.stream.shutdown(std::net::Shutdown::Both);
                if connection.lends() {
                    let until = Instant::now() + self.config.lost_after;
                    return self.leaving.push(Leaving { id, reason, connection, until });
                }
            }
            State::Dialing(mut dialer) => {
                let _ = self.poll.registry().deregister(&mut dialer.stream);
            }
            State::Opened | State::Expecting { .. } => {}
        }
        self.outbox.push(Completion::Closed { endpoint: id, reason });
    }

    /// Reports what the kernel has done with.
    pub(super) fn see_off(&mut self, now: Instant) {
        for Leaving { id, reason, .. } in self.leaving.extract_if(.., |leaving| leaving.is_over(now)) {
            self.outbox.push(Completion::Closed { endpoint: id, reason });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::mem::{Arena, RegionSlice, Rights};
    use crate::transport::tcp::{Lending, TcpConfig, tests};
    use crate::transport::{Payload, Transport, Write};

    const LONG: usize = 16 << 20;

    /// Two that are connected, of which the second never reads.
    fn pair(lost_after: Duration) -> (Tcp, Tcp, EndpointId, EndpointId) {
        tests::pair(&TcpConfig { lending: Lending::Always, lost_after, ..TcpConfig::default() })
    }

    fn closed(tcp: &mut Tcp, id: EndpointId) -> bool {
        let mut heard = Vec::new();
        tcp.poll(&mut heard, 8);
        heard.iter().any(|c| matches!(c, Completion::Closed { endpoint, .. } if *endpoint == id))
    }

    #[test]
    fn what_was_lent_and_not_sent_comes_back_when_the_connection_is_broken_off() {
        let (mut a, mut b, at_a, at_b) = pair(Duration::from_secs(10));
        let (from, to) = (Arena::new(LONG).unwrap(), Arena::new(LONG).unwrap());
        let (from_id, to_id) = (a.register(from.clone()).unwrap(), b.register(to).unwrap());
        let remote = b.authorise(at_b, to_id, 0, LONG, Rights::Write).unwrap();
        let slice = RegionSlice { region: from_id, arena: from, offset: 0, length: LONG };
        let body = Some(Payload::Pinned(slice));
        let write = Write { header: None, body, remote, offset: 0, imm: None, context: None };
        assert!(a.write(at_a, write).is_ok());
        // It takes what fits into the sockets.
        (0..64).for_each(|_| a.poll(&mut Vec::new(), 8));
        let State::Connected(connection) = &mut a.endpoints.get(at_a).unwrap().state else { panic!() };
        assert!(connection.tx.has_lent() && a.uses(from_id));
        a.close(at_a);
        while !closed(&mut a, at_a) {}
        assert!(a.unregister(from_id));
    }

    #[test]
    fn memory_that_the_card_may_read_stays_in_use_and_closed_waits_for_it() {
        let limit = Duration::from_millis(300);
        let (mut a, _b, at_a, _) = pair(limit);
        let arena = Arena::new(4096).unwrap();
        let region = a.register(arena.clone()).unwrap();
        let State::Connected(connection) = &mut a.endpoints.get(at_a).unwrap().state else { panic!() };
        connection.tx.lend_for_ever(RegionSlice { region, arena, offset: 0, length: 4096 });
        let began = Instant::now();
        a.close(at_a);
        assert!(a.uses(region) && !a.unregister(region));
        while !closed(&mut a, at_a) {
            assert!(!a.unregister(region));
        }
        assert!(began.elapsed() >= limit);
        assert!(a.unregister(region));
    }
}
