//! Every bit, every length and every sector of a small store: what was confirmed is there, or the opening says what is not.

use std::collections::BTreeMap;
use std::thread;

use super::*;
use crate::journal::disk::Access;
use crate::journal::layout::QUARANTINE;

const SECTOR: usize = 512;

/// A store with two checkpoints, several segments and all that was confirmed.
struct Store {
    disk: SimDisk,
    confirmed: Vec<String>,
    files: BTreeMap<String, Vec<u8>>,
    /// The same files at an earlier time.
    earlier: BTreeMap<String, Vec<u8>>,
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
        let earlier = read_all(&disk);
        put(&journal, &mut confirmed, 5, 20);
        end(&journal);
        drop(journal);
        let disk = disk.kill();
        let files = read_all(&disk);
        Store { disk, confirmed, files, earlier }
    }

    fn killed() -> Self {
        Self::new(|_| ())
    }

    fn closed() -> Self {
        Self::new(|journal| journal.journal.close(&mut ignore).unwrap())
    }
}

fn read_all(disk: &SimDisk) -> BTreeMap<String, Vec<u8>> {
    let names = disk.list(Path::new(DIR)).unwrap();
    let files = names.into_iter().filter_map(|name| {
        let file = disk.open(&Path::new(DIR).join(&name), Access::Read).ok()?;
        let mut bytes = vec![0; file.len().unwrap() as usize];
        let read = if bytes.is_empty() { 0 } else { file.read_at(&mut bytes, 0).unwrap() };
        assert_eq!(read, bytes.len());
        Some((name, bytes))
    });
    files.collect()
}

/// What openings came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Figures {
    tried: u64,
    /// All was there.
    whole: u64,
    /// Refused, with the place named.
    refused: u64,
    /// Served, with something missing that was reported.
    rest: u64,
}

impl Figures {
    fn add(&mut self, other: Figures) {
        self.tried += other.tried;
        self.whole += other.whole;
        self.refused += other.refused;
        self.rest += other.rest;
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
            assert!(store.files.contains_key(&damage.file), "{}: {damage}", what());
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

/// Runs `case` for each of `cases`, on both processors.
fn each<C: Sync>(cases: &[C], case: impl Fn(&C) -> Figures + Sync) -> Figures {
    let run = |cases: &[C]| {
        cases.iter().fold(Figures::default(), |mut figures, one| {
            figures.add(case(one));
            figures
        })
    };
    thread::scope(|scope| {
        let (first, second) = cases.split_at(cases.len() / 2);
        let second = scope.spawn(|| run(second));
        let mut figures = run(first);
        figures.add(second.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        figures
    })
}

fn path(name: &str) -> String {
    format!("{DIR}/{name}")
}

/// Bits of every byte where something is, and of some where nothing is.
fn bits(bytes: &[u8], step: usize) -> impl Iterator<Item = (usize, u8)> + '_ {
    let near =
        |at: usize| bytes[at.saturating_sub(40)..(at + 40).min(bytes.len())].iter().any(|&byte| byte != 0);
    // A long run of one letter is the same everywhere but at its ends.
    let dull =
        |at: usize| at > 64 && bytes[at - 64..(at + 64).min(bytes.len())].iter().all(|&byte| byte == b'l');
    (0..bytes.len())
        .filter(move |&at| (near(at) && !dull(at)) || at % 251 == 0)
        .flat_map(move |at| (0..8).skip(at % step).step_by(step).map(move |bit| (at, 1 << bit)))
}

fn flip_bits(store: &Store, step: usize) -> Figures {
    let mut cases = Vec::new();
    for (name, bytes) in &store.files {
        cases.extend(bits(bytes, step).map(|(at, mask)| (name, at, mask)));
    }
    each(&cases, |&(name, at, mask)| {
        let disk = store.disk.fork();
        disk.damage(&path(name), at as u64, mask);
        judge(store, &disk, &|| format!("{name}, byte {at}, bits {mask:08b}"))
    })
}

#[test]
fn no_flipped_bit_loses_anything_in_silence() {
    // All of them; and after a clean end, where less differs than not, one of each byte.
    for (end, step, store) in [("killed", 1, Store::killed()), ("closed", 8, Store::closed())] {
        let figures = flip_bits(&store, step);
        println!("{end}: {figures:?}, silent losses 0");
        assert!(figures.tried > 5_000 && figures.whole > 0 && figures.refused > 0, "{figures:?}");
        assert_eq!(figures.refused, figures.tried - figures.whole);
    }
}

#[test]
fn no_truncation_loses_anything_in_silence() {
    let store = Store::killed();
    let mut cases = Vec::new();
    for (name, bytes) in &store.files {
        let near = |at: usize| {
            bytes[at.saturating_sub(8)..(at + 8).min(bytes.len())]
                .iter()
                .any(|&byte| byte != 0 && byte != b'l')
        };
        cases.extend((0..bytes.len()).filter(|&len| near(len) || len % 101 == 0).map(|len| (name, len)));
    }
    let figures = each(&cases, |&(name, len)| {
        let disk = store.disk.fork();
        let file = disk.open(Path::new(&path(name)), Access::Write).unwrap();
        file.set_len(len as u64).unwrap();
        judge(&store, &disk, &|| format!("{name}, cut to {len}"))
    });
    println!("{figures:?}, silent losses 0");
    assert!(figures.whole > 0 && figures.refused > 0, "{figures:?}");
}

#[test]
fn no_bad_sector_loses_anything_in_silence() {
    for store in [Store::killed(), Store::closed()] {
        let mut cases: Vec<(String, usize, Vec<u8>, &str)> = Vec::new();
        for (name, bytes) in &store.files {
            for at in (0..bytes.len()).step_by(SECTOR) {
                let end = (at + SECTOR).min(bytes.len());
                let mut case = |replacement: &[u8], what| {
                    if replacement != &bytes[at..end] {
                        cases.push((name.clone(), at, replacement.to_vec(), what));
                    }
                };
                case(&vec![0; end - at], "zeroed");
                case(&vec![0xff; end - at], "ones");
                if let Some(stale) = store.earlier.get(name).and_then(|earlier| earlier.get(at..end)) {
                    case(stale, "stale");
                }
                // What belongs elsewhere in the file, or into another file.
                for other in (0..bytes.len()).step_by(SECTOR) {
                    let other_end = (other + SECTOR).min(bytes.len());
                    if other_end - other == end - at && bytes[other..other_end].iter().any(|&byte| byte != 0)
                    {
                        case(&bytes[other..other_end], "misplaced");
                    }
                }
                for (_, foreign) in store.files.iter().filter(|(other, _)| *other != name) {
                    if let Some(sector) = foreign.get(at..end) {
                        case(sector, "another file's");
                    }
                }
            }
        }
        let figures = each(&cases, |(name, at, sector, what)| {
            let disk = store.disk.fork();
            let file = disk.open(Path::new(&path(name)), Access::Write).unwrap();
            file.write_at(sector, *at as u64).unwrap();
            judge(&store, &disk, &|| format!("{name}, sector at {at} {what}"))
        });
        println!("{figures:?}, silent losses 0");
        assert!(figures.whole > 0 && figures.refused > 0, "{figures:?}");
    }
}

#[test]
fn no_missing_or_swapped_file_loses_anything_in_silence() {
    let store = Store::killed();
    let names: Vec<&String> = store.files.keys().filter(|name| *name != "lock").collect();
    let mut figures = Figures::default();
    for name in &names {
        let disk = store.disk.fork();
        disk.remove(Path::new(&path(name))).unwrap();
        figures.add(judge_missing(&store, &disk, name));
        for other in names.iter().filter(|other| other > &name) {
            let disk = store.disk.fork();
            let aside = path("aside");
            disk.rename(Path::new(&path(name)), Path::new(&aside)).unwrap();
            disk.rename(Path::new(&path(other)), Path::new(&path(name))).unwrap();
            disk.rename(Path::new(&aside), Path::new(&path(other))).unwrap();
            figures.add(judge(&store, &disk, &|| format!("{name} and {other} swapped")));
        }
    }
    println!("{figures:?}, silent losses 0");
}

/// As `judge`, but that the file which is named may be the missing one.
fn judge_missing(store: &Store, disk: &SimDisk, name: &str) -> Figures {
    judge(store, disk, &|| format!("{name} is missing"))
}

/// As after a power cut, which may leave the watermark as it was long ago.
#[test]
fn every_frame_vouches_for_those_before_it() {
    let store = Store::killed();
    let watermark = store.disk.open(Path::new(&path("watermark")), Access::Write).unwrap();
    watermark.write_at(&vec![0; store.files["watermark"].len()], 0).unwrap();
    assert_eq!(opened(&store.disk.fork()).found.texts(), store.confirmed);
    let (name, bytes) = store.files.iter().rfind(|(name, _)| name.starts_with("segment-")).unwrap();
    let last = store.confirmed.len() - 1;
    for (unit, entry) in store.confirmed.iter().enumerate().skip(15) {
        let at = bytes.windows(entry.len()).position(|window| window == entry.as_bytes()).unwrap();
        // In the body, and in the header before it.
        for at in [at, at - 30] {
            let disk = store.disk.fork();
            disk.damage(&path(name), at as u64, 1);
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
    let (name, bytes) = store.files.iter().rfind(|(name, _)| name.starts_with("segment-")).unwrap();
    let needle = store.confirmed.last().unwrap().as_bytes();
    let at = bytes.windows(needle.len()).position(|window| window == needle).unwrap();
    store.disk.damage(&path(name), at as u64, 1);
    let open = continued(&store.disk);
    let [damage] = &open.recovery.damages[..] else { panic!("{:?}", open.recovery.damages) };
    assert_eq!((&damage.file, damage.units.clone()), (name, 24..25));
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
