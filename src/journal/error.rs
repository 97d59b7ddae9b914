//! What can go wrong with a journal, when it is opened and when it is used.

use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::Arc;

/// Bytes that are not what was written, below a point that is known to have been synced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Damage {
    /// The file's name in the journal's directory; of one in a folder, with that.
    pub(crate) file: String,
    pub(crate) offset: u64,
    /// How many bytes are unusable; 0 when the file is not there.
    pub(crate) len: u64,
    pub(crate) what: &'static str,
    /// The positions of the units that are gone, at most; in a topic's own files, the messages' sequences. Empty: nothing is lost, another copy serves.
    pub(crate) units: Range<u64>,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Damage { file, offset, len, what, units } = self;
        write!(f, "{file}, bytes {offset} to {}: {what}", offset.saturating_add(*len))?;
        if !units.is_empty() {
            // A topic's own files hold messages.
            let what = if file.contains('/') { "messages" } else { "units" };
            write!(f, "; {what} {} to {} are gone", units.start, units.end.saturating_sub(1))?;
        }
        Ok(())
    }
}

/// Why a journal was not opened. What was on disk is as it was, except where `Io` struck while it was put in order; another attempt finds all of it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JournalOpenError {
    /// Somebody has it open, in this process or another.
    #[error("the directory is open already")]
    AlreadyOpen,
    /// The directory holds something else.
    #[error("the directory is no journal and holds other files, such as {name:?}")]
    Foreign { name: String },
    /// A newer version of this crate wrote it.
    #[error("{file} is of format version {major}, which is unknown here")]
    Version { file: String, major: u16 },
    /// A newer version of this crate wrote something that must be understood.
    #[error("{file}, byte {offset}: a frame of kind {kind}, which is unknown here")]
    Kind { file: String, offset: u64, kind: u8 },
    /// What was confirmed is not there any more. Opening with [`OnDamage::Continue`](super::OnDamage::Continue) serves the rest.
    #[error("damaged: {0}")]
    Damaged(Damage),
    /// Who replays could not use what was replayed.
    #[error("{reason}")]
    Rejected { reason: String },
    /// The disk failed, or is full.
    #[error("{verb} {file}: {error}")]
    Io { verb: &'static str, file: String, error: io::Error },
}

/// Why a unit is not as safe as asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum JournalError {
    /// The disk is full. The unit is not in the journal and never will be; others may be added, and succeed when there is space.
    #[error("the disk is full")]
    NoSpace,
    /// The disk failed while the unit was under way: whether it is in the journal is known when it is opened again. Nothing more is accepted.
    #[error("the disk failed under way, so the outcome is unknown until the directory is opened again: {0}")]
    Indeterminate(Arc<str>),
    /// The disk failed before. The unit is not in the journal and never will be.
    #[error("the disk failed, so nothing is accepted until the directory is opened again: {0}")]
    Poisoned(Arc<str>),
    /// The unit is larger than a journal takes. It was not added.
    #[error("{len} bytes are more than the {max} that fit in one unit")]
    TooLarge { len: u64, max: u64 },
    /// The journal was closed. The unit was not added.
    #[error("the journal is closed")]
    Closed,
}
