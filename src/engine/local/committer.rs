//! The committer: the one thread of a broker on disk, for those who may not wait in their own.
//!
//! A future adds its unit as every caller does, and then asks the committer for it instead of waiting: no write and no sync ever runs in a `poll`. Whatever was asked for while the
//! committer was at the disk, it does next, in one go. It is started by the first who asks, or at once where what was written is to be synced every so often; it sleeps while nobody
//! asks and nothing was added, and ends with the store.
//!
//! ```text
//! future                                   committer
//!   add the unit: its position               take all that was asked
//!   ask: (position, how safe, waker)         commit the newest of it, as any caller does
//!   wake the committer if it sleeps          tell each what became of its own unit; wake it
//!   Pending                                  sleep, if nobody has asked meanwhile
//! ```
//!
//! Whatever calls a user's code has a thread of its own while there is some, so that a filter that takes its time, or itself waits for a publish, keeps nobody from the disk.

use std::cell::Cell;
use std::collections::VecDeque;
use std::io;
use std::mem;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};
#[cfg(feature = "async")]
use std::{
    pin::Pin,
    task::{Context, Poll, Waker},
};

use crate::contain::contained;
use crate::engine::local::store::Store;
use crate::journal::{JournalError, Position};
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{MODELLED, Mutex, thread};

#[cfg(all(test, eventflow_shuttle, feature = "async"))]
mod shuttle_tests;

/// How safe a unit is to be before whoever asks is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Safety {
    /// It survives a crash of the process.
    Written,
    /// As the broker's durability promises.
    Promised,
}

pub(super) type Outcome = Result<(), JournalError>;

/// Something to do that may call a user's code.
type Job = Box<dyn FnOnce() + Send>;

/// Where a thread is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Anywhere,
    /// In the `poll` of a future of ours.
    Poll,
    /// It serves.
    Committer,
}

crate::sync::thread_local! {
    static PLACE: Cell<Place> = const { Cell::new(Place::Anywhere) };
}

/// While it lives this thread is in a future's `poll`, or serves those who are: it does not wait for the disk if somebody else can.
pub(crate) struct NoWaiting {
    before: Place,
}

impl NoWaiting {
    #[cfg_attr(not(feature = "async"), allow(dead_code, reason = "for futures only"))]
    pub(crate) fn begin() -> Self {
        Self::at(Place::Poll)
    }

    fn at(place: Place) -> Self {
        let before = PLACE.with(Cell::get);
        if before != Place::Committer {
            PLACE.with(|at| at.set(place));
        }
        NoWaiting { before }
    }
}

impl Drop for NoWaiting {
    fn drop(&mut self) {
        PLACE.with(|at| at.set(self.before));
    }
}

/// Whether this thread is not to wait for the disk just now.
pub(super) fn waits_for_nothing() -> bool {
    PLACE.with(Cell::get) != Place::Anywhere
}

/// What somebody wants of the disk.
struct Asked {
    position: Position,
    safety: Safety,
    whom: Whom,
}

/// Who is to be told.
enum Whom {
    /// It is only to be done.
    Nobody,
    #[cfg(feature = "async")]
    Future(Arc<Seat>),
    /// Whoever asked has left, and this is to be done in its stead.
    Heir(Box<dyn FnOnce(Outcome) + Send>),
}

pub(super) struct Committer {
    state: Mutex<State>,
    /// How long what is written may stay unsynced, where that is promised.
    interval: Option<Duration>,
    /// Something was added since the last sync. Looked at where there is an interval alone.
    is_dirty: AtomicBool,
}

#[derive(Default)]
struct State {
    asked: Vec<Asked>,
    jobs: VecDeque<Job>,
    /// Who serves.
    server: Option<thread::Thread>,
    /// Somebody does the jobs.
    has_worker: bool,
    /// When what was added is to be synced.
    sync_at: Option<Instant>,
    /// How long the last sync took: the next begins so much earlier.
    sync_took: Duration,
}

/// What is next.
enum Turn {
    Commit(Vec<Asked>),
    Sync,
    Sleep(Option<Instant>),
    End,
}

const INTERVAL_MIN: Duration = Duration::from_millis(1);

impl Committer {
    pub(super) fn new(interval: Option<Duration>) -> Arc<Self> {
        let interval = interval.map(|interval| interval.max(INTERVAL_MIN));
        Arc::new(Committer {
            state: Mutex::new(State::default()),
            interval,
            is_dirty: AtomicBool::new(false),
        })
    }

    /// Starts the thread now, where there is an interval.
    pub(super) fn start(self: &Arc<Self>, store: &Arc<Store>) -> io::Result<()> {
        if self.interval.is_some() {
            self.serve_from_now_on(&mut self.state.lock(), store)?;
        }
        Ok(())
    }

    fn serve_from_now_on(self: &Arc<Self>, state: &mut State, store: &Arc<Store>) -> io::Result<()> {
        let (committer, store) = (self.clone(), Arc::downgrade(store));
        let builder = thread::Builder::new().name("eventflow-commit".into());
        let handle = builder.spawn(move || serve(&committer, &store))?;
        state.server = Some(handle.thread().clone());
        Ok(())
    }

    /// A unit was added. May be called under any lock but the committer's own.
    #[inline]
    pub(super) fn note_added(&self) {
        if self.interval.is_some() && !self.is_dirty.swap(true, Ordering::AcqRel) {
            self.wake();
        }
    }

    /// Whoever serves looks again.
    pub(super) fn wake(&self) {
        let server = self.state.lock().server.clone();
        if let Some(server) = server {
            server.unpark();
        }
    }

    /// Whether somebody waits.
    pub(super) fn is_asked(&self) -> bool {
        !self.state.lock().asked.is_empty()
    }

    /// Tells those who wait for what is known already.
    pub(super) fn tell_what_is_known(&self, store: &Store) {
        let asked = mem::take(&mut self.state.lock().asked);
        let mut left = Vec::new();
        for asked in asked {
            match store.known(asked.position, asked.safety) {
                Some(outcome) => asked.whom.tell(outcome, &store.committer),
                None => left.push(asked),
            }
        }
        self.state.lock().asked.extend(left);
    }

    /// Gives it back if there can be no thread.
    fn ask(self: &Arc<Self>, store: &Arc<Store>, asked: Asked) -> Result<(), Asked> {
        let mut state = self.state.lock();
        if state.server.is_none() && self.serve_from_now_on(&mut state, store).is_err() {
            return Err(asked);
        }
        state.asked.push(asked);
        // Not asleep before it has seen the last that came.
        let server = if state.asked.len() == 1 { state.server.clone() } else { None };
        drop(state);
        if let Some(server) = server {
            server.unpark();
        }
        Ok(())
    }

    fn turn(&self, is_over: bool) -> Turn {
        let mut state = self.state.lock();
        if !state.asked.is_empty() {
            return Turn::Commit(mem::take(&mut state.asked));
        }
        if is_over {
            // Under the lock: who asks after this starts another.
            state.server = None;
            return Turn::End;
        }
        let Some(interval) = self.interval.filter(|_| self.is_dirty.load(Ordering::Acquire)) else {
            return Turn::Sleep(None);
        };
        let now = Instant::now();
        let early = state.sync_took.min(interval / 2);
        let at = state.sync_at.or_else(|| now.checked_add(interval - early));
        state.sync_at = at;
        match at {
            Some(at) if at > now && !MODELLED => Turn::Sleep(Some(at)),
            Some(_) => {
                state.sync_at = None;
                // Before the sync: what is added from here on has the next.
                self.is_dirty.store(false, Ordering::Release);
                Turn::Sync
            }
            // Beyond all time.
            None => Turn::Sleep(None),
        }
    }

    /// Does what may call a user's code, on a thread that nobody waits for.
    fn hand_off(self: &Arc<Self>, job: Job) {
        let mut state = self.state.lock();
        state.jobs.push_back(job);
        if mem::replace(&mut state.has_worker, true) {
            return;
        }
        let committer = self.clone();
        let builder = thread::Builder::new().name("eventflow-follow".into());
        if builder.spawn(move || committer.work()).is_err() {
            drop(state);
            // Better late than never.
            self.work();
        }
    }

    fn work(&self) {
        loop {
            let job = {
                let mut state = self.state.lock();
                let job = state.jobs.pop_front();
                state.has_worker = job.is_some();
                job
            };
            let Some(job) = job else { return };
            let _contained = contained(job);
        }
    }
}

/// The thread. It holds the store only while it works, so that a broker that is dropped takes it along.
fn serve(committer: &Arc<Committer>, store: &Weak<Store>) {
    let _serving = NoWaiting::at(Place::Committer);
    loop {
        let is_over = store.upgrade().is_none_or(|store| store.is_closed());
        match committer.turn(is_over) {
            Turn::Commit(asked) => match store.upgrade() {
                Some(store) => answer_all(&store, asked),
                None => {
                    asked.into_iter().for_each(|asked| asked.whom.tell(Err(JournalError::Closed), committer))
                }
            },
            Turn::Sync => {
                let start = Instant::now();
                // A failure is told to whoever wants something.
                let _told_later = store.upgrade().map(|store| contained(|| store.sync()));
                committer.state.lock().sync_took = start.elapsed();
            }
            Turn::Sleep(None) => thread::park(),
            Turn::Sleep(Some(until)) => {
                thread::park_timeout(until.saturating_duration_since(Instant::now()));
            }
            Turn::End => return,
        }
    }
}

/// Commits up to the newest that was asked for, and tells each what became of its own.
fn answer_all(store: &Arc<Store>, asked: Vec<Asked>) {
    let (written, promised): (Vec<_>, Vec<_>) =
        asked.into_iter().partition(|asked| asked.safety == Safety::Written);
    // First what needs no sync.
    for asked in [written, promised] {
        let newest = asked.iter().max_by_key(|asked| asked.position);
        if let Some(newest) = newest {
            // What becomes of the newest need not be what becomes of the others.
            let _looked_up_below = contained(|| store.make_safe(newest.position, newest.safety));
        }
        for Asked { position, safety, whom } in asked {
            whom.tell(store.make_safe(position, safety), &store.committer);
        }
    }
}

impl Whom {
    fn tell(self, outcome: Outcome, committer: &Arc<Committer>) {
        match self {
            Whom::Nobody => {}
            #[cfg(feature = "async")]
            Whom::Future(seat) => seat.give(outcome),
            Whom::Heir(heir) => committer.hand_off(Box::new(move || heir(outcome))),
        }
    }
}

impl Store {
    /// Waits until the unit is that safe, and completed. With nothing locked.
    pub(super) fn make_safe(&self, position: Position, safety: Safety) -> Outcome {
        match safety {
            Safety::Written => self.write(position),
            Safety::Promised => self.commit(position),
        }
    }

    /// The unit is to be written, and nobody waits for it.
    pub(super) fn write_elsewhere(self: &Arc<Self>, position: Position) {
        self.make_safe_elsewhere(position, Safety::Written);
    }

    /// The unit is to be as safe as this, and perhaps nobody waits for it. May be called under any lock but the committer's own.
    pub(super) fn make_safe_elsewhere(self: &Arc<Self>, position: Position, safety: Safety) {
        let asked = Asked { position, safety, whom: Whom::Nobody };
        // Without a thread it is done with the next that somebody waits for.
        let _later = self.committer.ask(self, asked);
    }

    /// When the unit is as safe as was promised, or came to nothing, `heir` is told, with nothing locked, on a thread that nobody waits for.
    pub(super) fn leave_to(
        self: &Arc<Self>,
        position: Position,
        heir: impl FnOnce(Outcome) + Send + 'static,
    ) {
        let asked = Asked { position, safety: Safety::Promised, whom: Whom::Heir(Box::new(heir)) };
        if let Err(asked) = self.committer.ask(self, asked) {
            asked.whom.tell(self.commit(position), &self.committer);
        }
    }

    /// What may wait for the disk, or call a user's code: here, or, if this thread is not to wait, on one that may.
    pub(super) fn here_or_elsewhere(&self, job: impl FnOnce() + Send + 'static) {
        if waits_for_nothing() { self.committer.hand_off(Box::new(job)) } else { job() }
    }

    /// [`make_safe`](Self::make_safe) for futures.
    #[cfg(feature = "async")]
    pub(crate) fn make_safe_later(self: &Arc<Self>, position: Position, safety: Safety) -> Pending {
        let mut known = self.known(position, safety);
        if known.is_none() && PLACE.with(Cell::get) == Place::Committer {
            // The `Drop` of an event, or a waker, that polls: it would wait for this very thread.
            known = Some(self.make_safe(position, safety));
        }
        if let Some(outcome) = known {
            return Pending(Seat::new(Answer::Given(outcome)));
        }
        let seat = Seat::new(Answer::Awaited(None));
        let asked = Asked { position, safety, whom: Whom::Future(seat.clone()) };
        if let Err(asked) = self.committer.ask(self, asked) {
            asked.whom.tell(self.make_safe(position, safety), &self.committer);
        }
        Pending(seat)
    }
}

/// Where a future waits for its answer.
#[cfg(feature = "async")]
struct Seat(Mutex<Answer>);

#[cfg(feature = "async")]
enum Answer {
    Awaited(Option<Waker>),
    Given(Outcome),
}

#[cfg(feature = "async")]
impl Seat {
    fn new(answer: Answer) -> Arc<Self> {
        Arc::new(Seat(Mutex::new(answer)))
    }

    fn give(&self, outcome: Outcome) {
        let before = mem::replace(&mut *self.0.lock(), Answer::Given(outcome));
        if let Answer::Awaited(Some(waker)) = before {
            // What it throws is not to keep the others from being told.
            let _contained = contained(|| waker.wake());
        }
    }
}

/// Ready when a unit is as safe as was asked for, or came to nothing. Dropped before, it changes nothing: the unit is in the journal's hands.
#[cfg(feature = "async")]
pub(crate) struct Pending(Arc<Seat>);

#[cfg(feature = "async")]
impl Future for Pending {
    type Output = Outcome;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Outcome> {
        // Cloned, and the old one dropped, outside the lock: both are the user's code.
        let waker = context.waker().clone();
        let mut answer = self.0.0.lock();
        match &mut *answer {
            Answer::Given(outcome) => Poll::Ready(outcome.clone()),
            Answer::Awaited(old) => {
                let old = old.replace(waker);
                drop(answer);
                drop(old);
                Poll::Pending
            }
        }
    }
}

#[cfg(feature = "async")]
impl Drop for Pending {
    fn drop(&mut self) {
        let mut answer = self.0.0.lock();
        let waker = match &mut *answer {
            Answer::Awaited(waker) => waker.take(),
            Answer::Given(_) => None,
        };
        drop(answer);
        drop(waker);
    }
}
