//! The road out: what a receiver gets, and how it waits.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Instant;

use crate::delivery::hand_out::{Ask, Decision, Grant, Ticket};
use crate::delivery::intake::Examination;
use crate::engine::local::broker::Phase;
use crate::engine::local::subscription::{SubscriptionCore, TIMEOUT_BUDGET};
use crate::engine::waiters::Look;
use crate::error::RecvError;
use crate::log::Spot;
use crate::options::DeliveryMode;
use crate::sync::atomic::Ordering;
use crate::time::Tick;

/// A message leased to a subscriber, before it has a handle.
pub(crate) struct Held<E> {
    pub(crate) ticket: Ticket,
    pub(crate) spot: Spot<E>,
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

impl<E: Send + Sync + 'static> SubscriptionCore<E> {
    /// Leases up to `max` messages into `held`. Never waits. False: there is nothing now.
    pub(crate) fn take(self: &Arc<Self>, max: usize, held: &mut Vec<Held<E>>) -> Result<bool, RecvError> {
        let max = max as u64;
        let mut looked_at = 0;
        let nested = EXAMINING.with(|stack| stack.borrow().contains(&self.id));
        let mut grants = Vec::new();
        loop {
            self.check_receivable()?;
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
            let (decision, more, after) = {
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
                if desk.ledger.rules().mode == DeliveryMode::AtMostOnce {
                    // Settled by the hand-out: once the lock is dropped, the log may let go of it.
                    self.find_all(&mut grants, held);
                }
                (decision, more, self.collect(&mut desk, None))
            };
            let gone = self.find_all(&mut grants, held);
            self.follow_up(after);
            for ticket in gone {
                self.change(|ledger| ledger.handle_removed(ticket.sequence, ticket.sequence.next()));
            }
            match decision {
                Decision::Granted if !held.is_empty() => return Ok(true),
                Decision::Granted => {}
                Decision::Examine(examination) => {
                    looked_at += examination.to - examination.from;
                    self.examine_and_tell(examination);
                }
                Decision::Empty if more => {}
                Decision::Empty => return Ok(false),
            }
        }
    }

    /// Turns grants into held messages, in order. Gives those that the log does not have.
    fn find_all(&self, grants: &mut Vec<Grant>, held: &mut Vec<Held<E>>) -> Vec<Ticket> {
        let mut gone = Vec::new();
        for ticket in grants.drain(..).flat_map(|grant| grant.tickets()) {
            let near = held.last().and_then(|last: &Held<E>| last.spot.neighbour(ticket.sequence));
            match near.or_else(|| self.topic.log.find(ticket.sequence)) {
                Some(spot) => held.push(Held { ticket, spot }),
                None => gone.push(ticket),
            }
        }
        gone
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

    /// One look of a receiver that waits until `deadline`.
    pub(crate) fn look(
        self: &Arc<Self>,
        max: usize,
        deadline: Option<Tick>,
        held: &mut Vec<Held<E>>,
    ) -> Look<Result<(), NoMessage>> {
        match self.take(max, held) {
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
        held: &mut Vec<Held<E>>,
    ) -> Result<(), NoMessage> {
        self.topic.receivers.wait(self.id, || self.look(max, deadline, held))
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
