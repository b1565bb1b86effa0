//! Server threads on CPUs of their own, as /proc shows them.

#![allow(clippy::unwrap_used)] // in a test a failure is a panic

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use common::proc::Role;
use common::{PATIENCE, Process, run, until, windlass};
use rustix::process::Signal;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use windlass::config::Pin;
use windlass::mem::Arena;
use windlass::transport::topology::{SYSFS, Topology};
use windlass::types::{Consistency, OptimizerSpec};

/// The CPUs that this thread may use.
fn mask() -> Vec<usize> {
    let mask = sched_getaffinity(None).unwrap();
    (0..CpuSet::MAX_CPU).filter(|&cpu| mask.is_set(cpu)).collect()
}

/// At least two CPUs; says so and gives nothing where there are fewer.
fn several() -> Option<Vec<usize>> {
    let mask = mask();
    if mask.len() < 2 {
        eprintln!("skipped: this needs two CPUs");
        return None;
    }
    Some(mask)
}

/// `Cpus_allowed_list` of a process's thread of this name, once there is one.
fn allowed(pid: i32, thread: &str) -> Option<BTreeSet<usize>> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten();
    let named = |task: &fs::DirEntry| {
        fs::read_to_string(task.path().join("comm")).is_ok_and(|comm| comm.trim_end() == thread)
    };
    let task = tasks.into_iter().find(named)?;
    let status = fs::read_to_string(task.path().join("status")).ok()?;
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?.trim().to_owned();
    let range = |part: &str| {
        let (low, high) = part.split_once('-').unwrap_or((part, part));
        low.parse().unwrap()..=high.parse().unwrap()
    };
    Some(list.split(',').flat_map(range).collect())
}

/// The one CPU that this thread ends up on.
fn pinned(pid: i32, thread: &str) -> usize {
    let mut found = None;
    until(PATIENCE, &format!("{thread} to be pinned"), || {
        found = allowed(pid, thread).filter(|cpus| cpus.len() == 1);
        found.is_some()
    });
    *found.unwrap().first().unwrap()
}

/// A coordinator for servers that wait for workers.
struct Waiting {
    coordinator: Process,
    address: String,
    secret: String,
}

impl Waiting {
    fn start(servers: &str) -> Waiting {
        let secret = run(["secret"]).expect(0).stdout.trim().to_owned();
        let listen = ["coordinator", "--listen", "127.0.0.1:0", "--workers", "1", "--servers", servers];
        let mut command = windlass(listen);
        command.env("WINDLASS_SECRET", &secret);
        let coordinator = Process::start(command);
        let address = coordinator.until_says("windlass coordinator: listening on ");
        Waiting { coordinator, address, secret }
    }

    /// A server as the launcher of a host with so many pollers would start it.
    fn server(&self, local_index: &str, pollers: usize, extra: &[&str]) -> Process {
        self.server_with(local_index, pollers, extra, &[])
    }

    /// The same with more variables.
    fn server_with(
        &self,
        local_index: &str,
        pollers: usize,
        extra: &[&str],
        variables: &[(&str, &str)],
    ) -> Process {
        let mut command = windlass(["server"].into_iter().chain(extra.iter().copied()));
        command.envs(variables.iter().copied());
        command.env("WINDLASS_COORDINATOR", &self.address).env("WINDLASS_SECRET", &self.secret);
        command.env("WINDLASS_LOCAL_INDEX", local_index).env("WINDLASS_POLLERS", pollers.to_string());
        command.env("WINDLASS_LOG", "info");
        Process::start(command)
    }

    /// Nobody is left.
    fn end(self, servers: impl IntoIterator<Item = Process>) {
        let servers: Vec<Process> = servers.into_iter().collect();
        // One that had not joined would hear no more of the end than that nobody answers.
        servers.iter().for_each(|server| drop(server.until_says("joined the job as server ")));
        for server in servers {
            server.signal(Signal::TERM);
            // Who hears first that another one left, ends by that.
            let ended = server.end(PATIENCE);
            assert!([0, 19].contains(&ended.code), "{ended:?}");
        }
        self.coordinator.end(PATIENCE).expect(19);
    }
}

#[test]
fn two_servers_of_one_host_get_cpus_of_their_own() {
    let Some(mask) = several() else { return };
    let job = Waiting::start("2");
    let servers = [job.server("0", 2, &[]), job.server("1", 2, &[])];
    let cpus: Vec<usize> = servers.iter().map(|server| pinned(server.pid(), "wl-srv-0")).collect();
    assert_ne!(cpus[0], cpus[1]);
    assert!(cpus.iter().all(|cpu| mask.contains(cpu)), "{cpus:?} of {mask:?}");
    servers[0].until_line(&format!("server threads are pinned to CPUs {}", cpus[0]));
    // Only those threads: what else the process does is not pushed aside.
    let all: BTreeSet<usize> = mask.into_iter().collect();
    until(PATIENCE, "the control thread", || allowed(servers[0].pid(), "wl-ctl").is_some());
    assert_eq!(allowed(servers[0].pid(), "wl-ctl").unwrap(), all);
    job.end(servers);
}

#[test]
fn every_thread_is_named_and_gets_a_cpu() {
    let Some(_) = several() else { return };
    let job = Waiting::start("1");
    let server = job.server("0", 2, &["--threads", "2"]);
    assert_ne!(pinned(server.pid(), "wl-srv-0"), pinned(server.pid(), "wl-srv-1"));
    assert_eq!(allowed(server.pid(), "wl-srv-2"), None);
    job.end([server]);
}

#[test]
fn with_more_pollers_than_cpus_nothing_is_pinned_and_the_log_says_why() {
    let mask = mask();
    let job = Waiting::start("1");
    let server = job.server("0", mask.len() + 1, &[]);
    let why = server.until_says("server threads are not pinned: ");
    let expected = format!(
        "{} threads wait for the network on this host, and this process may use {} CPUs",
        mask.len() + 1,
        mask.len()
    );
    assert_eq!(why, expected);
    until(PATIENCE, "its thread", || allowed(server.pid(), "wl-srv-0").is_some());
    // It has joined: a thread that is pinned at all is pinned by then.
    until(PATIENCE, "the server to join", || common::proc::listeners([server.pid()]).len() == 2);
    assert_eq!(allowed(server.pid(), "wl-srv-0").unwrap(), mask.into_iter().collect());
    job.end([server]);
}

#[test]
fn told_to_pin_nothing_a_server_pins_nothing() {
    let job = Waiting::start("1");
    let server = job.server("0", 1, &["--pin", "none"]);
    drop(server.until_says("joined the job as server "));
    until(PATIENCE, "its thread", || allowed(server.pid(), "wl-srv-0").is_some());
    assert_eq!(allowed(server.pid(), "wl-srv-0").unwrap(), mask().into_iter().collect());
    job.end([server]);
}

#[test]
fn a_narrowed_mask_is_respected() {
    let Some(mask) = several() else { return };
    let (ours, other) = (mask[1], mask[0]);
    std::thread::spawn(move || {
        let mut narrow = CpuSet::new();
        narrow.set(ours);
        sched_setaffinity(None, &narrow).unwrap();
        // What is started here inherits the mask.
        let job = Waiting::start("1");
        let server = job.server("0", 1, &[]);
        server.until_line(&format!("server threads are pinned to CPUs {ours}"));
        assert_eq!(pinned(server.pid(), "wl-srv-0"), ours);
        let refused = job.server("0", 1, &["--pin", &other.to_string()]).end(PATIENCE).expect(11);
        refused.says(&format!("pin: expected CPUs of the affinity mask {ours}, found {other}"));
        job.end([server]);
    })
    .join()
    .unwrap();
}

#[test]
fn a_list_outside_the_mask_is_refused_and_one_inside_it_is_used_by_run() {
    let outside = (0..).find(|cpu| !mask().contains(cpu)).unwrap().to_string();
    let ended = run(["run", "--servers", "1", "--workers", "1", "--pin", &outside, "--", "sleep", "1000"]);
    ended.expect(11).says("pin: expected CPUs of the affinity mask").says(&format!("found {outside}"));
    let inside = *mask().last().unwrap();
    let pin = inside.to_string();
    let job = ["run", "--servers", "1", "--workers", "1", "--pin", &pin, "--", "sleep", "1000"];
    let process = Process::start(windlass(job));
    assert_eq!(pinned(process.member(Role::Server, 0), "wl-srv-0"), inside);
    process.signal(Signal::INT);
    process.end(PATIENCE).expect(130);
}

/// The page faults of a process's thread of this name, once there is one.
fn faults(pid: i32, thread: &str) -> Option<u64> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten();
    let stats = tasks.filter_map(|task| fs::read_to_string(task.path().join("stat")).ok());
    let stat = stats.into_iter().find(|stat| stat.contains(&format!("({thread})")))?;
    stat.rsplit(") ").next()?.split(' ').nth(7)?.parse().ok()
}

/// While a table grows a thread beside a pinned server thread has the memory supplied, on whichever CPU of the process is free, so that the two
/// don't take turns on one.
#[test]
fn who_supplies_the_memory_of_new_rows_may_use_all_cpus() {
    let mask = mask();
    supplies(*mask.last().unwrap(), &[&mask]);
}

/// But none of another NUMA node, from where the memory would lie far from its server thread.
#[test]
fn who_supplies_the_memory_of_new_rows_stays_on_the_node_of_its_server_thread() {
    let Some(mask) = several() else { return };
    let (near, far) = mask.split_at(1);
    supplies(near[0], &[near, far]);
}

/// A server whose thread is pinned to `cpu`, on a machine whose `nodes` have these CPUs, the first of them that one.
fn supplies(cpu: usize, nodes: &[&[usize]]) {
    const ROWS: u64 = 2048;
    const DIM: usize = 16;
    let sysfs = common::scratch();
    for (number, cpus) in nodes.iter().enumerate() {
        let node = sysfs.path().join(format!("devices/system/node/node{number}"));
        fs::create_dir_all(&node).unwrap();
        fs::write(node.join("cpulist"), Pin::List(cpus.to_vec()).to_string()).unwrap();
    }
    let sysfs = [("WINDLASS_SYSFS", common::text(sysfs.path()))];
    let job = Waiting::start("1");
    let server = job.server_with("0", 1, &["--pin", &cpu.to_string()], &sysfs);
    let secret = windlass::Secret::from_hex(&job.secret).unwrap();
    let client = windlass::Client::connect(windlass::ClientConfig::new(&job.address, secret, 0, 1)).unwrap();
    let spec = windlass::TableSpec::sparse("w", DIM as u32).optimizer(OptimizerSpec::sum());
    let table = client.table(&spec.consistency(Consistency::Asp)).unwrap();
    let (mut pushed, mut before) = (0, 0);
    // However late that thread gets its turns: it has supplied a few pages by the time that nothing can be later.
    until(PATIENCE, "pages to be supplied", || {
        let keys: Vec<u64> = (pushed..pushed + ROWS).collect();
        let values: Vec<f32> = keys.iter().flat_map(|&key| [key as f32; DIM]).collect();
        table.push(windlass::SortedKeys::new(&keys).unwrap(), &values).unwrap().wait().unwrap();
        pushed += ROWS;
        if pushed == ROWS {
            assert_eq!(faults(server.pid(), "wl-supply"), None, "a table of a few rows needs none");
        }
        let now = faults(server.pid(), "wl-supply").unwrap_or(0);
        if before == 0 {
            before = now;
        }
        now >= before + 4
    });
    let near: BTreeSet<usize> = nodes[0].iter().copied().collect();
    until(PATIENCE, "its CPUs", || allowed(server.pid(), "wl-supply").unwrap() == near);
    assert_eq!(pinned(server.pid(), "wl-srv-0"), cpu);
    let keys: Vec<u64> = (0..pushed).step_by(7).collect();
    let mut rows = vec![0.0; keys.len() * DIM];
    table.pull(windlass::SortedKeys::new(&keys).unwrap(), &mut rows).unwrap();
    for (key, row) in keys.iter().zip(rows.chunks(DIM)) {
        assert!(row.iter().all(|&value| value == *key as f32), "{key}: {row:?}");
    }
    client.finalize().unwrap();
    server.end(PATIENCE).expect(0);
    job.coordinator.end(PATIENCE).expect(0);
}

/// On which NUMA node each page of an arena lies; a negative number where there is no page yet.
fn nodes_of(arena: &Arena) -> BTreeSet<i32> {
    let pages: Vec<*mut u8> = (0..arena.len()).step_by(4096).map(|offset| arena.at(offset, 1)).collect();
    let mut nodes = vec![i32::MIN; pages.len()];
    let nowhere = std::ptr::null::<i32>();
    // SAFETY: with no nodes to move to the call only tells where each of these pages is, in our own vector of as many numbers.
    let outcome = unsafe {
        libc::syscall(libc::SYS_move_pages, 0, pages.len(), pages.as_ptr(), nowhere, nodes.as_mut_ptr(), 0)
    };
    assert_eq!(outcome, 0, "{}", std::io::Error::last_os_error());
    nodes.into_iter().collect()
}

/// What server threads rely on: they are pinned before they make any memory. One node shows that making an arena touches nothing, two
/// (`scripts/rdma-vm.sh --rails 2`) that it comes from the node of whoever does.
#[test]
fn memory_lies_on_the_node_of_the_thread_that_first_touches_it() {
    let topology = Topology::read(Path::new(SYSFS));
    let mask = mask();
    let mut seen = 0;
    for (node, cpus) in topology.nodes {
        let Some(&cpu) = cpus.iter().find(|cpu| mask.contains(cpu)) else { continue };
        seen += 1;
        // Made elsewhere, by a thread that may run anywhere.
        let arena = Arena::new(4 << 20).unwrap();
        assert!(nodes_of(&arena).iter().all(|&node| node < 0), "an arena is touched when it is made");
        let touched = arena.clone();
        let touch = move || {
            windlass::transport::cpus::pin_to(cpu).unwrap();
            let start = touched.at(0, touched.len());
            // SAFETY: `at` proved the range, and nobody else knows the arena.
            unsafe { start.write_bytes(1, touched.len()) };
        };
        std::thread::spawn(touch).join().unwrap();
        assert_eq!(nodes_of(&arena), BTreeSet::from([node as i32]), "CPU {cpu}");
    }
    assert!(seen > 0, "this machine tells of no NUMA node");
}

#[cfg(feature = "verbs")]
mod near_a_nic {
    use super::*;
    use windlass::config::Rdma;
    use windlass::mem::Rights;
    use windlass::transport::verbs::{Verbs, VerbsConfig, available};
    use windlass::transport::{Side, Transport};

    fn devices() -> Option<String> {
        let active = available().unwrap().into_iter().find(|d| d.active).map(|d| d.name);
        if active.is_none() {
            println!("skipped: no RDMA device");
        }
        active
    }

    /// Registering is what touches slots first.
    #[test]
    fn registered_memory_lies_on_the_node_of_the_thread_that_registers_it() {
        let Some(_) = devices() else { return };
        let mask = mask();
        for (node, cpus) in Topology::read(Path::new(SYSFS)).nodes {
            let Some(&cpu) = cpus.iter().find(|cpu| mask.contains(cpu)) else { continue };
            let register = move || {
                windlass::transport::cpus::pin_to(cpu).unwrap();
                let config = VerbsConfig { rdma: Rdma::default(), endpoints: 1, ..VerbsConfig::default() };
                let mut verbs = Verbs::new(&config).unwrap();
                let arena = Arena::new(4 << 20).unwrap();
                let region = verbs.register(arena.clone()).unwrap();
                let (endpoint, _) = verbs.open(Side::Passive, "nobody").unwrap();
                verbs.authorise(endpoint, region, 0, arena.len(), Rights::Write).unwrap();
                nodes_of(&arena)
            };
            assert_eq!(std::thread::spawn(register).join().unwrap(), BTreeSet::from([node as i32]));
        }
    }

    /// A server on a machine whose only NIC is said to be next to the last CPU, and then next to one that it may not use.
    #[test]
    fn a_server_thread_runs_next_to_its_nic_within_the_mask() {
        let (Some(device), Some(mask)) = (devices(), several()) else { return };
        let (near, outside) = (*mask.last().unwrap(), (0..).find(|cpu| !mask.contains(cpu)).unwrap());
        let sysfs = common::scratch();
        let tell = |cpu: usize| {
            let folder = sysfs.path().join(format!("class/infiniband/{device}/device"));
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("numa_node"), "7\n").unwrap();
            fs::write(folder.join("local_cpulist"), format!("{cpu}\n")).unwrap();
            let node = sysfs.path().join("devices/system/node/node7");
            fs::create_dir_all(&node).unwrap();
            fs::write(node.join("cpulist"), format!("{cpu}\n")).unwrap();
        };
        let job = Waiting::start("2");
        let start = |index: &str| {
            job.server_with(
                index,
                2,
                &["--transport", "verbs"],
                &[("WINDLASS_SYSFS", common::text(sysfs.path()))],
            )
        };
        tell(near);
        let first = start("0");
        first.until_line(&format!("server threads are pinned to CPUs {near}"));
        first.until_line(&format!(
            "over verbs server thread 0 has rail 0, {device}:1 (NUMA node 7), completion vector 0, CPU {near} (NUMA node 7)"
        ));
        assert_eq!(pinned(first.pid(), "wl-srv-0"), near);
        tell(outside);
        let second = start("1");
        let far = second.until_says("not all server threads run next to their NICs: ");
        assert!(
            far.ends_with(&format!("(those next to rail 0, {outside}, are outside the affinity mask)")),
            "{far}"
        );
        assert!(mask.contains(&pinned(second.pid(), "wl-srv-0")));
        job.end([first, second]);
    }
}
