//! The suite over shared memory, and what only that has to show.

use std::cell::Cell;

use windlass::mem::{Kind, Rights};
use windlass::transport::several::Several;
use windlass::transport::shm::{Shm, ShmConfig};
use windlass::transport::tcp::{Tcp, TcpConfig};
use windlass::transport::{Completion, Payload, Side, Transport, Write};

use crate::rig::{End, Fabric, header, pair, write_to};

/// Transports on this host.
pub struct Loopback {
    /// What is sent lies in memory that can be shown to peers.
    pub shown: bool,
}

impl Fabric for Loopback {
    fn transport(&self) -> Box<dyn Transport> {
        Box::new(Shm::new(ShmConfig::default(), true).unwrap())
    }

    fn end(&self) -> End {
        End::in_memory(self.transport(), if self.shown { Kind::Shared } else { Kind::Private })
    }
}

/// Shared memory and TCP, whichever connects.
pub struct Both {
    apart: bool,
    hosts: Cell<u8>,
}

impl Both {
    pub fn here() -> Both {
        Both { apart: false, hosts: Cell::new(0) }
    }

    /// Each end has a host of its own.
    pub fn apart() -> Both {
        Both { apart: true, hosts: Cell::new(0) }
    }
}

impl Fabric for Both {
    fn transport(&self) -> Box<dyn Transport> {
        self.hosts.set(self.hosts.get() + 1);
        let host = self.apart.then_some([self.hosts.get(); 16]);
        let memory = Shm::new(ShmConfig { host, ..ShmConfig::default() }, true).unwrap();
        let tcp = Tcp::new(TcpConfig::default()).unwrap();
        Box::new(Several::new(memory, Box::new(tcp)).unwrap())
    }
}

#[test]
fn peers_on_one_host_are_connected_by_memory_and_others_are_not() {
    for (fabric, by_memory) in
        [(Both::here(), "1 of 1 endpoints by shm"), (Both::apart(), "0 of 1 endpoints by shm")]
    {
        let p = pair(&fabric);
        assert_eq!(p.net.ends[0].transport.lends(p.a), by_memory.starts_with('1'));
        for end in &p.net.ends {
            let caps = end.transport.caps();
            assert!(caps.detail.ends_with(by_memory), "{}", caps.detail);
            assert_eq!(caps.name, "tcp");
        }
    }
}

#[test]
fn what_is_lent_is_not_copied() {
    let mut p = pair(&Loopback { shown: true });
    assert!(p.net.ends[0].transport.lends(p.a));
    let remote = p.net.ends[1].grant(p.b, 0, 1 << 20, Rights::Write);
    let body = Some(Payload::Lent(p.net.ends[0].slice(4096, 100_000)));
    p.net.write(0, p.a, Write { header: Some(header(1)), body, imm: Some(1), ..write_to(remote, 0) });
    let loan = p.net.wait(1, "Lent", |c| match c {
        Completion::Lent { body, .. } => Some(body.clone()),
        _ => None,
    });
    // It is the owner's memory: what changes there changes here.
    p.net.ends[0].fill(4096, &[7; 100_000]);
    let from = loan.arena.at(loan.offset, loan.length);
    // SAFETY: `at` proved the range, and nobody writes it now.
    assert!(unsafe { std::slice::from_raw_parts(from, loan.length) }.iter().all(|b| *b == 7));
    assert_eq!(p.net.ends[1].bytes(64, 100_000), vec![0; 100_000], "the slot was not touched");
}

#[test]
fn another_host_and_another_namespace_are_told_apart_from_this_one() {
    let fabric = Loopback { shown: true };
    let (mut one, mut other) = (fabric.transport(), fabric.transport());
    let (_, address) = one.open(Side::Passive, "worker 0").unwrap();
    let refused = |other: &mut dyn Transport, at: usize| {
        let mut address = address.clone();
        address[at] ^= 1;
        let (id, _) = other.open(Side::Active, "server 0").unwrap();
        other.connect(id, &address, &[1; 32]).unwrap_err().to_string()
    };
    assert!(refused(other.as_mut(), 1).contains("another host"), "the boot id");
    assert!(refused(other.as_mut(), 17).contains("namespace"), "the socket's name");
}
