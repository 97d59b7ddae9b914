//! What a transaction asks of the model.

use crate::delivery::tests::naive::{Naive, Place};
use crate::options::MessageStatus;

impl Naive {
    /// Acks all of these hand-outs, if it can. Gives how many it cannot; if it is not none, nothing changed.
    pub(in crate::delivery::tests) fn commit(&mut self, those: &[usize]) -> u64 {
        let refused = those.iter().filter(|&&which| !self.may_commit(which, those)).count();
        if refused == 0 {
            let mut messages: Vec<_> = those.iter().map(|&which| self.hand_outs[which].message).collect();
            messages.sort_unstable();
            for n in messages {
                self.tally.acked += 1;
                self.finish(n, MessageStatus::Acked);
            }
        }
        refused as u64
    }

    /// Its lease runs, whether or not anybody has noticed that it does not, and nothing before it of its key is left out.
    fn may_commit(&self, which: usize, those: &[usize]) -> bool {
        let Some(n) = self.held_by(which) else { return false };
        let runs = matches!(self.messages[n].place, Place::Held { deadline, .. } if deadline > self.now);
        let among = |m: usize| those.iter().any(|&other| self.hand_outs[other].message == m);
        runs && (0..n).filter(|&m| self.same_key(m, n) && self.is_open(m)).all(among)
    }

    pub(in crate::delivery::tests) fn spare(&mut self, which: usize) {
        if let Some(n) = self.held_by(which) {
            self.messages[n].spared = true;
        }
    }

    pub(in crate::delivery::tests) fn prepare(&mut self, which: usize) -> bool {
        self.catch_up();
        let Some(n) = self.held_by(which).filter(|&n| !self.is_behind(n)) else { return false };
        if let Place::Held { committing, .. } = &mut self.messages[n].place {
            *committing = true;
        }
        true
    }

    pub(in crate::delivery::tests) fn end_commit(&mut self, which: usize, succeeds: bool) {
        let n = self.hand_outs[which].message;
        match &mut self.messages[n].place {
            Place::Held { hand_out, committing, .. } if *hand_out == which && *committing => {
                *committing = false
            }
            _ => return,
        }
        if succeeds {
            self.tally.acked += 1;
            self.finish(n, MessageStatus::Acked);
        }
    }
}
