//! The send side of one connection: a bounded queue of frames, many of which leave with one system call.

use std::collections::VecDeque;
use std::io;
use std::os::fd::RawFd;

use super::frame::{FRAME, Frame};
use super::lent::{self, Lent};
use super::socket::{self, How, NO_PART, Part};
use crate::mem::{RegionId, RegionSlice};
use crate::transport::{HEADER, Message, Payload};

/// Parts of one vectored call; a frame takes one or two. Few are for a request and for its answer. Many are for many short frames, such as
/// the answers to a batch: a pull of a few values takes three parts, and 64 pulls share a slot.
const FEW: usize = 8;
const MANY: usize = 256;
/// Most bytes offered to the kernel at once, so that one endpoint can't keep the thread for long.
const TURN_BYTES: usize = 1 << 20;
/// Longest head that lies in the queue: a frame header, then the header of a write or a message as long. Longer ones, which no server or
/// worker sends for each request, lie elsewhere: items are moved, and would be three times as long.
const HEAD: usize = FRAME + HEADER;

/// What a queued frame is to the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// Posted by the caller, counts against the queue's depth; `Some` is reported when the kernel has all bytes.
    Posted(Option<u64>),
    /// The answer to the peer's read of this grant.
    Answer(u32),
}

/// A frame with all that it needs until the kernel has done with it.
#[derive(Debug)]
pub(super) struct Item {
    head: Head,
    /// Stays as it is until the item is gone.
    body: Option<Payload>,
    origin: Origin,
}

/// A frame's header, and the message or the header of a write behind it.
#[derive(Debug)]
enum Head {
    Short([u8; HEAD], usize),
    Long(Box<[u8]>),
}

impl Head {
    fn new(frame: Frame, rest: &[u8]) -> Head {
        let length = FRAME + rest.len();
        if length > HEAD {
            return Head::Long([&frame.encode(), rest].concat().into());
        }
        let mut bytes = [0; HEAD];
        bytes[..FRAME].copy_from_slice(&frame.encode());
        bytes[FRAME..length].copy_from_slice(rest);
        Head::Short(bytes, length)
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Head::Short(bytes, length) => &bytes[..*length],
            Head::Long(bytes) => bytes,
        }
    }
}

impl Item {
    fn new(frame: Frame, rest: &[u8], body: Option<Payload>, origin: Origin) -> Item {
        Item { head: Head::new(frame, rest), body, origin }
    }

    fn length(&self) -> usize {
        self.head.bytes().len() + self.body_length()
    }

    /// Whether the caller hears when it is done.
    fn tells(&self) -> bool {
        matches!(self.origin, Origin::Posted(Some(_)))
    }

    fn body_length(&self) -> usize {
        self.body.as_ref().map_or(0, Payload::length)
    }
}

/// What one turn of sending came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pumped {
    /// Nothing is left.
    Empty,
    /// Something is left and the socket may take it.
    More,
    /// The socket is full: the next event says when it is not.
    Blocked,
}

/// Frames on their way out.
#[derive(Debug)]
pub(super) struct Tx {
    items: VecDeque<Item>,
    /// Bytes of the front item that the kernel has.
    sent: usize,
    posted: usize,
    answers: usize,
    /// Whether long bodies are lent to the kernel, and what it has; `None` where it copies all.
    lent: Option<Lent<Item>>,
    /// A part of the front item was lent.
    lends_front: bool,
    /// The socket took less than it was offered and has not become writable since.
    pub blocked: bool,
}

impl Tx {
    /// An empty queue; with `lent` the socket allows long bodies to be lent.
    pub fn new(depth: usize, lent: Option<Lent<Item>>) -> Tx {
        Tx {
            items: VecDeque::with_capacity(depth.min(64)),
            sent: 0,
            posted: 0,
            answers: 0,
            lent,
            lends_front: false,
            blocked: false,
        }
    }

    /// Frames that the caller posted and the kernel has not done with.
    pub fn posted(&self) -> usize {
        self.posted
    }

    /// Answers to the peer's reads that the kernel has not taken.
    pub fn answers(&self) -> usize {
        self.answers
    }

    /// Whether nothing waits to be sent.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Whether an answer from this grant waits or is half sent.
    pub fn answers_from(&self, key: u32) -> bool {
        self.answers > 0 && self.items.iter().any(|i| i.origin == Origin::Answer(key))
    }

    /// Whether a body in this region waits, is half sent, or lent.
    pub fn sends_from(&self, region: RegionId) -> bool {
        self.held().any(|i| i.body.as_ref().is_some_and(|b| b.region() == region))
    }

    /// Whether the kernel may still read bodies that it was lent.
    pub fn has_lent(&self) -> bool {
        self.lent.as_ref().is_some_and(|lent| !lent.is_empty())
    }

    /// As if the kernel had a body and never said that it has done with it.
    #[cfg(test)]
    pub fn lend_for_ever(&mut self, body: RegionSlice) {
        let frame = Frame::ReadResponse { length: body.length as u32, read: 0 };
        let lent = self.lent.get_or_insert_with(|| Lent::new(true));
        lent.called();
        lent.keep(Item::new(frame, &[], Some(Payload::Pinned(body)), Origin::Posted(None)));
    }

    /// Takes what the kernel says of bodies that it was lent, and calls `done` as [`Tx::pump`] does; whether it said anything.
    pub fn hear(&mut self, fd: RawFd, mut done: impl FnMut(u64)) -> io::Result<bool> {
        let Some(lent) = &mut self.lent else { return Ok(false) };
        let heard = lent.hear(fd)?;
        self.take_back(&mut done);
        Ok(heard)
    }

    /// All frames that are not done.
    fn held(&self) -> impl Iterator<Item = &Item> {
        self.items.iter().chain(self.lent.iter().flat_map(Lent::iter))
    }

    /// Queues a write. `frame` says its length.
    pub fn write(
        &mut self,
        frame: Frame,
        header: Option<&[u8; HEADER]>,
        body: Option<Payload>,
        context: Option<u64>,
    ) {
        let header: &[u8] = header.map_or(&[], |h| h);
        self.push(Item::new(frame, header, body, Origin::Posted(context)));
    }

    /// Queues a message.
    pub fn send(&mut self, message: &Message) {
        let bytes = message.bytes();
        let frame = Frame::Send { length: bytes.len() as u32 };
        self.push(Item::new(frame, bytes, None, Origin::Posted(None)));
    }

    /// Queues a read request.
    pub fn request(&mut self, frame: Frame) {
        self.push(Item::new(frame, &[], None, Origin::Posted(None)));
    }

    /// Queues the answer to the peer's read `read` of grant `key`.
    pub fn answer(&mut self, read: u64, key: u32, bytes: RegionSlice) {
        let frame = Frame::ReadResponse { length: bytes.length as u32, read };
        self.push(Item::new(frame, &[], Some(Payload::Pinned(bytes)), Origin::Answer(key)));
    }

    /// Offers the kernel one turn of bytes, and calls `done` with the context of each write that it has wholly, and has done with.
    pub fn pump(&mut self, fd: RawFd, mut done: impl FnMut(u64)) -> io::Result<Pumped> {
        match self.items.len() {
            0 => Ok(Pumped::Empty),
            _ if self.items.front().is_some_and(|front| self.lends(front)) => self.lend(fd, &mut done),
            n if 2 * n <= FEW => self.offer::<FEW>(fd, &mut done),
            _ => self.offer::<MANY>(fd, &mut done),
        }
    }

    fn offer<const PARTS: usize>(&mut self, fd: RawFd, done: &mut impl FnMut(u64)) -> io::Result<Pumped> {
        let mut parts = [NO_PART; PARTS];
        let count = self.gather(&mut parts);
        // SAFETY: `gather` made the parts from heads, which stay in the queue untouched during the call, and from region
        // slices, whose arenas the queued items keep alive and whose range was checked when they were posted.
        let sent = unsafe { socket::send(fd, &mut parts[..count], How::Now) };
        self.took(sent, done)
    }

    /// What a call that sent came to.
    fn took(&mut self, sent: io::Result<usize>, done: &mut impl FnMut(u64)) -> io::Result<Pumped> {
        match sent {
            Ok(sent) => {
                self.advance(sent, done);
                Ok(if self.items.is_empty() { Pumped::Empty } else { Pumped::More })
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                self.blocked = true;
                Ok(Pumped::Blocked)
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => Ok(Pumped::More),
            Err(e) => Err(e),
        }
    }

    /// Whether the body of this frame goes by itself, lent.
    fn lends(&self, item: &Item) -> bool {
        item.body_length() >= lent::LEAST && self.lent.as_ref().is_some_and(Lent::goes_on)
    }

    /// Sends what is left of the front frame's head, or lends a turn of its body. Heads are copied: they move with the queue.
    fn lend(&mut self, fd: RawFd, done: &mut impl FnMut(u64)) -> io::Result<Pumped> {
        let (Some(front), Some(lent)) = (self.items.front(), &mut self.lent) else {
            return Ok(Pumped::Empty);
        };
        let head = front.head.bytes();
        if self.sent < head.len() {
            let head = &head[self.sent..];
            // SAFETY: the part is `head`, borrowed for the length of the call.
            let sent =
                unsafe { socket::send(fd, &mut [socket::part(head.as_ptr(), head.len())], How::WithMore) };
            return self.took(sent, done);
        }
        let from = self.sent - head.len();
        let Some(body) = &front.body else { return Ok(Pumped::Empty) };
        let rest = (body.length() - from).min(TURN_BYTES);
        let (arena, at) = body.place();
        let part = || [socket::part(arena.at(at + from, rest), rest)];
        // SAFETY: the item keeps the arena alive, and its owner leaves the bytes alone until it is done: until the kernel has said so
        // it stays here, or in `lent`; `leaving` keeps both where the connection ends before that.
        let mut sent = unsafe { socket::send(fd, &mut part(), How::Lent) };
        match &sent {
            Ok(_) => {
                lent.called();
                self.lends_front = true;
            }
            // As much is lent as the system allows (net.core.optmem_max, RLIMIT_MEMLOCK).
            Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => {
                // SAFETY: as above, and it is read during the call only.
                sent = unsafe { socket::send(fd, &mut part(), How::Now) };
            }
            Err(_) => {}
        }
        self.took(sent, done)
    }

    fn push(&mut self, item: Item) {
        match item.origin {
            Origin::Posted(_) => self.posted += 1,
            Origin::Answer(_) => self.answers += 1,
        }
        self.items.push_back(item);
    }

    /// Fills `parts` with the next bytes, at most about [`TURN_BYTES`]; how many parts.
    fn gather(&self, parts: &mut [Part]) -> usize {
        let (mut count, mut bytes, mut skip) = (0, 0, self.sent);
        for item in &self.items {
            if count + 2 > parts.len() || bytes >= TURN_BYTES || self.lends(item) {
                break;
            }
            let head = item.head.bytes();
            if skip < head.len() {
                let head = &head[skip..];
                parts[count] = socket::part(head.as_ptr(), head.len());
                count += 1;
                bytes += head.len();
                skip = 0;
            } else {
                skip -= head.len();
            }
            if let Some(body) = item.body.as_ref().filter(|b| b.length() > skip) {
                let rest = (body.length() - skip).min(TURN_BYTES);
                let (arena, at) = body.place();
                parts[count] = socket::part(arena.at(at + skip, rest), rest);
                count += 1;
                bytes += rest;
                if skip + rest < body.length() {
                    break;
                }
            }
            skip = 0;
        }
        count
    }

    fn advance(&mut self, sent: usize, done: &mut impl FnMut(u64)) {
        self.sent += sent;
        while let Some(length) = self.items.front().map(Item::length).filter(|&length| length <= self.sent) {
            self.sent -= length;
            let lends = std::mem::take(&mut self.lends_front);
            let Some((origin, tells)) = self.items.front().map(|item| (item.origin, item.tells())) else {
                break;
            };
            // One that was lent waits no more either: the peer has its bytes, maybe before we hear of it.
            if let Origin::Answer(_) = origin {
                self.answers -= 1;
            }
            match &mut self.lent {
                // What is done means that all before it is: nothing that is told overtakes what was lent.
                Some(lent) if lends || (tells && !lent.is_empty()) => {
                    self.items.pop_front().into_iter().for_each(|item| lent.keep(item));
                    self.take_back(done);
                }
                _ => {
                    self.finish(origin, done);
                    self.items.pop_front();
                }
            }
        }
    }

    /// Finishes what the kernel has done with of what it was lent.
    fn take_back(&mut self, done: &mut impl FnMut(u64)) {
        while let Some(item) = self.lent.as_mut().and_then(Lent::back) {
            self.finish(item.origin, done);
        }
    }

    /// The kernel has done with a frame.
    fn finish(&mut self, origin: Origin, done: &mut impl FnMut(u64)) {
        if let Origin::Posted(context) = origin {
            self.posted -= 1;
            context.into_iter().for_each(done);
        }
    }
}
