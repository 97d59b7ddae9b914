//! A crash at every change, and one in the recovery from it.

use std::collections::HashSet;

use super::case::{Step, Trouble};
use super::{Run, Scenario, Search, Wrong};

pub(super) fn explore<S: Scenario>(search: &mut Search<'_, S>) -> Result<(), Wrong> {
    let empty = Run::new();
    let whole = search.then(&empty, Step::Work(0, Trouble::None))?;
    let changes = whole.disk.changes();
    assert!(changes > 0, "the work leaves no trace");
    let mut seen = HashSet::new();
    // The last one is after the end: all answers are given.
    for change in 1..=changes + 1 {
        search.report.crashes += 1;
        let mut crashed = empty.fork();
        search.step(&mut crashed, Step::Work(0, Trouble::Stop(change)))?;
        let mut recoveries = search.bounds.recoveries;
        for end in search.ends(&crashed, search.bounds.cuts) {
            let found = search.then(&crashed, end)?;
            // What is not safe yet is not in the fingerprint: a killed process leaves more than the power does.
            let killed = matches!(found.case.0.last(), Some(Step::Kill));
            if !seen.insert((
                found.disk.fingerprint(),
                format!("{:?}", found.history),
                killed.then_some(change),
            )) {
                continue;
            }
            search.report.found += 1;
            search.recovers(&found)?;
            if recoveries > 0 {
                recoveries -= 1;
                search.recovers_from_recovery(&found)?;
            }
        }
    }
    Ok(())
}

impl<S: Scenario> Search<'_, S> {
    /// The ways in which this process or machine may end now.
    pub(super) fn ends(&self, run: &Run<S>, bound: usize) -> Vec<Step> {
        let cuts = run.disk.cuts(bound, self.bounds.seed, self.bounds.tear);
        [Step::Kill].into_iter().chain(cuts.into_iter().map(Step::Cut)).collect()
    }

    /// Opened, all is there; opened again, it is the same; and so it is with what is added then.
    pub(super) fn recovers(&mut self, found: &Run<S>) -> Result<(), Wrong> {
        let mut opened = found.fork();
        self.step(&mut opened, Step::Look(Trouble::None))?;
        self.ends_well(&opened)?;
        self.step(&mut opened, Step::Kill)?;
        self.step(&mut opened, Step::Work(1, Trouble::None))?;
        self.ends_well(&opened)
    }

    /// However it ends now, all is there, and still the next time.
    pub(super) fn ends_well(&mut self, run: &Run<S>) -> Result<(), Wrong> {
        for end in self.ends(run, self.bounds.cuts_again) {
            let mut again = self.then(run, end)?;
            self.step(&mut again, Step::Look(Trouble::None))?;
            self.step(&mut again, Step::Cut("-".parse().expect("no digits are a cut")))?;
            self.step(&mut again, Step::Look(Trouble::None))?;
        }
        Ok(())
    }

    fn recovers_from_recovery(&mut self, found: &Run<S>) -> Result<(), Wrong> {
        for change in 1.. {
            let mut crashed = found.fork();
            self.step(&mut crashed, Step::Look(Trouble::Stop(change)))?;
            if !crashed.troubled {
                break;
            }
            self.report.recoveries += 1;
            self.ends_well(&crashed)?;
        }
        Ok(())
    }
}
