//! The Unix socket of a shm transport: the preamble of a stranger, and what a peer says on the socket and puts into its ring.

use std::cell::RefCell;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};
use windlass::mem::{Arena, RegionId, Rights};
use windlass::transport::shm::{Shm, ShmConfig};
use windlass::transport::{Completion, EndpointId, Side, Transport};

use super::Bytes;

const KEY: [u8; 32] = [7; 32];
const GRANTED: usize = 4096;
/// What a peer may show us.
const MOST_SHOWN: usize = 3 * SHOWN;
const SHOWN: usize = 8192;
/// More turns of `poll` than anything here takes.
const PATIENCE: u32 = 1_000_000;
/// Of a ring, as in docs/wire.md.
const CELLS_AT: u64 = 192;
const CELLS: u64 = 509;
const CELL: u64 = 64;

struct Port {
    shm: Shm,
    region: RegionId,
    /// Memory as it has to be to be mapped, and some with holes.
    files: [OwnedFd; 2],
}

thread_local! {
    static PORT: RefCell<Port> = RefCell::new(Port::new());
}

/// A sealed memfd of which so many bytes are there.
fn memory(there: usize) -> OwnedFd {
    let file = rustix::fs::memfd_create("fuzz", MemfdFlags::ALLOW_SEALING).unwrap();
    rustix::fs::ftruncate(&file, SHOWN as u64).unwrap();
    assert_eq!(rustix::io::pwrite(&file, &vec![0; there], 0), Ok(there));
    let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::FUTURE_WRITE;
    rustix::fs::fcntl_add_seals(&file, seals).unwrap();
    file
}

fn send(socket: &OwnedFd, bytes: &[u8], file: Option<&OwnedFd>) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let files = file.map(|file| [file.as_fd()]);
    if let Some(files) = &files {
        ancillary.push(SendAncillaryMessage::ScmRights(files));
    }
    // It may be full, or closed by the other side.
    let _ = rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL);
}

impl Port {
    fn new() -> Port {
        let config = ShmConfig { max_shown: MOST_SHOWN, ..ShmConfig::default() };
        let mut shm = Shm::new(config, true).unwrap();
        let region = shm.register(Arena::new(GRANTED).unwrap()).unwrap();
        Port { shm, region, files: [SHOWN, 0].map(memory) }
    }

    fn poll(&mut self) -> Vec<Completion> {
        let mut completions = Vec::new();
        self.shm.flush();
        self.shm.poll(&mut completions, 64);
        completions
    }

    /// A packet of 32 bytes from the port, and a descriptor; `None` when it closes the connection first.
    fn answer(&mut self, socket: &OwnedFd) -> Option<([u8; 32], Option<OwnedFd>)> {
        for _ in 0..PATIENCE {
            self.poll();
            let mut bytes = [0; 32];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut ancillary = RecvAncillaryBuffer::new(&mut space);
            let mut parts = [IoSliceMut::new(&mut bytes)];
            match rustix::net::recvmsg(socket, &mut parts, &mut ancillary, RecvFlags::DONTWAIT) {
                Ok(received) if received.bytes == 32 => {
                    let files = ancillary.drain().find_map(|message| match message {
                        RecvAncillaryMessage::ScmRights(mut files) => files.next(),
                        _ => None,
                    });
                    return Some((bytes, files));
                }
                Err(rustix::io::Errno::AGAIN) => {}
                Ok(_) | Err(_) => return None,
            }
        }
        panic!("no answer to the preamble");
    }

    fn close(&mut self, endpoint: EndpointId) {
        self.shm.close(endpoint);
        let closed = |c: &Completion| matches!(c, Completion::Closed { endpoint: e, .. } if *e == endpoint);
        assert!((0..PATIENCE).any(|_| self.poll().iter().any(closed)), "the endpoint does not close");
    }

    /// What an endpoint reports; true when that is its end.
    fn hears(&mut self, id: EndpointId) -> (bool, bool) {
        let (mut heard, mut ended) = (false, false);
        for completion in self.poll() {
            heard = true;
            match completion {
                Completion::Connected { endpoint } => assert_eq!(endpoint, id),
                Completion::Written { endpoint, length, .. } => {
                    assert!(endpoint == id && length as usize <= GRANTED);
                }
                Completion::Lent { endpoint, length, body, .. } => {
                    assert!(endpoint == id && length as usize <= GRANTED && body.length <= GRANTED);
                    body.arena.at(body.offset, body.length);
                }
                Completion::Received { endpoint, .. } => assert_eq!(endpoint, id),
                Completion::Closed { endpoint, reason } => {
                    assert!(endpoint == id && reason.is_some());
                    ended = true;
                }
                other @ Completion::Done { .. } => panic!("{other:?}"),
            }
        }
        (heard, ended)
    }
}

/// The first byte says how far the bytes behind it are mended: not at all, after a right dial, or as operations of a peer.
pub fn socket(data: &[u8]) {
    PORT.with_borrow_mut(|port| {
        let mut input = Bytes(data);
        let how = input.u8();
        let (id, address) = port.shm.open(Side::Passive, "peer").unwrap_or_else(|error| {
            // The one before has shown more than it may, and nobody of its name is let in again.
            assert!(matches!(error, windlass::Error::Limit { .. }), "{error}");
            *port = Port::new();
            port.shm.open(Side::Passive, "peer").unwrap()
        });
        let granted = port.shm.authorise(id, port.region, 0, GRANTED, Rights::ReadWrite).unwrap();
        port.shm.connect(id, &[0], &KEY).unwrap();
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        let name = u128::from_be_bytes(address[17..33].try_into().unwrap());
        let name = SocketAddrUnix::new_abstract_name(format!("windlass-{name:032x}").as_bytes()).unwrap();
        rustix::net::connect(&socket, &name).unwrap();
        let mut dial = b"WLSH\x01\0\0\0".to_vec();
        dial.extend_from_slice(&id.index.to_le_bytes());
        dial.extend_from_slice(&id.generation.to_le_bytes());
        dial.extend_from_slice(&[3; 32]);
        let nonce = (how % 4 > 0).then(|| {
            send(&socket, &dial, None);
            port.answer(&socket).unwrap().0
        });
        let Some(nonce) = nonce.filter(|_| how % 4 > 1) else {
            while !input.is_empty() {
                let length = usize::from(input.u8());
                let file = (length > 128).then(|| &port.files[0]);
                send(&socket, input.take(length % 80), file);
                assert!(port.poll().is_empty(), "a stranger is no peer");
            }
            return port.close(id);
        };
        let mut hasher = blake3::Hasher::new_keyed(&KEY);
        hasher.update(b"windlass tcp preamble 1: active ").update(&dial).update(&nonce);
        send(&socket, hasher.finalize().as_bytes(), None);
        let Some((_, Some(rings))) = port.answer(&socket) else { panic!("a right proof was not answered") };
        let (mut tail, mut idle) = (0, 0);
        while !input.is_empty() {
            operation(&mut input, (&socket, &rings), &mut tail, granted.key, &port.files);
            if port.hears(id).1 {
                return;
            }
        }
        while idle < 3 {
            let (heard, ended) = port.hears(id);
            if ended {
                return;
            }
            idle = if heard { 0 } else { idle + 1 };
        }
        port.close(id);
    });
}

/// An entry with what a peer knows put right, unless its first byte says that it is something else: bytes in the place of an entry, a
/// packet, one that shows memory, or a word of what both sides write.
fn operation(
    input: &mut Bytes<'_>,
    (socket, rings): (&OwnedFd, &OwnedFd),
    tail: &mut u64,
    key: u32,
    files: &[OwnedFd; 2],
) {
    // The active side's ring is the first.
    let put = |at: u64, bytes: &[u8]| assert_eq!(rustix::io::pwrite(rings, bytes, at), Ok(bytes.len()));
    let how = input.u8();
    let (entry, inline) = match how {
        0x80..0xa0 => (input.array(), usize::from(input.u16() % 9000)),
        0xa0..0xc0 => return send(socket, input.take(usize::from(how % 0x20)), None),
        0xc0..0xe0 => {
            let packet = [&[1][..], &input.array::<4>(), &u64::from(input.u32()).to_le_bytes()].concat();
            return send(socket, &packet, Some(&files[usize::from(how & 1)]));
        }
        0xe0.. => {
            let (ring, word) = (u64::from(how & 1) * (CELLS_AT + CELLS * CELL), u64::from(input.u8() % 24));
            return put(ring + word * 8, &input.array::<8>());
        }
        _ => {
            let (kind, imm, source, lent) = (how & 7, how & 8 != 0, how & 16 != 0, how & 32 != 0);
            let (offset, length, inline) =
                (u64::from(input.u16()), u32::from(input.u16()), input.u16() % 9000);
            let (keyed, numbered) = (kind & 1 == 1 && kind < 5, kind == 3 || kind == 4);
            let flags = u8::from(imm) | u8::from(source) << 1 | u8::from(lent) << 2;
            let mut entry = [0; CELL as usize];
            (entry[0], entry[1]) = (kind, flags);
            entry[2..4].copy_from_slice(&inline.to_le_bytes());
            entry[4..8].copy_from_slice(&(if keyed { key } else { 0 }).to_le_bytes());
            entry[8..16].copy_from_slice(&(if keyed { offset } else { 0 }).to_le_bytes());
            entry[16..20].copy_from_slice(&(if kind < 5 { length } else { 0 }).to_le_bytes());
            entry[24..32].copy_from_slice(&(if numbered { offset } else { 0 }).to_le_bytes());
            if source || kind == 6 {
                entry[32] = (offset % 4) as u8;
            }
            if source {
                entry[40..48].copy_from_slice(&(offset * 4).to_le_bytes());
            }
            (entry, usize::from(inline))
        }
    };
    let cells = [&entry[..], &vec![9; inline.next_multiple_of(CELL as usize)]].concat();
    for cell in cells.chunks(CELL as usize) {
        put(CELLS_AT + *tail % CELLS * CELL, cell);
        *tail += 1;
    }
    put(0, &tail.to_le_bytes());
}

pub fn socket_seeds() -> Vec<Vec<u8>> {
    let entry = |how: u8, offset: u16, length: u16, inline: u16| {
        [&[how][..], &offset.to_le_bytes(), &length.to_le_bytes(), &inline.to_le_bytes()].concat()
    };
    let show =
        |how: u8, place: u32, bytes: u32| [&[how][..], &place.to_le_bytes(), &bytes.to_le_bytes()].concat();
    let peer = |operations: &[Vec<u8>]| [&[2][..], &operations.concat()].concat();
    vec![
        [&[0, 48][..], b"WLSH\x01\0\0\0", &[0; 40]].concat(),
        [&[1, 32][..], &[1; 32], &[160], &[2; 32]].concat(),
        peer(&[entry(9, 64, 100, 100), entry(1, 0, 4096, 4096), entry(2, 0, 8, 8), entry(3, 5, 90, 0)]),
        peer(&[
            show(0xc0, 1, SHOWN as u32),
            entry(9 | 16, 1, 4000, 64),
            entry(9 | 16 | 32, 5, 128, 64),
            entry(6, 1, 0, 0),
        ]),
        // Another is shown by its number, then in parts, rung in between.
        peer(&[
            show(0xc0, 0, 4096),
            entry(6, 0, 0, 0),
            show(0xc0, 0, 4096),
            entry(9, 0, 200, 100),
            vec![0xa1, 0],
            entry(5, 0, 0, 100),
        ]),
        peer(&[show(0xc1, 0, 4096)]),
        peer(&(0..4).map(|place| show(0xc0, place, SHOWN as u32)).collect::<Vec<_>>()),
        peer(&[vec![0xe0, 0, 255, 255, 0, 0, 0, 0, 0, 0], entry(9, 4000, 97, 97)]),
        [&[2, 0x81][..], &[1; 66]].concat(),
    ]
}
