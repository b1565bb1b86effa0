//! A worker that takes nothing of what is sent to it.

use super::*;
use crate::transport::{
    Caps, Completion, Message, Payload, Read, Rejected, SessionKey, Side, Transport, Write,
};

/// Takes every write and sends none. Only what an answer needs.
struct Standstill {
    held: Vec<(EndpointId, Write)>,
}

impl Standstill {
    /// Answers for each of two workers, by their bodies.
    fn bodies(&self) -> [usize; 2] {
        let of = |rank| self.held.iter().filter(|(e, w)| e.index == rank && w.body.is_some()).count();
        [of(0), of(1)]
    }
}

impl Transport for Standstill {
    fn caps(&self) -> &Caps {
        unreachable!()
    }

    fn register(&mut self, _: Arc<Arena>) -> Result<RegionId> {
        unreachable!()
    }

    fn unregister(&mut self, _: RegionId) -> bool {
        unreachable!()
    }

    fn open(&mut self, _: Side, _: &str) -> Result<(EndpointId, Vec<u8>)> {
        unreachable!()
    }

    fn authorise(
        &mut self,
        _: EndpointId,
        _: RegionId,
        _: usize,
        _: usize,
        _: Rights,
    ) -> Result<RemoteRegion> {
        unreachable!()
    }

    fn withdraw(&mut self, _: EndpointId, _: &RemoteRegion) -> Result<()> {
        unreachable!()
    }

    fn connect(&mut self, _: EndpointId, _: &[u8], _: &SessionKey) -> Result<()> {
        unreachable!()
    }

    fn send(&mut self, _: EndpointId, _: Message) -> std::result::Result<(), Rejected<Message>> {
        unreachable!()
    }

    fn write(&mut self, endpoint: EndpointId, write: Write) -> std::result::Result<(), Rejected<Write>> {
        self.held.push((endpoint, write));
        Ok(())
    }

    fn read(&mut self, _: EndpointId, _: Read) -> std::result::Result<(), Rejected<Read>> {
        unreachable!()
    }

    fn flush(&mut self) {}

    fn poll(&mut self, _: &mut Vec<Completion>, _: usize) {}

    fn waitable(&self) -> std::os::fd::RawFd {
        unreachable!()
    }

    fn arm(&mut self) -> bool {
        unreachable!()
    }

    fn close(&mut self, _: EndpointId) {}
}

/// It is stopped, or computes for a minute: the others' pulls must not wait for it.
#[test]
fn a_worker_that_does_not_read_leaves_reply_buffers_to_the_others() {
    let mut rig = Rig::with(2, &[(8192, 4)], 0);
    let spec = TableSpec::dense("a", &[2048]).segment_bytes(8192).consistency(Consistency::Asp);
    rig.core.create_table(1, &spec, |_| Ok(RegionId(3))).unwrap();
    let mut transport = Standstill { held: Vec::new() };
    let pull = |rig: &mut Rig, rank: u32| {
        rig.write((rank, 0), |header| (header.table, header.count) = (1, 2048)).unwrap();
        rig.core.links[rank as usize].as_mut().unwrap().free(0);
    };
    let settle = |rig: &mut Rig, transport: &mut Standstill| {
        let mut failed = Vec::new();
        rig.core.settle(transport, &mut failed);
        assert!(failed.is_empty(), "{failed:?}");
    };
    for _ in 0..4 {
        pull(&mut rig, 0);
        settle(&mut rig, &mut transport);
    }
    assert_eq!(transport.bodies(), [2, 0]);
    pull(&mut rig, 1);
    settle(&mut rig, &mut transport);
    assert_eq!(transport.bodies(), [2, 1]);
    // What leaves makes room.
    for (endpoint, write) in std::mem::take(&mut transport.held) {
        assert!(
            !matches!(write.body, Some(Payload::Published(_))),
            "nothing is pinned without spare segments"
        );
        write.context.into_iter().for_each(|context| rig.core.done(endpoint.index, context));
    }
    settle(&mut rig, &mut transport);
    assert_eq!(transport.bodies(), [2, 0]);
}
