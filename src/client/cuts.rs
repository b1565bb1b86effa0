//! A worker's part of cuts: its opaque state at the clock that the Coordinator named. Sans-io.
//!
//! Only the newest state is kept. So a clock can be cut that this worker has not left, and no other: it says so.

use crate::types::Clock;

/// What the calling threads and the control thread share.
#[derive(Debug, Default)]
pub struct Cuts {
    clock: Clock,
    /// What was saved last, and in which clock.
    latest: Option<(Clock, Vec<u8>)>,
    /// The cut that waits for its clock.
    wanted: Option<(u64, Clock)>,
    /// A state that is to be sent.
    taken: Option<(u64, Vec<u8>)>,
    finished: bool,
    resumed: Option<(Clock, Vec<u8>)>,
}

impl Cuts {
    /// Of a worker whose job goes on from a cut, at this clock and with this state.
    pub fn resumed(clock: Clock, state: Vec<u8>) -> Cuts {
        let latest = Some((clock, state.clone()));
        Cuts { clock, latest, resumed: Some((clock, state)), ..Cuts::default() }
    }

    /// What the job goes on from.
    pub fn beginning(&self) -> Option<&(Clock, Vec<u8>)> {
        self.resumed.as_ref()
    }

    /// The Coordinator names a clock. Gives the one that this worker is in, where that is past it.
    pub fn named(&mut self, number: u64, clock: Clock) -> Option<Clock> {
        if self.clock > clock && !self.finished {
            return Some(self.clock);
        }
        self.wanted = Some((number, clock));
        self.taken = None;
        if self.finished || self.latest.as_ref().is_some_and(|(saved, _)| *saved == clock) {
            self.take();
        }
        None
    }

    /// The cut is given up.
    pub fn cancelled(&mut self, number: u64) {
        self.wanted = self.wanted.filter(|(wanted, _)| *wanted != number);
        self.taken = self.taken.take().filter(|(taken, _)| *taken != number);
    }

    /// The worker saves its state. True when there is something to send.
    pub fn save(&mut self, state: &[u8]) -> bool {
        let mut kept = self.latest.take().map_or_else(Vec::new, |(_, kept)| kept);
        kept.clear();
        kept.extend_from_slice(state);
        self.latest = Some((self.clock, kept));
        match self.wanted {
            Some((_, clock)) if clock == self.clock => self.take(),
            _ => false,
        }
    }

    /// The worker is in this clock now. True when there is something to send.
    pub fn advanced(&mut self, to: Clock) -> bool {
        self.clock = to;
        match self.wanted {
            Some((_, clock)) if clock < to => self.take(),
            _ => false,
        }
    }

    /// The worker ends no clock any more.
    pub fn finish(&mut self) -> bool {
        self.finished = true;
        self.wanted.is_some() && self.take()
    }

    /// What is to be sent: of which cut, and the state.
    pub fn next_state(&mut self) -> Option<(u64, Vec<u8>)> {
        self.taken.take()
    }

    /// What was saved last.
    pub fn last(&self) -> Option<&[u8]> {
        self.latest.as_ref().map(|(_, state)| state.as_slice())
    }

    fn take(&mut self) -> bool {
        let Some((number, _)) = self.wanted.take() else { return false };
        self.taken = Some((number, self.last().unwrap_or_default().to_vec()));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(cuts: &mut Cuts) -> Option<(u64, String)> {
        cuts.next_state().map(|(number, state)| (number, String::from_utf8(state).unwrap()))
    }

    #[test]
    fn the_state_of_the_named_clock_is_sent() {
        let mut cuts = Cuts::default();
        assert_eq!(cuts.named(1, 2), None);
        assert!(!cuts.save(b"zero") && !cuts.advanced(1) && !cuts.save(b"one") && !cuts.advanced(2));
        assert_eq!(sent(&mut cuts), None);
        assert!(cuts.save(b"two"));
        assert_eq!(sent(&mut cuts), Some((1, "two".to_owned())));
        assert!(!cuts.save(b"two again") && !cuts.advanced(3));
        assert_eq!(sent(&mut cuts), None);
    }

    #[test]
    fn a_clock_that_is_past_is_not_cut() {
        let mut cuts = Cuts::default();
        cuts.advanced(5);
        cuts.save(b"five");
        assert_eq!(cuts.named(1, 4), Some(5));
        assert_eq!(cuts.named(2, 5), None);
        assert_eq!(sent(&mut cuts), Some((2, "five".to_owned())));
    }

    #[test]
    fn a_worker_that_saves_seldom_is_cut_as_it_leaves_the_clock() {
        let mut cuts = Cuts::default();
        cuts.save(b"zero");
        cuts.named(1, 2);
        assert!(!cuts.advanced(1) && !cuts.advanced(2) && cuts.advanced(3));
        assert_eq!(sent(&mut cuts), Some((1, "zero".to_owned())));
    }

    #[test]
    fn what_was_given_up_is_not_sent() {
        let mut cuts = Cuts::default();
        cuts.named(1, 0);
        cuts.cancelled(2);
        assert!(cuts.save(b"zero"));
        cuts.cancelled(1);
        assert_eq!(sent(&mut cuts), None);
        cuts.named(3, 4);
        cuts.cancelled(3);
        assert!(!cuts.advanced(5));
    }

    #[test]
    fn a_worker_that_finishes_is_cut_as_it_is() {
        let mut cuts = Cuts::default();
        cuts.named(1, 9);
        cuts.save(b"end");
        assert!(cuts.finish());
        assert_eq!(sent(&mut cuts), Some((1, "end".to_owned())));
        assert_eq!(cuts.named(2, 9), None);
        assert_eq!(sent(&mut cuts), Some((2, "end".to_owned())));
    }

    #[test]
    fn a_resumed_worker_has_its_state_already() {
        let mut cuts = Cuts::resumed(7, b"seven".to_vec());
        assert_eq!(cuts.beginning(), Some(&(7, b"seven".to_vec())));
        assert_eq!(cuts.named(1, 7), None);
        assert_eq!(sent(&mut cuts), Some((1, "seven".to_owned())));
        assert_eq!(Cuts::default().beginning(), None);
    }
}
