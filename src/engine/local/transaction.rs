//! What a transaction holds, how its commit waits for space, and how it is rolled back.

use std::any::Any;
use std::sync::Arc;

use crate::contain::drop_contained;
use crate::engine::local::broker::BrokerCore;
use crate::engine::local::commit::{Attempt, Input, Leases, Output, Posts, Space, attempt};
use crate::engine::local::publish::Append;
use crate::engine::local::receive::Held;
use crate::engine::local::subscription::SubscriptionCore;
use crate::engine::local::topic::{COMMITS, TopicCore};
use crate::engine::waiters::Look;
use crate::error::CommitReason;
use crate::few::Few;
use crate::journal::{JournalError, Position};
use crate::message::{Message, MessageId};
use crate::options::DeliveryMode;
use crate::time::Tick;

/// Acks and publishes that are yet to take effect.
pub(crate) struct TransactionCore {
    broker: Arc<BrokerCore>,
    /// By the number of the subscription.
    inputs: Few<Box<dyn Input>>,
    /// By the topic's incarnation.
    outputs: Few<Box<dyn Output>>,
    /// What most transactions do not have.
    rare: Option<Box<Rare>>,
    /// A commit failed for lack of space: then giving up spends no attempt.
    spared: bool,
    /// On disk: its unit, which decides whether it is committed, is under way.
    staged: Option<Position>,
}

#[derive(Default)]
struct Rare {
    /// Where there are several topics: that of each message, in the order in which they were given.
    order: Vec<u64>,
    /// Leases of other brokers.
    strangers: Vec<Box<dyn Input>>,
    /// Why no commit can succeed, if that is known.
    doomed: Option<CommitReason>,
}

/// What a commit in waiting is to look at.
enum Verdict {
    Done,
    Failed(CommitReason),
    /// Another topic is full now.
    Elsewhere(usize),
    /// On disk: the disk is to answer first.
    OnDisk(Awaited),
}

/// What a commit waits for.
enum Awaited {
    /// What it repeats; then it is to be tried again.
    Repeated(Position),
    /// Its own unit.
    Staged(Position),
}

impl Awaited {
    fn position(&self) -> Position {
        let (Awaited::Repeated(position) | Awaited::Staged(position)) = *self;
        position
    }
}

impl TransactionCore {
    pub(crate) fn new(broker: Arc<BrokerCore>) -> Self {
        TransactionCore {
            broker,
            inputs: Few::new(),
            outputs: Few::new(),
            rare: None,
            spared: false,
            staged: None,
        }
    }

    fn strangers(&self) -> &[Box<dyn Input>] {
        self.rare.as_ref().map_or(&[], |rare| &rare.strangers)
    }

    fn doom(&mut self, reason: CommitReason) {
        self.rare.get_or_insert_default().doomed = Some(reason);
    }

    pub(crate) fn acks(&self) -> usize {
        self.inputs.iter().chain(self.strangers()).map(|input| input.len()).sum()
    }

    pub(crate) fn publishes(&self) -> usize {
        self.outputs.iter().map(|output| output.len()).sum()
    }

    pub(crate) fn ack<E: Send + Sync + 'static>(
        &mut self,
        core: &Arc<SubscriptionCore<E>>,
        held: impl IntoIterator<Item = Held<E>>,
    ) {
        if !Arc::ptr_eq(&core.topic.broker, &self.broker) {
            self.doom(CommitReason::OtherBroker);
            // Another broker has its own numbers. Nothing of it is ever locked here, but it is to get its messages back.
            let mut leases = Leases::new(core.clone());
            held.into_iter().for_each(|held| leases.add(held));
            self.rare.get_or_insert_default().strangers.push(Box::new(leases));
            return;
        }
        if core.mode == DeliveryMode::AtMostOnce {
            // Settled by their hand-outs: there is nothing to commit.
            return held.into_iter().for_each(drop);
        }
        let at =
            self.inputs.place_for(|input| input.book().cmp(&core.id), || Box::new(Leases::new(core.clone())));
        let input: &mut dyn Any = &mut **at;
        match input.downcast_mut::<Leases<E>>() {
            Some(leases) => held.into_iter().for_each(|held| leases.add(held)),
            None => unreachable!("a subscription's number is its own"),
        }
    }

    pub(crate) fn publish<E: Send + Sync + 'static>(
        &mut self,
        core: &Arc<TopicCore<E>>,
        message: Message<E>,
    ) {
        if !Arc::ptr_eq(&core.broker, &self.broker) {
            self.doom(CommitReason::OtherBroker);
            return drop_contained(message);
        }
        let parcel = match core.parcel(message) {
            Ok(parcel) => parcel,
            Err(refusal) => {
                self.doom(match refusal.encode_error {
                    Some(error) => CommitReason::Encode { error },
                    None => refusal.kind.into(),
                });
                return drop_contained(refusal.message);
            }
        };
        let incarnation = core.log.incarnation();
        let first = self.outputs.iter().next().map(|only| (only.incarnation(), only.len()));
        let at = self.outputs.place_for(
            |output| output.incarnation().cmp(&incarnation),
            || Box::new(Posts::new(core.clone())),
        );
        let output: &mut dyn Any = &mut **at;
        match output.downcast_mut::<Posts<E>>() {
            Some(posts) => posts.add(parcel),
            None => unreachable!("an incarnation is never reused"),
        }
        match (first, self.outputs.len()) {
            (_, 0 | 1) => {}
            (Some((first, count)), _) => {
                let order = &mut self.rare.get_or_insert_default().order;
                if order.is_empty() {
                    // All so far went to the one topic.
                    order.resize(count, first);
                }
                order.push(incarnation);
            }
            (None, _) => unreachable!("the second topic comes after the first"),
        }
    }

    /// Commits, and does all that follows. `waits`: for space, until the first lease would end.
    pub(crate) fn commit(&mut self, waits: bool) -> Result<(), CommitReason> {
        let mut lacking = match self.try_all() {
            Verdict::Done => return Ok(()),
            Verdict::Failed(reason) => return Err(reason),
            Verdict::Elsewhere(lacking) => lacking,
            Verdict::OnDisk(_) => unreachable!("it has waited for the disk"),
        };
        if !waits {
            return Err(CommitReason::Full);
        }
        let _waits = self.broker.note_commit();
        let until = self.first_deadline();
        let line = self.broker.line.clone();
        loop {
            let space = self.outputs.as_slice()[lacking].space();
            let verdict = space.room().wait(COMMITS, || {
                let looked = self.look(&*space, lacking, until, line.is_manual(), Self::try_all);
                looked.unwrap_or_else(|| Look::Nothing {
                    until: until.and_then(|until| line.instant_of(until)),
                })
            });
            match verdict {
                Verdict::Done => return Ok(()),
                Verdict::Failed(reason) => return Err(reason),
                Verdict::Elsewhere(other) => lacking = other,
                Verdict::OnDisk(_) => unreachable!("it has waited for the disk"),
            }
        }
    }

    /// One look of a commit that waits for this topic's space. None: it goes on waiting.
    fn look(
        &mut self,
        space: &dyn Space,
        lacking: usize,
        until: Option<Tick>,
        by_timer: bool,
        attempt: impl FnOnce(&mut Self) -> Verdict,
    ) -> Option<Look<Verdict>> {
        if until.is_some_and(|until| self.broker.now() >= until) {
            return Some(Look::GaveUp(Verdict::Failed(CommitReason::Full)));
        }
        match attempt(self) {
            // On disk it has taken its space, too.
            done @ (Verdict::Done | Verdict::OnDisk(Awaited::Staged(_))) => Some(Look::Found(done)),
            Verdict::Elsewhere(same) if same == lacking => {
                space.watch_leases();
                if let Some(until) = until
                    && by_timer
                {
                    space.call_at(until);
                }
                None
            }
            // Also if it is elsewhere: a wake that reached us here is another's.
            other => Some(Look::GaveUp(other)),
        }
    }

    /// Tries until it is done, or fails, or a topic is full and says to wait.
    fn try_all(&mut self) -> Verdict {
        loop {
            let awaited = match self.begin() {
                Verdict::OnDisk(awaited) => awaited,
                verdict => return verdict,
            };
            let outcome = match &self.broker.store {
                Some(store) => store.commit(awaited.position()),
                None => Ok(()),
            };
            if let Some(verdict) = self.land(&awaited, outcome) {
                return verdict;
            }
        }
    }

    /// [`try_all`](Self::try_all) as far as it goes without waiting for the disk.
    fn begin(&mut self) -> Verdict {
        if let Some(reason) = self.rare.as_ref().and_then(|rare| rare.doomed.as_ref()) {
            return Verdict::Failed(reason.clone());
        }
        let mut looked_ahead = false;
        loop {
            let (n, lack) = match attempt(
                &self.broker,
                self.inputs.as_mut_slice(),
                self.outputs.as_mut_slice(),
                looked_ahead,
            ) {
                Attempt::Done => break,
                Attempt::Refused(reason) => return Verdict::Failed(reason),
                Attempt::Lacks(n, lack) => (n, lack),
                Attempt::UnderWay(position) => return Verdict::OnDisk(Awaited::Repeated(position)),
                Attempt::Staged(position) => {
                    self.staged = Some(position);
                    return Verdict::OnDisk(Awaited::Staged(position));
                }
            };
            let space = self.outputs.as_slice()[n].space();
            match lack {
                _ if !looked_ahead => {
                    self.outputs.iter().for_each(|output| output.space().catch_up());
                    looked_ahead = true;
                }
                Append::MustDrop(sequence) => {
                    let incarnation = self.outputs.as_slice()[n].incarnation();
                    let acks = |book| {
                        let mut inputs = self.inputs.iter().filter(|input| input.book() == book);
                        inputs.any(|input| input.acks(incarnation, sequence))
                    };
                    space.drop_oldest(sequence, &acks);
                }
                Append::MustWait => {
                    self.spared = true;
                    return Verdict::Elsewhere(n);
                }
                Append::Refused(_) | Append::Done => {
                    self.spared = true;
                    return Verdict::Failed(CommitReason::Full);
                }
            }
        }
        // Who reads what was published wakes before what was acked is let go.
        self.outputs.as_mut_slice().iter_mut().for_each(|output| output.follow_up());
        self.inputs.as_mut_slice().iter_mut().for_each(|input| input.follow_up());
        Verdict::Done
    }

    /// What it came to, once the disk has answered. None: now is known what stood against it, and it is to be tried again.
    fn land(&mut self, awaited: &Awaited, outcome: Result<(), JournalError>) -> Option<Verdict> {
        match awaited {
            // Whether that has come about or not.
            Awaited::Repeated(_) => None,
            Awaited::Staged(_) if outcome == Err(JournalError::NoSpace) && self.broker.makes_space() => {
                self.staged = None;
                self.outputs.as_mut_slice().iter_mut().for_each(|output| output.take_back());
                None
            }
            Awaited::Staged(_) => Some(self.end_staged(outcome)),
        }
    }

    fn end_staged(&mut self, outcome: Result<(), JournalError>) -> Verdict {
        self.staged = None;
        let Some(store) = self.broker.store.clone() else { return Verdict::Done };
        let Err(error) = outcome else {
            self.inputs.as_mut_slice().iter_mut().for_each(|input| input.let_go());
            self.outputs.as_mut_slice().iter_mut().for_each(|output| output.follow_up());
            self.broker.checkpoint_in_time();
            return Verdict::Done;
        };
        self.outputs.as_mut_slice().iter_mut().for_each(|output| output.take_back());
        Verdict::Failed(store.fault_of(&error).into())
    }

    fn first_deadline(&self) -> Option<Tick> {
        self.inputs.iter().filter_map(|input| input.first_deadline()).min()
    }

    /// After a commit, in the order in which the messages were given.
    pub(crate) fn receipts<R>(&self, make: impl Fn(MessageId, bool) -> R) -> Vec<R> {
        let published = |receipt: Option<(MessageId, bool)>| match receipt {
            Some((id, deduplicated)) => make(id, deduplicated),
            None => unreachable!("what was published has a receipt"),
        };
        let outputs = self.outputs.as_slice();
        if let [only] = outputs {
            return (0..only.len()).map(|nth| published(only.receipt(nth))).collect();
        }
        let mut taken = vec![0; outputs.len()];
        let order = self.rare.as_ref().map_or(&[][..], |rare| &rare.order);
        let receipts = order.iter().map(|incarnation| {
            let at = outputs.binary_search_by_key(incarnation, |output| output.incarnation());
            published(at.ok().and_then(|at| {
                taken[at] += 1;
                outputs[at].receipt(taken[at] - 1)
            }))
        });
        receipts.collect()
    }

    /// Publishes nothing, and gives back what is leased; unless it is on its way to the disk, which then decides.
    pub(crate) fn roll_back(&mut self) {
        if let (Some(position), Some(store)) = (self.staged.take(), self.broker.store.clone()) {
            let mut left = std::mem::replace(self, TransactionCore::new(self.broker.clone()));
            store.leave_to(position, move |outcome| {
                if let Verdict::Failed(_) = left.end_staged(outcome) {
                    left.roll_back();
                }
            });
            return;
        }
        let strangers = self.rare.as_mut().map_or(&mut [][..], |rare| &mut rare.strangers);
        for input in self.inputs.as_mut_slice().iter_mut().chain(strangers) {
            input.give_back(self.spared);
        }
    }
}

#[cfg(feature = "async")]
mod asynchronous {
    use std::pin::Pin;
    use std::sync::Arc;
    use std::task::{Context, Poll, ready};

    use super::{Awaited, COMMITS, CommitReason, Look, Space, Tick, TransactionCore, Verdict};
    use crate::engine::local::broker::WaitingCommit;
    use crate::engine::local::committer::{NoWaiting, Pending, Safety};
    use crate::engine::waiters::Waiter;

    /// A commit's place among those that wait for a topic's space.
    #[derive(Default)]
    pub(crate) struct CommitSeat {
        place: Option<Place>,
        /// On disk.
        flight: Option<(Awaited, Pending)>,
    }

    struct Place {
        space: Arc<dyn Space>,
        lacking: usize,
        until: Option<Tick>,
        waiter: Option<Arc<Waiter>>,
        _waits: WaitingCommit,
    }

    impl Drop for Place {
        fn drop(&mut self) {
            self.space.room().abandon(COMMITS, &mut self.waiter);
        }
    }

    impl TransactionCore {
        /// [`commit`](Self::commit) that waits without holding a thread.
        pub(crate) fn poll_commit(
            &mut self,
            seat: &mut CommitSeat,
            context: &mut Context<'_>,
        ) -> Poll<Result<(), CommitReason>> {
            let _polling = self.broker.store.as_ref().map(|_| NoWaiting::begin());
            loop {
                if let Some((_, pending)) = &mut seat.flight {
                    let outcome = ready!(Pin::new(pending).poll(context));
                    let landed = seat.flight.take().and_then(|(awaited, _)| self.land(&awaited, outcome));
                    match landed {
                        None => {}
                        Some(Verdict::Failed(reason)) => return Poll::Ready(Err(reason)),
                        Some(_) => return Poll::Ready(Ok(())),
                    }
                }
                let verdict = match &mut seat.place {
                    None => self.begin(),
                    Some(Place { space, lacking, until, waiter, .. }) => {
                        let polled = space.room().poll(COMMITS, waiter, context, || {
                            self.look(&**space, *lacking, *until, true, Self::begin)
                                .unwrap_or(Look::Nothing { until: None })
                        });
                        match polled {
                            Poll::Pending => return Poll::Pending,
                            Poll::Ready(verdict) => verdict,
                        }
                    }
                };
                match verdict {
                    Verdict::Done => return Poll::Ready(Ok(())),
                    Verdict::Failed(reason) => return Poll::Ready(Err(reason)),
                    Verdict::OnDisk(awaited) => {
                        let Some(store) = &self.broker.store else { return Poll::Ready(Ok(())) };
                        let pending = store.make_safe_later(awaited.position(), Safety::Promised);
                        seat.flight = Some((awaited, pending));
                    }
                    Verdict::Elsewhere(lacking) => {
                        let until = match &seat.place {
                            Some(place) => place.until,
                            None => self.first_deadline(),
                        };
                        let space = self.outputs.as_slice()[lacking].space();
                        let _waits = self.broker.note_commit();
                        seat.place = Some(Place { space, lacking, until, waiter: None, _waits });
                    }
                }
            }
        }
    }
}

#[cfg(feature = "async")]
pub(crate) use asynchronous::CommitSeat;
