//! Crashes at every write and sync, with every part of what was not synced; crashes in the recovery from it; and every call failing.

use super::*;
use crate::journal::disk::explore::{Bounds, Scenario, crashes, failures};
use crate::journal::disk::sim::Tear;

/// What became of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// It was confirmed, or found.
    There,
    /// Nobody knows yet.
    Open,
    /// It was refused, or not found.
    Gone,
}

/// Every entry that was ever added, in that order.
#[derive(Clone, Debug, Default)]
struct History(Vec<(String, Fate)>);

impl History {
    /// Adds, and does not wait. None: nothing more is accepted.
    fn add(&mut self, open: &Open, entry: String, space: Space) -> Option<Position> {
        let position = open.journal.add(entry.as_bytes(), space, self.0.len() as u64);
        self.0.push((entry, if position.is_ok() { Fate::Open } else { Fate::Gone }));
        position.ok()
    }

    /// For `act`.
    fn done(&mut self, number: u64, fate: &Result<(), JournalError>, confirms: bool) {
        let entry = &mut self.0[number as usize].1;
        assert_eq!(*entry, Fate::Open, "each is given back once");
        *entry = match fate {
            Ok(()) if confirms => Fate::There,
            Ok(()) | Err(JournalError::Indeterminate(_)) => Fate::Open,
            Err(_) => Fate::Gone,
        };
    }
}

struct Workload {
    options: JournalOptions,
    steps: &'static [Step],
}

#[derive(Clone, Copy, Debug)]
enum Step {
    /// So many entries of this length, in one commit.
    Commit(usize, usize),
    Write(usize),
    Reserve(usize),
    Checkpoint,
    Sync,
    Close,
}

impl Workload {
    /// False: it is of no use to go on.
    fn step(&self, open: &Open, step: Step, name: &str, history: &mut History) -> bool {
        let confirms = self.options.durability == Durability::Always;
        let journal = &open.journal;
        let entry = |number: usize, len: usize| format!("{name}.{number}{}", "x".repeat(len));
        match step {
            Step::Commit(..) | Step::Write(_) | Step::Reserve(_) => {
                let (count, len, space) = match step {
                    Step::Commit(count, len) => (count, len, Space::Ordinary),
                    Step::Write(len) => (1, len, Space::Ordinary),
                    Step::Reserve(len) => (1, len, Space::Reserve),
                    _ => unreachable!(),
                };
                let mut last = None;
                for number in 0..count {
                    last = history.add(open, entry(number, len), space);
                }
                let Some(last) = last else { return false };
                let act = &mut |number, fate| history.done(number, &fate, confirms);
                let settled = if let Step::Write(_) = step {
                    journal.write(last, act)
                } else {
                    journal.commit(last, act)
                };
                matches!(settled, Ok(()) | Err(JournalError::NoSpace))
            }
            Step::Checkpoint => {
                let list: Vec<String> =
                    open.found.texts().into_iter().chain(self.own(open, history)).collect();
                let mut chunks = list.iter().map(|entry| entry.as_bytes().to_vec());
                let end = journal.end();
                let written = journal
                    .checkpoint(end, &mut chunks, &mut |number, fate| history.done(number, &fate, confirms));
                self.synced(&written, history);
                matches!(written, Ok(()) | Err(JournalError::NoSpace))
            }
            Step::Sync | Step::Close => {
                let act = &mut |number, fate| history.done(number, &fate, confirms);
                let synced = if let Step::Sync = step { journal.sync_all(act) } else { journal.close(act) };
                self.synced(&synced, history);
                synced.is_ok()
            }
        }
    }

    /// What this process added that is in the journal.
    fn own(&self, open: &Open, history: &History) -> Vec<String> {
        let found = open.found.texts();
        let counts = |fate: Fate| {
            fate == Fate::There || (fate == Fate::Open && self.options.durability != Durability::Always)
        };
        history
            .0
            .iter()
            .filter(|(entry, fate)| counts(*fate) && !found.contains(entry))
            .map(|(entry, _)| entry.clone())
            .collect()
    }

    fn synced(&self, done: &Result<(), JournalError>, history: &mut History) {
        if done.is_ok() {
            for (_, fate) in history.0.iter_mut().filter(|(_, fate)| *fate == Fate::Open) {
                *fate = Fate::There;
            }
        }
    }
}

impl Scenario for Workload {
    type History = History;
    type Image = Vec<String>;

    fn work(&self, disk: Arc<dyn Disk>, round: u32, history: &mut History) {
        let Ok(open) = open_on(disk, Path::new(DIR), self.options) else { return };
        // To open is to look: what is found is there from now on.
        self.served(&open.found.texts(), history);
        for (number, step) in self.steps.iter().enumerate() {
            if !self.step(&open, *step, &format!("{round}.{number}"), history) {
                return;
            }
        }
    }

    fn look(&self, disk: Arc<dyn Disk>, history: &History) -> Result<Vec<String>, String> {
        let open = open_on(disk, Path::new(DIR), self.options).map_err(|error| error.to_string())?;
        let found = open.found.texts();
        let mut rest = found.iter();
        let mut next = rest.next();
        let mut missing = None;
        for (entry, fate) in &history.0 {
            let here = next == Some(entry);
            match fate {
                Fate::There if !here => return Err(format!("{entry:.20} is not there: {found:.20?}")),
                Fate::Gone if here => return Err(format!("{entry:.20} was refused and is there")),
                Fate::Open if here && missing.is_some() => {
                    return Err(format!("{entry:.20} is there, and not {missing:.20?} before it"));
                }
                Fate::Open if !here => missing = Some(entry),
                _ => {}
            }
            if here {
                next = rest.next();
            }
        }
        match next {
            Some(entry) => Err(format!("{entry:.20} was never added, or not here")),
            None => Ok(found),
        }
    }

    fn served(&self, image: &Vec<String>, history: &mut History) {
        for (entry, fate) in history.0.iter_mut().filter(|(_, fate)| *fate == Fate::Open) {
            *fate = if image.contains(entry) { Fate::There } else { Fate::Gone };
        }
    }
}

/// Commits in one segment.
fn commits() -> Workload {
    use Step::{Close, Commit, Write};
    Workload { options: small(), steps: &[Commit(1, 10), Commit(3, 10), Write(10), Commit(1, 700), Close] }
}

/// Segments that fill, are let go of, and are used again.
fn segments() -> Workload {
    use Step::{Checkpoint, Commit};
    Workload {
        options: small(),
        steps: &[
            Commit(1, 5000),
            Commit(1, 3000),
            Checkpoint,
            Commit(2, 3000),
            Checkpoint,
            Commit(1, 3500),
            Commit(1, 10),
        ],
    }
}

/// Commits that are synced later.
fn written() -> Workload {
    use Step::{Checkpoint, Close, Commit, Reserve, Sync};
    Workload {
        options: JournalOptions { durability: Durability::Os, ..small() },
        steps: &[
            Commit(1, 10),
            Commit(1, 5000),
            Sync,
            Commit(1, 3000),
            Reserve(10),
            Checkpoint,
            Commit(1, 600),
            Close,
        ],
    }
}

fn crashes_lose_nothing(workload: &Workload) {
    let seed = setting("EVENTFLOW_DISK_SEED", 1);
    let cuts = setting("EVENTFLOW_DISK_CUTS", 8) as usize;
    let recoveries = setting("EVENTFLOW_DISK_RECOVERIES", 1) as usize;
    let cuts_again = setting("EVENTFLOW_DISK_CUTS_AGAIN", 1) as usize;
    for tear in [Tear::Never, Tear::Mixes] {
        let bounds = Bounds { tear, cuts, recoveries, cuts_again, seed };
        let report =
            crashes(workload, &bounds).unwrap_or_else(|wrong| panic!("{tear:?}, seed {seed}: {wrong:?}"));
        println!("figures: {report}");
    }
}

#[test]
fn a_crash_anywhere_loses_nothing_of_commits() {
    crashes_lose_nothing(&commits());
}

#[test]
fn a_crash_anywhere_loses_nothing_in_segments_that_come_and_go() {
    crashes_lose_nothing(&segments());
}

#[test]
fn a_crash_anywhere_loses_nothing_that_was_synced_later() {
    crashes_lose_nothing(&written());
}

fn failures_lose_nothing(workload: &Workload) {
    let seed = setting("EVENTFLOW_DISK_SEED", 2);
    let recoveries = setting("EVENTFLOW_DISK_RECOVERIES", 1) as usize;
    let bounds = Bounds { recoveries, cuts_again: 1, ..Bounds::quick(seed) };
    let report = failures(workload, &bounds).unwrap_or_else(|wrong| panic!("seed {seed}: {wrong:?}"));
    println!("figures: {report}");
}

#[test]
fn a_failure_of_any_call_loses_nothing_in_segments_that_come_and_go() {
    failures_lose_nothing(&segments());
}

#[test]
fn a_failure_of_any_call_loses_nothing_that_was_synced_later() {
    failures_lose_nothing(&written());
}
