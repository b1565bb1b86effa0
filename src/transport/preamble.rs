//! How two ends prove to each other that they hold the same session key, before any frame. Bytes only; no sockets.
//!
//! ```text
//! active ── dial   magic u8 × 4, version u16, reserved u16, endpoint index u32, generation u32, nonce 32 ─▶ passive
//!        ◀─ nonce  32 bytes ──────────────────────────────────────────────────────────────────────────────
//!        ── proof  32 bytes ─────────────────────────────────────────────────────────────────────────────▶
//!        ◀─ proof  32 bytes ──────────────────────────────────────────────────────────────────────────────
//! ```
//! A proof is BLAKE3 keyed with the session key over a label that names the side, the whole dial, and the passive
//! side's nonce. The key never travels; a recorded proof is worthless against fresh nonces, and the label keeps one
//! side's proof from being sent back as the other's.

use std::fmt;

use crate::error::{Error, Result};
use crate::transport::{EndpointId, SessionKey, Side};

/// Size of the first message in bytes.
pub(super) const DIAL: usize = 48;
/// Size of a nonce and of a proof in bytes.
pub(super) const NONCE: usize = 32;

/// What a dial begins with, by what the connection is.
pub(super) type Magic = [u8; 4];
/// Over TCP.
pub(super) const TCP: Magic = *b"WLTC";
/// Over shared memory.
pub(super) const SHM: Magic = *b"WLSH";

const VERSION: u16 = 1;

/// A session key that no debug output shows.
#[derive(Clone, Copy)]
pub(super) struct Secret(pub SessionKey);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// Fresh random bytes.
pub(super) fn nonce() -> Result<[u8; NONCE]> {
    let mut out = [0; NONCE];
    getrandom::fill(&mut out)
        .map_err(|e| Error::io("getrandom", "a nonce", std::io::Error::other(e.to_string())))?;
    Ok(out)
}

/// The first message, for `endpoint` of the passive side.
pub(super) fn dial(magic: Magic, endpoint: EndpointId, nonce: &[u8; NONCE]) -> [u8; DIAL] {
    let mut out = [0; DIAL];
    out[0..4].copy_from_slice(&magic);
    out[4..6].copy_from_slice(&VERSION.to_le_bytes());
    out[8..12].copy_from_slice(&endpoint.index.to_le_bytes());
    out[12..16].copy_from_slice(&endpoint.generation.to_le_bytes());
    out[16..48].copy_from_slice(nonce);
    out
}

/// Which endpoint a first message is for; `None` when it is not a dial of this version.
pub(super) fn dialled(magic: Magic, bytes: &[u8; DIAL]) -> Option<EndpointId> {
    let [m0, m1, m2, m3, v0, v1, 0, 0, i0, i1, i2, i3, g0, g1, g2, g3, ..] = *bytes else {
        return None;
    };
    if [m0, m1, m2, m3] != magic || u16::from_le_bytes([v0, v1]) != VERSION {
        return None;
    }
    Some(EndpointId {
        index: u32::from_le_bytes([i0, i1, i2, i3]),
        generation: u32::from_le_bytes([g0, g1, g2, g3]),
    })
}

/// The proof that `side` owes. Comparing two [`blake3::Hash`] takes constant time.
pub(super) fn proof(key: &Secret, side: Side, dial: &[u8; DIAL], nonce: &[u8; NONCE]) -> blake3::Hash {
    let label: &[u8; 32] = match side {
        Side::Active => b"windlass tcp preamble 1: active ",
        Side::Passive => b"windlass tcp preamble 1: passive",
    };
    let mut hasher = blake3::Hasher::new_keyed(&key.0);
    hasher.update(label).update(dial).update(nonce);
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: EndpointId = EndpointId { index: 0x0201, generation: 3 };

    #[test]
    fn golden_dial() {
        let bytes = dial(TCP, ID, &[9; 32]);
        assert_eq!(bytes[..16], [b'W', b'L', b'T', b'C', 1, 0, 0, 0, 1, 2, 0, 0, 3, 0, 0, 0]);
        assert_eq!(bytes[16..], [9; 32]);
        assert_eq!(dialled(TCP, &bytes), Some(ID));
        assert_eq!(dialled(SHM, &bytes), None);
        for at in 0..8 {
            let mut other = bytes;
            other[at] ^= 1;
            assert_eq!(dialled(TCP, &other), None, "byte {at}");
        }
    }

    #[test]
    fn a_proof_depends_on_everything() {
        let (key, first, second) = (Secret([1; 32]), dial(TCP, ID, &[2; 32]), [3; 32]);
        let proved = proof(&key, Side::Active, &first, &second);
        assert_eq!(proved, proof(&key, Side::Active, &first, &second));
        let other = EndpointId { generation: 4, ..ID };
        for different in [
            proof(&Secret([9; 32]), Side::Active, &first, &second),
            proof(&key, Side::Passive, &first, &second),
            proof(&key, Side::Active, &dial(TCP, ID, &[9; 32]), &second),
            proof(&key, Side::Active, &dial(TCP, other, &[2; 32]), &second),
            proof(&key, Side::Active, &dial(SHM, ID, &[2; 32]), &second),
            proof(&key, Side::Active, &first, &[9; 32]),
        ] {
            assert_ne!(proved, different);
        }
    }
}
