// A job for the documents' examples: coordinator and server in this process. They include this file, hidden.

struct InProcess {
    config: windlass::ClientConfig,
    coordinator: std::thread::JoinHandle<windlass::Result<windlass::server::coordinator::Outcome>>,
    server: windlass::ServerHandle,
}

impl InProcess {
    /// A job of one worker.
    fn start() -> windlass::Result<InProcess> {
        use windlass::server::coordinator::{CoordinatorServer, CoordinatorServerConfig};
        let secret = windlass::Secret::generate()?;
        let config = CoordinatorServerConfig::new(secret.clone(), "", 1, Some(1));
        let coordinator = CoordinatorServer::bind(config)?;
        let address = coordinator.address().to_string();
        let coordinator = std::thread::spawn(move || coordinator.run());
        let server = windlass::Server::builder(&address, secret.clone()).start()?;
        Ok(InProcess { config: windlass::ClientConfig::new(&address, secret, 0, 1), coordinator, server })
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
