//! The broker's time line, and wall-clock publish time. There is no clock in here.

use std::fmt;
use std::ops::Add;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// An instant on the broker's own line: nanoseconds since the Unix epoch as the broker counts them.
///
/// The line starts at the wall clock's reading when the broker was built and then runs monotonically: a wall clock that jumps, either
/// way and by any amount, moves neither a deadline nor the order of publish times. All arithmetic saturates; the end of the line is the year 2554.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Tick(u64);

impl Tick {
    /// Before anything.
    pub(crate) const ZERO: Tick = Tick(0);
    /// Later than anything: "never".
    pub(crate) const NEVER: Tick = Tick(u64::MAX);

    pub(crate) const fn from_nanos(nanos: u64) -> Self {
        Tick(nanos)
    }

    pub(crate) const fn nanos(self) -> u64 {
        self.0
    }

    /// The time from `earlier` to `self`; zero when `earlier` is later.
    pub(crate) fn since(self, earlier: Tick) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    pub(crate) fn to_system_time(self) -> SystemTime {
        UNIX_EPOCH + Duration::from_nanos(self.0)
    }

    /// Times before 1970 are the start of the line, times after its end are its end.
    pub(crate) fn from_system_time(time: SystemTime) -> Self {
        match time.duration_since(UNIX_EPOCH) {
            Ok(since) => Tick(nanos(since)),
            Err(_) => Tick(0),
        }
    }
}

/// Saturating: `Duration::MAX` is 584 years.
pub(crate) fn nanos(duration: Duration) -> u64 {
    let whole = duration.as_secs().saturating_mul(1_000_000_000);
    whole.saturating_add(u64::from(duration.subsec_nanos()))
}

impl Add<Duration> for Tick {
    type Output = Tick;
    fn add(self, duration: Duration) -> Tick {
        Tick(self.0.saturating_add(nanos(duration)))
    }
}

impl fmt::Debug for Tick {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Tick::NEVER { f.write_str("never") } else { write!(f, "@{}", self.0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arithmetic_saturates_at_both_ends() {
        assert_eq!(Tick::from_nanos(5) + Duration::MAX, Tick::NEVER);
        assert_eq!(Tick::from_nanos(5).since(Tick::from_nanos(9)), Duration::ZERO);
        assert_eq!(Tick::from_system_time(UNIX_EPOCH - Duration::from_secs(1)), Tick::from_nanos(0));
        assert_eq!(Tick::from_nanos(7).to_system_time(), UNIX_EPOCH + Duration::from_nanos(7));
    }
}
