//! The directory that checkpoints are kept in: `DIR/cut-000007/` holds one, and its `MANIFEST` commits it.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::format::{FileKind, Flaw, Header, SectionId, SectionKind};
use super::manifest::{FileEntry, Manifest};
use super::reader::{Cut, read_manifest};
use super::storage::Storage;
use super::writer::FileWriter;
use crate::error::{Error, Result};
use crate::types::{Clock, ShardId};

/// The name of what commits a cut.
pub const MANIFEST: &str = "MANIFEST";
/// The name of the file with the workers' states.
pub const WORKERS: &str = "workers";

/// The name of cut `number`.
pub fn cut_name(number: u64) -> String {
    format!("cut-{number:06}")
}

/// The inverse of [`cut_name`].
pub fn cut_number(name: &str) -> Option<u64> {
    let number = name.strip_prefix("cut-")?.parse().ok()?;
    (cut_name(number) == name).then_some(number)
}

/// The name of the file of a server thread.
pub fn shard_name(shard: ShardId) -> String {
    format!("shard-{:04}-{:03}", shard.server, shard.thread)
}

/// A cut that is there, whole or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// Cuts are numbered in the order in which they were begun.
    pub number: u64,
    /// It has a manifest.
    pub committed: bool,
}

/// How a committed cut counts when it is decided which ones stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It can be used, as far as can be seen without reading its sections.
    Whole,
    /// It is of this run, and damaged.
    Flawed,
    /// It is of another run, or can't be read now: not ours to remove.
    Foreign,
}

/// Which cuts go once `newest` is committed and `keep` whole ones are to stay: those of this run that are older than these, and what
/// was given up before `newest`.
pub fn to_remove(found: &[Found], newest: u64, keep: usize, standing: impl Fn(u64) -> Standing) -> Vec<u64> {
    let judge = |f: &Found| (f.number, if f.number == newest { Standing::Whole } else { standing(f.number) });
    let mut committed: Vec<(u64, Standing)> = found.iter().filter(|f| f.committed).map(judge).collect();
    committed.sort_unstable_by_key(|(number, _)| *number);
    let mut whole = committed.iter().rev().filter(|(_, standing)| *standing == Standing::Whole);
    let oldest = whole.nth(keep.max(1) - 1).map_or(0, |(number, _)| *number);
    let goes = |f: &&Found| match f.committed {
        true => {
            let ours = !committed.contains(&(f.number, Standing::Foreign));
            ours && f.number < oldest && f.number < newest
        }
        false => f.number < newest,
    };
    found.iter().filter(goes).map(|f| f.number).collect()
}

/// What there is to go on from.
pub struct Latest {
    /// The newest cut that can be used, with its number.
    pub cut: Option<(u64, Cut)>,
    /// Why newer ones can't.
    pub flaws: Vec<Error>,
}

/// A directory of checkpoints.
#[derive(Clone)]
pub struct Folder {
    storage: Arc<dyn Storage>,
    path: PathBuf,
}

impl Folder {
    /// The directory `path`, which need not be there yet.
    pub fn new(storage: Arc<dyn Storage>, path: &Path) -> Folder {
        Folder { storage, path: path.to_owned() }
    }

    /// Makes it, unless it is there, so that it lasts. Gives the directories that were missing, the innermost first.
    pub fn make(&self) -> Result<Vec<&Path>> {
        let is_missing = |path: &&Path| {
            let listed = self.storage.list(path);
            !path.as_os_str().is_empty() && listed.is_err_and(|e| e.kind() == ErrorKind::NotFound)
        };
        let missing: Vec<&Path> = self.path.ancestors().take_while(is_missing).collect();
        let parent = |path: &&Path| match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        let made = self.storage.make_directory(&self.path);
        let made = made.map_err(|e| Error::io("make", self.path.display(), e));
        let lasting = made.and_then(|()| missing.iter().rev().try_for_each(|path| self.sync(&parent(path))));
        if lasting.is_err() {
            self.remove_empty(&missing);
        }
        lasting.map(|()| missing)
    }

    /// Adds a cut that `write` makes and commits as the number, and in the folder, that it is given: one of its own, so that a job that
    /// has cuts here under way can neither lose any of them nor write into this one. Gives its number here, behind all that were begun.
    /// Where that fails nothing of it is left, but what can't be removed.
    pub fn add(&self, write: impl FnOnce(&Folder, u64) -> Result<()>) -> Result<u64> {
        const ALONE: u64 = 1;
        let made = self.make()?;
        let name = format!("import-{}", Manifest::new_run()?);
        let draft = Folder::new(self.storage.clone(), &self.path.join(name));
        let added = write(&draft, ALONE).and_then(|()| self.take(&draft.cut(ALONE)));
        let _ = draft.remove(ALONE); // it is there only when that has failed
        self.remove_empty(&[draft.path()]);
        if added.is_err() {
            self.remove_empty(&made);
        }
        added
    }

    /// Makes a committed cut one of this folder's, under the first number behind all of them that nobody has taken.
    fn take(&self, cut: &Path) -> Result<u64> {
        let mut number = self.next()?;
        loop {
            let to = self.cut(number);
            // One that is there is a job's, although nothing may be in it yet.
            match self.storage.rename_new(cut, &to) {
                Ok(()) => break,
                Err(e) if matches!(e.kind(), ErrorKind::AlreadyExists | ErrorKind::DirectoryNotEmpty) => {
                    number = self.behind(number)?;
                }
                Err(e) => return Err(Error::io("rename", to.display(), e)),
            }
        }
        let lasting = self.sync(&self.path);
        if lasting.is_err() {
            let _ = self.remove(number);
        }
        lasting.map(|()| number)
    }

    /// The number behind all cuts that were begun.
    pub fn next(&self) -> Result<u64> {
        self.behind(self.found()?.last().map_or(0, |newest| newest.number))
    }

    fn behind(&self, number: u64) -> Result<u64> {
        number.checked_add(1).ok_or_else(|| {
            Error::config(
                self.cut(number).display().to_string(),
                "a cut with a number below 2^64 - 1",
                number,
            )
        })
    }

    fn remove_empty(&self, directories: &[&Path]) {
        for path in directories {
            let _ = self.storage.remove_directory(path); // it may not have been made, or be in use
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it is on.
    pub fn storage(&self) -> &Arc<dyn Storage> {
        &self.storage
    }

    /// Where cut `number` is.
    pub fn cut(&self, number: u64) -> PathBuf {
        self.path.join(cut_name(number))
    }

    /// The cuts that are there, oldest first; none where the directory is not there.
    pub fn found(&self) -> Result<Vec<Found>> {
        let mut found = Vec::new();
        for number in self.names(&self.path)?.iter().filter_map(|name| cut_number(name)) {
            let cut = self.cut(number);
            let committed = self.names(&cut)?.iter().any(|name| name == MANIFEST)
                || self.is_there(&cut.join(MANIFEST))?;
            found.push(Found { number, committed });
        }
        found.sort_unstable_by_key(|f| f.number);
        Ok(found)
    }

    /// Whether a file is there that is not listed: NFS looks up a name anew where it lists a directory from memory.
    fn is_there(&self, path: &Path) -> Result<bool> {
        match self.storage.open(path) {
            Ok(_) => Ok(true),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(false),
            Err(e) => Err(Error::io("open", path.display(), e)),
        }
    }

    fn names(&self, path: &Path) -> Result<Vec<String>> {
        match self.storage.list(path) {
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(Vec::new()),
            listed => listed.map_err(|e| Error::io("list", path.display(), e)),
        }
    }

    /// The newest cut that can be used, as far as can be seen without its parameters, and why newer ones can't.
    pub fn latest(&self) -> Result<Latest> {
        self.latest_before(u64::MAX, None)
    }

    /// The same of the cuts before `bound`, and of this run where it is known. It is, once a manifest could be read: the cut of
    /// another run is nothing to fall back on.
    pub fn latest_before(&self, bound: u64, run: Option<&str>) -> Result<Latest> {
        let (mut flaws, mut run) = (Vec::new(), run.map(str::to_owned));
        for Found { number, .. } in
            self.found()?.into_iter().rev().filter(|f| f.committed && f.number < bound)
        {
            let path = self.cut(number);
            match Cut::open(&self.storage, &path).and_then(|cut| cut.states().map(|_| cut)) {
                Ok(cut) if run.as_ref().is_some_and(|run| *run != cut.manifest().run) => {}
                Ok(cut) => return Ok(Latest { cut: Some((number, cut)), flaws }),
                Err(flaw) if is_damage(&flaw) => {
                    let theirs = read_manifest(self.storage.as_ref(), &path).map(|manifest| manifest.run);
                    run = run.or(theirs.ok());
                    flaws.push(flaw);
                }
                // The cut may be well, and what keeps us from it may pass: to begin without it would throw it away.
                Err(error) => return Err(error),
            }
        }
        Ok(Latest { cut: None, flaws })
    }

    /// Makes the directory of a cut, for whoever writes into it first.
    pub fn begin(&self, number: u64) -> Result<PathBuf> {
        let path = self.cut(number);
        self.storage.make_directory(&path).map_err(|e| Error::io("make", path.display(), e))?;
        Ok(path)
    }

    /// Writes the workers' states, by rank.
    pub fn write_states(&self, number: u64, clock: Clock, states: &[Vec<u8>]) -> Result<FileEntry> {
        let header = Header { kind: FileKind::Workers, clock, shard: ShardId { server: 0, thread: 0 } };
        let mut file = FileWriter::create(self.storage.clone(), &self.begin(number)?.join(WORKERS), header)?;
        for (rank, state) in (0..).zip(states) {
            file.section(SectionId { kind: SectionKind::Worker, table: 0, bucket: rank }, 0, state)?;
        }
        file.finish()
    }

    /// Commits a cut of which all files are written: from the moment that its manifest has its name it is the newest one.
    pub fn commit(&self, number: u64, manifest: &Manifest) -> Result<()> {
        let path = self.begin(number)?.join(MANIFEST);
        let Some(text) = manifest.to_json() else {
            let expected = "specs that can be written as JSON";
            return Err(Flaw::new("manifest", 0, expected, "a value that is not finite").of(path.display()));
        };
        // The name of the cut's directory has to last before what makes it count.
        self.sync(&self.path)?;
        let shard = ShardId { server: 0, thread: 0 };
        let header = Header { kind: FileKind::Manifest, clock: manifest.clock, shard };
        let mut file = FileWriter::create(self.storage.clone(), &path, header)?;
        file.section(SectionId::whole(SectionKind::Manifest), 0, text.as_bytes())?;
        file.finish().map(drop)
    }

    fn sync(&self, path: &Path) -> Result<()> {
        self.storage.sync_directory(path).map_err(|e| Error::io("sync", path.display(), e))
    }

    /// Removes what is not to be kept beside the committed cut `newest` of this run.
    pub fn retain(&self, newest: u64, keep: usize, run: &str) -> Result<()> {
        self.remove_all(to_remove(&self.found()?, newest, keep, |number| self.standing(number, run)))
    }

    /// Removes what is left of cuts that were given up, up to this number: on a full disk it would fail the next one, too.
    pub fn give_up(&self, last: u64) -> Result<()> {
        let given_up = self.found()?.into_iter().filter(|found| !found.committed && found.number <= last);
        self.remove_all(given_up.map(|found| found.number).collect())
    }

    fn standing(&self, number: u64, run: &str) -> Standing {
        match read_manifest(self.storage.as_ref(), &self.cut(number)) {
            Ok(manifest) if manifest.run == run => match Cut::open(&self.storage, &self.cut(number)) {
                Ok(_) => Standing::Whole,
                Err(flaw) if is_damage(&flaw) => Standing::Flawed,
                Err(_) => Standing::Foreign,
            },
            _ => Standing::Foreign,
        }
    }

    /// Removes as many as can be; the error is the first one's.
    fn remove_all(&self, numbers: Vec<u64>) -> Result<()> {
        numbers.into_iter().map(|number| self.remove(number)).fold(Ok(()), Result::and)
    }

    /// Removes a cut: its manifest first, so that what is left of it counts for nothing.
    pub fn remove(&self, number: u64) -> Result<()> {
        let path = self.cut(number);
        let failed = |path: &Path| {
            let shown = path.display().to_string();
            move |e| Error::io("remove", shown, e)
        };
        let mut names = self.names(&path)?;
        names.sort_by_key(|name| name != MANIFEST);
        for (place, name) in names.iter().enumerate() {
            let file = path.join(name);
            match self.storage.remove(&file) {
                // A writer that was told to give up has removed it itself.
                Err(e) if e.kind() == ErrorKind::NotFound => {}
                removed => removed.map_err(failed(&file))?,
            }
            if place == 0 && name == MANIFEST {
                self.sync(&path)?;
            }
        }
        match self.storage.remove_directory(&path) {
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
            removed => removed.map_err(failed(&path)),
        }
    }
}

/// Whether an error says what a cut is, and not only that it could not be read now.
fn is_damage(error: &Error) -> bool {
    match error {
        Error::Checkpoint { .. } => true,
        Error::Io { source, .. } => source.kind() == ErrorKind::NotFound,
        _ => false,
    }
}
