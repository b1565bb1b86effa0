//! Three hosts with addresses of their own, in network namespaces. Needs root.

use std::path::Path;
use std::process::Command;

use super::{Launcher, WINDLASS, wanted};
use crate::common::{PATIENCE, Process, scratch, text};

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
