//! When the job is cut: names the clock, gathers what the nodes say, and gives the whole to be committed. Sans-io.
//!
//! ```text
//!  Idle ──due──▶ Pending ──all states and files are there──▶ Committing ──written──▶ Idle
//!    ▲             │
//!    └─────────────┴── a node has passed the clock: at once again, further ahead; a file can't be written: when it is due again
//! ```
//! A clock can be cut only by nodes that have not passed it, and all must cut the same one. Nobody stops for that: the Coordinator
//! names a clock, and whoever has passed it says so. Each time it is named further ahead, twice as far as the time before, so a node
//! that ends many clocks while a message is on its way is caught up with. Clocks that are known long before (every 100) are named
//! long before, and never passed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::config::settings::Every;
use crate::proto::control::{ControlMessage, WrittenFile};
use crate::types::{Clock, Rank};

/// When cuts are made, and what they are numbered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CutPlan {
    /// How often; without it only when the job is told to end.
    pub every: Option<Every>,
    /// The number of the first one.
    pub first: u64,
}

/// All that a checkpoint holds but its tables' parameters, which servers have written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Commit {
    /// Of the cut.
    pub number: u64,
    /// All clocks before this one are in it.
    pub clock: Clock,
    /// The workers' opaque states, by rank.
    pub states: Vec<Vec<u8>>,
    /// The servers' files.
    pub files: Vec<WrittenFile>,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Tell every server, and every worker that has not finished.
    TellAll(ControlMessage),
    /// Write the rest of the checkpoint, and say when that is done.
    Commit(Commit),
}

/// A node, as a cut sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Node {
    /// By rank.
    Server(Rank),
    /// By rank.
    Worker(Rank),
}

#[derive(Debug)]
struct Pending {
    number: u64,
    clock: Clock,
    unanswered: BTreeSet<Node>,
    passed: Option<Clock>,
    states: BTreeMap<Rank, Vec<u8>>,
    /// Servers whose files are written, and these.
    written: BTreeSet<Rank>,
    files: Vec<WrittenFile>,
}

#[derive(Debug)]
enum Stage {
    Idle,
    Pending(Pending),
    Committing(Clock),
}

/// How a wish to end went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// With a last checkpoint: its number and clock.
    Saved(u64, Clock),
    /// It could not be made, and why.
    Failed(String),
}

/// See the module's head.
#[derive(Debug)]
pub struct Cuts {
    every: Option<Every>,
    next: u64,
    stage: Stage,
    servers: u32,
    workers: u32,
    /// Workers that have finished, and what they saved last.
    finished: BTreeMap<Rank, Vec<u8>>,
    /// The furthest clock that anybody is known to be in.
    front: Clock,
    /// How often the last clock was passed.
    attempts: u32,
    /// The clock of the last cut, or that the job began with.
    last: Clock,
    due: Option<Instant>,
    ending: bool,
    ended: Option<Ended>,
}

impl Cuts {
    /// Of a job whose workers begin in clock `first`.
    pub fn new(plan: CutPlan, first: Clock) -> Cuts {
        Cuts {
            every: plan.every,
            next: plan.first,
            stage: Stage::Idle,
            servers: 0,
            workers: 0,
            finished: BTreeMap::new(),
            front: first,
            attempts: 0,
            last: first,
            due: None,
            ending: false,
            ended: None,
        }
    }

    /// The job runs.
    pub fn begin(&mut self, servers: u32, workers: u32, now: Instant) -> Vec<Action> {
        (self.servers, self.workers) = (servers, workers);
        self.plan(now)
    }

    /// When [`Cuts::tick`] has something to do.
    pub fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Lets time pass.
    pub fn tick(&mut self, now: Instant) -> Vec<Action> {
        if self.due.is_none_or(|due| due > now) || !matches!(self.stage, Stage::Idle) {
            return Vec::new();
        }
        self.due = None;
        vec![self.propose()]
    }

    /// A worker is known to be in this clock.
    pub fn seen(&mut self, clock: Clock) {
        self.front = self.front.max(clock);
    }

    /// The job is to end as soon as a checkpoint is made, and [`Cuts::ended`] says so. One under way counts, unless its clock is
    /// still ahead.
    pub fn end(&mut self) -> Vec<Action> {
        if std::mem::replace(&mut self.ending, true) {
            return Vec::new();
        }
        match &self.stage {
            Stage::Pending(pending) if pending.clock > self.front => self.again(),
            Stage::Idle if self.servers > 0 => vec![self.propose()],
            _ => Vec::new(),
        }
    }

    /// The job ends before it began; this cut, which it was to go on from, holds all that there is.
    pub fn end_at(&mut self, number: u64, clock: Clock) {
        self.ended = Some(Ended::Saved(number, clock));
    }

    /// How the wish to end went, once that is known.
    pub fn ended(&self) -> Option<&Ended> {
        self.ended.as_ref()
    }

    /// A node answered.
    pub fn answered(&mut self, node: Node, number: u64, passed: Option<Clock>) -> Vec<Action> {
        self.seen(passed.unwrap_or(0));
        let Stage::Pending(pending) = &mut self.stage else { return Vec::new() };
        if pending.number != number || !pending.unanswered.remove(&node) {
            return Vec::new();
        }
        pending.passed = pending.passed.max(passed);
        if pending.unanswered.is_empty() && pending.passed.is_some() {
            self.attempts += 1;
            return self.again();
        }
        self.commit()
    }

    /// A worker's state came.
    pub fn state(&mut self, rank: Rank, number: u64, state: Vec<u8>) -> Vec<Action> {
        if number == 0 {
            self.finished.insert(rank, state);
            return Vec::new();
        }
        if let Stage::Pending(pending) = &mut self.stage
            && pending.number == number
        {
            pending.states.insert(rank, state);
        }
        self.commit()
    }

    /// A worker has finished: what it saved last stands for it from now on.
    pub fn worker_finished(&mut self, rank: Rank) -> Vec<Action> {
        let last = self.finished.entry(rank).or_default().clone();
        if let Stage::Pending(pending) = &mut self.stage {
            pending.states.entry(rank).or_insert(last);
            let number = pending.number;
            let mut actions = self.answered(Node::Worker(rank), number, None);
            // It may have answered before, and only its state was missing.
            actions.extend(self.commit());
            return actions;
        }
        Vec::new()
    }

    /// A server has written its files.
    pub fn written(&mut self, rank: Rank, number: u64, files: Vec<WrittenFile>) -> Vec<Action> {
        if let Stage::Pending(pending) = &mut self.stage
            && pending.number == number
            && pending.written.insert(rank)
        {
            pending.files.extend(files);
        }
        self.commit()
    }

    /// A server can't write its files. The cut is given up; the next is made when it is due.
    pub fn failed(&mut self, number: u64, why: String, now: Instant) -> Vec<Action> {
        let Stage::Pending(Pending { number: pending, clock, .. }) = self.stage else { return Vec::new() };
        if pending != number {
            return Vec::new();
        }
        self.stage = Stage::Idle;
        self.last = self.last.max(clock);
        let mut actions = vec![Action::TellAll(ControlMessage::CancelCut { number })];
        if self.ending {
            self.ended = Some(Ended::Failed(why));
        } else {
            actions.extend(self.plan(now));
        }
        actions
    }

    /// What [`Action::Commit`] asked for is done, or can't be.
    pub fn committed(&mut self, number: u64, outcome: Result<(), String>, now: Instant) -> Vec<Action> {
        let Stage::Committing(clock) = self.stage else { return Vec::new() };
        self.stage = Stage::Idle;
        self.last = self.last.max(clock);
        self.attempts = 0;
        match outcome {
            _ if !self.ending => return self.plan(now),
            Ok(()) => self.ended = Some(Ended::Saved(number, clock)),
            Err(why) => self.ended = Some(Ended::Failed(why)),
        }
        Vec::new()
    }

    /// Plans the next cut.
    fn plan(&mut self, now: Instant) -> Vec<Action> {
        match self.every {
            _ if self.ending => vec![self.propose()],
            None => Vec::new(),
            Some(Every::Clocks(_)) => vec![self.propose()],
            Some(Every::Time(every)) => {
                self.due = now.checked_add(every.max(Duration::from_secs(1)));
                Vec::new()
            }
        }
    }

    /// Names a clock anew.
    fn again(&mut self) -> Vec<Action> {
        let Stage::Pending(Pending { number, .. }) = self.stage else { return Vec::new() };
        vec![Action::TellAll(ControlMessage::CancelCut { number }), self.propose()]
    }

    fn propose(&mut self) -> Action {
        let ahead = (1u64 << self.attempts.min(32)) - 1;
        let soonest = self.front.saturating_add(ahead).max(self.last.saturating_add(u64::from(!self.ending)));
        let clock = match self.every {
            Some(Every::Clocks(every)) if !self.ending => soonest.div_ceil(every).saturating_mul(every),
            _ => soonest,
        };
        let number = self.next;
        self.next += 1;
        let workers = (0..self.workers).filter(|rank| !self.finished.contains_key(rank)).map(Node::Worker);
        self.stage = Stage::Pending(Pending {
            number,
            clock,
            unanswered: workers.chain((0..self.servers).map(Node::Server)).collect(),
            passed: None,
            states: self.finished.clone(),
            written: BTreeSet::new(),
            files: Vec::new(),
        });
        Action::TellAll(ControlMessage::Cut { number, clock })
    }

    fn commit(&mut self) -> Vec<Action> {
        let Stage::Pending(pending) = &mut self.stage else { return Vec::new() };
        let complete = pending.unanswered.is_empty()
            && pending.states.len() == self.workers as usize
            && pending.written.len() == self.servers as usize;
        if !complete {
            return Vec::new();
        }
        let commit = Commit {
            number: pending.number,
            clock: pending.clock,
            states: std::mem::take(&mut pending.states).into_values().collect(),
            files: std::mem::take(&mut pending.files),
        };
        self.stage = Stage::Committing(commit.clock);
        vec![Action::Commit(commit)]
    }
}

#[cfg(test)]
#[path = "cuts_tests.rs"]
mod tests;
