//! The flags of the settings in [`crate::config::settings`].

use std::fmt;
use std::marker::PhantomData;

use clap::{Arg, ArgMatches, Args, Command, FromArgMatches};

use crate::config::{Environment, Setting, settings};
use crate::error::{Error, Result};

/// A group of settings that some subcommands have.
pub trait Group {
    const SETTINGS: &'static [Setting];
}

/// What every process of a job has.
#[derive(Clone)]
pub struct OfNetwork;

impl Group for OfNetwork {
    const SETTINGS: &'static [Setting] = settings::NETWORK;
}

/// How RDMA devices are used.
#[derive(Clone)]
pub struct OfRdma;

impl Group for OfRdma {
    const SETTINGS: &'static [Setting] = settings::RDMA;
}

/// What every process has that takes or makes control links.
#[derive(Clone)]
pub struct OfLink;

impl Group for OfLink {
    const SETTINGS: &'static [Setting] = settings::LINK;
}

/// What only the Coordinator has.
#[derive(Clone)]
pub struct OfCoordinator;

impl Group for OfCoordinator {
    const SETTINGS: &'static [Setting] = settings::COORDINATOR;
}

/// What only workers have.
#[derive(Clone)]
pub struct OfWorker;

impl Group for OfWorker {
    const SETTINGS: &'static [Setting] = settings::WORKER;
}

/// What only servers have.
#[derive(Clone)]
pub struct OfServer;

impl Group for OfServer {
    const SETTINGS: &'static [Setting] = settings::SERVER;
}

/// Where checkpoints are.
#[derive(Clone)]
pub struct OfCheckpoints;

impl Group for OfCheckpoints {
    const SETTINGS: &'static [Setting] = settings::CHECKPOINTS;
}

/// When checkpoints are made.
#[derive(Clone)]
pub struct OfCuts;

impl Group for OfCuts {
    const SETTINGS: &'static [Setting] = settings::CUTS;
}

/// The flags of a group that were given.
#[derive(Clone)]
pub struct Flags<G> {
    given: Vec<(&'static Setting, String)>,
    group: PhantomData<G>,
}

impl<G> Default for Flags<G> {
    fn default() -> Flags<G> {
        Flags { given: Vec::new(), group: PhantomData }
    }
}

impl<G> fmt::Debug for Flags<G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.given.iter().map(|(setting, text)| (setting.variable, text))).finish()
    }
}

impl<G> Flags<G> {
    /// The first that was given.
    fn first(&self) -> Option<&(&'static Setting, String)> {
        self.given.first()
    }

    /// The environment with these flags above it.
    pub fn over(&self, environment: &Environment) -> Environment {
        let above = |environment: Environment, (setting, text): &(&'static Setting, String)| {
            environment.with(setting.variable, Some(text))
        };
        self.given.iter().fold(environment.clone(), above)
    }
}

fn argument(setting: &'static Setting) -> Arg {
    let help = format!("{} [{}; default: {}]", setting.help, setting.variable, (setting.default)());
    Arg::new(setting.variable)
        .long(setting.flag())
        .value_name(setting.value_name)
        .help(help)
        .value_parser(|text: &str| setting.check_form(text).map(|()| text.to_owned()))
}

impl<G: Group> Args for Flags<G> {
    fn augment_args(command: Command) -> Command {
        command.args(G::SETTINGS.iter().map(argument))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl<G: Group> FromArgMatches for Flags<G> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Flags<G>, clap::Error> {
        let mut flags = Flags::default();
        flags.update_from_arg_matches(matches)?;
        Ok(flags)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        let text = |setting: &'static Setting| {
            let text = matches.try_get_one::<String>(setting.variable).ok().flatten()?;
            Some((setting, text.clone()))
        };
        self.given = G::SETTINGS.iter().filter_map(text).collect();
        Ok(())
    }
}

/// All about checkpoints, for whoever starts a job or coordinates one.
#[derive(Debug, Clone, Default, Args)]
pub struct CheckpointFlags {
    #[command(flatten)]
    places: Flags<OfCheckpoints>,
    #[command(flatten)]
    cuts: Flags<OfCuts>,
}

impl CheckpointFlags {
    /// The environment with these flags above it.
    pub fn over(&self, environment: &Environment) -> Environment {
        self.cuts.over(&self.places.over(environment))
    }

    /// Refuses flags that say when checkpoints are made: of a server that joins a job nobody would obey them.
    pub fn only_places(&self) -> Result<()> {
        self.cuts.first().map_or(Ok(()), |(setting, text)| {
            let expected = "this flag at the coordinator, which says when checkpoints are made";
            Err(Error::config(
                format!("--{}", setting.flag()),
                expected,
                format!("{text} at a server that joins one"),
            ))
        })
    }
}
