//! Threads that wait for disks, so that no other thread has to: those that read and write checkpoints.
//!
//! All of them are joined where the server or the coordinator that started them ends, but for those whose disk does not answer.

use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};

use crate::error::Result;

/// The threads that were started by its [`Starter`]s.
pub struct DiskThreads {
    starter: Starter,
    started: Receiver<JoinHandle<()>>,
    /// Those that had not ended when it was looked.
    running: Vec<JoinHandle<()>>,
    ended: Receiver<()>,
}

/// Starts them.
#[derive(Clone)]
pub struct Starter {
    threads: Sender<JoinHandle<()>>,
    /// Each thread has a clone of this as long as it runs.
    running: Sender<()>,
}

impl Starter {
    /// Starts a thread; whatever it comes to, a panic too, is its own to report.
    pub fn start(&self, name: &str, body: impl FnOnce() + Send + 'static) -> Result<()> {
        let running = self.running.clone();
        let thread = super::spawn(name, move || {
            let _running = running;
            body();
        })?;
        let _ = self.threads.send(thread); // nobody joins it any more
        Ok(())
    }
}

impl DiskThreads {
    /// None yet.
    pub fn new() -> DiskThreads {
        let ((threads, started), (running, ended)) = (unbounded(), bounded(0));
        DiskThreads { starter: Starter { threads, running }, started, running: Vec::new(), ended }
    }

    /// What starts them, on any thread. Before that it lets go of those that have ended, so that a long job does not gather them.
    pub fn starter(&mut self) -> Starter {
        self.running.extend(self.started.try_iter());
        for ended in self.running.extract_if(.., |thread| thread.is_finished()) {
            let _ = ended.join(); // one that has panicked has said so
        }
        self.starter.clone()
    }

    /// Waits until all have ended, which were told to, and all starters are gone. One that waits for a disk for longer than `patience` is
    /// left to it.
    pub fn join(self, patience: Duration) {
        drop(self.starter);
        if self.ended.recv_timeout(patience) == Err(RecvTimeoutError::Timeout) {
            return tracing::warn!(
                "a disk does not answer; a thread that reads or writes a checkpoint is left behind"
            );
        }
        for thread in self.running.into_iter().chain(self.started) {
            let _ = thread.join(); // as above
        }
    }
}
