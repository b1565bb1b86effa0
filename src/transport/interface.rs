//! Which address a network interface has, and which of ours is in a network.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use crate::error::{Error, Result};

/// What only joins containers or virtual machines of one host.
const VIRTUAL: [&str; 6] = ["docker", "virbr", "br-", "veth", "cni", "flannel"];

/// The address to bind for an interface given by name, by IP address, or by a network (`10.1.0.0/16`, `fd00::/64`) that it has an
/// address in. IPv4 is preferred where a name has both.
pub fn resolve(text: &str) -> Result<IpAddr> {
    if let Ok(ip) = text.parse() {
        return Ok(ip);
    }
    let all = all(text)?;
    if let Some((network, bits)) = text.split_once('/') {
        let network = network.parse::<IpAddr>().ok().zip(bits.parse::<u32>().ok());
        let fits = |(ip, bits): &(IpAddr, u32)| *bits <= if ip.is_ipv4() { 32 } else { 128 };
        let Some((network, bits)) = network.filter(fits) else {
            return Err(Error::config("interface", "a network such as 10.1.0.0/16", text));
        };
        let inside = all.iter().map(|i| i.ip()).find(|ip| within(*ip, network, bits));
        return inside.ok_or_else(|| {
            let ours: Vec<String> = all.iter().map(|i| i.ip().to_string()).collect();
            Error::config("interface", format!("a network with one of {}", ours.join(", ")), text)
        });
    }
    let mut ours: Vec<IpAddr> = all.iter().filter(|i| i.name == text).map(|i| i.ip()).collect();
    ours.sort_by_key(|ip| !ip.is_ipv4());
    ours.first().copied().ok_or_else(|| {
        let mut names: Vec<&str> = all.iter().map(|i| i.name.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        Error::config("interface", format!("an IP address, a network or one of {}", names.join(", ")), text)
    })
}

/// All addresses of this host.
pub fn addresses() -> Result<Vec<IpAddr>> {
    Ok(all("all")?.iter().map(|i| i.ip()).collect())
}

/// The address by which other hosts are most likely to reach this one: the first of a real interface, IPv4 before IPv6; loopback
/// when there is none.
pub fn outward() -> Result<IpAddr> {
    let link_local = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    let all = all("all")?;
    let real = all.iter().filter(|i| !i.is_loopback() && !VIRTUAL.iter().any(|v| i.name.starts_with(v)));
    let mut ours: Vec<IpAddr> = real.map(|i| i.ip()).filter(|ip| !link_local(*ip)).collect();
    ours.sort_by_key(|ip| !ip.is_ipv4());
    Ok(ours.first().copied().unwrap_or(IpAddr::from([127, 0, 0, 1])))
}

/// The address of ours from which packets to `peer` leave.
pub fn facing(peer: SocketAddr) -> Result<IpAddr> {
    let failed = |e| Error::io("find a way to", peer, e);
    let any: IpAddr =
        if peer.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    // Connecting a datagram socket sends nothing; it only asks for the route.
    let socket = UdpSocket::bind((any, 0)).map_err(failed)?;
    socket.connect(peer).map_err(failed)?;
    socket.local_addr().map(|ours| ours.ip()).map_err(failed)
}

fn all(subject: &str) -> Result<Vec<if_addrs::Interface>> {
    if_addrs::get_if_addrs().map_err(|e| Error::io("list network interfaces", subject, e))
}

/// Whether the first `bits` bits are the same.
fn within(ip: IpAddr, network: IpAddr, bits: u32) -> bool {
    let same = |a: u128, b: u128, width: u32| bits == 0 || (a ^ b) >> (width - bits) == 0;
    match (ip, network) {
        (IpAddr::V4(a), IpAddr::V4(b)) => same(a.to_bits().into(), b.to_bits().into(), 32),
        (IpAddr::V6(a), IpAddr::V6(b)) => same(a.to_bits(), b.to_bits(), 128),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_addresses() {
        assert!(resolve("lo").unwrap().is_loopback());
        assert_eq!(resolve("::1").unwrap().to_string(), "::1");
        assert!(resolve("nosuch0").unwrap_err().to_string().contains("lo"));
    }

    #[test]
    fn networks() {
        for ours in ["127.0.0.0/8", "127.0.0.1/32", "::1/128"] {
            assert!(resolve(ours).unwrap().is_loopback(), "{ours}");
        }
        let error = resolve("198.51.100.0/24").unwrap_err().to_string();
        assert!(error.contains("a network with one of ") && error.contains("127.0.0.1"), "{error}");
        for bad in ["127.0.0.0/33", "127.0.0.0/", "/8", "lo/8", "::/129", "127.0.0.0/-1"] {
            assert!(resolve(bad).unwrap_err().to_string().contains("such as 10.1.0.0/16"), "{bad}");
        }
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        assert!(within(ip("10.1.255.9"), ip("10.1.0.0"), 16) && !within(ip("10.2.0.1"), ip("10.1.0.0"), 16));
        assert!(within(ip("fd00::9"), ip("fd00::"), 64) && !within(ip("10.0.0.1"), ip("::"), 0));
        assert!(within(ip("9.9.9.9"), ip("0.0.0.0"), 0));
        assert!(addresses().unwrap().contains(&outward().unwrap()));
        assert!(facing("127.0.0.1:9".parse().unwrap()).unwrap().is_loopback());
    }
}
