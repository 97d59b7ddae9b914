//! User code inside the broker: P21. Every call of the API inside every callback, and a panic in each.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use eventflow::{
    Capacity, DeadLetter, DedupWindow, ManualClock, Message, Overflow, Retention, Seek, Subscription,
    SubscriptionBuilder, Topic, TopicBuilder,
};

use crate::support::{Broker, Drops, SECOND, ask, drain, drain_with, manual, take, within};

/// What the scenes publish. The drop of one with a hook is a callback.
struct Event {
    hook: Option<Arc<Hook>>,
}

const PLAIN: Event = Event { hook: None };

impl Drop for Event {
    fn drop(&mut self) {
        if let Some(hook) = &self.hook {
            hook.run();
        }
    }
}

/// The handles that a callback gets hold of.
#[derive(Clone)]
struct Kit {
    broker: Broker,
    clock: ManualClock,
    topic: Topic<Event>,
    sub: Subscription<Event>,
    overflow: Overflow,
}

/// Does `act` inside the first callback that finds the handles there. Once: a filter that seeks back each time would never end.
struct Hook {
    act: fn(&Kit),
    kit: OnceLock<Kit>,
    entered: AtomicBool,
    done: AtomicBool,
}

impl Hook {
    fn run(&self) {
        let Some(kit) = self.kit.get() else { return };
        if !self.entered.swap(true, Ordering::SeqCst) {
            (self.act)(kit);
            self.done.store(true, Ordering::SeqCst);
        }
    }
}

impl Kit {
    /// Publishes without ever waiting for space.
    fn send(&self, message: impl Into<Message<Event>>) {
        let outcome = match self.overflow {
            Overflow::Block => self.topic.try_publish(message),
            _ => self.topic.publish(message),
        };
        drop(outcome);
    }

    fn settle_all(&self) {
        while let Ok(delivery) = self.sub.try_recv() {
            let _ = delivery.ack();
        }
    }
}

/// A topic of capacity 1 and its subscription; from here on the hook acts.
fn raise(
    hook: &Arc<Hook>,
    overflow: Overflow,
    topic_options: impl FnOnce(TopicBuilder<Event>) -> TopicBuilder<Event>,
    options: impl FnOnce(SubscriptionBuilder<Event>) -> SubscriptionBuilder<Event>,
) -> Kit {
    let (broker, clock) = manual();
    let capacity = Capacity::messages(1).overflow(overflow);
    let topic = topic_options(broker.topic::<Event>("topic").capacity(capacity)).create().unwrap();
    let sub = options(topic.subscription("sub")).create().unwrap();
    let kit = Kit { broker, clock, topic, sub, overflow };
    assert!(hook.kit.set(kit.clone()).is_ok());
    kit
}

/// A place where user code runs: builds what it needs, and makes it run.
type Scene = fn(&Arc<Hook>, Overflow);

fn hooked(hook: &Arc<Hook>) -> Event {
    Event { hook: Some(hook.clone()) }
}

fn in_a_filter(hook: &Arc<Hook>, overflow: Overflow) {
    let inside = hook.clone();
    let filter = move |_: eventflow::MessageRef<'_, Event>| {
        inside.run();
        true
    };
    let kit = raise(hook, overflow, |topic| topic, |sub| sub.filter_fn(filter));
    kit.send(PLAIN);
    drop(kit.sub.try_recv());
    drop(kit.sub.try_recv_batch(3));
}

fn in_weigh(hook: &Arc<Hook>, overflow: Overflow) {
    let inside = hook.clone();
    let weigh = move |_: &Event| {
        inside.run();
        1
    };
    raise(hook, overflow, |topic| topic.weigh(weigh), |sub| sub).send(PLAIN);
}

fn in_fingerprint(hook: &Arc<Hook>, overflow: Overflow) {
    let inside = hook.clone();
    let fingerprint = move |_: &Event| {
        inside.run();
        7
    };
    let kit = raise(hook, overflow, |topic| topic.fingerprint(fingerprint), |sub| sub);
    kit.send(Message::new(PLAIN).idempotency_id("id"));
    kit.send(Message::new(PLAIN).idempotency_id("id"));
}

fn in_the_iterator_of_a_batch(hook: &Arc<Hook>, overflow: Overflow) {
    let kit = raise(hook, overflow, |topic| topic, |sub| sub);
    let one = std::iter::once_with(|| {
        hook.run();
        PLAIN
    });
    drop(kit.topic.publish_all(one));
}

fn in_the_drop_of_an_acked_event(hook: &Arc<Hook>, overflow: Overflow) {
    let kit = raise(hook, overflow, |topic| topic, |sub| sub);
    kit.send(hooked(hook));
    kit.settle_all();
}

fn in_the_drop_of_an_event_for_nobody(hook: &Arc<Hook>, overflow: Overflow) {
    let kit = raise(hook, overflow, |topic| topic, |sub| sub);
    kit.broker.topic::<Event>("void").create().unwrap().publish(hooked(hook)).unwrap();
}

fn in_the_drop_of_an_event_that_overflowed(hook: &Arc<Hook>, overflow: Overflow) {
    let kit = raise(hook, overflow, |topic| topic, |sub| sub);
    kit.send(hooked(hook));
    kit.send(PLAIN);
    kit.settle_all();
}

fn in_the_drop_of_an_event_by_seek(hook: &Arc<Hook>, overflow: Overflow) {
    let kit = raise(hook, overflow, |topic| topic, |sub| sub);
    kit.send(hooked(hook));
    kit.sub.seek(Seek::Latest).unwrap();
}

fn in_the_drop_of_an_event_by_unsubscribing(hook: &Arc<Hook>, overflow: Overflow) {
    let kit = raise(hook, overflow, |topic| topic, |sub| sub);
    kit.send(hooked(hook));
    kit.sub.delete().unwrap();
}

fn in_the_drop_of_an_event_by_deleting_its_topic(hook: &Arc<Hook>, overflow: Overflow) {
    let kit = raise(hook, overflow, |topic| topic.retention(Retention::forever()), |sub| sub);
    kit.send(hooked(hook));
    kit.broker.delete_topic("topic").unwrap();
}

fn in_the_drop_of_an_event_that_grew_too_old(hook: &Arc<Hook>, overflow: Overflow) {
    let retention = Retention::for_duration(SECOND);
    let kit = raise(hook, overflow, |topic| topic.retention(retention), |sub| sub.expire_after(SECOND));
    kit.send(hooked(hook));
    kit.clock.advance(SECOND);
}

fn in_the_drop_of_an_event_with_its_last_delivery(hook: &Arc<Hook>, overflow: Overflow) {
    let kit = raise(hook, overflow, |topic| topic, |sub| sub);
    kit.send(hooked(hook));
    let held = take(&kit.sub);
    kit.sub.seek(Seek::Latest).unwrap();
    drop(held);
}

fn in_the_drop_of_a_filter(hook: &Arc<Hook>, overflow: Overflow) {
    let kit = raise(hook, overflow, |topic| topic, |sub| sub);
    let captured = hooked(hook);
    let filter = move |_: eventflow::MessageRef<'_, Event>| captured.hook.is_some();
    let filtered = kit.topic.subscription("filtered").filter_fn(filter).create().unwrap();
    filtered.delete().unwrap();
}

#[cfg(feature = "async")]
mod wakers {
    use std::task::{Context, Wake, Waker};

    use super::*;

    struct Woken(Arc<Hook>);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.run();
        }
    }

    pub(super) fn in_a_waker(hook: &Arc<Hook>, overflow: Overflow) {
        let kit = raise(hook, overflow, |topic| topic, |sub| sub);
        let mut waiting = Box::pin(kit.sub.recv_async());
        let waker = Waker::from(Arc::new(Woken(hook.clone())));
        assert!(waiting.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        kit.send(PLAIN);
    }

    /// A waker is user code in its drop too: it may be the last owner of anything.
    struct Dropped(#[expect(dead_code, reason = "for its drop")] Event);

    impl Wake for Dropped {
        fn wake(self: Arc<Self>) {}
    }

    pub(super) fn in_the_drop_of_a_waker(hook: &Arc<Hook>, overflow: Overflow) {
        let kit = raise(hook, overflow, |topic| topic, |sub| sub);
        let mut waiting = Box::pin(kit.sub.recv_async());
        let waker = Waker::from(Arc::new(Dropped(hooked(hook))));
        assert!(waiting.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        drop(waker);
        // Either the waiter is forgotten here, or its waker is replaced.
        let other = Waker::noop();
        drop(waiting.as_mut().poll(&mut Context::from_waker(other)));
        drop(waiting);
    }
}

const SCENES: &[(&str, Scene)] = &[
    ("a filter", in_a_filter),
    ("weigh", in_weigh),
    ("a fingerprint", in_fingerprint),
    ("the iterator of a batch", in_the_iterator_of_a_batch),
    ("the drop of an acked event", in_the_drop_of_an_acked_event),
    ("the drop of an event for nobody", in_the_drop_of_an_event_for_nobody),
    ("the drop of an event that overflowed", in_the_drop_of_an_event_that_overflowed),
    ("the drop of an event by seek", in_the_drop_of_an_event_by_seek),
    ("the drop of an event by unsubscribing", in_the_drop_of_an_event_by_unsubscribing),
    ("the drop of an event by deleting its topic", in_the_drop_of_an_event_by_deleting_its_topic),
    ("the drop of an event that grew too old", in_the_drop_of_an_event_that_grew_too_old),
    ("the drop of an event with its last delivery", in_the_drop_of_an_event_with_its_last_delivery),
    ("the drop of a filter", in_the_drop_of_a_filter),
    #[cfg(feature = "async")]
    ("a waker", wakers::in_a_waker),
    #[cfg(feature = "async")]
    ("the drop of a waker", wakers::in_the_drop_of_a_waker),
];

/// Does `act` in every scene with every overflow, each under a watchdog; `after` looks at what is left.
fn everywhere(act: fn(&Kit), after: fn(&Kit)) {
    for (name, scene) in SCENES {
        for overflow in [Overflow::Block, Overflow::Reject, Overflow::DropOldest] {
            let hook = Arc::new(Hook {
                act,
                kit: OnceLock::new(),
                entered: AtomicBool::new(false),
                done: AtomicBool::new(false),
            });
            eprintln!("in {name}, {overflow:?}");
            let answer = ask({
                let hook = hook.clone();
                move || {
                    scene(&hook, overflow);
                    after(hook.kit.get().unwrap());
                }
            });
            answer.get_within(30);
            assert!(hook.done.load(Ordering::SeqCst), "nothing ran in {name}");
        }
    }
}

fn every_call(kit: &Kit) {
    calls_of_the_broker(kit);
    calls_of_deliveries(kit);
    calls_of_the_topic(kit);
    calls_of_the_subscription(kit);
    kit.settle_all();
}

fn calls_of_the_broker(kit: &Kit) {
    let broker = kit.broker.clone();
    let inner = broker.topic::<String>("inner").create().unwrap();
    let sub = inner.subscription("sub").ordered().filter("NOT attributes:x").create().unwrap();
    inner.publish_all(["one", "two"]).unwrap();
    sub.snapshot("inner").unwrap();
    assert_eq!(drain(&sub), ["one", "two"]);
    sub.seek(Seek::Snapshot("inner".into())).unwrap();
    assert_eq!(drain(&sub), ["one", "two"]);
    assert!(broker.snapshots().contains(&"inner".to_owned()));
    assert!(broker.topics().contains(&"inner".to_owned()));
    broker.delete_snapshot("inner").unwrap();
    let _ = (broker.capabilities(), broker.stats(), format!("{broker:?}"));
    broker.delete_topic("inner").unwrap();
}

fn calls_of_deliveries(kit: &Kit) {
    let dead = kit.broker.topic::<u64>("dead").retention(Retention::forever()).create().unwrap();
    let aside = kit.broker.topic::<u64>("aside").create().unwrap();
    let sub = aside.subscription("sub").dead_letter(DeadLetter::to(&dead).after(9)).create().unwrap();
    aside.publish_all(0..6u64).unwrap();
    take(&sub).ack().unwrap();
    take(&sub).nack().unwrap();
    take(&sub).nack_after(SECOND).unwrap();
    take(&sub).release().unwrap();
    take(&sub).reject("unwanted").unwrap();
    take(&sub).extend(Duration::ZERO).unwrap();
    drop(take(&sub));
    let mut batch = sub.try_recv_batch(9).unwrap();
    drop(batch.pop());
    batch.nack().unwrap();
    drop(sub.recv_batch(9).unwrap().into_iter());
    drop(sub.recv().unwrap());
    kit.broker.delete_topic("aside").unwrap();
    kit.broker.delete_topic("dead").unwrap();
}

/// These may fail: what they are about may be full, or be gone.
fn calls_of_the_topic(kit: &Kit) {
    drop(kit.broker.topic::<Event>("topic").open());
    let receipt = kit.topic.try_publish(PLAIN);
    if let Ok(receipt) = &receipt {
        let _ = kit.topic.status(receipt.id);
    }
    drop(kit.topic.publish_timeout(PLAIN, Duration::ZERO));
    if !matches!(kit.overflow, Overflow::Block) {
        drop(kit.topic.publish(PLAIN));
        drop(kit.topic.publish_all([PLAIN]));
    }
    #[cfg(feature = "async")]
    drop(crate::support::Task::new(kit.topic.publish_async(PLAIN)).poll());
    let _ = (kit.topic.stats(), kit.topic.subscriptions(), format!("{:?}", kit.topic));
    let _ = kit.topic.update().dedup(DedupWindow::time(SECOND)).apply();
    if let Ok(inner) = kit.topic.subscription("inner").create() {
        let _ = kit.topic.try_publish(PLAIN);
        drop(inner.try_recv());
        inner.delete().unwrap();
    }
}

fn calls_of_the_subscription(kit: &Kit) {
    let sub = kit.sub.clone();
    if let Ok(delivery) = sub.try_recv() {
        let _ = delivery.extend(SECOND);
        let _ = delivery.release();
    }
    if let Ok(delivery) = sub.recv_timeout(Duration::ZERO) {
        let _ = delivery.nack();
    }
    drop(sub.try_recv_batch(3));
    let _ = (sub.ready(), sub.iter(), sub.stats(), format!("{sub:?}"));
    drop(sub.channel(1));
    #[cfg(feature = "async")]
    {
        drop(crate::support::Task::new(sub.recv_async()).poll());
        drop(sub.stream());
    }
    let _ = (sub.pause(), sub.resume());
    if sub.snapshot("of-sub").is_ok() {
        let _ = sub.seek(Seek::Snapshot("of-sub".into()));
        let _ = kit.broker.delete_snapshot("of-sub");
    }
    let _ = sub.seek(Seek::Earliest);
    let _ = sub.update().ack_deadline(SECOND).apply();
}

/// The broker is well: a new topic works, and so does the old one, unless its subscription or it was deleted.
fn goes_on(kit: &Kit) {
    calls_of_the_broker(kit);
    if !kit.topic.subscriptions().contains(&"sub".to_owned()) {
        return;
    }
    // The pump of a channel that was dropped may still have one in hand, which it releases.
    while kit.sub.stats().backlog > 0 {
        kit.settle_all();
        std::thread::yield_now();
    }
    let receipt = kit.topic.publish(PLAIN).unwrap();
    let delivery = kit.sub.recv().unwrap();
    assert_eq!(delivery.id(), receipt.id);
    delivery.ack().unwrap();
}

#[test]
fn p21_every_call_works_inside_every_callback() {
    everywhere(every_call, goes_on);
}

#[test]
fn p21_every_call_works_on_another_thread_while_a_callback_runs() {
    everywhere(
        |kit| {
            let kit = kit.clone();
            within(20, move || every_call(&kit));
        },
        goes_on,
    );
}

#[test]
fn p21_shutting_down_works_inside_every_callback() {
    everywhere(
        |kit| _ = kit.broker.shutdown(Duration::from_millis(5)),
        |kit| {
            assert!(kit.sub.recv().is_err());
            assert!(kit.topic.publish(PLAIN).is_err());
        },
    );
}

#[test]
fn p21_deleting_works_inside_every_callback() {
    everywhere(
        |kit| {
            let _ = kit.sub.delete();
            let _ = kit.broker.delete_topic("topic");
        },
        |kit| {
            assert!(kit.sub.recv().is_err());
            assert!(kit.topic.publish(PLAIN).is_err());
            assert!(!kit.broker.topics().contains(&"topic".to_owned()));
            calls_of_the_broker(kit);
        },
    );
}

#[test]
fn p21_a_filter_may_publish_to_its_own_topic_and_wait_for_other_receivers() {
    let (broker, _clock) = manual();
    let topic = broker.topic::<u64>("t").capacity(Capacity::messages(1)).create().unwrap();
    let helper = topic.clone();
    // The filter's own message takes the only place: the publish waits until somebody else has settled it.
    let filter =
        move |message: eventflow::MessageRef<'_, u64>| *message > 0 || helper.publish(*message + 1).is_ok();
    let sub = topic.subscription("s").filter_fn(filter).create().unwrap();
    topic.publish(0u64).unwrap();
    let receiving = ask({
        let sub = sub.clone();
        move || *sub.recv().unwrap()
    });
    receiving.assert_pending();
    let _ = (sub.stats(), topic.stats(), broker.stats());
    sub.seek(Seek::Latest).unwrap();
    assert_eq!(receiving.get(), 1);
}

#[test]
fn p21_a_filter_that_panics_spends_an_attempt_and_the_message_counts_as_taken() {
    let (broker, _clock) = manual();
    let topic = broker.topic::<u64>("t").create().unwrap();
    let filter = |message: eventflow::MessageRef<'_, u64>| {
        assert!(*message != 13, "unlucky");
        *message != 14
    };
    let sub = topic.subscription("s").filter_fn(filter).create().unwrap();
    topic.publish_all([12u64, 13, 14, 15]).unwrap();
    let mut seen = drain_with(&sub, |delivery| (**delivery, delivery.attempt()));
    seen.sort_unstable();
    assert_eq!(seen, [(12, 1), (13, 2), (15, 1)]);
    assert_eq!((sub.stats().backlog, sub.stats().filtered), (0, 1));

    let dead = broker.topic::<u64>("dead").create().unwrap();
    let undertaker = dead.subscription("undertaker").create().unwrap();
    let options = topic.subscription("strict").dead_letter(DeadLetter::to(&dead).after(1)).filter_fn(filter);
    let strict = options.create().unwrap();
    topic.publish_all([12u64, 13, 14, 15]).unwrap();
    assert_eq!(drain(&strict), [12, 15]);
    assert_eq!(drain(&undertaker), [13]);
}

/// A panic of user code that was asked for its opinion on a message is no panic of the publisher's, and loses nothing else.
fn survives_a_panic(topic: &Topic<u64>, sub: &Subscription<u64>) {
    let message = |number: u64| Message::new(number).idempotency_id(format!("id {number}"));
    topic.publish(message(1)).unwrap();
    let outcome = catch_unwind(AssertUnwindSafe(|| topic.publish(message(13))));
    let published = outcome.expect("the panic is contained").is_ok();
    let outcome = catch_unwind(AssertUnwindSafe(|| topic.publish_all([message(2), message(13)])));
    let published_batch = outcome.expect("the panic is contained").is_ok();
    topic.publish(message(3)).unwrap();
    let expected = match (published, published_batch) {
        (true, true) => vec![1, 13, 2, 3],
        (true, false) => vec![1, 13, 3],
        (false, true) => vec![1, 2, 13, 3],
        (false, false) => vec![1, 3],
    };
    assert_eq!(drain(sub), expected);
    assert_eq!(topic.stats().resident_messages, 0);
}

#[test]
fn p21_a_weigh_that_panics_is_contained() {
    let (broker, _clock) = manual();
    let weigh = |number: &u64| if *number == 13 { panic!("unlucky") } else { 1 };
    let topic = broker.topic::<u64>("t").weigh(weigh).create().unwrap();
    let sub = topic.subscription("s").create().unwrap();
    within(60, move || survives_a_panic(&topic, &sub));
}

#[test]
fn p21_a_fingerprint_that_panics_is_contained() {
    let (broker, _clock) = manual();
    let fingerprint = |number: &u64| if *number == 13 { panic!("unlucky") } else { *number };
    let topic = broker.topic::<u64>("t").fingerprint(fingerprint).create().unwrap();
    let sub = topic.subscription("s").create().unwrap();
    within(60, move || survives_a_panic(&topic, &sub));
}

/// Counts its drop, and then panics when it is unlucky.
struct Bomb {
    _counted: crate::support::Counted,
    number: u64,
}

impl Drop for Bomb {
    fn drop(&mut self) {
        if self.number % 5 == 3 && !std::thread::panicking() {
            panic!("unlucky");
        }
    }
}

#[test]
fn p21_an_event_whose_drop_panics_is_contained_wherever_it_is_dropped() {
    type Way = fn(&Broker, &ManualClock, &Subscription<Bomb>);
    let ways: [(&str, Way); 6] = [
        ("ack", |_, _, sub| {
            while let Ok(delivery) = sub.try_recv() {
                delivery.ack().unwrap();
            }
        }),
        ("batch ack", |_, _, sub| {
            while let Ok(batch) = sub.try_recv_batch(100) {
                batch.ack().unwrap();
            }
        }),
        ("seek", |_, _, sub| sub.seek(Seek::Latest).unwrap()),
        ("unsubscribe", |_, _, sub| sub.delete().unwrap()),
        ("delete", |broker, _, _| broker.delete_topic("t").unwrap()),
        ("advance", |_, clock, _| clock.advance(SECOND * 60)),
    ];
    for (name, way) in ways {
        let (broker, clock) = manual();
        let drops = Drops::default();
        let topic = broker.topic::<Bomb>("t").create().unwrap();
        let sub = topic.subscription("s").expire_after(SECOND * 60).create().unwrap();
        for number in 0..600 {
            topic.publish(Bomb { _counted: drops.event(number), number }).unwrap();
        }
        let outcome = catch_unwind(AssertUnwindSafe(|| way(&broker, &clock, &sub)));
        assert!(outcome.is_ok(), "a panic of an event came out of {name}");
        assert_eq!(drops.count(), 600, "all others are dropped too, in {name}");
        let other = broker.topic::<u64>("other").create().unwrap();
        let reader = other.subscription("s").create().unwrap();
        other.publish(1u64).unwrap();
        assert_eq!(drain(&reader), [1], "after {name}");
    }
}

#[test]
fn p21_an_event_whose_drop_panics_when_nobody_wants_it_is_contained() {
    let (broker, _clock) = manual();
    let drops = Drops::default();
    let topic = broker.topic::<Bomb>("t").create().unwrap();
    for number in 0..20 {
        let bomb = Bomb { _counted: drops.event(number), number };
        let outcome = catch_unwind(AssertUnwindSafe(|| topic.publish(bomb)));
        assert!(outcome.is_ok_and(|outcome| outcome.is_ok()));
    }
    assert_eq!(drops.count(), 20);
    assert_eq!(topic.stats().published, 20);
}

#[cfg(feature = "async")]
#[test]
fn p21_a_waker_that_panics_is_contained_and_the_next_is_woken() {
    use std::task::{Context, Wake, Waker};
    struct Unlucky;
    impl Wake for Unlucky {
        fn wake(self: Arc<Self>) {
            panic!("unlucky");
        }
    }
    let (broker, _clock) = manual();
    let topic = broker.topic::<u64>("t").create().unwrap();
    let subs = ["a", "b", "c"].map(|name| topic.subscription(name).create().unwrap());
    let mut unlucky: Vec<_> = subs.iter().map(|sub| Box::pin(sub.recv_async())).collect();
    let waker = Waker::from(Arc::new(Unlucky));
    for future in &mut unlucky {
        assert!(future.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    }
    let mut lucky: Vec<_> = subs.iter().map(|sub| crate::support::Task::pending(sub.recv_async())).collect();
    let outcome = catch_unwind(AssertUnwindSafe(|| topic.publish_all([1u64, 2])));
    assert!(outcome.is_ok_and(|outcome| outcome.is_ok()), "a panic of a waker came out of publish");
    // Two messages, two waiters a subscription: all are told, whatever the others do with it.
    for task in &mut lucky {
        assert!(task.wakes() > 0);
        drop(task.ready().unwrap());
    }
    drop(unlucky);
    for sub in &subs {
        assert_eq!(drain(sub).len(), 2);
    }
}

std::thread_local! {
    /// The subscription that this thread receives from, while it does.
    static RECEIVING: std::cell::RefCell<Option<eventflow::Subscription<Inquisitive>>> = const { std::cell::RefCell::new(None) };
}

/// An event whose `Drop` asks the subscription, if it is dropped inside a receiving call.
struct Inquisitive;

impl Drop for Inquisitive {
    fn drop(&mut self) {
        RECEIVING.with_borrow(|sub| {
            let _stats = sub.as_ref().map(eventflow::Subscription::stats);
        });
    }
}

/// The last hold on a segment may be that of a receiver which looks at it just as it goes: under its subscription's lock, that `Drop` would wait for itself.
/// A race of real threads, in which each lap is one more chance to meet.
#[test]
fn p21_an_event_that_a_receiver_happens_to_drop_may_use_the_subscription() {
    const MESSAGES: usize = 60_000;
    let topic = Broker::in_memory().topic::<Inquisitive>("topic").create().expect("a new topic");
    let sub = topic.subscription("sub").create().expect("a new subscription");
    let taken = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let (done, finished) = std::sync::mpsc::channel();
    for _ in 0..3 {
        let (sub, taken, done) = (sub.clone(), taken.clone(), done.clone());
        std::thread::spawn(move || {
            while taken.load(std::sync::atomic::Ordering::Relaxed) < MESSAGES {
                RECEIVING.set(Some(sub.clone()));
                let received = sub.try_recv();
                RECEIVING.set(None);
                if let Ok(delivery) = received {
                    delivery.ack().expect("leased");
                    taken.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                }
            }
            done.send(()).expect("the test waits");
        });
    }
    (0..MESSAGES).for_each(|_| drop(topic.publish(Inquisitive)));
    for _ in 0..3 {
        finished.recv_timeout(std::time::Duration::from_secs(60)).expect("no receiver hangs");
    }
    assert_eq!(sub.stats().backlog, 0);
}
