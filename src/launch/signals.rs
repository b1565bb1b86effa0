//! Signals to the supervisor as bytes in sockets that the loop can poll.

use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1};
use signal_hook::low_level::{pipe, unregister};
use signal_hook::{SigId, flag};

use crate::error::{Error, Result};

/// SIGCHLD only wakes the loop, but it must be caught: whoever starts us may have left it ignored, and then the
/// kernel throws the children's exit codes away.
const CAUGHT: [i32; 6] = [SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1];

/// Catches the signals while it lives; afterwards they have their usual effect again.
pub(super) struct Signals {
    sources: Vec<Source>,
    _usual: NotUsual,
}

struct Source {
    signal: i32,
    registered: SigId,
    socket: UnixStream,
}

impl Signals {
    pub(super) fn catch() -> Result<Signals> {
        let failed = |signal: i32| move |e| Error::io("catch", format!("signal {signal}"), e);
        let mut caught = Signals { sources: Vec::new(), _usual: NotUsual::begin().map_err(failed(SIGTERM))? };
        for signal in CAUGHT {
            caught.sources.push(register(signal).map_err(failed(signal))?);
        }
        Ok(caught)
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
    }
}

fn register(signal: i32) -> io::Result<Source> {
    let (socket, writer) = UnixStream::pair()?;
    socket.set_nonblocking(true)?;
    Ok(Source { signal, registered: pipe::register(signal, writer)?, socket })
}

/// Keeps the signals from their usual effect while it lives.
///
/// Removing the last action for a signal leaves a handler in place that does nothing, so without this SIGTERM would
/// be without effect after the first tree. Handlers belong to the process, hence the statics.
struct NotUsual;

/// How many [`NotUsual`] there are, and the flag that says to the handler that there are none.
static HOLDERS: Mutex<usize> = Mutex::new(0);
static USUAL: OnceLock<Arc<AtomicBool>> = OnceLock::new();

impl NotUsual {
    fn begin() -> io::Result<NotUsual> {
        let mut holders = HOLDERS.lock().unwrap_or_else(PoisonError::into_inner);
        match USUAL.get() {
            Some(usual) => usual.store(false, Ordering::SeqCst),
            None => {
                let usual = USUAL.get_or_init(Arc::default);
                for signal in CAUGHT.into_iter().filter(|&signal| signal != SIGCHLD) {
                    flag::register_conditional_default(signal, Arc::clone(usual))?;
                }
            }
        }
        *holders += 1;
        Ok(NotUsual)
    }
}

impl Drop for NotUsual {
    fn drop(&mut self) {
        let mut holders = HOLDERS.lock().unwrap_or_else(PoisonError::into_inner);
        *holders -= 1;
        if let Some(usual) = USUAL.get().filter(|_| *holders == 0) {
            usual.store(true, Ordering::SeqCst);
        }
    }
}
