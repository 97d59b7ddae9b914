//! Delivery decides. Pure: no clock, lock, thread, I/O or payload in here. Time and sequences go in, decisions come out.

mod committing;
pub(crate) mod dedup;
pub(crate) mod filter;
pub(crate) mod hand_out;
pub(crate) mod image;
pub(crate) mod intake;
pub(crate) mod ledger;
mod memories;
pub(crate) mod ordering;
pub(crate) mod retry;
mod runs;
pub(crate) mod settled;
mod settling;
#[cfg(test)]
mod tests;
