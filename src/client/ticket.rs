//! What an asynchronous call returns.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Inner;
use crate::error::{Error, Result};
use crate::time::Deadline;
use crate::transport::park::park;
use crate::types::Version;

/// A push or pull under way.
///
/// A push is done when it is committed: its clock has closed at every server thread that it touched (Bsp), or it was
/// applied there (Ssp, Asp). A pull is done when its values are here. Dropping a ticket cancels nothing and frees nothing
/// that a peer may still touch.
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

    /// Whether it is done. Never blocks: false, too, while another thread is inside a call that waits.
    pub fn test(&mut self) -> Result<bool> {
        let Some(id) = self.id else { return Ok(true) };
        let Some(mut engine) = self.inner.try_engine() else { return Ok(false) };
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
        let deadline = Deadline::after(Instant::now(), timeout);
        let mut idle_since = None;
        loop {
            let mut engine = self.inner.engine();
            if engine.is_done(id, true)? {
                return Ok(());
            }
            // After a failure it may be done; if it is not, `is_done` tells the failure.
            if engine.progress().unwrap_or(true) {
                idle_since = None;
                continue;
            }
            let now = Instant::now();
            if deadline.passed(now) {
                let error = Error::Timeout { waited_for: engine.describe(id), after: timeout };
                drop(engine);
                return Err(self.inner.name_laggards(error));
            }
            if engine.may_sleep(&mut idle_since, now) {
                let descriptors = engine.descriptors();
                drop(engine);
                // Short, because another thread may take what this one sleeps for.
                park(&descriptors, deadline.left(now).min(Duration::from_millis(20)))?;
                self.inner.control.shared().waker.drain();
            }
        }
    }

    /// Waits for a pull and copies its values, in the order of its keys, into `values`.
    pub fn wait_into(mut self, values: &mut [f32]) -> Result<Version> {
        self.wait()?;
        let Some(id) = self.id else {
            return Err(Error::Misuse {
                call: "wait_into",
                reason: "the values were taken already".to_owned(),
            });
        };
        let version = self.inner.engine().take(id, values)?;
        self.id = None;
        Ok(version)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(id) = self.id.take() {
            self.inner.engine().forget(id);
        }
    }
}
