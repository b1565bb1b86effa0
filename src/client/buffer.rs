//! Registered buffers: memory that pushes leave from and pulls arrive in, without a copy.

use std::sync::Arc;

use super::engine::ReadStats;
use super::engine::{Engine, Span};
use super::{Client, Inner};
use crate::error::{Error, Result};
use crate::mem::Arena;

/// fp32 in memory that the transport knows, 64-byte aligned and at first zero: a push reads them where they lie, and a pull's
/// values are written there by the server thread itself (tcp: by the kernel). Values that a table's filters change are copied,
/// as those of plain slices are.
///
/// An operation uses its elements until its [`Ticket`](super::Ticket) is done: a push until it is committed, a pull until it
/// is answered. Until then what would disturb it is refused with [`Error::Misuse`]: writing what a push reads, reading or
/// writing what a pull writes. That goes by elements for [`Buffer::read`], [`Buffer::write`] and operations, and by the whole
/// buffer for the slices. Dropping the ticket ends nothing: the elements stay in use until the operation is done. Dropping the
/// buffer gives its memory back as soon as no operation can touch it; the client sees to that in its later calls.
///
/// At most 63 at a time for each client. The calls take the client's lock, so they wait while another thread is in a call that
/// blocks.
///
/// ```
/// # use windlass::server::coordinator::{CoordinatorServer, CoordinatorServerConfig};
/// # use windlass::{Client, ClientConfig, KeyRange, Secret, Server, TableSpec};
/// # fn main() -> windlass::Result<()> {
/// # let secret = Secret::generate()?;
/// # let coordinator = CoordinatorServer::bind(CoordinatorServerConfig::new(secret.clone(), "", 1, Some(1)))?;
/// # let address = coordinator.address().to_string();
/// # let job = std::thread::spawn(move || coordinator.run());
/// # let server = Server::builder(&address, secret.clone()).start()?;
/// # let client = Client::connect(ClientConfig::new(&address, secret, 0, 1))?;
/// let table = client.table(&TableSpec::dense("weights", &[1000, 1000]))?;
/// let mut buffer = client.buffer(1_000_000)?;
/// buffer.as_mut_slice()?.fill(0.5);
/// let mut ticket = table.push_range_buffer(KeyRange::new(0, 1_000_000)?, &buffer, 0)?;
/// client.clock()?;
/// ticket.wait()?; // committed: the buffer may be written again
/// table.pull_range_buffer(KeyRange::new(0, 1_000_000)?, &mut buffer, 0)?;
/// assert!(buffer.as_slice()?[0] < 0.0); // one step of the optimizer, against the gradient
/// # client.finalize()?;
/// # job.join().unwrap()?;
/// # server.run()
/// # }
/// ```
pub struct Buffer {
    inner: Arc<Inner>,
    arena: Arc<Arena>,
    number: u8,
    floats: usize,
    /// Whether the engine still has to be told that nobody holds it.
    held: bool,
}

impl std::fmt::Debug for Buffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Buffer").field("number", &self.number).field("floats", &self.floats).finish()
    }
}

/// What a client has done so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ClientStats {
    /// Bytes that pushes and pulls copied between the caller's memory and registered memory. Operations on registered
    /// buffers add nothing, unless their table has filters for their direction; values count as long as they are on the wire.
    /// Not counted: the headers, and what a transport's own buffer holds of a frame (tcp: less than 4 KiB at its head).
    pub bytes_copied: u64,
    /// Bytes of registered buffers, those included that were dropped and can't be given back yet.
    pub registered_bytes: u64,
    /// Calls that wait at the moment, of all threads.
    pub waiting_calls: u32,
    /// What pulls of published tables read one-sidedly.
    pub reads: ReadStats,
}

impl Client {
    /// A registered buffer of `floats` fp32.
    ///
    /// # Errors
    /// [`Error::Config`] for none, [`Error::Limit`] for the 64th, and what the system says when it lacks the memory.
    pub fn buffer(&self, floats: usize) -> Result<Buffer> {
        let bytes = bytes_of(floats)?;
        let memory = self.inner.driver.engine().memory();
        self.register(memory.arena(bytes)?, floats)
    }

    /// Registers `floats` fp32 of the caller's own memory, for instance a C array's or a NumPy array's.
    ///
    /// # Safety
    /// `start` is aligned to 4 bytes, and `floats` initialised fp32 at it lie in one allocation. Until [`Buffer::release`] has
    /// returned `Ok`, or the client and all its tables, tickets and buffers are gone, the memory stays where it is, readable and
    /// writable. Until then it is touched only through the buffer, or through raw pointers while no operation on it is under way
    /// and no slice of the buffer is in use.
    ///
    /// # Errors
    /// As [`Client::buffer`].
    pub unsafe fn register_memory(&self, start: *mut f32, floats: usize) -> Result<Buffer> {
        let bytes = bytes_of(floats)?;
        if start.is_null() || !start.is_aligned() {
            return Err(Error::config(
                "memory",
                "a pointer that is aligned to 4 bytes",
                format!("{start:p}"),
            ));
        }
        // SAFETY: the caller promises it.
        let arena = unsafe { Arena::over(start.cast(), bytes) };
        self.register(arena, floats)
    }

    fn register(&self, arena: Arc<Arena>, floats: usize) -> Result<Buffer> {
        let number = self.inner.driver.engine().register(arena.clone(), floats * 4)?;
        Ok(Buffer { inner: self.inner.clone(), arena, number, floats, held: true })
    }

    /// What this client has done so far.
    pub fn stats(&self) -> ClientStats {
        let engine = self.inner.driver.engine();
        ClientStats {
            bytes_copied: engine.bytes_copied(),
            registered_bytes: engine.registered_bytes(),
            waiting_calls: self.inner.driver.waiting(),
            reads: engine.read_stats(),
        }
    }
}

fn bytes_of(floats: usize) -> Result<usize> {
    let bytes = floats.checked_mul(4).filter(|&b| b > 0 && isize::try_from(b).is_ok());
    bytes.ok_or_else(|| Error::config("length of a registered buffer", "1 to 2^61 fp32", floats))
}

impl Buffer {
    /// Number of fp32.
    pub fn len(&self) -> usize {
        self.floats
    }

    /// False: a buffer has at least one element.
    pub fn is_empty(&self) -> bool {
        self.floats == 0
    }

    /// The first element, for who can't use slices. Memory that an operation writes must not be read, and memory that one reads
    /// must not be written.
    pub fn as_ptr(&self) -> *mut f32 {
        self.arena.at(0, self.floats * 4).cast()
    }

    /// All elements; refused while a pull into any of them is not done.
    pub fn as_slice(&self) -> Result<&[f32]> {
        self.may_use(0..self.floats, false, "as_slice")?;
        // SAFETY: the memory lives as long as `self.arena` and holds initialised fp32 at an aligned address. No operation writes
        // it, and none can begin to while the slice lives, since a pull takes `&mut self`.
        Ok(unsafe { std::slice::from_raw_parts(self.as_ptr(), self.floats) })
    }

    /// All elements, to be changed; refused while an operation on any of them is not done.
    pub fn as_mut_slice(&mut self) -> Result<&mut [f32]> {
        self.may_use(0..self.floats, true, "as_mut_slice")?;
        // SAFETY: as in `as_slice`; no operation reads it either, and none can begin to while the slice holds `&mut self`.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.as_ptr(), self.floats) })
    }

    /// Copies `values.len()` elements from `offset` on out; refused while a pull into any of them is not done.
    pub fn read(&self, offset: usize, values: &mut [f32]) -> Result<()> {
        self.span(offset, values.len())?;
        self.may_use(offset..offset + values.len(), false, "read")?;
        self.arena.copy_out(offset * 4, bytemuck::cast_slice_mut(values));
        Ok(())
    }

    /// Copies `values` in from `offset` on; refused while an operation on any of these elements is not done.
    pub fn write(&mut self, offset: usize, values: &[f32]) -> Result<()> {
        self.span(offset, values.len())?;
        self.may_use(offset..offset + values.len(), true, "write")?;
        self.arena.copy_in(offset * 4, bytemuck::cast_slice(values));
        Ok(())
    }

    /// Drops the buffer and waits until no operation can touch its memory any more, at most for the client's `wait_timeout`.
    pub fn release(mut self) -> Result<()> {
        self.held = false;
        self.inner.driver.engine().drop_buffer(self.number)?;
        let waited_for = |_: &Engine| "the operations on a registered buffer".to_owned();
        self.inner.driver.drive(
            || self.inner.deadline(),
            waited_for,
            |engine| Ok(engine.released(self.number)),
        )
    }

    /// Elements of this buffer, for an operation of `client`'s.
    pub(super) fn of(&self, client: &Arc<Inner>, offset: usize, floats: usize) -> Result<Span> {
        if !Arc::ptr_eq(&self.inner, client) {
            let reason = "the buffer is registered with another client".to_owned();
            return Err(Error::Misuse { call: "use of a registered buffer", reason });
        }
        self.span(offset, floats)
    }

    fn span(&self, offset: usize, floats: usize) -> Result<Span> {
        let end = offset.checked_add(floats).filter(|&end| end <= self.floats);
        let end = end.ok_or_else(|| {
            let expected = format!("at most {} fp32 from {offset} on", self.floats.saturating_sub(offset));
            Error::config("elements of a registered buffer", expected, floats)
        })?;
        Ok(Span { buffer: self.number, start: offset, end })
    }

    fn may_use(&self, elements: std::ops::Range<usize>, writing: bool, call: &'static str) -> Result<()> {
        let span = Span { buffer: self.number, start: elements.start, end: elements.end };
        self.inner.driver.engine().may_use(&span, writing, call)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.held {
            // A failure ends the job, and every later call says so.
            let _ = self.inner.driver.engine().drop_buffer(self.number);
        }
    }
}
