//! What a power cut may leave: one digit for every thing that is not safe.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use super::{SECTOR, State};

/// A way for the power to fail: of each change of a name whether it is there, of each length and sector which version.
///
/// Written and read as digits with dots between them, `0` for what was there at the last sync. A digit that is missing is `0`, one that is too large is the largest.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Cut {
    digits: Vec<u32>,
    tear: Tear,
}

/// Whether a sector that was being written may be found as neither the old nor a new version.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Tear {
    /// Sectors are atomic.
    #[default]
    Never,
    /// The beginning of the new one, the end of the old.
    Mixes,
    /// Anything, also where old and new are the same.
    Garbage,
}

impl Tear {
    pub(super) fn torn(
        self,
        old: &[u8; SECTOR as usize],
        new: &[u8; SECTOR as usize],
        number: u64,
    ) -> [u8; SECTOR as usize] {
        let mut random = Random::new(number);
        let mut torn = *old;
        if self == Tear::Garbage {
            torn.fill_with(|| random.next() as u8);
        } else {
            // Somewhere within what differs, or it would be one of the two.
            let differs = |(old, new): (&u8, &u8)| old != new;
            let first = old.iter().zip(new).position(differs).unwrap_or(0);
            let last = old.iter().zip(new).rposition(differs).unwrap_or(0);
            let at = first + 1 + random.below((last - first).max(1) as u64) as usize;
            let at = at.min(torn.len());
            torn[..at].copy_from_slice(&new[..at]);
        }
        torn
    }
}

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.tear {
            Tear::Never => "",
            Tear::Mixes => "m",
            Tear::Garbage => "g",
        })?;
        let digits: Vec<String> = self.digits.iter().map(u32::to_string).collect();
        f.write_str(&if digits.is_empty() { "-".to_owned() } else { digits.join(".") })
    }
}

impl FromStr for Cut {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (tear, text) = match text.split_at_checked(1) {
            Some(("m", rest)) => (Tear::Mixes, rest),
            Some(("g", rest)) => (Tear::Garbage, rest),
            _ => (Tear::Never, text),
        };
        let digits =
            text.split('.').filter(|digit| *digit != "-").map(str::parse).collect::<Result<_, _>>()?;
        Ok(Cut { digits, tear })
    }
}

#[derive(Clone, Copy, Debug)]
enum Slot {
    Name,
    Len { file: u64 },
    Sector { file: u64, number: u64 },
}

impl State {
    /// What is unsure, with how many ways there are for each. Names first, in the order of their changes.
    fn slots(&self, tear: Tear) -> Vec<(Slot, u32)> {
        let mut slots = vec![(Slot::Name, 2); self.names.pending()];
        for file in self.names.reachable() {
            let content = self.content(file);
            let lens = content.lens().len() as u32;
            if lens > 1 {
                slots.push((Slot::Len { file }, lens));
            }
            for number in content.unsure() {
                let versions = content.versions(number).len() as u32;
                slots.push((Slot::Sector { file, number }, versions + u32::from(tear != Tear::Never)));
            }
        }
        slots
    }

    /// The digits with each in its range, and no change of a name without those it stands on.
    fn normal(&self, slots: &[(Slot, u32)], digits: &[u32]) -> Vec<u32> {
        let mut digits: Vec<u32> = slots
            .iter()
            .enumerate()
            .map(|(at, (_, ways))| digits.get(at).copied().unwrap_or(0).min(ways - 1))
            .collect();
        let mut chosen: Vec<bool> = digits[..self.names.pending()].iter().map(|digit| *digit > 0).collect();
        self.names.close(&mut chosen);
        for (digit, chosen) in digits.iter_mut().zip(chosen) {
            *digit = u32::from(chosen);
        }
        digits
    }

    pub(super) fn after(&self, cut: &Cut) -> State {
        let slots = self.slots(cut.tear);
        let digits = self.normal(&slots, &cut.digits);
        let chosen: Vec<bool> = digits[..self.names.pending()].iter().map(|digit| *digit > 0).collect();
        let mut lens = BTreeMap::new();
        let mut sectors = BTreeMap::new();
        for ((slot, _), digit) in slots.iter().zip(&digits) {
            match *slot {
                Slot::Name => {}
                Slot::Len { file } => drop(lens.insert(file, *digit as usize)),
                Slot::Sector { file, number } => drop(sectors.insert((file, number), *digit as usize)),
            }
        }
        let mut state = self.clone();
        state.names = self.names.after(&chosen);
        let left: BTreeSet<u64> = state.names.reachable().into_iter().collect();
        state.files.retain(|file, _| left.contains(file));
        for (file, content) in &mut state.files {
            let sector = |number| sectors.get(&(*file, number)).copied().unwrap_or(0);
            *content = Arc::new(content.after(lens.get(file).copied().unwrap_or(0), cut.tear, sector));
        }
        state.begin();
        state
    }

    pub(super) fn cuts(&self, bound: usize, seed: u64, tear: Tear) -> Vec<Cut> {
        let slots = self.slots(tear);
        let ways = slots.iter().try_fold(1_u64, |product, (_, ways)| product.checked_mul(u64::from(*ways)));
        let found = |bound| Found { bound, seen: BTreeSet::new(), cuts: Vec::new(), tear };
        // Not all of the ways are different: a name that was not made cannot be renamed.
        if let Some(ways) = ways.filter(|ways| *ways <= 4 * bound as u64) {
            let mut all = found(usize::MAX);
            self.all_cuts(&slots, ways, &mut all);
            if all.cuts.len() <= bound {
                return all.cuts;
            }
        }
        let mut some = found(bound);
        self.some_cuts(&slots, seed, &mut some);
        some.cuts
    }

    fn all_cuts(&self, slots: &[(Slot, u32)], ways: u64, found: &mut Found) {
        for number in 0..ways {
            let mut rest = number;
            let mut digits = Vec::with_capacity(slots.len());
            for (_, ways) in slots {
                digits.push((rest % u64::from(*ways)) as u32);
                rest /= u64::from(*ways);
            }
            found.add(self.normal(slots, &digits));
        }
    }

    fn some_cuts(&self, slots: &[(Slot, u32)], seed: u64, found: &mut Found) {
        let newest: Vec<u32> = slots.iter().map(|(slot, ways)| newest(*slot, *ways, found.tear)).collect();
        let oldest = vec![0; slots.len()];
        found.add(self.normal(slots, &oldest));
        found.add(self.normal(slots, &newest));
        let mut random = Random::new(seed);
        // One thing alone lost, or kept: what most mistakes show at. Half of the room at most.
        let mut singles: Vec<usize> = (0..2 * slots.len()).collect();
        random.shuffle(&mut singles);
        for single in singles.into_iter().take(found.bound / 2) {
            let (at, base, other) = match single.checked_sub(slots.len()) {
                Some(at) => (at, &oldest, &newest),
                None => (single, &newest, &oldest),
            };
            let mut digits = base.clone();
            digits[at] = other[at];
            found.add(self.normal(slots, &digits));
        }
        for _ in 0..4 * found.bound {
            // Mostly lost, half, or mostly there.
            let weight = [1, 4, 7][random.below(3) as usize];
            let digits: Vec<u32> = (slots.iter().zip(&newest))
                .map(|((_, ways), newest)| match random.below(8) {
                    roll if roll >= weight => 0,
                    _ if random.below(4) > 0 => *newest,
                    _ => random.below(u64::from(*ways)) as u32,
                })
                .collect();
            found.add(self.normal(slots, &digits));
        }
    }
}

fn newest(slot: Slot, ways: u32, tear: Tear) -> u32 {
    match slot {
        Slot::Sector { .. } if tear != Tear::Never => ways - 2,
        _ => ways - 1,
    }
}

struct Found {
    bound: usize,
    seen: BTreeSet<Vec<u32>>,
    cuts: Vec<Cut>,
    tear: Tear,
}

impl Found {
    fn add(&mut self, digits: Vec<u32>) {
        if self.cuts.len() < self.bound && self.seen.insert(digits.clone()) {
            self.cuts.push(Cut { digits, tear: self.tear });
        }
    }
}

/// Splitmix64: small, and the same everywhere.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Random(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }

    pub(crate) fn shuffle<T>(&mut self, values: &mut [T]) {
        for at in (1..values.len()).rev() {
            values.swap(at, self.below(at as u64 + 1) as usize);
        }
    }
}
