//! A job started by hand, process by process, and the strangers that it does not let in.

#![allow(clippy::unwrap_used)] // in a test a failure is a panic

mod common;

use std::fs::{self, Permissions};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::proc::listeners;
use common::{Ended, PATIENCE, Process, kill, run, scratch, text, until, windlass};
use rustix::process::Signal;
use windlass::config::Network;
use windlass::{Client, ClientConfig, Error, KeyRange, Secret, Server, Table, TableSpec};

/// A coordinator and what the others need to reach it.
struct Job {
    directory: tempfile::TempDir,
    coordinator: Process,
    address: String,
    secret: PathBuf,
}

/// A fresh secret in a file with this mode.
fn secret_file(directory: &Path, name: &str, mode: u32) -> PathBuf {
    let path = directory.join(name);
    fs::write(&path, run(["secret"]).expect(0).stdout).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
    path
}

impl Job {
    fn start(extra: &[&str]) -> Job {
        let directory = scratch();
        let secret = secret_file(directory.path(), "secret", 0o600);
        let arguments = ["coordinator", "--listen", "127.0.0.1:0", "--secret-file", text(&secret)];
        let coordinator = Process::start(windlass(arguments.into_iter().chain(extra.iter().copied())));
        let address = coordinator.until_says("windlass coordinator: listening on ");
        Job { directory, coordinator, address, secret }
    }

    /// Starts a command that takes part in the job with this secret.
    fn with_secret(&self, command: &[&str], secret: &Path, extra: &[&str]) -> Process {
        let node = ["--coordinator", &self.address, "--secret-file", text(secret)];
        let mut command = windlass([command, &node, extra].concat());
        command.env("WINDLASS_LOG", "info");
        Process::start(command)
    }

    fn server(&self, extra: &[&str]) -> Process {
        self.with_secret(&["server"], &self.secret, extra)
    }

    /// A worker in this process.
    fn client(&self, rank: u32, workers: u32) -> Client {
        let secret = Secret::from_file(&self.secret).unwrap();
        let mut config = ClientConfig::new(&self.address, secret, rank, workers);
        config.network.transport = common::transport();
        Client::connect(config).unwrap()
    }

    /// Worker `rank` of 3.
    fn worker(&self, rank: &str, extra: &[&str]) -> Process {
        let arguments = [&["--rank", rank, "--workers", "3"], extra].concat();
        self.with_secret(&["train", "lr", "--l1", "0.001"], &self.secret, &arguments)
    }

    fn report(&self) -> PathBuf {
        self.directory.path().join("report.json")
    }

    fn sha256(&self) -> String {
        sha256(&self.report())
    }
}

fn sha256(report: &Path) -> String {
    let report: serde_json::Value = serde_json::from_slice(&fs::read(report).unwrap()).unwrap();
    report["weights_sha256"].as_str().unwrap().to_owned()
}

/// What three workers learn in so many epochs, whatever the servers.
fn expected(epochs: &str) -> String {
    let directory = scratch();
    let report = directory.path().join("report");
    let arguments = ["train", "lr", "--l1", "0.001", "--workers", "3", "--servers", "1", "--epochs", epochs];
    run(arguments.into_iter().chain(["--report", text(&report)])).expect(0);
    sha256(&report)
}

/// All end well.
fn end(processes: impl IntoIterator<Item = Process>) -> Vec<Ended> {
    processes.into_iter().map(|process| process.end(PATIENCE).expect(0)).collect()
}

#[test]
fn processes_started_one_by_one_give_the_same_bits() {
    let job = Job::start(&["--servers", "2", "--workers", "3"]);
    // Ports below those that the system gives out; the width leaves room for what else runs here.
    let ports = 20_000 + (std::process::id() % 100) as u16 * 100;
    let range = format!("{ports}-{}", ports + 99);
    let first = job.server(&["--interface", "lo", "--threads", "2", "--port-range", &range]);
    let second = job.server(&["--rank", "1"]);
    let report = job.report();
    let workers = [
        job.worker("2", &["--epochs", "2"]),
        job.worker("0", &["--epochs", "2", "--interface", "lo", "--report", text(&report)]),
        job.worker("1", &["--epochs", "2"]),
    ];
    // One port for control and one for each thread.
    until(PATIENCE, "the first server's sockets", || listeners([first.pid()]).len() == 3);
    for listener in listeners([first.pid()]) {
        assert!((ports..=ports + 99).contains(&listener.port), "{listener:?} is not in {range}");
    }
    end(workers);
    end([first, second]);
    assert_eq!(job.sha256(), expected("2"));
    let report: serde_json::Value = serde_json::from_slice(&fs::read(job.report()).unwrap()).unwrap();
    let held: Vec<Vec<u64>> = serde_json::from_value(report["bytes_per_server"].clone()).unwrap();
    assert_eq!(held.iter().map(Vec::len).collect::<Vec<_>>(), [2, 1]);
    let ended = job.coordinator.end(PATIENCE).expect(0);
    ended.says("done, with 2 servers, 3 workers, 1 tables");
}

/// Nothing but ps-lite's variables and the secret.
#[test]
fn a_job_that_knows_only_the_variables_of_ps_lite_gives_the_same_bits() {
    let directory = scratch();
    let secret = run(["secret"]).expect(0).stdout.trim().to_owned();
    let start = |role: &str, port: &str, arguments: &[&str], rank: Option<(&str, &str)>| {
        let mut command = windlass(arguments.iter().copied());
        command.env("WINDLASS_SECRET", &secret).env("DMLC_ROLE", role).envs(rank);
        command.envs([("DMLC_PS_ROOT_URI", "127.0.0.1"), ("DMLC_PS_ROOT_PORT", port)]);
        command.envs([("DMLC_NUM_SERVER", "2"), ("DMLC_NUM_WORKER", "3"), ("DMLC_INTERFACE", "lo")]);
        Process::start(command)
    };
    let coordinator = start("scheduler", "0", &["coordinator"], None);
    let address = coordinator.until_says("windlass coordinator: listening on ");
    let port = address.rsplit(':').next().unwrap();
    let servers = ["1", "0"].map(|rank| start("server", port, &["server"], Some(("DMLC_SERVER_ID", rank))));
    let report = directory.path().join("report.json");
    let train = ["train", "lr", "--l1", "0.001", "--epochs", "2", "--report", text(&report)];
    let workers = [("DMLC_WORKER_ID", "1"), ("DMLC_TASK_ID", "0"), ("DMLC_WORKER_ID", "2")]
        .map(|rank| start("worker", port, &train, Some(rank)));
    end(workers);
    end(servers);
    assert_eq!(sha256(&report), expected("2"));
    coordinator.end(PATIENCE).expect(0).says("done, with 2 servers, 3 workers, 1 tables");
}

/// The number of workers comes from the first of them when the coordinator was not told.
#[test]
fn the_coordinator_need_not_be_told_how_many_workers_there_are() {
    let job = Job::start(&[]);
    let report = job.report();
    let workers = ["0", "1", "2"].map(|rank| match rank {
        "0" => job.worker(rank, &["--epochs", "1", "--report", text(&report)]),
        _ => job.worker(rank, &["--epochs", "1"]),
    });
    let server = job.server(&[]);
    end(workers);
    end([server, job.coordinator]);
}

#[test]
fn strangers_with_another_secret_are_refused_by_name_and_the_run_goes_on() {
    const EPOCHS: &str = "6";
    let job = Job::start(&["--servers", "1", "--workers", "3"]);
    let wrong = secret_file(job.directory.path(), "wrong", 0o600);
    let refused = |command: &[&str], extra: &[&str], name: &str| {
        let stranger = job.with_secret(command, &wrong, extra);
        let pid = stranger.pid();
        stranger.end(PATIENCE).expect(15).says("refused").says("secret");
        // The coordinator's log says who it was.
        let line = job.coordinator.until_line(&format!("pid {pid})"));
        assert!(line.contains(&format!("{name} (")) && line.contains("secret"), "{name}: {line}");
    };
    let late_worker = ["--rank", "1", "--workers", "3"];
    // Before anybody is there, while they gather, and in the middle.
    refused(&["server"], &[], "server");
    let server = job.server(&[]);
    let report = job.report();
    let mut first = job.worker("0", &["--epochs", EPOCHS, "--report", text(&report)]);
    refused(&["train", "lr"], &late_worker, "worker 1");
    let others = [job.worker("1", &["--epochs", EPOCHS]), job.worker("2", &["--epochs", EPOCHS])];
    // The job begins. It can't end while one worker is stopped.
    server.until_line("server 0: 1 servers, 3 workers");
    others[1].signal(Signal::STOP);
    refused(&["server"], &["--rank", "0"], "server 0");
    refused(&["train", "lr"], &late_worker, "worker 1");
    let mut noise = TcpStream::connect(&job.address).unwrap();
    std::io::Write::write_all(&mut noise, b"GET / HTTP/1.1\r\n\r\n").unwrap();
    assert!(first.runs());
    others[1].signal(Signal::CONT);
    end([first]);
    end(others);
    end([server, job.coordinator]);
    let report: serde_json::Value = serde_json::from_slice(&fs::read(report).unwrap()).unwrap();
    assert_eq!(report["weights_sha256"], expected(EPOCHS));
}

/// Knowing the secret is not enough where there is no place.
#[test]
fn who_has_no_place_in_the_job_is_told_why() {
    let job = Job::start(&["--servers", "1", "--workers", "3"]);
    let server = job.server(&[]);
    let first = job.worker("0", &["--epochs", "1"]);
    let joined = |process: &Process| listeners([process.pid()]).len() == 2;
    until(PATIENCE, "the server", || joined(&server));
    let refused = |command: &[&str], extra: &[&str], why: &str| {
        job.with_secret(command, &job.secret, extra).end(PATIENCE).expect(15).says(why);
    };
    refused(&["train", "lr"], &["--rank", "1", "--workers", "4"], "says 4 workers, the job has 3");
    refused(&["server"], &["--rank", "1"], "server rank 1 of a job with 1 servers");
    let bad_rank = job.with_secret(&["train", "lr"], &job.secret, &["--rank", "3", "--workers", "3"]);
    bad_rank.end(PATIENCE).expect(11).says("rank: expected 0 to 2, found 3");
    end([first, job.worker("2", &["--epochs", "1"]), job.worker("1", &["--epochs", "1"])]);
    end([server, job.coordinator]);
}

/// Kills one of a job in the middle; every other process ends soon and names it.
fn killed_by_hand(name: &str, choose: impl Fn(&mut Vec<Process>, &mut Vec<Process>) -> Process) {
    let job = Job::start(&["--servers", "2", "--workers", "3"]);
    let mut servers = vec![job.server(&["--rank", "0"]), job.server(&["--rank", "1"])];
    let mut workers: Vec<Process> =
        ["0", "1", "2"].map(|rank| job.worker(rank, &["--epochs", "1000000"])).into();
    workers[0].until_line(", clock ");
    let victim = choose(&mut servers, &mut workers);
    let pid = victim.pid();
    victim.signal(Signal::KILL);
    let started = Instant::now();
    for survivor in servers.into_iter().chain(workers).chain([job.coordinator]) {
        let ended = survivor.end(PATIENCE);
        assert!([14, 19].contains(&ended.code), "{ended:?}");
        ended.says(&format!("{name} (")).says(&format!("pid {pid})"));
    }
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    victim.end(PATIENCE).expect(137);
}

#[test]
fn a_worker_killed_by_hand_is_named_by_all_the_others() {
    killed_by_hand("worker 2", |_, workers| workers.remove(2));
}

#[test]
fn a_server_killed_by_hand_is_named_by_all_the_others() {
    killed_by_hand("server 1", |servers, _| servers.remove(1));
}

#[test]
fn a_server_that_gets_sigterm_in_mid_job_ends_well_and_is_named_by_all_the_others() {
    let job = Job::start(&["--servers", "2", "--workers", "3"]);
    let rest = job.server(&["--rank", "0"]);
    // Long, since a busy machine may take its time; a server that waits for it in vain would say so.
    let leaving = job.server(&["--rank", "1", "--stop-timeout", "60"]);
    let workers = ["0", "1", "2"].map(|rank| job.worker(rank, &["--epochs", "1000000"]));
    workers[0].until_line(", clock ");
    leaving.signal(Signal::TERM);
    let ended = leaving.end(PATIENCE).expect(0).says("told to stop");
    assert!(!ended.stderr.contains("could be answered"), "{}", ended.stderr);
    for survivor in workers.into_iter().chain([rest, job.coordinator]) {
        survivor.end(PATIENCE).expect(19).says("server 1 (").says("told to stop");
    }
}

/// A server and two workers in this process: worker 0 waits for what both push in their first clock.
fn one_waits(stop_timeout: &str) -> (Job, Process, [Client; 2], [Table; 2], windlass::Ticket) {
    let job = Job::start(&["--servers", "1", "--workers", "2"]);
    let server = job.server(&["--stop-timeout", stop_timeout]);
    let clients = std::thread::scope(|scope| {
        [0, 1]
            .map(|rank| {
                scope.spawn({
                    let job = &job;
                    move || job.client(rank, 2)
                })
            })
            .map(|thread| thread.join().unwrap())
    });
    let spec = TableSpec::dense("w", &[1000]).optimizer(windlass::types::OptimizerSpec::sum());
    let spec = spec.aggregate(windlass::types::Aggregate::Sum);
    let tables = [0, 1].map(|worker: usize| clients[worker].table(&spec).unwrap());
    let ticket = tables[0].push_pull_range(KeyRange::new(0, 1000).unwrap(), &[1.0; 1000]).unwrap();
    clients[0].clock().unwrap();
    // The mark came behind the pull.
    until(PATIENCE, "the server to have taken it", || clients[0].server_stats().unwrap()[0].clocks[0] == 1);
    (job, server, clients, tables, ticket)
}

/// The error that a stopped server's job leaves to a worker.
fn names_the_server(error: &Error) {
    assert!(
        matches!(error, Error::Aborted { reason } if reason.contains("server 0 (") && reason.contains("told to stop")),
        "{error}"
    );
}

#[test]
fn what_a_server_had_taken_when_sigterm_came_is_answered() {
    let (job, server, clients, tables, waiting) = one_waits("60");
    server.signal(Signal::TERM);
    server.until_line("told to stop");
    // It still takes what the answer needs, and tells this worker that it has.
    let range = KeyRange::new(0, 1000).unwrap();
    let mut push = tables[1].push_range(range, &[2.0; 1000]).unwrap();
    clients[1].clock().unwrap();
    push.wait().unwrap();
    let mut sum = [0.0; 1000];
    waiting.wait_into(&mut sum).unwrap();
    assert_eq!(sum, [3.0; 1000]);
    let ended = server.end(PATIENCE).expect(0);
    assert!(!ended.stderr.contains("could be answered"), "{}", ended.stderr);
    names_the_server(&tables[0].pull_range(range, &mut [0.0; 1000]).unwrap_err());
    drop((clients, tables));
    job.coordinator.end(PATIENCE).expect(19).says("server 0 (").says("told to stop");
}

#[test]
fn what_can_not_be_answered_holds_a_server_up_only_until_its_deadline() {
    let (job, server, clients, tables, mut waiting) = one_waits("1");
    server.signal(Signal::TERM);
    // Worker 1 never ends its clock.
    server.end(PATIENCE).expect(0).says("not everything could be answered within 1s");
    names_the_server(&waiting.wait().unwrap_err());
    drop((clients, tables, waiting));
    job.coordinator.end(PATIENCE).expect(19).says("server 0 (");
}

#[test]
fn a_server_that_gets_sigterm_before_the_job_begins_ends_well() {
    let job = Job::start(&["--servers", "2", "--workers", "1"]);
    let server = job.server(&["--rank", "0"]);
    until(PATIENCE, "the server", || listeners([server.pid()]).len() == 2);
    server.signal(Signal::TERM);
    server.end(PATIENCE).expect(0);
}

#[test]
fn a_killed_coordinator_ends_the_job() {
    let job = Job::start(&["--servers", "1", "--workers", "3"]);
    let server = job.server(&[]);
    let workers = ["0", "1", "2"].map(|rank| job.worker(rank, &["--epochs", "1000000"]));
    workers[0].until_line(", clock ");
    job.coordinator.signal(Signal::KILL);
    let started = Instant::now();
    for survivor in [server].into_iter().chain(workers) {
        let ended = survivor.end(PATIENCE);
        assert!([14, 19].contains(&ended.code), "{ended:?}");
        ended.says("lost ");
    }
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
}

#[test]
fn a_secret_that_others_may_read_or_that_is_none_is_refused() {
    let directory = scratch();
    let open = secret_file(directory.path(), "open", 0o644);
    for command in [&["coordinator"][..], &["server", "--coordinator", "127.0.0.1:1"]] {
        let arguments = command.iter().copied().chain(["--secret-file", text(&open)]);
        run(arguments).expect(11).says(text(&open)).says("chmod 600");
    }
    let short = directory.path().join("short");
    fs::write(&short, "abc\n").unwrap();
    fs::set_permissions(&short, Permissions::from_mode(0o600)).unwrap();
    run(["coordinator", "--secret-file", text(&short)]).expect(11).says("64 hexadecimal digits");
    run(["coordinator"]).expect(11).says("--secret-file: expected a file with the job's secret");
    let missing = directory.path().join("missing");
    run(["coordinator", "--secret-file", text(&missing)]).expect(12).says(text(&missing));
}

#[test]
fn a_port_that_is_taken_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let directory = scratch();
    let secret = secret_file(directory.path(), "secret", 0o600);
    let ended = run(["coordinator", "--listen", &address, "--secret-file", text(&secret)]);
    ended.expect(12).says(&format!("bind ({address}; another by --listen): ")).says("in use");
    let mut by_variable = windlass(["coordinator", "--secret-file", text(&secret)]);
    by_variable.env("WINDLASS_COORDINATOR", &address);
    let ended = Process::start(by_variable).end(PATIENCE);
    ended.expect(12).says(&format!("bind ({address}; another by WINDLASS_COORDINATOR): "));
    let port = taken.local_addr().unwrap().port().to_string();
    let ended = run(["run", "--port-range", &port, "--", "true"]);
    ended.expect(12).says(&format!("bind ({address}; another by --interface or --port-range): "));
    let job = ["--secret-file", text(&secret), "--coordinator", &address];
    let ended = run(["server", "--port-range", &port].into_iter().chain(job));
    ended.expect(12).says(&format!("bind ({address}; another by --interface or --port-range): "));
}

/// A server that gets a port for its links, and none for its data.
#[test]
fn ports_that_do_not_suffice_are_named() {
    let refused = || {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let network = Network { ports: Some(port..=port), ..Network::default() };
        let server = Server::builder("127.0.0.1:1", Secret::generate().unwrap()).network(network).start();
        server.err().unwrap().to_string()
    };
    // Another test may have the port meanwhile: then there is none for links, either.
    let for_data = |error: &String| error.starts_with("bind (127.0.0.1, ports ");
    let error = (0..100).map(|_| refused()).find(for_data).unwrap();
    assert!(error.contains("; another by --interface or --port-range): "), "{error}");
}

#[test]
fn a_coordinator_that_can_not_be_reached_is_named() {
    let directory = scratch();
    let secret = secret_file(directory.path(), "secret", 0o600);
    let job = ["--secret-file", text(&secret)];
    let ended = run(["server", "--coordinator", "no.such.host.invalid:7077"].into_iter().chain(job));
    ended.expect(12).says("no.such.host.invalid:7077");
    let ended = run(["server", "--coordinator", "nonsense"].into_iter().chain(job));
    assert!([11, 12].contains(&ended.code), "{ended:?}");
    ended.says("nonsense");
    run(["server"].into_iter().chain(job))
        .expect(11)
        .says("--coordinator: expected HOST:PORT, found nothing");
}

/// The coordinator is the one that is told to end; servers and workers hear it from there.
#[test]
fn a_job_by_hand_saves_itself_and_goes_on() {
    let directory = scratch();
    let keeps = ["--checkpoint", text(directory.path())];
    let range = KeyRange::new(0, 4).unwrap();
    let mut seen = Vec::new();
    for (servers, signal) in [("1", Signal::TERM), ("2", Signal::USR1)] {
        let extra = ["--servers", servers, "--workers", "1", "--resume", "auto"];
        let job = Job::start(&[&keeps[..], &extra].concat());
        let servers: Vec<Process> = (0..servers.parse().unwrap()).map(|_| job.server(&keeps)).collect();
        let client = job.client(0, 1);
        let spec = TableSpec::dense("t", &[4]).aggregate(windlass::types::Aggregate::Sum);
        let table = client.table(&spec.optimizer(windlass::types::OptimizerSpec::sum())).unwrap();
        let mut value = [0.0; 4];
        table.pull_range(range, &mut value).unwrap();
        seen.push((client.resumed(), value[0]));
        job.coordinator.signal(signal);
        let mut clock = client.resumed().map_or(0, |(clock, _)| clock);
        while client.save_state(&clock.to_le_bytes()).is_ok()
            && table.push_range(range, &[1.0; 4]).is_ok()
            && client.clock().is_ok()
            && table.pull_range(range, &mut value).is_ok()
        {
            clock += 1;
        }
        drop(client);
        job.coordinator.end(PATIENCE).expect(75).says("told to end: cut ");
        servers.into_iter().for_each(|server| drop(server.end(PATIENCE)));
    }
    assert_eq!(seen[0], (None, 0.0));
    let (resumed, value) = &seen[1];
    let (clock, state) = resumed.clone().unwrap();
    assert_eq!((state, *value), (clock.to_le_bytes().to_vec(), clock as f32));
}

/// A server that joins a job does not decide when it is cut.
#[test]
fn a_server_that_says_when_checkpoints_are_made_is_refused() {
    let directory = scratch();
    let secret = secret_file(directory.path(), "secret", 0o600);
    let server =
        ["server", "--coordinator", "127.0.0.1:1", "--secret-file", text(&secret), "--checkpoint", "x"];
    for (flag, value) in [("--every", "100"), ("--keep", "3"), ("--grace", "5")] {
        let said = format!("{flag}: expected this flag at the coordinator");
        run(server.into_iter().chain([flag, value])).expect(11).says(&said);
    }
    let mut told = windlass(["server", "--every", "100"]);
    told.env("WINDLASS_COORDINATOR", "127.0.0.1:1");
    Process::start(told).end(PATIENCE).expect(11).says("--every: expected this flag at the coordinator");
}

/// Who is behind is nice to know, but no reason to be late.
#[test]
fn waits_keep_their_deadline_while_the_coordinator_stands_still() {
    const GIVEN: Duration = Duration::from_millis(200);
    let patient = ["--peer-timeout", "600"];
    let job = Job::start(&patient);
    let server = job.server(&patient);
    let client = |rank| {
        let mut config = ClientConfig::new(&job.address, Secret::from_file(&job.secret).unwrap(), rank, 2);
        config.network.peer_timeout = Duration::from_secs(600);
        config.network.transport = common::transport();
        config.wait_timeout = GIVEN;
        Client::connect(config).unwrap()
    };
    let (one, other) = std::thread::scope(|scope| {
        let one = scope.spawn(|| client(0));
        let other = client(1);
        (one.join().unwrap(), other)
    });
    let spec = TableSpec::dense("w", &[4]);
    // Made while everybody is alive, and however loaded the machine is.
    let mut table = one.table(&spec);
    until(PATIENCE, "the table", || {
        if table.is_err() {
            table = one.table(&spec);
        }
        table.is_ok()
    });
    let table = table.unwrap();
    kill(job.coordinator.pid(), Signal::STOP);
    let mut push = table.push_range(KeyRange::new(0, 4).unwrap(), &[1.0; 4]).unwrap();
    one.clock().unwrap();
    // Its clock needs worker 1. The machine may be late, too, but not every time.
    let overshoot = |wait: &mut dyn FnMut() -> Error| {
        let start = Instant::now();
        let error = wait();
        assert!(matches!(error, Error::Timeout { after: GIVEN, .. }), "{error}");
        start.elapsed() - GIVEN
    };
    let in_time =
        |wait: &mut dyn FnMut() -> Error| (0..40).any(|_| overshoot(wait) <= Duration::from_millis(100));
    assert!(in_time(&mut || push.wait_timeout(GIVEN).unwrap_err()), "wait_timeout");
    assert!(in_time(&mut || one.barrier().unwrap_err()), "barrier");
    kill(job.coordinator.pid(), Signal::CONT);
    drop((push, table, one, other, server));
}

/// Deaths and stops, which sockets and shared memory tell of in ways of their own.
#[test]
fn what_dies_or_stands_still_over_tcp_too() {
    common::these_over_tcp(&["killed", "sigterm", "stands_still", "until_its_deadline"]);
}
