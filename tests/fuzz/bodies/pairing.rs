//! What a peer says about its queue pair, and how it greets ours.

use std::time::Duration;

use windlass::error::Error;
use windlass::transport::Side;
use windlass::transport::pairing::{Address, GidKind, Greeting};

use super::Bytes;

const KEY: [u8; 32] = [5; 32];

/// Our end.
fn local() -> Address {
    Address {
        side: Side::Active,
        kind: GidKind::RoceV2,
        mtu: 3,
        reads: 16,
        lid: 0,
        number: 17,
        psn: 9,
        gid: [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 9, 0, 1],
        max_message: 1 << 20,
    }
}

/// An address, and after it what arrives as its proof: bytes, or with one first the right proof, in which some are changed.
/// An address is refused by name or means what it says; of two ends one is first, and only the right proof is accepted.
pub fn greet(data: &[u8]) {
    let mut input = Bytes(data);
    let bytes = input.take(Address::ENCODED);
    let remote = match Address::decode(bytes, "worker 3") {
        Ok(remote) => remote,
        Err(Error::Protocol { peer, .. }) => return assert_eq!(peer, "worker 3"),
        Err(error) => panic!("{error}"),
    };
    let again = remote.encode();
    assert_eq!((&again[..7], &again[8..]), (&bytes[..7], &bytes[8..]), "all but what is reserved");
    assert_eq!(Address::decode(&again, "worker 3").unwrap(), remote);
    let local = local();
    let greeting = |from, to| Greeting::new(from, to, &KEY, "worker 3", Duration::ZERO);
    let Ok(ours) = greeting(&local, &remote) else {
        return assert_eq!(remote, local, "only our own address is refused");
    };
    let theirs = greeting(&remote, &local).unwrap();
    assert_ne!(ours.first, theirs.first);
    let message = match input.u8() {
        1 => {
            let mut message = theirs.proof;
            while !input.is_empty() {
                message[usize::from(input.u8() % 32)] ^= input.u8();
            }
            message.to_vec()
        }
        _ => input.take(40).to_vec(),
    };
    assert_eq!(ours.accepts(&message), message == theirs.proof);
}

pub fn greeting_seeds() -> Vec<Vec<u8>> {
    let passive = Address { side: Side::Passive, number: 18, ..local() };
    let alike = Address { number: 16, kind: GidKind::InfiniBand, lid: 7, ..local() };
    vec![
        [&passive.encode()[..], &[1]].concat(),
        [&alike.encode()[..], &[1, 31, 1]].concat(),
        [&passive.encode()[..], &[0; 33]].concat(),
        local().encode().to_vec(),
    ]
}
