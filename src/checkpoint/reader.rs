//! Reads a checkpoint, whoever wrote it: nothing is believed that was not checked.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::folder::MANIFEST;
use super::format::{FileKind, Flaw, HEADER, Header, Index, Section, SectionId, SectionKind, aligned};
use super::manifest::{FileEntry, Manifest};
use super::storage::{Storage, StorageFile};
use crate::error::{Error, Result};

/// Bytes that are read at a time where they are only checked.
const BLOCK: usize = 1 << 20;

/// A file whose header and directory are right.
pub struct CutFile {
    path: PathBuf,
    file: Box<dyn StorageFile>,
    index: Index,
    entry: FileEntry,
}

impl CutFile {
    /// Opens a file, and checks its header and directory.
    pub fn open(storage: &dyn Storage, path: &Path) -> Result<CutFile> {
        let shown = path.display();
        let file = storage.open(path).map_err(|e| Error::io("open", &shown, e))?;
        let read = |e| Error::io("read", &shown, e);
        let length = file.length().map_err(read)?;
        if length < HEADER as u64 {
            return Err(Flaw::new("header", 0, format!("{HEADER} bytes"), length).of(&shown));
        }
        let mut header = [0; HEADER];
        file.read_at(&mut header, 0).map_err(read)?;
        // Not longer than the file: its length is known to be right.
        let (at, bytes) = Index::directory_of(&header, length).map_err(|flaw| flaw.of(&shown))?;
        let mut directory = vec![0; bytes as usize];
        file.read_at(&mut directory, at).map_err(read)?;
        let index = Index::decode(&header, &directory, length).map_err(|flaw| flaw.of(&shown))?;
        let name = path.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
        let entry = FileEntry::new(name, length, &header, &directory);
        Ok(CutFile { path: path.to_owned(), file, index, entry })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it is about.
    pub fn header(&self) -> Header {
        self.index.header
    }

    /// Its sections, in the order of their offsets.
    pub fn sections(&self) -> &[Section] {
        &self.index.sections
    }

    /// A section that belongs to the whole file.
    pub fn find(&self, kind: SectionKind) -> Option<&Section> {
        self.sections().iter().find(|section| section.id == SectionId::whole(kind))
    }

    /// Name, length and digest.
    pub fn entry(&self) -> &FileEntry {
        &self.entry
    }

    /// The bytes of a section, checked.
    pub fn read(&self, section: &Section) -> Result<Vec<u8>> {
        // No more than the file has: the directory was checked against its length.
        let mut bytes = vec![0; section.length as usize];
        self.read_into(section, &mut bytes)?;
        Ok(bytes)
    }

    /// The fp32 of a section, checked.
    pub fn read_floats(&self, section: &Section) -> Result<Vec<f32>> {
        self.whole(section, 4)?;
        let mut floats = vec![0f32; section.length as usize / 4];
        self.read_into(section, bytemuck::cast_slice_mut(&mut floats))?;
        Ok(floats)
    }

    /// The u64 of a section, checked.
    pub fn read_keys(&self, section: &Section) -> Result<Vec<u64>> {
        self.whole(section, 8)?;
        let mut keys = vec![0u64; section.length as usize / 8];
        self.read_into(section, bytemuck::cast_slice_mut(&mut keys))?;
        Ok(keys)
    }

    fn whole(&self, section: &Section, unit: u64) -> Result<()> {
        if section.length.is_multiple_of(unit) {
            return Ok(());
        }
        let expected = format!("a multiple of {unit} bytes");
        Err(Flaw::new(section.id, section.offset, expected, section.length).of(self.path.display()))
    }

    fn read_into(&self, section: &Section, bytes: &mut [u8]) -> Result<()> {
        let read = |e| Error::io("read", self.path.display(), e);
        self.file.read_at(bytes, section.offset).map_err(read)?;
        self.check(section, crc32c::crc32c(bytes))
    }

    fn check(&self, section: &Section, crc: u32) -> Result<()> {
        if crc == section.crc {
            return Ok(());
        }
        let (expected, found) = (format!("CRC {:08x}", section.crc), format!("{crc:08x}"));
        Err(Flaw::new(section.id, section.offset, expected, found).of(self.path.display()))
    }

    /// Reads all of it: every section has its CRC, and what lies between them is zero.
    pub fn verify(&self) -> Result<()> {
        let mut block = vec![0; BLOCK.min(self.entry.bytes as usize)];
        self.sections().iter().try_for_each(|section| self.verify_section(section, &mut block))
    }

    /// Reads a section and the zeros behind it, a block at a time.
    fn verify_section(&self, section: &Section, block: &mut [u8]) -> Result<()> {
        let read = |e| Error::io("read", self.path.display(), e);
        let (mut at, mut crc) = (0, 0);
        while at < section.length {
            let count = (section.length - at).min(block.len() as u64) as usize;
            self.file.read_at(&mut block[..count], section.offset + at).map_err(read)?;
            crc = crc32c::crc32c_append(crc, &block[..count]);
            at += count as u64;
        }
        self.check(section, crc)?;
        let end = section.offset + section.length;
        let padding = &mut block[..(aligned(end) - end) as usize];
        self.file.read_at(padding, end).map_err(read)?;
        match padding.iter().position(|&byte| byte != 0) {
            Some(place) => {
                let flaw = Flaw::new("padding", end + place as u64, 0, padding[place]);
                Err(flaw.of(self.path.display()))
            }
            None => Ok(()),
        }
    }
}

/// A committed checkpoint: all its files are there, as long as they should be, with the right directories.
pub struct Cut {
    manifest: Manifest,
    files: Vec<CutFile>,
    place: HashMap<SectionId, (usize, usize)>,
}

impl Cut {
    /// Opens the checkpoint in `directory`.
    pub fn open(storage: &Arc<dyn Storage>, directory: &Path) -> Result<Cut> {
        let manifest = read_manifest(storage.as_ref(), directory)?;
        let mut files = Vec::new();
        let mut place = HashMap::new();
        for entry in &manifest.files {
            let file = CutFile::open(storage.as_ref(), &directory.join(&entry.name))?;
            if file.entry != *entry {
                let expected = format!("{} bytes with digest {}", entry.bytes, entry.digest);
                let found = format!("{} with {}", file.entry.bytes, file.entry.digest);
                return Err(Flaw::new("header", 0, expected, found).of(file.path.display()));
            }
            if file.header().clock != manifest.clock || file.header().kind == FileKind::Manifest {
                let found = format!("{:?}", file.header());
                let expected = format!("a file of clock {}", manifest.clock);
                return Err(Flaw::new("header", 0, expected, found).of(file.path.display()));
            }
            for (number, section) in file.sections().iter().enumerate() {
                // Each file has its own of these.
                if matches!(section.id.kind, SectionKind::Specs | SectionKind::Clocks | SectionKind::Ahead) {
                    continue;
                }
                if place.insert(section.id, (files.len(), number)).is_some() {
                    let flaw = Flaw::new(section.id, section.offset, "a section of one file", "a second one");
                    return Err(flaw.of(file.path.display()));
                }
            }
            files.push(file);
        }
        Ok(Cut { manifest, files, place })
    }

    /// What commits it.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Its files.
    pub fn files(&self) -> &[CutFile] {
        &self.files
    }

    /// A section, and the file that it is in.
    pub fn find(&self, id: SectionId) -> Option<(&CutFile, &Section)> {
        let &(file, section) = self.place.get(&id)?;
        let file = self.files.get(file)?;
        Some((file, file.sections().get(section)?))
    }

    /// The opaque states of the workers, by rank; empty ones where there are none.
    pub fn states(&self) -> Result<Vec<Vec<u8>>> {
        let state = |rank| match self.find(SectionId { kind: SectionKind::Worker, table: 0, bucket: rank }) {
            Some((file, section)) => file.read(section),
            None => Ok(Vec::new()),
        };
        (0..self.manifest.workers).map(state).collect()
    }

    /// Reads all of it, as [`CutFile::verify`].
    pub fn verify(&self) -> Result<()> {
        self.verify_part((0, 1), || true)
    }

    /// Reads one of `of` parts of it, of about as many bytes each; each section is in one of them. Ends early when `go_on` says so.
    pub fn verify_part(&self, (part, of): (u32, u32), go_on: impl Fn() -> bool) -> Result<()> {
        let all = || self.files.iter().flat_map(|file| file.sections().iter().map(move |s| (file, s)));
        let total = all().map(|(_, section)| u128::from(section.length) + 1).sum::<u128>().max(1);
        let (mut block, mut at) = (vec![0; BLOCK], 0);
        for (file, section) in all() {
            let place = at * u128::from(of) / total;
            at += u128::from(section.length) + 1;
            if place == u128::from(part) && go_on() {
                file.verify_section(section, &mut block)?;
            }
        }
        Ok(())
    }
}

/// The manifest of the checkpoint in `directory`, checked whole.
pub fn read_manifest(storage: &dyn Storage, directory: &Path) -> Result<Manifest> {
    let file = CutFile::open(storage, &directory.join(MANIFEST))?;
    file.verify()?;
    let expected = SectionId::whole(SectionKind::Manifest);
    let flaw = |offset: u64, expected: &str, found: String| {
        Flaw::new("manifest", offset, expected, found).of(file.path.display())
    };
    let section = match file.sections() {
        [section] if section.id == expected && file.header().kind == FileKind::Manifest => section,
        sections => return Err(flaw(0, "one section, with the manifest", format!("{sections:?}"))),
    };
    let manifest = Manifest::from_json(&file.read(section)?)
        .map_err(|found| flaw(section.offset, "a manifest", found))?;
    if manifest.clock != file.header().clock {
        let found = format!("clock {}", manifest.clock);
        return Err(flaw(section.offset, "the clock of the header", found));
    }
    Ok(manifest)
}
