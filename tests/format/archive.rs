//! A topic's own files, as the guide's page says what is in them.

use std::cmp::Reverse;
use std::fs;
use std::path::Path;

use crate::reader::{Directory, File, Header, number};
use crate::records::{Found, Words};

/// What a checkpoint notes of them.
#[derive(Clone, Copy)]
pub(crate) struct Extent {
    pub(crate) first: u64,
    pub(crate) end: u64,
    pub(crate) len: u64,
    pub(crate) next: u64,
}

/// A file, and how much of it counts.
struct Own {
    file: File,
    last: u64,
    first_sequence: u64,
    previous_len: usize,
    len: usize,
}

impl Directory {
    /// The messages that the checkpoint says to be in topics' own files.
    pub(crate) fn archives(&self, found: &mut Found) -> Result<(), String> {
        for (topic, extent) in found.extents.clone() {
            for file in self.files_of(topic, extent)? {
                self.read_file(topic, &file, extent, found)?;
            }
        }
        Ok(())
    }

    fn files_of(&self, topic: u64, extent: Extent) -> Result<Vec<Own>, String> {
        let folder = self.path.join(format!("topic-{topic:016x}"));
        let mut numbers = names_in(&folder);
        numbers.sort_unstable_by_key(|&(first, last)| (first, Reverse(last)));
        let mut files: Vec<Own> = Vec::new();
        let mut end = extent.first;
        for (first, last) in numbers {
            if last < extent.first || first >= extent.end || last < end {
                continue;
            }
            let name = format!("topic-{topic:016x}/file-{first:016x}-{last:016x}");
            let own = self.own(topic, name, (first, last)).filter(|_| first == end && last < extent.end);
            files.push(own.ok_or(format!("file {first} of topic {topic} is damaged"))?);
            end = last + 1;
        }
        if end != extent.end {
            return Err(format!("files {end} to {} of topic {topic} are missing", extent.end));
        }
        let mut len = extent.len as usize;
        for file in files.iter_mut().rev() {
            if file.len == 0 {
                file.len = len;
            }
            len = file.previous_len;
        }
        Ok(files)
    }

    fn own(&self, topic: u64, name: String, numbers: (u64, u64)) -> Option<Own> {
        let bytes = fs::read(self.path.join(&name)).expect("it is read");
        let header = |at: usize| {
            let header = bytes.get(at..at + 128)?;
            let is_good = header[..8] == *b"evtflow\x05"
                && u64::from(self.crc.of(&[&header[..124]])) == number(header, 124, 4);
            is_good.then(|| header.to_vec())
        };
        let header = header(0).or_else(|| header(4096))?;
        let at = |at: usize| number(&header, at, 8);
        assert_eq!((number(&header, 8, 2), number(&header, 12, 4)), (1, 0), "of this major version");
        assert!(header[72..124].iter().all(|byte| *byte == 0));
        if (at(16), at(24), at(32)) != (topic, numbers.0, numbers.1) {
            return None;
        }
        let (first_sequence, salt, previous_len, len) = (at(40), at(48), at(56) as usize, at(64) as usize);
        let header = Header {
            salt,
            number: 0,
            position: 0,
            durable: 0,
            capacity: 0,
            chain: 0,
            is_broken: false,
            identity: 0,
        };
        let file = File { name, bytes, header };
        Some(Own { file, last: numbers.1, first_sequence, previous_len, len })
    }

    fn read_file(&self, topic: u64, own: &Own, extent: Extent, found: &mut Found) -> Result<(), String> {
        let (mut offset, mut chain, mut next) = (4608, 0, own.first_sequence);
        while offset < own.len {
            let damaged = || format!("{}, byte {offset}", own.file.name);
            let frame = self.frame(&own.file, offset).filter(|frame| offset + frame.len() <= own.len);
            let frame = frame.ok_or_else(damaged)?;
            let mut body = self.body(&own.file, offset, &frame).ok_or_else(damaged)?;
            assert_eq!((frame.previous, frame.kind), (chain, 4));
            for at in 0..frame.count {
                let (sequence, len) = (number(body, 0, 8), number(body, 8, 4) as usize);
                assert!(sequence >= next && sequence < extent.next && (at > 0 || sequence == frame.base));
                next = sequence + 1;
                let mut words = Words(&body[12..12 + len]);
                let _at = words.take(8);
                let payload = words.message().to_vec();
                assert!(words.0.is_empty(), "a record is read to its end");
                found.messages.entry((topic, sequence)).or_insert(payload);
                found.archived += 1;
                body = &body[12 + len..];
            }
            assert_eq!((body.len(), next), (0, frame.durable), "the records fill the body");
            (chain, offset) = (frame.crc, offset + frame.len());
        }
        assert!(own.last < extent.end);
        Ok(())
    }
}

/// The numbers of the files in a folder.
fn names_in(folder: &Path) -> Vec<(u64, u64)> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let names = entries.map(|entry| entry.expect("an entry").file_name());
    let numbers = names.filter_map(|name| {
        let (first, last) = name.to_str()?.strip_prefix("file-")?.split_once('-')?;
        Some((u64::from_str_radix(first, 16).ok()?, u64::from_str_radix(last, 16).ok()?))
    });
    numbers.collect()
}
