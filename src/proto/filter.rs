//! Filters: which ones this build knows, how both ends agree on them, and what they do to values.
//!
//! A table has an ordered chain for each direction. In [postcard] encoding, as part of a `TableSpec`:
//!
//! ```text
//!  chain   count varint | count × filter
//!  filter  id varint (u16) | major u8 | minor u8 | length varint | parameters
//! ```
//! | id | name | version | parameters | takes | gives |
//! | --- | --- | --- | --- | --- | --- |
//! | 1 | fp16 | 1.0 | none | fp32 | 2 bytes a value |
//! | 2 | bf16 | 1.0 | none | fp32 | 2 bytes a value |
//!
//! Agreement has three steps, and none of them falls back to something else. In the handshake of a control link each node
//! says which filters it knows (`offers`), so that nobody can take one away unseen. Opening a table, a worker refuses
//! chains that it or one of the servers does not know, and a server those that it does not know. Then every frame with
//! values, and every request for some, carries the check of its chain: one that is not the table's is refused.
//!
//! [postcard]: https://docs.rs/postcard

use crate::error::{Error, Malformed, Result};
use crate::kernels::{self, Input, Output};
use crate::mem::{Arena, Buf, Floats, Halves, Room};
use crate::types::{FilterSpec, TableSpec, Wire};

/// The newest version of each filter that this build knows.
fn known() -> [FilterSpec; 2] {
    [FilterSpec::fp16(), FilterSpec::bf16()]
}

/// What a node says in a handshake: the filters that it knows, and plain fp32, which all know.
pub fn offers() -> Vec<String> {
    let plain = std::iter::once(PLAIN.to_owned());
    plain.chain(known().iter().map(offer)).collect()
}

/// Name and version.
fn offer(filter: &FilterSpec) -> String {
    FilterSpec { parameters: Vec::new(), ..*filter }.to_string()
}

const PLAIN: &str = "fp32 1.0";

/// Whether who knows `ours` also knows `theirs`: the same name and major version, and no newer minor one. What is no filter
/// has to be the same text.
pub fn covers(ours: &str, theirs: &str) -> bool {
    match (version(ours), version(theirs)) {
        (Some((name, major, minor)), Some((other, their_major, their_minor))) => {
            name == other && major == their_major && their_minor <= minor
        }
        _ => ours == theirs,
    }
}

/// `name major.minor`, taken apart.
fn version(offer: &str) -> Option<(&str, u8, u8)> {
    let (name, version) = offer.rsplit_once(' ')?;
    let (major, minor) = version.split_once('.')?;
    Some((name, major.parse().ok()?, minor.parse().ok()?))
}

/// A chain that this build knows, ready for use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Chain {
    wire: Wire,
    check: u16,
}

impl Chain {
    /// The chain of these filters; refused, with what was asked for and what is known, when one of them is unknown, of a
    /// newer version, or does not take what the one before it gives.
    pub fn negotiate(filters: &[FilterSpec]) -> Result<Chain, Malformed> {
        let mut wire = Wire::Fp32;
        for filter in filters {
            let known = known();
            let knows =
                |k: &&FilterSpec| (k.id, k.major) == (filter.id, filter.major) && filter.minor <= k.minor;
            if !known.iter().any(|k| knows(&k)) {
                let expected = known.map(|k| k.to_string()).join(" or ");
                return Err(Malformed::new("filter", expected, filter));
            }
            if !filter.parameters.is_empty() {
                return Err(Malformed::new("filter parameters", "none", filter));
            }
            if wire != Wire::Fp32 {
                return Err(Malformed::new("filter", format!("one that takes {wire}"), filter));
            }
            wire = if filter.id == FilterSpec::fp16().id { Wire::Fp16 } else { Wire::Bf16 };
        }
        Ok(Chain { wire, check: check(filters) })
    }

    /// What the header of a frame says of the chain that its values went through.
    pub fn check(self) -> u16 {
        self.check
    }

    /// Refuses a frame of another chain.
    pub fn expect(self, found: u16) -> Result<(), Malformed> {
        if found == self.check {
            return Ok(());
        }
        let expected = format!("{:#06x} ({})", self.check, self.wire);
        Err(Malformed::new("chain", expected, format!("{found:#06x}")))
    }

    /// Whether values travel as they are.
    pub fn is_empty(self) -> bool {
        self.wire == Wire::Fp32
    }

    /// Bytes of one value on the wire.
    pub fn value_bytes(self) -> usize {
        self.wire.bytes()
    }

    /// Writes `values` to byte `at` of `into` as they travel: one pass.
    ///
    /// # Panics
    /// When they don't fit.
    pub fn encode<'a>(self, values: impl Into<Floats<'a>>, into: &mut Buf, at: usize) {
        let values = values.into();
        let output = match self.wire {
            Wire::Fp32 => Output::F32(into.room(at, values.len())),
            Wire::Fp16 => Output::F16(into.room(at, values.len())),
            Wire::Bf16 => Output::Bf16(into.room(at, values.len())),
        };
        kernels::narrow(output, values);
    }

    /// Reads as many values as `into` has, from byte `at` of `from` on: one pass.
    ///
    /// # Panics
    /// When they lie outside.
    pub fn decode<'a>(self, from: &Buf, at: usize, into: impl Into<Room<'a, f32>>) {
        let into = into.into();
        let end = at + into.len() * self.value_bytes();
        assert!(end <= from.len(), "buffer of {} bytes is too short", from.len());
        let values = self.view(from.arena(), from.offset() + at, into.len());
        kernels::widen(into, values);
    }

    /// `count` values at byte `at` of `arena`, in place.
    ///
    /// # Panics
    /// When they lie outside.
    pub(crate) fn view(self, arena: &Arena, at: usize, count: usize) -> Input<'_> {
        match self.wire {
            Wire::Fp32 => Input::F32(Floats::in_arena(arena, at, count)),
            Wire::Fp16 => Input::F16(Halves::in_arena(arena, at, count)),
            Wire::Bf16 => Input::Bf16(Halves::in_arena(arena, at, count)),
        }
    }
}

/// The chains of a table, for both directions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Chains {
    /// From the workers to the servers.
    pub push: Chain,
    /// And back.
    pub pull: Chain,
}

impl Chains {
    /// The chains of `spec`; see [`Chain::negotiate`].
    pub fn of(spec: &TableSpec) -> Result<Chains> {
        let chain = |filters: &[FilterSpec], way: &str| {
            let named = |m: Malformed| {
                Error::config(format!("table \"{}\": {way} {}", spec.name, m.field), m.expected, m.found)
            };
            Chain::negotiate(filters).map_err(named)
        };
        Ok(Chains { push: chain(&spec.push_filters, "push")?, pull: chain(&spec.pull_filters, "pull")? })
    }
}

/// Refuses a table one of whose filters is not among what was chosen in the handshake with `peer`.
pub fn agreed(spec: &TableSpec, chosen: &[String], peer: &str) -> Result<()> {
    let filters = spec.push_filters.iter().chain(&spec.pull_filters);
    for asked in filters.map(offer) {
        if !chosen.iter().any(|chosen| covers(chosen, &asked)) {
            let reason = format!("table \"{}\": filter {asked}: it knows {}", spec.name, chosen.join(", "));
            return Err(Error::Refused { peer: peer.to_owned(), reason });
        }
    }
    Ok(())
}

/// The low half of the CRC32C of the chain's bytes; 0 for the empty chain, and for no other.
fn check(filters: &[FilterSpec]) -> u16 {
    if filters.is_empty() {
        return 0;
    }
    // Encoding into memory that grows can't fail; an empty result would be told apart from the empty chain all the same.
    let bytes = postcard::to_stdvec(filters).unwrap_or_default();
    (crc32c::crc32c(&bytes) as u16).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mem::{Pool, RegionId};

    #[test]
    fn golden_bytes() {
        let chain = [FilterSpec::fp16(), FilterSpec { id: 300, major: 1, minor: 2, parameters: vec![7, 8] }];
        let bytes = postcard::to_stdvec(&chain[..]).unwrap();
        assert_eq!(bytes, [2, 1, 1, 0, 0, 0xAC, 0x02, 1, 2, 2, 7, 8]);
        assert_eq!(postcard::from_bytes::<Vec<FilterSpec>>(&bytes).unwrap(), chain);
        let checks = [Wire::Fp32, Wire::Fp16, Wire::Bf16].map(|w| check(&w.filters()));
        assert_eq!(checks, [0, 8543, 43_110]);
    }

    /// From raw bytes, as a peer of another version would send them.
    #[test]
    fn unknown_filters_and_newer_versions_are_refused_with_both_values() {
        let negotiate =
            |bytes: &[u8]| Chain::negotiate(&postcard::from_bytes::<Vec<FilterSpec>>(bytes).unwrap());
        for (bytes, found) in [
            (&[1, 9, 1, 0, 0][..], "filter 9 1.0"),
            (&[1, 1, 1, 1, 0], "fp16 1.1"),
            (&[1, 2, 1, 255, 0], "bf16 1.255"),
            (&[1, 2, 2, 0, 0], "bf16 2.0"),
            (&[1, 1, 0, 0, 0], "fp16 0.0"),
        ] {
            let refused = Malformed::new("filter", "fp16 1.0 or bf16 1.0", found);
            assert_eq!(negotiate(bytes), Err(refused));
        }
        let refused = negotiate(&[1, 1, 1, 0, 1, 5]).unwrap_err();
        assert_eq!((refused.field, &*refused.expected), ("filter parameters", "none"));
        let refused = negotiate(&[2, 1, 1, 0, 0, 2, 1, 0, 0]).unwrap_err();
        assert_eq!((&*refused.expected, &*refused.found), ("one that takes fp16", "bf16 1.0"));
        assert_eq!(negotiate(&[0]), Ok(Chain::default()));
        assert_eq!(negotiate(&[1, 1, 1, 0, 0]).map(Chain::value_bytes), Ok(2));
    }

    #[test]
    fn an_older_minor_version_is_known_and_nothing_else() {
        assert!(covers("fp16 1.2", "fp16 1.2") && covers("fp16 1.2", "fp16 1.0"));
        assert!(!covers("fp16 1.2", "fp16 1.3") && !covers("fp16 1.2", "fp16 2.0"));
        assert!(!covers("fp16 1.2", "bf16 1.0") && !covers("fp16 1.2", "fp16") && covers("x", "x"));
    }

    #[test]
    fn a_frame_of_another_chain_is_refused_with_both() {
        let chain = |wire: Wire| Chain::negotiate(&wire.filters()).unwrap();
        for ours in [Wire::Fp32, Wire::Fp16, Wire::Bf16] {
            for theirs in [Wire::Fp32, Wire::Fp16, Wire::Bf16] {
                assert_eq!(chain(ours).expect(chain(theirs).check()).is_ok(), ours == theirs);
            }
        }
        let refused = chain(Wire::Fp16).expect(0).unwrap_err();
        assert!(refused.expected.contains("fp16") && refused.found == "0x0000", "{refused:?}");
    }

    #[test]
    fn values_go_out_rounded_to_nearest_even_and_come_back() {
        let pool = Pool::new(&[(64, 1)], |_| Ok(RegionId(0))).unwrap();
        let values = [1.0f32, -2.5, 65504.0, 1e6, f32::NAN, 1.0 + 1.0 / 2048.0, 1.0 + 3.0 / 2048.0];
        for (wire, expected) in [
            (Wire::Fp32, values),
            (Wire::Fp16, [1.0, -2.5, 65504.0, f32::INFINITY, f32::NAN, 1.0, 1.0 + 4.0 / 2048.0]),
            (Wire::Bf16, [1.0, -2.5, 65536.0, 999_424.0, f32::NAN, 1.0, 1.0]),
        ] {
            let chain = Chain::negotiate(&wire.filters()).unwrap();
            let mut buf = pool.lease(values.len() * wire.bytes() + 8).unwrap();
            chain.encode(&values[..], &mut buf, 8);
            let mut back = [0.0; 7];
            chain.decode(&buf, 8, &mut back[..]);
            let same = |(a, b): (&f32, &f32)| a == b || a.is_nan() && b.is_nan();
            assert!(back.iter().zip(&expected).all(same), "{wire}: {back:?}");
        }
    }
}
