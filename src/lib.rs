//! An embeddable publish/subscribe broker: typed topics, lasting subscriptions, acknowledgements, redelivery, dead letters, ordering,
//! replay and exactly-once, by plain Rust calls, in your own process, with no server.
//!
//! # The first message
//!
//! An event is any `T: Send + Sync + 'static`: no trait to implement, no macro, no runtime, no serialisation. Every subscription reads the same one copy.
//!
//! ```
//! use eventflow::Broker;
//!
//! #[derive(Debug)]
//! struct OrderPlaced { id: u64, total_cents: u64 }
//!
//! fn main() -> eventflow::Result<()> {
//!     let broker = Broker::in_memory();
//!     let orders = broker.topic::<OrderPlaced>("orders").open()?;
//!     let billing = orders.subscription("billing").open()?;
//!
//!     orders.publish(OrderPlaced { id: 7, total_cents: 1999 })?;
//!
//!     let order = billing.recv()?;             // leased to us until the ack deadline
//!     println!("charging order {}", order.id); // a delivery derefs to the event
//!     order.ack()?;                            // now the broker may forget it
//!     Ok(())
//! }
//! ```
//!
//! # Who gets what
//!
//! Each subscription gets every message (fan-out). The subscribers of one subscription, its clones, share its messages (load balancing). Any number of
//! threads may publish (fan-in).
//!
//! ```
//! # let broker = eventflow::Broker::in_memory();
//! let orders = broker.topic::<String>("orders").open()?;
//! let billing = orders.subscription("billing").open()?;
//! let shipping = orders.subscription("shipping").open()?;
//! let second_shipper = shipping.clone();
//!
//! orders.publish_all(["order 7", "order 8"])?;
//! assert_eq!(billing.recv_batch(10)?.len(), 2);
//! let (one, other) = (shipping.recv()?, second_shipper.recv()?);
//! assert_ne!(one.id(), other.id());
//! # Ok::<(), eventflow::Error>(())
//! ```
//!
//! # When it fails
//!
//! A delivery that is nacked, dropped, or not settled by its ack deadline comes back, as the [`RetryPolicy`] says, up to the attempts that [`DeadLetter`] allows. A
//! subscriber that panics, hangs or dies never keeps a message from the others for longer.
//!
//! ```
//! use eventflow::{DeadLetter, RetryPolicy};
//! use std::time::Duration;
//! # let broker = eventflow::Broker::in_memory();
//! let failed = broker.topic::<String>("orders.failed").open()?;
//! let inspection = failed.subscription("inspection").open()?;
//! let orders = broker.topic::<String>("orders").open()?;
//! let billing = orders
//!     .subscription("billing")
//!     .ack_deadline(Duration::from_secs(30))
//!     .retry(RetryPolicy::exponential(Duration::from_millis(100), Duration::from_secs(60)))
//!     .dead_letter(DeadLetter::to(&failed).after(3))
//!     .open()?;
//!
//! orders.publish("order 7")?;
//! billing.recv()?.nack()?;                       // tried again in 100 ms
//! orders.publish("order 8")?;
//! billing.recv()?.reject("no such customer")?;   // never again
//! let letter = inspection.recv()?;
//! assert_eq!(letter.message().attribute("eventflow.dead_letter.reason"), Some("no such customer"));
//! # Ok::<(), eventflow::Error>(())
//! ```
//!
//! # Once, and in order
//!
//! An idempotency id is published once within the topic's [`DedupWindow`]. An [`ordered`](SubscriptionBuilder::ordered) subscription settles the messages of a key in publish order. In
//! [`ExactlyOnce`](DeliveryMode::ExactlyOnce) mode an ack that comes too late is refused, so that no two subscribers ever hold a message.
//!
//! ```
//! use eventflow::{DeliveryMode, Message};
//! # let broker = eventflow::Broker::in_memory();
//! let payments = broker.topic::<u64>("payments").open()?;
//! let ledger = payments.subscription("ledger").ordered().delivery(DeliveryMode::ExactlyOnce).open()?;
//!
//! let payment = || Message::new(1_999).ordering_key("account 12").idempotency_id("payment-7");
//! assert!(!payments.publish(payment())?.deduplicated);
//! assert!(payments.publish(payment())?.deduplicated); // a retry of the publisher
//!
//! ledger.recv()?.ack()?;
//! assert!(ledger.try_recv().is_err());
//! # Ok::<(), eventflow::Error>(())
//! ```
//!
//! # A message that causes others
//!
//! Consume, transform, produce: in a [`Transaction`], the ack of the input and the publishes of its outputs, over any number of topics, take effect together or not at all.
//! Dropped without a commit, it publishes nothing, and the input comes back.
//!
//! ```
//! # let broker = eventflow::Broker::in_memory();
//! let orders = broker.topic::<u64>("orders").open()?;
//! let bills = broker.topic::<String>("bills").open()?;
//! let billing = orders.subscription("billing").open()?;
//! let printer = bills.subscription("printer").open()?;
//! orders.publish(1_999)?;
//!
//! let order = billing.recv()?;
//! let mut tx = broker.transaction();
//! tx.publish(&bills, format!("please pay {} cents", *order));
//! tx.ack(order);
//! assert!(printer.try_recv().is_err()); // nobody sees the bill before the commit
//! tx.commit()?;
//! assert_eq!(*printer.recv()?, "please pay 1999 cents");
//! assert_eq!(billing.stats().backlog, 0);
//! # Ok::<(), eventflow::Error>(())
//! ```
//!
//! An effect in a database of yours happens once if the message's idempotency id is recorded in the same database transaction: the [`inbox`] does that, through your own driver.
//! A message that is to be published if, and only if, a transaction of your database commits goes through the [`outbox`].
//!
//! # On disk
//!
//! In a directory, what a broker accepted is there again after a restart or a crash. A publish returns when its message is as safe as the [`Durability`] says, and nobody sees it before. Events need a [`Codec`]; raw bytes and strings
//! have one by themselves.
//!
//! ```
//! # let dir = std::env::temp_dir().join(format!("eventflow-doc-front-{}", std::process::id()));
//! # use eventflow::Broker;
//! let broker = Broker::open(&dir)?;
//! let orders = broker.topic::<String>("orders").open()?;
//! let billing = orders.subscription("billing").open()?;
//! orders.publish("order 7")?;
//! drop((broker, orders, billing)); // or the process dies
//!
//! let broker = Broker::open(&dir)?;
//! let billing = broker.topic::<String>("orders").open()?.subscription("billing").open()?;
//! assert_eq!(*billing.recv()?, "order 7");
//! # drop((billing, broker));
//! # std::fs::remove_dir_all(&dir).ok();
//! # Ok::<(), eventflow::Error>(())
//! ```
//!
//! # Back in time, and time at will
//!
//! A topic with a [`Retention`] keeps what is settled, so that a subscription can [`seek`](Subscription::seek) back or start late. With a [`ManualClock`], a test of
//! deadlines and delays takes no time.
//!
//! ```
//! use eventflow::{Broker, ManualClock, Message, Retention, Seek};
//! use std::time::Duration;
//!
//! let clock = ManualClock::new();
//! let broker = Broker::builder().clock(clock.clone()).build()?;
//! let prices = broker.topic::<u64>("prices").retention(Retention::forever()).open()?;
//! let chart = prices.subscription("chart").open()?;
//!
//! prices.publish(Message::new(75).deliver_after(Duration::from_secs(3_600)))?;
//! assert!(chart.try_recv().is_err());
//! clock.advance(Duration::from_secs(3_600));
//! chart.recv()?.ack()?;
//! chart.seek(Seek::Earliest)?;
//! assert_eq!(*chart.recv()?, 75);
//! # Ok::<(), eventflow::Error>(())
//! ```
//!
//! # Where to read on
//!
//! - [`Topic`] publishes, [`Message`] says what goes with an event, [`TopicBuilder`] what a topic keeps and holds.
//! - [`Subscription`] receives: blocking, with a timeout, in batches, in a `select!`, as a future or a stream. [`SubscriptionBuilder`] has its options.
//! - [`Delivery`] and [`Batch`] settle; a [`Transaction`] settles and publishes.
//! - [`inbox`] and [`outbox`] join a topic to a database of yours.
//! - [`guide::exactly_once`] says what can fail on the way to an effect, and what to use against it.
//! - [`guide`] tells how it is built and what it promises.

#![forbid(unsafe_code)]
#![cfg_attr(any(eventflow_loom, eventflow_shuttle), allow(dead_code, reason = "models look at parts"))]

#[cfg(feature = "async")]
mod asynchronous;
mod binary;
mod broker;
mod channel;
mod clock;
mod codec;
mod contain;
mod delivery;
mod engine;
mod error;
mod few;
pub mod guide;
mod handles;
pub mod inbox;
mod journal;
mod log;
mod message;
mod name;
mod options;
pub mod outbox;
mod sequence;
mod sql;
mod stats;
mod subscribe;
mod subscription;
mod sync;
mod time;
mod topic;
mod transaction;

pub use broker::{Broker, BrokerBuilder};
pub use clock::{Clock, ManualClock, SystemClock};
#[cfg(feature = "json")]
pub use codec::Json;
pub use codec::{Codec, Encoded};
pub use error::{
    CodecError, CommitReason, CreateError, DeleteError, Error, OpenError, PublishAllError, PublishError,
    PublishErrorKind, RecvError, RecvTimeoutError, Result, SeekError, SettleError, TryRecvError, UpdateError,
};
pub use handles::{Batch, BatchIter, Delivery};
pub use message::{IdempotencyId, Message, MessageId, MessageRef, ParseMessageIdError};
pub use name::NameError;
pub use options::{
    Capabilities, Capability, Capacity, DedupWindow, DeliveryMode, Durability, MessageStatus, OnDamage,
    Overflow, Retention, RetryPolicy, Seek, Start,
};
pub use stats::{
    BrokerStats, RecoveryProgress, RecoveryReport, ShutdownReport, SubscriptionStats, TopicStats,
};
pub use subscribe::{DeadLetter, SubscriptionBuilder, SubscriptionUpdate};
pub use subscription::Subscription;
pub use topic::{Receipt, Topic, TopicBuilder, TopicUpdate};
pub use transaction::{CommitError, Transaction};

/// The README's programs run as tests, too.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
#[derive(Debug)]
pub struct Readme;
