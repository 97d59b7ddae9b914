//! Every call fails once, and every call and all that follow.

use super::case::{Step, Trouble, faults};
use super::{Run, Scenario, Search, Wrong};
use crate::journal::disk::faulty::{Fault, Lasts};

pub(super) fn explore<S: Scenario>(search: &mut Search<'_, S>) -> Result<(), Wrong> {
    let empty = Run::new();
    search.each_trouble(&empty, |trouble| Step::Work(0, trouble))?;
    let whole = search.then(&empty, Step::Work(0, Trouble::None))?;
    let changes = whole.disk.changes();
    // A recovery that has little to do, and some with more.
    for change in [changes / 3, 2 * changes / 3, changes, changes + 1] {
        let crashed = search.then(&empty, Step::Work(0, Trouble::Stop(change.max(1))))?;
        for end in search.ends(&crashed, search.bounds.recoveries / 2) {
            let found = search.then(&crashed, end)?;
            search.each_trouble(&found, Step::Look)?;
        }
    }
    Ok(())
}

impl<S: Scenario> Search<'_, S> {
    fn each_trouble(&mut self, run: &Run<S>, step: impl Fn(Trouble) -> Step) -> Result<(), Wrong> {
        for fault in faults() {
            for lasts in [Lasts::Once, Lasts::ForGood] {
                // No reader can tell a disk that always lies from one that is damaged.
                if fault != Fault::ReadsFlipped || lasts == Lasts::Once {
                    self.each_number(run, |number| step(Trouble::Fault(fault, number, lasts)))?;
                }
            }
        }
        self.each_number(run, |number| step(Trouble::LostSync(number)))
    }

    /// Until there is no call of that number.
    fn each_number(&mut self, run: &Run<S>, step: impl Fn(u64) -> Step) -> Result<(), Wrong> {
        for number in 1.. {
            let mut troubled = run.fork();
            self.step(&mut troubled, step(number))?;
            if !troubled.troubled {
                break;
            }
            self.report.failures += 1;
            self.ends_well(&troubled)?;
            // The cache has forgotten what a failed write-back left in it; or only does when everything was read from it.
            let mut evicted = self.then(&troubled, Step::Kill)?;
            self.step(&mut evicted, Step::Evict)?;
            self.step(&mut evicted, Step::Look(Trouble::None))?;
            self.step(&mut troubled, Step::Kill)?;
            self.step(&mut troubled, Step::Look(Trouble::None))?;
            self.step(&mut troubled, Step::Evict)?;
            self.step(&mut troubled, Step::Look(Trouble::None))?;
            self.step(&mut troubled, Step::Kill)?;
            self.step(&mut troubled, Step::Work(1, Trouble::None))?;
            self.step(&mut troubled, Step::Kill)?;
            self.step(&mut troubled, Step::Look(Trouble::None))?;
        }
        Ok(())
    }
}
