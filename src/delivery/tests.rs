//! The ledger under test: a stand-in for the engine, the books that must balance, and a tiny language for scripts.

mod balance;
mod commits;
mod image;
mod language;
mod model;
mod moves;
mod naive;
mod scope;
mod scripts;

use std::time::Duration;

use crate::delivery::hand_out::{Ask, Decision, Ticket};
use crate::delivery::intake::{Examination, Finding, Traits};
use crate::delivery::ledger::{Ledger, LedgerEvent, Rules};
use crate::delivery::ordering::Key;
use crate::delivery::retry::{Beyond, Reason};
use crate::options::{DeliveryMode, RetryPolicy};
use crate::sequence::Sequence;
use crate::time::Tick;

/// One unit of test time is a nanosecond, so that a deadline's neighbours are its own -1 and +1.
pub(super) const ACK_DEADLINE: u64 = 10;

fn span(units: u64) -> Duration {
    Duration::from_nanos(units)
}

fn seq(number: u64) -> Sequence {
    Sequence::new(number)
}

/// What a look at a message will find.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Letter {
    key: Option<u64>,
    due: u64,
    expires: Option<u64>,
    fate: Fate,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Fate {
    #[default]
    Taken,
    FilteredOut,
    FilterPanics,
    Gone,
}

impl Letter {
    fn finding(self) -> Finding {
        let traits = Traits {
            key: self.key.map(Key),
            due: Tick::from_nanos(self.due),
            expires: self.expires.map_or(Tick::NEVER, Tick::from_nanos),
        };
        match self.fate {
            Fate::Taken => Finding::Taken(traits),
            Fate::FilteredOut => Finding::FilteredOut,
            Fate::FilterPanics => Finding::FilterPanicked(traits),
            Fate::Gone => Finding::Gone,
        }
    }
}

/// A ledger, and as much of an engine as it needs: a topic's messages, the time, and hands that carry out its events.
struct Rig {
    ledger: Ledger,
    now: u64,
    letters: Vec<Letter>,
    /// Every message is looked at, also where nothing asks for it.
    looks: bool,
    /// Whether the dead-letter topic keeps what it is given.
    grave_open: bool,
    /// Events are carried out at once.
    carries_out: bool,
    events: Vec<LedgerEvent>,
    dead: Vec<DeadLetter>,
    /// Every hand-out so far.
    tickets: Vec<Ticket>,
    /// How many consequences of time are brought about at a time.
    budget: usize,
    /// Looks that have begun and not ended.
    looking: Vec<Examination>,
    /// What is to be safe before it is told takes effect when it is.
    on_disk: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct DeadLetter {
    message: u64,
    attempts: u32,
    reason: String,
}

fn rules() -> Rules {
    Rules {
        mode: DeliveryMode::AtLeastOnce,
        ack_deadline: span(ACK_DEADLINE),
        ordered: false,
        retry: RetryPolicy::immediate(),
        beyond: Beyond::Retry,
        outstanding_max: 1_000,
    }
}

impl Rig {
    fn new(rules: Rules) -> Self {
        Rig {
            ledger: Ledger::new(rules, Sequence::FIRST, 7),
            now: 0,
            letters: Vec::new(),
            looks: false,
            grave_open: true,
            carries_out: true,
            events: Vec::new(),
            dead: Vec::new(),
            tickets: Vec::new(),
            budget: 3,
            looking: Vec::new(),
            on_disk: false,
        }
    }

    /// As on disk from now on.
    fn be_on_disk(&mut self) {
        self.on_disk = true;
        self.ledger.be_recorded();
    }

    fn tick(&self) -> Tick {
        Tick::from_nanos(self.now)
    }

    fn tail(&self) -> Sequence {
        seq(self.letters.len() as u64 + 1)
    }

    fn mode(&self) -> DeliveryMode {
        self.ledger.rules().mode
    }

    fn publish(&mut self, letter: Letter) {
        self.letters.push(letter);
    }

    fn is_plain(&self) -> bool {
        let nothing_special = |letter: &Letter| Letter { key: None, ..*letter } == Letter::default();
        !self.looks && !self.ledger.rules().ordered && self.letters.iter().all(nothing_special)
    }

    /// What an engine's receiver does: time's consequences, then ask, look, ask again. Gives the hand-outs' places in `tickets`.
    fn lease(&mut self, max: u64) -> std::ops::Range<usize> {
        let first = self.tickets.len();
        let mut grants = crate::few::Few::new();
        loop {
            self.catch_up();
            let ask = Ask {
                now: self.tick(),
                tail: self.tail(),
                plain: self.is_plain(),
                max,
                look_further: true,
                nested: false,
            };
            match self.ledger.poll_lease(ask, &mut grants) {
                Decision::Examine(examination) => self.finish_look(examination),
                Decision::Granted | Decision::Empty => break,
            }
        }
        if self.on_disk && self.mode() == DeliveryMode::AtMostOnce {
            self.ledger.end_hand_out(grants.as_slice(), true);
            grants.as_mut_slice().iter_mut().for_each(|grant| grant.lease = None);
        }
        self.tickets.extend(grants.iter().flat_map(|grant| grant.tickets()));
        first..self.tickets.len()
    }

    fn begin_look(&mut self) {
        let tail = self.tail();
        self.looking.extend(self.ledger.poll_examine(tail));
    }

    fn finish_look(&mut self, examination: Examination) {
        let range = examination.from.get() as usize - 1..examination.to.get() as usize - 1;
        let findings: Vec<_> = self.letters[range].iter().map(|letter| letter.finding()).collect();
        self.ledger.handle_examined(examination, &findings, self.tick());
        self.carry_out();
    }

    /// More than one can be under way, and the later one be done first.
    fn finish_looks(&mut self, backwards: bool) {
        if backwards {
            self.looking.reverse();
        }
        for examination in std::mem::take(&mut self.looking) {
            self.finish_look(examination);
        }
    }

    /// Brings about what time has brought about, a few things at a time: no budget may lose any.
    fn catch_up(&mut self) {
        while self.ledger.handle_timeout(self.tick(), self.budget) {}
        self.carry_out();
    }

    fn ack(&mut self, ticket: Ticket) -> bool {
        if self.mode() == DeliveryMode::ExactlyOnce {
            self.catch_up();
            // Else it is to be asked again when the transaction has ended that has what comes before it.
            if self.on_disk
                && let Some(prepared) = self.ledger.prepare_acks(&[ticket])
            {
                self.ledger.end_acks(&prepared, true, self.tick());
                return !prepared.is_empty();
            }
        }
        self.ledger.ack(ticket)
    }

    fn nack(&mut self, ticket: Ticket, after: Option<u64>) -> bool {
        self.catch_up();
        let done = self.ledger.nack(ticket, self.tick(), after.map(span));
        self.carry_out();
        done
    }

    fn release(&mut self, ticket: Ticket) -> bool {
        self.catch_up();
        self.ledger.release(ticket)
    }

    fn reject(&mut self, ticket: Ticket, reason: &str) -> bool {
        self.catch_up();
        let done = self.ledger.reject(ticket, reason.to_owned());
        self.carry_out();
        done
    }

    /// Zero is a nack.
    fn extend(&mut self, ticket: Ticket, by: u64) -> bool {
        if by == 0 {
            return self.nack(ticket, None);
        }
        self.catch_up();
        self.ledger.extend(ticket, self.tick() + span(by))
    }

    fn prepare(&mut self, ticket: Ticket) -> bool {
        self.catch_up();
        self.ledger.prepare_commit(ticket)
    }

    fn retry_parked(&mut self) {
        self.ledger.retry_parked();
        self.carry_out();
    }

    /// The hands: what the ledger asked for is done, or cannot be.
    fn carry_out(&mut self) {
        let events = self.ledger.take_events();
        self.events.extend(events);
        if self.carries_out {
            self.carry_out_all();
        }
    }

    fn carry_out_all(&mut self) {
        for event in std::mem::take(&mut self.events) {
            let LedgerEvent::DeadLetter { sequence, generation, attempts, reason } = event;
            if self.grave_open {
                let before = self.ledger.counts().dead_lettered;
                self.ledger.handle_buried(sequence, generation);
                if self.ledger.counts().dead_lettered > before {
                    self.note_dead(sequence, attempts, &reason);
                }
            } else {
                self.ledger.handle_unburied(sequence, generation, reason);
            }
        }
    }

    fn note_dead(&mut self, sequence: Sequence, attempts: u32, reason: &Reason) {
        let reason = reason.as_str().to_owned();
        self.dead.push(DeadLetter { message: sequence.get(), attempts, reason });
    }
}
