//! Opens a copy of the disk and takes out all there is.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::eventflow::{
    Broker, CreateError, ManualClock, MessageRef, Start, Subscription, Topic, TryRecvError,
};
use super::history::{Content, Seen};
use super::open;
use crate::journal::disk::sim::SimDisk;

/// Everything, by name.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Found {
    pub(super) topics: BTreeMap<String, FoundTopic>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct FoundTopic {
    pub(super) subscriptions: BTreeMap<String, FoundSubscription>,
    /// What a new subscription gets, from the oldest that is kept.
    pub(super) kept: Vec<Seen>,
}

/// Deliveries in phase 0 came at once, in phase 1 once the subscription was resumed, in phase 2 once all delays were over.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct FoundSubscription {
    pub(super) deliveries: Vec<Seen>,
    pub(super) outstanding_max: u64,
}

pub(super) const PAD: &str = "................................................................";

/// The event of a message: its number in the history, and as many bytes as it is to have.
pub(super) fn event(number: usize, len: usize) -> String {
    let mut event = format!("{number}:");
    while event.len() < len {
        event.push_str(&PAD[..PAD.len().min(len - event.len())]);
    }
    event
}

pub(super) fn seen(message: MessageRef<'_, String>, attempt: u32, phase: u8) -> Result<Seen, String> {
    let event = message.event();
    let number = event.split(':').next().and_then(|number| number.parse().ok());
    let number: usize = number.ok_or_else(|| format!("P3: an event of {} bytes is nobody's", event.len()))?;
    if *event != self::event(number, event.len()) {
        return Err(format!("P3: the event of message {number} was changed"));
    }
    let origin = |what: &str| message.attribute(&format!("eventflow.dead_letter.{what}")).map(str::to_owned);
    Ok(Seen {
        message: number,
        id: message.id(),
        attempt,
        content: Content {
            len: event.len(),
            attribute: message.attribute("k").map(str::to_owned),
            key: message.ordering_key().map(str::to_owned),
            idempotency: message.idempotency_id().map(ToString::to_string),
        },
        origin: origin("subscription").zip(origin("message_id")),
        phase,
    })
}

/// `now`: how far the clock is. `reversed`: topics are opened the last first.
pub(super) fn audit(disk: &SimDisk, now: u64, reversed: bool) -> Result<Found, String> {
    let clock = ManualClock::new();
    clock.advance(Duration::from_nanos(now));
    let broker =
        open(Arc::new(disk.clone()), &clock).map_err(|error| format!("P18: it does not open: {error}"))?;
    drain(&broker, &clock, reversed)
}

/// Takes out all there is.
pub(super) fn drain(broker: &Broker, clock: &ManualClock, reversed: bool) -> Result<Found, String> {
    let mut names = broker.topics();
    if reversed {
        names.reverse();
    }
    let mut found = Found::default();
    let mut topics = Vec::new();
    for name in &names {
        let topic = broker.topic::<String>(name).open().map_err(|error| format!("topic {name}: {error}"))?;
        topics.push(topic);
    }
    let mut books = Vec::new();
    for (name, topic) in names.iter().zip(&topics) {
        found.topics.insert(name.clone(), FoundTopic::default());
        for book in topic.subscriptions() {
            let outstanding_max = outstanding_max(topic, &book)?;
            let subscription =
                topic.subscription(&book).open().map_err(|error| format!("{book}: {error}"))?;
            books.push((
                name,
                book,
                subscription,
                FoundSubscription { outstanding_max, ..Default::default() },
            ));
        }
    }
    for phase in 0..3 {
        for (_, name, subscription, found) in &mut books {
            if phase == 1 {
                subscription.resume().map_err(|error| format!("{name}: {error}"))?;
            }
            drain_one(subscription, phase, &mut found.deliveries)?;
        }
        if phase == 1 {
            clock.advance(Duration::from_secs(3_600));
        }
    }
    for (topic, name, _, found_one) in books {
        let found = found.topics.get_mut(topic).expect("it was opened");
        found.subscriptions.insert(name, found_one);
    }
    for (name, topic) in names.iter().zip(&topics) {
        let all = topic.subscription("audit").start(Start::Earliest).create();
        let all = all.map_err(|error| format!("{name}: {error}"))?;
        drain_one(&all, 2, &mut found.topics.get_mut(name).expect("it was opened").kept)?;
    }
    Ok(found)
}

fn drain_one(subscription: &Subscription<String>, phase: u8, into: &mut Vec<Seen>) -> Result<(), String> {
    loop {
        match subscription.try_recv() {
            Ok(delivery) => {
                into.push(seen(delivery.message(), delivery.attempt(), phase)?);
                delivery.ack().map_err(|error| format!("{}: {error}", subscription.name()))?;
            }
            Err(TryRecvError::Empty) => return Ok(()),
            Err(error) => return Err(format!("{}: {error}", subscription.name())),
        }
    }
}

/// What is stored, as somebody learns who expects another.
fn outstanding_max(topic: &Topic<String>, name: &str) -> Result<u64, String> {
    match topic.subscription(name).max_outstanding(999_999).open() {
        Err(CreateError::ConfigMismatch { option: "max_outstanding", stored, .. }) => {
            stored.parse().map_err(|_| format!("{name} has {stored} outstanding at most"))
        }
        Ok(_) => Err(format!("{name} has an option that nobody set")),
        Err(error) => Err(format!("{name}: {error}")),
    }
}
