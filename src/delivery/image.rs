//! A book as bytes, for checkpoints, and back.
//!
//! ```text
//! image  = version: u8 = 1, flags: u8 (bit 0: paused), generation: varint, ten counts: varints,
//!          length: varint, what is settled (see `settled/image.rs`), then memories in order, to the end
//! memory = gap: varint, length: varint, attempts: varint, kind: u8, and
//!          0 waiting: not before, varint    1 leased    2 leased, spared    3 lease ended: when, varint
//!          4 parked: reason: u8 (0 nacked, 1 expired, 2 filter panicked, 3 rejected: text)
//! ```
//!
//! A gap counts from the end of the memory before, from 0 at first. Of messages that were never handed out there is no memory. Leases that run are in the image, and end when the book that is read from it
//! [resumes](Ledger::resume).

use crate::binary::{Flaw, Malformed, Reader, Writer};
use crate::delivery::ledger::{Counts, Entry, Ledger, Rules, Standing};
use crate::delivery::memories::{Memories, Memory, Was};
use crate::delivery::retry::Reason;
use crate::delivery::settled::Settled;
use crate::options::DeliveryMode;
use crate::sequence::Sequence;

const VERSION: u8 = 1;
const PAUSED: u8 = 1;

/// The longest reason of a rejection that is kept, in bytes. What is longer is cut.
pub(crate) const REASON_LEN_MAX: usize = 1_024;

/// Why bytes are no book.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no image of a subscription's book: {0}")]
pub(crate) struct ImageError(#[from] Malformed);

impl Reason {
    /// The reason that [`as_str`](Reason::as_str) tells.
    pub(crate) fn of_text(text: &str) -> Reason {
        let known = [Reason::Nacked, Reason::Expired, Reason::FilterPanicked];
        let found = known.into_iter().find(|reason| reason.as_str() == text);
        found.unwrap_or_else(|| Reason::Rejected(text.to_owned()))
    }
}

impl Ledger {
    /// The book as it stands, but for what a look at the messages tells again, and for turns.
    pub(crate) fn image(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut out = Writer(&mut bytes);
        out.u8(VERSION);
        out.u8(if self.paused { PAUSED } else { 0 });
        out.varint(u64::from(self.generation));
        numbers(self.counts).into_iter().for_each(|count| out.varint(count));
        out.bytes(&self.settled.image());
        let mut end = 0;
        let mut next: Option<Stretch> = None;
        for (from, to, memory) in self.all_memories() {
            match &mut next {
                Some((_, end, alike)) if *end == from && *alike == memory => *end = to,
                _ => {
                    if let Some(stretch) = next.replace((from, to, memory)) {
                        write_memory(&stretch, &mut end, &mut out);
                    }
                }
            }
        }
        if let Some(stretch) = next {
            write_memory(&stretch, &mut end, &mut out);
        }
        bytes
    }

    /// Reads an [`image`](Self::image). The book is to be [resumed](Self::resume) before it delivers. The seed is that of [`new`](Self::new).
    pub(crate) fn from_image(rules: Rules, bytes: &[u8], seed: u64) -> Result<Ledger, ImageError> {
        let mut reader = Reader::new(bytes);
        let place = reader.flaw(Flaw::Value("version or flags"));
        let (version, flags) = (reader.u8()?, reader.u8()?);
        if version != VERSION || flags & !PAUSED != 0 {
            return Err(place.into());
        }
        let generation = reader.varint_u32()?;
        let mut counts = [0; 10];
        for count in &mut counts {
            *count = reader.varint()?;
        }
        let place = reader.flaw(Flaw::Short);
        let length = usize::try_from(reader.varint()?).map_err(|_| place)?;
        let settled = Settled::read_image(reader.part(length)?)?;
        let memories = read_memories(reader)?;
        let mut ledger = Ledger::new(rules, settled.low(), seed);
        ledger.settled = settled;
        ledger.paused = flags & PAUSED != 0;
        ledger.generation = generation;
        ledger.counts = counts_of(counts);
        ledger.memories = memories.map(Box::new);
        Ok(ledger)
    }

    /// In order.
    fn all_memories(&self) -> Vec<Stretch> {
        let remembered = self.memories.iter().flat_map(|memories| memories.iter());
        let mut all: Vec<_> = remembered.map(|(from, to, memory)| (from, to, memory.clone())).collect();
        // Handed out at most once, they count when that is safe, and then they are settled.
        let is_yet_to_count = self.rules.mode == DeliveryMode::AtMostOnce;
        for run in self.runs.values().filter(|_| !is_yet_to_count) {
            let memory = Memory { attempts: 1, was: Was::Leased };
            all.extend(run.open_sequences().map(|sequence| (sequence, sequence.next(), memory.clone())));
        }
        let before = |entry: &Entry| match entry.standing {
            Standing::Leased { .. } if is_yet_to_count => {
                Entry { standing: Standing::Fresh, attempts: entry.attempts - 1, ..*entry }
            }
            _ => *entry,
        };
        let entries = self.entries.iter().map(|(sequence, entry)| (sequence, before(entry)));
        let attempted = entries.filter(|(_, entry)| entry.attempts > 0);
        all.extend(attempted.map(|(&sequence, entry)| {
            (sequence, sequence.next(), Memory { attempts: entry.attempts, was: self.was(sequence, &entry) })
        }));
        all.sort_unstable_by_key(|(from, ..)| *from);
        all
    }

    fn was(&self, sequence: Sequence, entry: &Entry) -> Was {
        match entry.standing {
            Standing::Fresh | Standing::Again { .. } | Standing::Delayed { .. } | Standing::Queued => {
                Was::Waiting { not_before: entry.not_before }
            }
            Standing::Leased { .. } | Standing::Committing { .. } if entry.spared => Was::Spared,
            Standing::Leased { .. } | Standing::Committing { .. } => Was::Leased,
            Standing::Parked | Standing::Burying => {
                let reason = self.parked.get(&sequence).or_else(|| self.burying.get(&sequence));
                Was::Parked { reason: reason.cloned().expect("what is to be buried has a reason") }
            }
        }
    }
}

/// Messages in a row of which the same is remembered.
type Stretch = (Sequence, Sequence, Memory);

fn write_memory((from, to, memory): &Stretch, end: &mut u64, out: &mut Writer<'_>) {
    out.varint(from.get() - *end);
    out.varint(*to - *from);
    out.varint(u64::from(memory.attempts));
    match &memory.was {
        Was::Waiting { not_before } => {
            out.u8(0);
            out.tick(*not_before);
        }
        Was::Leased => out.u8(1),
        Was::Spared => out.u8(2),
        Was::Ended { at } => {
            out.u8(3);
            out.tick(*at);
        }
        Was::Parked { reason } => {
            out.u8(4);
            write_reason(reason, out);
        }
    }
    *end = to.get();
}

fn write_reason(reason: &Reason, out: &mut Writer<'_>) {
    match reason {
        Reason::Nacked => out.u8(0),
        Reason::Expired => out.u8(1),
        Reason::FilterPanicked => out.u8(2),
        Reason::Rejected(text) => {
            out.u8(3);
            out.text(&text[..text.floor_char_boundary(REASON_LEN_MAX)]);
        }
    }
}

fn read_memories(mut reader: Reader<'_>) -> Result<Option<Memories>, Malformed> {
    let mut memories = Memories::default();
    let mut end = 0_u64;
    while !reader.is_empty() {
        let place = reader.flaw(Flaw::Value("a memory"));
        let from = end.checked_add(reader.varint()?).ok_or(place)?;
        let length = reader.varint()?;
        end = from.checked_add(length).filter(|end| length > 0 && *end < u64::MAX).ok_or(place)?;
        let attempts = reader.varint_u32()?;
        let was = match reader.u8()? {
            0 => Was::Waiting { not_before: reader.tick()? },
            1 => Was::Leased,
            2 => Was::Spared,
            3 => Was::Ended { at: reader.tick()? },
            4 => Was::Parked { reason: read_reason(&mut reader)? },
            _ => return Err(place),
        };
        if attempts == 0 {
            return Err(place);
        }
        memories.set(Sequence::new(from), Sequence::new(end), Memory { attempts, was });
    }
    Ok((end > 0).then_some(memories))
}

fn read_reason(reader: &mut Reader<'_>) -> Result<Reason, Malformed> {
    let place = reader.flaw(Flaw::Value("a reason"));
    match reader.u8()? {
        0 => Ok(Reason::Nacked),
        1 => Ok(Reason::Expired),
        2 => Ok(Reason::FilterPanicked),
        3 => Ok(Reason::Rejected(reader.text(REASON_LEN_MAX, "a reason")?.to_owned())),
        _ => Err(place),
    }
}

/// In the order of the image, which is for ever.
fn numbers(counts: Counts) -> [u64; 10] {
    let Counts {
        delivered,
        redelivered,
        acked,
        nacked,
        released,
        leases_expired,
        messages_expired,
        dead_lettered,
        discarded,
        filtered,
    } = counts;
    [
        delivered,
        redelivered,
        acked,
        nacked,
        released,
        leases_expired,
        messages_expired,
        dead_lettered,
        discarded,
        filtered,
    ]
}

fn counts_of(numbers: [u64; 10]) -> Counts {
    // One less than the most there is, so that counting on does not overflow.
    let numbers = numbers.map(|number| number.min(u64::MAX / 2));
    let [
        delivered,
        redelivered,
        acked,
        nacked,
        released,
        leases_expired,
        messages_expired,
        dead_lettered,
        discarded,
        filtered,
    ] = numbers;
    Counts {
        delivered,
        redelivered,
        acked,
        nacked,
        released,
        leases_expired,
        messages_expired,
        dead_lettered,
        discarded,
        filtered,
    }
}
