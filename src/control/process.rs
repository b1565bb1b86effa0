//! Who this process is.

use crate::error::{Error, Result};
use crate::types::{Identity, Rank, Role};

/// This process's identity: host name and process id, and a fresh random incarnation.
pub fn this_process(role: Role, rank: Option<Rank>) -> Result<Identity> {
    let incarnation = getrandom::u64()
        .map_err(|e| Error::io("getrandom", "incarnation", std::io::Error::other(e.to_string())))?;
    // Only for messages; a system without this file is still served.
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_else(|_| "host".to_owned());
    let printable: String = host.trim().chars().filter(|c| !c.is_control()).take(64).collect();
    Ok(Identity { role, rank, incarnation, process: format!("{printable} pid {}", std::process::id()) })
}
