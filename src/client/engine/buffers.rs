//! Registered buffers: which operations use them, and when they may go.
//!
//! A buffer's memory is in use until each operation on it is done, also when nobody waits for it any more. A buffer that
//! was dropped stays registered until then; after that every server thread that may write to it is told, and acknowledges
//! or loses its endpoint; then its memory is let go.
//!
//! Values that filters change can't leave from a buffer or be written to it by a server thread: they are copied through staging
//! or receive memory.

use std::sync::Arc;

use super::{Engine, Part, Pending, Places};
use crate::error::{Error, Result};
use crate::mem::{Arena, Buf, Floats, RegionId, RegionSlice, Room};
use crate::proto::{Chain, MAX_REGIONS};

/// A buffer, as the engine knows it.
pub struct Registered {
    arena: Arc<Arena>,
    region: RegionId,
    bytes: usize,
    /// Nobody holds it any more.
    dropped: bool,
}

impl Registered {
    /// Its memory, as the transport knows it.
    pub fn memory(&self) -> (Arc<Arena>, RegionId) {
        (self.arena.clone(), self.region)
    }
}

/// Elements of a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// The buffer's number.
    pub buffer: u8,
    /// First element.
    pub start: usize,
    /// One past the last.
    pub end: usize,
}

impl Span {
    fn overlaps(&self, other: &Span) -> bool {
        self.buffer == other.buffer && self.start < other.end && other.start < self.end
    }
}

/// What an operation does to registered buffers.
#[derive(Debug, Clone, Copy, Default)]
pub struct Uses {
    /// A push reads it until it is committed.
    pub read: Option<Span>,
    /// A pull writes it until it is answered.
    pub written: Option<Span>,
}

impl Uses {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.read.is_none() && self.written.is_none()
    }

    fn any(&self, is: impl Fn(&Span) -> bool) -> bool {
        self.read.iter().chain(&self.written).any(is)
    }

    /// Whether reading, or `writing`, a span has to wait until these are done.
    fn forbid(&self, span: &Span, writing: bool) -> bool {
        let hit = |other: &Option<Span>| other.is_some_and(|o| o.overlaps(span));
        hit(&self.written) || writing && hit(&self.read)
    }
}

impl Engine {
    /// Makes memory known; gives the buffer's number.
    pub fn register(&mut self, arena: Arc<Arena>, bytes: usize) -> Result<u8> {
        self.check()?;
        self.retire()?;
        // Number 0 is the receive memory.
        let free = (1..MAX_REGIONS).find(|&n| self.buffers.get(n).is_none_or(Option::is_none));
        let Some(number) = free else {
            let limit = MAX_REGIONS as u64 - 1;
            let resource =
                "registered buffers of a worker, with those whose operations are not done".to_owned();
            return Err(Error::Limit { resource, limit, asked: limit + 1 });
        };
        let region = self.transport.register(arena.clone())?;
        if self.buffers.len() <= number {
            self.buffers.resize_with(number + 1, || None);
        }
        self.buffers[number] = Some(Registered { arena, region, bytes, dropped: false });
        Ok(number as u8)
    }

    /// Bytes of all registered buffers, those included that were dropped and can't go yet.
    pub fn registered_bytes(&self) -> u64 {
        self.buffers.iter().flatten().map(|b| b.bytes as u64).sum()
    }

    /// Refuses a use of a span that an operation under way does not allow.
    pub fn may_use(&mut self, span: &Span, writing: bool, call: &'static str) -> Result<()> {
        if !self.is_busy(|uses| uses.forbid(span, writing)) {
            return Ok(());
        }
        // What ends the operation may have come and not been looked at.
        self.progress()?;
        if !self.is_busy(|uses| uses.forbid(span, writing)) {
            return Ok(());
        }
        let reason = format!(
            "an operation that is not done uses elements {} to {} of the registered buffer: wait for its ticket first",
            span.start, span.end
        );
        Err(Error::Misuse { call, reason })
    }

    fn is_busy(&self, uses: impl Fn(&Uses) -> bool) -> bool {
        self.pending.iter().any(|(_, p)| uses(&p.uses) && !self.is_complete(p))
    }

    /// Nobody holds a buffer any more.
    pub fn drop_buffer(&mut self, number: u8) -> Result<()> {
        if let Some(Some(buffer)) = self.buffers.get_mut(usize::from(number)) {
            buffer.dropped = true;
            self.retiring += 1;
        }
        self.retire()?;
        self.kick();
        Ok(())
    }

    /// Something once no operation can touch a dropped buffer's memory any more.
    pub fn released(&self, number: u8) -> Option<()> {
        // The number may be another buffer's by then; that is not dropped.
        let buffer = self.buffers.get(usize::from(number)).and_then(Option::as_ref);
        buffer.is_none_or(|b| !b.dropped).then_some(())
    }

    /// Lets go of what nobody holds and no operation uses.
    pub(super) fn retire(&mut self) -> Result<()> {
        if self.retiring == 0 {
            return Ok(());
        }
        for number in 1..self.buffers.len() as u8 {
            let place = usize::from(number);
            let Some(region) = self.buffers[place].as_ref().filter(|b| b.dropped).map(|b| b.region) else {
                continue;
            };
            if self.is_busy(|uses| uses.any(|span| span.buffer == number)) {
                continue;
            }
            let mut known = false;
            for link in &mut self.links {
                link.withdraw(number, self.transport.as_mut())?;
                known |= link.regions.knows(number);
            }
            if !known && self.transport.unregister(region) {
                self.buffers[place] = None;
                self.retiring -= 1;
            }
        }
        Ok(())
    }

    /// Forgets dropped tickets whose operations used a buffer and are done by now.
    pub(super) fn sweep(&mut self) {
        if self.quarantined == 0 {
            return;
        }
        for ticket in 0..self.pending.capacity() {
            let Some(pending) = self.pending.get(ticket) else { continue };
            if pending.dropped && !pending.uses.is_empty() && self.is_complete(pending) {
                self.quarantined -= 1;
                self.end(ticket);
            }
        }
    }

    /// Bytes of a span, as the transport knows them; `at` and `count` in elements of the operation.
    pub(super) fn slice(&self, span: &Span, at: usize, count: usize) -> Result<RegionSlice> {
        let buffer = self.buffer(span)?;
        let (arena, region) = (buffer.arena.clone(), buffer.region);
        Ok(RegionSlice { arena, region, offset: (span.start + at) * 4, length: count * 4 })
    }

    /// What writes `count` elements of a span as `chain` makes them; `at` and `count` in elements of the operation.
    pub(super) fn encoder(
        &self,
        span: &Span,
        (at, count): (usize, usize),
        chain: Chain,
    ) -> Result<impl FnMut(&mut Buf, usize) + use<>> {
        let arena = self.buffer(span)?.arena.clone();
        let start = span.start + at;
        Ok(move |body: &mut Buf, body_at: usize| {
            chain.encode(Floats::in_arena(&arena, start * 4, count), body, body_at);
        })
    }

    /// Values that came through filters, and belong in a registered buffer, go there at once. Others come back.
    pub(super) fn deliver(&mut self, ticket: usize, part: Option<Part>) -> Result<Option<Part>> {
        let Some(Part { buf, places: Places::Buffer(at) }) = part else { return Ok(part) };
        let Some(pending) = self.pending.get(ticket) else { return Ok(None) };
        let (chain, Some(span)) = (pending.chain, pending.uses.written) else { return Ok(None) };
        let arena = &self.buffer(&span)?.arena;
        let count = buf.len() / chain.value_bytes();
        // No server thread was asked to write there: it is this operation's alone until the ticket is done.
        chain.decode(&buf, 0, Room::in_arena(arena, (span.start + at) * 4, count));
        self.bytes_copied += buf.len() as u64;
        Ok(None)
    }

    /// Lets a server thread write to a span's buffer.
    pub(super) fn announce(&mut self, link: usize, span: &Span) -> Result<()> {
        if self.links[link].regions.knows(span.buffer) {
            return Ok(());
        }
        let buffer = self.buffer(span)?;
        let known = (buffer.region, buffer.bytes);
        self.links[link].announce(span.buffer, known, self.transport.as_mut())
    }

    fn buffer(&self, span: &Span) -> Result<&Registered> {
        self.buffers.get(usize::from(span.buffer)).and_then(Option::as_ref).ok_or_else(|| Error::Misuse {
            call: "use of a registered buffer",
            reason: format!("there is no buffer {}", span.buffer),
        })
    }

    /// Whether an operation is over: no frame of it is on its way, and its clock is closed where it has to be.
    pub(super) fn is_complete(&self, pending: &Pending) -> bool {
        pending.open == 0 && pending.lists.commits_at.iter().all(|&l| self.links[l].closed > pending.clock)
    }
}
