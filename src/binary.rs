//! Numbers, texts and times as bytes, and back: the words of which everything that is kept as bytes is made.
//!
//! | word | bytes |
//! |---|---|
//! | `u8`, `u32`, `u64` | as they are, the lowest byte first |
//! | varint | LEB128: 7 bits a byte, the lowest first, bit 7 set in all but the last. The shortest form only |
//! | signed varint | zigzag: `n` as `2n`, `-n` as `2n - 1`, as a varint |
//! | near | the distance from a number that is known, modulo 2^64, as a signed varint |
//! | bytes, text | their length as a varint, then they; texts are UTF-8 |
//! | duration | whole seconds as a varint, then nanoseconds, below 10^9, as a varint |
//! | idempotency id | 0 and the 16 bytes of a UUID; or 1 and a text |
//!
//! A [`Reader`] believes nothing: it has no panic, and gives slices of what it reads, so that no length is ever allocated for.

use std::time::Duration;

use uuid::Uuid;

use crate::message::IdempotencyId;
use crate::options::IDEMPOTENCY_ID_LEN_MAX;
use crate::sequence::Sequence;
use crate::time::Tick;

/// What is wrong with bytes that were to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Flaw {
    #[error("ends too early")]
    Short,
    #[error("a number is not in its shortest form, or too large")]
    Number,
    #[error("{0} is over its limit")]
    Limit(&'static str),
    #[error("a text is not UTF-8")]
    Text,
    #[error("{0} has a value that means nothing")]
    Value(&'static str),
    #[error("more follows than belongs there")]
    Trailing,
}

/// Bytes that are not what they should be, and where that was seen first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{flaw}, at byte {offset}")]
pub(crate) struct Malformed {
    pub(crate) offset: usize,
    pub(crate) flaw: Flaw,
}

/// Reads from the front of a slice.
#[derive(Clone, Debug)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
    offset: usize,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Reader { rest: bytes, offset: 0 }
    }

    /// How much has been read.
    pub(crate) fn offset(&self) -> usize {
        self.offset
    }

    /// What has not been read.
    pub(crate) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// The error that stands here.
    pub(crate) fn flaw(&self, flaw: Flaw) -> Malformed {
        Malformed { offset: self.offset, flaw }
    }

    /// The next `len` bytes.
    pub(crate) fn take(&mut self, len: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.rest.split_at_checked(len).ok_or(self.flaw(Flaw::Short))?;
        self.rest = rest;
        self.offset += len;
        Ok(taken)
    }

    /// The next `len` bytes as a reader of their own, which tells places as this one does.
    pub(crate) fn part(&mut self, len: usize) -> Result<Reader<'a>, Malformed> {
        let offset = self.offset;
        Ok(Reader { rest: self.take(len)?, offset })
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (array, rest) = self.rest.split_first_chunk().ok_or(self.flaw(Flaw::Short))?;
        self.rest = rest;
        self.offset += N;
        Ok(*array)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, Malformed> {
        self.array().map(|[byte]| byte)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, Malformed> {
        self.array().map(u64::from_le_bytes)
    }

    pub(crate) fn u128(&mut self) -> Result<u128, Malformed> {
        self.array().map(u128::from_le_bytes)
    }

    pub(crate) fn varint(&mut self) -> Result<u64, Malformed> {
        let start = self.offset;
        let flawed = |flaw| Malformed { offset: start, flaw };
        let mut number = 0_u64;
        for shift in (0..u64::BITS).step_by(7) {
            let byte = self.u8().map_err(|_| flawed(Flaw::Short))?;
            let bits = u64::from(byte & 0x7F);
            if bits << shift >> shift != bits || (byte == 0 && shift > 0) {
                return Err(flawed(Flaw::Number));
            }
            number |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(flawed(Flaw::Number))
    }

    pub(crate) fn varint_u32(&mut self) -> Result<u32, Malformed> {
        let before = self.offset;
        let number = self.varint()?;
        u32::try_from(number).map_err(|_| Malformed { offset: before, flaw: Flaw::Number })
    }

    pub(crate) fn signed(&mut self) -> Result<i64, Malformed> {
        let zigzag = self.varint()?;
        Ok((zigzag >> 1).cast_signed() ^ -(zigzag & 1).cast_signed())
    }

    /// A number told by its distance from `before`, modulo 2^64.
    pub(crate) fn near(&mut self, before: u64) -> Result<u64, Malformed> {
        self.signed().map(|distance| before.wrapping_add_signed(distance))
    }

    /// Bytes of at most `len_max`; `what` they are is for the error.
    pub(crate) fn bytes(&mut self, len_max: usize, what: &'static str) -> Result<&'a [u8], Malformed> {
        let over = self.flaw(Flaw::Limit(what));
        let len = usize::try_from(self.varint()?).map_err(|_| over)?;
        if len > len_max { Err(over) } else { self.take(len) }
    }

    /// A text of at most `len_max` bytes; `what` it is is for the error.
    pub(crate) fn text(&mut self, len_max: usize, what: &'static str) -> Result<&'a str, Malformed> {
        let place = self.flaw(Flaw::Text);
        std::str::from_utf8(self.bytes(len_max, what)?).map_err(|_| place)
    }

    pub(crate) fn tick(&mut self) -> Result<Tick, Malformed> {
        self.varint().map(Tick::from_nanos)
    }

    pub(crate) fn sequence(&mut self) -> Result<Sequence, Malformed> {
        self.varint().map(Sequence::new)
    }

    pub(crate) fn duration(&mut self) -> Result<Duration, Malformed> {
        let seconds = self.varint()?;
        let place = self.flaw(Flaw::Value("duration"));
        let nanos = self.varint_u32()?;
        if nanos < 1_000_000_000 { Ok(Duration::new(seconds, nanos)) } else { Err(place) }
    }

    pub(crate) fn idempotency_id(&mut self) -> Result<IdempotencyId, Malformed> {
        let place = self.flaw(Flaw::Value("idempotency id"));
        match self.u8()? {
            0 => Ok(Uuid::from_bytes(self.array()?).into()),
            1 => self.text(IDEMPOTENCY_ID_LEN_MAX, "idempotency id").map(IdempotencyId::from),
            _ => Err(place),
        }
    }

    /// Nothing may be left.
    pub(crate) fn finish(self) -> Result<(), Malformed> {
        if self.is_empty() { Ok(()) } else { Err(self.flaw(Flaw::Trailing)) }
    }
}

/// Appends to a vector.
#[derive(Debug)]
pub(crate) struct Writer<'a>(pub(crate) &'a mut Vec<u8>);

impl Writer<'_> {
    pub(crate) fn raw(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    pub(crate) fn u8(&mut self, byte: u8) {
        self.0.push(byte);
    }

    #[cfg(test)]
    pub(crate) fn u32(&mut self, number: u32) {
        self.raw(&number.to_le_bytes());
    }

    pub(crate) fn u64(&mut self, number: u64) {
        self.raw(&number.to_le_bytes());
    }

    pub(crate) fn u128(&mut self, number: u128) {
        self.raw(&number.to_le_bytes());
    }

    pub(crate) fn varint(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.u8(number as u8 | 0x80);
            number >>= 7;
        }
        self.u8(number as u8);
    }

    pub(crate) fn signed(&mut self, number: i64) {
        self.varint((number << 1 ^ number >> 63).cast_unsigned());
    }

    /// A number told by its distance from `before`, modulo 2^64: short where they are near each other.
    pub(crate) fn near(&mut self, before: u64, number: u64) {
        self.signed(number.wrapping_sub(before).cast_signed());
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        self.varint(bytes.len() as u64);
        self.raw(bytes);
    }

    pub(crate) fn text(&mut self, text: &str) {
        self.bytes(text.as_bytes());
    }

    pub(crate) fn tick(&mut self, tick: Tick) {
        self.varint(tick.nanos());
    }

    pub(crate) fn sequence(&mut self, sequence: Sequence) {
        self.varint(sequence.get());
    }

    pub(crate) fn duration(&mut self, duration: Duration) {
        self.varint(duration.as_secs());
        self.varint(u64::from(duration.subsec_nanos()));
    }

    pub(crate) fn idempotency_id(&mut self, id: &IdempotencyId) {
        match id.as_uuid_or_text() {
            Ok(uuid) => {
                self.u8(0);
                self.raw(uuid);
            }
            Err(text) => {
                self.u8(1);
                self.text(text);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn written(write: impl FnOnce(&mut Writer<'_>)) -> Vec<u8> {
        let mut out = Vec::new();
        write(&mut Writer(&mut out));
        out
    }

    #[test]
    fn numbers_have_one_form_each() {
        let table: [(u64, &[u8]); 6] = [
            (0, &[0]),
            (127, &[127]),
            (128, &[0x80, 1]),
            (300, &[0xAC, 2]),
            (1 << 63, &[0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 1]),
            (u64::MAX, &[255, 255, 255, 255, 255, 255, 255, 255, 255, 1]),
        ];
        for (number, bytes) in table {
            assert_eq!(written(|out| out.varint(number)), bytes);
            assert_eq!(Reader::new(bytes).varint(), Ok(number));
        }
        let wrong: [(&[u8], Flaw); 6] = [
            (&[], Flaw::Short),
            (&[0x80], Flaw::Short),
            (&[0x80, 0], Flaw::Number),
            (&[0xFF, 0x80, 0], Flaw::Number),
            (&[255, 255, 255, 255, 255, 255, 255, 255, 255, 2], Flaw::Number),
            (&[255, 255, 255, 255, 255, 255, 255, 255, 255, 0x81, 0], Flaw::Number),
        ];
        for (bytes, flaw) in wrong {
            assert_eq!(Reader::new(bytes).varint(), Err(Malformed { offset: 0, flaw }), "{bytes:?}");
        }
    }

    #[test]
    fn a_length_is_not_believed_before_the_bytes_are_there() {
        let mut reader = Reader::new(&[1, 0xFF, 0xFF, 0xFF, 0xFF, 0x0F, b'a']);
        assert_eq!(reader.u8(), Ok(1));
        assert_eq!(reader.clone().bytes(9, "name"), Err(Malformed { offset: 1, flaw: Flaw::Limit("name") }));
        assert_eq!(reader.bytes(usize::MAX, "name"), Err(Malformed { offset: 6, flaw: Flaw::Short }));
        assert_eq!(reader.rest(), b"a", "after an error, what was not read is there");
    }

    #[test]
    fn an_error_says_where_and_what() {
        let mut reader = Reader::new(&[7, 2, 0xC3, 0x28]);
        assert_eq!(reader.part(1).and_then(|mut part| part.u8()), Ok(7));
        let error = reader.text(9, "name").expect_err("0xC3 wants a continuation");
        assert_eq!(error.to_string(), "a text is not UTF-8, at byte 1");
        assert_eq!(Reader::new(&[5, 6]).finish(), Err(Malformed { offset: 0, flaw: Flaw::Trailing }));
        assert_eq!(Reader::new(&[]).finish(), Ok(()));
        let mut part = Reader::new(&[5, 6, 7]);
        let _ = part.u8();
        let part = part.part(2).expect("two are left");
        assert_eq!(part.offset(), 1, "a part tells places as the whole does");
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn every_word_comes_back(
            number: u64, signed: i64, low: u64, high: u64, seconds: u64, nanos in 0..1_000_000_000_u32, text in ".{0,20}", uuid: u128,
        ) {
            let (duration, id) = (Duration::new(seconds, nanos), IdempotencyId::from(text.as_str()));
            let bytes = written(|out| {
                out.varint(number);
                out.signed(signed);
                out.near(low, high);
                out.duration(duration);
                out.text(&text);
                out.idempotency_id(&id);
                out.idempotency_id(&Uuid::from_u128(uuid).into());
                out.u32(number as u32);
                out.u64(number);
                out.u128(uuid);
            });
            let mut reader = Reader::new(&bytes);
            prop_assert_eq!(reader.varint(), Ok(number));
            prop_assert_eq!(reader.signed(), Ok(signed));
            prop_assert_eq!(reader.near(low), Ok(high));
            prop_assert_eq!(reader.duration(), Ok(duration));
            prop_assert_eq!(reader.text(80, "text"), Ok(text.as_str()));
            prop_assert_eq!(reader.idempotency_id(), Ok(id));
            prop_assert_eq!(reader.idempotency_id(), Ok(Uuid::from_u128(uuid).into()));
            prop_assert_eq!((reader.u32(), reader.u64(), reader.u128()), (Ok(number as u32), Ok(number), Ok(uuid)));
            prop_assert_eq!(reader.finish(), Ok(()));
        }

        /// What is read as a number is the one way to write it.
        #[test]
        fn whatever_is_read_is_what_would_be_written(bytes in prop::collection::vec(any::<u8>(), 0..14)) {
            let mut reader = Reader::new(&bytes);
            if let Ok(number) = reader.varint() {
                prop_assert_eq!(&written(|out| out.varint(number))[..], &bytes[..reader.offset()]);
            }
            let mut reader = Reader::new(&bytes);
            let _ = (reader.duration(), reader.near(5), reader.idempotency_id(), reader.text(9, "text"));
            prop_assert!(reader.offset() <= bytes.len());
        }
    }
}
