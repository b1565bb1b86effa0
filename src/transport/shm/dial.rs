//! The active side: dial, then the preamble, then `Connected`.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use super::address::Address;
use super::endpoint::RINGS;
use super::socket;
use crate::error::{Error, Result};
use crate::mem::Arena;
use crate::mem::limits::no_descriptor;
use crate::transport::preamble::{self, DIAL, NONCE, Secret};
use crate::transport::{SessionKey, Side};

/// A connection that has not been authenticated, seen from the side that dialled.
#[derive(Debug)]
pub(super) struct Dialer {
    pub socket: OwnedFd,
    pub until: Instant,
    key: Secret,
    dial: [u8; DIAL],
    /// What the passive side has said; then it owes its proof.
    nonce: Option<[u8; NONCE]>,
}

impl Dialer {
    /// Dials and says for which endpoint. An error says why this peer can't be reached by memory.
    pub fn new(to: &Address, key: &SessionKey, until: Instant, peer: &str) -> Result<Dialer> {
        let refused = |e: &dyn std::fmt::Display| {
            let reason =
                format!("it can't be reached on this host ({e}): it may be in another network namespace");
            Error::Refused { peer: peer.to_owned(), reason }
        };
        let socket = socket::dial(&to.name).map_err(|e| refused(&e))?;
        if !socket::is_same_user(&socket).map_err(|e| refused(&e))? {
            let reason = "it runs as another user, who can't be shown memory".to_owned();
            return Err(Error::Refused { peer: peer.to_owned(), reason });
        }
        let dial = preamble::dial(preamble::SHM, to.endpoint, &preamble::nonce()?);
        match socket::send(&socket, &dial, None) {
            // The peer has ended it already, as it may at any moment: `advance` finds the end.
            Err(e) if matches!(e.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => {}
            sent => sent.map_err(|e| refused(&e))?,
        }
        Ok(Dialer { socket, until, key: Secret(*key), dial, nonce: None })
    }

    /// Goes as far as the packets that have arrived allow; gives the memory of both rings when both sides have proved themselves.
    pub fn advance(&mut self, peer: &str) -> Result<Option<Arc<Arena>>> {
        loop {
            let packet = match socket::receive(&self.socket) {
                Ok(Some(packet)) => packet,
                Ok(None) => return Err(refused(peer)),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => {
                    return Err(no_descriptor(&format!("memory that {peer} shows"), "recvmsg", e));
                }
            };
            let Ok(bytes): std::result::Result<[u8; NONCE], _> = packet.bytes().try_into() else {
                let found = format!("{} bytes", packet.length);
                return Err(Error::protocol(peer, "preamble", format!("{NONCE} bytes"), found));
            };
            let Some(nonce) = &self.nonce else {
                let proof = preamble::proof(&self.key, Side::Active, &self.dial, &bytes);
                // The other side may have gone: that is heard next.
                let _ = socket::send(&self.socket, proof.as_bytes(), None);
                self.nonce = Some(bytes);
                continue;
            };
            let expected = preamble::proof(&self.key, Side::Passive, &self.dial, nonce);
            if expected != blake3::Hash::from_bytes(bytes) {
                return Err(Error::protocol(peer, "proof", "one made with the session key", "another"));
            }
            let Some(file) = packet.file else {
                return Err(Error::protocol(peer, "descriptor", "the memory of the rings", "none"));
            };
            return Arena::with_peer(&file, RINGS, peer).map(Some);
        }
    }
}

fn refused(peer: &str) -> Error {
    Error::Refused {
        peer: peer.to_owned(),
        reason: "it closed the connection during the preamble: it does not expect this endpoint, or its session key is \
                 another"
            .to_owned(),
    }
}
