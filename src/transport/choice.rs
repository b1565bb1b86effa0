//! What a node can carry data by, and how a transport of a kind is made.
//!
//! All connections of a job are of one kind, but for those within one host, which share memory where all nodes can. Each node offers what it can use, the Coordinator takes the best of what all of them offer
//! and says so with the View, and once why by nothing better where that is worth a word. A node that is told to use one kind offers nothing
//! else, and fails at once where it can't.

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
use crate::error::{Error, Result};
use crate::types::{Lack, Offer};

/// What a job uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Agreed {
    /// What reaches every node.
    pub kind: TransportKind,
    /// Nodes on one host share memory instead.
    pub local: bool,
}

impl Agreed {
    /// What a node uses that is told of no agreement.
    pub fn untold(offer: &Offer) -> Agreed {
        Agreed { kind: offer.kinds[0], local: false }
    }

    /// What two processes on this host use that both offer this, where nobody else takes part.
    pub fn alone(offer: &Offer) -> Agreed {
        let kind = offer.kinds[0];
        Agreed { kind, local: kind != TransportKind::Shm && offer.has(TransportKind::Shm) }
    }
}

impl fmt::Display for Agreed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind.name())?;
        f.write_str(if self.local { ", and by shared memory within a host" } else { "" })
    }
}

/// What this build and this machine can give of what `network` allows.
pub fn offer(network: &Network) -> Result<Offer> {
    // A host that does not say which it is shares memory with nobody, as `shm::check` finds.
    let host = shm::boot_id().unwrap_or_default();
    offer_by(network.transport, host, |kind| check(network, kind))
}

fn offer_by(
    choice: TransportChoice,
    host: [u8; 16],
    check: impl Fn(TransportKind) -> Result<(), (Error, Lack)>,
) -> Result<Offer> {
    match choice {
        TransportChoice::Only(kind) => {
            check(kind).map(|()| Offer { host, ..Offer::only(kind) }).map_err(|(error, _)| error)
        }
        TransportChoice::Auto => {
            let (mut kinds, mut lacks) = (Vec::new(), Vec::new());
            for kind in TransportKind::ALL {
                match check(kind) {
                    Ok(()) => kinds.push(kind),
                    Err((_, lack)) => {
                        tracing::debug!("transport auto: no {kind}: {}", lack.why);
                        lacks.push(lack);
                    }
                }
            }
            Ok(Offer { kinds, lacks, host })
        }
    }
}

/// Refuses a kind that this build or machine can't give: who asked for it is told the one, who left the choice open the other.
fn check(network: &Network, kind: TransportKind) -> Result<(), (Error, Lack)> {
    let found = match kind {
        TransportKind::Tcp => Ok(()),
        #[cfg(feature = "verbs")]
        TransportKind::Verbs => verbs::check(network),
        #[cfg(not(feature = "verbs"))]
        TransportKind::Verbs => without_verbs(network),
        TransportKind::Shm => shm::check(),
    };
    found.map_err(|error| {
        let (absent, why) = match kind {
            #[cfg(feature = "verbs")]
            TransportKind::Verbs => (!verbs::are_there(), error.to_string()),
            #[cfg(not(feature = "verbs"))]
            TransportKind::Verbs => (true, NO_VERBS.to_owned()),
            TransportKind::Tcp | TransportKind::Shm => (false, error.to_string()),
        };
        (error, Lack { kind, absent, why })
    })
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
const NO_VERBS: &str = "this build lacks the feature `verbs`";

#[cfg(not(feature = "verbs"))]
fn without_verbs<T>(network: &Network) -> Result<T> {
    let expected =
        format!("auto, tcp or shm ({NO_VERBS}: build with `cargo build --release --features verbs`)");
    Err(Error::config("transport", expected, network.transport))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: [u8; 16] = [7; 16];

    fn lack(kind: TransportKind) -> Lack {
        Lack { kind, absent: kind == TransportKind::Verbs, why: format!("no {kind} here") }
    }

    fn only_tcp(kind: TransportKind) -> Result<(), (Error, Lack)> {
        match kind {
            TransportKind::Tcp => Ok(()),
            TransportKind::Verbs | TransportKind::Shm => {
                Err((Error::config("device", "one", "none"), lack(kind)))
            }
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
        let by = |choice, check: &dyn Fn(TransportKind) -> _| offer_by(choice, HOST, check);
        let fallen = by(TransportChoice::Auto, &only_tcp).unwrap();
        let lacks = vec![lack(TransportKind::Verbs), lack(TransportKind::Shm)];
        assert_eq!(fallen, Offer { kinds: vec![TransportKind::Tcp], lacks, host: HOST });
        let all = by(TransportChoice::Auto, &|_| Ok(())).unwrap();
        assert_eq!(all, Offer { kinds: TransportKind::ALL.to_vec(), lacks: Vec::new(), host: HOST });
        let tcp = by(TransportChoice::Only(TransportKind::Tcp), &only_tcp).unwrap();
        assert_eq!(tcp, Offer { kinds: vec![TransportKind::Tcp], lacks: Vec::new(), host: HOST });
        let error = by(TransportChoice::Only(TransportKind::Verbs), &only_tcp).unwrap_err();
        assert_eq!(error.to_string(), "device: expected one, found none");
    }

    #[test]
    fn two_alone_on_a_host_share_memory_where_they_can() {
        let alone = |kinds: &[TransportKind]| {
            Agreed::alone(&Offer { kinds: kinds.to_vec(), lacks: Vec::new(), host: HOST })
        };
        use TransportKind::{Shm, Tcp, Verbs};
        assert_eq!(alone(&[Verbs, Tcp, Shm]), Agreed { kind: Verbs, local: true });
        assert_eq!(alone(&[Tcp]), Agreed { kind: Tcp, local: false });
        assert_eq!(alone(&[Shm]), Agreed { kind: Shm, local: false });
    }
}
