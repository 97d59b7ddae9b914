//! Directories, and what is done to them.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use eventflow::{Broker, Durability};

use crate::reader::{Crc, Directory};
use crate::records::Found;

static NUMBER: AtomicU64 = AtomicU64::new(0);

/// A directory of a test's own, gone with it.
pub(crate) struct Dir(pub(crate) PathBuf);

impl Dir {
    pub(crate) fn new() -> Dir {
        let name =
            format!("eventflow-format-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        Dir(std::env::temp_dir().join(name))
    }

    pub(crate) fn broker(&self, durability: Durability) -> Broker {
        Broker::builder().dir(&self.0).durability(durability).build().expect("it opens")
    }

    pub(crate) fn list(&self) -> Result<Found, String> {
        Directory { crc: Crc::new(), path: self.0.clone() }.list()
    }

    pub(crate) fn copy(&self) -> Dir {
        let copy = Dir::new();
        fs::create_dir_all(&copy.0).expect("it can be made");
        for entry in fs::read_dir(&self.0).expect("it is there") {
            let entry = entry.expect("an entry");
            fs::copy(entry.path(), copy.0.join(entry.file_name())).expect("it is copied");
        }
        copy
    }

    /// The last segment, and where its last byte that is not zero lies.
    pub(crate) fn last_byte(&self) -> (PathBuf, usize) {
        let path = self.0.join(format!("segment-{:016x}", self.last_number()));
        let bytes = fs::read(&path).expect("it is read");
        (path, bytes.iter().rposition(|byte| *byte != 0).expect("it has a header"))
    }

    pub(crate) fn last_number(&self) -> u64 {
        let directory = Directory { crc: Crc::new(), path: self.0.clone() };
        *directory.numbers("segment-").last().expect("there is one")
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).ok();
    }
}

pub(crate) fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).expect("it is read");
    bytes[at] ^= 1;
    fs::write(path, bytes).expect("it is written");
}
