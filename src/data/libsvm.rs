//! LIBSVM files, cut among workers by byte ranges.
//!
//! One row a line: `label index:value index:value … # comment`, separated by spaces or tabs; lines end in LF or CRLF, the
//! last one also without. What a line may hold is in [`line`]. A line belongs to the part in which its first byte lies,
//! so every line is read exactly once for any number of parts, and nobody need read the whole file to cut it.
//!
//! Files are read with `pread`, not mapped: a file that shrinks under a mapping kills the process, here it is an error.

mod line;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io;
use std::num::NonZeroU64;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::thread;

use super::Dataset;
use crate::error::{Error, Result};
pub use line::hash_token;
use line::{Fault, LineParser};

/// How the index of `index:value` becomes a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IndexMode {
    /// Indices count from 1, as LIBSVM writes them; the key is the index − 1. With `features`, a larger index is an error.
    OneBased {
        /// The largest index that is allowed.
        features: Option<NonZeroU64>,
    },
    /// Indices are any tokens without a colon, reduced to keys by [`hash_token`].
    Hashed {
        /// Keys are reduced modulo this; without it they use all 64 bits.
        features: Option<NonZeroU64>,
    },
}

/// A thread is worth starting for this many bytes.
const BYTES_PER_THREAD: u64 = 1 << 20;
/// The unit of reading.
const CHUNK_BYTES: usize = 256 << 10;
/// Longer lines are refused: a file that is no text must not fill the memory.
const MAX_LINE_BYTES: usize = 256 << 20;

/// Reads part `part` of `parts` of a LIBSVM file, with as many threads as there are CPUs where it is large.
///
/// The rows of all parts, one behind the other, are the rows of the file. Malformed input is [`Error::Data`] with line and
/// column in the whole file: the first one of the part, however many threads read it.
pub fn read_part(path: &Path, part: u64, parts: u64, mode: IndexMode) -> Result<Dataset> {
    let threads = thread::available_parallelism().map_or(1, |cpus| cpus.get() as u64);
    let source = Source::open(path, CHUNK_BYTES)?;
    let wanted = (source.size / parts.max(1)) / BYTES_PER_THREAD;
    source.read_part(part, parts, mode, wanted.clamp(1, threads))
}

/// Reads a whole LIBSVM file; see [`read_part`].
pub fn read(path: &Path, mode: IndexMode) -> Result<Dataset> {
    read_part(path, 0, 1, mode)
}

/// An open file, its size when it was opened, and the unit in which it is read.
struct Source {
    file: File,
    name: String,
    size: u64,
    chunk: usize,
}

/// Why a range could not be read. Line numbers are found only when they are needed.
enum Failure {
    Malformed { line_start: u64, fault: Fault },
    Other(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::Other(error)
    }
}

type Reading<T> = std::result::Result<T, Failure>;

impl Source {
    fn open(path: &Path, chunk: usize) -> Result<Source> {
        let name = path.display().to_string();
        let file = File::open(path).map_err(|source| Error::io("open", &name, source))?;
        let metadata = file.metadata().map_err(|source| Error::io("stat", &name, source))?;
        if !metadata.is_file() {
            // A pipe has no size and can't be cut; it would look like an empty file.
            return Err(Error::config("data file", "a regular file, which can be cut into parts", name));
        }
        Ok(Source { file, name, size: metadata.len(), chunk })
    }

    /// Reads part `part` of `parts` with `threads` threads, each of which reads a range of it.
    fn read_part(&self, part: u64, parts: u64, mode: IndexMode, threads: u64) -> Result<Dataset> {
        if part >= parts {
            let reason = format!("there is no part {part} of {parts}: parts count from 0");
            return Err(Error::Misuse { call: "libsvm::read_part", reason });
        }
        let (start, end) = (cut(0..self.size, part, parts), cut(0..self.size, part + 1, parts));
        let ranges = (0..threads).map(|t| (cut(start..end, t, threads), cut(start..end, t + 1, threads)));
        let mut pieces = self.read_ranges(ranges.collect(), mode)?.into_iter();
        let mut data = pieces.next().unwrap_or_default();
        pieces.for_each(|piece| data.append(&piece));
        Ok(data)
    }

    /// Reads several ranges, each in its own thread where there is more than one. The first failure in order counts.
    fn read_ranges(&self, ranges: Vec<(u64, u64)>, mode: IndexMode) -> Result<Vec<Dataset>> {
        let results: Vec<_> = match ranges[..] {
            [(start, end)] => vec![self.read_range(start, end, mode)],
            _ => thread::scope(|scope| {
                let spawn = |(start, end)| {
                    let builder = thread::Builder::new().name("libsvm".into());
                    builder.spawn_scoped(scope, move || self.read_range(start, end, mode))
                };
                let running: Vec<_> = ranges.into_iter().map(spawn).collect();
                running.into_iter().map(|thread| self.join(thread)).collect()
            }),
        };
        results.into_iter().map(|result| result.map_err(|failure| self.explain(failure))).collect()
    }

    fn join(&self, thread: io::Result<thread::ScopedJoinHandle<'_, Reading<Dataset>>>) -> Reading<Dataset> {
        let thread =
            thread.map_err(|source| Failure::Other(Error::io("start a thread", &self.name, source)))?;
        // A panic there is a defect of ours: it goes on in the caller, with its own message.
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Reads the lines that begin in `start..end`.
    fn read_range(&self, start: u64, end: u64, mode: IndexMode) -> Reading<Dataset> {
        let mut data = Dataset::default();
        let mut parser = LineParser::new(mode);
        let mut lines = Lines::new(self, start, end);
        while let Some((line_start, line)) = lines.next()? {
            parser.parse(line, &mut data).map_err(|fault| Failure::Malformed { line_start, fault })?;
        }
        Ok(data)
    }

    /// Reads at `position` into `buffer`; the bytes up to the file's size must be there. 0 at that size.
    fn read_at(&self, position: u64, buffer: &mut [u8]) -> Result<usize> {
        let left = self.size.saturating_sub(position).min(buffer.len() as u64) as usize;
        let read = self.file.read_exact_at(&mut buffer[..left], position);
        read.map_err(|source| Error::io("read", &self.name, source)).map(|()| left)
    }

    fn explain(&self, failure: Failure) -> Error {
        let (line_start, fault) = match failure {
            Failure::Other(error) => return error,
            Failure::Malformed { line_start, fault } => (line_start, fault),
        };
        match self.newlines_before(line_start) {
            Err(error) => error,
            Ok(newlines) => Error::Data {
                file: self.name.clone(),
                line: newlines + 1,
                column: fault.column as u64 + 1,
                expected: fault.expected,
                found: fault.found,
            },
        }
    }

    fn newlines_before(&self, end: u64) -> Result<u64> {
        let mut buffer = vec![0; self.chunk];
        let (mut position, mut newlines) = (0, 0);
        while position < end {
            let wanted = (end - position).min(self.chunk as u64) as usize;
            let read = self.read_at(position, &mut buffer[..wanted])?;
            newlines += buffer[..read].iter().filter(|byte| **byte == b'\n').count() as u64;
            position += read as u64;
        }
        Ok(newlines)
    }
}

/// Where part `part` of `parts` of a range begins.
fn cut(range: std::ops::Range<u64>, part: u64, parts: u64) -> u64 {
    range.start + (u128::from(range.end - range.start) * u128::from(part) / u128::from(parts)) as u64
}

/// The lines that begin in a range, one by one, without their LF.
struct Lines<'a> {
    source: &'a Source,
    end: u64,
    /// `buffer[from..to]` are the bytes of the file from `position` on that were read and not yet given out.
    buffer: Vec<u8>,
    from: usize,
    to: usize,
    position: u64,
    /// The range may begin inside a line, which belongs to another one.
    inside_line: bool,
}

impl<'a> Lines<'a> {
    fn new(source: &'a Source, start: u64, end: u64) -> Lines<'a> {
        // A line begins at `start` only if the byte before ends one: begin there, and drop everything up to the first LF.
        let position = start.saturating_sub(1);
        let buffer = vec![0; source.chunk];
        Lines { source, end, buffer, from: 0, to: 0, position, inside_line: start > 0 }
    }

    /// The next line and where it begins in the file.
    fn next(&mut self) -> Reading<Option<(u64, &[u8])>> {
        if self.inside_line && !self.skip_line()? {
            return Ok(None);
        }
        self.inside_line = false;
        if self.position >= self.end {
            return Ok(None);
        }
        let (length, ended) = self.line_length()?;
        let (line, at) = (self.from..self.from + length, self.position);
        self.advance(length + usize::from(ended));
        Ok(Some((at, &self.buffer[line])))
    }

    /// Drops everything up to the first LF; false where there is none before the end of the file.
    fn skip_line(&mut self) -> Result<bool> {
        loop {
            match self.buffer[self.from..self.to].iter().position(|byte| *byte == b'\n') {
                Some(length) => {
                    self.advance(length + 1);
                    return Ok(true);
                }
                None => self.advance(self.to - self.from),
            }
            // Nothing of the line is kept, and a line that fills the whole range is not followed beyond it.
            if self.position >= self.end || self.fill()? == 0 {
                return Ok(false);
            }
        }
    }

    /// The length of the line that begins at `from`, once all of it is in the buffer, and whether an LF ends it.
    fn line_length(&mut self) -> Reading<(usize, bool)> {
        let mut scanned = 0;
        loop {
            let found = self.buffer[self.from + scanned..self.to].iter().position(|byte| *byte == b'\n');
            if let Some(length) = found {
                return Ok((scanned + length, true));
            }
            scanned = self.to - self.from;
            if scanned > MAX_LINE_BYTES {
                let expected = format!("a line of at most {MAX_LINE_BYTES} bytes");
                let fault = Fault { column: 0, expected, found: "a longer one".into() };
                return Err(Failure::Malformed { line_start: self.position, fault });
            }
            if self.fill()? == 0 {
                return Ok((scanned, false));
            }
        }
    }

    fn advance(&mut self, bytes: usize) {
        self.from += bytes;
        self.position += bytes as u64;
    }

    /// Reads more behind what the buffer holds; 0 at the end of the file. The buffer grows only for a line longer than it.
    fn fill(&mut self) -> Result<usize> {
        self.buffer.copy_within(self.from..self.to, 0);
        self.to -= self.from;
        self.from = 0;
        if self.to == self.buffer.len() {
            self.buffer.resize(2 * self.buffer.len(), 0);
        }
        let read = self.source.read_at(self.position + self.to as u64, &mut self.buffer[self.to..])?;
        self.to += read;
        Ok(read)
    }
}
