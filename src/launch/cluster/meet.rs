//! How the tasks of a launcher find the leader: that task opens a port, and the others learn its address and the job's secret.
//!
//! The first of these ways that is open is taken, by all tasks the same:
//!
//! 1. `--coordinator HOST:PORT`: rank 0 listens there; the secret must be known to all.
//! 2. `--rendezvous FILE`: rank 0 writes address and secret into a file of mode 0600 that all can read.
//! 3. The launcher's key-value store: PMIx, else PMI-1.
//! 4. Slurm's list of hosts, where the first resolves and the secret is known: rank 0 listens there, at a port made from the job's
//!    number.
//! 5. A rendezvous file in the current folder, named after the launcher's job.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use super::board::Board;
use super::checkin::{CheckIn, Gathering};
use super::hostlist::hosts;
use super::inherited;
use super::pmi1::Pmi1;
use super::pmix::Pmix;
use super::rendezvous::Spot;
use super::task::{Means, Task, host};
use crate::config::settings;
use crate::error::{Error, Result};
use crate::proto::bootstrap::Bootstrap;
use crate::proto::secret::Secret;
use crate::time::Deadline;
use crate::transport::interface;
use crate::types::Role;

/// Ports that are made from a job's number: below those that systems give out.
const PORTS: RangeInclusive<u16> = 20_000..=31_999;
/// Keys on the board.
const PART: &str = "windlass-part";
const LEADER: &str = "windlass-leader";
/// A value of the board that is text is cut to so many bytes, as two digits each.
const TEXT: usize = 400;

/// What the user says about the ways.
#[derive(Debug, Default)]
pub struct Ways {
    /// The interface that the leader listens on, by name, address or network.
    pub interface: Option<String>,
    /// Its ports.
    pub ports: Option<RangeInclusive<u16>>,
    /// The job's secret, where all have it.
    pub secret: Option<Secret>,
    /// The job's name, where all have it.
    pub job: Option<String>,
    /// Where rank 0 is to listen.
    pub coordinator: Option<String>,
    /// The file to meet at.
    pub rendezvous: Option<PathBuf>,
}

/// What comes of it.
pub enum Meeting {
    /// There is no other task.
    Alone,
    /// This task leads.
    Leader(Box<Gathering>),
    /// Another does; this task says this of itself.
    Follower(Bootstrap, CheckIn),
}

/// Finds the leader, or becomes it. `role` is what this task is, if that is decided already: then the first server leads, else rank 0.
pub fn meet(task: &Task, role: Option<Role>, ways: &Ways, deadline: Deadline) -> Result<Meeting> {
    let explicit = ways.coordinator.is_some() || ways.rendezvous.is_some();
    if task.size == Some(1) && (task.means.is_empty() || explicit) {
        return Ok(Meeting::Alone);
    }
    let mut failed = None;
    for means in task.means.iter().filter(|_| !explicit) {
        let board: Result<Box<dyn Board>> = match means {
            Means::Pmix(libraries) => {
                Pmix::start(libraries, deadline).map(|board| Box::new(board) as Box<dyn Board>)
            }
            Means::Pmi1(fd) => pmi1(*fd, task, deadline).map(|board| Box::new(board) as Box<dyn Board>),
        };
        match board {
            Ok(board) => return by_board(board, task, role, ways),
            Err(error) => {
                tracing::info!("{error}");
                failed = Some(error);
            }
        }
    }
    let (Some(rank), Some(tasks)) = (task.rank, task.size) else {
        let unknown = || Error::config("launcher", "the number of this process and of all", task);
        return Err(failed.unwrap_or_else(unknown));
    };
    if tasks == 1 {
        return Ok(Meeting::Alone);
    }
    let us = CheckIn { task: rank, tasks, role, node: task.node.clone() };
    if let Some(address) = &ways.coordinator {
        return by_address(address, us, task, ways);
    }
    if let Some(file) = &ways.rendezvous {
        return by_file(file, us, task, ways, deadline);
    }
    if let Some(address) = listed(task, ways)? {
        return by_address(&address, us, task, ways);
    }
    let Some(launch) = &task.launch else {
        let expected = "--rendezvous FILE or --coordinator HOST:PORT: the launcher has no key-value store";
        return Err(failed.unwrap_or_else(|| Error::config("launcher", expected, task)));
    };
    by_file(Path::new(&format!(".windlass-{launch}")), us, task, ways, deadline)
}

fn pmi1(fd: i32, task: &Task, deadline: Deadline) -> Result<Pmi1> {
    let (Some(rank), Some(size)) = (task.rank, task.size) else {
        return Err(Error::config("PMI_SIZE", "a number", "nothing"));
    };
    Pmi1::start(inherited::socket(fd, "PMI_FD")?, rank, size, deadline)
}

fn by_board(mut board: Box<dyn Board>, task: &Task, role: Option<Role>, ways: &Ways) -> Result<Meeting> {
    let (rank, tasks) = (board.rank(), board.size());
    if tasks == 1 {
        board.finish()?;
        return Ok(Meeting::Alone);
    }
    let us = CheckIn { task: rank, tasks, role, node: task.node.clone() };
    board.put(PART, if role == Some(Role::Worker) { "follows" } else { "leads" })?;
    board.fence()?;
    let mut leader = None;
    for other in 0..tasks {
        if board.get(other, PART)? == "leads" {
            leader = Some(other);
            break;
        }
    }
    let Some(leader) = leader else {
        board.finish()?;
        let found = format!("{tasks} workers and no server");
        return Err(Error::config("launcher", "`windlass run`, or `windlass server` on some ranks", found));
    };
    if leader != rank {
        board.fence()?;
        let said = board.get(leader, LEADER)?;
        board.finish()?;
        return follow(told(&said, leader)?, us);
    }
    // If it fails the others are told why, through the same fence.
    let gathering = gather(us, ways);
    let said = match &gathering {
        Ok(gathering) => format!("b{}", gathering.bootstrap().to_hex()),
        Err(error) => format!("e{}", hex(&format!("on {}: {error}", task.node))),
    };
    board.put(LEADER, &said)?;
    board.fence()?;
    board.finish()?;
    gathering.map(|gathering| Meeting::Leader(Box::new(gathering)))
}

/// Follows a leader that chose its address itself.
pub(super) fn follow(leader: Bootstrap, us: CheckIn) -> Result<Meeting> {
    within_reach(&leader, &us)?;
    Ok(Meeting::Follower(leader, us))
}

/// Refuses an address that means another host here.
pub(super) fn within_reach(leader: &Bootstrap, us: &CheckIn) -> Result<()> {
    if leader.address().ip().is_loopback() && leader.host() != host() {
        let setting = format!("address of the leading rank on {}", leader.host());
        let expected = format!("one that others reach (--interface): rank {} is on {}", us.task, us.node);
        return Err(Error::config(setting, expected, leader.address()));
    }
    Ok(())
}

fn told(said: &str, leader: u32) -> Result<Bootstrap> {
    match said.split_at_checked(1) {
        Some(("b", blob)) => Bootstrap::from_hex(blob),
        Some(("e", text)) => Err(Error::Aborted { reason: format!("rank {leader} {}", unhex(text)) }),
        _ => Err(Error::protocol(format!("rank {leader}"), "value", "a blob", said.len())),
    }
}

fn hex(text: &str) -> String {
    text.bytes().take(TEXT).map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> String {
    let digit = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    String::from_utf8_lossy(&text.as_bytes().chunks(2).filter_map(digit).collect::<Vec<u8>>()).into_owned()
}

/// Listens on the interface that the user wants, or that leads to others, with a fresh secret unless there is one.
fn gather(us: CheckIn, ways: &Ways) -> Result<Gathering> {
    let ip = match &ways.interface {
        Some(text) => interface::resolve(text)?,
        None => interface::outward()?,
    };
    let secret = ways.secret.clone().map_or_else(Secret::generate, Ok)?;
    let job = ways.job.clone().map_or_else(crate::launch::new_job, Ok)?;
    listen(us, (ip, ways.ports.clone()), (secret, &job)).map_err(|e| e.chosen_by(settings::LISTENING))
}

/// Listens, or says who could not, where.
fn listen(us: CheckIn, at: (IpAddr, Option<RangeInclusive<u16>>), job: (Secret, &str)) -> Result<Gathering> {
    let who = format!("rank {} on {}", us.task, us.node);
    Gathering::listen(us, at, job).map_err(|error| match error {
        Error::Io { operation, subject, source } => {
            Error::Io { operation, subject: format!("{subject}, for {who}"), source }
        }
        other => other,
    })
}

/// Where the first host of Slurm's list is to be found, if it has an address and all know the secret.
fn listed(task: &Task, ways: &Ways) -> Result<Option<String>> {
    let (Some(nodes), Some(launch), Some(_)) = (&task.nodes, &task.launch, &ways.secret) else {
        return Ok(None);
    };
    let Some(first) = hosts(nodes)?.into_iter().next() else { return Ok(None) };
    let ports = ways.ports.clone().unwrap_or(PORTS);
    let width = u32::from(*ports.end() - *ports.start()) + 1;
    let port = *ports.start() + (crc32c::crc32c(launch.as_bytes()) % width) as u16;
    let address = format!("{first}:{port}");
    Ok(address.to_socket_addrs().is_ok_and(|mut all| all.next().is_some()).then_some(address))
}

/// Rank 0 listens at a known address; a server or worker that is decided as such too, if it is rank 0.
fn by_address(address: &str, us: CheckIn, task: &Task, ways: &Ways) -> Result<Meeting> {
    let secret = ways.secret.clone().ok_or_else(|| {
        Error::config(
            "--secret-file",
            "a file with the job's secret, or WINDLASS_SECRET, for all ranks",
            "nothing",
        )
    })?;
    let job = ways.job.clone().or_else(|| task.launch.clone()).unwrap_or_default();
    let failed = |e| Error::io("resolve", format!("{address}, for {task}"), e);
    let all: Vec<SocketAddr> = address.to_socket_addrs().map_err(failed)?.collect();
    let Some(first) = all.iter().find(|a| a.is_ipv4()).or(all.first()).copied() else {
        return Err(Error::config("--coordinator", "a name with an address", address));
    };
    let named = address.rsplit_once(':').map_or(address, |(host, _)| host);
    if us.task != 0 || us.role == Some(Role::Worker) {
        return Ok(Meeting::Follower(Bootstrap::new(first, secret, &job, named)?, us));
    }
    let ours = interface::addresses()?;
    let ip: Option<IpAddr> = match &ways.interface {
        Some(text) => Some(interface::resolve(text)?),
        None => all.iter().map(SocketAddr::ip).find(|ip| ours.contains(ip)),
    };
    let Some(ip) = ip else {
        let ours: Vec<String> = ours.iter().map(IpAddr::to_string).collect();
        let expected = format!("an address of rank 0's host {}: one of {}", us.node, ours.join(", "));
        return Err(Error::config("--coordinator", expected, address));
    };
    let port = first.port();
    let gathering = listen(us, (ip, (port != 0).then_some(port..=port)), (secret, &job))
        .map_err(|e| e.chosen_by("--coordinator"))?;
    Ok(Meeting::Leader(Box::new(gathering)))
}

fn by_file(path: &Path, us: CheckIn, task: &Task, ways: &Ways, deadline: Deadline) -> Result<Meeting> {
    let spot = Spot::new(path, task);
    match us.role {
        None if us.task == 0 => spot.lead(gather(us, ways)?),
        Some(Role::Server) => spot.follow(us.clone(), Some(gather(us, ways)?), deadline),
        _ => spot.follow(us, None, deadline),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    pub fn task(rank: u32, tasks: u32) -> Task {
        Task {
            launcher: "test",
            rank: Some(rank),
            size: Some(tasks),
            means: Vec::new(),
            launch: Some("launch-1".into()),
            nodes: None,
            node: "here".into(),
        }
    }

    pub fn soon(seconds: u64) -> Deadline {
        Deadline::after(Instant::now(), Duration::from_secs(seconds))
    }

    #[test]
    fn a_rank_that_comes_twice_or_counts_otherwise_ends_the_meeting_for_all() {
        for (task, tasks, expected) in [
            (0, 2, "rank 0 on here (127.0.0.1) has checked in already"),
            (1, 3, "expected one of 2 ranks, found 1 of 3"),
        ] {
            let us = CheckIn { task: 0, tasks: 2, role: None, node: "here".into() };
            let secret = (Secret::generate().unwrap(), "job");
            let mut gathering = Gathering::listen(us, (IpAddr::from([127, 0, 0, 1]), None), secret).unwrap();
            let leader = gathering.bootstrap().clone();
            let other = std::thread::spawn(move || {
                let us = CheckIn { task, tasks, role: None, node: "here".into() };
                super::super::checkin::check_in(&leader, &us, soon(60)).unwrap_err().to_string()
            });
            let error = gathering.wait(soon(60)).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
            drop(gathering);
            other.join().unwrap();
        }
    }

    /// Where the user gave all of them the secret, Slurm's list of hosts is enough.
    #[test]
    fn the_first_host_of_the_list_leads_at_a_port_of_the_job() {
        let at = |rank, nodes: &str, secret: bool| {
            let secret = secret.then(|| Secret::generate().unwrap());
            let task = Task { nodes: Some(nodes.into()), ..task(rank, 2) };
            let ways = Ways { secret, interface: Some("127.0.0.1".into()), ..Ways::default() };
            (listed(&task, &ways).unwrap(), meet(&task, None, &ways, soon(60)))
        };
        let (address, first) = at(0, "localhost,nosuch.invalid", true);
        let port = address.unwrap().strip_prefix("localhost:").unwrap().parse::<u16>().unwrap();
        assert!(PORTS.contains(&port));
        assert!(
            matches!(first, Ok(Meeting::Leader(gathering)) if gathering.bootstrap().address().port() == port)
        );
        let (_, second) = at(1, "localhost,nosuch.invalid", true);
        assert!(matches!(second, Ok(Meeting::Follower(leader, _)) if leader.address().port() == port));
        // Names that nobody resolves, and a secret that only rank 0 would have: they meet at a file.
        let ways =
            |secret: bool| Ways { secret: secret.then(|| Secret::generate().unwrap()), ..Ways::default() };
        let nodes = |nodes: &str| Task { nodes: Some(nodes.into()), ..task(1, 2) };
        assert_eq!(listed(&nodes("nosuch.invalid"), &ways(true)).unwrap(), None);
        assert_eq!(listed(&nodes("localhost"), &ways(false)).unwrap(), None);
        assert!(listed(&nodes("n[1"), &ways(true)).is_err());
    }

    #[test]
    fn an_address_needs_a_secret_and_a_host_that_is_ours() {
        let at = |address: &str, secret: bool, rank| {
            let secret = secret.then(|| Secret::generate().unwrap());
            let ways = Ways { coordinator: Some(address.into()), secret, ..Ways::default() };
            meet(&task(rank, 2), None, &ways, soon(60)).map(|meeting| matches!(meeting, Meeting::Leader(_)))
        };
        assert!(at("127.0.0.1:0", true, 0).unwrap());
        assert!(!at("127.0.0.1:7", true, 1).unwrap());
        let error = |address, secret| at(address, secret, 0).unwrap_err().to_string();
        assert!(error("127.0.0.1:0", false).starts_with("--secret-file: "));
        assert!(error("192.0.2.99:7", true).contains("an address of rank 0's host here: one of "));
        let unknown = error("nosuch.invalid:7", true);
        assert!(unknown.contains("nosuch.invalid:7, for rank 0 of 2 on here"), "{unknown}");
    }

    #[test]
    fn a_port_that_is_taken_and_a_loopback_of_another_host_are_named() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap().to_string();
        let secret = Some(Secret::generate().unwrap());
        let ways = Ways { coordinator: Some(address.clone()), secret, ..Ways::default() };
        let error = meet(&task(0, 2), None, &ways, soon(60)).err().unwrap().to_string();
        let named = format!("bind ({address}, for rank 0 on here; another by --coordinator): ");
        assert!(error.starts_with(&named), "{error}");
        let port = taken.local_addr().unwrap().port();
        let ways = Ways { interface: Some("lo".to_owned()), ports: Some(port..=port), ..Ways::default() };
        let us = CheckIn { task: 0, tasks: 2, role: None, node: "here".into() };
        let error = gather(us, &ways).err().unwrap().to_string();
        assert!(error.contains("; another by --interface or --port-range): "), "{error}");
        let leader =
            Bootstrap::new(taken.local_addr().unwrap(), Secret::generate().unwrap(), "", "elsewhere");
        let us = CheckIn { task: 3, tasks: 4, role: None, node: "here".into() };
        let error = follow(leader.unwrap(), us).err().unwrap().to_string();
        assert!(
            error.contains("the leading rank on elsewhere") && error.contains("rank 3 is on here"),
            "{error}"
        );
    }

    #[test]
    fn what_the_leader_says_on_the_board_is_read_or_refused() {
        let error = told(&format!("e{}", hex("on n1: no port")), 0).unwrap_err().to_string();
        assert_eq!(error, "the job was aborted: rank 0 on n1: no port");
        for bad in ["", "b", "bzz", "x00", "é"] {
            assert!(told(bad, 0).is_err(), "{bad}");
        }
    }
}
