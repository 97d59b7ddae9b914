//! Publisher dedup: has this idempotency id been published within the window?

use std::collections::{HashMap, VecDeque};

use crate::binary::{Flaw, Malformed, Reader, Writer};
use crate::message::IdempotencyId;
use crate::options::DedupWindow;
use crate::sequence::Sequence;
use crate::time::Tick;

/// What a topic remembers of the ids published to it.
///
/// Ids are compared whole, so a new id is never taken for an old one. Of a message only a 64-bit keyed hash is kept: another message
/// under a known id goes unnoticed once in 2^64 times, and then counts as a repeat.
///
/// Invariant: `order` holds each id of `seen` once, oldest first, at most `window.ids_max`, all younger than `window.time` as of the last call.
#[derive(Debug)]
pub(crate) struct Dedup {
    window: DedupWindow,
    seen: HashMap<IdempotencyId, Seen>,
    order: VecDeque<(Tick, IdempotencyId)>,
}

#[derive(Clone, Copy, Debug)]
struct Seen {
    sequence: Sequence,
    content: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    New,
    /// Published before, as this message.
    Repeat(Sequence),
    /// Published before, as another message.
    Conflict,
}

impl Dedup {
    pub(crate) fn new(window: DedupWindow) -> Self {
        Dedup { window, seen: HashMap::new(), order: VecDeque::new() }
    }

    /// Looks, and records nothing: an id is recorded only with its publish.
    pub(crate) fn admit(&mut self, id: &IdempotencyId, content: u64, now: Tick) -> Admission {
        self.forget_old(now);
        match self.seen.get(id) {
            None => Admission::New,
            Some(seen) if seen.content == content => Admission::Repeat(seen.sequence),
            Some(_) => Admission::Conflict,
        }
    }

    /// The message is published: its id counts from now.
    pub(crate) fn record(&mut self, id: &IdempotencyId, content: u64, sequence: Sequence, now: Tick) {
        if self.window.is_off() {
            return;
        }
        let before = self.seen.insert(id.clone(), Seen { sequence, content });
        debug_assert!(before.is_none(), "an id is admitted before it is recorded");
        self.order.push_back((now, id.clone()));
        self.forget_excess();
    }

    /// The publish that recorded it came to nothing. O(n): it is rare.
    pub(crate) fn forget(&mut self, id: &IdempotencyId) {
        if self.seen.remove(id).is_some() {
            self.order.retain(|(_, other)| other != id);
        }
    }

    /// Another window from now on. A longer one does not bring back what was forgotten.
    pub(crate) fn set_window(&mut self, window: DedupWindow, now: Tick) {
        self.window = window;
        if window.is_off() {
            self.seen = HashMap::new();
            self.order = VecDeque::new();
        }
        self.forget_old(now);
        self.forget_excess();
    }

    /// What is remembered of messages before `end`, as bytes: for each id, oldest first, when it was recorded and with which sequence (both near those of the id before it, from 0), the id, and
    /// its content (u64).
    pub(crate) fn image(&self, end: Sequence) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut out = Writer(&mut bytes);
        let mut before = (0, 0);
        for (at, id) in &self.order {
            let Some(seen) = self.seen.get(id).filter(|seen| seen.sequence < end) else { continue };
            let here = (at.nanos(), seen.sequence.get());
            out.near(before.0, here.0);
            out.near(before.1, here.1);
            out.idempotency_id(id);
            out.u64(seen.content);
            before = here;
        }
        bytes
    }

    /// Reads an [`image`](Self::image). What the window has let go by now is forgotten at the next call.
    pub(crate) fn from_image(window: DedupWindow, bytes: &[u8]) -> Result<Dedup, Malformed> {
        let mut dedup = Dedup::new(window);
        let mut reader = Reader::new(bytes);
        let mut before = (0, 0);
        while !reader.is_empty() {
            let place = reader.flaw(Flaw::Value("an idempotency id that was seen"));
            before = (reader.near(before.0)?, reader.near(before.1)?);
            let (id, content) = (reader.idempotency_id()?, reader.u64()?);
            if dedup.seen.contains_key(&id) {
                return Err(place);
            }
            dedup.record(&id, content, Sequence::new(before.1), Tick::from_nanos(before.0));
        }
        Ok(dedup)
    }

    /// Of the ids of messages before `end`, forgets those that this window does not hold at `now`. The window stays as it is. O(n): it is rare.
    pub(crate) fn forget_beyond(&mut self, window: DedupWindow, end: Sequence, now: Tick) {
        let is_before = |id: &IdempotencyId| self.seen.get(id).is_some_and(|seen| seen.sequence < end);
        let mut excess = self.order.iter().filter(|(_, id)| is_before(id)).count();
        if !window.is_off() {
            excess = excess.saturating_sub(window.ids_max);
        }
        let mut nth = 0;
        let mut gone = Vec::new();
        for (at, id) in &self.order {
            if is_before(id) {
                nth += 1;
                if nth <= excess || *at + window.time <= now {
                    gone.push(id.clone());
                }
            }
        }
        for id in &gone {
            self.seen.remove(id);
        }
        self.order.retain(|(_, id)| self.seen.contains_key(id));
    }

    fn forget_old(&mut self, now: Tick) {
        while let Some((at, _)) = self.order.front()
            && *at + self.window.time <= now
        {
            self.forget_first();
        }
    }

    fn forget_excess(&mut self) {
        while self.order.len() > self.window.ids_max {
            self.forget_first();
        }
    }

    fn forget_first(&mut self) {
        if let Some((_, id)) = self.order.pop_front() {
            self.seen.remove(&id);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    /// After every message.
    const ALL: Sequence = Sequence::new(u64::MAX);

    fn at(nanos: u64) -> Tick {
        Tick::from_nanos(nanos)
    }

    #[test]
    fn an_id_is_forgotten_at_the_end_of_the_window_and_not_before() {
        let mut dedup = Dedup::new(DedupWindow::time(Duration::from_nanos(10)));
        let id = IdempotencyId::from("a");
        dedup.record(&id, 1, Sequence::new(5), at(100));
        assert_eq!(dedup.admit(&id, 1, at(109)), Admission::Repeat(Sequence::new(5)));
        assert_eq!(dedup.admit(&id, 2, at(109)), Admission::Conflict);
        assert_eq!(dedup.admit(&id, 2, at(110)), Admission::New);
    }

    #[test]
    fn an_image_is_these_bytes() {
        let mut dedup = Dedup::new(DedupWindow::default());
        dedup.record(&IdempotencyId::from("a"), 1, Sequence::new(5), at(100));
        dedup.record(&IdempotencyId::from(uuid::Uuid::from_u128(2)), 3, Sequence::new(4), at(100));
        let image: String = dedup.image(ALL).iter().map(|byte| format!("{byte:02x}")).collect();
        let first = "c801 0a 01 01 61 0100000000000000";
        let second = "00 01 00 00000000000000000000000000000002 0300000000000000";
        assert_eq!(image, format!("{first}{second}").replace(' ', ""));
        let twice = [dedup.image(ALL), dedup.image(ALL)].concat();
        assert!(Dedup::from_image(DedupWindow::default(), &twice).is_err(), "an id stands there once");
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]
        /// Against a list that is searched from the front.
        #[test]
        fn agrees_with_a_naive_list(
            life in 1_u64..20, ids_max in 1_usize..6,
            calls in proptest::collection::vec((0_u64..8, 0_u64..2, 0_u64..6), 1..80),
        ) {
            let mut dedup = Dedup::new(DedupWindow::time(Duration::from_nanos(life)).max_ids(ids_max));
            let mut list: Vec<(u64, u64, u64, u64)> = Vec::new(); // id, content, sequence, at
            let mut now = 0;
            let mut sequences = BTreeMap::new();
            for (sequence, (id, content, passed)) in (1..).zip(calls) {
                now += passed;
                list.retain(|&(.., then)| now - then < life);
                let expected = match list.iter().find(|entry| entry.0 == id) {
                    None => Admission::New,
                    Some(entry) if entry.1 == content => Admission::Repeat(Sequence::new(entry.2)),
                    Some(_) => Admission::Conflict,
                };
                let name = IdempotencyId::from(id.to_string());
                prop_assert_eq!(dedup.admit(&name, content, at(now)), expected);
                if expected == Admission::New {
                    dedup.record(&name, content, Sequence::new(sequence), at(now));
                    list.push((id, content, sequence, now));
                    if list.len() > ids_max { list.remove(0); }
                    sequences.insert(sequence, id);
                }
                // It goes to bytes and comes back at any time, and nobody notices.
                let image = dedup.image(ALL);
                dedup = Dedup::from_image(dedup.window, &image).expect("an image is read back");
                prop_assert_eq!(dedup.image(ALL), image);
            }
        }

        #[test]
        fn bytes_that_are_no_image_are_refused_or_are_some_window(ids in proptest::collection::vec(".{0,8}", 0..5), ids_max in 1_usize..6) {
            let window = DedupWindow::default().max_ids(ids_max);
            let mut dedup = Dedup::new(window);
            for (n, id) in (0..).zip(&ids) {
                let id = IdempotencyId::from(id.as_str());
                if dedup.admit(&id, n, at(n)) == Admission::New {
                    dedup.record(&id, n, Sequence::new(n), at(n));
                }
            }
            let image = dedup.image(ALL);
            let read = |bytes: &[u8]| {
                if let Ok(dedup) = Dedup::from_image(window, bytes) {
                    assert!(dedup.order.len() <= ids_max && dedup.order.len() == dedup.seen.len());
                }
            };
            (0..image.len()).for_each(|end| read(&image[..end]));
            for bit in 0..image.len() * 8 {
                let mut flipped = image.clone();
                flipped[bit / 8] ^= 1 << (bit % 8);
                read(&flipped);
            }
        }
    }

    #[test]
    fn p14_an_image_leaves_out_the_ids_of_messages_that_may_still_come_to_nothing() {
        let window = DedupWindow::default();
        let mut dedup = Dedup::new(window);
        let ids: Vec<_> = ["a", "b", "c"].into_iter().map(IdempotencyId::from).collect();
        for (n, id) in ids.iter().enumerate() {
            dedup.record(id, 7, Sequence::new(n as u64 + 1), Tick::from_nanos(1));
        }
        let image = dedup.image(Sequence::new(3));
        let mut read = Dedup::from_image(window, &image).expect("an image");
        let known = ids.iter().map(|id| read.admit(id, 7, Tick::from_nanos(2)) != Admission::New);
        assert_eq!(known.collect::<Vec<_>>(), [true, true, false]);
    }
}
