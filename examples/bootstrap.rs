//! A job without a launcher: rank 0 makes a blob, and hands it to every other process by its own means, here a pipe to each. With MPI
//! it would be `MPI_Bcast`.

use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::thread;

use windlass::server::coordinator::{CoordinatorServer, CoordinatorServerConfig};
use windlass::{Bootstrap, Client, ClientConfig, Error, Secret, Server, SortedKeys, TableSpec};

const WORKERS: u32 = 2;

fn main() -> windlass::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        None => lead(),
        Some("server") => Server::joining(&received()?)?.start()?.run(),
        Some(rank) => work(&received()?, rank.parse().unwrap_or(WORKERS)),
    }
}

/// Rank 0: has the coordinator, starts the others, and is a worker, too.
fn lead() -> windlass::Result<()> {
    let config = CoordinatorServerConfig::new(Secret::generate()?, "example", 1, Some(WORKERS));
    let coordinator = CoordinatorServer::bind(config)?;
    let bootstrap = coordinator.bootstrap()?;
    let coordinating = thread::spawn(move || coordinator.run());
    let mut others = Vec::new();
    for role in ["server", "1"] {
        let failed = |e| Error::io("start", role, e);
        let program = std::env::current_exe().map_err(failed)?;
        // Nothing but the pipe tells them where the job is.
        let mut command = Command::new(program);
        let mut child = command.arg(role).env_clear().stdin(Stdio::piped()).spawn().map_err(failed)?;
        if let Some(mut pipe) = child.stdin.take() {
            pipe.write_all(&bootstrap.to_bytes()).map_err(failed)?;
        }
        others.push(child);
    }
    work(&bootstrap, 0)?;
    for mut other in others {
        let status = other.wait().map_err(|e| Error::io("wait for", other.id(), e))?;
        assert!(status.success(), "{status}");
    }
    match coordinating.join() {
        Ok(outcome) => outcome.map(drop),
        Err(_) => Err(Error::Aborted { reason: "the coordinator's thread panicked".to_owned() }),
    }
}

fn received() -> windlass::Result<Bootstrap> {
    let mut blob = [0; Bootstrap::BYTES];
    std::io::stdin().read_exact(&mut blob).map_err(|e| Error::io("read", "the blob", e))?;
    Bootstrap::from_bytes(&blob)
}

fn work(bootstrap: &Bootstrap, rank: u32) -> windlass::Result<()> {
    let client = Client::connect(ClientConfig::joining(bootstrap, rank, WORKERS)?)?;
    let table = client.table(&TableSpec::sparse("weights", 1))?;
    let keys = SortedKeys::new(&[3, 17])?;
    table.push(keys, &[1.0, 1.0 + rank as f32])?;
    client.clock()?;
    let mut weights = [0.0; 2];
    table.pull(keys, &mut weights)?;
    println!("worker {rank}: {weights:?}"); // the mean of both pushes, stepped along
    client.finalize()
}
