//! The transport alone: one process writes into, or reads from, the memory of another, without a server.
//!
//! ```text
//!  the one that measures                               the one that responds
//!    Hello { nonce, address, task }  ── words ──▶        connects
//!    connects                        ◀── words ──        Answer { address, region }
//!    write … write                   ── transport ──▶    counts what came
//!    records latencies               ◀── send, or write ──   how many have come
//!    send: how many there were       ── transport ──▶    looks at its memory
//!    prints                          ◀── words ──        Judged { wrong }
//! ```
//! A write counts when the responder has said that it came, since a transport's `Done` only frees the source. One at a time
//! (`--window 1`) is answered by a write of 64 bytes with a number, which makes a round trip of writes; several by a message for
//! all that have come.
//!
//! Words go another way than what is measured: `alone` has a child process and its pipes, `job` two workers and a table.

pub mod alone;
pub mod job;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::Verdict;
use super::latencies::Latencies;
use super::options::{Op, Options};
use super::place::{Walk, pattern};
use super::report::{Figures, Report};
use crate::config::{Network, Polling};
use crate::error::{Error, Result};
use crate::mem::{Arena, RegionId, RegionSlice, RemoteRegion, Rights};
use crate::proto::handshake::derive_endpoint_key;
use crate::transport::choice::{self, Agreed};
use crate::transport::park::{park, pause};
use crate::transport::{
    Completion, EndpointId, HEADER, Message, Payload, Read, Refusal, Rejected, SessionKey, Side, Transport,
    Write,
};

/// After so much silence the other end counts as lost, unless it has more to do.
const PATIENCE: Duration = Duration::from_secs(30);
/// The longest sleep: a bound on how late a lost wake-up could be noticed.
const NAP: Duration = Duration::from_secs(1);
const BUDGET: usize = 256;
/// Memory of this process that reads may fill at a time, in bytes.
const READ_BYTES: u64 = 256 << 20;
/// Elements of an answer.
const ANSWERED: usize = HEADER / 4;
const PEER: &str = "the other end of the measurement";

/// How the two speak with each other, beside the transport. They take turns.
trait Words {
    /// What both know and nobody else.
    fn root(&self) -> &SessionKey;
    fn say(&mut self, words: &str) -> Result<()>;
    fn hear(&mut self) -> Result<String>;
}

fn say(to: &mut dyn Words, value: &impl Serialize) -> Result<()> {
    let failed = |e| Error::io("encode", PEER, std::io::Error::other(e));
    to.say(&serde_json::to_string(value).map_err(failed)?)
}

fn hear<T: DeserializeOwned>(from: &mut dyn Words) -> Result<T> {
    let malformed = |e| Error::protocol(PEER, "words", "JSON of the expected fields", e);
    serde_json::from_str(&from.hear()?).map_err(malformed)
}

#[derive(Serialize, Deserialize)]
struct Hello {
    nonce: [u32; 8],
    address: Vec<u8>,
    task: Task,
    /// Where each write is answered by another.
    answers: Option<Vec<u8>>,
}

#[derive(Serialize, Deserialize)]
struct Answer {
    address: Vec<u8>,
    region: Vec<u8>,
}

#[derive(Serialize, Deserialize)]
struct Judged {
    wrong: u64,
}

/// What both have to be told alike.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Task {
    op: String,
    bytes: u64,
    places: u64,
}

/// By what the two reach each other.
struct Way<'a> {
    network: &'a Network,
    agreed: Agreed,
}

/// One end: a transport with one registered arena and one endpoint.
struct End {
    transport: Box<dyn Transport>,
    polling: Polling,
    arena: Arc<Arena>,
    region: RegionId,
    endpoint: EndpointId,
    completions: Vec<Completion>,
    idle_since: Option<Instant>,
    heard: Instant,
    /// After so much silence the other end counts as lost.
    patience: Duration,
}

impl End {
    /// An end with `bytes` of memory, and its address.
    fn new(way: &Way<'_>, side: Side, bytes: u64) -> Result<(End, Vec<u8>)> {
        let seat = if side == Side::Passive { choice::Seat::Listens(0) } else { choice::Seat::Dials };
        let mut transport = choice::build_agreed(way.network, way.agreed, seat)?;
        let arena = transport.memory().arena(bytes as usize)?;
        let region = transport.register(arena.clone())?;
        let (endpoint, address) = transport.open(side, PEER)?;
        let end = End {
            transport,
            polling: way.network.polling,
            arena,
            region,
            endpoint,
            completions: Vec::with_capacity(BUDGET),
            idle_since: None,
            heard: Instant::now(),
            patience: PATIENCE,
        };
        Ok((end, address))
    }

    /// Begins to connect; what was said before took its own time.
    fn connect(&mut self, address: &[u8], key: &SessionKey) -> Result<()> {
        self.heard = Instant::now();
        self.transport.connect(self.endpoint, address, key)
    }

    /// Waits until something has come.
    fn wait(&mut self) -> Result<()> {
        loop {
            self.transport.poll(&mut self.completions, BUDGET);
            let now = Instant::now();
            if !self.completions.is_empty() {
                (self.idle_since, self.heard) = (None, now);
                return Ok(());
            }
            if now - self.heard > self.patience {
                return Err(Error::Timeout { waited_for: PEER.to_owned(), after: self.patience });
            }
            let idle = now - *self.idle_since.get_or_insert(now);
            if matches!(self.polling, Polling::Spin(time) if idle < time) {
                pause(idle);
            } else if self.transport.arm() {
                park(&[self.transport.waitable()], NAP)?;
            }
        }
    }

    /// For the side that speaks first: nothing else can come before.
    fn until_connected(&mut self) -> Result<()> {
        loop {
            self.wait()?;
            for completion in self.completions.drain(..) {
                match completion {
                    Completion::Connected { .. } => return Ok(()),
                    Completion::Closed { reason, .. } => return Err(lost(reason)),
                    _ => {}
                }
            }
        }
    }

    /// Sends a number; false when there is no room yet.
    fn tell(&mut self, number: u64) -> Result<bool> {
        let Some(message) = Message::new(&number.to_le_bytes()) else { return Ok(false) };
        let sent = self.transport.send(self.endpoint, message);
        self.transport.flush();
        taken(sent)
    }

    /// Writes an answer with a number into `remote`; false when there is no room yet.
    fn answer(&mut self, number: u64, remote: RemoteRegion) -> Result<bool> {
        let (header, imm) = (Some(answer_bytes()), Some(number as u32));
        let write = Write { header, body: None, remote, offset: 0, imm, context: None };
        let written = self.transport.write(self.endpoint, write);
        self.transport.flush();
        taken(written)
    }

    fn slice(&self, offset: u64, length: u64) -> RegionSlice {
        let (arena, region) = (self.arena.clone(), self.region);
        RegionSlice { arena, region, offset: offset as usize, length: length as usize }
    }

    /// Copies `values` fp32 at byte `offset` out.
    fn floats(&self, offset: u64, values: &mut [f32]) {
        self.arena.copy_out(offset as usize, bytemuck::cast_slice_mut(values));
    }
}

fn fresh_key() -> Result<SessionKey> {
    let mut key = SessionKey::default();
    getrandom::fill(&mut key)
        .map_err(|e| Error::io("getrandom", "session key", std::io::Error::other(e.to_string())))?;
    Ok(key)
}

/// The key of the two endpoints: the nonce makes it another one each time.
fn endpoint_key(root: &SessionKey, nonce: &[u32]) -> SessionKey {
    derive_endpoint_key(root, "bench", nonce)
}

fn lost(reason: Option<Error>) -> Error {
    let reason = reason.map_or("closed".to_owned(), |r| r.to_string());
    Error::PeerLost { peer: PEER.to_owned(), reason }
}

fn refused(refusal: &Refusal) -> Error {
    Error::PeerLost { peer: PEER.to_owned(), reason: refusal.to_string() }
}

/// Whether a transport took an operation; it did not where there is no room yet.
fn taken<T>(posted: std::result::Result<(), Rejected<T>>) -> Result<bool> {
    match posted {
        Ok(()) => Ok(true),
        Err(rejected) if rejected.refusal == Refusal::Full => Ok(false),
        Err(rejected) => Err(refused(&rejected.refusal)),
    }
}

fn granted(bytes: &[u8]) -> Result<RemoteRegion> {
    RemoteRegion::decode(bytes).ok_or_else(|| Error::protocol(PEER, "region", "a region", "malformed bytes"))
}

/// What an answer brings: as the first elements of what was written.
fn answer_bytes() -> [u8; HEADER] {
    bytemuck::cast(std::array::from_fn::<f32, ANSWERED, _>(|j| written(j as u64)))
}

fn number(message: &Message) -> Result<u64> {
    let bytes = message.bytes().try_into();
    let bytes = bytes.map_err(|_| Error::protocol(PEER, "message", "8 bytes", message.bytes().len()))?;
    Ok(u64::from_le_bytes(bytes))
}

/// Operations may be posted `window` deep; where they go.
struct Course {
    op: Op,
    bytes: u64,
    places: u64,
    walk: Walk,
    window: u64,
}

impl Course {
    fn new(options: &Options) -> Course {
        let (bytes, places) = (options.payload_bytes(), options.places());
        let mut window = options.window() as u64;
        if options.op == Op::Read {
            window = window.min(READ_BYTES / bytes).max(1);
        }
        Course { op: options.op, bytes, places, walk: Walk::new(0, 1, places), window }
    }

    fn task(&self) -> Task {
        Task { op: self.op.to_string(), bytes: self.bytes, places: self.places }
    }

    fn offset(&self, n: u64) -> u64 {
        self.walk.place(n) * self.bytes
    }

    /// Memory of the side that is written or read, in bytes.
    fn remote_bytes(&self) -> u64 {
        self.places * self.bytes
    }

    fn elements(&self) -> u64 {
        self.bytes / 4
    }

    /// Whether each write is answered by another.
    fn answered(&self) -> bool {
        self.op == Op::Write && self.window == 1
    }

    /// Where answers lie at the end that measures, behind what it sends.
    fn answers_at(&self) -> u64 {
        self.bytes.next_multiple_of(HEADER as u64)
    }

    /// Memory of the end that measures, in bytes.
    fn local_bytes(&self) -> u64 {
        match self.op {
            Op::Read => self.window * self.bytes,
            _ => self.answers_at() + HEADER as u64,
        }
    }
}

/// What element `j` of any place holds once it was written. Never 0, as it was before.
fn written(j: u64) -> f32 {
    pattern(j) + 1.0
}

/// The one that measures.
fn measure(options: &Options, way: &Way<'_>, words: &mut dyn Words) -> Result<Verdict> {
    let course = Course::new(options);
    let (end, remote) = meet(&course, way, words)?;
    let transport = end.transport.caps().describe();
    tracing::info!("bench: connected by {transport}");
    let mut race = Race::new(end, &course, remote);
    race.run((options.duration() / 4).min(Duration::from_secs(1)))?;
    race.latencies = Latencies::new();
    let before = race.done;
    let took = race.run(options.duration())?;
    let wrong = race.end(words)?;
    let figures = Figures {
        transport,
        workers: 1,
        servers: 1,
        threads: 1,
        operations: race.done - before,
        seconds: took.as_secs_f64(),
        latencies: &race.latencies,
    };
    let mut report = Report::new(options, &figures);
    report.window = race.most as u32;
    report.print(options)?;
    if wrong == 0 {
        return Ok(Verdict::Right);
    }
    eprintln!("windlass bench: {wrong} elements are wrong");
    Ok(Verdict::Wrong)
}

/// Connects with the other end: the one that measures, and where it may write or read.
fn meet(course: &Course, way: &Way<'_>, words: &mut dyn Words) -> Result<(End, RemoteRegion)> {
    let (mut end, address) = End::new(way, Side::Active, course.local_bytes())?;
    let most = end.transport.caps().max_write as u64;
    if course.bytes > most {
        let expected = format!("at most {most} for this transport");
        return Err(Error::config("--bytes", expected, course.bytes));
    }
    let nonce: [u32; 8] = bytemuck::cast(fresh_key()?);
    let answers = course.answered().then(|| {
        let at = course.answers_at() as usize;
        end.transport.authorise(end.endpoint, end.region, at, HEADER, Rights::Write)
    });
    let answers = answers.transpose()?.map(|region| region.encode().to_vec());
    say(words, &Hello { nonce, address, task: course.task(), answers })?;
    let answer: Answer = hear(words)?;
    end.connect(&answer.address, &endpoint_key(words.root(), &nonce))?;
    end.until_connected()?;
    let remote = granted(&answer.region)?;
    for j in 0..course.elements() {
        end.arena.copy_in(j as usize * 4, &written(j).to_le_bytes());
    }
    Ok((end, remote))
}

/// Operations against time.
struct Race<'a> {
    end: End,
    course: &'a Course,
    remote: RemoteRegion,
    /// When the operations under way began, the oldest first.
    since: VecDeque<Instant>,
    posted: u64,
    done: u64,
    /// The most that were under way.
    most: u64,
    latencies: Latencies,
    wrong: u64,
    /// Room for what a read brought, when it is looked at.
    values: Vec<f32>,
}

impl Race<'_> {
    fn new(end: End, course: &Course, remote: RemoteRegion) -> Race<'_> {
        Race {
            end,
            course,
            remote,
            since: VecDeque::new(),
            posted: 0,
            done: 0,
            most: 0,
            latencies: Latencies::new(),
            wrong: 0,
            values: Vec::new(),
        }
    }

    fn run(&mut self, time: Duration) -> Result<Duration> {
        let start = Instant::now();
        loop {
            // One look at the clock: between two the time may end, and then nobody would answer what was not posted.
            let spent = start.elapsed();
            if spent < time {
                self.post()?;
            } else if self.done == self.posted {
                return Ok(spent);
            }
            self.end.wait()?;
            self.collect()?;
        }
    }

    fn post(&mut self) -> Result<()> {
        while self.posted - self.done < self.course.window {
            let since = Instant::now();
            let accepted = if self.course.op == Op::Read { self.read()? } else { self.write()? };
            if !accepted {
                break;
            }
            self.since.push_back(since);
            self.posted += 1;
        }
        self.most = self.most.max(self.posted - self.done);
        self.end.transport.flush();
        Ok(())
    }

    fn write(&mut self) -> Result<bool> {
        let write = Write {
            header: None,
            // All of them from the same bytes, which nobody changes.
            body: Some(Payload::Pinned(self.end.slice(0, self.course.bytes))),
            remote: self.remote,
            offset: self.course.offset(self.posted),
            imm: Some(self.posted as u32),
            context: None,
        };
        taken(self.end.transport.write(self.end.endpoint, write))
    }

    fn read(&mut self) -> Result<bool> {
        let slot = self.posted % self.course.window;
        let read = Read {
            remote: self.remote,
            offset: self.course.offset(self.posted),
            local: self.end.slice(slot * self.course.bytes, self.course.bytes),
            context: self.posted,
        };
        taken(self.end.transport.read(self.end.endpoint, read))
    }

    fn collect(&mut self) -> Result<()> {
        let mut completions = std::mem::take(&mut self.end.completions);
        for completion in completions.drain(..) {
            match completion {
                Completion::Received { message, .. } => {
                    let come = number(&message)?;
                    if come < self.done || come > self.posted {
                        let expected = format!("{} to {}", self.done, self.posted);
                        return Err(Error::protocol(PEER, "count", expected, come));
                    }
                    while self.done < come {
                        self.one_done();
                    }
                }
                Completion::Done { context, .. } => {
                    if context != self.done {
                        return Err(Error::protocol(PEER, "read", self.done.to_string(), context));
                    }
                    // The first and the last element of each, so that looking costs next to nothing.
                    self.look_at(context, 0, 1);
                    self.look_at(context, self.course.elements() - 1, 1);
                    self.one_done();
                }
                Completion::Written { imm, .. } => {
                    let next = self.done + 1;
                    if self.done == self.posted || imm != next as u32 {
                        return Err(Error::protocol(PEER, "answer", next.to_string(), imm));
                    }
                    self.one_done();
                }
                Completion::Closed { reason, .. } => return Err(lost(reason)),
                Completion::Connected { .. } | Completion::Lent { .. } => {}
            }
        }
        self.end.completions = completions;
        Ok(())
    }

    fn one_done(&mut self) {
        self.done += 1;
        if let Some(since) = self.since.pop_front() {
            self.latencies.record(since.elapsed());
        }
    }

    /// Compares `count` elements from `first` on of what read `n` brought.
    fn look_at(&mut self, n: u64, first: u64, count: u64) {
        self.values.resize(count as usize, 0.0);
        let slot = n % self.course.window * self.course.bytes;
        self.end.floats(slot + first * 4, &mut self.values);
        let from = self.course.offset(n) / 4 + first;
        self.wrong += (from..).zip(&self.values).filter(|(i, v)| **v != pattern(*i)).count() as u64;
    }

    /// Ends the measurement; gives how many elements are wrong.
    fn end(&mut self, words: &mut dyn Words) -> Result<u64> {
        if self.course.op == Op::Read {
            for n in self.done.saturating_sub(self.course.window)..self.done {
                self.look_at(n, 0, self.course.elements());
            }
        }
        if self.course.answered() && self.done > 0 {
            let mut values = [0.0; ANSWERED];
            self.end.floats(self.course.answers_at(), &mut values);
            self.wrong += (0..).zip(values).filter(|(j, v)| *v != written(*j)).count() as u64;
        }
        // Nothing is under way, so there is room.
        self.end.tell(self.done)?;
        let judged: Judged = hear(words)?;
        Ok(self.wrong + judged.wrong)
    }
}

/// The one that is written to or read from.
fn respond(options: &Options, way: &Way<'_>, words: &mut dyn Words) -> Result<Verdict> {
    let course = Course::new(options);
    let (mut end, address) = End::new(way, Side::Passive, course.remote_bytes())?;
    let hello: Hello = hear(words)?;
    if hello.task != course.task() {
        let reason =
            format!("it measures {:?}, this end {:?}: give both the same options", hello.task, course.task());
        return Err(Error::Refused { peer: PEER.to_owned(), reason });
    }
    let rights = if course.op == Op::Read { Rights::Read } else { Rights::Write };
    let length = course.remote_bytes() as usize;
    let region = end.transport.authorise(end.endpoint, end.region, 0, length, rights)?;
    if course.op == Op::Read {
        for i in 0..course.remote_bytes() / 4 {
            end.arena.copy_in(i as usize * 4, &pattern(i).to_le_bytes());
        }
    }
    let answers = hello.answers.as_deref().map(granted).transpose()?;
    let key = endpoint_key(words.root(), &hello.nonce);
    end.connect(&hello.address, &key)?;
    say(words, &Answer { address, region: region.encode().to_vec() })?;
    if course.op == Op::Read {
        // Whoever is read from hears nothing meanwhile.
        end.patience += 2 * options.duration();
    }
    let total = serve(&mut end, answers)?;
    let wrong = if course.op == Op::Write { unwritten(&end, &course, total) } else { 0 };
    say(words, &Judged { wrong })?;
    Ok(Verdict::Right)
}

/// Counts what comes, which may be together with the connection, and says so, into `answers` or by messages; until the other end tells
/// how many there were.
fn serve(end: &mut End, answers: Option<RemoteRegion>) -> Result<u64> {
    let (mut come, mut told) = (0u64, 0u64);
    loop {
        end.wait()?;
        let mut ended = None;
        let caps = end.transport.caps();
        for completion in end.completions.drain(..) {
            match completion {
                Completion::Written { .. } | Completion::Lent { .. } => come += 1,
                Completion::Received { message, .. } => ended = Some(number(&message)?),
                Completion::Closed { reason, .. } => return Err(lost(reason)),
                Completion::Connected { .. } => tracing::info!("bench: connected by {}", caps.describe()),
                Completion::Done { .. } => {}
            }
        }
        if let Some(total) = ended {
            return Ok(total);
        }
        if told < come {
            let said = match answers {
                Some(remote) => end.answer(come, remote)?,
                None => end.tell(come)?,
            };
            if said {
                told = come;
            }
        }
    }
}

/// Elements that do not hold what `total` writes should have left.
fn unwritten(end: &End, course: &Course, total: u64) -> u64 {
    let mut values = vec![0.0f32; course.elements() as usize];
    let mut wrong = 0;
    for n in 0..total.min(course.places) {
        end.floats(course.offset(n), &mut values);
        wrong += (0..).zip(&values).filter(|(j, v)| **v != written(*j)).count() as u64;
    }
    wrong
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::thread;

    use super::*;
    use crate::config::TransportKind;

    /// Two threads speak.
    struct Said(Sender<String>, Receiver<String>);

    impl Words for Said {
        fn root(&self) -> &SessionKey {
            &[7; 32]
        }

        fn say(&mut self, words: &str) -> Result<()> {
            self.0.send(words.to_owned()).unwrap();
            Ok(())
        }

        fn hear(&mut self) -> Result<String> {
            Ok(self.1.recv().unwrap())
        }
    }

    /// Connects both ends over TCP for writes of 64 bytes, so many at a time, and lets `by_hand` measure.
    fn both_ends(window: &str, by_hand: impl FnOnce(&mut Race<'_>, &mut dyn Words)) {
        let options = Options::of_line(&format!("write --bytes 64 --table-bytes 1K --window {window}"));
        let network = Network::default();
        let way = Way { network: &network, agreed: Agreed { kind: TransportKind::Tcp, local: false } };
        let ((to_one, one), (to_other, other)) = (channel(), channel());
        thread::scope(|scope| {
            let responder = scope.spawn(|| respond(&options, &way, &mut Said(to_one, other)));
            let (course, mut words) = (Course::new(&options), Said(to_other, one));
            let (end, remote) = meet(&course, &way, &mut words).unwrap();
            by_hand(&mut Race::new(end, &course, remote), &mut words);
            assert_eq!(responder.join().unwrap().unwrap(), Verdict::Right);
        });
    }

    #[test]
    fn a_write_on_its_own_is_answered_by_a_write_of_64_bytes_with_its_number() {
        both_ends("1", |race, words| {
            for number in 1..=40 {
                race.post().unwrap();
                race.end.wait().unwrap();
                let come = &race.end.completions[..];
                assert!(
                    matches!(come, [Completion::Written { imm, length: 64, .. }] if *imm == number),
                    "{come:?}"
                );
                race.collect().unwrap();
                assert_eq!((race.posted, race.done), (number.into(), number.into()));
            }
            assert_eq!(race.end(words).unwrap(), 0);
        });
    }

    #[test]
    fn an_answer_that_does_not_lie_there_is_counted() {
        both_ends("1", |race, words| {
            race.post().unwrap();
            race.end.wait().unwrap();
            race.collect().unwrap();
            race.end.arena.copy_in(race.course.answers_at() as usize, &[0; HEADER / 2]);
            assert_eq!(race.end(words).unwrap(), 8);
        });
    }

    #[test]
    fn several_writes_are_answered_by_messages() {
        both_ends("2", |race, words| {
            race.post().unwrap();
            assert_eq!(race.posted, 2);
            while race.done < race.posted {
                race.end.wait().unwrap();
                let messages = |c: &Completion| matches!(c, Completion::Received { .. });
                assert!(race.end.completions.iter().all(messages), "{:?}", race.end.completions);
                race.collect().unwrap();
            }
            assert_eq!(race.end(words).unwrap(), 0);
        });
    }
}
