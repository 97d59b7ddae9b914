//! An embeddable publish/subscribe broker.
#![forbid(unsafe_code)]
#![cfg_attr(any(eventflow_loom, eventflow_shuttle), allow(dead_code, reason = "models look at parts"))]

#[cfg(feature = "async")]
mod asynchronous;
mod broker;
mod channel;
mod clock;
mod codec;
mod delivery;
mod engine;
mod error;
mod handles;
mod log;
mod message;
mod name;
mod options;
mod sequence;
mod stats;
mod subscription;
mod sync;
mod time;
mod topic;

pub use broker::{Broker, BrokerBuilder};
pub use clock::{Clock, ManualClock, SystemClock};
pub use codec::Codec;
pub use error::{
    CodecError, CreateError, DeleteError, Error, OpenError, PublishAllError, PublishError, PublishErrorKind,
    RecvError, RecvTimeoutError, Result, SeekError, SettleError, TryRecvError, UpdateError,
};
pub use handles::{Batch, BatchIter, Delivery};
pub use message::{IdempotencyId, Message, MessageId, MessageRef, ParseMessageIdError};
pub use name::NameError;
pub use options::{
    Capabilities, Capability, Capacity, DedupWindow, DeliveryMode, MessageStatus, Overflow, Retention,
    RetryPolicy, Seek, Start,
};
pub use stats::{BrokerStats, ShutdownReport, SubscriptionStats, TopicStats};
pub use subscription::{DeadLetter, Subscription, SubscriptionBuilder, SubscriptionUpdate};
pub use topic::{Receipt, Topic, TopicBuilder, TopicUpdate};
