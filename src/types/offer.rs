//! What a node can carry data by.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::config::TransportKind;

/// What one node can use, as it tells the Coordinator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// The best first.
    pub kinds: Vec<TransportKind>,
    /// Why not the others, where the user left the choice open.
    pub lacks: Vec<Lack>,
    /// The boot id of its kernel: nodes with the same one are on one host. Zeros where it is not known.
    pub host: [u8; 16],
}

/// Why a node can't use a transport.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lack {
    /// Of this kind.
    pub kind: TransportKind,
    /// There is no such thing in this build or on this machine, so nobody misses it. Else something is in its way.
    pub absent: bool,
    /// For messages; at most [`MAX_WHY`] bytes.
    pub why: String,
}

/// The longest reason of a lack, in bytes: a host with a hundred ports that are down has more to say.
pub const MAX_WHY: usize = 1024;

impl Lack {
    /// Of `kind`, for this reason, which is cut where it is long.
    pub fn new(kind: TransportKind, absent: bool, why: &str) -> Lack {
        Lack { kind, absent, why: shortened(why.to_owned(), MAX_WHY) }
    }
}

/// A text of at most `most` bytes, which says so where it was longer.
pub fn shortened(mut text: String, most: usize) -> String {
    const CUT: &str = " …";
    if text.len() > most {
        text.truncate(text.floor_char_boundary(most.saturating_sub(CUT.len())));
        text.push_str(CUT);
    }
    text
}

impl Offer {
    /// That of a node that says nothing.
    pub fn only(kind: TransportKind) -> Offer {
        Offer { kinds: vec![kind], lacks: Vec::new(), host: [0; 16] }
    }

    /// Whether it has this kind.
    pub fn has(&self, kind: TransportKind) -> bool {
        self.kinds.contains(&kind)
    }

    /// Why it does not have this kind, where it would like to.
    pub fn lack(&self, kind: TransportKind) -> Option<&Lack> {
        self.lacks.iter().find(|lack| lack.kind == kind)
    }

    /// Its node's host, where that is known.
    pub fn host(&self) -> Option<[u8; 16]> {
        Some(self.host).filter(|host| *host != [0; 16])
    }
}

impl fmt::Display for Offer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.kinds.iter().map(|kind| kind.name()).collect();
        f.write_str(&names.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_reason_is_cut() {
        let lack = Lack::new(TransportKind::Verbs, false, &"é".repeat(MAX_WHY));
        assert!(lack.why.len() <= MAX_WHY && lack.why.ends_with("é …"));
        assert_eq!(Lack::new(TransportKind::Verbs, false, "short").why, "short");
    }
}
