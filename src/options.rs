//! The options of topics and subscriptions, as values with defaults.

use std::time::{Duration, SystemTime};

/// How long a topic keeps a message that every subscription has settled: the least time, at the grain of a log segment
/// (256 messages or 1 MiB).
///
/// What some subscription or snapshot still needs is never removed, whatever the retention.
///
/// ```
/// use eventflow::Retention;
/// use std::time::Duration;
/// # let broker = eventflow::Broker::in_memory();
/// let audit = broker.topic::<String>("audit").retention(Retention::for_duration(Duration::from_secs(3_600)).max_messages(100_000)).open()?;
/// # Ok::<(), eventflow::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Retention {
    pub(crate) keep: Keep,
    pub(crate) bytes_max: Option<u64>,
    pub(crate) messages_max: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keep {
    UntilAcked,
    For(Duration),
    Forever,
}

impl Retention {
    const fn of(keep: Keep) -> Self {
        Retention { keep, bytes_max: None, messages_max: None }
    }

    /// The default: a message is deleted once every subscription has settled it. With no subscription, nothing is kept.
    pub const fn until_acked() -> Self {
        Retention::of(Keep::UntilAcked)
    }

    /// Settled messages are kept for this long after their publish, so that a subscription can seek back or start late.
    pub const fn for_duration(duration: Duration) -> Self {
        Retention::of(Keep::For(duration))
    }

    /// Settled messages are kept for as long as the topic exists.
    pub const fn forever() -> Self {
        Retention::of(Keep::Forever)
    }

    /// Keeps at most this many bytes of settled messages: the oldest go first. Not for [`until_acked`](Self::until_acked).
    pub const fn max_bytes(mut self, bytes: u64) -> Self {
        self.bytes_max = Some(bytes);
        self
    }

    /// Keeps at most this many settled messages: the oldest go first. Not for [`until_acked`](Self::until_acked).
    pub const fn max_messages(mut self, messages: u64) -> Self {
        self.messages_max = Some(messages);
        self
    }

    pub(crate) fn problem(&self) -> Option<&'static str> {
        let bounded = self.bytes_max.is_some() || self.messages_max.is_some();
        (self.keep == Keep::UntilAcked && bounded)
            .then_some("bounds need for_duration or forever: until_acked keeps nothing that is settled, and drops nothing that is not")
    }
}

impl Default for Retention {
    fn default() -> Self {
        Retention::until_acked()
    }
}

/// How much a topic holds that is not settled yet by all of its subscriptions, and what a publisher meets when it is full.
///
/// ```
/// use eventflow::{Capacity, Overflow};
/// # let broker = eventflow::Broker::in_memory();
/// let ticks = broker.topic::<u64>("ticks").capacity(Capacity::messages(1_000).overflow(Overflow::DropOldest)).open()?;
/// # Ok::<(), eventflow::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Capacity {
    pub(crate) messages_max: Option<u64>,
    pub(crate) bytes_max: Option<u64>,
    pub(crate) overflow: Overflow,
}

impl Capacity {
    /// The default: a topic holds what memory holds.
    pub const fn unlimited() -> Self {
        Capacity { messages_max: None, bytes_max: None, overflow: Overflow::Block }
    }

    /// At most this many messages that are not settled yet by all. From 1.
    pub const fn messages(messages: u64) -> Self {
        Capacity { messages_max: Some(messages), ..Capacity::unlimited() }
    }

    /// At most this many bytes, as the topic's [`weigh`](crate::TopicBuilder::weigh) counts them. From 1.
    pub const fn bytes(bytes: u64) -> Self {
        Capacity { bytes_max: Some(bytes), ..Capacity::unlimited() }
    }

    /// What a publish meets when the topic is full; [`Overflow::Block`] unless told otherwise.
    pub const fn overflow(mut self, overflow: Overflow) -> Self {
        self.overflow = overflow;
        self
    }

    pub(crate) fn is_limited(&self) -> bool {
        self.messages_max.is_some() || self.bytes_max.is_some()
    }

    pub(crate) fn problem(&self) -> Option<&'static str> {
        (self.messages_max == Some(0) || self.bytes_max == Some(0))
            .then_some("a capacity of 0 could never take a message")
    }
}

impl Default for Capacity {
    fn default() -> Self {
        Capacity::unlimited()
    }
}

/// What a publish meets when its topic is full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Overflow {
    /// `publish` waits for space. Nothing is lost, and a subscription that is stuck holds the publishers.
    #[default]
    Block,
    /// `publish` fails at once with `Full` and gives the message back.
    Reject,
    /// The oldest messages that are not settled by all are dropped from every subscription, their leases end, and they are counted
    /// in [`TopicStats::dropped`](crate::TopicStats::dropped).
    DropOldest,
}

/// How long, and for how many ids, a topic remembers the idempotency ids that were published to it: the shorter of both.
///
/// The default is 10 minutes and 1,000,000 ids. Only messages that carry an id use it, at about 100 bytes an id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DedupWindow {
    pub(crate) time: Duration,
    pub(crate) ids_max: usize,
}

impl DedupWindow {
    const IDS_MAX: usize = 1_000_000;

    /// An id is remembered for less than this long after its publish.
    pub const fn time(time: Duration) -> Self {
        DedupWindow { time, ids_max: Self::IDS_MAX }
    }

    /// At most this many ids are remembered: the oldest is forgotten first.
    pub const fn max_ids(mut self, ids: usize) -> Self {
        self.ids_max = ids;
        self
    }

    /// No id is remembered: messages with one are published like any other.
    pub const fn off() -> Self {
        DedupWindow { time: Duration::ZERO, ids_max: 0 }
    }

    pub(crate) fn is_off(&self) -> bool {
        self.time.is_zero() || self.ids_max == 0
    }

    pub(crate) fn problem(&self) -> Option<&'static str> {
        let is_half_off = self.is_off() && *self != DedupWindow::off();
        is_half_off.then_some("a window of no time or no ids remembers nothing; say DedupWindow::off()")
    }
}

impl Default for DedupWindow {
    fn default() -> Self {
        DedupWindow::time(Duration::from_secs(600))
    }
}

/// Where a new subscription begins. Acts when the subscription is created, never when it is attached to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Start {
    /// With the first message that is published after the subscription was created.
    #[default]
    Latest,
    /// With the oldest message that is kept.
    Earliest,
    /// With the first message that was published at this time or later.
    Time(SystemTime),
    /// With this sequence; before what is kept means the oldest kept, after the newest means the next.
    Sequence(u64),
}

/// Where [`Subscription::seek`](crate::Subscription::seek) puts a subscription.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Seek {
    /// All that is kept is unsettled again.
    Earliest,
    /// All that is kept is settled.
    Latest,
    /// What was published at this time or later is unsettled again, what is before it is settled.
    Time(SystemTime),
    /// What has this sequence or a later one is unsettled again, what is before it is settled.
    Sequence(u64),
    /// The subscription stands where the snapshot of this name was taken.
    Snapshot(String),
}

/// What a subscription promises of each message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum DeliveryMode {
    /// Settled when it is handed out: never delivered twice, lost if the subscriber fails.
    ///
    /// On disk it is settled as safely as it was published: with [`Durability::Always`] whatever fails; with [`Interval`](Durability::Interval) and [`Os`](Durability::Os) a power cut may undo the newest hand-outs, and they are
    /// made again.
    AtMostOnce,
    /// Delivered until it is acked; an ack that comes late is still taken when nobody else holds the message.
    #[default]
    AtLeastOnce,
    /// Delivered until it is acked, and an ack after the deadline is refused by the clock: no two subscribers ever hold a running lease
    /// on a message, and what is settled is not delivered again.
    ExactlyOnce,
}

/// When a message comes back after a failed attempt (a nack, a drop, an expired ack deadline), counted from that moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RetryPolicy {
    pub(crate) min: Duration,
    pub(crate) max: Duration,
    pub(crate) kind: RetryKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RetryKind {
    Immediate,
    Fixed,
    Exponential,
}

impl RetryPolicy {
    /// The default: at once. Redeliveries take at most every other hand-out while new messages wait.
    pub const fn immediate() -> Self {
        RetryPolicy { min: Duration::ZERO, max: Duration::ZERO, kind: RetryKind::Immediate }
    }

    /// After this long, each time.
    pub const fn fixed(delay: Duration) -> Self {
        RetryPolicy { min: delay, max: delay, kind: RetryKind::Fixed }
    }

    /// After the n-th failure, uniformly between `min` and the lesser of `max` and `min`·2^(n-1): exponential back-off with jitter, so
    /// that messages that failed together do not come back together.
    pub const fn exponential(min: Duration, max: Duration) -> Self {
        RetryPolicy { min, max, kind: RetryKind::Exponential }
    }

    pub(crate) fn problem(&self) -> Option<&'static str> {
        match self.kind {
            RetryKind::Exponential if self.min.is_zero() => {
                Some("exponential needs a min above zero: twice nothing is nothing")
            }
            RetryKind::Exponential if self.min > self.max => Some("min is above max"),
            _ => None,
        }
    }
}

impl Default for RetryPolicy {
    fn default() -> Self {
        RetryPolicy::immediate()
    }
}

/// How safe a message is when its publish returns, on disk; see [`BrokerBuilder::durability`](crate::BrokerBuilder::durability).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Durability {
    /// It survives a power cut: it is synced before anybody sees it. Publishers that come together share a sync.
    #[default]
    Always,
    /// It survives a crash of the process; a power cut loses at most the newest of this time, all at once: what was published, and what was settled or handed out, so that a message may come again
    /// ([`AtMostOnce`](DeliveryMode::AtMostOnce) ones, too). A thread of the broker's syncs that often.
    ///
    /// No sequence that somebody may have seen is given to another message, nevertheless: after a crash, of the process too, all topics go on behind whatever may have been seen in any of them, about a million behind the
    /// farthest. After an end in good order ([`shutdown`](crate::Broker::shutdown), or the last handle dropped) they go on where they were. For this one publish in a million is synced, and the first after an opening.
    Interval(Duration),
    /// It survives a crash of the process. The system writes it to the disk when it likes. What is said of [`Interval`](Self::Interval) holds here for whatever was not written by then.
    Os,
}

/// What opening a directory does that holds damage; see [`BrokerBuilder::on_damage`](crate::BrokerBuilder::on_damage).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnDamage {
    /// It is an error that says what is damaged, and nothing is changed.
    #[default]
    Refuse,
    /// It opens with the rest. What is damaged is copied aside, and [`Broker::recovery`](crate::Broker::recovery) says what is gone.
    Continue,
}

/// What an engine can keep; see [`Broker::capabilities`](crate::Broker::capabilities).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Capability {
    /// A topic has one order and gives receipts with sequences.
    Sequences,
    /// Publisher dedup by idempotency id.
    Dedup,
    /// A repeated idempotency id with another message is refused.
    IdempotencyConflict,
    /// `publish_all` is atomic.
    AtomicBatch,
    /// Messages that are due later, and messages with a life.
    DelayedPublish,
    /// An ack after the deadline is refused by the clock (`ExactlyOnce`).
    FencedAcks,
    /// Ordering keys hold over all subscribers.
    OrderingKeys,
    /// Filters by attribute and by function.
    Filters,
    /// Dead letters.
    DeadLetters,
    /// Seek by sequence and by time.
    Seek,
    /// Snapshots.
    Snapshots,
    /// A limit on what a topic holds, with every [`Overflow`].
    Capacity,
    /// `release` without spending an attempt.
    Release,
    /// Acks and publishes that take effect together.
    Transactions,
}

impl Capability {
    pub(crate) const ALL: [Capability; 14] = [
        Capability::Sequences,
        Capability::Dedup,
        Capability::IdempotencyConflict,
        Capability::AtomicBatch,
        Capability::DelayedPublish,
        Capability::FencedAcks,
        Capability::OrderingKeys,
        Capability::Filters,
        Capability::DeadLetters,
        Capability::Seek,
        Capability::Snapshots,
        Capability::Capacity,
        Capability::Release,
        Capability::Transactions,
    ];
}

/// The set of what an engine can keep.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Capabilities {
    pub(crate) kept: Vec<Capability>,
}

impl Capabilities {
    pub(crate) fn all() -> Self {
        Capabilities { kept: Capability::ALL.to_vec() }
    }

    /// Whether the engine keeps this.
    pub fn contains(&self, capability: Capability) -> bool {
        self.kept.contains(&capability)
    }

    /// All that the engine keeps.
    pub fn iter(&self) -> impl Iterator<Item = Capability> + '_ {
        self.kept.iter().copied()
    }
}

/// How one message stands with one subscription; see [`Topic::status`](crate::Topic::status).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum MessageStatus {
    /// To be delivered: nobody holds it.
    Waiting,
    /// Leased to a subscriber.
    Leased,
    /// To be delivered, but not yet: a publish delay or a retry delay runs.
    Delayed,
    /// Due to be dead-lettered, and the dead-letter topic was gone or would keep nothing.
    Parked,
    /// Acked.
    Acked,
    /// In the dead-letter topic.
    DeadLettered,
    /// Rejected or out of attempts, and there is no dead-letter topic.
    Discarded,
    /// It left unsettled, by its own life or by the subscription's `expire_after`.
    Expired,
    /// The filter did not take it.
    Filtered,
    /// Dropped by [`Overflow::DropOldest`].
    Dropped,
    /// It lies before the subscription's start, or before where it was sought to.
    Skipped,
}

pub(crate) const ACK_DEADLINE_DEFAULT: Duration = Duration::from_secs(10);
pub(crate) const ACK_DEADLINE_MIN: Duration = Duration::from_millis(1);
pub(crate) const ACK_DEADLINE_MAX: Duration = Duration::from_secs(24 * 60 * 60);
pub(crate) const MAX_OUTSTANDING_DEFAULT: usize = 1_000;
pub(crate) const DEAD_LETTER_ATTEMPTS_DEFAULT: u32 = 5;
pub(crate) const SNAPSHOT_LIFE: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// Limits on one message, so that no publisher can spend another's memory without bound.
pub(crate) const PAYLOAD_BYTES_MAX: u64 = 10_000_000;
pub(crate) const ATTRIBUTES_MAX: usize = 100;
pub(crate) const ATTRIBUTE_KEY_LEN_MAX: usize = 256;
pub(crate) const ATTRIBUTE_VALUE_LEN_MAX: usize = 1_024;
pub(crate) const ORDERING_KEY_LEN_MAX: usize = 1_024;
pub(crate) const IDEMPOTENCY_ID_LEN_MAX: usize = 1_024;
