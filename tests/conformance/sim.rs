//! The suite over the simulated network, and what only a simulation can show: faults at a chosen moment.

use windlass::transport::Transport;
use windlass::transport::sim::{SimNetwork, SimOptions};

use crate::rig::Fabric;

/// Transports of one network.
pub struct Loopback(pub SimNetwork);

impl Default for Loopback {
    fn default() -> Loopback {
        Loopback(SimNetwork::new(1, SimOptions::default()))
    }
}

impl Fabric for Loopback {
    fn transport(&self) -> Box<dyn Transport> {
        Box::new(self.0.transport("end").unwrap())
    }
}
