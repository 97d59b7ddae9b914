//! Crashes and failing calls everywhere: what a checkpoint notes is there, whichever of the two that are kept is used.

use std::collections::BTreeSet;

use super::*;
use crate::journal::disk::explore::{Bounds, Report, Scenario, Wrong, crashes, failures};

/// What is wrong with the owner, to see that it would be found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mistake {
    None,
    /// Notes what was only appended.
    NotesBeforeTheSync,
    /// Lets go what the older checkpoint needs.
    LetsGoTooMuch,
    /// Compacts what the older checkpoint needs to be cut.
    CompactsTooMuch,
}

#[derive(Debug)]
struct Owner {
    /// Which of the two checkpoints a restart finds.
    finds_older: bool,
    mistake: Mistake,
}

#[derive(Clone, Debug)]
struct History {
    newer: Extent,
    older: Extent,
    /// Whatever was appended.
    archived: BTreeSet<u64>,
    /// What nobody will ask for.
    dead: BTreeSet<u64>,
}

impl Default for History {
    fn default() -> Self {
        let (archived, dead) = Default::default();
        History { newer: Extent::EMPTY, older: Extent::EMPTY, archived, dead }
    }
}

impl Owner {
    fn open(&self, disk: Arc<dyn Disk>, extent: Extent) -> Result<Archive, String> {
        let home = Path::new(HOME);
        disk.create_dir(home).map_err(|error| error.to_string())?;
        disk.sync_dir(Path::new("/")).map_err(|error| error.to_string())?;
        let opened = Archive::open(disk, home, TOPIC_NUMBER, extent, FRAMES_AT + 400);
        let (mut archive, damages) = opened.map_err(|error| error.to_string())?;
        archive.clean().map_err(|error| error.to_string())?;
        if damages.is_empty() { Ok(archive) } else { Err(format!("{damages:?}")) }
    }

    fn found(&self, history: &History) -> Extent {
        if self.finds_older { history.older } else { history.newer }
    }

    fn checkpoint(&self, archive: &mut Archive, history: &mut History) -> Result<(), ArchiveError> {
        let extent =
            if self.mistake == Mistake::NotesBeforeTheSync { archive.extent() } else { archive.sync()? };
        history.older = history.newer;
        history.newer = extent;
        Ok(())
    }

    fn append(&self, archive: &mut Archive, history: &mut History, count: u64) -> Result<(), ArchiveError> {
        let next = history.newer.next.get();
        let sequences = (next..next + count).filter(|sequence| sequence % 3 > 0);
        history.archived.extend(sequences.clone());
        // Once more, when the disk is well again.
        let again = archive
            .append(records(sequences.clone()))
            .or_else(|_| archive.append(records(sequences.clone())));
        again?;
        self.checkpoint(archive, history).or_else(|_| {
            archive.append(records(sequences))?;
            self.checkpoint(archive, history)
        })
    }

    /// Two kept checkpoints, retention, death, and compaction.
    fn live(&self, archive: &mut Archive, history: &mut History) -> Result<(), ArchiveError> {
        let start = history.newer.next.get();
        self.append(archive, history, 7)?;
        self.append(archive, history, 5)?;
        history.dead.extend(0..start + 8);
        archive.drop_before(Sequence::new(start + 8));
        self.append(archive, history, 5)?;
        let kept = match self.mistake {
            Mistake::LetsGoTooMuch => history.newer,
            _ => history.older,
        };
        archive.let_go(&kept)?;
        self.append(archive, history, 5)?;
        archive.let_go(&history.older)?;
        self.append(archive, history, 2)?;
        self.append(archive, history, 3)?;
        self.compact(archive, history).or_else(|_| self.compact(archive, history))?;
        self.append(archive, history, 3)?;
        self.compact(archive, history)
    }

    /// The last file of the older checkpoint was appended to since, and is dead too: but it may be found.
    fn compact(&self, archive: &mut Archive, history: &mut History) -> Result<(), ArchiveError> {
        history.dead.extend((0..history.newer.next.get()).filter(|sequence| sequence % 7 > 0));
        let dead = history.dead.clone();
        let kept = match self.mistake {
            Mistake::CompactsTooMuch => Extent { end: history.older.end + 1, ..history.older },
            _ => history.older,
        };
        archive.compact(&kept, u64::MAX, &|sequence: Sequence| !dead.contains(&sequence.get())).map(drop)
    }
}

impl Scenario for Owner {
    type History = History;
    type Image = Vec<u64>;

    fn work(&self, disk: Arc<dyn Disk>, _: u32, history: &mut History) {
        let extent = self.found(history);
        let Ok(mut archive) = self.open(disk, extent) else { return };
        (history.newer, history.older) = (extent, extent);
        let _ = self.live(&mut archive, history);
    }

    fn look(&self, disk: Arc<dyn Disk>, history: &History) -> Result<Vec<u64>, String> {
        let extent = self.found(history);
        let archive = self.open(disk, extent)?;
        let mut found = Vec::new();
        for next in archive.read_from(Sequence::FIRST) {
            let (sequence, bytes) = next.map_err(|error| error.to_string())?;
            if bytes != record(sequence.get()) || !history.archived.contains(&sequence.get()) {
                return Err(format!("{sequence:?} is not what was written"));
            }
            found.push(sequence.get());
        }
        if !found.is_sorted() || found.last().is_some_and(|last| *last >= extent.next.get()) {
            return Err(format!("found {found:?}"));
        }
        let archived = history.archived.range(..extent.next.get());
        let lives: Vec<u64> = archived.copied().filter(|live| !history.dead.contains(live)).collect();
        found.retain(|sequence| !history.dead.contains(sequence));
        if found == lives { Ok(found) } else { Err(format!("found {found:?} of {lives:?}")) }
    }

    fn served(&self, _: &Vec<u64>, history: &mut History) {
        let extent = self.found(history);
        (history.newer, history.older) = (extent, extent);
        history.archived.retain(|sequence| *sequence < extent.next.get());
    }
}

/// Whether the scenario does what is to be tried, or a mistake would be found nowhere.
#[test]
fn the_owner_drops_unlinks_and_compacts() {
    let disk = home();
    let owner = Owner { finds_older: false, mistake: Mistake::None };
    let mut history = History::default();
    owner.work(Arc::new(disk.clone()), 0, &mut history);
    let trace = disk.trace(200);
    for (verb, least) in [
        ("  create home/topic-", 4),
        ("  remove home/topic-0000000000000007/file-", 1),
        ("  rename home/topic-", 1),
    ] {
        assert!(trace.matches(verb).count() >= least, "{verb}:\n{trace}");
    }
    assert!(history.newer.first > 0 && history.newer.first <= history.older.first + 1, "{history:?}");
}

fn explore(finds_older: bool, mistake: Mistake, seed: u64) -> Result<(Report, Report), Wrong> {
    let owner = Owner { finds_older, mistake };
    let bounds = Bounds { cuts: 12, recoveries: 2, cuts_again: 2, ..Bounds::quick(seed) };
    Ok((crashes(&owner, &bounds)?, failures(&owner, &bounds)?))
}

#[test]
fn what_the_newer_checkpoint_notes_survives_everything() {
    let (crashes, failures) = explore(false, Mistake::None, 1).unwrap();
    println!("crashes: {crashes}\nfailures: {failures}");
    assert!(crashes.found > 100 && failures.failures > 500);
}

#[test]
fn what_the_older_checkpoint_notes_survives_everything() {
    let (crashes, failures) = explore(true, Mistake::None, 1).unwrap();
    println!("crashes: {crashes}\nfailures: {failures}");
    assert!(crashes.found > 100 && failures.failures > 500);
}

#[test]
fn an_owner_who_notes_what_is_not_safe_is_found() {
    explore(false, Mistake::NotesBeforeTheSync, 1).expect_err("the mistake is found");
}

#[test]
fn an_owner_who_lets_go_too_much_is_found() {
    explore(true, Mistake::LetsGoTooMuch, 1).expect_err("the mistake is found");
}

#[test]
fn an_owner_who_compacts_too_much_is_found() {
    explore(true, Mistake::CompactsTooMuch, 1).expect_err("the mistake is found");
}
