//! What the supervisor of a job on several hosts tells a process behind a remote shell, through its standard input.
//!
//! ```text
//!  17  "windlass order 1\n"      so that what a login shell put there is not taken for one
//!   4  length n, little-endian
//!   n  the Order, in the order of its fields (postcard)
//!   1  a signal, as often as one comes
//!      the end: the process is to end
//! ```
//! So neither the secret nor an argument stands on a command line, and no shell reads what would have to be quoted.

use std::ffi::OsString;
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use crate::error::{Error, Result};
use crate::proto::bootstrap::Bootstrap;

const MAGIC: &[u8; 17] = b"windlass order 1\n";
/// The longest order, in bytes: more than a system takes for a command line with its environment.
const LONGEST: usize = 16 << 20;

/// What a process on another host is to do.
#[derive(Clone, PartialEq, Eq)]
pub struct Order {
    /// Where the supervisor is, and the job's secret.
    pub leader: Bootstrap,
    /// The process's number among those of the job.
    pub task: u32,
    /// How many there are.
    pub tasks: u32,
    /// What the supervisor calls the host.
    pub node: String,
    /// Seconds in which the process must have checked in with the supervisor.
    pub launch_timeout: u64,
    /// The folder to work in.
    pub folder: OsString,
    /// The command line.
    pub command: Vec<OsString>,
    /// Variables of its environment.
    pub variables: Vec<(String, String)>,
}

/// An order as it is sent.
type Sent = (Vec<u8>, u32, u32, String, u64, Vec<u8>, Vec<Vec<u8>>, Vec<(String, String)>);

impl Order {
    /// As it is sent.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let Order { leader, task, tasks, node, launch_timeout, folder, command, variables } = self.clone();
        let command = command.into_iter().map(OsString::into_vec).collect();
        let leader = leader.to_bytes().to_vec();
        let sent: Sent = (leader, task, tasks, node, launch_timeout, folder.into_vec(), command, variables);
        let failed =
            |e: postcard::Error| Error::io("encode", "an order", std::io::Error::other(e.to_string()));
        let body = postcard::to_stdvec(&sent).map_err(failed)?;
        if body.len() > LONGEST {
            let resource = "bytes of a command line with its variables".to_owned();
            return Err(Error::Limit { resource, limit: LONGEST as u64, asked: body.len() as u64 });
        }
        Ok([&MAGIC[..], &(body.len() as u32).to_le_bytes(), &body].concat())
    }

    /// Reads one, and nothing of what comes behind it.
    pub fn read(input: &mut impl Read) -> Result<Order> {
        let wrong =
            |found: &str| Error::config("standard input", "an order of windlass run --hostfile", found);
        let mut fill = |bytes: &mut [u8]| input.read_exact(bytes).map_err(|e| wrong(&e.to_string()));
        let (mut magic, mut length) = ([0; MAGIC.len()], [0; 4]);
        fill(&mut magic)?;
        if magic != *MAGIC {
            return Err(wrong("something else"));
        }
        fill(&mut length)?;
        let length = u32::from_le_bytes(length) as usize;
        if length > LONGEST {
            return Err(wrong(&format!("one of {length} bytes")));
        }
        let mut body = vec![0; length];
        fill(&mut body)?;
        let sent: Sent = postcard::from_bytes(&body).map_err(|e| wrong(&e.to_string()))?;
        let (leader, task, tasks, node, launch_timeout, folder, command, variables) = sent;
        let command = command.into_iter().map(OsString::from_vec).collect();
        let (leader, folder) = (Bootstrap::from_bytes(&leader)?, OsString::from_vec(folder));
        Ok(Order { leader, task, tasks, node, launch_timeout, folder, command, variables })
    }
}

/// A path as one word of a command line, for whatever shell reads it: in single quotes nothing means anything to any of them.
pub fn quoted(path: &std::path::Path) -> OsString {
    let mut word = vec![b'\''];
    for byte in path.as_os_str().as_bytes() {
        match byte {
            b'\'' => word.extend(b"'\\''"),
            byte => word.push(*byte),
        }
    }
    word.push(b'\'');
    OsString::from_vec(word)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::secret::Secret;

    fn order() -> Order {
        let leader = Bootstrap::new(([10, 0, 0, 1], 7).into(), Secret::generate().unwrap(), "job", "head");
        Order {
            leader: leader.unwrap(),
            task: 3,
            tasks: 6,
            node: "n2".into(),
            launch_timeout: 30,
            folder: "/a folder".into(),
            command: vec!["./worker".into(), OsString::from_vec(b"a b'\"$(x)\n\xff;".to_vec()), "".into()],
            variables: vec![("WINDLASS_LOG".into(), "a=b, \n\"c\"".into())],
        }
    }

    #[test]
    fn an_order_arrives_as_it_was_given_and_what_follows_stays() {
        let sent = [order().to_bytes().unwrap(), vec![15, 9]].concat();
        let mut input = &sent[..];
        let given = order();
        let read = Order::read(&mut input).unwrap();
        assert!(
            read.command == given.command && read.variables == given.variables && read.folder == given.folder
        );
        assert_eq!((read.task, read.tasks, read.node, read.launch_timeout), (3, 6, "n2".to_owned(), 30));
        assert_eq!((read.leader.address(), read.leader.job()), (given.leader.address(), "job"));
        assert_eq!(input, [15, 9]);
    }

    #[test]
    fn what_is_no_order_is_refused() {
        let sent = order().to_bytes().unwrap();
        let error = |bytes: &[u8]| Order::read(&mut &bytes[..]).err().unwrap().to_string();
        assert!(error(b"Welcome to n2, the host of hosts").contains("an order of windlass run --hostfile"));
        let long = [&MAGIC[..], &u32::MAX.to_le_bytes()].concat();
        assert!(error(&long).contains("one of 4294967295 bytes"));
        for length in 0..sent.len() {
            error(&sent[..length]);
        }
        for byte in MAGIC.len() + 4..sent.len() {
            let mut flipped = sent.clone();
            flipped[byte] ^= 0xff;
            // It may be another order, but no panic.
            let _ = Order::read(&mut &flipped[..]);
        }
    }

    #[test]
    fn a_quoted_path_is_one_word() {
        let path = "/it's a $HOME;`x`/\"windlass\"";
        let command = format!("printf %s {}", quoted(path.as_ref()).to_str().unwrap());
        let output = std::process::Command::new("sh").args(["-c", &command]).output().unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), path);
    }
}
