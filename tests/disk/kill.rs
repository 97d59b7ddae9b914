//! A process that is killed, again and again: what it was told is true afterwards.

use std::time::Duration;

use crate::process::{ALWAYS, Manner, Process, Random, Told, be_it_if_told, setting};
use crate::support::{Dir, watched};

/// For one kill, and what is looked at after it, before the test counts as hung.
const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn p01_what_a_killed_process_was_told_is_true() {
    be_it_if_told();
    let (seed, kills) = (setting("EVENTFLOW_SEED", 0x5eed), setting("EVENTFLOW_KILLS", 20));
    println!("EVENTFLOW_SEED={seed} EVENTFLOW_KILLS={kills}");
    watched(PATIENCE * kills as u32, move || {
        let dir = Dir::new();
        let mut told = Told::default();
        let mut random = Random(seed);
        for kill in 0..kills {
            // Now and then late enough for the acks to catch up with the publishes.
            let lines = (1 + random.below(1_500)) * [1, 1, 1, 4][kill as usize % 4];
            let manner = Manner { durability: ["always", "os", "interval"][kill as usize % 3], ..ALWAYS };
            let case = format!("kill {kill} after {lines} lines, {}", manner.durability);
            println!("{case}");
            let mut process = Process::start(dir.path(), manner, &told, "");
            process.hear(&mut told, lines);
            process.kill(&mut told);
            told.verify_twice(dir.path(), manner, &case);
        }
        println!("figures: {kills} kills, {} restarts, {}", 2 * kills, told.figures());
        assert!(told.has_done_something());
    });
}
