//! Frame <-> bytes, with checksums. Touches no file.
//!
//! A frame is a header of [`FRAME_HEADER_LEN`] bytes, a body, and zeros up to a multiple of [`FRAME_ALIGN`]. All numbers are little endian:
//!
//! ```text
//!  0  u32  header checksum: CRC-32C of bytes 4 to 40, seeded with the file's salt and the frame's offset
//!  4  u32  length of the body
//!  8  u32  CRC-32C of the body
//! 12  u32  header checksum of the frame before
//! 16  u64  base: the position of its first unit
//! 24  u64  durable: units before this position were synced when the frame was written
//! 32  u32  how many units
//! 36  u8   kind; never 0, so that zeros are no header
//! 37  u8   flags; none yet
//! 38  u16  0
//! ```
//!
//! The seed makes a header valid in one file and one place only: what an earlier life of the file left, what lies at the wrong offset, and a frame inside
//! a payload never validate. The header is verified before its length is believed.
//!
//! The body of a [`UNITS`] frame is, for each unit, a u32 length and the bytes.

use super::layout::{COUNT_MAX, u32_at, u64_at};

/// Where frames may begin, so that a search for the next one is short.
pub(super) const FRAME_ALIGN: u64 = 8;
pub(super) const FRAME_HEADER_LEN: usize = 40;
/// A frame's body is never longer, whatever a header says.
pub(super) const BODY_LEN_MAX: u32 = (1 << 30) + (1 << 16);
/// What one unit may hold: a body of one unit fits.
pub(super) const UNIT_LEN_MAX: u32 = 1 << 30;
/// Before each unit in a body.
pub(super) const UNIT_PREFIX_LEN: usize = 4;

const _: () = assert!(UNIT_LEN_MAX as usize + UNIT_PREFIX_LEN <= BODY_LEN_MAX as usize);

/// Units of the journal's stream.
pub(super) const UNITS: u8 = 1;
/// A part of a checkpoint.
pub(super) const CHECKPOINT_CHUNK: u8 = 2;
/// The end of a checkpoint, whose body is how many chunks and how many bytes there are before it.
pub(super) const CHECKPOINT_END: u8 = 3;
/// A reader that does not know the kind may skip the frame.
pub(super) const IGNORABLE: u8 = 0x80;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FrameHeader {
    pub(super) kind: u8,
    pub(super) base: u64,
    pub(super) count: u32,
    pub(super) durable: u64,
    /// The `crc` of the frame before.
    pub(super) previous: u32,
    pub(super) body_len: u32,
    pub(super) body_crc: u32,
    /// Of this header; set by [`encode`](Self::encode) and [`decode`](Self::decode).
    pub(super) crc: u32,
}

impl FrameHeader {
    /// The header of a frame with this body.
    pub(super) fn new(kind: u8, base: u64, count: u32, body: &[u8]) -> Self {
        assert!(body.len() <= BODY_LEN_MAX as usize, "a body is at most BODY_LEN_MAX");
        assert_ne!(kind, 0, "zeros are no header");
        let body_len = body.len() as u32;
        let body_crc = crc32c::crc32c(body);
        FrameHeader { kind, base, count, durable: 0, previous: 0, body_len, body_crc, crc: 0 }
    }

    /// The position after its last unit.
    pub(super) fn end(&self) -> u64 {
        self.base.saturating_add(u64::from(self.count))
    }

    /// How many bytes the whole frame takes.
    pub(super) fn frame_len(&self) -> u64 {
        padded(FRAME_HEADER_LEN as u64 + u64::from(self.body_len))
    }

    /// For a frame at `offset` of a file of this `salt`.
    pub(super) fn encode(&mut self, salt: u64, offset: u64) -> [u8; FRAME_HEADER_LEN] {
        let mut bytes = [0; FRAME_HEADER_LEN];
        bytes[4..8].copy_from_slice(&self.body_len.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.body_crc.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.previous.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.base.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.durable.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.count.to_le_bytes());
        bytes[36] = self.kind;
        self.crc = crc32c::crc32c_append(seed(salt, offset), &bytes[4..]);
        bytes[..4].copy_from_slice(&self.crc.to_le_bytes());
        bytes
    }

    /// None: there is no frame at this offset of that file.
    pub(super) fn decode(bytes: &[u8], salt: u64, offset: u64) -> Option<Self> {
        let bytes = bytes.get(..FRAME_HEADER_LEN)?;
        // Cheap, and true of nearly everything that is no header: a search asks this of every eighth byte.
        let &[kind @ 1..=u8::MAX, _flags, 0, 0] = bytes.get(36..)? else { return None };
        let body_len = u32_at(bytes, 4)?;
        if body_len > BODY_LEN_MAX {
            return None;
        }
        let crc = u32_at(bytes, 0)?;
        if crc32c::crc32c_append(seed(salt, offset), bytes.get(4..)?) != crc {
            return None;
        }
        Some(FrameHeader {
            kind,
            base: u64_at(bytes, 16).filter(|base| *base <= COUNT_MAX)?,
            count: u32_at(bytes, 32)?,
            durable: u64_at(bytes, 24).filter(|durable| *durable <= COUNT_MAX)?,
            previous: u32_at(bytes, 12)?,
            body_len,
            body_crc: u32_at(bytes, 8)?,
            crc,
        })
    }

    pub(super) fn is_body(&self, body: &[u8]) -> bool {
        body.len() == self.body_len as usize && crc32c::crc32c(body) == self.body_crc
    }
}

/// For the same offset, another salt gives another seed unless the checksums of the salts are equal.
fn seed(salt: u64, offset: u64) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&salt.to_le_bytes()), &offset.to_le_bytes())
}

/// Whether frames of one salt may be taken for frames of the other at the same offset.
pub(super) fn salts_clash(one: u64, other: u64) -> bool {
    crc32c::crc32c(&one.to_le_bytes()) == crc32c::crc32c(&other.to_le_bytes())
}

pub(super) fn padded(len: u64) -> u64 {
    len.saturating_add(FRAME_ALIGN - 1) & !(FRAME_ALIGN - 1)
}

/// Appends a unit to a body.
pub(super) fn push_unit(body: &mut Vec<u8>, unit: &[u8]) {
    assert!(unit.len() <= UNIT_LEN_MAX as usize, "a unit is at most UNIT_LEN_MAX");
    body.reserve(UNIT_PREFIX_LEN + unit.len());
    body.extend_from_slice(&(unit.len() as u32).to_le_bytes());
    body.extend_from_slice(unit);
}

/// The units of a body, in order; ends early, with `None` for what is left, at bytes that are no unit.
#[derive(Debug)]
pub(super) struct Units<'a> {
    rest: &'a [u8],
}

impl<'a> Units<'a> {
    pub(super) fn new(body: &'a [u8]) -> Self {
        Units { rest: body }
    }

    /// Whether a body is exactly `count` units.
    pub(super) fn are(body: &[u8], count: u32) -> bool {
        let mut units = Units::new(body);
        let counted = units.by_ref().take(count as usize).count();
        counted == count as usize && units.rest.is_empty()
    }
}

impl<'a> Iterator for Units<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let len = u32_at(self.rest, 0)? as usize;
        let (unit, rest) = self.rest.get(UNIT_PREFIX_LEN..)?.split_at_checked(len)?;
        self.rest = rest;
        Some(unit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> FrameHeader {
        FrameHeader { durable: 5, previous: 6, ..FrameHeader::new(UNITS, 7, 2, b"body") }
    }

    #[test]
    fn a_header_is_valid_in_its_place_and_life_alone() {
        let mut header = header();
        let bytes = header.encode(1, 8192);
        assert_eq!(FrameHeader::decode(&bytes, 1, 8192), Some(header));
        assert_eq!(FrameHeader::decode(&bytes, 2, 8192), None, "another life of the file");
        for offset in (0..1 << 20).step_by(8).filter(|&offset| offset != 8192) {
            assert_eq!(FrameHeader::decode(&bytes, 1, offset), None, "offset {offset}");
        }
    }

    #[test]
    fn no_flipped_bit_of_a_header_passes() {
        let bytes = header().encode(1, 8192);
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(FrameHeader::decode(&flipped, 1, 8192), None, "bit {bit}");
        }
    }

    #[test]
    fn zeros_are_no_header_whatever_the_seed() {
        for offset in (0..1 << 20).step_by(8) {
            assert_eq!(FrameHeader::decode(&[0; FRAME_HEADER_LEN], 1, offset), None);
        }
    }

    #[test]
    fn units_come_back_and_a_wrong_count_or_a_cut_body_does_not() {
        let mut body = Vec::new();
        for unit in [&b"one"[..], b"", b"three"] {
            push_unit(&mut body, unit);
        }
        assert_eq!(Units::new(&body).collect::<Vec<_>>(), [&b"one"[..], b"", b"three"]);
        assert!(Units::are(&body, 3));
        assert!(!Units::are(&body, 2));
        assert!(!Units::are(&body, 4));
        for len in 0..body.len() {
            assert!(!Units::are(&body[..len], 3), "{len}");
        }
    }

    #[test]
    fn the_checksum_is_crc_32c() {
        // The check value that the CRC catalogue gives.
        assert_eq!(crc32c::crc32c(b"123456789"), 0xe306_9283);
    }
}
