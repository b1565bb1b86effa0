//! Both ends as the two workers of a job, on one host or on two: worker 0 measures, worker 1 responds. They speak through a table, a
//! cell for each byte, and take turns by barriers; the servers have no other part in it.

use super::{PEER, Way, Words, measure, respond};
use crate::app::bench::Verdict;
use crate::app::bench::options::Options;
use crate::client::{Client, Table};
use crate::config::Network;
use crate::error::{Error, Result};
use crate::proto::secret::Secret;
use crate::transport::SessionKey;
use crate::types::{Consistency, KeyRange, OptimizerSpec, TableSpec};

/// Cells of each worker: the number of bytes, then the bytes.
const CELLS: u64 = 4096;

/// Takes part as this worker, whose transport and secret are given.
pub fn run(client: &Client, options: &Options, network: &Network, secret: &Secret) -> Result<Verdict> {
    if client.workers() != 2 {
        let setting = format!("--workers with {} in a job", options.op);
        return Err(Error::config(setting, "2: one that measures, and one that responds", client.workers()));
    }
    let way = Way { network, agreed: client.agreed() };
    let mut words = Cells::new(client, secret)?;
    if client.rank() == 0 { measure(options, &way, &mut words) } else { respond(options, &way, &mut words) }
}

struct Cells<'a> {
    client: &'a Client,
    root: SessionKey,
    table: Table,
}

impl<'a> Cells<'a> {
    fn new(client: &'a Client, secret: &Secret) -> Result<Cells<'a>> {
        let spec = TableSpec::dense("bench.words", &[2, CELLS])
            .optimizer(OptimizerSpec::new("sum", &[]))
            .consistency(Consistency::Asp);
        let root = secret.derive("windlass bench: write and read between two workers");
        Ok(Cells { client, root, table: client.table(&spec)? })
    }

    fn of(rank: u32) -> Result<KeyRange> {
        let first = u64::from(rank) * CELLS;
        KeyRange::new(first, first + CELLS)
    }
}

impl Words for Cells<'_> {
    fn root(&self) -> &SessionKey {
        &self.root
    }

    fn say(&mut self, words: &str) -> Result<()> {
        let mut cells = vec![0.0; CELLS as usize];
        let Some((length, bytes)) = cells.split_first_mut().filter(|(_, bytes)| words.len() <= bytes.len())
        else {
            let resource = "bytes of what two workers say to each other".to_owned();
            return Err(Error::Limit { resource, limit: CELLS - 1, asked: words.len() as u64 });
        };
        *length = words.len() as f32;
        bytes.iter_mut().zip(words.bytes()).for_each(|(cell, byte)| *cell = f32::from(byte));
        self.table.set_range(Cells::of(self.client.rank())?, &cells)?.wait()?;
        self.client.barrier()
    }

    fn hear(&mut self) -> Result<String> {
        self.client.barrier()?;
        let mut cells = vec![0.0; CELLS as usize];
        self.table.pull_range(Cells::of(1 - self.client.rank())?, &mut cells)?;
        let length = cells[0] as usize;
        let bytes = cells[1..].iter().take(length).map(|&cell| cell as u8).collect();
        String::from_utf8(bytes).map_err(|e| Error::protocol(PEER, "words", "UTF-8", e))
    }
}
