//! Ranges of messages, as many as there are.

use std::fmt;

use crate::binary::{Flaw, Malformed, Reader, Writer};
use crate::journal::record::{BODY_LEN_MAX, framed};
use crate::sequence::Sequence;

/// How a message was settled, by the number that stands for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OutcomeCode(pub(crate) u8);

const OUTCOMES: u8 = 8;

/// `from..to` were settled alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SettledRange {
    pub(crate) from: Sequence,
    pub(crate) to: Sequence,
    pub(crate) outcome: OutcomeCode,
}

/// `from..to` were each handed out this often.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AttemptRange {
    pub(crate) from: Sequence,
    pub(crate) to: Sequence,
    pub(crate) attempts: u32,
}

/// What stands in a list: a range, and a word on it.
pub(crate) trait Item: Copy + PartialEq + fmt::Debug {
    fn range(self) -> (Sequence, Sequence);
    fn write_word(self, out: &mut Writer<'_>);
    fn read_word(from: Sequence, to: Sequence, reader: &mut Reader<'_>) -> Result<Self, Malformed>;
}

impl Item for SettledRange {
    fn range(self) -> (Sequence, Sequence) {
        (self.from, self.to)
    }

    fn write_word(self, out: &mut Writer<'_>) {
        assert!(self.outcome.0 < OUTCOMES, "{:?} means nothing", self.outcome);
        out.u8(self.outcome.0);
    }

    fn read_word(from: Sequence, to: Sequence, reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let place = reader.flaw(Flaw::Value("an outcome"));
        match reader.u8()? {
            code if code < OUTCOMES => Ok(SettledRange { from, to, outcome: OutcomeCode(code) }),
            _ => Err(place),
        }
    }
}

impl Item for AttemptRange {
    fn range(self) -> (Sequence, Sequence) {
        (self.from, self.to)
    }

    fn write_word(self, out: &mut Writer<'_>) {
        out.varint(u64::from(self.attempts));
    }

    fn read_word(from: Sequence, to: Sequence, reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(AttemptRange { from, to, attempts: reader.varint_u32()? })
    }
}

/// A list that is to be written, or one that was read: then it is still the bytes, which have been looked through once.
#[derive(Clone, Copy)]
pub(crate) enum List<'a, T> {
    Items(&'a [T]),
    Bytes(&'a [u8]),
}

impl<'a, T: Item> List<'a, T> {
    /// Takes all that is left in the reader.
    pub(super) fn read(reader: &mut Reader<'a>) -> Result<Self, Malformed> {
        let bytes = reader.rest();
        let mut end = 0;
        while !reader.is_empty() {
            read_item::<T>(reader, &mut end)?;
        }
        Ok(List::Bytes(bytes))
    }

    pub(crate) fn iter(&self) -> ListIter<'a, T> {
        match *self {
            List::Items(items) => ListIter::Items(items.iter()),
            List::Bytes(bytes) => ListIter::Bytes { reader: Reader::new(bytes), end: 0 },
        }
    }
}

#[derive(Clone, Debug)]
pub(crate) enum ListIter<'a, T> {
    Items(std::slice::Iter<'a, T>),
    Bytes { reader: Reader<'a>, end: u64 },
}

impl<T: Item> Iterator for ListIter<'_, T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        match self {
            ListIter::Items(items) => items.next().copied(),
            // What was read once is read again.
            ListIter::Bytes { reader, end } => read_item(reader, end).ok(),
        }
    }
}

impl<T: Item> PartialEq for List<'_, T> {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl<T: Item> fmt::Debug for List<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// Above every message.
pub(super) const SEQUENCE_MAX: u64 = 1 << 62;

fn read_item<T: Item>(reader: &mut Reader<'_>, end: &mut u64) -> Result<T, Malformed> {
    let place = reader.flaw(Flaw::Value("a range of messages"));
    let from = reader.near(*end)?;
    let length = reader.varint()?;
    let to = from.checked_add(length).filter(|to| length > 0 && *to <= SEQUENCE_MAX).ok_or(place)?;
    *end = to;
    T::read_word(Sequence::new(from), Sequence::new(to), reader)
}

fn write_item<T: Item>(item: T, end: &mut u64, out: &mut Writer<'_>) {
    let (from, to) = item.range();
    assert!(from < to && to.get() <= SEQUENCE_MAX, "{item:?} is no range of messages");
    out.near(*end, from.get());
    out.varint(to - from);
    item.write_word(out);
    *end = to.get();
}

/// More than an item takes, with the numbers before the first.
const ITEM_LEN_MAX: usize = 64;

/// Writes a list as one record, or as many as it takes.
pub(super) fn write<T: Item>(
    out: &mut Vec<u8>,
    kind: u8,
    topic: u64,
    book: u64,
    items: impl Iterator<Item = T>,
) {
    let mut items = items.peekable();
    loop {
        framed(out, kind, |out| {
            out.varint(topic);
            out.varint(book);
            let (start, mut end) = (out.0.len(), 0);
            while out.0.len() - start < BODY_LEN_MAX - ITEM_LEN_MAX
                && let Some(item) = items.next()
            {
                write_item(item, &mut end, out);
            }
        });
        if items.peek().is_none() {
            return;
        }
    }
}
