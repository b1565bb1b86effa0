//! Frames as bytes, by criterion: headers with their checksums, and the keys of sparse frames packed and hashed, beside copies of as many
//! bytes in the same run.
//!
//! ```text
//! cargo bench --bench codec             # GB/s of headers, keys/s of keys
//! cargo bench --bench codec -- --test   # one run of each
//! ```

#![allow(clippy::unwrap_used)] // nobody but a developer sees it fail
#![allow(missing_docs)] // criterion's macros

use std::hint::black_box;
use std::time::Duration;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main};
use windlass::kernels::header_crc;
use windlass::proto::{
    HEADER, KeysAt, ListName, NO_BASE, ReplyHeader, ReplyKind, RequestHeader, RequestKind, SparseBody, packed,
};
use windlass::types::{DirectoryEntry, Key, mix64};

/// Headers of one run: 64 KiB of them.
const HEADERS: u32 = 1024;
/// Keys of a frame, in so many buckets.
const KEYS: usize = 2048;
const BUCKETS: usize = 16;
/// Bytes of a row in a frame, whose header announces them.
const ROW: usize = 64;

fn group<'c>(
    criterion: &'c mut Criterion,
    name: &str,
    throughput: Throughput,
) -> BenchmarkGroup<'c, WallTime> {
    let mut group = criterion.benchmark_group(name);
    group.warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1)).sample_size(20);
    group.throughput(throughput);
    group
}

/// The header of one piece of a dense push.
fn dense(number: u32) -> RequestHeader {
    let push = RequestHeader { kind: RequestKind::Push, argument: NO_BASE, ..RequestHeader::new(7, 1) };
    let sequence = u64::from(number);
    RequestHeader { sequence, table: 3, bucket: number, count: 65_536, length: 262_144, tag: number, ..push }
}

/// And of a sparse one, whose keys are packed.
fn sparse(number: u32) -> RequestHeader {
    let body = SparseBody {
        at: KeysAt::Here,
        entries: BUCKETS,
        keys: KEYS,
        key_bytes: 4096,
        packed: true,
        row_bytes: ROW,
    };
    RequestHeader {
        packed: true,
        bucket: body.key_bytes as u32,
        first: body.entries as u32,
        count: body.keys as u32,
        length: body.length() as u32,
        ..dense(number)
    }
}

fn reply(number: u32) -> ReplyHeader {
    ReplyHeader {
        kind: ReplyKind::Pulled,
        sequence: u64::from(number),
        closed: 6,
        version: 40,
        freed: 1 << (number % 16),
        epoch: 1,
        count: 65_536,
        tag: number,
        withdrawn: 0,
        chain: 0,
        bucket: 0,
    }
}

type Bytes = [u8; HEADER];

/// What becomes of each of the headers, one after another, in memory that stays in a core's own cache.
fn each(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    headers: &[Bytes],
    mut run: impl FnMut(&Bytes),
) {
    group.bench_function(name, |b| b.iter(|| headers.iter().for_each(&mut run)));
}

fn headers(criterion: &mut Criterion) {
    let mut group = group(criterion, "header", Throughput::Bytes(u64::from(HEADERS) * HEADER as u64));
    let of = |encode: fn(u32) -> Bytes| (0..HEADERS).map(encode).collect::<Vec<Bytes>>();
    let (pushes, rows) = (of(|n| dense(n).encode()), of(|n| sparse(n).encode()));
    let replies = of(|n| reply(n).encode());
    for n in 0..HEADERS {
        assert_eq!(RequestHeader::decode(&pushes[n as usize]), Ok(dense(n)));
        assert_eq!(RequestHeader::decode(&rows[n as usize]), Ok(sparse(n)));
        assert_eq!(ReplyHeader::decode(&replies[n as usize]), Ok(reply(n)));
        let crc = crc32c::crc32c(&pushes[n as usize][..HEADER - 4]);
        assert_eq!(header_crc(&pushes[n as usize]), crc);
    }
    let mut out = vec![[0; HEADER]; HEADERS as usize];
    group.bench_function("copy", |b| b.iter(|| black_box(&mut out).copy_from_slice(black_box(&pushes))));
    each(&mut group, "CRC32C", &pushes, |bytes| {
        black_box(header_crc(bytes));
    });
    each(&mut group, "CRC32C of any length", &pushes, |bytes| {
        black_box(crc32c::crc32c(&bytes[..HEADER - 4]));
    });
    let mut encoded = |name: &str, encode: fn(u32) -> Bytes| {
        group.bench_function(name, |b| {
            b.iter(|| (0..).zip(&mut out).for_each(|(n, out)| *out = encode(black_box(n))));
        });
    };
    encoded("dense push, encode", |n| dense(n).encode());
    encoded("reply, encode", |n| reply(n).encode());
    each(&mut group, "dense push, decode", &pushes, |bytes| drop(black_box(RequestHeader::decode(bytes))));
    each(&mut group, "sparse push, decode and lay out", &rows, |bytes| {
        let header = RequestHeader::decode(bytes).unwrap();
        black_box(SparseBody::announced(&header, ROW).unwrap());
    });
    each(&mut group, "reply, decode", &replies, |bytes| drop(black_box(ReplyHeader::decode(bytes))));
    group.finish();
}

/// Sorted keys of several buckets, most of which lie some 500 apart, as those of 1 of 500 features do.
struct Keys {
    directory: Vec<DirectoryEntry>,
    keys: Vec<Key>,
    widths: Vec<u8>,
}

impl Keys {
    fn new() -> Keys {
        let entry = |bucket: usize| DirectoryEntry { bucket: bucket as u32, keys: (KEYS / BUCKETS) as u32 };
        let apart = |n: usize| mix64(n as u64) % 1000 + 1;
        let keys: Vec<Key> =
            (0..KEYS).scan(0, |key, n| Some(std::mem::replace(key, *key + apart(n)))).collect();
        let widths = keys.chunks(KEYS / BUCKETS).map(|run| packed::width(run.iter().copied())).collect();
        Keys { directory: (0..BUCKETS).map(entry).collect(), keys, widths }
    }

    /// As a worker does.
    fn pack(&self, words: &mut Vec<u64>) {
        words.clear();
        words.extend(self.widths.chunks_exact(8).map(bytemuck::pod_read_unaligned::<u64>));
        for (run, &width) in self.keys.chunks(KEYS / BUCKETS).zip(&self.widths) {
            packed::encode(run.iter().copied(), width, |word| words.push(word));
        }
    }
}

fn keys(criterion: &mut Criterion) {
    let mut group = group(criterion, "keys", Throughput::Elements(KEYS as u64));
    let frame = Keys::new();
    let (mut words, mut out, secret) = (Vec::new(), vec![0; KEYS], [7; 32]);
    frame.pack(&mut words);
    assert!(words.len() < KEYS / 4, "{} words", words.len());
    packed::decode(&frame.directory, &words, &mut out).unwrap();
    assert_eq!(out, frame.keys);
    let hash = |keys: &[Key]| ListName::hash(&secret, keys.iter().copied());
    let mut other = frame.keys.clone();
    other[KEYS - 1] += 1;
    assert!(hash(&frame.keys) == hash(&out) && hash(&frame.keys) != hash(&other));

    group.bench_function("copy", |b| b.iter(|| black_box(&mut out).copy_from_slice(black_box(&frame.keys))));
    group.bench_function("width", |b| {
        b.iter(|| frame.keys.chunks(KEYS / BUCKETS).map(|run| packed::width(run.iter().copied())).max());
    });
    group.bench_function("pack", |b| b.iter(|| black_box(&frame).pack(&mut words)));
    group.bench_function("unpack", |b| {
        b.iter(|| packed::decode(&frame.directory, black_box(&words), &mut out).unwrap());
    });
    group.bench_function("hash", |b| b.iter(|| hash(black_box(&frame.keys))));
    group.finish();
}

criterion_group!(codec_benches, headers, keys);
criterion_main!(codec_benches);
