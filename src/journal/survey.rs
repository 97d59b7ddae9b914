//! What is found in a directory before any of it is believed: whose it is, its segments and its checkpoints.

use std::io;
use std::path::Path;

use super::OnDamage;
use super::disk::{Access, Disk, Lock};
use super::error::{Damage, JournalOpenError};
use super::layout::{
    CHECKPOINT_TMP, FileHeader, FileKind, HeaderRead, LOCK, MARK, MARK_TMP, RESERVE_TMP, SEGMENT_TMP, SPARE,
    WATERMARK, WATERMARK_TMP, checkpoint_name, number_in, random, remove_if_there, segment_name,
};
use super::segment::SEGMENT_FILE_LEN_MAX;
use super::watermark::Watermark;

/// Leftovers under these names mean nothing.
pub(super) const UNDER_WAY: [&str; 5] = [SEGMENT_TMP, CHECKPOINT_TMP, MARK_TMP, WATERMARK_TMP, RESERVE_TMP];
/// What a directory may hold when it is made a journal, or was half made one by a crash.
const HARMLESS: [&str; 5] = [LOCK, WATERMARK, MARK_TMP, WATERMARK_TMP, "lost+found"];

/// A directory that is a journal, and is ours alone while the lock lives.
#[derive(Debug)]
pub(super) struct Owned {
    pub(super) lock: Box<dyn Lock>,
    pub(super) identity: u64,
    pub(super) damage: Option<Damage>,
}

pub(super) fn failed(
    verb: &'static str,
    file: impl Into<String>,
) -> impl FnOnce(io::Error) -> JournalOpenError {
    let file = file.into();
    move |error| JournalOpenError::Io { verb, file, error }
}

/// Makes a directory ours: takes its lock, and makes it a journal if it is empty or not there.
pub(super) fn own(disk: &dyn Disk, dir: &Path, on_damage: OnDamage) -> Result<Owned, JournalOpenError> {
    let names = match disk.list(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            disk.create_dir(dir).map_err(failed("create", dir.display().to_string()))?;
            Vec::new()
        }
        listed => listed.map_err(failed("list", dir.display().to_string()))?,
    };
    // Before anything is touched: what is not ours stays as it is.
    look_at_mark(disk, dir, &names, on_damage)?;
    let lock = disk.lock(&dir.join(LOCK)).map_err(failed("lock", LOCK))?;
    let lock = lock.ok_or(JournalOpenError::AlreadyOpen)?;
    let names = disk.list(dir).map_err(failed("list", dir.display().to_string()))?;
    let (identity, damage) = match look_at_mark(disk, dir, &names, on_damage)? {
        Mark::Identity(identity) => (identity, None),
        Mark::None => {
            let identity = random();
            make_mark(disk, dir, identity).map_err(failed("create", MARK))?;
            (identity, None)
        }
        Mark::Lost(damage) => {
            let identity = identity_of_others(disk, dir, &names).map_err(failed("read", MARK))?;
            let identity = identity.ok_or_else(|| JournalOpenError::Damaged(damage.clone()))?;
            remake_mark(disk, dir, identity).map_err(failed("create", MARK))?;
            (identity, Some(damage))
        }
    };
    Ok(Owned { lock, identity, damage })
}

/// What a directory says of itself.
enum Mark {
    Identity(u64),
    /// Nothing, and nothing else is in it.
    None,
    /// Nothing that can be read, and a journal is in it.
    Lost(Damage),
}

fn look_at_mark(
    disk: &dyn Disk,
    dir: &Path,
    names: &[String],
    on_damage: OnDamage,
) -> Result<Mark, JournalOpenError> {
    let (len, what) = if names.iter().any(|name| name == MARK) {
        let file = disk.open(&dir.join(MARK), Access::Read).map_err(failed("open", MARK))?;
        match FileHeader::read(FileKind::Mark, &*file).map_err(failed("read", MARK))? {
            HeaderRead::Good(header) => return Ok(Mark::Identity(header.identity)),
            HeaderRead::Version(major) => {
                return Err(JournalOpenError::Version { file: MARK.into(), major });
            }
            HeaderRead::Bad => {
                (file.len().map_err(failed("read", MARK))?, "both copies of the header are bad")
            }
        }
    } else {
        let is_ours =
            |name: &&String| number_in(name, "segment").or_else(|| number_in(name, "checkpoint")).is_some();
        if !names.iter().any(|name| is_ours(&name)) {
            let foreign = names.iter().find(|name| !HARMLESS.contains(&name.as_str()));
            return match foreign {
                Some(name) => Err(JournalOpenError::Foreign { name: name.clone() }),
                None => Ok(Mark::None),
            };
        }
        (0, "the file is missing")
    };
    let damage = Damage { file: MARK.into(), offset: 0, len, what, units: 0..0 };
    match on_damage {
        OnDamage::Refuse => Err(JournalOpenError::Damaged(damage)),
        OnDamage::Continue => Ok(Mark::Lost(damage)),
    }
}

/// The mark goes last: without it the directory is no journal, and is made one again.
fn make_mark(disk: &dyn Disk, dir: &Path, identity: u64) -> io::Result<()> {
    // The directory's own name may be new, also if an earlier attempt made it.
    if let Some(parent) = dir.parent() {
        disk.sync_dir(parent)?;
    }
    Watermark::create(disk, dir)?;
    remake_mark(disk, dir, identity)
}

fn remake_mark(disk: &dyn Disk, dir: &Path, identity: u64) -> io::Result<()> {
    let aside = dir.join(MARK_TMP);
    remove_if_there(disk, &aside)?;
    let file = disk.create(&aside)?;
    FileHeader::new(FileKind::Mark, identity).write(&*file)?;
    file.sync()?;
    disk.rename(&aside, &dir.join(MARK))?;
    disk.sync_dir(dir)
}

/// The identity that a segment or a checkpoint names.
fn identity_of_others(disk: &dyn Disk, dir: &Path, names: &[String]) -> io::Result<Option<u64>> {
    for name in names {
        let kind = if number_in(name, "segment").is_some() {
            FileKind::Segment
        } else if number_in(name, "checkpoint").is_some() {
            FileKind::Checkpoint
        } else {
            continue;
        };
        let file = disk.open(&dir.join(name), Access::Read)?;
        if let HeaderRead::Good(header) = FileHeader::read(kind, &*file)? {
            return Ok(Some(header.identity));
        }
    }
    Ok(None)
}

/// A segment whose header is good.
#[derive(Clone, Copy, Debug)]
pub(super) struct FoundSegment {
    pub(super) header: FileHeader,
    pub(super) len: u64,
}

impl FoundSegment {
    pub(super) fn name(&self) -> String {
        segment_name(self.header.number)
    }
}

/// A segment whose header is bad in both copies, or another's.
#[derive(Clone, Copy, Debug)]
pub(super) struct BadSegment {
    pub(super) number: u64,
    pub(super) len: u64,
}

/// What is in the directory.
#[derive(Debug, Default)]
pub(super) struct Survey {
    /// By number.
    pub(super) segments: Vec<FoundSegment>,
    pub(super) bad_segments: Vec<BadSegment>,
    /// Positions, rising, and lengths.
    pub(super) checkpoints: Vec<(u64, u64)>,
    pub(super) spare: Option<u64>,
    pub(super) under_way: Vec<&'static str>,
    /// The units that are known to have been synced, as far as headers and the watermark say.
    pub(super) durable: u64,
}

pub(super) fn survey(disk: &dyn Disk, dir: &Path, identity: u64) -> Result<Survey, JournalOpenError> {
    let names = disk.list(dir).map_err(failed("list", dir.display().to_string()))?;
    let mut survey = Survey {
        durable: Watermark::read(disk, dir, identity).map_err(failed("read", WATERMARK))?,
        ..Survey::default()
    };
    for name in &names {
        if let Some(number) = number_in(name, "segment") {
            survey.add_segment(disk, dir, identity, number)?;
        } else if let Some(position) = number_in(name, "checkpoint") {
            let len = len_of(disk, dir, &checkpoint_name(position))?;
            survey.checkpoints.push((position, len));
        } else if name == SPARE {
            survey.spare = Some(len_of(disk, dir, SPARE)?);
        }
        survey.under_way.extend(UNDER_WAY.iter().find(|under_way| *under_way == name));
    }
    // Names are sorted, and their numbers have a fixed width.
    Ok(survey)
}

fn len_of(disk: &dyn Disk, dir: &Path, name: &str) -> Result<u64, JournalOpenError> {
    let file = disk.open(&dir.join(name), Access::Read).map_err(failed("open", name))?;
    file.len().map_err(failed("read", name))
}

impl Survey {
    fn add_segment(
        &mut self,
        disk: &dyn Disk,
        dir: &Path,
        identity: u64,
        number: u64,
    ) -> Result<(), JournalOpenError> {
        let name = segment_name(number);
        let file = disk.open(&dir.join(&name), Access::Read).map_err(failed("open", &name))?;
        let len = file.len().map_err(failed("read", &name))?;
        match FileHeader::read(FileKind::Segment, &*file).map_err(failed("read", &name))? {
            HeaderRead::Good(header)
                if header.identity == identity
                    && header.number == number
                    && header.capacity <= SEGMENT_FILE_LEN_MAX =>
            {
                self.durable = self.durable.max(header.durable);
                self.segments.push(FoundSegment { header, len });
            }
            HeaderRead::Version(major) => return Err(JournalOpenError::Version { file: name, major }),
            _ => self.bad_segments.push(BadSegment { number, len }),
        }
        Ok(())
    }

    /// Takes those segments out of which nothing counts, because a later one begins where they do, or before.
    pub(super) fn take_void(&mut self) -> Vec<FoundSegment> {
        let mut limit = u64::MAX;
        let mut void = Vec::new();
        let mut live = Vec::new();
        for segment in self.segments.drain(..).rev() {
            if segment.header.position < limit {
                limit = segment.header.position;
                live.push(segment);
            } else {
                void.push(segment);
            }
        }
        live.reverse();
        self.segments = live;
        void
    }

    pub(super) fn last_number(&self) -> u64 {
        let good = self.segments.last().map_or(0, |segment| segment.header.number);
        good.max(self.bad_segments.last().map_or(0, |segment| segment.number))
    }
}
