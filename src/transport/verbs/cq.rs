//! The completion queue of a transport, its descriptor, and the identity that a work request carries through it.

use std::collections::VecDeque;
use std::os::fd::{BorrowedFd, RawFd};
use std::ptr;
use std::sync::Arc;

use rdma_sys::{
    ibv_ack_cq_events, ibv_comp_channel, ibv_cq, ibv_create_comp_channel, ibv_create_cq,
    ibv_destroy_comp_channel, ibv_destroy_cq, ibv_get_cq_event, ibv_poll_cq, ibv_req_notify_cq,
    ibv_resize_cq, ibv_wc, ibv_wc_flags, ibv_wc_opcode, ibv_wc_status,
};

use super::device::Context;
use crate::error::{Error, Result};

/// What a work request was for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Work {
    /// An operation of ours.
    Send,
    /// A posted receive buffer.
    Receive,
    /// What the transport itself sends: greeting, goodbye, marker.
    Control,
}

/// Which work request a completion belongs to. All that can be trusted in an error completion besides its status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct WorkId {
    pub work: Work,
    /// Place in the transport's table of endpoints.
    pub index: u16,
    /// Low 14 bits of the endpoint's generation.
    pub generation: u16,
    /// Number of the operation, or of the receive buffer.
    pub sequence: u32,
}

impl WorkId {
    /// The bits of a generation that are kept.
    pub const GENERATION: u32 = (1 << 14) - 1;

    pub fn encode(self) -> u64 {
        (self.work as u64) << 62
            | u64::from(self.generation) << 48
            | u64::from(self.index) << 32
            | u64::from(self.sequence)
    }

    pub fn decode(id: u64) -> WorkId {
        let work = match id >> 62 {
            0 => Work::Send,
            1 => Work::Receive,
            _ => Work::Control,
        };
        WorkId {
            work,
            index: (id >> 32) as u16,
            generation: (id >> 48) as u16 & WorkId::GENERATION as u16,
            sequence: id as u32,
        }
    }
}

/// What arrived, of a receive that succeeded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Arrival {
    /// A send of ours is done, or the operation failed.
    Nothing,
    /// A message.
    Message { length: u32, imm: Option<u32> },
    /// A write that announced itself.
    Written { length: u32, imm: u32 },
}

/// One completion.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry {
    pub id: WorkId,
    pub status: Status,
    pub arrival: Arrival,
}

/// Why a work request ended, as far as it makes a difference here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    Success,
    /// The queue pair had failed before.
    Flushed,
    /// The peer's device did not acknowledge.
    Unreachable,
    /// The peer posted no receive buffer in time.
    NotReady,
    /// The peer's device refused the key, the range or the right.
    Refused,
    /// Anything else: the code and the vendor's own.
    Failed {
        code: u32,
        vendor: u32,
    },
}

impl Status {
    fn new(wc: &ibv_wc) -> Status {
        match wc.status {
            ibv_wc_status::IBV_WC_SUCCESS => Status::Success,
            ibv_wc_status::IBV_WC_WR_FLUSH_ERR => Status::Flushed,
            ibv_wc_status::IBV_WC_RETRY_EXC_ERR | ibv_wc_status::IBV_WC_RESP_TIMEOUT_ERR => {
                Status::Unreachable
            }
            ibv_wc_status::IBV_WC_RNR_RETRY_EXC_ERR => Status::NotReady,
            ibv_wc_status::IBV_WC_REM_ACCESS_ERR
            | ibv_wc_status::IBV_WC_REM_INV_REQ_ERR
            | ibv_wc_status::IBV_WC_REM_OP_ERR => Status::Refused,
            code => Status::Failed { code, vendor: wc.vendor_err },
        }
    }

    /// What it means to the caller of a queue pair with this number to this peer.
    pub fn reason(self, peer: &str, queue_pair: u32) -> Error {
        let lost = |reason: &str| Error::PeerLost { peer: peer.to_owned(), reason: reason.to_owned() };
        match self {
            Status::Success | Status::Flushed => {
                lost("its queue pair, or ours, failed: a device was reset, or one end reached for what the other did not grant")
            }
            Status::Unreachable => lost("its device does not answer (transport retries used up)"),
            Status::NotReady => lost("it posts no receive buffers (receiver-not-ready retries used up)"),
            Status::Refused => Error::Refused {
                peer: peer.to_owned(),
                reason: "remote access denied: the key was withdrawn or belongs to another peer, or the range or right was \
                         not granted"
                    .to_owned(),
            },
            Status::Failed { code, vendor } => Error::Device {
                operation: "work completion",
                device: format!("queue pair {queue_pair} to {peer}"),
                reason: format!("status {code}, vendor error {vendor:#x}"),
            },
        }
    }
}

impl Entry {
    fn new(wc: &ibv_wc) -> Entry {
        let status = Status::new(wc);
        let arrival = if status == Status::Success { Entry::arrival(wc) } else { Arrival::Nothing };
        Entry { id: WorkId::decode(wc.wr_id), status, arrival }
    }

    fn arrival(wc: &ibv_wc) -> Arrival {
        let with_imm = wc.wc_flags & ibv_wc_flags::IBV_WC_WITH_IMM.0 != 0;
        // SAFETY: both fields of the union are 32-bit integers, initialised by ibv_poll_cq or by the zeroes before it.
        let imm = u32::from_be(unsafe { wc.imm_data_invalidated_rkey_union.imm_data });
        match wc.opcode {
            ibv_wc_opcode::IBV_WC_RECV => {
                Arrival::Message { length: wc.byte_len, imm: with_imm.then_some(imm) }
            }
            ibv_wc_opcode::IBV_WC_RECV_RDMA_WITH_IMM => Arrival::Written { length: wc.byte_len, imm },
            _ => Arrival::Nothing,
        }
    }
}

/// A completion queue with its completion channel.
pub(super) struct CompletionQueue {
    raw: *mut ibv_cq,
    channel: *mut ibv_comp_channel,
    context: Arc<Context>,
}

// SAFETY: libibverbs is thread-safe; the pointers are only passed to it, and freed by the last owner.
unsafe impl Send for CompletionQueue {}
// SAFETY: as above.
unsafe impl Sync for CompletionQueue {}

/// Completions taken from the queue in one call.
const BATCH: usize = 32;

impl CompletionQueue {
    /// A queue that holds `capacity` completions, whose events interrupt the CPU of that completion vector of the device.
    pub fn new(context: &Arc<Context>, capacity: usize, vector: u32) -> Result<Arc<CompletionQueue>> {
        let capacity = i32::try_from(capacity).unwrap_or(i32::MAX);
        // SAFETY: the context is open, and stays so while the queue holds it.
        let channel = unsafe { ibv_create_comp_channel(context.raw()) };
        if channel.is_null() {
            return Err(context.last_error("ibv_create_comp_channel"));
        }
        let vector = i32::try_from(vector).unwrap_or(i32::MAX);
        // SAFETY: context and channel are live; no context pointer is asked for; a vector that is not there is refused.
        let raw = unsafe { ibv_create_cq(context.raw(), capacity, ptr::null_mut(), channel, vector) };
        if raw.is_null() {
            let error = context.last_error("ibv_create_cq");
            // SAFETY: the channel was made above and no queue uses it.
            unsafe { ibv_destroy_comp_channel(channel) };
            return Err(error);
        }
        let queue = CompletionQueue { raw, channel, context: context.clone() };
        queue.set_nonblocking()?;
        Ok(Arc::new(queue))
    }

    /// Makes it hold `capacity` completions; those that are in it stay.
    pub fn resize(&self, capacity: usize) -> Result<()> {
        let capacity = i32::try_from(capacity).unwrap_or(i32::MAX);
        // SAFETY: the queue is live, and only the thread of its transport, which is the caller, polls it.
        match unsafe { ibv_resize_cq(self.raw, capacity) } {
            0 => Ok(()),
            errno => Err(self.context.error("ibv_resize_cq", errno)),
        }
    }

    fn set_nonblocking(&self) -> Result<()> {
        // SAFETY: the channel owns its descriptor, and lives as long as this borrow.
        let fd = unsafe { BorrowedFd::borrow_raw(self.fd()) };
        rustix::io::ioctl_fionbio(fd, true).map_err(|e| Error::io("fcntl", &self.context.name, e.into()))
    }

    /// The handle, valid while `self` lives.
    pub fn raw(&self) -> *mut ibv_cq {
        self.raw
    }

    /// Readable when an event came after [`CompletionQueue::arm`].
    pub fn fd(&self) -> RawFd {
        // SAFETY: the channel is live, and its descriptor never changes.
        unsafe { (*self.channel).fd }
    }

    /// Takes at most `limit` completions.
    pub fn poll(&self, into: &mut VecDeque<Entry>, limit: usize) -> Result<()> {
        // SAFETY: the structure consists of integers, for which zero is a value.
        let mut batch: [ibv_wc; BATCH] = unsafe { std::mem::zeroed() };
        let mut left = limit;
        while left > 0 {
            let asked = left.min(BATCH);
            // SAFETY: the queue is live and the array has room for `asked` (at most 32) entries.
            let got = unsafe { ibv_poll_cq(self.raw, asked as i32, batch.as_mut_ptr()) };
            let Ok(got) = usize::try_from(got) else {
                return Err(self.context.error("ibv_poll_cq", got));
            };
            into.extend(batch[..got].iter().map(Entry::new));
            left -= got;
            if got < asked {
                break;
            }
        }
        Ok(())
    }

    /// Asks for an event at the next completion. What came before makes none: poll once more.
    pub fn arm(&self) -> Result<()> {
        // SAFETY: the queue is live.
        match unsafe { ibv_req_notify_cq(self.raw, 0) } {
            0 => Ok(()),
            errno => Err(self.context.error("ibv_req_notify_cq", errno)),
        }
    }

    /// Takes the events that have come, so that the descriptor is not readable any more.
    pub fn take_events(&self) {
        let (mut queue, mut user) = (ptr::null_mut(), ptr::null_mut());
        // SAFETY: the channel is live and does not block; both results are written to our own variables.
        while unsafe { ibv_get_cq_event(self.channel, &mut queue, &mut user) } == 0 {
            // SAFETY: the event that was just taken came from `queue`, the only one on this channel.
            unsafe { ibv_ack_cq_events(queue, 1) };
        }
    }
}

impl Drop for CompletionQueue {
    fn drop(&mut self) {
        // SAFETY: queue pairs hold an `Arc` of the queue, so none uses it; all events that were taken were acknowledged.
        let errno = unsafe { ibv_destroy_cq(self.raw) };
        if errno != 0 {
            tracing::error!(device = self.context.name, errno, "ibv_destroy_cq failed; the queue is leaked");
            return;
        }
        // SAFETY: the only queue on the channel is gone; freed once.
        unsafe { ibv_destroy_comp_channel(self.channel) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_round_trip() {
        for work in [Work::Send, Work::Receive, Work::Control] {
            for (index, generation, sequence) in [(0, 0, 0), (u16::MAX, 0x3fff, u32::MAX), (1, 2, 3)] {
                let id = WorkId { work, index, generation, sequence };
                assert_eq!(WorkId::decode(id.encode()), id);
            }
        }
    }

    /// The texts that docs/rdma.md explains.
    #[test]
    fn each_failure_says_what_it_means_and_names_the_peer() {
        for (code, said) in [
            (ibv_wc_status::IBV_WC_WR_FLUSH_ERR, "lost w 1: its queue pair, or ours, failed"),
            (ibv_wc_status::IBV_WC_RETRY_EXC_ERR, "its device does not answer (transport retries used up)"),
            (
                ibv_wc_status::IBV_WC_RESP_TIMEOUT_ERR,
                "its device does not answer (transport retries used up)",
            ),
            (ibv_wc_status::IBV_WC_RNR_RETRY_EXC_ERR, "it posts no receive buffers"),
            (ibv_wc_status::IBV_WC_REM_ACCESS_ERR, "w 1 refused: remote access denied"),
            (ibv_wc_status::IBV_WC_REM_INV_REQ_ERR, "w 1 refused: remote access denied"),
            (ibv_wc_status::IBV_WC_LOC_PROT_ERR, "queue pair 17 to w 1: status 4, vendor error 0x22"),
        ] {
            // SAFETY: the structure consists of integers, for which zero is a value.
            let mut wc: ibv_wc = unsafe { std::mem::zeroed() };
            (wc.status, wc.vendor_err) = (code, 0x22);
            let error = Entry::new(&wc).status.reason("w 1", 17).to_string();
            assert!(error.contains(said) && error.contains("w 1"), "{error}");
        }
    }

    /// All else in it may be anything: here it looks like a write that arrived.
    #[test]
    fn of_an_error_only_identity_status_and_vendor_count() {
        let id = WorkId { work: Work::Receive, index: 3, generation: 1, sequence: 7 };
        // SAFETY: the structure consists of integers, for which zero is a value.
        let mut wc: ibv_wc = unsafe { std::mem::zeroed() };
        wc.wr_id = id.encode();
        wc.opcode = ibv_wc_opcode::IBV_WC_RECV_RDMA_WITH_IMM;
        wc.wc_flags = ibv_wc_flags::IBV_WC_WITH_IMM.0;
        wc.byte_len = 64;
        wc.vendor_err = 0x22;
        for (code, status) in [
            (ibv_wc_status::IBV_WC_WR_FLUSH_ERR, Status::Flushed),
            (ibv_wc_status::IBV_WC_RNR_RETRY_EXC_ERR, Status::NotReady),
            (
                ibv_wc_status::IBV_WC_LOC_PROT_ERR,
                Status::Failed { code: ibv_wc_status::IBV_WC_LOC_PROT_ERR, vendor: 0x22 },
            ),
        ] {
            wc.status = code;
            let entry = Entry::new(&wc);
            assert_eq!((entry.id, entry.status, entry.arrival), (id, status, Arrival::Nothing));
        }
        wc.status = ibv_wc_status::IBV_WC_SUCCESS;
        assert_eq!(Entry::new(&wc).arrival, Arrival::Written { length: 64, imm: 0 });
    }
}
