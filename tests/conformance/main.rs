//! One suite over every transport: a new one is done when it passes.
//!
//! A case is a function of a [`Fabric`]; `suite!` makes it a test of each fabric. Both ends are driven by turns on one
//! thread, and every wait has a deadline.

#![allow(clippy::unwrap_used, clippy::expect_used)] // a test fails by panicking

mod close;
mod connect;
mod flow;
mod read;
mod rig;
mod rights;
mod send;
mod shm;
mod sim;
mod tcp;
#[cfg(feature = "verbs")]
mod verbs;
mod write;

macro_rules! suite {
    ($fabric:expr; $($module:ident: $($case:ident),+ $(,)?;)+) => {
        $(mod $module {
            $(#[test]
            fn $case() {
                if let Some(fabric) = $fabric {
                    crate::$module::$case(&fabric);
                }
            })+
        })+
    };
}

/// Names every case once; `$fabric` is an `Option`: `None` where this machine does not have what the transport needs.
macro_rules! all_cases {
    ($fabric:expr) => {
        suite! { $fabric;
            connect: connects_both_sides, many_endpoints, a_closed_endpoint_is_not_its_successor,
                wakes_a_sleeper, posting_needs_a_connection;
            write: header_and_body_with_imm, every_shape, longest, silent_before_the_next_imm,
                keeps_order_across_kinds, imm_values, done_gives_the_body_back, published_bodies,
                refused_locally,
                body_changed_after_posting, slot_changed_after_written, lent_bodies;
            send: every_length, many_in_order, both_ways_at_once;
            read: brings_the_bytes, many_outstanding, as_many_as_it_takes, many_large_outstanding,
                sees_an_earlier_write, refused_locally, races_a_writer;
            rights: no_write_with_read_right, no_read_with_write_right, forged_length, forged_key,
                another_peers_key, withdrawn_key, forged_rights_of_a_read, unregistered;
            flow: full_gives_the_operation_back, small_budgets_lose_nothing, seeded_transfer, nobody_starves,
                who_arms_now_and_then_may_sleep;
            close: one_closed_each, owned_buffers_come_back, peer_dropped_in_the_middle, nothing_after_closed,
                death_at_every_step;
        }
    };
}

mod on_tcp {
    all_cases!(Some(crate::tcp::Loopback::default()));
}

mod on_tcp_over_ipv6 {
    all_cases!(crate::tcp::Loopback::v6());
}

/// With long bodies that the kernel sends from where they lie, until it says that it copied them.
mod on_tcp_zero_copy {
    all_cases!(crate::tcp::Loopback::lending());
}

mod on_shm {
    all_cases!(Some(crate::shm::Loopback { shown: true }));
}

/// In memory that can't be shown to peers.
mod on_shm_by_copies {
    all_cases!(Some(crate::shm::Loopback { shown: false }));
}

mod on_several {
    all_cases!(Some(crate::shm::Both::here()));
}

/// Between processes of which each takes the other to be on another host.
mod on_several_across_hosts {
    all_cases!(Some(crate::shm::Both::apart()));
}

mod on_sim {
    all_cases!(Some(crate::sim::Loopback::default()));
}

#[cfg(feature = "verbs")]
mod on_verbs {
    all_cases!(crate::verbs::Loopback::find());
}
