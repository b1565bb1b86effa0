//! The CPUs that this process may use: its affinity mask, which `taskset`, Slurm and containers narrow.

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

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
    let mut mask = CpuSet::new();
    if cpu < CpuSet::MAX_CPU {
        mask.set(cpu);
    }
    sched_setaffinity(None, &mask).map_err(|e| Error::io("sched_setaffinity", format!("CPU {cpu}"), e.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

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
            let last = *allowed().unwrap().last().unwrap();
            pin_to(last).unwrap();
            assert_eq!(allowed().unwrap(), [last]);
            assert!(pin_to(usize::MAX).is_err());
        })
        .join()
        .unwrap();
    }
}
