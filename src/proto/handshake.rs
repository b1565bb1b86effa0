//! Mutual challenge and response over the job's secret, sans-io.
//!
//! ```text
//!  dialler                                   acceptor
//!    │ Hello: magic, version, job, identity,    │
//!    │        nonce, offers                     │
//!    │─────────────────────────────────────────▶│
//!    │    Challenge: version, identity, nonce,  │
//!    │               the offers it takes        │
//!    │◀─────────────────────────────────────────│
//!    │ Proof: MAC over Hello + Challenge        │
//!    │─────────────────────────────────────────▶│   the dialler proves first: a stranger learns
//!    │    Accept: MAC over all three            │   nothing that depends on the secret
//!    │◀─────────────────────────────────────────│
//! ```
//! Instead of Challenge or Accept the acceptor may send Refuse (code, reason), which is not authenticated.
//!
//! Every message is `u16 length of the rest | u8 kind | body`, little-endian, and a text is `u16 length | UTF-8`. MACs are
//! keyed BLAKE3 over the exact bytes exchanged, so that whoever changes a version, a name or an offer on the way is
//! found out. The session's keys come from the secret and the whole transcript. There is no forward secrecy: who
//! learns the secret later can check recorded control frames against it; nothing in them is secret.

use std::fmt;

use super::filter::covers;
use super::secret::Secret;
use super::wire::{Reader, cut, put_text};
use crate::error::{Error, Result};
use crate::types::{Identity, Role};

/// First bytes of every Hello.
pub const MAGIC: [u8; 8] = *b"windlass";
/// Nodes whose major numbers differ refuse each other.
pub const VERSION_MAJOR: u16 = 4;
/// Counts compatible additions.
pub const VERSION_MINOR: u16 = 0;
/// What one side may send before it is authenticated, in bytes.
pub const PRE_AUTH_LIMIT: usize = 4096;
/// The longest job name, in bytes.
pub const JOB_LIMIT: usize = 128;

const PROCESS_LIMIT: usize = 256;
const REASON_LIMIT: usize = 512;
const OFFERS_LIMIT: usize = 16;
const OFFER_LIMIT: usize = 64;

const HELLO: u8 = 1;
const CHALLENGE: u8 = 2;
const PROOF: u8 = 3;
const ACCEPT: u8 = 4;
const REFUSE: u8 = 5;

/// 32 random bytes, never used twice.
pub type Nonce = [u8; 32];
/// A key that both ends derived; it never travels.
pub type SessionKey = [u8; 32];

/// What a node brings into a handshake, on either side.
#[derive(Debug, Clone)]
pub struct Local {
    /// The job's secret.
    pub secret: Secret,
    /// The job's name; both sides must have the same.
    pub job: String,
    /// Who we are.
    pub identity: Identity,
    /// Modes and filters: offered, in order of preference, by a dialler; supported by an acceptor.
    pub offers: Vec<String>,
}

impl Local {
    /// Refuses what would not fit into a handshake.
    pub fn validate(&self) -> Result<()> {
        let printable = |text: &str| !text.chars().any(char::is_control);
        if self.job.len() > JOB_LIMIT || !printable(&self.job) {
            let expected = format!("at most {JOB_LIMIT} printable bytes");
            return Err(Error::config("job", expected, format!("{:?}", self.job)));
        }
        if self.identity.process.len() > PROCESS_LIMIT || !printable(&self.identity.process) {
            let expected = format!("at most {PROCESS_LIMIT} printable bytes");
            return Err(Error::config("process name", expected, format!("{:?}", self.identity.process)));
        }
        let fits = |o: &String| !o.is_empty() && o.len() <= OFFER_LIMIT && printable(o);
        if self.offers.len() > OFFERS_LIMIT || !self.offers.iter().all(fits) {
            let expected = format!("at most {OFFERS_LIMIT} of 1 to {OFFER_LIMIT} printable bytes");
            return Err(Error::config("offers", expected, format!("{:?}", self.offers)));
        }
        Ok(())
    }
}

/// Why an acceptor refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefuseCode {
    /// Another major version.
    Version,
    /// Another job.
    Job,
    /// The proof does not fit: another secret, or a replay.
    Secret,
    /// None of the offers is supported here.
    Offers,
    /// Anything else, as the reason says.
    Other,
}

impl RefuseCode {
    fn number(self) -> u8 {
        match self {
            RefuseCode::Version => 1,
            RefuseCode::Job => 2,
            RefuseCode::Secret => 3,
            RefuseCode::Offers => 4,
            RefuseCode::Other => 255,
        }
    }
}

/// A handshake that succeeded.
#[derive(Clone)]
pub struct Established {
    /// The authenticated peer.
    pub peer: Identity,
    /// Authenticates what we send.
    pub send_key: SessionKey,
    /// Authenticates what we receive.
    pub receive_key: SessionKey,
    /// The root of the keys of data-plane endpoints, see [`derive_endpoint_key`].
    pub export: SessionKey,
    /// The dialler's offers that the acceptor took, in the dialler's order.
    pub chosen: Vec<String>,
}

impl fmt::Debug for Established {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Established({}, {:?})", self.peer, self.chosen)
    }
}

/// What became of the bytes that were fed in.
#[derive(Debug)]
pub struct Fed {
    /// How many of them were used; the rest is to be fed again, with more behind it.
    pub used: usize,
    /// Set once, when the peer is authenticated. Bytes beyond `used` are then control frames.
    pub established: Option<Box<Established>>,
}

/// The key of one data-plane endpoint: both ends of a control session derive the same from its `export` key.
pub fn derive_endpoint_key(export: &SessionKey, label: &str, numbers: &[u32]) -> SessionKey {
    let mut hasher = blake3::Hasher::new_keyed(export);
    hasher.update(b"windlass endpoint key 1");
    hasher.update(&(label.len() as u64).to_le_bytes());
    hasher.update(label.as_bytes());
    for number in numbers {
        hasher.update(&number.to_le_bytes());
    }
    *hasher.finalize().as_bytes()
}

/// The side that connected.
#[derive(Debug)]
pub struct Dialler {
    local: Local,
    /// For messages: `the coordinator at 127.0.0.1:5000`.
    peer: String,
    transcript: Vec<u8>,
    used: usize,
    /// Set by Challenge.
    challenged: Option<(Identity, Vec<String>)>,
}

impl Dialler {
    /// Starts a handshake with `peer`, named as messages shall name it; `out` receives the Hello.
    pub fn new(local: Local, peer: &str, nonce: Nonce, out: &mut Vec<u8>) -> Result<Dialler> {
        local.validate()?;
        let transcript = encode_hello(&local, (VERSION_MAJOR, VERSION_MINOR), &nonce);
        out.extend_from_slice(&transcript);
        Ok(Dialler { local, peer: peer.to_owned(), transcript, used: 0, challenged: None })
    }

    /// Takes the acceptor's bytes; `out` receives the answer.
    pub fn feed(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<Fed> {
        let mut used = 0;
        while let Some((kind, body, whole)) = next_message(&bytes[used..], self.used, &self.peer)? {
            used += whole.len();
            self.used += whole.len();
            match (kind, self.challenged.take()) {
                (REFUSE, _) => return Err(self.refused(body)),
                (CHALLENGE, None) => self.challenge(body, whole, out)?,
                (ACCEPT, Some(challenged)) => {
                    let established = Some(Box::new(self.accept(body, challenged)?));
                    return Ok(Fed { used, established });
                }
                (kind, challenged) => {
                    let expected = if challenged.is_some() { "Accept" } else { "Challenge" };
                    return Err(Error::protocol(&self.peer, "handshake message", expected, kind));
                }
            }
        }
        Ok(Fed { used, established: None })
    }

    fn challenge(&mut self, body: &[u8], whole: &[u8], out: &mut Vec<u8>) -> Result<()> {
        let mut reader = Reader::new(body, &self.peer);
        let version = read_version(&mut reader)?;
        if version.0 != VERSION_MAJOR {
            let found = show_version(version);
            let expected = show_version((VERSION_MAJOR, VERSION_MINOR));
            return Err(Error::protocol(&self.peer, "protocol version", expected, found));
        }
        let identity = read_identity(&mut reader, &self.peer)?;
        let _nonce: Nonce = reader.array("nonce")?;
        let chosen = read_offers(&mut reader, &self.peer)?;
        reader.end("Challenge")?;
        if let Some(stranger) = chosen.iter().find(|c| !self.local.offers.contains(c)) {
            let expected = format!("some of {:?}", self.local.offers);
            return Err(Error::protocol(&self.peer, "chosen offers", expected, format!("{stranger:?}")));
        }
        self.transcript.extend_from_slice(whole);
        let mac = proof(&self.local.secret, DIALLER, &self.transcript);
        let proof = message(PROOF, mac.as_bytes());
        self.transcript.extend_from_slice(&proof);
        out.extend_from_slice(&proof);
        self.challenged = Some((identity, chosen));
        Ok(())
    }

    fn accept(&self, body: &[u8], (peer, chosen): (Identity, Vec<String>)) -> Result<Established> {
        let mut reader = Reader::new(body, &self.peer);
        let theirs: [u8; 32] = reader.array("proof")?;
        reader.end("Accept")?;
        // `blake3::Hash` compares in constant time.
        if proof(&self.local.secret, ACCEPTOR, &self.transcript) != blake3::Hash::from_bytes(theirs) {
            let found = "a MAC that does not fit";
            return Err(Error::protocol(&self.peer, "proof", "knowledge of the job secret", found));
        }
        let (to_acceptor, to_dialler, export) = session_keys(&self.local.secret, &self.transcript);
        Ok(Established { peer, send_key: to_acceptor, receive_key: to_dialler, export, chosen })
    }

    fn refused(&self, body: &[u8]) -> Error {
        let mut reader = Reader::new(body, &self.peer);
        let reason = reader.byte("code").and_then(|_| reader.text("reason", REASON_LIMIT));
        match reason {
            Ok(reason) => Error::Refused { peer: self.peer.clone(), reason },
            Err(error) => error,
        }
    }
}

/// The side that was connected to.
#[derive(Debug)]
pub struct Acceptor {
    local: Local,
    /// The dialler's address, and its identity in front once it is known.
    peer: String,
    nonce: Nonce,
    transcript: Vec<u8>,
    used: usize,
    /// Set by Hello.
    greeted: Option<(Identity, Vec<String>)>,
}

impl Acceptor {
    /// Waits for a handshake from `address`.
    pub fn new(local: Local, address: &str, nonce: Nonce) -> Result<Acceptor> {
        local.validate()?;
        let peer = address.to_owned();
        Ok(Acceptor { local, peer, nonce, transcript: Vec::new(), used: 0, greeted: None })
    }

    /// Takes the dialler's bytes; `out` receives the answer. After an error, `out` may hold a Refuse that should still be
    /// sent before the connection is closed.
    pub fn feed(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<Fed> {
        let mut used = 0;
        while let Some((kind, body, whole)) = next_message(&bytes[used..], self.used, &self.peer)? {
            used += whole.len();
            self.used += whole.len();
            match (kind, self.greeted.take()) {
                (HELLO, None) => self.hello(body, whole, out)?,
                (PROOF, Some(greeted)) => {
                    let established = Some(Box::new(self.proof(body, whole, greeted, out)?));
                    return Ok(Fed { used, established });
                }
                (kind, greeted) => {
                    let expected = if greeted.is_some() { "Proof" } else { "Hello" };
                    return Err(Error::protocol(&self.peer, "handshake message", expected, kind));
                }
            }
        }
        Ok(Fed { used, established: None })
    }

    /// The dialler for messages: its claimed identity, if it has said one, and its address.
    pub fn peer(&self) -> &str {
        &self.peer
    }

    /// Whether an offer is one of ours, or an older minor version of it.
    fn takes(&self, offer: &str) -> bool {
        self.local.offers.iter().any(|ours| covers(ours, offer))
    }

    fn hello(&mut self, body: &[u8], whole: &[u8], out: &mut Vec<u8>) -> Result<()> {
        let address = self.peer.clone();
        let mut reader = Reader::new(body, &address);
        let magic: [u8; 8] = reader.array("magic")?;
        if magic != MAGIC {
            let found = format!("{magic:02x?}");
            return Err(Error::protocol(&address, "magic", "a Windlass handshake", found));
        }
        let version = read_version(&mut reader)?;
        if version.0 != VERSION_MAJOR {
            // The rest may be laid out otherwise: not read.
            let (ours, theirs) = (show_version((VERSION_MAJOR, VERSION_MINOR)), show_version(version));
            let reason = format!("protocol version {theirs}, expected {ours}");
            return Err(self.refuse(RefuseCode::Version, &reason, &reason, out));
        }
        let job = reader.text("job", JOB_LIMIT)?;
        let identity = read_identity(&mut reader, &address)?;
        let _nonce: Nonce = reader.array("nonce")?;
        let offers = read_offers(&mut reader, &address)?;
        reader.end("Hello")?;
        self.peer = format!("{identity} at {address}");
        if job != self.local.job {
            let ours = format!("job {job:?}, expected {:?}", self.local.job);
            // A stranger is not told which job this is.
            return Err(self.refuse(RefuseCode::Job, &ours, &format!("this is not job {job:?}"), out));
        }
        let chosen: Vec<String> = offers.iter().filter(|o| self.takes(o)).cloned().collect();
        if chosen.is_empty() && !offers.is_empty() {
            let reason = format!("offers {offers:?}, expected some of {:?}", self.local.offers);
            return Err(self.refuse(RefuseCode::Offers, &reason, &reason, out));
        }
        let challenge = encode_challenge(&self.local.identity, &self.nonce, &chosen);
        self.transcript.extend_from_slice(whole);
        self.transcript.extend_from_slice(&challenge);
        out.extend_from_slice(&challenge);
        self.greeted = Some((identity, chosen));
        Ok(())
    }

    fn proof(
        &mut self,
        body: &[u8],
        whole: &[u8],
        (peer, chosen): (Identity, Vec<String>),
        out: &mut Vec<u8>,
    ) -> Result<Established> {
        let mut reader = Reader::new(body, &self.peer);
        let theirs: [u8; 32] = reader.array("proof")?;
        reader.end("Proof")?;
        // `blake3::Hash` compares in constant time.
        if proof(&self.local.secret, DIALLER, &self.transcript) != blake3::Hash::from_bytes(theirs) {
            return Err(self.refuse(RefuseCode::Secret, "wrong secret", "wrong job secret", out));
        }
        self.transcript.extend_from_slice(whole);
        let mac = proof(&self.local.secret, ACCEPTOR, &self.transcript);
        out.extend_from_slice(&message(ACCEPT, mac.as_bytes()));
        let (to_acceptor, to_dialler, export) = session_keys(&self.local.secret, &self.transcript);
        Ok(Established { peer, send_key: to_dialler, receive_key: to_acceptor, export, chosen })
    }

    /// Tells the dialler one thing and ourselves, with the dialler's name, another.
    fn refuse(&self, code: RefuseCode, ours: &str, theirs: &str, out: &mut Vec<u8>) -> Error {
        out.extend_from_slice(&encode_refuse(code, theirs));
        Error::Refused { peer: self.local.identity.to_string(), reason: format!("{}: {ours}", self.peer) }
    }
}

/// A Refuse for a connection that can't be served at all, whatever it says.
pub fn encode_refuse(code: RefuseCode, reason: &str) -> Vec<u8> {
    let reason: String = cut(reason, REASON_LIMIT).chars().filter(|c| !c.is_control()).collect();
    let mut body = vec![code.number()];
    put_text(&mut body, &reason, REASON_LIMIT);
    message(REFUSE, &body)
}

const DIALLER: &[u8] = b"windlass dialler's proof 1";
const ACCEPTOR: &[u8] = b"windlass acceptor's proof 1";

fn proof(secret: &Secret, label: &[u8], transcript: &[u8]) -> blake3::Hash {
    let key = secret.derive("windlass 2026-01 handshake proof");
    let mut hasher = blake3::Hasher::new_keyed(&key);
    hasher.update(label);
    hasher.update(transcript);
    hasher.finalize()
}

/// (dialler to acceptor, acceptor to dialler, export).
fn session_keys(secret: &Secret, transcript: &[u8]) -> (SessionKey, SessionKey, SessionKey) {
    let root = secret.derive("windlass 2026-01 session");
    let session = blake3::keyed_hash(&root, transcript);
    let derive = |context: &'static str| blake3::derive_key(context, session.as_bytes());
    (
        derive("windlass 2026-01 session dialler to acceptor"),
        derive("windlass 2026-01 session acceptor to dialler"),
        derive("windlass 2026-01 session export"),
    )
}

fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(3 + body.len());
    // Every body is far shorter than 2^16: its fields are bounded above.
    out.extend_from_slice(&(body.len() as u16 + 1).to_le_bytes());
    out.push(kind);
    out.extend_from_slice(body);
    out
}

/// A message's kind, its body, and all of its bytes.
type Message<'a> = (u8, &'a [u8], &'a [u8]);

/// The first whole message in `bytes`, if it is all there. `used` counts what the peer
/// has sent before.
fn next_message<'a>(bytes: &'a [u8], used: usize, peer: &str) -> Result<Option<Message<'a>>> {
    let Some((length, rest)) = bytes.split_first_chunk::<2>() else { return Ok(None) };
    let length = usize::from(u16::from_le_bytes(*length));
    if length == 0 || used + 2 + length > PRE_AUTH_LIMIT {
        let expected = format!("1 to {}", PRE_AUTH_LIMIT.saturating_sub(used + 2));
        return Err(Error::protocol(peer, "handshake length", expected, length));
    }
    let Some((&[kind, ref body @ ..], _)) = rest.split_at_checked(length) else { return Ok(None) };
    Ok(Some((kind, body, &bytes[..2 + length])))
}

fn encode_hello(local: &Local, version: (u16, u16), nonce: &Nonce) -> Vec<u8> {
    let mut body = MAGIC.to_vec();
    body.extend_from_slice(&version.0.to_le_bytes());
    body.extend_from_slice(&version.1.to_le_bytes());
    put_text(&mut body, &local.job, JOB_LIMIT);
    put_identity(&mut body, &local.identity);
    body.extend_from_slice(nonce);
    put_offers(&mut body, &local.offers);
    message(HELLO, &body)
}

fn encode_challenge(identity: &Identity, nonce: &Nonce, chosen: &[String]) -> Vec<u8> {
    let mut body = VERSION_MAJOR.to_le_bytes().to_vec();
    body.extend_from_slice(&VERSION_MINOR.to_le_bytes());
    put_identity(&mut body, identity);
    body.extend_from_slice(nonce);
    put_offers(&mut body, chosen);
    message(CHALLENGE, &body)
}

fn read_version(reader: &mut Reader<'_>) -> Result<(u16, u16)> {
    Ok((reader.u16("protocol version")?, reader.u16("protocol version")?))
}

fn show_version((major, minor): (u16, u16)) -> String {
    format!("{major}.{minor}")
}

/// `u8 role | u8 has rank | u32 rank | u64 incarnation | text process`.
fn put_identity(out: &mut Vec<u8>, identity: &Identity) {
    out.push(match identity.role {
        Role::Coordinator => 0,
        Role::Server => 1,
        Role::Worker => 2,
    });
    out.push(u8::from(identity.rank.is_some()));
    out.extend_from_slice(&identity.rank.unwrap_or(0).to_le_bytes());
    out.extend_from_slice(&identity.incarnation.to_le_bytes());
    put_text(out, &identity.process, PROCESS_LIMIT);
}

fn read_identity(reader: &mut Reader<'_>, peer: &str) -> Result<Identity> {
    let role = match reader.byte("role")? {
        0 => Role::Coordinator,
        1 => Role::Server,
        2 => Role::Worker,
        other => return Err(Error::protocol(peer, "role", "0, 1 or 2", other)),
    };
    let has_rank = reader.byte("rank")?;
    let rank = u32::from_le_bytes(reader.array("rank")?);
    let rank = match (has_rank, rank) {
        (0, 0) => None,
        (1, rank) => Some(rank),
        _ => return Err(Error::protocol(peer, "rank", "0 and 0, or 1 and a rank", has_rank)),
    };
    let incarnation = u64::from_le_bytes(reader.array("incarnation")?);
    let process = reader.text("process", PROCESS_LIMIT)?;
    Ok(Identity { role, rank, incarnation, process })
}

fn put_offers(out: &mut Vec<u8>, offers: &[String]) {
    // `Local::validate` bounds their number.
    out.push(offers.len() as u8);
    for offer in offers {
        put_text(out, offer, OFFER_LIMIT);
    }
}

fn read_offers(reader: &mut Reader<'_>, peer: &str) -> Result<Vec<String>> {
    let count = reader.byte("offers")?;
    if usize::from(count) > OFFERS_LIMIT {
        return Err(Error::protocol(peer, "offers", format!("at most {OFFERS_LIMIT}"), count));
    }
    (0..count).map(|_| reader.text("offer", OFFER_LIMIT)).collect()
}

#[cfg(test)]
#[path = "handshake_tests.rs"]
mod tests;
