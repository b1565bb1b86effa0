//! Joining a job: the Coordinator's View first, then an endpoint to every server thread.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender};

use super::ClientConfig;
use super::control::{ControlLinks, PATIENCE, SETTLE, Shared};
use super::cuts::Cuts;
use super::engine::Engine;
use super::link::Link;
use super::reopen::{Granted, Outcome, Reopener, Wish};
use crate::control::{Event, Hub, HubConfig, Limits, LinkId, this_process};
use crate::error::{Error, Result};
use crate::mem::{Arena, Pool};
use crate::proto::HEADER;
use crate::proto::control::{ControlMessage, reason};
use crate::proto::handshake::derive_endpoint_key;
use crate::time::Deadline;
use crate::transport::{SessionKey, Transport, choice};
use crate::types::{Clock, Identity, Offer, Role, ServerInfo, View};

/// The buffers of a pool as (bytes, count): `memory` bytes of the longest, an eighth of it more for shorter ones, and a 64th for
/// the shortest.
fn buffers(memory: usize, longest: usize) -> [(usize, usize); 3] {
    [(1 << 10, memory >> 16), (16 << 10, memory >> 17), (longest, memory / longest)]
}

/// A worker that has joined; its endpoints are being connected.
pub struct Joined {
    pub view: View,
    /// Each server, and the filters that both ends know.
    pub filters: Vec<(String, Vec<String>)>,
    /// By what data travels.
    pub agreed: choice::Agreed,
    pub engine: Engine,
    pub links: ControlLinks,
    pub shared: Arc<Shared>,
}

/// The control links while the caller's own thread drives them.
struct Joining {
    hub: Hub,
    coordinator: LinkId,
    deadline: Deadline,
    events: Vec<Event>,
    /// Links that are up, with who is there, the root of its endpoints' keys, and the filters that it knows, too.
    up: HashMap<LinkId, (Identity, SessionKey, Vec<String>)>,
    answers: Vec<(LinkId, ControlMessage)>,
    /// What the job goes on from: the clock, and this worker's state.
    resumed: Option<(Clock, Vec<u8>)>,
    /// What the Coordinator says of cuts meanwhile.
    early: Vec<ControlMessage>,
    /// The first server that was lost, and when.
    lost: Option<(Instant, Error)>,
}

/// By what the job's data travels, and why by nothing better.
struct Agreed {
    kind: choice::Agreed,
    reason: String,
}

/// Joins the job; blocks until all nodes are there and all endpoints are open.
pub fn join(config: &ClientConfig, deadline: Deadline) -> Result<Joined> {
    if config.rank >= config.workers {
        return Err(Error::config("rank", format!("0 to {}", config.workers.saturating_sub(1)), config.rank));
    }
    let offer = choice::offer(&config.network)?;
    let mut hub_config =
        HubConfig::new(config.secret.clone(), &config.job, this_process(Role::Worker, Some(config.rank))?);
    hub_config.limits = Limits::of(&config.network);
    hub_config.limits.connect_timeout = hub_config.limits.connect_timeout.min(config.connect_timeout);
    let mut hub = Hub::new(hub_config)?;
    let coordinator = hub.dial(&config.coordinator, "the coordinator")?;
    let mut joining = Joining {
        hub,
        coordinator,
        deadline,
        events: Vec::new(),
        up: HashMap::new(),
        answers: Vec::new(),
        resumed: None,
        early: Vec::new(),
        lost: None,
    };
    let (view, agreed) = joining.view(config, &offer)?;
    let clock = joining.resumed.as_ref().map_or(0, |(clock, _)| *clock);
    let cuts =
        joining.resumed.take().map_or_else(Cuts::default, |(clock, state)| Cuts::resumed(clock, state));
    let shared = Arc::new(Shared::new(config.rank, clock, cuts)?);
    let kind = agreed.kind;
    let opened = joining.dial(&view.servers).and_then(|servers| {
        let opened = joining.endpoints(config, &view, &servers, agreed, shared.clone())?;
        Ok((servers, opened))
    });
    let (servers, (engine, wishes, outcomes)) = opened.map_err(|error| joining.give_up(error))?;
    let export = |link: &LinkId| joining.up.get(link).map_or([0; 32], |(_, export, _)| *export);
    let filters = |(server, link): (&ServerInfo, &LinkId)| {
        let chosen = joining.up.get(link).map_or_else(Vec::new, |(.., chosen)| chosen.clone());
        (format!("server {}", server.rank), chosen)
    };
    let filters = view.servers.iter().zip(&servers).map(filters).collect();
    let servers = view.servers.iter().zip(servers).map(|(s, link)| (s.rank, link, export(&link))).collect();
    let early = joining.early;
    let links = ControlLinks { hub: joining.hub, coordinator, servers, wishes, outcomes, early };
    Ok(Joined { view, filters, agreed: kind, engine, links, shared })
}

impl Joining {
    /// The View, and by what the job's data travels.
    fn view(&mut self, config: &ClientConfig, offer: &Offer) -> Result<(View, Agreed)> {
        let coordinator = self.coordinator;
        self.until(&format!("the coordinator at {}", config.coordinator), |j| {
            j.up.contains_key(&coordinator).then_some(())
        })?;
        self.hub.send(coordinator, &ControlMessage::Offer(offer.clone()))?;
        let join = ControlMessage::Join {
            role: Role::Worker,
            rank: Some(config.rank),
            workers: Some(config.workers),
            address: None,
            threads: 0,
            first: 0,
        };
        self.hub.send(coordinator, &join)?;
        let waited_for =
            format!("the other nodes of the job (this is worker {} of {})", config.rank, config.workers);
        self.until(&waited_for, |j| {
            let at = j.answers.iter().position(|(_, m)| matches!(m, ControlMessage::View(_)))?;
            match j.answers.swap_remove(at).1 {
                ControlMessage::View(view) => Some((view, j.agreed(offer))),
                _ => None,
            }
        })
    }

    /// What the Coordinator said ahead of the View; the best that we have where it says nothing.
    fn agreed(&mut self, offer: &Offer) -> Agreed {
        let is_agreed = |(_, m): &(LinkId, ControlMessage)| matches!(m, ControlMessage::Agreed { .. });
        let said = self.answers.iter().position(is_agreed).map(|at| self.answers.swap_remove(at).1);
        match said {
            Some(ControlMessage::Agreed { transport, local, reason }) => {
                Agreed { kind: choice::Agreed { kind: transport, local }, reason }
            }
            _ => Agreed { kind: choice::Agreed::untold(offer), reason: String::new() },
        }
    }

    fn dial(&mut self, servers: &[ServerInfo]) -> Result<Vec<LinkId>> {
        let mut links = Vec::new();
        for server in servers {
            links.push(self.hub.dial(&server.address, &format!("server {}", server.rank))?);
        }
        let all = links.clone();
        self.until("the servers", |j| all.iter().all(|l| j.up.contains_key(l)).then_some(()))?;
        Ok(links)
    }

    /// Opens an endpoint to every thread of every server, in the order of the partition map's shards.
    fn endpoints(
        &mut self,
        config: &ClientConfig,
        view: &View,
        servers: &[LinkId],
        agreed: Agreed,
        shared: Arc<Shared>,
    ) -> Result<(Engine, Receiver<Wish>, Sender<Outcome>)> {
        let mut network = config.network.clone();
        // A server thread writes to its ring of replies, and announces nothing else.
        network.rdma.receives = config.limits.ring_entries;
        let mut transport = choice::build_agreed(&network, agreed.kind, choice::Seat::Dials)?;
        let kind = transport.caps().name;
        let (used, polling) = (transport.caps().describe(), config.network.polling);
        tracing::info!("worker {}: data travels by {used}, poll {polling}", config.rank);
        let threads: usize = view.servers.iter().map(|s| s.threads as usize).sum();
        let limits = config.limits;
        let ring_bytes = limits.ring_entries as usize * HEADER;
        let ring = Arena::new(threads * ring_bytes)?;
        let ring_region = transport.register(ring.clone())?;
        let [short, middle, long] = buffers(limits.send_bytes, limits.payload_bytes);
        let batches = (limits.batch_bytes, (limits.send_bytes / 8).div_ceil(limits.batch_bytes));
        let staging =
            Pool::of(transport.memory(), &[short, middle, long, batches], |arena| transport.register(arena))?;
        let receive = buffers(limits.receive_bytes, limits.payload_bytes);
        let receive = Pool::new(&receive, |arena| transport.register(arena))?;
        let mut links = Vec::new();
        let mut keys = Vec::new();
        for (place, (server, &control)) in view.servers.iter().zip(servers).enumerate() {
            let Some((identity, export, _)) = self.up.get(&control).cloned() else { continue };
            for thread in 0..server.threads {
                // A server may have shaken hands before it knew its rank; the View knows it.
                let peer = format!("server {} ({}) thread {thread}", server.rank, identity.process);
                let at = (place, thread, server.first.saturating_add(thread));
                let mut link = Link::new(at, peer, (ring.clone(), links.len() * ring_bytes), &limits);
                let opening = link.open(transport.as_mut(), ring_region, &receive)?;
                let wish = Wish::new(links.len(), &link, kind, opening);
                self.hub.send(control, &wish.message(links.len() as u32))?;
                keys.push((control, derive_endpoint_key(&export, "data", &[thread])));
                links.push(link);
            }
        }
        self.grants(&mut links, &keys, transport.as_mut())?;
        let timeout = config.network.reconnect_timeout;
        let (reopener, wishes, outcomes) = Reopener::new(ring_region, kind, timeout, self.hub.waker());
        let memory = (staging, receive);
        let how = (config.network.polling, limits);
        let mut engine = Engine::new(transport, how, links, memory, view.epoch, shared, reopener);
        engine.fallback = agreed.reason;
        Ok((engine, wishes, outcomes))
    }

    fn grants(
        &mut self,
        links: &mut [Link],
        keys: &[(LinkId, SessionKey)],
        transport: &mut dyn Transport,
    ) -> Result<()> {
        for _ in 0..links.len() {
            let (from, answer) = self.until("the servers to open endpoints", |j| {
                let is_answer = |m: &ControlMessage| {
                    matches!(
                        m,
                        ControlMessage::EndpointOpened { .. } | ControlMessage::EndpointRefused { .. }
                    )
                };
                let at = j.answers.iter().position(|(_, m)| is_answer(m))?;
                Some(j.answers.swap_remove(at))
            })?;
            let Some((request, granted)) = Granted::of(answer) else { continue };
            let request = request as usize;
            let asked = keys.get(request).filter(|(control, _)| *control == from);
            let (Some((_, key)), Some(link)) = (asked, links.get_mut(request)) else {
                let peer = self.hub.peer_name(from).unwrap_or("a server").to_owned();
                return Err(Error::protocol(peer, "request", "one that we made", request));
            };
            let (grant, address) = Granted::check(granted, &link.peer)?;
            link.granted(grant)?;
            if let Some(endpoint) = link.endpoint {
                transport.connect(endpoint, &address, key)?;
            }
        }
        Ok(())
    }

    /// Says to the Coordinator why this worker can't take part, so that the others hear the reason, and not just that a link closed.
    fn give_up(&mut self, error: Error) -> Error {
        let abort = ControlMessage::Abort { reason: reason(error.to_string()) };
        // If it is gone, that is known.
        let _ = self.hub.send(self.coordinator, &abort);
        let _ = self.hub.shut_down(PATIENCE);
        error
    }

    /// Drives the hub until `done` gives something.
    fn until<T>(&mut self, waited_for: &str, done: impl Fn(&mut Joining) -> Option<T>) -> Result<T> {
        loop {
            if let Some(result) = done(self) {
                return Ok(result);
            }
            let left = self.deadline.left(Instant::now());
            if left.is_zero() {
                let waited_for = waited_for.to_owned();
                return Err(Error::Timeout { waited_for, after: self.deadline.given() });
            }
            let mut events = std::mem::take(&mut self.events);
            self.hub.poll(&mut events, left.min(Duration::from_secs(1)))?;
            for event in events.drain(..) {
                self.take(event)?;
            }
            self.events = events;
            if let Some((_, error)) = self.lost.take_if(|(since, _)| since.elapsed() >= SETTLE) {
                return Err(error);
            }
        }
    }

    fn take(&mut self, event: Event) -> Result<()> {
        match event {
            Event::Up { link, peer, export, chosen, .. } => {
                self.up.insert(link, (peer, export, chosen));
            }
            Event::Message { message: ControlMessage::JoinRefused { reason }, .. } => {
                return Err(Error::Refused { peer: "the coordinator".to_owned(), reason });
            }
            Event::Message { message: ControlMessage::Resume { clock, state, .. }, .. } => {
                self.resumed = Some((clock, state));
            }
            Event::Message { message: ControlMessage::Abort { reason }, .. } => {
                return Err(Error::Aborted { reason });
            }
            Event::Message {
                message: cut @ (ControlMessage::Cut { .. } | ControlMessage::CancelCut { .. }),
                ..
            } => {
                self.early.push(cut);
            }
            Event::Message { link, message } => self.answers.push((link, message)),
            Event::Down { link, reason, .. } if link == self.coordinator => return Err(reason),
            Event::Down { reason, .. } => {
                self.lost.get_or_insert((Instant::now(), reason));
            }
            Event::Refused { .. } => {}
        }
        Ok(())
    }
}
