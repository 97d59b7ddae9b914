//! Publisher dedup: has this idempotency id been published within the window?

use std::collections::{HashMap, VecDeque};

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
            }
        }
    }
}
