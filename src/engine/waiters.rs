//! Waiting for something to become available, and waking whoever waits for it.
//!
//! A topic has one [`WaitingRoom`] for its receivers, with a queue per subscription. Publishers that wait for space have a room of their
//! own: a publish wakes every queue of a room, and must not wake them.
//!
//! The two sides meet like this, and neither can miss the other:
//!
//! ```text
//! whoever waits                              whoever makes something available
//!   look: nothing                              store the new state
//!   enter(key): counted in `waiting`           fence(SeqCst)
//!   fence(SeqCst)                              is `waiting` 0? then there is no more to do
//!   look again: nothing                        lock the room, take out the first in the queue, unlock
//!   sleep                                      wake them
//! ```
//!
//! The two fences have an order. If the waiter's is first, the other side reads its entry in `waiting`; if it is second, looking again
//! finds the new state. Acquire and release in the place of the fences would let each side read what was before the other's write, on x86
//! too, and sleep for ever.
//!
//! One thing made available is one wake, and a wake is used up by a look that comes after it, whatever that finds. Who leaves without
//! such a look passes the wake on, for it may be the only one there will be: a dropped future, one whose time is over, a look that
//! panicked, and also one who found something in the second look and was woken only then. (That wake is for another thing. The wake for
//! what it found went to somebody who looked in vain and sleeps again, behind it in the queue.) [`WaitingRoom::wait`] and
//! [`WaitingRoom::poll`] keep all these rules; what they are made of is for callers with a shape of their own.
//!
//! All who wait on a key must be content with the same things, or a wake may be used up by one who has no use for what another could have
//! taken: publishers whose messages need unequal space are all woken, with [`WaitingRoom::wake_all_of`].

use std::collections::BTreeMap;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, TrySendError};

use crate::sync::atomic::{AtomicU64, AtomicUsize, Ordering, fence};
use crate::sync::{MODELLED, Mutex, thread};
use spin::{spin, yield_until};

mod spin;

#[cfg(all(test, eventflow_loom))]
mod loom_tests;
#[cfg(all(test, not(any(eventflow_loom, eventflow_shuttle))))]
mod tests;

/// What a look at the shared state came to.
pub(crate) enum Look<T> {
    /// Took what there was to take. If a wake brought us here, this used it up.
    Found(T),
    /// Waits no longer, and took nothing: the time is over, the broker closed. A wake that is on its way to us goes to the next.
    GaveUp(T),
    /// Nothing yet: sleep until woken, or until then (on the machine's clock), and look again.
    Nothing { until: Option<Instant> },
}

/// Who waits, by key: a queue for each, first come first woken.
///
/// An idle room allocates nothing. Entering, leaving and waking one are O(log n) in the room's waiters, under one short lock, in which
/// nothing is woken and no code of a user runs.
pub(crate) struct WaitingRoom {
    /// Invariant: while `seats` is unlocked, the number of waiters in it. Written under the lock, read without it by `nobody`; relaxed,
    /// because the fences in `enter` and `nobody` order it against the state that is waited for, and the waiters themselves are read
    /// under the lock.
    waiting: AtomicUsize,
    seats: Mutex<Seats>,
}

struct Seats {
    /// By key, then by ticket, which is the order of arrival.
    queues: BTreeMap<(u64, u64), Arc<Waiter>>,
    /// The waiters that stay after a wake.
    tokens: BTreeMap<(u64, u64), Arc<Waiter>>,
    /// The last ticket given out.
    ticket: u64,
    /// From this many tokens on, look whose receivers are gone: nobody tells us, and where nothing is published nobody would find out.
    tokens_max: usize,
}

/// Those to wake once the room is unlocked.
#[derive(Default)]
struct Woken {
    /// Mostly there is one, who then costs no allocation.
    first: Option<Arc<Waiter>>,
    more: Vec<Arc<Waiter>>,
    tokens: Vec<(u64, Arc<Waiter>)>,
}

impl WaitingRoom {
    pub(crate) fn new() -> Self {
        let seats =
            Seats { queues: BTreeMap::new(), tokens: BTreeMap::new(), ticket: 0, tokens_max: TOKENS_MAX };
        WaitingRoom { waiting: AtomicUsize::new(0), seats: Mutex::new(seats) }
    }

    /// [`wait`](Self::wait), but before it enters, and so makes whoever makes something available wake it, it looks for a short while whether something comes
    /// by itself: `near` says so at little cost, and may be wrong either way. Two who answer each other then never come into the room.
    pub(crate) fn wait_near<T>(
        &self,
        key: u64,
        near: impl Fn() -> bool,
        mut look: impl FnMut() -> Look<T>,
    ) -> T {
        for _ in 0..NEAR_LOOKS {
            match look() {
                Look::Found(found) => return found,
                Look::GaveUp(reason) => return reason,
                Look::Nothing { .. } => {}
            }
            if MODELLED || !(spin(&near) || yield_until(&near)) {
                break;
            }
        }
        self.wait(key, look)
    }

    /// Blocks this thread until `look` found something or gave up. `look` runs with nothing of ours locked, at least once, then once
    /// after registering and once after each wake or `until`. A panic in it passes the wake on.
    pub(crate) fn wait<T>(&self, key: u64, mut look: impl FnMut() -> Look<T>) -> T {
        let mut seat: Option<Seat<'_>> = None;
        let mut seated = false;
        loop {
            let until = match look() {
                Look::Found(found) => {
                    if let Some(seat) = &mut seat {
                        // Found before we were woken, it has a wake of its own; one that now reaches us is for something else.
                        seat.wake_used = !seated;
                    }
                    return found;
                }
                Look::GaveUp(reason) => return reason,
                Look::Nothing { until } => until,
            };
            let seat = seat.get_or_insert_with(|| Seat {
                room: self,
                key,
                waiter: Waiter::thread(),
                wake_used: false,
            });
            if seated {
                // Woken, we are out of the room, and most likely find something without going back in.
                seated = !seat.waiter.park(until);
            } else {
                self.enter(key, &seat.waiter);
                seated = true;
            }
        }
    }

    /// The same for a future. `seat` is the future's own, `None` at first; one that is dropped before it is ready must `abandon` it.
    /// What is to happen at a look's `until` is the caller's to arrange: nobody sleeps here.
    #[cfg_attr(not(feature = "async"), allow(dead_code, reason = "for futures only"))]
    pub(crate) fn poll<T>(
        &self,
        key: u64,
        seat: &mut Option<Arc<Waiter>>,
        context: &mut Context<'_>,
        mut look: impl FnMut() -> Look<T>,
    ) -> Poll<T> {
        let _guard = PassOnPanic { room: self, key };
        let mut registered = false;
        loop {
            let woken = seat.as_ref().is_some_and(|waiter| waiter.is_notified());
            match look() {
                Look::Found(found) => {
                    // As in `wait`: only a wake from before the look is used up by it.
                    if woken {
                        *seat = None;
                    } else {
                        self.abandon(key, seat);
                    }
                    return Poll::Ready(found);
                }
                Look::GaveUp(reason) => {
                    self.abandon(key, seat);
                    return Poll::Ready(reason);
                }
                Look::Nothing { .. } if registered => return Poll::Pending,
                Look::Nothing { .. } => {}
            }
            let waiter = seat.get_or_insert_with(|| Waiter::task(context.waker()));
            // A wake so far is used up by the look that follows; left standing, `set_waker` would have us polled once more for it.
            waiter.reset();
            waiter.set_waker(context.waker());
            self.enter(key, waiter);
            registered = true;
        }
    }

    /// Leaves, and passes on a wake that reached us: for who does not look again.
    #[cfg_attr(not(feature = "async"), allow(dead_code, reason = "for futures only"))]
    pub(crate) fn abandon(&self, key: u64, seat: &mut Option<Arc<Waiter>>) {
        if let Some(waiter) = seat.take()
            && !self.leave(key, &waiter)
        {
            self.wake(key, 1);
        }
    }

    /// Registers at the back of `key`'s queue; who is in it already keeps the place. The caller must look again before it sleeps.
    pub(crate) fn enter(&self, key: u64, waiter: &Arc<Waiter>) {
        let crowded = {
            let mut seats = self.seats.lock();
            seats.seat(key, waiter);
            self.count(&seats);
            seats.tokens.len() > seats.tokens_max
        };
        if crowded {
            self.sweep_tokens();
        }
        // Pairs with the fence in `nobody`: either the other side reads the count above, or we see its state when we look again.
        fence(Ordering::SeqCst);
    }

    /// Takes the waiter out. `false`: it is not in the room, because a wake took it out. Who has not looked since, be it that it found
    /// something just before, must then pass the wake on, as `abandon` does.
    pub(crate) fn leave(&self, key: u64, waiter: &Arc<Waiter>) -> bool {
        // Only its owner, which is the caller, takes a waiter out of this state.
        if waiter.is_notified() {
            return false;
        }
        let mut seats = self.seats.lock();
        let left = seats.vacate(key, waiter);
        self.count(&seats);
        left
    }

    /// Whether nobody waits at all, tokens included. One fence and one load, no lock: what a publish costs when all are busy.
    ///
    /// To be asked after the new state is stored and every lock is dropped. All the `wake`s ask by themselves.
    #[inline]
    pub(crate) fn nobody(&self) -> bool {
        // Pairs with the fence in `enter`: either we read the waiter's count, or it sees our state when it looks again.
        fence(Ordering::SeqCst);
        self.waiting.load(Ordering::Relaxed) == 0
    }

    /// [`nobody`](Self::nobody), the other way round and without the fence: for who asks under a lock that a waiter takes between entering and sleeping, when it looks again. Of the two, the second to take the lock
    /// sees what the first did.
    #[inline]
    pub(crate) fn may_have_waiters(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) != 0
    }

    /// Wakes the first `count` of `key`, and renews its tokens; with a count of 0 only these.
    pub(crate) fn wake(&self, key: u64, count: usize) {
        self.wake_those(|seats, woken| seats.take(key, count, woken));
    }

    /// Wakes the first `count` of every key, for a publish of `count` messages. O(k log n) in the keys with waiters and the woken.
    pub(crate) fn wake_each(&self, count: usize) {
        self.wake_those(|seats, woken| seats.take_each(count, woken));
    }

    /// Wakes all of `key`: it is deleted, and they will see that.
    pub(crate) fn wake_all_of(&self, key: u64) {
        self.wake(key, usize::MAX);
    }

    /// Wakes all: the broker closed, and they will see that.
    pub(crate) fn wake_everyone(&self) {
        self.wake_each(usize::MAX);
    }

    /// Whether anybody waits on `key`, tokens included.
    pub(crate) fn has(&self, key: u64) -> bool {
        if self.nobody() {
            return false;
        }
        let seats = self.seats.lock();
        first(&seats.queues, key).is_some() || first(&seats.tokens, key).is_some()
    }

    fn wake_those(&self, take: impl FnOnce(&mut Seats, &mut Woken)) {
        if self.nobody() {
            return;
        }
        let mut woken = Woken::default();
        {
            let mut seats = self.seats.lock();
            take(&mut seats, &mut woken);
            self.count(&seats);
        }
        self.signal(woken);
    }

    /// Wakes, with the room unlocked: the woken take its lock at once, and wakers are the user's code.
    fn signal(&self, woken: Woken) {
        for waiter in woken.first.iter().chain(&woken.more) {
            waiter.signal();
        }
        for (key, token) in &woken.tokens {
            if !token.signal() {
                self.leave(*key, token);
            }
        }
    }

    /// Asks every token by renewing it, which at worst makes a receiver look for nothing. As each time leaves room for as many again,
    /// entering stays O(log n).
    fn sweep_tokens(&self) {
        let mut woken = Woken::default();
        for (&(key, _), token) in &self.seats.lock().tokens {
            woken.tokens.push((key, Arc::clone(token)));
        }
        self.signal(woken);
        let mut seats = self.seats.lock();
        seats.tokens_max = TOKENS_MAX.max(seats.tokens.len().saturating_mul(2));
    }

    fn count(&self, seats: &Seats) {
        self.waiting.store(seats.queues.len() + seats.tokens.len(), Ordering::Relaxed);
    }
}

impl Seats {
    fn seat(&mut self, key: u64, waiter: &Arc<Waiter>) {
        if waiter.ticket().is_none() {
            let ticket = self.ticket + 1;
            assert!(ticket < NOTIFIED, "there are tickets for centuries");
            self.ticket = ticket;
            waiter.place.store(ticket, Ordering::Relaxed);
            self.map(waiter).insert((key, ticket), Arc::clone(waiter));
        }
        debug_assert!(
            waiter.ticket().is_some_and(|ticket| self.map(waiter).contains_key(&(key, ticket))),
            "a waiter waits in one room, on one key, at a time"
        );
    }

    fn vacate(&mut self, key: u64, waiter: &Arc<Waiter>) -> bool {
        let Some(ticket) = waiter.ticket() else { return false };
        let left = self.map(waiter).remove(&(key, ticket));
        assert!(left.is_some(), "a waiter leaves the room and the key that it entered");
        waiter.place.store(STANDING, Ordering::Relaxed);
        true
    }

    /// Moves up to `count` of `key`, and its tokens, to the woken.
    fn take(&mut self, key: u64, count: usize, woken: &mut Woken) {
        for _ in 0..count {
            let Some(seat) = first(&self.queues, key) else { break };
            let Some(waiter) = self.queues.remove(&seat) else { break };
            // Not after unlocking: who then leaves, or enters again, must find its place as the room has it.
            waiter.place.store(NOTIFIED, Ordering::Release);
            woken.push(waiter);
        }
        for (_, token) in self.tokens.range((key, 0)..=(key, u64::MAX)) {
            woken.tokens.push((key, Arc::clone(token)));
        }
    }

    fn take_each(&mut self, count: usize, woken: &mut Woken) {
        let mut from = 0;
        while let Some(key) = self.first_key(from) {
            self.take(key, count, woken);
            let Some(next) = key.checked_add(1) else { break };
            from = next;
        }
    }

    /// The first key that anybody waits on, of `from` and those after it.
    fn first_key(&self, from: u64) -> Option<u64> {
        let queued = self.queues.range((from, 0)..).next().map(|(&(key, _), _)| key);
        let token = self.tokens.range((from, 0)..).next().map(|(&(key, _), _)| key);
        match (queued, token) {
            (Some(queued), Some(token)) => Some(queued.min(token)),
            (queued, token) => queued.or(token),
        }
    }

    fn map(&mut self, waiter: &Waiter) -> &mut BTreeMap<(u64, u64), Arc<Waiter>> {
        match waiter.wakes {
            Wakes::Token(_) => &mut self.tokens,
            Wakes::Thread(_) | Wakes::Task(_) => &mut self.queues,
        }
    }
}

/// The longest waiting of `key`.
fn first(seats: &BTreeMap<(u64, u64), Arc<Waiter>>, key: u64) -> Option<(u64, u64)> {
    seats.range((key, 0)..=(key, u64::MAX)).next().map(|(&seat, _)| seat)
}

impl Woken {
    fn push(&mut self, waiter: Arc<Waiter>) {
        if self.first.is_none() {
            self.first = Some(waiter);
        } else {
            self.more.push(waiter);
        }
    }
}

/// A thread's stay in the room, which ends however the thread leaves it.
struct Seat<'room> {
    room: &'room WaitingRoom,
    key: u64,
    waiter: Arc<Waiter>,
    wake_used: bool,
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        if !self.room.leave(self.key, &self.waiter) && !self.wake_used {
            self.room.wake(self.key, 1);
        }
    }
}

/// A look that panics may have taken a wake along; one too many does no harm.
struct PassOnPanic<'room> {
    room: &'room WaitingRoom,
    key: u64,
}

impl Drop for PassOnPanic<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.room.wake(self.key, 1);
        }
    }
}

/// One who waits: a thread, a task, or a token that says "there is something" to a channel.
pub(crate) struct Waiter {
    /// `STANDING`, `NOTIFIED`, or the ticket of the seat.
    ///
    /// Invariant: a ticket exactly while it is in a room. Written under the room's lock, but for `NOTIFIED` to `STANDING`, which is its
    /// owner's and which nobody else writes. `NOTIFIED` is stored with release and read with acquire, so that the woken sees all that the
    /// waking side did before, also if it spins and never parks; all else is ordered by the lock.
    place: AtomicU64,
    wakes: Wakes,
}

enum Wakes {
    Thread(thread::Thread),
    /// The waker of the last poll; taken by the wake, so that it is woken once. Its lock holds no other and no user code.
    Task(Mutex<Option<Waker>>),
    Token(Sender<()>),
}

const STANDING: u64 = 0;
const NOTIFIED: u64 = u64::MAX;

impl Waiter {
    /// For the current thread, which alone may `park` it.
    pub(crate) fn thread() -> Arc<Waiter> {
        Waiter::new(Wakes::Thread(thread::current()))
    }

    /// For the task behind `waker`.
    #[cfg_attr(not(feature = "async"), allow(dead_code, reason = "for futures only"))]
    pub(crate) fn task(waker: &Waker) -> Arc<Waiter> {
        Waiter::new(Wakes::Task(Mutex::new(Some(waker.clone()))))
    }

    /// For a channel of capacity 1. A wake puts a token into it, unless one is there; it uses up none of a wake's count. It stays in the
    /// room until a wake finds the receiver gone.
    ///
    /// A full channel is told nothing, so who takes the token and finds nothing must look again after a `fence(SeqCst)` before it trusts
    /// that. And who takes one of several things must renew the token (`wake(key, 0)`), for all of them had but the one.
    pub(crate) fn token(sender: Sender<()>) -> Arc<Waiter> {
        Waiter::new(Wakes::Token(sender))
    }

    fn new(wakes: Wakes) -> Arc<Waiter> {
        Arc::new(Waiter { place: AtomicU64::new(STANDING), wakes })
    }

    /// Sleeps until notified (`true`), or until then (`false`; a wake may still come until it has left the room). A short while it spins:
    /// to be woken from real sleep costs tens of microseconds, and the next message is often nearer than that.
    pub(crate) fn park(&self, until: Option<Instant>) -> bool {
        if self.is_notified() || (!MODELLED && spin(|| self.is_notified())) {
            return true;
        }
        // A thread's own `unpark`s, and those of a wake that we saw while spinning, return early from sleep: they go round.
        loop {
            match until {
                None => thread::park(),
                Some(_) if MODELLED => {
                    thread::park_timeout(Duration::ZERO);
                    return self.is_notified();
                }
                Some(until) => {
                    let left = until.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return self.is_notified();
                    }
                    thread::park_timeout(left);
                }
            }
            if self.is_notified() {
                return true;
            }
        }
    }

    /// Whether a wake took it out of the room.
    pub(crate) fn is_notified(&self) -> bool {
        self.place.load(Ordering::Acquire) == NOTIFIED
    }

    /// Forgets the wake. By its owner, who is going to look; to enter again does the same.
    pub(crate) fn reset(&self) {
        if self.is_notified() {
            self.place.store(STANDING, Ordering::Relaxed);
        }
    }

    /// From now on a wake wakes `waker`. One that comes in between, and found the old waker or none, is given to the new.
    #[cfg_attr(not(feature = "async"), allow(dead_code, reason = "for futures only"))]
    pub(crate) fn set_waker(&self, waker: &Waker) {
        let Wakes::Task(slot) = &self.wakes else {
            debug_assert!(false, "only a task has a waker");
            return;
        };
        let same = slot.lock().as_ref().is_some_and(|old| old.will_wake(waker));
        if !same {
            // Cloned, and the old one dropped, outside the lock: both are the user's code.
            let new = Some(waker.clone());
            let old = mem::replace(&mut *slot.lock(), new);
            drop(old);
        }
        // Notified is stored before the waker is taken. So if the taker came before us to the slot, its lock shows us `NOTIFIED` here,
        // and we wake; and if it comes after us, it finds this waker. The slot is emptied by one of us.
        if self.is_notified() {
            self.signal();
        }
    }

    /// The ticket of its seat. Under the room's lock.
    fn ticket(&self) -> Option<u64> {
        let place = self.place.load(Ordering::Relaxed);
        (place != STANDING && place != NOTIFIED).then_some(place)
    }

    /// Outside every lock. `false`: a token whose receiver is gone.
    fn signal(&self) -> bool {
        match &self.wakes {
            Wakes::Thread(thread) => thread.unpark(),
            Wakes::Task(slot) => {
                let waker = slot.lock().take();
                if let Some(waker) = waker
                    && let Err(panic) = catch_unwind(AssertUnwindSafe(|| waker.wake()))
                {
                    // The others of this wake still have to be woken, and a payload may panic once more when it is dropped.
                    mem::forget(panic);
                }
            }
            Wakes::Token(sender) => {
                return !matches!(sender.try_send(()), Err(TrySendError::Disconnected(())));
            }
        }
        true
    }
}

/// What is near may go to others each time. Who goes on looking all the same takes part in nobody's queue.
const NEAR_LOOKS: u32 = 8;
/// A topic with more tokens than this is rare.
const TOKENS_MAX: usize = 16;
