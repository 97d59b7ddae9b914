//! The road's end: what a subscriber says of what it holds.

use std::sync::Arc;
use std::time::Duration;

use crate::delivery::hand_out::{Grant, Ticket};
use crate::delivery::ledger::Ledger;
use crate::engine::local::receive::Held;
use crate::engine::local::subscription::SubscriptionCore;
use crate::error::SettleError;
use crate::few::Few;
use crate::options::{ACK_DEADLINE_MAX, DeliveryMode};
use crate::time::Tick;

impl<E: Send + Sync + 'static> SubscriptionCore<E> {
    pub(crate) fn ack(self: &Arc<Self>, held: Held<E>, mode: DeliveryMode) -> Result<(), SettleError> {
        self.check_settleable()?;
        if mode == DeliveryMode::ExactlyOnce {
            // By the clock: whether anybody has noticed the expiry yet must not matter.
            self.run_timeouts();
        }
        let (done, after) = {
            let mut desk = self.desk.lock();
            if desk.closed {
                return Err(SettleError::Deleted);
            }
            if !self.is_watched() && desk.ledger.ack_plain(held.ticket) {
                self.follow_up_plain_ack(desk, held);
                return Ok(());
            }
            let done = desk.ledger.ack(held.ticket);
            (done, self.collect(&mut desk, Some(held.spot.segment())))
        };
        // Before what follows, which then lets go of the log's last hold on it.
        drop(held);
        let recorded = after.recorded;
        self.follow_up(after);
        expired_unless(done)?;
        self.make_ack_safe(mode, recorded)
    }

    /// Settles what can be settled, in order, at the cost of one.
    pub(crate) fn ack_all(
        self: &Arc<Self>,
        grants: &Few<Grant>,
        mode: DeliveryMode,
    ) -> Result<(), SettleError> {
        self.check_settleable()?;
        if mode == DeliveryMode::ExactlyOnce {
            self.run_timeouts();
        }
        let asked: u64 = grants.iter().map(|grant| grant.len).sum();
        let changed =
            self.change_on_record(|ledger| grants.iter().map(|&grant| ledger.ack_all(grant)).sum::<u64>());
        let (settled, recorded) = changed.ok_or(SettleError::Deleted)?;
        let safe = self.make_ack_safe(mode, recorded);
        unless_expired(asked - settled)?;
        safe
    }

    pub(crate) fn nack(self: &Arc<Self>, ticket: Ticket, delay: Option<Duration>) -> Result<(), SettleError> {
        let now = self.settle_by_the_clock()?;
        self.settle_one(|ledger| ledger.nack(ticket, now, delay))
    }

    pub(crate) fn nack_all(self: &Arc<Self>, tickets: &[Ticket]) -> Result<(), SettleError> {
        let now = self.settle_by_the_clock()?;
        self.settle_backwards(tickets, |ledger, ticket| ledger.nack(ticket, now, None))
    }

    pub(crate) fn release(self: &Arc<Self>, ticket: Ticket) -> Result<(), SettleError> {
        self.settle_by_the_clock()?;
        self.settle_one(|ledger| {
            let is_released = ledger.release(ticket);
            if is_released {
                self.record_release(ledger, ticket);
            }
            is_released
        })
    }

    pub(crate) fn release_all(self: &Arc<Self>, tickets: &[Ticket]) -> Result<(), SettleError> {
        self.settle_by_the_clock()?;
        self.settle_backwards(tickets, |ledger, ticket| {
            let is_released = ledger.release(ticket);
            if is_released {
                self.record_release(ledger, ticket);
            }
            is_released
        })
    }

    pub(crate) fn reject(self: &Arc<Self>, ticket: Ticket, reason: String) -> Result<(), SettleError> {
        self.settle_by_the_clock()?;
        self.settle_one(|ledger| ledger.reject(ticket, reason))
    }

    pub(crate) fn extend(self: &Arc<Self>, ticket: Ticket, by: Duration) -> Result<(), SettleError> {
        if by.is_zero() {
            return self.nack(ticket, None);
        }
        let now = self.settle_by_the_clock()?;
        let until = now + by.min(ACK_DEADLINE_MAX);
        self.settle_one(|ledger| ledger.extend(ticket, until))
    }

    fn check_settleable(&self) -> Result<(), SettleError> {
        self.ended().map_or(Ok(()), |error| Err(error.into()))
    }

    /// Leases that have ended by now have ended: what comes too late changes nothing.
    fn settle_by_the_clock(self: &Arc<Self>) -> Result<Tick, SettleError> {
        self.check_settleable()?;
        self.run_timeouts();
        Ok(self.topic.broker.now())
    }

    fn settle_one(self: &Arc<Self>, act: impl FnOnce(&mut Ledger) -> bool) -> Result<(), SettleError> {
        let (done, recorded) = self.change_on_record(act).ok_or(SettleError::Deleted)?;
        expired_unless(done)?;
        // A last attempt, or a rejection, may have settled it.
        self.make_ack_safe(self.mode, recorded)
    }

    /// The last first: a member of a run takes those after it along, and they shall be settled by their own.
    fn settle_backwards(
        self: &Arc<Self>,
        tickets: &[Ticket],
        mut act: impl FnMut(&mut Ledger, Ticket) -> bool,
    ) -> Result<(), SettleError> {
        let reversed: Vec<_> = tickets.iter().rev().copied().collect();
        self.settle_all(&reversed, &mut act)
    }

    fn settle_all(
        self: &Arc<Self>,
        tickets: &[Ticket],
        mut act: impl FnMut(&mut Ledger, Ticket) -> bool,
    ) -> Result<(), SettleError> {
        self.check_settleable()?;
        let count = self
            .change(|ledger| tickets.iter().filter(|ticket| !act(ledger, **ticket)).count() as u64)
            .ok_or(SettleError::Deleted)?;
        unless_expired(count)
    }
}

fn unless_expired(count: u64) -> Result<(), SettleError> {
    if count == 0 { Ok(()) } else { Err(SettleError::LeaseExpired { count }) }
}

fn expired_unless(done: bool) -> Result<(), SettleError> {
    unless_expired(u64::from(!done))
}
