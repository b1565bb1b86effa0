//! Jobs that Slurm ends, requeues and moves, and that mpirun is told to end: each saves itself, and goes on with the same bits.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use rustix::process::Signal;

use super::scripts::{OPEN_MPI_HERE, alone, by_script, digest};
use super::slurm::Slurm;
use super::{Launcher, WINDLASS, wanted};
use crate::common::proc::{self, Member, Role};
use crate::common::{Ended, PATIENCE, Process, kill, scratch, text, until};

/// The newest committed cut's number; 0 without one.
pub fn newest_cut(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let committed = entries.filter(|entry| entry.path().join("MANIFEST").exists());
    let number = |name: String| name.strip_prefix("cut-").and_then(|n| n.parse().ok()).unwrap_or(0);
    committed.map(|entry| number(entry.file_name().into_string().unwrap())).max().unwrap_or(0)
}

/// A training that is held in its middle in time, even where the test gets little of the processors.
const LONG: [&str; 2] = ["--epochs", "20"];

/// What it comes to on this machine, undisturbed.
fn undisturbed() -> &'static str {
    static ONCE: OnceLock<String> = OnceLock::new();
    ONCE.get_or_init(|| alone(scratch().path(), &LONG))
}

/// Runs it under `launcher`, where it goes on from a cut.
pub fn goes_on(launcher: &Launcher, before: &[&str]) {
    launcher.trains(before, &LONG, undisturbed());
}

/// A batch job whose processes are found by a mark, as it may run more than once.
struct Batch<'a> {
    slurm: &'a Slurm,
    folder: PathBuf,
    id: String,
    mark: String,
}

impl<'a> Batch<'a> {
    /// Submits our batch script, from `folder`, for a long training.
    fn submit(slurm: &'a Slurm, folder: &Path) -> Batch<'a> {
        let mark = format!("{}-{}", std::process::id(), text(folder));
        let (conf, own) = (slurm.conf(), folder.join("tmp"));
        fs::create_dir_all(&own).unwrap();
        let told = [
            ("SLURM_CONF", text(&conf)),
            ("BATCH_MARK", &mark),
            ("WINDLASS", WINDLASS),
            ("WINDLASS_EVERY", "20"),
            ("WINDLASS_GRACE", "20"),
            ("WINDLASS_MPI", "pmi2"),
            ("WINDLASS_LOG", "windlass=info"),
            ("TMPDIR", text(&own)),
        ];
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/windlass.sbatch");
        let flags = ["sbatch", "--parsable", "--overcommit", "--time=10"];
        let job = [&[script, "--report", "report.json"][..], &LONG].concat();
        let ended = Launcher::new(&flags, &told, folder).run(&job).expect(0);
        let id = ended.stdout.trim().to_owned();
        Batch { slurm, folder: folder.to_owned(), id, mark }
    }

    fn cuts(&self) -> PathBuf {
        self.folder.join(format!("windlass-{}.checkpoints", self.id))
    }

    fn output(&self) -> String {
        fs::read_to_string(self.folder.join(format!("windlass-{}.out", self.id))).unwrap_or_default()
    }

    fn members(&self) -> Vec<Member> {
        proc::members("BATCH_MARK", &self.mark)
    }

    /// Waits until this run of the job has made a checkpoint of its own, and stops a worker: it won't be done before it is told to end.
    /// False when it was done all the same.
    fn hold(&self) -> bool {
        let before = newest_cut(&self.cuts());
        self.until("a checkpoint", || newest_cut(&self.cuts()) > before || self.is_done());
        let worker = self.members().into_iter().find(|m| m.role == Role::Worker && m.rank == Some(2));
        match worker {
            Some(Member { pid, .. }) if !self.is_done() => {
                kill(pid, Signal::STOP);
                newest_cut(&self.cuts()) > before && !self.is_done()
            }
            _ => false,
        }
    }

    fn is_done(&self) -> bool {
        self.folder.join("report.json").exists()
    }

    /// Waits until `found`; says what has become of the job when that does not come.
    fn until(&self, what: &str, found: impl Fn() -> bool) {
        let started = Instant::now();
        while !found() {
            let state = self.state();
            let lost = matches!(&*state, "F" | "NF" | "TO") || started.elapsed() > PATIENCE;
            assert!(!lost || found(), "no {what}: the job is {state}, its output {}", self.output());
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// A stopped worker gets nothing done; Slurm itself sends SIGCONT before SIGTERM, but not before another signal.
    fn let_go(&self) {
        let stopped = |m: &Member| m.role == Role::Worker && proc::is_stopped(m.pid);
        self.members().iter().filter(|m| stopped(m)).for_each(|m| kill(m.pid, Signal::CONT));
    }

    fn state(&self) -> String {
        self.slurm.says(&["squeue", "-h", "-t", "all", "-j", &self.id, "-o", "%t"])
    }

    fn nodes(&self) -> Vec<String> {
        let list = self.slurm.says(&["squeue", "-h", "-j", &self.id, "-o", "%N"]);
        self.slurm.says(&["scontrol", "show", "hostnames", &list]).lines().map(str::to_owned).collect()
    }

    /// Waits until the job waits in the queue and nothing of it is left, and starts it again.
    fn again(&self) {
        self.until("the job in the queue", || self.state() == "PD");
        self.nothing_is_left();
        // Slurm takes a credential of the second in which the job was ended for a revoked one, and fails the job.
        let second = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        let queued = second();
        self.until("the next second", || second() > queued);
        let job = format!("JobId={}", self.id);
        self.until("the job's start", || {
            let _ = self.slurm.tries(&["scontrol", "update", &job, "StartTime=now"]);
            self.state() == "R"
        });
    }

    /// Processes, sockets (they go with the processes), shared memory and temporary files.
    fn nothing_is_left(&self) {
        until(PATIENCE, "the end of all processes", || self.members().is_empty());
        super::no_files_are_left(&self.folder.join("tmp"));
    }

    /// Waits for the end, and for nothing to be left.
    fn ended(&self, how: &str) {
        self.until("end of the job", || self.state() == how);
        self.nothing_is_left();
    }

    fn weights(&self) -> String {
        self.ended("CD");
        digest(&self.folder.join("report.json"))
    }
}

/// Runs batch jobs until one was interrupted so many times, as `interrupt` does it (it is told how often that was before), and went on
/// each time: all end with the bits of an undisturbed one.
fn interrupted(times: usize, slurm: &Slurm, interrupt: impl Fn(&Batch<'_>, usize)) {
    for _ in 0..20 {
        let folder = scratch();
        let batch = Batch::submit(slurm, folder.path());
        let mut done = 0;
        while done < times && batch.hold() {
            interrupt(&batch, done);
            done += 1;
        }
        batch.let_go();
        assert_eq!(batch.weights(), undisturbed(), "after {done} interruptions");
        if done == times {
            let output = batch.output();
            for said in ["windlass run: told to end: cut ", "coordinator: goes on from cut "] {
                assert_eq!(output.matches(said).count(), times, "{output}");
            }
            return;
        }
    }
    panic!("each time the job was done before it could be interrupted");
}

/// Requeued by a signal (our script does it), by `scontrol requeue`, and off a node that is drained.
#[test]
fn a_requeued_job_ends_with_the_bits_of_an_undisturbed_one() {
    if !wanted() {
        return;
    }
    let slurm = Slurm::start();
    interrupted(3, &slurm, |batch, before| {
        let first = batch.nodes().swap_remove(0);
        let node = format!("NodeName={first}");
        if before == 0 {
            slurm.says(&["scancel", "--signal=USR1", &batch.id]);
        } else {
            if before == 2 {
                slurm.says(&["scontrol", "update", &node, "State=DRAIN", "Reason=test"]);
            }
            slurm.says(&["scontrol", "requeue", &batch.id]);
        }
        batch.let_go();
        batch.again();
        if before == 2 {
            let now = batch.nodes();
            assert!(now.len() == 2 && !now.contains(&first), "{now:?} without {first}");
            slurm.says(&["scontrol", "update", &node, "State=RESUME"]);
        }
    });
}

/// A job of higher priority takes the nodes: Slurm sends SIGTERM, and GraceTime later SIGKILL.
#[test]
fn a_preempted_job_ends_with_the_bits_of_an_undisturbed_one() {
    if !wanted() {
        return;
    }
    let slurm = Slurm::start();
    interrupted(1, &slurm, |batch, _| {
        let ran = batch.folder.join("urgent");
        let wrap = format!("echo $SLURM_JOB_NODELIST > {}", text(&ran));
        let urgent = ["sbatch", "-Q", "-p", "urgent", "-N4", "--exclusive", "-o", "/dev/null", "--wrap"];
        slurm.says(&[&urgent[..], &[&wrap]].concat());
        until(PATIENCE, "the preemption", || batch.output().contains("received SIGTERM"));
        batch.let_go();
        batch.again();
        assert_eq!(fs::read_to_string(ran).unwrap().trim(), "n[1-4]");
    });
}

/// `scancel` without a signal: SIGTERM to all processes of the job, SIGKILL after KillWait (30 s).
#[test]
fn a_cancelled_job_is_saved() {
    if !wanted() {
        return;
    }
    let (slurm, folder) = (Slurm::start(), scratch());
    let batch = (0..20)
        .map(|number| folder.path().join(number.to_string()))
        .find_map(|folder| {
            fs::create_dir(&folder).unwrap();
            Some(Batch::submit(&slurm, &folder)).filter(Batch::hold)
        })
        .unwrap();
    slurm.says(&["scancel", &batch.id]);
    batch.ended("CA");
    let cuts = batch.cuts();
    let output = batch.output();
    // The word may get lost with the script; the checkpoint does not.
    assert!(output.contains("received SIGTERM; a last checkpoint within 20s"), "{output}");
    let resumed = ["run", "--servers", "2", "--checkpoint", text(&cuts), "--resume", "auto", "--"];
    let srun = slurm.srun(&["--mpi=pmi2", "-N2", "-n6"], folder.path());
    goes_on(&srun, &[&[WINDLASS], &resumed[..], &[WINDLASS]].concat());
}

/// Runs a long job with checkpoints, and more flags, until it has made one, and holds a worker. None when it was done before.
pub fn held(launcher: &Launcher, cuts: &Path, more: &[&str]) -> Option<Process> {
    let keeps = ["run", "--servers", "2", "--checkpoint", text(cuts), "--every", "20", "--grace", "20"];
    let process =
        launcher.start(&[&[WINDLASS], &keeps[..], more, &["--", WINDLASS, "train", "lr"], &LONG].concat());
    until(PATIENCE, "a checkpoint", || newest_cut(cuts) > 0);
    let worker = process.members().into_iter().find(|m| m.role == Role::Worker && m.rank == Some(2));
    kill(worker?.pid, Signal::STOP);
    Some(process)
}

/// Every launcher passes the signals on in its own way; the code is that of the job, not of the rank that was quickest.
#[test]
fn a_job_that_is_told_to_end_below_mpirun_saves_itself() {
    if !wanted() {
        return;
    }
    let directory = scratch();
    let mpich = Launcher::mpich("6", directory.path());
    let open_mpi = Launcher::open_mpi("6", directory.path());
    let script = by_script("mpirun.openmpi", OPEN_MPI_HERE, "6", directory.path());
    for (name, launcher, signal, code) in [
        ("mpich-term", &mpich, Signal::TERM, 75),
        ("mpich-usr1", &mpich, Signal::USR1, 75),
        ("openmpi-usr1", &open_mpi, Signal::USR1, 75),
        // Open MPI 4 itself passes SIGTERM on late, sends SIGKILL soon after, and gives a code of its own.
        ("script-term", &script, Signal::TERM, 75),
    ] {
        let mut tries = (0..20).map(|number| directory.path().join(format!("{name}-{number}")));
        let (cuts, process) =
            tries.find_map(|cuts| Some((held(launcher, &cuts, &[])?, cuts))).map(|(p, c)| (c, p)).unwrap();
        kill(child_of(process.pid()), signal);
        kill(process.member(Role::Worker, 2), Signal::CONT);
        process.end(PATIENCE).expect(code).says("told to end: cut ");
        let resumed = ["run", "--servers", "2", "--checkpoint", text(&cuts), "--resume", "auto", "--"];
        goes_on(launcher, &[&[WINDLASS], &resumed[..], &[WINDLASS]].concat());
    }
}

/// The first server has the coordinator, so `windlass server` takes what says when it is cut.
#[test]
fn servers_with_command_lines_of_their_own_make_checkpoints() {
    if !wanted() {
        return;
    }
    let directory = scratch();
    let cuts = directory.path().join("cuts");
    let servers = [WINDLASS, "server", "--checkpoint", text(&cuts), "--every", "50", "--keep", "1"];
    let workers = [":", "-n", "4", WINDLASS];
    Launcher::mpich("2", directory.path()).train(&[&servers[..], &workers].concat());
    assert!(newest_cut(&cuts) > 1);
}

/// The launcher's own process, which `timeout` has started.
fn child_of(timeout: i32) -> i32 {
    let mut child = None;
    until(PATIENCE, "the launcher", || {
        let children =
            fs::read_to_string(format!("/proc/{timeout}/task/{timeout}/children")).unwrap_or_default();
        child = children.split(' ').find_map(|pid| pid.parse().ok());
        child.is_some()
    });
    child.unwrap()
}

/// A worker that dies in a job with checkpoints ends it as ever, with a failure and not with 75; and the job goes on from its last cut.
#[test]
fn a_killed_rank_costs_no_more_than_what_came_after_the_last_cut() {
    if !wanted() {
        return;
    }
    let (slurm, folder) = (Slurm::start(), scratch());
    let launcher = slurm.srun(&["--mpi=pmi2", "-N4", "-n6"], folder.path());
    let mut tries = (0..20).map(|number| folder.path().join(number.to_string()));
    let (process, cuts) = tries.find_map(|cuts| Some((held(&launcher, &cuts, &[])?, cuts))).unwrap();
    kill(process.member(Role::Worker, 1), Signal::KILL);
    let ended: Ended = process.end(PATIENCE);
    assert!(ended.code != 0 && ended.code != 75, "{}: {}", ended.code, ended.stderr);
    ended.says("worker 1 (").says("is lost");
    let resumed = ["run", "--servers", "3", "--checkpoint", text(&cuts), "--resume", "auto", "--"];
    let srun = slurm.srun(&["--mpi=pmi2", "-N4", "-n7"], folder.path());
    goes_on(&srun, &[&[WINDLASS], &resumed[..], &[WINDLASS]].concat());
}

/// A worker that does not end when the job is saved: it is killed, and the code is the job's.
#[test]
fn a_program_that_does_not_end_is_ended_when_the_job_is_saved() {
    if !wanted() {
        return;
    }
    let (slurm, folder) = (Slurm::start(), scratch());
    let cuts = folder.path().join("cuts");
    let stays = format!("{WINDLASS} train lr --epochs 1000000; exec sleep 1000");
    let job = ["run", "--servers", "1", "--stop-timeout", "1", "--checkpoint", text(&cuts), "--every", "20"];
    let job = [&job[..], &["--", "sh", "-c", &stays]].concat();
    let process =
        slurm.srun(&["--mpi=pmi2", "-N2", "-n3"], folder.path()).start(&[&[WINDLASS], &job[..]].concat());
    until(PATIENCE, "a checkpoint", || newest_cut(&cuts) > 0);
    let step = slurm.says(&["squeue", "-s", "-h", "-o", "%i"]);
    slurm.says(&["scancel", "--signal=USR1", step.lines().next().unwrap()]);
    process.end(PATIENCE + Duration::from_secs(20)).expect(75).says("told to end: cut ");
}
