//! The passive side before authentication: a process of the same user that reaches the listener gets a place among a bounded number of
//! pending connections, two packets and a few seconds. What goes wrong in here costs nobody but that connection.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Instant;

use super::socket;
use crate::transport::preamble::{self, DIAL, NONCE, Secret};
use crate::transport::{EndpointId, Side};

/// How far a pending connection came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    /// Its next packet has not arrived.
    Waiting,
    /// It named an endpoint: is that one waiting to be dialled?
    Dialled(EndpointId),
    /// It gave a proof for that endpoint, to be compared when the key is known.
    Proved(EndpointId),
    /// It is no peer of ours.
    Gone,
}

/// What has come, and what we said.
#[derive(Debug, Clone, Copy)]
enum Said {
    Nothing,
    Dial { dial: [u8; DIAL], endpoint: EndpointId, nonce: [u8; NONCE] },
    Proof { dial: [u8; DIAL], endpoint: EndpointId, nonce: [u8; NONCE], proof: [u8; NONCE] },
}

/// An accepted connection that has not been authenticated.
#[derive(Debug)]
pub(super) struct Pending {
    pub socket: OwnedFd,
    until: Instant,
    said: Said,
}

impl Pending {
    /// Reads on. Nothing may come between a proof and our answer, and who closes is gone: left unread, both would wake us again and again.
    pub fn advance(&mut self) -> Progress {
        let packet = match socket::receive(&self.socket) {
            Ok(Some(packet)) => packet,
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                return Progress::Waiting;
            }
            Ok(None) | Err(_) => return Progress::Gone,
        };
        match self.said {
            Said::Nothing => self.dialled(packet.bytes()).unwrap_or(Progress::Gone),
            Said::Dial { dial, endpoint, nonce } => match packet.bytes().try_into() {
                Ok(proof) => {
                    self.said = Said::Proof { dial, endpoint, nonce, proof };
                    Progress::Proved(endpoint)
                }
                Err(_) => Progress::Gone,
            },
            Said::Proof { .. } => Progress::Gone,
        }
    }

    fn dialled(&mut self, bytes: &[u8]) -> Option<Progress> {
        let dial = bytes.try_into().ok()?;
        let endpoint = preamble::dialled(preamble::SHM, &dial)?;
        self.said = Said::Dial { dial, endpoint, nonce: preamble::nonce().ok()? };
        Some(Progress::Dialled(endpoint))
    }

    /// Sends the nonce; false when that failed.
    pub fn challenge(&mut self) -> bool {
        match &self.said {
            Said::Dial { nonce, .. } => socket::send(&self.socket, nonce, None).is_ok(),
            Said::Nothing | Said::Proof { .. } => false,
        }
    }

    /// Compares the proof and, if it is right, answers with our own and the memory of both rings: then the connection is the peer's.
    pub fn judge(self, key: &Secret, rings: BorrowedFd<'_>) -> Option<OwnedFd> {
        let Said::Proof { dial, nonce, proof, .. } = self.said else { return None };
        if preamble::proof(key, Side::Active, &dial, &nonce) != blake3::Hash::from_bytes(proof) {
            return None;
        }
        let own = preamble::proof(key, Side::Passive, &dial, &nonce);
        socket::send(&self.socket, own.as_bytes(), Some(rings)).ok()?;
        Some(self.socket)
    }
}

/// The pending connections.
#[derive(Debug)]
pub(super) struct Lobby {
    places: Vec<Option<Pending>>,
}

impl Lobby {
    /// At most `places` connections at a time.
    pub fn new(places: usize) -> Lobby {
        Lobby { places: (0..places).map(|_| None).collect() }
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.places.iter().all(Option::is_none)
    }

    /// Lets a connection in that has to be gone at `until`; gives its place, or drops it where there is none.
    pub fn enter(&mut self, socket: OwnedFd, until: Instant) -> Option<(usize, &OwnedFd)> {
        let place = self.places.iter().position(Option::is_none)?;
        let pending = Pending { socket, until, said: Said::Nothing };
        Some((place, &self.places[place].insert(pending).socket))
    }

    /// The connection in this place.
    pub fn at(&mut self, place: usize) -> Option<&mut Pending> {
        self.places.get_mut(place)?.as_mut()
    }

    /// Takes a connection out; dropping it closes it.
    pub fn leave(&mut self, place: usize) -> Option<Pending> {
        self.places.get_mut(place)?.take()
    }

    /// Closes those whose time is up.
    pub fn expire(&mut self, now: Instant) {
        self.places.iter_mut().for_each(|place| drop(place.take_if(|p| p.until <= now)));
    }

    /// The places whose proof for `endpoint` waits to be compared.
    pub fn proofs_for(&self, endpoint: EndpointId) -> Vec<usize> {
        let waits = |p: &Pending| matches!(p.said, Said::Proof { endpoint: e, .. } if e == endpoint);
        (0..self.places.len()).filter(|&place| self.places[place].as_ref().is_some_and(waits)).collect()
    }
}
