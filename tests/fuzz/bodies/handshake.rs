//! Both sides of the handshake, against a peer that knows the secret and says anything.

use windlass::proto::handshake::{Acceptor, Dialler, Fed, Local};
use windlass::types::{Identity, Role};
use windlass::{Bootstrap, Secret};

use super::Bytes;

const SECRET: [u8; 32] = [0xaa; 32];
const PROOF: u8 = 3;
const ACCEPT: u8 = 4;

fn local(role: Role, rank: Option<u32>) -> Local {
    let process = "host:7".to_owned();
    Local {
        secret: Secret::from_hex(&"aa".repeat(32)).unwrap(),
        job: "job".into(),
        identity: Identity { role, rank, incarnation: 5, process },
        offers: vec!["crc".into(), "fp16".into()],
    }
}

/// The proof over a transcript, as one who knows the secret makes it.
fn proof(label: &[u8], transcript: &[u8], kind: u8) -> Vec<u8> {
    let key = blake3::derive_key("windlass 2026-01 handshake proof", &SECRET);
    let mut hasher = blake3::Hasher::new_keyed(&key);
    hasher.update(label).update(transcript);
    message(kind, hasher.finalize().as_bytes())
}

fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    [&(body.len() as u16 + 1).to_le_bytes()[..], &[kind], body].concat()
}

/// Messages as a peer sends them: the input is cut into kinds and bodies, with right lengths unless the kind's high bit is set.
fn said(data: &[u8]) -> Vec<u8> {
    let mut input = Bytes(data);
    let mut out = Vec::new();
    while !input.is_empty() {
        let (kind, length) = (input.u8(), usize::from(input.u16() % 1024));
        let body = input.take(length);
        if kind & 0x80 == 0 {
            out.extend_from_slice(&message(kind, body));
        } else {
            out.extend_from_slice(body);
        }
    }
    out
}

/// Feeds bytes in two pieces, as they may come; gives how many were used.
fn feed(
    mut to: impl FnMut(&[u8]) -> windlass::Result<Fed>,
    bytes: &[u8],
    cut: usize,
) -> windlass::Result<(usize, bool)> {
    let cut = cut.min(bytes.len());
    let first = to(&bytes[..cut])?;
    assert!(first.used <= cut);
    if first.established.is_some() {
        return Ok((first.used, true));
    }
    let second = to(&bytes[first.used..])?;
    assert!(first.used + second.used <= bytes.len());
    Ok((first.used + second.used, second.established.is_some()))
}

/// An acceptor. When it has answered a Hello with a Challenge, the right proof is made for it.
pub fn acceptor(data: &[u8]) {
    let mut input = Bytes(data);
    let (mend, cut) = (input.u8() & 1 == 0, usize::from(input.u8()));
    let bytes = said(input.0);
    let mut acceptor = Acceptor::new(local(Role::Coordinator, None), "127.0.0.1:5000", [2; 32]).unwrap();
    let mut out = Vec::new();
    let fed = feed(|b| acceptor.feed(b, &mut out), &bytes, cut);
    assert!(out.len() <= 4096);
    let Ok((used, false)) = fed else { return assert!(fed.is_err(), "nobody is let in without a proof") };
    if mend && !out.is_empty() {
        let transcript = [&bytes[..used], &out].concat();
        let right = proof(b"windlass dialler's proof 1", &transcript, PROOF);
        let fed = acceptor.feed(&right, &mut out).unwrap();
        assert!(fed.established.is_some(), "the right proof was refused");
    }
}

pub fn acceptor_seeds() -> Vec<Vec<u8>> {
    let mut hello = Vec::new();
    Dialler::new(local(Role::Worker, Some(3)), "peer", [1; 32], &mut hello).unwrap();
    let other = Local { job: "theirs".into(), ..local(Role::Server, None) };
    let mut refused = Vec::new();
    Dialler::new(other, "peer", [1; 32], &mut refused).unwrap();
    [hello, refused].map(|hello| spoken(&hello, 0)).to_vec()
}

/// An input that makes [`said`] say this one message.
fn spoken(message: &[u8], cut: u8) -> Vec<u8> {
    let body = &message[3..];
    [&[0, cut, message[2]][..], &(body.len() as u16).to_le_bytes(), body].concat()
}

/// A dialler. When it has answered a Challenge with its proof, the right Accept is made for it.
pub fn dialler(data: &[u8]) {
    let mut input = Bytes(data);
    let (mend, cut) = (input.u8() & 1 == 0, usize::from(input.u8()));
    let bytes = said(input.0);
    let mut out = Vec::new();
    let mut dialler = Dialler::new(local(Role::Worker, Some(3)), "peer", [1; 32], &mut out).unwrap();
    let hello = out.len();
    let fed = feed(|b| dialler.feed(b, &mut out), &bytes, cut);
    let Ok((used, false)) = fed else { return assert!(fed.is_err(), "nobody is believed without a proof") };
    if mend && out.len() > hello {
        let transcript = [&out[..hello], &bytes[..used], &out[hello..]].concat();
        let right = proof(b"windlass acceptor's proof 1", &transcript, ACCEPT);
        let fed = dialler.feed(&right, &mut Vec::new()).unwrap();
        assert!(fed.established.is_some(), "the right Accept was refused");
    }
}

pub fn dialler_seeds() -> Vec<Vec<u8>> {
    let answer = |hello: &Local| {
        let (mut said, mut out) = (Vec::new(), Vec::new());
        Dialler::new(hello.clone(), "peer", [1; 32], &mut said).unwrap();
        let mut acceptor = Acceptor::new(local(Role::Coordinator, None), "peer", [2; 32]).unwrap();
        // A Challenge, or a Refuse.
        let _ = acceptor.feed(&said, &mut out);
        spoken(&out, 9)
    };
    let right = local(Role::Worker, Some(3));
    vec![answer(&right), answer(&Local { job: "theirs".into(), ..right })]
}

/// A bootstrap blob, with the right checksum unless the input says otherwise.
pub fn blob(data: &[u8]) {
    let mut input = Bytes(data);
    let mend = input.u8() & 1 == 0;
    let mut bytes = input.0.to_vec();
    if mend && bytes.len() == Bootstrap::BYTES {
        let crc = crc32c::crc32c(&bytes[..Bootstrap::BYTES - 4]);
        bytes[Bootstrap::BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
    }
    if let Ok(read) = Bootstrap::from_bytes(&bytes) {
        assert_eq!(read.to_bytes().as_slice(), bytes, "two blobs mean the same");
    }
}

pub fn blob_seeds() -> Vec<Vec<u8>> {
    ["10.0.0.1:7077", "[::1]:1"]
        .map(|address| {
            let secret = Secret::from_hex(&"ab".repeat(32)).unwrap();
            let made = Bootstrap::new(address.parse().unwrap(), secret, "job", "host").unwrap();
            [&[0][..], &made.to_bytes()].concat()
        })
        .to_vec()
}
