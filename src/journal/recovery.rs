//! From a directory to a journal that goes on.
//!
//! First everything is only read: the newest complete checkpoint, then the frames since, up to where the stream ends. Then the directory is put in order: the tail is
//! written again into a fresh segment, which is synced and only then named, and from that moment whatever lies in earlier segments past its base is void. So a crash before
//! finds all as it was, and a crash after finds it done; to recover twice is to recover once.

use std::path::Path;
use std::sync::Arc;

use super::checkpoint::{CheckpointFile, Found, Read};
use super::disk::{Access, Disk, Lock};
use super::error::{Damage, JournalOpenError};
use super::layout::{
    QUARANTINE, RESERVE_TMP, WATERMARK, checkpoint_name, read_up_to, remove_if_there, segment_name, write_all,
};
use super::segment::{Draft, DraftFrom, FRAMES_AT, NewSegment, SEGMENT_FILE_LEN_MAX, WriteError};
use super::survey::{FoundSegment, Owned, Survey, failed, own, survey};
use super::walk::Walk;
use super::watermark::Watermark;
use super::writer::{Retired, Writer};
use super::{JournalOptions, OnDamage, Position};

/// What is replayed, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Replayed<'a> {
    /// First, once.
    Begin {
        /// The state begins with a checkpoint: as all units before this position made it.
        checkpoint: Option<Position>,
        /// About how many bytes will be read.
        bytes: u64,
    },
    /// A chunk of the checkpoint.
    Chunk(&'a [u8]),
    /// All chunks were given.
    Imaged,
    Unit {
        position: Position,
        bytes: &'a [u8],
    },
    /// The units from `from` on and before `to` are damaged and left out. Only with [`OnDamage::Continue`].
    Lost {
        from: Position,
        to: Position,
    },
}

/// What opening a journal came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Recovery {
    pub(crate) checkpoint: Option<Position>,
    /// How many units were replayed.
    pub(crate) units: u64,
    /// How many of them were not known to be synced, and were written again.
    pub(crate) rewritten: u64,
    /// The position that the next unit gets.
    pub(crate) end: Position,
    /// What is damaged. With [`OnDamage::Refuse`] only what costs no unit, such as a checkpoint where an older one serves.
    pub(crate) damages: Vec<Damage>,
}

pub(super) struct Opened {
    pub(super) writer: Writer,
    pub(super) recovery: Recovery,
    pub(super) lock: Box<dyn Lock>,
}

/// Who is told what is replayed.
pub(super) struct Visit<'v>(pub(super) &'v mut dyn FnMut(Replayed<'_>) -> Result<(), String>);

impl Visit<'_> {
    pub(super) fn tell(&mut self, replayed: Replayed<'_>) -> Result<(), JournalOpenError> {
        (self.0)(replayed).map_err(|reason| JournalOpenError::Rejected { reason })
    }
}

pub(super) fn open(
    disk: &Arc<dyn Disk>,
    dir: &Path,
    options: &JournalOptions,
    visit: &mut dyn FnMut(Replayed<'_>) -> Result<(), String>,
) -> Result<Opened, JournalOpenError> {
    let Owned { lock, identity, damage } = own(&**disk, dir, options.on_damage)?;
    let mut survey = survey(&**disk, dir, identity)?;
    let void = survey.take_void();
    let mut visit = Visit(visit);
    let mut damages: Vec<Damage> = damage.into_iter().collect();
    let checkpoint = replay_checkpoint(&**disk, dir, identity, &mut survey, &mut visit, &mut damages)?;
    let start = checkpoint.unwrap_or(0);
    let state = (start, survey.durable);
    let mut walk = Walk::new(&**disk, dir, options.on_damage, &survey.segments, &mut visit, state);
    let no_checkpoint = survey.checkpoints.last().map_or(0, |&(position, _)| position);
    walk.run(&checkpoint_name(no_checkpoint))?;
    judge_bad_segments(&survey, &mut walk)?;
    let end = walk.end.max(start);
    let rewritten = walk.tail.iter().map(|frame| u64::from(frame.header.count)).sum();
    let (units, bytes) = (walk.units, walk.bytes);
    damages.append(&mut walk.damages);

    quarantine(&**disk, dir, &damages)?;
    let good = |position: u64| checkpoint.is_some_and(|newest| position <= newest);
    let (checkpoints, bad_checkpoints): (Vec<_>, Vec<_>) =
        survey.checkpoints.iter().copied().partition(|&(position, _)| good(position));
    // What it kept room for is this, too.
    if survey.under_way.contains(&RESERVE_TMP) {
        let _again_below = disk.remove(&dir.join(RESERVE_TMP));
    }
    let fresh = fresh_segment(disk, dir, identity, options, &survey, &walk, end)?;
    let mut writer = Writer {
        reserve: None,
        is_tight: false,
        is_sweeping: false,
        // Who knows what was settled since.
        since_sweep: 1,
        disk: disk.clone(),
        dir: dir.to_owned(),
        segment_len: options.segment_len(),
        identity,
        retired: retired(&survey, fresh.segment.base),
        current: fresh.segment,
        spare: None,
        chain: fresh.chain,
        end,
        durable: end,
        unsynced: Vec::new(),
        watermark: Watermark::open(&**disk, dir, identity).map_err(failed("open", WATERMARK))?,
        since_checkpoint: bytes,
        checkpoints,
    };
    // Written aside and named when it is synced, so what it says of itself is true.
    let _ = writer.watermark.note(end, writer.current.number);
    tidy(&mut writer, &survey, &void, &bad_checkpoints);
    // On a full disk it opens without, and takes in nothing that takes space until that is there.
    let _while_tight = writer.renew_reserve();
    let recovery =
        Recovery { checkpoint: checkpoint.map(Position), units, rewritten, end: Position(end), damages };
    Ok(Opened { writer, recovery, lock })
}

/// Gives the chunks of the newest complete checkpoint, and says which that is.
fn replay_checkpoint(
    disk: &dyn Disk,
    dir: &Path,
    identity: u64,
    survey: &mut Survey,
    visit: &mut Visit<'_>,
    damages: &mut Vec<Damage>,
) -> Result<Option<u64>, JournalOpenError> {
    let segment_bytes: u64 = survey.segments.iter().map(|segment| segment.len).sum();
    for &(position, _) in survey.checkpoints.iter().rev() {
        let name = checkpoint_name(position);
        let found = CheckpointFile::open(disk, dir, identity, position).map_err(failed("open", &name))?;
        let (offset, len) = match found {
            Found::Version(major) => return Err(JournalOpenError::Version { file: name, major }),
            Found::Bad(len) => (0, len),
            Found::Checkpoint(mut file) => {
                survey.durable = survey.durable.max(file.durable);
                // All of it is verified before any of it is believed.
                let mut read = file.read(&mut |_| Ok(())).map_err(failed("read", &name))?;
                if let Read::Damaged(_) = read {
                    read = file.read_again().map_err(failed("read", &name))?;
                }
                match read {
                    Read::Damaged(offset) => (offset, file.len.saturating_sub(offset)),
                    Read::Complete | Read::Rejected(_) => {
                        let bytes = segment_bytes.saturating_add(file.len);
                        visit.tell(Replayed::Begin { checkpoint: Some(Position(position)), bytes })?;
                        give_chunks(&mut file, &name, visit)?;
                        visit.tell(Replayed::Imaged)?;
                        return Ok(Some(position));
                    }
                }
            }
        };
        let what = "the checkpoint is not what was written";
        damages.push(Damage { file: name, offset, len, what, units: 0..0 });
    }
    visit.tell(Replayed::Begin { checkpoint: None, bytes: segment_bytes })?;
    Ok(None)
}

fn give_chunks(file: &mut CheckpointFile, name: &str, visit: &mut Visit<'_>) -> Result<(), JournalOpenError> {
    let read = file.read(&mut |chunk| (visit.0)(Replayed::Chunk(chunk))).map_err(failed("read", name))?;
    match read {
        Read::Complete => Ok(()),
        Read::Rejected(reason) => Err(JournalOpenError::Rejected { reason }),
        Read::Damaged(_) => {
            let changed = std::io::Error::other("the file changed while it was read");
            Err(failed("read", name)(changed))
        }
    }
}

/// A segment with a bad header is damage where the stream needs it, whatever was in it.
fn judge_bad_segments(survey: &Survey, walk: &mut Walk<'_, '_>) -> Result<(), JournalOpenError> {
    let needed = walk.first_number();
    for bad in survey.bad_segments.iter().filter(|bad| bad.number >= needed) {
        let damage = Damage {
            file: segment_name(bad.number),
            offset: 0,
            len: bad.len,
            what: "both copies of the header are bad",
            units: 0..0,
        };
        if walk.on_damage == OnDamage::Refuse {
            return Err(JournalOpenError::Damaged(damage));
        }
        walk.damages.push(damage);
    }
    Ok(())
}

/// Copies damaged bytes aside, before anything is changed.
pub(crate) fn quarantine(disk: &dyn Disk, dir: &Path, damages: &[Damage]) -> Result<(), JournalOpenError> {
    let aside = dir.join(QUARANTINE);
    let damages = damages.iter().filter(|damage| damage.len > 0);
    for (index, damage) in damages.enumerate() {
        if index == 0 {
            disk.create_dir(&aside).map_err(failed("create", QUARANTINE))?;
        }
        // A file in a folder has its copy beside the others.
        let file = damage.file.replace('/', "-");
        let name = format!("{file}-{:x}-{:x}", damage.offset, damage.len);
        copy_aside(disk, dir, damage, &aside.join(&name))
            .map_err(failed("write", format!("{QUARANTINE}/{name}")))?;
    }
    Ok(())
}

fn copy_aside(disk: &dyn Disk, dir: &Path, damage: &Damage, to: &Path) -> std::io::Result<()> {
    let from = disk.open(&dir.join(&damage.file), Access::Read)?;
    // Whatever an earlier attempt left of it.
    remove_if_there(disk, to)?;
    let copy = disk.create(to)?;
    let mut copied = 0;
    while copied < damage.len {
        let len = usize::try_from(damage.len - copied).unwrap_or(usize::MAX).min(1 << 20);
        let bytes = read_up_to(&*from, damage.offset.saturating_add(copied), len)?;
        if bytes.is_empty() {
            break;
        }
        write_all(&*copy, &bytes, copied)?;
        copied = copied.saturating_add(bytes.len() as u64);
    }
    copy.sync()?;
    disk.sync_dir(&dir.join(QUARANTINE))
}

struct Fresh {
    segment: super::segment::Segment,
    chain: u32,
}

/// The segment that the stream goes on in, with the tail in it.
fn fresh_segment(
    disk: &Arc<dyn Disk>,
    dir: &Path,
    identity: u64,
    options: &JournalOptions,
    survey: &Survey,
    walk: &Walk<'_, '_>,
    end: u64,
) -> Result<Fresh, JournalOpenError> {
    let first = walk.tail.front().map(|frame| frame.header);
    let tail_len: u64 = walk.tail.iter().map(|frame| frame.header.frame_len()).sum();
    let room = FRAMES_AT.saturating_add(tail_len);
    let capacity = options.segment_len().max(room);
    let name = segment_name(survey.last_number().saturating_add(1));
    if capacity > SEGMENT_FILE_LEN_MAX {
        return Err(failed("write", name)(std::io::ErrorKind::FileTooLarge.into()));
    }
    let mut chain = first.map_or(walk.chain, |first| first.previous);
    let new = NewSegment {
        identity,
        number: survey.last_number().saturating_add(1),
        base: first.map_or(end, |first| first.base),
        durable: end,
        chain,
        chain_broken: first.is_none() && walk.chain_broken,
        capacity,
        room,
    };
    let from = if survey.spare.is_some() { DraftFrom::Spare } else { DraftFrom::Nothing };
    let mut draft = Draft::make(&**disk, dir, from, &new).map_err(|error| not_written(&name, error))?;
    let mut reader = None;
    for frame in &walk.tail {
        let reader = match &mut reader {
            Some((segment, reader)) if *segment == frame.segment => reader,
            other => &mut other.insert((frame.segment, walk.reader(frame.segment)?)).1,
        };
        let from = walk.segments[frame.segment].name();
        let body = reader.body(frame.offset, &frame.header).map_err(failed("read", &from))?;
        let changed = || failed("read", &from)(std::io::Error::other("the file changed while it was read"));
        let body = body.ok_or_else(changed)?;
        let mut header = frame.header;
        header.previous = chain;
        draft.push(&mut header, body).map_err(failed("write", &name))?;
        chain = header.crc;
    }
    let segment = draft.finish(&**disk, dir).map_err(|error| not_written(&name, error))?;
    Ok(Fresh { segment, chain })
}

fn not_written(name: &str, error: WriteError) -> JournalOpenError {
    let error = match error {
        WriteError::Full(error) => error,
        WriteError::Broken(reason) => std::io::Error::other(reason),
    };
    failed("write", name)(error)
}

/// The segments before the fresh one. A bad one goes when those around it go.
fn retired(survey: &Survey, limit: u64) -> Vec<Retired> {
    let good = |segment: &FoundSegment| Retired {
        number: segment.header.number,
        base: segment.header.position,
        len: segment.len,
    };
    let mut retired: Vec<Retired> =
        survey.segments.iter().map(good).filter(|segment| segment.base < limit).collect();
    let mut bad = survey.bad_segments.clone();
    bad.reverse();
    for bad in bad {
        let at = retired.partition_point(|segment| segment.number < bad.number);
        let base = at.checked_sub(1).map_or(0, |before| retired[before].base);
        retired.insert(at, Retired { number: bad.number, base, len: bad.len });
    }
    retired
}

/// Removes what counts for nothing any more. What cannot be removed now is found again next time.
fn tidy(writer: &mut Writer, survey: &Survey, void: &[FoundSegment], bad_checkpoints: &[(u64, u64)]) {
    let disk = writer.disk.clone();
    let dir = writer.dir.clone();
    let superseded = survey.segments.iter().filter(|segment| segment.header.position >= writer.current.base);
    for segment in void.iter().chain(superseded) {
        let _ = disk.remove(&dir.join(segment.name()));
    }
    // There are copies in quarantine.
    for &(position, _) in bad_checkpoints {
        let _ = disk.remove(&dir.join(checkpoint_name(position)));
    }
    for name in &survey.under_way {
        let _ = disk.remove(&dir.join(name));
    }
}
