//! The file system of the machine.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use super::{Access, Disk, DiskFile, Lock};
use crate::sync::Mutex;

/// Directories and files as the operating system has them. A call that a signal interrupted did nothing, and is made again; nothing else is retried.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct RealDisk;

impl Disk for RealDisk {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        match again(|| fs::create_dir(path)) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
            result => result,
        }
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in again(|| fs::read_dir(here(dir)))? {
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
        names.sort_unstable();
        Ok(names)
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true);
        Ok(Arc::new(RealFile(again(|| options.open(path))?)))
    }

    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn DiskFile>> {
        // To open a pipe that somebody put here would wait for its other end for ever.
        if !again(|| fs::metadata(path))?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        let mut options = OpenOptions::new();
        options.read(true).write(access == Access::Write);
        Ok(Arc::new(RealFile(again(|| options.open(path))?)))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        again(|| fs::rename(from, to))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        again(|| fs::remove_file(path))
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        again(|| fs::remove_dir_all(path))
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        sync_directory(here(dir))
    }

    fn lock(&self, path: &Path) -> io::Result<Option<Box<dyn Lock>>> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let file = again(|| options.open(path))?;
        let path = again(|| fs::canonicalize(path))?;
        if !locked().lock().insert(path.clone()) {
            return Ok(None);
        }
        // From here on dropping it takes the path out of the set again.
        let lock = RealLock { file: Some(file), path };
        match lock.file.as_ref().map_or(Ok(()), File::try_lock) {
            Ok(()) => Ok(Some(Box::new(lock))),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }
}

/// The files that this process has locked: a lock of the file system may hold against other processes alone.
fn locked() -> &'static Mutex<BTreeSet<PathBuf>> {
    static LOCKED: OnceLock<Mutex<BTreeSet<PathBuf>>> = OnceLock::new();
    LOCKED.get_or_init(|| Mutex::new(BTreeSet::new()))
}

#[derive(Debug)]
struct RealLock {
    file: Option<File>,
    path: PathBuf,
}

impl Lock for RealLock {}

impl Drop for RealLock {
    fn drop(&mut self) {
        // In this order: who finds the path free in the set must find the file unlocked.
        drop(self.file.take());
        locked().lock().remove(&self.path);
    }
}

#[derive(Debug)]
struct RealFile(File);

impl DiskFile for RealFile {
    fn len(&self) -> io::Result<u64> {
        Ok(again(|| self.0.metadata())?.len())
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        again(|| positioned::read_at(&self.0, buffer, offset))
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        again(|| positioned::write_at(&self.0, bytes, offset))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        again(|| self.0.set_len(len))
    }

    fn sync(&self) -> io::Result<()> {
        again(|| self.0.sync_data())
    }
}

fn again<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// The parent of a relative path of one part is the empty path, which means the working directory.
fn here(dir: &Path) -> &Path {
    if dir.as_os_str().is_empty() { Path::new(".") } else { dir }
}

#[cfg(unix)]
fn sync_directory(dir: &Path) -> io::Result<()> {
    let dir = again(|| File::open(dir))?;
    again(|| dir.sync_all())
}

/// Elsewhere a directory cannot be opened, and a file system that journals its names writes them in order.
#[cfg(not(unix))]
fn sync_directory(_: &Path) -> io::Result<()> {
    Ok(())
}

#[cfg(unix)]
mod positioned {
    use std::fs::File;
    use std::io;
    use std::os::unix::fs::FileExt;

    pub(super) fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        file.read_at(buffer, offset)
    }

    pub(super) fn write_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<usize> {
        file.write_at(bytes, offset)
    }
}

#[cfg(windows)]
mod positioned {
    use std::fs::File;
    use std::io;
    use std::os::windows::fs::FileExt;

    pub(super) fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        file.seek_read(buffer, offset)
    }

    pub(super) fn write_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<usize> {
        file.seek_write(bytes, offset)
    }
}

#[cfg(not(any(unix, windows)))]
mod positioned {
    use std::fs::File;
    use std::io;

    pub(super) fn read_at(_: &File, _: &mut [u8], _: u64) -> io::Result<usize> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(super) fn write_at(_: &File, _: &[u8], _: u64) -> io::Result<usize> {
        Err(io::ErrorKind::Unsupported.into())
    }
}
