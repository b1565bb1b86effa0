//! Control messages: frames with a right MAC and any body, what the Coordinator makes of them, and table specifications.

use std::time::{Duration, Instant};

use windlass::cluster::coordinator::{Coordinator, CoordinatorConfig, Input, Output};
use windlass::config::TransportKind;
use windlass::mem::RemoteRegion;
use windlass::proto::control::{ControlMessage, FrameReader, FrameWriter, MAX_BODY};
use windlass::store::{Optimizers, Shard};
use windlass::types::{
    Consistency, Identity, Initializer, Lack, Late, NonFinite, Offer, OptimizerSpec, PartitionMap, Quorum,
    Role, ServerInfo, ShardId, Stale, TableSpec, View,
};

use super::Bytes;

const KEY: [u8; 32] = [7; 32];

fn seal(number: u64, body: &[u8]) -> Vec<u8> {
    let mut frame = (body.len() as u32).to_le_bytes().to_vec();
    frame.extend_from_slice(body);
    let mut hasher = blake3::Hasher::new_keyed(&KEY);
    hasher.update(&number.to_le_bytes()).update(&frame);
    frame.extend_from_slice(hasher.finalize().as_bytes());
    frame
}

/// Every frame is refused, or decodes to a message that encodes and decodes to itself.
pub fn frames(data: &[u8]) {
    let mut input = Bytes(data);
    let cut = usize::from(input.u8());
    let mut stream = Vec::new();
    let mut number = 0;
    while !input.is_empty() {
        let length = input.u16();
        let body = input.take(usize::from(length & 0x7fff));
        if length & 0x8000 == 0 {
            stream.extend_from_slice(&seal(number, body));
            number += 1;
        } else {
            stream.extend_from_slice(body);
        }
    }
    let mut reader = FrameReader::new(KEY);
    let mut at = 0;
    let cut = cut.min(stream.len());
    assert!(!matches!(FrameReader::new([8; 32]).decode(&stream, "peer"), Ok(Some(_))), "another key");
    for end in [cut, stream.len()] {
        loop {
            match reader.decode(&stream[at..end], "peer") {
                Ok(Some((used, message))) => {
                    at += used;
                    round_trip(&message);
                }
                Ok(None) => break,
                Err(_) => return,
            }
        }
    }
}

fn round_trip(message: &ControlMessage) {
    let mut out = Vec::new();
    // The spec of an OpenTable is checked by the Coordinator, and only bounded by the frame until then.
    if FrameWriter::new(KEY).encode(message, &mut out).is_err() {
        return;
    }
    assert!(out.len() <= MAX_BODY + 36);
    let (used, again) = FrameReader::new(KEY).decode(&out, "peer").unwrap().unwrap();
    assert_eq!(used, out.len());
    // As text: a NaN is not equal to itself.
    assert_eq!(format!("{again:?}"), format!("{message:?}"));
    if let ControlMessage::OpenEndpoint { ring, receive, .. } = message {
        for region in [ring, receive] {
            assert!(RemoteRegion::decode(region).is_none_or(|r| r.encode() == *region));
        }
    }
}

fn body(message: &ControlMessage) -> Vec<u8> {
    let mut out = Vec::new();
    FrameWriter::new(KEY).encode(message, &mut out).unwrap();
    out[4..out.len() - 32].to_vec()
}

/// One message of each kind that carries something.
fn examples() -> Vec<ControlMessage> {
    let dense = TableSpec::dense("w", &[1000]).quorum(Quorum { workers: 2, late: Late::Apply });
    let sparse = TableSpec::sparse("v", 4)
        .consistency(Consistency::Ssp { staleness: 3 })
        .stale(Stale::Reject { max_age: 2 })
        .non_finite(NonFinite::Reject)
        .initializer(Initializer::Normal { mean: 0.0, std: 1.0, seed: 3 });
    let server = ServerInfo { rank: 0, address: "127.0.0.1:1".into(), threads: 2, first: 0 };
    let region =
        RemoteRegion { address: 0, length: 64, key: 1, rights: windlass::mem::Rights::Write }.encode();
    vec![
        ControlMessage::Join {
            role: Role::Worker,
            rank: Some(0),
            workers: Some(2),
            address: None,
            threads: 0,
            first: 0,
        },
        ControlMessage::Join {
            role: Role::Server,
            rank: None,
            workers: None,
            address: Some("127.0.0.1:9".into()),
            threads: 2,
            first: 2,
        },
        ControlMessage::Offer(Offer {
            kinds: TransportKind::ALL.to_vec(),
            lacks: vec![Lack { kind: TransportKind::Verbs, absent: true, why: "no device".into() }],
            host: [7; 16],
        }),
        ControlMessage::Agreed { transport: TransportKind::Tcp, local: true, reason: "no device".into() },
        ControlMessage::EndpointLost { thread: 1 },
        ControlMessage::Heartbeat { clock: 9, status: vec![1; 8] },
        ControlMessage::OpenTable { request: 3, spec: dense.clone() },
        ControlMessage::OpenTable { request: 4, spec: sparse },
        ControlMessage::TableReady { table: 0 },
        ControlMessage::TableFailed { table: 0, reason: "full".into() },
        ControlMessage::Barrier { id: 300 },
        ControlMessage::PeersQuery,
        ControlMessage::Finish,
        ControlMessage::View(View { epoch: 1, servers: vec![server], workers: 2 }),
        ControlMessage::TableOpened { request: 3, table: 0, spec: dense },
        ControlMessage::Abort { reason: "enough".into() },
        ControlMessage::OpenEndpoint {
            request: 1,
            thread: 0,
            transport: "tcp".into(),
            address: vec![0],
            ring: region,
            ring_entries: 4,
            receive: region,
        },
        ControlMessage::EndpointOpened {
            request: 1,
            address: vec![4, 127, 0, 0, 1],
            slots: region,
            slot_count: 2,
            slot_bytes: 4160,
            pull_credits: 4,
            key_lists: 5,
        },
        ControlMessage::Stats { request: 1, threads: vec![Default::default()], clocks: vec![7, 8] },
    ]
}

pub fn frame_seeds() -> Vec<Vec<u8>> {
    let framed = |m: &ControlMessage| {
        let body = body(m);
        [&(body.len() as u16).to_le_bytes()[..], &body].concat()
    };
    let mut seeds: Vec<Vec<u8>> = examples().iter().map(|m| [&[9][..], &framed(m)].concat()).collect();
    seeds.push([&[40][..], &examples().iter().flat_map(framed).collect::<Vec<u8>>()].concat());
    seeds
}

/// A Coordinator of two servers and two workers that may come, talk and go in any way. All that it says must fit a frame.
pub fn coordinator(data: &[u8]) {
    let mut input = Bytes(data);
    let start = Instant::now();
    let mut now = start;
    let workers = (input.u8() & 1 == 0).then_some(2);
    let mut coordinator = Coordinator::new(CoordinatorConfig::new(2, workers)).unwrap();
    let mut out = Vec::new();
    while !input.is_empty() {
        let op = input.u8();
        let link = u64::from(op >> 3 & 7);
        match op & 7 {
            0 => {
                let role = [Role::Worker, Role::Server, Role::Coordinator][usize::from(input.u8()) % 3];
                let rank = Some(u32::from(input.u8())).filter(|r| *r < 200);
                let peer = Identity { role, rank, incarnation: 1, process: "host:1".into() };
                let address = "127.0.0.1:5000".parse().unwrap();
                coordinator.handle(link, Input::Up { peer, address }, now, &mut out);
            }
            1 => coordinator.handle(link, Input::Down { reason: "gone".into() }, now, &mut out),
            2 => {
                now += Duration::from_secs(input.u8().into());
                coordinator.tick(now, &mut out);
            }
            _ => {
                let length = usize::from(input.u8());
                let frame = seal(0, input.take(length));
                if let Ok(Some((_, message))) = FrameReader::new(KEY).decode(&frame, "peer") {
                    coordinator.handle(link, Input::Message(message), now, &mut out);
                }
            }
        }
        for output in out.drain(..) {
            match output {
                Output::Send { message, .. } => {
                    FrameWriter::new(KEY).encode(&message, &mut Vec::new()).unwrap();
                }
                Output::Close { reason, .. } => assert!(!reason.is_empty()),
                Output::Commit { commit, .. } => assert_eq!(commit.states.len(), 2),
                // Of a job that is cut, and of one that goes on.
                Output::GiveUp { .. } | Output::Damaged { .. } => {}
            }
        }
    }
}

pub fn coordinator_seeds() -> Vec<Vec<u8>> {
    let up = |link: u8, role: u8, rank: u8| vec![link << 3, role, rank];
    let say = |link: u8, message: &ControlMessage| {
        let body = body(message);
        [&[link << 3 | 7, body.len() as u8][..], &body].concat()
    };
    let join = |role, rank, threads| {
        let address = (role == Role::Server).then(|| "127.0.0.1:9".to_owned());
        ControlMessage::Join { role, rank, workers: None, address, threads, first: 0 }
    };
    let mut job = vec![0];
    for (link, rank) in [(0, 255), (1, 255)] {
        job.extend(up(link, 1, rank));
        job.extend(say(link, &join(Role::Server, None, 1)));
    }
    for (link, rank) in [(2, 0), (3, 1)] {
        job.extend(up(link, 0, rank));
        job.extend(say(link, &join(Role::Worker, Some(rank.into()), 0)));
    }
    let gathered = job.clone();
    let all = examples();
    for (link, message) in [(2, &all[3]), (0, &all[5]), (1, &all[5]), (2, &all[2]), (3, &all[8])] {
        job.extend(say(link, message));
    }
    for message in [&all[7], &all[9]] {
        job.extend(say(2, message));
        job.extend(say(3, message));
    }
    job.extend([1, 1 << 3 | 1, 2, 200]);
    let mut late = gathered.clone();
    late.extend(up(4, 0, 1));
    late.extend(say(4, &join(Role::Worker, Some(1), 0)));
    late.extend(say(2, &all[4]));
    late.extend(say(0, &all[6]));
    late.extend([2 << 3 | 1]);
    vec![job, late, [gathered, vec![2, 255, 2, 255]].concat()]
}

/// A specification that a worker sends, as far as a server's shard goes with it.
pub fn spec(data: &[u8]) {
    let Ok(spec) = postcard::from_bytes::<TableSpec>(data) else { return };
    let shown = spec.to_string();
    if spec.validate().is_err() {
        return;
    }
    assert!(!shown.is_empty());
    let buckets = spec.buckets();
    assert!(buckets >= 1);
    if let Some(range) = spec.segment_range(buckets - 1) {
        assert_eq!(range.end(), spec.elements());
        assert_eq!(spec.bucket_of(range.start()), buckets - 1);
        assert!(spec.segment_range(buckets).is_none());
    }
    assert!(spec.bucket_of(u64::MAX / 3) < buckets || spec.elements() > 0);
    if buckets > 4096 {
        // A map of 2^24 buckets is right and slow.
        return;
    }
    let servers = vec![ServerInfo { rank: 0, address: String::new(), threads: 2, first: 0 }];
    let view = View { epoch: 1, servers, workers: 1 };
    let map = PartitionMap::new(&view, &spec);
    let shards = [0, 1].map(|thread| map.buckets_of(ShardId { server: 0, thread }));
    assert_eq!(shards.iter().map(Vec::len).sum::<usize>(), buckets as usize);
    let mut shard = Shard::new(Optimizers::default(), 1 << 20, 1 << 16);
    if shard.create_table(0, &spec, &shards[0], |_| Ok(windlass::mem::RegionId(0))).is_ok() {
        assert!(shard.parameter_bytes() <= 1 << 20);
    }
}

pub fn spec_seeds() -> Vec<Vec<u8>> {
    let specs = [
        TableSpec::dense("w", &[1000]),
        TableSpec::dense("w", &[7, 9, 3])
            .segment_bytes(64)
            .optimizer(OptimizerSpec::ftrl(0.1, 1.0, 0.0, 0.0)),
        TableSpec::sparse("v", 4).consistency(Consistency::Ssp { staleness: 3 }),
        TableSpec::sparse("v", 16384).optimizer(OptimizerSpec::adam(0.1, 0.9, 0.99, 1e-8)),
        TableSpec::dense("q", &[100])
            .quorum(Quorum { workers: 2, late: Late::Drop })
            .initializer(Initializer::Uniform { low: -1.0, high: 1.0, seed: 7 }),
        TableSpec::sparse("s", 2).consistency(Consistency::Asp).stale(Stale::Reject { max_age: 9 }),
        TableSpec::dense("big", &[1 << 40]).segment_bytes(1 << 20),
    ];
    specs.iter().map(|spec| postcard::to_stdvec(spec).unwrap()).collect()
}
