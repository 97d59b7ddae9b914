//! A tiny language: commands to a ledger, and what came of them.
//!
//! ```text
//! publish 3          three messages            publish a b.    keys; `.` has none      publish .@5 .!7 .x .?   due at 5; life ends at 7;
//! lease | lease 4    hand out up to n: `2#1` is message 2, attempt 1; `-` is nothing                  filtered out; the filter panics
//! ack 1 | ack 1/2    by the newest hand-out of message 1, or by its second one; prints `late` if the answer is no
//! nack 1 | nack 1+5 | release 1 | reject 1 | extend 1+5 | prepare 1 | abort 1 | finish 1 | spare 1       likewise
//! commit 1 2 3       acks all of them together, or prints how many it cannot: `cannot:2`
//! restart            the book goes to bytes and comes back; every lease has ended
//! at 10              it is 10 now; nobody has noticed    tick     now it is noticed     (the ack deadline is 10)
//! look     a look begins        looked   all looks that have begun are done
//! is 1               prints where message 1 stands        stats    prints the counters that are not 0
//! ```

use crate::delivery::hand_out::Ticket;
use crate::delivery::ledger::Rules;
use crate::delivery::retry::Beyond;
use crate::delivery::settled::Settled;
use crate::delivery::tests::{Fate, Letter, Rig, rules, seq, span};
use crate::options::{DeliveryMode, RetryPolicy};

/// Runs the script and compares what it printed. The books are balanced after each command.
#[track_caller]
pub(super) fn check(script: &str, expected: &str) {
    let printed = Stage::perform(script).printed.join(" ");
    let expected = expected.split_whitespace().collect::<Vec<_>>().join(" ");
    assert_eq!(printed, expected, "\n  of: {script}");
}

pub(super) struct Stage {
    pub(super) rig: Rig,
    pub(super) printed: Vec<String>,
    image: Option<Settled>,
}

impl Stage {
    pub(super) fn perform(script: &str) -> Stage {
        let mut stage = Stage { rig: Rig::new(rules()), printed: Vec::new(), image: None };
        stage.play(script);
        stage
    }

    pub(super) fn play(&mut self, script: &str) {
        for command in script.split(';').map(str::trim).filter(|command| !command.is_empty()) {
            let (verb, rest) = command.split_once(' ').unwrap_or((command, ""));
            let words: Vec<&str> = rest.split_whitespace().collect();
            if !self.option(verb, &words) && !self.settling(verb, &words) {
                self.event(verb, &words);
            }
            self.rig.ledger.check_books();
        }
    }

    fn set(&mut self, change: impl FnOnce(&mut Rules)) {
        let mut rules = self.rig.ledger.rules().clone();
        change(&mut rules);
        self.rig.ledger.set_rules(rules);
    }

    fn option(&mut self, verb: &str, words: &[&str]) -> bool {
        match verb {
            "ordered" => self.set(|rules| rules.ordered = true),
            "exactly-once" => self.set(|rules| rules.mode = DeliveryMode::ExactlyOnce),
            "at-most-once" => self.set(|rules| rules.mode = DeliveryMode::AtMostOnce),
            "retry" => self.set(|rules| rules.retry = RetryPolicy::fixed(span(number(words[0])))),
            "dead" => self.set(|rules| rules.beyond = Beyond::DeadLetter { after: number(words[0]) as u32 }),
            "discard" => self.set(|rules| rules.beyond = Beyond::Discard { after: number(words[0]) as u32 }),
            "outstanding" => self.set(|rules| rules.outstanding_max = number(words[0])),
            "looks" => self.rig.looks = true,
            "grave" => match words[0] {
                "open" => self.rig.grave_open = true,
                "shut" => self.rig.grave_open = false,
                "busy" => self.rig.carries_out = false,
                "done" => self.rig.carry_out_all(),
                other => panic!("the grave is open, shut, busy or done, not {other}"),
            },
            _ => return false,
        }
        true
    }

    /// What is said of hand-outs.
    fn settling(&mut self, verb: &str, words: &[&str]) -> bool {
        const VERBS: [&str; 9] =
            ["ack", "nack", "release", "reject", "extend", "prepare", "abort", "finish", "spare"];
        if !VERBS.contains(&verb) {
            return false;
        }
        for word in words {
            let (which, span) = word.split_once('+').map_or((*word, None), |(m, d)| (m, Some(number(d))));
            let ticket = self.ticket(which);
            let rig = &mut self.rig;
            let done = match verb {
                "ack" => rig.ack(ticket),
                "nack" => rig.nack(ticket, span),
                "release" => rig.release(ticket),
                "reject" => rig.reject(ticket, "no"),
                "extend" => rig.extend(ticket, span.expect("extend 1+5")),
                "prepare" => rig.prepare(ticket),
                "spare" => {
                    rig.ledger.spare(ticket);
                    true
                }
                "abort" => {
                    rig.ledger.abort_commit(ticket);
                    true
                }
                _ => {
                    rig.ledger.finish_commit(ticket);
                    true
                }
            };
            if !done {
                self.printed.push("late".to_owned());
            }
        }
        true
    }

    fn event(&mut self, verb: &str, words: &[&str]) {
        let rig = &mut self.rig;
        match verb {
            "publish" => words.iter().for_each(|word| publish(rig, word)),
            "at" => rig.now = number(words[0]),
            "tick" => rig.catch_up(),
            "lease" => {
                let handed = rig.lease(words.first().map_or(1, |max| number(max)));
                let handed: Vec<_> = rig.tickets[handed].iter().map(hand_out).collect();
                self.printed.push(if handed.is_empty() { "-".to_owned() } else { handed.join(" ") });
            }
            "look" => rig.begin_look(),
            "looked" => rig.finish_looks(words == ["backwards"]),
            "drop" => {
                for word in words {
                    rig.ledger.handle_dropped(seq(number(word)));
                }
            }
            "unseen" => words.iter().for_each(|word| rig.ledger.handle_unseen_expired(seq(number(word)))),
            "removed" => rig.ledger.handle_removed(seq(number(words[0])), seq(number(words[1]) + 1)),
            "seek" => rig.ledger.seek_to(seq(number(words[0]))),
            "snapshot" => self.image = Some(rig.ledger.settled().clone()),
            "restore" => rig.ledger.seek_to_image(self.image.clone().expect("a snapshot was taken")),
            "restart" => rig.restart(),
            "pause" => rig.ledger.set_paused(true),
            "resume" => rig.ledger.set_paused(false),
            "retry-parked" => rig.retry_parked(),
            "expiries" => {
                let end = crate::time::Tick::from_nanos(number(words[0]));
                rig.ledger.set_expiries(|_| end);
            }
            "commit" => self.commit(words),
            "is" => self.say(words),
            "next" => self
                .printed
                .push(rig.ledger.poll_timeout().map_or("never".to_owned(), |at| format!("{at:?}"))),
            "graves" => self
                .printed
                .extend(rig.dead.iter().map(|d| format!("{}#{}:{}", d.message, d.attempts, d.reason))),
            "stats" => {
                let stats = self.stats();
                self.printed.push(stats);
            }
            other => panic!("no such command: {other}"),
        }
    }

    fn commit(&mut self, words: &[&str]) {
        let tickets: Vec<_> = words.iter().map(|word| self.ticket(word)).collect();
        let refused = self.rig.commit(&tickets);
        if refused > 0 {
            self.printed.push(format!("cannot:{refused}"));
        }
    }

    fn say(&mut self, words: &[&str]) {
        for word in words {
            self.printed.push(format!("{:?}", self.rig.ledger.status(seq(number(word)))));
        }
    }

    fn stats(&self) -> String {
        let (ledger, counts) = (&self.rig.ledger, self.rig.ledger.counts());
        let all = [
            ("backlog", ledger.settled().unsettled_before(self.rig.tail())),
            ("outstanding", ledger.outstanding()),
            ("delayed", ledger.delayed()),
            ("parked", ledger.parked()),
            ("delivered", counts.delivered),
            ("redelivered", counts.redelivered),
            ("acked", counts.acked),
            ("nacked", counts.nacked),
            ("released", counts.released),
            ("leases_expired", counts.leases_expired),
            ("messages_expired", counts.messages_expired),
            ("dead_lettered", counts.dead_lettered),
            ("discarded", counts.discarded),
            ("filtered", counts.filtered),
        ];
        let told = all.iter().filter(|(_, count)| *count > 0);
        told.map(|(name, count)| format!("{name}={count}")).collect::<Vec<_>>().join(" ")
    }

    fn ticket(&self, word: &str) -> Ticket {
        let (message, which) = word.split_once('/').map_or((word, None), |(m, n)| (m, Some(number(n))));
        let sequence = seq(number(message));
        let mut of_it = self.rig.tickets.iter().filter(|ticket| ticket.sequence == sequence);
        let found = match which {
            Some(nth) => of_it.nth(nth as usize - 1),
            None => of_it.next_back(),
        };
        *found.unwrap_or_else(|| panic!("message {word} was not handed out"))
    }
}

fn hand_out(ticket: &Ticket) -> String {
    format!("{}#{}", ticket.sequence.get(), ticket.attempt)
}

fn number(word: &str) -> u64 {
    word.parse().unwrap_or_else(|_| panic!("{word} is not a number"))
}

/// `3`, or a key (`.` for none) and what is special: `@due`, `!end of life`, `x` filtered out, `?` filter panics, `-` gone from the log.
fn publish(rig: &mut Rig, word: &str) {
    if let Ok(count) = word.parse::<usize>() {
        return (0..count).for_each(|_| rig.publish(Letter::default()));
    }
    let mut letter = Letter::default();
    let (key, mut rest) = word.split_at(1);
    letter.key = (key != ".").then(|| u64::from(key.as_bytes()[0]));
    while let Some(mark) = rest.chars().next() {
        rest = &rest[1..];
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (value, after) = rest.split_at(digits);
        match mark {
            '@' => letter.due = number(value),
            '!' => letter.expires = Some(number(value)),
            'x' => letter.fate = Fate::FilteredOut,
            '?' => letter.fate = Fate::FilterPanics,
            '-' => letter.fate = Fate::Gone,
            other => panic!("{other} marks no message"),
        }
        rest = after;
    }
    rig.publish(letter);
}
