//! Every bit, every length and every sector of a small store: what was confirmed is there, or the opening says what is not.

use super::*;
use crate::journal::disk::Access;
use crate::journal::disk::harm::{Figures, Files, Harm, cuts, files, flips, judge_each, names, sectors};
use crate::journal::layout::QUARANTINE;

/// A store with two checkpoints, several segments, a spare, and all that was confirmed.
struct Store {
    disk: SimDisk,
    confirmed: Vec<String>,
    files: Files,
    /// The same files at an earlier time.
    earlier: Files,
}

impl Store {
    fn new(end: impl FnOnce(&Open)) -> Self {
        let disk = SimDisk::new();
        let mut journal = opened(&disk);
        let mut confirmed = Vec::new();
        let put = |journal: &Open, confirmed: &mut Vec<String>, count: usize, len: usize| {
            for _ in 0..count {
                let entry = format!("{}:{}", confirmed.len(), "x".repeat(confirmed.len() * 7 % len));
                journal.put(&entry);
                confirmed.push(entry);
            }
        };
        put(&journal, &mut confirmed, 5, 20);
        journal.checkpoint(&confirmed).unwrap();
        put(&journal, &mut confirmed, 4, 20);
        drop(journal);
        journal = opened(&disk);
        put(&journal, &mut confirmed, 3, 20);
        // Fills the segment, so that the next begins.
        for _ in 0..2 {
            let entry = format!("{}:{}", confirmed.len(), "l".repeat(3500));
            journal.put(&entry);
            confirmed.push(entry);
        }
        journal.checkpoint(&confirmed).unwrap();
        put(&journal, &mut confirmed, 6, 20);
        let spare = disk.create(&Path::new(DIR).join("spare")).unwrap();
        spare.write_at(&[7; 100], 0).unwrap();
        spare.sync().unwrap();
        disk.sync_dir(Path::new(DIR)).unwrap();
        let earlier = files(&disk, Path::new(DIR));
        put(&journal, &mut confirmed, 5, 20);
        end(&journal);
        drop(journal);
        let disk = disk.kill();
        let files = files(&disk, Path::new(DIR));
        for kind in ["eventflow", "lock", "watermark", "segment", "checkpoint", "spare"] {
            let is_there = files.keys().any(|file| file.to_string_lossy().contains(kind));
            assert!(is_there, "no {kind} among {:?}", files.keys());
        }
        Store { disk, confirmed, files, earlier }
    }

    fn killed() -> Self {
        Self::new(|_| ())
    }

    fn closed() -> Self {
        Self::new(|journal| journal.journal.close(&mut ignore).unwrap())
    }

    /// The newest segment.
    fn last_segment(&self) -> (String, &[u8]) {
        let is_segment = |file: &Path| file.to_string_lossy().contains("segment-");
        let (file, bytes) = self.files.iter().rfind(|(file, _)| is_segment(file)).expect("there is one");
        (file.file_name().expect("it has a name").to_string_lossy().into_owned(), bytes)
    }

    fn judge_all(&self, what: &str, harms: &[Harm]) -> Figures {
        judge_each(what, &self.disk, harms, |disk, harm| judge(self, disk, &|| harm.to_string()))
    }
}

/// Opens a damaged store in both ways. Panics at less than was confirmed without a word, and at anything that was never written.
fn judge(store: &Store, disk: &SimDisk, what: &dyn Fn() -> String) -> Figures {
    let mut figures = Figures { tried: 1, ..Figures::default() };
    let before = disk.fork();
    match open(disk, small()) {
        Ok(open) => {
            assert_eq!(open.found.texts(), store.confirmed, "{}", what());
            assert_eq!(open.recovery.end, Position(store.confirmed.len() as u64), "{}", what());
            figures.whole += 1;
            return figures;
        }
        Err(JournalOpenError::Damaged(damage)) => {
            let file = Path::new(DIR).join(&damage.file);
            assert!(store.files.contains_key(&file), "{}: {damage}", what());
            assert_eq!(disk.used(), before.used(), "{}: refused and changed", what());
            figures.refused += 1;
        }
        Err(error) => panic!("{}: {error}", what()),
    }
    let disk = before;
    match open(&disk, JournalOptions { on_damage: OnDamage::Continue, ..small() }) {
        Ok(open) => {
            check_rest(store, &open, what);
            figures.rest += 1;
            let (found, end) = (open.found.clone(), open.recovery.end);
            assert_eq!(open.put("goes on"), end, "{}", what());
            drop(open);
            let again = continued(&disk);
            assert_eq!(again.found.lost, found.lost, "{}: another loss the next time", what());
            let mut list = found.texts();
            list.push("goes on".to_owned());
            assert_eq!(again.found.texts(), list, "{}: something else the next time", what());
        }
        // Nothing is left that says whose directory it is.
        Err(JournalOpenError::Damaged(damage)) => assert_eq!(damage.file, "eventflow", "{}", what()),
        Err(error) => panic!("{}: {error}", what()),
    }
    figures
}

/// What is found is what was written, and what is missing was reported.
fn check_rest(store: &Store, open: &Open, what: &dyn Fn() -> String) {
    let Open { recovery, found, .. } = open;
    assert!(!recovery.damages.is_empty(), "{}: refused, and then nothing was damaged", what());
    let from_checkpoint = found.checkpoint.map_or(0, |checkpoint| checkpoint.0);
    let texts = found.texts();
    let (chunks, units) = texts.split_at(from_checkpoint as usize);
    assert_eq!(chunks, &store.confirmed[..from_checkpoint as usize], "{}", what());
    for (position, unit) in found.positions.iter().zip(units) {
        assert_eq!(Some(unit), store.confirmed.get(*position as usize), "{}", what());
    }
    // Where a whole segment is not to be read, and the watermark neither, nobody can say how much was in it.
    if recovery.damages.iter().any(|damage| damage.file.starts_with("segment-") && damage.units.is_empty()) {
        return;
    }
    for position in from_checkpoint..store.confirmed.len() as u64 {
        let there = found.positions.contains(&position);
        let lost = found.lost.iter().any(|(from, to)| (*from..*to).contains(&position));
        assert!(there != lost, "{}: unit {position} is there: {there}, reported: {lost}", what());
    }
}

fn path(name: &str) -> String {
    format!("{DIR}/{name}")
}

#[test]
fn no_flipped_bit_loses_anything_in_silence() {
    // All of them; and after a clean end, where less differs than not, one of each byte.
    for (step, store) in [(1, Store::killed()), (8, Store::closed())] {
        let figures = store.judge_all("bit flips", &flips(&store.files, step));
        assert!(figures.tried > 5_000 && figures.whole > 0 && figures.refused > 0, "{figures:?}");
        assert_eq!(figures.refused, figures.tried - figures.whole);
    }
}

/// There is an older one, and all that is needed beside it.
#[test]
fn a_damaged_checkpoint_costs_nothing() {
    for store in [Store::killed(), Store::closed()] {
        let mut harms = flips(&store.files, 61);
        harms.retain(|harm| harm.file.to_string_lossy().contains("checkpoint-"));
        let figures = store.judge_all("bit flips", &harms);
        assert!(figures.tried > 100 && figures.whole == figures.tried, "{figures:?}");
    }
}

#[test]
fn no_truncation_loses_anything_in_silence() {
    let store = Store::killed();
    let figures = store.judge_all("truncations", &cuts(&store.files, 1));
    assert!(figures.whole > 0 && figures.refused > 0, "{figures:?}");
}

#[test]
fn no_bad_sector_loses_anything_in_silence() {
    for store in [Store::killed(), Store::closed()] {
        let figures = store.judge_all("bad sectors", &sectors(&store.files, &store.earlier));
        assert!(figures.whole > 0 && figures.refused > 0, "{figures:?}");
    }
}

#[test]
fn no_missing_or_swapped_file_loses_anything_in_silence() {
    let store = Store::killed();
    let figures = store.judge_all("files gone or swapped", &names(&store.files));
    assert!(figures.whole > 0 && figures.refused > 0, "{figures:?}");
}

/// It is locked, and never read.
#[test]
fn what_the_lock_file_holds_does_not_matter() {
    let store = Store::closed();
    let lock = store.disk.open(Path::new(&path("lock")), Access::Write).unwrap();
    for len in [1, 512, 100_000] {
        lock.write_at(&vec![0xa5; len], 0).unwrap();
        assert_eq!(opened(&store.disk.fork()).found.texts(), store.confirmed, "{len} bytes");
    }
}

/// As after a power cut, which may leave the watermark as it was long ago.
#[test]
fn every_frame_vouches_for_those_before_it() {
    let store = Store::killed();
    let watermark = store.disk.open(Path::new(&path("watermark")), Access::Write).unwrap();
    watermark.write_at(&vec![0; 8192], 0).unwrap();
    assert_eq!(opened(&store.disk.fork()).found.texts(), store.confirmed);
    let (name, bytes) = store.last_segment();
    let last = store.confirmed.len() - 1;
    for (unit, entry) in store.confirmed.iter().enumerate().skip(15) {
        let at = bytes.windows(entry.len()).position(|window| window == entry.as_bytes()).unwrap();
        // In the body, and in the header before it.
        for at in [at, at - 30] {
            let disk = store.disk.fork();
            disk.damage(&path(&name), at as u64, 1);
            match open(&disk, small()) {
                Err(JournalOpenError::Damaged(damage)) => {
                    assert!(unit < last && damage.units.contains(&(unit as u64)), "{unit}: {damage}");
                }
                Ok(open) => {
                    assert_eq!(unit, last, "nothing tells the last one from one that was not synced");
                    assert_eq!(open.found.texts(), &store.confirmed[..last]);
                }
                Err(error) => panic!("{unit}: {error}"),
            }
        }
    }
}

#[test]
fn damaged_bytes_are_copied_aside_before_anything_is_changed() {
    let store = Store::closed();
    let (name, bytes) = store.last_segment();
    let needle = store.confirmed.last().unwrap().as_bytes();
    let at = bytes.windows(needle.len()).position(|window| window == needle).unwrap();
    store.disk.damage(&path(&name), at as u64, 1);
    let open = continued(&store.disk);
    let [damage] = &open.recovery.damages[..] else { panic!("{:?}", open.recovery.damages) };
    assert_eq!((&damage.file, damage.units.clone()), (&name, 24..25));
    assert!((damage.offset..damage.offset + damage.len).contains(&(at as u64)));
    let copies = store.disk.list(&Path::new(DIR).join(QUARANTINE)).unwrap();
    let [copy] = &copies[..] else { panic!("{copies:?}") };
    let copy = store.disk.open(&Path::new(DIR).join(QUARANTINE).join(copy), Access::Read).unwrap();
    let mut copied = vec![0; copy.len().unwrap() as usize];
    copy.read_at(&mut copied, 0).unwrap();
    let mut damaged = bytes[damage.offset as usize..(damage.offset + damage.len) as usize].to_vec();
    damaged[at - damage.offset as usize] ^= 1;
    assert_eq!(copied, damaged);
    // It goes when a checkpoint has taken its place twice.
    open.checkpoint(&["all".to_owned()]).unwrap();
    open.put("more");
    open.checkpoint(&["all".to_owned(), "more".to_owned()]).unwrap();
    drop(open);
    assert_eq!(opened(&store.disk).found.texts(), ["all", "more"]);
}
