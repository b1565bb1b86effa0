//! PMIx, by the library that the launcher's processes use, opened at run time: nothing is linked.
//!
//! The few structures and numbers below are those of the PMIx standard's ABI for `libpmix.so.2` (OpenPMIx 2 to 5). PMIx has no
//! time limits that all servers keep, so the session lives on a thread of its own, which is left behind when it hangs.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::sync::mpsc::{Receiver, Sender, channel};

use super::board::{Board, left};
use crate::error::{Error, Result};
use crate::time::Deadline;

const PEER: &str = "the launcher (PMIx)";
const SUCCESS: c_int = 0;
const GLOBAL: u8 = 3;
const WILDCARD: u32 = u32::MAX - 1;
const BOOL: u16 = 1;
const STRING: u16 = 3;
const UINT32: u16 = 14;

/// `pmix_proc_t`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Proc {
    namespace: [c_char; 256],
    rank: u32,
}

/// `pmix_value_t`: a type and 24 bytes of a union, of which the first are what the type says.
#[repr(C)]
#[derive(Clone, Copy)]
struct Value {
    kind: u16,
    data: Data,
}

#[repr(C)]
#[derive(Clone, Copy)]
union Data {
    flag: bool,
    number: u32,
    text: *const c_char,
    words: [u64; 3],
}

/// `pmix_info_t`.
#[repr(C)]
struct Info {
    key: [c_char; 512],
    flags: u32,
    value: Value,
}

const _: () = assert!(size_of::<Proc>() == 260 && size_of::<Value>() == 32 && size_of::<Info>() == 552);

type Init = unsafe extern "C" fn(*mut Proc, *mut Info, usize) -> c_int;
type Put = unsafe extern "C" fn(u8, *const c_char, *mut Value) -> c_int;
type Commit = unsafe extern "C" fn() -> c_int;
type Fence = unsafe extern "C" fn(*const Proc, usize, *const Info, usize) -> c_int;
type Get = unsafe extern "C" fn(*const Proc, *const c_char, *const Info, usize, *mut *mut Value) -> c_int;
type Finalize = unsafe extern "C" fn(*const Info, usize) -> c_int;

/// The functions of an opened library, which stays open: its threads may outlive us.
#[derive(Clone, Copy)]
struct Library {
    init: Init,
    put: Put,
    commit: Commit,
    fence: Fence,
    get: Get,
    finalize: Finalize,
}

impl Library {
    /// Opens the first of these files that has all functions; `Err` says why the last has not.
    fn open(candidates: &[String]) -> Result<Library, String> {
        let mut why = "no name was given".to_owned();
        for name in candidates {
            let Ok(path) = CString::new(name.as_str()) else { continue };
            // SAFETY: `path` is a string that ends with zero. The library's initialisers are those of the launcher's own PMIx, which
            // any MPI program runs as well.
            let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
            if handle.is_null() {
                why = format!("{name} can't be opened");
                continue;
            }
            match Library::of(handle) {
                Some(library) => return Ok(library),
                None => why = format!("{name} is no PMIx library"),
            }
        }
        Err(why)
    }

    fn of(handle: *mut c_void) -> Option<Library> {
        let find = |name: &CStr| {
            // SAFETY: `handle` came from dlopen and is never closed; `name` ends with zero.
            let symbol = unsafe { libc::dlsym(handle, name.as_ptr()) };
            (!symbol.is_null()).then_some(symbol)
        };
        // SAFETY: each symbol has, by the PMIx standard, the type that it is made to have, and stays where it is.
        unsafe {
            Some(Library {
                init: std::mem::transmute::<*mut c_void, Init>(find(c"PMIx_Init")?),
                put: std::mem::transmute::<*mut c_void, Put>(find(c"PMIx_Put")?),
                commit: std::mem::transmute::<*mut c_void, Commit>(find(c"PMIx_Commit")?),
                fence: std::mem::transmute::<*mut c_void, Fence>(find(c"PMIx_Fence")?),
                get: std::mem::transmute::<*mut c_void, Get>(find(c"PMIx_Get")?),
                finalize: std::mem::transmute::<*mut c_void, Finalize>(find(c"PMIx_Finalize")?),
            })
        }
    }
}

/// The session itself, on its thread.
struct Session {
    pmix: Library,
    us: Proc,
    size: u32,
}

impl Session {
    fn start(pmix: Library) -> Result<Session> {
        let mut us = Proc { namespace: [0; 256], rank: 0 };
        // SAFETY: `us` is a whole `pmix_proc_t` to be written, and no information is given.
        check("PMIx_Init", unsafe { (pmix.init)(&mut us, std::ptr::null_mut(), 0) })?;
        us.namespace[255] = 0;
        let mut session = Session { pmix, us, size: 0 };
        session.size = match session.value(WILDCARD, "pmix.job.size")? {
            // SAFETY: the type says which member is meant.
            Value { kind: UINT32, data } => unsafe { data.number },
            other => return Err(Error::protocol(PEER, "pmix.job.size", "a number", other.kind)),
        };
        Ok(session)
    }

    fn value(&self, rank: u32, key: &str) -> Result<Value> {
        let (of, key) = (Proc { rank, ..self.us }, text(key)?);
        let mut found: *mut Value = std::ptr::null_mut();
        // SAFETY: `of` and `key` live across the call; `found` is where it writes the address of a value, which is never freed.
        let code = unsafe { (self.pmix.get)(&of, key.as_ptr(), std::ptr::null(), 0, &mut found) };
        check("PMIx_Get", code)?;
        if found.is_null() {
            return Err(Error::protocol(PEER, "value", "one", "none"));
        }
        // SAFETY: after success it is a `pmix_value_t` that the library made for us. A few of them are left behind: the library may
        // have another allocator than ours.
        Ok(unsafe { *found })
    }

    fn obey(&self, command: &Command) -> Result<String> {
        match command {
            Command::Put(key, value) => {
                let (key, value) = (text(key)?, text(value)?);
                let mut value = Value { kind: STRING, data: Data { text: value.as_ptr() } };
                // SAFETY: key and value live across the call, which copies them.
                check("PMIx_Put", unsafe { (self.pmix.put)(GLOBAL, key.as_ptr(), &mut value) })?;
                // SAFETY: takes nothing.
                check("PMIx_Commit", unsafe { (self.pmix.commit)() })?;
                Ok(String::new())
            }
            Command::Fence => {
                let all = Proc { rank: WILDCARD, ..self.us };
                let mut collect = Info {
                    key: [0; 512],
                    flags: 0,
                    value: Value { kind: BOOL, data: Data { words: [0; 3] } },
                };
                for (to, from) in collect.key.iter_mut().zip(c"pmix.collect".to_bytes()) {
                    *to = *from as c_char;
                }
                collect.value.data.flag = true;
                // SAFETY: one process and one piece of information, which live across the call.
                check("PMIx_Fence", unsafe { (self.pmix.fence)(&all, 1, &collect, 1) })?;
                Ok(String::new())
            }
            Command::Get(rank, key) => match self.value(*rank, key)? {
                Value { kind: STRING, data } => {
                    // SAFETY: the type says which member is meant: a string that ends with zero, or null.
                    let found = unsafe { data.text };
                    if found.is_null() {
                        return Err(Error::protocol(PEER, "value", "a string", "none"));
                    }
                    // SAFETY: not null, see above.
                    Ok(unsafe { CStr::from_ptr(found) }.to_string_lossy().into_owned())
                }
                other => Err(Error::protocol(PEER, "value", "a string", other.kind)),
            },
            Command::Finish => {
                // SAFETY: no information is given.
                check("PMIx_Finalize", unsafe { (self.pmix.finalize)(std::ptr::null(), 0) })?;
                Ok(String::new())
            }
        }
    }
}

fn text(text: &str) -> Result<CString> {
    CString::new(text).map_err(|_| Error::protocol(PEER, "text", "no zero byte", "one"))
}

fn check(call: &str, code: c_int) -> Result<()> {
    if code == SUCCESS {
        return Ok(());
    }
    Err(Error::Refused { peer: PEER.to_owned(), reason: format!("{call} failed with {code}") })
}

enum Command {
    Put(String, String),
    Fence,
    Get(u32, String),
    Finish,
}

/// A session with the launcher's PMIx server.
pub struct Pmix {
    commands: Sender<Command>,
    answers: Receiver<Result<String>>,
    rank: u32,
    size: u32,
    deadline: Deadline,
}

impl Pmix {
    /// Begins a session with the first usable one of these libraries; all that follows ends by `deadline`.
    pub fn start(candidates: &[String], deadline: Deadline) -> Result<Pmix> {
        let library = Library::open(candidates).map_err(|why| Error::config("PMIx", "libpmix.so.2", why))?;
        let (commands, obeyed) = channel::<Command>();
        let (answer, answers) = channel();
        let (begun, beginning) = channel();
        let serve = move || {
            let session = match Session::start(library) {
                Ok(session) => session,
                Err(error) => return drop(begun.send(Err(error))),
            };
            // A send fails when nobody waits any more; the next receive then ends the loop.
            let _ = begun.send(Ok((session.us.rank, session.size)));
            for command in obeyed {
                let _ = answer.send(session.obey(&command));
            }
        };
        let thread = std::thread::Builder::new().name("wl-pmix".to_owned()).spawn(serve);
        thread.map_err(|e| Error::io("start thread", "wl-pmix", e))?;
        let (rank, size) = within(&beginning, deadline, "to let this process in")?;
        Ok(Pmix { commands, answers, rank, size, deadline })
    }

    fn ask(&self, command: Command, what: &str) -> Result<String> {
        // If the thread is gone its channel of answers says so.
        let _ = self.commands.send(command);
        within(&self.answers, self.deadline, &format!("{what} (this is rank {} of {})", self.rank, self.size))
    }
}

fn within<T>(answers: &Receiver<Result<T>>, deadline: Deadline, what: &str) -> Result<T> {
    let waited_for = || format!("{PEER} {what}");
    let left = left(deadline, waited_for)?;
    match answers.recv_timeout(left) {
        Ok(answer) => answer,
        Err(std::sync::mpsc::RecvTimeoutError::Timeout) => {
            Err(Error::Timeout { waited_for: waited_for(), after: deadline.given() })
        }
        Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => {
            Err(Error::PeerLost { peer: PEER.to_owned(), reason: "its thread ended".to_owned() })
        }
    }
}

impl Board for Pmix {
    fn rank(&self) -> u32 {
        self.rank
    }

    fn size(&self) -> u32 {
        self.size
    }

    fn put(&mut self, key: &str, value: &str) -> Result<()> {
        self.ask(Command::Put(key.to_owned(), value.to_owned()), "to take a value").map(drop)
    }

    fn fence(&mut self) -> Result<()> {
        self.ask(Command::Fence, "to bring all ranks together").map(drop)
    }

    fn get(&mut self, rank: u32, key: &str) -> Result<String> {
        self.ask(Command::Get(rank, key.to_owned()), &format!("to give what rank {rank} put"))
    }

    fn finish(self: Box<Self>) -> Result<()> {
        self.ask(Command::Finish, "to let this process go").map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    #[test]
    fn a_library_that_is_none_is_named() {
        let soon = Deadline::after(Instant::now(), Duration::from_secs(60));
        let start = |name: &str| Pmix::start(&[name.to_owned()], soon).err().unwrap().to_string();
        assert_eq!(start("libnone.so"), "PMIx: expected libpmix.so.2, found libnone.so can't be opened");
        assert_eq!(start("libc.so.6"), "PMIx: expected libpmix.so.2, found libc.so.6 is no PMIx library");
    }

    #[test]
    fn a_server_that_hangs_ends_with_a_timeout() {
        let (_kept, answers) = channel::<Result<()>>();
        let deadline = Deadline::after(Instant::now(), Duration::from_millis(20));
        let error = within(&answers, deadline, "to answer").unwrap_err();
        assert!(matches!(error, Error::Timeout { .. }), "{error}");
    }
}
