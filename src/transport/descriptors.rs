//! How many files and sockets this process may have open.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Far more than the most links that one process takes, and few enough for programs that close all that there could be.
const MOST: u64 = 1 << 16;

/// Takes as many as it may have: a server of 512 workers holds over 1024 sockets, and that is the usual soft limit.
pub fn allow_many() {
    let limit = getrlimit(Resource::Nofile);
    let wanted = limit.maximum.map_or(MOST, |most| most.min(MOST));
    if limit.current.is_some_and(|current| current < wanted)
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), ..limit })
    {
        tracing::info!("the limit of open files stays at {:?}: {error}", limit.current);
    }
}
