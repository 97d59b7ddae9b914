//! A broker in a directory: what it accepted is there again.

mod support;

mod attempts;
mod dedup;
mod ends;
mod keeping;
mod kill;
mod options;
mod payloads;
mod races;
mod reopen;
mod settling;
mod snapshots;
mod time;
mod transactions;
mod volume;
