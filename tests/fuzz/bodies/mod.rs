//! Fuzz bodies: plain functions from bytes, one for each decoder of what comes from outside. A body fails by panicking.
//!
//! A body mends what random bytes never get right (CRC, MAC, sequence numbers), so that inputs reach the code behind.

mod checkpoint;
mod control;
mod data_path;
mod handshake;
mod pairing;
mod server;
mod shm;
mod tcp;
mod text;

pub use server::{refused_seeds, served};

/// One fuzz target.
pub struct Target {
    /// Also the name of its corpus: `tests/fuzz/corpus/NAME.hex`.
    pub name: &'static str,
    /// What is fuzzed.
    pub body: fn(&[u8]),
    /// Inputs that go all the way, to start from.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Mutated inputs that `cargo test` runs: fewer where one run costs system calls.
    pub runs: u32,
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target { name: "request", body: data_path::request, seeds: data_path::request_seeds, runs: 20_000 },
    Target { name: "reply", body: data_path::reply, seeds: data_path::reply_seeds, runs: 20_000 },
    Target { name: "message", body: data_path::message, seeds: data_path::message_seeds, runs: 20_000 },
    Target { name: "sparse", body: data_path::sparse, seeds: data_path::sparse_seeds, runs: 20_000 },
    Target { name: "packed", body: data_path::packed, seeds: data_path::packed_seeds, runs: 20_000 },
    Target { name: "server", body: server::requests, seeds: server::seeds, runs: 4_000 },
    Target { name: "acceptor", body: handshake::acceptor, seeds: handshake::acceptor_seeds, runs: 10_000 },
    Target { name: "dialler", body: handshake::dialler, seeds: handshake::dialler_seeds, runs: 10_000 },
    Target { name: "frames", body: control::frames, seeds: control::frame_seeds, runs: 10_000 },
    Target {
        name: "coordinator",
        body: control::coordinator,
        seeds: control::coordinator_seeds,
        runs: 5_000,
    },
    Target { name: "spec", body: control::spec, seeds: control::spec_seeds, runs: 5_000 },
    Target { name: "tcp", body: tcp::stream, seeds: tcp::stream_seeds, runs: 1_500 },
    Target { name: "shm", body: shm::socket, seeds: shm::socket_seeds, runs: 1_500 },
    Target { name: "address", body: tcp::address, seeds: tcp::address_seeds, runs: 1_000 },
    Target { name: "pairing", body: pairing::greet, seeds: pairing::greeting_seeds, runs: 20_000 },
    Target { name: "bootstrap", body: handshake::blob, seeds: handshake::blob_seeds, runs: 20_000 },
    Target { name: "libsvm", body: text::libsvm, seeds: text::libsvm_seeds, runs: 5_000 },
    Target { name: "checkpoint", body: checkpoint::file, seeds: checkpoint::file_seeds, runs: 5_000 },
    Target { name: "settings", body: text::settings, seeds: text::settings_seeds, runs: 10_000 },
];

/// Takes an input apart. What is missing at its end reads as zeros, so that every input means something.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn take(&mut self, length: usize) -> &'a [u8] {
        let (head, tail) = self.0.split_at(length.min(self.0.len()));
        self.0 = tail;
        head
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut out = [0; N];
        let bytes = self.take(N);
        out[..bytes.len()].copy_from_slice(bytes);
        out
    }

    fn u8(&mut self) -> u8 {
        self.array::<1>()[0]
    }

    fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }
}
