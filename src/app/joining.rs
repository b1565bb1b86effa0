//! Servers and workers that a launcher started side by side, each with its own command line:
//! `mpirun -n 2 windlass server : -n 6 ./worker`. Nobody told them of a job; they find each other, and the first server has the
//! Coordinator.

use std::thread;
use std::time::{Duration, Instant};

use super::launched::{coordinator, variables_of};
use super::run::exit_code;
use crate::client::ClientConfig;
use crate::config::{Environment, parse_ports, settings, variable};
use crate::error::{Error, Result};
use crate::launch::cluster::checkin::{Gathering, Place, check_in};
use crate::launch::cluster::lifelines::{Watch, keep_open};
use crate::launch::cluster::meet::{Meeting, Ways, meet};
use crate::launch::cluster::roles;
use crate::launch::cluster::task::{Choice, Task};
use crate::proto::bootstrap::Bootstrap;
use crate::proto::secret::Secret;
use crate::time::Deadline;
use crate::types::Role;

impl ClientConfig {
    /// The worker that the launcher made this process: `windlass run`, by its `WINDLASS_*` variables and the configuration file
    /// that `WINDLASS_CONFIG` names; else `srun` or `mpirun`, which started it beside `windlass server`.
    ///
    /// A program that uses MPI itself can't find its job in the second way, since PMI is there for one user in a process: give it
    /// a [`Bootstrap`], or start it by `windlass run --rendezvous FILE`.
    pub fn from_env() -> Result<ClientConfig> {
        let environment = Environment::capture().with_file(None)?;
        ClientConfig::from_environment(&as_worker(&environment)?.unwrap_or(environment))
    }
}

/// How a launcher's tasks find each other, as far as variables say.
pub fn ways(environment: &Environment) -> Result<Ways> {
    let text = |name: &str| environment.text(name).map(str::to_owned);
    Ok(Ways {
        interface: text(variable::INTERFACE),
        ports: environment.restriction(&settings::PORT_RANGE).map(parse_ports).transpose()?,
        secret: environment.text(variable::SECRET).map(Secret::from_hex).transpose()?,
        job: text(variable::JOB),
        coordinator: text(variable::COORDINATOR),
        rendezvous: text(variable::RENDEZVOUS).map(Into::into),
    })
}

/// When they must have done so: 30 s from now, unless a variable says otherwise.
pub fn deadline(environment: &Environment) -> Result<Deadline> {
    Ok(Deadline::after(Instant::now(), Duration::from_secs(launch_timeout(environment)?)))
}

/// In how many seconds.
pub fn launch_timeout(environment: &Environment) -> Result<u64> {
    Ok(environment.value(variable::LAUNCH_TIMEOUT, "a number of seconds")?.unwrap_or(30))
}

/// The settings of a worker that was not told of a job, once its launcher's other tasks told it. `None` when it was told, or when
/// no launcher started it, or it alone.
pub fn as_worker(environment: &Environment) -> Result<Option<Environment>> {
    match find(environment, Role::Worker)? {
        Some((Meeting::Follower(leader, us), deadline)) => {
            let (place, lifeline) = check_in(&leader, &us, deadline)?;
            keep_open(lifeline);
            placed(environment, &place, &leader).map(Some)
        }
        _ => Ok(None),
    }
}

/// The same for a server, which `serve` then runs. The first of them has the Coordinator, and ends with it.
pub fn as_server(environment: &Environment, serve: impl FnOnce(&Environment) -> Result<()>) -> Result<()> {
    match find(environment, Role::Server)? {
        None | Some((Meeting::Alone, _)) => serve(environment),
        Some((Meeting::Follower(leader, us), deadline)) => {
            let (place, lifeline) = check_in(&leader, &us, deadline)?;
            keep_open(lifeline);
            serve(&placed(environment, &place, &leader)?)
        }
        Some((Meeting::Leader(gathering), deadline)) => lead(environment, *gathering, deadline, serve),
    }
}

fn find(environment: &Environment, role: Role) -> Result<Option<(Meeting, Deadline)>> {
    // Whoever knows the Coordinator is told all else, too, unless it was a launcher's task that was told by hand.
    if environment.text(variable::COORDINATOR).is_some() {
        return Ok(None);
    }
    let Some(task) = Task::find(Choice::Auto, environment)? else { return Ok(None) };
    let deadline = deadline(environment)?;
    Ok(Some((meet(&task, Some(role), &ways(environment)?, deadline)?, deadline)))
}

fn placed(environment: &Environment, place: &Place, leader: &Bootstrap) -> Result<Environment> {
    let variables = variables_of(environment, place, leader)?;
    Ok(variables.into_iter().fold(environment.clone(), |all, (name, value)| all.with(name, Some(value))))
}

fn lead(
    environment: &Environment,
    mut gathering: Gathering,
    deadline: Deadline,
    serve: impl FnOnce(&Environment) -> Result<()>,
) -> Result<()> {
    let leader = gathering.bootstrap().clone();
    let arrived = gathering.wait(deadline)?;
    let nodes: Vec<&str> = arrived.iter().map(|task| task.node.as_str()).collect();
    let said: Option<Vec<Role>> = arrived.iter().map(|task| task.role).collect();
    let mixed = || Error::config("launcher", "`windlass run` on all ranks or on none", "on some");
    let decided = said
        .ok_or_else(mixed)
        .and_then(|said| roles::announced(&said, &nodes))
        .and_then(|roles| coordinator(environment, &leader, &roles).map(|coordinator| (roles, coordinator)));
    let (roles, coordinator) = match decided {
        Ok(decided) => decided,
        Err(error) => {
            gathering.abort(&error)?;
            return Err(error);
        }
    };
    let threads = environment.number(&settings::THREADS)? as u32;
    let (place, lifelines) = gathering.place(&roles, threads, &coordinator.address().to_string())?;
    let stop = coordinator.stop_handle();
    let watched = stop.clone();
    let _watch = Watch::over(lifelines, move |task| watched.ended(task.role, task.rank, &task.name))?;
    let serving = thread::Builder::new()
        .name("wl-coord".to_owned())
        .spawn(move || coordinator.run())
        .map_err(|e| Error::io("start thread", "wl-coord", e))?;
    let served = serve(&placed(environment, &place, &leader)?);
    stop.ended(place.role, place.rank, "the leading rank");
    let coordinated = serving
        .join()
        .unwrap_or_else(|_| Err(Error::Aborted { reason: "the coordinator's thread panicked".to_owned() }));
    match served {
        // What the server heard of the Coordinator is what the Coordinator knows better.
        Err(error) if exit_code(&error) != exit_code(&Error::Aborted { reason: String::new() }) => Err(error),
        _ => coordinated.map(drop),
    }
}
