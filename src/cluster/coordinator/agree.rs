//! By what a job's data travels: the best that all of its nodes offer.

use super::*;

impl Coordinator {
    /// What a node offers. Those that say nothing have tcp.
    pub(super) fn offered(&mut self, link: u64, offer: Offer) -> Result<(), Fault> {
        let Some(node) = self.nodes.get_mut(&link) else { return Ok(()) };
        if node.joined {
            return Err("after Join".into());
        }
        node.offer = offer;
        Ok(())
    }

    /// What all nodes that have joined offer, and the one on `link`, the best first.
    fn common(&self, link: u64) -> Vec<TransportKind> {
        let asked = self.nodes.iter().filter(|(l, node)| node.joined || **l == link).map(|(_, node)| node);
        let all_have = |kind: &TransportKind| asked.clone().all(|node| node.offer.has(*kind));
        TransportKind::ALL.into_iter().filter(all_have).collect()
    }

    /// Refuses a node with which the others would have nothing in common.
    pub(super) fn check_offer(&self, link: u64) -> Result<(), String> {
        if !self.common(link).is_empty() {
            return Ok(());
        }
        let ours = self.nodes.get(&link).map_or_else(String::new, |node| node.offer.to_string());
        let other = self.nodes.values().find(|node| node.joined);
        let theirs = other.map_or_else(String::new, |n| format!("{} offers {}", n.identity, n.offer));
        Err(format!("it offers the transport {ours}, but {theirs}: give all nodes the same --transport"))
    }

    /// What the job uses, whether nodes on one host share memory beside it, and why nothing better where that is worth a word.
    pub(super) fn agreed(&self) -> (TransportKind, bool, String) {
        // Nobody's link: those that have joined are all there are. They have one in common, or would not have joined.
        let common = self.common(u64::MAX);
        let kind = common.first().copied().unwrap_or(TransportKind::Tcp);
        let near = kind != TransportKind::Shm && self.has_neighbours();
        let local = near && common.contains(&TransportKind::Shm);
        let mut missed = Vec::new();
        if kind != TransportKind::Verbs {
            missed.extend(self.missed(TransportKind::Verbs));
        }
        if near && !local {
            missed.extend(self.missed(TransportKind::Shm));
        }
        let why = missed.join("; ");
        (kind, local, if why.is_empty() { why } else { reason(why) })
    }

    /// Whether some worker is on the host of a server. Where none is, to put all that is sent where it could be shown costs memory and
    /// files, and wins nothing.
    fn has_neighbours(&self) -> bool {
        let hosts = |role| {
            let of = self.nodes.values().filter(move |n| n.joined && n.identity.role == role);
            of.filter_map(|node| node.offer.host())
        };
        let servers: BTreeSet<_> = hosts(Role::Server).collect();
        hosts(Role::Worker).any(|host| servers.contains(&host))
    }

    /// Who is in the way of a kind that some node offers, or would but for something that is in its way.
    fn missed(&self, kind: TransportKind) -> Option<String> {
        let mut joined = self.nodes.values().filter(|node| node.joined);
        let wants = |n: &Node| n.offer.has(kind) || n.offer.lack(kind).is_some_and(|lack| !lack.absent);
        if !joined.clone().any(wants) {
            return None;
        }
        let without = joined.find(|node| !node.offer.has(kind))?;
        let who = &without.identity;
        Some(match without.offer.lack(kind) {
            Some(lack) => format!("no {kind}: {who}: {}", lack.why),
            None => format!("no {kind}: {who} offers {} alone", without.offer),
        })
    }
}
