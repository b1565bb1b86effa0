//! Signals as a wish to stop, or to end with a last checkpoint.

use std::thread::JoinHandle;

use signal_hook::consts::{SIGTERM, SIGUSR1};
use signal_hook::iterator::{Handle, Signals};

use super::spawn;
use crate::error::{Error, Result};

/// From now on SIGTERM no longer ends the process.
pub fn catch() -> Result<Signals> {
    Signals::new([SIGTERM]).map_err(|e| Error::io("catch", "SIGTERM", e))
}

/// From now on neither SIGTERM nor SIGUSR1 ends the process.
pub fn catch_end() -> Result<Signals> {
    Signals::new([SIGTERM, SIGUSR1]).map_err(|e| Error::io("catch", "SIGTERM and SIGUSR1", e))
}

/// Passes signals on while it lives.
#[derive(Debug)]
pub struct Watcher {
    signals: Handle,
    thread: Option<JoinHandle<()>>,
}

impl Watcher {
    /// Calls `act` for each that `signals` caught, and will catch.
    pub fn start(mut signals: Signals, act: impl Fn() + Send + 'static) -> Result<Watcher> {
        let handle = signals.handle();
        let thread = spawn("wl-sig", move || {
            for _ in signals.forever() {
                act();
            }
        })?;
        Ok(Watcher { signals: handle, thread: Some(thread) })
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.signals.close();
        if let Some(thread) = self.thread.take() {
            // It only waits for signals, and has been told that there are no more.
            let _ = thread.join();
        }
    }
}
