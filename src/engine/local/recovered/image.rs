//! A topic that nobody has opened goes into a checkpoint as it came.

use crate::engine::local::recovered::{StoredBook, StoredMessage, StoredSnapshot, StoredTopic};
use crate::journal::record::{Envelope, Part, Record, encode_message, write_published};
use crate::sequence::Sequence;
use crate::time::Tick;

/// About how long a chunk of a checkpoint is.
const CHUNK_LEN: usize = 1 << 20;

impl StoredTopic {
    /// The topic as records, in chunks of about 1 MiB.
    pub(crate) fn write_image(&self, out: &mut dyn FnMut(Vec<u8>)) {
        let mut chunks = Chunks { chunk: Vec::new(), out };
        self.write_head(&mut chunks);
        self.snapshots.values().for_each(|snapshot| snapshot.write(self.number, &mut chunks));
        self.books.values().for_each(|book| book.write(self.number, &mut chunks));
        self.write_messages(&mut chunks);
        chunks.end();
    }

    pub(super) fn write_head(&self, chunks: &mut Chunks<'_>) {
        let (topic, next) = (self.number, self.next);
        let options = self.options();
        chunks.put(&Record::TopicCreated { topic, next, name: self.name.clone(), options });
        let (oldest, last_published) = (self.oldest, self.last_published);
        for dedup in Part::all_of(&self.dedup_image()) {
            chunks.put(&Record::TopicImage { topic, next, oldest, last_published, dedup });
        }
    }

    pub(super) fn write_messages(&self, chunks: &mut Chunks<'_>) {
        let mut row = Row { first: Sequence::FIRST, at: Tick::ZERO, messages: Vec::new(), len: 0 };
        for (&sequence, message) in &self.messages {
            if row.end() != sequence || row.at != message.at || row.len >= CHUNK_LEN {
                row.write(self.number, chunks);
                row = Row { first: sequence, at: message.at, messages: Vec::new(), len: 0 };
            }
            row.push(message);
        }
        row.write(self.number, chunks);
    }
}

impl StoredBook {
    pub(super) fn write(&self, topic: u64, chunks: &mut Chunks<'_>) {
        let (book, start, end) = (self.number, self.start, self.end);
        let (name, options) = (self.name.clone(), self.options());
        chunks.put(&Record::BookCreated { topic, book, start, end, name, options });
        for image in Part::all_of(&self.ledger.image()) {
            chunks.put(&Record::BookImage { topic, book, image });
        }
    }
}

impl StoredSnapshot {
    pub(super) fn write(&self, topic: u64, chunks: &mut Chunks<'_>) {
        let (book, expires) = (self.number, self.expires);
        for (n, image) in Part::all_of(&self.settled.image()).enumerate() {
            chunks.put(&match n {
                0 => Record::SnapshotCreated { topic, book, name: self.name.clone(), expires, image },
                _ => Record::BookImage { topic, book, image },
            });
        }
    }
}

/// Messages that one record says: in a row, and published at one time.
struct Row {
    first: Sequence,
    at: Tick,
    messages: Vec<Vec<u8>>,
    len: usize,
}

impl Row {
    fn end(&self) -> Sequence {
        self.first + self.messages.len() as u64
    }

    fn push(&mut self, message: &StoredMessage) {
        let StoredMessage { at: _, weight, content, extras, origin, payload } = message;
        let envelope = Envelope { weight: *weight, content: *content, origin: *origin, payload };
        let mut bytes = Vec::with_capacity(payload.len() + 16);
        encode_message(&mut bytes, &envelope, extras.as_deref()).expect("it was read within its limits");
        self.len += bytes.len();
        self.messages.push(bytes);
    }

    fn write(&self, topic: u64, chunks: &mut Chunks<'_>) {
        if !self.messages.is_empty() {
            write_published(
                &mut chunks.chunk,
                topic,
                self.first,
                self.at,
                self.messages.iter().map(Vec::as_slice),
            );
            chunks.pass_on();
        }
    }
}

/// Records on their way out.
pub(super) struct Chunks<'a> {
    pub(super) chunk: Vec<u8>,
    pub(super) out: &'a mut dyn FnMut(Vec<u8>),
}

impl Chunks<'_> {
    fn put(&mut self, record: &Record<'_>) {
        record.encode(&mut self.chunk);
        self.pass_on();
    }

    fn pass_on(&mut self) {
        if self.chunk.len() >= CHUNK_LEN {
            (self.out)(std::mem::take(&mut self.chunk));
        }
    }

    pub(super) fn end(self) {
        if !self.chunk.is_empty() {
            (self.out)(self.chunk);
        }
    }
}
