//! Queue pairs that fail at seeded moments, for tests of whole jobs (test builds only). The moments are counted over all endpoints of
//! the process, so whoever sets them has to be the only one that uses a device.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::types::mix64;

static LEFT: AtomicU64 = AtomicU64::new(0);
static MEAN: AtomicU64 = AtomicU64::new(1);
static COUNT: AtomicU64 = AtomicU64::new(0);

/// From now on `failures` of the batches that are posted are followed by the failure of their queue pair: about one in `mean`.
pub fn begin(seed: u64, failures: u64, mean: u64) {
    COUNT.store(mix64(seed), Ordering::Release);
    MEAN.store(mean, Ordering::Release);
    LEFT.store(failures, Ordering::Release);
}

/// How many are still to come.
pub fn left() -> u64 {
    LEFT.load(Ordering::Acquire)
}

/// Whether the queue pair that a batch was just posted to fails now.
pub(super) fn strikes() -> bool {
    let number = COUNT.fetch_add(1, Ordering::AcqRel);
    mix64(number).is_multiple_of(MEAN.load(Ordering::Acquire))
        && LEFT.fetch_update(Ordering::AcqRel, Ordering::Acquire, |left| left.checked_sub(1)).is_ok()
}
