//! Which names there are: now, on the disk, and the changes in between.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Node {
    Dir,
    File(u64),
}

impl Node {
    pub(super) fn file(&self) -> Option<u64> {
        match self {
            Node::Dir => None,
            Node::File(file) => Some(*file),
        }
    }
}

#[derive(Clone, Debug)]
pub(super) enum Change {
    Set {
        path: PathBuf,
        node: Node,
    },
    Unset {
        path: PathBuf,
    },
    /// With all that is in it.
    UnsetDir {
        path: PathBuf,
    },
    Rename {
        from: PathBuf,
        to: PathBuf,
        node: Node,
    },
}

impl Change {
    fn paths(&self) -> Vec<&Path> {
        match self {
            Change::Set { path, .. } | Change::Unset { path } | Change::UnsetDir { path } => vec![path],
            Change::Rename { from, to, .. } => vec![from, to],
        }
    }

    fn apply(&self, names: &mut BTreeMap<PathBuf, Node>) {
        match self {
            Change::Set { path, node } => drop(names.insert(path.clone(), *node)),
            Change::Unset { path } => drop(names.remove(path)),
            Change::UnsetDir { path } => names.retain(|name, _| !name.starts_with(path)),
            Change::Rename { from, to, node } => {
                names.remove(from);
                names.insert(to.clone(), *node);
            }
        }
    }
}

#[derive(Clone, Debug)]
struct Pending {
    change: Change,
    /// The directories that are not synced since.
    dirs: Vec<PathBuf>,
}

#[derive(Clone, Debug)]
pub(super) struct Names {
    now: BTreeMap<PathBuf, Node>,
    synced: BTreeMap<PathBuf, Node>,
    pending: Vec<Pending>,
}

impl Names {
    pub(super) fn new() -> Self {
        Names { now: BTreeMap::new(), synced: BTreeMap::new(), pending: Vec::new() }
    }

    pub(super) fn now(&self) -> &BTreeMap<PathBuf, Node> {
        &self.now
    }

    pub(super) fn get(&self, path: &Path) -> Option<Node> {
        if path.as_os_str().is_empty() { Some(Node::Dir) } else { self.now.get(path).copied() }
    }

    pub(super) fn parent_of(&self, path: &Path) -> io::Result<()> {
        match path.parent().map(|parent| self.get(parent)) {
            Some(Some(Node::Dir)) => Ok(()),
            Some(Some(Node::File(_))) => Err(io::ErrorKind::NotADirectory.into()),
            _ => Err(io::ErrorKind::NotFound.into()),
        }
    }

    pub(super) fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        match self.get(dir) {
            Some(Node::Dir) => {}
            Some(Node::File(_)) => return Err(io::ErrorKind::NotADirectory.into()),
            None => return Err(io::ErrorKind::NotFound.into()),
        }
        let inside = self.now.keys().filter(|path| path.parent() == Some(dir));
        let mut names: Vec<String> =
            inside.filter_map(|path| Some(path.file_name()?.to_string_lossy().into_owned())).collect();
        names.sort_unstable();
        Ok(names)
    }

    pub(super) fn change(&mut self, change: Change) {
        change.apply(&mut self.now);
        let mut dirs: Vec<PathBuf> =
            change.paths().iter().filter_map(|path| path.parent()).map(Path::to_owned).collect();
        dirs.dedup();
        self.pending.push(Pending { change, dirs });
    }

    /// Not one step: a crash may leave any part of what was in it.
    pub(super) fn remove_dir(&mut self, path: &Path) -> io::Result<()> {
        match self.get(path) {
            Some(Node::Dir) => {}
            Some(Node::File(_)) => return Err(io::ErrorKind::NotADirectory.into()),
            None => return Err(io::ErrorKind::NotFound.into()),
        }
        let inside: Vec<PathBuf> = self
            .now
            .keys()
            .filter(|name| name.starts_with(path) && name.as_path() != path)
            .cloned()
            .collect();
        for name in inside.into_iter().rev() {
            self.change(Change::Unset { path: name });
        }
        self.change(Change::UnsetDir { path: path.to_owned() });
        Ok(())
    }

    pub(super) fn sync(&mut self, dir: &Path) -> io::Result<()> {
        if self.get(dir) != Some(Node::Dir) {
            return Err(io::ErrorKind::NotFound.into());
        }
        for pending in &mut self.pending {
            pending.dirs.retain(|unsynced| unsynced != dir);
        }
        // What a safe change stands on is safe as well.
        let mut safe: Vec<bool> = self.pending.iter().map(|pending| pending.dirs.is_empty()).collect();
        for at in (0..self.pending.len()).rev() {
            if safe[at] {
                self.stands_on(at).for_each(|earlier| safe[earlier] = true);
            }
        }
        for (at, pending) in self.pending.iter().enumerate() {
            if safe[at] {
                pending.change.apply(&mut self.synced);
            }
        }
        let mut safe = safe.into_iter();
        self.pending.retain(|_| !safe.next().unwrap_or_default());
        Ok(())
    }

    /// The earlier changes of the same names, of a directory that they are in, or of what is in the directory that goes.
    fn stands_on(&self, at: usize) -> impl Iterator<Item = usize> + '_ {
        let later = &self.pending[at].change;
        (0..at).filter(move |earlier| {
            let earlier = &self.pending[*earlier].change;
            let meet = |one: &Path, other: &Path| {
                one == other
                    || (matches!(earlier, Change::UnsetDir { .. }) && other.starts_with(one))
                    || (matches!(later, Change::UnsetDir { .. }) && one.starts_with(other))
            };
            earlier.paths().iter().any(|one| later.paths().iter().any(|other| meet(one, other)))
        })
    }

    pub(super) fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Takes back what stands on something that is not chosen.
    pub(super) fn close(&self, chosen: &mut [bool]) {
        for at in 0..chosen.len() {
            chosen[at] = chosen[at] && self.stands_on(at).all(|earlier| chosen[earlier]);
        }
    }

    /// The files that a crash may leave a name of.
    pub(super) fn reachable(&self) -> Vec<u64> {
        let pending = self.pending.iter().filter_map(|pending| match &pending.change {
            Change::Set { node, .. } | Change::Rename { node, .. } => node.file(),
            Change::Unset { .. } | Change::UnsetDir { .. } => None,
        });
        let mut files: Vec<u64> = self.synced.values().filter_map(Node::file).chain(pending).collect();
        files.sort_unstable();
        files.dedup();
        files
    }

    /// The names that a crash leaves, when these of the pending changes reached the disk.
    pub(super) fn after(&self, chosen: &[bool]) -> Names {
        let mut names = self.synced.clone();
        for (pending, _) in self.pending.iter().zip(chosen).filter(|(_, chosen)| **chosen) {
            pending.change.apply(&mut names);
        }
        // A name in a directory that is not there is nowhere. Parents come first in the order.
        let mut found = Names::new();
        for (path, node) in names {
            let parent = path.parent().unwrap_or(Path::new(""));
            if parent.as_os_str().is_empty() || found.now.get(parent) == Some(&Node::Dir) {
                found.now.insert(path, node);
            }
        }
        found.synced = found.now.clone();
        found
    }
}
