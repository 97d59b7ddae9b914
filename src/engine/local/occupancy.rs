//! How full a topic with a capacity is: what is not settled yet by all of its subscriptions.

use std::collections::VecDeque;

use crate::options::Capacity;
use crate::sequence::Sequence;

/// One count a message, kept only where a capacity is set, under the topic's lock.
///
/// Changes are added, in whatever order they come in: a settlement may be heard of before a seek that undid it.
///
/// Invariant: `messages` and `bytes` sum up the cells whose count is above zero.
#[derive(Debug)]
pub(super) struct Occupancy {
    limits: Capacity,
    /// In the order of their sequences, of which some may have none.
    cells: VecDeque<Cell>,
    messages: u64,
    bytes: u64,
    /// Where the writer stood when the counting began: of what is before it, only what was counted since can be taken away.
    counted_from: Sequence,
}

/// Room that messages take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Room {
    pub(super) messages: u64,
    pub(super) bytes: u64,
}

#[derive(Clone, Copy, Debug)]
struct Cell {
    sequence: Sequence,
    /// How many subscriptions have not settled it.
    unsettled: i64,
    weight: u64,
}

impl Occupancy {
    pub(super) fn new(limits: Capacity, next: Sequence) -> Self {
        Occupancy { limits, cells: VecDeque::new(), messages: 0, bytes: 0, counted_from: next }
    }

    /// Where the first cell is of a message that does not come before this.
    fn place(&self, sequence: Sequence) -> usize {
        let Some(first) = self.cells.front() else { return 0 };
        // There if none is lacking between, as mostly.
        let at = usize::try_from(sequence - first.sequence).unwrap_or(usize::MAX);
        match self.cells.get(at) {
            Some(cell) if cell.sequence == sequence => at,
            _ => self.cells.partition_point(|cell| cell.sequence < sequence),
        }
    }

    pub(super) fn counted_from(&self) -> Sequence {
        self.counted_from
    }

    pub(super) fn limits(&self) -> Capacity {
        self.limits
    }

    pub(super) fn set_limits(&mut self, limits: Capacity) {
        self.limits = limits;
    }

    /// Whether this much more fits now, net of what goes at the same time.
    pub(super) fn has_room_for(&self, messages: u64, bytes: u64, freed: Room) -> bool {
        let kept = self.messages.saturating_sub(freed.messages);
        let kept_bytes = self.bytes.saturating_sub(freed.bytes);
        self.fits(kept.saturating_add(messages), kept_bytes.saturating_add(bytes))
    }

    /// The room that there will be once these have been settled, each time by another subscription. In order; twice means by two.
    pub(super) fn room_of(&self, settled: &[Sequence]) -> Room {
        let mut room = Room::default();
        for by_message in settled.chunk_by(|a, b| a == b) {
            let cell = self.cells.get(self.place(by_message[0]));
            if let Some(cell) = cell.filter(|cell| cell.sequence == by_message[0])
                && cell.unsettled > 0
                && cell.unsettled <= by_message.len() as i64
            {
                room.messages += 1;
                room.bytes = room.bytes.saturating_add(cell.weight);
            }
        }
        room
    }

    /// Whether this much would fit into the empty topic.
    pub(super) fn could_ever_fit(&self, messages: u64, bytes: u64) -> bool {
        self.fits(messages, bytes)
    }

    fn fits(&self, messages: u64, bytes: u64) -> bool {
        self.limits.messages_max.is_none_or(|max| messages <= max)
            && self.limits.bytes_max.is_none_or(|max| bytes <= max)
    }

    /// A message was appended that this many subscriptions are to settle.
    pub(super) fn push(&mut self, sequence: Sequence, subscriptions: u64, weight: u64) {
        // Messages that were published to nobody have no cell: they count as settled.
        let unsettled = i64::try_from(subscriptions).unwrap_or(i64::MAX);
        self.cells.push_back(Cell { sequence, unsettled, weight });
        if subscriptions > 0 {
            self.messages += 1;
            self.bytes = self.bytes.saturating_add(weight);
        }
    }

    /// One subscription settled (`-1`) or has yet to settle (`+1`) the messages `[from, to)`. True: there is more room now.
    pub(super) fn add(&mut self, from: Sequence, to: Sequence, change: i64) -> bool {
        let before = (self.messages, self.bytes);
        let (start, end) = (self.place(from), self.place(to));
        for cell in self.cells.range_mut(start.min(end)..end) {
            let counted = cell.unsettled > 0;
            cell.unsettled += change;
            match (counted, cell.unsettled > 0) {
                (true, false) => {
                    self.messages -= 1;
                    self.bytes -= cell.weight;
                }
                (false, true) => {
                    self.messages += 1;
                    self.bytes += cell.weight;
                }
                _ => {}
            }
        }
        (self.messages, self.bytes) < before
    }

    /// The messages before `floor` are not kept any more.
    pub(super) fn forget_before(&mut self, floor: Sequence) {
        while self.cells.pop_front_if(|cell| cell.sequence < floor && cell.unsettled <= 0).is_some() {}
    }

    /// The oldest message that is not settled by all, also when these have been settled, each by one more; they are in order.
    pub(super) fn oldest_beyond(&self, settled: &[Sequence]) -> Option<Sequence> {
        let by = |sequence| settled.iter().filter(|&&other| other == sequence).count() as i64;
        let mut unsettled = self.cells.iter().filter(|cell| cell.unsettled > 0);
        unsettled.find(|cell| cell.unsettled > by(cell.sequence)).map(|cell| cell.sequence)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seq(n: u64) -> Sequence {
        Sequence::new(n)
    }

    #[test]
    fn a_message_takes_room_until_the_last_subscription_settles_it() {
        let mut occupancy = Occupancy::new(Capacity::messages(2), seq(1));
        occupancy.push(seq(1), 2, 8);
        occupancy.push(seq(2), 2, 8);
        assert!(
            !occupancy.has_room_for(1, 8, Room::default())
                && occupancy.could_ever_fit(2, 8)
                && !occupancy.could_ever_fit(3, 8)
        );
        assert!(!occupancy.add(seq(2), seq(3), -1));
        assert!(occupancy.add(seq(2), seq(3), -1), "out of order");
        assert!(occupancy.has_room_for(1, 8, Room::default()));
        assert_eq!(occupancy.oldest_beyond(&[]), Some(seq(1)));
        occupancy.add(seq(1), seq(3), 1);
        assert!(!occupancy.has_room_for(1, 8, Room::default()), "a seek back takes the room again");
    }

    #[test]
    fn what_is_settled_together_with_a_publish_makes_room_for_it() {
        let mut occupancy = Occupancy::new(Capacity::messages(2), seq(1));
        occupancy.push(seq(1), 2, 8);
        occupancy.push(seq(2), 1, 5);
        let room = |settled: &[u64]| {
            let settled: Vec<_> = settled.iter().map(|&n| seq(n)).collect();
            let room = occupancy.room_of(&settled);
            (room.messages, room.bytes)
        };
        assert_eq!(room(&[1]), (0, 0), "the other subscription still has it");
        assert_eq!(room(&[1, 1, 2]), (2, 13));
        assert_eq!(room(&[0, 3]), (0, 0));
        assert!(occupancy.has_room_for(1, 1, occupancy.room_of(&[seq(2)])));
        assert!(!occupancy.has_room_for(2, 1, occupancy.room_of(&[seq(2)])));
    }

    #[test]
    fn what_is_passed_over_has_no_cells() {
        let (near, far) = (seq(2), seq(1 << 62));
        let mut occupancy = Occupancy::new(Capacity::messages(2), seq(1));
        occupancy.push(near, 1, 8);
        occupancy.push(far, 1, 8);
        occupancy.push(far.next(), 1, 8);
        assert_eq!(occupancy.cells.len(), 3);
        assert_eq!(occupancy.oldest_beyond(&[near]), Some(far));
        assert!(!occupancy.add(near.next(), far, -1), "there is nothing between");
        assert_eq!(occupancy.room_of(&[near.next(), far]).messages, 1);
        assert!(occupancy.add(near, far.next(), -1));
        assert_eq!(occupancy.oldest_beyond(&[]), Some(far.next()));
        occupancy.forget_before(far.next());
        assert_eq!(occupancy.cells.len(), 1);
    }

    #[test]
    fn changes_may_come_in_any_order() {
        let mut occupancy = Occupancy::new(Capacity::bytes(10), seq(5));
        occupancy.push(seq(5), 1, 10);
        occupancy.add(seq(5), seq(6), -1);
        occupancy.add(seq(5), seq(6), -1);
        occupancy.add(seq(5), seq(6), 1);
        assert!(occupancy.has_room_for(1, 10, Room::default()));
        occupancy.add(seq(5), seq(6), 1);
        assert!(!occupancy.has_room_for(1, 1, Room::default()));
        occupancy.forget_before(seq(9));
        assert_eq!(occupancy.oldest_beyond(&[]), Some(seq(5)), "what is not settled is not forgotten");
    }
}
