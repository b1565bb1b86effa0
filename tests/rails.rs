//! Several ports: who goes over which of them. What needs two devices runs in `scripts/rdma-vm.sh --rails 2`.

#![allow(clippy::unwrap_used)] // in a test a failure is a panic

use std::collections::BTreeMap;

use windlass::TableSpec;
use windlass::transport::choice;
use windlass::types::{PartitionMap, ServerInfo, View};

/// Two hosts with two servers of two threads each: every rail of a host leads to an equal part of the host's buckets, and no bucket to
/// two rails.
#[test]
fn whole_buckets_are_spread_over_rails() {
    let server = |rank| ServerInfo { rank, address: String::new(), threads: 2, first: rank % 2 * 2 };
    let view = View { epoch: 1, servers: (0..4).map(server).collect(), workers: 1 };
    let spec = TableSpec::dense("w", &[64 << 20]);
    let map = PartitionMap::new(&view, &spec);
    for rails in 1..=4 {
        let mut buckets: BTreeMap<(u32, usize), Vec<u32>> = BTreeMap::new();
        for shard in 0..8 {
            let (server, thread) = (&view.servers[shard / 2], shard as u32 % 2);
            let id = windlass::types::ShardId { server: server.rank, thread };
            let (rail, _) = choice::place(server.first + thread, rails);
            buckets.entry((server.rank / 2, rail)).or_default().extend(map.buckets_of(id));
        }
        let mut all: Vec<u32> = buckets.values().flatten().copied().collect();
        all.sort_unstable();
        assert_eq!(all, (0..spec.buckets()).collect::<Vec<_>>());
        assert_eq!(buckets.len(), 2 * rails, "a rail of a host has nothing");
        let threads_on = |rail: usize| (0..4).filter(|&k| choice::place(k, rails).0 == rail).count();
        for (&(_, rail), buckets) in &buckets {
            assert_eq!(buckets.len(), threads_on(rail) * all.len() / 8, "rail {rail} of {rails}");
        }
    }
}

#[cfg(feature = "verbs")]
mod on_two_devices {
    use std::time::{Duration, Instant};

    use windlass::config::{Network, Rdma, TransportKind};
    use windlass::mem::{Arena, RegionSlice, Rights};
    use windlass::transport::choice::{self, Seat};
    use windlass::transport::verbs::{Verbs, VerbsConfig, available};
    use windlass::transport::{Completion, EndpointId, Payload, Side, Transport, Write};

    const PATIENCE: Duration = Duration::from_secs(60);

    /// The names of two devices; `None`, with a line on standard output, where there are fewer.
    fn two() -> Option<[String; 2]> {
        let names = available().unwrap().into_iter().filter(|d| d.active).map(|d| d.name);
        let mut names: Vec<String> = names.collect();
        names.dedup();
        names.truncate(2);
        let two = names.try_into().ok();
        if two.is_none() {
            println!("skipped: fewer than two RDMA devices");
        }
        two
    }

    fn network(devices: &str) -> Network {
        let rdma = Rdma { device: devices.parse().unwrap(), ..Rdma::default() };
        Network { rdma, ..Network::default() }
    }

    /// Packets that a soft-RoCE device has sent.
    fn sent(device: &str) -> u64 {
        let path = format!("/sys/class/infiniband/{device}/ports/1/hw_counters/sent_pkts");
        std::fs::read_to_string(path).unwrap().trim().parse().unwrap()
    }

    /// One that dials, server threads that it is connected to, and its endpoints to them.
    type Fabric = (Box<dyn Transport>, Vec<Box<dyn Transport>>, Vec<EndpointId>);

    fn until(
        (near, far, _): &mut Fabric,
        seen: &mut Vec<Completion>,
        what: &str,
        done: impl Fn(&[Completion]) -> bool,
    ) {
        let start = Instant::now();
        while !done(seen) {
            near.flush();
            near.poll(seen, 64);
            for far in far.iter_mut() {
                far.flush();
                far.poll(&mut Vec::new(), 64);
            }
            assert!(start.elapsed() < PATIENCE, "{what}: {seen:?}");
        }
    }

    /// Server threads 0, 1, … of one host, a grant of `bytes` from each, and what dials them over all rails.
    #[test]
    fn one_worker_writes_over_both_rails_and_each_device_carries_its_part() {
        const BYTES: usize = 1 << 20;
        let Some([a, b]) = two() else { return };
        let network = network(&format!("={b},{a}"));
        let build = |seat| choice::build(&network, TransportKind::Verbs, seat).unwrap();
        let far: Vec<_> = (0..4).map(|number| build(Seat::Listens(number))).collect();
        for (number, far) in far.iter().enumerate() {
            // In the order of the list; the third is the second one on the first rail.
            let device = if number % 2 == 0 { &b } else { &a };
            let (device, vector) =
                (format!("{device} port 1, "), format!("completion vector {}, ", number / 2));
            let detail = &far.caps().detail;
            assert!(detail.starts_with(&device) && detail.contains(&vector), "{number}: {detail}");
        }
        let near = build(Seat::Dials);
        assert!(near.caps().detail.starts_with(&format!("rail 0: {b} port 1")), "{}", near.caps().detail);
        let mut fabric: Fabric = (near, far, Vec::new());
        let arena = Arena::new(BYTES).unwrap();
        let region = fabric.0.register(arena.clone()).unwrap();
        let mut grants = Vec::new();
        for number in 0..4 {
            let (near, far, ids) = &mut fabric;
            let far = &mut far[number];
            let theirs = far.register(Arena::new(BYTES).unwrap()).unwrap();
            let (x, to_x) = near.open_on(number as u32, Side::Active, "far").unwrap();
            let (y, to_y) = far.open(Side::Passive, "near").unwrap();
            grants.push(far.authorise(y, theirs, 0, BYTES, Rights::Write).unwrap());
            far.connect(y, &to_x, &[1; 32]).unwrap();
            near.connect(x, &to_y, &[1; 32]).unwrap();
            ids.push(x);
        }
        let mut seen = Vec::new();
        let is_up = |c: &&Completion| matches!(c, Completion::Connected { .. });
        until(&mut fabric, &mut seen, "connections", |seen| seen.iter().filter(is_up).count() == 4);

        let write = |fabric: &mut Fabric, seen: &mut Vec<Completion>, numbers: &[usize]| {
            seen.clear();
            let before = [sent(&a), sent(&b)];
            for &number in numbers {
                let slice = RegionSlice { arena: arena.clone(), region, offset: 0, length: BYTES };
                let write = Write {
                    header: None,
                    body: Some(Payload::Pinned(slice)),
                    remote: grants[number],
                    offset: 0,
                    imm: None,
                    context: Some(number as u64),
                };
                let endpoint = fabric.2[number];
                fabric.0.write(endpoint, write).map_err(|r| r.refusal).unwrap();
            }
            let is_done = |c: &&Completion| matches!(c, Completion::Done { .. });
            until(fabric, seen, "writes", |seen| seen.iter().filter(is_done).count() == numbers.len());
            [sent(&a) - before[0], sent(&b) - before[1]]
        };
        // A packet has at most 4096 bytes.
        let least = (BYTES / 4096) as u64;
        let [over_a, over_b] = write(&mut fabric, &mut seen, &[0, 1, 2, 3]);
        assert!(over_a >= 2 * least && over_b >= 2 * least, "{over_a} and {over_b} packets");
        // What belongs to one rail does not go over the other.
        let [over_a, over_b] = write(&mut fabric, &mut seen, &[0, 2]);
        assert!(over_a < least / 2 && over_b >= 2 * least, "{over_a} and {over_b} packets");
    }

    #[test]
    fn a_completion_vector_is_one_that_the_device_has() {
        let Some([device, _]) = two() else { return };
        let possible = std::fs::read_to_string("/sys/devices/system/cpu/possible").unwrap();
        // soft-RoCE has one for each CPU.
        let has: u32 = possible.trim().rsplit('-').next().unwrap().parse::<u32>().unwrap() + 1;
        for vector in [0, 1, has, has + 1, u32::MAX] {
            let rdma = network(&format!("={device}")).rdma;
            let verbs = Verbs::new(&VerbsConfig { rdma, vector, endpoints: 2, ..VerbsConfig::default() });
            let detail = verbs.unwrap().caps().detail.clone();
            assert!(detail.contains(&format!("completion vector {}, ", vector % has)), "{vector}: {detail}");
        }
    }

    #[test]
    fn a_listed_port_that_can_not_be_used_is_no_rail() {
        let Some([a, b]) = two() else { return };
        let rails = |devices: &str| {
            let rails = windlass::transport::verbs::rails(&network(devices).rdma).unwrap();
            (rails.0.iter().map(|rail| rail.to_string()).collect::<Vec<_>>(), rails.1.len())
        };
        assert_eq!(rails(&format!("={b},{a}")), (vec![format!("{b}:1"), format!("{a}:1")], 0));
        assert_eq!(rails("any"), (vec![format!("{a}:1")], 0));
        assert_eq!(rails(&format!("^={a}")).0, [format!("{b}:1")]);
        assert!(windlass::transport::verbs::rails(&network("none0").rdma).is_err());
        if std::env::var_os("WINDLASS_VM").is_none() {
            return;
        }
        let link = |state: &str| {
            let set = std::process::Command::new("/bin/ip").args(["link", "set", "veth2", state]).status();
            assert!(set.unwrap().success());
        };
        link("down");
        assert_eq!(rails("=rxe0,rxe1"), (vec!["rxe0:1".to_owned()], 1));
        link("up");
        let start = Instant::now();
        while rails("=rxe0,rxe1").0.len() < 2 {
            assert!(start.elapsed() < PATIENCE, "it does not come up again");
        }
    }
}
