//! Every departure from New York, through one broker: a publisher for each airport, six services with a
//! subscription each, and the proof that every flight reached every service that should see it, once.
//!
//! ```text
//! cargo run --release --example flights                     January 2013, which comes with the repository
//! cargo run --release --example flights -- --data FILE      any other file of that form
//! cargo run --release --example flights -- --dir DIR        kept on disk: kill it at any time, start it again
//! ```
//!
//! Ends with 1 when a total differs from what a plain loop over the file finds, and says which.

mod departures;

use std::io::{IsTerminal, Write, stderr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use departures::Report;

const USAGE: &str = "usage: flights [--data FILE] [--dir DIR]";
const PROGRESS_EVERY: Duration = Duration::from_millis(100);
const CLEAR_LINE: &str = "\r\x1b[K";
/// How many differences are printed: when much is wrong, more of them do not help.
const DIFFERENCES_MAX: usize = 20;

fn main() -> ExitCode {
    let (data, dir) = match paths(std::env::args_os().skip(1)) {
        Ok(paths) => paths,
        Err(problem) => {
            eprintln!("{problem}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    let outcome = departures::run(&data, dir.as_deref(), progress_line());
    if stderr().is_terminal() {
        eprint!("{CLEAR_LINE}");
    }
    match outcome {
        Ok(report) => {
            print(&report);
            prove(&report)
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The file, and the directory if the broker is to have one.
fn paths(
    mut arguments: impl Iterator<Item = std::ffi::OsString>,
) -> Result<(PathBuf, Option<PathBuf>), String> {
    let mut data = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/data/flights-2013-01.csv");
    let mut dir = None;
    while let Some(argument) = arguments.next() {
        if argument == "--data" {
            data = arguments.next().ok_or("--data needs a file")?.into();
        } else if argument == "--dir" {
            dir = Some(arguments.next().ok_or("--dir needs a directory")?.into());
        } else {
            return Err(format!("no option is called {}", argument.display()));
        }
    }
    Ok((data, dir))
}

/// A line that says how far it is, where somebody looks at it.
fn progress_line() -> impl FnMut(u64, u64) {
    let visible = stderr().is_terminal();
    let mut shown = Instant::now();
    move |published, flights| {
        if visible && shown.elapsed() > PROGRESS_EVERY {
            shown = Instant::now();
            eprint!("{CLEAR_LINE}{} of {} flights published", grouped(published), grouped(flights));
            // A line that cannot be shown is no reason to stop.
            let _ = stderr().flush();
        }
    }
}

fn print(report: &Report) {
    println!("{:<10} {:>10} {:>10} {:>8}", "carrier", "departed", "delayed", "share");
    for (name, carrier) in &report.totals.carriers {
        let share = 100.0 * carrier.delayed as f64 / carrier.departed as f64;
        println!(
            "{name:<10} {:>10} {:>10} {share:>6.1} %",
            grouped(carrier.departed),
            grouped(carrier.delayed)
        );
    }
    println!();
    let rate = report.delivered as f64 / report.elapsed.as_secs_f64();
    for (what, figure) in [
        ("flights", report.totals.flights),
        ("duplicates dropped", report.totals.duplicates),
        ("cancelled", report.totals.cancelled),
        ("delayed", report.totals.delayed()),
        ("alerts", report.totals.alerts.len() as u64),
        ("nacked", report.nacked),
        ("expired", report.expired),
        ("redelivered", report.redelivered),
        ("messages/s", rate as u64),
    ] {
        println!("{what:<20} {:>10}", grouped(figure));
    }
    if let Some(peak) = peak_memory() {
        println!("\npeak memory: {peak}");
    }
}

fn prove(report: &Report) -> ExitCode {
    if report.differences.is_empty() {
        println!("proved: every total is what a plain loop over the file finds");
        return ExitCode::SUCCESS;
    }
    for difference in report.differences.iter().take(DIFFERENCES_MAX) {
        eprintln!("DIFFERS  {difference}");
    }
    eprintln!("{} totals differ", report.differences.len());
    ExitCode::FAILURE
}

/// The most memory this process had at once, where the system tells.
fn peak_memory() -> Option<String> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(format!("{} MiB", kibibytes.div_ceil(1024)))
}

/// `27004` as `27,004`.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
