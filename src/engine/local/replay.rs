//! Where subscriptions begin, and where they are put back to: starts, seeks, snapshots, and their end.

use std::sync::Arc;
use std::time::Duration;

use crate::delivery::filter::Filter;
use crate::delivery::ledger::{Ledger, Rules};
use crate::delivery::settled::Settled;
use crate::engine::local::ahead::Given;
use crate::engine::local::broker::{AnyTopic, BrokerCore, SnapshotEntry};
use crate::engine::local::dead_letter::Cemetery;
use crate::engine::local::effect::Creation;
use crate::engine::local::store::Added;
use crate::engine::local::subscription::{FilterFn, SubscriptionCore, unsettled_runs};
use crate::engine::local::topic::{Book, TopicCore, TopicState};
use crate::error::{CreateError, DeleteError, RecvError, SeekError, StorageFault};
use crate::journal::record::Record;
use crate::name::Name;
use crate::options::{SNAPSHOT_LIFE, Seek, Start};
use crate::sequence::Sequence;
use crate::time::Tick;

/// Where a subscription stood at one moment, and what the topic keeps for it.
pub(crate) struct Snapshot {
    pub(crate) id: u64,
    pub(crate) name: Name,
    pub(crate) settled: Settled,
    pub(crate) expires: Tick,
    pub(super) creation: Creation,
}

/// What makes a subscription.
pub(crate) struct Plan<E> {
    pub(crate) name: Name,
    pub(crate) start: Start,
    pub(crate) filter: Option<Filter>,
    pub(crate) filter_fn: Option<FilterFn<E>>,
    pub(crate) rules: Rules,
    pub(crate) expire_after: Option<Duration>,
    pub(crate) cemetery: Option<Cemetery<E>>,
}

impl<E: Send + Sync + 'static> TopicCore<E> {
    /// Creates a subscription, unless there is one of this name: then gives that one back.
    pub(crate) fn subscribe(
        self: &Arc<Self>,
        plan: Plan<E>,
    ) -> Result<Arc<SubscriptionCore<E>>, SubscribeError<E>> {
        let (created, recorded) = {
            // Time and place are looked up first: what is kept can only become less meanwhile, and what is gone by then is marked as such below.
            let wanted = self.place_of(&plan.start);
            let mut state = self.state.lock();
            if let Some(error) = self.ended() {
                return Err(SubscribeError::Ended(error));
            }
            let mut books = self.books.write();
            if let Some(existing) = books.iter().find_map(|book| book.named(&plan.name)) {
                return Err(SubscribeError::Exists(existing));
            }
            state.epoch += 1;
            let tail = state.writer.next();
            let start = wanted.unwrap_or(tail).min(tail);
            let subscription = SubscriptionCore::new(
                self.broker.next_book(),
                plan.name,
                self.clone(),
                plan.filter,
                plan.filter_fn,
                plan.rules,
                plan.expire_after,
                plan.cemetery,
                start,
            );
            // Nobody else knows the subscription yet: its lock is free.
            let mut desk = subscription.desk.lock();
            desk.counted = state.occupancy.is_some();
            if start < tail {
                self.mark_gaps(&mut desk.ledger, start, self.has_gaps(&state));
                if let Some(occupancy) = &mut state.occupancy {
                    for (from, to) in unsettled_runs(&desk.ledger, tail) {
                        occupancy.add(from, to, 1);
                    }
                }
            }
            let gaps = desk.ledger.take_news();
            let recorded = match &self.stored {
                Some(stored) => {
                    // What is staged by now lies before it in the journal.
                    let end = state.staging.next;
                    let unit = subscription.record_of_new(&desk.ledger, start, end, gaps.as_slice());
                    let (store, given) = (&stored.store, Given::NOTHING);
                    let added = Creation::add(store, &unit, given, &subscription, |subscription| {
                        &subscription.creation
                    });
                    Some(added.map_err(SubscribeError::Storage)?)
                }
                None => None,
            };
            drop(desk);
            books.push(Book::Subscription(subscription.clone()));
            state.books = books.len();
            state.subscriptions += 1;
            (subscription, recorded)
        };
        if let (Some(stored), Some(position)) = (&self.stored, recorded)
            && let Err(fault) = stored.store.make_sure(position)
        {
            self.remove_book(created.id);
            return Err(SubscribeError::Storage(fault));
        }
        self.note_expire_after();
        self.arm();
        self.broker.retry_parked(&self.name);
        Ok(created)
    }

    /// None: the end.
    fn place_of(&self, start: &Start) -> Option<Sequence> {
        match start {
            Start::Latest => None,
            Start::Earliest => Some(self.oldest_kept()),
            Start::Time(time) => {
                Some(self.log.first_at(Tick::from_system_time(*time)).max(self.oldest_kept()))
            }
            Start::Sequence(sequence) => Some(Sequence::new(*sequence).max(self.oldest_kept())),
        }
    }

    /// Whether something is missing between the oldest message that is kept and the newest.
    fn has_gaps(&self, state: &TopicState<E>) -> bool {
        state.writer.next() - self.log.first_kept() != state.resident_messages
    }

    /// What is not kept is settled. Where nothing is missing, this costs the same on ten million messages as on none.
    fn mark_gaps(&self, ledger: &mut Ledger, start: Sequence, has_gaps: bool) {
        // What is appended while the log looks for its gaps is none.
        let tail = self.log.tail();
        let gaps = if has_gaps { self.log.gaps(start) } else { vec![(start, self.log.first_kept())] };
        for (from, to) in gaps {
            if from < to.min(tail) {
                ledger.handle_removed(from, to.min(tail));
            }
        }
        self.forgotten.mark(ledger, start);
    }

    /// From here to [`end_hold`](Self::end_hold) nothing is removed from the log.
    fn begin_hold(&self) {
        let mut state = self.state.lock();
        state.epoch += 1;
        state.pending += 1;
    }

    fn end_hold(self: &Arc<Self>, changes: &[(Sequence, Sequence, i64)]) {
        {
            let mut state = self.state.lock();
            state.epoch += 1;
            state.pending -= 1;
            state.sweep_from = Sequence::FIRST;
            if let Some(occupancy) = &mut state.occupancy {
                for &(from, to, change) in changes {
                    occupancy.add(from, to, change);
                }
            }
        }
        if !changes.is_empty() {
            self.space.wake_everyone();
        }
        self.sweep();
        self.arm();
    }

    /// Whether occupancy is counted at all (then a seek says what it changed), and whether something is missing in the log. While the log is held,
    /// nothing comes to be missing.
    fn survey_for_seek(&self) -> (bool, bool) {
        let state = self.state.lock();
        (state.occupancy.is_some(), self.has_gaps(&state))
    }

    /// A book is gone: what only it needed goes.
    pub(super) fn remove_book(&self, id: u64) {
        self.follow_up_removal(self.take_book(id));
    }

    /// Gives it, and the topic's end.
    pub(super) fn take_book(&self, id: u64) -> Option<(Book<E>, Sequence)> {
        let mut state = self.state.lock();
        state.epoch += 1;
        let mut books = self.books.write();
        let at = books.iter().position(|book| book.id() == id);
        let removed = at.map(|at| books.remove(at));
        state.books = books.len();
        state.subscriptions -= u64::from(matches!(removed, Some(Book::Subscription(_))));
        Some((removed?, state.writer.next()))
    }

    pub(super) fn follow_up_removal(&self, removed: Option<(Book<E>, Sequence)>) {
        let Some((removed, tail)) = removed else { return };
        let id = removed.id();
        if let Book::Subscription(subscription) = &removed {
            let (unsettled, counted) = subscription.close(tail);
            self.note_gone(&unsettled, counted);
            self.receivers.wake_all_of(id);
            self.broker.wake_commits();
        }
        self.note_expire_after();
        drop(removed);
        self.state.lock().sweep_from = Sequence::FIRST;
        self.sweep();
    }

    /// A deleted subscription settles nothing any more: what it had not settled takes no room for it.
    fn note_gone(&self, unsettled: &[(Sequence, Sequence)], counted: bool) {
        {
            let mut state = self.state.lock();
            let Some(occupancy) = &mut state.occupancy else { return };
            for &(from, to) in unsettled {
                let from = if counted { from } else { from.max(occupancy.counted_from()) };
                occupancy.add(from, to, -1);
            }
        }
        self.space.wake_everyone();
    }
}

/// Why a subscription was not created.
pub(crate) enum SubscribeError<E> {
    Ended(RecvError),
    Exists(Arc<SubscriptionCore<E>>),
    Storage(StorageFault),
}

impl<E: Send + Sync + 'static> Book<E> {
    fn named(&self, name: &Name) -> Option<Arc<SubscriptionCore<E>>> {
        match self {
            Book::Subscription(subscription) if subscription.name == *name => Some(subscription.clone()),
            _ => None,
        }
    }
}

/// Where a seek leads.
enum Place {
    At(Sequence),
    Image(Settled),
}

impl<E: Send + Sync + 'static> SubscriptionCore<E> {
    pub(crate) fn seek(self: &Arc<Self>, seek: &Seek) -> Result<(), SeekError> {
        if let Some(error) = self.ended() {
            return Err(error.into());
        }
        let image = match seek {
            Seek::Snapshot(name) => Some(self.snapshot_of(name)?),
            _ => None,
        };
        self.topic.begin_hold();
        let place = match (seek, image) {
            (_, Some(snapshot)) => Place::Image(snapshot.settled.clone()),
            (Seek::Earliest, _) => Place::At(self.topic.oldest_kept()),
            (Seek::Time(time), _) => {
                let first = self.topic.log.first_at(Tick::from_system_time(*time));
                Place::At(first.max(self.topic.oldest_kept()))
            }
            (Seek::Sequence(sequence), _) => {
                Place::At(Sequence::new(*sequence).max(self.topic.oldest_kept()).min(self.topic.log.tail()))
            }
            (Seek::Latest | Seek::Snapshot(_), None) => Place::At(self.topic.log.tail()),
        };
        let moved = self.move_to(place);
        let changes = moved.as_ref().map(|(changes, _)| changes.as_slice());
        self.topic.end_hold(changes.unwrap_or_default());
        self.topic.receivers.wake_all_of(self.id);
        self.topic.broker.wake_commits();
        let (_, recorded) = moved.ok_or(SeekError::Deleted)?;
        if let (Some(stored), Some(added)) = (&self.topic.stored, recorded) {
            // It has taken place: others have seen it.
            let position = added.map_err(StorageFault::unsure)?;
            stored.store.make_sure(position).map_err(StorageFault::unsure)?;
        }
        Ok(())
    }

    /// Gives what changed for the topic's occupancy. None: the subscription was deleted meanwhile.
    #[expect(clippy::type_complexity, reason = "called once")]
    fn move_to(self: &Arc<Self>, place: Place) -> Option<(Vec<(Sequence, Sequence, i64)>, Option<Added>)> {
        let (counts, has_gaps) = self.topic.survey_for_seek();
        self.change(|ledger| {
            let tail = self.topic.log.tail();
            let before = if counts { unsettled_runs(ledger, tail) } else { Vec::new() };
            // News of what was settled before is lost with the old generation's: it is in `before` as settled, and said below.
            let is_to_image = matches!(place, Place::Image(_));
            match place {
                Place::At(start) => ledger.seek_to(start),
                Place::Image(image) => ledger.seek_to_image(image),
            }
            self.topic.mark_gaps(ledger, ledger.low(), has_gaps);
            let is_plain = ledger.take_news().as_slice().is_empty() && !is_to_image;
            let recorded = self.record_seek(ledger, is_plain);
            let mut changes: Vec<_> = before.into_iter().map(|(from, to)| (from, to, -1)).collect();
            if counts {
                changes.extend(unsettled_runs(ledger, tail).into_iter().map(|(from, to)| (from, to, 1)));
            }
            (changes, recorded)
        })
    }

    fn snapshot_of(&self, name: &str) -> Result<Arc<Snapshot>, SeekError> {
        self.topic.end_snapshots(self.topic.broker.now());
        let snapshots = self.topic.broker.snapshots.lock();
        let snapshot = snapshots.get(name).and_then(|entry| entry.snapshot.clone());
        drop(snapshots);
        let mine = snapshot.filter(|snapshot| {
            let books = self.topic.books.read();
            books.iter().any(|book| book.id() == snapshot.id)
        });
        mine.ok_or(SeekError::NotFound)
    }

    /// Keeps what this subscription has not settled now, and all that is published later, under a name.
    pub(crate) fn snapshot(self: &Arc<Self>, name: Name, life: Option<Duration>) -> Result<(), CreateError> {
        if let Some(error) = self.ended() {
            return Err(error.into());
        }
        self.run_timeouts();
        let broker = &self.topic.broker;
        let now = broker.now();
        broker.reserve_snapshot(&name, self.topic.clone())?;
        self.topic.begin_hold();
        let snapshot = Arc::new(Snapshot {
            id: broker.next_book(),
            name: name.clone(),
            settled: self.desk.lock().ledger.settled().clone(),
            expires: now + life.unwrap_or(SNAPSHOT_LIFE),
            creation: Creation::done(),
        });
        let ended = {
            let mut state = self.topic.state.lock();
            let ended = self.ended();
            if ended.is_none() {
                let mut books = self.topic.books.write();
                books.push(Book::Snapshot(snapshot.clone()));
                state.books = books.len();
            }
            ended
        };
        let recorded = match ended {
            None => self.topic.record_snapshot(&snapshot),
            Some(_) => Ok(()),
        };
        let id = snapshot.id;
        broker.fill_snapshot(&name, (ended.is_none() && recorded.is_ok()).then_some(snapshot));
        self.topic.end_hold(&[]);
        if let Err(fault) = recorded {
            self.topic.remove_book(id);
            return Err(fault.into());
        }
        ended.map_or(Ok(()), |error| Err(error.into()))
    }

    pub(crate) fn delete(self: &Arc<Self>) -> Result<(), DeleteError> {
        match self.ended() {
            Some(RecvError::Closed) => return Err(DeleteError::Closed),
            Some(RecvError::Deleted) => return Err(DeleteError::NotFound),
            Some(RecvError::Storage { fault }) => return Err(DeleteError::Storage { fault }),
            None => {}
        }
        let this = self.clone();
        let record = Record::BookDeleted { topic: self.topic.log.incarnation(), book: self.id };
        self.topic.broker.put_applied(&record, move || {
            let removed = this.topic.take_book(this.id);
            this.mark_deleted();
            Box::new(move || this.topic.follow_up_removal(removed))
        })?;
        Ok(())
    }
}

impl BrokerCore {
    fn reserve_snapshot(&self, name: &Name, topic: Arc<dyn AnyTopic>) -> Result<(), CreateError> {
        let mut snapshots = self.snapshots.lock();
        if snapshots.contains_key(name) || self.recovered.lock().find_snapshot(name.as_str()).is_some() {
            return Err(CreateError::AlreadyExists);
        }
        snapshots.insert(name.clone(), SnapshotEntry { topic, snapshot: None });
        Ok(())
    }

    /// A snapshot that was read back with its topic.
    pub(super) fn add_snapshot(&self, topic: Arc<dyn AnyTopic>, snapshot: Arc<Snapshot>) {
        let entry = SnapshotEntry { topic, snapshot: Some(snapshot.clone()) };
        self.snapshots.lock().insert(snapshot.name.clone(), entry);
    }

    fn fill_snapshot(&self, name: &Name, snapshot: Option<Arc<Snapshot>>) {
        let mut snapshots = self.snapshots.lock();
        match (snapshots.get_mut(name), snapshot) {
            (Some(entry), Some(snapshot)) => entry.snapshot = Some(snapshot),
            (Some(_), None) => drop(snapshots.remove(name)),
            (None, _) => {}
        }
    }

    pub(crate) fn snapshot_names(&self) -> Vec<String> {
        let snapshots = self.snapshots.lock();
        let taken = snapshots.iter().filter(|(_, entry)| entry.snapshot.is_some());
        let mut names: Vec<_> = taken.map(|(name, _)| name.to_string()).collect();
        names.extend(self.recovered.lock().snapshot_names());
        names.sort();
        names
    }
}
