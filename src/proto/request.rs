//! The header of what a worker writes into a slot of a server thread.
//!
//! ```text
//!  0  magic    u16  0x4C57 ("WL")          24  argument u64  pull: byte offset in the region;
//!                                                        push: base version, 2^64 − 1 for none
//!  2  version  u8   2                      32  table    u32
//!  3  kind     u8                          36  bucket   u32  dense: the bucket; packed keys: bytes
//!  4  flags    u8   see below              40  epoch    u32  of the View that routed it
//!  5  region   u8   pull: number, else 0   44  first    u32  dense: element in the bucket; sparse: directory entries
//!  6  chain    u16  check of the filters   48  count    u32  elements (dense), keys (sparse) or parts (batch)
//!  8  sequence u64  per thread, from 0
//! 16  clock    u64  the worker's           52  length   u32  body bytes
//!                                          56  tag      u32  comes back in the reply
//!                                          60  check    u32  CRC32C of bytes 0..60
//! ```
//!
//! Flags: bit 0, a pull that must see the pushes of its own clock, too; bit 1, void; bit 2, the keys are to be kept under the name at the
//! head of the body; bit 3, the keys are those that are kept under it; bit 4, the keys are packed (see `packed.rs`), into as many bytes as `bucket` says.
//!
//! A batch holds several requests in one slot: its body is a row of *parts*, each a header as above, whose sequence is its
//! number within the batch, and its own body, padded with anything to 64 bytes. It means what its parts mean one after
//! another. All are of the batch's clock and epoch, and none is a batch. A void request asks for nothing: what it asked for has
//! been answered, or is not wanted any more.

use super::{Builder, Fields, HEADER, KeysAt};
use crate::error::Malformed;
use crate::mem::align_up;

const MAGIC: u16 = 0x4C57;
const VERSION: u8 = 2;
const AFTER_PUSH: u8 = 1;
const VOID: u8 = 2;
const KEPT: u8 = 4;
const NAMED: u8 = 8;
const PACKED: u8 = 16;
/// The argument of a push that does not say which version of its bucket it was computed from.
pub const NO_BASE: u64 = u64::MAX;

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequestKind {
    /// Add the body's values.
    Push,
    /// Write the values into one of the worker's regions.
    Pull,
    /// The worker ended `clock`.
    Mark,
    /// The worker pushes nothing from `clock` on.
    Finish,
    /// The body's values are what the parameters become. Laid out and treated as a push.
    Set,
    /// What the parts in the body ask for.
    Batch,
}

/// A request's header, decoded from a private copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestHeader {
    /// What is asked for.
    pub kind: RequestKind,
    /// A pull that must see the pushes of its own clock too.
    pub after_push: bool,
    /// It asks for nothing.
    pub void: bool,
    /// Where the keys of a sparse request are.
    pub keys: KeysAt,
    /// The keys in its body are packed, into `bucket` bytes.
    pub packed: bool,
    /// Counts the requests for one server thread; of a part, those before it in its batch.
    pub sequence: u64,
    /// The worker's clock.
    pub clock: u64,
    /// Pull: which of the regions that the worker announced; 0 is its receive memory.
    pub region: u8,
    /// Push, set: check of the filters that the values went through; pull: that they are to go through. 0 without any.
    pub chain: u16,
    /// Pull: byte offset in the region. Push: its base version, or [`NO_BASE`].
    pub argument: u64,
    /// Which table.
    pub table: u32,
    /// Which bucket (dense).
    pub bucket: u32,
    /// The View's epoch.
    pub epoch: u32,
    /// Dense: first element within the bucket. Sparse: entries of the directory.
    pub first: u32,
    /// Elements, keys or parts.
    pub count: u32,
    /// Body bytes.
    pub length: u32,
    /// Comes back in the reply.
    pub tag: u32,
}

impl RequestHeader {
    /// The 64 bytes drawn above.
    pub fn encode(&self) -> [u8; HEADER] {
        let kind = match self.kind {
            RequestKind::Push => 1u8,
            RequestKind::Pull => 2,
            RequestKind::Mark => 3,
            RequestKind::Finish => 4,
            RequestKind::Set => 5,
            RequestKind::Batch => 6,
        };
        let keys = match self.keys {
            KeysAt::Here => 0,
            KeysAt::Kept => KEPT,
            KeysAt::Named => NAMED,
        };
        let packed = if self.packed { PACKED } else { 0 };
        let flags =
            packed | keys | if self.after_push { AFTER_PUSH } else { 0 } | if self.void { VOID } else { 0 };
        Builder::new()
            .put(0, MAGIC.to_le_bytes())
            .put(2, [VERSION, kind])
            .put(4, [flags, self.region])
            .put(6, self.chain.to_le_bytes())
            .put(8, self.sequence.to_le_bytes())
            .put(16, self.clock.to_le_bytes())
            .put(24, self.argument.to_le_bytes())
            .put(32, self.table.to_le_bytes())
            .put(36, self.bucket.to_le_bytes())
            .put(40, self.epoch.to_le_bytes())
            .put(44, self.first.to_le_bytes())
            .put(48, self.count.to_le_bytes())
            .put(52, self.length.to_le_bytes())
            .put(56, self.tag.to_le_bytes())
            .finish()
    }

    /// The inverse of [`RequestHeader::encode`].
    pub fn decode(bytes: &[u8; HEADER]) -> Result<RequestHeader, Malformed> {
        let fields = Fields(bytes);
        fields.check(MAGIC, VERSION)?;
        let kind = match bytes[3] {
            1 => RequestKind::Push,
            2 => RequestKind::Pull,
            3 => RequestKind::Mark,
            4 => RequestKind::Finish,
            5 => RequestKind::Set,
            6 => RequestKind::Batch,
            other => return Err(Malformed::new("kind", "1 to 6", other)),
        };
        let [flags, region] = [bytes[4], bytes[5]];
        if region != 0 && kind != RequestKind::Pull {
            return Err(Malformed::new("region", "0 but for a pull", region));
        }
        if flags & !(AFTER_PUSH | VOID | KEPT | NAMED | PACKED) != 0 {
            return Err(Malformed::new("flags", "only known flags", format!("{flags:#04x}")));
        }
        let keys = match (kind, flags & (KEPT | NAMED)) {
            (_, 0) => KeysAt::Here,
            (RequestKind::Push | RequestKind::Set, KEPT) => KeysAt::Kept,
            (RequestKind::Push | RequestKind::Set | RequestKind::Pull, NAMED) => KeysAt::Named,
            _ => {
                let expected = "keys that a push or set keeps, or that are kept";
                return Err(Malformed::new("flags", expected, format!("{flags:#04x}")));
            }
        };
        let packed = flags & PACKED != 0;
        let has_keys = matches!(kind, RequestKind::Push | RequestKind::Set | RequestKind::Pull);
        if packed && (!has_keys || keys == KeysAt::Named) {
            return Err(Malformed::new("flags", "packed keys where there are keys", format!("{flags:#04x}")));
        }
        Ok(RequestHeader {
            kind,
            keys,
            packed,
            after_push: flags & AFTER_PUSH != 0,
            void: flags & VOID != 0,
            sequence: fields.u64(8),
            clock: fields.u64(16),
            region,
            chain: fields.u16(6),
            argument: fields.u64(24),
            table: fields.u32(32),
            bucket: fields.u32(36),
            epoch: fields.u32(40),
            first: fields.u32(44),
            count: fields.u32(48),
            length: fields.u32(52),
            tag: fields.u32(56),
        })
    }

    /// A batch that so far holds `first`.
    pub fn batch(first: &RequestHeader) -> RequestHeader {
        let length = first.part_bytes() as u32;
        let (clock, epoch) = (first.clock, first.epoch);
        RequestHeader { kind: RequestKind::Batch, count: 1, length, ..RequestHeader::new(clock, epoch) }
    }

    /// A mark of `clock`, routed by the View of `epoch`; a beginning for every other kind.
    pub fn new(clock: u64, epoch: u32) -> RequestHeader {
        RequestHeader {
            kind: RequestKind::Mark,
            after_push: false,
            void: false,
            keys: KeysAt::Here,
            packed: false,
            sequence: 0,
            clock,
            region: 0,
            chain: 0,
            argument: 0,
            table: 0,
            bucket: 0,
            epoch,
            first: 0,
            count: 0,
            length: 0,
            tag: 0,
        }
    }

    /// Bytes that this request takes as a part of a batch.
    pub fn part_bytes(&self) -> usize {
        HEADER + align_up(self.length as usize)
    }

    /// Makes the request with this encoded header a void one.
    pub fn make_void(bytes: &mut [u8; HEADER]) {
        *bytes = Builder(*bytes).put(4, [bytes[4] | VOID]).finish();
    }

    /// The part at `at`, which is the batch's `number`th; both go on to the next.
    fn next_part(
        &self,
        (at, number): (&mut usize, &mut usize),
        copy: &impl Fn(usize, &mut [u8; HEADER]),
    ) -> Result<Option<(usize, RequestHeader)>, Malformed> {
        let (count, length) = (self.count as usize, self.length as usize);
        if count == 0 || count > length / HEADER {
            return Err(Malformed::new("count", format!("1 to {} parts", length / HEADER), count));
        }
        if *number == count {
            let left = length - *at;
            let whole = || Malformed::new("length", format!("{count} parts of {length} bytes"), *at);
            return if left == 0 { Ok(None) } else { Err(whole()) };
        }
        let left = length - *at;
        if left < HEADER {
            return Err(Malformed::new("length", format!("room for part {number} of {count}"), left));
        }
        let mut bytes = [0; HEADER];
        copy(*at, &mut bytes);
        let part = RequestHeader::decode(&bytes)?;
        if part.kind == RequestKind::Batch {
            return Err(Malformed::new("kind", "no batch in a batch", "one"));
        }
        if part.sequence != *number as u64 {
            return Err(Malformed::new("sequence", format!("{number} within its batch"), part.sequence));
        }
        if part.clock != self.clock {
            return Err(Malformed::new("clock", format!("{} as its batch", self.clock), part.clock));
        }
        if part.epoch != self.epoch {
            return Err(Malformed::new("epoch", format!("{} as its batch", self.epoch), part.epoch));
        }
        if part.length as usize > left || part.part_bytes() > left {
            return Err(Malformed::new(
                "length",
                format!("at most {} in a part", left - HEADER),
                part.length,
            ));
        }
        let body = *at + HEADER;
        *at += part.part_bytes();
        *number += 1;
        Ok(Some((body, part)))
    }

    /// The parts of the batch that this header announces, each with the place of its body; `copy` copies 64 bytes out of
    /// the batch's body, of which the header has said the length. Nothing is given after the first error.
    pub fn parts<'a>(
        &self,
        copy: impl Fn(usize, &mut [u8; HEADER]) + 'a,
    ) -> impl Iterator<Item = Result<(usize, RequestHeader), Malformed>> + 'a {
        let batch = *self;
        let (mut at, mut number, mut over) = (0, 0, false);
        std::iter::from_fn(move || {
            if over {
                return None;
            }
            let part = batch.next_part((&mut at, &mut number), &copy);
            over = !matches!(part, Ok(Some(_)));
            part.transpose()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn example() -> RequestHeader {
        RequestHeader {
            kind: RequestKind::Pull,
            after_push: true,
            void: false,
            keys: KeysAt::Here,
            packed: false,
            sequence: 0x0102_0304_0506_0708,
            clock: 9,
            region: 2,
            chain: 0x0A0B,
            argument: 4096,
            table: 3,
            bucket: 17,
            epoch: 1,
            first: 5,
            count: 6,
            length: 24,
            tag: 0xDEAD_BEEF,
        }
    }

    #[test]
    fn golden_bytes() {
        let hex: String = example().encode().iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(
            hex,
            "574c020201020b0a080706050403020109000000000000000010000000000000\
             030000001100000001000000050000000600000018000000efbeaddefe4cbbbe"
        );
        assert_eq!(RequestHeader::decode(&example().encode()), Ok(example()));
    }

    #[test]
    fn where_the_keys_are_is_two_flags() {
        for (keys, kind, flags) in [
            (KeysAt::Kept, RequestKind::Push, 4),
            (KeysAt::Kept, RequestKind::Set, 4),
            (KeysAt::Named, RequestKind::Push, 8),
            (KeysAt::Named, RequestKind::Pull, 9),
        ] {
            let after_push = kind == RequestKind::Pull;
            let region = if after_push { 2 } else { 0 };
            let header = RequestHeader { keys, kind, after_push, region, ..example() };
            assert_eq!(header.encode()[4], flags);
            assert_eq!(RequestHeader::decode(&header.encode()), Ok(header));
        }
        let refused = |keys, kind| {
            let header = RequestHeader { keys, kind, region: 0, ..example() };
            RequestHeader::decode(&header.encode()).unwrap_err().field
        };
        assert_eq!(refused(KeysAt::Kept, RequestKind::Pull), "flags");
        assert_eq!(refused(KeysAt::Named, RequestKind::Mark), "flags");
        assert_eq!(refused(KeysAt::Kept, RequestKind::Batch), "flags");
        let packed = RequestHeader { packed: true, ..example() };
        assert_eq!(packed.encode()[4], 17);
        assert_eq!(RequestHeader::decode(&packed.encode()), Ok(packed));
        let named = RequestHeader { keys: KeysAt::Named, ..packed };
        assert_eq!(RequestHeader::decode(&named.encode()).unwrap_err().field, "flags");
        let mut both = Builder(RequestHeader { kind: RequestKind::Push, region: 0, ..example() }.encode());
        both = both.put(4, [12]);
        assert_eq!(RequestHeader::decode(&both.finish()).unwrap_err().field, "flags");
    }

    #[test]
    fn wrong_fields_are_named() {
        let mut bytes = example().encode();
        bytes[2] = VERSION + 1;
        assert_eq!(RequestHeader::decode(&bytes).unwrap_err().field, "version");
        let mut bytes = example().encode();
        bytes[16] ^= 1;
        assert_eq!(RequestHeader::decode(&bytes).unwrap_err().field, "check");
    }

    #[test]
    fn the_kinds_are_numbered() {
        let kinds = [
            RequestKind::Push,
            RequestKind::Pull,
            RequestKind::Mark,
            RequestKind::Finish,
            RequestKind::Set,
            RequestKind::Batch,
        ];
        for (number, kind) in (1..).zip(kinds) {
            assert_eq!(RequestHeader { kind, ..example() }.encode()[3], number);
        }
    }

    /// A batch of a push of 4 bytes and a mark, and its header.
    fn batch() -> (RequestHeader, Vec<u8>) {
        let push = RequestHeader {
            kind: RequestKind::Push,
            after_push: false,
            sequence: 0,
            region: 0,
            chain: 0,
            argument: 0,
            count: 1,
            length: 4,
            ..example()
        };
        let mark = RequestHeader { kind: RequestKind::Mark, sequence: 1, count: 0, length: 0, ..push };
        let mut body = push.encode().to_vec();
        body.extend(1.5f32.to_le_bytes());
        body.resize(128, 0xEE);
        body.extend(mark.encode());
        let header = RequestHeader { kind: RequestKind::Batch, sequence: 9, count: 2, length: 192, ..push };
        (header, body)
    }

    fn parse(header: &RequestHeader, body: &[u8]) -> Result<Vec<(usize, RequestHeader)>, Malformed> {
        header.parts(|at, bytes| bytes.copy_from_slice(&body[at..at + HEADER])).collect()
    }

    #[test]
    fn golden_bytes_of_a_batch() {
        let (header, body) = batch();
        let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
        assert_eq!(
            hex(&header.encode()),
            "574c020600000000090000000000000009000000000000000000000000000000\
             0300000011000000010000000500000002000000c0000000efbeadde0471e31c"
        );
        assert_eq!(
            hex(&body[..64]),
            "574c020100000000000000000000000009000000000000000000000000000000\
             030000001100000001000000050000000100000004000000efbeadde642a1bbf"
        );
        assert_eq!(
            hex(&body[128..]),
            "574c020300000000010000000000000009000000000000000000000000000000\
             030000001100000001000000050000000000000000000000efbeadde5d724bf9"
        );
        let parts = parse(&header, &body).unwrap();
        assert_eq!(
            parts.iter().map(|(at, p)| (*at, p.kind)).collect::<Vec<_>>(),
            [(64, RequestKind::Push), (192, RequestKind::Mark)]
        );
    }

    #[test]
    fn a_void_request_differs_in_one_flag_and_its_check() {
        let mut bytes = example().encode();
        RequestHeader::make_void(&mut bytes);
        assert_eq!(RequestHeader::decode(&bytes), Ok(RequestHeader { void: true, ..example() }));
    }

    /// Nested, truncated, overlong, empty, overlapping, with a wrong check, out of order.
    #[test]
    fn malformed_batches_are_refused_by_field() {
        let (header, body) = batch();
        let field = |header: RequestHeader, body: &[u8]| parse(&header, body).unwrap_err().field;
        assert_eq!(field(RequestHeader { count: 0, ..header }, &body), "count");
        assert_eq!(field(RequestHeader { count: 4, ..header }, &body), "count");
        assert_eq!(field(RequestHeader { count: u32::MAX, ..header }, &body), "count");
        assert_eq!(field(RequestHeader { length: 0, ..header }, &body), "count");
        assert_eq!(field(RequestHeader { count: 3, ..header }, &body), "length");
        assert_eq!(field(RequestHeader { count: 1, ..header }, &body), "length");
        assert_eq!(field(RequestHeader { length: 191, ..header }, &body), "length");
        assert_eq!(field(RequestHeader { length: 128, ..header }, &body), "length");
        let first = |part: RequestHeader| {
            let mut body = body.clone();
            body[..HEADER].copy_from_slice(&part.encode());
            field(header, &body)
        };
        let push = parse(&header, &body).unwrap()[0].1;
        assert_eq!(first(RequestHeader { kind: RequestKind::Batch, ..push }), "kind");
        assert_eq!(first(RequestHeader { sequence: 1, ..push }), "sequence");
        assert_eq!(first(RequestHeader { clock: 1, ..push }), "clock");
        assert_eq!(first(RequestHeader { epoch: 9, ..push }), "epoch");
        assert_eq!(first(RequestHeader { length: u32::MAX, ..push }), "length");
        assert_eq!(first(RequestHeader { length: 129, ..push }), "length");
        // A body that reaches into the next part leaves no header where one is looked for.
        assert_eq!(first(RequestHeader { length: 65, ..push }), "length");
        let mut wrong = body.clone();
        wrong[130] ^= 1;
        assert_eq!(field(header, &wrong), "version");
        let mut wrong = body.clone();
        wrong[150] ^= 1;
        assert_eq!(field(header, &wrong), "check");
    }

    proptest! {
        /// Whatever the bytes are: parts lie inside, follow each other, and end.
        #[test]
        fn parts_of_any_bytes_stay_inside(
            lengths in proptest::collection::vec(0u32..200, 1..12),
            flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3),
            count in 0u32..14, cut in 0usize..80,
        ) {
            let mut body = Vec::new();
            for (number, &length) in lengths.iter().enumerate() {
                let part = RequestHeader { sequence: number as u64, length, ..example() };
                body.extend(part.encode());
                body.resize(body.len() + part.part_bytes() - HEADER, 0);
            }
            for (at, value) in flips {
                let at = at.index(body.len());
                body[at] = value;
            }
            body.truncate(body.len().saturating_sub(cut));
            let length = body.len() as u32;
            let header = RequestHeader { kind: RequestKind::Batch, count, length, ..example() };
            let mut end = 0;
            for part in header.parts(|at, bytes| bytes.copy_from_slice(&body[at..at + HEADER])) {
                let Ok((at, part)) = part else { break };
                prop_assert_eq!(at, end + HEADER);
                end += part.part_bytes();
                prop_assert!(end <= body.len());
            }
        }

        #[test]
        fn any_bytes_decode_or_are_refused(mut bytes in proptest::array::uniform32(any::<u8>())
            .prop_flat_map(|a| proptest::array::uniform32(any::<u8>()).prop_map(move |b| {
                let mut all = [0u8; HEADER];
                all[..32].copy_from_slice(&a);
                all[32..].copy_from_slice(&b);
                all
            })), mend in any::<bool>()) {
            if mend {
                bytes[..3].copy_from_slice(&[0x57, 0x4C, VERSION]);
                let check = crc32c::crc32c(&bytes[..60]);
                bytes[60..].copy_from_slice(&check.to_le_bytes());
            }
            if let Ok(header) = RequestHeader::decode(&bytes) {
                prop_assert_eq!(header.encode(), bytes);
            }
        }
    }
}
