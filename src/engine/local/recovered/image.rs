//! A topic that nobody has opened goes into a checkpoint as it came.

use crate::engine::local::imaging::ImageWriter;
use crate::engine::local::recovered::{StoredBook, StoredMessage, StoredSnapshot, StoredTopic};
use crate::journal::record::{Envelope, Part, Record, encode_message};
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
    }

    pub(super) fn write_messages(&self, image: &mut ImageWriter<'_>) {
        let oldest = self.messages.keys().next().copied().unwrap_or(self.next);
        let bytes_before = |to, enough| self.bytes_before(to, enough);
        let mut messages = image.messages(self.number, oldest, bytes_before, |to| self.gaps_before(to));
        for (&sequence, message) in self.messages.range(messages.from()..) {
            messages.push(sequence, message.at, |out| message.encode(out));
        }
        messages.finish();
    }

    fn bytes_before(&self, to: Sequence, enough: u64) -> u64 {
        let mut bytes = 0;
        for (_, message) in self.messages.range(..to) {
            bytes += message.payload.len() as u64 + MESSAGE_LEN;
            if bytes > enough {
                break;
            }
        }
        bytes
    }

    /// Of what comes before it, what is not there.
    fn gaps_before(&self, to: Sequence) -> Vec<(Sequence, Sequence)> {
        let mut gaps = Vec::new();
        let mut at = Sequence::FIRST;
        for &sequence in self.messages.range(..to).map(|(sequence, _)| sequence).chain([&to]) {
            if at < sequence {
                gaps.push((at, sequence));
            }
            at = sequence.next();
        }
        gaps
    }
}

impl StoredMessage {
    fn encode(&self, out: &mut Vec<u8>) -> bool {
        let StoredMessage { at: _, weight, content, extras, origin, payload } = self;
        let envelope = Envelope { weight: *weight, content: *content, origin: *origin, payload };
        encode_message(out, &envelope, extras.as_deref()).expect("it was read within its limits");
        true
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
                0 => {
                    Record::SnapshotCreated { topic, book, name: self.name.clone(), expires, image: part }
                }
                _ => Record::BookImage { topic, book, image: part },
            });
        }
    }
}
