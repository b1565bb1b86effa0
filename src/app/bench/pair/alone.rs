//! Both ends on this machine: this process measures another that it starts, our own program again, and that ends with it. They speak
//! through its pipes.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Stdio};

use super::{PEER, Way, Words, fresh_key, measure, respond};
use crate::app::bench::Verdict;
use crate::app::bench::options::Options;
use crate::config::Environment;
use crate::error::{Error, Result};
use crate::transport::SessionKey;
use crate::transport::choice::{self, Agreed};

/// The process that measures, or, with `--responder`, the other one.
pub fn run(options: &Options, environment: &Environment) -> Result<Verdict> {
    options.check()?;
    options.check_alone()?;
    let network = options.node.network.network(environment, 2)?;
    let offer = choice::offer(&network)?;
    let way = Way { network: &network, agreed: Agreed::alone(&offer) };
    if options.responder {
        return respond(options, &way, &mut Pipes::of_this_process()?);
    }
    // There is no Coordinator that would say it.
    for lack in offer.lacks.iter().filter(|lack| !lack.absent) {
        tracing::warn!("transport auto: no {}: {}", lack.kind, lack.why);
    }
    let mut responder = Responder::start()?;
    measure(options, &way, &mut responder.pipes)
}

/// A line for each thing said.
struct Pipes {
    root: SessionKey,
    to: Box<dyn Write>,
    from: Box<dyn BufRead>,
}

impl Pipes {
    /// The parent says first what nobody else may know.
    fn of_this_process() -> Result<Pipes> {
        let mut from = BufReader::new(std::io::stdin());
        let mut root = SessionKey::default();
        from.read_exact(&mut root).map_err(|e| Error::io("read", PEER, e))?;
        Ok(Pipes { root, to: Box::new(std::io::stdout()), from: Box::new(from) })
    }
}

impl Words for Pipes {
    fn root(&self) -> &SessionKey {
        &self.root
    }

    fn say(&mut self, words: &str) -> Result<()> {
        writeln!(self.to, "{words}").and_then(|()| self.to.flush()).map_err(|e| Error::io("write", PEER, e))
    }

    fn hear(&mut self) -> Result<String> {
        let mut line = String::new();
        match self.from.read_line(&mut line).map_err(|e| Error::io("read", PEER, e))? {
            0 => {
                let reason = "it ended before it answered".to_owned();
                Err(Error::PeerLost { peer: PEER.to_owned(), reason })
            }
            _ => Ok(line),
        }
    }
}

/// The other process.
struct Responder {
    process: Child,
    pipes: Pipes,
}

impl Responder {
    fn start() -> Result<Responder> {
        let failed = |e| Error::io("start", PEER, e);
        let root = fresh_key()?;
        let exe = std::env::current_exe().map_err(failed)?;
        let mut command = Command::new(exe);
        command.args(std::env::args_os().skip(1)).arg("--responder");
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().map_err(failed)?;
        let (Some(mut to), Some(from)) = (process.stdin.take(), process.stdout.take()) else {
            return Err(failed(std::io::ErrorKind::BrokenPipe.into()));
        };
        to.write_all(&root).map_err(|e| Error::io("write", PEER, e))?;
        let pipes = Pipes { root, to: Box::new(to), from: Box::new(BufReader::new(from)) };
        Ok(Responder { process, pipes })
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        // Whatever happened, nothing of it is needed any more.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
