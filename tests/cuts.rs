//! Cuts of jobs in this process: what is in them under each consistency, and that nobody waits for a disk.

#![allow(clippy::unwrap_used)] // in a test a failure is a panic

mod common;

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam::channel::{Receiver, bounded};

use common::{PATIENCE, scratch, until};
use windlass::checkpoint::{
    Cut, Disk, FileKind, Folder, SectionId, SectionKind, Storage, StorageFile, decode_clocks,
};
use windlass::config::settings::Every;
use windlass::config::{Network, ServerLimits};
use windlass::control::Limits;
use windlass::server::coordinator::{
    Checkpoints, CoordinatorServer, CoordinatorServerConfig, Outcome, Resume, StopHandle,
};
use windlass::store::Optimizer;
use windlass::types::{Consistency, OptimizerSpec};
use windlass::{
    Client, ClientConfig, KeyRange, Result, Secret, Server, ServerHandle, SortedKeys, Table, TableSpec,
};

/// A job that makes checkpoints: its coordinator and servers.
struct Job {
    address: String,
    secret: Secret,
    workers: u32,
    network: Network,
    stop: StopHandle,
    coordinator: JoinHandle<Result<Outcome>>,
    servers: Vec<ServerHandle>,
}

/// What a job is given beside its numbers: the disks are those of the coordinator and of the servers.
struct Setup {
    limits: ServerLimits,
    network: Network,
    disks: [Arc<dyn Storage>; 2],
    /// What the rule `held` waits for while a table is made beside the server thread.
    held: Option<Receiver<()>>,
}

impl Default for Setup {
    fn default() -> Setup {
        let disks: [Arc<dyn Storage>; 2] = [Arc::new(Disk), Arc::new(Disk)];
        let network = Network { transport: common::transport(), ..Network::default() };
        Setup { limits: ServerLimits::default(), network, disks, held: None }
    }
}

impl Job {
    fn start(folder: &Path, (servers, threads): (u32, u32), workers: u32, every: Option<Every>) -> Job {
        Job::with(folder, (servers, threads), workers, every, Setup::default())
    }

    fn with(
        folder: &Path,
        (servers, threads): (u32, u32),
        workers: u32,
        every: Option<Every>,
        setup: Setup,
    ) -> Job {
        let Setup { limits, network, disks: [ours, theirs], held } = setup;
        let secret = Secret::generate().unwrap();
        let mut config = CoordinatorServerConfig::new(secret.clone(), "", servers, Some(workers));
        let folder = Some(folder.to_owned());
        let resume = Some(Resume::Auto);
        config.checkpoints = Checkpoints { folder: folder.clone(), every, keep: 100, resume, storage: ours };
        config.limits = Limits::of(&network);
        let coordinator = CoordinatorServer::bind(config).unwrap();
        let (address, stop) = (coordinator.address().to_string(), coordinator.stop_handle());
        let start = |_| {
            let builder = Server::builder(&address, secret.clone()).threads(threads).limits(limits);
            let builder = builder.network(network.clone()).storage(theirs.clone());
            let builder = builder.checkpoints(folder.clone(), None);
            let held = held.clone();
            builder.optimizer("held", move |_| Ok(Box::new(Held(held.clone())))).start().unwrap()
        };
        let servers = (0..servers).map(start).collect();
        let coordinator = std::thread::spawn(move || coordinator.run());
        Job { address, secret, workers, network, stop, coordinator, servers }
    }

    fn clients(&self) -> Vec<Client> {
        let config = |rank| ClientConfig {
            network: self.network.clone(),
            ..ClientConfig::new(&self.address, self.secret.clone(), rank, self.workers)
        };
        let join = |rank| std::thread::spawn(move || Client::connect(rank).unwrap());
        let joining: Vec<_> = (0..self.workers).map(|rank| join(config(rank))).collect();
        joining.into_iter().map(|thread| thread.join().unwrap()).collect()
    }

    /// Waits for the end; it is the workers' doing, or [`StopHandle::end`].
    fn end(self) -> Result<Outcome> {
        let outcome = self.coordinator.join().unwrap();
        self.servers.into_iter().for_each(|server| drop(server.run()));
        outcome
    }
}

fn newest(folder: &Path) -> Option<(u64, Cut)> {
    let storage: Arc<dyn Storage> = Arc::new(Disk);
    Folder::new(storage, folder).latest().unwrap().cut
}

/// The newest cut, once there is one of this clock.
fn cut_of(folder: &Path, clock: u64) -> Cut {
    let mut found = None;
    until(PATIENCE, "a cut", || {
        found = newest(folder).map(|(_, cut)| cut).filter(|cut| cut.manifest().clock == clock);
        found.is_some()
    });
    let cut = found.unwrap();
    cut.verify().unwrap();
    cut
}

fn floats(cut: &Cut, kind: SectionKind, table: u32, bucket: u32) -> Vec<f32> {
    let (file, section) = cut.find(SectionId { kind, table, bucket }).unwrap();
    file.read_floats(section).unwrap()
}

/// All of one worker's clocks but the last call of each: pushes `value`, and says what it is.
fn step(client: &Client, table: &Table, value: f32) {
    client.save_state(format!("{} before {value}", client.rank()).as_bytes()).unwrap();
    drop(table.push_range(KeyRange::new(0, 4).unwrap(), &[value; 4]).unwrap());
    client.clock().unwrap();
}

#[test]
fn under_bsp_a_cut_holds_exactly_the_clocks_before_it_whoever_is_ahead() {
    let directory = scratch();
    let job = Job::start(directory.path(), (2, 2), 2, Some(Every::Clocks(3)));
    let clients = job.clients();
    let spec = TableSpec::dense("t", &[40]).segment_bytes(64).optimizer(OptimizerSpec::sum());
    let tables = clients.each_ref_table(&spec);
    // Worker 0 pulls nothing, and runs ahead; what it pushes in clock 3 and on waits in slots.
    for clock in 0..5u8 {
        step(&clients[0], &tables[0], f32::from(clock) + 1.0);
    }
    for clock in 0..3u8 {
        step(&clients[1], &tables[1], f32::from(clock) + 1.0);
    }
    clients[1].save_state(b"1 at three").unwrap();
    let cut = cut_of(directory.path(), 3);
    // The mean of what both pushed in clocks 0 to 2 is 1 + 2 + 3.
    assert_eq!(floats(&cut, SectionKind::Parameters, 0, 0)[..5], [6.0, 6.0, 6.0, 6.0, 0.0]);
    let (_, section) = cut.find(SectionId { kind: SectionKind::Parameters, table: 0, bucket: 0 }).unwrap();
    assert_eq!(section.version, 3);
    assert_eq!(cut.states().unwrap(), [b"0 before 4".to_vec(), b"1 at three".to_vec()]);
    assert_eq!((cut.manifest().workers, cut.manifest().tables.as_slice()), (2, &[spec.clone()][..]));
    mapped_in_place(&cut);
    job.stop.stop();
    drop(clients);
    assert!(job.end().is_err());

    // On another number of servers the clock, the states and the values are the same.
    let job = Job::start(directory.path(), (3, 1), 2, None);
    let clients = job.clients();
    for (client, state) in clients.iter().zip([&b"0 before 4"[..], b"1 at three"]) {
        assert_eq!(client.resumed(), Some((3, state.to_vec())));
    }
    let tables = clients.each_ref_table(&spec);
    let mut values = [0.0; 5];
    tables[1].pull_range(KeyRange::new(0, 5).unwrap(), &mut values).unwrap();
    assert_eq!(values, [6.0, 6.0, 6.0, 6.0, 0.0]);
    clients.iter().zip(&tables).for_each(|(client, table)| step(client, table, 4.0));
    assert_eq!(tables[0].pull_range(KeyRange::new(0, 5).unwrap(), &mut values).unwrap(), 4);
    assert_eq!(values, [10.0, 10.0, 10.0, 10.0, 0.0]);
    let leave = |client: Client| std::thread::spawn(move || client.finalize().unwrap());
    let leaving: Vec<_> = clients.into_iter().map(leave).collect();
    leaving.into_iter().for_each(|thread| thread.join().unwrap());
    job.end().unwrap();
}

/// Sections lie where a program that maps the file can use their numbers as they are.
fn mapped_in_place(cut: &Cut) {
    for file in cut.files().iter().filter(|file| file.header().kind == FileKind::Shard) {
        let open = std::fs::File::open(file.path()).unwrap();
        // SAFETY: the file has its final name, so nobody writes to it any more, and only the end of the test removes it.
        let map = unsafe { memmap2::Mmap::map(&open).unwrap() };
        let parameters = file.sections().iter().filter(|s| s.id.kind == SectionKind::Parameters);
        for section in parameters {
            let bytes = &map[section.offset as usize..(section.offset + section.length) as usize];
            let floats: &[f32] = bytemuck::try_cast_slice(bytes).unwrap();
            assert_eq!(bytes.as_ptr() as usize % 64, 0);
            assert_eq!(floats, file.read_floats(section).unwrap());
        }
    }
}

trait Tables {
    fn each_ref_table(&self, spec: &TableSpec) -> Vec<Table>;
}

impl Tables for Vec<Client> {
    fn each_ref_table(&self, spec: &TableSpec) -> Vec<Table> {
        self.iter().map(|client| client.table(spec).unwrap()).collect()
    }
}

/// Each shard is cut when its slowest worker has come to the clock: all before it is there, and what the faster one has pushed since.
#[test]
fn under_asp_a_cut_holds_at_least_the_clocks_before_it() {
    let directory = scratch();
    let job = Job::start(directory.path(), (1, 1), 2, None);
    let clients = job.clients();
    let spec = TableSpec::dense("t", &[4]).optimizer(OptimizerSpec::sum()).consistency(Consistency::Asp);
    let tables = clients.each_ref_table(&spec);
    for _ in 0..3 {
        step(&clients[0], &tables[0], 1.0);
    }
    let mut values = [0.0; 4];
    tables[0].pull_range(KeyRange::new(0, 4).unwrap(), &mut values).unwrap(); // all three are applied
    job.stop.end();
    // Whatever clock was named, worker 1 gets there; it hears the end then.
    let all = KeyRange::new(0, 4).unwrap();
    while tables[1].push_range(all, &[1.0; 4]).and_then(|_| clients[1].clock()).is_ok() {
        if clients[0].clock().is_err() {
            break;
        }
    }
    let (number, clock) = job.end().unwrap().saved.unwrap();
    let (found, cut) = newest(directory.path()).unwrap();
    assert_eq!((found, cut.manifest().clock), (number, clock));
    let at_least = 3.0 + clock as f32;
    assert!(floats(&cut, SectionKind::Parameters, 0, 0)[0] >= at_least.min(4.0), "{clock}");
    let shard = cut.files().iter().find(|file| file.entry().name.starts_with("shard")).unwrap();
    let section = shard.sections().iter().find(|s| s.id.kind == SectionKind::Clocks).unwrap();
    let clocks = decode_clocks(&shard.read(section).unwrap());
    assert!(clocks.iter().all(|at| at.clock >= clock && at.next_sequence > 0), "{clocks:?}");
    drop(clients);
}

/// A disk on which nothing goes on: the file of the shard is a pipe that nobody reads.
fn stuck(folder: &Path, cut: u64, server: u32) -> PathBuf {
    let directory = folder.join(format!("cut-{cut:06}"));
    std::fs::create_dir_all(&directory).unwrap();
    let pipe = directory.join(format!("shard-{server:04}-000.tmp"));
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    pipe
}

#[test]
fn pushes_and_pulls_go_on_while_the_disk_does_not() {
    let directory = scratch();
    let job = Job::start(directory.path(), (1, 1), 1, Some(Every::Clocks(2)));
    let pipe = stuck(directory.path(), 1, 0);
    let clients = job.clients();
    let dense =
        TableSpec::dense("d", &[1 << 16]).segment_bytes(4096).optimizer(OptimizerSpec::momentum(0.1, 0.9));
    let sparse = TableSpec::sparse("s", 4).optimizer(OptimizerSpec::adagrad(0.1, 1e-8));
    let (dense, sparse) = (clients[0].table(&dense).unwrap(), clients[0].table(&sparse).unwrap());
    let keys: Vec<u64> = (0..1000).collect();
    let keys = SortedKeys::new(&keys).unwrap();
    let (all, ones, rows) = (KeyRange::new(0, 1 << 16).unwrap(), vec![1.0; 1 << 16], vec![1.0; 4000]);
    let mut values = vec![0.0; 1 << 16];
    let mut rounds = |count: u32| {
        for _ in 0..count {
            drop(dense.push_range(all, &ones).unwrap());
            drop(sparse.push(keys, &rows).unwrap());
            clients[0].clock().unwrap();
            dense.pull_range(all, &mut values).unwrap();
        }
    };
    rounds(20);
    assert_eq!(newest(directory.path()).map(|(number, _)| number), None, "the first cut is stuck");
    // Its reader comes, and the disk refuses what is not possible in a pipe; the next cut is made all the same.
    let reader = std::thread::spawn(move || std::fs::read(pipe).map(drop));
    until(PATIENCE, "the next cut", || {
        rounds(1);
        newest(directory.path()).is_some()
    });
    reader.join().unwrap().unwrap();
    newest(directory.path()).unwrap().1.verify().unwrap();
    clients.into_iter().for_each(|client| client.finalize().unwrap());
    job.end().unwrap();
}

/// One server's file is written when the other's can't be: nothing of that cut stays, before there is another one.
#[test]
fn a_cut_that_failed_leaves_no_file() {
    let directory = scratch();
    let job = Job::start(directory.path(), (2, 1), 1, Some(Every::Clocks(2)));
    let pipe = stuck(directory.path(), 1, 1);
    let client = job.clients().pop().unwrap();
    let table = client.table(&TableSpec::dense("t", &[64]).segment_bytes(64)).unwrap();
    step(&client, &table, 1.0);
    step(&client, &table, 2.0);
    client.save_state(b"two").unwrap();
    let cut = directory.path().join("cut-000001");
    until(PATIENCE, "the first server's file", || cut.join("shard-0000-000").exists());
    std::fs::read(pipe).unwrap(); // nothing: the second server's disk refuses to write to a place in a pipe
    until(PATIENCE, "the removal of what was written", || !cut.exists());
    assert!(newest(directory.path()).is_none());
    step(&client, &table, 3.0);
    step(&client, &table, 4.0);
    client.save_state(b"four").unwrap();
    cut_of(directory.path(), 4);
    client.finalize().unwrap();
    job.end().unwrap();
}

/// What is on its way to a stuck disk is bounded; a push beyond it waits, and goes on with the disk.
/// Somebody has added a cut, as `windlass checkpoint import` does, under the number that the job comes to.
#[test]
fn a_cut_that_another_has_committed_is_not_written_to() {
    let directory = scratch();
    let job = Job::start(directory.path(), (1, 2), 1, Some(Every::Clocks(2)));
    let theirs = directory.path().join("cut-000001");
    std::fs::create_dir(&theirs).unwrap();
    let files = ["MANIFEST", "shard-0000-000"].map(|name| theirs.join(name));
    files.iter().for_each(|file| std::fs::write(file, "theirs").unwrap());
    let client = job.clients().pop().unwrap();
    let table = client.table(&TableSpec::dense("t", &[64]).segment_bytes(64)).unwrap();
    for clock in 1..=4u8 {
        step(&client, &table, clock.into());
    }
    client.save_state(b"four").unwrap();
    until(PATIENCE, "a cut of the job's own", || {
        step(&client, &table, 5.0);
        newest(directory.path()).is_some()
    });
    newest(directory.path()).unwrap().1.verify().unwrap();
    assert!(files.iter().all(|file| std::fs::read(file).unwrap() == b"theirs"));
    assert_eq!(std::fs::read_dir(theirs).unwrap().count(), 2);
    client.finalize().unwrap();
    job.end().unwrap();
}

#[test]
fn beyond_its_bound_a_cut_makes_pushes_wait_and_loses_nothing() {
    let directory = scratch();
    let limits = ServerLimits { cut_bytes: 1 << 20, ..ServerLimits::default() };
    let setup = Setup { limits, ..Setup::default() };
    let job = Job::with(directory.path(), (1, 1), 1, Some(Every::Clocks(2)), setup);
    let pipe = stuck(directory.path(), 1, 0);
    let client = job.clients().pop().unwrap();
    let spec = TableSpec::dense("d", &[1 << 20]).optimizer(OptimizerSpec::sum());
    let table = client.table(&spec).unwrap();
    let (all, ones) = (KeyRange::new(0, 1 << 20).unwrap(), vec![1.0; 1 << 20]);
    let pusher = {
        let (client, table, ones) = (client.clone(), table.clone(), ones.clone());
        std::thread::spawn(move || {
            let mut values = vec![0.0; 1 << 20];
            for clock in 1..=6u8 {
                drop(table.push_range(all, &ones).unwrap());
                client.clock().unwrap();
                table.pull_range(all, &mut values).unwrap();
                assert!(values.iter().all(|&v| v == f32::from(clock)), "clock {clock}");
            }
        })
    };
    // The third clock's end has to save 4 MiB, and 2 may be on their way: without a disk it does not come.
    until(PATIENCE, "the third clock", || client.peers().unwrap()[0].clock == 3);
    assert!(!pusher.is_finished());
    std::fs::read(pipe).unwrap();
    pusher.join().unwrap();
    client.finalize().unwrap();
    job.end().unwrap();
}

/// The operating system's files, of which one takes long to open or make once that is asked for.
#[derive(Debug, Default)]
struct Slow {
    asked: AtomicBool,
    taken: Duration,
    /// Of the first file that is made once that is asked for nothing comes but a panic.
    panics: bool,
}

impl Slow {
    fn by(taken: Duration) -> Arc<Slow> {
        Arc::new(Slow { taken, ..Slow::default() })
    }

    fn ask(&self) {
        self.asked.store(true, Ordering::SeqCst);
    }

    fn was_slow(&self) -> bool {
        !self.asked.load(Ordering::SeqCst)
    }
}

impl Storage for Slow {
    fn open(&self, path: &Path) -> io::Result<Box<dyn StorageFile>> {
        if !self.panics && self.asked.swap(false, Ordering::SeqCst) {
            std::thread::sleep(self.taken);
        }
        Disk.open(path)
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn StorageFile>> {
        if self.asked.swap(false, Ordering::SeqCst) {
            assert!(!self.panics, "on purpose");
            std::thread::sleep(self.taken);
        }
        Disk.create(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        Disk.rename(from, to)
    }

    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        Disk.sync_directory(path)
    }

    fn make_directory(&self, path: &Path) -> io::Result<()> {
        Disk.make_directory(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        Disk.list(path)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        Disk.remove(path)
    }

    fn remove_directory(&self, path: &Path) -> io::Result<()> {
        Disk.remove_directory(path)
    }
}

/// Files that take longer to open than a silence after which a node is lost: of the cut that a job goes on from, at a server, and of
/// the one before, which the coordinator looks for because the first is damaged.
#[test]
fn files_that_are_slow_to_open_cost_no_node() {
    let directory = scratch();
    let spec = TableSpec::dense("t", &[4]).optimizer(OptimizerSpec::sum());
    let job = Job::start(directory.path(), (1, 1), 1, Some(Every::Clocks(2)));
    let client = job.clients().pop().unwrap();
    let table = client.table(&spec).unwrap();
    for clock in [2, 4] {
        step(&client, &table, 1.0);
        step(&client, &table, 1.0);
        client.save_state(b"saved").unwrap();
        cut_of(directory.path(), clock);
    }
    client.finalize().unwrap();
    job.end().unwrap();
    let (_, newest) = newest(directory.path()).unwrap();
    let (file, section) =
        newest.find(SectionId { kind: SectionKind::Parameters, table: 0, bucket: 0 }).unwrap();
    let mut bytes = std::fs::read(file.path()).unwrap();
    bytes[section.offset as usize] ^= 1;
    std::fs::write(file.path(), bytes).unwrap();

    let peer_timeout = Duration::from_secs(3);
    let slow = [Slow::by(peer_timeout * 3 / 2), Slow::by(peer_timeout * 3 / 2)];
    let disks: [Arc<dyn Storage>; 2] = [slow[0].clone(), slow[1].clone()];
    let network = Network { peer_timeout, transport: common::transport(), ..Network::default() };
    let setup = Setup { network, disks, ..Setup::default() };
    let job = Job::with(directory.path(), (1, 1), 1, None, setup);
    slow.iter().for_each(|disk| disk.ask());
    let client = job.clients().pop().unwrap();
    assert!(slow.iter().all(|disk| disk.was_slow()));
    assert_eq!(client.resumed(), Some((2, b"saved".to_vec())));
    client.finalize().unwrap();
    job.end().unwrap();
}

/// Adds, and has a table that is made beside the server thread wait for a word.
struct Held(Option<Receiver<()>>);

impl Optimizer for Held {
    fn state_width(&self) -> usize {
        if std::thread::current().name() == Some("wl-table") {
            self.0.iter().for_each(|word| word.recv().unwrap_or_default()); // no more have to come
        }
        0
    }

    fn step(&self, parameters: &mut [f32], _: &mut [&mut [f32]], _: &[f32], gradient: &[f32]) {
        parameters.iter_mut().zip(gradient).for_each(|(p, g)| *p += g);
    }
}

/// Other tables are pushed to and pulled from meanwhile, and cuts are made.
#[test]
fn a_table_that_takes_long_to_make_keeps_no_other_waiting() {
    let directory = scratch();
    let (word, held) = bounded(0);
    let setup = Setup { held: Some(held), ..Setup::default() };
    let job = Job::with(directory.path(), (1, 1), 1, Some(Every::Clocks(2)), setup);
    let client = Arc::new(job.clients().pop().unwrap());
    let small = client.table(&TableSpec::dense("small", &[4]).optimizer(OptimizerSpec::sum())).unwrap();
    const ELEMENTS: u64 = 20 << 20; // 80 MiB
    let large = TableSpec::dense("large", &[ELEMENTS]).segment_bytes(1 << 20);
    let large = large.optimizer(OptimizerSpec::new("held", &[]));
    let opener = client.clone();
    let opening = std::thread::spawn(move || opener.table(&large).unwrap());
    // Its first question for the width is answered; for the others nobody has a word.
    word.send_timeout((), PATIENCE).expect("a table that is made beside the server thread");
    until(PATIENCE, "a cut", || {
        step(&client, &small, 1.0);
        small.pull_range(KeyRange::new(0, 4).unwrap(), &mut [0.0; 4]).unwrap();
        newest(directory.path()).is_some()
    });
    assert!(!opening.is_finished());
    newest(directory.path()).unwrap().1.verify().unwrap();
    drop(word);
    let large = opening.join().unwrap();
    drop(large.push_range(KeyRange::new(0, 4).unwrap(), &[2.0; 4]).unwrap());
    let first = SectionId { kind: SectionKind::Parameters, table: 1, bucket: 0 };
    until(PATIENCE, "a cut with the large table", || {
        step(&client, &small, 1.0);
        newest(directory.path()).is_some_and(|(_, cut)| cut.find(first).is_some())
    });
    drop(large);
    drop(small);
    Arc::into_inner(client).unwrap().finalize().unwrap();
    job.end().unwrap();
}

/// The one worker of a job ends two clocks, after the second of which a cut is due, with a disk that is slow from here on.
fn two_clocks(job: &Job, disk: &Slow) -> Client {
    let client = job.clients().pop().unwrap();
    let table = client.table(&TableSpec::dense("t", &[4])).unwrap();
    disk.ask();
    step(&client, &table, 1.0);
    step(&client, &table, 1.0);
    client
}

/// Whatever a thread of the coordinator's comes to: nobody waits for what it does not say.
#[test]
fn a_commit_that_panics_ends_the_job() {
    let directory = scratch();
    let disk = Arc::new(Slow { panics: true, ..Slow::default() });
    let disks: [Arc<dyn Storage>; 2] = [disk.clone(), Arc::new(Disk)];
    let setup = Setup { disks, ..Setup::default() };
    let job = Job::with(directory.path(), (1, 1), 1, Some(Every::Clocks(2)), setup);
    let client = two_clocks(&job, &disk);
    client.save_state(b"two").unwrap();
    let error = job.end().unwrap_err().to_string();
    assert_eq!(error, "the job was aborted: wl-commit panicked");
    assert!(disk.was_slow());
}

/// A server that is stopped while it reads a cut leaves nobody who has its disk.
#[test]
fn a_server_that_reads_a_cut_ends_whole() {
    let directory = scratch();
    let job = Job::start(directory.path(), (1, 1), 1, Some(Every::Clocks(2)));
    let client = job.clients().pop().unwrap();
    let table = client.table(&TableSpec::dense("t", &[4])).unwrap();
    step(&client, &table, 1.0);
    step(&client, &table, 1.0);
    client.save_state(b"two").unwrap();
    cut_of(directory.path(), 2);
    client.finalize().unwrap();
    job.end().unwrap();
    let slow = Slow::by(Duration::from_millis(700));
    let setup = Setup { disks: [Arc::new(Disk), slow.clone()], ..Setup::default() };
    let mut job = Job::with(directory.path(), (1, 1), 1, None, setup);
    slow.ask();
    let config = ClientConfig::new(&job.address, job.secret.clone(), 0, 1);
    let client = std::thread::spawn(|| Client::connect(config).map(drop));
    until(PATIENCE, "a file that is slow to open", || slow.was_slow());
    job.servers.pop().unwrap().stop().unwrap();
    assert_eq!(Arc::strong_count(&slow), 1);
    assert!(client.join().unwrap().is_err() && job.end().is_err());
}

/// One that is stopped while a cut of it is written, on a disk that is slow, leaves nobody who has that disk.
#[test]
fn a_server_that_writes_a_cut_ends_whole() {
    let directory = scratch();
    let slow = Slow::by(Duration::from_millis(300));
    let setup = Setup { disks: [Arc::new(Disk), slow.clone()], ..Setup::default() };
    let mut job = Job::with(directory.path(), (1, 1), 1, Some(Every::Clocks(2)), setup);
    let _client = two_clocks(&job, &slow);
    until(PATIENCE, "a file that is slow to open", || slow.was_slow());
    job.servers.pop().unwrap().stop().unwrap();
    assert_eq!(Arc::strong_count(&slow), 1);
    assert!(job.end().is_err());
}

#[test]
fn a_coordinator_that_commits_a_cut_ends_whole() {
    let directory = scratch();
    let slow = Slow::by(Duration::from_millis(300));
    let setup = Setup { disks: [slow.clone(), Arc::new(Disk)], ..Setup::default() };
    let job = Job::with(directory.path(), (1, 1), 1, Some(Every::Clocks(2)), setup);
    let client = two_clocks(&job, &slow);
    client.save_state(b"two").unwrap();
    until(PATIENCE, "a file that is slow to make", || slow.was_slow());
    job.stop.stop();
    assert!(job.end().is_err());
    assert_eq!(Arc::strong_count(&slow), 1);
}

/// Nobody waits, either, for a disk that does not answer at all, though a push is held up by it.
#[test]
fn a_server_whose_disk_stands_still_ends_in_time() {
    let directory = scratch();
    let limits = ServerLimits {
        cut_bytes: 1 << 20,
        stop_timeout: Duration::from_millis(100),
        ..ServerLimits::default()
    };
    let setup = Setup { limits, ..Setup::default() };
    let mut job = Job::with(directory.path(), (1, 1), 1, Some(Every::Clocks(2)), setup);
    let pipe = stuck(directory.path(), 1, 0);
    let client = job.clients().pop().unwrap();
    let spec = TableSpec::dense("d", &[1 << 20]).optimizer(OptimizerSpec::sum());
    let table = client.table(&spec).unwrap();
    let all = KeyRange::new(0, 1 << 20).unwrap();
    let pusher = std::thread::spawn({
        let client = client.clone();
        move || {
            let mut values = vec![0.0; 1 << 20];
            while table.push_range(all, &values).and_then(|_| client.clock()).is_ok() {
                if table.pull_range(all, &mut values).is_err() {
                    break;
                }
            }
        }
    });
    // As above: the third clock does not end.
    until(PATIENCE, "the third clock", || client.peers().unwrap()[0].clock == 3);
    let server = job.servers.pop().unwrap();
    let (ended, end) = bounded(1);
    let stopping = std::thread::spawn(move || ended.send(server.stop().is_ok()));
    assert_eq!(end.recv_timeout(PATIENCE), Ok(true), "the server waits for its disk");
    stopping.join().unwrap().unwrap();
    pusher.join().unwrap();
    assert!(job.end().is_err());
    std::fs::read(pipe).unwrap(); // so that the thread that was left behind ends
}

#[test]
fn a_writer_that_panics_ends_the_job() {
    let directory = scratch();
    let disk = Arc::new(Slow { panics: true, ..Slow::default() });
    let setup = Setup { disks: [Arc::new(Disk), disk.clone()], ..Setup::default() };
    let job = Job::with(directory.path(), (1, 1), 1, Some(Every::Clocks(2)), setup);
    let _client = two_clocks(&job, &disk);
    let error = job.end().unwrap_err().to_string();
    assert!(error.contains("server 0: ") && error.ends_with(": wl-cut panicked"), "{error}");
}

/// What a worker pushes in one call: a power of two of its own, so that a sum tells each call by its bit.
struct Calls {
    dense: Table,
    sparse: Table,
    rank: u32,
}

/// Buckets of both tables lie on every server thread, so what is pushed in a call comes there in many frames.
const KEYS: u64 = 600;

impl Calls {
    fn of(clients: &[Client]) -> Vec<Calls> {
        let rule = || OptimizerSpec::sum();
        let dense = TableSpec::dense("d", &[KEYS]).segment_bytes(64).optimizer(rule());
        let sparse = TableSpec::sparse("s", 1).optimizer(rule()).consistency(Consistency::Asp);
        let dense = dense.consistency(Consistency::Ssp { staleness: 5 });
        let calls = |client: &Client| Calls {
            dense: client.table(&dense).unwrap(),
            sparse: client.table(&sparse).unwrap(),
            rank: client.rank(),
        };
        clients.iter().map(calls).collect()
    }

    fn value(rank: u32, clock: u64, call: u32) -> f32 {
        2f32.powi((rank * 10 + clock as u32 * 2 + call) as i32)
    }

    /// The first call of a clock, or the second; done when all of it is applied.
    fn push(&self, clock: u64, call: u32) {
        let values = vec![Calls::value(self.rank, clock, call); KEYS as usize];
        let keys: Vec<u64> = (0..KEYS).map(|key| key * 7919).collect();
        let mut tickets = [
            self.dense.push_range(KeyRange::new(0, KEYS).unwrap(), &values).unwrap(),
            self.sparse.push(SortedKeys::new(&keys).unwrap(), &values).unwrap(),
        ];
        tickets.iter_mut().for_each(|ticket| ticket.wait().unwrap());
    }

    fn clocks(&self, client: &Client, clocks: std::ops::Range<u64>) {
        for clock in clocks {
            client.save_state(b"at the beginning of a clock").unwrap();
            (0..2).for_each(|call| self.push(clock, call));
            client.clock().unwrap();
        }
        client.save_state(b"at the end").unwrap();
    }

    fn sums(&self) -> Vec<f32> {
        let mut values = vec![0.0; 2 * KEYS as usize];
        let (dense, sparse) = values.split_at_mut(KEYS as usize);
        let keys: Vec<u64> = (0..KEYS).map(|key| key * 7919).collect();
        self.dense.pull_range(KeyRange::new(0, KEYS).unwrap(), dense).unwrap();
        self.sparse.pull(SortedKeys::new(&keys).unwrap(), sparse).unwrap();
        values
    }
}

/// Under Ssp and Asp a cut holds pushes of workers that are ahead of its clock; they push them again when they go on from it. None is
/// lost or applied twice, on other numbers of servers and threads and in smaller frames, nor when the job is cut and goes on once more
/// before all is pushed again.
#[test]
fn under_ssp_and_asp_no_push_is_lost_or_applied_twice_by_going_on() {
    let directory = scratch();
    let small = ServerLimits { payload_bytes: 128 << 10, ..ServerLimits::default() };
    let stop = |job: Job, clients: Vec<Client>| {
        job.stop.stop();
        drop(clients);
        assert!(job.end().is_err());
    };
    let job = Job::start(directory.path(), (2, 2), 2, Some(Every::Clocks(2)));
    let clients = job.clients();
    let calls = Calls::of(&clients);
    // Worker 0 is in the middle of clock 4 when worker 1 comes to clock 2.
    calls[0].clocks(&clients[0], 0..4);
    calls[0].push(4, 0);
    calls[1].clocks(&clients[1], 0..2);
    cut_of(directory.path(), 2);
    stop(job, clients);

    let setup = || Setup { limits: small, ..Setup::default() };
    let job = Job::with(directory.path(), (3, 1), 2, Some(Every::Clocks(3)), setup());
    let clients = job.clients();
    assert!(clients.iter().all(|client| client.resumed().is_some_and(|(clock, _)| clock == 2)));
    let calls = Calls::of(&clients);
    // Nobody comes to clock 4 again before the job is cut at 3.
    calls[0].clocks(&clients[0], 2..3);
    calls[1].clocks(&clients[1], 2..3);
    cut_of(directory.path(), 3);
    stop(job, clients);

    let job = Job::with(directory.path(), (1, 2), 2, None, setup());
    let clients = job.clients();
    assert!(clients.iter().all(|client| client.resumed().is_some_and(|(clock, _)| clock == 3)));
    let calls = Calls::of(&clients);
    calls.iter().zip(&clients).for_each(|(calls, client)| calls.clocks(client, 3..5));
    let each = |(rank, clock)| Calls::value(rank, clock, 0) + Calls::value(rank, clock, 1);
    let expected: f32 = (0..2).flat_map(|rank| (0..5).map(move |clock| (rank, clock))).map(each).sum();
    let wrong = calls[0].sums().into_iter().find(|&sum| sum != expected);
    assert_eq!(wrong, None, "all should be {expected}");
    let leave = |client: Client| std::thread::spawn(move || client.finalize().unwrap());
    let leaving: Vec<_> = clients.into_iter().map(leave).collect();
    leaving.into_iter().for_each(|thread| thread.join().unwrap());
    job.end().unwrap();
}

#[test]
fn all_of_it_over_tcp_too() {
    common::over_tcp();
}
