//! One endpoint's state, and the table of all of them.
//!
//! ```text
//!  Opened ──connect (passive)──▶ Expecting ──dialled and proved──▶ Connected
//!     └─────connect (active)───▶ Dialing ─────────proved──────────────▲
//! ```

use std::collections::VecDeque;
use std::os::fd::AsRawFd;
use std::time::Instant;

use mio::net::TcpStream;

use super::dial::Dialer;
use super::preamble::Secret;
use super::rx::Rx;
use super::tx::Tx;
use crate::error::Error;
use crate::mem::RegionSlice;
use crate::transport::grants::Grants;
use crate::transport::{EndpointId, Side};

/// A read whose answer has not come.
#[derive(Debug)]
pub(super) struct PendingRead {
    pub read: u64,
    pub local: RegionSlice,
    pub context: u64,
}

/// An authenticated connection.
#[derive(Debug)]
pub(super) struct Connection {
    pub stream: TcpStream,
    pub rx: Rx,
    pub tx: Tx,
    pub reads: VecDeque<PendingRead>,
    pub next_read: u64,
    /// Stands in the queue of endpoints to receive from, or to send to.
    pub in_rx: bool,
    pub in_tx: bool,
    /// The end of the stream, or an error, was announced.
    pub ending: bool,
    /// Why nothing can be sent any more; what the peer had sent before is still received.
    pub broken: Option<Error>,
}

impl Connection {
    pub fn new(stream: TcpStream, depth: usize) -> Connection {
        Connection {
            stream,
            rx: Rx::new(),
            tx: Tx::new(depth),
            reads: VecDeque::new(),
            next_read: 0,
            in_rx: false,
            in_tx: false,
            ending: false,
            broken: None,
        }
    }

    pub fn fd(&self) -> i32 {
        self.stream.as_raw_fd()
    }
}

/// See the diagram above.
#[derive(Debug)]
#[allow(clippy::large_enum_variant)] // lies in its endpoint's box, and nearly every endpoint is connected
pub(super) enum State {
    Opened,
    Expecting { key: Secret, until: Instant, refused: u32 },
    Dialing(Box<Dialer>),
    Connected(Connection),
}

/// One peer.
#[derive(Debug)]
pub(super) struct Endpoint {
    pub id: EndpointId,
    pub side: Side,
    /// Name and, once known, address, for messages.
    pub peer: String,
    pub grants: Grants,
    pub state: State,
}

#[derive(Debug, Default)]
struct Slot {
    generation: u32,
    endpoint: Option<Box<Endpoint>>,
}

/// All endpoints. An index is reused with the next generation.
#[derive(Debug, Default)]
pub(super) struct Endpoints {
    slots: Vec<Slot>,
    free: Vec<u32>,
}

impl Endpoints {
    /// A new endpoint.
    pub fn open(&mut self, side: Side, peer: &str) -> EndpointId {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            // One endpoint costs kilobytes: memory ends long before 2^32 of them.
            (self.slots.len() - 1) as u32
        });
        let slot = &mut self.slots[index as usize];
        let id = EndpointId { index, generation: slot.generation };
        slot.endpoint = Some(Box::new(Endpoint {
            id,
            side,
            peer: peer.to_owned(),
            grants: Grants::default(),
            state: State::Opened,
        }));
        id
    }

    /// Takes an endpoint out, so that its id means nothing from now on.
    pub fn remove(&mut self, index: u32) -> Option<Box<Endpoint>> {
        let slot = self.slots.get_mut(index as usize)?;
        let endpoint = slot.endpoint.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(index);
        Some(endpoint)
    }

    /// The endpoint of this id, unless it is closed.
    pub fn get(&mut self, id: EndpointId) -> Option<&mut Endpoint> {
        self.at(id.index).filter(|e| e.id == id)
    }

    /// The endpoint in this place.
    pub fn at(&mut self, index: u32) -> Option<&mut Endpoint> {
        self.slots.get_mut(index as usize)?.endpoint.as_deref_mut()
    }

    /// The connection of this id, if it is connected.
    pub fn connection(&mut self, id: EndpointId) -> Option<&mut Connection> {
        match &mut self.get(id)?.state {
            State::Connected(connection) => Some(connection),
            _ => None,
        }
    }

    /// All that are not closed.
    pub fn iter(&self) -> impl Iterator<Item = &Endpoint> {
        self.slots.iter().filter_map(|s| s.endpoint.as_deref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reused_place_has_another_generation() {
        let mut endpoints = Endpoints::default();
        let first = endpoints.open(Side::Active, "a");
        assert!(endpoints.get(first).is_some());
        assert!(endpoints.remove(first.index).is_some());
        assert!(endpoints.get(first).is_none() && endpoints.remove(first.index).is_none());
        let second = endpoints.open(Side::Passive, "b");
        assert_eq!((second.index, second.generation), (first.index, first.generation + 1));
        assert!(endpoints.get(first).is_none() && endpoints.get(second).is_some());
    }
}
