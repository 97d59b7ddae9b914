//! Futures on disk: no `poll` waits for the disk, or touches it; the committer does, for all who ask; and a future that is dropped half-way changes nothing about what was accepted.

use std::path::Path;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};
use futures::StreamExt;

use super::eventflow::{
    Broker, CommitReason, DeadLetter, DeliveryMode, Error, ManualClock, Message, MessageRef, PublishError,
    PublishErrorKind, RecvError, Retention, SettleError, Subscription, Topic, TryRecvError,
};
use super::watched::{COMMITTER, PATIENCE, Watched, this_thread};
use super::{DIR, SEGMENT_LEN, open};
use crate::journal::{Durability, JournalOptions};
use crate::sync::thread;

/// A future in nobody's hands but the test's.
pub(super) struct Task<F: Future> {
    future: Pin<Box<F>>,
    waker: Waker,
    wakes: Receiver<()>,
}

struct Bell(Sender<()>);

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        let _nobody_may_listen = self.0.send(());
    }
}

impl<F: Future> Task<F> {
    pub(super) fn new(future: F) -> Self {
        let (sender, wakes) = unbounded();
        Task { future: Box::pin(future), waker: Arc::new(Bell(sender)).into(), wakes }
    }

    pub(super) fn poll(&mut self) -> Poll<F::Output> {
        self.future.as_mut().poll(&mut Context::from_waker(&self.waker))
    }

    /// Polls whenever it is woken, and not else.
    #[track_caller]
    pub(super) fn finish(&mut self) -> F::Output {
        loop {
            self.wakes.recv_timeout(PATIENCE).expect("it is woken");
            if let Poll::Ready(output) = self.poll() {
                return output;
            }
        }
    }
}

struct Scene {
    disk: Watched,
    broker: Broker,
    clock: ManualClock,
    topic: Topic<String>,
    /// Exactly once.
    billing: Subscription<String>,
}

fn scene() -> Scene {
    let (disk, clock) = (Watched::new(), ManualClock::new());
    let broker = open(Arc::new(disk.clone()), &clock).unwrap();
    let topic = broker.topic::<String>("orders").retention(Retention::forever()).open().unwrap();
    let billing = topic.subscription("billing").delivery(DeliveryMode::ExactlyOnce).open().unwrap();
    Scene { disk, broker, clock, topic, billing }
}

impl Scene {
    /// One whose hand-outs are written before: it has dead letters.
    fn careful(&self) -> Subscription<String> {
        let last = self.broker.topic::<String>("last").retention(Retention::forever()).open().unwrap();
        let careful = self.topic.subscription("careful").dead_letter(DeadLetter::to(&last).after(5));
        careful.open().unwrap()
    }

    fn at_most_once(&self) -> Subscription<String> {
        self.topic.subscription("once").delivery(DeliveryMode::AtMostOnce).open().unwrap()
    }

    /// What a program finds that opens the disk after a power cut.
    fn after_a_crash(&self) -> Scene {
        let disk = Watched::of(self.disk.disk().fork());
        let broker = open(Arc::new(disk.clone()), &self.clock).unwrap();
        let topic = broker.topic::<String>("orders").open().unwrap();
        let billing = topic.subscription("billing").open().unwrap();
        Scene { disk, broker, clock: self.clock.clone(), topic, billing }
    }
}

fn drain(subscription: &Subscription<String>) -> Vec<String> {
    let mut events = Vec::new();
    while let Ok(delivery) = subscription.try_recv() {
        events.push(delivery.clone());
        delivery.ack().unwrap();
    }
    events
}

/// Polls it while no sync can end: the poll comes back at once, and has not touched the disk; the rest is done by the committer.
#[track_caller]
fn without_touching_the_disk<T>(disk: &Watched, what: &str, future: impl Future<Output = T>) -> T {
    let (hold, before) = (disk.hold(), disk.calls_of_this_thread());
    let mut task = Task::new(future);
    for _ in 0..3 {
        assert!(task.poll().is_pending(), "{what} waits for the disk");
    }
    assert_eq!(disk.calls_of_this_thread(), before, "{what} touches the disk in its poll");
    drop(hold);
    let output = task.finish();
    assert_eq!(disk.calls_of_this_thread(), before, "{what} touches the disk in its poll");
    output
}

#[test]
fn p23_no_poll_waits_for_the_disk_or_touches_it() {
    let scene = scene();
    let (Scene { disk, topic, billing, broker, .. }, careful) = (&scene, scene.careful());
    let once = scene.at_most_once();
    let publish = |text: &str| Message::new(text.to_owned()).idempotency_id(text);
    let first = without_touching_the_disk(disk, "a publish", topic.publish_async(publish("a"))).unwrap();
    let batch = without_touching_the_disk(disk, "a batch", topic.publish_all_async(["b", "c", "d"]));
    assert_eq!(batch.unwrap().len(), 3);

    let deliveries = without_touching_the_disk(disk, "a hand-out that settles", once.recv_async());
    assert_eq!(*deliveries.unwrap(), "a");
    let next = without_touching_the_disk(disk, "a stream", once.stream().next());
    assert_eq!(*next.unwrap(), "b");

    let held = Task::new(billing.recv_async()).poll();
    let Poll::Ready(Ok(held)) = held else { panic!("a lease waits for nothing: {held:?}") };
    without_touching_the_disk(disk, "an ack", held.ack_async()).unwrap();
    let held = billing.recv_batch(2).unwrap();
    without_touching_the_disk(disk, "an ack of a batch", held.ack_async()).unwrap();
    let mut transaction = broker.transaction();
    transaction.ack(billing.recv().unwrap());
    transaction.publish(topic, "e");
    without_touching_the_disk(disk, "a commit", transaction.commit_async()).unwrap();

    let repeat = topic.publish(publish("a")).unwrap();
    assert_eq!((repeat.id, repeat.deduplicated), (first.id, true));
    assert_eq!(drain(billing), ["e"]);
    // Attempts are written and not synced, so no sync can hold them up.
    let mut attempt = Task::new(careful.recv_async());
    let before = disk.calls_of_this_thread();
    let given = match attempt.poll() {
        Poll::Pending => attempt.finish(),
        Poll::Ready(given) => given,
    };
    assert_eq!((given.unwrap().as_str(), disk.calls_of_this_thread()), ("a", before));
    let found = scene.after_a_crash();
    assert_eq!((drain(&found.billing), found.topic.stats().published), (Vec::new(), 5));
}

#[test]
fn p23_a_snapshot_whose_life_ends_in_a_poll_goes_elsewhere() {
    let scene = scene();
    let Scene { disk, topic, billing, clock, broker } = &scene;
    billing.snapshot("yesterday").unwrap();
    let time = clock.clone();
    let passes_time = move |_: MessageRef<'_, String>| {
        time.advance(Duration::from_secs(8 * 24 * 3_600));
        true
    };
    let late = topic.subscription("late").filter_fn(passes_time).open().unwrap();
    topic.publish("a").unwrap();
    let (hold, before) = (disk.hold(), disk.calls_of_this_thread());
    let given = Task::new(late.recv_async()).poll();
    assert!(matches!(&given, Poll::Ready(Ok(delivery)) if **delivery == "a"), "{given:?}");
    assert_eq!(disk.calls_of_this_thread(), before, "its end was written in the poll");
    hold.await_sync();
    assert_eq!(broker.snapshots(), ["yesterday"], "its end is not safe yet");
    drop(hold);
    let start = Instant::now();
    while !broker.snapshots().is_empty() {
        assert!(start.elapsed() < PATIENCE, "it does not end");
        thread::yield_now();
    }
}

#[test]
fn acks_that_nobody_waits_for_are_written_by_the_committer() {
    let scene = scene();
    let Scene { disk, topic, .. } = &scene;
    let shipping = topic.subscription("shipping").open().unwrap();
    topic.publish_all((0..200).map(|n| n.to_string())).unwrap();
    let before = disk.calls_of_this_thread();
    for _ in 0..200 {
        let Poll::Ready(Ok(delivery)) = Task::new(shipping.recv_async()).poll() else {
            panic!("a lease waits for nothing")
        };
        let Poll::Ready(Ok(())) = pin!(delivery.ack_async()).poll(&mut Context::from_waker(Waker::noop()))
        else {
            panic!("an ack at least once waits for nothing")
        };
    }
    assert_eq!(disk.calls_of_this_thread(), before);
    // What is committed after them shows that they are written.
    Task::new(topic.publish_async("last")).finish_after_poll().unwrap();
    let found = scene.after_a_crash();
    let shipping = found.topic.subscription("shipping").open().unwrap();
    assert_eq!(drain(&shipping), ["last"]);
}

#[test]
fn a_thousand_publishes_at_a_time_share_a_few_syncs() {
    let scene = scene();
    let Scene { disk, topic, .. } = &scene;
    let mut tasks: Vec<_> = (0..1_000).map(|n| Task::new(topic.publish_async(n.to_string()))).collect();
    let hold = disk.hold();
    for task in &mut tasks {
        assert!(task.poll().is_pending());
    }
    hold.await_sync();
    drop(hold);
    for task in &mut tasks {
        task.finish().unwrap();
    }
    let syncs = disk.shared_syncs();
    // The one that was held up, that of all others; and one for each step by which the segment grows.
    assert!(syncs <= 10, "{syncs} syncs for a thousand publishes");
    assert_eq!(scene.after_a_crash().billing.stats().backlog, 1_000);
}

#[test]
fn the_first_future_starts_the_committer_and_blocking_callers_need_none() {
    let scene = scene();
    let Scene { disk, topic, .. } = &scene;
    for n in 0..5 {
        topic.publish(n.to_string()).unwrap();
    }
    let own = this_thread();
    assert_eq!(disk.callers(), std::slice::from_ref(&own));
    Task::new(topic.publish_async("by a future")).finish_after_poll().unwrap();
    assert_eq!(disk.callers(), sorted([own.clone(), COMMITTER.to_owned()]));
    let before = disk.calls_of_this_thread();
    topic.publish("by a thread").unwrap();
    assert!(disk.calls_of_this_thread() > before, "who blocks leads as before");
}

fn sorted<const N: usize>(mut names: [String; N]) -> Vec<String> {
    names.sort();
    names.to_vec()
}

impl<F: Future> Task<F> {
    /// The committer may be done before the first poll looks.
    #[track_caller]
    pub(super) fn finish_after_poll(&mut self) -> F::Output {
        match self.poll() {
            Poll::Ready(output) => output,
            Poll::Pending => self.finish(),
        }
    }
}

#[test]
fn p02_a_failed_sync_is_told_to_all_who_wait_for_it() {
    let scene = scene();
    let Scene { disk, broker, topic, billing, .. } = &scene;
    let once = scene.at_most_once();
    topic.publish_all((0..5).map(|n| n.to_string())).unwrap();
    let (held, batch, other) =
        (billing.recv().unwrap(), billing.recv_batch(2).unwrap(), billing.recv().unwrap());
    let hold = disk.hold();
    let mut busy = Task::new(topic.publish_async("busy"));
    assert!(busy.poll().is_pending());
    hold.await_sync();
    // They gather meanwhile, and are one frame.
    let mut publishes: Vec<_> = (0..20).map(|n| Task::new(topic.publish_async(n.to_string()))).collect();
    let mut all = Task::new(topic.publish_all_async(["a", "b"]));
    let (mut ack, mut acks) = (Task::new(held.ack_async()), Task::new(batch.ack_async()));
    let mut transaction = broker.transaction();
    transaction.ack(other);
    transaction.publish(topic, "from it");
    let mut commit = Task::new(transaction.commit_async());
    let mut hand_out = Task::new(once.recv_async());
    publishes.iter_mut().for_each(|task| assert!(task.poll().is_pending()));
    assert!(all.poll().is_pending() && ack.poll().is_pending() && acks.poll().is_pending());
    assert!(commit.poll().is_pending() && hand_out.poll().is_pending());
    disk.fail_syncs_after(1);
    drop(hold);
    busy.finish().unwrap();
    for task in &mut publishes {
        let told = task.finish();
        assert!(matches!(told, Err(PublishError::Indeterminate { .. })), "{told:?}");
    }
    let told = all.finish().unwrap_err();
    assert!(matches!(told.kind, PublishErrorKind::Indeterminate { .. }), "{told:?}");
    for told in [ack.finish(), acks.finish()] {
        assert!(matches!(told, Err(SettleError::Indeterminate { .. })), "{told:?}");
    }
    let told = commit.finish().unwrap_err();
    assert!(matches!(told.reason, CommitReason::Indeterminate { .. }), "{told:?}");
    assert!(matches!(hand_out.finish(), Err(RecvError::Storage { .. })));
    let told = Task::new(topic.publish_async("more")).poll();
    assert!(matches!(told, Poll::Ready(Err(PublishError::Storage { .. }))), "P19: {told:?}");
}

#[test]
fn p02_what_had_not_begun_when_a_sync_failed_comes_back() {
    let scene = scene();
    let Scene { disk, topic, .. } = &scene;
    let hold = disk.hold();
    let mut first = Task::new(topic.publish_async("first"));
    assert!(first.poll().is_pending());
    hold.await_sync();
    let mut tasks: Vec<_> = (0..20).map(|n| Task::new(topic.publish_async(n.to_string()))).collect();
    tasks.iter_mut().for_each(|task| assert!(task.poll().is_pending()));
    disk.fail_syncs_after(0);
    drop(hold);
    assert!(matches!(first.finish(), Err(PublishError::Indeterminate { .. })));
    for (n, task) in tasks.iter_mut().enumerate() {
        let Err(PublishError::Storage { message, .. }) = task.finish() else { panic!("it was not written") };
        assert_eq!(message.into_event(), n.to_string());
    }
}

/// Drops the future after one poll, at a time when the disk has not answered.
fn drop_half_way(disk: &Watched, future: impl Future) {
    let hold = disk.hold();
    let mut task = Task::new(future);
    assert!(task.poll().is_pending());
    hold.await_sync();
    drop(task);
    drop(hold);
}

#[test]
fn p05_what_was_accepted_of_a_dropped_future_is_done_in_whole() {
    let scene = scene();
    let Scene { disk, broker, topic, billing, .. } = &scene;
    drop(topic.publish_async("never polled"));
    drop_half_way(disk, topic.publish_async("one"));
    drop_half_way(disk, topic.publish_all_async(["two", "three"]));
    // Behind all of these in the journal.
    topic.publish("four").unwrap();
    let mut batch = billing.recv_batch(4).unwrap();
    let texts: Vec<_> = batch.iter().map(|message| message.event().clone()).collect();
    assert_eq!(texts, ["one", "two", "three", "four"]);
    let (ack, transacted) = (batch.pop().unwrap(), batch.pop().unwrap());
    drop_half_way(disk, ack.ack_async());
    drop_half_way(disk, batch.ack_async());
    let mut transaction = broker.transaction();
    transaction.ack(transacted);
    transaction.publish(topic, "five");
    drop_half_way(disk, transaction.commit_async());
    topic.publish("six").unwrap();
    assert_eq!(drain(billing), ["five", "six"], "and nothing of what was acked");
    assert_eq!(billing.stats().outstanding, 0);
    let found = scene.after_a_crash();
    assert_eq!((drain(&found.billing), found.topic.stats().published), (vec![], 6));
}

#[test]
fn p05_a_transaction_that_was_dropped_on_its_way_and_does_not_arrive_is_rolled_back() {
    let scene = scene();
    let Scene { disk, broker, topic, billing, .. } = &scene;
    topic.publish("one").unwrap();
    let mut transaction = broker.transaction();
    transaction.ack(billing.recv().unwrap());
    transaction.publish(topic, "two");
    let hold = disk.hold();
    let mut task = Task::new(transaction.commit_async());
    assert!(task.poll().is_pending());
    hold.await_sync();
    drop(task);
    disk.fail_syncs_after(0);
    let mut back = Task::new(billing.recv_async());
    assert!(back.poll().is_pending());
    drop(hold);
    assert_eq!(*back.finish().unwrap(), "one", "it is nacked");
}

#[test]
fn p09_a_dropped_future_loses_none_of_what_it_was_handed() {
    let scene = scene();
    let Scene { disk, topic, .. } = &scene;
    let once = scene.at_most_once();
    topic.publish_all(["one", "two", "three"]).unwrap();
    let (hold, mut stream) = (disk.hold(), once.stream());
    let (mut one, mut other) = (Task::new(once.recv_async()), Task::new(stream.next()));
    assert!(one.poll().is_pending() && other.poll().is_pending());
    drop((one, other));
    drop((stream, hold));
    once.pause().unwrap();
    assert!(matches!(once.try_recv(), Err(TryRecvError::Empty)), "nothing is delivered while it is paused");
    once.resume().unwrap();
    let mut all = drain(&once);
    all.sort();
    assert_eq!(all, ["one", "three", "two"], "P13: each of them once");
    assert_eq!(drain(&scene.after_a_crash().at_most_once()), Vec::<String>::new());

    let careful = scene.careful();
    topic.publish("four").unwrap();
    let hold = disk.hold();
    // The committer is at the disk for this one, so the write of the attempt has to wait.
    let mut busy = Task::new(topic.publish_async("five"));
    assert!(busy.poll().is_pending());
    hold.await_sync();
    let mut task = Task::new(careful.recv_async());
    assert!(task.poll().is_pending());
    assert_eq!(careful.stats().outstanding, 1);
    let mut next = Task::new(careful.recv_async());
    assert!(next.poll().is_pending(), "another message, which waits for the disk as well");
    drop(task);
    drop((next, hold));
    busy.finish().unwrap();
    let first = careful.recv().unwrap();
    assert_eq!((first.as_str(), first.attempt()), ("four", 1), "no attempt is spent");
}

#[test]
fn a_dead_letter_in_a_poll_is_buried_elsewhere() {
    let scene = scene();
    let Scene { disk, topic, broker, clock, .. } = &scene;
    let last = broker.topic::<String>("last").retention(Retention::forever()).open().unwrap();
    let morgue = last.subscription("morgue").open().unwrap();
    let careful = topic.subscription("careful").dead_letter(DeadLetter::to(&last).after(1)).open().unwrap();
    topic.publish("poison").unwrap();
    let mut burial = Task::new(morgue.recv_async());
    assert!(burial.poll().is_pending());
    // A lease that has run out, found by a poll.
    std::mem::forget(careful.recv().unwrap());
    let hold = disk.hold();
    let before = disk.calls_of_this_thread();
    let mut task = Task::new(careful.recv_async());
    assert!(task.poll().is_pending());
    {
        let _polling = crate::engine::local::committer::NoWaiting::begin();
        clock.advance(Duration::from_secs(10));
    }
    assert!(task.poll().is_pending());
    hold.await_sync();
    assert_eq!(disk.calls_of_this_thread(), before);
    assert!(burial.poll().is_pending(), "P1: nobody sees it before it is synced");
    drop(hold);
    assert_eq!(*burial.finish().unwrap(), "poison");
}

#[test]
fn p02_a_shutdown_tells_every_future_what_became_of_it() {
    let scene = scene();
    let Scene { disk, broker, topic, billing, .. } = &scene;
    topic.publish("one").unwrap();
    let held = billing.recv().unwrap();
    let mut waiting = Task::new(billing.recv_async());
    assert!(waiting.poll().is_pending());
    let hold = disk.hold();
    let mut tasks: Vec<_> = (0..20).map(|n| Task::new(topic.publish_async(n.to_string()))).collect();
    tasks.iter_mut().for_each(|task| assert!(task.poll().is_pending()));
    let mut ack = Task::new(held.ack_async());
    assert!(ack.poll().is_pending());
    hold.await_sync();
    let shutdown = {
        let broker = broker.clone();
        thread::spawn(move || broker.shutdown(Duration::ZERO))
    };
    assert!(matches!(waiting.finish(), Err(RecvError::Closed)));
    let late = Task::new(topic.publish_async("late")).poll();
    assert!(matches!(late, Poll::Ready(Err(PublishError::Closed(_)))), "{late:?}");
    drop(hold);
    shutdown.join().unwrap().unwrap();
    for task in &mut tasks {
        task.finish().unwrap();
    }
    ack.finish().unwrap();
    let late = Task::new(billing.recv_async()).poll();
    assert!(matches!(late, Poll::Ready(Err(RecvError::Closed))), "{late:?}");
    assert!(matches!(broker.shutdown(Duration::ZERO), Err(Error::Closed)));
    let found = scene.after_a_crash();
    assert_eq!(found.billing.stats().backlog, 20);
}

#[test]
fn an_ack_outlives_the_last_handle_of_its_broker() {
    let Scene { disk, broker, clock, topic, billing } = scene();
    topic.publish("one").unwrap();
    let held = billing.recv().unwrap();
    let hold = disk.hold();
    let mut ack = Task::new(held.ack_async());
    assert!(ack.poll().is_pending());
    hold.await_sync();
    let last = thread::spawn(move || drop((broker, topic, billing)));
    drop(hold);
    assert_eq!(ack.finish(), Ok(()));
    last.join().unwrap();
    let broker = open(Arc::new(disk), &clock).unwrap();
    let billing = broker.topic::<String>("orders").open().unwrap().subscription("billing").open().unwrap();
    assert_eq!(drain(&billing), Vec::<String>::new());
}

#[test]
fn a_repeat_waits_for_the_first_without_touching_the_disk() {
    let scene = scene();
    let Scene { disk, topic, .. } = &scene;
    let message = || Message::new("one".to_owned()).idempotency_id("1");
    let hold = disk.hold();
    let mut first = Task::new(topic.publish_async(message()));
    assert!(first.poll().is_pending());
    hold.await_sync();
    let before = disk.calls_of_this_thread();
    let mut repeat = Task::new(topic.publish_async(message()));
    assert!(repeat.poll().is_pending(), "P14: it is not known yet");
    let mut transaction = scene.broker.transaction();
    transaction.publish(topic, message());
    let mut commit = Task::new(transaction.commit_async());
    assert!(commit.poll().is_pending());
    assert_eq!(disk.calls_of_this_thread(), before);
    drop(hold);
    let first = first.finish().unwrap();
    let repeat = repeat.finish().unwrap();
    assert_eq!((repeat.id, repeat.deduplicated), (first.id, true));
    let receipts = commit.finish().unwrap();
    assert_eq!((receipts[0].id, receipts[0].deduplicated), (first.id, true));
}

#[test]
fn with_an_interval_the_committer_syncs_what_was_written_and_then_sleeps() {
    let disk = Watched::new();
    let durability = Durability::Interval(Duration::from_millis(1));
    let options = JournalOptions { segment_len: SEGMENT_LEN, ..JournalOptions::new(durability) };
    let broker =
        Broker::on_disk(Arc::new(disk.clone()), Path::new(DIR), options, ManualClock::new()).unwrap();
    let topic = broker.topic::<String>("orders").retention(Retention::forever()).open().unwrap();
    for n in 0..3 {
        let hold = disk.hold();
        topic.publish(n.to_string()).unwrap();
        hold.await_sync();
        // By futures and by threads alike, nobody waits for it.
        let mut publish = Task::new(topic.publish_async("meanwhile"));
        if publish.poll().is_pending() {
            drop(hold);
            publish.finish().unwrap();
        }
    }
    let callers = disk.callers();
    assert!(callers.contains(&COMMITTER.to_owned()), "{callers:?}");
    assert_eq!(callers.len(), 2, "one thread for both: {callers:?}");
}

#[test]
fn user_code_that_waits_for_a_future_on_the_committer_goes_on() {
    /// Its waker publishes, and waits for that.
    struct Nested(Topic<String>, Sender<()>);
    impl Wake for Nested {
        fn wake(self: Arc<Self>) {
            let done = futures::executor::block_on(self.0.publish_async("nested"));
            assert!(done.is_ok(), "{done:?}");
            let _nobody_may_listen = self.1.send(());
        }
    }
    let scene = scene();
    let (sender, done) = unbounded();
    let waker = Waker::from(Arc::new(Nested(scene.topic.clone(), sender)));
    let mut publish = pin!(scene.topic.publish_async("one"));
    assert!(publish.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    done.recv_timeout(PATIENCE).expect("it does not wait for itself");
    assert!(matches!(publish.poll(&mut Context::from_waker(Waker::noop())), Poll::Ready(Ok(_))));
    assert_eq!(drain(&scene.billing), ["one", "nested"]);
}
