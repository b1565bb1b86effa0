//! Versions of blocks for readers that read them one-sidedly, while newer versions are being written.
//!
//! ```text
//!  record, one for each block:   head 64 │ buffer 0 │ buffer 1 │ … │ buffer n − 1
//!  head:     0 epoch u64   the last one that is published; 0 before the first
//!            8 closed u64  all clocks < closed are in it
//!  buffer e mod n:  stamp 64 │ values, 64-byte aligned: those of epoch e
//!  stamp:    0 magic u16 0x4557 ("WE") │ 2 layout u8 1 │ 3 zero u8 │ 4 generation u32 │ 8 epoch u64 │ 16 version u64
//!           24 closed u64 │ 32 minimum u64  the clock that the slowest worker is in │ 40 count u32  values │ 44 zero
//! ```
//! All little-endian. The *writer* fills buffer e mod n, then stores e in the head, and goes on to buffer e + 1 mod n only
//! behind that. So while the head says at most e + n − 2, nobody has touched the values of epoch e.
//!
//! A *reader* reads the head, then stamp and values of the epoch that it names, and *when all of these are here* the head again
//! (`judge`). One read that brings values and head would prove nothing: a device may fetch its parts in any order. The
//! two words of a head are each read whole, being aligned, but not necessarily together: see `Seen::holds`.

use std::sync::Arc;

use super::{Arena, RegionId, align_up};
use crate::error::{Malformed, Result};
use crate::types::{Clock, Version};

/// Bytes of a head, and of a stamp.
pub const HEAD: usize = 64;
const MAGIC: u16 = 0x4557;
const LAYOUT: u8 = 1;

/// Where the parts of a record lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Values of a block, at most.
    pub length: usize,
    /// Buffers of a record: at least 2.
    pub buffers: u64,
}

impl Layout {
    /// Bytes of a record.
    pub fn record(&self) -> u64 {
        HEAD as u64 + self.buffers * self.buffer()
    }

    fn buffer(&self) -> u64 {
        (HEAD + align_up(self.length * 4)) as u64
    }

    /// First byte of an epoch's stamp within its record.
    pub fn stamp(&self, epoch: u64) -> u64 {
        HEAD as u64 + epoch % self.buffers * self.buffer()
    }

    /// First byte of a value of an epoch within its record.
    pub fn value(&self, epoch: u64, number: u32) -> u64 {
        self.stamp(epoch) + HEAD as u64 + u64::from(number) * 4
    }
}

/// What is published with the values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// Of the View: another server's copy of the same bucket has another one.
    pub generation: u32,
    /// Counts the publications of this block, from 1.
    pub epoch: u64,
    /// Updates that the values have seen.
    pub version: Version,
    /// All clocks < closed are in them.
    pub closed: Clock,
    /// The clock that the slowest worker was in. With a quorum it may lie behind `closed`.
    pub minimum: Clock,
    /// Values.
    pub count: u32,
}

impl Stamp {
    fn encode(&self) -> [u8; HEAD] {
        let mut bytes = [0; HEAD];
        bytes[..2].copy_from_slice(&MAGIC.to_le_bytes());
        bytes[2] = LAYOUT;
        bytes[4..8].copy_from_slice(&self.generation.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.epoch.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.version.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.closed.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.minimum.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.count.to_le_bytes());
        bytes
    }

    /// The inverse of what a writer stores.
    pub fn decode(bytes: &[u8; HEAD]) -> Result<Stamp, Malformed> {
        let magic = u16::from_le_bytes([bytes[0], bytes[1]]);
        if (magic, bytes[2], bytes[3]) != (MAGIC, LAYOUT, 0) || bytes[44..] != [0; HEAD - 44] {
            let found = format!("{magic:#06x}, layout {}", bytes[2]);
            return Err(Malformed::new("stamp", "magic 0x4557, layout 1 and zeros", found));
        }
        Ok(Stamp {
            generation: u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]),
            epoch: word(bytes, 8),
            version: word(bytes, 16),
            closed: word(bytes, 24),
            minimum: word(bytes, 32),
            count: u32::from_le_bytes([bytes[40], bytes[41], bytes[42], bytes[43]]),
        })
    }
}

/// What a reader saw of a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// The last published epoch; 0 for none.
    pub epoch: u64,
    /// All clocks < closed are in that, or in one that the next look at the head shows.
    pub closed: Clock,
}

impl Seen {
    /// From the bytes of a head.
    pub fn decode(bytes: &[u8; HEAD]) -> Seen {
        Seen { epoch: word(bytes, 0), closed: word(bytes, 8) }
    }

    /// Whether values of this epoch hold all clocks < `needed`, as `stamp` says itself, or as this head said when `after` it,
    /// read later, still names the same epoch: `closed` rises only behind the epoch that has it, so a head of which one
    /// word is newer than the other is followed by one with a newer epoch.
    fn holds(&self, needed: Clock, after: &Seen, stamp: &Stamp) -> bool {
        stamp.closed >= needed || self.epoch == after.epoch && self.closed >= needed
    }
}

/// What becomes of values that were read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Judgement {
    /// They are those of one epoch.
    Whole(Version),
    /// They may have been written while they were read, or lack a clock that has closed since: read the newer epoch.
    Again,
}

/// Judges values from `first` on that were read, with their stamp, between two looks at the head. Nothing of the stamp is believed
/// before the heads say that it is whole.
pub fn judge(
    layout: &Layout,
    (before, after): (&Seen, &Seen),
    stamp: &[u8; HEAD],
    (generation, needed, end): (u32, Clock, u32),
) -> Result<Judgement, Malformed> {
    if after.epoch < before.epoch {
        let expected = format!("at least {}", before.epoch);
        return Err(Malformed::new("epoch", expected, after.epoch));
    }
    if after.epoch - before.epoch > layout.buffers - 2 {
        return Ok(Judgement::Again);
    }
    let stamp = Stamp::decode(stamp)?;
    if (stamp.generation, stamp.epoch) != (generation, before.epoch) {
        let expected = format!("epoch {} of generation {generation}", before.epoch);
        let found = format!("{} of {}", stamp.epoch, stamp.generation);
        return Err(Malformed::new("stamp", expected, found));
    }
    if stamp.count < end {
        return Err(Malformed::new("count", format!("at least {end}"), stamp.count));
    }
    match before.holds(needed, after, &stamp) {
        true => Ok(Judgement::Whole(stamp.version)),
        false => Ok(Judgement::Again),
    }
}

/// The records of equally long blocks, written by one thread.
#[derive(Debug)]
pub struct Epochs {
    arena: Arc<Arena>,
    region: RegionId,
    layout: Layout,
    generation: u32,
    /// The last published epoch of each.
    last: Vec<u64>,
}

impl Epochs {
    /// `count` records of which nothing is published yet. Their arena still has to be registered.
    pub fn new(layout: Layout, count: usize, generation: u32) -> Result<Epochs> {
        let arena = Arena::new(count * layout.record() as usize)?;
        Ok(Epochs { arena, region: RegionId(u32::MAX), layout, generation, last: vec![0; count] })
    }

    /// Makes its arena known.
    pub fn register(&mut self, register: impl FnOnce(Arc<Arena>) -> Result<RegionId>) -> Result<()> {
        self.region = register(self.arena.clone())?;
        Ok(())
    }

    /// Bytes that [`Epochs::new`] would take.
    pub fn bytes(layout: &Layout, count: usize) -> u64 {
        layout.record().saturating_add(8).saturating_mul(count as u64)
    }

    /// What readers are to be let read: the region, and how many records lie in it.
    pub fn region(&self) -> (RegionId, usize) {
        (self.region, self.last.len())
    }

    /// Bytes of all records.
    pub fn length(&self) -> usize {
        self.last.len() * self.layout.record() as usize
    }

    /// Publishes a new version of a block, which has seen all clocks < `closed`.
    pub fn publish(
        &mut self,
        block: usize,
        values: &[f32],
        version: Version,
        (closed, minimum): (Clock, Clock),
    ) {
        assert!(values.len() <= self.layout.length, "a block of {} values", self.layout.length);
        let epoch = self.last[block] + 1;
        let at = self.at(block) + self.layout.stamp(epoch) as usize;
        let stamp = Stamp {
            generation: self.generation,
            epoch,
            version,
            closed,
            minimum,
            count: values.len() as u32,
        };
        self.arena.begin_words();
        self.arena.copy_in(at, &stamp.encode());
        self.arena.copy_in(at + HEAD, bytemuck::cast_slice(values));
        self.arena.store_word(self.at(block), epoch);
        self.last[block] = epoch;
    }

    /// What is published of a block has seen all clocks < `closed`.
    pub fn closed(&mut self, block: usize, closed: Clock) {
        self.arena.store_word(self.at(block) + 8, closed);
    }

    fn at(&self, block: usize) -> usize {
        block * self.layout.record() as usize
    }
}

fn word(bytes: &[u8; HEAD], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::random::SplitMix64;

    const LENGTH: usize = 1000;

    fn epochs(buffers: u64) -> Epochs {
        let mut epochs = Epochs::new(Layout { length: LENGTH, buffers }, 3, 7).unwrap();
        epochs.register(|_| Ok(RegionId(0))).unwrap();
        epochs
    }

    fn bytes(epochs: &Epochs, at: u64) -> [u8; HEAD] {
        let mut bytes = [0; HEAD];
        epochs.arena.copy_out(epochs.at(1) + at as usize, &mut bytes);
        bytes
    }

    #[test]
    fn golden_bytes() {
        let stamp = Stamp { generation: 1, epoch: 2, version: 3, closed: 4, minimum: 5, count: 6 };
        let hex: String = stamp.encode().iter().map(|b| format!("{b:02x}")).collect();
        let golden = "5745010001000000020000000000000003000000000000000400000000000000\
                      0500000000000000060000000000000000000000000000000000000000000000";
        assert_eq!(hex, golden);
        assert_eq!(Stamp::decode(&stamp.encode()), Ok(stamp));
        for at in [0, 1, 2, 3, 44, 63] {
            let mut other = stamp.encode();
            other[at] ^= 1;
            assert_eq!(Stamp::decode(&other).unwrap_err().field, "stamp", "byte {at}");
        }
    }

    #[test]
    fn the_newest_epoch_is_found_where_the_head_says() {
        let mut epochs = epochs(3);
        assert_eq!(Seen::decode(&bytes(&epochs, 0)), Seen { epoch: 0, closed: 0 });
        for n in 1..=7u16 {
            epochs.publish(1, &[f32::from(n); 20], n.into(), (n.into(), 0));
            epochs.closed(1, u64::from(n) + 100);
        }
        let seen = Seen::decode(&bytes(&epochs, 0));
        assert_eq!(seen, Seen { epoch: 7, closed: 107 });
        let stamp = Stamp::decode(&bytes(&epochs, epochs.layout.stamp(7))).unwrap();
        assert_eq!(stamp, Stamp { generation: 7, epoch: 7, version: 7, closed: 7, minimum: 0, count: 20 });
        let values = bytes(&epochs, epochs.layout.value(7, 4));
        assert_eq!(values, bytemuck::cast::<_, [u8; HEAD]>([7.0f32; 16]));
        assert_eq!(epochs.region(), (RegionId(0), 3));
        assert_eq!(epochs.length() as u64, 3 * epochs.layout.record());
    }

    /// What a correct server can't publish is an error, and what may have been written over is not looked at.
    #[test]
    fn heads_are_asked_before_the_stamp_is_believed() {
        let layout = Layout { length: LENGTH, buffers: 3 };
        let stamp = Stamp { generation: 7, epoch: 5, version: 9, closed: 2, minimum: 2, count: 20 };
        let head = |epoch, closed| Seen { epoch, closed };
        let ask = |before, after, stamp: &[u8; HEAD], needed, end| {
            judge(&layout, (&before, &after), stamp, (7, needed, end)).map_err(|m| m.field)
        };
        let good = stamp.encode();
        assert_eq!(ask(head(5, 2), head(5, 2), &good, 2, 20), Ok(Judgement::Whole(9)));
        assert_eq!(ask(head(5, 2), head(6, 3), &good, 2, 20), Ok(Judgement::Whole(9)));
        assert_eq!(ask(head(5, 2), head(7, 2), &[0xff; HEAD], 2, 20), Ok(Judgement::Again));
        // Closed since, with nothing new for this bucket; but not when the head's words may be of different times.
        assert_eq!(ask(head(5, 4), head(5, 4), &good, 4, 20), Ok(Judgement::Whole(9)));
        assert_eq!(ask(head(5, 4), head(6, 4), &good, 4, 20), Ok(Judgement::Again));
        assert_eq!(ask(head(5, 2), head(4, 2), &good, 2, 20), Err("epoch"));
        assert_eq!(ask(head(4, 2), head(4, 2), &good, 2, 20), Err("stamp"));
        assert_eq!(ask(head(5, 2), head(5, 2), &[0; HEAD], 2, 20), Err("stamp"));
        assert_eq!(ask(head(5, 2), head(5, 2), &good, 2, 21), Err("count"));
        let other = Stamp { generation: 8, ..stamp }.encode();
        assert_eq!(ask(head(5, 2), head(5, 2), &other, 2, 20), Err("stamp"));
    }

    /// A reader whose reads are cut into small ones, between any two of which the writer may publish: of what is judged whole no
    /// value is of another epoch. Without the judgement such values are found.
    #[test]
    fn no_torn_value_is_judged_whole() {
        for buffers in [2, 3, 5] {
            let (mut epochs, mut random) = (epochs(buffers), SplitMix64::new(buffers, 1));
            let (mut version, mut whole, mut again, mut torn) = (0u16, 0, 0, 0);
            let mut step = |epochs: &mut Epochs, chance| {
                if random.below(chance) == 0 {
                    version += 1;
                    epochs.publish(1, &[f32::from(version); LENGTH], version.into(), (0, 0));
                }
            };
            while whole < 3000 {
                step(&mut epochs, 2);
                let before = Seen::decode(&bytes(&epochs, 0));
                if before.epoch == 0 {
                    continue;
                }
                let stamp = bytes(&epochs, epochs.layout.stamp(before.epoch));
                let mut values = [0.0f32; LENGTH];
                for (number, part) in (0u32..).zip(values.chunks_mut(100)) {
                    step(&mut epochs, 6);
                    let at = epochs.at(1) + epochs.layout.value(before.epoch, number * 100) as usize;
                    epochs.arena.copy_out(at, bytemuck::cast_slice_mut(part));
                }
                let after = Seen::decode(&bytes(&epochs, 0));
                let wanted = (7, 0, LENGTH as u32);
                let said = Stamp::decode(&stamp).unwrap().version;
                let is_torn = values.iter().any(|v| *v != said as f32);
                torn += u32::from(is_torn);
                match judge(&epochs.layout, (&before, &after), &stamp, wanted).unwrap() {
                    Judgement::Whole(version) => {
                        assert!(!is_torn && version == said, "{buffers} buffers, version {version}");
                        whole += 1;
                    }
                    Judgement::Again => again += 1,
                }
            }
            println!("{buffers} buffers: {whole} whole, {again} read again, {torn} torn");
            assert!(again >= torn && torn > 0, "{buffers} buffers: {again} read again, {torn} torn");
        }
    }
}
