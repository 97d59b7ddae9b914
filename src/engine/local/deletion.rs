//! The end of topics and snapshots: recorded first, and so when the record is safe.

use std::sync::Arc;

use crate::engine::local::broker::{AnyTopic, BrokerCore, SnapshotEntry};
use crate::engine::local::effect::FollowUp;
use crate::engine::local::replay::Snapshot;
use crate::engine::local::topic::{Book, TopicCore};
use crate::error::{DeleteError, StorageFault};
use crate::journal::Space;
use crate::journal::record::Record;
use crate::name::Name;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::time::Tick;

impl BrokerCore {
    /// Does `apply` when the record is safe; at once where there is no disk.
    ///
    /// What ends frees space: a full disk takes it, and has some then.
    pub(super) fn put_applied(
        self: &Arc<Self>,
        record: &Record<'_>,
        apply: impl FnOnce() -> FollowUp + Send + 'static,
    ) -> Result<(), StorageFault> {
        let Some(store) = &self.store else {
            apply()();
            return Ok(());
        };
        let mut unit = Vec::new();
        record.encode(&mut unit);
        let is_end = matches!(
            record,
            Record::TopicDeleted { .. } | Record::BookDeleted { .. } | Record::SnapshotDeleted { .. }
        );
        store.put_applied(&unit, if is_end { Space::Reserve } else { Space::Ordinary }, apply)?;
        if is_end {
            self.makes_space();
        }
        Ok(())
    }

    /// Also one that is on disk and that nobody has opened yet.
    pub(crate) fn delete_topic(self: &Arc<Self>, name: &str) -> Result<(), DeleteError> {
        let name = Name::parse(name).map_err(|_| DeleteError::NotFound)?;
        let number = match self.with_recovered(&name, |stored| stored.number) {
            Some(number) => number,
            None => self.find_topic(name.as_str()).ok_or(DeleteError::NotFound)?.number(),
        };
        let is_done = Arc::new(AtomicBool::new(false));
        let (this, says) = (self.clone(), is_done.clone());
        let apply = move || -> FollowUp {
            // One that was opened meanwhile is deleted like any other.
            let (stored, live) = {
                let mut topics = this.topics.write();
                let stored =
                    this.store.as_ref().and_then(|_| this.recovered.lock().take_topic(name.as_str()));
                let is_this = topics.get(&name).is_some_and(|topic| topic.number() == number);
                (stored, if is_this { topics.remove(&name) } else { None })
            };
            says.store(stored.is_some() || live.is_some(), Ordering::Release);
            live.iter().for_each(|topic| topic.mark_deleted());
            Box::new(move || {
                drop(stored);
                let Some(topic) = live else { return };
                this.forget_snapshots_of(&topic);
                topic.tear_down();
                // Once more: one may have been taken while the topic went.
                this.forget_snapshots_of(&topic);
            })
        };
        self.put_applied(&Record::TopicDeleted { topic: number }, apply)?;
        // Of two who delete it, one did.
        if is_done.load(Ordering::Acquire) { Ok(()) } else { Err(DeleteError::NotFound) }
    }

    pub(crate) fn delete_snapshot(self: &Arc<Self>, name: &str) -> Result<(), DeleteError> {
        let found = {
            let snapshots = self.snapshots.lock();
            let entry = snapshots.get(name);
            entry.and_then(|entry| Some((entry.topic.clone(), entry.snapshot.clone()?)))
        };
        let ended = match found {
            Some((topic, snapshot)) => self.end_snapshot(topic, snapshot),
            None => {
                let number = self.recovered.lock().find_snapshot(name).ok_or(DeleteError::NotFound)?;
                self.end_recovered_snapshot(number)
            }
        };
        if ended? { Ok(()) } else { Err(DeleteError::NotFound) }
    }

    /// One of a topic that nobody has opened yet.
    fn end_recovered_snapshot(self: &Arc<Self>, number: (u64, u64)) -> Result<bool, StorageFault> {
        let this = self.clone();
        let record = Record::SnapshotDeleted { topic: number.0, book: number.1 };
        self.put_applied(&record, move || {
            this.recovered.lock().forget_snapshot(number);
            Box::new(|| ())
        })?;
        Ok(true)
    }

    /// False: somebody else has.
    fn end_snapshot(
        self: &Arc<Self>,
        topic: Arc<dyn AnyTopic>,
        snapshot: Arc<Snapshot>,
    ) -> Result<bool, StorageFault> {
        let is_done = Arc::new(AtomicBool::new(false));
        let (this, says) = (self.clone(), is_done.clone());
        let record = Record::SnapshotDeleted { topic: topic.number(), book: snapshot.id };
        self.put_applied(&record, move || {
            let is_mine = this.forget_snapshot(&snapshot);
            says.store(is_mine, Ordering::Release);
            topic.forget_book(snapshot.id)
        })?;
        Ok(is_done.load(Ordering::Acquire))
    }

    /// False: there is no such entry any more.
    fn forget_snapshot(&self, snapshot: &Arc<Snapshot>) -> bool {
        let mut snapshots = self.snapshots.lock();
        let is_this = |entry: &SnapshotEntry| {
            entry.snapshot.as_ref().is_some_and(|entered| Arc::ptr_eq(entered, snapshot))
        };
        let is_there = snapshots.get(&snapshot.name).is_some_and(is_this);
        if is_there {
            snapshots.remove(&snapshot.name);
        }
        is_there
    }

    /// A deleted topic takes its snapshots along.
    fn forget_snapshots_of(&self, topic: &Arc<dyn AnyTopic>) {
        let gone: Vec<_> = {
            let mut snapshots = self.snapshots.lock();
            let names: Vec<_> = snapshots
                .iter()
                .filter(|(_, entry)| Arc::ptr_eq(&entry.topic, topic))
                .map(|(n, _)| n.clone())
                .collect();
            names.iter().filter_map(|name| snapshots.remove(name)).collect()
        };
        drop(gone);
    }
}

impl<E: Send + Sync + 'static> TopicCore<E> {
    fn snapshot_over(&self, now: Tick) -> Option<Arc<Snapshot>> {
        self.books.read().iter().find_map(|book| match book {
            Book::Snapshot(snapshot) if snapshot.expires <= now => Some(snapshot.clone()),
            _ => None,
        })
    }

    pub(super) fn has_snapshot_over(&self, now: Tick) -> bool {
        self.snapshot_over(now).is_some()
    }

    /// Snapshots whose life is over go. May wait for the disk.
    pub(super) fn end_snapshots(self: &Arc<Self>, now: Tick) {
        while let Some(snapshot) = self.snapshot_over(now) {
            if self.broker.end_snapshot(self.clone(), snapshot.clone()).is_err() {
                // It ends again after a restart.
                self.broker.forget_snapshot(&snapshot);
                self.remove_book(snapshot.id);
            }
        }
    }
}
