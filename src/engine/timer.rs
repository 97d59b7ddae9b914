//! What is to happen at a certain time while nobody calls.
//!
//! With the system clock, one thread a broker serves it, started when there is first something to wait for; it sleeps until the next
//! alarm, and without one it sleeps for good. With a manual clock there is no thread: `advance` does its work.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Weak};

use crate::clock::{Line, Timed};
use crate::contain::contained;
use crate::sync::{Mutex, thread};
use crate::time::Tick;

/// Whoever asked to be called.
pub(crate) trait Alarm: Send + Sync {
    fn ring(self: Arc<Self>, now: Tick);
}

pub(crate) struct Timer {
    line: Line,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// By time, then in the order in which they were set.
    alarms: BTreeMap<(Tick, u64), Weak<dyn Alarm>>,
    /// The one alarm that an owner has, by the owner's address: when it rings, the owner sets the next. So alarms do not pile up.
    owners: HashMap<usize, (Tick, u64)>,
    set: u64,
    /// How many threads ring alarms. Each looks once more before it stops.
    ringing: u32,
    thread: Option<thread::Thread>,
}

impl Timer {
    pub(crate) fn new(line: Line) -> Arc<Self> {
        let timer = Arc::new(Timer { line, state: Mutex::new(State::default()) });
        let timed: Weak<dyn Timed> = Arc::downgrade(&(timer.clone() as Arc<dyn Timed>));
        timer.line.attach(timed);
        timer
    }

    /// Calls `alarm` once, at `at` or as soon after as may be, or earlier if it has set an earlier one; then it is to set the next.
    pub(crate) fn set(self: &Arc<Self>, at: Tick, alarm: Weak<dyn Alarm>) {
        if at == Tick::NEVER {
            return;
        }
        let mut state = self.state.lock();
        let owner = address_of(&alarm);
        if let Some(&(earlier, _)) = state.owners.get(&owner)
            && earlier <= at
        {
            return;
        }
        state.set += 1;
        let key = (at, state.set);
        if let Some(later) = state.owners.insert(owner, key) {
            state.alarms.remove(&later);
        }
        let is_first = state.alarms.first_key_value().is_none_or(|(first, _)| key < *first);
        state.alarms.insert(key, alarm);
        if self.line.is_manual() {
            return;
        }
        let sleeper = state.thread.clone();
        if sleeper.is_none() {
            state.thread = self.start();
        }
        drop(state);
        if let Some(sleeper) = sleeper
            && is_first
        {
            sleeper.unpark();
        }
    }

    /// With a manual clock, who lets time pass also looks for alarms, and may have done so just before the one for `at` was set: then it rings here.
    /// To be called after [`set`](Self::set), with nothing locked.
    pub(crate) fn catch_up(&self, at: Tick) {
        if !self.line.is_manual() || at > self.line.now() {
            return;
        }
        // Who rings already comes to it, and may be our own caller.
        if self.state.lock().ringing == 0 {
            self.run(self.line.now());
        }
    }

    /// Forgets every alarm.
    pub(crate) fn clear(&self) {
        let forgotten = {
            let mut state = self.state.lock();
            state.owners.clear();
            std::mem::take(&mut state.alarms)
        };
        drop(forgotten);
    }

    /// None when the system gives no thread: the next alarm tries again, and every call of a user's looks at the time by itself.
    fn start(self: &Arc<Self>) -> Option<thread::Thread> {
        let timer = Arc::downgrade(self);
        let builder = thread::Builder::new().name("eventflow-timer".into());
        let handle = builder.spawn(move || serve(&timer)).ok()?;
        Some(handle.thread().clone())
    }

    /// An alarm to ring, and the time that it is. None: whoever asks stops ringing.
    fn take_due(&self, now: Tick) -> Option<(Weak<dyn Alarm>, Tick)> {
        let mut state = self.state.lock();
        // Under the lock: an alarm that is set after it finds the time that was, or nobody ringing.
        let now = if self.line.is_manual() { now.max(self.line.now()) } else { now };
        let due = state.alarms.first_entry().filter(|first| first.key().0 <= now);
        let alarm = due.map(|first| (first.remove(), now));
        match &alarm {
            Some((alarm, _)) => drop(state.owners.remove(&address_of(alarm))),
            None => state.ringing -= 1,
        }
        alarm
    }
}

fn address_of(alarm: &Weak<dyn Alarm>) -> usize {
    alarm.as_ptr().cast::<()>() as usize
}

/// The timer's thread. It holds the timer only while it works, so that a broker that is dropped takes it along.
fn serve(timer: &Weak<Timer>) {
    loop {
        let Some(strong) = timer.upgrade() else { return };
        strong.run(strong.line.now());
        let next = Timed::next(&*strong);
        let line = strong.line.clone();
        drop(strong);
        match next {
            None if timer.strong_count() == 0 => return,
            None => thread::park(),
            Some(at) => thread::park_timeout(at.since(line.now())),
        }
    }
}

impl Timed for Timer {
    fn next(&self) -> Option<Tick> {
        self.state.lock().alarms.first_key_value().map(|(key, _)| key.0)
    }

    fn run(&self, now: Tick) {
        self.state.lock().ringing += 1;
        while let Some((alarm, now)) = self.take_due(now) {
            if let Some(alarm) = alarm.upgrade() {
                // An alarm may run a filter or drop an event: what that throws must not take the other alarms along.
                let _contained = contained(|| alarm.ring(now));
            }
        }
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        if let Some(thread) = self.state.get_mut().thread.take() {
            thread.unpark();
        }
    }
}

impl fmt::Debug for Timer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Timer").field("next", &Timed::next(self)).finish()
    }
}
