//! Pulls that read what server threads publish, without their CPU (`mem::epochs` says what lies there).
//!
//! ```text
//!  waits ──its clock is closed there, a place is free──▶ head ──▶ stamp and values ──▶ head again ──▶ done
//!                                                         │              ▲                  │
//!                                                         │              └──written over────┤ at most 8 times
//!                                                         └── not there ──▶ asked for as other pulls are ◀──┘
//! ```
//! Each arrow from one read to the next is a completion: the head is read again when the values are here. A worker hears from every
//! reply which clocks are closed, so it does not read before it has heard of the clock that it needs. A table with a
//! quorum closes its clocks earlier than that tells, so of such a table it reads at once.
//!
//! Under Ssp and Asp a pull sees its worker's own earlier pushes where each update is published (`every` = 1): it only reads when all of
//! these were taken.

use std::collections::VecDeque;
use std::sync::Arc;

use super::Engine;
use crate::client::frame::Owner;
use crate::client::link::Link;
use crate::client::readable::Readable;
use crate::error::{Error, Result};
#[cfg(test)]
use crate::mem::epochs::Stamp;
use crate::mem::epochs::{HEAD, Judgement, Seen, judge};
use crate::mem::{Arena, RegionId, RegionSlice, RemoteRegion, Rights};
use crate::proto::RequestHeader;
use crate::transport::{Read, Refusal};
use crate::types::{Clock, TableId};

/// Pulls that are read at the same time.
const PLACES: usize = 32;
/// How often values may be written over while they are read.
const TRIES: u32 = 8;
/// Of a place: a head, a stamp, the head again.
const SCRATCH: usize = 3 * HEAD;

/// What a worker read one-sidedly.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ReadStats {
    /// Pulls of one bucket, or part of it, that were read.
    pub read: u64,
    /// Values that were written over while they were read, and read again.
    pub again: u64,
    /// Pulls that were asked for in the end.
    pub asked: u64,
}

/// Which reads are under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Head,
    /// Stamp and values, of which neither tells anything of the other.
    Values,
    HeadAgain,
}

impl Stage {
    /// How many reads it takes.
    fn reads(self) -> u8 {
        if self == Stage::Values { 2 } else { 1 }
    }
}

/// A pull that reads.
struct Reading {
    /// The pull as it would be asked for; its tag and number name it.
    header: RequestHeader,
    number: u64,
    ticket: usize,
    link: usize,
    needed: Clock,
    /// It waits until the worker has heard that its clocks are closed.
    hears: bool,
    readable: Arc<Readable>,
    /// Where the values go.
    target: RegionSlice,
    /// What the head said before the values were read.
    before: Seen,
    tries: u32,
    stage: Stage,
    posted: u8,
    done: u8,
}

impl Reading {
    fn enter(&mut self, stage: Stage) {
        (self.stage, self.posted, self.done) = (stage, 0, 0);
    }
}

/// All of a worker.
#[derive(Default)]
pub struct Reads {
    waiting: VecDeque<Reading>,
    /// By place.
    active: Vec<Option<Reading>>,
    /// Heads and stamps: three for each place.
    scratch: Option<(Arc<Arena>, RegionId)>,
    pub stats: ReadStats,
}

impl Reads {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.active.iter().all(Option::is_none)
    }

    fn scratch(&self, at: usize) -> Option<RegionSlice> {
        let (arena, region) = self.scratch.clone()?;
        Some(RegionSlice { arena, region, offset: at, length: HEAD })
    }

    fn copy(&self, at: usize) -> [u8; HEAD] {
        let mut bytes = [0; HEAD];
        if let Some((arena, _)) = &self.scratch {
            arena.copy_out(at, &mut bytes);
        }
        bytes
    }
}

impl Engine {
    /// What was read one-sidedly so far.
    pub fn read_stats(&self) -> ReadStats {
        self.reads.stats
    }

    /// What has to be known to read the values of a pull, where they can be read.
    pub(super) fn may_read(
        &mut self,
        link: usize,
        ticket: usize,
        table: TableId,
    ) -> Result<Option<Arc<Readable>>> {
        let pending = &self.pending[ticket];
        let Some(readable) = &pending.readable else { return Ok(None) };
        let Link { connected, published, peer, .. } = &self.links[link];
        let own_pushes = !pending.under_bsp() && !self.links[link].drained();
        if pending.after_push || own_pushes || !connected || self.stalls(ticket) {
            return Ok(None);
        }
        // A server thread tells of a table when it has made it; until that is here it is asked.
        let Some(place) = published.get(&table) else { return Ok(None) };
        let expected = readable.records(link);
        if place.records != expected {
            return Err(Error::protocol(peer, "records", expected.to_string(), place.records));
        }
        let readable = readable.clone();
        if self.reads.scratch.is_none() {
            let arena = Arena::new(PLACES * SCRATCH)?;
            let region = self.transport.register(arena.clone())?;
            self.reads.scratch = Some((arena, region));
            self.reads.active.resize_with(PLACES, || None);
        }
        Ok(Some(readable))
    }

    /// Reads the values of a pull, whose header is complete, once its clock is there.
    pub(super) fn read(
        &mut self,
        (link, ticket): (usize, usize),
        header: RequestHeader,
        readable: Arc<Readable>,
    ) {
        let spec = &self.pending[ticket].spec;
        let (arena, region) = match self.buffers.get(usize::from(header.region)).and_then(Option::as_ref) {
            Some(buffer) => buffer.memory(),
            None => (self.receive.arena().clone(), self.receive.region()),
        };
        let (offset, length) = (header.argument as usize, header.count as usize * 4);
        self.reads.waiting.push_back(Reading {
            header,
            number: self.asked[header.tag as usize].number,
            ticket,
            link,
            needed: spec.consistency.clocks_needed(header.clock, false),
            hears: spec.quorum.is_none(),
            readable,
            target: RegionSlice { arena, region, offset, length },
            before: Seen { epoch: 0, closed: 0 },
            tries: 0,
            stage: Stage::Head,
            posted: 0,
            done: 0,
        });
    }

    /// Whether as many pulls wait to be read as may.
    pub(super) fn reads_are_full(&self) -> bool {
        self.reads.waiting.len() >= self.limits.queued_frames
    }

    /// Posts what can be posted.
    pub(super) fn post_reads(&mut self) -> Result<()> {
        if self.reads.is_empty() {
            return Ok(());
        }
        // Where none is ready for one place, none is for the next.
        let mut more = true;
        for place in 0..self.reads.active.len() {
            if more && self.reads.active[place].is_none() {
                let links = &self.links;
                let ready = |r: &Reading| !r.hears || links[r.link].closed >= r.needed;
                let next = self.reads.waiting.iter().position(ready);
                more = next.is_some();
                self.reads.active[place] = next.and_then(|next| self.reads.waiting.remove(next));
            }
            self.post_read(place)?;
        }
        Ok(())
    }

    /// Posts the reads of a place's stage.
    fn post_read(&mut self, place: usize) -> Result<()> {
        while let Some(reading) = self.reads.active[place].as_ref().filter(|r| r.posted < r.stage.reads()) {
            let Reading { header, link, readable, before, .. } = reading;
            let Link { endpoint, published, peer, .. } = &self.links[*link];
            let (Some(endpoint), Some(published)) = (*endpoint, published.get(&header.table)) else {
                return Ok(());
            };
            let layout = &readable.layout;
            let (at, scratch) = match (reading.stage, reading.posted) {
                (Stage::Head, _) => (0, Some(0)),
                (Stage::Values, 0) => (layout.stamp(before.epoch), Some(HEAD)),
                (Stage::Values, _) => (layout.value(before.epoch, header.first), None),
                (Stage::HeadAgain, _) => (0, Some(2 * HEAD)),
            };
            let local = match scratch {
                Some(at) => self.reads.scratch(place * SCRATCH + at),
                None => Some(reading.target.clone()),
            };
            let Some(local) = local else { return Ok(()) };
            let length = u64::from(published.records) * layout.record();
            let (address, key) = (published.address, published.key);
            let remote = RemoteRegion { address, length, key, rights: Rights::Read };
            let offset = readable.record(header.bucket) + at;
            let read = Read { remote, offset, local, context: place as u64 };
            match self.transport.read(endpoint, read) {
                Ok(()) => {}
                // Not connected: `Closed` is on its way.
                Err(rejected) if matches!(rejected.refusal, Refusal::Full | Refusal::NotConnected) => {
                    return Ok(());
                }
                Err(rejected) => {
                    let reason = rejected.refusal.to_string();
                    return Err(Error::PeerLost { peer: peer.clone(), reason });
                }
            }
            if let Some(reading) = &mut self.reads.active[place] {
                reading.posted += 1;
            }
        }
        Ok(())
    }

    /// One of a place's reads is done.
    pub(super) fn read_done(&mut self, place: usize) -> Result<()> {
        let at = place * SCRATCH;
        let Some(Some(reading)) = self.reads.active.get_mut(place) else { return Ok(()) };
        reading.done += 1;
        if reading.done < reading.stage.reads() {
            return Ok(());
        }
        match reading.stage {
            Stage::Head => {
                let seen = Seen::decode(&self.reads.copy(at));
                return self.found(place, seen);
            }
            Stage::Values => reading.enter(Stage::HeadAgain),
            Stage::HeadAgain => return self.judge(place),
        }
        self.post_read(place)
    }

    /// Goes on with what a head says.
    fn found(&mut self, place: usize, seen: Seen) -> Result<()> {
        let Some(reading) = &mut self.reads.active[place] else { return Ok(()) };
        if seen.epoch == 0 || seen.closed < reading.needed || reading.tries >= TRIES {
            if let Some(reading) = self.reads.active[place].take() {
                self.ask_for(reading);
            }
            return Ok(());
        }
        reading.before = seen;
        reading.enter(Stage::Values);
        self.post_read(place)
    }

    /// The head was read again behind the values.
    fn judge(&mut self, place: usize) -> Result<()> {
        let at = place * SCRATCH;
        let (stamp, after) = (self.reads.copy(at + HEAD), self.reads.copy(at + 2 * HEAD));
        let after = Seen::decode(&after);
        let Some(reading) = &mut self.reads.active[place] else { return Ok(()) };
        let Reading { header, link, .. } = reading;
        let (peer, end) = (&self.links[*link].peer, header.first + header.count);
        let heads = (&reading.before, &after);
        let wanted = (self.epoch, reading.needed, end);
        let judged = judge(&reading.readable.layout, heads, &stamp, wanted);
        #[cfg(test)]
        let judged = match crate::client::simulated::believes_everything() {
            true => Stamp::decode(&stamp).map(|stamp| Judgement::Whole(stamp.version)),
            false => judged,
        };
        match judged.map_err(|m| m.by(peer))? {
            Judgement::Again => {
                reading.tries += 1;
                self.reads.stats.again += 1;
                self.found(place, after)
            }
            Judgement::Whole(version) => {
                let (tag, ticket) = (header.tag as usize, reading.ticket);
                self.reads.active[place] = None;
                self.reads.stats.read += 1;
                let part = self.asked.try_remove(tag).and_then(|asked| asked.part);
                self.one_less(ticket, part, version);
                Ok(())
            }
        }
    }

    /// A pull that can't be read is asked for.
    fn ask_for(&mut self, reading: Reading) {
        let Reading { header, number, ticket, link, .. } = reading;
        self.reads.stats.asked += 1;
        let owner = Owner::Pull { tag: header.tag, number };
        // It has no body, so it needs no staging memory.
        self.stage(link, ticket, header, &mut |_, _| {}, (owner, false));
    }

    /// An endpoint is gone, and with it the right to read: what was to be read over it is asked for.
    pub(super) fn ask_for_reads(&mut self, link: usize) {
        for place in 0..self.reads.active.len() {
            if let Some(reading) = self.reads.active[place].take_if(|r| r.link == link) {
                self.ask_for(reading);
            }
        }
        for _ in 0..self.reads.waiting.len() {
            match self.reads.waiting.pop_front() {
                Some(reading) if reading.link == link => self.ask_for(reading),
                other => self.reads.waiting.extend(other),
            }
        }
    }
}
