//! What the promises say of topics, subscriptions and transactions, told by walks over lists. It shares no code with the crate.

use std::collections::BTreeSet;

use eventflow::{CommitReason, DeliveryMode};

/// Milliseconds since the broker was made.
pub(super) type Time = u64;

pub(super) const DEADLINE: Time = 10_000;
/// Never met to the millisecond: time passes in whole ones, and the window ends between two.
pub(super) const DEDUP_WINDOW: Time = 25_000;

/// What is published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Letter {
    pub(super) text: String,
    pub(super) key: Option<u8>,
    pub(super) id: Option<u8>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct TopicPlan {
    pub(super) capacity: Option<u64>,
    /// Whether settled messages are kept, so that a seek can bring them back.
    pub(super) forever: bool,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct SubPlan {
    pub(super) mode: DeliveryMode,
    pub(super) ordered: bool,
    pub(super) earliest: bool,
    pub(super) outstanding_max: usize,
}

/// A hand-out of one message.
#[derive(Clone, Copy, Debug)]
pub(super) struct Held {
    pub(super) sub: usize,
    /// From 0.
    message: usize,
    lease: u64,
    generation: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Waiting,
    Leased { lease: u64, until: Time, spared: bool },
    Settled,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    state: State,
    attempts: u32,
    /// Whether it was ever handed out in this generation.
    seen: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) backlog: u64,
    pub(super) outstanding: u64,
    pub(super) delivered: u64,
    pub(super) acked: u64,
    pub(super) nacked: u64,
    pub(super) released: u64,
    pub(super) leases_expired: u64,
}

struct Sub {
    topic: usize,
    plan: SubPlan,
    deleted: bool,
    entries: Vec<Entry>,
    generation: u32,
    counts: Counts,
}

struct Topic {
    plan: TopicPlan,
    deleted: bool,
    log: Vec<Letter>,
    deduplicated: u64,
    /// Id, message, and when.
    ids: Vec<(u8, usize, Time)>,
}

/// A transaction as the model knows it.
#[derive(Clone, Debug, Default)]
pub(super) struct Plan {
    pub(super) acks: Vec<Held>,
    pub(super) posts: Vec<(usize, Letter)>,
    /// A commit of it has found no space.
    pub(super) spared: bool,
}

/// Topic, sequence, whether it is a repeat.
pub(super) type Receipt = (usize, u64, bool);

/// All topics and subscriptions that ever were, by number.
#[derive(Default)]
pub(super) struct Naive {
    pub(super) now: Time,
    topics: Vec<Topic>,
    subs: Vec<Sub>,
    leases: u64,
}

impl Naive {
    pub(super) fn create_topic(&mut self, plan: TopicPlan) -> usize {
        self.topics.push(Topic { plan, deleted: false, log: vec![], deduplicated: 0, ids: vec![] });
        self.topics.len() - 1
    }

    pub(super) fn delete_topic(&mut self, topic: usize) {
        self.topics[topic].deleted = true;
        self.subs.iter_mut().filter(|sub| sub.topic == topic).for_each(|sub| sub.deleted = true);
    }

    pub(super) fn subscribe(&mut self, topic: usize, plan: SubPlan) -> usize {
        let state = if plan.earliest { State::Waiting } else { State::Settled };
        let entries = vec![Entry { state, attempts: 0, seen: false }; self.topics[topic].log.len()];
        let counts = Counts::default();
        self.subs.push(Sub { topic, plan, deleted: false, entries, generation: 0, counts });
        self.subs.len() - 1
    }

    pub(super) fn unsubscribe(&mut self, sub: usize) {
        self.subs[sub].deleted = true;
    }

    pub(super) fn len(&self, topic: usize) -> u64 {
        self.topics[topic].log.len() as u64
    }

    pub(super) fn keeps_all(&self, topic: usize) -> bool {
        self.topics[topic].plan.forever
    }

    pub(super) fn deduplicated(&self, topic: usize) -> u64 {
        self.topics[topic].deduplicated
    }

    pub(super) fn letter(&self, held: Held) -> &Letter {
        &self.topics[self.subs[held.sub].topic].log[held.message]
    }

    pub(super) fn next_attempt(&self, sub: usize, sequence: u64) -> u32 {
        self.subs[sub].entries[sequence as usize - 1].attempts + 1
    }

    pub(super) fn is_deleted(&self, sub: usize) -> bool {
        self.subs[sub].deleted
    }

    pub(super) fn counts(&self, sub: usize) -> Counts {
        let sub = &self.subs[sub];
        let count =
            |wanted: fn(State) -> bool| sub.entries.iter().filter(|entry| wanted(entry.state)).count() as u64;
        Counts {
            backlog: count(|state| state != State::Settled),
            outstanding: count(|state| matches!(state, State::Leased { .. })),
            ..sub.counts
        }
    }

    fn same_key(&self, sub: usize, a: usize, b: usize) -> bool {
        let Sub { topic, plan, .. } = self.subs[sub];
        let key = |n: usize| self.topics[topic].log[n].key;
        plan.ordered && key(a).is_some() && key(a) == key(b)
    }

    /// The earlier messages of its key that are not settled.
    fn before(&self, sub: usize, n: usize) -> impl Iterator<Item = usize> {
        let open = move |m: &usize| self.subs[sub].entries[*m].state != State::Settled;
        (0..n).filter(move |&m| self.same_key(sub, m, n)).filter(open)
    }

    fn is_behind(&self, sub: usize, n: usize) -> bool {
        self.before(sub, n).next().is_some()
    }

    /// What a receiver that asks now may be given first.
    fn available(&self, sub: usize) -> Vec<usize> {
        let Sub { plan, entries, .. } = &self.subs[sub];
        if self.counts(sub).outstanding >= plan.outstanding_max as u64 {
            return vec![];
        }
        let waits = |n: &usize| entries[*n].state == State::Waiting && !self.is_behind(sub, *n);
        (0..entries.len()).filter(waits).collect()
    }

    /// A receiver asked for up to `max` and was given these: sequences and attempts.
    pub(super) fn receive(&mut self, sub: usize, max: usize, given: &[(u64, u32)]) -> Vec<Held> {
        let available = self.available(sub);
        let plan = self.subs[sub].plan;
        let room = plan.outstanding_max - self.counts(sub).outstanding as usize;
        assert_eq!(given.is_empty(), available.is_empty(), "what waits is given: {available:?}");
        assert!(given.len() <= max.min(room), "no more than was asked for, or than may be outstanding");
        if !plan.ordered {
            assert_eq!(given.len(), max.min(room).min(available.len()), "as many as there are");
        }
        let mut held: Vec<Held> = Vec::new();
        for &(sequence, attempt) in given {
            let n = sequence as usize - 1;
            let Entry { state, attempts, seen } = self.subs[sub].entries[n];
            assert_eq!(state, State::Waiting, "P6, P8: {sequence} is nobody's and not settled");
            assert_eq!(attempt, attempts + 1, "P10: the attempt at {sequence}");
            let in_batch = |m: usize| held.iter().any(|held| held.message == m);
            assert!(self.before(sub, n).all(in_batch), "P12: {sequence} overtakes its key");
            let first = self.available(sub).into_iter().find(|&m| !self.subs[sub].entries[m].seen);
            assert!(seen || first.is_none_or(|first| n <= first), "P4: {sequence} is not the next new one");
            held.push(self.hand_out(sub, n));
        }
        held
    }

    fn hand_out(&mut self, sub: usize, n: usize) -> Held {
        self.leases += 1;
        let (lease, until) = (self.leases, self.now + DEADLINE);
        let sub_of = &mut self.subs[sub];
        sub_of.counts.delivered += 1;
        let once = sub_of.plan.mode == DeliveryMode::AtMostOnce;
        sub_of.counts.acked += u64::from(once);
        let entry = &mut sub_of.entries[n];
        entry.attempts += 1;
        entry.seen = true;
        entry.state = if once { State::Settled } else { State::Leased { lease, until, spared: false } };
        Held { sub, message: n, lease, generation: sub_of.generation }
    }

    fn runs(&self, held: Held) -> bool {
        let state = self.subs[held.sub].entries[held.message].state;
        matches!(state, State::Leased { lease, .. } if lease == held.lease)
    }

    fn set(&mut self, sub: usize, n: usize, state: State) {
        self.subs[sub].entries[n].state = state;
    }

    fn give_back(&mut self, sub: usize, n: usize) {
        self.subs[sub].counts.released += 1;
        self.subs[sub].entries[n].attempts -= 1;
        self.set(sub, n, State::Waiting);
    }

    /// Those after it in its run.
    fn give_back_followers(&mut self, sub: usize, n: usize) {
        for m in n + 1..self.subs[sub].entries.len() {
            let leased = matches!(self.subs[sub].entries[m].state, State::Leased { .. });
            if leased && self.same_key(sub, n, m) {
                self.give_back(sub, m);
            }
        }
    }

    fn settle(&mut self, sub: usize, n: usize) {
        self.subs[sub].counts.acked += 1;
        self.set(sub, n, State::Settled);
    }

    pub(super) fn is_at_most_once(&self, held: Held) -> bool {
        self.subs[held.sub].plan.mode == DeliveryMode::AtMostOnce
    }

    pub(super) fn ack(&mut self, held: Held) -> bool {
        let Held { sub, message: n, .. } = held;
        if self.is_at_most_once(held) {
            return true;
        }
        let behind = self.is_behind(sub, n);
        if self.runs(held) && behind {
            self.give_back(sub, n);
            self.give_back_followers(sub, n);
            return false;
        }
        let Sub { plan, entries, generation, .. } = &self.subs[sub];
        let late = entries[n].state == State::Waiting
            && plan.mode == DeliveryMode::AtLeastOnce
            && *generation == held.generation
            && !behind;
        let taken = self.runs(held) || late;
        if taken {
            self.settle(sub, n);
        }
        taken
    }

    pub(super) fn nack(&mut self, held: Held) -> bool {
        let runs = self.runs(held) && !self.is_deleted(held.sub);
        if runs {
            self.subs[held.sub].counts.nacked += 1;
            self.set(held.sub, held.message, State::Waiting);
            self.give_back_followers(held.sub, held.message);
        }
        runs
    }

    pub(super) fn release(&mut self, held: Held) -> bool {
        let runs = self.runs(held) && !self.is_deleted(held.sub);
        if runs {
            self.give_back(held.sub, held.message);
            self.give_back_followers(held.sub, held.message);
        }
        runs
    }

    pub(super) fn seek(&mut self, sub: usize, sequence: u64) {
        let sub = &mut self.subs[sub];
        sub.generation += 1;
        for (number, entry) in (1..).zip(&mut sub.entries) {
            let state = if number >= sequence { State::Waiting } else { State::Settled };
            *entry = Entry { state, attempts: 0, seen: false };
        }
    }

    /// Leases end at their deadline; of those that end together, the first of a run takes the others along.
    pub(super) fn advance(&mut self, by: Time) {
        let then = self.now + by;
        while let Some((until, sub, n, spared)) = self.first_end().filter(|end| end.0 <= then) {
            self.now = until;
            if spared {
                self.give_back(sub, n);
            } else {
                self.subs[sub].counts.leases_expired += 1;
                self.set(sub, n, State::Waiting);
            }
            self.give_back_followers(sub, n);
        }
        self.now = then;
    }

    fn first_end(&self) -> Option<(Time, usize, usize, bool)> {
        let subs = self.subs.iter().enumerate().filter(|(_, sub)| !sub.deleted);
        let ends = subs.flat_map(|(number, sub)| {
            sub.entries.iter().enumerate().filter_map(move |(n, entry)| match entry.state {
                State::Leased { until, spared, .. } => Some((until, number, n, spared)),
                _ => None,
            })
        });
        ends.min()
    }

    /// The message that this would repeat, or the conflict. `more`: what the same transaction publishes before it.
    fn admit(&self, topic: usize, letter: &Letter, more: &[&Letter]) -> Result<Option<usize>, ()> {
        let Some(id) = letter.id else { return Ok(None) };
        let Topic { ids, log, .. } = &self.topics[topic];
        let known = ids
            .iter()
            .rfind(|(known, _, at)| *known == id && self.now - at <= DEDUP_WINDOW)
            .map(|seen| seen.1);
        let earlier = more.iter().position(|other| other.id == Some(id)).map(|at| log.len() + at);
        let Some(first) = known.or(earlier) else { return Ok(None) };
        let same = if first < log.len() { &log[first] } else { more[first - log.len()] };
        if same == letter { Ok(Some(first)) } else { Err(()) }
    }

    /// What is not settled yet by all, once these have been acked.
    fn occupied(&self, topic: usize, acked: &[Held]) -> u64 {
        let acked = |sub: usize, n: usize| acked.iter().any(|held| held.sub == sub && held.message == n);
        let open = |n: usize| {
            self.subs.iter().enumerate().any(|(number, sub)| {
                let here = sub.topic == topic && !sub.deleted;
                here && sub.entries[n].state != State::Settled && !acked(number, n)
            })
        };
        (0..self.topics[topic].log.len()).filter(|&n| open(n)).count() as u64
    }

    /// Every reason that stands against it; none: it commits.
    pub(super) fn reasons(&self, tx: &Plan) -> Vec<CommitReason> {
        let mut reasons = Vec::new();
        let acks: Vec<Held> = tx.acks.iter().copied().filter(|held| !self.is_at_most_once(*held)).collect();
        let (alive, gone): (Vec<Held>, Vec<Held>) = acks.iter().partition(|held| !self.is_deleted(held.sub));
        let dead = |topic: usize| self.topics[topic].deleted;
        let input_of = |held: &Held| self.subs[held.sub].topic;
        if gone.iter().any(|held| dead(input_of(held))) || tx.posts.iter().any(|post| dead(post.0)) {
            reasons.push(CommitReason::TopicDeleted);
        }
        if gone.iter().any(|held| !dead(input_of(held))) {
            reasons.push(CommitReason::SubscriptionDeleted);
        }
        let expired = alive.iter().filter(|&&held| !self.runs(held)).count() as u64;
        let out_of_turn = alive.iter().filter(|&&held| self.runs(held) && self.leaves_gap(held, &alive));
        match (expired, out_of_turn.count() as u64) {
            (0, 0) => {}
            // Of a run with a gap, one or all behind the gap may be told.
            (expired, more) => {
                let counts = expired.max(1)..=expired + more;
                reasons.extend(counts.map(|count| CommitReason::LeaseExpired { count }));
            }
        }
        for topic in tx.posts.iter().map(|post| post.0).collect::<BTreeSet<_>>() {
            reasons.extend(self.reason_of_topic(topic, tx, &acks));
        }
        reasons
    }

    fn leaves_gap(&self, held: Held, acks: &[Held]) -> bool {
        let among = |m: usize| acks.iter().any(|other| other.sub == held.sub && other.message == m);
        !self.before(held.sub, held.message).all(among)
    }

    fn reason_of_topic(&self, topic: usize, tx: &Plan, acks: &[Held]) -> Option<CommitReason> {
        let mut new: Vec<&Letter> = Vec::new();
        for (_, letter) in tx.posts.iter().filter(|post| post.0 == topic) {
            match self.admit(topic, letter, &new) {
                Err(()) => return Some(CommitReason::IdempotencyConflict),
                Ok(None) => new.push(letter),
                Ok(Some(_)) => {}
            }
        }
        let (capacity, new) = (self.topics[topic].plan.capacity?, new.len() as u64);
        match new {
            0 => None,
            _ if new > capacity => Some(CommitReason::TooLarge),
            _ if self.occupied(topic, acks) + new > capacity => Some(CommitReason::Full),
            _ => None,
        }
    }

    /// Nothing stands against it.
    pub(super) fn commit(&mut self, tx: &Plan) -> Vec<Receipt> {
        for held in tx.acks.iter().filter(|held| !self.is_at_most_once(**held)).copied().collect::<Vec<_>>() {
            self.settle(held.sub, held.message);
        }
        tx.posts.iter().map(|(topic, letter)| self.publish(*topic, letter.clone())).collect()
    }

    fn publish(&mut self, topic: usize, letter: Letter) -> Receipt {
        if let Ok(Some(first)) = self.admit(topic, &letter, &[]) {
            self.topics[topic].deduplicated += 1;
            return (topic, first as u64 + 1, true);
        }
        let number = self.topics[topic].log.len();
        if let Some(id) = letter.id {
            self.topics[topic].ids.push((id, number, self.now));
        }
        self.topics[topic].log.push(letter);
        for sub in self.subs.iter_mut().filter(|sub| sub.topic == topic && !sub.deleted) {
            sub.entries.push(Entry { state: State::Waiting, attempts: 0, seen: false });
        }
        (topic, number as u64 + 1, false)
    }

    /// A commit found no space: if a lease of it runs out, no attempt is spent.
    pub(super) fn spare(&mut self, tx: &mut Plan) {
        tx.spared = true;
        for held in tx.acks.iter().filter(|held| self.runs(**held)).copied().collect::<Vec<_>>() {
            if let State::Leased { spared, .. } = &mut self.subs[held.sub].entries[held.message].state {
                *spared = true;
            }
        }
    }

    /// The last of a run first: each comes back by its own, and takes nothing of the transaction along.
    pub(super) fn roll_back(&mut self, tx: &Plan) {
        let mut acks = tx.acks.clone();
        acks.sort_by_key(|held| std::cmp::Reverse((held.sub, held.message)));
        for held in acks {
            if tx.spared {
                self.release(held)
            } else {
                self.nack(held)
            };
        }
    }
}
