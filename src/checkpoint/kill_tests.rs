//! A process that is killed (SIGKILL) at any step of a checkpoint, on a real disk.

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::process::{Signal, getpid, kill_process};

use super::tests::{checkpoint, newest_of};
use super::*;

/// The variable that says before which step the process is killed.
const STEP: &str = "TEST_KILLED_AT";

/// The real disk, and how many steps that change it are left to this process.
#[derive(Debug, Clone)]
struct Deadly(Arc<AtomicUsize>);

struct DeadlyFile(Deadly, Box<dyn StorageFile>);

impl Deadly {
    fn is_last(&self) -> bool {
        self.0.fetch_sub(1, Ordering::Relaxed) == 0
    }

    fn step<T>(&self, act: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        if self.is_last() { die() } else { act() }
    }
}

fn die() -> ! {
    kill_process(getpid(), Signal::KILL).unwrap();
    unreachable!("SIGKILL to oneself comes before the call returns")
}

impl Storage for Deadly {
    fn create(&self, path: &Path) -> io::Result<Box<dyn StorageFile>> {
        let file = self.step(|| Disk.create(path))?;
        Ok(Box::new(DeadlyFile(self.clone(), file)))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn StorageFile>> {
        Disk.open(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.step(|| Disk.rename(from, to))
    }

    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        self.step(|| Disk.sync_directory(path))
    }

    fn make_directory(&self, path: &Path) -> io::Result<()> {
        self.step(|| Disk.make_directory(path))
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        Disk.list(path)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.step(|| Disk.remove(path))
    }

    fn remove_directory(&self, path: &Path) -> io::Result<()> {
        self.step(|| Disk.remove_directory(path))
    }
}

impl StorageFile for DeadlyFile {
    /// The last one is torn in its middle.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        if self.0.is_last() {
            self.1.write_at(&bytes[..bytes.len() / 2], offset)?;
            die()
        }
        self.1.write_at(bytes, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.step(|| self.1.sync())
    }

    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
        self.1.read_at(into, offset)
    }

    fn length(&self) -> io::Result<u64> {
        self.1.length()
    }
}

/// The number of the next cut, behind all that were begun.
fn next(folder: &Folder) -> u64 {
    folder.found().unwrap().last().map_or(1, |newest| newest.number + 1)
}

#[test]
#[ignore = "started by another test, to be killed"]
fn makes_a_checkpoint_until_it_is_killed() {
    let steps = std::env::var(STEP).unwrap().parse().unwrap();
    let folder = Folder::new(Arc::new(Deadly(Arc::new(AtomicUsize::new(steps)))), Path::new("."));
    checkpoint(&folder, next(&folder)).unwrap();
}

/// All in one directory, where each process finds what those before it have left.
#[test]
fn wherever_a_process_is_killed_the_checkpoint_before_stays_usable() {
    let directory = tempfile::tempdir().unwrap();
    let folder = Folder::new(Arc::new(Disk), directory.path());
    checkpoint(&folder, 1).unwrap();
    let (mut before, mut seen) = (1, (0, 0));
    for step in 0.. {
        let begun = next(&folder);
        let child = ["--exact", "checkpoint::kill_tests::makes_a_checkpoint_until_it_is_killed", "--ignored"];
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(child).env(STEP, step.to_string()).current_dir(directory.path());
        let status = command.stdout(Stdio::null()).status().unwrap();
        let found = newest_of(&folder).unwrap_or_else(|| panic!("killed at step {step}: nothing is left"));
        if status.success() {
            assert_eq!(found, begun);
            let left: Vec<u64> = folder.found().unwrap().iter().map(|f| f.number).collect();
            assert_eq!(left, [begun], "what the killed ones have left is gone");
            break;
        }
        assert_eq!(status.signal(), Some(Signal::KILL.as_raw()), "step {step}: {status}");
        assert!(found == before || found == begun, "killed at step {step}: {found}, after {before}");
        if found == before {
            seen.0 += 1
        } else {
            seen.1 += 1
        }
        before = found;
    }
    assert!(seen.0 > 20 && seen.1 > 2, "both outcomes were met: {seen:?}");
}
