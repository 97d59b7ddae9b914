//! A whole broker under shuttle, which runs its threads in schedules of its own choosing and says which of them ends in a panic, a deadlock or an
//! endless loop. `RUSTFLAGS="--cfg eventflow_shuttle" cargo test --release --test shuttle`.
//!
//! Each scenario is a few threads and a few messages on a manual clock, tried in `EVENTFLOW_SHUTTLE_ITERATIONS` random schedules (10,000 unless told otherwise)
//! and in a fifth as many that put one thread off for as long as they can. To run one schedule again, give what shuttle printed as
//! `EVENTFLOW_SHUTTLE_SCHEDULE`.
//!
//! A thread that waits for ever needs no watchdog here: shuttle sees that nobody can go on, and fails.
//!
//! What a disk adds (the group commit, the committer) is explored where it is private, on a simulated disk: `cargo test --release --lib shuttle_`.

#![cfg(eventflow_shuttle)]

mod dead_letters;
mod dedup;
mod ending;
mod receiving;
mod replay;
mod retention;
mod settling;
mod space;
mod time;
mod transactions;

use std::time::Duration;

use eventflow::{
    Broker, Delivery, ManualClock, Message, SettleError, Subscription, SubscriptionBuilder, Topic,
    TopicBuilder, TryRecvError,
};
use shuttle::scheduler::{PctScheduler, RandomScheduler, ReplayScheduler};
use shuttle::thread::JoinHandle;
use shuttle::{Config, MaxSteps, Runner};

/// The ack deadline unless told otherwise.
const DEADLINE: Duration = Duration::from_secs(10);
const EXPIRED: Result<(), SettleError> = Err(SettleError::LeaseExpired { count: 1 });

/// Runs the scenario in many schedules.
fn explore(scenario: impl Fn() + Send + Sync + Copy + 'static) {
    if let Ok(schedule) = std::env::var("EVENTFLOW_SHUTTLE_SCHEDULE") {
        Runner::new(ReplayScheduler::new_from_encoded(&schedule), config()).run(scenario);
        return;
    }
    let iterations = std::env::var("EVENTFLOW_SHUTTLE_ITERATIONS")
        .map_or(10_000, |number| number.parse().expect("EVENTFLOW_SHUTTLE_ITERATIONS is a number"));
    Runner::new(RandomScheduler::new(iterations), config()).run(scenario);
    // At random no thread is put off for long; here one is, at a few points of the schedule.
    Runner::new(PctScheduler::new(3, iterations / 5), config()).run(scenario);
}

fn config() -> Config {
    let mut config = Config::new();
    config.stack_size = 1 << 18;
    // A hundred times what the longest scenario takes: who spins for so long, waits for what does not come.
    config.max_steps = MaxSteps::FailAfter(200_000);
    config
}

/// A broker whose time is manual: it has no thread of its own.
struct Scene {
    broker: Broker,
    clock: ManualClock,
    topic: Topic<u64>,
}

impl Scene {
    fn new() -> Self {
        Scene::with(|options| options)
    }

    fn with(options: impl FnOnce(TopicBuilder<u64>) -> TopicBuilder<u64>) -> Self {
        let clock = ManualClock::new();
        let broker = Broker::builder().clock(clock.clone()).build().expect("a broker in memory opens");
        let topic = options(broker.topic("topic")).create().expect("a new topic");
        Scene { broker, clock, topic }
    }

    fn subscription(&self, name: &str) -> Subscription<u64> {
        self.subscription_with(name, |options| options)
    }

    fn subscription_with(
        &self,
        name: &str,
        options: impl FnOnce(SubscriptionBuilder<u64>) -> SubscriptionBuilder<u64>,
    ) -> Subscription<u64> {
        options(self.topic.subscription(name)).create().expect("a new subscription")
    }
}

/// Lets time pass.
fn pass(clock: &ManualClock, duration: Duration) {
    clock.advance(duration);
}

fn spawn<T: Send + 'static>(body: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    shuttle::thread::spawn(body)
}

#[track_caller]
fn join<T>(thread: JoinHandle<T>) -> T {
    thread.join().expect("the thread did not panic")
}

#[track_caller]
fn join_all<T, const N: usize>(threads: [JoinHandle<T>; N]) {
    for thread in threads {
        join(thread);
    }
}

#[track_caller]
fn send(topic: &Topic<u64>, message: impl Into<Message<u64>>) -> u64 {
    topic.publish(message).expect("a publish that nothing forbids").id.sequence()
}

#[track_caller]
fn recv(subscription: &Subscription<u64>) -> Delivery<u64> {
    subscription.recv().expect("the subscription is open")
}

#[track_caller]
fn ack(delivery: Delivery<u64>) {
    assert_eq!(delivery.ack(), Ok(()), "the lease runs");
}

/// All that is there now, acked.
#[track_caller]
fn drain(subscription: &Subscription<u64>) -> Vec<u64> {
    let mut events = Vec::new();
    loop {
        match subscription.try_recv() {
            Ok(delivery) => {
                events.push(*delivery);
                ack(delivery);
            }
            Err(TryRecvError::Empty) => return events,
            Err(error) => panic!("while draining: {error:?}"),
        }
    }
}

/// Nobody needs anything any more, so nothing is kept.
#[track_caller]
fn assert_forgotten(topic: &Topic<u64>) {
    assert_eq!(topic.stats().resident_messages, 0, "all is settled, and kept nevertheless");
}
