//! The ends of clocks, and what has to be done before them. Each is asked again until it gives something.

use super::Engine;
use crate::client::link::Link;
use crate::error::{Error, Result};
use crate::proto::RequestKind;
use crate::types::Clock;

impl Engine {
    /// Ends the clock at every server thread, when it may end. Gives the new clock.
    pub fn end_clock(&mut self) -> Result<Option<Clock>> {
        self.may_push()?;
        if self.keeps_clock_open().is_some() {
            return Ok(None);
        }
        self.mark(RequestKind::Mark);
        self.clock += 1;
        self.pushed = false;
        Ok(Some(self.clock))
    }

    /// Ends this worker's pushing for good, when it may; something once the servers have taken all.
    pub fn finish(&mut self) -> Result<Option<()>> {
        if !self.finished {
            self.check()?;
            if self.pushed {
                let reason =
                    format!("clock {} holds pushes that nobody would see: call clock() first", self.clock);
                return Err(Error::Misuse { call: "finish", reason });
            }
            if self.keeps_clock_open().is_some() {
                return Ok(None);
            }
            self.mark(RequestKind::Finish);
            self.finished = true;
        }
        Ok(self.drained())
    }

    /// What comes before a barrier: as [`Engine::drained`], but refused in the middle of a clock.
    pub fn settle(&mut self) -> Result<Option<()>> {
        self.check()?;
        if self.pushed {
            let reason = format!(
                "clock {} holds pushes that the servers keep until the lower ranks, which may be at the barrier, end \
                 theirs: call clock() first",
                self.clock
            );
            return Err(Error::Misuse { call: "barrier", reason });
        }
        Ok(self.drained())
    }

    /// Something when everything that was queued has been taken by the servers.
    fn drained(&self) -> Option<()> {
        let held_here = self.half_queued > 0 || !self.stalled.is_empty();
        (!held_here && self.links.iter().all(Link::drained)).then_some(())
    }

    /// What the clock can't end before, for messages; nothing when it can.
    pub fn keeps_clock_open(&self) -> Option<&'static str> {
        // All pulls under Bsp must be answered whose values its end could change: those that see only earlier clocks, and
        // those of earlier clocks that see their own.
        let unanswered = self.pending.iter().any(|(_, p)| {
            let waits_for_this_end = p.after_push && p.clock == self.clock;
            p.under_bsp() && !waits_for_this_end && p.open > 0 && p.is_pull()
        });
        if unanswered {
            Some("the answers to this clock's pulls")
        } else if !self.stalled.is_empty() {
            Some("what this clock's pushes and pulls begin after")
        } else if self.half_queued > 0 {
            Some("staging memory for a push of another thread")
        } else if self.links.iter().any(|l| l.queued_in_order() >= self.limits.queued_frames) {
            Some("room to queue the end of a clock")
        } else {
            None
        }
    }

    fn mark(&mut self, kind: RequestKind) {
        for link in 0..self.links.len() {
            let header = self.header(kind, 0);
            self.links[link].mark(header, &mut self.spare_frames);
        }
        self.flush();
        self.kick();
    }
}
