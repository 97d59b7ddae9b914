//! Many topics, many messages, many restarts, many threads.

use std::collections::BTreeSet;
use std::fs::DirEntry;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use eventflow::{
    Broker, DeliveryMode, Durability, Message, OnDamage, OpenError, Retention, Seek, Start, Subscription,
    Topic,
};

use crate::support::{Dir, ENDS, End, drain, end, ended, orders, over_restarts, send, take, watched};

const MIB: u64 = 1 << 20;
const SEGMENT: u64 = 16 * MIB;

#[test]
fn many_topics_come_again() {
    const TOPICS: usize = 40;
    over_restarts(
        |broker| broker.clone(),
        |broker, _| {
            for n in 0..TOPICS {
                let topic = broker.topic::<String>(&format!("topic-{n}")).open().unwrap();
                for book in ["a", "b"] {
                    topic.subscription(book).delivery(DeliveryMode::ExactlyOnce).open().unwrap();
                }
                topic.publish_all([format!("first of {n}"), format!("second of {n}")]).unwrap();
                take(&topic.subscription("a").open().unwrap()).ack().unwrap();
            }
            ((), ())
        },
        |broker, (), _, _| {
            assert_eq!(broker.topics().len(), TOPICS);
            for n in (0..TOPICS).rev() {
                let topic = broker.topic::<String>(&format!("topic-{n}")).open().unwrap();
                let left = |book| drain(&topic.subscription(book).open().unwrap());
                assert_eq!(left("a"), [format!("second of {n}")]);
                assert_eq!(left("b"), [format!("first of {n}"), format!("second of {n}")]);
            }
        },
    );
}

/// The bytes of message `n`: nothing that compresses, and no two alike.
fn blob(n: u64, len: usize) -> Bytes {
    let mut state = n.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    bytes.extend_from_slice(&n.to_be_bytes());
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_be_bytes());
    }
    Bytes::from(bytes)
}

fn number(blob: &Bytes) -> u64 {
    u64::from_be_bytes(blob[..8].try_into().unwrap())
}

/// What a directory takes, as the system sees it.
fn bytes_of(dir: &Path) -> u64 {
    let bytes_in = |entry: DirEntry| match entry.file_type().unwrap().is_dir() {
        true => bytes_of(&entry.path()),
        false => entry.metadata().unwrap().len(),
    };
    std::fs::read_dir(dir).unwrap().map(|entry| bytes_in(entry.unwrap())).sum()
}

/// How many topics have files of their own.
fn folders_of(dir: &Path) -> usize {
    let names = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name());
    names.filter(|name| name.to_string_lossy().starts_with("topic-")).count()
}

#[test]
fn p17_the_disk_is_let_go_of_over_many_checkpoints_and_restarts() {
    let mut dir = Dir::new();
    let mut published = 0;
    // What lives: 8 MiB that nobody settles, and what is under way.
    let live = 8 * MIB + 4 * MIB;
    let mut most = 0;
    for round in 0..6 {
        let broker = Broker::builder().dir(dir.path()).durability(Durability::Os).build().unwrap();
        let topic = broker.topic::<Bytes>("blobs").open().unwrap();
        let reader = topic.subscription("reader").delivery(DeliveryMode::ExactlyOnce).open().unwrap();
        let kept = broker.topic::<Bytes>("kept").open().unwrap();
        let keeper = kept.subscription("keeper").open().unwrap();
        if round == 0 {
            (0..128).for_each(|n| {
                send(&kept, blob(n, 64 << 10));
            });
        }
        assert_eq!(keeper.stats().backlog, 128, "round {round}");
        assert_eq!(reader.stats().backlog, 0, "round {round}");
        for _ in 0..15 {
            topic.publish_all((published..published + 64).map(|n| blob(n, 64 << 10))).unwrap();
            let batch = reader.recv_batch(64).unwrap();
            let numbers: Vec<_> = batch.iter().map(|message| number(message.event())).collect();
            assert_eq!(numbers, (published..published + 64).collect::<Vec<_>>());
            assert!(batch.iter().all(|message| *message.event() == blob(number(message.event()), 64 << 10)));
            batch.ack().unwrap();
            published += 64;
            most = most.max(broker.stats().disk_bytes);
        }
        let (said, there) = (broker.stats().disk_bytes, bytes_of(dir.path()));
        println!("round {round}: {} MiB, most {} MiB", there / MIB, most / MIB);
        assert!(said <= there && there - said < MIB, "round {round}: it says {said}, and {there} are there");
        dir = ended(ENDS[round % 3], dir, broker, (topic, reader, kept, keeper));
    }
    println!("{} MiB published, at most {} MiB on disk", published / 16, most / MIB);
    let bound = 2 * live + 2 * SEGMENT;
    assert!(most <= bound, "{} MiB on disk, and at most {} are to be", most / MIB, bound / MIB);

    let broker = dir.open();
    let kept = broker.topic::<Bytes>("kept").open().unwrap();
    let keeper = kept.subscription("keeper").open().unwrap();
    assert_eq!(drain(&keeper), (0..128).map(|n| blob(n, 64 << 10)).collect::<Vec<_>>());
    end(broker);
}

/// Publishes and settles this much, so that as many checkpoints are written.
fn stir(broker: &Broker, mebibytes: u64) {
    let bulk = broker.topic::<Bytes>("bulk").open().unwrap();
    let reader = bulk.subscription("reader").delivery(DeliveryMode::ExactlyOnce).open().unwrap();
    for n in 0..mebibytes * 8 {
        send(&bulk, blob(n, 128 << 10));
        take(&reader).ack().unwrap();
    }
}

#[test]
fn p17_what_a_topic_keeps_lies_in_files_of_its_own_that_go_with_what_it_keeps() {
    for how in ENDS {
        let mut dir = Dir::new();
        let payloads = |range: std::ops::Range<u64>| range.map(|n| blob(n, 10_000)).collect::<Vec<_>>();
        for round in 0..4_u64 {
            let broker = Broker::builder().dir(dir.path()).durability(Durability::Os).build().unwrap();
            let kept = broker.topic::<Bytes>("kept").open().unwrap();
            let keeper = kept.subscription("keeper").delivery(DeliveryMode::ExactlyOnce).open().unwrap();
            assert_eq!(keeper.stats().backlog, round * 1_000, "{how:?}, round {round}");
            kept.publish_all(payloads(round * 1_000..(round + 1) * 1_000)).unwrap();
            stir(&broker, 40);
            assert_eq!(folders_of(dir.path()), 1, "{how:?}, round {round}");
            dir = ended(how, dir, broker, (kept, keeper));
        }
        let (there, live) = (bytes_of(dir.path()), 4_000 * 10_000);
        println!("{how:?}: {} MiB with {} MiB live", there / MIB, live / MIB);
        assert!(there <= 2 * live + 2 * SEGMENT, "{how:?}: {there}");
        let broker = Broker::builder().dir(dir.path()).durability(Durability::Os).build().unwrap();
        let kept = broker.topic::<Bytes>("kept").open().unwrap();
        let keeper = kept.subscription("keeper").delivery(DeliveryMode::ExactlyOnce).open().unwrap();
        assert!(drain(&keeper) == payloads(0..4_000), "{how:?}");
        stir(&broker, 40);
        let there = bytes_of(dir.path());
        assert!(there <= 2 * SEGMENT, "{how:?}: {} MiB and nothing is live", there / MIB);
        kept.publish_all(payloads(0..1_000)).unwrap();
        stir(&broker, 40);
        assert_eq!(folders_of(dir.path()), 1, "{how:?}");
        broker.delete_topic("kept").unwrap();
        stir(&broker, 40);
        assert_eq!(folders_of(dir.path()), 0, "{how:?}: its folder goes with the topic");
        end(broker);
    }
}

/// Every tenth of 24 MiB stays, and so does its neighbourhood in memory.
#[test]
fn p17_what_all_have_settled_takes_no_room_beside_what_they_have_not_and_no_seek_brings_back_a_part_of_it() {
    for how in [End::Killed, End::Shutdown] {
        let dir = Dir::new();
        let broker = Broker::builder().dir(dir.path()).durability(Durability::Os).build().unwrap();
        let open = |broker: &Broker| {
            let topic = broker.topic::<Bytes>("sparse").open().unwrap();
            let reader = topic.subscription("reader").delivery(DeliveryMode::ExactlyOnce);
            (reader.max_outstanding(10_000).open().unwrap(), topic)
        };
        let (reader, topic) = open(&broker);
        let mut stuck = Vec::new();
        for n in 0..2_400 {
            send(&topic, blob(n, 10_000));
            let delivery = take(&reader);
            if n % 10 == 5 { stuck.push(delivery) } else { delivery.ack().unwrap() }
        }
        stir(&broker, 60);
        let (there, live) = (bytes_of(dir.path()), 240 * 10_000);
        println!("{how:?}: {} MiB with {} MiB live", there / MIB, live / MIB);
        assert!(there <= 2 * live + 2 * SEGMENT, "{how:?}: {} MiB", there / MIB);
        let late = topic.subscription("late").start(Start::Earliest).open().unwrap();
        reader.seek(Seek::Earliest).unwrap();
        let backlog = reader.stats().backlog;
        assert!((240..2_400).contains(&backlog), "{how:?}: {backlog}");
        assert_eq!(late.stats().backlog, backlog, "{how:?}");
        let dir = ended(how, dir, broker, (stuck, topic, reader, late));
        let broker = dir.open();
        let (reader, topic) = open(&broker);
        let late = topic.subscription("late").open().unwrap();
        for subscription in [reader, late] {
            assert_eq!(subscription.stats().backlog, backlog, "{how:?}");
            let found = drain(&subscription);
            assert_eq!(found.len() as u64, backlog, "{how:?}");
            let numbers: BTreeSet<_> = found.iter().map(number).collect();
            assert!((0..240).all(|n| numbers.contains(&(10 * n + 5))), "{how:?}");
        }
        end(broker);
    }
}

#[test]
fn p17_small_topics_and_queues_that_are_drained_have_no_files_of_their_own() {
    let dir = Dir::new();
    let broker = Broker::builder().dir(dir.path()).durability(Durability::Os).build().unwrap();
    for n in 0..20 {
        let small =
            broker.topic::<Bytes>(&format!("small-{n}")).retention(Retention::forever()).open().unwrap();
        small.publish_all((0..100).map(|n| blob(n, 1_000))).unwrap();
    }
    for _ in 0..10 {
        stir(&broker, 10);
        assert_eq!(folders_of(dir.path()), 0);
    }
    end(broker);
}

#[test]
fn damage_in_a_topic_s_own_files_is_refused_or_the_rest_is_served_and_whole_again_at_the_next_checkpoint() {
    let dir = Dir::new();
    let broker = Broker::builder().dir(dir.path()).durability(Durability::Os).build().unwrap();
    let topic = broker.topic::<Bytes>("kept").open().unwrap();
    let reader = topic.subscription("reader").open().unwrap();
    topic.publish_all((0..1_000).map(|n| blob(n, 10_000))).unwrap();
    stir(&broker, 40);
    let dir = ended(End::Shutdown, dir, broker, (topic, reader));
    let folder = dir.path().join("topic-0000000000000001");
    let name = std::fs::read_dir(&folder).unwrap().next().unwrap().unwrap().file_name();
    let path = folder.join(&name);
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle..middle + 50].fill(0x55);
    std::fs::write(&path, &bytes).unwrap();
    let named = format!("topic-0000000000000001/{}", name.to_string_lossy());
    for _ in 0..2 {
        match Broker::open(dir.path()) {
            Err(OpenError::Damaged { file, offset, len, .. }) => {
                assert_eq!(file, named);
                assert!((offset..offset + len).contains(&(middle as u64)), "{offset}, {len}");
            }
            other => panic!("{other:?}"),
        }
    }
    let broker = Broker::builder().dir(dir.path()).on_damage(OnDamage::Continue).build().unwrap();
    let report = broker.recovery();
    assert_eq!(report.damaged.len(), 1, "{report:?}");
    assert!(report.damaged[0].starts_with(&named) && report.damaged[0].contains("messages"), "{report:?}");
    assert!((1..100).contains(&report.lost), "{report:?}");
    let copies = std::fs::read_dir(dir.path().join("quarantine")).unwrap().count();
    assert_eq!(copies, 1);
    let topic = broker.topic::<Bytes>("kept").open().unwrap();
    let reader = topic.subscription("reader").open().unwrap();
    assert_eq!(reader.stats().backlog, 1_000 - report.lost);
    send(&topic, blob(1_000, 10_000));
    let dir = ended(End::Killed, dir, broker, (topic, reader));
    // That was enough for a checkpoint.
    let broker = dir.open();
    let topic = broker.topic::<Bytes>("kept").open().unwrap();
    let reader = topic.subscription("reader").open().unwrap();
    let found = drain(&reader);
    assert_eq!(found.len() as u64, 1_001 - report.lost);
    assert!(found.iter().all(|event| *event == blob(number(event), 10_000)));
    end(broker);
}

/// All kinds of things that a checkpoint holds, and then so much that it is read from one.
#[test]
fn what_a_checkpoint_holds_is_there_again() {
    for how in ENDS {
        let dir = Dir::new();
        let broker = Broker::builder().dir(dir.path()).durability(Durability::Os).build().unwrap();
        let open = |broker: &Broker| -> (Topic<String>, Subscription<String>, Subscription<String>) {
            let topic = broker.topic::<String>("orders").retention(Retention::forever()).open().unwrap();
            let book = |name| topic.subscription(name).delivery(DeliveryMode::ExactlyOnce);
            let holes = book("holes").open().unwrap();
            let keyed = book("keyed").ordered().filter_fn(|message| message.ordering_key().is_some());
            let keyed = keyed.open().unwrap();
            (topic, holes, keyed)
        };
        let (topic, holes, keyed) = open(&broker);
        topic.publish_all(orders(1..=2_000)).unwrap();
        let mut held: Vec<_> = std::iter::from_fn(|| holes.try_recv().ok()).collect();
        assert_eq!(held.len(), 1_000, "as many as may be leased at once");
        for n in (0..1_000).rev().step_by(2) {
            held.remove(n).ack().unwrap();
        }
        for n in 1..=10 {
            let message = Message::new(format!("keyed {n}")).ordering_key("a").attribute("n", n.to_string());
            send(&topic, message.idempotency_id(n.to_string()));
        }
        take(&keyed).ack().unwrap();
        keyed.pause().unwrap();
        // Four segments' worth, so that the checkpoints are of what is above.
        let bulk = broker.topic::<Bytes>("bulk").open().unwrap();
        let reader = bulk.subscription("reader").open().unwrap();
        for n in 0..64 {
            send(&bulk, blob(n, 1 << 20));
            take(&reader).ack().unwrap();
        }
        let dir = ended(how, dir, broker, (held, topic, holes, keyed, bulk, reader));
        let broker = dir.open();
        assert!(broker.recovery().replayed < 2_000, "{how:?}: {:?}", broker.recovery());
        let (topic, holes, keyed) = open(&broker);
        assert_eq!(holes.stats().backlog, 1_510, "{how:?}");
        assert_eq!(keyed.stats().backlog, 9, "{how:?}");
        assert!(keyed.try_recv().is_err(), "{how:?}: it is paused");
        keyed.resume().unwrap();
        assert_eq!(drain(&keyed), (2..=10).map(|n| format!("keyed {n}")).collect::<Vec<_>>(), "{how:?}");
        let again = Message::new("keyed 7".to_owned()).ordering_key("a").attribute("n", "7");
        let again = send(&topic, again.idempotency_id("7"));
        assert!(again.deduplicated, "{how:?}");
        assert_eq!(again.id.sequence(), 2_007, "{how:?}");
        let all = topic.subscription("all").start(Start::Earliest).open().unwrap();
        assert_eq!(drain(&all)[..2_000], orders(1..=2_000), "{how:?}");
        let bulk = broker.topic::<Bytes>("bulk").open().unwrap();
        let left = drain(&bulk.subscription("reader").open().unwrap());
        assert!(left.len() < 64 && (how == End::Killed || left.is_empty()), "{how:?}: {}", left.len());
    }
}

#[test]
fn a_message_larger_than_a_segment_comes_again() {
    over_restarts(
        |broker| {
            let topic = broker.topic::<Bytes>("blobs").open().unwrap();
            (topic.subscription("reader").open().unwrap(), topic)
        },
        |(_, topic), _| {
            // A batch is one unit, of whatever length.
            topic.publish_all((0..5).map(|n| blob(n, 4 << 20))).unwrap();
            send(topic, blob(5, 100));
            ((), ())
        },
        |(reader, _), (), _, _| {
            let lens = [4 << 20; 5].into_iter().chain([100]);
            let expected: Vec<_> = (0..).zip(lens).map(|(n, len)| blob(n, len)).collect();
            assert!(drain(reader) == expected);
        },
    );
}

#[test]
fn p15_eight_publishers_and_eight_subscribers_over_restarts() {
    const EACH: u64 = 150;
    watched(Duration::from_secs(300), || {
        let mut dir = Dir::new();
        let acked: Mutex<BTreeSet<u64>> = Mutex::default();
        let mut published = BTreeSet::new();
        for round in 0..6_u64 {
            let broker = Broker::builder().dir(dir.path()).durability(Durability::Os).build().unwrap();
            let topic = broker.topic::<Bytes>("blobs").open().unwrap();
            let mode = DeliveryMode::ExactlyOnce;
            let reader = topic.subscription("reader").delivery(mode).open().unwrap();
            let left = published.len() - acked.lock().unwrap().len();
            assert_eq!(reader.stats().backlog, left as u64, "round {round}");
            // Two of three are acked in each round.
            let to_ack = AtomicU64::new((left as u64 + 8 * EACH) * 2 / 3);
            thread::scope(|scope| {
                for publisher in 0..8 {
                    let topic = &topic;
                    scope.spawn(move || {
                        for n in 0..EACH {
                            let id = (round * 8 + publisher) * EACH + n;
                            send(topic, Message::new(blob(id, 1_024)).idempotency_id(id.to_string()));
                        }
                    });
                }
                for _ in 0..8 {
                    let (reader, acked, to_ack) = (&reader, &acked, &to_ack);
                    scope.spawn(move || {
                        while to_ack
                            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1))
                            .is_ok()
                        {
                            let delivery = reader.recv().unwrap();
                            let id = number(&delivery);
                            assert_eq!(*delivery, blob(id, 1_024));
                            delivery.ack().unwrap();
                            assert!(acked.lock().unwrap().insert(id), "{id} came again after its ack");
                        }
                    });
                }
            });
            published.extend(round * 8 * EACH..(round + 1) * 8 * EACH);
            dir = ended(ENDS[round as usize % 3], dir, broker, (topic, reader));
        }
        let broker = dir.open();
        let topic = broker.topic::<Bytes>("blobs").open().unwrap();
        let left = drain(&topic.subscription("reader").open().unwrap());
        let left: BTreeSet<_> = left.iter().map(number).collect();
        let acked = acked.into_inner().unwrap();
        assert_eq!(left, published.difference(&acked).copied().collect::<BTreeSet<_>>());
    });
}
