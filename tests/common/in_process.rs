// A job for the documents' examples and for benches: coordinator and server in this process. They include this file, the examples hidden.

struct InProcess {
    config: windlass::ClientConfig,
    coordinator: std::thread::JoinHandle<windlass::Result<windlass::server::coordinator::Outcome>>,
    server: windlass::ServerHandle,
}

impl InProcess {
    /// A job of one worker.
    #[allow(dead_code)] // benches say how its data travels
    fn start() -> windlass::Result<InProcess> {
        InProcess::over(windlass::config::Network::default())
    }

    /// One whose data travels as `network` says.
    fn over(network: windlass::config::Network) -> windlass::Result<InProcess> {
        use windlass::server::coordinator::{CoordinatorServer, CoordinatorServerConfig};
        let secret = windlass::Secret::generate()?;
        let config = CoordinatorServerConfig::new(secret.clone(), "", 1, Some(1));
        let coordinator = CoordinatorServer::bind(config)?;
        let address = coordinator.address().to_string();
        let coordinator = std::thread::spawn(move || coordinator.run());
        let server = windlass::Server::builder(&address, secret.clone()).network(network.clone()).start()?;
        let config = windlass::ClientConfig { network, ..windlass::ClientConfig::new(&address, secret, 0, 1) };
        Ok(InProcess { config, coordinator, server })
    }

    /// What its worker needs.
    fn config(&self) -> windlass::ClientConfig {
        self.config.clone()
    }

    /// Waits until the job has ended well.
    fn end(self) -> windlass::Result<()> {
        self.coordinator.join().expect("the coordinator does not panic")?;
        self.server.run()
    }
}
