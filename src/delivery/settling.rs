//! What a subscriber says of a message it holds, or held.

use std::time::Duration;

use crate::delivery::hand_out::{Grant, Ticket};
use crate::delivery::ledger::{Entry, LeaseId, Ledger, LedgerEvent, Standing};
use crate::delivery::ordering::Key;
use crate::delivery::retry::{self, Beyond, Reason};
use crate::delivery::runs::Run;
use crate::delivery::settled::Outcome;
use crate::options::DeliveryMode;
use crate::sequence::Sequence;
use crate::time::Tick;

impl Ledger {
    /// True: settled by this. In `ExactlyOnce` mode time's consequences come first: call [`handle_timeout`](Self::handle_timeout) before,
    /// and the answer is by the clock. In `AtLeastOnce` mode no clock is needed: a late ack is taken while nobody else holds the message.
    pub(crate) fn ack(&mut self, ticket: Ticket) -> bool {
        let Some(lease) = ticket.lease else { return true };
        if self.take_from_run(ticket.sequence, lease) {
            self.counts.acked += 1;
            self.settle(ticket.sequence, None, Outcome::Acked);
            return true;
        }
        let Some(entry) = self.entries.get(&ticket.sequence).copied() else { return false };
        let in_turn = entry.key.is_none_or(|key| self.lanes.is_head(key, ticket.sequence));
        match entry.standing {
            Standing::Leased { lease: held, .. } if held == lease => {
                if !in_turn {
                    self.turn += 1;
                    self.give_back(ticket.sequence);
                    return false;
                }
            }
            Standing::Leased { .. } | Standing::Committing { .. } | Standing::Burying => return false,
            _ => {
                let late =
                    self.rules.mode == DeliveryMode::AtLeastOnce && ticket.generation == self.generation;
                if !late || !in_turn {
                    return false;
                }
            }
        }
        self.lift(ticket.sequence);
        self.counts.acked += 1;
        self.settle(ticket.sequence, entry.key, Outcome::Acked);
        true
    }

    /// [`ack`](Self::ack) of a message that is still leased as part of a run, if it is. The engine is told here that it is settled now, and not by the news.
    #[inline]
    pub(crate) fn ack_plain(&mut self, ticket: Ticket) -> bool {
        let Some(lease) = ticket.lease else { return false };
        if !self.take_from_run(ticket.sequence, lease) {
            return false;
        }
        self.counts.acked += 1;
        self.settled.settle(ticket.sequence, Outcome::Acked);
        self.cursor = self.cursor.max(self.settled.low());
        true
    }

    /// [`ack`](Self::ack) of messages in a row of one hand-out, at the cost of one if they are all still leased as a run. Says how many were settled by this.
    pub(crate) fn ack_all(&mut self, grant: Grant) -> u64 {
        if let Some(lease) = grant.lease
            && self.runs.take_range(lease, grant.first, grant.len)
        {
            let end = grant.first + grant.len;
            self.outstanding -= grant.len;
            self.counts.acked += grant.len;
            self.settled.settle_range(grant.first, end, Outcome::Acked);
            self.note(grant.first, end);
            self.cursor = self.cursor.max(self.settled.low());
            return grant.len;
        }
        grant.tickets().filter(|&ticket| self.ack(ticket)).count() as u64
    }

    /// The attempt failed: the message comes back after `delay`, or as the retry policy says. False: it was not held, and nothing changed.
    pub(crate) fn nack(&mut self, ticket: Ticket, now: Tick, delay: Option<Duration>) -> bool {
        if !self.holds(ticket) {
            return false;
        }
        self.turn += 1;
        self.counts.nacked += 1;
        self.dissolve_run_of_lease(ticket);
        self.end_lease(ticket.sequence, now, delay, Reason::Nacked);
        true
    }

    /// Not mine: it comes back at once and the attempt is not spent. False: it was not held, and nothing changed.
    pub(crate) fn release(&mut self, ticket: Ticket) -> bool {
        if !self.holds(ticket) {
            return false;
        }
        self.turn += 1;
        self.dissolve_run_of_lease(ticket);
        self.give_back(ticket.sequence);
        true
    }

    /// Never again. False: it was not held, or an earlier message of its key is unsettled, which gives it back.
    pub(crate) fn reject(&mut self, ticket: Ticket, reason: String) -> bool {
        if !self.holds(ticket) {
            return false;
        }
        self.turn += 1;
        self.dissolve_run_of_lease(ticket);
        let sequence = ticket.sequence;
        let key = self.entries.get(&sequence).and_then(|entry| entry.key);
        if key.is_some_and(|key| !self.lanes.is_head(key, sequence)) {
            self.give_back(sequence);
            return false;
        }
        // Settled in its turn, as by an ack: those after it in its run stay leased.
        if let Some(entry) = self.lift(sequence) {
            self.bury(sequence, entry, Reason::Rejected(reason));
        }
        true
    }

    /// The ack deadline is now `until`. False: it was not held, and nothing changed.
    pub(crate) fn extend(&mut self, ticket: Ticket, until: Tick) -> bool {
        if !self.holds(ticket) {
            return false;
        }
        self.dissolve_run_of_lease(ticket);
        let Some(Standing::Leased { lease, .. }) = self.entries.get(&ticket.sequence).map(|e| e.standing)
        else {
            return false;
        };
        self.restand(ticket.sequence, Standing::Leased { lease, deadline: until });
        true
    }

    /// Whether this very hand-out still holds the message.
    pub(crate) fn holds(&self, ticket: Ticket) -> bool {
        let Some(lease) = ticket.lease else { return false };
        if self.runs.get(lease).is_some_and(|run| run.holds(ticket.sequence)) {
            return true;
        }
        let standing = self.entries.get(&ticket.sequence).map(|entry| entry.standing);
        matches!(standing, Some(Standing::Leased { lease: held, .. }) if held == lease)
    }

    /// The dead letter is in its topic.
    pub(crate) fn handle_buried(&mut self, sequence: Sequence, generation: u32) {
        if self.is_burying(sequence, generation)
            && let Some(entry) = self.lift(sequence)
        {
            self.counts.dead_lettered += 1;
            self.settle(sequence, entry.key, Outcome::DeadLettered);
        }
    }

    /// There is no dead-letter topic to keep it: it is kept here, and not delivered.
    pub(crate) fn handle_unburied(&mut self, sequence: Sequence, generation: u32, reason: Reason) {
        if self.is_burying(sequence, generation) {
            self.restand(sequence, Standing::Parked);
            self.parked.insert(sequence, reason);
        }
    }

    /// The dead-letter topic may keep messages now: what is parked is tried again.
    pub(crate) fn retry_parked(&mut self) {
        for (sequence, reason) in std::mem::take(&mut self.parked) {
            if let Some(entry) = self.lift(sequence) {
                self.put_burying(sequence, entry, reason);
            }
        }
    }

    /// Whether it is on its way to the dead-letter topic since then.
    pub(crate) fn is_burying(&self, sequence: Sequence, generation: u32) -> bool {
        let standing = self.entries.get(&sequence).map(|entry| entry.standing);
        generation == self.generation && standing == Some(Standing::Burying)
    }

    /// Takes one message out of the run that leases it. False: that run does not hold it.
    #[inline]
    pub(super) fn take_from_run(&mut self, sequence: Sequence, lease: LeaseId) -> bool {
        let taken = self.runs.take(lease, sequence);
        self.outstanding -= u64::from(taken);
        taken
    }

    /// The message leaves its run, if it is in one, and has an entry of its own under the same lease.
    pub(super) fn dissolve_run_of_lease(&mut self, ticket: Ticket) {
        let Some(lease) = ticket.lease else { return };
        let Some(run) = self.runs.get(lease).copied() else { return };
        if self.take_from_run(ticket.sequence, lease) {
            self.put(ticket.sequence, Entry::of_run(&run, lease));
        }
    }

    pub(super) fn dissolve_all_runs(&mut self) {
        while let Some((lease, _)) = self.runs.first() {
            self.dissolve_run(lease);
        }
    }

    pub(super) fn dissolve_run(&mut self, lease: LeaseId) {
        let Some(run) = self.runs.remove(lease) else { return };
        for sequence in run.open_sequences() {
            self.outstanding -= 1;
            self.put(sequence, Entry::of_run(&run, lease));
        }
    }

    /// A lease ends by failure: those after it in its run are released with it, and it comes back as the policy says.
    pub(super) fn end_lease(
        &mut self,
        sequence: Sequence,
        at: Tick,
        delay: Option<Duration>,
        reason: Reason,
    ) {
        let Some(key) = self.entries.get(&sequence).map(|entry| entry.key) else { return };
        self.release_followers(key, sequence);
        if let Some(entry) = self.lift(sequence) {
            self.fail(sequence, entry, at, delay, reason);
        }
    }

    /// The message, lifted, has failed an attempt that is already counted.
    pub(super) fn fail(
        &mut self,
        sequence: Sequence,
        entry: Entry,
        at: Tick,
        delay: Option<Duration>,
        reason: Reason,
    ) {
        if entry.expires <= at {
            self.counts.messages_expired += 1;
            return self.settle(sequence, entry.key, Outcome::Expired);
        }
        // Only the first of its key may settle; the others wait, and go alone when it is their turn.
        let first = entry.key.is_none_or(|key| self.lanes.is_head(key, sequence));
        if first && entry.attempts >= self.rules.beyond.attempts_max() {
            return self.bury(sequence, entry, reason);
        }
        let delay =
            delay.unwrap_or_else(|| retry::delay(&self.rules.retry, entry.attempts, &mut self.jitter));
        let back = if delay.is_zero() { Tick::ZERO } else { at + delay };
        // Of what was leased no delay runs any more. A filter that panics does so before the publish delay is over, and cannot shorten it.
        let not_before = back.max(entry.not_before);
        self.put_waiting(sequence, Entry { releases: 0, not_before, ..entry });
        if not_before != Tick::ZERO {
            self.note_return(sequence);
        }
    }

    fn note_return(&mut self, sequence: Sequence) {
        if let Some(returns) = &mut self.returns {
            returns.push(sequence);
        }
    }

    /// Back among the waiting: behind its key, after its delay, or at once.
    pub(super) fn put_waiting(&mut self, sequence: Sequence, entry: Entry) {
        let first = entry.key.is_none_or(|key| self.lanes.is_head(key, sequence));
        let rotates = entry.attempts > 0 || entry.releases > 1;
        let standing = match entry.not_before {
            _ if !first => Standing::Queued,
            Tick::ZERO if rotates => Standing::Again { turn: self.turn },
            Tick::ZERO => Standing::Fresh,
            until => Standing::Delayed { until },
        };
        self.put(sequence, Entry { standing, ..entry });
    }

    /// Released, with those after it in its run: the hand-out does not count.
    pub(super) fn give_back(&mut self, sequence: Sequence) {
        let Some(key) = self.entries.get(&sequence).map(|entry| entry.key) else { return };
        self.release_followers(key, sequence);
        self.release_one(sequence);
    }

    fn release_one(&mut self, sequence: Sequence) {
        let Some(entry) = self.lift(sequence) else { return };
        self.counts.released += 1;
        let attempts = entry.attempts.saturating_sub(1);
        let releases = entry.releases.saturating_add(1);
        self.put_waiting(sequence, Entry { attempts, releases, not_before: Tick::ZERO, ..entry });
        self.note_return(sequence);
    }

    /// Ends a run of one key behind `sequence`; the run's lease on `sequence` itself is the caller's to end.
    pub(super) fn release_followers(&mut self, key: Option<Key>, sequence: Sequence) {
        let Some(key) = key else { return };
        let cut = self.lanes.cut_run(key, sequence);
        for &after in cut.iter().skip(1).rev() {
            self.release_one(after);
        }
    }

    /// Out of attempts, or rejected.
    fn bury(&mut self, sequence: Sequence, entry: Entry, reason: Reason) {
        match self.rules.beyond {
            Beyond::DeadLetter { .. } => self.put_burying(sequence, entry, reason),
            Beyond::Discard { .. } | Beyond::Retry => {
                self.counts.discarded += 1;
                self.settle(sequence, entry.key, Outcome::Discarded);
            }
        }
    }

    pub(super) fn put_burying(&mut self, sequence: Sequence, entry: Entry, reason: Reason) {
        self.put(sequence, Entry { standing: Standing::Burying, ..entry });
        self.burying.insert(sequence, reason.clone());
        let (generation, attempts) = (self.generation, entry.attempts);
        self.events.push(LedgerEvent::DeadLetter { sequence, generation, attempts, reason });
    }

    /// Takes the message from whoever holds it. Gives its key.
    pub(super) fn end_hold(&mut self, sequence: Sequence) -> Option<Key> {
        let key = self.entries.get(&sequence)?.key;
        self.turn += 1;
        // Of what is in the middle of a commit, or of a hand-out at most once, those after it may be, too: their unit says what becomes of them.
        let is_held = matches!(self.entries.get(&sequence)?.standing, Standing::Leased { .. });
        if is_held && self.rules.mode != DeliveryMode::AtMostOnce {
            self.release_followers(key, sequence);
        }
        self.lift(sequence);
        key
    }
}

impl Entry {
    /// A message of a run, on its own: its first attempt, no key, no life.
    pub(super) fn of_run(run: &Run, lease: LeaseId) -> Self {
        Entry {
            standing: Standing::Leased { lease, deadline: run.deadline },
            attempts: 1,
            releases: 0,
            key: None,
            expires: Tick::NEVER,
            not_before: Tick::ZERO,
            spared: false,
        }
    }
}
