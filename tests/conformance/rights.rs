//! Grants hold against a peer that lies. The victim is end 0; end 1 attacks; end 2 is a bystander whose endpoint lives on.

use std::sync::Arc;

use windlass::error::Error;
use windlass::mem::{Arena, RegionSlice, RemoteRegion, Rights};
use windlass::transport::{EndpointId, Payload, Read, Refusal, Write};

use crate::rig::{Fabric, Net, header, write_to};

/// Memory is let go of when nobody can reach it any more, and its number is another's then.
pub fn unregistered(fabric: &dyn Fabric) {
    let mut net = Net::new(fabric, 2);
    let (a, b) = net.join(0, 1);
    let memory = Arena::new(8192).unwrap();
    let end = &mut net.ends[1];
    let region = end.transport.register(memory.clone()).unwrap();
    let remote = end.transport.authorise(b, region, 0, 8192, Rights::Write).unwrap();
    assert!(!end.transport.unregister(region), "a peer may write to it");
    net.write(0, a, Write { header: Some(header(3)), imm: Some(1), ..write_to(remote, 64) });
    net.written(1, b);
    let end = &mut net.ends[1];
    end.transport.withdraw(b, &remote).unwrap();
    assert!(end.transport.unregister(region) && end.transport.unregister(region));
    assert!(end.transport.authorise(b, region, 0, 64, Rights::Write).is_err());
    let slice = RegionSlice { arena: memory.clone(), region, offset: 0, length: 64 };
    let body = Some(Payload::Pinned(slice));
    let theirs = net.ends[0].grant(a, 0, 4096, Rights::Write);
    let write = |body| Write { body, context: Some(9), ..write_to(theirs, 0) };
    let refused = net.ends[1].transport.write(b, write(body)).unwrap_err();
    assert!(matches!(refused.refusal, Refusal::OutOfBounds(_)), "{:?}", refused.refusal);
    drop(refused);
    assert_eq!(Arc::strong_count(&memory), 1, "the transport still holds it");
    // Registered anew, a write from it keeps it until the write is done.
    let region = net.ends[1].transport.register(memory.clone()).unwrap();
    let slice = RegionSlice { arena: memory.clone(), region, offset: 0, length: 4096 };
    net.ends[1].transport.write(b, write(Some(Payload::Pinned(slice)))).unwrap();
    assert!(!net.ends[1].transport.unregister(region), "a write is under way");
    assert_eq!(net.done(1, b), 9);
    net.until("the end of the write", |net| net.ends[1].transport.unregister(region));
    net.until("the memory", |_| Arc::strong_count(&memory) == 1);
}

struct Scene {
    net: Net,
    /// The attacker's endpoint on the victim, and on itself.
    victim: EndpointId,
    attacker: EndpointId,
    /// The bystander's.
    other: EndpointId,
    bystander: EndpointId,
}

impl Scene {
    fn new(fabric: &dyn Fabric) -> Scene {
        let mut net = Net::new(fabric, 3);
        let (attacker, victim) = net.join(1, 0);
        let (bystander, other) = net.join(2, 0);
        net.ends[0].fill(0, &[0x55; 8192]);
        Scene { net, victim, attacker, other, bystander }
    }

    fn write(&mut self, remote: RemoteRegion, offset: u64) {
        let write = Write { header: Some(header(1)), imm: Some(1), ..write_to(remote, offset) };
        self.net.write(1, self.attacker, write);
    }

    fn read(&mut self, remote: RemoteRegion, offset: u64) {
        let local = self.net.ends[1].slice(0, 64);
        self.net.read(1, self.attacker, Read { remote, offset, local, context: 1 });
    }

    /// Both ends of the attacker's connection close with a typed reason; nothing was reached; the bystander goes on.
    fn only_the_attacker_fell(mut self) {
        for (end, id) in [(0, self.victim), (1, self.attacker)] {
            let reason = self.net.closed(end, id).expect("a reason");
            let typed = matches!(
                reason,
                Error::Protocol { .. }
                    | Error::PeerLost { .. }
                    | Error::Device { .. }
                    | Error::Refused { .. }
            );
            assert!(typed, "{reason:?}");
        }
        self.net.settle(20);
        for end in &self.net.ends {
            assert!(end.seen.is_empty(), "{:?}", end.seen);
        }
        assert_eq!(self.net.ends[0].bytes(0, 8192), [0x55; 8192], "memory was reached");
        assert_eq!(self.net.ends[1].bytes(0, 64), [0; 64], "memory was read");
        self.net.ping((0, self.other), (2, self.bystander));
    }
}

pub fn no_write_with_read_right(fabric: &dyn Fabric) {
    let mut scene = Scene::new(fabric);
    let mut remote = scene.net.ends[0].grant(scene.victim, 0, 4096, Rights::Read);
    remote.rights = Rights::ReadWrite;
    scene.write(remote, 0);
    scene.only_the_attacker_fell();
}

pub fn no_read_with_write_right(fabric: &dyn Fabric) {
    let mut scene = Scene::new(fabric);
    let mut remote = scene.net.ends[0].grant(scene.victim, 0, 4096, Rights::Write);
    remote.rights = Rights::Read;
    scene.read(remote, 0);
    scene.only_the_attacker_fell();
}

pub fn forged_rights_of_a_read(fabric: &dyn Fabric) {
    let mut scene = Scene::new(fabric);
    let remote = scene.net.ends[0].grant(scene.victim, 0, 4096, Rights::Read);
    scene.read(RemoteRegion { length: 8192, ..remote }, 4096 - 63);
    scene.only_the_attacker_fell();
}

pub fn forged_length(fabric: &dyn Fabric) {
    for offset in [4096 - 63, 4096, 5000] {
        let mut scene = Scene::new(fabric);
        let remote = scene.net.ends[0].grant(scene.victim, 0, 4096, Rights::Write);
        scene.write(RemoteRegion { length: 8192, ..remote }, offset);
        scene.only_the_attacker_fell();
    }
}

pub fn forged_key(fabric: &dyn Fabric) {
    let mut scene = Scene::new(fabric);
    let remote = scene.net.ends[0].grant(scene.victim, 0, 4096, Rights::ReadWrite);
    scene.write(RemoteRegion { key: remote.key ^ 0x0100_0000, ..remote }, 0);
    scene.only_the_attacker_fell();
}

pub fn another_peers_key(fabric: &dyn Fabric) {
    let mut scene = Scene::new(fabric);
    if !scene.net.ends[0].transport.caps().keys_per_peer {
        println!("skipped: this device's keys work from any endpoint, and its Caps say so");
        return;
    }
    let own = scene.net.ends[0].grant(scene.victim, 4096, 4096, Rights::ReadWrite);
    let others = scene.net.ends[0].grant(scene.other, 0, 4096, Rights::ReadWrite);
    assert_ne!(own.key, others.key);
    scene.write(others, 0);
    scene.only_the_attacker_fell();
}

pub fn withdrawn_key(fabric: &dyn Fabric) {
    let mut scene = Scene::new(fabric);
    let keep = scene.net.ends[0].grant(scene.victim, 0, 64, Rights::Write);
    let remote = scene.net.ends[0].grant(scene.victim, 4096, 4096, Rights::Write);
    scene.write(remote, 0);
    assert_eq!(scene.net.written(0, scene.victim), (1, 64));
    scene.net.ends[0].transport.withdraw(scene.victim, &remote).unwrap();
    scene.net.ends[0].fill(4096, &[0x55; 64]);
    // The others stand.
    scene.write(keep, 0);
    assert_eq!(scene.net.written(0, scene.victim), (1, 64));
    scene.net.ends[0].fill(0, &[0x55; 64]);
    scene.write(remote, 0);
    scene.only_the_attacker_fell();
}
