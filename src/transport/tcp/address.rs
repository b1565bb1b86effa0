//! What `open` hands out for the other end to dial.
//!
//! ```text
//! active   0
//! passive  4 or 6, IP address (4 or 16 bytes, network order), port u16, endpoint index u32, generation u32 (little-endian)
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::transport::EndpointId;

/// The address of the side that dials: there is nothing to dial.
pub(super) const ACTIVE: &[u8] = &[0];

/// The address of an endpoint that waits behind a listener.
pub(super) fn encode(listener: SocketAddr, endpoint: EndpointId) -> Vec<u8> {
    let mut out = Vec::with_capacity(27);
    match listener.ip() {
        IpAddr::V4(ip) => {
            out.push(4);
            out.extend_from_slice(&ip.octets());
        }
        IpAddr::V6(ip) => {
            out.push(6);
            out.extend_from_slice(&ip.octets());
        }
    }
    out.extend_from_slice(&listener.port().to_le_bytes());
    out.extend_from_slice(&endpoint.index.to_le_bytes());
    out.extend_from_slice(&endpoint.generation.to_le_bytes());
    out
}

/// The inverse of [`encode`]; `None` for anything else.
pub(super) fn decode(bytes: &[u8]) -> Option<(SocketAddr, EndpointId)> {
    let (&family, rest) = bytes.split_first()?;
    let (ip, rest): (IpAddr, _) = match family {
        4 => {
            let (ip, rest) = rest.split_first_chunk::<4>()?;
            (Ipv4Addr::from(*ip).into(), rest)
        }
        6 => {
            let (ip, rest) = rest.split_first_chunk::<16>()?;
            (Ipv6Addr::from(*ip).into(), rest)
        }
        _ => return None,
    };
    let (port, rest) = rest.split_first_chunk::<2>()?;
    let (index, rest) = rest.split_first_chunk::<4>()?;
    let generation: [u8; 4] = rest.try_into().ok()?;
    let endpoint =
        EndpointId { index: u32::from_le_bytes(*index), generation: u32::from_le_bytes(generation) };
    Some((SocketAddr::new(ip, u16::from_le_bytes(*port)), endpoint))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_bytes_and_nothing_else() {
        let id = EndpointId { index: 0x0403_0201, generation: 5 };
        let bytes = encode("10.1.2.3:258".parse().unwrap(), id);
        assert_eq!(bytes, [4, 10, 1, 2, 3, 2, 1, 1, 2, 3, 4, 5, 0, 0, 0]);
        assert_eq!(decode(&bytes), Some(("10.1.2.3:258".parse().unwrap(), id)));
        let six = encode("[::1]:9".parse().unwrap(), id);
        assert_eq!(six.len(), 27);
        assert_eq!(decode(&six), Some(("[::1]:9".parse().unwrap(), id)));
        assert_eq!(decode(ACTIVE), None);
        for cut in 0..six.len() {
            assert_eq!(decode(&six[..cut]), None);
        }
        assert_eq!(decode(&[six.as_slice(), &[0]].concat()), None);
    }
}
