//! Signals as a wish to stop, or to end with a last checkpoint.

use std::thread::JoinHandle;

use signal_hook::consts::{SIGTERM, SIGUSR1};
use signal_hook::iterator::{Handle, Signals};

use super::spawn;
use crate::error::{Error, Result};

/// From now on SIGTERM no longer ends the process. None where it is ignored already: whoever started the process wanted that, as
/// `nohup` does for SIGHUP, and `windlass run` for a job that saves itself.
pub fn catch() -> Result<Option<Signals>> {
    if is_ignored(SIGTERM) {
        return Ok(None);
    }
    Signals::new([SIGTERM]).map(Some).map_err(|e| Error::io("catch", "SIGTERM", e))
}

/// As the kernel shows it: no where it doesn't.
fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask =
        status.lines().find_map(|line| u64::from_str_radix(line.strip_prefix("SigIgn:")?.trim(), 16).ok());
    mask.is_some_and(|mask| mask >> (signal - 1) & 1 == 1)
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
