//! What a node can carry data by, and how a transport of a kind is made.
//!
//! All connections of a job are of one kind, but for those within one host, which share memory where all nodes can. Each node offers what it can use, the Coordinator takes the best of what all of them offer
//! and says so with the View. A node that is told to use one kind offers nothing else, and fails at once where it can't.

use super::several::Several;
use super::shm::{self, Shm, ShmConfig};
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

/// What a job has agreed on, for one thread; `listen` when peers are to dial it.
pub fn build_agreed(network: &Network, agreed: Agreed, listen: bool) -> Result<Box<dyn Transport>> {
    let mut transport = build(network, agreed.kind, listen)?;
    if agreed.local {
        add_memory(&mut transport, listen)?;
    }
    Ok(transport)
}

/// Puts shared memory beside a transport that has neither endpoints nor arenas.
pub fn add_memory(transport: &mut Box<dyn Transport>, listen: bool) -> Result<()> {
    // Something has to stand in its place while the two are joined.
    let wide = std::mem::replace(transport, Box::new(Shm::new(ShmConfig::default(), false)?));
    *transport = Box::new(Several::new(Shm::new(ShmConfig::default(), listen)?, wide)?);
    Ok(())
}

/// A transport of `kind` for one thread; `listen` when peers are to dial it.
pub fn build(network: &Network, kind: TransportKind, listen: bool) -> Result<Box<dyn Transport>> {
    match kind {
        TransportKind::Shm => Ok(Box::new(Shm::new(ShmConfig::default(), listen)?)),
        TransportKind::Tcp => Ok(Box::new(tcp::Tcp::new(tcp::TcpConfig::of(network, listen))?)),
        #[cfg(feature = "verbs")]
        TransportKind::Verbs => {
            Ok(Box::new(super::verbs::Verbs::new(&super::verbs::VerbsConfig::of(network))?))
        }
        #[cfg(not(feature = "verbs"))]
        TransportKind::Verbs => without_verbs(network),
    }
}

#[cfg(not(feature = "verbs"))]
fn without_verbs<T>(network: &Network) -> Result<T> {
    Err(Error::config(
        "transport",
        "tcp (this build lacks the feature `verbs`: build with `cargo build --release --features verbs`)",
        network.transport,
    ))
}

/// Warns that a job whose nodes left the choice open does not use the best there is.
pub fn warn_of_fallback(network: &Network, kind: TransportKind, why: &str) {
    if network.transport == TransportChoice::Auto && !why.is_empty() {
        tracing::warn!("transport auto: the job falls back to {kind}: {why}");
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
