//! `windlass checkpoint`: what is in checkpoints, whether it is whole, and the way to and from other programs' files.

mod files;
mod npz;
mod safetensors;
mod tensors;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{Subcommand, ValueEnum};

use crate::checkpoint::{
    Cut, Disk, Folder, Found, SectionId, SectionKind, Storage, cut_name, cut_number, decode_clocks,
};
use crate::error::{Error, Result};
use crate::types::ShardId;

/// What to do with checkpoints.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List the checkpoints of a directory, oldest first
    List {
        /// Directory that was given as --checkpoint
        directory: PathBuf,
    },
    /// Say what is in a checkpoint
    Inspect {
        /// The checkpoint's directory, or one of checkpoints for the newest
        path: PathBuf,
        /// Each section of each file, too, and the clock of each worker at each server thread
        #[arg(long)]
        all: bool,
    },
    /// Read every byte of a checkpoint, or of all in a directory; what is wrong is named by file, section and offset
    Verify {
        /// The checkpoint's directory, or one of checkpoints for all
        path: PathBuf,
    },
    /// Write the parameters of a checkpoint for other programs
    Export {
        /// The checkpoint's directory, or one of checkpoints for the newest
        path: PathBuf,
        /// What to write
        #[arg(long, value_enum)]
        format: Format,
        /// Only this table [default: all; libsvm: the only one]
        #[arg(long, value_name = "NAME")]
        table: Option<String>,
        /// Where to
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// Make a checkpoint, for a job to begin from, with parameters of another program: at clock 0, optimizer state 0
    Import {
        /// File in the format that export writes: tensors named after tables
        file: PathBuf,
        /// What it is: safetensors or npz
        #[arg(long, value_enum)]
        format: Format,
        /// A checkpoint with the same tables and number of workers; those that the file lacks begin anew
        #[arg(long, value_name = "CHECKPOINT")]
        like: PathBuf,
        /// Directory of checkpoints to add it to
        #[arg(long, value_name = "DIR")]
        into: PathBuf,
    },
}

/// Files of other programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Hugging Face's: dense tables as TABLE, sparse ones as TABLE.keys and TABLE.rows
    Safetensors,
    /// NumPy's: an array for each, named alike
    Npz,
    /// LIBLINEAR's model file, of a table with one weight for each feature
    Libsvm,
}

/// Does it.
pub fn obey(command: &Command) -> Result<()> {
    let storage: Arc<dyn Storage> = Arc::new(Disk);
    match command {
        Command::List { directory } => say(&list(&storage, directory)?),
        Command::Inspect { path, all } => {
            say(&inspect(&Cut::open(&storage, &newest(&storage, path)?)?, *all)?)
        }
        Command::Verify { path } => verify(&storage, path),
        Command::Export { path, format, table, out } => {
            let cut = Cut::open(&storage, &newest(&storage, path)?)?;
            files::export(&cut, *format, table.as_deref(), out)
        }
        Command::Import { file, format, like, into } => {
            let like = Cut::open(&storage, &newest(&storage, like)?)?;
            let folder = Folder::new(storage, into);
            let number = files::import(file, *format, &like, &folder)?;
            say(&format!("{}\n", folder.cut(number).display()))
        }
    }
}

fn say(text: &str) -> Result<()> {
    std::io::stdout().write_all(text.as_bytes()).map_err(|e| Error::io("write", "standard output", e))
}

fn is_cut(path: &Path) -> bool {
    let name = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    name.file_name().and_then(|name| cut_number(name.to_str()?)).is_some()
}

fn committed(storage: &Arc<dyn Storage>, path: &Path) -> Result<Vec<PathBuf>> {
    if is_cut(path) {
        return Ok(vec![path.to_owned()]);
    }
    let folder = Folder::new(storage.clone(), path);
    let found = folder.found()?.into_iter().filter(|found| found.committed);
    let paths: Vec<PathBuf> = found.map(|found| folder.cut(found.number)).collect();
    match paths.is_empty() {
        true => Err(Error::config("checkpoint", "a directory with at least one", path.display())),
        false => Ok(paths),
    }
}

/// The checkpoint that a path means.
fn newest(storage: &Arc<dyn Storage>, path: &Path) -> Result<PathBuf> {
    Ok(committed(storage, path)?.pop().unwrap_or_else(|| path.to_owned()))
}

fn list(storage: &Arc<dyn Storage>, directory: &Path) -> Result<String> {
    let folder = Folder::new(storage.clone(), directory);
    let line = |Found { number, committed }: Found| {
        let name = cut_name(number);
        if !committed {
            return format!("{name}  not committed\n");
        }
        match Cut::open(storage, &folder.cut(number)) {
            Ok(cut) => {
                let manifest = cut.manifest();
                let bytes: u64 = manifest.files.iter().map(|file| file.bytes).sum();
                let (clock, tables, files) = (manifest.clock, manifest.tables.len(), manifest.files.len());
                format!("{name}  clock {clock}, {tables} tables, {bytes} bytes in {files} files\n")
            }
            Err(error) => format!("{name}  can't be used: {error}\n"),
        }
    };
    Ok(folder.found()?.into_iter().map(line).collect())
}

fn inspect(cut: &Cut, all: bool) -> Result<String> {
    let manifest = cut.manifest();
    let mut text = format!(
        "clock    {}\nworkers  {}\nwriter   {}\nrun      {}\n",
        manifest.clock, manifest.workers, manifest.writer, manifest.run
    );
    for (number, spec) in manifest.tables.iter().enumerate() {
        text += &format!("table {number}  \"{}\": {spec}; initializer {}\n", spec.name, spec.initializer);
    }
    for file in cut.files() {
        text += &format!(
            "file     {} {} bytes in {} sections, digest {}\n",
            file.entry().name,
            file.entry().bytes,
            file.sections().len(),
            file.entry().digest
        );
        for section in file.sections().iter().filter(|_| all) {
            let SectionId { kind, .. } = section.id;
            let version = match kind {
                SectionKind::Parameters | SectionKind::Keys => format!(", version {}", section.version),
                _ => String::new(),
            };
            let (offset, length, crc) = (section.offset, section.length, section.crc);
            text += &format!("  {offset:>12} {length:>12} {crc:08x} {}{version}\n", section.id);
            if kind == SectionKind::Clocks {
                let ShardId { server, thread } = file.header().shard;
                for (rank, at) in decode_clocks(&file.read(section)?).iter().enumerate() {
                    let finished =
                        at.finished.map_or(String::new(), |clock| format!(", finished in {clock}"));
                    text += &format!(
                        "    server {server} thread {thread}: worker {rank} in clock {}{finished}, next frame {}\n",
                        at.clock, at.next_sequence
                    );
                }
            }
        }
    }
    Ok(text)
}

/// Tells of every checkpoint; the error is the first one's.
fn verify(storage: &Arc<dyn Storage>, path: &Path) -> Result<()> {
    let mut first = Ok(());
    for path in committed(storage, path)? {
        match Cut::open(storage, &path).and_then(|cut| cut.verify()) {
            Ok(()) => say(&format!("{}: whole\n", path.display()))?,
            Err(error) => {
                say(&format!("{}: {error}\n", path.display()))?;
                first = first.and(Err(error));
            }
        }
    }
    first
}
