//! Wall time as an argument. State machines take `now: Instant`; only the loops that own threads ask a [`TimeSource`].

use std::time::{Duration, Instant};

/// Where a loop gets the time from: the system's monotonic clock, or a simulation.
pub trait TimeSource: Send {
    /// The present instant.
    fn now(&self) -> Instant;
}

/// The system's monotonic clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemTime;

impl TimeSource for SystemTime {
    fn now(&self) -> Instant {
        Instant::now()
    }
}

/// The instant by which a call must have ended, and how long it was given.
#[derive(Debug, Clone, Copy)]
pub struct Deadline {
    at: Instant,
    given: Duration,
}

impl Deadline {
    /// A deadline `given` after `now`.
    pub fn after(now: Instant, given: Duration) -> Deadline {
        Deadline { at: now + given, given }
    }

    /// How long the call was given in all.
    pub fn given(&self) -> Duration {
        self.given
    }

    /// What is left at `now`; zero once it has passed.
    pub fn left(&self, now: Instant) -> Duration {
        self.at.saturating_duration_since(now)
    }

    /// Whether it has passed at `now`.
    pub fn passed(&self, now: Instant) -> bool {
        now >= self.at
    }
}
