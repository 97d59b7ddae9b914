//! What lies where in a journal's directory, and the header that every one of its files begins with.
//!
//! ```text
//! eventflow                   says that the directory is a journal, of which format, and its random identity
//! lock                        locked while it is open
//! watermark                   what is known to be synced
//! segment-0000000000000001    frames, see `segment`
//! checkpoint-00000000000003e8 an image of the state before unit 0x3e8, see `checkpoint`
//! spare                       what the next segment will be made of: one that was let go
//! segment.tmp checkpoint.tmp eventflow.tmp watermark.tmp    under way; meaningless after a crash
//! reserve.tmp                 room for a checkpoint on a full disk; meaningless after a crash, too
//! quarantine/                 copies of bytes that were found damaged
//! ```

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::path::Path;

use super::disk::{Disk, DiskFile};

pub(super) const MARK: &str = "eventflow";
pub(super) const LOCK: &str = "lock";
pub(super) const WATERMARK: &str = "watermark";
pub(super) const SPARE: &str = "spare";
pub(super) const QUARANTINE: &str = "quarantine";
pub(super) const SEGMENT_TMP: &str = "segment.tmp";
pub(super) const CHECKPOINT_TMP: &str = "checkpoint.tmp";
pub(super) const MARK_TMP: &str = "eventflow.tmp";
pub(super) const WATERMARK_TMP: &str = "watermark.tmp";
pub(super) const RESERVE_TMP: &str = "reserve.tmp";

/// Readers of another major version refuse; a minor version adds what older readers may skip.
pub(super) const MAJOR: u16 = 1;
pub(super) const MINOR: u16 = 0;

/// No position and no segment's number is larger, so that counting on from any that is read never overflows. At a billion units a second it lasts for a century.
pub(super) const COUNT_MAX: u64 = 1 << 62;

/// Where the second copy of a header lies: on another page, so that one bad sector or page spares it.
pub(super) const SECOND_COPY: u64 = 4096;

pub(super) fn segment_name(number: u64) -> String {
    format!("segment-{number:016x}")
}

pub(super) fn checkpoint_name(position: u64) -> String {
    format!("checkpoint-{position:016x}")
}

/// The number in `segment-…` or `checkpoint-…`; none if the name is not exactly what we would have given.
pub(super) fn number_in(name: &str, prefix: &str) -> Option<u64> {
    let digits = name.strip_prefix(prefix)?.strip_prefix('-')?;
    let number = u64::from_str_radix(digits, 16).ok()?;
    (format!("{number:016x}") == digits && number <= COUNT_MAX).then_some(number)
}

/// Random enough that no two lives of a file share it.
pub(super) fn random() -> u64 {
    // Keyed by the system's random numbers, and another key each time.
    RandomState::new().build_hasher().finish()
}

/// What a file is, in its first eight bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FileKind {
    Mark,
    Watermark,
    Segment,
    Checkpoint,
}

impl FileKind {
    fn magic(self) -> &'static [u8; 8] {
        match self {
            FileKind::Mark => b"evtflow\x01",
            FileKind::Watermark => b"evtflow\x02",
            FileKind::Segment => b"evtflow\x03",
            FileKind::Checkpoint => b"evtflow\x04",
        }
    }
}

/// The header of every file; a kind leaves at 0 what it has no use for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FileHeader {
    pub(super) kind: FileKind,
    /// Of the directory, so that files of two journals are not taken for one.
    pub(super) identity: u64,
    /// Seeds the checksums of the file's frames. In a watermark: rises with each that is written.
    pub(super) salt: u64,
    /// Segment: its number. Watermark: the number of the segment that was written to.
    pub(super) number: u64,
    /// Segment: units before it are in earlier segments, units from it on are not. Checkpoint: the units that are in it.
    pub(super) position: u64,
    /// Units before it were synced, or are so whenever this header is.
    pub(super) durable: u64,
    /// Segment: frames end before it.
    pub(super) capacity: u64,
    /// Segment: the header checksum of the frame before its first, in an earlier segment.
    pub(super) chain: u32,
    /// Segment: [`CHAIN_BROKEN`].
    pub(super) flags: u32,
}

/// The frames before this segment's first are known to be lost, so `chain` says nothing.
pub(super) const CHAIN_BROKEN: u32 = 1;

pub(super) const FILE_HEADER_LEN: usize = 128;
const CRC_AT: usize = FILE_HEADER_LEN - 4;

/// What bytes are that should be a file's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HeaderRead {
    Good(FileHeader),
    /// Intact as far as can be told, of an unknown major version.
    Version(u16),
    Bad,
}

impl FileHeader {
    pub(super) fn new(kind: FileKind, identity: u64) -> Self {
        FileHeader {
            kind,
            identity,
            salt: 0,
            number: 0,
            position: 0,
            durable: 0,
            capacity: 0,
            chain: 0,
            flags: 0,
        }
    }

    pub(super) fn encode(&self) -> [u8; FILE_HEADER_LEN] {
        let mut bytes = [0; FILE_HEADER_LEN];
        bytes[..8].copy_from_slice(self.kind.magic());
        bytes[8..10].copy_from_slice(&MAJOR.to_le_bytes());
        bytes[10..12].copy_from_slice(&MINOR.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.flags.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.identity.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.salt.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.number.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.position.to_le_bytes());
        bytes[48..56].copy_from_slice(&self.durable.to_le_bytes());
        bytes[56..64].copy_from_slice(&self.capacity.to_le_bytes());
        bytes[64..68].copy_from_slice(&self.chain.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..CRC_AT]);
        bytes[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    pub(super) fn decode(kind: FileKind, bytes: &[u8]) -> HeaderRead {
        Self::try_decode(kind, bytes).unwrap_or(HeaderRead::Bad)
    }

    fn try_decode(kind: FileKind, bytes: &[u8]) -> Option<HeaderRead> {
        let bytes = bytes.get(..FILE_HEADER_LEN)?;
        if bytes.get(..8)? != kind.magic() {
            return None;
        }
        let major = u16_at(bytes, 8)?;
        if crc32c::crc32c(bytes.get(..CRC_AT)?) != u32_at(bytes, CRC_AT)? {
            return None;
        }
        if major != MAJOR {
            return Some(HeaderRead::Version(major));
        }
        let count = |at| u64_at(bytes, at).filter(|count| *count <= COUNT_MAX);
        Some(HeaderRead::Good(FileHeader {
            kind,
            identity: u64_at(bytes, 16)?,
            salt: u64_at(bytes, 24)?,
            number: count(32)?,
            position: count(40)?,
            durable: count(48)?,
            capacity: u64_at(bytes, 56)?,
            chain: u32_at(bytes, 64)?,
            flags: u32_at(bytes, 12)?,
        }))
    }

    /// Reads the two copies and takes the first good one.
    pub(super) fn read(kind: FileKind, file: &dyn DiskFile) -> io::Result<HeaderRead> {
        let first = Self::decode(kind, &read_up_to(file, 0, FILE_HEADER_LEN)?);
        if matches!(first, HeaderRead::Good(_)) {
            return Ok(first);
        }
        let second = Self::decode(kind, &read_up_to(file, SECOND_COPY, FILE_HEADER_LEN)?);
        Ok(if second == HeaderRead::Bad { first } else { second })
    }

    pub(super) fn write(&self, file: &dyn DiskFile) -> io::Result<()> {
        let bytes = self.encode();
        write_all(file, &bytes, 0)?;
        write_all(file, &bytes, SECOND_COPY)
    }
}

pub(super) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// What is there of `len` bytes; less at the end of the file. The caller bounds `len`.
pub(super) fn read_up_to(file: &dyn DiskFile, offset: u64, len: usize) -> io::Result<Vec<u8>> {
    read_into(file, offset, len, Vec::new())
}

/// The same, in the room of a vector, if it has room enough.
pub(super) fn read_into(file: &dyn DiskFile, offset: u64, len: usize, room: Vec<u8>) -> io::Result<Vec<u8>> {
    let mut bytes = if room.capacity() >= len { room } else { vec![0; len] };
    bytes.resize(len, 0);
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, offset.saturating_add(filled as u64))? {
            0 => break,
            read => filled = filled.saturating_add(read),
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}

pub(super) fn write_all(file: &dyn DiskFile, mut bytes: &[u8], mut offset: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        let written = file.write_at(bytes, offset)?;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        bytes = bytes.get(written..).unwrap_or_default();
        offset += written as u64;
    }
    Ok(())
}

/// Zeros from `from` to `to`. On failure says how far they reach.
pub(super) fn write_zeros(file: &dyn DiskFile, from: u64, to: u64) -> Result<(), (u64, io::Error)> {
    static ZEROS: [u8; 1 << 16] = [0; 1 << 16];
    let mut at = from;
    while at < to {
        let len = usize::try_from(to - at).map_or(ZEROS.len(), |left| left.min(ZEROS.len()));
        match file.write_at(&ZEROS[..len], at) {
            Ok(0) => return Err((at, io::ErrorKind::WriteZero.into())),
            Ok(written) => at += written as u64,
            Err(error) => return Err((at, error)),
        }
    }
    Ok(())
}

/// Removes a file that may not be there.
pub(super) fn remove_if_there(disk: &dyn Disk, path: &Path) -> io::Result<()> {
    match disk.remove(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_comes_back_and_no_flipped_bit_of_it_does() {
        let header = FileHeader {
            salt: 1,
            number: 2,
            position: 3,
            durable: 4,
            capacity: 5,
            chain: 6,
            flags: 7,
            ..FileHeader::new(FileKind::Segment, 8)
        };
        let bytes = header.encode();
        assert_eq!(FileHeader::decode(FileKind::Segment, &bytes), HeaderRead::Good(header));
        assert_eq!(FileHeader::decode(FileKind::Checkpoint, &bytes), HeaderRead::Bad);
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(FileHeader::decode(FileKind::Segment, &flipped), HeaderRead::Bad, "bit {bit}");
        }
        for len in 0..bytes.len() {
            assert_eq!(FileHeader::decode(FileKind::Segment, &bytes[..len]), HeaderRead::Bad);
        }
    }

    #[test]
    fn a_name_is_ours_only_as_we_write_it() {
        assert_eq!(number_in("segment-00000000000000ff", "segment"), Some(255));
        for foreign in ["segment-ff", "segment-00000000000000FF", "segment-+0000000000000ff", "segment.tmp"] {
            assert_eq!(number_in(foreign, "segment"), None, "{foreign}");
        }
    }

    #[test]
    fn random_numbers_differ() {
        assert_ne!(random(), random());
    }
}
