//! The headers of the data path, and the body of a sparse request.

use windlass::mem::{RemoteRegion, Rights};
use windlass::proto::{
    HEADER, ReplyHeader, ReplyKind, RequestHeader, RequestKind, SparseBody, WorkerMessage, packed,
};
use windlass::types::DirectoryEntry;

use super::Bytes;

/// 64 bytes, with magic, version and CRC mended unless the 65th is odd.
fn header(data: &[u8], magic: [u8; 2]) -> [u8; HEADER] {
    let mut input = Bytes(data);
    let mut bytes: [u8; HEADER] = input.array();
    if input.u8() & 1 == 0 {
        bytes[..2].copy_from_slice(&magic);
        bytes[2] = 2;
        seal(&mut bytes);
    }
    bytes
}

fn seal(bytes: &mut [u8; HEADER]) {
    let check = crc32c::crc32c(&bytes[..60]);
    bytes[60..].copy_from_slice(&check.to_le_bytes());
}

/// What decodes is what encodes to the same bytes, and nothing else.
pub fn request(data: &[u8]) {
    let bytes = header(data, *b"WL");
    match RequestHeader::decode(&bytes) {
        Ok(header) => assert_eq!(header.encode(), bytes),
        Err(malformed) => assert!(!malformed.field.is_empty()),
    }
}

pub fn request_seeds() -> Vec<Vec<u8>> {
    [
        RequestKind::Push,
        RequestKind::Pull,
        RequestKind::Mark,
        RequestKind::Finish,
        RequestKind::Set,
        RequestKind::Batch,
    ]
    .map(|kind| example(kind).encode().to_vec())
    .to_vec()
}

fn example(kind: RequestKind) -> RequestHeader {
    RequestHeader {
        kind,
        after_push: kind == RequestKind::Pull,
        void: false,
        keys: Default::default(),
        packed: false,
        sequence: 3,
        clock: 9,
        region: 0,
        chain: 0x0A0B,
        argument: 4096,
        table: 3,
        bucket: 17,
        epoch: 1,
        first: 2,
        count: 3,
        length: 16 + 24,
        tag: 5,
    }
}

/// As [`request`].
pub fn reply(data: &[u8]) {
    let bytes = header(data, *b"WR");
    match ReplyHeader::decode(&bytes) {
        Ok(header) => assert_eq!(header.encode(), bytes),
        Err(malformed) => assert!(!malformed.field.is_empty()),
    }
}

pub fn reply_seeds() -> Vec<Vec<u8>> {
    let reply = |kind| ReplyHeader {
        kind,
        sequence: 7,
        closed: 3,
        version: 2,
        freed: 1 << 63,
        epoch: 4,
        count: 5,
        tag: 6,
        chain: if kind == ReplyKind::Pulled { 0x0A0B } else { 0 },
        bucket: if matches!(kind, ReplyKind::Stale | ReplyKind::NonFinite) { 9 } else { 0 },
        withdrawn: 1,
    };
    [ReplyKind::Credit, ReplyKind::Pulled, ReplyKind::Stale, ReplyKind::NonFinite]
        .map(|kind| reply(kind).encode().to_vec())
        .to_vec()
}

/// What a worker says outside the slots: as [`request`].
pub fn message(data: &[u8]) {
    match WorkerMessage::decode(data) {
        Ok(message) => {
            let (bytes, length) = message.encode();
            assert_eq!(&bytes[..length], data);
        }
        Err(malformed) => assert!(!malformed.field.is_empty()),
    }
}

pub fn message_seeds() -> Vec<Vec<u8>> {
    let region = RemoteRegion { address: 64, length: 4096, key: 7, rights: Rights::Write };
    [
        WorkerMessage::RingRead(3),
        WorkerMessage::Announce { number: 63, region },
        WorkerMessage::Withdraw { number: 1 },
    ]
    .map(|message| {
        let (bytes, length) = message.encode();
        bytes[..length].to_vec()
    })
    .to_vec()
}

/// What is announced lies inside the length that the header gives.
pub fn sparse(data: &[u8]) {
    let mut input = Bytes(data);
    let kind = [RequestKind::Push, RequestKind::Pull, RequestKind::Set][usize::from(input.u8()) % 3];
    let dim = usize::from(input.u16()) % ((1 << 14) + 1);
    let (first, count) = (input.u32(), input.u32());
    let mut header = RequestHeader { kind, first, count, ..example(kind) };
    header.length = input.u32();
    let Ok(body) = SparseBody::announced(&header, dim * 4) else { return };
    assert!(body.entries >= 1 && body.entries <= body.keys);
    assert!(body.keys_at() <= body.values_at() && body.values_at() <= body.length());
    assert_eq!(body.length(), header.length as usize);
}

/// Ascending keys, or an error, whatever the words are.
pub fn packed(data: &[u8]) {
    let mut input = Bytes(data);
    let lines = usize::from(input.u8()) % 8;
    let entry = |bucket, keys: u8| DirectoryEntry { bucket, keys: keys.into() };
    let directory: Vec<_> = (0..lines as u32).map(|bucket| entry(bucket, input.u8())).collect();
    let extra = usize::from(input.u8() == 255);
    let words: Vec<u64> = std::iter::from_fn(|| (!input.is_empty()).then(|| input.u64())).collect();
    let mut keys = vec![0; directory.iter().map(|entry| entry.keys as usize).sum::<usize>() + extra];
    if packed::decode(&directory, &words, &mut keys).is_ok() {
        let mut rest = &keys[..];
        for entry in directory {
            let (here, behind) = rest.split_at(entry.keys as usize);
            assert!(here.windows(2).all(|w| w[0] < w[1]));
            rest = behind;
        }
    }
}

pub fn packed_seeds() -> Vec<Vec<u8>> {
    let seed = |counts: &[u8], words: &[u64]| {
        let words = words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
        [&[counts.len() as u8][..], counts, &[0], &words].concat()
    };
    vec![seed(&[4, 1], &[2, 10, 24, u64::MAX]), seed(&[3], &[0, 7]), seed(&[2], &[56, 1, 1 << 55])]
}

pub fn sparse_seeds() -> Vec<Vec<u8>> {
    let seed = |kind: u8, dim: u16, first: u32, count: u32, length: u32| {
        let numbers = [first, count, length].map(u32::to_le_bytes).concat();
        [&[kind][..], &dim.to_le_bytes(), &numbers].concat()
    };
    vec![
        seed(0, 2, 1, 2, 8 + 16 + 16),
        seed(1, 2, 2, 3, 16 + 24),
        seed(2, 1, 1, 1, 8 + 8 + 4),
        seed(0, 16384, 1, u32::MAX, u32::MAX),
    ]
}
