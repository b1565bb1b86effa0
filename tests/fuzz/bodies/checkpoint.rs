//! Files of checkpoints: whatever their bytes, they are refused by section and offset, or can be read to the end.

use std::io;
use std::path::Path;
use std::sync::Arc;

use windlass::Error;
use windlass::checkpoint::{
    Cut, CutFile, ENTRY, FileEntry, FileKind, HEADER, Header, Index, Manifest, Section, SectionId,
    SectionKind, Storage, StorageFile, decode_ahead, decode_clocks,
};
use windlass::types::{OptimizerSpec, ShardId, TableSpec};

/// A file of each name, all with the same bytes but the manifest.
#[derive(Debug)]
struct Files {
    bytes: Arc<Vec<u8>>,
    manifest: Arc<Vec<u8>>,
}

struct Open(Arc<Vec<u8>>);

impl Storage for Files {
    fn open(&self, path: &Path) -> io::Result<Box<dyn StorageFile>> {
        let bytes = if path.ends_with("MANIFEST") { &self.manifest } else { &self.bytes };
        Ok(Box::new(Open(bytes.clone())))
    }

    fn create(&self, _: &Path) -> io::Result<Box<dyn StorageFile>> {
        unreachable!("nothing is written")
    }

    fn rename(&self, _: &Path, _: &Path) -> io::Result<()> {
        unreachable!("nothing is written")
    }

    fn sync_directory(&self, _: &Path) -> io::Result<()> {
        unreachable!("nothing is written")
    }

    fn make_directory(&self, _: &Path) -> io::Result<()> {
        unreachable!("nothing is written")
    }

    fn list(&self, _: &Path) -> io::Result<Vec<String>> {
        Ok(Vec::new())
    }

    fn remove(&self, _: &Path) -> io::Result<()> {
        unreachable!("nothing is written")
    }

    fn remove_directory(&self, _: &Path) -> io::Result<()> {
        unreachable!("nothing is written")
    }
}

impl StorageFile for Open {
    fn write_at(&self, _: &[u8], _: u64) -> io::Result<()> {
        unreachable!("nothing is written")
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
        assert!(into.len() <= self.0.len(), "more was allocated than the file has");
        let start = usize::try_from(offset).unwrap();
        let found = start.checked_add(into.len()).and_then(|end| self.0.get(start..end));
        into.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.0.len() as u64)
    }
}

/// The first byte says which sums are mended; the others are the file.
pub fn file(data: &[u8]) {
    let Some((&mode, file)) = data.split_first() else { return };
    let mut bytes = file.to_vec();
    if mode & 1 == 1 {
        mend(&mut bytes);
    }
    let bytes = Arc::new(bytes);
    let files = Files { bytes: bytes.clone(), manifest: bytes };
    let file = match CutFile::open(&files, Path::new("/f")) {
        Ok(file) => file,
        Err(error) => return named(&error, files.bytes.len()),
    };
    let mut whole = true;
    let mut end = HEADER as u64;
    for section in file.sections() {
        assert!(section.offset >= end && section.offset - end < 64);
        end = section.offset + section.length;
        match file.read(section) {
            Ok(bytes) if section.id.kind == SectionKind::Clocks => drop(decode_clocks(&bytes)),
            Ok(bytes) if section.id.kind == SectionKind::Ahead => drop(decode_ahead(&bytes)),
            Ok(bytes) => drop(Manifest::from_json(&bytes)),
            Err(error) => {
                whole = false;
                named(&error, files.bytes.len());
            }
        }
        drop((file.read_floats(section), file.read_keys(section)));
    }
    assert!(end + (file.sections().len() * ENTRY) as u64 <= files.bytes.len() as u64);
    match file.verify() {
        Ok(()) => assert!(whole),
        Err(error) => named(&error, files.bytes.len()),
    }
    // As a whole checkpoint whose manifest it is.
    let storage: Arc<dyn Storage> = Arc::new(Files { bytes: shard(), manifest: files.bytes.clone() });
    match Cut::open(&storage, Path::new("/cut")) {
        Ok(cut) => drop((cut.verify(), cut.states().map(drop))),
        Err(Error::Io { .. }) => {}
        Err(error) => named(&error, usize::MAX),
    }
}

fn named(error: &Error, length: usize) {
    match error {
        Error::Checkpoint { section, offset, .. } => {
            assert!(!section.is_empty() && *offset <= length as u64, "{error}");
        }
        other => panic!("{other}"),
    }
}

/// Makes header and directory right by their sums, so that inputs reach the code behind them.
fn mend(bytes: &mut [u8]) {
    let length = bytes.len();
    let Some((header, _)) = bytes.split_first_chunk::<HEADER>() else { return };
    let sections = u32::from_le_bytes(header[40..44].try_into().unwrap()) as usize % 64;
    let Some(at) = length.checked_sub(sections * ENTRY).filter(|&at| at >= HEADER) else { return };
    let crc = crc32c::crc32c(&bytes[at..]);
    let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
    put(0, b"WLCHKPT\0");
    put(8, &1u32.to_le_bytes());
    put(32, &(at as u64).to_le_bytes());
    put(40, &(sections as u32).to_le_bytes());
    put(44, &crc.to_le_bytes());
    put(48, &(length as u64).to_le_bytes());
    put(56, &[0; 4]);
    let crc = crc32c::crc32c(&bytes[..60]);
    bytes[60..64].copy_from_slice(&crc.to_le_bytes());
}

fn of(kind: FileKind, sections: &[(SectionKind, &[u8])]) -> Vec<u8> {
    let mut bytes = vec![0; HEADER];
    let mut all = Vec::new();
    for &(kind, content) in sections {
        bytes.resize(bytes.len().next_multiple_of(64), 0);
        let id = SectionId { kind, table: 0, bucket: 0 };
        let crc = crc32c::crc32c(content);
        let (offset, length) = (bytes.len() as u64, content.len() as u64);
        all.push(Section { id, version: 1, offset, length, crc });
        bytes.extend_from_slice(content);
    }
    bytes.resize(bytes.len().next_multiple_of(64), 0);
    let shard = ShardId { server: 0, thread: 0 };
    let (header, directory) = Index { header: Header { kind, clock: 5, shard }, sections: all }.encode();
    bytes[..HEADER].copy_from_slice(&header);
    bytes.extend_from_slice(&directory);
    bytes
}

fn shard() -> Arc<Vec<u8>> {
    Arc::new(of(FileKind::Shard, &[(SectionKind::Keys, &[1; 16]), (SectionKind::Rows, &[2; 8])]))
}

fn manifest() -> Vec<u8> {
    let shard = shard();
    let directory = &shard[shard.len() - 2 * ENTRY..];
    let header: [u8; HEADER] = shard[..HEADER].try_into().unwrap();
    let file = FileEntry::new("shard-0000-000".to_owned(), shard.len() as u64, &header, directory);
    let tables = vec![TableSpec::sparse("w", 1).optimizer(OptimizerSpec::sgd(0.5))];
    let (writer, run) = ("w".to_owned(), "r".to_owned());
    let manifest = Manifest { writer, run, clock: 5, workers: 2, tables, files: vec![file] };
    of(FileKind::Manifest, &[(SectionKind::Manifest, manifest.to_json().unwrap().as_bytes())])
}

pub fn file_seeds() -> Vec<Vec<u8>> {
    let clocks = [7; 64];
    let dense: [(SectionKind, &[u8]); 4] = [
        (SectionKind::Clocks, &clocks),
        (SectionKind::Specs, b"{}"),
        (SectionKind::Parameters, &[0; 12]),
        (SectionKind::State, &[]),
    ];
    let files = [
        shard().to_vec(),
        manifest(),
        of(FileKind::Workers, &[(SectionKind::Worker, b"state")]),
        of(FileKind::Shard, &dense),
        of(FileKind::Shard, &[]),
    ];
    files.iter().flat_map(|file| [0, 1].map(|mode| [&[mode][..], file].concat())).collect()
}
