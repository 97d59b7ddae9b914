//! What a program publishes, and what it repeats under an idempotency id.

use std::time::Duration;

use super::super::audit::event;
use super::super::eventflow::{Message, MessageId, PublishError, PublishErrorKind, Receipt};
use super::super::history::{self, Answer, Content, Fate};
use super::{DELAY, Done, Process, WINDOW};

impl Process<'_> {
    pub(super) fn draw_message(&mut self) -> (Content, u64) {
        let len = match self.random.below(10) {
            0 => 2_000 + self.random.below(4_000),
            1..4 => 300 + self.random.below(600),
            _ => 10 + self.random.below(60),
        };
        let content = Content {
            len: len as usize,
            attribute: [None, Some("0"), Some("1"), Some("1")][self.random.below(4) as usize]
                .map(str::to_owned),
            key: [None, None, Some("a"), Some("b")][self.random.below(4) as usize].map(str::to_owned),
            idempotency: None,
        };
        let delay = if self.random.below(12) == 0 { DELAY } else { Duration::ZERO };
        (content, delay.as_nanos() as u64)
    }

    pub(super) fn message(&self, number: usize) -> Message<String> {
        let history::Message { content, published, due, .. } = &self.history.messages[number];
        let mut message = Message::new(event(number, content.len));
        if let Some(attribute) = &content.attribute {
            message = message.attribute("k", attribute);
        }
        if let Some(key) = &content.key {
            message = message.ordering_key(key);
        }
        if let Some(id) = &content.idempotency {
            message = message.idempotency_id(id.as_str());
        }
        if due > published {
            message = message.deliver_after(Duration::from_nanos(due - published));
        }
        message
    }

    pub(in super::super) fn publish(&mut self) -> Done {
        let Some(topic) = self.pick_topic() else { return Ok(()) };
        let (mut content, delay) = self.draw_message();
        if self.random.below(3) == 0 {
            content.idempotency = Some(format!("id{}", self.history.messages.len()));
        }
        let numbers = self.history.publish(topic, &[(content, delay)]);
        let number = numbers[0];
        let published = self.topics[&topic].publish(self.message(number));
        self.log.say(format!("publish {number} on {topic}: {}", said_of(&published)));
        match published {
            Ok(receipt) => {
                self.accepts(&receipt, number)?;
                self.history.published(number, Answer::Yes, Some(receipt.id))
            }
            Err(PublishError::Indeterminate { .. }) => {
                self.poisoned = true;
                self.history.published(number, Answer::Unknown, None)
            }
            Err(PublishError::Storage { .. }) if self.in_trouble() => {
                self.history.published(number, Answer::No, None)
            }
            Err(error) => Err(format!("publish {number}: {error}")),
        }
    }

    pub(super) fn accepts(&self, receipt: &Receipt, number: usize) -> Done {
        if receipt.deduplicated {
            return Err(format!("P14: message {number} is taken for another, {}", receipt.id));
        }
        if self.poisoned {
            return Err(format!("P19: message {number} was accepted after a failure"));
        }
        Ok(())
    }

    pub(in super::super) fn publish_all(&mut self) -> Done {
        let Some(topic) = self.pick_topic() else { return Ok(()) };
        let count = 2 + self.random.below(5);
        let mut contents: Vec<_> = (0..count).map(|_| self.draw_message()).collect();
        // Every other batch goes the short way.
        if self.history.messages.len().is_multiple_of(2) {
            let plain = |len| Content { len, attribute: None, key: None, idempotency: None };
            contents.iter_mut().for_each(|(content, delay)| (*content, *delay) = (plain(content.len), 0));
        }
        let numbers = self.history.publish(topic, &contents);
        let messages: Vec<_> = numbers.iter().map(|&number| self.message(number)).collect();
        let published = self.topics[&topic].publish_all(messages);
        let said = published.as_ref().map_err(|error| error.kind.to_string());
        self.log.say(format!("publish {numbers:?} on {topic}: {said:?}"));
        let (answer, receipts): (_, Vec<Option<MessageId>>) = match &published {
            Ok(receipts) => {
                for (receipt, number) in receipts.iter().zip(&numbers) {
                    self.accepts(receipt, *number)?;
                }
                (Answer::Yes, receipts.iter().map(|receipt| Some(receipt.id)).collect())
            }
            Err(error) => match error.kind {
                PublishErrorKind::Indeterminate { .. } => {
                    self.poisoned = true;
                    (Answer::Unknown, vec![None; numbers.len()])
                }
                PublishErrorKind::Storage { .. } if self.in_trouble() => {
                    (Answer::No, vec![None; numbers.len()])
                }
                _ => return Err(format!("publish {numbers:?}: {error:?}")),
            },
        };
        for (number, receipt) in numbers.into_iter().zip(receipts) {
            self.history.published(number, answer, receipt)?;
        }
        Ok(())
    }

    /// The same again under its idempotency id, or another under it.
    pub(in super::super) fn repeat(&mut self) -> Done {
        let Some(topic) = self.pick_topic() else { return Ok(()) };
        let ids: Vec<usize> = self.history.topics[topic].by_idempotency.values().copied().collect();
        let newest = ids.iter().copied().max();
        let Some(first) = newest.filter(|_| self.random.below(3) > 0).or_else(|| self.pick(ids.into_iter()))
        else {
            return Ok(());
        };
        let conflicts = self.random.below(5) == 0;
        let original = self.history.messages[first].clone();
        let age = self.history.clock - original.published;
        let is_known = age < WINDOW.as_nanos() as u64;
        if age.abs_diff(WINDOW.as_nanos() as u64) < 1_000_000 || original.content.idempotency.is_none() {
            return Ok(());
        }
        // The event says its number, so a new one differs; the same again is the old event.
        let mut content = original.content.clone();
        content.len = content.len.max(40);
        let numbers = self.history.publish(topic, &[(content, 0)]);
        let number = numbers[0];
        let same = !conflicts && is_known;
        let mut message = if same { self.message(first) } else { self.message(number) };
        if same && original.due > original.published {
            message = message.deliver_after(DELAY);
        }
        let published = self.topics[&topic].publish(message);
        self.log.say(format!("repeat {first} as {number} on {topic}, same {same}: {}", said_of(&published)));
        let fate = if is_known { original.fate } else { Fate::Gone };
        match (published, fate) {
            (Ok(receipt), Fate::Sure | Fate::Unsure) if same && receipt.deduplicated => {
                self.history.published(number, Answer::No, None)?;
                self.history.messages[first].fate = Fate::Sure;
                self.history.identify(first, receipt.id)
            }
            (Err(PublishError::IdempotencyConflict(_)), Fate::Sure | Fate::Unsure) if !same => {
                self.history.messages[first].fate = Fate::Sure;
                self.history.published(number, Answer::No, None)
            }
            (Ok(receipt), Fate::Gone | Fate::Unsure) if !receipt.deduplicated => {
                self.accepts(&receipt, number)?;
                self.became(first, number, same, Answer::Yes, Some(receipt.id))
            }
            (Err(PublishError::Indeterminate { .. }), _) => {
                self.poisoned = true;
                self.became(first, number, same, Answer::Unknown, None)
            }
            (Err(PublishError::Storage { .. }), _) if self.in_trouble() => {
                self.history.published(number, Answer::No, None)
            }
            (published, fate) => {
                Err(format!("P14: {first} again as {number}, which was {fate:?}: {}", said_of(&published)))
            }
        }
    }

    /// The repeat was news. The event says the first one's number: that one is what was published now.
    fn became(
        &mut self,
        first: usize,
        number: usize,
        same: bool,
        answer: Answer,
        id: Option<MessageId>,
    ) -> Done {
        if !same {
            return self.history.published(number, answer, id);
        }
        self.history.published(number, Answer::No, None)?;
        // It was not there before: whatever was said of it was said of nothing.
        for book in &mut self.history.subscriptions {
            book.standings.remove(&first);
        }
        let (born, batch, published) = {
            let now = &self.history.messages[number];
            (now.born, now.batch, now.published)
        };
        let again = &mut self.history.messages[first];
        again.due = published + (again.due - again.published);
        (again.born, again.batch, again.published, again.id) = (born, batch, published, None);
        self.history.published(first, answer, id)
    }
}

fn said_of<E>(published: &Result<Receipt, PublishError<E>>) -> String {
    match published {
        Ok(receipt) => format!("{receipt:?}"),
        Err(error) => format!("{error}"),
    }
}
