//! Our own standard output or error: a bounded queue in front of a descriptor that may be slow or closed.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;

use crate::error::{Error, Result};

/// Children are not read while this many bytes wait here.
const ENOUGH: usize = 256 * 1024;
/// What a pipe that polls as writable takes without blocking (PIPE_BUF). The descriptor is shared with whoever
/// started us, so it must not be made non-blocking.
const WITHOUT_BLOCKING: usize = 4096;

/// Bytes on their way to one of our descriptors.
pub(super) struct Output {
    fd: OwnedFd,
    queue: Vec<u8>,
    /// How much of the queue has been written.
    written: usize,
    closed: bool,
}

impl Output {
    /// A queue in front of `stream`, past whatever buffer that has in this process.
    pub(super) fn to(stream: impl AsFd) -> Result<Output> {
        let fd = stream
            .as_fd()
            .try_clone_to_owned()
            .map_err(|e| Error::io("dup", "standard output or error", e))?;
        Ok(Output { fd, queue: Vec::new(), written: 0, closed: false })
    }

    /// What to poll for writing, while something waits.
    pub(super) fn waiting(&self) -> Option<&OwnedFd> {
        (self.written < self.queue.len()).then_some(&self.fd)
    }

    /// Whether more may be read for it.
    pub(super) fn has_room(&self) -> bool {
        self.queue.len() - self.written < ENOUGH
    }

    /// Lets `fill` append to the queue. What comes after the reader has gone is dropped.
    pub(super) fn append(&mut self, fill: impl FnOnce(&mut Vec<u8>)) {
        if self.written > 0 && self.written * 2 >= self.queue.len() {
            self.queue.drain(..self.written);
            self.written = 0;
        }
        fill(&mut self.queue);
        if self.closed {
            self.queue.clear();
        }
    }

    /// Writes one piece; to be called when the descriptor polls as writable. An error means that nobody reads any
    /// more, and comes once.
    pub(super) fn write(&mut self) -> io::Result<()> {
        let waiting = &self.queue[self.written..];
        let piece = &waiting[..waiting.len().min(WITHOUT_BLOCKING)];
        // Other threads and children write to the same terminal: stop at the end of a line if there is one.
        let length = piece.iter().rposition(|&byte| byte == b'\n').map_or(piece.len(), |end| end + 1);
        match rustix::io::write(&self.fd, &piece[..length]) {
            Ok(count) => self.written += count,
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(error) => {
                self.closed = true;
                self.queue.clear();
                self.written = 0;
                return Err(error.into());
            }
        }
        Ok(())
    }
}
