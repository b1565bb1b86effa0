//! Opening an endpoint anew: a lost connection is not a lost peer.
//!
//! The engine asks for it; the control thread carries the wish to the server, and the outcome back.

use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender, unbounded};

use super::link::{Grant, Link, Opening};
use crate::control::HubWaker;
use crate::error::{Error, Result};
use crate::mem::{RegionId, RemoteRegion};
use crate::proto::control::{ControlMessage, RegionBytes};
use crate::proto::handshake::derive_endpoint_key;
use crate::transport::{EndpointId, SessionKey};

/// An endpoint that is to be opened at a server thread.
#[derive(Debug)]
pub struct Wish {
    /// The server's place in the View.
    pub server: usize,
    link: usize,
    endpoint: Option<EndpointId>,
    thread: u32,
    ring_entries: u32,
    transport: &'static str,
    opening: Opening,
}

impl Wish {
    /// For the present endpoint of `link`, which is the engine's number `place`.
    pub fn new(place: usize, link: &Link, transport: &'static str, opening: Opening) -> Wish {
        let (endpoint, thread, ring_entries) = (link.endpoint, link.thread, link.ring_entries);
        Wish { server: link.server, link: place, endpoint, thread, ring_entries, transport, opening }
    }

    /// What the server is told.
    pub fn message(&self, request: u32) -> ControlMessage {
        ControlMessage::OpenEndpoint {
            request,
            thread: self.thread,
            transport: self.transport.to_owned(),
            address: self.opening.address.clone(),
            ring: self.opening.ring,
            ring_entries: self.ring_entries,
            receive: self.opening.receive,
        }
    }

    /// What becomes of it with the server's answer; `export` is the root of the control link's endpoint keys.
    pub fn outcome(self, granted: std::result::Result<Granted, String>, export: &SessionKey) -> Outcome {
        let key = derive_endpoint_key(export, "data", &[self.thread]);
        Outcome::Answered { link: self.link, endpoint: self.endpoint, key, granted }
    }
}

/// A server's answer, as it came.
#[derive(Debug)]
pub struct Granted {
    pub address: Vec<u8>,
    pub slots: RegionBytes,
    pub slot_count: u32,
    pub slot_bytes: u32,
    pub pull_credits: u32,
    pub key_lists: u32,
}

impl Granted {
    /// The request that a message answers, and how; nothing for other messages.
    pub fn of(message: ControlMessage) -> Option<(u32, std::result::Result<Granted, String>)> {
        match message {
            ControlMessage::EndpointOpened {
                request,
                address,
                slots,
                slot_count,
                slot_bytes,
                pull_credits,
                key_lists,
            } => {
                let granted = Granted { address, slots, slot_count, slot_bytes, pull_credits, key_lists };
                Some((request, Ok(granted)))
            }
            ControlMessage::EndpointRefused { request, reason } => Some((request, Err(reason))),
            _ => None,
        }
    }

    /// The grant and the address to connect to; an error when `peer` refused, or sent no region.
    pub fn check(granted: std::result::Result<Granted, String>, peer: &str) -> Result<(Grant, Vec<u8>)> {
        let Granted { address, slots, slot_count, slot_bytes, pull_credits, key_lists } =
            granted.map_err(|reason| Error::Refused { peer: peer.to_owned(), reason })?;
        let slots = RemoteRegion::decode(&slots)
            .ok_or_else(|| Error::protocol(peer, "slots", "a region", "malformed bytes"))?;
        Ok((Grant { slots, slot_count, slot_bytes, pull_credits, key_lists }, address))
    }
}

/// What the control thread tells the engine, in the order in which servers said it.
#[derive(Debug)]
pub enum Outcome {
    /// What became of a wish.
    Answered {
        link: usize,
        endpoint: Option<EndpointId>,
        key: SessionKey,
        granted: std::result::Result<Granted, String>,
    },
    /// A server has lost our endpoint to one of its threads.
    Lost { server: usize, thread: u32 },
}

/// The same, as the engine needs it.
pub enum Heard {
    /// Connect the present endpoint of a link.
    Granted { link: usize, grant: Grant, address: Vec<u8>, key: SessionKey },
    /// Close this endpoint, which leads nowhere.
    Lost(EndpointId),
}

/// The engine's side.
pub struct Reopener {
    ring: RegionId,
    transport: &'static str,
    timeout: Duration,
    waker: HubWaker,
    wishes: Sender<Wish>,
    outcomes: Receiver<Outcome>,
    /// Links without a connected endpoint: since when, and why.
    lost: Vec<(usize, Instant, Error)>,
}

impl Reopener {
    /// A reopener, and the ends of its channels that the control thread holds.
    pub fn new(
        ring: RegionId,
        transport: &'static str,
        timeout: Duration,
        waker: HubWaker,
    ) -> (Reopener, Receiver<Wish>, Sender<Outcome>) {
        // Never longer than the number of links: each has at most one endpoint that is being opened.
        let (wishes, wished) = unbounded();
        let (done, outcomes) = unbounded();
        let reopener = Reopener { ring, transport, timeout, waker, wishes, outcomes, lost: Vec::new() };
        (reopener, wished, done)
    }

    /// The reply rings, as the transport knows them.
    pub fn ring(&self) -> RegionId {
        self.ring
    }

    /// Asks for a new endpoint of `link`, which was lost for a reason.
    pub fn ask(&mut self, place: usize, link: &Link, opening: Opening, reason: Error) -> Result<()> {
        if !self.lost.iter().any(|(l, ..)| *l == place) {
            self.lost.push((place, Instant::now(), reason));
        }
        // A control thread that is gone has failed, and its failure ends the engine.
        let _ = self.wishes.send(Wish::new(place, link, self.transport, opening));
        self.waker.wake()
    }

    /// What servers said next of endpoints that are still ours.
    pub fn heard(&mut self, links: &[Link]) -> Result<Option<Heard>> {
        // Taking nothing from a channel costs a fence.
        while !self.outcomes.is_empty()
            && let Ok(outcome) = self.outcomes.try_recv()
        {
            match outcome {
                Outcome::Answered { link: place, endpoint, key, granted } => {
                    let Some(link) = links.get(place) else { continue };
                    // An endpoint that was lost again meanwhile has been asked for anew.
                    if link.endpoint == endpoint {
                        let (grant, address) = Granted::check(granted, &link.peer)?;
                        return Ok(Some(Heard::Granted { link: place, grant, address, key }));
                    }
                }
                Outcome::Lost { server, thread } => {
                    let meant = |link: &&Link| (link.server, link.thread) == (server, thread);
                    // One that is not connected is being opened anew already: the server says that it lost the old one
                    // before it answers for the new one.
                    let lost =
                        links.iter().find(meant).filter(|link| link.connected).and_then(|l| l.endpoint);
                    if let Some(endpoint) = lost {
                        return Ok(Some(Heard::Lost(endpoint)));
                    }
                }
            }
        }
        Ok(None)
    }

    /// A link has an endpoint again.
    pub fn connected(&mut self, link: usize) {
        self.lost.retain(|(l, ..)| *l != link);
    }

    /// The loss that has lasted too long, if there is one.
    pub fn check_deadlines(&self) -> Result<()> {
        match self.lost.iter().find(|(_, since, _)| since.elapsed() >= self.timeout) {
            None => Ok(()),
            Some((.., reason)) => Err(reason.clone()),
        }
    }
}
