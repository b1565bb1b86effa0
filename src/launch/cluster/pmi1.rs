//! PMI-1: the lines of text that Hydra (MPICH, Intel MPI) and Slurm's `--mpi=pmi2` speak on `PMI_FD`.
//!
//! ```text
//! us    cmd=init pmi_version=1 pmi_subversion=1       them  cmd=response_to_init rc=0 …
//!       cmd=get_maxes                                       cmd=maxes keylen_max=64 vallen_max=1024 …
//!       cmd=get_my_kvsname                                  cmd=my_kvsname kvsname=K
//!       cmd=put kvsname=K key=… value=…                     cmd=put_result rc=0 …
//!       cmd=barrier_in                                      cmd=barrier_out
//!       cmd=get kvsname=K key=…                             cmd=get_result rc=0 value=…
//!       cmd=finalize                                        cmd=finalize_ack
//! ```
//! Each line is one write: Slurm's side waits for ever for the rest of one that comes in two.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::board::{Board, left};
use crate::error::{Error, Result};
use crate::time::Deadline;

/// How messages call the other side.
const PEER: &str = "the launcher (PMI-1)";
/// The longest line that is taken.
const LINE: usize = 8192;

/// A session with the launcher's process manager.
pub struct Pmi1 {
    stream: UnixStream,
    /// What came behind the last whole line.
    input: Vec<u8>,
    kvs: String,
    /// The longest value that may be put.
    longest: usize,
    rank: u32,
    size: u32,
    deadline: Deadline,
}

impl Pmi1 {
    /// Begins a session of task `rank` of `size`; all that follows ends by `deadline`.
    pub fn start(stream: UnixStream, rank: u32, size: u32, deadline: Deadline) -> Result<Pmi1> {
        let (kvs, longest) = (String::new(), 0);
        let mut pmi = Pmi1 { stream, input: Vec::new(), kvs, longest, rank, size, deadline };
        pmi.ask("cmd=init pmi_version=1 pmi_subversion=1", "response_to_init")?;
        let maxes = pmi.ask("cmd=get_maxes", "maxes")?;
        let longest = maxes.field("vallen_max")?;
        pmi.longest = longest.parse().map_err(|_| wrong("vallen_max", "a number", longest))?;
        pmi.kvs = pmi.ask("cmd=get_my_kvsname", "my_kvsname")?.field("kvsname")?.to_owned();
        Ok(pmi)
    }

    /// Says one line and takes the answer, which must be the command `expected` and no failure.
    fn ask(&mut self, line: &str, expected: &'static str) -> Result<Answer> {
        let failed = |e: std::io::Error| Error::PeerLost { peer: PEER.to_owned(), reason: e.to_string() };
        let whole = format!("{line}\n");
        self.stream.set_write_timeout(Some(self.left(expected)?)).map_err(failed)?;
        match self.stream.write(whole.as_bytes()) {
            Ok(count) if count == whole.len() => {}
            Ok(count) => return Err(wrong("line", "to be taken whole", &format!("{count} bytes taken"))),
            Err(e) => return Err(failed(e)),
        }
        let answer = Answer(self.line(expected)?);
        let command = answer.field("cmd")?;
        if command != expected {
            return Err(wrong("cmd", expected, command));
        }
        match answer.find("rc") {
            None | Some("0") => Ok(answer),
            Some(code) => {
                let reason = format!("{} (rc {code})", answer.find("msg").unwrap_or("it failed"));
                Err(Error::Refused { peer: PEER.to_owned(), reason: format!("{line}: {reason}") })
            }
        }
    }

    fn line(&mut self, expected: &str) -> Result<String> {
        let mut chunk = [0; 1024];
        loop {
            if let Some(end) = self.input.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.input.drain(..=end).collect();
                let text = std::str::from_utf8(&line[..end]);
                return text.map(str::to_owned).map_err(|_| wrong("line", "text", "other bytes"));
            }
            if self.input.len() > LINE {
                return Err(wrong("line", "at most 8192 bytes", &self.input.len().to_string()));
            }
            let left = self.left(expected)?;
            let lost = |e: std::io::Error| Error::PeerLost { peer: PEER.to_owned(), reason: e.to_string() };
            self.stream.set_read_timeout(Some(left)).map_err(lost)?;
            match self.stream.read(&mut chunk) {
                Ok(0) => {
                    return Err(Error::PeerLost { peer: PEER.to_owned(), reason: "it closed".to_owned() });
                }
                Ok(count) => self.input.extend_from_slice(&chunk[..count]),
                // A timeout: the next turn says so.
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                Err(e) => return Err(lost(e)),
            }
        }
    }

    fn left(&self, expected: &str) -> Result<Duration> {
        let (rank, size) = (self.rank, self.size);
        left(self.deadline, || format!("{expected} from {PEER} (this is rank {rank} of {size})"))
    }
}

impl Board for Pmi1 {
    fn rank(&self) -> u32 {
        self.rank
    }

    fn size(&self) -> u32 {
        self.size
    }

    fn put(&mut self, key: &str, value: &str) -> Result<()> {
        if value.len() > self.longest {
            let resource = format!("a value of {PEER}, in bytes");
            return Err(Error::Limit { resource, limit: self.longest as u64, asked: value.len() as u64 });
        }
        let line = format!("cmd=put kvsname={} key={key}-{} value={value}", self.kvs, self.rank);
        self.ask(&line, "put_result").map(drop)
    }

    fn fence(&mut self) -> Result<()> {
        self.ask("cmd=barrier_in", "barrier_out").map(drop)
    }

    fn get(&mut self, rank: u32, key: &str) -> Result<String> {
        let line = format!("cmd=get kvsname={} key={key}-{rank}", self.kvs);
        Ok(self.ask(&line, "get_result")?.field("value")?.to_owned())
    }

    fn finish(mut self: Box<Self>) -> Result<()> {
        self.ask("cmd=finalize", "finalize_ack").map(drop)
    }
}

/// A line of `key=value` words.
struct Answer(String);

impl Answer {
    fn find(&self, key: &str) -> Option<&str> {
        let mut words = self.0.split(' ').filter_map(|word| word.split_once('='));
        words.find(|(name, _)| *name == key).map(|(_, value)| value)
    }

    fn field(&self, key: &'static str) -> Result<&str> {
        self.find(key).ok_or_else(|| wrong(key, "a value", &self.0))
    }
}

fn wrong(field: &'static str, expected: &str, found: &str) -> Error {
    let shown: String = found.chars().filter(|c| !c.is_control()).take(80).collect();
    Error::protocol(PEER, field, expected, shown)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;
    use std::io::{BufRead, BufReader};
    use std::sync::{Arc, Mutex};
    use std::time::Instant;

    const SOON: Duration = Duration::from_secs(60);

    /// One task's side of a process manager; `kvs` is shared.
    fn serve(stream: UnixStream, kvs: Arc<Mutex<HashMap<String, String>>>, barrier: Arc<std::sync::Barrier>) {
        let mut writer = stream.try_clone().unwrap();
        for line in BufReader::new(stream).lines().map_while(|line| line.ok()) {
            let answer = Answer(line.clone());
            let reply = match answer.find("cmd").unwrap() {
                "init" => "cmd=response_to_init pmi_version=1 pmi_subversion=1 rc=0".to_owned(),
                "get_maxes" => "cmd=maxes kvsname_max=256 keylen_max=64 vallen_max=1024".to_owned(),
                "get_my_kvsname" => "cmd=my_kvsname kvsname=kvs_1".to_owned(),
                "put" => {
                    assert_eq!(answer.find("kvsname"), Some("kvs_1"));
                    let word = |key| answer.find(key).unwrap().to_owned();
                    kvs.lock().unwrap().insert(word("key"), word("value"));
                    "cmd=put_result rc=0 msg=success".to_owned()
                }
                "barrier_in" => {
                    barrier.wait();
                    "cmd=barrier_out".to_owned()
                }
                "get" => match kvs.lock().unwrap().get(answer.find("key").unwrap()) {
                    Some(value) => format!("cmd=get_result rc=0 msg=success value={value}"),
                    None => "cmd=get_result rc=-1 msg=key_not_found value=unknown".to_owned(),
                },
                "finalize" => "cmd=finalize_ack".to_owned(),
                other => panic!("{other}"),
            };
            writer.write_all(format!("{reply}\n").as_bytes()).unwrap();
        }
    }

    #[test]
    fn three_tasks_exchange_values() {
        let kvs = Arc::new(Mutex::new(HashMap::new()));
        let barrier = Arc::new(std::sync::Barrier::new(3));
        let tasks: Vec<_> = (0..3)
            .map(|rank| {
                let (ours, theirs) = UnixStream::pair().unwrap();
                let (kvs, barrier) = (kvs.clone(), barrier.clone());
                std::thread::spawn(move || serve(theirs, kvs, barrier));
                std::thread::spawn(move || {
                    let mut pmi =
                        Box::new(Pmi1::start(ours, rank, 3, Deadline::after(Instant::now(), SOON)).unwrap());
                    pmi.put("k", &format!("value-of-{rank}")).unwrap();
                    pmi.fence().unwrap();
                    let all: Vec<String> = (0..3).map(|r| pmi.get(r, "k").unwrap()).collect();
                    assert!(matches!(pmi.get(3, "k"), Err(Error::Refused { .. })));
                    assert!(matches!(pmi.put("k", &"x".repeat(1025)), Err(Error::Limit { .. })));
                    pmi.finish().unwrap();
                    all
                })
            })
            .collect();
        for task in tasks {
            assert_eq!(task.join().unwrap(), ["value-of-0", "value-of-1", "value-of-2"]);
        }
    }

    /// A session with somebody who answers `init` so.
    fn answered(answer: &[u8], patience: Duration) -> Result<Pmi1> {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(answer).unwrap();
        if patience == SOON {
            theirs.shutdown(std::net::Shutdown::Write).unwrap();
        }
        Pmi1::start(ours, 1, 2, Deadline::after(Instant::now(), patience))
    }

    #[test]
    fn silence_ends_with_a_timeout_that_names_the_rank() {
        let error = answered(b"cmd=resp", Duration::from_millis(50)).err().unwrap();
        assert!(matches!(error, Error::Timeout { .. }), "{error}");
        assert!(error.to_string().contains("rank 1 of 2"), "{error}");
    }

    #[test]
    fn garbage_is_refused() {
        let protocol = |answer: &[u8]| match answered(answer, SOON).err().unwrap() {
            Error::Protocol { field, .. } => field,
            other => panic!("{other}"),
        };
        assert_eq!(protocol(b"\n"), "cmd");
        assert_eq!(protocol(b"cmd=maxes\n"), "cmd");
        assert_eq!(protocol(b"\xff\xfe\n"), "line");
        assert_eq!(protocol(&[b'a'; LINE + 1024]), "line");
        let init = "cmd=response_to_init rc=0\n";
        assert_eq!(protocol(format!("{init}cmd=maxes\n").as_bytes()), "vallen_max");
        assert_eq!(protocol(format!("{init}cmd=maxes vallen_max=many\n").as_bytes()), "vallen_max");
        let maxes = "cmd=maxes vallen_max=64\n";
        assert_eq!(protocol(format!("{init}{maxes}cmd=my_kvsname\n").as_bytes()), "kvsname");
        let refused = answered(b"cmd=response_to_init rc=-1 msg=no\n", SOON).err().unwrap();
        assert!(matches!(refused, Error::Refused { .. }), "{refused}");
        assert!(matches!(answered(b"", SOON).err().unwrap(), Error::PeerLost { .. }));
    }

    proptest! {
        #[test]
        fn any_answer_ends(bytes in proptest::collection::vec(any::<u8>(), 0..200), lines: bool) {
            let begun = b"cmd=response_to_init rc=0\n".to_vec();
            let answer = if lines { [begun, bytes].concat() } else { bytes };
            let _ = answered(&answer, SOON);
        }
    }
}
