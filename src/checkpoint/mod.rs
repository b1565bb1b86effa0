//! Checkpoints as files: one for each server thread, one for the workers' states, and a manifest that commits them all.
//!
//! docs/checkpoint.md draws every byte. What decides (layout, checks, which cuts go) is a function of bytes and lists; what touches
//! files goes through [`Storage`], so that tests can make any step of it fail.

mod folder;
mod format;
mod manifest;
mod reader;
mod storage;
mod writer;

pub use folder::{
    Folder, Found, Latest, MANIFEST, Standing, WORKERS, cut_name, cut_number, shard_name, to_remove,
};
pub use format::{
    AHEAD_ENTRY, ALIGN, AheadEntry, CLOCK_ENTRY, ENTRY, FileKind, Flaw, HEADER, Header, Index, Section,
    SectionId, SectionKind, WorkerClock, decode_ahead, decode_clocks, encode_ahead, encode_clocks,
};
pub use manifest::{FileEntry, Manifest};
pub use reader::{Cut, CutFile, read_manifest};
pub use storage::{Disk, Storage, StorageFile};
pub use writer::FileWriter;

#[cfg(test)]
mod kill_tests;
#[cfg(test)]
mod tests;
