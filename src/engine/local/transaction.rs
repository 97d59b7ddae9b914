//! What a transaction holds, how its commit waits for space, and how it is rolled back.

use std::any::Any;
use std::sync::Arc;

use crate::contain::drop_contained;
use crate::engine::local::broker::BrokerCore;
use crate::engine::local::commit::{Attempt, Input, Leases, Output, Posts, Space, attempt};
use crate::engine::local::publish::Append;
use crate::engine::local::receive::Held;
use crate::engine::local::subscription::SubscriptionCore;
use crate::engine::local::topic::{PUBLISHERS, TopicCore};
use crate::engine::waiters::Look;
use crate::error::CommitReason;
use crate::message::{Message, MessageId};
use crate::time::Tick;

/// Acks and publishes that are yet to take effect.
pub(crate) struct TransactionCore {
    broker: Arc<BrokerCore>,
    /// By the number of the subscription.
    inputs: Vec<Box<dyn Input>>,
    /// Of other brokers.
    strangers: Vec<Box<dyn Input>>,
    /// By the topic's incarnation.
    outputs: Vec<Box<dyn Output>>,
    /// The topic of each message, in the order in which they were given.
    order: Vec<u64>,
    /// Why no commit can succeed, if that is known.
    doomed: Option<CommitReason>,
    /// A commit failed for lack of space: then giving up spends no attempt.
    spared: bool,
}

/// What a commit in waiting is to look at.
enum Verdict {
    Done,
    Failed(CommitReason),
    /// Another topic is full now.
    Elsewhere(usize),
}

impl TransactionCore {
    pub(crate) fn new(broker: Arc<BrokerCore>) -> Self {
        TransactionCore {
            broker,
            inputs: Vec::new(),
            strangers: Vec::new(),
            outputs: Vec::new(),
            order: Vec::new(),
            doomed: None,
            spared: false,
        }
    }

    pub(crate) fn acks(&self) -> usize {
        self.inputs.iter().chain(&self.strangers).map(|input| input.len()).sum()
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
            self.doomed = Some(CommitReason::OtherBroker);
            // Another broker has its own numbers. Nothing of it is ever locked here, but it is to get its messages back.
            let mut leases = Leases::new(core.clone());
            held.into_iter().for_each(|held| leases.add(held));
            self.strangers.push(Box::new(leases));
            return;
        }
        let at = self.inputs.binary_search_by_key(&core.id, |input| input.book());
        let at = at.unwrap_or_else(|at| {
            self.inputs.insert(at, Box::new(Leases::new(core.clone())));
            at
        });
        let input: &mut dyn Any = &mut *self.inputs[at];
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
            self.doomed = Some(CommitReason::OtherBroker);
            return drop_contained(message);
        }
        let parcel = match core.parcel(message) {
            Ok(parcel) => parcel,
            Err(refusal) => {
                self.doomed = Some(match refusal.encode_error {
                    Some(error) => CommitReason::Encode { error },
                    None => refusal.kind.into(),
                });
                return drop_contained(refusal.message);
            }
        };
        let incarnation = core.log.incarnation();
        let at = self.outputs.binary_search_by_key(&incarnation, |output| output.incarnation());
        let at = at.unwrap_or_else(|at| {
            self.outputs.insert(at, Box::new(Posts::new(core.clone())));
            at
        });
        self.order.push(incarnation);
        let output: &mut dyn Any = &mut *self.outputs[at];
        match output.downcast_mut::<Posts<E>>() {
            Some(posts) => posts.add(parcel),
            None => unreachable!("an incarnation is never reused"),
        }
    }

    /// Commits, and does all that follows. `waits`: for space, until the first lease would end.
    pub(crate) fn commit(&mut self, waits: bool) -> Result<Vec<(MessageId, bool)>, CommitReason> {
        let mut lacking = match self.try_all() {
            Verdict::Done => return Ok(self.receipts()),
            Verdict::Failed(reason) => return Err(reason),
            Verdict::Elsewhere(lacking) => lacking,
        };
        if !waits {
            return Err(CommitReason::Full);
        }
        let until = self.first_deadline();
        let line = self.broker.line.clone();
        loop {
            let space = self.outputs[lacking].space();
            let verdict = space.room().wait(PUBLISHERS, || {
                self.look(&*space, lacking, until, line.is_manual()).unwrap_or_else(|| Look::Nothing {
                    until: until.and_then(|until| line.instant_of(until)),
                })
            });
            match verdict {
                Verdict::Done => return Ok(self.receipts()),
                Verdict::Failed(reason) => return Err(reason),
                Verdict::Elsewhere(other) => lacking = other,
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
    ) -> Option<Look<Verdict>> {
        if until.is_some_and(|until| self.broker.now() >= until) {
            return Some(Look::GaveUp(Verdict::Failed(CommitReason::Full)));
        }
        match self.try_all() {
            Verdict::Done => Some(Look::Found(Verdict::Done)),
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
        if let Some(reason) = &self.doomed {
            return Verdict::Failed(reason.clone());
        }
        let mut looked_ahead = false;
        loop {
            let (n, lack) = match attempt(&self.broker, &mut self.inputs, &mut self.outputs) {
                Attempt::Done => break,
                Attempt::Refused(reason) => return Verdict::Failed(reason),
                Attempt::Lacks(n, lack) => (n, lack),
            };
            let space = self.outputs[n].space();
            match lack {
                _ if !looked_ahead => {
                    self.outputs.iter().for_each(|output| output.space().catch_up());
                    looked_ahead = true;
                }
                Append::MustDrop(sequence) => space.drop_oldest(sequence),
                Append::MustWait => {
                    self.spare();
                    return Verdict::Elsewhere(n);
                }
                Append::Refused(_) | Append::Done => {
                    self.spare();
                    return Verdict::Failed(CommitReason::Full);
                }
            }
        }
        // Who reads what was published wakes before what was acked is let go.
        self.outputs.iter_mut().for_each(|output| output.follow_up());
        self.inputs.iter_mut().for_each(|input| input.follow_up());
        Verdict::Done
    }

    fn spare(&mut self) {
        if !std::mem::replace(&mut self.spared, true) {
            self.inputs.iter().for_each(|input| input.spare());
        }
    }

    fn first_deadline(&self) -> Option<Tick> {
        self.inputs.iter().filter_map(|input| input.first_deadline()).min()
    }

    /// In the order in which the messages were given.
    fn receipts(&mut self) -> Vec<(MessageId, bool)> {
        let mut taken = vec![0; self.outputs.len()];
        let receipts = self.order.iter().map(|incarnation| {
            let at = self.outputs.binary_search_by_key(incarnation, |output| output.incarnation());
            let receipt = at.ok().and_then(|at| {
                taken[at] += 1;
                self.outputs[at].receipt(taken[at] - 1)
            });
            match receipt {
                Some(receipt) => receipt,
                None => unreachable!("what was published has a receipt"),
            }
        });
        let receipts = receipts.collect();
        self.outputs.clear();
        self.order.clear();
        receipts
    }

    /// Publishes nothing, and gives back what is leased.
    pub(crate) fn roll_back(&mut self) {
        let inputs = std::mem::take(&mut self.inputs);
        for mut input in inputs.into_iter().chain(std::mem::take(&mut self.strangers)) {
            input.give_back(self.spared);
        }
        std::mem::take(&mut self.outputs).into_iter().for_each(drop_contained);
    }
}

#[cfg(feature = "async")]
mod asynchronous {
    use std::sync::Arc;
    use std::task::{Context, Poll};

    use super::{CommitReason, Look, MessageId, PUBLISHERS, Space, Tick, TransactionCore, Verdict};
    use crate::engine::waiters::Waiter;

    /// A commit's place among those that wait for a topic's space.
    #[derive(Default)]
    pub(crate) struct CommitSeat {
        place: Option<Place>,
    }

    struct Place {
        space: Arc<dyn Space>,
        lacking: usize,
        until: Option<Tick>,
        waiter: Option<Arc<Waiter>>,
    }

    impl Drop for Place {
        fn drop(&mut self) {
            self.space.room().abandon(PUBLISHERS, &mut self.waiter);
        }
    }

    impl TransactionCore {
        /// [`commit`](Self::commit) that waits without holding a thread.
        pub(crate) fn poll_commit(
            &mut self,
            seat: &mut CommitSeat,
            context: &mut Context<'_>,
        ) -> Poll<Result<Vec<(MessageId, bool)>, CommitReason>> {
            loop {
                let verdict = match &mut seat.place {
                    None => self.try_all(),
                    Some(Place { space, lacking, until, waiter }) => {
                        let polled = space.room().poll(PUBLISHERS, waiter, context, || {
                            self.look(&**space, *lacking, *until, true)
                                .unwrap_or(Look::Nothing { until: None })
                        });
                        match polled {
                            Poll::Pending => return Poll::Pending,
                            Poll::Ready(verdict) => verdict,
                        }
                    }
                };
                match verdict {
                    Verdict::Done => return Poll::Ready(Ok(self.receipts())),
                    Verdict::Failed(reason) => return Poll::Ready(Err(reason)),
                    Verdict::Elsewhere(lacking) => {
                        let until = match &seat.place {
                            Some(place) => place.until,
                            None => self.first_deadline(),
                        };
                        let space = self.outputs[lacking].space();
                        seat.place = Some(Place { space, lacking, until, waiter: None });
                    }
                }
            }
        }
    }
}

#[cfg(feature = "async")]
pub(crate) use asynchronous::CommitSeat;
