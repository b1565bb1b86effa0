//! Who may take part, and under which rank.

use super::*;

/// The most threads of one server.
const MAX_THREADS: u32 = 256;

type Wish = (Role, Option<Rank>, Option<u32>, Option<String>, (u32, u32));

impl Coordinator {
    /// Lets a node in or refuses it with a reason; a refused node does no harm to the job.
    pub(super) fn join(
        &mut self,
        link: u64,
        (role, rank, workers, address, threads): Wish,
        now: Instant,
        out: &mut Vec<Output>,
    ) -> Result<(), Fault> {
        let Some(node) = self.nodes.get(&link) else { return Ok(()) };
        if node.joined {
            return Err("a second time".into());
        }
        if role != node.identity.role {
            return Err(format!("as a {role}, but the handshake said {}", node.identity));
        }
        let decided = match role {
            _ if self.state != State::Gathering => Err("the job has started without it".to_owned()),
            Role::Coordinator => Err("a job has one coordinator".to_owned()),
            role => self.check_offer(link).and_then(|()| match role {
                Role::Server => self.join_server(link, rank, address, threads),
                _ => self.join_worker(link, rank, workers),
            }),
        };
        match decided {
            Ok(rank) => {
                node_of(&mut self.nodes, link, |node| {
                    node.identity.rank = Some(rank);
                    node.joined = true;
                });
                out.push(Output::Send { link, message: ControlMessage::Joined { rank } });
                if let (None, Some(patience)) = (self.deadline, self.config.gather_timeout) {
                    self.deadline = Some(now + patience);
                }
                self.start_when_complete(now, out);
            }
            Err(why) => {
                let name = self.name(link);
                out.push(Output::Send {
                    link,
                    message: ControlMessage::JoinRefused { reason: reason(why.as_str()) },
                });
                out.push(Output::Close { link, reason: format!("{name} may not join: {why}") });
                self.nodes.remove(&link);
            }
        }
        Ok(())
    }

    fn join_server(
        &mut self,
        link: u64,
        rank: Option<Rank>,
        address: Option<String>,
        (threads, first): (u32, u32),
    ) -> Result<Rank, String> {
        let expected = self.config.servers;
        let rank = match self.agreed_rank(link, rank)? {
            Some(rank) => rank,
            None => (0..expected)
                .find(|rank| !self.server_links.contains_key(rank))
                .ok_or_else(|| format!("all {expected} servers are there"))?,
        };
        if rank >= expected {
            return Err(format!("server rank {rank} of a job with {expected} servers"));
        }
        if let Some(&other) = self.server_links.get(&rank) {
            return Err(format!("server {rank} is there already: {}", self.name(other)));
        }
        if !(1..=MAX_THREADS).contains(&threads) {
            return Err(format!("a server with {threads} threads, expected 1 to {MAX_THREADS}"));
        }
        let address = address.ok_or("a server without an address")?;
        let mut socket: SocketAddr = address
            .parse()
            .map_err(|_| format!("the server's address: expected IP:PORT, found {address:?}"))?;
        if socket.port() == 0 {
            return Err(format!("the server's address {socket} has no port"));
        }
        if socket.ip().is_unspecified() {
            // It listens everywhere: the others reach it where we see it.
            socket.set_ip(self.nodes.get(&link).ok_or("no such link")?.peer_address);
        }
        self.server_links.insert(rank, link);
        self.servers.insert(rank, ServerInfo { rank, address: socket.to_string(), threads, first });
        Ok(rank)
    }

    fn join_worker(&mut self, link: u64, rank: Option<Rank>, workers: Option<u32>) -> Result<Rank, String> {
        let rank = self.agreed_rank(link, rank)?.ok_or("a worker without a rank")?;
        let expected = match (self.workers, workers) {
            (Some(known), Some(claim)) if known != claim => {
                return Err(format!("worker {rank} says {claim} workers, the job has {known}"));
            }
            (Some(known), _) => known,
            (None, Some(claim)) if claim == 0 || claim as usize > MAX_NODES => {
                return Err(format!("worker {rank} says {claim} workers, expected 1 to {MAX_NODES}"));
            }
            (None, Some(claim)) => claim,
            (None, None) => return Err("nobody has said how many workers there are".into()),
        };
        if rank >= expected {
            return Err(format!("worker rank {rank} of a job with {expected} workers"));
        }
        if let Some(&other) = self.worker_links.get(&rank) {
            return Err(format!("worker {rank} is there already: {}", self.name(other)));
        }
        self.workers = Some(expected);
        self.worker_links.insert(rank, link);
        Ok(rank)
    }

    /// The rank in the handshake and that in Join must not contradict each other.
    fn agreed_rank(&self, link: u64, asked: Option<Rank>) -> Result<Option<Rank>, String> {
        let shown = self.nodes.get(&link).and_then(|node| node.identity.rank);
        match (shown, asked) {
            (Some(shown), Some(asked)) if shown != asked => {
                Err(format!("rank {asked}, but the handshake said {shown}"))
            }
            (shown, asked) => Ok(asked.or(shown)),
        }
    }

    fn start_when_complete(&mut self, now: Instant, out: &mut Vec<Output>) {
        let Some(workers) = self.workers else { return };
        let complete = self.server_links.len() == self.config.servers as usize
            && self.worker_links.len() == workers as usize;
        if !complete {
            return;
        }
        self.deadline = None;
        match self.config.resumed {
            Some(_) => self.verify(out),
            None => self.start(now, out),
        }
    }

    /// All nodes are there, and what they go on from is whole.
    pub(super) fn start(&mut self, now: Instant, out: &mut Vec<Output>) {
        let Some(workers) = self.workers else { return };
        self.state = State::Running;
        self.resume(out);
        let view = View { epoch: 1, servers: self.servers.values().cloned().collect(), workers };
        let (transport, local, reason) = self.agreed();
        for &link in self.server_links.values().chain(self.worker_links.values()) {
            let agreed = ControlMessage::Agreed { transport, local, reason: reason.clone() };
            out.push(Output::Send { link, message: agreed });
            out.push(Output::Send { link, message: ControlMessage::View(view.clone()) });
        }
        self.begin_cuts(now, out);
    }

    /// Who has not joined yet, for messages.
    pub fn missing(&self) -> String {
        let list = |there: &BTreeMap<Rank, u64>, expected: u32| -> String {
            let absent: Vec<Rank> = (0..expected).filter(|rank| !there.contains_key(rank)).collect();
            match absent.len() {
                0 => String::new(),
                1..=16 => format!("{absent:?}"),
                many => format!("{:?} and {} more", &absent[..16], many - 16),
            }
        };
        let servers = list(&self.server_links, self.config.servers);
        let workers = self.workers.map_or("all".to_owned(), |n| list(&self.worker_links, n));
        let part = |what: &str, ranks: String| (!ranks.is_empty()).then(|| format!("{what} {ranks}"));
        let parts: Vec<String> =
            [part("servers", servers), part("workers", workers)].into_iter().flatten().collect();
        parts.join(", ")
    }
}
