//! Any unit at all, and any damage to it.

use proptest::prelude::*;

use super::*;
use crate::message::IdempotencyId;

fn durations() -> impl Strategy<Value = Duration> {
    prop_oneof![
        Just(Duration::MAX),
        Just(Duration::from_nanos(1)),
        (0..100_000_u64).prop_map(Duration::from_millis)
    ]
}

fn topic_options() -> impl Strategy<Value = TopicOptions<'static>> {
    let retention = prop_oneof![
        Just(Retention::until_acked()),
        (durations(), any::<u64>()).prop_map(|(life, bytes)| Retention::for_duration(life).max_bytes(bytes)),
        any::<u64>().prop_map(|messages| Retention::forever().max_messages(messages)),
    ];
    let capacity = prop_oneof![
        Just(Capacity::unlimited()),
        (1..u64::MAX).prop_map(|bytes| Capacity::bytes(bytes).overflow(Overflow::Reject)),
        (1..u64::MAX).prop_map(|messages| Capacity::messages(messages).overflow(Overflow::DropOldest)),
    ];
    let dedup = prop_oneof![
        Just(DedupWindow::off()),
        (1..usize::MAX).prop_map(|ids| DedupWindow::default().max_ids(ids))
    ];
    let codec = prop_oneof![Just(None), Just(Some("json")), Just(Some(""))];
    (retention, capacity, dedup, codec, any::<[bool; 2]>()).prop_map(
        |(retention, capacity, dedup, codec, [has_fingerprint, has_weigh])| TopicOptions {
            retention,
            capacity,
            dedup,
            codec,
            has_fingerprint,
            has_weigh,
        },
    )
}

fn book_options() -> impl Strategy<Value = BookOptions<'static>> {
    let mode = prop_oneof![
        Just(DeliveryMode::AtMostOnce),
        Just(DeliveryMode::AtLeastOnce),
        Just(DeliveryMode::ExactlyOnce)
    ];
    let filter = prop_oneof![Just(None), Just(Some("attributes:a")), Just(Some("NOT attributes:b"))];
    let retry = prop_oneof![
        Just(RetryPolicy::immediate()),
        durations().prop_map(RetryPolicy::fixed),
        Just(RetryPolicy::exponential(Duration::from_nanos(1), Duration::MAX)),
    ];
    let dead_letter = prop_oneof![
        Just(DeadLetterTo::None),
        any::<u32>().prop_map(|after| DeadLetterTo::Discard { after }),
        any::<u32>().prop_map(|after| DeadLetterTo::Topic { after, name: name("dead") }),
    ];
    let expire_after = proptest::option::of(durations());
    (durations(), mode, any::<[bool; 2]>(), filter, retry, dead_letter, expire_after, any::<u64>()).prop_map(
        |(
            ack_deadline,
            mode,
            [ordered, has_filter_fn],
            filter,
            retry,
            dead_letter,
            expire_after,
            outstanding_max,
        )| BookOptions {
            ack_deadline,
            mode,
            ordered,
            filter,
            has_filter_fn,
            retry,
            dead_letter,
            expire_after,
            outstanding_max,
        },
    )
}

type Told = (Vec<(String, String)>, Option<String>, Option<IdempotencyId>, [Option<Duration>; 2]);

fn told() -> impl Strategy<Value = Told> {
    let id = prop_oneof![
        any::<u128>().prop_map(|id| IdempotencyId::from(Uuid::from_u128(id))),
        ".{0,9}".prop_map(IdempotencyId::from)
    ];
    let attributes = prop::collection::vec((".{0,5}", ".{0,5}"), 0..4);
    let times = [proptest::option::of(durations()), proptest::option::of(durations())];
    (attributes, proptest::option::of(".{0,5}"), proptest::option::of(id), times)
}

fn extras_of(told: &Told) -> Extras {
    let (attributes, ordering_key, idempotency_id, [deliver_after, expires_in]) = told.clone();
    Extras { attributes, ordering_key, idempotency_id, deliver_after, expires_in }
}

fn of_topics() -> impl Strategy<Value = Vec<u8>> {
    let (topic, number) = (any::<u64>(), any::<u64>());
    let image = prop::collection::vec(any::<u8>(), 0..30);
    prop_oneof![
        number.prop_map(|now| encoded(&Record::Clock { now: at(now) })),
        (any::<u128>(), any::<u64>(), any::<u64>()).prop_map(|(hash_key, next_topic, next_book)| encoded(
            &Record::Numbers { hash_key, next_topic, next_book }
        )),
        (number, any::<u64>())
            .prop_map(|(sequence, topic)| encoded(&Record::Ahead { sequence: seq(sequence), topic })),
        (topic, number, any::<u64>()).prop_map(|(topic, next, count)| encoded(&Record::PassedOver {
            topic,
            next: seq(next),
            count
        })),
        (topic, number, topic_options()).prop_map(|(topic, next, options)| encoded(&Record::TopicCreated {
            topic,
            next: seq(next),
            name: name("a/b"),
            options
        })),
        (topic, number, topic_options()).prop_map(|(topic, next, options)| encoded(&Record::TopicUpdated {
            topic,
            next: seq(next),
            oldest: seq(next),
            options
        })),
        topic.prop_map(|topic| encoded(&Record::TopicDeleted { topic })),
        (topic, number, image).prop_map(|(topic, n, bytes)| encoded(&Record::TopicImage {
            topic,
            next: seq(n),
            oldest: seq(n / 2),
            last_published: at(n),
            dedup: Part { bytes: &bytes, more: n % 2 == 0 },
        })),
    ]
}

fn of_books() -> impl Strategy<Value = Vec<u8>> {
    let image = prop::collection::vec(any::<u8>(), 0..30);
    (any::<u64>(), any::<u64>(), any::<u64>(), book_options(), image, 0..11_u8).prop_map(
        |(topic, book, n, options, bytes, which)| {
            let image = Part { bytes: &bytes, more: n % 2 == 0 };
            let sought = |to| Record::Sought { topic, book, generation: n as u32, to };
            encoded(&match which {
                0 => Record::BookCreated {
                    topic,
                    book,
                    start: seq(n),
                    end: seq(n / 2),
                    name: name("b"),
                    options,
                },
                1 => Record::BookUpdated { topic, book, options },
                2 => Record::BookDeleted { topic, book },
                3 => Record::Paused { topic, book, paused: n % 2 == 0 },
                4 => sought(SoughtTo::Sequence(seq(n))),
                5 => sought(SoughtTo::Image(image)),
                6 => Record::SnapshotCreated { topic, book, name: name("s"), expires: at(n), image },
                7 => Record::SnapshotDeleted { topic, book },
                8 => Record::BookImage { topic, book, image },
                9 => Record::Delayed { topic, book, sequence: seq(n), until: at(n / 3), attempts: n as u32 },
                _ => Record::Parked { topic, book, sequence: seq(n), attempts: n as u32, reason: "no" },
            })
        },
    )
}

fn of_messages() -> impl Strategy<Value = Vec<u8>> {
    let payload = prop::collection::vec(any::<u8>(), 0..20);
    let message = (
        payload,
        proptest::option::of(told()),
        any::<u64>(),
        proptest::option::of(any::<u64>()),
        proptest::option::of(any::<u64>()),
    );
    let published_ones = (prop::collection::vec(message, 0..5), any::<u64>(), 0..1_u64 << 61).prop_map(
        |(messages, topic, first)| {
            let each = messages.iter().map(|(payload, extras, content, weight, origin)| {
                let extras = extras.as_ref().map(extras_of);
                let has_id = extras.as_ref().is_some_and(|extras| extras.idempotency_id.is_some());
                let weight = weight.unwrap_or(payload.len() as u64);
                let origin = origin.map(|topic| (topic, seq(topic / 2)));
                let envelope =
                    Envelope { weight, content: if has_id { *content } else { 0 }, origin, payload };
                (envelope, extras)
            });
            let each: Vec<_> = each.collect();
            let bytes = published(topic, first, &each);
            match records(&bytes).next() {
                Some(Ok(Record::Published { messages, .. })) => {
                    let empty = |extras: Option<Extras>| extras.filter(|e| e.is_said());
                    let read =
                        messages.iter().map(|(envelope, extras)| (envelope, extras.map(|extras| *extras)));
                    assert!(
                        read.zip(&each).all(|(read, (envelope, extras))| same(
                            &read,
                            &(*envelope, empty(extras.clone()))
                        ))
                    );
                    assert_eq!(messages.len(), each.len() as u64);
                }
                other => panic!("{other:?}"),
            }
            bytes
        },
    );
    let range = (0..1_u64 << 60, 1..1_u64 << 60, 0..8_u8);
    let lists =
        (prop::collection::vec(range, 0..6), any::<u64>(), any::<u64>()).prop_map(|(ranges, topic, book)| {
            let settled = ranges.iter().map(|&(from, len, code)| SettledRange {
                from: seq(from),
                to: seq(from + len),
                outcome: OutcomeCode(code),
            });
            let settled: Vec<_> = settled.collect();
            let mut bytes = encoded(&Record::Settled { topic, book, ranges: List::Items(&settled) });
            let attempts: Vec<_> = ranges
                .iter()
                .map(|&(from, len, _)| AttemptRange {
                    from: seq(from),
                    to: seq(from + len),
                    attempts: len as u32,
                })
                .collect();
            Record::Attempts { topic, book, ranges: List::Items(&attempts) }.encode(&mut bytes);
            bytes
        });
    prop_oneof![published_ones, lists]
}

impl Extras {
    fn is_said(&self) -> bool {
        !self.attributes.is_empty()
            || self.ordering_key.is_some()
            || self.idempotency_id.is_some()
            || self.is_timed()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn a_unit_comes_back_as_it_went_and_damage_is_an_error_or_other_records(
        unit in prop::collection::vec(prop_oneof![of_topics(), of_books(), of_messages()], 1..4),
    ) {
        let bytes = unit.concat();
        let read: Vec<_> = records(&bytes).collect::<Result<_, _>>().expect("what was written is read");
        let mut again = Vec::new();
        read.iter().for_each(|record| record.encode(&mut again));
        prop_assert_eq!(&again, &bytes, "{:?}", read);
        // What is left of a record that was cut is none.
        let ends: Vec<_> = read.iter().scan(0, |end, record| { *end += encoded(record).len(); Some(*end) }).collect();
        for cut in 0..bytes.len() {
            let whole = ends.iter().filter(|end| **end <= cut).count();
            let left: Vec<_> = records(&bytes[..cut]).collect();
            prop_assert!(left.iter().take(whole).zip(&read).all(|(left, read)| left.as_ref() == Ok(read)));
            let is_between = cut == 0 || ends.contains(&cut);
            prop_assert_eq!(left.iter().skip(whole).map(Result::is_err).collect::<Vec<_>>(), vec![true; usize::from(!is_between)]);
        }
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            for record in records(&flipped).filter_map(Result::ok) {
                let mut out = Vec::new();
                record.encode(&mut out);
                prop_assert!(out.len() <= flipped.len(), "nothing is made up: {record:?}");
            }
        }
    }

    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), kinds in prop::collection::vec(0x01..0x35_u8, 1..4)) {
        for kind in kinds {
            let unit = [&[kind, bytes.len() as u8, 0, 0][..], &bytes].concat();
            let _ = records(&unit).count();
            let _ = records(&bytes).count();
        }
    }
}
