//! The hot roads, one at a time and in one thread, for `scripts/count-instructions`: what runs within `measured` is counted.
//!
//! ```text
//! counts                  every road once, short, for the checks alone
//! counts list             their names
//! counts ROAD MESSAGES    this road
//! ```
//! Instructions say less than time, but are nearly the same in every run: a change that adds some is seen in review.

use std::hint::black_box;

use eventflow::{Broker, Delivery, Subscription, Topic};

const BATCH_LEN: u64 = 64;

type Road = (&'static str, fn(u64));

/// Each prepares what it needs, and does its work within `measured`, for as many messages as are asked for.
const ROADS: [Road; 8] = [
    ("publish", publish),
    ("recv", recv),
    ("ack", ack),
    ("recv-ack", recv_ack),
    ("publish-recv-ack", publish_recv_ack),
    ("publish_all-64", publish_all),
    ("recv_batch-ack-64", recv_batch_ack),
    ("transaction", transaction),
];

fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        [] => ROADS.iter().for_each(|(name, road)| {
            road(4 * BATCH_LEN);
            println!("{name}: ok");
        }),
        ["list"] => ROADS.iter().for_each(|(name, _)| println!("{name}")),
        [name, messages] => {
            let road = ROADS.iter().find(|(known, _)| *known == name);
            let (_, road) = road.unwrap_or_else(|| panic!("no road is called {name}"));
            road(messages.parse().expect("a number of messages"));
        }
        _ => panic!("usage: counts [list | ROAD MESSAGES]"),
    }
}

/// The counter is on from here to the end of it: its name is what the counter knows.
#[inline(never)]
fn measured(work: impl FnOnce()) {
    work();
}

struct Scene {
    broker: Broker,
    topic: Topic<u64>,
    subscription: Subscription<u64>,
}

/// A topic with one subscription that keeps whatever is published, and in which `waiting` messages are already.
fn scene(waiting: u64) -> Scene {
    let broker = Broker::in_memory();
    let topic = broker.topic::<u64>("counts").create().expect("a new topic");
    let subscription = topic.subscription("only").max_outstanding(usize::MAX);
    let subscription = subscription.create().expect("a new subscription");
    topic.publish_all(0..waiting).expect("the topic has no limit");
    // The first lease starts the broker's timer, which is not what is to be counted.
    topic.publish(0).expect("the topic has no limit");
    let first = subscription.recv().expect("a message waits");
    first.ack().expect("the lease is ours");
    Scene { broker, topic, subscription }
}

fn lease(scene: &Scene, messages: u64) -> Vec<Delivery<u64>> {
    (0..messages).map(|_| scene.subscription.recv().expect("a message waits")).collect()
}

fn publish(messages: u64) {
    let scene = scene(0);
    measured(|| {
        for number in 0..messages {
            black_box(scene.topic.publish(black_box(number)).expect("the topic has no limit"));
        }
    });
    assert_eq!(scene.subscription.stats().backlog, messages);
}

fn recv(messages: u64) {
    let scene = scene(messages);
    let mut leases = Vec::with_capacity(messages as usize);
    measured(|| {
        for _ in 0..messages {
            leases.push(scene.subscription.recv().expect("a message waits"));
        }
    });
    assert_eq!(scene.subscription.stats().outstanding, messages);
}

fn ack(messages: u64) {
    let scene = scene(messages);
    let leases = lease(&scene, messages);
    measured(|| {
        for delivery in leases {
            delivery.ack().expect("the lease is ours");
        }
    });
    assert_eq!(scene.subscription.stats().backlog, 0);
}

fn recv_ack(messages: u64) {
    let scene = scene(messages);
    measured(|| {
        for _ in 0..messages {
            let delivery = scene.subscription.recv().expect("a message waits");
            black_box(*delivery);
            delivery.ack().expect("the lease is ours");
        }
    });
    assert_eq!(scene.subscription.stats().backlog, 0);
}

fn publish_recv_ack(messages: u64) {
    let scene = scene(0);
    measured(|| {
        for number in 0..messages {
            scene.topic.publish(black_box(number)).expect("the topic has no limit");
            let delivery = scene.subscription.recv().expect("a message waits");
            black_box(*delivery);
            delivery.ack().expect("the lease is ours");
        }
    });
    assert_eq!(scene.subscription.stats().acked, messages + 1);
}

fn publish_all(messages: u64) {
    let scene = scene(0);
    measured(|| {
        for from in (0..messages).step_by(BATCH_LEN as usize) {
            let numbers = from..messages.min(from + BATCH_LEN);
            black_box(scene.topic.publish_all(numbers.map(black_box)).expect("the topic has no limit"));
        }
    });
    assert_eq!(scene.subscription.stats().backlog, messages);
}

fn recv_batch_ack(messages: u64) {
    let scene = scene(messages);
    measured(|| {
        let mut seen = 0;
        while seen < messages {
            let batch = scene.subscription.recv_batch(BATCH_LEN as usize).expect("a message waits");
            batch.iter().for_each(|message| _ = black_box(*message));
            seen += batch.len() as u64;
            batch.ack().expect("the leases are ours");
        }
    });
    assert_eq!(scene.subscription.stats().backlog, 0);
}

/// One ack and one publish in each.
fn transaction(messages: u64) {
    let scene = scene(messages);
    let results = scene.broker.topic::<u64>("results").create().expect("a new topic");
    let kept = results.subscription("only").create().expect("a new subscription");
    let leases = lease(&scene, messages);
    measured(|| {
        for delivery in leases {
            let mut transaction = scene.broker.transaction();
            transaction.publish(&results, *delivery);
            transaction.ack(delivery);
            black_box(transaction.commit().expect("the lease is ours"));
        }
    });
    assert_eq!((scene.subscription.stats().backlog, kept.stats().backlog), (0, messages));
}
