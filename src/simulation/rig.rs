//! The nodes of a job: server threads, workers, and one that plays the control links between them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender, unbounded};

use crate::client::simulated::{self as worker_side, Asked};
use crate::client::{Client, Table};
use crate::config::ServerLimits;
use crate::control::{Hub, HubConfig, HubWaker, this_process};
use crate::proto::ThreadStats;
use crate::proto::control::ControlMessage;
use crate::proto::secret::Secret;
use crate::server::simulated::{self as server_side, Fault, Listed, Said};
use crate::transport::SessionKey;
use crate::transport::sim::{SimFailure, SimNetwork, SimNode, SimOptions};
use crate::types::random::SplitMix64;
use crate::types::{Rank, Role, ServerInfo, ShardId, TableSpec, View};

/// A job and its network.
#[derive(Debug, Clone)]
pub struct Job {
    pub seed: u64,
    pub workers: u32,
    pub servers: u32,
    /// Of each server.
    pub threads: u32,
    pub limits: ServerLimits,
    pub tables: Vec<TableSpec>,
    pub options: SimOptions,
    /// Of every server thread.
    pub fault: Fault,
    /// How often some nodes are cut off from the others for a while.
    pub partitions: u32,
    /// A worker that dies at this instant, and comes again as a new process.
    pub crash: Option<(Rank, Duration)>,
}

impl Job {
    /// A job without faults on a network without losses.
    pub fn new(seed: u64, workers: u32, (servers, threads): (u32, u32), tables: Vec<TableSpec>) -> Job {
        let limits = ServerLimits {
            staging_bytes: 1 << 20,
            payload_bytes: 4096,
            slots: 4,
            pull_credits: 8,
            reply_buffers: 8,
            ..ServerLimits::default()
        };
        let (options, fault) = (SimOptions::default(), Fault::None);
        Job { seed, workers, servers, threads, limits, tables, options, fault, partitions: 0, crash: None }
    }

    /// Runs it; each worker does `work`.
    pub fn run(&self, work: impl Fn(&Worker) + Send + Sync + 'static) -> Result<Outcome, SimFailure> {
        let network = SimNetwork::new(self.seed, self.options.clone());
        let identity = this_process(Role::Worker, None).unwrap();
        // Nobody polls this hub: it is there for its waker, which engines want.
        let hub = Hub::new(HubConfig::new(Secret::generate().unwrap(), "", identity)).unwrap();
        let servers = (0..self.servers).map(|rank| {
            let address = String::new();
            ServerInfo { rank, address, threads: self.threads, first: 0 }
        });
        let view = View { epoch: 1, servers: servers.collect(), workers: self.workers };
        let (job, work) = (Arc::new(self.clone()), Arc::new(work));
        let listed = Arc::new(Mutex::new(Listed::default()));
        let server_wires: Vec<_> =
            (0..self.shards()).map(|shard| self.serve(&network, shard, listed.clone())).collect();
        let (plugs, wires) = unbounded();
        let done = Arc::new(AtomicUsize::new(0));
        let start = Start { job, view, waker: hub.waker(), plugs, done, work };
        for rank in 0..self.workers {
            start.clone().work(&network, rank, 0);
        }
        let found = Arc::new(Mutex::new(Vec::new()));
        let control = Control {
            random: SplitMix64::new(self.seed, 1),
            servers: server_wires,
            joined: wires,
            workers: HashMap::new(),
            asked: HashMap::new(),
            tokens: 0,
            stats: found.clone(),
            start: start.clone(),
        };
        network.spawn("control", move |node| control.run(&node)).unwrap();
        if self.partitions > 0 {
            let (job, done) = (start.job.clone(), start.done.clone());
            network.spawn("weather", move |node| job.weather(&node, &done)).unwrap();
        }
        if let Some((rank, at)) = self.crash {
            let node = self.worker_node(rank);
            let body = move |own: SimNode| {
                own.sleep(at);
                own.network().crash(node);
                start.work(own.network(), rank, 1);
            };
            network.spawn("fate", body).unwrap();
        }
        network.run()?;
        let stats = found.lock().unwrap().clone();
        let registered = (0..self.shards()).map(|shard| network.registered_bytes(shard)).collect();
        let listed = *listed.lock().unwrap();
        Ok(Outcome { stats, listed, registered, trace: network.trace() })
    }

    fn shards(&self) -> usize {
        (self.servers * self.threads) as usize
    }

    /// Server threads come first in the network, then workers.
    fn worker_node(&self, rank: Rank) -> usize {
        self.shards() + rank as usize
    }

    fn serve(&self, network: &SimNetwork, shard: usize, listed: Arc<Mutex<Listed>>) -> server_side::Wires {
        let (wires, ends) = server_side::wires();
        let (server, thread) = (shard as u32 / self.threads, shard as u32 % self.threads);
        let (limits, fault) = (self.limits, self.fault);
        let body = move |node: SimNode| {
            node.doing("serving");
            let transport = Box::new(node.transport().unwrap());
            let id = ShardId { server, thread };
            let here = server_side::serve(transport, id, limits, ends, fault).unwrap();
            let mut all = listed.lock().unwrap();
            (all.named, all.replaced) = (all.named + here.named, all.replaced + here.replaced);
        };
        network.spawn(&format!("server {server} thread {thread}"), body).unwrap();
        wires
    }

    /// Cuts some nodes off from the others, now and then.
    fn weather(&self, node: &SimNode, done: &AtomicUsize) {
        let mut random = SplitMix64::new(self.seed, 2);
        let nodes = self.worker_node(self.workers);
        for _ in 0..self.partitions {
            node.doing("waiting for the next partition");
            node.sleep(Duration::from_nanos(random.below(2 * self.options.longest)));
            if done.load(Ordering::Relaxed) == self.workers as usize {
                break;
            }
            let apart: Vec<usize> = (0..nodes).filter(|_| random.below(2) == 0).collect();
            node.network().partition(&apart, Duration::from_nanos(random.below(4 * self.options.lost_after)));
        }
    }
}

/// What is left of a job.
pub struct Outcome {
    /// Of each server thread.
    pub stats: Vec<ThreadStats>,
    /// What came of lists of keys at all of them.
    pub listed: Listed,
    /// Memory that each server thread has registered, in bytes.
    pub registered: Vec<usize>,
    /// See [`SimNetwork::trace`].
    pub trace: u64,
}

/// A worker, as its script sees it.
pub struct Worker {
    pub rank: Rank,
    pub node: SimNode,
    pub client: Client,
    pub tables: Vec<Table>,
    start: Start,
}

impl Worker {
    /// Ends its pushing, and waits until all the others have done so.
    pub fn finish(&self) {
        self.node.doing("finish");
        self.client.finish().unwrap();
        self.start.done.fetch_add(1, Ordering::Relaxed);
        let (done, all) = (self.start.done.clone(), self.start.job.workers as usize);
        self.node.wait_for("the other workers to finish", move || done.load(Ordering::Relaxed) >= all);
    }
}

/// What a worker's process starts with.
#[derive(Clone)]
struct Start {
    job: Arc<Job>,
    view: View,
    waker: HubWaker,
    plugs: Sender<Plug>,
    /// Workers that have finished, then those that have left.
    done: Arc<AtomicUsize>,
    work: Arc<dyn Fn(&Worker) + Send + Sync>,
}

/// A worker's process has come.
struct Plug {
    rank: Rank,
    incarnation: u64,
    node: usize,
    wires: worker_side::Wires,
}

impl Start {
    fn work(self, network: &SimNetwork, rank: Rank, incarnation: u64) {
        let body = move |node: SimNode| {
            node.doing("connecting");
            let transport = Box::new(node.transport().unwrap());
            let (joining, wires) =
                worker_side::prepare(transport, &self.view, rank, export(rank), self.waker.clone()).unwrap();
            self.plugs.send(Plug { rank, incarnation, node: node.id(), wires }).unwrap();
            let client = joining.connect().unwrap_or_else(|error| node.fail(&error.to_string()));
            let tables = (0..).zip(&self.job.tables).map(|(id, spec)| client.made_table(id, spec)).collect();
            let worker = Worker { rank, node, client, tables, start: self };
            (worker.start.work)(&worker);
            worker.start.done.fetch_add(1, Ordering::Relaxed);
        };
        network.spawn(&format!("worker {rank}"), body).unwrap();
    }
}

/// The root of a worker's endpoint keys.
fn export(rank: Rank) -> SessionKey {
    [rank as u8 + 1; 32]
}

/// Carries wishes for endpoints to server threads, and the answers back; each takes a while.
struct Control {
    random: SplitMix64,
    servers: Vec<server_side::Wires>,
    joined: Receiver<Plug>,
    /// By node.
    workers: HashMap<usize, Plug>,
    /// By token: from which node.
    asked: HashMap<u64, (usize, Asked)>,
    tokens: u64,
    stats: Arc<Mutex<Vec<ThreadStats>>>,
    start: Start,
}

impl Control {
    fn run(mut self, node: &SimNode) {
        let Start { job, view, .. } = self.start.clone();
        for (shard, wires) in self.servers.iter().enumerate() {
            wires.begin(shard as u32 / job.threads, &view, &job.tables);
            node.network().nudge(shard);
        }
        // Each worker counts twice: when it has finished, and when it has left.
        let all = 2 * job.workers as usize;
        while self.start.done.load(Ordering::Relaxed) < all {
            self.hear(node, all);
        }
        for (shard, wires) in self.servers.iter().enumerate() {
            wires.ask_stats();
            node.network().nudge(shard);
        }
        while self.stats.lock().unwrap().len() < self.servers.len() {
            self.hear(node, usize::MAX);
        }
        for (shard, wires) in self.servers.iter().enumerate() {
            wires.stop();
            node.network().nudge(shard);
        }
    }

    /// Waits for something to carry, or until `done` workers are done, and carries one thing of each.
    fn hear(&mut self, node: &SimNode, done: usize) {
        let mut ears: Vec<_> = self.servers.iter().map(server_side::Wires::ear).collect();
        ears.extend(self.workers.values().map(|plug| plug.wires.ear()));
        let (joined, so_far) = (self.joined.clone(), self.start.done.clone());
        node.wait_for("carrying control messages", move || {
            so_far.load(Ordering::Relaxed) >= done || !joined.is_empty() || ears.iter().any(|ear| ear())
        });
        while let Ok(plug) = self.joined.try_recv() {
            self.workers.insert(plug.node, plug);
        }
        let mut nodes: Vec<usize> = self.workers.keys().copied().collect();
        nodes.sort_unstable();
        for worker in nodes {
            if let Some(asked) = self.workers[&worker].wires.next() {
                self.pause(node);
                self.open(node, worker, asked);
            }
        }
        for shard in 0..self.servers.len() {
            match self.servers[shard].next() {
                None => {}
                Some(Said::Answer(token, message)) => {
                    self.pause(node);
                    let (worker, asked) = self.asked.remove(&token).unwrap();
                    asked.answer(message);
                    node.network().nudge(worker);
                }
                Some(Said::Stats(stats)) => self.stats.lock().unwrap().push(stats),
                Some(Said::Failed(why)) => node.fail(&format!("server thread {shard}: {why}")),
            }
        }
    }

    fn open(&mut self, node: &SimNode, worker: usize, asked: Asked) {
        let ControlMessage::OpenEndpoint { thread, .. } = &asked.message else { return };
        let shard = asked.server * self.start.job.threads as usize + *thread as usize;
        let plug = &self.workers[&worker];
        let export = export(plug.rank);
        self.servers[shard].open(self.tokens, plug.rank, plug.incarnation, &export, &asked.message);
        self.asked.insert(self.tokens, (worker, asked));
        self.tokens += 1;
        node.network().nudge(shard);
    }

    fn pause(&mut self, node: &SimNode) {
        let longest = self.start.job.options.longest;
        node.sleep(Duration::from_nanos(self.random.below(longest)));
    }
}
