//! What this machine and this build have to offer: `windlass info`.
//!
//! All of it is read from files under one root, which a test makes by hand. What can't be read is said to be unknown.

use std::fmt::Write;
use std::fs;
use std::net::Ipv6Addr;
use std::path::{Path, PathBuf};

use crate::config::rdma::Devices;
use crate::config::{Environment, Rdma, ranges, variable};
use crate::error::Result;
use crate::transport::topology::{self, Gid, RailPort, Topology, numbered, show};

/// The figures of this machine, a line each, as `name  value`; of RDMA as the settings would have it used.
pub fn text(environment: &Environment) -> Result<String> {
    let devices = Rdma::from_environment(environment)?.device;
    let mut rows = build();
    rows.push(("kernels", kernels()));
    rows.extend(machine(Path::new("/")));
    rows.push(("interfaces", interfaces()));
    let topology = topology_of(environment);
    rows.extend(rdma(&topology, &devices, cfg!(feature = "verbs")));
    let mut out = String::new();
    for (name, value) in rows {
        for (number, line) in value.lines().enumerate() {
            // Writing into a string can't fail.
            let _ = writeln!(out, "{:<20} {line}", if number == 0 { name } else { "" });
        }
    }
    Ok(out)
}

type Row = (&'static str, String);

fn build() -> Vec<Row> {
    let features = if cfg!(feature = "verbs") { "verbs" } else { "none" };
    vec![
        ("windlass", env!("CARGO_PKG_VERSION").to_owned()),
        ("features", features.to_owned()),
        ("transports", if cfg!(feature = "verbs") { "tcp, verbs, shm" } else { "tcp, shm" }.to_owned()),
    ]
}

/// What the CPU has of what kernels can use.
fn cpu_features() -> Vec<&'static str> {
    #[cfg(target_arch = "x86_64")]
    let known = [
        ("avx2", is_x86_feature_detected!("avx2")),
        ("f16c", is_x86_feature_detected!("f16c")),
        ("fma", is_x86_feature_detected!("fma")),
        ("avx512f", is_x86_feature_detected!("avx512f")),
        ("avx512bw", is_x86_feature_detected!("avx512bw")),
        ("avx512vl", is_x86_feature_detected!("avx512vl")),
        ("avx512bf16", is_x86_feature_detected!("avx512bf16")),
        ("avx512fp16", is_x86_feature_detected!("avx512fp16")),
    ];
    #[cfg(not(target_arch = "x86_64"))]
    let known: [(&'static str, bool); 0] = [];
    known.into_iter().filter(|(_, there)| *there).map(|(name, _)| name).collect()
}

fn kernels() -> String {
    let features = cpu_features();
    let has = if features.is_empty() { "nothing that kernels use".to_owned() } else { features.join(" ") };
    format!("{}\nthe CPU has {has}", crate::kernels::chosen())
}

/// Cores, memory and its limits.
fn machine(root: &Path) -> Vec<Row> {
    let status = read(root.join("proc/self/status"));
    let cores = field(&status, "Cpus_allowed_list:").unwrap_or_else(unknown);
    vec![
        ("cpu", field(&read(root.join("proc/cpuinfo")), "model name").unwrap_or_else(unknown)),
        ("allowed cores", format!("{} ({cores})", count_list(&cores))),
        ("numa nodes", numa(root)),
        ("locked memory", locked_memory(root)),
        ("huge pages", huge_pages(root)),
    ]
}

fn numa(root: &Path) -> String {
    let nodes = numbered(&root.join("sys/devices/system/node"), "node");
    let lines: Vec<String> = nodes
        .iter()
        .map(|(number, path)| {
            let cores = read(path.join("cpulist"));
            let memory = read(path.join("meminfo"));
            let total = memory.lines().find_map(|l| l.split_once("MemTotal:"));
            let total = total.map_or_else(unknown, |(_, size)| size.trim().to_owned());
            format!("{number}: cores {}, {total}", cores.trim())
        })
        .collect();
    if lines.is_empty() { unknown() } else { lines.join("\n") }
}

fn locked_memory(root: &Path) -> String {
    let limits = read(root.join("proc/self/limits"));
    let line = limits.lines().find_map(|l| l.strip_prefix("Max locked memory"));
    let mut words = line.unwrap_or_default().split_whitespace();
    match (words.next(), words.next()) {
        (Some("unlimited"), _) => "unlimited".to_owned(),
        (Some(soft), Some(hard)) => {
            format!("at most {soft} bytes, can be raised to {hard}: verbs needs more for large tables")
        }
        _ => unknown(),
    }
}

fn huge_pages(root: &Path) -> String {
    let memory = read(root.join("proc/meminfo"));
    let reserved = field(&memory, "HugePages_Total:").unwrap_or_else(unknown);
    let free = field(&memory, "HugePages_Free:").unwrap_or_else(unknown);
    let size = field(&memory, "Hugepagesize:").unwrap_or_else(unknown);
    let transparent = root.join("sys/kernel/mm/transparent_hugepage");
    let chosen = |file: &str| {
        let text = read(transparent.join(file));
        let chosen = text.split_once('[').and_then(|(_, rest)| rest.split_once(']'));
        chosen.map_or_else(unknown, |(word, _)| word.to_owned())
    };
    format!(
        "transparent: {} (shared memory: {})\nreserved: {reserved} of {size}, {free} free",
        chosen("enabled"),
        chosen("shmem_enabled")
    )
}

fn interfaces() -> String {
    let Ok(all) = if_addrs::get_if_addrs() else { return unknown() };
    let lines: Vec<String> = all.iter().map(|i| format!("{}: {}", i.name, i.ip())).collect();
    if lines.is_empty() { "none".to_owned() } else { lines.join("\n") }
}

/// The RDMA ports, what leads to them, and which would be rails; and, in a build that can't use one, how to make one that can.
fn rdma(topology: &Topology, devices: &Devices, usable: bool) -> Vec<Row> {
    let (mut ports, mut gids, mut active) = (Vec::new(), Vec::new(), Vec::new());
    for device in &topology.devices {
        let node = device
            .node
            .map_or(String::new(), |node| format!(", numa node {node}, cores {}", show(&device.cpus)));
        for port in &device.ports {
            let name = format!("{}:{}", device.name, port.number);
            ports.push(format!("{name}: {}, {}, {}{node}", port.state, port.link_layer, port.rate));
            let gid = |gid: &Gid| {
                let address = gid.value.parse().ok().and_then(|value: Ipv6Addr| value.to_ipv4_mapped());
                let address = address.map_or_else(String::new, |address| format!(" ({address})"));
                format!("{name}: {} {} {}{address}", gid.index, gid.kind, gid.value)
            };
            gids.extend(port.gids.iter().map(gid));
            if port.state == ACTIVE {
                active.push(RailPort { device: device.name.clone(), port: port.number });
            }
        }
    }
    let mut rails = devices.select(active, |rail| (&rail.device, rail.port));
    rails.truncate(if devices.is_any() { 1 } else { usize::MAX });
    let rails: Vec<String> =
        rails.iter().enumerate().map(|(number, rail)| format!("{number}: {rail}")).collect();
    let row = |name, lines: Vec<String>| {
        (name, if lines.is_empty() { "none".to_owned() } else { lines.join("\n") })
    };
    let mut rows = vec![row("rdma ports", ports), row("rdma gids", gids), row("rdma rails", rails)];
    rows.extend(hint(topology, usable).map(|hint| ("hint", hint.to_owned())));
    rows
}

const ACTIVE: &str = "ACTIVE";

/// What a build that can't use an active RDMA port says about it.
fn hint(topology: &Topology, usable: bool) -> Option<&'static str> {
    let mut ports = topology.devices.iter().flat_map(|device| &device.ports);
    let wasted = !usable && ports.any(|port| port.state == ACTIVE);
    wasted.then_some(
        "an RDMA port is active, but this build has no verbs: cargo build --release --features verbs",
    )
}

/// The same of this build and this machine.
pub fn hint_here(environment: &Environment) -> Option<&'static str> {
    hint(&topology_of(environment), cfg!(feature = "verbs"))
}

fn topology_of(environment: &Environment) -> Topology {
    Topology::read(Path::new(environment.text(variable::SYSFS).unwrap_or(topology::SYSFS)))
}

fn unknown() -> String {
    "unknown".to_owned()
}

/// The text of a file; empty when it can't be read.
fn read(path: PathBuf) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// What follows `name` and a possible colon on the first line that starts with it.
fn field(text: &str, name: &str) -> Option<String> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    Some(rest.trim_start_matches([' ', '\t', ':']).trim().to_owned())
}

/// How many numbers a list such as `0-3,8` names.
fn count_list(list: &str) -> usize {
    let size = |range: std::ops::RangeInclusive<usize>| (range.end() - range.start()).saturating_add(1);
    ranges(list).unwrap_or_default().into_iter().map(size).fold(0, usize::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn value(rows: &[Row], name: &str) -> String {
        rows.iter().find(|(n, _)| *n == name).unwrap().1.clone()
    }

    #[test]
    fn rdma_ports_rails_and_the_hint() {
        let root = tempfile::tempdir().unwrap();
        let any = Devices::default();
        let row = |name, value: &str| (name, value.to_owned());
        let none = [row("rdma ports", "none"), row("rdma gids", "none"), row("rdma rails", "none")];
        let read = || Topology::read(root.path());
        assert_eq!(rdma(&read(), &any, false), none);
        let port = |path: &str, state: &str, layer: &str, rate: &str| {
            for (file, text) in [("state", state), ("link_layer", layer), ("rate", rate)] {
                write(root.path(), &format!("class/infiniband/{path}/{file}"), &format!("{text}\n"));
            }
        };
        port("mlx5_0/ports/2", "1: DOWN", "Ethernet", "40 Gb/sec (4X QDR)");
        port("mlx5_0/ports/10", "2: INIT", "InfiniBand", "200 Gb/sec (4X HDR)");
        assert_eq!(rdma(&read(), &any, false).len(), 3);
        assert_eq!(hint(&read(), false), None);
        port("mlx5_1/ports/1", "4: ACTIVE", "InfiniBand", "400 Gb/sec (4X NDR)");
        port("mlx5_2/ports/1", "4: ACTIVE", "Ethernet", "100 Gb/sec (4X EDR)");
        for (file, text) in [
            ("mlx5_1/device/numa_node", "1\n"),
            ("mlx5_1/device/local_cpulist", "16-31\n"),
            ("mlx5_2/device/numa_node", "-1\n"),
            ("mlx5_2/ports/1/gids/1", "0000:0000:0000:0000:0000:ffff:0a09:0001\n"),
            ("mlx5_2/ports/1/gids/2", "0000:0000:0000:0000:0000:0000:0000:0000\n"),
            ("mlx5_2/ports/1/gid_attrs/types/1", "RoCE v2\n"),
        ] {
            write(root.path(), &format!("class/infiniband/{file}"), text);
        }
        let rows = rdma(&read(), &any, false);
        assert_eq!(
            value(&rows, "rdma ports"),
            "mlx5_0:2: DOWN, Ethernet, 40 Gb/sec (4X QDR)\n\
             mlx5_0:10: INIT, InfiniBand, 200 Gb/sec (4X HDR)\n\
             mlx5_1:1: ACTIVE, InfiniBand, 400 Gb/sec (4X NDR), numa node 1, cores 16-31\n\
             mlx5_2:1: ACTIVE, Ethernet, 100 Gb/sec (4X EDR)"
        );
        let gid = "mlx5_2:1: 1 RoCE v2 0000:0000:0000:0000:0000:ffff:0a09:0001 (10.9.0.1)";
        assert_eq!(value(&rows, "rdma gids"), gid);
        assert_eq!(value(&rows, "rdma rails"), "0: mlx5_1:1");
        for (list, rails) in [
            ("=mlx5_2,mlx5_1", "0: mlx5_2:1\n1: mlx5_1:1"),
            ("mlx5", "0: mlx5_1:1\n1: mlx5_2:1"),
            ("^mlx5_1", "0: mlx5_2:1"),
            ("rxe0", "none"),
        ] {
            assert_eq!(value(&rdma(&read(), &list.parse().unwrap(), true), "rdma rails"), rails, "{list}");
        }
        assert!(value(&rows, "hint").contains("--features verbs"));
        assert_eq!(rdma(&read(), &any, true).len(), 3, "a build with verbs needs no hint");
        assert_eq!(hint(&read(), true), None);
        assert!(hint(&read(), false).unwrap().contains("--features verbs"));
    }

    #[test]
    fn a_machine_made_by_hand() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        write(root, "proc/self/status", "Name:\tx\nCpus_allowed:\tff\nCpus_allowed_list:\t0-3,8\n");
        write(root, "proc/cpuinfo", "processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\n");
        write(
            root,
            "proc/meminfo",
            "MemTotal: 1 kB\nHugePages_Total:  12\nHugePages_Free: 3\nHugepagesize: 2048 kB\n",
        );
        write(
            root,
            "proc/self/limits",
            "Limit Soft Limit Hard Limit Units\nMax locked memory         8388608   16777216    bytes\n",
        );
        write(root, "sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n");
        write(root, "sys/devices/system/node/node0/cpulist", "0-1\n");
        write(root, "sys/devices/system/node/node0/meminfo", "Node 0 MemTotal:  64 kB\n");
        write(root, "sys/devices/system/node/node10/cpulist", "2-3\n");
        write(root, "sys/devices/system/node/has_cpu", "0\n");
        let rows = machine(root);
        assert_eq!(value(&rows, "cpu"), "Some CPU @ 2 GHz");
        assert_eq!(value(&rows, "allowed cores"), "5 (0-3,8)");
        assert_eq!(value(&rows, "numa nodes"), "0: cores 0-1, 64 kB\n10: cores 2-3, unknown");
        assert!(
            value(&rows, "locked memory").starts_with("at most 8388608 bytes, can be raised to 16777216")
        );
        assert_eq!(
            value(&rows, "huge pages"),
            "transparent: madvise (shared memory: unknown)\nreserved: 12 of 2048 kB, 3 free"
        );
    }

    #[test]
    fn a_machine_that_tells_nothing() {
        let root = tempfile::tempdir().unwrap();
        let rows = machine(root.path());
        assert!(rows.iter().all(|(_, value)| value.contains("unknown")), "{rows:?}");
    }

    #[test]
    fn lists_of_cores() {
        for (list, count) in [
            ("0", 1),
            ("0-3", 4),
            ("0-3,8,10-11", 7),
            ("", 0),
            ("unknown", 0),
            ("3-1", 0),
            ("0-18446744073709551615", usize::MAX),
        ] {
            assert_eq!(count_list(list), count, "{list}");
        }
    }
}
