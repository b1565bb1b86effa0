//! Writes one file: sections in any order of their parts, then header and directory, then its final name.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::format::{Flaw, HEADER, Header, Index, Section, SectionId, aligned};
use super::manifest::FileEntry;
use super::storage::{Storage, StorageFile};
use crate::error::{Error, Result};
use crate::mem::limits::check_file;
use crate::types::Version;

/// A file that is being written under a temporary name. Without [`FileWriter::finish`] it never gets its own, and is removed.
pub struct FileWriter {
    file: Box<dyn StorageFile>,
    path: PathBuf,
    /// Behind `file`, which is closed first: NFS keeps the bytes of a file that is open.
    temporary: Temporary,
    header: Header,
    sections: Vec<Writing>,
    place: HashMap<SectionId, usize>,
    end: u64,
}

/// A file without a final name, which goes unless it gets one.
struct Temporary {
    storage: Arc<dyn Storage>,
    path: PathBuf,
    named: bool,
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.named {
            // What can't be removed now goes with its cut.
            let _ = self.storage.remove(&self.path);
        }
    }
}

/// A section whose parts come in any order.
struct Writing {
    section: Section,
    /// Length and CRC of each part, by its first byte within the section.
    parts: BTreeMap<u64, (u64, u32)>,
}

impl FileWriter {
    /// Creates the file `path` under its temporary name.
    pub fn create(storage: Arc<dyn Storage>, path: &Path, header: Header) -> Result<FileWriter> {
        let temporary = path.with_added_extension("tmp");
        let file = storage.create(&temporary).map_err(|e| Error::io("create", temporary.display(), e))?;
        Ok(FileWriter {
            file,
            path: path.to_owned(),
            temporary: Temporary { storage, path: temporary, named: false },
            header,
            sections: Vec::new(),
            place: HashMap::new(),
            end: HEADER as u64,
        })
    }

    /// Writes a section that is all there.
    pub fn section(&mut self, id: SectionId, version: Version, bytes: &[u8]) -> Result<()> {
        self.part((id, version), bytes.len() as u64, 0, bytes)
    }

    /// Writes a part of a section of `length` bytes, from byte `at` of it on. The first part finds the section its place.
    pub fn part(
        &mut self,
        (id, version): (SectionId, Version),
        length: u64,
        at: u64,
        bytes: &[u8],
    ) -> Result<()> {
        let place = *self.place.entry(id).or_insert_with(|| {
            let offset = aligned(self.end);
            self.end = offset + length;
            let section = Section { id, version, offset, length, crc: 0 };
            self.sections.push(Writing { section, parts: BTreeMap::new() });
            self.sections.len() - 1
        });
        let writing = &mut self.sections[place];
        writing.parts.insert(at, (bytes.len() as u64, crc32c::crc32c(bytes)));
        let offset = writing.section.offset + at;
        self.write(bytes, offset)
    }

    /// Writes directory and header, makes all of it durable, and gives the file its name.
    pub fn finish(mut self) -> Result<FileEntry> {
        for writing in &mut self.sections {
            writing.close().map_err(|flaw| flaw.of(self.temporary.path.display()))?;
        }
        let sections = self.sections.iter().map(|w| w.section).collect();
        let index = Index { header: self.header, sections };
        let (header, directory) = index.encode();
        let at = index.directory_at();
        self.write(&directory, at)?;
        self.write(&header, 0)?;
        self.file.sync().map_err(|e| self.failed("sync", e))?;
        let storage = self.temporary.storage.clone();
        storage.rename(&self.temporary.path, &self.path).map_err(|e| self.failed("rename", e))?;
        self.temporary.named = true;
        let folder = self.path.parent().unwrap_or(Path::new("."));
        storage.sync_directory(folder).map_err(|e| Error::io("sync", folder.display(), e))?;
        let name = self.path.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
        Ok(FileEntry::new(name, at + directory.len() as u64, &header, &directory))
    }

    fn write(&self, bytes: &[u8], offset: u64) -> Result<()> {
        check_file(&self.temporary.path.display(), offset.saturating_add(bytes.len() as u64))?;
        self.file.write_at(bytes, offset).map_err(|e| self.failed("write", e))
    }

    fn failed(&self, operation: &'static str, error: std::io::Error) -> Error {
        Error::io(operation, self.temporary.path.display(), error)
    }
}

impl Writing {
    /// The CRC of the whole, from those of its parts, which must cover it.
    fn close(&mut self) -> Result<(), Flaw> {
        let mut end = 0;
        let mut crc = 0;
        for (&at, &(length, of_part)) in &self.parts {
            if at != end {
                break;
            }
            end += length;
            crc = crc32c::crc32c_combine(crc, of_part, length as usize);
        }
        if end != self.section.length {
            let Section { id, offset, length, .. } = self.section;
            return Err(Flaw::new(id, offset + end, format!("{length} bytes in all"), end));
        }
        self.section.crc = crc;
        Ok(())
    }
}
