//! What was called and what was answered, and what follows from that for what may be seen. No code of the broker's.

use std::collections::BTreeMap;

use super::eventflow::{DeliveryMode, MessageId};

/// Whether something is so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Sure,
    /// Whoever looks after the next opening decides it.
    Unsure,
    Gone,
}

/// How a call was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Yes,
    No,
    Unknown,
}

#[derive(Clone, Debug)]
pub(super) struct Topic {
    pub(super) name: String,
    /// All is kept; else what somebody has not settled.
    pub(super) forever: bool,
    pub(super) fate: Fate,
    pub(super) by_id: BTreeMap<MessageId, usize>,
    /// Newest message under each idempotency id.
    pub(super) by_idempotency: BTreeMap<String, usize>,
}

#[derive(Clone, Debug)]
pub(super) struct Message {
    pub(super) topic: usize,
    pub(super) born: u64,
    pub(super) fate: Fate,
    /// The call that published it.
    pub(super) batch: u64,
    pub(super) content: Content,
    pub(super) id: Option<MessageId>,
    /// In nanoseconds since the beginning.
    pub(super) published: u64,
    pub(super) due: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Content {
    pub(super) len: usize,
    pub(super) attribute: Option<String>,
    pub(super) key: Option<String>,
    pub(super) idempotency: Option<String>,
}

/// Where a message stands in a subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Settled {
    No,
    /// In this process; a crash may undo it.
    Here,
    /// A crash may have undone it.
    Maybe,
    Yes,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Standing {
    pub(super) settled: Settled,
    /// Hand-outs that were not released: at least and at most.
    pub(super) spent: (u32, u32),
    /// So many more, where a crash may forget releases: nobody counts, or the power failed.
    pub(super) released: u32,
    /// So many at most, where a crash undoes a seek.
    pub(super) before_seek: u32,
    pub(super) held: bool,
    /// Whether it is in the dead-letter topic.
    pub(super) dead: Fate,
    /// Though somebody had it since, a crash may show it settled: by a transaction of which nobody knows, or before a seek that it undoes.
    pub(super) may_be_settled: bool,
}

impl Default for Standing {
    fn default() -> Self {
        Standing {
            settled: Settled::No,
            spent: (0, 0),
            released: 0,
            before_seek: 0,
            held: false,
            dead: Fate::Gone,
            may_be_settled: false,
        }
    }
}

/// What a subscription is to be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    pub(super) mode: DeliveryMode,
    pub(super) ordered: bool,
    pub(super) filtered: bool,
    pub(super) earliest: bool,
    /// After so many attempts to the dead-letter topic.
    pub(super) dead_after: Option<u32>,
    /// After so many attempts it is discarded.
    pub(super) discard_after: Option<u32>,
}

#[derive(Clone, Debug)]
pub(super) struct Subscription {
    pub(super) name: String,
    pub(super) topic: usize,
    pub(super) born: u64,
    pub(super) fate: Fate,
    pub(super) plan: Plan,
    /// None: nobody knows.
    pub(super) paused: Option<bool>,
    pub(super) outstanding_max: Vec<u64>,
    pub(super) standings: BTreeMap<usize, Standing>,
    /// So many may have been handed out at most once to nobody.
    pub(super) lost_at_most: u64,
}

/// A message as somebody got it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Seen {
    pub(super) message: usize,
    pub(super) id: MessageId,
    pub(super) attempt: u32,
    pub(super) content: Content,
    /// Of a dead letter: its subscription, and its id there.
    pub(super) origin: Option<(String, String)>,
    /// When it came: see [`audit`](super::audit).
    pub(super) phase: u8,
}

#[derive(Clone, Debug, Default)]
pub(super) struct History {
    pub(super) clock: u64,
    pub(super) step: u64,
    pub(super) topics: Vec<Topic>,
    pub(super) messages: Vec<Message>,
    pub(super) subscriptions: Vec<Subscription>,
    /// Of at-least-once subscriptions, in order, since the last opening.
    pub(super) acks: Vec<(usize, usize)>,
    /// Transactions of which nobody knows whether they are there.
    pub(super) together: Vec<Together>,
}

/// All of it, or nothing.
#[derive(Clone, Debug)]
pub(super) struct Together {
    pub(super) messages: Vec<usize>,
    /// Subscription and message.
    pub(super) acks: Vec<(usize, usize)>,
}

impl Answer {
    pub(super) fn fate(self) -> Fate {
        match self {
            Answer::Yes => Fate::Sure,
            Answer::No => Fate::Gone,
            Answer::Unknown => Fate::Unsure,
        }
    }

    /// Of something that was there.
    pub(super) fn fate_after_end(self) -> Fate {
        match self {
            Answer::Yes => Fate::Gone,
            Answer::No => Fate::Sure,
            Answer::Unknown => Fate::Unsure,
        }
    }
}

impl Subscription {
    pub(super) fn takes(&self, message: &Message) -> bool {
        message.topic == self.topic
            && (self.plan.earliest || message.born > self.born)
            && (!self.plan.filtered || message.content.attribute.as_deref() == Some("1"))
    }

    pub(super) fn standing(&mut self, message: usize) -> &mut Standing {
        self.standings.entry(message).or_default()
    }

    pub(super) fn after(&self) -> Option<u32> {
        self.plan.dead_after.or(self.plan.discard_after)
    }
}

/// Discarding is as safe as an ack.
fn discarded(mode: DeliveryMode, is_told: bool) -> Settled {
    match (mode, is_told) {
        (DeliveryMode::ExactlyOnce, true) => Settled::Yes,
        (_, true) => Settled::Here,
        (_, false) => Settled::Maybe,
    }
}

impl History {
    pub(super) fn create_topic(&mut self, name: &str, forever: bool, answer: Answer) -> usize {
        self.topics.push(Topic {
            name: name.to_owned(),
            forever,
            fate: answer.fate(),
            by_id: BTreeMap::new(),
            by_idempotency: BTreeMap::new(),
        });
        self.topics.len() - 1
    }

    /// Before it is asked for.
    pub(super) fn publish(&mut self, topic: usize, contents: &[(Content, u64)]) -> Vec<usize> {
        let contents: Vec<_> = contents.iter().map(|content| (topic, content.clone())).collect();
        self.publish_together(&contents)
    }

    /// To these topics.
    pub(super) fn publish_together(&mut self, contents: &[(usize, (Content, u64))]) -> Vec<usize> {
        self.step += 1;
        let first = self.messages.len();
        for (topic, (content, delay)) in contents {
            self.messages.push(Message {
                topic: *topic,
                born: self.step,
                fate: Fate::Unsure,
                batch: self.step,
                content: content.clone(),
                id: None,
                published: self.clock,
                due: self.clock + delay,
            });
        }
        (first..self.messages.len()).collect()
    }

    pub(super) fn published(
        &mut self,
        message: usize,
        answer: Answer,
        id: Option<MessageId>,
    ) -> Result<(), String> {
        self.messages[message].fate = answer.fate();
        if let Some(id) = id {
            self.identify(message, id)?;
        }
        let Message { topic, content, .. } = &self.messages[message];
        if let (Some(id), true) = (&content.idempotency, answer != Answer::No) {
            self.topics[*topic].by_idempotency.insert(id.clone(), message);
        }
        Ok(())
    }

    /// An id that somebody has seen is that message's for ever.
    pub(super) fn identify(&mut self, message: usize, id: MessageId) -> Result<(), String> {
        let Message { topic, id: known, .. } = &mut self.messages[message];
        if known.is_some_and(|known| known != id) {
            return Err(format!("P3: message {message} was {known:?} and is {id}"));
        }
        *known = Some(id);
        // Of a topic that is gone, too: another one has a number of its own.
        let other = self.topics.iter().find_map(|topic| topic.by_id.get(&id).copied());
        self.topics[*topic].by_id.insert(id, message);
        match other {
            Some(other) if other != message => {
                Err(format!("P4: {id} was given to message {other} and to message {message}"))
            }
            _ => Ok(()),
        }
    }

    /// What is seen is what was published, to whom it was published, and not settled there.
    pub(super) fn delivered(&mut self, subscription: usize, seen: &Seen) -> Result<(), String> {
        let number = seen.message;
        let Some(message) = self.messages.get(number) else {
            return Err(format!("nobody published {number}"));
        };
        let book = &self.subscriptions[subscription];
        let what = format!("message {number} ({}) on {}", seen.id, book.name);
        if message.fate == Fate::Gone {
            return Err(format!("P2: {what} was refused, and is there"));
        }
        if message.content != seen.content {
            return Err(format!("P3: {what} is {:?}, and was {:?}", seen.content, message.content));
        }
        if !book.takes(message) {
            return Err(format!("P1: {what} is not its message"));
        }
        if seen.phase < 2 && message.due > self.clock {
            return Err(format!("{what} is not due yet"));
        }
        self.comes_in_order(subscription, number)?;
        self.identify(number, seen.id)?;
        self.messages[number].fate = Fate::Sure;
        let book = &mut self.subscriptions[subscription];
        let (mode, after) = (book.plan.mode, book.after());
        let standing = book.standing(number);
        match (standing.settled, mode) {
            (Settled::No | Settled::Maybe, _) => {}
            (_, DeliveryMode::AtMostOnce) => return Err(format!("P13: {what} comes twice")),
            (_, DeliveryMode::ExactlyOnce) => {
                return Err(format!("P15: {what} was settled, and comes again"));
            }
            _ => return Err(format!("P8: {what} was settled, and comes again")),
        }
        if standing.held {
            return Err(format!("P6: {what} is held, and comes again"));
        }
        if standing.dead == Fate::Sure {
            return Err(format!("P11: {what} is dead, and comes again"));
        }
        let (least, most) = standing.spent;
        if !(least + 1..=most + 1).contains(&seen.attempt) {
            return Err(format!("P10: {what} is attempt {}, after {least} to {most}", seen.attempt));
        }
        if after.is_some_and(|after| seen.attempt > after) {
            return Err(format!("P10: {what} is attempt {} of {after:?}", seen.attempt));
        }
        *standing =
            Standing { settled: Settled::No, spent: (seen.attempt, seen.attempt), held: true, ..*standing };
        if mode == DeliveryMode::AtMostOnce {
            *standing = Standing { settled: Settled::Yes, held: false, ..*standing };
        }
        Ok(())
    }

    fn comes_in_order(&self, subscription: usize, number: usize) -> Result<(), String> {
        let book = &self.subscriptions[subscription];
        let key = &self.messages[number].content.key;
        // Of those that were handed out to nobody it is not known which they were.
        if !book.plan.ordered || key.is_none() || book.lost_at_most > 0 {
            return Ok(());
        }
        let place = |number: usize| (self.messages[number].born, number);
        let earlier = self.messages.iter().enumerate().filter(|(other, _)| place(*other) < place(number));
        let waits = |(earlier, message): &(usize, &Message)| {
            let standing = book.standings.get(earlier).copied().unwrap_or_default();
            message.content.key == *key
                && message.fate == Fate::Sure
                && book.takes(message)
                && standing.settled == Settled::No
                && !standing.may_be_settled
                && !standing.held
        };
        match { earlier }.find(waits).map(|(earlier, _)| earlier) {
            Some(earlier) => Err(format!("P12: message {number} on {} overtakes {earlier}", book.name)),
            None => Ok(()),
        }
    }

    pub(super) fn acked(&mut self, subscription: usize, message: usize, answer: Answer) {
        let book = &mut self.subscriptions[subscription];
        let mode = book.plan.mode;
        let standing = book.standing(message);
        if mode == DeliveryMode::AtMostOnce {
            return;
        }
        standing.held = false;
        standing.settled = match (answer, mode) {
            (Answer::No, _) => return,
            (Answer::Yes, DeliveryMode::ExactlyOnce) => Settled::Yes,
            _ => Settled::Here,
        };
        standing.may_be_settled |= answer == Answer::Unknown;
        if mode == DeliveryMode::AtLeastOnce && answer == Answer::Yes {
            self.acks.push((subscription, message));
        }
    }

    /// In a transaction: as safe as what that published.
    pub(super) fn committed(&mut self, subscription: usize, message: usize) {
        let standing = self.subscriptions[subscription].standing(message);
        (standing.held, standing.settled) = (false, Settled::Yes);
    }

    /// In a transaction of which nobody knows; what it held is given back.
    pub(super) fn may_have_acked(&mut self, subscription: usize, message: usize) {
        let standing = self.subscriptions[subscription].standing(message);
        (standing.held, standing.settled, standing.may_be_settled) = (false, Settled::Maybe, true);
    }

    /// A new generation: all that is kept is unsettled again, or all there is is settled.
    pub(super) fn sought(&mut self, subscription: usize, to_end: bool, answer: Answer) {
        self.acks.retain(|(of, _)| *of != subscription);
        let known: Vec<usize> = (0..self.messages.len()).collect();
        let book = &mut self.subscriptions[subscription];
        let takes: Vec<bool> = known.iter().map(|&message| book.takes(&self.messages[message])).collect();
        book.plan.earliest |= !to_end;
        for message in known {
            let before = *book.standing(message);
            let was_settled = before.settled != Settled::No || before.may_be_settled || !takes[message];
            let settled = match (to_end, answer) {
                (true, Answer::Yes) => Settled::Yes,
                (false, Answer::Yes) => Settled::No,
                (false, _) if !was_settled => Settled::No,
                (true, _) if was_settled && !before.may_be_settled => before.settled,
                _ => Settled::Maybe,
            };
            *book.standing(message) = match answer {
                Answer::Yes => Standing { settled, ..Standing::default() },
                _ => Standing {
                    settled,
                    spent: (0, before.spent.1),
                    before_seek: before.before_seek.max(before.spent.1 + before.released),
                    may_be_settled: was_settled && settled == Settled::Maybe,
                    held: false,
                    dead: Fate::Gone,
                    ..before
                },
            };
        }
    }

    /// It failed there. `is_sound`: nothing is wrong with the disk. `is_told`: the call returned `Ok`.
    pub(super) fn nacked(&mut self, subscription: usize, message: usize, is_sound: bool, is_told: bool) {
        let book = &mut self.subscriptions[subscription];
        let Plan { mode, dead_after, discard_after, .. } = book.plan;
        let standing = book.standing(message);
        standing.held = false;
        let has_spent = |after: Option<u32>| after.is_some_and(|after| standing.spent.0 >= after);
        if has_spent(dead_after) {
            standing.dead = if is_sound { Fate::Sure } else { Fate::Unsure };
        } else if has_spent(discard_after) && mode != DeliveryMode::AtMostOnce {
            standing.settled = discarded(mode, is_told);
        }
    }

    pub(super) fn released(&mut self, subscription: usize, message: usize) {
        let standing = self.subscriptions[subscription].standing(message);
        standing.held = false;
        standing.spent = (standing.spent.0.saturating_sub(1), standing.spent.1.saturating_sub(1));
        standing.released += 1;
    }

    pub(super) fn rejected(&mut self, subscription: usize, message: usize, is_sound: bool, is_told: bool) {
        let book = &mut self.subscriptions[subscription];
        let (dies, mode) = (book.plan.dead_after.is_some(), book.plan.mode);
        let standing = book.standing(message);
        standing.held = false;
        match dies {
            true => standing.dead = if is_sound { Fate::Sure } else { Fate::Unsure },
            false => standing.settled = discarded(mode, is_told),
        }
    }

    /// A receiver got an error: what it would have been given has spent an attempt, or was perhaps handed out at most once. `is_full`: it was not.
    pub(super) fn receive_failed(&mut self, subscription: usize, most: u64, is_full: bool) {
        let messages: Vec<usize> = (0..self.messages.len()).collect();
        let book = &mut self.subscriptions[subscription];
        match book.plan.mode {
            DeliveryMode::AtMostOnce if is_full => {}
            DeliveryMode::AtMostOnce => book.lost_at_most += most,
            _ => {
                for message in messages {
                    book.standing(message).spent.1 += 1;
                }
            }
        }
    }

    /// The process is gone. `with_power`: and the machine.
    pub(super) fn crashed(&mut self, with_power: bool) {
        for book in &mut self.subscriptions {
            let counts = book.after().is_some() && !with_power;
            for standing in book.standings.values_mut() {
                standing.held = false;
                if standing.settled == Settled::Here {
                    standing.settled = Settled::Maybe;
                }
                if !counts {
                    standing.spent = (0, standing.spent.1 + standing.released);
                }
                if standing.before_seek > 0 {
                    standing.spent = (0, standing.spent.1.max(standing.before_seek));
                }
                (standing.released, standing.before_seek) = (0, 0);
            }
        }
    }

    /// All was synced.
    pub(super) fn shut_down(&mut self) {
        self.acks.clear();
        for book in &mut self.subscriptions {
            for standing in book.standings.values_mut().filter(|standing| standing.settled == Settled::Here) {
                standing.settled = if standing.may_be_settled { Settled::Maybe } else { Settled::Yes };
            }
        }
    }

    pub(super) fn live_topic(&self, name: &str) -> Option<usize> {
        self.topics.iter().rposition(|topic| topic.name == name && topic.fate != Fate::Gone)
    }

    pub(super) fn end_topic(&mut self, topic: usize, answer: Answer) {
        self.topics[topic].fate = answer.fate_after_end();
    }
}
