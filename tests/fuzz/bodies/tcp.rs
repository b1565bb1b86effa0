//! A tcp data port: the preamble of a stranger, the frames of a peer, and the addresses that are dialled.

use std::cell::RefCell;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use windlass::mem::{Arena, RegionId, Rights};
use windlass::transport::tcp::{Tcp, TcpConfig};
use windlass::transport::{Completion, EndpointId, Side, Transport};

use super::Bytes;

const KEY: [u8; 32] = [7; 32];
const GRANTED: usize = 4096;
/// More turns of `poll` than anything here takes.
const PATIENCE: u32 = 1_000_000;

struct Port {
    tcp: Tcp,
    region: RegionId,
    address: SocketAddr,
}

thread_local! {
    static PORT: RefCell<Port> = RefCell::new({
        let mut tcp = Tcp::new(TcpConfig::default()).unwrap();
        let region = tcp.register(Arena::new(GRANTED).unwrap()).unwrap();
        let address = tcp.local_address().unwrap();
        Port { tcp, region, address }
    });
}

impl Port {
    fn poll(&mut self) -> Vec<Completion> {
        let mut completions = Vec::new();
        self.tcp.flush();
        self.tcp.poll(&mut completions, 64);
        completions
    }

    /// Bytes from the port; `None` when it closes the connection first.
    fn answer(&mut self, stream: &mut TcpStream) -> Option<[u8; 32]> {
        let (mut out, mut got) = ([0; 32], 0);
        for _ in 0..PATIENCE {
            self.poll();
            match stream.read(&mut out[got..]) {
                Ok(0) => return None,
                Ok(n) => got += n,
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                Err(_) => return None,
            }
            if got == out.len() {
                return Some(out);
            }
        }
        panic!("no answer to the preamble");
    }

    /// A connection that has said `first`.
    fn stranger(&self, first: &[u8]) -> TcpStream {
        let mut stream = TcpStream::connect_timeout(&self.address, Duration::from_secs(10)).unwrap();
        stream.set_nonblocking(true).unwrap();
        // Closed by a reset: nothing of it waits for minutes.
        socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
        stream.write_all(first).unwrap();
        stream
    }

    fn close(&mut self, endpoint: EndpointId) {
        self.tcp.close(endpoint);
        for _ in 0..PATIENCE {
            if self
                .poll()
                .iter()
                .any(|c| matches!(c, Completion::Closed { endpoint: e, .. } if *e == endpoint))
            {
                return;
            }
        }
        panic!("the endpoint does not close");
    }
}

/// The first byte says how far the bytes behind it are mended: not at all, after a right dial, or as frames of a peer.
pub fn stream(data: &[u8]) {
    PORT.with_borrow_mut(|port| {
        let mut input = Bytes(data);
        let how = input.u8();
        let (id, _) = port.tcp.open(Side::Passive, "peer").unwrap();
        let granted = port.tcp.authorise(id, port.region, 0, GRANTED, Rights::ReadWrite).unwrap();
        port.tcp.connect(id, &[0], &KEY).unwrap();
        if how % 4 == 0 {
            let _stream = port.stranger(input.0);
            (0..3).for_each(|_| assert!(port.poll().is_empty(), "a stranger is no peer"));
            return port.close(id);
        }
        let mut dial = b"WLTC\x01\0\0\0".to_vec();
        dial.extend_from_slice(&id.index.to_le_bytes());
        dial.extend_from_slice(&id.generation.to_le_bytes());
        dial.extend_from_slice(&[3; 32]);
        let mut stream = port.stranger(&dial);
        let Some(nonce) = port.answer(&mut stream) else { panic!("a right dial was not answered") };
        if how % 4 == 1 {
            let _ = stream.write_all(input.0);
            (0..3).for_each(|_| assert!(port.poll().is_empty(), "a stranger is no peer"));
            return port.close(id);
        }
        let mut hasher = blake3::Hasher::new_keyed(&KEY);
        hasher.update(b"windlass tcp preamble 1: active ").update(&dial).update(&nonce);
        stream.write_all(hasher.finalize().as_bytes()).unwrap();
        assert!(port.answer(&mut stream).is_some(), "a right proof was not answered");
        // A receive buffer of ours that fills up, as with many reads, is part of the game.
        let _ = stream.write_all(&frames(input, granted.key));
        let mut idle = 0;
        while idle < 3 {
            let seen = port.poll();
            idle = if seen.is_empty() { idle + 1 } else { 0 };
            for completion in seen {
                match completion {
                    Completion::Written { endpoint, length, .. } => {
                        assert!(endpoint == id && length as usize <= GRANTED);
                    }
                    Completion::Received { endpoint, .. } => assert_eq!(endpoint, id),
                    Completion::Closed { endpoint, reason } => {
                        assert!(endpoint == id && reason.is_some());
                        return;
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
        port.close(id);
    });
}

/// Frames with what a peer knows put right: the key, and small numbers, unless a frame's first byte says otherwise.
fn frames(mut input: Bytes<'_>, key: u32) -> Vec<u8> {
    let mut out = Vec::new();
    while !input.is_empty() {
        let how = input.u8();
        if how & 0x80 != 0 {
            out.extend_from_slice(input.take(64));
            continue;
        }
        let (kind, has_imm) = (how & 7, how & 8 != 0);
        let (offset, length) = (u64::from(input.u16()), u32::from(input.u16()));
        let (keyed, numbered) = (kind & 1 == 1, kind >= 3);
        out.extend_from_slice(&[kind, u8::from(has_imm), 0, 0]);
        out.extend_from_slice(&(if keyed { key } else { 0 }).to_le_bytes());
        out.extend_from_slice(&(if keyed { offset } else { 0 }).to_le_bytes());
        out.extend_from_slice(&length.to_le_bytes());
        out.extend_from_slice(&(if has_imm { 5u32 } else { 0 }).to_le_bytes());
        out.extend_from_slice(&(if numbered { offset } else { 0 }).to_le_bytes());
        if kind <= 2 {
            out.resize(out.len() + length.min(8192) as usize, 1);
        }
    }
    out
}

pub fn stream_seeds() -> Vec<Vec<u8>> {
    let frame = |how: u8, offset: u16, length: u16| {
        [&[how][..], &offset.to_le_bytes(), &length.to_le_bytes()].concat()
    };
    let talk = [frame(9, 64, 100), frame(1, 0, 4096), frame(2, 0, 8), frame(3, 5, 90), frame(3, 0, 4096)];
    vec![
        [&[0][..], b"WLTC\x01\0\0\0", &[0; 40]].concat(),
        vec![1; 33],
        [&[2][..], &talk.concat()].concat(),
        [&[2][..], &frame(9, 4000, 97)].concat(),
        [&[2][..], &frame(4, 1, 9)].concat(),
        [&[2, 0x81][..], &[1; 32]].concat(),
    ]
}

/// Address bytes that a peer gives us to dial. IP and port, where there are any, are put right: nobody else is dialled.
pub fn address(data: &[u8]) {
    PORT.with_borrow_mut(|port| {
        let mut bytes = data.to_vec();
        let (ip, at): (&[u8], usize) = match bytes.first() {
            Some(4) => (&[127, 0, 0, 1], 5),
            Some(6) => (&std::net::Ipv6Addr::LOCALHOST.octets(), 17),
            _ => (&[], 0),
        };
        if !ip.is_empty() && bytes.len() >= at + 2 {
            bytes[1..at].copy_from_slice(ip);
            bytes[at..at + 2].copy_from_slice(&port.address.port().to_le_bytes());
        }
        let (id, _) = port.tcp.open(Side::Active, "peer").unwrap();
        let whole = (bytes.first() == Some(&4) && bytes.len() == 15)
            || (bytes.first() == Some(&6) && bytes.len() == 27);
        match port.tcp.connect(id, &bytes, &KEY) {
            Ok(()) => assert!(whole),
            Err(error) => assert!(!whole || !error.to_string().is_empty()),
        }
        port.close(id);
    });
}

pub fn address_seeds() -> Vec<Vec<u8>> {
    let four = [&[4, 127, 0, 0, 1, 9, 9][..], &[0; 8]].concat();
    vec![four, [&[6][..], &[0; 26]].concat(), vec![0], vec![]]
}
