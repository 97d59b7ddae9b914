//! Looking at messages before they are handed out: filter, ordering key, delay, life. No lock is held.

use std::sync::Arc;

use crate::contain::contained;
use crate::delivery::intake::{Examination, Finding, Traits};
use crate::engine::local::subscription::SubscriptionCore;
use crate::engine::local::topic::TopicCore;
use crate::log::Spot;
use crate::sequence::Sequence;
use crate::sync::atomic::Ordering;
use crate::time::Tick;

/// Where nobody receives, filters look at this many messages at most that they take: each costs an entry in the book.
const AHEAD_MAX: usize = 4_096;

impl<E: Send + Sync + 'static> SubscriptionCore<E> {
    pub(super) fn examine(&self, examination: Examination) -> Vec<Finding> {
        let mut findings = Vec::with_capacity((examination.to - examination.from) as usize);
        let mut sequence = examination.from;
        let mut last: Option<Spot<E>> = None;
        while sequence < examination.to {
            let near = last.as_ref().and_then(|spot| spot.neighbour(sequence));
            last = near.or_else(|| self.topic.log.find(sequence));
            findings.push(last.as_ref().map_or(Finding::Gone, |spot| self.examine_one(spot)));
            sequence = sequence.next();
        }
        findings
    }

    fn examine_one(&self, spot: &Spot<E>) -> Finding {
        let message = self.topic.log.message(spot);
        let (published, extras) = self.topic.log.extras(spot);
        let taken = match &self.filter {
            Some(filter) if !filter.matches(|key| message.attribute(key)) => return Finding::FilteredOut,
            _ => match self.filter_fn() {
                None => Some(true),
                Some(filter) => contained(|| filter(message)),
            },
        };
        let own = extras.map_or(Tick::NEVER, |extras| extras.expiry(published));
        let expires = self.expire_after().map_or(own, |after| own.min(published + after));
        let key = message.ordering_key().filter(|_| self.ordered);
        let traits = Traits {
            key: key.map(|key| self.topic.broker.key_of(key)),
            due: extras.map_or(published, |extras| extras.due(published)),
            expires,
        };
        match taken {
            Some(true) => Finding::Taken(traits),
            Some(false) => Finding::FilteredOut,
            None => Finding::FilterPanicked(traits),
        }
    }

    /// When the first message that the subscription has not looked at outlives the subscription's `expire_after`.
    pub(super) fn next_unseen_expiry(&self) -> Option<Tick> {
        self.first_unseen_expiry().map(|first| first.1)
    }

    fn first_unseen_expiry(&self) -> Option<(Sequence, Tick)> {
        let after = self.expire_after()?;
        let (cursor, tail) = (self.desk.lock().ledger.cursor(), self.topic.log.tail());
        let first = self.first_unseen(cursor, tail)?;
        let spot = self.topic.log.find(first)?;
        Some((first, self.topic.log.extras(&spot).0 + after))
    }

    fn first_unseen(&self, cursor: Sequence, tail: Sequence) -> Option<Sequence> {
        self.desk.lock().ledger.settled().next_unsettled_run(cursor, tail).map(|run| run.0)
    }

    /// Messages that the subscription has not looked at, and whose time on it is over, leave it. No filter is asked: this may run on the timer.
    pub(super) fn expire_unseen(self: &Arc<Self>, now: Tick) {
        while let Some((sequence, at)) = self.first_unseen_expiry()
            && at <= now
        {
            self.expire_unseen_one(sequence);
        }
    }

    pub(super) fn expire_unseen_one(self: &Arc<Self>, sequence: Sequence) {
        self.change(|ledger| ledger.handle_unseen_expired(sequence));
    }

    /// False: there was nothing to look at.
    fn examine_next(self: &Arc<Self>) -> bool {
        let tail = self.topic.log.tail();
        match self.change(|ledger| ledger.poll_examine(tail)).flatten() {
            Some(examination) => {
                self.examine_and_tell(examination);
                true
            }
            None => false,
        }
    }

    /// Lets the filter look at what nobody has asked for yet, so that what it does not take is not kept for it.
    pub(super) fn look_ahead(self: &Arc<Self>) {
        if !self.has_filter() || self.lacks_filter_fn() {
            return;
        }
        while self.desk.lock().ledger.entries() < AHEAD_MAX && self.examine_next() {}
    }
}

impl<E: Send + Sync + 'static> TopicCore<E> {
    fn look_ahead(self: &Arc<Self>) {
        if !self.filtered.load(Ordering::Relaxed) {
            return;
        }
        for subscription in self.subscriptions() {
            subscription.look_ahead();
        }
    }

    /// Brings every subscription up to now: what filters, lives and deadlines let go takes no space.
    pub(super) fn catch_up(self: &Arc<Self>) {
        self.look_ahead();
        let now = self.broker.now();
        for subscription in self.subscriptions() {
            subscription.run_timeouts();
            subscription.expire_unseen(now);
        }
    }

    /// How many messages at `from` or later wait for the end of their publish delay.
    pub(super) fn delayed_from(&self, from: Sequence, now: Tick) -> u64 {
        if !self.timed.load(Ordering::Acquire) {
            return 0;
        }
        let mut state = self.state.lock();
        state.end_delays(now);
        let all_count = state.delays.first_key_value().is_none_or(|(&first, _)| first >= from);
        let count = if all_count { state.delays.len() } else { state.delays.range(from..).count() };
        count as u64
    }
}
