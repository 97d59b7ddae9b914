use super::*;
use crate::journal::disk::sim::Full;

/// Fills the disk up to where nothing ordinary fits. What fitted.
fn fill(journal: &Open) -> Vec<String> {
    let mut list = Vec::new();
    loop {
        let entry = format!("{}:{}", list.len(), "x".repeat(400));
        let position = journal.add(&entry);
        match journal.journal.commit(position, &mut ignore) {
            Ok(()) => list.push(entry),
            Err(JournalError::NoSpace) => return list,
            Err(error) => panic!("{error}"),
        }
        assert!(list.len() < 10_000, "a full disk is noticed");
    }
}

#[test]
fn a_full_disk_refuses_what_takes_space_takes_what_frees_it_and_recovers() {
    for full in [Full::Refuses, Full::WritesShort] {
        let disk = SimDisk::new();
        let journal = opened(&disk);
        disk.set_capacity(disk.used() + 40_000, full);
        let mut list = fill(&journal);
        assert!(journal.journal.poisoned().is_none());
        let mut acted = Vec::new();
        for number in 0..8 {
            let space = if number % 3 == 1 { Space::Reserve } else { Space::Ordinary };
            let unit = format!("reserve {number}{}", "x".repeat(300));
            journal.journal.add(unit.as_bytes(), space, number).unwrap();
            list.extend((space == Space::Reserve).then_some(unit));
        }
        let end = journal.journal.end().0;
        let first = journal.journal.commit(Position(end - 8), &mut |number, fate| acted.push((number, fate)));
        assert_eq!(first, Err(JournalError::NoSpace));
        assert_eq!(journal.journal.commit(Position(end - 7), &mut ignore), Ok(()));
        assert_eq!(journal.journal.commit(Position(end - 1), &mut ignore), Ok(()));
        let fate = |number| if number % 3 == 1 { Ok(()) } else { Err(JournalError::NoSpace) };
        assert_eq!(acted, (0..8).map(|number| (number, fate(number))).collect::<Vec<_>>());
        let still_full = open(&disk.fork(), small());
        if let Err(error) = &still_full {
            assert!(matches!(error, JournalOpenError::Io { .. }), "{error}");
        }

        disk.set_capacity(1 << 30, full);
        assert_eq!(journal.put("there is space again"), Position(end), "no position is given twice");
        list.push("there is space again".to_owned());
        let again = opened(&disk.kill());
        assert_eq!(again.found.texts(), list);
        assert_eq!(again.recovery.end, Position(end + 1));
        assert_eq!(again.found.lost, []);
    }
}

#[test]
fn positions_that_were_refused_are_not_taken_for_lost_ones() {
    let disk = SimDisk::new();
    let journal = opened(&disk);
    journal.checkpoint(&[]).unwrap();
    disk.set_capacity(disk.used(), Full::Refuses);
    let mut list = fill(&journal);
    disk.set_capacity(1 << 30, Full::Refuses);
    journal.checkpoint(&list).unwrap();
    // After a checkpoint, and then a restart, at a position that no frame has.
    for round in 0..3 {
        let disk = disk.fork();
        let name = format!("{DIR}/checkpoint-{:016x}", journal.journal.end().0);
        disk.damage(&name, 8192, 1);
        assert_eq!(opened(&disk).found.texts(), list, "round {round}");
        if round == 1 {
            opened(&disk).put("more");
            list.push("more".to_owned());
            assert_eq!(opened(&disk).found.texts(), list);
            list.pop();
        }
    }
    let end = journal.journal.end();
    drop(journal);
    let again = opened(&disk);
    assert_eq!((again.recovery.end, again.recovery.units), (end, 0));
    drop(again);
    disk.damage(&format!("{DIR}/checkpoint-{:016x}", end.0), 8192, 1);
    assert_eq!(opened(&disk).found.texts(), list, "after a restart with it");
}

#[test]
fn a_checkpoint_that_finds_no_space_changes_nothing() {
    let disk = SimDisk::new();
    let journal = opened(&disk);
    journal.put("one");
    disk.set_capacity(disk.used() + 2_000, Full::WritesShort);
    let used = disk.used();
    let large = ["x".repeat(100_000)];
    assert_eq!(journal.checkpoint(&large), Err(JournalError::NoSpace));
    assert_eq!(disk.used(), used);
    journal.put("two");
    disk.set_capacity(1 << 30, Full::WritesShort);
    journal.checkpoint(&["one".to_owned(), "two".to_owned()]).unwrap();
    assert_eq!(opened(&disk.kill()).found.texts(), ["one", "two"]);
}
