//! Tickets: when they are done, what they wait for, and the values of a pull.

use super::{Engine, Part, Pending, Places};
use crate::error::{Error, Result};
use crate::proto::Chain;
use crate::types::{TableSpec, Version};

impl Engine {
    pub(super) fn new_ticket(&mut self, spec: &TableSpec, chain: Chain, after_push: bool) -> usize {
        self.pending.insert(Pending {
            table: spec.name.clone(),
            chain,
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
        })
    }

    /// Whether a ticket is done. A wait that can only end after the caller's own next call is refused.
    pub fn is_done(&self, ticket: usize, waiting: bool) -> Result<bool> {
        let pending = &self.pending[ticket];
        let done =
            pending.open == 0 && pending.commits_at.iter().all(|&l| self.links[l].closed > pending.clock);
        if done {
            return Ok(true);
        }
        self.check()?;
        let needs_own_mark = pending.under_bsp && (!pending.is_pull() || pending.after_push);
        if waiting && needs_own_mark && pending.clock == self.clock && !self.finished {
            return Err(Error::Misuse {
                call: "wait",
                reason: format!(
                    "what was pushed to table \"{}\" in clock {} is committed when the clock ends: call clock() first",
                    pending.table, pending.clock
                ),
            });
        }
        Ok(false)
    }

    /// What a ticket waits for, for messages.
    pub fn describe(&self, ticket: usize) -> String {
        let pending = &self.pending[ticket];
        let what = if pending.is_pull() { "a pull from" } else { "a push to" };
        let behind: Vec<&str> = match pending.is_pull() {
            true => self
                .asked
                .iter()
                .filter(|(_, a)| a.ticket == ticket)
                .map(|(_, a)| &*self.links[a.link].peer)
                .collect(),
            false => pending
                .commits_at
                .iter()
                .filter(|&&l| self.links[l].closed <= pending.clock)
                .map(|&l| &*self.links[l].peer)
                .collect(),
        };
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
        let (width, chain) = (pending.width, pending.chain);
        let mut rows: Vec<f32> = Vec::new();
        for part in &pending.parts {
            match &part.places {
                Places::From(at) => {
                    let count = part.buf.len() / chain.value_bytes();
                    chain.decode(&part.buf, 0, &mut into[*at..*at + count]);
                }
                Places::Rows(range) => {
                    rows.resize(part.buf.len() / chain.value_bytes(), 0.0);
                    chain.decode(&part.buf, 0, &mut rows);
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
