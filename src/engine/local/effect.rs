//! Changes that are recorded first and take effect when their unit is safe: options, deletions, what leaves a book together with something else.
//!
//! They take effect in the order of their units, and before anybody says that the journal is safe up to there: a checkpoint that counts from a position shows all
//! that the units before it have changed.

use std::sync::Arc;

use crate::delivery::ledger::Ledger;
use crate::engine::local::ahead::Given;
use crate::engine::local::staging::{Held, Part};
use crate::engine::local::store::{Added, Completion, Store};
use crate::engine::local::subscription::{After, Desk, SubscriptionCore};
use crate::error::StorageFault;
use crate::journal::{JournalError, Position, Space};
use crate::log::Gate;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{Mutex, MutexGuard};

/// What follows from a change, with nothing locked.
pub(super) type FollowUp = Box<dyn FnOnce() + Send>;

/// See [`Store::put_applied`].
pub(super) struct Effect<A> {
    apply: Mutex<Option<A>>,
    follow_up: Mutex<Option<FollowUp>>,
}

impl<A: FnOnce(bool) -> FollowUp + Send + 'static> Effect<A> {
    /// `apply` is told whether the unit is safe.
    pub(super) fn of(apply: A) -> Arc<dyn Completion> {
        Arc::new(Effect { apply: Mutex::new(Some(apply)), follow_up: Mutex::new(None) })
    }
}

impl<A: FnOnce(bool) -> FollowUp + Send> Completion for Effect<A> {
    fn complete(&self, outcome: Result<(), JournalError>) {
        let apply = self.apply.lock().take();
        if let Some(apply) = apply {
            *self.follow_up.lock() = Some(apply(outcome.is_ok()));
        }
    }

    fn follow_up(self: Arc<Self>) {
        let follow_up = self.follow_up.lock().take();
        if let Some(follow_up) = follow_up {
            follow_up();
        }
    }
}

/// See [`Store::put_in_turn`].
pub(super) enum Turn {
    /// This is its unit.
    Added(Position),
    /// This one is not decided yet.
    After(Position),
}

impl Store {
    /// Puts one change of something at a time, each decided by what the one before came to: `put` adds its unit, or says which one it comes after.
    /// Waits until the change counts. With nothing locked.
    pub(super) fn put_in_turn(
        &self,
        mut put: impl FnMut() -> Result<Turn, StorageFault>,
    ) -> Result<(), StorageFault> {
        loop {
            match put()? {
                Turn::Added(position) => return self.make_sure(position),
                Turn::After(earlier) => match self.commit(earlier) {
                    // It counts, or came to nothing for want of space.
                    Ok(()) | Err(JournalError::NoSpace) => {}
                    Err(error) => return Err(self.fault_of(&error)),
                },
            }
        }
    }

    /// Adds a unit of its own, which takes effect by `apply` when it is as safe as was promised, and waits until then. With nothing locked.
    ///
    /// `apply` takes what locks it needs, and calls no code of a user's; what it gives is called with nothing locked.
    pub(super) fn put_applied(
        &self,
        unit: &[u8],
        space: Space,
        apply: impl FnOnce() -> FollowUp + Send + 'static,
    ) -> Result<(), StorageFault> {
        let effect = Effect::of(move |is_safe| if is_safe { apply() } else { Box::new(move || drop(apply)) });
        let position = self.add(unit, space, Some(effect))?;
        self.make_sure(position)
    }
}

/// Whether what is created is safe yet. It can be found before: who finds it waits.
pub(crate) struct Creation(AtomicU64);

impl Creation {
    const SAFE: u64 = u64::MAX;
    const FAILED: u64 = u64::MAX - 1;
    /// Nobody else can find it yet.
    const BEGUN: u64 = u64::MAX - 2;

    /// Of what needs no unit, or was read back.
    pub(super) fn done() -> Self {
        Creation(AtomicU64::new(Self::SAFE))
    }

    /// Adds the unit of `created`, whose creation `of` gives, with the number that it gives. Under the lock that hides it.
    pub(super) fn add<C: Send + Sync + 'static>(
        store: &Store,
        unit: &[u8],
        given: Given,
        created: &Arc<C>,
        of: fn(&C) -> &Creation,
    ) -> Added {
        of(created).0.store(Self::BEGUN, Ordering::Release);
        let this = created.clone();
        let effect = Effect::of(move |is_safe| -> FollowUp {
            let end = if is_safe { Self::SAFE } else { Self::FAILED };
            of(&this).0.store(end, Ordering::Release);
            Box::new(move || drop(this))
        });
        let position = store.add_giving(unit, given, Space::Ordinary, Some(effect))?;
        // It may have ended by now.
        let _ended =
            of(created).0.compare_exchange(Self::BEGUN, position.0, Ordering::AcqRel, Ordering::Acquire);
        Ok(position)
    }

    /// All units of what is not safe yet come after the position of a checkpoint that is being made, and tell of its creation.
    pub(super) fn is_safe(&self) -> bool {
        self.0.load(Ordering::Acquire) == Self::SAFE
    }

    /// Waits until what is created is as safe as was promised. With nothing locked.
    pub(super) fn wait(&self, store: &Store) -> Result<(), StorageFault> {
        match self.0.load(Ordering::Acquire) {
            Self::SAFE => return Ok(()),
            Self::FAILED | Self::BEGUN => {}
            position => store.make_sure(Position(position))?,
        }
        if self.0.load(Ordering::Acquire) == Self::SAFE { Ok(()) } else { Err(StorageFault::FULL) }
    }
}

/// A change in a book that takes effect with the unit that says what it settles: its own, or that of something else.
pub(super) struct Entry<E, A> {
    core: Arc<SubscriptionCore<E>>,
    /// With whether the unit is safe.
    apply: Mutex<Option<A>>,
    after: Mutex<Option<After>>,
}

impl<E: Send + Sync + 'static, A: FnOnce(&mut Ledger, bool) + Send + 'static> Entry<E, A> {
    pub(super) fn part(core: Arc<SubscriptionCore<E>>, apply: A) -> Arc<dyn Part> {
        Arc::new(Self::new(core, apply))
    }

    /// Of a unit of its own.
    pub(super) fn alone(core: Arc<SubscriptionCore<E>>, apply: A) -> Arc<dyn Completion> {
        Arc::new(Self::new(core, apply))
    }

    fn new(core: Arc<SubscriptionCore<E>>, apply: A) -> Self {
        Entry { core, apply: Mutex::new(Some(apply)), after: Mutex::new(None) }
    }
}

impl<E: Send + Sync + 'static, A: FnOnce(&mut Ledger, bool) + Send> Entry<E, A> {
    fn enter_in(&self, desk: &mut Desk<E>, is_safe: bool) {
        let Some(apply) = self.apply.lock().take() else { return };
        let core = &self.core;
        let change = |desk: &mut Desk<E>| {
            apply(&mut desk.ledger, is_safe);
            core.go_on_with_acks(desk);
        };
        // What follows from a unit that came to nothing is in no unit.
        let after = core.change_in(desk, change, !is_safe);
        *self.after.lock() = after;
    }
}

struct HeldEntry<'a, E, A> {
    entry: &'a Entry<E, A>,
    desk: MutexGuard<'a, Desk<E>>,
}

impl<E: Send + Sync + 'static, A: FnOnce(&mut Ledger, bool) + Send> Held for HeldEntry<'_, E, A> {
    fn enter(mut self: Box<Self>) {
        let this = &mut *self;
        this.entry.enter_in(&mut this.desk, true);
    }
}

impl<E: Send + Sync + 'static, A: FnOnce(&mut Ledger, bool) + Send + 'static> Completion for Entry<E, A> {
    fn complete(&self, outcome: Result<(), JournalError>) {
        self.enter(outcome.is_ok(), None);
    }

    fn follow_up(self: Arc<Self>) {
        Part::follow_up(self);
    }
}

impl<E: Send + Sync + 'static, A: FnOnce(&mut Ledger, bool) + Send + 'static> Part for Entry<E, A> {
    fn enter(&self, is_safe: bool, _gate: Option<&Arc<Gate>>) {
        self.enter_in(&mut self.core.desk.lock(), is_safe);
    }

    fn hold(&self) -> Option<Box<dyn Held + '_>> {
        Some(Box::new(HeldEntry { entry: self, desk: self.core.desk.lock() }))
    }

    fn ungate(&self) {}

    fn follow_up(self: Arc<Self>) {
        let after = self.after.lock().take();
        if let Some(after) = after {
            self.core.follow_up(after);
        }
    }
}
