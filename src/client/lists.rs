//! Lists of keys that come again and again: how they are cut into frames, and what of them the server threads keep.
//!
//! A list is noticed when it comes for the second time: then its keys travel once more, with the names under which the server
//! threads keep them, one for each frame. From the third time on the names stand for the keys, and the cut is taken from here.
//! It is the worker that says what the server threads keep, so it always knows; see [`ListName`].
//!
//! ```text
//!  unknown ──pushed──▶ noticed ──pushed──▶ being told ──all queued──▶ known ──room needed, and not in use──▶ unknown
//! ```
//! A list is in use as long as a frame that names it has not come back, or a pull that names it is not answered: those may be sent
//! again, and must find it.

use super::plan::{SparseFrame, SparsePlan};
use crate::proto::{KeysAt, ListName};
use crate::types::{Key, TableId, mix64};

/// A list of fewer keys is not worth a name.
const LEAST: usize = 32;
/// Lists that are remembered as noticed, and as many that have names.
const NOTICED: usize = 256;
/// Keys that a fingerprint looks at.
const SAMPLES: usize = 16;

/// When a place was used last that has no list,
const FREE: u64 = 0;
/// and one whose list is in use.
const IN_USE: u64 = u64::MAX;

/// What a list is cut for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    pub table: TableId,
    /// Bytes of a row on the wire.
    pub row_bytes: usize,
}

#[derive(Debug)]
struct List {
    cut: Cut,
    fingerprint: u64,
    keys: Vec<Key>,
    plan: SparsePlan,
    /// All its frames are queued.
    known: bool,
    /// Counts the lists.
    number: u64,
    used: u64,
}

/// See the module's head.
#[derive(Debug, Default)]
pub struct KeyLists {
    lists: Vec<List>,
    noticed: Vec<u64>,
    next_noticed: usize,
    /// For each server thread: the number of the list that lies at each of its places, 0 for none.
    places: Vec<Vec<u64>>,
    /// Of the hashes; drawn when it is first needed.
    key: Option<[u8; 32]>,
    numbers: u64,
    uses: u64,
}

impl KeyLists {
    /// The cut of a known list, copied into `plan`. Gives its number, or nothing, and then `plan` is as it was.
    pub fn find(&mut self, cut: Cut, keys: &[Key], plan: &mut SparsePlan) -> Option<u64> {
        if self.lists.is_empty() || keys.len() < LEAST {
            return None;
        }
        let wanted = fingerprint(cut, keys);
        let is = |list: &&mut List| {
            list.known && list.fingerprint == wanted && list.cut == cut && list.keys == keys
        };
        let list = self.lists.iter_mut().find(is)?;
        self.uses += 1;
        list.used = self.uses;
        plan.clone_from(&list.plan);
        plan.keys_at = KeysAt::Named;
        Some(list.number)
    }

    /// Notices a list that was cut into the frames of `plan`. When it comes for the second time, names its frames, if the server
    /// threads, of which each has as many places as `granted` says, have room, and gives its number. `in_use` tells of a list's
    /// number whether it is.
    pub fn notice(
        &mut self,
        cut: Cut,
        keys: &[Key],
        plan: &mut SparsePlan,
        granted: impl Iterator<Item = usize>,
        in_use: impl Fn(u64) -> bool,
    ) -> Option<u64> {
        if keys.len() < LEAST {
            return None;
        }
        let fingerprint = fingerprint(cut, keys);
        // One that is being told, or that looks the same, is left alone.
        if self.lists.iter().any(|list| list.fingerprint == fingerprint && list.cut == cut) {
            return None;
        }
        if !self.noticed.contains(&fingerprint) {
            if self.noticed.len() < NOTICED {
                self.noticed.push(fingerprint);
            } else {
                self.noticed[self.next_noticed % NOTICED] = fingerprint;
                self.next_noticed += 1;
            }
            return None;
        }
        let key = self.key()?;
        let numbers = self.numbers + 1;
        for (link, places) in granted.enumerate() {
            if self.places.len() <= link {
                self.places.push(Vec::new());
            }
            self.places[link].resize(places, 0);
        }
        let firsts = self.make_room(plan, in_use)?;
        self.numbers = numbers;
        plan.names.clear();
        for (frame, place) in plan.frames.iter().zip(firsts) {
            let places = ListName::places(frame.keys.len());
            self.places[frame.shard][place..place + places].fill(numbers);
            let numbers = &plan.order[frame.keys.clone()];
            let hash = ListName::hash(&key, numbers.iter().map(|&number| keys[number as usize]));
            plan.names.push(ListName { hash, place: place as u32 });
        }
        plan.keys_at = KeysAt::Kept;
        self.uses += 1;
        self.lists.push(List {
            cut,
            fingerprint,
            keys: keys.to_vec(),
            plan: plan.clone(),
            known: false,
            number: numbers,
            used: self.uses,
        });
        Some(numbers)
    }

    /// All frames of a list are queued: what is queued from now on finds it.
    pub fn told(&mut self, number: u64) {
        self.lists.iter_mut().filter(|list| list.number == number).for_each(|list| list.known = true);
    }

    /// Forgets as many of the lists that were used longest ago as there has to be room for one more, and gives the first place of each of
    /// its frames. Nothing, and then nothing is forgotten, when there can't be.
    fn make_room(&mut self, plan: &SparsePlan, in_use: impl Fn(u64) -> bool) -> Option<Vec<usize>> {
        if !self.has_places(plan) {
            return None;
        }
        let last_use = |list: &List| if in_use(list.number) { IN_USE } else { list.used };
        let mut lists: Vec<_> = self.lists.iter().map(|list| (list.number, last_use(list))).collect();
        lists.sort_unstable();
        let of = |list: &u64| {
            lists.binary_search_by_key(list, |(number, _)| *number).map_or(FREE, |at| lists[at].1)
        };
        let uses: Vec<Vec<u64>> = self.places.iter().map(|places| places.iter().map(of).collect()).collect();
        // How many are forgotten, and how long ago the last of them was used. The more they are, the more fits.
        let mut forgotten: Vec<_> =
            lists.iter().map(|(_, used)| *used).filter(|used| *used != IN_USE).collect();
        forgotten.push(FREE);
        forgotten.sort_unstable();
        let forgotten: Vec<(usize, u64)> = forgotten.into_iter().enumerate().collect();
        let is_too_little = |&(lists, until): &(usize, u64)| {
            self.lists.len() - lists >= NOTICED || free_places(plan, &uses, until).is_none()
        };
        let (_, until) = *forgotten.get(forgotten.partition_point(is_too_little))?;
        let firsts = free_places(plan, &uses, until)?;
        self.lists.retain(|list| last_use(list) > until);
        for (list, used) in self.places.iter_mut().flatten().zip(uses.into_iter().flatten()) {
            if used <= until {
                *list = 0;
            }
        }
        Some(firsts)
    }

    /// Whether there were room if nothing else were kept.
    fn has_places(&self, plan: &SparsePlan) -> bool {
        let wanted = |link| {
            let frames = plan.frames.iter().filter(|frame| frame.shard == link);
            frames.map(|frame| ListName::places(frame.keys.len())).sum::<usize>()
        };
        plan.frames.iter().all(|frame| frame.shard < self.places.len())
            && self.places.iter().enumerate().all(|(link, places)| wanted(link) <= places.len())
    }

    fn key(&mut self) -> Option<[u8; 32]> {
        if self.key.is_none() {
            let mut key = [0; 32];
            // Without random numbers no list gets a name.
            getrandom::fill(&mut key).ok()?;
            self.key = Some(key);
        }
        self.key
    }
}

/// For each frame the first of the places that it takes, where there are such that were all used last at `until` or before. `uses` has
/// the places of each server thread.
fn free_places(plan: &SparsePlan, uses: &[Vec<u64>], until: u64) -> Option<Vec<usize>> {
    let mut next = vec![0; uses.len()];
    let first = |frame: &SparseFrame| {
        let (uses, next) = (&uses[frame.shard], &mut next[frame.shard]);
        let wanted = ListName::places(frame.keys.len());
        let is_free = |at: &usize| uses[*at..*at + wanted].iter().all(|&used| used <= until);
        let first = (*next..(uses.len() + 1).saturating_sub(wanted)).find(is_free)?;
        *next = first + wanted;
        Some(first)
    };
    plan.frames.iter().map(first).collect()
}

/// Of a few keys of a list: lists with the same one are compared whole.
fn fingerprint(cut: Cut, keys: &[Key]) -> u64 {
    let start = mix64(keys.len() as u64 ^ u64::from(cut.table) << 40 ^ (cut.row_bytes as u64) << 20);
    let step = (keys.len() / SAMPLES).max(1);
    let samples = keys.iter().step_by(step).chain(keys.last());
    samples.fold(start, |hash, &key| mix64(hash ^ key))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::types::{PartitionMap, ServerInfo, SortedKeys, TableSpec, View};

    const CUT: Cut = Cut { table: 0, row_bytes: 4 };

    struct Rig {
        lists: KeyLists,
        spec: TableSpec,
        map: PartitionMap,
        granted: usize,
    }

    impl Rig {
        /// Two server threads that keep so many lists each.
        fn new(granted: usize) -> Rig {
            let servers = vec![ServerInfo { rank: 0, address: String::new(), threads: 2, first: 0 }];
            let spec = TableSpec::sparse("w", 1);
            let map = PartitionMap::new(&View { epoch: 1, servers, workers: 1 }, &spec);
            Rig { lists: KeyLists::default(), spec, map, granted }
        }

        /// What a push of these keys, cut into frames of `limit` bytes, would do; whole.
        fn push(&mut self, keys: &[Key], limit: usize, in_use: &[u64]) -> (KeysAt, Option<u64>, SparsePlan) {
            let mut plan = SparsePlan::default();
            let mut number = self.lists.find(CUT, keys, &mut plan);
            if number.is_none() {
                plan.fill(&self.spec, &self.map, SortedKeys::new(keys).unwrap(), CUT.row_bytes, limit)
                    .unwrap();
                let granted = [self.granted; 2].into_iter();
                number = self.lists.notice(CUT, keys, &mut plan, granted, |list| in_use.contains(&list));
                number.inspect(|&number| self.lists.told(number));
            }
            (plan.keys_at, number, plan)
        }
    }

    fn keys(first: u64) -> Vec<Key> {
        (first..first + 100).collect()
    }

    #[test]
    fn a_list_is_named_when_it_comes_again_and_then_stands_for_its_keys() {
        let mut rig = Rig::new(8);
        assert_eq!(rig.push(&keys(0), 600, &[]).0, KeysAt::Here);
        let (at, number, told) = rig.push(&keys(0), 600, &[]);
        assert_eq!((at, number, told.names.len()), (KeysAt::Kept, Some(1), told.frames.len()));
        assert!(told.frames.len() > 2, "{}", told.frames.len());
        let (at, number, named) = rig.push(&keys(0), 600, &[]);
        assert_eq!((at, number), (KeysAt::Named, Some(1)));
        assert_eq!((&named.names, &named.order, &named.frames), (&told.names, &told.order, &told.frames));
        // Each frame has a place of its own at its server thread.
        let mut places: Vec<_> =
            named.frames.iter().zip(&named.names).map(|(frame, name)| (frame.shard, name.place)).collect();
        places.sort_unstable();
        places.dedup();
        assert_eq!(places.len(), named.frames.len());
        // One key differs, between those that a fingerprint looks at.
        let mut other = keys(0);
        other[97] = 1000;
        other[98] = 1001;
        other[99] = 1002;
        assert_eq!(rig.push(&other, 600, &[]).0, KeysAt::Here);
        assert_eq!(rig.push(&keys(0)[..20], 600, &[]).0, KeysAt::Here);
        assert_eq!(rig.push(&keys(0)[..20], 600, &[]).0, KeysAt::Here, "too few for a name");
    }

    #[test]
    fn lists_that_look_alike_are_told_apart_by_all_their_keys() {
        let mut rig = Rig::new(8);
        // The same samples: every sixth key and the last.
        let spaced: Vec<Key> = keys(0).iter().map(|key| key * 10).collect();
        let mut moved = spaced.clone();
        moved[1] += 1;
        assert_eq!(fingerprint(CUT, &spaced), fingerprint(CUT, &moved));
        rig.push(&spaced, 600, &[]);
        assert_eq!(rig.push(&spaced, 600, &[]).0, KeysAt::Kept);
        assert_eq!(rig.push(&moved, 600, &[]).0, KeysAt::Here);
        assert_eq!(rig.push(&spaced, 600, &[]).0, KeysAt::Named);
    }

    #[test]
    fn the_list_used_longest_ago_makes_room_unless_it_is_in_use() {
        let mut rig = Rig::new(2);
        let tell = |rig: &mut Rig, first: u64, in_use: &[u64]| {
            rig.push(&keys(first), 4000, in_use);
            rig.push(&keys(first), 4000, in_use)
        };
        let (_, one, first) = tell(&mut rig, 0, &[]);
        assert_eq!(first.frames.len(), 2);
        let (_, two, _) = tell(&mut rig, 1000, &[]);
        assert_eq!((one, two), (Some(1), Some(2)));
        // The first one is used again, so the second one goes.
        assert_eq!(rig.push(&keys(0), 4000, &[]).0, KeysAt::Named);
        assert_eq!(tell(&mut rig, 2000, &[]).1, Some(3));
        assert_eq!(rig.push(&keys(0), 4000, &[]).0, KeysAt::Named);
        assert_eq!(rig.push(&keys(1000), 4000, &[]).0, KeysAt::Kept, "its places were taken");
        // Nothing makes room for what can't stay.
        let (at, number, _) = tell(&mut rig, 3000, &[1, 2, 3, 4]);
        assert_eq!((at, number), (KeysAt::Here, None));
        let many: Vec<Key> = (0..3000).collect();
        assert_eq!(rig.push(&many, 1000, &[]).0, KeysAt::Here);
        assert_eq!(rig.push(&many, 1000, &[]).0, KeysAt::Here, "more frames than places");
    }

    /// The places of its frames follow each other, and another list takes them only once it is forgotten.
    #[test]
    fn a_long_list_takes_several_places() {
        let many = |first: u64| (first..first + 6000).collect::<Vec<Key>>();
        let mut rig = Rig::new(5);
        let mut tell = |first, in_use: &[u64]| {
            rig.push(&many(first), 40_000, in_use);
            let (at, _, plan) = rig.push(&many(first), 40_000, in_use);
            let places = plan.frames.iter().zip(&plan.names).map(|(frame, name)| {
                let first = name.place as usize;
                (frame.shard, first..first + ListName::places(frame.keys.len()))
            });
            (at, places.collect::<Vec<_>>())
        };
        let (at, one) = tell(0, &[]);
        assert!(at == KeysAt::Kept && one.iter().any(|(_, places)| places.len() > 2), "{one:?}");
        for (a, (shard, places)) in one.iter().enumerate() {
            let others = one[..a].iter().filter(|(other, _)| other == shard);
            assert!(others.clone().all(|(_, o)| o.end <= places.start || places.end <= o.start), "{one:?}");
        }
        // Two of them do not fit.
        assert_eq!(tell(10_000, &[1]).0, KeysAt::Here);
        assert_eq!(tell(10_000, &[]).0, KeysAt::Named);
    }

    /// Forgets one list after the other, and looks anew after each.
    fn one_by_one(lists: &mut KeyLists, plan: &SparsePlan, in_use: &BTreeSet<u64>) -> Option<Vec<usize>> {
        loop {
            let few = lists.lists.len() < NOTICED;
            if let Some(firsts) = free_places(plan, &lists.places, 0).filter(|_| few) {
                return Some(firsts);
            }
            let unused = lists.lists.iter().enumerate().filter(|(_, list)| !in_use.contains(&list.number));
            let (oldest, _) = unused.min_by_key(|(_, list)| list.used)?;
            let forgotten = lists.lists.swap_remove(oldest).number;
            lists.places.iter_mut().flatten().filter(|list| **list == forgotten).for_each(|list| *list = 0);
        }
    }

    /// So many lists, the numbers at their server threads' places, and when each was used last.
    fn kept(lists: u64, places: &[Vec<u64>], used: &[u64]) -> KeyLists {
        let list = |(number, used): (u64, &u64)| {
            let (plan, keys) = (SparsePlan::default(), Vec::new());
            List { cut: CUT, fingerprint: number, keys, plan, known: true, number, used: *used }
        };
        let lists = (1..=lists).zip(used).map(list).collect();
        KeyLists { lists, places: places.to_vec(), ..KeyLists::default() }
    }

    proptest! {
        #[test]
        fn as_many_are_forgotten_as_there_has_to_be_room(
            (lists, places, used) in (0u64..12).prop_flat_map(|lists| {
                // Runs of places, each of a list or of none.
                let run = (0..=lists, 1..4usize).prop_map(|(list, places)| vec![list; places]);
                let runs = proptest::collection::vec(run, 0..10).prop_map(|runs| runs.concat());
                let used = Just((1..=lists).collect::<Vec<_>>()).prop_shuffle();
                (Just(lists), proptest::collection::vec(runs, 2), used)
            }),
            more in prop_oneof![4 => Just(0), 1 => NOTICED as u64 - 12..NOTICED as u64 + 1],
            in_use in proptest::collection::btree_set(1u64..12, 0..6),
            frames in proptest::collection::vec((0..2usize, 1..4usize), 1..6),
        ) {
            // Further lists have no places left, and were used before.
            let used: Vec<u64> = used.into_iter().map(|used| used + 1000).chain(1..=more).collect();
            let frame = |&(shard, places): &(usize, usize)| {
                SparseFrame { shard, directory: 0..0, keys: 0..places * ListName::KEYS }
            };
            let mut plan = SparsePlan::default();
            plan.frames.extend(frames.iter().map(frame));
            let [mut here, mut there] = [(); 2].map(|()| kept(lists + more, &places, &used));
            let known = |lists: &KeyLists| lists.lists.iter().map(|list| list.number).collect::<BTreeSet<_>>();
            let expected = one_by_one(&mut there, &plan, &in_use);
            prop_assert_eq!(&here.make_room(&plan, |list| in_use.contains(&list)), &expected);
            if expected.is_none() {
                there = kept(lists + more, &places, &used); // what would be forgotten in vain stays
            }
            prop_assert_eq!(&here.places, &there.places);
            prop_assert_eq!(known(&here), known(&there));
        }
    }

    #[test]
    fn no_more_lists_have_names_than_are_looked_through() {
        let mut rig = Rig::new(4 * NOTICED);
        for list in 0..NOTICED as u64 + 10 {
            rig.push(&keys(list * 1000), 4000, &[]);
            assert_eq!(rig.push(&keys(list * 1000), 4000, &[]).0, KeysAt::Kept);
            assert!(rig.lists.lists.len() <= NOTICED);
        }
        assert_eq!(rig.lists.lists.len(), NOTICED);
    }

    #[test]
    fn without_places_nothing_is_named() {
        let mut rig = Rig::new(0);
        for _ in 0..3 {
            assert_eq!(rig.push(&keys(0), 600, &[]).0, KeysAt::Here);
        }
    }
}
