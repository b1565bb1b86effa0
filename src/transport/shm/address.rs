//! What `open` hands out for the other end to dial.
//!
//! ```text
//! active   0
//! passive  1, boot id (16 bytes), socket (16 random bytes), endpoint index u32, generation u32 (little-endian)
//! ```
//! The boot id says which kernel the socket is one of. The name is one of a network namespace: whoever can't dial it is in another.

use crate::error::{Error, Result};
use crate::transport::EndpointId;

/// The address of the side that dials: there is nothing to dial.
pub(super) const ACTIVE: &[u8] = &[0];

/// Tells one start of one kernel from all others.
pub(super) type BootId = [u8; 16];
/// Names a listener.
pub(super) type Name = [u8; 16];

/// Where a passive endpoint waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Address {
    pub boot: BootId,
    pub name: Name,
    pub endpoint: EndpointId,
}

impl Address {
    /// The bytes on the wire.
    pub fn encode(&self) -> Vec<u8> {
        let (index, generation) = (self.endpoint.index.to_le_bytes(), self.endpoint.generation.to_le_bytes());
        [&[1], &self.boot[..], &self.name, &index, &generation].concat()
    }

    /// The inverse of [`Address::encode`]; `None` for anything else.
    pub fn decode(bytes: &[u8]) -> Option<Address> {
        let (boot, rest) = bytes.strip_prefix(&[1])?.split_first_chunk::<16>()?;
        let (name, rest) = rest.split_first_chunk::<16>()?;
        let (index, rest) = rest.split_first_chunk::<4>()?;
        let generation: [u8; 4] = rest.try_into().ok()?;
        let endpoint =
            EndpointId { index: u32::from_le_bytes(*index), generation: u32::from_le_bytes(generation) };
        Some(Address { boot: *boot, name: *name, endpoint })
    }
}

/// This kernel's boot id.
pub fn boot_id() -> Result<BootId> {
    const FILE: &str = "/proc/sys/kernel/random/boot_id";
    let text = std::fs::read_to_string(FILE).map_err(|e| Error::io("read", FILE, e))?;
    parse(&text).ok_or_else(|| Error::config(FILE, "32 hexadecimal digits", text.trim()))
}

fn parse(text: &str) -> Option<BootId> {
    let digits: String = text.trim().chars().filter(|c| *c != '-').collect();
    Some(u128::from_str_radix(&digits, 16).ok().filter(|_| digits.len() == 32)?.to_be_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_bytes_and_nothing_else() {
        let endpoint = EndpointId { index: 0x0403_0201, generation: 5 };
        let address = Address { boot: [7; 16], name: [9; 16], endpoint };
        let bytes = address.encode();
        assert_eq!(bytes, [&[1][..], &[7; 16], &[9; 16], &[1, 2, 3, 4, 5, 0, 0, 0]].concat());
        assert_eq!(Address::decode(&bytes), Some(address));
        assert_eq!(Address::decode(ACTIVE), None);
        for cut in 0..bytes.len() {
            assert_eq!(Address::decode(&bytes[..cut]), None);
        }
        assert_eq!(Address::decode(&[&bytes[..], &[0]].concat()), None);
    }

    #[test]
    fn a_boot_id_is_32_digits() {
        let parsed = parse("00112233-4455-6677-8899-aabbccddeeff\n").unwrap();
        assert_eq!(parsed[..3], [0, 0x11, 0x22]);
        assert_eq!(parse("00112233"), None);
        assert_eq!(boot_id().unwrap(), boot_id().unwrap());
    }
}
