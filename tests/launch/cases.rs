//! What the tree promises, one case each.

use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use windlass::launch::{Tree, TreeConfig, new_job};

use crate::rig::{
    PATIENCE, Supervisor, alive, carriers, children, command, kill, mentioning, run, status, until, within,
};

type Case = (&'static str, fn());

macro_rules! cases {
    ($($name:ident),* $(,)?) => { pub const ALL: &[Case] = &[$((stringify!($name), $name)),*]; };
}

cases![
    lines_carry_the_name_of_their_child,
    much_output_arrives_whole,
    an_exit_code_is_kept_and_the_others_are_stopped,
    a_kill_is_named_even_if_a_peer_fails_first,
    others_may_report_before_they_are_stopped,
    who_ignores_sigterm_is_killed,
    a_server_lives_until_the_workers_are_done,
    a_server_that_ends_early_is_a_failure,
    a_finished_job_lets_servers_end_first,
    the_handle_stops_the_tree,
    a_signal_to_the_supervisor_stops_the_tree,
    a_stopped_child_is_ended_too,
    a_killed_supervisor_leaves_nothing,
    a_killed_supervisor_in_the_middle_of_stopping_leaves_nothing,
    without_a_guard_the_kernel_ends_the_children,
    daemonised_descendants_are_ended,
    children_get_no_descriptors_of_ours,
    a_reader_that_leaves_stops_the_tree,
    a_reader_that_stalls_does_not_keep_the_tree_from_stopping,
    ignored_sigchld_loses_no_exit_code,
    a_second_tree_catches_signals_too,
    after_the_tree_signals_have_their_usual_effect,
    a_tree_within_a_tree_goes_with_it,
    a_supervisor_killed_while_it_starts_leaves_nothing,
    a_program_that_is_missing_is_named,
    a_guard_that_is_none_is_refused,
];

/// A process that lives until it is ended.
const STAY: &str = "exec sleep 1000";

fn lines_carry_the_name_of_their_child() {
    let ended = run(&[
        "server=echo serving; sleep 0.01",
        "worker=echo $GREETING; printf 'no end'",
        "worker=echo one; echo two; echo three >&2; printf '\\377\\n'",
        "raw=printf 'as it is\\n'",
    ]);
    assert_eq!(ended.status.code(), Some(0), "{}", ended.stderr);
    for line in [
        "[server 0] serving\n",
        "[worker 0] hello\n",
        "[worker 0] no end\n",
        "[worker 1] one\n",
        "[worker 1] two\n",
    ] {
        assert!(ended.stdout.contains(line), "{line:?} is not in {:?}", ended.stdout);
    }
    assert!(ended.stdout.lines().any(|line| line == "as it is"));
    assert_eq!(ended.stderr, "[worker 1] three\n");
}

fn much_output_arrives_whole() {
    let script = "worker=i=0; while [ $i -lt 20000 ]; do echo line $i of many; i=$((i+1)); done";
    let ended = run(&[script, script]);
    assert_eq!(ended.status.code(), Some(0));
    for rank in 0..2 {
        let prefix = format!("[worker {rank}] ");
        let lines: Vec<&str> = ended.stdout.lines().filter_map(|line| line.strip_prefix(&prefix)).collect();
        let expected: Vec<String> = (0..20000).map(|i| format!("line {i} of many")).collect();
        assert!(lines == expected, "worker {rank}: {} lines, the first {:?}", lines.len(), lines.first());
    }
}

fn an_exit_code_is_kept_and_the_others_are_stopped() {
    let ended = run(&["report=10", &server(), &worker(STAY), "worker=exit 7"]);
    assert_eq!(ended.status.code(), Some(7));
    assert!(ended.stderr.starts_with("run: worker 1 (pid "), "{}", ended.stderr);
    assert!(ended.stderr.ends_with("failed with exit code 7; stopping the others\n"), "{}", ended.stderr);
}

fn a_kill_is_named_even_if_a_peer_fails_first() {
    // The worker notices by the end of a pipe between them, as a real one does by the end of its connection.
    let directory = tempfile::tempdir().unwrap();
    let pipe = directory.path().join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let tree = Supervisor::start(&[
        "report=10",
        &format!("server=exec 3>{}; echo pid $$; exec sleep 1000", pipe.display()),
        &format!("worker=read -r line <{}; exit 1", pipe.display()),
    ]);
    let server = tree.number("[server 0] pid ");
    kill(server, Signal::KILL);
    let ended = tree.end();
    assert_eq!(ended.status.code(), Some(137));
    let named = format!("run: server 0 (pid {server}) was killed by signal 9 (SIGKILL)");
    assert!(ended.stderr.starts_with(&named), "{}", ended.stderr);
}

fn others_may_report_before_they_are_stopped() {
    let ended = run(&["report=1500", "worker=exit 3", "worker=sleep 0.6; echo lost worker 0 >&2; exit 1"]);
    assert_eq!(ended.status.code(), Some(3));
    assert!(ended.stderr.contains("[worker 1] lost worker 0\n"), "{}", ended.stderr);
}

fn who_ignores_sigterm_is_killed() {
    let tree = Supervisor::start(&[
        "report=10",
        "grace=200",
        "worker=trap '' TERM; echo ready; while :; do sleep 0.05; done",
    ]);
    tree.until_says("ready");
    tree.signal(Signal::TERM);
    let ended = tree.end();
    assert_eq!(ended.status.code(), Some(143));
    assert_eq!(ended.stderr, "run: received SIGTERM; stopping\n");
}

fn a_server_lives_until_the_workers_are_done() {
    let started = Instant::now();
    let server = "server=trap 'echo stopped; exit 0' TERM; while :; do sleep 0.01; done";
    let ended = run(&["grace=150", server, "worker=sleep 0.5; echo worked"]);
    assert_eq!(ended.status.code(), Some(0), "{}", ended.stderr);
    assert!(started.elapsed() >= Duration::from_millis(650));
    assert_eq!(ended.stdout, "[worker 0] worked\n[server 0] stopped\n");
    assert!(
        ended.stderr.contains("server 0 (pid ") && ended.stderr.contains("did not end within"),
        "{}",
        ended.stderr
    );
}

fn a_server_that_ends_early_is_a_failure() {
    let ended = run(&["report=10", "server=exit 0", &worker(STAY)]);
    assert_eq!(ended.status.code(), Some(1));
    assert!(ended.stderr.contains("server 0 (pid ") && ended.stderr.contains("ended before the workers did"));
}

fn a_finished_job_lets_servers_end_first() {
    let mut tree = Supervisor::start(&["server=echo here; sleep 0.1", "worker=sleep 1; echo reported"]);
    tree.call("finished");
    let ended = tree.end();
    assert_eq!(ended.status.code(), Some(0), "{}", ended.stderr);
    assert!(ended.stdout.contains("[worker 0] reported"));
}

fn the_handle_stops_the_tree() {
    let mut tree = Supervisor::start(&["report=10", &server(), "worker=echo here; exec sleep 1000"]);
    tree.until_says("here");
    tree.call("stop 9 lost worker 0: silent for 5 s");
    let ended = tree.end();
    assert_eq!(ended.status.code(), Some(9));
    assert_eq!(ended.stderr, "run: lost worker 0: silent for 5 s; stopping the others\n");
}

fn a_signal_to_the_supervisor_stops_the_tree() {
    for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143), (Signal::HUP, 129)] {
        let tree = Supervisor::start(&[&server(), "worker=echo here; exec sleep 1000"]);
        tree.until_says("here");
        tree.signal(signal);
        assert_eq!(tree.end().status.code(), Some(code));
    }
}

fn a_stopped_child_is_ended_too() {
    let tree = Supervisor::start(&[
        "worker=trap 'echo continued; exit 0' TERM; echo pid $$; while :; do sleep 0.01; done",
    ]);
    kill(tree.number("pid "), Signal::STOP);
    tree.signal(Signal::TERM);
    let ended = tree.end();
    assert_eq!(ended.status.code(), Some(143));
    assert!(ended.stdout.contains("continued"), "{}", ended.stdout);
}

/// A worker with a child in its own group that has no environment, one in a session of its own, and one that has a
/// session and has closed everything.
const FAMILY: &str = "env -i sleep 1000 & echo bare $!; setsid sleep 1000 & echo session $!; \
    setsid sh -c 'exec sleep 1000 </dev/null >/dev/null 2>&1' & echo daemon $!; echo pid $$; wait";

fn a_killed_supervisor_leaves_nothing() {
    let tree = Supervisor::start(&["server=echo server $$; exec sleep 1000", &worker(FAMILY)]);
    let family = ["server ", "bare ", "session ", "daemon "].map(|label| tree.sleeper(&format!("] {label}")));
    let guard = guard(&tree);
    // Users and batch systems signal every process that they find.
    for signal in [Signal::HUP, Signal::INT, Signal::QUIT, Signal::TERM, Signal::USR1, Signal::USR2] {
        kill(guard, signal);
    }
    tree.signal(Signal::KILL);
    within(Duration::from_secs(5), "the family's end", || {
        !family.iter().chain([&guard]).any(|&pid| alive(pid))
    });
    assert_eq!(carriers(&tree.job), Vec::<i32>::new());
    tree.end();
}

/// The one child of the supervisor that does not carry the job's marker.
fn guard(tree: &Supervisor) -> i32 {
    let mut unmarked = children(tree.pid());
    unmarked.retain(|pid| !carriers(&tree.job).contains(pid));
    assert_eq!(unmarked.len(), 1, "{unmarked:?}");
    unmarked[0]
}

fn without_a_guard_the_kernel_ends_the_children() {
    let tree = Supervisor::start(&[&server(), "worker=echo pid $$; exec sleep 1000"]);
    let worker = tree.number("pid ");
    kill(guard(&tree), Signal::KILL);
    tree.signal(Signal::KILL);
    within(Duration::from_secs(5), "the children's end", || !alive(worker) && carriers(&tree.job).is_empty());
}

fn a_killed_supervisor_in_the_middle_of_stopping_leaves_nothing() {
    let deaf = format!("trap '' TERM; {FAMILY}; wait");
    let tree = Supervisor::start(&[&worker(&deaf)]);
    tree.number("] pid ");
    tree.signal(Signal::TERM);
    tree.signal(Signal::KILL);
    within(Duration::from_secs(5), "the family's end", || carriers(&tree.job).is_empty());
    tree.end();
}

fn daemonised_descendants_are_ended() {
    // The worker ends when the test has seen its family.
    let tree = Supervisor::start(&[&worker(
        &FAMILY.replace("wait", "trap 'exit 0' USR1; while :; do sleep 0.01; done"),
    )]);
    let left = ["bare ", "session ", "daemon "].map(|label| tree.sleeper(label));
    kill(tree.number("pid "), Signal::USR1);
    assert_eq!(tree.end().status.code(), Some(0));
    within(Duration::from_secs(1), "their end", || !left.iter().any(|&pid| alive(pid)));
}

fn children_get_no_descriptors_of_ours() {
    // What the test itself was started with is not ours; the supervisor's parent has it too.
    let inherited =
        String::from_utf8(Command::new("/bin/ls").arg("/proc/self/fd").output().unwrap().stdout).unwrap();
    let ended = run(&["grace=10", &server(), "raw=exec /bin/ls /proc/self/fd", &worker("sleep 0.1")]);
    assert_eq!(ended.stdout, inherited);
    assert!(inherited.lines().count() >= 3, "{inherited}");
}

fn a_reader_that_leaves_stops_the_tree() {
    let job = new_job().unwrap();
    let mut supervisor = command(&job, &["worker=while :; do echo again; sleep 0.01; done"]).spawn().unwrap();
    drop(supervisor.stdout.take());
    assert_eq!(status(&mut supervisor, PATIENCE).code(), Some(141));
    assert_eq!(carriers(&job), Vec::<i32>::new());
}

fn a_reader_that_stalls_does_not_keep_the_tree_from_stopping() {
    let job = new_job().unwrap();
    let mut supervisor =
        command(&job, &["report=10", "grace=200", "worker=yes >&2 & exec yes"]).spawn().unwrap();
    // Nobody reads: the pipe fills up, then the queue, then the children's pipes.
    let pipe = supervisor.stdout.as_ref().unwrap();
    until("a full pipe", || rustix::io::ioctl_fionread(pipe).unwrap() > 60_000);
    supervisor.stdin.as_mut().unwrap().write_all(b"stop 9 enough\n").unwrap();
    assert_eq!(status(&mut supervisor, Duration::from_secs(5)).code(), Some(9));
    assert_eq!(carriers(&job), Vec::<i32>::new());
}

fn ignored_sigchld_loses_no_exit_code() {
    let tree = command(&new_job().unwrap(), &["worker=exit 7"]);
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", "trap '' CHLD; exec \"$0\" \"$@\""]).arg(tree.get_program()).args(tree.get_args());
    let status = shell.stdin(Stdio::null()).stderr(Stdio::null()).status().unwrap();
    assert_eq!(status.code(), Some(7));
}

fn a_second_tree_catches_signals_too() {
    let tree = Supervisor::start(&["again=", "worker=echo here; exec sleep 1000"]);
    tree.until_says("here");
    tree.signal(Signal::TERM);
    assert_eq!(tree.end().status.code(), Some(143));
}

fn after_the_tree_signals_have_their_usual_effect() {
    let tree = Supervisor::start(&["linger=", "worker=exit 0"]);
    tree.until_says("over");
    tree.signal(Signal::TERM);
    assert_eq!(tree.end().status.signal(), Some(15));
}

fn a_tree_within_a_tree_goes_with_it() {
    let inner = new_job().unwrap();
    let tree = command(&inner, &[]);
    let program = tree.get_program().to_str().unwrap();
    // The inner worker's child has a session of its own: only the inner job's marker leads to it.
    let script = "setsid sleep 1000 & echo inner pid $!; wait";
    let outer =
        Supervisor::start(&[&worker(&format!("exec '{program}' supervisor {inner} 'worker={script}'"))]);
    let innermost = outer.sleeper("inner pid ");
    // Only the inner supervisor: an inner guard among them would be swept before it could do its work.
    assert_eq!(carriers(&outer.job).len(), 1);
    outer.signal(Signal::KILL);
    within(Duration::from_secs(5), "the inner tree's end", || !alive(innermost));
    within(Duration::from_secs(5), "the rest's end", || {
        carriers(&inner).is_empty() && carriers(&outer.job).is_empty()
    });
}

fn a_supervisor_killed_while_it_starts_leaves_nothing() {
    for delay in 0..40 {
        let job = new_job().unwrap();
        // The number tells the processes of this round, also those without an environment.
        let number = format!("1000.{:010}", u32::from_str_radix(&job[..8], 16).unwrap());
        let family = worker(&FAMILY.replace("1000", &number));
        let mut supervisor = command(&job, &[&server(), &family, &family, &family]).spawn().unwrap();
        // No synchronisation: the delays spread the kill over the start, whatever the speed of the machine.
        std::thread::sleep(Duration::from_micros(delay * 400));
        supervisor.kill().unwrap();
        supervisor.wait().unwrap();
        within(Duration::from_secs(5), "the tree's end", || {
            carriers(&job).is_empty() && mentioning(&number).is_empty()
        });
    }
}

fn a_program_that_is_missing_is_named() {
    let ended = run(&[&server(), "worker=missing program"]);
    assert_eq!(ended.status.code(), Some(99));
    assert!(ended.stderr.contains("start (worker 0: /nowhere/program)"), "{}", ended.stderr);
}

fn a_guard_that_is_none_is_refused() {
    let config = TreeConfig::new("run", new_job().unwrap(), vec!["/bin/echo".into(), "hello!".into()]);
    let error = Tree::new(config).unwrap().run(&[crate::worker("worker 0", "exit 0")]).unwrap_err();
    assert!(error.to_string().contains("start the guard (/bin/echo)"), "{error}");
}

fn server() -> String {
    format!("server={STAY}")
}

fn worker(script: &str) -> String {
    format!("worker={script}")
}
