//! The whole broker on a disk that loses power, fails, or is full, in the middle of anything: through the public API alone, and compared with a history that knows nothing of how a broker works.

// From outside, as a program sees it: what is tested here is the house, not this floor.
extern crate self as eventflow;

#[cfg(feature = "async")]
mod archives;
#[cfg(feature = "async")]
mod asynchronous;
mod audit;
mod compare;
mod damage;
mod driver;
mod endings;
mod full;
mod history;
#[cfg(feature = "async")]
mod interplay;
#[cfg(feature = "async")]
mod keys;
mod sequences;
mod settling;
mod simulation;
mod threads;
mod transactions;
#[cfg(feature = "async")]
mod watched;
mod workloads;

use std::path::Path;
use std::sync::Arc;

use self::eventflow::{Broker, ManualClock, OpenError};
use crate::journal::disk::Disk;
use crate::journal::{Durability, JournalOptions};

const DIR: &str = "/broker";
/// So short that checkpoints are frequent.
const SEGMENT_LEN: u64 = 16 << 10;

fn open(disk: Arc<dyn Disk>, clock: &ManualClock) -> Result<Broker, OpenError> {
    let options = JournalOptions {
        segment_len: SEGMENT_LEN,
        segments_per_checkpoint: 1,
        ..JournalOptions::new(Durability::Always)
    };
    Broker::on_disk(disk, Path::new(DIR), options, clock.clone())
}

/// A number that the environment may raise.
fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}
