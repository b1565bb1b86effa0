//! Which address a network interface has.

use std::net::IpAddr;

use crate::error::{Error, Result};

/// The address to bind for an interface given by name or IP address. IPv4 is preferred where a name has both.
pub fn resolve(text: &str) -> Result<IpAddr> {
    if let Ok(ip) = text.parse() {
        return Ok(ip);
    }
    let all = if_addrs::get_if_addrs().map_err(|e| Error::io("list network interfaces", text, e))?;
    let mut ours: Vec<IpAddr> = all.iter().filter(|i| i.name == text).map(|i| i.ip()).collect();
    ours.sort_by_key(|ip| !ip.is_ipv4());
    ours.first().copied().ok_or_else(|| {
        let mut names: Vec<&str> = all.iter().map(|i| i.name.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        Error::config("interface", format!("an IP address or one of {}", names.join(", ")), text)
    })
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
}
