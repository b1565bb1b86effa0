//! Which task does what. Pure: the same answer wherever it is asked.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};
use crate::types::{Rank, Role};

/// On which tasks the servers run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum ServersOn {
    /// The first of all.
    #[default]
    First,
    /// The first of each node, then the second of each, until there are enough.
    Spread,
    /// These.
    List(Vec<u32>),
}

/// The most tasks of a job, as of its nodes.
pub const MOST_TASKS: u32 = 4096;

impl FromStr for ServersOn {
    type Err = Error;

    fn from_str(text: &str) -> Result<ServersOn> {
        let refuse = || Error::config("servers-on", "first, spread or ranks such as 0,4-6", text);
        let range = |part: &str| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let bounds = (first.parse::<u32>().ok()?, last.parse::<u32>().ok()?);
            (bounds.0 <= bounds.1 && bounds.1 < MOST_TASKS).then_some(bounds.0..=bounds.1)
        };
        match text {
            "first" => Ok(ServersOn::First),
            "spread" => Ok(ServersOn::Spread),
            list => {
                let ranges: Option<Vec<_>> = list.split(',').map(range).collect();
                let mut tasks: Vec<u32> = ranges.ok_or_else(refuse)?.into_iter().flatten().collect();
                tasks.sort_unstable();
                if tasks.windows(2).any(|pair| pair[0] == pair[1]) {
                    return Err(refuse());
                }
                Ok(ServersOn::List(tasks))
            }
        }
    }
}

impl fmt::Display for ServersOn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ServersOn::First => f.write_str("first"),
            ServersOn::Spread => f.write_str("spread"),
            ServersOn::List(tasks) => {
                let tasks: Vec<String> = tasks.iter().map(u32::to_string).collect();
                f.write_str(&tasks.join(","))
            }
        }
    }
}

/// How many of each, as far as the user says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// `--servers`.
    pub servers: u32,
    /// `--workers`; all other tasks without it.
    pub workers: Option<u32>,
}

/// What the tasks are, by number, each with its rank among those of its role. `nodes` names each task's node.
pub fn assign(nodes: &[&str], counts: Counts, on: &ServersOn) -> Result<Vec<(Role, Rank)>> {
    let tasks = nodes.len() as u32;
    let Counts { servers, workers } = counts;
    let refuse = |expected: String| Error::config("--servers", expected, servers);
    if servers == 0 || servers >= tasks {
        let (most, host) = (tasks.saturating_sub(1), on_hosts(nodes));
        return Err(refuse(format!("1 to {most}, so that a worker is left of the {tasks} tasks{host}")));
    }
    if let Some(workers) = workers.filter(|workers| *workers != tasks - servers) {
        let expected =
            format!("{}: {tasks} tasks without {servers} servers{}", tasks - servers, on_hosts(nodes));
        return Err(Error::config("--workers", expected, workers));
    }
    let chosen = match on {
        ServersOn::First => (0..servers).collect(),
        ServersOn::Spread => spread(nodes, servers),
        ServersOn::List(list) => {
            let most = tasks - 1;
            if list.len() != servers as usize || list.iter().any(|task| *task > most) {
                let expected = format!("{servers} ranks (--servers) of 0 to {most}");
                return Err(Error::config("--servers-on", expected, on));
            }
            list.clone()
        }
    };
    let role = |task: u32| if chosen.contains(&task) { Role::Server } else { Role::Worker };
    Ok(ranked((0..tasks).map(role)))
}

/// What the tasks are that said it themselves. There must be a server and a worker among them.
pub fn announced(roles: &[Role], nodes: &[&str]) -> Result<Vec<(Role, Rank)>> {
    for (needed, start) in [(Role::Server, "windlass server"), (Role::Worker, "a worker's program")] {
        if !roles.contains(&needed) {
            let expected = format!("one {needed} at least: start {start} beside the others");
            let found = format!("{} of {} tasks{}", 0, roles.len(), on_hosts(nodes));
            return Err(Error::config(format!("{needed}s"), expected, found));
        }
    }
    Ok(ranked(roles.iter().copied()))
}

fn ranked(roles: impl Iterator<Item = Role>) -> Vec<(Role, Rank)> {
    let (mut servers, mut workers) = (0..MOST_TASKS, 0..MOST_TASKS);
    roles
        .map(|role| match role {
            Role::Server => (role, servers.next().unwrap_or_default()),
            _ => (role, workers.next().unwrap_or_default()),
        })
        .collect()
}

/// Round by round one task of each node that has one left.
fn spread(nodes: &[&str], servers: u32) -> Vec<u32> {
    let mut by_node: Vec<(&str, Vec<u32>)> = Vec::new();
    for (task, node) in (0..).zip(nodes) {
        match by_node.iter_mut().find(|(name, _)| name == node) {
            Some((_, tasks)) => tasks.push(task),
            None => by_node.push((node, vec![task])),
        }
    }
    let deepest = by_node.iter().map(|(_, tasks)| tasks.len()).max().unwrap_or(0);
    let rounds = (0..deepest).flat_map(|round| by_node.iter().filter_map(move |(_, tasks)| tasks.get(round)));
    rounds.copied().take(servers as usize).collect()
}

/// ` on n1, n2 and 3 more hosts`, for messages.
fn on_hosts(nodes: &[&str]) -> String {
    let mut names: Vec<&str> = nodes.to_vec();
    names.dedup();
    match names.as_slice() {
        [] => String::new(),
        [a] => format!(" on {a}"),
        [first @ .., last] if names.len() <= 3 => format!(" on {} and {last}", first.join(", ")),
        [a, b, rest @ ..] => format!(" on {a}, {b} and {} more hosts", rest.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn servers(nodes: &[&str], servers: u32, on: &str) -> Vec<u32> {
        let roles = assign(nodes, Counts { servers, workers: None }, &on.parse().unwrap()).unwrap();
        (0..).zip(&roles).filter(|(_, (role, _))| *role == Role::Server).map(|(task, _)| task).collect()
    }

    #[test]
    fn servers_go_where_they_are_wanted() {
        let two = ["a", "a", "a", "b", "b", "b"];
        assert_eq!(servers(&two, 2, "first"), [0, 1]);
        assert_eq!(servers(&two, 2, "spread"), [0, 3]);
        assert_eq!(servers(&two, 3, "spread"), [0, 1, 3]);
        assert_eq!(servers(&["a", "b", "a", "b"], 2, "spread"), [0, 1]);
        assert_eq!(servers(&["a", "b", "b", "b"], 3, "spread"), [0, 1, 2], "a node with one task only");
        assert_eq!(servers(&two, 3, "5,1-2"), [1, 2, 5]);
        let counts = Counts { servers: 2, workers: Some(4) };
        let ranks: Vec<u32> =
            assign(&two, counts, &"2,4".parse().unwrap()).unwrap().iter().map(|r| r.1).collect();
        assert_eq!(ranks, [0, 1, 0, 2, 1, 3]);
    }

    #[test]
    fn wrong_counts_are_refused_with_what_would_be_right() {
        let nodes = ["a", "a", "b"];
        let wrong = |servers, workers, on: &str| {
            assign(&nodes, Counts { servers, workers }, &on.parse().unwrap()).unwrap_err().to_string()
        };
        assert_eq!(
            wrong(3, None, "first"),
            "--servers: expected 1 to 2, so that a worker is left of the 3 tasks on a and b, found 3"
        );
        assert!(wrong(0, None, "first").contains("found 0"));
        assert_eq!(
            wrong(1, Some(4), "first"),
            "--workers: expected 2: 3 tasks without 1 servers on a and b, found 4"
        );
        assert!(wrong(2, None, "0").contains("2 ranks (--servers) of 0 to 2"));
        assert!(wrong(1, None, "3").contains("found 3"));
        for bad in ["", "x", "1-", "3-1", "0,0", "0-99999", "last"] {
            assert!(bad.parse::<ServersOn>().is_err(), "{bad}");
        }
        let alone = announced(&[Role::Worker; 6], &["n1"; 6]).unwrap_err().to_string();
        assert_eq!(
            alone,
            "servers: expected one server at least: start windlass server beside the others, found 0 of 6 tasks on n1"
        );
        assert!(announced(&[Role::Server], &["n1"]).is_err());
    }

    #[test]
    fn announced_roles_are_ranked_in_the_order_of_the_tasks() {
        use Role::{Server, Worker};
        let roles = announced(&[Worker, Server, Worker, Server], &["a"; 4]).unwrap();
        assert_eq!(roles, [(Worker, 0), (Server, 0), (Worker, 1), (Server, 1)]);
    }

    proptest! {
        #[test]
        fn every_rank_is_given_once(tasks in 2usize..40, servers in 1u32..39, nodes in proptest::collection::vec(0usize..5, 40)) {
            prop_assume!((servers as usize) < tasks);
            let names = ["a", "b", "c", "d", "e"];
            let nodes: Vec<&str> = nodes[..tasks].iter().map(|n| names[*n]).collect();
            for on in [ServersOn::First, ServersOn::Spread] {
                let roles = assign(&nodes, Counts { servers, workers: None }, &on).unwrap();
                for (role, count) in [(Role::Server, servers), (Role::Worker, tasks as u32 - servers)] {
                    let ranks: Vec<u32> = roles.iter().filter(|r| r.0 == role).map(|r| r.1).collect();
                    prop_assert_eq!(ranks, (0..count).collect::<Vec<_>>());
                }
            }
            // No node has two servers more than another that has a task left.
            let chosen = spread(&nodes, servers);
            let on = |name: &str| chosen.iter().filter(|t| nodes[**t as usize] == name).count();
            let all = |name: &str| nodes.iter().filter(|n| **n == name).count();
            for (a, b) in names.iter().flat_map(|a| names.iter().map(move |b| (a, b))) {
                prop_assert!(on(a) <= on(b) + 1 || on(b) == all(b));
            }
        }
    }
}
