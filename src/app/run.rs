//! A job on this machine: a coordinator in this process, servers and workers as its children.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use crate::config::{Environment, ServerLimits, WorkerLimits, settings, variable};
use crate::error::{Error, Result};
use crate::launch::{self, Child, ChildRole, Tree, TreeConfig};
use crate::proto::secret::Secret;
use crate::server::coordinator::{Checkpoints, CoordinatorServer, CoordinatorServerConfig, Outcome};
use crate::transport::{choice, network};

/// What to start.
pub struct Plan {
    /// What messages start with: `windlass run`.
    pub command: String,
    pub servers: u32,
    pub workers: u32,
    /// All settings, for this process and to be handed on.
    pub settings: Environment,
    /// A worker's command line.
    pub worker: Vec<OsString>,
    /// A server's command line; our own `server` without it.
    pub server: Option<Vec<OsString>>,
    /// Prefix lines with the process's name. Without it worker 0 speaks for all, and draws on a terminal.
    pub prefix: bool,
}

/// Runs the job until all its processes have ended.
pub fn run(plan: &Plan) -> Result<launch::Outcome> {
    check_counts(plan.servers, plan.workers)?;
    let limits = ServerLimits::from_environment(&plan.settings)?;
    // The workers would refuse it, too, but later and each by itself.
    WorkerLimits::from_environment(&plan.settings)?;
    let network = network::from_environment(&plan.settings, 1)?;
    choice::offer(&network)?;
    let secret = Secret::generate()?;
    let job = launch::new_job()?;
    let mut config = CoordinatorServerConfig::new(secret.clone(), &job, plan.servers, Some(plan.workers));
    config.ip = network.interface;
    config.ports = network.ports.clone();
    config.limited_by(&plan.settings)?;
    config.checkpoints = Checkpoints::from_environment(&plan.settings)?;
    let coordinator = CoordinatorServer::bind(config).map_err(|e| e.chosen_by(settings::LISTENING))?;
    let children = children(plan, &coordinator.address().to_string(), &secret)?;
    supervise(plan, coordinator, Tree::new(tree(plan, &job, limits)?)?, &children)
}

/// Refuses numbers of which there can't be a job.
pub fn check_counts(servers: u32, workers: u32) -> Result<()> {
    for (what, given, most) in [("--servers", servers, 1024), ("--workers", workers, 4096)] {
        if !(1..=most).contains(&given) {
            return Err(Error::config(what, format!("1 to {most}"), given));
        }
    }
    Ok(())
}

/// Runs the Coordinator beside the tree of its job.
pub fn supervise(
    plan: &Plan,
    mut coordinator: CoordinatorServer,
    mut tree: Tree,
    children: &[Child],
) -> Result<launch::Outcome> {
    let handle = tree.handle();
    let stop = coordinator.stop_handle();
    saves_itself(plan, &mut coordinator, &mut tree, || {})?;
    let serving = thread::Builder::new()
        .name("wl-coord".to_owned())
        .spawn(move || match coordinator.run() {
            Ok(Outcome { saved: Some(_), .. }) => {} // it has been stopped
            Ok(_) => handle.job_finished(),
            Err(error) => handle.stop(error.to_string(), i32::from(exit_code(&error))),
        })
        .map_err(|e| Error::io("start thread", "wl-coord", e))?;
    let outcome = tree.run(children);
    stop.stop();
    if serving.join().is_err() {
        return Err(Error::Aborted { reason: "the coordinator's thread panicked".to_owned() });
    }
    outcome
}

/// Whoever ends the tree ends the job with a last checkpoint, where it makes any. `tell` is called when that is made.
pub fn saves_itself(
    plan: &Plan,
    coordinator: &mut CoordinatorServer,
    tree: &mut Tree,
    tell: impl FnOnce() + Send + 'static,
) -> Result<()> {
    let Some(grace) = plan.grace()? else { return Ok(()) };
    let (end, saved) = (coordinator.stop_handle(), tree.handle());
    coordinator.when_saved(move |cut, clock| {
        tell();
        saved.stop(format!("told to end: cut {cut} holds all up to clock {clock}"), SAVED);
    });
    tree.when_told_to_end(grace, move || end.end());
    Ok(())
}

/// The exit code of a job that was told to end, and made a last checkpoint: started again with `--resume auto`, it goes on. It is
/// the "temporary failure, try again" of sysexits.h.
pub const SAVED: i32 = 75;
impl Plan {
    /// The job makes checkpoints, and so a last one when it is told to end.
    pub fn saves(&self) -> bool {
        self.settings.chosen(&settings::CHECKPOINT).is_some()
    }

    /// How long the last checkpoint may take, if it makes one.
    pub fn grace(&self) -> Result<Option<Duration>> {
        self.saves().then(|| self.settings.seconds(&settings::GRACE)).transpose()
    }

    /// Threads of each server.
    pub fn threads(&self) -> Result<u32> {
        Ok(self.settings.number(&settings::THREADS)? as u32)
    }

    /// The command line of a process with this role.
    pub fn program(&self, role: ChildRole) -> Result<Vec<OsString>> {
        Ok(match (role, &self.server) {
            (ChildRole::Worker, _) => self.worker.clone(),
            (ChildRole::Server, Some(server)) => server.clone(),
            (ChildRole::Server, None) => vec![own_program()?, "server".into()],
        })
    }

    /// What every process of the job is told.
    pub fn variables(&self, coordinator: &str, secret: &Secret) -> Result<Vec<(&'static str, String)>> {
        let mut common = vec![
            (variable::COORDINATOR, coordinator.to_owned()),
            (variable::SECRET, secret.to_hex()),
            (variable::THREADS, self.threads()?.to_string()),
        ];
        let handed_on = settings::all().map(|setting| setting.variable).chain([variable::CONFIG]);
        for name in handed_on.filter(|name| *name != variable::THREADS) {
            common.extend(self.settings.text(name).map(|value| (name, value.to_owned())));
        }
        Ok(common)
    }

    /// What a process on another host is told besides: all that stands in our own environment and that it would have here. What the
    /// configuration file says is among it, so the file is not needed there.
    pub fn carried(&self) -> Result<Vec<(String, String)>> {
        let mut carried: BTreeMap<String, String> = self.settings.carried().collect();
        carried.insert(variable::THREADS.to_owned(), self.threads()?.to_string());
        Ok(carried.into_iter().collect())
    }
}

/// How a tree of this plan's processes is run.
pub fn tree(plan: &Plan, name: &str, limits: ServerLimits) -> Result<TreeConfig> {
    tree_of(&plan.command, name, limits)
}

/// The same for whoever has no plan.
pub fn tree_of(command: &str, name: &str, limits: ServerLimits) -> Result<TreeConfig> {
    let mut tree = TreeConfig::new(command, name, vec![own_program()?, "guard".into()]);
    tree.consequences = CONSEQUENCES.to_vec();
    tree.grace = tree.grace.max(limits.stop_timeout + FAREWELL);
    Ok(tree)
}

/// This program.
pub fn own_program() -> Result<OsString> {
    let exe = std::env::current_exe().map_err(|e| Error::io("find", "our own program", e))?;
    Ok(exe.into_os_string())
}

/// What a server may need besides `stop_timeout` when it is told to stop.
const FAREWELL: Duration = Duration::from_secs(2);

/// Exit codes by which a process says that another one failed, or may have: a peer is lost, it refused (a server that ends
/// expects nobody), or the job is aborted.
const CONSEQUENCES: [i32; 3] = [10 + 4, 10 + 5, 10 + 9];

/// A failure's exit code: 10 + [`Error::code`].
pub fn exit_code(error: &Error) -> u8 {
    // Codes are small and listed in one place.
    10 + error.code() as u8
}

fn children(plan: &Plan, coordinator: &str, secret: &Secret) -> Result<Vec<Child>> {
    let pollers = plan.servers * plan.threads()? + plan.workers;
    let mut common = plan.variables(coordinator, secret)?;
    common.extend([
        (variable::WORKERS, plan.workers.to_string()),
        (variable::SERVERS, plan.servers.to_string()),
        (variable::POLLERS, pollers.to_string()),
    ]);
    let mut children = Vec::new();
    for (role, count) in [(ChildRole::Server, plan.servers), (ChildRole::Worker, plan.workers)] {
        let command = plan.program(role)?;
        for rank in 0..count {
            let name = match role {
                ChildRole::Server => format!("server {rank}"),
                ChildRole::Worker => format!("worker {rank}"),
            };
            let mut environment = common.clone();
            environment.push((variable::RANK, rank.to_string()));
            environment.push((variable::LOCAL_INDEX, children.len().to_string()));
            children.push(Child {
                inherit_stderr: !plan.prefix && name == "worker 0",
                name,
                role,
                program: command.first().map(PathBuf::from).unwrap_or_default(),
                arguments: command.iter().skip(1).cloned().collect(),
                environment: environment.into_iter().map(|(n, v)| (n.into(), v.into())).collect(),
                prefix: plan.prefix,
                remote: None,
            });
        }
    }
    Ok(children)
}
