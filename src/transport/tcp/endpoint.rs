//! One endpoint's state.
//!
//! ```text
//!  Opened ──connect (passive)──▶ Expecting ──dialled and proved──▶ Connected
//!     └─────connect (active)───▶ Dialing ─────────proved──────────────▲
//! ```

use std::collections::VecDeque;
use std::os::fd::AsRawFd;
use std::time::Instant;

use mio::net::TcpStream;

use super::config::Lending;
use super::dial::Dialer;
use super::lent::Lent;
use super::rx::Rx;
use super::socket;
use super::tx::Tx;
use crate::error::Error;
use crate::mem::RegionId;
use crate::transport::EndpointId;
use crate::transport::endpoints::{self, PendingRead};
use crate::transport::preamble::Secret;

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
    /// `lending` is to this peer.
    pub fn new(stream: TcpStream, depth: usize, lending: Lending) -> Connection {
        let allowed = lending != Lending::Never && socket::allow_lending(stream.as_raw_fd()).is_ok();
        let lent = allowed.then(|| Lent::new(lending == Lending::Always));
        Connection {
            stream,
            rx: Rx::new(),
            tx: Tx::new(depth, lent),
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

impl Drop for Connection {
    fn drop(&mut self) {
        // Else the kernel would go on sending from memory that has new owners.
        if self.tx.has_lent() {
            socket::break_off(self.fd());
        }
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
        match &mut self.get(id)?.state {
            State::Connected(connection) => Some(connection),
            _ => None,
        }
    }
}
