//! The receive side of one connection. What is granted to a peer it never maps: this side copies what the peer announces, from the
//! ring or from the peer's own memory, to where a grant lets it, or lends a body from there to the caller.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::MAX_READS;
use super::frame::{FRAME, Frame, Kind, Source};
use super::socket;
use super::tx::{MAX_SHOWN, Showing, Tx};
use crate::error::{Error, Result};
use crate::mem::limits::no_descriptor;
use crate::mem::ring::{Consumer, OutOfStep, cells};
use crate::mem::{Arena, RegionSlice};
use crate::transport::endpoints::PendingRead;
use crate::transport::grants::{Access, Grants};
use crate::transport::{Completion, EndpointId, Loan, MAX_SEND, Message};

/// Packets that are heard at most for the sake of one entry.
const MOST_HEARD: usize = 4096;

/// Most bytes that one turn takes, but for the operation that passes it: 256 KiB that were copied stay in L2 for whoever reads them next,
/// and who has lent as many hears soon that he has them back.
const TURN_BYTES: usize = 256 << 10;
/// Most operations of one turn, so that a fast sender of small ones leaves room for the others.
const TURN_OPERATIONS: usize = 32;

/// What the endpoint lends to its receive side.
pub(super) struct Context<'a> {
    pub endpoint: EndpointId,
    pub peer: &'a str,
    pub socket: &'a OwnedFd,
    pub grants: &'a Grants,
    pub tx: &'a mut Tx,
    pub reads: &'a mut VecDeque<PendingRead>,
    pub out: &'a mut Vec<Completion>,
}

impl Context<'_> {
    fn fault(
        &self,
        field: &'static str,
        expected: impl Into<String>,
        found: impl std::fmt::Display,
    ) -> Error {
        Error::protocol(self.peer, field, expected, found)
    }

    /// Lets go of what the peer has taken.
    fn retire(&mut self) -> Result<()> {
        let (endpoint, out) = (self.endpoint, &mut *self.out);
        let done = |context| out.push(Completion::Done { endpoint, context });
        self.tx.retire(done).map(drop).map_err(|e| out_of_step(self.peer, &e))
    }
}

/// What a count in the ring that can't be is to the caller.
pub(super) fn out_of_step(peer: &str, e: &OutOfStep) -> Error {
    let (least, most) = e.expected;
    Error::protocol(peer, e.field, format!("{least} to {most}"), e.found)
}

/// What follows when all bytes of an operation are here.
#[derive(Debug, Clone, Copy)]
enum Then {
    /// A write of grant `key`.
    Written { key: u32, imm: Option<u32>, length: u32 },
    /// The answer to our oldest read, which counts as outstanding until all its bytes are here.
    ReadDone,
}

/// What an entry has brought.
enum Brought {
    Whole,
    /// All but this.
    Part(RegionSlice),
    Loan(Loan),
}

/// See the module's head.
#[derive(Debug)]
pub(super) struct Rx {
    pub consumer: Consumer,
    /// What the peer has shown us, by its numbers.
    shown: Vec<Option<Arc<Arena>>>,
    /// What it has us forget, while bodies that lie there are still lent to us.
    forgotten: Vec<Arc<Arena>>,
    /// Bytes that it may show, with what is forgotten and lent.
    max_shown: usize,
    /// What comes in parts.
    incoming: Option<(RegionSlice, Then)>,
    /// The end of the connection was seen: what is in the ring is all there is.
    pub hung_up: bool,
}

impl Rx {
    /// From a ring, with at most `max_shown` bytes of the peer's memory mapped.
    pub fn new(consumer: Consumer, max_shown: usize) -> Rx {
        let (shown, forgotten) = (Vec::new(), Vec::new());
        Rx { consumer, shown, forgotten, max_shown, incoming: None, hung_up: false }
    }

    /// Whether bytes on their way go to grant `key`.
    pub fn writes_to(&self, key: u32) -> bool {
        matches!(self.incoming, Some((_, Then::Written { key: k, .. })) if k == key)
    }

    /// Takes the next packet from the socket: a ring, or a region that is shown. False when there is none.
    pub fn hear(&mut self, socket: &OwnedFd, peer: &str) -> Result<bool> {
        let packet = match socket::receive(socket) {
            Ok(Some(packet)) => packet,
            Ok(None) => {
                self.hung_up = true;
                return Ok(false);
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => return Ok(true),
            Err(e) if e.raw_os_error() == Some(libc::EMFILE) => {
                return Err(no_descriptor(&format!("memory that {peer} shows"), "recvmsg", e));
            }
            Err(e) => return Err(Error::PeerLost { peer: peer.to_owned(), reason: e.to_string() }),
        };
        if packet.bytes() == [0] {
            return Ok(true);
        }
        let (Some(showing), Some(file)) = (Showing::decode(packet.bytes()), &packet.file) else {
            let found = format!("{} bytes", packet.length);
            return Err(Error::protocol(peer, "packet", "a ring, or a region and its descriptor", found));
        };
        let place = showing.place as usize;
        if place >= MAX_SHOWN || self.shown.get(place).is_some_and(Option::is_some) {
            let expected = format!("a free number below {MAX_SHOWN}");
            return Err(Error::protocol(peer, "region", expected, place));
        }
        if self.shown.len() <= place {
            self.shown.resize(place + 1, None);
        }
        let bytes = usize::try_from(showing.bytes).unwrap_or(usize::MAX);
        self.forgotten.retain(|arena| Arc::strong_count(arena) > 1);
        let mapped =
            self.shown.iter().flatten().chain(&self.forgotten).map(|arena| arena.len()).sum::<usize>();
        if bytes > self.max_shown - mapped {
            return Err(Error::Limit {
                resource: format!("bytes that {peer} shows over shared memory (--shown-bytes)"),
                limit: self.max_shown as u64,
                asked: (mapped as u64).saturating_add(showing.bytes),
            });
        }
        self.shown[place] = Some(Arena::of_peer(file, bytes, peer)?);
        Ok(true)
    }

    /// Takes what is in the ring. True when there may be more right now.
    pub fn turn(&mut self, to: &mut Context<'_>) -> Result<bool> {
        let mut bytes = 0;
        for operation in 0..TURN_OPERATIONS {
            let ready = self.consumer.ready().map_err(|e| out_of_step(to.peer, &e))?;
            if operation == 0 {
                self.consumer.fetch();
            }
            if ready == 0 || bytes >= TURN_BYTES {
                return Ok(ready > 0);
            }
            // A private copy: the peer can change what lies in the ring.
            let mut entry = [0; FRAME];
            self.consumer.get(0, &mut entry);
            let frame = Frame::decode(&entry).map_err(|bad| to.fault(bad.field, bad.expected, bad.found))?;
            let taken = 1 + cells(frame.inline.into());
            if taken > ready {
                return Err(to.fault("inline", format!("at most {} cells", ready - 1), frame.inline));
            }
            bytes += self.take(&frame, to)?;
            self.consumer.advance(taken);
        }
        Ok(true)
    }

    /// Does what an entry says; gives the bytes that it brought.
    fn take(&mut self, frame: &Frame, to: &mut Context<'_>) -> Result<usize> {
        if self.incoming.is_some() != (frame.kind == Kind::Part) {
            let expected = if self.incoming.is_some() { "the next part" } else { "no part of nothing" };
            return Err(to.fault("kind", expected, format!("{:?}", frame.kind)));
        }
        match frame.kind {
            Kind::Write { key, offset, length, imm } => {
                let grants = to.grants;
                let (grant, at) =
                    grants.find(key, offset, length, Access::Write).map_err(|d| d.by(to.peer))?;
                let bytes = length as usize;
                if frame.source.is_none() && usize::from(frame.inline) == bytes {
                    self.consumer.get_into(1, &grant.arena, at, bytes);
                    written(imm, length, to);
                    return Ok(bytes);
                }
                let (arena, region) = (grant.arena.clone(), grant.region);
                let place = RegionSlice { arena, region, offset: at, length: bytes };
                self.bring(frame, place, Then::Written { key, imm, length }, to)
            }
            Kind::Part => match self.incoming.take() {
                Some((rest, then)) => self.bring(frame, rest, then, to),
                None => Ok(0),
            },
            Kind::ReadAnswer { length, read } => {
                let local = match to.reads.front() {
                    Some(asked) if asked.read == read => asked.local.clone(),
                    _ => return Err(to.fault("read", "the oldest one outstanding", read)),
                };
                if local.length != length as usize {
                    return Err(to.fault("length", format!("{} as asked for", local.length), length));
                }
                self.bring(frame, local, Then::ReadDone, to)
            }
            Kind::Send { length } => {
                let mut bytes = [0; MAX_SEND];
                let text = bytes.get_mut(..length as usize).filter(|t| t.len() == usize::from(frame.inline));
                let Some(text) = text else {
                    return Err(to.fault("length", format!("at most {MAX_SEND}, all in the ring"), length));
                };
                self.consumer.get(1, text);
                if let Some(message) = Message::new(text) {
                    to.out.push(Completion::Received { endpoint: to.endpoint, message });
                }
                Ok(length as usize)
            }
            Kind::ReadRequest { key, offset, length, read } => {
                let from = to.grants.admit(key, offset, length, Access::Read).map_err(|d| d.by(to.peer))?;
                if to.tx.answers() >= MAX_READS {
                    // Whoever asks may have taken answers since this end last looked.
                    to.retire()?;
                }
                if to.tx.answers() >= MAX_READS {
                    return Err(to.fault("read", format!("at most {MAX_READS} outstanding"), read));
                }
                to.tx.answer(Kind::ReadAnswer { length, read }, from, key);
                Ok(0)
            }
            Kind::Forget { region } => match self.shown.get_mut(region as usize).and_then(Option::take) {
                Some(arena) => {
                    self.forgotten.push(arena);
                    self.forgotten.retain(|arena| Arc::strong_count(arena) > 1);
                    Ok(0)
                }
                None => Err(to.fault("region", "one that was shown", region)),
            },
        }
    }

    /// Brings the bytes of an entry to `place`, and says so when they are all there.
    fn bring(
        &mut self,
        frame: &Frame,
        place: RegionSlice,
        then: Then,
        to: &mut Context<'_>,
    ) -> Result<usize> {
        let length = place.length;
        match self.fetch(frame, place, to)? {
            Brought::Part(rest) => self.incoming = Some((rest, then)),
            Brought::Whole => match then {
                Then::Written { imm, length, .. } => written(imm, length, to),
                Then::ReadDone => {
                    if let Some(PendingRead { context, .. }) = to.reads.pop_front() {
                        to.out.push(Completion::Done { endpoint: to.endpoint, context });
                    }
                }
            },
            Brought::Loan(body) => {
                if let Then::Written { imm: Some(imm), length, .. } = then {
                    to.out.push(Completion::Lent { endpoint: to.endpoint, imm, length, body });
                }
            }
        }
        Ok(length)
    }

    fn fetch(&mut self, frame: &Frame, place: RegionSlice, to: &Context<'_>) -> Result<Brought> {
        let inline = usize::from(frame.inline);
        if inline > place.length {
            return Err(to.fault("inline", format!("at most {}", place.length), inline));
        }
        self.consumer.get_into(1, &place.arena, place.offset, inline);
        let rest = RegionSlice { offset: place.offset + inline, length: place.length - inline, ..place };
        let Some(Source { region, offset, lent }) = frame.source else {
            return Ok(if rest.length == 0 { Brought::Whole } else { Brought::Part(rest) });
        };
        let arena = self.region(region, to)?;
        let room = arena.len() as u64;
        if offset > room || rest.length as u64 > room - offset {
            let expected = format!("{} bytes of a region of {room}", rest.length);
            return Err(to.fault("source", expected, offset));
        }
        // It is not larger than the region.
        let offset = offset as usize;
        if lent {
            let length = rest.length;
            return Ok(Brought::Loan(Loan { arena: arena.clone(), offset, length }));
        }
        rest.arena.copy_from(rest.offset, arena, offset, rest.length);
        // The peer gives its memory other uses once it has closed.
        if self.consumer.is_closed() {
            let reason = "it closed the connection while its bytes were being taken".to_owned();
            return Err(Error::PeerLost { peer: to.peer.to_owned(), reason });
        }
        Ok(Brought::Whole)
    }

    /// A region of the peer's. It was shown before the entry that names it was published.
    fn region(&mut self, region: u32, to: &Context<'_>) -> Result<&Arc<Arena>> {
        let place = region as usize;
        // A peer may ring for ever instead: no more is heard than an honest socket can hold.
        for _ in 0..MOST_HEARD {
            if self.shown.get(place).is_some_and(Option::is_some) || !self.hear(to.socket, to.peer)? {
                break;
            }
        }
        let shown = self.shown.get(place).and_then(Option::as_ref);
        shown.ok_or_else(|| to.fault("region", "one that was shown", region))
    }
}

/// All bytes of a write are here.
fn written(imm: Option<u32>, length: u32, to: &mut Context<'_>) {
    if let Some(imm) = imm {
        to.out.push(Completion::Written { endpoint: to.endpoint, imm, length });
    }
}
