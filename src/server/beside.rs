//! Tables that take long to make: of large ones the memory is taken from the system, put onto huge pages and filled. That is done on a
//! thread of its own, one table at a time, so that the server thread goes on with the other tables. It inherits that one's CPU, and so its
//! memory the place next to it.
//!
//! Other tables wait here meanwhile, since each takes its part of what the ones before have left. A cut does not: it lacks a table to which
//! nobody can have pushed, and a job that goes on from it begins that one anew.

use std::collections::VecDeque;
use std::thread::JoinHandle;

use crossbeam::channel::{Receiver, Sender, bounded};

use super::reactor::Reports;
use crate::error::Result;
use crate::store::{Made, Making};
use crate::transport::park::Waker;
use crate::types::{TableId, TableSpec};

/// Bytes of a table that are made at once, in about 0.2 s.
const AT_ONCE: u64 = 64 << 20;

/// A table, or why it can't be made.
type Done = (TableId, Result<Made>);

/// See the module's head. It ends with its thread.
pub struct Beside {
    thread: Option<JoinHandle<()>>,
    done: (Sender<Done>, Receiver<Done>),
    held: VecDeque<(TableId, TableSpec)>,
}

impl Beside {
    /// Nothing is made, and nothing waits.
    pub fn new() -> Beside {
        Beside { thread: None, done: bounded(1), held: VecDeque::new() }
    }

    /// Whether a table is to be made here.
    pub fn takes(making: &Making) -> bool {
        making.bytes() > AT_ONCE
    }

    /// Starts to make a table, while none is made; then `waker` is woken. A panic is reported.
    pub fn start(&mut self, id: TableId, making: Making, waker: &Waker, reports: &Reports) -> Result<()> {
        let (done, waker, reports) = (self.done.0.clone(), waker.clone(), reports.clone());
        self.thread = Some(super::spawn("wl-table", move || {
            let _reports = reports;
            let _ = done.send((id, making.make())); // the server thread joins this one before it goes
            waker.wake();
        })?);
        Ok(())
    }

    /// Whether a table is being made.
    pub fn is_busy(&self) -> bool {
        self.thread.is_some()
    }

    /// The table that has been made.
    pub fn finished(&mut self) -> Option<Done> {
        let done = self.done.1.try_recv().ok()?;
        self.join();
        Some(done)
    }

    fn join(&mut self) {
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // one that has panicked has said so
        }
    }

    /// Keeps a table that is to be made until no other is.
    pub fn hold(&mut self, id: TableId, spec: TableSpec) {
        self.held.push_back((id, spec));
    }

    /// The next that was held, if nothing keeps it any more.
    pub fn next_held(&mut self) -> Option<(TableId, TableSpec)> {
        if self.is_busy() { None } else { self.held.pop_front() }
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        self.join();
    }
}
