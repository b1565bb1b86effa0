//! Jobs on several hosts by a remote shell: `--hostfile`. The hosts are this machine under other names, and `rsh.sh` stands in for ssh.

use std::fs;
use std::path::Path;
use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process_group};

use super::{DEADLINE, Launcher, WINDLASS};
use crate::common::proc::{Role, alive};
use crate::common::{Ended, PATIENCE, Process, kill, run, scratch, text, until, windlass};

pub const RSH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/launchers/rsh.sh");
const ENDLESS: [&str; 5] = [WINDLASS, "train", "lr", "--epochs", "1000000"];

/// `windlass run` on these hosts, with more flags, as far as the worker's command.
fn job<'a>(folder: &'a Path, hosts: &str, flags: &[&'a str]) -> Vec<&'a str> {
    let file = folder.join("hosts");
    fs::write(&file, hosts).unwrap();
    let file = Box::leak(file.into_boxed_path()).to_str().unwrap();
    let run = [WINDLASS, "run", "--hostfile", file, "--rsh", RSH, "--interface", "lo"];
    [&run[..], flags, &["--"]].concat()
}

fn start(folder: &Path, hosts: &str, flags: &[&str], worker: &[&str]) -> Process {
    Launcher::new(&["env"], &[], folder).start(&[&job(folder, hosts, flags)[..], worker].concat())
}

/// The command line of a process, one word each.
fn words(pid: i32) -> Vec<String> {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    bytes.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect()
}

/// A process of the job of whose command line this is true.
fn find(process: &Process, wanted: impl Fn(&[String]) -> bool) -> i32 {
    let mut found = None;
    until(PATIENCE, "a process", || {
        found = process.members().into_iter().map(|member| member.pid).find(|pid| wanted(&words(*pid)));
        found.is_some()
    });
    found.unwrap()
}

/// The remote shell of a process on this host.
fn shell_to(process: &Process, host: &str) -> i32 {
    find(process, |words| words.iter().any(|word| word == RSH) && words.iter().any(|word| word == host))
}

/// Sends the supervisor itself a signal, past the time limit that it runs under.
fn tell(process: &Process, signal: Signal) {
    kill(find(process, |words| words.len() > 1 && words[0] == WINDLASS && words[1] == "run"), signal);
}

/// An endless training in its middle.
fn training(folder: &Path) -> Process {
    let process = start(folder, "a\nb\nc\n", &["--servers", "2", "--workers", "4"], &ENDLESS);
    process.until_says(", clock ");
    process
}

fn all_gone(process: Process) -> Ended {
    until(DEADLINE, "the end of all", || process.members().is_empty());
    process.end(PATIENCE)
}

#[test]
fn hosts_give_the_same_bits() {
    let folder = scratch();
    let flags = ["--servers", "2", "--servers-on", "spread", "--workers", "4"];
    let job = job(folder.path(), "a slots=2\nb:3 # more\n[::1]\n", &flags);
    let short = ["--epochs", "2"];
    let job = [&job[..], &[WINDLASS, "train", "lr"], &short].concat();
    let digest = |said: &str| {
        said.lines().find_map(|line| Some(line.split_once("weights sha256")?.1.trim().to_owned()))
    };
    let over_rsh = Launcher::new(&["env"], &[], folder.path()).run(&job).expect(0);
    let here = run([&["train", "lr"][..], &short].concat()).expect(0);
    assert!(digest(&here.stdout).is_some());
    assert_eq!(digest(&over_rsh.stdout), digest(&here.stdout));
}

#[test]
fn command_lines_folders_and_settings_arrive_as_they_are() {
    let folder = scratch();
    let odd = "a 'b' \"c\" $HOME `d` \\ ; & | * ~ !\n\t(é)";
    let script = "printf '<%s>\\n' \"$1\" \"$2\" \"$PWD\" \"$WINDLASS_PEER_TIMEOUT $WINDLASS_SIMD $WINDLASS_INTERFACE\"; \
         exec \"$0\" train lr --epochs 1";
    let worker = ["sh", "-c", script, WINDLASS, odd, ""];
    let flags = ["--servers", "1", "--workers", "2", "--peer-timeout", "37"];
    let said = [("WINDLASS_SIMD", "scalar")];
    let job = [&job(folder.path(), "a\nb\n", &flags)[..], &worker].concat();
    let ended = Launcher::new(&["env"], &said, folder.path()).run(&job).expect(0);
    let here = fs::canonicalize(folder.path()).unwrap();
    for rank in 0..2 {
        let mark = format!("[worker {rank}] ");
        let lines: Vec<&str> = ended.stdout.lines().filter_map(|line| line.strip_prefix(&mark)).collect();
        let said = lines.join("\n");
        let expected = format!("<{odd}>\n<>\n<{}>\n<37 scalar 127.0.0.1>", text(&here));
        assert!(said.starts_with(&expected), "{said}");
    }
}

#[test]
fn who_fails_is_named_with_his_host_and_his_exit_code_is_ours() {
    let folder = scratch();
    let fails = "[ $WINDLASS_RANK = 1 ] || exec sleep 1000; echo so it ends >&2; exit 7";
    let flags = ["--servers", "1", "--workers", "2"];
    let ended = start(folder.path(), "a\nb\nc\n", &flags, &["sh", "-c", fails]).end(PATIENCE).expect(7);
    ended
        .says("[worker 1] so it ends\n")
        .says("worker 1 on c failed with exit code 7; stopping the others\n");
    let killed = "[ $WINDLASS_RANK = 1 ] || exec sleep 1000; kill -9 $$";
    let ended = start(folder.path(), "a\nb\nc\n", &flags, &["sh", "-c", killed]).end(PATIENCE).expect(137);
    ended.says("worker 1 on c was killed by signal 9 (SIGKILL)");
    let ended = start(folder.path(), "a\nb\nc\n", &flags, &["/nosuch/program"]).end(PATIENCE).expect(12);
    ended.says("start (worker 0 on b: /nosuch/program)");
}

#[test]
fn the_secret_stands_on_no_command_line() {
    let folder = scratch();
    let process = training(folder.path());
    let worker = process.member(Role::Worker, 0);
    let environment = fs::read_to_string(format!("/proc/{worker}/environ")).unwrap();
    let secret = environment.split('\0').find_map(|pair| pair.strip_prefix("WINDLASS_SECRET=")).unwrap();
    assert_eq!(secret.len(), 64);
    let lines: Vec<String> =
        process.members().into_iter().map(|member| words(member.pid).join(" ")).collect();
    // The supervisor, its guard; for each process a shell, what reads for it, our side and its guard, and itself.
    assert!(lines.len() >= 2 + 6 * 4, "{lines:#?}");
    assert!(lines.iter().all(|line| !line.contains(secret)), "{lines:#?}");
    tell(&process, Signal::TERM);
    all_gone(process).expect(143);
}

#[test]
fn signals_to_the_supervisor_end_all() {
    let folder = scratch();
    for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        let process = training(folder.path());
        tell(&process, signal);
        process.end(DEADLINE).expect(code);
    }
}

#[test]
fn a_job_that_is_told_to_end_saves_itself() {
    let folder = scratch();
    let cuts = folder.path().join("cuts");
    let flags = ["--servers", "2", "--workers", "4", "--checkpoint", text(&cuts)];
    let process = start(folder.path(), "a\nb\nc\n", &flags, &ENDLESS);
    process.until_says(", clock ");
    tell(&process, Signal::TERM);
    all_gone(process).expect(75).says("told to end: cut ");
    run(["checkpoint", "verify", text(&cuts)]).expect(0);
}

#[test]
fn what_a_signal_lets_a_process_say_still_arrives() {
    let folder = scratch();
    let script = "trap 'echo put away; exit 3' TERM; echo here >&2; while :; do sleep 0.01; done";
    let process =
        start(folder.path(), "a\nb\n", &["--servers", "1", "--workers", "1"], &["sh", "-c", script]);
    process.until_says("here");
    tell(&process, Signal::TERM);
    let ended = process.end(PATIENCE).expect(143);
    assert!(ended.stdout.contains("[worker 0] put away\n"), "{}", ended.stdout);
}

#[test]
fn nothing_outlives_whatever_dies() {
    let folder = scratch();
    // The supervisor.
    let process = training(folder.path());
    tell(&process, Signal::KILL);
    all_gone(process).expect(137);
    // A remote shell, with what it relays by: its connection.
    let process = training(folder.path());
    let shell = shell_to(&process, "b");
    kill_process_group(Pid::from_raw(shell).unwrap(), Signal::KILL).unwrap();
    all_gone(process).expect(137).says(" on b was killed by signal 9 (SIGKILL)");
    // Our side of a remote shell.
    let process = training(folder.path());
    let remote = find(&process, |words| words.len() > 1 && words[1] == "remote");
    kill(remote, Signal::KILL);
    all_gone(process).expect(137).says(" was killed by signal 9 (SIGKILL)");
    // A process itself.
    let process = training(folder.path());
    kill(process.member(Role::Worker, 3), Signal::KILL);
    all_gone(process).expect(137).says("worker 3 on c was killed by signal 9 (SIGKILL)");
}

/// A descendant that has left its session, on a host whose remote shell is lost.
#[test]
fn daemonised_descendants_end_with_their_host() {
    let folder = scratch();
    let script = "setsid sh -c 'echo daemon $$ >&2; exec sleep 1000 >/dev/null 2>&1' & wait";
    let process =
        start(folder.path(), "a\nb\n", &["--servers", "1", "--workers", "1"], &["sh", "-c", script]);
    let daemon: i32 = process.until_says("daemon ").parse().unwrap();
    kill_process_group(Pid::from_raw(shell_to(&process, "b")).unwrap(), Signal::KILL).unwrap();
    until(DEADLINE, "the daemon's end", || !alive(daemon));
    all_gone(process).expect(137);
}

#[test]
fn a_host_that_refuses_or_is_silent_is_named_within_seconds() {
    let folder = scratch();
    let begun = Instant::now();
    let flags = ["--servers", "1", "--workers", "2"];
    let ended = start(folder.path(), "a\nb\nnowhere\n", &flags, &ENDLESS).end(PATIENCE).expect(255);
    ended
        .says("[worker 1] rsh.sh: connect to host nowhere: No route to host\n")
        .says("windlass run: worker 1 on nowhere failed with exit code 255; stopping the others\n");
    assert!(begun.elapsed() < DEADLINE, "{:?}", begun.elapsed());
    let begun = Instant::now();
    let flags = [&flags[..], &["--launch-timeout", "3", "--stop-timeout", "1"]].concat();
    let ended = start(folder.path(), "a\nb\nsilent\n", &flags, &ENDLESS).end(PATIENCE).expect(13);
    ended.says("timed out after 3s waiting for rank 2 on silent of 3 to check in at 127.0.0.1:");
    assert!(begun.elapsed() < DEADLINE, "{:?}", begun.elapsed());
    // No remote shell at all.
    let file = folder.path().join("hosts");
    let nosuch =
        ["run", "--hostfile", text(&file), "--rsh", "nosuch-shell -x", "--interface", "lo", "--", "true"];
    run(nosuch).expect(127).says(" failed with exit code 127").says("nosuch-shell: not found");
}

#[test]
fn what_can_not_be_is_refused_before_anything_starts() {
    let folder = scratch();
    let refused = |hosts: &str, flags: &[&str], code: i32, said: &str| {
        let _ = start(folder.path(), hosts, flags, &["true"]).end(PATIENCE).expect(code).says(said);
    };
    let six = ["--servers", "2", "--workers", "4"];
    refused("a slots=2\nb\n", &six, 11, "--hostfile: expected slots for 6 processes, found 3: a 2, b 1");
    refused("a\n-oProxyCommand=x\n", &[], 11, "hosts:2: expected hosts such as n1");
    refused("a\n", &["--servers", "0"], 11, "--servers: expected 1 to 1024, found 0");
    refused("a\n", &["--launcher", "mpi"], 11, "--launcher: expected ssh, or auto");
    refused("a\n", &["--servers-on", "0,9"], 11, "--servers-on: expected 2 ranks (--servers) of 0 to 5");
    refused("a\n", &["--rendezvous", "x"], 2, "cannot be used with");
    run(["run", "--hostfile", "/nosuch/file", "--", "true"]).expect(12).says("read (/nosuch/file)");
    run(["run", "--launcher", "ssh", "--", "true"])
        .expect(11)
        .says("--hostfile: expected a file that lists hosts");
    run(["run", "--rsh", "ssh", "--", "true"]).expect(2).says("--hostfile");
    let file = folder.path().join("hosts");
    let mut task = windlass(["run", "--hostfile", text(&file), "--", "true"]);
    task.envs([("WINDLASS_TASK", "0"), ("WINDLASS_TASKS", "2")]);
    Process::start(task)
        .end(PATIENCE)
        .expect(11)
        .says("a process that no launcher started, or --launcher ssh");
    // Its own input is what tells it what to do.
    Process::start(windlass(["remote"])).end(PATIENCE).expect(11).says("an order of windlass run --hostfile");
}
