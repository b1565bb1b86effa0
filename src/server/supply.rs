//! Memory that tables will need, supplied before they do. Where it has to come from a hypervisor, the first touch of a huge page takes
//! milliseconds; so it is made on a thread of its own, and pushes go on meanwhile. Beside a pinned server thread it may use every CPU that the process
//! was started with on that one's NUMA node (`pin::beside`): on its CPU alone it would take turns with it, and on another node's the memory would lie far
//! from it. Beside one that is not pinned it runs where that may, and the memory lies where the system has put it.
//!
//! Nothing but time depends on it: a page holds zeros before and after, and one that was not supplied in time a push touches itself. So
//! it tells nobody, a simulation takes the same course with it, and where the system gives no thread a server is only slower. A panic of the thread,
//! of which there is none that we know, ends the job, as one of any other.

use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam::channel::{Receiver, Sender, bounded};
use tracing::warn;

use super::reactor::Reports;
#[cfg(test)]
use super::simulated::{self, Fault};
use crate::mem::Page;
use crate::transport::cpus;

/// Pages that may wait. Beyond that they are left to those who need them.
const WAITING: usize = 64;

/// See the module's head. It ends with its thread.
pub struct Supplier {
    /// Where its thread runs; none: where the one that starts it may.
    cpus: Vec<usize>,
    state: State,
}

enum State {
    /// No table has grown yet.
    Idle,
    Runs(Sender<Arc<Page>>, JoinHandle<()>),
    /// The system gives no thread.
    Gone,
}

impl Supplier {
    /// One that has had nothing to do. Its thread is to run on `cpus`; none: where the one that starts it may.
    pub fn new(cpus: Vec<usize>) -> Supplier {
        Supplier { cpus, state: State::Idle }
    }

    /// Has a page supplied, soon. A panic is reported.
    pub fn supply(&mut self, page: Arc<Page>, reports: &Reports) {
        if let State::Idle = self.state {
            let (cpus, reports) = (std::mem::take(&mut self.cpus), reports.clone());
            #[cfg(test)]
            let panics = simulated::has(Fault::SupplyPanics);
            self.state = start(move |pages| {
                #[cfg(test)]
                assert!(!panics, "on purpose");
                run(&cpus, &pages, reports);
            });
        }
        if let State::Runs(pages, _) = &self.state {
            let _ = pages.try_send(page); // one for which there is no room is left to who needs it
        }
    }
}

fn start(body: impl FnOnce(Receiver<Arc<Page>>) + Send + 'static) -> State {
    let (sender, pages) = bounded(WAITING);
    match super::spawn("wl-supply", move || body(pages)) {
        Ok(thread) => State::Runs(sender, thread),
        Err(error) => {
            warn!("pushes that make rows wait for memory: {error}");
            State::Gone
        }
    }
}

fn run(cpus: &[usize], pages: &Receiver<Arc<Page>>, _reports: Reports) {
    if !cpus.is_empty()
        && let Err(error) = cpus::run_on(cpus)
    {
        warn!("memory of new rows is supplied on the CPU of its server thread: {error}");
    }
    for page in pages {
        // Of a table that is gone nobody else has it.
        if Arc::strong_count(&page) > 1 {
            page.supply();
        }
    }
}

impl Drop for Supplier {
    fn drop(&mut self) {
        if let State::Runs(pages, thread) = std::mem::replace(&mut self.state, State::Gone) {
            drop(pages);
            let _ = thread.join(); // one that has panicked has said so
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::{Client, ClientConfig};
    use crate::mem::Slabs;
    use crate::proto::secret::Secret;
    use crate::server::Server;
    use crate::server::coordinator::{CoordinatorServer, CoordinatorServerConfig};
    use crate::store::Optimizers;
    use crate::types::{Consistency, OptimizerSpec, SortedKeys, TableSpec};

    /// It is started when it is needed, has supplied or let go of all that it was given when it is gone, and that while slabs come and go.
    #[test]
    fn its_thread_ends_with_it() {
        for turn in 0..20u32 {
            let (outbox, reports) = crossbeam::channel::unbounded();
            let reports_of = Reports::new(0, outbox, Arc::new(|| {}));
            let (mut slabs, mut supplier) = (Slabs::<u64>::new(512), Supplier::new(Vec::new()));
            let mut given = Vec::new();
            for slab in 0..512 * (turn % 5) {
                slabs.add();
                slabs.get_mut(slab).fill(1);
                while let Some(page) = slabs.next_to_supply() {
                    supplier.supply(page.clone(), &reports_of);
                    given.push(page);
                }
            }
            assert_eq!(matches!(supplier.state, State::Idle), turn % 5 == 0);
            if turn % 2 == 0 {
                drop(slabs);
                given.clear();
            }
            drop((supplier, reports_of));
            // Whoever could still send a report, the thread among them, is gone, and so are its pages.
            assert_eq!(reports.try_recv().err(), Some(crossbeam::channel::TryRecvError::Disconnected));
            let left = given.iter().filter(|page| page.supply()).count();
            assert_eq!(left, 0, "of {} that it was given", given.len());
        }
    }

    /// A job in which it panics: all three kinds of nodes hear of it by name, and no push waits for memory that nobody supplies.
    #[test]
    fn a_panic_of_its_thread_ends_the_job_by_name() {
        let secret = Secret::generate().unwrap();
        let coordinator =
            CoordinatorServer::bind(CoordinatorServerConfig::new(secret.clone(), "", 1, Some(1))).unwrap();
        let address = coordinator.address().to_string();
        let coordinator = std::thread::spawn(move || coordinator.run());
        let server = Server::builder(&address, secret.clone()).optimizer("faulty", |_| {
            simulated::set(Fault::SupplyPanics); // the server thread makes the rule
            Optimizers::default().build(&OptimizerSpec::sum())
        });
        let server = server.start().unwrap();
        let client = Client::connect(ClientConfig::new(&address, secret, 0, 1)).unwrap();
        let spec = TableSpec::sparse("w", 64).optimizer(OptimizerSpec::new("faulty", &[]));
        let table = client.table(&spec.consistency(Consistency::Asp)).unwrap();
        let values = vec![1.0; 512 * 64];
        let push = |first: u64| {
            let keys: Vec<u64> = (first..first + 512).collect();
            table.push(SortedKeys::new(&keys)?, &values)?.wait()
        };
        // 2 GiB would be made by then.
        let told = (0..1 << 14).find_map(|n| push(n << 9).err()).expect("the job goes on");
        for error in [told, server.run().unwrap_err(), coordinator.join().unwrap().unwrap_err()] {
            assert!(error.to_string().contains("wl-supply panicked"), "{error}");
        }
    }

    #[test]
    fn beyond_what_may_wait_pages_are_left_to_who_needs_them() {
        let (sender, pages) = bounded(1);
        let (end, ended) = bounded::<()>(1);
        let thread = super::super::spawn("busy", move || {
            let _ = ended.recv();
        })
        .unwrap();
        let mut supplier = Supplier { cpus: Vec::new(), state: State::Runs(sender, thread) };
        let (outbox, _reports) = crossbeam::channel::unbounded();
        let reports = Reports::new(0, outbox, Arc::new(|| {}));
        let mut slabs = Slabs::<u64>::new(512);
        for slab in 0..512 * 10 {
            slabs.add();
            slabs.get_mut(slab).fill(1);
            while let Some(page) = slabs.next_to_supply() {
                supplier.supply(page, &reports);
            }
        }
        assert_eq!(pages.len(), 1);
        end.send(()).unwrap();
    }
}
