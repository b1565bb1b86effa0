//! The active side: dial, then the preamble, then `Connected`.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::time::Instant;

use mio::net::TcpStream;

use super::socket;
use crate::error::{Error, Result};
use crate::transport::preamble::{self, DIAL, NONCE, Secret};
use crate::transport::{EndpointId, SessionKey, Side};

/// What the dialler waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Waiting {
    Connect,
    Nonce,
    Proof,
}

/// A connection that has not been authenticated, seen from the side that dialled.
#[derive(Debug)]
pub(super) struct Dialer {
    pub stream: TcpStream,
    pub until: Instant,
    address: SocketAddr,
    key: Secret,
    dial: [u8; DIAL],
    waiting: Waiting,
    input: [u8; NONCE],
    got: usize,
    nonce: [u8; NONCE],
}

impl Dialer {
    /// On `stream`, which is connecting to `address`, for the passive side's `endpoint`.
    pub fn new(
        stream: TcpStream,
        address: SocketAddr,
        endpoint: EndpointId,
        key: &SessionKey,
        until: Instant,
    ) -> Result<Dialer> {
        Ok(Dialer {
            stream,
            until,
            address,
            key: Secret(*key),
            dial: preamble::dial(preamble::TCP, endpoint, &preamble::nonce()?),
            waiting: Waiting::Connect,
            input: [0; NONCE],
            got: 0,
            nonce: [0; NONCE],
        })
    }

    /// What it waits for, for messages.
    pub fn waits_for(&self, peer: &str) -> String {
        match self.waiting {
            Waiting::Connect => format!("{peer} to accept a connection at {}", self.address),
            Waiting::Nonce | Waiting::Proof => format!("{peer} at {} to answer the preamble", self.address),
        }
    }

    /// Goes as far as the bytes that have arrived allow; true when both sides have proved themselves.
    pub fn advance(&mut self, peer: &str) -> Result<bool> {
        if self.waiting == Waiting::Connect && !self.established()? {
            return Ok(false);
        }
        loop {
            match socket::receive_short(self.stream.as_raw_fd(), &mut self.input[self.got..]) {
                Ok(0) => return Err(self.refused(peer)),
                Ok(got) => self.got += got,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::ConnectionReset => return Err(self.refused(peer)),
                Err(e) => return Err(self.failed("read", e)),
            }
            if self.got == NONCE && self.answer(peer)? {
                return Ok(true);
            }
        }
    }

    fn established(&mut self) -> Result<bool> {
        if let Some(e) = self.stream.take_error().map_err(|e| self.failed("connect", e))? {
            return Err(self.failed("connect", e));
        }
        match self.stream.peer_addr() {
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::NotConnected => return Ok(false),
            Err(e) => return Err(self.failed("connect", e)),
        }
        socket::send_short(self.stream.as_raw_fd(), &self.dial).map_err(|e| self.failed("write", e))?;
        self.waiting = Waiting::Nonce;
        Ok(true)
    }

    /// Handles 32 bytes from the passive side; true when they were its proof.
    fn answer(&mut self, peer: &str) -> Result<bool> {
        self.got = 0;
        if self.waiting == Waiting::Nonce {
            self.nonce = self.input;
            let proof = preamble::proof(&self.key, Side::Active, &self.dial, &self.nonce);
            socket::send_short(self.stream.as_raw_fd(), proof.as_bytes())
                .map_err(|e| self.failed("write", e))?;
            self.waiting = Waiting::Proof;
            return Ok(false);
        }
        let expected = preamble::proof(&self.key, Side::Passive, &self.dial, &self.nonce);
        if expected != blake3::Hash::from_bytes(self.input) {
            let peer = format!("{peer} at {}", self.address);
            return Err(Error::protocol(peer, "proof", "one made with the session key", "another"));
        }
        Ok(true)
    }

    fn refused(&self, peer: &str) -> Error {
        Error::Refused {
            peer: format!("{peer} at {}", self.address),
            reason: "it closed the connection during the preamble: it does not expect this endpoint, or its session \
                     key is another"
                .to_owned(),
        }
    }

    fn failed(&self, operation: &'static str, e: io::Error) -> Error {
        Error::io(operation, self.address, e)
    }
}
