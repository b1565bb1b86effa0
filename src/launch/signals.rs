//! Signals to the supervisor as bytes in sockets that the loop can poll.

use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::low_level::{pipe, unregister};
use signal_hook::{SigId, flag};

use crate::error::{Error, Result};

/// SIGCHLD only wakes the loop, but it must be caught: whoever starts us may have left it ignored, and then the
/// kernel throws the children's exit codes away.
const CAUGHT: [i32; 5] = [SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM];

/// Catches the signals while it lives; afterwards they have their usual effect again.
pub(super) struct Signals {
    sources: Vec<Source>,
    /// True once nobody reads the sockets any more.
    released: Arc<AtomicBool>,
}

struct Source {
    signal: i32,
    registered: SigId,
    socket: UnixStream,
}

impl Signals {
    pub(super) fn catch() -> Result<Signals> {
        let mut caught = Signals { sources: Vec::new(), released: Arc::new(AtomicBool::new(false)) };
        for signal in CAUGHT {
            let source =
                caught.register(signal).map_err(|e| Error::io("catch", format!("signal {signal}"), e))?;
            caught.sources.push(source);
        }
        Ok(caught)
    }

    fn register(&self, signal: i32) -> io::Result<Source> {
        let (socket, writer) = UnixStream::pair()?;
        socket.set_nonblocking(true)?;
        if signal != SIGCHLD {
            // Removing an action leaves the handler in place, which would swallow the signal for ever after.
            flag::register_conditional_default(signal, Arc::clone(&self.released))?;
        }
        Ok(Source { signal, registered: pipe::register(signal, writer)?, socket })
    }

    /// What to poll for reading.
    pub(super) fn sockets(&self) -> impl Iterator<Item = &UnixStream> {
        self.sources.iter().map(|source| &source.socket)
    }

    /// The signals that came since the last call, without SIGCHLD, as often as they came.
    pub(super) fn take(&self) -> Vec<i32> {
        let mut taken = Vec::new();
        for source in &self.sources {
            let mut bytes = [0; 64];
            while let Ok(count @ 1..) = (&source.socket).read(&mut bytes) {
                taken.extend(std::iter::repeat_n(source.signal, count));
            }
        }
        taken.retain(|&signal| signal != SIGCHLD);
        taken
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        for source in &self.sources {
            unregister(source.registered);
        }
        self.released.store(true, Ordering::SeqCst);
    }
}
