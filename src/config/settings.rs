//! The settings that a flag, a variable and a key of a configuration file can give: the table at the end of the code, one entry for
//! each.

use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use super::limits::{DEFAULT_JOIN_TIMEOUT, DEFAULT_TABLES, DEFAULT_WAIT_TIMEOUT};
use super::rdma::{Devices, Mtu, Rdma, Switch};
use super::{
    Environment, LinkLimits, Network, Pin, PollChoice, Progress, PullMode, ServerLimits, Sockets,
    TransportChoice, WorkerLimits, parse_bytes,
};
use crate::error::{Error, Result};

/// One setting: flag `--peer-timeout`, variable `WINDLASS_PEER_TIMEOUT`, key `peer_timeout`.
#[derive(Debug)]
pub struct Setting {
    /// Its variable.
    pub variable: &'static str,
    /// What stands for its value in `--help`.
    pub value_name: &'static str,
    /// What it is, for `--help`.
    pub help: &'static str,
    /// What holds when nobody gives it.
    pub default: fn() -> String,
    kind: Kind,
}

/// What a setting's text may be.
#[derive(Debug)]
enum Kind {
    /// What the function takes.
    Word(fn(&str) -> Result<()>),
    /// A number within bounds.
    Count(RangeInclusive<u64>),
    /// A number within bounds, or `auto`.
    Choice(RangeInclusive<u64>),
    /// A number of bytes within bounds, with K, M or G for powers of 1024.
    Bytes(RangeInclusive<u64>),
    /// A number of seconds within bounds.
    Seconds(RangeInclusive<u64>),
}

/// In seconds. The times that the system keeps for a connection reach as far as half a day.
const HOUR: u64 = 3600;

/// What stands for "no such restriction" where a setting may be left open.
pub const ANY: &str = "any";

/// What stands for something that there is not.
pub const NONE: &str = "none";

/// What stands for Windlass's own choice. Of `resume`: the newest checkpoint that can be used, or none where there is none.
pub const AUTO: &str = "auto";

/// What stands for a job that begins anew although there is something that it could go on from.
pub const NEW: &str = "new";

/// How often a checkpoint is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Every {
    /// At every clock that is a multiple of this.
    Clocks(u64),
    /// After so much time.
    Time(Duration),
}

impl FromStr for Every {
    type Err = Error;

    fn from_str(text: &str) -> Result<Every> {
        let refuse = || Error::config("every", "a number of clocks, or a time as in 30s, 10m or 2h", text);
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let number: u64 = digits.parse().ok().filter(|&n| n > 0 && n < 1 << 40).ok_or_else(refuse)?;
        match &text[digits.len()..] {
            "" => Ok(Every::Clocks(number)),
            "s" => Ok(Every::Time(Duration::from_secs(number))),
            "m" => Ok(Every::Time(Duration::from_secs(number * 60))),
            "h" => Ok(Every::Time(Duration::from_secs(number * 3600))),
            _ => Err(refuse()),
        }
    }
}

impl Setting {
    /// Its key in a configuration file.
    pub fn key(&self) -> String {
        self.variable.trim_start_matches("WINDLASS_").to_lowercase()
    }

    /// Its flag, without the dashes.
    pub fn flag(&self) -> String {
        self.key().replace('_', "-")
    }

    /// Whether `text` is a word or number that can stand there at all; whether it is within bounds, and exists on this
    /// machine, is asked when it is used.
    pub fn check_form(&self, text: &str) -> Result<()> {
        match &self.kind {
            Kind::Word(check) => check(text),
            Kind::Bytes(_) => parse_bytes(text).map(drop),
            Kind::Choice(_) if text == AUTO => Ok(()),
            Kind::Count(_) | Kind::Choice(_) | Kind::Seconds(_) => {
                text.parse::<u64>().map(drop).map_err(|_| Error::config(self.key(), "a number", text))
            }
        }
    }

    /// The number that `text` is, refused as `name` when it is none or out of bounds.
    fn number(&self, text: &str, name: &str) -> Result<u64> {
        let refuse = |expected: String| Error::config(name, expected, text);
        match &self.kind {
            Kind::Word(_) => Err(refuse("a word".to_owned())),
            Kind::Count(bounds) => {
                let parsed = text.parse().ok().filter(|n| bounds.contains(n));
                parsed.ok_or_else(|| refuse(format!("{} to {}", bounds.start(), bounds.end())))
            }
            Kind::Choice(bounds) => {
                let parsed = text.parse().ok().filter(|n| bounds.contains(n));
                parsed.ok_or_else(|| refuse(format!("{} to {} or {AUTO}", bounds.start(), bounds.end())))
            }
            Kind::Bytes(bounds) => {
                let parsed = parse_bytes(text).ok().filter(|n| bounds.contains(n));
                parsed.ok_or_else(|| refuse(format!("{} to {} bytes", bounds.start(), bounds.end())))
            }
            Kind::Seconds(bounds) => {
                let parsed = text.parse().ok().filter(|n| bounds.contains(n));
                parsed.ok_or_else(|| refuse(format!("{} to {} seconds", bounds.start(), bounds.end())))
            }
        }
    }
}

impl Environment {
    /// What a setting is, in text: as it was given, or its default.
    pub fn setting(&self, setting: &Setting) -> String {
        self.text(setting.variable).map_or_else(setting.default, str::to_owned)
    }

    /// A setting that is a number; refused by the name under which it was given.
    pub fn number(&self, setting: &Setting) -> Result<u64> {
        setting.number(&self.setting(setting), &self.name_of(setting.variable))
    }

    /// A setting that is a number of seconds.
    pub fn seconds(&self, setting: &Setting) -> Result<Duration> {
        self.number(setting).map(Duration::from_secs)
    }

    /// A setting that is a number or `auto`, which is `None`.
    pub fn choice(&self, setting: &Setting) -> Result<Option<u64>> {
        if self.setting(setting) == AUTO { Ok(None) } else { self.number(setting).map(Some) }
    }

    /// A setting that is a word; refused by the name under which it was given.
    pub fn parsed<T: FromStr<Err = Error>>(&self, setting: &Setting) -> Result<T> {
        self.setting(setting).parse().map_err(|error| match error {
            Error::Config { expected, found, .. } => {
                Error::Config { setting: self.name_of(setting.variable), expected, found }
            }
            other => other,
        })
    }

    /// A setting that is a word, or `open`, which is `None`.
    pub fn restriction_to<T: FromStr<Err = Error>>(
        &self,
        setting: &Setting,
        open: &str,
    ) -> Result<Option<T>> {
        if self.setting(setting) == open { Ok(None) } else { self.parsed(setting).map(Some) }
    }

    /// A setting that restricts something, or `None` when it is open.
    pub fn restriction(&self, setting: &Setting) -> Option<&str> {
        self.text(setting.variable).filter(|text| *text != ANY)
    }

    /// A setting that names something, or `None` where there is nothing.
    pub fn chosen(&self, setting: &Setting) -> Option<&str> {
        self.text(setting.variable).filter(|text| *text != NONE)
    }

    /// These settings as TOML, each with where it comes from. Given back as a configuration file it means the same.
    pub fn effective<'a>(&self, settings: impl IntoIterator<Item = &'a Setting>) -> Result<String> {
        let mut lines = String::new();
        for setting in settings {
            let text = self.setting(setting);
            let value = match setting.kind {
                Kind::Word(check) => {
                    check(&text)?;
                    toml::Value::String(text).to_string()
                }
                Kind::Choice(_) if text == AUTO => toml::Value::String(text).to_string(),
                _ => self.number(setting)?.to_string(),
            };
            lines += &format!("{} = {value}  # {}\n", setting.key(), self.source_of(setting.variable));
        }
        Ok(lines)
    }
}

/// Makes a constant of each setting, a list of each group, and [`all`]. An entry is
/// `NAME, what stands for its value, what it may be, its default; "what it is"`.
macro_rules! settings {
    ($(
        $(#[$about:meta])*
        $group:ident { $($name:ident, $value_name:literal, $kind:expr, $default:expr; $help:literal)* }
    )*) => {
        $($(
            #[doc = $help]
            pub const $name: Setting = Setting {
                variable: concat!("WINDLASS_", stringify!($name)),
                value_name: $value_name,
                help: $help,
                default: || $default.to_string(),
                kind: $kind,
            };
        )*
        $(#[$about])*
        pub const $group: &[Setting] = &[$($name),*];)*

        /// All of them.
        pub fn all() -> impl Iterator<Item = &'static Setting> {
            [$($group),*].into_iter().flatten()
        }
    };
}

/// What chooses an address to listen on, for the error that it can't be bound.
pub const LISTENING: &str = "--interface or --port-range";

settings! {
    /// What every process of a job has.
    NETWORK {
        TRANSPORT, "KIND", Kind::Word(|text| text.parse::<TransportChoice>().map(drop)), Network::default().transport;
        "What carries the data: auto (shm where both ends are on one host, else verbs where all nodes of the job have it, else tcp), tcp, verbs, or shm (memory, between processes of one user on one host)"
        INTERFACE, "NAME|IP|CIDR", Kind::Word(|_| Ok(())), Network::default().interface;
        "Network interface to bind, by name, by IP address, or by a network that it has an address in"
        PORT_RANGE, "A-B", Kind::Word(|_| Ok(())), ANY;
        "Ports to listen on"
        POLL, "HOW", Kind::Word(|text| text.parse::<PollChoice>().map(drop)), PollChoice::default();
        "How threads wait for the network: auto (spin for 50 us, then sleep; sleep at once where more threads wait on this host than this process may use CPUs), spin, or block"
        RECONNECT_TIMEOUT, "SECONDS", Kind::Seconds(1..=10_000 * HOUR), Network::default().reconnect_timeout.as_secs();
        "Seconds in which a lost data connection is opened anew before its peer counts as lost"
        PAYLOAD_BYTES, "BYTES", Kind::Bytes(ServerLimits::LEAST_PAYLOAD..=ServerLimits::MOST_PAYLOAD), ServerLimits::default().payload_bytes;
        "Longest body of one request, which is the size of a slot and of a worker's buffers"
        TCP_ZEROCOPY, "on|off", Kind::Word(|text| text.parse::<Switch>().map(drop)), Sockets::default().zerocopy;
        "Whether the kernel sends long bodies to other hosts from where they lie (MSG_ZEROCOPY)"
        TCP_BUSY_POLL, "MICROSECONDS", Kind::Count(Sockets::BUSY_POLL), Sockets::default().busy_poll;
        "How long a call on a TCP socket that finds nothing asks the network card itself (SO_BUSY_POLL)"
        TCP_BUFFER, "BYTES", Kind::Choice(Sockets::BUFFER), AUTO;
        "Bytes of each TCP socket's send and receive buffer, or auto: the kernel's own growing ones"
    }
    /// What every process of a job has that takes or makes control links, the Coordinator included.
    LINK {
        PEER_TIMEOUT, "SECONDS", Kind::Seconds(1..=12 * HOUR), Network::default().peer_timeout.as_secs();
        "Seconds of silence after which a peer is lost"
        JOIN_TIMEOUT, "SECONDS", Kind::Seconds(1..=10_000 * HOUR), DEFAULT_JOIN_TIMEOUT.as_secs();
        "Seconds in which all nodes of the job have to be there"
        DIAL_TIMEOUT, "SECONDS", Kind::Seconds(1..=12 * HOUR), LinkLimits::default().dial_timeout.as_secs();
        "Seconds for which an address is dialled where nobody answers"
        HANDSHAKE_TIMEOUT, "SECONDS", Kind::Seconds(1..=12 * HOUR), LinkLimits::default().handshake_timeout.as_secs();
        "Seconds in which whoever connects to a port has to prove itself"
        STRANGERS, "N", Kind::Count(1..=65_536), LinkLimits::default().strangers;
        "Connections to one port that have not proved themselves yet"
        LINKS, "N", Kind::Count(2..=1 << 20), LinkLimits::default().links;
        "Control links of one process"
        CONTROL_BYTES, "BYTES", Kind::Bytes(1 << 20..=1 << 30), LinkLimits::default().control_bytes;
        "Memory for what waits to be sent over one control link"
        QUEUE_DEPTH, "N", Kind::Count(16..=65_536), LinkLimits::default().queue_depth;
        "Writes and messages that may wait for one data connection (tcp, shm)"
        SHOWN_BYTES, "BYTES", Kind::Bytes(1 << 20..=1 << 46), LinkLimits::default().shown_bytes;
        "Memory that a peer on this host may have this process map for one data connection (shm)"
    }
    /// What only the Coordinator has.
    COORDINATOR {
        TABLES, "N", Kind::Count(1..=1 << 20), DEFAULT_TABLES;
        "Tables of a job"
    }
    /// What only workers have.
    WORKER {
        PROGRESS, "WHO", Kind::Word(|text| text.parse::<Progress>().map(drop)), Progress::default();
        "Who sends and receives while no call waits: caller or thread"
        PULL, "HOW", Kind::Word(|text| text.parse::<PullMode>().map(drop)), PullMode::default();
        "How values of dense tables without pull filters are pulled: push (the servers answer) or read (workers read them one-sidedly; \
         the other tables are answered all the same)"
        WAIT_TIMEOUT, "SECONDS", Kind::Seconds(1..=10_000 * HOUR), DEFAULT_WAIT_TIMEOUT.as_secs();
        "Seconds that any one wait may last while all nodes are alive"
        SEND_BYTES, "BYTES", Kind::Bytes(4 << 20..=1 << 40), WorkerLimits::default().send_bytes;
        "Memory of each worker for pushes that are copied; shorter buffers take about a quarter more"
        RECEIVE_BYTES, "BYTES", Kind::Bytes(4 << 20..=1 << 40), WorkerLimits::default().receive_bytes;
        "Memory of each worker for pulls that do not go to a registered buffer; shorter buffers take a seventh more"
        SMALL_BYTES, "BYTES", Kind::Bytes(0..=64 << 10), WorkerLimits::default().small_bytes;
        "Longest body of a push or pull that is gathered with others; 0 gathers none with a body"
        BATCH_BYTES, "BYTES", Kind::Bytes(4 << 10..=ServerLimits::LEAST_PAYLOAD), WorkerLimits::default().batch_bytes;
        "Longest frame that small pushes and pulls are gathered into"
        QUEUED_FRAMES, "N", Kind::Count(1..=1 << 20), WorkerLimits::default().queued_frames;
        "Frames that may wait for one server thread before a call waits, too"
        WINDOW_BYTES, "BYTES", Kind::Bytes(4 << 10..=1 << 30), WorkerLimits::default().window_bytes;
        "Bytes that may be under way to one server thread beyond the first frame; what shared memory lends does not count"
        RING_ENTRIES, "N", Kind::Count(4..=65_536), WorkerLimits::default().ring_entries;
        "Replies of one server thread that a worker has not read"
    }
    /// How RDMA devices are used.
    RDMA {
        RDMA_DEVICE, "LIST", Kind::Word(|text| text.parse::<Devices>().map(drop)), Rdma::default().device;
        "RDMA devices and ports, as in mlx5_0:1,mlx5_2: each active one is a rail, over which server threads are spread; =LIST takes \
         names as they are and not as beginnings, ^LIST all but these; `any` is the first active one"
        RDMA_GID_INDEX, "N", Kind::Choice(Rdma::GID_INDEX), AUTO;
        "Index in the port's GID table, or auto: RoCE v2 over IPv4, then IPv6, then v1"
        RDMA_SERVICE_LEVEL, "N", Kind::Count(Rdma::SERVICE_LEVEL), Rdma::default().service_level;
        "InfiniBand service level, or Ethernet priority"
        RDMA_TRAFFIC_CLASS, "N", Kind::Count(Rdma::TRAFFIC_CLASS), Rdma::default().traffic_class;
        "IP traffic class (DSCP and ECN bits) of RoCE v2 packets"
        RDMA_PKEY_INDEX, "N", Kind::Count(Rdma::PKEY_INDEX), Rdma::default().pkey_index;
        "Index in the port's table of partition keys"
        RDMA_MTU, "BYTES", Kind::Word(|text| if text == AUTO { Ok(()) } else { text.parse::<Mtu>().map(drop) }), AUTO;
        "Longest payload of a packet: 256, 512, 1024, 2048, 4096, or auto, which is the port's"
        RDMA_TIMEOUT, "N", Kind::Choice(Rdma::TIMEOUT), AUTO;
        "Local ACK timeout, 4.096 µs × 2^N; auto is 14, or 18 on soft-RoCE"
        RDMA_RETRIES, "N", Kind::Count(Rdma::RETRIES), Rdma::default().retries;
        "Times that a packet without ACK is sent again"
        RDMA_QUEUE_DEPTH, "N", Kind::Count(Rdma::QUEUE_DEPTH), Rdma::default().queue_depth;
        "Operations that one endpoint may have under way, rounded up to a power of two, at least 64"
        RDMA_INLINE, "BYTES", Kind::Count(Rdma::INLINE), Rdma::default().inline;
        "Longest write or message that travels inside its work request, where the device can"
        RDMA_RELAXED_ORDERING, "on|off", Kind::Word(|text| text.parse::<Switch>().map(drop)), Rdma::default().relaxed_ordering;
        "Whether the device's writes to memory may overtake each other on PCIe, where it can"
    }
    /// What only servers have.
    SERVER {
        THREADS, "N", Kind::Count(1..=256), 1;
        "Threads of each server, each with a shard of its own"
        PIN, "auto|none|LIST", Kind::Word(|text| text.parse::<Pin>().map(drop)), Pin::default();
        "CPUs that server threads are pinned to: auto (one each, where there are enough, next to the RDMA device), none, or a list such as \
         0,2-5"
        STAGING_BYTES, "BYTES", Kind::Bytes(1 << 16..=1 << 40), ServerLimits::default().staging_bytes;
        "Memory of each server thread for requests that wait, with K, M or G for powers of 1024"
        TABLE_BYTES, "BYTES", Kind::Bytes(0..=1 << 62), ServerLimits::default().table_bytes;
        "Memory of each server thread for dense tables"
        SPARE_BYTES, "BYTES", Kind::Bytes(0..=1 << 40), ServerLimits::default().spare_bytes;
        "Memory of each dense table in each server thread for versions of segments that are still being sent; 0 copies every answer"
        SLOTS, "N", Kind::Count(1..=64), ServerLimits::default().slots;
        "Requests of one worker that may wait in one server thread, where its memory allows them"
        PULL_CREDITS, "N", Kind::Count(1..=4096), ServerLimits::default().pull_credits;
        "Pulls of one worker that may be outstanding at one server thread"
        KEY_LIST_BYTES, "BYTES", Kind::Bytes(0..=1 << 40), ServerLimits::default().key_list_bytes;
        "Memory of each server thread for lists of keys that workers push to again and again, so that the keys come once; 0 keeps none"
        REPLY_BUFFERS, "N", Kind::Count(1..=4096), ServerLimits::default().reply_buffers;
        "Buffers of each server thread for answers"
        CUT_BYTES, "BYTES", Kind::Bytes(1 << 20..=1 << 40), ServerLimits::default().cut_bytes;
        "Memory of each server thread for what changes while a checkpoint of it is being written; beyond that pushes wait for the disk"
        STOP_TIMEOUT, "SECONDS", Kind::Seconds(1..=10_000 * HOUR), ServerLimits::default().stop_timeout.as_secs();
        "Seconds in which a server that is told to stop (SIGTERM) answers what it has taken"
    }
    /// Where servers and the coordinator keep checkpoints.
    CHECKPOINTS {
        CHECKPOINT, "DIR", Kind::Word(|_| Ok(())), NONE;
        "Directory for checkpoints, the same for all servers and the coordinator"
        RESUME, "DIR|auto|new", Kind::Word(|_| Ok(())), NONE;
        "Go on from the checkpoint in this directory, or (auto) from the newest one in --checkpoint, if there is one; `new` begins anew beside those of another run"
    }
    /// When checkpoints are made.
    CUTS {
        EVERY, "N|TIME", Kind::Word(|text| if text == NONE { Ok(()) } else { text.parse::<Every>().map(drop) }), NONE;
        "Make a checkpoint every so many clocks, or every so often: 30s, 10m, 2h; `none` is only when the job is told to end"
        KEEP, "N", Kind::Count(1..=1_000_000), 2;
        "Checkpoints to keep, the newest ones"
        GRACE, "SECONDS", Kind::Seconds(1..=10_000 * HOUR), 30;
        "Seconds for a last checkpoint when the job is told to end (SIGTERM, SIGUSR1)"
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::variable;

    #[test]
    fn names_follow_from_the_key_and_defaults_are_allowed() {
        for setting in all() {
            assert_eq!(setting.variable, format!("WINDLASS_{}", setting.key().to_uppercase()));
            setting.check_form(&(setting.default)()).unwrap();
        }
        let nothing = Environment::default();
        assert_eq!(ServerLimits::from_environment(&nothing).unwrap(), ServerLimits::default());
        nothing.effective(all()).unwrap();
    }

    /// All of them, from every source: what is wrong is refused by the name under which it was given.
    #[test]
    fn every_setting_has_a_flag_a_variable_and_a_key_in_this_order() {
        let shown = |environment: &Environment, setting| {
            let line = environment.effective([setting]).unwrap();
            line.split_once(" = ")
                .unwrap()
                .1
                .trim_end()
                .split_once("  # ")
                .map(|(v, s)| (v.to_owned(), s.to_owned()))
        };
        for setting in all() {
            let (name, key) = (setting.variable, setting.key());
            // A number that is allowed and no default, or the default word.
            let other = match &setting.kind {
                Kind::Word(_) => (setting.default)(),
                Kind::Count(bounds) | Kind::Choice(bounds) | Kind::Bytes(bounds) | Kind::Seconds(bounds) => {
                    bounds.end().to_string()
                }
            };
            let value = match &setting.kind {
                Kind::Word(_) => format!("\"{other}\""),
                _ => other.clone(),
            };
            let by_file = Environment::default().under("a.toml", &format!("{key} = {value}")).unwrap();
            assert_eq!(shown(&by_file, setting), Some((value.clone(), "file a.toml".to_owned())));
            let default = (setting.default)();
            let quoted = toml::Value::String(default.clone()).to_string();
            let both = Environment::from_pairs([(name, other.as_str())]);
            let both = both.under("a.toml", &format!("{key} = {quoted}")).unwrap();
            assert_eq!(shown(&both, setting), Some((value.clone(), format!("environment {name}"))));
            let all_three = Environment::from_pairs([(name, default.as_str())]).with(name, Some(&other));
            let all_three = all_three.under("a.toml", &format!("{key} = {quoted}")).unwrap();
            assert_eq!(shown(&all_three, setting), Some((value, format!("flag --{}", setting.flag()))));
            let wrong: Vec<String> = match &setting.kind {
                Kind::Word(_) => continue,
                Kind::Count(bounds) | Kind::Choice(bounds) | Kind::Bytes(bounds) | Kind::Seconds(bounds) => {
                    let below = bounds.start().checked_sub(1).map(|n| n.to_string());
                    below.into_iter().chain([(bounds.end() + 1).to_string(), "many".to_owned()]).collect()
                }
            };
            for text in wrong {
                let refused = Environment::default().with(name, Some(&text)).number(setting).unwrap_err();
                let Error::Config { setting: given, found, .. } = refused else { panic!("{refused}") };
                assert_eq!((given, found), (format!("--{}", setting.flag()), text));
            }
        }
    }

    #[test]
    fn a_number_out_of_bounds_is_refused_by_the_name_under_which_it_was_given() {
        let given = Environment::from_pairs([(variable::SLOTS, "65")]);
        let refused =
            |environment: &Environment| ServerLimits::from_environment(environment).unwrap_err().to_string();
        assert_eq!(refused(&given), "WINDLASS_SLOTS: expected 1 to 64, found 65");
        let given = given.with(variable::SLOTS, Some(0));
        assert_eq!(refused(&given), "--slots: expected 1 to 64, found 0");
        let given = Environment::default().with(variable::STOP_TIMEOUT, Some(0));
        assert_eq!(refused(&given), "--stop-timeout: expected 1 to 36000000 seconds, found 0");
        let given = Environment::default().with(variable::STAGING_BYTES, Some("1K"));
        assert!(refused(&given).starts_with("--staging-bytes: expected 65536 to "), "{}", refused(&given));
    }
}
