//! Where a job is, as a blob of fixed size that a caller's own means (`MPI_Bcast`, a pipe, a file) carry to every process.
//!
//! ```text
//!    0  8  "wl-boot" and the version, 1
//!    8 16  IP address (IPv4 as ::ffff:a.b.c.d)      24  2  port      26  2  zero
//!   28 32  the job's secret
//!   60  1  length n of the job's name               61 95  its UTF-8, then zeros
//!  156  1  length n of the host's name             157 95  its UTF-8, then zeros
//!  252  4  CRC32C of the bytes before
//! ```
//!
//! Numbers are little-endian. Whoever has the blob may take part: keep it as secret as the secret in it.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use super::secret::Secret;
use crate::error::{Error, Result};

const MAGIC: [u8; 8] = *b"wl-boot\x01";
const SECRET: usize = 28;
const JOB: usize = 60;
const HOST: usize = 156;
/// Bytes of a name, its length included.
const NAME: usize = 96;
const CRC: usize = 252;

/// Where a job is and how to be let in: the Coordinator's address, the job's name and secret.
///
/// Rank 0 makes it ([`crate::server::coordinator::CoordinatorServer::bootstrap`]), the application hands it to every process,
/// and [`crate::ClientConfig::joining`] and [`crate::Server::joining`] take it. No launcher and no environment is needed.
///
/// ```
/// # use windlass::{Bootstrap, Secret};
/// let bootstrap = Bootstrap::new("10.0.0.1:7077".parse().unwrap(), Secret::generate()?, "job 1", "node1")?;
/// let blob: [u8; Bootstrap::BYTES] = bootstrap.to_bytes();
/// assert_eq!(Bootstrap::from_bytes(&blob)?, bootstrap);
/// # Ok::<(), windlass::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bootstrap {
    address: SocketAddr,
    secret: Secret,
    job: String,
    host: String,
}

impl Bootstrap {
    /// Bytes of a blob.
    pub const BYTES: usize = 256;

    /// Of the job `job` whose Coordinator listens at `address`, on the host `host` (for messages). Names take at most 95 bytes.
    pub fn new(address: SocketAddr, secret: Secret, job: &str, host: &str) -> Result<Bootstrap> {
        for (field, name) in [("job", job), ("host", host)] {
            if name.len() >= NAME {
                return Err(Error::config(field, format!("at most {} bytes", NAME - 1), name.len()));
            }
        }
        Ok(Bootstrap { address, secret, job: job.to_owned(), host: host.to_owned() })
    }

    /// Where the Coordinator listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The job's secret.
    pub fn secret(&self) -> &Secret {
        &self.secret
    }

    /// The job's name.
    pub fn job(&self) -> &str {
        &self.job
    }

    /// The Coordinator's host, for messages.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The blob.
    pub fn to_bytes(&self) -> [u8; Bootstrap::BYTES] {
        let ip = match self.address.ip() {
            IpAddr::V4(ip) => ip.to_ipv6_mapped(),
            IpAddr::V6(ip) => ip,
        };
        let mut bytes = [0; Bootstrap::BYTES];
        let mut put = |at: usize, part: &[u8]| bytes[at..at + part.len()].copy_from_slice(part);
        put(0, &MAGIC);
        put(8, &ip.octets());
        put(24, &self.address.port().to_le_bytes());
        put(SECRET, &self.secret.to_bytes());
        for (at, name) in [(JOB, &self.job), (HOST, &self.host)] {
            put(at, &[name.len() as u8]); // < NAME, see `new`
            put(at + 1, name.as_bytes());
        }
        let crc = crc32c::crc32c(&bytes[..CRC]);
        bytes[CRC..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads a blob. Its length, version, checksum and names are checked.
    pub fn from_bytes(bytes: &[u8]) -> Result<Bootstrap> {
        let refuse = |expected: &str, found: String| Error::config("bootstrap blob", expected, found);
        let bytes: &[u8; Bootstrap::BYTES] =
            bytes.try_into().map_err(|_| refuse("256 bytes", format!("{} bytes", bytes.len())))?;
        if bytes[..8] != MAGIC {
            return Err(refuse("version 1 of a blob", "something else".to_owned()));
        }
        if bytes[CRC..] != crc32c::crc32c(&bytes[..CRC]).to_le_bytes() {
            return Err(refuse("bytes that fit their checksum", "others".to_owned()));
        }
        let name = |at: usize| {
            let length = usize::from(bytes[at]);
            let name = bytes[at + 1..at + NAME].get(..length).and_then(|n| std::str::from_utf8(n).ok());
            name.map(str::to_owned).ok_or_else(|| refuse("a name of UTF-8", format!("{length} bytes")))
        };
        let mut ip = [0; 16];
        ip.copy_from_slice(&bytes[8..24]);
        let mut secret = [0; 32];
        secret.copy_from_slice(&bytes[SECRET..JOB]);
        let port = u16::from_le_bytes([bytes[24], bytes[25]]);
        let address = SocketAddr::new(Ipv6Addr::from(ip).to_canonical(), port);
        Bootstrap::new(address, Secret::from_bytes(secret), &name(JOB)?, &name(HOST)?)
    }

    /// The blob as 512 hexadecimal digits, for means that carry text.
    pub fn to_hex(&self) -> String {
        self.to_bytes().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Reads [`Bootstrap::to_hex`].
    pub fn from_hex(text: &str) -> Result<Bootstrap> {
        let digit = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
        let bytes: Option<Vec<u8>> = text.as_bytes().chunks(2).map(digit).collect();
        let found = || format!("{} characters", text.len());
        let bytes =
            bytes.ok_or_else(|| Error::config("bootstrap blob", "512 hexadecimal digits", found()))?;
        Bootstrap::from_bytes(&bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn example(address: &str) -> Bootstrap {
        let secret = Secret::from_hex(&"ab".repeat(32)).unwrap();
        Bootstrap::new(address.parse().unwrap(), secret, "job", "n1").unwrap()
    }

    #[test]
    fn blobs_come_back() {
        for address in ["10.0.0.1:7077", "[fd00::2]:1", "127.0.0.1:65535"] {
            let bootstrap = example(address);
            assert_eq!(Bootstrap::from_bytes(&bootstrap.to_bytes()).unwrap(), bootstrap);
            assert_eq!(Bootstrap::from_hex(&bootstrap.to_hex()).unwrap(), bootstrap);
        }
    }

    #[test]
    fn golden_bytes() {
        let hex = example("10.0.0.1:7077").to_hex();
        let secret = "ab".repeat(32);
        let head = format!("776c2d626f6f740100000000000000000000ffff0a000001a51b0000{secret}");
        let names = format!("036a6f62{}026e31{}", "00".repeat(92), "00".repeat(93));
        assert_eq!(hex, format!("{head}{names}{GOLDEN_CRC}"));
    }

    const GOLDEN_CRC: &str = "cbe06ad9";

    #[test]
    fn slips_are_refused_and_the_secret_is_not_shown() {
        let good = example("10.0.0.1:7077").to_bytes();
        for bit in 0..good.len() * 8 {
            let mut bad = good;
            bad[bit / 8] ^= 1 << (bit % 8);
            let error = Bootstrap::from_bytes(&bad).unwrap_err().to_string();
            assert!(!error.contains("abab"), "{error}");
        }
        for bad in ["", "0", "zz", &"é".repeat(256), &"00".repeat(256)] {
            assert!(Bootstrap::from_hex(bad).is_err(), "{bad}");
        }
        assert!(!format!("{:?}", example("10.0.0.1:7077")).contains("abab"));
        let long = "x".repeat(96);
        assert!(
            Bootstrap::new(example("1.1.1.1:1").address, Secret::generate().unwrap(), &long, "").is_err()
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_blob_or_an_error(mut bytes in proptest::collection::vec(any::<u8>(), 0..300), mend: bool) {
            if mend && bytes.len() >= Bootstrap::BYTES {
                bytes.truncate(Bootstrap::BYTES);
                bytes[..8].copy_from_slice(&MAGIC);
                let crc = crc32c::crc32c(&bytes[..CRC]);
                bytes[CRC..].copy_from_slice(&crc.to_le_bytes());
            }
            let _ = Bootstrap::from_bytes(&bytes);
        }
    }
}
