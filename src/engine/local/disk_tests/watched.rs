//! A disk that tells who calls it, and on which a test can hold up what others do.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};

use crate::journal::disk::sim::SimDisk;
use crate::journal::disk::{Access, Disk, DiskFile, Lock};
use crate::sync::{Mutex, thread};

/// Long enough for a loaded machine: only a test that fails waits for it.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);
/// The name of the committer's thread.
pub(super) const COMMITTER: &str = "eventflow-commit";

/// A disk that knows who calls it, and whose writes and syncs can be held up, or fail.
#[derive(Clone, Debug)]
pub(super) struct Watched {
    disk: SimDisk,
    book: Arc<Mutex<Book>>,
}

#[derive(Debug, Default)]
struct Book {
    /// How many writes and syncs each thread has begun, by its name.
    calls: BTreeMap<String, u64>,
    syncs: u64,
    /// How many of them the committer began.
    shared: u64,
    held: Option<Receiver<()>>,
    begun: Option<Sender<()>>,
    /// Every sync after this many fails.
    good: Option<u64>,
    /// The first write of this thread waits to be told how it ends.
    first: Option<FirstWrite>,
}

#[derive(Debug)]
struct FirstWrite {
    thread: &'static str,
    begun: Sender<()>,
    end: Receiver<io::Result<()>>,
}

/// While it lives, no sync ends.
pub(super) struct Hold {
    _free: Sender<()>,
    begun: Receiver<()>,
}

impl Hold {
    /// Returns when a sync has begun.
    #[track_caller]
    pub(super) fn await_sync(&self) {
        self.begun.recv_timeout(PATIENCE).expect("a sync begins");
    }
}

/// A thread's first write does not end before this says how.
pub(super) struct HeldWrite {
    begun: Receiver<()>,
    end: Sender<io::Result<()>>,
}

impl HeldWrite {
    /// Returns when it has begun.
    #[track_caller]
    pub(super) fn await_write(&self) {
        self.begun.recv_timeout(PATIENCE).expect("a write begins");
    }

    pub(super) fn goes_on(self) {
        self.end.send(Ok(())).expect("it is held");
    }

    pub(super) fn finds_no_space(self) {
        self.end.send(Err(io::ErrorKind::StorageFull.into())).expect("it is held");
    }
}

impl Watched {
    pub(super) fn new() -> Self {
        Watched::of(SimDisk::new())
    }

    pub(super) fn of(disk: SimDisk) -> Self {
        Watched { disk, book: Arc::default() }
    }

    pub(super) fn disk(&self) -> &SimDisk {
        &self.disk
    }

    pub(super) fn hold_first_write_of(&self, thread: &'static str) -> HeldWrite {
        let ((begun, begins), (end, ends)) = (unbounded(), unbounded());
        self.book.lock().first = Some(FirstWrite { thread, begun, end: ends });
        HeldWrite { begun: begins, end }
    }

    pub(super) fn hold(&self) -> Hold {
        let ((free, held), (sender, begun)) = (bounded(0), unbounded());
        let mut book = self.book.lock();
        (book.held, book.begun) = (Some(held), Some(sender));
        Hold { _free: free, begun }
    }

    /// All syncs fail from now on but for `more`, those that are held included.
    pub(super) fn fail_syncs_after(&self, more: u64) {
        let mut book = self.book.lock();
        book.good = Some(book.syncs + more - u64::from(book.held.is_some()));
    }

    pub(super) fn shared_syncs(&self) -> u64 {
        self.book.lock().shared
    }

    pub(super) fn calls_of_this_thread(&self) -> u64 {
        self.book.lock().calls.get(&this_thread()).copied().unwrap_or(0)
    }

    pub(super) fn callers(&self) -> Vec<String> {
        self.book.lock().calls.keys().cloned().collect()
    }

    fn note(&self) {
        *self.book.lock().calls.entry(this_thread()).or_default() += 1;
    }

    fn write(&self, write: impl FnOnce() -> io::Result<usize>) -> io::Result<usize> {
        self.note();
        let first = self.book.lock().first.take_if(|first| first.thread == this_thread());
        if let Some(first) = first {
            let _nobody_may_listen = first.begun.send(());
            first.end.recv_timeout(PATIENCE).map_err(io::Error::other)??;
        }
        write()
    }

    fn sync(&self, sync: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        self.note();
        let (number, held) = {
            let mut book = self.book.lock();
            book.syncs += 1;
            book.shared += u64::from(this_thread() == COMMITTER);
            if let Some(begun) = &book.begun {
                let _nobody_may_listen = begun.send(());
            }
            (book.syncs, book.held.clone())
        };
        if let Some(held) = held {
            // Nothing is ever sent: it ends with the hold, or the test with a poll that waits for it.
            let _free_now = held.recv_timeout(PATIENCE);
        }
        let fails = self.book.lock().good.is_some_and(|good| number > good);
        if fails { Err(io::ErrorKind::Other.into()) } else { sync() }
    }

    fn file(&self, file: Arc<dyn DiskFile>) -> Arc<dyn DiskFile> {
        Arc::new(WatchedFile { file, disk: self.clone() })
    }
}

pub(super) fn this_thread() -> String {
    let thread = thread::current();
    thread.name().unwrap_or("nameless").to_owned()
}

impl Disk for Watched {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.disk.create_dir(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.disk.list(dir)
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        self.note();
        self.disk.create(path).map(|file| self.file(file))
    }

    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn DiskFile>> {
        self.disk.open(path, access).map(|file| self.file(file))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.note();
        self.disk.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.note();
        self.disk.remove(path)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.note();
        self.disk.remove_dir(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.sync(|| self.disk.sync_dir(dir))
    }

    fn lock(&self, path: &Path) -> io::Result<Option<Box<dyn Lock>>> {
        self.disk.lock(path)
    }
}

#[derive(Debug)]
struct WatchedFile {
    file: Arc<dyn DiskFile>,
    disk: Watched,
}

impl DiskFile for WatchedFile {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buffer, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        self.disk.write(|| self.file.write_at(bytes, offset))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.disk.note();
        self.file.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.disk.sync(|| self.file.sync())
    }
}
