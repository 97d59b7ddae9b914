//! A disk in memory that loses power: it knows which sectors and which names are safe, and gives the disks that may be found afterwards.
//!
//! Harsher than any file system is known to be: sectors, lengths and names are lost or kept independently of each other, in any order. Kinder in one thing:
//! every name goes through its changes in order, and a rename moves both of its names at once.

mod content;
mod names;
mod outcome;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use super::{Access, Disk, DiskFile, Lock};
use crate::sync::Mutex;
use content::Content;
use names::{Change, Names, Node};
#[cfg_attr(eventflow_shuttle, allow(unused_imports, reason = "for tests that no model checker runs"))]
pub(crate) use outcome::Random;
pub(crate) use outcome::{Cut, Tear};

pub(crate) const SECTOR: u64 = 512;

/// More calls than this on one disk are a loop that does not end.
const CALLS_MAX: u64 = 1_000_000;
const TRACE_MAX: usize = 200;

/// Clones are the same disk.
#[derive(Clone)]
pub(crate) struct SimDisk(Arc<Mutex<State>>);

/// What a full disk does to a write that does not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Full {
    /// Refused before its first byte.
    Refuses,
    /// As much of it is written as fits; refused when that is nothing.
    WritesShort,
}

#[derive(Clone)]
struct State {
    names: Names,
    files: BTreeMap<u64, Arc<Content>>,
    file_next: u64,
    locked: BTreeSet<PathBuf>,
    capacity: Option<(u64, Full)>,
    /// Numbers of the syncs of files whose write-back is lost.
    lost_syncs: BTreeSet<u64>,
    syncs: u64,
    calls: u64,
    changes: u64,
    stop_at: Option<u64>,
    down: bool,
    /// The newest calls.
    trace: VecDeque<Call>,
}

#[derive(Clone, Debug)]
struct Call {
    verb: &'static str,
    path: PathBuf,
    offset: u64,
    len: u64,
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.verb, self.path.display())?;
        if self.len > 0 { write!(f, " {}+{}", self.offset, self.len) } else { Ok(()) }
    }
}

impl fmt::Debug for SimDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SimDisk { .. }")
    }
}

impl SimDisk {
    /// Empty, with a root directory. Paths are relative to it, with or without a leading slash.
    pub(crate) fn new() -> Self {
        SimDisk::with(State {
            names: Names::new(),
            files: BTreeMap::new(),
            file_next: 0,
            locked: BTreeSet::new(),
            capacity: None,
            lost_syncs: BTreeSet::new(),
            syncs: 0,
            calls: 0,
            changes: 0,
            stop_at: None,
            down: false,
            trace: VecDeque::new(),
        })
    }

    fn with(state: State) -> Self {
        SimDisk(Arc::new(Mutex::new(state)))
    }

    /// How many calls could have changed what a crash leaves: all but looking and reading.
    pub(crate) fn changes(&self) -> u64 {
        self.0.lock().changes
    }

    /// How many syncs of files there were.
    pub(crate) fn syncs(&self) -> u64 {
        self.0.lock().syncs
    }

    /// The disk goes down in the change of this number, from 1: it is under way, so that any part of it may have happened, and fails, and so does every later call.
    pub(crate) fn stop_at(&self, change: u64) {
        self.0.lock().stop_at = Some(change);
    }

    /// Goes down now.
    pub(crate) fn stop(&self) {
        self.0.lock().down = true;
    }

    pub(crate) fn is_down(&self) -> bool {
        self.0.lock().down
    }

    /// The same disk for another process after this one: written and not yet synced stays so. This one lives on, apart from it.
    pub(crate) fn fork(&self) -> SimDisk {
        let mut state = self.0.lock().clone();
        state.begin();
        SimDisk::with(state)
    }

    /// The process dies, the machine goes on: everything written is there, synced or not. This disk is down.
    pub(crate) fn kill(&self) -> SimDisk {
        self.stop();
        self.fork()
    }

    /// The power fails, and this is the disk that is found then. This one is down.
    pub(crate) fn restart(&self, cut: &Cut) -> SimDisk {
        self.stop();
        let state = self.0.lock();
        SimDisk::with(state.after(cut))
    }

    /// Ways for the power to fail now: all there are when they are at most `bound`; else `bound` of them, chosen by `seed`, the extreme ones first.
    pub(crate) fn cuts(&self, bound: usize, seed: u64, tear: Tear) -> Vec<Cut> {
        self.0.lock().cuts(bound, seed, tear)
    }

    /// The sync of this number, from 1, fails as Linux's does: what it should have written is taken for clean, so that a second sync says `Ok`
    /// and writes nothing, and reads still give it, until [`evict`](Self::evict).
    pub(crate) fn lose_sync(&self, number: u64) {
        self.0.lock().lost_syncs.insert(number);
    }

    /// The page cache forgets what it takes for clean: from now on it reads what is really on the disk.
    pub(crate) fn evict(&self) {
        for file in self.0.lock().files.values_mut() {
            Arc::make_mut(file).evict();
        }
    }

    /// Room for this many bytes, in whole sectors; names and lengths are free.
    pub(crate) fn set_capacity(&self, bytes: u64, full: Full) {
        self.0.lock().capacity = Some((bytes, full));
    }

    /// The bytes of all written sectors of files that have a name.
    pub(crate) fn used(&self) -> u64 {
        self.0.lock().used()
    }

    /// Equal for disks on which the same would be found by reading all.
    pub(crate) fn fingerprint(&self) -> u64 {
        let state = self.0.lock();
        let mut hasher = DefaultHasher::new();
        for (path, node) in state.names.now() {
            path.hash(&mut hasher);
            if let Node::File(file) = node {
                state.files[file].hash(&mut hasher);
            }
        }
        hasher.finish()
    }

    /// The newest calls, one a line.
    pub(crate) fn trace(&self, most: usize) -> String {
        let state = self.0.lock();
        let skipped = state.trace.len().saturating_sub(most);
        state.trace.iter().skip(skipped).map(|call| format!("  {call}\n")).collect()
    }

    /// Flips bits of what is on the disk, as age does.
    pub(crate) fn damage(&self, path: &str, offset: u64, mask: u8) {
        let mut state = self.0.lock();
        let file = state.file(&key(Path::new(path))).expect("the file to damage is there");
        Arc::make_mut(state.files.get_mut(&file).expect("a name has a file")).damage(offset, mask);
    }

    fn look<T>(&self, call: Call, act: impl FnOnce(&mut State) -> io::Result<T>) -> io::Result<T> {
        let mut state = self.0.lock();
        state.enter(call)?;
        act(&mut state)
    }

    fn change<T>(&self, call: Call, act: impl FnOnce(&mut State) -> io::Result<T>) -> io::Result<T> {
        let mut state = self.0.lock();
        let syncs = call.verb.starts_with("sync");
        state.enter(call)?;
        state.changes += 1;
        if state.stop_at == Some(state.changes) {
            state.down = true;
            // What it did is as uncertain as all that is not synced; what a sync did is that, too.
            let done = (!syncs).then(|| act(&mut state));
            // A lock that goes with this result takes the state's own.
            drop(state);
            drop(done);
            return Err(power_failed());
        }
        act(&mut state)
    }
}

fn power_failed() -> io::Error {
    io::Error::other("the power failed")
}

/// A path without its root, so that `/a` and `a` are the same.
fn key(path: &Path) -> PathBuf {
    path.components().filter(|part| matches!(part, Component::Normal(_))).collect()
}

fn call(verb: &'static str, path: &Path) -> Call {
    Call { verb, path: key(path), offset: 0, len: 0 }
}

impl State {
    /// Another process, or another life of the machine.
    fn begin(&mut self) {
        self.locked.clear();
        self.lost_syncs.clear();
        (self.calls, self.changes, self.syncs, self.stop_at, self.down) = (0, 0, 0, None, false);
        self.trace.clear();
    }

    fn enter(&mut self, call: Call) -> io::Result<()> {
        if self.down {
            return Err(power_failed());
        }
        self.calls += 1;
        assert!(self.calls < CALLS_MAX, "no end of calls; the last: {call}");
        if self.trace.len() == TRACE_MAX {
            self.trace.pop_front();
        }
        self.trace.push_back(call);
        Ok(())
    }

    fn file(&self, path: &Path) -> io::Result<u64> {
        match self.names.get(path) {
            Some(Node::File(file)) => Ok(file),
            Some(Node::Dir) => Err(io::ErrorKind::InvalidInput.into()),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn content(&self, file: u64) -> &Content {
        self.files.get(&file).expect("an open file has its content")
    }

    fn content_mut(&mut self, file: u64) -> &mut Content {
        Arc::make_mut(self.files.get_mut(&file).expect("an open file has its content"))
    }

    fn new_file(&mut self, path: &Path) -> io::Result<u64> {
        self.names.parent_of(path)?;
        if self.names.get(path).is_some() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let file = self.file_next;
        self.file_next += 1;
        self.files.insert(file, Arc::new(Content::default()));
        self.names.change(Change::Set { path: path.to_owned(), node: Node::File(file) });
        Ok(file)
    }

    fn used(&self) -> u64 {
        let files: BTreeSet<u64> = self.names.now().values().filter_map(Node::file).collect();
        files.iter().map(|file| self.content(*file).used()).sum()
    }

    /// How much of a write fits.
    fn room_for(&self, file: u64, len: usize, offset: u64) -> io::Result<usize> {
        let Some((capacity, full)) = self.capacity else { return Ok(len) };
        let free = capacity.saturating_sub(self.used()) / SECTOR;
        let fits = self.content(file).fits(len, offset, free);
        match full {
            _ if fits == len => Ok(len),
            Full::WritesShort if fits > 0 => Ok(fits),
            _ => Err(io::ErrorKind::StorageFull.into()),
        }
    }

    fn sync(&mut self, file: u64) -> io::Result<()> {
        self.syncs += 1;
        if self.lost_syncs.remove(&self.syncs) {
            self.content_mut(file).lose();
            return Err(io::Error::from_raw_os_error(5));
        }
        self.content_mut(file).sync();
        Ok(())
    }
}

impl Disk for SimDisk {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.change(call("create_dir", path), |state| {
            let path = key(path);
            state.names.parent_of(&path)?;
            match state.names.get(&path) {
                Some(Node::Dir) => Ok(()),
                Some(Node::File(_)) => Err(io::ErrorKind::AlreadyExists.into()),
                None => {
                    state.names.change(Change::Set { path, node: Node::Dir });
                    Ok(())
                }
            }
        })
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.look(call("list", dir), |state| state.names.list(&key(dir)))
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let file = self.change(call("create", path), |state| state.new_file(&key(path)))?;
        Ok(Arc::new(SimFile { disk: self.clone(), file, path: key(path), access: Access::Write }))
    }

    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn DiskFile>> {
        let file = self.look(call("open", path), |state| state.file(&key(path)))?;
        Ok(Arc::new(SimFile { disk: self.clone(), file, path: key(path), access }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.change(call("rename", to), |state| {
            let (from, to) = (key(from), key(to));
            let file = state.file(&from)?;
            state.names.parent_of(&to)?;
            if state.names.get(&to) == Some(Node::Dir) {
                return Err(io::ErrorKind::IsADirectory.into());
            }
            if from != to {
                state.names.change(Change::Rename { from, to, node: Node::File(file) });
            }
            Ok(())
        })
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.change(call("remove", path), |state| {
            let path = key(path);
            state.file(&path)?;
            state.names.change(Change::Unset { path });
            Ok(())
        })
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.change(call("remove_dir", path), |state| state.names.remove_dir(&key(path)))
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.change(call("sync_dir", dir), |state| state.names.sync(&key(dir)))
    }

    fn lock(&self, path: &Path) -> io::Result<Option<Box<dyn Lock>>> {
        self.change(call("lock", path), |state| {
            let path = key(path);
            match state.file(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => drop(state.new_file(&path)?),
                result => drop(result?),
            }
            let free = state.locked.insert(path.clone());
            let lock = || Box::new(SimLock { disk: self.clone(), path }) as Box<dyn Lock>;
            Ok(free.then(lock))
        })
    }
}

#[derive(Debug)]
struct SimLock {
    disk: SimDisk,
    path: PathBuf,
}

impl Lock for SimLock {}

impl Drop for SimLock {
    fn drop(&mut self) {
        self.disk.0.lock().locked.remove(&self.path);
    }
}

#[derive(Debug)]
struct SimFile {
    disk: SimDisk,
    file: u64,
    /// The name it was opened by, for the trace.
    path: PathBuf,
    access: Access,
}

impl SimFile {
    fn call(&self, verb: &'static str, offset: u64, len: usize) -> Call {
        Call { verb, path: self.path.clone(), offset, len: len as u64 }
    }

    fn may_write(&self) -> io::Result<()> {
        match self.access {
            Access::Write => Ok(()),
            Access::Read => Err(io::ErrorKind::PermissionDenied.into()),
        }
    }
}

impl DiskFile for SimFile {
    fn len(&self) -> io::Result<u64> {
        self.disk.look(self.call("len", 0, 0), |state| Ok(state.content(self.file).len()))
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let call = self.call("read", offset, buffer.len());
        self.disk.look(call, |state| Ok(state.content(self.file).read_at(buffer, offset)))
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        self.disk.change(self.call("write", offset, bytes.len()), |state| {
            self.may_write()?;
            let len = state.room_for(self.file, bytes.len(), offset)?;
            state.content_mut(self.file).write_at(&bytes[..len], offset);
            Ok(len)
        })
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.disk.change(self.call("set_len", len, 0), |state| {
            self.may_write()?;
            state.content_mut(self.file).set_len(len);
            Ok(())
        })
    }

    fn sync(&self) -> io::Result<()> {
        self.disk.change(self.call("sync", 0, 0), |state| state.sync(self.file))
    }
}
