//! How TCP sockets that carry data are set up.

use std::ops::RangeInclusive;

use super::rdma::Switch;
use super::{Environment, settings};
use crate::error::Result;

/// Settings of the sockets of the transport `tcp`; the defaults leave to the kernel what it tunes itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sockets {
    /// Whether the kernel sends long bodies from where they lie (MSG_ZEROCOPY) to peers on other hosts. It pays where the card
    /// gathers and checksums; the kernel then counts the pages against RLIMIT_MEMLOCK.
    pub zerocopy: Switch,
    /// Microseconds for which a call that finds nothing asks the card's queue itself (SO_BUSY_POLL); 0 for not at all.
    pub busy_poll: u32,
    /// Bytes of each socket's send and receive buffer (SO_SNDBUF, SO_RCVBUF); `None` leaves them to the kernel, which lets them grow.
    pub buffer: Option<u32>,
}

impl Sockets {
    /// Microseconds that `busy_poll` may be.
    pub const BUSY_POLL: RangeInclusive<u64> = 0..=100_000;
    /// Bytes that `buffer` may be.
    pub const BUFFER: RangeInclusive<u64> = 4 << 10..=1 << 30;

    /// What the settings say.
    pub fn from_environment(environment: &Environment) -> Result<Sockets> {
        // The table's bounds make each fit.
        Ok(Sockets {
            zerocopy: environment.parsed(&settings::TCP_ZEROCOPY)?,
            busy_poll: environment.number(&settings::TCP_BUSY_POLL)? as u32,
            buffer: environment.choice(&settings::TCP_BUFFER)?.map(|bytes| bytes as u32),
        })
    }
}
