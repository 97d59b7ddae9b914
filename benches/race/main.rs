//! The race: ours beside the well-known channels, and beside brokers that run as servers.
//!
//! ```text
//! cargo bench --bench race -- --full --out DIR               everything at full size, half an hour
//! cargo bench --bench race -- --quick --filter W1,W5         some workloads, smaller
//! cargo bench --bench race -- --only eventflow,crossbeam     some contenders
//! ```
//! Ours does the whole at-least-once cycle: publish, lease, read, acknowledge, free. The channels acknowledge nothing, keep nothing and
//! redeliver nothing.
//!
//! Every run is a process of its own: this program starts itself with `run WORKLOAD CONTENDER PAYLOAD MESSAGES` and reads one line.
//! Contenders take turns, several rounds of them. A payload is made within the measured time for each message and read at both its ends;
//! a count or checksum that is not that of a plain loop ends the race with an error. The tables show medians, with the least and the
//! greatest; they go to the output, and with `--out` into a folder, with a plot.
//!
//! Without `--quick` and `--full` it is so small that only the checks mean something.

mod broadcasts;
mod channels;
mod contender;
mod cores;
mod ours;
mod parts;
mod payload;
mod plot;
mod report;
#[path = "../scale.rs"]
#[allow(dead_code)] // its own `main`
mod scale;
mod served;
mod workload;

use std::collections::HashMap;
use std::path::PathBuf;
use std::process::{Command, exit};
use std::time::Duration;

use contender::{Entry, entries};
use harness::Watchdog;
use report::{Cell, Report};
use scale::harness;
use workload::{Kind, Task, Workload, workloads};

/// How long one run may take.
const RUN_SECONDS_MAX: u64 = 180;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|word| word == "run") {
        let _watchdog = Watchdog::start(Duration::from_secs(RUN_SECONDS_MAX));
        return run(&arguments[1..]);
    }
    let options = Options::read(arguments).unwrap_or_else(|problem| {
        eprintln!("{problem}\nusage: [--quick | --full] [--filter WORKLOAD,..] [--only CONTENDER,..] [--rounds N] [--out DIR]");
        exit(2)
    });
    let report = race(&options);
    println!("\n{}", report.markdown());
    if let Some(folder) = &options.out {
        report
            .write_to(folder)
            .unwrap_or_else(|error| panic!("cannot write to {}: {error}", folder.display()));
        println!("written to {}", folder.display());
    }
}

#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Size {
    /// Only the checks mean something.
    Check,
    Quick,
    Full,
}

impl Size {
    fn rounds(self) -> usize {
        match self {
            Size::Check => 1,
            Size::Quick => 3,
            Size::Full => 5,
        }
    }

    fn messages(self, workload: &Workload, payload: &str) -> u64 {
        let large = if payload.starts_with("1 KiB") { 4 } else { 1 };
        let full = workload.messages / large;
        match self {
            Size::Check => (full / 500).clamp(100, 2_000),
            Size::Quick => full / 10,
            Size::Full => full,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Size::Check => "a check: the figures mean nothing",
            Size::Quick => "quick",
            Size::Full => "full",
        }
    }
}

struct Options {
    size: Size,
    /// Beginnings of the names of workloads and parts; empty for all.
    filter: Vec<String>,
    /// Beginnings of the names of contenders; empty for all.
    only: Vec<String>,
    out: Option<PathBuf>,
    rounds: usize,
}

impl Options {
    fn read(arguments: Vec<String>) -> Result<Options, String> {
        let mut options = Options { size: Size::Check, filter: vec![], only: vec![], out: None, rounds: 0 };
        let mut words = arguments.into_iter();
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or(format!("{word} needs a value"));
            let list = |text: String| text.split(',').map(String::from).collect::<Vec<_>>();
            match &*word {
                "--bench" => {} // cargo adds it
                "--test" => options.size = Size::Check,
                "--quick" => options.size = Size::Quick,
                "--full" => options.size = Size::Full,
                "--filter" => options.filter.extend(list(value()?)),
                "--only" => options.only.extend(list(value()?)),
                "--out" => options.out = Some(value()?.into()),
                "--rounds" => {
                    options.rounds = value()?.parse().map_err(|_| "--rounds needs a number".to_string())?;
                }
                _ => return Err(format!("unknown argument: {word}")),
            }
        }
        if options.rounds == 0 {
            options.rounds = options.size.rounds();
        }
        Ok(options)
    }
}

fn is_among(name: &str, beginnings: &[String]) -> bool {
    beginnings.is_empty() || beginnings.iter().any(|beginning| name.starts_with(beginning.as_str()))
}

fn race(options: &Options) -> Report {
    let mut report = Report::new(options.size, options.rounds);
    for workload in workloads().into_iter().filter(|workload| is_among(workload.name, &options.filter)) {
        race_in(&workload, options, &mut report);
    }
    for name in parts::names().filter(|name| is_among(name, &options.filter)) {
        let size = if options.size == Size::Full { "--bench" } else { "--test" };
        let output = start_again(&["part", name, size]);
        print!("{output}");
        report.add_part(name, &output);
    }
    report
}

fn race_in(workload: &Workload, options: &Options, report: &mut Report) {
    let mut entries = entries();
    entries.retain(|entry| entry.takes_part_in(workload.name) && is_among(entry.name, &options.only));
    let mut servers = HashMap::new();
    if workload.kind == Kind::Served {
        for (name, server) in served::start() {
            match server {
                Ok(server) => drop(servers.insert(name, server)),
                Err(reason) => {
                    println!("{}: {name} is skipped: {reason}", workload.name);
                    report.skip(workload.name, name, reason);
                }
            }
        }
        entries.retain(|entry| served::server_of(entry.name).is_none_or(|name| servers.contains_key(name)));
    }
    let mut cells: HashMap<(&str, &str), Cell> = HashMap::new();
    for round in 1..=rounds(workload, options.rounds) {
        for payload in workload.payloads {
            let messages = options.size.messages(workload, payload);
            for entry in &entries {
                let server = served::server_of(entry.name).map(|name| &servers[name]);
                let port = server.map_or(0, served::Server::port);
                let figures = measure(workload, entry, payload, messages, port, round);
                cells.entry((entry.name, payload)).or_default().add(figures);
            }
        }
    }
    report.add_workload(workload, &entries, cells);
}

fn rounds(workload: &Workload, asked: usize) -> usize {
    match workload.kind {
        Kind::Memory => 1.max(asked / 2), // bytes do not depend on who else runs
        _ => asked,
    }
}

/// One run in a process of its own, checked.
fn measure(
    workload: &Workload,
    entry: &Entry,
    payload: &str,
    messages: u64,
    port: u16,
    round: usize,
) -> HashMap<String, f64> {
    let (count, port) = (messages.to_string(), port.to_string());
    let line = start_again(&[workload.name, entry.name, payload, &count, &port]);
    let line = line.trim();
    println!(
        "round={round} workload={} contender={:?} payload={payload:?} {line}",
        workload.name, entry.name
    );
    let fields: HashMap<&str, &str> = line.split(' ').filter_map(|field| field.split_once('=')).collect();
    let expected = workload.expected(messages);
    let found = (fields.get("messages").copied(), fields.get("checksum").copied());
    let (count, checksum) = (expected.count.to_string(), format!("{:016x}", expected.checksum));
    assert_eq!(
        found,
        (Some(&*count), Some(&*checksum)),
        "{} lost, repeated or changed messages in {}",
        entry.name,
        workload.name
    );
    let number = |(name, text): (&str, &str)| Some((name.to_string(), text.parse().ok()?));
    fields.into_iter().filter_map(number).collect()
}

/// This program's output for `run` and these arguments.
fn start_again(arguments: &[&str]) -> String {
    let this = std::env::current_exe().expect("this program has a path");
    let output = Command::new(this).arg("run").args(arguments).output().expect("this program starts again");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "run {arguments:?} failed ({}):\n{text}{errors}", output.status);
    text
}

/// In the process that was started again.
fn run(arguments: &[String]) {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    if let ["part", name, ..] = words[..] {
        return parts::run(name);
    }
    let [workload, contender, payload, messages, ref port @ ..] = words[..] else {
        panic!("usage: run WORKLOAD CONTENDER PAYLOAD MESSAGES [PORT]");
    };
    let workload = workloads().into_iter().find(|known| known.name == workload).expect("a workload's name");
    let entry = entries()
        .into_iter()
        .find(|entry| entry.name == contender && entry.takes_part_in(workload.name))
        .expect("a contender's name, and one that takes part in this workload");
    let messages = messages.parse().expect("a number of messages");
    let port = port.first().map_or(0, |port| port.parse().expect("a port"));
    let outcome = (entry.run)(&Task { workload, payload: payload.into(), messages, port });
    print!(
        "elapsed_us={} messages={} checksum={:016x}",
        outcome.elapsed.as_micros(),
        outcome.tally.count,
        outcome.tally.checksum
    );
    for (name, value) in outcome.figures {
        print!(" {name}={value:.3}");
    }
    println!();
}
