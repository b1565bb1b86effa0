use super::*;

fn local(role: Role, rank: Option<u32>, secret: u8) -> Local {
    let process = "host:7".to_owned();
    Local {
        secret: Secret::from_hex(&format!("{secret:02x}").repeat(32)).unwrap(),
        job: "job".into(),
        identity: Identity { role, rank, incarnation: 5, process },
        offers: vec!["crc".into(), "fp16".into()],
    }
}

fn worker() -> Local {
    local(Role::Worker, Some(3), 0xaa)
}

fn coordinator() -> Local {
    local(Role::Coordinator, None, 0xaa)
}

fn dialler(local: Local, out: &mut Vec<u8>) -> Dialler {
    Dialler::new(local, "the coordinator at 127.0.0.1:1", [1; 32], out).unwrap()
}

fn acceptor(local: Local) -> Acceptor {
    Acceptor::new(local, "127.0.0.1:5000", [2; 32]).unwrap()
}

type Outcome = Result<Option<Box<Established>>>;

/// Runs both sides; `tamper` may change what passes (from the dialler?, bytes).
fn drive(d: Local, a: Local, mut tamper: impl FnMut(bool, &mut Vec<u8>)) -> (Outcome, Outcome) {
    let (mut to_a, mut to_d) = (Vec::new(), Vec::new());
    let (mut d, mut a) = (dialler(d, &mut to_a), acceptor(a));
    let (mut d_end, mut a_end) = (Ok(None), Ok(None));
    for _ in 0..3 {
        tamper(true, &mut to_a);
        match a.feed(&to_a, &mut to_d) {
            Ok(fed) if fed.established.is_some() => a_end = Ok(fed.established),
            Ok(_) => {}
            Err(error) => a_end = Err(error),
        }
        to_a.clear();
        tamper(false, &mut to_d);
        match d.feed(&to_d, &mut to_a) {
            Ok(fed) if fed.established.is_some() => d_end = Ok(fed.established),
            Ok(_) => {}
            Err(error) => d_end = Err(error),
        }
        to_d.clear();
        if a_end.is_err() || d_end.is_err() {
            break;
        }
    }
    (d_end, a_end)
}

fn message_of(outcome: Outcome) -> String {
    outcome.unwrap_err().to_string()
}

#[test]
fn both_sides_derive_the_same_keys_and_know_each_other() {
    let mut choosy = coordinator();
    choosy.offers = vec!["bf16".into(), "fp16".into()];
    let (d, a) = drive(worker(), choosy, |_, _| {});
    let (d, a) = (d.unwrap().unwrap(), a.unwrap().unwrap());
    assert_eq!((d.send_key, d.receive_key, d.export), (a.receive_key, a.send_key, a.export));
    assert_ne!(d.send_key, d.receive_key);
    assert_eq!((d.peer.role, a.peer.role, a.peer.rank), (Role::Coordinator, Role::Worker, Some(3)));
    assert_eq!((&d.chosen, &a.chosen), (&vec!["fp16".to_owned()], &d.chosen));
    let key = |label, numbers: &[u32]| derive_endpoint_key(&d.export, label, numbers);
    assert_eq!(key("tcp", &[1, 2]), derive_endpoint_key(&a.export, "tcp", &[1, 2]));
    assert_ne!(key("tcp", &[1, 2]), key("tcp", &[2, 1]));
    assert_ne!(key("tcp", &[1]), key("tcpx", &[1]));
}

#[test]
fn bytes_may_come_one_by_one() {
    let (mut to_a, mut to_d) = (Vec::new(), Vec::new());
    let (mut d, mut a) = (dialler(worker(), &mut to_a), acceptor(coordinator()));
    let (mut d_done, mut a_done) = (false, false);
    let (mut d_in, mut a_in) = (Vec::new(), Vec::new());
    while !(to_a.is_empty() && to_d.is_empty()) {
        for byte in std::mem::take(&mut to_a) {
            a_in.push(byte);
            let fed = a.feed(&a_in, &mut to_d).unwrap();
            a_in.drain(..fed.used);
            a_done |= fed.established.is_some();
        }
        for byte in std::mem::take(&mut to_d) {
            d_in.push(byte);
            let fed = d.feed(&d_in, &mut to_a).unwrap();
            d_in.drain(..fed.used);
            d_done |= fed.established.is_some();
        }
    }
    assert!(d_done && a_done);
}

#[test]
fn a_wrong_secret_is_named_on_both_sides() {
    let (d, a) = drive(local(Role::Worker, Some(3), 0xab), coordinator(), |_, _| {});
    let (d, a) = (message_of(d), message_of(a));
    assert!(a.contains("worker 3 (host:7) at 127.0.0.1:5000: wrong secret"), "{a}");
    assert_eq!(d, "the coordinator at 127.0.0.1:1 refused: wrong job secret");
}

#[test]
fn another_job_is_refused_without_telling_ours() {
    let mut other = worker();
    other.job = "theirs".into();
    let (d, a) = drive(other, coordinator(), |_, _| {});
    let (d, a) = (message_of(d), message_of(a));
    assert!(a.contains("job \"theirs\", expected \"job\""), "{a}");
    assert!(d.contains("not job \"theirs\"") && !d.contains("\"job\""), "{d}");
}

#[test]
fn another_version_names_both() {
    let hello = encode_hello(&worker(), (5, 5), &[1; 32]);
    let mut out = Vec::new();
    let error = acceptor(coordinator()).feed(&hello, &mut out).unwrap_err().to_string();
    assert!(error.contains("version 5.5, expected 4.0"), "{error}");
    let error = dialler(worker(), &mut Vec::new()).feed(&out, &mut Vec::new()).unwrap_err().to_string();
    assert!(error.contains("version 5.5, expected 4.0"), "{error}");
}

#[test]
fn an_offer_that_nobody_made_is_no_choice() {
    let mut out = Vec::new();
    let mut d = dialler(worker(), &mut out);
    let challenge = encode_challenge(&coordinator().identity, &[2; 32], &["none".into()]);
    let error = d.feed(&challenge, &mut Vec::new()).unwrap_err();
    assert!(matches!(error, Error::Protocol { field: "chosen offers", .. }), "{error}");
    let mut other = worker();
    other.offers = vec!["zip".into()];
    let (d, _) = drive(other, coordinator(), |_, _| {});
    assert!(message_of(d).contains("zip"));
}

#[test]
fn no_downgrade_and_no_other_change_on_the_way() {
    let mut sizes = Vec::new();
    drive(worker(), coordinator(), |_, bytes| sizes.push(bytes.len())).0.unwrap();
    for (step, &size) in sizes.iter().enumerate().take(4) {
        for place in 0..size {
            let mut now = 0;
            let (d, a) = drive(worker(), coordinator(), |_, bytes| {
                if now == step {
                    bytes[place] ^= 1;
                }
                now += 1;
            });
            let done = |o: &Outcome| matches!(o, Ok(Some(_)));
            // A changed Accept is found by the dialler alone: it is the last message.
            assert!(!done(&d) && (step == 3 || !done(&a)), "step {step}, byte {place}");
        }
    }
}

/// Whoever sits in between strikes the better mode from the offer, or from what was taken: both are in the transcript.
#[test]
fn an_offer_struck_out_on_the_way_is_found_out() {
    let hello = encode_hello(
        &Local { offers: vec!["fp16".into()], ..worker() },
        (VERSION_MAJOR, VERSION_MINOR),
        &[1; 32],
    );
    let challenge = encode_challenge(&coordinator().identity, &[2; 32], &["fp16".into()]);
    for (from_dialler, weaker) in [(true, hello), (false, challenge)] {
        let mut first = true;
        let (d, a) = drive(worker(), coordinator(), |towards_acceptor, bytes| {
            if towards_acceptor == from_dialler && std::mem::take(&mut first) {
                bytes.clone_from(&weaker);
            }
        });
        assert!(message_of(a).contains("wrong secret"));
        assert!(matches!(d, Err(Error::Refused { .. })));
    }
}

#[test]
fn a_replayed_proof_does_not_fit_a_fresh_challenge() {
    let (mut hello, mut proof) = (Vec::new(), Vec::new());
    let mut d = dialler(worker(), &mut hello);
    let mut challenge = Vec::new();
    acceptor(coordinator()).feed(&hello, &mut challenge).unwrap();
    d.feed(&challenge, &mut proof).unwrap();
    let mut fresh = Acceptor::new(coordinator(), "127.0.0.1:6000", [9; 32]).unwrap();
    let error = fresh.feed(&[hello, proof].concat(), &mut Vec::new()).unwrap_err().to_string();
    assert!(error.contains("worker 3 (host:7) at 127.0.0.1:6000: wrong secret"), "{error}");
}

#[test]
fn an_acceptor_without_the_secret_is_found_out() {
    // It takes the dialler's proof for good and makes up its own.
    let (mut out, mut a_out) = (Vec::new(), Vec::new());
    let mut d = dialler(worker(), &mut out);
    acceptor(local(Role::Coordinator, None, 0)).feed(&out, &mut a_out).unwrap();
    d.feed(&a_out, &mut out).unwrap();
    for forged in [[0; 32], *proof(&worker().secret, DIALLER, &d.transcript).as_bytes()] {
        let mut d = copy(&d);
        let error = d.feed(&message(ACCEPT, &forged), &mut Vec::new()).unwrap_err();
        assert!(matches!(error, Error::Protocol { field: "proof", .. }), "{error}");
    }
}

fn copy(d: &Dialler) -> Dialler {
    Dialler {
        local: d.local.clone(),
        peer: d.peer.clone(),
        transcript: d.transcript.clone(),
        used: d.used,
        challenged: d.challenged.clone(),
    }
}

#[test]
fn garbage_is_refused_at_once_or_waits_for_more() {
    let mut seed = 1u64;
    for length in 0..600 {
        let bytes: Vec<u8> = (0..length)
            .map(|_| {
                seed = crate::types::mix64(seed);
                seed as u8
            })
            .collect();
        let fed = acceptor(coordinator()).feed(&bytes, &mut Vec::new());
        assert!(fed.is_err() || fed.is_ok_and(|f| f.established.is_none()));
    }
    let error = acceptor(coordinator()).feed(b"GET / HTTP/1.1\r\n", &mut Vec::new()).unwrap_err();
    assert!(matches!(error, Error::Protocol { field: "handshake length", .. }), "{error}");
    let mut other = message(HELLO, b"windlasSxxxx");
    other.extend_from_slice(&[0; 64]);
    let error = acceptor(coordinator()).feed(&other, &mut Vec::new()).unwrap_err();
    assert!(matches!(error, Error::Protocol { field: "magic", .. }), "{error}");
}

#[test]
fn every_truncated_field_is_refused() {
    let hello = encode_hello(&worker(), (VERSION_MAJOR, VERSION_MINOR), &[1; 32]);
    for length in 0..hello.len() - 3 {
        let cut = message(HELLO, &hello[3..3 + length]);
        let error = acceptor(coordinator()).feed(&cut, &mut Vec::new()).unwrap_err();
        assert!(matches!(error, Error::Protocol { .. }), "{error}");
    }
}

#[test]
fn control_characters_do_not_reach_the_log() {
    let mut hello = encode_hello(&worker(), (VERSION_MAJOR, VERSION_MINOR), &[1; 32]);
    let place = hello.windows(6).position(|w| w == b"host:7").unwrap();
    hello[place] = 0x1b;
    let error = acceptor(coordinator()).feed(&hello, &mut Vec::new()).unwrap_err();
    assert!(matches!(error, Error::Protocol { field: "process", .. }), "{error}");
    assert!(!error.to_string().contains('\x1b'));
}

#[test]
fn golden_messages() {
    let (mut hello, mut challenge, mut proof, mut accept) = (vec![], vec![], vec![], vec![]);
    let (mut d, mut a) = (dialler(worker(), &mut hello), acceptor(coordinator()));
    a.feed(&hello, &mut challenge).unwrap();
    d.feed(&challenge, &mut proof).unwrap();
    a.feed(&proof, &mut accept).unwrap();
    let export = d.feed(&accept, &mut Vec::new()).unwrap().established.unwrap().export;
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    let found = [hex(&hello), hex(&challenge), hex(&proof), hex(&accept), hex(&export)];
    let golden = [GOLDEN_HELLO, GOLDEN_CHALLENGE, GOLDEN_PROOF, GOLDEN_ACCEPT, GOLDEN_EXPORT];
    assert_eq!(found, golden);
    assert_eq!(hex(&encode_refuse(RefuseCode::Secret, "no")), "06000503".to_owned() + "02006e6f");
}

const GOLDEN_HELLO: &str = "54000177696e646c6173730400000003006a6f6202010300000005000000000000000600686f73743a370101010101010101010101010101010101010101010101010101010101010101020300637263040066703136";
const GOLDEN_CHALLENGE: &str = "4700020400000000000000000005000000000000000600686f73743a370202020202020202020202020202020202020202020202020202020202020202020300637263040066703136";
const GOLDEN_PROOF: &str = "210003614f6807f95e7bbe49190d310dfc1c38a6f878bf52454cf51b8d0448a6e56aff";
const GOLDEN_ACCEPT: &str = "210004ed804945dfe493391e454cfeb4eadc6fe100479a979c58999b9c783f42e1f90e";
const GOLDEN_EXPORT: &str = "0469816dc0fcbdb75997cd6c4d8901a093e939c78705dadb2fa278d84196ffcd";

#[test]
fn what_would_not_fit_is_refused_before_anything_is_said() {
    let refusal = |change: fn(&mut Local)| {
        let mut local = worker();
        change(&mut local);
        assert!(Acceptor::new(local.clone(), "127.0.0.1:5000", [2; 32]).is_err());
        let (mut out, error) = (Vec::new(), local.validate().unwrap_err().to_string());
        assert!(Dialler::new(local, "the coordinator", [1; 32], &mut out).is_err());
        assert!(out.is_empty());
        error
    };
    let long_job = refusal(|l| l.job = "j".repeat(JOB_LIMIT + 1));
    assert!(long_job.contains("job") && long_job.contains("128 printable bytes"), "{long_job}");
    assert!(refusal(|l| l.job = "a\nb".into()).contains("a\\nb"));
    assert!(refusal(|l| l.identity.process = "p".repeat(PROCESS_LIMIT + 1)).contains("process name"));
    assert!(refusal(|l| l.identity.process = "\u{7}".into()).contains("process name"));
    for change in [
        (|l| l.offers = vec!["o".into(); OFFERS_LIMIT + 1]) as fn(&mut Local),
        |l| l.offers = vec![String::new()],
        |l| l.offers = vec!["o".repeat(OFFER_LIMIT + 1)],
        |l| l.offers = vec!["\r".into()],
    ] {
        let error = refusal(change);
        assert!(error.contains("offers"), "{error}");
    }
}

#[test]
fn texts_are_cut_between_characters() {
    for (text, limit, kept) in [("aé", 2, "a"), ("aé", 3, "aé"), ("é", 1, ""), ("ab", 9, "ab"), ("€", 2, "")]
    {
        assert_eq!(cut(text, limit), kept);
        let mut out = Vec::new();
        put_text(&mut out, text, limit);
        assert_eq!(Reader::new(&out, "p").text("text", limit).unwrap(), kept);
    }
}

#[test]
fn keys_are_not_shown() {
    let (d, _) = drive(worker(), coordinator(), |_, _| {});
    let established = d.unwrap().unwrap();
    let shown = format!("{established:?}");
    assert!(shown.contains("fp16") && !shown.contains(&format!("{:?}", established.export)), "{shown}");
}
