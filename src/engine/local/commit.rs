//! Transactions: the acks and publishes of several subscriptions and topics take effect together or not at all.
//!
//! What a transaction names is locked in one order (topics by incarnation, then subscriptions by number), so that no two can wait for each other; nobody else
//! holds two of these locks. Under all of them everything is asked first (does every lease hold, by the clock; is there space, net of what is acked;
//! does an id conflict), then everything is done: a conservative two-phase locking (Gray and Reuter, Transaction Processing, 1993, section 7.8). Readers take no
//! lock to see the end of a topic: where there are several topics, one gate shows them all at one instant. No user code runs meanwhile.

use std::any::Any;
use std::ops::DerefMut;
use std::sync::Arc;

use crate::contain::drop_contained;
use crate::delivery::hand_out::Ticket;
use crate::delivery::ledger::Ledger;
use crate::engine::local::ahead::Given;
use crate::engine::local::broker::{BrokerCore, Phase};
use crate::engine::local::effect::Entry;
use crate::engine::local::publish::{Aftermath, Append, Parcel, refuse_for_space};
use crate::engine::local::receive::Held;
use crate::engine::local::staging::{Part, Staged, Together, under_way};
use crate::engine::local::store::Store;
use crate::engine::local::subscription::{After, AfterPlain, Desk, SubscriptionCore};
use crate::engine::local::topic::{TopicCore, TopicState};
use crate::engine::waiters::WaitingRoom;
use crate::error::{CommitReason, PublishErrorKind, RecvError};
use crate::few::Few;
use crate::journal::{Position, Space as JournalSpace};
use crate::log::Gate;
use crate::message::MessageId;
use crate::sequence::Sequence;
use crate::sync::MutexGuard;
use crate::time::Tick;

/// The leases of one subscription that a transaction acks.
pub(crate) trait Input: Any + Send + Sync {
    fn book(&self) -> u64;
    fn len(&self) -> usize;
    fn lock(&mut self) -> Box<dyn LockedInput + '_>;
    /// [`lock`](Self::lock) for as long as `act` runs: nothing is allocated for it.
    fn with_lock(&mut self, act: &mut dyn FnMut(&mut dyn LockedInput));
    /// After a commit, with nothing locked.
    fn follow_up(&mut self);
    /// Whether it acks this message of this topic.
    fn acks(&self, incarnation: u64, sequence: Sequence) -> bool;
    /// When the first of the leases ends.
    fn first_deadline(&self) -> Option<Tick>;
    /// The transaction is no more. `spared`: no attempt is spent.
    fn give_back(&mut self, spared: bool);
    /// On disk: the unit is safe, and what was acked is let go. With nothing locked.
    fn let_go(&mut self);
}

pub(crate) trait LockedInput {
    fn ended(&self) -> Option<CommitReason>;
    /// How many cannot be acked.
    fn expired(&self, now: Tick) -> u64;
    /// Lack of space keeps them: if they run out, no attempt is spent.
    fn spare(&mut self);
    /// Which of this topic's messages are acked.
    fn acked_of(&self, incarnation: u64, sequences: &mut Vec<Sequence>);
    fn settle(&mut self);
    /// On disk: what is acked.
    fn record(&self, unit: &mut Vec<u8>);
    /// On disk: no deadline ends the leases until the unit is safe, or came to nothing, which this is to be told.
    fn stage(&mut self) -> Arc<dyn Part>;
}

/// The messages that a transaction publishes to one topic.
pub(crate) trait Output: Any + Send + Sync {
    fn incarnation(&self) -> u64;
    fn len(&self) -> usize;
    fn lock(&mut self) -> Box<dyn LockedOutput + '_>;
    /// [`lock`](Self::lock) for as long as `act` runs: nothing is allocated for it.
    fn with_lock(&mut self, act: &mut dyn FnMut(&mut dyn LockedOutput));
    /// After a commit, with nothing locked.
    fn follow_up(&mut self);
    fn receipt(&self, nth: usize) -> Option<(MessageId, bool)>;
    fn space(&self) -> Arc<dyn Space>;
    /// On disk: the unit came to nothing, and the messages come back.
    fn take_back(&mut self);
}

pub(crate) trait LockedOutput {
    fn incarnation(&self) -> u64;
    fn ended(&self) -> Option<CommitReason>;
    fn admit(&mut self, now: Tick) -> Result<(), CommitReason>;
    fn is_limited(&self) -> bool;
    /// None: there is space, once these messages of the topic's own have been acked.
    fn refuse(&self, acked: &[Sequence]) -> Option<Append>;
    fn write(&mut self, now: Tick);
    fn show(&self);
    fn show_behind(&self, gate: &Arc<Gate>);
    fn ungate(&self);
    /// On disk: what is to be waited for, if a repeat is of a message that is not in the log yet.
    fn under_way(&self) -> Option<Position>;
    /// On disk: what is new.
    fn record(&mut self, now: Tick, unit: &mut Vec<u8>) -> Given;
    /// On disk: it waits for the unit that was added there.
    fn stage(&mut self, now: Tick, position: Position) -> Arc<dyn Part>;
}

/// Where a topic's space is waited for.
pub(crate) trait Space: Send + Sync {
    fn room(&self) -> &WaitingRoom;
    /// Nothing takes space that a filter or a deadline would have let go.
    fn catch_up(&self);
    /// `spared`: the books that ack it.
    fn drop_oldest(&self, sequence: Sequence, spared: &dyn Fn(u64) -> bool);
    fn watch_leases(&self);
    fn call_at(&self, deadline: Tick);
}

/// See [`Input`].
pub(crate) struct Leases<E> {
    core: Arc<SubscriptionCore<E>>,
    held: Few<Held<E>>,
    after: Settled,
}

/// What is to follow from the acks of a commit.
enum Settled {
    Nothing,
    Plainly(AfterPlain),
    /// Boxed, because it is rare and large.
    With(Box<After>),
}

struct LockedLeases<'a, E> {
    core: &'a Arc<SubscriptionCore<E>>,
    desk: MutexGuard<'a, Desk<E>>,
    held: &'a [Held<E>],
    after: &'a mut Settled,
}

impl<E: Send + Sync + 'static> Leases<E> {
    pub(crate) fn new(core: Arc<SubscriptionCore<E>>) -> Self {
        Leases { core, held: Few::new(), after: Settled::Nothing }
    }

    pub(crate) fn add(&mut self, held: Held<E>) {
        self.held.push(held);
    }

    fn locked(&mut self) -> LockedLeases<'_, E> {
        self.sort();
        let Leases { core, held, after } = self;
        LockedLeases { desk: core.desk.lock(), core, held: held.as_slice(), after }
    }

    /// A key's messages are acked in their order.
    fn sort(&mut self) {
        let held = self.held.as_mut_slice();
        if !held.is_sorted_by_key(|held| held.ticket.sequence) {
            held.sort_by_key(|held| held.ticket.sequence);
        }
    }

    fn take_tickets(&mut self) -> Vec<Ticket> {
        // The messages go first: what follows may let go of the log's last hold on them.
        self.sort();
        let held = self.held.take();
        let tickets = held.iter().map(|held| held.ticket).collect();
        drop(held);
        tickets
    }
}

impl<E: Send + Sync + 'static> Input for Leases<E> {
    fn book(&self) -> u64 {
        self.core.id
    }

    fn len(&self) -> usize {
        self.held.len()
    }

    fn lock(&mut self) -> Box<dyn LockedInput + '_> {
        Box::new(self.locked())
    }

    fn with_lock(&mut self, act: &mut dyn FnMut(&mut dyn LockedInput)) {
        act(&mut self.locked());
    }

    fn follow_up(&mut self) {
        let held = self.held.take();
        match std::mem::replace(&mut self.after, Settled::Nothing) {
            Settled::Nothing => {}
            Settled::Plainly(after) => {
                if let (Some(only), _) = held.into_parts() {
                    self.core.follow_up_plain(after, only);
                }
            }
            Settled::With(after) => {
                // First the messages: what follows may let go of the log's last hold on them.
                drop(held);
                self.core.follow_up(*after);
            }
        }
    }

    fn acks(&self, incarnation: u64, sequence: Sequence) -> bool {
        self.core.topic.log.incarnation() == incarnation
            && self.held.iter().any(|held| held.ticket.sequence == sequence)
    }

    fn first_deadline(&self) -> Option<Tick> {
        let desk = self.core.desk.lock();
        self.held.iter().filter_map(|held| desk.ledger.deadline_of(held.ticket)).min()
    }

    fn let_go(&mut self) {
        drop(self.held.take());
    }

    fn give_back(&mut self, spared: bool) {
        if self.held.is_empty() {
            return;
        }
        let tickets = self.take_tickets();
        let _stale = if spared { self.core.release_all(&tickets) } else { self.core.nack_all(&tickets) };
    }
}

impl<E: Send + Sync + 'static> LockedInput for LockedLeases<'_, E> {
    fn ended(&self) -> Option<CommitReason> {
        let deleted = self.desk.closed.then_some(CommitReason::SubscriptionDeleted);
        self.core.topic.ended().map(reason_of).or(deleted)
    }

    fn expired(&self, now: Tick) -> u64 {
        self.desk.ledger.cannot_commit(self.held.iter().map(|held| held.ticket), now)
    }

    fn spare(&mut self) {
        for held in self.held {
            self.desk.ledger.spare(held.ticket);
        }
    }

    fn acked_of(&self, incarnation: u64, sequences: &mut Vec<Sequence>) {
        if self.core.topic.log.incarnation() == incarnation {
            sequences.extend(self.held.iter().map(|held| held.ticket.sequence));
        }
    }

    fn record(&self, unit: &mut Vec<u8>) {
        self.core.record_acks(self.held.iter().map(|held| held.ticket.sequence), unit);
    }

    fn stage(&mut self) -> Arc<dyn Part> {
        let tickets: Vec<_> = self.held.iter().map(|held| held.ticket).collect();
        tickets.iter().for_each(|&ticket| self.desk.ledger.prepare_asked(ticket));
        Entry::part(self.core.clone(), move |ledger, is_safe| {
            let end = if is_safe { Ledger::finish_commit } else { Ledger::abort_commit };
            tickets.iter().for_each(|&ticket| end(ledger, ticket));
        })
    }

    fn settle(&mut self) {
        if let [only] = self.held
            && !self.core.is_watched()
            && self.desk.ledger.ack_plain(only.ticket)
        {
            *self.after = Settled::Plainly(self.core.collect_plain_ack(&mut self.desk, only));
            return;
        }
        for held in self.held {
            let done = self.desk.ledger.ack(held.ticket);
            assert!(done, "what was asked under this lock holds under it");
        }
        let segment = match self.held {
            [only] => Some(&**only.spot.segment()),
            _ => None,
        };
        *self.after = Settled::With(Box::new(self.core.collect(&mut self.desk, segment)));
    }
}

/// See [`Output`].
pub(crate) struct Posts<E> {
    core: Arc<TopicCore<E>>,
    parcels: Few<Parcel<E>>,
    after: Aftermath,
    /// On disk, while its unit is under way.
    staged: Option<Arc<Staged<E>>>,
}

struct LockedPosts<'a, E> {
    core: &'a Arc<TopicCore<E>>,
    state: MutexGuard<'a, TopicState<E>>,
    parcels: &'a mut [Parcel<E>],
    after: &'a mut Aftermath,
    staged: &'a mut Option<Arc<Staged<E>>>,
}

impl<E: Send + Sync + 'static> Posts<E> {
    pub(crate) fn new(core: Arc<TopicCore<E>>) -> Self {
        Posts { core, parcels: Few::new(), after: Aftermath::default(), staged: None }
    }

    pub(crate) fn add(&mut self, parcel: Parcel<E>) {
        self.parcels.push(parcel);
    }

    fn locked(&mut self) -> LockedPosts<'_, E> {
        let Posts { core, parcels, after, staged } = self;
        LockedPosts { state: core.state.lock(), core, parcels: parcels.as_mut_slice(), after, staged }
    }
}

impl<E> Posts<E> {
    /// Those that were not published, or that nobody keeps: their `Drop` is the user's code.
    fn drop_messages(&mut self) {
        for parcel in self.parcels.as_mut_slice() {
            if let Some(message) = parcel.message.take() {
                drop_contained(message);
            }
        }
    }
}

impl<E> Drop for Posts<E> {
    /// One by one: several that panic in one go would be the end of the process.
    fn drop(&mut self) {
        self.drop_messages();
    }
}

impl<E: Send + Sync + 'static> Output for Posts<E> {
    fn incarnation(&self) -> u64 {
        self.core.log.incarnation()
    }

    fn len(&self) -> usize {
        self.parcels.len()
    }

    fn lock(&mut self) -> Box<dyn LockedOutput + '_> {
        Box::new(self.locked())
    }

    fn with_lock(&mut self, act: &mut dyn FnMut(&mut dyn LockedOutput)) {
        act(&mut self.locked());
    }

    fn follow_up(&mut self) {
        // What nobody keeps, and repeats.
        self.drop_messages();
        self.core.follow_up_publish(&std::mem::take(&mut self.after));
    }

    fn receipt(&self, nth: usize) -> Option<(MessageId, bool)> {
        self.parcels.as_slice().get(nth)?.receipt
    }

    fn space(&self) -> Arc<dyn Space> {
        Arc::new(self.core.clone())
    }

    fn take_back(&mut self) {
        if let Some(staged) = self.staged.take() {
            staged.take_back(self.parcels.as_mut_slice());
        }
    }
}

impl<E: Send + Sync + 'static> LockedOutput for LockedPosts<'_, E> {
    fn incarnation(&self) -> u64 {
        self.core.log.incarnation()
    }

    fn ended(&self) -> Option<CommitReason> {
        self.core.ended().map(reason_of)
    }

    fn admit(&mut self, now: Tick) -> Result<(), CommitReason> {
        self.core.admit(&mut self.state, self.parcels, now).map_err(CommitReason::from)
    }

    fn is_limited(&self) -> bool {
        self.state.occupancy.is_some()
    }

    fn refuse(&self, acked: &[Sequence]) -> Option<Append> {
        let under_way = (self.state.staging.messages, self.state.staging.bytes);
        refuse_for_space(&self.state, self.parcels, acked, under_way)
    }

    fn write(&mut self, now: Tick) {
        self.core.write(&mut self.state, self.parcels, now, self.after);
    }

    fn show(&self) {
        self.core.log.publish_tail(&self.state.writer);
    }

    fn show_behind(&self, gate: &Arc<Gate>) {
        self.core.log.publish_tail_behind(gate, &self.state.writer);
    }

    fn ungate(&self) {
        self.core.log.ungate();
    }

    fn under_way(&self) -> Option<Position> {
        under_way(&self.state, self.parcels)
    }

    fn record(&mut self, now: Tick, unit: &mut Vec<u8>) -> Given {
        self.core.record_new(&mut self.state, self.parcels, now, unit);
        self.state.given_with(self.parcels.len() as u64)
    }

    fn stage(&mut self, now: Tick, position: Position) -> Arc<dyn Part> {
        let staged = self.core.stage_part(&mut self.state, self.parcels, now, position);
        *self.staged = Some(staged.clone());
        staged
    }
}

impl<E: Send + Sync + 'static> Space for Arc<TopicCore<E>> {
    fn room(&self) -> &WaitingRoom {
        &self.space
    }

    fn catch_up(&self) {
        TopicCore::catch_up(self);
    }

    fn drop_oldest(&self, sequence: Sequence, spared: &dyn Fn(u64) -> bool) {
        TopicCore::drop_oldest(self, sequence, spared);
    }

    fn watch_leases(&self) {
        TopicCore::watch_leases(self);
    }

    fn call_at(&self, deadline: Tick) {
        TopicCore::call_at(self, deadline);
    }
}

/// What one attempt to commit came to.
pub(super) enum Attempt {
    Done,
    Refused(CommitReason),
    /// This topic is full. How it says what is to be done.
    Lacks(usize, Append),
    /// On disk: this is to be waited for, and then to be tried again.
    UnderWay(Position),
    /// On disk: all is done when this is safe.
    Staged(Position),
}

/// Asks, under every lock, whether all can be done; if so, does it. Nothing is changed otherwise, but that lack of space, if this attempt is the last before it is told, spares the leases.
pub(super) fn attempt(
    broker: &BrokerCore,
    inputs: &mut [Box<dyn Input>],
    outputs: &mut [Box<dyn Output>],
    is_last: bool,
) -> Attempt {
    if let ([input], [output]) = (&mut *inputs, &mut *outputs) {
        // Consume, transform, produce: most transactions.
        let mut attempted = None;
        output.with_lock(&mut |output| {
            input.with_lock(&mut |input| {
                attempted = Some(attempt_locked(broker, &mut [input], &mut [&mut *output], is_last));
            });
        });
        return attempted.unwrap_or(Attempt::Done);
    }
    let mut outputs: Vec<_> = outputs.iter_mut().map(|output| output.lock()).collect();
    let mut inputs: Vec<_> = inputs.iter_mut().map(|input| input.lock()).collect();
    attempt_locked(broker, &mut inputs, &mut outputs, is_last)
}

fn attempt_locked<'a, 'b, I, O>(
    broker: &BrokerCore,
    inputs: &mut [I],
    outputs: &mut [O],
    is_last: bool,
) -> Attempt
where
    I: DerefMut<Target = dyn LockedInput + 'a>,
    O: DerefMut<Target = dyn LockedOutput + 'b>,
{
    // Only now: time passes while one waits for locks.
    let now = broker.now();
    if let Err(reason) = ask(broker, inputs, outputs, now) {
        return Attempt::Refused(reason);
    }
    if let Some(position) =
        broker.store.as_ref().and_then(|_| outputs.iter().find_map(|output| output.under_way()))
    {
        return Attempt::UnderWay(position);
    }
    if let Some(lack) = find_lack(inputs, outputs) {
        if is_last && matches!(lack, Attempt::Lacks(_, Append::MustWait | Append::Refused(_))) {
            // Under the locks under which they were found to hold: no lease runs out in between at the subscriber's cost.
            inputs.iter_mut().for_each(|input| input.spare());
        }
        return lack;
    }
    if let Some(store) = &broker.store {
        return stage(store, inputs, outputs, now);
    }
    outputs.iter_mut().for_each(|output| output.write(now));
    match &*outputs {
        [] => {}
        [only] => only.show(),
        several => {
            let gate = Gate::new();
            several.iter().for_each(|output| output.show_behind(&gate));
            gate.open();
            several.iter().for_each(|output| output.ungate());
        }
    }
    // Last: how far a book has come is also read without its lock, and who reads it so must find what was published.
    inputs.iter_mut().for_each(|input| input.settle());
    Attempt::Done
}

/// One unit of all that it publishes and acks, which takes effect when the unit is safe.
fn stage<'a, 'b, I, O>(store: &Store, inputs: &mut [I], outputs: &mut [O], now: Tick) -> Attempt
where
    I: DerefMut<Target = dyn LockedInput + 'a>,
    O: DerefMut<Target = dyn LockedOutput + 'b>,
{
    let mut unit = Vec::new();
    let given = outputs.iter_mut().map(|output| output.record(now, &mut unit));
    let given = given.max_by_key(|given| given.sequence).unwrap_or(Given::NOTHING);
    inputs.iter().for_each(|input| input.record(&mut unit));
    if unit.is_empty() {
        // Repeats only.
        outputs.iter_mut().for_each(|output| output.write(now));
        return Attempt::Done;
    }
    let together = Arc::new(Together::new());
    let added = store.add_giving(&unit, given, JournalSpace::Ordinary, Some(together.clone()));
    let position = match added {
        Ok(position) => position,
        Err(fault) => return Attempt::Refused(CommitReason::Storage { fault }),
    };
    let messages = outputs.iter_mut().map(|output| output.stage(now, position)).collect();
    let acks = inputs.iter_mut().map(|input| input.stage()).collect();
    together.fill(messages, acks);
    Attempt::Staged(position)
}

/// Which topic is full, if one is. What drops messages comes last: they are not to be dropped for a commit that something else stands against.
fn find_lack<'a, 'b, I, O>(inputs: &[I], outputs: &[O]) -> Option<Attempt>
where
    I: DerefMut<Target = dyn LockedInput + 'a>,
    O: DerefMut<Target = dyn LockedOutput + 'b>,
{
    let mut drops = None;
    for (n, output) in outputs.iter().enumerate().filter(|(_, output)| output.is_limited()) {
        let mut acked = Vec::new();
        inputs.iter().for_each(|input| input.acked_of(output.incarnation(), &mut acked));
        acked.sort_unstable();
        match output.refuse(&acked) {
            None => {}
            Some(Append::Refused(kind)) if kind != PublishErrorKind::Full => {
                return Some(Attempt::Refused(kind.into()));
            }
            Some(drop @ Append::MustDrop(_)) => drops = drops.or(Some(Attempt::Lacks(n, drop))),
            Some(lack) => return Some(Attempt::Lacks(n, lack)),
        }
    }
    drops
}

/// Everything that can stand against it but lack of space.
fn ask<'a, 'b, I, O>(
    broker: &BrokerCore,
    inputs: &[I],
    outputs: &mut [O],
    now: Tick,
) -> Result<(), CommitReason>
where
    I: DerefMut<Target = dyn LockedInput + 'a>,
    O: DerefMut<Target = dyn LockedOutput + 'b>,
{
    // What is outstanding may be committed while the broker drains; what only publishes is a new publish.
    if broker.phase() == Phase::Closed || (broker.phase() == Phase::Draining && inputs.is_empty()) {
        return Err(CommitReason::Closed);
    }
    let ended = outputs.iter().find_map(|output| output.ended());
    if let Some(reason) = ended.or_else(|| inputs.iter().find_map(|input| input.ended())) {
        return Err(reason);
    }
    let count = inputs.iter().map(|input| input.expired(now)).sum();
    if count > 0 {
        return Err(CommitReason::LeaseExpired { count });
    }
    outputs.iter_mut().try_for_each(|output| output.admit(now))
}

fn reason_of(ended: RecvError) -> CommitReason {
    match ended {
        RecvError::Closed => CommitReason::Closed,
        RecvError::Deleted => CommitReason::TopicDeleted,
        RecvError::Storage { fault } => CommitReason::Storage { fault },
    }
}
