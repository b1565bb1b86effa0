//! The limits that settings give, as the layers above take them.

use std::time::Duration;

use super::Environment;
use super::settings::{self, Setting};
use crate::error::Result;

/// Bounds of a server's memory and patience.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServerLimits {
    /// Slots for all workers together, of each server thread, in bytes. Untouched slots cost address space only.
    pub staging_bytes: usize,
    /// The largest body of one slot, in bytes.
    pub payload_bytes: usize,
    /// What tables of each server thread may take when they are made, in bytes: parameters, optimizer state and sums of dense
    /// tables. Rows of sparse tables come on top. A table that does not fit is refused.
    pub table_bytes: u64,
    /// What each dense table may take on each server thread, out of what is left of `table_bytes`, for versions of segments
    /// that are still being sent while newer ones are written. Answers beyond that are copied before they are sent.
    pub spare_bytes: u64,
    /// Slots of one worker, where `staging_bytes` allows them; at most 64.
    pub slots: usize,
    /// Pulls of one worker that may be outstanding.
    pub pull_credits: usize,
    /// Buffers for replies.
    pub reply_buffers: usize,
    /// How long a server that is told to stop may take to answer what it has taken.
    pub stop_timeout: Duration,
}

impl Default for ServerLimits {
    fn default() -> ServerLimits {
        ServerLimits {
            staging_bytes: 256 << 20,
            payload_bytes: 256 << 10,
            table_bytes: 64 << 30,
            spare_bytes: 16 << 20,
            slots: 16,
            pull_credits: 64,
            reply_buffers: 32,
            stop_timeout: Duration::from_secs(5),
        }
    }
}

impl ServerLimits {
    /// Room for one key of the widest row (16 384 fp32).
    pub const LEAST_PAYLOAD: u64 = 128 << 10;
    /// More than a worker's buffers hold is of no use.
    pub const MOST_PAYLOAD: u64 = 16 << 20;

    /// What `environment` says, and defaults for what it does not.
    pub fn from_environment(environment: &Environment) -> Result<ServerLimits> {
        let number = |setting: &Setting| environment.number(setting);
        Ok(ServerLimits {
            staging_bytes: number(&settings::STAGING_BYTES)? as usize,
            payload_bytes: number(&settings::PAYLOAD_BYTES)? as usize,
            table_bytes: number(&settings::TABLE_BYTES)?,
            spare_bytes: number(&settings::SPARE_BYTES)?,
            slots: number(&settings::SLOTS)? as usize,
            pull_credits: number(&settings::PULL_CREDITS)? as usize,
            reply_buffers: number(&settings::REPLY_BUFFERS)? as usize,
            stop_timeout: environment.seconds(&settings::STOP_TIMEOUT)?,
        })
    }
}
