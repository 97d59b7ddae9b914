//! The model's end and return: what it knows of each message is what it had in hand, told again.

use crate::delivery::tests::Fate;
use crate::delivery::tests::naive::{Naive, Place};
use crate::options::MessageStatus;

/// What is known of a message that was handed out before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    Waiting,
    Held,
    Spared,
    Buried(&'static str),
}

impl Naive {
    /// Everything ends, every lease with it, and begins again: what was handed out before is looked at again, and all that lies before it.
    pub(in crate::delivery::tests) fn restart(&mut self) {
        self.looks.clear();
        self.hand_outs.clear();
        self.last_was_again = false;
        let known: Vec<_> = self.numbers().map(|n| self.forget(n)).collect();
        let end = known.iter().rposition(Option::is_some).map_or(0, |last| last + 1);
        let mut ended = Vec::new();
        // A look ends at what is settled, and what it asks for is carried out before the next: a dead letter frees its key for those behind the gap.
        while let Some(run) = self.unseen_run().filter(|run| run.start < end) {
            self.turn += 1;
            for n in run.start..run.end.min(end) {
                self.messages[n].place = Place::Looking;
                match known[n] {
                    None => self.take_in(n),
                    Some(known) => self.take_in_ended(n, known, &mut ended),
                }
            }
            self.carry_out();
        }
    }

    /// Of a key's leases, all of one run, the first to be looked at failed.
    fn take_in_ended(&mut self, n: usize, known: Known, ended: &mut Vec<u64>) {
        let first_to_end = self.key(n).is_none_or(|key| !ended.contains(&key));
        if matches!(known, Known::Held | Known::Spared) {
            ended.extend(self.key(n));
        }
        self.take_in_known(n, known, first_to_end);
    }

    /// All that goes with the book's memory. Gives what stays known.
    fn forget(&mut self, n: usize) -> Option<Known> {
        let message = &mut self.messages[n];
        let spared = std::mem::take(&mut message.spared);
        message.releases = 0;
        let known = match message.place {
            Place::Done(_) => return None,
            Place::Held { .. } if spared => Known::Spared,
            Place::Held { .. } => Known::Held,
            Place::Parked(reason) | Place::Burying(reason) => Known::Buried(reason),
            Place::Unseen | Place::Looking | Place::Waiting(_) => Known::Waiting,
        };
        let was_looked_at = !matches!(message.place, Place::Unseen | Place::Looking);
        message.place = Place::Unseen;
        (was_looked_at && message.attempts > 0).then_some(known)
    }

    fn take_in_known(&mut self, n: usize, known: Known, first_to_end: bool) {
        let letter = self.messages[n].letter;
        match letter.fate {
            Fate::Gone => return self.finish(n, MessageStatus::Skipped),
            Fate::FilteredOut => {
                self.tally.filtered += 1;
                return self.finish(n, MessageStatus::Filtered);
            }
            Fate::Taken | Fate::FilterPanics => {}
        }
        match known {
            Known::Waiting | Known::Buried(_) => {}
            Known::Held if first_to_end => self.tally.leases_expired += 1,
            Known::Held | Known::Spared => self.tally.released += 1,
        }
        if self.expires(n) <= self.now {
            self.tally.messages_expired += 1;
            return self.finish(n, MessageStatus::Expired);
        }
        let panicked = letter.fate == Fate::FilterPanics;
        match known {
            Known::Buried(reason) => self.messages[n].place = Place::Burying(reason),
            Known::Held if first_to_end => {
                self.messages[n].not_before = 0;
                if panicked {
                    self.wait_again(n, true);
                } else {
                    self.fail(n, self.now, None, "ack deadline expired");
                }
            }
            Known::Held | Known::Spared => {
                self.messages[n].attempts -= 1;
                self.messages[n].releases = 1;
                self.messages[n].not_before = 0;
                self.wait_again(n, panicked);
            }
            Known::Waiting => self.wait_again(n, panicked),
        }
    }

    fn wait_again(&mut self, n: usize, panicked: bool) {
        let not_before = if self.messages[n].not_before > self.now { self.messages[n].not_before } else { 0 };
        self.messages[n].attempts += u32::from(panicked);
        if panicked && !self.is_behind(n) {
            self.fail(n, self.now.max(not_before), None, "filter panicked");
        } else {
            self.put_back(n, not_before);
        }
    }
}
