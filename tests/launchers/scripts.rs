//! The scripts that the README names, below the real launchers; and what `scripts/install.sh` puts beside the program.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Command;

use super::slurm::Slurm;
use super::{Launcher, WINDLASS, wanted};
use crate::common::{PATIENCE, run, scratch, text, until};

fn script(name: &str) -> String {
    format!("{}/scripts/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// A training that is short in any build.
const SHORT: [&str; 2] = ["--epochs", "1"];

/// What a training comes to on this machine alone.
pub fn alone(folder: &Path, flags: &[&str]) -> String {
    let report = folder.join("alone.json");
    run([&["train", "lr"][..], flags, &["--report", text(&report)]].concat()).expect(0);
    digest(&report)
}

/// The digest of the weights in a report.
pub fn digest(report: &Path) -> String {
    let written: serde_json::Value = serde_json::from_slice(&fs::read(report).unwrap()).unwrap();
    written["weights_sha256"].as_str().unwrap().to_owned()
}

#[test]
fn batch_scripts_run_as_they_are() {
    if !wanted() {
        return;
    }
    let (slurm, folder) = (Slurm::start(), scratch());
    let report = folder.path().join("report.json");
    let told = [("WINDLASS", WINDLASS), ("SERVERS", "2")];
    let slurm = |command: &[&str]| slurm.launcher(command, &told, folder.path());
    let expected = alone(folder.path(), &SHORT);
    let written = [&SHORT[..], &["--report", text(&report)]].concat();
    let batch = |name: &str, arguments: &[&str]| {
        let submit = ["sbatch", "-Q", "--overcommit"];
        slurm(&submit).run(&[&[&*script(name)][..], arguments].concat()).expect(0);
        // `sbatch --wait` looks every minute or so.
        until(PATIENCE, "the end of the jobs", || {
            slurm(&["squeue", "-h"]).run(&[]).expect(0).stdout.is_empty()
        });
    };
    batch("windlass.sbatch", &written);
    assert_eq!(digest(&report), expected);
    fs::remove_file(&report).unwrap();
    // How often it saves, and how long that may take, if nobody says otherwise.
    let (stub, told) = (folder.path().join("stub"), folder.path().join("told"));
    fs::write(&stub, format!("#!/bin/sh\necho $WINDLASS_EVERY $WINDLASS_GRACE > {}\n", text(&told))).unwrap();
    fs::set_permissions(&stub, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let stubbed = ["env", &format!("WINDLASS={}", text(&stub)), "sbatch", "-Q", "--overcommit"];
    slurm(&stubbed).run(&[&script("windlass.sbatch")]).expect(0);
    until(PATIENCE, "what the script says", || {
        fs::read_to_string(&told).is_ok_and(|told| told == "10m 20\n")
    });
    let inside =
        ["-N", "2", "-n", "6", "--overcommit", "--", "--servers", "2", "--", WINDLASS, "train", "lr"];
    slurm(&["bash"]).run(&[&[&*script("windlass-salloc.sh")][..], &inside, &written].concat()).expect(0);
    assert_eq!(digest(&report), expected);
    fs::remove_file(&report).unwrap();
    // One job for each of four rates: a server and three workers each.
    batch("windlass-sweep.sbatch", &SHORT);
    let digests: std::collections::BTreeSet<String> =
        (0..4).map(|job| digest(&folder.path().join(format!("sweep-{job}.json")))).collect();
    assert_eq!(digests.len(), 4);
}

/// What Open MPI needs where all ranks are on this machine.
pub const OPEN_MPI_HERE: &str = "--oversubscribe --mca oob_tcp_if_include lo";

/// `windlass-mpirun.sh` with this `mpirun` and its flags. As other launchers it is followed by `windlass run` and its flags, though the
/// script itself puts these two words there.
pub fn by_script(mpirun: &str, flags: &str, ranks: &str, folder: &Path) -> Launcher {
    let told = [
        ("OMPI_ALLOW_RUN_AS_ROOT", "1"),
        ("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1"),
        ("WINDLASS", WINDLASS),
        ("MPIRUN", mpirun),
        ("MPIRUN_FLAGS", flags),
    ];
    let drops = "ranks=$1; shift 3; exec bash \"$0\" \"$ranks\" \"$@\"";
    Launcher::new(&["bash", "-c", drops, &script("windlass-mpirun.sh"), ranks], &told, folder)
}

#[test]
fn the_mpirun_script_runs_as_it_is() {
    if !wanted() {
        return;
    }
    let folder = scratch();
    let expected = alone(folder.path(), &SHORT);
    for (mpirun, flags) in [("mpirun.openmpi", OPEN_MPI_HERE), ("mpirun.mpich", "")] {
        let launcher = by_script(mpirun, flags, "6", folder.path());
        let report = folder.path().join("report.json");
        let job =
            [WINDLASS, "run", "--servers", "2", "--", WINDLASS, "train", "lr", "--report", text(&report)];
        launcher.run(&[&job[..], &SHORT].concat()).expect(0);
        assert_eq!(digest(&report), expected);
    }
}

/// What a shell says, or nothing where there is no such program.
fn said(program: &str, arguments: &[&str]) -> Option<String> {
    let Ok(output) = Command::new(program).args(arguments).output() else {
        let _ = writeln!(std::io::stderr(), "skipped: no {program}");
        return None;
    };
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{program}: {stdout}\n{stderr}");
    Some(stdout.into_owned() + &stderr)
}

/// The release that the stage `cluster` has built.
#[test]
fn what_is_installed_is_found_through_its_module() {
    if !wanted() {
        return;
    }
    let folder = scratch();
    let prefix = folder.path().join("prefix");
    let installed = said("bash", &[&script("install.sh"), text(&prefix)]).unwrap();
    let version = env!("CARGO_PKG_VERSION");
    assert!(installed.contains(&format!("windlass {version} is in ")), "{installed}");
    let moved = folder.path().join("moved");
    fs::rename(&prefix, &moved).unwrap();
    let program = said(text(&moved.join("bin/windlass")), &["--version"]).unwrap();
    assert!(program.starts_with(&format!("windlass {version}")), "{program}");
    let share = moved.join("share");
    for file in ["bash-completion/completions/windlass", "man/man1/windlass.1", "doc/windlass/LICENSE-MIT"] {
        assert!(share.join(file).is_file(), "{file}");
    }
    let modules = share.join("modulefiles");
    if said("modulecmd", &["bash", "list"]).is_none() {
        return;
    }
    let path = format!("MODULEPATH={}", text(&modules));
    let loads = said("env", &[&path, "modulecmd", "bash", "load", "windlass"]).unwrap();
    let shell = format!("{loads}\ncommand -v windlass; man -w windlass-run; windlass --version");
    let found = said("bash", &["-c", &shell]).unwrap();
    let expected = [moved.join("bin/windlass"), share.join("man/man1/windlass-run.1")];
    assert_eq!(found, format!("{}\n{}\n{program}", text(&expected[0]), text(&expected[1])));
}

#[test]
fn man_pages_and_completions_are_such() {
    let folder = scratch();
    let share = folder.path().join("share");
    run(["pages", text(&share)]).expect(0);
    let bash = share.join("bash-completion/completions/windlass");
    let complete = "source \"$0\"; complete -p windlass; COMP_WORDS=(windlass run --host) COMP_CWORD=2; \
         _windlass windlass --host run; echo \"${COMPREPLY[@]}\"";
    let completed = said("bash", &["-c", complete, text(&bash)]).unwrap();
    assert!(
        completed.contains("_windlass") && completed.lines().any(|line| line == "--hostfile"),
        "{completed}"
    );
    let pages: Vec<_> =
        fs::read_dir(share.join("man/man1")).unwrap().map(|page| page.unwrap().path()).collect();
    let name = |page: &&std::path::PathBuf, name: &str| page.file_name().is_some_and(|n| n == name);
    assert!(pages.iter().any(|page| name(&page, "windlass-run.1")), "{pages:?}");
    assert!(!pages.iter().any(|page| name(&page, "windlass-guard.1")), "hidden commands are nobody's");
    for page in &pages {
        let source = fs::read_to_string(page).unwrap();
        assert!(source.contains(".TH ") && source.contains(".SH NAME"), "{page:?}");
    }
    let page = share.join("man/man1/windlass-run.1");
    if let Some(shown) = said("man", &["--warnings", "-l", text(&page)]) {
        assert!(shown.contains("--hostfile") && !shown.contains("warning"), "{shown}");
    }
}
