//! The only place that asks what time it is.

use std::fmt;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant, SystemTime};

use crate::sync::Mutex;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::time::{Tick, nanos};

/// A broker's clock: [`SystemClock`] or [`ManualClock`]. Sealed.
pub trait Clock: sealed::Sealed {}

mod sealed {
    pub trait Sealed {
        #[doc(hidden)]
        fn into_line(self) -> super::Line;
    }
}

pub(crate) fn line_of(clock: impl Clock) -> Line {
    clock.into_line()
}

/// The computer's clock, the default.
///
/// The wall clock is read once, when the broker is built; from then on time runs monotonically. A wall clock that is set, forward or
/// back, ends no lease and moves no publish time; the broker takes the new time up when it is next built.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {}

impl sealed::Sealed for SystemClock {
    fn into_line(self) -> Line {
        Line(Kind::System { start: Instant::now(), base: Tick::from_system_time(SystemTime::now()) })
    }
}

/// A clock that stands still until it is told to [`advance`](Self::advance), for tests of anything that depends on time.
///
/// It starts at 2026-01-01T00:00:00Z. Clones are one clock; several brokers may share it.
///
/// ```
/// use eventflow::{Broker, ManualClock};
/// use std::time::Duration;
///
/// let clock = ManualClock::new();
/// let broker = Broker::builder().clock(clock.clone()).build()?;
/// let orders = broker.topic::<String>("orders").open()?;
/// let billing = orders.subscription("billing").open()?;
///
/// orders.publish("order 7")?;
/// let first = billing.recv()?;
/// clock.advance(Duration::from_secs(10)); // the default ack deadline passes, at once
/// let second = billing.recv()?;
/// assert_eq!((first.attempt(), second.attempt()), (1, 2));
/// # Ok::<(), eventflow::Error>(())
/// ```
#[derive(Clone)]
pub struct ManualClock {
    inner: Arc<Manual>,
}

struct Manual {
    now: AtomicU64,
    /// Where all calls of `advance` together lead: two at a time add up.
    goal: AtomicU64,
    timed: Mutex<Vec<Weak<dyn Timed>>>,
}

/// Whoever has something to do at a certain time.
pub(crate) trait Timed: Send + Sync {
    /// The next time at which there is something to do.
    fn next(&self) -> Option<Tick>;
    /// Does what is due at `now`, completely.
    fn run(&self, now: Tick);
}

/// 2026-01-01T00:00:00Z.
const MANUAL_START: Tick = Tick::from_nanos(1_767_225_600_000_000_000);

impl ManualClock {
    /// A new clock, at 2026-01-01T00:00:00Z.
    pub fn new() -> Self {
        let start = MANUAL_START.nanos();
        let (now, goal) = (AtomicU64::new(start), AtomicU64::new(start));
        ManualClock { inner: Arc::new(Manual { now, goal, timed: Mutex::new(Vec::new()) }) }
    }

    /// Lets time pass, deadline by deadline. When it returns, every consequence is in the brokers' state: leases have ended, delays are over,
    /// dead letters are in their topics, timeouts have passed. Threads that were woken by it may still be on their way.
    pub fn advance(&self, duration: Duration) {
        let step = nanos(duration);
        let before =
            self.inner.goal.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |at| Some(later(at, step)));
        let target = Tick::from_nanos(later(before.unwrap_or_else(|at| at), step));
        self.ring_until(target);
        self.inner.now.fetch_max(target.nanos(), Ordering::SeqCst);
        // An alarm may have been set after the last look and before the clock stood here: who sets a later one sees that it is overdue.
        self.ring_until(target);
    }

    fn ring_until(&self, target: Tick) {
        while let Some((at, timed)) = self.next_due(target) {
            self.inner.now.fetch_max(at.nanos(), Ordering::SeqCst);
            timed.run(self.tick());
        }
    }

    /// What the clock shows.
    pub fn now(&self) -> SystemTime {
        self.tick().to_system_time()
    }

    fn tick(&self) -> Tick {
        Tick::from_nanos(self.inner.now.load(Ordering::SeqCst))
    }

    fn next_due(&self, target: Tick) -> Option<(Tick, Arc<dyn Timed>)> {
        let timed: Vec<Arc<dyn Timed>> = {
            let mut timed = self.inner.timed.lock();
            timed.retain(|weak| weak.strong_count() > 0);
            timed.iter().filter_map(Weak::upgrade).collect()
        };
        let next = timed.into_iter().filter_map(|timed| Some((timed.next()?, timed)));
        next.filter(|(at, _)| *at <= target).min_by_key(|(at, _)| *at)
    }
}

/// Time ends one nanosecond before "never".
fn later(at: u64, step: u64) -> u64 {
    at.saturating_add(step).min(Tick::NEVER.nanos() - 1)
}

impl Default for ManualClock {
    fn default() -> Self {
        ManualClock::new()
    }
}

impl fmt::Debug for ManualClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ManualClock").field("now", &self.now()).finish()
    }
}

impl Clock for ManualClock {}

impl sealed::Sealed for ManualClock {
    fn into_line(self) -> Line {
        Line(Kind::Manual(self))
    }
}

/// The time line of one broker.
#[derive(Clone, Debug)]
pub struct Line(Kind);

#[derive(Clone, Debug)]
enum Kind {
    System { start: Instant, base: Tick },
    Manual(ManualClock),
}

impl Line {
    #[inline]
    pub(crate) fn now(&self) -> Tick {
        match &self.0 {
            Kind::System { start, base } => *base + start.elapsed(),
            Kind::Manual(clock) => clock.tick(),
        }
    }

    /// The same line, but never before `at`, where it was once. A clock that is set by hand stands where it is set.
    pub(crate) fn not_before(self, at: Tick) -> Line {
        match self.0 {
            Kind::System { start, base } => Line(Kind::System { start, base: base.max(at) }),
            manual @ Kind::Manual(_) => Line(manual),
        }
    }

    pub(crate) fn is_manual(&self) -> bool {
        matches!(self.0, Kind::Manual(_))
    }

    /// When a thread must wake for a tick. None: no sleep lasts until then; of a manual clock, `advance` wakes it.
    pub(crate) fn instant_of(&self, at: Tick) -> Option<Instant> {
        match &self.0 {
            Kind::System { start, base } => start.checked_add(at.since(*base)),
            Kind::Manual(_) => None,
        }
    }

    /// `advance` is to run this; it is forgotten when it is dropped.
    pub(crate) fn attach(&self, timed: Weak<dyn Timed>) {
        if let Kind::Manual(clock) = &self.0 {
            clock.inner.timed.lock().push(timed);
        }
    }
}
