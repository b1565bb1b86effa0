//! A job in this process.

use std::thread::JoinHandle;

use windlass::config::{Network, TransportChoice, TransportKind};
use windlass::server::coordinator::{CoordinatorServer, CoordinatorServerConfig, Outcome};
use windlass::{Client, ClientConfig, Result, Secret, Server, ServerBuilder, ServerHandle};

/// Its coordinator and servers; the workers are the test's.
pub struct Job {
    pub address: String,
    pub secret: Secret,
    pub coordinator: JoinHandle<Result<Outcome>>,
    pub servers: Vec<ServerHandle>,
    /// Of all of its nodes, unless a test sets another.
    pub network: Network,
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
        Job::over(super::transport(), servers, expected, workers, set)
    }

    fn over(
        transport: TransportChoice,
        servers: u32,
        expected: u32,
        workers: u32,
        set: impl Fn(ServerBuilder) -> ServerBuilder,
    ) -> Job {
        let secret = Secret::generate().unwrap();
        let config = CoordinatorServerConfig::new(secret.clone(), "", expected, Some(workers));
        let coordinator = CoordinatorServer::bind(config).unwrap();
        let address = coordinator.address().to_string();
        let network = Network { transport, ..Network::default() };
        let start = |_| {
            let server = Server::builder(&address, secret.clone()).network(network.clone());
            set(server).start().unwrap()
        };
        let servers = (0..servers).map(start).collect();
        let coordinator = std::thread::spawn(move || coordinator.run());
        Job { address, secret, coordinator, servers, network, workers }
    }

    /// All servers are started here, as `set` says.
    pub fn start_with(servers: u32, workers: u32, set: impl Fn(ServerBuilder) -> ServerBuilder) -> Job {
        Job::with(servers, servers, workers, set)
    }

    /// All servers are started here.
    pub fn start(servers: u32, threads: u32, workers: u32) -> Job {
        Job::start_with(servers, workers, |server| server.threads(threads))
    }

    /// The same, whatever is the default, over TCP.
    pub fn over_tcp(servers: u32, threads: u32, workers: u32) -> Job {
        let tcp = TransportChoice::Only(TransportKind::Tcp);
        Job::over(tcp, servers, servers, workers, |server| server.threads(threads))
    }

    /// How worker `rank` joins.
    pub fn config(&self, rank: u32) -> ClientConfig {
        let config = ClientConfig::new(&self.address, self.secret.clone(), rank, self.workers);
        ClientConfig { network: self.network.clone(), ..config }
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
