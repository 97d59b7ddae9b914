//! Bytes of any kind in the directory.

use super::*;
use crate::journal::disk::Access;
use crate::journal::frame::{FrameHeader, UNITS, push_unit};
use crate::journal::layout::{FileHeader, FileKind, HeaderRead};
use crate::journal::segment::FRAMES_AT;

/// Splitmix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

fn a_store() -> SimDisk {
    let disk = SimDisk::new();
    let journal = opened(&disk);
    for entry in entries(0..20) {
        journal.put(&entry);
    }
    journal.checkpoint(&entries(0..20)).unwrap();
    journal.put("more");
    drop(journal);
    disk.kill()
}

/// Opening it ends, with whatever result, and what is served is served again.
fn bear(disk: &SimDisk, what: &dyn Fn() -> String) {
    for on_damage in [OnDamage::Refuse, OnDamage::Continue] {
        let options = JournalOptions { on_damage, ..small() };
        let Ok(open) = super::open(disk, options) else { continue };
        let found = open.found.texts();
        drop(open);
        let again = super::open(disk, options).unwrap_or_else(|error| panic!("{}: {error}", what()));
        assert_eq!(again.found.texts(), found, "{}", what());
    }
}

#[test]
fn random_bytes_in_any_file_are_borne() {
    let store = a_store();
    let names = store.list(Path::new(DIR)).unwrap();
    let first = setting("EVENTFLOW_DISK_SEED", 0);
    for seed in first..first + 2_000 {
        let mut random = Random(seed);
        let disk = store.fork();
        for _ in 0..=random.below(3) {
            let name = &names[random.below(names.len() as u64) as usize];
            let file = disk.open(&Path::new(DIR).join(name), Access::Write).unwrap();
            let bytes: Vec<u8> = (0..random.below(2_000)).map(|_| random.next() as u8).collect();
            file.write_at(&bytes, random.below(20_000)).unwrap();
        }
        bear(&disk, &|| format!("seed {seed}"));
    }
}

#[test]
fn files_that_claim_the_world_with_good_checksums_are_borne() {
    let store = a_store();
    let names = store.list(Path::new(DIR)).unwrap();
    let extremes = [0, 1, 7, u64::from(u32::MAX), 1 << 40, u64::MAX - 1, u64::MAX];
    let changes: [fn(&mut FileHeader, u64); 7] = [
        |header, value| header.salt = value,
        |header, value| header.number = value,
        |header, value| header.position = value,
        |header, value| header.durable = value,
        |header, value| header.capacity = value,
        |header, value| header.chain = value as u32,
        |header, value| header.flags = value as u32,
    ];
    for name in &names {
        let kind = match name.split('-').next() {
            Some("segment") => FileKind::Segment,
            Some("checkpoint") => FileKind::Checkpoint,
            Some("watermark") => FileKind::Watermark,
            _ => continue,
        };
        for value in extremes {
            for (number, change) in changes.iter().enumerate() {
                let disk = store.fork();
                let file = disk.open(&Path::new(DIR).join(name), Access::Write).unwrap();
                let HeaderRead::Good(mut header) = FileHeader::read(kind, &*file).unwrap() else { continue };
                change(&mut header, value);
                header.write(&*file).unwrap();
                bear(&disk, &|| format!("{name}, field {number}, {value}"));
            }
        }
    }
}

#[test]
fn frames_that_claim_the_world_with_good_checksums_are_borne() {
    let store = a_store();
    let names = store.list(Path::new(DIR)).unwrap();
    let name = names.iter().rfind(|name| name.starts_with("segment-")).unwrap();
    let mut body = Vec::new();
    push_unit(&mut body, b"unit");
    let mut liar = body.clone();
    liar[..4].copy_from_slice(&u32::MAX.to_le_bytes());
    for body in [&body, &liar, &Vec::new()] {
        for base in [0, 20, 21, u64::MAX - 1, u64::MAX] {
            for count in [0, 1, 2, u32::MAX] {
                for durable in [0, 21, 1 << 40, u64::MAX] {
                    for body_len in [None, Some(0), Some(1 << 30), Some(u32::MAX)] {
                        let disk = store.fork();
                        let file = disk.open(&Path::new(DIR).join(name), Access::Write).unwrap();
                        let HeaderRead::Good(segment) = FileHeader::read(FileKind::Segment, &*file).unwrap()
                        else {
                            panic!("the store is whole")
                        };
                        let mut header = FrameHeader {
                            previous: segment.chain,
                            durable,
                            ..FrameHeader::new(UNITS, base, count, body)
                        };
                        header.body_len = body_len.unwrap_or(header.body_len);
                        let bytes = header.encode(segment.salt, FRAMES_AT);
                        file.write_at(&bytes, FRAMES_AT).unwrap();
                        file.write_at(body, FRAMES_AT + bytes.len() as u64).unwrap();
                        bear(&disk, &|| format!("{header:?}"));
                    }
                }
            }
        }
    }
}

#[test]
fn a_frame_that_does_not_name_the_one_before_it_is_not_of_the_stream() {
    let store = a_store();
    // It goes on in a fresh segment.
    drop(opened(&store));
    let names = store.list(Path::new(DIR)).unwrap();
    let name = names.iter().rfind(|name| name.starts_with("segment-")).unwrap();
    let mut body = Vec::new();
    push_unit(&mut body, b"unit");
    for wrong in [0, 1] {
        let disk = store.fork();
        let file = disk.open(&Path::new(DIR).join(name), Access::Write).unwrap();
        let HeaderRead::Good(segment) = FileHeader::read(FileKind::Segment, &*file).unwrap() else {
            panic!("the store is whole")
        };
        let previous = segment.chain ^ wrong;
        let mut header = FrameHeader { previous, ..FrameHeader::new(UNITS, segment.position, 1, &body) };
        let bytes = header.encode(segment.salt, FRAMES_AT);
        file.write_at(&bytes, FRAMES_AT).unwrap();
        file.write_at(&body, FRAMES_AT + bytes.len() as u64).unwrap();
        assert_eq!(opened(&disk).found.texts().contains(&"unit".to_owned()), wrong == 0);
    }
}

#[test]
fn a_directory_where_a_file_should_be_is_an_error() {
    for name in ["eventflow", "watermark", "spare", "segment-0000000000000009", "checkpoint-0000000000000003"]
    {
        let disk = a_store();
        let path = Path::new(DIR).join(name);
        let _ = disk.remove(&path);
        disk.create_dir(&path).unwrap();
        for on_damage in [OnDamage::Refuse, OnDamage::Continue] {
            let opened = super::open(&disk, JournalOptions { on_damage, ..small() });
            assert!(
                matches!(opened, Err(JournalOpenError::Io { .. })),
                "{name}: {:?}",
                opened.map(|open| open.found)
            );
        }
    }
}
