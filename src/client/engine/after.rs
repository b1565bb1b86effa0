//! What begins after something else is done: its frames wait here, at the worker, since only the worker hears from all
//! the servers that the other went to.

use std::sync::Arc;

use super::Engine;
use crate::client::frame::Outgoing;
use crate::error::{Error, Result};
use crate::types::Clock;

/// What must be done first: the open frames of tickets, by place and number, and clocks that must close at links.
#[derive(Debug, Default)]
pub struct After {
    open: Vec<(usize, u64)>,
    commits: Vec<(usize, Clock)>,
}

impl Engine {
    /// What it takes for these tickets to be done.
    ///
    /// # Errors
    /// One of them is done only when the caller has ended its own clock.
    pub fn after(&self, tickets: impl Iterator<Item = usize>) -> Result<After> {
        let mut after = After::default();
        for ticket in tickets {
            self.refuse_own_clock(ticket, "after")?;
            let pending = &self.pending[ticket];
            after.open.push((ticket, pending.number));
            after.commits.extend(pending.lists.commits_at.iter().map(|&link| (link, pending.clock)));
        }
        Ok(after)
    }

    /// Whether something that begins after `after` may begin.
    pub(super) fn may_begin(&self, after: &After) -> bool {
        // A ticket that is gone had no open frame.
        let open = |&(ticket, number): &(usize, u64)| {
            self.pending.get(ticket).is_some_and(|p| p.number == number && p.open > 0)
        };
        !after.open.iter().any(open) && after.commits.iter().all(|&(l, clock)| self.links[l].closed > clock)
    }

    /// Whether the ticket's frames have to wait here.
    pub(super) fn stalls(&self, ticket: usize) -> bool {
        self.pending[ticket].after.is_some()
    }

    /// Keeps a frame of a ticket that may not begin yet.
    pub(super) fn stall(&mut self, ticket: usize, link: usize, frame: Outgoing, may_overtake: bool) {
        let pending = &mut self.pending[ticket];
        if pending.stalled.is_empty() {
            self.stalled.push(ticket);
        }
        pending.stalled.push((link, frame, may_overtake));
    }

    /// Queues the frames of tickets that may begin now.
    pub(super) fn begin_stalled(&mut self) {
        let mut stalled = std::mem::take(&mut self.stalled);
        stalled.retain(|&ticket| {
            let after: Option<Arc<After>> = self.pending[ticket].after.clone();
            if after.is_some_and(|after| !self.may_begin(&after)) {
                return true;
            }
            self.pending[ticket].after = None;
            for (link, frame, may_overtake) in std::mem::take(&mut self.pending[ticket].stalled) {
                self.links[link].enqueue(frame, may_overtake);
            }
            false
        });
        self.stalled = stalled;
    }

    /// Refuses a wait for a ticket that can only be done after the caller's own next `clock()`.
    pub(super) fn refuse_own_clock(&self, ticket: usize, call: &'static str) -> Result<()> {
        let pending = &self.pending[ticket];
        let needs_own_mark = match pending.is_pull() {
            true => pending.under_bsp() && pending.after_push,
            false => pending.at_close(),
        };
        if self.is_complete(pending) || !needs_own_mark || pending.clock != self.clock || self.finished {
            return Ok(());
        }
        let reason = format!(
            "what was pushed to table \"{}\" in clock {} is committed when the clock ends: call clock() first",
            pending.spec.name, pending.clock
        );
        Err(Error::Misuse { call, reason })
    }
}
