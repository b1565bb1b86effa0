//! The directory that checkpoints are kept in: `DIR/cut-000007/` holds one, and its `MANIFEST` commits it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::format::{FileKind, Flaw, Header, SectionId, SectionKind};
use super::manifest::{FileEntry, Manifest};
use super::reader::Cut;
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

/// Which cuts go once `newest` is committed and `keep` are to stay: older committed ones, and what was given up before it.
pub fn to_remove(found: &[Found], newest: u64, keep: usize) -> Vec<u64> {
    let mut committed: Vec<u64> = found.iter().filter(|f| f.committed).map(|f| f.number).collect();
    committed.sort_unstable();
    let stay = committed.split_off(committed.len().saturating_sub(keep.max(1)));
    let goes = |f: &&Found| f.number < newest && !stay.contains(&f.number);
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

    /// Makes it, unless it is there, so that it lasts.
    pub fn make(&self) -> Result<()> {
        let is_missing = |path: &&Path| {
            let listed = self.storage.list(path);
            !path.as_os_str().is_empty() && listed.is_err_and(|e| e.kind() == std::io::ErrorKind::NotFound)
        };
        let missing: Vec<&Path> = self.path.ancestors().take_while(is_missing).collect();
        self.storage.make_directory(&self.path).map_err(|e| Error::io("make", self.path.display(), e))?;
        let parent = |path: &&Path| match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        missing.iter().rev().try_for_each(|path| self.sync(&parent(path)))
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
            let committed = self.names(&self.cut(number))?.iter().any(|name| name == MANIFEST);
            found.push(Found { number, committed });
        }
        found.sort_unstable_by_key(|f| f.number);
        Ok(found)
    }

    fn names(&self, path: &Path) -> Result<Vec<String>> {
        match self.storage.list(path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
            listed => listed.map_err(|e| Error::io("list", path.display(), e)),
        }
    }

    /// The newest cut that can be used, and why newer ones can't.
    pub fn latest(&self) -> Result<Latest> {
        let mut flaws = Vec::new();
        for Found { number, .. } in self.found()?.into_iter().rev().filter(|f| f.committed) {
            match Cut::open(&self.storage, &self.cut(number)) {
                Ok(cut) => return Ok(Latest { cut: Some((number, cut)), flaws }),
                Err(flaw) if is_damage(&flaw) => flaws.push(flaw),
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

    /// Removes what is not to be kept beside the committed cut `newest`.
    pub fn retain(&self, newest: u64, keep: usize) -> Result<()> {
        to_remove(&self.found()?, newest, keep).into_iter().try_for_each(|number| self.remove(number))
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
            self.storage.remove(&file).map_err(failed(&file))?;
            if place == 0 && name == MANIFEST {
                self.sync(&path)?;
            }
        }
        self.storage.remove_directory(&path).map_err(failed(&path))
    }
}

/// Whether an error says what a cut is, and not only that it could not be read now.
fn is_damage(error: &Error) -> bool {
    match error {
        Error::Checkpoint { .. } => true,
        Error::Io { source, .. } => source.kind() == std::io::ErrorKind::NotFound,
        _ => false,
    }
}
