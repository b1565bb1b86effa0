//! Lists of keys that workers push to again and again: kept with the rows that they found, so that neither comes twice.
//!
//! The worker says what lies where ([`crate::proto::ListName`]); a list stays until another is put in its place. They outlive
//! endpoints, as the order of a worker's frames does.

use super::{Core, Place};
use crate::error::Malformed;
use crate::kernels::Input;
use crate::proto::{Chain, KeysAt, ListName, RequestHeader, SparseBody};
use crate::store::SparsePiece;
use crate::types::{DirectoryEntry, Key, Rank, TableId, TableKind};

/// Most bytes of memory for each byte of a frame: a key and its row's position are 12 bytes, and its values at least 2, a single one as
/// fp16; the key itself may take no byte of the frame.
const SHARE: u64 = 6;

/// One list: the keys of one frame.
#[derive(Debug, Default)]
pub(super) struct List {
    hash: [u8; 16],
    table: TableId,
    pub directory: Vec<DirectoryEntry>,
    pub keys: Vec<Key>,
    /// Of their rows; none before they were first looked for.
    pub positions: Vec<u32>,
}

/// All lists of a server thread.
#[derive(Debug, Default)]
pub(super) struct Lists {
    /// By rank, then place; empty lists at first.
    of: Vec<Vec<List>>,
    each: usize,
}

impl Lists {
    /// None yet, of `workers` that share `bytes` and whose frames have bodies of at most `payload` bytes.
    pub fn new(workers: usize, bytes: u64, payload: usize) -> Lists {
        let one = payload as u64 * SHARE;
        let each = (bytes / one.max(1) / workers.max(1) as u64).min(u64::from(u16::MAX)) as usize;
        Lists { of: (0..workers).map(|_| Vec::new()).collect(), each }
    }

    /// How many each worker may keep.
    pub fn of_each_worker(&self) -> usize {
        self.each
    }

    /// The list of this name, of so many keys of this table; refused when its place holds another.
    pub fn find(
        &mut self,
        rank: Rank,
        name: ListName,
        (table, keys): (TableId, usize),
    ) -> Result<&mut List, Malformed> {
        let list = self.of.get_mut(rank as usize).and_then(|lists| lists.get_mut(name.place as usize));
        let list = list.filter(|l| l.hash == name.hash && l.table == table && l.keys.len() == keys);
        list.ok_or_else(|| {
            let expected = format!("a list of {keys} keys of table {table} that is kept at its place");
            Malformed::new("list", expected, format!("place {}", name.place))
        })
    }

    /// The list at a place, to be filled.
    fn at(&mut self, rank: Rank, place: u32) -> Result<&mut List, Malformed> {
        let lists = &mut self.of[rank as usize];
        if place as usize >= self.each {
            return Err(Malformed::new("list", format!("a place below {}", self.each), place));
        }
        if lists.len() <= place as usize {
            lists.resize_with(place as usize + 1, List::default);
        }
        Ok(&mut lists[place as usize])
    }
}

impl Core {
    /// Keeps the keys that a push or set brings to be kept, once they are checked; else sees that those that it names are there.
    pub(super) fn find_list(
        &mut self,
        rank: Rank,
        place: Place,
        header: &RequestHeader,
        chain: Chain,
    ) -> Result<(), Malformed> {
        if header.keys == KeysAt::Here {
            return Ok(());
        }
        let TableKind::Sparse { dim, .. } = self.known(header.table)?.kind else { return Ok(()) };
        let body = SparseBody::announced(header, dim as usize * chain.value_bytes())?;
        let name = self.staging.list_name(place.body_at)?;
        if header.keys == KeysAt::Named {
            return self.lists.find(rank, name, (header.table, body.keys)).map(drop);
        }
        let list = self.lists.at(rank, name.place)?;
        self.stats.bytes_copied +=
            self.staging.keys(place.body_at, &body, &mut list.directory, &mut list.keys, &mut self.words)?;
        list.positions.clear();
        let values = Input::from(&[][..]);
        let piece = SparsePiece { directory: &list.directory, keys: &list.keys, values };
        self.shard.check_pull(header.table, &piece)?;
        (list.hash, list.table) = (name.hash, header.table);
        Ok(())
    }
}
