//! SIGTERM as a wish to stop.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread::JoinHandle;

use signal_hook::consts::SIGTERM;
use signal_hook::iterator::{Handle, Signals};

use super::{ask_to_stop, spawn};
use crate::control::HubWaker;
use crate::error::{Error, Result};

/// From now on SIGTERM no longer ends the process.
pub fn catch() -> Result<Signals> {
    Signals::new([SIGTERM]).map_err(|e| Error::io("catch", "SIGTERM", e))
}

/// Passes SIGTERM on to a server while it lives.
#[derive(Debug)]
pub struct Watcher {
    signals: Handle,
    thread: Option<JoinHandle<()>>,
}

impl Watcher {
    /// Passes on what `signals` caught, and will catch.
    pub fn start(mut signals: Signals, stopping: Arc<AtomicBool>, waker: HubWaker) -> Result<Watcher> {
        let handle = signals.handle();
        let thread = spawn("wl-sig", move || {
            for _ in signals.forever() {
                ask_to_stop(&stopping, &waker);
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
