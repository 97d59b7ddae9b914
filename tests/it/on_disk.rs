//! All tests of this list once more, on brokers in directories: what the broker does in memory it does on disk.
//!
//! They run in a process of their own: see [`storage`](crate::storage).

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::storage::{ON_DISK, WITH_RESTARTS, home};
use crate::support::within;

/// What a test is about that only a broker in memory does. Each of them fails on disk, or it does not belong here.
const IN_MEMORY_ALONE: &[(&str, &str)] = &[(
    "publish_all::p17_the_events_of_a_batch_go_when_all_of_its_segment_are_settled",
    "a batch is one piece of memory, where on disk its messages come one by one, as single ones do",
)];

/// A directory for a run's brokers, gone with it. In the machine's memory, where it has a file system there: nothing here is about syncs, which opening a broker waits for.
struct Home(PathBuf);

impl Home {
    fn new(run: &str) -> Home {
        let memory = Path::new("/dev/shm");
        let parent = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        let home = parent.join(format!("eventflow-it-{}-{run}", std::process::id()));
        fs::create_dir_all(&home).expect("a temporary directory");
        Home(home)
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).ok();
    }
}

/// What a run of this program's tests came to.
struct Run {
    passed: BTreeSet<String>,
    failed: BTreeSet<String>,
    output: String,
}

/// Runs the tests that the filters name, on disk.
fn run(name: &str, filters: &[&str], restarts: bool) -> Run {
    let home = Home::new(name);
    let mut command = Command::new(std::env::current_exe().expect("a program knows itself"));
    command.args(filters).args(["--skip", "on_disk::", "--color", "never", "--format", "pretty"]);
    command.env(ON_DISK, &home.0).env_remove(WITH_RESTARTS).stdin(Stdio::null());
    if restarts {
        command.env(WITH_RESTARTS, "1");
    }
    // Each of its tests has a watchdog of its own.
    let output = within(600, move || command.output().expect("it starts"));
    let mut output_text = String::from_utf8_lossy(&output.stdout).into_owned();
    output_text.push_str(&String::from_utf8_lossy(&output.stderr));
    let ended = |how: &str| {
        let names = output_text.lines().filter_map(|line| {
            let (name, said) = line.strip_prefix("test ")?.rsplit_once(" ... ")?;
            (said == how).then(|| name.trim_end_matches(" - should panic").to_owned())
        });
        names.collect::<BTreeSet<_>>()
    };
    let run = Run { passed: ended("ok"), failed: ended("FAILED"), output: output_text };
    assert!(run.passed.len() + run.failed.len() > 0, "no test ran:\n{}", run.output);
    assert!(run.output.contains("test result: "), "it did not come to its end:\n{}", run.output);
    run
}

/// Passed and failed are as they are to be.
#[track_caller]
fn check(run: &Run, alone: &BTreeSet<String>) {
    println!("on disk: {} tests passed, {} are of memory alone", run.passed.len(), alone.len());
    let unexpected: Vec<_> = run.failed.difference(alone).collect();
    assert!(unexpected.is_empty(), "failed on disk: {unexpected:#?}\n{}", run.output);
    let needless: Vec<_> = alone.difference(&run.failed).collect();
    assert!(needless.is_empty(), "these work on disk, or are no tests: {needless:#?}");
}

#[test]
fn every_test_passes_on_disk_too() {
    if home().is_some() {
        return;
    }
    for (name, reason) in IN_MEMORY_ALONE {
        println!("in memory alone: {name}: {reason}");
    }
    check(&run("all", &[], false), &IN_MEMORY_ALONE.iter().map(|(name, _)| (*name).to_owned()).collect());
}

#[test]
fn what_is_there_lasts_over_restarts() {
    if home().is_some() {
        return;
    }
    let rooms = ["conformance::", "lasting::"];
    let in_them = |name: &&(&str, &str)| rooms.iter().any(|room| name.0.starts_with(room));
    let alone = IN_MEMORY_ALONE.iter().filter(in_them).map(|(name, _)| (*name).to_owned()).collect();
    check(&run("restarts", &rooms, true), &alone);
}
