//! Answers: which pulls may be answered now, their values, and the credit that goes along.

use super::{Core, Rejected, Waiting};
use crate::error::{Error, Result};
use crate::proto::{ReplyHeader, ReplyKind};
use crate::server::link::BUFFER_BACK;
use crate::store::Cause;
use crate::transport::{Payload, Refusal, Transport, Write};
use crate::types::Rank;

/// Answers of so many bytes are sent from where they lie. A shorter one costs less to copy than the segment that its pin
/// might make the next push move.
const PINNED: usize = 4096;
/// Bytes that are copied for one worker before what was copied leaves: it takes them, out of L2, while the next ones are copied.
const TURN_BYTES: u64 = 256 << 10;
/// Answers of more bytes than this come in long reply buffers, of which no worker gets more than are left to the others: one
/// that does not read would soon have them all. What is shorter fits into the sockets.
const LONG: usize = 4096;

impl Core {
    /// Folds and closes what the gate let through, answers the pulls that can be answered and announces credit. Gives the ranks
    /// that broke the protocol ([`Error::Protocol`]) or whose endpoints failed. True when a pull was answered: once the transport
    /// has let go of its buffer, there may be more.
    pub fn settle(&mut self, transport: &mut dyn Transport, failed: &mut Vec<(Rank, Error)>) -> bool {
        let before = self.stats.pulls;
        if !self.failed {
            self.obey();
        }
        failed.append(&mut self.faults);
        if self.failed {
            return false;
        }
        for rank in 0..self.links.len() {
            if let Err(error) = self.settle_one(rank, transport) {
                failed.push((rank as Rank, error));
            }
        }
        self.stats.pulls > before
    }

    fn settle_one(&mut self, rank: usize, transport: &mut dyn Transport) -> Result<()> {
        let closed = self.gate.closed();
        if let Some(link) = &mut self.links[rank] {
            link.resume(transport)?;
        }
        self.tell_rejections(rank, transport)?;
        let (mut i, copied) = (0, self.stats.bytes_copied);
        while let Some(link) = &mut self.links[rank] {
            let enough = self.stats.bytes_copied - copied >= TURN_BYTES;
            if !link.has_room() || i >= link.waiting.len() || enough {
                break;
            }
            if link.waiting[i].needed > self.gate.closed_of(link.waiting[i].header.table) {
                i += 1;
                continue;
            }
            let Some(waiting) = link.waiting.remove(i) else { break };
            if !self.answer(rank, &waiting, transport)? {
                if let Some(link) = &mut self.links[rank] {
                    link.waiting.insert(i, waiting);
                }
                break;
            }
            if !waiting.keys.is_empty() {
                // Never more than pulls were outstanding at a time.
                self.spare.push((waiting.directory, waiting.keys));
            }
        }
        match &mut self.links[rank] {
            Some(link) => link.settle(closed, self.view.epoch, transport),
            None => Ok(()),
        }
    }

    /// Gives back the slots of pushes of which pieces were rejected, each with its own reply.
    fn tell_rejections(&mut self, rank: usize, transport: &mut dyn Transport) -> Result<()> {
        let Some(link) = &mut self.links[rank] else { return Ok(()) };
        while let Some(slot) = link.next_rejected() {
            let Some(Rejected { tag, rejection, .. }) = self.sessions[rank].rejected[slot as usize] else {
                continue;
            };
            let (kind, version) = match rejection.cause {
                Cause::Stale { current } => (ReplyKind::Stale, current),
                Cause::NonFinite { first } => (ReplyKind::NonFinite, first),
            };
            let reply = ReplyHeader {
                kind,
                sequence: 0,
                closed: self.gate.closed(),
                version,
                freed: 0,
                epoch: self.view.epoch,
                count: rejection.pieces(),
                tag,
                chain: 0,
                bucket: rejection.bucket,
                withdrawn: 0,
            };
            link.reply(reply, transport)?;
        }
        Ok(())
    }

    /// Writes the values, from where they lie or, where that can't be or filters change them, from a reply buffer; then the
    /// header. False when there is no room yet.
    fn answer(&mut self, rank: usize, waiting: &Waiting, transport: &mut dyn Transport) -> Result<bool> {
        let header = &waiting.header;
        let lent: u32 = self.links.iter().flatten().map(|link| link.lent).sum();
        let chain = self.chains(header).map_err(|m| m.by(self.peer(rank as Rank)))?.pull;
        let Some(link) = &mut self.links[rank] else { return Ok(true) };
        let (values, version) = if waiting.keys.is_empty() {
            let reading = self.shard.read_dense(header.table, header.bucket, header.first, header.count);
            let reading = reading.map_err(|m| m.by(&link.peer))?;
            (reading.values, reading.version)
        } else {
            let version = self.shard.gather(header.table, &waiting.piece(), &mut self.gathered);
            (&self.gathered[..], version)
        };
        let Some(remote) = link.region(header.region) else { return Ok(true) }; // it can't go while a pull names it
        let bytes = values.len() * chain.value_bytes();
        let count = values.len() as u32;
        let pin = if chain.is_empty() && waiting.keys.is_empty() && bytes >= PINNED {
            let pin = self.shard.pin_dense(header.table, header.bucket, header.first, header.count);
            pin.filter(|pin| transport.sends_in_place(link.endpoint, &pin.slice().arena))
        } else {
            None
        };
        let pinned = pin.is_some();
        let lends = !pinned && bytes > LONG;
        if lends && link.lent >= self.replies.count(bytes).saturating_sub(lent) {
            return Ok(false);
        }
        let body = match pin {
            Some(pin) => Payload::Published(pin),
            None => {
                let Some(mut buf) = self.replies.lease(bytes) else { return Ok(false) };
                chain.encode(values, &mut buf, 0);
                Payload::Owned(buf)
            }
        };
        let write = Write {
            header: None,
            body: Some(body),
            remote,
            offset: header.argument,
            imm: None,
            context: lends.then_some(BUFFER_BACK),
        };
        match transport.write(link.endpoint, write) {
            Ok(()) => link.lent += u32::from(lends),
            Err(rejected) if matches!(rejected.refusal, Refusal::Full | Refusal::NotConnected) => {
                return Ok(false);
            }
            Err(rejected) => {
                return Err(Error::PeerLost {
                    peer: link.peer.clone(),
                    reason: rejected.refusal.to_string(),
                });
            }
        }
        self.stats.pulls += 1;
        self.stats.replies_pinned += u64::from(pinned);
        self.stats.replies_copied += u64::from(!pinned);
        self.stats.pulled_bytes += bytes as u64;
        let gathered = if waiting.keys.is_empty() { 0 } else { count as u64 * 4 };
        self.stats.bytes_copied += if pinned { 0 } else { gathered + bytes as u64 };
        let reply = ReplyHeader {
            kind: ReplyKind::Pulled,
            sequence: 0,
            closed: self.gate.closed(),
            version,
            freed: 0,
            epoch: self.view.epoch,
            count,
            tag: header.tag,
            chain: chain.check(),
            bucket: 0,
            withdrawn: 0,
        };
        link.reply(reply, transport)?;
        Ok(true)
    }
}
