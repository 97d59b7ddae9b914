//! A topic that nobody has opened goes into a checkpoint as it came.

use crate::engine::local::archiving::Dead;
use crate::engine::local::imaging::ImageWriter;
use crate::engine::local::recovered::{StoredBook, StoredSnapshot, StoredTopic};
use crate::journal::record::{Part, Record};
use crate::sequence::Sequence;

/// What a message takes at least, beside its payload.
const MESSAGE_LEN: u64 = 24;

impl StoredTopic {
    /// The topic as records.
    pub(crate) fn write_image(&self, image: &mut ImageWriter<'_>) {
        self.write_head(image);
        self.snapshots.values().for_each(|snapshot| snapshot.write(self.number, image));
        self.books.values().for_each(|book| book.write(self.number, image));
        self.write_messages(image);
    }

    pub(super) fn write_head(&self, image: &mut ImageWriter<'_>) {
        let (topic, next) = (self.number, self.next);
        let options = self.options();
        image.record(&Record::TopicCreated { topic, next, name: self.name.clone(), options });
        let (oldest, last_published) = (self.oldest, self.last_published);
        for dedup in Part::all_of(&self.dedup_image()) {
            image.record(&Record::TopicImage { topic, next, oldest, last_published, dedup });
        }
        if let Some(passed_over) = self.passed_over() {
            image.record(&passed_over);
        }
    }

    pub(super) fn write_messages(&self, image: &mut ImageWriter<'_>) {
        let oldest = self.messages.first().unwrap_or(self.next);
        // Nothing of it dies before somebody opens it.
        let dead = image.asks_for_dead(self.number).map(|to| Dead::new(self.gaps_before(to)));
        let live_before = |to, enough| self.bytes_before(to, enough);
        let mut messages = image.messages(self.number, oldest, live_before, dead.as_ref());
        for (sequence, at, message) in self.messages.encoded_from(messages.from()) {
            messages.push(sequence, at, |out| {
                out.extend_from_slice(message);
                true
            });
        }
        messages.finish();
    }

    fn bytes_before(&self, to: Sequence, enough: u64) -> u64 {
        let mut bytes = 0;
        for (sequence, _, message) in self.messages.encoded_from(Sequence::FIRST) {
            if sequence >= to || bytes > enough {
                break;
            }
            bytes += message.len() as u64 + MESSAGE_LEN;
        }
        bytes
    }

    /// Of what comes before it, what is not there.
    fn gaps_before(&self, to: Sequence) -> Vec<(Sequence, Sequence)> {
        let mut gaps = Vec::new();
        let mut at = Sequence::FIRST;
        for sequence in self.messages.sequences().take_while(|sequence| *sequence < to).chain([to]) {
            if at < sequence {
                gaps.push((at, sequence));
            }
            at = sequence.next();
        }
        gaps
    }
}

impl StoredBook {
    pub(super) fn write(&self, topic: u64, image: &mut ImageWriter<'_>) {
        let (book, start, end) = (self.number, self.start, self.end);
        let (name, options) = (self.name.clone(), self.options());
        image.record(&Record::BookCreated { topic, book, start, end, name, options });
        for part in Part::all_of(&self.ledger.image()) {
            image.record(&Record::BookImage { topic, book, image: part });
        }
    }
}

impl StoredSnapshot {
    pub(super) fn write(&self, topic: u64, image: &mut ImageWriter<'_>) {
        let (book, expires) = (self.number, self.expires);
        for (n, part) in Part::all_of(&self.settled.image()).enumerate() {
            image.record(&match n {
                0 => Record::SnapshotCreated { topic, book, name: self.name.clone(), expires, image: part },
                _ => Record::BookImage { topic, book, image: part },
            });
        }
    }
}
