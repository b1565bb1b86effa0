//! How soon a poll finds what does not come over the connection at hand.

use std::net::TcpStream;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::progress::{UNASKED, UNASKED_ALONE};
use super::*;
use crate::transport::park;

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
