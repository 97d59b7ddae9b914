//! The guide's page on the format, put to the test: a reader that was written from it alone lists what a directory holds.
//!
//! The crate's public API makes the directories. Nothing else of it is used: not a constant, not a checksum.

mod archive;
mod reader;
mod records;
mod support;

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use bytes::Bytes;
use eventflow::{Broker, DeadLetter, Durability, Message, OpenError, Retention};

use reader::{Crc, Directory};
use support::{Dir, flip};

type Listing = BTreeMap<(String, u64), Vec<u8>>;

/// Two topics with messages of every form, one that is deleted, and a dead letter.
fn publish_some(broker: &Broker, round: u64, listing: &mut Listing) {
    let orders = broker.topic::<String>("orders").retention(Retention::forever()).open().unwrap();
    let raw = broker.topic::<Bytes>("raw/bytes").retention(Retention::forever()).open().unwrap();
    let dead = broker.topic::<String>("dead").retention(Retention::forever()).open().unwrap();
    let rule = DeadLetter::to(&dead).after(1);
    let billing =
        orders.subscription("billing").dead_letter(rule).ordered().filter("attributes:kind").open().unwrap();
    let mut said = |topic: &str, sequence: u64, payload: &[u8]| {
        assert_eq!(
            listing.insert((topic.to_owned(), sequence), payload.to_vec()),
            None,
            "a sequence is given once"
        );
    };
    for n in 0..20 {
        let text = format!("order {round}.{n}");
        let mut message = Message::new(text.clone());
        if n % 2 == 0 {
            message = message
                .attribute("kind", "new")
                .attribute("länge", "größer")
                .ordering_key(format!("customer {n}"));
        }
        if n % 3 == 0 {
            message = message.idempotency_id(format!("{round}.{n}"));
        }
        if n % 5 == 0 {
            message =
                message.deliver_after(Duration::from_secs(70)).expires_in(Duration::from_millis(7_654_321));
        }
        said("orders", orders.publish(message).unwrap().id.sequence(), text.as_bytes());
    }
    let batch: Vec<_> = (0..300_u64).map(|n| Bytes::from(vec![n as u8; n as usize])).collect();
    for (receipt, payload) in raw.publish_all(batch.clone()).unwrap().into_iter().zip(&batch) {
        said("raw/bytes", receipt.id.sequence(), payload);
    }
    let delivery = billing.try_recv().unwrap();
    let rejected = String::clone(&delivery);
    delivery.reject("no such customer").unwrap();
    said("dead", round + 1, rejected.as_bytes());
    let short = broker.topic::<String>("short").open().unwrap();
    let _kept_for_it = short.subscription("s").open().unwrap();
    short.publish("gone with its topic").unwrap();
    broker.delete_topic("short").unwrap();
}

#[test]
fn a_reader_written_from_the_guide_lists_what_was_published() {
    let dir = Dir::new();
    let mut expected = Listing::new();
    for (round, durability) in (0..).zip([Durability::Always, Durability::Os, Durability::Always]) {
        let broker = dir.broker(durability);
        publish_some(&broker, round, &mut expected);
        // Every end there is: in good order, and not.
        if round == 1 {
            broker.shutdown(Duration::ZERO).unwrap();
        }
        drop(broker);
        let found = dir.list().expect("nothing is damaged");
        assert_eq!(found.listing(), expected, "round {round}");
        assert!(found.units > 20, "the stream was read");
    }
    assert!(dir.last_number() >= 3, "each opening begins a segment");
}

#[test]
fn images_and_files_that_are_used_again_are_read_too() {
    let dir = Dir::new();
    let mut expected = Listing::new();
    let payload = |n: u64| Bytes::from([&n.to_le_bytes()[..], &[n as u8; 60_000]].concat());
    for round in 0..2 {
        let broker = dir.broker(Durability::Os);
        publish_some(&broker, round, &mut expected);
        let large = broker.topic::<Bytes>("large").retention(Retention::forever()).open().unwrap();
        for n in 0..450 {
            let receipt = large.publish(payload(n)).unwrap();
            expected.insert(("large".to_owned(), receipt.id.sequence()), payload(n).to_vec());
        }
        drop((large, broker));
        let found = dir.list().expect("nothing is damaged");
        assert!(found.listing() == expected, "round {round}");
        assert!(found.checkpoint.is_some(), "more than a segment was written");
    }
    let directory = Directory { crc: Crc::new(), path: dir.0.clone() };
    assert_eq!(directory.numbers("checkpoint-").len(), 2);
    assert!(directory.numbers("segment-")[0] > 1, "the first segments were let go");
}

/// A topic that keeps much, of which much is settled later: files that grow, that go, and that are written anew.
#[test]
fn topics_files_of_their_own_are_read_too() {
    let dir = Dir::new();
    let payload = |n: u64| Bytes::from([&n.to_le_bytes()[..], &[n as u8; 9_000]].concat());
    let mut expected = BTreeMap::new();
    let mut archived = 0;
    for round in 0..4_u64 {
        let broker = dir.broker(Durability::Os);
        let topic = broker.topic::<Bytes>("t").open().unwrap();
        let reader = topic.subscription("reader").max_outstanding(100_000).open().unwrap();
        for n in round * 1_000..(round + 1) * 1_000 {
            let receipt = topic.publish(payload(n)).unwrap();
            expected.insert(receipt.id.sequence(), n);
        }
        // Few of the older ones stay.
        while let Ok(delivery) = reader.try_recv() {
            let sequence = delivery.id().sequence();
            if sequence % 5 != 0 && sequence + 1_000 < expected.len() as u64 {
                delivery.ack().unwrap();
                expected.remove(&sequence);
            } else {
                std::mem::forget(delivery);
            }
        }
        let bulk = broker.topic::<Bytes>("bulk").open().unwrap();
        let drained = bulk.subscription("drained").open().unwrap();
        for _ in 0..4_000 {
            bulk.publish(payload(0)).unwrap();
            drained.recv().unwrap().ack().unwrap();
        }
        drop((topic, reader, bulk, drained));
        broker.shutdown(Duration::ZERO).unwrap();
        let found = dir.list().expect("nothing is damaged");
        let listing = found.listing();
        for (&sequence, &n) in &expected {
            assert!(
                listing.get(&("t".to_owned(), sequence)) == Some(&payload(n).to_vec()),
                "round {round}: {sequence}"
            );
        }
        archived = found.archived;
    }
    assert!(archived > 500, "{archived} messages lie in files of the topic's own");
    // A bit of one of them is damage.
    let folder = dir.0.join("topic-0000000000000001");
    let file = fs::read_dir(folder).unwrap().next().unwrap().unwrap().path();
    flip(&file, 5_000);
    assert!(dir.list().is_err());
    let opened = Broker::open(&dir.0);
    assert!(
        matches!(&opened, Err(OpenError::Damaged { file, .. }) if file.starts_with("topic-")),
        "{opened:?}"
    );
}

#[test]
fn the_stream_ends_where_the_guide_says() {
    let dir = Dir::new();
    let broker = dir.broker(Durability::Os);
    let topic = broker.topic::<String>("t").retention(Retention::forever()).open().unwrap();
    for n in 0..10 {
        topic.publish(format!("message {n}")).unwrap();
    }
    // As a crash of the process leaves it: nothing was synced since the topic was made.
    let torn = dir.copy();
    broker.shutdown(Duration::ZERO).unwrap();
    drop((topic, broker));

    let (path, at) = torn.last_byte();
    flip(&path, at);
    let found = torn.list().expect("what was not synced is cut off").listing();
    let payloads = || (0..9).map(|n| format!("message {n}").into_bytes());
    assert!(found.values().cloned().eq(payloads()), "all but the last, whose frame is bad");
    let units = dir_units(&torn);
    let broker = torn.broker(Durability::Os);
    assert_eq!(broker.recovery().replayed, units, "the broker sees it so too");
    drop(broker);

    // The same damage after a clean end is damage: the watermark says that all was synced.
    let (path, at) = dir.last_byte();
    flip(&path, at);
    assert!(dir.list().is_err());
    let opened = Broker::open(&dir.0);
    assert!(matches!(opened, Err(OpenError::Damaged { .. })), "{opened:?}");
}

/// Puts a frame of one unit, a record that may be passed over, where the stream of the last segment ends; it says that this frame was before it.
fn forge(dir: &Dir, previous: impl Fn(u32) -> u32) {
    let directory = Directory { crc: Crc::new(), path: dir.0.clone() };
    let name = format!("segment-{:016x}", dir.last_number());
    let file = directory.open(&name, 3).expect("its header is good");
    let (mut offset, mut last) = (8192, None);
    while let Some(frame) = directory.frame(&file, offset) {
        (offset, last) = (offset + frame.len(), Some(frame));
    }
    let last = last.expect("there are frames");
    let body = [&8_u32.to_le_bytes()[..], &[0xC5, 4, 0, 0, 1, 2, 3, 4]].concat();
    let mut bytes = vec![0; 40];
    bytes[4..8].copy_from_slice(&(body.len() as u32).to_le_bytes());
    bytes[8..12].copy_from_slice(&directory.crc.of(&[&body]).to_le_bytes());
    bytes[12..16].copy_from_slice(&previous(last.crc).to_le_bytes());
    bytes[16..24].copy_from_slice(&(last.base + last.count).to_le_bytes());
    bytes[32..36].copy_from_slice(&1_u32.to_le_bytes());
    bytes[36] = 1;
    let seed = [file.header.salt.to_le_bytes(), (offset as u64).to_le_bytes()];
    let crc = directory.crc.of(&[&seed[0], &seed[1], &bytes[4..]]);
    bytes[..4].copy_from_slice(&crc.to_le_bytes());
    bytes.extend_from_slice(&body);
    let mut whole = file.bytes;
    whole[offset..offset + bytes.len()].copy_from_slice(&bytes);
    fs::write(dir.0.join(name), whole).expect("it is written");
}

#[test]
fn a_frame_counts_if_it_names_the_one_before_it_and_else_not() {
    let dir = Dir::new();
    let broker = dir.broker(Durability::Os);
    let topic = broker.topic::<String>("t").retention(Retention::forever()).open().unwrap();
    topic.publish("message").unwrap();
    let (right, wrong) = (dir.copy(), dir.copy());
    let units = dir_units(&dir);
    forge(&right, |crc| crc);
    forge(&wrong, |crc| crc ^ 1);
    for (dir, expected) in [(&right, units + 1), (&wrong, units)] {
        assert_eq!(dir_units(dir), expected);
        assert_eq!(dir.broker(Durability::Os).recovery().replayed, expected, "the broker sees it so too");
    }
}

#[test]
fn a_segment_that_recovery_has_written_again_does_not_count() {
    let dir = Dir::new();
    let publish = |broker: &Broker, text: &str| {
        let topic = broker.topic::<String>("t").retention(Retention::forever()).open().unwrap();
        topic.publish(text.to_owned()).unwrap();
    };
    let broker = dir.broker(Durability::Always);
    publish(&broker, "synced");
    broker.shutdown(Duration::ZERO).unwrap();
    let broker = dir.broker(Durability::Os);
    // The first says ahead what the next ones are given.
    publish(&broker, "synced first");
    publish(&broker, "torn");
    let crashed = dir.copy();
    drop(broker);
    let (stale, at) = crashed.last_byte();
    let before = fs::read(&stale).expect("it is read");
    flip(&stale, at);
    let broker = crashed.broker(Durability::Os);
    publish(&broker, "instead");
    drop(broker);
    // As if the crash had come before it was removed.
    fs::write(&stale, before).expect("it is written");
    let payloads = |dir: &Dir| dir.list().map(|found| found.listing().into_values().collect::<Vec<_>>());
    let expected = [&b"synced"[..], b"synced first", b"instead"].map(<[u8]>::to_vec);
    assert_eq!(payloads(&crashed), Ok(expected.to_vec()));
    drop(crashed.broker(Durability::Os));
    assert_eq!(payloads(&crashed), Ok(expected.to_vec()), "the broker sees it so too");
}

fn dir_units(dir: &Dir) -> u64 {
    dir.list().expect("nothing is damaged").units
}

#[test]
fn the_checksum_is_the_one_that_the_guide_names() {
    assert_eq!(Crc::new().of(&[b"1234", b"56789"]), 0xE306_9283);
}
