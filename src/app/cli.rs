//! The command line.

use std::ffi::OsString;
use std::io::{IsTerminal, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand};
use tracing_subscriber::EnvFilter;

use super::bench::{self, Verdict};
use super::checkpoint;
use super::info;
use super::joining;
use super::launched::{self, LaunchOptions};
use super::lr;
use super::node::{NetworkOptions, NodeOptions};
use super::over_rsh;
use super::pages;
use super::run::{self, Plan};
use super::settings::{CheckpointFlags, Flags, OfCoordinator, OfLink, OfServer, OfWorker};
use crate::config::{Environment, settings, variable};
use crate::error::{Error, Result};
use crate::kernels;
use crate::launch;
use crate::launch::cluster::keeper;
use crate::proto::secret::Secret;
use crate::server::Server;
use crate::server::coordinator::{Checkpoints, CoordinatorServer, CoordinatorServerConfig};
use crate::transport::descriptors;

/// Features of this build, for `--version`.
const VERSION: &str = if cfg!(feature = "verbs") {
    concat!(env!("CARGO_PKG_VERSION"), " (features: verbs)")
} else {
    concat!(env!("CARGO_PKG_VERSION"), " (features: none)")
};

/// A parameter server for HPC clusters
///
/// Exit codes: 0 done, 2 wrong usage, 10 + n for failure n: 11 setting, 12 system, 13 timeout, 14 lost peer, 15 refused,
/// 16 protocol, 17 limit, 18 misuse, 19 aborted elsewhere, 20 malformed data, 21 device, 22 stale push, 23 values that are not finite,
/// 24 unusable checkpoint; 75 told to end, and saved. `run` gives the code of the
/// process that failed first, 128 + n if it was killed by signal n.
#[derive(Debug, Parser)]
#[command(name = "windlass", version = VERSION, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start a job: a coordinator, servers, and CMD once for each worker
    ///
    /// Alone it starts them all on this machine. Under `srun` or `mpirun` every rank runs this same command line: some become
    /// servers, the others CMD, and the coordinator is with rank 0.
    Run(Box<RunOptions>),
    /// Train a model
    #[command(subcommand)]
    Train(Train),
    /// Measure a job, or the transport alone; exit code 1 when the memory at the end is not what it should be
    ///
    /// Alone it starts its own job on this machine; in a job (WINDLASS_COORDINATOR is set, or --coordinator is given) it
    /// is one of its workers. `write` and `read` need no job; in one they are between its two workers, of which worker 0 measures.
    Bench(Box<bench::Options>),
    /// Look at checkpoints, check them, and pass their parameters to other programs and back
    #[command(subcommand)]
    Checkpoint(checkpoint::Command),
    /// Say what this machine and this build have to offer
    Info,
    /// Run the coordinator of a job that is started by hand
    Coordinator(CoordinatorOptions),
    /// Run one server of a job
    Server(ServerOptions),
    /// Make a job's secret and print it
    Secret,
    /// Write man pages and completions below a folder, as `share` of an installation
    #[command(hide = true)]
    Pages {
        /// The folder
        share: PathBuf,
    },
    #[command(hide = true)]
    Guard,
    /// Keeps a task's connection open while it lives
    #[command(hide = true)]
    Keeper {
        /// Stay, instead of starting the one that does
        #[arg(long)]
        stay: bool,
        /// The task's process id
        task: i32,
    },
    /// One process of a job that `windlass run --hostfile` started, behind a remote shell
    #[command(hide = true)]
    Remote,
}

#[derive(Debug, Subcommand)]
enum Train {
    /// Sparse logistic regression on LIBSVM files, or on a built-in data set
    ///
    /// Alone it starts its own job on this machine; in a job (WINDLASS_COORDINATOR is set, or --coordinator is given) it
    /// is one of its workers.
    Lr(Box<lr::Options>),
}

#[derive(Debug, Args)]
struct RunOptions {
    /// Number of servers
    #[arg(long, default_value_t = 2)]
    servers: u32,
    /// Number of workers [default: 4; with a launcher all ranks that are no servers]
    #[arg(long)]
    workers: Option<u32>,
    #[command(flatten)]
    launch: LaunchOptions,
    /// Program that each server runs, in place of `windlass server`
    #[arg(long, value_name = "PROGRAM")]
    server_cmd: Option<OsString>,
    #[command(flatten)]
    network: NetworkOptions,
    #[command(flatten)]
    coordinator: Flags<OfCoordinator>,
    #[command(flatten)]
    server: Flags<OfServer>,
    #[command(flatten)]
    checkpoints: CheckpointFlags,
    #[command(flatten)]
    workers_own: Flags<OfWorker>,
    /// Print the settings that would hold, each with where it comes from, and exit
    #[arg(long)]
    print_config: bool,
    /// A worker's command line
    #[arg(last = true, required_unless_present = "print_config")]
    worker: Vec<OsString>,
}

#[derive(Debug, Args)]
struct CoordinatorOptions {
    /// Where to listen [WINDLASS_COORDINATOR; default: 127.0.0.1:7077]
    #[arg(long, value_name = "IP:PORT")]
    listen: Option<SocketAddr>,
    /// File with the job's secret: 64 hexadecimal digits, mode 0600 [else WINDLASS_SECRET]
    #[arg(long, value_name = "FILE")]
    secret_file: Option<PathBuf>,
    /// Number of servers; the job begins when they are there [WINDLASS_SERVERS; default: 1]
    #[arg(long)]
    servers: Option<u32>,
    /// Number of workers [WINDLASS_WORKERS; default: what the first worker says]
    #[arg(long)]
    workers: Option<u32>,
    #[command(flatten)]
    link: Flags<OfLink>,
    #[command(flatten)]
    own: Flags<OfCoordinator>,
    #[command(flatten)]
    checkpoints: CheckpointFlags,
    /// File with settings; flags and variables outdo it [WINDLASS_CONFIG]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct ServerOptions {
    #[command(flatten)]
    node: NodeOptions,
    /// This server's rank [WINDLASS_RANK; default: the coordinator chooses]
    #[arg(long)]
    rank: Option<u32>,
    #[command(flatten)]
    server: Flags<OfServer>,
    #[command(flatten)]
    checkpoints: CheckpointFlags,
    /// Print the settings that would hold, each with where it comes from, and exit
    #[arg(long)]
    print_config: bool,
}

/// Runs the program; what it gives is its exit code.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let environment = Environment::capture();
    let filter = environment.text(variable::LOG).unwrap_or("warn");
    let logged = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(filter))
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .try_init();
    if let Err(error) = logged {
        eprintln!("windlass: no log: {error}");
    }
    descriptors::allow_many();
    match obey(cli.command, &environment) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            // One write: those of several ranks go through one pipe, and would run into each other.
            let _ = std::io::stderr().write_all(format!("windlass: {error}\n").as_bytes());
            ExitCode::from(run::exit_code(&error))
        }
    }
}

fn obey(command: Command, environment: &Environment) -> Result<u8> {
    kernels::choose_by(environment)?;
    // Once for a job on this machine: its launcher says it, not the processes that it starts.
    let carries_data =
        matches!(command, Command::Run(_) | Command::Train(_) | Command::Bench(_) | Command::Server(_));
    if carries_data
        && environment.text(variable::JOB).is_none()
        && let Some(hint) = info::hint_here(environment)
    {
        tracing::warn!("{hint}");
    }
    match command {
        Command::Run(options) => start(*options, environment),
        Command::Train(Train::Lr(options)) => train(*options, environment),
        Command::Bench(options) => measure(&options, environment),
        Command::Checkpoint(command) => checkpoint::obey(&command).map(|()| 0),
        Command::Info => {
            print!("{}", info::text(&environment.clone().with_file(None)?)?);
            Ok(0)
        }
        Command::Coordinator(options) => coordinate(&options, environment),
        Command::Server(options) => serve(&options, environment).map(|()| 0),
        Command::Secret => {
            writeln!(std::io::stdout(), "{}", Secret::generate()?.to_hex())
                .map_err(|e| Error::io("write", "standard output", e))?;
            Ok(0)
        }
        Command::Pages { share } => pages::write(Cli::command(), &share).map(|()| 0),
        Command::Guard => Ok(launch::guard_main() as u8),
        Command::Keeper { stay, task } => {
            let other = launched::keeper_program()?.into_iter().chain(["--stay".into()]).collect::<Vec<_>>();
            keeper::keeper_main(task, (!stay).then_some(&other[..]))
                .map_err(|e| Error::io("keep", "a connection", e))?;
            Ok(0)
        }
        Command::Remote => over_rsh::remote(),
    }
}

fn start(options: RunOptions, environment: &Environment) -> Result<u8> {
    let settings = options.server.over(&options.network.over(environment)?);
    let settings = options.workers_own.over(&options.coordinator.over(&settings));
    let settings = options.checkpoints.over(&settings);
    if options.print_config {
        return print_config(&settings).map(|()| 0);
    }
    let plan = Plan {
        command: "windlass run".to_owned(),
        servers: options.servers,
        workers: options.workers.unwrap_or(4),
        settings,
        worker: options.worker,
        server: options.server_cmd.map(|program| vec![program]),
        prefix: true,
    };
    match launched::run(&plan, options.workers, &options.launch)? {
        Some(code) => Ok(code),
        None => Ok(run::run(&plan)?.code as u8),
    }
}

fn print_config(settings: &Environment) -> Result<()> {
    let text = settings.effective(settings::all())?;
    std::io::stdout().write_all(text.as_bytes()).map_err(|e| Error::io("write", "standard output", e))
}

fn measure(options: &bench::Options, environment: &Environment) -> Result<u8> {
    let judged = |verdict| match verdict {
        Verdict::Right => 0,
        Verdict::Wrong => 1,
    };
    if options.op.is_local() {
        let measure = if options.op == bench::Op::Gather { bench::gather } else { bench::add };
        return measure(options).map(judged);
    }
    if options.responder {
        return bench::pair(options, environment).map(judged);
    }
    if let Some(environment) = in_a_job(&options.node, environment)? {
        return bench::work(options, &environment).map(judged);
    }
    if options.op.is_transport() {
        return bench::pair(options, environment).map(judged);
    }
    options.check()?;
    let plan = Plan {
        command: "windlass bench".to_owned(),
        servers: options.servers,
        workers: options.workers.unwrap_or(1),
        settings: options.settings(environment)?.with(variable::THREADS, options.threads),
        worker: ourselves_again()?,
        server: None,
        prefix: false,
    };
    Ok(run::run(&plan)?.code as u8)
}

/// The settings of a process that takes part in a job: one that was told of it, or that a launcher started beside servers.
fn in_a_job(node: &NodeOptions, environment: &Environment) -> Result<Option<Environment>> {
    if node.coordinator.is_some() || environment.text(variable::COORDINATOR).is_some() {
        return Ok(Some(environment.clone()));
    }
    joining::as_worker(environment)
}

/// Our own command line, for the workers of a job that we start.
fn ourselves_again() -> Result<Vec<OsString>> {
    let exe = std::env::current_exe().map_err(|e| Error::io("find", "our own program", e))?;
    Ok(std::iter::once(exe.into_os_string()).chain(std::env::args_os().skip(1)).collect())
}

fn train(options: lr::Options, environment: &Environment) -> Result<u8> {
    if let Some(environment) = in_a_job(&options.node, environment)? {
        lr::train(&options, &environment)?;
        return Ok(0);
    }
    options.check()?;
    options.check_alone()?;
    options.check_outputs()?;
    let plan = Plan {
        command: "windlass train lr".to_owned(),
        servers: options.servers,
        workers: options.workers.unwrap_or(4),
        settings: options.settings(environment)?.with(variable::THREADS, options.threads),
        worker: ourselves_again()?,
        server: None,
        prefix: false,
    };
    Ok(run::run(&plan)?.code as u8)
}

fn coordinate(options: &CoordinatorOptions, environment: &Environment) -> Result<u8> {
    let node = NodeOptions { secret_file: options.secret_file.clone(), ..NodeOptions::default() };
    let secret = node.secret(environment)?;
    let job = environment.text(variable::JOB).unwrap_or_default();
    let number = |given: Option<u32>, name| match given {
        Some(number) => Ok(Some(number)),
        None => environment.value(name, "a number"),
    };
    let servers = number(options.servers, variable::SERVERS)?.unwrap_or(1);
    let workers = number(options.workers, variable::WORKERS)?;
    let given = match options.listen {
        None => environment.value(variable::COORDINATOR, "IP:PORT")?,
        Some(_) => None,
    };
    let chosen_by =
        given.map_or_else(|| "--listen".to_owned(), |_| environment.name_of(variable::COORDINATOR));
    let listen = options.listen.or(given).unwrap_or(SocketAddr::from(([127, 0, 0, 1], 7077)));
    let mut config = CoordinatorServerConfig::new(secret, job, servers, workers);
    config.ip = listen.ip();
    config.ports = (listen.port() != 0).then(|| listen.port()..=listen.port());
    let settings = options.checkpoints.over(&options.own.over(&options.link.over(environment)));
    let settings = settings.with_file(options.config.as_deref())?;
    config.limited_by(&settings)?;
    config.checkpoints = Checkpoints::from_environment(&settings)?;
    let saves = config.checkpoints.folder.is_some();
    let mut coordinator = CoordinatorServer::bind(config).map_err(|e| e.chosen_by(&chosen_by))?;
    if saves {
        coordinator.end_on_signals()?;
    }
    eprintln!("windlass coordinator: listening on {}", coordinator.address());
    let outcome = coordinator.run()?;
    if let Some((cut, clock)) = outcome.saved {
        eprintln!("windlass coordinator: told to end: cut {cut} holds all up to clock {clock}");
        return Ok(run::SAVED as u8);
    }
    eprintln!(
        "windlass coordinator: done, with {} servers, {} workers, {} tables",
        outcome.servers, outcome.workers, outcome.tables
    );
    Ok(0)
}

fn serve(options: &ServerOptions, environment: &Environment) -> Result<()> {
    let settings = options.server.over(&options.node.network.over(environment)?);
    let settings = options.checkpoints.over(&settings).with(variable::RANK, options.rank);
    if options.print_config {
        return print_config(&settings);
    }
    if options.node.coordinator.is_some() || settings.text(variable::COORDINATOR).is_some() {
        options.checkpoints.only_places()?;
    }
    let serve = |settings: &Environment| {
        let coordinator = options.node.coordinator(settings)?;
        if settings.text(variable::JOB).is_none() {
            eprintln!("windlass server: joining the job at {coordinator}");
        }
        let secret = options.node.secret(settings)?;
        Server::configured(&coordinator, secret, settings)?.stop_on_sigterm().start()?.run()
    };
    match options.node.coordinator {
        Some(_) => serve(&settings),
        None => joining::as_server(&settings, serve),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
