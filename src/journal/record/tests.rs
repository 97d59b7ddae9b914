mod random;

use std::time::Duration;

use uuid::Uuid;

use super::*;
use crate::message::Extras;
use crate::options::{Capacity, DedupWindow, DeliveryMode, Overflow, Retention, RetryPolicy};

fn seq(number: u64) -> Sequence {
    Sequence::new(number)
}

fn at(nanos: u64) -> Tick {
    Tick::from_nanos(nanos)
}

fn name(name: &str) -> Name {
    Name::parse(name).expect("a name")
}

fn encoded(record: &Record<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    record.encode(&mut out);
    out
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The record is these bytes, and they are the record.
#[track_caller]
fn check(record: &Record<'_>, golden: &str) {
    let bytes = encoded(record);
    assert_eq!(hex(&bytes), golden.replace(' ', ""));
    let read: Vec<_> = records(&bytes).collect();
    assert_eq!(read, [Ok(record.clone())]);
}

fn plain_topic() -> TopicOptions<'static> {
    TopicOptions {
        retention: Retention::until_acked(),
        capacity: Capacity::unlimited(),
        dedup: DedupWindow::default(),
        codec: None,
        has_fingerprint: false,
        has_weigh: false,
    }
}

fn plain_book() -> BookOptions<'static> {
    BookOptions {
        ack_deadline: Duration::from_secs(10),
        mode: DeliveryMode::AtLeastOnce,
        ordered: false,
        filter: None,
        has_filter_fn: false,
        retry: RetryPolicy::immediate(),
        dead_letter: DeadLetterTo::None,
        expire_after: None,
        outstanding_max: 1_000,
    }
}

#[test]
fn the_broker_s_own_records_are_these_bytes() {
    check(&Record::Clock { now: at(300) }, "01 020000 ac02");
    let numbers = Record::Numbers { hash_key: 7, next_topic: 2, next_book: 3 };
    check(&numbers, "02 120000 07000000000000000000000000000000 02 03");
    check(&Record::Ahead { sequence: seq(300), topic: 9 }, "03 030000 ac02 09");
}

#[test]
fn records_of_topics_are_these_bytes() {
    let options = plain_topic();
    let plain = "00 00 00 00 00 00 d804 00 c0843d 00 00";
    let created = Record::TopicCreated { topic: 1, next: seq(1), name: name("orders"), options };
    check(&created, &format!("10 170000 01 01 06 6f7264657273 {plain}"));
    let options = TopicOptions {
        retention: Retention::for_duration(Duration::new(5, 6)).max_bytes(7).max_messages(8),
        capacity: Capacity {
            messages_max: Some(1),
            bytes_max: Some(2),
            ..Capacity::messages(1).overflow(Overflow::DropOldest)
        },
        dedup: DedupWindow::off(),
        codec: Some("json"),
        has_fingerprint: true,
        has_weigh: true,
    };
    let full = "01 05 06 01 07 01 08 01 01 01 02 02 00 00 00 01 04 6a736f6e 03";
    check(
        &Record::TopicUpdated { topic: 1, next: seq(5), oldest: seq(3), options },
        &format!("11 190000 01 05 03 {full}"),
    );
    check(&Record::TopicDeleted { topic: 128 }, "12 020000 8001");
    let dedup = Part { bytes: &[9, 8], more: true };
    let image = Record::TopicImage { topic: 1, next: seq(5), oldest: seq(3), last_published: at(4), dedup };
    check(&image, "13 070000 01 05 03 04 01 0908");
    let extent = Extent { first: 2, end: 4, len: 128, next: seq(5) };
    check(&Record::Archived { topic: 1, extent }, "14 060000 01 02 04 8001 05");
    check(&Record::PassedOver { topic: 1, next: seq(300), count: 4 }, "15 040000 01 ac02 04");
    let backwards = [0x14, 5, 0, 0, 1, 4, 2, 7, 5];
    assert!(records(&backwards).any(|record| record.is_err()), "it ends before it begins");
}

#[test]
fn records_of_books_are_these_bytes() {
    let options = plain_book();
    let plain = "0a 00 01 00 00 00 00 00 00 00 00 00 e807";
    let (start, end) = (seq(3), seq(4));
    let created = Record::BookCreated { topic: 1, book: 2, start, end, name: name("b"), options };
    check(&created, &format!("20 140000 01 02 03 04 01 62 {plain}"));
    let options = BookOptions {
        ack_deadline: Duration::from_millis(1),
        mode: DeliveryMode::ExactlyOnce,
        ordered: true,
        filter: Some("attributes:a"),
        has_filter_fn: true,
        retry: RetryPolicy::exponential(Duration::from_secs(1), Duration::from_secs(9)),
        dead_letter: DeadLetterTo::Topic { after: 3, name: name("dead") },
        expire_after: Some(Duration::from_secs(60)),
        outstanding_max: 1,
    };
    let head = "00 c0843d 02 03 01 0c 617474726962757465733a61";
    let tail = "02 01 00 09 00 02 03 04 64656164 01 3c 00 01";
    check(&Record::BookUpdated { topic: 1, book: 2, options }, &format!("21 260000 01 02 {head} {tail}"));
    let dead_letter = DeadLetterTo::Discard { after: 5 };
    let options = BookOptions {
        dead_letter,
        mode: DeliveryMode::AtMostOnce,
        retry: RetryPolicy::fixed(Duration::from_secs(2)),
        ..plain_book()
    };
    check(
        &Record::BookUpdated { topic: 1, book: 2, options },
        "21 110000 01 02 0a 00 00 00 00 01 02 00 02 00 01 05 00 e807",
    );
    check(&Record::BookDeleted { topic: 1, book: 2 }, "22 020000 01 02");
    check(&Record::Paused { topic: 1, book: 2, paused: true }, "23 030000 01 02 01");
    let sought = |to| Record::Sought { topic: 1, book: 2, generation: 3, to };
    check(&sought(SoughtTo::Sequence(seq(300))), "24 060000 01 02 03 00 ac02");
    check(
        &sought(SoughtTo::Image(Part { bytes: &[5, 0, 5], more: false })),
        "24 080000 01 02 03 01 00 050005",
    );
    let image = Part { bytes: &[5, 0, 5], more: false };
    let snapshot = Record::SnapshotCreated { topic: 1, book: 2, name: name("s"), expires: at(4), image };
    check(&snapshot, "25 090000 01 02 01 73 04 00 050005");
    check(&Record::SnapshotDeleted { topic: 1, book: 2 }, "26 020000 01 02");
    check(&Record::BookImage { topic: 1, book: 2, image }, "27 060000 01 02 00 050005");
}

#[test]
fn records_of_what_became_of_messages_are_these_bytes() {
    let range = |from, to, code| SettledRange { from: seq(from), to: seq(to), outcome: OutcomeCode(code) };
    let ranges = [range(5, 6, 0), range(3, 5, 7), range(300, 301, 3)];
    let settled = Record::Settled { topic: 1, book: 2, ranges: List::Items(&ranges) };
    check(&settled, "31 0c0000 01 02 0a 01 00 05 02 07 ce04 01 03");
    let range = |from, to, attempts| AttemptRange { from: seq(from), to: seq(to), attempts };
    let ranges = [range(1, 65, 1), range(65, 66, 300)];
    let attempts = Record::Attempts { topic: 1, book: 2, ranges: List::Items(&ranges) };
    check(&attempts, "32 090000 01 02 02 40 01 00 01 ac02");
    let delayed = Record::Delayed { topic: 1, book: 2, sequence: seq(3), until: Tick::NEVER, attempts: 4 };
    check(&delayed, "33 0e0000 01 02 03 ffffffffffffffffff01 04");
    let parked = Record::Parked { topic: 1, book: 2, sequence: seq(3), attempts: 4, reason: "bad" };
    check(&parked, "34 080000 01 02 03 04 03 626164");
}

/// Messages as they are encoded, one after the other.
fn messages(each: &[(Envelope<'_>, Option<Extras>)]) -> Vec<Vec<u8>> {
    let encode = |(envelope, extras): &(Envelope<'_>, Option<Extras>)| {
        let mut out = Vec::new();
        encode_message(&mut out, envelope, extras.as_ref()).expect("within all limits");
        out
    };
    each.iter().map(encode).collect()
}

fn published(topic: u64, first: u64, each: &[(Envelope<'_>, Option<Extras>)]) -> Vec<u8> {
    let mut out = Vec::new();
    write_published(&mut out, topic, seq(first), at(9), messages(each).iter().map(Vec::as_slice));
    out
}

fn plain(payload: &[u8]) -> Envelope<'_> {
    Envelope { weight: payload.len() as u64, content: 0, origin: None, payload }
}

fn all_extras() -> Extras {
    Extras {
        attributes: vec![("k".into(), "v".into())],
        ordering_key: Some("o".into()),
        idempotency_id: Some(Uuid::from_u128(5).into()),
        deliver_after: Some(Duration::from_secs(1)),
        expires_in: Some(Duration::from_secs(2)),
    }
}

#[test]
fn published_messages_are_these_bytes() {
    let full = Envelope { weight: 9, content: 0x0102, origin: Some((4, seq(6))), payload: b"c" };
    let each = [(plain(b"ab"), None), (full, Some(all_extras()))];
    let bytes = published(1, 300, &each);
    let id = "00 00000000000000000000000000000005 0201000000000000";
    let second = format!("7f 09 01 016b 0176 016f {id} 01 00 02 00 04 06 01 63");
    assert_eq!(hex(&bytes), format!("30 320000 01 ac02 09 00 02 6162 {second}").replace(' ', ""));
    let read: Vec<_> = records(&bytes).collect();
    let [Ok(Record::Published { topic: 1, first, at: published_at, messages })] = &read[..] else {
        panic!("{read:?}")
    };
    assert_eq!((*first, *published_at, messages.len()), (seq(300), at(9), 2));
    let read: Vec<_> =
        messages.iter().map(|(envelope, extras)| (envelope, extras.map(|extras| *extras))).collect();
    assert_eq!(read.len(), 2);
    assert!(same(&read[0], &each[0]) && same(&read[1], &each[1]));
    assert_eq!(
        encoded(&Record::Published { topic: 1, first: *first, at: at(9), messages: *messages }),
        bytes
    );
}

fn same(a: &(Envelope<'_>, Option<Extras>), b: &(Envelope<'_>, Option<Extras>)) -> bool {
    let told = |extras: &Option<Extras>| {
        extras.as_ref().map(|e| {
            (
                e.attributes.clone(),
                e.ordering_key.clone(),
                e.idempotency_id.clone(),
                e.deliver_after,
                e.expires_in,
            )
        })
    };
    a.0 == b.0 && told(&a.1) == told(&b.1)
}

#[test]
fn what_is_over_a_limit_is_not_written() {
    let mut out = Vec::new();
    let mut refused = |payload: &[u8], extras: Extras| {
        let refused = encode_message(&mut out, &plain(payload), Some(&extras)).expect_err("over a limit");
        assert!(out.is_empty(), "{refused}");
        refused.0
    };
    let with = |key: usize, value: usize, count: usize| Extras {
        attributes: vec![("k".repeat(key), "v".repeat(value)); count],
        ..Extras::default()
    };
    assert_eq!(refused(&vec![0; 10_000_001], Extras::default()), "payload");
    assert_eq!(refused(b"", with(257, 1, 1)), "attribute key");
    assert_eq!(refused(b"", with(1, 1_025, 1)), "attribute value");
    assert_eq!(refused(b"", with(1, 1, 108)), "number of attributes");
    assert_eq!(
        refused(b"", Extras { ordering_key: Some("k".repeat(1_025)), ..Extras::default() }),
        "ordering key"
    );
    assert_eq!(
        refused(b"", Extras { idempotency_id: Some("i".repeat(1_025).into()), ..Extras::default() }),
        "idempotency id"
    );
    let largest = Extras {
        ordering_key: Some("k".repeat(1_024)),
        idempotency_id: Some("i".repeat(1_024).into()),
        ..with(256, 1_024, 107)
    };
    let payload = vec![7; 10_000_000];
    let bytes = published(u64::MAX, 1, &[(plain(&payload), Some(largest))]);
    assert_eq!(records(&bytes).filter(Result::is_ok).count(), 1, "the largest message fits into a record");
}

#[test]
fn what_one_record_cannot_hold_is_several() {
    let payload = vec![7; 6_000_000];
    let each = vec![(plain(&payload), None); 5];
    let bytes = published(1, 10, &each);
    let read: Vec<_> = records(&bytes).map(|record| record.expect("a record")).collect();
    let firsts = read.iter().map(|record| match record {
        Record::Published { first, messages, .. } => (first.get(), messages.len()),
        other => panic!("{other:?}"),
    });
    let firsts = firsts.collect::<Vec<_>>();
    assert_eq!(firsts, [(10, 2), (12, 2), (14, 1)]);

    // As long as they can be: far from each other, and long.
    let range = |n: u64| (n % 2 * (1 << 61), (n % 2 * (1 << 61)) + (1 << 60) + n);
    let outcome = OutcomeCode(1);
    let ranges: Vec<_> = (0..1_000_000)
        .map(range)
        .map(|(from, to)| SettledRange { from: seq(from), to: seq(to), outcome })
        .collect();
    let bytes = encoded(&Record::Settled { topic: 1, book: 2, ranges: List::Items(&ranges) });
    let lists: Vec<_> = records(&bytes)
        .map(|record| match record {
            Ok(Record::Settled { topic: 1, book: 2, ranges }) => ranges,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(lists.len(), 2);
    assert!(lists.iter().flat_map(List::iter).eq(ranges));
    let empty = encoded(&Record::Settled { topic: 1, book: 2, ranges: List::Items(&[]) });
    assert_eq!(hex(&empty), "310200000102");
}

#[test]
fn an_image_is_cut_into_parts_and_put_together_again() {
    for len in [0, 1, PART_LEN_MAX, PART_LEN_MAX + 1, 3 * PART_LEN_MAX] {
        let image: Vec<u8> = (0..len).map(|n| n as u8).collect();
        let parts: Vec<_> = Part::all_of(&image).collect();
        assert_eq!(
            parts.iter().map(|part| part.more).rposition(|more| !more),
            Some(parts.len() - 1),
            "{len}"
        );
        assert_eq!(parts.iter().filter(|part| !part.more).count(), 1, "{len}");
        let mut out = Vec::new();
        parts.iter().for_each(|&image| Record::BookImage { topic: 1, book: 2, image }.encode(&mut out));
        let again = records(&out).flat_map(|record| match record {
            Ok(Record::BookImage { image, .. }) => image.bytes,
            other => panic!("{other:?}"),
        });
        assert!(again.copied().eq(image), "{len}");
    }
}

#[test]
fn a_kind_that_may_be_passed_over_is_and_any_other_ends_the_reading() {
    let clock = Record::Clock { now: at(7) };
    let mut bytes = encoded(&clock);
    bytes.extend_from_slice(&[0xC5, 3, 0, 0, 1, 2, 3]);
    bytes.extend_from_slice(&encoded(&clock));
    assert_eq!(records(&bytes).collect::<Vec<_>>(), [Ok(clock.clone()), Ok(clock.clone())]);
    for kind in [0x00, 0x04, 0x0F, 0x16, 0x28, 0x35, 0x7F] {
        let offset = bytes.len();
        let unknown = [&bytes[..], &[kind, 3, 0, 0, 1, 2, 3], &bytes[..]].concat();
        let expected = [Ok(clock.clone()), Ok(clock.clone()), Err(RecordError::Unknown { kind, offset })];
        assert_eq!(records(&unknown).collect::<Vec<_>>(), expected);
    }
    let error = records(&[0x12, 2, 0, 0, 1, 1]).next().expect("a record").expect_err("too long a body");
    assert_eq!(error.to_string(), "a record of kind 0x12: more follows than belongs there, at byte 5");
}

#[test]
fn values_that_mean_nothing_are_refused() {
    let wrong = [
        "23 030000 01 02 02",
        "24 050000 01 02 03 03 09",
        "31 050000 01 02 02 01 08",
        "31 050000 01 02 02 00 00",
        "31 0e0000 01 02 02 ffffffffffffffffff01 00",
        "30 050000 01 01 01 80 00",
        "30 060000 01 01 01 02 00 00",
        "20 140000 01 02 03 04 01 2d 0a 00 01 00 00 00 00 00 00 00 00 00 e807",
        "34 070000 01 02 03 04 02 c328",
    ];
    for wrong in wrong {
        let digits: Vec<u8> = wrong.bytes().filter(u8::is_ascii_hexdigit).collect();
        let byte =
            |pair: &[u8]| u8::from_str_radix(str::from_utf8(pair).expect("digits"), 16).expect("digits");
        let bytes: Vec<u8> = digits.chunks(2).map(byte).collect();
        let read: Vec<_> = records(&bytes).collect();
        assert!(matches!(read[..], [Err(RecordError::Malformed { .. })]), "{wrong}: {read:?}");
    }
}
