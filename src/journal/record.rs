//! What is written: records, of which a unit of the journal and a chunk of a checkpoint are made.
//!
//! ```text
//! record = kind: u8, length of the body: u24, body
//! ```
//!
//! Numbers, texts and times are as [`binary`](crate::binary) says; fixed ones have their lowest byte first. A kind with bit 7 set may be passed over by a reader that does not know it; any other must be understood, or what
//! follows would be misread. 0 is no kind. A body is read to its end and nothing may be left, so a record that is to say more becomes a new kind. `topic` is the topic's incarnation, `book` the number of a subscription or a snapshot; neither is ever used
//! again. Each is a varint, as are sequences and ticks.
//!
//! | kind | record | body |
//! |---|---|---|
//! | 01 | [`Clock`](Record::Clock) | now |
//! | 02 | [`Numbers`](Record::Numbers) | hash key: u128, next topic, next book |
//! | 03 | [`Ahead`](Record::Ahead) | sequence, topic |
//! | 10 | [`TopicCreated`](Record::TopicCreated) | topic, next sequence, name: text, topic options |
//! | 11 | [`TopicUpdated`](Record::TopicUpdated) | topic, next sequence, oldest that is kept, topic options |
//! | 12 | [`TopicDeleted`](Record::TopicDeleted) | topic |
//! | 13 | [`TopicImage`](Record::TopicImage) | topic, next sequence, oldest kept, last published: tick, part of its dedup window |
//! | 14 | [`Archived`](Record::Archived) | topic, first file, the one after the last, how much of the last is in use, next sequence |
//! | 15 | [`PassedOver`](Record::PassedOver) | topic, next sequence, how many before it are of no message |
//! | 20 | [`BookCreated`](Record::BookCreated) | topic, book, start, topic's end, name: text, book options |
//! | 21 | [`BookUpdated`](Record::BookUpdated) | topic, book, book options |
//! | 22 | [`BookDeleted`](Record::BookDeleted) | topic, book |
//! | 23 | [`Paused`](Record::Paused) | topic, book, paused: u8 (0 or 1) |
//! | 24 | [`Sought`](Record::Sought) | topic, book, generation, to: u8 and: 0 sequence; 1 part of an image of what is settled; 2 snapshot |
//! | 25 | [`SnapshotCreated`](Record::SnapshotCreated) | topic, book, name: text, expires: tick, part of an image of what is settled |
//! | 26 | [`SnapshotDeleted`](Record::SnapshotDeleted) | topic, book |
//! | 27 | [`BookImage`](Record::BookImage) | topic, book, part of its image |
//! | 30 | [`Published`](Record::Published) | topic, first sequence, at: tick, messages to the end |
//! | 31 | [`Settled`](Record::Settled) | topic, book, to the end: from (near the end of the one before, 0 at first), length, outcome: u8 |
//! | 32 | [`Attempts`](Record::Attempts) | topic, book, to the end: from (likewise), length, attempts |
//! | 33 | [`Delayed`](Record::Delayed) | topic, book, sequence, until: tick, attempts |
//! | 34 | [`Parked`](Record::Parked) | topic, book, sequence, attempts, reason: text |
//!
//! A part of an image is u8 (1 if more parts follow, 0 if this is the last) and bytes to the end. Outcomes are 0 acked, 1 filtered, 2 skipped, 3 dead-lettered, 4 discarded, 5 expired, 6 dropped, 7 removed. The options are told in `record/options.rs`, a message in
//! `record/message.rs`.

mod list;
mod message;
mod options;
#[cfg(test)]
mod tests;

use crate::binary::{Flaw, Malformed, Reader, Writer};
use crate::journal::archive::Extent;
use crate::name::Name;
use crate::sequence::Sequence;
use crate::time::Tick;

#[allow(unused_imports, reason = "the face of the records, whatever of it is in use")]
pub(crate) use list::{AttemptRange, List, OutcomeCode, SettledRange};
#[allow(unused_imports, reason = "the face of the records, whatever of it is in use")]
pub(crate) use message::{
    ARCHIVED_HEAD_LEN, Archived, Envelope, Messages, OverLimit, PlainRecord, encode_message, read_archived,
    read_plain_archived, write_archived, write_published,
};
#[allow(unused_imports, reason = "the face of the records, whatever of it is in use")]
pub(crate) use options::{BookOptions, CODEC_LEN_MAX, DeadLetterTo, TopicOptions};

/// The longest body of a record.
pub(crate) const BODY_LEN_MAX: usize = (1 << 24) - 1;

/// The longest part of an image in one record.
pub(crate) const PART_LEN_MAX: usize = 1 << 20;

/// The longest reason for which a message is parked, in bytes. What is longer is cut.
const REASON_LEN_MAX: usize = 1_024;

const HEADER_LEN: usize = 4;
const NAME_LEN_MAX: usize = 255;
const IGNORABLE: u8 = 0x80;

/// One thing that happened, or, in a checkpoint, is so.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Record<'a> {
    /// The broker's line had reached this point, and is never behind it again.
    Clock {
        now: Tick,
    },
    /// The key with which the broker hashes what it compares later, and the next numbers that were not given yet.
    Numbers {
        hash_key: u128,
        next_topic: u64,
        next_book: u64,
    },
    /// Messages before this sequence, in every topic, and topics before this number may have been seen, though nothing says so that is synced. The largest counts, until one of zeros says that nothing may.
    Ahead {
        sequence: Sequence,
        topic: u64,
    },
    TopicCreated {
        topic: u64,
        next: Sequence,
        name: Name,
        options: TopicOptions<'a>,
    },
    TopicUpdated {
        topic: u64,
        /// The sequence that the next message gets.
        next: Sequence,
        /// What comes before it is not kept any more.
        oldest: Sequence,
        options: TopicOptions<'a>,
    },
    TopicDeleted {
        topic: u64,
    },
    /// Where the topic stands, and a part of its dedup window.
    TopicImage {
        topic: u64,
        next: Sequence,
        oldest: Sequence,
        last_published: Tick,
        dedup: Part<'a>,
    },
    /// What came before `extent.next` and is kept is in the topic's own files.
    Archived {
        topic: u64,
        extent: Extent,
    },
    /// It goes on at `next` at least; of the sequences before, so many are of no message.
    PassedOver {
        topic: u64,
        next: Sequence,
        count: u64,
    },
    /// `end` is the topic's end at that moment: what was published from there on is promised to it.
    BookCreated {
        topic: u64,
        book: u64,
        start: Sequence,
        end: Sequence,
        name: Name,
        options: BookOptions<'a>,
    },
    BookUpdated {
        topic: u64,
        book: u64,
        options: BookOptions<'a>,
    },
    BookDeleted {
        topic: u64,
        book: u64,
    },
    Paused {
        topic: u64,
        book: u64,
        paused: bool,
    },
    /// The subscription began this generation, there.
    Sought {
        topic: u64,
        book: u64,
        generation: u32,
        to: SoughtTo<'a>,
    },
    /// Of an image that takes more than a part, the others follow as [`BookImage`](Self::BookImage).
    SnapshotCreated {
        topic: u64,
        book: u64,
        name: Name,
        expires: Tick,
        image: Part<'a>,
    },
    SnapshotDeleted {
        topic: u64,
        book: u64,
    },
    BookImage {
        topic: u64,
        book: u64,
        image: Part<'a>,
    },
    /// Messages in a row, from `first` on.
    Published {
        topic: u64,
        first: Sequence,
        at: Tick,
        messages: Messages<'a>,
    },
    Settled {
        topic: u64,
        book: u64,
        ranges: List<'a, SettledRange>,
    },
    /// Handed out, for so many times by then; with 0, given back before its first hand-out counted.
    Attempts {
        topic: u64,
        book: u64,
        ranges: List<'a, AttemptRange>,
    },
    /// Held by nobody, and not to be handed out before `until`.
    Delayed {
        topic: u64,
        book: u64,
        sequence: Sequence,
        until: Tick,
        attempts: u32,
    },
    Parked {
        topic: u64,
        book: u64,
        sequence: Sequence,
        attempts: u32,
        reason: &'a str,
    },
}

/// Where a seek put a subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SoughtTo<'a> {
    Sequence(Sequence),
    /// Of an image that takes more than a part, the others follow as [`BookImage`](Record::BookImage).
    Image(Part<'a>),
}

/// An image, or as much of it as one record holds.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Part<'a> {
    pub(crate) bytes: &'a [u8],
    /// Whether it goes on in a later record of the same topic and book.
    pub(crate) more: bool,
}

impl<'a> Part<'a> {
    /// The parts of an image: at least one.
    pub(crate) fn all_of(image: &'a [u8]) -> impl Iterator<Item = Part<'a>> {
        let count = image.len().div_ceil(PART_LEN_MAX).max(1);
        (0..count).map(move |n| {
            let from = n * PART_LEN_MAX;
            let to = image.len().min(from + PART_LEN_MAX);
            Part { bytes: &image[from..to], more: n + 1 < count }
        })
    }

    fn write(self, out: &mut Writer<'_>) {
        assert!(self.bytes.len() <= PART_LEN_MAX, "an image is written in parts");
        out.u8(u8::from(self.more));
        out.raw(self.bytes);
    }

    fn read(reader: &mut Reader<'a>) -> Result<Self, Malformed> {
        let more = read_bool(reader, "a part's flag")?;
        let over = reader.flaw(Flaw::Limit("a part of an image"));
        let len = reader.rest().len();
        if len > PART_LEN_MAX { Err(over) } else { Ok(Part { bytes: reader.take(len)?, more }) }
    }
}

impl std::fmt::Debug for Part<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes{}", self.bytes.len(), if self.more { " and more" } else { "" })
    }
}

/// Why bytes are no records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RecordError {
    #[error("a record of kind {kind:#04x} at byte {offset}, which this version does not know")]
    Unknown { kind: u8, offset: usize },
    #[error("a record of kind {kind:#04x}: {malformed}")]
    Malformed { kind: u8, malformed: Malformed },
}

/// The records that these bytes are made of, in order, up to the first that is none. Kinds that are not known and may be passed over are.
pub(crate) fn records(bytes: &[u8]) -> Records<'_> {
    Records { reader: Reader::new(bytes) }
}

#[derive(Clone, Debug)]
pub(crate) struct Records<'a> {
    reader: Reader<'a>,
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<Record<'a>, RecordError>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.reader.is_empty() {
            match read_record(&mut self.reader) {
                Ok(None) => {}
                Ok(Some(record)) => return Some(Ok(record)),
                Err(error) => {
                    self.reader = Reader::new(&[]);
                    return Some(Err(error));
                }
            }
        }
        None
    }
}

/// None: a record to pass over.
fn read_record<'a>(reader: &mut Reader<'a>) -> Result<Option<Record<'a>>, RecordError> {
    let offset = reader.offset();
    let [kind, length @ ..] = reader.clone().u32().map_or([0; HEADER_LEN], u32::to_le_bytes);
    let malformed = |malformed| RecordError::Malformed { kind, malformed };
    reader.take(HEADER_LEN).map_err(malformed)?;
    let [low, middle, high] = length;
    let mut body = reader.part(u32::from_le_bytes([low, middle, high, 0]) as usize).map_err(malformed)?;
    let record = match kind {
        kind::CLOCK..=kind::PASSED_OVER => read_of_topic(kind, &mut body),
        kind::BOOK_CREATED..=kind::BOOK_IMAGE => read_of_book(kind, &mut body),
        kind::PUBLISHED..=kind::PARKED => read_of_messages(kind, &mut body),
        _ => Ok(None),
    };
    match record.map_err(malformed)? {
        Some(record) => body.finish().map_err(malformed).map(|()| Some(record)),
        None if kind & IGNORABLE != 0 => Ok(None),
        None => Err(RecordError::Unknown { kind, offset }),
    }
}

fn read_of_topic<'a>(kind: u8, body: &mut Reader<'a>) -> Result<Option<Record<'a>>, Malformed> {
    Ok(Some(match kind {
        kind::CLOCK => Record::Clock { now: body.tick()? },
        kind::NUMBERS => {
            Record::Numbers { hash_key: body.u128()?, next_topic: body.varint()?, next_book: body.varint()? }
        }
        kind::AHEAD => Record::Ahead { sequence: body.sequence()?, topic: body.varint()? },
        kind::TOPIC_CREATED => Record::TopicCreated {
            topic: body.varint()?,
            next: body.sequence()?,
            name: read_name(body)?,
            options: TopicOptions::read(body)?,
        },
        kind::TOPIC_UPDATED => Record::TopicUpdated {
            topic: body.varint()?,
            next: body.sequence()?,
            oldest: body.sequence()?,
            options: TopicOptions::read(body)?,
        },
        kind::TOPIC_DELETED => Record::TopicDeleted { topic: body.varint()? },
        kind::TOPIC_IMAGE => Record::TopicImage {
            topic: body.varint()?,
            next: body.sequence()?,
            oldest: body.sequence()?,
            last_published: body.tick()?,
            dedup: Part::read(body)?,
        },
        kind::ARCHIVED => Record::Archived { topic: body.varint()?, extent: read_extent(body)? },
        kind::PASSED_OVER => {
            Record::PassedOver { topic: body.varint()?, next: body.sequence()?, count: body.varint()? }
        }
        _ => return Ok(None),
    }))
}

fn read_of_book<'a>(kind: u8, body: &mut Reader<'a>) -> Result<Option<Record<'a>>, Malformed> {
    let (topic, book) = (body.varint()?, body.varint()?);
    Ok(Some(match kind {
        kind::BOOK_CREATED => Record::BookCreated {
            topic,
            book,
            start: body.sequence()?,
            end: body.sequence()?,
            name: read_name(body)?,
            options: BookOptions::read(body)?,
        },
        kind::BOOK_UPDATED => Record::BookUpdated { topic, book, options: BookOptions::read(body)? },
        kind::BOOK_DELETED => Record::BookDeleted { topic, book },
        kind::PAUSED => Record::Paused { topic, book, paused: read_bool(body, "paused")? },
        kind::SOUGHT => {
            let generation = body.varint_u32()?;
            Record::Sought { topic, book, generation, to: SoughtTo::read(body)? }
        }
        kind::SNAPSHOT_CREATED => Record::SnapshotCreated {
            topic,
            book,
            name: read_name(body)?,
            expires: body.tick()?,
            image: Part::read(body)?,
        },
        kind::SNAPSHOT_DELETED => Record::SnapshotDeleted { topic, book },
        kind::BOOK_IMAGE => Record::BookImage { topic, book, image: Part::read(body)? },
        _ => return Ok(None),
    }))
}

fn read_of_messages<'a>(kind: u8, body: &mut Reader<'a>) -> Result<Option<Record<'a>>, Malformed> {
    let topic = body.varint()?;
    if kind == kind::PUBLISHED {
        let (first, at) = (body.sequence()?, body.tick()?);
        return Ok(Some(Record::Published { topic, first, at, messages: Messages::read(first, body)? }));
    }
    let book = body.varint()?;
    Ok(Some(match kind {
        kind::SETTLED => Record::Settled { topic, book, ranges: List::read(body)? },
        kind::ATTEMPTS => Record::Attempts { topic, book, ranges: List::read(body)? },
        kind::DELAYED => Record::Delayed {
            topic,
            book,
            sequence: body.sequence()?,
            until: body.tick()?,
            attempts: body.varint_u32()?,
        },
        kind::PARKED => Record::Parked {
            topic,
            book,
            sequence: body.sequence()?,
            attempts: body.varint_u32()?,
            reason: body.text(REASON_LEN_MAX, "a reason")?,
        },
        _ => return Ok(None),
    }))
}

impl Record<'_> {
    /// Appends the record; as several of its kind, if it is a list that takes more than one body.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Record::Published { topic, first, at, messages } => {
                write_published(out, *topic, *first, *at, messages.encoded());
            }
            Record::Settled { topic, book, ranges } => {
                list::write(out, kind::SETTLED, *topic, *book, ranges.iter());
            }
            Record::Attempts { topic, book, ranges } => {
                list::write(out, kind::ATTEMPTS, *topic, *book, ranges.iter());
            }
            Record::Clock { .. }
            | Record::Numbers { .. }
            | Record::Ahead { .. }
            | Record::TopicCreated { .. }
            | Record::TopicUpdated { .. }
            | Record::TopicDeleted { .. }
            | Record::TopicImage { .. }
            | Record::Archived { .. }
            | Record::PassedOver { .. } => self.encode_of_topic(out),
            _ => self.encode_of_book(out),
        }
    }

    fn encode_of_topic(&self, out: &mut Vec<u8>) {
        let (kind, head): (u8, &[u64]) = match self {
            Record::Clock { now } => (kind::CLOCK, &[now.nanos()]),
            Record::Numbers { .. } => (kind::NUMBERS, &[]),
            Record::Ahead { sequence, topic } => (kind::AHEAD, &[sequence.get(), *topic]),
            Record::TopicCreated { topic, next, .. } => (kind::TOPIC_CREATED, &[*topic, next.get()]),
            Record::TopicUpdated { topic, next, oldest, .. } => {
                (kind::TOPIC_UPDATED, &[*topic, next.get(), oldest.get()])
            }
            Record::TopicDeleted { topic } => (kind::TOPIC_DELETED, &[*topic]),
            Record::TopicImage { topic, next, oldest, last_published, .. } => {
                (kind::TOPIC_IMAGE, &[*topic, next.get(), oldest.get(), last_published.nanos()])
            }
            Record::Archived { topic, extent: Extent { first, end, len, next } } => {
                (kind::ARCHIVED, &[*topic, *first, *end, *len, next.get()])
            }
            Record::PassedOver { topic, next, count } => (kind::PASSED_OVER, &[*topic, next.get(), *count]),
            _ => unreachable!("told apart by `encode`"),
        };
        framed(out, kind, |out| {
            head.iter().for_each(|number| out.varint(*number));
            match self {
                Record::Numbers { hash_key, next_topic, next_book } => {
                    out.u128(*hash_key);
                    out.varint(*next_topic);
                    out.varint(*next_book);
                }
                Record::TopicCreated { name, options, .. } => {
                    out.text(name.as_str());
                    options.write(out);
                }
                Record::TopicUpdated { options, .. } => options.write(out),
                Record::TopicImage { dedup, .. } => dedup.write(out),
                _ => {}
            }
        });
    }

    fn encode_of_book(&self, out: &mut Vec<u8>) {
        let (kind, topic, book) = match self {
            Record::BookCreated { topic, book, .. } => (kind::BOOK_CREATED, topic, book),
            Record::BookUpdated { topic, book, .. } => (kind::BOOK_UPDATED, topic, book),
            Record::BookDeleted { topic, book } => (kind::BOOK_DELETED, topic, book),
            Record::Paused { topic, book, .. } => (kind::PAUSED, topic, book),
            Record::Sought { topic, book, .. } => (kind::SOUGHT, topic, book),
            Record::SnapshotCreated { topic, book, .. } => (kind::SNAPSHOT_CREATED, topic, book),
            Record::SnapshotDeleted { topic, book } => (kind::SNAPSHOT_DELETED, topic, book),
            Record::BookImage { topic, book, .. } => (kind::BOOK_IMAGE, topic, book),
            Record::Delayed { topic, book, .. } => (kind::DELAYED, topic, book),
            Record::Parked { topic, book, .. } => (kind::PARKED, topic, book),
            _ => unreachable!("told apart by `encode`"),
        };
        framed(out, kind, |out| {
            out.varint(*topic);
            out.varint(*book);
            self.write_of_book(out);
        });
    }

    fn write_of_book(&self, out: &mut Writer<'_>) {
        match self {
            Record::BookCreated { start, end, name, options, .. } => {
                out.sequence(*start);
                out.sequence(*end);
                out.text(name.as_str());
                options.write(out);
            }
            Record::BookUpdated { options, .. } => options.write(out),
            Record::Paused { paused, .. } => out.u8(u8::from(*paused)),
            Record::Sought { generation, to, .. } => {
                out.varint(u64::from(*generation));
                to.write(out);
            }
            Record::SnapshotCreated { name, expires, image, .. } => {
                out.text(name.as_str());
                out.tick(*expires);
                image.write(out);
            }
            Record::BookImage { image, .. } => image.write(out),
            Record::Delayed { sequence, until, attempts, .. } => {
                out.sequence(*sequence);
                out.tick(*until);
                out.varint(u64::from(*attempts));
            }
            Record::Parked { sequence, attempts, reason, .. } => {
                out.sequence(*sequence);
                out.varint(u64::from(*attempts));
                out.text(&reason[..reason.floor_char_boundary(REASON_LEN_MAX)]);
            }
            _ => {}
        }
    }
}

impl<'a> SoughtTo<'a> {
    fn write(self, out: &mut Writer<'_>) {
        match self {
            SoughtTo::Sequence(sequence) => {
                out.u8(0);
                out.sequence(sequence);
            }
            SoughtTo::Image(image) => {
                out.u8(1);
                image.write(out);
            }
        }
    }

    fn read(reader: &mut Reader<'a>) -> Result<Self, Malformed> {
        let place = reader.flaw(Flaw::Value("where a seek went"));
        match reader.u8()? {
            0 => Ok(SoughtTo::Sequence(reader.sequence()?)),
            1 => Ok(SoughtTo::Image(Part::read(reader)?)),
            _ => Err(place),
        }
    }
}

/// Writes one record: its header, and the body that `write` writes.
fn framed(out: &mut Vec<u8>, kind: u8, write: impl FnOnce(&mut Writer<'_>)) {
    let start = out.len();
    out.extend_from_slice(&[kind, 0, 0, 0]);
    write(&mut Writer(out));
    let body = out.len() - start - HEADER_LEN;
    say_len(&mut out[start..], body);
}

/// In its header.
fn say_len(record: &mut [u8], body: usize) {
    assert!(body <= BODY_LEN_MAX, "a record's body has {body} bytes");
    record[1..HEADER_LEN].copy_from_slice(&(body as u32).to_le_bytes()[..3]);
}

fn read_name(reader: &mut Reader<'_>) -> Result<Name, Malformed> {
    let place = reader.flaw(Flaw::Value("a name"));
    Name::parse(reader.text(NAME_LEN_MAX, "a name")?).map_err(|_| place)
}

fn read_extent(reader: &mut Reader<'_>) -> Result<Extent, Malformed> {
    let place = reader.flaw(Flaw::Value("an extent"));
    let (first, end, len) = (reader.varint()?, reader.varint()?, reader.varint()?);
    let extent = Extent { first, end, len, next: reader.sequence()? };
    let is_one = first <= end && end <= list::SEQUENCE_MAX && extent.next.get() <= list::SEQUENCE_MAX;
    if is_one { Ok(extent) } else { Err(place) }
}

fn read_bool(reader: &mut Reader<'_>, what: &'static str) -> Result<bool, Malformed> {
    let place = reader.flaw(Flaw::Value(what));
    match reader.u8()? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(place),
    }
}

/// For ever.
mod kind {
    pub(super) const CLOCK: u8 = 0x01;
    pub(super) const NUMBERS: u8 = 0x02;
    pub(super) const AHEAD: u8 = 0x03;
    pub(super) const TOPIC_CREATED: u8 = 0x10;
    pub(super) const TOPIC_UPDATED: u8 = 0x11;
    pub(super) const TOPIC_DELETED: u8 = 0x12;
    pub(super) const TOPIC_IMAGE: u8 = 0x13;
    pub(super) const ARCHIVED: u8 = 0x14;
    pub(super) const PASSED_OVER: u8 = 0x15;
    pub(super) const BOOK_CREATED: u8 = 0x20;
    pub(super) const BOOK_UPDATED: u8 = 0x21;
    pub(super) const BOOK_DELETED: u8 = 0x22;
    pub(super) const PAUSED: u8 = 0x23;
    pub(super) const SOUGHT: u8 = 0x24;
    pub(super) const SNAPSHOT_CREATED: u8 = 0x25;
    pub(super) const SNAPSHOT_DELETED: u8 = 0x26;
    pub(super) const BOOK_IMAGE: u8 = 0x27;
    pub(super) const PUBLISHED: u8 = 0x30;
    pub(super) const SETTLED: u8 = 0x31;
    pub(super) const ATTEMPTS: u8 = 0x32;
    pub(super) const DELAYED: u8 = 0x33;
    pub(super) const PARKED: u8 = 0x34;
}
