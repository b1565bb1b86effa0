//! `add`: what a server does to a push and the network does not. Ones are added to a table, in this process alone.

use std::time::{Duration, Instant};

use super::Verdict;
use super::latencies::Latencies;
use super::options::Options;
use super::place::Walk;
use super::report::{Figures, Report};
use crate::error::Result;
use crate::kernels::{self, Input};
use crate::mem::Floats;

/// Adds to place after place until the time is up, after a round that only warms up; then the table must hold the sums.
pub fn measure(options: &Options) -> Result<Verdict> {
    options.check()?;
    options.check_alone()?;
    let (floats, places) = ((options.payload_bytes() / 4) as usize, options.places());
    let ones = vec![1.0f32; floats];
    let mut table = vec![0.0f32; floats * places as usize];
    let walk = Walk::new(0, 1, places);
    let mut latencies = Latencies::new();
    let (mut done, mut took) = (0u64, Duration::ZERO);
    // Sums stay exact up to 2^24.
    while took < options.duration() && done < places << 23 {
        let at = walk.place(done) as usize * floats;
        let begun = Instant::now();
        kernels::accumulate(&mut table[at..at + floats], Input::F32(Floats::from(&ones[..])));
        if done >= places {
            took += begun.elapsed();
            latencies.record(begun.elapsed());
        }
        done += 1;
    }
    let figures = Figures {
        transport: "none".to_owned(),
        workers: 1,
        servers: 0,
        threads: 1,
        operations: done.saturating_sub(places),
        seconds: took.as_secs_f64(),
        latencies: &latencies,
    };
    Report::new(options, &figures).print(options)?;
    let mut sums = vec![0.0f32; places as usize];
    (0..done).for_each(|n| sums[walk.place(n) as usize] += 1.0);
    let right = table.chunks(floats).zip(&sums).all(|(place, sum)| place.iter().all(|value| value == sum));
    Ok(if right { Verdict::Right } else { Verdict::Wrong })
}
