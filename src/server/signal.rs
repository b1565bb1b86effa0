//! SIGTERM as a wish to stop.

use signal_hook::consts::SIGTERM;
use signal_hook::iterator::Signals;

use super::{ServerHandle, spawn};
use crate::error::{Error, Result};

impl ServerHandle {
    /// As [`ServerHandle::run`], and a SIGTERM to this process means [`ServerHandle::stop`]. For a program that is a server and
    /// nothing else: afterwards SIGTERM has no effect on the process.
    pub fn run_until_sigterm(&self) -> Result<()> {
        let mut signals = Signals::new([SIGTERM]).map_err(|e| Error::io("catch", "SIGTERM", e))?;
        let end = signals.handle();
        let (stopping, waker) = (self.stopping.clone(), self.waker.clone());
        let watcher = spawn("wl-sig", move || {
            for _ in signals.forever() {
                super::ask_to_stop(&stopping, &waker);
            }
        })?;
        let outcome = self.run();
        end.close();
        // It only waits for signals, and has been told that there are no more.
        let _ = watcher.join();
        outcome
    }
}
