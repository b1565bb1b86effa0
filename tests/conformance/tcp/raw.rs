//! A peer made of a plain socket: it does the preamble right and then whatever the test wants.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Instant;

use windlass::transport::tcp::{Tcp, TcpConfig};
use windlass::transport::{EndpointId, Side, Transport};

use crate::rig::{End, LIMIT, Net};

pub const KEY: [u8; 32] = [7; 32];

/// One end in a net of its own, and where it listens.
pub fn server(config: TcpConfig) -> (Net, SocketAddr) {
    let tcp = Tcp::new(config).unwrap();
    let address = tcp.local_address().unwrap();
    (Net::of(vec![End::new(Box::new(tcp) as Box<dyn Transport>)]), address)
}

/// A stranger's connection to the listener.
pub fn stranger(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_nonblocking(true).unwrap();
    stream
}

/// The first message of the preamble.
pub fn dial(endpoint: EndpointId, nonce: [u8; 32]) -> Vec<u8> {
    let (index, generation) = (endpoint.index.to_le_bytes(), endpoint.generation.to_le_bytes());
    [b"WLTC\x01\0\0\0".as_slice(), &index, &generation, &nonce].concat()
}

/// An endpoint of end 0 that expects to be dialled with [`KEY`].
pub fn expecting(net: &mut Net) -> EndpointId {
    let (id, _) = net.ends[0].transport.open(Side::Passive, "raw peer").unwrap();
    net.ends[0].transport.connect(id, &[0], &KEY).unwrap();
    id
}

/// An authenticated connection to a new endpoint of end 0.
pub fn peer(net: &mut Net, address: SocketAddr) -> (EndpointId, TcpStream) {
    let id = expecting(net);
    let mut stream = stranger(address);
    let first = dial(id, [1; 32]);
    stream.write_all(&first).unwrap();
    let nonce = receive(net, &mut stream, 32);
    let proof = |label: &[u8; 32]| {
        let mut hasher = blake3::Hasher::new_keyed(&KEY);
        *hasher.update(label).update(&first).update(&nonce).finalize().as_bytes()
    };
    stream.write_all(&proof(b"windlass tcp preamble 1: active ")).unwrap();
    assert_eq!(receive(net, &mut stream, 32), proof(b"windlass tcp preamble 1: passive"));
    net.connected(0, id);
    (id, stream)
}

/// Exactly `count` bytes, while the net is driven.
pub fn receive(net: &mut Net, stream: &mut TcpStream, count: usize) -> Vec<u8> {
    receive_or_end(net, stream, count).expect("the other end closed the connection")
}

/// The same; `None` when the other end closed the connection before they were all there.
pub fn receive_or_end(net: &mut Net, stream: &mut TcpStream, count: usize) -> Option<Vec<u8>> {
    let mut out = vec![0; count];
    let (mut got, mut ended) = (0, false);
    net.until("bytes for the raw peer", |_| {
        match stream.read(&mut out[got..]) {
            Ok(0) => ended = true,
            Ok(n) => got += n,
            Err(e) if e.kind() == ErrorKind::WouldBlock => {}
            Err(_) => ended = true,
        }
        got == count || ended
    });
    (got == count).then_some(out)
}

/// Whether the other end has closed the stream (after giving up what it had sent).
pub fn is_closed(stream: &mut TcpStream) -> bool {
    let mut scratch = [0; 4096];
    loop {
        match stream.read(&mut scratch) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(e) if e.kind() == ErrorKind::WouldBlock => return false,
            Err(_) => return true,
        }
    }
}

/// Sends all of `bytes`, while the net is driven; false when the other end closed the connection meanwhile.
pub fn pour(net: &mut Net, stream: &mut TcpStream, mut bytes: &[u8]) -> bool {
    let limit = Instant::now() + LIMIT;
    while !bytes.is_empty() {
        assert!(Instant::now() < limit, "{} bytes can't be sent", bytes.len());
        match stream.write(bytes) {
            Ok(sent) => bytes = &bytes[sent..],
            Err(e) if e.kind() == ErrorKind::WouldBlock => {
                net.step();
            }
            Err(_) => return false,
        }
    }
    true
}

/// The 32 bytes before a payload.
#[derive(Clone, Copy, Default)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub reserved: u16,
    pub key: u32,
    pub offset: u64,
    pub length: u32,
    pub imm: u32,
    pub read: u64,
}

impl Frame {
    pub fn bytes(&self) -> Vec<u8> {
        let mut out = vec![self.kind, self.flags];
        out.extend_from_slice(&self.reserved.to_le_bytes());
        out.extend_from_slice(&self.key.to_le_bytes());
        out.extend_from_slice(&self.offset.to_le_bytes());
        out.extend_from_slice(&self.length.to_le_bytes());
        out.extend_from_slice(&self.imm.to_le_bytes());
        out.extend_from_slice(&self.read.to_le_bytes());
        out
    }
}
