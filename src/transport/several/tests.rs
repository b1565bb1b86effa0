//! What becomes of one way when the other fails.

use std::collections::HashSet;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::*;
use crate::transport::park::Waker;
use crate::transport::shm::ShmConfig;

/// What a wide transport holds.
#[derive(Debug, Default)]
struct Ledger {
    open: HashSet<EndpointId>,
    grants: HashSet<u32>,
    closed: Vec<EndpointId>,
}

/// A wide transport that connects to nobody.
struct Wide {
    caps: Caps,
    ledger: Arc<Mutex<Ledger>>,
    waker: Waker,
    given: u32,
}

impl Transport for Wide {
    fn caps(&self) -> &Caps {
        &self.caps
    }

    fn register(&mut self, _: Arc<Arena>) -> Result<RegionId> {
        Ok(RegionId(0))
    }

    fn unregister(&mut self, _: RegionId) -> bool {
        true
    }

    fn open(&mut self, _: Side, _: &str) -> Result<(EndpointId, Vec<u8>)> {
        self.given += 1;
        let id = EndpointId { index: self.given, generation: 0 };
        self.ledger.lock().unwrap().open.insert(id);
        Ok((id, b"wide".to_vec()))
    }

    fn authorise(
        &mut self,
        _: EndpointId,
        _: RegionId,
        _: usize,
        length: usize,
        rights: Rights,
    ) -> Result<RemoteRegion> {
        self.given += 1;
        self.ledger.lock().unwrap().grants.insert(self.given);
        Ok(RemoteRegion { address: 0, length: length as u64, key: self.given, rights })
    }

    fn withdraw(&mut self, _: EndpointId, remote: &RemoteRegion) -> Result<()> {
        self.ledger.lock().unwrap().grants.remove(&remote.key);
        Ok(())
    }

    fn connect(&mut self, _: EndpointId, _: &[u8], _: &SessionKey) -> Result<()> {
        Err(Error::Refused { peer: "the wide peer".to_owned(), reason: "on purpose".to_owned() })
    }

    fn send(&mut self, _: EndpointId, operation: Message) -> std::result::Result<(), Rejected<Message>> {
        Err(not_connected(operation))
    }

    fn write(&mut self, _: EndpointId, operation: Write) -> std::result::Result<(), Rejected<Write>> {
        Err(not_connected(operation))
    }

    fn read(&mut self, _: EndpointId, operation: Read) -> std::result::Result<(), Rejected<Read>> {
        Err(not_connected(operation))
    }

    fn flush(&mut self) {}

    fn poll(&mut self, completions: &mut Vec<Completion>, _: usize) {
        let closed = std::mem::take(&mut self.ledger.lock().unwrap().closed);
        completions.extend(closed.into_iter().map(|endpoint| Completion::Closed { endpoint, reason: None }));
    }

    fn waitable(&self) -> RawFd {
        self.waker.fd()
    }

    fn arm(&mut self) -> bool {
        true
    }

    fn close(&mut self, endpoint: EndpointId) {
        let mut ledger = self.ledger.lock().unwrap();
        if ledger.open.remove(&endpoint) {
            ledger.closed.push(endpoint);
        }
    }
}

fn several() -> (Several, Arc<Mutex<Ledger>>) {
    let ledger = Arc::new(Mutex::new(Ledger::default()));
    let memory = Shm::new(ShmConfig::default(), true).unwrap();
    let caps = Caps { name: "wide", ..memory.caps().clone() };
    let wide = Wide { caps, ledger: ledger.clone(), waker: Waker::new().unwrap(), given: 0 };
    (Several::new(memory, Box::new(wide)).unwrap(), ledger)
}

/// Polls until an endpoint is closed; gives the reason, and checks that nothing is left of it.
fn closed(several: &mut Several, other: &mut Shm, id: EndpointId, ledger: &Mutex<Ledger>) -> Option<Error> {
    let (mut seen, limit) = (Vec::new(), Instant::now() + Duration::from_secs(30));
    while seen.is_empty() {
        assert!(Instant::now() < limit);
        several.poll(&mut seen, 64);
        other.poll(&mut Vec::new(), 64);
    }
    let Some(Completion::Closed { endpoint, reason }) = seen.pop() else { panic!("{seen:?}") };
    assert!(endpoint == id && seen.is_empty());
    assert!(ledger.lock().unwrap().open.is_empty(), "the wide endpoint is left open");
    assert!(several.get(id).is_none() && several.ours.is_empty() && several.wide_open == 0);
    (0..100).for_each(|_| several.poll(&mut seen, 64));
    assert!(seen.is_empty(), "{seen:?}");
    reason
}

/// Memory is reached and refuses; then the other way can't even be tried.
#[test]
fn an_endpoint_that_neither_way_can_connect_is_closed_on_both() {
    let (mut several, ledger) = several();
    let mut other = Shm::new(ShmConfig::default(), true).unwrap();
    let (theirs, address) = other.open(Side::Passive, "us").unwrap();
    other.connect(theirs, &[0], &[2; 32]).unwrap();
    let (id, _) = several.open(Side::Active, "them").unwrap();
    several.connect(id, &join(&address, b"wide"), &[1; 32]).unwrap();
    let reason = closed(&mut several, &mut other, id, &ledger).unwrap().to_string();
    assert!(reason.contains("on purpose"), "{reason}");
}

#[test]
fn what_fails_at_the_call_is_closed_too() {
    let mut other = Shm::new(ShmConfig::default(), true).unwrap();
    let (_, mut elsewhere) = other.open(Side::Passive, "us").unwrap();
    elsewhere[1] ^= 1;
    for (side, address) in [(Side::Active, elsewhere), (Side::Passive, vec![0])] {
        let (mut several, ledger) = several();
        let (id, _) = several.open(side, "them").unwrap();
        let error = several.connect(id, &join(&address, b"wide"), &[1; 32]).unwrap_err().to_string();
        assert!(error.contains("on purpose"), "{error}");
        assert!(closed(&mut several, &mut other, id, &ledger).is_none());
    }
}

#[test]
fn a_grant_stands_on_both_ways_or_on_none() {
    let (mut several, ledger) = several();
    let grants = || ledger.lock().unwrap().grants.len();
    let (id, _) = several.open(Side::Passive, "them").unwrap();
    let region = several.register(Arena::new(4096).unwrap()).unwrap();
    assert!(several.authorise(id, region, 4000, 97, Rights::Read).is_err(), "memory looks at the length");
    assert_eq!(grants(), 0);
    let remote = several.authorise(id, region, 0, 96, Rights::Read).unwrap();
    assert_eq!(grants(), 1);
    let memory = several.get(id).unwrap().memory.unwrap();
    several.memory.withdraw(memory, &remote).unwrap();
    assert!(several.withdraw(id, &remote).is_err(), "memory has no such grant");
    assert_eq!(grants(), 0);
}

#[test]
fn both_addresses_come_out_as_they_went_in() {
    assert_eq!(join(&[7, 8], &[9]), [2, 0, 7, 8, 9]);
    assert_eq!(split(&[2, 0, 7, 8, 9]), Some((&[7, 8][..], &[9][..])));
    for bad in [&[][..], &[0], &[2, 0, 7], &[0, 1, 7]] {
        assert_eq!(split(bad), None);
    }
}
