//! What is in a file: as it reads now, as it is on the disk, and what was written in between.

use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use super::SECTOR;
use super::outcome::Tear;

type Sector = Arc<[u8; SECTOR as usize]>;

/// Sectors that nobody wrote are not in the maps, and read as zeros.
#[derive(Clone, Debug, Default)]
pub(super) struct Content {
    now: Image,
    synced: Image,
    /// Everything written to a sector since it was last synced, oldest first.
    written: BTreeMap<u64, Vec<Sector>>,
    /// Lengths since the last sync, oldest first.
    lens: Vec<u64>,
}

#[derive(Clone, Debug, Default)]
struct Image {
    len: u64,
    sectors: BTreeMap<u64, Sector>,
}

impl Image {
    fn sector(&self, number: u64) -> Sector {
        self.sectors.get(&number).cloned().unwrap_or_else(|| Arc::new([0; SECTOR as usize]))
    }
}

/// As it reads now.
impl Hash for Content {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        self.now.len.hash(hasher);
        let visible = self.now.sectors.range(..self.now.len.div_ceil(SECTOR));
        for (number, sector) in visible.filter(|(_, sector)| ***sector != [0; SECTOR as usize]) {
            (number, &sector[..]).hash(hasher);
        }
    }
}

impl Content {
    pub(super) fn len(&self) -> u64 {
        self.now.len
    }

    pub(super) fn read_at(&self, buffer: &mut [u8], offset: u64) -> usize {
        let len = self.now.len.saturating_sub(offset).min(buffer.len() as u64);
        let mut done = 0;
        while done < len {
            let (number, inside) = ((offset + done) / SECTOR, (offset + done) % SECTOR);
            let part = (SECTOR - inside).min(len - done);
            let into = &mut buffer[done as usize..(done + part) as usize];
            match self.now.sectors.get(&number) {
                Some(sector) => into.copy_from_slice(&sector[inside as usize..(inside + part) as usize]),
                None => into.fill(0),
            }
            done += part;
        }
        len as usize
    }

    pub(super) fn write_at(&mut self, bytes: &[u8], offset: u64) {
        let mut done = 0;
        while done < bytes.len() {
            let at = offset + done as u64;
            let (number, inside) = (at / SECTOR, (at % SECTOR) as usize);
            let part = (SECTOR as usize - inside).min(bytes.len() - done);
            let mut sector = *self.now.sector(number);
            sector[inside..inside + part].copy_from_slice(&bytes[done..done + part]);
            self.put(number, sector);
            done += part;
        }
        let end = offset + bytes.len() as u64;
        if end > self.now.len && !bytes.is_empty() {
            self.now.len = end;
            self.lens.push(end);
        }
    }

    fn put(&mut self, number: u64, sector: [u8; SECTOR as usize]) {
        let sector = Arc::new(sector);
        self.now.sectors.insert(number, sector.clone());
        self.written.entry(number).or_default().push(sector);
    }

    /// What is cut off reads as zeros if the file grows again.
    pub(super) fn set_len(&mut self, len: u64) {
        if len == self.now.len {
            return;
        }
        if len < self.now.len {
            let cut: Vec<u64> = self.now.sectors.range(len / SECTOR..).map(|(number, _)| *number).collect();
            for number in cut {
                let mut sector = *self.now.sector(number);
                let kept = len.saturating_sub(number * SECTOR).min(SECTOR) as usize;
                sector[kept..].fill(0);
                self.put(number, sector);
                if kept == 0 {
                    self.now.sectors.remove(&number);
                }
            }
        }
        self.now.len = len;
        self.lens.push(len);
    }

    pub(super) fn sync(&mut self) {
        for (number, mut versions) in std::mem::take(&mut self.written) {
            let newest = versions.pop().expect("a written sector has a version");
            self.synced.sectors.insert(number, newest);
        }
        self.synced.len = self.now.len;
        self.lens.clear();
    }

    /// A write-back that failed: nothing of it reached the disk, and nobody will try again.
    pub(super) fn lose(&mut self) {
        self.written.clear();
    }

    pub(super) fn evict(&mut self) {
        let clean = |number: &u64| !self.written.contains_key(number);
        let numbers: Vec<u64> = self.now.sectors.keys().copied().filter(clean).collect();
        for number in numbers {
            match self.synced.sectors.get(&number) {
                Some(sector) => self.now.sectors.insert(number, sector.clone()),
                None => self.now.sectors.remove(&number),
            };
        }
    }

    pub(super) fn used(&self) -> u64 {
        self.now.sectors.len() as u64 * SECTOR
    }

    /// How many bytes of a write need no more than `free` new sectors.
    pub(super) fn fits(&self, len: usize, offset: u64, free: u64) -> usize {
        let end = offset + len as u64;
        let mut left = free;
        for number in offset / SECTOR..end.div_ceil(SECTOR) {
            if self.now.sectors.contains_key(&number) {
                continue;
            }
            if left == 0 {
                return (number * SECTOR).saturating_sub(offset) as usize;
            }
            left -= 1;
        }
        len
    }

    pub(super) fn damage(&mut self, offset: u64, mask: u8) {
        for image in [&mut self.now, &mut self.synced] {
            let mut sector = *image.sector(offset / SECTOR);
            sector[(offset % SECTOR) as usize] ^= mask;
            image.sectors.insert(offset / SECTOR, Arc::new(sector));
        }
    }

    /// The lengths that a crash may leave, the synced one first, the newest last.
    pub(super) fn lens(&self) -> Vec<u64> {
        distinct(self.synced.len, self.lens.iter().copied())
    }

    /// The sectors of which a crash may leave more than one thing.
    pub(super) fn unsure(&self) -> Vec<u64> {
        self.written.keys().copied().filter(|number| self.versions(*number).len() > 1).collect()
    }

    /// What a crash may leave of a sector, the synced one first, the newest last.
    pub(super) fn versions(&self, number: u64) -> Vec<Sector> {
        distinct(self.synced.sector(number), self.written.get(&number).into_iter().flatten().cloned())
    }

    /// The file as a crash leaves it: `len` and `sector` choose among [`lens`](Self::lens) and [`versions`](Self::versions); a choice beyond the last tears the sector.
    pub(super) fn after(&self, len: usize, tear: Tear, sector: impl Fn(u64) -> usize) -> Content {
        let lens = self.lens();
        let mut image = self.synced.clone();
        for number in self.unsure() {
            let versions = self.versions(number);
            let chosen = match versions.get(sector(number)) {
                Some(version) => version.clone(),
                None => Arc::new(tear.torn(&versions[0], &versions[versions.len() - 1], number)),
            };
            image.sectors.insert(number, chosen);
        }
        image.len = lens[len.min(lens.len() - 1)];
        image.sectors.retain(|number, _| number * SECTOR < image.len);
        // The rest of the last sector is not part of the file, and zeros when it becomes so.
        let (last, inside) = (image.len / SECTOR, (image.len % SECTOR) as usize);
        if inside > 0 && image.sectors.contains_key(&last) {
            let mut sector = *image.sector(last);
            sector[inside..].fill(0);
            image.sectors.insert(last, Arc::new(sector));
        }
        Content { now: image.clone(), synced: image, written: BTreeMap::new(), lens: Vec::new() }
    }
}

/// The first, then the others, each where it came last. The last may be the first once more.
fn distinct<T: PartialEq>(first: T, others: impl Iterator<Item = T>) -> Vec<T> {
    let mut values = vec![first];
    for value in others {
        if let Some(at) = values.iter().skip(1).position(|other| *other == value) {
            values.remove(at + 1);
        }
        values.push(value);
    }
    if values.len() == 2 && values[0] == values[1] {
        values.pop();
    }
    values
}
