//! What follows a failed attempt: when the message comes back, and why it does not.

use std::time::Duration;

use crate::options::{RetryKind, RetryPolicy};

/// What becomes of a message that has used up its attempts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Beyond {
    /// There is no limit: it is retried until it is acked or expires. A rejected one is discarded.
    Retry,
    /// Discarded and counted.
    Discard { after: u32 },
    /// To the dead-letter topic.
    DeadLetter { after: u32 },
}

impl Beyond {
    pub(crate) fn attempts_max(self) -> u32 {
        match self {
            Beyond::Retry => u32::MAX,
            Beyond::Discard { after } | Beyond::DeadLetter { after } => after,
        }
    }
}

/// Why a message is dead-lettered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    Nacked,
    Expired,
    FilterPanicked,
    Rejected(String),
}

impl Reason {
    pub(crate) fn as_str(&self) -> &str {
        match self {
            Reason::Nacked => "nacked",
            Reason::Expired => "ack deadline expired",
            Reason::FilterPanicked => "filter panicked",
            Reason::Rejected(reason) => reason,
        }
    }
}

/// SplitMix64 (Steele, Lea and Flood, 2014): jitter needs no more, and a seed makes a run repeatable.
#[derive(Clone, Debug)]
pub(crate) struct Jitter(u64);

impl Jitter {
    pub(crate) fn seeded(seed: u64) -> Self {
        Jitter(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Uniform in `low..=high`. The bias of the multiplication is below 2^-64 of the span.
    fn between(&mut self, low: Duration, high: Duration) -> Duration {
        let span = high.saturating_sub(low).as_nanos().min(u128::from(u64::MAX));
        let part = (u128::from(self.next()) * (span + 1)) >> 64;
        low + Duration::from_nanos(u64::try_from(part).unwrap_or(u64::MAX))
    }
}

/// How long a message that failed for the `failures`-th time (from 1) stays away.
pub(crate) fn delay(policy: &RetryPolicy, failures: u32, jitter: &mut Jitter) -> Duration {
    match policy.kind {
        RetryKind::Immediate | RetryKind::Fixed => policy.min,
        RetryKind::Exponential => {
            let factor = 1_u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX);
            let ceiling = policy.min.checked_mul(factor).map_or(policy.max, |grown| grown.min(policy.max));
            jitter.between(policy.min, ceiling)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    #[test]
    fn exponential_back_off_doubles_up_to_its_maximum() {
        let policy = RetryPolicy::exponential(MS(10), MS(65));
        for (failures, ceiling) in [(1, 10), (2, 20), (3, 40), (4, 65), (40, 65), (u32::MAX, 65)] {
            let mut jitter = Jitter::seeded(u64::from(failures));
            let delays: Vec<_> = (0..500).map(|_| delay(&policy, failures, &mut jitter)).collect();
            let (low, high) = (delays.iter().min().unwrap(), delays.iter().max().unwrap());
            assert!(*low >= MS(10) && *high <= MS(ceiling), "failure {failures}: {low:?} to {high:?}");
            // It spreads over the whole range, rather than sit at an end.
            let span = MS(ceiling) - MS(10);
            assert!(*high - *low >= span.mul_f64(0.9), "failure {failures}: {low:?} to {high:?}");
        }
    }

    #[test]
    fn the_other_policies_do_not_roll_dice() {
        let mut jitter = Jitter::seeded(1);
        assert_eq!(delay(&RetryPolicy::immediate(), 7, &mut jitter), Duration::ZERO);
        assert_eq!(delay(&RetryPolicy::fixed(MS(3)), 7, &mut jitter), MS(3));
        assert_eq!(delay(&RetryPolicy::exponential(MS(1), Duration::MAX), 1, &mut jitter), MS(1));
    }
}
