//! The image that a checkpoint holds, under way: records in chunks; and of each topic's messages, which go into the image and which to the topic's own files.
//!
//! The newest messages of a topic go into the image, up to a small part of what is written between two checkpoints: so a queue that is drained writes next to
//! nothing, and a small topic has no files at all. What is beyond goes to the topic's own files, once.

use std::collections::VecDeque;
use std::io;

use crate::engine::local::archiving::{Archives, Dead};
use crate::journal::record::{Record, write_archived, write_published};
use crate::sequence::Sequence;
use crate::time::Tick;

/// A chunk is about as long.
const CHUNK_LEN: usize = 1 << 20;
/// Of what is written between two checkpoints, this part of a topic's messages may be in the image.
const TAIL_PART: u64 = 8;
/// Topics that have no more than this part of that in their own files take it back.
const SMALL_PART: u64 = 4;
/// Of that, so much goes to a topic's own files at a time at least.
const STEP_PART: u64 = 16;

/// Records on their way into a checkpoint.
pub(crate) struct ImageWriter<'a> {
    archives: &'a mut Archives,
    chunks: Vec<Vec<u8>>,
    chunk: Vec<u8>,
    /// What the messages take that are in the image, of all topics.
    messages_len: u64,
    /// From then on nothing is written.
    failure: Option<io::Error>,
}

impl<'a> ImageWriter<'a> {
    pub(super) fn new(archives: &'a mut Archives) -> Self {
        archives.begin_image();
        ImageWriter { archives, chunks: Vec::new(), chunk: Vec::new(), messages_len: 0, failure: None }
    }

    /// The image in chunks; or why it cannot be.
    pub(super) fn finish(mut self) -> Result<Vec<Vec<u8>>, io::Error> {
        if !self.chunk.is_empty() {
            self.chunks.push(self.chunk);
        }
        self.failure.map_or(Ok(self.chunks), Err)
    }

    /// Whole records.
    pub(crate) fn records(&mut self, records: &[u8]) {
        self.chunk.extend_from_slice(records);
        self.pass_on();
    }

    pub(crate) fn record(&mut self, record: &Record<'_>) {
        record.encode(&mut self.chunk);
        self.pass_on();
    }

    fn pass_on(&mut self) {
        if self.chunk.len() >= CHUNK_LEN {
            self.chunks.push(std::mem::take(&mut self.chunk));
        }
    }

    fn note<T>(&mut self, done: io::Result<T>) -> Option<T> {
        match done {
            Ok(done) => Some(done),
            Err(error) => {
                self.failure.get_or_insert(error);
                None
            }
        }
    }

    /// Up to where the topic has files of its own, unless it is known what of them is dead.
    pub(crate) fn asks_for_dead(&self, topic: u64) -> Option<Sequence> {
        if self.archives.knows_dead(topic) { None } else { self.archives.next_of(topic) }
    }

    /// The messages of a topic, after everything else of it, of which `oldest` is the first that is kept. `live_before`: about how much lives before a sequence, as far as it is not more
    /// than the second number. `dead`: what nobody can ask for any more, once the image counts, of all that the topic has in files of its own; none if it is as it was.
    pub(in crate::engine::local) fn messages(
        &mut self,
        topic: u64,
        oldest: Sequence,
        live_before: impl FnOnce(Sequence, u64) -> u64,
        dead: Option<&Dead>,
    ) -> TopicMessages<'_, 'a> {
        let tail_max = self.archives.checkpoint_len() / TAIL_PART;
        let left = self.archives.checkpoint_len().saturating_sub(self.messages_len);
        let tail = tail_max.min(left);
        let mut from = Sequence::FIRST;
        if let Some(next) = self.archives.next_of(topic) {
            let small = tail / SMALL_PART;
            if live_before(next, small) <= small {
                self.archives.take_back(topic);
            } else {
                from = next;
                if let Some(dead) = dead {
                    self.archives.died(topic, oldest, dead.clone());
                }
            }
        }
        let step = tail_max / STEP_PART;
        TopicMessages {
            image: self,
            topic,
            from,
            tail,
            step,
            pending: VecDeque::new(),
            pending_len: 0,
            row: Row::default(),
        }
    }
}

/// A message that goes to one of the two.
struct Pending {
    sequence: Sequence,
    at: Tick,
    /// As the topic's own files have it.
    record: Vec<u8>,
    /// Of that, what is before the message.
    head: usize,
}

/// Messages of one topic, in their order.
pub(crate) struct TopicMessages<'i, 'a> {
    image: &'i mut ImageWriter<'a>,
    topic: u64,
    from: Sequence,
    /// So much of the newest may be in the image.
    tail: u64,
    step: u64,
    pending: VecDeque<Pending>,
    pending_len: u64,
    row: Row,
}

/// Messages that one record says: in a row, and published at one time.
#[derive(Default)]
struct Row {
    first: Option<(Sequence, Tick)>,
    messages: Vec<Pending>,
    len: usize,
}

impl TopicMessages<'_, '_> {
    /// What comes before it is in the topic's own files.
    pub(crate) fn from(&self) -> Sequence {
        self.from
    }

    /// The next message. `write` appends it as [`encode_message`](crate::journal::record::encode_message) does; false: there is none after all.
    pub(crate) fn push(&mut self, sequence: Sequence, at: Tick, write: impl FnOnce(&mut Vec<u8>) -> bool) {
        if sequence < self.from || self.image.failure.is_some() {
            return;
        }
        let mut record = Vec::new();
        write_archived(&mut record, at);
        let head = record.len();
        if !write(&mut record) {
            return;
        }
        self.pending_len += record.len() as u64;
        self.pending.push_back(Pending { sequence, at, record, head });
        if self.pending_len > self.tail.saturating_mul(2).max(self.tail + self.step) {
            self.archive(self.tail);
        }
    }

    /// Moves the oldest to the topic's own files, until so much is left.
    fn archive(&mut self, left: u64) {
        let mut moved = Vec::new();
        while self.pending_len > left
            && let Some(oldest) = self.pending.pop_front()
        {
            self.pending_len -= oldest.record.len() as u64;
            moved.push((oldest.sequence, oldest.record));
        }
        let done = self.image.archives.append(self.topic, moved);
        self.image.note(done);
    }

    pub(crate) fn finish(mut self) {
        if self.image.failure.is_some() {
            return;
        }
        if self.pending_len > self.tail {
            // Half of what may be there, so that it is not for a message or two the next time.
            self.archive(self.tail / 2);
        }
        for message in std::mem::take(&mut self.pending) {
            if !self.row.takes(&message) {
                self.row.write(self.topic, self.image);
            }
            self.row.push(message);
        }
        self.row.write(self.topic, self.image);
        let noted = self.image.archives.sync(self.topic);
        if let Some(Some(extent)) = self.image.note(noted) {
            self.image.record(&Record::Archived { topic: self.topic, extent });
        }
    }
}

impl Row {
    fn takes(&self, message: &Pending) -> bool {
        self.first.is_none_or(|(first, at)| {
            first + self.messages.len() as u64 == message.sequence && at == message.at && self.len < CHUNK_LEN
        })
    }

    fn push(&mut self, message: Pending) {
        self.first.get_or_insert((message.sequence, message.at));
        self.len += message.record.len();
        self.messages.push(message);
    }

    fn write(&mut self, topic: u64, image: &mut ImageWriter<'_>) {
        let Some((first, at)) = self.first.take() else { return };
        let messages = self.messages.iter().map(|message| &message.record[message.head..]);
        write_published(&mut image.chunk, topic, first, at, messages);
        image.messages_len += self.len as u64;
        self.messages.clear();
        self.len = 0;
        image.pass_on();
    }
}
