//! What fills one slot: a request, or a batch of small ones that were queued before it left.
//!
//! A small request is staged in a buffer with room for others behind it. It stays an ordinary frame until a second one
//! joins; then both become parts of a batch, in the order in which they came.

use std::ops::{Deref, DerefMut};

use crate::mem::{Buf, RegionSlice};
use crate::proto::{HEADER, RequestHeader, RequestKind};
use crate::transport::Payload;
use crate::types::{Clock, TableId};

/// The segment of what is sent again, before all others.
pub const AGAIN: u64 = 0;

/// Whom a request concerns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// Nobody: it is void.
    Nobody,
    /// The end of a clock.
    Mark,
    /// This ticket, once its slot comes back.
    Push(usize),
    /// The pull with this tag. Tags are used again, numbers are not.
    Pull { tag: u32, number: u64 },
}

#[derive(Debug)]
struct Part {
    /// Its header's first byte in the buffer.
    at: usize,
    owner: Owner,
    table: Option<TableId>,
}

/// A frame that waits for a slot, fills one, or was accepted and holds pulls that are not answered. It goes from one list to the next
/// several times, so what it is lies elsewhere and stays there.
#[derive(Debug)]
pub struct Outgoing(Box<Content>);

/// See [`Outgoing`].
#[derive(Debug)]
pub struct Content {
    pub header: RequestHeader,
    /// Pulls in it that are not answered.
    pub pulls: u32,
    /// 1 + the clock of its last mark; 0 without one.
    pub marks: Clock,
    /// More may join, as long as it waits. It leaves when the server thread has nothing else to do, or another frame waits behind it.
    pub open: bool,
    /// Its body is nothing but values, which may be read where they lie until the slot comes back.
    pub lends: bool,
    /// Of those that wait, the higher one leaves first; see [`super::lane`].
    pub priority: i8,
    /// [`AGAIN`], or above it by 1 and the marks that were queued before it.
    pub segment: u64,
    body: Option<Payload>,
    /// Where its body begins in the buffer.
    body_at: usize,
    /// Of a frame that is no batch.
    owner: Owner,
    /// Of a batch.
    parts: Vec<Part>,
}

impl Outgoing {
    /// A request by itself, in the memory of one that has ended.
    pub fn alone(
        header: RequestHeader,
        body: Option<Payload>,
        (owner, priority): (Owner, i8),
        spare: Spare,
    ) -> Outgoing {
        let mut frame = spare.0.unwrap_or_else(|| Outgoing(Box::new(Content::ended(header))));
        let parts = std::mem::take(&mut frame.parts);
        *frame.0 = Content { body, owner, priority, parts, ..Content::ended(header) };
        frame.count(&header);
        frame
    }

    /// A small request that others may join in `buf`, in the memory of one that has ended.
    pub fn first(
        header: RequestHeader,
        fill: &mut Fill<'_>,
        mut buf: Buf,
        wanted: (Owner, i8),
        spare: Spare,
    ) -> Outgoing {
        fill(&mut buf, HEADER);
        let mut frame = Outgoing::alone(header, Some(Payload::Owned(buf)), wanted, spare);
        (frame.open, frame.body_at) = (true, HEADER);
        frame
    }

    /// Puts one more request behind those it holds. False, and nothing changed, when there is no room.
    pub fn join(&mut self, mut header: RequestHeader, fill: &mut Fill<'_>, owner: Owner) -> bool {
        let used = self.bytes_as_parts();
        let frame = &mut *self.0;
        let Some(Payload::Owned(buf)) = &mut frame.body else { return false };
        if used + header.part_bytes() > buf.len() {
            return false;
        }
        if frame.header.kind != RequestKind::Batch {
            let first = RequestHeader { sequence: 0, ..frame.header };
            buf.copy_in(0, &first.encode());
            frame.parts.push(Part { at: 0, owner: frame.owner, table: table_of(&frame.header) });
            frame.header = RequestHeader::batch(&first);
            frame.body_at = 0;
        }
        header.sequence = u64::from(frame.header.count);
        buf.copy_in(used, &header.encode());
        fill(buf, used + HEADER);
        frame.parts.push(Part { at: used, owner, table: table_of(&header) });
        frame.header.count += 1;
        frame.header.length = (used + header.part_bytes()) as u32;
        self.count(&header);
        true
    }

    /// Of two lanes' first frames the one with more leaves first.
    pub fn urgency(&self) -> (bool, i8) {
        (self.segment == AGAIN, self.priority)
    }

    /// Whom it concerns, in order.
    pub fn owners(&self) -> impl Iterator<Item = Owner> {
        let alone = self.parts.is_empty().then_some(self.owner);
        alone.into_iter().chain(self.parts.iter().map(|p| p.owner))
    }

    /// The table of each request in it; marks have none.
    pub fn tables(&self) -> impl Iterator<Item = TableId> {
        let alone = if self.parts.is_empty() { table_of(&self.header) } else { None };
        alone.into_iter().chain(self.parts.iter().filter_map(|p| p.table))
    }

    /// Makes void what is not `wanted`. No operation may be reading the buffer.
    pub fn keep(&mut self, wanted: impl Fn(Owner) -> bool) {
        let frame = &mut *self.0;
        let (mut dropped, body) = (0, &mut frame.body);
        let mut drop_unwanted = |owner: &mut Owner| {
            let unwanted = *owner != Owner::Nobody && !wanted(*owner);
            if unwanted {
                dropped += u32::from(matches!(owner, Owner::Pull { .. }));
                *owner = Owner::Nobody;
            }
            unwanted
        };
        if frame.parts.is_empty() {
            frame.header.void |= drop_unwanted(&mut frame.owner);
        }
        for part in &mut frame.parts {
            if drop_unwanted(&mut part.owner)
                && let Some(Payload::Owned(buf)) = body
            {
                let mut bytes = [0; HEADER];
                buf.copy_out(part.at, &mut bytes);
                RequestHeader::make_void(&mut bytes);
                buf.copy_in(part.at, &bytes);
            }
        }
        frame.pulls -= dropped;
    }

    /// Its body, as the transport takes it.
    pub fn body(&self) -> Option<Payload> {
        let length = self.header.length as usize;
        let slice = self.body.as_ref().filter(|_| length > 0)?.slice();
        let slice = RegionSlice { offset: slice.offset + self.body_at, length, ..slice };
        Some(if self.lends { Payload::Lent(slice) } else { Payload::Pinned(slice) })
    }

    /// `N` bytes of a staged body, from byte `at` on; nothing when it is not staged.
    pub fn bytes<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        let Some(Payload::Owned(buf)) = &self.body else { return None };
        let mut bytes = [0; N];
        buf.copy_out(self.body_at + at, &mut bytes);
        Some(bytes)
    }

    /// Gives its buffer back, and its memory to be used again.
    pub fn end(mut self) -> Spare {
        self.body = None;
        self.parts.clear();
        Spare(Some(self))
    }

    fn bytes_as_parts(&self) -> usize {
        if self.header.kind == RequestKind::Batch {
            self.header.length as usize
        } else {
            self.header.part_bytes()
        }
    }

    fn count(&mut self, header: &RequestHeader) {
        match header.kind {
            RequestKind::Pull => self.pulls += 1,
            RequestKind::Mark => self.marks = header.clock + 1,
            RequestKind::Push | RequestKind::Set | RequestKind::Finish | RequestKind::Batch => {}
        }
    }
}

impl Content {
    /// Of a frame without body and parts that concerns nobody.
    fn ended(header: RequestHeader) -> Content {
        Content {
            header,
            pulls: 0,
            marks: 0,
            open: false,
            lends: false,
            priority: 0,
            segment: 0,
            body: None,
            body_at: 0,
            owner: Owner::Nobody,
            parts: Vec::new(),
        }
    }
}

impl Deref for Outgoing {
    type Target = Content;

    fn deref(&self) -> &Content {
        &self.0
    }
}

impl DerefMut for Outgoing {
    fn deref_mut(&mut self) -> &mut Content {
        &mut self.0
    }
}

fn table_of(header: &RequestHeader) -> Option<TableId> {
    match header.kind {
        RequestKind::Push | RequestKind::Pull | RequestKind::Set => Some(header.table),
        RequestKind::Mark | RequestKind::Finish | RequestKind::Batch => None,
    }
}

/// A frame that has ended, so that the next one needs no allocation; by default none.
#[derive(Debug, Default)]
pub struct Spare(Option<Outgoing>);

/// Writes a request's body into a buffer, from a byte on.
pub type Fill<'a> = dyn FnMut(&mut Buf, usize) + 'a;
