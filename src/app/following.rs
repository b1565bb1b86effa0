//! A rank of a launcher's job that makes checkpoints: a supervisor stays beside its program, where other jobs' ranks become it.
//!
//! A batch system that wants its nodes back sends SIGTERM, or the signal that was asked for, to every process of the job. All of them
//! are needed until the last checkpoint is made; so the program ignores these signals, and the supervisor ends it when the leader
//! says that the job is saved, or is gone. Then every rank gives the same exit code, whatever its program makes of the job's end.

use std::net::TcpStream;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::run::{self, Plan, SAVED, exit_code};
use crate::config::{ServerLimits, settings, variable};
use crate::error::{Error, Result};
use crate::launch::cluster::lifelines::{Word, listen};
use crate::launch::{self, Child, Tree};
use crate::time::Deadline;

/// How long the leader's word is waited for when the program has failed: that the job is saved may explain it.
const EXPLANATION: Duration = Duration::from_secs(2);

/// Runs this rank's program to its end; gives the exit code.
pub fn follow(plan: &Plan, child: Child, lifeline: TcpStream) -> Result<u8> {
    let limits = ServerLimits::from_environment(&plan.settings)?;
    let mut config = run::tree(plan, &launch::new_job()?, limits)?;
    config.marker = variable::TREE;
    config.quiet = true;
    let mut tree = Tree::new(config)?;
    // The leader hears the signal, too, and saves the job.
    tree.when_told_to_end(plan.settings.seconds(&settings::GRACE)?, || {});
    let (handle, (words, heard), mut over) = (tree.handle(), mpsc::channel(), false);
    listen(lifeline, plan.settings.seconds(&settings::PEER_TIMEOUT)?, move |word| {
        match word {
            Some(Word::Saved) => handle.stop("told to end: the job is saved", SAVED),
            Some(Word::Done) => handle.job_finished(),
            // Whatever ended it, the program has heard of that over its own links, if it has any.
            None if !over => handle.stop("the leading rank is gone", i32::from(exit_code(&gone()))),
            None => {}
        }
        over = true;
        let _ = words.send(word); // nobody asks any more
    })?;
    let code = tree.run(&[child])?.code;
    let patience = if code == 0 { Duration::ZERO } else { EXPLANATION };
    Ok(if is_saved(&heard, patience) { SAVED } else { code } as u8)
}

fn gone() -> Error {
    Error::Aborted { reason: "the leading rank is gone".to_owned() }
}

/// Whether the leader says so within `patience`.
fn is_saved(heard: &mpsc::Receiver<Option<Word>>, patience: Duration) -> bool {
    let deadline = Deadline::after(Instant::now(), patience);
    while let Ok(Some(word)) = heard.recv_timeout(deadline.left(Instant::now())) {
        if word == Word::Saved {
            return true;
        }
    }
    false
}
