//! What one subscription has settled, as bytes and back.
//!
//! ```text
//! image = start, forgotten, low: varints; then parts in order, to the end
//! part  = outcome: u8 (0 to 7), gap: varint, length: varint      messages in a row that were settled alike
//!       | 0x80, gap: varint, palette, planes                     a page of 1,024
//! ```
//!
//! A gap counts from the end of the part before, from 0 at first. A page starts at a multiple of 1,024. A palette is the number of outcomes (u8), and they (u8 each). Each message of the page has a code, 0 if it is
//! unsettled, `k` if it was settled as the `k`-th of the palette: bit `n % 64` of word `n / 64` (a u64) of plane `p` is bit `p` of message `n`'s. There are as many planes as the palette's length has bits, the lowest first.
//!
//! What follows from the marks is not said: below `low`, what was acked, skipped or forgotten. The bytes follow from what is settled alone, not from how it is held.

use std::iter;

use crate::binary::{Flaw, Malformed, Reader, Writer};
use crate::delivery::settled::page::{PAGE_LEN, Page};
use crate::delivery::settled::{Outcome, Part, Settled, start_of};
use crate::sequence::Sequence;

/// Messages in a row that were settled alike.
type Stretch = (Sequence, Sequence, Outcome);

const PAGE: u8 = 0x80;
const PLANE_WORDS: usize = PAGE_LEN / 64;

/// Above every message: what lies beyond is no place of a topic that has lived less than ten thousand years.
const SEQUENCE_MAX: u64 = 1 << 62;

impl Outcome {
    /// The number that stands for it on disk, for ever.
    pub(crate) fn code(self) -> u8 {
        self as u8
    }

    pub(crate) fn from_code(code: u8) -> Option<Outcome> {
        Outcome::ALL.get(usize::from(code)).copied()
    }
}

impl Settled {
    /// Everything that can be asked of it, as bytes: at most about 2 bits a message above low water, and as much again for what has no simple order.
    pub(crate) fn image(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut out = Writer(&mut bytes);
        for mark in [self.start, self.forgotten, self.low] {
            out.sequence(mark);
        }
        let mut end = 0;
        for (&first, part) in &self.parts {
            match part {
                Part::Page(page) => self.write_page_image(first, page, &mut end, &mut out),
                Part::Stretch { end: after, outcome } => {
                    if let Some(stretch) = self.worth_saying((start_of(first), start_of(*after), *outcome)) {
                        write_whole_pages(stretch, &mut end, &mut out);
                    }
                }
            }
        }
        bytes
    }

    /// After the last that is settled.
    pub(crate) fn end(&self) -> Sequence {
        let after = self.parts.last_key_value().map(|(&first, part)| match part {
            Part::Stretch { end, .. } => start_of(*end),
            Part::Page(page) => {
                let last = (0..PAGE_LEN as u64).rev().find(|&place| page.outcome(place as usize).is_some());
                start_of(first) + last.map_or(0, |last| last + 1)
            }
        });
        self.low.max(after.unwrap_or(self.low))
    }

    /// The part of it that does not follow from the marks.
    fn worth_saying(&self, (from, to, outcome): Stretch) -> Option<Stretch> {
        let known = self.start.max(self.forgotten);
        let from = match outcome {
            Outcome::Acked => from.max(self.low),
            _ => from.max(known),
        };
        (from < to).then_some((from, to, outcome))
    }

    fn write_page_image(&self, number: u64, page: &Page, end: &mut u64, out: &mut Writer<'_>) {
        let at = |place: usize| start_of(number) + place as u64;
        let runs = page.settled_runs().map(|(places, outcome)| (at(places.start), at(places.end), outcome));
        let stretches: Vec<_> = runs.filter_map(|stretch| self.worth_saying(stretch)).collect();
        let mut as_stretches = Vec::new();
        let mut end_of_stretches = *end;
        for stretch in &stretches {
            write_stretch(*stretch, &mut end_of_stretches, &mut Writer(&mut as_stretches));
        }
        if as_stretches.len() <= PLANE_WORDS * size_of::<u64>() {
            out.raw(&as_stretches);
            *end = end_of_stretches;
            return;
        }
        let mut as_planes = Vec::new();
        write_planes(start_of(number), &stretches, &mut Writer(&mut as_planes));
        if as_stretches.len() <= as_planes.len() {
            out.raw(&as_stretches);
            *end = end_of_stretches;
            return;
        }
        out.u8(PAGE);
        out.varint(start_of(number).get() - *end);
        out.raw(&as_planes);
        *end = start_of(number + 1).get();
    }

    /// Reads an [`image`](Self::image).
    pub(crate) fn from_image(bytes: &[u8]) -> Result<Settled, Malformed> {
        Settled::read_image(Reader::new(bytes))
    }

    /// Reads an image to the end of what the reader has.
    pub(crate) fn read_image(mut reader: Reader<'_>) -> Result<Settled, Malformed> {
        let place = reader.flaw(Flaw::Value("a mark of what is settled"));
        let [start, forgotten, low] = [reader.sequence()?, reader.sequence()?, reader.sequence()?];
        if start > low || forgotten > low || low.get() > SEQUENCE_MAX {
            return Err(place);
        }
        let mut settled = Settled::starting_at(start);
        let mut end = 0;
        while !reader.is_empty() {
            let place = reader.flaw(Flaw::Value("a part of what is settled"));
            match reader.u8()? {
                PAGE => settled.read_page_image(&mut reader, &mut end)?,
                code => {
                    let outcome = Outcome::from_code(code).ok_or(place)?;
                    let from = advance(end, reader.varint()?).ok_or(place)?;
                    let length = reader.varint()?;
                    end = advance(from, length).filter(|_| length > 0).ok_or(place)?;
                    settled.settle_range(Sequence::new(from), Sequence::new(end), outcome);
                }
            }
        }
        // Below the mark silence means acked.
        settled.settle_range(start, low, Outcome::Acked);
        if settled.low != low {
            return Err(place);
        }
        settled.forget_before(forgotten);
        Ok(settled)
    }

    fn read_page_image(&mut self, reader: &mut Reader<'_>, end: &mut u64) -> Result<(), Malformed> {
        let place = reader.flaw(Flaw::Value("a page of what is settled"));
        let from = advance(*end, reader.varint()?).ok_or(place)?;
        let count = usize::from(reader.u8()?);
        if !from.is_multiple_of(PAGE_LEN as u64) || !(1..=Outcome::ALL.len()).contains(&count) {
            return Err(place);
        }
        let palette: Option<Vec<_>> =
            reader.take(count)?.iter().map(|code| Outcome::from_code(*code)).collect();
        let palette = palette.ok_or(place)?;
        let mut codes = [0_u8; PAGE_LEN];
        for plane in 0..planes_for(count) {
            for word in codes.chunks_exact_mut(64) {
                let bits = reader.u64()?;
                for (n, code) in word.iter_mut().enumerate() {
                    *code |= u8::from(bits >> n & 1 == 1) << plane;
                }
            }
        }
        let mut at = from;
        for alike in codes.chunk_by(|a, b| a == b) {
            let (first, after) = (at, at + alike.len() as u64);
            at = after;
            let Some(index) = alike.first().and_then(|code| usize::from(*code).checked_sub(1)) else {
                continue;
            };
            let outcome = *palette.get(index).ok_or(place)?;
            self.settle_range(Sequence::new(first), Sequence::new(after), outcome);
        }
        *end = at;
        Ok(())
    }
}

/// Saturates where no sequence is: then it is none.
fn advance(from: u64, by: u64) -> Option<u64> {
    from.checked_add(by).filter(|to| *to <= SEQUENCE_MAX)
}

fn write_stretch((from, to, outcome): Stretch, end: &mut u64, out: &mut Writer<'_>) {
    out.u8(outcome.code());
    out.varint(from.get() - *end);
    out.varint(to - from);
    *end = to.get();
}

/// Of the first page only a part may be left to say. It is said by itself, as it will be held once it was read.
fn write_whole_pages((from, to, outcome): Stretch, end: &mut u64, out: &mut Writer<'_>) {
    let first_whole = start_of(from.get().div_ceil(PAGE_LEN as u64));
    if from < first_whole {
        write_stretch((from, first_whole, outcome), end, out);
    }
    if first_whole < to {
        write_stretch((first_whole, to, outcome), end, out);
    }
}

fn write_planes(start: Sequence, stretches: &[Stretch], out: &mut Writer<'_>) {
    let mut palette = Vec::with_capacity(Outcome::ALL.len());
    let mut codes = [0_u8; PAGE_LEN];
    for (from, to, outcome) in stretches {
        let known = palette.iter().position(|known| known == outcome);
        let index = known.unwrap_or_else(|| {
            palette.push(*outcome);
            palette.len() - 1
        });
        let places = (*from - start) as usize..(*to - start) as usize;
        codes[places].fill(index as u8 + 1);
    }
    out.u8(palette.len() as u8);
    palette.iter().for_each(|outcome| out.u8(outcome.code()));
    for plane in 0..planes_for(palette.len()) {
        for word in codes.chunks_exact(64) {
            let bits = word.iter().rev().fold(0, |bits, code| bits << 1 | u64::from(code >> plane & 1));
            out.u64(bits);
        }
    }
}

/// How many planes tell this many outcomes, and unsettled, apart.
fn planes_for(outcomes: usize) -> u32 {
    usize::BITS - outcomes.leading_zeros()
}

impl Page {
    /// Its settled messages as runs that were settled alike, each as long as it can be.
    fn settled_runs(&self) -> impl Iterator<Item = (std::ops::Range<usize>, Outcome)> {
        let mut at = 0;
        iter::from_fn(move || {
            let start = self.first_settled(at).filter(|&start| start < PAGE_LEN)?;
            let outcome = self.outcome(start)?;
            let alike = (start..PAGE_LEN).take_while(|&place| self.outcome(place) == Some(outcome)).count();
            at = start + alike;
            Some((start..at, outcome))
        })
    }
}
