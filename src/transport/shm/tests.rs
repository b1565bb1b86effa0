//! A peer that holds the key and writes what it likes into what both write.

use std::time::{Duration, Instant};

use super::endpoint::RINGS;
use super::frame::{FRAME, Frame, Kind as What, Source};
use super::*;
use crate::transport::{HEADER, Payload};

const LIMIT: Duration = Duration::from_secs(30);

/// A victim, an attacker and a bystander, each connected to the victim.
struct Scene {
    ends: [Shm; 3],
    /// Of the attacker and of the bystander, at the victim and at home.
    victim: [EndpointId; 2],
    home: [EndpointId; 2],
    seen: [Vec<Completion>; 3],
    memory: Arc<Arena>,
    granted: RemoteRegion,
}

impl Scene {
    fn new() -> Scene {
        let mut ends = [(); 3].map(|()| Shm::new(ShmConfig::default(), true).unwrap());
        let mut join = |other: usize| {
            let (active, to_active) = ends[other].open(Side::Active, "the victim").unwrap();
            let (passive, to_passive) = ends[0].open(Side::Passive, &format!("end {other}")).unwrap();
            ends[0].connect(passive, &to_active, &[other as u8; 32]).unwrap();
            ends[other].connect(active, &to_passive, &[other as u8; 32]).unwrap();
            (passive, active)
        };
        let pairs = [join(1), join(2)];
        let memory = Arena::new(8192).unwrap();
        let region = ends[0].register(memory.clone()).unwrap();
        let granted = ends[0].authorise(pairs[0].0, region, 0, 4096, Rights::ReadWrite).unwrap();
        let (victim, home) = (pairs.map(|p| p.0), pairs.map(|p| p.1));
        let mut scene = Scene { ends, victim, home, seen: Default::default(), memory, granted };
        scene.until(|s| s.seen.iter().map(Vec::len).sum::<usize>() == 4);
        scene.seen.iter_mut().for_each(Vec::clear);
        scene
    }

    fn step(&mut self) {
        for (end, seen) in self.ends.iter_mut().zip(&mut self.seen) {
            end.poll(seen, 64);
        }
    }

    fn until(&mut self, done: impl Fn(&Scene) -> bool) {
        let limit = Instant::now() + LIMIT;
        while !done(self) {
            assert!(Instant::now() < limit, "in vain: {:?}", self.seen);
            self.step();
        }
    }

    /// What both write, and the attacker's connection.
    fn attack(&mut self) -> &mut endpoint::Connection {
        self.ends[1].endpoints.connection(self.home[0]).unwrap()
    }

    /// Puts an entry into the ring to the victim, as it is.
    fn entry(&mut self, entry: &[u8; FRAME]) {
        let producer = &mut self.attack().tx.producer;
        producer.put(0, entry);
        producer.publish(1);
    }

    /// The victim closes the attacker's endpoint, with a reason that names this field; nothing was written, and the bystander's
    /// endpoint works.
    fn fell(mut self, field: &str) {
        let id = self.victim[0];
        let closed = |c: &Completion| matches!(c, Completion::Closed { endpoint, .. } if *endpoint == id);
        self.until(|s| s.seen[0].iter().any(closed));
        let Some(Completion::Closed { reason: Some(error), .. }) = self.seen[0].pop() else { panic!() };
        assert!(
            matches!(&error, Error::Protocol { peer, field: f, .. } if peer == "end 1" && *f == field),
            "{error}"
        );
        assert!(self.seen[0].is_empty(), "{:?}", self.seen[0]);
        let mut bytes = [1; 8192];
        self.memory.copy_out(0, &mut bytes);
        assert_eq!(bytes, [0; 8192]);
        self.ends[2].send(self.home[1], Message::new(b"here").unwrap()).unwrap();
        self.until(|s| matches!(&s.seen[0][..], [Completion::Received { .. }]));
    }
}

#[test]
fn an_entry_that_says_what_was_not_granted_ends_its_connection_alone() {
    let write = |key, offset, length| What::Write { key, offset, length, imm: Some(1) };
    let plain = |kind| Frame { kind, inline: 0, source: None };
    let key = Scene::new().granted.key;
    let from = |region, offset| Some(Source { region, offset, lent: false });
    let cases = [
        (plain(write(key + 9, 0, 64)), "key"),
        (plain(write(key, 4097, 0)), "offset"),
        (plain(write(key, 4000, 97)), "length"),
        (Frame { inline: 65, ..plain(write(key, 0, 64)) }, "inline"),
        (Frame { source: from(0, 0), ..plain(write(key, 0, 64)) }, "region"),
        (Frame { source: from(u32::MAX, u64::MAX), ..plain(write(key, 0, 64)) }, "region"),
        (plain(What::Send { length: 257 }), "length"),
        (plain(What::Send { length: 10 }), "length"),
        (plain(What::ReadAnswer { length: 64, read: 0 }), "read"),
        (plain(What::ReadRequest { key, offset: u64::MAX, length: 1, read: 0 }), "offset"),
        (plain(What::Part), "kind"),
        (plain(What::Forget { region: 0 }), "region"),
    ];
    for (frame, field) in cases {
        let mut scene = Scene::new();
        // Keys are counted by each transport: the first of this one is the same.
        assert_eq!(scene.granted.key, key);
        scene.entry(&frame.encode());
        scene.fell(field);
    }
    let mut scene = Scene::new();
    scene.entry(&[255; FRAME]);
    scene.fell("kind");
}

#[test]
fn bytes_beyond_a_region_are_not_read() {
    for (offset, field) in [(8192 - 63, "source"), (8193, "source"), (u64::MAX, "source")] {
        let mut scene = Scene::new();
        let shown = Arena::shared(8192).unwrap();
        let region = scene.ends[1].register(shown.clone()).unwrap();
        // An honest write shows the region by the number 0.
        let slice = crate::mem::RegionSlice { arena: shown, region, offset: 0, length: 4000 };
        let (remote, body) = (scene.granted, Some(Payload::Pinned(slice)));
        let write = Write { header: None, body, remote, offset: 0, imm: None, context: Some(1) };
        let home = scene.home[0];
        scene.ends[1].write(home, write).unwrap();
        scene.until(|s| matches!(&s.seen[1][..], [Completion::Done { .. }]));
        let kind = What::Write { key: remote.key, offset: 0, length: 64, imm: Some(1) };
        let source = Some(Source { region: 0, offset, lent: offset % 2 == 1 });
        scene.entry(&Frame { kind, inline: 0, source }.encode());
        scene.fell(field);
    }
}

#[test]
fn packets_that_show_nothing_that_can_be_mapped_are_refused() {
    let file = Arena::shared(4096).unwrap();
    let open = rustix::fs::memfd_create("open", rustix::fs::MemfdFlags::ALLOW_SEALING).unwrap();
    rustix::fs::ftruncate(&open, 4096).unwrap();
    let showing = |place: u32, bytes: u64| [&[1][..], &place.to_le_bytes(), &bytes.to_le_bytes()].concat();
    let (sealed, open) = (file.file().unwrap(), std::os::fd::AsFd::as_fd(&open));
    let cases = [
        (vec![7], None, "packet"),
        (showing(0, 4096), None, "packet"),
        (showing(128, 4096), Some(sealed), "region"),
        (showing(u32::MAX, 4096), Some(sealed), "region"),
        (showing(0, 8192), Some(sealed), "descriptor"),
        (showing(0, 0), Some(sealed), "descriptor"),
        (showing(0, u64::MAX), Some(sealed), "descriptor"),
        (showing(0, 4096), Some(open), "descriptor"),
    ];
    for (packet, file, field) in cases {
        let mut scene = Scene::new();
        socket::send(&scene.attack().socket, &packet, file).unwrap();
        scene.fell(field);
    }
}

/// splitmix64 (Steele, Lea, Flood 2014).
fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Anything anywhere in both rings, between any two polls: nobody is harmed but the two ends of that connection.
#[test]
fn scribbling_over_the_rings_harms_nobody_else() {
    let mut fell = 0;
    for seed in 0..200u64 {
        println!("seed {seed}");
        let mut state = seed;
        let mut scene = Scene::new();
        let shared = scene.attack().tx.producer.arena().clone();
        let remote = scene.granted;
        for _ in 0..20 {
            let header = Some([0; HEADER]);
            let write = Write { header, body: None, remote, offset: 0, imm: Some(1), context: None };
            let home = scene.home[0];
            let _ = scene.ends[1].write(home, write);
            let at = match random(&mut state) % 3 {
                0 => random(&mut state) as usize % 128,
                1 => 128 + random(&mut state) as usize % 4096,
                _ => random(&mut state) as usize % (RINGS - 8),
            };
            shared.copy_in(at, &random(&mut state).to_le_bytes()[..1 + random(&mut state) as usize % 8]);
            // Only the victim goes on: the attacker's own transport may break as it likes.
            scene.ends[0].poll(&mut scene.seen[0], 64);
        }
        let mut bytes = [1; 4096];
        scene.memory.copy_out(4096, &mut bytes);
        assert_eq!(bytes, [0; 4096], "what was not granted");
        scene.seen[0].clear();
        scene.ends[2].send(scene.home[1], Message::new(b"here").unwrap()).unwrap();
        scene.ends[2].flush();
        let limit = Instant::now() + LIMIT;
        while !scene.seen[0]
            .iter()
            .any(|c| matches!(c, Completion::Received { endpoint, .. } if *endpoint == scene.victim[1]))
        {
            assert!(Instant::now() < limit);
            scene.ends[0].poll(&mut scene.seen[0], 64);
        }
        fell += usize::from(scene.ends[0].endpoints.connection(scene.victim[0]).is_none());
    }
    assert!(fell > 50, "{fell} of 200 attackers were noticed");
}
