//! What there is to see: counters and gauges, cheap enough to read once a second.

use std::time::Duration;

/// What one subscription has and did. Counters count since the subscription was created; a seek does not reset them.
///
/// On disk, what was settled is counted exactly, and `delivered`, `redelivered`, `nacked`, `released` and `leases_expired` go on, when the directory is opened again, from what the last checkpoint knew:
/// hand-outs are not worth a record each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SubscriptionStats {
    /// Not settled yet: waiting, outstanding, delayed or parked. With a filter, an upper bound until the filter has looked.
    pub backlog: u64,
    /// Leased now.
    pub outstanding: u64,
    /// Waiting for the end of a publish delay or a retry delay.
    pub delayed: u64,
    /// Due to be dead-lettered, and the dead-letter topic was gone or would keep nothing.
    pub parked: u64,
    /// Hand-outs.
    pub delivered: u64,
    /// Hand-outs of a message that had failed an attempt.
    pub redelivered: u64,
    /// Messages settled by an ack (in `AtMostOnce` mode, by the hand-out).
    pub acked: u64,
    /// Attempts that ended by a nack or a drop.
    pub nacked: u64,
    /// Hand-outs that were released.
    pub released: u64,
    /// Attempts that ended by the ack deadline.
    pub leases_expired: u64,
    /// Messages that left unsettled at the end of their life.
    pub messages_expired: u64,
    /// Messages that went to the dead-letter topic.
    pub dead_lettered: u64,
    /// Messages that were rejected or out of attempts without a dead-letter topic, or dropped by `Overflow::DropOldest`.
    pub discarded: u64,
    /// Messages that the filter did not take.
    pub filtered: u64,
    /// How long ago the oldest unsettled message was published.
    pub oldest_unsettled_age: Option<Duration>,
}

/// What opening a directory found; see [`Broker::recovery`](crate::Broker::recovery).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RecoveryReport {
    /// Changes that were read from the journal, beside those that a checkpoint held. 0 in memory.
    pub replayed: u64,
    /// How many of them were not known to be synced: the end was unclean, and they were written again and synced.
    pub rewritten: u64,
    /// What is damaged, in words, with file and place. With [`OnDamage::Refuse`](crate::OnDamage::Refuse) only what lost nothing, because another copy served.
    pub damaged: Vec<String>,
    /// How many changes are gone by that, at most. 0 unless [`OnDamage::Continue`](crate::OnDamage::Continue) was said.
    pub lost: u64,
}

/// How far the opening of a directory has come; see [`BrokerBuilder::on_recovery_progress`](crate::BrokerBuilder::on_recovery_progress).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RecoveryProgress {
    /// Bytes that were read.
    pub read: u64,
    /// Bytes that are to be read, about: at the end `read` is as much.
    pub total: u64,
}

/// What one topic holds and did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TopicStats {
    /// Subscriptions that exist.
    pub subscriptions: u64,
    /// Messages that were given a sequence.
    pub published: u64,
    /// Publishes that were repeats.
    pub deduplicated: u64,
    /// Messages that `Overflow::DropOldest` dropped.
    pub dropped: u64,
    /// Messages in memory. A segment (256 messages or 1 MiB) goes as a whole.
    pub resident_messages: u64,
    /// Their bytes, as the topic's `weigh` counts them.
    pub resident_bytes: u64,
    /// Bytes on disk. 0 in memory; on disk topics share the journal, which counts for the broker.
    pub disk_bytes: u64,
}

/// What a broker holds and did: sums over its topics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct BrokerStats {
    /// Topics that exist.
    pub topics: u64,
    /// Subscriptions that exist.
    pub subscriptions: u64,
    /// Messages that were given a sequence, over the topics that exist.
    pub published: u64,
    /// Not settled yet, over all subscriptions: a message counts once for each.
    pub backlog: u64,
    /// Leased now, over all subscriptions.
    pub outstanding: u64,
    /// Bytes in memory, as the topics weigh them.
    pub resident_bytes: u64,
    /// Bytes that the files of a broker on disk take; 0 in memory.
    pub disk_bytes: u64,
}

/// What [`Broker::shutdown`](crate::Broker::shutdown) left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ShutdownReport {
    /// Leases that were not settled when the timeout passed.
    pub outstanding: u64,
    /// Messages that some subscription had not settled, those outstanding included. A message counts once for each subscription.
    pub backlog: u64,
}
