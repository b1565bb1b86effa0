//! Deadlines that wake a sleeper.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use crate::error::{Error, Result};

/// A timer whose descriptor becomes readable at a period, so that deadlines wake a sleeper.
#[derive(Debug)]
pub(super) struct Timer {
    fd: OwnedFd,
    period: Duration,
}

impl Timer {
    /// A timer that stands still.
    pub fn new() -> Result<Timer> {
        // SAFETY: no pointers are passed.
        let fd =
            unsafe { libc::timerfd_create(libc::CLOCK_MONOTONIC, libc::TFD_NONBLOCK | libc::TFD_CLOEXEC) };
        if fd < 0 {
            return Err(Error::io("timerfd_create", "deadlines", io::Error::last_os_error()));
        }
        // SAFETY: `fd` was made just now and nobody else owns it.
        Ok(Timer { fd: unsafe { OwnedFd::from_raw_fd(fd) }, period: Duration::ZERO })
    }

    /// Fires every `period` from now on; zero stops it. Setting the same period again changes nothing.
    pub fn set(&mut self, period: Duration) {
        if self.period == period {
            return;
        }
        self.period = period;
        let spec = libc::timespec {
            tv_sec: period.as_secs() as libc::time_t,
            tv_nsec: libc::c_long::from(period.subsec_nanos() as i32),
        };
        let timer = libc::itimerspec { it_interval: spec, it_value: spec };
        // SAFETY: `timer` is a valid specification, and the old one is not asked for. It can't fail: the descriptor is a
        // timer and the nanoseconds are below 10^9.
        unsafe { libc::timerfd_settime(self.fd.as_raw_fd(), 0, &timer, std::ptr::null_mut()) };
    }

    /// Makes the descriptor unreadable until the next period ends.
    pub fn drain(&self) {
        let mut count = [0u8; 8];
        let _ = rustix::io::read(&self.fd, &mut count);
    }
}

impl AsFd for Timer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for Timer {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}
