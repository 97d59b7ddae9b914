//! The short while in which who waits does not sleep yet: to be woken from sleep costs tens of microseconds, and what is waited for is often nearer than that.

use std::time::{Duration, Instant};

use crate::sync::{hint, thread};

/// Spins for up to `SPIN`, less when it did not pay lately on this thread: half as long after each time in vain, and all of it again at
/// every `SPIN_AGAIN`th time, to see whether times have changed. All in vain, this costs a microsecond a sleep.
pub(super) fn spin(done: impl Fn() -> bool) -> bool {
    let vain = SPUN_IN_VAIN.get();
    let limit = SPIN / (1 << vain.min(6));
    let start = Instant::now();
    loop {
        for _ in 0..SPIN_LOOKS {
            if done() {
                SPUN_IN_VAIN.set(0);
                return true;
            }
            hint::spin_loop();
        }
        if start.elapsed() >= limit {
            SPUN_IN_VAIN.set((vain + 1) % SPIN_AGAIN);
            return false;
        }
    }
}

/// Where more threads run than there are cores, whom we wait for may be waiting for this very core: lets others run and looks again, which saves both of us
/// a sleep. A yield that comes back at once has found nobody; then this is not tried again for a while.
pub(super) fn yield_until(done: impl Fn() -> bool) -> bool {
    let vain = YIELDED_IN_VAIN.get();
    if vain != 0 {
        YIELDED_IN_VAIN.set((vain + 1) % YIELD_AGAIN);
        return false;
    }
    for _ in 0..YIELDS {
        let start = Instant::now();
        thread::yield_now();
        if done() {
            return true;
        }
        if start.elapsed() < SWITCH {
            YIELDED_IN_VAIN.set((vain + 1) % YIELD_AGAIN);
            return false;
        }
    }
    YIELDED_IN_VAIN.set(0);
    false
}

std::thread_local! {
    /// How often in a row this thread has spun in vain.
    pub(super) static SPUN_IN_VAIN: std::cell::Cell<u32> = const { std::cell::Cell::new(0) };
    /// How often in a row this thread has found nobody to yield to, or has not asked because of that.
    static YIELDED_IN_VAIN: std::cell::Cell<u32> = const { std::cell::Cell::new(0) };
}

/// Somewhat more than it takes a sleeping thread to come round after its `unpark`. Two threads that answer each other in less would else
/// never get out of sleeping by turns: whoever spins for the answer gives up just before the other, whom it had to wake first, can give
/// it. Measured on a virtual machine with two free cores, a round trip is 5 to 10 µs with a limit of 5 µs, 0.5 to 0.7 with 10, and 0.3 to
/// 0.5 with 20 or 50.
const SPIN: Duration = Duration::from_micros(20);
pub(super) const SPIN_AGAIN: u32 = 64;
const YIELDS: u32 = 3;
const YIELD_AGAIN: u32 = 32;
/// A yield that takes longer has let somebody else run.
const SWITCH: Duration = Duration::from_micros(3);
/// Looks between two readings of the clock, which cost as much as a few of them.
const SPIN_LOOKS: u32 = 8;
