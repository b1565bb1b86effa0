//! What a [`Shm`](super::Shm) is told: its limits.

use std::time::Duration;

use crate::config::LinkLimits;

/// Settings of one transport over shared memory.
#[derive(Debug, Clone)]
pub struct ShmConfig {
    /// Operations that one endpoint may have queued.
    pub queue_depth: usize,
    /// Longest header + body of one write, or length of one read, in bytes; at most `u32::MAX`.
    pub max_write: usize,
    /// Bytes of its memory that one peer may show us, and we it.
    pub max_shown: usize,
    /// Connections that may wait for authentication; one more is closed.
    pub max_pending: usize,
    /// How long an accepted connection may take to authenticate itself.
    pub preamble_timeout: Duration,
    /// How long `connect` may take until `Connected`, on either side.
    pub connect_timeout: Duration,
    /// Tells this host from all others; the kernel's boot id without it.
    pub host: Option<[u8; 16]>,
}

impl ShmConfig {
    /// The defaults where `limits` say nothing.
    pub fn of(limits: &LinkLimits) -> ShmConfig {
        ShmConfig {
            queue_depth: limits.queue_depth,
            max_shown: limits.shown_bytes,
            max_pending: limits.strangers,
            preamble_timeout: limits.handshake_timeout,
            connect_timeout: limits.dial_timeout,
            ..ShmConfig::default()
        }
    }
}

impl Default for ShmConfig {
    /// 256 operations, 256 MiB per write, 64 GiB shown, 64 pending connections, 5 s to authenticate, 10 s to connect.
    fn default() -> ShmConfig {
        ShmConfig {
            queue_depth: 256,
            max_write: 256 << 20,
            max_shown: 64 << 30,
            max_pending: 64,
            preamble_timeout: Duration::from_secs(5),
            connect_timeout: Duration::from_secs(10),
            host: None,
        }
    }
}
