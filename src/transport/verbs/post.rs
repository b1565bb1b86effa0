//! Operations on their way out: checked, given their memory and their place, posted in batches, signalled now and then.

use std::sync::Arc;

use super::cq::Work;
use super::endpoint::{After, Endpoint, Operation, Phase, Shared};
use super::memory::Region;
use super::qp::{self, Piece, SendRequest, Verb};
use crate::mem::{RegionSlice, RemoteRegion};
use crate::transport::{MAX_SEND, Message, Payload, Read, Refusal, Write};

/// Operations between two that are signalled.
const SIGNAL_EVERY: u32 = 32;

/// Keeps reads in their place: the bytes of one may be fetched after what was posted behind it took effect, unless that waits.
#[derive(Debug, Default)]
pub(super) struct Fence {
    /// The last request is a read.
    read: bool,
}

impl Fence {
    /// Whether the next request has to wait for the reads before it. What is posted behind that one waits for it anyway.
    fn before(&mut self, next: Verb) -> bool {
        let read = std::mem::replace(&mut self.read, next == Verb::Read);
        read && !self.read
    }
}

impl Endpoint {
    /// Queues a message.
    pub fn send(&mut self, shared: &Shared, message: &Message) -> std::result::Result<(), Refusal> {
        self.check_room(shared)?;
        let piece = self.stage(self.next_slot(shared), message.bytes());
        self.push(shared, Verb::Send(None), [piece, Piece::default()], (0, 0), false, None, None);
        Ok(())
    }

    /// Queues a write; takes the body out of it only when the answer is `Ok`.
    pub fn write(&mut self, shared: &Shared, write: &mut Write) -> std::result::Result<(), Refusal> {
        self.check_connected()?;
        let length = write.length();
        self.check_remote(
            shared,
            &write.remote,
            write.offset,
            length,
            write.remote.rights.may_write(),
            "write",
        )?;
        let body = match &write.body {
            Some(payload) => self.local_piece(shared, &payload.slice())?,
            None => Piece::default(),
        };
        self.check_room(shared)?;
        let header = write.header.map_or(Piece::default(), |h| self.stage(self.next_slot(shared), &h));
        let remote = (write.remote.address + write.offset, write.remote.key);
        let signalled = write.context.is_some();
        let pieces = [header, body];
        self.push(
            shared,
            Verb::Write(write.imm),
            pieces,
            remote,
            signalled,
            write.context,
            write.body.take(),
        );
        Ok(())
    }

    /// Queues a read.
    pub fn read(&mut self, shared: &Shared, read: &Read) -> std::result::Result<(), Refusal> {
        self.check_connected()?;
        let length = read.local.length;
        self.check_remote(shared, &read.remote, read.offset, length, read.remote.rights.may_read(), "read")?;
        let piece = self.local_piece(shared, &read.local)?;
        self.check_room(shared)?;
        let remote = (read.remote.address + read.offset, read.remote.key);
        self.push(shared, Verb::Read, [piece, Piece::default()], remote, true, Some(read.context), None);
        if let Some(operation) = self.operations.back_mut() {
            operation.read_into = Some(read.local.clone());
        }
        Ok(())
    }

    fn check_connected(&self) -> std::result::Result<(), Refusal> {
        if matches!(self.phase, Phase::Connected) { Ok(()) } else { Err(Refusal::NotConnected) }
    }

    fn check_room(&self, shared: &Shared) -> std::result::Result<(), Refusal> {
        self.check_connected()?;
        if self.operations.len() < shared.depth as usize { Ok(()) } else { Err(Refusal::Full) }
    }

    fn check_remote(
        &self,
        shared: &Shared,
        remote: &RemoteRegion,
        offset: u64,
        length: usize,
        allowed: bool,
        what: &str,
    ) -> std::result::Result<(), Refusal> {
        let limit = self.limit.min(shared.max_write());
        let why = if !allowed {
            format!("the peer does not grant {what} there")
        } else if !remote.contains(offset, length as u64)
            || remote.address.checked_add(remote.length).is_none()
        {
            format!("{length} bytes at {offset} of a remote region of {}", remote.length)
        } else if length > limit {
            format!("{length} bytes, the limit is {limit}")
        } else {
            return Ok(());
        };
        Err(Refusal::OutOfBounds(why))
    }

    /// A slice of ours as the device knows it. Registers its arena when this endpoint uses it for the first time.
    fn local_piece(&mut self, shared: &Shared, slice: &RegionSlice) -> std::result::Result<Piece, Refusal> {
        let index = slice.region.0 as usize;
        let registered = shared.arenas.get(index).and_then(Option::as_ref);
        let Some(arena) = registered.filter(|a| Arc::ptr_eq(a, &slice.arena)) else {
            return Err(Refusal::OutOfBounds("the local arena is not registered".to_owned()));
        };
        if slice.offset.checked_add(slice.length).is_none_or(|end| end > arena.len()) {
            return Err(Refusal::OutOfBounds(format!(
                "{} bytes at {} of a local arena",
                slice.length, slice.offset
            )));
        }
        if slice.length == 0 {
            return Ok(Piece::default());
        }
        if self.locals.len() <= index {
            self.locals.resize_with(index + 1, || None);
        }
        if self.locals[index].is_none() {
            match Region::new(&self.domain, arena, 0, arena.len(), None) {
                Ok(region) => self.locals[index] = Some(region),
                Err(error) => {
                    self.fail(After::Closed(Some(error)), true);
                    return Err(Refusal::NotConnected);
                }
            }
        }
        let key = self.locals[index].as_ref().map_or(0, Region::local_key);
        Ok(Piece { address: slice.as_ptr() as u64, length: length_u32(slice.length), key })
    }

    /// The slot of the next operation. The device has done with it: there are fewer operations under way than slots.
    fn next_slot(&self, shared: &Shared) -> u32 {
        self.next % shared.depth
    }

    /// Copies `bytes` to a slot on their way out.
    pub(super) fn stage(&self, slot: u32, bytes: &[u8]) -> Piece {
        let offset = slot as usize * MAX_SEND;
        self.scratch.arena().copy_in(offset, bytes);
        Piece {
            address: self.scratch.address() + offset as u64,
            length: length_u32(bytes.len()),
            key: self.scratch.local_key(),
        }
    }

    #[allow(clippy::too_many_arguments)] // all of one work request; called in four places
    pub(super) fn push(
        &mut self,
        shared: &Shared,
        verb: Verb,
        pieces: [Piece; 2],
        remote: (u64, u32),
        signalled: bool,
        context: Option<u64>,
        payload: Option<Payload>,
    ) {
        debug_assert!(self.operations.len() < shared.depth as usize);
        let sequence = self.next;
        self.next = self.next.wrapping_add(1);
        let signalled = signalled || self.unsignalled + 1 >= SIGNAL_EVERY;
        if signalled {
            (self.unsignalled, self.holding) = (0, false);
        } else {
            self.unsignalled += 1;
            self.holding |= payload.is_some();
        }
        let fenced = self.fence.before(verb);
        let id = self.work_id(Work::Send, sequence);
        self.queued.push(SendRequest { id, verb, pieces, remote, signalled, fenced });
        self.operations.push_back(Operation { sequence, context, payload, read_into: None });
    }

    /// Whether the last operation taken is the only one that waits to be posted.
    pub fn begins_batch(&self) -> bool {
        self.queued.len() == 1
    }

    /// Posts what is queued. The last operation is signalled when a payload would otherwise stay with us until later
    /// operations bring a signal: they may never come.
    pub fn flush(&mut self) {
        if let Some(last) = self.queued.last_mut()
            && self.holding
        {
            last.signalled = true;
            (self.unsignalled, self.holding) = (0, false);
        }
        let mut queued = std::mem::take(&mut self.queued);
        for batch in queued.chunks(qp::BATCH) {
            // SAFETY: every piece lies in `scratch` or in a registered arena that the operation's payload, or its slice,
            // keeps alive in `operations` until its completion or until the queue pair is gone. Its slot of `scratch` is
            // not written before the operation has left `operations`. Body and read target are the caller's promise.
            if let Err(error) = unsafe { self.qp.post_sends(batch) } {
                self.fail(After::Closed(Some(error)), true);
                break;
            }
        }
        #[cfg(test)]
        if !queued.is_empty() && matches!(self.phase, Phase::Connected) && super::faults::strikes() {
            self.qp.fail_unseen();
        }
        queued.clear();
        self.queued = queued;
    }
}

/// Lengths were checked against [`Shared::max_write`], or are those of a message.
fn length_u32(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::mem::{Arena, Rights};
    use crate::transport::verbs::device::available;
    use crate::transport::verbs::{Verbs, VerbsConfig};
    use crate::transport::{Completion, HEADER, Side, Transport};

    #[test]
    fn the_first_request_behind_reads_waits_for_them() {
        let mut fence = Fence::default();
        let verbs = [
            (Verb::Write(Some(1)), false),
            (Verb::Read, false),
            (Verb::Read, false),
            (Verb::Write(None), true),
            (Verb::Write(Some(2)), false),
            (Verb::Read, false),
            (Verb::Send(None), true),
            (Verb::Send(None), false),
        ];
        for (n, (verb, waits)) in verbs.into_iter().enumerate() {
            assert_eq!(fence.before(verb), waits, "request {n}, {verb:?}");
        }
    }

    /// On a device: of many writes every 32nd makes a completion, and the last of a batch that holds memory.
    #[test]
    fn few_writes_are_signalled() {
        if !available().unwrap().iter().any(|d| d.active) {
            println!("skipped: no RDMA device");
            return;
        }
        let mut ends = [(); 2].map(|()| Verbs::new(&VerbsConfig::default()).unwrap());
        let opened = [0, 1].map(|n| ends[n].open([Side::Active, Side::Passive][n], "the other").unwrap());
        let arenas = [(); 2].map(|()| Arena::new(1 << 16).unwrap());
        let regions = [0, 1].map(|n| ends[n].register(arenas[n].clone()).unwrap());
        let remote = ends[1].authorise(opened[1].0, regions[1], 0, 1 << 16, Rights::Write).unwrap();
        for n in [1, 0] {
            ends[n].connect(opened[n].0, &opened[1 - n].1, &[3; 32]).unwrap();
        }
        let until = |ends: &mut [Verbs; 2], wanted: &dyn Fn(&Completion) -> bool, mut count: usize| {
            let (limit, mut seen) = (Instant::now() + Duration::from_secs(30), Vec::new());
            while count > 0 {
                assert!(Instant::now() < limit, "{seen:?}");
                ends.iter_mut().for_each(|end| end.poll(&mut seen, 256));
                count -= seen.iter().filter(|c| wanted(c)).count().min(count);
                seen.clear();
            }
        };
        until(&mut ends, &|c| matches!(c, Completion::Connected { .. }), 2);
        let id = opened[0].0;
        let write =
            |body| Write { header: Some([1; HEADER]), body, remote, offset: 0, imm: Some(1), context: None };
        let signalled = |end: &mut Verbs| -> Vec<usize> {
            let endpoint = end.places[id.index as usize].endpoint.as_deref().unwrap();
            (0..).zip(&endpoint.queued).filter(|(_, r)| r.signalled).map(|(n, _)| n).collect()
        };
        for _ in 0..70 {
            ends[0].write(id, write(None)).unwrap();
        }
        assert_eq!(signalled(&mut ends[0]), [31, 63]);
        let rings = |end: &Verbs| end.places[id.index as usize].endpoint.as_deref().unwrap().qp.rings;
        let before = rings(&ends[0]);
        ends[0].flush();
        assert_eq!(rings(&ends[0]) - before, 5, "70 writes in lists of 16");
        until(&mut ends, &|c| matches!(c, Completion::Written { .. }), 70);
        // What holds a body is signalled when it leaves, since nothing may follow it.
        let slice = RegionSlice { arena: arenas[0].clone(), region: regions[0], offset: 0, length: 64 };
        ends[0].write(id, write(Some(Payload::Pinned(slice)))).unwrap();
        assert!(signalled(&mut ends[0]).is_empty());
        let under_way =
            |end: &Verbs| end.places[id.index as usize].endpoint.as_deref().unwrap().operations.len();
        assert_eq!(under_way(&ends[0]), 7);
        ends[0].flush();
        let limit = Instant::now() + Duration::from_secs(30);
        while under_way(&ends[0]) > 0 {
            assert!(Instant::now() < limit);
            ends.iter_mut().for_each(|end| end.poll(&mut Vec::new(), 256));
        }
    }
}
