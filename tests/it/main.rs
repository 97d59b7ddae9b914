//! The promises of the public API, in memory and on disk: a file per subject, a test per promise. A test that holds a numbered promise
//! begins with its number (`p06_…`). No test sleeps: time is manual, threads report over channels, and a watchdog ends what hangs.
#![forbid(unsafe_code)]

mod storage;
mod support;

#[cfg(feature = "async")]
mod asynchronous;
mod batch;
mod callbacks;
mod capacity;
mod clock;
mod conformance;
mod dead_letter;
mod dedup;
mod delivery;
mod exactly_once;
mod failures;
mod fairness;
mod filters;
mod inbox;
mod lasting;
mod leases;
mod limits;
mod model;
mod on_disk;
mod options;
mod ordering;
mod outbox;
mod pitfalls;
mod publish;
mod publish_all;
mod ready_channel;
mod retention;
mod retry;
mod rollback;
mod seek;
mod settle;
mod shutdown;
mod snapshot;
mod stats;
mod status;
mod topics;
mod transactions;
mod transactions_model;
mod update;
mod wakeups;
