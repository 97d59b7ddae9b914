//! What each record says, by hand. Over an image that is newer: `overlap`. What is kept in memory: `keeping`. Any history at all: `fuzzy`; any bytes at all: `hostile`.

mod fuzzy;
mod history;
mod hostile;
mod keeping;
mod overlap;

use std::fmt::Write;
use std::time::Duration;

use super::{Recovered, StoredBook, StoredTopic};
use crate::binary::Reader;
use crate::delivery::settled::{Outcome, Settled};
use crate::engine::local::archiving::Archives;
use crate::engine::local::imaging::ImageWriter;
use crate::journal::record::{
    AttemptRange, BookOptions, DeadLetterTo, Envelope, List, OutcomeCode, Part, Record, SettledRange,
    SoughtTo, TopicOptions, encode_message, write_published,
};
use crate::message::Extras;
use crate::name::Name;
use crate::options::{Capacity, DedupWindow, DeliveryMode, Retention, RetryPolicy};
use crate::sequence::Sequence;
use crate::time::Tick;

fn seq(number: u64) -> Sequence {
    Sequence::new(number)
}

fn at(nanos: u64) -> Tick {
    Tick::from_nanos(nanos)
}

fn name(name: &str) -> Name {
    Name::parse(name).expect("a name")
}

fn topic_options() -> TopicOptions<'static> {
    TopicOptions {
        retention: Retention::until_acked(),
        capacity: Capacity::unlimited(),
        dedup: DedupWindow::default(),
        codec: Some("json"),
        has_fingerprint: false,
        has_weigh: true,
    }
}

fn book_options() -> BookOptions<'static> {
    BookOptions {
        ack_deadline: Duration::from_secs(10),
        mode: DeliveryMode::AtLeastOnce,
        ordered: false,
        filter: Some("attributes:a"),
        has_filter_fn: false,
        retry: RetryPolicy::immediate(),
        dead_letter: DeadLetterTo::Topic { after: 3, name: name("dead") },
        expire_after: None,
        outstanding_max: 1_000,
    }
}

/// A unit, record by record.
#[derive(Clone, Default)]
struct Unit(Vec<u8>);

impl Unit {
    fn put(mut self, record: &Record<'_>) -> Self {
        record.encode(&mut self.0);
        self
    }

    fn numbers(self, next_topic: u64, next_book: u64) -> Self {
        self.put(&Record::Numbers { hash_key: 7, next_topic, next_book })
    }

    fn topic(self, topic: u64, text: &str) -> Self {
        let (next, name, options) = (seq(1), name(text), topic_options());
        self.put(&Record::TopicCreated { topic, next, name, options })
    }

    fn book(self, topic: u64, book: u64, start: u64) -> Self {
        let (start, name) = (seq(start), name(&format!("b{book}")));
        self.put(&Record::BookCreated { topic, book, start, end: start, name, options: book_options() })
    }

    /// Messages whose payload is their number, from `first` on, published at that.
    fn publish(self, topic: u64, first: u64, count: u64) -> Self {
        self.publish_ids(topic, first, &vec![None; count as usize])
    }

    fn publish_ids(mut self, topic: u64, first: u64, ids: &[Option<&str>]) -> Self {
        let encode = |(number, id): (u64, &Option<&str>)| {
            let payload = number.to_le_bytes();
            let envelope =
                Envelope { weight: number, content: 5, origin: Some((9, seq(number))), payload: &payload };
            let extras = id.map(|id| Extras { idempotency_id: Some(id.into()), ..Extras::default() });
            let mut out = Vec::new();
            encode_message(&mut out, &envelope, extras.as_ref()).expect("within all limits");
            out
        };
        let messages: Vec<_> = (first..).zip(ids).map(encode).collect();
        write_published(&mut self.0, topic, seq(first), at(first), messages.iter().map(Vec::as_slice));
        self
    }

    fn settle(self, topic: u64, book: u64, from: u64, to: u64) -> Self {
        self.settle_as(topic, book, from, to, Outcome::Acked)
    }

    fn settle_as(self, topic: u64, book: u64, from: u64, to: u64, outcome: Outcome) -> Self {
        let range = SettledRange { from: seq(from), to: seq(to), outcome: OutcomeCode(outcome.code()) };
        self.put(&Record::Settled { topic, book, ranges: List::Items(&[range]) })
    }

    fn attempt(self, topic: u64, book: u64, from: u64, to: u64, attempts: u32) -> Self {
        let range = AttemptRange { from: seq(from), to: seq(to), attempts };
        self.put(&Record::Attempts { topic, book, ranges: List::Items(&[range]) })
    }

    fn delay(self, topic: u64, book: u64, sequence: u64, until: u64, attempts: u32) -> Self {
        self.put(&Record::Delayed { topic, book, sequence: seq(sequence), until: at(until), attempts })
    }

    fn park(self, topic: u64, book: u64, sequence: u64, attempts: u32) -> Self {
        self.put(&Record::Parked { topic, book, sequence: seq(sequence), attempts, reason: "no good" })
    }

    fn seek(self, topic: u64, book: u64, generation: u32, to: u64) -> Self {
        self.put(&Record::Sought { topic, book, generation, to: SoughtTo::Sequence(seq(to)) })
    }

    fn seek_to_image(self, topic: u64, book: u64, generation: u32, settled: &Settled) -> Self {
        let image = settled.image();
        let to = SoughtTo::Image(Part { bytes: &image, more: false });
        self.put(&Record::Sought { topic, book, generation, to })
    }

    fn snapshot(self, topic: u64, book: u64, settled: &Settled) -> Self {
        let image = settled.image();
        let (name, expires) = (name(&format!("s{book}")), at(9));
        let image = Part { bytes: &image, more: false };
        self.put(&Record::SnapshotCreated { topic, book, name, expires, image })
    }

    fn numbers_done(self) -> Self {
        self.numbers(0, 0)
    }
}

fn unit() -> Unit {
    Unit::default()
}

fn topic_and_book() -> Unit {
    unit().topic(1, "t").book(1, 1, 1)
}

/// A state of nothing but these units.
fn state(units: &[Unit]) -> Recovered {
    let mut recovered = Recovered::new();
    apply(&mut recovered, units);
    recovered
}

fn apply(recovered: &mut Recovered, units: &[Unit]) {
    units.iter().for_each(|unit| recovered.unit(&unit.0).expect("a unit"));
}

/// As a checkpoint would hold it, with every topic.
fn image_of(recovered: &Recovered) -> Vec<Vec<u8>> {
    let Recovered { now, next_topic, next_book, .. } = *recovered;
    let hash_key = recovered.hash_key.unwrap_or(7);
    let head = unit().put(&Record::Clock { now }).put(&Record::Numbers { hash_key, next_topic, next_book });
    let mut archives = Archives::of_nothing();
    let mut image = ImageWriter::new(&mut archives);
    image.records(&head.0);
    recovered.topics().for_each(|topic| topic.write_image(&mut image));
    image.finish().expect("nothing fails")
}

/// An image, and units after it.
fn over(image: &[Vec<u8>], units: &[Unit]) -> Recovered {
    let mut recovered = Recovered::new();
    image.iter().for_each(|chunk| recovered.image_chunk(chunk).expect("a chunk"));
    apply(&mut recovered, units);
    recovered
}

fn refused(units: &[Unit]) -> String {
    let mut recovered = Recovered::new();
    for unit in units {
        if let Err(error) = recovered.unit(&unit.0) {
            return error;
        }
    }
    recovered.finish().expect_err("it is refused")
}

/// Everything that can be asked of what was read, once all is read.
fn told(mut recovered: Recovered) -> String {
    recovered.finish().expect("it can be so");
    let now = recovered.now;
    let mut out = format!("{now:?} {:?}\n", (recovered.next_topic, recovered.next_book));
    let numbers: Vec<_> = recovered.topics().map(|topic| topic.name.as_str().to_owned()).collect();
    for name in numbers {
        let mut topic = recovered.take_topic(&name).expect("it is there by its name");
        tell_topic(&topic, &mut out);
        let dedup = topic.take_dedup(now).image(seq(u64::MAX));
        writeln!(out, "  ids {dedup:02x?}").expect("a text has room");
    }
    out
}

fn tell_topic(topic: &StoredTopic, out: &mut String) {
    let (number, next) = (topic.number, topic.next);
    writeln!(out, "topic {number} {:?} {:?}", topic.name, topic.options()).expect("a text has room");
    writeln!(out, "  next {next:?} published {:?}", topic.last_published).expect("a text has room");
    for (sequence, message) in topic.messages.iter() {
        let (weight, payload, origin) = (message.weight, &message.payload, message.origin);
        let id = message.extras.as_ref().and_then(|extras| extras.idempotency_id.clone());
        writeln!(out, "  {sequence:?} {:?} {weight} {id:?} {payload:?} {origin:?}", message.at)
            .expect("a text has room");
    }
    topic.books.values().for_each(|book| tell_book(book, topic, out));
    for snapshot in topic.snapshots.values() {
        let unsettled = unsettled(&snapshot.settled, next);
        writeln!(
            out,
            "  snapshot {} {:?} {:?}: {unsettled:?}",
            snapshot.number, snapshot.name, snapshot.expires
        )
        .expect("a text has room");
    }
}

fn tell_book(book: &StoredBook, topic: &StoredTopic, out: &mut String) {
    let StoredBook { number, name, start: _, end: _, ledger, .. } = book;
    let unsettled = unsettled(ledger.settled(), topic.next);
    writeln!(out, "  book {number} {name:?} {:?}", book.options()).expect("a text has room");
    // Of the image all but what is settled, which has more than one form.
    let image = ledger.image();
    let mut reader = Reader::new(&image);
    let paused = reader.take(2).expect("version and flags");
    let counts: Vec<_> = (0..11).map(|_| reader.varint().expect("generation and counts")).collect();
    let length = reader.varint().expect("a length");
    reader.take(length as usize).expect("what is settled");
    writeln!(out, "    {paused:?} {counts:?} {unsettled:?} memories {:?}", reader.rest())
        .expect("a text has room");
    let outcomes: Vec<_> =
        topic.messages.sequences().map(|sequence| ledger.settled().outcome(sequence)).collect();
    writeln!(out, "    {outcomes:?}").expect("a text has room");
}

fn unsettled(settled: &Settled, next: Sequence) -> Vec<u64> {
    (1..next.get()).filter(|&number| !settled.is_settled(seq(number))).collect()
}

fn kept(recovered: &Recovered) -> Vec<u64> {
    recovered.topics().flat_map(|topic| topic.messages.sequences().map(|sequence| sequence.get())).collect()
}

/// What the one book of the one topic has not settled.
fn backlog(recovered: &Recovered) -> Vec<u64> {
    let topic = recovered.topics().next().expect("a topic");
    let book = topic.books.values().next().expect("a book");
    unsettled(book.ledger.settled(), topic.next)
}

/// How it comes out in the end.
fn finished(mut recovered: Recovered) -> Recovered {
    recovered.finish().expect("it can be so");
    recovered
}

#[test]
fn a_topic_is_what_its_records_say() {
    let mut recovered = state(&[
        topic_and_book().publish_ids(1, 1, &[None, Some("a"), None]),
        unit().put(&Record::Clock { now: at(50) }).settle(1, 1, 1, 2).attempt(1, 1, 2, 3, 2),
        unit().put(&Record::Paused { topic: 1, book: 1, paused: true }),
    ]);
    recovered.finish().expect("it can be so");
    assert_eq!((recovered.now, recovered.next_topic, recovered.next_book), (at(50), 2, 2));
    let mut topic = recovered.take_topic("t").expect("a topic");
    assert!(recovered.take_topic("t").is_none());
    assert_eq!(topic.options(), topic_options());
    assert_eq!((topic.number, topic.next, topic.last_published), (1, seq(4), at(1)));
    assert_eq!(topic.messages.sequences().map(|sequence| sequence.get()).collect::<Vec<_>>(), [2, 3]);
    let second = topic.messages.get(seq(2)).expect("it is there");
    assert_eq!((second.at, second.weight, second.content, second.origin), (at(1), 2, 5, Some((9, seq(2)))));
    assert_eq!(second.payload, 2_u64.to_le_bytes().as_slice());
    let book = &topic.books[&1];
    assert_eq!((book.options(), book.start, book.ledger.counts().acked), (book_options(), seq(1), 1));
    assert_eq!(book.ledger.reach(), seq(3));
    assert_eq!(
        topic.take_dedup(at(2)).admit(&"a".into(), 5, at(2)),
        crate::delivery::dedup::Admission::Repeat(seq(2))
    );
    recovered.put_back(topic);
    assert!(recovered.take_topic("t").is_some());
}

#[test]
fn an_image_is_read_back_as_it_was() {
    let history = [
        topic_and_book().book(1, 2, 1).topic(2, "u").publish_ids(
            1,
            1,
            &[Some("a"), None, Some("b"), None, None],
        ),
        unit()
            .publish(2, 1, 2)
            .publish(1, 6, 1)
            .settle(1, 1, 2, 4)
            .attempt(1, 1, 4, 6, 1)
            .delay(1, 1, 5, 99, 2),
        unit().park(1, 2, 2, 3).seek(1, 2, 1, 2).snapshot(1, 3, &Settled::starting_at(seq(2))),
        unit().put(&Record::Paused { topic: 1, book: 2, paused: true }),
    ];
    let image = image_of(&state(&history));
    let again = image_of(&over(&image, &[]));
    assert_eq!(image, again);
    assert_eq!(told(over(&image, &[])), told(state(&history)));
}

#[test]
fn chunks_are_about_a_mebibyte_however_much_there_is() {
    let mut recovered = state(&[topic_and_book()]);
    let payload = vec![7; 300_000];
    let mut message = Vec::new();
    let envelope = Envelope { weight: 1, content: 0, origin: None, payload: &payload };
    encode_message(&mut message, &envelope, None).expect("within all limits");
    let mut big = Vec::new();
    write_published(&mut big, 1, seq(1), at(1), std::iter::repeat_n(&*message, 40));
    recovered.unit(&big).expect("a unit");
    let image = image_of(&recovered);
    assert!(image.len() > 8 && image.iter().all(|chunk| chunk.len() < 2 << 20), "{}", image.len());
    assert_eq!(told(over(&image, &[])), told(recovered));
}

#[test]
fn what_is_said_of_what_was_never_created_is_ignored_and_its_number_not_given_again() {
    let known = topic_and_book().publish(1, 1, 1);
    let strange = [
        unit().publish(2, 1, 1),
        unit().settle(1, 2, 1, 2),
        unit().put(&Record::TopicDeleted { topic: 5 }),
        unit().settle(1, 1, 1, 2),
    ];
    let recovered = finished(state(&[&[known][..], &strange].concat()));
    assert_eq!(recovered.topics().count(), 1);
    assert_eq!(backlog(&recovered), [0; 0]);
    assert_eq!((recovered.next_topic, recovered.next_book), (6, 3));
}

#[test]
fn what_never_was_is_an_error() {
    let known = topic_and_book().numbers(2, 2);
    let of = |unit: Unit| refused(&[known.clone(), unit]);
    let mut recovered = Recovered::new();
    recovered.image_chunk(&unit().numbers(5, 5).0).expect("a chunk");
    let error =
        recovered.image_chunk(&unit().publish(2, 1, 1).0).expect_err("an image tells of all that it has");
    assert_eq!(error, "something is said of topic 2, which never was");
    assert_eq!(of(unit().topic(u64::MAX, "u")), "a number after which there is none");
    assert_eq!(
        of(unit().put(&Record::Numbers { hash_key: 8, next_topic: 0, next_book: 0 })),
        "there are two hash keys"
    );
    assert_eq!(of(unit().topic(2, "t")), "topics 1 and 2 have one name: t");
    assert_eq!(
        of(Unit(vec![0x12, 2, 0, 0, 1, 1])),
        "a record of kind 0x12: more follows than belongs there, at byte 5"
    );
}

#[test]
fn a_book_that_reaches_beyond_its_topic_is_an_error() {
    let of = |unit: Unit| refused(&[topic_and_book(), unit]);
    let beyond = "a book of topic 1 knows messages up to #3, and the topic ends at #2";
    assert_eq!(of(unit().publish(1, 1, 1).settle(1, 1, 2, 3)), beyond);
    assert_eq!(of(unit().publish(1, 1, 1).attempt(1, 1, 1, 3, 1)), beyond);
    assert_eq!(of(unit().publish(1, 1, 1).seek(1, 1, 1, 3)), beyond);
    assert_eq!(of(unit().publish(1, 1, 1).snapshot(1, 2, &Settled::starting_at(seq(3)))), beyond);
    assert_eq!(of(unit().seek(1, 1, 1, u64::MAX)), "#18446744073709551615 is no place of a message");
    assert_eq!(of(unit().seek(1, 1, 1, 0)), "#0 is no place of a message");
    assert_eq!(of(unit().delay(1, 1, u64::MAX, 1, 1)), "#18446744073709551615 is no place of a message");
}

#[test]
fn an_image_in_parts_must_come_whole_and_in_a_row() {
    let image = Settled::starting_at(seq(1)).image();
    let (first, second) = image.split_at(1);
    let snapshot = |more, bytes| Record::SnapshotCreated {
        topic: 1,
        book: 2,
        name: name("s"),
        expires: at(1),
        image: Part { bytes, more },
    };
    let part = |book, bytes| Record::BookImage { topic: 1, book, image: Part { bytes, more: false } };
    let whole = unit().put(&snapshot(false, &image));
    let parts = unit().put(&snapshot(true, first)).put(&part(2, second));
    assert_eq!(told(state(&[topic_and_book(), parts])), told(state(&[topic_and_book(), whole])));

    let of = |unit: Unit| refused(&[topic_and_book(), unit]);
    assert_eq!(of(unit().put(&snapshot(true, first))), "an image of snapshot 2 breaks off");
    assert_eq!(
        of(unit().put(&snapshot(true, first)).put(&part(1, second))),
        "an image of snapshot 2 breaks off"
    );
    assert_eq!(of(unit().put(&part(1, second))), "an image of book 1 that is part of nothing");
    let dedup = Part { bytes: &[], more: false };
    let topic = Record::TopicImage { topic: 1, next: seq(1), oldest: seq(1), last_published: at(1), dedup };
    assert_eq!(of(unit().put(&topic)), "an image of topic 1 that is part of nothing");
    let sought = |bytes, more| Record::Sought {
        topic: 1,
        book: 1,
        generation: 1,
        to: SoughtTo::Image(Part { bytes, more }),
    };
    assert_eq!(of(unit().put(&sought(first, true))), "an image to which book 1 was sought breaks off");
    let parts = unit().put(&sought(first, true)).put(&part(1, second));
    assert_eq!(
        told(state(&[topic_and_book(), parts])),
        told(state(&[topic_and_book(), unit().seek(1, 1, 1, 1)]))
    );
}

#[test]
fn generations_come_one_after_the_other() {
    let of = |generation| refused(&[topic_and_book(), unit().seek(1, 1, generation, 1)]);
    assert_eq!(of(0), "book 1 was sought into generation 0, from 0");
    assert_eq!(of(1 << 20), "book 1 was sought into generation 1048576, from 0");
    // One of them may have found no space on the disk.
    let recovered = state(&[topic_and_book().publish(1, 1, 3), unit().seek(1, 1, 2, 2).seek(1, 1, 3, 3)]);
    assert_eq!(backlog(&recovered), [3]);
    assert_eq!(recovered.topics().next().map(|topic| topic.books[&1].ledger.generation()), Some(3));
}

#[test]
fn after_units_were_lost_the_rest_is_read() {
    let mut recovered = state(&[topic_and_book(), unit().publish(1, 1, 2)]);
    recovered.lost();
    let later = [
        unit().publish(1, 5, 2).settle(1, 7, 1, 2).seek(1, 1, 3, 2).settle(1, 1, 5, 6),
        unit().publish(8, 1, 1).attempt(1, 1, 6, 9, 1),
    ];
    apply(&mut recovered, &later);
    apply(&mut recovered, &[unit().seek(1, 1, 4, 1).settle(1, 1, 1, 2).settle(1, 1, 10, 11)]);
    let recovered = finished(recovered);
    assert_eq!(kept(&recovered), [2, 5, 6]);
    let topic = recovered.topics().next().expect("a topic");
    assert_eq!((topic.next, topic.books[&1].ledger.generation()), (seq(11), 4));
    assert!(recovered.next_topic > 8 && recovered.next_book > 7, "the numbers are not given again");
}
