//! Checkpoints of whole jobs: made, interrupted, resumed on other numbers of servers and threads.

#![allow(clippy::unwrap_used)] // in a test a failure is a panic

mod common;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::proc::Role;
use common::{Ended, PATIENCE, Process, kill, run, scratch, text, until, windlass};
use rustix::process::{Pid, Resource, Signal, getrlimit, prlimit};
use serde_json::Value;
use windlass::checkpoint::{CutFile, Disk, SectionKind};

/// SHA-256 of the weights that the default run of `train lr` learns, on any machine.
const DEFAULT_WEIGHTS: &str = "c726a053ca5204cc18c6cc6004b33a58ff12eccc40fbfd6a4c941222c9f0807a";

/// Whether `directory` has a committed cut of this number or a higher one.
fn has_cut(directory: &Path, number: u64) -> bool {
    let Ok(entries) = fs::read_dir(directory) else { return false };
    entries.flatten().any(|entry| {
        let name = entry.file_name().into_string().unwrap();
        name.strip_prefix("cut-").is_some_and(|n| n.parse::<u64>().unwrap() >= number)
            && entry.path().join("MANIFEST").exists()
    })
}

/// Rows with a few of 200 features each, as a LIBSVM file.
fn data(directory: &Path) -> String {
    let row = |n: u64| {
        let feature = |k: u64| 1 + k * 40 + (n * 7 + k * k * 13 + n / 5) % 40;
        let features: Vec<String> = (0..5).map(|k| format!("{}:{}.5", feature(k), (n + k) % 3)).collect();
        format!("{} {}\n", if (n / 3 + n % 4).is_multiple_of(2) { "+1" } else { "-1" }, features.join(" "))
    };
    let path = directory.join("data");
    fs::write(&path, (0..300).map(row).collect::<String>()).unwrap();
    text(&path).to_owned()
}

/// `train lr` with these arguments, and where it writes its report.
struct Training {
    arguments: Vec<String>,
    report: PathBuf,
}

impl Training {
    fn new(directory: &Path, arguments: &[&str]) -> Training {
        let report = directory.join("report.json");
        let mut all: Vec<String> = ["train", "lr", "--report", text(&report)].map(str::to_owned).to_vec();
        all.extend(arguments.iter().map(|a| (*a).to_owned()));
        Training { arguments: all, report }
    }

    fn command(&self, more: &[&str]) -> Command {
        let mut command = windlass(self.arguments.iter().map(String::as_str).chain(more.iter().copied()));
        command.env("WINDLASS_LOG", "windlass=info");
        command
    }

    fn start(&self, more: &[&str]) -> Process {
        Process::start(self.command(more))
    }

    /// Runs it to its end. Gives what it learnt.
    fn weights(&self, more: &[&str]) -> (String, Ended) {
        let ended = self.start(more).end(PATIENCE).expect(0);
        let report: Value = serde_json::from_slice(&fs::read(&self.report).unwrap()).unwrap();
        (report["weights_sha256"].as_str().unwrap().to_owned(), ended)
    }

    /// Runs it until it has so many cuts, and kills it.
    fn leaves(&self, folder: &Path, cuts: u64, more: &[&str]) {
        let job = self.start(&[&["--checkpoint", text(folder)], more].concat());
        until(PATIENCE, "checkpoints", || has_cut(folder, cuts));
        job.signal(Signal::KILL);
        job.end(PATIENCE);
    }

    /// Runs it until it has a cut, and kills one of its processes; false when it was done before.
    fn dies(&self, folder: &Path, killed: Role, rank: u32) -> bool {
        let keeps = ["--checkpoint", text(folder), "--resume", "auto"];
        let mut job = self.start(&[&keeps[..], &["--servers", "2", "--every", "10"]].concat());
        until(PATIENCE, "a checkpoint", || has_cut(folder, 2) || !job.runs());
        let member = job.members().into_iter().find(|m| m.role == killed && m.rank == Some(rank));
        match (killed, member) {
            (Role::Other, _) if job.runs() => kill(job.pid(), Signal::KILL),
            (_, Some(member)) => kill(member.pid, Signal::KILL),
            _ => {}
        }
        let ended = job.end(PATIENCE);
        assert!([0, 128 + 9].contains(&ended.code), "{}", ended.stderr);
        ended.code != 0
    }

    /// Runs it until it has a cut, kills one of its processes, and runs it again from there, with other servers.
    fn interrupted(&self, folder: &Path, (killed, rank): (Role, u32)) -> String {
        let mut tries = (0..20).map(|number| folder.join(number.to_string()));
        let folder = tries.find(|folder| self.dies(folder, killed, rank)).unwrap();
        let keeps = ["--checkpoint", text(&folder), "--resume", "auto"];
        let (sha, ended) =
            self.weights(&[&keeps[..], &["--servers", "3", "--threads", "2", "--every", "100"]].concat());
        ended.says("goes on from cut");
        sha
    }
}

#[test]
fn a_run_that_was_killed_ends_with_the_weights_of_an_undisturbed_one() {
    // Over memory and over sockets in turn: a death looks different on each.
    let kills = [
        ((Role::Other, 0), "auto"),
        ((Role::Server, 1), "tcp"),
        ((Role::Worker, 2), "auto"),
        ((Role::Server, 0), "tcp"),
    ];
    let mut kinds = Vec::new();
    for table in ["dense", "sparse"] {
        kinds.extend(["ftrl", "adam"].map(|optimizer| (table, optimizer)));
    }
    for ((table, optimizer), (killed, transport)) in kinds.into_iter().zip(kills) {
        let directory = scratch();
        let data = data(directory.path());
        let arguments =
            ["--data", &data, "--table", table, "--optimizer", optimizer, "--segment-bytes", "64"];
        let more = ["--workers", "3", "--batch", "2", "--epochs", "20", "--l1", "0.001"];
        let by = ["--transport", transport];
        let training = Training::new(directory.path(), &[&arguments[..], &more, &by].concat());
        let (expected, _) = training.weights(&[]);
        let found = training.interrupted(&directory.path().join("kept"), killed);
        assert_eq!(found, expected, "{table}, {optimizer}, {transport}, {killed:?} killed");
    }
}

#[test]
fn the_default_run_gives_its_digest_though_it_was_killed() {
    let directory = scratch();
    let training = Training::new(directory.path(), &[]);
    let found = training.interrupted(&directory.path().join("a/b/kept"), (Role::Server, 1));
    assert_eq!(found, DEFAULT_WEIGHTS);
}

/// An example's program, which cargo builds for `cargo test`, beside the folder of this test's own program.
fn example(name: &str) -> PathBuf {
    let exe = std::env::current_exe().unwrap();
    exe.parent().unwrap().parent().unwrap().join("examples").join(name)
}

fn sorted(text: &str) -> Vec<&str> {
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_unstable();
    lines
}

#[test]
fn a_job_that_is_told_to_end_saves_itself_and_goes_on() {
    let directory = scratch();
    let folder = directory.path().join("kept");
    let program = example("preemptible");
    let worker = ["--workers", "2", "--", text(&program)];
    let expected = run(["run", "--servers", "1"].into_iter().chain(worker)).expect(0).stdout;
    let keeps = ["run", "--checkpoint", text(&folder), "--resume", "auto"];
    let mut signals = vec![("1", Signal::TERM), ("2", Signal::USR1), ("3", Signal::TERM)];
    for _ in 0..30 {
        let Some((servers, signal)) = signals.pop() else { break };
        let job = Process::start(windlass(keeps.into_iter().chain(["--servers", servers]).chain(worker)));
        job.until_line("begins at step"); // all have joined
        job.signal(signal);
        let ended = job.end(PATIENCE);
        if ended.code == 0 {
            // It was done before the signal came: once more, from the beginning.
            assert_eq!(sorted(&ended.stdout), sorted(&expected));
            std::fs::remove_dir_all(&folder).unwrap();
            signals.push((servers, signal));
            continue;
        }
        ended.expect(75).says("a last checkpoint within 30s").says("told to end: cut ");
    }
    assert!(signals.is_empty(), "each time the job was done before the signal came");
    let ended = run(keeps.into_iter().chain(["--servers", "2", "--threads", "2"]).chain(worker)).expect(0);
    assert_eq!(sorted(&ended.stdout), sorted(&expected), "{}", ended.stderr);
}

/// A worker that never ends its clock keeps the job from being cut, and the grace ends.
#[test]
fn the_grace_is_an_end() {
    let directory = scratch();
    let folder = directory.path().join("kept");
    let arguments =
        ["run", "--servers", "1", "--workers", "1", "--checkpoint", text(&folder), "--grace", "1"];
    let job = Process::start(windlass(arguments.into_iter().chain(["--", "sleep", "1000"])));
    until(PATIENCE, "the worker", || job.members().iter().any(|m| m.role == Role::Worker));
    job.signal(Signal::USR1);
    // The worker has not joined, so there is nothing to save.
    job.end(PATIENCE).expect(19).says("told to end");
}

/// What NumPy finds in both files; says so and gives nothing where it is not installed.
fn read_by_python(files: &[String; 2]) -> Option<String> {
    let has_numpy = |python: &&str| {
        let tried = Command::new(python).args(["-c", "import numpy"]).output();
        tried.is_ok_and(|output| output.status.success())
    };
    let Some(python) = ["python3", "/usr/bin/python3"].into_iter().find(has_numpy) else {
        let _ = writeln!(std::io::stderr(), "skipped: no python3 with numpy");
        return None;
    };
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/read_exports.py");
    let output = Command::new(python).arg(script).args(files).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(String::from_utf8(output.stdout).unwrap())
}

/// A small file system of its own, which is gone when the test ends.
struct SmallDisk(PathBuf);

impl SmallDisk {
    /// Mounts it at `path`, if we may.
    fn mount(path: PathBuf) -> Option<SmallDisk> {
        fs::create_dir(&path).unwrap();
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", "size=4m", "none"]).arg(&path).output();
        if mounted.is_ok_and(|output| output.status.success()) {
            return Some(SmallDisk(path));
        }
        let _ = writeln!(std::io::stderr(), "skipped: no tmpfs can be mounted here (it needs root)");
        None
    }

    /// Takes all the room that is left, in a file beside the checkpoints.
    fn fill(&self) {
        let mut filler = fs::OpenOptions::new().create(true).append(true).open(self.filler()).unwrap();
        while filler.write_all(&[1; 4096]).is_ok() {}
    }

    fn filler(&self) -> PathBuf {
        self.0.join("filler")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let ended = Command::new("umount").arg("-l").arg(&self.0).status();
        assert!(ended.is_ok_and(|status| status.success()) || std::thread::panicking());
    }
}

/// A disk that is full for a while: cuts fail, the old ones stay and can be used, and later ones are made.
#[test]
fn a_full_disk_costs_the_cuts_that_find_no_room() {
    let directory = scratch();
    let Some(disk) = SmallDisk::mount(directory.path().join("disk")) else { return };
    let folder = disk.0.join("kept");
    let data = data(directory.path());
    let training = Training::new(directory.path(), &["--data", &data, "--workers", "2"]);
    let keeps = ["--checkpoint", text(&folder), "--every", "20", "--epochs", "1000000"];
    let mut job = training.start(&keeps);
    until(PATIENCE, "a checkpoint", || has_cut(&folder, 2));
    until(PATIENCE, "a cut that fails", || {
        disk.fill();
        job.said().contains("No space left on device")
    });
    // A cut that was under way may have found the room of one that was given up.
    until(PATIENCE, "an old cut that is whole", || {
        disk.fill();
        !committed(&folder).is_empty() && checkpoint(&["verify", text(&folder)]).code == 0
    });
    let before: u64 = committed(&folder).iter().map(|cut| number(cut)).max().unwrap();
    assert!(job.runs(), "{}", job.said());
    fs::remove_file(disk.filler()).unwrap();
    until(PATIENCE, "a later checkpoint", || has_cut(&folder, before + 2));
    assert!(job.runs(), "{}", job.said());
    job.signal(Signal::TERM);
    job.end(PATIENCE).expect(75);
    let newest = committed(&folder).pop().unwrap();
    checkpoint(&["verify", text(&newest)]).expect(0);
}

/// The system's answer to a write beyond such a limit is SIGXFSZ, which would end the server.
#[test]
fn a_limit_on_the_length_of_files_costs_the_cuts_that_are_longer() {
    let directory = scratch();
    let folder = directory.path().join("kept");
    let data = data(directory.path());
    let training = Training::new(directory.path(), &["--data", &data, "--workers", "2"]);
    let plain = training.command(
        &[
            &["--checkpoint", text(&folder), "--every", "20", "--epochs", "1000000"][..],
            &["--transport", "tcp"], // memory that is shown is files, too
        ]
        .concat(),
    );
    let mut limited = Command::new("sh");
    limited
        .args(["-c", "ulimit -S -f 1 && exec \"$0\" \"$@\""])
        .arg(plain.get_program())
        .args(plain.get_args());
    for (name, value) in plain.get_envs() {
        match value {
            Some(value) => limited.env(name, value),
            None => limited.env_remove(name),
        };
    }
    let mut job = Process::start(limited);
    let mut said = String::new();
    until(PATIENCE, "a cut that fails", || {
        said = job.said();
        assert!(job.runs(), "{said}");
        said.contains("RLIMIT_FSIZE")
    });
    let line = said.lines().find(|line| line.contains("RLIMIT_FSIZE")).unwrap();
    assert!(
        line.contains("/shard-000") && line.contains("): limit ") && line.contains(", asked for "),
        "{line}"
    );
    assert!(committed(&folder).is_empty());
    for pid in job.members().iter().map(|member| member.pid).chain([job.pid()]) {
        prlimit(Pid::from_raw(pid), Resource::Fsize, getrlimit(Resource::Fsize)).unwrap();
    }
    until(PATIENCE, "a later checkpoint", || has_cut(&folder, 1));
    assert!(job.runs(), "{}", job.said());
    job.signal(Signal::TERM);
    job.end(PATIENCE).expect(75);
    checkpoint(&["verify", text(&committed(&folder).pop().unwrap())]).expect(0);
}

/// A cut's number.
fn number(cut: &Path) -> u64 {
    cut.file_name().unwrap().to_str().unwrap().strip_prefix("cut-").unwrap().parse().unwrap()
}

fn checkpoint(arguments: &[&str]) -> Ended {
    run(["checkpoint"].into_iter().chain(arguments.iter().copied()))
}

#[test]
fn checkpoints_are_listed_inspected_verified_exported_and_imported() {
    let directory = scratch();
    let path = |name: &str| text(&directory.path().join(name)).to_owned();
    let data = data(directory.path());
    for table in ["dense", "sparse"] {
        let folder = path(&format!("kept-{table}"));
        let arguments = ["--data", &data, "--table", table, "--optimizer", "adam", "--segment-bytes", "64"];
        let keeps = ["--every", "5", "--keep", "3", "--workers", "2", "--epochs", "100000"];
        let training = Training::new(directory.path(), &[&arguments[..], &keeps].concat());
        training.leaves(Path::new(&folder), 3, &[]);
        let listed = checkpoint(&["list", &folder]).expect(0).stdout;
        let whole: Vec<&str> = listed.lines().filter(|line| line.contains("clock ")).collect();
        assert!(!whole.is_empty() && whole.len() <= 3, "{listed}");
        let inspected = checkpoint(&["inspect", &folder]).expect(0).stdout;
        let all = checkpoint(&["inspect", "--all", &folder]).expect(0).stdout;
        for expected in ["table 0  \"weights\"", "workers  2", "adam", " sections, digest "] {
            assert!(inspected.contains(expected), "{expected} is not in\n{inspected}");
        }
        assert!(inspected.lines().all(|line| all.lines().any(|other| other == line)), "{inspected}\n{all}");
        for more in ["worker 1 in clock", "bucket 0, version"] {
            assert!(all.contains(more) && !inspected.contains(more), "{inspected}\n{all}");
        }
        let verified = checkpoint(&["verify", &folder]).expect(0).stdout;
        assert_eq!(verified.lines().filter(|line| line.ends_with(": whole")).count(), whole.len());

        for format in ["safetensors", "npz"] {
            let (one, into) = (path("one"), path(&format!("into-{table}-{format}")));
            checkpoint(&["export", &folder, "--format", format, "--out", &one]).expect(0);
            let import = ["import", &one, "--format", format, "--like", &folder, "--into", &into];
            let imported = checkpoint(&import).expect(0).stdout;
            assert_eq!(imported, format!("{into}/cut-000001\n"));
            checkpoint(&["verify", &into]).expect(0);
            let again = path("again");
            checkpoint(&["export", &into, "--format", format, "--out", &again]).expect(0);
            assert_eq!(fs::read(&again).unwrap(), fs::read(&one).unwrap(), "{table}, {format}");
            // A job begins from it.
            let resumed = Training::new(directory.path(), &arguments);
            let more = ["--checkpoint", &into, "--resume", "auto", "--workers", "2", "--epochs", "1"];
            resumed.weights(&more).1.says("goes on from cut 1, clock 0");
        }
        let written = ["safetensors", "npz"].map(|format| {
            let one = path(&format!("{table}.{format}"));
            checkpoint(&["export", &folder, "--format", format, "--out", &one]).expect(0);
            one
        });
        if let Some(read) = read_by_python(&written) {
            let expected: &[&str] = match table {
                "dense" => &["weights F32 200 some"],
                _ => &["weights.keys U64 200 some", "weights.rows F32 200 1 some"],
            };
            assert_eq!(read.lines().collect::<Vec<_>>(), expected);
        }
        let model = path("model");
        checkpoint(&["export", &folder, "--format", "libsvm", "--out", &model]).expect(0);
        let model = fs::read_to_string(&model).unwrap();
        let (head, weights) = model.split_once("\nw\n").unwrap();
        assert!(head.contains("nr_feature 200") && weights.lines().count() == 200, "{model}");
        assert!(weights.lines().any(|w| w.parse::<f32>().unwrap() != 0.0));

        let newest = whole.last().unwrap().split(' ').next().unwrap();
        let shard = Path::new(&folder).join(newest).join("shard-0001-000");
        let mut bytes = fs::read(&shard).unwrap();
        let last = *CutFile::open(&Disk, &shard).unwrap().sections().last().unwrap();
        bytes[last.offset as usize] ^= 1;
        fs::write(&shard, &bytes).unwrap();
        let refused = checkpoint(&["verify", &folder]).expect(24);
        let refused = refused.says(&format!("{}: {} at byte {}", shard.display(), last.id, last.offset));
        assert!(refused.stdout.lines().any(|line| line.ends_with(": whole")) || whole.len() == 1);
    }
}

/// Nothing of an import that fails is left: for what it finds in the file, or for want of room.
#[test]
fn an_import_that_fails_leaves_nothing() {
    let directory = scratch();
    let path = |name: &str| text(&directory.path().join(name)).to_owned();
    let (data, folder, arrays) = (data(directory.path()), path("kept"), path("arrays"));
    let arguments =
        ["--data", &data, "--optimizer", "adam", "--table", "dense", "--workers", "2", "--epochs", "100000"];
    Training::new(directory.path(), &arguments).leaves(Path::new(&folder), 1, &["--every", "5"]);
    checkpoint(&["export", &folder, "--format", "npz", "--out", &arrays]).expect(0);
    let import = |file: &str, into: &str| {
        checkpoint(&["import", file, "--format", "npz", "--like", &folder, "--into", into])
    };
    // The same with a name that no table has.
    let mut bytes = fs::read(&arrays).unwrap();
    let names: Vec<usize> = (0..bytes.len() - 7).filter(|&at| &bytes[at..at + 7] == b"weights").collect();
    names.iter().for_each(|&at| bytes[at] = b'x');
    let wrong = path("wrong");
    fs::write(&wrong, bytes).unwrap();
    let into = path("a/b/into");
    import(&wrong, &into).expect(11).says("expected arrays named after tables, found xeights");
    assert!(!directory.path().join("a").exists());
    import(&arrays, &into).expect(0);
    import(&wrong, &into).expect(11);
    let left =
        || -> Vec<_> { fs::read_dir(&into).unwrap().map(|entry| entry.unwrap().file_name()).collect() };
    assert_eq!(left(), ["cut-000001"]);
    checkpoint(&["verify", &into]).expect(0);
    let Some(disk) = SmallDisk::mount(directory.path().join("disk")) else { return };
    disk.fill();
    import(&arrays, text(&disk.0.join("into"))).expect(12).says("No space left on device");
    assert!(!disk.0.join("into").exists());
}

/// As on NFS, where what one host commits is not at once seen by all: neither a manifest nor the file of a shard.
#[test]
fn files_that_are_seen_late_are_waited_for() {
    let directory = scratch();
    let folder = directory.path().join("kept");
    let data = data(directory.path());
    let training = Training::new(directory.path(), &["--data", &data, "--workers", "2"]);
    training.leaves(&folder, 1, &["--every", "20", "--epochs", "100000"]);
    let goes_on = |folder: &PathBuf| {
        training.start(&["--checkpoint", text(folder), "--resume", "auto", "--epochs", "1"])
    };
    let looks_again = "is whole; looking again for 10s";
    let shard = "shard-0001-000";
    for name in ["MANIFEST", shard] {
        let hidden = |cut: &PathBuf| (cut.join(name), cut.join("HIDDEN"));
        let cuts = committed(&folder);
        cuts.iter().map(hidden).for_each(|(name, late)| fs::rename(name, late).unwrap());
        let job = goes_on(&folder);
        job.until_says(looks_again);
        cuts.iter().map(hidden).for_each(|(name, late)| fs::rename(late, name).unwrap());
        job.end(PATIENCE).says("goes on from cut ");
    }
    // What was begun and never committed keeps nobody from beginning anew, a while later; a file that does not come does.
    let lacking = directory.path().join("lacking");
    let copied = Command::new("cp").args(["-r", text(&folder), text(&lacking)]).status().unwrap();
    assert!(copied.success());
    committed(&folder).iter().for_each(|cut| fs::remove_file(cut.join("MANIFEST")).unwrap());
    committed(&lacking).iter().for_each(|cut| fs::remove_file(cut.join(shard)).unwrap());
    let [anew, refused] = [&folder, &lacking].map(goes_on).map(|job| job.end(PATIENCE).says(looks_again));
    let anew = anew.expect(0);
    assert!(!anew.stderr.contains("goes on from"), "{}", anew.stderr);
    let missing = committed(&lacking).pop().unwrap().join(shard);
    refused.expect(12).says(&format!("open ({}): ", missing.display()));
}

/// The cuts of a directory that are committed, oldest first.
fn committed(folder: &Path) -> Vec<PathBuf> {
    let mut cuts: Vec<PathBuf> = fs::read_dir(folder).unwrap().flatten().map(|e| e.path()).collect();
    cuts.retain(|path| path.join("MANIFEST").exists());
    cuts.sort_unstable();
    cuts
}

/// Flips a bit of the parameters in a cut. Gives what is to be said of it.
fn damage(cut: &Path) -> String {
    for server in 0..2 {
        let shard = cut.join(format!("shard-000{server}-000"));
        let file = CutFile::open(&Disk, &shard).unwrap();
        let mut parameters =
            file.sections().iter().filter(|s| s.id.kind == SectionKind::Parameters && s.length > 0);
        let Some(section) = parameters.next_back() else { continue };
        let mut bytes = fs::read(&shard).unwrap();
        bytes[section.offset as usize] ^= 1;
        fs::write(&shard, &bytes).unwrap();
        return format!("{}: {} at byte {}: expected CRC", shard.display(), section.id, section.offset);
    }
    panic!("no parameters in {}", cut.display());
}

/// A bit that flipped in a bucket is found before anything depends on it, and an older cut serves; the result is that of an
/// undisturbed run.
#[test]
fn a_damaged_section_makes_a_job_go_on_from_the_cut_before() {
    let directory = scratch();
    let folder = directory.path().join("kept");
    let data = data(directory.path());
    let arguments = ["--data", &data, "--table", "dense", "--segment-bytes", "64", "--optimizer", "adam"];
    let all = [&arguments[..], &["--workers", "2", "--batch", "2", "--epochs", "30"]].concat();
    let training = Training::new(directory.path(), &all);
    let (expected, _) = training.weights(&[]);
    // Whoever kills a job can come too late.
    let keeps = ["--every", "20", "--keep", "3"];
    for _ in 0..20 {
        let _ = fs::remove_dir_all(&folder);
        training.leaves(&folder, 3, &keeps);
        if committed(&folder).len() >= 2 {
            break;
        }
    }
    let cuts = committed(&folder);
    let [.., older, newest] = &cuts[..] else { panic!("{cuts:?}") };
    let said = damage(newest);
    let number = |cut: &Path| -> u64 { text(cut).rsplit_once('-').unwrap().1.parse().unwrap() };
    let goes_on = ["--checkpoint", text(&folder), "--resume", "auto", "--servers", "3", "--threads", "2"];
    let copy = directory.path().join("copy");
    let copied = std::process::Command::new("cp").args(["-r", text(&folder), text(&copy)]).status().unwrap();
    assert!(copied.success());
    let (found, ended) = training.weights(&goes_on);
    assert_eq!(found, expected);
    let taken = format!("an older checkpoint is taken, cut {}", number(older));
    ended.says(&said).says(&taken).says(&format!("goes on from cut {}, clock", number(older)));
    // Where it was asked for by name, and where there is no other, it is the error, with its own exit code.
    let copy_of = |cut: &Path| copy.join(cut.file_name().unwrap());
    let said = said.replace(text(&folder), text(&copy));
    let named = copy_of(newest);
    let by_name = [&all[..], &["--resume", text(&named)]].concat();
    Training::new(directory.path(), &by_name).start(&[]).end(PATIENCE).expect(24).says(&said);
    let mut last = String::new();
    for cut in &cuts[..cuts.len() - 1] {
        last = damage(&copy_of(cut));
    }
    let none = [&all[..], &["--checkpoint", text(&copy), "--resume", "auto"]].concat();
    let ended = Training::new(directory.path(), &none).start(&[]).end(PATIENCE).expect(24).says(&said);
    ended.says(&last);
}

/// The directory of another run is not taken by mistake, nor thinned out.
#[test]
fn a_run_that_begins_anew_says_so_and_lets_the_other_runs_cuts_alone() {
    let directory = scratch();
    let folder = directory.path().join("kept");
    let data = data(directory.path());
    let arguments = ["--data", &data, "--workers", "2", "--batch", "5", "--epochs", "100000"];
    let training = Training::new(directory.path(), &arguments);
    training.leaves(&folder, 1, &["--every", "1s", "--keep", "1"]);
    let theirs = committed(&folder).pop().unwrap();
    let refused = training.start(&["--checkpoint", text(&folder)]).end(PATIENCE).expect(11);
    refused.says("--resume auto to go on").says("--resume new to begin anew").says(text(&theirs));
    let first =
        training.start(&["--checkpoint", text(&folder), "--resume", "new", "--every", "20", "--keep", "1"]);
    let number = |cut: &Path| -> u64 { text(cut).rsplit_once('-').unwrap().1.parse().unwrap() };
    until(PATIENCE, "a cut of the new run", || has_cut(&folder, number(&theirs) + 1));
    let its_first = committed(&folder).into_iter().find(|cut| *cut != theirs).unwrap();
    until(PATIENCE, "the end of its first cut", || !its_first.exists());
    first.signal(Signal::KILL);
    let said = first.end(PATIENCE).stderr;
    assert!(!said.contains("goes on from cut"), "{said}");
    assert!(theirs.join("MANIFEST").exists(), "the other run's is still there");
}

#[test]
fn what_can_not_be_resumed_is_refused() {
    let directory = scratch();
    let folder = text(&directory.path().join("kept")).to_owned();
    let data = data(directory.path());
    let training = Training::new(directory.path(), &["--data", &data, "--workers", "2"]);
    // Nothing is there yet: it begins.
    let begins = ["--every", "20", "--batch", "5", "--resume", "auto", "--epochs", "100000"];
    training.leaves(Path::new(&folder), 1, &begins);
    let refused = |more: &[&str], why: &str| {
        let resumes = ["--checkpoint", &folder, "--resume", "auto"];
        let ended = training.start(&[&resumes, more].concat()).end(PATIENCE);
        assert_ne!(ended.code, 0);
        ended.says(why);
    };
    refused(&["--batch", "7"], "--resume: expected a checkpoint of");
    refused(&["--batch", "5", "--optimizer", "sgd"], "asked for as");
    let other = ["train", "lr", "--resume", "auto", "--checkpoint", &folder, "--workers", "3"];
    run(other).expect(11).says("workers: expected 2, as in the checkpoint, found 3");
    run(["train", "lr", "--resume", "auto"]).expect(11).says("--checkpoint");
    run(["train", "lr", "--every", "10"]).expect(11).says("--checkpoint");
    run(["train", "lr", "--every", "10x"]).expect(2);
    let nowhere = text(&directory.path().join("cut-000009")).to_owned();
    run(["train", "lr", "--resume", &nowhere]).expect(12).says("cut-000009/MANIFEST");
    // The checkpoint alone is enough to go on from it.
    let cuts = fs::read_dir(&folder).unwrap().flatten().map(|e| e.path());
    let newest = cuts.filter(|path| path.join("MANIFEST").exists()).max().unwrap();
    let alone =
        ["--data", &data, "--workers", "2", "--epochs", "4", "--batch", "5", "--resume", text(&newest)];
    Training::new(directory.path(), &alone).weights(&[]).1.says("goes on from cut");
}
