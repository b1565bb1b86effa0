//! Opening, connecting, sleeping.

use windlass::transport::{Completion, Message, Refusal, Side};

use crate::rig::{Fabric, Net, pair};

pub fn connects_both_sides(fabric: &dyn Fabric) {
    let mut p = pair(fabric);
    p.net.ping((0, p.a), (1, p.b));
    p.net.settle(20);
    for end in &p.net.ends {
        assert!(end.seen.is_empty(), "{:?}", end.seen);
        let caps = end.transport.caps();
        assert!(caps.queue_depth > 0 && caps.max_write >= 64 && !caps.detail.is_empty());
    }
}

pub fn many_endpoints(fabric: &dyn Fabric) {
    let mut net = Net::new(fabric, 2);
    let ids: Vec<_> = (0..64).map(|i| net.begin(i % 2, 1 - i % 2)).collect();
    for (i, &(active, passive)) in ids.iter().enumerate() {
        net.connected(i % 2, active);
        net.connected(1 - i % 2, passive);
    }
    for (i, &(active, _)) in ids.iter().enumerate() {
        net.send(i % 2, active, &[i as u8; 9]);
    }
    for (i, &(active, passive)) in ids.iter().enumerate().rev() {
        assert_eq!(net.received(1 - i % 2, passive), [i as u8; 9]);
        net.ends[i % 2].transport.close(active);
    }
    for (i, &(active, passive)) in ids.iter().enumerate() {
        assert!(net.closed(i % 2, active).is_none());
        assert!(net.closed(1 - i % 2, passive).is_some());
    }
}

pub fn a_closed_endpoint_is_not_its_successor(fabric: &dyn Fabric) {
    let mut p = pair(fabric);
    let (a, b) = (p.a, p.b);
    p.net.ends[0].transport.close(a);
    p.net.closed(0, a);
    p.net.closed(1, b);
    let (a2, b2) = p.net.join(0, 1);
    assert!(a2 != a && b2 != b);
    let message = Message::new(b"late").unwrap();
    assert_eq!(p.net.ends[0].transport.send(a, message).unwrap_err().refusal, Refusal::NotConnected);
    p.net.ends[0].transport.close(a);
    p.net.ends[1].transport.close(b);
    p.net.ping((0, a2), (1, b2));
}

pub fn posting_needs_a_connection(fabric: &dyn Fabric) {
    let mut net = Net::new(fabric, 1);
    let end = &mut net.ends[0];
    for side in [Side::Active, Side::Passive] {
        let (id, _) = end.transport.open(side, "nobody").unwrap();
        let rejected = end.transport.send(id, Message::new(b"early").unwrap()).unwrap_err();
        assert_eq!(rejected.refusal, Refusal::NotConnected);
        assert_eq!(rejected.operation.bytes(), b"early");
        end.transport.close(id);
    }
    net.settle(20);
    let closed = net.ends[0].seen.iter().filter(|c| matches!(c, Completion::Closed { reason: None, .. }));
    assert_eq!(closed.count(), 2);
}

pub fn wakes_a_sleeper(fabric: &dyn Fabric) {
    let mut net = Net::new(fabric, 2);
    let (a, b) = net.begin(0, 1);
    let mut connected = 0;
    net.until_sleeping("Connected", |net| {
        for end in &mut net.ends {
            connected += end.seen.drain(..).filter(|c| matches!(c, Completion::Connected { .. })).count();
        }
        connected == 2
    });
    for round in 0..200u32 {
        // More than a small budget takes at once: `arm` has to know what was left.
        net.ends[1].budget = 1 + round as usize % 3;
        for _ in 0..5 {
            net.ends[0].transport.send(a, Message::new(&round.to_le_bytes()).unwrap()).unwrap();
        }
        net.until_sleeping("messages", |net| net.ends[1].seen.len() >= 5);
        for completion in net.ends[1].seen.drain(..) {
            assert!(matches!(&completion, Completion::Received { endpoint, message }
                if *endpoint == b && message.bytes() == round.to_le_bytes()));
        }
        net.ends[1].transport.send(b, Message::new(b"back").unwrap()).unwrap();
        net.until_sleeping("the answer", |net| !net.ends[0].seen.is_empty());
        net.ends[0].seen.clear();
    }
    net.ends[0].transport.close(a);
    net.until_sleeping("Closed", |net| net.ends.iter().all(|e| !e.seen.is_empty()));
}
