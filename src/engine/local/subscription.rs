//! One subscription: its book under its lock, and what follows from a change in it.

use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use crate::delivery::filter::Filter;
use crate::delivery::ledger::{Counts, Ledger, LedgerEvent, Rules};
use crate::engine::local::dead_letter::Cemetery;
use crate::engine::local::effect::{Creation, Effect, FollowUp, Turn};
use crate::engine::local::receive::{Held, Shelf};
use crate::engine::local::settle::WaitingAck;
use crate::engine::local::store::Added;
use crate::engine::local::topic::TopicCore;
use crate::engine::timer::Alarm;
use crate::error::{RecvError, StorageFault};
use crate::few::Few;
use crate::journal::record::Record;
use crate::journal::{Position, Space};
use crate::log::Segment;
use crate::message::MessageRef;
use crate::name::Name;
use crate::options::{DeliveryMode, MessageStatus};
use crate::sequence::Sequence;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::{Mutex, MutexGuard, RwLock};
use crate::time::{Tick, nanos};

pub(crate) type FilterFn<E> = Arc<dyn Fn(MessageRef<'_, E>) -> bool + Send + Sync>;

/// The most consequences of time that are brought about in one holding of the lock.
pub(super) const TIMEOUT_BUDGET: usize = 256;

pub(crate) struct SubscriptionCore<E> {
    pub(crate) id: u64,
    pub(crate) name: Name,
    pub(crate) topic: Arc<TopicCore<E>>,
    pub(crate) filter: Option<Filter>,
    filter_fn: OnceLock<FilterFn<E>>,
    /// It has a closure that it was read back without: nobody receives before it is given again.
    awaits_filter_fn: bool,
    pub(crate) ordered: bool,
    pub(crate) mode: DeliveryMode,
    pub(super) desk: Mutex<Desk<E>>,
    /// Where its dead letters go.
    pub(super) cemetery: RwLock<Option<Cemetery<E>>>,
    /// Whether it has a cemetery.
    buries: AtomicBool,
    expire_after: AtomicU64,
    deleted: AtomicBool,
    pub(super) creation: Creation,
    /// The earliest alarm that is set.
    scheduled: AtomicU64,
    /// The ledger's low water, as of its last change.
    low: AtomicU64,
    /// What a hand-out settled, and nobody got: see [`Shelf`].
    pub(super) shelf: Shelf<E>,
}

/// Under the subscription's lock.
pub(super) struct Desk<E> {
    pub(super) ledger: Ledger,
    /// Deleted: nothing is settled here any more.
    pub(super) closed: bool,
    /// Whether the topic's occupancy counts what this subscription had not settled when the counting began.
    pub(super) counted: bool,
    /// How many were outstanding when the ledger was last changed.
    outstanding: u64,
    /// On disk: the unit of an update that is under way.
    updated_by: Option<Position>,
    /// On disk: acks that are begun when what comes before them in their keys is decided.
    pub(super) waiting_acks: Vec<WaitingAck>,
    /// The segment of the message that was handed out last, and where it ended then. It keeps nothing, but stands in the way of its being used again.
    pub(super) near: Weak<Segment<E>>,
    pub(super) near_end: Sequence,
}

/// The same for one message of a run that was acked where nobody watches.
pub(super) struct AfterPlain {
    sequence: Sequence,
    counted: bool,
    segment_done: bool,
}

impl<E> Desk<E> {
    /// What [`collect`](SubscriptionCore::collect) does where nothing follows.
    pub(super) fn note_outstanding(&mut self) {
        self.outstanding = self.ledger.outstanding();
    }
}

/// What follows from a change in a ledger, outside its lock.
#[derive(Default)]
pub(super) struct After {
    pub(super) events: Vec<LedgerEvent>,
    news: Few<(Sequence, Sequence)>,
    counted: bool,
    /// Whether the segment of the message that was settled is done, if the caller named one.
    segment_done: Option<bool>,
    deliverable: bool,
    /// Whether less is outstanding now.
    less_outstanding: bool,
    timeout: Option<Tick>,
    /// On disk: where the journal has what was settled.
    pub(super) recorded: Option<Added>,
    /// On disk: where it has what came back.
    returned: Option<Added>,
    /// On disk: the journal has no space for what was settled, and a checkpoint is to be tried.
    is_left_to_checkpoint: bool,
}

/// Where the journal has what came of a change, if anything did that it is to know.
pub(super) struct Records {
    /// What was settled.
    pub(super) settled: Option<Added>,
    /// What came back.
    pub(super) returned: Option<Added>,
}

impl<E: Send + Sync + 'static> SubscriptionCore<E> {
    #[expect(clippy::too_many_arguments, reason = "called once, by the subscription builder")]
    pub(super) fn new(
        id: u64,
        name: Name,
        topic: Arc<TopicCore<E>>,
        filter: Option<Filter>,
        filter_fn: Option<FilterFn<E>>,
        rules: Rules,
        expire_after: Option<Duration>,
        cemetery: Option<Cemetery<E>>,
        start: Sequence,
    ) -> Arc<Self> {
        // The seed only spreads retries; a manual clock makes it the same in each run.
        let seed = topic.broker.now().nanos() ^ id;
        let ledger = Ledger::new(rules, start, seed);
        Self::with_book(id, name, topic, filter, filter_fn, false, ledger, expire_after, cemetery)
    }

    /// One that goes on with a book that was read back.
    #[expect(clippy::too_many_arguments, reason = "as above")]
    pub(super) fn with_book(
        id: u64,
        name: Name,
        topic: Arc<TopicCore<E>>,
        filter: Option<Filter>,
        filter_fn: Option<FilterFn<E>>,
        awaits_filter_fn: bool,
        mut ledger: Ledger,
        expire_after: Option<Duration>,
        cemetery: Option<Cemetery<E>>,
    ) -> Arc<Self> {
        let (ordered, mode) = (ledger.rules().ordered, ledger.rules().mode);
        let start = ledger.low();
        if topic.stored.is_some() {
            ledger.be_recorded();
        }
        let desk = Desk {
            ledger,
            closed: false,
            counted: false,
            outstanding: 0,
            updated_by: None,
            waiting_acks: Vec::new(),
            near: Weak::new(),
            near_end: start,
        };
        Arc::new(SubscriptionCore {
            id,
            name,
            topic,
            filter,
            filter_fn: filter_fn.map(OnceLock::from).unwrap_or_default(),
            awaits_filter_fn,
            ordered,
            mode,
            desk: Mutex::new(desk),
            buries: AtomicBool::new(cemetery.is_some()),
            cemetery: RwLock::new(cemetery),
            expire_after: AtomicU64::new(expire_after.map_or(u64::MAX, nanos)),
            deleted: AtomicBool::new(false),
            creation: Creation::done(),
            scheduled: AtomicU64::new(u64::MAX),
            low: AtomicU64::new(start.get()),
            shelf: Shelf::new(),
        })
    }

    /// Why nothing can be settled, sought or asked here any more, if so.
    pub(crate) fn ended(&self) -> Option<RecvError> {
        if self.deleted.load(Ordering::SeqCst) {
            return Some(if self.topic.ended() == Some(RecvError::Closed) {
                RecvError::Closed
            } else {
                RecvError::Deleted
            });
        }
        self.topic.ended()
    }

    /// Waits until the subscription is as safe as was promised, which somebody else creates just now. With nothing locked.
    pub(crate) fn wait_for_creation(&self) -> Result<(), StorageFault> {
        self.topic.stored.as_ref().map_or(Ok(()), |stored| self.creation.wait(&stored.store))
    }

    pub(super) fn low(&self) -> Sequence {
        Sequence::new(self.low.load(Ordering::Acquire))
    }

    pub(super) fn has_settled(&self, from: Sequence, to: Sequence) -> bool {
        self.low() >= to || self.desk.lock().ledger.settled().all_settled(from, to)
    }

    pub(crate) fn has_filter(&self) -> bool {
        self.filter.is_some() || self.has_filter_fn()
    }

    pub(crate) fn has_filter_fn(&self) -> bool {
        self.awaits_filter_fn || self.filter_fn.get().is_some()
    }

    pub(super) fn filter_fn(&self) -> Option<&FilterFn<E>> {
        self.filter_fn.get()
    }

    /// It has a closure that is not given again yet.
    pub(crate) fn lacks_filter_fn(&self) -> bool {
        self.awaits_filter_fn && self.filter_fn.get().is_none()
    }

    /// False: it has one.
    pub(crate) fn give_filter_fn(&self, filter: FilterFn<E>) -> bool {
        self.awaits_filter_fn && self.filter_fn.set(filter).is_ok()
    }

    pub(crate) fn expire_after(&self) -> Option<Duration> {
        let nanos = self.expire_after.load(Ordering::Relaxed);
        (nanos < u64::MAX).then(|| Duration::from_nanos(nanos))
    }

    pub(crate) fn cemetery_name(&self) -> Option<Name> {
        self.cemetery.read().as_ref().map(|cemetery| cemetery.name.clone())
    }

    pub(crate) fn rules(&self) -> Rules {
        self.desk.lock().ledger.rules().clone()
    }

    /// Changes the rules; what is outstanding keeps its deadline.
    pub(crate) fn update(
        self: &Arc<Self>,
        change: impl Fn(Rules) -> SubscriptionChange<E>,
    ) -> Result<(), StorageFault> {
        let Some(stored) = &self.topic.stored else {
            self.apply_update(change(self.rules()))();
            return Ok(());
        };
        stored.store.put_in_turn(|| {
            let mut desk = self.desk.lock();
            if let Some(earlier) = desk.updated_by {
                return Ok(Turn::After(earlier));
            }
            let change = change(desk.ledger.rules().clone());
            let unit = self.record_of_update(&change);
            let this = self.clone();
            let effect = Effect::of(move |is_safe| {
                this.desk.lock().updated_by = None;
                if is_safe { this.apply_update(change) } else { Box::new(move || drop(change)) }
            });
            let added = stored.store.add(&unit, Space::Ordinary, Some(effect))?;
            desk.updated_by = Some(added);
            Ok(Turn::Added(added))
        })
    }

    /// All that others see of an update, at once. The rest is to follow with nothing locked.
    fn apply_update(self: &Arc<Self>, change: SubscriptionChange<E>) -> FollowUp {
        let SubscriptionChange { rules, cemetery, expire_after } = change;
        let old = cemetery.map(|cemetery| {
            self.buries.store(cemetery.is_some(), Ordering::Relaxed);
            std::mem::replace(&mut *self.cemetery.write(), cemetery)
        });
        let after = self.change_unrecorded(|ledger| ledger.set_rules(rules));
        if let Some(expire_after) = expire_after {
            self.expire_after.store(expire_after.map_or(u64::MAX, nanos), Ordering::Relaxed);
        }
        let this = self.clone();
        Box::new(move || {
            // It may be the last hold on a deleted topic, with its closures.
            drop(old);
            after.into_iter().for_each(|after| this.follow_up(after));
            if expire_after.is_some() {
                this.topic.note_expire_after();
                this.change(|ledger| ledger.set_expiries(|sequence| this.expiry_of(sequence)));
                this.expire_unseen(this.topic.broker.now());
                this.topic.arm();
            }
            this.run_timeouts();
            // What was parked may have somewhere to go now.
            this.change(Ledger::retry_parked);
        })
    }

    /// When the message leaves this subscription unsettled: by its own life, or by the subscription's.
    fn expiry_of(&self, sequence: Sequence) -> Tick {
        let Some(spot) = self.topic.log.find(sequence) else { return Tick::NEVER };
        let (published, extras) = self.topic.log.extras(&spot);
        let own = extras.map_or(Tick::NEVER, |extras| extras.expiry(published));
        self.expire_after().map_or(own, |after| own.min(published + after))
    }

    /// Changes the ledger, and does all that follows before it returns.
    pub(super) fn change<T>(self: &Arc<Self>, act: impl FnOnce(&mut Ledger) -> T) -> Option<T> {
        self.change_on_record(act).map(|(done, _)| done)
    }

    /// [`change`](Self::change); on disk also says where the journal has what it settled.
    pub(super) fn change_on_record<T>(
        self: &Arc<Self>,
        act: impl FnOnce(&mut Ledger) -> T,
    ) -> Option<(T, Option<Added>)> {
        self.change_telling(act).map(|(done, records)| (done, records.settled))
    }

    /// [`change`](Self::change); on disk also says where the journal has what came of it.
    pub(super) fn change_telling<T>(
        self: &Arc<Self>,
        act: impl FnOnce(&mut Ledger) -> T,
    ) -> Option<(T, Records)> {
        let (done, after) = {
            let mut desk = self.desk.lock();
            if desk.closed {
                return None;
            }
            let done = act(&mut desk.ledger);
            (done, self.collect(&mut desk, None))
        };
        let records = Records { settled: after.recorded, returned: after.returned };
        self.follow_up(after);
        Some((done, records))
    }

    /// The same for one message of a run that was acked where nobody watches, of this segment: what [`collect`](Self::collect) and [`follow_up`](Self::follow_up) come to then.
    #[inline]
    pub(super) fn follow_up_plain_ack(&self, mut desk: MutexGuard<'_, Desk<E>>, held: Held<E>) {
        let after = self.collect_plain_ack(&mut desk, &held);
        drop(desk);
        self.follow_up_plain(after, held);
    }

    #[inline]
    pub(super) fn collect_plain_ack(&self, desk: &mut Desk<E>, held: &Held<E>) -> AfterPlain {
        desk.note_outstanding();
        let segment = held.spot.segment();
        // The tail first, as below.
        let tail = self.topic.log.tail();
        let low = desk.ledger.low();
        self.low.store(low.get(), Ordering::Release);
        desk.ledger.forget_before(self.topic.log.floor());
        let end = segment.end().min(tail);
        let segment_done = low >= end || desk.ledger.settled().all_settled(segment.first(), end);
        if segment_done {
            desk.near = Weak::new();
        }
        AfterPlain { sequence: held.ticket.sequence, counted: desk.counted, segment_done }
    }

    #[inline]
    pub(super) fn follow_up_plain(&self, after: AfterPlain, held: Held<E>) {
        // The message's own hold on it goes on: who lets go of a segment last empties it.
        let segment = after.segment_done.then(|| held.spot.into_segment());
        self.topic.note_settled_one(self.id, after.sequence, after.counted, segment);
        self.topic.broker.note_settled();
    }

    /// A change of which the journal knows already. What follows is for the caller to see to. None: the subscription was deleted.
    pub(super) fn change_unrecorded(&self, act: impl FnOnce(&mut Ledger)) -> Option<After> {
        self.change_unrecorded_in(&mut self.desk.lock(), act)
    }

    /// [`change_unrecorded`](Self::change_unrecorded) under the lock.
    pub(super) fn change_unrecorded_in(
        &self,
        desk: &mut Desk<E>,
        act: impl FnOnce(&mut Ledger),
    ) -> Option<After> {
        self.change_in(desk, |desk| act(&mut desk.ledger), false)
    }

    /// A change under the lock.
    pub(super) fn change_in(
        &self,
        desk: &mut Desk<E>,
        act: impl FnOnce(&mut Desk<E>),
        is_to_be_recorded: bool,
    ) -> Option<After> {
        if desk.closed {
            return None;
        }
        act(desk);
        Some(self.collect_what(desk, None, is_to_be_recorded))
    }

    /// What follows from what was just done to the ledger. Under the subscription's lock.
    pub(super) fn collect(&self, desk: &mut Desk<E>, segment: Option<&Segment<E>>) -> After {
        self.collect_what(desk, segment, true)
    }

    fn collect_what(
        &self,
        desk: &mut Desk<E>,
        segment: Option<&Segment<E>>,
        is_to_be_recorded: bool,
    ) -> After {
        // The tail first: if it shows a message of the next segment, this one's end is seen to be final.
        let tail = self.topic.log.tail();
        let ledger = &mut desk.ledger;
        self.low.store(ledger.low().get(), Ordering::Release);
        ledger.forget_before(self.topic.log.floor());
        let news = ledger.take_news();
        let mut is_left_to_checkpoint = false;
        let recorded = match &self.topic.stored {
            Some(stored) if is_to_be_recorded && !news.is_empty() => {
                // Where it is waited for, it is to be known whether it finds space.
                if self.mode != DeliveryMode::ExactlyOnce && stored.store.checkpoints.is_behind() {
                    is_left_to_checkpoint = stored.store.checkpoints.leave_to_next();
                    None
                } else {
                    Some(self.record_settled(stored, ledger, news.as_slice()))
                }
            }
            _ => None,
        };
        let returned = self.topic.stored.as_ref().and_then(|stored| self.record_returns(stored, ledger));
        let segment_done = segment
            .filter(|_| !news.is_empty())
            .map(|segment| ledger.settled().all_settled(segment.first(), segment.end().min(tail)));
        if segment_done.unwrap_or(!news.is_empty() && ledger.low() >= desk.near_end) {
            desk.near = Weak::new();
        }
        let outstanding = std::mem::replace(&mut desk.outstanding, ledger.outstanding());
        // Under the lock that a waiter takes when it looks again, so that no fence is needed: it sees this change, or we see it.
        let receivers_wait = self.topic.receivers.may_have_waiters();
        After {
            less_outstanding: ledger.outstanding() < outstanding,
            events: ledger.take_events(),
            news,
            counted: desk.counted,
            segment_done,
            deliverable: receivers_wait && ledger.has_deliverable(tail),
            recorded,
            returned,
            is_left_to_checkpoint,
            timeout: ledger.poll_timeout().filter(|_| receivers_wait || self.cares_about_time()),
        }
    }

    pub(super) fn follow_up(self: &Arc<Self>, after: After) {
        if !after.news.is_empty() {
            self.topic.note_settled(self.id, after.news.as_slice(), after.counted, after.segment_done);
        }
        // After the news, for which a publisher may wait: this calls the dead-letter topic's closures.
        if !after.events.is_empty() {
            self.bury_all(after.events);
        }
        let unit = [after.recorded, after.returned].into_iter().flatten().filter_map(Result::ok).max();
        if let (Some(stored), Some(position)) = (&self.topic.stored, unit)
            && stored.store.write_later(position)
        {
            self.topic.broker.checkpoint_in_time();
        }
        if after.is_left_to_checkpoint {
            self.topic.broker.checkpoint_in_time();
        }
        if let Some(stored) = &self.topic.stored
            && stored.store.wants_sweep()
        {
            self.topic.broker.makes_space();
        }
        self.arm(after.timeout);
        // Only then: a shutdown that waits looks by changing the ledger itself, and must not wake itself for ever.
        if after.less_outstanding {
            self.topic.broker.note_settled();
        }
        if after.deliverable {
            self.topic.receivers.wake(self.id, 1);
        }
    }

    /// Sets an alarm for the ledger's next timeout, if somebody is to notice it who does not call.
    pub(super) fn arm(self: &Arc<Self>, timeout: Option<Tick>) {
        let Some(at) = timeout else { return };
        if at.nanos() >= self.scheduled.load(Ordering::SeqCst) {
            return;
        }
        if !self.cares_about_time() && !self.topic.receivers.has(self.id) {
            return;
        }
        if at.nanos() < self.scheduled.fetch_min(at.nanos(), Ordering::SeqCst) {
            self.topic.broker.timer.set(at, self.alarm());
            self.topic.broker.timer.catch_up(at);
        }
    }

    /// Under the subscription's lock: whether anybody is to be told, or woken, by a change in it that settles nothing.
    #[inline]
    pub(super) fn is_watched(&self) -> bool {
        self.topic.receivers.may_have_waiters() || self.cares_about_time()
    }

    /// Whether somebody is to notice what time brings about, beside a receiver that waits.
    fn cares_about_time(&self) -> bool {
        let topic = &self.topic;
        topic.broker.line.is_manual()
            || self.buries.load(Ordering::Relaxed)
            || self.topic.stored.is_some()
            || self.expire_after().is_some()
            || topic.timed.load(Ordering::Relaxed)
            // A lease that runs out for good makes room for a publisher who waits, and who looks at every subscription's next deadline before it sleeps.
            || topic.space.may_have_waiters()
    }

    pub(super) fn alarm(self: &Arc<Self>) -> Weak<dyn Alarm> {
        Arc::downgrade(&(self.clone() as Arc<dyn Alarm>))
    }

    /// Brings about what time has brought about by now.
    pub(crate) fn run_timeouts(self: &Arc<Self>) {
        let now = self.topic.broker.now();
        while self.change(|ledger| ledger.handle_timeout(now, TIMEOUT_BUDGET)) == Some(true) {}
    }

    pub(crate) fn set_paused(self: &Arc<Self>, paused: bool) -> Result<(), StorageFault> {
        let this = self.clone();
        let apply = move || -> FollowUp {
            let after = this.change_unrecorded(|ledger| ledger.set_paused(paused));
            Box::new(move || {
                after.into_iter().for_each(|after| this.follow_up(after));
                if !paused {
                    this.topic.receivers.wake_all_of(this.id);
                }
            })
        };
        let record = Record::Paused { topic: self.topic.log.incarnation(), book: self.id, paused };
        self.topic.broker.put_applied(&record, apply)
    }

    pub(crate) fn status(self: &Arc<Self>, sequence: Sequence, due: Tick) -> MessageStatus {
        self.run_timeouts();
        let now = self.topic.broker.now();
        let desk = self.desk.lock();
        match desk.ledger.status(sequence) {
            MessageStatus::Waiting if sequence >= desk.ledger.cursor() && due > now => MessageStatus::Delayed,
            status => status,
        }
    }

    pub(crate) fn backlog_and_outstanding(self: &Arc<Self>) -> (u64, u64) {
        self.run_timeouts();
        let desk = self.desk.lock();
        // Under the lock: what is settled lies before this tail.
        let tail = self.topic.log.tail();
        (desk.ledger.settled().unsettled_before(tail), desk.ledger.outstanding())
    }

    /// The counters, and what is delayed, parked, and the oldest that is unsettled.
    pub(crate) fn survey(self: &Arc<Self>) -> Survey {
        self.run_timeouts();
        let now = self.topic.broker.now();
        let (mut survey, cursor) = {
            let desk = self.desk.lock();
            // Under the lock: what is settled lies before this tail.
            let tail = self.topic.log.tail();
            let ledger = &desk.ledger;
            let survey = Survey {
                counts: ledger.counts(),
                backlog: ledger.settled().unsettled_before(tail),
                outstanding: ledger.outstanding(),
                delayed: ledger.delayed(),
                parked: ledger.parked(),
                oldest: ledger.settled().next_unsettled_run(ledger.low(), tail).map(|run| run.0),
                oldest_age: None,
            };
            (survey, ledger.cursor())
        };
        survey.delayed += self.topic.delayed_from(cursor, now);
        let oldest = survey.oldest.and_then(|sequence| self.topic.log.find(sequence));
        survey.oldest_age = oldest.map(|spot| now.since(self.topic.log.extras(&spot).0));
        survey
    }

    /// The topic drops this message. False: it was settled here already.
    pub(super) fn drop_message(self: &Arc<Self>, sequence: Sequence) -> bool {
        self.change(|ledger| ledger.handle_dropped(sequence)).unwrap_or(false)
    }

    /// Nothing is done with it any more.
    pub(super) fn mark_deleted(&self) {
        self.deleted.store(true, Ordering::SeqCst);
    }

    /// Marks it deleted; gives what it had not settled of what was published before it went, for the topic's occupancy.
    pub(super) fn close(&self, tail: Sequence) -> (Vec<(Sequence, Sequence)>, bool) {
        self.deleted.store(true, Ordering::SeqCst);
        let mut desk = self.desk.lock();
        desk.closed = true;
        (unsettled_runs(&desk.ledger, tail), desk.counted)
    }
}

/// All that is unsettled up to the tail, as ranges.
pub(super) fn unsettled_runs(ledger: &Ledger, tail: Sequence) -> Vec<(Sequence, Sequence)> {
    let mut runs = Vec::new();
    let mut at = ledger.low();
    while let Some((from, to)) = ledger.settled().next_unsettled_run(at, tail) {
        runs.push((from, to));
        at = to;
    }
    runs
}

/// What an update changes.
pub(crate) struct SubscriptionChange<E> {
    pub(crate) rules: Rules,
    pub(crate) cemetery: Option<Option<Cemetery<E>>>,
    pub(crate) expire_after: Option<Option<Duration>>,
}

/// What there is to see of a subscription.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Survey {
    pub(crate) counts: Counts,
    pub(crate) backlog: u64,
    pub(crate) outstanding: u64,
    pub(crate) delayed: u64,
    pub(crate) parked: u64,
    oldest: Option<Sequence>,
    pub(crate) oldest_age: Option<Duration>,
}

impl<E: Send + Sync + 'static> Alarm for SubscriptionCore<E> {
    fn ring(self: Arc<Self>, now: Tick) {
        // Before looking: what is found later sets its own alarm.
        self.scheduled.store(u64::MAX, Ordering::SeqCst);
        if self.ended().is_some() {
            return;
        }
        while self.change(|ledger| ledger.handle_timeout(now, TIMEOUT_BUDGET)) == Some(true) {}
        if self.topic.broker.line.is_manual() {
            // Receivers whose timeout passed; with the system clock they wake by themselves.
            self.topic.receivers.wake_all_of(self.id);
        }
    }
}
