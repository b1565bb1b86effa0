//! The owner pins and writes while other threads read and drop their pins, as far as loom's bound goes.

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::thread::{self, JoinHandle};

use super::*;

/// The owner of blocks of which the first is pinned and written. For each block, by its number, there is what was written last:
/// loom fails when reading it has no order with a write.
struct Owner {
    published: Published,
    contents: Arc<Vec<UnsafeCell<u32>>>,
    version: u32,
    readers: Vec<JoinHandle<()>>,
}

impl Owner {
    fn new(count: usize) -> Owner {
        let published = Published::new(1, count, u64::MAX, |_| Ok(RegionId(0))).unwrap();
        let contents = Arc::new((0..2 * count).map(|_| UnsafeCell::new(0)).collect());
        Owner { published, contents, version: 0, readers: Vec::new() }
    }

    fn write(&mut self) {
        self.version += 1;
        self.published.write(0).to.fill(0.0);
        let number = self.published.number(&self.published.blocks[0]);
        // SAFETY: loom's cell checks what is claimed here: nobody reads a block that is written.
        self.contents[number].with_mut(|content| unsafe { *content = self.version });
    }

    /// A thread that reads the present version, whichever comes meanwhile; none when too many blocks are pinned.
    fn read_elsewhere(&mut self) {
        let Some(pin) = self.published.pin(0, 0, 1) else { return };
        let (contents, version) = (self.contents.clone(), self.version);
        self.readers.push(thread::spawn(move || {
            // SAFETY: as in `write`.
            contents[pin.number].with(|content| assert_eq!(unsafe { *content }, version));
            drop(pin);
        }));
    }
}

fn check(blocks: usize, preemptions: usize, turn: impl Fn(&mut Owner) + Send + Sync + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(preemptions);
    model.check(move || {
        let mut owner = Owner::new(blocks);
        owner.write();
        turn(&mut owner);
        owner.readers.drain(..).for_each(|reader| reader.join().unwrap());
        let pins: Vec<_> = (0..blocks).map(|block| owner.published.pin(block, 0, 1)).collect();
        assert!(pins.iter().all(Option::is_some), "dropped pins leave nothing behind");
    });
}

/// One spare block: it is free again at once, or the second pin is refused.
#[test]
fn loom_a_version_stays_while_it_is_read() {
    check(1, 3, |owner| {
        owner.read_elsewhere();
        owner.write();
        owner.read_elsewhere();
        owner.write();
        owner.write();
    });
}

/// Two hold the same version, so that the pins of one block come and go while it is written.
#[test]
fn loom_a_version_stays_for_the_last_of_its_readers() {
    check(1, 2, |owner| {
        owner.read_elsewhere();
        owner.read_elsewhere();
        owner.write();
        owner.write();
    });
}

/// Two spare blocks and three readers.
#[test]
fn loom_a_pinned_block_always_finds_a_spare_one() {
    check(2, 2, |owner| {
        for _ in 0..3 {
            owner.read_elsewhere();
            owner.write();
        }
    });
}
