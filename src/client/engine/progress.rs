//! The engine's turn: completions in, what waits out, lost endpoints opened anew.

use std::time::{Duration, Instant};

use super::{BUDGET, Engine};
use crate::config::Polling;
use crate::error::{Error, Result};
use crate::proto::{Chain, ReplyKind, RequestKind};
use crate::time::Deadline;
use crate::transport::Completion;
use crate::transport::park::park;

/// The longest sleep: a bound on how late a failure told by another thread could be noticed.
const NAP: Duration = Duration::from_millis(200);

impl Engine {
    /// Sends what can be sent, takes what has come. True when something had come.
    pub fn progress(&mut self) -> Result<bool> {
        self.check()?;
        if let Err(error) = self.hear_control() {
            // What has arrived counts: a server that leaves in order has answered what it had taken.
            while self.take_arrived() {}
            self.fail(error);
        }
        self.check()?;
        let worked = self.take_arrived();
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
    fn take_arrived(&mut self) -> bool {
        self.transport.poll(&mut self.completions, BUDGET);
        let worked = !self.completions.is_empty();
        let mut completions = std::mem::take(&mut self.completions);
        for completion in completions.drain(..) {
            if let Err(error) = self.complete(completion) {
                self.fail(error);
            }
        }
        self.completions = completions;
        worked
    }

    /// What the control thread heard is the cause; a lost endpoint is often only its consequence, and is opened anew
    /// until then.
    pub(super) fn hear_control(&mut self) -> Result<()> {
        if let Some(error) = self.shared.failure() {
            return Err(error);
        }
        while let Some((link, grant, address, key)) = self.reopener.answered(&self.links)? {
            self.links[link].granted(grant)?;
            if let Some(endpoint) = self.links[link].endpoint {
                self.transport.connect(endpoint, &address, &key)?;
            }
        }
        self.reopener.check_deadlines()
    }

    pub(super) fn complete(&mut self, completion: Completion) -> Result<()> {
        match completion {
            Completion::Connected { endpoint } => {
                if let Some(link) = self.link_at(endpoint) {
                    self.links[link].connected();
                    self.reopener.connected(link);
                    self.ask_again(link);
                }
            }
            Completion::Written { endpoint, imm, length } => {
                if let Some(link) = self.link_at(endpoint) {
                    self.reply(link, imm, length)?;
                }
            }
            Completion::Closed { endpoint, reason } => {
                if let Some(link) = self.link_of.remove(&endpoint) {
                    self.lost(link, reason)?;
                }
            }
            Completion::Received { endpoint, .. } => {
                if let Some(link) = self.link_at(endpoint) {
                    let peer = &self.links[link].peer;
                    return Err(Error::protocol(peer, "message", "none from a server", "one"));
                }
            }
            Completion::Done { .. } => {}
        }
        Ok(())
    }

    pub(super) fn reply(&mut self, link: usize, imm: u32, length: u32) -> Result<()> {
        let mut returned = std::mem::take(&mut self.returned);
        returned.clear();
        let header = self.links[link].reply(imm, length, &mut returned)?;
        // Before its slot comes back, by which the push may be done.
        if header.kind == ReplyKind::Rejected && !self.rejected(&header) {
            let expected = "of a push under way with a base version";
            return Err(Error::protocol(&self.links[link].peer, "tag", expected, header.tag));
        }
        for frame in returned.drain(..) {
            if frame.header.kind == RequestKind::Pull {
                let asked = self.asked.get_mut(frame.header.tag as usize).filter(|a| a.link == link);
                if let Some(asked) = asked {
                    asked.accepted = Some(frame);
                }
            } else if let Some(ticket) = frame.ticket {
                self.one_less(ticket, None, 0);
            }
        }
        self.returned = returned;
        self.links[link].acknowledged(header.withdrawn, self.transport.as_mut())?;
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
            let part = self.deliver(asked.ticket, asked.part)?;
            self.one_less(asked.ticket, part, header.version);
        }
        Ok(())
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
        let ring = self.reopener.ring();
        let opening = self.links[link].open(self.transport.as_mut(), ring, &self.receive)?;
        self.index_endpoint(link);
        self.reopener.ask(link, &self.links[link], opening, Error::PeerLost { peer, reason })
    }

    /// Asks again for the pulls that the server had accepted and not answered when the last endpoint was lost.
    pub(super) fn ask_again(&mut self, link: usize) {
        for (_, asked) in self.asked.iter_mut().filter(|(_, a)| a.link == link) {
            if let Some(frame) = asked.accepted.take() {
                self.links[link].ask_again(frame);
            }
        }
    }

    /// Drives the engine until `done` gives something.
    pub(super) fn drive<T>(
        &mut self,
        deadline: Deadline,
        waited_for: &str,
        done: impl Fn(&mut Engine) -> Option<T>,
    ) -> Result<T> {
        let mut idle_since = None;
        loop {
            if let Some(result) = done(self) {
                return Ok(result);
            }
            if self.progress()? {
                idle_since = None;
                continue;
            }
            let now = Instant::now();
            if deadline.passed(now) {
                return Err(Error::Timeout { waited_for: waited_for.to_owned(), after: deadline.given() });
            }
            if self.may_sleep(&mut idle_since, now) {
                park(&self.descriptors(), deadline.left(now).min(NAP))?;
                self.shared.waker.drain();
            }
        }
    }

    /// Whether a waiter has spun long enough and nothing has come meanwhile.
    pub fn may_sleep(&mut self, idle_since: &mut Option<Instant>, now: Instant) -> bool {
        if let Polling::Spin(time) = self.polling
            && now.duration_since(*idle_since.get_or_insert(now)) < time
        {
            std::hint::spin_loop();
            return false;
        }
        self.transport.arm()
    }

    /// Fills slots with what waits, and rings the doorbell once.
    pub(super) fn kick(&mut self) {
        for link in 0..self.links.len() {
            if let Err(error) = self.links[link].pump(self.transport.as_mut()) {
                self.fail(error);
            }
        }
        self.transport.flush();
    }
}
