//! The passive side before authentication: whoever reaches the listener gets a place among a bounded number of pending
//! connections, a few bytes and a few seconds. What goes wrong in here costs nobody but that connection.

use std::io;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use mio::net::TcpStream;

use super::socket;
use crate::transport::preamble::{self, DIAL, NONCE, Secret};
use crate::transport::{EndpointId, Side};

/// How long a connection keeps its place in a crowd: many times what the preamble takes. Without it a fast flood would
/// push every newcomer out before its first byte came.
pub(super) const GRACE: Duration = Duration::from_millis(50);

/// What a pending connection owes us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owes {
    Dial,
    Proof,
    Nothing,
}

/// How far a pending connection came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    /// Its next bytes have not arrived.
    Waiting,
    /// It named an endpoint: is that one waiting to be dialled?
    Dialled(EndpointId),
    /// It gave a proof for that endpoint, to be compared when the key is known.
    Proved(EndpointId),
    /// It is no peer of ours.
    Gone,
}

/// An accepted connection that has not been authenticated.
#[derive(Debug)]
pub(super) struct Pending {
    stream: TcpStream,
    /// Ascending in the order of arrival.
    serial: u64,
    since: Instant,
    until: Instant,
    owes: Owes,
    input: [u8; DIAL],
    got: usize,
    dial: [u8; DIAL],
    nonce: [u8; NONCE],
    endpoint: Option<EndpointId>,
}

impl Pending {
    /// Reads on; to be called again after `Dialled` was found right ([`Pending::challenge`]).
    pub fn advance(&mut self) -> Progress {
        let want = match self.owes {
            Owes::Dial => DIAL,
            Owes::Proof => NONCE,
            Owes::Nothing => return self.endpoint.map_or(Progress::Gone, Progress::Proved),
        };
        while self.got < want {
            match socket::receive_short(self.stream.as_raw_fd(), &mut self.input[self.got..want]) {
                Ok(0) => return Progress::Gone,
                Ok(got) => self.got += got,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Progress::Waiting,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Progress::Gone,
            }
        }
        self.got = 0;
        if self.owes == Owes::Proof {
            self.owes = Owes::Nothing;
            return self.endpoint.map_or(Progress::Gone, Progress::Proved);
        }
        self.dial = self.input;
        self.endpoint = preamble::dialled(preamble::TCP, &self.dial);
        self.endpoint.map_or(Progress::Gone, Progress::Dialled)
    }

    /// Sends the nonce; false when that failed.
    pub fn challenge(&mut self) -> bool {
        let Ok(nonce) = preamble::nonce() else { return false };
        self.nonce = nonce;
        self.owes = Owes::Proof;
        socket::send_short(self.stream.as_raw_fd(), &self.nonce).is_ok()
    }

    /// Whether it has given a proof for `endpoint` that waits to be compared.
    pub fn has_proof_for(&self, endpoint: EndpointId) -> bool {
        self.owes == Owes::Nothing && self.endpoint == Some(endpoint)
    }

    /// Compares the proof and, if it is right, answers with our own: then the connection is the peer's.
    pub fn judge(self, key: &Secret) -> Option<TcpStream> {
        let mut given = [0; NONCE];
        given.copy_from_slice(&self.input[..NONCE]);
        if preamble::proof(key, Side::Active, &self.dial, &self.nonce) != blake3::Hash::from_bytes(given) {
            return None;
        }
        let own = preamble::proof(key, Side::Passive, &self.dial, &self.nonce);
        socket::send_short(self.stream.as_raw_fd(), own.as_bytes()).ok()?;
        Some(self.stream)
    }
}

/// The pending connections.
#[derive(Debug)]
pub(super) struct Lobby {
    places: Vec<Option<Pending>>,
    serial: u64,
    taken: usize,
}

impl Lobby {
    /// At most `places` connections at a time.
    pub fn new(places: usize) -> Lobby {
        Lobby { places: (0..places).map(|_| None).collect(), serial: 0, taken: 0 }
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.taken
    }

    /// Whether a connection may come in: there is a place, or the oldest has had its [`GRACE`].
    pub fn has_room(&self, now: Instant) -> bool {
        self.taken < self.places.len() || self.oldest().is_none_or(|(_, oldest)| now >= oldest.since + GRACE)
    }

    /// Lets a connection in, to be gone `within` that time; when all places are taken the oldest loses its own. Gives the
    /// place.
    pub fn enter(
        &mut self,
        stream: TcpStream,
        now: Instant,
        within: Duration,
    ) -> Option<(usize, &mut TcpStream)> {
        let place = match self.places.iter().position(Option::is_none) {
            Some(free) => free,
            None => {
                let (place, _) = self.oldest()?;
                self.leave(place);
                place
            }
        };
        self.serial += 1;
        self.taken += 1;
        let pending = Pending {
            stream,
            serial: self.serial,
            since: now,
            until: now + within,
            owes: Owes::Dial,
            input: [0; DIAL],
            got: 0,
            dial: [0; DIAL],
            nonce: [0; NONCE],
            endpoint: None,
        };
        Some((place, &mut self.places[place].insert(pending).stream))
    }

    fn oldest(&self) -> Option<(usize, &Pending)> {
        let taken = self.places.iter().enumerate().filter_map(|(place, p)| Some((place, p.as_ref()?)));
        taken.min_by_key(|(_, p)| p.serial)
    }

    /// The connection in this place.
    pub fn at(&mut self, place: usize) -> Option<&mut Pending> {
        self.places.get_mut(place)?.as_mut()
    }

    /// Takes a connection out; dropping it closes it.
    pub fn leave(&mut self, place: usize) -> Option<Pending> {
        let pending = self.places.get_mut(place)?.take()?;
        self.taken -= 1;
        Some(pending)
    }

    /// Closes those whose time is up.
    pub fn expire(&mut self, now: Instant) {
        for place in 0..self.places.len() {
            if self.places[place].as_ref().is_some_and(|p| p.until <= now) {
                self.leave(place);
            }
        }
    }

    /// The places whose proof for `endpoint` waits to be compared.
    pub fn proofs_for(&self, endpoint: EndpointId) -> impl Iterator<Item = usize> + '_ {
        let waiting = move |(place, p): (usize, &Option<Pending>)| {
            p.as_ref().is_some_and(|p| p.has_proof_for(endpoint)).then_some(place)
        };
        self.places.iter().enumerate().filter_map(waiting)
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener as StdListener, TcpStream as StdStream};

    use super::*;

    #[test]
    fn the_oldest_loses_its_place_once_it_has_had_its_grace() {
        let listener = StdListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let mut dialled = Vec::new();
        let mut accept = || {
            dialled.push(StdStream::connect(listener.local_addr().unwrap()).unwrap());
            let (stream, _) = listener.accept().unwrap();
            stream.set_nonblocking(true).unwrap();
            TcpStream::from_std(stream)
        };
        let now = Instant::now();
        let mut lobby = Lobby::new(2);
        let long = Duration::from_secs(1);
        assert_eq!(lobby.enter(accept(), now, long).unwrap().0, 0);
        assert!(lobby.has_room(now));
        assert_eq!(lobby.enter(accept(), now + GRACE / 2, Duration::ZERO).unwrap().0, 1);
        assert!(!lobby.has_room(now + GRACE / 2) && lobby.has_room(now + GRACE));
        assert_eq!(lobby.enter(accept(), now + GRACE, long).unwrap().0, 0);
        assert_eq!(lobby.len(), 2);
        assert!(!lobby.has_room(now + GRACE), "the one that is the oldest now came half a grace ago");
        lobby.expire(now + GRACE / 2);
        assert_eq!(lobby.len(), 1);
        assert!(lobby.at(0).is_some() && lobby.at(1).is_none() && lobby.has_room(now));
        let mut none = Lobby::new(0);
        assert!(none.enter(accept(), now, long).is_none());
    }
}
