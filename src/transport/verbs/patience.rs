//! How long an endpoint waits for a device that neither does what it was given nor says that it failed.
//!
//! A reliable connection promises one of the two, within its timeouts. Devices break that: in Linux 6.1 a queue pair of soft-RoCE whose
//! link went down for a moment can lose the timer by which it sends again, and then stands in RTS with packets that nobody has
//! acknowledged, for ever. Nor is anything promised for the last operations of all, which carry no signal.
//!
//! So the oldest operation under way is looked at now and then. One that stays the same is first *asked* for: a signalled write of no
//! bytes is sent behind it, which completes when all before it is done, and may remind a device that forgot to send again (the peer sees
//! the gap). Where that brings nothing either, the endpoint is lost, as a TCP connection is that nobody acknowledges.

use std::time::Duration;

use super::endpoint::{After, Endpoint, Phase, Shared};
use super::qp::{Piece, Verb};
use crate::error::Error;

/// Looks that find the same oldest operation: from the first one on which it is asked for, to the last.
const LOOKS: u8 = 4;

/// Time between two looks at each endpoint.
pub(super) fn between(patience: Duration) -> Duration {
    patience / u32::from(LOOKS)
}

/// What a look found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    Progress,
    Silence,
    TooMuch,
}

/// What the looks before have seen. They are counted, and not the time: a thread that was away for long looks once, behind all that came.
#[derive(Debug, Default)]
pub(super) struct Looks {
    oldest: Option<u32>,
    same: u8,
}

impl Looks {
    fn look(&mut self, oldest: Option<u32>) -> Found {
        if oldest.is_none() || oldest != self.oldest {
            *self = Looks { oldest, same: 0 };
            return Found::Progress;
        }
        self.same = self.same.saturating_add(1);
        if self.same >= LOOKS { Found::TooMuch } else { Found::Silence }
    }

    fn is_first(&self) -> bool {
        self.same == 1
    }
}

impl Endpoint {
    /// One look; all completions that were there have been taken before.
    pub fn look(&mut self, shared: &Shared) {
        if !matches!(self.phase, Phase::Connected) {
            return;
        }
        match self.looks.look(self.operations.front().map(|operation| operation.sequence)) {
            Found::Progress => {}
            Found::Silence => {
                if self.looks.is_first() && self.operations.len() < shared.depth as usize {
                    // The address and the key of a write of no bytes are not looked at.
                    self.push(shared, Verb::Write(None), [Piece::default(); 2], (0, 0), true, None, None);
                    self.flush();
                }
            }
            Found::TooMuch => {
                let (count, patience) = (self.operations.len(), shared.patience);
                let reason =
                    format!("its device has acknowledged none of {count} operations for {patience:?}");
                self.fail(After::Closed(Some(Error::PeerLost { peer: self.peer.clone(), reason })), true);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::config::Rdma;
    use crate::mem::{Arena, Rights};
    use crate::transport::verbs::device::available;
    use crate::transport::verbs::{Verbs, VerbsConfig};
    use crate::transport::{Completion, HEADER, Side, Transport, Write};

    #[test]
    fn only_the_same_operation_for_all_looks_is_too_much() {
        let mut looks = Looks::default();
        let mut found = |oldest| (looks.look(oldest), looks.is_first());
        for _ in 0..10 {
            assert_eq!(found(None), (Found::Progress, false), "nothing is under way");
        }
        for sequence in 0..10 {
            assert_eq!(found(Some(sequence)), (Found::Progress, false));
        }
        assert_eq!(found(Some(9)), (Found::Silence, true));
        assert_eq!(found(Some(9)), (Found::Silence, false));
        assert_eq!(found(Some(9)), (Found::Silence, false));
        assert_eq!(found(Some(10)), (Found::Progress, false), "the fourth would have been one too many");
        for first in [true, false, false] {
            assert_eq!(found(Some(10)), (Found::Silence, first));
        }
        assert_eq!(found(Some(10)), (Found::TooMuch, false));
    }

    const PATIENCE: Duration = Duration::from_secs(2);

    /// Two connected ends whose devices never give up by themselves (in 2.4 hours), and a write without a signal posted at the first.
    fn two_ends() -> Option<([Verbs; 2], [crate::transport::EndpointId; 2])> {
        if !available().unwrap().iter().any(|d| d.active) {
            println!("skipped: no RDMA device");
            return None;
        }
        let rdma = Rdma { timeout: Some(31), ..Rdma::default() };
        let config = VerbsConfig { rdma, patience: PATIENCE, ..VerbsConfig::default() };
        let mut ends = [(); 2].map(|()| Verbs::new(&config).unwrap());
        let opened = [0, 1].map(|n| ends[n].open([Side::Active, Side::Passive][n], "the other").unwrap());
        let arena = Arena::new(4096).unwrap();
        let region = ends[1].register(arena).unwrap();
        let remote = ends[1].authorise(opened[1].0, region, 0, 4096, Rights::Write).unwrap();
        for n in [1, 0] {
            ends[n].connect(opened[n].0, &opened[1 - n].1, &[3; 32]).unwrap();
        }
        let (limit, mut seen) = (Instant::now() + Duration::from_secs(30), Vec::new());
        while seen.iter().filter(|c| matches!(c, Completion::Connected { .. })).count() < 2 {
            assert!(Instant::now() < limit, "{seen:?}");
            ends.iter_mut().for_each(|end| end.poll(&mut seen, 256));
        }
        let header = Some([1; HEADER]);
        ends[0]
            .write(opened[0].0, Write { header, body: None, remote, offset: 0, imm: None, context: None })
            .unwrap();
        Some((ends, opened.map(|(id, _)| id)))
    }

    fn under_way(ends: &[Verbs; 2], id: crate::transport::EndpointId) -> usize {
        ends[0].places[id.index as usize].endpoint.as_deref().map_or(0, |e| e.operations.len())
    }

    /// The last write of all carries no signal; what it holds is given back all the same, and the endpoint lives on.
    #[test]
    fn a_last_write_without_a_signal_is_asked_for() {
        let Some((mut ends, opened)) = two_ends() else { return };
        ends[0].flush();
        assert_eq!(under_way(&ends, opened[0]), 1);
        let (begun, mut seen) = (Instant::now(), Vec::new());
        while under_way(&ends, opened[0]) > 0 {
            assert!(begun.elapsed() < Duration::from_secs(30));
            ends[0].poll(&mut seen, 256);
        }
        let until = Instant::now() + 2 * PATIENCE;
        while Instant::now() < until {
            ends[0].poll(&mut seen, 256);
        }
        assert!(seen.is_empty(), "{seen:?}");
    }

    /// A queue pair that is there no more answers nothing; the device, which would try for hours, says nothing.
    #[test]
    fn a_device_that_says_nothing_loses_the_endpoint() {
        let Some((mut ends, opened)) = two_ends() else { return };
        ends[1].places[opened[1].index as usize].endpoint.as_deref_mut().unwrap().qp.fail_unseen();
        ends[0].flush();
        let (begun, mut seen) = (Instant::now(), Vec::new());
        while seen.is_empty() {
            assert!(begun.elapsed() < Duration::from_secs(30));
            ends[0].poll(&mut seen, 256);
        }
        let [Completion::Closed { endpoint, reason: Some(Error::PeerLost { peer, reason }) }] = &seen[..]
        else {
            panic!("{seen:?}")
        };
        assert_eq!((*endpoint, peer.as_str()), (opened[0], "the other"));
        assert_eq!(reason, "its device has acknowledged none of 2 operations for 2s");
        assert!(begun.elapsed() >= PATIENCE, "{:?}", begun.elapsed());
    }
}
