//! The Coordinator's part of checkpoints that touches files: what a job goes on from, manifests, and which cuts are kept.

use std::path::PathBuf;
use std::sync::Arc;

use crossbeam::channel::{Receiver, Sender, unbounded};

use crate::checkpoint::{Cut, Disk, FileEntry, Folder, Latest, Manifest, Storage, cut_number};
use crate::cluster::coordinator::{CoordinatorConfig, Resumed};
use crate::cluster::cuts::{Commit, CutPlan};
use crate::config::Environment;
use crate::config::settings::{self, Every};
use crate::error::{Error, Result};
use crate::types::TableSpec;

/// What a job goes on from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resume {
    /// The newest checkpoint that can be used; from the beginning where there is none.
    Auto,
    /// The checkpoint in this directory.
    From(PathBuf),
}

/// Where checkpoints are kept, and when they are made.
#[derive(Debug, Clone, Default)]
pub struct Checkpoints {
    /// Where; without it there are none.
    pub folder: Option<PathBuf>,
    /// How often; without it only when the job is told to end.
    pub every: Option<Every>,
    /// How many are kept, at least 1.
    pub keep: usize,
    /// What the job goes on from.
    pub resume: Option<Resume>,
}

impl Checkpoints {
    /// What the settings say.
    pub fn from_environment(environment: &Environment) -> Result<Checkpoints> {
        let text = |setting| environment.chosen(setting);
        Ok(Checkpoints {
            folder: text(&settings::CHECKPOINT).map(PathBuf::from),
            every: text(&settings::EVERY).map(str::parse).transpose()?,
            keep: environment.number(&settings::KEEP)? as usize,
            resume: text(&settings::RESUME).map(|text| match text {
                settings::AUTO => Resume::Auto,
                path => Resume::From(PathBuf::from(path)),
            }),
        })
    }
}

type Done = (u64, Result<(), String>);

/// Commits checkpoints on a thread of its own: a slow disk must not keep the Coordinator from its heartbeats.
pub struct Keeper {
    folder: Option<Folder>,
    keep: usize,
    finished: (Sender<Done>, Receiver<Done>),
}

impl Keeper {
    /// Looks at what is there: fills in what the job goes on from, and when it is cut.
    pub fn new(checkpoints: &Checkpoints, cluster: &mut CoordinatorConfig) -> Result<Keeper> {
        let storage: Arc<dyn Storage> = Arc::new(Disk);
        let folder = checkpoints.folder.as_deref().map(|path| Folder::new(storage.clone(), path));
        if let Some(folder) = &folder {
            folder.make()?;
            let newest = folder.found()?.last().map_or(0, |newest| newest.number);
            let first = newest.checked_add(1).ok_or_else(|| {
                Error::config(
                    folder.cut(newest).display().to_string(),
                    "a cut with a number below 2^64 - 1",
                    newest,
                )
            })?;
            cluster.cuts = Some(CutPlan { every: checkpoints.every, first });
        } else if checkpoints.every.is_some() || checkpoints.resume == Some(Resume::Auto) {
            return Err(super::cuts::no_folder());
        }
        let found = match &checkpoints.resume {
            None => None,
            Some(Resume::From(path)) => {
                let cut = Cut::open(&storage, path)?;
                Some((path.file_name().and_then(|name| cut_number(name.to_str()?)).unwrap_or(0), cut))
            }
            Some(Resume::Auto) => newest(folder.as_ref())?,
        };
        if let Some((number, cut)) = found {
            let Manifest { clock, tables, .. } = cut.manifest().clone();
            tracing::info!("coordinator: goes on from cut {number}, clock {clock}");
            cluster.resumed = Some(Resumed { number, clock, states: cut.states()?, tables });
        }
        Ok(Keeper { folder, keep: checkpoints.keep, finished: unbounded() }) // one commit at a time
    }

    /// Writes what a checkpoint still lacks, commits it, and removes those that are not kept; then wakes the Coordinator.
    pub fn commit(&self, commit: Commit, tables: Vec<TableSpec>, wake: impl FnOnce() + Send + 'static) {
        let Some(folder) = self.folder.clone() else { return };
        let (number, keep, finished) = (commit.number, self.keep, self.finished.0.clone());
        let body = move || {
            let outcome = write(&folder, &commit, tables).map_err(|error| {
                tracing::warn!("coordinator: cut {}: {error}; the checkpoint before stays", commit.number);
                error.to_string()
            });
            if outcome.is_ok()
                && let Err(error) = folder.retain(commit.number, keep)
            {
                // The next one tries again.
                tracing::warn!("coordinator: old checkpoints: {error}");
            }
            let _ = finished.send((commit.number, outcome)); // a Coordinator that is gone needs no answer
            wake();
        };
        if let Err(error) = std::thread::Builder::new().name("wl-commit".to_owned()).spawn(body) {
            let why = Error::io("start thread", "wl-commit", error).to_string();
            let _ = self.finished.0.send((number, Err(why))); // we hold the receiver
        }
    }

    /// What became of a commit.
    pub fn done(&self) -> Option<Done> {
        self.finished.1.try_recv().ok()
    }
}

fn newest(folder: Option<&Folder>) -> Result<Option<(u64, Cut)>> {
    let Some(folder) = folder else { return Ok(None) };
    let Latest { cut, mut flaws } = folder.latest()?;
    if cut.is_none() && !flaws.is_empty() {
        // To begin anew would in time remove what somebody may still mend.
        return Err(flaws.swap_remove(0));
    }
    for flaw in flaws {
        tracing::warn!("coordinator: {flaw}; an older checkpoint is taken");
    }
    Ok(cut)
}

fn write(folder: &Folder, commit: &Commit, tables: Vec<TableSpec>) -> Result<()> {
    let Commit { number, clock, states, files } = commit;
    let mut entries: Vec<FileEntry> = files
        .iter()
        .map(|file| FileEntry { name: file.name.clone(), bytes: file.bytes, digest: file.digest.clone() })
        .collect();
    entries.push(folder.write_states(*number, *clock, states)?);
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    let writer = concat!("windlass ", env!("CARGO_PKG_VERSION")).to_owned();
    let manifest = Manifest { writer, clock: *clock, workers: states.len() as u32, tables, files: entries };
    folder.commit(*number, &manifest)
}
