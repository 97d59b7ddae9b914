//! Sequences and numbers of topics that may be seen before the units are synced that give them.
//!
//! With `Durability::Os` and `Durability::Interval` a power cut undoes what somebody has seen. No other message may then get its sequence, and no other topic its number: so the journal says *ahead* up to where they
//! may be given, by a record that is synced before anything is seen that it is about, once in [`SEQUENCES`] messages. An opening that finds such a word, which nothing has ended, passes over all that it is about; an
//! end in good order ends it.
//!
//! It is one word for all topics, so that it costs one sync, however many there are. With `Durability::Always` there is none.

use std::sync::Arc;

use crate::engine::local::recovered::{SEQUENCE_MAX, record_nothing_ahead};
use crate::engine::local::store::{Added, Completion, Done, Store};
use crate::journal::record::Record;
use crate::journal::{JournalError, Space};
use crate::sequence::Sequence;
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicU64, Ordering};

/// So many sequences are spoken of ahead: a sync each time costs nothing beside them, and there are enough of them for a power cut every second for as long as there are machines.
const SEQUENCES: u64 = if cfg!(test) { 64 } else { 1 << 20 };
/// And so many numbers of topics.
const TOPICS: u64 = if cfg!(test) { 4 } else { 1 << 10 };

/// What a unit gives: sequences, and numbers of topics, before these.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Given {
    pub(super) sequence: Sequence,
    pub(super) topic: u64,
}

impl Given {
    pub(super) const NOTHING: Given = Given { sequence: Sequence::new(0), topic: 0 };

    pub(super) fn sequences_before(sequence: Sequence) -> Self {
        Given { sequence, ..Given::NOTHING }
    }

    pub(super) fn topic(number: u64) -> Self {
        Given { topic: number + 1, ..Given::NOTHING }
    }
}

/// How far a store has spoken ahead.
pub(super) struct Ahead {
    /// Nothing is seen before it is synced.
    is_needless: bool,
    safe: Arc<Safe>,
    /// What is the last unit to say, where the end comes in good order.
    last_words: Mutex<Option<Vec<u8>>>,
}

/// As a synced unit says. Each only rises.
#[derive(Default)]
struct Safe {
    sequence: AtomicU64,
    topic: AtomicU64,
}

impl Ahead {
    pub(super) fn new(is_needless: bool) -> Self {
        Ahead { is_needless, safe: Arc::default(), last_words: Mutex::new(None) }
    }

    /// Up to where the next unit is to speak, if it gives more than is spoken of.
    fn next(&self, given: Given) -> Option<Given> {
        if self.is_needless {
            return None;
        }
        let Safe { sequence, topic } = &*self.safe;
        // Both have been raised under the right to lead a commit, and rise only: an older one is less.
        let (sequence, topic) = (sequence.load(Ordering::Acquire), topic.load(Ordering::Acquire));
        if given.sequence.get() <= sequence && given.topic <= topic {
            return None;
        }
        let sequence = given.sequence.get().max(sequence).saturating_add(SEQUENCES).min(SEQUENCE_MAX);
        let topic = given.topic.max(topic).saturating_add(TOPICS);
        Some(Given { sequence: Sequence::new(sequence), topic })
    }

    /// As much of it as a checkpoint is to hold: what units before it say.
    pub(super) fn record(&self, out: &mut Vec<u8>) {
        let sequence = Sequence::new(self.safe.sequence.load(Ordering::Acquire));
        let topic = self.safe.topic.load(Ordering::Acquire);
        if topic > 0 {
            Record::Ahead { sequence, topic }.encode(out);
        }
    }
}

impl Store {
    /// [`add`](Self::add) of a unit that gives sequences or a topic's number. It says so ahead, where it is to.
    pub(super) fn add_giving(&self, unit: &[u8], given: Given, space: Space, done: Done) -> Added {
        let Some(Given { sequence, topic }) = self.ahead.next(given) else {
            return self.add(unit, space, done);
        };
        let mut unit = unit.to_vec();
        Record::Ahead { sequence, topic }.encode(&mut unit);
        self.ahead.last_words.lock().get_or_insert_with(|| {
            let mut unit = Vec::new();
            record_nothing_ahead(&mut unit);
            unit
        });
        let (safe, spoken) = (self.ahead.safe.clone(), Given { sequence, topic });
        self.add_by(|journal| {
            journal.add_synced_first(&unit, space, Some(Arc::new(Spoken { safe, spoken, done })))
        })
    }

    /// Records first of all what was passed over when the directory was opened. It is the last word, too, if there is no room for it now: until then the word ahead of it holds.
    pub(super) fn pass_over(&self, unit: Vec<u8>) {
        let written =
            self.add(&unit, Space::Reserve, None).is_ok_and(|position| self.write(position).is_ok());
        if !written {
            *self.ahead.last_words.lock() = Some(unit);
        }
    }

    /// Nothing is added after this. It is known then what was given, if it comes to that.
    pub(super) fn say_last_words(&self) {
        let last_words = self.ahead.last_words.lock().take();
        if let (Some(unit), Ok(journal)) = (last_words, self.journal()) {
            journal.add_last(&unit, None);
        }
    }
}

/// A unit that speaks ahead. It is synced before this is told.
struct Spoken {
    safe: Arc<Safe>,
    spoken: Given,
    done: Done,
}

impl Completion for Spoken {
    fn complete(&self, outcome: Result<(), JournalError>) {
        if outcome.is_ok() {
            self.safe.sequence.fetch_max(self.spoken.sequence.get(), Ordering::AcqRel);
            self.safe.topic.fetch_max(self.spoken.topic, Ordering::AcqRel);
        }
        if let Some(done) = &self.done {
            done.complete(outcome);
        }
    }

    fn follow_up(self: Arc<Self>) {
        if let Some(done) = self.done.clone() {
            done.follow_up();
        }
    }
}
