//! The suite over loopback TCP, and what only TCP has: strangers at the listener, streams that break off, raw frames.

mod allocations;
mod deadlines;
mod frames;
mod raw;
mod strangers;

use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use windlass::transport::Transport;
use windlass::transport::tcp::{Lending, Tcp, TcpConfig};

use crate::rig::Fabric;

/// Transports on one loopback address.
pub struct Loopback(pub TcpConfig);

impl Default for Loopback {
    fn default() -> Loopback {
        // The checks for silent hosts come so rarely here that none can stand in for a wake-up that was lost.
        let lost_after = Duration::from_secs(3600);
        Loopback(TcpConfig { max_write: 16 << 20, lost_after, ..TcpConfig::default() })
    }
}

impl Loopback {
    /// The same over IPv6, where this machine has it.
    pub fn v6() -> Option<Loopback> {
        let Loopback(mut config) = Loopback::default();
        config.bind = IpAddr::V6(Ipv6Addr::LOCALHOST);
        match Tcp::new(config.clone()) {
            Ok(tcp) => {
                assert!(tcp.caps().detail.contains("[::1]"));
                Some(Loopback(config))
            }
            Err(error) => {
                println!("skipped: no IPv6 loopback here ({error})");
                None
            }
        }
    }
}

impl Loopback {
    /// With long bodies lent to the kernel, where this one can.
    pub fn lending() -> Option<Loopback> {
        let Loopback(mut config) = Loopback::default();
        config.lending = Lending::Always;
        match Tcp::new(config.clone()) {
            Ok(tcp) => {
                assert!(tcp.caps().detail.contains("zero-copy"));
                Some(Loopback(config))
            }
            Err(error) => {
                println!("skipped: no MSG_ZEROCOPY here ({error})");
                None
            }
        }
    }
}

impl Fabric for Loopback {
    fn transport(&self) -> Box<dyn Transport> {
        Box::new(Tcp::new(self.0.clone()).unwrap())
    }
}

#[test]
fn socket_options_are_set_or_refused_by_name() {
    let with = |change: &dyn Fn(&mut TcpConfig)| {
        let mut config = TcpConfig::default();
        change(&mut config);
        Tcp::new(config).map(|tcp| tcp.caps().detail.clone())
    };
    assert!(with(&|c| c.buffer = Some(65_536)).unwrap().contains("buffers of 65536 bytes"));
    let error = with(&|c| c.buffer = Some(u32::MAX >> 1)).unwrap_err().to_string();
    assert!(error.contains("tcp_buffer") && error.contains("wmem_max"), "{error}");
    // To raise it above the system's is a privilege.
    match with(&|c| c.busy_poll = 50) {
        Ok(detail) => assert!(detail.contains("busy polling for 50 µs"), "{detail}"),
        Err(error) => assert!(error.to_string().contains("tcp_busy_poll"), "{error}"),
    }
}
