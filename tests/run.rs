//! `windlass run`: what it hands out, what it keeps, and what it does when something dies.

#![allow(clippy::unwrap_used)] // in a test a failure is a panic

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::proc::{Role, all_listeners, listeners};
use common::{PATIENCE, Process, kill, run, scratch, text, until, windlass};
use rustix::process::Signal;

/// A run that goes on until something ends it.
fn endless(extra: &[&str]) -> Process {
    let arguments = ["train", "lr", "--epochs", "1000000", "--workers", "3"];
    let process = Process::start(windlass(arguments.into_iter().chain(extra.iter().copied())));
    in_the_middle(&process);
    process
}

/// Waits for a line of progress and that clocks have passed.
fn in_the_middle(process: &Process) {
    let clock = process.until_says(", clock ");
    let clock: u64 = clock.split(',').next().unwrap().trim().parse().unwrap();
    assert!(clock > 0);
}

/// Kills a process of a run in the middle: the run ends soon, names it, and nothing of it is left.
fn killed(process: Process, role: Role, rank: u32, name: &str) {
    let sockets = listeners(process.members().iter().map(|m| m.pid));
    assert!(sockets.len() >= 3, "the coordinator and two servers listen: {sockets:?}");
    let victim = process.member(role, rank);
    kill(victim, Signal::KILL);
    let started = Instant::now();
    let ended = process.end(PATIENCE);
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    let cause = format!("{name} (pid {victim}) was killed by signal 9 (SIGKILL)");
    ended.expect(137).says(&cause);
    assert_eq!(all_listeners().intersection(&sockets).count(), 0);
}

#[test]
fn a_killed_worker_ends_the_run_and_is_named() {
    killed(endless(&[]), Role::Worker, 2, "worker 2");
}

#[test]
fn the_worker_that_reports_may_be_the_one_that_is_killed() {
    killed(endless(&[]), Role::Worker, 0, "worker 0");
}

#[test]
fn a_killed_server_ends_the_run_and_is_named() {
    killed(endless(&[]), Role::Server, 1, "server 1");
}

#[test]
fn a_node_that_shares_its_memory_and_is_killed_ends_the_run_and_is_named() {
    killed(endless(&["--transport", "shm"]), Role::Worker, 1, "worker 1");
    killed(endless(&["--transport", "shm", "--table", "dense"]), Role::Server, 0, "server 0");
}

/// A worker that may map less than a server shows says so, and goes on by TCP where there is that.
#[test]
fn what_a_worker_may_not_map_is_logged_or_ends_the_job() {
    let job = |transport| {
        let worker =
            format!("WINDLASS_SHOWN_BYTES=1M exec {} train lr --table dense", env!("CARGO_BIN_EXE_windlass"));
        let arguments = ["run", "--workers", "1", "--servers", "1", "--transport", transport, "--"];
        Process::start(windlass(arguments.into_iter().chain(["sh", "-c", &worker])))
    };
    let why = "thread 0 shows over shared memory (--shown-bytes): limit 1048576, asked for ";
    let process = job("auto");
    let line = process.until_line("no shared memory with ");
    assert!(line.contains(why) && line.contains("server 0 "), "{line}");
    in_the_middle(&process);
    job("shm").end(PATIENCE).expect(17).says(why);
}

#[test]
fn a_process_killed_in_a_run_with_prefixes_is_named_too() {
    let binary = env!("CARGO_BIN_EXE_windlass");
    let arguments = ["run", "--workers", "3", "--", binary, "train", "lr", "--epochs", "1000000"];
    let process = Process::start(windlass(arguments));
    in_the_middle(&process);
    killed(process, Role::Server, 0, "server 0");
}

/// A stopped process is silent, but not dead: the others give it up after --peer-timeout.
#[test]
fn a_silent_server_is_given_up_after_the_peer_timeout() {
    let process = endless(&["--peer-timeout", "2"]);
    kill(process.member(Role::Server, 1), Signal::STOP);
    let ended = process.end(Duration::from_secs(30));
    assert_ne!(ended.code, 0);
    ended.says("server 1");
}

/// Alive but stuck, within the peer timeout: the others wait as long as --timeout says, and say for whom.
#[test]
fn a_wait_for_a_stuck_worker_ends_after_the_timeout_and_names_it() {
    let process = endless(&["--timeout", "2", "--peer-timeout", "60"]);
    kill(process.member(Role::Worker, 2), Signal::STOP);
    let ended = process.end(Duration::from_secs(30)).expect(13);
    ended.says("timed out after 2s waiting for a pull from table \"weights\" in clock ").says(": worker 2\n");
}

#[test]
fn a_killed_supervisor_takes_everything_with_it() {
    let mut process = endless(&[]);
    let sockets = listeners(process.members().iter().map(|m| m.pid));
    process.signal(Signal::KILL);
    until(PATIENCE, "the supervisor's end", || !process.runs());
    until(Duration::from_secs(5), "the end of the others", || process.members().is_empty());
    assert_eq!(all_listeners().intersection(&sockets).count(), 0);
    process.end(PATIENCE).expect(137);
}

#[test]
fn an_interrupted_run_ends_all() {
    let process = endless(&[]);
    process.signal(Signal::INT);
    let ended = process.end(Duration::from_secs(10)).expect(130);
    ended.says("received SIGINT");
}

#[test]
fn every_worker_gets_its_variables_and_its_prefix() {
    let show = "echo rank=$WINDLASS_RANK workers=$WINDLASS_WORKERS servers=$WINDLASS_SERVERS \
        threads=$WINDLASS_THREADS pollers=$WINDLASS_POLLERS; echo local=$WINDLASS_LOCAL_INDEX; \
        echo at=$WINDLASS_COORDINATOR job=$WINDLASS_JOB; echo transport=$WINDLASS_TRANSPORT; \
        echo secret=${#WINDLASS_SECRET}; echo no newline at the end >&2; exit 5";
    let options = ["run", "--servers", "2", "--workers", "3", "--threads", "2", "--transport", "tcp", "--"];
    let ended = run(options.into_iter().chain(["sh", "-c", show])).expect(5);
    let lines: BTreeSet<&str> = ended.stdout.lines().collect();
    for rank in 0..3 {
        let line = |text: String| {
            let line = format!("[worker {rank}] {text}");
            assert!(lines.contains(line.as_str()), "no {line:?} in\n{}", ended.stdout);
        };
        line(format!("rank={rank} workers=3 servers=2 threads=2 pollers=7"));
        line(format!("local={}", 2 + rank));
        line("transport=tcp".into());
        line("secret=64".into());
        assert!(ended.stderr.contains(&format!("[worker {rank}] no newline at the end\n")));
    }
    let jobs: BTreeSet<&str> = lines.iter().filter_map(|l| l.split_once("at=")).map(|(_, at)| at).collect();
    assert_eq!(jobs.len(), 1, "one coordinator and one job for all: {jobs:?}");
    assert!(jobs.first().unwrap().starts_with("127.0.0.1:"));
}

#[test]
fn the_exit_code_of_the_one_that_fails_is_kept() {
    let binary = env!("CARGO_BIN_EXE_windlass");
    let one_fails = "if [ $WINDLASS_RANK = 1 ]; then exit 3; fi; exec \"$0\" train lr --epochs 1000000";
    let started = Instant::now();
    let ended = run(["run", "--workers", "3", "--", "sh", "-c", one_fails, binary]).expect(3);
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
    ended.says("worker 1 (pid ").says("failed with exit code 3");
}

#[test]
fn a_program_that_is_not_there_is_named() {
    run(["run", "--", "/nonexistent/program"]).expect(12).says("/nonexistent/program");
}

#[test]
fn training_inside_run_gives_the_same_bits_as_alone() {
    let directory = scratch();
    let sha = |name: &str, before: &[&str], after: &[&str]| {
        let path = directory.path().join(name);
        let all =
            [before, &["train", "lr", "--epochs", "2", "--l1", "0.001", "--report", text(&path)], after];
        let ended = run(all.concat()).expect(0);
        let report: serde_json::Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        (ended, report["weights_sha256"].as_str().unwrap().to_owned(), report)
    };
    let (_, alone, _) = sha("alone", &[], &["--workers", "3"]);
    let binary = env!("CARGO_BIN_EXE_windlass");
    let run = ["run", "--servers", "3", "--workers", "3", "--threads", "2", "--", binary];
    let (ended, inside, report) = sha("inside", &run, &[]);
    assert_eq!(inside, alone);
    let settings = &report["settings"];
    assert_eq!(
        (&settings["servers"], &settings["threads"], &settings["workers"]),
        (&3.into(), &2.into(), &3.into())
    );
    let said = ended.stdout.lines().find(|line| line.starts_with("[worker 0] weights sha256"));
    assert!(said.is_some_and(|line| line.ends_with(&alone)), "{}", ended.stdout);
}

/// A program of one's own in place of `windlass server`, here one that only adds a word to its own output.
#[test]
fn another_server_program_may_be_given() {
    let directory = scratch();
    let program = directory.path().join("server");
    let script = format!(
        "#!/bin/sh\necho own server $WINDLASS_RANK\nexec {} server\n",
        env!("CARGO_BIN_EXE_windlass")
    );
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let binary = env!("CARGO_BIN_EXE_windlass");
    let ended = run([
        "run",
        "--workers",
        "2",
        "--server-cmd",
        text(&program),
        "--",
        binary,
        "train",
        "lr",
        "--epochs",
        "1",
    ]);
    let ended = ended.expect(0);
    assert!(ended.stdout.contains("[server 1] own server 1\n"), "{}", ended.stdout);
}

/// `windlass run` with its processes on two hosts, both of which are this machine.
fn over_rsh(folder: &Path, flags: &[&str], worker: &[&str]) -> Process {
    const RSH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/launchers/rsh.sh");
    let hosts = folder.join("hosts");
    fs::write(&hosts, "a\nb\n").unwrap();
    let run = ["run", "--hostfile", text(&hosts), "--rsh", RSH, "--interface", "lo"];
    let counts = ["--servers", "1", "--workers", "1"];
    let words = [&run[..], &counts, flags, &["--"], worker].concat();
    Process::start(windlass(words))
}

#[test]
fn what_a_dead_supervisor_leaves_on_other_hosts_has_time_to_end() {
    let folder = scratch();
    let (ready, ended) = (folder.path().join("ready"), folder.path().join("ended"));
    // It writes nothing: nobody would read it at the end.
    let script = "exec > /dev/null 2>&1; trap 'sleep 1; echo > \"$1\"; exit' TERM; echo > \"$0\"; while :; do sleep 1000 & wait $!; done";
    let job = over_rsh(folder.path(), &[], &["sh", "-c", script, text(&ready), text(&ended)]);
    until(PATIENCE, "the worker", || ready.exists());
    job.signal(Signal::KILL);
    until(PATIENCE, "the end of all", || job.members().is_empty());
    assert!(ended.exists(), "it was killed");
}

#[test]
fn a_batch_system_may_signal_all_processes_of_a_job_on_other_hosts_that_saves_itself() {
    let folder = scratch();
    let kept = folder.path().join("kept");
    let program = env!("CARGO_BIN_EXE_windlass");
    let flags = ["--checkpoint", text(&kept)];
    let worker = [program, "train", "lr", "--epochs", "1000000"];
    let job = over_rsh(folder.path(), &flags, &worker);
    in_the_middle(&job);
    // The supervisor last: what can't bear the signal ends before the job is told.
    let (supervisor, others): (Vec<i32>, Vec<i32>) =
        job.members().iter().map(|member| member.pid).partition(|pid| *pid == job.pid());
    others.iter().chain(&supervisor).for_each(|pid| kill(*pid, Signal::USR1));
    job.end(PATIENCE).expect(75).says("told to end: cut ");
}

#[test]
fn a_keeper_outlives_the_signals_to_a_job_but_not_its_task() {
    let mut task = Command::new("sleep").arg("1000").spawn().unwrap();
    let (connection, its_end) = UnixStream::pair().unwrap();
    let mut keeper = windlass(["keeper", "--stay", &task.id().to_string()])
        .stdin(OwnedFd::from(its_end))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = [0; 6];
    keeper.stdout.as_mut().unwrap().read_exact(&mut said).unwrap();
    assert_eq!(&said, b"ready\n");
    for signal in [Signal::HUP, Signal::INT, Signal::QUIT, Signal::TERM, Signal::USR1, Signal::USR2] {
        kill(keeper.id() as i32, signal);
    }
    task.kill().unwrap();
    task.wait().unwrap();
    assert_eq!(keeper.wait().unwrap().code(), Some(0));
    drop(connection);
}

/// Deaths and stops, which sockets and shared memory tell of in ways of their own.
#[test]
fn what_dies_or_stands_still_over_tcp_too() {
    common::these_over_tcp(&["a_killed_", "silent", "stuck", "interrupted"]);
}
