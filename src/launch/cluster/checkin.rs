//! All tasks of a launcher come together at one of them, the leader: each says who and where it is, and is told what it is to be.
//!
//! Here it is found out who can't reach the leader, before anything depends on it. The connection outlives the check-in: it stays
//! open, unused, in the program that the task becomes, so that the leader sees its end, whatever that program is.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::board::left;
use super::rendezvous::clear_away;
use crate::control::{Event, Hub, HubConfig, HubWaker, LinkId, this_process};
use crate::error::{Error, Result};
use crate::proto::bootstrap::Bootstrap;
use crate::proto::control::{ControlMessage, reason};
use crate::proto::secret::Secret;
use crate::time::Deadline;
use crate::types::{Rank, Role};

/// How long the leader's address is dialled.
const DIAL: Duration = Duration::from_secs(10);
/// How much longer than the leader a task waits that has reached it: the leader's word names who is missing.
const LAST_WORD: Duration = Duration::from_secs(3);
/// How long last words may take.
const FAREWELL: Duration = Duration::from_secs(1);

/// What a task says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckIn {
    /// Its number.
    pub task: u32,
    /// How many there are.
    pub tasks: u32,
    /// What it is, if that is decided already.
    pub role: Option<Role>,
    /// Its node.
    pub node: String,
}

/// What a task is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// What it is.
    pub role: Role,
    /// Its rank among those.
    pub rank: Rank,
    /// How many servers there are.
    pub servers: u32,
    /// How many workers there are.
    pub workers: u32,
    /// The Coordinator.
    pub coordinator: String,
    /// Its number among the tasks of its machine, servers before workers.
    pub local_index: u32,
    /// Threads of the job that wait for the network on its machine.
    pub pollers: u32,
    /// Its address in the network that leads to the leader.
    pub interface: IpAddr,
}

/// A name of the running system, which containers and network namespaces share.
fn machine() -> String {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    id.trim().chars().take(64).collect()
}

/// Checks in with the leader. The connection is to be kept open for as long as the task lives.
pub fn check_in(leader: &Bootstrap, us: &CheckIn, deadline: Deadline) -> Result<(Place, TcpStream)> {
    check_in_with(leader, &format!("the leading rank on {}", leader.host()), us, deadline)
}

/// The same with a leader that messages call `at`.
pub fn check_in_with(
    leader: &Bootstrap,
    at: &str,
    us: &CheckIn,
    deadline: Deadline,
) -> Result<(Place, TcpStream)> {
    let mut config = HubConfig::new(leader.secret().clone(), leader.job(), this_process(Role::Worker, None)?);
    // Shorter than the deadline: that no connection came about says more than that nothing was heard.
    config.limits.connect_timeout = DIAL.min(deadline.left(Instant::now()) / 4 * 3);
    let mut hub = Hub::new(config)?;
    let link = hub.dial(&leader.address().to_string(), at)?;
    let mut events = Vec::new();
    let now = Instant::now();
    let later = Deadline::after(now, deadline.left(now) + LAST_WORD);
    let mut until = deadline;
    loop {
        let (address, CheckIn { task, tasks, .. }) = (leader.address(), us);
        let waited_for =
            || format!("{at}, {address}, to say what rank {task} is (it waits for all {tasks} ranks)");
        hub.poll(&mut events, left(until, waited_for)?)?;
        for event in events.drain(..) {
            match event {
                Event::Up { link, .. } => {
                    until = later;
                    let CheckIn { task, tasks, role, node } = us.clone();
                    hub.send(link, &ControlMessage::CheckIn { task, tasks, role, node, machine: machine() })?;
                }
                Event::Message {
                    message:
                        ControlMessage::Placed { role, rank, servers, workers, coordinator, local_index, pollers },
                    ..
                } => {
                    let lost =
                        || Error::PeerLost { peer: at.to_owned(), reason: "the connection ended".into() };
                    let stream = hub.take_stream(link).ok_or_else(lost)?;
                    let local = stream.local_addr().map_err(|e| Error::io("getsockname", at, e))?;
                    let interface = local.ip().to_canonical();
                    let place =
                        Place { role, rank, servers, workers, coordinator, local_index, pollers, interface };
                    return Ok((place, stream));
                }
                Event::Message { message: ControlMessage::Abort { reason }, .. } => {
                    return Err(Error::Aborted { reason });
                }
                Event::Message { message, .. } => {
                    return Err(Error::protocol(at, "message", "Placed", message.name()));
                }
                Event::Down { reason, .. } => return Err(reason),
                Event::Refused { .. } => {}
            }
        }
    }
}

/// Whether the leader of whom somebody tells is there, and proves that it knows the secret; if not, why.
pub fn probe(leader: &Bootstrap, patience: Duration) -> Result<()> {
    let at = format!("the leading rank on {}", leader.host());
    let mut config = HubConfig::new(leader.secret().clone(), leader.job(), this_process(Role::Worker, None)?);
    config.limits.connect_timeout = patience;
    let mut hub = Hub::new(config)?;
    hub.dial(&leader.address().to_string(), &at)?;
    let (deadline, mut events) = (Deadline::after(Instant::now(), patience * 2), Vec::new());
    loop {
        hub.poll(&mut events, left(deadline, || format!("{at}, {}", leader.address()))?)?;
        for event in events.drain(..) {
            match event {
                Event::Up { .. } => return Ok(()),
                Event::Down { reason, .. } => return Err(reason),
                _ => {}
            }
        }
    }
}

/// A task that has checked in, as the leader knows it.
#[derive(Debug)]
pub struct Arrived {
    /// What it said.
    pub said: CheckIn,
    machine: String,
    /// `None` for the leader itself.
    link: Option<LinkId>,
    address: IpAddr,
}

/// The leader's end: listens, and waits for all.
pub struct Gathering {
    hub: Hub,
    bootstrap: Bootstrap,
    /// `None` for a leader that is none of the tasks.
    us: Option<CheckIn>,
    /// Their nodes, as far as they are known beforehand.
    expected: Vec<Option<String>>,
    arrived: BTreeMap<u32, Arrived>,
    /// The file that tells of it, and what it says.
    file: Option<(PathBuf, String)>,
    called_off: Arc<AtomicBool>,
}

/// Ends the waiting of a [`Gathering`] that another thread waits in.
pub struct CallOff {
    flag: Arc<AtomicBool>,
    waker: HubWaker,
}

impl CallOff {
    /// Does it. Those who have checked in are told.
    pub fn call_off(&self) {
        self.flag.store(true, Ordering::SeqCst);
        // A hub that can't be woken looks again at its next keepalive.
        let _ = self.waker.wake();
    }
}

impl Gathering {
    /// Listens for the tasks of one job, of which this process is one.
    pub fn listen(
        us: CheckIn,
        at: (IpAddr, Option<RangeInclusive<u16>>),
        job: (Secret, &str),
    ) -> Result<Gathering> {
        let expected = vec![None; us.tasks as usize];
        Gathering::start(Some(us), expected, at, job)
    }

    /// Listens for tasks on these nodes, of which this process is none.
    pub fn of_others(
        nodes: &[&str],
        at: (IpAddr, Option<RangeInclusive<u16>>),
        job: (Secret, &str),
    ) -> Result<Gathering> {
        Gathering::start(None, nodes.iter().map(|node| Some((*node).to_owned())).collect(), at, job)
    }

    fn start(
        us: Option<CheckIn>,
        expected: Vec<Option<String>>,
        (ip, ports): (IpAddr, Option<RangeInclusive<u16>>),
        (secret, job): (Secret, &str),
    ) -> Result<Gathering> {
        let mut config = HubConfig::new(secret.clone(), job, this_process(Role::Coordinator, None)?);
        config.limits.pre_auth = config.limits.pre_auth.max(expected.len());
        let mut hub = Hub::new(config)?;
        let address = hub.listen(ip, ports)?;
        let host = super::task::host();
        let bootstrap = Bootstrap::new(address, secret, job, &host)?;
        let (arrived, called_off) = (BTreeMap::new(), Arc::default());
        Ok(Gathering { hub, bootstrap, us, expected, arrived, file: None, called_off })
    }

    /// How many tasks there are.
    fn tasks(&self) -> u32 {
        self.expected.len() as u32
    }

    /// How another thread ends the waiting.
    pub fn call_off(&self) -> CallOff {
        CallOff { flag: Arc::clone(&self.called_off), waker: self.hub.waker() }
    }

    /// What the others need to find it.
    pub fn bootstrap(&self) -> &Bootstrap {
        &self.bootstrap
    }

    /// Removes the file that tells of it when it is over, if that still says this.
    pub fn remove_at_end(&mut self, file: &Path, said: String) {
        self.file = Some((file.to_owned(), said));
    }

    /// Waits until all have checked in. After an error all who had are told.
    pub fn wait(&mut self, deadline: Deadline) -> Result<Vec<CheckIn>> {
        if let Some(us) = &self.us {
            let address = self.bootstrap.address().ip();
            let ours = Arrived { said: us.clone(), machine: machine(), link: None, address };
            self.arrived.insert(us.task, ours);
        }
        match self.until_all(deadline) {
            Ok(()) => Ok(self.arrived.values().map(|arrived| arrived.said.clone()).collect()),
            Err(error) => {
                self.abort(&error)?;
                Err(error)
            }
        }
    }

    /// Tells all who have checked in that nothing comes of it.
    pub fn abort(&mut self, error: &Error) -> Result<()> {
        let abort = ControlMessage::Abort { reason: reason(error.to_string()) };
        for link in self.arrived.values().filter_map(|arrived| arrived.link) {
            // Who is gone needs no telling.
            let _ = self.hub.send(link, &abort);
        }
        self.hub.shut_down(FAREWELL)
    }

    fn until_all(&mut self, deadline: Deadline) -> Result<()> {
        let mut events = Vec::new();
        while self.arrived.len() < self.expected.len() {
            if self.called_off.load(Ordering::SeqCst) {
                return Err(Error::Aborted { reason: "the job ended before all ranks were there".into() });
            }
            self.hub.poll(&mut events, left(deadline, || self.missing())?)?;
            for event in events.drain(..) {
                match event {
                    Event::Message {
                        link,
                        message: ControlMessage::CheckIn { task, tasks, role, node, machine },
                    } => self.arrive(link, CheckIn { task, tasks, role, node }, machine)?,
                    Event::Message { link, message } => {
                        let peer = self.hub.peer_name(link).unwrap_or("a task").to_owned();
                        return Err(Error::protocol(peer, "message", "CheckIn", message.name()));
                    }
                    Event::Down { link, reason, .. } => {
                        if let Some(gone) = self.arrived.values().find(|a| a.link == Some(link)) {
                            let peer =
                                format!("rank {} on {} ({})", gone.said.task, gone.said.node, gone.address);
                            return Err(Error::PeerLost { peer, reason: reason.to_string() });
                        }
                    }
                    Event::Up { .. } | Event::Refused { .. } => {}
                }
            }
        }
        Ok(())
    }

    fn arrive(&mut self, link: LinkId, said: CheckIn, machine: String) -> Result<()> {
        let peer = self.hub.peer_name(link).unwrap_or("a task");
        let (_, at) = peer.rsplit_once(" at ").unwrap_or(("", peer));
        let address = at.parse().map_or(IpAddr::from([0, 0, 0, 0]), |at: SocketAddr| at.ip());
        let name = format!("rank {} on {} ({address})", said.task, said.node);
        let known =
            |before: &Arrived| format!("rank {} on {} ({})", said.task, before.said.node, before.address);
        if said.tasks != self.tasks() || said.task >= said.tasks {
            let expected = format!("one of {} ranks", self.tasks());
            return Err(Error::protocol(name, "rank", expected, format!("{} of {}", said.task, said.tasks)));
        }
        if let Some(before) = self.arrived.get(&said.task) {
            let other = known(before);
            let reason =
                format!("{other} has checked in already: are there two jobs with one address or file?");
            return Err(Error::Refused { peer: name, reason });
        }
        self.arrived.insert(said.task, Arrived { said, machine, link: Some(link), address });
        Ok(())
    }

    fn missing(&self) -> String {
        let missing =
            (0..self.tasks()).zip(&self.expected).filter(|(task, _)| !self.arrived.contains_key(task));
        let named = |(task, node): (u32, &Option<String>)| match node {
            Some(node) => format!("{task} on {node}"),
            None => task.to_string(),
        };
        let absent: Vec<String> = missing.map(named).collect();
        let came =
            self.arrived.values().map(|a| format!("{} on {} ({})", a.said.task, a.said.node, a.address));
        let came: Vec<String> = came.take(16).collect();
        let (shown, more) = absent.split_at(absent.len().min(16));
        let more = if more.is_empty() { String::new() } else { format!(" and {} more", more.len()) };
        let came = if came.is_empty() { "none".to_owned() } else { format!("rank {}", came.join(", ")) };
        format!(
            "rank {}{more} of {} to check in at {}; these have: {came} (is the port open between the hosts?)",
            shown.join(", "),
            self.tasks(),
            self.bootstrap.address(),
        )
    }

    /// Tells each task what it is, and gives the leader's own place and the connections of the others, by which their ends are
    /// seen. `roles` has one entry for each task; `threads` is each server's number.
    pub fn place(
        self,
        roles: &[(Role, Rank)],
        threads: u32,
        coordinator: &str,
    ) -> Result<(Place, Vec<Lifeline>)> {
        let (ours, lifelines) = self.place_all(roles, threads, coordinator)?;
        let ours =
            ours.ok_or(Error::Misuse { call: "Gathering::place", reason: "the leader is no task".into() })?;
        Ok((ours, lifelines))
    }

    /// The same for a leader that may be no task, and then has no place.
    pub fn place_all(
        mut self,
        roles: &[(Role, Rank)],
        threads: u32,
        coordinator: &str,
    ) -> Result<(Option<Place>, Vec<Lifeline>)> {
        let count = |role| roles.iter().filter(|r| r.0 == role).count() as u32;
        let (servers, workers) = (count(Role::Server), count(Role::Worker));
        let arrived: Vec<Arrived> = std::mem::take(&mut self.arrived).into_values().collect();
        let interface = self.bootstrap.address().ip();
        let places: Vec<Place> = (0..arrived.len())
            .map(|task| {
                let here = || {
                    let all =
                        (0..arrived.len()).filter(|other| arrived[*other].machine == arrived[task].machine);
                    all.map(|other| (roles[other].0 != Role::Server, other))
                };
                let pollers = here().map(|(worker, _)| if worker { 1 } else { threads }).sum();
                let mine = (roles[task].0 != Role::Server, task);
                let local_index = here().filter(|other| *other < mine).count() as u32;
                let (role, rank) = roles[task];
                let coordinator = coordinator.to_owned();
                Place { role, rank, servers, workers, coordinator, local_index, pollers, interface }
            })
            .collect();
        for (arrived, place) in arrived.iter().zip(&places) {
            let Some(link) = arrived.link else { continue };
            let Place { role, rank, local_index, pollers, .. } = *place;
            let coordinator = place.coordinator.clone();
            let placed =
                ControlMessage::Placed { role, rank, servers, workers, coordinator, local_index, pollers };
            self.hub.send(link, &placed)?;
        }
        let mut lifelines = Vec::new();
        for (arrived, place) in arrived.iter().zip(&places) {
            let Some(link) = arrived.link else { continue };
            let name = format!("rank {} on {} ({})", arrived.said.task, arrived.said.node, arrived.address);
            // A few hundred bytes to a fresh connection are taken at once; one that does not is gone.
            let stream = self.hub.take_stream(link).ok_or_else(|| Error::PeerLost {
                peer: name.clone(),
                reason: "the connection ended when its place was told".into(),
            })?;
            lifelines.push(Lifeline { name, role: place.role, rank: place.rank, stream });
        }
        let ours = self.us.as_ref().and_then(|us| places.into_iter().nth(us.task as usize));
        Ok((ours, lifelines))
    }
}

impl Drop for Gathering {
    fn drop(&mut self) {
        if let Some((file, said)) = &self.file {
            // What stays is found to be left behind.
            let _ = clear_away(file, said);
        }
    }
}

/// A connection whose end is the end of a task.
#[derive(Debug)]
pub struct Lifeline {
    /// The task, for messages: `rank 3 on n2 (10.0.0.3)`.
    pub name: String,
    /// What it is.
    pub role: Role,
    /// Its rank among those.
    pub rank: Rank,
    /// The connection. Nothing is said on it any more but [`Word`](super::lifelines::Word)s.
    pub stream: TcpStream,
}
