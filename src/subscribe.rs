//! Options of a subscription: the builder that makes one, the update that changes one, and where dead letters go.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::delivery::filter::Filter;
use crate::delivery::ledger::Rules;
use crate::delivery::retry::Beyond;
use crate::engine::local::broker::Phase;
use crate::engine::local::dead_letter::Cemetery;
use crate::engine::local::replay::{Plan, SubscribeError};
use crate::engine::local::subscription::{FilterFn, SubscriptionChange, SubscriptionCore};
use crate::error::{CreateError, RecvError, UpdateError};
use crate::message::MessageRef;
use crate::options::{
    ACK_DEADLINE_DEFAULT, ACK_DEADLINE_MAX, ACK_DEADLINE_MIN, DEAD_LETTER_ATTEMPTS_DEFAULT, DeliveryMode,
    MAX_OUTSTANDING_DEFAULT, RetryPolicy, Start,
};
use crate::subscription::Subscription;
use crate::time::nanos;
use crate::topic::{Topic, parse_name};

/// Where messages go that are out of attempts, or rejected.
///
/// ```
/// use eventflow::DeadLetter;
/// # let broker = eventflow::Broker::in_memory();
/// let failed = broker.topic::<String>("orders.failed").open()?;
/// let inspection = failed.subscription("inspection").open()?; // else nothing would be kept there
/// let orders = broker.topic::<String>("orders").open()?;
/// let billing = orders.subscription("billing").dead_letter(DeadLetter::to(&failed).after(3)).open()?;
///
/// orders.publish("order 7")?;
/// billing.recv()?.reject("no such customer")?;
/// let letter = inspection.recv()?;
/// assert_eq!(letter.message().attribute("eventflow.dead_letter.reason"), Some("no such customer"));
/// # Ok::<(), eventflow::Error>(())
/// ```
pub struct DeadLetter<E> {
    target: Option<Topic<E>>,
    after: u32,
}

impl<E> DeadLetter<E> {
    /// To this topic, of the same broker, after 5 attempts unless told otherwise. The event stays stored once; the letter has the message's attributes and key, no idempotency id, and says where it comes from
    /// in attributes that begin with `eventflow.dead_letter.`: `topic`, `subscription`, `reason`, `attempts`, `message_id`, `publish_time`, `idempotency_id`.
    /// It is appended whatever the topic's capacity.
    pub fn to(topic: &Topic<E>) -> Self {
        DeadLetter { target: Some(topic.clone()), after: DEAD_LETTER_ATTEMPTS_DEFAULT }
    }

    /// Discarded and counted, after 5 attempts unless told otherwise.
    pub fn discard() -> Self {
        DeadLetter { target: None, after: DEAD_LETTER_ATTEMPTS_DEFAULT }
    }

    /// After this many attempts, from 1.
    pub fn after(mut self, attempts: u32) -> Self {
        self.after = attempts;
        self
    }

    fn beyond(&self) -> Beyond {
        match self.target {
            Some(_) => Beyond::DeadLetter { after: self.after },
            None => Beyond::Discard { after: self.after },
        }
    }
}

impl<E> Clone for DeadLetter<E> {
    fn clone(&self) -> Self {
        DeadLetter { target: self.target.clone(), after: self.after }
    }
}

impl<E> fmt::Debug for DeadLetter<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeadLetter").field("target", &self.target).field("after", &self.after).finish()
    }
}

/// What was set explicitly of what can change later.
struct Options<E> {
    ack_deadline: Option<Duration>,
    retry: Option<RetryPolicy>,
    /// `Some(None)`: no dead letters any more.
    dead_letter: Option<Option<DeadLetter<E>>>,
    expire_after: Option<Option<Duration>>,
    max_outstanding: Option<usize>,
}

impl<E> Default for Options<E> {
    fn default() -> Self {
        Options {
            ack_deadline: None,
            retry: None,
            dead_letter: None,
            expire_after: None,
            max_outstanding: None,
        }
    }
}

/// An option's name, and what is wrong with its value.
type Problem = (&'static str, String);

impl<E: Send + Sync + 'static> Options<E> {
    fn check(&self, topic: &Topic<E>, mode: DeliveryMode) -> Result<(), Problem> {
        if let Some(deadline) = self.ack_deadline
            && !(ACK_DEADLINE_MIN..=ACK_DEADLINE_MAX).contains(&clamped(deadline))
        {
            return Err(("ack_deadline", format!("{deadline:?} is not between 1 ms and 24 h")));
        }
        if let Some(reason) = self.retry.and_then(|retry| retry.problem()) {
            return Err(("retry", reason.to_owned()));
        }
        if self.max_outstanding == Some(0) {
            return Err((
                "max_outstanding",
                "with 0 nothing could ever be delivered; pause does that".into(),
            ));
        }
        if self.expire_after == Some(Some(Duration::ZERO)) {
            return Err(("expire_after", "with 0 every message would be gone at its publish".into()));
        }
        let at_most_once = mode == DeliveryMode::AtMostOnce;
        if at_most_once && self.retry.is_some() {
            return Err(("retry", "an AtMostOnce subscription delivers nothing twice".into()));
        }
        match &self.dead_letter {
            Some(Some(_)) if at_most_once => {
                Err(("dead_letter", "an AtMostOnce subscription has settled what it hands out".into()))
            }
            Some(Some(dead_letter)) => {
                check_dead_letter(dead_letter, topic).map_err(|reason| ("dead_letter", reason))
            }
            _ => Ok(()),
        }
    }

    /// The rules that `rules` become.
    fn apply_to(&self, rules: Rules) -> Rules {
        let beyond = match &self.dead_letter {
            None => rules.beyond,
            Some(None) => Beyond::Retry,
            Some(Some(dead_letter)) => dead_letter.beyond(),
        };
        let outstanding_max = self.max_outstanding.map(|max| u64::try_from(max).unwrap_or(u64::MAX));
        Rules {
            ack_deadline: self.ack_deadline.map_or(rules.ack_deadline, clamped),
            retry: self.retry.unwrap_or(rules.retry),
            beyond,
            outstanding_max: outstanding_max.unwrap_or(rules.outstanding_max),
            ..rules
        }
    }

    fn cemetery(&self) -> Option<Option<Cemetery<E>>> {
        let dead_letter = self.dead_letter.as_ref()?;
        let target = dead_letter.as_ref().and_then(|dead_letter| dead_letter.target.as_ref());
        Some(target.map(|topic| Cemetery::new(topic.core.clone())))
    }
}

/// A life longer than the time line is none.
fn never_is_none(duration: Duration) -> Option<Duration> {
    (nanos(duration) < u64::MAX).then_some(duration)
}

/// "For ever" means the most there is.
fn clamped(deadline: Duration) -> Duration {
    if deadline == Duration::MAX { ACK_DEADLINE_MAX } else { deadline }
}

fn check_dead_letter<E: Send + Sync + 'static>(
    dead_letter: &DeadLetter<E>,
    topic: &Topic<E>,
) -> Result<(), String> {
    if dead_letter.after == 0 {
        return Err("after 0 attempts nothing would ever be delivered".into());
    }
    let Some(target) = &dead_letter.target else { return Ok(()) };
    if !Arc::ptr_eq(&target.broker.presence, &topic.broker.presence) {
        return Err(format!("topic {:?} belongs to another broker", target.name()));
    }
    if Arc::ptr_eq(&target.core, &topic.core) {
        return Err(
            "a topic cannot be its own dead-letter topic: give dead letters a topic of their own".into()
        );
    }
    if target.core.is_deleted() {
        return Err(format!("topic {:?} was deleted", target.name()));
    }
    if !target.core.keeps_something() {
        return Err(format!(
            "topic {:?} would keep nothing: create a subscription on it first, or give it a retention of for_duration or forever",
            target.name()
        ));
    }
    Ok(())
}

/// Options of a subscription that is created, or expectations of one that is opened.
pub struct SubscriptionBuilder<E> {
    topic: Topic<E>,
    name: String,
    start: Start,
    delivery: Option<DeliveryMode>,
    ordered: bool,
    filter: Option<String>,
    filter_fn: Option<FilterFn<E>>,
    options: Options<E>,
}

impl<E: Send + Sync + 'static> SubscriptionBuilder<E> {
    pub(crate) fn new(topic: Topic<E>, name: &str) -> Self {
        SubscriptionBuilder {
            topic,
            name: name.to_owned(),
            start: Start::Latest,
            delivery: None,
            ordered: false,
            filter: None,
            filter_fn: None,
            options: Options::default(),
        }
    }

    /// Where the subscription begins. Acts when it is created, and is never compared. [`Start::Latest`] unless told otherwise.
    pub fn start(mut self, start: Start) -> Self {
        self.start = start;
        self
    }

    /// How long a lease lasts before the message is offered again: 1 ms to 24 h, 10 s unless told otherwise. Longer than the slowest handler takes: or
    /// [`extend`](crate::Delivery::extend) it.
    pub fn ack_deadline(mut self, deadline: Duration) -> Self {
        self.options.ack_deadline = Some(deadline);
        self
    }

    /// What is promised of each message. [`DeliveryMode::AtLeastOnce`] unless told otherwise.
    pub fn delivery(mut self, mode: DeliveryMode) -> Self {
        self.delivery = Some(mode);
        self
    }

    /// Messages of one ordering key are settled in publish order: while one is outstanding, delayed or awaiting redelivery, later ones of its key wait. Other keys, and messages without one, go on.
    ///
    /// A run of one key may be leased to one subscriber in one batch; it is to be settled in order.
    pub fn ordered(mut self) -> Self {
        self.ordered = true;
        self
    }

    /// Delivers only messages whose attributes match, in Google Pub/Sub's filter language. The rest counts as settled.
    ///
    /// ```text
    /// attributes.origin = "EWR" AND NOT attributes:test
    /// hasPrefix(attributes.region, "eu-") OR attributes.priority != "low"
    /// ```
    ///
    /// `attributes:key` asks whether the attribute is there; `!=` is true when it is not; `AND` and `OR` mix only with parentheses; `NOT` (or `-`) binds tightest. At most 1,024 bytes and 32 deep. Filters run
    /// where messages are received, never on the publisher's time.
    pub fn filter(mut self, expression: &str) -> Self {
        self.filter = Some(expression.to_owned());
        self
    }

    /// Delivers only messages for which this is true; with a [`filter`](Self::filter) too, both must take them. It runs under no lock, once a message and generation.
    /// When it panics, the attempt is spent and the message counts as taken, because dropping it would lose it.
    pub fn filter_fn(mut self, filter: impl Fn(MessageRef<'_, E>) -> bool + Send + Sync + 'static) -> Self {
        self.filter_fn = Some(Arc::new(filter));
        self
    }

    /// When a message comes back after a failed attempt. [`RetryPolicy::immediate`] unless told otherwise.
    pub fn retry(mut self, policy: RetryPolicy) -> Self {
        self.options.retry = Some(policy);
        self
    }

    /// Where messages go that are out of attempts, or rejected. Unless told otherwise a message is retried until it is acked or expires, and a rejected one is discarded.
    pub fn dead_letter(mut self, dead_letter: DeadLetter<E>) -> Self {
        self.options.dead_letter = Some(Some(dead_letter));
        self
    }

    /// An unsettled message leaves this subscription this long after its publish. Never unless told otherwise. A lease that runs at that time runs on.
    pub fn expire_after(mut self, duration: Duration) -> Self {
        self.options.expire_after = Some(never_is_none(duration));
        self
    }

    /// How many messages may be leased at once, over all subscribers of the subscription. From 1; 1,000 unless told otherwise.
    pub fn max_outstanding(mut self, messages: usize) -> Self {
        self.options.max_outstanding = Some(messages);
        self
    }

    /// Creates the subscription.
    ///
    /// # Errors
    /// [`CreateError::AlreadyExists`], and what is wrong with name or options. Nothing changed.
    pub fn create(self) -> Result<Subscription<E>, CreateError> {
        let topic = self.topic.clone();
        match topic.core.subscribe(self.plan()?) {
            Ok(core) => Ok(Subscription { core, topic }),
            Err(SubscribeError::Ended(error)) => Err(self.on_ended(error)),
            Err(SubscribeError::Exists(_)) => Err(CreateError::AlreadyExists),
            Err(SubscribeError::Storage(fault)) => Err(fault.into()),
        }
    }

    /// Creates the subscription, or attaches to the one of this name. Options that were set here explicitly must then be those that it has; a closure can only be given once.
    ///
    /// # Errors
    /// [`CreateError::ConfigMismatch`] for one that exists, and what is wrong with name or options. Nothing changed.
    pub fn open(self) -> Result<Subscription<E>, CreateError> {
        let topic = self.topic.clone();
        let plan = self.plan()?;
        let core = match topic.core.find_subscription(&self.name) {
            Some(existing) => existing,
            None => match topic.core.subscribe(plan) {
                Ok(core) => return Ok(Subscription { core, topic }),
                Err(SubscribeError::Ended(error)) => return Err(self.on_ended(error)),
                Err(SubscribeError::Storage(fault)) => return Err(fault.into()),
                Err(SubscribeError::Exists(existing)) => existing,
            },
        };
        core.wait_for_creation().map_err(CreateError::from)?;
        self.compare(&core)?;
        if let Some(filter) = &self.filter_fn {
            // Read back from disk, it waits for its closure. Of two who come with one, the first has given it.
            core.give_filter_fn(filter.clone());
            core.topic.receivers.wake_all_of(core.id);
        }
        Ok(Subscription { core, topic })
    }

    fn on_ended(&self, error: RecvError) -> CreateError {
        match error {
            RecvError::Deleted => CreateError::NotFound,
            RecvError::Storage { fault } => CreateError::Storage { fault },
            RecvError::Closed => CreateError::Closed,
        }
    }

    fn plan(&self) -> Result<Plan<E>, CreateError> {
        let name = parse_name(&self.name)?;
        if self.topic.broker.presence.core.phase() != Phase::Open {
            return Err(CreateError::Closed);
        }
        if let Some(error) = self.topic.core.ended() {
            return Err(self.on_ended(error));
        }
        let mode = self.delivery.unwrap_or_default();
        self.options
            .check(&self.topic, mode)
            .map_err(|(option, reason)| CreateError::InvalidOption { option, reason })?;
        let filter = self.filter.as_deref().map(Filter::parse).transpose();
        let filter = filter
            .map_err(|error| CreateError::InvalidFilter { position: error.position, reason: error.reason })?;
        let defaults = Rules {
            mode,
            ack_deadline: ACK_DEADLINE_DEFAULT,
            ordered: self.ordered,
            retry: RetryPolicy::default(),
            beyond: Beyond::Retry,
            outstanding_max: MAX_OUTSTANDING_DEFAULT as u64,
        };
        Ok(Plan {
            name,
            start: self.start,
            filter,
            filter_fn: self.filter_fn.clone(),
            rules: self.options.apply_to(defaults),
            expire_after: self.options.expire_after.flatten(),
            cemetery: self.options.cemetery().flatten(),
        })
    }

    fn compare(&self, core: &SubscriptionCore<E>) -> Result<(), CreateError> {
        let stored = core.rules();
        let asked = self.options.apply_to(stored.clone());
        let pairs = [
            ("delivery", format!("{:?}", stored.mode), self.delivery.map(|mode| format!("{mode:?}"))),
            ("ack_deadline", format!("{:?}", stored.ack_deadline), Some(format!("{:?}", asked.ack_deadline))),
            ("retry", format!("{:?}", stored.retry), Some(format!("{:?}", asked.retry))),
            ("max_outstanding", stored.outstanding_max.to_string(), Some(asked.outstanding_max.to_string())),
            ("ordered", stored.ordered.to_string(), self.ordered.then(|| "true".to_owned())),
            (
                "filter",
                core.filter.as_ref().map_or_else(|| "none".to_owned(), |filter| filter.source().to_owned()),
                self.filter.clone(),
            ),
            (
                "expire_after",
                format!("{:?}", core.expire_after()),
                self.options.expire_after.map(|expire_after| format!("{expire_after:?}")),
            ),
            (
                "dead_letter",
                format!("{:?} {:?}", core.cemetery_name(), stored.beyond),
                self.options.cemetery().map(|c| format!("{:?} {:?}", c.map(|c| c.name), asked.beyond)),
            ),
            (
                "filter_fn",
                "the subscription's own".to_owned(),
                match (core.lacks_filter_fn(), self.filter_fn.is_some()) {
                    (true, false) => Some("none".to_owned()),
                    (false, true) => Some("a second closure".to_owned()),
                    _ => None,
                },
            ),
        ];
        for (option, stored, asked) in pairs {
            if let Some(asked) = asked
                && asked != stored
            {
                return Err(CreateError::ConfigMismatch { name: self.name.clone(), option, stored, asked });
            }
        }
        Ok(())
    }
}

impl<E> fmt::Debug for SubscriptionBuilder<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SubscriptionBuilder").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Options of a subscription that are to change. Nothing changes before [`apply`](Self::apply).
///
/// ```
/// use std::time::Duration;
/// # let broker = eventflow::Broker::in_memory();
/// # let orders = broker.topic::<String>("orders").open()?;
/// # let billing = orders.subscription("billing").open()?;
/// billing.update().ack_deadline(Duration::from_secs(60)).max_outstanding(10).apply()?;
/// # Ok::<(), eventflow::Error>(())
/// ```
#[must_use = "nothing changes before `apply`"]
pub struct SubscriptionUpdate<E> {
    subscription: Subscription<E>,
    options: Options<E>,
}

impl<E: Send + Sync + 'static> SubscriptionUpdate<E> {
    pub(crate) fn new(subscription: Subscription<E>) -> Self {
        SubscriptionUpdate { subscription, options: Options::default() }
    }

    /// Another ack deadline. Leases that run keep theirs.
    pub fn ack_deadline(mut self, deadline: Duration) -> Self {
        self.options.ack_deadline = Some(deadline);
        self
    }

    /// Another retry policy, for what fails from now on.
    pub fn retry(mut self, policy: RetryPolicy) -> Self {
        self.options.retry = Some(policy);
        self
    }

    /// Another place for dead letters, or another number of attempts. What is parked is tried again.
    pub fn dead_letter(mut self, dead_letter: DeadLetter<E>) -> Self {
        self.options.dead_letter = Some(Some(dead_letter));
        self
    }

    /// No dead letters any more: messages are retried until they are acked or expire.
    pub fn no_dead_letter(mut self) -> Self {
        self.options.dead_letter = Some(None);
        self
    }

    /// Another life for messages on this subscription, also for those it has.
    pub fn expire_after(mut self, duration: Duration) -> Self {
        self.options.expire_after = Some(never_is_none(duration));
        self
    }

    /// Messages leave this subscription by being settled only, or by their own life.
    pub fn never_expire(mut self) -> Self {
        self.options.expire_after = Some(None);
        self
    }

    /// Another limit on what is leased at once. What is leased above it stays leased.
    pub fn max_outstanding(mut self, messages: usize) -> Self {
        self.options.max_outstanding = Some(messages);
        self
    }

    /// Makes the changes, all or none.
    ///
    /// # Errors
    /// [`UpdateError`]: nothing changed.
    pub fn apply(self) -> Result<(), UpdateError> {
        let core = &self.subscription.core;
        if let Some(error) = core.ended() {
            return Err(error.into());
        }
        self.options
            .check(&self.subscription.topic, core.mode)
            .map_err(|(option, reason)| UpdateError::InvalidOption { option, reason })?;
        let change = |rules| SubscriptionChange {
            rules: self.options.apply_to(rules),
            cemetery: self.options.cemetery(),
            expire_after: self.options.expire_after,
        };
        core.update(change).map_err(UpdateError::from)
    }
}

impl<E> fmt::Debug for SubscriptionUpdate<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SubscriptionUpdate").field("subscription", &self.subscription).finish_non_exhaustive()
    }
}
