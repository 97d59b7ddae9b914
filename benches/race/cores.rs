//! Where threads run. Two threads that talk to each other through a channel are some ten times slower, or faster, on one core than on two,
//! and the kernel's choice between these differs from run to run: so it is not left to the kernel where there are cores enough.

use std::fs;
use std::process::{Command, Stdio};

/// The cores that this process may use.
fn cores() -> Vec<usize> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap_or_default();
    let range = |text: &str| {
        let (from, to) = text.split_once('-').unwrap_or((text, text));
        Some(from.parse::<usize>().ok()?..=to.parse::<usize>().ok()?)
    };
    list.trim().split(',').filter_map(range).flatten().collect()
}

/// Gives this thread, one of `threads`, a core of its own, if there are as many.
pub(crate) fn pin(number: usize, threads: usize) {
    let cores = cores();
    let Ok(this) = fs::read_link("/proc/thread-self") else { return };
    let (Some(id), true) = (this.file_name(), threads <= cores.len()) else { return };
    // A program that is nearly everywhere, for a call to the kernel that no safe one offers.
    let mut taskset = Command::new("taskset");
    taskset
        .args(["-c", "-p", &cores[number].to_string()])
        .arg(id)
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let _ = taskset.status();
}

/// Whether `pin` does anything.
pub(crate) fn can_pin() -> bool {
    let mut taskset = Command::new("taskset");
    taskset.arg("--version").stdout(Stdio::null()).stderr(Stdio::null());
    !cores().is_empty() && taskset.status().is_ok_and(|status| status.success())
}
