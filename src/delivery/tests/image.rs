//! A book goes to bytes and comes back: it goes on as if all its leases had ended.

use proptest::prelude::*;

use crate::binary::Flaw;
use crate::delivery::image::REASON_LEN_MAX;
use crate::delivery::ledger::{Ledger, Rules, Standing};
use crate::delivery::retry::{Beyond, Reason};
use crate::delivery::settled::Outcome;
use crate::delivery::tests::language::{Stage, check};
use crate::delivery::tests::model::{Op, Pair, cases, ops, settings};
use crate::delivery::tests::naive::{Limit, Setting};
use crate::delivery::tests::{Fate, Letter, Rig, rules, seq, span};
use crate::options::{DeliveryMode, MessageStatus};
use crate::sequence::Sequence;
use crate::time::Tick;

impl Rig {
    /// What an engine does when it opens: the book is read, goes on, and looks at what it remembers.
    pub(super) fn restart(&mut self) {
        self.reopen(&self.ledger.image());
        self.recall();
    }

    pub(super) fn reopen(&mut self, image: &[u8]) {
        let rules = self.ledger.rules().clone();
        self.ledger = Ledger::from_image(rules, image, 7).expect("an image is read back");
        if self.on_disk {
            self.be_on_disk();
        }
        assert!(self.ledger.reach() <= self.tail(), "{:?}", self.ledger);
        assert_eq!(self.ledger.image(), image, "what was read says the same again");
        self.ledger.resume(self.tick());
        self.looking.clear();
        self.tickets.clear();
        self.events.clear();
    }

    pub(super) fn recall(&mut self) {
        while let Some(examination) = self.ledger.poll_recall(self.tail()) {
            self.finish_look(examination);
        }
        assert!(self.ledger.memories.is_none(), "all is recalled: {:?}", self.ledger);
        self.carry_out();
    }

    /// Nothing is remembered of new messages, also if they were looked at.
    fn look_up_to(&mut self, end: Sequence) {
        while let Some(examination) = self.ledger.poll_examine(end) {
            self.finish_look(examination);
        }
    }

    /// Every lease ends at this moment, as by its deadline.
    fn end_all_leases(&mut self) {
        let ledger = &mut self.ledger;
        ledger.dissolve_all_runs();
        let mut held: Vec<_> = ledger.entries.iter().map(|(&sequence, entry)| (sequence, *entry)).collect();
        held.sort_unstable_by_key(|held| held.0);
        for (sequence, entry) in held {
            if let Standing::Committing { lease, deadline } = entry.standing {
                ledger.restand(sequence, Standing::Leased { lease, deadline });
            }
        }
        let now = Tick::from_nanos(self.now);
        for number in 1..ledger.cursor.get() {
            let Some(entry) = ledger.entries.get(&seq(number)).copied() else { continue };
            match entry.standing {
                Standing::Leased { .. } if entry.spared => ledger.give_back(seq(number)),
                Standing::Leased { .. } => {
                    ledger.counts.leases_expired += 1;
                    ledger.end_lease(seq(number), now, None, Reason::Expired);
                }
                _ => {}
            }
        }
        self.looking.clear();
        ledger.retry_parked();
        self.carry_out();
    }

    /// What is said of each message, and how often it was handed out.
    fn standings(&self) -> Vec<(MessageStatus, u32)> {
        let attempts = |sequence| self.ledger.entries.get(&sequence).map_or(0, |entry| entry.attempts);
        (1..self.tail().get()).map(|n| (self.ledger.status(seq(n)), attempts(seq(n)))).collect()
    }

    /// All that is handed out from now on, if everything is acked at once: when, which, and for the how manyth time. In order within a key only.
    fn drain(&mut self) -> Vec<(u64, u64, u32)> {
        let mut handed = Vec::new();
        self.ledger.set_paused(false);
        for _ in 0..200 {
            loop {
                let batch = self.lease(7);
                if batch.is_empty() {
                    break;
                }
                for at in batch {
                    let ticket = self.tickets[at];
                    handed.push((self.now, ticket.sequence.get(), ticket.attempt));
                    assert!(self.ack(ticket), "{ticket:?}");
                }
            }
            self.now += 1;
        }
        handed.sort_unstable();
        handed
    }
}

/// Lives in which a look finds the same each time.
fn steady(op: &Op) -> Op {
    let steady = |letter: &Letter| match letter.fate {
        Fate::FilterPanics => Letter { fate: Fate::Taken, ..*letter },
        _ => *letter,
    };
    match op {
        Op::Publish { letters } => Op::Publish { letters: letters.iter().map(steady).collect() },
        Op::BeginLook | Op::Restart => Op::Notice,
        other => other.clone(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases() / 4, failure_persistence: None, max_shrink_iters: 20_000, ..ProptestConfig::default() })]

    #[test]
    fn a_restored_book_goes_on_as_if_all_its_leases_had_ended(setting in settings(), ops in prop::collection::vec(ops(), 1..60)) {
        let live = || {
            let mut pair = Pair::new(setting);
            ops.iter().for_each(|op| pair.step(&steady(op)));
            pair.rig.catch_up();
            pair.rig
        };
        let (mut original, mut restored) = (live(), live());
        original.end_all_leases();
        restored.restart();
        restored.look_up_to(original.ledger.cursor());
        original.catch_up();
        restored.catch_up();
        restored.ledger.check_books();
        prop_assert_eq!(original.standings(), restored.standings());
        prop_assert_eq!(original.ledger.counts(), restored.ledger.counts());
        let figures = |rig: &Rig| (rig.ledger.settled().unsettled_before(rig.tail()), rig.ledger.parked(), rig.ledger.delayed(), rig.ledger.poll_timeout(), rig.ledger.has_deliverable(rig.tail()));
        prop_assert_eq!(figures(&original), figures(&restored));
        original.dead.sort();
        restored.dead.sort();
        prop_assert_eq!(&original.dead, &restored.dead);
        prop_assert_eq!(original.drain(), restored.drain());
        prop_assert_eq!(original.standings(), restored.standings());
        restored.ledger.check_books();
    }

    /// What receivers do where nobody recalled: it comes to the same, in another order.
    #[test]
    fn a_receiver_recalls_what_nobody_has(setting in settings(), ops in prop::collection::vec(ops(), 1..60)) {
        let live = || {
            let mut pair = Pair::new(setting);
            ops.iter().for_each(|op| pair.step(&steady(op)));
            pair.rig
        };
        let (mut eager, mut lazy) = (live(), live());
        eager.restart();
        lazy.reopen(&lazy.ledger.image());
        prop_assert_eq!(eager.drain(), lazy.drain());
        prop_assert_eq!(eager.standings(), lazy.standings());
        lazy.ledger.check_books();
        prop_assert!(lazy.ledger.memories.is_none() || lazy.ledger.settled().unsettled_before(lazy.tail()) > 0);
    }

    #[test]
    fn bytes_that_are_no_image_are_refused_or_are_some_book(setting in settings(), ops in prop::collection::vec(ops(), 1..40), cut: u16, flips: u16) {
        let mut pair = Pair::new(setting);
        ops.iter().for_each(|op| pair.step(op));
        let image = pair.rig.ledger.image();
        let read = |bytes: &[u8]| {
            if let Ok(mut ledger) = Ledger::from_image(rules(), bytes, 7) {
                ledger.settled().check();
                ledger.resume(Tick::from_nanos(5));
                let _ = (ledger.reach(), ledger.parked(), ledger.image());
                ledger.replay_settled(seq(1), seq(9), Outcome::Acked);
                while ledger.poll_recall(seq(1_000)).is_some() {}
            }
        };
        read(&image[..usize::from(cut) % image.len()]);
        for bit in (0..image.len() * 8).skip(usize::from(flips) % 7).step_by(7) {
            let mut flipped = image.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            read(&flipped);
        }
    }
}

/// Its first message leased, its second waiting to come back at 50, its third parked, its fourth new.
fn varied() -> Rig {
    let mut rig = Rig::new(Rules { beyond: Beyond::DeadLetter { after: 3 }, ..rules() });
    rig.grave_open = false;
    (0..4).for_each(|_| rig.publish(Letter::default()));
    rig.lease(3);
    assert!(rig.nack(rig.tickets[1], Some(50)) && rig.reject(rig.tickets[2], "bad"));
    rig
}

#[test]
fn an_image_is_these_bytes() {
    let rig = varied();
    let image: String = rig.ledger.image().iter().map(|byte| format!("{byte:02x}")).collect();
    let head = "01 00 00 03 00 00 01 00 00 00 00 00 00 03 01 00 01";
    let memories = "01 01 01 01  00 01 01 00 32  00 01 01 04 03 03 626164";
    assert_eq!(image, format!("{head}{memories}").replace(' ', ""));
}

#[test]
fn a_lease_spends_its_attempt_also_when_everything_ends() {
    let mut rig = varied();
    rig.restart();
    let statuses: Vec<_> = rig.standings();
    let (waiting, delayed, parked) = (MessageStatus::Waiting, MessageStatus::Delayed, MessageStatus::Parked);
    assert_eq!(statuses, [(waiting, 1), (delayed, 1), (parked, 1), (waiting, 0)]);
    rig.lease(1);
    assert_eq!((rig.tickets[0].sequence, rig.tickets[0].attempt), (seq(1), 2));
    rig.restart();
    rig.lease(1);
    assert_eq!((rig.tickets[0].sequence, rig.tickets[0].attempt), (seq(1), 3), "its last");
    rig.grave_open = true;
    rig.restart();
    assert_eq!(rig.ledger.status(seq(1)), MessageStatus::DeadLettered, "it ended everything each time");
    assert_eq!(
        rig.dead.iter().map(|dead| dead.reason.as_str()).collect::<Vec<_>>(),
        ["ack deadline expired", "bad"]
    );
}

#[test]
fn a_parked_message_is_counted_before_it_is_looked_at() {
    let mut rig = varied();
    rig.reopen(&rig.ledger.image());
    assert_eq!((rig.ledger.parked(), rig.ledger.status(seq(3))), (1, MessageStatus::Parked));
    assert!(rig.ledger.handle_dropped(seq(3)));
    assert_eq!(rig.ledger.parked(), 0);
    let mut rig = varied();
    rig.reopen(&rig.ledger.image());
    rig.ledger.handle_removed(seq(2), seq(4));
    assert_eq!(rig.ledger.parked(), 0, "what is not in the log any more is not remembered");
    rig.recall();
    assert_eq!(rig.ledger.status(seq(1)), MessageStatus::Waiting);
}

#[test]
fn a_seek_ends_what_is_remembered() {
    let mut rig = varied();
    rig.reopen(&rig.ledger.image());
    rig.ledger.seek_to(seq(1));
    rig.lease(9);
    let handed: Vec<_> = rig.tickets.iter().map(|ticket| (ticket.sequence.get(), ticket.attempt)).collect();
    assert_eq!(handed, [(1, 1), (2, 1), (3, 1), (4, 1)]);
}

#[test]
fn a_dead_letter_on_its_way_keeps_its_reason() {
    let mut rig = varied();
    rig.carries_out = false;
    rig.retry_parked();
    assert!(rig.ledger.take_events().is_empty(), "the engine has it in hand");
    rig.ledger.set_expiries(|_| Tick::NEVER);
    rig.carries_out = true;
    rig.grave_open = true;
    rig.restart();
    assert_eq!((rig.dead[0].message, rig.dead[0].reason.as_str()), (3, "bad"));
}

#[test]
fn a_filter_that_has_changed_its_mind_loses_no_dead_letter() {
    let mut rig = varied();
    rig.grave_open = true;
    rig.letters.iter_mut().for_each(|letter| letter.fate = Fate::FilteredOut);
    rig.restart();
    assert_eq!(rig.dead.iter().map(|dead| dead.message).collect::<Vec<_>>(), [3]);
    assert_eq!(rig.ledger.counts().filtered, 2, "the fourth is not looked at: nothing is known of it");
}

/// Whether it is first of its key decides what a panic of the filter does to it, and a dead letter before it may be in its topic by then.
#[test]
fn a_dead_letter_of_one_look_frees_its_key_for_the_next_look() {
    let panics = Letter { key: Some(1), fate: Fate::FilterPanics, ..Letter::default() };
    let gone = Letter { fate: Fate::Gone, ..Letter::default() };
    let setting = Setting {
        mode: DeliveryMode::AtLeastOnce,
        ordered: true,
        looks: false,
        retry: 1,
        limit: Limit::Bury(2),
        outstanding_max: 2,
        on_disk: false,
    };
    for letters in [vec![panics, gone, panics], vec![panics, panics]] {
        let mut pair = Pair::new(setting);
        for op in [Op::Publish { letters }, Op::Lease { max: 1 }, Op::Pass { time: 1 }, Op::Lease { max: 1 }]
        {
            pair.step(&op);
        }
        pair.step(&Op::Restart);
    }
    // The gap ends the look.
    check(
        "ordered; dead 2; publish a? .- a?; lease; restart; is 1 3; graves",
        "1#2 DeadLettered DeadLettered 1#3:filter panicked 3#2:filter panicked",
    );
    check(
        "ordered; dead 2; publish a? a?; lease; restart; is 1 2; graves; lease",
        "1#2 DeadLettered Waiting 1#3:filter panicked 2#3",
    );
}

#[test]
fn a_publish_delay_that_runs_holds_whatever_is_remembered() {
    for (replay, at_last) in [
        ((|ledger| ledger.replay_attempts(seq(1), seq(2), 1)) as fn(&mut Ledger), "1#2"),
        (|ledger| ledger.replay_delayed(seq(1), Tick::from_nanos(3), 2), "1#3"),
    ] {
        for retry in ["", "retry 2; "] {
            let mut stage = Stage::perform(&format!("{retry}publish .@5"));
            replay(&mut stage.rig.ledger);
            stage.rig.restart();
            stage.play("is 1; next; at 4; lease; at 5; lease");
            assert_eq!(stage.printed, ["Delayed", "@5", "-", at_last]);
        }
    }
}

#[test]
fn what_the_journal_tells_after_the_image_counts() {
    let mut rig = Rig::new(Rules { beyond: Beyond::DeadLetter { after: 3 }, ..rules() });
    (0..8).for_each(|_| rig.publish(Letter::default()));
    let mut ledger =
        Ledger::from_image(rig.ledger.rules().clone(), &rig.ledger.image(), 7).expect("an image");
    ledger.replay_attempts(seq(1), seq(7), 1);
    ledger.replay_settled(seq(1), seq(3), Outcome::Acked);
    ledger.replay_settled(seq(5), seq(6), Outcome::Acked);
    ledger.replay_attempts(seq(3), seq(4), 3);
    ledger.replay_attempts(seq(4), seq(5), 0);
    ledger.replay_delayed(seq(6), Tick::from_nanos(30), 2);
    ledger.replay_attempts(seq(5), seq(6), 9);
    ledger.replay_parked(seq(7), Reason::Rejected("bad".into()), 1);
    assert_eq!((ledger.reach(), ledger.counts().acked), (seq(8), 3));
    ledger.resume(Tick::ZERO);
    rig.ledger = ledger;
    rig.recall();
    let (waiting, delayed, acked) = (MessageStatus::Waiting, MessageStatus::Delayed, MessageStatus::Acked);
    let dead = MessageStatus::DeadLettered;
    let expected =
        [(acked, 0), (acked, 0), (dead, 0), (waiting, 0), (acked, 0), (delayed, 2), (dead, 0), (waiting, 0)];
    assert_eq!(rig.standings(), expected);
    assert_eq!(rig.dead.iter().map(|dead| dead.message).collect::<Vec<_>>(), [3, 7]);
    rig.ledger.check_books();
}

#[test]
fn a_restored_book_looks_before_it_believes_that_all_is_plain() {
    let mut rig = Rig::new(rules());
    (0..3).for_each(|_| rig.publish(Letter::default()));
    rig.lease(1);
    rig.reopen(&rig.ledger.image());
    assert_eq!(rig.ledger.next_plain(rig.tick(), rig.tail()), None);
    rig.lease(3);
    let handed: Vec<_> = rig.tickets.iter().map(|ticket| (ticket.sequence.get(), ticket.attempt)).collect();
    assert_eq!(handed, [(1, 2), (2, 1), (3, 1)]);
    rig.publish(Letter::default());
    assert_eq!(rig.ledger.next_plain(rig.tick(), rig.tail()), Some(seq(4)));
}

#[test]
fn a_length_that_no_topic_has_costs_nothing() {
    let mut bytes = Ledger::new(rules(), Sequence::FIRST, 7).image();
    // From the first on, 2^60 messages, leased once.
    bytes.extend_from_slice(&[1, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x10, 1, 1]);
    let mut ledger = Ledger::from_image(rules(), &bytes, 7).expect("it is well formed");
    assert_eq!(ledger.reach(), seq((1 << 60) + 1), "which shows that it is no book of a shorter topic");
    ledger.resume(Tick::ZERO);
    assert!(ledger.poll_recall(seq(3)).is_some() && ledger.poll_recall(seq(3)).is_none());
    let error = Ledger::from_image(rules(), &bytes[..bytes.len() - 1], 7).expect_err("it ends too early");
    assert_eq!(
        error.to_string(),
        format!("no image of a subscription's book: {}, at byte {}", Flaw::Short, bytes.len() - 1)
    );
}

#[test]
fn a_reason_is_kept_up_to_its_limit() {
    let mut rig = Rig::new(Rules {
        beyond: Beyond::DeadLetter { after: 3 },
        mode: DeliveryMode::ExactlyOnce,
        retry: rules().retry,
        ack_deadline: span(10),
        ..rules()
    });
    rig.grave_open = false;
    rig.publish(Letter::default());
    rig.lease(1);
    assert!(rig.reject(rig.tickets[0], &"é".repeat(REASON_LEN_MAX)));
    rig.grave_open = true;
    rig.reopen(&rig.ledger.image());
    rig.recall();
    assert_eq!(rig.dead[0].reason, "é".repeat(REASON_LEN_MAX / 2));
    assert_eq!(Reason::of_text("nacked"), Reason::Nacked);
    assert_eq!(Reason::of_text("no"), Reason::Rejected("no".to_owned()));
}
