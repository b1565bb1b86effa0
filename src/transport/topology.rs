//! Where this machine's RDMA devices and CPUs are, as its sysfs tells. What can't be read, or makes no sense, is unknown.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use crate::config::{MAX_CPUS, ranges};

/// Where the kernel describes the machine.
pub const SYSFS: &str = "/sys";

/// One port that verbs use. Of n of them, the rails, server thread k of its host uses rail k mod n, and so does whoever connects to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RailPort {
    /// The device.
    pub device: String,
    /// Its port, from 1.
    pub port: u8,
}

/// An RDMA device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// As the system names it.
    pub name: String,
    /// The NUMA node that it is next to; `None` when that is not known, as on machines with one node and for software devices.
    pub node: Option<u32>,
    /// The CPUs of that node; empty when it is not known.
    pub cpus: Vec<usize>,
    /// In the order of their numbers.
    pub ports: Vec<Port>,
}

/// A port of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// From 1.
    pub number: u8,
    /// `ACTIVE`, `DOWN`, …
    pub state: String,
    /// `Ethernet` or `InfiniBand`.
    pub link_layer: String,
    /// As in `100 Gb/sec (4X EDR)`.
    pub rate: String,
    /// The filled entries of its table.
    pub gids: Vec<Gid>,
}

/// An entry of a port's GID table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gid {
    /// Its place, by which `--rdma-gid-index` chooses.
    pub index: u8,
    /// `RoCE v2`, `IB/RoCE v1`.
    pub kind: String,
    /// As in `0000:0000:0000:0000:0000:ffff:0a09:0001`, an IPv4 address.
    pub value: String,
}

/// What a sysfs tells.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Topology {
    /// In the order of their names.
    pub devices: Vec<Device>,
    /// The CPUs of each NUMA node.
    pub nodes: BTreeMap<u32, Vec<usize>>,
}

impl fmt::Display for RailPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.device, self.port)
    }
}

impl Topology {
    /// What the sysfs at `root` tells.
    pub fn read(root: &Path) -> Topology {
        let nodes = numbered(&root.join("devices/system/node"), "node");
        let nodes = nodes.into_iter().map(|(node, path)| (node, cpus(&text(&path.join("cpulist")))));
        let nodes: BTreeMap<u32, Vec<usize>> = nodes.collect();
        let mut devices: Vec<Device> =
            entries(&root.join("class/infiniband")).iter().map(|path| device(path, &nodes)).collect();
        devices.sort_by(|a, b| a.name.cmp(&b.name));
        Topology { devices, nodes }
    }

    /// A device by its name.
    pub fn device(&self, name: &str) -> Option<&Device> {
        self.devices.iter().find(|device| device.name == name)
    }

    /// The CPUs next to a device; empty when they are not known.
    pub fn cpus_near(&self, name: &str) -> &[usize] {
        self.device(name).map_or(&[], |device| &device.cpus)
    }

    /// The NUMA node of a CPU.
    pub fn node_of(&self, cpu: usize) -> Option<u32> {
        self.nodes.iter().find(|(_, cpus)| cpus.contains(&cpu)).map(|(node, _)| *node)
    }

    /// The CPUs of its node.
    pub fn beside(&self, cpu: usize) -> Option<&[usize]> {
        self.nodes.values().find(|cpus| cpus.contains(&cpu)).map(Vec::as_slice)
    }
}

fn device(path: &Path, nodes: &BTreeMap<u32, Vec<usize>>) -> Device {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    // −1 is the kernel's "unknown"; `local_cpulist` then names all CPUs.
    let node = text(&path.join("device/numa_node")).parse::<u32>().ok();
    let cpus = node.map_or_else(Vec::new, |node| {
        let local = cpus(&text(&path.join("device/local_cpulist")));
        if local.is_empty() { nodes.get(&node).cloned().unwrap_or_default() } else { local }
    });
    let ports = numbered(&path.join("ports"), "");
    let ports = ports.into_iter().filter_map(|(number, path)| port(u8::try_from(number).ok()?, &path));
    Device { name, node, cpus, ports: ports.collect() }
}

fn port(number: u8, path: &Path) -> Option<Port> {
    let gid = |(index, value): (u32, PathBuf)| {
        let value = text(&value);
        let empty = value.bytes().all(|b| b == b'0' || b == b':');
        let kind = text(&path.join(format!("gid_attrs/types/{index}")));
        (!empty).then_some(Gid { index: u8::try_from(index).ok()?, kind, value })
    };
    Some(Port {
        number: Some(number).filter(|&number| number > 0)?,
        // `4: ACTIVE`
        state: text(&path.join("state")).split(':').next_back().unwrap_or_default().trim().to_owned(),
        link_layer: text(&path.join("link_layer")),
        rate: text(&path.join("rate")),
        gids: numbered(&path.join("gids"), "").into_iter().filter_map(gid).collect(),
    })
}

/// The CPUs that a list of the kernel names, in its order; none when it makes no sense. Those that no mask here could hold are left out.
fn cpus(list: &str) -> Vec<usize> {
    let ranges = ranges(list).unwrap_or_default();
    let mut cpus: Vec<usize> =
        ranges.into_iter().flat_map(|range| *range.start()..=(*range.end()).min(MAX_CPUS - 1)).collect();
    cpus.sort_unstable();
    cpus.dedup();
    cpus
}

/// CPUs as the kernel would list them: `0-3,8`; `unknown` for none.
pub fn show(cpus: &[usize]) -> String {
    let mut parts: Vec<(usize, usize)> = Vec::new();
    for &cpu in cpus {
        match parts.last_mut() {
            Some((_, high)) if *high + 1 == cpu => *high = cpu,
            _ => parts.push((cpu, cpu)),
        }
    }
    let part = |(low, high)| if low == high { format!("{low}") } else { format!("{low}-{high}") };
    let parts: Vec<String> = parts.into_iter().map(part).collect();
    if parts.is_empty() { "unknown".to_owned() } else { parts.join(",") }
}

/// The text of a file without the line's end; empty when it can't be read.
fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder).map_or_else(|_| Vec::new(), |all| all.flatten().map(|e| e.path()).collect())
}

/// Entries called `prefix` + a number, in the order of the numbers.
pub fn numbered(folder: &Path, prefix: &str) -> Vec<(u32, PathBuf)> {
    let number = |path: &PathBuf| path.file_name()?.to_str()?.strip_prefix(prefix)?.parse::<u32>().ok();
    let mut found: Vec<_> =
        entries(folder).into_iter().filter_map(|path| Some((number(&path)?, path))).collect();
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// A machine with so many nodes of four CPUs, and a device with each of these `numa_node`s; "" for none.
    fn machine(nodes: usize, devices: &[&str]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let list = |node: usize| format!("{}-{}\n", 4 * node, 4 * node + 3);
        for node in 0..nodes {
            write(root.path(), &format!("devices/system/node/node{node}/cpulist"), &list(node));
        }
        for (number, node) in devices.iter().enumerate() {
            let folder = format!("class/infiniband/mlx5_{number}");
            write(root.path(), &format!("{folder}/ports/1/state"), "4: ACTIVE\n");
            if !node.is_empty() {
                write(root.path(), &format!("{folder}/device/numa_node"), &format!("{node}\n"));
                let local = node.parse().map_or_else(|_| format!("0-{}\n", 4 * nodes - 1), list);
                write(root.path(), &format!("{folder}/device/local_cpulist"), &local);
            }
        }
        root
    }

    /// How many nodes, the devices, and the CPUs next to each of these.
    type Case<'a> = (usize, &'a [&'a str], &'a [&'a [usize]]);

    #[test]
    fn one_and_two_sockets_with_one_to_four_devices() {
        let (first, second) = ([0, 1, 2, 3], [4, 5, 6, 7]);
        let cases: [Case<'_>; 9] = [
            (1, &["0"], &[&first]),
            (1, &["-1"], &[&[]]),
            (1, &[""], &[&[]]),
            (1, &["0", "0"], &[&first, &first]),
            (2, &["0"], &[&first]),
            (2, &["1", "0"], &[&second, &first]),
            (2, &["0", "1", "-1"], &[&first, &second, &[]]),
            (2, &["0", "0", "1", "1"], &[&first, &first, &second, &second]),
            (2, &["1", "", "-1", "0"], &[&second, &[], &[], &first]),
        ];
        for (nodes, devices, near) in cases {
            let root = machine(nodes, devices);
            let topology = Topology::read(root.path());
            assert_eq!(topology.devices.len(), devices.len());
            for (number, (node, cpus)) in devices.iter().zip(near).enumerate() {
                let name = format!("mlx5_{number}");
                assert_eq!(topology.cpus_near(&name), *cpus, "{nodes} nodes, {devices:?}: {name}");
                assert_eq!(topology.device(&name).unwrap().node, node.parse().ok());
            }
            assert_eq!(topology.node_of(3), Some(0));
            assert_eq!(topology.node_of(4), (nodes > 1).then_some(1));
            assert_eq!(topology.node_of(99), None);
        }
    }

    #[test]
    fn without_a_list_of_its_own_a_device_has_its_nodes_cpus() {
        for list in ["", "\n", "all", "3-", "7-4", "0-3\0", "-", ",", "0,,1", "99999999999999999999"] {
            let root = machine(2, &["1"]);
            write(root.path(), "class/infiniband/mlx5_0/device/local_cpulist", list);
            assert_eq!(Topology::read(root.path()).cpus_near("mlx5_0"), [4, 5, 6, 7], "{list:?}");
        }
        let root = machine(1, &["0"]);
        fs::remove_file(root.path().join("class/infiniband/mlx5_0/device/local_cpulist")).unwrap();
        fs::remove_dir_all(root.path().join("devices")).unwrap();
        assert!(Topology::read(root.path()).devices[0].cpus.is_empty());
        assert_eq!(Topology::read(root.path()).devices[0].node, Some(0));
    }

    #[test]
    fn a_machine_that_tells_nothing_has_nothing() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(Topology::read(root.path()), Topology::default());
        assert_eq!(Topology::read(&root.path().join("missing")), Topology::default());
        // Files where folders should be, and the other way round.
        write(root.path(), "class/infiniband/mlx5_0", "x");
        write(root.path(), "class/infiniband/mlx5_1/ports/1/state/x", "");
        write(root.path(), "class/infiniband/mlx5_1/ports/0/state", "4: ACTIVE");
        write(root.path(), "class/infiniband/mlx5_1/ports/256/state", "4: ACTIVE");
        fs::create_dir_all(root.path().join("class/infiniband/mlx5_1/device/numa_node")).unwrap();
        let topology = Topology::read(root.path());
        assert_eq!(topology.devices.len(), 2);
        let device = &topology.devices[1];
        assert_eq!((device.node, device.ports.len()), (None, 1));
        assert_eq!(device.ports[0].state, "");
    }

    #[test]
    fn ports_and_their_gids() {
        let root = machine(1, &["0"]);
        let port = "class/infiniband/mlx5_0/ports/1";
        for (file, text) in [
            ("link_layer", "Ethernet\n"),
            ("rate", "100 Gb/sec (4X EDR)\n"),
            ("gids/0", "fe80:0000:0000:0000:0000:00ff:fe00:0001\n"),
            ("gids/1", "0000:0000:0000:0000:0000:ffff:0a09:0001\n"),
            ("gids/2", "0000:0000:0000:0000:0000:0000:0000:0000\n"),
            ("gids/10", "fe80:0000:0000:0000:0000:00ff:fe00:0002\n"),
            ("gids/256", "fe80:0000:0000:0000:0000:00ff:fe00:0003\n"),
            ("gid_attrs/types/0", "IB/RoCE v1\n"),
            ("gid_attrs/types/1", "RoCE v2\n"),
        ] {
            write(root.path(), &format!("{port}/{file}"), text);
        }
        let topology = Topology::read(root.path());
        let port = &topology.devices[0].ports[0];
        assert_eq!((port.number, port.state.as_str(), port.link_layer.as_str()), (1, "ACTIVE", "Ethernet"));
        assert_eq!(port.rate, "100 Gb/sec (4X EDR)");
        let gids: Vec<_> = port.gids.iter().map(|gid| (gid.index, gid.kind.as_str())).collect();
        assert_eq!(gids, [(0, "IB/RoCE v1"), (1, "RoCE v2"), (10, "")]);
        assert_eq!(port.gids[1].value, "0000:0000:0000:0000:0000:ffff:0a09:0001");
    }

    #[test]
    fn lists_that_claim_too_much_cost_nothing_and_lists_read_as_they_were_shown() {
        assert_eq!(cpus("1022-18446744073709551614"), [1022, 1023]);
        assert!(cpus("5000-6000").is_empty());
        assert_eq!(cpus("8,0-3,2"), [0, 1, 2, 3, 8]);
        assert_eq!(show(&[]), "unknown");
        proptest::proptest!(|(set in proptest::collection::btree_set(0usize..MAX_CPUS, 1..50))| {
            let list: Vec<usize> = set.into_iter().collect();
            assert_eq!(cpus(&show(&list)), list);
        });
        // Whatever a list says.
        proptest::proptest!(|(text in "[-0-9, \\n]{0,40}")| {
            let found = cpus(&text);
            assert!(found.is_sorted_by(|a, b| a < b) && found.iter().all(|&cpu| cpu < MAX_CPUS));
        });
    }
}
