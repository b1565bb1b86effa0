//! Bodies that the kernel sends from where they lie: it says on the socket's error queue when it has no more use for them.
//!
//! Source: Linux, Documentation/networking/msg_zerocopy.rst. Calls with MSG_ZEROCOPY that took something are numbered from 0, modulo
//! 2³²; each notification names a range of them, and ranges may come out of order.

use std::collections::VecDeque;
use std::io;
use std::os::fd::RawFd;

use super::socket::{self, Told};

/// Shorter bodies are copied: to pin their pages and to read the notification takes longer than that.
pub(super) const LEAST: usize = 64 << 10;

/// What waits for the kernel, with the calls that it waits for.
#[derive(Debug)]
pub(super) struct Lent<T> {
    /// The number of the oldest call that the kernel has not done with.
    oldest: u32,
    /// From that one on: whether it has.
    done: VecDeque<bool>,
    /// Each with the number of the last call that took a part of it; in order.
    waiting: VecDeque<(u32, T)>,
    /// The kernel copied after all.
    copied: bool,
    /// It is lent more even then.
    always: bool,
}

impl<T> Lent<T> {
    /// Nothing was lent. Without `always` nothing more is lent once the kernel has copied: there is nothing to gain on that path.
    pub fn new(always: bool) -> Lent<T> {
        Lent { oldest: 0, done: VecDeque::new(), waiting: VecDeque::new(), copied: false, always }
    }

    /// Whether more is to be lent.
    pub fn goes_on(&self) -> bool {
        self.always || !self.copied
    }

    /// One more call took something.
    pub fn called(&mut self) {
        self.done.push_back(false);
    }

    /// All of `item` was taken, its last part by the last call.
    pub fn keep(&mut self, item: T) {
        let last = self.oldest.wrapping_add(self.done.len() as u32).wrapping_sub(1);
        self.waiting.push_back((last, item));
    }

    /// What waits.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.waiting.iter().map(|(_, item)| item)
    }

    /// Whether the kernel may still read any of it.
    pub fn is_empty(&self) -> bool {
        self.done.is_empty()
    }

    /// Reads what the kernel says on `fd`; whether it said anything. Then [`Lent::back`] gives what is free.
    pub fn hear(&mut self, fd: RawFd) -> io::Result<bool> {
        let mut heard = false;
        while let Some(told) = socket::told(fd)? {
            heard = true;
            self.told(told);
        }
        Ok(heard)
    }

    fn told(&mut self, told: Told) {
        self.copied |= told.copied;
        let count = told.last.wrapping_sub(told.first);
        for number in 0..=count {
            let place = told.first.wrapping_add(number).wrapping_sub(self.oldest) as usize;
            match self.done.get_mut(place) {
                Some(done) => *done = true,
                None => break,
            }
        }
        while self.done.front() == Some(&true) {
            self.done.pop_front();
            self.oldest = self.oldest.wrapping_add(1);
        }
    }

    /// The oldest item, when the kernel has done with it.
    pub fn back(&mut self) -> Option<T> {
        let (last, _) = self.waiting.front()?;
        // Done when its last call is older than the oldest that is not done, in numbers that wrap.
        if (last.wrapping_sub(self.oldest) as usize) < self.done.len() {
            return None;
        }
        self.waiting.pop_front().map(|(_, item)| item)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(first: u32, last: u32) -> Told {
        Told { first, last, copied: false }
    }

    fn all(lent: &mut Lent<char>) -> String {
        std::iter::from_fn(|| lent.back()).collect()
    }

    /// From a number on that wraps in the middle: a takes two calls, b one, c two.
    fn three(oldest: u32) -> Lent<char> {
        let mut lent = Lent { oldest, ..Lent::new(false) };
        for (item, calls) in [('a', 2), ('b', 1), ('c', 2)] {
            (0..calls).for_each(|_| lent.called());
            lent.keep(item);
        }
        lent
    }

    #[test]
    fn an_item_comes_back_when_all_its_calls_are_done_and_not_before() {
        for oldest in [0, 7, u32::MAX, u32::MAX - 2] {
            let number = |n: u32| oldest.wrapping_add(n);
            let mut lent = three(oldest);
            lent.told(told(number(0), number(0)));
            assert_eq!(all(&mut lent), "");
            lent.told(told(number(1), number(3)));
            assert_eq!(all(&mut lent), "ab");
            assert!(!lent.is_empty());
            lent.told(told(number(4), number(4)));
            assert_eq!(all(&mut lent), "c");
            assert!(lent.is_empty());
        }
    }

    #[test]
    fn notifications_may_come_out_of_order() {
        let mut lent = three(u32::MAX - 1);
        lent.told(told(1, 2));
        lent.told(told(0, 0));
        assert_eq!(all(&mut lent), "");
        lent.told(told(u32::MAX - 1, u32::MAX));
        assert_eq!(all(&mut lent), "abc");
    }

    #[test]
    fn calls_that_were_never_made_change_nothing() {
        let mut lent = three(5);
        lent.told(told(10, 4_000_000_000));
        lent.told(told(0, 3));
        assert_eq!(all(&mut lent), "");
        assert_eq!(lent.iter().count(), 3);
    }

    #[test]
    fn nothing_more_is_lent_where_the_kernel_copies() {
        for (always, copied) in [(false, false), (false, true), (true, true)] {
            let mut lent = Lent::<char>::new(always);
            lent.called();
            lent.told(Told { copied, ..told(0, 0) });
            assert_eq!(lent.goes_on(), always || !copied);
        }
    }

    #[test]
    fn an_item_under_way_keeps_its_calls() {
        let mut lent = Lent::new(false);
        lent.called();
        lent.told(told(0, 0));
        // Its second part goes by another call.
        lent.called();
        lent.keep('a');
        assert_eq!(all(&mut lent), "");
        lent.told(told(1, 1));
        assert_eq!(all(&mut lent), "a");
    }
}
