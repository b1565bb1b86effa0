//! The receive side of one connection. Frame headers, messages and short payloads come through a small buffer, many per
//! system call; the rest of a payload is received by the kernel straight into the granted memory.

use std::collections::VecDeque;
use std::io;
use std::os::fd::RawFd;

use super::frame::{FRAME, Frame};
use super::socket;
use super::tx::Tx;
use super::{MAX_READS, PendingRead};
use crate::error::{Error, Result};
use crate::mem::RegionSlice;
use crate::transport::grants::{Access, Grants};
use crate::transport::{Completion, EndpointId, MAX_SEND, Message};

/// Size of the buffer: at most this much of a payload is copied.
const BUFFER: usize = 4032;
const _: () = assert!(BUFFER >= FRAME + MAX_SEND && BUFFER < 4096);
/// Most bytes that one receive may bring and, with it, one turn. 256 KiB stay in L2 for whoever reads them next.
const TURN_BYTES: usize = 256 << 10;
/// Most completions of one turn, so that a fast sender of small frames leaves room for the others.
const TURN_COMPLETIONS: usize = 32;

/// What the endpoint lends to its receive side.
pub(super) struct Context<'a> {
    pub endpoint: EndpointId,
    pub peer: &'a str,
    pub grants: &'a Grants,
    pub tx: &'a mut Tx,
    pub reads: &'a mut VecDeque<PendingRead>,
    pub out: &'a mut Vec<Completion>,
}

/// What one turn of receiving came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// There may be more to do right now.
    More,
    /// All that had arrived is handled: the next event says when there is more.
    Drained,
}

/// What follows when a payload is complete.
#[derive(Debug)]
enum Then {
    /// A write of grant `key`.
    Written { key: u32, imm: Option<u32>, length: u32 },
    /// The answer to our oldest read, which counts as outstanding until all its bytes are here.
    ReadDone,
}

/// A payload on its way into memory.
#[derive(Debug)]
struct Incoming {
    /// What is still missing.
    rest: RegionSlice,
    then: Then,
}

/// Receive state.
#[derive(Debug)]
pub(super) struct Rx {
    buffer: Box<[u8; BUFFER]>,
    /// Bytes in the buffer that were not looked at.
    start: usize,
    end: usize,
    incoming: Option<Incoming>,
}

impl Rx {
    /// Nothing received.
    pub fn new() -> Rx {
        Rx { buffer: Box::new([0; BUFFER]), start: 0, end: 0, incoming: None }
    }

    /// Whether a write into this grant is half received.
    pub fn writes_to(&self, grant: u32) -> bool {
        matches!(&self.incoming, Some(Incoming { then: Then::Written { key, .. }, .. }) if *key == grant)
    }

    /// Handles what has arrived, within the limits of one turn. `ending` says that the end of the stream was announced,
    /// so that only the end itself counts as drained.
    pub fn turn(&mut self, fd: RawFd, ending: bool, to: &mut Context<'_>) -> Result<Turn> {
        let full = to.out.len() + TURN_COMPLETIONS;
        let mut bytes = 0;
        let mut drained = false;
        loop {
            while self.step(to)? {
                if to.out.len() >= full {
                    return Ok(Turn::More);
                }
            }
            if drained {
                return Ok(Turn::Drained);
            }
            if bytes >= TURN_BYTES {
                return Ok(Turn::More);
            }
            match self.fill(fd) {
                Ok((0, _)) => return Err(self.lost(to.peer, "it closed the connection")),
                Ok((got, asked)) => {
                    bytes += got;
                    // A short receive has emptied the socket; what comes later makes a new event.
                    drained = got < asked && !ending;
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(Turn::Drained),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(self.lost(to.peer, &e.to_string())),
            }
        }
    }

    fn lost(&self, peer: &str, how: &str) -> Error {
        let inside = self.start < self.end || self.incoming.is_some();
        let reason = if inside { format!("{how} in the middle of a frame") } else { how.to_owned() };
        Error::PeerLost { peer: peer.to_owned(), reason }
    }

    /// One receive: into the memory that a payload is meant for, and behind it into the buffer. (got, asked for)
    fn fill(&mut self, fd: RawFd) -> io::Result<(usize, usize)> {
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        let free = &mut self.buffer[self.end..];
        let behind = socket::part(free.as_mut_ptr(), free.len());
        let room = free.len();
        let Some(incoming) = &mut self.incoming else {
            // SAFETY: the part is the free end of our own buffer, which nothing else looks at during the call.
            let got = unsafe { socket::receive(fd, &mut [behind]) }?;
            self.end += got;
            return Ok((got, room));
        };
        let rest = &mut incoming.rest;
        let direct = rest.length.min(TURN_BYTES);
        let first = socket::part(rest.arena.at(rest.offset, direct), direct);
        let whole = direct == rest.length;
        let (parts, asked) = if whole { (2, direct + room) } else { (1, direct) };
        // SAFETY: the first part lies in an arena that `rest` keeps alive, in a range that a grant or our own read made
        // free for the peer to write; arenas hand out no references. The second is the free end of our own buffer.
        let got = unsafe { socket::receive(fd, &mut [first, behind][..parts]) }?;
        let placed = got.min(direct);
        rest.offset += placed;
        rest.length -= placed;
        self.end += got - placed;
        Ok((got, asked))
    }

    /// Handles what the buffer holds up to the next frame border; false when more bytes are needed first.
    fn step(&mut self, to: &mut Context<'_>) -> Result<bool> {
        if let Some(incoming) = &mut self.incoming {
            let buffered = &self.buffer[self.start..self.end];
            let count = buffered.len().min(incoming.rest.length);
            incoming.rest.arena.copy_in(incoming.rest.offset, &buffered[..count]);
            incoming.rest.offset += count;
            incoming.rest.length -= count;
            self.start += count;
            if incoming.rest.length > 0 {
                return Ok(false);
            }
            if let Some(complete) = self.incoming.take() {
                finish(complete.then, to);
            }
            return Ok(true);
        }
        let Some(header) = self.buffer[self.start..self.end].first_chunk::<FRAME>() else { return Ok(false) };
        let frame = Frame::decode(header)
            .map_err(|bad| Error::protocol(to.peer, bad.field, bad.expected, bad.found))?;
        self.begin(frame, to)
    }

    fn begin(&mut self, frame: Frame, to: &mut Context<'_>) -> Result<bool> {
        match frame {
            Frame::Send { length } => return self.message(length, to),
            Frame::Write { key, offset, length, imm } => {
                let rest = to.grants.admit(key, offset, length, Access::Write).map_err(|d| d.by(to.peer))?;
                self.incoming = Some(Incoming { rest, then: Then::Written { key, imm, length } });
            }
            Frame::ReadRequest { key, offset, length, read } => {
                let bytes = to.grants.admit(key, offset, length, Access::Read).map_err(|d| d.by(to.peer))?;
                if to.tx.answers() >= MAX_READS {
                    let expected = format!("at most {MAX_READS} reads without an answer");
                    return Err(Error::protocol(to.peer, "read", expected, "one more"));
                }
                to.tx.answer(read, key, bytes);
            }
            Frame::ReadResponse { length, read } => {
                let rest = answered(length, read, to)?;
                self.incoming = Some(Incoming { rest, then: Then::ReadDone });
            }
        }
        self.start += FRAME;
        Ok(true)
    }

    fn message(&mut self, length: u32, to: &mut Context<'_>) -> Result<bool> {
        let length = length as usize;
        if length > MAX_SEND {
            return Err(Error::protocol(to.peer, "length", format!("at most {MAX_SEND} in a send"), length));
        }
        let body = self.start + FRAME;
        if self.end < body + length {
            return Ok(false);
        }
        if let Some(message) = Message::new(&self.buffer[body..body + length]) {
            to.out.push(Completion::Received { endpoint: to.endpoint, message });
        }
        self.start = body + length;
        Ok(true)
    }
}

fn finish(then: Then, to: &mut Context<'_>) {
    let endpoint = to.endpoint;
    match then {
        Then::Written { imm: Some(imm), length, .. } => {
            to.out.push(Completion::Written { endpoint, imm, length });
        }
        Then::Written { imm: None, .. } => {}
        Then::ReadDone => {
            if let Some(PendingRead { context, .. }) = to.reads.pop_front() {
                to.out.push(Completion::Done { endpoint, context });
            }
        }
    }
}

/// Where an answer goes: answers come in the order of the requests.
fn answered(length: u32, read: u64, to: &Context<'_>) -> Result<RegionSlice> {
    let Some(pending) = to.reads.front() else {
        return Err(Error::protocol(
            to.peer,
            "kind",
            "no answer, since nothing was asked",
            "a read response",
        ));
    };
    if pending.read != read {
        return Err(Error::protocol(to.peer, "read", pending.read.to_string(), read));
    }
    if pending.local.length != length as usize {
        return Err(Error::protocol(to.peer, "length", pending.local.length.to_string(), length));
    }
    Ok(pending.local.clone())
}
