//! One endpoint's state.
//!
//! ```text
//!  Opened ──connect (passive)──▶ Expecting ──dialled and proved──▶ Connected
//!     └─────connect (active)───▶ Dialing ─────────proved──────────────▲
//! ```

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use super::ShmConfig;
use super::dial::Dialer;
use super::rx::Rx;
use super::tx::Tx;
use crate::mem::ring::{Consumer, Producer, RING, Ring};
use crate::mem::{Arena, RegionId};
use crate::transport::endpoints::{self, PendingRead};
use crate::transport::preamble::Secret;
use crate::transport::{EndpointId, Side};

/// Bytes of what both ends write: the ring of what the active side sends, then the passive side's.
pub(super) const RINGS: usize = 2 * RING;

/// An authenticated connection.
#[derive(Debug)]
pub(super) struct Connection {
    pub socket: OwnedFd,
    pub rx: Rx,
    pub tx: Tx,
    pub reads: VecDeque<PendingRead>,
    pub next_read: u64,
}

impl Connection {
    /// Over `socket` and the rings in `shared`.
    pub fn new(socket: OwnedFd, shared: Arc<Arena>, side: Side, limits: &ShmConfig) -> Connection {
        let (out, back) = match side {
            Side::Active => (0, RING),
            Side::Passive => (RING, 0),
        };
        Connection {
            socket,
            rx: Rx::new(Consumer::new(Ring::new(shared.clone(), back)), limits.max_shown),
            tx: Tx::new(Producer::new(Ring::new(shared, out)), limits.queue_depth, limits.max_shown),
            reads: VecDeque::new(),
            next_read: 0,
        }
    }

    /// Whether a turn would find nothing to take and nothing to send.
    pub fn is_quiet(&self) -> bool {
        self.rx.consumer.is_empty() && !self.rx.hung_up && !self.tx.is_due()
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
pub(super) type Endpoint = endpoints::Endpoint<State>;
/// All of them.
pub(super) type Endpoints = endpoints::Endpoints<State>;

impl Endpoint {
    /// Whether a grant or an operation under way lies in this region.
    pub fn uses(&self, region: RegionId) -> bool {
        let in_flight = match &self.state {
            State::Connected(c) => {
                c.tx.sends_from(region) || c.reads.iter().any(|r| r.local.region == region)
            }
            State::Opened | State::Expecting { .. } | State::Dialing(_) => false,
        };
        in_flight || self.grants.lie_in(region)
    }
}

impl Endpoints {
    /// The connection of this id, if it is connected.
    pub fn connection(&mut self, id: EndpointId) -> Option<&mut Connection> {
        self.get(id).and_then(|endpoint| match &mut endpoint.state {
            State::Connected(connection) => Some(connection),
            _ => None,
        })
    }
}
