//! Short programs, all there are, with a crash at every call, in every part of what was not synced, and another in the recovery; and with every call failing.

use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;

use super::audit::{Found, audit};
use super::compare::DEAD;
use super::driver::{Log, Process};
use super::eventflow::{DeliveryMode, ManualClock};
use super::history::{History, Plan};
use super::{DIR, open, setting};
use crate::journal::disk::explore::{Bounds, Report, Scenario, crashes, failures};
use crate::journal::disk::faulty::{Fault, FaultyDisk, KINDS, Lasts};
use crate::journal::disk::sim::{Random, SimDisk, Tear};
use crate::journal::disk::{Access, Disk};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    Publish,
    PublishAll,
    Repeat,
    Receive,
    Settle(u64),
    Subscribe,
    Unsubscribe,
    Pause,
    Update,
    CreateTopic,
    DeleteTopic,
    Transact,
    Seek,
}

const OPERATIONS: [Operation; 15] = [
    Operation::Publish,
    Operation::PublishAll,
    Operation::Repeat,
    Operation::Receive,
    Operation::Settle(0),
    Operation::Settle(6),
    Operation::Settle(9),
    Operation::Subscribe,
    Operation::Unsubscribe,
    Operation::Pause,
    Operation::Update,
    Operation::CreateTopic,
    Operation::DeleteTopic,
    Operation::Transact,
    Operation::Seek,
];

struct Workload {
    plan: Plan,
    operations: Vec<Operation>,
}

const PLAN: Plan = Plan {
    mode: DeliveryMode::ExactlyOnce,
    ordered: false,
    filtered: false,
    earliest: false,
    dead_after: None,
    discard_after: None,
};

impl Workload {
    fn run(&self, process: &mut Process<'_>, is_first: bool) -> Result<(), String> {
        if is_first {
            if self.plan.dead_after.is_some() {
                process.create_topic_of(DEAD)?;
            }
            // What only passes cannot be sought back.
            let is_kept = self.operations.contains(&Operation::Seek);
            process.create_topic_of(if is_kept { "f0" } else { "u0" })?;
            let topic = process.history.topics.len() - 1;
            process.subscribe(topic, self.plan)?;
            process.publish()?;
        }
        for operation in &self.operations {
            process.history.step += 1;
            match *operation {
                Operation::Publish => process.publish(),
                Operation::PublishAll => process.publish_all(),
                Operation::Repeat => process.repeat(),
                Operation::Receive => process.receive(),
                Operation::Settle(way) => process.receive().and_then(|()| process.settle_in(way)),
                Operation::Subscribe => process.create_subscription(),
                Operation::Unsubscribe => process.delete_subscription(),
                Operation::Pause => process.pause_some(),
                Operation::Update => process.update_some(),
                Operation::CreateTopic => process.create_topic(),
                Operation::DeleteTopic => process.delete_topic(),
                Operation::Transact => process.receive().and_then(|()| process.transact()),
                Operation::Seek => process.seek_some(),
            }?;
        }
        Ok(())
    }
}

/// What a disk holds, where nothing goes wrong.
pub(super) fn copy(disk: &dyn Disk) -> std::io::Result<SimDisk> {
    let copy = SimDisk::new();
    copy_dir(disk, &copy, Path::new(DIR))?;
    Ok(copy.kill())
}

fn copy_dir(disk: &dyn Disk, copy: &SimDisk, dir: &Path) -> std::io::Result<()> {
    copy.create_dir(dir)?;
    for name in disk.list(dir)? {
        let path = dir.join(&name);
        let file = match disk.open(&path, Access::Read) {
            // A directory.
            Err(error) if error.kind() == ErrorKind::InvalidInput => {
                copy_dir(disk, copy, &path)?;
                continue;
            }
            opened => opened?,
        };
        let mut bytes = vec![0; file.len()? as usize];
        let mut at = 0;
        while at < bytes.len() {
            match file.read_at(&mut bytes[at..], at as u64)? {
                0 => break,
                read => at += read,
            }
        }
        copy.create(&path)?.write_at(&bytes, 0)?;
    }
    Ok(())
}

impl Scenario for Workload {
    type History = History;
    type Image = Found;

    fn work(&self, disk: Arc<dyn Disk>, round: u32, history: &mut History) {
        if round > 0 {
            // To open is to look.
            let Ok(found) = self.look(disk.clone(), history) else { return };
            self.served(&found, history);
        }
        let (mut log, mut random) = (Log::default(), Random::new(7));
        let trouble = Box::new(|| true);
        let started = Process::start(disk, history, &mut log, &mut random, trouble);
        let Some(mut process) = started.unwrap_or_else(|what| panic!("{what}")) else { return };
        let done = self.run(&mut process, round == 0);
        drop(process);
        done.unwrap_or_else(|what| panic!("{what}\nwhat was done:\n{}", log.newest(20)));
    }

    fn look(&self, disk: Arc<dyn Disk>, history: &History) -> Result<Found, String> {
        let broker = open(disk.clone(), &ManualClock::new()).map_err(|error| format!("P18: {error}"))?;
        let copy = copy(&*disk).map_err(|error| error.to_string())?;
        drop(broker);
        let found = audit(&copy, history.clock, false)?;
        let mut history = history.clone();
        history.crashed(true);
        history.compare(&found)?;
        Ok(found)
    }

    fn served(&self, found: &Found, history: &mut History) {
        history.crashed(true);
        history.compare(found).expect("it was compared");
    }
}

/// Every sequence of so many operations.
fn sequences(most: u32) -> impl Iterator<Item = Vec<Operation>> {
    let count = OPERATIONS.len();
    (1..=most).flat_map(move |len| {
        (0..count.pow(len))
            .map(move |number| (0..len).map(|at| OPERATIONS[number / count.pow(at) % count]).collect())
    })
}

fn plans() -> Vec<Plan> {
    let at_least_once = Plan { mode: DeliveryMode::AtLeastOnce, discard_after: Some(1), ..PLAN };
    let dead_letters = Plan { dead_after: Some(1), ..PLAN };
    vec![PLAN, at_least_once, Plan { mode: DeliveryMode::AtMostOnce, ..PLAN }, dead_letters]
}

/// One of so many, from the seed on.
fn explore(one_of: u64, act: impl Fn(&Workload, u64) -> Report) {
    let (operations, one_of) =
        (setting("EVENTFLOW_DISK_OPERATIONS", 3) as u32, setting("EVENTFLOW_DISK_ONE_OF", one_of));
    let first = setting("EVENTFLOW_DISK_SEED", 0) % one_of;
    let mut total = Report::default();
    let (mut workloads, mut number) = (0, 0);
    for plan in plans() {
        for operations in sequences(operations) {
            number += 1;
            if number % one_of == first {
                let report = act(&Workload { plan, operations }, number);
                workloads += 1;
                total.crashes += report.crashes;
                total.found += report.found;
                total.recoveries += report.recoveries;
                total.failures += report.failures;
                total.looks += report.looks;
            }
        }
    }
    println!("figures: {workloads} workloads, {total}");
}

#[test]
fn short_programs_lose_nothing_at_a_crash_of_any_call_and_of_the_recovery() {
    explore(4_001, |workload, number| {
        let tear = if number % 2 == 0 { Tear::Never } else { Tear::Mixes };
        let recoveries = setting("EVENTFLOW_DISK_RECOVERIES", 1) as usize;
        let bounds = Bounds { seed: number, cuts: 2, recoveries, cuts_again: 1, tear };
        crashes(workload, &bounds)
            .unwrap_or_else(|wrong| panic!("{:?}, {:?}: {wrong:?}", workload.plan, workload.operations))
    });
}

/// Each call fails in each way there is, once and for good; then the process ends, and what it left is opened twice.
fn fails_everywhere(workload: &Workload) -> Report {
    let mut report = Report::default();
    let kinds = KINDS.map(Fault::Fails).into_iter();
    let faults =
        kinds.chain([Fault::WritesShort, Fault::FailsAfter(KINDS[0]), Fault::WritesHalfAndFails(KINDS[1])]);
    for (fault, lasts) in faults.flat_map(|fault| [(fault, Lasts::Once), (fault, Lasts::ForGood)]) {
        for at in 1.. {
            let (disk, mut history) = (SimDisk::new(), History::default());
            let faulty = FaultyDisk::new(Arc::new(disk.clone()), fault, at, lasts);
            workload.work(Arc::new(faulty.clone()), 0, &mut history);
            if faulty.fired() == 0 {
                break;
            }
            report.failures += 1;
            let mut disk = disk.kill();
            for _ in 0..2 {
                report.looks += 1;
                let found = workload.look(Arc::new(disk.clone()), &history);
                let found = found.unwrap_or_else(|what| {
                    let Workload { plan, operations } = workload;
                    panic!("{what}\n{plan:?}, {operations:?}, call {at}: {fault:?}, {lasts:?}")
                });
                workload.served(&found, &mut history);
                disk = disk.kill();
            }
        }
    }
    report
}

#[test]
fn short_programs_lose_nothing_at_a_failure_of_any_call() {
    let explores = setting("EVENTFLOW_DISK_EXPLORE_FAILURES", 0) > 0;
    explore(2_301, |workload, number| {
        if !explores {
            return fails_everywhere(workload);
        }
        // Also of any call of a recovery: minutes for each workload.
        let bounds = Bounds { recoveries: 2, cuts_again: 1, ..Bounds::quick(number) };
        failures(workload, &bounds)
            .unwrap_or_else(|wrong| panic!("{:?}, {:?}: {wrong:?}", workload.plan, workload.operations))
    });
}
