//! A worker that goes on where it left off when its job was told to end, and is started again with `--resume auto`.
//!
//! What it computes depends on state of its own, a random number generator, which a checkpoint holds beside the tables. So the
//! sum that it prints is the same however often the job was interrupted.

use windlass::types::OptimizerSpec;
use windlass::{Client, ClientConfig, KeyRange, TableSpec};

const STEPS: u64 = 2000;
const PARAMETERS: usize = 1000;

/// All that this worker is between two clocks.
#[derive(Clone, Copy)]
struct State {
    step: u64,
    random: u64,
}

impl State {
    fn encode(self) -> [u8; 16] {
        let mut out = [0; 16];
        out[..8].copy_from_slice(&self.step.to_le_bytes());
        out[8..].copy_from_slice(&self.random.to_le_bytes());
        out
    }

    fn decode(bytes: &[u8]) -> Option<State> {
        let number = |at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
        Some(State { step: number(0)?, random: number(8)? })
    }

    /// Xorshift64 (Marsaglia, 2003), as a gradient from -1 to 1.
    fn next(&mut self) -> f32 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 40) as f32 / 8_388_608.0 - 1.0
    }
}

fn main() -> windlass::Result<()> {
    let client = Client::connect(ClientConfig::from_env()?)?;
    let spec = TableSpec::dense("parameters", &[PARAMETERS as u64]);
    let table = client.table(&spec.optimizer(OptimizerSpec::adam(0.01, 0.9, 0.999, 1e-8)))?;
    let all = KeyRange::new(0, PARAMETERS as u64)?;
    let begin = State { step: 0, random: 88_172_645_463_325_252 + u64::from(client.rank()) };
    let mut state = client.resumed().and_then(|(_, bytes)| State::decode(&bytes)).unwrap_or(begin);
    eprintln!("begins at step {}", state.step);
    let mut gradient = vec![0.0; PARAMETERS];
    let mut parameters = vec![0.0; PARAMETERS];
    while state.step < STEPS {
        client.save_state(&state.encode())?; // before anything of this clock is pushed
        table.pull_range(all, &mut parameters)?;
        for (slope, parameter) in gradient.iter_mut().zip(&parameters) {
            *slope = parameter + state.next();
        }
        table.push_range(all, &gradient)?;
        state.step += 1;
        client.clock()?;
    }
    client.save_state(&state.encode())?;
    table.pull_range(all, &mut parameters)?;
    println!("{}", parameters.iter().map(|&p| f64::from(p)).sum::<f64>());
    client.finalize()
}
