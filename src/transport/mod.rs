//! Moving bytes: one trait, shaped like RDMA verbs, that every network emulates.
//!
//! A [`Transport`] belongs to one thread. It knows arenas, endpoints and bytes; it does not know messages, keys or
//! members. A peer reaches our memory only through a [`RemoteRegion`] that [`Transport::authorise`] made for its
//! endpoint, and every completion says what may be touched again.
//!
//! ```text
//!  Opened ──connect(address, key)──▶ Connecting ──▶ Connected ──close / error──▶ Closed
//!     └───────────────────────────────close / error────────────────────────────────▲
//! ```
//! Both sides `open`, exchange the addresses over an authenticated control connection, and `connect`.
//! `Connected` and, at the end, exactly one `Closed` come out of [`Transport::poll`]; after `Closed` no remote access to
//! what the endpoint was granted is possible and every payload it held has been dropped.

mod arenas;
pub mod choice;
pub mod cpus;
pub mod descriptors;
mod endpoints;
mod grants;
pub mod interface;
pub mod network;
pub mod pairing;
pub mod park;
mod preamble;
pub mod rails;
pub mod several;
pub mod shm;
pub mod sim;
pub mod tcp;
mod timer;
pub mod topology;
#[cfg(feature = "verbs")]
pub mod verbs;

use std::fmt;
use std::os::fd::RawFd;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::mem::{Arena, Buf, Kind, Pin, RegionId, RegionSlice, RemoteRegion, Rights};

/// Length of the header that may precede a body in one write, in bytes.
pub const HEADER: usize = 64;
/// The longest message that [`Transport::send`] takes, in bytes.
pub const MAX_SEND: usize = 256;

/// One connected peer on one transport. Never reused: a late completion can't be taken for its successor's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EndpointId {
    /// Place in the transport's table; small, reused.
    pub index: u32,
    /// Counts the reuses of that place.
    pub generation: u32,
}

/// Who dials. On verbs both sides do the same, but the active one speaks first: connecting is fastest when the passive
/// side has called [`Transport::connect`] before the active one does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Dials the other's address.
    Active,
    /// Waits to be dialled.
    Passive,
}

/// A key that both ends derived from the authenticated control session; it never travels.
pub type SessionKey = [u8; 32];

/// What a transport can do by itself, what it emulates, and its limits.
#[derive(Debug, Clone)]
pub struct Caps {
    /// `tcp`, `verbs`, `shm`.
    pub name: &'static str,
    /// Remote reads and writes need no CPU of the peer.
    pub one_sided: bool,
    /// A key made for one endpoint is refused on every other.
    pub keys_per_peer: bool,
    /// Operations that one endpoint may have queued before [`Refusal::Full`].
    pub queue_depth: usize,
    /// Longest header + body of one write, or length of one read, in bytes.
    pub max_write: usize,
    /// What the transport really uses, for logs and reports: device, port, MTU, congestion control.
    pub detail: String,
}

impl Caps {
    /// Name and detail, for logs and reports.
    pub fn describe(&self) -> String {
        if self.detail.is_empty() { self.name.to_owned() } else { format!("{} ({})", self.name, self.detail) }
    }
}

/// The body of a write.
///
/// What is posted belongs to the transport until its work is done. A leased buffer can't be written again, nor given back to its
/// pool, nor lent twice: each of these is refused by the compiler.
///
/// ```compile_fail,E0382
/// # use windlass::{mem::Buf, mem::RemoteRegion, transport::{EndpointId, Payload, Transport, Write}};
/// fn touched(transport: &mut dyn Transport, to: EndpointId, remote: RemoteRegion, mut buf: Buf) {
///     let body = Some(Payload::Owned(buf));
///     let _ = transport.write(to, Write { header: None, body, remote, offset: 0, imm: None, context: None });
///     buf.copy_in(0, &[1]); // use of moved value
/// }
/// ```
///
/// ```compile_fail,E0382
/// # use windlass::{mem::Buf, mem::RemoteRegion, transport::{EndpointId, Payload, Transport, Write}};
/// fn freed(transport: &mut dyn Transport, to: EndpointId, remote: RemoteRegion, buf: Buf) {
///     let body = Some(Payload::Owned(buf));
///     let _ = transport.write(to, Write { header: None, body, remote, offset: 0, imm: None, context: None });
///     drop(buf); // use of moved value
/// }
/// ```
///
/// ```compile_fail,E0599
/// # use windlass::{mem::Buf, transport::Payload};
/// fn twice(buf: &Buf) -> [Payload; 2] {
///     [Payload::Owned(buf.clone()), Payload::Owned(buf.clone())] // a buffer can't be cloned
/// }
/// ```
///
/// ```compile_fail,E0382
/// # use windlass::{mem::Pin, transport::Payload};
/// fn unpinned(version: Pin) -> Payload {
///     let body = Payload::Published(version);
///     drop(version); // use of moved value
///     body
/// }
/// ```
///
/// The first of them as it should be:
///
/// ```
/// # use windlass::{mem::Buf, mem::RemoteRegion, transport::{EndpointId, Payload, Transport, Write}};
/// fn posted(transport: &mut dyn Transport, to: EndpointId, remote: RemoteRegion, mut buf: Buf) {
///     buf.copy_in(0, &[1]);
///     let body = Some(Payload::Owned(buf));
///     let _ = transport.write(to, Write { header: None, body, remote, offset: 0, imm: None, context: None });
/// }
/// ```
#[derive(Debug)]
pub enum Payload {
    /// Dropped (given back to its pool) when the write is done.
    Owned(Buf),
    /// Memory that its owner does not change until the write is done.
    Pinned(RegionSlice),
    /// Memory that its owner does not change until the peer has said, by messages that the transport does not know, that it needs it
    /// no longer. Where both ends can reach it, it is left where it lies ([`Completion::Lent`]).
    Lent(RegionSlice),
    /// A published version. Dropped (so that its memory may be changed) when the write is done.
    Published(Pin),
}

impl Payload {
    /// Length in bytes.
    pub fn length(&self) -> usize {
        match self {
            Payload::Owned(buf) => buf.len(),
            Payload::Pinned(slice) | Payload::Lent(slice) => slice.length,
            Payload::Published(pin) => pin.slice().length,
        }
    }

    /// What it lies in.
    pub fn region(&self) -> RegionId {
        match self {
            Payload::Owned(buf) => buf.region(),
            Payload::Pinned(slice) | Payload::Lent(slice) => slice.region,
            Payload::Published(pin) => pin.slice().region,
        }
    }

    /// The bytes, as the transport knows them.
    pub fn slice(&self) -> RegionSlice {
        match self {
            Payload::Owned(buf) => buf.slice(),
            Payload::Pinned(slice) | Payload::Lent(slice) => slice.clone(),
            Payload::Published(pin) => pin.slice().clone(),
        }
    }

    /// The arena that the bytes lie in, and the first of them.
    pub fn place(&self) -> (&Arc<Arena>, usize) {
        match self {
            Payload::Owned(buf) => (buf.arena(), buf.offset()),
            Payload::Pinned(slice) | Payload::Lent(slice) => (&slice.arena, slice.offset),
            Payload::Published(pin) => (&pin.slice().arena, pin.slice().offset),
        }
    }
}

/// A gather write: `header`, then `body`, contiguous at `remote + offset`.
#[derive(Debug)]
pub struct Write {
    /// Copied at the call.
    pub header: Option<[u8; HEADER]>,
    /// Not copied.
    pub body: Option<Payload>,
    /// Where the peer let us write.
    pub remote: RemoteRegion,
    /// First byte within `remote`.
    pub offset: u64,
    /// With a value the peer is told ([`Completion::Written`]) once all bytes lie in its memory; without one it is not.
    pub imm: Option<u32>,
    /// With a value [`Completion::Done`] tells when the body may be changed.
    pub context: Option<u64>,
}

impl Write {
    /// Header + body, in bytes.
    pub fn length(&self) -> usize {
        self.header.map_or(0, |h| h.len()) + self.body.as_ref().map_or(0, Payload::length)
    }
}

/// A one-sided read of `local.length` bytes at `remote + offset` into `local`. Always answered by [`Completion::Done`].
#[derive(Debug)]
pub struct Read {
    /// Where the peer lets us read.
    pub remote: RemoteRegion,
    /// First byte within `remote`.
    pub offset: u64,
    /// Where the bytes go; nobody else touches them until the read is done.
    pub local: RegionSlice,
    /// Comes back in the completion.
    pub context: u64,
}

/// Why an operation was not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// The queue is full: poll, then try again.
    Full,
    /// The endpoint is not connected, or closed.
    NotConnected,
    /// The bytes do not lie inside the remote region, it does not grant the right, or they exceed a limit.
    OutOfBounds(String),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::Full => f.write_str("the queue is full"),
            Refusal::NotConnected => f.write_str("the endpoint is not connected"),
            Refusal::OutOfBounds(why) => f.write_str(why),
        }
    }
}

/// An operation that was not taken, given back whole.
#[derive(Debug)]
pub struct Rejected<T> {
    /// What was asked for.
    pub operation: T,
    /// Why not.
    pub refusal: Refusal,
}

/// A message that came by [`Transport::send`].
#[derive(Clone, Copy)]
pub struct Message {
    length: u16,
    bytes: [u8; MAX_SEND],
}

impl Message {
    /// No bytes.
    pub const NOTHING: Message = Message { length: 0, bytes: [0; MAX_SEND] };

    /// Copies `bytes`; `None` when there are more than [`MAX_SEND`].
    pub fn new(bytes: &[u8]) -> Option<Message> {
        let mut out = Message { length: u16::try_from(bytes.len()).ok()?, bytes: [0; MAX_SEND] };
        out.bytes.get_mut(..bytes.len())?.copy_from_slice(bytes);
        Some(out)
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Message").field(&self.bytes()).finish()
    }
}

/// Where a body lies that its owner has lent us. It stays readable, whatever becomes of the endpoint or of the peer.
#[derive(Debug, Clone)]
pub struct Loan {
    /// The owner's memory, for reading only.
    pub arena: Arc<Arena>,
    /// First byte within it.
    pub offset: usize,
    /// Number of bytes.
    pub length: usize,
}

/// What [`Transport::poll`] reports.
#[derive(Debug)]
#[allow(clippy::large_enum_variant)] // filled into a vector that is reused, never boxed
pub enum Completion {
    /// Operations may be posted now.
    Connected {
        /// Which endpoint.
        endpoint: EndpointId,
    },
    /// The peer wrote `length` bytes into our memory with `imm`. They may be read from now on.
    Written {
        /// Which endpoint.
        endpoint: EndpointId,
        /// The number that came with the write.
        imm: u32,
        /// Header + body, in bytes.
        length: u32,
    },
    /// As `Written`, but only the header lies in our memory: the body, of `length` bytes less the header's, lies where the peer
    /// has it. It may be read until we tell the peer otherwise, and the peer may be changing it.
    Lent {
        /// Which endpoint.
        endpoint: EndpointId,
        /// The number that came with the write.
        imm: u32,
        /// Header + body, in bytes.
        length: u32,
        /// Where the body lies.
        body: Loan,
    },
    /// The peer sent a message.
    Received {
        /// Which endpoint.
        endpoint: EndpointId,
        /// Its bytes.
        message: Message,
    },
    /// A write's body may be changed again, or a read's bytes have arrived.
    Done {
        /// Which endpoint.
        endpoint: EndpointId,
        /// What the operation carried.
        context: u64,
    },
    /// The endpoint is closed: by [`Transport::close`] or for the reason given. Operations not reported done are lost.
    Closed {
        /// Which endpoint.
        endpoint: EndpointId,
        /// Why; `None` after our own `close`.
        reason: Option<Error>,
    },
}

impl Completion {
    /// Whom it is about, for a transport that gives another's completions its own names.
    fn endpoint_mut(&mut self) -> &mut EndpointId {
        match self {
            Completion::Connected { endpoint }
            | Completion::Written { endpoint, .. }
            | Completion::Lent { endpoint, .. }
            | Completion::Received { endpoint, .. }
            | Completion::Done { endpoint, .. }
            | Completion::Closed { endpoint, .. } => endpoint,
        }
    }
}

/// Moves at most `budget` completions from a transport's list to its caller's: most often all of them to an empty one, which needs no
/// copies.
fn hand_over(outbox: &mut Vec<Completion>, completions: &mut Vec<Completion>, budget: usize) {
    if completions.is_empty() && outbox.len() <= budget {
        std::mem::swap(completions, outbox);
    } else {
        completions.extend(outbox.drain(..outbox.len().min(budget)));
    }
}

/// A network, as one thread uses it. Nothing in here blocks.
///
/// Operations of one endpoint take effect at the peer in the order in which they were posted; a write's bytes lie in
/// place before its `Written` is reported there, and before the `Written` or `Received` of every later operation. A read brings what
/// all operations before it left; of one that is posted before the read is `Done` it may bring a part, since tcp and shm answer from
/// where the bytes lie. (On verbs later operations wait for it.)
pub trait Transport: Send {
    /// What it can do.
    fn caps(&self) -> &Caps;

    /// The memory that it sends from without copying, when that is registered.
    fn memory(&self) -> Kind {
        Kind::Private
    }

    /// Whether a long body is taken by this endpoint's peer from where it lies in `arena`, and not through memory of the transport.
    fn sends_in_place(&self, endpoint: EndpointId, arena: &Arena) -> bool {
        let _ = (endpoint, arena);
        true
    }

    /// Whether a long [lent](Payload::Lent) body stays where it lies, and takes no room in what this endpoint's peer granted.
    fn lends(&self, endpoint: EndpointId) -> bool {
        let _ = endpoint;
        false
    }

    /// Makes an arena known, for use in local slices and in [`Transport::authorise`]. It lives as long as the transport, or
    /// until [`Transport::unregister`].
    fn register(&mut self, arena: Arc<Arena>) -> Result<RegionId>;

    /// Lets go of an arena. False while an authorisation, or an operation under way, still uses it: ask again later.
    fn unregister(&mut self, region: RegionId) -> bool;

    /// Prepares an endpoint to `peer` (a name for messages) and gives the address bytes that its other end needs.
    fn open(&mut self, side: Side, peer: &str) -> Result<(EndpointId, Vec<u8>)>;

    /// The same to the server thread that has this number among those of its host. Where there are several rails, the number says which
    /// one; both ends count the same way.
    fn open_on(&mut self, number: u32, side: Side, peer: &str) -> Result<(EndpointId, Vec<u8>)> {
        let _ = number;
        self.open(side, peer)
    }

    /// Lets this endpoint's peer, and no other, reach `length` bytes at `offset` of a registered arena.
    fn authorise(
        &mut self,
        endpoint: EndpointId,
        region: RegionId,
        offset: usize,
        length: usize,
        rights: Rights,
    ) -> Result<RemoteRegion>;

    /// Takes an authorisation back. Once this returns the peer's key is refused.
    fn withdraw(&mut self, endpoint: EndpointId, remote: &RemoteRegion) -> Result<()>;

    /// Connects an opened endpoint with the other's address bytes. `Connected` or `Closed` follows.
    fn connect(&mut self, endpoint: EndpointId, address: &[u8], key: &SessionKey) -> Result<()>;

    /// Queues a short message (at most [`MAX_SEND`] bytes).
    fn send(&mut self, endpoint: EndpointId, message: Message) -> std::result::Result<(), Rejected<Message>>;

    /// Queues a gather write.
    fn write(&mut self, endpoint: EndpointId, write: Write) -> std::result::Result<(), Rejected<Write>>;

    /// Queues a read.
    fn read(&mut self, endpoint: EndpointId, read: Read) -> std::result::Result<(), Rejected<Read>>;

    /// Rings the doorbell for all that was queued since the last flush.
    fn flush(&mut self);

    /// Makes progress and appends at most about `budget` completions.
    fn poll(&mut self, completions: &mut Vec<Completion>, budget: usize);

    /// Polls at most so many times, until something has come into `completions`, which were empty.
    fn poll_often(&mut self, looks: u32, completions: &mut Vec<Completion>, budget: usize) {
        for _ in 0..looks {
            self.poll(completions, budget);
            if !completions.is_empty() {
                break;
            }
        }
    }

    /// A descriptor that is readable when [`Transport::poll`] has work, once [`Transport::arm`] said that it may be slept on.
    fn waitable(&self) -> RawFd;

    /// Arms the descriptor. False when there is work already: poll again instead of sleeping.
    fn arm(&mut self) -> bool;

    /// Begins to close. `Closed` follows when no remote access is possible any more.
    fn close(&mut self, endpoint: EndpointId);
}
