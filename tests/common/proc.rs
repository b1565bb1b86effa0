//! Processes and listening sockets, as /proc shows them.

use std::collections::BTreeSet;
use std::fs;

/// What a process of a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Server,
    Worker,
    /// The supervisor, its guard, and whatever has no rank.
    Other,
}

/// A living process with a test's mark.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    pub pid: i32,
    pub role: Role,
    pub rank: Option<u32>,
}

/// A listening TCP socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Listener {
    pub inode: u64,
    pub port: u16,
}

/// The living processes in whose environment `variable` is `value`.
pub fn members(variable: &str, value: &str) -> Vec<Member> {
    let marked = |pid: i32| {
        let environment = list(pid, "environ")?;
        if !environment.iter().any(|pair| pair.split_once('=') == Some((variable, value))) || !alive(pid) {
            return None;
        }
        let rank = environment
            .iter()
            .find_map(|pair| pair.strip_prefix("WINDLASS_RANK="))
            .and_then(|r| r.parse().ok());
        let arguments = list(pid, "cmdline")?;
        let role = match (rank, arguments.get(1).map(String::as_str)) {
            (None, _) => Role::Other,
            (Some(_), Some("server")) => Role::Server,
            (Some(_), _) => Role::Worker,
        };
        Some(Member { pid, role, rank })
    };
    let pids = fs::read_dir("/proc").unwrap().flatten().filter_map(|e| e.file_name().to_str()?.parse().ok());
    pids.filter_map(marked).collect()
}

/// Whether the process exists and is no zombie.
pub fn alive(pid: i32) -> bool {
    state(&format!("/proc/{pid}/stat")).is_some_and(|state| !matches!(state, 'Z' | 'X'))
}

/// Whether all its threads are stopped by a signal.
pub fn is_stopped(pid: i32) -> bool {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    threads.map(|thread| state(thread.path().join("stat").to_str().unwrap())).all(|state| state == Some('T'))
}

fn state(stat: &str) -> Option<char> {
    fs::read_to_string(stat).ok()?.rsplit(") ").next()?.chars().next()
}

/// The sockets on which these processes listen.
pub fn listeners(pids: impl IntoIterator<Item = i32>) -> BTreeSet<Listener> {
    let mut theirs = BTreeSet::new();
    for pid in pids {
        let Ok(files) = fs::read_dir(format!("/proc/{pid}/fd")) else { continue };
        theirs.extend(files.flatten().filter_map(|file| {
            let target = fs::read_link(file.path()).ok()?;
            target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse::<u64>().ok()
        }));
    }
    all_listeners().into_iter().filter(|listener| theirs.contains(&listener.inode)).collect()
}

/// All listening TCP sockets of this network namespace.
pub fn all_listeners() -> BTreeSet<Listener> {
    let tables =
        ["/proc/net/tcp", "/proc/net/tcp6"].map(|table| fs::read_to_string(table).unwrap_or_default());
    let listening = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let port = u16::from_str_radix(fields.get(1)?.rsplit_once(':')?.1, 16).ok()?;
        let is_listening = *fields.get(3)? == "0A";
        let inode = fields.get(9)?.parse().ok()?;
        is_listening.then_some(Listener { inode, port })
    };
    tables.iter().flat_map(|table| table.lines().skip(1)).filter_map(listening).collect()
}

/// A list of NUL-terminated texts.
fn list(pid: i32, file: &str) -> Option<Vec<String>> {
    let bytes = fs::read(format!("/proc/{pid}/{file}")).ok()?;
    Some(bytes.split(|byte| *byte == 0).map(|part| String::from_utf8_lossy(part).into_owned()).collect())
}
