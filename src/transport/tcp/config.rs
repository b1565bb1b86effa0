//! What a [`Tcp`](super::Tcp) is told: where to listen, and its limits.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::time::Duration;

use crate::config::Network;
use crate::config::rdma::Switch;
use crate::error::{Error, Result};

/// Times that make sense; the kernel takes no keepalive above 32767 s.
const SHORTEST: Duration = Duration::from_millis(1);
const LONGEST: Duration = Duration::from_secs(12 * 3600);

/// To whom the kernel may send long bodies from where they lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lending {
    /// To nobody: it copies them.
    Never,
    /// To peers on other hosts, until it says of a connection that it copied after all.
    ToOthers,
    /// To all, whatever it says: over loopback it always copies. For tests.
    Always,
}

/// Settings of one TCP transport.
#[derive(Debug, Clone)]
pub struct TcpConfig {
    /// The address to listen on. Peers dial it, so it names one interface.
    pub bind: IpAddr,
    /// The ports to choose from; any free one without them.
    pub ports: Option<RangeInclusive<u16>>,
    /// What `open` hands out in place of the listener's own address.
    pub advertise: Option<SocketAddr>,
    /// Whether endpoints may be opened passive. A transport that only dials needs no listener.
    pub listen: bool,
    /// Operations that one endpoint may have queued.
    pub queue_depth: usize,
    /// Longest header + body of one write, or length of one read, in bytes; at most `u32::MAX`.
    pub max_write: usize,
    /// Connections that may wait for authentication; one more and the oldest that has had a moment is closed.
    pub max_pending: usize,
    /// How long an accepted connection may take to authenticate itself.
    pub preamble_timeout: Duration,
    /// How long `connect` may take until `Connected`, on either side.
    pub connect_timeout: Duration,
    /// How long a peer's host may leave us without an answer before it counts as lost.
    pub lost_after: Duration,
    /// To whom long bodies are sent from where they lie.
    pub lending: Lending,
    /// Microseconds of SO_BUSY_POLL; 0 for none.
    pub busy_poll: u32,
    /// Bytes of SO_SNDBUF and SO_RCVBUF.
    pub buffer: Option<u32>,
}

impl TcpConfig {
    /// The defaults: 256 operations, 256 MiB per write, 256 pending connections, 5 s to authenticate, 10 s to connect, 10 s
    /// of silence; bodies are copied, buffers the kernel's.
    pub fn new(bind: IpAddr, listen: bool) -> TcpConfig {
        TcpConfig {
            bind,
            ports: None,
            advertise: None,
            listen,
            queue_depth: 256,
            max_write: 256 << 20,
            max_pending: 256,
            preamble_timeout: Duration::from_secs(5),
            connect_timeout: Duration::from_secs(10),
            lost_after: Duration::from_secs(10),
            lending: Lending::Never,
            busy_poll: 0,
            buffer: None,
        }
    }

    /// The defaults where `network` says nothing.
    pub fn of(network: &Network, listen: bool) -> TcpConfig {
        TcpConfig {
            ports: network.ports.clone(),
            advertise: network.advertise,
            lost_after: network.peer_timeout,
            queue_depth: network.limits.queue_depth,
            max_pending: network.limits.strangers,
            preamble_timeout: network.limits.handshake_timeout,
            connect_timeout: network.limits.dial_timeout,
            lending: match network.sockets.zerocopy {
                Switch::On => Lending::ToOthers,
                Switch::Off => Lending::Never,
            },
            busy_poll: network.sockets.busy_poll,
            buffer: network.sockets.buffer,
            ..TcpConfig::new(network.interface, listen)
        }
    }

    pub(super) fn check(&self) -> Result<()> {
        let wrong = |setting: &str, expected: &str, found: &dyn std::fmt::Display| {
            Err(Error::config(format!("tcp.{setting}"), expected, found))
        };
        if self.listen && self.bind.is_unspecified() {
            return wrong("bind", "an address of one interface, which peers can dial", &self.bind);
        }
        if self.queue_depth == 0 {
            return wrong("queue_depth", "at least 1", &self.queue_depth);
        }
        if self.max_write == 0 || u32::try_from(self.max_write).is_err() {
            return wrong("max_write", "1 to 4294967295", &self.max_write);
        }
        if self.listen && self.max_pending == 0 {
            return wrong("max_pending", "at least 1", &self.max_pending);
        }
        let times = [
            ("preamble_timeout", self.preamble_timeout),
            ("connect_timeout", self.connect_timeout),
            ("lost_after", self.lost_after),
        ];
        for (setting, time) in times {
            if !(SHORTEST..=LONGEST).contains(&time) {
                return wrong(setting, "1 ms to 12 h", &format!("{time:?}"));
            }
        }
        Ok(())
    }
}

impl Default for TcpConfig {
    /// Listens on 127.0.0.1.
    fn default() -> TcpConfig {
        TcpConfig::new(Ipv4Addr::LOCALHOST.into(), true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_that_cannot_work_are_named() {
        let refused = |change: &dyn Fn(&mut TcpConfig)| {
            let mut config = TcpConfig::default();
            config.check().unwrap();
            change(&mut config);
            config.check().unwrap_err().to_string()
        };
        assert!(refused(&|c| c.bind = Ipv4Addr::UNSPECIFIED.into()).starts_with("tcp.bind"));
        assert!(refused(&|c| c.queue_depth = 0).starts_with("tcp.queue_depth"));
        assert!(refused(&|c| c.max_write = 1 << 32).starts_with("tcp.max_write"));
        assert!(refused(&|c| c.max_pending = 0).starts_with("tcp.max_pending"));
        assert!(refused(&|c| c.preamble_timeout = Duration::ZERO).starts_with("tcp.preamble_timeout"));
        assert!(refused(&|c| c.connect_timeout = Duration::MAX).starts_with("tcp.connect_timeout"));
        assert!(refused(&|c| c.lost_after = Duration::MAX).starts_with("tcp.lost_after"));
    }
}
