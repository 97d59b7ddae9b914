//! Through the segments in order: every frame, up to where the stream ends; torn tail or damage.
//!
//! Each frame names the one before it, and each segment the last one before it, so it is known whether something is missing. Where something is, the question is whether
//! it was confirmed: whether any frame, header or watermark anywhere says that units past that point were synced. If so it is damage: confirmed units are lost. If not it is what a crash leaves of what was not
//! synced, of which any part may be missing and any later part be there: the stream ends at the first hole.
//!
//! What comes after what is known to be synced is the *tail*. It is read from the system's memory, which after a failed sync may hold what the disk does not.
//! So recovery writes it again, into a fresh segment.

use std::collections::VecDeque;
use std::ops::Range;
use std::path::Path;

use super::disk::{Access, Disk};
use super::error::{Damage, JournalOpenError};
use super::frame::{FRAME_ALIGN, FrameHeader, IGNORABLE, UNITS, Units};
use super::layout::CHAIN_BROKEN;
use super::read::FrameReader;
use super::recovery::{Replayed, Visit};
use super::segment::FRAMES_AT;
use super::survey::{FoundSegment, failed};
use super::{OnDamage, Position};

/// A frame of the tail.
#[derive(Clone, Copy, Debug)]
pub(super) struct TailFrame {
    pub(super) segment: usize,
    pub(super) offset: u64,
    pub(super) header: FrameHeader,
}

/// A walk under way, and what it came to.
pub(super) struct Walk<'a, 'v> {
    pub(super) disk: &'a dyn Disk,
    pub(super) dir: &'a Path,
    pub(super) on_damage: OnDamage,
    pub(super) segments: &'a [FoundSegment],
    pub(super) visit: &'a mut Visit<'v>,
    /// Units before it come from a checkpoint.
    pub(super) start: u64,
    /// Units before it are known to have been synced.
    pub(super) durable: u64,
    /// Whether `durable` was looked for everywhere.
    searched: bool,
    /// The position after the last frame.
    pub(super) end: u64,
    /// The header checksum of the last frame.
    pub(super) chain: u32,
    /// The last frames are known to be missing, so `chain` is not theirs.
    pub(super) chain_broken: bool,
    /// In order; from `durable` on.
    pub(super) tail: VecDeque<TailFrame>,
    pub(super) damages: Vec<Damage>,
    pub(super) units: u64,
    /// Bytes of frames with units from `start` on.
    pub(super) bytes: u64,
}

/// How a segment ended.
enum SegmentEnd {
    Next,
    /// The stream ends here.
    Stream,
}

/// Where there is no frame though the stream may not end.
struct Hole {
    segment: usize,
    offset: u64,
    what: &'static str,
    /// The header is good: where the next frame is.
    next: Option<(u64, FrameHeader)>,
}

/// What a hole is.
enum Verdict {
    /// Damage, and in this segment it goes on here.
    GoOn(u64),
    /// Damage, up to the end of the segment.
    Segment,
    /// Where the stream ends.
    Stream,
}

impl<'a, 'v> Walk<'a, 'v> {
    pub(super) fn new(
        disk: &'a dyn Disk,
        dir: &'a Path,
        on_damage: OnDamage,
        segments: &'a [FoundSegment],
        visit: &'a mut Visit<'v>,
        (start, durable): (u64, u64),
    ) -> Self {
        Walk {
            disk,
            dir,
            on_damage,
            segments,
            visit,
            start,
            durable,
            searched: false,
            end: 0,
            chain: 0,
            chain_broken: false,
            tail: VecDeque::new(),
            damages: Vec::new(),
            units: 0,
            bytes: 0,
        }
    }

    /// The segment in which the replay begins.
    fn first(&self) -> usize {
        self.segments.partition_point(|segment| segment.header.position <= self.start).saturating_sub(1)
    }

    /// Its number; earlier ones are not needed.
    pub(super) fn first_number(&self) -> u64 {
        self.segments.get(self.first()).map_or(0, |segment| segment.header.number)
    }

    pub(super) fn run(&mut self, no_checkpoint: &str) -> Result<(), JournalOpenError> {
        let first = self.first();
        self.end = match self.segments.get(first) {
            Some(segment) => segment.header.position,
            None => 0,
        };
        if self.end > self.start {
            let lost = self.start..self.end;
            self.damaged(no_checkpoint.to_owned(), 0..0, "what it should hold is not to be found", lost)?;
        }
        for index in first..self.segments.len() {
            match self.segment(index)? {
                SegmentEnd::Next => {}
                SegmentEnd::Stream => break,
            }
        }
        let missing = self.end.max(self.start)..self.durable;
        if !missing.is_empty() {
            // Every hole was judged, so what is missing is whole segments at the end.
            let next = self.segments.last().map_or(1, |segment| segment.header.number.saturating_add(1));
            self.damaged(super::layout::segment_name(next), 0..0, "the file is missing", missing)?;
            self.chain_broken = true;
        }
        self.end = self.end.max(self.durable);
        while self.tail.front().is_some_and(|frame| frame.header.base < self.durable) {
            self.tail.pop_front();
        }
        Ok(())
    }

    pub(super) fn reader(&self, index: usize) -> Result<FrameReader, JournalOpenError> {
        let segment = &self.segments[index];
        let name = segment.name();
        let file = self.disk.open(&self.dir.join(&name), Access::Read).map_err(failed("open", &name))?;
        FrameReader::new(file, segment.header.salt, segment.header.capacity).map_err(failed("read", &name))
    }

    fn segment(&mut self, index: usize) -> Result<SegmentEnd, JournalOpenError> {
        let mut reader = self.reader(index)?;
        let mut offset = FRAMES_AT;
        self.chain = self.segments[index].header.chain;
        // Nothing is missing before it, or it was said. Positions that were refused for want of space are in no frame.
        self.end = self.end.max(self.segments[index].header.position);
        loop {
            if self.is_complete(index) {
                return Ok(SegmentEnd::Next);
            }
            let mut found = self.step(&mut reader, index, offset)?;
            if found.is_err() {
                // What is cut off now is gone for good, so a read that went wrong in passing gets a second chance.
                reader.forget();
                found = self.step(&mut reader, index, offset)?;
            }
            let hole = match found {
                Ok(next) => {
                    offset = next;
                    continue;
                }
                Err(hole) => hole,
            };
            match self.hole(&mut reader, &hole)? {
                Verdict::GoOn(next) => offset = next,
                Verdict::Segment => return Ok(SegmentEnd::Next),
                Verdict::Stream => return Ok(SegmentEnd::Stream),
            }
        }
    }

    /// Takes in the frame at `offset`, if there is one. Where the next one is.
    fn step(
        &mut self,
        reader: &mut FrameReader,
        index: usize,
        offset: u64,
    ) -> Result<Result<u64, Hole>, JournalOpenError> {
        let header = reader.header(offset).map_err(failed("read", self.segments[index].name()))?;
        let Some(header) = header.filter(|header| self.continues(index, header)) else {
            return Ok(Err(Hole { segment: index, offset, what: "no frame where one was", next: None }));
        };
        let next = offset.saturating_add(header.frame_len());
        if self.frame(reader, index, offset, &header)? {
            return Ok(Ok(next));
        }
        let what = "a frame's body is not what was written";
        Ok(Err(Hole { segment: index, offset, what, next: Some((next, header)) }))
    }

    /// Nothing is missing between here and the next segment.
    fn is_complete(&self, index: usize) -> bool {
        self.segments.get(index + 1).is_some_and(|next| {
            next.header.flags & CHAIN_BROKEN == 0
                && next.header.chain == self.chain
                && next.header.position >= self.end
        })
    }

    /// Units from here on are not this segment's.
    fn limit(&self, index: usize) -> u64 {
        self.segments.get(index + 1).map_or(u64::MAX, |next| next.header.position)
    }

    fn continues(&self, index: usize, header: &FrameHeader) -> bool {
        header.previous == self.chain && header.base >= self.end && header.end() <= self.limit(index)
    }

    /// Takes a frame in. False: its body is bad.
    fn frame(
        &mut self,
        reader: &mut FrameReader,
        index: usize,
        offset: u64,
        header: &FrameHeader,
    ) -> Result<bool, JournalOpenError> {
        let name = self.segments[index].name();
        if header.end() > self.start {
            let body = reader.body(offset, header).map_err(failed("read", &name))?;
            let Some(body) = body else { return Ok(false) };
            match header.kind {
                UNITS if Units::are(body, header.count) => {
                    for (at, unit) in
                        (header.base..).zip(Units::new(body)).filter(|(at, _)| *at >= self.start)
                    {
                        self.visit.tell(Replayed::Unit { position: Position(at), bytes: unit })?;
                        self.units += 1;
                    }
                }
                UNITS => return Ok(false),
                kind if kind & IGNORABLE != 0 => {}
                // Written by a later version that readers of this one must understand.
                kind => return Err(JournalOpenError::Kind { file: name, offset, kind }),
            }
            self.bytes = self.bytes.saturating_add(header.frame_len());
            self.tail.push_back(TailFrame { segment: index, offset, header: *header });
        }
        self.durable = self.durable.max(header.durable);
        while self.tail.front().is_some_and(|frame| frame.header.base < self.durable) {
            self.tail.pop_front();
        }
        self.end = header.end();
        self.chain = header.crc;
        self.chain_broken = false;
        Ok(true)
    }

    fn hole(&mut self, reader: &mut FrameReader, hole: &Hole) -> Result<Verdict, JournalOpenError> {
        let name = self.segments[hole.segment].name();
        self.search_durable(reader, hole)?;
        if self.durable <= self.end {
            return Ok(Verdict::Stream);
        }
        let limit = self.limit(hole.segment);
        let found = match hole.next {
            Some((next, header)) => Some((next, header.end(), header.crc)),
            None => {
                let ahead = self.search_frame(reader, hole).map_err(failed("read", &name))?;
                ahead.map(|(at, header)| (at, header.base, header.previous))
            }
        };
        let (bytes_end, position) = match found {
            Some((at, position, _)) => (at.min(reader.end()), position.min(limit)),
            None => (reader.end(), if limit == u64::MAX { self.durable } else { limit }),
        };
        let lost = self.end.max(self.start)..position;
        let bytes = hole.offset..bytes_end.max(hole.offset);
        self.damaged(name, bytes, hole.what, lost)?;
        self.end = position.max(self.end);
        match found {
            Some((at, position, chain)) if position < limit || hole.next.is_some() => {
                self.chain = chain;
                Ok(Verdict::GoOn(at))
            }
            _ => {
                self.chain_broken = true;
                Ok(Verdict::Segment)
            }
        }
    }

    /// The next frame in the segment that may belong to the stream.
    fn search_frame(
        &self,
        reader: &mut FrameReader,
        hole: &Hole,
    ) -> std::io::Result<Option<(u64, FrameHeader)>> {
        let mut from = hole.offset.saturating_add(FRAME_ALIGN);
        while let Some((at, header)) = reader.search(from)? {
            if header.base >= self.end {
                return Ok(Some((at, header)));
            }
            from = at.saturating_add(FRAME_ALIGN);
        }
        Ok(None)
    }

    /// Looks in all that is still ahead for what it says was synced. Once: the most that anything says judges every hole.
    fn search_durable(&mut self, reader: &mut FrameReader, hole: &Hole) -> Result<(), JournalOpenError> {
        if std::mem::replace(&mut self.searched, true) {
            return Ok(());
        }
        let mut durable = self.durable;
        let mut look = |reader: &mut FrameReader, mut from: u64| -> std::io::Result<()> {
            while let Some((at, header)) = reader.search(from)? {
                durable = durable.max(header.durable);
                from = at.saturating_add(header.frame_len());
            }
            Ok(())
        };
        let name = self.segments[hole.segment].name();
        look(reader, hole.offset).map_err(failed("read", name))?;
        for index in hole.segment + 1..self.segments.len() {
            let mut reader = self.reader(index)?;
            look(&mut reader, FRAMES_AT).map_err(failed("read", self.segments[index].name()))?;
        }
        self.durable = durable;
        Ok(())
    }

    /// Something is not what it was. Nothing is said where no unit is lost by it.
    fn damaged(
        &mut self,
        file: String,
        bytes: Range<u64>,
        what: &'static str,
        units: Range<u64>,
    ) -> Result<(), JournalOpenError> {
        if units.is_empty() {
            return Ok(());
        }
        let len = bytes.end.saturating_sub(bytes.start);
        let damage = Damage { file, offset: bytes.start, len, what, units: units.clone() };
        if self.on_damage == OnDamage::Refuse {
            return Err(JournalOpenError::Damaged(damage));
        }
        self.damages.push(damage);
        self.visit.tell(Replayed::Lost { from: Position(units.start), to: Position(units.end) })
    }
}
