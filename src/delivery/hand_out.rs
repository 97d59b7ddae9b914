//! What is handed out next, and when what was handed out comes back by itself.

use std::collections::BTreeSet;

use crate::delivery::intake::Examination;
use crate::delivery::ledger::{Entry, LeaseId, Ledger, Standing};
use crate::delivery::ordering::Key;
use crate::delivery::retry::Reason;
use crate::delivery::runs::RUN_LEN_MAX;
use crate::delivery::settled::Outcome;
use crate::few::Few;
use crate::options::DeliveryMode;
use crate::sequence::Sequence;
use crate::time::Tick;

/// Consecutive messages handed out together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Grant {
    pub(crate) first: Sequence,
    pub(crate) len: u64,
    pub(crate) attempt: u32,
    /// None in `AtMostOnce` mode, once it is settled: there is nothing left to settle.
    pub(crate) lease: Option<LeaseId>,
    pub(crate) generation: u32,
}

/// One message of a grant: what a subscriber shows when it settles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ticket {
    pub(crate) sequence: Sequence,
    pub(crate) attempt: u32,
    pub(crate) lease: Option<LeaseId>,
    pub(crate) generation: u32,
}

impl Grant {
    pub(crate) fn first_ticket(self) -> Ticket {
        Ticket { sequence: self.first, attempt: self.attempt, lease: self.lease, generation: self.generation }
    }

    /// What is left when the first message is taken out of it.
    pub(crate) fn without_first(self) -> Option<Grant> {
        self.split_at(1).1
    }

    /// The first `len` messages, and what is left.
    pub(crate) fn split_at(self, len: u64) -> (Grant, Option<Grant>) {
        let here = self.len.min(len);
        let rest = Grant { first: self.first + here, len: self.len - here, ..self };
        (Grant { len: here, ..self }, (rest.len > 0).then_some(rest))
    }

    pub(crate) fn tickets(&self) -> impl Iterator<Item = Ticket> + use<> {
        let grant = *self;
        (0..grant.len).map(move |n| Ticket {
            sequence: grant.first + n,
            attempt: grant.attempt,
            lease: grant.lease,
            generation: grant.generation,
        })
    }
}

/// What a receiver asks for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ask {
    pub(crate) now: Tick,
    /// The topic's end as this receiver sees it.
    pub(crate) tail: Sequence,
    /// Nothing up to the tail needs a look: no filter, no key, no delay, no life.
    pub(crate) plain: bool,
    pub(crate) max: u64,
    /// Whether to look at more messages to fill the batch, although some are ready.
    pub(crate) look_further: bool,
    /// The receiver runs inside this subscription's own filter, and cannot wait for that examination to end.
    pub(crate) nested: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// The grants were appended.
    Granted,
    /// Look at these first, then ask again.
    Examine(Examination),
    /// Nothing to hand out now.
    Empty,
}

impl Ledger {
    /// Decides what a receiver gets, at most `ask.max` messages. Time's consequences come first: call [`handle_timeout`](Self::handle_timeout) before.
    ///
    /// While new messages wait, at most every other hand-out is a redelivery. A message on its last attempt goes alone.
    pub(crate) fn poll_lease(&mut self, ask: Ask, grants: &mut Few<Grant>) -> Decision {
        // What is remembered of a message is believed with what a look at it finds.
        let ask = Ask { plain: ask.plain && self.memories.is_none(), ..ask };
        let want = ask.max.min(self.room());
        if self.paused || want == 0 {
            return Decision::Empty;
        }
        if !ask.plain
            && self.wants_a_look(&ask, want)
            && let Some(examination) = self.poll_examine(ask.tail)
        {
            return Decision::Examine(examination);
        }
        let lease = self.next_lease();
        let mut pick = Pick { want, granted: 0, lease, followers: None, repeats: None };
        while pick.granted < pick.want && self.grant_next(&ask, &mut pick, grants) {}
        if pick.granted == 0 { Decision::Empty } else { Decision::Granted }
    }

    /// The message that a receiver of one would get, if it is new, nobody needs to look at it, and nothing else is to happen first: then
    /// [`grant_plain`](Self::grant_plain) does what [`poll_lease`](Self::poll_lease) would do, at less cost. For other modes than `AtMostOnce`, and where all up to the tail is plain.
    #[inline]
    pub(crate) fn next_plain(&self, now: Tick, tail: Sequence) -> Option<Sequence> {
        let nothing_waits = self.fresh.is_empty() && self.again.is_empty();
        let nothing_else = nothing_waits && self.examining == 0 && self.memories.is_none();
        let may = !self.paused && self.outstanding < self.rules.outstanding_max && nothing_else;
        if !may || self.poll_timeout().is_some_and(|next| next <= now) {
            return None;
        }
        self.settled.next_unsettled_run(self.cursor, tail).map(|(from, _)| from)
    }

    /// Leases the message that [`next_plain`](Self::next_plain) named under the same lock.
    #[inline]
    pub(crate) fn grant_plain(&mut self, sequence: Sequence, now: Tick) -> Ticket {
        debug_assert!(sequence >= self.cursor && self.rules.mode != DeliveryMode::AtMostOnce);
        self.cursor = sequence.next();
        self.last_was_again = false;
        self.counts.delivered += 1;
        let lease = Some(self.grant_as_run(sequence, 1, now));
        Ticket { sequence, attempt: 1, lease, generation: self.generation }
    }

    fn grant_as_run(&mut self, from: Sequence, len: u64, now: Tick) -> LeaseId {
        let lease = self.runs.grant(from, len, now + self.rules.ack_deadline);
        self.outstanding += len;
        while self.runs.are_crowded()
            && let Some((first, _)) = self.runs.first()
        {
            self.dissolve_run(first);
        }
        lease
    }

    fn wants_a_look(&self, ask: &Ask, want: u64) -> bool {
        let ready = (self.fresh.len() + self.again.len()) as u64;
        let may_look = self.examining == 0 || ask.nested;
        // Every other hand-out is a new message's while one waits: also one that nobody has looked at yet.
        let new_due = if self.last_was_again { want.div_ceil(2) } else { want / 2 };
        let new_short = !self.again.is_empty() && (self.fresh.len() as u64) < new_due;
        may_look && (ready == 0 || (ask.look_further && (ready < want || new_short)))
    }

    /// Grants one redelivery, or one examined message, or one run of new ones. False: nothing more for this receiver.
    fn grant_next(&mut self, ask: &Ask, pick: &mut Pick, grants: &mut Few<Grant>) -> bool {
        let fresh = self.fresh.first().copied();
        let follower = pick.followers.as_ref().and_then(|followers| followers.first().copied());
        let new = match (fresh, follower) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        let unseen = if ask.plain && self.examining == 0 {
            self.settled.next_unsettled_run(self.cursor, ask.tail)
        } else {
            None
        };
        let repeat = pick.repeats.as_ref().and_then(|repeats| repeats.first().copied());
        let again = repeat.or(self.again.first().map(|&(_, sequence)| sequence));
        let new_waits = new.is_some() || unseen.is_some();
        match again {
            Some(sequence) if !(self.last_was_again && new_waits) => {
                self.grant_one(sequence, ask, pick, grants)
            }
            _ => match (new, unseen) {
                (Some(sequence), Some((from, _))) if sequence < from => {
                    self.grant_one(sequence, ask, pick, grants)
                }
                (_, Some((from, to))) => self.grant_run(from, to, again.is_some(), ask, pick, grants),
                (Some(sequence), None) => self.grant_one(sequence, ask, pick, grants),
                (None, None) => false,
            },
        }
    }

    /// A message that has an entry. False when it must go alone and is not the first.
    fn grant_one(&mut self, sequence: Sequence, ask: &Ask, pick: &mut Pick, grants: &mut Few<Grant>) -> bool {
        let Some(entry) = self.entries.get(&sequence).copied() else { return false };
        let attempts = entry.attempts.saturating_add(1);
        let alone = self.goes_alone(attempts);
        if alone && pick.granted > 0 {
            return false;
        }
        self.lift(sequence);
        for chosen in [&mut pick.followers, &mut pick.repeats].into_iter().flatten() {
            chosen.remove(&sequence);
        }
        // One that is released over and over has no attempt to show for it, and takes its turn like a redelivery.
        self.last_was_again = entry.attempts > 0 || matches!(entry.standing, Standing::Again { .. });
        self.counts.delivered += 1;
        self.counts.redelivered += u64::from(entry.attempts > 0);
        pick.granted += 1;
        let lease = if self.settles_at_once() {
            self.counts.acked += 1;
            self.settle(sequence, entry.key, Outcome::Acked);
            None
        } else {
            let deadline = self.begin_of_lease(ask.now) + self.rules.ack_deadline;
            let standing = Standing::Leased { lease: pick.lease, deadline };
            self.put(sequence, Entry { standing, attempts, not_before: Tick::ZERO, spared: false, ..entry });
            if let Some(key) = entry.key {
                self.lanes.lease(key, sequence);
                self.add_follower(key, ask.now, pick);
            }
            Some(pick.lease)
        };
        grants.push(Grant { first: sequence, len: 1, attempt: attempts, lease, generation: self.generation });
        !alone
    }

    /// The key's next message may join the run, in the same batch only.
    fn add_follower(&mut self, key: Key, now: Tick, pick: &mut Pick) {
        if let Some(next) = self.lanes.follower(key)
            && let Some(entry) = self.entries.get(&next)
            && entry.standing == Standing::Queued
            && entry.not_before <= now
        {
            let chosen = if entry.attempts == 0 { &mut pick.followers } else { &mut pick.repeats };
            chosen.get_or_insert_default().insert(next);
        }
    }

    /// New messages that nobody needs to look at, straight from the topic's end.
    fn grant_run(
        &mut self,
        from: Sequence,
        to: Sequence,
        take_turns: bool,
        ask: &Ask,
        pick: &mut Pick,
        grants: &mut Few<Grant>,
    ) -> bool {
        let alone = self.goes_alone(1);
        if alone && pick.granted > 0 {
            return false;
        }
        let limit = if alone || take_turns { 1 } else { RUN_LEN_MAX };
        let len = (to - from).min(pick.want - pick.granted).min(limit);
        self.cursor = from + len;
        self.last_was_again = false;
        self.counts.delivered += len;
        pick.granted += len;
        let lease = if self.settles_at_once() {
            self.counts.acked += len;
            self.settled.settle_range(from, from + len, Outcome::Acked);
            self.note(from, from + len);
            None
        } else {
            // A lease of its own for each run, so that the id finds the run.
            Some(self.grant_as_run(from, len, self.begin_of_lease(ask.now)))
        };
        grants.push(Grant { first: from, len, attempt: 1, lease, generation: self.generation });
        !alone
    }

    /// Whether a hand-out settles: where the disk is to have it first, [`end_hand_out`](Self::end_hand_out) does.
    fn settles_at_once(&self) -> bool {
        self.rules.mode == DeliveryMode::AtMostOnce && !self.is_recorded()
    }

    /// From when on the deadline of a lease counts: no time ends one that is about to be settled.
    fn begin_of_lease(&self, now: Tick) -> Tick {
        if self.rules.mode == DeliveryMode::AtMostOnce { Tick::NEVER } else { now }
    }

    /// What was leased at most once is settled now, before anybody has it; or it could not be, and is as if nobody had asked for it.
    pub(crate) fn end_hand_out(&mut self, grants: &[Grant], is_safe: bool) {
        if is_safe {
            for &grant in grants {
                self.ack_all(grant);
            }
            return;
        }
        self.turn += 1;
        let tickets: Vec<_> = grants.iter().flat_map(Grant::tickets).collect();
        // The last first, as they follow each other in their keys' runs.
        tickets.into_iter().rev().for_each(|ticket| self.take_back(ticket));
    }

    fn take_back(&mut self, ticket: Ticket) {
        if !self.holds(ticket) {
            return;
        }
        self.dissolve_run_of_lease(ticket);
        let key = self.entries.get(&ticket.sequence).and_then(|entry| entry.key);
        self.release_followers(key, ticket.sequence);
        let Some(entry) = self.lift(ticket.sequence) else { return };
        self.counts.delivered -= 1;
        self.counts.redelivered -= u64::from(entry.attempts > 1);
        self.put_waiting(ticket.sequence, Entry { attempts: entry.attempts - 1, ..entry });
    }

    /// Its last attempt before the dead letters: if it takes its subscriber down, it takes no neighbour with it.
    fn goes_alone(&self, attempts: u32) -> bool {
        attempts >= self.rules.beyond.attempts_max()
    }

    /// Brings about what time has brought about by `now`, at most `budget` things, so that a million expiries do not starve an ack.
    /// True: there is more.
    pub(crate) fn handle_timeout(&mut self, now: Tick, budget: usize) -> bool {
        self.turn += 1;
        for _ in 0..budget {
            let Some(next) = self.poll_timeout() else { return false };
            if next > now {
                return false;
            }
            self.bring_about(next);
        }
        self.poll_timeout().is_some_and(|next| next <= now)
    }

    /// The earliest consequence, at its own instant. Delays end before lives and leases do: what is due is due first.
    fn bring_about(&mut self, at: Tick) {
        if let Some(&(until, sequence)) = self.delayed.first()
            && until <= at
        {
            self.end_delay(sequence);
        } else if let Some(&(expires, sequence)) = self.expiring.first()
            && expires <= at
        {
            let key = self.lift(sequence).and_then(|entry| entry.key);
            self.counts.messages_expired += 1;
            self.settle(sequence, key, Outcome::Expired);
        } else if let Some((lease, deadline)) = self.runs.first()
            && deadline <= at
        {
            self.expire_run(lease, deadline);
        } else if let Some(&(deadline, sequence)) = self.deadlines.first()
            && deadline <= at
        {
            if self.entries.get(&sequence).is_some_and(|entry| entry.spared) {
                return self.give_back(sequence);
            }
            self.counts.leases_expired += 1;
            self.end_lease(sequence, deadline, None, Reason::Expired);
        }
    }

    fn end_delay(&mut self, sequence: Sequence) {
        if let Some(entry) = self.lift(sequence) {
            let standing =
                if entry.attempts == 0 { Standing::Fresh } else { Standing::Again { turn: self.turn } };
            self.put(sequence, Entry { standing, not_before: Tick::ZERO, ..entry });
        }
    }

    fn expire_run(&mut self, lease: LeaseId, deadline: Tick) {
        let Some(run) = self.runs.remove(lease) else { return };
        for sequence in run.open_sequences() {
            self.outstanding -= 1;
            self.counts.leases_expired += 1;
            self.fail(sequence, Entry::of_run(&run, lease), deadline, None, Reason::Expired);
        }
    }
}

/// A batch in the making.
struct Pick {
    want: u64,
    granted: u64,
    lease: LeaseId,
    /// New messages whose key's earlier ones are in this batch.
    followers: Option<BTreeSet<Sequence>>,
    /// Likewise redeliveries: they take turns with new messages, as all redeliveries do.
    repeats: Option<BTreeSet<Sequence>>,
}
