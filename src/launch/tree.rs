//! The supervisor: starts the children, owns their pipes, and runs one loop in the calling thread until all have
//! ended and nothing of them is left.

use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};

use super::guard::Guard;
use super::output::Output;
use super::policy::{Action, DYING, Exit, Policy, Times};
use super::relay::LineCutter;
use super::signals::Signals;
use super::spawn::spawn;
use super::sweep::sweep;
use super::{Child, ChildRole, Outcome, TreeConfig};
use crate::error::{Error, Result};

/// How much of one pipe is read at a time: what a pipe holds by default.
const READ: usize = 64 * 1024;

/// A process tree that can be run once. From [`Tree::new`] on, SIGINT, SIGTERM, SIGHUP, SIGQUIT and SIGUSR1 to this process
/// are kept for it instead of ending the process.
pub struct Tree {
    config: TreeConfig,
    signals: Signals,
    requests: mpsc::Receiver<Request>,
    wakeups: UnixStream,
    handle: TreeHandle,
    save: Option<Save>,
}

/// How a job is told to save itself, and how long that may take.
struct Save {
    within: Duration,
    ask: Box<dyn Fn()>,
}

/// Lets another thread, the coordinator's, talk to the tree's loop. Calls after the tree's end do nothing.
#[derive(Debug, Clone)]
pub struct TreeHandle {
    sender: mpsc::Sender<Request>,
    waker: Arc<UnixStream>,
}

#[derive(Debug)]
enum Request {
    Stop { reason: String, code: i32 },
    JobFinished,
    Signal(i32),
}

impl TreeHandle {
    /// Stops the tree like a child's failure does: prints `reason`, unless a child that was killed explains it, gives
    /// the children time for their own reports, then ends them. `code` becomes the exit code.
    pub fn stop(&self, reason: impl Into<String>, code: i32) {
        self.send(Request::Stop { reason: reason.into(), code });
    }

    /// Every worker has finished its part: from now on a server may end with 0 before the worker processes do.
    pub fn job_finished(&self) {
        self.send(Request::JobFinished);
    }

    /// Does what this signal to the supervisor does.
    pub fn signal(&self, signal: i32) {
        self.send(Request::Signal(signal));
    }

    fn send(&self, request: Request) {
        // Both fail only when the tree is gone, or when so many wake-ups wait already that one more says nothing new.
        let _ = self.sender.send(request);
        let _ = (&*self.waker).write(&[1]);
    }
}

impl Tree {
    /// Prepares a tree; starts nothing yet.
    pub fn new(config: TreeConfig) -> Result<Tree> {
        let failed = |e| Error::io("socketpair", "wake-ups", e);
        let (wakeups, waker) = UnixStream::pair().map_err(failed)?;
        wakeups.set_nonblocking(true).map_err(failed)?;
        waker.set_nonblocking(true).map_err(failed)?;
        let (sender, requests) = mpsc::channel();
        let handle = TreeHandle { sender, waker: Arc::new(waker) };
        Ok(Tree { config, signals: Signals::catch()?, requests, wakeups, handle, save: None })
    }

    /// The job can save itself within this time. At the first SIGTERM or SIGUSR1 `ask` is called, and the tree waits for
    /// [`TreeHandle::stop`] before it ends the children. These ignore both signals, which a batch system sends to every process that
    /// it knows: they are needed until the job is saved. So what does not end by itself then is killed when its grace is over.
    pub fn when_told_to_end(&mut self, within: Duration, ask: impl Fn() + 'static) {
        self.save = Some(Save { within, ask: Box::new(ask) });
    }

    /// A handle for other threads.
    pub fn handle(&self) -> TreeHandle {
        self.handle.clone()
    }

    /// Starts `children`, in this order, and returns when all have ended and nothing of them is left. There must be a
    /// worker among them.
    ///
    /// The children's lives are bound to the calling thread: the kernel kills them if it ends. An error (a program
    /// that can't be started, say) leaves nothing behind either.
    pub fn run(self, children: &[Child]) -> Result<Outcome> {
        if !children.iter().any(|child| child.role == ChildRole::Worker) {
            return Err(Error::Misuse {
                call: "Tree::run",
                reason: "a tree needs at least one worker".into(),
            });
        }
        let mut running = Running::start(&self, children)?;
        while !running.policy.done() {
            running.step()?;
        }
        running.clean_up();
        running.flush()
    }
}

/// A tree whose children live. Dropping it ends them.
struct Running<'a> {
    tree: &'a Tree,
    policy: Policy,
    members: Vec<Member>,
    /// Standard output and standard error.
    outputs: [Output; 2],
    buffer: Vec<u8>,
    /// `None` once everything has been cleaned up.
    guard: Option<Guard>,
}

struct Member {
    process: std::process::Child,
    pid: Pid,
    /// Its standard output and standard error, until they end.
    streams: [Option<Stream>; 2],
    /// The standard input of a remote shell.
    input: Option<Output>,
    /// It is a zombie.
    ended: bool,
}

struct Stream {
    source: OwnedFd,
    cutter: LineCutter,
}

/// Something that [`Running::wait`] found ready.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ready {
    Signal,
    Request,
    /// Stream `.1` of member `.0`.
    Stream(usize, usize),
    Output(usize),
    /// The input of this member.
    Input(usize),
}

impl<'a> Running<'a> {
    fn start(tree: &'a Tree, children: &[Child]) -> Result<Running<'a>> {
        let TreeConfig { command, consequences, grace, settle, report, .. } = &tree.config;
        let times = Times { grace: *grace, settle: *settle, report: *report };
        let mut running = Running {
            tree,
            policy: Policy::new(command, times, consequences),
            members: Vec::new(),
            outputs: [Output::to(io::stdout())?, Output::to(io::stderr())?],
            buffer: vec![0; READ],
            guard: Some(Guard::start(&tree.config)?),
        };
        if let Some(save) = &tree.save {
            running.policy.can_save(save.within);
        }
        for child in children {
            running.add(child)?;
        }
        Ok(running)
    }

    fn add(&mut self, child: &Child) -> Result<()> {
        let Some(guard) = &self.guard else { return Ok(()) }; // the tree is at its end already
        let spawned = spawn(child, &self.tree.config, guard, self.tree.save.is_some())?;
        let (input, who) = match (&child.remote, spawned.stdin) {
            (Some(remote), Some(stdin)) => {
                let mut input = Output::to(stdin)?;
                input.append(|queue| queue.extend_from_slice(&remote.order));
                (Some(input), format!("{} on {}", child.name, remote.host))
            }
            _ => (None, format!("{} (pid {})", child.name, spawned.process.id())),
        };
        self.policy.started(who, child.role);
        let name = child.prefix.then_some(child.name.as_str());
        let stream =
            |source: Option<OwnedFd>| source.map(|source| Stream { source, cutter: LineCutter::new(name) });
        self.members.push(Member {
            process: spawned.process,
            pid: spawned.pid,
            streams: [stream(spawned.stdout), stream(spawned.stderr)],
            input,
            ended: false,
        });
        Ok(())
    }

    /// Waits for something to happen and deals with it.
    fn step(&mut self) -> Result<()> {
        for ready in self.wait(self.policy.deadline())? {
            match ready {
                Ready::Signal => {
                    for signal in self.tree.signals.take() {
                        self.policy.signalled(signal, Instant::now());
                    }
                    // What was asked for before a child ended may say why it did.
                    self.take_requests();
                    self.look_for_ends()?;
                }
                Ready::Request => self.take_requests(),
                Ready::Stream(member, which) => {
                    self.read(member, which);
                }
                Ready::Output(which) => self.write(which),
                Ready::Input(member) => self.tell(member),
            }
        }
        self.policy.tick(Instant::now());
        for action in self.policy.take_actions() {
            self.act(action);
        }
        Ok(())
    }

    /// Polls everything until one is ready or `deadline` has come.
    fn wait(&self, deadline: Option<Instant>) -> Result<Vec<Ready>> {
        let (mut tokens, mut polled) = (Vec::new(), Vec::new());
        for socket in self.tree.signals.sockets() {
            tokens.push(Ready::Signal);
            polled.push(PollFd::new(socket, PollFlags::IN));
        }
        tokens.push(Ready::Request);
        polled.push(PollFd::new(&self.tree.wakeups, PollFlags::IN));
        for (index, member) in self.members.iter().enumerate() {
            for (which, stream) in member.streams.iter().enumerate() {
                if let Some(stream) = stream.as_ref().filter(|_| self.outputs[which].has_room()) {
                    tokens.push(Ready::Stream(index, which));
                    polled.push(PollFd::new(&stream.source, PollFlags::IN));
                }
            }
        }
        let outputs = self.outputs.iter().enumerate().map(|(which, output)| (Ready::Output(which), output));
        let inputs = self.members.iter().enumerate();
        let inputs = inputs.filter_map(|(at, member)| Some((Ready::Input(at), member.input.as_ref()?)));
        for (token, output) in outputs.chain(inputs) {
            if let Some(fd) = output.waiting() {
                tokens.push(token);
                polled.push(PollFd::new(fd, PollFlags::OUT));
            }
        }
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let timeout = left.map(|left| Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        });
        match poll(&mut polled, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(Error::io("poll", "the children's output", error.into())),
        }
        let ready = polled.iter().map(|polled| !polled.revents().is_empty());
        let mut found: Vec<Ready> =
            tokens.into_iter().zip(ready).filter_map(|(t, r)| r.then_some(t)).collect();
        found.dedup(); // several signals are one look
        Ok(found)
    }

    fn look_for_ends(&mut self) -> Result<()> {
        for (index, member) in self.members.iter_mut().enumerate().filter(|(_, member)| !member.ended) {
            // NOWAIT leaves the zombie, and with it the process id, in place.
            let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
            let status = waitid(WaitId::Pid(member.pid), options)
                .map_err(|e| Error::io("waitid", member.pid.as_raw_nonzero(), e.into()))?;
            let Some(status) = status else { continue };
            let exit = match (status.terminating_signal(), status.exit_status()) {
                (Some(signal), _) => Exit::Signal(signal),
                // A remote shell gives the exit code of what ran elsewhere.
                (None, Some(code @ 129..=159)) if member.input.is_some() => Exit::Signal(code - 128),
                (None, Some(code)) => Exit::Code(code),
                (None, None) => continue,
            };
            member.ended = true;
            self.policy.exited(index, exit, Instant::now());
        }
        Ok(())
    }

    fn take_requests(&mut self) {
        let mut bytes = [0; 64];
        while let Ok(1..) = (&self.tree.wakeups).read(&mut bytes) {}
        while let Ok(request) = self.tree.requests.try_recv() {
            match request {
                Request::Stop { reason, code } => self.policy.stop(reason, code, Instant::now()),
                Request::JobFinished => self.policy.job_finished(),
                Request::Signal(signal) => self.policy.signalled(signal, Instant::now()),
            }
        }
    }

    /// Relays one buffer full of a stream. False when there is nothing to read now.
    fn read(&mut self, member: usize, which: usize) -> bool {
        let Some(stream) = &mut self.members[member].streams[which] else { return false };
        match rustix::io::read(&stream.source, &mut self.buffer[..]) {
            Ok(count @ 1..) => {
                self.outputs[which].append(|queue| stream.cutter.push(&self.buffer[..count], queue));
                true
            }
            Err(Errno::AGAIN | Errno::INTR) => false,
            Ok(_) | Err(_) => {
                self.finish_stream(member, which);
                false
            }
        }
    }

    fn finish_stream(&mut self, member: usize, which: usize) {
        if let Some(mut stream) = self.members[member].streams[which].take() {
            self.outputs[which].append(|queue| stream.cutter.finish(queue));
        }
    }

    fn write(&mut self, which: usize) {
        if let Err(error) = self.outputs[which].write() {
            let name = ["standard output", "standard error"][which];
            let name = if error.kind() == io::ErrorKind::BrokenPipe {
                name.into()
            } else {
                format!("{name} ({error})")
            };
            self.policy.output_closed(&name, Instant::now());
        }
    }

    /// Writes to a remote shell. One that has ended is seen to end; nobody misses what it was to be told.
    fn tell(&mut self, member: usize) {
        if let Some(input) = &mut self.members[member].input {
            let _ = input.write();
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Say(_) if self.tree.config.quiet => {}
            Action::Say(line) => self.outputs[1].append(|queue| queue.extend_from_slice(line.as_bytes())),
            Action::Signal(signal) => {
                for input in self.members.iter_mut().filter_map(|member| member.input.as_mut()) {
                    input.append(|queue| queue.extend(u8::try_from(signal)));
                }
                if let Some(signal) = Signal::from_named_raw(signal) {
                    self.signal_groups(signal, |member| member.input.is_none());
                    // A stopped process acts on nothing but SIGKILL until it goes on.
                    self.signal_groups(Signal::CONT, |_| true);
                }
            }
            Action::Save => self.tree.save.iter().for_each(|save| (save.ask)()),
            Action::Kill => self.signal_groups(Signal::KILL, |_| true),
        }
    }

    fn signal_groups(&self, signal: Signal, which: impl Fn(&Member) -> bool) {
        for member in self.members.iter().filter(|member| which(member)) {
            // Refused only for a group of zombies or of processes that changed their user; the sweep looks again.
            let _ = kill_process_group(member.pid, signal);
        }
    }

    /// Ends what is left of every child, then the guard, then the zombies, whose ids are free only now.
    fn clean_up(&mut self) {
        self.signal_groups(Signal::KILL, |_| true);
        sweep(&self.tree.config.mark());
        self.guard = None;
        self.members.iter_mut().for_each(|member| member.input = None);
        let started = Instant::now();
        for member in &mut self.members {
            while matches!(member.process.try_wait(), Ok(None)) && started.elapsed() < DYING {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }

    /// Relays what the dead children still left in their pipes, and says how the tree ended.
    ///
    /// After success this waits for a slow reader as any program does; after a failure not longer than the grace.
    fn flush(mut self) -> Result<Outcome> {
        for action in self.policy.take_actions() {
            self.act(action);
        }
        let mut outcome = self.policy.outcome();
        let deadline = (outcome.code != 0).then(|| Instant::now() + self.tree.config.grace);
        loop {
            self.drain();
            if self.outputs.iter().all(|output| output.waiting().is_none())
                || deadline.is_some_and(|d| Instant::now() >= d)
            {
                return Ok(outcome);
            }
            for ready in self.wait(deadline)? {
                match ready {
                    Ready::Output(which) => self.write(which),
                    Ready::Request => self.take_requests(), // too late to change anything
                    Ready::Signal | Ready::Stream(..) | Ready::Input(_) => {}
                }
            }
            if let Some(signal) = self.tree.signals.take().first() {
                self.policy.signalled(*signal, Instant::now());
                outcome = self.policy.outcome();
                return Ok(outcome);
            }
        }
    }

    /// Reads every stream as far as there is room. Nobody writes any more: a stream that is empty now has ended, even
    /// if a process that escaped us keeps it open.
    fn drain(&mut self) {
        for member in 0..self.members.len() {
            for which in 0..self.outputs.len() {
                while self.outputs[which].has_room() && self.members[member].streams[which].is_some() {
                    if !self.read(member, which) {
                        self.finish_stream(member, which);
                    }
                }
            }
        }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        // Only on the way of an error.
        if self.guard.is_some() {
            self.clean_up();
        }
    }
}
