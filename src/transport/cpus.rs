//! The CPUs that this process may use: its affinity mask, which `taskset`, Slurm and containers narrow.

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use super::topology::show;
use crate::error::{Error, Result};

/// The CPUs that the calling thread may run on, in order; `None` when the host has more than a mask here holds.
pub fn allowed() -> Option<Vec<usize>> {
    let mask = sched_getaffinity(None).ok()?;
    Some((0..CpuSet::MAX_CPU).filter(|&cpu| mask.is_set(cpu)).collect())
}

/// How many they are.
pub fn allowed_count() -> usize {
    match allowed() {
        Some(cpus) if !cpus.is_empty() => cpus.len(),
        // More than 1024 CPUs do not fit rustix's mask; the standard library allocates one that does.
        _ => std::thread::available_parallelism().map_or(1, usize::from),
    }
}

/// From now on the calling thread runs on `cpu` alone.
pub fn pin_to(cpu: usize) -> Result<()> {
    run_on(&[cpu])
}

/// From now on the calling thread, and those that it starts, run on these CPUs alone, which need not be among those that it may use now.
pub fn run_on(cpus: &[usize]) -> Result<()> {
    let mut mask = CpuSet::new();
    cpus.iter().filter(|&&cpu| cpu < CpuSet::MAX_CPU).for_each(|&cpu| mask.set(cpu));
    let named = || format!("CPU {}", show(cpus));
    sched_setaffinity(None, &mask).map_err(|e| Error::io("sched_setaffinity", named(), e.into()))
}

/// From now on the calling thread, when it wakes, does not take its CPU from whoever runs there, but waits for its turn (SCHED_BATCH).
/// Where threads outnumber CPUs, the one that woke it is about to sleep itself, or to bring more that is better taken together. False where
/// the system does not let it, or somebody has chosen another policy.
pub fn wake_politely() -> bool {
    // SAFETY: asks for the calling thread's policy.
    if unsafe { libc::sched_getscheduler(0) } != libc::SCHED_OTHER {
        return false;
    }
    let nothing = libc::sched_param { sched_priority: 0 };
    // SAFETY: `nothing` is a `sched_param` that lives as long as the call, which only reads it; 0 is the calling thread.
    unsafe { libc::sched_setscheduler(0, libc::SCHED_BATCH, &raw const nothing) == 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_polite_thread_is_one_of_a_batch() {
        std::thread::spawn(|| {
            // SAFETY: asks for the calling thread's policy.
            let policy = || unsafe { libc::sched_getscheduler(0) };
            assert_eq!(policy(), libc::SCHED_OTHER);
            assert!(wake_politely());
            assert_eq!(policy(), libc::SCHED_BATCH);
            assert!(!wake_politely(), "a policy that was chosen stays");
        })
        .join()
        .unwrap();
    }

    #[test]
    fn cores_are_those_of_the_mask() {
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let mask = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed:")).unwrap();
        let ones: u32 =
            mask.trim().split(',').map(|w| u32::from_str_radix(w, 16).unwrap().count_ones()).sum();
        assert_eq!(allowed_count(), ones as usize);
    }

    #[test]
    fn a_pinned_thread_may_use_one_cpu_and_no_cpu_that_is_not_there() {
        std::thread::spawn(|| {
            let all = allowed().unwrap();
            let last = *all.last().unwrap();
            pin_to(last).unwrap();
            assert_eq!(allowed().unwrap(), [last]);
            // So does a thread that it starts, which may have others again.
            let started = std::thread::spawn(move || {
                let inherited = allowed().unwrap();
                run_on(&all).unwrap();
                (inherited, allowed().unwrap() == all)
            });
            assert_eq!(started.join().unwrap(), (vec![last], true));
            assert_eq!(allowed().unwrap(), [last]);
            assert!(pin_to(usize::MAX).is_err());
            assert!(run_on(&[]).is_err());
        })
        .join()
        .unwrap();
    }
}
