//! Crashes everywhere, and failing calls everywhere, for whatever keeps its things on a [`Disk`].
//!
//! Everything that is tried is a *case*: a few steps from an empty disk. What goes wrong is told with its case, as text, and
//! [`replay`] does the very same again.

mod case;
mod crashes;
mod failures;
mod toy;

use std::any::Any;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use super::Disk;
use super::faulty::FaultyDisk;
use super::sim::{SimDisk, Tear};
pub(crate) use case::Case;
use case::{Step, Trouble};

/// Something that keeps its things on a disk, with an account of what it said about them.
pub(crate) trait Scenario {
    /// What was confirmed, refused and under way, as told by nobody but the answers of the calls.
    type History: Clone + Default + fmt::Debug;
    /// All that is found.
    type Image: Clone + PartialEq + fmt::Debug;

    /// Opens, works, and ends: as a process does, which stops at the first failure it cannot bear. Notes what it asks for before it asks, and what it is
    /// answered. `round` is 0 on an empty disk, then counts the times that it goes on after a restart. Does the same each time, or a case cannot be replayed.
    fn work(&self, disk: Arc<dyn Disk>, round: u32, history: &mut Self::History);

    /// Opens and reads everything. An error is a failure to open, or says how what was found disagrees with the history. What is returned counts as
    /// seen by somebody, and must be found again ever after: so it is returned also when the disk fails afterwards, in the closing.
    fn look(&self, disk: Arc<dyn Disk>, history: &Self::History) -> Result<Self::Image, String>;

    /// What was under way is decided: it is in the image, and confirmed by that, or it is not, and never will be.
    fn served(&self, image: &Self::Image, history: &mut Self::History);
}

/// How much is tried.
#[derive(Clone, Debug)]
pub(crate) struct Bounds {
    pub(crate) seed: u64,
    /// Power cuts for each crash of the first work; all there are when they are not more.
    pub(crate) cuts: usize,
    /// Of the different disks found after a crash, on how many recovery crashes too, at every change that it makes.
    pub(crate) recoveries: usize,
    /// Power cuts for each crash in a recovery, and each one after.
    pub(crate) cuts_again: usize,
    pub(crate) tear: Tear,
}

impl Bounds {
    /// Some seconds for a small store.
    pub(crate) fn quick(seed: u64) -> Self {
        Bounds { seed, cuts: 32, recoveries: 4, cuts_again: 4, tear: Tear::Never }
    }
}

/// What was tried.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Report {
    /// Calls at which the disk went down.
    pub(crate) crashes: u64,
    /// Different disks found after the first work.
    pub(crate) found: u64,
    /// Crashes in a recovery.
    pub(crate) recoveries: u64,
    /// Calls that failed.
    pub(crate) failures: u64,
    /// Times that all was opened and read.
    pub(crate) looks: u64,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Report { crashes, found, recoveries, failures, looks } = self;
        write!(
            f,
            "{crashes} crashes, {found} disks found, {recoveries} crashes in recovery, {failures} failed calls, {looks} looks"
        )
    }
}

/// What went wrong, and how to see it again.
pub(crate) struct Wrong {
    pub(crate) what: String,
    pub(crate) case: Case,
    pub(crate) seed: u64,
    trace: String,
}

impl fmt::Debug for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Wrong { what, case, seed, trace } = self;
        write!(f, "{what}\nseed {seed}; again: replay(&scenario, \"{case}\")\nthe newest calls:\n{trace}")
    }
}

/// Crashes the work at each of its changes, in every way of a power cut, recovers, crashes the recovery at each of its changes, and goes on after it.
pub(crate) fn crashes<S: Scenario>(scenario: &S, bounds: &Bounds) -> Result<Report, Wrong> {
    let mut search = Search { scenario, bounds, report: Report::default() };
    crashes::explore(&mut search)?;
    Ok(search.report)
}

/// Fails each call of the work and of a recovery, once and for good, in all the ways there are.
pub(crate) fn failures<S: Scenario>(scenario: &S, bounds: &Bounds) -> Result<Report, Wrong> {
    let mut search = Search { scenario, bounds, report: Report::default() };
    failures::explore(&mut search)?;
    Ok(search.report)
}

/// Does one case again.
pub(crate) fn replay<S: Scenario>(scenario: &S, case: &str) -> Result<(), Wrong> {
    let case: Case = case.parse().unwrap_or_else(|error| panic!("{case}: {error}"));
    let bounds = Bounds::quick(0);
    let mut search = Search { scenario, bounds: &bounds, report: Report::default() };
    let mut run = Run::new();
    case.0.into_iter().try_for_each(|step| search.step(&mut run, step))
}

struct Search<'a, S> {
    scenario: &'a S,
    bounds: &'a Bounds,
    report: Report,
}

/// A case so far.
struct Run<S: Scenario> {
    case: Case,
    disk: SimDisk,
    history: S::History,
    /// What somebody has seen, and nothing has changed since.
    served: Option<S::Image>,
    /// Whether the trouble of the last step came.
    troubled: bool,
}

impl<S: Scenario> Run<S> {
    fn new() -> Self {
        Run {
            case: Case::default(),
            disk: SimDisk::new(),
            history: S::History::default(),
            served: None,
            troubled: false,
        }
    }

    fn fork(&self) -> Self {
        Run {
            case: self.case.clone(),
            disk: self.disk.fork(),
            history: self.history.clone(),
            served: self.served.clone(),
            troubled: self.troubled,
        }
    }
}

impl<S: Scenario> Search<'_, S> {
    /// The run, one step further; the run itself stays where it is.
    fn then(&mut self, run: &Run<S>, step: Step) -> Result<Run<S>, Wrong> {
        let mut run = run.fork();
        self.step(&mut run, step)?;
        Ok(run)
    }

    fn step(&mut self, run: &mut Run<S>, step: Step) -> Result<(), Wrong> {
        run.case.0.push(step.clone());
        let done = match step {
            Step::Work(round, trouble) => self.work(run, round, trouble),
            Step::Look(trouble) => self.look(run, trouble),
            Step::Kill => {
                run.disk = run.disk.kill();
                Ok(())
            }
            Step::Cut(cut) => {
                run.disk = run.disk.restart(&cut);
                Ok(())
            }
            Step::Evict => {
                run.disk.evict();
                Ok(())
            }
        };
        done.map_err(|what| Wrong {
            what,
            case: run.case.clone(),
            seed: self.bounds.seed,
            trace: run.disk.trace(60),
        })
    }

    fn work(&mut self, run: &mut Run<S>, round: u32, trouble: Trouble) -> Result<(), String> {
        run.served = None;
        let history = &mut run.history;
        let (done, troubled) =
            with_trouble(&run.disk, trouble, |disk| self.scenario.work(disk, round, history));
        run.troubled = troubled;
        done.map_err(|panic| format!("panic in the work: {panic}"))
    }

    fn look(&mut self, run: &mut Run<S>, trouble: Trouble) -> Result<(), String> {
        self.report.looks += 1;
        let (found, troubled) =
            with_trouble(&run.disk, trouble, |disk| self.scenario.look(disk, &run.history));
        run.troubled = troubled;
        match found.map_err(|panic| format!("panic in the look: {panic}"))? {
            Err(_) if troubled => Ok(()),
            Err(what) => Err(format!("{what}\nhistory: {:?}", run.history)),
            Ok(image) => {
                if let Some(served) = run.served.take_if(|served| *served != image) {
                    return Err(format!("seen was {served:?}\nand then {image:?}"));
                }
                self.scenario.served(&image, &mut run.history);
                run.served = Some(image);
                Ok(())
            }
        }
    }
}

/// Gives the panic's text for a panic, and whether the trouble came.
fn with_trouble<T>(
    disk: &SimDisk,
    trouble: Trouble,
    act: impl FnOnce(Arc<dyn Disk>) -> T,
) -> (Result<T, String>, bool) {
    let contained = |disk: Arc<dyn Disk>| {
        catch_unwind(AssertUnwindSafe(|| act(disk))).map_err(|panic| text_of(&*panic).to_owned())
    };
    let plain: Arc<dyn Disk> = Arc::new(disk.clone());
    match trouble {
        Trouble::None => (contained(plain), false),
        Trouble::Stop(change) => {
            disk.stop_at(change);
            (contained(plain), disk.is_down())
        }
        Trouble::LostSync(number) => {
            disk.lose_sync(number);
            (contained(plain), disk.syncs() >= number)
        }
        Trouble::Fault(fault, at, lasts) => {
            let faulty = FaultyDisk::new(plain, fault, at, lasts);
            (contained(Arc::new(faulty.clone())), faulty.fired() > 0)
        }
    }
}

fn text_of(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("of no text")
}
