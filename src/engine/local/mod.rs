//! The engine in this process: topics and subscriptions in memory.

mod ahead;
mod archiving;
pub(crate) mod broker;
mod checkpointing;
pub(crate) mod commit;
pub(crate) mod committer;
pub(crate) mod dead_letter;
mod deletion;
#[cfg(all(test, not(any(eventflow_loom, eventflow_shuttle))))]
mod disk_tests;
mod effect;
pub(crate) mod examine;
pub(crate) mod flight;
mod forgetting;
mod imaging;
pub(crate) mod occupancy;
pub(crate) mod plain;
pub(crate) mod progress;
pub(crate) mod publish;
pub(crate) mod receive;
pub(crate) mod reclaim;
mod recording;
pub(crate) mod recovered;
pub(crate) mod replay;
pub(crate) mod revival;
pub(crate) mod settle;
pub(crate) mod staging;
pub(crate) mod store;
pub(crate) mod subscription;
pub(crate) mod topic;
pub(crate) mod transaction;
