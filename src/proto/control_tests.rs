use super::*;
use crate::types::Lack;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn frame(message: &ControlMessage) -> Vec<u8> {
    let mut out = Vec::new();
    FrameWriter::new([7; 32]).encode(message, &mut out).unwrap();
    out
}

fn field(error: Error) -> &'static str {
    match error {
        Error::Protocol { field, .. } => field,
        other => panic!("{other}"),
    }
}

#[test]
fn frames_come_back_in_any_cut() {
    let messages = [
        ControlMessage::Keepalive,
        ControlMessage::OpenTable { request: 3, spec: TableSpec::sparse("w", 4) },
        ControlMessage::Heartbeat { clock: 9, status: vec![1; MAX_STATUS] },
        ControlMessage::Stats { request: 1, threads: vec![ThreadStats::default(); 3], clocks: vec![7, 8] },
    ];
    let (mut writer, mut bytes) = (FrameWriter::new([7; 32]), Vec::new());
    messages.iter().for_each(|m| writer.encode(m, &mut bytes).unwrap());
    let (mut reader, mut at, mut seen) = (FrameReader::new([7; 32]), 0, Vec::new());
    for end in 0..=bytes.len() {
        while let Some((used, message)) = reader.decode(&bytes[at..end], "p").unwrap() {
            at += used;
            seen.push(message);
        }
    }
    assert_eq!((seen.as_slice(), at), (messages.as_slice(), bytes.len()));
}

#[test]
fn golden_check_in() {
    let check_in = ControlMessage::CheckIn {
        task: 3,
        tasks: 6,
        role: Some(Role::Server),
        node: "n2".into(),
        machine: "m".into(),
    };
    assert_eq!(hex(&postcard::to_stdvec(&check_in).unwrap()), "1c03060101026e32016d");
    let placed = ControlMessage::Placed {
        role: Role::Worker,
        rank: 1,
        servers: 2,
        workers: 4,
        coordinator: "10.0.0.1:7".into(),
        local_index: 3,
        pollers: 6,
    };
    assert_eq!(hex(&postcard::to_stdvec(&placed).unwrap()), "1d020102040a31302e302e302e313a370306");
}

#[test]
fn golden_offer_and_agreement() {
    let offer = Offer {
        kinds: TransportKind::ALL.to_vec(),
        lacks: vec![Lack { kind: TransportKind::Shm, absent: true, why: "no boot id".into() }],
        host: *b"0123456789abcdef",
    };
    assert_eq!(
        hex(&postcard::to_stdvec(&ControlMessage::Offer(offer)).unwrap()),
        "19030100020102010a6e6f20626f6f7420696430313233343536373839616263646566"
    );
    let agreed = |transport, local, reason: &str| {
        let reason = reason.to_owned();
        hex(&postcard::to_stdvec(&ControlMessage::Agreed { transport, local, reason }).unwrap())
    };
    assert_eq!(agreed(TransportKind::Tcp, true, ""), "1a000100");
    assert_eq!(agreed(TransportKind::Verbs, false, "no"), "1a0100026e6f");
    assert_eq!(agreed(TransportKind::Shm, false, ""), "1a020000");
}

#[test]
fn golden_frame() {
    let bytes = frame(&ControlMessage::Barrier { id: 300 });
    assert_eq!(hex(&bytes), GOLDEN_BARRIER);
}

const GOLDEN_BARRIER: &str = "0300000006ac02a0c959570c590ff92ce83ecf4ff9f3f5fb58454a356e19211d023458fdd0b1d6";

#[test]
fn every_flipped_bit_is_found() {
    let good = frame(&ControlMessage::Barrier { id: 300 });
    for bit in 0..good.len() * 8 {
        let mut bad = good.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        // A larger length makes it wait for more, unless it is beyond the limit.
        let decoded = FrameReader::new([7; 32]).decode(&bad, "p");
        assert!(!matches!(decoded, Ok(Some(_))), "bit {bit}");
        assert!(bit < 32 || decoded.is_err(), "bit {bit}");
    }
}

#[test]
fn replay_reordering_and_reflection_are_found() {
    let (mut writer, mut one, mut two) = (FrameWriter::new([7; 32]), Vec::new(), Vec::new());
    writer.encode(&ControlMessage::Finish, &mut one).unwrap();
    writer.encode(&ControlMessage::Finish, &mut two).unwrap();
    let mut reader = FrameReader::new([7; 32]);
    assert_eq!(field(reader.decode(&two, "p").unwrap_err()), "frame MAC");
    let mut reader = FrameReader::new([7; 32]);
    reader.decode(&one, "p").unwrap().unwrap();
    assert_eq!(field(reader.decode(&one, "p").unwrap_err()), "frame MAC");
    assert_eq!(field(FrameReader::new([8; 32]).decode(&one, "p").unwrap_err()), "frame MAC");
}

#[test]
fn over_long_undecodable_and_trailing_bodies_are_refused() {
    let sealed = |body: &[u8]| {
        let mut out = (body.len() as u32).to_le_bytes().to_vec();
        out.extend_from_slice(body);
        let mac = mac(&[7; 32], 0, &out);
        out.extend_from_slice(mac.as_bytes());
        out
    };
    let decode = |bytes: &[u8]| FrameReader::new([7; 32]).decode(bytes, "p").unwrap_err();
    assert_eq!(field(decode(&(MAX_BODY as u32 + 1).to_le_bytes())), "frame length");
    assert_eq!(field(decode(&sealed(&[200, 1, 2]))), "frame body");
    assert_eq!(field(decode(&sealed(&[0, 0]))), "frame body");
    assert_eq!(field(decode(&sealed(&[]))), "frame body");
    // A list that claims 2^60 entries allocates nothing and is refused.
    let peers = postcard::to_stdvec(&ControlMessage::Peers(vec![])).unwrap();
    let huge = [&peers[..1], &[0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x10][..]].concat();
    assert_eq!(field(decode(&sealed(&huge))), "frame body");
    let status = ControlMessage::Heartbeat { clock: 0, status: vec![0; MAX_STATUS + 1] };
    assert_eq!(field(decode(&sealed(&postcard::to_stdvec(&status).unwrap()))), "status");
}

#[test]
fn our_own_over_long_messages_are_refused_and_the_link_lives_on() {
    let (mut writer, mut out) = (FrameWriter::new([7; 32]), Vec::new());
    let status = vec![0; MAX_STATUS];
    let peer = PeerStatus { rank: u32::MAX, clock: u64::MAX, status };
    let error = writer.encode(&ControlMessage::Peers(vec![peer; 20_000]), &mut out).unwrap_err();
    assert!(matches!(error, Error::Limit { .. }), "{error}");
    writer.encode(&ControlMessage::Finish, &mut out).unwrap();
    let (_, message) = FrameReader::new([7; 32]).decode(&out, "p").unwrap().unwrap();
    assert_eq!(message, ControlMessage::Finish);
}

#[test]
fn reasons_fit() {
    let text = reason("é".repeat(MAX_REASON));
    assert!(text.len() <= MAX_REASON && text.ends_with(" …"));
    assert_eq!(reason("short"), "short");
}

#[test]
fn a_view_with_misplaced_ranks_is_refused() {
    let server = ServerInfo { rank: 1, address: "127.0.0.1:1".into(), threads: 1, first: 0 };
    let view = View { epoch: 1, servers: vec![server], workers: 1 };
    assert_eq!(field(ControlMessage::View(view).check("p").unwrap_err()), "server rank");
}
