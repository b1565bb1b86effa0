//! The network that a process's settings describe, on the machine that it runs on.

use std::time::Duration;

use super::interface;
use crate::config::{Environment, Network, PollChoice, Polling, parse_ports, variable};
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
    let seconds = |flag: &str, name, default| {
        environment.value(name, "a number of seconds")?.map_or(Ok(default), |given| match given {
            0 => Err(Error::config(flag, "at least 1", 0)),
            given => Ok(Duration::from_secs(given)),
        })
    };
    Ok(Network {
        transport: environment.value(variable::TRANSPORT, "tcp or verbs")?.unwrap_or(defaults.transport),
        interface,
        ports: environment.text(variable::PORT_RANGE).map(parse_ports).transpose()?,
        rdma_device: environment.text(variable::RDMA_DEVICE).map(str::to_owned),
        peer_timeout: seconds("--peer-timeout", variable::PEER_TIMEOUT, defaults.peer_timeout)?,
        reconnect_timeout: seconds(
            "--reconnect-timeout",
            variable::RECONNECT_TIMEOUT,
            defaults.reconnect_timeout,
        )?,
        polling: Polling::chosen(poll, pollers, allowed_cores()),
        advertise: None,
    })
}

/// The number of cores this process may run on: its affinity mask, which `taskset`, Slurm and containers narrow.
pub fn allowed_cores() -> usize {
    let counted = rustix::thread::sched_getaffinity(None).map(|mask| mask.count() as usize);
    match counted {
        Ok(cores) if cores > 0 => cores,
        // More than 1024 cores do not fit rustix's mask; the standard library allocates one that does.
        _ => std::thread::available_parallelism().map_or(1, usize::from),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cores_are_those_of_the_mask() {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let mask = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed:")).unwrap();
        let ones: u32 =
            mask.trim().split(',').map(|w| u32::from_str_radix(w, 16).unwrap().count_ones()).sum();
        assert_eq!(allowed_cores(), ones as usize);
    }

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
