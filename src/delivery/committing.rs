//! What takes time to be settled: in a transaction, or by an ack that is to be as safe as a publish.
//!
//! In memory a commit takes no time: under the locks of all that take part it asks whether every lease holds, and acks. Where a commit takes time (a sync),
//! the leases stand as [`Standing::Committing`] meanwhile; and what comes to nothing has changed nothing.

use std::collections::BTreeMap;

use crate::delivery::hand_out::Ticket;
use crate::delivery::ledger::{Entry, LeaseId, Ledger, Standing};
use crate::delivery::ordering::Key;
use crate::delivery::settled::Outcome;
use crate::sequence::Sequence;
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
        if let Some(lease) = ticket.lease
            && let Some(run) = self.runs.get(lease).copied()
            && self.take_from_run(ticket.sequence, lease)
        {
            let standing = Standing::Committing { lease, deadline: run.deadline };
            return self.put(ticket.sequence, Entry { standing, ..Entry::of_run(&run, lease) });
        }
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

    /// These are about to be acked together, in this order, as by an [`ack`](Self::ack) each: those that may be are given, and no deadline ends their leases until
    /// [`end_acks`](Self::end_acks). None: an earlier message of a key is being acked by somebody else. Nothing has changed; to be asked again when that has ended.
    pub(crate) fn prepare_acks(&mut self, tickets: &[Ticket]) -> Option<Vec<Ticket>> {
        if self.rules.ordered && self.overtakes_an_ack(tickets) {
            return None;
        }
        let mut prepared = Vec::with_capacity(tickets.len());
        for &ticket in tickets {
            if !self.holds(ticket) {
                continue;
            }
            let before = self.key_of(ticket).and_then(|key| self.lanes.before(key, ticket.sequence));
            // Not another's: of these it is known by now that nobody else acks what is before them.
            if before.is_none_or(|before| self.is_committing(before)) {
                self.prepare_asked(ticket);
                prepared.push(ticket);
            } else {
                self.turn += 1;
                self.give_back(ticket.sequence);
            }
        }
        Some(prepared)
    }

    /// Whether something that comes before one of these in its key is in the middle of a commit: then the first of the key is.
    fn overtakes_an_ack(&self, tickets: &[Ticket]) -> bool {
        tickets.iter().any(|&ticket| {
            let first = self.key_of(ticket).and_then(|key| self.lanes.head(key));
            self.holds(ticket) && first.is_some_and(|first| self.is_committing(first))
        })
    }

    fn is_committing(&self, sequence: Sequence) -> bool {
        let standing = self.entries.get(&sequence).map(|entry| entry.standing);
        matches!(standing, Some(Standing::Committing { .. }))
    }

    /// What was [prepared](Self::prepare_acks) together is settled; or it came to nothing, which counts as a drop of each.
    pub(crate) fn end_acks(&mut self, tickets: &[Ticket], is_safe: bool, now: Tick) {
        if is_safe {
            return tickets.iter().for_each(|&ticket| self.finish_commit(ticket));
        }
        tickets.iter().for_each(|&ticket| self.abort_commit(ticket));
        // The last first: a member of a run takes those after it along, and each shall have failed by itself.
        for &ticket in tickets.iter().rev() {
            self.nack(ticket, now, None);
        }
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
