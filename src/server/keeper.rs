//! The Coordinator's part of checkpoints that touches files: what a job goes on from, manifests, and which cuts are kept.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender, unbounded};

use super::disks::DiskThreads;
use crate::checkpoint::{Cut, Disk, FileEntry, Folder, Latest, Manifest, Storage, cut_number};
use crate::cluster::coordinator::{CoordinatorConfig, Resumed};
use crate::cluster::cuts::{Commit, CutPlan};
use crate::config::Environment;
use crate::config::settings::{self, Every};
use crate::control::HubWaker;
use crate::error::{Error, Result};
use crate::types::TableSpec;

/// What a job goes on from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resume {
    /// The newest checkpoint that can be used; from the beginning where there is none.
    Auto,
    /// None: the job begins anew, although there may be checkpoints of another run. Those are let alone.
    New,
    /// The checkpoint in this directory.
    From(PathBuf),
}

/// Where checkpoints are kept, and when they are made.
#[derive(Debug, Clone)]
pub struct Checkpoints {
    /// Where; without it there are none.
    pub folder: Option<PathBuf>,
    /// How often; without it only when the job is told to end.
    pub every: Option<Every>,
    /// How many are kept, at least 1.
    pub keep: usize,
    /// What the job goes on from.
    pub resume: Option<Resume>,
    /// What all that is on.
    pub storage: Arc<dyn Storage>,
}

impl Default for Checkpoints {
    fn default() -> Checkpoints {
        Checkpoints { folder: None, every: None, keep: 1, resume: None, storage: Arc::new(Disk) }
    }
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
                settings::NEW => Resume::New,
                path => Resume::From(PathBuf::from(path)),
            }),
            ..Checkpoints::default()
        })
    }
}

/// For how long a cut that another host may have committed is looked for: NFS shows it late.
const LAG: Duration = Duration::from_secs(10);

/// What a thread of the keeper has done.
pub enum Done {
    /// A cut is committed, or why it can't be.
    Committed(u64, Result<(), String>),
    /// What the job goes on from in place of a damaged cut.
    Replaced(Result<Resumed>),
    /// The thread has panicked, so that nobody knows what was done.
    Failed(Error),
}

/// Does what touches files while the job runs on threads of their own: a slow disk must not keep the Coordinator from its heartbeats.
pub struct Keeper {
    directory: Directory,
    /// A damaged cut is replaced by an older one.
    falls_back: bool,
    finished: (Sender<Done>, Receiver<Done>),
    disks: DiskThreads,
}

/// Where the checkpoints of a run are.
#[derive(Clone)]
struct Directory {
    folder: Option<Folder>,
    keep: usize,
    /// The run that the job belongs to.
    run: String,
}

impl Keeper {
    /// Looks at what is there: fills in what the job goes on from, and when it is cut.
    pub fn new(checkpoints: &Checkpoints, cluster: &mut CoordinatorConfig) -> Result<Keeper> {
        let Checkpoints { folder, every, keep, resume, storage } = checkpoints;
        let folder = folder.as_deref().map(|path| Folder::new(storage.clone(), path));
        if let Some(folder) = &folder {
            folder.make()?;
            let first = first_number(folder, resume.is_none())?;
            cluster.cuts = Some(CutPlan { every: *every, first });
        } else if every.is_some() || matches!(resume, Some(Resume::Auto | Resume::New)) {
            return Err(super::cuts::no_folder());
        }
        let falls_back = *resume == Some(Resume::Auto);
        let mut directory = Directory { folder, keep: *keep, run: String::new() };
        let found = match resume {
            None | Some(Resume::New) => None,
            Some(Resume::From(path)) => {
                let cut = Cut::open(storage, path)?;
                Some((path.file_name().and_then(|name| cut_number(name.to_str()?)).unwrap_or(0), cut))
            }
            Some(Resume::Auto) => directory.newest_at_start()?,
        };
        match found {
            Some((number, cut)) => {
                directory.run.clone_from(&cut.manifest().run);
                cluster.resumed = Some(resumed(number, &cut)?);
            }
            None => directory.run = Manifest::new_run()?,
        }
        // One commit or replacement at a time.
        Ok(Keeper { directory, falls_back, finished: unbounded(), disks: DiskThreads::new() })
    }

    /// Looks for what the job goes on from in place of cut `number`, which is damaged: an older one of its run. Without one the
    /// damage is the error.
    pub fn replace(&mut self, number: u64, damage: Error, waker: HubWaker) {
        if !self.falls_back {
            return tell(&self.finished.0, Done::Replaced(Err(damage)), &waker);
        }
        let directory = self.directory.clone();
        let look = move || Done::Replaced(directory.older(number, damage));
        self.start("wl-replace", waker, look, |error| Done::Replaced(Err(error)));
    }

    /// Removes what is left of cut `number`, which was given up, and of those before it.
    pub fn give_up(&mut self, number: u64) {
        let Some(folder) = self.directory.folder.clone() else { return };
        let spawned = self.disks.starter().start("wl-give-up", move || give_up(&folder, number));
        if let Err(error) = spawned {
            tracing::warn!("coordinator: {error}"); // the next one to go takes it along
        }
    }

    /// Writes what a checkpoint still lacks, commits it, and removes those that are not kept.
    pub fn commit(&mut self, commit: Commit, tables: Vec<TableSpec>, waker: HubWaker) {
        let (directory, number) = (self.directory.clone(), commit.number);
        let write = move || Done::Committed(number, directory.commit(&commit, tables));
        self.start("wl-commit", waker, write, |error| Done::Committed(number, Err(error.to_string())));
    }

    /// Does `work` on a thread of its own, or says with `failed` why there is none; then wakes the Coordinator.
    fn start(
        &mut self,
        name: &'static str,
        waker: HubWaker,
        work: impl FnOnce() -> Done + Send + 'static,
        failed: impl FnOnce(Error) -> Done,
    ) {
        let (finished, waking) = (self.finished.0.clone(), waker.clone());
        let work = move || {
            // Nothing that it has used is used again.
            let done = catch_unwind(AssertUnwindSafe(work));
            let panicked = |_| Done::Failed(Error::Aborted { reason: format!("{name} panicked") });
            tell(&finished, done.unwrap_or_else(panicked), &waking);
        };
        if let Err(error) = self.disks.starter().start(name, work) {
            tell(&self.finished.0, failed(error), &waker);
        }
    }

    /// Waits until its threads have ended, but for one that waits for a disk for longer than `patience`.
    pub fn join(self, patience: Duration) {
        self.disks.join(patience);
    }

    /// What has been done since it was asked last.
    pub fn done(&self) -> Option<Done> {
        self.finished.1.try_recv().ok()
    }
}

fn tell(finished: &Sender<Done>, done: Done, waker: &HubWaker) {
    // A Coordinator that is gone needs no answer, and one that can't be woken looks in time.
    let _ = finished.send(done);
    let _ = waker.wake();
}

impl Directory {
    /// The newest cut, for a job that otherwise begins anew. Where cuts were begun and none is committed, or a file of one is missing,
    /// this may be how it looked some time ago, so we look again for a while.
    fn newest_at_start(&self) -> Result<Option<(u64, Cut)>> {
        let Some(folder) = &self.folder else { return Ok(None) };
        let begun = Instant::now();
        let mut told = false;
        loop {
            let newest = self.newest(u64::MAX, None);
            let is_late = match &newest {
                Ok(None) => !folder.found()?.is_empty(),
                Err(Error::Io { source, .. }) => source.kind() == std::io::ErrorKind::NotFound,
                _ => false,
            };
            if !is_late || begun.elapsed() >= LAG {
                return newest;
            }
            if !told {
                let path = folder.path().display();
                tracing::warn!("coordinator: no cut in {path} is whole; looking again for {LAG:?}");
                told = true;
            }
            std::thread::sleep(LAG / 100);
        }
    }

    fn newest(&self, bound: u64, run: Option<&str>) -> Result<Option<(u64, Cut)>> {
        let Some(folder) = &self.folder else { return Ok(None) };
        let Latest { cut, mut flaws } = folder.latest_before(bound, run)?;
        if cut.is_none() && !flaws.is_empty() {
            // To begin anew would in time remove what somebody may still mend.
            return Err(flaws.swap_remove(0));
        }
        for flaw in flaws {
            tracing::warn!("coordinator: {flaw}; an older checkpoint is taken");
        }
        Ok(cut)
    }

    fn older(&self, number: u64, damage: Error) -> Result<Resumed> {
        match self.newest(number, Some(&self.run))? {
            Some((older, cut)) => {
                tracing::warn!("coordinator: {damage}; an older checkpoint is taken, cut {older}");
                resumed(older, &cut)
            }
            None => Err(damage),
        }
    }

    /// Commits a cut; what can't be committed is given up. The error is what the job is told.
    fn commit(&self, commit: &Commit, tables: Vec<TableSpec>) -> Result<(), String> {
        let Some(folder) = &self.folder else { return Err(super::cuts::no_folder().to_string()) };
        let number = commit.number;
        if let Err(error) = write(folder, commit, self.run.clone(), tables) {
            tracing::warn!("coordinator: cut {number}: {error}; the checkpoint before stays");
            give_up(folder, number);
            return Err(error.to_string());
        }
        if let Err(error) = folder.retain(number, self.keep, &self.run) {
            // The next one tries again.
            tracing::warn!("coordinator: old checkpoints: {error}");
        }
        Ok(())
    }
}

/// The number of the job's first cut. A job that begins anew where another run has left checkpoints was hardly meant to.
fn first_number(folder: &Folder, anew: bool) -> Result<u64> {
    let found = folder.found()?;
    if let Some(newest) = found.iter().rev().find(|found| found.committed && anew) {
        let expected = "a directory without checkpoints, or --resume auto to go on from the newest of these, or --resume new to \
                        begin anew beside them";
        return Err(Error::config("--checkpoint", expected, folder.cut(newest.number).display()));
    }
    folder.next()
}

fn resumed(number: u64, cut: &Cut) -> Result<Resumed> {
    let Manifest { clock, tables, .. } = cut.manifest().clone();
    tracing::info!("coordinator: goes on from cut {number}, clock {clock}");
    Ok(Resumed { number, clock, states: cut.states()?, tables })
}

fn give_up(folder: &Folder, number: u64) {
    if let Err(error) = folder.give_up(number) {
        // A server that has not heard of it yet may still write there.
        tracing::debug!("coordinator: cut {number}: {error}; the next one to go takes it along");
    }
}

fn write(folder: &Folder, commit: &Commit, run: String, tables: Vec<TableSpec>) -> Result<()> {
    let Commit { number, clock, states, files } = commit;
    let mut entries: Vec<FileEntry> = files
        .iter()
        .map(|file| FileEntry { name: file.name.clone(), bytes: file.bytes, digest: file.digest.clone() })
        .collect();
    entries.push(folder.write_states(*number, *clock, states)?);
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    let writer = concat!("windlass ", env!("CARGO_PKG_VERSION")).to_owned();
    let manifest =
        Manifest { writer, run, clock: *clock, workers: states.len() as u32, tables, files: entries };
    folder.commit(*number, &manifest)
}
