//! Cooperative threads: real, blocking code under virtual time.
//!
//! Each node of a simulation runs on a thread of its own, but only the one that holds the turn runs. It gives the turn away
//! where it would sleep ([`Transport::arm`](crate::transport::Transport::arm), [`SimNode::sleep`], [`SimNode::wait_for`]); who
//! gets it next, and what happens in the network before, is drawn from the seed. So a run is a function of its seed. When
//! nobody can go on and nothing is to happen, that is a deadlock, and every node says what it waits for.

use std::any::Any;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Condvar, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::world::World;
use super::{Sim, SimNetwork, nanoseconds};
use crate::error::{Error, Result};

/// Why a node does not run.
enum Pause {
    /// It could.
    Ready,
    /// Until its transport has something, or it is nudged.
    Armed,
    /// Until this is true.
    Hearing(Arc<dyn Fn() -> bool + Send + Sync>),
    Sleeping,
    Finished,
}

pub(super) struct Thread {
    turn: Arc<Condvar>,
    pause: Pause,
    /// What it does, for messages.
    doing: String,
    crashed: bool,
}

#[derive(Default)]
pub(super) struct Schedule {
    /// Who has the turn.
    current: Option<usize>,
    /// No more turns: all have finished, or the simulation has failed.
    over: bool,
    failure: Option<String>,
    steps: u64,
    handles: Vec<JoinHandle<()>>,
}

/// Unwinds a node's thread without a word: it crashed, or the simulation is over.
struct Halt;

/// Why a simulation failed: a node panicked, or nobody could go on. It names the seed.
#[derive(Debug, Clone)]
pub struct SimFailure(pub String);

impl fmt::Display for SimFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl World {
    /// Who gets the turn next. Things happen in the network meanwhile.
    fn next(&mut self) -> Option<usize> {
        while !self.schedule.over {
            self.schedule.steps += 1;
            if self.schedule.steps > self.options.most_steps {
                self.fail(&format!("no end after {} steps", self.options.most_steps));
                break;
            }
            let able: Vec<usize> = (0..self.nodes.len()).filter(|&n| self.is_able(n)).collect();
            // The network is one candidate more: it may be faster than those who could run.
            let network = usize::from(!self.is_quiet());
            match self.random.below((able.len() + network) as u64) as usize {
                pick if pick < able.len() => {
                    self.note(able[pick] as u64);
                    return Some(able[pick]);
                }
                _ if network == 1 => {
                    self.step();
                }
                _ => self.stalled(),
            }
        }
        None
    }

    fn is_able(&self, node: usize) -> bool {
        let node = &self.nodes[node];
        node.thread.as_ref().is_some_and(|thread| match &thread.pause {
            _ if thread.crashed => !matches!(thread.pause, Pause::Finished),
            Pause::Ready => true,
            Pause::Armed => node.nudged || !node.outbox.is_empty(),
            Pause::Hearing(ear) => ear(),
            Pause::Sleeping | Pause::Finished => false,
        })
    }

    /// Nobody can go on, and nothing will happen: all have finished, or it is a deadlock.
    fn stalled(&mut self) {
        let unfinished = |t: &Thread| !matches!(t.pause, Pause::Finished);
        let waiting: Vec<String> = self
            .nodes
            .iter()
            .filter_map(|n| Some((n, n.thread.as_ref().filter(|t| unfinished(t))?)))
            .map(|(node, thread)| format!("{}: {}", node.name, thread.doing))
            .collect();
        if waiting.is_empty() {
            self.schedule.over = true;
        } else {
            self.fail(&format!(
                "deadlock: nothing is left to happen, and these wait:\n{}",
                waiting.join("\n")
            ));
        }
    }

    fn fail(&mut self, why: &str) {
        let found = format!("seed {} at {} ns: {why}", self.seed, self.now);
        self.schedule.failure.get_or_insert(found);
        self.schedule.over = true;
    }

    pub(super) fn wake(&mut self, node: usize) {
        if let Some(thread) = &mut self.nodes[node].thread
            && matches!(thread.pause, Pause::Sleeping)
        {
            thread.pause = Pause::Ready;
        }
    }

    /// Gives the turn to the next node, or ends the simulation.
    fn pass(&mut self) {
        self.schedule.current = self.next();
        match self.schedule.current.and_then(|next| self.nodes[next].thread.as_ref()) {
            Some(thread) => thread.turn.notify_all(),
            None => self.nodes.iter().filter_map(|n| n.thread.as_ref()).for_each(|t| t.turn.notify_all()),
        }
    }

    fn halts(&self, node: usize) -> bool {
        self.schedule.over || self.nodes[node].thread.as_ref().is_some_and(|t| t.crashed)
    }
}

impl SimNetwork {
    /// Adds a node that runs `body` on a thread of its own once it gets the turn. Gives its number.
    pub fn spawn(&self, name: &str, body: impl FnOnce(SimNode) + Send + 'static) -> Result<usize> {
        let turn = Arc::new(Condvar::new());
        let thread = Thread { turn, pause: Pause::Ready, doing: "beginning".to_owned(), crashed: false };
        let id = self.lock().add(name, Some(thread));
        let node = SimNode { network: self.clone(), id };
        let handle = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || node.live(body))
            .map_err(|e| Error::io("start thread", name, e))?;
        self.lock().schedule.handles.push(handle);
        Ok(id)
    }

    /// Runs until all nodes have finished.
    ///
    /// # Errors
    /// A node panicked, or a deadlock: nothing is left to happen and some node is not finished.
    pub fn run(&self) -> std::result::Result<(), SimFailure> {
        let mut world = self.lock();
        world.pass();
        while !world.schedule.over {
            world = self.over().wait(world).unwrap_or_else(PoisonError::into_inner);
        }
        let handles = std::mem::take(&mut world.schedule.handles);
        let failure = world.schedule.failure.clone();
        drop(world);
        for handle in handles {
            // What it panicked with stands in `failure`.
            let _ = handle.join();
        }
        failure.map_or(Ok(()), |why| Err(SimFailure(why)))
    }

    /// A node's process dies where it stands. Its connections break, and its thread ends when it gets the turn.
    pub fn crash(&self, node: usize) {
        let mut world = self.lock();
        world.crash(node);
        if let Some(thread) = &mut world.nodes[node].thread {
            thread.crashed = true;
        }
    }

    /// Has a node that sleeps in `arm` look again: somebody left something for it outside the network.
    pub fn nudge(&self, node: usize) {
        self.lock().nudge(node);
    }
}

/// A node of a simulation, as its own thread sees it.
#[derive(Debug, Clone)]
pub struct SimNode {
    network: SimNetwork,
    id: usize,
}

impl SimNode {
    /// Its number.
    pub fn id(&self) -> usize {
        self.id
    }

    /// Its network.
    pub fn network(&self) -> &SimNetwork {
        &self.network
    }

    /// Its transport. Call it once.
    pub fn transport(&self) -> Result<Sim> {
        Sim::new(&self.network, self.id)
    }

    /// Says what it does now: a deadlock's message tells it.
    pub fn doing(&self, what: impl Into<String>) {
        if let Some(thread) = &mut self.network.lock().nodes[self.id].thread {
            thread.doing = what.into();
        }
    }

    /// Ends the simulation: it has failed.
    pub fn fail(&self, why: &str) -> ! {
        let mut world = self.network.lock();
        let found = format!("{}: {why}", world.nodes[self.id].name);
        world.fail(&found);
        drop(world);
        resume_unwind(Box::new(Halt))
    }

    /// Lets virtual time pass.
    pub fn sleep(&self, time: Duration) {
        self.network.lock().sleep(self.id, nanoseconds(time));
        self.pause(Pause::Sleeping);
    }

    /// Waits until `ear` is true. It is asked whenever a node gives the turn away, and must not call the network.
    pub fn wait_for(&self, what: &str, ear: impl Fn() -> bool + Send + Sync + 'static) {
        self.doing(what);
        let ear = Arc::new(ear);
        while !ear() {
            self.pause(Pause::Hearing(ear.clone()));
        }
    }

    pub(super) fn arm(network: &SimNetwork, id: usize) {
        SimNode { network: network.clone(), id }.pause(Pause::Armed);
    }

    /// Gives the turn away and waits for it.
    fn pause(&self, pause: Pause) {
        // A thread that unwinds is let through: it is about to end.
        if std::thread::panicking() {
            return;
        }
        let mut world = self.network.lock();
        self.set(&mut world, pause);
        if !world.schedule.over {
            world.pass();
        }
        let mut world = self.turn(world);
        self.set(&mut world, Pause::Ready);
        if world.halts(self.id) {
            drop(world);
            resume_unwind(Box::new(Halt));
        }
    }

    fn set(&self, world: &mut World, pause: Pause) {
        if let Some(thread) = &mut world.nodes[self.id].thread {
            thread.pause = pause;
        }
    }

    /// Waits for the turn, or for the end.
    fn turn<'a>(&self, mut world: MutexGuard<'a, World>) -> MutexGuard<'a, World> {
        let turn = world.nodes[self.id].thread.as_ref().map(|t| t.turn.clone());
        while let Some(turn) = &turn
            && world.schedule.current != Some(self.id)
            && !world.schedule.over
        {
            world = turn.wait(world).unwrap_or_else(PoisonError::into_inner);
        }
        world
    }

    fn live(self, body: impl FnOnce(SimNode)) {
        let world = self.turn(self.network.lock());
        let halts = world.halts(self.id);
        drop(world);
        let outcome = if halts { Ok(()) } else { catch_unwind(AssertUnwindSafe(|| body(self.clone()))) };
        let mut world = self.network.lock();
        if let Err(panic) = outcome
            && !panic.is::<Halt>()
        {
            let why = format!("{} panicked: {}", world.nodes[self.id].name, text(&*panic));
            world.fail(&why);
        }
        self.set(&mut world, Pause::Finished);
        world.pass();
        if world.schedule.over {
            self.network.over().notify_all();
        }
    }
}

fn text(panic: &(dyn Any + Send)) -> &str {
    let owned = panic.downcast_ref::<String>().map(String::as_str);
    owned.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("without a text")
}
