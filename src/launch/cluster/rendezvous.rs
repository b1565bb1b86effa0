//! A file that tells where the leader is. It may have been left behind by a job that died, or belong to another that is alive; so nobody
//! believes it before whoever it tells of has proved that he is there.
//!
//! One line, of mode 0600: the launch's name, a space, a [`Bootstrap`] in hexadecimal.
//!
//! | who | finds a file whose leader is there | is not there |
//! | --- | --- | --- |
//! | the rank that leads by its number | refuses to disturb that job | replaces it |
//! | any that follows | follows, if it is of its launch; else waits | waits for another |
//! | a server, of which the first leads | the same | removes it, and tries to be the first again |

use std::fs;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::board::left;
use super::checkin::{CheckIn, Gathering, probe};
use super::meet::{Meeting, follow, within_reach};
use super::task::Task;
use crate::error::{Error, Result};
use crate::proto::bootstrap::Bootstrap;
use crate::proto::secret::private_text;
use crate::time::Deadline;

/// Between two looks at the file,
const LOOK: Duration = Duration::from_millis(20);
/// and behind one that found it left behind: to ask who is not there costs both ends more.
const LOOK_AGAIN: Duration = Duration::from_millis(200);
/// How long a leader may take to prove that it is there: at first for those whom a mistake costs nothing but another look,
const GLANCE: Duration = Duration::from_secs(1);
/// for those who then take its place,
const CERTAIN: Duration = Duration::from_secs(5);
/// at the end of a long wait,
const LONGEST: Duration = Duration::from_secs(60);
/// and for all when there is hardly any time left.
const LEAST: Duration = Duration::from_millis(200);

/// A file, as one task sees it.
pub struct Spot<'a> {
    path: &'a Path,
    task: &'a Task,
    /// What tells this launch's files from others'.
    launch: &'a str,
}

impl<'a> Spot<'a> {
    /// The file at which `task` meets the others.
    pub fn new(path: &'a Path, task: &'a Task) -> Spot<'a> {
        Spot { path, task, launch: task.launch.as_deref().unwrap_or("-") }
    }

    /// For the one who leads in any case.
    pub fn lead(&self, mut gathering: Gathering) -> Result<Meeting> {
        let line = self.line(&gathering);
        loop {
            // What can't be read is replaced like what is not true.
            let found = self.said();
            if let Ok(Some(said)) = &found
                && let Ok(leader) = living(said, CERTAIN)
            {
                let peer = format!("the leading rank on {}, {}", leader.host(), leader.address());
                let reason = format!("another job is about to meet at {}", self.path.display());
                return Err(Error::Refused { peer, reason });
            }
            // Where nothing was, another may have written meanwhile, and be there.
            if write_private(self.path, &line, matches!(found, Ok(None)))? {
                gathering.remove_at_end(self.path, line);
                return Ok(Meeting::Leader(Box::new(gathering)));
            }
        }
    }

    /// For all others. With a `candidate` the task leads if it is the first.
    pub fn follow(
        &self,
        us: CheckIn,
        mut candidate: Option<Gathering>,
        deadline: Deadline,
    ) -> Result<Meeting> {
        let mut patience = if candidate.is_some() { CERTAIN } else { GLANCE };
        let mut found = "nothing is there".to_owned();
        // What else may be wrong with our launch's leader than that it is gone.
        let mut wrong = None;
        loop {
            if let Some(mut gathering) = candidate.take() {
                let line = self.line(&gathering);
                if write_private(self.path, &line, true)? {
                    gathering.remove_at_end(self.path, line);
                    return Ok(Meeting::Leader(Box::new(gathering)));
                }
                candidate = Some(gathering);
            }
            let mut pause = LOOK;
            let said = self.said()?;
            let ours = said.as_deref().is_some_and(|said| said.split(' ').next() == Some(self.launch));
            if let Some(said) = said.filter(|_| ours || candidate.is_some()) {
                match living(&said, patience.min(deadline.left(Instant::now()) / 4).max(LEAST)) {
                    Ok(leader) if ours => return follow(leader, us),
                    Ok(leader) => found = format!("another job's leader, on {}, is there", leader.host()),
                    Err(why) => {
                        found = format!("the file that is there was left behind: {why}");
                        let leader = told(&said).ok().filter(|_| ours);
                        wrong = leader.and_then(|leader| within_reach(&leader, &us).err());
                        (patience, pause) = (longer(patience), LOOK_AGAIN);
                        if candidate.is_some() {
                            clear_away(self.path, &said)?;
                        }
                    }
                }
            }
            left(deadline, || {
                let (path, task) = (self.path.display(), self.task);
                format!("the leading rank to write {path} (do all hosts see it?); {found}; this is {task}")
            })
            .map_err(|late| wrong.take().unwrap_or(late))?;
            std::thread::sleep(pause.min(deadline.left(Instant::now())));
        }
    }

    fn line(&self, gathering: &Gathering) -> String {
        format!("{} {}\n", self.launch, gathering.bootstrap().to_hex())
    }

    fn said(&self) -> Result<Option<String>> {
        match private_text(self.path, "rendezvous file") {
            Ok(said) => Ok(Some(said)),
            Err(Error::Io { source, .. }) if source.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// The leader of whom a file tells, once it has proved that it is there.
fn living(said: &str, patience: Duration) -> Result<Bootstrap> {
    let leader = told(said)?;
    probe(&leader, patience).map(|()| leader)
}

/// The leader that a file names.
fn told(said: &str) -> Result<Bootstrap> {
    let (_, blob) = said.trim().split_once(' ').unwrap_or_default();
    Bootstrap::from_hex(blob)
}

/// How long the next is waited for: where all are busy, the last was only late.
fn longer(patience: Duration) -> Duration {
    patience.saturating_mul(2).min(LONGEST)
}

/// Removes the file if it still says this. It is first taken away, so that what is removed is what was looked at; what turns out to be
/// another's is put back, unless a third has written meanwhile: that one is found then.
pub(super) fn clear_away(path: &Path, said: &str) -> Result<()> {
    let failed = |e| Error::io("remove", path.display(), e);
    let says_it = |at: &Path| private_text(at, "rendezvous file").is_ok_and(|now| now == said);
    if !says_it(path) {
        return Ok(()); // it has been replaced
    }
    let taken = beside(path, &crate::launch::new_job()?);
    match fs::rename(path, &taken) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()), // another was faster
        done => done.map_err(failed)?,
    }
    let put_back = if says_it(&taken) { Ok(()) } else { fs::hard_link(&taken, path) };
    let removed = fs::remove_file(&taken).map_err(|e| Error::io("remove", taken.display(), e));
    match put_back {
        Err(e) if e.kind() != ErrorKind::AlreadyExists => Err(failed(e)),
        _ => removed,
    }
}

fn beside(path: &Path, end: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{end}"));
    path.with_file_name(name)
}

/// Writes the file so that it appears whole. With `first` only if there is none yet; false if there is.
fn write_private(path: &Path, text: &str, first: bool) -> Result<bool> {
    let failed = |e| Error::io("write", path.display(), e);
    let temporary = beside(path, &crate::launch::new_job()?);
    let mut options = fs::OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(0o600).open(&temporary).map_err(failed)?;
    let written = file.write_all(text.as_bytes()).and_then(|()| file.sync_all());
    let done = written
        .and_then(|()| if first { fs::hard_link(&temporary, path) } else { fs::rename(&temporary, path) });
    if first || done.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    match done {
        Err(e) if first && e.kind() == ErrorKind::AlreadyExists => Ok(false),
        done => done.map(|()| true).map_err(failed),
    }
}

#[cfg(test)]
mod tests {
    use super::super::checkin::{Lifeline, check_in};
    use super::super::meet::tests::{soon, task};
    use super::super::meet::{Ways, meet};
    use super::super::task::host;
    use super::*;
    use crate::proto::secret::Secret;
    use crate::types::Role;
    use std::net::{SocketAddr, TcpListener};

    fn at_file(path: &Path) -> Ways {
        Ways { interface: Some("127.0.0.1".into()), rendezvous: Some(path.to_owned()), ..Ways::default() }
    }

    #[test]
    fn tasks_meet_at_a_file_that_only_we_can_read_and_that_goes_away() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("meet");
        // Left behind by another launch.
        write_private(&path, "launch-0 00\n", false).unwrap();
        let ways = at_file(&path);
        let follower = std::thread::spawn({
            let ways = at_file(&path);
            move || match meet(&task(1, 2), None, &ways, soon(60)).unwrap() {
                Meeting::Follower(bootstrap, us) => check_in(&bootstrap, &us, soon(60)).unwrap().0,
                _ => panic!("rank 1 follows"),
            }
        });
        let Meeting::Leader(mut gathering) = meet(&task(0, 2), None, &ways, soon(60)).unwrap() else {
            panic!("rank 0 leads");
        };
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(gathering.wait(soon(60)).unwrap().len(), 2);
        let (ours, lifelines) =
            gathering.place(&[(Role::Server, 0), (Role::Worker, 0)], 3, "127.0.0.1:9").unwrap();
        let theirs = follower.join().unwrap();
        assert_eq!((ours.role, ours.local_index, ours.pollers), (Role::Server, 0, 4));
        assert_eq!((theirs.role, theirs.rank, theirs.local_index), (Role::Worker, 0, 1));
        assert_eq!((theirs.servers, theirs.workers, theirs.coordinator.as_str()), (1, 1, "127.0.0.1:9"));
        assert!(theirs.interface.is_loopback());
        assert_eq!(lifelines[0].name, "rank 1 on here (127.0.0.1)");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0, "nothing is left");
    }

    #[test]
    fn who_does_not_come_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let ways = at_file(&directory.path().join("meet"));
        let late = Deadline::after(Instant::now(), Duration::from_millis(100));
        let error = meet(&task(1, 3), None, &ways, late).err().unwrap().to_string();
        assert!(
            error.contains("meet (do all hosts see it?); nothing is there; this is rank 1 of 3 on here"),
            "{error}"
        );
        let Meeting::Leader(mut gathering) = meet(&task(0, 3), None, &ways, soon(60)).unwrap() else {
            panic!("rank 0 leads");
        };
        let late = Deadline::after(Instant::now(), Duration::from_millis(100));
        let error = gathering.wait(late).unwrap_err().to_string();
        assert!(error.contains("waiting for rank 1, 2 of 3 to check in at 127.0.0.1:"), "{error}");
        assert!(error.contains("these have: rank 0 on here (127.0.0.1)"), "{error}");
    }

    /// A file that tells of a leader at `address`.
    fn left_behind(path: &Path, launch: &str, address: SocketAddr) {
        let leader = Bootstrap::new(address, Secret::generate().unwrap(), "earlier", &host()).unwrap();
        write_private(path, &format!("{launch} {}\n", leader.to_hex()), false).unwrap();
    }

    /// An address at which nobody listens.
    fn nobody() -> SocketAddr {
        TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
    }

    /// Task `rank` of `tasks` meets the others, in a thread: the connections of all if it leads, nothing if it is placed.
    fn meets(
        path: &Path,
        rank: u32,
        tasks: u32,
        role: Option<Role>,
    ) -> std::thread::JoinHandle<Result<Option<Vec<Lifeline>>>> {
        let ways = at_file(path);
        std::thread::spawn(move || match meet(&task(rank, tasks), role, &ways, soon(60))? {
            Meeting::Leader(mut gathering) => {
                gathering.wait(soon(60))?;
                let roles: Vec<_> = (0..tasks).map(|task| (Role::Worker, task)).collect();
                gathering.place(&roles, 1, "127.0.0.1:9").map(|placed| Some(placed.1))
            }
            Meeting::Follower(leader, us) => check_in(&leader, &us, soon(60)).map(|_| None),
            Meeting::Alone => panic!("there are others"),
        })
    }

    #[test]
    fn a_file_of_a_dead_job_holds_up_nobody() {
        let stranger = TcpListener::bind("127.0.0.1:0").unwrap(); // has got the port since, and knows no secret
        for address in [nobody(), stranger.local_addr().unwrap()] {
            for role in [None, Some(Role::Server)] {
                let directory = tempfile::tempdir().unwrap();
                let path = directory.path().join("meet");
                // Its launch had the same name: not all launchers have one.
                left_behind(&path, "launch-1", address);
                let follower = meets(&path, 1, 2, role.map(|_| Role::Worker));
                let leader = meets(&path, 0, 2, role);
                let leader = leader.join().unwrap().unwrap();
                assert!(leader.is_some() && follower.join().unwrap().unwrap().is_none());
                assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0, "nothing is left");
            }
        }
    }

    #[test]
    fn of_many_servers_one_leads_where_a_file_was_left_behind() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("meet");
        left_behind(&path, "launch-0", nobody());
        let all: Vec<_> = (0..6)
            .map(|rank| {
                let role = if rank == 4 { Role::Worker } else { Role::Server };
                meets(&path, rank, 6, Some(role))
            })
            .collect();
        let placed: Vec<_> = all.into_iter().map(|task| task.join().unwrap().unwrap()).collect();
        assert_eq!(placed.iter().filter(|placed| placed.is_some()).count(), 1);
        assert!(placed[4].is_none(), "a worker leads");
    }

    #[test]
    fn a_job_that_is_about_to_meet_at_the_file_is_not_disturbed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("meet");
        let first = meets(&path, 0, 2, None);
        while !path.exists() {
            std::thread::yield_now();
        }
        let error = meets(&path, 0, 2, None).join().unwrap().unwrap_err().to_string();
        assert!(
            error.starts_with("the leading rank on ") && error.contains("another job is about to meet at"),
            "{error}"
        );
        let second = meets(&path, 1, 2, None);
        assert!(first.join().unwrap().unwrap().is_some() && second.join().unwrap().unwrap().is_none());
    }

    #[test]
    fn a_process_that_died_while_it_cleared_away_holds_up_nobody() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("meet");
        left_behind(&path, "launch-1", nobody());
        for end in ["clearing", "0123456789abcdef"] {
            fs::write(beside(&path, end), "").unwrap();
        }
        let all: Vec<_> = (0..2).map(|rank| meets(&path, rank, 2, Some(Role::Server))).collect();
        let placed: Vec<_> = all.into_iter().map(|task| task.join().unwrap().unwrap()).collect();
        assert_eq!(placed.iter().filter(|placed| placed.is_some()).count(), 1);
        assert!(!path.exists());
    }

    #[test]
    fn a_file_that_has_become_anothers_stays() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("meet");
        let Meeting::Leader(gathering) = meet(&task(0, 2), None, &at_file(&path), soon(60)).unwrap() else {
            panic!("rank 0 leads");
        };
        write_private(&path, "another\n", false).unwrap();
        drop(gathering);
        assert_eq!(fs::read_to_string(&path).unwrap(), "another\n");
        clear_away(&path, "one before\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "another\n");
        clear_away(&path, "another\n").unwrap();
        clear_away(&path, "another\n").unwrap();
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0, "nothing is left");
    }

    #[test]
    fn of_two_that_lead_by_their_number_one_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        for round in 0..20 {
            let path = directory.path().join(format!("meet-{round}"));
            let start = std::sync::Arc::new(std::sync::Barrier::new(2));
            let leads = || {
                let (ways, start) = (at_file(&path), start.clone());
                std::thread::spawn(move || {
                    start.wait();
                    meet(&task(0, 2), None, &ways, soon(60)).map(|meeting| match meeting {
                        Meeting::Leader(mut gathering) => gathering.wait(soon(60)).map(drop),
                        _ => panic!("rank 0 leads"),
                    })
                })
            };
            let both = [leads(), leads()];
            until_one_ends(&both);
            let follower = meets(&path, 1, 2, None);
            let mut led = 0;
            for leader in both {
                match leader.join().unwrap() {
                    Ok(waited) => {
                        waited.unwrap();
                        led += 1;
                    }
                    Err(error) => {
                        assert!(error.to_string().contains("another job is about to meet"), "{error}")
                    }
                }
            }
            // Its leader has no place for it.
            assert!(follower.join().unwrap().is_err());
            assert_eq!(led, 1);
        }
    }

    fn until_one_ends<T>(both: &[std::thread::JoinHandle<T>]) {
        while !both.iter().any(std::thread::JoinHandle::is_finished) {
            std::thread::yield_now();
        }
    }

    #[test]
    fn patience_has_an_end() {
        assert_eq!(longer(GLANCE), 2 * GLANCE);
        assert_eq!((0..100).fold(CERTAIN, |patience, _| longer(patience)), LONGEST);
    }

    #[test]
    fn who_waits_in_vain_is_told_of_the_file_that_was_left_behind() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("meet");
        let address = nobody();
        left_behind(&path, "launch-1", address);
        let late = Deadline::after(Instant::now(), Duration::from_secs(2));
        let error = meet(&task(1, 3), None, &at_file(&path), late).err().unwrap().to_string();
        assert!(error.contains("the file that is there was left behind: "), "{error}");
        assert!(error.contains(&format!("the leading rank on {} at {address}", host())), "{error}");
        for said in ["launch-1", "launch-1 00", "", "launch-1 zz zz"] {
            write_private(&path, said, false).unwrap();
            let late = Deadline::after(Instant::now(), Duration::from_millis(100));
            let error = meet(&task(1, 3), None, &at_file(&path), late).err().unwrap();
            assert!(matches!(error, Error::Timeout { .. }), "{said}: {error}");
        }
    }
}
