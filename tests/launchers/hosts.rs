//! Three hosts with addresses of their own, in network namespaces. Needs root.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::hostfile::RSH;
use super::{DEADLINE, DEFAULT, Launcher, WINDLASS, wanted};
use crate::common::{PATIENCE, Process, scratch, text, until};

/// Hosts n1 to n3, and `head`.
pub struct Hosts {
    pub prefix: String,
}

impl Hosts {
    /// Makes them; `name` tells those of two tests apart.
    pub fn up(name: &str) -> Hosts {
        let hosts = Hosts { prefix: format!("wl{}{name}", std::process::id()) };
        hosts.script("hosts-up.sh");
        hosts
    }

    fn script(&self, name: &str) {
        let script = format!("{}/tests/launchers/{name}", env!("CARGO_MANIFEST_DIR"));
        let output = Command::new("bash").args([&script, &self.prefix, "3"]).output().unwrap();
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// What stands in for `ssh`, before the name of a host.
    pub fn shell(&self) -> [String; 2] {
        [concat!(env!("CARGO_MANIFEST_DIR"), "/tests/launchers/host.sh").to_owned(), self.prefix.clone()]
    }

    /// Open MPI on the host `head`, which reaches the others.
    pub fn open_mpi(&self, arguments: &[&str], told: &[(&str, &str)], folder: &Path) -> Launcher {
        let (shell, agent) = (self.shell(), self.shell().join(" "));
        let own = [
            ("OMPI_ALLOW_RUN_AS_ROOT", "1"),
            ("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1"),
            ("OMPI_MCA_plm_rsh_agent", &*agent),
            ("OMPI_MCA_oob_tcp_if_include", "10.77.0.0/24"),
        ];
        let command = [&shell[0], &shell[1], "head", "mpirun.openmpi"];
        Launcher::new(&[&command[..], arguments].concat(), &[&own[..], told].concat(), folder)
    }

    /// `ip` on a host.
    pub fn ip(&self, host: &str, arguments: &[&str]) {
        let namespace = format!("{}-{host}", self.prefix);
        let status = Command::new("ip").args(["-n", &namespace]).args(arguments).status().unwrap();
        assert!(status.success(), "{arguments:?}");
    }

    /// One command line on each of the hosts, as ranks of one launch.
    fn launch(&self, folder: &Path, arguments: &[&str]) -> Vec<Process> {
        let rank = |rank: usize| {
            let (host, task) = (format!("n{}", rank + 1), rank.to_string());
            let namespace = format!("{}-{host}", self.prefix);
            let named = "hostname \"$0\"; exec \"$@\"";
            let command = ["ip", "netns", "exec", &namespace, "unshare", "--uts", "bash", "-c", named, &host];
            let told =
                [("WINDLASS_TASK", task.as_str()), ("WINDLASS_TASKS", "3"), ("WINDLASS_LAUNCH", "test")];
            Launcher::new(&command, &told, folder).start(arguments)
        };
        (0..3).map(rank).collect()
    }
}

impl Hosts {
    /// A job by a remote shell, from the host `head`, on the others.
    fn start(&self, folder: &Path, flags: &[&str], worker: &[&str]) -> Process {
        let file = folder.join("hosts");
        fs::write(&file, "n[1-3] slots=2\n").unwrap();
        let namespace = format!("{}-head", self.prefix);
        let rsh = format!("{RSH} -n {}", self.prefix);
        let job = [WINDLASS, "run", "--hostfile", text(&file), "--rsh", &rsh, "--servers", "2"];
        let job = [&job[..], &["--servers-on", "spread"], flags, &["--"], worker].concat();
        Launcher::new(&["ip", "netns", "exec", &namespace], &[], folder).start(&job)
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        self.script("hosts-down.sh");
    }
}

#[test]
fn hosts_find_each_other_over_the_interface_that_is_wanted() {
    if !wanted() {
        return;
    }
    let (hosts, folder) = (Hosts::up("a"), scratch());
    let mut digests = Vec::new();
    for interface in [&["--interface", "fd77::/64"][..], &["--interface", "eth0"], &[]] {
        let job = [&[WINDLASS, "run", "--servers", "1"], interface].concat();
        let show = "echo at $WINDLASS_COORDINATOR on $WINDLASS_INTERFACE; exec \"$0\" train lr --epochs 1";
        let ended: Vec<_> = hosts
            .launch(folder.path(), &[&job[..], &["--", "sh", "-c", show, WINDLASS]].concat())
            .into_iter()
            .map(|process| process.end(PATIENCE).expect(0))
            .collect();
        let v6 = interface.last().is_some_and(|i| i.contains(':'));
        for (rank, ended) in ended.iter().enumerate().skip(1) {
            let (first, own) = if v6 {
                ("[fd77::11]:".to_owned(), format!(" on fd77::1{}\n", rank + 1))
            } else {
                ("10.77.0.11:".to_owned(), format!(" on 10.77.0.1{}\n", rank + 1))
            };
            assert!(ended.stdout.contains(&first) && ended.stdout.contains(&own), "{}", ended.stdout);
        }
        let line = ended[1].stdout.lines().find(|line| line.starts_with("weights sha256"));
        digests.push(line.unwrap().to_owned());
    }
    digests.dedup();
    assert_eq!(digests.len(), 1, "{digests:?}");
}

/// What a firewall does: packets of one rank get no answer.
#[test]
fn a_rank_that_can_not_reach_the_leader_is_named_with_its_addresses() {
    if !wanted() {
        return;
    }
    let (hosts, folder) = (Hosts::up("b"), scratch());
    hosts.ip("n1", &["route", "add", "blackhole", "10.77.0.13/32"]);
    let file = folder.path().join("meet");
    let job = [
        WINDLASS,
        "run",
        "--servers",
        "1",
        "--launch-timeout",
        "4",
        "--rendezvous",
        text(&file),
        "--",
        "true",
    ];
    let mut ended: Vec<_> =
        hosts.launch(folder.path(), &job).into_iter().map(|process| process.end(PATIENCE)).collect();
    let cut_off = ended.pop().unwrap().expect(13);
    cut_off.says("a connection to the leading rank on n1 at 10.77.0.11:");
    let missing = "waiting for rank 2 of 3 to check in at 10.77.0.11:";
    let came = "these have: rank 0 on n1 (10.77.0.11), 1 on n2 (10.77.0.12)";
    ended.pop().unwrap().expect(19).says(missing).says(came);
    ended.pop().unwrap().expect(13).says(missing).says(came);
    // Its loopback is of no use to the others.
    let job = [WINDLASS, "run", "--servers", "1", "--interface", "lo", "--launch-timeout", "4", "--", "true"];
    let ended: Vec<_> =
        hosts.launch(folder.path(), &job).into_iter().map(|process| process.end(PATIENCE)).collect();
    for (rank, ended) in ended.into_iter().enumerate().skip(1) {
        let on = format!("one that others reach (--interface): rank {rank} is on n{}", rank + 1);
        ended.expect(11).says("address of the leading rank on n1").says(&on);
    }
}

/// The same before a server that is not with rank 0: who can't reach it names it, with its address, and the others hear of that.
#[test]
fn a_worker_that_can_not_reach_a_server_names_it_with_its_address() {
    if !wanted() {
        return;
    }
    let (hosts, folder) = (Hosts::up("e"), scratch());
    hosts.ip("n3", &["route", "add", "blackhole", "10.77.0.12/32"]);
    let job = [WINDLASS, "run", "--servers", "2", "--servers-on", "0,2", "--dial-timeout", "2", "--"];
    let processes = hosts.launch(folder.path(), &[&job[..], &[WINDLASS, "train", "lr"]].concat());
    let mut ended: Vec<_> = processes.into_iter().map(|process| process.end(PATIENCE)).collect();
    let said = "a connection to server 1 at 10.77.0.13:";
    ended.remove(1).expect(13).says(said);
    for other in ended {
        other.expect(19).says("worker 0 (").says(said);
    }
}

#[test]
fn a_remote_shell_starts_a_job_on_hosts_with_addresses_of_their_own() {
    if !wanted() {
        return;
    }
    let (hosts, folder) = (Hosts::up("c"), scratch());
    let show = "echo on $(hostname), $WINDLASS_INTERFACE; exec \"$0\" train lr";
    for (interface, third) in
        [(&["--interface", "fd77::/64"][..], "fd77::13"), (&["--interface", "br0"], ""), (&[], "10.77.0.13")]
    {
        let ended = hosts.start(folder.path(), interface, &["sh", "-c", show, WINDLASS]).end(PATIENCE);
        if third.is_empty() {
            // The head's name of its interface means nothing on the others.
            ended
                .expect(11)
                .says("interface: expected an IP address, a network or one of eth0, lo, found br0");
            continue;
        }
        let ended = ended.expect(0);
        assert!(ended.stdout.contains(&format!("[worker 3] on n3, {third}\n")), "{}", ended.stdout);
        assert!(ended.stdout.contains(DEFAULT), "{}", ended.stdout);
    }
}

#[test]
fn a_host_that_is_cut_off_from_a_job_by_remote_shell_ends_it_and_is_left_empty() {
    if !wanted() {
        return;
    }
    let (hosts, folder) = (Hosts::up("d"), scratch());
    let soon = ["--peer-timeout", "3", "--stop-timeout", "1"];
    let process = hosts.start(folder.path(), &soon, &[WINDLASS, "train", "lr", "--epochs", "1000000"]);
    process.until_says(", clock ");
    hosts.ip("n3", &["link", "set", "eth0", "down"]);
    until(DEADLINE, "the end of all", || process.members().is_empty());
    let ended = process.end(PATIENCE);
    assert!([14, 19].contains(&ended.code), "{}: {}", ended.code, ended.stderr);
    ended.says("silent for ");
    // Cut off before it begins.
    hosts.ip("n3", &["link", "set", "eth0", "up"]);
    hosts.ip("head", &["route", "add", "blackhole", "10.77.0.13/32"]);
    let ended = hosts.start(folder.path(), &["--launch-timeout", "4"], &["true"]).end(PATIENCE).expect(13);
    ended.says("waiting for a connection to windlass run on ").says(" on n3 failed with exit code 13");
}

/// What docs/rdma.md has people measure between two hosts, over the transport that there is here.
#[test]
fn documented_measurements_below_mpirun_run_over_two_hosts() {
    if !wanted() {
        return;
    }
    let (hosts, folder) = (Hosts::up("m"), scratch());
    let guide = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/rdma.md")).unwrap();
    let lines: Vec<&str> = guide.lines().filter_map(|line| line.strip_prefix("mpirun ")).collect();
    assert_eq!(lines.len(), 3, "{lines:?}");
    for line in lines {
        let here = line.replace("a:", "n1:").replace("b:", "n2:").replace(" verbs ", " tcp ");
        let here = here.replace("windlass ", &format!("{WINDLASS} "));
        let words: Vec<&str> = here.split(' ').collect();
        let short = ["--table-bytes", "4M", "--seconds", "0.2", "--json"];
        let ended = hosts.open_mpi(&words, &[], folder.path()).run(&short).expect(0);
        let figures: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
        assert!(line.contains(&format!("bench {} ", figures["op"].as_str().unwrap())), "{figures}");
        assert!(figures["transport"] == "tcp" && figures["bytes"] == 1 << 20, "{figures}");
        assert!(figures["gbytes_per_second"].as_f64().unwrap() > 0.0, "{figures}");
    }
}
