//! Promises of the archive, on the simulated disk.

mod crashes;
mod damage;

use super::*;
use crate::journal::disk::faulty::{Fault, FaultyDisk, Lasts};
use crate::journal::disk::sim::{Full, SimDisk};

const HOME: &str = "home";
const TOPIC_NUMBER: u64 = 7;
/// Three or four frames in a file.
const SMALL: u64 = FRAMES_AT + 3_000;

/// What the record of a sequence holds: never the same, of all lengths.
fn record(sequence: u64) -> Vec<u8> {
    let len = sequence as usize * 37 % 400;
    sequence.to_le_bytes().iter().copied().cycle().take(len).collect()
}

fn records(sequences: impl IntoIterator<Item = u64>) -> impl Iterator<Item = (Sequence, Vec<u8>)> {
    sequences.into_iter().map(|sequence| (Sequence::new(sequence), record(sequence)))
}

fn home() -> SimDisk {
    let disk = SimDisk::new();
    disk.create_dir(Path::new(HOME)).unwrap();
    disk.sync_dir(Path::new("/")).unwrap();
    disk
}

fn open(disk: &SimDisk, extent: Extent) -> (Archive, Vec<Damage>) {
    let opened = Archive::open(Arc::new(disk.clone()), Path::new(HOME), TOPIC_NUMBER, extent, SMALL);
    let (mut archive, damages) = opened.unwrap();
    archive.clean().unwrap();
    (archive, damages)
}

fn open_whole(disk: &SimDisk, extent: Extent) -> Archive {
    let (archive, damages) = open(disk, extent);
    assert_eq!(damages, []);
    archive
}

/// Appends in batches of ten, as many checkpoints would.
fn fill(archive: &mut Archive, sequences: impl IntoIterator<Item = u64>) -> Extent {
    let sequences: Vec<u64> = sequences.into_iter().collect();
    let mut extent = archive.extent();
    for batch in sequences.chunks(10) {
        archive.append(records(batch.iter().copied())).unwrap();
        extent = archive.sync().unwrap();
    }
    extent
}

/// The sequences of what is read, each of which has its own bytes.
fn read(archive: &Archive, from: u64) -> Vec<u64> {
    let found = archive.read_from(Sequence::new(from)).map(|found| {
        let (sequence, bytes) = found.unwrap();
        assert_eq!(bytes, record(sequence.get()), "{sequence:?}");
        sequence.get()
    });
    found.collect()
}

fn files(disk: &SimDisk) -> usize {
    disk.list(&Path::new(HOME).join(folder_name(TOPIC_NUMBER))).unwrap().len()
}

#[test]
fn records_come_back_from_any_sequence_on_also_after_opening_again() {
    let disk = home();
    let mut archive = open_whole(&disk, Extent::EMPTY);
    let sequences: Vec<u64> = (1..400).filter(|sequence| sequence % 3 > 0).collect();
    let extent = fill(&mut archive, sequences.iter().copied());
    assert!(files(&disk) > 10);
    for archive in [archive, open_whole(&disk, extent)] {
        for from in [0, 1, 2, 3, 200, 201, 398, 399, u64::MAX] {
            let expected: Vec<u64> = sequences.iter().copied().filter(|sequence| *sequence >= from).collect();
            // Twice: the second time with an index.
            assert_eq!(read(&archive, from), expected, "from {from}");
            assert_eq!(read(&archive, from), expected, "from {from}");
        }
        assert_eq!(archive.disk_bytes(), file_bytes(&disk));
    }
}

/// The lengths of all files, from the disk.
fn file_bytes(disk: &SimDisk) -> u64 {
    let dir = Path::new(HOME).join(folder_name(TOPIC_NUMBER));
    let len = |name: &String| {
        disk.open(&dir.join(name), crate::journal::disk::Access::Read).unwrap().len().unwrap()
    };
    disk.list(&dir).unwrap().iter().map(len).sum()
}

#[test]
fn nothing_is_made_before_there_is_something_to_keep() {
    let disk = home();
    let mut archive = open_whole(&disk, Extent::EMPTY);
    archive.append(records([])).unwrap();
    assert_eq!(archive.sync().unwrap(), Extent::EMPTY);
    assert_eq!(disk.list(Path::new(HOME)).unwrap(), [""; 0]);
    assert_eq!(read(&archive, 0), [0_u64; 0]);
    Archive::remove(&disk, Path::new(HOME), TOPIC_NUMBER).unwrap();
}

#[test]
fn what_the_checkpoint_does_not_know_is_cut_and_may_be_appended_again() {
    let disk = home();
    let mut archive = open_whole(&disk, Extent::EMPTY);
    let extent = fill(&mut archive, 1..15);
    archive.append(records(15..80)).unwrap();
    assert_eq!(read(&archive, 1), (1..80).collect::<Vec<_>>(), "it is read before it is safe");
    archive.sync().unwrap();
    let mut archive = open_whole(&disk, extent);
    assert_eq!(read(&archive, 1), (1..15).collect::<Vec<_>>());
    assert_eq!(archive.disk_bytes(), file_bytes(&disk));
    let extent = fill(&mut archive, 15..60);
    assert_eq!(read(&open_whole(&disk, extent), 1), (1..60).collect::<Vec<_>>());
}

#[test]
#[should_panic(expected = "comes before")]
fn a_sequence_is_not_archived_twice() {
    let mut archive = open_whole(&home(), Extent::EMPTY);
    fill(&mut archive, [5, 5]);
}

#[test]
fn a_record_longer_than_a_frame_has_one_of_its_own() {
    let disk = home();
    let mut archive = open_whole(&disk, Extent::EMPTY);
    let long = vec![1; 700_000];
    let records = [&b"a"[..], &long, &long, b"b"];
    archive.append((1..).map(Sequence::new).zip(records)).unwrap();
    let extent = archive.sync().unwrap();
    let archive = open_whole(&disk, extent);
    let found: Vec<Vec<u8>> = archive.read_from(Sequence::FIRST).map(|found| found.unwrap().1).collect();
    assert_eq!(found, records);
}

#[test]
fn whole_files_go_when_no_kept_checkpoint_needs_them() {
    let disk = home();
    let mut archive = open_whole(&disk, Extent::EMPTY);
    let older = fill(&mut archive, 1..200);
    let before = file_bytes(&disk);
    archive.drop_before(Sequence::new(100));
    let newer = archive.sync().unwrap();
    assert!(newer.first > older.first && newer.end == older.end);
    let left = read(&archive, 1);
    assert!(left[0] > 50 && left[0] <= 100 && left.ends_with(&[199]), "{left:?}");
    assert_eq!(archive.let_go(&older).unwrap(), 0);
    assert_eq!(read(&open_whole(&disk.fork(), older), 1), (1..200).collect::<Vec<_>>());
    let freed = archive.let_go(&newer).unwrap();
    assert!(freed > 0 && file_bytes(&disk) == before - freed && archive.disk_bytes() == before - freed);
    assert_eq!(read(&open_whole(&disk, newer), 1), left);
}

#[test]
fn when_all_is_dropped_it_begins_again_after_it() {
    let disk = home();
    let mut archive = open_whole(&disk, Extent::EMPTY);
    fill(&mut archive, 1..50);
    archive.append(records([50])).unwrap();
    archive.drop_before(Sequence::new(51));
    assert_eq!(read(&archive, 1).last(), Some(&50), "what is not safe yet stays");
    archive.sync().unwrap();
    archive.drop_before(Sequence::new(51));
    let extent = archive.sync().unwrap();
    assert_eq!((extent.first, extent.len, extent.next), (extent.end, 0, Sequence::new(51)));
    archive.let_go(&extent).unwrap();
    assert_eq!((archive.disk_bytes(), files(&disk)), (0, 0));
    let again = disk.fork();
    for (disk, mut archive) in [(&disk, archive), (&again, open_whole(&again, extent))] {
        assert_eq!(read(&archive, 1), [0_u64; 0]);
        let extent = fill(&mut archive, 51..60);
        assert_eq!(read(&open_whole(disk, extent), 1), (51..60).collect::<Vec<_>>());
    }
}

#[test]
fn use_stays_within_twice_what_lives_and_two_files() {
    let disk = home();
    let mut archive = open_whole(&disk, Extent::EMPTY);
    let mut lives: Vec<u64> = Vec::new();
    let mut older = Extent::EMPTY;
    for round in 0..30 {
        let batch = 1 + round * 50..1 + (round + 1) * 50;
        let newer = fill(&mut archive, batch.clone());
        lives.extend(batch);
        // Most die soon, some late, few never.
        lives.retain(|live| live % 97 == 0 || live + 60 + (live % 13) * 40 > round * 50);
        archive.compact(&older, u64::MAX, &|sequence: Sequence| lives.contains(&sequence.get())).unwrap();
        older = newer;
        let found = read(&archive, 1);
        assert!(lives.iter().all(|live| found.contains(live)), "round {round}");
        let live: u64 = lives.iter().map(|live| record(*live).len() as u64 + 12).sum();
        let (used, headers) = (archive.disk_bytes(), archive.files.len() as u64 * FRAMES_AT);
        // What came since the older checkpoint is not touched.
        assert!(used - headers <= 2 * live + 2 * 50 * 212, "round {round}: {used} bytes, {live} live");
        assert!(archive.files.len() < 40, "round {round}: {} files", archive.files.len());
        assert_eq!(used, file_bytes(&disk));
    }
    let again = open_whole(&disk, archive.extent());
    assert_eq!(read(&again, 1), read(&archive, 1));
}

#[test]
fn small_files_of_many_restarts_are_put_together() {
    let disk = home();
    let mut extent = Extent::EMPTY;
    for sequence in 1..20 {
        extent = fill(&mut open_whole(&disk, extent), [sequence]);
    }
    assert_eq!(files(&disk), 19);
    let mut archive = open_whole(&disk, extent);
    archive.compact(&extent, u64::MAX, &|_: Sequence| true).unwrap();
    assert!(files(&disk) < 5, "{} files", files(&disk));
    assert_eq!(read(&archive, 1), (1..20).collect::<Vec<_>>());
    assert_eq!(read(&open_whole(&disk, extent), 1), (1..20).collect::<Vec<_>>());
}

#[test]
fn a_reader_under_way_is_told_when_its_files_are_gone_and_reads_what_took_their_place() {
    let disk = home();
    let mut archive = open_whole(&disk, Extent::EMPTY);
    let extent = fill(&mut archive, 1..200);
    let mut reader = archive.read_from(Sequence::FIRST);
    assert!(reader.next().is_some_and(|found| found.is_ok()));
    archive.compact(&extent, u64::MAX, &|sequence: Sequence| sequence.get().is_multiple_of(10)).unwrap();
    let mut found = Vec::new();
    let mut moved = 0;
    while let Some(next) = reader.next() {
        match next {
            Ok((sequence, bytes)) => {
                assert_eq!(bytes, record(sequence.get()));
                found.push(sequence.get());
            }
            Err(ReadError::Moved) => {
                moved += 1;
                let next = found.last().map_or(1, |last| last + 1);
                reader = archive.read_from(Sequence::new(next));
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert!(moved > 0 && found.is_sorted());
    assert!((1..20).all(|tens| found.contains(&(10 * tens))), "{found:?}");
}

#[test]
fn a_compaction_in_which_a_call_fails_loses_nothing_and_stands_in_nobodys_way() {
    for kind in [Fault::Fails, Fault::FailsAfter] {
        for at in 1.. {
            let disk = home();
            let faulty = FaultyDisk::new(Arc::new(disk.clone()), kind(io::ErrorKind::Other), at, Lasts::Once);
            let extent = fill(&mut open_whole(&disk, Extent::EMPTY), 1..100);
            let again = Arc::new(faulty.clone());
            let Ok((mut archive, _)) = Archive::open(again, Path::new(HOME), TOPIC_NUMBER, extent, SMALL)
            else {
                continue;
            };
            // First two, then two of which one is one of them.
            let firsts: Vec<u64> = archive.files.iter().map(|file| file.header.first.get()).collect();
            let few = |from: usize, to: usize| {
                let dead = firsts[from]..firsts[to];
                move |sequence: Sequence| !dead.contains(&sequence.get()) || sequence.get().is_multiple_of(10)
            };
            let _ = archive.compact(&extent, u64::MAX, &few(1, 3));
            // It goes on where it stopped, then begins again.
            let _ = archive.compact(&extent, u64::MAX, &few(2, 4));
            let _ = archive.compact(&extent, u64::MAX, &few(2, 4));
            let seen = archive.read_from(Sequence::FIRST).filter(|found| found.is_err()).count();
            assert!(seen == 0 || faulty.fired() == 1, "call {at}");
            let found = read(&open_whole(&disk, extent), 1);
            assert!((1..10).all(|tens| found.contains(&(10 * tens))), "{at}: {found:?}");
            assert!(
                found
                    .iter()
                    .filter(|sequence| **sequence >= firsts[4])
                    .eq(&(firsts[4]..100).collect::<Vec<_>>())
            );
            if faulty.fired() == 0 {
                assert!(at > 20);
                break;
            }
        }
    }
}

#[test]
fn a_reader_reads_what_was_put_under_the_same_name() {
    let disk = home();
    let mut archive = open_whole(&disk, Extent::EMPTY);
    let extent = fill(&mut archive, 1..200);
    // With an index of it, that leads nowhere in the new one.
    assert_eq!(read(&archive, 1).len(), 199);
    let (first, end) = (archive.files[1].header.first.get(), archive.files[2].header.first.get());
    let lives = |sequence: u64| sequence < first || sequence >= end || sequence == end - 1;
    let readers = [1, first, end - 1].map(|from| archive.read_from(Sequence::new(from)));
    let before = files(&disk);
    assert!(
        archive.compact(&extent, u64::MAX, &|sequence: Sequence| lives(sequence.get())).unwrap().freed > 0
    );
    assert_eq!(files(&disk), before);
    for (reader, from) in readers.into_iter().zip([1, first, end - 1]) {
        let found: Vec<u64> = reader.map(|found| found.unwrap().0.get()).collect();
        assert_eq!(found, (from..200).filter(|sequence| lives(*sequence)).collect::<Vec<_>>());
    }
}

#[test]
fn after_a_failed_sync_the_same_is_appended_again_to_another_file() {
    for failing in 1..4 {
        let disk = home();
        let mut archive = open_whole(&disk, Extent::EMPTY);
        let extent = fill(&mut archive, 1..15);
        archive.append(records(15..40)).unwrap();
        disk.lose_sync(disk.syncs() + failing);
        let sync = archive.sync();
        if failing == 1 {
            assert!(matches!(sync, Err(ArchiveError::Io { verb: "sync", .. })));
            assert_eq!(read(&archive, 1), (1..15).collect::<Vec<_>>(), "what may not be safe is not shown");
            assert_eq!(archive.extent(), extent);
            archive.append(records(15..40)).unwrap();
            archive.sync().unwrap();
        }
        let Ok(extent) = archive.sync() else { continue };
        disk.evict();
        for archive in [archive, open_whole(&disk, extent)] {
            assert_eq!(read(&archive, 1), (1..40).collect::<Vec<_>>());
        }
    }
}

#[test]
fn a_full_disk_changes_nothing_and_is_no_hindrance_later() {
    for full in [Full::Refuses, Full::WritesShort] {
        let disk = home();
        let mut archive = open_whole(&disk, Extent::EMPTY);
        let extent = fill(&mut archive, 1..15);
        for room in 0..20 {
            disk.set_capacity(disk.used() + room * 512, full);
            match archive.append(records(15..80)) {
                Err(ArchiveError::Io { error, .. }) => assert_eq!(error.kind(), io::ErrorKind::StorageFull),
                other => panic!("{other:?}"),
            }
            assert_eq!((archive.extent(), archive.sync().unwrap()), (extent, extent));
            assert_eq!(read(&archive, 1), (1..15).collect::<Vec<_>>());
        }
        disk.set_capacity(1 << 30, full);
        let extent = fill(&mut archive, 15..80);
        assert_eq!(read(&open_whole(&disk, extent), 1), (1..80).collect::<Vec<_>>());
    }
}

#[test]
fn a_deleted_topic_leaves_nothing_and_others_stay() {
    let disk = home();
    let extent = fill(&mut open_whole(&disk, Extent::EMPTY), 1..50);
    let other = Arc::new(disk.clone());
    let (mut other, _) = Archive::open(other, Path::new(HOME), 8, Extent::EMPTY, SMALL).unwrap();
    fill(&mut other, 1..50);
    assert_eq!(Archive::topics(&disk, Path::new(HOME)).unwrap(), [7, 8]);
    Archive::remove(&disk, Path::new(HOME), 8).unwrap();
    assert_eq!(Archive::topics(&disk.restart(&"-".parse().unwrap()), Path::new(HOME)).unwrap(), [7]);
    assert_eq!(disk.fork().list(Path::new(HOME)).unwrap().len(), 1);
    assert_eq!(read(&open_whole(&disk.fork(), extent), 1).len(), 49);
}
