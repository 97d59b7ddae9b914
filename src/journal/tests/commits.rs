use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use crate::sync::Mutex;
use crate::sync::thread;

#[test]
fn what_comes_with_the_units_is_given_back_once_and_in_order() {
    let disk = SimDisk::new();
    let journal = opened(&disk).journal;
    let mut acted = Vec::new();
    for number in 0..10 {
        journal.add(b"unit", Space::Ordinary, number).unwrap();
    }
    let syncs = disk.syncs();
    journal.commit(Position(4), &mut |number, fate| acted.push((number, fate))).unwrap();
    assert_eq!(acted, (0..10).map(|number| (number, Ok(()))).collect::<Vec<_>>());
    assert_eq!(disk.syncs(), syncs + 1, "one for all");
    journal.commit(Position(9), &mut |_, _| panic!("all were given")).unwrap();
    journal.sync_all(&mut |_, _| panic!("all were given")).unwrap();
    assert_eq!(disk.syncs(), syncs + 1);
}

#[test]
fn what_is_only_written_is_given_back_when_it_is_synced() {
    let disk = SimDisk::new();
    let journal = opened(&disk).journal;
    let lease = journal.add(b"lease", Space::Ordinary, 1).unwrap();
    let syncs = disk.syncs();
    journal.write(lease, &mut |_, _| panic!("not as safe as promised")).unwrap();
    assert_eq!(disk.syncs(), syncs);
    assert_eq!(opened(&disk.fork()).found.texts(), ["lease"], "it survives the process");
    let mut acted = Vec::new();
    let unit = journal.add(b"unit", Space::Ordinary, 2).unwrap();
    journal.commit(unit, &mut |number, _| acted.push(number)).unwrap();
    assert_eq!(acted, [1, 2]);

    let journal = open(&SimDisk::new(), JournalOptions { durability: Durability::Os, ..small() }).unwrap();
    let mut acted = Vec::new();
    let lease = journal.journal.add(b"lease", Space::Ordinary, 1).unwrap();
    journal.journal.write(lease, &mut |number, _| acted.push(number)).unwrap();
    assert_eq!(acted, [1], "nothing more was promised");
}

#[test]
fn what_is_to_be_synced_first_is_given_back_when_it_is_synced_whatever_is_promised() {
    let disk = SimDisk::new();
    let journal = open(&disk, JournalOptions { durability: Durability::Os, ..small() }).unwrap().journal;
    let mut acted = Vec::new();
    let syncs = disk.syncs();
    let unit = journal.add(b"unit", Space::Ordinary, 1).unwrap();
    journal.add_synced_first(b"first", Space::Ordinary, 2).unwrap();
    journal.commit(unit, &mut |number, fate| acted.push((number, fate.is_ok()))).unwrap();
    assert_eq!((&*acted, disk.syncs()), (&[(1, true), (2, true)][..], syncs + 1));
    let unit = journal.add(b"unit", Space::Ordinary, 3).unwrap();
    journal.commit(unit, &mut |number, fate| acted.push((number, fate.is_ok()))).unwrap();
    assert_eq!(disk.syncs(), syncs + 1, "that is as was promised");

    let first = journal.add_synced_first(b"lost", Space::Ordinary, 4).unwrap();
    disk.lose_sync(disk.syncs() + 1);
    let failed = journal.commit(first, &mut |number, fate| acted.push((number, fate.is_ok())));
    assert!(matches!(failed, Err(JournalError::Indeterminate(_))), "{failed:?}");
    assert!(matches!(journal.written(first), Some(Err(JournalError::Indeterminate(_)))));
    assert_eq!(acted[2..], [(3, true), (4, false)]);
}

#[test]
fn nothing_is_added_after_the_last() {
    let disk = SimDisk::new();
    let journal = opened(&disk).journal;
    journal.add(b"unit", Space::Ordinary, 0).unwrap();
    journal.add_last(b"last", 1);
    journal.add_last(b"none", 2);
    assert_eq!(journal.add(b"late", Space::Ordinary, 3), Err(JournalError::Closed));
    journal.close(&mut ignore).unwrap();
    drop(journal);
    assert_eq!(opened(&disk).found.texts(), ["unit", "last"]);
}

#[test]
fn a_sync_is_of_all_segments_and_a_checkpoint_begins_with_one() {
    use crate::journal::disk::sim::Tear;
    let end = |open: &Open, with_checkpoint: bool, list: &[String]| match with_checkpoint {
        true => open.checkpoint(list).unwrap(),
        false => open.journal.sync_all(&mut ignore).unwrap(),
    };
    for with_checkpoint in [false, true] {
        let disk = SimDisk::new();
        let journal = open(&disk, JournalOptions { durability: Durability::Os, ..small() }).unwrap();
        let list: Vec<String> = (0..6).map(|number| format!("{number}{}", "x".repeat(3000))).collect();
        list.iter().for_each(|entry| assert!(journal.put(entry).0 < 6));
        end(&journal, with_checkpoint, &list);
        let nothing_more = disk.cuts(1, 0, Tear::Never).remove(0);
        let disk = disk.restart(&nothing_more);
        if with_checkpoint {
            // So that what came before it can still be read without it.
            disk.damage(&format!("{DIR}/checkpoint-{:016x}", 6), 8192, 1);
        }
        assert_eq!(opened(&disk).found.texts(), list, "with a checkpoint: {with_checkpoint}");
    }
}

#[test]
fn a_checkpoint_counts_only_when_all_that_its_image_may_have_seen_is_safe() {
    use crate::journal::disk::sim::Tear;
    let disk = SimDisk::new();
    let journal = opened(&disk);
    journal.put("one");
    let end = journal.journal.end();
    // Added while the image is made, which may show it.
    let mut image = std::iter::from_fn({
        let mut is_first = true;
        let journal = &journal;
        move || std::mem::take(&mut is_first).then(|| journal.add("seen")).map(|_| b"one".to_vec())
    });
    journal.journal.checkpoint(end, &mut image, &mut ignore).unwrap();
    let nothing_more = disk.cuts(1, 0, Tear::Never).remove(0);
    assert_eq!(opened(&disk.restart(&nothing_more)).found.texts(), ["one", "seen"]);
}

#[test]
fn many_threads_share_syncs_and_nobody_is_forgotten() {
    let disk = SimDisk::new();
    let journal = opened(&disk);
    let acted = Mutex::new(Vec::new());
    let committed = AtomicU64::new(0);
    let (threads, units) = (16, 50);
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let (journal, acted, committed) = (&journal.journal, &acted, &committed);
            scope.spawn(move || {
                for number in 0..units {
                    let unit = format!("{thread}/{number}");
                    let position = journal.add(unit.as_bytes(), Space::Ordinary, thread).unwrap();
                    let mut act = |thread, fate: Result<(), JournalError>| {
                        fate.unwrap();
                        acted.lock().push(thread);
                        committed.fetch_add(1, Ordering::SeqCst);
                    };
                    if number % 7 == 3 {
                        journal.write(position, &mut act)
                    } else {
                        journal.commit(position, &mut act)
                    }
                    .unwrap();
                    assert!(number % 7 == 3 || committed.load(Ordering::SeqCst) > position.0);
                    thread::yield_now();
                }
            });
        }
    });
    journal.journal.sync_all(&mut |thread, _| acted.lock().push(thread)).unwrap();
    assert_eq!(acted.lock().len() as u64, threads * units);
    let found = opened(&disk.kill()).found;
    for thread in 0..threads {
        let own: Vec<String> =
            found.texts().into_iter().filter(|text| text.starts_with(&format!("{thread}/"))).collect();
        assert_eq!(own, (0..units).map(|number| format!("{thread}/{number}")).collect::<Vec<_>>());
    }
    // In the order of the units, whoever acted.
    let order: Vec<u64> =
        found.texts().iter().map(|text| text.split('/').next().unwrap().parse().unwrap()).collect();
    assert_eq!(*acted.lock(), order);
}

#[test]
fn a_failed_sync_is_told_to_all_and_nothing_more_is_accepted() {
    let disk = SimDisk::new();
    let journal = opened(&disk).journal;
    let mut acted = Vec::new();
    let first = journal.add(b"safe", Space::Ordinary, 0).unwrap();
    journal.commit(first, &mut |number, fate| acted.push((number, fate.is_ok()))).unwrap();
    for number in 1..4 {
        journal.add(b"lost", Space::Ordinary, number).unwrap();
    }
    disk.lose_sync(disk.syncs() + 1);
    let failed = journal.commit(Position(2), &mut |number, fate| {
        assert!(matches!(fate, Ok(()) | Err(JournalError::Indeterminate(_))), "{fate:?}");
        acted.push((number, fate.is_ok()));
    });
    assert!(matches!(failed, Err(JournalError::Indeterminate(_))), "{failed:?}");
    assert_eq!(acted, [(0, true), (1, false), (2, false), (3, false)]);
    // The next sync would say `Ok`. It is not asked.
    let syncs = disk.syncs();
    assert!(matches!(journal.add(b"more", Space::Ordinary, 4), Err(JournalError::Poisoned(_))));
    assert!(matches!(journal.sync_all(&mut |_, _| ()), Err(JournalError::Indeterminate(_))));
    assert!(matches!(journal.close(&mut |_, _| ()), Err(JournalError::Poisoned(_))));
    let image = journal.checkpoint(Position(1), &mut std::iter::empty(), &mut |_, _| ());
    assert!(matches!(image, Err(JournalError::Poisoned(_))));
    assert_eq!(journal.commit(Position(0), &mut |_, _| ()), Ok(()), "what is safe stays so");
    assert_eq!(disk.syncs(), syncs);
    assert!(journal.poisoned().is_some());
    drop(journal);
    // Recovery reads what only the page cache has, and must not serve it before it is really there.
    let found = opened(&disk).found;
    disk.evict();
    assert_eq!(opened(&disk).found.list, found.list);
}

#[test]
fn a_panic_in_what_is_done_for_a_unit_leaves_nobody_waiting() {
    let disk = SimDisk::new();
    let journal = opened(&disk).journal;
    let position = journal.add(b"unit", Space::Ordinary, 0).unwrap();
    let commit = || journal.commit(position, &mut |_, _| panic!("on purpose"));
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(commit)).is_err());
    assert!(matches!(journal.add(b"more", Space::Ordinary, 1), Err(JournalError::Poisoned(_))));
    assert!(journal.commit(position, &mut |_, _| ()).is_err());
    assert_eq!(opened(&disk.kill()).found.texts(), ["unit"]);
}
