//! A server with an update rule of its own, and a worker that trains with it:
//!
//! ```sh
//! cargo build --release --example custom_optimizer
//! windlass run --server-cmd target/release/examples/custom_optimizer -- target/release/examples/custom_optimizer worker
//! ```

use windlass::store::Optimizer;
use windlass::types::OptimizerSpec;
use windlass::{Client, ClientConfig, Error, KeyRange, Result, Server, TableSpec};

/// Gradient descent that never goes further than `rate` at a time: `w ← w − rate · g / max(1, |g|)`.
struct Clipped {
    rate: f32,
}

impl Clipped {
    /// The rule that a table's spec asks for; the error goes to the worker that opens the table.
    fn of(spec: &OptimizerSpec) -> Result<Box<dyn Optimizer>> {
        match &spec.parameters[..] {
            [(name, rate)] if name == "rate" && *rate > 0.0 => Ok(Box::new(Clipped { rate: *rate })),
            other => Err(Error::config("optimizer clipped", "one rate above 0", format!("{other:?}"))),
        }
    }
}

impl Optimizer for Clipped {
    fn state_width(&self) -> usize {
        0
    }

    fn step(&self, parameters: &mut [f32], _: &mut [&mut [f32]], _: &[f32], gradient: &[f32]) {
        for (w, g) in parameters.iter_mut().zip(gradient) {
            *w -= self.rate * g / g.abs().max(1.0);
        }
    }
}

fn main() -> Result<()> {
    match std::env::args().nth(1).as_deref() {
        Some("worker") => work(),
        _ => Server::from_env()?.optimizer("clipped", Clipped::of).stop_on_sigterm().start()?.run(),
    }
}

/// Each worker pulls three weights towards 10, 20 and 30 times its rank; they end in the middle between the workers.
fn work() -> Result<()> {
    let client = Client::connect(ClientConfig::from_env()?)?;
    let spec = TableSpec::dense("weights", &[3]).optimizer(OptimizerSpec::new("clipped", &[("rate", 0.5)]));
    let (table, all) = (client.table(&spec)?, KeyRange::new(0, 3)?);
    let target = [10.0, 20.0, 30.0].map(|t| t * client.rank() as f32);
    let mut weights = [0.0; 3];
    for clock in 0..200 {
        let gradient: Vec<f32> = weights.iter().zip(target).map(|(w, t)| w - t).collect();
        table.push_range(all, &gradient)?;
        client.clock()?;
        table.pull_range(all, &mut weights)?;
        if clock == 0 {
            println!("after one step {weights:?}");
        }
    }
    println!("at the end {weights:?}");
    client.finalize()
}
