//! A reliable-connected queue pair, and the way through its states.
//!
//! ```text
//!           create            prepare           ready_to_receive     ready_to_send
//!   (none) ───────▶ RESET ──────────▶ INIT ────────────────▶ RTR ─────────────▶ RTS
//!                     ▲                 └───────────┬─────────┴──────────────────┘
//!                     │                             │ fail, or the first error of the device
//!                     │                             ▼
//!                     └────────── reset ────────── ERR ◀─┐ fail
//!                                                   └────┘
//! ```
//! Receives may be posted from INIT on, and arrive from RTR on; sends from RTS on. In ERR all work is flushed. Dropped in any state.
//!
//! | to    | what has to be given |
//! |-------|----------------------|
//! | INIT  | port, partition key index, what peers may do at all |
//! | RTR   | the peer's number, first PSN and path; MTU; reads that we serve at once; RNR timer |
//! | RTS   | our first PSN; reads that we have under way at once; timeout and retries |
//! | ERR   | nothing; also entered by itself at the first error |
//! | RESET | nothing; what was still posted is forgotten without a completion |

use std::os::raw::c_int;
use std::ptr;
use std::sync::Arc;

use rdma_sys::{
    ibv_access_flags, ibv_ah_attr, ibv_create_qp, ibv_destroy_qp, ibv_modify_qp, ibv_post_recv,
    ibv_post_send, ibv_qp, ibv_qp_attr, ibv_qp_attr_mask as mask, ibv_qp_init_attr, ibv_qp_state,
    ibv_qp_type, ibv_recv_wr, ibv_send_flags, ibv_send_wr, ibv_sge, ibv_wr_opcode,
    imm_data_invalidated_rkey_union_t, rdma_t, wr_t,
};

use super::cq::{CompletionQueue, WorkId};
use super::device::Port;
use super::memory::Domain;
use crate::error::{Error, Result};
use crate::transport::pairing::Address;

/// Work requests posted with one ring of the doorbell.
pub(super) const BATCH: usize = 16;

/// Limits and timers of a queue pair.
#[derive(Debug, Clone, Copy)]
pub(super) struct Settings {
    pub sends: u32,
    pub receives: u32,
    /// Reads that this end serves, or has under way, at once.
    pub reads: u8,
    pub timeout: u8,
    pub retries: u8,
    pub rnr_retries: u8,
    pub traffic_class: u8,
    pub service_level: u8,
    pub pkey_index: u16,
    /// Bytes that a work request may carry inside itself; halved until the device can.
    pub inline: u32,
    /// For the memory that is registered: whether the device's writes may overtake each other.
    pub relaxed_ordering: bool,
}

impl Settings {
    /// Completions that one queue pair may have waiting.
    pub fn completions(&self) -> usize {
        self.sends as usize + self.receives as usize
    }
}

/// A piece of registered memory, as the device is told of it.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Piece {
    pub address: u64,
    pub length: u32,
    pub key: u32,
}

/// What a send work request does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    /// A message; with a number only in the handshake of the transport itself.
    Send(Option<u32>),
    /// A write; with a number the peer is told.
    Write(Option<u32>),
    /// A read into the pieces.
    Read,
}

/// A send work request.
#[derive(Debug, Clone, Copy)]
pub(super) struct SendRequest {
    pub id: WorkId,
    pub verb: Verb,
    /// Those of length 0 are left out.
    pub pieces: [Piece; 2],
    /// Address and key at the peer; unused by `Send`.
    pub remote: (u64, u32),
    /// Whether success makes a completion.
    pub signalled: bool,
    /// Whether it waits for the reads before it.
    pub fenced: bool,
}

impl SendRequest {
    fn length(&self) -> u32 {
        self.pieces.iter().map(|p| p.length).sum()
    }

    /// Its flags on a queue pair that takes so many bytes inside a request.
    fn flags(&self, inline: u32) -> u32 {
        let within = self.verb != Verb::Read && (1..=inline).contains(&self.length());
        [
            (self.signalled, ibv_send_flags::IBV_SEND_SIGNALED),
            (self.fenced, ibv_send_flags::IBV_SEND_FENCE),
            (within, ibv_send_flags::IBV_SEND_INLINE),
        ]
        .into_iter()
        .filter(|(wanted, _)| *wanted)
        .fold(0, |flags, (_, flag)| flags | flag.0)
    }
}

/// Where a queue pair stands: see the head of this file. A device enters `Error` by itself, too, at the first failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Reset,
    Init,
    ReadyToReceive,
    ReadyToSend,
    Error,
}

impl State {
    /// The arrows of the drawing.
    fn may_become(self, next: State) -> bool {
        use State::{Error, Init, ReadyToReceive, ReadyToSend, Reset};
        match next {
            Init => self == Reset,
            ReadyToReceive => self == Init,
            ReadyToSend => self == ReadyToReceive,
            Error => self != Reset,
            Reset => self == Error,
        }
    }

    fn raw(self) -> ibv_qp_state::Type {
        match self {
            State::Reset => ibv_qp_state::IBV_QPS_RESET,
            State::Init => ibv_qp_state::IBV_QPS_INIT,
            State::ReadyToReceive => ibv_qp_state::IBV_QPS_RTR,
            State::ReadyToSend => ibv_qp_state::IBV_QPS_RTS,
            State::Error => ibv_qp_state::IBV_QPS_ERR,
        }
    }
}

/// A queue pair. Destroyed on drop, which ends all access of the device to the memory of its work requests.
pub(super) struct QueuePair {
    raw: *mut ibv_qp,
    state: State,
    /// Bytes that a work request may carry inside itself.
    inline: u32,
    settings: Settings,
    domain: Arc<Domain>,
    completions: Arc<CompletionQueue>,
    context: Arc<super::device::Context>,
    /// Rings of the doorbell for sends.
    #[cfg(test)]
    pub rings: u32,
}

// SAFETY: libibverbs is thread-safe; `raw` is only passed to it, and freed by its one owner.
unsafe impl Send for QueuePair {}

impl QueuePair {
    /// A queue pair in RESET.
    pub fn new(
        context: &Arc<super::device::Context>,
        domain: &Arc<Domain>,
        completions: &Arc<CompletionQueue>,
        settings: Settings,
    ) -> Result<QueuePair> {
        // Not every device sends as much inline, or at all; the library has no question for it but creation itself.
        let mut inline = settings.inline;
        loop {
            // SAFETY: the structure consists of integers and pointers, for which zero and null are values.
            let mut attr = unsafe { std::mem::zeroed::<ibv_qp_init_attr>() };
            attr.send_cq = completions.raw();
            attr.recv_cq = completions.raw();
            attr.qp_type = ibv_qp_type::IBV_QPT_RC;
            attr.cap.max_send_wr = settings.sends;
            attr.cap.max_recv_wr = settings.receives;
            attr.cap.max_send_sge = 2;
            attr.cap.max_recv_sge = 1;
            attr.cap.max_inline_data = inline;
            // SAFETY: domain and completion queue are live, and stay so while the queue pair holds them.
            let raw = unsafe { ibv_create_qp(domain.raw(), &mut attr) };
            if !raw.is_null() {
                return Ok(QueuePair {
                    raw,
                    state: State::Reset,
                    inline: attr.cap.max_inline_data.min(settings.inline),
                    settings,
                    domain: domain.clone(),
                    completions: completions.clone(),
                    context: context.clone(),
                    #[cfg(test)]
                    rings: 0,
                });
            }
            if inline == 0 {
                return Err(context.last_error("ibv_create_qp"));
            }
            inline /= 2;
        }
    }

    /// Bytes that a work request may carry inside itself: at most what was asked for.
    pub fn inline(&self) -> u32 {
        self.inline
    }

    /// The number by which peers reach it.
    pub fn number(&self) -> u32 {
        // SAFETY: the queue pair is live, and its number never changes.
        unsafe { (*self.raw).qp_num }
    }

    fn go(&mut self, next: State, attr: &mut ibv_qp_attr, what: mask) -> Result<()> {
        if !self.state.may_become(next) {
            let reason = format!("a queue pair does not go from {:?} to {next:?}", self.state);
            return Err(Error::Misuse { call: "ibv_modify_qp", reason });
        }
        attr.qp_state = next.raw();
        let what = what | mask::IBV_QP_STATE;
        let operation = match next {
            State::Reset => "ibv_modify_qp (RESET)",
            State::Init => "ibv_modify_qp (INIT)",
            State::ReadyToReceive => "ibv_modify_qp (RTR)",
            State::ReadyToSend => "ibv_modify_qp (RTS)",
            State::Error => "ibv_modify_qp (ERR)",
        };
        // SAFETY: the queue pair is live; the library reads the fields named by `what`, which the caller has set.
        match unsafe { ibv_modify_qp(self.raw, attr, what.0 as c_int) } {
            0 => {
                self.state = next;
                Ok(())
            }
            errno => Err(self.context.error(operation, errno)),
        }
    }

    /// RESET to INIT.
    pub fn prepare(&mut self, port: &Port) -> Result<()> {
        let mut attr = attributes();
        attr.port_num = port.number;
        attr.pkey_index = self.settings.pkey_index;
        let access = ibv_access_flags::IBV_ACCESS_LOCAL_WRITE
            | ibv_access_flags::IBV_ACCESS_REMOTE_WRITE
            | ibv_access_flags::IBV_ACCESS_REMOTE_READ;
        attr.qp_access_flags = access.0;
        let what = mask::IBV_QP_PKEY_INDEX | mask::IBV_QP_PORT | mask::IBV_QP_ACCESS_FLAGS;
        self.go(State::Init, &mut attr, what)
    }

    /// INIT over RTR to RTS: from now on both sides may send.
    pub fn connect(&mut self, port: &Port, local: &Address, remote: &Address) -> Result<()> {
        self.ready_to_receive(port, local, remote)?;
        self.ready_to_send(local, remote)
    }

    fn ready_to_send(&mut self, local: &Address, remote: &Address) -> Result<()> {
        let mut attr = attributes();
        attr.sq_psn = local.psn;
        attr.timeout = self.settings.timeout;
        attr.retry_cnt = self.settings.retries;
        attr.rnr_retry = self.settings.rnr_retries;
        attr.max_rd_atomic = self.settings.reads.min(remote.reads);
        let what = mask::IBV_QP_SQ_PSN
            | mask::IBV_QP_TIMEOUT
            | mask::IBV_QP_RETRY_CNT
            | mask::IBV_QP_RNR_RETRY
            | mask::IBV_QP_MAX_QP_RD_ATOMIC;
        self.go(State::ReadyToSend, &mut attr, what)
    }

    fn ready_to_receive(&mut self, port: &Port, local: &Address, remote: &Address) -> Result<()> {
        let mut attr = attributes();
        attr.path_mtu = local.mtu.min(remote.mtu).into();
        attr.dest_qp_num = remote.number;
        attr.rq_psn = remote.psn;
        attr.max_dest_rd_atomic = self.settings.reads;
        // 0.64 ms: credits make this rare.
        attr.min_rnr_timer = 12;
        attr.ah_attr = path(port, &self.settings, remote);
        let what = mask::IBV_QP_AV
            | mask::IBV_QP_PATH_MTU
            | mask::IBV_QP_DEST_QPN
            | mask::IBV_QP_RQ_PSN
            | mask::IBV_QP_MAX_DEST_RD_ATOMIC
            | mask::IBV_QP_MIN_RNR_TIMER;
        self.go(State::ReadyToReceive, &mut attr, what)
    }

    /// Any state but RESET to ERR: nothing is accepted from the peer any more, and all posted work is flushed.
    pub fn fail(&mut self) -> Result<()> {
        self.go(State::Error, &mut attributes(), mask::IBV_QP_STATE)
    }

    /// To ERR as the device does it by itself.
    #[cfg(test)]
    pub fn fail_unseen(&mut self) {
        let mut attr = attributes();
        attr.qp_state = State::Error.raw();
        // SAFETY: as in `go`.
        let errno = unsafe { ibv_modify_qp(self.raw, &mut attr, mask::IBV_QP_STATE.0 as c_int) };
        assert_eq!(errno, 0, "ibv_modify_qp (ERR)");
    }

    /// ERR to RESET.
    pub fn reset(&mut self) -> Result<()> {
        self.go(State::Reset, &mut attributes(), mask::IBV_QP_STATE)
    }

    /// Posts at most [`BATCH`] requests with one ring of the doorbell.
    ///
    /// # Safety
    /// The memory of every piece stays allocated until the request's completion, or that of a later request, or the end of
    /// the queue pair; nobody writes what is sent, and nobody else touches what is read into, until then.
    pub unsafe fn post_sends(&mut self, requests: &[SendRequest]) -> Result<()> {
        assert!(requests.len() <= BATCH, "more than one batch");
        let mut pieces = [[ibv_sge { addr: 0, length: 0, lkey: 0 }; 2]; BATCH];
        // SAFETY: the structure consists of integers and pointers, for which zero and null are values.
        let mut list: [ibv_send_wr; BATCH] = unsafe { std::mem::zeroed() };
        let mut next = ptr::null_mut();
        for ((request, wr), sges) in requests.iter().zip(&mut list).zip(&mut pieces).rev() {
            wr.num_sge = fill(sges, &request.pieces);
            wr.sg_list = sges.as_mut_ptr();
            wr.wr_id = request.id.encode();
            wr.next = next;
            self.describe(wr, request);
            next = wr;
        }
        if next.is_null() {
            return Ok(());
        }
        #[cfg(test)]
        {
            self.rings += 1;
        }
        let mut bad = ptr::null_mut();
        // SAFETY: the list is linked through live entries of `list`, each with live pieces; the device's copy is made
        // before the call returns. The memory behind the pieces is the caller's promise.
        match unsafe { ibv_post_send(self.raw, next, &mut bad) } {
            0 => Ok(()),
            errno => Err(self.context.error("ibv_post_send", errno)),
        }
    }

    fn describe(&self, wr: &mut ibv_send_wr, request: &SendRequest) {
        let (opcode, imm) = match request.verb {
            Verb::Send(None) => (ibv_wr_opcode::IBV_WR_SEND, None),
            Verb::Send(imm) => (ibv_wr_opcode::IBV_WR_SEND_WITH_IMM, imm),
            Verb::Write(None) => (ibv_wr_opcode::IBV_WR_RDMA_WRITE, None),
            Verb::Write(imm) => (ibv_wr_opcode::IBV_WR_RDMA_WRITE_WITH_IMM, imm),
            Verb::Read => (ibv_wr_opcode::IBV_WR_RDMA_READ, None),
        };
        wr.opcode = opcode;
        wr.imm_data_invalidated_rkey_union =
            imm_data_invalidated_rkey_union_t { imm_data: imm.unwrap_or(0).to_be() };
        wr.wr = wr_t { rdma: rdma_t { remote_addr: request.remote.0, rkey: request.remote.1 } };
        wr.send_flags = request.flags(self.inline);
    }

    /// Posts at most [`BATCH`] receive buffers.
    ///
    /// # Safety
    /// The memory of every piece stays allocated, and is touched by nobody else, until the completion or the end of the
    /// queue pair.
    pub unsafe fn post_receives(&mut self, buffers: &[(WorkId, Piece)]) -> Result<()> {
        assert!(buffers.len() <= BATCH, "more than one batch");
        let mut pieces = [ibv_sge { addr: 0, length: 0, lkey: 0 }; BATCH];
        // SAFETY: the structure consists of integers and pointers, for which zero and null are values.
        let mut list: [ibv_recv_wr; BATCH] = unsafe { std::mem::zeroed() };
        let mut next = ptr::null_mut();
        for ((&(id, piece), wr), sge) in buffers.iter().zip(&mut list).zip(&mut pieces).rev() {
            *sge = ibv_sge { addr: piece.address, length: piece.length, lkey: piece.key };
            wr.wr_id = id.encode();
            wr.sg_list = sge;
            wr.num_sge = 1;
            wr.next = next;
            next = wr;
        }
        if next.is_null() {
            return Ok(());
        }
        let mut bad = ptr::null_mut();
        // SAFETY: as in `post_sends`.
        match unsafe { ibv_post_recv(self.raw, next, &mut bad) } {
            0 => Ok(()),
            errno => Err(self.context.error("ibv_post_recv", errno)),
        }
    }
}

/// Copies the pieces that have bytes; how many.
fn fill(sges: &mut [ibv_sge; 2], pieces: &[Piece; 2]) -> i32 {
    let mut count = 0;
    for (sge, piece) in sges.iter_mut().zip(pieces.iter().filter(|p| p.length > 0)) {
        *sge = ibv_sge { addr: piece.address, length: piece.length, lkey: piece.key };
        count += 1;
    }
    count
}

/// The way to the peer: within an InfiniBand subnet by its LID alone, else by its GID, too.
fn path(port: &Port, settings: &Settings, remote: &Address) -> ibv_ah_attr {
    let mut path = attributes().ah_attr;
    path.dlid = remote.lid;
    path.sl = settings.service_level;
    path.port_num = port.number;
    if port.global {
        path.is_global = 1;
        path.grh.dgid.raw = remote.gid;
        path.grh.sgid_index = port.gid.index;
        path.grh.hop_limit = 64;
        path.grh.traffic_class = settings.traffic_class;
    }
    path
}

/// Attributes with nothing set.
fn attributes() -> ibv_qp_attr {
    // SAFETY: the structure consists of integers, for which zero is a value.
    unsafe { std::mem::zeroed() }
}

impl Drop for QueuePair {
    fn drop(&mut self) {
        // SAFETY: the queue pair is live and nobody else has the pointer; destroyed once.
        let errno = unsafe { ibv_destroy_qp(self.raw) };
        if errno != 0 {
            // Its regions are deregistered next, which ends its access to memory all the same; but what it was made from
            // must stay.
            tracing::error!(
                device = self.context.name,
                errno,
                "ibv_destroy_qp failed; the queue pair is leaked"
            );
            std::mem::forget((self.domain.clone(), self.completions.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::State::{Error, Init, ReadyToReceive, ReadyToSend, Reset};
    use super::*;
    use crate::config::Rdma;
    use crate::transport::Side;
    use crate::transport::pairing::GidKind;
    use crate::transport::verbs::VerbsConfig;
    use crate::transport::verbs::cq::Work;
    use crate::transport::verbs::device::{Gid, available};

    const ALL: [State; 5] = [Reset, Init, ReadyToReceive, ReadyToSend, Error];

    #[test]
    fn the_table_is_the_drawing() {
        // A row for each state, a column for each that it may become.
        let drawn = [
            (Reset, [false, true, false, false, false]),
            (Init, [false, false, true, false, true]),
            (ReadyToReceive, [false, false, false, true, true]),
            (ReadyToSend, [false, false, false, false, true]),
            (Error, [true, false, false, false, true]),
        ];
        for (from, row) in drawn {
            for (to, allowed) in ALL.into_iter().zip(row) {
                assert_eq!(from.may_become(to), allowed, "{from:?} to {to:?}");
            }
        }
    }

    #[test]
    fn flags_are_those_that_were_asked_for() {
        let [signalled, fence, inline] = [
            ibv_send_flags::IBV_SEND_SIGNALED.0,
            ibv_send_flags::IBV_SEND_FENCE.0,
            ibv_send_flags::IBV_SEND_INLINE.0,
        ];
        let request = |verb, signalled, fenced, length| SendRequest {
            id: WorkId { work: Work::Send, index: 0, generation: 0, sequence: 0 },
            verb,
            pieces: [Piece::default(), Piece { address: 0, length, key: 0 }],
            remote: (0, 0),
            signalled,
            fenced,
        };
        let write = Verb::Write(Some(1));
        assert_eq!(request(write, false, false, 65).flags(64), 0);
        assert_eq!(request(write, true, false, 64).flags(64), signalled | inline);
        assert_eq!(request(write, false, true, 64).flags(0), fence);
        assert_eq!(request(write, true, true, 0).flags(64), signalled | fence);
        assert_eq!(request(Verb::Read, true, false, 8).flags(64), signalled);
    }

    /// A subnet of InfiniBand is crossed by LID, without a header for routers; RoCE, and InfiniBand between subnets, by GID with one.
    #[test]
    fn peers_are_reached_by_lid_or_by_gid() {
        let settings = Settings {
            sends: 1,
            receives: 1,
            reads: 1,
            timeout: 14,
            retries: 6,
            rnr_retries: 7,
            traffic_class: 104,
            service_level: 3,
            pkey_index: 0,
            inline: 0,
            relaxed_ordering: false,
        };
        let port = |kind, global| Port {
            number: 2,
            lid: 17,
            mtu: 5,
            max_message: 1 << 30,
            gid: Gid { index: 5, kind, raw: [1; 16] },
            global,
        };
        let way = |kind, global| {
            let remote =
                Address { lid: 0x2a2b, gid: [9; 16], ..port(kind, global).address(Side::Active, 1, 1, 1) };
            let path = path(&port(kind, global), &settings, &remote);
            assert_eq!((path.dlid, path.sl, path.port_num), (0x2a2b, 3, 2), "{kind:?}");
            // SAFETY: every member of the union consists of the same 16 bytes, all of them set.
            let gid = unsafe { path.grh.dgid.raw };
            (path.is_global, gid, path.grh.sgid_index, path.grh.hop_limit, path.grh.traffic_class)
        };
        assert_eq!(way(GidKind::InfiniBand, false), (0, [0; 16], 0, 0, 0));
        for kind in [GidKind::InfiniBand, GidKind::RoceV2] {
            assert_eq!(way(kind, true), (1, [9; 16], 5, 64, 104), "{kind:?}");
        }
    }

    /// Two queue pairs of one port, each with its address.
    fn two(rdma: Rdma) -> (Port, QueuePair, [Address; 2], QueuePair) {
        let (context, port) = Port::find(&rdma).unwrap();
        let completions = CompletionQueue::new(&context, 16, 0).unwrap();
        let all = super::super::settings(&VerbsConfig { rdma, ..VerbsConfig::default() }, &context);
        let settings = Settings { sends: 4, receives: 4, reads: 1, ..all };
        let pair = || {
            let domain = Domain::new(&context, false).unwrap();
            QueuePair::new(&context, &domain, &completions, settings).unwrap()
        };
        let (a, b) = (pair(), pair());
        let address = |qp: &QueuePair| port.address(Side::Active, qp.number(), 7, 1);
        let addresses = [address(&a), address(&b)];
        (port, a, addresses, b)
    }

    fn step(to: State, qp: &mut QueuePair, port: &Port, [local, remote]: &[Address; 2]) -> Result<()> {
        match to {
            Reset => qp.reset(),
            Init => qp.prepare(port),
            ReadyToReceive => qp.ready_to_receive(port, local, remote),
            ReadyToSend => qp.ready_to_send(local, remote),
            Error => qp.fail(),
        }
    }

    /// From every state to every other, on a device: what the table allows works, and the rest is refused with both names.
    #[test]
    fn every_transition_on_a_device() {
        if !available().unwrap().iter().any(|d| d.active) {
            println!("skipped: no RDMA device");
            return;
        }
        let way = |from: State| match from {
            Reset => &[][..],
            Init => &[Init][..],
            ReadyToReceive => &[Init, ReadyToReceive],
            ReadyToSend => &[Init, ReadyToReceive, ReadyToSend],
            Error => &[Init, Error],
        };
        for from in ALL {
            for to in ALL {
                let (port, mut qp, addresses, _other) = two(Rdma::default());
                for &on_the_way in way(from) {
                    step(on_the_way, &mut qp, &port, &addresses).unwrap();
                }
                let stepped = step(to, &mut qp, &port, &addresses);
                if from.may_become(to) {
                    stepped.unwrap();
                    assert_eq!(qp.state, to);
                } else {
                    let error = stepped.unwrap_err().to_string();
                    assert!(error.contains(&format!("from {from:?} to {to:?}")), "{error}");
                    assert_eq!(qp.state, from);
                }
            }
        }
    }

    /// The MTU is the smaller of both ends', and timers and first PSNs are those that were asked for.
    #[test]
    fn the_path_is_what_both_ends_take() {
        if !available().unwrap().iter().any(|d| d.active) {
            println!("skipped: no RDMA device");
            return;
        }
        for (ours, theirs, holds) in [(3, 1, 1), (2, 3, 2), (3, 3, 3)] {
            let (port, mut qp, [mut local, mut remote], _other) = two(Rdma::default());
            (local.mtu, remote.mtu) = (ours, theirs);
            (local.psn, remote.psn) = (0x12_3456, 0x65_4321);
            qp.prepare(&port).unwrap();
            qp.connect(&port, &local, &remote).unwrap();
            let attr = asked(&qp);
            assert_eq!(attr.path_mtu, holds, "{ours} and {theirs}");
            assert_eq!((attr.sq_psn, attr.rq_psn), (0x12_3456, 0x65_4321));
            assert_eq!((attr.timeout, attr.retry_cnt, attr.rnr_retry), (18, 6, 7));
        }
    }

    /// What the device itself says of a connected queue pair.
    fn asked(qp: &QueuePair) -> ibv_qp_attr {
        let mut attr = attributes();
        // SAFETY: the structure consists of integers and pointers, for which zero and null are values.
        let mut init = unsafe { std::mem::zeroed::<ibv_qp_init_attr>() };
        let what = mask::IBV_QP_AV
            | mask::IBV_QP_PKEY_INDEX
            | mask::IBV_QP_PATH_MTU
            | mask::IBV_QP_SQ_PSN
            | mask::IBV_QP_RQ_PSN
            | mask::IBV_QP_TIMEOUT;
        // SAFETY: the queue pair is live, and both structures are our own.
        let errno = unsafe { rdma_sys::ibv_query_qp(qp.raw, &mut attr, what.0 as c_int, &mut init) };
        assert_eq!(errno, 0);
        attr
    }

    #[test]
    fn what_is_set_is_what_the_device_has_of_a_connected_queue_pair() {
        if !available().unwrap().iter().any(|d| d.active) {
            println!("skipped: no RDMA device");
            return;
        }
        let set =
            Rdma { service_level: 3, traffic_class: 104, timeout: Some(15), retries: 3, ..Rdma::default() };
        let (port, mut qp, [local, remote], _other) = two(set);
        qp.prepare(&port).unwrap();
        qp.connect(&port, &local, &remote).unwrap();
        let attr = asked(&qp);
        let (index, number) = (qp.settings.pkey_index, port.number);
        assert_eq!((attr.timeout, attr.retry_cnt, attr.pkey_index, attr.port_num), (15, 3, index, number));
        let path = attr.ah_attr;
        assert_eq!((path.is_global, path.grh.traffic_class, path.grh.hop_limit), (1, 104, 64));
        assert_eq!(path.grh.sgid_index, port.gid.index);
        // SAFETY: every member of the union consists of the same 16 bytes, all of them set.
        assert_eq!(unsafe { path.grh.dgid.raw }, remote.gid);
    }

    #[test]
    fn what_is_posted_too_early_is_a_typed_error() {
        if !available().unwrap().iter().any(|d| d.active) {
            println!("skipped: no RDMA device");
            return;
        }
        let (_port, mut qp, _addresses, _other) = two(Rdma::default());
        let id = WorkId { work: Work::Send, index: 0, generation: 0, sequence: 0 };
        let pieces = [Piece::default(); 2];
        let request = SendRequest {
            id,
            verb: Verb::Send(None),
            pieces,
            remote: (0, 0),
            signalled: true,
            fenced: false,
        };
        // SAFETY: the request has no memory.
        let error = unsafe { qp.post_sends(&[request]) }.unwrap_err();
        assert!(matches!(&error, crate::error::Error::Device { operation: "ibv_post_send", .. }), "{error}");
    }
}
