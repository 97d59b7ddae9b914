//! One subscription's book: who got what, and what is next. The acked/unacked/nacked state machine.
//!
//! # Where a message stands
//!
//! A settled message has no entry. A message at or after the cursor that is not settled has not been looked at.
//! Every other message has one [`Standing`], or is held by a *run*: consecutive plain messages, leased together on their first attempt.
//!
//! | from | news | to |
//! |---|---|---|
//! | not looked at | handed out, nothing to examine | leased (in a run); settled at once in `AtMostOnce` mode |
//! | not looked at | examined: taken | `Fresh`, `Delayed` (publish delay), `Queued` (its key is busy) |
//! | not looked at | examined: the filter panicked | `Again`, `Delayed`, `Queued`; out of attempts: `Burying` or settled (discarded) |
//! | not looked at | examined: filtered out, gone; its life over | settled |
//! | `Fresh`, `Again` | handed out | `Leased`; settled at once in `AtMostOnce` mode |
//! | `Queued` | handed out behind those of its key, in one batch | `Leased` |
//! | `Delayed` | its time comes | `Fresh` if never handed out, else `Again` |
//! | `Queued` | it is first of its key | `Fresh`, `Again`, `Delayed` |
//! | `Leased` | ack | settled |
//! | `Leased` | ack or reject before it is first of its key | `Queued` |
//! | `Leased` | nack, drop, deadline | `Again`, `Delayed`, `Queued`; out of attempts: `Burying` or settled (discarded); its life over: settled |
//! | `Leased` | release; an earlier member of its run is given back | `Fresh`, `Again`; `Queued` |
//! | `Leased` | reject | `Burying` or settled (discarded) |
//! | `Leased` | a transaction prepares | `Committing`, which no deadline ends |
//! | `Committing` | the transaction commits, or fails | settled, or `Leased` as before |
//! | `Burying` | it is in the dead-letter topic | settled |
//! | `Burying` | the dead-letter topic is gone, or would keep nothing | `Parked` |
//! | `Parked` | a subscription is created on the dead-letter topic | `Burying` |
//! | `Fresh`, `Again`, `Delayed`, `Parked` | a late ack (`AtLeastOnce`, nobody holds it, first of its key) | settled |
//! | any but `Leased`, `Committing`, `Burying` | its life is over | settled |
//! | any | `Overflow::DropOldest` drops it, or the log does | settled |
//! | any | a seek before it; behind it | not looked at; settled |
//!
//! On disk, what is settled before it may be told (a hand-out in `AtMostOnce` mode, an ack in `ExactlyOnce` mode) stands as `Leased`, without a deadline, or as `Committing` until the disk has
//! answered: settled, or as if nobody had asked for it; an ack that came to nothing is a nack.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{BuildHasherDefault, Hasher};
use std::time::Duration;

use crate::delivery::intake::{Examination, Finding};
use crate::delivery::memories::Memories;
use crate::delivery::ordering::{Key, Lanes};
use crate::delivery::retry::{Beyond, Jitter, Reason};
use crate::delivery::runs::Runs;
use crate::delivery::settled::{Outcome, Settled};
use crate::few::Few;
use crate::options::{DeliveryMode, MessageStatus, RetryPolicy};
use crate::sequence::Sequence;
use crate::time::Tick;

/// Spreads numbers that are ours, or hashed already: nobody outside chooses them. Multiplication by 2^64 over the golden ratio (Knuth, The Art of Computer Programming 3, 6.4).
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Spread(u64);

impl Hasher for Spread {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.write_u64(u64::from(byte)));
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = (self.0 ^ number).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }

    fn finish(&self) -> u64 {
        // A table looks at the low bits and at the high ones: the multiplication leaves the low ones as they came.
        self.0.rotate_left(32)
    }
}

/// One hand-out. Never used twice in a ledger, so that a stale settlement can be told from a current one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct LeaseId(u64);

impl LeaseId {
    pub(super) fn single(number: u64) -> Self {
        LeaseId(number << 1)
    }

    pub(super) fn of_run(number: u64) -> Self {
        LeaseId(number << 1 | 1)
    }

    /// The run that was granted under this lease; none if it was single messages.
    pub(super) fn run_number(self) -> Option<u64> {
        (self.0 & 1 == 1).then_some(self.0 >> 1)
    }
}

/// Where an unsettled message stands that the subscription has looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// To be handed out for the first time, by sequence.
    Fresh,
    /// To be handed out again, first come first served.
    Again {
        turn: u64,
    },
    Delayed {
        until: Tick,
    },
    /// Behind an earlier message of its key.
    Queued,
    Leased {
        lease: LeaseId,
        deadline: Tick,
    },
    /// Inside a transaction that commits: no deadline ends it.
    Committing {
        lease: LeaseId,
        deadline: Tick,
    },
    /// On its way to the dead-letter topic.
    Burying,
    Parked,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub(super) standing: Standing,
    /// Hand-outs that were not released. Counted at hand-out, not at failure: a subscriber that crashes must use up an attempt too.
    pub(super) attempts: u32,
    /// How often it was released in a row: a message that is released over and over takes turns like a redelivery.
    pub(super) releases: u32,
    pub(super) key: Option<Key>,
    pub(super) expires: Tick,
    /// Not handed out earlier, also when its key frees it.
    pub(super) not_before: Tick,
    /// The lease waits for space that a transaction needs: if it runs out, the attempt is not spent.
    pub(super) spared: bool,
}

const FORGET_STEP: u64 = 1_024;

/// How one subscription delivers.
#[derive(Clone, Debug)]
pub(crate) struct Rules {
    pub(crate) mode: DeliveryMode,
    pub(crate) ack_deadline: Duration,
    pub(crate) ordered: bool,
    pub(crate) retry: RetryPolicy,
    pub(crate) beyond: Beyond,
    pub(crate) outstanding_max: u64,
}

/// A message that nobody holds any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Returned {
    pub(crate) sequence: Sequence,
    /// Hand-outs that count.
    pub(crate) attempts: u32,
    /// It is not handed out before.
    pub(crate) until: Option<Tick>,
}

/// What happened so far; a seek does not reset it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) delivered: u64,
    pub(crate) redelivered: u64,
    pub(crate) acked: u64,
    pub(crate) nacked: u64,
    pub(crate) released: u64,
    pub(crate) leases_expired: u64,
    pub(crate) messages_expired: u64,
    pub(crate) dead_lettered: u64,
    pub(crate) discarded: u64,
    pub(crate) filtered: u64,
}

/// What the engine has to carry out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum LedgerEvent {
    /// Put the message into the dead-letter topic, then say so with [`Ledger::handle_buried`] or [`Ledger::handle_unburied`].
    DeadLetter { sequence: Sequence, generation: u32, attempts: u32, reason: Reason },
}

/// One subscription's book. Takes the time as an argument, knows no payload, and returns what to do.
///
/// Invariant: every sequence below `cursor` is settled, in `entries`, in a run, or being examined; every one at or above it is settled or untouched.
#[derive(Debug)]
pub(crate) struct Ledger {
    pub(super) rules: Rules,
    pub(super) settled: Settled,
    pub(super) cursor: Sequence,
    pub(super) entries: HashMap<Sequence, Entry, BuildHasherDefault<Spread>>,
    pub(super) runs: Runs,
    pub(super) deadlines: BTreeSet<(Tick, Sequence)>,
    pub(super) fresh: BTreeSet<Sequence>,
    pub(super) again: BTreeSet<(u64, Sequence)>,
    pub(super) delayed: BTreeSet<(Tick, Sequence)>,
    pub(super) expiring: BTreeSet<(Tick, Sequence)>,
    pub(super) parked: BTreeMap<Sequence, Reason>,
    /// Why those that stand as [`Standing::Burying`] do.
    pub(super) burying: BTreeMap<Sequence, Reason>,
    pub(super) lanes: Lanes,
    pub(super) examining: u32,
    /// Of messages that are to be looked at again. Of none: nothing is remembered.
    pub(super) memories: Option<Box<Memories>>,
    /// Looks under way where keys have an order, and what was found by those that an earlier one keeps waiting.
    pub(super) looks: BTreeMap<Sequence, Option<(Examination, Vec<Finding>)>>,
    pub(super) outstanding: u64,
    pub(super) paused: bool,
    pub(super) last_was_again: bool,
    pub(super) turn: u64,
    pub(super) generation: u32,
    pub(super) leases: u64,
    pub(super) jitter: Jitter,
    pub(super) counts: Counts,
    forgotten: Sequence,
    pub(super) events: Vec<LedgerEvent>,
    /// Messages that came back from who held them, and what it changed, if somebody asks.
    pub(super) returns: Option<Vec<Sequence>>,
    pub(super) news: Few<(Sequence, Sequence)>,
}

impl Ledger {
    pub(crate) fn new(rules: Rules, start: Sequence, seed: u64) -> Self {
        Ledger {
            rules,
            settled: Settled::starting_at(start),
            cursor: start,
            entries: HashMap::default(),
            runs: Runs::default(),
            deadlines: BTreeSet::new(),
            fresh: BTreeSet::new(),
            again: BTreeSet::new(),
            delayed: BTreeSet::new(),
            expiring: BTreeSet::new(),
            parked: BTreeMap::new(),
            burying: BTreeMap::new(),
            lanes: Lanes::default(),
            examining: 0,
            memories: None,
            looks: BTreeMap::new(),
            outstanding: 0,
            paused: false,
            last_was_again: false,
            turn: 0,
            generation: 0,
            leases: 0,
            jitter: Jitter::seeded(seed),
            counts: Counts::default(),
            forgotten: start,
            events: Vec::new(),
            returns: None,
            news: Few::new(),
        }
    }

    pub(crate) fn rules(&self) -> &Rules {
        &self.rules
    }

    /// Other rules from now on. Leases that run keep their deadlines.
    pub(crate) fn set_rules(&mut self, rules: Rules) {
        if rules.ack_deadline < self.rules.ack_deadline {
            // Those granted from now on end before these, and runs stand in the order of their ends.
            self.dissolve_all_runs();
        }
        self.rules = rules;
    }

    pub(crate) fn settled(&self) -> &Settled {
        &self.settled
    }

    pub(crate) fn low(&self) -> Sequence {
        self.settled.low()
    }

    /// Messages before `floor` are not kept any more: how they were settled need not be known. Done a page's worth at a time.
    pub(crate) fn forget_before(&mut self, floor: Sequence) {
        if floor - self.forgotten >= FORGET_STEP {
            self.forgotten = floor;
            self.settled.forget_before(floor);
        }
    }

    /// How often it was sought.
    pub(crate) fn generation(&self) -> u32 {
        self.generation
    }

    pub(crate) fn cursor(&self) -> Sequence {
        self.cursor
    }

    /// How many messages have an entry: what the book costs beside its bits.
    pub(crate) fn entries(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn counts(&self) -> Counts {
        self.counts
    }

    pub(crate) fn outstanding(&self) -> u64 {
        self.outstanding
    }

    pub(crate) fn delayed(&self) -> u64 {
        self.delayed.len() as u64
    }

    pub(crate) fn parked(&self) -> u64 {
        self.parked.len() as u64 + self.remembered_as_parked()
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.paused
    }

    pub(crate) fn set_paused(&mut self, paused: bool) {
        self.paused = paused;
    }

    /// What the engine has to carry out since it last asked.
    pub(crate) fn take_events(&mut self) -> Vec<LedgerEvent> {
        std::mem::take(&mut self.events)
    }

    /// From now on the engine records what happens: it asks for what came back, and says when a hand-out at most once is [settled](Self::end_hand_out).
    pub(crate) fn be_recorded(&mut self) {
        self.returns.get_or_insert_default();
    }

    pub(super) fn is_recorded(&self) -> bool {
        self.returns.is_some()
    }

    /// How many more may be outstanding. What is handed out at most once is settled before anybody has it.
    pub(super) fn room(&self) -> u64 {
        match self.rules.mode {
            DeliveryMode::AtMostOnce => self.rules.outstanding_max,
            _ => self.rules.outstanding_max.saturating_sub(self.outstanding),
        }
    }

    /// The messages that were released, or came back to be delayed, since the engine last asked.
    pub(crate) fn take_returns(&mut self) -> Vec<Returned> {
        let returns = self.returns.as_mut().map(std::mem::take).unwrap_or_default();
        let returned = |sequence: Sequence| {
            let entry = self.entries.get(&sequence)?;
            let waits = !matches!(entry.standing, Standing::Leased { .. } | Standing::Committing { .. });
            let until = Some(entry.not_before).filter(|until| *until != Tick::ZERO);
            waits.then_some(Returned { sequence, attempts: entry.attempts, until })
        };
        returns.into_iter().filter_map(returned).collect()
    }

    /// The ranges that became settled since the engine last asked.
    pub(crate) fn take_news(&mut self) -> Few<(Sequence, Sequence)> {
        self.news.take()
    }

    /// Whether a receiver that asks now has something to get, or to look at.
    pub(crate) fn has_deliverable(&self, tail: Sequence) -> bool {
        !self.paused
            && self.room() > 0
            && (!self.fresh.is_empty()
                || !self.again.is_empty()
                || (self.examining == 0 && self.settled.next_unsettled_run(self.cursor, tail).is_some()))
    }

    /// The next instant at which something happens by itself: a deadline, the end of a delay or of a life.
    pub(crate) fn poll_timeout(&self) -> Option<Tick> {
        let mut next = self.runs.first().map_or(Tick::NEVER, |first| first.1);
        // Mostly all three are empty.
        for times in [&self.deadlines, &self.delayed, &self.expiring] {
            if let Some(first) = times.first() {
                next = next.min(first.0);
            }
        }
        (next != Tick::NEVER).then_some(next)
    }

    pub(crate) fn status(&self, sequence: Sequence) -> MessageStatus {
        if let Some(outcome) = self.settled.outcome(sequence) {
            return match outcome {
                Outcome::Acked => MessageStatus::Acked,
                Outcome::Filtered => MessageStatus::Filtered,
                Outcome::Skipped | Outcome::Removed => MessageStatus::Skipped,
                Outcome::DeadLettered => MessageStatus::DeadLettered,
                Outcome::Discarded => MessageStatus::Discarded,
                Outcome::Expired => MessageStatus::Expired,
                Outcome::Dropped => MessageStatus::Dropped,
            };
        }
        match self.entries.get(&sequence).map(|entry| entry.standing) {
            Some(Standing::Leased { .. } | Standing::Committing { .. }) => MessageStatus::Leased,
            Some(Standing::Delayed { .. }) => MessageStatus::Delayed,
            Some(Standing::Parked | Standing::Burying) => MessageStatus::Parked,
            Some(Standing::Fresh | Standing::Again { .. } | Standing::Queued) => MessageStatus::Waiting,
            None if self.runs.values().any(|run| run.holds(sequence)) => MessageStatus::Leased,
            None if self.is_remembered_as_parked(sequence) => MessageStatus::Parked,
            None => MessageStatus::Waiting,
        }
    }

    /// Puts an entry in, and into the one index that its standing asks for.
    pub(super) fn put(&mut self, sequence: Sequence, entry: Entry) {
        match entry.standing {
            Standing::Fresh => drop(self.fresh.insert(sequence)),
            Standing::Again { turn } => drop(self.again.insert((turn, sequence))),
            Standing::Delayed { until } => drop(self.delayed.insert((until, sequence))),
            Standing::Queued | Standing::Burying | Standing::Parked => {}
            Standing::Leased { deadline, .. } => {
                self.deadlines.insert((deadline, sequence));
                self.outstanding += 1;
            }
            Standing::Committing { .. } => self.outstanding += 1,
        }
        if entry.standing.may_expire() && entry.expires != Tick::NEVER {
            self.expiring.insert((entry.expires, sequence));
        }
        let before = self.entries.insert(sequence, entry);
        debug_assert!(before.is_none(), "{sequence:?} stands twice");
    }

    /// Takes an entry out, and out of its index.
    pub(super) fn lift(&mut self, sequence: Sequence) -> Option<Entry> {
        let entry = self.entries.remove(&sequence)?;
        match entry.standing {
            Standing::Fresh => drop(self.fresh.remove(&sequence)),
            Standing::Again { turn } => drop(self.again.remove(&(turn, sequence))),
            Standing::Delayed { until } => drop(self.delayed.remove(&(until, sequence))),
            Standing::Queued => {}
            Standing::Burying => drop(self.burying.remove(&sequence)),
            Standing::Parked => drop(self.parked.remove(&sequence)),
            Standing::Leased { deadline, .. } => {
                self.deadlines.remove(&(deadline, sequence));
                self.outstanding -= 1;
            }
            Standing::Committing { .. } => self.outstanding -= 1,
        }
        if entry.standing.may_expire() && entry.expires != Tick::NEVER {
            self.expiring.remove(&(entry.expires, sequence));
        }
        Some(entry)
    }

    pub(super) fn restand(&mut self, sequence: Sequence, standing: Standing) {
        if let Some(entry) = self.lift(sequence) {
            self.put(sequence, Entry { standing, ..entry });
        }
    }

    /// Settles a message that has no entry any more, and frees its key.
    pub(super) fn settle(&mut self, sequence: Sequence, key: Option<Key>, outcome: Outcome) {
        if self.settled.settle(sequence, outcome) {
            self.note(sequence, sequence.next());
            self.forget_memories(sequence, sequence.next());
        }
        self.cursor = self.cursor.max(self.settled.low());
        if let Some(key) = key
            && let Some(next) = self.lanes.settle(key, sequence)
        {
            self.promote(next);
        }
    }

    pub(super) fn note(&mut self, from: Sequence, to: Sequence) {
        match self.news.last_mut() {
            Some(last) if last.1 == from => last.1 = to,
            _ => self.news.push((from, to)),
        }
    }

    /// A queued message is now the first of its key.
    fn promote(&mut self, sequence: Sequence) {
        let Some(entry) = self.entries.get(&sequence) else { return };
        if entry.standing != Standing::Queued {
            return;
        }
        let standing = match (entry.not_before, entry.attempts) {
            (Tick::ZERO, 0) => Standing::Fresh,
            (Tick::ZERO, _) => Standing::Again { turn: self.turn },
            (until, _) => Standing::Delayed { until },
        };
        self.restand(sequence, standing);
    }

    pub(super) fn next_lease(&mut self) -> LeaseId {
        self.leases += 1;
        LeaseId::single(self.leases)
    }
}

impl Standing {
    /// Whether the end of its life removes the message: not while somebody holds it.
    fn may_expire(self) -> bool {
        !matches!(self, Standing::Leased { .. } | Standing::Committing { .. } | Standing::Burying)
    }
}
