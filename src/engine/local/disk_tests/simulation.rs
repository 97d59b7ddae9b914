//! Random programs, and a crash after each: the same seed gives the same run.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use super::audit::audit;
use super::driver::{Log, Process};
use super::history::History;
use super::{DIR, open, setting};
use crate::engine::local::disk_tests::eventflow::ManualClock;
use crate::journal::disk::Disk;
use crate::journal::disk::faulty::{Fault, FaultyDisk, KINDS, Lasts};
use crate::journal::disk::sim::{Full, Random, SimDisk, Tear};

/// What goes wrong while a process runs.
#[derive(Clone, Copy, Debug)]
enum Trouble {
    None,
    Stop(u64),
    Fault(Fault, u64, Lasts),
    LoseSync(u64),
    Full(u64, Full),
}

/// How a process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The machine goes on.
    Kill,
    Power,
    /// In good order, and then the power fails.
    ShutDown,
    /// All handles are dropped.
    Drop,
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    pub(super) crashes: u64,
    pub(super) in_recovery: u64,
    pub(super) steps: u64,
    pub(super) troubles: u64,
    pub(super) checkpoints: u64,
    /// How many processes ended with topics' own files on the disk.
    pub(super) archives: u64,
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Counts { crashes, in_recovery, steps, troubles, checkpoints, archives } = self;
        write!(
            f,
            "{crashes} crashes, {in_recovery} crashes in a recovery, {troubles} crashes after a failure, {checkpoints} crashes after a checkpoint, {archives} crashes with files of topics, {steps} steps"
        )
    }
}

struct Simulation {
    random: Random,
    disk: SimDisk,
    history: History,
    log: Log,
    counts: Counts,
    /// Whether what was not synced may have gone with the last crash.
    has_lost: bool,
}

/// A whole run. What goes wrong is told with the newest of what was done.
fn run(seed: u64, generations: u64, counts: &mut Counts) -> Result<Vec<String>, String> {
    let mut simulation = Simulation {
        random: Random::new(seed),
        disk: SimDisk::new(),
        history: History::default(),
        log: Log::default(),
        counts: *counts,
        has_lost: false,
    };
    for _ in 0..generations {
        let done = simulation.generation();
        *counts = simulation.counts;
        done.map_err(|what| {
            let (log, trace) = (
                simulation.log.newest(setting("EVENTFLOW_DISK_LINES", 60) as usize),
                simulation.disk.trace(20),
            );
            format!("{what}\nseed {seed}; what was done:\n{log}\nthe newest calls:\n{trace}")
        })?;
    }
    Ok(simulation.log.lines().to_vec())
}

impl Simulation {
    fn draw_trouble(&mut self) -> Trouble {
        let random = &mut self.random;
        let kind = KINDS[random.below(8) as usize];
        let lasts = if random.below(2) == 0 { Lasts::Once } else { Lasts::ForGood };
        match random.below(10) {
            0..3 => Trouble::None,
            3..6 => Trouble::Stop(1 + random.below(150)),
            6 => Trouble::LoseSync(1 + random.below(60)),
            7 => Trouble::Full(
                random.below(40_000),
                [Full::Refuses, Full::WritesShort][random.below(2) as usize],
            ),
            _ => {
                let faults = [
                    Fault::Fails(kind),
                    Fault::FailsAfter(kind),
                    Fault::WritesHalfAndFails(kind),
                    Fault::WritesShort,
                ];
                Trouble::Fault(faults[random.below(4) as usize], 1 + random.below(200), lasts)
            }
        }
    }

    fn draw_end(&mut self) -> End {
        match self.random.below(10) {
            0..4 => End::Kill,
            4..8 => End::Power,
            8 => End::ShutDown,
            _ => End::Drop,
        }
    }

    fn generation(&mut self) -> Result<(), String> {
        let (trouble, end) = (self.draw_trouble(), self.draw_end());
        let steps = 5 + self.random.below(60);
        self.log.say(format!("-- {trouble:?}, {end:?}"));
        let (disk, is_troubled) = self.troubled(trouble);
        let Simulation { history, log, random, .. } = self;
        let started = Process::start(disk, history, log, random, is_troubled)?;
        if let Some(mut process) = started {
            for step in 0..steps {
                self.counts.steps += 1;
                process.step()?;
                if matches!(trouble, Trouble::Full(..)) && step == steps / 2 {
                    self.disk.set_capacity(u64::MAX, Full::Refuses);
                }
            }
            self.counts.troubles += u64::from(process.in_trouble());
            self.counts.checkpoints += u64::from(self.disk.trace(200).contains("checkpoint"));
            let names = self.disk.list(Path::new(DIR)).unwrap_or_default();
            self.counts.archives += u64::from(names.iter().any(|name| name.starts_with("topic-")));
            match end {
                End::ShutDown => process.shut_down()?,
                End::Drop => drop(process),
                // What the process drops then does not reach this disk.
                End::Kill | End::Power => self.disk = self.disk.fork(),
            }
        }
        let with_power = matches!(end, End::Power | End::ShutDown);
        self.has_lost = false;
        self.ends(with_power, matches!(trouble, Trouble::LoseSync(_)))?;
        self.history.crashed(self.has_lost);
        self.look()
    }

    fn troubled(&self, trouble: Trouble) -> (Arc<dyn Disk>, Box<dyn Fn() -> bool>) {
        let disk = self.disk.clone();
        let plain: Arc<dyn Disk> = Arc::new(disk.clone());
        match trouble {
            Trouble::None => (plain, Box::new(|| false)),
            Trouble::Stop(change) => {
                disk.stop_at(change);
                (plain, Box::new(move || disk.is_down()))
            }
            Trouble::LoseSync(number) => {
                disk.lose_sync(number);
                (plain, Box::new(move || disk.syncs() >= number))
            }
            Trouble::Full(room, full) => {
                disk.set_capacity(disk.used() + room, full);
                (plain, Box::new(|| true))
            }
            Trouble::Fault(fault, at, lasts) => {
                let faulty = FaultyDisk::new(plain, fault, at, lasts);
                (Arc::new(faulty.clone()), Box::new(move || faulty.fired() > 0))
            }
        }
    }

    /// This process, or machine, ends; and perhaps so does the next one while it recovers.
    fn ends(&mut self, with_power: bool, has_lost: bool) -> Result<(), String> {
        self.cut(with_power, has_lost);
        for _ in 0..2 {
            if self.random.below(4) > 0 {
                break;
            }
            self.counts.in_recovery += 1;
            let trouble = match self.draw_trouble() {
                Trouble::Stop(change) => Trouble::Stop(1 + change % 30),
                Trouble::LoseSync(number) => Trouble::LoseSync(1 + number % 6),
                Trouble::Fault(fault, at, lasts) => Trouble::Fault(fault, 1 + at % 60, lasts),
                other => other,
            };
            let with_power = self.random.below(2) == 0;
            let (disk, is_troubled) = self.troubled(trouble);
            let opened = open(disk, &ManualClock::new());
            let said = opened.as_ref().map(|_| ()).map_err(ToString::to_string);
            self.log.say(format!("recovery, {trouble:?}: {said:?}"));
            if opened.is_err() && !is_troubled() {
                return Err(format!("P18: it does not open: {opened:?}"));
            }
            self.disk.stop();
            drop(opened);
            self.cut(with_power, matches!(trouble, Trouble::LoseSync(_)));
        }
        Ok(())
    }

    fn cut(&mut self, with_power: bool, has_lost: bool) {
        self.counts.crashes += 1;
        self.disk.set_capacity(u64::MAX, Full::Refuses);
        if !with_power {
            self.disk = self.disk.kill();
            if has_lost && self.random.below(2) == 0 {
                self.log.say("the cache is evicted".to_owned());
                self.has_lost = true;
                self.disk.evict();
            }
            return;
        }
        self.has_lost = true;
        // A sector that held what was confirmed, and is garbage after the next write to it, is damage, and refused.
        let tear = [Tear::Never, Tear::Mixes][self.random.below(2) as usize];
        let cuts = self.disk.cuts(8, self.random.next(), tear);
        let cut = &cuts[self.random.below(cuts.len() as u64) as usize];
        self.log.say(format!("the power fails: {cut}"));
        self.disk = self.disk.restart(cut);
    }

    fn look(&mut self) -> Result<(), String> {
        // Only what a whole recovery has made safe is decided.
        let opened = open(Arc::new(self.disk.clone()), &ManualClock::new());
        if let Err(error) = opened {
            return Err(format!("P18: it does not open: {error}"));
        }
        self.disk = self.disk.kill();
        drop(opened);
        let reversed = self.random.below(2) == 0;
        let found = audit(&self.disk.fork(), self.history.clock, reversed)?;
        for (name, book) in found.topics.values().flat_map(|topic| &topic.subscriptions) {
            let deliveries = book.deliveries.iter().map(|seen| (seen.message, seen.attempt));
            self.log.say(format!("found on {name}: {:?}", deliveries.collect::<Vec<_>>()));
        }
        self.history.compare(&found)
    }
}

#[test]
fn p1_to_p15_hold_over_random_programs_and_crashes() {
    let first = setting("EVENTFLOW_DISK_SEED", 1);
    let seeds = setting("EVENTFLOW_DISK_SEEDS", 24);
    let generations = setting("EVENTFLOW_DISK_GENERATIONS", 8);
    let mut counts = Counts::default();
    let mut failures = 0;
    for seed in first..first + seeds {
        if let Err(what) = run(seed, generations, &mut counts) {
            failures += 1;
            println!("FAILED seed {seed}: {}", what.lines().next().unwrap_or_default());
            if setting("EVENTFLOW_DISK_GO_ON", 0) == 0 {
                panic!("{what}");
            }
        }
    }
    println!("figures: {counts}");
    assert_eq!(failures, 0);
}

#[test]
fn the_same_seed_gives_the_same_run() {
    for seed in 1..3 {
        let [one, other] = [(); 2].map(|()| run(seed, 4, &mut Counts::default()));
        assert_eq!(one, other, "seed {seed}");
    }
}
