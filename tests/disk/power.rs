//! The power fails: the file system under a process that works ends at once, and comes again with what its device holds.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use crate::process::{ALWAYS, Process, Random, Told, setting};
use crate::support::watched;

const PATIENCE: Duration = Duration::from_secs(60);
/// A directory on a file system of its own, and commands that end it and bring it again: `scripts/torture power` makes all three.
const DIR: &str = "EVENTFLOW_POWER_DIR";
const FAILS: &str = "EVENTFLOW_POWER_FAILS";
const RETURNS: &str = "EVENTFLOW_POWER_RETURNS";

fn run(command: &str) {
    let status = Command::new("sh").args(["-c", command]).status();
    assert!(status.as_ref().is_ok_and(|status| status.success()), "{command}: {status:?}");
}

#[test]
fn p01_what_was_told_before_the_power_failed_is_true() {
    let [Ok(dir), Ok(fails), Ok(returns)] = [DIR, FAILS, RETURNS].map(std::env::var) else {
        println!("SKIPPED: needs root, and a file system of its own: scripts/torture power");
        return;
    };
    let (seed, cuts) = (setting("EVENTFLOW_SEED", 0x0ff), setting("EVENTFLOW_CUTS", 20));
    println!("EVENTFLOW_SEED={seed} EVENTFLOW_CUTS={cuts}");
    watched(PATIENCE * cuts as u32, move || {
        let (store, mut told, mut random) = (PathBuf::from(dir).join("store"), Told::default(), Random(seed));
        for cut in 0..cuts {
            let lines = 1 + random.below(1_500);
            let mut process = Process::start(&store, ALWAYS, &told, "");
            process.hear(&mut told, lines);
            run(&fails);
            // What it told until now, it told of what the device has.
            process.kill_what_may_have_ended(&mut told);
            run(&returns);
            told.verify_twice(&store, ALWAYS, &format!("cut {cut} after {lines} lines"));
        }
        println!("figures: {cuts} power cuts, {} restarts, {}", 2 * cuts, told.figures());
        assert!(told.has_done_something());
    });
}
