//! Tickets: when they are done, what they wait for, and the values of a pull.

use std::sync::Arc;

use super::{After, Engine, Part, Pending, Places};
use crate::client::frame::Owner;
use crate::error::{Error, Result};
use crate::types::{TableSpec, Version};

impl Engine {
    pub(super) fn new_ticket(
        &mut self,
        spec: &TableSpec,
        after_push: bool,
        after: Option<&Arc<After>>,
    ) -> usize {
        let after = after.filter(|after| !self.may_begin(after)).cloned();
        let number = self.number();
        self.pending.insert(Pending {
            number,
            table: spec.name.clone(),
            clock: self.clock,
            open: 0,
            commits_at: Vec::new(),
            after_push,
            under_bsp: spec.consistency.folds_by_rank(),
            parts: Vec::new(),
            order: Vec::new(),
            width: spec.width() as usize,
            floats: 0,
            version: 0,
            dropped: false,
            after,
            stalled: Vec::new(),
        })
    }

    /// Whether a ticket is done. A wait that can only end after the caller's own next call is refused.
    pub fn is_done(&self, ticket: usize, waiting: bool) -> Result<bool> {
        if self.is_settled(ticket) {
            return Ok(true);
        }
        self.check()?;
        if waiting {
            self.refuse_own_clock(ticket, "wait")?;
        }
        Ok(false)
    }

    pub(super) fn is_settled(&self, ticket: usize) -> bool {
        let pending = &self.pending[ticket];
        pending.open == 0 && pending.commits_at.iter().all(|&l| self.links[l].closed > pending.clock)
    }

    /// What a ticket waits for, for messages.
    pub fn describe(&self, ticket: usize) -> String {
        let pending = &self.pending[ticket];
        let what = if pending.is_pull() { "a pull from" } else { "a push to" };
        if pending.after.is_some() {
            let (table, clock) = (&pending.table, pending.clock);
            return format!("what has to be done before {what} table \"{table}\" in clock {clock} begins");
        }
        let behind: Vec<&str> = (0..)
            .zip(&self.links)
            .filter(|&(link, l)| {
                let asked = self.asked.iter().any(|(_, a)| a.ticket == ticket && a.link == link);
                let sent = l.concerns(Owner::Push(ticket));
                asked || sent || (pending.commits_at.contains(&link) && l.closed <= pending.clock)
            })
            .map(|(_, l)| &*l.peer)
            .collect();
        format!("{what} table \"{}\" in clock {} at {}", pending.table, pending.clock, behind.join(", "))
    }

    /// Copies a done pull's values out and forgets the ticket.
    ///
    /// # Errors
    /// `into` has another length than the pull asked for.
    pub fn take(&mut self, ticket: usize, into: &mut [f32]) -> Result<Version> {
        let pending = &self.pending[ticket];
        if into.len() != pending.floats {
            let found = into.len();
            return Err(Error::config("length of the result", format!("{} fp32", pending.floats), found));
        }
        let width = pending.width;
        let mut rows: Vec<f32> = Vec::new();
        for part in &pending.parts {
            match &part.places {
                Places::From(at) => {
                    let count = part.buf.len() / 4;
                    part.buf.copy_out(0, bytemuck::cast_slice_mut(&mut into[*at..*at + count]));
                }
                Places::Rows(range) => {
                    rows.resize(part.buf.len() / 4, 0.0);
                    part.buf.copy_out(0, bytemuck::cast_slice_mut(&mut rows));
                    for (row, &number) in rows.chunks_exact(width).zip(&pending.order[range.clone()]) {
                        let at = number as usize * width;
                        into[at..at + width].copy_from_slice(row);
                    }
                }
            }
        }
        Ok(self.pending.remove(ticket).version)
    }

    /// Nobody will wait for this ticket any more. Its memory is kept until no operation can touch it.
    pub fn forget(&mut self, ticket: usize) {
        if let Some(pending) = self.pending.get_mut(ticket) {
            pending.dropped = true;
            if pending.open == 0 {
                self.pending.remove(ticket);
            }
        }
    }

    pub(super) fn one_less(&mut self, ticket: usize, part: Option<Part>, version: Version) {
        let Some(pending) = self.pending.get_mut(ticket) else { return };
        pending.open -= 1;
        pending.version = pending.version.max(version);
        pending.parts.extend(part);
        if pending.dropped && pending.open == 0 {
            self.pending.remove(ticket);
        }
    }
}

impl Pending {
    pub(super) fn is_pull(&self) -> bool {
        self.floats > 0
    }
}
