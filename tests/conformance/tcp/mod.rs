//! The suite over loopback TCP, and what only TCP has: strangers at the listener, streams that break off, raw frames.

mod allocations;
mod deadlines;
mod frames;
mod raw;
mod strangers;

use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use windlass::transport::Transport;
use windlass::transport::tcp::{Tcp, TcpConfig};

use crate::rig::{Fabric, Net};

/// Transports on one loopback address.
pub struct Loopback(pub TcpConfig);

impl Default for Loopback {
    fn default() -> Loopback {
        // The checks for silent hosts come so rarely here that none can stand in for a wake-up that was lost.
        let lost_after = Duration::from_secs(3600);
        Loopback(TcpConfig { max_write: 16 << 20, lost_after, ..TcpConfig::default() })
    }
}

impl Fabric for Loopback {
    fn transport(&self) -> Box<dyn Transport> {
        Box::new(Tcp::new(self.0.clone()).unwrap())
    }
}

#[test]
fn works_over_ipv6() {
    let config = TcpConfig::new(IpAddr::V6(Ipv6Addr::LOCALHOST), true);
    if let Err(error) = Tcp::new(config.clone()) {
        println!("skipped: no IPv6 loopback here ({error})");
        return;
    }
    let mut net = Net::new(&Loopback(config), 2);
    assert!(net.ends[0].transport.caps().detail.contains("[::1]"));
    let (a, b) = net.join(0, 1);
    net.ping((0, a), (1, b));
}
