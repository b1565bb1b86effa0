//! The send side of one connection: a bounded queue of frames, many of which leave with one system call.

use std::collections::VecDeque;
use std::io;
use std::os::fd::RawFd;

use super::frame::{FRAME, Frame};
use super::socket::{self, NO_PART, Part};
use crate::mem::{RegionId, RegionSlice};
use crate::transport::{HEADER, MAX_SEND, Message, Payload};

/// Parts of one vectored call; a frame takes one or two. Many are for many short frames, such as the answers to a batch: a pull of
/// a few values takes three parts, and 64 pulls share a slot.
const FEW: usize = 64;
const MANY: usize = 256;
/// Most bytes offered to the kernel at once, so that one endpoint can't keep the thread for long.
const TURN_BYTES: usize = 1 << 20;
/// Longest head: a frame header, then a whole message or the header of a write.
const HEAD: usize = FRAME + MAX_SEND;
const _: () = assert!(HEADER <= MAX_SEND);

/// What a queued frame is to the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// Posted by the caller, counts against the queue's depth; `Some` is reported when the kernel has all bytes.
    Posted(Option<u64>),
    /// The answer to the peer's read of this grant.
    Answer(u32),
}

#[derive(Debug)]
struct Item {
    head: [u8; HEAD],
    head_length: usize,
    body: Option<RegionSlice>,
    /// Keeps the body as it is until the item is gone.
    _keeper: Option<Payload>,
    origin: Origin,
}

impl Item {
    fn new(
        frame: Frame,
        head: &[u8],
        body: Option<RegionSlice>,
        keeper: Option<Payload>,
        origin: Origin,
    ) -> Item {
        let mut out =
            Item { head: [0; HEAD], head_length: FRAME + head.len(), body, _keeper: keeper, origin };
        out.head[..FRAME].copy_from_slice(&frame.encode());
        out.head[FRAME..out.head_length].copy_from_slice(head);
        out
    }

    fn length(&self) -> usize {
        self.head_length + self.body.as_ref().map_or(0, |b| b.length)
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
    /// The socket took less than it was offered and has not become writable since.
    pub blocked: bool,
}

impl Tx {
    /// An empty queue.
    pub fn new(depth: usize) -> Tx {
        Tx { items: VecDeque::with_capacity(depth.min(64)), sent: 0, posted: 0, answers: 0, blocked: false }
    }

    /// Frames that the caller posted and the kernel does not have.
    pub fn posted(&self) -> usize {
        self.posted
    }

    /// Answers to the peer's reads that the kernel does not have.
    pub fn answers(&self) -> usize {
        self.answers
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Whether an answer from this grant waits or is half sent.
    pub fn answers_from(&self, key: u32) -> bool {
        self.answers > 0 && self.items.iter().any(|i| i.origin == Origin::Answer(key))
    }

    /// Whether a body in this region waits or is half sent.
    pub fn sends_from(&self, region: RegionId) -> bool {
        self.items.iter().any(|i| i.body.as_ref().is_some_and(|b| b.region == region))
    }

    /// Queues a write. `frame` says its length.
    pub fn write(
        &mut self,
        frame: Frame,
        header: Option<&[u8; HEADER]>,
        body: Option<Payload>,
        context: Option<u64>,
    ) {
        let head: &[u8] = header.map_or(&[], |h| h);
        let slice = body.as_ref().map(Payload::slice);
        self.push(Item::new(frame, head, slice, body, Origin::Posted(context)));
    }

    /// Queues a message.
    pub fn send(&mut self, message: &Message) {
        let bytes = message.bytes();
        let frame = Frame::Send { length: bytes.len() as u32 };
        self.push(Item::new(frame, bytes, None, None, Origin::Posted(None)));
    }

    /// Queues a read request.
    pub fn request(&mut self, frame: Frame) {
        self.push(Item::new(frame, &[], None, None, Origin::Posted(None)));
    }

    /// Queues the answer to the peer's read `read` of grant `key`.
    pub fn answer(&mut self, read: u64, key: u32, bytes: RegionSlice) {
        let frame = Frame::ReadResponse { length: bytes.length as u32, read };
        self.push(Item::new(frame, &[], Some(bytes), None, Origin::Answer(key)));
    }

    /// Offers the kernel one turn of bytes, and calls `done` with the context of each write that it has wholly.
    pub fn pump(&mut self, fd: RawFd, mut done: impl FnMut(u64)) -> io::Result<Pumped> {
        match self.items.len() {
            0 => Ok(Pumped::Empty),
            n if 2 * n <= FEW => self.offer::<FEW>(fd, &mut done),
            _ => self.offer::<MANY>(fd, &mut done),
        }
    }

    fn offer<const PARTS: usize>(&mut self, fd: RawFd, done: &mut impl FnMut(u64)) -> io::Result<Pumped> {
        let mut parts = [NO_PART; PARTS];
        let count = self.gather(&mut parts);
        // SAFETY: `gather` made the parts from heads, which stay in the queue untouched during the call, and from region
        // slices, whose arenas the queued items keep alive and whose range was checked when they were posted.
        match unsafe { socket::send(fd, &mut parts[..count]) } {
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
            if count + 2 > parts.len() || bytes >= TURN_BYTES {
                break;
            }
            if skip < item.head_length {
                let head = &item.head[skip..item.head_length];
                parts[count] = socket::part(head.as_ptr(), head.len());
                count += 1;
                bytes += head.len();
                skip = 0;
            } else {
                skip -= item.head_length;
            }
            if let Some(body) = item.body.as_ref().filter(|b| b.length > skip) {
                let rest = (body.length - skip).min(TURN_BYTES);
                parts[count] = socket::part(body.arena.at(body.offset + skip, rest), rest);
                count += 1;
                bytes += rest;
                if skip + rest < body.length {
                    break;
                }
            }
            skip = 0;
        }
        count
    }

    fn advance(&mut self, sent: usize, done: &mut impl FnMut(u64)) {
        self.sent += sent;
        while let Some(front) = self.items.front() {
            let length = front.length();
            if self.sent < length {
                break;
            }
            self.sent -= length;
            match front.origin {
                Origin::Posted(context) => {
                    self.posted -= 1;
                    if let Some(context) = context {
                        done(context);
                    }
                }
                Origin::Answer(_) => self.answers -= 1,
            }
            self.items.pop_front();
        }
    }
}
