//! Many topics, many messages, many restarts, many threads.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use eventflow::{Broker, DeliveryMode, Durability, Message, Retention, Start, Subscription, Topic};

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
fn bytes_of(dir: &Dir) -> u64 {
    let files = std::fs::read_dir(dir.path()).unwrap();
    files.map(|file| file.unwrap().metadata().unwrap().len()).sum()
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
        let (said, there) = (broker.stats().disk_bytes, bytes_of(&dir));
        println!("round {round}: {} MiB, most {} MiB", there / MIB, most / MIB);
        assert!(said <= there && there - said < MIB, "round {round}: it says {said}, and {there} are there");
        dir = ended(ENDS[round % 3], dir, broker, (topic, reader, kept, keeper));
    }
    println!("{} MiB published, at most {} MiB on disk", published / 16, most / MIB);
    // Two checkpoints are kept, and the journal from the older one on.
    let bound = 2 * live + 4 * SEGMENT;
    assert!(most <= bound, "{} MiB on disk, and at most {} are to be", most / MIB, bound / MIB);

    let broker = dir.open();
    let kept = broker.topic::<Bytes>("kept").open().unwrap();
    let keeper = kept.subscription("keeper").open().unwrap();
    assert_eq!(drain(&keeper), (0..128).map(|n| blob(n, 64 << 10)).collect::<Vec<_>>());
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
