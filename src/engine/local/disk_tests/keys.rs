//! Several messages of one key whose acks or hand-outs wait for the disk at one time.

use std::sync::Arc;
use std::thread;

use super::asynchronous::Task;
use super::eventflow::{Broker, Capacity, DeliveryMode, ManualClock, Message, Overflow, Subscription, Topic};
use super::open;
use super::watched::Watched;

struct Desk {
    disk: Watched,
    _broker: Broker,
    topic: Topic<String>,
    s: Subscription<String>,
}

/// With two messages of one key, in a topic that holds no more.
fn desk(mode: DeliveryMode) -> Desk {
    let disk = Watched::new();
    let broker = open(Arc::new(disk.clone()), &ManualClock::new()).unwrap();
    let capacity = Capacity::messages(2).overflow(Overflow::DropOldest);
    let topic = broker.topic("t").capacity(capacity).open().unwrap();
    let s = topic.subscription("s").delivery(mode).ordered().open().unwrap();
    let desk = Desk { disk, _broker: broker, topic, s };
    for text in ["a", "b"] {
        desk.topic.publish(keyed(text)).unwrap();
    }
    desk
}

fn keyed(text: &str) -> Message<String> {
    Message::new(text.to_owned()).ordering_key("k")
}

/// All there is, acked one by one.
fn all_of(s: &Subscription<String>) -> Vec<String> {
    let deliveries = std::iter::from_fn(|| s.try_recv().ok());
    deliveries.map(|delivery| (delivery.clone(), delivery.ack().unwrap()).0).collect()
}

#[test]
fn p08_p15_what_is_being_acked_stays_so_when_the_first_of_its_key_is_dropped() {
    let Desk { disk, topic, s, .. } = &desk(DeliveryMode::ExactlyOnce);
    let batch = s.recv_batch(2).unwrap();
    let hold = disk.hold();
    let mut ack = Task::new(batch.ack_async());
    assert!(ack.poll().is_pending());
    let mut publish = Task::new(topic.publish_async(keyed("c")));
    assert!(publish.poll().is_pending());
    let early = s.try_recv().ok().map(|delivery| delivery.clone());
    assert_eq!(early, None, "it is being acked");
    drop(hold);
    ack.finish().unwrap();
    publish.finish_after_poll().unwrap();
    assert_eq!(all_of(s), ["c"]);
}

#[test]
fn p13_what_is_being_handed_out_at_most_once_stays_so_when_the_first_of_its_key_is_dropped() {
    let Desk { disk, topic, s, .. } = &desk(DeliveryMode::AtMostOnce);
    let hold = disk.hold();
    let receiver = thread::spawn({
        let s = s.clone();
        move || s.recv_batch(2).unwrap().iter().map(|event| event.to_string()).collect::<Vec<_>>()
    });
    hold.await_sync();
    let mut publish = Task::new(topic.publish_async(keyed("c")));
    assert!(publish.poll().is_pending());
    let mut next = Task::new(s.recv_async());
    assert!(next.poll().is_pending());
    drop(hold);
    let got = receiver.join().unwrap();
    assert!(got.ends_with(&["b".to_owned()]), "{got:?}");
    publish.finish_after_poll().unwrap();
    assert_eq!(*next.finish_after_poll().unwrap(), "c");
}

#[test]
fn p12_an_ack_that_waits_for_another_of_its_key_is_brought_to_its_end_though_nobody_waits_for_it() {
    let Desk { disk, topic, s, .. } = &desk(DeliveryMode::ExactlyOnce);
    topic.update().capacity(Capacity::unlimited()).apply().unwrap();
    topic.publish(keyed("c")).unwrap();
    let mut batch = s.recv_batch(2).unwrap();
    let [a, b] = [batch.pop(), batch.pop()].map(Option::unwrap);
    let hold = disk.hold();
    let (mut first, mut second) = (Task::new(a.ack_async()), Task::new(b.ack_async()));
    assert!(first.poll().is_pending() && second.poll().is_pending());
    drop(second);
    drop(hold);
    first.finish().unwrap();
    assert_eq!(*Task::new(s.recv_async()).finish_after_poll().unwrap(), "c");
}
