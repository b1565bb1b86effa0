//! Options that every process of a job has, from flags and, where a flag is missing, from the launcher's variables.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use crate::client::ClientConfig;
use crate::config::{Environment, Network, PollChoice, Polling, TransportKind, parse_ports, variable};
use crate::error::{Error, Result};
use crate::launch::allowed_cores;
use crate::proto::secret::Secret;
use crate::transport::interface;

/// Where the job is, and which network to use.
#[derive(Debug, Clone, Default, Args)]
pub struct NodeOptions {
    /// Address of the job's coordinator [WINDLASS_COORDINATOR]
    #[arg(long, value_name = "HOST:PORT")]
    pub coordinator: Option<String>,
    /// File with the job's secret: 64 hexadecimal digits, mode 0600 [else WINDLASS_SECRET]
    #[arg(long, value_name = "FILE")]
    pub secret_file: Option<PathBuf>,
    #[command(flatten)]
    pub network: NetworkOptions,
}

/// Which network to use.
#[derive(Debug, Clone, Default, Args)]
pub struct NetworkOptions {
    /// What carries the data: tcp or verbs [WINDLASS_TRANSPORT; default: tcp]
    #[arg(long, value_name = "KIND")]
    pub transport: Option<TransportKind>,
    /// Network interface to bind, by name or IP address [WINDLASS_INTERFACE; default: 127.0.0.1]
    #[arg(long, value_name = "NAME|IP")]
    pub interface: Option<String>,
    /// Ports to listen on [WINDLASS_PORT_RANGE; default: any]
    #[arg(long, value_name = "A-B")]
    pub port_range: Option<String>,
    /// RDMA device and port [WINDLASS_RDMA_DEVICE; default: the first active port]
    #[arg(long, value_name = "NAME[:PORT]")]
    pub rdma_device: Option<String>,
    /// How threads wait for the network: auto, spin or block [WINDLASS_POLL; default: auto]
    #[arg(long, value_name = "HOW")]
    pub poll: Option<PollChoice>,
    /// Seconds of silence after which a peer is lost
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    pub peer_timeout: u64,
    /// Seconds in which a lost data connection is opened anew before its peer counts as lost
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    pub reconnect_timeout: u64,
}

impl NodeOptions {
    /// The coordinator's address.
    pub fn coordinator(&self, environment: &Environment) -> Result<String> {
        let given =
            self.coordinator.clone().or_else(|| environment.text(variable::COORDINATOR).map(str::to_owned));
        given.ok_or_else(|| Error::config("--coordinator", "HOST:PORT", "nothing"))
    }

    /// How to join the job as a worker; rank and number of workers from the launcher where they are not given.
    pub fn client(
        &self,
        environment: &Environment,
        rank: Option<u32>,
        workers: Option<u32>,
    ) -> Result<ClientConfig> {
        let known = |given: Option<u32>, name, flag: &str, what: &str| match given {
            Some(number) => Ok(number),
            None => environment
                .value(name, "a number")?
                .ok_or_else(|| Error::config(flag, what.to_owned(), "nothing")),
        };
        let rank = known(rank, variable::RANK, "--rank", "this worker's rank")?;
        let workers = known(workers, variable::WORKERS, "--workers", "the number of workers")?;
        let mut config =
            ClientConfig::new(&self.coordinator(environment)?, self.secret(environment)?, rank, workers);
        config.job = environment.text(variable::JOB).unwrap_or_default().to_owned();
        config.network = self.network.network(environment, 1)?;
        Ok(config)
    }

    /// The job's secret.
    pub fn secret(&self, environment: &Environment) -> Result<Secret> {
        match (&self.secret_file, environment.text(variable::SECRET)) {
            (Some(file), _) => Secret::from_file(file),
            (None, Some(text)) => Secret::from_hex(text),
            (None, None) => Err(Error::config("--secret-file", "a file with the job's secret", "nothing")),
        }
    }
}

impl NetworkOptions {
    /// The network to use; `own_pollers` threads of this process will wait for it.
    pub fn network(&self, environment: &Environment, own_pollers: usize) -> Result<Network> {
        let text =
            |flag: &Option<String>, name| flag.clone().or_else(|| environment.text(name).map(str::to_owned));
        let defaults = Network::default();
        let transport = match self.transport {
            Some(kind) => Some(kind),
            None => environment.value(variable::TRANSPORT, "tcp or verbs")?,
        };
        let interface = match text(&self.interface, variable::INTERFACE) {
            Some(name) => interface::resolve(&name)?,
            None => defaults.interface,
        };
        let poll = match self.poll {
            Some(choice) => Some(choice),
            None => environment.value(variable::POLL, "auto, spin or block")?,
        };
        if interface.is_unspecified() {
            // The address is also what others dial.
            return Err(Error::config("--interface", "one interface's name or address", interface));
        }
        let ports = text(&self.port_range, variable::PORT_RANGE).map(|t| parse_ports(&t)).transpose()?;
        if self.peer_timeout == 0 {
            return Err(Error::config("--peer-timeout", "at least 1", 0));
        }
        let pollers = environment.value(variable::POLLERS, "a number")?.unwrap_or(own_pollers);
        Ok(Network {
            transport: transport.unwrap_or(defaults.transport),
            interface,
            ports,
            rdma_device: text(&self.rdma_device, variable::RDMA_DEVICE),
            peer_timeout: Duration::from_secs(self.peer_timeout),
            reconnect_timeout: Duration::from_secs(self.reconnect_timeout),
            advertise: None,
            polling: Polling::chosen(poll.unwrap_or_default(), pollers, allowed_cores()),
        })
    }
}
