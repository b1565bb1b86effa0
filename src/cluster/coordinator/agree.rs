//! By what a job's data travels: the best that all of its nodes offer.

use super::*;

impl Coordinator {
    /// What a node offers. Those that say nothing have tcp.
    pub(super) fn offered(
        &mut self,
        link: u64,
        kinds: Vec<TransportKind>,
        lacks: String,
    ) -> Result<(), Fault> {
        let Some(node) = self.nodes.get_mut(&link) else { return Ok(()) };
        if node.joined {
            return Err("after Join".into());
        }
        (node.transports, node.lacks) = (kinds, lacks);
        Ok(())
    }

    /// What all nodes that have joined offer, and the one on `link`, the best first.
    fn common(&self, link: u64) -> Vec<TransportKind> {
        let asked = self.nodes.iter().filter(|(l, node)| node.joined || **l == link).map(|(_, node)| node);
        let all_have = |kind: &TransportKind| asked.clone().all(|node| node.transports.contains(kind));
        TransportKind::ALL.into_iter().filter(all_have).collect()
    }

    /// Refuses a node with which the others would have nothing in common.
    pub(super) fn check_offer(&self, link: u64) -> Result<(), String> {
        if !self.common(link).is_empty() {
            return Ok(());
        }
        let list = |kinds: &[TransportKind]| kinds.iter().map(|k| k.name()).collect::<Vec<_>>().join(", ");
        let ours = self.nodes.get(&link).map_or_else(String::new, |node| list(&node.transports));
        let other = self.nodes.values().find(|node| node.joined);
        let theirs =
            other.map_or_else(String::new, |n| format!("{} offers {}", n.identity, list(&n.transports)));
        Err(format!("it offers the transport {ours}, but {theirs}: give all nodes the same --transport"))
    }

    /// Whether all nodes can share memory where they are on one host, beside the transport that they use otherwise.
    pub(super) fn share_memory(&self, transport: TransportKind) -> bool {
        transport != TransportKind::Shm && self.common(u64::MAX).contains(&TransportKind::Shm)
    }

    /// What the job uses, and why nothing better when somebody offers that, or would like to.
    pub(super) fn agreed(&self) -> (TransportKind, String) {
        // Nobody's link: those that have joined are all there are. They have one in common, or would not have joined.
        let kind = self.common(u64::MAX).first().copied().unwrap_or(TransportKind::Tcp);
        let best = TransportKind::ALL[0];
        let mut joined = self.nodes.values().filter(|node| node.joined);
        let wanted = |node: &Node| node.transports.contains(&best) || !node.lacks.is_empty();
        if kind == best || !joined.clone().any(wanted) {
            return (kind, String::new());
        }
        let without = joined.find(|node| !node.transports.contains(&best));
        let why = without.map_or_else(String::new, |node| match node.lacks.as_str() {
            "" => format!("{} offers {} alone", node.identity, kind),
            lacks => format!("{}: {lacks}", node.identity),
        });
        (kind, reason(why))
    }
}
