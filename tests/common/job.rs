//! A job in this process: coordinator and servers over loopback TCP.

use std::thread::JoinHandle;

use windlass::server::coordinator::{CoordinatorServer, CoordinatorServerConfig, Outcome};
use windlass::{Client, ClientConfig, Result, Secret, Server, ServerBuilder, ServerHandle};

/// Its coordinator and servers; the workers are the test's.
pub struct Job {
    pub address: String,
    pub secret: Secret,
    pub coordinator: JoinHandle<Result<Outcome>>,
    pub servers: Vec<ServerHandle>,
    workers: u32,
}

impl Job {
    /// `servers` that are started here, as `set` says, of `expected` that the job has.
    pub fn with(
        servers: u32,
        expected: u32,
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
        Job { address, secret, coordinator, servers, workers }
    }

    /// All servers are started here, as `set` says.
    pub fn start_with(servers: u32, workers: u32, set: impl Fn(ServerBuilder) -> ServerBuilder) -> Job {
        Job::with(servers, servers, workers, set)
    }

    /// All servers are started here.
    pub fn start(servers: u32, threads: u32, workers: u32) -> Job {
        Job::start_with(servers, workers, |server| server.threads(threads))
    }

    /// How worker `rank` joins.
    pub fn config(&self, rank: u32) -> ClientConfig {
        ClientConfig::new(&self.address, self.secret.clone(), rank, self.workers)
    }

    /// Joins as a worker; blocks until all others have, too.
    pub fn client(&self, rank: u32) -> Client {
        Client::connect(self.config(rank)).unwrap()
    }

    /// Runs `body` as every worker; gives what each returned, by rank.
    pub fn workers<T: Send + 'static>(
        &self,
        workers: u32,
        body: impl Fn(Client) -> T + Send + Clone + 'static,
    ) -> Vec<T> {
        let start = |rank| {
            let (config, body) = (self.config(rank), body.clone());
            std::thread::spawn(move || body(Client::connect(config).unwrap()))
        };
        let threads: Vec<_> = (0..workers).map(start).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    }

    /// Waits for the end that the workers' `finalize` brings.
    pub fn end(self) {
        self.coordinator.join().unwrap().unwrap();
        for server in self.servers {
            server.run().unwrap();
        }
    }
}
