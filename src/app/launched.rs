//! `windlass run` as one of the tasks that `srun` or `mpirun` started: it becomes a server or a worker of their job.
//!
//! The leading task, rank 0, holds the Coordinator and supervises one child. Every other task checks in with it, is told what it
//! is, and becomes that program; in a job that makes checkpoints it supervises it (see `following`).

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use clap::Args;

use super::following::follow;
use super::joining;
use super::over_rsh::{self, Reach};
use super::run::{self, Plan, exit_code};
use crate::config::{Environment, ServerLimits, parse_ports, settings, variable};
use crate::error::{Error, Result};
use crate::launch::cluster::checkin::{Gathering, Place, check_in};
use crate::launch::cluster::keeper;
use crate::launch::cluster::lifelines::{Watch, Word};
use crate::launch::cluster::meet::{Meeting, meet};
use crate::launch::cluster::roles::{self, Counts, ServersOn};
use crate::launch::cluster::task::{Choice, Task};
use crate::launch::{self, Child, ChildRole, Tree};
use crate::proto::bootstrap::Bootstrap;
use crate::proto::secret::Secret;
use crate::server::coordinator::{Checkpoints, CoordinatorServer, CoordinatorServerConfig, Outcome};
use crate::time::Deadline;
use crate::transport::{self, choice, network};
use crate::types::Role;

/// How the processes of a job are started on several hosts.
#[derive(Debug, Clone, Args)]
pub struct LaunchOptions {
    /// Who started this process: auto (look for it), local (nobody: start the job here), slurm, mpi, or ssh (nobody: start the job
    /// on the hosts of --hostfile, as auto does where that is given)
    #[arg(long, value_name = "WHO", default_value = "auto")]
    launcher: Choice,
    /// Start the job on the hosts that this file lists, one on a line: n1, n1 slots=4, n1:4, n[1-3], [fd00::1]:4
    #[arg(long, value_name = "FILE", conflicts_with_all = ["coordinator", "rendezvous"])]
    hostfile: Option<PathBuf>,
    /// Remote shell for --hostfile, with its options; a host and one command are added
    #[arg(long, value_name = "CMD", default_value = over_rsh::SSH, requires = "hostfile")]
    rsh: String,
    /// Ranks that become servers: first, spread (over the nodes), or a list such as 0,4-6
    #[arg(long, value_name = "WHICH", default_value_t = ServersOn::First)]
    servers_on: ServersOn,
    /// Where rank 0 listens, for a launcher that has no key-value store; needs a secret that all ranks know
    /// [WINDLASS_COORDINATOR]
    #[arg(long, value_name = "HOST:PORT")]
    coordinator: Option<String>,
    /// File that all ranks see, through which they find rank 0; it is removed [WINDLASS_RENDEZVOUS]
    #[arg(long, value_name = "FILE", conflicts_with = "coordinator")]
    rendezvous: Option<PathBuf>,
    /// File with a secret for the job, mode 0600 [else WINDLASS_SECRET; else rank 0 makes one]
    #[arg(long, value_name = "FILE")]
    secret_file: Option<PathBuf>,
    /// Seconds in which all ranks of a launcher must have found each other [WINDLASS_LAUNCH_TIMEOUT; default: 30]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    launch_timeout: Option<u64>,
}

/// Takes part in a launcher's job; gives the exit code. `None` when no launcher started this process, or it alone.
pub fn run(plan: &Plan, workers: Option<u32>, options: &LaunchOptions) -> Result<Option<u8>> {
    if let Some(hostfile) = &options.hostfile {
        return start_on(hostfile, plan, workers, options).map(Some);
    }
    if options.launcher == Choice::Ssh {
        return Err(Error::config("--hostfile", "a file that lists hosts", "nothing"));
    }
    let Some(task) = Task::find(options.launcher, &plan.settings)? else {
        for (flag, given) in [
            ("--coordinator", options.coordinator.is_some()),
            ("--rendezvous", options.rendezvous.is_some()),
            ("--servers-on", options.servers_on != ServersOn::First),
        ] {
            if given {
                return Err(Error::config(flag, "a process that srun or mpirun started", "none"));
            }
        }
        return Ok(None);
    };
    let said = over(plan, options)?;
    let deadline = joining::deadline(&said)?;
    match meet(&task, None, &joining::ways(&said)?, deadline)? {
        Meeting::Alone if options.launcher == Choice::Auto => Ok(None),
        Meeting::Alone => {
            let expected = format!("at least two ranks, {} of them servers", plan.servers);
            Err(Error::config("--servers", expected, task))
        }
        Meeting::Leader(gathering) => {
            let counts = Counts { servers: plan.servers, workers };
            lead(plan, *gathering, counts, options, deadline).map(Some)
        }
        Meeting::Follower(leader, us) => {
            let (place, lifeline) = check_in(&leader, &us, deadline)?;
            if plan.saves() {
                return follow(plan, child(plan, &place, &leader)?, lifeline).map(Some);
            }
            keeper::keep(lifeline, &keeper_program()?)?;
            Err(become_it(plan, &place, &leader))
        }
    }
}

/// Starts the job on other hosts; gives its exit code.
fn start_on(hostfile: &Path, plan: &Plan, workers: Option<u32>, options: &LaunchOptions) -> Result<u8> {
    let expected =
        || Error::config("--launcher", "ssh, or auto outside of srun and mpirun, with --hostfile", "another");
    if !matches!(options.launcher, Choice::Auto | Choice::Ssh) {
        return Err(expected());
    }
    if let Some(task) = Task::find(options.launcher, &plan.settings)? {
        return Err(Error::config(
            "--hostfile",
            "a process that no launcher started, or --launcher ssh",
            task,
        ));
    }
    let said = over(plan, options)?;
    let reach = Reach {
        hostfile,
        rsh: &options.rsh,
        servers_on: &options.servers_on,
        workers,
        launch_timeout: joining::launch_timeout(&said)?,
        secret: said.text(variable::SECRET).map(Secret::from_hex).transpose()?,
    };
    Ok(over_rsh::run(plan, &reach)?.code as u8)
}

/// How a keeper is started: by ourselves, with the task's number behind this.
pub fn keeper_program() -> Result<Vec<OsString>> {
    Ok(vec![run::own_program()?, "keeper".into()])
}

/// The settings with what the options say in their place.
fn over(plan: &Plan, options: &LaunchOptions) -> Result<Environment> {
    let secret = options.secret_file.as_deref().map(Secret::from_file).transpose()?;
    Ok(plan
        .settings
        .clone()
        .with(variable::SECRET, secret.map(|secret| secret.to_hex()))
        .with(variable::COORDINATOR, options.coordinator.as_ref())
        .with(variable::RENDEZVOUS, options.rendezvous.as_ref().map(|file| file.display()))
        .with(variable::LAUNCH_TIMEOUT, options.launch_timeout))
}

/// Waits for all, decides who does what, and runs the Coordinator and this task's own child.
fn lead(
    plan: &Plan,
    mut gathering: Gathering,
    counts: Counts,
    options: &LaunchOptions,
    deadline: Deadline,
) -> Result<u8> {
    let leader = gathering.bootstrap().clone();
    let arrived = gathering.wait(deadline)?;
    let nodes: Vec<&str> = arrived.iter().map(|task| task.node.as_str()).collect();
    // What is wrong with the leader's settings the others hear, too.
    let decided = limits(plan).and_then(|limits| {
        let roles = roles::assign(&nodes, counts, &options.servers_on)?;
        coordinator(&plan.settings, &leader, &roles).map(|coordinator| (limits, roles, coordinator))
    });
    let (limits, roles, mut coordinator) = match decided {
        Ok(decided) => decided,
        Err(error) => {
            gathering.abort(&error)?;
            return Err(error);
        }
    };
    let (place, lifelines) = gathering.place(&roles, plan.threads()?, &coordinator.address().to_string())?;
    let child = child(plan, &place, &leader)?;
    let stop = coordinator.stop_handle();
    let watched = stop.clone();
    let watch = Watch::over(lifelines, move |task| watched.ended(task.role, task.rank, &task.name))?;
    // A name of its own: at its end what carries it is killed, and other tasks of the job may be on this host.
    let mut tree = run::tree(plan, &launch::new_job()?, limits)?;
    tree.marker = variable::TREE;
    let mut tree = Tree::new(tree)?;
    let (teller, saved) = (watch.teller()?, watch.teller()?);
    run::saves_itself(plan, &mut coordinator, &mut tree, move || saved.tell(Word::Saved))?;
    let handle = tree.handle();
    let serving = thread::Builder::new()
        .name("wl-coord".to_owned())
        .spawn(move || match coordinator.run() {
            Ok(Outcome { saved: Some(_), .. }) => run::SAVED as u8, // it has been stopped
            Ok(_) => {
                teller.tell(Word::Done);
                handle.job_finished();
                0
            }
            Err(error) => {
                handle.stop(error.to_string(), i32::from(exit_code(&error)));
                exit_code(&error)
            }
        })
        .map_err(|e| Error::io("start thread", "wl-coord", e))?;
    let outcome = tree.run(&[child]);
    match &outcome {
        // The others may have work left, or to be told; if this one never joined, they wait in vain.
        Ok(_) => stop.ended(place.role, place.rank, "the leading rank's process"),
        Err(_) => stop.stop(),
    }
    let coordinated = serving.join();
    drop(watch);
    match (outcome?.code, coordinated) {
        (_, Err(_)) => Err(Error::Aborted { reason: "the coordinator's thread panicked".to_owned() }),
        (0, Ok(code)) => Ok(code),
        (code, Ok(_)) => Ok(code as u8),
    }
}

/// The limits of servers; an error where a setting of this task can't be.
fn limits(plan: &Plan) -> Result<ServerLimits> {
    plan.grace()?;
    choice::offer(&network::from_environment(&plan.settings, 1)?)?;
    ServerLimits::from_environment(&plan.settings)
}

/// The Coordinator of a job whose tasks have these roles, beside the leader's own port.
pub fn coordinator(
    settings: &Environment,
    leader: &Bootstrap,
    roles: &[(Role, u32)],
) -> Result<CoordinatorServer> {
    let servers = roles.iter().filter(|(role, _)| *role == Role::Server).count() as u32;
    let workers = roles.len() as u32 - servers;
    let mut config =
        CoordinatorServerConfig::new(leader.secret().clone(), leader.job(), servers, Some(workers));
    config.ip = leader.address().ip();
    config.ports = settings.restriction(&settings::PORT_RANGE).map(parse_ports).transpose()?;
    config.limited_by(settings)?;
    config.checkpoints = Checkpoints::from_environment(settings)?;
    CoordinatorServer::bind(config).map_err(|e| e.chosen_by(settings::LISTENING))
}

/// What a task is told of its place. The interface is its own end of the network: what the user says may be another address on
/// each host.
pub fn variables_of(
    settings: &Environment,
    place: &Place,
    leader: &Bootstrap,
) -> Result<Vec<(&'static str, String)>> {
    let interface = match settings.text(variable::INTERFACE) {
        Some(text) => transport::interface::resolve(text)?,
        None => place.interface,
    };
    Ok(vec![
        (variable::COORDINATOR, place.coordinator.clone()),
        (variable::SECRET, leader.secret().to_hex()),
        (variable::JOB, leader.job().to_owned()),
        (variable::RANK, place.rank.to_string()),
        (variable::SERVERS, place.servers.to_string()),
        (variable::WORKERS, place.workers.to_string()),
        (variable::LOCAL_INDEX, place.local_index.to_string()),
        (variable::POLLERS, place.pollers.to_string()),
        (variable::INTERFACE, interface.to_string()),
    ])
}

/// All that its program is told; what comes later outdoes what comes before.
fn environment(plan: &Plan, place: &Place, leader: &Bootstrap) -> Result<Vec<(OsString, OsString)>> {
    let mut variables = plan.variables(&place.coordinator, leader.secret())?;
    variables.extend(variables_of(&plan.settings, place, leader)?);
    Ok(variables.into_iter().map(|(n, v)| (n.into(), v.into())).collect())
}

fn child_role(place: &Place) -> ChildRole {
    if place.role == Role::Server { ChildRole::Server } else { ChildRole::Worker }
}

/// The leader's own child. Whatever its role, it is the one whose end is awaited.
fn child(plan: &Plan, place: &Place, leader: &Bootstrap) -> Result<Child> {
    let command = plan.program(child_role(place))?;
    Ok(Child {
        name: format!("{} {}", place.role, place.rank),
        role: ChildRole::Worker,
        program: command.first().map(PathBuf::from).unwrap_or_default(),
        arguments: command.iter().skip(1).cloned().collect(),
        environment: environment(plan, place, leader)?,
        prefix: false,
        inherit_stderr: true,
        remote: None,
    })
}

/// Replaces this process by the program of its place; returns only if that fails.
fn become_it(plan: &Plan, place: &Place, leader: &Bootstrap) -> Error {
    let prepare = || Ok((plan.program(child_role(place))?, environment(plan, place, leader)?));
    let (command, environment) = match prepare() {
        Ok(prepared) => prepared,
        Err(error) => return error,
    };
    let (program, arguments) = command.split_first().map(|(p, a)| (p.clone(), a)).unwrap_or_default();
    let failed = Command::new(&program).args(arguments).envs(environment).exec();
    Error::io("start", format!("{} {}: {}", place.role, place.rank, program.to_string_lossy()), failed)
}
