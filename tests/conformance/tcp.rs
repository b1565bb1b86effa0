//! The suite over loopback TCP.

use windlass::transport::Transport;
use windlass::transport::tcp::{Tcp, TcpConfig};

use crate::rig::Fabric;

/// Two transports on 127.0.0.1.
pub struct Loopback;

impl Fabric for Loopback {
    fn transport(&self) -> Box<dyn Transport> {
        let config = TcpConfig { max_write: 16 << 20, ..TcpConfig::default() };
        Box::new(Tcp::new(config).unwrap())
    }
}
