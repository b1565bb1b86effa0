//! One worker, as one server thread sees it: its slots, its reply ring, and the pulls that wait.

use std::collections::VecDeque;

use super::core::Waiting;
use crate::error::{Error, Result};
use crate::mem::RemoteRegion;
use crate::proto::{HEADER, MAX_REGIONS, ReplyHeader, ReplyKind};
use crate::transport::{EndpointId, Refusal, Transport, Write};
use crate::types::TableId;

/// What a transport reports done: a header, while this server drains; or values that lay in a long reply buffer.
const HEADER_LEFT: u64 = 0;
pub const BUFFER_BACK: u64 = 1;

/// What a worker may read one-sidedly, and is to be told of.
#[derive(Debug, Clone, Copy)]
pub struct Published {
    /// Of which table.
    pub table: TableId,
    /// Where, and by which key.
    pub remote: RemoteRegion,
    /// One for each bucket that this thread holds.
    pub records: u32,
}

/// What a worker granted, and what it was granted.
pub struct Link {
    /// Its endpoint.
    pub endpoint: EndpointId,
    /// Role, rank and process, for messages.
    pub peer: String,
    /// Where pulled values go, by number: the receive memory, then what the worker has announced.
    regions: [Option<RemoteRegion>; MAX_REGIONS],
    /// Regions that were withdrawn and not yet acknowledged.
    withdrawn: u64,
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
    /// Slots, among `filled`, of pushes whose rejection has to be told.
    rejected: u64,
    /// What the worker is still to be told of.
    published: VecDeque<Published>,
    /// Something besides a pull has to be announced.
    credit_due: bool,
    /// A reply whose values are on their way but whose header found no room.
    stuck: Option<ReplyHeader>,
    /// Long reply buffers whose values have not left yet.
    pub lent: u32,
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
        let mut regions = [None; MAX_REGIONS];
        regions[0] = Some(receive);
        Link {
            endpoint,
            peer,
            regions,
            withdrawn: 0,
            waiting: VecDeque::new(),
            ring,
            ring_entries: u64::from(ring_entries),
            written: 0,
            read: 0,
            freed: 0,
            filled: 0,
            rejected: 0,
            published: VecDeque::new(),
            credit_due: false,
            stuck: None,
            lent: 0,
            leaving: None,
        }
    }

    /// A region that the worker announced and has not withdrawn.
    pub fn region(&self, number: u8) -> Option<RemoteRegion> {
        self.regions.get(usize::from(number)).copied().flatten()
    }

    /// Pulls may name a region from now on; `number` is below [`MAX_REGIONS`].
    pub fn announce(&mut self, number: u8, region: RemoteRegion) -> Result<()> {
        let place = &mut self.regions[usize::from(number)];
        if place.is_some() || !region.rights.may_write() {
            let expected = "a number that is not in use, and the right to write";
            let found = format!("number {number}, rights {:?}", region.rights);
            return Err(Error::protocol(&self.peer, "region", expected, found));
        }
        *place = Some(region);
        Ok(())
    }

    /// No pull may name a region any more. What was written to it lies there before the acknowledgement does.
    pub fn withdraw(&mut self, number: u8) -> Result<()> {
        let awaited = self.waiting.iter().any(|w| w.region() == number);
        if awaited || self.regions[usize::from(number)].take().is_none() {
            let expected = "an announced region that no pull under way names";
            return Err(Error::protocol(&self.peer, "region", expected, number));
        }
        self.withdrawn |= 1 << number;
        self.credit_due = true;
        Ok(())
    }

    /// A request came that had not been accepted before, in a slot below 64. False when that was not the worker's to fill.
    pub fn fill(&mut self, slot: u32) -> bool {
        let bit = 1u64 << slot;
        let free = (self.filled | self.freed) & bit == 0;
        self.filled |= bit;
        free
    }

    /// A request came that had been accepted over an earlier endpoint; `occupied` while it still needs its slot.
    pub fn refill(&mut self, slot: u32, occupied: bool) {
        self.filled |= 1 << slot;
        if !occupied {
            self.free(slot);
        }
    }

    /// A slot's request is done with. One that came over an earlier endpoint is not given back before its replay has come:
    /// the worker would fill the slot anew, and the replay, written before, would find another request in it.
    pub fn free(&mut self, slot: u32) {
        let bit = 1 << slot;
        if self.filled & bit != 0 {
            self.filled &= !bit;
            self.freed |= bit;
            self.credit_due = true;
        }
    }

    /// Pieces of the push in a slot were rejected. As with [`Link::free`], of one that came over an earlier endpoint it is told
    /// when its replay has come.
    pub fn reject(&mut self, slot: u32) {
        self.rejected |= self.filled & 1 << slot;
    }

    /// A slot whose push's rejection can be told now: it is free with the next reply, which must be that.
    pub fn next_rejected(&mut self) -> Option<u32> {
        if self.rejected == 0 || !self.has_room() {
            return None;
        }
        let slot = self.rejected.trailing_zeros();
        self.rejected &= self.rejected - 1;
        self.free(slot);
        Some(slot)
    }

    /// As if the worker had heard of its free slots.
    #[cfg(test)]
    pub fn forget_freed(&mut self) {
        self.freed = 0;
    }

    /// The worker may read something one-sidedly, and is told with the next [`Link::settle`].
    pub fn publish(&mut self, published: Published) {
        self.published.push_back(published);
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

    /// What was written with a context has left: a header, and with it all that was written before it, or values.
    pub fn done(&mut self, context: u64) {
        if context == BUFFER_BACK {
            self.lent = self.lent.saturating_sub(1);
        } else if let Some(waiting) = &mut self.leaving {
            *waiting = waiting.saturating_sub(1);
        }
    }

    /// Whether nothing is to be written to the worker, and all that was has left. Only after [`Link::drain`].
    pub fn is_drained(&self) -> bool {
        let told = self.rejected == 0 && !self.credit_due && self.stuck.is_none();
        self.leaving == Some(0) && told && self.waiting.is_empty()
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
        header.withdrawn = self.withdrawn;
        (self.freed, self.withdrawn) = (0, 0);
        self.credit_due = false;
        self.write_header(header, transport)
    }

    /// Writes the header that found no room, if there is one. Before anything else: only then there is room for more.
    pub fn resume(&mut self, transport: &mut dyn Transport) -> Result<()> {
        match self.stuck.take() {
            Some(header) => self.write_header(header, transport),
            None => Ok(()),
        }
    }

    /// Tells what can be read, and announces credit that no reply took along.
    pub fn settle(&mut self, closed: u64, epoch: u32, transport: &mut dyn Transport) -> Result<()> {
        let credit = ReplyHeader {
            kind: ReplyKind::Credit,
            chain: 0,
            sequence: 0,
            closed,
            version: 0,
            freed: 0,
            epoch,
            count: 0,
            tag: 0,
            bucket: 0,
            withdrawn: 0,
        };
        while self.has_room()
            && let Some(Published { table, remote, records }) = self.published.pop_front()
        {
            let (kind, version) = (ReplyKind::Published, remote.address);
            let header =
                ReplyHeader { kind, version, count: remote.key, tag: table, bucket: records, ..credit };
            self.reply(header, transport)?;
        }
        if !self.credit_due || !self.has_room() {
            return Ok(());
        }
        self.reply(credit, transport)
    }

    fn write_header(&mut self, header: ReplyHeader, transport: &mut dyn Transport) -> Result<()> {
        let index = header.sequence % self.ring_entries;
        let write = Write {
            header: Some(header.encode()),
            body: None,
            remote: self.ring,
            offset: index * HEADER as u64,
            imm: Some(index as u32),
            context: self.leaving.map(|_| HEADER_LEFT),
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
