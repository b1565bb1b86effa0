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

/// Has one of the others dial the first; gives the endpoint there and at home.
fn join(ends: &mut [Shm; 3], other: usize) -> (EndpointId, EndpointId) {
    let (active, to_active) = ends[other].open(Side::Active, "the victim").unwrap();
    let (passive, to_passive) = ends[0].open(Side::Passive, &format!("end {other}")).unwrap();
    ends[0].connect(passive, &to_active, &[other as u8; 32]).unwrap();
    ends[other].connect(active, &to_passive, &[other as u8; 32]).unwrap();
    (passive, active)
}

impl Scene {
    fn new() -> Scene {
        Scene::of(ShmConfig::default)
    }

    fn of(config: impl Fn() -> ShmConfig) -> Scene {
        let mut ends = [(); 3].map(|()| Shm::new(config(), true).unwrap());
        let pairs = [join(&mut ends, 1), join(&mut ends, 2)];
        let memory = Arena::new(8192).unwrap();
        let region = ends[0].register(memory.clone()).unwrap();
        let granted = ends[0].authorise(pairs[0].0, region, 0, 4096, Rights::ReadWrite).unwrap();
        let (victim, home) = (pairs.map(|p| p.0), pairs.map(|p| p.1));
        let mut scene = Scene { ends, victim, home, seen: Default::default(), memory, granted };
        scene.until(|s| s.seen.iter().map(Vec::len).sum::<usize>() == 4);
        scene.seen.iter_mut().for_each(Vec::clear);
        scene
    }

    /// Connects the attacker once more, with the same grant.
    fn join_anew(&mut self) {
        (self.victim[0], self.home[0]) = join(&mut self.ends, 1);
        let region = self.ends[0].register(self.memory.clone()).unwrap();
        self.granted = self.ends[0].authorise(self.victim[0], region, 0, 4096, Rights::ReadWrite).unwrap();
        self.until(|s| s.seen.iter().map(Vec::len).sum::<usize>() == 2);
    }

    /// The attacker writes, honestly, from an arena of so many bytes of its own.
    fn writes(&mut self, number: u8, bytes: usize) {
        let arena = Arena::shared(bytes).unwrap();
        arena.copy_in(0, &[number + 1; 4096]);
        let region = self.ends[1].register(arena.clone()).unwrap();
        let slice = crate::mem::RegionSlice { arena, region, offset: 0, length: 4000 };
        let (remote, body) = (self.granted, Some(Payload::Pinned(slice)));
        let write = Write { header: None, body, remote, offset: 0, imm: Some(number.into()), context: None };
        self.ends[1].write(self.home[0], write).unwrap();
        self.until(|s| matches!(s.seen[0].last(), Some(Completion::Written { imm, .. }) if *imm == u32::from(number)));
        let mut bytes = [0; 4000];
        self.memory.copy_out(0, &mut bytes);
        assert_eq!(bytes, [number + 1; 4000]);
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
        producer.advance(1);
        producer.publish();
    }

    /// The victim closes the attacker's endpoint, with a reason that names this field; nothing was written, and the bystander's
    /// endpoint works.
    fn fell(mut self, field: &str) {
        self.fell_by(
            |error| matches!(error, Error::Protocol { peer, field: f, .. } if peer == "end 1" && *f == field),
        );
    }

    /// The same with a reason that is one of these.
    fn fell_by(&mut self, expected: impl Fn(&Error) -> bool) {
        let id = self.victim[0];
        let closed = |c: &Completion| matches!(c, Completion::Closed { endpoint, .. } if *endpoint == id);
        self.until(|s| s.seen[0].iter().any(closed));
        let Some(Completion::Closed { reason: Some(error), .. }) = self.seen[0].pop() else { panic!() };
        assert!(expected(&error), "{error}");
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
        (showing(0, 4096), Some(open), "descriptor"),
    ];
    for (packet, file, field) in cases {
        let mut scene = Scene::new();
        socket::send(&scene.attack().socket, &packet, file).unwrap();
        scene.fell(field);
    }
}

/// What was refused for want of room may go as soon as the peer has taken something: who finds that only on its way to sleep looks again,
/// since nobody rings for it.
#[test]
fn who_finds_room_on_the_way_to_sleep_does_not_sleep() {
    let mut scene = Scene::new();
    let (remote, home) = (scene.granted, scene.home[0]);
    let write = |end: &mut Shm| {
        let write = Write { header: None, body: None, remote, offset: 0, imm: None, context: None };
        end.write(home, write).is_ok()
    };
    while write(&mut scene.ends[1]) {}
    scene.ends[1].flush();
    (0..16).for_each(|_| scene.ends[0].poll(&mut scene.seen[0], 64));
    assert!(!scene.ends[1].arm(), "there is room");
    assert!(write(&mut scene.ends[1]));
    scene.ends[1].flush();
    assert!(scene.ends[1].arm());
}

/// Whether a transport's descriptor would wake its owner now.
fn is_called(end: &Shm) -> bool {
    // SAFETY: it is the transport's for as long as that lives, which is longer than this call.
    let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(end.waitable()) };
    let mut polled = [rustix::event::PollFd::from_borrowed_fd(fd, rustix::event::PollFlags::IN)];
    rustix::event::poll(&mut polled, Some(&rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap() > 0
}

/// A peer of ours, dialled by hand, that has given its proof for an endpoint of which the key is not known yet.
fn proved(victim: &mut Shm) -> (EndpointId, OwnedFd) {
    let (id, address) = victim.open(Side::Passive, "early").unwrap();
    let address = Address::decode(&address).unwrap();
    let socket = socket::dial(&address.name).unwrap();
    let dial = crate::transport::preamble::dial(crate::transport::preamble::SHM, id, &[1; 32]);
    socket::send(&socket, &dial, None).unwrap();
    let limit = Instant::now() + LIMIT;
    let nonce = loop {
        victim.poll(&mut Vec::new(), 64);
        match socket::receive(&socket) {
            Ok(Some(packet)) => break packet.bytes().try_into().unwrap(),
            _ => assert!(Instant::now() < limit),
        }
    };
    let proof = crate::transport::preamble::proof(&Secret([9; 32]), Side::Active, &dial, &nonce);
    socket::send(&socket, proof.as_bytes(), None).unwrap();
    while victim.lobby.proofs_for(id).is_empty() {
        assert!(Instant::now() < limit);
        victim.poll(&mut Vec::new(), 64);
    }
    (id, socket)
}

/// The timer runs, but what was left unread would wake the victim all the time.
#[test]
fn whoever_says_more_than_its_proof_or_leaves_is_gone() {
    for says_more in [true, false] {
        let mut victim = Shm::new(ShmConfig::default(), true).unwrap();
        let (id, socket) = proved(&mut victim);
        match says_more {
            true => socket::send(&socket, &[0], None).unwrap(),
            false => socket::shut(&socket),
        }
        let limit = Instant::now() + LIMIT;
        while !victim.lobby.is_empty() {
            assert!(Instant::now() < limit, "it keeps its place");
            victim.poll(&mut Vec::new(), 64);
        }
        victim.arm();
        victim.timer.set(Duration::ZERO);
        assert!(!is_called(&victim), "nothing is left that could wake it");
        assert!(victim.endpoints.get(id).is_some(), "the endpoint waits on");
    }
}

#[test]
fn a_proof_waits_for_the_key_of_its_endpoint() {
    let mut victim = Shm::new(ShmConfig::default(), true).unwrap();
    let (id, _socket) = proved(&mut victim);
    victim.connect(id, address::ACTIVE, &[9; 32]).unwrap();
    assert!(victim.lobby.is_empty());
    assert!(victim.endpoints.connection(id).is_some());
}

/// Nobody waits for a completion or a body, so that only the full queue is a reason to be woken.
#[test]
fn whoever_was_refused_for_a_full_queue_is_woken_when_there_is_room() {
    for queue_depth in [1, 8, 253] {
        let mut scene = Scene::of(|| ShmConfig { queue_depth, ..ShmConfig::default() });
        let (home, remote) = (scene.home[0], scene.granted);
        let write =
            || Write { header: Some([7; HEADER]), body: None, remote, offset: 0, imm: None, context: None };
        for _ in 0..queue_depth {
            scene.ends[1].write(home, write()).unwrap();
        }
        let refused = scene.ends[1].write(home, write()).unwrap_err();
        assert_eq!(refused.refusal, crate::transport::Refusal::Full);
        assert!(scene.ends[1].arm(), "it may sleep");
        assert!(!is_called(&scene.ends[1]));
        scene.ends[0].poll(&mut scene.seen[0], 64);
        assert!(is_called(&scene.ends[1]), "depth {queue_depth}: it sleeps on");
        while scene.ends[1].write(home, write()).is_err() {
            let limit = Instant::now() + LIMIT;
            assert!(Instant::now() < limit);
            scene.step();
        }
    }
}

/// Bytes that lie in memory which was forgotten, but is lent, count as shown.
#[test]
fn nobody_shows_more_than_it_may() {
    let shown = |scene: &mut Scene, place: u32| {
        let arena = Arena::shared(4096).unwrap();
        let packet = [&[1][..], &place.to_le_bytes(), &4096u64.to_le_bytes()].concat();
        socket::send(&scene.attack().socket, &packet, arena.file()).unwrap();
    };
    let two = || Scene::of(|| ShmConfig { max_shown: 8192, ..ShmConfig::default() });
    let is_beyond = |error: &Error| matches!(error, Error::Limit { resource, limit: 8192, asked: 12_288 } if resource.contains("end 1"));
    let mut scene = two();
    (0..3).for_each(|place| shown(&mut scene, place));
    scene.fell_by(is_beyond);
    assert!(scene.ends[0].open(Side::Passive, "end 1").is_err_and(|e| is_beyond(&e)), "it would do so again");
    assert!(scene.ends[0].open(Side::Passive, "end 2").is_ok());
    let mut scene = two();
    let packet = [&[1][..], &[0; 4], &u64::MAX.to_le_bytes()].concat();
    socket::send(&scene.attack().socket, &packet, Arena::shared(4096).unwrap().file()).unwrap();
    scene.fell_by(|error| matches!(error, Error::Limit { asked: u64::MAX, .. }));
    let mut scene = two();
    let forget = |scene: &mut Scene, region| {
        scene.entry(&Frame { kind: What::Forget { region }, inline: 0, source: None }.encode());
    };
    let hears = |scene: &mut Scene| (0..100).for_each(|_| scene.ends[0].poll(&mut scene.seen[0], 64));
    shown(&mut scene, 0);
    shown(&mut scene, 1);
    let kind = What::Write { key: scene.granted.key, offset: 0, length: 64 + 4, imm: Some(1) };
    let lent = Frame { kind, inline: 64, source: Some(Source { region: 1, offset: 0, lent: true }) };
    let producer = &mut scene.attack().tx.producer;
    producer.put(0, &lent.encode());
    producer.put(1, &[0; 64]);
    producer.advance(2);
    producer.publish();
    scene.until(|s| matches!(&s.seen[0][..], [Completion::Lent { .. }]));
    // What is forgotten and lent to nobody makes room; what is lent does not, until it is given back.
    forget(&mut scene, 0);
    hears(&mut scene);
    shown(&mut scene, 2);
    forget(&mut scene, 1);
    hears(&mut scene);
    assert!(scene.ends[0].endpoints.connection(scene.victim[0]).is_some());
    scene.seen[0].clear();
    shown(&mut scene, 3);
    hears(&mut scene);
    assert!(scene.ends[0].endpoints.connection(scene.victim[0]).is_some(), "it was given back");
    shown(&mut scene, 4);
    scene.fell_by(is_beyond);
}

/// An honest sender keeps to its own limit: what it may not show goes through the ring.
#[test]
fn what_may_not_be_shown_is_copied() {
    let mut scene = Scene::of(|| ShmConfig { max_shown: 8192, ..ShmConfig::default() });
    scene.writes(0, 8192);
    scene.writes(1, 4096);
}

/// Only the descriptors that this process has may be open: the want of a place for another is what a peer that shows memory meets.
#[test]
#[ignore = "run by a_want_of_descriptors_bars_a_peer_for_a_minute"]
fn without_a_place_for_a_descriptor() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let is_open = |end: &mut Shm| end.open(Side::Passive, "end 1");
    let wants_a_place = |error: &Error| matches!(error, Error::Limit { resource, .. } if resource.contains("RLIMIT_NOFILE") && resource.contains("end 1"));
    let mut scene = Scene::new();
    let shown = Arena::shared(4096).unwrap();
    let packet = [&[1][..], &[0; 4], &4096u64.to_le_bytes()].concat();
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(0), ..limit }).unwrap();
    socket::send(&scene.attack().socket, &packet, shown.file()).unwrap();
    scene.fell_by(wants_a_place);
    setrlimit(Resource::Nofile, limit).unwrap();
    // It would soon happen again; but not for ever.
    assert!(is_open(&mut scene.ends[0]).is_err_and(|e| wants_a_place(&e)));
    let [unfit] = &mut scene.ends[0].unfit[..] else { panic!() };
    assert!(unfit.until > Instant::now() + BARRED / 2);
    unfit.until = Instant::now();
    scene.seen.iter_mut().for_each(Vec::clear);
    scene.join_anew();
    assert!(scene.ends[0].unfit.is_empty());
    scene.writes(7, 4096);
}

#[test]
fn a_want_of_descriptors_bars_a_peer_for_a_minute() {
    let mut alone = std::process::Command::new(std::env::current_exe().unwrap());
    let name = "transport::shm::tests::without_a_place_for_a_descriptor";
    let ended = alone.args(["--ignored", "--exact", "--nocapture", name]).output().unwrap();
    let said = String::from_utf8_lossy(&ended.stdout);
    assert!(
        ended.status.success() && said.contains("1 passed"),
        "{said}{}",
        String::from_utf8_lossy(&ended.stderr)
    );
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
