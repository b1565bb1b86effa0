//! The way of a cut from a server thread to its file: batches of bounded number go to a writing thread, and come back empty.
//!
//! The server thread copies, and goes on. Only when all batches are on their way, because pushes change more than the disk takes,
//! does it wait for one: `cut_bytes` bounds them. When it is to end it waits no longer.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, unbounded};

use super::disks::Starter;
use super::reactor::{Report, Reports};
use crate::checkpoint::{FileEntry, FileWriter, Header, MANIFEST, SectionId, SectionKind, Storage};
use crate::error::{Error, Result};
use crate::store::{CutSink, Part, Plane};
use crate::transport::park::Waker;
use crate::types::Version;

/// Bytes of a batch.
const BATCH: usize = 1 << 20;
/// Batches that may be on their way before what nobody is about to change waits.
const WINDOW: usize = 32;
/// How often a thread that waits for a batch looks whether it is to end.
const LOOK: Duration = Duration::from_millis(50);

/// Parts of sections, one behind the other.
#[derive(Default)]
struct Batch {
    bytes: Vec<u8>,
    parts: Vec<Place>,
}

/// Where a part of a batch belongs.
struct Place {
    id: SectionId,
    version: Version,
    length: u64,
    at: u64,
    range: Range<usize>,
}

enum ToWriter {
    Batch(Batch),
    /// All has been sent. Without it the cut is given up.
    End,
}

/// A server thread's end: takes parts, and copies them into batches.
pub struct Saver {
    writer: Sender<ToWriter>,
    empty: Receiver<Batch>,
    batch: Batch,
    /// Batches that exist, and that may.
    made: usize,
    most: usize,
    /// The server thread is to end.
    stop: Arc<AtomicBool>,
}

/// What a cut's file is to be.
pub struct CutFile {
    /// Of the cut.
    pub number: u64,
    /// Its directory and name.
    pub path: PathBuf,
    /// What it is about.
    pub header: Header,
}

impl Saver {
    /// Starts the thread that writes `file`; what becomes of it is reported. At most `cut_bytes` are on their way at a time. The
    /// thread wakes `waker` when there is room again. Once `stop` is set the cut is given up rather than waited for.
    pub fn start(
        disks: &Starter,
        storage: Arc<dyn Storage>,
        file: CutFile,
        cut_bytes: u64,
        reports: Reports,
        waker: Waker,
        stop: Arc<AtomicBool>,
    ) -> Result<Saver> {
        let (writer, inbox) = unbounded(); // no more than `most` batches are ever made
        let (back, empty) = unbounded();
        disks.start("wl-cut", move || write(storage, &file, &inbox, &back, &reports, &waker))?;
        let most = usize::try_from(cut_bytes / BATCH as u64).unwrap_or(usize::MAX).max(2);
        Ok(Saver { writer, empty, batch: Batch::default(), made: 1, most, stop })
    }

    /// Takes a section that is all there.
    pub fn section(&mut self, id: SectionId, bytes: &[u8]) {
        self.part(id, 0, bytes.len() as u64, 0, bytes);
    }

    fn part(&mut self, id: SectionId, version: Version, length: u64, mut at: u64, mut bytes: &[u8]) {
        loop {
            if self.batch.bytes.len() == BATCH {
                self.send();
            }
            let room = BATCH - self.batch.bytes.len();
            let (now, later) = bytes.split_at(bytes.len().min(room));
            let start = self.batch.bytes.len();
            self.batch.bytes.extend_from_slice(now);
            self.batch.parts.push(Place { id, version, length, at, range: start..start + now.len() });
            if later.is_empty() {
                return;
            }
            at += now.len() as u64;
            bytes = later;
        }
    }

    /// Sends the batch, and gets another one, for which it waits where there are as many as may be.
    fn send(&mut self) {
        let next = match self.empty.try_recv() {
            Ok(batch) => batch,
            Err(_) if self.made < self.most => {
                self.made += 1;
                Batch { bytes: Vec::with_capacity(BATCH), parts: Vec::new() }
            }
            Err(_) => {
                // Sent before it is waited for: it may be the one that comes back.
                let full = std::mem::take(&mut self.batch);
                let _ = self.writer.send(ToWriter::Batch(full));
                self.batch = self.wait();
                return;
            }
        };
        let full = std::mem::replace(&mut self.batch, next);
        let _ = self.writer.send(ToWriter::Batch(full)); // a writer that is gone has panicked
    }

    /// A batch that has come back.
    fn wait(&mut self) -> Batch {
        while !self.stop.load(Ordering::Acquire) {
            match self.empty.recv_timeout(LOOK) {
                Err(RecvTimeoutError::Timeout) => {}
                // A writer that is gone has panicked, and its report ends the job.
                received => return received.unwrap_or_default(),
            }
        }
        // Nothing that is sent now arrives, nor an end.
        self.writer = unbounded().0;
        Batch::default()
    }
}

impl CutSink for Saver {
    fn take(&mut self, part: Part<'_>) {
        let kind = match part.plane {
            Plane::Parameters => SectionKind::Parameters,
            Plane::State => SectionKind::State,
            Plane::Keys => SectionKind::Keys,
            Plane::Rows => SectionKind::Rows,
        };
        let id = SectionId { kind, table: part.table, bucket: part.bucket };
        self.part(id, part.version, part.length, part.at, part.bytes);
    }

    fn has_room(&self) -> bool {
        // Half of a small bound stays for what is about to change.
        self.made - self.empty.len() <= WINDOW.min(self.most / 2)
    }

    fn end(mut self: Box<Self>) {
        let last = std::mem::take(&mut self.batch);
        let _ = self.writer.send(ToWriter::Batch(last)); // a writer that is gone has panicked
        let _ = self.writer.send(ToWriter::End);
    }
}

/// Writes until the end. After a failure it goes on taking batches, so that the server thread never waits for a dead disk.
fn write(
    storage: Arc<dyn Storage>,
    file: &CutFile,
    inbox: &Receiver<ToWriter>,
    back: &Sender<Batch>,
    reports: &Reports,
    waker: &Waker,
) {
    let mut writer: Option<FileWriter> = None;
    let mut failed = false;
    for message in inbox {
        let outcome = match message {
            ToWriter::End if failed => return,
            ToWriter::End => {
                let finished = writer.take().map(FileWriter::finish);
                let written = finished.unwrap_or_else(|| Err(nothing()));
                return reports.send(Report::CutWritten(file.number, written));
            }
            ToWriter::Batch(mut batch) => {
                let outcome = if failed { Ok(()) } else { write_batch(&storage, file, &mut writer, &batch) };
                batch.bytes.clear();
                batch.parts.clear();
                let _ = back.send(batch); // the server thread has sent its last one
                waker.wake();
                outcome
            }
        };
        if let Err(error) = outcome {
            failed = true;
            writer = None;
            reports.send(Report::CutWritten(file.number, Err(error)));
        }
    }
}

fn write_batch(
    storage: &Arc<dyn Storage>,
    file: &CutFile,
    writer: &mut Option<FileWriter>,
    batch: &Batch,
) -> Result<()> {
    let writer = match writer {
        Some(writer) => writer,
        None => {
            let folder = file.path.parent().unwrap_or(&file.path);
            storage.make_directory(folder).map_err(|e| Error::io("make", folder.display(), e))?;
            if storage.open(&folder.join(MANIFEST)).is_ok() {
                let expected =
                    "a cut that is not committed yet: nothing but this job adds cuts here while it runs";
                return Err(Error::config(folder.display().to_string(), expected, MANIFEST));
            }
            writer.insert(FileWriter::create(storage.clone(), &file.path, file.header)?)
        }
    };
    for Place { id, version, length, at, range } in &batch.parts {
        writer.part((*id, *version), *length, *at, &batch.bytes[range.clone()])?;
    }
    Ok(())
}

fn nothing() -> Error {
    Error::Misuse { call: "cut", reason: "it ended before its first batch".to_owned() }
}

/// What becomes of a cut's file.
pub type Written = Result<FileEntry>;
