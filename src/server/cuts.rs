//! What a server's control thread knows of cuts: which threads have answered, and which files are written.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::cut::Written;
use super::reactor::{Report, Reports};
use crate::checkpoint::{Cut, Disk, Storage, cut_name};
use crate::error::{Error, Result};
use crate::proto::control::{ControlMessage, Damage, WrittenFile, reason};
use crate::types::Clock;

/// Where checkpoints are.
#[derive(Debug, Clone, Default)]
pub struct Places {
    /// New ones go there.
    pub folder: Option<PathBuf>,
    /// The job goes on from this one, where it is not one of `folder`.
    pub resume: Option<PathBuf>,
}

impl Places {
    /// The directory of cut `number`.
    pub fn of(&self, number: u64) -> Option<PathBuf> {
        self.folder.as_deref().map(|folder| folder.join(cut_name(number)))
    }

    /// Opens the cut that the job goes on from.
    pub fn open(&self, number: u64) -> Result<Arc<Cut>> {
        let Some(path) = self.resume.clone().or_else(|| self.of(number)) else {
            return Err(no_folder());
        };
        let storage: Arc<dyn Storage> = Arc::new(Disk);
        Cut::open(&storage, &path).map(Arc::new)
    }
}

/// The cut under way.
#[derive(Default)]
pub struct Cuts {
    number: u64,
    /// Threads that have not answered, and the furthest that one has come.
    unanswered: usize,
    passed: Option<Clock>,
    unwritten: usize,
    files: Vec<WrittenFile>,
}

impl Cuts {
    /// A cut is asked of so many threads.
    pub fn begin(&mut self, number: u64, threads: usize) {
        *self = Cuts { number, unanswered: threads, passed: None, unwritten: threads, files: Vec::new() };
    }

    /// The cut is given up.
    pub fn cancel(&mut self, number: u64) {
        if number == self.number {
            *self = Cuts::default();
        }
    }

    /// Whether this cut is under way.
    pub fn is_pending(&self, number: u64) -> bool {
        number == self.number && self.unwritten > 0
    }

    /// A thread answered. Gives what the Coordinator is to be told when all have.
    pub fn answered(&mut self, number: u64, answer: Result<(), Clock>) -> Option<ControlMessage> {
        if number != self.number || self.unanswered == 0 {
            return None;
        }
        self.unanswered -= 1;
        self.passed = self.passed.max(answer.err());
        (self.unanswered == 0).then_some(ControlMessage::CutAnswer { number, passed: self.passed })
    }

    /// A thread's file is written, or can't be. Gives what the Coordinator is to be told.
    pub fn written(&mut self, number: u64, written: Written) -> Option<ControlMessage> {
        if !self.is_pending(number) {
            return None;
        }
        match written {
            Ok(file) => {
                self.files.push(WrittenFile { name: file.name, bytes: file.bytes, digest: file.digest });
                self.unwritten -= 1;
                (self.unwritten == 0)
                    .then(|| ControlMessage::CutWritten { number, files: std::mem::take(&mut self.files) })
            }
            Err(error) => {
                self.unwritten = 0;
                self.unanswered = 0;
                Some(ControlMessage::CutFailed { number, reason: reason(error.to_string()) })
            }
        }
    }
}

/// Threads that read a server's part of the cut that the job is to go on from. They end when it is dropped.
pub struct Verifying {
    /// The cut.
    pub number: u64,
    unread: u32,
    damage: Option<Damage>,
    go_on: Arc<AtomicBool>,
}

impl Verifying {
    /// Starts so many threads, each for a part of the part; each reports.
    pub fn start(
        places: &Places,
        number: u64,
        (part, of): (u32, u32),
        threads: u32,
        reporter: &Reports,
    ) -> Result<Verifying> {
        let cut = places.open(number)?;
        let verifying =
            Verifying { number, unread: threads, damage: None, go_on: Arc::new(AtomicBool::new(true)) };
        for thread in 0..threads {
            let (cut, go_on, reporter) = (cut.clone(), verifying.go_on.clone(), reporter.clone());
            // Saturating: a Coordinator that asks for nonsense gets less read.
            let part = (part.saturating_mul(threads).saturating_add(thread), of.saturating_mul(threads));
            super::spawn("wl-verify", move || {
                let outcome = cut.verify_part(part, || go_on.load(Ordering::Relaxed));
                reporter.send(Report::Verified(number, outcome));
            })?;
        }
        Ok(verifying)
    }

    /// A thread has ended. Gives what the Coordinator is to be told when all have; the error is one that says nothing of the cut.
    pub fn ended(&mut self, outcome: Result<()>) -> Result<Option<ControlMessage>> {
        match outcome {
            Ok(()) => {}
            Err(Error::Checkpoint { file, section, offset, expected, found }) => {
                let damage = Damage {
                    file: reason(file),
                    section: reason(section),
                    offset,
                    expected: reason(expected),
                    found: reason(found),
                };
                self.damage.get_or_insert(damage);
            }
            Err(error) => return Err(error),
        }
        self.unread = self.unread.saturating_sub(1);
        let number = self.number;
        Ok((self.unread == 0).then(|| ControlMessage::Verified { number, damage: self.damage.take() }))
    }
}

impl Drop for Verifying {
    fn drop(&mut self) {
        self.go_on.store(false, Ordering::Relaxed);
    }
}

/// Why a server can take no part in checkpoints.
pub fn no_folder() -> Error {
    Error::config("--checkpoint", "the directory of this job's checkpoints", "nothing")
}

/// A directory as a setting gives it.
pub fn folder(text: Option<&str>) -> Option<PathBuf> {
    text.map(|text| Path::new(text).to_owned())
}
