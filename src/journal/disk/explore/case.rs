//! A case as text: steps with semicolons between them, as `work 0 stop 7; cut 0.1; look`.

use std::fmt;
use std::io;
use std::str::FromStr;

use crate::journal::disk::faulty::{Fault, KINDS, Lasts};
use crate::journal::disk::sim::Cut;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Case(pub(super) Vec<Step>);

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Work(u32, Trouble),
    Look(Trouble),
    /// The process dies.
    Kill,
    /// The power fails.
    Cut(Cut),
    /// The page cache forgets what it takes for clean.
    Evict,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    None,
    /// The disk goes down in the change of this number.
    Stop(u64),
    /// The sync of this number fails and loses its data.
    LostSync(u64),
    /// The call of this number fails.
    Fault(Fault, u64, Lasts),
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, step) in self.0.iter().enumerate() {
            f.write_str(if at > 0 { "; " } else { "" })?;
            match step {
                Step::Work(round, trouble) => write!(f, "work {round}{trouble}")?,
                Step::Look(trouble) => write!(f, "look{trouble}")?,
                Step::Kill => f.write_str("kill")?,
                Step::Cut(cut) => write!(f, "cut {cut}")?,
                Step::Evict => f.write_str("evict")?,
            }
        }
        Ok(())
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Trouble::None => Ok(()),
            Trouble::Stop(change) => write!(f, " stop {change}"),
            Trouble::LostSync(number) => write!(f, " lose {number}"),
            Trouble::Fault(fault, at, lasts) => write!(f, " {lasts:?} {at} {fault:?}"),
        }
    }
}

impl FromStr for Case {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.split(';').map(|step| step.trim().parse()).collect::<Result<_, _>>().map(Case)
    }
}

impl FromStr for Step {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (verb, rest) = text.split_once(' ').unwrap_or((text, ""));
        match verb {
            "work" => {
                let (round, trouble) = rest.split_once(' ').unwrap_or((rest, ""));
                Ok(Step::Work(number(round)? as u32, trouble.parse()?))
            }
            "look" => Ok(Step::Look(rest.parse()?)),
            "kill" => Ok(Step::Kill),
            "cut" => rest.parse().map(Step::Cut).map_err(|error| format!("{rest:?}: {error}")),
            "evict" => Ok(Step::Evict),
            _ => Err(format!("{text:?} is no step")),
        }
    }
}

impl FromStr for Trouble {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let words: Vec<&str> = text.split(' ').filter(|word| !word.is_empty()).collect();
        match words[..] {
            [] => Ok(Trouble::None),
            ["stop", change] => Ok(Trouble::Stop(number(change)?)),
            ["lose", sync] => Ok(Trouble::LostSync(number(sync)?)),
            [lasts, at, fault] => {
                let every = [Lasts::Once, Lasts::ForGood];
                let lasts = every.into_iter().find(|known| format!("{known:?}") == lasts);
                let fault = faults().into_iter().find(|known| format!("{known:?}") == fault);
                let (lasts, fault) = lasts.zip(fault).ok_or_else(|| format!("{text:?} is no trouble"))?;
                Ok(Trouble::Fault(fault, number(at)?, lasts))
            }
            _ => Err(format!("{text:?} is no trouble")),
        }
    }
}

fn number(text: &str) -> Result<u64, String> {
    text.parse().map_err(|error| format!("{text:?}: {error}"))
}

/// All that a call can do wrong.
pub(super) fn faults() -> Vec<Fault> {
    let mut faults = vec![Fault::WritesShort, Fault::ReadsShort, Fault::ReadsFlipped];
    faults.extend(KINDS.map(Fault::Fails));
    for kind in [io::ErrorKind::Other, io::ErrorKind::StorageFull] {
        faults.extend([Fault::FailsAfter(kind), Fault::WritesHalfAndFails(kind)]);
    }
    faults
}

#[test]
fn a_case_is_read_as_it_was_written() {
    let mut steps = vec![
        Step::Work(1, Trouble::Stop(7)),
        Step::Cut("0.1.2".parse().unwrap()),
        Step::Cut("m".parse().unwrap_or_default()),
        Step::Look(Trouble::LostSync(3)),
        Step::Kill,
        Step::Evict,
        Step::Look(Trouble::None),
    ];
    for fault in faults() {
        steps.push(Step::Work(0, Trouble::Fault(fault, 12, Lasts::ForGood)));
    }
    let case = Case(steps);
    assert_eq!(case.to_string().parse(), Ok(case.clone()), "{case}");
    assert!("work 0 stop; kill".parse::<Case>().is_err());
    assert!("work 0 Once 1 Sometimes".parse::<Case>().is_err());
}
