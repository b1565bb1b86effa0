//! One control link: a socket, where it stands, and what waits to be read and written.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mio::net::TcpStream;

use crate::error::{Error, Result};
use crate::proto::control::{ControlMessage, FrameReader, FrameWriter};
use crate::proto::handshake::{Acceptor, Dialler};
use crate::types::Identity;

/// Where a link stands.
///
/// ```text
///  Waiting ◀─refused, closed before an answer─┐
///     └──▶ Connecting ──▶ Dialling ───────────┴──▶ Up ──▶ Closing
///                        Accepting ──────────────▲         (flushed, then drained until the peer closes)
/// ```
pub(super) enum Phase {
    /// A dial that will be tried at this time.
    Waiting { at: Instant },
    /// TCP is connecting.
    Connecting,
    /// We dialled, and prove ourselves.
    Dialling(Box<Dialler>),
    /// We were dialled, and want a proof.
    Accepting(Box<Acceptor>),
    /// Authenticated.
    Up(Box<Session>),
    /// No more events; what is queued is still written, and what comes is dropped, until the peer closes.
    Closing { written: bool },
}

/// An authenticated session.
pub(super) struct Session {
    pub peer: Identity,
    pub reader: FrameReader,
    pub writer: FrameWriter,
}

/// A dial's addresses and patience.
pub(super) struct Dial {
    pub addresses: Vec<SocketAddr>,
    pub next: usize,
    pub attempts: u32,
    /// Why the last attempt failed.
    pub last: Option<Error>,
}

pub(super) struct Link {
    pub generation: u32,
    /// For messages: identity, as far as known, and address.
    pub peer: String,
    pub address: SocketAddr,
    pub stream: Option<TcpStream>,
    pub phase: Phase,
    pub dial: Option<Dial>,
    /// When the phase must be over; in `Up` when the next frame must have come.
    pub deadline: Instant,
    /// When a dial must have reached its peer.
    pub connect_deadline: Instant,
    /// When a keepalive is due.
    pub speak_at: Instant,
    /// Was up once.
    pub authenticated: bool,
    /// Writing failed; reported when all that the peer sent has been read.
    pub broken: Option<Error>,
    pub input: Vec<u8>,
    pub output: VecDeque<u8>,
}

/// How a turn of reading ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ReadEnd {
    /// Nothing more for now.
    Empty,
    /// The turn's budget is used up; there may be more.
    More,
    /// The peer has closed.
    Closed,
}

impl Link {
    /// The authenticated peer.
    pub fn identity(&self) -> Option<&Identity> {
        match &self.phase {
            Phase::Up(session) => Some(&session.peer),
            _ => None,
        }
    }

    /// Reads at most `budget` bytes into `input`.
    pub fn fill(&mut self, scratch: &mut [u8], budget: usize) -> Result<ReadEnd> {
        let Some(stream) = self.stream.as_mut() else { return Ok(ReadEnd::Empty) };
        let mut left = budget;
        while left > 0 {
            let room = scratch.len().min(left);
            match stream.read(&mut scratch[..room]) {
                Ok(0) => return Ok(ReadEnd::Closed),
                Ok(count) => {
                    if !matches!(self.phase, Phase::Closing { .. }) {
                        self.input.extend_from_slice(&scratch[..count]);
                    }
                    left -= count;
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(ReadEnd::Empty),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(self.lost(&e)),
            }
        }
        Ok(ReadEnd::More)
    }

    /// Writes what the socket takes now.
    pub fn flush(&mut self) -> Result<()> {
        let Some(stream) = self.stream.as_mut() else { return Ok(()) };
        while !self.output.is_empty() {
            let (front, _) = self.output.as_slices();
            match stream.write(front) {
                Ok(0) => break,
                Ok(count) => drop(self.output.drain(..count)),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(self.lost(&e)),
            }
        }
        Ok(())
    }

    /// The next whole frame of an authenticated link.
    pub fn next_frame(&mut self, used: &mut usize) -> Result<Option<ControlMessage>> {
        let Phase::Up(session) = &mut self.phase else { return Ok(None) };
        let decoded = session.reader.decode(&self.input[*used..], &self.peer)?;
        Ok(decoded.map(|(size, message)| {
            *used += size;
            message
        }))
    }

    /// A dial came to nothing, and why.
    pub fn gave_up(&self, after: Duration) -> Error {
        let last = match self.dial.as_ref().and_then(|d| d.last.as_ref()) {
            Some(Error::PeerLost { reason, .. }) => format!(" (last attempt: {reason})"),
            _ => String::new(),
        };
        Error::Timeout { waited_for: format!("a connection to {}{last}", self.peer), after }
    }

    /// The peer is gone, and why.
    pub fn lost(&self, reason: &dyn std::fmt::Display) -> Error {
        Error::PeerLost { peer: self.peer.clone(), reason: reason.to_string() }
    }
}
