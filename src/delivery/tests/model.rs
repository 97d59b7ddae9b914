//! The ledger against the naive model: random lives of a subscription, compared after every step.

use std::collections::BTreeSet;

use proptest::prelude::*;

use crate::delivery::ledger::{Counts, Rules};
use crate::delivery::retry::Beyond;
use crate::delivery::tests::naive::{Limit, Naive, Setting, Tally};
use crate::delivery::tests::{Fate, Letter, Rig, rules, seq, span};
use crate::options::{DeliveryMode, MessageStatus, RetryPolicy};

/// Few enough that a look always takes all there is.
const MESSAGES_MAX: usize = 48;

#[derive(Clone, Debug)]
pub(super) enum Op {
    Publish { letters: Vec<Letter> },
    Lease { max: u64 },
    Settle { which: usize, how: How },
    Commit { those: BTreeSet<usize> },
    Pass { time: u64 },
    Notice,
    BeginLook,
    FinishLooks { backwards: bool },
    Drop { message: usize },
    Remove { message: usize, count: usize },
    ExpireUnseen { message: usize },
    Seek { message: usize },
    Pause,
    Resume,
    Grave { open: bool },
    RetryParked,
    Restart,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum How {
    Ack,
    Nack(Option<u64>),
    Release,
    Reject,
    Extend(u64),
    Prepare,
    Abort,
    Finish,
    Spare,
}

pub(super) fn settings() -> impl Strategy<Value = Setting> {
    let modes = [DeliveryMode::AtLeastOnce, DeliveryMode::ExactlyOnce, DeliveryMode::AtMostOnce];
    let mode = prop_oneof![4 => Just(modes[0]), 3 => Just(modes[1]), 1 => Just(modes[2])];
    let limit = prop_oneof![
        2 => Just(Limit::None),
        1 => (1..4_u32).prop_map(Limit::Discard),
        2 => (1..4_u32).prop_map(Limit::Bury),
    ];
    let retry = prop_oneof![3 => Just(0), 2 => 1..15_u64];
    let outstanding_max = prop_oneof![1 => 1..5_u64, 2 => Just(1_000)];
    (mode, any::<[bool; 3]>(), retry, limit, outstanding_max).prop_map(
        |(mode, [ordered, looks, on_disk], retry, limit, outstanding_max)| {
            let once = mode == DeliveryMode::AtMostOnce;
            let (retry, limit) = if once { (0, Limit::None) } else { (retry, limit) };
            Setting { mode, ordered, looks, retry, limit, outstanding_max, on_disk }
        },
    )
}

fn letters() -> impl Strategy<Value = Letter> {
    let key = prop_oneof![1 => Just(None), 3 => (1..4_u64).prop_map(Some)];
    let fate = prop_oneof![
        20 => Just(Fate::Taken),
        2 => Just(Fate::FilteredOut),
        2 => Just(Fate::FilterPanics),
        1 => Just(Fate::Gone),
    ];
    let due = prop_oneof![4 => Just(0), 1 => 1..60_u64];
    let expires = prop_oneof![4 => Just(None), 1 => (1..80_u64).prop_map(Some)];
    let special = (key.clone(), due, expires, fate).prop_map(|(key, due, expires, fate)| Letter {
        key,
        due,
        expires,
        fate,
    });
    prop_oneof![3 => key.prop_map(|key| Letter { key, ..Letter::default() }), 1 => special]
}

pub(super) fn ops() -> impl Strategy<Value = Op> {
    let delay = prop_oneof![Just(None), (0..15_u64).prop_map(Some)];
    let how = prop_oneof![
        6 => Just(How::Ack),
        4 => delay.prop_map(How::Nack),
        3 => Just(How::Release),
        1 => Just(How::Reject),
        2 => (0..25_u64).prop_map(How::Extend),
        2 => Just(How::Prepare),
        1 => Just(How::Abort),
        2 => Just(How::Finish),
        2 => Just(How::Spare),
    ];
    // Mostly of the newest hand-outs; the others are stale.
    let which = prop_oneof![4 => Just(0), 4 => 0..4_usize, 1 => 0..100_usize];
    let those = prop_oneof![4 => 0..5_usize, 1 => 0..30_usize];
    let those = prop::collection::btree_set(those, 1..6);
    let message = 0..MESSAGES_MAX;
    prop_oneof![
        8 => prop::collection::vec(letters(), 1..5).prop_map(|letters| Op::Publish { letters }),
        12 => (1..7_u64).prop_map(|max| Op::Lease { max }),
        24 => (which, how).prop_map(|(which, how)| Op::Settle { which, how }),
        4 => those.prop_map(|those| Op::Commit { those }),
        6 => (1..13_u64).prop_map(|time| Op::Pass { time }),
        2 => Just(Op::Notice),
        2 => Just(Op::BeginLook),
        2 => any::<bool>().prop_map(|backwards| Op::FinishLooks { backwards }),
        1 => message.clone().prop_map(|message| Op::Drop { message }),
        1 => (message.clone(), 0..4_usize).prop_map(|(message, count)| Op::Remove { message, count }),
        1 => message.clone().prop_map(|message| Op::ExpireUnseen { message }),
        1 => message.prop_map(|message| Op::Seek { message }),
        1 => Just(Op::Pause),
        2 => Just(Op::Resume),
        2 => any::<bool>().prop_map(|open| Op::Grave { open }),
        1 => Just(Op::RetryParked),
        1 => Just(Op::Restart),
    ]
}

/// The ledger and the model, side by side.
pub(super) struct Pair {
    pub(super) rig: Rig,
    naive: Naive,
}

impl Pair {
    pub(super) fn new(setting: Setting) -> Self {
        let beyond = match setting.limit {
            Limit::None => Beyond::Retry,
            Limit::Discard(after) => Beyond::Discard { after },
            Limit::Bury(after) => Beyond::DeadLetter { after },
        };
        let retry = if setting.retry == 0 {
            RetryPolicy::immediate()
        } else {
            RetryPolicy::fixed(span(setting.retry))
        };
        let Setting { mode, ordered, looks, outstanding_max, on_disk, .. } = setting;
        let mut rig = Rig::new(Rules { mode, ordered, retry, beyond, outstanding_max, ..rules() });
        rig.looks = looks;
        rig.budget = usize::MAX;
        if on_disk {
            rig.be_on_disk();
        }
        Pair { rig, naive: Naive::new(setting) }
    }

    pub(super) fn step(&mut self, op: &Op) {
        let before = self.naive.settled();
        let generation_ended = self.act(op);
        self.compare();
        let news = self.rig.ledger.take_news();
        if !generation_ended {
            let told: BTreeSet<u64> = news.iter().flat_map(|(from, to)| from.get()..to.get()).collect();
            let new: BTreeSet<u64> = &self.naive.settled() - &before;
            assert!(
                new.is_subset(&told) && told.is_subset(&self.naive.settled()),
                "news {told:?} of {new:?}"
            );
        }
        self.rig.ledger.check_standings();
    }

    /// True: a new generation began.
    fn act(&mut self, op: &Op) -> bool {
        let Pair { rig, naive } = self;
        let count = rig.letters.len();
        match op {
            Op::Publish { letters } => {
                for letter in letters.iter().take(MESSAGES_MAX - count) {
                    rig.publish(*letter);
                    naive.publish(*letter);
                }
            }
            Op::Lease { max } => {
                let handed = rig.lease(*max);
                let handed = rig.tickets[handed].iter().map(|t| (t.sequence.get(), t.attempt));
                assert_eq!(handed.collect::<Vec<_>>(), naive.lease(*max), "hand-outs");
            }
            Op::Settle { which, how } if !rig.tickets.is_empty() => {
                let which = rig.tickets.len() - 1 - which % rig.tickets.len();
                self.settle(which, *how);
            }
            Op::Commit { those } => self.commit(those),
            Op::Pass { time } => {
                rig.now += time;
                naive.now += time;
            }
            Op::Notice => {
                rig.catch_up();
                naive.catch_up();
            }
            Op::BeginLook => {
                rig.begin_look();
                naive.begin_look();
            }
            Op::FinishLooks { backwards } => {
                rig.finish_looks(*backwards);
                naive.finish_looks(*backwards);
            }
            Op::Pause | Op::Resume => {
                naive.paused = matches!(op, Op::Pause);
                rig.ledger.set_paused(naive.paused);
            }
            Op::Grave { open } => {
                rig.grave_open = *open;
                naive.grave_open = *open;
            }
            Op::RetryParked => {
                rig.retry_parked();
                naive.retry_parked();
            }
            Op::Restart => {
                rig.restart();
                naive.restart();
            }
            _ if count > 0 => return self.topic_act(op, count),
            _ => {}
        }
        false
    }

    /// What the topic does to its messages.
    fn topic_act(&mut self, op: &Op, count: usize) -> bool {
        let Pair { rig, naive } = self;
        let place = |message: usize| seq(message as u64 + 1);
        match *op {
            Op::Drop { message } => {
                let message = message % count;
                assert_eq!(rig.ledger.handle_dropped(place(message)), naive.drop_message(message), "dropped");
            }
            Op::Remove { message, count: len } => {
                let from = message % count;
                let to = (from + len).min(count);
                rig.ledger.handle_removed(place(from), place(to));
                naive.remove(from..to);
            }
            Op::ExpireUnseen { message } => {
                let message = message % count;
                if rig.letters[message].expires.is_some_and(|at| at <= rig.now) {
                    rig.ledger.handle_unseen_expired(place(message));
                    naive.expire_unseen(message);
                }
            }
            Op::Seek { message } => {
                let start = message % (count + 1);
                rig.ledger.seek_to(place(start));
                naive.seek(start);
                return true;
            }
            _ => {}
        }
        false
    }

    fn settle(&mut self, which: usize, how: How) {
        let Pair { rig, naive } = self;
        let ticket = rig.tickets[which];
        let (real, model) = match how {
            How::Ack => (rig.ack(ticket), naive.ack(which)),
            How::Nack(after) => (rig.nack(ticket, after), naive.nack(which, after)),
            How::Release => (rig.release(ticket), naive.release(which)),
            How::Reject => (rig.reject(ticket, "no"), naive.reject(which)),
            How::Extend(by) => (rig.extend(ticket, by), naive.extend(which, by)),
            How::Prepare => (rig.prepare(ticket), naive.prepare(which)),
            How::Abort => {
                rig.ledger.abort_commit(ticket);
                naive.end_commit(which, false);
                (true, true)
            }
            How::Spare => {
                rig.ledger.spare(ticket);
                naive.spare(which);
                (true, true)
            }
            How::Finish => {
                rig.ledger.finish_commit(ticket);
                naive.end_commit(which, true);
                (true, true)
            }
        };
        assert_eq!(real, model, "answer to {how:?} of hand-out {which}");
    }

    /// Of the newest hand-outs, as they are numbered from the end; a transaction has each of them once, but may have two of one message.
    fn commit(&mut self, those: &BTreeSet<usize>) {
        let Pair { rig, naive } = self;
        let count = rig.tickets.len();
        let those: Vec<_> =
            those.iter().filter(|&&which| which < count).map(|which| count - 1 - which).collect();
        let tickets: Vec<_> = those.iter().map(|&which| rig.tickets[which]).collect();
        let (real, model) = (rig.commit(&tickets), naive.commit(&those));
        assert_eq!(real == 0, model == 0, "whether {those:?} can be committed: {real}, {model}");
        // Behind a gap in a key's run, how many are out of turn may be told in more than one way.
        let exact = !rig.ledger.rules().ordered;
        assert!(real == model || !exact && real < model, "how many of {those:?} cannot: {real}, {model}");
    }

    fn compare(&mut self) {
        let Pair { rig, naive } = self;
        let ledger = &rig.ledger;
        let statuses: Vec<_> = (1..=rig.letters.len() as u64).map(|n| ledger.status(seq(n))).collect();
        let expected = naive.statuses();
        assert_eq!(statuses, expected, "statuses");
        assert_eq!(tally(ledger.counts()), naive.tally, "counts");
        let count = |status| expected.iter().filter(|s| **s == status).count() as u64;
        let unsettled = expected.len() - naive.settled().len();
        assert_eq!(ledger.settled().unsettled_before(rig.tail()), unsettled as u64, "backlog");
        assert_eq!(ledger.outstanding(), count(MessageStatus::Leased), "outstanding");
        assert_eq!(ledger.delayed(), count(MessageStatus::Delayed), "delayed");
        assert_eq!(ledger.parked(), count(MessageStatus::Parked), "parked");
        assert_eq!(ledger.poll_timeout().map(|at| at.nanos()), naive.next_timeout(), "next timeout");
        assert_eq!(ledger.has_deliverable(rig.tail()), naive.has_deliverable(), "deliverable");
        rig.dead.sort();
        naive.dead.sort();
        assert_eq!(rig.dead, naive.dead, "dead letters");
    }
}

fn tally(counts: Counts) -> Tally {
    Tally {
        delivered: counts.delivered,
        redelivered: counts.redelivered,
        acked: counts.acked,
        nacked: counts.nacked,
        released: counts.released,
        leases_expired: counts.leases_expired,
        messages_expired: counts.messages_expired,
        dead_lettered: counts.dead_lettered,
        discarded: counts.discarded,
        filtered: counts.filtered,
    }
}

pub(super) fn cases() -> u32 {
    std::env::var("EVENTFLOW_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(2_000)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, max_shrink_iters: 20_000, ..ProptestConfig::default() })]

    #[test]
    fn the_ledger_does_what_the_naive_model_does(setting in settings(), ops in prop::collection::vec(ops(), 1..80)) {
        let mut pair = Pair::new(setting);
        for op in &ops {
            pair.step(op);
        }
        pair.rig.ledger.check_books();
    }
}
