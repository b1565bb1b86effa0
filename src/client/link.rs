//! One server thread, as a worker sees it: slots to fill, replies to read, and what waits for room.

use std::collections::VecDeque;
use std::sync::Arc;

use super::frame::{Fill, Outgoing, Owner, Spare};
use super::lane::Lane;
use super::regions::Regions;
use crate::config::WorkerLimits;
use crate::error::{Error, Result};
use crate::mem::{Arena, Pool, RegionId, RemoteRegion, Rights};
use crate::proto::control::RegionBytes;
use crate::proto::{HEADER, ReplyHeader, RequestHeader, WorkerMessage};
use crate::transport::{EndpointId, Message, Refusal, Side, Transport, Write};
use crate::types::{IdMap, MAX_TABLES, TableId};

/// What a server thread granted.
#[derive(Debug, Clone, Copy)]
pub struct Grant {
    pub slots: RemoteRegion,
    pub slot_count: u32,
    pub slot_bytes: u32,
    pub pull_credits: u32,
    /// Places for lists of keys.
    pub key_lists: u32,
}

/// What the server needs to open its end.
#[derive(Debug, Clone)]
pub struct Opening {
    pub address: Vec<u8>,
    pub ring: RegionBytes,
    pub receive: RegionBytes,
}

/// Where a server thread lets this worker read.
#[derive(Debug, Clone, Copy)]
pub struct Published {
    pub address: u64,
    pub key: u32,
    pub records: u32,
}

/// One server thread.
///
/// ```text
///  open ──▶ granted ──▶ connected ──endpoint lost──▶ open …   a new endpoint, the same slots
///                           └─ replay: every filled slot is written again, in the order of its sequence numbers
/// ```
pub struct Link {
    /// Its server's place in the View, and the thread within it.
    pub server: usize,
    pub thread: u32,
    /// The thread's number among the server threads of its host, which says which of several rails leads there.
    number: u32,
    /// The present endpoint; none before the first.
    pub endpoint: Option<EndpointId>,
    /// Server, thread and address, for messages.
    pub peer: String,
    pub connected: bool,
    /// All clocks < closed are closed there.
    pub closed: u64,
    /// What it knows of the worker's registered buffers.
    pub regions: Regions,
    /// What can be read of each table, as the server thread told over this endpoint: the region, and its records.
    pub published: IdMap<TableId, Published>,
    grant: Grant,
    free: u64,
    /// Frames that were sent and whose slots have not come back; their bodies stay as they are until then.
    filled: Vec<Option<Outgoing>>,
    /// Bytes of their bodies, of those that are lent and of the others.
    lent: u64,
    copied: u64,
    /// Slots that a new endpoint has yet to write again.
    replay: VecDeque<u32>,
    /// Pushes, marks, and pulls that must not overtake the pushes of their table.
    queue: Lane,
    /// Pulls that wait for the end of their own clock. They are sent behind its mark and may overtake the rest: sent
    /// earlier they would hold credits that this worker's other pulls, and so its mark, may need.
    pulls: Lane,
    /// Clocks whose marks were sent.
    marked: u64,
    pulls_outstanding: u32,
    sequence: u64,
    /// Bytes that may be under way beyond the first frame.
    window_bytes: u64,
    ring: Arc<Arena>,
    ring_offset: usize,
    /// Replies that may wait to be read.
    pub ring_entries: u32,
    ring_read: u64,
    ring_told: u64,
}

impl Link {
    /// A link to a thread of a server, the `number`th server thread of its host. The ring lies in `ring` from that byte on.
    pub fn new(
        (server, thread, number): (usize, u32, u32),
        peer: String,
        (ring, ring_offset): (Arc<Arena>, usize),
        limits: &WorkerLimits,
    ) -> Link {
        let nothing = RemoteRegion { address: 0, length: 0, key: 0, rights: Rights::Write };
        Link {
            server,
            thread,
            number,
            endpoint: None,
            peer,
            connected: false,
            closed: 0,
            regions: Regions::new(),
            published: IdMap::default(),
            grant: Grant { slots: nothing, slot_count: 0, slot_bytes: 0, pull_credits: 0, key_lists: 0 },
            free: 0,
            filled: Vec::new(),
            lent: 0,
            copied: 0,
            replay: VecDeque::new(),
            queue: Lane::default(),
            pulls: Lane::default(),
            marked: 0,
            pulls_outstanding: 0,
            sequence: 0,
            window_bytes: limits.window_bytes as u64,
            ring,
            ring_offset,
            ring_entries: limits.ring_entries,
            ring_read: 0,
            ring_told: 0,
        }
    }

    /// Makes a new endpoint in place of the one before.
    pub fn open(&mut self, transport: &mut dyn Transport, ring: RegionId, receive: &Pool) -> Result<Opening> {
        let (endpoint, address) = transport.open_on(self.number, Side::Active, &self.peer)?;
        self.endpoint = Some(endpoint);
        self.connected = false;
        let ring_bytes = self.ring_entries as usize * HEADER;
        let mut grant = |region, offset, length| {
            transport.authorise(endpoint, region, offset, length, Rights::Write).map(|r| r.encode())
        };
        let ring = grant(ring, self.ring_offset, ring_bytes)?;
        let receive = grant(receive.region(), 0, receive.arena().len())?;
        self.regions.open(transport, endpoint)?;
        self.published.clear();
        Ok(Opening { address, ring, receive })
    }

    /// The server thread told what it grants, for the first time or again.
    pub fn granted(&mut self, grant: Grant) -> Result<()> {
        // What is kept in lists, as what lies in slots, is counted on over endpoints.
        let sizes = |g: &Grant| (g.slot_count, g.slot_bytes, g.key_lists);
        if !self.filled.is_empty() && sizes(&grant) != sizes(&self.grant) {
            let expected = format!("{:?} as before", sizes(&self.grant));
            return Err(Error::protocol(
                &self.peer,
                "slots and lists",
                expected,
                format!("{:?}", sizes(&grant)),
            ));
        }
        let refuse = |field, expected: &str, found| Err(Error::protocol(&self.peer, field, expected, found));
        if grant.slot_count == 0 || grant.slot_count > 64 {
            return refuse("slot count", "1 to 64", u64::from(grant.slot_count));
        }
        if grant.key_lists > u32::from(u16::MAX) {
            return refuse("places for lists of keys", "at most 65535", u64::from(grant.key_lists));
        }
        let bytes = u64::from(grant.slot_count) * u64::from(grant.slot_bytes);
        if (grant.slot_bytes as usize) < HEADER + 4096 || !grant.slots.contains(0, bytes) {
            return refuse("slot bytes", "at least 4160, all inside the region", u64::from(grant.slot_bytes));
        }
        if grant.pull_credits == 0 {
            return refuse("pull credits", "at least 1", 0);
        }
        self.grant = grant;
        if !self.filled.is_empty() {
            return Ok(());
        }
        self.free = self.all_slots();
        self.filled = (0..grant.slot_count).map(|_| None).collect();
        Ok(())
    }

    /// Places for lists of keys at the server thread.
    pub fn key_lists(&self) -> usize {
        self.grant.key_lists as usize
    }

    /// The longest body of a frame, in bytes.
    pub fn payload_bytes(&self) -> usize {
        self.grant.slot_bytes as usize - HEADER
    }

    /// The endpoint is connected. On any but the first, all that has not been taken back is sent again: the server drops
    /// what it had accepted before, but answers pulls again; those that have been answered, which `unanswered` tells, are
    /// made void.
    pub fn connected(&mut self, unanswered: impl Fn(Owner) -> bool) {
        self.connected = true;
        (self.ring_read, self.ring_told, self.pulls_outstanding) = (0, 0, 0);
        let mut sent = Vec::new();
        for (slot, frame) in (0u32..).zip(&mut self.filled) {
            let Some(frame) = frame else { continue };
            frame.keep(|owner| !matches!(owner, Owner::Pull { .. }) || unanswered(owner));
            self.pulls_outstanding += frame.pulls;
            sent.push((frame.header.sequence, slot));
        }
        sent.sort_unstable();
        self.replay = sent.into_iter().map(|(_, slot)| slot).collect();
    }

    /// Frames that wait for a slot.
    pub fn queued(&self) -> usize {
        self.queue.len() + self.pulls.len()
    }

    /// Frames that wait for a slot behind each other; a mark waits with them.
    pub fn queued_in_order(&self) -> usize {
        self.queue.len()
    }

    /// Whether nothing can leave or come back before this worker ends its clock: all that waits are pulls behind its mark.
    pub fn rests(&self) -> bool {
        let behind_mark = self.pulls.front().is_none_or(|f| f.header.clock >= self.marked);
        self.queue.is_empty() && self.free == self.all_slots() && behind_mark
    }

    /// Whether a frame that was not taken concerns `owner`.
    pub fn concerns(&self, owner: Owner) -> bool {
        let mut frames = self.queue.iter().chain(self.pulls.iter()).chain(self.filled.iter().flatten());
        frames.any(|f| f.owners().any(|o| o == owner))
    }

    /// Whether everything queued was sent and taken by the server.
    pub fn drained(&self) -> bool {
        self.queued() == 0 && self.free == self.all_slots()
    }

    /// Queues a frame behind all others of its priority, among those that wait for their clock's mark when `may_overtake`.
    pub fn enqueue(&mut self, frame: Outgoing, may_overtake: bool) {
        self.lane(may_overtake).enqueue(frame);
    }

    /// Puts a small request into the frame that it would stand behind. False when it can't join that one.
    pub fn join(
        &mut self,
        header: RequestHeader,
        fill: &mut Fill<'_>,
        wanted: (Owner, i8),
        may_overtake: bool,
    ) -> bool {
        let credits = self.grant.pull_credits;
        self.lane(may_overtake).join(header, fill, wanted, credits)
    }

    /// Queues the end of a clock: behind the clock's last small pieces in one frame, or by itself in one of `spares`.
    pub fn mark(&mut self, header: RequestHeader, spares: &mut Vec<Spare>) {
        let wanted = (Owner::Mark, i8::MIN);
        if !self.join(header, &mut |_, _| {}, wanted, false) {
            let spare = spares.pop().unwrap_or_default();
            self.enqueue(Outgoing::alone(header, None, wanted, spare), false);
        }
        self.queue.end_segment();
        self.pulls.end_segment();
    }

    /// Nothing more joins the last frame, so that it leaves. Those that wait for a mark need no such word.
    pub fn flush(&mut self) {
        self.queue.flush();
    }

    /// Queues pulls that had been accepted, but not answered, over an endpoint that is gone: before all others.
    pub fn ask_again(&mut self, frame: Outgoing) {
        self.queue.again(frame);
    }

    /// Takes a pull back that has not been sent. False when it has.
    pub fn unqueue(&mut self, pull: Owner) -> bool {
        let mut waiting = self.queue.iter_mut().chain(self.pulls.iter_mut());
        let Some(frame) = waiting.find(|f| f.owners().any(|o| o == pull)) else { return false };
        frame.keep(|owner| owner != pull);
        true
    }

    /// Lets the server thread write to a registered buffer, before it reads any frame that is queued from now on.
    pub fn announce(
        &mut self,
        number: u8,
        known: (RegionId, usize),
        transport: &mut dyn Transport,
    ) -> Result<()> {
        let Some(endpoint) = self.endpoint else { return Ok(()) };
        self.regions.announce(number, known, transport, endpoint)
    }

    /// Takes the right to write to a registered buffer back.
    pub fn withdraw(&mut self, number: u8, transport: &mut dyn Transport) -> Result<()> {
        let Some(endpoint) = self.endpoint else { return Ok(()) };
        self.regions.withdraw(number, transport, endpoint)
    }

    /// The server thread has let go of withdrawn regions.
    pub fn acknowledged(&mut self, withdrawn: u64, transport: &mut dyn Transport) -> Result<()> {
        let Some(endpoint) = self.endpoint else { return Ok(()) };
        if self.regions.acknowledged(withdrawn, transport, endpoint)? {
            return Ok(());
        }
        let found = format!("{withdrawn:#x}");
        Err(Error::protocol(&self.peer, "withdrawn", "regions that were withdrawn", found))
    }

    /// Fills free slots with what waits.
    pub fn pump(&mut self, transport: &mut dyn Transport) -> Result<()> {
        if self.queued() == 0 && self.replay.is_empty() && !self.regions.are_due() {
            return self.tell_ring(transport);
        }
        // First, so that the server thread knows what the frames behind them name.
        while let Some((number, message)) = self.regions.due().filter(|_| self.connected) {
            if !self.send(message, transport)? {
                return Ok(());
            }
            self.regions.told(number);
        }
        while let Some(&slot) = self.replay.front().filter(|_| self.connected) {
            // A slot that came back meanwhile has nothing left to say.
            if let Some(frame) = self.filled[slot as usize].take() {
                let sent = self.write(&frame, slot, transport)?;
                self.filled[slot as usize] = Some(frame);
                if !sent {
                    return Ok(());
                }
            }
            self.replay.pop_front();
        }
        // A small frame leaves together with what stood before it.
        let idle = self.free == self.all_slots();
        let lends = self.endpoint.is_some_and(|endpoint| transport.lends(endpoint));
        while self.connected && self.free != 0 && self.under_way(lends) < self.window_bytes {
            let Some(overtakes) = self.next(idle) else { break };
            let Some(frame) = self.lane(overtakes).pop() else { break };
            if let Some(frame) = self.fill(frame, transport)? {
                self.lane(overtakes).put_first(frame);
                break;
            }
        }
        self.tell_ring(transport)
    }

    /// The lane whose first frame leaves now: that of the overtaking pulls (true), or the other. Of two that may, one that is sent
    /// again, or the one of higher priority; of equal ones the pull, for whose values somebody waits since its clock.
    fn next(&self, idle: bool) -> Option<bool> {
        let credits = self.grant.pull_credits.saturating_sub(self.pulls_outstanding);
        let pull = self.pulls.front().filter(|f| f.pulls <= credits && f.header.clock < self.marked);
        // One that others may join leaves when the server thread has nothing to do (`idle`).
        let ready = |f: &Outgoing| !f.open || idle || self.queue.len() > 1;
        let other = self.queue.front().filter(|f| f.pulls <= credits && ready(f));
        match (pull, other) {
            (Some(pull), Some(other)) => Some(pull.urgency() >= other.urgency()),
            (pull, other) => pull.or(other).map(|_| pull.is_some()),
        }
    }

    fn lane(&mut self, may_overtake: bool) -> &mut Lane {
        if may_overtake { &mut self.pulls } else { &mut self.queue }
    }

    fn all_slots(&self) -> u64 {
        u64::MAX.checked_shr(64 - self.grant.slot_count).unwrap_or(0)
    }

    /// Bytes under way that count against the window; those of lent bodies do not where they lie in no slot (`lends`).
    fn under_way(&self, lends: bool) -> u64 {
        self.copied + if lends { 0 } else { self.lent }
    }

    /// The count that a frame's body belongs to.
    fn bytes_of(&mut self, frame: &Outgoing) -> &mut u64 {
        if frame.lends { &mut self.lent } else { &mut self.copied }
    }

    /// Writes a frame into a free slot; gives it back when the transport has no room.
    fn fill(&mut self, mut frame: Outgoing, transport: &mut dyn Transport) -> Result<Option<Outgoing>> {
        let slot = self.free.trailing_zeros();
        frame.header.sequence = self.sequence;
        if !self.write(&frame, slot, transport)? {
            return Ok(Some(frame));
        }
        self.sequence += 1;
        self.free &= !(1 << slot);
        self.pulls_outstanding += frame.pulls;
        *self.bytes_of(&frame) += u64::from(frame.header.length);
        self.marked = self.marked.max(frame.marks);
        self.filled[slot as usize] = Some(frame);
        Ok(None)
    }

    /// Writes a frame into a slot; false when the transport has no room, or the endpoint is gone.
    fn write(&mut self, frame: &Outgoing, slot: u32, transport: &mut dyn Transport) -> Result<bool> {
        let Some(endpoint) = self.endpoint else { return Ok(false) };
        let write = Write {
            header: Some(frame.header.encode()),
            body: frame.body(),
            remote: self.grant.slots,
            offset: u64::from(slot) * u64::from(self.grant.slot_bytes),
            imm: Some(slot),
            context: None,
        };
        match transport.write(endpoint, write) {
            Ok(()) => Ok(true),
            Err(rejected) if rejected.refusal == Refusal::Full => Ok(false),
            Err(rejected) if rejected.refusal == Refusal::NotConnected => {
                // `Closed` is on its way and says why.
                self.connected = false;
                Ok(false)
            }
            Err(rejected) => {
                Err(Error::PeerLost { peer: self.peer.clone(), reason: rejected.refusal.to_string() })
            }
        }
    }

    /// Reads the reply that the server announced in ring entry `imm`; the frames whose slots came back are appended.
    pub fn reply(&mut self, imm: u32, length: u32, returned: &mut Vec<Outgoing>) -> Result<ReplyHeader> {
        let expected = (self.ring_read % u64::from(self.ring_entries)) as u32;
        if imm != expected || length as usize != HEADER {
            let found = format!("{length} bytes in {imm}");
            return Err(Error::protocol(&self.peer, "ring entry", format!("64 bytes in {expected}"), found));
        }
        let mut bytes = [0u8; HEADER];
        self.ring.copy_out(self.ring_offset + imm as usize * HEADER, &mut bytes);
        let header = ReplyHeader::decode(&bytes).map_err(|m| m.by(&self.peer))?;
        if header.sequence != self.ring_read {
            let expected = self.ring_read.to_string();
            return Err(Error::protocol(&self.peer, "sequence", expected, header.sequence));
        }
        self.ring_read += 1;
        if header.closed < self.closed {
            return Err(Error::protocol(&self.peer, "closed", format!("≥ {}", self.closed), header.closed));
        }
        self.closed = header.closed;
        self.take_back(header.freed, returned)?;
        Ok(header)
    }

    /// The server thread told where it publishes a table.
    pub fn published(&mut self, header: &ReplyHeader) -> Result<()> {
        let place = Published { address: header.version, key: header.count, records: header.bucket };
        if header.tag >= MAX_TABLES || self.published.insert(header.tag, place).is_some() {
            let expected = format!("a table below {MAX_TABLES}, told of once");
            return Err(Error::protocol(&self.peer, "tag", expected, header.tag));
        }
        Ok(())
    }

    /// A pull was answered.
    pub fn pull_answered(&mut self) {
        self.pulls_outstanding = self.pulls_outstanding.saturating_sub(1);
    }

    fn take_back(&mut self, freed: u64, returned: &mut Vec<Outgoing>) -> Result<()> {
        let mut left = freed;
        while left != 0 {
            let slot = left.trailing_zeros();
            left &= left - 1;
            let Some(frame) = self.filled.get_mut(slot as usize).and_then(Option::take) else {
                return Err(Error::protocol(
                    &self.peer,
                    "freed",
                    "slots that were filled",
                    format!("slot {slot}"),
                ));
            };
            self.free |= 1 << slot;
            *self.bytes_of(&frame) -= u64::from(frame.header.length);
            returned.push(frame);
        }
        Ok(())
    }

    /// Tells the server how much of the ring was read, every quarter turn. Needs no slot.
    fn tell_ring(&mut self, transport: &mut dyn Transport) -> Result<()> {
        if self.ring_read - self.ring_told < u64::from(self.ring_entries / 4) {
            return Ok(());
        }
        if self.send(WorkerMessage::RingRead(self.ring_read), transport)? {
            self.ring_told = self.ring_read;
        }
        Ok(())
    }

    /// Sends a message; false when the transport has no room, or the endpoint is gone.
    fn send(&mut self, message: WorkerMessage, transport: &mut dyn Transport) -> Result<bool> {
        let (bytes, length) = message.encode();
        let (Some(endpoint), Some(message)) = (self.endpoint, Message::new(&bytes[..length])) else {
            return Ok(false);
        };
        match transport.send(endpoint, message) {
            Ok(()) => Ok(true),
            Err(rejected) if matches!(rejected.refusal, Refusal::Full | Refusal::NotConnected) => Ok(false),
            Err(rejected) => {
                Err(Error::PeerLost { peer: self.peer.clone(), reason: rejected.refusal.to_string() })
            }
        }
    }
}
