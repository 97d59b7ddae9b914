//! How it works inside, and why one may believe it.
//!
//! Nothing here is needed in order to use the crate: the [front page](crate) is the tutorial. These pages are for those who want to know
//! what they rely on, and for those who change it.
//!
//! - [`delivery_modes`]: at most once, at least once, exactly once; which to choose, and what deduplication adds.
//! - [`delivery_states`]: where a message can stand with a subscription, and what moves it.
//! - [`exactly_once`]: what can fail on the way from a publisher to an effect, and what to use against it.
//! - [`architecture`]: the floors of the house, and the road a message takes through it.
//! - [`format`](mod@format): what lies in a broker's directory, to the byte.
//! - [`testing`]: how each promise is tested.
//! - [`torture`]: what is done to a broker on disk, and what it came to.
//! - [`performance`]: what a message costs, beside what, where we lose and what was tried.

#[doc = include_str!("delivery_modes.md")]
pub mod delivery_modes {}

#[doc = include_str!("delivery_states.md")]
pub mod delivery_states {}

#[doc = include_str!("exactly_once.md")]
pub mod exactly_once {}

#[doc = include_str!("architecture.md")]
pub mod architecture {}

#[doc = include_str!("format.md")]
pub mod format {}

#[doc = include_str!("testing.md")]
pub mod testing {}

#[doc = include_str!("torture.md")]
pub mod torture {}

#[doc = include_str!("performance.md")]
pub mod performance {}
