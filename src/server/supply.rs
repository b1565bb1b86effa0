//! Memory that tables will need, supplied before they do. Where it has to come from a hypervisor, the first touch of a huge page takes
//! milliseconds; so it is made on a thread of its own, and pushes go on meanwhile. It inherits the CPUs that the server thread may have, so that the
//! memory of a pinned one lies next to it; of one that may run on several NUMA nodes, as before, it lies where the system has put it.
//!
//! Nothing but time depends on it: a page holds zeros before and after, and one that was not supplied in time a push touches itself. So
//! it tells nobody, a simulation takes the same course with it, and without it a server is only slower.

use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam::channel::{Receiver, Sender, bounded};
use tracing::warn;

use super::reactor::Reports;
use crate::mem::Page;

/// Pages that may wait. Beyond that they are left to those who need them.
const WAITING: usize = 64;

/// See the module's head. It ends with its thread.
pub struct Supplier {
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
    /// One that has had nothing to do.
    pub fn new() -> Supplier {
        Supplier { state: State::Idle }
    }

    /// Has a page supplied, soon. A panic is reported.
    pub fn supply(&mut self, page: Arc<Page>, reports: &Reports) {
        if let State::Idle = self.state {
            self.state = start(reports.clone());
        }
        if let State::Runs(pages, _) = &self.state {
            let _ = pages.try_send(page); // one for which there is no room is left to who needs it
        }
    }
}

fn start(reports: Reports) -> State {
    let (sender, pages) = bounded(WAITING);
    match super::spawn("wl-supply", move || run(&pages, reports)) {
        Ok(thread) => State::Runs(sender, thread),
        Err(error) => {
            warn!("pushes that make rows wait for memory: {error}");
            State::Gone
        }
    }
}

fn run(pages: &Receiver<Arc<Page>>, _reports: Reports) {
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
    use crate::mem::Slabs;

    /// It is started when it is needed, has supplied or let go of all that it was given when it is gone, and that while slabs come and go.
    #[test]
    fn its_thread_ends_with_it() {
        for turn in 0..20u32 {
            let (outbox, reports) = crossbeam::channel::unbounded();
            let reports_of = Reports::new(0, outbox, Arc::new(|| {}));
            let (mut slabs, mut supplier) = (Slabs::<u64>::new(512), Supplier::new());
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

    #[test]
    fn beyond_what_may_wait_pages_are_left_to_who_needs_them() {
        let (sender, pages) = bounded(1);
        let (end, ended) = bounded::<()>(1);
        let thread = super::super::spawn("busy", move || {
            let _ = ended.recv();
        })
        .unwrap();
        let mut supplier = Supplier { state: State::Runs(sender, thread) };
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
