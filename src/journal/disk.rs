//! The few file verbs that the journal needs, as a trait, so that a test can fail each one, and lose power between any two.

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

/// What a file is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    /// Reads and writes what is there.
    Write,
}

/// A file system. Nothing is retried in here, and nothing is buffered: what a call returned, it did.
///
/// What is not synced may be lost, in part, in any order, when the machine fails. That a file exists under a name is synced by [`sync_dir`](Self::sync_dir) of its directory.
pub(crate) trait Disk: Send + Sync + fmt::Debug {
    /// Makes the directory, whose parent exists. Fine if it is there.
    fn create_dir(&self, path: &Path) -> io::Result<()>;
    /// The names of what is in a directory, sorted. A name that is no Unicode is given with replacement characters.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;
    /// A new empty file to read and write. Fails with `AlreadyExists` if there is one.
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;
    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn DiskFile>>;
    /// Replaces what is at `to`.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// With all that is in it.
    fn remove_dir(&self, path: &Path) -> io::Result<()>;
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// Locks the file, made if need be, for as long as what is returned lives. None: somebody else has it, in this process or another.
    fn lock(&self, path: &Path) -> io::Result<Option<Box<dyn Lock>>>;
}

/// Held while it lives.
pub(crate) trait Lock: Send + Sync + fmt::Debug {}

/// An open file. Positioned reads and writes only, so that several threads may use it.
pub(crate) trait DiskFile: Send + Sync + fmt::Debug {
    fn len(&self) -> io::Result<u64>;
    /// May read less than asked; 0 at the end of the file.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
    /// May write less than asked. Grows the file if need be.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize>;
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Returns when what was written before is safe from a power cut (`fdatasync`).
    fn sync(&self) -> io::Result<()>;
}

#[cfg(test)]
pub(crate) mod explore;
#[cfg(test)]
pub(crate) mod faulty;
#[cfg(test)]
pub(crate) mod harm;
mod real;
#[cfg(test)]
pub(crate) mod sim;
#[cfg(test)]
mod tests;

pub(crate) use real::RealDisk;
