/* What the crate rdma-sys binds wrongly or not at all. Everything else is called through it directly.
 *
 * - ibv_query_port: verbs.h makes it a macro over a versioned call; the plain symbol writes an older, shorter structure.
 * - ibv_query_gid_ex: an inline function.
 * - ibv_reg_mr: a macro that knows of optional access flags, such as relaxed ordering.
 * - The structures with unions are written by hand in rdma-sys; windlass_layout() gives their true sizes and offsets, so
 *   that a mismatch is found at start and not by a device that reads garbage.
 */
#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <infiniband/verbs.h>

struct windlass_port {
    uint32_t max_message;
    uint32_t gids;
    uint16_t lid;
    uint8_t state;
    uint8_t mtu;
    uint8_t link_layer;
    uint8_t width;
    uint8_t speed;
    uint8_t needs_grh;
    uint16_t pkeys;
};

/* 0 or a positive errno. */
int windlass_query_port(struct ibv_context *context, uint8_t port, struct windlass_port *out)
{
    struct ibv_port_attr attr;
    int error = ibv_query_port(context, port, &attr);

    if (error)
        return error > 0 ? error : errno;
    out->max_message = attr.max_msg_sz;
    out->gids = attr.gid_tbl_len > 0 ? (uint32_t)attr.gid_tbl_len : 0;
    out->lid = attr.lid;
    out->state = (uint8_t)attr.state;
    out->mtu = (uint8_t)attr.active_mtu;
    out->link_layer = attr.link_layer;
    out->width = attr.active_width;
    out->speed = attr.active_speed;
    out->needs_grh = !!(attr.flags & IBV_QPF_GRH_REQUIRED);
    out->pkeys = attr.pkey_tbl_len;
    return 0;
}

/* verbs.h makes ibv_reg_mr a macro, too: it leaves optional access flags out where the device can't do them. */
struct ibv_mr *windlass_reg_mr(struct ibv_pd *domain, void *address, size_t length, unsigned int access)
{
    return ibv_reg_mr(domain, address, length, access);
}

unsigned int windlass_relaxed_ordering(void)
{
    return IBV_ACCESS_RELAXED_ORDERING;
}

/* type: 0 InfiniBand, 1 RoCE v1, 2 RoCE v2. 0 or a positive errno; ENODATA for an empty entry. */
int windlass_query_gid(struct ibv_context *context, uint8_t port, uint32_t index, uint8_t gid[16], uint32_t *type)
{
    struct ibv_gid_entry entry;
    int error = ibv_query_gid_ex(context, port, index, &entry, 0);

    if (error)
        return error > 0 ? error : errno;
    memcpy(gid, entry.gid.raw, 16);
    *type = entry.gid_type;
    return 0;
}

/* The sizes and offsets that src/transport/verbs/ffi.rs lists, in the same order; 0 past the end. */
size_t windlass_layout(unsigned int which)
{
    static const size_t layout[] = {
        sizeof(struct ibv_send_wr),
        offsetof(struct ibv_send_wr, imm_data),
        offsetof(struct ibv_send_wr, wr.rdma.rkey),
        sizeof(struct ibv_recv_wr),
        sizeof(struct ibv_sge),
        sizeof(struct ibv_wc),
        offsetof(struct ibv_wc, imm_data),
        offsetof(struct ibv_wc, wc_flags),
        sizeof(struct ibv_qp_attr),
        offsetof(struct ibv_qp_attr, ah_attr),
        offsetof(struct ibv_qp_attr, rnr_retry),
        sizeof(struct ibv_qp_init_attr),
        sizeof(struct ibv_device_attr),
        offsetof(struct ibv_mr, rkey),
    };

    return which < sizeof(layout) / sizeof(layout[0]) ? layout[which] : 0;
}
