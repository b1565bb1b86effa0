//! Several ports: who goes over which of them. What needs two devices runs in `scripts/rdma-vm.sh --rails 2`.

#![allow(clippy::unwrap_used)] // in a test a failure is a panic

#[cfg(feature = "verbs")]
mod common;

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

    use windlass::config::{Network, Rdma, TransportChoice, TransportKind};
    use windlass::mem::{Arena, RegionSlice, Rights};
    use windlass::transport::choice::{self, Seat};
    use windlass::transport::verbs::{self, Verbs, VerbsConfig, available};
    use windlass::transport::{Completion, EndpointId, Payload, Side, Transport, Write};
    use windlass::types::OptimizerSpec;
    use windlass::{Client, ClientConfig, KeyRange, TableSpec};

    use crate::common::job::Job;
    use crate::common::windlass;

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
            let rails = verbs::rails(&network(devices).rdma).unwrap();
            (rails.0.iter().map(|rail| rail.to_string()).collect::<Vec<_>>(), rails.1.len())
        };
        assert_eq!(rails(&format!("={b},{a}")), (vec![format!("{b}:1"), format!("{a}:1")], 0));
        assert_eq!(rails("any"), (vec![format!("{a}:1")], 0));
        assert_eq!(rails(&format!("^={a}")).0, [format!("{b}:1")]);
        assert!(verbs::rails(&network("none0").rdma).is_err());
        if std::env::var_os("WINDLASS_VM").is_none() {
            return;
        }
        ip("link set veth2 down");
        let (usable, unusable) = verbs::rails(&network("=rxe0,rxe1").rdma).unwrap();
        assert_eq!(usable.len(), 1);
        let reason = "rxe1 port 1: the port is not active (state 1)";
        assert!(unusable[0].to_string().ends_with(reason), "{unusable:?}");
        // The program goes on without it, and says so; where it is the only one, it does not.
        let bench = |devices| {
            let short = ["bench", "write", "--transport", "verbs", "--bytes", "4K", "--table-bytes", "1M"];
            let ended =
                windlass(short).args(["--seconds", "0.1", "--rdma-device", devices]).output().unwrap();
            (ended.status.success(), String::from_utf8(ended.stderr).unwrap())
        };
        let (succeeded, said) = bench("=rxe0,rxe1");
        let warning = format!("rdma_device =rxe0,rxe1: one is no rail: verbs: open on {reason}");
        assert!(succeeded && said.contains(&warning), "{said}");
        let (succeeded, said) = bench("=rxe1");
        assert!(!succeeded && said.contains(reason), "{said}");
        ip("link set veth2 up");
        let start = Instant::now();
        while rails("=rxe0,rxe1").0.len() < 2 {
            assert!(start.elapsed() < PATIENCE, "it does not come up again");
        }
    }

    /// Runs `ip`, in the guest.
    fn ip(arguments: &str) {
        let set = std::process::Command::new("/bin/ip").args(arguments.split(' ')).status().unwrap();
        assert!(set.success(), "ip {arguments}");
    }

    /// What a worker over `devices` comes to that adds to a table of a server with a thread on each of two rails: the packets that
    /// each device sent, or why it can't connect.
    fn work(devices: &str) -> windlass::Result<[u64; 2]> {
        const LENGTH: usize = 1 << 16;
        let over =
            |devices| Network { transport: TransportChoice::Only(TransportKind::Verbs), ..network(devices) };
        let job = Job::start_with(1, 1, |server| server.threads(2).network(over("=rxe0,rxe1")));
        let before = ["rxe0", "rxe1"].map(sent);
        let client = match Client::connect(ClientConfig { network: over(devices), ..job.config(0) }) {
            Ok(client) => client,
            Err(error) => {
                job.coordinator.join().unwrap().unwrap_err();
                job.servers[0].run().unwrap_err();
                return Err(error);
            }
        };
        let spec =
            TableSpec::dense("w", &[LENGTH as u64]).segment_bytes(4096).optimizer(OptimizerSpec::sum());
        let table = client.table(&spec).unwrap();
        let mut values = vec![0.0; LENGTH];
        for clock in 1..=3u8 {
            let all = KeyRange::new(0, LENGTH as u64).unwrap();
            let ticket = table.push_pull_range(all, &[1.0; LENGTH]).unwrap();
            client.clock().unwrap();
            ticket.wait_into(&mut values).unwrap();
            assert!(values.iter().all(|v| *v == f32::from(clock)), "{}", values[0]);
        }
        client.finalize().unwrap();
        job.end();
        let after = ["rxe0", "rxe1"].map(sent);
        Ok([after[0] - before[0], after[1] - before[1]])
    }

    /// The guest's devices are on networks of their own, without a route between them, until the test joins them.
    #[test]
    fn rails_may_be_apart_and_a_worker_with_fewer_needs_them_joined() {
        if two().is_none() || std::env::var_os("WINDLASS_VM").is_none() {
            println!("skipped: the two networks of the guest are needed");
            return;
        }
        let [over_0, over_1] = work("=rxe0,rxe1").unwrap();
        assert!(over_0 > 30 && over_1 > 30, "{over_0} and {over_1} packets");
        let error = work("=rxe0").unwrap_err().to_string();
        let no_way = "thread 1 refused: verbs: ibv_modify_qp (RTR) on rxe1: ";
        assert!(error.starts_with("server 0 (") && error.contains(no_way), "{error}");
        for step in [
            "link add joined type bridge",
            "link set joined up",
            "link set veth1 master joined",
            "link set veth3 master joined",
            "route add 10.9.1.1 dev veth0",
            "route add 10.9.0.1 dev veth2",
        ] {
            ip(step);
        }
        let between_own_addresses = |allowed: &str| {
            for nic in ["veth0", "veth2"] {
                std::fs::write(format!("/proc/sys/net/ipv4/conf/{nic}/accept_local"), allowed).unwrap();
            }
        };
        between_own_addresses("1");
        // The worker's only device carries what goes to and comes from both threads, the other one a thread's part.
        let [over_0, over_1] = work("=rxe0").unwrap();
        assert!(over_1 > 30 && over_0 > over_1 + 30, "{over_0} and {over_1} packets");
        between_own_addresses("0");
        for step in ["link del joined", "route del 10.9.1.1 dev veth0", "route del 10.9.0.1 dev veth2"] {
            ip(step);
        }
    }
}
