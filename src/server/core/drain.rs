//! A server thread that is told to stop: it takes nothing more, and answers what it has taken.
//!
//! What was taken may need more to be answered: a push is committed, and a pull can be read, when clocks close that other
//! workers have not ended. So a thread that drains goes on with the clocks that it needs for that, and with none that comes
//! after them. Whatever belongs to a later clock is left where it is: its worker gets no answer, and hears from the
//! Coordinator why.

use super::*;

impl Core {
    /// From now on only what the answers need is taken.
    pub fn drain(&mut self) {
        self.draining = true;
        self.links.iter_mut().flatten().for_each(Link::drain);
    }

    /// Whether everything that was taken is answered, and every answer has left. Only after [`Core::drain`].
    pub fn is_drained(&self) -> bool {
        self.failed
            || self.verdicts.is_empty()
                && self.gate.closed() >= self.promised
                && self.links.iter().flatten().all(Link::is_drained)
    }
}
