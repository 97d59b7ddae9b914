//! What the benchmarks share: sizes, figures, medians, and a watchdog. Each uses its part.
#![allow(dead_code)]

use std::fmt::{self, Display};
use std::process::exit;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

/// Full size under `cargo bench`, which passes `--bench`; small under `cargo test --benches` and with `--test`, where it only matters
/// that everything runs and that every count and checksum is right.
pub(crate) fn is_full() -> bool {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    arguments.iter().any(|a| a == "--bench") && !arguments.iter().any(|a| a == "--test")
}

/// A size that the environment may override: `EVENTFLOW_MESSAGES=50000 cargo bench`.
///
/// # Panics
/// When the variable is set and not a number: otherwise figures of another size than was asked for would be believed.
pub(crate) fn parameter(name: &str, small: u64, full: u64) -> u64 {
    let variable = format!("EVENTFLOW_{}", name.to_uppercase());
    match std::env::var(&variable) {
        Ok(text) => {
            text.replace('_', "").parse().unwrap_or_else(|_| panic!("{variable}={text} is not a number"))
        }
        Err(_) if is_full() => full,
        Err(_) => small,
    }
}

/// Whether to run this part: the words on the command line that are no options name the parts, none means all.
pub(crate) fn is_asked_for(part: &str) -> bool {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    words.is_empty() || words.iter().any(|word| word == part)
}

/// What a reader needs in order to compare two runs.
pub(crate) fn print_machine() {
    let size = if is_full() { "full" } else { "small: the checks count, the figures do not" };
    println!("machine: {}", machine());
    println!("size: {size}");
}

/// Cores and model.
pub(crate) fn machine() -> String {
    let cores = thread::available_parallelism().map_or(0, usize::from);
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    format!("{cores} cores, {}", model.map_or("unknown model", |(_, name)| name))
}

/// How many threads of the whole machine wanted to run in the last minute, on average; nothing where the kernel does not say. Figures that
/// were found beside other work are worth little.
pub(crate) fn load() -> Option<f64> {
    std::fs::read_to_string("/proc/loadavg").ok()?.split(' ').next()?.parse().ok()
}

/// Resident memory in bytes; 0 where the kernel does not say.
pub(crate) fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or(0) * 1024
}

/// Prints one figure with the goal it is to stay within.
pub(crate) fn print_figure(what: impl Display, value: f64, goal: f64, unit: &str) {
    let verdict = match is_full() {
        false => "",
        true if value <= goal => ", met",
        true => ", MISSED",
    };
    println!("  {what}: {value:.2} {unit} (goal: at most {goal}{verdict})");
}

/// A figure as `print_figure` has printed it.
pub(crate) struct Figure {
    pub(crate) what: String,
    pub(crate) value: f64,
    pub(crate) unit: String,
    pub(crate) goal: f64,
}

impl Figure {
    /// `None` for a line that is none.
    pub(crate) fn read(line: &str) -> Option<Figure> {
        let (what, rest) = line.trim().split_once(" (goal: at most ")?;
        let (what, value) = what.rsplit_once(": ")?;
        let (value, unit) = value.split_once(' ')?;
        let goal = rest.trim_end_matches(')').split(',').next()?;
        Some(Figure {
            what: what.into(),
            value: value.parse().ok()?,
            unit: unit.into(),
            goal: goal.parse().ok()?,
        })
    }
}

/// Middle, least and greatest of some runs.
#[derive(Clone, Copy)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Spread {
    /// # Panics
    /// Without runs there is nothing to say.
    pub(crate) fn of(runs: &[f64]) -> Spread {
        let mut sorted = runs.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (sorted[0], sorted[sorted.len() - 1]);
        let upper = sorted.len() / 2;
        let lower = (sorted.len() - 1) / 2;
        Spread { median: (sorted[lower] + sorted[upper]) / 2.0, min, max }
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let range = format!("{:.2} to {:.2}", self.min, self.max);
        write!(f, "{:>9.2}  {range:<18}", self.median)
    }
}

/// Ends the program when it takes too long: a benchmark that hangs is a finding, and must not look like a slow one.
pub(crate) struct Watchdog {
    _alive: Sender<()>,
}

impl Watchdog {
    pub(crate) fn start(limit: Duration) -> Watchdog {
        let (alive, ended) = channel();
        thread::spawn(move || {
            if ended.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
                eprintln!("not finished after {limit:?}: the run whose line is missing above hangs");
                exit(1);
            }
        });
        Watchdog { _alive: alive }
    }
}
