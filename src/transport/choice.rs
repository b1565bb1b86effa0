//! What a node can carry data by, and how a transport of a kind is made.
//!
//! All connections of a job are of one kind, but for those within one host, which share memory where all nodes can. Each node offers what it can use, the Coordinator takes the best of what all of them offer
//! and says so with the View. A node that is told to use one kind offers nothing else, and fails at once where it can't.

use std::fmt;

#[cfg(feature = "verbs")]
use super::rails::Rails;
use super::several::Several;
use super::shm::{self, Shm, ShmConfig};
use super::topology::RailPort;
#[cfg(feature = "verbs")]
use super::verbs::{self, Verbs, VerbsConfig};
use super::{Transport, tcp};
use crate::config::{Network, TransportChoice, TransportKind};
#[cfg(any(test, not(feature = "verbs")))]
use crate::error::Error;
use crate::error::Result;

/// What one node can use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// The best first.
    pub kinds: Vec<TransportKind>,
    /// Why not what is better, where the choice was left to us; else empty.
    pub lacks: String,
}

impl Offer {
    /// What a node uses that is told of no agreement.
    pub fn best(&self) -> Agreed {
        Agreed { kind: self.kinds[0], local: false }
    }
}

/// What a job uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Agreed {
    /// What reaches every node.
    pub kind: TransportKind,
    /// Nodes on one host share memory instead.
    pub local: bool,
}

impl fmt::Display for Agreed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind.name())?;
        f.write_str(if self.local { ", and by shared memory within a host" } else { "" })
    }
}

/// What this build and this machine can give of what `network` allows.
pub fn offer(network: &Network) -> Result<Offer> {
    offer_by(network.transport, |kind| check(network, kind))
}

fn offer_by(choice: TransportChoice, check: impl Fn(TransportKind) -> Result<()>) -> Result<Offer> {
    match choice {
        TransportChoice::Only(kind) => {
            check(kind).map(|()| Offer { kinds: vec![kind], lacks: String::new() })
        }
        TransportChoice::Auto => {
            let (mut kinds, mut lacks) = (Vec::new(), Vec::new());
            for kind in TransportKind::ALL {
                match check(kind) {
                    Ok(()) => kinds.push(kind),
                    Err(error) => lacks.push(error.to_string()),
                }
            }
            Ok(Offer { kinds, lacks: lacks.join("; ") })
        }
    }
}

/// Refuses a kind that this build or machine can't give, with what is missing.
fn check(network: &Network, kind: TransportKind) -> Result<()> {
    match kind {
        TransportKind::Tcp => Ok(()),
        #[cfg(feature = "verbs")]
        TransportKind::Verbs => super::verbs::check(network),
        #[cfg(not(feature = "verbs"))]
        TransportKind::Verbs => without_verbs(network),
        TransportKind::Shm => shm::check(),
    }
}

/// For whom a transport is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seat {
    /// Who dials: it reaches every rail.
    Dials,
    /// A server thread, which is dialled, by its number among those of its host: it sits on one rail.
    Listens(u32),
}

/// Where a server thread with this number among those of its host sits when there are so many rails: on which one, and which completion
/// vector of its device it has, which is its number among those on that rail.
pub fn place(number: u32, rails: usize) -> (usize, u32) {
    let rails = rails.max(1);
    (number as usize % rails, (number as usize / rails) as u32)
}

/// The rails of this process: what verbs would use, where it offers verbs. Warns of ports of the user's list that can't be one.
pub fn rails(network: &Network, kinds: &[TransportKind]) -> Result<Vec<RailPort>> {
    if !kinds.contains(&TransportKind::Verbs) {
        return Ok(Vec::new());
    }
    #[cfg(feature = "verbs")]
    {
        let (rails, unusable) = verbs::rails(&network.rdma)?;
        for error in unusable {
            tracing::warn!("rdma_device {}: one is no rail: {error}", network.rdma.device);
        }
        Ok(rails)
    }
    #[cfg(not(feature = "verbs"))]
    without_verbs(network)
}

/// What a job has agreed on, for one thread.
pub fn build_agreed(network: &Network, agreed: Agreed, seat: Seat) -> Result<Box<dyn Transport>> {
    let mut transport = build(network, agreed.kind, seat)?;
    if agreed.local {
        add_memory(network, &mut transport, seat != Seat::Dials)?;
    }
    Ok(transport)
}

/// Puts shared memory beside a transport that has neither endpoints nor arenas.
pub fn add_memory(network: &Network, transport: &mut Box<dyn Transport>, listen: bool) -> Result<()> {
    // Something has to stand in its place while the two are joined.
    let config = ShmConfig::of(&network.limits);
    let wide = std::mem::replace(transport, Box::new(Shm::new(config.clone(), false)?));
    *transport = Box::new(Several::new(Shm::new(config, listen)?, wide)?);
    Ok(())
}

/// A transport of `kind` for one thread.
pub fn build(network: &Network, kind: TransportKind, seat: Seat) -> Result<Box<dyn Transport>> {
    let listen = seat != Seat::Dials;
    match kind {
        TransportKind::Shm => Ok(Box::new(Shm::new(ShmConfig::of(&network.limits), listen)?)),
        TransportKind::Tcp => Ok(Box::new(tcp::Tcp::new(tcp::TcpConfig::of(network, listen))?)),
        #[cfg(feature = "verbs")]
        TransportKind::Verbs => build_verbs(network, seat),
        #[cfg(not(feature = "verbs"))]
        TransportKind::Verbs => without_verbs(network),
    }
}

#[cfg(feature = "verbs")]
fn build_verbs(network: &Network, seat: Seat) -> Result<Box<dyn Transport>> {
    let on = |rail: &RailPort, vector| Verbs::new(&VerbsConfig::of(network, rail, vector));
    match seat {
        Seat::Listens(number) => {
            let (ports, _) = verbs::rails(&network.rdma)?;
            let (rail, vector) = place(number, ports.len());
            Ok(Box::new(on(&ports[rail], vector)?))
        }
        Seat::Dials => {
            let ports = rails(network, &[TransportKind::Verbs])?;
            if let [only] = &ports[..] {
                return Ok(Box::new(on(only, 0)?));
            }
            let rails = ports.iter().map(|rail| on(rail, 0)).collect::<Result<Vec<_>>>()?;
            Ok(Box::new(Rails::new(rails)?))
        }
    }
}

#[cfg(not(feature = "verbs"))]
fn without_verbs<T>(network: &Network) -> Result<T> {
    Err(Error::config(
        "transport",
        "tcp or shm (this build lacks the feature `verbs`: build with `cargo build --release --features verbs`)",
        network.transport,
    ))
}

/// Warns that a job whose nodes left the choice open does not use the best there is.
pub fn warn_of_fallback(network: &Network, agreed: Agreed, why: &str) {
    if network.transport == TransportChoice::Auto && !why.is_empty() {
        tracing::warn!("transport auto: the job falls back to {agreed}: {why}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn only_tcp(kind: TransportKind) -> Result<()> {
        match kind {
            TransportKind::Tcp => Ok(()),
            TransportKind::Verbs | TransportKind::Shm => Err(Error::config("device", "one", "none")),
        }
    }

    #[test]
    fn a_job_says_that_it_shares_memory_where_it_can() {
        let agreed = |local| Agreed { kind: TransportKind::Tcp, local }.to_string();
        assert_eq!(
            (agreed(false).as_str(), agreed(true).as_str()),
            ("tcp", "tcp, and by shared memory within a host")
        );
    }

    #[test]
    fn what_is_missing_is_told_where_the_choice_is_open_and_fails_where_it_is_not() {
        let fallen = offer_by(TransportChoice::Auto, only_tcp).unwrap();
        assert_eq!(fallen.kinds, [TransportKind::Tcp]);
        let none = "device: expected one, found none";
        assert_eq!(fallen.lacks, format!("{none}; {none}"));
        let both = offer_by(TransportChoice::Auto, |_| Ok(())).unwrap();
        assert_eq!(both, Offer { kinds: TransportKind::ALL.to_vec(), lacks: String::new() });
        let tcp = offer_by(TransportChoice::Only(TransportKind::Tcp), only_tcp).unwrap();
        assert_eq!(tcp, Offer { kinds: vec![TransportKind::Tcp], lacks: String::new() });
        let error = offer_by(TransportChoice::Only(TransportKind::Verbs), only_tcp).unwrap_err();
        assert_eq!(error.to_string(), none);
    }
}
