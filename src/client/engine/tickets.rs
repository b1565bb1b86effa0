//! Tickets: when they are done, what they wait for, and the values of a pull.

use super::send::SIDE_BY_SIDE;
use super::{Engine, Part, Pending, Places, Target, Uses};
use crate::client::frame::Owner;
use crate::error::{Error, Result};
use crate::mem::Buf;
use crate::proto::{Chain, RequestKind};
use crate::types::Version;

impl Engine {
    pub(super) fn new_ticket(
        &mut self,
        table: &Target<'_>,
        (kind, after_push): (RequestKind, bool),
        uses: Uses,
    ) -> usize {
        let after = table.after.filter(|after| !self.may_begin(after)).cloned();
        let lists = self.spare.pop().unwrap_or_default();
        let number = self.number();
        self.pending.insert(Pending {
            number,
            spec: table.spec.clone(),
            chain: if kind == RequestKind::Pull { table.chains.pull } else { table.chains.push },
            clock: self.clock,
            open: 0,
            kind,
            after_push,
            base: None,
            rejection: None,
            told_by: None,
            lists,
            list: None,
            queued: false,
            floats: 0,
            version: 0,
            uses,
            dropped: false,
            after,
            priority: table.priority,
            readable: table.readable.filter(|_| kind == RequestKind::Pull).cloned(),
            stalled: Vec::new(),
        })
    }

    /// Whether a ticket is done. A wait that can only end after the caller's own next call is refused.
    ///
    /// # Errors
    /// [`Error::Stale`] or [`Error::NonFinite`] for a push that is done and of which pieces were rejected.
    pub fn is_done(&self, ticket: usize, waiting: bool) -> Result<bool> {
        let pending = &self.pending[ticket];
        if self.is_complete(pending) {
            return pending.rejection.clone().map_or(Ok(true), Err);
        }
        self.check()?;
        if waiting {
            self.refuse_own_clock(ticket, "wait")?;
        }
        Ok(false)
    }

    /// What a ticket waits for, for messages.
    pub fn describe(&self, ticket: usize) -> String {
        let pending = &self.pending[ticket];
        let what = if pending.is_pull() { "a pull from" } else { "a push to" };
        if pending.after.is_some() {
            let (table, clock) = (&pending.spec.name, pending.clock);
            return format!("what has to be done before {what} table \"{table}\" in clock {clock} begins");
        }
        let behind: Vec<&str> = (0..)
            .zip(&self.links)
            .filter(|&(link, l)| {
                let asked = self.asked.iter().any(|(_, a)| a.ticket == ticket && a.link == link);
                let sent = l.concerns(Owner::Push(ticket));
                asked || sent || (pending.lists.commits_at.contains(&link) && l.closed <= pending.clock)
            })
            .map(|(_, l)| &*l.peer)
            .collect();
        format!("{what} table \"{}\" in clock {} at {}", pending.spec.name, pending.clock, behind.join(", "))
    }

    /// Copies a done pull's values out, through their filters, and forgets the ticket. `into` is empty when they lie in a
    /// registered buffer.
    ///
    /// # Errors
    /// `into` has another length than the pull asked for.
    pub fn take(&mut self, ticket: usize, into: &mut [f32]) -> Result<Version> {
        let pending = &self.pending[ticket];
        if into.len() != pending.floats {
            let found = into.len();
            return Err(Error::config("length of the result", format!("{} fp32", pending.floats), found));
        }
        let (width, chain) = (pending.spec.width() as usize, pending.chain);
        let value = chain.value_bytes();
        for part in &pending.lists.parts {
            match &part.places {
                Places::From(at) => {
                    let count = part.buf.len() / value;
                    chain.decode(&part.buf, 0, &mut into[*at..*at + count]);
                }
                Places::Rows(range) => {
                    scatter_rows(&pending.lists.order[range.clone()], &part.buf, chain, (into, width));
                }
                Places::Buffer(_) => {} // they went there when they came
            }
        }
        self.bytes_copied += (into.len() * value) as u64;
        let version = pending.version;
        self.end(ticket);
        Ok(version)
    }

    /// Nobody will wait for this ticket any more. Its memory is kept until no operation can touch it.
    pub fn forget(&mut self, ticket: usize) {
        let Some(pending) = self.pending.get_mut(ticket) else { return };
        pending.dropped = true;
        if pending.uses.is_empty() {
            return self.end_dropped(ticket);
        }
        self.quarantined += 1;
        self.sweep();
    }

    pub(super) fn one_less(&mut self, ticket: usize, part: Option<Part>, version: Version) {
        let Some(pending) = self.pending.get_mut(ticket) else { return };
        pending.open -= 1;
        pending.version = pending.version.max(version);
        pending.lists.parts.extend(part);
        self.end_dropped(ticket);
    }

    /// Ends a ticket that nobody waits for, once no frame of it is on its way. One that uses a registered buffer goes on until
    /// it is complete; [`Engine::sweep`] ends it.
    fn end_dropped(&mut self, ticket: usize) {
        let pending = &self.pending[ticket];
        if pending.dropped && pending.open == 0 && pending.uses.is_empty() {
            self.end(ticket);
        }
    }

    /// Forgets a ticket whose operation is over.
    pub(super) fn end(&mut self, ticket: usize) {
        let mut lists = self.pending.remove(ticket).lists;
        lists.commits_at.clear();
        lists.parts.clear();
        lists.order.clear();
        self.spare.push(lists);
    }
}

impl Pending {
    pub(super) fn is_pull(&self) -> bool {
        self.kind == RequestKind::Pull
    }

    pub(super) fn under_bsp(&self) -> bool {
        self.spec.consistency.folds_by_rank()
    }

    /// A push that is committed when its clock closes: under Bsp, unless a quorum closes it.
    pub(super) fn at_close(&self) -> bool {
        self.under_bsp() && self.spec.quorum.is_none()
    }
}

/// Copies rows of `width` fp32 to where the keys with these numbers have theirs.
fn scatter_rows(numbers: &[u32], from: &Buf, chain: Chain, (into, width): (&mut [f32], usize)) {
    let mut some = [0.0; SIDE_BY_SIDE];
    let mut at = 0;
    for numbers in numbers.chunks((SIDE_BY_SIDE / width).max(1)) {
        let bytes = numbers.len() * width * chain.value_bytes();
        if let [number] = numbers {
            let first = *number as usize * width;
            chain.decode(from, at, &mut into[first..first + width]);
        } else {
            let some = &mut some[..numbers.len() * width];
            chain.decode(from, at, &mut *some);
            for (row, &number) in some.chunks_exact(width).zip(numbers) {
                into[number as usize * width..][..width].copy_from_slice(row);
            }
        }
        at += bytes;
    }
}
