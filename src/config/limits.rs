//! The limits that settings give, as the layers above take them.

use std::time::Duration;

use super::Environment;
use super::settings::{self, Setting};
use crate::error::{Error, Result};

/// In which all nodes of a job have to be there.
pub const DEFAULT_JOIN_TIMEOUT: Duration = Duration::from_secs(300);
/// How long a wait may last while all peers are alive.
pub const DEFAULT_WAIT_TIMEOUT: Duration = Duration::from_secs(600);
/// Tables of a job.
pub const DEFAULT_TABLES: usize = 4096;

/// Bounds of what peers, and strangers, may take of a process by control links and data connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkLimits {
    /// Accepted connections that have not proved themselves, at the control port and at the data port of each thread. One more,
    /// and the oldest that has had a moment is closed.
    pub strangers: usize,
    /// How long a connection may take to prove itself, on either side.
    pub handshake_timeout: Duration,
    /// How long an address is dialled where nobody answers.
    pub dial_timeout: Duration,
    /// Control links of this process, strangers included.
    pub links: usize,
    /// Bytes that wait for a control link whose peer does not read. One that lets more wait is lost.
    pub control_bytes: usize,
    /// Writes, reads and messages that wait for one data connection.
    pub queue_depth: usize,
    /// Bytes of its memory that a peer on this host may have us map, and we it, for one data connection over shared memory. They are
    /// charged to their owner; what they cost here is address space and a 512th in page tables.
    pub shown_bytes: usize,
}

impl Default for LinkLimits {
    fn default() -> LinkLimits {
        LinkLimits {
            strangers: 256,
            handshake_timeout: Duration::from_secs(5),
            dial_timeout: Duration::from_secs(15),
            links: 4096,
            control_bytes: 4 << 20,
            queue_depth: 256,
            shown_bytes: 64 << 30,
        }
    }
}

impl LinkLimits {
    /// What `environment` says, and defaults for what it does not.
    pub fn from_environment(environment: &Environment) -> Result<LinkLimits> {
        let number = |setting: &Setting| environment.number(setting).map(|n| n as usize);
        Ok(LinkLimits {
            strangers: number(&settings::STRANGERS)?,
            handshake_timeout: environment.seconds(&settings::HANDSHAKE_TIMEOUT)?,
            dial_timeout: environment.seconds(&settings::DIAL_TIMEOUT)?,
            links: number(&settings::LINKS)?,
            control_bytes: number(&settings::CONTROL_BYTES)?,
            queue_depth: number(&settings::QUEUE_DEPTH)?,
            shown_bytes: number(&settings::SHOWN_BYTES)?,
        })
    }
}

/// Bounds of a worker's memory and queues.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WorkerLimits {
    /// The longest body of a frame, in bytes; what the servers grant may be less.
    pub payload_bytes: usize,
    /// Registered memory for pushes that are copied, in bytes: buffers of `payload_bytes`. Shorter buffers, and those of batches,
    /// come on top, with about a quarter of it.
    pub send_bytes: usize,
    /// The same for pulls that do not go to a registered buffer. Without those of batches.
    pub receive_bytes: usize,
    /// The longest body, in bytes, of a push or pull that is gathered with others.
    pub small_bytes: usize,
    /// The longest frame, in bytes, that they are gathered into.
    pub batch_bytes: usize,
    /// Frames that may wait for one server thread before a call waits, too.
    pub queued_frames: usize,
    /// Bytes that may be under way to one server thread beyond the first frame. Slots are filled from the lowest free one up, so
    /// this keeps those in use, and what the sockets hold, within the L2 of both ends: copying into cold memory takes five times
    /// as long. The default is no less than a path of 10 GB/s and 100 µs holds. Bodies that are lent over shared memory lie in no
    /// slot: they do not count.
    pub window_bytes: usize,
    /// Replies of one server thread that this worker has not read.
    pub ring_entries: u32,
}

impl Default for WorkerLimits {
    fn default() -> WorkerLimits {
        WorkerLimits {
            payload_bytes: ServerLimits::default().payload_bytes,
            send_bytes: 16 << 20,
            receive_bytes: 16 << 20,
            small_bytes: 4 << 10,
            batch_bytes: 64 << 10,
            queued_frames: 4096,
            window_bytes: 1 << 20,
            ring_entries: 256,
        }
    }
}

impl WorkerLimits {
    /// Long buffers that `send_bytes` and `receive_bytes` have to hold: a part of a blocking pull takes up to 17.
    pub const LEAST_BUFFERS: usize = 32;

    /// What `environment` says, and defaults for what it does not.
    pub fn from_environment(environment: &Environment) -> Result<WorkerLimits> {
        let number = |setting: &Setting| environment.number(setting).map(|n| n as usize);
        let limits = WorkerLimits {
            payload_bytes: number(&settings::PAYLOAD_BYTES)?,
            send_bytes: number(&settings::SEND_BYTES)?,
            receive_bytes: number(&settings::RECEIVE_BYTES)?,
            small_bytes: number(&settings::SMALL_BYTES)?,
            batch_bytes: number(&settings::BATCH_BYTES)?,
            queued_frames: number(&settings::QUEUED_FRAMES)?,
            window_bytes: number(&settings::WINDOW_BYTES)?,
            ring_entries: number(&settings::RING_ENTRIES)? as u32,
        };
        let name = |setting: &Setting| environment.name_of(setting.variable);
        limits.check_memory(name(&settings::SEND_BYTES), name(&settings::RECEIVE_BYTES))?;
        Ok(limits)
    }

    /// Refuses memory that could not hold a call's frames.
    pub(crate) fn check(&self) -> Result<()> {
        self.check_memory("send_bytes".to_owned(), "receive_bytes".to_owned())
    }

    fn check_memory(&self, send: String, receive: String) -> Result<()> {
        let least = WorkerLimits::LEAST_BUFFERS * self.payload_bytes;
        for (name, bytes) in [(send, self.send_bytes), (receive, self.receive_bytes)] {
            if bytes < least {
                let buffers = WorkerLimits::LEAST_BUFFERS;
                let expected = format!("at least {least}: {buffers} bodies of {} bytes", self.payload_bytes);
                return Err(Error::config(name, expected, bytes));
            }
        }
        Ok(())
    }
}

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
    /// What of workers' lists of keys each server thread may keep, in bytes, so that the same keys need not come again: workers
    /// share it evenly, each in places for 1024 keys, about 20 KiB, of which the keys of a frame take one or more. 0 keeps none.
    pub key_list_bytes: u64,
    /// Buffers for replies.
    pub reply_buffers: usize,
    /// What of a cut may be on its way to the disk of each server thread, in bytes: a copy of what pushes change while it is being
    /// written. Beyond that they wait for the disk.
    pub cut_bytes: u64,
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
            key_list_bytes: 256 << 20,
            reply_buffers: 32,
            cut_bytes: 2 << 30,
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
            key_list_bytes: number(&settings::KEY_LIST_BYTES)?,
            reply_buffers: number(&settings::REPLY_BUFFERS)? as usize,
            cut_bytes: number(&settings::CUT_BYTES)?,
            stop_timeout: environment.seconds(&settings::STOP_TIMEOUT)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_setting_of_links_and_workers_has_its_place() {
        let given = Environment::from_pairs([
            ("WINDLASS_STRANGERS", "7"),
            ("WINDLASS_HANDSHAKE_TIMEOUT", "8"),
            ("WINDLASS_DIAL_TIMEOUT", "9"),
            ("WINDLASS_LINKS", "10"),
            ("WINDLASS_CONTROL_BYTES", "11M"),
            ("WINDLASS_QUEUE_DEPTH", "17"),
            ("WINDLASS_SHOWN_BYTES", "12M"),
            ("WINDLASS_PAYLOAD_BYTES", "129K"),
            ("WINDLASS_SEND_BYTES", "13M"),
            ("WINDLASS_RECEIVE_BYTES", "14M"),
            ("WINDLASS_SMALL_BYTES", "15"),
            ("WINDLASS_BATCH_BYTES", "16K"),
            ("WINDLASS_QUEUED_FRAMES", "18"),
            ("WINDLASS_WINDOW_BYTES", "19K"),
            ("WINDLASS_RING_ENTRIES", "20"),
        ]);
        let links = LinkLimits {
            strangers: 7,
            handshake_timeout: Duration::from_secs(8),
            dial_timeout: Duration::from_secs(9),
            links: 10,
            control_bytes: 11 << 20,
            queue_depth: 17,
            shown_bytes: 12 << 20,
        };
        assert_eq!(LinkLimits::from_environment(&given).unwrap(), links);
        let worker = WorkerLimits {
            payload_bytes: 129 << 10,
            send_bytes: 13 << 20,
            receive_bytes: 14 << 20,
            small_bytes: 15,
            batch_bytes: 16 << 10,
            queued_frames: 18,
            window_bytes: 19 << 10,
            ring_entries: 20,
        };
        assert_eq!(WorkerLimits::from_environment(&given).unwrap(), worker);
        let nothing = Environment::default();
        assert_eq!(LinkLimits::from_environment(&nothing).unwrap(), LinkLimits::default());
        assert_eq!(WorkerLimits::from_environment(&nothing).unwrap(), WorkerLimits::default());
    }

    #[test]
    fn a_workers_memory_holds_enough_of_its_buffers() {
        let given = Environment::default().with("WINDLASS_PAYLOAD_BYTES", Some("1M"));
        let refused = WorkerLimits::from_environment(&given.with("WINDLASS_SEND_BYTES", Some("32M")));
        let expected =
            "WINDLASS_RECEIVE_BYTES: expected at least 33554432: 32 bodies of 1048576 bytes, found 16777216";
        assert_eq!(refused.unwrap_err().to_string(), expected);
    }
}
