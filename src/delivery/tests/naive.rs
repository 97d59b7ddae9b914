//! A model of the ledger: a list of messages, and for every question a walk over all of it.
//!
//! It shares no code with the ledger but the names of modes and statuses. What it says of order is what is promised: new messages by
//! sequence; redeliveries by the call that made them available, then by sequence; turns between the two.

mod committing;
mod restart;

use std::collections::BTreeSet;

use crate::delivery::tests::{ACK_DEADLINE, DeadLetter, Fate, Letter};
use crate::options::{DeliveryMode, MessageStatus};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Limit {
    None,
    Discard(u32),
    Bury(u32),
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Setting {
    pub(super) mode: DeliveryMode,
    pub(super) ordered: bool,
    pub(super) looks: bool,
    pub(super) retry: u64,
    pub(super) limit: Limit,
    pub(super) outstanding_max: u64,
    /// That makes no difference here.
    pub(super) on_disk: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    Unseen,
    Looking,
    /// In a line, or in none yet: behind its key, or not due.
    Waiting(Option<Line>),
    Held {
        hand_out: usize,
        deadline: u64,
        committing: bool,
    },
    Burying(&'static str),
    Parked(&'static str),
    Done(MessageStatus),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Line {
    New,
    Again(u64),
}

#[derive(Clone, Debug)]
struct Message {
    letter: Letter,
    place: Place,
    attempts: u32,
    releases: u32,
    not_before: u64,
    /// The running lease waits for space.
    spared: bool,
}

impl Message {
    fn new(letter: Letter, place: Place) -> Self {
        Message { letter, place, attempts: 0, releases: 0, not_before: 0, spared: false }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct HandOut {
    message: usize,
    attempt: u32,
    generation: u32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) delivered: u64,
    pub(super) redelivered: u64,
    pub(super) acked: u64,
    pub(super) nacked: u64,
    pub(super) released: u64,
    pub(super) leases_expired: u64,
    pub(super) messages_expired: u64,
    pub(super) dead_lettered: u64,
    pub(super) discarded: u64,
    pub(super) filtered: u64,
}

pub(super) struct Naive {
    setting: Setting,
    pub(super) now: u64,
    messages: Vec<Message>,
    hand_outs: Vec<HandOut>,
    looks: Vec<(std::ops::Range<usize>, u32)>,
    pub(super) grave_open: bool,
    pub(super) paused: bool,
    pub(super) dead: Vec<DeadLetter>,
    pub(super) tally: Tally,
    generation: u32,
    turn: u64,
    last_was_again: bool,
}

impl Naive {
    pub(super) fn new(setting: Setting) -> Self {
        Naive {
            setting,
            now: 0,
            messages: Vec::new(),
            hand_outs: Vec::new(),
            looks: Vec::new(),
            grave_open: true,
            paused: false,
            dead: Vec::new(),
            tally: Tally::default(),
            generation: 0,
            turn: 0,
            last_was_again: false,
        }
    }

    pub(super) fn publish(&mut self, letter: Letter) {
        self.messages.push(Message::new(letter, Place::Unseen));
    }

    fn numbers(&self) -> std::ops::Range<usize> {
        0..self.messages.len()
    }

    fn key(&self, n: usize) -> Option<u64> {
        self.messages[n].letter.key.filter(|_| self.setting.ordered)
    }

    fn expires(&self, n: usize) -> u64 {
        self.messages[n].letter.expires.unwrap_or(u64::MAX)
    }

    fn attempts_max(&self) -> u32 {
        match self.setting.limit {
            Limit::None => u32::MAX,
            Limit::Discard(after) | Limit::Bury(after) => after,
        }
    }

    /// Looked at, and not settled.
    fn is_open(&self, n: usize) -> bool {
        !matches!(self.messages[n].place, Place::Unseen | Place::Looking | Place::Done(_))
    }

    fn is_held(&self, n: usize) -> bool {
        matches!(self.messages[n].place, Place::Held { .. })
    }

    fn same_key(&self, a: usize, b: usize) -> bool {
        self.key(a).is_some() && self.key(a) == self.key(b)
    }

    /// An earlier message of its key is not settled.
    fn is_behind(&self, n: usize) -> bool {
        (0..n).any(|m| self.same_key(m, n) && self.is_open(m))
    }

    fn is_delayed(&self, n: usize) -> bool {
        let message = &self.messages[n];
        message.place == Place::Waiting(None) && message.not_before > 0 && !self.is_behind(n)
    }

    fn line(&self, n: usize) -> Option<Line> {
        match self.messages[n].place {
            Place::Waiting(line) => line,
            _ => None,
        }
    }

    /// Those that nothing holds back any more get in line.
    fn line_up(&mut self) {
        for n in self.numbers() {
            let waits = self.messages[n].place == Place::Waiting(None);
            if waits && self.messages[n].not_before == 0 && !self.is_behind(n) {
                let line = if self.messages[n].attempts > 0 { Line::Again(self.turn) } else { Line::New };
                self.messages[n].place = Place::Waiting(Some(line));
            }
        }
    }

    fn finish(&mut self, n: usize, status: MessageStatus) {
        self.messages[n].place = Place::Done(status);
        self.line_up();
    }

    /// Given back: into its line, or behind what holds it back.
    fn put_back(&mut self, n: usize, not_before: u64) {
        self.messages[n].not_before = not_before;
        let rotates = self.messages[n].attempts > 0 || self.messages[n].releases > 1;
        let line = if rotates { Line::Again(self.turn) } else { Line::New };
        let held_back = not_before > 0 || self.is_behind(n);
        self.messages[n].place = Place::Waiting(if held_back { None } else { Some(line) });
    }

    fn give_back(&mut self, n: usize) {
        self.give_back_those_after(n);
        self.tally.released += 1;
        self.messages[n].attempts -= 1;
        self.messages[n].releases += 1;
        self.put_back(n, 0);
    }

    fn give_back_those_after(&mut self, n: usize) {
        for m in (n + 1..self.messages.len()).rev() {
            if self.same_key(n, m) && self.is_held(m) {
                self.tally.released += 1;
                self.messages[m].attempts -= 1;
                self.messages[m].releases += 1;
                self.put_back(m, 0);
            }
        }
    }

    fn fail(&mut self, n: usize, at: u64, delay: Option<u64>, reason: &'static str) {
        if self.expires(n) <= at {
            self.tally.messages_expired += 1;
            return self.finish(n, MessageStatus::Expired);
        }
        if self.messages[n].attempts >= self.attempts_max() && !self.is_behind(n) {
            return self.bury(n, reason);
        }
        let delay = delay.unwrap_or(self.setting.retry);
        self.messages[n].releases = 0;
        // Only a filter fails a message before its publish delay is over.
        self.put_back(n, if delay == 0 && at <= self.now { 0 } else { at + delay });
    }

    fn bury(&mut self, n: usize, reason: &'static str) {
        if matches!(self.setting.limit, Limit::Bury(_)) {
            self.messages[n].place = Place::Burying(reason);
        } else {
            self.tally.discarded += 1;
            self.finish(n, MessageStatus::Discarded);
        }
    }

    fn carry_out(&mut self) {
        for n in self.numbers() {
            let Place::Burying(reason) = self.messages[n].place else { continue };
            if self.grave_open {
                let (message, attempts) = (n as u64 + 1, self.messages[n].attempts);
                self.dead.push(DeadLetter { message, attempts, reason: reason.to_owned() });
                self.tally.dead_lettered += 1;
                self.finish(n, MessageStatus::DeadLettered);
            } else {
                self.messages[n].place = Place::Parked(reason);
            }
        }
    }

    /// What happens by itself, when and to whom: at one instant delays end before lives do, and lives before leases.
    fn coming(&self) -> impl Iterator<Item = (u64, u8, usize)> {
        self.numbers().flat_map(|n| {
            let message = &self.messages[n];
            let delay = self.is_delayed(n).then_some((message.not_before, 0, n));
            let mortal = matches!(message.place, Place::Waiting(_) | Place::Parked(_));
            let life = message.letter.expires.filter(|_| mortal).map(|at| (at, 1, n));
            let lease = match message.place {
                Place::Held { deadline, committing: false, .. } => Some((deadline, 2, n)),
                _ => None,
            };
            [delay, life, lease].into_iter().flatten()
        })
    }

    pub(super) fn next_timeout(&self) -> Option<u64> {
        self.coming().map(|event| event.0).min()
    }

    pub(super) fn catch_up(&mut self) {
        self.turn += 1;
        while let Some((at, kind, n)) = self.coming().min().filter(|event| event.0 <= self.now) {
            match kind {
                0 => {
                    self.messages[n].not_before = 0;
                    self.line_up();
                }
                1 => {
                    self.tally.messages_expired += 1;
                    self.finish(n, MessageStatus::Expired);
                }
                _ if self.messages[n].spared => self.give_back(n),
                _ => {
                    self.tally.leases_expired += 1;
                    self.give_back_those_after(n);
                    self.fail(n, at, None, "ack deadline expired");
                }
            }
        }
        self.carry_out();
    }

    fn is_plain(&self) -> bool {
        let special =
            |letter: &Letter| letter.due > 0 || letter.expires.is_some() || letter.fate != Fate::Taken;
        !self.setting.looks && !self.setting.ordered && !self.messages.iter().any(|m| special(&m.letter))
    }

    fn unseen_run(&self) -> Option<std::ops::Range<usize>> {
        let unseen = |n: &usize| self.messages[*n].place == Place::Unseen;
        let first = self.numbers().find(unseen)?;
        let count = (first..self.messages.len()).take_while(unseen).count();
        Some(first..first + count)
    }

    pub(super) fn begin_look(&mut self) {
        if let Some(run) = self.unseen_run() {
            run.clone().for_each(|n| self.messages[n].place = Place::Looking);
            self.looks.push((run, self.generation));
        }
    }

    /// Where keys have an order, looks are believed in theirs, whichever is done first.
    pub(super) fn finish_looks(&mut self, backwards: bool) {
        let mut looks = std::mem::take(&mut self.looks);
        if backwards && !self.setting.ordered {
            looks.reverse();
        }
        for (run, generation) in looks {
            if generation == self.generation {
                self.turn += 1;
                run.for_each(|n| self.take_in(n));
                if !(backwards && self.setting.ordered) {
                    self.carry_out();
                }
            }
        }
        self.carry_out();
    }

    fn take_in(&mut self, n: usize) {
        let letter = self.messages[n].letter;
        if self.messages[n].place != Place::Looking {
            return;
        }
        if letter.fate == Fate::Gone {
            return self.finish(n, MessageStatus::Skipped);
        }
        if letter.fate == Fate::FilteredOut {
            self.tally.filtered += 1;
            return self.finish(n, MessageStatus::Filtered);
        }
        if self.expires(n) <= self.now {
            self.tally.messages_expired += 1;
            return self.finish(n, MessageStatus::Expired);
        }
        let not_before = if letter.due > self.now { letter.due } else { 0 };
        let panicked = letter.fate == Fate::FilterPanics;
        self.messages[n].attempts = u32::from(panicked);
        if panicked && !self.is_behind(n) {
            self.fail(n, self.now.max(not_before), None, "filter panicked");
        } else {
            self.put_back(n, not_before);
        }
    }

    fn count_held(&self) -> u64 {
        self.numbers().filter(|&n| self.is_held(n)).count() as u64
    }

    /// Whether to look before handing out `want`.
    fn should_look(&self, want: u64) -> bool {
        let new = self.numbers().filter(|&n| self.line(n) == Some(Line::New)).count() as u64;
        let again = self.numbers().filter(|&n| matches!(self.line(n), Some(Line::Again(_)))).count() as u64;
        // If there are redeliveries, every other one of the batch should be new.
        let turns = if self.last_was_again { want - want / 2 } else { want / 2 };
        self.looks.is_empty() && (new + again < want || again > 0 && new < turns)
    }

    pub(super) fn lease(&mut self, max: u64) -> Vec<(u64, u32)> {
        let first = self.hand_outs.len();
        loop {
            self.catch_up();
            let want = max.min(self.setting.outstanding_max.saturating_sub(self.count_held()));
            if self.paused || want == 0 {
                break;
            }
            if !self.is_plain() && self.should_look(want) && self.unseen_run().is_some() {
                self.begin_look();
                self.finish_looks(false);
                continue;
            }
            while (self.hand_outs.len() - first) < want as usize && self.hand_out_next(first) {}
            break;
        }
        self.hand_outs[first..].iter().map(|h| (h.message as u64 + 1, h.attempt)).collect()
    }

    /// The next of a run of its key that this batch, from `first` on, has begun.
    fn may_follow(&self, n: usize, first: usize) -> bool {
        let in_batch =
            |m: usize| matches!(self.messages[m].place, Place::Held { hand_out, .. } if hand_out >= first);
        let mut before = (0..n).filter(|&m| self.same_key(m, n) && self.is_open(m)).peekable();
        let waits = self.messages[n].place == Place::Waiting(None) && self.messages[n].not_before <= self.now;
        waits && before.peek().is_some() && before.all(in_batch)
    }

    /// False: the batch ends here.
    fn hand_out_next(&mut self, first: usize) -> bool {
        let followers = || self.numbers().filter(|&n| self.may_follow(n, first));
        let unseen =
            self.unseen_run().filter(|_| self.is_plain() && self.looks.is_empty()).map(|run| run.start);
        let new = self
            .numbers()
            .filter(|&n| self.line(n) == Some(Line::New))
            .chain(followers().filter(|&n| self.messages[n].attempts == 0))
            .chain(unseen)
            .min();
        let repeat = followers().find(|&n| self.messages[n].attempts > 0);
        let turn = |n: &usize| (self.line(*n), *n);
        let again = repeat.or(self.numbers().filter(|n| self.line(*n) > Some(Line::New)).min_by_key(turn));
        let chosen = match (again, new) {
            (Some(_), Some(new)) if self.last_was_again => new,
            (Some(again), _) => again,
            (None, Some(new)) => new,
            (None, None) => return false,
        };
        let alone = self.messages[chosen].attempts + 1 >= self.attempts_max();
        if alone && self.hand_outs.len() > first {
            return false;
        }
        self.last_was_again = Some(chosen) == again;
        self.hand_out(chosen);
        !alone
    }

    fn hand_out(&mut self, n: usize) {
        self.messages[n].attempts += 1;
        self.messages[n].not_before = 0;
        self.messages[n].spared = false;
        let attempt = self.messages[n].attempts;
        self.tally.delivered += 1;
        self.tally.redelivered += u64::from(attempt > 1);
        let hand_out = self.hand_outs.len();
        self.hand_outs.push(HandOut { message: n, attempt, generation: self.generation });
        if self.setting.mode == DeliveryMode::AtMostOnce {
            self.tally.acked += 1;
            self.finish(n, MessageStatus::Acked);
        } else {
            let deadline = self.now + ACK_DEADLINE;
            self.messages[n].place = Place::Held { hand_out, deadline, committing: false };
        }
    }

    /// The message, if this hand-out holds it.
    fn held_by(&self, which: usize) -> Option<usize> {
        let n = self.hand_outs[which].message;
        let held = matches!(self.messages[n].place, Place::Held { hand_out, committing: false, .. } if hand_out == which);
        held.then_some(n)
    }

    pub(super) fn ack(&mut self, which: usize) -> bool {
        match self.setting.mode {
            DeliveryMode::AtMostOnce => return true,
            DeliveryMode::ExactlyOnce => self.catch_up(),
            DeliveryMode::AtLeastOnce => {}
        }
        let HandOut { message: n, generation, .. } = self.hand_outs[which];
        if self.held_by(which).is_some() && self.is_behind(n) {
            self.turn += 1;
            self.give_back(n);
            return false;
        }
        let free = matches!(self.messages[n].place, Place::Waiting(_) | Place::Parked(_));
        let late = free
            && self.setting.mode == DeliveryMode::AtLeastOnce
            && generation == self.generation
            && !self.is_behind(n);
        if self.held_by(which).is_none() && !late {
            return false;
        }
        self.tally.acked += 1;
        self.finish(n, MessageStatus::Acked);
        true
    }

    pub(super) fn nack(&mut self, which: usize, delay: Option<u64>) -> bool {
        self.catch_up();
        let Some(n) = self.held_by(which) else { return false };
        self.turn += 1;
        self.tally.nacked += 1;
        self.give_back_those_after(n);
        self.fail(n, self.now, delay, "nacked");
        self.carry_out();
        true
    }

    pub(super) fn release(&mut self, which: usize) -> bool {
        self.catch_up();
        let Some(n) = self.held_by(which) else { return false };
        self.turn += 1;
        self.give_back(n);
        true
    }

    pub(super) fn reject(&mut self, which: usize) -> bool {
        self.catch_up();
        let Some(n) = self.held_by(which) else { return false };
        self.turn += 1;
        if self.is_behind(n) {
            self.give_back(n);
            return false;
        }
        self.bury(n, "no");
        self.carry_out();
        true
    }

    pub(super) fn extend(&mut self, which: usize, by: u64) -> bool {
        if by == 0 {
            return self.nack(which, None);
        }
        self.catch_up();
        let Some(n) = self.held_by(which) else { return false };
        self.messages[n].place = Place::Held { hand_out: which, deadline: self.now + by, committing: false };
        true
    }

    pub(super) fn drop_message(&mut self, n: usize) -> bool {
        if matches!(self.messages[n].place, Place::Done(_)) {
            return false;
        }
        self.turn += u64::from(self.is_open(n));
        if self.is_held(n) {
            self.give_back_those_after(n);
        }
        self.tally.discarded += 1;
        self.finish(n, MessageStatus::Dropped);
        true
    }

    pub(super) fn remove(&mut self, messages: std::ops::Range<usize>) {
        for n in messages {
            self.turn += u64::from(self.is_open(n));
            if self.is_held(n) {
                self.give_back_those_after(n);
            }
            if !matches!(self.messages[n].place, Place::Done(_)) {
                self.finish(n, MessageStatus::Skipped);
            }
        }
    }

    pub(super) fn expire_unseen(&mut self, n: usize) {
        if self.messages[n].place == Place::Unseen {
            self.tally.messages_expired += 1;
            self.finish(n, MessageStatus::Expired);
        }
    }

    pub(super) fn retry_parked(&mut self) {
        for message in &mut self.messages {
            if let Place::Parked(reason) = message.place {
                message.place = Place::Burying(reason);
            }
        }
        self.carry_out();
    }

    pub(super) fn seek(&mut self, start: usize) {
        self.generation += 1;
        self.looks.clear();
        self.last_was_again = false;
        for (n, message) in self.messages.iter_mut().enumerate() {
            let place = if n < start { Place::Done(MessageStatus::Skipped) } else { Place::Unseen };
            *message = Message::new(message.letter, place);
        }
    }

    pub(super) fn statuses(&self) -> Vec<MessageStatus> {
        let status = |n: usize| match self.messages[n].place {
            Place::Unseen | Place::Looking => MessageStatus::Waiting,
            Place::Waiting(_) if self.is_delayed(n) => MessageStatus::Delayed,
            Place::Waiting(_) => MessageStatus::Waiting,
            Place::Held { .. } => MessageStatus::Leased,
            Place::Burying(_) | Place::Parked(_) => MessageStatus::Parked,
            Place::Done(status) => status,
        };
        self.numbers().map(status).collect()
    }

    pub(super) fn settled(&self) -> BTreeSet<u64> {
        let done = |n: &usize| matches!(self.messages[*n].place, Place::Done(_));
        self.numbers().filter(done).map(|n| n as u64 + 1).collect()
    }

    /// Whether a receiver that asks now has something to get, or to look at.
    pub(super) fn has_deliverable(&self) -> bool {
        let lined_up = self.numbers().any(|n| self.line(n).is_some());
        let unseen = self.looks.is_empty() && self.unseen_run().is_some();
        !self.paused && self.count_held() < self.setting.outstanding_max && (lined_up || unseen)
    }
}
