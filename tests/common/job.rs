//! A job in this process: coordinator and servers over loopback TCP.

use std::thread::JoinHandle;

use windlass::server::coordinator::{CoordinatorServer, CoordinatorServerConfig, Outcome};
use windlass::{Client, ClientConfig, Result, Secret, Server, ServerBuilder, ServerHandle};

/// Its coordinator and servers; the workers are the test's.
pub struct Job {
    pub address: String,
    pub secret: Secret,
    workers: u32,
    coordinator: JoinHandle<Result<Outcome>>,
    servers: Vec<ServerHandle>,
}

impl Job {
    /// `servers` that are started here of `expected` that the job has.
    pub fn with(servers: u32, expected: u32, threads: u32, workers: u32) -> Job {
        Job::set_up((servers, expected), workers, |server| server.threads(threads))
    }

    /// As [`Job::with`]; `set` says what the servers are like.
    pub fn set_up(
        (servers, expected): (u32, u32),
        workers: u32,
        set: impl Fn(ServerBuilder) -> ServerBuilder,
    ) -> Job {
        let secret = Secret::generate().unwrap();
        let config = CoordinatorServerConfig::new(secret.clone(), "", expected, Some(workers));
        let coordinator = CoordinatorServer::bind(config).unwrap();
        let address = coordinator.address().to_string();
        let start = |_| set(Server::builder(&address, secret.clone())).start().unwrap();
        let servers = (0..servers).map(start).collect();
        let coordinator = std::thread::spawn(move || coordinator.run());
        Job { address, secret, workers, coordinator, servers }
    }

    /// All servers are started here.
    pub fn start(servers: u32, threads: u32, workers: u32) -> Job {
        Job::with(servers, servers, threads, workers)
    }

    /// Joins as a worker; blocks until all others have, too.
    pub fn client(&self, rank: u32) -> Client {
        Client::connect(ClientConfig::new(&self.address, self.secret.clone(), rank, self.workers)).unwrap()
    }

    /// Waits for the end that the workers' `finalize` brings.
    pub fn end(self) {
        self.coordinator.join().unwrap().unwrap();
        for server in self.servers {
            server.run().unwrap();
        }
    }
}
