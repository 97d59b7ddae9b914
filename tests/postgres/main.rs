//! The inbox and the outbox against a real PostgreSQL: a server of its own for each test, from the distribution's package. Where it is not installed, each test says that it was skipped.
//!
//! ```text
//! cargo test --features postgres-tests --test postgres -- --nocapture
//! ```
#![forbid(unsafe_code)]

mod inbox;
mod outbox;
mod server;

use std::sync::mpsc;
use std::time::Duration;

/// Runs `work` on a thread of its own under a watchdog: what takes too long fails instead of hanging.
#[track_caller]
fn within<T: Send + 'static>(seconds: u64, work: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, result) = mpsc::channel();
    std::thread::spawn(move || {
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        let _unheard = sender.send(outcome);
    });
    match result.recv_timeout(Duration::from_secs(seconds)) {
        Ok(Ok(value)) => value,
        Ok(Err(panic)) => std::panic::resume_unwind(panic),
        Err(_) => panic!("hung: no answer within {seconds} s"),
    }
}

/// A small generator of repeatable numbers (SplitMix64).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: u32) -> u32 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((mixed ^ (mixed >> 31)) % u64::from(end)) as u32
    }
}
