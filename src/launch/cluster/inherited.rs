//! A socket that the launcher left open for us under a number.

use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;

use crate::error::{Error, Result};

/// A duplicate of the open socket `number`, closed on exec like all of ours; the original stays as it is.
pub fn socket(number: i32, variable: &str) -> Result<UnixStream> {
    if number < 0 {
        return Err(Error::config(variable, "an open file descriptor", number));
    }
    // SAFETY: `borrow_raw` needs a descriptor that stays open while it is borrowed, here for one `dup`. The launcher opened it for
    // this process before it began, and nobody in it owns it; if it is closed after all, `dup` fails with EBADF and nothing
    // was touched.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    let owned =
        borrowed.try_clone_to_owned().map_err(|e| Error::io("dup", format!("{variable}={number}"), e))?;
    let stream = UnixStream::from(owned);
    // A file or a terminal has no time limits to set, so that a read from it could last for ever.
    stream
        .set_read_timeout(None)
        .map_err(|e| Error::io("use", format!("{variable}={number} as a socket"), e))?;
    stream.set_nonblocking(false).map_err(|e| Error::io("use", format!("{variable}={number}"), e))?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    #[test]
    fn only_open_sockets_are_taken() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        assert!(socket(ours.as_raw_fd(), "PMI_FD").is_ok());
        drop(theirs);
        let file = std::fs::File::open("/proc/self/stat").unwrap();
        assert!(socket(file.as_raw_fd(), "PMI_FD").is_err());
        for number in [-1, 1_000_000] {
            assert!(socket(number, "PMI_FD").unwrap_err().to_string().contains("PMI_FD"), "{number}");
        }
    }
}
