//! A subscription's book, and a snapshot, as they are stored.

use std::time::Duration;

use crate::delivery::ledger::{Ledger, Rules};
use crate::delivery::retry::{Beyond, Reason};
use crate::delivery::settled::Settled;
use crate::journal::record::{AttemptRange, BookOptions, DeadLetterTo};
use crate::name::Name;
use crate::sequence::Sequence;
use crate::time::Tick;

/// A subscription, and where it stands. Leases that ran are in its ledger until that [resumes](Ledger::resume).
#[derive(Debug)]
pub(crate) struct StoredBook {
    pub(crate) number: u64,
    pub(crate) name: Name,
    /// Where it began.
    pub(crate) start: Sequence,
    /// The topic's end when it was created.
    pub(crate) end: Sequence,
    /// With its rules.
    pub(crate) ledger: Ledger,
    /// The filter's expression.
    pub(crate) filter: Option<String>,
    pub(crate) has_filter_fn: bool,
    pub(crate) dead_letter: DeadLetterTo,
    pub(crate) expire_after: Option<Duration>,
    replay: Replay,
}

/// Where the stream is, seen from the image.
#[derive(Debug)]
enum Replay {
    /// In the ledger's generation.
    Level,
    /// Not known: in its generation, or, if a seek to that is still to come, in one before. For then the image is kept as it was.
    Unsure(Box<Ledger>),
    /// In a generation before: all is in the image, up to the seek to its generation.
    Behind,
}

/// Where a subscription stood, and what its topic keeps for that.
#[derive(Debug)]
pub(crate) struct StoredSnapshot {
    pub(crate) number: u64,
    pub(crate) name: Name,
    pub(crate) expires: Tick,
    pub(crate) settled: Settled,
}

/// How many seeks in a row may have left no trace.
const LOST_SEEKS_MAX: u32 = 1 << 16;

impl StoredBook {
    pub(super) fn new(
        number: u64,
        start: Sequence,
        end: Sequence,
        name: Name,
        options: &BookOptions<'_>,
    ) -> Self {
        StoredBook {
            number,
            name,
            start,
            end,
            ledger: Ledger::new(rules_of(options), start, number),
            filter: options.filter.map(str::to_owned),
            has_filter_fn: options.has_filter_fn,
            dead_letter: options.dead_letter.clone(),
            expire_after: options.expire_after,
            replay: Replay::Level,
        }
    }

    pub(crate) fn options(&self) -> BookOptions<'_> {
        let Rules { mode, ack_deadline, ordered, retry, beyond: _, outstanding_max } = *self.ledger.rules();
        BookOptions {
            ack_deadline,
            mode,
            ordered,
            filter: self.filter.as_deref(),
            has_filter_fn: self.has_filter_fn,
            retry,
            dead_letter: self.dead_letter.clone(),
            expire_after: self.expire_after,
            outstanding_max,
        }
    }

    pub(super) fn set_options(&mut self, options: &BookOptions<'_>) {
        self.ledger.set_rules(rules_of(options));
        self.filter = options.filter.map(str::to_owned);
        self.has_filter_fn = options.has_filter_fn;
        self.dead_letter = options.dead_letter.clone();
        self.expire_after = options.expire_after;
    }

    pub(super) fn set_image(&mut self, bytes: &[u8]) -> Result<(), String> {
        let read = || {
            let read = Ledger::from_image(self.ledger.rules().clone(), bytes, self.number);
            read.map_err(|error| format!("book {}: {error}", self.number))
        };
        let ledger = read()?;
        // Generation 0 is where a book begins: no seek leads there.
        self.replay = if ledger.generation() > 0 { Replay::Unsure(Box::new(read()?)) } else { Replay::Level };
        self.ledger = ledger;
        Ok(())
    }

    /// Changes the ledger, unless the image has it.
    pub(super) fn change(&mut self, act: impl FnOnce(&mut Ledger)) {
        if !matches!(self.replay, Replay::Behind) {
            act(&mut self.ledger);
        }
    }

    /// What the image knows as settled had its attempts before.
    pub(super) fn attempted(&mut self, range: AttemptRange) {
        self.change(|ledger| {
            let mut at = range.from;
            while let Some((from, to)) = ledger.settled().next_unsettled_run(at, range.to) {
                ledger.replay_attempts(from, to, range.attempts);
                at = to;
            }
        });
    }

    pub(super) fn parked(&mut self, sequence: Sequence, attempts: u32, reason: &str) {
        self.change(|ledger| ledger.replay_parked(sequence, Reason::of_text(reason), attempts));
    }

    /// The book was sought, into this generation. True: that is to be done.
    pub(super) fn is_news(&mut self, generation: u32) -> Result<bool, String> {
        let before = std::mem::replace(&mut self.replay, Replay::Level);
        let of_image = match &before {
            Replay::Level => None,
            Replay::Unsure(image) => Some(image.generation()),
            Replay::Behind => Some(self.ledger.generation()),
        };
        // Generations go round.
        let ahead = of_image.map(|of_image| of_image.wrapping_sub(generation));
        if let Some(ahead) = ahead.filter(|ahead| *ahead <= u32::MAX / 2) {
            if let Replay::Unsure(image) = before {
                let rules = self.ledger.rules().clone();
                self.ledger = *image;
                self.ledger.set_rules(rules);
            }
            if ahead > 0 {
                self.replay = Replay::Behind;
            }
            return Ok(false);
        }
        // A seek for which the disk had no space has taken a generation too.
        let missing = generation.wrapping_sub(self.ledger.generation()).wrapping_sub(1);
        if missing > LOST_SEEKS_MAX {
            let (number, from) = (self.number, self.ledger.generation());
            return Err(format!("book {number} was sought into generation {generation}, from {from}"));
        }
        (0..missing).for_each(|_| self.ledger.seek_to(self.ledger.low()));
        Ok(true)
    }

    /// No seek is to come any more.
    pub(super) fn finish(&mut self) {
        self.replay = Replay::Level;
    }
}

fn rules_of(options: &BookOptions<'_>) -> Rules {
    Rules {
        mode: options.mode,
        ack_deadline: options.ack_deadline,
        ordered: options.ordered,
        retry: options.retry,
        beyond: match options.dead_letter {
            DeadLetterTo::None => Beyond::Retry,
            DeadLetterTo::Discard { after } => Beyond::Discard { after },
            DeadLetterTo::Topic { after, .. } => Beyond::DeadLetter { after },
        },
        outstanding_max: options.outstanding_max,
    }
}
