//! What an asynchronous call returns.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Inner;
use crate::error::{Error, Result};
use crate::time::Deadline;
use crate::types::Version;

/// A push or pull under way.
///
/// A push is done when it is committed: its clock has closed at every server thread that it touched (Bsp), or it was
/// applied there (Ssp, Asp). With a quorum it is done when it was folded, applied or dropped there. A pull is done when its
/// values are here. One of which pieces were rejected is done, too, and says so: [`Error::Stale`], [`Error::NonFinite`]. Of a
/// `push_pull` the pull's ticket says it, and the values can't be taken from it. Dropping a ticket cancels nothing and frees nothing that a peer may still touch.
pub struct Ticket {
    inner: Arc<Inner>,
    id: Option<usize>,
}

impl std::fmt::Debug for Ticket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ticket").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Ticket {
    pub(super) fn new(inner: Arc<Inner>, id: usize) -> Ticket {
        Ticket { inner, id: Some(id) }
    }

    pub(super) fn is_of(&self, inner: &Arc<Inner>) -> bool {
        Arc::ptr_eq(&self.inner, inner)
    }

    /// Its place in the engine; none once its values were taken.
    pub(super) fn id(&self) -> Option<usize> {
        self.id
    }

    /// Whether it is done. Never blocks: false, too, while another thread has the engine.
    pub fn test(&mut self) -> Result<bool> {
        let Some(id) = self.id else { return Ok(true) };
        let Some(mut engine) = self.inner.driver.try_engine() else { return Ok(false) };
        self.inner.driver.rouse();
        engine.flush();
        // A failure does not undo what is done; of what is not, `is_done` tells it.
        let _ = engine.progress();
        engine.is_done(id, false)
    }

    /// Blocks until it is done, at most for the client's `wait_timeout`.
    pub fn wait(&mut self) -> Result<()> {
        self.wait_timeout(self.inner.config.wait_timeout)
    }

    /// Blocks until it is done or `timeout` has passed. After a timeout it is still under way.
    pub fn wait_timeout(&mut self, timeout: Duration) -> Result<()> {
        let Some(id) = self.id else { return Ok(()) };
        let deadline = || Deadline::after(Instant::now(), timeout);
        self.inner.wait(deadline, |e| e.describe(id), |e| Ok(e.is_done(id, true)?.then_some(())))
    }

    /// Waits for a pull and copies its values, in the order of its keys, into `values`.
    pub fn wait_into(mut self, values: &mut [f32]) -> Result<Version> {
        let Some(id) = self.id else {
            return Err(Error::Misuse {
                call: "wait_into",
                reason: "the values were taken already".to_owned(),
            });
        };
        let deadline = || Deadline::after(Instant::now(), self.inner.config.wait_timeout);
        let version = self.inner.wait(
            deadline,
            |e| e.describe(id),
            |e| if e.is_done(id, true)? { e.take(id, values).map(Some) } else { Ok(None) },
        )?;
        self.id = None;
        Ok(version)
    }

    /// Waits for a pull into a registered buffer. Gives the largest version read.
    pub fn wait_version(self) -> Result<Version> {
        self.wait_into(&mut [])
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(id) = self.id.take() {
            self.inner.driver.engine().forget(id);
        }
    }
}
