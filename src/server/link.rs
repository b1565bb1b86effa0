//! One worker, as one server thread sees it: its slots, its reply ring, and the pulls that wait.

use std::collections::VecDeque;

use super::core::Waiting;
use crate::error::{Error, Result};
use crate::mem::RemoteRegion;
use crate::proto::{HEADER, ReplyHeader, ReplyKind};
use crate::transport::{EndpointId, Refusal, Transport, Write};

/// What a worker granted, and what it was granted.
pub struct Link {
    /// Its endpoint.
    pub endpoint: EndpointId,
    /// Role, rank and process, for messages.
    pub peer: String,
    /// Where pulled values go.
    pub receive: RemoteRegion,
    /// Pulls that wait for their clock or for room.
    pub waiting: VecDeque<Waiting>,
    ring: RemoteRegion,
    ring_entries: u64,
    /// Replies written into the ring, and how many of them the worker has read.
    written: u64,
    read: u64,
    /// Slots that are free again and not yet announced.
    freed: u64,
    /// Slots whose request came over this endpoint and is not done with.
    filled: u64,
    /// Slots freed over this endpoint for a request that had come over an earlier one. Its replay may still be on its way,
    /// and must not free the slot a second time.
    freed_early: u64,
    /// Something besides a pull has to be announced.
    credit_due: bool,
    /// A reply whose values are on their way but whose header found no room.
    stuck: Option<ReplyHeader>,
    /// Once this server takes nothing more: the headers that have not left yet.
    leaving: Option<u32>,
}

impl Link {
    /// A new link to `peer`.
    pub fn new(
        endpoint: EndpointId,
        peer: String,
        ring: RemoteRegion,
        ring_entries: u32,
        receive: RemoteRegion,
    ) -> Link {
        Link {
            endpoint,
            peer,
            receive,
            waiting: VecDeque::new(),
            ring,
            ring_entries: u64::from(ring_entries),
            written: 0,
            read: 0,
            freed: 0,
            filled: 0,
            freed_early: 0,
            credit_due: false,
            stuck: None,
            leaving: None,
        }
    }

    /// A request came that had not been accepted before, in a slot below 64. False when that was not the worker's to fill.
    pub fn fill(&mut self, slot: u32) -> bool {
        let bit = 1u64 << slot;
        let free = (self.filled | self.freed) & bit == 0;
        self.filled |= bit;
        self.freed_early &= !bit;
        free
    }

    /// A request came that had been accepted over an earlier endpoint; `occupied` while it still needs its slot.
    pub fn refill(&mut self, slot: u32, occupied: bool) {
        let bit = 1 << slot;
        if self.freed_early & bit != 0 {
            self.freed_early &= !bit;
        } else {
            self.filled |= bit;
            if !occupied {
                self.free(slot);
            }
        }
    }

    /// A slot is free again.
    pub fn free(&mut self, slot: u32) {
        let bit = 1 << slot;
        if self.filled & bit == 0 {
            self.freed_early |= bit;
        }
        self.filled &= !bit;
        self.freed |= bit;
        self.credit_due = true;
    }

    /// As if the worker had heard of its free slots.
    #[cfg(test)]
    pub fn forget_freed(&mut self) {
        self.freed = 0;
    }

    /// A clock closed.
    pub fn clock_closed(&mut self) {
        self.credit_due = true;
    }

    /// From now on it counts what has not left yet, behind one more header.
    pub fn drain(&mut self) {
        self.leaving = Some(0);
        self.credit_due = true;
    }

    /// A header has left, and with it all that was written before it.
    pub fn header_left(&mut self) {
        if let Some(waiting) = &mut self.leaving {
            *waiting = waiting.saturating_sub(1);
        }
    }

    /// Whether nothing is to be written to the worker, and all that was has left. Only after [`Link::drain`].
    pub fn is_drained(&self) -> bool {
        self.leaving == Some(0) && !self.credit_due && self.stuck.is_none() && self.waiting.is_empty()
    }

    /// The worker has read the replies before `read`.
    pub fn acknowledged(&mut self, read: u64) -> Result<()> {
        if read < self.read || read > self.written {
            let expected = format!("{} to {}", self.read, self.written);
            return Err(Error::protocol(&self.peer, "ring credit", expected, read));
        }
        self.read = read;
        Ok(())
    }

    /// Whether a reply's header can be written now.
    pub fn has_room(&self) -> bool {
        self.stuck.is_none() && self.written - self.read < self.ring_entries
    }

    /// Writes a reply's header, together with whatever credit is due. Only when [`Link::has_room`].
    pub fn reply(&mut self, mut header: ReplyHeader, transport: &mut dyn Transport) -> Result<()> {
        header.freed = self.freed;
        header.sequence = self.written;
        self.freed = 0;
        self.credit_due = false;
        self.write_header(header, transport)
    }

    /// Announces credit that no reply took along.
    pub fn settle(&mut self, closed: u64, epoch: u32, transport: &mut dyn Transport) -> Result<()> {
        if let Some(header) = self.stuck.take() {
            self.write_header(header, transport)?;
        }
        if !self.credit_due || !self.has_room() {
            return Ok(());
        }
        let header = ReplyHeader {
            kind: ReplyKind::Credit,
            chain: 0,
            sequence: 0,
            closed,
            version: 0,
            freed: 0,
            epoch,
            count: 0,
            tag: 0,
        };
        self.reply(header, transport)
    }

    fn write_header(&mut self, header: ReplyHeader, transport: &mut dyn Transport) -> Result<()> {
        let index = header.sequence % self.ring_entries;
        let write = Write {
            header: Some(header.encode()),
            body: None,
            remote: self.ring,
            offset: index * HEADER as u64,
            imm: Some(index as u32),
            context: self.leaving.map(|_| 0),
        };
        match transport.write(self.endpoint, write) {
            Ok(()) => {
                self.written = header.sequence + 1;
                self.leaving = self.leaving.map(|waiting| waiting + 1);
                Ok(())
            }
            // Not connected: not yet, and it goes out then, or no more, and it goes with the link.
            Err(rejected) if matches!(rejected.refusal, Refusal::Full | Refusal::NotConnected) => {
                self.stuck = Some(header);
                Ok(())
            }
            Err(rejected) => {
                Err(Error::PeerLost { peer: self.peer.clone(), reason: rejected.refusal.to_string() })
            }
        }
    }
}
