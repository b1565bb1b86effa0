//! The network that a process's settings describe, on the machine that it runs on.

use super::{cpus, interface};
use crate::config::{
    Environment, LinkLimits, Network, PollChoice, Polling, Rdma, Sockets, parse_ports, settings, variable,
};
use crate::error::{Error, Result};

/// What the `WINDLASS_*` variables say, and defaults for what they don't. Without a word from the launcher this process is
/// taken to have the machine for itself and its `own_pollers` threads.
pub fn from_environment(environment: &Environment, own_pollers: usize) -> Result<Network> {
    let defaults = Network::default();
    let interface = match environment.text(variable::INTERFACE) {
        Some(name) => interface::resolve(name)?,
        None => defaults.interface,
    };
    if interface.is_unspecified() {
        // The address is also what others dial.
        return Err(Error::config("--interface", "one interface's name or address", interface));
    }
    let poll: PollChoice = environment.value(variable::POLL, "auto, spin or block")?.unwrap_or_default();
    let pollers = environment.value(variable::POLLERS, "a number")?.unwrap_or(own_pollers);
    Ok(Network {
        transport: environment.parsed(&settings::TRANSPORT)?,
        interface,
        ports: environment.restriction(&settings::PORT_RANGE).map(parse_ports).transpose()?,
        rdma: Rdma::from_environment(environment)?,
        sockets: Sockets::from_environment(environment)?,
        peer_timeout: environment.seconds(&settings::PEER_TIMEOUT)?,
        reconnect_timeout: environment.seconds(&settings::RECONNECT_TIMEOUT)?,
        polling: Polling::chosen(poll, pollers, cpus::allowed_count()),
        advertise: None,
        limits: LinkLimits::from_environment(environment)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn what_is_set_is_used_and_what_is_wrong_is_named() {
        let set =
            |pairs: &[(&str, &str)]| from_environment(&Environment::from_pairs(pairs.iter().copied()), 1);
        let network = set(&[(variable::INTERFACE, "lo"), (variable::PEER_TIMEOUT, "3")]).unwrap();
        assert!(network.interface.is_loopback());
        assert_eq!(network.peer_timeout, Duration::from_secs(3));
        for (name, value) in [
            (variable::INTERFACE, "0.0.0.0"),
            (variable::PEER_TIMEOUT, "0"),
            (variable::RECONNECT_TIMEOUT, "soon"),
            (variable::TRANSPORT, "pigeon"),
            (variable::PORT_RANGE, "9-8"),
        ] {
            assert!(matches!(set(&[(name, value)]), Err(Error::Config { .. })), "{name}");
        }
    }
}
