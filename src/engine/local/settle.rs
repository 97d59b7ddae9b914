//! The road's end: what a subscriber says of what it holds.

use std::sync::Arc;
use std::time::Duration;

use crate::delivery::hand_out::{Grant, Ticket};
use crate::delivery::ledger::Ledger;
use crate::engine::local::committer::waits_for_nothing;
use crate::engine::local::receive::Held;
use crate::engine::local::store::Added;
use crate::engine::local::subscription::{Records, SubscriptionCore};
use crate::error::SettleError;
use crate::few::Few;
use crate::journal::Position;
use crate::options::{ACK_DEADLINE_MAX, DeliveryMode};
use crate::time::Tick;

impl<E: Send + Sync + 'static> SubscriptionCore<E> {
    #[inline]
    pub(crate) fn ack(self: &Arc<Self>, held: Held<E>, mode: DeliveryMode) -> Result<(), SettleError> {
        match self.begin_ack(held, mode)? {
            None => Ok(()),
            Some(position) => self.wait_for_ack(position),
        }
    }

    fn wait_for_ack(&self, position: Position) -> Result<(), SettleError> {
        let Some(stored) = &self.topic.stored else { return Ok(()) };
        self.settled(stored.store.commit(position))
    }

    /// Acks, and says what is yet to be safe before it may be told.
    pub(crate) fn begin_ack(
        self: &Arc<Self>,
        held: Held<E>,
        mode: DeliveryMode,
    ) -> Result<Option<Position>, SettleError> {
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
                return Ok(None);
            }
            let done = desk.ledger.ack(held.ticket);
            (done, self.collect(&mut desk, Some(held.spot.segment())))
        };
        // Before what follows, which then lets go of the log's last hold on it.
        drop(held);
        let recorded = after.recorded;
        self.follow_up(after);
        expired_unless(done)?;
        self.unit_of_ack(mode, recorded)
    }

    /// Settles what can be settled, in order, at the cost of one.
    pub(crate) fn ack_all(
        self: &Arc<Self>,
        grants: &Few<Grant>,
        mode: DeliveryMode,
    ) -> Result<(), SettleError> {
        let begun = self.begin_ack_all(grants, mode)?;
        let safe = begun.unit.and_then(|unit| unit.map_or(Ok(()), |position| self.wait_for_ack(position)));
        unless_expired(begun.expired)?;
        safe
    }

    /// [`ack_all`](Self::ack_all) as far as it goes without waiting for the disk.
    pub(crate) fn begin_ack_all(
        self: &Arc<Self>,
        grants: &Few<Grant>,
        mode: DeliveryMode,
    ) -> Result<AckBegun, SettleError> {
        self.check_settleable()?;
        if mode == DeliveryMode::ExactlyOnce {
            self.run_timeouts();
        }
        let asked: u64 = grants.iter().map(|grant| grant.len).sum();
        let changed =
            self.change_on_record(|ledger| grants.iter().map(|&grant| ledger.ack_all(grant)).sum::<u64>());
        let (settled, recorded) = changed.ok_or(SettleError::Deleted)?;
        Ok(AckBegun { expired: asked - settled, unit: self.unit_of_ack(mode, recorded) })
    }

    pub(crate) fn nack(self: &Arc<Self>, ticket: Ticket, delay: Option<Duration>) -> Result<(), SettleError> {
        let now = self.settle_by_the_clock()?;
        self.settle_one(|ledger| ledger.nack(ticket, now, delay))
    }

    pub(crate) fn nack_all(self: &Arc<Self>, tickets: &[Ticket]) -> Result<(), SettleError> {
        let now = self.settle_by_the_clock()?;
        let records = self.settle_backwards(tickets, |ledger, ticket| ledger.nack(ticket, now, None))?;
        // Last attempts may have settled some.
        self.make_ack_safe(self.mode, records.settled)
    }

    pub(crate) fn release(self: &Arc<Self>, ticket: Ticket) -> Result<(), SettleError> {
        self.settle_by_the_clock()?;
        let (done, records) =
            self.change_telling(|ledger| ledger.release(ticket)).ok_or(SettleError::Deleted)?;
        expired_unless(done)?;
        self.make_release_safe(records.returned)
    }

    pub(crate) fn release_all(self: &Arc<Self>, tickets: &[Ticket]) -> Result<(), SettleError> {
        self.settle_by_the_clock()?;
        let records = self.settle_backwards(tickets, Ledger::release)?;
        self.make_release_safe(records.returned)
    }

    /// It survives the process, as the hand-out does.
    fn make_release_safe(&self, returned: Option<Added>) -> Result<(), SettleError> {
        let (Some(stored), Some(added)) = (&self.topic.stored, returned) else { return Ok(()) };
        let position = added.map_err(|fault| SettleError::Storage { fault })?;
        if waits_for_nothing() {
            // A future that is dropped.
            stored.store.write_elsewhere(position);
            return Ok(());
        }
        self.settled(stored.store.write(position))
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
    ) -> Result<Records, SettleError> {
        self.check_settleable()?;
        let (count, records) = self
            .change_telling(|ledger| {
                tickets.iter().rev().filter(|ticket| !act(ledger, **ticket)).count() as u64
            })
            .ok_or(SettleError::Deleted)?;
        unless_expired(count)?;
        Ok(records)
    }
}

/// What is known of an ack of several before the disk has answered.
pub(crate) struct AckBegun {
    /// How many were not settled.
    pub(crate) expired: u64,
    /// What is yet to be safe.
    pub(crate) unit: Result<Option<Position>, SettleError>,
}

pub(crate) fn unless_expired(count: u64) -> Result<(), SettleError> {
    if count == 0 { Ok(()) } else { Err(SettleError::LeaseExpired { count }) }
}

fn expired_unless(done: bool) -> Result<(), SettleError> {
    unless_expired(u64::from(!done))
}
