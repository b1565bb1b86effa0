//! How soon a poll finds what does not come over the connection at hand.

use std::net::TcpStream;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::progress::{UNASKED, UNASKED_ALONE};
use super::*;
use crate::mem::RegionSlice;
use crate::transport::{Payload, park};

const KEY: SessionKey = [7; 32];

/// Two that are connected, the first as the active side.
pub(super) fn pair(config: &TcpConfig) -> (Tcp, Tcp, EndpointId, EndpointId) {
    let (mut a, mut b) = (Tcp::new(config.clone()).unwrap(), Tcp::new(config.clone()).unwrap());
    let (at_b, address) = b.open(Side::Passive, "a").unwrap();
    let (at_a, active) = a.open(Side::Active, "b").unwrap();
    b.connect(at_b, &active, &KEY).unwrap();
    a.connect(at_a, &address, &KEY).unwrap();
    let (mut heard_a, mut heard_b) = (Vec::new(), Vec::new());
    while heard_a.is_empty() || heard_b.is_empty() {
        a.poll(&mut heard_a, 8);
        b.poll(&mut heard_b, 8);
    }
    (a, b, at_a, at_b)
}

/// Two of which the second has been sent so many messages, and has taken the first.
fn lone(messages: usize) -> (Tcp, Tcp) {
    let (mut a, mut b, at_a, _) = pair(&TcpConfig::default());
    for _ in 0..messages {
        a.send(at_a, Message::new(b"here").unwrap()).unwrap();
    }
    let mut heard = Vec::new();
    while heard.is_empty() {
        a.poll(&mut Vec::new(), 8);
        b.poll(&mut heard, 1);
    }
    assert!(b.is_alone());
    (a, b)
}

/// Waits until the system has something for a transport.
fn is_called(end: &Tcp) {
    let any = park::any_of(&[end.waitable()]).unwrap();
    let limit = Timespec { tv_sec: 120, tv_nsec: 0 };
    assert_eq!(poll(&mut [PollFd::new(&any, PollFlags::IN)], Some(&limit)).unwrap(), 1);
}

/// Polls until the system is asked, which takes no more than so many polls.
fn asks(end: &mut Tcp, within: u32, heard: &mut Vec<Completion>) {
    let asked = (0..within).any(|_| {
        end.poll(heard, 1);
        end.unasked == 0
    });
    assert!(asked, "{within} polls, and the system was not asked");
}

/// Whether the connection brings something with each poll or nothing.
#[test]
fn a_lone_connection_keeps_no_dialler_and_no_timer_waiting() {
    for messages in [1, 200] {
        let (_a, mut b) = lone(messages);
        b.config.preamble_timeout = Duration::from_millis(1);
        let address = b.listener.as_ref().unwrap().local_addr().unwrap();
        let _stranger = TcpStream::connect(address).unwrap();
        let mut until_there_are = |strangers| {
            while b.lobby.len() != strangers {
                is_called(&b);
                asks(&mut b, UNASKED_ALONE + 1, &mut Vec::new());
            }
            assert!(b.is_alone());
        };
        until_there_are(1);
        // It says nothing: only the timer is left to end its time.
        until_there_are(0);
    }
}

#[test]
fn who_dials_or_waits_to_be_dialled_is_not_alone() {
    for (side, other) in [(Side::Active, Side::Passive), (Side::Passive, Side::Active)] {
        let (_a, mut b) = lone(200);
        let mut c = Tcp::new(TcpConfig::default()).unwrap();
        let (ours, theirs) = (b.open(side, "c").unwrap(), c.open(other, "b").unwrap());
        assert!(!b.is_alone());
        b.connect(ours.0, &theirs.1, &KEY).unwrap();
        c.connect(theirs.0, &ours.1, &KEY).unwrap();
        let mut heard = Vec::new();
        let is_there =
            |c: &Completion| matches!(c, Completion::Connected { endpoint } if *endpoint == ours.0);
        while !heard.iter().any(is_there) {
            c.poll(&mut Vec::new(), 8);
            asks(&mut b, UNASKED + 1, &mut heard);
        }
    }
}

/// Two as from [`lone`], of which the second has looked in vain for so long that its connection is apart.
fn apart() -> (Tcp, Tcp) {
    let (a, mut b) = lone(1);
    (0..2 * UNASKED_ALONE).for_each(|_| b.poll(&mut Vec::new(), 1));
    assert!(b.apart.is_some());
    (a, b)
}

fn only(end: &Tcp) -> EndpointId {
    end.endpoints.iter().next().unwrap().id
}

/// Sends a message, and waits until it has left.
fn send(end: &mut Tcp) {
    end.send(only(end), Message::new(b"more").unwrap()).unwrap();
    end.flush();
}

/// Sleeps and polls until something comes.
fn hears(end: &mut Tcp) -> Completion {
    let mut heard = Vec::new();
    while heard.is_empty() {
        if end.arm() {
            is_called(end);
        }
        end.poll(&mut heard, 1);
    }
    heard.remove(0)
}

#[test]
fn who_sleeps_on_a_connection_that_was_apart_is_woken() {
    for sent_before in [true, false] {
        let (mut a, mut b) = apart();
        if sent_before {
            send(&mut a);
        }
        while b.arm() && sent_before {}
        assert_eq!(b.apart, None);
        if !sent_before {
            send(&mut a);
        }
        assert!(matches!(hears(&mut b), Completion::Received { .. }));
    }
}

/// It is looked at with every poll, and its end is no event either.
#[test]
fn a_connection_that_is_apart_brings_what_comes_and_its_end() {
    let (mut a, mut b) = apart();
    let mut heard = Vec::new();
    for sent in 1..=3 {
        send(&mut a);
        while heard.len() < sent {
            b.poll(&mut heard, 1);
        }
    }
    assert!(b.apart.is_some());
    drop(a);
    while heard.len() < 4 {
        b.poll(&mut heard, 1);
    }
    assert!(matches!(heard[3], Completion::Closed { reason: Some(Error::PeerLost { .. }), .. }));
    assert_eq!(b.apart, None);
}

/// Room for what could not leave is an event: who has something to send is not apart for long.
#[test]
fn what_a_connection_that_was_apart_could_not_send_leaves_when_there_is_room() {
    const LONG: usize = 64 << 20;
    let (mut a, mut b) = apart();
    let (from, to) = (Arena::new(LONG).unwrap(), Arena::new(LONG).unwrap());
    let (from_id, to_id) = (b.register(from.clone()).unwrap(), a.register(to).unwrap());
    let remote = a.authorise(only(&a), to_id, 0, LONG, Rights::Write).unwrap();
    let slice = RegionSlice { region: from_id, arena: from, offset: 0, length: LONG };
    let body = Some(Payload::Pinned(slice));
    let write = Write { header: None, body, remote, offset: 0, imm: Some(7), context: Some(8) };
    assert!(b.write(only(&b), write).is_ok());
    (0..2 * UNASKED_ALONE).for_each(|_| b.poll(&mut Vec::new(), 1));
    assert_eq!(b.apart, None);
    let sender = std::thread::spawn(move || (hears(&mut b), b));
    assert!(matches!(hears(&mut a), Completion::Written { imm: 7, .. }));
    assert!(matches!(sender.join().unwrap().0, Completion::Done { context: 8, .. }));
}
