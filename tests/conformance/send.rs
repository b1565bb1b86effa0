//! Short messages.

use windlass::transport::{Completion, MAX_SEND, Message};

use crate::rig::{Fabric, Random, pair};

pub fn every_length(fabric: &dyn Fabric) {
    let mut p = pair(fabric);
    assert!(Message::new(&[0; MAX_SEND + 1]).is_none());
    let mut random = Random(1);
    for length in 0..=MAX_SEND {
        let bytes = random.bytes(length);
        p.net.send(0, p.a, &bytes);
        assert_eq!(p.net.received(1, p.b), bytes);
    }
}

pub fn many_in_order(fabric: &dyn Fabric) {
    let mut p = pair(fabric);
    for i in 0..5000u32 {
        p.net.send(0, p.a, &i.to_le_bytes());
    }
    for i in 0..5000u32 {
        assert_eq!(p.net.received(1, p.b), i.to_le_bytes());
    }
}

pub fn both_ways_at_once(fabric: &dyn Fabric) {
    let mut p = pair(fabric);
    for i in 0..1000u32 {
        p.net.send(0, p.a, &i.to_le_bytes());
        p.net.send(1, p.b, &(!i).to_le_bytes());
    }
    p.net.until("all messages", |net| net.ends.iter().all(|e| e.seen.len() >= 1000));
    for (end, flip) in [(0, u32::MAX), (1, 0)] {
        for (i, completion) in p.net.ends[end].seen.drain(..).enumerate() {
            let Completion::Received { message, .. } = completion else { panic!("{completion:?}") };
            assert_eq!(message.bytes(), (i as u32 ^ flip).to_le_bytes());
        }
    }
}
