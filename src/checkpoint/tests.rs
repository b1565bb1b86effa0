//! The format byte for byte; files that were changed; and disks that fail or vanish at any step.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use proptest::prelude::*;

use super::*;
use crate::error::Error;
use crate::types::{OptimizerSpec, ShardId, TableSpec};

/// What a disk does at one step, and from then on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// The step fails, with this errno; those behind it do not.
    Fails(i32),
    /// A write takes half, then fails; other steps fail.
    Short,
    /// The machine is gone: this step and all behind it fail.
    Gone,
}

/// What is still there after the machine was gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Survives {
    /// What was synced.
    Synced,
    /// All that was written.
    All,
    /// All names, and the bytes that were synced.
    Names,
}

#[derive(Debug, Default, Clone)]
struct State {
    /// Bytes as they are, and as they were synced.
    files: Vec<(Vec<u8>, Vec<u8>)>,
    /// Names of files, and of directories (without a file), as they are and as they were synced.
    names: BTreeMap<PathBuf, Option<usize>>,
    synced: BTreeMap<PathBuf, Option<usize>>,
    steps: usize,
    fault: Option<(usize, Fault)>,
    gone: bool,
}

/// A disk in memory.
#[derive(Debug, Clone, Default)]
struct Memory(Arc<Mutex<State>>);

struct MemoryFile(Memory, usize);

impl State {
    /// Whether this step fails; a write may still take half.
    fn step(&mut self) -> Result<(), (Fault, io::Error)> {
        let step = self.steps;
        self.steps += 1;
        match self.fault {
            _ if self.gone => Err((Fault::Gone, io::Error::from_raw_os_error(5))),
            Some((at, fault)) if at == step => {
                self.gone = fault == Fault::Gone;
                let errno = if let Fault::Fails(errno) = fault { errno } else { 28 };
                Err((fault, io::Error::from_raw_os_error(errno)))
            }
            _ => Ok(()),
        }
    }
}

impl Memory {
    fn with<T>(&self, act: impl FnOnce(&mut State) -> io::Result<T>) -> io::Result<T> {
        let mut state = self.0.lock().unwrap();
        state.step().map_err(|(_, error)| error)?;
        act(&mut state)
    }

    /// The disk after the machine came back.
    fn after(&self, survives: Survives) -> Memory {
        let mut state = self.0.lock().unwrap().clone();
        (state.fault, state.gone) = (None, false);
        if survives == Survives::Synced {
            state.names = state.synced.clone();
            // What lies in a directory without a name can't be reached.
            let names = state.names.clone();
            let root = Path::new("/");
            let reached =
                |path: &Path| path.ancestors().skip(1).all(|up| up == root || names.contains_key(up));
            state.names.retain(|path, _| reached(path));
        }
        if survives != Survives::All {
            state.files.iter_mut().for_each(|(bytes, synced)| bytes.clone_from(synced));
        }
        Memory(Arc::new(Mutex::new(state)))
    }

    fn storage(&self) -> Arc<dyn Storage> {
        Arc::new(self.clone())
    }

    fn bytes(&self, path: &Path) -> Vec<u8> {
        let state = self.0.lock().unwrap();
        state.files[state.names[path].unwrap()].0.clone()
    }

    fn put(&self, path: &Path, bytes: &[u8]) {
        let mut state = self.0.lock().unwrap();
        state.files.push((bytes.to_vec(), bytes.to_vec()));
        let file = state.files.len() - 1;
        state.names.insert(path.to_owned(), Some(file));
    }
}

fn missing() -> io::Error {
    io::Error::from(io::ErrorKind::NotFound)
}

impl Storage for Memory {
    fn create(&self, path: &Path) -> io::Result<Box<dyn StorageFile>> {
        let file = self.with(|state| {
            state.files.push(Default::default());
            let file = state.files.len() - 1;
            state.names.insert(path.to_owned(), Some(file));
            Ok(file)
        })?;
        Ok(Box::new(MemoryFile(self.clone(), file)))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn StorageFile>> {
        let file = self.with(|state| state.names.get(path).copied().flatten().ok_or_else(missing))?;
        Ok(Box::new(MemoryFile(self.clone(), file)))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.with(|state| {
            let file = state.names.remove(from).ok_or_else(missing)?;
            state.names.insert(to.to_owned(), file);
            Ok(())
        })
    }

    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        self.with(|state| {
            let here = |name: &PathBuf| name.parent() == Some(path);
            state.synced.retain(|name, _| !here(name));
            let names = state.names.iter().filter(|(name, _)| here(name));
            state.synced.extend(names.map(|(name, file)| (name.clone(), *file)).collect::<Vec<_>>());
            Ok(())
        })
    }

    fn make_directory(&self, path: &Path) -> io::Result<()> {
        self.with(|state| {
            for path in path.ancestors().filter(|path| path.parent().is_some()) {
                state.names.entry(path.to_owned()).or_insert(None);
            }
            Ok(())
        })
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        self.with(|state| {
            if !state.names.contains_key(path) {
                return Err(missing());
            }
            let names = state.names.keys().filter(|name| name.parent() == Some(path));
            Ok(names.map(|name| name.file_name().unwrap().to_str().unwrap().to_owned()).collect())
        })
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.with(|state| state.names.remove(path).map(drop).ok_or_else(missing))
    }

    fn remove_directory(&self, path: &Path) -> io::Result<()> {
        self.with(|state| {
            assert!(!state.names.keys().any(|name| name.parent() == Some(path)), "not empty");
            state.names.remove(path).map(drop).ok_or_else(missing)
        })
    }
}

impl StorageFile for MemoryFile {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut state = self.0.0.lock().unwrap();
        let (bytes, outcome) = match state.step() {
            Ok(()) => (bytes, Ok(())),
            Err((Fault::Short, error)) => (&bytes[..bytes.len() / 2], Err(error)),
            Err((_, error)) => return Err(error),
        };
        let file = &mut state.files[self.1].0;
        let end = offset as usize + bytes.len();
        if file.len() < end {
            file.resize(end, 0);
        }
        file[offset as usize..end].copy_from_slice(bytes);
        outcome
    }

    fn sync(&self) -> io::Result<()> {
        self.0.with(|state| {
            let (bytes, synced) = &mut state.files[self.1];
            synced.clone_from(bytes);
            Ok(())
        })
    }

    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.with(|state| {
            let end = offset as usize + into.len();
            let from = state.files[self.1].0.get(offset as usize..end);
            into.copy_from_slice(from.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?);
            Ok(())
        })
    }

    fn length(&self) -> io::Result<u64> {
        self.0.with(|state| Ok(state.files[self.1].0.len() as u64))
    }
}

const SHARD: ShardId = ShardId { server: 1, thread: 2 };

fn id(kind: SectionKind, bucket: u32) -> SectionId {
    SectionId { kind, table: 0, bucket }
}

fn header(clock: u64) -> Header {
    Header { kind: FileKind::Shard, clock, shard: SHARD }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A file of two sections, the second in two parts, the later one first.
fn small(disk: &Memory) -> (PathBuf, FileEntry) {
    let path = PathBuf::from("/small");
    let mut file = FileWriter::create(disk.storage(), &path, header(7)).unwrap();
    file.section(id(SectionKind::Parameters, 3), 9, &[1, 2, 3, 4]).unwrap();
    file.part((id(SectionKind::State, 3), 9), 8, 4, &[9, 10, 11, 12]).unwrap();
    file.part((id(SectionKind::State, 3), 9), 8, 0, &[5, 6, 7, 8]).unwrap();
    (path, file.finish().unwrap())
}

#[test]
fn golden_bytes() {
    let disk = Memory::default();
    let (path, entry) = small(&disk);
    let bytes = disk.bytes(&path);
    assert_eq!(bytes.len(), 64 + 64 + 64 + 2 * ENTRY);
    assert_eq!(hex(&bytes[..64]), GOLDEN_HEADER);
    assert_eq!(hex(&bytes[64..68]), "01020304");
    assert_eq!(hex(&bytes[128..136]), "05060708090a0b0c");
    assert!(bytes[68..128].iter().chain(&bytes[136..192]).all(|&byte| byte == 0));
    assert_eq!(hex(&bytes[192..]), GOLDEN_DIRECTORY);
    assert_eq!(entry.digest, GOLDEN_DIGEST);
    let clock = WorkerClock { clock: 1, finished: None, incarnation: 2, next_sequence: 3 };
    assert_eq!(hex(&encode_clocks(&[clock])), GOLDEN_CLOCK);
    let ahead = AheadEntry { table: 1, bucket: 2, worker: 3, clock: 4, keys: 5 };
    assert_eq!(hex(&encode_ahead(&[ahead])), GOLDEN_AHEAD);
    assert_eq!(decode_ahead(&encode_ahead(&[ahead, ahead])), [ahead, ahead]);
    let finished = WorkerClock { finished: Some(5), ..clock };
    assert_eq!(decode_clocks(&encode_clocks(&[clock, finished])), [clock, finished]);
}

const GOLDEN_HEADER: &str = "574c43484b505400020000000100000007000000000000000100000002000000\
                             c000000000000000020000000706edf5100100000000000000000000c560162b";
const GOLDEN_DIRECTORY: &str = "030000000000000003000000f48c302940000000000000000400000000000000\
                                0900000000000000040000000000000003000000da274e6a8000000000000000\
                                08000000000000000900000000000000";
const GOLDEN_DIGEST: &str = "1c39f351ed8d0ed4b1dc0e054e3d8e1ee75c60ed0b5b7c9ee0aec312eb908cb0";
const GOLDEN_AHEAD: &str = "0100000002000000030000000000000004000000000000000500000000000000";
const GOLDEN_CLOCK: &str = "0100000000000000ffffffffffffffff02000000000000000300000000000000";

/// What is wrong with a file, and where.
fn flaw(disk: &Memory, path: &Path) -> Option<(String, u64)> {
    match CutFile::open(disk, path).and_then(|file| file.verify()) {
        Ok(()) => None,
        Err(Error::Checkpoint { file, section, offset, .. }) => {
            assert_eq!(file, path.display().to_string());
            Some((section, offset))
        }
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn every_flipped_bit_and_every_cut_is_named() {
    let disk = Memory::default();
    let (path, _) = small(&disk);
    let good = disk.bytes(&path);
    assert_eq!(flaw(&disk, &path), None);
    for at in 0..good.len() {
        for bit in 0..8 {
            let mut bad = good.clone();
            bad[at] ^= 1 << bit;
            disk.put(&path, &bad);
            let expected = match at {
                0..64 => "header",
                64..68 => "parameters of table 0 bucket 3",
                128..136 => "state of table 0 bucket 3",
                192.. => "directory",
                _ => "padding",
            };
            let (section, offset) = flaw(&disk, &path).unwrap();
            assert_eq!(section, expected, "byte {at}");
            assert!(offset <= at as u64, "byte {at}: {offset}");
        }
    }
    for length in 0..good.len() {
        disk.put(&path, &good[..length]);
        assert_eq!(flaw(&disk, &path).unwrap().0, "header", "{length}");
    }
    disk.put(&path, &[&good[..], &[0]].concat());
    assert_eq!(flaw(&disk, &path), Some(("header".to_owned(), 48)));
}

/// Directories that are right by their CRC, and lie.
#[test]
fn sections_where_they_can_not_be_are_refused() {
    let section =
        |offset, length| Section { id: id(SectionKind::Rows, 0), version: 0, offset, length, crc: 0 };
    let sections = vec![section(64, 10), section(128, 70)];
    let (header, directory) = Index { header: header(0), sections }.encode();
    let length = 256 + 2 * ENTRY as u64;
    let decode = |at: usize, value: u64| {
        let (mut header, mut directory) = (header, directory.clone());
        directory[at..at + 8].copy_from_slice(&value.to_le_bytes());
        header[44..48].copy_from_slice(&crc32c::crc32c(&directory).to_le_bytes());
        let crc = crc32c::crc32c(&header[..60]);
        header[60..].copy_from_slice(&crc.to_le_bytes());
        Index::decode(&header, &directory, length)
    };
    let (offset, size) = (16, 24);
    assert!(decode(offset, 64).is_ok());
    for value in [0, 1, 65, 128, 256, u64::MAX, u64::MAX - 63] {
        assert!(decode(offset, value).is_err(), "offset {value}");
        assert!(
            decode(ENTRY + offset, value.wrapping_add(u64::from(value == 128))).is_err(),
            "second offset {value}"
        );
    }
    for value in [65, 200, 1 << 40, u64::MAX, u64::MAX - 63, u64::MAX - 64] {
        assert!(decode(size, value).is_err(), "length {value}");
        assert!(
            decode(ENTRY + size, value.wrapping_add(64)).is_err() || value == 65,
            "second length {value}"
        );
    }
    // A kind that is none, and one that is no section's.
    assert_eq!(decode(0, 10).unwrap_err().offset, 256);
    assert!(decode(0, 0).is_err());
}

#[test]
fn a_section_that_is_not_whole_is_not_finished() {
    let disk = Memory::default();
    let mut file = FileWriter::create(disk.storage(), Path::new("/f"), header(0)).unwrap();
    file.part((id(SectionKind::Rows, 1), 0), 8, 4, &[0; 4]).unwrap();
    let error = file.finish().unwrap_err().to_string();
    assert!(error.contains("rows of table 0 bucket 1") && error.contains("8 bytes in all"), "{error}");
}

proptest! {
    /// Sections of any lengths, their parts in any order, come back as they were.
    #[test]
    fn what_is_written_is_read(
        lengths in proptest::collection::vec(0usize..200, 0..12),
        part in 1usize..60,
        order in any::<prop::sample::Index>(),
    ) {
        let disk = Memory::default();
        let path = PathBuf::from("/f");
        let content = |bucket: usize, at: usize| (bucket * 31 + at * 7) as u8;
        let mut parts = Vec::new();
        for (bucket, &length) in lengths.iter().enumerate() {
            for at in (0..length.max(1)).step_by(part) {
                parts.push((bucket, at, at..(at + part).min(length)));
            }
        }
        if !parts.is_empty() {
            let middle = order.index(parts.len());
            parts.rotate_left(middle);
            parts[..middle].reverse();
        }
        let mut file = FileWriter::create(disk.storage(), &path, header(3)).unwrap();
        for (bucket, at, range) in parts {
            let bytes: Vec<u8> = range.map(|at| content(bucket, at)).collect();
            let id = id(SectionKind::Rows, bucket as u32);
            file.part((id, bucket as u64), lengths[bucket] as u64, at as u64, &bytes).unwrap();
        }
        let entry = file.finish().unwrap();
        let file = CutFile::open(&disk, &path).unwrap();
        file.verify().unwrap();
        prop_assert_eq!(file.entry(), &entry);
        prop_assert_eq!(file.header(), header(3));
        prop_assert_eq!(file.sections().len(), lengths.len());
        for section in file.sections() {
            let bucket = section.id.bucket as usize;
            let expected: Vec<u8> = (0..lengths[bucket]).map(|at| content(bucket, at)).collect();
            prop_assert_eq!(file.read(section).unwrap(), expected);
            prop_assert_eq!((section.version, section.offset % ALIGN), (bucket as u64, 0));
        }
    }
}

#[test]
fn the_newest_ones_are_kept() {
    let found = |list: &[(u64, bool)]| -> Vec<Found> {
        list.iter().map(|&(number, committed)| Found { number, committed }).collect()
    };
    let all = found(&[(1, true), (2, false), (3, true), (4, true), (5, false)]);
    let whole = |_: u64| Standing::Whole;
    assert_eq!(to_remove(&all, 4, 2, whole), [1, 2]);
    assert_eq!(to_remove(&all, 4, 1, whole), [1, 2, 3]);
    assert_eq!(to_remove(&all, 4, 0, whole), [1, 2, 3], "the newest one stays");
    assert_eq!(to_remove(&all, 4, 9, whole), [2], "what was given up goes, what is being written stays");
    assert!(to_remove(&[], 4, 2, whole).is_empty());
    // What can't be used keeps nothing else from staying, and goes when it is older than those that stay.
    let three = |standing| move |number: u64| if number == 3 { standing } else { Standing::Whole };
    assert_eq!(to_remove(&all, 4, 2, three(Standing::Flawed)), [2]);
    assert_eq!(to_remove(&all, 4, 1, three(Standing::Flawed)), [1, 2, 3]);
    assert_eq!(to_remove(&all, 4, 1, three(Standing::Foreign)), [1, 2], "another run's stays");
}

/// Flawed cuts and those of other runs, as they are on a disk.
#[test]
fn a_whole_cut_stays_beside_a_damaged_one_and_other_runs_are_let_alone() {
    let disk = Memory::default();
    let folder = Folder::new(disk.storage(), Path::new("/jobs/a"));
    let left = || -> Vec<u64> { folder.found().unwrap().iter().map(|f| f.number).collect() };
    let cut = |number, keep, run: &str| {
        let (file, entry) = small(&disk);
        let path = folder.begin(number).unwrap().join("small");
        disk.put(&path, &disk.bytes(&file));
        let (writer, run, files) = ("test".to_owned(), run.to_owned(), vec![entry]);
        let manifest = Manifest { writer, run, clock: 7, workers: 1, tables: vec![spec()], files };
        folder.commit(number, &manifest).unwrap();
        folder.retain(number, keep, &manifest.run).unwrap();
        path
    };
    cut(1, 2, "one");
    cut(2, 2, "other");
    let damaged = cut(3, 2, "one");
    disk.put(&damaged, b"x");
    cut(4, 2, "one");
    assert_eq!(left(), [1, 2, 3, 4], "1 and 4 are the two that can be used");
    cut(5, 2, "one");
    assert_eq!(left(), [2, 4, 5]);
}

/// Whatever number a job that runs there begins meanwhile, and whether it has written something of it.
#[test]
fn a_cut_that_is_added_neither_takes_nor_harms_one_of_a_job() {
    let home = tempfile::tempdir().unwrap();
    let folder = Folder::new(Arc::new(Disk), &home.path().join("cuts"));
    let names = || -> Vec<String> {
        let mut names = Disk.list(folder.path()).unwrap_or_default();
        names.sort();
        names
    };
    let failed = || Err(Error::config("on purpose", "nothing", "this"));
    assert!(folder.add(|_, _| failed()).is_err());
    assert!(!folder.path().exists(), "what it made is gone");
    checkpoint(&folder, 7).unwrap();
    for files in [0, 1] {
        let begun = folder.next().unwrap();
        let theirs = folder.cut(begun).join("shard-0000-000");
        let job = || {
            let path = folder.begin(begun).unwrap();
            (0..files).for_each(|_| std::fs::write(path.join("shard-0000-000"), "theirs").unwrap());
        };
        let outcome = folder.add(|draft, number| {
            checkpoint(draft, number).unwrap();
            job();
            failed()
        });
        assert!(outcome.is_err());
        let added = folder.add(checkpoint).unwrap();
        assert_eq!(added, begun + 1);
        assert!(theirs.exists() == (files == 1) && folder.cut(begun).exists());
        assert!(Cut::open(folder.storage(), &folder.cut(added)).is_ok());
        assert_eq!(names(), folder.found().unwrap().iter().map(|f| cut_name(f.number)).collect::<Vec<_>>());
    }
}

/// A disk of a job that begins a cut just when somebody has seen that there is none.
#[derive(Debug)]
struct Eager;

impl Storage for Eager {
    fn create(&self, path: &Path) -> io::Result<Box<dyn StorageFile>> {
        Disk.create(path)
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn StorageFile>> {
        Disk.open(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        Disk.rename(from, to)
    }

    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()> {
        if to.ends_with(cut_name(1)) {
            Disk.make_directory(to)?;
        }
        Disk.rename_new(from, to)
    }

    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        Disk.sync_directory(path)
    }

    fn make_directory(&self, path: &Path) -> io::Result<()> {
        Disk.make_directory(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        let listed = Disk.list(path);
        if listed.is_err() && path.ends_with(cut_name(1)) {
            Disk.make_directory(path)?;
        }
        listed
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        Disk.remove(path)
    }

    fn remove_directory(&self, path: &Path) -> io::Result<()> {
        Disk.remove_directory(path)
    }
}

#[test]
fn a_cut_that_is_added_never_takes_the_place_of_one_that_is_begun_at_that_moment() {
    let home = tempfile::tempdir().unwrap();
    let folder = Folder::new(Arc::new(Eager), home.path());
    assert_eq!(folder.add(checkpoint).unwrap(), 2);
    assert!(Disk.list(&folder.cut(1)).unwrap().is_empty(), "it is the job's");
}

/// Where the file system can't refuse, a name that is to be seen is still nobody else's.
#[test]
fn a_directory_gets_no_name_that_is_to_be_seen() {
    let home = tempfile::tempdir().unwrap();
    let path = |name: &str| home.path().join(name);
    let made = |names: &[&str]| names.iter().for_each(|name| Disk.make_directory(&path(name)).unwrap());
    made(&["draft", "taken"]);
    type Rename = fn(&Path, &Path) -> io::Result<()>;
    let ways: [(&str, Rename); 2] = [
        ("at once", |from, to| Disk.rename_new(from, to)),
        ("after a look", |from, to| storage::rename_unless_seen(&Disk, from, to)),
    ];
    for (way, rename) in ways {
        let refused = rename(&path("draft"), &path("taken")).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::AlreadyExists, "{way}");
        rename(&path("draft"), &path("free")).unwrap();
        assert!(!path("draft").exists(), "{way}");
        std::fs::rename(path("free"), path("draft")).unwrap();
    }
}

/// A disk on which a cut had no room has it for the next one.
#[test]
fn what_was_given_up_leaves_nothing() {
    let disk = Memory::default();
    let folder = Folder::new(disk.storage(), Path::new("/jobs/a"));
    checkpoint(&folder, 1).unwrap();
    let files = || -> Vec<PathBuf> {
        let state = disk.0.lock().unwrap();
        state.names.iter().filter(|(_, file)| file.is_some()).map(|(name, _)| name.clone()).collect()
    };
    let before = files();
    let begun = |number| {
        let path = folder.begin(number).unwrap().join("f");
        let mut file = FileWriter::create(disk.storage(), &path, header(0)).unwrap();
        file.section(id(SectionKind::Rows, 1), 0, &[0; 4]).unwrap();
        file
    };
    drop(begun(2));
    assert_eq!(files(), before, "a file that is not finished goes");
    begun(2).finish().unwrap();
    begun(3).finish().unwrap();
    let going_on = begun(4);
    folder.give_up(3).unwrap();
    let numbers = |f: Vec<Found>| f.iter().map(|f| f.number).collect::<Vec<_>>();
    assert_eq!(numbers(folder.found().unwrap()), [1, 4]);
    going_on.finish().unwrap();
    folder.give_up(4).unwrap();
    assert_eq!(numbers(folder.found().unwrap()), [1]);
    assert_eq!(files(), before);
}

#[test]
fn names_are_numbers() {
    assert_eq!(cut_name(7), "cut-000007");
    assert_eq!(cut_number(&cut_name(12_345_678)), Some(12_345_678));
    for other in ["cut-7", "cut-0000007", "cut-00000x", "cut-", "cut-000007.tmp", "x"] {
        assert_eq!(cut_number(other), None, "{other}");
    }
}

fn spec() -> TableSpec {
    TableSpec::sparse("w", 1).optimizer(OptimizerSpec::sgd(0.1))
}

/// Writes and commits a whole cut: two servers' files, the workers' states, the manifest; then removes what is not kept.
pub(super) fn checkpoint(folder: &Folder, number: u64) -> crate::error::Result<()> {
    let mut files = Vec::new();
    for server in 0..2 {
        let shard = ShardId { server, thread: 0 };
        let head = Header { kind: FileKind::Shard, clock: number * 10, shard };
        let path = folder.begin(number)?.join(shard_name(shard));
        let mut file = FileWriter::create(folder.storage().clone(), &path, head)?;
        file.section(id(SectionKind::Keys, server), number, &[number as u8; 80])?;
        file.section(id(SectionKind::Rows, server), number, &[server as u8; 40])?;
        files.push(file.finish()?);
    }
    files.push(folder.write_states(number, number * 10, &[vec![number as u8], vec![]])?);
    let (writer, run) = ("test".to_owned(), "a run".to_owned());
    let manifest = Manifest { writer, run, clock: number * 10, workers: 2, tables: vec![spec()], files };
    folder.commit(number, &manifest)?;
    folder.retain(number, 1, "a run")
}

fn newest(disk: &Memory) -> Option<u64> {
    newest_of(&Folder::new(disk.storage(), Path::new("/jobs/a")))
}

/// The newest usable cut, which must be whole.
pub(super) fn newest_of(folder: &Folder) -> Option<u64> {
    let (number, cut) = folder.latest().unwrap().cut?;
    cut.verify().unwrap();
    assert_eq!(cut.manifest().clock, number * 10);
    assert_eq!(cut.states().unwrap(), [vec![number as u8], vec![]]);
    let (file, section) = cut.find(id(SectionKind::Keys, 1)).unwrap();
    assert_eq!(file.read(section).unwrap(), [number as u8; 80]);
    Some(number)
}

#[test]
fn whatever_step_fails_the_checkpoint_before_stays_usable() {
    let first = Memory::default();
    let folder = |disk: &Memory| Folder::new(disk.storage(), Path::new("/jobs/a"));
    folder(&first).make().unwrap();
    checkpoint(&folder(&first), 1).unwrap();
    assert_eq!(newest(&first.after(Survives::Synced)), Some(1));
    for fault in [Fault::Fails(28), Fault::Fails(5), Fault::Short, Fault::Gone] {
        let mut seen = (0, 0);
        for step in 0.. {
            let disk = first.after(Survives::All);
            let began = {
                let mut state = disk.0.lock().unwrap();
                state.fault = Some((state.steps + step, fault));
                state.steps
            };
            let outcome = checkpoint(&folder(&disk), 2);
            let steps = disk.0.lock().unwrap().steps - began;
            for survives in [Survives::Synced, Survives::All, Survives::Names] {
                let what = format!("{fault:?} at step {step}, {survives:?} survives: {outcome:?}");
                let after = disk.after(survives);
                let found = newest(&after).unwrap_or_else(|| panic!("{what}: nothing is left"));
                assert!(found == 2 || outcome.is_err(), "{what}: {found}");
                // And the job goes on to make the next ones.
                checkpoint(&folder(&after), 3).unwrap_or_else(|e| panic!("{what}: {e}"));
                assert_eq!(newest(&after.after(Survives::Synced)), Some(3), "{what}");
                let left: Vec<u64> = folder(&after).found().unwrap().iter().map(|f| f.number).collect();
                assert_eq!(left, [3], "{what}");
                if found == 1 { seen.0 += 1 } else { seen.1 += 1 }
            }
            if steps <= step {
                assert!(outcome.is_ok(), "no step failed");
                break;
            }
        }
        assert!(seen.0 > 20 && seen.1 > 2, "both outcomes were met: {seen:?}");
    }
}

#[test]
fn what_a_manifest_does_not_mean_is_refused() {
    let disk = Memory::default();
    let folder = Folder::new(disk.storage(), Path::new("/jobs/a"));
    checkpoint(&folder, 1).unwrap();
    let cut = folder.cut(1);
    let shard = cut.join("shard-0001-000");
    let good = disk.bytes(&shard);
    let refused = || match Cut::open(&disk.storage(), &cut).map(|_| ()) {
        Err(Error::Checkpoint { file, section, .. }) => format!("{file}: {section}"),
        other => panic!("{other:?}"),
    };
    // Another file that is whole by itself.
    let other = Memory::default();
    disk.put(&shard, &other.after(Survives::All).bytes_of_small());
    assert_eq!(refused(), "/jobs/a/cut-000001/shard-0001-000: header");
    disk.put(&shard, &good[..good.len() - 1]);
    assert_eq!(refused(), "/jobs/a/cut-000001/shard-0001-000: header");
    disk.put(&shard, &good);
    assert!(Cut::open(&disk.storage(), &cut).is_ok());
    disk.remove(&shard).unwrap();
    assert!(matches!(Cut::open(&disk.storage(), &cut), Err(Error::Io { .. })));
    // The next newest is taken, and it is said why.
    disk.put(&shard, &good);
    disk.put(&cut.join(MANIFEST), &good);
    let Latest { cut, flaws } = folder.latest().unwrap();
    assert!(cut.is_none() && flaws.len() == 1, "{flaws:?}");
}

impl Memory {
    fn bytes_of_small(&self) -> Vec<u8> {
        let (path, _) = small(self);
        self.bytes(&path)
    }
}

#[test]
fn manifests_that_lead_elsewhere_or_do_not_come_back_are_refused() {
    let entry = |name: &str| FileEntry { name: name.to_owned(), bytes: 1, digest: String::new() };
    let manifest = |name: &str, rate: f32| Manifest {
        writer: "test".to_owned(),
        run: "a run".to_owned(),
        clock: 1,
        workers: 1,
        tables: vec![TableSpec::sparse("w", 1).optimizer(OptimizerSpec::sgd(rate))],
        files: vec![entry(name)],
    };
    assert!(manifest("shard-0000-000", 0.1).to_json().is_some());
    assert!(manifest("shard-0000-000", f32::NAN).to_json().is_none());
    // Memory would be taken for each worker that it claims.
    for (field, value) in [("workers", 0), ("workers", u64::from(u32::MAX)), ("clock", u64::MAX)] {
        let mut lies = serde_json::to_value(manifest("f", 0.1)).unwrap();
        lies[field] = value.into();
        let why = Manifest::from_json(lies.to_string().as_bytes()).unwrap_err();
        assert!(why.contains(&value.to_string()), "{field}: {why}");
    }
    for name in ["", "../x", "/etc/passwd", ".hidden", "a/b", "a\\b", &"x".repeat(65)] {
        assert!(manifest(name, 0.1).to_json().is_none(), "{name}");
    }
    for rate in [0.1, 1e-45, f32::MAX, 0.333_333_34, 16_777_217.0] {
        let text = manifest("f", rate).to_json().unwrap();
        assert_eq!(Manifest::from_json(text.as_bytes()).unwrap(), manifest("f", rate));
    }
}
