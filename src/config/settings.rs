//! The settings that a flag, a variable and a key of a configuration file can give. Each stands here once.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::{Environment, Network, Pin, PollChoice, TransportKind, parse_bytes, variable};
use crate::error::{Error, Result};

/// One setting: flag `--peer-timeout`, variable `WINDLASS_PEER_TIMEOUT`, key `peer_timeout`.
#[derive(Debug)]
pub struct Setting {
    /// Its key in a configuration file.
    pub key: &'static str,
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
    /// A number of bytes within bounds, with K, M or G for powers of 1024.
    Bytes(RangeInclusive<u64>),
    /// A number of seconds, at least 1.
    Seconds,
}

/// What stands for "no such restriction" where a setting may be left open.
pub const ANY: &str = "any";

const fn word(
    (key, variable): (&'static str, &'static str),
    value_name: &'static str,
    help: &'static str,
    default: fn() -> String,
    check: fn(&str) -> Result<()>,
) -> Setting {
    Setting { key, variable, value_name, help, default, kind: Kind::Word(check) }
}

const fn number(
    (key, variable): (&'static str, &'static str),
    value_name: &'static str,
    help: &'static str,
    default: fn() -> String,
    kind: Kind,
) -> Setting {
    Setting { key, variable, value_name, help, default, kind }
}

fn any() -> String {
    ANY.to_owned()
}

/// What carries the data.
pub const TRANSPORT: Setting = word(
    ("transport", variable::TRANSPORT),
    "KIND",
    "What carries the data: tcp or verbs",
    || Network::default().transport.to_string(),
    |text| text.parse::<TransportKind>().map(drop),
);
/// The network interface to bind.
pub const INTERFACE: Setting = word(
    ("interface", variable::INTERFACE),
    "NAME|IP",
    "Network interface to bind, by name or IP address",
    || Network::default().interface.to_string(),
    |_| Ok(()),
);
/// The ports to listen on.
pub const PORT_RANGE: Setting =
    word(("port_range", variable::PORT_RANGE), "A-B", "Ports to listen on", any, |_| Ok(()));
/// The RDMA device and port.
pub const RDMA_DEVICE: Setting = word(
    ("rdma_device", variable::RDMA_DEVICE),
    "NAME[:PORT]",
    "RDMA device and port; `any` is the first active port",
    any,
    |_| Ok(()),
);
/// How threads wait.
pub const POLL: Setting = word(
    ("poll", variable::POLL),
    "HOW",
    "How threads wait for the network: auto, spin or block",
    || PollChoice::default().to_string(),
    |text| text.parse::<PollChoice>().map(drop),
);
/// Silence after which a peer is lost.
pub const PEER_TIMEOUT: Setting = number(
    ("peer_timeout", variable::PEER_TIMEOUT),
    "SECONDS",
    "Seconds of silence after which a peer is lost",
    || Network::default().peer_timeout.as_secs().to_string(),
    Kind::Seconds,
);
/// Time in which a lost data connection is opened anew.
pub const RECONNECT_TIMEOUT: Setting = number(
    ("reconnect_timeout", variable::RECONNECT_TIMEOUT),
    "SECONDS",
    "Seconds in which a lost data connection is opened anew before its peer counts as lost",
    || Network::default().reconnect_timeout.as_secs().to_string(),
    Kind::Seconds,
);
/// Threads of a server.
pub const THREADS: Setting = number(
    ("threads", variable::THREADS),
    "N",
    "Threads of each server, each with a shard of its own",
    || "1".to_owned(),
    Kind::Count(1..=256),
);
/// Which CPUs the threads of a server run on.
pub const PIN: Setting = word(
    ("pin", variable::PIN),
    "auto|none|LIST",
    "CPUs that server threads are pinned to: auto (one each, where there are enough), none, or a list such as 0,2-5",
    || Pin::default().to_string(),
    |text| text.parse::<Pin>().map(drop),
);
/// [`ServerLimits::staging_bytes`].
pub const STAGING_BYTES: Setting = number(
    ("staging_bytes", variable::STAGING_BYTES),
    "BYTES",
    "Memory of each server thread for requests that wait, with K, M or G for powers of 1024",
    || ServerLimits::default().staging_bytes.to_string(),
    Kind::Bytes(1 << 16..=1 << 40),
);
/// [`ServerLimits::payload_bytes`].
pub const PAYLOAD_BYTES: Setting = number(
    ("payload_bytes", variable::PAYLOAD_BYTES),
    "BYTES",
    "Longest body of one request, which is the size of a slot",
    || ServerLimits::default().payload_bytes.to_string(),
    Kind::Bytes(ServerLimits::LEAST_PAYLOAD..=ServerLimits::MOST_PAYLOAD),
);
/// [`ServerLimits::table_bytes`].
pub const TABLE_BYTES: Setting = number(
    ("table_bytes", variable::TABLE_BYTES),
    "BYTES",
    "Memory of each server thread for dense tables",
    || ServerLimits::default().table_bytes.to_string(),
    Kind::Bytes(0..=1 << 62),
);
/// [`ServerLimits::spare_bytes`].
pub const SPARE_BYTES: Setting = number(
    ("spare_bytes", variable::SPARE_BYTES),
    "BYTES",
    "Memory of each dense table in each server thread for versions of segments that are still being sent; 0 copies every answer",
    || ServerLimits::default().spare_bytes.to_string(),
    Kind::Bytes(0..=1 << 40),
);
/// [`ServerLimits::slots`].
pub const SLOTS: Setting = number(
    ("slots", variable::SLOTS),
    "N",
    "Requests of one worker that may wait in one server thread, where its memory allows them",
    || ServerLimits::default().slots.to_string(),
    Kind::Count(1..=64),
);
/// [`ServerLimits::pull_credits`].
pub const PULL_CREDITS: Setting = number(
    ("pull_credits", variable::PULL_CREDITS),
    "N",
    "Pulls of one worker that may be outstanding at one server thread",
    || ServerLimits::default().pull_credits.to_string(),
    Kind::Count(1..=4096),
);
/// [`ServerLimits::reply_buffers`].
pub const REPLY_BUFFERS: Setting = number(
    ("reply_buffers", variable::REPLY_BUFFERS),
    "N",
    "Buffers of each server thread for answers",
    || ServerLimits::default().reply_buffers.to_string(),
    Kind::Count(1..=4096),
);
/// [`ServerLimits::stop_timeout`].
pub const STOP_TIMEOUT: Setting = number(
    ("stop_timeout", variable::STOP_TIMEOUT),
    "SECONDS",
    "Seconds in which a server that is told to stop (SIGTERM) answers what it has taken",
    || ServerLimits::default().stop_timeout.as_secs().to_string(),
    Kind::Seconds,
);

/// What every process of a job has.
pub const NETWORK: &[Setting] =
    &[TRANSPORT, INTERFACE, PORT_RANGE, RDMA_DEVICE, POLL, PEER_TIMEOUT, RECONNECT_TIMEOUT];

/// What only servers have.
pub const SERVER: &[Setting] = &[
    THREADS,
    PIN,
    STAGING_BYTES,
    PAYLOAD_BYTES,
    TABLE_BYTES,
    SPARE_BYTES,
    SLOTS,
    PULL_CREDITS,
    REPLY_BUFFERS,
    STOP_TIMEOUT,
];

/// All of them.
pub fn all() -> impl Iterator<Item = &'static Setting> {
    NETWORK.iter().chain(SERVER)
}

impl Setting {
    /// Its flag, without the dashes.
    pub fn flag(&self) -> String {
        self.key.replace('_', "-")
    }

    /// Whether `text` is a word or number that can stand there at all; whether it is within bounds, and exists on this
    /// machine, is asked when it is used.
    pub fn check_form(&self, text: &str) -> Result<()> {
        match &self.kind {
            Kind::Word(check) => check(text),
            Kind::Bytes(_) => parse_bytes(text).map(drop),
            Kind::Count(_) | Kind::Seconds => {
                text.parse::<u64>().map(drop).map_err(|_| Error::config(self.key, "a number", text))
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
            Kind::Bytes(bounds) => {
                let parsed = parse_bytes(text).ok().filter(|n| bounds.contains(n));
                parsed.ok_or_else(|| refuse(format!("{} to {} bytes", bounds.start(), bounds.end())))
            }
            Kind::Seconds => match text.parse() {
                Ok(0) => Err(refuse("at least 1".to_owned())),
                Ok(seconds) => Ok(seconds),
                Err(_) => Err(refuse("a number of seconds".to_owned())),
            },
        }
    }
}

/// Bounds of a server's memory and patience.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServerLimits {
    /// Slots for all workers together, of each server thread, in bytes. Untouched slots cost address space only.
    pub staging_bytes: usize,
    /// The largest body of one slot, in bytes.
    pub payload_bytes: usize,
    /// What tables of each server thread may take when they are made, in bytes: parameters, optimizer state and sums of dense
    /// tables. Rows of sparse tables come on top. A table that does not fit is refused.
    pub table_bytes: u64,
    /// What each dense table may take on each server thread, out of what is left of `table_bytes`, for versions of segments
    /// that are still being sent while newer ones are written. Answers beyond that are copied before they are sent.
    pub spare_bytes: u64,
    /// Slots of one worker, where `staging_bytes` allows them; at most 64.
    pub slots: usize,
    /// Pulls of one worker that may be outstanding.
    pub pull_credits: usize,
    /// Buffers for replies.
    pub reply_buffers: usize,
    /// How long a server that is told to stop may take to answer what it has taken.
    pub stop_timeout: Duration,
}

impl Default for ServerLimits {
    fn default() -> ServerLimits {
        ServerLimits {
            staging_bytes: 256 << 20,
            payload_bytes: 256 << 10,
            table_bytes: 64 << 30,
            spare_bytes: 16 << 20,
            slots: 16,
            pull_credits: 64,
            reply_buffers: 32,
            stop_timeout: Duration::from_secs(5),
        }
    }
}

impl ServerLimits {
    /// Room for one key of the widest row (16 384 fp32).
    pub const LEAST_PAYLOAD: u64 = 128 << 10;
    /// More than a worker's buffers hold is of no use.
    pub const MOST_PAYLOAD: u64 = 16 << 20;

    /// What `environment` says, and defaults for what it does not.
    pub fn from_environment(environment: &Environment) -> Result<ServerLimits> {
        let number = |setting: &Setting| environment.number(setting);
        Ok(ServerLimits {
            staging_bytes: number(&STAGING_BYTES)? as usize,
            payload_bytes: number(&PAYLOAD_BYTES)? as usize,
            table_bytes: number(&TABLE_BYTES)?,
            spare_bytes: number(&SPARE_BYTES)?,
            slots: number(&SLOTS)? as usize,
            pull_credits: number(&PULL_CREDITS)? as usize,
            reply_buffers: number(&REPLY_BUFFERS)? as usize,
            stop_timeout: environment.seconds(&STOP_TIMEOUT)?,
        })
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

    /// A setting that restricts something, or `None` when it is open.
    pub fn restriction(&self, setting: &Setting) -> Option<&str> {
        self.text(setting.variable).filter(|text| *text != ANY)
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
                _ => self.number(setting)?.to_string(),
            };
            lines += &format!("{} = {value}  # {}\n", setting.key, self.source_of(setting.variable));
        }
        Ok(lines)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_from_the_key_and_defaults_are_allowed() {
        for setting in all() {
            assert_eq!(setting.variable, format!("WINDLASS_{}", setting.key.to_uppercase()));
            setting.check_form(&(setting.default)()).unwrap();
        }
        let nothing = Environment::default();
        assert_eq!(ServerLimits::from_environment(&nothing).unwrap(), ServerLimits::default());
        nothing.effective(all()).unwrap();
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
        assert_eq!(refused(&given), "--stop-timeout: expected at least 1, found 0");
        let given = Environment::default().with(variable::STAGING_BYTES, Some("1K"));
        assert!(refused(&given).starts_with("--staging-bytes: expected 65536 to "), "{}", refused(&given));
    }
}
