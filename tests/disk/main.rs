//! A broker in a directory: what it accepted is there again.

mod process;
mod support;

#[cfg(feature = "async")]
mod asynchronous;
mod attempts;
mod dedup;
#[cfg(unix)]
mod descriptors;
mod encoded;
mod ends;
#[cfg(unix)]
mod full;
mod keeping;
mod kill;
mod options;
mod payloads;
#[cfg(unix)]
mod power;
mod progress;
mod races;
mod reopen;
mod settling;
mod snapshots;
#[cfg(unix)]
mod stop;
mod time;
mod transactions;
mod volume;
