//! Bytes that are not what was written: never given, never passed over in silence, and no more is lost than they hold.

use super::*;
use crate::journal::disk::Access;
use crate::journal::disk::faulty::{Fault, FaultyDisk, Lasts};
use crate::journal::frame::{FrameHeader, padded};

/// What reading gives: the sequences, and the reports.
fn read_all(archive: &Archive) -> (Vec<u64>, Vec<Damage>) {
    let (mut found, mut damages) = (Vec::new(), Vec::new());
    for next in archive.read_from(Sequence::FIRST) {
        match next {
            Ok((sequence, bytes)) => {
                assert_eq!(bytes, record(sequence.get()), "{sequence:?}");
                found.push(sequence.get());
            }
            Err(ReadError::Damaged(damage)) => damages.push(damage),
            Err(error) => panic!("{error}"),
        }
    }
    (found, damages)
}

/// What is not found is in the ranges of the reports. Gives how many are not.
fn nothing_is_lost_in_silence(found: &[u64], damages: &[Damage], place: &str) -> usize {
    let lost = (1..40).filter(|sequence| !found.contains(sequence));
    let lost: Vec<u64> = lost.collect();
    for sequence in &lost {
        assert!(
            damages.iter().any(|damage| damage.units.contains(sequence)),
            "{place}: {sequence} is gone, and {damages:?}"
        );
    }
    assert!(found.is_sorted(), "{place}: {found:?}");
    lost.len()
}

const COMPACTED: &str = "file-0000000000000000-0000000000000003";

/// A file that was compacted from some, some that were filled, and a last one that was not, with one record a frame.
fn store() -> (SimDisk, Extent) {
    let disk = home();
    let mut archive = open_whole(&disk, Extent::EMPTY);
    archive.file_len = FRAMES_AT + 1_000;
    for sequence in 1..40 {
        archive.append(records([sequence])).unwrap();
        archive.sync().unwrap();
    }
    let extent = archive.extent();
    archive.file_len = FRAMES_AT + 3_000;
    let before = files(&disk);
    archive.compact(&Extent { end: 5, ..extent }, u64::MAX, &|_: Sequence| true).unwrap();
    assert!(files(&disk) < before && files(&disk) > 3 && read(&archive, 1).len() == 39);
    disk.sync_dir(&Path::new(HOME).join(folder_name(TOPIC_NUMBER))).unwrap();
    (disk.restart(&"-".parse().unwrap()), extent)
}

#[test]
fn every_flipped_bit_costs_one_frame_at_most_and_is_told() {
    let (disk, extent) = store();
    let dir = Path::new(HOME).join(folder_name(TOPIC_NUMBER));
    let (mut flips, mut told, mut lost) = (0, 0, 0);
    for name in disk.list(&dir).unwrap() {
        let len = disk.open(&dir.join(&name), Access::Read).unwrap().len().unwrap();
        for offset in (0..200).chain(4090..4300).chain(FRAMES_AT..len) {
            for mask in [1, 0x80] {
                let disk = disk.fork();
                disk.damage(dir.join(&name).to_str().unwrap(), offset, mask);
                let (archive, at_open) = open(&disk, extent);
                let (found, damages) = read_all(&archive);
                let place = format!("{name} {offset} {mask:#x}");
                assert_eq!(at_open, [], "{place}: the other copy serves");
                let gone = nothing_is_lost_in_silence(&found, &damages, &place);
                // What was put together lies in one frame.
                let most = if name == COMPACTED { 19 } else { 1 };
                assert!(gone <= most, "{place}: {gone} records");
                flips += 1;
                told += u64::from(!damages.is_empty());
                lost += gone;
            }
        }
    }
    println!("{flips} flips, {told} told, {lost} records gone, none in silence");
    assert!(flips > 20_000 && told > flips / 2);
}

#[test]
fn every_truncation_and_every_sector_of_zeros_is_told() {
    let (disk, extent) = store();
    let dir = Path::new(HOME).join(folder_name(TOPIC_NUMBER));
    for name in disk.list(&dir).unwrap() {
        let path = dir.join(&name);
        let len = disk.open(&path, Access::Read).unwrap().len().unwrap();
        for cut in (0..len).step_by(61) {
            let disk = disk.fork();
            disk.open(&path, Access::Write).unwrap().set_len(cut).unwrap();
            let (archive, mut damages) = open(&disk, extent);
            assert!(!damages.is_empty(), "{name} {cut}");
            let (found, more) = read_all(&archive);
            damages.extend(more);
            nothing_is_lost_in_silence(&found, &damages, &format!("{name} cut at {cut}"));
        }
        for sector in 0..len / 512 {
            let disk = disk.fork();
            disk.open(&path, Access::Write).unwrap().write_at(&[0; 512], sector * 512).unwrap();
            let (archive, mut damages) = open(&disk, extent);
            let (found, more) = read_all(&archive);
            damages.extend(more);
            nothing_is_lost_in_silence(&found, &damages, &format!("{name}, zeros in sector {sector}"));
        }
    }
}

#[test]
fn files_that_are_gone_or_of_another_place_are_told() {
    let (disk, extent) = store();
    let dir = Path::new(HOME).join(folder_name(TOPIC_NUMBER));
    let names = disk.list(&dir).unwrap();
    assert!(names.len() > 3);
    for (at, name) in names.iter().enumerate() {
        let missing = disk.fork();
        missing.remove(&dir.join(name)).unwrap();
        let swapped = disk.fork();
        let other = &names[(at + 1) % names.len()];
        swapped.rename(&dir.join(other), &dir.join(name)).unwrap();
        for disk in [missing, swapped] {
            let (archive, mut damages) = open(&disk, extent);
            assert!(!damages.is_empty(), "{name}");
            let (found, more) = read_all(&archive);
            damages.extend(more);
            assert!(nothing_is_lost_in_silence(&found, &damages, name) > 0);
        }
    }
    let empty = home();
    let (archive, damages) = open(&empty, extent);
    assert_eq!(nothing_is_lost_in_silence(&read_all(&archive).0, &damages, "nothing is there"), 39);
}

#[test]
fn a_file_that_goes_while_the_archive_is_open_is_told_and_the_rest_is_read() {
    let (disk, extent) = store();
    let dir = Path::new(HOME).join(folder_name(TOPIC_NUMBER));
    for name in disk.list(&dir).unwrap() {
        let disk = disk.fork();
        let archive = open_whole(&disk, extent);
        disk.remove(&dir.join(&name)).unwrap();
        let (found, damages) = read_all(&archive);
        assert!(nothing_is_lost_in_silence(&found, &damages, &name) > 0);
        assert!(found.len() > 10 && damages.len() == 1, "{name}: {damages:?}");
    }
}

#[test]
fn a_file_that_is_missing_stays_missing_when_its_neighbours_are_put_together() {
    let (disk, extent) = store();
    let dir = Path::new(HOME).join(folder_name(TOPIC_NUMBER));
    let names = disk.list(&dir).unwrap();
    disk.remove(&dir.join(&names[1])).unwrap();
    let (mut archive, before) = open(&disk, extent);
    archive.compact(&extent, u64::MAX, &|sequence: Sequence| sequence.get().is_multiple_of(9)).unwrap();
    assert_ne!(disk.list(&dir).unwrap(), names[..1]);
    let (_, after) = open(&disk, archive.extent());
    assert_eq!(before.len(), 1);
    assert_eq!(after, before);
}

#[test]
fn a_directory_that_fails_to_be_listed_is_no_directory_without_files() {
    let (disk, extent) = store();
    let open = |at| {
        let fault = Fault::Fails(io::ErrorKind::NotFound);
        let faulty = FaultyDisk::new(Arc::new(disk.clone()), fault, at, Lasts::Once);
        Archive::open(Arc::new(faulty), Path::new(HOME), TOPIC_NUMBER, extent, SMALL)
    };
    let opened = open(1);
    assert!(matches!(opened, Err(ArchiveError::Io { verb: "list", .. })), "{opened:?}");
}

/// Checksums that are right do not make the records right.
#[test]
fn a_frame_of_other_records_than_it_says_is_told() {
    let right: Vec<u8> =
        [5_u64.to_le_bytes().to_vec(), 3_u32.to_le_bytes().to_vec(), b"abc".to_vec()].concat();
    let with = |at: usize, byte: u8| {
        let mut body = right.clone();
        body[at] = byte;
        body
    };
    let is_told = |body: &[u8], base: u64, end: u64, count: u32| {
        let disk = home();
        let mut archive = open_whole(&disk, Extent::EMPTY);
        let extent = fill(&mut archive, [1]);
        let entry = archive.files[0].clone();
        let path = Path::new(HOME).join(folder_name(TOPIC_NUMBER)).join(entry.header.numbers.name());
        let mut header = FrameHeader::new(file::RECORDS, base, count, body);
        header.durable = end;
        let bytes = [&header.encode(entry.header.salt, extent.len)[..], body].concat();
        disk.open(&path, Access::Write).unwrap().write_at(&bytes, extent.len).unwrap();
        let end = padded(extent.len + bytes.len() as u64);
        disk.open(&path, Access::Write).unwrap().set_len(end).unwrap();
        let archive = open_whole(&disk, Extent { len: end, next: Sequence::new(10), ..extent });
        let found: Vec<_> = archive.read_from(Sequence::new(2)).collect();
        found.len() == 1 && matches!(found[0], Err(ReadError::Damaged(_)))
    };
    assert!(!is_told(&right, 5, 6, 1));
    for at in [0, 7, 8, 11] {
        assert!(is_told(&with(at, 9), 5, 6, 1), "byte {at}");
    }
    for (base, end, count) in [(5, 6, 2), (5, 6, 0), (5, 7, 1), (4, 6, 1), (5, 5, 1), (5, 11, 1), (1, 6, 1)] {
        assert!(is_told(&right, base, end, count), "{base} {end} {count}");
    }
    for len in 0..right.len() {
        assert!(is_told(&right[..len], 5, 6, 1), "{len} bytes");
    }
}

#[test]
fn a_newer_format_is_refused_and_left_alone() {
    let (disk, extent) = store();
    let dir = Path::new(HOME).join(folder_name(TOPIC_NUMBER));
    let name = disk.list(&dir).unwrap().remove(1);
    let file = disk.open(&dir.join(&name), Access::Write).unwrap();
    let mut header = [0; 128];
    file.read_at(&mut header, 0).unwrap();
    header[8] = 9;
    let crc = crc32c::crc32c(&header[..124]);
    header[124..].copy_from_slice(&crc.to_le_bytes());
    file.write_at(&header, 0).unwrap();
    file.write_at(&header, 4096).unwrap();
    let before = disk.fingerprint();
    let opened = Archive::open(Arc::new(disk.clone()), Path::new(HOME), TOPIC_NUMBER, extent, SMALL);
    assert!(matches!(opened, Err(ArchiveError::Version { major: 9, .. })), "{opened:?}");
    assert_eq!(disk.fingerprint(), before);
}

#[test]
fn a_damaged_file_is_not_compacted() {
    let (disk, extent) = store();
    let dir = Path::new(HOME).join(folder_name(TOPIC_NUMBER));
    let name = disk.list(&dir).unwrap().remove(1);
    disk.damage(dir.join(&name).to_str().unwrap(), FRAMES_AT + 60, 1);
    let mut archive = open_whole(&disk, extent);
    archive.compact(&extent, u64::MAX, &|sequence: Sequence| sequence.get().is_multiple_of(9)).unwrap();
    assert!(disk.list(&dir).unwrap().contains(&name));
    let (found, damages) = read_all(&archive);
    assert!(!damages.is_empty());
    for sequence in (9..40).step_by(9) {
        assert!(found.contains(&sequence) || damages.iter().any(|damage| damage.units.contains(&sequence)));
    }
}
