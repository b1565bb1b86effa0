//! How many endpoints and how long queues there may be, and what holds where a device can do less than was asked for.

use std::process::Command;

use windlass::config::Rdma;
use windlass::error::Error;
use windlass::mem::Rights;
use windlass::transport::verbs::{Verbs, VerbsConfig, available};
use windlass::transport::{Completion, Message, Payload, Side, Transport, Write};

use super::{End, config, connect, has_device, pair_of, plain_write, until, with};

/// A server thread takes as many workers as come: room is made while others are connected, up to what the device can.
#[test]
fn endpoints_are_made_room_for_and_the_end_of_it_names_the_setting() {
    let lean = Rdma { queue_depth: 64, receives: 16, ..Rdma::default() };
    let most = VerbsConfig { endpoints: 150, ..with(lean) };
    let Some((mut a, mut b)) = pair_of(&most, &config(), [7; 32], [7; 32]) else { return };
    connect(&mut a, &mut b);
    let message = |n: u8| Message::new(&[n]).unwrap();
    let got = |end: &End, n: u8| {
        end.has(|c| matches!(c, Completion::Received { message, .. } if message.bytes() == [n]))
    };
    // They lie in the queue while it grows.
    (0..8).for_each(|n| b.transport.send(b.endpoint, message(n)).unwrap());
    b.poll();
    let mut last = a.endpoint;
    let mut address = Vec::new();
    for _ in 1..150 {
        (last, address) = a.transport.open(Side::Active, "another").unwrap();
    }
    let error = a.transport.open(Side::Active, "too many").unwrap_err().to_string();
    assert!(
        error.contains("endpoints of one thread on rxe0") && error.contains("rdma_queue_depth"),
        "{error}"
    );
    until(&mut a, &mut b, "what came meanwhile", |a, _| (0..8).all(|n| got(a, n)));
    let mut c = End::opened(&config(), Side::Passive, "a");
    c.transport.connect(c.endpoint, &address, &[2; 32]).unwrap();
    a.transport.connect(last, &c.address, &[2; 32]).unwrap();
    until(&mut a, &mut c, "connect the last", |a, c| {
        c.connected() && a.has(|seen| matches!(seen, Completion::Connected { endpoint } if *endpoint == last))
    });
    a.transport.send(last, message(100)).unwrap();
    a.transport.send(a.endpoint, message(101)).unwrap();
    until(&mut a, &mut c, "the last", |_, c| got(c, 100));
    until(&mut a, &mut b, "the first", |_, b| got(b, 101));
    // A place that was given up is free again.
    a.transport.close(last);
    until(&mut a, &mut c, "close", |a, _| a.closed().is_some());
    a.transport.open(Side::Active, "again").unwrap();
}

/// Queues that the device can't make are refused at start, with the settings that they follow from.
#[test]
fn queues_beyond_the_device_name_their_settings() {
    if !has_device() {
        return;
    }
    let error = Verbs::new(&with(Rdma { receives: 65_536, ..Rdma::default() })).err().unwrap();
    assert!(matches!(error, Error::Limit { .. }), "{error}");
    let error = error.to_string();
    assert!(error.contains("of rxe0 (rdma_queue_depth 256") && error.contains("ring_entries"), "{error}");
}

/// A device that takes less inside a request than was asked for takes what it can, and the report says how much that is.
#[test]
fn inline_is_what_the_device_takes() {
    let long = with(Rdma { inline: 1024, ..Rdma::default() });
    let Some((mut a, mut b)) = pair_of(&long, &config(), [7; 32], [7; 32]) else { return };
    connect(&mut a, &mut b);
    let detail = a.transport.caps().detail.clone();
    let said = detail.split("inline up to ").nth(1).and_then(|rest| rest.split(',').next()).unwrap();
    println!("inline up to {said} of 1024");
    let holds: usize = said.parse().unwrap();
    assert!((64..=1024).contains(&holds), "{detail}");
    let remote = b.transport.authorise(b.endpoint, b.region, 0, 1 << 16, Rights::Write).unwrap();
    a.fill(0, &[9; 2048]);
    for (imm, length) in [(1, holds), (2, holds + 1)] {
        let body = Some(Payload::Pinned(a.slice(0, length)));
        a.transport.write(a.endpoint, Write { body, imm: Some(imm), ..plain_write(remote) }).unwrap();
    }
    until(&mut a, &mut b, "both", |_, b| b.written() == [(1, holds as u32), (2, holds as u32 + 1)]);
    let mut arrived = vec![0; holds + 1];
    b.read_out(0, &mut arrived);
    assert!(arrived.iter().all(|&byte| byte == 9));
}

/// Of two addresses of different kinds neither is chosen in silence.
#[test]
fn ends_at_addresses_of_different_kinds_are_both_named() {
    if !has_device() {
        return;
    }
    let port = available().unwrap().into_iter().find(|port| port.active).unwrap();
    let Some(link_local) = port.gids.iter().find(|gid| gid.to_string().contains("fe80")) else {
        println!("skipped: the device has no link-local address");
        return;
    };
    let other = with(Rdma { gid_index: Some(link_local.index), ..Rdma::default() });
    let (mut a, b) = (End::new(&config(), "b"), End::new(&other, "a"));
    let error = a.transport.connect(a.endpoint, &b.address, &[1; 32]).unwrap_err();
    assert!(matches!(&error, Error::Refused { peer, .. } if peer == "b"), "{error}");
    let error = error.to_string();
    println!("{error}");
    assert!(error.contains("it is reached at ") && error.contains(", this end at "), "{error}");
}

/// A container without the device's node, and one whose node is another user's.
#[test]
fn a_device_that_may_not_be_opened_is_named_with_where_to_look() {
    if !has_device() || std::env::var_os("WINDLASS_VM").is_none() {
        println!("skipped: the guest is needed");
        return;
    }
    let bench = |prepare: &str, user: &str| {
        let script = format!("{prepare} && exec {user} \"$0\" bench write --transport verbs --seconds 0.1");
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", &script, env!("CARGO_BIN_EXE_windlass")]);
        let ended = command.output().unwrap();
        let said = String::from_utf8(ended.stderr).unwrap();
        assert_eq!(ended.status.code(), Some(21), "{said}");
        said
    };
    let said = bench("mount -t tmpfs none /dev/infiniband", "");
    assert!(said.contains("open on any: this machine has no RDMA device"), "{said}");
    let others = "mount -t tmpfs none /mnt && cp -a /dev/infiniband/. /mnt && chmod 600 /mnt/uverbs* && \
                  mount --bind /mnt /dev/infiniband";
    let said = bench(others, "setpriv --reuid 65534 --regid 65534 --clear-groups");
    // The library's last try is another name, so the system's reason misleads.
    assert!(said.contains("ibv_open_device on rxe0: ") && said.contains("; see /dev/infiniband"), "{said}");
}
