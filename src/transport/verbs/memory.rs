//! Protection domains and memory regions. Dropping a region takes its keys back; nothing outlives what it needs.

use std::io;
use std::ptr;
use std::sync::Arc;

use rdma_sys::{ibv_access_flags, ibv_alloc_pd, ibv_dealloc_pd, ibv_dereg_mr, ibv_mr, ibv_pd};

use super::device::Context;
use super::ffi;
use crate::error::{Error, Result};
use crate::mem::{Arena, Rights};

/// A protection domain. A key works from every queue pair of its domain, so each endpoint has its own.
pub(super) struct Domain {
    raw: *mut ibv_pd,
    /// Access flags of all of its regions.
    common: u32,
    context: Arc<Context>,
}

// SAFETY: libibverbs is thread-safe; `raw` is only passed to it, and freed by the last owner.
unsafe impl Send for Domain {}
// SAFETY: as above.
unsafe impl Sync for Domain {}

impl Domain {
    /// `relaxed`: whether the device's writes to its regions may overtake each other, where the device can. A completion still comes
    /// behind all bytes that it stands for.
    pub fn new(context: &Arc<Context>, relaxed: bool) -> Result<Arc<Domain>> {
        // SAFETY: the context is open, and stays so while the domain holds it.
        let raw = unsafe { ibv_alloc_pd(context.raw()) };
        if raw.is_null() {
            return Err(context.last_error("ibv_alloc_pd"));
        }
        // SAFETY: the function gives a constant of the C header.
        let common = if relaxed { unsafe { ffi::windlass_relaxed_ordering() } } else { 0 };
        Ok(Arc::new(Domain { raw, common, context: context.clone() }))
    }

    /// The handle, valid while `self` lives.
    pub fn raw(&self) -> *mut ibv_pd {
        self.raw
    }
}

impl Drop for Domain {
    fn drop(&mut self) {
        // SAFETY: queue pairs and regions of the domain hold an `Arc` of it, so all of them are gone; freed once.
        let errno = unsafe { ibv_dealloc_pd(self.raw) };
        if errno != 0 {
            tracing::error!(device = self.context.name, errno, "ibv_dealloc_pd failed; the domain is leaked");
        }
    }
}

/// A registered piece of an arena.
pub(super) struct Region {
    raw: *mut ibv_mr,
    arena: Arc<Arena>,
    offset: usize,
    length: usize,
    domain: Arc<Domain>,
}

// SAFETY: libibverbs is thread-safe; `raw` is only read and passed to it, and freed by its one owner.
unsafe impl Send for Region {}

impl Region {
    /// Registers `length` bytes at `offset` for local use, and for the peer as far as `rights` says.
    pub fn new(
        domain: &Arc<Domain>,
        arena: &Arc<Arena>,
        offset: usize,
        length: usize,
        rights: Option<Rights>,
    ) -> Result<Region> {
        if length == 0 || offset.checked_add(length).is_none_or(|end| end > arena.len()) {
            let reason = format!("{length} bytes at {offset} of an arena of {}", arena.len());
            return Err(Error::Misuse { call: "register", reason });
        }
        let mut access = ibv_access_flags::IBV_ACCESS_LOCAL_WRITE;
        if rights.is_some_and(Rights::may_read) {
            access |= ibv_access_flags::IBV_ACCESS_REMOTE_READ;
        }
        if rights.is_some_and(Rights::may_write) {
            access |= ibv_access_flags::IBV_ACCESS_REMOTE_WRITE;
        }
        let flags = access.0 | domain.common;
        // SAFETY: `at` gives `length` bytes inside the arena, which the region keeps alive until it is deregistered. What
        // devices and peers write there is only read through raw pointers after its completion (see `crate::mem`).
        let raw = unsafe { ffi::windlass_reg_mr(domain.raw, arena.at(offset, length).cast(), length, flags) };
        if raw.is_null() {
            return Err(registration_error(&domain.context, length, &io::Error::last_os_error()));
        }
        Ok(Region { raw, arena: arena.clone(), offset, length, domain: domain.clone() })
    }

    /// The key for our own work requests.
    pub fn local_key(&self) -> u32 {
        // SAFETY: the region is registered while `self` lives, and its keys never change.
        unsafe { (*self.raw).lkey }
    }

    /// The key for the peer's work requests.
    pub fn remote_key(&self) -> u32 {
        // SAFETY: as above.
        unsafe { (*self.raw).rkey }
    }

    /// The arena that it lies in.
    pub fn arena(&self) -> &Arc<Arena> {
        &self.arena
    }

    /// Its first byte.
    pub fn address(&self) -> u64 {
        self.arena.at(self.offset, self.length) as u64
    }

    /// Deregisters. After `Ok` no device reaches the memory through this region's keys.
    pub fn withdraw(mut self) -> Result<()> {
        let raw = std::mem::replace(&mut self.raw, ptr::null_mut());
        match deregister(raw) {
            0 => Ok(()),
            errno => {
                self.raw = raw;
                Err(self.domain.context.error("ibv_dereg_mr", errno))
            }
        }
    }
}

fn deregister(raw: *mut ibv_mr) -> i32 {
    // SAFETY: both callers own `raw`, which came from ibv_reg_mr, and forget it when the answer is 0.
    unsafe { ibv_dereg_mr(raw) }
}

impl Drop for Region {
    fn drop(&mut self) {
        if self.raw.is_null() {
            return;
        }
        let errno = deregister(self.raw);
        if errno != 0 {
            tracing::error!(
                device = self.domain.context.name,
                errno,
                "ibv_dereg_mr failed; its memory is leaked"
            );
            // A peer may still reach it, so it must never be used for anything else.
            std::mem::forget(self.arena.clone());
        }
    }
}

/// What to say when memory can't be registered: for ENOMEM nearly always the limit on locked memory.
fn registration_error(context: &Context, length: usize, error: &io::Error) -> Error {
    if error.raw_os_error() != Some(libc::ENOMEM) {
        let reason = format!("{length} bytes: {error}");
        return Error::Device { operation: "ibv_reg_mr", device: context.name.clone(), reason };
    }
    let limit = rustix::process::getrlimit(rustix::process::Resource::Memlock).current;
    locked(&context.name, limit.unwrap_or(u64::MAX), length as u64)
}

/// `asked` bytes can't be locked for a device.
pub(super) fn locked(device: &str, limit: u64, asked: u64) -> Error {
    let resource = format!(
        "memory that {device} may lock (RLIMIT_MEMLOCK, each endpoint counts anew; raise it with ulimit -l or LimitMEMLOCK=)"
    );
    Error::Limit { resource, limit, asked }
}
