//! How two connected queue pairs find out that the other is there, and is the right one.
//!
//! ```text
//!   first                                    second           (the active side is first; of two alike the larger address)
//!     │── proof(key, first, second) ──────────▶│  again from the start while the second is not yet connected
//!     │◀──────── proof(key, second, first) ────│  Connected, if the first's proof was right
//!   Connected, if the second's proof was right
//! ```
//! A queue pair accepts packets only after its own `connect`, so the first one's message may find nobody and be sent again
//! after the ACK timeout: it is best if the passive side connects before it gives its address away. When the retries are
//! used up, the queue pair is reset and the message sent again, until the time to connect is over. The proofs tie the
//! queue pairs to the control session that carried the addresses.

use std::time::{Duration, Instant};

use super::address::Address;
use crate::error::{Error, Result};
use crate::time::Deadline;
use crate::transport::{SessionKey, Side};

/// The number that a proof is sent with; messages of the layer above are sent without one.
pub const PROOF: u32 = 0x574c_5631;
/// The number that an empty message is sent with before a queue pair is closed. Only a courtesy: a peer that dies says
/// nothing.
pub const GOODBYE: u32 = 0x574c_5632;

/// What one end knows about its greeting.
#[derive(Debug)]
pub struct Greeting {
    /// Whether this end speaks first.
    pub first: bool,
    /// What it sends.
    pub proof: [u8; 32],
    expected: blake3::Hash,
    /// When the other must have been heard.
    pub deadline: Deadline,
}

impl Greeting {
    /// Between the ends of these addresses, who have `given` for it. Refused when both are one.
    pub fn new(
        local: &Address,
        remote: &Address,
        key: &SessionKey,
        peer: &str,
        given: Duration,
    ) -> Result<Greeting> {
        let (ours, theirs) = (local.encode(), remote.encode());
        if ours == theirs {
            return Err(Error::protocol(peer, "verbs address", "the peer's", "our own"));
        }
        Ok(Greeting {
            first: match (local.side, remote.side) {
                (Side::Active, Side::Passive) => true,
                (Side::Passive, Side::Active) => false,
                _ => ours > theirs,
            },
            proof: proof(key, &ours, &theirs).into(),
            expected: proof(key, &theirs, &ours),
            deadline: Deadline::after(Instant::now(), given),
        })
    }

    /// Whether the peer holds the same session key and means this pair of addresses. Takes the same time either way.
    pub fn accepts(&self, message: &[u8]) -> bool {
        <[u8; 32]>::try_from(message).is_ok_and(|m| self.expected == m)
    }
}

/// Keyed BLAKE3 over a label, the speaker's address and the listener's.
fn proof(key: &SessionKey, speaker: &[u8], listener: &[u8]) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new_keyed(key);
    hasher.update(b"windlass verbs greeting 1");
    hasher.update(speaker);
    hasher.update(listener);
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use super::super::GidKind;
    use super::*;

    fn address(number: u32) -> Address {
        Address {
            side: Side::Passive,
            kind: GidKind::RoceV2,
            mtu: 3,
            reads: 1,
            lid: 0,
            number,
            psn: 9,
            gid: [7; 16],
            max_message: 1 << 20,
        }
    }

    fn greeting(local: u32, remote: u32, key: u8) -> Greeting {
        Greeting::new(&address(local), &address(remote), &[key; 32], "peer", Duration::ZERO).unwrap()
    }

    #[test]
    fn each_accepts_only_the_other() {
        let (a, b) = (greeting(1, 2, 5), greeting(2, 1, 5));
        assert!(a.accepts(&b.proof) && b.accepts(&a.proof));
        assert_ne!(a.first, b.first);
        assert!(!a.accepts(&a.proof), "reflected");
        assert!(!a.accepts(&b.proof[..31]));
        assert!(!a.accepts(&greeting(2, 1, 6).proof), "another key");
        assert!(!a.accepts(&greeting(3, 1, 5).proof), "another queue pair");
    }

    #[test]
    fn the_active_side_is_first() {
        for (a, b) in [(1, 2), (2, 1)] {
            let (active, passive) = (Address { side: Side::Active, ..address(a) }, address(b));
            let first = |local: &Address, remote: &Address| {
                Greeting::new(local, remote, &[0; 32], "peer", Duration::ZERO).unwrap().first
            };
            assert!(first(&active, &passive));
            assert!(!first(&passive, &active));
        }
    }

    #[test]
    fn a_queue_pair_does_not_greet_itself() {
        assert!(Greeting::new(&address(1), &address(1), &[0; 32], "peer", Duration::ZERO).is_err());
    }
}
