//! The road out: what a receiver gets, and how it waits.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use crate::delivery::hand_out::{Ask, Decision, Grant, Ticket};
use crate::delivery::intake::Examination;
use crate::engine::local::broker::Phase;
use crate::engine::local::committer::Safety;
use crate::engine::local::staging::Stored;
use crate::engine::local::store::Added;
use crate::engine::local::subscription::{Desk, SubscriptionCore, TIMEOUT_BUDGET};
use crate::engine::waiters::Look;
use crate::error::RecvError;
use crate::few::Few;
use crate::journal::{JournalError, Position};
use crate::log::{Segment, Spot, SpotRef};
use crate::options::DeliveryMode;
use crate::sequence::Sequence;
use crate::sync::Mutex;
use crate::sync::atomic::Ordering;
use crate::time::Tick;

/// A message leased to a subscriber, before it has a handle.
pub(crate) struct Held<E> {
    pub(crate) ticket: Ticket,
    pub(crate) spot: Spot<E>,
}

/// Messages in a row, leased together, of one segment, which they keep.
///
/// Invariant: at least one, and all of them are in the segment.
pub(crate) struct Lot<E> {
    pub(crate) grant: Grant,
    spot: Spot<E>,
}

impl<E> Lot<E> {
    /// The first, and what is left.
    pub(crate) fn split_first(self) -> (Held<E>, Option<Lot<E>>) {
        let Lot { grant, spot } = self;
        let ticket = grant.first_ticket();
        let rest = grant.without_first().and_then(|grant| {
            let spot = spot.neighbour(grant.first)?;
            Some(Lot { grant, spot })
        });
        (Held { ticket, spot }, rest)
    }

    /// Where the messages are, in order.
    pub(crate) fn places(&self) -> impl Iterator<Item = SpotRef<'_, E>> {
        self.spot.run(self.grant.len)
    }
}

/// What is to be safe before a receiver gets what it was given.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Precaution {
    pub(crate) position: Position,
    pub(crate) safety: Safety,
}

/// What a receiver that does not wait was given.
pub(crate) enum Taken {
    Nothing,
    Lots,
    /// On disk: it may have them when this is safe.
    Unsafe(Precaution),
}

/// On disk, where a hand-out settles: what a future was given that was dropped before the hand-out was safe. The next receiver gets it, so that it is not lost with the future; it goes with
/// the process, as what was handed out does.
pub(super) struct Shelf<E>(Mutex<VecDeque<(Lot<E>, Precaution)>>);

impl<E> Shelf<E> {
    pub(super) fn new() -> Self {
        Shelf(Mutex::new(VecDeque::new()))
    }
}

/// How many messages are looked at to fill a batch of which a part is ready.
const LOOK_FURTHER_MAX: u64 = 1_024;

crate::sync::thread_local! {
    /// The subscriptions in whose filters this thread is: a receiver in there cannot wait for its own examination to end.
    static EXAMINING: RefCell<Vec<u64>> = const { RefCell::new(Vec::new()) };
}

/// Why a receiver that may wait has nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoMessage {
    Timeout,
    Ended(RecvError),
}

/// Segments that were looked at under the lock, for nothing.
type Stale<E> = Few<Arc<Segment<E>>>;

/// Before a hand-out its attempts are written, and what it settles is as safe as a publish.
fn precaution(attempts: Option<Added>, settled: Option<Added>) -> Result<Option<Precaution>, RecvError> {
    let attempts = attempts.map(|added| (added, Safety::Written));
    let settled = settled.map(|added| (added, Safety::Promised));
    let Some((added, safety)) = settled.or(attempts) else { return Ok(None) };
    let position = added.map_err(|fault| RecvError::Storage { fault })?;
    Ok(Some(Precaution { position, safety }))
}

/// What a receiver that asked for one message got.
pub(crate) fn only_held<E>(lots: Few<Lot<E>>) -> Held<E> {
    match lots.into_parts().0 {
        Some(lot) => lot.split_first().0,
        None => unreachable!("a receiver that was given something has it"),
    }
}

impl<E: Send + Sync + 'static> SubscriptionCore<E> {
    /// One new message, where that is all there is to it: no filter, key, delay, life, nothing that comes again, nothing that is due, nobody else who waits. None: look the long way.
    #[inline]
    fn take_plain(self: &Arc<Self>) -> Option<Held<E>> {
        if self.mode == DeliveryMode::AtMostOnce
            || self.topic.stored.is_some()
            || self.check_receivable().is_err()
        {
            return None;
        }
        let now = self.topic.broker.now();
        // The tail first, as below.
        let tail = self.topic.log.tail();
        if !self.is_plain() {
            return None;
        }
        let mut stale = Stale::new();
        let mut desk = self.desk.lock();
        // Both under the lock, as below.
        if desk.closed || self.topic.broker.phase() != Phase::Open {
            return None;
        }
        let sequence = desk.ledger.next_plain(now, tail)?;
        let spot = self.find_near(&mut desk, sequence, &mut stale)?;
        let ticket = desk.ledger.grant_plain(sequence, now);
        if self.is_watched() {
            let after = self.collect(&mut desk, None);
            drop(desk);
            self.follow_up(after);
        } else {
            desk.note_outstanding();
        }
        Some(Held { ticket, spot })
    }

    /// Leases one message. Never waits. None: there is nothing now.
    pub(crate) fn take_one(self: &Arc<Self>) -> Result<Option<Held<E>>, RecvError> {
        if let Some(held) = self.take_plain() {
            return Ok(Some(held));
        }
        let mut lots = Few::new();
        let taken = self.take(1, &mut lots)?;
        Ok(taken.then(|| only_held(lots)))
    }

    /// Blocks until it has leased one message, or the deadline passes.
    pub(crate) fn wait_one(self: &Arc<Self>, deadline: Option<Tick>) -> Result<Held<E>, NoMessage> {
        if let Some(held) = self.take_plain() {
            return Ok(held);
        }
        let mut lots = Few::new();
        self.wait(1, deadline, &mut lots)?;
        Ok(only_held(lots))
    }

    /// Leases up to `max` messages into `lots`. Never waits, but on disk for what is to be safe before. False: there is nothing now.
    pub(crate) fn take(self: &Arc<Self>, max: usize, lots: &mut Few<Lot<E>>) -> Result<bool, RecvError> {
        match self.begin_take(max, lots)? {
            Taken::Nothing => Ok(false),
            Taken::Lots => Ok(true),
            Taken::Unsafe(precaution) => {
                let outcome = match &self.topic.stored {
                    Some(stored) => stored.store.make_safe(precaution.position, precaution.safety),
                    None => Ok(()),
                };
                self.end_take(lots, outcome)?;
                Ok(true)
            }
        }
    }

    /// What a hand-out comes to when the disk has answered.
    pub(crate) fn end_take(
        self: &Arc<Self>,
        lots: &mut Few<Lot<E>>,
        outcome: Result<(), JournalError>,
    ) -> Result<(), RecvError> {
        let (Err(error), Some(stored)) = (outcome, &self.topic.stored) else { return Ok(()) };
        // What is settled first is in the book again by now.
        self.give_back(lots.take());
        Err(RecvError::Storage { fault: stored.store.fault_of(&error) })
    }

    /// Who was to get it has left before the disk has answered.
    #[cfg_attr(not(feature = "async"), allow(dead_code, reason = "for futures only"))]
    pub(crate) fn abandon_take(self: &Arc<Self>, lots: Few<Lot<E>>, precaution: Precaution) {
        if self.mode != DeliveryMode::AtMostOnce {
            return self.give_back(lots);
        }
        // Its hand-out is in the journal's hands, and cannot be taken back; but somebody else may have it.
        self.shelf.0.lock().extend(lots.into_iter().map(|lot| (lot, precaution)));
        self.topic.receivers.wake(self.id, 1);
    }

    fn give_back(self: &Arc<Self>, lots: Few<Lot<E>>) {
        if self.mode == DeliveryMode::AtMostOnce {
            return;
        }
        let tickets: Vec<_> = lots.iter().flat_map(|lot| lot.grant.tickets()).collect();
        // First the messages: what follows may let go of the log's last hold on them.
        drop(lots);
        let _stale = self.release_all(&tickets);
    }

    /// None: there is nothing on it, or nothing is to be delivered.
    fn take_from_shelf(&self, stored: &Stored<E>, lots: &mut Few<Lot<E>>) -> Option<Precaution> {
        if self.mode != DeliveryMode::AtMostOnce || self.desk.lock().ledger.is_paused() {
            return None;
        }
        loop {
            let (lot, precaution) = self.shelf.0.lock().pop_front()?;
            let known = stored.store.known(precaution.position, precaution.safety);
            // Else its hand-out came to nothing, and the book has it again.
            if known.is_none_or(|outcome| outcome.is_ok()) {
                lots.push(lot);
                return Some(precaution);
            }
        }
    }

    /// [`take`](Self::take) as far as it goes without waiting for the disk.
    pub(crate) fn begin_take(
        self: &Arc<Self>,
        max: usize,
        lots: &mut Few<Lot<E>>,
    ) -> Result<Taken, RecvError> {
        let max = max as u64;
        let mut looked_at = 0;
        let nested = self.has_filter() && EXAMINING.with(|stack| stack.borrow().contains(&self.id));
        let mut grants = Few::new();
        loop {
            let mut stale = Stale::new();
            self.check_receivable()?;
            if let Some(stored) = &self.topic.stored
                && let Some(precaution) = self.take_from_shelf(stored, lots)
            {
                return Ok(Taken::Unsafe(precaution));
            }
            let now = self.topic.broker.now();
            // The tail first: what it shows of messages with a delay or a life, `timed` shows too.
            let tail = self.topic.log.tail();
            let ask = Ask {
                now,
                tail,
                plain: self.is_plain(),
                max,
                look_further: looked_at < LOOK_FURTHER_MAX,
                nested,
            };
            let (decision, more, gone, precaution, after) = {
                let mut desk = self.desk.lock();
                if desk.closed {
                    drop(desk);
                    return Err(self.ended().unwrap_or(RecvError::Deleted));
                }
                // Under the lock that a shutdown takes to count what is outstanding: it has counted this lease, or there is none.
                if self.topic.broker.phase() != Phase::Open {
                    return Err(RecvError::Closed);
                }
                let more = desk.ledger.handle_timeout(now, TIMEOUT_BUDGET);
                let decision = desk.ledger.poll_lease(ask, &mut grants);
                let attempts = self.record_attempts(&desk.ledger, grants.as_slice());
                let settled = self.record_hand_out(&mut desk.ledger, &mut grants);
                let precaution = precaution(attempts, settled);
                // Under the lock: what the hand-out has settled, the log may let go of once it is dropped.
                let gone = self.find_all(&mut desk, &mut grants, lots, &mut stale);
                (decision, more, gone, precaution, self.collect(&mut desk, None))
            };
            self.follow_up(after);
            let precaution = precaution?;
            for sequence in gone {
                self.change(|ledger| ledger.handle_removed(sequence, sequence.next()));
            }
            match decision {
                Decision::Granted if !lots.is_empty() => {
                    return Ok(precaution.map_or(Taken::Lots, Taken::Unsafe));
                }
                Decision::Granted => {}
                Decision::Examine(examination) => {
                    looked_at += examination.to - examination.from;
                    self.examine_and_tell(examination);
                }
                Decision::Empty if more => {}
                Decision::Empty => return Ok(Taken::Nothing),
            }
        }
    }

    /// Turns grants into lots, in order. Gives what the log does not have.
    fn find_all(
        &self,
        desk: &mut Desk<E>,
        grants: &mut Few<Grant>,
        lots: &mut Few<Lot<E>>,
        stale: &mut Stale<E>,
    ) -> Vec<Sequence> {
        let mut gone = Vec::new();
        for grant in grants.take() {
            let mut rest = Some(grant);
            while let Some(grant) = rest {
                let Some(spot) = self.find_near(desk, grant.first, stale) else {
                    gone.push(grant.first);
                    rest = grant.without_first();
                    continue;
                };
                let (here, after) = grant.split_at(if grant.len == 1 { 1 } else { spot.left_in_segment() });
                lots.push(Lot { grant: here, spot });
                rest = after;
            }
        }
        gone
    }

    /// A message of the segment that was looked at last costs no look into the directory.
    ///
    /// It may be just then that the segment goes, and that we hold it last: what is in `stale` is to be dropped after the lock is let go, because events are dropped with it.
    fn find_near(&self, desk: &mut Desk<E>, sequence: Sequence, stale: &mut Stale<E>) -> Option<Spot<E>> {
        if let Some(segment) = desk.near.upgrade() {
            match Spot::new(segment, sequence) {
                Ok(spot) => return Some(spot),
                Err(segment) => stale.push(segment),
            }
        }
        let spot = self.topic.log.find(sequence)?;
        desk.near = Arc::downgrade(spot.segment());
        desk.near_end = spot.segment().end();
        Some(spot)
    }

    /// Nothing up to the tail needs a look before it is handed out.
    fn is_plain(&self) -> bool {
        !self.ordered
            && !self.has_filter()
            && self.expire_after().is_none()
            && !self.topic.timed.load(Ordering::Acquire)
    }

    fn check_receivable(&self) -> Result<(), RecvError> {
        match self.ended() {
            Some(error) => Err(error),
            None if self.topic.broker.phase() != Phase::Open => Err(RecvError::Closed),
            None => Ok(()),
        }
    }

    pub(super) fn examine_and_tell(self: &Arc<Self>, examination: Examination) {
        EXAMINING.with(|stack| stack.borrow_mut().push(self.id));
        let findings = self.examine(examination);
        EXAMINING.with(|stack| stack.borrow_mut().pop());
        let now = self.topic.broker.now();
        self.change(|ledger| ledger.handle_examined(examination, &findings, now));
    }

    /// One look of a future.
    #[cfg(feature = "async")]
    pub(crate) fn look_once(
        self: &Arc<Self>,
        lots: &mut Few<Lot<E>>,
    ) -> Look<Result<Option<Precaution>, NoMessage>> {
        match self.begin_take(1, lots) {
            Err(error) => Look::GaveUp(Err(NoMessage::Ended(error))),
            Ok(Taken::Nothing) => Look::Nothing { until: None },
            Ok(Taken::Lots) => Look::Found(Ok(None)),
            Ok(Taken::Unsafe(precaution)) => Look::Found(Ok(Some(precaution))),
        }
    }

    /// One look of a receiver that waits until `deadline`.
    pub(crate) fn look(
        self: &Arc<Self>,
        max: usize,
        deadline: Option<Tick>,
        lots: &mut Few<Lot<E>>,
    ) -> Look<Result<(), NoMessage>> {
        match self.take(max, lots) {
            Err(error) => Look::GaveUp(Err(NoMessage::Ended(error))),
            Ok(true) => Look::Found(Ok(())),
            Ok(false) => {
                if deadline.is_some_and(|deadline| self.topic.broker.now() >= deadline) {
                    return Look::GaveUp(Err(NoMessage::Timeout));
                }
                if let Some(deadline) = deadline
                    && self.topic.broker.line.is_manual()
                {
                    // Each time: an alarm that rang for something else was the only one.
                    self.topic.broker.timer.set(deadline, self.alarm());
                }
                Look::Nothing { until: self.sleep_until(deadline) }
            }
        }
    }

    /// A receiver that blocks sees to its own subscription's next deadline: it needs no thread of ours for that.
    fn sleep_until(&self, deadline: Option<Tick>) -> Option<Instant> {
        let next = self.desk.lock().ledger.poll_timeout();
        let until = [next, deadline].into_iter().flatten().min()?;
        self.topic.broker.line.instant_of(until)
    }

    /// Blocks until it has leased at least one message, or the deadline passes.
    pub(crate) fn wait(
        self: &Arc<Self>,
        max: usize,
        deadline: Option<Tick>,
        lots: &mut Few<Lot<E>>,
    ) -> Result<(), NoMessage> {
        let seen = Cell::new(self.topic.log.tail());
        let near = || self.topic.log.tail() != seen.get();
        self.topic.receivers.wait_near(self.id, near, || {
            seen.set(self.topic.log.tail());
            self.look(max, deadline, lots)
        })
    }

    /// While there is something to take, tokens say so.
    pub(crate) fn renew_tokens(&self) {
        let tail = self.topic.log.tail();
        if self.desk.lock().ledger.has_deliverable(tail) {
            self.topic.receivers.wake(self.id, 0);
        }
    }

    /// A waiter that does not block has entered: the timer looks after its deadlines.
    pub(crate) fn watch_time(self: &Arc<Self>) {
        let next = self.desk.lock().ledger.poll_timeout();
        self.arm(next);
    }
}
