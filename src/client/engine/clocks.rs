//! The ends of clocks, and what has to be done before them.

use super::Engine;
use crate::client::link::Link;
use crate::error::{Error, Result};
use crate::proto::{Chain, RequestKind};
use crate::time::Deadline;
use crate::types::Clock;

/// Frames that may wait for one server thread before a call blocks.
const QUEUE_LIMIT: usize = 4096;

impl Engine {
    /// Ends the clock at every server thread. Gives the new clock.
    pub fn end_clock(&mut self, deadline: Deadline) -> Result<Clock> {
        self.may_push()?;
        self.answer_pulls(deadline)?;
        self.mark(RequestKind::Mark, deadline)?;
        self.clock += 1;
        self.pushed = false;
        Ok(self.clock)
    }

    /// Ends this worker's pushing for good, and waits until the servers have taken all.
    pub fn finish(&mut self, deadline: Deadline) -> Result<()> {
        if !self.finished {
            if self.pushed {
                let reason =
                    format!("clock {} holds pushes that nobody would see: call clock() first", self.clock);
                return Err(Error::Misuse { call: "finish", reason });
            }
            self.answer_pulls(deadline)?;
            self.mark(RequestKind::Finish, deadline)?;
            self.finished = true;
        }
        self.drain(deadline)
    }

    /// What comes before a barrier: as [`Engine::drain`], but refused in the middle of a clock.
    pub fn settle(&mut self, deadline: Deadline) -> Result<()> {
        self.check()?;
        if self.pushed {
            let reason = format!(
                "clock {} holds pushes that the servers keep until the lower ranks, which may be at the barrier, end \
                 theirs: call clock() first",
                self.clock
            );
            return Err(Error::Misuse { call: "barrier", reason });
        }
        self.drain(deadline)
    }

    /// Waits until everything that was queued has been taken by the servers.
    pub fn drain(&mut self, deadline: Deadline) -> Result<()> {
        self.drive(deadline, "the servers to take what was sent", |engine| {
            engine.links.iter().all(Link::drained).then_some(())
        })
    }

    /// Before a clock ends, all pulls under Bsp must be answered whose values its end could change: those that see only
    /// earlier clocks, and those of earlier clocks that see their own.
    pub(super) fn answer_pulls(&mut self, deadline: Deadline) -> Result<()> {
        self.drive(deadline, "the answers to this clock's pulls", |engine| {
            let left = engine.pending.iter().any(|(_, p)| {
                let waits_for_this_end = p.after_push && p.clock == engine.clock;
                p.under_bsp && !waits_for_this_end && p.open > 0 && p.is_pull()
            });
            (!left).then_some(())
        })
    }

    pub(super) fn mark(&mut self, kind: RequestKind, deadline: Deadline) -> Result<()> {
        self.drive(deadline, "room to queue the end of a clock", |engine| {
            engine.links.iter().all(|l| l.queued() < QUEUE_LIMIT).then_some(())
        })?;
        for link in 0..self.links.len() {
            let header = self.header(kind, 0, Chain::default());
            self.enqueue(link, header, None, None);
        }
        self.kick();
        Ok(())
    }
}
