//! One file of a checkpoint: a header, sections, and their directory.
//!
//! ```text
//!  0    header, 64 bytes
//!  64   sections, each at the first multiple of 64 behind the one before, with zeros between
//!  d    directory: 40 bytes for each section, in the order of their offsets; it ends the file
//!
//!  header  magic "WLCHKPT\0" | version u32 | kind u32 | clock u64 | server u32 | thread u32 | directory offset u64
//!          | sections u32 | CRC32C of the directory u32 | length of the file u64 | 0 u32 | CRC32C of the 60 bytes before u32
//!  entry   kind u32 | table u32 | bucket u32 | CRC32C of the section u32 | offset u64 | length u64 | version u64
//! ```
//! Little-endian. There is one layout for a given list of sections, so nothing can hide between them.

use std::fmt;

use crate::error::Error;
use crate::types::{BucketId, Clock, Rank, ShardId, TableId, Version};

/// Bytes of the header.
pub const HEADER: usize = 64;
/// Bytes of one entry of the directory.
pub const ENTRY: usize = 40;
/// Sections begin at multiples of this many bytes.
pub const ALIGN: u64 = 64;
/// Bytes of one worker in a section of clocks.
pub const CLOCK_ENTRY: usize = 32;
/// Bytes of one entry in a section about workers that were ahead.
pub const AHEAD_ENTRY: usize = 32;

const MAGIC: [u8; 8] = *b"WLCHKPT\0";
const VERSION: u32 = 2;

/// What a file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// The buckets of one server thread.
    Shard,
    /// The workers' opaque states.
    Workers,
    /// What commits the others.
    Manifest,
}

/// What a section holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SectionKind {
    /// The specs of this file's tables, as JSON.
    Specs,
    /// [`WorkerClock`]s by rank.
    Clocks,
    /// fp32 of a dense bucket.
    Parameters,
    /// A dense bucket's optimizer state: its planes, then its scalars.
    State,
    /// u64 keys of a sparse bucket.
    Keys,
    /// The rows of those keys: parameters, planes, scalars.
    Rows,
    /// The opaque state of the worker whose rank stands for the bucket.
    Worker,
    /// A [`Manifest`](super::Manifest) as JSON.
    Manifest,
    /// [`AheadEntry`]s by table, bucket and worker.
    Ahead,
}

impl SectionKind {
    const ALL: [SectionKind; 9] = [
        SectionKind::Specs,
        SectionKind::Clocks,
        SectionKind::Parameters,
        SectionKind::State,
        SectionKind::Keys,
        SectionKind::Rows,
        SectionKind::Worker,
        SectionKind::Manifest,
        SectionKind::Ahead,
    ];

    /// Numbered from 1, in the order above.
    fn number(self) -> u32 {
        1 + self as u32
    }

    fn of(number: u32) -> Option<SectionKind> {
        SectionKind::ALL.into_iter().find(|kind| kind.number() == number)
    }
}

/// Which section of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SectionId {
    /// What it holds.
    pub kind: SectionKind,
    /// Its table's number in the manifest; 0 where there is none.
    pub table: TableId,
    /// Its bucket, or a worker's rank; 0 where there is neither.
    pub bucket: BucketId,
}

impl SectionId {
    /// A section that belongs to the whole file.
    pub fn whole(kind: SectionKind) -> SectionId {
        SectionId { kind, table: 0, bucket: 0 }
    }
}

impl fmt::Display for SectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let SectionId { kind, table, bucket } = self;
        let name = match kind {
            SectionKind::Specs => return f.write_str("specs"),
            SectionKind::Clocks => return f.write_str("clocks"),
            SectionKind::Manifest => return f.write_str("manifest"),
            SectionKind::Ahead => return f.write_str("ahead"),
            SectionKind::Worker => return write!(f, "state of worker {bucket}"),
            SectionKind::Parameters => "parameters",
            SectionKind::State => "state",
            SectionKind::Keys => "keys",
            SectionKind::Rows => "rows",
        };
        write!(f, "{name} of table {table} bucket {bucket}")
    }
}

/// One entry of the directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Section {
    /// Which one.
    pub id: SectionId,
    /// Updates that the bucket had seen.
    pub version: Version,
    /// First byte within the file.
    pub offset: u64,
    /// In bytes.
    pub length: u64,
    /// CRC32C of its bytes.
    pub crc: u32,
}

/// What a file is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// What it holds.
    pub kind: FileKind,
    /// All clocks before this one are in it, and no other under Bsp.
    pub clock: Clock,
    /// Whose it is; 0 and 0 where it is no shard's.
    pub shard: ShardId,
}

/// Header and directory of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Index {
    /// What the file is about.
    pub header: Header,
    /// In the order of their offsets.
    pub sections: Vec<Section>,
}

/// What is wrong with a file, not yet tied to its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flaw {
    /// Where: a section, `header`, `directory` or `padding`.
    pub section: String,
    /// Its first byte in the file.
    pub offset: u64,
    /// What should be there.
    pub expected: String,
    /// What is there.
    pub found: String,
}

impl Flaw {
    /// A flaw of the section at `offset`.
    pub fn new(
        section: impl fmt::Display,
        offset: u64,
        expected: impl fmt::Display,
        found: impl fmt::Display,
    ) -> Flaw {
        Flaw {
            section: section.to_string(),
            offset,
            expected: expected.to_string(),
            found: found.to_string(),
        }
    }

    /// The error that names the file.
    pub fn of(self, file: impl fmt::Display) -> Error {
        let Flaw { section, offset, expected, found } = self;
        Error::Checkpoint { file: file.to_string(), section, offset, expected, found }
    }
}

/// The first place for a section behind `end`.
pub fn aligned(end: u64) -> u64 {
    end.next_multiple_of(ALIGN)
}

impl Index {
    /// Bytes of the header and of the directory that belong at its front and at [`Index::directory_at`].
    pub fn encode(&self) -> ([u8; HEADER], Vec<u8>) {
        let mut directory = Vec::with_capacity(self.sections.len() * ENTRY);
        for Section { id, version, offset, length, crc } in &self.sections {
            for number in [id.kind.number(), id.table, id.bucket, *crc] {
                directory.extend_from_slice(&number.to_le_bytes());
            }
            for number in [*offset, *length, *version] {
                directory.extend_from_slice(&number.to_le_bytes());
            }
        }
        let at = self.directory_at();
        let mut header = Vec::with_capacity(HEADER);
        header.extend_from_slice(&MAGIC);
        header.extend_from_slice(&VERSION.to_le_bytes());
        header.extend_from_slice(&(1 + self.header.kind as u32).to_le_bytes());
        header.extend_from_slice(&self.header.clock.to_le_bytes());
        header.extend_from_slice(&self.header.shard.server.to_le_bytes());
        header.extend_from_slice(&self.header.shard.thread.to_le_bytes());
        header.extend_from_slice(&at.to_le_bytes());
        header.extend_from_slice(&(self.sections.len() as u32).to_le_bytes());
        header.extend_from_slice(&crc32c::crc32c(&directory).to_le_bytes());
        header.extend_from_slice(&(at + directory.len() as u64).to_le_bytes());
        header.extend_from_slice(&[0; 4]);
        header.extend_from_slice(&crc32c::crc32c(&header).to_le_bytes());
        let mut out = [0; HEADER];
        out.copy_from_slice(&header);
        (out, directory)
    }

    /// First byte of the directory.
    pub fn directory_at(&self) -> u64 {
        self.sections.last().map_or(HEADER as u64, |s| aligned(s.offset + s.length))
    }

    /// Where the directory lies in a file of `length` bytes that begins with `header`: its first byte and its length.
    pub fn directory_of(header: &[u8; HEADER], length: u64) -> Result<(u64, u64), Flaw> {
        let fields = Fields(header);
        let flaw = |offset: u64, expected: &dyn fmt::Display, found: &dyn fmt::Display| {
            Flaw::new("header", offset, expected, found)
        };
        if header[..8] != MAGIC {
            return Err(flaw(0, &"a checkpoint's magic", &format!("{:02x?}", &header[..8])));
        }
        let crc = crc32c::crc32c(&header[..60]);
        if fields.u32(60) != crc {
            return Err(flaw(0, &format!("CRC {:08x}", fields.u32(60)), &format!("{crc:08x}")));
        }
        if fields.u32(8) != VERSION {
            return Err(flaw(8, &format!("version {VERSION}"), &fields.u32(8)));
        }
        if fields.u64(48) != length {
            return Err(flaw(48, &format!("a file of {} bytes", fields.u64(48)), &format!("{length} bytes")));
        }
        let (at, bytes) = (fields.u64(32), u64::from(fields.u32(40)) * ENTRY as u64);
        if at.checked_add(bytes) != Some(length) || at < HEADER as u64 {
            return Err(flaw(32, &"a directory that ends the file", &format!("{bytes} bytes at {at}")));
        }
        Ok((at, bytes))
    }

    /// The inverse of [`Index::encode`], of a file of `length` bytes. Whatever it accepts can be read: sections lie inside the file,
    /// and where they must.
    pub fn decode(header: &[u8; HEADER], directory: &[u8], length: u64) -> Result<Index, Flaw> {
        let (at, bytes) = Index::directory_of(header, length)?;
        let fields = Fields(header);
        let crc = crc32c::crc32c(directory);
        if directory.len() as u64 != bytes || fields.u32(44) != crc {
            let expected = format!("{bytes} bytes with CRC {:08x}", fields.u32(44));
            let found = format!("{} with {crc:08x}", directory.len());
            return Err(Flaw::new("directory", at, expected, found));
        }
        let kinds = [FileKind::Shard, FileKind::Workers, FileKind::Manifest];
        let kind = kinds.into_iter().find(|kind| 1 + *kind as u32 == fields.u32(12));
        let kind = kind.ok_or_else(|| Flaw::new("header", 12, "a kind from 1 to 3", fields.u32(12)))?;
        if fields.u32(56) != 0 {
            return Err(Flaw::new("header", 56, 0, fields.u32(56)));
        }
        let shard = ShardId { server: fields.u32(24), thread: fields.u32(28) };
        let mut index = Index { header: Header { kind, clock: fields.u64(16), shard }, sections: Vec::new() };
        index.sections.reserve_exact(directory.len() / ENTRY);
        for (place, entry) in (at..).step_by(ENTRY).zip(directory.chunks_exact(ENTRY)) {
            let section = section(entry, place)?;
            let expected = index.directory_at();
            if section.offset != expected || section.offset.checked_add(section.length).is_none_or(|e| e > at)
            {
                let expected = format!("a section at {expected} that ends by {at}");
                let found = format!("{} bytes at {}", section.length, section.offset);
                return Err(Flaw::new("directory", place, expected, found));
            }
            index.sections.push(section);
        }
        if index.directory_at() != at {
            return Err(Flaw::new("header", 32, index.directory_at(), at));
        }
        Ok(index)
    }
}

fn section(entry: &[u8], place: u64) -> Result<Section, Flaw> {
    let fields = Fields(entry);
    let kind = SectionKind::of(fields.u32(0))
        .ok_or_else(|| Flaw::new("directory", place, "a section's kind", fields.u32(0)))?;
    let id = SectionId { kind, table: fields.u32(4), bucket: fields.u32(8) };
    let (offset, length, version) = (fields.u64(16), fields.u64(24), fields.u64(32));
    Ok(Section { id, version, offset, length, crc: fields.u32(12) })
}

/// Numbers in bytes that are there: the callers cut them to length.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn u32(&self, at: usize) -> u32 {
        let mut bytes = [0; 4];
        bytes.copy_from_slice(&self.0[at..at + 4]);
        u32::from_le_bytes(bytes)
    }

    fn u64(&self, at: usize) -> u64 {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&self.0[at..at + 8]);
        u64::from_le_bytes(bytes)
    }
}

/// How far a worker had got at a shard, and what tells its replays: `clock u64 | last u64 | incarnation u64 | next sequence u64`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WorkerClock {
    /// The clock that it was in.
    pub clock: Clock,
    /// The clock from which on it pushes nothing; `None` (2^64 − 1) for one that goes on.
    pub finished: Option<Clock>,
    /// Of its process; 0 before its first endpoint.
    pub incarnation: u64,
    /// The number of the next frame that would have been accepted.
    pub next_sequence: u64,
}

/// The bytes of a section of clocks.
pub fn encode_clocks(clocks: &[WorkerClock]) -> Vec<u8> {
    let fields = |c: &WorkerClock| [c.clock, c.finished.unwrap_or(u64::MAX), c.incarnation, c.next_sequence];
    clocks.iter().flat_map(fields).flat_map(u64::to_le_bytes).collect()
}

/// The inverse of [`encode_clocks`]; bytes behind the last whole worker are left out.
pub fn decode_clocks(bytes: &[u8]) -> Vec<WorkerClock> {
    let worker = |bytes: &[u8]| {
        let fields = Fields(bytes);
        let finished = Some(fields.u64(8)).filter(|&clock| clock != u64::MAX);
        WorkerClock {
            clock: fields.u64(0),
            finished,
            incarnation: fields.u64(16),
            next_sequence: fields.u64(24),
        }
    };
    bytes.chunks_exact(CLOCK_ENTRY).map(worker).collect()
}

/// What a worker had pushed to a bucket where that is more than its clock at the shard says:
/// `table u32 | bucket u32 | worker u32 | 0 u32 | clock u64 | keys u64`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AheadEntry {
    /// The bucket's table.
    pub table: TableId,
    /// Which bucket.
    pub bucket: BucketId,
    /// By rank.
    pub worker: Rank,
    /// All its clocks before this one are in the bucket.
    pub clock: Clock,
    /// And so many keys of this one, in the order in which its calls name them.
    pub keys: u64,
}

/// The bytes of a section of these.
pub fn encode_ahead(entries: &[AheadEntry]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(entries.len() * AHEAD_ENTRY);
    for AheadEntry { table, bucket, worker, clock, keys } in entries {
        [*table, *bucket, *worker, 0].iter().for_each(|field| bytes.extend_from_slice(&field.to_le_bytes()));
        [*clock, *keys].iter().for_each(|field| bytes.extend_from_slice(&field.to_le_bytes()));
    }
    bytes
}

/// The inverse of [`encode_ahead`]; bytes behind the last whole entry are left out.
pub fn decode_ahead(bytes: &[u8]) -> Vec<AheadEntry> {
    let entry = |bytes: &[u8]| {
        let fields = Fields(bytes);
        AheadEntry {
            table: fields.u32(0),
            bucket: fields.u32(4),
            worker: fields.u32(8),
            clock: fields.u64(16),
            keys: fields.u64(24),
        }
    };
    bytes.chunks_exact(AHEAD_ENTRY).map(entry).collect()
}
