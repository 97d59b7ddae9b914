//! What was found, against the history: nothing is missing, nothing is there that may not be, and what was unsure is decided.

use std::collections::BTreeMap;

use super::audit::{Found, FoundSubscription};
use super::eventflow::DeliveryMode;
use super::history::{Fate, History, Plan, Seen, Settled, Together};

/// The topic of dead letters.
pub(super) const DEAD: &str = "dead";

impl History {
    pub(super) fn compare(&mut self, found: &Found) -> Result<(), String> {
        self.compare_topics(found)?;
        self.decide(found)?;
        let mut undone = Vec::new();
        for number in 0..self.subscriptions.len() {
            let book = &self.subscriptions[number];
            if book.fate == Fate::Gone {
                continue;
            }
            let topic = &found.topics[&self.topics[book.topic].name];
            let found_one = &topic.subscriptions[&book.name];
            self.compare_book(number, found_one, &letters(found), &mut undone)?;
        }
        self.compare_together()?;
        self.compare_acks(&undone)?;
        self.compare_kept(found)?;
        self.acks.clear();
        Ok(())
    }

    fn compare_topics(&mut self, found: &Found) -> Result<(), String> {
        let mut known = BTreeMap::new();
        for number in 0..self.topics.len() {
            let topic = &mut self.topics[number];
            let is_there = found.topics.contains_key(&topic.name);
            match topic.fate {
                Fate::Sure if !is_there => return Err(format!("topic {} is gone", topic.name)),
                Fate::Unsure if !is_there => topic.fate = Fate::Gone,
                Fate::Unsure => topic.fate = Fate::Sure,
                Fate::Sure | Fate::Gone => {}
            }
            if topic.fate == Fate::Sure {
                known.insert(topic.name.clone(), number);
            }
        }
        if let Some(name) = found.topics.keys().find(|name| !known.contains_key(*name)) {
            return Err(format!("topic {name} was never created, or was deleted"));
        }
        for book in &mut self.subscriptions {
            let topic = &self.topics[book.topic];
            let is_topic_there = topic.fate == Fate::Sure;
            let is_there = is_topic_there && found.topics[&topic.name].subscriptions.contains_key(&book.name);
            book.fate = match book.fate {
                _ if !is_topic_there => Fate::Gone,
                Fate::Sure if !is_there => return Err(format!("subscription {} is gone", book.name)),
                Fate::Unsure if !is_there => Fate::Gone,
                Fate::Unsure => Fate::Sure,
                fate => fate,
            };
        }
        for (name, topic) in &found.topics {
            for book in topic.subscriptions.keys() {
                let is_known = |known: &super::history::Subscription| {
                    known.name == *book && self.topics[known.topic].name == *name && known.fate == Fate::Sure
                };
                if self.subscriptions.iter().filter(|known| is_known(known)).count() != 1 {
                    return Err(format!("subscription {book} was never created, or was deleted"));
                }
            }
        }
        Ok(())
    }

    /// A message of a publish that was under way is seen by all who are to see it, or by none; and so are all of its batch.
    fn decide(&mut self, found: &Found) -> Result<(), String> {
        let letters = letters(found);
        let mut batches: BTreeMap<u64, (usize, Fate)> = BTreeMap::new();
        for number in 0..self.messages.len() {
            let message = &self.messages[number];
            let topic = &self.topics[message.topic];
            if message.fate != Fate::Unsure {
                continue;
            }
            if topic.fate != Fate::Sure {
                self.messages[number].fate = Fate::Gone;
                continue;
            }
            let found_topic = &found.topics[&topic.name];
            let mut seen: Vec<bool> = Vec::new();
            if topic.forever {
                seen.push(found_topic.kept.iter().any(|seen| seen.message == number));
            }
            for book in &self.subscriptions {
                let is_reader = book.fate == Fate::Sure
                    && book.plan.mode != DeliveryMode::AtMostOnce
                    && book.takes(message);
                let standing = book.standings.get(&number).copied().unwrap_or_default();
                if is_reader && standing.settled == Settled::No && standing.dead == Fate::Gone {
                    let deliveries = &found_topic.subscriptions[&book.name].deliveries;
                    let is_dead = letters.contains_key(&(number, book.name.clone()));
                    seen.push(is_dead || deliveries.iter().any(|seen| seen.message == number));
                }
            }
            let fate = match (seen.contains(&true), seen.contains(&false)) {
                (true, true) => return Err(format!("P1: message {number} is seen by some")),
                (true, false) => Fate::Sure,
                (false, true) => Fate::Gone,
                (false, false) => continue,
            };
            let batch = self.messages[number].batch;
            let (first, other) = *batches.entry(batch).or_insert((number, fate));
            if other != fate {
                return Err(format!(
                    "P5: of one batch, message {first} is {other:?} and {number} is {fate:?}"
                ));
            }
            self.messages[number].fate = fate;
        }
        Ok(())
    }

    fn compare_book(
        &mut self,
        number: usize,
        found: &FoundSubscription,
        letters: &BTreeMap<(usize, String), usize>,
        undone: &mut Vec<(usize, usize)>,
    ) -> Result<(), String> {
        let before = self.subscriptions[number].clone();
        for seen in &found.deliveries {
            self.delivered(number, seen).map_err(|what| format!("{what}, after a crash"))?;
            let standing = self.subscriptions[number].standing(seen.message);
            (standing.held, standing.settled) = (false, Settled::Yes);
        }
        self.subscriptions[number] = before;
        let deliveries: BTreeMap<usize, &Seen> =
            found.deliveries.iter().map(|seen| (seen.message, seen)).collect();
        self.compare_options(number, found)?;
        for message in 0..self.messages.len() {
            self.compare_standing(number, message, deliveries.get(&message).copied(), letters, undone)?;
        }
        self.subscriptions[number].lost_at_most = 0;
        Ok(())
    }

    fn compare_options(&mut self, number: usize, found: &FoundSubscription) -> Result<(), String> {
        let book = &mut self.subscriptions[number];
        let came_in = |phase| found.deliveries.iter().any(|seen| seen.phase == phase);
        match book.paused {
            Some(true) if came_in(0) => return Err(format!("{} was paused, and delivers", book.name)),
            Some(false) if came_in(1) => {
                return Err(format!("{} was not paused, and had to be resumed", book.name));
            }
            _ => {}
        }
        if came_in(0) && came_in(1) {
            return Err(format!("{} delivered, and more when it was resumed", book.name));
        }
        if !book.outstanding_max.contains(&found.outstanding_max) {
            return Err(format!(
                "{} has an option {}: {:?}",
                book.name, found.outstanding_max, book.outstanding_max
            ));
        }
        book.outstanding_max = vec![found.outstanding_max];
        Ok(())
    }

    fn compare_standing(
        &mut self,
        number: usize,
        message: usize,
        seen: Option<&Seen>,
        letters: &BTreeMap<(usize, String), usize>,
        undone: &mut Vec<(usize, usize)>,
    ) -> Result<(), String> {
        let (published, clock) = (&self.messages[message], self.clock);
        let book = &mut self.subscriptions[number];
        let copies = letters.get(&(message, book.name.clone())).copied().unwrap_or(0);
        if published.fate != Fate::Sure || !book.takes(published) {
            return match copies {
                0 => Ok(()),
                _ => Err(format!("P11: message {message}, which is none of {}'s, is dead", book.name)),
            };
        }
        let Plan { mode, ordered, dead_after: after, discard_after, .. } = book.plan;
        let what = format!("message {message} ({:?}) on {}", published.id, book.name);
        if seen.is_some_and(|seen| seen.phase == 2 && published.due <= clock) && !ordered {
            return Err(format!("P1: {what} came late"));
        }
        let counts = book.after().is_some();
        let mut lost = book.lost_at_most;
        let standing = book.standing(message);
        match (seen, copies) {
            (Some(_), 1) => return Err(format!("P11: {what} is dead, and here")),
            (_, 2..) => return Err(format!("P11: {what} is dead {copies} times")),
            (Some(seen), _) => {
                // Where attempts are not promised to last, earlier ones may be remembered later.
                let most = if counts { 0 } else { standing.spent.1 };
                standing.spent = (seen.attempt - 1, most.max(seen.attempt - 1));
                if standing.settled == Settled::Maybe {
                    undone.push((number, message));
                }
                standing.settled = Settled::No;
                standing.dead = Fate::Gone;
            }
            (None, 1) => {
                let may_be =
                    standing.dead != Fate::Gone || after.is_some_and(|after| standing.spent.1 >= after);
                if !may_be || standing.settled == Settled::Yes {
                    return Err(format!("P11: {what} is dead, and nobody asked for that: {standing:?}"));
                }
                standing.dead = Fate::Sure;
                standing.settled = Settled::No;
            }
            (None, _) => {
                let is_fine = match standing.settled {
                    _ if standing.dead == Fate::Sure => {
                        return Err(format!("P11: {what} was dead, and is gone"));
                    }
                    Settled::Yes | Settled::Maybe | Settled::Here => true,
                    Settled::No if standing.may_be_settled => true,
                    Settled::No if discard_after.is_some_and(|after| standing.spent.1 >= after) => true,
                    Settled::No => mode == DeliveryMode::AtMostOnce && lost > 0,
                };
                if !is_fine {
                    return Err(format!("P1: {what} is gone: {standing:?}"));
                }
                lost -= u64::from(mode == DeliveryMode::AtMostOnce && standing.settled == Settled::No);
                standing.settled = Settled::Yes;
            }
        }
        book.standing(message).may_be_settled = false;
        book.lost_at_most = lost;
        Ok(())
    }

    /// P5, P16: what was under way with a transaction is there, and its acks are, or none of both.
    fn compare_together(&mut self) -> Result<(), String> {
        for Together { messages, acks } in std::mem::take(&mut self.together) {
            let fates = messages.iter().map(|&message| self.messages[message].fate);
            let fates: Vec<Fate> = fates.filter(|fate| *fate != Fate::Unsure).collect();
            for (number, message) in acks {
                let book = &self.subscriptions[number];
                let standing = book.standings.get(&message).copied().unwrap_or_default();
                // Out of attempts it may be settled by itself.
                if book.fate != Fate::Sure
                    || book.after().is_some()
                    || book.plan.mode == DeliveryMode::AtMostOnce
                {
                    continue;
                }
                let is_acked = standing.settled == Settled::Yes;
                if let Some(fate) = fates.iter().find(|fate| (**fate == Fate::Sure) != is_acked) {
                    return Err(format!(
                        "P16: of one transaction, {messages:?} is {fate:?}, and message {message} on {} is acked: {is_acked}",
                        book.name
                    ));
                }
            }
        }
        Ok(())
    }

    /// Of acks that a crash may undo, it undoes the newest.
    fn compare_acks(&self, undone: &[(usize, usize)]) -> Result<(), String> {
        let mut first_undone = None;
        for ack in &self.acks {
            let book = &self.subscriptions[ack.0];
            let standing = book.standings.get(&ack.1).copied().unwrap_or_default();
            // Undone, it may have been its last attempt.
            if book.fate != Fate::Sure || book.after().is_some_and(|after| standing.spent.1 >= after) {
                continue;
            }
            match first_undone {
                _ if undone.contains(ack) => first_undone = first_undone.or(Some(ack)),
                Some(first) => {
                    return Err(format!("P8: the ack {first:?} was undone, and {ack:?} after it was not"));
                }
                None => {}
            }
        }
        Ok(())
    }

    /// A topic that keeps all keeps all.
    fn compare_kept(&mut self, found: &Found) -> Result<(), String> {
        for number in 0..self.topics.len() {
            let Topic { name, forever, fate, .. } = &self.topics[number];
            if *fate != Fate::Sure || !*forever || name == DEAD {
                continue;
            }
            let kept = &found.topics[name].kept;
            let mut last = None;
            for seen in kept {
                if last.replace(seen.id).is_some_and(|last| last >= seen.id) {
                    return Err(format!("P4: {} comes after {last:?}", seen.id));
                }
                self.identify(seen.message, seen.id)?;
                let message = &self.messages[seen.message];
                if message.content != seen.content || message.topic != number || message.fate != Fate::Sure {
                    return Err(format!(
                        "P2: message {} is in {}: {message:?}",
                        seen.message, self.topics[number].name
                    ));
                }
            }
            let is_kept = |number: usize| kept.iter().any(|seen| seen.message == number);
            let missing = (0..self.messages.len()).find(|&message| {
                let published = &self.messages[message];
                published.topic == number && published.fate == Fate::Sure && !is_kept(message)
            });
            if let Some(missing) = missing {
                return Err(format!("P1: message {missing} is kept no more"));
            }
        }
        Ok(())
    }
}

use super::history::Topic;

/// How often each message is dead, by its number and its subscription.
fn letters(found: &Found) -> BTreeMap<(usize, String), usize> {
    let mut letters = BTreeMap::new();
    let dead = found.topics.get(DEAD).map(|topic| topic.kept.as_slice()).unwrap_or_default();
    for (seen, origin) in dead.iter().filter_map(|seen| Some((seen, seen.origin.as_ref()?))) {
        *letters.entry((seen.message, origin.0.clone())).or_insert(0) += 1;
    }
    letters
}
