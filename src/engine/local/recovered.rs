//! What a directory tells before anybody has said what its events are: topics, books and messages as bytes, built up from a checkpoint's image and the units since.
//!
//! An image is *fuzzy*. It is taken while publishers and subscribers go on, part by part, some time after the position that it counts for: each part reflects every unit before that
//! position, and possibly some of the later ones, which are then replayed over it. What follows from that:
//!
//! | record | over an image that may be newer |
//! |---|---|
//! | created, deleted | created again is ignored; so is what is said of a number that was given and is not there: it was deleted |
//! | updated, paused, attempts, delayed, parked | the last one in the stream wins, and all after the image's position are in the stream |
//! | settled | once and for all, short of a seek |
//! | a seek to a generation later than the image's | is done |
//! | a seek to the image's generation | all before it is in the image, which is as it was read again |
//! | a seek to an earlier generation | likewise, and what follows up to the image's generation is in it too |
//! | published | kept, unless it lies below the oldest that was kept, or is kept already. An idempotency id counts from the image's end on: those before are in its dedup window |
//!
//! What the parts of an image must hold for this to be right: a topic's next sequence and its dedup window are of one moment; a snapshot is not taken after a book. And of the stream: what concerns a book stands in
//! the order in which the book changed.
//!
//! Where a topic keeps a message only until all have settled it, what nobody needs is dropped at the end, and not before: what a seek, or a start before the end, gave to a book may have been
//! needed by no other book then. A live topic may have let go of some of that by then: the unit of a seek, or of a start, says which messages were not there.
//!
//! What was seen before it was synced may be gone. A unit that was synced says how far that can have gone: see [`Ahead`](Record::Ahead). Where the journal ends with such a word, and not with one that ends it,
//! all topics go on where what was seen must have ended, and so do their numbers.
//!
//! A book or a topic can be found, and used, a moment before its creation is safe. If that finds no space on the disk, what is said of it stands in the journal without it: what is said
//! of a number that never was is ignored.

mod book;
mod image;
mod messages;
#[cfg(test)]
mod tests;
mod topic;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;

use bytes::Bytes;

pub(crate) use self::book::{StoredBook, StoredSnapshot};
pub(crate) use self::messages::{PlainRow, Row, StoredMessage, StoredMessages};
pub(crate) use self::topic::StoredTopic;
use crate::delivery::settled::{Outcome, Settled};
use crate::journal::archive::Extent;
use crate::journal::record::{
    Messages, Part, Record, SettledRange, SoughtTo, TopicOptions, read_archived, records,
};
use crate::name::Name;
use crate::sequence::Sequence;
use crate::time::Tick;

/// Above every message.
pub(super) const SEQUENCE_MAX: u64 = 1 << 62;
const NOTHING_AHEAD: (Sequence, u64) = (Sequence::new(0), 0);

/// What has been read so far. After an error it is void.
#[derive(Debug)]
pub(crate) struct Recovered {
    /// The latest moment that anything speaks of as past.
    pub(crate) now: Tick,
    /// What the last unit said that told the time; an image may be ahead of it.
    clock: Tick,
    pub(crate) hash_key: Option<u128>,
    /// Above every number that was ever given.
    pub(crate) next_topic: u64,
    pub(crate) next_book: u64,
    /// Sequences, and numbers of topics, before these may have been seen, whatever else is said.
    ahead: (Sequence, u64),
    topics: BTreeMap<u64, StoredTopic>,
    /// Once all is read.
    names: BTreeMap<Name, u64>,
    phase: Phase,
    /// An image whose other parts follow.
    open: Option<Open>,
    /// Units are missing: what refers to what they said is no error.
    lenient: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Image,
    /// The image may be ahead of the stream.
    Overlap,
    /// The state is what the units up to here have made, and nothing else.
    Exact,
}

/// An image of which not all parts have been read.
#[derive(Debug)]
struct Open {
    topic: u64,
    book: u64,
    bytes: Vec<u8>,
    of: Of,
}

/// What an image is of.
#[derive(Debug, PartialEq, Eq)]
enum Of {
    Dedup { next: Sequence, oldest: Sequence, last_published: Tick },
    Book,
    Seek { generation: u32 },
    Snapshot { name: Name, expires: Tick },
}

/// Where a seek leads.
enum Place {
    At(Sequence),
    Image(Settled),
}

impl Recovered {
    pub(crate) fn new() -> Self {
        Recovered {
            now: Tick::ZERO,
            clock: Tick::ZERO,
            hash_key: None,
            next_topic: 0,
            next_book: 0,
            ahead: NOTHING_AHEAD,
            topics: BTreeMap::new(),
            names: BTreeMap::new(),
            phase: Phase::Exact,
            open: None,
            lenient: false,
        }
    }

    /// A chunk of the checkpoint; all of them come before the first unit.
    pub(crate) fn image_chunk(&mut self, bytes: &[u8]) -> Result<(), String> {
        self.phase = Phase::Image;
        self.read(bytes)
    }

    pub(crate) fn unit(&mut self, bytes: &[u8]) -> Result<(), String> {
        if self.phase == Phase::Image {
            self.nothing_is_open()?;
            self.phase = Phase::Overlap;
        }
        self.read(bytes)?;
        self.nothing_is_open()
    }

    /// What the image says to be in topics' own files: each topic's number, the oldest message that it keeps, and what is there. To be given by [`archived`](Self::archived) before the first unit.
    pub(crate) fn archives(&self) -> Vec<(u64, Sequence, Extent)> {
        let archived = |topic: &StoredTopic| Some((topic.number, topic.oldest, topic.archived?));
        self.topics.values().filter_map(archived).collect()
    }

    /// Messages in a topic's own files, at most `count`: each lies somewhere in these bytes.
    pub(crate) fn archived(
        &mut self,
        topic: u64,
        bytes: &Bytes,
        count: usize,
        records: impl Iterator<Item = (Sequence, usize)>,
    ) -> Result<(), String> {
        let Some(topic) = self.topics.get_mut(&topic) else { return Ok(()) };
        let mut last = None;
        let oldest = topic.oldest;
        let kept = records.filter(|(sequence, _)| *sequence >= oldest).inspect(|found| last = Some(*found));
        let done = Arc::make_mut(&mut topic.messages).push_piece(bytes, count, kept);
        done.map_err(|error| format!("topic {}: {error}", topic.number))?;
        if let Some((sequence, at)) = last {
            topic.next = topic.next.max(place(sequence)?.next());
            // Publish times rise with sequences.
            let read = read_archived(bytes.get(at..).unwrap_or_default());
            self.now = read.map_or(self.now, |(at, ..)| self.now.max(at));
        }
        Ok(())
    }

    /// Units are missing here. What later ones say of what is not known is ignored from now on.
    pub(crate) fn lost(&mut self) {
        self.lenient = true;
    }

    /// All has been read: looks whether it can be so, and drops what nobody needs.
    pub(crate) fn finish(&mut self) -> Result<(), String> {
        self.nothing_is_open()?;
        let mut snapshots = BTreeMap::new();
        let mut outlived = Vec::new();
        for topic in self.topics.values_mut() {
            topic.finish(self.lenient)?;
            if let Some(other) = self.names.insert(topic.name.clone(), topic.number) {
                if !self.lenient {
                    return Err(format!("topics {other} and {} have one name: {}", topic.number, topic.name));
                }
                outlived.push(other);
            }
            for snapshot in topic.snapshots.values() {
                if snapshots.insert(snapshot.name.clone(), snapshot.number).is_some() && !self.lenient {
                    return Err(format!("two snapshots have one name: {}", snapshot.name));
                }
            }
        }
        outlived.iter().for_each(|number| drop(self.topics.remove(number)));
        let (sequence, topic) = self.ahead;
        self.next_topic = self.next_topic.max(topic);
        self.topics.values_mut().for_each(|topic| topic.pass_over_to(sequence));
        self.phase = Phase::Exact;
        Ok(())
    }

    /// What is to be recorded before anything else, if numbers are passed over that may have been seen. After [`finish`](Self::finish).
    pub(crate) fn record_of_passing_over(&self) -> Option<Vec<u8>> {
        if self.ahead == NOTHING_AHEAD {
            return None;
        }
        let mut unit = Vec::new();
        let (next_topic, next_book) = (self.next_topic, self.next_book);
        let hash_key = self.hash_key.unwrap_or_default();
        Record::Numbers { hash_key, next_topic, next_book }.encode(&mut unit);
        self.topics.values().filter_map(StoredTopic::passed_over).for_each(|record| record.encode(&mut unit));
        record_nothing_ahead(&mut unit);
        Some(unit)
    }

    /// By number, and so in the order of their creation.
    pub(crate) fn topics(&self) -> impl Iterator<Item = &StoredTopic> {
        self.topics.values()
    }

    /// Takes the topic out that has this name. After [`finish`](Self::finish).
    pub(crate) fn take_topic(&mut self, name: &str) -> Option<StoredTopic> {
        let number = self.names.remove(name)?;
        self.topics.remove(&number)
    }

    /// The numbers of the topic, and of the snapshot of this name.
    pub(crate) fn find_snapshot(&self, name: &str) -> Option<(u64, u64)> {
        self.topics.values().find_map(|topic| {
            let snapshot = topic.snapshots.values().find(|snapshot| snapshot.name.as_str() == name)?;
            Some((topic.number, snapshot.number))
        })
    }

    pub(crate) fn snapshot_names(&self) -> impl Iterator<Item = String> {
        let snapshots = self.topics.values().flat_map(|topic| topic.snapshots.values());
        snapshots.map(|snapshot| snapshot.name.to_string())
    }

    /// What only it needed stays until the topic is opened.
    pub(crate) fn forget_snapshot(&mut self, (topic, snapshot): (u64, u64)) {
        if let Some(topic) = self.topics.get_mut(&topic) {
            topic.snapshots.remove(&snapshot);
        }
    }

    #[cfg(test)]
    pub(crate) fn put_back(&mut self, topic: StoredTopic) {
        self.names.insert(topic.name.clone(), topic.number);
        self.topics.insert(topic.number, topic);
    }

    fn nothing_is_open(&self) -> Result<(), String> {
        match &self.open {
            None => Ok(()),
            Some(open) => Err(broken_off(open)),
        }
    }

    fn read(&mut self, bytes: &[u8]) -> Result<(), String> {
        for record in records(bytes) {
            let record = record.map_err(|error| error.to_string())?;
            match self.open.take() {
                Some(open) => self.go_on(open, &record)?,
                None => self.record(record)?,
            }
        }
        Ok(())
    }

    fn record(&mut self, record: Record<'_>) -> Result<(), String> {
        match record {
            Record::Clock { now } => {
                self.now = self.now.max(now);
                if self.phase != Phase::Image {
                    self.clock = now;
                }
            }
            Record::Numbers { hash_key, next_topic, next_book } => {
                return self.numbers(hash_key, next_topic, next_book);
            }
            Record::Ahead { sequence, topic } => {
                let is_over = (sequence, topic) == NOTHING_AHEAD;
                let (known_sequence, known_topic) = self.ahead;
                self.ahead = match is_over {
                    true => NOTHING_AHEAD,
                    false => (known_sequence.max(within(sequence)?), known_topic.max(topic)),
                };
            }
            Record::PassedOver { topic, next, count } => {
                if let Some(topic) = self.topic(topic)? {
                    topic.set_passed_over(place(next)?, count);
                }
            }
            Record::TopicCreated { topic, next, name, options } => {
                return self.topic_created(topic, next, name, &options);
            }
            Record::TopicUpdated { topic, next, oldest, options } => {
                let (now, is_exact) = (self.clock, self.phase == Phase::Exact);
                if let Some(topic) = self.topic(topic)? {
                    topic.update(&options, (place(oldest)?, place(next)?), now, is_exact);
                }
            }
            Record::TopicDeleted { topic } => {
                self.topic(topic)?;
                self.topics.remove(&topic);
            }
            Record::TopicImage { topic, .. } if self.phase != Phase::Image => {
                return Err(format!("an image of topic {topic} that is part of nothing"));
            }
            Record::TopicImage { topic, next, oldest, last_published, dedup } => {
                return self.begin(topic, 0, dedup, Of::Dedup { next, oldest, last_published });
            }
            Record::Archived { topic, extent } => {
                if self.phase != Phase::Image {
                    return Err(format!("files of topic {topic} that are part of nothing"));
                }
                if let Some(topic) = self.topic(topic)? {
                    topic.archived = Some(extent);
                }
            }
            Record::Published { topic, first, at, messages } => {
                return self.published(topic, first, at, &messages);
            }
            Record::BookImage { topic, book, image } => {
                if self.phase != Phase::Image {
                    return Err(format!("an image of book {book} that is part of nothing"));
                }
                return self.begin(topic, book, image, Of::Book);
            }
            of_a_book => return self.record_of_book(of_a_book),
        }
        Ok(())
    }

    fn record_of_book(&mut self, record: Record<'_>) -> Result<(), String> {
        match record {
            Record::BookCreated { topic, book, start, end, name, options } => {
                self.next_book = self.next_book.max(after(book)?);
                if let Some(topic) = self.topic(topic)? {
                    topic.create_book(book, place(start)?, place(end)?, name, &options)?;
                }
            }
            Record::BookDeleted { topic, book } => {
                if let Some(topic) = self.topic_of(topic, book)? {
                    topic.books.remove(&book);
                }
            }
            Record::SnapshotCreated { topic, book, name, expires, image } => {
                self.next_book = self.next_book.max(after(book)?);
                return self.begin(topic, book, image, Of::Snapshot { name, expires });
            }
            Record::SnapshotDeleted { topic, book } => {
                if let Some(topic) = self.topic_of(topic, book)? {
                    topic.snapshots.remove(&book);
                }
            }
            Record::Sought { topic, book, generation, to } => {
                let to = match to {
                    SoughtTo::Sequence(sequence) => Place::At(place(sequence)?),
                    SoughtTo::Image(part) => {
                        return self.begin(topic, book, part, Of::Seek { generation });
                    }
                };
                return self.sought(topic, book, generation, to);
            }
            of_its_messages => return self.record_of_messages(of_its_messages),
        }
        Ok(())
    }

    fn record_of_messages(&mut self, record: Record<'_>) -> Result<(), String> {
        let (topic, book) = match &record {
            Record::BookUpdated { topic, book, .. }
            | Record::Paused { topic, book, .. }
            | Record::Settled { topic, book, .. }
            | Record::Attempts { topic, book, .. }
            | Record::Delayed { topic, book, .. }
            | Record::Parked { topic, book, .. } => (*topic, *book),
            _ => unreachable!("all others are dealt with above"),
        };
        let Some(book) = self.book(topic, book)? else { return Ok(()) };
        match record {
            Record::BookUpdated { options, .. } => book.set_options(&options),
            Record::Paused { paused, .. } => book.change(|ledger| ledger.set_paused(paused)),
            Record::Settled { ranges, .. } => {
                for SettledRange { from, to, outcome } in ranges.iter() {
                    let outcome = Outcome::from_code(outcome.0);
                    let outcome = outcome.ok_or("messages were settled in a way that means nothing")?;
                    book.change(|ledger| ledger.replay_settled(from, to, outcome));
                }
            }
            Record::Attempts { ranges, .. } => ranges.iter().for_each(|range| book.attempted(range)),
            Record::Delayed { sequence, until, attempts, .. } => {
                let sequence = place(sequence)?;
                book.change(|ledger| ledger.replay_delayed(sequence, until, attempts));
            }
            Record::Parked { sequence, attempts, reason, .. } => {
                book.parked(place(sequence)?, attempts, reason)
            }
            _ => unreachable!("told apart above"),
        }
        Ok(())
    }

    fn numbers(&mut self, hash_key: u128, next_topic: u64, next_book: u64) -> Result<(), String> {
        if self.hash_key.is_some_and(|known| known != hash_key) {
            return Err("there are two hash keys".to_owned());
        }
        self.hash_key = Some(hash_key);
        self.next_topic = self.next_topic.max(next_topic);
        self.next_book = self.next_book.max(next_book);
        if self.phase == Phase::Overlap {
            self.phase = Phase::Exact;
        }
        Ok(())
    }

    fn topic_created(
        &mut self,
        number: u64,
        next: Sequence,
        name: Name,
        options: &TopicOptions<'_>,
    ) -> Result<(), String> {
        self.next_topic = self.next_topic.max(after(number)?);
        let next = place(next)?;
        if let Entry::Vacant(vacant) = self.topics.entry(number) {
            vacant.insert(StoredTopic::new(number, next, name, options));
        }
        Ok(())
    }

    fn published(
        &mut self,
        number: u64,
        first: Sequence,
        at: Tick,
        messages: &Messages<'_>,
    ) -> Result<(), String> {
        let first = place(first)?;
        self.now = self.now.max(at);
        let in_image = self.phase == Phase::Image;
        let Some(topic) = self.topic(number)? else { return Ok(()) };
        topic.publish(first, at, messages, in_image);
        Ok(())
    }

    fn sought(&mut self, topic: u64, book: u64, generation: u32, to: Place) -> Result<(), String> {
        match self.topic_of(topic, book)? {
            Some(topic) => topic.sought(book, generation, to),
            None => Ok(()),
        }
    }

    /// None: it was deleted. In an image nothing is told of what was.
    fn topic(&mut self, number: u64) -> Result<Option<&mut StoredTopic>, String> {
        if !self.topics.contains_key(&number) {
            self.next_topic = self.must_be_gone("topic", number, self.next_topic)?;
        }
        Ok(self.topics.get_mut(&number))
    }

    /// The topic that has this book, or snapshot; None: one of them was deleted.
    fn topic_of(&mut self, topic: u64, book: u64) -> Result<Option<&mut StoredTopic>, String> {
        let Some(found) = self.topic(topic)? else { return Ok(None) };
        if !found.books.contains_key(&book) && !found.snapshots.contains_key(&book) {
            self.next_book = self.must_be_gone("book", book, self.next_book)?;
            return Ok(None);
        }
        Ok(self.topics.get_mut(&topic))
    }

    fn book(&mut self, topic: u64, book: u64) -> Result<Option<&mut StoredBook>, String> {
        Ok(self.topic_of(topic, book)?.and_then(|topic| topic.books.get_mut(&book)))
    }

    /// Gives the number that is next, which is never one that somebody has heard of.
    fn must_be_gone(&self, what: &str, number: u64, next: u64) -> Result<u64, String> {
        match self.phase {
            Phase::Image if !self.lenient => {
                Err(format!("something is said of {what} {number}, which never was"))
            }
            _ => Ok(next.max(after(number)?)),
        }
    }
}

/// Images that take more than a part.
impl Recovered {
    fn begin(&mut self, topic: u64, book: u64, part: Part<'_>, of: Of) -> Result<(), String> {
        let open = Open { topic, book, bytes: Vec::new(), of };
        self.add_part(open, part)
    }

    /// The parts of an image stand one after the other.
    fn go_on(&mut self, open: Open, record: &Record<'_>) -> Result<(), String> {
        let part = match *record {
            Record::TopicImage { topic, next, oldest, last_published, dedup }
                if topic == open.topic && open.of == (Of::Dedup { next, oldest, last_published }) =>
            {
                dedup
            }
            Record::BookImage { topic, book, image }
                if (topic, book) == (open.topic, open.book) && !matches!(open.of, Of::Dedup { .. }) =>
            {
                image
            }
            _ => return Err(broken_off(&open)),
        };
        self.add_part(open, part)
    }

    fn add_part(&mut self, mut open: Open, part: Part<'_>) -> Result<(), String> {
        open.bytes.extend_from_slice(part.bytes);
        if part.more {
            self.open = Some(open);
            return Ok(());
        }
        let Open { topic: number, book, bytes, of } = open;
        if let Of::Seek { generation } = of {
            let settled = Settled::from_image(&bytes).map_err(|error| error.to_string())?;
            return self.sought(number, book, generation, Place::Image(settled));
        }
        let Some(topic) = self.topic(number)? else { return Ok(()) };
        match of {
            Of::Dedup { next, oldest, last_published } => {
                if oldest > next {
                    return Err(format!("topic {number} keeps {oldest:?} before it has come to {next:?}"));
                }
                topic.set_image(place(next)?, oldest, last_published, &bytes)?;
                self.now = self.now.max(last_published);
                Ok(())
            }
            Of::Book => match topic.books.get_mut(&book) {
                Some(book) => book.set_image(&bytes),
                None => Err(format!("an image of book {book}, which never was")),
            },
            Of::Snapshot { name, expires } => topic.create_snapshot(book, name, expires, &bytes),
            Of::Seek { .. } => unreachable!("dealt with above"),
        }
    }
}

fn broken_off(open: &Open) -> String {
    let Open { topic, book, of, .. } = open;
    let what = match of {
        Of::Dedup { .. } => format!("an image of topic {topic}"),
        Of::Book => format!("an image of book {book}"),
        Of::Seek { .. } => format!("an image to which book {book} was sought"),
        Of::Snapshot { .. } => format!("an image of snapshot {book}"),
    };
    format!("{what} breaks off")
}

/// That no number may have been seen but what is said.
pub(crate) fn record_nothing_ahead(unit: &mut Vec<u8>) {
    let (sequence, topic) = NOTHING_AHEAD;
    Record::Ahead { sequence, topic }.encode(unit);
}

/// The number after this one.
fn after(number: u64) -> Result<u64, String> {
    number.checked_add(1).ok_or_else(|| "a number after which there is none".to_owned())
}

/// A place in a topic's order.
fn place(sequence: Sequence) -> Result<Sequence, String> {
    let is_place = sequence >= Sequence::FIRST;
    within(sequence).ok().filter(|_| is_place).ok_or_else(|| format!("{sequence:?} is no place of a message"))
}

fn within(sequence: Sequence) -> Result<Sequence, String> {
    let is_within = sequence <= Sequence::new(SEQUENCE_MAX);
    is_within.then_some(sequence).ok_or_else(|| format!("{sequence:?} is beyond every message"))
}
