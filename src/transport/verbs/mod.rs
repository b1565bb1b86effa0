//! RDMA verbs: reliable-connected queue pairs over InfiniBand or RoCE.
//!
//! ```text
//!  Verbs (one thread) ── Context ── Port, GID
//!    │  CompletionQueue: every work request of every endpoint; its channel is the waitable descriptor
//!    └─ Endpoint ── QueuePair
//!                 ├ Domain: its own, so that its keys work for one peer only
//!                 ├ Regions: what the peer may reach; our arenas, when first used; headers and messages
//!                 └ operations under way, with the memory that they hold
//! ```
//!
//! | file | idea |
//! | --- | --- |
//! | `device` | devices, ports, the choice of the GID |
//! | `memory` | protection domains and memory regions |
//! | `cq` | the completion queue, and what a completion says |
//! | `qp` | queue pairs and their states |
//! | `super::pairing` | what `open` hands out; how two connected ends find each other |
//! | `endpoint` | one endpoint: its memory, its phases, its end |
//! | `post`, `arrive` | operations on their way out, completions on their way in |
//! | `patience` | devices that neither do an operation nor say that it failed |
//! | `ffi` | the C shim |
//! | `faults` | in test builds, queue pairs that fail |
//!
//! Receive buffers serve messages and writes with a number alike. When a peer sends more than are posted, its device waits
//! and tries again, so a thread that does not poll slows its peers down and loses nothing, unless it makes them wait for longer than their
//! patience. An error of one operation ends the endpoint: RC queue pairs can't go on. So does a device that says nothing for so long. A peer that dies is noticed
//! when something is sent to it; the control connection notices earlier, and the layer above then closes the endpoint. Closing, and dropping the transport, say goodbye
//! to a peer whose device answers.

mod arrive;
mod cq;
mod device;
mod endpoint;
#[cfg(test)]
pub mod faults;
mod ffi;
mod memory;
mod patience;
mod post;
mod qp;

pub use super::pairing::GidKind;
pub use device::{DeviceInfo, Gid, are_there, available, rails};

use std::collections::VecDeque;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use self::cq::{CompletionQueue, Entry, WorkId};
use self::device::{Context, Port};
use self::endpoint::{CONTROLS, Endpoint, Progress, Shared};
use self::memory::Domain;
use self::qp::{QueuePair, Settings};
use super::rails::Rail;
use super::topology::RailPort;
use super::{
    Caps, Completion, EndpointId, Message, Read, Refusal, Rejected, SessionKey, Side, Transport, Write,
};
use crate::config::rdma::{Devices, Switch};
use crate::config::{Network, Rdma};
use crate::error::{Error, Result};
use crate::mem::{Arena, RegionId, RemoteRegion, Rights};
use crate::time::Deadline;

/// How a [`Verbs`] transport is set up.
#[derive(Debug, Clone)]
pub struct VerbsConfig {
    /// What users may set. One transport uses one port, the first that can be used.
    pub rdma: Rdma,
    /// Completion vector, modulo those that the device has.
    pub vector: u32,
    /// Endpoints that may exist at once; fewer where the device's completion queues are short. Room for them is made when they are opened.
    pub endpoints: usize,
    /// Times that a peer without a receive buffer is asked again; 7 for ever.
    pub rnr_retries: u8,
    /// How long a peer may take between our `connect` and its own.
    pub connect_timeout: Duration,
    /// For how long a device may neither do what it was given nor say that it failed; then the peer is lost.
    pub patience: Duration,
}

impl Default for VerbsConfig {
    fn default() -> VerbsConfig {
        VerbsConfig {
            rdma: Rdma::default(),
            vector: 0,
            endpoints: usize::from(u16::MAX),
            rnr_retries: 7,
            connect_timeout: Duration::from_secs(30),
            patience: Duration::from_secs(30),
        }
    }
}

impl VerbsConfig {
    /// What the network settings say, on one of the rails that they allow.
    pub fn of(network: &Network, rail: &RailPort, vector: u32) -> VerbsConfig {
        let device = Devices::only(&rail.device, rail.port);
        let rdma = Rdma { device, ..network.rdma.clone() };
        let (connect_timeout, patience) = (network.peer_timeout, network.peer_timeout);
        VerbsConfig { rdma, vector, connect_timeout, patience, ..VerbsConfig::default() }
    }
}

/// Refuses settings or a machine with which no transport can be made, with what is missing.
pub fn check(network: &Network) -> Result<()> {
    check_layouts()?;
    network.rdma.check()?;
    Port::find(&network.rdma).map(drop)
}

fn check_layouts() -> Result<()> {
    if ffi::layouts_agree() {
        return Ok(());
    }
    Err(Error::Device {
        operation: "open",
        device: "libibverbs".to_owned(),
        reason: "its header does not match the bindings this program was built with".to_owned(),
    })
}

/// A place in the table of endpoints.
#[derive(Default)]
struct Place {
    generation: u32,
    endpoint: Option<Box<Endpoint>>,
}

/// The verbs transport.
pub struct Verbs {
    caps: Caps,
    /// Endpoints that there may be.
    most: usize,
    // Before what they share, though an `Arc` in each would keep that alive anyway.
    places: Vec<Place>,
    free: Vec<u32>,
    shared: Shared,
    /// Endpoints with queued work.
    dirty: Vec<u32>,
    /// Endpoints that are connecting or ending.
    watched: Vec<u32>,
    /// Completions taken from the queue but not yet looked at.
    entries: VecDeque<Entry>,
    /// Completions made outside of `poll`.
    ready: VecDeque<Completion>,
    /// Endpoints with receive buffers to post, reused.
    returned: Vec<u32>,
    /// Whether an event may have come since the last look at the descriptor.
    armed: bool,
    /// Polls since the clock was looked at, and when the next look at what is under way is due.
    untimed: u32,
    next_look: Instant,
}

impl Verbs {
    /// Opens the device.
    pub fn new(config: &VerbsConfig) -> Result<Verbs> {
        check_layouts()?;
        check_bounds(config)?;
        let (context, port) = Port::find(&config.rdma)?;
        let vector = config.vector % context.vectors();
        let mut settings = settings(config, &context);
        let most = most_endpoints(config, &context, &settings)?;
        let endpoints = most.min(FIRST);
        let completions = CompletionQueue::new(&context, endpoints * settings.completions(), vector)?;
        // What the device takes inline is known once it has made a queue pair.
        let domain = Domain::new(&context, false)?;
        settings.inline = QueuePair::new(&context, &domain, &completions, settings)?.inline();
        let shared = Shared {
            context,
            port,
            completions,
            settings,
            depth: settings.sends - CONTROLS,
            receives: settings.receives,
            connect_timeout: config.connect_timeout,
            patience: config.patience,
            arenas: Vec::new(),
        };
        let mut places = Vec::new();
        places.resize_with(endpoints, Place::default);
        Ok(Verbs {
            caps: caps(&shared, vector),
            most,
            places,
            free: (0..endpoints as u32).rev().collect(),
            shared,
            dirty: Vec::new(),
            watched: Vec::new(),
            entries: VecDeque::new(),
            ready: VecDeque::new(),
            returned: Vec::new(),
            armed: false,
            untimed: 0,
            next_look: Instant::now(),
        })
    }

    /// The live endpoint `id`, with what it shares with the others.
    fn parts(&mut self, id: EndpointId) -> Option<(&mut Endpoint, &mut Shared)> {
        let place = self.places.get_mut(id.index as usize).filter(|p| p.generation == id.generation)?;
        Some((place.endpoint.as_deref_mut()?, &mut self.shared))
    }

    /// Makes places for more endpoints, and room for their completions.
    fn grow(&mut self) -> Result<()> {
        let (now, each) = (self.places.len(), self.shared.settings.completions());
        if now == self.most {
            let (name, longest) = (&self.shared.context.name, self.shared.context.attributes.max_cqe);
            return Err(Error::Limit {
                resource: format!(
                    "endpoints of one thread on {name} (its completion queues hold {longest}, and an endpoint takes {each}: a smaller \
                     rdma_queue_depth, or more server threads)"
                ),
                limit: now as u64,
                asked: now as u64 + 1,
            });
        }
        let wanted = (2 * now).min(self.most);
        self.shared.completions.resize(wanted * each)?;
        self.places.resize_with(wanted, Place::default);
        self.free.extend((now as u32..wanted as u32).rev());
        Ok(())
    }

    fn known(&mut self, id: EndpointId, call: &'static str) -> Result<(&mut Endpoint, &mut Shared)> {
        self.parts(id).ok_or_else(|| Error::Misuse {
            call,
            reason: format!("endpoint {} does not exist any more", id.index),
        })
    }

    /// Notes what an operation on `id` left to be done: work to flush, or an end to watch for.
    fn after(&mut self, id: EndpointId, taken: bool) {
        let Some((endpoint, _)) = self.parts(id) else { return };
        let (begins, ending) = (endpoint.begins_batch(), endpoint.is_ending());
        if taken && begins {
            self.dirty.push(id.index);
        }
        if ending {
            self.watch(id.index);
        }
    }

    fn watch(&mut self, index: u32) {
        if !self.watched.contains(&index) {
            self.watched.push(index);
        }
    }

    fn complete(&mut self, entry: Entry, out: &mut Vec<Completion>) {
        let index = u32::from(entry.id.index);
        let Some(place) = self.places.get_mut(index as usize) else { return };
        // A completion of an endpoint that was destroyed before all of its work was flushed.
        if place.generation & WorkId::GENERATION != u32::from(entry.id.generation) {
            return;
        }
        let Some(endpoint) = place.endpoint.as_deref_mut() else { return };
        let had = endpoint.has_returned();
        endpoint.complete(&self.shared, entry, out);
        let (returned, ending) = (endpoint.has_returned(), endpoint.is_ending());
        if returned && !had {
            self.returned.push(index);
        }
        if ending {
            self.watch(index);
        }
    }

    /// Posts the receive buffers that came back.
    fn replenish(&mut self) {
        let mut returned = std::mem::take(&mut self.returned);
        for index in returned.drain(..) {
            let Some(endpoint) = self.places[index as usize].endpoint.as_deref_mut() else { continue };
            if let Err(error) = endpoint.post_receives(&self.shared) {
                endpoint.abandon(error);
                self.watch(index);
            }
        }
        self.returned = returned;
    }

    /// Ends what has drained or waited too long.
    fn look_after(&mut self, out: &mut Vec<Completion>) {
        if self.watched.is_empty() {
            return;
        }
        let now = Instant::now();
        let mut watched = std::mem::take(&mut self.watched);
        watched.retain(|&index| {
            let place = &mut self.places[index as usize];
            let Some(endpoint) = place.endpoint.as_deref_mut() else { return false };
            match endpoint.watch(&self.shared, now) {
                Progress::Pending => true,
                Progress::Settled => false,
                Progress::Finished(reason) => {
                    let id = EndpointId { index, generation: place.generation };
                    release(place, index, &mut self.free);
                    out.push(Completion::Closed { endpoint: id, reason });
                    false
                }
            }
        });
        // Nothing above adds to the list.
        self.watched = watched;
    }

    /// Looks now and then at what every endpoint has under way: see `patience`. Whoever sleeps is woken for it by nobody: all that wait
    /// look around every second.
    fn look_at_all(&mut self, woken: bool) {
        self.untimed += 1;
        if !woken && self.untimed < UNTIMED {
            return;
        }
        self.untimed = 0;
        let now = Instant::now();
        if now < self.next_look {
            return;
        }
        self.next_look = now + patience::between(self.shared.patience);
        for index in 0..self.places.len() {
            let Some(endpoint) = self.places[index].endpoint.as_deref_mut() else { continue };
            endpoint.look(&self.shared);
            if endpoint.is_ending() {
                self.watch(index as u32);
            }
        }
    }

    fn fail_all(&mut self, error: &Error) {
        for index in 0..self.places.len() {
            if let Some(endpoint) = self.places[index].endpoint.as_deref_mut() {
                endpoint.abandon(error.clone());
                self.watch(index as u32);
            }
        }
    }

    /// Takes completions from the device. Whether there are any to look at.
    fn fetch(&mut self, limit: usize) -> bool {
        if self.entries.is_empty()
            && let Err(error) = self.shared.completions.poll(&mut self.entries, limit)
        {
            self.fail_all(&error);
        }
        !self.entries.is_empty()
    }
}

/// Polls in a row of a thread that does not sleep between two looks at the clock.
const UNTIMED: u32 = 1024;

/// How long dropping a transport may take to say goodbye.
const FAREWELL: Duration = Duration::from_millis(100);

impl Drop for Verbs {
    /// Says goodbye to the connected peers, for at most a tenth of a second.
    fn drop(&mut self) {
        let deadline = Deadline::after(Instant::now(), FAREWELL);
        for endpoint in self.places.iter_mut().filter_map(|p| p.endpoint.as_deref_mut()) {
            endpoint.close();
        }
        let mut ignored = Vec::new();
        while self.places.iter().any(|p| p.endpoint.as_ref().is_some_and(|e| e.is_leaving())) {
            if deadline.passed(Instant::now()) {
                break;
            }
            self.poll(&mut ignored, 256);
            ignored.clear();
        }
    }
}

/// Destroys the endpoint's queue pair, takes all its keys back, lets go of its payloads, and frees its place.
fn release(place: &mut Place, index: u32, free: &mut Vec<u32>) {
    place.endpoint = None;
    place.generation = place.generation.wrapping_add(1);
    free.push(index);
}

/// Messages of the peer's transport itself: its proof and its goodbye.
const OWN_MESSAGES: u32 = 2;

/// What every queue pair is made with.
fn settings(config: &VerbsConfig, context: &Context) -> Settings {
    let (attributes, rdma) = (&context.attributes, &config.rdma);
    Settings {
        sends: rdma.queue_depth.max(64).next_power_of_two() + CONTROLS,
        receives: rdma.receives.saturating_add(OWN_MESSAGES),
        reads: attributes.max_qp_rd_atom.min(attributes.max_qp_init_rd_atom).clamp(0, 16) as u8,
        timeout: rdma.timeout.unwrap_or(if context.is_software() { 18 } else { 14 }),
        retries: rdma.retries,
        rnr_retries: config.rnr_retries,
        traffic_class: rdma.traffic_class,
        service_level: rdma.service_level,
        pkey_index: rdma.pkey_index,
        inline: rdma.inline,
        relaxed_ordering: rdma.relaxed_ordering == Switch::On,
    }
}

/// Endpoints that there is room for at first.
const FIRST: usize = 64;

/// How many endpoints one completion queue can serve. It must never overflow, so it has room for every work request of every
/// endpoint, since all are flushed when a queue pair fails.
fn most_endpoints(config: &VerbsConfig, context: &Context, settings: &Settings) -> Result<usize> {
    let attributes = &context.attributes;
    let limit = |what: &str, limit: i32, asked: usize| {
        let limit = limit.max(0) as usize;
        if asked <= limit {
            return Ok(limit / asked);
        }
        let resource = format!(
            "{what} of {} (rdma_queue_depth {}, and {} receive buffers, which a worker has for its ring_entries)",
            context.name, config.rdma.queue_depth, settings.receives
        );
        Err(Error::Limit { resource, limit: limit as u64, asked: asked as u64 })
    };
    limit("queue pair", attributes.max_qp_wr, settings.sends.max(settings.receives) as usize)?;
    limit("completion queue", attributes.max_cqe, settings.completions())
        .map(|most| most.min(config.endpoints))
}

fn caps(shared: &Shared, vector: u32) -> Caps {
    let (port, settings) = (&shared.port, &shared.settings);
    Caps {
        name: "verbs",
        one_sided: true,
        keys_per_peer: true,
        queue_depth: shared.depth as usize,
        max_write: shared.max_write(),
        detail: format!(
            "{} port {}, {}, completion vector {vector}, MTU {}, service level {}, traffic class {}, pkey index {}, ACK timeout {}, {} retries, queue depth {}, \
             inline up to {}, relaxed ordering {}",
            shared.context.name,
            port.number,
            port.gid,
            device::mtu_bytes(port.mtu),
            settings.service_level,
            settings.traffic_class,
            settings.pkey_index,
            settings.timeout,
            settings.retries,
            shared.depth,
            settings.inline,
            if settings.relaxed_ordering { Switch::On } else { Switch::Off },
        ),
    }
}

/// Refuses what the verbs would, with the name of the setting.
fn check_bounds(config: &VerbsConfig) -> Result<()> {
    let within = |setting: &str, value: usize, low: usize, high: usize| {
        if (low..=high).contains(&value) {
            return Ok(());
        }
        Err(Error::config(format!("verbs {setting}"), format!("{low} to {high}"), value))
    };
    config.rdma.check()?;
    within("endpoints", config.endpoints, 1, usize::from(u16::MAX))?;
    within("rnr_retries", config.rnr_retries.into(), 0, 7)
}

impl Rail for Verbs {
    fn uses(&self, region: RegionId) -> bool {
        let Some(Some(arena)) = self.shared.arenas.get(region.0 as usize) else { return false };
        self.places.iter().filter_map(|p| p.endpoint.as_deref()).any(|e| e.uses(region, arena))
    }
}

impl Transport for Verbs {
    fn caps(&self) -> &Caps {
        &self.caps
    }

    fn register(&mut self, arena: Arc<Arena>) -> Result<RegionId> {
        let arenas = &mut self.shared.arenas;
        let place = arenas.iter().position(Option::is_none).unwrap_or(arenas.len());
        let id = u32::try_from(place)
            .map_err(|_| Error::Misuse { call: "register", reason: "too many arenas".to_owned() })?;
        if place == arenas.len() {
            arenas.push(None);
        }
        arenas[place] = Some(arena);
        Ok(RegionId(id))
    }

    fn unregister(&mut self, region: RegionId) -> bool {
        if self.uses(region) {
            return false;
        }
        for endpoint in self.places.iter_mut().filter_map(|p| p.endpoint.as_deref_mut()) {
            endpoint.unregister(region);
        }
        if let Some(place) = self.shared.arenas.get_mut(region.0 as usize) {
            *place = None;
        }
        true
    }

    fn open(&mut self, side: Side, peer: &str) -> Result<(EndpointId, Vec<u8>)> {
        if self.free.is_empty() {
            self.grow()?;
        }
        let Some(index) = self.free.pop() else {
            return Err(Error::Misuse { call: "open", reason: "no place was made".to_owned() });
        };
        let place = &mut self.places[index as usize];
        let id = EndpointId { index, generation: place.generation };
        match Endpoint::new(&self.shared, id, side, peer) {
            Ok(endpoint) => {
                let address = endpoint.address();
                place.endpoint = Some(Box::new(endpoint));
                Ok((id, address))
            }
            Err(error) => {
                release(place, index, &mut self.free);
                Err(error)
            }
        }
    }

    fn authorise(
        &mut self,
        endpoint: EndpointId,
        region: RegionId,
        offset: usize,
        length: usize,
        rights: Rights,
    ) -> Result<RemoteRegion> {
        let (endpoint, shared) = self.known(endpoint, "authorise")?;
        let Some(Some(arena)) = shared.arenas.get(region.0 as usize) else {
            let reason = format!("region {} was never registered", region.0);
            return Err(Error::Misuse { call: "authorise", reason });
        };
        if endpoint.is_ending() {
            return Err(Error::Misuse { call: "authorise", reason: "the endpoint is closing".to_owned() });
        }
        endpoint.authorise(arena, offset, length, rights)
    }

    fn withdraw(&mut self, endpoint: EndpointId, remote: &RemoteRegion) -> Result<()> {
        match self.parts(endpoint) {
            Some((known, _)) => known.withdraw(remote),
            // A closed endpoint reaches nothing.
            None => Ok(()),
        }
    }

    fn connect(&mut self, endpoint: EndpointId, address: &[u8], key: &SessionKey) -> Result<()> {
        let (known, shared) = self.known(endpoint, "connect")?;
        if !known.is_opened() {
            let reason = "the endpoint was connected or closed before".to_owned();
            return Err(Error::Misuse { call: "connect", reason });
        }
        known.connect(shared, address, key)?;
        self.watch(endpoint.index);
        Ok(())
    }

    fn send(&mut self, endpoint: EndpointId, message: Message) -> std::result::Result<(), Rejected<Message>> {
        let Some((known, shared)) = self.parts(endpoint) else {
            return Err(Rejected { operation: message, refusal: Refusal::NotConnected });
        };
        let answer = known.send(shared, &message);
        self.after(endpoint, answer.is_ok());
        answer.map_err(|refusal| Rejected { operation: message, refusal })
    }

    fn write(&mut self, endpoint: EndpointId, mut write: Write) -> std::result::Result<(), Rejected<Write>> {
        let Some((known, shared)) = self.parts(endpoint) else {
            return Err(Rejected { operation: write, refusal: Refusal::NotConnected });
        };
        let answer = known.write(shared, &mut write);
        self.after(endpoint, answer.is_ok());
        answer.map_err(|refusal| Rejected { operation: write, refusal })
    }

    fn read(&mut self, endpoint: EndpointId, read: Read) -> std::result::Result<(), Rejected<Read>> {
        let Some((known, shared)) = self.parts(endpoint) else {
            return Err(Rejected { operation: read, refusal: Refusal::NotConnected });
        };
        let answer = known.read(shared, &read);
        self.after(endpoint, answer.is_ok());
        answer.map_err(|refusal| Rejected { operation: read, refusal })
    }

    fn flush(&mut self) {
        let mut dirty = std::mem::take(&mut self.dirty);
        for index in dirty.drain(..) {
            let Some(endpoint) = self.places[index as usize].endpoint.as_deref_mut() else { continue };
            endpoint.flush();
            if endpoint.is_ending() {
                self.watch(index);
            }
        }
        self.dirty = dirty;
    }

    fn poll(&mut self, completions: &mut Vec<Completion>, budget: usize) {
        let woken = std::mem::take(&mut self.armed);
        if woken {
            self.shared.completions.take_events();
        }
        completions.extend(self.ready.drain(..));
        let mut left = budget;
        while left > 0 && self.fetch(left) {
            while left > 0
                && let Some(entry) = self.entries.pop_front()
            {
                self.complete(entry, completions);
                left -= 1;
            }
        }
        self.replenish();
        // Else there may be completions that were not taken yet.
        if left > 0 {
            self.look_at_all(woken);
        }
        self.look_after(completions);
    }

    fn waitable(&self) -> RawFd {
        self.shared.completions.fd()
    }

    fn arm(&mut self) -> bool {
        self.shared.completions.take_events();
        self.armed = true;
        if let Err(error) = self.shared.completions.arm() {
            self.fail_all(&error);
        }
        // An endpoint ends within moments, by a completion or by the clock: it is not worth sleeping.
        let ending =
            |&i: &u32| self.places[i as usize].endpoint.as_ref().is_some_and(|endpoint| endpoint.is_ending());
        let busy = !self.ready.is_empty() || self.watched.iter().any(ending);
        // What came before the queue was armed makes no event.
        !self.fetch(64) && !busy
    }

    fn close(&mut self, endpoint: EndpointId) {
        let Some((known, _)) = self.parts(endpoint) else { return };
        if known.is_opened() {
            // No peer was ever let in: there is nothing to drain.
            release(&mut self.places[endpoint.index as usize], endpoint.index, &mut self.free);
            self.ready.push_back(Completion::Closed { endpoint, reason: None });
            return;
        }
        known.close();
        self.watch(endpoint.index);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_out_of_range_are_named() {
        let wrong = [
            (
                "rdma_retries",
                VerbsConfig { rdma: Rdma { retries: 7, ..Rdma::default() }, ..VerbsConfig::default() },
            ),
            ("endpoints", VerbsConfig { endpoints: 1 << 16, ..VerbsConfig::default() }),
            ("rnr_retries", VerbsConfig { rnr_retries: 8, ..VerbsConfig::default() }),
        ];
        for (name, config) in wrong {
            let error = check_bounds(&config).unwrap_err();
            assert!(error.to_string().contains(name), "{error}");
        }
        assert!(check_bounds(&VerbsConfig::default()).is_ok());
    }

    #[test]
    fn first_packets_have_random_numbers() {
        if !available().unwrap().iter().any(|d| d.active) {
            println!("skipped: no RDMA device");
            return;
        }
        let mut verbs = Verbs::new(&VerbsConfig::default()).unwrap();
        let mut numbers: Vec<u32> = Vec::new();
        for _ in 0..4 {
            let (id, _) = verbs.open(Side::Active, "a peer").unwrap();
            numbers.push(verbs.parts(id).unwrap().0.local.psn);
        }
        // By chance once in 2^72.
        assert!(numbers.windows(2).any(|two| two[0] != two[1]), "{numbers:?}");
    }
}
