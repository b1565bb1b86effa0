//! Sees tasks end, by the connections that they leave open: the leader's end in a thread. Tasks that stay hear over it how the job
//! ended, and see the leader's end.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, IntoRawFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use socket2::{SockRef, TcpKeepalive};

use super::checkin::Lifeline;
use crate::error::{Error, Result};

/// After so long without a word the other end of a connection is asked whether it is still there.
const SILENCE: Duration = Duration::from_secs(10);

/// Leaves the connection open for as long as this process lives, and for nothing that it starts.
pub fn keep_open(stream: TcpStream) {
    // Like all our descriptors it is closed on exec. Nobody else closes it any more.
    let _ = stream.into_raw_fd();
}

/// Waits until the other end of this connection is gone: closed, or its host or the network without a word for half a minute.
pub fn watch_one(stream: TcpStream) {
    let keepalive = TcpKeepalive::new().with_time(SILENCE).with_interval(SILENCE / 2).with_retries(4);
    // Without it only the loss of a host goes unnoticed.
    if let Err(error) =
        SockRef::from(&stream).set_tcp_keepalive(&keepalive).and_then(|()| stream.set_nonblocking(false))
    {
        tracing::warn!("lifeline: {error}");
    }
    let mut scratch = [0; 256];
    loop {
        match (&stream).read(&mut scratch) {
            Ok(1..) => {}
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Ok(0) | Err(_) => return,
        }
    }
}

/// What the leader tells the tasks that stay: a byte each. It is no secret, and decides no more than an exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Word {
    /// All workers have finished. Programs may have work left.
    Done = b'd' as isize,
    /// The job was told to end, and is saved.
    Saved = b's' as isize,
}

/// Calls `heard` for each word of the leader, and with nothing once it is gone, or can't be reached for `patience`.
pub fn listen(
    stream: TcpStream,
    patience: Duration,
    mut heard: impl FnMut(Option<Word>) + Send + 'static,
) -> Result<()> {
    let failed = |e| Error::io("listen", "the connection to the leading rank", e);
    stream.set_nonblocking(false).map_err(failed)?;
    // In whole seconds; a host that is cut off sends nothing that would end the connection.
    let quarter = Duration::from_secs((patience.as_secs() / 4).max(1));
    let keepalive = TcpKeepalive::new().with_time(2 * quarter).with_interval(quarter).with_retries(2);
    SockRef::from(&stream).set_tcp_keepalive(&keepalive).map_err(failed)?;
    let body = move || {
        let mut byte = [0];
        loop {
            match (&stream).read(&mut byte) {
                Ok(1..) => {
                    let words = [Word::Done, Word::Saved];
                    words
                        .into_iter()
                        .filter(|word| *word as u8 == byte[0])
                        .for_each(|word| heard(Some(word)));
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Ok(0) | Err(_) => return heard(None),
            }
        }
    };
    let spawned = std::thread::Builder::new().name("wl-lifeline".to_owned()).spawn(body);
    spawned.map(drop).map_err(|e| Error::io("start thread", "wl-lifeline", e))
}

/// Lets another thread speak to the tasks that are watched.
pub struct Teller(UnixStream);

impl Teller {
    /// Says a word to all.
    pub fn tell(&self, word: Word) {
        // A watch that is gone has nobody to tell.
        let _ = (&self.0).write(&[word as u8]);
    }
}

/// A thread that watches; dropping it passes on what its [`Teller`]s have said, ends the thread and closes the connections.
pub struct Watch {
    stop: UnixStream,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Watch {
    /// Calls `ended` once for each task that ends.
    pub fn over(lifelines: Vec<Lifeline>, ended: impl Fn(&Lifeline) + Send + 'static) -> Result<Watch> {
        let (stop, stopped) = UnixStream::pair().map_err(|e| Error::io("socketpair", "lifelines", e))?;
        let thread = std::thread::Builder::new()
            .name("wl-lifelines".to_owned())
            .spawn(move || watch(lifelines, &stopped, ended))
            .map_err(|e| Error::io("start thread", "wl-lifelines", e))?;
        Ok(Watch { stop, thread: Some(thread) })
    }
}

impl Watch {
    /// See [`Teller`].
    pub fn teller(&self) -> Result<Teller> {
        self.stop.try_clone().map(Teller).map_err(|e| Error::io("socketpair", "lifelines", e))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // Ends the socket itself, however many Tellers hold it. It fails only when the thread has closed its end.
        let _ = self.stop.shutdown(Shutdown::Write);
        if let Some(thread) = self.thread.take() {
            // It only panics if `ended` does, and has said so.
            let _ = thread.join();
        }
    }
}

fn watch(mut lifelines: Vec<Lifeline>, stopped: &UnixStream, ended: impl Fn(&Lifeline)) {
    let mut scratch = [0; 256];
    loop {
        let sockets = lifelines.iter().map(|lifeline| lifeline.stream.as_fd());
        let all: Vec<BorrowedFd<'_>> = std::iter::once(stopped.as_fd()).chain(sockets).collect();
        let mut polled: Vec<PollFd<'_>> = all.iter().map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
        match poll(&mut polled, None) {
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            // Nothing can be watched any more; the control links still show who is lost.
            Err(error) => return tracing::warn!("lifelines: {error}"),
        }
        let ready: Vec<bool> = polled.iter().map(|polled| !polled.revents().is_empty()).collect();
        if ready[0] {
            let mut told = stopped;
            match told.read(&mut scratch) {
                Ok(count @ 1..) => pass_on(&lifelines, &scratch[..count]),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Ok(0) | Err(_) => return,
            }
        }
        let mut at = 0;
        lifelines.retain_mut(|lifeline| {
            at += 1;
            if !ready[at] {
                return true;
            }
            match lifeline.stream.read(&mut scratch) {
                Ok(1..) => true, // what it said before it became another program
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => true,
                Ok(0) | Err(_) => {
                    ended(lifeline);
                    false
                }
            }
        });
    }
}

fn pass_on(lifelines: &[Lifeline], words: &[u8]) {
    for mut stream in lifelines.iter().map(|lifeline| &lifeline.stream) {
        // Nothing else is ever sent there, so there is room; who is gone is about to be found out.
        let _ = stream.write(words);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Role;
    use std::net::TcpListener;
    use std::sync::mpsc::channel;

    #[test]
    fn a_watch_ends_while_somebody_could_still_speak() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut task = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let stream = listener.accept().unwrap().0;
        let lifeline = Lifeline { name: "rank 1".into(), role: Role::Worker, rank: 0, stream };
        let watch = Watch::over(vec![lifeline], |_| {}).unwrap();
        let (teller, silent) = (watch.teller().unwrap(), watch.teller().unwrap());
        teller.tell(Word::Saved);
        let (done, over) = channel();
        std::thread::spawn(move || {
            drop(watch);
            done.send(()).unwrap();
        });
        over.recv_timeout(Duration::from_secs(60)).expect("it waits for the Tellers");
        // Too late, and nobody is disturbed.
        silent.tell(Word::Done);
        let mut heard = Vec::new();
        task.read_to_end(&mut heard).unwrap();
        assert_eq!(heard, [Word::Saved as u8]);
    }
}
