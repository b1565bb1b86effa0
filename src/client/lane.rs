//! Frames that wait for a slot of one server thread, in the order in which they leave.
//!
//! A lane is a row of segments, each of which is ended by a mark. Within a segment frames stand by falling priority, and those
//! of one priority in the order of the calls.
//!
//! - **Nothing passes a mark**, in either direction: frames are sorted by segment first, and the mark is the last of its own.
//! - **Requests of one table never pass each other.** All that waits of a table has one priority: a request takes that of those
//!   which wait already, and its own when there are none. So each bucket gets its pieces in the order of the calls, and a
//!   pull comes behind the pushes that were made before it.
//!
//! So priorities only let requests of different tables change places, between two marks. What a server thread makes of one
//! table does not depend on the place of another's requests in the same clock, so they change no bit. Sequence numbers are
//! given when a frame takes its slot: what is sent again after a loss keeps the order in which it left.

use std::cmp::Reverse;
use std::collections::VecDeque;

use super::frame::{AGAIN, Fill, Outgoing, Owner};
use crate::proto::RequestHeader;
use crate::types::TableId;

/// Tables of a job, at most. Beyond that two would share a level, and still keep their order.
const TABLES: usize = 4096;

/// See the module's head.
pub struct Lane {
    frames: VecDeque<Outgoing>,
    /// The one that is not ended.
    segment: u64,
    /// By table. It grows at the first use of a table only.
    levels: Vec<Level>,
}

impl Default for Lane {
    fn default() -> Lane {
        Lane { frames: VecDeque::new(), segment: AGAIN + 1, levels: Vec::new() }
    }
}

/// What waits of one table.
#[derive(Clone, Copy, Default)]
struct Level {
    requests: u32,
    priority: i8,
}

impl Lane {
    pub fn len(&self) -> usize {
        self.frames.len()
    }

    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = &Outgoing> {
        self.frames.iter()
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Outgoing> {
        self.frames.iter_mut()
    }

    /// The one that leaves first.
    pub fn front(&self) -> Option<&Outgoing> {
        self.frames.front()
    }

    /// Takes the one that leaves first.
    pub fn pop(&mut self) -> Option<Outgoing> {
        let frame = self.frames.pop_front()?;
        for table in frame.tables() {
            self.level(table).requests -= 1;
        }
        Some(frame)
    }

    /// Puts a frame that was taken, and found no room, back before all others.
    pub fn put_first(&mut self, frame: Outgoing) {
        for table in frame.tables() {
            self.level(table).requests += 1;
        }
        self.frames.push_front(frame);
    }

    /// Puts a frame that is to be sent again before all others, whatever their priority. What comes of its tables takes its priority, as behind any
    /// other frame.
    pub fn again(&mut self, mut frame: Outgoing) {
        (frame.open, frame.segment) = (false, AGAIN);
        for table in frame.tables() {
            let level = self.level(table);
            if level.requests == 0 {
                level.priority = frame.priority;
            }
        }
        self.put_first(frame);
    }

    /// Queues a frame of one request, or a mark.
    pub fn enqueue(&mut self, mut frame: Outgoing) {
        frame.segment = self.segment;
        let table = frame.tables().next();
        frame.priority = self.priority(table, frame.priority);
        if let Some(table) = table {
            self.level(table).requests += 1;
        }
        self.frames.insert(self.place(frame.priority), frame);
    }

    /// Puts a small request, or a mark, into the frame that it would stand behind. False when it can't join that one; a frame with
    /// more pulls than `credits` could never leave.
    pub fn join(
        &mut self,
        header: RequestHeader,
        fill: &mut Fill<'_>,
        (owner, priority): (Owner, i8),
        credits: u32,
    ) -> bool {
        let table = (owner != Owner::Mark).then_some(header.table);
        let priority = self.priority(table, priority);
        let (segment, place) = (self.segment, self.place(priority));
        let before = place.checked_sub(1).and_then(|at| self.frames.get_mut(at));
        let Some(frame) = before.filter(|f| f.open && f.segment == segment) else { return false };
        let one_more = u32::from(matches!(owner, Owner::Pull { .. }));
        let same = (frame.priority == priority || table.is_none()) && frame.header.clock == header.clock;
        if !same || frame.pulls + one_more > credits || !frame.join(header, fill, owner) {
            return false;
        }
        if let Some(table) = table {
            self.level(table).requests += 1;
        }
        true
    }

    /// A mark was queued: what comes from now on stands behind all that is here.
    pub fn end_segment(&mut self) {
        self.segment += 1;
    }

    /// Nothing more joins the last frame. Those that stand before another leave by themselves.
    pub fn flush(&mut self) {
        if let Some(last) = self.frames.back_mut() {
            last.open = false;
        }
    }

    /// What a request gets that asks for `wanted`; a mark, which has no table, stands behind all.
    fn priority(&mut self, table: Option<TableId>, wanted: i8) -> i8 {
        let Some(table) = table else { return i8::MIN };
        let level = self.level(table);
        if level.requests == 0 {
            level.priority = wanted;
        }
        level.priority
    }

    /// Where a frame of the present segment belongs.
    fn place(&self, priority: i8) -> usize {
        let key = (self.segment, Reverse(priority));
        let stands_before = |f: &Outgoing| (f.segment, Reverse(f.priority)) <= key;
        match self.frames.back() {
            Some(last) if !stands_before(last) => self.frames.partition_point(stands_before),
            _ => self.frames.len(),
        }
    }

    fn level(&mut self, table: TableId) -> &mut Level {
        let at = table as usize % TABLES;
        if at >= self.levels.len() {
            self.levels.resize(at + 1, Level::default());
        }
        &mut self.levels[at]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::client::frame::Spare;
    use crate::proto::RequestKind;

    /// What waits, as the module's head has it: segment, effective priority, table (none for a mark), number.
    type Waiting = (u64, Reverse<i8>, u32, Option<TableId>);

    fn request(kind: RequestKind, table: TableId, number: u32) -> RequestHeader {
        RequestHeader { kind, table, count: number, ..RequestHeader::new(0, 1) }
    }

    fn pop(lane: &mut Lane, model: &mut Vec<Waiting>) {
        let first = model.iter().copied().min();
        model.retain(|waiting| Some(*waiting) != first);
        let popped = lane.pop().map(|frame| (frame.header.count, frame.tables().next()));
        assert_eq!(popped, first.map(|(_, _, number, table)| (number, table)));
    }

    /// Sent again with the priority that it had, not with that of what came of its table since.
    #[test]
    fn what_is_sent_again_leaves_first_and_what_follows_it_has_its_priority() {
        let mut lane = Lane::default();
        let alone = |table, number, priority| {
            Outgoing::alone(
                request(RequestKind::Push, table, number),
                None,
                (Owner::Push(0), priority),
                Spare::default(),
            )
        };
        let mut sent = Vec::new();
        for (number, priority) in [(1, -5), (2, 100)] {
            lane.enqueue(alone(1, number, priority));
            sent.extend(lane.pop());
        }
        sent.truncate(1); // the second is done with
        lane.enqueue(alone(2, 3, 50));
        lane.again(sent.remove(0));
        lane.enqueue(alone(1, 4, 60));
        lane.enqueue(alone(3, 5, i8::MAX));
        let order: Vec<u32> = std::iter::from_fn(|| lane.pop()).map(|f| f.header.count).collect();
        assert_eq!(order, [1, 5, 3, 4]);
    }

    proptest! {
        #[test]
        fn the_higher_priority_leaves_first_and_nothing_passes_a_mark_or_its_own_table(
            steps in proptest::collection::vec((0u32..8, 0u32..4, -2i8..3), 0..100),
        ) {
            let (mut lane, mut model, mut segment) = (Lane::default(), Vec::<Waiting>::new(), 0);
            let mut last = [0; 4];
            for (number, (choice, table, wanted)) in (1..).zip(steps) {
                match choice {
                    0 => {
                        let mark = request(RequestKind::Mark, 0, number);
                        lane.enqueue(Outgoing::alone(mark, None, (Owner::Mark, i8::MIN), Spare::default()));
                        lane.end_segment();
                        model.push((segment, Reverse(i8::MIN), number, None));
                        segment += 1;
                    }
                    1..3 => {
                        // A frame that finds no room keeps its place.
                        if let Some(frame) = lane.pop() {
                            lane.put_first(frame);
                        }
                        let before = lane.front().map(|f| (f.tables().next(), f.header.count));
                        pop(&mut lane, &mut model);
                        if let Some((Some(table), number)) = before {
                            prop_assert!(number > std::mem::replace(&mut last[table as usize], number));
                        }
                    }
                    _ => {
                        let own = model.iter().rfind(|waiting| waiting.3 == Some(table));
                        let priority = own.map_or(Reverse(wanted), |waiting| waiting.1);
                        model.push((segment, priority, number, Some(table)));
                        let push = request(RequestKind::Push, table, number);
                        lane.enqueue(Outgoing::alone(push, None, (Owner::Push(0), wanted), Spare::default()));
                    }
                }
                prop_assert_eq!(lane.len(), model.len());
            }
            while !model.is_empty() {
                pop(&mut lane, &mut model);
            }
            prop_assert!(lane.is_empty() && lane.levels.iter().all(|level| level.requests == 0));
        }
    }
}
