//! What the system's limits of this process have to do with a failure: the error that says which one has to be raised, and from what.

use std::fmt::Display;
use std::io;

use rustix::process::{Resource, getrlimit};

use crate::error::{Error, Result};

/// `what` can't be mapped.
pub fn unmapped(what: String, e: io::Error) -> Error {
    let said =
        getrlimit(Resource::As).current.map(|limit| format!("; RLIMIT_AS (ulimit -v) is {limit} bytes"));
    Error::io("mmap", what + said.as_deref().unwrap_or_default(), e)
}

/// There is no place for the descriptor of `what`, where that is why a call failed.
pub fn no_descriptor(what: &str, operation: &'static str, e: io::Error) -> Error {
    if e.raw_os_error() != Some(libc::EMFILE) {
        return Error::io(operation, what, e);
    }
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let resource = format!("open files (RLIMIT_NOFILE; raise it with ulimit -n or LimitNOFILE=), for {what}");
    Error::Limit { resource, limit, asked: limit.saturating_add(1) }
}

/// Refuses a file of more bytes than this process may write: to try it is answered by SIGXFSZ, which kills.
pub fn check_file(what: &dyn Display, bytes: u64) -> Result<()> {
    match getrlimit(Resource::Fsize).current {
        Some(limit) if bytes > limit => Err(Error::Limit {
            resource: format!("bytes of {what} (RLIMIT_FSIZE; raise it with ulimit -f or LimitFSIZE=)"),
            limit,
            asked: bytes,
        }),
        _ => Ok(()),
    }
}
