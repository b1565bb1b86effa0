//! Who drives the engine: callers that wait, and, with `progress = thread`, a thread while none does.
//!
//! Nobody holds the engine while it sleeps, so calls of several threads go on beside each other.

use std::cell::LazyCell;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, TryLockError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::control::Shared;
use super::engine::Engine;
use crate::error::{Error, Result};
use crate::time::Deadline;
use crate::transport::park::{LOOKS, Waker, park, pause};

/// A waiter that spins looks at the clock only in every so many turns.
const LOOK: u32 = 8;
/// The longest sleep of a waiter, because another thread may take what it sleeps for.
const WAITER_NAP: Duration = Duration::from_millis(20);
/// How long the progress thread leaves the engine to a waiter before it looks again.
const ASIDE: Duration = Duration::from_millis(2);
/// Its longest sleep while nobody waits: a bound on how late a failure told by another thread could be noticed.
const IDLE_NAP: Duration = Duration::from_millis(200);

/// The engine, and those who wait for it.
pub struct Driver {
    engine: Mutex<Engine>,
    shared: Arc<Shared>,
    /// Callers inside [`Driver::drive`].
    waiting: AtomicU32,
    /// The progress thread sleeps until the transport wakes it.
    asleep: AtomicBool,
    /// What wakes it, too.
    rouser: OnceLock<Waker>,
}

impl Driver {
    /// Nobody drives yet.
    pub fn new(engine: Engine, shared: Arc<Shared>) -> Driver {
        let (waiting, asleep, rouser) = (AtomicU32::new(0), AtomicBool::new(false), OnceLock::new());
        Driver { engine: Mutex::new(engine), shared, waiting, asleep, rouser }
    }

    /// How many calls wait.
    pub fn waiting(&self) -> u32 {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Whoever has the engine and polls says so: who is polled need not wake anybody, so the progress thread must not rely on that.
    pub fn rouse(&self) {
        if self.asleep.load(Ordering::Relaxed) && self.asleep.swap(false, Ordering::Relaxed) {
            self.rouser.get().into_iter().for_each(Waker::wake);
        }
    }

    #[cfg(test)]
    pub fn is_asleep(&self) -> bool {
        self.asleep.load(Ordering::Relaxed)
    }

    /// The engine, for a call that does not wait.
    pub fn engine(&self) -> MutexGuard<'_, Engine> {
        match self.engine.lock() {
            Ok(engine) => engine,
            // A caller panicked while it held the engine. Its queues are still in order: every method leaves them so
            // before it calls anything that is not ours.
            Err(poisoned) => poisoned.into_inner(),
        }
    }

    /// The engine, unless another thread holds it.
    pub fn try_engine(&self) -> Option<MutexGuard<'_, Engine>> {
        match self.engine.try_lock() {
            Ok(engine) => Some(engine),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()), // as in `engine`
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// Drives the engine until `done` gives something; `waited_for` says at a timeout what did not come. The deadline is asked for when
    /// this looks at the clock for the first time: what is done sooner needs none.
    pub fn drive<T>(
        &self,
        deadline: impl FnOnce() -> Deadline,
        waited_for: impl Fn(&Engine) -> String,
        done: impl FnMut(&mut Engine) -> Result<Option<T>>,
    ) -> Result<T> {
        self.drive_watching(deadline, |_, _| {}, waited_for, done)
    }

    /// The same; `watch` hears the time whenever this looks at it.
    pub fn drive_watching<T>(
        &self,
        deadline: impl FnOnce() -> Deadline,
        mut watch: impl FnMut(&Deadline, Instant),
        waited_for: impl Fn(&Engine) -> String,
        mut done: impl FnMut(&mut Engine) -> Result<Option<T>>,
    ) -> Result<T> {
        let _waiting = Waiting::new(&self.waiting);
        let (mut idle_since, mut turns) = (None, 0u32);
        let deadline = LazyCell::new(deadline);
        loop {
            turns = turns.wrapping_add(1);
            let mut engine = self.engine();
            if let Some(result) = done(&mut engine)? {
                return Ok(result);
            }
            self.rouse();
            // What is waited for may still be here.
            engine.flush();
            // In the first turn something may have to leave before anything can come.
            let looks = if turns > 1 && engine.may_spin() { LOOKS } else { 1 };
            let worked = match engine.progress_after(looks) {
                Ok(worked) => worked,
                // A failure does not undo what is done.
                Err(error) => return done(&mut engine)?.ok_or(error),
            };
            if worked {
                idle_since = None;
                if self.waiting.load(Ordering::Relaxed) > 1 {
                    // What came may be what another waiter sleeps for.
                    self.shared.waker.wake();
                }
                if let Some(result) = done(&mut engine)? {
                    return Ok(result);
                }
            }
            if engine.may_spin() && !turns.is_multiple_of(LOOK) {
                continue;
            }
            // First, so that what has no time is late at once.
            let deadline = &*deadline;
            let now = Instant::now();
            watch(deadline, now);
            let late = deadline.passed(now);
            if worked && !late {
                continue;
            }
            if late {
                return Err(Error::Timeout { waited_for: waited_for(&engine), after: deadline.given() });
            }
            if let Some(idle) = engine.spins(&mut idle_since, now) {
                drop(engine);
                pause(idle);
            } else if engine.may_sleep() {
                let descriptors = engine.descriptors();
                drop(engine);
                let [_, woken] = park(&descriptors, deadline.left(now).min(WAITER_NAP))?;
                if woken {
                    self.shared.waker.drain();
                }
            }
        }
    }

    /// Queues a push or a pull: `begin` makes its ticket, and `more` queues what there is staging memory for, and says
    /// whether that was all. Blocks while there is none, without the engine. Then all leaves that may, unless the caller
    /// has something to queue behind it (`more_follows`).
    pub fn queue(
        &self,
        deadline: impl FnOnce() -> Deadline,
        more_follows: bool,
        begin: impl FnOnce(&mut Engine) -> Result<usize>,
        mut more: impl FnMut(&mut Engine, usize) -> Result<bool>,
    ) -> Result<usize> {
        let mut engine = self.engine();
        let ticket = begin(&mut engine)?;
        let mut queued = more(&mut engine, ticket);
        if let Ok(false) = queued {
            engine.half_queued(true);
            drop(engine);
            let waited_for = |_: &Engine| "staging memory for a push".to_owned();
            queued = self
                .drive(deadline, waited_for, |engine| match more(engine, ticket)? {
                    true => Ok(Some(())),
                    false => engine.may_wait_for_room().map(|()| None),
                })
                .map(|()| true);
            engine = self.engine();
            engine.half_queued(false);
        }
        if queued.is_err() {
            engine.cancel(ticket);
        }
        if !more_follows || queued.is_err() {
            engine.kick();
        }
        queued.map(|_| ticket)
    }
}

/// Counts a caller as waiting while it lives.
struct Waiting<'a>(&'a AtomicU32);

impl Waiting<'_> {
    fn new(count: &AtomicU32) -> Waiting<'_> {
        count.fetch_add(1, Ordering::Relaxed);
        Waiting(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Drives the engine while no caller does; ends when it is dropped.
pub struct ProgressThread {
    stop: Arc<AtomicBool>,
    waker: Waker,
    thread: Option<JoinHandle<()>>,
}

impl ProgressThread {
    /// Starts it.
    pub fn start(driver: Arc<Driver>) -> Result<ProgressThread> {
        let (stop, waker) = (Arc::new(AtomicBool::new(false)), Waker::new()?);
        let (stopping, woken) = (stop.clone(), waker.clone());
        // There is one progress thread.
        let _ = driver.rouser.set(waker.clone());
        let thread = std::thread::Builder::new()
            .name("wl-prog".to_owned())
            .spawn(move || run(&driver, &stopping, &woken))
            .map_err(|e| Error::io("start thread", "wl-prog", e))?;
        Ok(ProgressThread { stop, waker, thread: Some(thread) })
    }
}

impl Drop for ProgressThread {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.waker.wake();
        if let Some(thread) = self.thread.take() {
            // One that panicked has nothing left to say.
            let _ = thread.join();
        }
    }
}

/// Never spins: a caller that waits spins better, on its own CPU. Ends with the engine's first failure, which every later
/// call of the client gives, too.
fn run(driver: &Driver, stop: &AtomicBool, waker: &Waker) {
    let mut roused = false;
    while !stop.load(Ordering::Acquire) {
        // Who polled may do so again at once, and would find the engine taken.
        let parked = if roused || driver.waiting.load(Ordering::Relaxed) > 0 {
            park(&[waker.fd()], ASIDE).map(drop)
        } else {
            let mut engine = driver.engine();
            match engine.progress() {
                Ok(true) => continue,
                Ok(false) => {}
                Err(_) => return,
            }
            if !engine.may_sleep() {
                continue;
            }
            let [transport, shared] = engine.descriptors();
            // Under the lock: who polls from here on finds it.
            driver.asleep.store(true, Ordering::Relaxed);
            drop(engine);
            let parked = park(&[waker.fd(), transport, shared], IDLE_NAP);
            driver.asleep.store(false, Ordering::Relaxed);
            if driver.waiting.load(Ordering::Relaxed) == 0 {
                // Nobody else would, and the next sleep would end at once.
                driver.shared.waker.drain();
            }
            parked.map(drop)
        };
        if parked.is_err() {
            return;
        }
        // An end is found at the loop's head.
        roused = waker.drain();
    }
}
