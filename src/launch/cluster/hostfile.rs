//! Files that list hosts, as Open MPI, MPICH and Slurm write them.
//!
//! ```text
//! # a comment
//! n1 slots=4              Open MPI
//! n2:4                    MPICH
//! n[3-5,8],gpu[01-02]:2   Slurm's short form; the number holds for each of them
//! [fd00::7]:2             IPv6 in brackets, or bare without a number
//! me@n9                   whatever the remote shell takes for a host
//! ```

use std::net::Ipv6Addr;

use super::hostlist;
use super::roles::MOST_TASKS;
use crate::error::{Error, Result};

/// The longest file, in bytes.
pub const LONGEST: u64 = 1 << 20;

/// A host, in the order of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Host {
    name: String,
    slots: u32,
}

/// The hosts of a file, each once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hosts {
    hosts: Vec<Host>,
    /// Somewhere a number of slots stands, or a host stands more than once.
    counted: bool,
}

impl Hosts {
    /// Reads the text of the file that messages call `name`.
    pub fn parse(text: &str, name: &str) -> Result<Hosts> {
        let mut hosts = Hosts { hosts: Vec::new(), counted: false };
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.split('#').next().unwrap_or_default().trim();
            if !line.is_empty() {
                hosts.add(line).ok_or_else(|| {
                    let expected = "hosts such as n1, n1:4, n1 slots=4, n[1-3] or [fd00::1]:4";
                    Error::config(format!("{name}:{number}"), expected, line)
                })?;
            }
        }
        match hosts.slots() {
            0 => Err(Error::config(name, "a host", "none")),
            n if n > MOST_TASKS => Err(Error::config(name, format!("at most {MOST_TASKS} slots"), n)),
            _ => Ok(hosts),
        }
    }

    fn add(&mut self, line: &str) -> Option<()> {
        let mut words = line.split_whitespace();
        let list = words.next()?;
        let slots = words.next().map(|word| count(word.strip_prefix("slots=")?));
        if words.next().is_some() || slots == Some(None) {
            return None;
        }
        for item in hostlist::items(list)? {
            let (names, own) = names(item)?;
            let slots = match (own, slots.flatten()) {
                (Some(_), Some(_)) => return None,
                (own, line) => own.or(line),
            };
            for name in names {
                self.host(name, slots)?;
            }
        }
        Some(())
    }

    fn host(&mut self, name: String, slots: Option<u32>) -> Option<()> {
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-@:%".contains(c);
        // What begins with a dash would be an option of the remote shell.
        if name.is_empty() || name.starts_with('-') || !name.chars().all(plain) {
            return None;
        }
        self.counted |= slots.is_some();
        let slots = slots.unwrap_or(1);
        match self.hosts.iter_mut().find(|host| host.name == name) {
            Some(known) => {
                self.counted = true;
                known.slots = known.slots.checked_add(slots)?;
            }
            None => self.hosts.push(Host { name, slots }),
        }
        Some(())
    }

    fn slots(&self) -> u32 {
        self.hosts.iter().fold(0, |all, host| all.saturating_add(host.slots))
    }

    /// The hosts' names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.hosts.iter().map(|host| host.name.as_str())
    }

    /// How many tasks the file asks for, if it says so.
    pub fn tasks(&self) -> Option<u32> {
        self.counted.then(|| self.slots())
    }

    /// On which host each of so many tasks runs: the hosts' slots one after another. Hosts of which no number is known share the tasks
    /// evenly.
    pub fn deal(&self, tasks: u32) -> Result<Vec<&str>> {
        let (hosts, slots) = (self.hosts.len() as u32, self.slots());
        if self.counted && tasks > slots {
            let each: Vec<String> =
                self.hosts.iter().take(16).map(|h| format!("{} {}", h.name, h.slots)).collect();
            let found = format!("{slots}: {}", each.join(", "));
            return Err(Error::config("--hostfile", format!("slots for {tasks} processes"), found));
        }
        let share = |at: u32, host: &Host| match self.counted {
            true => host.slots,
            false => tasks / hosts + u32::from(at < tasks % hosts),
        };
        let dealt = (0..)
            .zip(&self.hosts)
            .flat_map(|(at, host)| std::iter::repeat_n(host.name.as_str(), share(at, host) as usize));
        Ok(dealt.take(tasks as usize).collect())
    }
}

/// The hosts of one item, and the number behind them.
fn names(item: &str) -> Option<(Vec<String>, Option<u32>)> {
    let v6 = |text: &str| text.split('%').next().is_some_and(|ip| ip.parse::<Ipv6Addr>().is_ok());
    if v6(item) {
        return Some((vec![item.to_owned()], None));
    }
    if let Some((ip, rest)) = item.strip_prefix('[').and_then(|item| item.split_once(']'))
        && v6(ip)
    {
        let slots = match rest.strip_prefix(':') {
            Some(digits) => Some(count(digits)?),
            None if rest.is_empty() => None,
            None => return None,
        };
        return Some((vec![ip.to_owned()], slots));
    }
    let (list, slots) = match item.split_once(':') {
        Some((list, digits)) => (list, Some(count(digits)?)),
        None => (item, None),
    };
    Some((hostlist::hosts(list).ok()?, slots))
}

/// A number of slots: digits only, at least 1.
fn count(digits: &str) -> Option<u32> {
    let plain = digits.bytes().all(|b| b.is_ascii_digit());
    plain.then(|| digits.parse().ok()).flatten().filter(|n| (1..=MOST_TASKS).contains(n))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> Hosts {
        Hosts::parse(text, "hosts").unwrap()
    }

    fn dealt(text: &str, tasks: u32) -> String {
        parse(text).deal(tasks).unwrap().join(" ")
    }

    #[test]
    fn every_way_of_writing_is_read() {
        let text = "# all of them\n\n n1 slots=2 # the first\nn2:2\r\nn[3-4],gpu[01-02]:2\n[fd00::7]:2\nfe80::1%eth0\nme@n9\n";
        let hosts = parse(text);
        let names: Vec<&str> = hosts.names().collect();
        assert_eq!(names, ["n1", "n2", "n3", "n4", "gpu01", "gpu02", "fd00::7", "fe80::1%eth0", "me@n9"]);
        let slots: Vec<u32> = hosts.hosts.iter().map(|host| host.slots).collect();
        assert_eq!(slots, [2, 2, 1, 1, 2, 2, 2, 1, 1]);
        assert_eq!(parse("n[1-2] slots=3").tasks(), Some(6));
    }

    #[test]
    fn slots_are_filled_in_order_and_hosts_without_any_share_evenly() {
        assert_eq!(dealt("a slots=2\nb slots=3", 4), "a a b b");
        assert_eq!(dealt("a\nb\nc", 7), "a a a b b c c");
        assert_eq!(dealt("a\nb\nc", 2), "a b");
        assert_eq!(dealt("a\na\nb", 3), "a a b", "as $PBS_NODEFILE counts");
        assert_eq!((parse("a\nb").tasks(), parse("a\nb\na").tasks()), (None, Some(3)));
    }

    #[test]
    fn what_does_not_fit_is_refused_with_the_arithmetic() {
        let error = parse("a slots=2\nb").deal(6).unwrap_err().to_string();
        assert_eq!(error, "--hostfile: expected slots for 6 processes, found 3: a 2, b 1");
    }

    #[test]
    fn what_is_no_hostfile_is_refused_with_its_line() {
        for bad in [
            "-oProxyCommand=x",
            "n1 slots=0",
            "n1 slots=",
            "n1 slots=+2",
            "n1:x",
            "n1:2:3",
            "n1:",
            "n1 2",
            "n[3-1]",
            "n1 slots=2 more",
            "n1:2 slots=2",
            "[fd00::7",
            "[fd00::7]x",
            "a;b",
            "a,,b",
            "$(x)",
            "n1 max_slots=4",
            "n1:4097",
        ] {
            let error = Hosts::parse(&format!("n0\n{bad}\n"), "hosts").unwrap_err().to_string();
            assert!(error.starts_with("hosts:2: expected hosts such as n1"), "{error}");
            assert!(error.ends_with(&format!("found {bad}")), "{error}");
        }
        assert!(Hosts::parse("# none\n", "hosts").unwrap_err().to_string().contains("a host, found none"));
        assert!(Hosts::parse("n[1-5000]", "hosts").unwrap_err().to_string().contains("at most 4096 slots"));
    }

    proptest! {
        #[test]
        fn any_text_ends_with_hosts_or_an_error(text in "[n0-9:@a \\[\\],=#slot\n%-]{0,40}") {
            if let Ok(hosts) = Hosts::parse(&text, "hosts") {
                let tasks = hosts.tasks().unwrap_or(7);
                prop_assert_eq!(hosts.deal(tasks).unwrap().len(), tasks as usize);
                prop_assert!(hosts.names().all(|name| !name.starts_with('-') && !name.contains(['[', ' '])));
            }
        }
    }
}
