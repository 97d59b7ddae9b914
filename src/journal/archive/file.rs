//! One file of an archive.
//!
//! ```text
//!    0  header
//! 4096  header, the second copy
//! 4608  frames, as in the journal, of the kind RECORDS; `base` is the sequence of the first record, `durable` the one after the last
//! ```
//!
//! The body of a frame is, for each record, a u64 sequence, a u32 length, and the bytes. Sequences rise, with gaps.
//!
//! A header, little endian:
//!
//! ```text
//!  0  magic `evtflow\x05`
//!  8  u16 major version, u16 minor version, u32 0
//! 16  u64 topic
//! 24  u64 the first number that the file stands for
//! 32  u64 the last
//! 40  u64 no record has a smaller sequence
//! 48  u64 salt of the frames
//! 56  u64 how long the file of the numbers before is; of no use if that one has a length of its own
//! 64  u64 how long this file is, if it was written in one go; or 0
//! 124 u32 CRC-32C of the bytes before
//! ```
//!
//! A file is `file-FIRST-LAST`, after the numbers that it stands for: more than one, when it was merged from several or took the place of one that could not be written.

use std::io;
use std::sync::Arc;

use crate::journal::disk::DiskFile;
use crate::journal::frame::{BODY_LEN_MAX, FrameHeader, UNIT_LEN_MAX, padded};
use crate::journal::layout::{
    MAJOR, MINOR, SECOND_COPY, random, read_up_to, u16_at, u32_at, u64_at, write_all,
};
use crate::sequence::Sequence;
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicBool, Ordering};

/// Where frames begin.
pub(super) const FRAMES_AT: u64 = SECOND_COPY + 512;
/// The kind of frame.
pub(super) const RECORDS: u8 = 4;
/// Before each record in a body.
pub(super) const RECORD_PREFIX_LEN: usize = 12;
/// What a frame's body holds at about most, unless one record is longer.
const FRAME_BODY_LEN: usize = 256 << 10;

const _: () = assert!(UNIT_LEN_MAX as usize + RECORD_PREFIX_LEN <= BODY_LEN_MAX as usize);

/// The numbers that a file stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FileNumbers {
    pub(super) first: u64,
    pub(super) last: u64,
}

impl FileNumbers {
    pub(super) fn name(self) -> String {
        format!("file-{:016x}-{:016x}", self.first, self.last)
    }

    /// None if the name is not exactly what we would have given.
    pub(super) fn of(name: &str) -> Option<Self> {
        let (first, last) = name.strip_prefix("file-")?.split_once('-')?;
        let number = |digits| u64::from_str_radix(digits, 16).ok();
        let numbers = FileNumbers { first: number(first)?, last: number(last)? };
        (numbers.name() == name && numbers.first <= numbers.last && numbers.last < u64::MAX)
            .then_some(numbers)
    }
}

const MAGIC: &[u8; 8] = b"evtflow\x05";
const HEADER_LEN: usize = 128;
const CRC_AT: usize = HEADER_LEN - 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FileHeader {
    pub(super) topic: u64,
    pub(super) numbers: FileNumbers,
    /// No record has a smaller sequence.
    pub(super) first: Sequence,
    pub(super) salt: u64,
    pub(super) previous_len: u64,
    /// 0: the file after this one says how long it is, or the extent does.
    pub(super) len: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HeaderRead {
    Good(FileHeader),
    Version(u16),
    Bad,
}

impl FileHeader {
    pub(super) fn new(topic: u64, numbers: FileNumbers, first: Sequence, previous_len: u64) -> Self {
        FileHeader { topic, numbers, first, salt: random(), previous_len, len: 0 }
    }

    fn encode(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..10].copy_from_slice(&MAJOR.to_le_bytes());
        bytes[10..12].copy_from_slice(&MINOR.to_le_bytes());
        let FileNumbers { first, last } = self.numbers;
        let fields = [self.topic, first, last, self.first.get(), self.salt, self.previous_len, self.len];
        for (at, field) in fields.into_iter().enumerate() {
            bytes[16 + 8 * at..24 + 8 * at].copy_from_slice(&field.to_le_bytes());
        }
        let crc = crc32c::crc32c(&bytes[..CRC_AT]);
        bytes[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<HeaderRead> {
        let bytes = bytes.get(..HEADER_LEN)?;
        if bytes.get(..8)? != MAGIC || crc32c::crc32c(bytes.get(..CRC_AT)?) != u32_at(bytes, CRC_AT)? {
            return None;
        }
        let major = u16_at(bytes, 8)?;
        if major != MAJOR {
            return Some(HeaderRead::Version(major));
        }
        Some(HeaderRead::Good(FileHeader {
            topic: u64_at(bytes, 16)?,
            numbers: FileNumbers { first: u64_at(bytes, 24)?, last: u64_at(bytes, 32)? },
            first: Sequence::new(u64_at(bytes, 40)?),
            salt: u64_at(bytes, 48)?,
            previous_len: u64_at(bytes, 56)?,
            len: u64_at(bytes, 64)?,
        }))
    }

    /// Takes the first good one of the two copies.
    pub(super) fn read(file: &dyn DiskFile) -> io::Result<HeaderRead> {
        let first = Self::decode(&read_up_to(file, 0, HEADER_LEN)?);
        if let Some(HeaderRead::Good(_)) = first {
            return Ok(first.unwrap_or(HeaderRead::Bad));
        }
        let second = Self::decode(&read_up_to(file, SECOND_COPY, HEADER_LEN)?);
        Ok(second.or(first).unwrap_or(HeaderRead::Bad))
    }

    pub(super) fn write(&self, file: &dyn DiskFile) -> io::Result<()> {
        let bytes = self.encode();
        write_all(file, &bytes, 0)?;
        // As far as the frames, so that a file without any is as long as it says.
        let mut last = [0; (FRAMES_AT - SECOND_COPY) as usize];
        last[..HEADER_LEN].copy_from_slice(&bytes);
        write_all(file, &last, SECOND_COPY)
    }
}

/// A file as the archive knows it.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) header: FileHeader,
    /// What of it counts.
    pub(super) len: u64,
    pub(super) index: Arc<Index>,
    /// Set before it is unlinked: a reader who comes too late is to know that nothing is wrong.
    gone: Arc<AtomicBool>,
}

impl Entry {
    pub(super) fn new(header: FileHeader, len: u64) -> Self {
        Entry { header, len, index: Arc::default(), gone: Arc::new(AtomicBool::new(false)) }
    }

    pub(super) fn goes(&self) {
        self.gone.store(true, Ordering::SeqCst);
    }

    pub(super) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::SeqCst)
    }

    pub(super) fn of_len(&self, len: u64) -> Self {
        Entry { len, ..self.clone() }
    }
}

/// Where some of the frames of a file begin, with the sequences that they begin with. Only a hint: a frame is looked for there, and if there is none, from the start.
#[derive(Debug, Default)]
pub(super) struct Index(Mutex<Vec<(Sequence, u64)>>);

/// Frames nearer to the last noted one are found from it.
const INDEX_STEP: u64 = 64 << 10;

impl Index {
    /// Frames are noted in their order; what was passed already is not noted again.
    pub(super) fn note(&self, base: Sequence, offset: u64) {
        let mut places = self.0.lock();
        if places.last().is_none_or(|(_, last)| offset >= last + INDEX_STEP) {
            places.push((base, offset));
        }
    }

    /// The last known frame that begins at or before this sequence.
    pub(super) fn before(&self, sequence: Sequence) -> Option<u64> {
        let places = self.0.lock();
        let at = places.partition_point(|(base, _)| *base <= sequence).checked_sub(1)?;
        places.get(at).map(|(_, offset)| *offset)
    }
}

/// Gathers records and makes frames of them.
#[derive(Debug)]
pub(super) struct FrameWriter {
    salt: u64,
    /// The header checksum of the frame before.
    previous: u32,
    base: Sequence,
    end: Sequence,
    count: u32,
    /// Room for the header, and the body.
    bytes: Vec<u8>,
}

impl FrameWriter {
    pub(super) fn new(salt: u64) -> Self {
        FrameWriter {
            salt,
            previous: 0,
            base: Sequence::FIRST,
            end: Sequence::FIRST,
            count: 0,
            bytes: Vec::new(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Whether a record of this length is to go into the next frame.
    pub(super) fn is_full(&self, len: usize) -> bool {
        self.count > 0 && self.bytes.len() + len > FRAME_BODY_LEN
    }

    pub(super) fn push(&mut self, sequence: Sequence, record: &[u8]) {
        if self.count == 0 {
            self.base = sequence;
            self.bytes.clear();
            self.bytes.resize(crate::journal::frame::FRAME_HEADER_LEN, 0);
        }
        self.bytes.extend_from_slice(&sequence.get().to_le_bytes());
        self.bytes.extend_from_slice(&(record.len() as u32).to_le_bytes());
        self.bytes.extend_from_slice(record);
        self.end = sequence.next();
        self.count += 1;
    }

    /// The frame for `offset`, and the sequence it begins with. None: nothing is gathered.
    pub(super) fn take(&mut self, offset: u64) -> Option<(Sequence, &[u8])> {
        if self.count == 0 {
            return None;
        }
        let (room, body) = self.bytes.split_at_mut(crate::journal::frame::FRAME_HEADER_LEN);
        let mut header = FrameHeader::new(RECORDS, self.base.get(), self.count, body);
        header.durable = self.end.get();
        header.previous = self.previous;
        room.copy_from_slice(&header.encode(self.salt, offset));
        self.previous = header.crc;
        self.count = 0;
        self.bytes.resize(padded(self.bytes.len() as u64) as usize, 0);
        Some((self.base, &self.bytes))
    }
}

/// A record in a frame's body, and what is behind it. None: the bytes are no records.
pub(super) fn record(body: &[u8]) -> Option<(Sequence, &[u8], &[u8])> {
    let (sequence, len) = (u64_at(body, 0)?, u32_at(body, 8)?);
    let (record, rest) = body.get(RECORD_PREFIX_LEN..)?.split_at_checked(len as usize)?;
    Some((Sequence::new(sequence), record, rest))
}
