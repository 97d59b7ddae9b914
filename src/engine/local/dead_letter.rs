//! Dead letters: a message that is out of attempts, or rejected, goes to another topic, where it shares its event with its origin.

use std::sync::Arc;

use crate::delivery::ledger::LedgerEvent;
use crate::delivery::retry::Reason;
use crate::engine::local::broker::{BrokerCore, Parker};
use crate::engine::local::subscription::SubscriptionCore;
use crate::engine::local::topic::TopicCore;
use crate::log::Spot;
use crate::message::{Extras, MessageId};
use crate::name::Name;
use crate::options::ATTRIBUTE_VALUE_LEN_MAX;
use crate::sequence::Sequence;
use crate::time::Tick;

/// Where a subscription's dead letters go: a topic, by name. One that was deleted and created again is the same cemetery.
pub(crate) struct Cemetery<E> {
    pub(crate) name: Name,
    /// None: nobody has said what its events are since it was read back.
    topic: Option<Arc<TopicCore<E>>>,
}

impl<E> Clone for Cemetery<E> {
    fn clone(&self) -> Self {
        Cemetery { name: self.name.clone(), topic: self.topic.clone() }
    }
}

impl<E: Send + Sync + 'static> Cemetery<E> {
    pub(crate) fn new(topic: Arc<TopicCore<E>>) -> Self {
        Cemetery { name: topic.name.clone(), topic: Some(topic) }
    }

    /// The topic of this name, once there is one.
    pub(super) fn named(name: Name) -> Self {
        Cemetery { name, topic: None }
    }

    /// The topic that has the name now, if its events are ours.
    fn topic(&self, broker: &BrokerCore) -> Option<Arc<TopicCore<E>>> {
        if let Some(topic) = self.topic.as_ref().filter(|topic| !topic.is_deleted()) {
            return Some(topic.clone());
        }
        let now = broker.find_topic(self.name.as_str())?;
        now.into_any().downcast::<TopicCore<E>>().ok()
    }
}

/// Where a dead letter comes from.
pub(crate) struct Grave<'a, E> {
    pub(super) core: &'a Arc<SubscriptionCore<E>>,
    /// As of which it is to be buried.
    pub(super) generation: u32,
}

impl<E: Send + Sync + 'static> SubscriptionCore<E> {
    pub(super) fn bury_all(self: &Arc<Self>, events: Vec<LedgerEvent>) {
        let Some(stored) = &self.topic.stored else { return self.bury_all_here(events) };
        let this = self.clone();
        // It encodes, and waits for the disk.
        stored.store.here_or_elsewhere(move || this.bury_all_here(events));
    }

    fn bury_all_here(self: &Arc<Self>, events: Vec<LedgerEvent>) {
        for event in events {
            let LedgerEvent::DeadLetter { sequence, generation, attempts, reason } = event;
            self.bury(sequence, generation, attempts, reason);
        }
    }

    /// The letter is in its topic before it leaves this book, and its readers wake after that: nobody sees it in both who could act on it twice,
    /// and at no moment is it in neither.
    fn bury(self: &Arc<Self>, sequence: Sequence, generation: u32, attempts: u32, reason: Reason) {
        let Some(spot) = self.topic.log.find(sequence) else {
            self.change(|ledger| ledger.handle_removed(sequence, sequence.next()));
            return;
        };
        let cemetery = self.cemetery.read().clone();
        let target = cemetery.as_ref().and_then(|cemetery| cemetery.topic(&self.topic.broker));
        let extras = self.epitaph(&spot, attempts, &reason);
        // Before the try: if it fails for another reason, such as a full disk, to try again at once would not end.
        let would_keep = target.as_ref().is_some_and(|target| target.keeps_something());
        if let Some(target) = target
            && target.append_shared(&spot, extras, &Grave { core: self, generation })
        {
            target.announce();
            return;
        }
        self.park(sequence, generation, attempts, reason);
        if let Some(cemetery) = cemetery {
            let parker: Arc<dyn Parker> = self.clone();
            self.topic.broker.add_parked(&cemetery.name, Arc::downgrade(&parker));
            // A subscription may have been created there between our try and our entry.
            if !would_keep && cemetery.topic(&self.topic.broker).is_some_and(|topic| topic.keeps_something())
            {
                self.topic.broker.retry_parked(&cemetery.name);
            }
        }
    }

    /// It is kept here. That it is not to be delivered again, and why, is as safe then as its dead letter would be.
    fn park(self: &Arc<Self>, sequence: Sequence, generation: u32, attempts: u32, reason: Reason) {
        let recorded = self.change(|ledger| {
            let is_news = ledger.is_burying(sequence, generation);
            let recorded = is_news.then(|| self.record_parked(sequence, attempts, &reason));
            ledger.handle_unburied(sequence, generation, reason);
            recorded.flatten()
        });
        if let (Some(stored), Some(Some(Ok(position)))) = (&self.topic.stored, recorded) {
            // If the disk fails, it is parked all the same for as long as the process lives.
            let _kept_in_memory = stored.store.commit(position);
        }
    }

    /// What the dead letter says of its origin. It keeps attributes and key, and has no idempotency id of its own.
    fn epitaph(&self, spot: &Spot<E>, attempts: u32, reason: &Reason) -> Extras {
        let (published, origin) = self.topic.log.extras(spot);
        let mut extras = Extras {
            attributes: origin.map(|extras| extras.attributes.clone()).unwrap_or_default(),
            ordering_key: origin.and_then(|extras| extras.ordering_key.clone()),
            ..Extras::default()
        };
        let id = MessageId::new(self.topic.log.incarnation(), spot.sequence());
        let mut say = |what: &str, mut value: String| {
            value.truncate(value.floor_char_boundary(ATTRIBUTE_VALUE_LEN_MAX));
            extras.set_attribute(format!("eventflow.dead_letter.{what}"), value);
        };
        say("topic", self.topic.name.to_string());
        say("subscription", self.name.to_string());
        say("reason", reason.as_str().to_owned());
        say("attempts", attempts.to_string());
        say("message_id", id.to_string());
        say("publish_time", publish_time(published));
        match origin.and_then(|extras| extras.idempotency_id.as_ref()) {
            Some(id) => say("idempotency_id", id.to_string()),
            None => extras.attributes.retain(|(key, _)| key != "eventflow.dead_letter.idempotency_id"),
        }
        extras
    }
}

impl<E: Send + Sync + 'static> Parker for SubscriptionCore<E> {
    fn retry_parked(&self) {
        // Found by its id, because what follows from the retry needs the shared handle.
        let this = self.topic.subscriptions().into_iter().find(|subscription| subscription.id == self.id);
        if let Some(this) = this {
            this.change(crate::delivery::ledger::Ledger::retry_parked);
        }
    }
}

impl<E: Send + Sync + 'static> TopicCore<E> {
    /// A message that was appended quietly: whoever waits, wakes.
    fn announce(self: &Arc<Self>) {
        self.receivers.wake_each(1);
        self.arm();
    }
}

/// RFC 3339, in UTC, to the nanosecond.
fn publish_time(at: Tick) -> String {
    let nanos = at.nanos();
    let (seconds, fraction) = (nanos / 1_000_000_000, nanos % 1_000_000_000);
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil_from_days(days);
    let (hour, minute) = (second / 3_600, second / 60 % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{:02}.{fraction:09}Z", second % 60)
}

/// Days since 1970 to a date, after Howard Hinnant's `civil_from_days`.
fn civil_from_days(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_publish_time_is_written_as_rfc_3339() {
        let table = [
            (0, "1970-01-01T00:00:00.000000000Z"),
            (951_782_400_000_000_001, "2000-02-29T00:00:00.000000001Z"),
            (1_767_225_599_999_999_999, "2025-12-31T23:59:59.999999999Z"),
            (1_767_225_600_000_000_000, "2026-01-01T00:00:00.000000000Z"),
        ];
        for (nanos, text) in table {
            assert_eq!(publish_time(Tick::from_nanos(nanos)), text);
        }
    }
}
