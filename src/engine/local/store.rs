//! The disk under a broker: every change is a unit of the journal, and nobody sees a message before its unit is as safe as was promised.
//!
//! Who changes something adds the unit under the lock under which it is decided, so that the journal has things in the order in which they happened, and commits
//! after it has let go of every lock. Whoever commits first commits for all that have added, and completes what they added, in that order: see [`Completion`].

use std::cell::RefCell;
use std::ops::Deref;
use std::path::Path;
use std::sync::Arc;

use crate::engine::local::ahead::Ahead;
use crate::engine::local::archiving;
use crate::engine::local::checkpointing::{Checkpoints, Purpose};
use crate::engine::local::committer::{Committer, Safety, waits_for_nothing};
use crate::engine::local::progress::Progress;
use crate::engine::local::recovered::Recovered;
use crate::error::{OpenError, StorageFault};
use crate::journal::disk::{Disk, RealDisk};
use crate::journal::{
    self, Damage, Journal, JournalError, JournalOpenError, JournalOptions, Position, Replayed, Space,
};
use crate::options::{Durability, OnDamage};
use crate::stats::RecoveryReport;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use crate::sync::{Mutex, thread};

/// Something that takes effect when its unit is safe.
///
/// `complete` runs under the right to lead a commit: it takes locks of topics and subscriptions, which nobody holds who commits, and calls no code of a user's.
pub(super) trait Completion: Send + Sync {
    /// `Err`: the unit is not in the journal, or may not be.
    fn complete(&self, outcome: Result<(), JournalError>);
    /// What follows, with nothing locked: whoever waits, wakes.
    fn follow_up(self: Arc<Self>);
}

/// What comes with a unit.
pub(super) type Done = Option<Arc<dyn Completion>>;

/// A unit that was added.
pub(super) type Added = Result<Position, StorageFault>;

/// Acks that nobody waits for are written after this many.
const UNWRITTEN_MAX: u64 = 64;

/// Where a broker on disk keeps what it accepts.
pub(crate) struct Store {
    /// None once it is closed: when nobody uses it any more, the directory may be opened again.
    journal: Mutex<Option<Arc<Journal<Done>>>>,
    is_left: AtomicBool,
    /// Who waits until nobody uses the journal any more.
    leaver: Mutex<Option<thread::Thread>>,
    /// Once it was closed: units before this were completed, and are as safe as was promised.
    safe_end: AtomicU64,
    /// Once it was closed: units before this were written.
    written_end: AtomicU64,
    /// Units that nobody waits for since the last was written.
    unwritten: AtomicU64,
    /// What the first failure said. It lives as long as the process, for errors are passed around by value: there is one for each disk that fails.
    fault: Mutex<Option<&'static str>>,
    pub(super) checkpoints: Checkpoints,
    pub(super) ahead: Ahead,
    /// Somebody is on the way to write a checkpoint.
    is_sent_for: AtomicBool,
    pub(super) committer: Arc<Committer>,
}

/// What a directory was found to hold.
pub(crate) struct Opened {
    pub(crate) store: Arc<Store>,
    pub(crate) recovered: Recovered,
    pub(crate) report: RecoveryReport,
}

impl Store {
    pub(crate) fn open(
        dir: &Path,
        durability: Durability,
        on_damage: OnDamage,
        progress: Progress,
    ) -> Result<Opened, OpenError> {
        let options = JournalOptions {
            on_damage: match on_damage {
                OnDamage::Refuse => journal::OnDamage::Refuse,
                OnDamage::Continue => journal::OnDamage::Continue,
            },
            ..JournalOptions::new(match durability {
                Durability::Always => journal::Durability::Always,
                Durability::Interval(interval) => journal::Durability::Interval(interval),
                Durability::Os => journal::Durability::Os,
            })
        };
        Self::open_on(Arc::new(RealDisk), dir, options, progress)
    }

    pub(crate) fn open_on(
        disk: Arc<dyn Disk>,
        dir: &Path,
        options: JournalOptions,
        mut progress: Progress,
    ) -> Result<Opened, OpenError> {
        let mut recovered = Recovered::new();
        if options.on_damage == journal::OnDamage::Continue {
            // What is found to be missing later may be what something before refers to.
            recovered.lost();
        }
        let mut archives = archiving::Found::new(disk.clone(), dir, options);
        let mut visit = |replayed: Replayed<'_>| {
            progress.note(&replayed, || archives.bytes());
            match replayed {
                Replayed::Begin { .. } => Ok(()),
                // What is lost is in the report.
                Replayed::Lost { .. } => {
                    recovered.lost();
                    Ok(())
                }
                Replayed::Chunk(bytes) => recovered.image_chunk(bytes),
                Replayed::Imaged => archives.read(&mut recovered, &mut progress),
                Replayed::Unit { bytes, .. } => recovered.unit(bytes),
            }
        };
        let opened = Journal::open(disk, dir, options, &mut visit);
        let (journal, mut recovery) =
            opened.map_err(|error| archives.fault().unwrap_or_else(|| open_error(error)))?;
        recovered.finish().map_err(rejected)?;
        let (archives, damages) = archives.finish(&recovered)?;
        recovery.damages.extend(damages);
        progress.end();
        let report = RecoveryReport {
            replayed: recovery.units,
            rewritten: recovery.rewritten,
            damaged: recovery.damages.iter().map(ToString::to_string).collect(),
            lost: recovery.damages.iter().map(|damage| damage.units.end - damage.units.start).sum(),
        };
        let interval = match options.durability {
            journal::Durability::Interval(interval) => Some(interval),
            journal::Durability::Always | journal::Durability::Os => None,
        };
        let store = Arc::new(Store {
            journal: Mutex::new(Some(Arc::new(journal))),
            is_left: AtomicBool::new(false),
            leaver: Mutex::new(None),
            safe_end: AtomicU64::new(0),
            written_end: AtomicU64::new(0),
            unwritten: AtomicU64::new(0),
            fault: Mutex::new(None),
            checkpoints: Checkpoints::new(archives),
            ahead: Ahead::new(options.durability == journal::Durability::Always),
            is_sent_for: AtomicBool::new(false),
            committer: Committer::new(interval),
        });
        store.committer.start(&store).map_err(|error| OpenError::Io {
            verb: "start a thread for",
            file: dir.display().to_string(),
            reason: error.to_string(),
        })?;
        if let Some(unit) = recovered.record_of_passing_over() {
            store.pass_over(unit);
        }
        Ok(Opened { store, recovered, report })
    }

    pub(super) fn journal(&self) -> Result<Using<'_>, JournalError> {
        let journal = self.journal.lock().clone().ok_or(JournalError::Closed)?;
        Ok(Using { store: self, journal: Some(journal) })
    }

    /// Adds a unit behind all others. Call it under the lock under which its content was decided; it takes no other but its own, and writes nothing.
    pub(super) fn add(&self, unit: &[u8], space: Space, done: Done) -> Added {
        self.add_by(|journal| journal.add(unit, space, done))
    }

    pub(super) fn add_by(&self, add: impl FnOnce(&Journal<Done>) -> Result<Position, JournalError>) -> Added {
        let added = self.journal().and_then(|journal| add(&journal));
        if added.is_ok() {
            self.committer.note_added();
        }
        added.map_err(|error| self.fault_of(&error))
    }

    pub(super) fn act(
        &self,
        act: impl FnOnce(
            &Journal<Done>,
            &mut dyn FnMut(Done, Result<(), JournalError>),
        ) -> Result<(), JournalError>,
    ) -> Result<(), JournalError> {
        let journal = self.journal()?;
        let mut completed = Vec::new();
        let outcome = act(&journal, &mut |done, outcome| {
            if outcome == Err(JournalError::NoSpace) {
                self.checkpoints.note_full();
            }
            complete(done, outcome, &mut completed);
        });
        if journal.take_refusal() {
            self.checkpoints.note_behind();
        }
        // Before others' code runs, which may let go of the broker: see `let_go`.
        drop(journal);
        completed.into_iter().for_each(Completion::follow_up);
        outcome
    }

    /// Waits until the unit is as safe as was promised, and completed. With nothing locked.
    pub(super) fn commit(&self, position: Position) -> Result<(), JournalError> {
        match self.act(|journal, act| journal.commit(position, act)) {
            Err(JournalError::Closed) => self.outcome_at_close(position, Safety::Promised),
            outcome => outcome,
        }
    }

    /// [`commit`](Self::commit), for who only says what went wrong.
    pub(super) fn make_sure(&self, position: Position) -> Result<(), StorageFault> {
        self.commit(position).map_err(|error| self.fault_of(&error))
    }

    /// It was closed meanwhile, which has done what it could for all that was added.
    fn outcome_at_close(&self, position: Position, safety: Safety) -> Result<(), JournalError> {
        let is_written = position.0 < self.written_end.load(Ordering::Acquire);
        if position.0 < self.safe_end.load(Ordering::Acquire) || (is_written && safety == Safety::Written) {
            Ok(())
        } else if is_written {
            Err(JournalError::Indeterminate("the broker was closed before it was synced".into()))
        } else {
            Err(JournalError::Closed)
        }
    }

    /// What [`make_safe`](Self::make_safe) would answer at once. None: it would have to wait.
    pub(super) fn known(&self, position: Position, safety: Safety) -> Option<Result<(), JournalError>> {
        match (self.journal(), safety) {
            (Err(_), _) => Some(self.outcome_at_close(position, safety)),
            (Ok(journal), Safety::Written) => journal.written(position),
            (Ok(journal), Safety::Promised) => journal.committed(position),
        }
    }

    /// The newest unit. None: there is none, or it is closed.
    pub(super) fn last_added(&self) -> Option<Position> {
        self.journal().ok().and_then(|journal| journal.end().0.checked_sub(1)).map(Position)
    }

    /// Waits until all that was added is as safe as was promised, or came to nothing. With nothing locked.
    pub(super) fn commit_all(&self) {
        if let Some(last) = self.last_added() {
            let _told_to_each = self.commit(last);
        }
    }

    /// Waits until all that was added survives a power cut. With nothing locked.
    pub(super) fn sync(&self) -> Result<(), JournalError> {
        self.act(|journal, act| journal.sync_all(act))
    }

    /// Whether a checkpoint is wanted, and nobody has been sent for it yet: then the caller sends somebody.
    pub(super) fn sends_for_checkpoint(&self, purpose: Purpose) -> bool {
        self.journal().is_ok_and(|journal| self.checkpoints.is_wanted(&journal, purpose))
            && !self.is_sent_for.swap(true, Ordering::AcqRel)
    }

    pub(super) fn is_at_checkpoint(&self) {
        self.is_sent_for.store(false, Ordering::Release);
    }

    /// The disk was full, and what was settled since may make some space: the caller sees to it, before somebody finds none.
    #[inline]
    pub(super) fn wants_sweep(&self) -> bool {
        self.checkpoints.is_short() && self.journal().is_ok_and(|journal| journal.wants_sweep())
    }

    pub(super) fn is_closed(&self) -> bool {
        self.journal.lock().is_none()
    }

    /// Waits until the unit survives a crash of the process. With nothing locked.
    pub(super) fn write(&self, position: Position) -> Result<(), JournalError> {
        self.unwritten.store(0, Ordering::Relaxed);
        match self.act(|journal, act| journal.write(position, act)) {
            Err(JournalError::Closed) => self.outcome_at_close(position, Safety::Written),
            outcome => outcome,
        }
    }

    /// The unit is to be written some time soon, and nobody waits for it. With nothing locked. True: it was time.
    pub(super) fn write_later(self: &Arc<Self>, position: Position) -> bool {
        let is_time = self.unwritten.fetch_add(1, Ordering::Relaxed) + 1 >= UNWRITTEN_MAX;
        if is_time && waits_for_nothing() {
            self.unwritten.store(0, Ordering::Relaxed);
            self.write_elsewhere(position);
        } else if is_time {
            // A failure is told to whoever waits for something.
            let _told_later = self.write(position);
        }
        is_time
    }

    /// Writes what was added, and accepts nothing more. It waits for the disk only if somebody else waits for it, too.
    pub(super) fn leave(&self) {
        let Ok(journal) = self.journal() else { return };
        self.say_last_words();
        if let Some(last) = journal.end().0.checked_sub(1) {
            let safety = if self.committer.is_asked() { Safety::Promised } else { Safety::Written };
            let _told_to_who_asked = self.make_safe(Position(last), safety);
            if journal.written(Position(last)).is_some_and(is_there) {
                self.written_end.store(last + 1, Ordering::Release);
            }
            if journal.committed(Position(last)).is_some_and(is_there) {
                self.safe_end.store(last + 1, Ordering::Release);
            }
        }
        drop(journal);
        self.let_go();
    }

    /// Lets go of the directory, once all others have: a commit takes no longer than the disk does, a checkpoint as long as its image. Who is called by one, such as a codec, does not wait for that
    /// one: then the directory is let go of when it ends.
    fn let_go(&self) {
        // While it can still be asked what became of each.
        self.committer.tell_what_is_known(self);
        let Some(journal) = self.journal.lock().take() else { return };
        *self.leaver.lock() = Some(thread::current());
        self.is_left.store(true, Ordering::Relaxed);
        // Pairs with the fence in `Using`: either it is not counted here any more, or it sees that somebody waits.
        fence(Ordering::SeqCst);
        let own = self.calls_here();
        while Arc::strong_count(&journal) > 1 + own {
            thread::park();
        }
        drop(journal);
        // It ends now.
        self.committer.wake();
    }

    /// While it lives, this thread may call a user's code, and use the journal once.
    pub(super) fn calling(&self) -> Calling {
        let store = std::ptr::from_ref(self).addr();
        let _thread_ends = CALLING.try_with(|calling| calling.borrow_mut().push(store));
        Calling
    }

    /// How often this thread uses the journal and was called from there.
    fn calls_here(&self) -> usize {
        let store = std::ptr::from_ref(self).addr();
        let count = |calling: &RefCell<Vec<usize>>| {
            calling.borrow().iter().filter(|caller| **caller == store).count()
        };
        // A thread that ends may have let go of it, and may hold the last handle: it is in no checkpoint.
        CALLING.try_with(count).unwrap_or(0)
    }

    /// Syncs all, and lets go of the directory.
    pub(crate) fn close(&self) -> Result<(), StorageFault> {
        self.say_last_words();
        let closed = self.act(|journal, act| {
            journal.close(act)?;
            self.written_end.store(journal.end().0, Ordering::Release);
            self.safe_end.store(journal.end().0, Ordering::Release);
            Ok(())
        });
        self.let_go();
        match closed {
            Ok(()) | Err(JournalError::Closed) => Ok(()),
            Err(error) => Err(self.fault_of(&error)),
        }
    }

    pub(crate) fn disk_bytes(&self) -> u64 {
        self.journal().map_or(0, |journal| journal.disk_bytes()) + self.checkpoints.archive_bytes()
    }

    pub(super) fn fault_of(&self, error: &JournalError) -> StorageFault {
        if *error == JournalError::NoSpace {
            return StorageFault::FULL;
        }
        let mut fault = self.fault.lock();
        let fault =
            StorageFault::new(fault.get_or_insert_with(|| Box::leak(error.to_string().into_boxed_str())));
        if matches!(error, JournalError::Indeterminate(_)) { fault.unsure() } else { fault }
    }
}

fn complete(done: Done, outcome: Result<(), JournalError>, completed: &mut Vec<Arc<dyn Completion>>) {
    if let Some(done) = done {
        done.complete(outcome);
        completed.push(done);
    }
}

crate::sync::thread_local! {
    /// The stores in whose checkpoints this thread is, by where they lie.
    static CALLING: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
}

/// See [`Store::calling`].
pub(super) struct Calling;

impl Drop for Calling {
    fn drop(&mut self) {
        let _thread_ends = CALLING.try_with(|calling| calling.borrow_mut().pop());
    }
}

/// The journal, while somebody uses it.
pub(super) struct Using<'a> {
    store: &'a Store,
    /// None while it is dropped.
    journal: Option<Arc<Journal<Done>>>,
}

impl Deref for Using<'_> {
    type Target = Journal<Done>;

    fn deref(&self) -> &Journal<Done> {
        self.journal.as_ref().expect("it is there until it is dropped")
    }
}

impl Drop for Using<'_> {
    fn drop(&mut self) {
        drop(self.journal.take());
        // Pairs with the fence in `let_go`.
        fence(Ordering::SeqCst);
        if self.store.is_left.load(Ordering::Relaxed)
            && let Some(leaver) = &*self.store.leaver.lock()
        {
            leaver.unpark();
        }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // It ends now.
        self.committer.wake();
    }
}

/// The unit was dealt with: it is in the journal, or is known not to be.
fn is_there(outcome: Result<(), JournalError>) -> bool {
    matches!(outcome, Ok(()) | Err(JournalError::NoSpace))
}

fn rejected(reason: String) -> OpenError {
    OpenError::Damaged { file: "journal".into(), offset: 0, len: 0, what: reason }
}

fn open_error(error: JournalOpenError) -> OpenError {
    match error {
        JournalOpenError::AlreadyOpen => OpenError::AlreadyOpen,
        JournalOpenError::Foreign { name } => OpenError::Foreign { name },
        JournalOpenError::Version { file, major } => {
            OpenError::Version { file, what: format!("version {major}") }
        }
        JournalOpenError::Kind { file, offset, kind } => {
            OpenError::Version { file, what: format!("a frame of kind {kind} at byte {offset}") }
        }
        JournalOpenError::Damaged(Damage { file, offset, len, what, .. }) => {
            OpenError::Damaged { file, offset, len, what: what.to_owned() }
        }
        JournalOpenError::Rejected { reason } => rejected(reason),
        JournalOpenError::Io { verb, file, error } => OpenError::Io { verb, file, reason: error.to_string() },
    }
}
