//! What a transaction asks of the messages it is to settle.
//!
//! In memory a commit takes no time: under the locks of all that take part it asks whether every lease holds, and acks. Where a commit takes time (a sync),
//! the leases stand as [`Standing::Committing`] meanwhile.

use std::collections::BTreeMap;

use crate::delivery::hand_out::Ticket;
use crate::delivery::ledger::{Entry, LeaseId, Ledger, Standing};
use crate::delivery::ordering::Key;
use crate::delivery::settled::Outcome;
use crate::time::Tick;

impl Ledger {
    /// How many of these a transaction could not ack together: their lease has ended, by the clock, or an earlier message of their key is unsettled and not
    /// among them. In order of sequence. Changes nothing; if it is none, an [`ack`](Self::ack) of each in that order succeeds.
    pub(crate) fn cannot_commit(&self, tickets: impl Iterator<Item = Ticket> + Clone, now: Tick) -> u64 {
        let holds = |ticket: Ticket| self.deadline_of(ticket).is_some_and(|deadline| now < deadline);
        if !self.rules.ordered {
            return tickets.filter(|&ticket| !holds(ticket)).count() as u64;
        }
        // How many of each key's first messages are among them, without a gap.
        let mut firsts: BTreeMap<Key, usize> = BTreeMap::new();
        for ticket in tickets.clone() {
            if let Some(key) = self.key_of(ticket) {
                let first = firsts.entry(key).or_default();
                *first += usize::from(self.lanes.place(key, ticket.sequence) == Some(*first));
            }
        }
        let in_turn = |ticket: Ticket| match self.key_of(ticket) {
            None => true,
            Some(key) => self.lanes.place(key, ticket.sequence).is_some_and(|place| place < firsts[&key]),
        };
        tickets.filter(|&ticket| !(holds(ticket) && in_turn(ticket))).count() as u64
    }

    /// When this hand-out's lease ends, if it holds the message.
    pub(crate) fn deadline_of(&self, ticket: Ticket) -> Option<Tick> {
        let lease = ticket.lease?;
        if let Some(run) = self.runs.get(lease)
            && run.holds(ticket.sequence)
        {
            return Some(run.deadline);
        }
        match self.entries.get(&ticket.sequence)?.standing {
            Standing::Leased { lease: held, deadline } if held == lease => Some(deadline),
            _ => None,
        }
    }

    /// Its transaction found no space: if the lease runs out now, that is not the subscriber's failure, and spends no attempt.
    pub(crate) fn spare(&mut self, ticket: Ticket) {
        if self.deadline_of(ticket).is_none() {
            return;
        }
        self.dissolve_run_of_lease(ticket);
        if let Some(entry) = self.entries.get_mut(&ticket.sequence) {
            entry.spared = true;
        }
    }

    fn key_of(&self, ticket: Ticket) -> Option<Key> {
        self.entries.get(&ticket.sequence)?.key
    }

    /// A transaction is about to ack this, of which [`cannot_commit`](Self::cannot_commit) was asked: no deadline ends the lease until it has committed or failed.
    pub(crate) fn prepare_asked(&mut self, ticket: Ticket) {
        self.dissolve_run_of_lease(ticket);
        if let Some(&Entry { standing: Standing::Leased { lease, deadline }, .. }) =
            self.entries.get(&ticket.sequence)
            && Some(lease) == ticket.lease
        {
            self.restand(ticket.sequence, Standing::Committing { lease, deadline });
        }
    }

    /// A transaction is about to ack this: no deadline ends the lease until it has committed or failed. False: it is not held.
    /// The ordering rule holds as for an ack: the message must be the first unsettled one of its key.
    #[cfg_attr(not(test), expect(dead_code, reason = "for engines that ask each lease by itself"))]
    pub(crate) fn prepare_commit(&mut self, ticket: Ticket) -> bool {
        if !self.holds(ticket) {
            return false;
        }
        self.dissolve_run_of_lease(ticket);
        let Some(entry) = self.entries.get(&ticket.sequence) else { return false };
        let (Standing::Leased { lease, deadline }, key) = (entry.standing, entry.key) else { return false };
        if key.is_some_and(|key| !self.lanes.is_head(key, ticket.sequence)) {
            return false;
        }
        self.restand(ticket.sequence, Standing::Committing { lease, deadline });
        true
    }

    /// The transaction failed: the lease is what it was, and may have run out meanwhile.
    pub(crate) fn abort_commit(&mut self, ticket: Ticket) {
        if let Some((lease, deadline)) = self.committing(ticket) {
            self.restand(ticket.sequence, Standing::Leased { lease, deadline });
        }
    }

    /// The transaction has committed: the message is settled.
    pub(crate) fn finish_commit(&mut self, ticket: Ticket) {
        if self.committing(ticket).is_some()
            && let Some(entry) = self.lift(ticket.sequence)
        {
            self.counts.acked += 1;
            self.settle(ticket.sequence, entry.key, Outcome::Acked);
        }
    }

    fn committing(&self, ticket: Ticket) -> Option<(LeaseId, Tick)> {
        match self.entries.get(&ticket.sequence)?.standing {
            Standing::Committing { lease, deadline } if Some(lease) == ticket.lease => {
                Some((lease, deadline))
            }
            _ => None,
        }
    }
}
