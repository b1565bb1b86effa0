//! The one error type of the library. Every variant names the operation that failed, and, where a peer is to blame,
//! the peer and the field; [`Error::code`] gives the stable number that survives a C ABI.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// The result of everything that can fail in Windlass.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, for whom, and what was expected instead.
#[derive(Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A setting (flag, environment variable, specification) has a value that can't be used.
    #[error("{setting}: expected {expected}, found {found}")]
    Config {
        /// The flag, variable or field, as the user writes it.
        setting: String,
        /// What would have been accepted.
        expected: String,
        /// What was given.
        found: String,
    },
    /// The operating system refused an operation.
    #[error("{operation} ({subject}): {source}")]
    Io {
        /// What was being done: `bind`, `connect`, `read`.
        operation: &'static str,
        /// On what: an address, a path, a peer.
        subject: String,
        /// The system's own reason.
        source: Arc<io::Error>,
    },
    /// A call reached its deadline. The operation it waited for may still complete.
    #[error("timed out after {after:?} waiting for {waited_for}")]
    Timeout {
        /// What the call waited for, with the peers it waits on.
        waited_for: String,
        /// How long it waited.
        after: Duration,
    },
    /// A peer is gone: its connection closed, was reset, or was silent for too long.
    #[error("lost {peer}: {reason}")]
    PeerLost {
        /// Role, rank and address.
        peer: String,
        /// How we know.
        reason: String,
    },
    /// A peer, or we, refused what the other asked for.
    #[error("{peer} refused: {reason}")]
    Refused {
        /// Who refused.
        peer: String,
        /// Why.
        reason: String,
    },
    /// A peer sent something that the protocol does not allow. Its endpoint is closed.
    #[error("{peer} broke the protocol: {field}: expected {expected}, found {found}")]
    Protocol {
        /// Role, rank and address.
        peer: String,
        /// The field of the message.
        field: &'static str,
        /// What the protocol allows there.
        expected: String,
        /// What came.
        found: String,
    },
    /// A bounded resource is exhausted.
    #[error("{resource}: limit {limit}, asked for {asked}")]
    Limit {
        /// The queue, pool or table, with the setting that enlarges it where there is one.
        resource: String,
        /// Its bound.
        limit: u64,
        /// What was asked for.
        asked: u64,
    },
    /// A push was computed from values that are too old for its table: some of its pieces were not applied. Nothing else of
    /// it, and no later push, is concerned.
    #[error(
        "table \"{table}\": {pieces} stale pieces rejected, first in bucket {bucket}: base version {base}, now {current}"
    )]
    Stale {
        /// The table.
        table: String,
        /// The bucket of the first rejected piece.
        bucket: u32,
        /// The push's base version.
        base: u64,
        /// The bucket's version when the piece came.
        current: u64,
        /// How many pieces were rejected, each whole. Where a table rejects values that are not finite, too, pieces with such
        /// values are among them.
        pieces: u64,
    },
    /// A push or set held values that are infinite or no number, and its table rejects the pieces with such values. Nothing
    /// else of it, and no later push, is concerned.
    #[error(
        "table \"{table}\": {pieces} pieces of worker {worker} rejected, the first, of keys {first} to {last}, with values that \
         are not finite"
    )]
    NonFinite {
        /// The table.
        table: String,
        /// The rank of the worker that pushed.
        worker: u32,
        /// The smallest key of the first rejected piece. A piece is what a push brings to one bucket.
        first: u64,
        /// Its largest key. Of a dense table all keys between are in the piece, of a sparse one those that were pushed to the
        /// bucket.
        last: u64,
        /// How many pieces were rejected, each whole. Where a table rejects stale pieces, too, these are among them.
        pieces: u64,
    },
    /// A call that can't be right in the present state; the message says how to mend it.
    #[error("{call}: {reason}")]
    Misuse {
        /// The call.
        call: &'static str,
        /// Why it can't work, and what would.
        reason: String,
    },
    /// The job ended because of a failure elsewhere.
    #[error("the job was aborted: {reason}")]
    Aborted {
        /// What the Coordinator said, with the node that failed.
        reason: String,
    },
    /// An input file is malformed.
    #[error("{file}:{line}:{column}: expected {expected}, found {found}")]
    Data {
        /// Path.
        file: String,
        /// From 1.
        line: u64,
        /// In bytes, from 1.
        column: u64,
        /// What the format allows there.
        expected: String,
        /// What stands there.
        found: String,
    },
    /// An RDMA device or its driver failed.
    #[error("verbs: {operation} on {device}: {reason}")]
    Device {
        /// The verb.
        operation: &'static str,
        /// Device name and port.
        device: String,
        /// errno or completion status, and what to do about it.
        reason: String,
    },
    /// A checkpoint's file can't be used: it is cut short, changed, or of another job.
    #[error("checkpoint {file}: {section} at byte {offset}: expected {expected}, found {found}")]
    Checkpoint {
        /// Path.
        file: String,
        /// The section, with its table and bucket; or `header`, `directory`, `padding`.
        section: String,
        /// First byte, within the file, of what is wrong.
        offset: u64,
        /// What should be there.
        expected: String,
        /// What is there.
        found: String,
    },
}

impl fmt::Debug for Error {
    /// For people: it is what a `main` prints that returns it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self} (error {})", self.code())
    }
}

impl Error {
    /// A stable number for each variant, for the C ABI and for exit codes.
    pub fn code(&self) -> u32 {
        match self {
            Error::Config { .. } => 1,
            Error::Io { .. } => 2,
            Error::Timeout { .. } => 3,
            Error::PeerLost { .. } => 4,
            Error::Refused { .. } => 5,
            Error::Protocol { .. } => 6,
            Error::Limit { .. } => 7,
            Error::Misuse { .. } => 8,
            Error::Aborted { .. } => 9,
            Error::Data { .. } => 10,
            Error::Device { .. } => 11,
            Error::Stale { .. } => 12,
            Error::NonFinite { .. } => 13,
            Error::Checkpoint { .. } => 14,
        }
    }

    /// An [`Error::Io`] from the system's reason.
    pub fn io(operation: &'static str, subject: impl fmt::Display, source: io::Error) -> Error {
        Error::Io { operation, subject: subject.to_string(), source: Arc::new(source) }
    }

    /// Says of an address that can't be bound which settings choose another.
    pub fn chosen_by(self, settings: &str) -> Error {
        match self {
            Error::Io { operation: "bind", subject, source } => {
                Error::Io { operation: "bind", subject: format!("{subject}; another by {settings}"), source }
            }
            other => other,
        }
    }

    /// An [`Error::Config`].
    pub fn config(
        setting: impl Into<String>,
        expected: impl Into<String>,
        found: impl fmt::Display,
    ) -> Error {
        Error::Config { setting: setting.into(), expected: expected.into(), found: found.to_string() }
    }

    /// An [`Error::Protocol`].
    pub fn protocol(
        peer: impl fmt::Display,
        field: &'static str,
        expected: impl Into<String>,
        found: impl fmt::Display,
    ) -> Error {
        Error::Protocol { peer: peer.to_string(), field, expected: expected.into(), found: found.to_string() }
    }
}

/// A field of something that came from a peer and can't be, not yet tied to that peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Malformed {
    /// The field.
    pub field: &'static str,
    /// What is allowed there.
    pub expected: String,
    /// What was found.
    pub found: String,
}

impl Malformed {
    /// A malformed field.
    pub fn new(field: &'static str, expected: impl Into<String>, found: impl fmt::Display) -> Malformed {
        Malformed { field, expected: expected.into(), found: found.to_string() }
    }

    /// The error that names the peer.
    pub fn by(self, peer: impl fmt::Display) -> Error {
        Error::protocol(peer, self.field, self.expected, self.found)
    }
}
