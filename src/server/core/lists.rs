//! Lists of keys that workers push to again and again: kept with the rows that they found, so that neither comes twice.
//!
//! The worker says what lies where ([`ListName`]); a list stays until another is put where it reaches. They outlive endpoints, as the
//! order of a worker's frames does.

use super::{Core, Place};
use crate::error::Malformed;
use crate::kernels::Input;
use crate::proto::{Chain, KeysAt, ListName, RequestHeader, SparseBody};
#[cfg(test)]
use crate::server::simulated::{self, Fault};
use crate::store::SparsePiece;
use crate::types::{DirectoryEntry, Key, Rank, TableId, TableKind};

/// Most bytes of memory that a place takes: keys, the positions of their rows, as many lines of a directory, and the list itself.
pub(in crate::server) const PLACE: u64 = (ListName::KEYS * (8 + 4 + 8) + size_of::<List>()) as u64;

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
    /// By rank, then first place; empty lists where none begins.
    of: Vec<Vec<List>>,
    /// Places of each worker.
    each: usize,
    /// Places of the longest list so far.
    longest: usize,
}

impl Lists {
    /// None yet, of `workers` that share `bytes`.
    pub fn new(workers: usize, bytes: u64) -> Lists {
        let each = (bytes / PLACE / workers.max(1) as u64).min(u64::from(u16::MAX)) as usize;
        Lists { of: (0..workers).map(|_| Vec::new()).collect(), each, longest: 0 }
    }

    /// How many places each worker has.
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

    /// The list at a place, empty, to be filled with so many keys. What reached to its places is forgotten.
    fn make(&mut self, rank: Rank, place: u32, keys: usize) -> Result<&mut List, Malformed> {
        let (lists, first, wanted) = (&mut self.of[rank as usize], place as usize, ListName::places(keys));
        let end = first.saturating_add(wanted.max(1));
        if end > self.each {
            let expected = format!("room for {keys} keys in {} places", self.each);
            return Err(Malformed::new("list", expected, format!("place {place}")));
        }
        if lists.len() < end {
            lists.resize_with(end, List::default);
        }
        #[cfg(test)]
        let stale =
            simulated::has(Fault::KeepsPositions).then(|| std::mem::take(&mut lists[first].positions));
        let before = first.saturating_sub(self.longest);
        for (at, list) in (before..end).zip(&mut lists[before..end]) {
            if at >= first || at + ListName::places(list.keys.len()) > first {
                #[cfg(test)]
                simulated::count(|lists| lists.replaced += u64::from(!list.keys.is_empty()));
                *list = List::default();
            }
        }
        self.longest = self.longest.max(wanted);
        #[cfg(test)]
        if let Some(mut stale) = stale
            && let Some(&one) = stale.first()
        {
            stale.resize(keys, one);
            lists[first].positions = stale;
        }
        Ok(&mut lists[first])
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
            #[cfg(test)]
            simulated::count(|lists| lists.named += 1);
            return self.lists.find(rank, name, (header.table, body.keys)).map(drop);
        }
        let list = self.lists.make(rank, name.place, body.keys)?;
        self.stats.bytes_copied +=
            self.staging.keys(place.body_at, &body, &mut list.directory, &mut list.keys, &mut self.words)?;
        let values = Input::from(&[][..]);
        let piece = SparsePiece { directory: &list.directory, keys: &list.keys, values };
        self.shard.check_pull(header.table, &piece)?;
        (list.hash, list.table) = (name.hash, header.table);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: usize = ListName::KEYS + 1;

    /// Puts a list of so many keys, all of one number, at a place.
    fn keep(lists: &mut Lists, number: u8, place: u32, keys: usize) -> Result<(), Malformed> {
        let list = lists.make(0, place, keys)?;
        assert!(list.keys.is_empty() && list.positions.is_empty());
        (list.hash, list.keys) = ([number; 16], vec![Key::from(number); keys]);
        Ok(())
    }

    fn kept(lists: &mut Lists, number: u8, place: u32, keys: usize) -> bool {
        lists.find(0, ListName { hash: [number; 16], place }, (0, keys)).is_ok()
    }

    /// Two places for one key more than one holds: what reaches into them is forgotten, and what lies beside them is not.
    #[test]
    fn a_long_list_takes_several_places() {
        let mut lists = Lists::new(1, 3 * PLACE);
        keep(&mut lists, 1, 0, 3).unwrap();
        keep(&mut lists, 2, 2, 3).unwrap();
        keep(&mut lists, 3, 1, LONG).unwrap();
        assert!(kept(&mut lists, 1, 0, 3) && kept(&mut lists, 3, 1, LONG));
        assert!(!kept(&mut lists, 2, 2, 3) && !kept(&mut lists, 2, 1, 3));
        // Over the first and the last place of a long one.
        keep(&mut lists, 4, 0, LONG).unwrap();
        assert!(kept(&mut lists, 4, 0, LONG) && !kept(&mut lists, 3, 1, LONG));
        keep(&mut lists, 5, 1, 3).unwrap();
        assert!(kept(&mut lists, 5, 1, 3) && !kept(&mut lists, 4, 0, LONG));
        assert_eq!(keep(&mut lists, 6, 2, LONG).unwrap_err().field, "list");
        assert_eq!(keep(&mut lists, 6, u32::MAX, 1).unwrap_err().field, "list");
    }
}
