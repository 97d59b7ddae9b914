//! One process: a broker on a disk, what a program holds of it, and a history of what it does, chosen by a seed.

mod publishing;
mod transacting;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::audit::seen;
use super::compare::DEAD;
use super::eventflow::{
    Batch, Broker, CreateError, DeadLetter, DedupWindow, Delivery, DeliveryMode, ManualClock, Retention,
    SettleError, Start, Subscription, Topic, TryRecvError,
};
use super::history::{self, Answer, Fate, History, Plan, Settled};
use super::open;
use crate::journal::disk::Disk;
use crate::journal::disk::sim::Random;

/// Idempotency ids are known for so long.
const WINDOW: Duration = Duration::from_secs(60);
/// Of a message that is delivered later.
const DELAY: Duration = Duration::from_secs(5);

pub(super) struct Process<'a> {
    pub(super) history: &'a mut History,
    pub(super) log: &'a mut Log,
    pub(super) random: &'a mut Random,
    clock: ManualClock,
    broker: Broker,
    topics: BTreeMap<usize, Topic<String>>,
    subscriptions: BTreeMap<usize, Subscription<String>>,
    held: Vec<(usize, usize, Delivery<String>)>,
    /// Whether something is wrong with the disk by now.
    trouble: Box<dyn Fn() -> bool>,
    /// A publish was indeterminate.
    poisoned: bool,
}

/// What was done and answered: the same for the same seed.
#[derive(Debug, Default)]
pub(super) struct Log {
    lines: Vec<String>,
}

impl Log {
    pub(super) fn say(&mut self, line: String) {
        self.lines.push(line);
    }

    pub(super) fn lines(&self) -> &[String] {
        &self.lines
    }

    pub(super) fn newest(&self, most: usize) -> String {
        self.lines[self.lines.len().saturating_sub(most)..].join("\n")
    }
}

type Done = Result<(), String>;

fn answer_of_settling(done: &Result<(), SettleError>) -> Answer {
    match done {
        Ok(()) => Answer::Yes,
        // They hold while the broker lives, and a crash may undo them; but for those of exactly-once subscriptions: see `acked`.
        Err(SettleError::Storage { .. } | SettleError::Indeterminate { .. }) => Answer::Unknown,
        Err(_) => Answer::No,
    }
}

/// All errors have this variant, and no type in common.
fn is_indeterminate<E: std::fmt::Debug>(error: &E) -> bool {
    format!("{error:?}").starts_with("Indeterminate")
}

fn answer_of<T, E: std::fmt::Debug>(done: &Result<T, E>) -> Answer {
    match done {
        Ok(_) => Answer::Yes,
        Err(error) if is_indeterminate(error) => Answer::Unknown,
        Err(_) => Answer::No,
    }
}

impl<'a> Process<'a> {
    /// None: the disk failed.
    pub(super) fn start(
        disk: Arc<dyn Disk>,
        history: &'a mut History,
        log: &'a mut Log,
        random: &'a mut Random,
        trouble: Box<dyn Fn() -> bool>,
    ) -> Result<Option<Self>, String> {
        let clock = ManualClock::new();
        clock.advance(Duration::from_nanos(history.clock));
        let broker = match open(disk, &clock) {
            Ok(broker) => broker,
            Err(_) if trouble() => return Ok(None),
            Err(error) => return Err(format!("P18: it does not open: {error}")),
        };
        let (topics, subscriptions) = (BTreeMap::new(), BTreeMap::new());
        let mut process = Process {
            history,
            log,
            random,
            clock,
            broker,
            topics,
            subscriptions,
            held: Vec::new(),
            trouble,
            poisoned: false,
        };
        process.attach()?;
        Ok(Some(process))
    }

    pub(super) fn in_trouble(&self) -> bool {
        (self.trouble)()
    }

    /// Everything that is there, in one order or another.
    fn attach(&mut self) -> Done {
        let mut live: Vec<usize> = (0..self.history.topics.len())
            .filter(|&topic| self.history.topics[topic].fate == Fate::Sure)
            .collect();
        self.random.shuffle(&mut live);
        for topic in live {
            let name = self.history.topics[topic].name.clone();
            // Now and then nobody opens it.
            if self.random.below(8) == 0 && name != DEAD {
                continue;
            }
            match self.broker.topic::<String>(&name).open() {
                Ok(opened) => drop(self.topics.insert(topic, opened)),
                Err(_) if self.in_trouble() => continue,
                Err(error) => return Err(format!("topic {name}: {error}")),
            }
        }
        for number in 0..self.history.subscriptions.len() {
            let book = &self.history.subscriptions[number];
            let Some(topic) = self.topics.get(&book.topic).filter(|_| book.fate == Fate::Sure) else {
                continue;
            };
            match topic.subscription(&book.name).open() {
                Ok(opened) => drop(self.subscriptions.insert(number, opened)),
                Err(_) if self.in_trouble() => continue,
                Err(error) => return Err(format!("subscription {}: {error}", book.name)),
            }
            if book.paused.is_none() {
                self.pause(number, false);
            }
        }
        Ok(())
    }

    pub(super) fn step(&mut self) -> Done {
        self.history.step += 1;
        match self.random.below(110) {
            0..5 => self.create_topic(),
            5..12 => self.create_subscription(),
            12..32 => self.publish(),
            32..40 => self.publish_all(),
            40..47 => self.repeat(),
            47..62 => self.receive(),
            62..70 => self.receive_batch(),
            70..90 => self.settle(),
            90..92 => self.pause_some(),
            92..94 => self.update_some(),
            94..95 => self.delete_subscription(),
            95..96 => self.delete_topic(),
            96..102 => self.transact(),
            102..104 => self.seek_some(),
            _ => {
                self.advance();
                Ok(())
            }
        }
    }

    fn pick<T: Copy>(&mut self, from: impl Iterator<Item = T>) -> Option<T> {
        let all: Vec<T> = from.collect();
        let at = self.random.below(all.len() as u64) as usize;
        all.get(at).copied()
    }

    pub(super) fn create_topic(&mut self) -> Done {
        let name = ["f0", "f1", "u0", "u1", DEAD][self.random.below(5) as usize];
        if self.history.live_topic(name).is_some() { Ok(()) } else { self.create_topic_of(name) }
    }

    pub(super) fn create_topic_of(&mut self, name: &str) -> Done {
        let forever = !name.starts_with('u');
        let builder = self.broker.topic::<String>(name).dedup(DedupWindow::time(WINDOW).max_ids(10_000));
        let retention = if forever { Retention::forever() } else { Retention::until_acked() };
        let created = builder.retention(retention).create();
        self.log.say(format!("create topic {name}: {:?}", created.as_ref().map(|_| ())));
        let topic = self.history.create_topic(name, forever, answer_of(&created));
        match created {
            Ok(created) => drop(self.topics.insert(topic, created)),
            Err(_) if self.in_trouble() => {}
            Err(error) => return Err(format!("topic {name}: {error}")),
        }
        Ok(())
    }

    pub(super) fn create_subscription(&mut self) -> Done {
        let Some(topic) = self.pick_topic() else { return Ok(()) };
        let live = self.history.subscriptions.iter();
        if live.filter(|book| book.topic == topic && book.fate != Fate::Gone).count() >= 4 {
            return Ok(());
        }
        use DeliveryMode::{AtLeastOnce, AtMostOnce, ExactlyOnce};
        let mode = [AtLeastOnce, ExactlyOnce, ExactlyOnce, AtMostOnce][self.random.below(4) as usize];
        let (ordered, filtered) = (self.random.below(4) == 0, self.random.below(4) == 0);
        let earliest = self.history.topics[topic].forever && self.random.below(2) == 0;
        let may_fail = mode != AtMostOnce && !ordered;
        let way = self.random.below(4);
        let plan = Plan {
            mode,
            ordered,
            filtered,
            earliest,
            dead_after: (may_fail && way < 2).then_some(2),
            discard_after: (may_fail && way == 2).then_some(2),
        };
        self.subscribe(topic, plan)
    }

    pub(super) fn subscribe(&mut self, topic: usize, plan: Plan) -> Done {
        let Some(handle) = self.topics.get(&topic).cloned() else { return Ok(()) };
        let name = format!("s{}", self.history.subscriptions.len());
        let mut builder =
            handle.subscription(&name).delivery(plan.mode).ack_deadline(Duration::from_secs(86_400));
        let dead = self.history.live_topic(DEAD).and_then(|dead| self.topics.get(&dead));
        let plan = Plan { dead_after: plan.dead_after.filter(|_| dead.is_some()), ..plan };
        if let (Some(dead), Some(after)) = (dead, plan.dead_after) {
            builder = builder.dead_letter(DeadLetter::to(dead).after(after));
        }
        if let Some(after) = plan.discard_after {
            builder = builder.dead_letter(DeadLetter::discard().after(after));
        }
        if plan.ordered {
            builder = builder.ordered();
        }
        if plan.filtered {
            builder = builder.filter("attributes.k = \"1\"");
        }
        if plan.earliest {
            builder = builder.start(Start::Earliest);
        }
        let created = builder.create();
        let said = created.as_ref().map(|_| ()).map_err(ToString::to_string);
        self.log.say(format!("create {name} on {topic}, {plan:?}: {said:?}"));
        self.history.subscriptions.push(history::Subscription {
            name: name.clone(),
            topic,
            born: self.history.step,
            fate: answer_of(&created).fate(),
            plan,
            paused: Some(false),
            outstanding_max: vec![1_000],
            standings: BTreeMap::new(),
            lost_at_most: 0,
        });
        match created {
            Ok(created) => drop(self.subscriptions.insert(self.history.subscriptions.len() - 1, created)),
            Err(CreateError::Storage { .. } | CreateError::Indeterminate { .. }) if self.in_trouble() => {}
            Err(error) => return Err(format!("subscription {name}: {error}")),
        }
        Ok(())
    }

    fn pick_topic(&mut self) -> Option<usize> {
        let topics: Vec<usize> = self.topics.keys().copied().collect();
        let is_ordinary = |topic: &usize| self.history.topics[*topic].name != DEAD;
        let topics: Vec<usize> = topics.into_iter().filter(is_ordinary).collect();
        self.pick(topics.into_iter())
    }

    fn pick_subscription(&mut self) -> Option<usize> {
        let subscriptions: Vec<usize> = self.subscriptions.keys().copied().collect();
        self.pick(subscriptions.into_iter())
    }

    pub(super) fn receive(&mut self) -> Done {
        let Some(number) = self.pick_subscription() else { return Ok(()) };
        let received = self.subscriptions[&number].try_recv();
        match received {
            Ok(delivery) => self.got(number, delivery),
            Err(error) => self.got_nothing(number, error, 1),
        }
    }

    fn got(&mut self, number: usize, delivery: Delivery<String>) -> Done {
        let seen = seen(delivery.message(), delivery.attempt(), 0)?;
        self.log.say(format!("s{number} receives {} ({}), attempt {}", seen.message, seen.id, seen.attempt));
        self.is_not_paused(number)?;
        self.history.delivered(number, &seen)?;
        if self.history.subscriptions[number].plan.mode != DeliveryMode::AtMostOnce {
            self.held.push((number, seen.message, delivery));
        }
        Ok(())
    }

    fn is_not_paused(&self, number: usize) -> Done {
        match self.history.subscriptions[number].paused {
            Some(true) => Err(format!("s{number} is paused, and delivers")),
            _ => Ok(()),
        }
    }

    fn got_nothing(&mut self, number: usize, error: TryRecvError, most: u64) -> Done {
        self.log.say(format!("s{number} receives {error:?}"));
        match error {
            TryRecvError::Empty => Ok(()),
            TryRecvError::Storage { fault } if self.in_trouble() => {
                self.history.receive_failed(number, most, fault.is_full());
                Ok(())
            }
            error => Err(format!("s{number} receives {error:?}")),
        }
    }

    pub(super) fn receive_batch(&mut self) -> Done {
        let Some(number) = self.pick_subscription() else { return Ok(()) };
        let most = 1 + self.random.below(6);
        match self.subscriptions[&number].try_recv_batch(most as usize) {
            Err(error) => self.got_nothing(number, error, most),
            Ok(batch) if self.random.below(2) == 0 => self.ack_batch(number, batch),
            Ok(batch) => batch.into_iter().try_for_each(|delivery| self.got(number, delivery)),
        }
    }

    fn ack_batch(&mut self, number: usize, batch: Batch<String>) -> Done {
        self.is_not_paused(number)?;
        let mut messages = Vec::new();
        for message in batch.iter() {
            messages.push(message.event().split(':').next().and_then(|number| number.parse::<usize>().ok()));
            let (least, most) = self.spent(number, *messages.last().expect("just pushed"));
            // A batch does not say attempts.
            let seen = seen(message, least + 1, 0)?;
            self.history.delivered(number, &seen)?;
            self.history.subscriptions[number].standing(seen.message).spent.1 = most + 1;
        }
        self.log.say(format!("s{number} receives a batch, and acks {messages:?}"));
        let done = batch.ack();
        self.log.say(format!("acks: {done:?}"));
        for message in messages.into_iter().flatten() {
            self.acked(number, message, &done);
        }
        match done {
            Err(SettleError::LeaseExpired { .. }) => {
                Err(format!("P6: s{number} had lost a batch before its time"))
            }
            done => self.settled(&done),
        }
    }

    fn spent(&mut self, number: usize, message: Option<usize>) -> (u32, u32) {
        message.map_or((0, 0), |message| self.history.subscriptions[number].standing(message).spent)
    }

    fn settled(&self, done: &Result<(), SettleError>) -> Done {
        match done {
            Ok(()) | Err(SettleError::LeaseExpired { .. } | SettleError::Deleted) => Ok(()),
            Err(SettleError::Storage { .. } | SettleError::Indeterminate { .. }) if self.in_trouble() => {
                Ok(())
            }
            Err(error) => Err(format!("settling: {error}")),
        }
    }

    pub(super) fn settle(&mut self) -> Done {
        let way = self.random.below(10);
        self.settle_in(way)
    }

    /// 0 to 5: ack; 6 and 7: nack; 8: release; 9: reject.
    pub(super) fn settle_in(&mut self, way: u64) -> Done {
        if self.held.is_empty() {
            return self.receive();
        }
        let at = self.random.below(self.held.len() as u64) as usize;
        let (number, message, delivery) = self.held.remove(at);
        let done = match way {
            0..6 => delivery.ack(),
            6..8 => delivery.nack(),
            8 => delivery.release(),
            _ => delivery.reject("no good"),
        };
        self.log.say(format!("s{number} settles {message} in way {way}: {done:?}"));
        let book = &self.history.subscriptions[number];
        if matches!(done, Err(SettleError::LeaseExpired { .. })) && book.plan.ordered {
            // It went back with an earlier one of its key.
            let standing = self.history.subscriptions[number].standing(message);
            (standing.held, standing.spent.0) = (false, 0);
            self.release_followers(number, message);
            return Ok(());
        }
        let is_sound = !self.in_trouble();
        match (way, &done) {
            (0..6, _) => self.acked(number, message, &done),
            (_, Err(SettleError::Deleted)) => {}
            (9, _) => self.history.rejected(number, message, is_sound, done.is_ok()),
            (8, Ok(())) => self.gives_back(number, message),
            (8, Err(SettleError::Indeterminate { .. })) => {
                self.fails(number, message, false);
                let standing = self.history.subscriptions[number].standing(message);
                standing.spent.0 = standing.spent.0.saturating_sub(1);
            }
            // What fails counts as dropped.
            (..) => self.fails(number, message, done.is_ok()),
        }
        if matches!(done, Err(SettleError::LeaseExpired { .. })) {
            return Err(format!("P6: s{number} had lost {message} before its time"));
        }
        self.settled(&done)
    }

    /// What an exactly-once subscription could not make safe counts as dropped.
    fn acked(&mut self, number: usize, message: usize, done: &Result<(), SettleError>) {
        let is_safe_or_nothing = self.history.subscriptions[number].plan.mode == DeliveryMode::ExactlyOnce;
        match done {
            Err(SettleError::Storage { .. }) if is_safe_or_nothing => self.fails(number, message, false),
            Err(SettleError::Indeterminate { .. }) if is_safe_or_nothing => {
                self.fails(number, message, false);
                self.history.may_have_acked(number, message);
            }
            done => self.history.acked(number, message, answer_of_settling(done)),
        }
    }

    fn fails(&mut self, number: usize, message: usize, is_told: bool) {
        let is_sound = !self.in_trouble();
        self.history.nacked(number, message, is_sound, is_told);
        self.release_followers(number, message);
    }

    fn gives_back(&mut self, number: usize, message: usize) {
        self.history.released(number, message);
        self.release_followers(number, message);
    }

    /// Of an ordered subscription's run, those behind one that goes back go back, too: their attempts are not known.
    fn release_followers(&mut self, number: usize, message: usize) {
        let key = self.history.messages[message].content.key.clone();
        let book = &mut self.history.subscriptions[number];
        if !book.plan.ordered || key.is_none() {
            return;
        }
        let messages = &self.history.messages;
        let place = |number: usize| (messages[number].born, number);
        for (&other, standing) in &mut book.standings {
            let follows = place(other) > place(message) && messages[other].content.key == key;
            if follows && standing.settled == Settled::No {
                standing.held = false;
                standing.spent.0 = 0;
            }
        }
    }

    pub(super) fn pause_some(&mut self) -> Done {
        if let Some(number) = self.pick_subscription() {
            let paused = self.random.below(2) == 0;
            self.pause(number, paused);
        }
        Ok(())
    }

    fn pause(&mut self, number: usize, paused: bool) {
        let subscription = &self.subscriptions[&number];
        let done = if paused { subscription.pause() } else { subscription.resume() };
        self.log.say(format!("s{number} paused {paused}: {done:?}"));
        let known = &mut self.history.subscriptions[number].paused;
        *known = if done.is_ok() || *known == Some(paused) { Some(paused) } else { None };
    }

    pub(super) fn update_some(&mut self) -> Done {
        let Some(number) = self.pick_subscription() else { return Ok(()) };
        let most = 2 + self.random.below(50);
        let done = self.subscriptions[&number].update().max_outstanding(most as usize).apply();
        self.log.say(format!("s{number} outstanding {most}: {done:?}"));
        let known = &mut self.history.subscriptions[number].outstanding_max;
        if done.is_ok() {
            known.clear();
        }
        known.push(most);
        Ok(())
    }

    pub(super) fn delete_subscription(&mut self) -> Done {
        let Some(number) = self.pick_subscription() else { return Ok(()) };
        let done = self.subscriptions[&number].delete();
        self.log.say(format!("delete s{number}: {done:?}"));
        self.history.subscriptions[number].fate = answer_of(&done).fate_after_end();
        self.held.retain(|(of, ..)| *of != number);
        self.subscriptions.remove(&number);
        Ok(())
    }

    /// Also one that nobody has opened.
    pub(super) fn delete_topic(&mut self) -> Done {
        let live: Vec<usize> = (0..self.history.topics.len())
            .filter(|&topic| self.history.topics[topic].fate == Fate::Sure)
            .collect();
        let Some(topic) =
            self.pick(live.into_iter()).filter(|&topic| self.history.topics[topic].name != DEAD)
        else {
            return Ok(());
        };
        let name = self.history.topics[topic].name.clone();
        let done = self.broker.delete_topic(&name);
        self.log.say(format!("delete topic {name}: {done:?}"));
        if done.is_err() && !self.in_trouble() {
            return Err(format!("topic {name}: {done:?}"));
        }
        self.history.end_topic(topic, answer_of(&done));
        self.topics.remove(&topic);
        for number in 0..self.history.subscriptions.len() {
            if self.history.subscriptions[number].topic == topic {
                self.held.retain(|(of, ..)| *of != number);
                self.subscriptions.remove(&number);
                if done.is_ok() {
                    self.history.subscriptions[number].fate = Fate::Gone;
                }
            }
        }
        Ok(())
    }

    fn advance(&mut self) {
        let nanos = match self.random.below(8) {
            0 => self.random.below(40_000_000_000),
            _ => self.random.below(2_000_000_000),
        };
        self.log.say(format!("{nanos} ns pass"));
        self.clock.advance(Duration::from_nanos(nanos));
        self.history.clock += nanos;
    }

    /// In good order.
    pub(super) fn shut_down(self) -> Done {
        let Process { history, log, broker, held, trouble, .. } = self;
        let done = broker.shutdown(Duration::ZERO);
        log.say(format!("shutdown: {done:?}"));
        drop(held);
        match done {
            Ok(_) => {
                history.shut_down();
                Ok(())
            }
            Err(_) if trouble() => Ok(()),
            Err(error) => Err(format!("shutdown: {error}")),
        }
    }
}
