//! What a server's control thread knows of cuts: which threads have answered, and which files are written.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::cut::Written;
use crate::checkpoint::{Cut, Disk, Storage, cut_name};
use crate::error::{Error, Result};
use crate::proto::control::{ControlMessage, WrittenFile, reason};
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
        if number != self.number || self.unwritten == 0 {
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

/// Why a server can take no part in checkpoints.
pub fn no_folder() -> Error {
    Error::config("--checkpoint", "the directory of this job's checkpoints", "nothing")
}

/// A directory as a setting gives it.
pub fn folder(text: Option<&str>) -> Option<PathBuf> {
    text.map(|text| Path::new(text).to_owned())
}
