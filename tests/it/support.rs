//! What the tests lean on: a broker whose time is manual, a watchdog, threads that answer, futures polled by hand, drop counters.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use eventflow::{Delivery, ManualClock, Message, Subscription, SubscriptionBuilder, Topic, TryRecvError};

pub(crate) use crate::storage::Broker;

pub(crate) const NANO: Duration = Duration::from_nanos(1);
pub(crate) const SECOND: Duration = Duration::from_secs(1);
/// The ack deadline unless told otherwise.
pub(crate) const DEADLINE: Duration = Duration::from_secs(10);
/// How long the watchdog waits, in real time, before it calls a thread hung.
pub(crate) const PATIENCE: u64 = 60;

/// A broker, and the clock that is its only source of time.
pub(crate) fn manual() -> (Broker, ManualClock) {
    let clock = ManualClock::new();
    let broker = Broker::builder().clock(clock.clone()).build().expect("a new broker opens");
    (broker, clock)
}

/// One topic with one subscription on a broker whose time is manual.
pub(crate) struct Desk<E: Send + Sync + 'static> {
    pub(crate) broker: Broker,
    pub(crate) clock: ManualClock,
    pub(crate) topic: Topic<E>,
    pub(crate) sub: Subscription<E>,
}

/// A [`Desk`] with all options at their defaults.
pub(crate) fn desk<E: Send + Sync + 'static>() -> Desk<E> {
    desk_with(|options| options)
}

/// A [`Desk`] whose subscription has the options that `options` sets.
pub(crate) fn desk_with<E: Send + Sync + 'static>(
    options: impl FnOnce(SubscriptionBuilder<E>) -> SubscriptionBuilder<E>,
) -> Desk<E> {
    let (broker, clock) = manual();
    let topic = broker.topic::<E>("topic").create().expect("a new topic");
    let sub = options(topic.subscription("sub")).create().expect("a new subscription");
    Desk { broker, clock, topic, sub }
}

impl<E: Send + Sync + 'static> Desk<E> {
    /// The same desk, after its broker has ended and come again, in a run with restarts.
    pub(crate) fn restarted(self) -> Self {
        let Desk { broker, clock, .. } = self;
        let broker = broker.restarted();
        let topic = broker.topic::<E>("topic").open().expect("it is there");
        let sub = topic.subscription("sub").open().expect("it is there");
        Desk { broker, clock, topic, sub }
    }
}

/// Publishes what must be taken.
#[track_caller]
pub(crate) fn send<E: Send + Sync + 'static>(topic: &Topic<E>, message: impl Into<Message<E>>) {
    if let Err(error) = topic.publish(message) {
        panic!("while publishing: {error:?}");
    }
}

/// The next message, which must be there.
#[track_caller]
pub(crate) fn take<E: Send + Sync + 'static>(sub: &Subscription<E>) -> Delivery<E> {
    match sub.try_recv() {
        Ok(delivery) => delivery,
        Err(error) => panic!("expected a message, found: {error:?}"),
    }
}

/// Nothing may be handed out at this moment.
#[track_caller]
pub(crate) fn assert_empty<E: Send + Sync + 'static>(sub: &Subscription<E>) {
    match sub.try_recv() {
        Err(TryRecvError::Empty) => {}
        Err(error) => panic!("expected an empty subscription, found: {error:?}"),
        Ok(delivery) => panic!("expected nothing, found {} (attempt {})", delivery.id(), delivery.attempt()),
    }
}

/// Receives and acks all that may be handed out at this moment.
#[track_caller]
pub(crate) fn drain<E: Clone + Send + Sync + 'static>(sub: &Subscription<E>) -> Vec<E> {
    drain_with(sub, |delivery| E::clone(delivery))
}

/// As [`drain`], and gives what `look` sees in each delivery.
#[track_caller]
pub(crate) fn drain_with<E: Send + Sync + 'static, T>(
    sub: &Subscription<E>,
    mut look: impl FnMut(&Delivery<E>) -> T,
) -> Vec<T> {
    let mut seen = Vec::new();
    loop {
        match sub.try_recv() {
            Ok(delivery) => {
                seen.push(look(&delivery));
                delivery.ack().expect("a running lease is acked");
            }
            Err(TryRecvError::Empty) => return seen,
            Err(error) => panic!("while draining: {error:?}"),
        }
    }
}

/// A thread's result on its way.
pub(crate) struct Answer<T> {
    result: mpsc::Receiver<std::thread::Result<T>>,
}

/// Runs `work` on a thread of its own.
pub(crate) fn ask<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Answer<T> {
    let (sender, result) = mpsc::channel();
    std::thread::spawn(move || {
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        let _ = sender.send(outcome);
    });
    Answer { result }
}

impl<T> Answer<T> {
    /// The result; a panic of the thread goes on here, and a thread that hangs fails the test.
    #[track_caller]
    pub(crate) fn get(self) -> T {
        self.get_within(PATIENCE)
    }

    #[track_caller]
    pub(crate) fn get_within(self, seconds: u64) -> T {
        match self.result.recv_timeout(Duration::from_secs(seconds)) {
            Ok(Ok(value)) => value,
            Ok(Err(panic)) => std::panic::resume_unwind(panic),
            Err(_) => panic!("hung: no answer within {seconds} s"),
        }
    }

    /// Whether the thread is still at it after a moment of real time. A slow machine can only make this miss a mistake, never report one.
    #[track_caller]
    pub(crate) fn assert_pending(&self) {
        if let Ok(outcome) = self.result.recv_timeout(Duration::from_millis(30)) {
            match outcome {
                Ok(_) => panic!("expected the thread to wait, but it has answered"),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
    }

    /// The result, if it is there after a moment of real time.
    pub(crate) fn poll(&self) -> Option<T> {
        match self.result.recv_timeout(Duration::from_millis(5)) {
            Ok(Ok(value)) => Some(value),
            Ok(Err(panic)) => std::panic::resume_unwind(panic),
            Err(mpsc::RecvTimeoutError::Timeout) => None,
            Err(mpsc::RecvTimeoutError::Disconnected) => panic!("the thread has answered before"),
        }
    }
}

/// Runs `work` under a watchdog: what takes longer fails instead of hanging the tests.
#[track_caller]
pub(crate) fn within<T: Send + 'static>(seconds: u64, work: impl FnOnce() -> T + Send + 'static) -> T {
    ask(work).get_within(seconds)
}

/// Runs `work` to its panic, without the noise; fails when there is none.
#[track_caller]
pub(crate) fn panics(work: impl FnOnce()) {
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
    assert!(outcome.is_err(), "expected a panic");
}

/// Counts its own drops.
#[derive(Debug)]
pub(crate) struct Counted {
    pub(crate) number: u64,
    drops: Arc<AtomicUsize>,
}

/// Makes [`Counted`] events and says how many of them are gone.
#[derive(Clone, Default)]
pub(crate) struct Drops(Arc<AtomicUsize>);

impl Drops {
    pub(crate) fn event(&self, number: u64) -> Counted {
        Counted { number, drops: self.0.clone() }
    }

    pub(crate) fn count(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.drops.fetch_add(1, Ordering::SeqCst);
    }
}

/// An event that has neither `Debug` nor `Clone` nor anything else.
pub(crate) struct Bare(pub(crate) u64);

/// A small generator of repeatable numbers (SplitMix64).
pub(crate) struct Numbers(pub(crate) u64);

impl Numbers {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// Below `end`.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

/// A sum that does not care for order, but for every value and how often it came.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub(crate) struct Checksum {
    pub(crate) count: u64,
    sum: u64,
}

impl Checksum {
    pub(crate) fn add(&mut self, value: u64) {
        self.count += 1;
        self.sum = self.sum.wrapping_add(Numbers(value).next());
    }

    pub(crate) fn of(values: impl IntoIterator<Item = u64>) -> Self {
        let mut checksum = Checksum::default();
        values.into_iter().for_each(|value| checksum.add(value));
        checksum
    }

    pub(crate) fn merge(&mut self, other: Checksum) {
        self.count += other.count;
        self.sum = self.sum.wrapping_add(other.sum);
    }
}

#[cfg(feature = "async")]
pub(crate) use task::Task;

#[cfg(feature = "async")]
mod task {
    use std::pin::Pin;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Context, Poll, Wake, Waker};
    use std::time::{Duration, Instant};

    use super::PATIENCE;
    use crate::storage;

    #[derive(Default)]
    struct Wakes(AtomicUsize);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// A future polled by hand, that counts how often it was woken.
    pub(crate) struct Task<F: Future> {
        future: Pin<Box<F>>,
        wakes: Arc<Wakes>,
    }

    impl<F: Future> Task<F> {
        pub(crate) fn new(future: F) -> Self {
            Task { future: Box::pin(future), wakes: Arc::default() }
        }

        /// A task that was polled once and found nothing.
        #[track_caller]
        pub(crate) fn pending(future: F) -> Self {
            let mut task = Task::new(future);
            assert!(task.poll().is_pending(), "expected a future that waits");
            task
        }

        pub(crate) fn poll(&mut self) -> Poll<F::Output> {
            let waker = Waker::from(self.wakes.clone());
            self.future.as_mut().poll(&mut Context::from_waker(&waker))
        }

        /// The output, which must be there. On disk, once the disk has done its part: no future waits for it where it is polled.
        #[track_caller]
        pub(crate) fn ready(&mut self) -> F::Output {
            let patience = Instant::now() + Duration::from_secs(PATIENCE);
            loop {
                let woken = self.wakes();
                match self.poll() {
                    Poll::Ready(output) => return output,
                    Poll::Pending if storage::home().is_none() => panic!("expected a future that is ready"),
                    Poll::Pending => {}
                }
                while self.wakes() == woken {
                    assert!(Instant::now() < patience, "expected a future that is ready");
                    std::thread::yield_now();
                }
            }
        }

        /// How often it was woken since it was made or since `renew`.
        pub(crate) fn wakes(&self) -> usize {
            self.wakes.0.load(Ordering::SeqCst)
        }

        /// From now on polls come with another waker.
        pub(crate) fn renew(&mut self) {
            self.wakes = Arc::default();
        }
    }
}
