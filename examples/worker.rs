//! A worker. `windlass run --servers 1 --workers 2 -- target/release/examples/worker` runs two of it.

use windlass::{Client, ClientConfig, SortedKeys, TableSpec};

fn main() -> windlass::Result<()> {
    let client = Client::connect(ClientConfig::from_env()?)?;
    // u64 key -> row of one fp32. What all workers push in one clock becomes one update: by default a step of plain SGD
    // with rate 1 along the mean over the workers, under Bsp; `TableSpec` has methods for everything else.
    let table = client.table(&TableSpec::sparse("weights", 1))?;
    let keys = SortedKeys::new(&[3, 17, 1 << 60])?;
    table.push(keys, &[0.25, 0.5, 1.0 + client.rank() as f32])?; // a gradient
    client.clock()?; // this worker's part of the clock is complete
    let mut weights = [0.0; 3];
    table.pull(keys, &mut weights)?; // waits until all workers' parts are applied
    println!("{weights:?}"); // with two workers [-0.25, -0.5, -1.5]
    client.finalize() // leaves in order: without it this worker counts as failed
}
