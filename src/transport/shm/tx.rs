//! The send side of one connection: operations that wait for room in the ring, and those that the peer has not taken yet.
//!
//! Short bodies are copied into the ring. Longer ones stay where they are and the peer takes them from there, if their arena can be
//! shown to it; else they go through the ring in parts.

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use super::frame::{Frame, Kind, Source};
use super::socket;
use crate::mem::ring::{OutOfStep, Producer, cells};
use crate::mem::{Arena, RegionId, RegionSlice};
use crate::transport::{HEADER, Message, Payload};

/// The longest body that is copied into the ring, in bytes, when it could be taken from where it lies.
const SHORT: usize = 2048;
/// The most bytes that one entry of the ring brings with it.
const PART: usize = 8192;
const _: () = assert!(PART.is_multiple_of(HEADER) && PART <= u16::MAX as usize);
/// Regions that one peer can be shown at a time. Part of the protocol: the peer shows no more either.
pub(super) const MAX_SHOWN: usize = 128;

/// What an operation is to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    /// The caller posted it.
    Posted,
    /// The answer to a read, from this grant.
    Answer(u32),
    /// The peer forgets the region in this place.
    Forget(usize),
}

/// An operation that has not gone into the ring whole.
#[derive(Debug)]
struct Op {
    what: What,
    kind: Kind,
    /// A write's header, or a message.
    head: Message,
    body: Option<Payload>,
    context: Option<u64>,
    /// Its entry is in the ring, and so much of the body.
    begun: Option<usize>,
}

/// An operation in the ring.
#[derive(Debug)]
struct Flying {
    what: What,
    /// It is done when the peer has taken this many cells.
    end: u64,
    /// What the peer takes from where it lies.
    body: Option<Payload>,
    context: Option<u64>,
}

impl Flying {
    /// Somebody waits for it to be done, or for its buffer.
    fn is_awaited(&self) -> bool {
        self.context.is_some() || matches!(self.body, Some(Payload::Owned(_)))
    }

    /// It keeps what can be written elsewhere meanwhile: better let go of soon, but nobody waits for it.
    fn is_pinned(&self) -> bool {
        matches!(self.body, Some(Payload::Published(_)))
    }
}

/// A number by which the peer knows one of our regions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Free,
    Shown {
        region: RegionId,
        /// Its descriptor, which tells its arena from others.
        file: RawFd,
        bytes: usize,
    },
    /// The peer has not taken the word that it may forget it.
    Leaving {
        bytes: usize,
    },
}

impl Place {
    fn bytes(self) -> usize {
        match self {
            Place::Free => 0,
            Place::Shown { bytes, .. } | Place::Leaving { bytes } => bytes,
        }
    }

    fn shows(self, wanted: RegionId) -> bool {
        matches!(self, Place::Shown { region, .. } if region == wanted)
    }
}

/// See the module's head.
#[derive(Debug)]
pub(super) struct Tx {
    pub producer: Producer,
    queue: VecDeque<Op>,
    flying: VecDeque<Flying>,
    /// Those of the flying that somebody waits for, and those that are pinned.
    awaited: usize,
    pinned: usize,
    shown: Vec<Place>,
    /// Bytes that we show at most: as many as we would let a peer show us.
    max_shown: usize,
    /// Operations of the caller's that there may be at a time.
    depth: usize,
    /// Operations of the caller's, and answers, that are not done.
    posted: usize,
    answers: usize,
    /// Something was published since the peer was last asked whether it sleeps.
    unrung: bool,
}

impl Tx {
    /// Into a ring, with room for `depth` operations, from regions of at most `max_shown` bytes together.
    pub fn new(producer: Producer, depth: usize, max_shown: usize) -> Tx {
        Tx {
            producer,
            queue: VecDeque::new(),
            flying: VecDeque::with_capacity(depth),
            awaited: 0,
            pinned: 0,
            shown: Vec::new(),
            max_shown,
            depth,
            posted: 0,
            answers: 0,
            unrung: false,
        }
    }

    /// Answers that the peer has not taken.
    pub fn answers(&self) -> usize {
        self.answers
    }

    /// Takes a message, a write or a request. What is short, and finds nothing before it and room, goes into the ring at once; the peer
    /// is shown it by [`Tx::pump`].
    pub fn post(&mut self, kind: Kind, head: &[u8], body: Option<Payload>, context: Option<u64>) {
        self.posted += 1;
        if self.queue.is_empty() && self.put_short(kind, head, body.as_ref()) {
            self.fly(Flying { what: What::Posted, end: self.producer.whole(), body: None, context });
            return;
        }
        // A header, or a message, which are never longer.
        let head = Message::new(head).unwrap_or(Message::NOTHING);
        self.queue.push_back(Op { what: What::Posted, kind, head, body, context, begun: None });
    }

    /// Puts an operation into the ring whole, with its body. False when that is long, or there is no room; a count that can't be is
    /// found again by [`Tx::pump`].
    fn put_short(&mut self, kind: Kind, head: &[u8], body: Option<&Payload>) -> bool {
        let length = body.map_or(0, Payload::length);
        let needed = 1 + cells(head.len() + length);
        if length > SHORT || !self.producer.has_room(needed).unwrap_or(false) {
            return false;
        }
        // At most SHORT and a message.
        let frame = Frame { kind, inline: (head.len() + length) as u16, source: None };
        self.producer.put(0, &frame.encode());
        if !head.is_empty() {
            self.producer.put(1, head);
        }
        if let Some((arena, offset)) = body.map(Payload::place) {
            // With a body the head is nothing, or the header: one cell.
            self.producer.put_from(1 + cells(head.len()), arena, offset, length);
        }
        self.producer.advance(needed);
        true
    }

    fn fly(&mut self, flying: Flying) {
        self.awaited += usize::from(flying.is_awaited());
        self.pinned += usize::from(flying.is_pinned());
        self.flying.push_back(flying);
    }

    /// Queues the answer to a read from grant `key`.
    pub fn answer(&mut self, kind: Kind, from: RegionSlice, key: u32) {
        self.answers += 1;
        let (head, body) = (Message::NOTHING, Some(Payload::Pinned(from)));
        self.queue.push_back(Op { what: What::Answer(key), kind, head, body, context: None, begun: None });
    }

    /// Lets the peer forget a region that no operation uses.
    pub fn forget(&mut self, region: RegionId) {
        let Some(place) = self.shown.iter().position(|p| p.shows(region)) else { return };
        self.shown[place] = Place::Leaving { bytes: self.shown[place].bytes() };
        let kind = Kind::Forget { region: place as u32 };
        let (what, head) = (What::Forget(place), Message::NOTHING);
        self.queue.push_back(Op { what, kind, head, body: None, context: None, begun: None });
    }

    fn bodies(&self) -> impl Iterator<Item = (What, &Payload)> {
        let queued = self.queue.iter().map(|op| (op.what, op.body.as_ref()));
        let flying = self.flying.iter().map(|op| (op.what, op.body.as_ref()));
        queued.chain(flying).filter_map(|(what, body)| Some((what, body?)))
    }

    /// Whether an operation that is not done takes its body from this region.
    pub fn sends_from(&self, region: RegionId) -> bool {
        self.bodies().any(|(_, body)| body.region() == region)
    }

    /// Whether an answer from this grant has not been taken.
    pub fn answers_from(&self, key: u32) -> bool {
        self.bodies().any(|(what, _)| what == What::Answer(key))
    }

    /// Whether somebody may wait for what the peer takes: for room, a completion, or a buffer to be given back. A peer that copies a long
    /// answer must not wake us behind each of its parts for the pins' sake: they are let go of before anything else is done.
    pub fn matters(&self) -> bool {
        self.awaited > 0 || !self.queue.is_empty() || self.is_full()
    }

    /// Whether the caller's next operation has to wait until the peer has taken one.
    pub fn is_full(&self) -> bool {
        self.posted >= self.depth
    }

    /// Whether the peer is shown an arena, or may be beside what is shown already. One number, and a sixteenth of the bytes, are left to
    /// buffers that answers are copied into where it may not.
    pub fn may_show(&self, arena: &Arena) -> bool {
        let Some(file) = arena.file().map(|file| file.as_raw_fd()) else { return false };
        let (mut places, mut bytes) = (0, 0);
        for place in &self.shown {
            if matches!(place, Place::Shown { file: theirs, .. } if *theirs == file) {
                return true;
            }
            places += usize::from(*place != Place::Free);
            bytes += place.bytes();
        }
        places + 1 < MAX_SHOWN && bytes.saturating_add(arena.len()) <= self.max_shown - self.max_shown / 16
    }

    /// Whether it is worth asking what the peer has taken: to ask costs a cache line that both sides write.
    pub fn is_due(&self) -> bool {
        self.matters() || self.pinned > 0 || self.answers > 0 || self.flying.len() >= self.depth / 2
    }

    /// Lets go of what the peer has taken; `done` is told the contexts. False when that was nothing.
    pub fn retire(&mut self, mut done: impl FnMut(u64)) -> Result<bool, OutOfStep> {
        let flying = self.flying.len();
        if flying == 0 {
            return Ok(false);
        }
        let taken = self.producer.taken()?;
        while let Some(op) = self.flying.pop_front_if(|op| op.end <= taken) {
            self.awaited -= usize::from(op.is_awaited());
            self.pinned -= usize::from(op.is_pinned());
            match op.what {
                What::Posted => self.posted -= 1,
                What::Answer(_) => self.answers -= 1,
                What::Forget(place) => self.shown[place] = Place::Free,
            }
            op.context.into_iter().for_each(&mut done);
        }
        Ok(self.flying.len() < flying)
    }

    /// Moves operations into the ring while there is room, and shows them to the peer.
    pub fn pump(&mut self, socket: &OwnedFd) -> Result<(), OutOfStep> {
        let filled = if self.queue.is_empty() { Ok(()) } else { self.fill(socket) };
        self.unrung |= self.producer.publish();
        filled
    }

    fn fill(&mut self, socket: &OwnedFd) -> Result<(), OutOfStep> {
        while let Some(op) = self.queue.front_mut() {
            let slice = op.body.as_ref().map(Payload::slice);
            let length = slice.as_ref().map_or(0, |s| s.length);
            let head = if op.begun.is_some() { &[] } else { op.head.bytes() };
            let mut source = None;
            if let Some(slice) = slice.as_ref().filter(|_| op.begun.is_none() && length > SHORT) {
                let lent = matches!(op.body, Some(Payload::Lent(_)));
                source = show(&mut self.shown, self.max_shown, slice, socket).map(|place| Source {
                    region: place as u32,
                    offset: slice.offset as u64,
                    // A loan that nobody is told of can't be given back.
                    lent: lent && matches!(op.kind, Kind::Write { imm: Some(_), .. }),
                });
            }
            let sent = op.begun.unwrap_or(0);
            let part = if source.is_some() { 0 } else { (length - sent).min(PART - head.len()) };
            let needed = 1 + cells(head.len() + part);
            if !self.producer.has_room(needed)? {
                return Ok(());
            }
            let kind = if op.begun.is_some() { Kind::Part } else { op.kind };
            // At most PART.
            let frame = Frame { kind, inline: (head.len() + part) as u16, source };
            self.producer.put(0, &frame.encode());
            self.producer.put(1, head);
            if let Some(slice) = &slice {
                // With a body the head is nothing, or the header: one cell.
                self.producer.put_from(1 + cells(head.len()), &slice.arena, slice.offset + sent, part);
            }
            self.producer.advance(needed);
            if part > SHORT {
                // The peer takes it while the next part is copied.
                self.unrung |= self.producer.publish();
            }
            op.begun = Some(sent + part);
            if source.is_some() || sent + part == length {
                let Some(Op { what, body, context, .. }) = self.queue.pop_front() else { break };
                let body = body.filter(|_| source.is_some());
                self.fly(Flying { what, end: self.producer.whole(), body, context });
            }
        }
        Ok(())
    }

    /// Rings once for all that was published since, if the peer sleeps.
    pub fn ring(&mut self, socket: &OwnedFd) {
        if std::mem::take(&mut self.unrung) && self.producer.must_wake() {
            socket::ring(socket);
        }
    }
}

impl Drop for Tx {
    /// The peer must not believe what it reads from here on: bodies go back to their owners.
    fn drop(&mut self) {
        self.producer.close();
    }
}

/// The number by which the peer knows the region of a slice. `None` when it can't be shown, or not now.
fn show(shown: &mut Vec<Place>, max_shown: usize, slice: &RegionSlice, socket: &OwnedFd) -> Option<usize> {
    if let Some(place) = shown.iter().position(|p| p.shows(slice.region)) {
        return Some(place);
    }
    let file = slice.arena.file()?;
    let bytes = slice.arena.len();
    let room = max_shown - shown.iter().map(|p| p.bytes()).sum::<usize>();
    let place = shown.iter().position(|p| *p == Place::Free).unwrap_or(shown.len());
    if place >= MAX_SHOWN || bytes > room {
        return None;
    }
    let packet = Showing { place: place as u32, bytes: bytes as u64 }.encode();
    socket::send(socket, &packet, Some(file)).ok()?;
    if place == shown.len() {
        shown.push(Place::Free);
    }
    shown[place] = Place::Shown { region: slice.region, file: file.as_raw_fd(), bytes };
    Some(place)
}

/// The packet that brings the descriptor of a region.
///
/// ```text
/// 0  1 kind   1 (0 is the doorbell)
/// 1  4 place  the number by which entries name the region
/// 5  8 bytes  its length
/// ```
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Showing {
    pub place: u32,
    pub bytes: u64,
}

impl Showing {
    fn encode(&self) -> [u8; 13] {
        let mut out = [1; 13];
        out[1..5].copy_from_slice(&self.place.to_le_bytes());
        out[5..].copy_from_slice(&self.bytes.to_le_bytes());
        out
    }

    /// The inverse of `encode`; `None` for anything else.
    pub fn decode(packet: &[u8]) -> Option<Showing> {
        let (place, bytes) = packet.strip_prefix(&[1])?.split_first_chunk::<4>()?;
        Some(Showing { place: u32::from_le_bytes(*place), bytes: u64::from_le_bytes(bytes.try_into().ok()?) })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // in a test a failure is a panic
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::mem::Published;
    use crate::mem::ring::{Consumer, RING, Ring};

    /// Numbers and bytes are kept for buffers that answers are copied into: what may not be shown is not sent from where it lies.
    #[test]
    fn what_may_be_shown_leaves_room_for_more() {
        let (socket, _theirs) = socket_pair();
        let ring = Ring::new(Arena::new(RING).unwrap(), 0);
        let mut tx = Tx::new(Producer::new(ring), 4, 64 << 20);
        let arenas: Vec<Arc<Arena>> = (0..MAX_SHOWN).map(|_| Arena::shared(4096).unwrap()).collect();
        let mut shown = |number: usize| {
            let arena = arenas[number].clone();
            let slice = RegionSlice { arena, region: RegionId(number as u32), offset: 0, length: 4096 };
            show(&mut tx.shown, tx.max_shown, &slice, &socket);
            tx.may_show(&arenas[MAX_SHOWN - 1])
        };
        assert!((0..MAX_SHOWN - 2).all(&mut shown));
        assert!(!shown(MAX_SHOWN - 2), "the last number");
        assert!(tx.may_show(&arenas[5]), "it is shown");
        tx.shown.truncate(1);
        assert!(tx.may_show(&Arena::shared(59 << 20).unwrap()));
        assert!(!tx.may_show(&Arena::shared(61 << 20).unwrap()), "of 64 MiB");
        assert!(!tx.may_show(&Arena::new(4096).unwrap()), "private");
    }

    /// A short operation is in the ring when it is posted, and is shown with the next turn; behind one that waits it waits, too.
    #[test]
    fn what_is_short_goes_into_the_ring_at_once_but_not_before_others() {
        let (socket, _theirs) = socket_pair();
        let ring = Ring::new(Arena::new(RING).unwrap(), 0);
        let mut consumer = Consumer::new(ring.clone());
        let mut tx = Tx::new(Producer::new(ring), 8, 64 << 20);
        let send =
            |tx: &mut Tx, text: &[u8]| tx.post(Kind::Send { length: text.len() as u32 }, text, None, None);
        send(&mut tx, b"first");
        assert_eq!((tx.producer.whole(), consumer.ready()), (2, Ok(0)));
        let arena = Arena::new(SHORT + 1).unwrap();
        let body = RegionSlice { arena, region: RegionId(0), offset: 0, length: SHORT + 1 };
        let kind = Kind::Write { key: 1, offset: 0, length: body.length as u32, imm: None };
        tx.post(kind, &[], Some(Payload::Pinned(body)), None);
        send(&mut tx, b"last");
        assert_eq!(tx.producer.whole(), 2);
        tx.pump(&socket).unwrap();
        let mut kinds = Vec::new();
        while consumer.ready().unwrap() > 0 {
            let mut entry = [0; 64];
            consumer.get(0, &mut entry);
            let frame = Frame::decode(&entry).unwrap();
            kinds.push(frame.kind);
            consumer.advance(1 + cells(frame.inline.into()));
        }
        assert_eq!(kinds, [Kind::Send { length: 5 }, kind, Kind::Send { length: 4 }]);
    }

    /// A peer that takes a pinned answer wakes nobody by it, and the pin is given back with the next thing that is done.
    #[test]
    fn nobody_waits_for_a_pinned_answer_to_be_taken() {
        let (socket, _theirs) = socket_pair();
        let arena = Arena::new(RING).unwrap();
        let mut tx = Tx::new(Producer::new(Ring::new(arena.clone(), 0)), 4, 64 << 20);
        let mut consumer = Consumer::new(Ring::new(arena, 0));
        let kind = crate::mem::Kind::Shared;
        let mut parameters = Published::of(kind, 1024, 1, 1 << 20).unwrap();
        parameters.register(|_| Ok(RegionId(7))).unwrap();
        let write = Kind::Write { key: 0, offset: 0, length: 4096, imm: None };
        for (context, awaited) in [(None, false), (Some(1), true)] {
            let pin = parameters.pin(0, 0, 1024).unwrap();
            tx.post(write, &[], Some(Payload::Published(pin)), context);
            tx.pump(&socket).unwrap();
            assert_eq!((tx.matters(), tx.is_due()), (awaited, true));
            let cells = consumer.ready().unwrap();
            consumer.advance(cells);
            consumer.release();
            tx.retire(|_| ()).unwrap();
            assert_eq!((tx.matters(), tx.is_due()), (false, false));
        }
    }

    fn socket_pair() -> (OwnedFd, OwnedFd) {
        use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::NONBLOCK, None).unwrap()
    }

    #[test]
    fn golden_showing() {
        let showing = Showing { place: 0x0403_0201, bytes: 5 };
        assert_eq!(showing.encode(), [1, 1, 2, 3, 4, 5, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(Showing::decode(&showing.encode()), Some(showing));
        for wrong in [&[][..], &[0], &[1; 12], &[1; 14], &[0; 13]] {
            assert_eq!(Showing::decode(wrong), None);
        }
    }
}
