//! What checkpoints need of a file system, and no more: so little that NFS and Lustre give it, and that tests can break each step.
//!
//! No locks, no memory maps, no appending. A name becomes visible by `rename`, and even that is not relied on: whoever reads
//! looks for a manifest, and takes no file for whole whose length and digest differ from what the manifest says.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

/// A file system.
pub trait Storage: std::fmt::Debug + Send + Sync {
    /// A new file for writing, in place of one of that name.
    fn create(&self, path: &Path) -> io::Result<Box<dyn StorageFile>>;
    /// A file for reading.
    fn open(&self, path: &Path) -> io::Result<Box<dyn StorageFile>>;
    /// Gives a file its final name.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Gives a directory a name that nothing has, or fails with [`io::ErrorKind::AlreadyExists`]. As it stands here it may still replace an
    /// empty directory that somebody makes at the same moment.
    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()> {
        rename_unless_seen(self, from, to)
    }
    /// Makes what was created, renamed or removed in a directory durable.
    fn sync_directory(&self, path: &Path) -> io::Result<()>;
    /// Makes a directory and its parents; one that is there is left as it is.
    fn make_directory(&self, path: &Path) -> io::Result<()>;
    /// The names in a directory.
    fn list(&self, path: &Path) -> io::Result<Vec<String>>;
    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Removes an empty directory.
    fn remove_directory(&self, path: &Path) -> io::Result<()>;
}

pub(super) fn rename_unless_seen(
    storage: &(impl Storage + ?Sized),
    from: &Path,
    to: &Path,
) -> io::Result<()> {
    match storage.list(to) {
        Ok(_) => Err(io::ErrorKind::AlreadyExists.into()),
        Err(_) => storage.rename(from, to),
    }
}

/// An open file of a [`Storage`].
pub trait StorageFile: Send + Sync {
    /// Writes all of `bytes` from byte `offset` on. What lies between the end and `offset` becomes zeros.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Makes what was written durable.
    fn sync(&self) -> io::Result<()>;
    /// Reads exactly `into.len()` bytes from byte `offset` on.
    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<()>;
    /// Its length in bytes.
    fn length(&self) -> io::Result<u64>;
}

/// The operating system's.
#[derive(Debug, Clone, Copy, Default)]
pub struct Disk;

impl Storage for Disk {
    fn create(&self, path: &Path) -> io::Result<Box<dyn StorageFile>> {
        Ok(Box::new(File::create(path)?))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn StorageFile>> {
        Ok(Box::new(File::open(path)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()> {
        match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
            // NFS, for one, can't do it.
            Err(Errno::INVAL | Errno::NOSYS) => rename_unless_seen(self, from, to),
            renamed => Ok(renamed?),
        }
    }

    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn make_directory(&self, path: &Path) -> io::Result<()> {
        fs::create_dir_all(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        let names = fs::read_dir(path)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
        names.collect()
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn remove_directory(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir(path)
    }
}

impl StorageFile for File {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_all()
    }

    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
        self.read_exact_at(into, offset)
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }
}
