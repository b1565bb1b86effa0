//! What all means of a launcher come to: a board on which each task puts values, which all can read behind a fence.

use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::time::Deadline;

/// A session with the launcher's key-value store. Every call ends by the deadline with which it was begun.
pub trait Board {
    /// This task.
    fn rank(&self) -> u32;

    /// How many tasks there are.
    fn size(&self) -> u32;

    /// Puts a value of this task; others see it behind the next fence. No white space.
    fn put(&mut self, key: &str, value: &str) -> Result<()>;

    /// Waits until all tasks are here.
    fn fence(&mut self) -> Result<()>;

    /// The value that task `rank` put before the last fence.
    fn get(&mut self, rank: u32, key: &str) -> Result<String>;

    /// Takes leave of the launcher.
    fn finish(self: Box<Self>) -> Result<()>;
}

/// What is left until a deadline, at least a moment; a timeout for `waited_for` once it has passed.
pub fn left(deadline: Deadline, waited_for: impl FnOnce() -> String) -> Result<Duration> {
    let left = deadline.left(Instant::now());
    if left.is_zero() {
        return Err(Error::Timeout { waited_for: waited_for(), after: deadline.given() });
    }
    Ok(left.max(Duration::from_millis(1)))
}
