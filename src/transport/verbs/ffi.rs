//! The C shim (`ffi/verbs.c`): what `rdma-sys` binds wrongly or not at all.

use std::mem::{offset_of, size_of};
use std::os::raw::{c_int, c_uint, c_void};

use rdma_sys::{
    ibv_context, ibv_device_attr, ibv_mr, ibv_pd, ibv_qp_attr, ibv_qp_init_attr, ibv_recv_wr, ibv_send_wr,
    ibv_sge, ibv_wc, rdma_t,
};

/// Mirrors `struct windlass_port`.
#[repr(C)]
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct RawPort {
    pub max_message: u32,
    pub gids: u32,
    pub lid: u16,
    pub state: u8,
    pub mtu: u8,
    pub link_layer: u8,
    pub width: u8,
    pub speed: u8,
    pub needs_grh: u8,
    pub pkeys: u16,
}

unsafe extern "C" {
    pub(super) fn windlass_query_port(context: *mut ibv_context, port: u8, out: *mut RawPort) -> c_int;
    pub(super) fn windlass_query_gid(
        context: *mut ibv_context,
        port: u8,
        index: u32,
        gid: *mut [u8; 16],
        kind: *mut u32,
    ) -> c_int;
    pub(super) fn windlass_reg_mr(
        domain: *mut ibv_pd,
        address: *mut c_void,
        length: usize,
        access: c_uint,
    ) -> *mut ibv_mr;
    pub(super) fn windlass_relaxed_ordering() -> c_uint;
    fn windlass_layout(which: c_uint) -> usize;
}

/// Whether the structures of `rdma-sys` have the layout of the C header that the shim was compiled with.
pub(super) fn layouts_agree() -> bool {
    let ours = [
        size_of::<ibv_send_wr>(),
        offset_of!(ibv_send_wr, imm_data_invalidated_rkey_union),
        offset_of!(ibv_send_wr, wr) + offset_of!(rdma_t, rkey),
        size_of::<ibv_recv_wr>(),
        size_of::<ibv_sge>(),
        size_of::<ibv_wc>(),
        offset_of!(ibv_wc, imm_data_invalidated_rkey_union),
        offset_of!(ibv_wc, wc_flags),
        size_of::<ibv_qp_attr>(),
        offset_of!(ibv_qp_attr, ah_attr),
        offset_of!(ibv_qp_attr, rnr_retry),
        size_of::<ibv_qp_init_attr>(),
        size_of::<ibv_device_attr>(),
        offset_of!(ibv_mr, rkey),
        0,
    ];
    // SAFETY: the function only reads a constant table and answers 0 for what lies past its end.
    ours.iter().zip(0..).all(|(&size, which)| size == unsafe { windlass_layout(which) })
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_bindings_match_the_header() {
        assert!(super::layouts_agree());
    }
}
