//! The suite over RDMA verbs, where there is a device: `scripts/rdma-vm.sh target/debug/deps/conformance-… on_verbs`.

use windlass::config::Rdma;
use windlass::transport::Transport;
use windlass::transport::verbs::{Verbs, VerbsConfig, available};

use crate::rig::Fabric;

/// Two transports on the first device.
pub struct Loopback;

impl Loopback {
    /// `None`, and a line that says so, without a device.
    pub fn find() -> Option<Loopback> {
        let found = available().unwrap().iter().any(|d| d.active);
        if !found {
            println!("skipped: no RDMA device");
        }
        found.then_some(Loopback)
    }
}

impl Fabric for Loopback {
    fn transport(&self) -> Box<dyn Transport> {
        // soft-RoCE has completion queues of 32 767 entries.
        let config = VerbsConfig {
            rdma: Rdma { queue_depth: 128, receives: 256, ..Rdma::default() },
            endpoints: 80,
            ..VerbsConfig::default()
        };
        Box::new(Verbs::new(&config).unwrap())
    }

    /// The device does, packet by packet, on a CPU of its own.
    fn tears(&self) -> bool {
        true
    }
}
