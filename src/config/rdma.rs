//! How RDMA devices are used: the settings of the verbs transport, with their bounds. docs/rdma.md names what NCCL and UCX call them.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use super::Environment;
use super::settings::{self, ANY};
use crate::error::{Error, Result};

/// What the verbs transport is to use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rdma {
    /// Which devices and ports may be used. Of a list each that is up is a rail; of `any` the first that is up is the only one.
    pub device: Devices,
    /// Index in the port's GID table; without one, RoCE v2 over IPv4 is preferred, then v2 over IPv6, then v1.
    pub gid_index: Option<u8>,
    /// InfiniBand service level, or Ethernet priority.
    pub service_level: u8,
    /// IP traffic class (DSCP and ECN bits) of RoCE v2 packets.
    pub traffic_class: u8,
    /// Index in the port's table of partition keys.
    pub pkey_index: u16,
    /// The longest payload of a packet in bytes; without one the port's. The smaller of the two ends holds.
    pub mtu: Option<Mtu>,
    /// Local ACK timeout: 4.096 µs × 2^timeout. Without one 14, which is 67 ms, or 18 (1.07 s) on soft-RoCE, where the CPU
    /// acknowledges and may be busy.
    pub timeout: Option<u8>,
    /// Times that a packet without ACK is sent again. (7 would mean the same on cards, but for ever on soft-RoCE.)
    pub retries: u8,
    /// Operations that one endpoint may have under way; rounded up to a power of two, at least 64.
    pub queue_depth: u32,
    /// Receive buffers of 256 bytes that each endpoint keeps posted: one for each message or numbered write that its peer may have under way.
    /// No setting: it follows from what the peer is granted.
    pub receives: u32,
    /// The longest write or message in bytes that travels inside its work request; less where the device takes less.
    pub inline: u32,
    /// Whether writes of the device to memory may overtake each other on PCIe, where the device can.
    pub relaxed_ordering: Switch,
}

impl Default for Rdma {
    fn default() -> Rdma {
        Rdma {
            device: Devices::default(),
            gid_index: None,
            service_level: 0,
            traffic_class: 0,
            pkey_index: 0,
            mtu: None,
            timeout: None,
            retries: 6,
            queue_depth: 256,
            receives: 512,
            inline: 64,
            relaxed_ordering: Switch::Off,
        }
    }
}

impl Rdma {
    /// Bounds of `gid_index`.
    pub const GID_INDEX: RangeInclusive<u64> = 0..=255;
    /// Bounds of `service_level`.
    pub const SERVICE_LEVEL: RangeInclusive<u64> = 0..=15;
    /// Bounds of `traffic_class`.
    pub const TRAFFIC_CLASS: RangeInclusive<u64> = 0..=255;
    /// Bounds of `pkey_index`; the port's table is usually shorter.
    pub const PKEY_INDEX: RangeInclusive<u64> = 0..=65_535;
    /// Bounds of `timeout`.
    pub const TIMEOUT: RangeInclusive<u64> = 1..=31;
    /// Bounds of `retries`.
    pub const RETRIES: RangeInclusive<u64> = 0..=6;
    /// Bounds of `queue_depth`.
    pub const QUEUE_DEPTH: RangeInclusive<u64> = 1..=1 << 15;
    /// Bounds of `inline`.
    pub const INLINE: RangeInclusive<u64> = 0..=1024;

    /// What `environment` says, and defaults for what it does not.
    pub fn from_environment(environment: &Environment) -> Result<Rdma> {
        let number = |setting| environment.number(setting);
        let choice = |setting| environment.choice(setting);
        // The table's bounds make each fit.
        Ok(Rdma {
            device: environment.parsed(&settings::RDMA_DEVICE)?,
            gid_index: choice(&settings::RDMA_GID_INDEX)?.map(|n| n as u8),
            service_level: number(&settings::RDMA_SERVICE_LEVEL)? as u8,
            traffic_class: number(&settings::RDMA_TRAFFIC_CLASS)? as u8,
            pkey_index: number(&settings::RDMA_PKEY_INDEX)? as u16,
            mtu: environment.restriction_to(&settings::RDMA_MTU, settings::AUTO)?,
            timeout: choice(&settings::RDMA_TIMEOUT)?.map(|n| n as u8),
            retries: number(&settings::RDMA_RETRIES)? as u8,
            queue_depth: number(&settings::RDMA_QUEUE_DEPTH)? as u32,
            receives: Rdma::default().receives,
            inline: number(&settings::RDMA_INLINE)? as u32,
            relaxed_ordering: environment.parsed(&settings::RDMA_RELAXED_ORDERING)?,
        })
    }

    /// Refuses what is out of bounds, for values that did not come from settings.
    pub fn check(&self) -> Result<()> {
        let within = |setting: &settings::Setting, value: u64, bounds: RangeInclusive<u64>| {
            if bounds.contains(&value) {
                return Ok(());
            }
            Err(Error::config(setting.key(), format!("{} to {}", bounds.start(), bounds.end()), value))
        };
        within(&settings::RDMA_SERVICE_LEVEL, self.service_level.into(), Rdma::SERVICE_LEVEL)?;
        within(&settings::RDMA_TIMEOUT, self.timeout.unwrap_or(1).into(), Rdma::TIMEOUT)?;
        within(&settings::RDMA_RETRIES, self.retries.into(), Rdma::RETRIES)?;
        within(&settings::RDMA_QUEUE_DEPTH, self.queue_depth.into(), Rdma::QUEUE_DEPTH)?;
        within(&settings::RDMA_INLINE, self.inline.into(), Rdma::INLINE)
    }
}

/// Payload of a packet in bytes: a power of two from 256 to 4096.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mtu(u16);

impl Mtu {
    /// The values, for messages.
    pub const EXPECTED: &str = "256, 512, 1024, 2048, 4096 or auto";

    /// In bytes.
    pub fn bytes(self) -> u16 {
        self.0
    }
}

impl FromStr for Mtu {
    type Err = Error;

    fn from_str(text: &str) -> Result<Mtu> {
        let bytes = text.parse().ok().filter(|n| [256, 512, 1024, 2048, 4096].contains(n));
        bytes.map(Mtu).ok_or_else(|| Error::config("rdma_mtu", Mtu::EXPECTED, text))
    }
}

/// On or off.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Switch {
    /// Yes.
    On,
    /// No.
    #[default]
    Off,
}

impl fmt::Display for Switch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Switch::On => "on",
            Switch::Off => "off",
        })
    }
}

impl FromStr for Switch {
    type Err = Error;

    fn from_str(text: &str) -> Result<Switch> {
        match text {
            "on" => Ok(Switch::On),
            "off" => Ok(Switch::Off),
            _ => Err(Error::config("switch", "on or off", text)),
        }
    }
}

/// Which devices and ports may be used: `any`, or names, each with a port or without, as in `mlx5_0:1,mlx5_2`. A name stands for all
/// devices that begin with it, after `=` for that one alone; after `^` the list names what may not be used.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Devices {
    excluded: bool,
    exact: bool,
    /// Empty for any.
    named: Vec<(String, Option<u8>)>,
}

impl Devices {
    /// The form, for messages.
    pub const EXPECTED: &str = "any, or [^][=]NAME[:PORT],… with ports from 1 to 255";

    /// `port` of `device` and nothing else.
    pub fn only(device: &str, port: u8) -> Devices {
        Devices { excluded: false, exact: true, named: vec![(device.to_owned(), Some(port))] }
    }

    /// Whether `port` of `device` may be used.
    pub fn allow(&self, device: &str, port: u8) -> bool {
        let named = |entry: &(String, Option<u8>)| self.fits(entry, device, port);
        self.named.is_empty() || self.named.iter().any(named) != self.excluded
    }

    /// Those of `all` that may be used: in the order of the list, where that names what to use; else, and among those that one entry
    /// stands for, in the order of `all`.
    pub fn select<T>(&self, mut all: Vec<T>, port_of: impl Fn(&T) -> (&str, u8)) -> Vec<T> {
        all.retain(|one| {
            let (device, port) = port_of(one);
            self.allow(device, port)
        });
        if !self.excluded {
            // Stable: what is equal stays in order.
            all.sort_by_key(|one| {
                let (device, port) = port_of(one);
                self.named.iter().position(|entry| self.fits(entry, device, port))
            });
        }
        all
    }

    fn fits(&self, (name, number): &(String, Option<u8>), device: &str, port: u8) -> bool {
        let named = if self.exact { device == name } else { device.starts_with(name.as_str()) };
        named && number.is_none_or(|number| number == port)
    }

    /// Whether nothing is ruled out.
    pub fn is_any(&self) -> bool {
        self.named.is_empty()
    }
}

impl FromStr for Devices {
    type Err = Error;

    fn from_str(text: &str) -> Result<Devices> {
        if text == ANY {
            return Ok(Devices::default());
        }
        let refuse = || Error::config("rdma_device", Devices::EXPECTED, text);
        let (excluded, rest) = text.strip_prefix('^').map_or((false, text), |rest| (true, rest));
        let (exact, rest) = rest.strip_prefix('=').map_or((false, rest), |rest| (true, rest));
        let one = |part: &str| {
            let (name, port) = match part.split_once(':') {
                Some((name, port)) => (name, Some(port.parse().ok().filter(|&p| p > 0).ok_or_else(refuse)?)),
                None => (part, None),
            };
            let plain = !name.is_empty() && !name.contains(['^', '=', ' ']);
            if plain { Ok((name.to_owned(), port)) } else { Err(refuse()) }
        };
        Ok(Devices { excluded, exact, named: rest.split(',').map(one).collect::<Result<_>>()? })
    }
}

impl fmt::Display for Devices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_any() {
            return f.write_str(ANY);
        }
        let parts = self.named.iter().map(|(name, port)| match port {
            Some(port) => format!("{name}:{port}"),
            None => name.clone(),
        });
        let parts: Vec<String> = parts.collect();
        let (excluded, exact) = (if self.excluded { "^" } else { "" }, if self.exact { "=" } else { "" });
        write!(f, "{excluded}{exact}{}", parts.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_by_name_prefix_and_port_chosen_or_ruled_out() {
        let allowed = |text: &str| -> Vec<String> {
            let devices: Devices = text.parse().unwrap();
            assert_eq!(devices.to_string(), text);
            let all = [("mlx5_1", 1), ("mlx5_1", 2), ("mlx5_10", 1), ("rxe0", 1)];
            all.iter().filter(|(d, p)| devices.allow(d, *p)).map(|(d, p)| format!("{d}:{p}")).collect()
        };
        assert_eq!(allowed("any").len(), 4);
        assert_eq!(allowed("mlx5"), ["mlx5_1:1", "mlx5_1:2", "mlx5_10:1"]);
        assert_eq!(allowed("mlx5_1"), ["mlx5_1:1", "mlx5_1:2", "mlx5_10:1"]);
        assert_eq!(allowed("=mlx5_1"), ["mlx5_1:1", "mlx5_1:2"]);
        assert_eq!(allowed("=mlx5_1:2,rxe0"), ["mlx5_1:2", "rxe0:1"]);
        assert_eq!(allowed("^mlx5_1"), ["rxe0:1"]);
        assert_eq!(allowed("^=mlx5_1:1"), ["mlx5_1:2", "mlx5_10:1", "rxe0:1"]);
        assert!(allowed("none0").is_empty());
        for wrong in
            ["", ":1", "mlx5_0:", "mlx5_0:0", "mlx5_0:256", "mlx5_0:x", "^", "=", "=^a", "a,,b", "a,=b"]
        {
            let error = wrong.parse::<Devices>().unwrap_err().to_string();
            assert!(error.contains(Devices::EXPECTED), "{wrong}: {error}");
        }
    }

    #[test]
    fn rails_come_in_the_order_of_the_list() {
        let all = [("mlx5_0", 1), ("mlx5_0", 2), ("mlx5_1", 1), ("mlx5_10", 1), ("rxe0", 1)];
        let selected = |text: &str| -> Vec<String> {
            let devices: Devices = text.parse().unwrap();
            let selected = devices.select(all.to_vec(), |&(device, port)| (device, port));
            selected.into_iter().map(|(device, port)| format!("{device}:{port}")).collect()
        };
        assert_eq!(selected("=rxe0,mlx5_0:2"), ["rxe0:1", "mlx5_0:2"]);
        assert_eq!(selected("mlx5_1,mlx5_0"), ["mlx5_1:1", "mlx5_10:1", "mlx5_0:1", "mlx5_0:2"]);
        assert_eq!(selected("=mlx5_0:2,mlx5_1,mlx5_0:1"), ["mlx5_0:2", "mlx5_1:1", "mlx5_0:1"]);
        assert_eq!(selected("mlx5_0,mlx5"), ["mlx5_0:1", "mlx5_0:2", "mlx5_1:1", "mlx5_10:1"]);
        assert_eq!(selected("^rxe0,mlx5_0:2"), ["mlx5_0:1", "mlx5_1:1", "mlx5_10:1"]);
        assert_eq!(selected("any").len(), 5);
        assert!(selected("none0").is_empty());
        let only = Devices::only("mlx5_1", 1);
        assert_eq!(only.to_string(), "=mlx5_1:1");
        assert_eq!(only.select(all.to_vec(), |&(device, port)| (device, port)), [("mlx5_1", 1)]);
    }

    #[test]
    fn defaults_are_those_of_the_table_and_bad_values_name_the_allowed_ones() {
        assert_eq!(Rdma::from_environment(&Environment::default()).unwrap(), Rdma::default());
        Rdma::default().check().unwrap();
        for (setting, wrong, allowed) in [
            (&settings::RDMA_DEVICE, "a:0", "ports from 1 to 255"),
            (&settings::RDMA_GID_INDEX, "256", "0 to 255 or auto"),
            (&settings::RDMA_SERVICE_LEVEL, "16", "0 to 15"),
            (&settings::RDMA_TRAFFIC_CLASS, "256", "0 to 255"),
            (&settings::RDMA_PKEY_INDEX, "65536", "0 to 65535"),
            (&settings::RDMA_MTU, "1500", "256, 512, 1024, 2048, 4096 or auto"),
            (&settings::RDMA_TIMEOUT, "0", "1 to 31 or auto"),
            (&settings::RDMA_RETRIES, "7", "0 to 6"),
            (&settings::RDMA_QUEUE_DEPTH, "0", "1 to 32768"),
            (&settings::RDMA_INLINE, "2000", "0 to 1024"),
            (&settings::RDMA_RELAXED_ORDERING, "maybe", "on or off"),
        ] {
            let given = Environment::default().with(setting.variable, Some(wrong));
            let error = Rdma::from_environment(&given).unwrap_err().to_string();
            let flag = format!("--{}: ", setting.flag());
            assert!(error.starts_with(&flag) && error.contains(allowed) && error.ends_with(wrong), "{error}");
        }
    }

    #[test]
    fn every_setting_arrives() {
        let given = Environment::default()
            .with(settings::RDMA_DEVICE.variable, Some("=rxe0:1"))
            .with(settings::RDMA_GID_INDEX.variable, Some(3))
            .with(settings::RDMA_SERVICE_LEVEL.variable, Some(4))
            .with(settings::RDMA_TRAFFIC_CLASS.variable, Some(106))
            .with(settings::RDMA_PKEY_INDEX.variable, Some(5))
            .with(settings::RDMA_MTU.variable, Some(1024))
            .with(settings::RDMA_TIMEOUT.variable, Some(20))
            .with(settings::RDMA_RETRIES.variable, Some(2))
            .with(settings::RDMA_QUEUE_DEPTH.variable, Some(64))
            .with(settings::RDMA_INLINE.variable, Some(0))
            .with(settings::RDMA_RELAXED_ORDERING.variable, Some("on"));
        let expected = Rdma {
            device: "=rxe0:1".parse().unwrap(),
            gid_index: Some(3),
            service_level: 4,
            traffic_class: 106,
            pkey_index: 5,
            mtu: Some(Mtu(1024)),
            timeout: Some(20),
            retries: 2,
            queue_depth: 64,
            receives: 512,
            inline: 0,
            relaxed_ordering: Switch::On,
        };
        assert_eq!(Rdma::from_environment(&given).unwrap(), expected);
    }

    #[test]
    fn values_from_elsewhere_are_checked_too() {
        for (name, rdma) in [
            ("rdma_retries", Rdma { retries: 7, ..Rdma::default() }),
            ("rdma_timeout", Rdma { timeout: Some(0), ..Rdma::default() }),
            ("rdma_queue_depth", Rdma { queue_depth: 0, ..Rdma::default() }),
            ("rdma_service_level", Rdma { service_level: 16, ..Rdma::default() }),
            ("rdma_inline", Rdma { inline: 1025, ..Rdma::default() }),
        ] {
            assert!(rdma.check().unwrap_err().to_string().starts_with(name), "{name}");
        }
    }
}
