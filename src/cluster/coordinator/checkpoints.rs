//! Checkpoints: the job's cuts, and what a job goes on from.

use super::*;
use crate::cluster::cuts::{Action, Ended};
use crate::proto::control::WrittenFile;

/// What a resumed job goes on from.
#[derive(Debug, Clone)]
pub struct Resumed {
    /// The cut's number.
    pub number: u64,
    /// The clock that every worker begins in.
    pub clock: Clock,
    /// The workers' opaque states, by rank.
    pub states: Vec<Vec<u8>>,
    /// The tables by number; all servers make them, with what they held, before anybody asks.
    pub tables: Vec<TableSpec>,
}

impl Coordinator {
    /// The job is told to end, with a last checkpoint where it makes any; the one that it was to go on from counts as such while it has
    /// not begun. [`State::Failed`] follows, and [`Coordinator::saved`]
    /// tells what is left of it; unless its workers were done before.
    pub fn end(&mut self, out: &mut Vec<Output>) {
        match (&mut self.cuts, &self.config.resumed) {
            (Some(cuts), _) if self.state == State::Running => {
                let actions = cuts.end();
                self.act(actions, out);
            }
            // It has done nothing yet that the checkpoint that it goes on from does not hold.
            (Some(cuts), Some(resumed)) if matches!(self.state, State::Gathering | State::Verifying) => {
                cuts.end_at(resumed.number, resumed.clock);
                self.act(Vec::new(), out);
            }
            // It ends already, with all its work done.
            _ if matches!(self.state, State::Leaving | State::Done) => {}
            _ => self.abort("the job was told to end", out),
        }
    }

    /// The number and clock of the checkpoint with which the job ended, if it was told to and could make one.
    pub fn saved(&self) -> Option<(u64, Clock)> {
        match self.cuts.as_ref()?.ended()? {
            Ended::Saved(number, clock) => Some((*number, *clock)),
            Ended::Failed(_) => None,
        }
    }

    /// What [`Output::Commit`] asked for is done, or can't be.
    pub fn committed(
        &mut self,
        number: u64,
        outcome: Result<(), String>,
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        let Some(cuts) = &mut self.cuts else { return };
        let actions = cuts.committed(number, outcome, now);
        self.act(actions, out);
    }

    /// Has the servers read the cut that the job is to go on from, each a part. A damaged one would be found when a server takes its
    /// buckets from it, in the middle of the job, and again each time that the job is started.
    pub(super) fn verify(&mut self, out: &mut Vec<Output>) {
        let Some(Resumed { number, .. }) = &self.config.resumed else { return };
        self.state = State::Verifying;
        self.unverified = self.server_links.keys().copied().collect();
        for (part, &link) in (0..).zip(self.server_links.values()) {
            let message =
                ControlMessage::Verify { number: *number, part, of: self.server_links.len() as u32 };
            out.push(Output::Send { link, message });
        }
    }

    /// A server has read its part.
    pub(super) fn verified(
        &mut self,
        link: u64,
        number: u64,
        damage: Option<Damage>,
        now: Instant,
        out: &mut Vec<Output>,
    ) -> Result<(), Fault> {
        let (role, rank) = self.joined(link)?;
        let asked = self.config.resumed.as_ref().is_some_and(|resumed| resumed.number == number);
        if role != Role::Server || !asked || !self.unverified.remove(&rank) {
            return Err(format!("{role} {rank} was not asked to read cut {number}"));
        }
        if self.state != State::Verifying {
            return Ok(()); // the end has overtaken it
        }
        self.damage = self.damage.take().or(damage);
        if self.unverified.is_empty() {
            match self.damage.take() {
                Some(damage) => {
                    // Whoever tells the job to end meanwhile is not told that this cut holds all.
                    self.config.resumed = None;
                    out.push(Output::Damaged { number, damage });
                }
                None => self.start(now, out),
            }
        }
        Ok(())
    }

    /// The answer to [`Output::Damaged`]: an older cut.
    pub fn go_on_from(&mut self, resumed: Resumed, out: &mut Vec<Output>) {
        if self.state != State::Verifying {
            return;
        }
        if let Err(error) = check_workers(resumed.states.len() as u32, self.workers.unwrap_or(0)) {
            return self.abort(&error.to_string(), out);
        }
        self.cuts = self.config.cuts.map(|plan| Cuts::new(plan, resumed.clock));
        self.config.resumed = Some(resumed);
        self.verify(out);
    }

    /// Before the View: what the job goes on from.
    pub(super) fn resume(&self, out: &mut Vec<Output>) {
        let Some(Resumed { number, clock, states, .. }) = &self.config.resumed else { return };
        let mut tell = |link: u64, state: &[u8]| {
            let message = ControlMessage::Resume { number: *number, clock: *clock, state: state.to_vec() };
            out.push(Output::Send { link, message });
        };
        self.server_links.values().for_each(|&link| tell(link, &[]));
        for (&rank, &link) in &self.worker_links {
            tell(link, states.get(rank as usize).map_or(&[], Vec::as_slice));
        }
    }

    /// Behind the View: the tables that the job goes on with, and its first cut.
    pub(super) fn begin_cuts(&mut self, now: Instant, out: &mut Vec<Output>) {
        for spec in self.config.resumed.iter().flat_map(|resumed| &resumed.tables) {
            let Some(table) = self.catalogue.restore(spec, self.config.servers) else { continue };
            for &link in self.server_links.values() {
                out.push(Output::Send {
                    link,
                    message: ControlMessage::CreateTable { table, spec: spec.clone() },
                });
            }
        }
        let (servers, workers) = (self.config.servers, self.workers.unwrap_or(0));
        if let Some(cuts) = &mut self.cuts {
            let actions = cuts.begin(servers, workers, now);
            self.act(actions, out);
        }
    }

    pub(super) fn tick_cuts(&mut self, now: Instant, out: &mut Vec<Output>) {
        if self.state == State::Running
            && let Some(cuts) = &mut self.cuts
        {
            let actions = cuts.tick(now);
            self.act(actions, out);
        }
    }

    pub(super) fn cut_message(
        &mut self,
        link: u64,
        message: ControlMessage,
        now: Instant,
        out: &mut Vec<Output>,
    ) -> Result<(), Fault> {
        use crate::cluster::cuts::Node;
        let (role, rank) = self.joined(link)?;
        if self.state != State::Running {
            return Ok(()); // the end has overtaken it
        }
        let Some(cuts) = &mut self.cuts else {
            // A worker's last state comes unasked.
            return if matches!(message, ControlMessage::CutState { number: 0, .. }) {
                Ok(())
            } else {
                Err("of a job that is never cut".into())
            };
        };
        let actions = match (role, message) {
            (Role::Server, ControlMessage::CutAnswer { number, passed }) => {
                cuts.answered(Node::Server(rank), number, passed)
            }
            (Role::Worker, ControlMessage::CutAnswer { number, passed }) => {
                cuts.answered(Node::Worker(rank), number, passed)
            }
            (Role::Worker, ControlMessage::CutState { number, state }) => cuts.state(rank, number, state),
            (Role::Server, ControlMessage::CutWritten { number, files }) => {
                check_files(&files)?;
                cuts.written(rank, number, files)
            }
            (Role::Server, ControlMessage::CutFailed { number, reason }) => cuts.failed(number, reason, now),
            (role, _) => return Err(format!("not for a {role} to say")),
        };
        self.act(actions, out);
        Ok(())
    }

    pub(super) fn act(&mut self, actions: Vec<Action>, out: &mut Vec<Output>) {
        for action in actions {
            match action {
                Action::TellAll(message) => {
                    if let ControlMessage::CancelCut { number } = message {
                        out.push(Output::GiveUp { number });
                    }
                    let unfinished = |link: &&u64| self.nodes.get(link).is_some_and(|node| !node.finished);
                    let workers = self.worker_links.values().filter(unfinished);
                    for &link in self.server_links.values().chain(workers) {
                        out.push(Output::Send { link, message: message.clone() });
                    }
                }
                Action::Commit(commit) => {
                    out.push(Output::Commit { commit, tables: self.catalogue.specs() });
                }
            }
        }
        let ended = self.cuts.as_ref().and_then(|cuts| cuts.ended().cloned());
        match ended {
            Some(Ended::Saved(number, clock)) => {
                self.abort(&format!("told to end: cut {number} holds all up to clock {clock}"), out);
            }
            Some(Ended::Failed(why)) => {
                self.abort(&format!("told to end, and the last checkpoint failed: {why}"), out);
            }
            None => {}
        }
    }
}

/// A name that leads elsewhere would be written into the manifest.
fn check_files(files: &[WrittenFile]) -> Result<(), Fault> {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-';
    match files.iter().find(|file| file.name.is_empty() || !file.name.chars().all(plain)) {
        Some(file) => Err(format!("a file named {:?}", file.name)),
        None => Ok(()),
    }
}
