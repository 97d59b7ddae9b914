//! Every interleaving, and every value that a load may read, of a few threads at the room. A sleep for ever is a deadlock, which loom
//! reports.

use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};

use super::{Look, Waiter, WaitingRoom};
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::thread;

const KEY: u64 = 7;

/// The least of a topic: how many messages were published, and how many taken.
struct Topic {
    room: WaitingRoom,
    tail: AtomicU64,
    taken: Mutex<u64>,
}

impl Topic {
    fn new() -> Arc<Topic> {
        Arc::new(Topic { room: WaitingRoom::new(), tail: AtomicU64::new(0), taken: Mutex::new(0) })
    }

    /// Relaxed, as weak as the state may be stored: all the rest is the room's.
    fn publish(&self) {
        self.tail.fetch_add(1, Ordering::Relaxed);
        if !self.room.nobody() {
            self.room.wake_each(1);
        }
    }

    fn look(&self) -> Look<u64> {
        let mut taken = self.taken.lock();
        if *taken == self.tail.load(Ordering::Relaxed) {
            return Look::Nothing { until: None };
        }
        *taken += 1;
        Look::Found(*taken - 1)
    }

    fn receive(&self) -> u64 {
        self.room.wait(KEY, || self.look())
    }
}

/// Every interleaving: for two threads.
fn explore(scenario: impl Fn() + Send + Sync + 'static) {
    loom::model(scenario);
}

/// Every interleaving with up to `bound` switches away from a thread that could go on, which takes seconds where all would take hours.
/// `LOOM_MAX_PREEMPTIONS` sets another number.
fn explore_bounded(bound: usize, scenario: impl Fn() + Send + Sync + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = model.preemption_bound.or(Some(bound));
    model.check(scenario);
}

fn spawn<T: Send + 'static>(
    topic: &Arc<Topic>,
    run: impl FnOnce(&Topic) -> T + Send + 'static,
) -> thread::JoinHandle<T> {
    let topic = Arc::clone(topic);
    thread::spawn(move || run(&topic))
}

#[test]
fn a_receiver_never_sleeps_through_a_publish() {
    explore(|| {
        let topic = Topic::new();
        let publisher = spawn(&topic, Topic::publish);
        assert_eq!(topic.receive(), 0);
        publisher.join().unwrap();
        assert!(topic.room.nobody());
    });
}

#[test]
fn two_publishers_wake_one_receiver_for_both_messages() {
    explore_bounded(3, || {
        let topic = Topic::new();
        let publishers = [spawn(&topic, Topic::publish), spawn(&topic, Topic::publish)];
        assert_eq!((topic.receive(), topic.receive()), (0, 1));
        for publisher in publishers {
            publisher.join().unwrap();
        }
        assert!(topic.room.nobody());
    });
}

#[test]
fn two_receivers_get_a_message_each() {
    explore_bounded(3, || {
        let topic = Topic::new();
        let other = spawn(&topic, Topic::receive);
        let publisher = spawn(&topic, |topic| {
            topic.publish();
            topic.publish();
        });
        assert_eq!(topic.receive() + other.join().unwrap(), 1);
        publisher.join().unwrap();
        assert!(topic.room.nobody());
    });
}

#[test]
fn a_task_and_a_thread_get_a_message_each() {
    explore_bounded(2, || {
        let topic = Topic::new();
        let other = spawn(&topic, Topic::receive);
        let publisher = spawn(&topic, |topic| {
            topic.publish();
            topic.publish();
        });
        assert_eq!(block_on(&topic) + other.join().unwrap(), 1);
        publisher.join().unwrap();
        assert!(topic.room.nobody());
    });
}

#[test]
fn a_receiver_that_leaves_passes_its_wake_on() {
    explore_bounded(3, || {
        let topic = Topic::new();
        let stays = spawn(&topic, Topic::receive);
        let publisher = spawn(&topic, Topic::publish);
        let waiter = Waiter::thread();
        topic.room.enter(KEY, &waiter);
        // Cancelled: it does not look.
        topic.room.abandon(KEY, &mut Some(waiter));
        assert_eq!(stays.join().unwrap(), 0);
        publisher.join().unwrap();
        assert!(topic.room.nobody());
    });
}

#[test]
fn a_receiver_whose_time_is_over_passes_its_wake_on() {
    explore_bounded(3, || {
        let topic = Topic::new();
        let stays = spawn(&topic, Topic::receive);
        let publisher = spawn(&topic, Topic::publish);
        let mut looks = 0;
        topic.room.wait(KEY, || {
            looks += 1;
            // After registering the time is over, without a look at the messages.
            if looks == 2 { Look::GaveUp(()) } else { Look::Nothing { until: None } }
        });
        assert_eq!(stays.join().unwrap(), 0);
        publisher.join().unwrap();
        assert!(topic.room.nobody());
    });
}

/// A waker that sets a thread going.
struct Executor {
    /// Counts, as loom does not keep a swap next to what it read when another thread stores without reading.
    wakes: AtomicU64,
    thread: thread::Thread,
}

impl Executor {
    fn new() -> Arc<Executor> {
        Arc::new(Executor { wakes: AtomicU64::new(0), thread: thread::current() })
    }

    /// Until it was woken more than `seen` times.
    fn sleep(&self, seen: u64) -> u64 {
        loop {
            let wakes = self.wakes.load(Ordering::Acquire);
            if wakes > seen {
                return wakes;
            }
            thread::park();
        }
    }
}

impl Wake for Executor {
    fn wake(self: Arc<Self>) {
        self.wakes.fetch_add(1, Ordering::Release);
        self.thread.unpark();
    }
}

fn block_on(topic: &Topic) -> u64 {
    let executor = Executor::new();
    let waker = Waker::from(Arc::clone(&executor));
    let mut seat = None;
    let mut seen = 0;
    loop {
        match topic.room.poll(KEY, &mut seat, &mut Context::from_waker(&waker), || topic.look()) {
            Poll::Ready(message) => return message,
            Poll::Pending => seen = executor.sleep(seen),
        }
    }
}

#[test]
fn a_task_is_woken_by_the_waker_of_its_last_poll() {
    explore_bounded(4, || {
        let topic = Topic::new();
        let publisher = spawn(&topic, Topic::publish);
        let mut seat = None;
        let nobody_sleeps_on_it = Waker::from(Executor::new());
        let first =
            topic.room.poll(KEY, &mut seat, &mut Context::from_waker(&nobody_sleeps_on_it), || topic.look());
        if first.is_pending() {
            let executor = Executor::new();
            let waker = Waker::from(Arc::clone(&executor));
            let mut seen = 0;
            // Polled for its own reasons, as when the task moved; from here on only the second waker counts.
            while topic
                .room
                .poll(KEY, &mut seat, &mut Context::from_waker(&waker), || topic.look())
                .is_pending()
            {
                seen = executor.sleep(seen);
            }
        }
        publisher.join().unwrap();
        assert!(seat.is_none() && topic.room.nobody());
    });
}

#[test]
fn a_waker_set_while_a_wake_is_under_way_is_woken() {
    explore(|| {
        let topic = Topic::new();
        let old = Waker::from(Executor::new());
        let executor = Executor::new();
        let new = Waker::from(Arc::clone(&executor));
        let waiter = Waiter::task(&old);
        topic.room.enter(KEY, &waiter);
        let publisher = spawn(&topic, |topic| topic.room.wake(KEY, 1));
        // No look afterwards: the waker alone must do.
        waiter.set_waker(&new);
        executor.sleep(0);
        assert!(waiter.is_notified());
        publisher.join().unwrap();
    });
}

#[test]
fn a_dropped_future_passes_its_wake_on() {
    explore_bounded(3, || {
        let topic = Topic::new();
        let stays = spawn(&topic, Topic::receive);
        let publisher = spawn(&topic, Topic::publish);
        let mut seat = None;
        let waker = Waker::from(Executor::new());
        let never = || Look::<()>::Nothing { until: None };
        assert_eq!(topic.room.poll(KEY, &mut seat, &mut Context::from_waker(&waker), never), Poll::Pending);
        topic.room.abandon(KEY, &mut seat);
        assert_eq!(stays.join().unwrap(), 0);
        publisher.join().unwrap();
        assert!(topic.room.nobody());
    });
}
