//! A directory's files, as the guide's page says what is in them.

use std::fs;
use std::path::PathBuf;

use crate::records::Found;

/// Numbers in a file, the lowest byte first.
pub(crate) fn number(bytes: &[u8], at: usize, len: usize) -> u64 {
    bytes[at..at + len].iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

pub(crate) struct Crc([u32; 256]);

impl Crc {
    pub(crate) fn new() -> Crc {
        let step = |crc: u32| if crc & 1 == 1 { crc >> 1 ^ 0x82F6_3B78 } else { crc >> 1 };
        Crc(std::array::from_fn(|byte| (0..8).fold(byte as u32, |crc, _| step(crc))))
    }

    pub(crate) fn of(&self, parts: &[&[u8]]) -> u32 {
        let bytes = parts.iter().flat_map(|part| part.iter());
        !bytes.fold(!0, |crc, byte| self.0[usize::from(crc as u8 ^ byte)] ^ crc >> 8)
    }
}

/// The header of a file: the first good copy.
pub(crate) struct Header {
    pub(crate) salt: u64,
    pub(crate) number: u64,
    pub(crate) position: u64,
    pub(crate) durable: u64,
    pub(crate) capacity: u64,
    pub(crate) chain: u32,
    pub(crate) is_broken: bool,
    pub(crate) identity: u64,
}

pub(crate) struct File {
    pub(crate) name: String,
    pub(crate) bytes: Vec<u8>,
    pub(crate) header: Header,
}

#[derive(Clone, Copy)]
pub(crate) struct Frame {
    pub(crate) crc: u32,
    pub(crate) body_len: usize,
    pub(crate) body_crc: u32,
    pub(crate) previous: u32,
    pub(crate) base: u64,
    pub(crate) durable: u64,
    pub(crate) count: u64,
    pub(crate) kind: u8,
}

impl Frame {
    pub(crate) fn len(&self) -> usize {
        (40 + self.body_len).next_multiple_of(8)
    }
}

pub(crate) struct Directory {
    pub(crate) crc: Crc,
    pub(crate) path: PathBuf,
}

impl Directory {
    pub(crate) fn header_at(&self, bytes: &[u8], at: usize, kind: u8) -> Option<Header> {
        let bytes = bytes.get(at..at + 128)?;
        let is_good = bytes[..7] == *b"evtflow" && bytes[7] == kind;
        if !is_good || u64::from(self.crc.of(&[&bytes[..124]])) != number(bytes, 124, 4) {
            return None;
        }
        assert_eq!(number(bytes, 8, 2), 1, "of this major version");
        Some(Header {
            is_broken: number(bytes, 12, 4) & 1 == 1,
            identity: number(bytes, 16, 8),
            salt: number(bytes, 24, 8),
            number: number(bytes, 32, 8),
            position: number(bytes, 40, 8),
            durable: number(bytes, 48, 8),
            capacity: number(bytes, 56, 8),
            chain: number(bytes, 64, 4) as u32,
        })
    }

    pub(crate) fn open(&self, name: &str, kind: u8) -> Option<File> {
        let bytes = fs::read(self.path.join(name)).expect("it is read");
        let header = self.header_at(&bytes, 0, kind).or_else(|| self.header_at(&bytes, 4096, kind))?;
        Some(File { name: name.to_owned(), bytes, header })
    }

    /// The numbers of the files with this prefix, in order.
    pub(crate) fn numbers(&self, prefix: &str) -> Vec<u64> {
        let names =
            fs::read_dir(&self.path).expect("it is there").map(|entry| entry.expect("an entry").file_name());
        let digits = names.filter_map(|name| Some(name.to_str()?.strip_prefix(prefix)?.to_owned()));
        let mut numbers: Vec<_> = digits.filter_map(|digits| u64::from_str_radix(&digits, 16).ok()).collect();
        numbers.sort_unstable();
        numbers
    }

    pub(crate) fn frame(&self, file: &File, offset: usize) -> Option<Frame> {
        let bytes = file.bytes.get(offset..offset + 40)?;
        let seed = [file.header.salt.to_le_bytes(), (offset as u64).to_le_bytes()];
        let crc = self.crc.of(&[&seed[0], &seed[1], &bytes[4..]]);
        if bytes[36] == 0 || u64::from(crc) != number(bytes, 0, 4) {
            return None;
        }
        Some(Frame {
            crc,
            body_len: number(bytes, 4, 4) as usize,
            body_crc: number(bytes, 8, 4) as u32,
            previous: number(bytes, 12, 4) as u32,
            base: number(bytes, 16, 8),
            durable: number(bytes, 24, 8),
            count: number(bytes, 32, 4),
            kind: bytes[36],
        })
    }

    pub(crate) fn body<'f>(&self, file: &'f File, offset: usize, frame: &Frame) -> Option<&'f [u8]> {
        let body = file.bytes.get(offset + 40..offset + 40 + frame.body_len)?;
        (self.crc.of(&[body]) == frame.body_crc).then_some(body)
    }

    /// All chunks, if it is complete.
    pub(crate) fn chunks<'f>(&self, file: &'f File) -> Option<Vec<&'f [u8]>> {
        let (mut offset, mut chain, mut chunks) = (8192, 0, Vec::new());
        loop {
            let frame = self.frame(file, offset)?;
            let body = self.body(file, offset, &frame)?;
            if frame.previous != chain || frame.base != chunks.len() as u64 || frame.count != 1 {
                return None;
            }
            match frame.kind {
                2 => chunks.push(body),
                3 => {
                    let len: usize = chunks.iter().map(|chunk| chunk.len()).sum();
                    let is_right =
                        [number(body, 0, 8), number(body, 8, 8)] == [chunks.len() as u64, len as u64];
                    return (is_right && body.len() == 16).then_some(chunks);
                }
                kind => panic!("a frame of kind {kind} in a checkpoint"),
            }
            (chain, offset) = (frame.crc, offset + frame.len());
        }
    }

    pub(crate) fn watermark(&self, identity: u64) -> u64 {
        let bytes = fs::read(self.path.join("watermark")).unwrap_or_default();
        let pages = [0, 4096].into_iter().filter_map(|at| self.header_at(&bytes, at, 2));
        pages.filter(|page| page.identity == identity).map(|page| page.durable).max().unwrap_or(0)
    }

    /// Those that count, by number.
    pub(crate) fn segments(&self, identity: u64) -> Vec<File> {
        let numbers = self.numbers("segment-");
        let files = numbers.iter().filter_map(|number| {
            let file = self.open(&format!("segment-{number:016x}"), 3)?;
            (file.header.identity == identity && file.header.number == *number).then_some(file)
        });
        let mut live: Vec<File> = Vec::new();
        for file in files.collect::<Vec<_>>().into_iter().rev() {
            if live.last().is_none_or(|later| file.header.position < later.header.position) {
                live.push(file);
            }
        }
        live.reverse();
        live
    }

    /// What the directory holds; an error if units that were confirmed are missing.
    pub(crate) fn list(&self) -> Result<Found, String> {
        let identity = self.open("eventflow", 1).expect("it is a broker's directory").header.identity;
        let mut found = Found::default();
        let mut durable = self.watermark(identity);
        for position in self.numbers("checkpoint-").into_iter().rev() {
            let file = self.open(&format!("checkpoint-{position:016x}"), 4);
            let Some(file) =
                file.filter(|file| (file.header.identity, file.header.position) == (identity, position))
            else {
                continue;
            };
            durable = durable.max(file.header.durable);
            if let Some(chunks) = self.chunks(&file) {
                chunks.iter().for_each(|chunk| found.records(chunk));
                found.checkpoint = Some(position);
                self.archives(&mut found)?;
                break;
            }
        }
        let start = found.checkpoint.unwrap_or(0);
        let segments = self.segments(identity);
        durable = segments.iter().map(|segment| segment.header.durable).fold(durable, u64::max);
        let first = segments.iter().rposition(|segment| segment.header.position <= start);
        assert!(first.is_some() || segments.is_empty(), "the segments that follow the checkpoint are there");
        let end = self.stream(&segments[first.unwrap_or(0)..], start, &mut durable, &mut found)?;
        if durable > end.max(start) {
            Err(format!("units {end} to {durable} are missing"))
        } else {
            Ok(found)
        }
    }

    /// Where the stream ends.
    pub(crate) fn stream(
        &self,
        segments: &[File],
        start: u64,
        durable: &mut u64,
        found: &mut Found,
    ) -> Result<u64, String> {
        let mut end = segments.first().map_or(0, |segment| segment.header.position);
        for (index, segment) in segments.iter().enumerate() {
            let next = segments.get(index + 1).map(|next| &next.header);
            let limit = next.map_or(u64::MAX, |next| next.position);
            let (mut chain, mut offset) = (segment.header.chain, 8192);
            end = end.max(segment.header.position);
            loop {
                if next.is_some_and(|next| !next.is_broken && next.chain == chain && next.position >= end) {
                    break;
                }
                let frame = self.frame(segment, offset).filter(|frame| {
                    let frame_end = frame.base + frame.count;
                    let fits = (offset + frame.len()) as u64 <= segment.header.capacity;
                    fits && frame.previous == chain && frame.base >= end && frame_end <= limit
                });
                let body = frame.and_then(|frame| Some((frame, self.body(segment, offset, &frame)?)));
                let Some((frame, body)) = body else {
                    *durable = (*durable).max(self.durable_behind(segment, offset, &segments[index + 1..]));
                    let place = format!("{}, byte {offset}", segment.name);
                    return if *durable > end { Err(place) } else { Ok(end) };
                };
                if frame.kind == 1 {
                    found.units(frame.base, frame.count, start, body);
                } else {
                    assert!(frame.kind & 0x80 != 0, "a frame of kind {}", frame.kind);
                }
                *durable = (*durable).max(frame.durable);
                (chain, offset, end) = (frame.crc, offset + frame.len(), frame.base + frame.count);
            }
        }
        Ok(end)
    }

    /// What the frames behind a hole say was synced.
    pub(crate) fn durable_behind(&self, segment: &File, hole: usize, later: &[File]) -> u64 {
        let files = [(segment, hole)].into_iter().chain(later.iter().map(|file| (file, 8192)));
        let frames = files.flat_map(|(file, from)| {
            (from..file.bytes.len()).step_by(8).filter_map(move |at| self.frame(file, at))
        });
        frames.map(|frame| frame.durable).max().unwrap_or(0)
    }
}
