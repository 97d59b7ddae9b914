//! What a program consumes, transforms and produces in one transaction; and where it seeks to.

use super::super::eventflow::{CommitReason, DeliveryMode, Seek, SeekError};
use super::super::history::{Answer, Content, Together};
use super::{Done, Process};

impl Process<'_> {
    /// Acks some of what is held, and publishes to one topic or two.
    pub(in super::super) fn transact(&mut self) -> Done {
        let Some(first) = self.pick_topic() else { return Ok(()) };
        let second = self.pick_topic().filter(|_| self.random.below(2) == 0);
        let topics: Vec<usize> =
            [Some(first), second.filter(|&topic| topic != first)].into_iter().flatten().collect();
        let contents: Vec<_> = (0..1 + self.random.below(3)).map(|_| self.draw_message()).collect();
        let to = |n: usize| topics[n % topics.len()];
        let outputs: Vec<(usize, (Content, u64))> =
            contents.into_iter().enumerate().map(|(n, content)| (to(n), content)).collect();
        let messages = self.history.publish_together(&outputs);
        let mut tx = self.broker.transaction();
        let mut acks = Vec::new();
        for _ in 0..self.random.below(3).min(self.held.len() as u64) {
            let at = self.random.below(self.held.len() as u64) as usize;
            let (number, message, delivery) = self.held.remove(at);
            tx.ack(delivery);
            acks.push((number, message));
        }
        for &number in &messages {
            tx.publish(&self.topics[&self.history.messages[number].topic], self.message(number));
        }
        if self.random.below(8) == 0 {
            tx.rollback();
            self.log.say(format!("transaction of {acks:?} and {messages:?} rolled back"));
            return self.comes_to_nothing(&messages, &acks);
        }
        let committed = tx.commit();
        let said = committed.as_ref().map_err(|failed| failed.reason.clone());
        self.log.say(format!("transaction of {acks:?} and {messages:?}: {said:?}"));
        let reason = match committed {
            Ok(receipts) => {
                for (&number, receipt) in messages.iter().zip(&receipts) {
                    self.accepts(receipt, number)?;
                    self.history.published(number, Answer::Yes, Some(receipt.id))?;
                }
                acks.iter().for_each(|&(number, message)| self.history.committed(number, message));
                return Ok(());
            }
            Err(failed) => failed.reason,
        };
        match reason {
            CommitReason::Indeterminate { .. } => {
                self.poisoned = true;
                for &number in &messages {
                    self.history.published(number, Answer::Unknown, None)?;
                }
                for &(number, message) in &acks {
                    self.history.may_have_acked(number, message);
                    self.release_followers(number, message);
                }
                self.history.together.push(Together { messages, acks });
                Ok(())
            }
            CommitReason::Storage { .. } if self.in_trouble() => self.comes_to_nothing(&messages, &acks),
            // One of a run whose first went back.
            CommitReason::LeaseExpired { .. }
                if acks.iter().any(|&(number, _)| self.history.subscriptions[number].plan.ordered) =>
            {
                self.comes_to_nothing(&messages, &acks)
            }
            reason => Err(format!("P16: a transaction of {acks:?} failed: {reason:?}")),
        }
    }

    fn comes_to_nothing(&mut self, messages: &[usize], acks: &[(usize, usize)]) -> Done {
        for &number in messages {
            self.history.published(number, Answer::No, None)?;
        }
        for &(number, message) in acks {
            self.fails(number, message, false);
            if self.history.subscriptions[number].plan.ordered {
                // It may have gone back with an earlier one of its key.
                self.history.subscriptions[number].standing(message).spent.0 = 0;
            }
        }
        Ok(())
    }

    /// Of what is kept for ever.
    pub(in super::super) fn seek_some(&mut self) -> Done {
        let Some(number) = self.pick_subscription() else { return Ok(()) };
        let book = &self.history.subscriptions[number];
        let is_simple = book.plan.mode != DeliveryMode::AtMostOnce
            && book.plan.dead_after.is_none()
            && !book.plan.ordered;
        if !is_simple || !self.history.topics[book.topic].forever {
            return Ok(());
        }
        let to_end = self.random.below(2) == 0;
        let done = self.subscriptions[&number].seek(if to_end { Seek::Latest } else { Seek::Earliest });
        self.log.say(format!("s{number} seeks to its end {to_end}: {done:?}"));
        if matches!(done, Ok(()) | Err(SeekError::Indeterminate { .. })) {
            // What was held is given back in vain.
            self.held.retain(|(of, ..)| *of != number);
        }
        match done {
            Ok(()) => self.history.sought(number, to_end, Answer::Yes),
            Err(SeekError::Storage { .. }) if self.in_trouble() => {}
            Err(SeekError::Indeterminate { .. }) if self.in_trouble() => {
                self.history.sought(number, to_end, Answer::Unknown);
            }
            Err(error) => return Err(format!("s{number} seeks: {error}")),
        }
        Ok(())
    }
}
