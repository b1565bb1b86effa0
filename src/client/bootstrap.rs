//! Joining a job: the Coordinator's View first, then an endpoint to every server thread.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::ClientConfig;
use super::control::{SETTLE, Shared};
use super::engine::Engine;
use super::link::{Grant, Link, RING_ENTRIES};
use crate::control::{Event, Hub, HubConfig, LinkId, this_process};
use crate::error::{Error, Result};
use crate::mem::{Arena, Pool, RegionId, RemoteRegion, Rights};
use crate::proto::HEADER;
use crate::proto::control::ControlMessage;
use crate::proto::handshake::derive_endpoint_key;
use crate::time::Deadline;
use crate::transport::{self, SessionKey, Side, Transport};
use crate::types::{Identity, Role, ServerInfo, View};

/// Buffers of one pool, as (bytes, count): staging for pushes, and as much again to receive pulls.
const BUFFERS: [(usize, usize); 3] = [(1 << 10, 256), (16 << 10, 128), (256 << 10, 64)];

/// How long an address is dialled where nobody listens yet.
const DIAL: Duration = Duration::from_secs(15);

/// A worker that has joined.
pub struct Joined {
    pub view: View,
    pub engine: Engine,
    pub hub: Hub,
    pub coordinator: LinkId,
    /// The servers' control links, in the order of the View.
    pub servers: Vec<(u32, LinkId)>,
    pub shared: Arc<Shared>,
}

/// The control links while the caller's own thread drives them.
struct Joining {
    hub: Hub,
    coordinator: LinkId,
    deadline: Deadline,
    events: Vec<Event>,
    /// Links that are up, with who is there and the root of its endpoints' keys.
    up: HashMap<LinkId, (Identity, SessionKey)>,
    answers: Vec<(LinkId, ControlMessage)>,
    /// The first server that was lost, and when.
    lost: Option<(Instant, Error)>,
}

/// Joins the job; blocks until all nodes are there and all endpoints are connected.
pub fn join(config: &ClientConfig) -> Result<Joined> {
    if config.rank >= config.workers {
        return Err(Error::config("rank", format!("0 to {}", config.workers.saturating_sub(1)), config.rank));
    }
    let mut hub_config =
        HubConfig::new(config.secret.clone(), &config.job, this_process(Role::Worker, Some(config.rank))?);
    hub_config.limits.peer_timeout = config.network.peer_timeout;
    hub_config.limits.connect_timeout = config.connect_timeout.min(DIAL);
    let mut hub = Hub::new(hub_config)?;
    let coordinator = hub.dial(&config.coordinator, "the coordinator")?;
    let mut joining = Joining {
        hub,
        coordinator,
        deadline: Deadline::after(Instant::now(), config.connect_timeout),
        events: Vec::new(),
        up: HashMap::new(),
        answers: Vec::new(),
        lost: None,
    };
    let view = joining.view(config)?;
    let servers = joining.dial(&view.servers)?;
    let shared = Arc::new(Shared::new()?);
    let mut engine = joining.endpoints(config, &view, &servers, shared.clone())?;
    engine.connect(joining.deadline)?;
    let servers = view.servers.iter().map(|s| s.rank).zip(servers).collect();
    Ok(Joined { view, engine, hub: joining.hub, coordinator, servers, shared })
}

impl Joining {
    fn view(&mut self, config: &ClientConfig) -> Result<View> {
        let coordinator = self.coordinator;
        self.until(&format!("the coordinator at {}", config.coordinator), |j| {
            j.up.contains_key(&coordinator).then_some(())
        })?;
        let join = ControlMessage::Join {
            role: Role::Worker,
            rank: Some(config.rank),
            workers: Some(config.workers),
            address: None,
            threads: 0,
        };
        self.hub.send(coordinator, &join)?;
        let waited_for =
            format!("the other nodes of the job (this is worker {} of {})", config.rank, config.workers);
        self.until(&waited_for, |j| {
            let at = j.answers.iter().position(|(_, m)| matches!(m, ControlMessage::View(_)))?;
            match j.answers.swap_remove(at).1 {
                ControlMessage::View(view) => Some(view),
                _ => None,
            }
        })
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
        shared: Arc<Shared>,
    ) -> Result<Engine> {
        let mut transport = transport::build(&config.network, false)?;
        let kind = transport.caps().name;
        let threads: usize = view.servers.iter().map(|s| s.threads as usize).sum();
        let ring_bytes = RING_ENTRIES as usize * HEADER;
        let ring = Arena::new(threads * ring_bytes)?;
        let ring_region = transport.register(ring.clone())?;
        let staging = Pool::new(&BUFFERS, |arena| transport.register(arena))?;
        let receive = Pool::new(&BUFFERS, |arena| transport.register(arena))?;
        let mut links = Vec::new();
        let mut keys = Vec::new();
        for (server, &control) in view.servers.iter().zip(servers) {
            let Some((identity, export)) = self.up.get(&control).cloned() else { continue };
            for thread in 0..server.threads {
                let peer = format!("{identity} thread {thread}");
                let (endpoint, address) = transport.open(Side::Active, &peer)?;
                let offset = links.len() * ring_bytes;
                let mut grant = |region: RegionId, offset, length| -> Result<RemoteRegion> {
                    transport.authorise(endpoint, region, offset, length, Rights::Write)
                };
                let open = ControlMessage::OpenEndpoint {
                    request: links.len() as u32,
                    thread,
                    transport: kind.to_owned(),
                    address,
                    ring: grant(ring_region, offset, ring_bytes)?.encode(),
                    ring_entries: RING_ENTRIES,
                    receive: grant(receive.region(), 0, receive.arena().len())?.encode(),
                };
                self.hub.send(control, &open)?;
                keys.push((control, derive_endpoint_key(&export, "data", &[thread])));
                links.push(Link::new(endpoint, peer, ring.clone(), offset));
            }
        }
        self.grants(&mut links, &keys, transport.as_mut())?;
        let memory = (staging, receive);
        Ok(Engine::new(transport, config.network.polling, links, memory, view.epoch, shared))
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
            let (request, opened) = match answer {
                ControlMessage::EndpointOpened {
                    request,
                    address,
                    slots,
                    slot_count,
                    slot_bytes,
                    pull_credits,
                } => (request as usize, Ok((address, slots, slot_count, slot_bytes, pull_credits))),
                ControlMessage::EndpointRefused { request, reason } => (request as usize, Err(reason)),
                _ => continue,
            };
            let asked = keys.get(request).filter(|(control, _)| *control == from);
            let (Some((_, key)), Some(link)) = (asked, links.get_mut(request)) else {
                let peer = self.hub.peer_name(from).unwrap_or("a server").to_owned();
                return Err(Error::protocol(peer, "request", "one that we made", request));
            };
            let (address, slots, slot_count, slot_bytes, pull_credits) =
                opened.map_err(|reason| Error::Refused { peer: link.peer.clone(), reason })?;
            let slots = RemoteRegion::decode(&slots)
                .ok_or_else(|| Error::protocol(&link.peer, "slots", "a region", "malformed bytes"))?;
            link.granted(Grant { slots, slot_count, slot_bytes, pull_credits })?;
            transport.connect(link.endpoint, &address, key)?;
        }
        Ok(())
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
            Event::Up { link, peer, export, .. } => {
                self.up.insert(link, (peer, export));
            }
            Event::Message { message: ControlMessage::JoinRefused { reason }, .. } => {
                return Err(Error::Refused { peer: "the coordinator".to_owned(), reason });
            }
            Event::Message { message: ControlMessage::Abort { reason }, .. } => {
                return Err(Error::Aborted { reason });
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
