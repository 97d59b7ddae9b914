//! The disks do the same, and the simulated one loses what may be lost and nothing else.

use std::env;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use proptest::prelude::*;

use super::sim::{Cut, Full, SimDisk, Tear};
use super::{Access, Disk, DiskFile, RealDisk};

/// A directory of its own in the machine's place for temporary files, gone when it is dropped.
#[derive(Debug)]
pub(crate) struct TempDir(PathBuf);

impl TempDir {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = env::temp_dir().join(format!("eventflow-disk-{}-{number}", process::id()));
        fs::create_dir(&path).expect("the machine has room for temporary files");
        TempDir(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// On the real disk, in a directory of its own, and on the simulated one.
fn on_both(test: impl Fn(&dyn Disk, &Path)) {
    let dir = TempDir::new();
    test(&RealDisk, dir.path());
    let disk = SimDisk::new();
    disk.create_dir(Path::new("/home")).expect("a new disk has room");
    test(&disk, Path::new("/home"));
}

fn read(file: &dyn DiskFile) -> Vec<u8> {
    let mut bytes = vec![0; file.len().expect("an open file has a length") as usize];
    assert_eq!(file.read_at(&mut bytes, 0).expect("an open file can be read"), bytes.len());
    bytes
}

fn kind<T: std::fmt::Debug>(result: io::Result<T>) -> io::ErrorKind {
    result.expect_err("it cannot be done").kind()
}

#[test]
fn files_are_written_read_grown_and_cut() -> io::Result<()> {
    on_both(|disk, home| {
        let file = disk.create(&home.join("a")).unwrap();
        assert_eq!(file.len().unwrap(), 0);
        assert_eq!(file.write_at(b"hello", 510).unwrap(), 5);
        assert_eq!(file.len().unwrap(), 515);
        assert_eq!(read(&*file), [vec![0; 510], b"hello".to_vec()].concat());
        file.set_len(513).unwrap();
        file.set_len(514).unwrap();
        assert_eq!(&read(&*file)[509..], b"\0hel\0");
        file.set_len(512).unwrap();
        file.set_len(514).unwrap();
        assert_eq!(&read(&*file)[509..], b"\0he\0\0");
        let mut buffer = [7; 8];
        assert_eq!(file.read_at(&mut buffer, 514).unwrap(), 0);
        assert_eq!(file.read_at(&mut buffer, 9_000).unwrap(), 0);
        assert_eq!(file.read_at(&mut buffer, 511).unwrap(), 3);
        assert_eq!(&buffer[..4], b"e\0\0\x07");
        file.sync().unwrap();
        let reader = disk.open(&home.join("a"), Access::Read).unwrap();
        assert_eq!(read(&*reader), read(&*file));
        assert!(reader.write_at(b"x", 0).is_err());
        let writer = disk.open(&home.join("a"), Access::Write).unwrap();
        assert_eq!(writer.write_at(b"", 9_000).unwrap(), 0);
        writer.write_at(b"x", 0).unwrap();
        assert_eq!(read(&*reader)[0], b'x');
    });
    Ok(())
}

#[test]
fn names_are_made_listed_renamed_and_removed() {
    on_both(|disk, home| {
        disk.create_dir(&home.join("d")).unwrap();
        disk.create_dir(&home.join("d")).unwrap();
        assert_eq!(kind(disk.create_dir(&home.join("none/d"))), io::ErrorKind::NotFound);
        for name in ["b", "a", "d/c"] {
            disk.create(&home.join(name)).unwrap().write_at(name.as_bytes(), 0).unwrap();
        }
        assert_eq!(disk.list(home).unwrap(), ["a", "b", "d"]);
        assert_eq!(disk.list(&home.join("d")).unwrap(), ["c"]);
        assert_eq!(kind(disk.list(&home.join("none"))), io::ErrorKind::NotFound);
        assert_eq!(kind(disk.create(&home.join("a"))), io::ErrorKind::AlreadyExists);
        assert_eq!(kind(disk.create_dir(&home.join("a"))), io::ErrorKind::AlreadyExists);
        assert_eq!(kind(disk.create(&home.join("none/a"))), io::ErrorKind::NotFound);
        assert_eq!(kind(disk.open(&home.join("none"), Access::Write)), io::ErrorKind::NotFound);
        assert_eq!(kind(disk.open(&home.join("d"), Access::Read)), io::ErrorKind::InvalidInput);

        let open = disk.open(&home.join("a"), Access::Write).unwrap();
        disk.rename(&home.join("a"), &home.join("b")).unwrap();
        assert_eq!(read(&*disk.open(&home.join("b"), Access::Read).unwrap()), b"a");
        assert_eq!(kind(disk.rename(&home.join("a"), &home.join("c"))), io::ErrorKind::NotFound);
        disk.rename(&home.join("b"), &home.join("d/e")).unwrap();
        open.write_at(b"A", 0).unwrap();
        assert_eq!(read(&*disk.open(&home.join("d/e"), Access::Read).unwrap()), b"A");
        disk.sync_dir(home).unwrap();
        assert_eq!(kind(disk.remove(&home.join("b"))), io::ErrorKind::NotFound);
        disk.remove(&home.join("d/c")).unwrap();
        assert_eq!(disk.list(&home.join("d")).unwrap(), ["e"]);
        disk.remove_dir(&home.join("d")).unwrap();
        assert_eq!(disk.list(home).unwrap(), [""; 0]);
        assert_eq!(kind(disk.remove_dir(&home.join("d"))), io::ErrorKind::NotFound);
    });
}

#[test]
fn a_lock_is_held_once_and_ends_with_its_guard() {
    on_both(|disk, home| {
        let path = home.join("lock");
        let lock = disk.lock(&path).unwrap();
        assert!(lock.is_some());
        assert!(disk.lock(&path).unwrap().is_none());
        // The refused one has not let go of what is not its own.
        assert!(disk.lock(&path).unwrap().is_none());
        assert!(disk.lock(&home.join("other")).unwrap().is_some());
        drop(lock);
        assert!(disk.lock(&path).unwrap().is_some());
        assert!(kind(disk.lock(&home.join("none/lock"))) == io::ErrorKind::NotFound);
    });
}

#[cfg(unix)]
#[test]
fn a_lock_is_one_under_all_paths_of_its_file() {
    let dir = TempDir::new();
    let real = dir.path().join("real");
    fs::create_dir(&real).unwrap();
    std::os::unix::fs::symlink(&real, dir.path().join("link")).unwrap();
    let lock = RealDisk.lock(&real.join("lock")).unwrap();
    assert!(lock.is_some());
    assert!(RealDisk.lock(&dir.path().join("link/lock")).unwrap().is_none());
    // Another name of the same file: the file system's own lock says so.
    fs::hard_link(real.join("lock"), dir.path().join("hard")).unwrap();
    assert!(RealDisk.lock(&dir.path().join("hard")).unwrap().is_none());
    drop(lock);
    assert!(RealDisk.lock(&dir.path().join("hard")).unwrap().is_some());
}

#[cfg(unix)]
#[test]
fn a_pipe_in_the_place_of_a_file_is_refused_and_not_waited_for() {
    let dir = TempDir::new();
    let pipe = dir.path().join("pipe");
    let made = process::Command::new("mkfifo").arg(&pipe).status();
    if made.is_ok_and(|status| status.success()) {
        assert_eq!(kind(RealDisk.open(&pipe, Access::Read)), io::ErrorKind::InvalidInput);
        assert_eq!(kind(RealDisk.open(&pipe, Access::Write)), io::ErrorKind::InvalidInput);
    }
}

/// One call, on one of few files in one of few directories.
#[derive(Clone, Debug)]
enum Op {
    Mkdir(u8),
    Create(u8, u8),
    Write(u8, u8, u16, u16),
    SetLen(u8, u8, u16),
    Rename((u8, u8), (u8, u8)),
    Remove(u8, u8),
    RemoveDir(u8),
    SyncDir(u8),
    Sync(u8, u8),
}

fn op() -> impl Strategy<Value = Op> {
    let (dir, name) = (0_u8..3, 0_u8..3);
    let file = (dir.clone(), name);
    prop_oneof![
        dir.clone().prop_map(Op::Mkdir),
        file.clone().prop_map(|(dir, name)| Op::Create(dir, name)),
        (file.clone(), 0_u16..2_000, 0_u16..1_500)
            .prop_map(|((dir, name), at, len)| Op::Write(dir, name, at, len)),
        (file.clone(), 0_u16..2_500).prop_map(|((dir, name), len)| Op::SetLen(dir, name, len)),
        (file.clone(), file.clone()).prop_map(|(from, to)| Op::Rename(from, to)),
        file.clone().prop_map(|(dir, name)| Op::Remove(dir, name)),
        dir.clone().prop_map(Op::RemoveDir),
        dir.prop_map(Op::SyncDir),
        file.prop_map(|(dir, name)| Op::Sync(dir, name)),
    ]
}

/// The directory 0 is the home itself.
fn dir(home: &Path, number: u8) -> PathBuf {
    if number == 0 { home.to_owned() } else { home.join(format!("d{number}")) }
}

fn act(disk: &dyn Disk, home: &Path, op: &Op) -> Result<(), io::ErrorKind> {
    let file = |number: u8, name: u8| dir(home, number).join(format!("f{name}"));
    let open = |number, name| disk.open(&file(number, name), Access::Write);
    let result = match *op {
        Op::Mkdir(number) => disk.create_dir(&dir(home, number)),
        Op::Create(number, name) => disk.create(&file(number, name)).map(drop),
        Op::Write(number, name, at, len) => {
            let bytes: Vec<u8> = (0..len).map(|byte| (byte ^ at) as u8).collect();
            open(number, name).and_then(|file| file.write_at(&bytes, u64::from(at))).map(drop)
        }
        Op::SetLen(number, name, len) => open(number, name).and_then(|file| file.set_len(u64::from(len))),
        Op::Rename(from, to) => disk.rename(&file(from.0, from.1), &file(to.0, to.1)),
        Op::Remove(number, name) => disk.remove(&file(number, name)),
        Op::RemoveDir(0) => Ok(()),
        Op::RemoveDir(number) => disk.remove_dir(&dir(home, number)),
        Op::SyncDir(number) => disk.sync_dir(&dir(home, number)),
        Op::Sync(number, name) => open(number, name).and_then(|file| file.sync()),
    };
    result.map_err(|error| error.kind())
}

/// All there is below a directory.
fn tree(disk: &dyn Disk, home: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for number in 0..3 {
        for name in disk.list(&dir(home, number)).unwrap_or_default() {
            let path = dir(Path::new(""), number).join(&name);
            let file = disk.open(&home.join(&path), Access::Read);
            found.push((path, file.map_or(Vec::new(), |file| read(&*file))));
        }
    }
    found
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn both_disks_answer_every_call_the_same(ops in prop::collection::vec(op(), 1..40)) {
        let temp = TempDir::new();
        let (sim, home) = (SimDisk::new(), Path::new("home"));
        sim.create_dir(home).unwrap();
        for (at, op) in ops.iter().enumerate() {
            prop_assert_eq!(act(&sim, home, op), act(&RealDisk, temp.path(), op), "call {} of {:?}", at, &ops);
            prop_assert_eq!(tree(&sim, home), tree(&RealDisk, temp.path()), "after call {} of {:?}", at, &ops);
        }
    }

    #[test]
    fn what_is_synced_survives_every_power_cut(ops in prop::collection::vec(op(), 1..30), seed: u64) {
        let (sim, home) = (SimDisk::new(), Path::new("home"));
        sim.create_dir(home).unwrap();
        for op in &ops {
            let _ = act(&sim, home, op);
        }
        for path in tree(&sim, home).into_iter().map(|(path, _)| home.join(path)) {
            if let Ok(file) = sim.open(&path, Access::Read) {
                file.sync().unwrap();
            }
        }
        for dir in [Path::new(""), home, &dir(home, 1), &dir(home, 2)] {
            let _ = sim.sync_dir(dir);
        }
        let whole = tree(&sim, home);
        for cut in sim.cuts(20, seed, Tear::Garbage) {
            prop_assert_eq!(tree(&sim.fork().restart(&cut), home), whole.clone(), "{} after {:?}", cut, &ops);
        }
    }

    #[test]
    fn a_power_cut_at_any_time_is_found_the_same_again(ops in prop::collection::vec(op(), 1..30), seed: u64) {
        let (sim, home) = (SimDisk::new(), Path::new("home"));
        sim.create_dir(home).unwrap();
        sim.sync_dir(Path::new("/")).unwrap();
        for op in &ops {
            let _ = act(&sim, home, op);
        }
        for cut in sim.cuts(20, seed, Tear::Mixes) {
            let found = sim.fork().restart(&cut);
            let written: Cut = cut.to_string().parse().unwrap();
            prop_assert_eq!(sim.fork().restart(&written).fingerprint(), found.fingerprint());
            prop_assert_eq!(found.cuts(20, seed, Tear::Mixes).len(), 1, "nothing is unsure after a restart");
            prop_assert_eq!(tree(&found, home), tree(&found.fork().restart(&Cut::default()), home));
        }
    }
}

/// The different disks that a power cut may leave.
fn found(disk: &SimDisk, look: impl Fn(&SimDisk) -> String) -> Vec<String> {
    let mut found: Vec<String> =
        disk.cuts(10_000, 1, Tear::Never).iter().map(|cut| look(&disk.fork().restart(cut))).collect();
    found.sort();
    found.dedup();
    found
}

/// The files and the first letters of their sectors.
fn letters(disk: &SimDisk) -> String {
    let files = disk.list(Path::new("/")).unwrap().into_iter().map(|name| {
        let bytes = read(&*disk.open(Path::new(&name), Access::Read).unwrap());
        let letters: String =
            bytes.chunks(512).map(|sector| if sector[0] == 0 { '.' } else { sector[0] as char }).collect();
        format!("{name}={letters}")
    });
    files.collect::<Vec<_>>().join(" ")
}

fn safe_file(disk: &SimDisk, name: &str, letters: &str) -> Arc<dyn DiskFile> {
    let file = disk.create(Path::new(name)).unwrap();
    write(&*file, 0, letters);
    file.sync().unwrap();
    disk.sync_dir(Path::new("/")).unwrap();
    file
}

fn write(file: &dyn DiskFile, sector: u64, letters: &str) {
    for (at, letter) in letters.bytes().enumerate() {
        file.write_at(&[letter; 512], (sector + at as u64) * 512).unwrap();
    }
}

#[test]
fn every_subset_of_unsynced_sectors_may_be_lost() {
    let disk = SimDisk::new();
    let file = safe_file(&disk, "a", "abc");
    write(&*file, 0, "AB");
    assert_eq!(found(&disk, letters), ["a=ABc", "a=Abc", "a=aBc", "a=abc"]);
    write(&*file, 0, "x");
    assert_eq!(found(&disk, letters), ["a=ABc", "a=Abc", "a=aBc", "a=abc", "a=xBc", "a=xbc"]);
    file.sync().unwrap();
    assert_eq!(found(&disk, letters), ["a=xBc"]);
}

#[test]
fn a_grown_file_may_have_its_length_and_not_its_bytes() {
    let disk = SimDisk::new();
    let file = safe_file(&disk, "a", "a");
    write(&*file, 1, "b");
    assert_eq!(found(&disk, letters), ["a=a", "a=a.", "a=ab"]);
    file.set_len(512).unwrap();
    assert_eq!(found(&disk, letters), ["a=a", "a=a.", "a=ab"]);
    file.sync().unwrap();
    assert_eq!(found(&disk, letters), ["a=a"]);
}

#[test]
fn what_is_behind_the_length_that_is_found_reads_as_zeros_when_the_file_grows_again() {
    let disk = SimDisk::new();
    let file = disk.create(Path::new("a")).unwrap();
    disk.sync_dir(Path::new("/")).unwrap();
    file.write_at(&[b'a'; 100], 0).unwrap();
    file.sync().unwrap();
    file.write_at(&[b'b'; 100], 100).unwrap();
    let grown = found(&disk, |disk| {
        let file = disk.open(Path::new("a"), Access::Write).unwrap();
        let len = file.len().unwrap();
        file.set_len(200).unwrap();
        format!("{len}{}", read(&*file)[100] as char)
    });
    assert_eq!(grown, ["100\0", "200\0", "200b"]);
}

#[test]
fn a_name_is_there_when_its_directory_was_synced() {
    let disk = SimDisk::new();
    let file = disk.create(Path::new("a")).unwrap();
    write(&*file, 0, "a");
    file.sync().unwrap();
    assert_eq!(found(&disk, letters), ["", "a=a"]);
    disk.sync_dir(Path::new("/")).unwrap();
    assert_eq!(found(&disk, letters), ["a=a"]);
    disk.remove(Path::new("a")).unwrap();
    assert_eq!(found(&disk, letters), ["", "a=a"]);
    disk.sync_dir(Path::new("/")).unwrap();
    assert_eq!(found(&disk, letters), [""]);
}

#[test]
fn a_rename_is_all_or_nothing() {
    let disk = SimDisk::new();
    safe_file(&disk, "a", "a");
    safe_file(&disk, "b", "b");
    disk.rename(Path::new("a"), Path::new("b")).unwrap();
    assert_eq!(found(&disk, letters), ["a=a b=b", "b=a"]);
    // A new file under the old name stands on the rename, or the renamed one would be nowhere.
    disk.create(Path::new("a")).unwrap();
    assert_eq!(found(&disk, letters), ["a= b=a", "a=a b=b", "b=a"]);
    disk.sync_dir(Path::new("/")).unwrap();
    assert_eq!(found(&disk, letters), ["a= b=a"]);
}

#[test]
fn a_new_file_under_its_final_name_may_be_nowhere_or_there() {
    let disk = SimDisk::new();
    safe_file(&disk, "b", "b");
    let aside = disk.create(Path::new("aside")).unwrap();
    write(&*aside, 0, "n");
    aside.sync().unwrap();
    disk.rename(Path::new("aside"), Path::new("b")).unwrap();
    assert_eq!(found(&disk, letters), ["aside=n b=b", "b=b", "b=n"]);
}

#[test]
fn a_removed_directory_may_be_found_in_part_and_a_new_one_is_empty() {
    let disk = SimDisk::new();
    let root = Path::new("/");
    let list = |disk: &SimDisk| disk.list(Path::new("d")).map_or("none".to_owned(), |names| names.join(" "));
    disk.create_dir(Path::new("d")).unwrap();
    for name in ["d/a", "d/b"] {
        disk.create(Path::new(name)).unwrap();
    }
    disk.sync_dir(Path::new("d")).unwrap();
    assert_eq!(found(&disk, list), ["a b", "none"], "names in a directory that has none");
    disk.sync_dir(root).unwrap();
    disk.remove_dir(Path::new("d")).unwrap();
    assert_eq!(found(&disk, list), ["", "a", "a b", "b", "none"]);
    disk.create_dir(Path::new("d")).unwrap();
    disk.sync_dir(root).unwrap();
    assert_eq!(found(&disk, list), [""]);
}

#[test]
fn a_failed_sync_lies_until_the_cache_is_evicted() {
    let disk = SimDisk::new();
    let file = safe_file(&disk, "a", "a");
    write(&*file, 0, "b");
    disk.lose_sync(2);
    assert!(file.sync().is_err());
    assert!(file.sync().is_ok());
    assert_eq!(letters(&disk), "a=b");
    assert_eq!(letters(&disk.fork()), "a=b", "another process reads the same cache");
    assert_eq!(found(&disk, letters), ["a=a"], "nothing of it is on the disk, or on its way there");
    disk.evict();
    assert_eq!(letters(&disk), "a=a");
    write(&*file, 0, "b");
    file.sync().unwrap();
    assert_eq!(found(&disk, letters), ["a=b"]);
}

#[test]
fn rewriting_the_same_bytes_after_a_lost_write_back_saves_them() {
    let disk = SimDisk::new();
    let file = safe_file(&disk, "a", "a");
    write(&*file, 0, "b");
    disk.lose_sync(2);
    assert!(file.sync().is_err());
    write(&*file, 0, "b");
    assert_eq!(found(&disk, letters), ["a=a", "a=b"]);
    file.sync().unwrap();
    assert_eq!(found(&disk, letters), ["a=b"]);
}

#[test]
fn the_disk_goes_down_in_the_chosen_call_and_stays_down() {
    let disk = SimDisk::new();
    let file = safe_file(&disk, "a", "a");
    let before = disk.changes();
    disk.stop_at(before + 2);
    file.write_at(b"b", 0).unwrap();
    assert!(file.write_at(b"c", 512).is_err(), "the call under way has no answer");
    assert!(disk.is_down());
    assert!(file.len().is_err());
    assert!(disk.list(Path::new("/")).is_err());
    assert_eq!(disk.changes(), before + 2);
    assert_eq!(letters(&disk.kill()), "a=bc");
    assert_eq!(found(&disk, letters), ["a=a", "a=a.", "a=ac", "a=b", "a=b.", "a=bc"]);
    // In a sync, it is not known what was safe.
    let disk = SimDisk::new();
    let file = disk.create(Path::new("a")).unwrap();
    file.write_at(b"b", 0).unwrap();
    disk.sync_dir(Path::new("/")).unwrap();
    disk.stop_at(disk.changes() + 1);
    assert!(file.sync().is_err());
    assert_eq!(found(&disk, letters), ["a=", "a=.", "a=b"]);
}

#[test]
fn a_torn_sector_is_neither_the_old_nor_the_new_one() {
    for (tear, least) in [(Tear::Mixes, b"abbb"), (Tear::Garbage, b"abbb")] {
        let disk = SimDisk::new();
        let file = safe_file(&disk, "a", "a");
        file.write_at(&[b'b'; 100], 412).unwrap();
        let found: Vec<Vec<u8>> = (disk.cuts(10, 1, tear).iter())
            .map(|cut| read(&*disk.fork().restart(cut).open(Path::new("a"), Access::Read).unwrap()))
            .collect();
        assert_eq!(found.len(), 3, "{tear:?} {least:?}");
        let [old, new, torn] = &found[..] else { panic!("three ways") };
        assert!(old.iter().all(|byte| *byte == b'a') && new[412..].iter().all(|byte| *byte == b'b'));
        assert!(torn != old && torn != new);
        assert_eq!(tear == Tear::Mixes, torn[..412] == old[..412], "a mix leaves alone what was not written");
    }
}

#[test]
fn many_ways_are_sampled_by_the_seed_and_the_extreme_ones_are_among_them() {
    let disk = SimDisk::new();
    let file = safe_file(&disk, "a", &"a".repeat(40));
    write(&*file, 0, &"b".repeat(40));
    let cuts = disk.cuts(100, 7, Tear::Never);
    assert_eq!(cuts, disk.cuts(100, 7, Tear::Never));
    assert_ne!(cuts, disk.cuts(100, 8, Tear::Never));
    assert_eq!(cuts.len(), 100);
    let found: Vec<String> = cuts.iter().map(|cut| letters(&disk.fork().restart(cut))).collect();
    for (letter, count) in [('a', 40), ('b', 40), ('a', 39), ('b', 39)] {
        assert!(found.iter().any(|found| found[2..].matches(letter).count() == count), "{count} of {letter}");
    }
}

#[test]
fn a_full_disk_refuses_or_writes_short_and_takes_more_when_there_is_room() {
    for full in [Full::Refuses, Full::WritesShort] {
        let disk = SimDisk::new();
        let file = safe_file(&disk, "a", "aa");
        safe_file(&disk, "b", "b");
        disk.set_capacity(4 * 512, full);
        let written = file.write_at(&[b'c'; 1024], 1000);
        match full {
            Full::Refuses => assert_eq!(kind(written), io::ErrorKind::StorageFull),
            Full::WritesShort => assert_eq!(written.unwrap(), 536),
        }
        if full == Full::WritesShort {
            assert_eq!(kind(file.write_at(b"c", 1536)), io::ErrorKind::StorageFull);
        }
        assert_eq!(file.write_at(b"c", 0).unwrap(), 1, "what has its room already");
        disk.remove(Path::new("b")).unwrap();
        assert_eq!(file.write_at(b"cc", 1535).unwrap(), 2);
    }
}
