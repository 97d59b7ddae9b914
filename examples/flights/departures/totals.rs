//! What is counted, once by the services and once by a plain loop, and the comparison of the two.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;
use std::path::Path;

use super::input::{InputError, for_each_row};

/// Delayed is what left this many minutes late, or more.
const DELAYED_MIN: i32 = 15;

/// Everything the services find out. The plain loop finds the same or something is wrong.
#[derive(Debug, Default, Clone)]
pub(crate) struct Totals {
    pub(crate) flights: u64,
    pub(crate) duplicates: u64,
    pub(crate) carriers: BTreeMap<String, Carrier>,
    pub(crate) cancelled: u64,
    pub(crate) newark: u64,
    /// Flights whose aircraft is known, and the ordering keys they have.
    pub(crate) keyed: u64,
    pub(crate) keys: u64,
    /// The lines of the flights that were called anomalous.
    pub(crate) alerts: BTreeSet<u64>,
    pub(crate) flaky: u64,
    /// What must never happen; the plain loop leaves these at zero.
    pub(crate) overtaken: u64,
    pub(crate) wrong_reasons: u64,
    pub(crate) acked_twice: u64,
}

/// Flights of one carrier that left.
#[derive(Debug, Default, Clone)]
pub(crate) struct Carrier {
    pub(crate) departed: u64,
    pub(crate) delayed: u64,
}

impl Carrier {
    pub(crate) fn departs(&mut self, delay: Option<i32>) {
        self.departed += 1;
        self.delayed += u64::from(delay.is_some_and(|minutes| minutes >= DELAYED_MIN));
    }

    pub(crate) fn add(&mut self, other: &Carrier) {
        self.departed += other.departed;
        self.delayed += other.delayed;
    }
}

/// Two counts of one thing that should agree and do not.
#[derive(Debug)]
pub(crate) struct Difference {
    pub(crate) what: String,
    pub(crate) expected: u64,
    pub(crate) found: u64,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: the file says {}, the broker {}", self.what, self.expected, self.found)
    }
}

impl Totals {
    pub(crate) fn delayed(&self) -> u64 {
        self.carriers.values().map(|carrier| carrier.delayed).sum()
    }

    /// Every figure that `found` has otherwise.
    pub(crate) fn differences(&self, found: &Totals) -> Vec<Difference> {
        let mut pairs: BTreeMap<String, (u64, u64)> = BTreeMap::new();
        for (what, figure) in self.figures() {
            pairs.entry(what).or_default().0 = figure;
        }
        for (what, figure) in found.figures() {
            pairs.entry(what).or_default().1 = figure;
        }
        let differing = pairs.into_iter().filter(|(_, (expected, found))| expected != found);
        differing.map(|(what, (expected, found))| Difference { what, expected, found }).collect()
    }

    fn figures(&self) -> Vec<(String, u64)> {
        let mut figures: Vec<(String, u64)> = [
            ("departures: flights", self.flights),
            ("departures: duplicates dropped", self.duplicates),
            ("cancellations: flights", self.cancelled),
            ("cancellations: dead letters with another reason", self.wrong_reasons),
            ("newark: flights", self.newark),
            ("aircraft: flights with a key", self.keyed),
            ("aircraft: keys", self.keys),
            ("aircraft: flights overtaken", self.overtaken),
            ("flaky: flights", self.flaky),
            ("flaky: flights acked twice", self.acked_twice),
        ]
        .map(|(what, figure)| (what.to_owned(), figure))
        .into();
        for (name, carrier) in &self.carriers {
            figures.push((format!("punctuality: flights of {name}"), carrier.departed));
            figures.push((format!("punctuality: delayed flights of {name}"), carrier.delayed));
        }
        figures.extend(self.alerts.iter().map(|line| (format!("anomalies: alert for line {line}"), 1)));
        figures
    }
}

/// What the whole file comes to, found without a broker; and the airports in it.
pub(crate) fn plain_loop(data: &Path) -> Result<(Totals, Vec<String>), InputError> {
    let mut totals = Totals::default();
    let mut origins: HashMap<String, Running> = HashMap::new();
    let mut keys = HashSet::new();
    for_each_row(data, |row| {
        totals.flights += 1;
        totals.flaky += 1;
        totals.duplicates += u64::from(row.is_published_twice());
        totals.newark += u64::from(row.origin == "EWR");
        if let Some(key) = row.ordering_key() {
            totals.keyed += 1;
            keys.insert(key);
        }
        match row.departed {
            true => totals.carriers.entry(row.carrier.to_owned()).or_default().departs(row.delay),
            false => totals.cancelled += 1,
        }
        let running = origins.entry(row.origin.to_owned()).or_default();
        if row.delay.is_some_and(|minutes| running.takes_as_anomaly(minutes)) {
            totals.alerts.insert(row.line);
        }
        Ok::<_, InputError>(())
    })?;
    totals.keys = keys.len() as u64;
    let mut origins: Vec<_> = origins.into_keys().collect();
    origins.sort();
    Ok((totals, origins))
}

/// The mean and the deviation of what went by so far, by Welford's method: no sum of squares that would drown
/// the small differences.
#[derive(Debug, Default)]
pub(crate) struct Running {
    count: u32,
    mean: f64,
    squares: f64,
}

impl Running {
    /// Before this many a deviation says little.
    const COUNT_MIN: u32 = 30;

    /// Takes one more in; whether it lay beyond three deviations from the mean of those before it.
    pub(crate) fn takes_as_anomaly(&mut self, minutes: i32) -> bool {
        let value = f64::from(minutes);
        let off = value - self.mean;
        let anomaly =
            self.count >= Self::COUNT_MIN && off.abs() > 3.0 * (self.squares / f64::from(self.count)).sqrt();
        self.count += 1;
        self.mean += off / f64::from(self.count);
        self.squares += off * (value - self.mean);
        anomaly
    }
}
