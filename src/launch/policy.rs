//! Decides what the supervisor does when children end, signals come and time passes. Sans-io.
//!
//! ```text
//! Running ──workers all done──▶ Draining ──grace──▶ Terminating ──grace──▶ Killing ──grace──▶ Lost
//!    │                             │                     ▲
//!    └──────── a failure ──────────┴▶ Settling ─▶ Reporting
//! ```
//! A signal to the supervisor, or the loss of its standard output, leads from any of the first phases straight to
//! Terminating; but where the job can be saved, SIGTERM and SIGUSR1 lead from Running to Saving, which goes on as Running does
//! until the coordinator stops the tree, and to Terminating when its time is over. The tree is done, in any phase, when every child has ended; or in Lost.

use std::time::{Duration, Instant};

use signal_hook::consts::{SIGPIPE, SIGTERM, SIGUSR1};
use signal_hook::low_level::signal_name;

use super::{ChildRole, Outcome};

/// How long the kernel may take over SIGKILL before the child is given up: one that hangs in a dead file system may
/// never go.
pub(super) const DYING: Duration = Duration::from_secs(5);

/// Within this time after the signal that the job is to save itself for, another one says the same: a launcher passes on what the
/// batch system has sent to all processes.
const AGAIN: Duration = Duration::from_secs(1);

/// How a child ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Exit {
    /// With this exit code.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

/// What the supervisor is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Action {
    /// Print this on standard error.
    Say(String),
    /// Send this signal to every child's process group.
    Signal(i32),
    /// Send SIGKILL to every child's process group.
    Kill,
    /// Ask for the job to be saved and stopped.
    Save,
}

/// The three times of [`super::TreeConfig`].
#[derive(Debug, Clone, Copy)]
pub(super) struct Times {
    pub(super) grace: Duration,
    pub(super) settle: Duration,
    pub(super) report: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The job runs.
    Running,
    /// The job was asked to save itself and to stop, because of this signal.
    Saving { since: Instant, until: Instant, signal: i32 },
    /// Every worker ended well; the servers are ending by themselves.
    Draining { until: Instant },
    /// Something failed; a weightier cause may still replace it.
    Settling { since: Instant },
    /// The cause is printed; the others may report what they saw.
    Reporting { until: Instant },
    /// The groups were told to end.
    Terminating { until: Instant },
    /// The groups were killed.
    Killing { until: Instant },
    /// The kernel does not let some child die. We do not wait for it.
    Lost,
}

/// How likely a failure is the first one rather than a consequence of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Weight {
    /// A server ended with 0 while workers were still there: fine if they end well or the job is called finished.
    Early,
    /// The process says, by its exit code, that it failed because another did.
    Consequence,
    /// The coordinator says so, and names the other.
    Told,
    /// A failure that the process itself reported: it may report what another did to it.
    Reported,
    /// Killed from outside: no peer's failure does that.
    Killed,
}

#[derive(Debug, Clone)]
struct Cause {
    text: String,
    code: i32,
    weight: Weight,
}

#[derive(Debug)]
struct Member {
    /// Its name, and where it is: `worker 0 (pid 77)`.
    who: String,
    role: ChildRole,
    ended: bool,
}

/// The state of one tree.
#[derive(Debug)]
pub(super) struct Policy {
    command: String,
    times: Times,
    consequences: Vec<i32>,
    /// How long the job may take to save itself; none where it can't.
    save: Option<Duration>,
    phase: Phase,
    members: Vec<Member>,
    cause: Option<Cause>,
    /// Servers may end: the coordinator called the job finished.
    finished: bool,
    actions: Vec<Action>,
}

impl Policy {
    /// A tree without children yet.
    pub(super) fn new(command: &str, times: Times, consequences: &[i32]) -> Policy {
        Policy {
            command: command.to_owned(),
            times,
            consequences: consequences.to_vec(),
            save: None,
            phase: Phase::Running,
            members: Vec::new(),
            cause: None,
            finished: false,
            actions: Vec::new(),
        }
    }

    /// The job can save itself, within this time.
    pub(super) fn can_save(&mut self, within: Duration) {
        self.save = Some(within);
    }

    /// A child was started; messages call it `who`. Children are numbered in the order of these calls.
    pub(super) fn started(&mut self, who: String, role: ChildRole) {
        self.members.push(Member { who, role, ended: false });
    }

    /// A child ended.
    pub(super) fn exited(&mut self, child: usize, exit: Exit, now: Instant) {
        self.members[child].ended = true;
        // From Reporting on, the ends of the others are consequences.
        if self.is_early() {
            if let Some(cause) = self.judge(child, exit) {
                self.blame(cause, now);
            }
            self.workers_done(now);
        }
        if self.all_ended() && matches!(self.phase, Phase::Settling { .. }) {
            self.announce(now);
        }
    }

    /// The coordinator, or whoever holds a handle, wants the tree stopped.
    pub(super) fn stop(&mut self, reason: String, code: i32, now: Instant) {
        if self.is_early() {
            let saved = matches!(self.phase, Phase::Saving { .. }) && !self.consequences.contains(&code);
            // A job that has saved itself was told to end: nothing that happens on the way outweighs that.
            let weight = if saved { Weight::Killed } else { self.weight(code).max(Weight::Told) };
            self.blame(Cause { text: reason, code, weight }, now);
        }
    }

    /// The coordinator says that every worker finished: from now on a server may end.
    pub(super) fn job_finished(&mut self) {
        self.finished = true;
        if self.cause.as_ref().is_some_and(|cause| cause.weight == Weight::Early)
            && matches!(self.phase, Phase::Settling { .. })
        {
            self.cause = None;
            self.phase = Phase::Running;
        }
    }

    /// The supervisor itself got a signal. The first stops the tree, a second one kills it.
    pub(super) fn signalled(&mut self, signal: i32, now: Instant) {
        if let (Phase::Saving { since, .. }, SIGTERM | SIGUSR1) = (self.phase, signal)
            && now < since + AGAIN
        {
            return;
        }
        if let (Phase::Running, Some(within), SIGTERM | SIGUSR1) = (self.phase, self.save, signal) {
            let line = format!("received {}; a last checkpoint within {within:?}", describe(signal));
            self.say(&line);
            self.actions.push(Action::Save);
            self.phase = Phase::Saving { since: now, until: now + within, signal };
            return;
        }
        let text = format!("received {}", describe(signal));
        self.halt(Cause { text, code: 128 + signal, weight: Weight::Killed }, signal, now);
    }

    /// Nobody reads our output any more.
    pub(super) fn output_closed(&mut self, which: &str, now: Instant) {
        if self.is_early() {
            let cause =
                Cause { text: format!("{which} was closed"), code: 128 + SIGPIPE, weight: Weight::Killed };
            self.halt(cause, SIGTERM, now);
        }
    }

    /// Time has passed.
    pub(super) fn tick(&mut self, now: Instant) {
        // One call may pass several phases if the loop was held up; each starts its own time then.
        while self.deadline().is_some_and(|deadline| now >= deadline) && !self.done() {
            match self.phase {
                Phase::Draining { .. } => {
                    let hint = if self.finished { "" } else { " (did the workers ever join the job?)" };
                    let late = format!(
                        "{} did not end within {:?} after the workers{hint}; stopping",
                        self.alive(),
                        self.times.grace
                    );
                    self.say(&late);
                    self.terminate(SIGTERM, now);
                }
                Phase::Saving { signal, .. } => {
                    let text = format!("received {}, and there was no checkpoint in time", describe(signal));
                    self.halt(Cause { text, code: 128 + signal, weight: Weight::Killed }, SIGTERM, now);
                }
                Phase::Settling { .. } => self.announce(now),
                Phase::Reporting { .. } => self.terminate(SIGTERM, now),
                Phase::Terminating { .. } => self.kill(now),
                Phase::Killing { .. } => {
                    let stuck = format!("{} could not be killed", self.alive());
                    self.say(&stuck);
                    self.phase = Phase::Lost;
                }
                Phase::Running | Phase::Lost => break,
            }
        }
    }

    /// When [`Policy::tick`] must be called next.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match self.phase {
            Phase::Running | Phase::Lost => None,
            Phase::Settling { since } => Some(since + self.patience()),
            Phase::Saving { until, .. }
            | Phase::Draining { until }
            | Phase::Reporting { until }
            | Phase::Terminating { until }
            | Phase::Killing { until } => Some(until),
        }
    }

    /// What is to be done, in order; each action is handed out once.
    pub(super) fn take_actions(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.actions)
    }

    /// Whether the tree is at its end.
    pub(super) fn done(&self) -> bool {
        self.all_ended() || self.phase == Phase::Lost
    }

    /// How it ended, or would end now.
    pub(super) fn outcome(&self) -> Outcome {
        match &self.cause {
            Some(cause) => Outcome { code: cause.code, cause: Some(cause.text.clone()) },
            None => Outcome { code: 0, cause: None },
        }
    }

    /// Nothing has been decided yet.
    fn is_early(&self) -> bool {
        use Phase::{Draining, Running, Saving, Settling};
        matches!(self.phase, Running | Saving { .. } | Draining { .. } | Settling { .. })
    }

    fn all_ended(&self) -> bool {
        self.members.iter().all(|member| member.ended)
    }

    fn judge(&self, child: usize, exit: Exit) -> Option<Cause> {
        let Member { who, role, .. } = &self.members[child];
        let workers_left = self.members.iter().any(|other| other.role == ChildRole::Worker && !other.ended);
        match exit {
            Exit::Signal(signal) => {
                // SIGPIPE is what a process dies of when the peer that it writes to is gone.
                let weight = if signal == SIGPIPE { Weight::Reported } else { Weight::Killed };
                let text = format!("{who} was killed by signal {signal} ({})", describe(signal));
                Some(Cause { text, code: 128 + signal, weight })
            }
            Exit::Code(0) if *role == ChildRole::Server && workers_left && !self.finished => Some(Cause {
                text: format!("{who} ended before the workers did"),
                code: 1,
                weight: Weight::Early,
            }),
            Exit::Code(0) => None,
            Exit::Code(code) => {
                let text = format!("{who} failed with exit code {code}");
                Some(Cause { text, code, weight: self.weight(code) })
            }
        }
    }

    /// The weight of a failure that is known by its exit code.
    fn weight(&self, code: i32) -> Weight {
        if self.consequences.contains(&code) { Weight::Consequence } else { Weight::Reported }
    }

    /// How long a weightier cause is waited for. Where all that is known is a consequence, its cause must still come: as
    /// long as reports may take, on a loaded machine.
    fn patience(&self) -> Duration {
        match &self.cause {
            Some(Cause { weight: Weight::Consequence | Weight::Told, .. }) => self.times.report,
            _ => self.times.settle,
        }
    }

    /// Takes `cause` for the first failure unless one of at least its weight is known.
    fn blame(&mut self, cause: Cause, now: Instant) {
        if !matches!(self.phase, Phase::Settling { .. }) {
            self.phase = Phase::Settling { since: now };
        }
        if self.cause.as_ref().is_none_or(|known| known.weight < cause.weight) {
            self.cause = Some(cause);
        }
    }

    /// Goes on to Draining when every worker has ended and none of them failed.
    fn workers_done(&mut self, now: Instant) {
        let all = self.members.iter().all(|member| member.role == ChildRole::Server || member.ended);
        let well = self.cause.as_ref().is_none_or(|cause| cause.weight == Weight::Early);
        if all && well && !matches!(self.phase, Phase::Draining { .. }) {
            self.cause = None;
            self.phase = Phase::Draining { until: now + self.times.grace };
        }
    }

    /// Ends Settling: prints the cause and gives the others time for their reports.
    fn announce(&mut self, now: Instant) {
        let since = if let Phase::Settling { since } = self.phase { since } else { now };
        let others = if self.all_ended() { "" } else { "; stopping the others" };
        let text = self.cause.as_ref().map_or("", |cause| cause.text.as_str());
        let line = format!("{text}{others}");
        self.say(&line);
        self.phase = Phase::Reporting { until: since + self.times.report };
    }

    /// Stops the tree at once; the second time, kills it.
    fn halt(&mut self, cause: Cause, signal: i32, now: Instant) {
        match self.phase {
            Phase::Running | Phase::Saving { .. } | Phase::Draining { .. } => {
                let line = format!("{}; stopping", cause.text);
                self.say(&line);
                self.cause = Some(cause);
                self.terminate(signal, now);
            }
            Phase::Settling { .. } => {
                self.announce(now);
                self.terminate(signal, now);
            }
            Phase::Reporting { .. } => self.terminate(signal, now),
            Phase::Terminating { .. } => self.kill(now),
            Phase::Killing { .. } | Phase::Lost => {}
        }
    }

    fn terminate(&mut self, signal: i32, now: Instant) {
        // What SIGUSR1 means to the children is theirs to say.
        let signal = if signal == SIGUSR1 { SIGTERM } else { signal };
        self.actions.push(Action::Signal(signal));
        self.phase = Phase::Terminating { until: now + self.times.grace };
    }

    fn kill(&mut self, now: Instant) {
        self.actions.push(Action::Kill);
        self.phase = Phase::Killing { until: now + DYING };
    }

    fn say(&mut self, text: &str) {
        self.actions.push(Action::Say(format!("{}: {text}\n", self.command)));
    }

    fn alive(&self) -> String {
        let alive = self.members.iter().filter(|member| !member.ended);
        alive.map(|member| member.who.as_str()).collect::<Vec<_>>().join(", ")
    }
}

fn describe(signal: i32) -> String {
    signal_name(signal).map_or_else(|| format!("signal {signal}"), str::to_owned)
}

#[cfg(test)]
#[path = "policy_tests.rs"]
mod tests;
