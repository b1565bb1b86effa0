//! Hosts with addresses of their own, below Slurm and Open MPI, of which one is cut off in the middle of a job: the job ends with an
//! error that says so, nothing of it is left on any host, and it goes on from its last checkpoint.

use std::fs;
use std::path::Path;

use super::hosts::Hosts;
use super::preemption::{goes_on, held};
use super::slurm::Slurm;
use super::{DEADLINE, Launcher, WINDLASS, no_files_are_left, wanted};
use crate::common::{PATIENCE, scratch, text, until};

/// Where all hosts are, and when one of them is given up.
const FLAGS: [&str; 6] = ["--servers-on", "spread", "--interface", "10.77.0.0/24", "--peer-timeout", "3"];

/// Trains until there is a checkpoint, cuts off n3, and waits for the end; then, with the link up again, to the end of the training.
fn cut_off_and_go_on(hosts: &Hosts, launcher: &Launcher, folder: &Path) {
    let mut tries = (0..20).map(|number| folder.join(number.to_string()));
    let (process, cuts) = tries.find_map(|cuts| Some((held(launcher, &cuts, &FLAGS)?, cuts))).unwrap();
    hosts.ip("n3", &["link", "set", "eth0", "down"]);
    // On the lonely host, too, where a worker is stopped, or on another one.
    until(DEADLINE, "the end of all", || process.members().iter().all(|member| member.rank.is_none()));
    hosts.ip("n3", &["link", "set", "eth0", "up"]);
    let ended = process.end(PATIENCE);
    assert!(ended.code != 0 && ended.code != 124, "{}: {}", ended.code, ended.stderr);
    ended.says("is lost: silent for ");
    no_files_are_left(&folder.join("tmp"));
    let resumed = ["run", "--servers", "2", "--checkpoint", text(&cuts), "--resume", "auto"];
    goes_on(launcher, &[&[WINDLASS], &resumed[..], &FLAGS, &["--", WINDLASS]].concat());
}

#[test]
fn a_host_that_is_cut_off_below_open_mpi_ends_the_job_which_goes_on_later() {
    if !wanted() {
        return;
    }
    let (hosts, folder) = (Hosts::up("o"), scratch());
    let own = folder.path().join("tmp");
    fs::create_dir(&own).unwrap();
    // What mpirun itself needs to notice it, see scripts/windlass-mpirun.sh.
    let told = [
        ("OMPI_MCA_oob_tcp_keepalive_time", "3"),
        ("OMPI_MCA_oob_tcp_keepalive_intvl", "1"),
        ("OMPI_MCA_oob_tcp_keepalive_probes", "3"),
        ("TMPDIR", text(&own)),
    ];
    let arguments = ["--bind-to", "none", "--host", "n1:2,n2:2,n3:2", "-n", "6"];
    cut_off_and_go_on(&hosts, &hosts.open_mpi(&arguments, &told, folder.path()), folder.path());
}

#[test]
fn a_host_that_is_cut_off_below_slurm_ends_the_job_which_goes_on_later() {
    if !wanted() {
        return;
    }
    let (hosts, folder) = (Hosts::up("s"), scratch());
    let slurm = Slurm::on(&hosts);
    let own = folder.path().join("tmp");
    fs::create_dir(&own).unwrap();
    let (conf, shell) = (slurm.conf(), hosts.shell());
    let told = [("SLURM_CONF", text(&conf)), ("TMPDIR", text(&own))];
    let srun = ["head", "srun", "-Q", "--mpi=pmi2", "--overcommit", "-N3", "-n6"];
    let words: Vec<&str> = shell.iter().map(String::as_str).chain(srun).collect();
    cut_off_and_go_on(&hosts, &Launcher::new(&words, &told, folder.path()), folder.path());
}
