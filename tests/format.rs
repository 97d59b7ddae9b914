//! The guide's page on the format, put to the test: a reader that was written from it alone lists what a directory holds.
//!
//! The crate's public API makes the directories. Nothing else of it is used: not a constant, not a checksum.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use eventflow::{Broker, DeadLetter, Durability, Message, OpenError, Retention};

type Listing = BTreeMap<(String, u64), Vec<u8>>;

/// Numbers in a file, the lowest byte first.
fn number(bytes: &[u8], at: usize, len: usize) -> u64 {
    bytes[at..at + len].iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

struct Crc([u32; 256]);

impl Crc {
    fn new() -> Crc {
        let step = |crc: u32| if crc & 1 == 1 { crc >> 1 ^ 0x82F6_3B78 } else { crc >> 1 };
        Crc(std::array::from_fn(|byte| (0..8).fold(byte as u32, |crc, _| step(crc))))
    }

    fn of(&self, parts: &[&[u8]]) -> u32 {
        let bytes = parts.iter().flat_map(|part| part.iter());
        !bytes.fold(!0, |crc, byte| self.0[usize::from(crc as u8 ^ byte)] ^ crc >> 8)
    }
}

/// The header of a file: the first good copy.
struct Header {
    salt: u64,
    number: u64,
    position: u64,
    durable: u64,
    capacity: u64,
    chain: u32,
    is_broken: bool,
    identity: u64,
}

struct File {
    name: String,
    bytes: Vec<u8>,
    header: Header,
}

#[derive(Clone, Copy)]
struct Frame {
    crc: u32,
    body_len: usize,
    body_crc: u32,
    previous: u32,
    base: u64,
    durable: u64,
    count: u64,
    kind: u8,
}

impl Frame {
    fn len(&self) -> usize {
        (40 + self.body_len).next_multiple_of(8)
    }
}

struct Directory {
    crc: Crc,
    path: PathBuf,
}

impl Directory {
    fn header_at(&self, bytes: &[u8], at: usize, kind: u8) -> Option<Header> {
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

    fn open(&self, name: &str, kind: u8) -> Option<File> {
        let bytes = fs::read(self.path.join(name)).expect("it is read");
        let header = self.header_at(&bytes, 0, kind).or_else(|| self.header_at(&bytes, 4096, kind))?;
        Some(File { name: name.to_owned(), bytes, header })
    }

    /// The numbers of the files with this prefix, in order.
    fn numbers(&self, prefix: &str) -> Vec<u64> {
        let names =
            fs::read_dir(&self.path).expect("it is there").map(|entry| entry.expect("an entry").file_name());
        let digits = names.filter_map(|name| Some(name.to_str()?.strip_prefix(prefix)?.to_owned()));
        let mut numbers: Vec<_> = digits.filter_map(|digits| u64::from_str_radix(&digits, 16).ok()).collect();
        numbers.sort_unstable();
        numbers
    }

    fn frame(&self, file: &File, offset: usize) -> Option<Frame> {
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

    fn body<'f>(&self, file: &'f File, offset: usize, frame: &Frame) -> Option<&'f [u8]> {
        let body = file.bytes.get(offset + 40..offset + 40 + frame.body_len)?;
        (self.crc.of(&[body]) == frame.body_crc).then_some(body)
    }

    /// All chunks, if it is complete.
    fn chunks<'f>(&self, file: &'f File) -> Option<Vec<&'f [u8]>> {
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

    fn watermark(&self, identity: u64) -> u64 {
        let bytes = fs::read(self.path.join("watermark")).unwrap_or_default();
        let pages = [0, 4096].into_iter().filter_map(|at| self.header_at(&bytes, at, 2));
        pages.filter(|page| page.identity == identity).map(|page| page.durable).max().unwrap_or(0)
    }

    /// Those that count, by number.
    fn segments(&self, identity: u64) -> Vec<File> {
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
    fn list(&self) -> Result<Found, String> {
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
    fn stream(
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
    fn durable_behind(&self, segment: &File, hole: usize, later: &[File]) -> u64 {
        let files = [(segment, hole)].into_iter().chain(later.iter().map(|file| (file, 8192)));
        let frames = files.flat_map(|(file, from)| {
            (from..file.bytes.len()).step_by(8).filter_map(move |at| self.frame(file, at))
        });
        frames.map(|frame| frame.durable).max().unwrap_or(0)
    }
}

/// What records say.
#[derive(Default)]
struct Found {
    checkpoint: Option<u64>,
    names: BTreeMap<u64, String>,
    messages: BTreeMap<(u64, u64), Vec<u8>>,
    units: u64,
}

impl Found {
    fn units(&mut self, base: u64, count: u64, start: u64, mut body: &[u8]) {
        for position in base..base + count {
            let len = number(body, 0, 4) as usize;
            if position >= start {
                self.records(&body[4..4 + len]);
                self.units += 1;
            }
            body = &body[4 + len..];
        }
        assert!(body.is_empty(), "the units fill the body");
    }

    fn records(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let (kind, len) = (bytes[0], number(bytes, 1, 3) as usize);
            let mut words = Words(&bytes[4..4 + len]);
            bytes = &bytes[4 + len..];
            match kind {
                0x10 => {
                    let (topic, _next) = (words.varint(), words.varint());
                    let name = words.text();
                    self.names.entry(topic).or_insert(name);
                }
                0x12 => {
                    let topic = words.varint();
                    self.names.remove(&topic);
                    self.messages.retain(|(of, _), _| *of != topic);
                }
                0x30 => {
                    let (topic, mut sequence, _at) = (words.varint(), words.varint(), words.varint());
                    while !words.0.is_empty() {
                        let payload = words.message().to_vec();
                        self.messages.entry((topic, sequence)).or_insert(payload);
                        sequence += 1;
                    }
                }
                0x01 | 0x02 | 0x11 | 0x13 | 0x20..=0x27 | 0x31..=0x34 | 0x80.. => {}
                kind => panic!("a record of kind {kind:#04x}"),
            }
        }
    }

    fn listing(&self) -> Listing {
        let kept = self.messages.iter().filter_map(|((topic, sequence), payload)| {
            Some(((self.names.get(topic)?.clone(), *sequence), payload.clone()))
        });
        kept.collect()
    }
}

struct Words<'a>(&'a [u8]);

impl<'a> Words<'a> {
    fn take(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(len);
        self.0 = rest;
        taken
    }

    fn varint(&mut self) -> u64 {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)[0];
            number |= u64::from(byte & 0x7F) << shift;
            if byte & 0x80 == 0 {
                return number;
            }
        }
        panic!("a varint has at most ten bytes");
    }

    fn bytes(&mut self) -> &'a [u8] {
        let len = self.varint() as usize;
        self.take(len)
    }

    fn text(&mut self) -> String {
        String::from_utf8(self.bytes().to_vec()).expect("texts are UTF-8")
    }

    /// Gives the payload.
    fn message(&mut self) -> &'a [u8] {
        let flags = self.take(1)[0];
        assert_eq!(flags & 0x80, 0, "a flag that means nothing");
        if flags & 1 != 0 {
            self.varint();
        }
        if flags & 2 != 0 {
            for _ in 0..self.varint() {
                self.text();
                self.text();
            }
        }
        if flags & 4 != 0 {
            self.text();
        }
        if flags & 8 != 0 {
            match self.take(1)[0] {
                0 => drop(self.take(16)),
                1 => drop(self.text()),
                form => panic!("an idempotency id of form {form}"),
            }
            self.take(8);
        }
        for duration in [16, 32] {
            if flags & duration != 0 {
                self.varint();
                self.varint();
            }
        }
        if flags & 64 != 0 {
            self.varint();
            self.varint();
        }
        self.bytes()
    }
}

static NUMBER: AtomicU64 = AtomicU64::new(0);

/// A directory of a test's own, gone with it.
struct Dir(PathBuf);

impl Dir {
    fn new() -> Dir {
        let name =
            format!("eventflow-format-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        Dir(std::env::temp_dir().join(name))
    }

    fn broker(&self, durability: Durability) -> Broker {
        Broker::builder().dir(&self.0).durability(durability).build().expect("it opens")
    }

    fn list(&self) -> Result<Found, String> {
        Directory { crc: Crc::new(), path: self.0.clone() }.list()
    }

    fn copy(&self) -> Dir {
        let copy = Dir::new();
        fs::create_dir_all(&copy.0).expect("it can be made");
        for entry in fs::read_dir(&self.0).expect("it is there") {
            let entry = entry.expect("an entry");
            fs::copy(entry.path(), copy.0.join(entry.file_name())).expect("it is copied");
        }
        copy
    }

    /// The last segment, and where its last byte that is not zero lies.
    fn last_byte(&self) -> (PathBuf, usize) {
        let path = self.0.join(format!("segment-{:016x}", self.last_number()));
        let bytes = fs::read(&path).expect("it is read");
        (path, bytes.iter().rposition(|byte| *byte != 0).expect("it has a header"))
    }

    fn last_number(&self) -> u64 {
        let directory = Directory { crc: Crc::new(), path: self.0.clone() };
        *directory.numbers("segment-").last().expect("there is one")
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).ok();
    }
}

fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).expect("it is read");
    bytes[at] ^= 1;
    fs::write(path, bytes).expect("it is written");
}

/// Two topics with messages of every form, one that is deleted, and a dead letter.
fn publish_some(broker: &Broker, round: u64, listing: &mut Listing) {
    let orders = broker.topic::<String>("orders").retention(Retention::forever()).open().unwrap();
    let raw = broker.topic::<Bytes>("raw/bytes").retention(Retention::forever()).open().unwrap();
    let dead = broker.topic::<String>("dead").retention(Retention::forever()).open().unwrap();
    let rule = DeadLetter::to(&dead).after(1);
    let billing =
        orders.subscription("billing").dead_letter(rule).ordered().filter("attributes:kind").open().unwrap();
    let mut said = |topic: &str, sequence: u64, payload: &[u8]| {
        assert_eq!(
            listing.insert((topic.to_owned(), sequence), payload.to_vec()),
            None,
            "a sequence is given once"
        );
    };
    for n in 0..20 {
        let text = format!("order {round}.{n}");
        let mut message = Message::new(text.clone());
        if n % 2 == 0 {
            message = message
                .attribute("kind", "new")
                .attribute("länge", "größer")
                .ordering_key(format!("customer {n}"));
        }
        if n % 3 == 0 {
            message = message.idempotency_id(format!("{round}.{n}"));
        }
        if n % 5 == 0 {
            message =
                message.deliver_after(Duration::from_secs(70)).expires_in(Duration::from_millis(7_654_321));
        }
        said("orders", orders.publish(message).unwrap().id.sequence(), text.as_bytes());
    }
    let batch: Vec<_> = (0..300_u64).map(|n| Bytes::from(vec![n as u8; n as usize])).collect();
    for (receipt, payload) in raw.publish_all(batch.clone()).unwrap().into_iter().zip(&batch) {
        said("raw/bytes", receipt.id.sequence(), payload);
    }
    let delivery = billing.try_recv().unwrap();
    let rejected = String::clone(&delivery);
    delivery.reject("no such customer").unwrap();
    said("dead", round + 1, rejected.as_bytes());
    let short = broker.topic::<String>("short").open().unwrap();
    let _kept_for_it = short.subscription("s").open().unwrap();
    short.publish("gone with its topic").unwrap();
    broker.delete_topic("short").unwrap();
}

#[test]
fn a_reader_written_from_the_guide_lists_what_was_published() {
    let dir = Dir::new();
    let mut expected = Listing::new();
    for (round, durability) in (0..).zip([Durability::Always, Durability::Os, Durability::Always]) {
        let broker = dir.broker(durability);
        publish_some(&broker, round, &mut expected);
        // Every end there is: in good order, and not.
        if round == 1 {
            broker.shutdown(Duration::ZERO).unwrap();
        }
        drop(broker);
        let found = dir.list().expect("nothing is damaged");
        assert_eq!(found.listing(), expected, "round {round}");
        assert!(found.units > 20, "the stream was read");
    }
    assert!(dir.last_number() >= 3, "each opening begins a segment");
}

#[test]
fn images_and_files_that_are_used_again_are_read_too() {
    let dir = Dir::new();
    let mut expected = Listing::new();
    let payload = |n: u64| Bytes::from([&n.to_le_bytes()[..], &[n as u8; 60_000]].concat());
    for round in 0..2 {
        let broker = dir.broker(Durability::Os);
        publish_some(&broker, round, &mut expected);
        let large = broker.topic::<Bytes>("large").retention(Retention::forever()).open().unwrap();
        for n in 0..450 {
            let receipt = large.publish(payload(n)).unwrap();
            expected.insert(("large".to_owned(), receipt.id.sequence()), payload(n).to_vec());
        }
        drop((large, broker));
        let found = dir.list().expect("nothing is damaged");
        assert!(found.listing() == expected, "round {round}");
        assert!(found.checkpoint.is_some(), "more than a segment was written");
    }
    let directory = Directory { crc: Crc::new(), path: dir.0.clone() };
    assert_eq!(directory.numbers("checkpoint-").len(), 2);
    assert!(directory.numbers("segment-")[0] > 1, "the first segments were let go");
}

#[test]
fn the_stream_ends_where_the_guide_says() {
    let dir = Dir::new();
    let broker = dir.broker(Durability::Os);
    let topic = broker.topic::<String>("t").retention(Retention::forever()).open().unwrap();
    for n in 0..10 {
        topic.publish(format!("message {n}")).unwrap();
    }
    // As a crash of the process leaves it: nothing was synced since it was opened.
    let torn = dir.copy();
    broker.shutdown(Duration::ZERO).unwrap();
    drop((topic, broker));

    let (path, at) = torn.last_byte();
    flip(&path, at);
    let found = torn.list().expect("what was not synced is cut off").listing();
    let payloads = || (0..9).map(|n| format!("message {n}").into_bytes());
    assert!(found.values().cloned().eq(payloads()), "all but the last, whose frame is bad");
    let broker = torn.broker(Durability::Os);
    assert_eq!(broker.recovery().replayed, dir_units(&torn), "the broker sees it so too");
    drop(broker);

    // The same damage after a clean end is damage: the watermark says that all was synced.
    let (path, at) = dir.last_byte();
    flip(&path, at);
    assert!(dir.list().is_err());
    let opened = Broker::open(&dir.0);
    assert!(matches!(opened, Err(OpenError::Damaged { .. })), "{opened:?}");
}

/// Puts a frame of one unit, a record that may be passed over, where the stream of the last segment ends; it says that this frame was before it.
fn forge(dir: &Dir, previous: impl Fn(u32) -> u32) {
    let directory = Directory { crc: Crc::new(), path: dir.0.clone() };
    let name = format!("segment-{:016x}", dir.last_number());
    let file = directory.open(&name, 3).expect("its header is good");
    let (mut offset, mut last) = (8192, None);
    while let Some(frame) = directory.frame(&file, offset) {
        (offset, last) = (offset + frame.len(), Some(frame));
    }
    let last = last.expect("there are frames");
    let body = [&8_u32.to_le_bytes()[..], &[0xC5, 4, 0, 0, 1, 2, 3, 4]].concat();
    let mut bytes = vec![0; 40];
    bytes[4..8].copy_from_slice(&(body.len() as u32).to_le_bytes());
    bytes[8..12].copy_from_slice(&directory.crc.of(&[&body]).to_le_bytes());
    bytes[12..16].copy_from_slice(&previous(last.crc).to_le_bytes());
    bytes[16..24].copy_from_slice(&(last.base + last.count).to_le_bytes());
    bytes[32..36].copy_from_slice(&1_u32.to_le_bytes());
    bytes[36] = 1;
    let seed = [file.header.salt.to_le_bytes(), (offset as u64).to_le_bytes()];
    let crc = directory.crc.of(&[&seed[0], &seed[1], &bytes[4..]]);
    bytes[..4].copy_from_slice(&crc.to_le_bytes());
    bytes.extend_from_slice(&body);
    let mut whole = file.bytes;
    whole[offset..offset + bytes.len()].copy_from_slice(&bytes);
    fs::write(dir.0.join(name), whole).expect("it is written");
}

#[test]
fn a_frame_counts_if_it_names_the_one_before_it_and_else_not() {
    let dir = Dir::new();
    let broker = dir.broker(Durability::Os);
    let topic = broker.topic::<String>("t").retention(Retention::forever()).open().unwrap();
    topic.publish("message").unwrap();
    let (right, wrong) = (dir.copy(), dir.copy());
    let units = dir_units(&dir);
    forge(&right, |crc| crc);
    forge(&wrong, |crc| crc ^ 1);
    for (dir, expected) in [(&right, units + 1), (&wrong, units)] {
        assert_eq!(dir_units(dir), expected);
        assert_eq!(dir.broker(Durability::Os).recovery().replayed, expected, "the broker sees it so too");
    }
}

#[test]
fn a_segment_that_recovery_has_written_again_does_not_count() {
    let dir = Dir::new();
    let publish = |broker: &Broker, text: &str| {
        let topic = broker.topic::<String>("t").retention(Retention::forever()).open().unwrap();
        topic.publish(text.to_owned()).unwrap();
    };
    let broker = dir.broker(Durability::Always);
    publish(&broker, "synced");
    broker.shutdown(Duration::ZERO).unwrap();
    let broker = dir.broker(Durability::Os);
    publish(&broker, "torn");
    let crashed = dir.copy();
    drop(broker);
    let (stale, at) = crashed.last_byte();
    let before = fs::read(&stale).expect("it is read");
    flip(&stale, at);
    let broker = crashed.broker(Durability::Os);
    publish(&broker, "instead");
    drop(broker);
    // As if the crash had come before it was removed.
    fs::write(&stale, before).expect("it is written");
    let payloads = |dir: &Dir| dir.list().map(|found| found.listing().into_values().collect::<Vec<_>>());
    assert_eq!(payloads(&crashed), Ok(vec![b"synced".to_vec(), b"instead".to_vec()]));
    drop(crashed.broker(Durability::Os));
    assert_eq!(
        payloads(&crashed),
        Ok(vec![b"synced".to_vec(), b"instead".to_vec()]),
        "the broker sees it so too"
    );
}

fn dir_units(dir: &Dir) -> u64 {
    dir.list().expect("nothing is damaged").units
}

#[test]
fn the_checksum_is_the_one_that_the_guide_names() {
    assert_eq!(Crc::new().of(&[b"1234", b"56789"]), 0xE306_9283);
}
