//! Waiting: sleeping until a descriptor is readable, waking a sleeper from another thread, and looking again and again without sleep.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, epoll, eventfd, poll};

use crate::error::{Error, Result};

/// How long a thread that looks again and again keeps its CPU to itself.
const ALONE: Duration = Duration::from_micros(50);

/// Looks at the network in a row of a thread that has found nothing and does not sleep, before it looks at anything else: all else takes
/// longer than one of them, and what comes next is nearly always what the network brings.
pub const LOOKS: u32 = 8;

/// The pause between two looks of a thread that has found nothing for `idle` and does not sleep. At first it is a moment; then the CPU
/// goes to whoever else wants it. Where threads outnumber CPUs that may be the peer, or the kernel thread of an emulated device,
/// which would otherwise get it only when the scheduler takes it from us, milliseconds later.
pub fn pause(idle: Duration) {
    if idle < ALONE { std::hint::spin_loop() } else { std::thread::yield_now() }
}

/// Wakes a thread that sleeps in [`park`] on [`Waker::fd`]. Clones share one eventfd.
#[derive(Debug, Clone)]
pub struct Waker {
    fd: Arc<OwnedFd>,
}

impl Waker {
    /// A new eventfd.
    pub fn new() -> Result<Waker> {
        let fd = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)
            .map_err(|e| Error::io("eventfd", "waker", e.into()))?;
        Ok(Waker { fd: Arc::new(fd) })
    }

    /// Wakes the sleeper, now or at its next [`park`].
    pub fn wake(&self) {
        // EAGAIN means that the counter is full: the sleeper is as awake as it can be.
        let _ = rustix::io::write(&*self.fd, &1u64.to_ne_bytes());
    }

    /// Forgets the wakes so far, and says whether there were any. Call it before looking at what the wakes announced.
    pub fn drain(&self) -> bool {
        let mut counter = [0u8; 8];
        rustix::io::read(&*self.fd, &mut counter).is_ok()
    }

    /// The descriptor to sleep on.
    pub fn fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

/// A descriptor that is readable while one of `fds` is. Those are their owners' for as long as it is used.
pub fn any_of(fds: &[RawFd]) -> Result<OwnedFd> {
    let failed = |e: rustix::io::Errno| Error::io("epoll_create", "several transports", e.into());
    let all = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(failed)?;
    for &fd in fds {
        // SAFETY: the callers own these descriptors (their transports') for the length of this call; one that is closed later leaves
        // the set by itself.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        epoll::add(&all, fd, epoll::EventData::new_u64(0), epoll::EventFlags::IN).map_err(failed)?;
    }
    Ok(all)
}

/// Sleeps until one of `fds` is readable, or for `timeout`; which of them are. Wakes early on a signal.
pub fn park<const N: usize>(fds: &[RawFd; N], timeout: Duration) -> Result<[bool; N]> {
    let mut polled: [PollFd<'_>; N] = fds.map(|fd| {
        // SAFETY: the callers own these descriptors (a waker's or a transport's) for the length of this call.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        PollFd::from_borrowed_fd(fd, PollFlags::IN)
    });
    let timeout = Timespec {
        tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(timeout.subsec_nanos()),
    };
    match poll(&mut polled, Some(&timeout)) {
        Ok(_) => Ok(std::array::from_fn(|n| !polled[n].revents().is_empty())),
        Err(rustix::io::Errno::INTR) => Ok([false; N]),
        Err(e) => Err(Error::io("poll", "waiting for the network", io::Error::from(e))),
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::transport::cpus;

    /// Two threads on one CPU take turns, and neither sleeps. One that kept the CPU while it waits would look in vain until the scheduler
    /// takes it away: tens of thousands of times in each turn.
    #[test]
    fn whoever_looks_in_vain_gives_its_cpu_to_whom_it_waits_for() {
        const TURNS: u64 = 100;
        let cpu = cpus::allowed().unwrap()[0];
        let turn = Arc::new(AtomicU64::new(0));
        let players = [0, 1].map(|player| {
            let turn = turn.clone();
            std::thread::spawn(move || {
                cpus::pin_to(cpu).unwrap();
                let mut looks = 0u64;
                for mine in (player..TURNS).step_by(2) {
                    while turn.load(Ordering::Acquire) != mine {
                        pause(ALONE);
                        looks += 1;
                    }
                    turn.store(mine + 1, Ordering::Release);
                }
                looks
            })
        });
        let looks: u64 = players.into_iter().map(|player| player.join().unwrap()).sum();
        assert!(looks < TURNS * 1000, "{looks} looks for {TURNS} turns");
    }
}

/// Sleeping and waking as a model, with an eventfd made of loom's lock: whoever announces something does so before it wakes, and
/// whoever was woken forgets the wake before it looks. Then nothing is slept through.
#[cfg(all(test, loom))]
mod loom_tests {
    use loom::sync::atomic::{AtomicBool, Ordering};
    use loom::sync::{Arc, Condvar, Mutex};
    use loom::thread;

    #[derive(Default)]
    struct Eventfd {
        counter: Mutex<u64>,
        readable: Condvar,
    }

    impl Eventfd {
        fn wake(&self) {
            *self.counter.lock().unwrap() += 1;
            self.readable.notify_all();
        }

        fn park(&self) {
            let mut counter = self.counter.lock().unwrap();
            while *counter == 0 {
                counter = self.readable.wait(counter).unwrap();
            }
        }

        fn drain(&self) {
            *self.counter.lock().unwrap() = 0;
        }
    }

    /// Two announce something each; the sleeper needs both.
    #[test]
    fn loom_nothing_is_slept_through() {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(2);
        model.check(|| {
            let shared = Arc::new((Eventfd::default(), [AtomicBool::new(false), AtomicBool::new(false)]));
            let announcers: Vec<_> = (0..2)
                .map(|which| {
                    let shared = shared.clone();
                    thread::spawn(move || {
                        shared.1[which].store(true, Ordering::Release);
                        shared.0.wake();
                    })
                })
                .collect();
            while !shared.1.iter().all(|flag| flag.load(Ordering::Acquire)) {
                shared.0.park();
                shared.0.drain();
            }
            announcers.into_iter().for_each(|a| a.join().unwrap());
        });
    }
}
