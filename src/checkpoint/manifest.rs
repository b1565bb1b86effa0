//! What commits a checkpoint: which files there are, and what tells that they are whole.

use serde::{Deserialize, Serialize};

use super::format::HEADER;
use crate::error::{Error, Result};
use crate::types::{Clock, TableSpec};

/// Bounds on what a manifest may claim: more is damage, and memory would be taken for it.
const MOST_WORKERS: u32 = 1 << 16;
const MOST_CLOCK: u64 = 1 << 62;

/// The list of a checkpoint's files. Without it they mean nothing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// What wrote it.
    pub writer: String,
    /// The run that made it, by 128 random bits in hexadecimal: a job that began anew, and all that went on from its cuts.
    pub run: String,
    /// All clocks before this one are in it.
    pub clock: Clock,
    /// The job's number of workers.
    pub workers: u32,
    /// The tables by number, each with the seed of its initializer.
    pub tables: Vec<TableSpec>,
    /// All files but the manifest.
    pub files: Vec<FileEntry>,
}

/// One file of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Its name in the cut's directory.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// BLAKE3 of its header and directory, in hexadecimal; the directory has the CRC32C of each section.
    pub digest: String,
}

impl FileEntry {
    /// Of a file with this header and directory.
    pub fn new(name: String, bytes: u64, header: &[u8; HEADER], directory: &[u8]) -> FileEntry {
        let mut hasher = blake3::Hasher::new();
        hasher.update(header).update(directory);
        FileEntry { name, bytes, digest: hasher.finalize().to_hex().to_string() }
    }

    /// Whether its name stays in its directory.
    pub fn is_plain(&self) -> bool {
        let fits = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
        !self.name.is_empty()
            && self.name.len() <= 64
            && !self.name.starts_with('.')
            && self.name.chars().all(fits)
    }
}

impl Manifest {
    /// A name for a run that begins.
    pub fn new_run() -> Result<String> {
        let mut bits = [0; 16];
        getrandom::fill(&mut bits)
            .map_err(|e| Error::io("getrandom", "a run's name", std::io::Error::other(e.to_string())))?;
        Ok(bits.iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// As JSON; nothing when it would not come back as it is, as with a NaN among an update rule's values.
    pub fn to_json(&self) -> Option<String> {
        let text = serde_json::to_string_pretty(self).ok()?;
        (Manifest::from_json(text.as_bytes()).ok()? == *self).then_some(text)
    }

    /// The inverse; the error says what is wrong with it.
    pub fn from_json(text: &[u8]) -> std::result::Result<Manifest, String> {
        let manifest: Manifest = serde_json::from_slice(text).map_err(|e| e.to_string())?;
        for spec in &manifest.tables {
            spec.validate().map_err(|e| e.to_string())?;
        }
        if !(1..=MOST_WORKERS).contains(&manifest.workers) {
            return Err(format!("{} workers where 1 to {MOST_WORKERS} can be", manifest.workers));
        }
        if manifest.clock > MOST_CLOCK {
            return Err(format!("clock {} where at most {MOST_CLOCK} can be", manifest.clock));
        }
        match manifest.files.iter().find(|file| !file.is_plain()) {
            Some(file) => Err(format!("a file named {:?}", file.name)),
            None => Ok(manifest),
        }
    }
}
