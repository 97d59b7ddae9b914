//! The road's end: what a subscriber says of what it holds.

use std::sync::Arc;
use std::time::Duration;

use crate::delivery::hand_out::{Grant, Ticket};
use crate::delivery::ledger::Ledger;
use crate::engine::local::committer::{Safety, waits_for_nothing};
use crate::engine::local::receive::Held;
use crate::engine::local::recording::added_by;
use crate::engine::local::staging::Stored;
use crate::engine::local::store::Added;
use crate::engine::local::subscription::{Desk, Records, SubscriptionCore};
use crate::error::SettleError;
use crate::few::Few;
use crate::journal::{JournalError, Position};
use crate::options::{ACK_DEADLINE_MAX, DeliveryMode};
use crate::sync::Mutex;
use crate::time::Tick;

impl<E: Send + Sync + 'static> SubscriptionCore<E> {
    #[inline]
    pub(crate) fn ack(self: &Arc<Self>, held: Held<E>, mode: DeliveryMode) -> Result<(), SettleError> {
        if let Some(stored) = self.settles_when_safe(mode) {
            let ticket = held.ticket;
            // What follows, when it is settled, lets go of the log's last hold on it.
            drop(held);
            return self.ack_when_safe(stored, &[ticket]);
        }
        self.ack_at_once(held, mode)
    }

    /// On disk, where an ack is to be as safe as a publish, it takes effect when it is.
    #[inline]
    pub(crate) fn settles_when_safe(&self, mode: DeliveryMode) -> Option<&Stored<E>> {
        if mode == DeliveryMode::ExactlyOnce { self.topic.stored.as_ref() } else { None }
    }

    /// Acks; on disk, a crash may undo it.
    #[inline]
    pub(crate) fn ack_at_once(
        self: &Arc<Self>,
        held: Held<E>,
        mode: DeliveryMode,
    ) -> Result<(), SettleError> {
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
        added_by(recorded).map(drop)
    }

    /// Settles what can be settled, in order, at the cost of one.
    pub(crate) fn ack_all(
        self: &Arc<Self>,
        grants: &Few<Grant>,
        mode: DeliveryMode,
    ) -> Result<(), SettleError> {
        if let Some(stored) = self.settles_when_safe(mode) {
            return self.ack_when_safe(stored, &tickets_of(grants));
        }
        self.ack_all_at_once(grants, mode)
    }

    /// [`ack_at_once`](Self::ack_at_once) of several.
    pub(crate) fn ack_all_at_once(
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
        unless_expired(asked - settled)?;
        added_by(recorded).map(drop)
    }

    fn ack_when_safe(self: &Arc<Self>, stored: &Stored<E>, tickets: &[Ticket]) -> Result<(), SettleError> {
        let mut begun = self.begin_ack(stored, tickets)?;
        loop {
            begun = match begun {
                AckBegun::Waits { position, answer } => {
                    self.go_on_with_ack(stored, answer, stored.store.commit(position))?
                }
                AckBegun::Added { position, expired } => {
                    self.settled(position.map_or(Ok(()), |position| stored.store.commit(position)))?;
                    return unless_expired(expired);
                }
            };
        }
    }

    /// Acks as far as it goes without waiting for the disk.
    pub(crate) fn begin_ack(
        self: &Arc<Self>,
        stored: &Stored<E>,
        tickets: &[Ticket],
    ) -> Result<AckBegun, SettleError> {
        self.check_settleable()?;
        // By the clock: whether anybody has noticed the expiry yet must not matter.
        self.run_timeouts();
        let (begun, after) = {
            let mut desk = self.desk.lock();
            if desk.closed {
                return Err(SettleError::Deleted);
            }
            let Some(begun) = self.try_ack(stored, &mut desk, tickets) else {
                let answer = Arc::new(Mutex::new(None));
                desk.waiting_acks.push(WaitingAck {
                    tickets: tickets.to_vec(),
                    answer: answer.clone(),
                    may_leave: waits_for_nothing(),
                });
                // Under the lock: what it waits for was added before.
                let position = stored.store.last_added().ok_or(SettleError::Closed)?;
                return Ok(AckBegun::Waits { position, answer });
            };
            (begun, self.collect(&mut desk, None))
        };
        self.follow_up(after);
        begun
    }

    /// None: what comes before one of these in its key is being acked.
    fn try_ack(
        self: &Arc<Self>,
        stored: &Stored<E>,
        desk: &mut Desk<E>,
        tickets: &[Ticket],
    ) -> Option<Result<AckBegun, SettleError>> {
        let prepared = desk.ledger.prepare_acks(tickets)?;
        let expired = (tickets.len() - prepared.len()) as u64;
        let is_some = !prepared.is_empty();
        let added = is_some.then(|| self.record_safe_acks(stored, &mut desk.ledger, prepared));
        Some(added_by(added).map(|position| AckBegun::Added { position, expired }))
    }

    /// What was being acked was decided: acks that have waited for it are begun. Under the lock.
    pub(super) fn go_on_with_acks(self: &Arc<Self>, desk: &mut Desk<E>) {
        let Some(stored) = &self.topic.stored else { return };
        for waiting in std::mem::take(&mut desk.waiting_acks) {
            match self.try_ack(stored, desk, &waiting.tickets) {
                None => desk.waiting_acks.push(waiting),
                Some(begun) => {
                    if let (true, Ok(AckBegun::Added { position: Some(position), .. })) =
                        (waiting.may_leave, &begun)
                    {
                        stored.store.make_safe_elsewhere(*position, Safety::Promised);
                    }
                    *waiting.answer.lock() = Some(begun);
                }
            }
        }
    }

    /// What has become of an ack that waited, once what it waited for is decided.
    pub(crate) fn go_on_with_ack(
        &self,
        stored: &Stored<E>,
        answer: Answer,
        earlier: Result<(), JournalError>,
    ) -> Result<AckBegun, SettleError> {
        if let Some(begun) = answer.lock().take() {
            return begun;
        }
        // Something else that comes before it is being acked by now.
        self.check_settleable()?;
        match earlier {
            Ok(()) | Err(JournalError::NoSpace) => {}
            failed => self.settled(failed)?,
        }
        let position = stored.store.last_added().ok_or(SettleError::Closed)?;
        Ok(AckBegun::Waits { position, answer })
    }

    pub(crate) fn nack(self: &Arc<Self>, ticket: Ticket, delay: Option<Duration>) -> Result<(), SettleError> {
        let now = self.settle_by_the_clock()?;
        self.settle_one(|ledger| ledger.nack(ticket, now, delay))
    }

    pub(crate) fn nack_all(self: &Arc<Self>, tickets: &[Ticket]) -> Result<(), SettleError> {
        let now = self.settle_by_the_clock()?;
        let records = self.settle_backwards(tickets, |ledger, ticket| ledger.nack(ticket, now, None))?;
        // Last attempts may have settled some.
        self.make_discard_safe(records.settled)
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
        self.make_discard_safe(recorded)
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

/// How far an ack comes before the disk has answered.
pub(crate) enum AckBegun {
    /// Not before this is decided: what comes before it in its key is being acked.
    Waits { position: Position, answer: Answer },
    Added {
        /// All that is not expired is settled when this is safe.
        position: Option<Position>,
        /// How many are not settled by this.
        expired: u64,
    },
}

/// What becomes of an ack that waits.
pub(crate) type Answer = Arc<Mutex<Option<Result<AckBegun, SettleError>>>>;

pub(super) struct WaitingAck {
    tickets: Vec<Ticket>,
    answer: Answer,
    /// Who waits is a future, which may be dropped before it sees to what was begun for it.
    may_leave: bool,
}

pub(crate) fn tickets_of(grants: &Few<Grant>) -> Vec<Ticket> {
    grants.iter().flat_map(Grant::tickets).collect()
}

pub(crate) fn unless_expired(count: u64) -> Result<(), SettleError> {
    if count == 0 { Ok(()) } else { Err(SettleError::LeaseExpired { count }) }
}

fn expired_unless(done: bool) -> Result<(), SettleError> {
    unless_expired(u64::from(!done))
}
