//! Options that every process of a job has, from flags and, where a flag is missing, from the launcher's variables.

use std::path::PathBuf;

use clap::Args;

use super::settings::{Flags, OfLink, OfNetwork, OfRdma};
use crate::client::ClientConfig;
use crate::config::{Environment, Network, variable};
use crate::error::{Error, Result};
use crate::proto::secret::Secret;
use crate::transport::network;

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
    #[command(flatten)]
    flags: Flags<OfNetwork>,
    #[command(flatten)]
    rdma: Flags<OfRdma>,
    #[command(flatten)]
    link: Flags<OfLink>,
    /// File with settings, as `--print-config` of `windlass server` writes it; flags and variables outdo it
    /// [WINDLASS_CONFIG]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl NodeOptions {
    /// The coordinator's address.
    pub fn coordinator(&self, environment: &Environment) -> Result<String> {
        let given =
            self.coordinator.clone().or_else(|| environment.text(variable::COORDINATOR).map(str::to_owned));
        given.ok_or_else(|| Error::config("--coordinator", "HOST:PORT", "nothing"))
    }

    /// How to join the job as a worker with all these settings; rank and number of workers from the launcher where they are not given.
    pub fn client(
        &self,
        settings: &Environment,
        rank: Option<u32>,
        workers: Option<u32>,
    ) -> Result<ClientConfig> {
        let known = |given: Option<u32>, name, flag: &str, what: &str| match given {
            Some(number) => Ok(number),
            None => settings
                .value(name, "a number")?
                .ok_or_else(|| Error::config(flag, what.to_owned(), "nothing")),
        };
        let rank = known(rank, variable::RANK, "--rank", "this worker's rank")?;
        let workers = known(workers, variable::WORKERS, "--workers", "the number of workers")?;
        ClientConfig::new(&self.coordinator(settings)?, self.secret(settings)?, rank, workers)
            .configured(settings)
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
        network::from_environment(&self.over(environment)?, own_pollers)
    }

    /// All settings: the environment with what the flags say in its place, and what the configuration file says below both.
    pub fn over(&self, environment: &Environment) -> Result<Environment> {
        let flags = self.link.over(&self.rdma.over(&self.flags.over(environment)));
        flags.with_file(self.config.as_deref())
    }
}
