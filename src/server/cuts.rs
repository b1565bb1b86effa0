//! What a server's control thread knows of cuts: which threads have answered, and which files are written.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::cut::Written;
use super::disks::Starter;
use super::reactor::{Report, Reports};
use crate::checkpoint::{Cut, Disk, Storage, cut_name};
use crate::error::{Error, Result};
use crate::proto::control::{ControlMessage, Damage, WrittenFile, reason};
use crate::types::Clock;

/// Where checkpoints are.
#[derive(Debug, Clone)]
pub struct Places {
    /// New ones go there.
    pub folder: Option<PathBuf>,
    /// The job goes on from this one, where it is not one of `folder`.
    pub resume: Option<PathBuf>,
    /// What both are on.
    pub storage: Arc<dyn Storage>,
}

impl Default for Places {
    fn default() -> Places {
        Places { folder: None, resume: None, storage: Arc::new(Disk) }
    }
}

impl Places {
    /// The directory of cut `number`.
    pub fn of(&self, number: u64) -> Option<PathBuf> {
        self.folder.as_deref().map(|folder| folder.join(cut_name(number)))
    }

    /// Opens the cut that the job goes on from.
    fn open(&self, number: u64) -> Result<Cut> {
        let path = self.resume.clone().or_else(|| self.of(number)).ok_or_else(no_folder)?;
        Cut::open(&self.storage, &path)
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

/// The reading of a server's part of the cut that the job is to go on from. It ends when it is dropped.
///
/// All of it is done by threads of its own: a cut of many files on a slow disk may take longer to open than a silence that makes a
/// node pass for dead.
pub struct Verifying {
    number: u64,
    /// Once it is read, and whole.
    cut: Option<Arc<Cut>>,
    go_on: Arc<AtomicBool>,
}

impl Verifying {
    /// Starts to read a part with so many threads; what they find is reported once.
    pub fn start(
        places: &Places,
        number: u64,
        part: (u32, u32),
        threads: u32,
        reporter: &Reports,
        disks: &Starter,
    ) -> Result<Verifying> {
        let go_on = Arc::new(AtomicBool::new(true));
        let (places, reporter, told) = (places.clone(), reporter.clone(), go_on.clone());
        disks.start("wl-verify", move || {
            let read = |cut: &Cut| verify(cut, part, threads, &told);
            let outcome = places.open(number).and_then(|cut| read(&cut).map(|()| Arc::new(cut)));
            reporter.send(Report::Verified(number, outcome));
        })?;
        Ok(Verifying { number, cut: None, go_on })
    }

    /// It has ended. Gives what the Coordinator is to be told; the error is one that says nothing of the cut.
    pub fn ended(&mut self, number: u64, outcome: Result<Arc<Cut>>) -> Result<Option<ControlMessage>> {
        if number != self.number {
            return Ok(None);
        }
        let damage = match outcome {
            Ok(cut) => {
                self.cut = Some(cut);
                None
            }
            Err(Error::Checkpoint { file, section, offset, expected, found }) => Some(Damage {
                file: reason(file),
                section: reason(section),
                offset,
                expected: reason(expected),
                found: reason(found),
            }),
            Err(error) => return Err(error),
        };
        Ok(Some(ControlMessage::Verified { number, damage }))
    }

    /// Cut `number`, if it was read and is whole.
    pub fn whole(&self, number: u64) -> Option<Arc<Cut>> {
        self.cut.clone().filter(|_| number == self.number)
    }
}

/// Reads one of `of` parts of a cut with so many threads; all end soon after one has found a reason.
fn verify(cut: &Cut, (part, of): (u32, u32), threads: u32, go_on: &AtomicBool) -> Result<()> {
    let read = |thread: u32| {
        // Saturating: a Coordinator that asks for nonsense gets less read.
        let part = (part.saturating_mul(threads).saturating_add(thread), of.saturating_mul(threads));
        let outcome = cut.verify_part(part, || go_on.load(Ordering::Relaxed));
        if outcome.is_err() {
            go_on.store(false, Ordering::Relaxed);
        }
        outcome
    };
    std::thread::scope(|scope| {
        let start = |thread| {
            let named = std::thread::Builder::new().name("wl-verify".to_owned());
            let started = named.spawn_scoped(scope, move || read(thread));
            started.map_err(|e| {
                // Those that were started need not read on.
                go_on.store(false, Ordering::Relaxed);
                Error::io("start thread", "wl-verify", e)
            })
        };
        let others = (1..threads).map(start).collect::<Result<Vec<_>>>()?;
        let joined = others.into_iter().map(|other| match other.join() {
            Ok(outcome) => outcome,
            Err(panic) => std::panic::resume_unwind(panic), // the report says so
        });
        std::iter::once(read(0)).chain(joined).fold(Ok(()), Result::and)
    })
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
