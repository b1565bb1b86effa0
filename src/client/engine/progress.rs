//! The engine's turn: completions in, what waits out, lost endpoints opened anew.

use std::time::{Duration, Instant};

use super::{Accepted, Asked, BUDGET, Engine};
use crate::client::frame::{Outgoing, Owner};
use crate::client::reopen::Heard;
use crate::config::Polling;
use crate::error::{Error, Result};
use crate::proto::{Chain, ReplyKind};
use crate::transport::Completion;
use slab::Slab;

/// Frames that are kept to be used again: as many as a push of 256 MiB has.
const SPARES: usize = 1024;

impl Engine {
    /// Takes what has come, and sends what can be sent. True when something had come.
    pub fn progress(&mut self) -> Result<bool> {
        self.progress_after(1)
    }

    /// The same; while nothing comes it looks so often.
    pub fn progress_after(&mut self, looks: u32) -> Result<bool> {
        self.check()?;
        if let Err(error) = self.hear_control() {
            // What has arrived counts: a server that leaves in order has answered what it had taken.
            while self.take_arrived(1) {}
            self.fail(error);
        }
        self.check()?;
        let worked = self.take_arrived(looks);
        if !self.stalled.is_empty() {
            self.begin_stalled();
        }
        if worked {
            self.sweep();
        }
        if let Err(error) = self.retire() {
            self.fail(error);
        }
        self.kick();
        self.check()?;
        Ok(worked)
    }

    /// True when something had come.
    fn take_arrived(&mut self, looks: u32) -> bool {
        self.transport.poll_often(looks, &mut self.completions, BUDGET);
        let worked = !self.completions.is_empty();
        let mut completions = std::mem::take(&mut self.completions);
        // Where they lie: they have room for messages, and would be copied as long as that.
        for completion in &mut completions {
            if let Err(error) = self.complete(completion) {
                self.fail(error);
            }
        }
        completions.clear();
        self.completions = completions;
        worked
    }

    /// What the control thread heard is the cause; a lost endpoint is often only its consequence, and is opened anew
    /// until then.
    pub(super) fn hear_control(&mut self) -> Result<()> {
        if let Some(error) = self.shared.failure() {
            return Err(error);
        }
        while let Some(heard) = self.reopener.heard(&self.links)? {
            match heard {
                Heard::Granted { link, grant, address, key } => {
                    self.links[link].granted(grant)?;
                    if let Some(endpoint) = self.links[link].endpoint {
                        self.transport.connect(endpoint, &address, &key)?;
                    }
                }
                Heard::Lost(endpoint) => self.transport.close(endpoint),
            }
        }
        self.reopener.check_deadlines()
    }

    pub(super) fn complete(&mut self, completion: &mut Completion) -> Result<()> {
        match *completion {
            Completion::Connected { endpoint } => {
                if let Some(link) = self.link_at(endpoint) {
                    let asked = &self.asked;
                    self.links[link].connected(|owner| is_unanswered(asked, owner));
                    self.reopener.connected(link);
                    self.ask_again(link);
                }
            }
            Completion::Written { endpoint, imm, length } => {
                if let Some(link) = self.link_at(endpoint) {
                    self.reply(link, imm, length)?;
                }
            }
            Completion::Closed { endpoint, ref mut reason } => {
                if let Some(link) = self.link_of.remove(&endpoint) {
                    self.lost(link, reason.take())?;
                }
            }
            Completion::Received { endpoint, .. } | Completion::Lent { endpoint, .. } => {
                if let Some(link) = self.link_at(endpoint) {
                    let peer = &self.links[link].peer;
                    return Err(Error::protocol(
                        peer,
                        "message",
                        "neither one nor a loan from a server",
                        "one",
                    ));
                }
            }
            Completion::Done { endpoint, context } => {
                // Writes are posted without a context.
                if self.link_at(endpoint).is_some() {
                    self.read_done(context as usize)?;
                }
            }
        }
        Ok(())
    }

    pub(super) fn reply(&mut self, link: usize, imm: u32, length: u32) -> Result<()> {
        let mut returned = std::mem::take(&mut self.returned);
        returned.clear();
        let header = self.links[link].reply(imm, length, &mut returned)?;
        // Before its slot comes back, by which the push may be done.
        if matches!(header.kind, ReplyKind::Stale | ReplyKind::NonFinite)
            && !self.rejected(&header, &returned)
        {
            let expected = "of a push under way whose table rejects such pieces";
            return Err(Error::protocol(&self.links[link].peer, "tag", expected, header.tag));
        }
        for frame in returned.drain(..) {
            self.accepted(link, frame);
        }
        self.returned = returned;
        self.links[link].acknowledged(header.withdrawn, self.transport.as_mut())?;
        if header.kind == ReplyKind::Published {
            self.links[link].published(&header)?;
        }
        if header.kind == ReplyKind::Pulled {
            let asked = self.asked.get(header.tag as usize).filter(|a| a.link == link);
            let expected = asked.map(|a| a.floats);
            if expected != Some(header.count as usize) {
                let expected = format!("a pull under way (of {expected:?} fp32)");
                let found = format!("tag {} with {} fp32", header.tag, header.count);
                return Err(Error::protocol(&self.links[link].peer, "tag", expected, found));
            }
            let asked = self.asked.remove(header.tag as usize);
            let chain = self.pending.get(asked.ticket).map_or_else(Chain::default, |p| p.chain);
            chain.expect(header.chain).map_err(|m| m.by(&self.links[link].peer))?;
            self.links[link].pull_answered();
            if let Some(place) = asked.accepted {
                self.accepted[place].unanswered -= 1;
                if self.accepted[place].unanswered == 0 {
                    let frame = self.accepted.remove(place).frame;
                    self.spare(frame);
                }
            }
            let part = self.deliver(asked.ticket, asked.part)?;
            self.one_less(asked.ticket, part, header.version);
        }
        Ok(())
    }

    /// A frame's slot came back: its pushes are taken. Its pulls may have to be asked for again.
    fn accepted(&mut self, link: usize, frame: Outgoing) {
        let place = self.accepted.vacant_key();
        let mut unanswered = 0;
        for owner in frame.owners() {
            match owner {
                Owner::Push(ticket) => self.one_less(ticket, None, 0),
                Owner::Pull { tag, .. } if is_unanswered(&self.asked, owner) => {
                    self.asked[tag as usize].accepted = Some(place);
                    unanswered += 1;
                }
                Owner::Pull { .. } | Owner::Mark | Owner::Nobody => {}
            }
        }
        if unanswered > 0 {
            self.accepted.insert(Accepted { link, frame, unanswered });
        } else {
            self.spare(frame);
        }
    }

    fn spare(&mut self, frame: Outgoing) {
        let spare = frame.end();
        if self.spare_frames.len() < SPARES {
            self.spare_frames.push(spare);
        }
    }

    /// An endpoint is gone: asks for a new one.
    pub(super) fn lost(&mut self, link: usize, reason: Option<Error>) -> Result<()> {
        let peer = self.links[link].peer.clone();
        let reason = match reason {
            Some(Error::PeerLost { reason, .. }) => reason,
            Some(other) => other.to_string(),
            None => "closed".to_owned(),
        };
        tracing::info!("{peer}: {reason}; reconnecting");
        self.ask_for_reads(link);
        let ring = self.reopener.ring();
        let opening = self.links[link].open(self.transport.as_mut(), ring, &self.receive)?;
        self.index_endpoint(link);
        self.reopener.ask(link, &self.links[link], opening, Error::PeerLost { peer, reason })
    }

    /// Asks again for the pulls that the server had accepted and not answered when the last endpoint was lost.
    pub(super) fn ask_again(&mut self, link: usize) {
        let places: Vec<usize> =
            self.accepted.iter().filter(|(_, a)| a.link == link).map(|(place, _)| place).collect();
        for place in places {
            let mut frame = self.accepted.remove(place).frame;
            frame.keep(|owner| is_unanswered(&self.asked, owner));
            for owner in frame.owners() {
                if let Owner::Pull { tag, .. } = owner {
                    self.asked[tag as usize].accepted = None;
                }
            }
            self.links[link].ask_again(frame);
        }
    }

    /// Whether waiters spin before they sleep.
    pub fn may_spin(&self) -> bool {
        matches!(self.polling, Polling::Spin(_))
    }

    /// For how long a waiter has found nothing, while it has not spun long enough yet.
    pub fn spins(&self, idle_since: &mut Option<Instant>, now: Instant) -> Option<Duration> {
        let Polling::Spin(time) = self.polling else { return None };
        let idle = now.duration_since(*idle_since.get_or_insert(now));
        (idle < time).then_some(idle)
    }

    /// Whether a thread that does not spin, or no more, may sleep: nothing has come meanwhile.
    pub fn may_sleep(&mut self) -> bool {
        self.transport.arm()
    }

    /// What small requests wait to be joined by others leaves with the next [`Engine::kick`].
    pub fn flush(&mut self) {
        self.links.iter_mut().for_each(|link| link.flush());
    }

    /// Fills slots with what waits, and rings the doorbell once.
    pub fn kick(&mut self) {
        if let Err(error) = self.post_reads() {
            self.fail(error);
        }
        for link in 0..self.links.len() {
            if let Err(error) = self.links[link].pump(self.transport.as_mut()) {
                self.fail(error);
            }
        }
        self.transport.flush();
    }
}

/// Whether a request is a pull without an answer.
fn is_unanswered(asked: &Slab<Asked>, owner: Owner) -> bool {
    match owner {
        Owner::Pull { tag, number } => asked.get(tag as usize).is_some_and(|a| a.number == number),
        Owner::Push(_) | Owner::Mark | Owner::Nobody => false,
    }
}
