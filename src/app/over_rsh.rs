//! `windlass run --hostfile`: a job on several hosts, whose processes are started by a remote shell.
//!
//! ```text
//!  this host       the supervisor: Coordinator, one remote shell for each process as children of a Tree
//!    │ stdin: the order, then signals; its end is the process's end      stdout, stderr: those of the process
//!  other host      `windlass remote`: checks in with the supervisor, then supervises the process in a Tree of its own
//! ```
//! The remote side ends its process when standard input ends, or the connection of its check-in: so when the supervisor, the remote
//! shell, this host or the network in between dies.

use std::ffi::OsString;
use std::fs;
use std::io::Read;
use std::net::{IpAddr, SocketAddr, TcpStream, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGTERM, SIGUSR1};

use super::launched::{coordinator, variables_of};
use super::run::{self, Plan, exit_code};
use crate::config::{Environment, ServerLimits, parse_ports, settings, variable};
use crate::error::{Error, Result};
use crate::launch::cluster::checkin::{CheckIn, Gathering, Lifeline, Place, check_in_with};
use crate::launch::cluster::hostfile::{self, Hosts};
use crate::launch::cluster::lifelines::watch_one;
use crate::launch::cluster::roles::{self, Counts, ServersOn};
use crate::launch::remote::{Order, quoted};
use crate::launch::{self, Child, ChildRole, Outcome, Remote, Tree, TreeHandle};
use crate::proto::bootstrap::Bootstrap;
use crate::proto::secret::Secret;
use crate::time::Deadline;
use crate::transport::{choice, interface, network};
use crate::types::Role;

/// The remote shell, and what makes it fail at once where it would ask somebody or wait for ever.
pub const SSH: &str = "ssh -o BatchMode=yes -o ConnectTimeout=10";

/// How much longer a remote shell is given than the process behind it.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Which hosts, and how they are reached.
pub struct Reach<'a> {
    pub hostfile: &'a Path,
    /// The remote shell, as words for `sh`; a host and a command are added.
    pub rsh: &'a str,
    pub servers_on: &'a ServersOn,
    pub workers: Option<u32>,
    /// Seconds in which all must have checked in.
    pub launch_timeout: u64,
    pub secret: Option<Secret>,
}

/// Runs the job until all its processes have ended.
pub fn run(plan: &Plan, reach: &Reach<'_>) -> Result<Outcome> {
    let limits = ServerLimits::from_environment(&plan.settings)?;
    choice::offer(&network::from_environment(&plan.settings, 1)?)?;
    let hosts = read(reach.hostfile)?;
    let nodes = nodes(plan, reach, &hosts)?;
    let counts = Counts { servers: plan.servers, workers: None };
    let roles = roles::assign(&nodes, counts, reach.servers_on)?;
    let ports = plan.settings.restriction(&settings::PORT_RANGE).map(parse_ports).transpose()?;
    let secret = reach.secret.clone().map_or_else(Secret::generate, Ok)?;
    let at = (address(&plan.settings, &hosts)?, ports);
    let gathering = Gathering::of_others(&nodes, at, (secret, &launch::new_job()?))
        .map_err(|e| e.chosen_by(settings::LISTENING))?;
    let leader = gathering.bootstrap().clone();
    let coordinator = coordinator(&plan.settings, &leader, &roles)?;
    // A name of its own: what runs on this very host by a remote shell is not ours to sweep.
    let mut tree = run::tree(plan, &launch::new_job()?, limits)?;
    tree.marker = variable::TREE;
    // The other sides kill what does not end within their grace, and say so; they are lost only behind that.
    tree.grace += LAST_WORDS;
    let tree = Tree::new(tree)?;
    let children = children(plan, reach, &leader, &nodes, &roles)?;
    let call_off = gathering.call_off();
    let (threads, at) = (plan.threads()?, coordinator.address().to_string());
    let (deadline, handle) = (deadline(reach.launch_timeout), tree.handle());
    let gathered = thread::Builder::new()
        .name("wl-gather".to_owned())
        .spawn(move || gather(gathering, deadline, &handle, &roles, (threads, &at)))
        .map_err(|e| Error::io("start thread", "wl-gather", e))?;
    let outcome = run::supervise(plan, coordinator, tree, &children);
    call_off.call_off();
    // The connections live until here: their end is the end of who is left at their other ends.
    drop(gathered.join());
    outcome
}

/// Waits for all, and gives each its place; ends the tree if that fails.
fn gather(
    mut gathering: Gathering,
    deadline: Deadline,
    tree: &TreeHandle,
    roles: &[(Role, u32)],
    (threads, coordinator): (u32, &str),
) -> Vec<Lifeline> {
    let placed = gathering.wait(deadline).and_then(|_| gathering.place_all(roles, threads, coordinator));
    match placed {
        Ok((_, lifelines)) => lifelines,
        Err(error) => {
            tree.stop(error.to_string(), i32::from(exit_code(&error)));
            Vec::new()
        }
    }
}

fn deadline(seconds: u64) -> Deadline {
    Deadline::after(Instant::now(), Duration::from_secs(seconds))
}

fn read(hostfile: &Path) -> Result<Hosts> {
    let shown = hostfile.display().to_string();
    let failed = |e| Error::io("read", &shown, e);
    let mut text = String::new();
    let file = fs::File::open(hostfile).map_err(failed)?;
    file.take(hostfile::LONGEST + 1).read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > hostfile::LONGEST {
        return Err(Error::config("--hostfile", format!("at most {} bytes", hostfile::LONGEST), shown));
    }
    Hosts::parse(&text, &shown)
}

/// Each process's host. Without `--workers` there are as many as the file has slots for, or as on one machine where it does not say.
fn nodes<'a>(plan: &Plan, reach: &Reach<'_>, hosts: &'a Hosts) -> Result<Vec<&'a str>> {
    let workers = match (reach.workers, hosts.tasks()) {
        (Some(workers), _) => workers,
        (None, Some(slots)) => slots.saturating_sub(plan.servers).max(1),
        (None, None) => plan.workers,
    };
    run::check_counts(plan.servers, workers)?;
    hosts.deal(plan.servers + workers)
}

/// The address that the others are told: what the user says, else that from which the first host is reached that is not this one.
fn address(settings: &Environment, hosts: &Hosts) -> Result<IpAddr> {
    if let Some(text) = settings.text(variable::INTERFACE) {
        return interface::resolve(text);
    }
    let mut local = None;
    for name in hosts.names() {
        let host = name.rsplit_once('@').map_or(name, |(_, host)| host);
        // Only the remote shell may know the name.
        let Some(peer) = (host, 22).to_socket_addrs().ok().and_then(|mut all| all.next()) else { continue };
        match interface::facing(SocketAddr::new(peer.ip(), peer.port())) {
            Ok(ip) if !ip.is_loopback() => return Ok(ip),
            Ok(ip) => local = Some(ip),
            Err(_) => {}
        }
    }
    local.map_or_else(interface::outward, Ok)
}

/// A remote shell for each process.
fn children(
    plan: &Plan,
    reach: &Reach<'_>,
    leader: &Bootstrap,
    nodes: &[&str],
    roles: &[(Role, u32)],
) -> Result<Vec<Child>> {
    let here = std::env::current_dir().map_err(|e| Error::io("find", "the working directory", e))?;
    let mut there = OsString::from("exec ");
    there.push(quoted(Path::new(&run::own_program()?)));
    there.push(" remote");
    let variables = plan.carried()?;
    let order = |task: usize, role| Order {
        leader: leader.clone(),
        task: task as u32,
        tasks: nodes.len() as u32,
        node: nodes[task].to_owned(),
        launch_timeout: reach.launch_timeout,
        folder: here.clone().into_os_string(),
        command: role,
        variables: variables.clone(),
    };
    let child = |(task, (role, rank)): (usize, &(Role, u32))| {
        let role_here = if *role == Role::Server { ChildRole::Server } else { ChildRole::Worker };
        let order = order(task, plan.program(role_here)?).to_bytes()?;
        let script = format!("exec {} \"$@\"", reach.rsh);
        let words = ["-c".into(), script.into(), "sh".into(), nodes[task].into(), there.clone()];
        Ok(Child {
            name: format!("{role} {rank}"),
            role: role_here,
            program: PathBuf::from("/bin/sh"),
            arguments: words.into(),
            environment: Vec::new(),
            prefix: plan.prefix,
            inherit_stderr: false,
            remote: Some(Remote { host: nodes[task].to_owned(), order }),
        })
    };
    roles.iter().enumerate().map(child).collect()
}

/// What the remote side hears while it is not yet placed, and after.
enum Heard {
    /// A signal for the process.
    Signal(i32),
    /// The supervisor is gone. Standard input says so, and the connection of the check-in does.
    Gone,
    Placed(Result<(Place, TcpStream)>),
}

/// `windlass remote`: one process of a job, behind a remote shell. Gives its exit code.
pub fn remote() -> Result<u8> {
    let order = Order::read(&mut std::io::stdin().lock())?;
    let subject =
        || format!("the working directory {}, on {}", Path::new(&order.folder).display(), order.node);
    std::env::set_current_dir(&order.folder).map_err(|e| Error::io("enter", subject(), e))?;
    let (heard, hears) = channel();
    let gone = heard.clone();
    spawn("wl-orders", {
        let heard = heard.clone();
        move || listen(&heard)
    })?;
    let us = CheckIn { task: order.task, tasks: order.tasks, role: None, node: order.node.clone() };
    let (leader, deadline) = (order.leader.clone(), deadline(order.launch_timeout));
    spawn("wl-checkin", move || {
        let at = format!("windlass run on {}", leader.host());
        let placed = check_in_with(&leader, &at, &us, deadline);
        // Whoever was told to end meanwhile has gone.
        let _ = heard.send(Heard::Placed(placed));
    })?;
    match hears.recv() {
        Ok(Heard::Placed(placed)) => {
            let (place, lifeline) = placed?;
            obey(&order, &place, lifeline, (gone, hears))
        }
        // Before anything was started.
        Ok(Heard::Signal(signal)) => Ok((128 + signal) as u8),
        Ok(Heard::Gone) => Ok((128 + SIGTERM) as u8),
        Err(_) => Err(Error::Aborted { reason: "nobody is there any more".to_owned() }),
    }
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<()> {
    let started = thread::Builder::new().name(name.to_owned()).spawn(body);
    started.map(drop).map_err(|e| Error::io("start thread", name, e))
}

/// Passes on what the supervisor says, to its end.
fn listen(heard: &Sender<Heard>) {
    let mut byte = [0];
    while let Ok(1) = std::io::stdin().lock().read(&mut byte) {
        if heard.send(Heard::Signal(i32::from(byte[0]))).is_err() {
            return;
        }
    }
    let _ = heard.send(Heard::Gone);
}

/// Runs the process, and passes signals on to it.
fn obey(
    order: &Order,
    place: &Place,
    lifeline: TcpStream,
    (gone, hears): (Sender<Heard>, Receiver<Heard>),
) -> Result<u8> {
    let settings = Environment::from_pairs(order.variables.iter().map(|(n, v)| (n.as_str(), v.as_str())));
    let mut variables = order.variables.clone();
    let placed = variables_of(&settings, place, &order.leader)?;
    variables.extend(placed.into_iter().map(|(name, value)| (name.to_owned(), value)));
    let child = Child {
        name: format!("{} {} on {}", place.role, place.rank, order.node),
        role: ChildRole::Worker, // the one whose end is awaited
        program: order.command.first().map(PathBuf::from).unwrap_or_default(),
        arguments: order.command.iter().skip(1).cloned().collect(),
        environment: variables.into_iter().map(|(n, v)| (n.into(), v.into())).collect(),
        prefix: false,
        inherit_stderr: true,
        remote: None,
    };
    let limits = ServerLimits::from_environment(&settings)?;
    let mut tree = run::tree_of("windlass remote", &launch::new_job()?, limits)?;
    tree.marker = variable::TREE;
    tree.quiet = true;
    let mut tree = Tree::new(tree)?;
    let saves = settings.chosen(&settings::CHECKPOINT).is_some();
    if saves {
        // The supervisor hears what a batch system sends to every process, too, and saves the job.
        tree.when_told_to_end(settings.seconds(&settings::GRACE)?, || {});
    }
    let handle = tree.handle();
    spawn("wl-signals", move || {
        let mut told = false;
        for heard in hears {
            match heard {
                Heard::Signal(signal) => {
                    told = true;
                    end(&handle, signal, saves);
                }
                // It has had its time.
                Heard::Gone if told => handle.signal(SIGTERM),
                // Nothing more where it ends already: a closed output says the same, and a second signal would be no grace.
                Heard::Gone => handle.stop("the supervisor is gone", 128 + SIGTERM),
                Heard::Placed(_) => {}
            }
        }
    })?;
    spawn("wl-lifeline", move || {
        watch_one(lifeline);
        let _ = gone.send(Heard::Gone); // the process may have ended meanwhile
    })?;
    Ok(tree.run(&[child])?.code as u8)
}

/// Does what the supervisor's signal means. Where the job saves itself, that is done by then, or comes to nothing.
fn end(tree: &TreeHandle, signal: i32, saves: bool) {
    if saves && matches!(signal, SIGTERM | SIGUSR1) {
        tree.stop("the supervisor ends the process", 128 + signal);
    }
    tree.signal(signal);
}
