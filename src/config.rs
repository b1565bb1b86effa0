//! The one place that reads the environment and the configuration file, and the settings that more than one layer needs.

mod file;
mod limits;
mod pin;
pub mod rdma;
pub mod settings;
mod sockets;

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

pub use limits::{
    DEFAULT_JOIN_TIMEOUT, DEFAULT_TABLES, DEFAULT_WAIT_TIMEOUT, LinkLimits, ServerLimits, WorkerLimits,
};
pub use pin::{MAX_CPUS, Pin, ranges};
pub use rdma::Rdma;
pub use settings::Setting;
pub use sockets::Sockets;

/// Variables that the launcher sets for the processes of a job, and that a user may set by hand.
pub mod variable {
    /// `HOST:PORT` of the Coordinator.
    pub const COORDINATOR: &str = "WINDLASS_COORDINATOR";
    /// The job's secret: 64 hexadecimal digits.
    pub const SECRET: &str = "WINDLASS_SECRET";
    /// A random name of the job; also marks the job's processes.
    pub const JOB: &str = "WINDLASS_JOB";
    /// The process's rank among those of its role.
    pub const RANK: &str = "WINDLASS_RANK";
    /// Number of workers.
    pub const WORKERS: &str = "WINDLASS_WORKERS";
    /// Number of servers.
    pub const SERVERS: &str = "WINDLASS_SERVERS";
    /// Threads of each server.
    pub const THREADS: &str = "WINDLASS_THREADS";
    /// `auto`, `tcp`, `verbs` or `shm`.
    pub const TRANSPORT: &str = "WINDLASS_TRANSPORT";
    /// The process's number among those on its host.
    pub const LOCAL_INDEX: &str = "WINDLASS_LOCAL_INDEX";
    /// Threads on this host that wait for the network.
    pub const POLLERS: &str = "WINDLASS_POLLERS";
    /// IP address or name of the network interface to bind.
    pub const INTERFACE: &str = "WINDLASS_INTERFACE";
    /// `A-B`: the ports to listen on.
    pub const PORT_RANGE: &str = "WINDLASS_PORT_RANGE";
    /// How threads wait: `auto`, `spin` or `block`.
    pub const POLL: &str = "WINDLASS_POLL";
    /// Who moves a worker's data while no call waits: `caller` or `thread`.
    pub const PROGRESS: &str = "WINDLASS_PROGRESS";
    /// Seconds of silence after which a peer is lost.
    pub const PEER_TIMEOUT: &str = "WINDLASS_PEER_TIMEOUT";
    /// Seconds in which a lost data connection is opened anew.
    pub const RECONNECT_TIMEOUT: &str = "WINDLASS_RECONNECT_TIMEOUT";
    /// CPUs of server threads: `auto`, `none` or a list.
    pub const PIN: &str = "WINDLASS_PIN";
    /// Bytes of slots of each server thread.
    pub const STAGING_BYTES: &str = "WINDLASS_STAGING_BYTES";
    /// Bytes of one slot's body.
    pub const PAYLOAD_BYTES: &str = "WINDLASS_PAYLOAD_BYTES";
    /// Bytes of dense tables of each server thread.
    pub const TABLE_BYTES: &str = "WINDLASS_TABLE_BYTES";
    /// Bytes of each dense table for versions that are still being sent.
    pub const SPARE_BYTES: &str = "WINDLASS_SPARE_BYTES";
    /// Slots of one worker in one server thread.
    pub const SLOTS: &str = "WINDLASS_SLOTS";
    /// Outstanding pulls of one worker at one server thread.
    pub const PULL_CREDITS: &str = "WINDLASS_PULL_CREDITS";
    /// Buffers of each server thread for replies.
    pub const REPLY_BUFFERS: &str = "WINDLASS_REPLY_BUFFERS";
    /// Seconds in which a server that is told to stop answers what it has taken.
    pub const STOP_TIMEOUT: &str = "WINDLASS_STOP_TIMEOUT";
    /// Configuration file.
    pub const CONFIG: &str = "WINDLASS_CONFIG";
    /// `scalar`, `avx2` or `avx512`: the instructions of the kernels; the best of the CPU when not given.
    pub const SIMD: &str = "WINDLASS_SIMD";
    /// Number of this process among those that one launcher started together.
    pub const TASK: &str = "WINDLASS_TASK";
    /// How many processes that launcher started.
    pub const TASKS: &str = "WINDLASS_TASKS";
    /// A name that these processes share with no others.
    pub const LAUNCH: &str = "WINDLASS_LAUNCH";
    /// Seconds in which they must have found each other.
    pub const LAUNCH_TIMEOUT: &str = "WINDLASS_LAUNCH_TIMEOUT";
    /// File through which they find each other.
    pub const RENDEZVOUS: &str = "WINDLASS_RENDEZVOUS";
    /// Marks the processes of one supervisor, where a job has several.
    pub const TREE: &str = "WINDLASS_TREE";
    /// Where this machine's devices and CPUs are described, instead of `/sys`; for tests.
    pub const SYSFS: &str = "WINDLASS_SYSFS";
    /// Log filter, as in `info` or `windlass=debug`.
    pub const LOG: &str = "WINDLASS_LOG";
}

/// The variables that are read: our own, and those by which launchers tell a process who it is.
const FAMILIES: [&str; 6] = ["WINDLASS_", "PMI_", "PMIX_", "OMPI_", "SLURM", "DMLC_"];

/// Where programs and libraries are found; the processes of a job on several hosts are given it, too.
const PATHS: [&str; 2] = ["PATH", "LD_LIBRARY_PATH"];

/// What belongs to one process, or is told to each in another way.
const OWN: [&str; 14] = [
    variable::COORDINATOR,
    variable::SECRET,
    variable::JOB,
    variable::RANK,
    variable::WORKERS,
    variable::SERVERS,
    variable::LOCAL_INDEX,
    variable::POLLERS,
    variable::CONFIG,
    variable::TASK,
    variable::TASKS,
    variable::LAUNCH,
    variable::RENDEZVOUS,
    variable::TREE,
];

/// Where a setting comes from. Each outdoes those before it.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Source {
    File(String),
    /// Another system's variable that means the same.
    Alias(&'static str),
    Variable,
    Flag,
}

#[derive(Debug, Clone)]
struct Given {
    text: String,
    source: Source,
}

/// A snapshot of all settings, taken once at start: the `WINDLASS_*` variables, with what flags say above and what a
/// configuration file says below them; and the variables of launchers.
#[derive(Debug, Clone, Default)]
pub struct Environment {
    /// By the name of the variable.
    values: BTreeMap<String, Given>,
}

impl Environment {
    /// The process's present environment.
    pub fn capture() -> Environment {
        let ours = std::env::vars_os().filter_map(|(name, value)| {
            let wanted =
                |n: &String| FAMILIES.iter().any(|f| n.starts_with(f)) || PATHS.contains(&n.as_str());
            let name = name.into_string().ok().filter(wanted)?;
            Some((name, Given { text: value.into_string().ok()?, source: Source::Variable }))
        });
        Environment { values: ours.collect() }.with_aliases()
    }

    /// Takes ps-lite's variables where our own don't say otherwise.
    fn with_aliases(mut self) -> Environment {
        let rank = match self.text("DMLC_ROLE") {
            Some("server") => "DMLC_SERVER_ID",
            _ => "DMLC_WORKER_ID",
        };
        let root = self.text("DMLC_PS_ROOT_URI").zip(self.text("DMLC_PS_ROOT_PORT"));
        let mut found =
            vec![(variable::COORDINATOR, "DMLC_PS_ROOT_URI", root.map(|(h, p)| format!("{h}:{p}")))];
        for (ours, theirs) in [
            (variable::SERVERS, "DMLC_NUM_SERVER"),
            (variable::WORKERS, "DMLC_NUM_WORKER"),
            (variable::INTERFACE, "DMLC_INTERFACE"),
            (variable::RANK, rank),
            (variable::RANK, "DMLC_TASK_ID"),
        ] {
            found.push((ours, theirs, self.text(theirs).map(str::to_owned)));
        }
        for (ours, theirs, text) in found {
            if let Some(text) = text {
                let given = || Given { text, source: Source::Alias(theirs) };
                self.values.entry(ours.to_owned()).or_insert_with(given);
            }
        }
        self
    }

    /// A snapshot made by hand.
    pub fn from_pairs<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Environment {
        let given = |text: &str| Given { text: text.to_owned(), source: Source::Variable };
        Environment { values: pairs.into_iter().map(|(n, v)| (n.to_owned(), given(v))).collect() }
    }

    /// The same with what a flag says, if it was given, in place of what `name` says.
    pub fn with(mut self, name: &str, value: Option<impl ToString>) -> Environment {
        if let Some(value) = value {
            self.values.insert(name.to_owned(), Given { text: value.to_string(), source: Source::Flag });
        }
        self
    }

    /// What the configuration file `path` says, where nothing else does.
    fn fill(&mut self, name: &str, text: String, path: &str) {
        let given = || Given { text, source: Source::File(path.to_owned()) };
        self.values.entry(name.to_owned()).or_insert_with(given);
    }

    /// The text of a variable.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(|given| given.text.as_str())
    }

    /// What a process of the same job on another host is given: our own variables, from wherever they come, and where programs are.
    pub fn carried(&self) -> impl Iterator<Item = (String, String)> {
        let ours =
            |name: &str| name.starts_with("WINDLASS_") && !OWN.contains(&name) || PATHS.contains(&name);
        let given = self.values.iter().filter(move |(name, _)| ours(name));
        given.map(|(name, given)| (name.clone(), given.text.clone()))
    }

    /// A variable's value; refused by the name under which it was given when it does not parse.
    pub fn value<T: FromStr>(&self, name: &str, expected: &str) -> Result<Option<T>> {
        let parse = |text: &str| text.parse().map_err(|_| Error::config(self.name_of(name), expected, text));
        self.text(name).map(parse).transpose()
    }

    /// Under which name a variable's value was given, for messages: the flag's, the key's, or its own.
    pub fn name_of(&self, name: &str) -> String {
        let key = || name.trim_start_matches("WINDLASS_").to_lowercase();
        match self.values.get(name).map(|given| &given.source) {
            Some(Source::Flag) => format!("--{}", key().replace('_', "-")),
            Some(Source::File(path)) => format!("{} in {path}", key()),
            Some(Source::Alias(theirs)) => (*theirs).to_owned(),
            Some(Source::Variable) | None => name.to_owned(),
        }
    }

    /// Where a variable's value comes from, in words.
    fn source_of(&self, name: &str) -> String {
        match self.values.get(name).map(|given| &given.source) {
            Some(Source::Flag) => format!("flag {}", self.name_of(name)),
            Some(Source::Alias(_) | Source::Variable) => format!("environment {}", self.name_of(name)),
            Some(Source::File(path)) => format!("file {path}"),
            None => "default".to_owned(),
        }
    }
}

/// Parses a number of bytes: `65536`, `64K`, `64KiB`, `1M`, `1MiB`, `2G`, in powers of 1024.
pub fn parse_bytes(text: &str) -> Result<u64> {
    let refuse = || Error::config("bytes", "a number, with K, M or G for powers of 1024", text);
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match text[digits.len()..].trim_end_matches("iB") {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        _ => return Err(refuse()),
    };
    let number: u64 = digits.parse().map_err(|_| refuse())?;
    number.checked_mul(1 << shift).ok_or_else(refuse)
}

/// The network that carries the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum TransportKind {
    /// TCP sockets.
    Tcp,
    /// InfiniBand or RoCE, in builds with the feature `verbs`.
    Verbs,
    /// Memory that processes of one user on one host share.
    Shm,
}

impl TransportKind {
    /// All of them, the best that reaches other hosts first.
    pub const ALL: [TransportKind; 3] = [TransportKind::Verbs, TransportKind::Tcp, TransportKind::Shm];

    /// As users, peers and reports call it.
    pub fn name(self) -> &'static str {
        match self {
            TransportKind::Tcp => "tcp",
            TransportKind::Verbs => "verbs",
            TransportKind::Shm => "shm",
        }
    }
}

impl fmt::Display for TransportKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a user says about what carries the data.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum TransportChoice {
    /// Shared memory between two nodes on one host; else verbs where every node of the job has it, else TCP.
    #[default]
    Auto,
    /// This one or none.
    Only(TransportKind),
}

impl fmt::Display for TransportChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TransportChoice::Auto => f.write_str("auto"),
            TransportChoice::Only(kind) => kind.fmt(f),
        }
    }
}

impl FromStr for TransportChoice {
    type Err = Error;

    fn from_str(text: &str) -> Result<TransportChoice> {
        let kind = TransportKind::ALL.into_iter().find(|kind| kind.name() == text);
        match (text, kind) {
            ("auto", _) => Ok(TransportChoice::Auto),
            (_, Some(kind)) => Ok(TransportChoice::Only(kind)),
            _ => Err(Error::config("transport", "auto, tcp, verbs or shm", text)),
        }
    }
}

/// What a user says about how threads wait.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum PollChoice {
    /// As [`Polling::adaptive`] finds best.
    #[default]
    Auto,
    /// Never sleeps: a CPU for each thread, and nothing else on it.
    Spin,
    /// Sleeps at once when there is nothing to do.
    Block,
}

impl fmt::Display for PollChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            PollChoice::Auto => "auto",
            PollChoice::Spin => "spin",
            PollChoice::Block => "block",
        })
    }
}

impl FromStr for PollChoice {
    type Err = Error;

    fn from_str(text: &str) -> Result<PollChoice> {
        match text {
            "auto" => Ok(PollChoice::Auto),
            "spin" => Ok(PollChoice::Spin),
            "block" => Ok(PollChoice::Block),
            _ => Err(Error::config("poll", "auto, spin or block", text)),
        }
    }
}

/// How a thread waits for the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Polling {
    /// Sleeps at once when there is nothing to do.
    Block,
    /// Spins that long before it sleeps.
    Spin(Duration),
}

impl fmt::Display for Polling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Polling::Block => f.write_str("block"),
            Polling::Spin(Duration::MAX) => f.write_str("spin"),
            Polling::Spin(time) => write!(f, "spin for {time:?}"),
        }
    }
}

impl Polling {
    /// What `choice` comes to on a host with so many waiting threads and CPUs.
    pub fn chosen(choice: PollChoice, pollers: usize, cpus: usize) -> Polling {
        match choice {
            PollChoice::Auto => Polling::adaptive(pollers, cpus),
            PollChoice::Spin => Polling::Spin(Duration::MAX),
            PollChoice::Block => Polling::Block,
        }
    }

    /// Spins for 50 µs, about a wake-up across cores, unless the host has more waiting threads than CPUs.
    pub fn adaptive(pollers: usize, cpus: usize) -> Polling {
        if pollers > cpus { Polling::Block } else { Polling::Spin(Duration::from_micros(50)) }
    }
}

/// Who sends and receives a worker's data while none of its calls waits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Progress {
    /// Nobody: every call sends what it may, and the next one that waits, tests or flushes goes on.
    #[default]
    Caller,
    /// A thread of the client, which sleeps while there is nothing to do.
    Thread,
}

impl Progress {
    /// The values, for messages.
    pub const EXPECTED: &str = "caller or thread";
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Progress::Caller => "caller",
            Progress::Thread => "thread",
        })
    }
}

impl FromStr for Progress {
    type Err = Error;

    fn from_str(text: &str) -> Result<Progress> {
        match text {
            "caller" => Ok(Progress::Caller),
            "thread" => Ok(Progress::Thread),
            _ => Err(Error::config("progress", Progress::EXPECTED, text)),
        }
    }
}

/// Who moves the values of a worker's pulls, of tables that are published in epochs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum PullMode {
    /// The server, when they are asked for.
    #[default]
    Push,
    /// The worker reads them one-sidedly.
    Read,
}

impl fmt::Display for PullMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            PullMode::Push => "push",
            PullMode::Read => "read",
        })
    }
}

impl FromStr for PullMode {
    type Err = Error;

    fn from_str(text: &str) -> Result<PullMode> {
        match text {
            "push" => Ok(PullMode::Push),
            "read" => Ok(PullMode::Read),
            _ => Err(Error::config("pull", "push or read", text)),
        }
    }
}

/// Which network, and where on it.
#[derive(Debug, Clone)]
pub struct Network {
    /// What carries the data.
    pub transport: TransportChoice,
    /// The address to bind; 127.0.0.1 by default.
    pub interface: IpAddr,
    /// Ports to listen on; any when not given.
    pub ports: Option<RangeInclusive<u16>>,
    /// What peers dial for data instead of the address that we listen on, where something forwards it to us (TCP only).
    pub advertise: Option<SocketAddr>,
    /// How RDMA devices are used.
    pub rdma: Rdma,
    /// How TCP sockets are set up.
    pub sockets: Sockets,
    /// A peer that is silent for so long is lost.
    pub peer_timeout: Duration,
    /// A lost data connection is opened anew for so long before its peer counts as lost.
    pub reconnect_timeout: Duration,
    /// How threads wait.
    pub polling: Polling,
    /// What peers and strangers may take.
    pub limits: LinkLimits,
}

impl Default for Network {
    fn default() -> Network {
        Network {
            transport: TransportChoice::default(),
            interface: IpAddr::V4(Ipv4Addr::LOCALHOST),
            ports: None,
            advertise: None,
            rdma: Rdma::default(),
            sockets: Sockets::default(),
            peer_timeout: Duration::from_secs(10),
            reconnect_timeout: Duration::from_secs(10),
            polling: Polling::Block,
            limits: LinkLimits::default(),
        }
    }
}

/// Parses `A-B`, ports from A to B, or a single port.
pub fn parse_ports(text: &str) -> Result<RangeInclusive<u16>> {
    let refuse = || Error::config("port range", "A-B with 1 ≤ A ≤ B ≤ 65535", text);
    let (low, high) = text.split_once('-').unwrap_or((text, text));
    let low: u16 = low.parse().map_err(|_| refuse())?;
    let high: u16 = high.parse().map_err(|_| refuse())?;
    if low == 0 || low > high {
        return Err(refuse());
    }
    Ok(low..=high)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_spins_unless_more_threads_wait_than_there_are_cpus() {
        let spin = Polling::Spin(Duration::from_micros(50));
        for (pollers, cpus, auto) in
            [(1, 1, spin), (6, 8, spin), (8, 8, spin), (9, 8, Polling::Block), (2, 1, Polling::Block)]
        {
            assert_eq!(Polling::chosen(PollChoice::Auto, pollers, cpus), auto, "{pollers} on {cpus}");
            // What was asked for holds whatever the host has.
            assert_eq!(Polling::chosen(PollChoice::Spin, pollers, cpus), Polling::Spin(Duration::MAX));
            assert_eq!(Polling::chosen(PollChoice::Block, pollers, cpus), Polling::Block);
        }
    }

    #[test]
    fn values_are_parsed_or_refused_by_name() {
        let environment = Environment::from_pairs([(variable::RANK, "3"), (variable::WORKERS, "many")]);
        assert_eq!(environment.value::<u32>(variable::RANK, "a number").unwrap(), Some(3));
        assert_eq!(environment.value::<u32>(variable::SERVERS, "a number").unwrap(), None);
        let error = environment.value::<u32>(variable::WORKERS, "a number").unwrap_err().to_string();
        assert_eq!(error, "WINDLASS_WORKERS: expected a number, found many");
    }

    #[test]
    fn the_variables_of_ps_lite_mean_ours_where_these_are_not_given() {
        let pairs = [
            ("DMLC_ROLE", "worker"),
            ("DMLC_PS_ROOT_URI", "10.0.0.1"),
            ("DMLC_PS_ROOT_PORT", "8000"),
            ("DMLC_NUM_SERVER", "2"),
            ("DMLC_NUM_WORKER", "many"),
            ("DMLC_TASK_ID", "5"),
            ("DMLC_WORKER_ID", "3"),
            (variable::SERVERS, "4"),
        ];
        let environment = Environment::from_pairs(pairs).with_aliases();
        assert_eq!(environment.text(variable::COORDINATOR), Some("10.0.0.1:8000"));
        assert_eq!(environment.text(variable::RANK), Some("3"));
        assert_eq!(environment.text(variable::SERVERS), Some("4"));
        let error = environment.value::<u32>(variable::WORKERS, "a number").unwrap_err().to_string();
        assert_eq!(error, "DMLC_NUM_WORKER: expected a number, found many");
        let server =
            Environment::from_pairs([("DMLC_ROLE", "server"), ("DMLC_SERVER_ID", "1")]).with_aliases();
        assert_eq!(server.text(variable::RANK), Some("1"));
        assert_eq!(server.text(variable::COORDINATOR), None);
    }

    #[test]
    fn port_ranges() {
        assert_eq!(parse_ports("4000-4010").unwrap(), 4000..=4010);
        assert_eq!(parse_ports("4000").unwrap(), 4000..=4000);
        for bad in ["", "0-3", "5-4", "x", "1-70000"] {
            assert!(parse_ports(bad).is_err(), "{bad}");
        }
    }
}
