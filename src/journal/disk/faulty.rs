//! A disk whose n-th call fails.

use std::io;
use std::path::Path;
use std::sync::Arc;

use super::{Access, Disk, DiskFile, Lock};
use crate::sync::Mutex;

/// The kinds of errors that are tried: among them those that a careless reader takes for "there is none yet", "somebody did it already", or "try again".
pub(crate) const KINDS: [io::ErrorKind; 8] = [
    io::ErrorKind::Other,
    io::ErrorKind::StorageFull,
    io::ErrorKind::PermissionDenied,
    io::ErrorKind::NotFound,
    io::ErrorKind::AlreadyExists,
    io::ErrorKind::Interrupted,
    io::ErrorKind::ReadOnlyFilesystem,
    io::ErrorKind::UnexpectedEof,
];

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The call fails and did nothing.
    Fails(io::ErrorKind),
    /// The call does what it should, and fails.
    FailsAfter(io::ErrorKind),
    /// A write writes half of its bytes, and says so.
    WritesShort,
    /// A write writes half of its bytes, and fails.
    WritesHalfAndFails(io::ErrorKind),
    /// A read reads half of what it could, at least one byte.
    ReadsShort,
    /// One bit of what is read is wrong.
    ReadsFlipped,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lasts {
    Once,
    ForGood,
}

/// Fails the n-th of the calls of `disk` that its fault is about: writes, reads, or all.
#[derive(Clone, Debug)]
pub(crate) struct FaultyDisk {
    disk: Arc<dyn Disk>,
    plan: Arc<Plan>,
}

#[derive(Debug)]
struct Plan {
    fault: Fault,
    at: u64,
    lasts: Lasts,
    counts: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    calls: u64,
    fired: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verb {
    Read,
    Write,
    Other,
}

impl FaultyDisk {
    /// `at` counts from 1.
    pub(crate) fn new(disk: Arc<dyn Disk>, fault: Fault, at: u64, lasts: Lasts) -> Self {
        FaultyDisk { disk, plan: Arc::new(Plan { fault, at, lasts, counts: Mutex::default() }) }
    }

    /// How often the fault struck.
    pub(crate) fn fired(&self) -> u64 {
        self.plan.counts.lock().fired
    }

    fn call<T>(&self, act: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        self.plan.call(Verb::Other, act)
    }

    fn file(&self, file: Arc<dyn DiskFile>) -> Arc<dyn DiskFile> {
        Arc::new(FaultyFile { file, plan: self.plan.clone() })
    }
}

impl Plan {
    /// Whether this call is one that goes wrong.
    fn strikes(&self, verb: Verb) -> bool {
        let concerned = match self.fault {
            Fault::Fails(_) | Fault::FailsAfter(_) => true,
            Fault::WritesShort | Fault::WritesHalfAndFails(_) => verb == Verb::Write,
            Fault::ReadsShort | Fault::ReadsFlipped => verb == Verb::Read,
        };
        let mut counts = self.counts.lock();
        counts.calls += u64::from(concerned);
        let strikes = concerned
            && match self.lasts {
                Lasts::Once => counts.calls == self.at,
                Lasts::ForGood => counts.calls >= self.at,
            };
        counts.fired += u64::from(strikes);
        strikes
    }

    fn call<T>(&self, verb: Verb, act: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        match self.fault {
            _ if !self.strikes(verb) => act(),
            Fault::Fails(kind) => Err(kind.into()),
            Fault::FailsAfter(kind) => act().and(Err(kind.into())),
            // These are seen to where there are bytes.
            Fault::WritesShort | Fault::WritesHalfAndFails(_) | Fault::ReadsShort | Fault::ReadsFlipped => {
                act()
            }
        }
    }
}

impl Disk for FaultyDisk {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.call(|| self.disk.create_dir(path))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.call(|| self.disk.list(dir))
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        self.call(|| self.disk.create(path)).map(|file| self.file(file))
    }

    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn DiskFile>> {
        self.call(|| self.disk.open(path, access)).map(|file| self.file(file))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.call(|| self.disk.rename(from, to))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.call(|| self.disk.remove(path))
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.call(|| self.disk.remove_dir(path))
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.call(|| self.disk.sync_dir(dir))
    }

    fn lock(&self, path: &Path) -> io::Result<Option<Box<dyn Lock>>> {
        self.call(|| self.disk.lock(path))
    }
}

#[derive(Debug)]
struct FaultyFile {
    file: Arc<dyn DiskFile>,
    plan: Arc<Plan>,
}

impl DiskFile for FaultyFile {
    fn len(&self) -> io::Result<u64> {
        self.plan.call(Verb::Other, || self.file.len())
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let half = buffer.len().div_ceil(2);
        match self.plan.fault {
            Fault::ReadsShort if self.plan.strikes(Verb::Read) => {
                self.file.read_at(&mut buffer[..half], offset)
            }
            Fault::ReadsFlipped if self.plan.strikes(Verb::Read) => {
                let len = self.file.read_at(buffer, offset)?;
                // Somewhere, so that headers and bodies are struck alike.
                let bit = (offset as usize).wrapping_add(self.plan.at as usize).wrapping_mul(7919)
                    % (8 * len).max(1);
                if let Some(byte) = buffer[..len].get_mut(bit / 8) {
                    *byte ^= 1 << (bit % 8);
                }
                Ok(len)
            }
            Fault::ReadsShort | Fault::ReadsFlipped => self.file.read_at(buffer, offset),
            _ => self.plan.call(Verb::Read, || self.file.read_at(buffer, offset)),
        }
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        let half = bytes.len().div_ceil(2);
        match self.plan.fault {
            Fault::WritesShort if self.plan.strikes(Verb::Write) => {
                self.file.write_at(&bytes[..half], offset)
            }
            Fault::WritesHalfAndFails(kind) if self.plan.strikes(Verb::Write) => {
                self.file.write_at(&bytes[..half], offset)?;
                Err(kind.into())
            }
            Fault::WritesShort | Fault::WritesHalfAndFails(_) => self.file.write_at(bytes, offset),
            _ => self.plan.call(Verb::Write, || self.file.write_at(bytes, offset)),
        }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.plan.call(Verb::Other, || self.file.set_len(len))
    }

    fn sync(&self) -> io::Result<()> {
        self.plan.call(Verb::Other, || self.file.sync())
    }
}
