//! Workers that lie about the lists of keys that a server thread keeps.

use super::super::lists::PLACE;
use super::*;
use crate::kernels::Input;
use crate::proto::ListName;
use crate::store::SparsePiece;
use crate::types::{Aggregate, DirectoryEntry, Key, OptimizerSpec};

/// Sparse tables of one fp32 a row that sum up what comes, at once.
const TABLES: [TableId; 2] = [20, 21];
const KEYS: [Key; 3] = [3, 5, 8];

fn spec() -> TableSpec {
    let kind = TableKind::Sparse { dim: 1, buckets: 1 };
    let spec = TableSpec { kind, ..TableSpec::sparse("l", 1) };
    spec.optimizer(OptimizerSpec::sum()).aggregate(Aggregate::Sum).consistency(Consistency::Asp)
}

/// Two workers, each of which has three places for lists.
fn rig() -> Rig {
    let Rig { core, sequences } = Rig::new(2);
    let mut rig = Rig { core: core.keeping_lists(2 * 3 * PLACE), sequences };
    assert_eq!(rig.core.key_lists(), 3);
    for table in TABLES {
        rig.core.create_table(table, &spec(), |_| Ok(RegionId(3))).unwrap();
    }
    rig
}

fn name(hash: u8, place: u32) -> ListName {
    ListName { hash: [hash; 16], place }
}

impl Rig {
    /// A push of ones that brings keys, to be kept under a name.
    fn keep(&mut self, rank: u32, table: TableId, name: ListName, keys: &[Key]) -> Result<()> {
        let directory = [DirectoryEntry { bucket: 0, keys: keys.len() as u32 }];
        let brought: [&[u8]; 2] = [bytemuck::cast_slice(&directory), bytemuck::cast_slice(keys)];
        self.listed(rank, (table, KeysAt::Kept), name, (&brought.concat(), keys.len()))
    }

    /// A push of ones to the keys of a name.
    fn push_named(&mut self, rank: u32, table: TableId, name: ListName, count: usize) -> Result<()> {
        self.listed(rank, (table, KeysAt::Named), name, (&[], count))
    }

    fn listed(
        &mut self,
        rank: u32,
        (table, keys): (TableId, KeysAt),
        name: ListName,
        (brought, count): (&[u8], usize),
    ) -> Result<()> {
        let ones = vec![1.0f32; count];
        let body = [&name.encode()[..], brought, bytemuck::cast_slice(&ones)].concat();
        let first = u32::from(keys == KeysAt::Kept);
        let (count, length) = (count as u32, body.len() as u32);
        let slot = self.sequences[rank as usize] as u32 % 2;
        self.put(
            (rank, slot),
            RequestHeader { table, keys, first, count, length, ..header(Push, 0) },
            &body,
        )?;
        self.core.obey();
        if let Some(link) = &mut self.core.links[rank as usize] {
            link.forget_freed();
        }
        Ok(())
    }

    /// What the rows of [`KEYS`] hold.
    fn rows(&mut self, table: TableId) -> Vec<f32> {
        let directory = [DirectoryEntry { bucket: 0, keys: KEYS.len() as u32 }];
        let piece = SparsePiece { directory: &directory, keys: &KEYS, values: Input::from(&[][..]) };
        let mut rows = Vec::new();
        self.core.shard.gather(table, &piece, &mut rows);
        rows
    }
}

/// One that was never there, another worker's, of another table, of another length, one in whose place another was put, and places
/// beyond those that were granted.
#[test]
fn a_name_that_is_not_what_lies_at_its_place_is_refused_and_touches_nothing() {
    type Lie = fn(&mut Rig) -> Result<()>;
    let lies: [(&str, Lie); 9] = [
        ("never there", |rig| rig.push_named(0, TABLES[0], name(9, 1), 3)),
        ("empty, at an empty place", |rig| rig.push_named(0, TABLES[0], name(0, 1), 0)),
        ("another worker's", |rig| rig.push_named(0, TABLES[0], name(2, 0), 3)),
        ("another table's", |rig| rig.push_named(0, TABLES[1], name(1, 0), 3)),
        ("too few", |rig| rig.push_named(0, TABLES[0], name(1, 0), 2)),
        ("too many", |rig| rig.push_named(0, TABLES[0], name(1, 0), 4)),
        ("evicted", |rig| {
            rig.keep(0, TABLES[0], name(5, 0), &[100])?;
            rig.push_named(0, TABLES[0], name(1, 0), 3)
        }),
        ("a place beyond", |rig| rig.push_named(0, TABLES[0], name(1, u32::MAX), 3)),
        ("kept beyond", |rig| rig.keep(0, TABLES[0], name(1, 3), &KEYS)),
    ];
    for (lie, tell) in lies {
        let mut rig = rig();
        rig.keep(0, TABLES[0], name(1, 0), &KEYS).unwrap();
        rig.keep(1, TABLES[0], name(2, 0), &KEYS).unwrap();
        rig.push_named(0, TABLES[0], name(1, 0), 3).unwrap();
        let told = tell(&mut rig);
        assert!(
            matches!(&told, Err(Error::Protocol { peer, field: "list" | "first", .. }) if peer == "worker 0"),
            "{lie}: {told:?}"
        );
        assert_eq!((rig.rows(TABLES[0]), rig.rows(TABLES[1])), (vec![3.0; 3], vec![0.0; 3]), "{lie}");
    }
}

/// Keys, or a bucket, that are not the table's: the job ends, and what was written over the list before is used by nobody.
#[test]
fn after_keys_that_were_refused_nothing_is_taken_under_any_name() {
    let directory = |bucket| [DirectoryEntry { bucket, keys: 3 }];
    let lies = [
        (directory(0), [5, 3, 8], "keys"),
        (directory(0), [3, 3, 8], "keys"),
        (directory(u32::MAX), KEYS, "directory"),
    ];
    for (directory, keys, field) in lies {
        for hash in [0, 1, 7] {
            let mut rig = rig();
            rig.keep(0, TABLES[0], name(1, 0), &KEYS).unwrap();
            let brought: [&[u8]; 2] = [bytemuck::cast_slice(&directory), bytemuck::cast_slice(&keys)];
            let kept = rig.listed(0, (TABLES[0], KeysAt::Kept), name(7, 0), (&brought.concat(), 3));
            assert_eq!(blamed(kept), field);
            rig.attach(0);
            rig.push_named(0, TABLES[0], name(hash, 0), 3).unwrap();
            assert_eq!(rig.rows(TABLES[0]), [1.0; 3]);
        }
    }
}
