use std::io;
use std::sync::Arc;

use super::*;
use crate::journal::disk::{Access, DiskFile};
use crate::journal::layout::{self, FileHeader, FileKind};

fn file(disk: &SimDisk, name: &str) -> Arc<dyn DiskFile> {
    disk.open(&Path::new(DIR).join(name), Access::Write).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn names(disk: &SimDisk) -> Vec<String> {
    disk.list(Path::new(DIR)).expect("the directory is there")
}

fn segments(disk: &SimDisk) -> Vec<String> {
    names(disk).into_iter().filter(|name| name.starts_with("segment-")).collect()
}

#[test]
fn what_was_committed_is_found_after_a_crash_of_the_process_and_after_the_next() {
    let disk = SimDisk::new();
    let journal = opened(&disk);
    assert_eq!(journal.recovery.end, Position(0));
    for entry in entries(0..50) {
        journal.put(&entry);
    }
    let disk = disk.kill();
    let again = opened(&disk);
    assert_eq!(again.found.texts(), entries(0..50));
    assert_eq!(again.found.positions, (0..50).collect::<Vec<_>>());
    assert_eq!(again.put("50"), Position(50));
    let disk = disk.kill();
    let third = opened(&disk);
    assert_eq!(third.found.texts().len(), 51);
    assert_eq!(third.recovery.rewritten, 0, "the watermark vouched for all of it");
    drop(third);
    assert_eq!(opened(&disk).found.texts().len(), 51);
}

#[test]
fn a_unit_is_as_safe_as_its_commit_says() {
    for (durability, after_a_power_cut) in [(Durability::Always, 3), (Durability::Os, 0)] {
        let disk = SimDisk::new();
        let journal = open(&disk, JournalOptions { durability, ..small() }).unwrap();
        for number in 0..3 {
            journal.put(&number.to_string());
        }
        let nothing_more = disk.cuts(1, 0, crate::journal::disk::sim::Tear::Never).remove(0);
        assert_eq!(opened(&disk.fork().restart(&nothing_more)).found.list.len(), after_a_power_cut);
        assert_eq!(opened(&disk.kill()).found.list.len(), 3, "{durability:?}");
    }
}

#[test]
fn a_closed_journal_has_nothing_to_finish_and_takes_nothing_more() {
    let disk = SimDisk::new();
    let journal = open(&disk, JournalOptions { durability: Durability::Os, ..small() }).unwrap();
    journal.put("written");
    journal.add("only added");
    journal.journal.close(&mut ignore).unwrap();
    assert_eq!(journal.journal.add(b"late", Space::Ordinary, 0), Err(JournalError::Closed));
    let nothing_more = disk.cuts(1, 0, crate::journal::disk::sim::Tear::Never).remove(0);
    let again = opened(&disk.restart(&nothing_more));
    assert_eq!(again.found.texts(), ["written", "only added"]);
    assert_eq!(again.recovery.rewritten, 0);
}

#[test]
fn a_checkpoint_stands_for_what_came_before_it_and_two_are_kept() {
    let disk = SimDisk::new();
    let journal = opened(&disk);
    let mut list = Vec::new();
    let mut most = 0;
    for round in 0..8 {
        assert!(!journal.journal.wants_checkpoint());
        while !journal.journal.wants_checkpoint() {
            let entry = format!("{}:{}", list.len(), "x".repeat(700));
            journal.put(&entry);
            list.push(entry);
        }
        journal.checkpoint(&list).unwrap();
        let checkpoints = names(&disk).iter().filter(|name| name.starts_with("checkpoint-")).count();
        assert_eq!(checkpoints, 2.min(round + 1));
        most = most.max(segments(&disk).len());
        assert!(journal.journal.disk_bytes() >= disk.used() / 2, "{}", journal.journal.disk_bytes());
    }
    assert!(most <= 5, "segments go: at most {most} at once");
    assert!(
        names(&disk).contains(&layout::SPARE.to_owned()),
        "one waits to be used again: {:?}",
        names(&disk)
    );
    journal.put("one more");
    list.push("one more".to_owned());
    let again = opened(&disk.kill());
    assert_eq!(again.found.texts(), list);
    assert_eq!(again.recovery.units, 1);
    assert_eq!(again.found.checkpoint, Some(Position(list.len() as u64 - 1)));
}

#[test]
fn a_segment_is_used_again_and_what_it_held_never_comes_back() {
    let disk = SimDisk::new();
    let journal = opened(&disk);
    let mut list = Vec::new();
    for round in 0..12 {
        // Frames of one length, so that those of an earlier life lie exactly where the next would be read.
        for _ in 0..40 {
            let entry = format!("{:04}:{:02}{}", list.len(), round, "x".repeat(700));
            journal.put(&entry);
            list.push(entry);
        }
        journal.checkpoint(&list).unwrap();
        let disk = disk.fork();
        assert_eq!(opened(&disk).found.texts(), list, "round {round}");
        assert_eq!(opened(&disk).found.texts(), list, "round {round}, again");
    }
    assert!(disk.trace(100_000).contains("spare"), "{}", disk.trace(100));
}

#[test]
fn opening_again_and_again_takes_no_more_and_more_space() {
    let disk = SimDisk::new();
    opened(&disk).put("one");
    let first = {
        opened(&disk);
        disk.used()
    };
    for _ in 0..20 {
        assert_eq!(opened(&disk).found.texts(), ["one"]);
    }
    assert!(disk.used() <= first, "{} and then {}", first, disk.used());
    assert!(segments(&disk).len() <= 2, "{:?}", segments(&disk));
}

#[test]
fn a_unit_larger_than_a_segment_has_one_of_its_own() {
    let disk = SimDisk::new();
    let journal = opened(&disk);
    let large = "l".repeat(200_000);
    for unit in ["before", &large, "after", &large, ""] {
        journal.put(unit);
    }
    assert_eq!(opened(&disk.kill()).found.texts(), ["before", &large, "after", &large, ""]);
}

#[test]
fn one_directory_is_open_once() {
    let disk = SimDisk::new();
    let journal = opened(&disk);
    assert!(matches!(open(&disk, small()), Err(JournalOpenError::AlreadyOpen)));
    drop(journal);
    opened(&disk);
}

#[test]
fn a_directory_that_holds_something_else_is_left_alone() {
    let disk = SimDisk::new();
    disk.create_dir(Path::new(DIR)).unwrap();
    disk.create(&Path::new(DIR).join("letters.txt")).unwrap();
    let refused = open(&disk, small());
    assert!(matches!(refused, Err(JournalOpenError::Foreign { name }) if name == "letters.txt"));
    assert_eq!(names(&disk), ["letters.txt"]);
    disk.remove(&Path::new(DIR).join("letters.txt")).unwrap();
    opened(&disk);
}

#[test]
fn a_directory_whose_parent_is_missing_is_not_made() {
    let disk = SimDisk::new();
    let missing = open_on(Arc::new(disk), Path::new("no/where"), small());
    assert!(matches!(missing, Err(JournalOpenError::Io { verb: "create", .. })));
}

#[test]
fn another_major_version_is_refused_untouched() {
    let disk = SimDisk::new();
    let journal = opened(&disk);
    journal.put("one");
    journal.checkpoint(&["one".to_owned()]).unwrap();
    drop(journal);
    let names = names(&disk);
    for (prefix, kind) in
        [("eventflow", FileKind::Mark), ("segment", FileKind::Segment), ("checkpoint", FileKind::Checkpoint)]
    {
        let disk = disk.fork();
        let name = names.iter().find(|name| name.starts_with(prefix)).unwrap();
        let file = file(&disk, name);
        let mut bytes = FileHeader::new(kind, 1).encode();
        bytes[8..10].copy_from_slice(&9_u16.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..124]);
        bytes[124..].copy_from_slice(&crc.to_le_bytes());
        file.write_at(&bytes, 0).unwrap();
        file.write_at(&bytes, layout::SECOND_COPY).unwrap();
        let before = disk.fingerprint();
        for on_damage in [OnDamage::Refuse, OnDamage::Continue] {
            match open(&disk, JournalOptions { on_damage, ..small() }) {
                Err(JournalOpenError::Version { file, major: 9 }) => assert_eq!(file, *name),
                other => panic!("{name}: {:?}", other.map(|open| open.found)),
            }
        }
        assert_eq!(disk.fingerprint(), before, "{name}");
    }
}

#[test]
fn who_cannot_use_what_is_replayed_stops_the_opening() {
    let disk = SimDisk::new();
    opened(&disk).put("one");
    let opened =
        Journal::<u64>::open(Arc::new(disk), Path::new(DIR), small(), &mut |replayed| match replayed {
            Replayed::Unit { .. } => Err("what is a one?".to_owned()),
            _ => Ok(()),
        });
    assert!(matches!(opened, Err(JournalOpenError::Rejected { reason }) if reason == "what is a one?"));
}

#[test]
fn on_the_real_disk_it_is_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let disk: Arc<dyn Disk> = Arc::new(crate::journal::disk::RealDisk);
    let path = dir.path().join("journal");
    let mut list = Vec::new();
    for round in 0..5_u64 {
        let journal = open_on(disk.clone(), &path, small()).unwrap();
        assert_eq!(journal.found.texts(), list);
        assert!(matches!(open_on(disk.clone(), &path, small()), Err(JournalOpenError::AlreadyOpen)));
        for entry in entries(round * 100..round * 100 + 100) {
            journal.put(&entry);
            list.push(entry);
        }
        journal.checkpoint(&list).unwrap();
        if round % 2 == 0 {
            journal.journal.close(&mut ignore).unwrap();
        }
    }
    let gone = std::fs::remove_file(path.join("eventflow"));
    assert!(gone.is_ok());
    assert!(
        matches!(open_on(disk, &path, small()), Err(JournalOpenError::Damaged(damage)) if damage.file == "eventflow")
    );
    let _: io::Result<()> = gone;
}
