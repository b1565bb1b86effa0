//! Ends of endpoints.

use windlass::mem::Rights;
use windlass::transport::{Completion, Message, Payload, Read, Refusal, Write};

use crate::rig::{Fabric, Net, header, pair, write_to};

fn count_closed(net: &Net) -> Vec<usize> {
    let closed =
        |e: &crate::rig::End| e.seen.iter().filter(|c| matches!(c, Completion::Closed { .. })).count();
    net.ends.iter().map(closed).collect()
}

pub fn one_closed_each(fabric: &dyn Fabric) {
    for closer in [0, 1] {
        let mut p = pair(fabric);
        let ids = [p.a, p.b];
        p.net.ends[closer].transport.close(ids[closer]);
        p.net.ends[closer].transport.close(ids[closer]);
        p.net.until("Closed on both sides", |net| count_closed(net) == [1, 1]);
        p.net.settle(100);
        assert_eq!(count_closed(&p.net), [1, 1]);
        assert!(p.net.closed(closer, ids[closer]).is_none(), "our own close has no reason");
        assert!(p.net.closed(1 - closer, ids[1 - closer]).is_some(), "the peer's has");
    }
    // Both at once: each is its own.
    let mut p = pair(fabric);
    p.net.ends[0].transport.close(p.a);
    p.net.ends[1].transport.close(p.b);
    p.net.until("Closed on both sides", |net| count_closed(net) == [1, 1]);
    p.net.settle(100);
    assert_eq!(count_closed(&p.net), [1, 1]);
}

pub fn owned_buffers_come_back(fabric: &dyn Fabric) {
    let mut p = pair(fabric);
    let remote = p.net.ends[1].grant(p.b, 0, 1 << 20, Rights::Write);
    let pool = p.net.ends[0].pool(200_000, 16);
    while let Some(buf) = pool.lease(200_000) {
        let write = Write { body: Some(Payload::Owned(buf)), imm: Some(0), ..write_to(remote, 0) };
        p.net.ends[0].transport.write(p.a, write).unwrap();
    }
    // Some bytes are under way, most are not: the peer never polls.
    p.net.ends[0].transport.flush();
    p.net.ends[0].transport.close(p.a);
    p.net.closed(0, p.a);
    let back: Vec<_> = std::iter::from_fn(|| pool.lease(1)).collect();
    assert_eq!(back.len(), 16);
    p.net.closed(1, p.b);
}

pub fn peer_dropped_in_the_middle(fabric: &dyn Fabric) {
    let mut p = pair(fabric);
    let remote = p.net.ends[1].grant(p.b, 0, 1 << 20, Rights::ReadWrite);
    let pool = p.net.ends[0].pool(200_000, 8);
    while let Some(buf) = pool.lease(200_000) {
        let write = Write { body: Some(Payload::Owned(buf)), imm: Some(0), ..write_to(remote, 0) };
        p.net.ends[0].transport.write(p.a, write).unwrap();
    }
    let local = p.net.ends[0].slice(0, 4096);
    p.net.ends[0].transport.read(p.a, Read { remote, offset: 0, local, context: 1 }).unwrap();
    p.net.step();
    drop(p.net.ends.pop());
    let reason = p.net.closed(0, p.a);
    assert!(reason.is_some());
    assert_eq!(std::iter::from_fn(|| pool.lease(1)).collect::<Vec<_>>().len(), 8);
    p.net.settle(50);
    assert_eq!(count_closed(&p.net), [0], "and no second time");
}

/// One end goes away after every step of a conversation: the other gets one `Closed` with a reason, its buffers back, and can
/// talk to the next peer.
pub fn death_at_every_step(fabric: &dyn Fabric) {
    for step in 0..=6 {
        let mut p = pair(fabric);
        let remote = p.net.ends[1].grant(p.b, 0, 1 << 20, Rights::ReadWrite);
        let back = p.net.ends[0].grant(p.a, 0, 1 << 20, Rights::ReadWrite);
        let pool = p.net.ends[0].pool(200_000, 2);
        if step >= 1 {
            p.net.ping((0, p.a), (1, p.b));
        }
        if step >= 2 {
            let body = Some(Payload::Owned(pool.lease(200_000).unwrap()));
            p.net.write(0, p.a, Write { body, imm: Some(1), ..write_to(remote, 0) });
        }
        if step >= 3 {
            p.net.ends[0].transport.flush();
        }
        if step >= 4 {
            p.net.written(1, p.b);
            let body = p.net.ends[1].pinned(0, 200_000);
            p.net.write(1, p.b, Write { body, imm: Some(2), ..write_to(back, 0) });
        }
        if step >= 5 {
            let local = p.net.ends[0].slice(1 << 20, 100_000);
            p.net.read(0, p.a, Read { remote, offset: 0, local, context: 1 });
        }
        if step >= 6 {
            p.net.step();
            p.net.ends[0].transport.withdraw(p.a, &back).unwrap();
        }
        // Dies without a word of ours: the descriptors are closed by the drop, as they are by a kill.
        drop(p.net.ends.pop());
        p.net.until("Closed", |net| count_closed(net) == [1]);
        p.net.settle(50);
        assert_eq!(count_closed(&p.net), [1], "step {step}: and no second time");
        assert!(p.net.closed(0, p.a).is_some(), "step {step}: with a reason");
        assert_eq!(std::iter::from_fn(|| pool.lease(1)).collect::<Vec<_>>().len(), 2, "step {step}");
        p.net.ends.push(fabric.end());
        let (a, b) = p.net.join(0, 1);
        p.net.ping((0, a), (1, b));
    }
}

pub fn nothing_after_closed(fabric: &dyn Fabric) {
    let mut p = pair(fabric);
    let remote = p.net.ends[0].grant(p.a, 0, 4096, Rights::Write);
    for i in 0..20 {
        p.net.write(1, p.b, Write { header: Some(header(1)), imm: Some(i), ..write_to(remote, 0) });
    }
    p.net.ends[1].transport.flush();
    p.net.ends[0].transport.close(p.a);
    p.net.until("Closed", |net| count_closed(net)[0] == 1);
    let before = p.net.ends[0].bytes(0, 4096);
    p.net.settle(100);
    assert_eq!(p.net.ends[0].bytes(0, 4096), before);
    let last = p.net.ends[0].seen.last().unwrap();
    assert!(matches!(last, Completion::Closed { .. }), "{last:?}");
    let end = &mut p.net.ends[0];
    assert_eq!(
        end.transport.send(p.a, Message::new(b"x").unwrap()).unwrap_err().refusal,
        Refusal::NotConnected
    );
    assert!(end.transport.authorise(p.a, end.region, 0, 1, Rights::Read).is_err());
    end.transport.withdraw(p.a, &remote).unwrap();
    assert!(end.transport.connect(p.a, &[0], &[0; 32]).is_err());
}
