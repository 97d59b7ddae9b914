//! Records in their order, from a sequence on, through one buffer.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::vec;

use bytes::Bytes;

use super::file::{Entry, FRAMES_AT, FileHeader, HeaderRead, RECORDS, record};
use super::survey::damage;
use super::{Folder, failed};
use crate::journal::archive::ArchiveError;
use crate::journal::disk::Access;
use crate::journal::error::Damage;
use crate::journal::frame::{FrameHeader, IGNORABLE};
use crate::journal::read::FrameReader;
use crate::sequence::Sequence;

/// Why a record cannot be given.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    /// Bytes are not what was written. The iterator goes on behind them.
    #[error("damaged: {0}")]
    Damaged(Damage),
    /// The files have changed meanwhile. Ask the archive again, from the sequence after the last that came. The iterator has ended.
    #[error("the files have changed: ask again")]
    Moved,
    /// The disk failed. The iterator has ended.
    #[error(transparent)]
    Disk(#[from] ArchiveError),
}

/// Records from a sequence on. Each is whole: its checksum was verified.
#[derive(Debug)]
pub(crate) struct Records {
    folder: Folder,
    files: vec::IntoIter<Arc<Entry>>,
    /// No record that is given comes before it.
    next: Sequence,
    /// Nor after it.
    end: Sequence,
    file: Option<OpenFile>,
    frame: Frame,
}

#[derive(Debug)]
struct OpenFile {
    entry: Arc<Entry>,
    reader: FrameReader,
    place: OpenPlace,
}

/// Where the next frame is, and what is known of it.
#[derive(Clone, Copy, Debug)]
struct OpenPlace {
    at: u64,
    /// It does not begin before it.
    sequence: u64,
}

/// What of a frame was not yet given.
#[derive(Debug, Default)]
struct Frame {
    body: Bytes,
    at: usize,
    count: u32,
    /// All its records come before it.
    end: u64,
}

/// The records of a frame, each somewhere in its bytes.
#[derive(Debug)]
pub(crate) struct FrameRecords {
    pub(crate) bytes: Bytes,
    /// At most so many.
    pub(crate) count: usize,
    at: usize,
}

impl FrameRecords {
    /// Each record's sequence, and where its bytes are.
    pub(crate) fn places(&self) -> impl Iterator<Item = (Sequence, Range<usize>)> + '_ {
        let mut at = self.at;
        std::iter::from_fn(move || {
            let (sequence, record, rest) = record(self.bytes.get(at..)?)?;
            at = self.bytes.len() - rest.len();
            Some((sequence, at - record.len()..at))
        })
    }
}

/// What was found where a frame should be.
enum Next {
    /// It is read.
    Frame,
    /// It comes before what is asked for.
    Passed,
    FileEnd,
}

impl Records {
    pub(super) fn new(folder: Folder, files: Vec<Arc<Entry>>, next: Sequence, end: Sequence) -> Self {
        Records { folder, files: files.into_iter(), next, end, file: None, frame: Frame::default() }
    }

    /// What is left of the frame that is read, and then a frame at a time. The first may begin with records that are not asked for.
    pub(crate) fn next_frame(&mut self) -> Option<Result<FrameRecords, ReadError>> {
        let read = self.read_frame();
        if matches!(read, Err(ReadError::Moved | ReadError::Disk(_))) {
            self.file = None;
            self.files = Vec::new().into_iter();
        }
        match read {
            Ok(false) => None,
            Ok(true) => {
                let Frame { body, at, count, end } = std::mem::take(&mut self.frame);
                self.next = self.next.max(Sequence::new(end));
                Some(Ok(FrameRecords { bytes: body, count: count as usize, at }))
            }
            Err(error) => Some(Err(error)),
        }
    }

    fn try_next(&mut self) -> Result<Option<(Sequence, Vec<u8>)>, ReadError> {
        loop {
            if let Some((sequence, bytes)) = self.frame.next(self.next) {
                self.next = sequence.next();
                return Ok(Some((sequence, bytes)));
            }
            if !self.read_frame()? {
                return Ok(None);
            }
        }
    }

    /// Reads on to a frame with records. False: there is none any more.
    fn read_frame(&mut self) -> Result<bool, ReadError> {
        loop {
            if self.frame.at < self.frame.body.len() {
                return Ok(true);
            }
            let Some(file) = &mut self.file else {
                let Some(entry) = self.files.next() else { return Ok(false) };
                let end = self.files.as_slice().first().map_or(self.end, |next| next.header.first);
                self.file = Some(open(&self.folder, entry, self.next, end)?);
                continue;
            };
            let end = self.files.as_slice().first().map_or(self.end, |next| next.header.first);
            match file.step(&self.folder, self.next, end, &mut self.frame) {
                Ok(Ok(Next::Frame | Next::Passed)) => {}
                Ok(Ok(Next::FileEnd)) => self.file = None,
                Ok(Err(damage)) if damage.units.end <= self.next.get() => {}
                Ok(Err(damage)) => return Err(ReadError::Damaged(damage)),
                Err(error) => {
                    let name = file.entry.header.numbers.name();
                    return Err(failed("read", name)(error).into());
                }
            }
        }
    }
}

impl Iterator for Records {
    type Item = Result<(Sequence, Vec<u8>), ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        let next = self.try_next();
        if matches!(next, Err(ReadError::Moved | ReadError::Disk(_))) {
            self.file = None;
            self.files = Vec::new().into_iter();
        }
        next.transpose()
    }
}

/// `end`: the records of the file come before it.
fn open(folder: &Folder, entry: Arc<Entry>, next: Sequence, end: Sequence) -> Result<OpenFile, ReadError> {
    let name = entry.header.numbers.name();
    let file = match folder.disk.open(&folder.path(&name), Access::Read) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && entry.is_gone() => {
            return Err(ReadError::Moved);
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let lost = entry.header.first.max(next).get()..end.get();
            let damage = damage(folder, entry.header.numbers, 0..entry.len, "the file is missing", lost);
            return Err(ReadError::Damaged(damage));
        }
        file => file.map_err(failed("open", &name))?,
    };
    let entry = match FileHeader::read(&*file).map_err(failed("read", &name))? {
        // Compaction has put another file under the name, which says itself how long it is.
        HeaderRead::Good(header) if header.salt != entry.header.salt && header.len > 0 => {
            Arc::new(Entry::new(header, header.len))
        }
        // Else it is the one that was opened. Should its header be unreadable by now, its frames need not be.
        _ => entry,
    };
    let mut reader = FrameReader::new(file, entry.header.salt, entry.len).map_err(failed("read", &name))?;
    let start = OpenPlace { at: FRAMES_AT, sequence: entry.header.first.get() };
    let mut place = start;
    if let Some(hint) = entry.index.before(next) {
        let header = reader.header(hint).map_err(failed("read", &name))?;
        if let Some(header) = header.filter(|header| header.base <= next.get()) {
            place = OpenPlace { at: hint, sequence: header.base };
        }
    }
    Ok(OpenFile { entry, reader, place })
}

impl OpenFile {
    /// Reads the next frame, unless it ends before `next`. `end`: the records of the file come before it.
    fn step(
        &mut self,
        folder: &Folder,
        next: Sequence,
        end: Sequence,
        frame: &mut Frame,
    ) -> io::Result<Result<Next, Damage>> {
        let OpenPlace { at, sequence, .. } = self.place;
        if at >= self.entry.len {
            return Ok(Ok(Next::FileEnd));
        }
        let numbers = self.entry.header.numbers;
        let Some(header) = self.reader.header(at)?.filter(|header| self.place.fits(header, &self.entry, end))
        else {
            let found = self.search(end)?;
            let to = found.map_or(self.entry.len, |(to, _)| to);
            self.place.at = to;
            self.place.sequence = found.map_or(end.get(), |(_, header)| header.base);
            let lost = sequence..self.place.sequence;
            return Ok(Err(damage(folder, numbers, at..to, "there is no frame", lost)));
        };
        self.place.at = at.saturating_add(header.frame_len());
        if header.kind & IGNORABLE != 0 {
            return Ok(Ok(Next::Passed));
        }
        self.place.sequence = header.durable;
        self.entry.index.note(Sequence::new(header.base), at);
        if header.durable <= next.get() {
            return Ok(Ok(Next::Passed));
        }
        let what = match self.reader.shared_body(at, &header)? {
            Some(body) if are_records(&body, &header) => {
                frame.take(body, &header);
                return Ok(Ok(Next::Frame));
            }
            Some(_) => "the records are not as the header says",
            None => "the body is not what was written",
        };
        Ok(Err(damage(folder, numbers, at..self.place.at, what, header.base..header.durable)))
    }

    /// The first frame behind this place that may be there.
    fn search(&mut self, end: Sequence) -> io::Result<Option<(u64, FrameHeader)>> {
        let mut from = self.place.at.saturating_add(1);
        while let Some((at, header)) = self.reader.search(from)? {
            if (OpenPlace { at, ..self.place }).fits(&header, &self.entry, end) {
                return Ok(Some((at, header)));
            }
            from = at.saturating_add(1);
        }
        Ok(None)
    }
}

impl OpenPlace {
    /// Whether this may be the frame of this place.
    fn fits(&self, header: &FrameHeader, entry: &Entry, end: Sequence) -> bool {
        let is_within = self.at.saturating_add(header.frame_len()) <= entry.len;
        let is_ordered =
            self.sequence <= header.base && header.base < header.durable && header.durable <= end.get();
        is_within && (header.kind & IGNORABLE != 0 || (header.kind == RECORDS && is_ordered))
    }
}

/// Whether a body is what its header says: so many records, in order, from the first sequence to before the last.
fn are_records(body: &[u8], header: &FrameHeader) -> bool {
    let mut rest = body;
    let mut next = header.base;
    let mut count = 0;
    while let Some((sequence, _, behind)) = record(rest) {
        let is_first = count == 0;
        if sequence.get() < next || (is_first && sequence.get() != header.base) {
            return false;
        }
        next = sequence.next().get();
        count += 1;
        rest = behind;
    }
    rest.is_empty() && count == header.count && next == header.durable
}

impl Frame {
    fn take(&mut self, body: Bytes, header: &FrameHeader) {
        *self = Frame { body, at: 0, count: header.count, end: header.durable };
    }

    /// The next record from this sequence on.
    fn next(&mut self, from: Sequence) -> Option<(Sequence, Vec<u8>)> {
        loop {
            let (sequence, bytes, rest) = record(self.body.get(self.at..)?)?;
            self.at = self.body.len() - rest.len();
            if sequence >= from {
                return Some((sequence, bytes.to_vec()));
            }
        }
    }
}
