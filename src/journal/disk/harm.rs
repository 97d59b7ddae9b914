//! What age, a bad cable and a careless hand do to files.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use super::sim::SimDisk;
use super::{Access, Disk};

const SECTOR: usize = 512;

/// What a directory holds, and what is below it, by path.
pub(crate) type Files = BTreeMap<PathBuf, Vec<u8>>;

pub(crate) fn files(disk: &SimDisk, dir: &Path) -> Files {
    let mut files = Files::new();
    add_files(disk, dir, &mut files);
    files
}

fn add_files(disk: &SimDisk, dir: &Path, files: &mut Files) {
    for name in disk.list(dir).expect("it is a directory") {
        let path = dir.join(name);
        let Ok(file) = disk.open(&path, Access::Read) else {
            add_files(disk, &path, files);
            continue;
        };
        let mut bytes = vec![0; file.len().expect("it has a length") as usize];
        if !bytes.is_empty() {
            assert_eq!(file.read_at(&mut bytes, 0).expect("it can be read"), bytes.len());
        }
        files.insert(path, bytes);
    }
}

/// Something that happens to one file.
#[derive(Clone, Debug)]
pub(crate) struct Harm {
    pub(crate) file: PathBuf,
    pub(crate) how: How,
}

#[derive(Clone, Debug)]
pub(crate) enum How {
    Flipped { at: usize, mask: u8 },
    Cut { len: usize },
    Sector { at: usize, bytes: Vec<u8>, what: &'static str },
    Gone,
    SwappedWith(PathBuf),
}

impl fmt::Display for Harm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = self.file.display();
        match &self.how {
            How::Flipped { at, mask } => write!(f, "{file}, byte {at}, bits {mask:08b}"),
            How::Cut { len } => write!(f, "{file}, cut to {len}"),
            How::Sector { at, what, .. } => write!(f, "{file}, sector at {at} {what}"),
            How::Gone => write!(f, "{file} is gone"),
            How::SwappedWith(other) => write!(f, "{file} and {} swapped", other.display()),
        }
    }
}

impl Harm {
    pub(crate) fn do_to(&self, disk: &SimDisk) {
        let file = || disk.open(&self.file, Access::Write).expect("it is there");
        match &self.how {
            How::Flipped { at, mask } => {
                disk.damage(self.file.to_str().expect("it has a plain name"), *at as u64, *mask);
            }
            How::Cut { len } => file().set_len(*len as u64).expect("it can be cut"),
            How::Sector { at, bytes, .. } => {
                assert_eq!(file().write_at(bytes, *at as u64).expect("it can be written"), bytes.len());
            }
            How::Gone => disk.remove(&self.file).expect("it can be removed"),
            How::SwappedWith(other) => {
                let aside = self.file.with_file_name("aside");
                disk.rename(&self.file, &aside).expect("it can be renamed");
                disk.rename(other, &self.file).expect("it can be renamed");
                disk.rename(&aside, other).expect("it can be renamed");
            }
        }
    }
}

/// A long run of one letter is the same everywhere but at its ends.
fn is_dull(bytes: &[u8], at: usize) -> bool {
    let (from, to) = (at.saturating_sub(64), (at + 64).min(bytes.len()));
    at > 64 && bytes[from..to].iter().all(|byte| *byte == bytes[from] && byte.is_ascii_graphic())
}

fn is_empty(bytes: &[u8], at: usize, near: usize) -> bool {
    bytes[at.saturating_sub(near)..(at + near).min(bytes.len())].iter().all(|&byte| byte == 0)
}

/// Every bit, or one of `step`, of all bytes where something is, and of some where nothing is.
pub(crate) fn flips(files: &Files, step: usize) -> Vec<Harm> {
    let mut harms = Vec::new();
    for (file, bytes) in files {
        let matters = |at: usize| (!is_empty(bytes, at, 40) && !is_dull(bytes, at)) || at.is_multiple_of(251);
        for at in (0..bytes.len()).filter(|&at| matters(at)) {
            for bit in (0..8).filter(|bit| (8 * at + bit) % step == 0) {
                let how = How::Flipped { at, mask: 1 << bit };
                harms.push(Harm { file: file.clone(), how });
            }
        }
    }
    harms
}

/// Every length, or one of `step`, near where something is, and some where nothing is.
pub(crate) fn cuts(files: &Files, step: usize) -> Vec<Harm> {
    let mut harms = Vec::new();
    for (file, bytes) in files {
        let matters = |at: usize| (!is_empty(bytes, at, 8) && !is_dull(bytes, at)) || at.is_multiple_of(101);
        let lens = (0..bytes.len()).filter(|&len| matters(len) && len % step == 0);
        harms.extend(lens.map(|len| Harm { file: file.clone(), how: How::Cut { len } }));
    }
    harms
}

/// Every sector as zeros, as ones, as it was in `earlier`, as another of its file, and as that of another file.
pub(crate) fn sectors(files: &Files, earlier: &Files) -> Vec<Harm> {
    let mut harms = Vec::new();
    for (file, bytes) in files {
        for at in (0..bytes.len()).step_by(SECTOR) {
            let end = (at + SECTOR).min(bytes.len());
            let mut harm = |replacement: &[u8], what| {
                if replacement != &bytes[at..end] {
                    let how = How::Sector { at, bytes: replacement.to_vec(), what };
                    harms.push(Harm { file: file.clone(), how });
                }
            };
            harm(&vec![0; end - at], "zeroed");
            harm(&vec![0xff; end - at], "ones");
            if let Some(stale) = earlier.get(file).and_then(|earlier| earlier.get(at..end)) {
                harm(stale, "stale");
            }
            for other in (0..bytes.len()).step_by(SECTOR) {
                let other_end = (other + SECTOR).min(bytes.len());
                if other_end - other == end - at && bytes[other..other_end].iter().any(|&byte| byte != 0) {
                    harm(&bytes[other..other_end], "misplaced");
                }
            }
            for (_, foreign) in files.iter().filter(|(other, _)| *other != file) {
                if let Some(sector) = foreign.get(at..end) {
                    harm(sector, "another file's");
                }
            }
        }
    }
    harms
}

/// Every file gone, and every two swapped.
pub(crate) fn names(files: &Files) -> Vec<Harm> {
    let mut harms = Vec::new();
    for file in files.keys() {
        harms.push(Harm { file: file.clone(), how: How::Gone });
        for other in files.keys().filter(|other| *other > file) {
            harms.push(Harm { file: file.clone(), how: How::SwappedWith(other.clone()) });
        }
    }
    harms
}

/// What openings came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Figures {
    pub(crate) tried: u64,
    /// All was there.
    pub(crate) whole: u64,
    /// Refused, with the place named.
    pub(crate) refused: u64,
    /// Served, with something missing that was reported.
    pub(crate) rest: u64,
}

impl std::ops::AddAssign for Figures {
    fn add_assign(&mut self, other: Figures) {
        self.tried += other.tried;
        self.whole += other.whole;
        self.refused += other.refused;
        self.rest += other.rest;
    }
}

/// What kind a file is of, by the first word of its name.
fn kind_of(file: &Path) -> String {
    let name = file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    match name.split(['-', '.']).next() {
        // Of a topic.
        Some("file") => "archive".to_owned(),
        kind => kind.unwrap_or_default().to_owned(),
    }
}

/// Judges each of these harms to a copy of `disk`, on both processors, and says what they came to. `judge` panics at a silent loss.
pub(crate) fn judge_each(
    what: &str,
    disk: &SimDisk,
    harms: &[Harm],
    judge: impl Fn(&SimDisk, &Harm) -> Figures + Sync,
) -> Figures {
    type ByKind = BTreeMap<String, Figures>;
    let run = |harms: &[Harm]| {
        let mut by_kind = ByKind::new();
        for harm in harms {
            let disk = disk.fork();
            harm.do_to(&disk);
            *by_kind.entry(kind_of(&harm.file)).or_default() += judge(&disk, harm);
        }
        by_kind
    };
    let by_kind = std::thread::scope(|scope| {
        let (first, second) = harms.split_at(harms.len() / 2);
        let second = scope.spawn(|| run(second));
        let mut by_kind = run(first);
        for (kind, figures) in second.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)) {
            *by_kind.entry(kind).or_default() += figures;
        }
        by_kind
    });
    let mut all = Figures::default();
    for (kind, figures) in by_kind {
        let Figures { tried, whole, refused, rest } = figures;
        println!(
            "figures: {tried} {what} of {kind}, {whole} of {kind} cost nothing, {refused} of {kind} refused, {rest} of {kind} served without what they hit, 0 silent losses"
        );
        all += figures;
    }
    all
}
