//! What a transaction asks of the ledger, and what it leaves behind.

use crate::delivery::hand_out::{Ask, Decision, Grant, Ticket};
use crate::delivery::ledger::Rules;
use crate::delivery::tests::language::check;
use crate::delivery::tests::{Letter, Rig, rules, seq};
use crate::few::Few;
use crate::options::{DeliveryMode, MessageStatus};

impl Rig {
    /// What an engine whose commit takes no time does. Gives how many cannot be acked together; if it is none, all have been.
    ///
    /// Nobody notices first what time has brought about: the answer is by the clock.
    pub(super) fn commit(&mut self, tickets: &[Ticket]) -> u64 {
        // As the engine does: a key's messages are asked for, and acked, in their order.
        let mut tickets = tickets.to_vec();
        tickets.sort_by_key(|ticket| ticket.sequence);
        let refused = self.ledger.cannot_commit(tickets.iter().copied(), self.tick());
        if refused == 0 {
            for ticket in tickets {
                assert!(self.ledger.ack(ticket), "what could be committed is acked: {ticket:?}");
            }
        }
        refused
    }
}

#[test]
fn p05_a_commit_settles_all_of_its_messages_or_none() {
    check(
        "publish 3; lease 3; commit 1 3; is 1 2 3; stats",
        "1#1 2#1 3#1 Acked Leased Acked backlog=1 outstanding=1 delivered=3 acked=2",
    );
    check(
        "looks; publish 3; lease 3; commit 3 2 1; is 1 2 3; at 99; lease",
        "1#1 2#1 3#1 Acked Acked Acked -",
    );
    check(
        "publish 3; lease 3; ack 2; commit 1 2 3; is 1 2 3; commit 1 3; is 1 3; stats",
        "1#1 2#1 3#1 cannot:1 Leased Acked Leased Acked Acked delivered=3 acked=3",
    );
    check(
        "publish 3; lease 3; nack 1; release 3; commit 3 2 1; is 1 2 3",
        "1#1 2#1 3#1 cannot:2 Waiting Leased Waiting",
    );
}

#[test]
fn p08_in_a_commit_a_late_ack_is_refused_by_the_clock() {
    for mode in ["", "exactly-once; ", "looks; ", "ordered; "] {
        check(&format!("{mode}publish 1; lease; at 9; commit 1; is 1"), "1#1 Acked");
        check(&format!("{mode}publish 1; lease; at 10; commit 1; is 1"), "1#1 cannot:1 Leased");
        check(
            &format!("{mode}publish 1; lease; at 10; tick; commit 1; is 1; lease"),
            "1#1 cannot:1 Waiting 1#2",
        );
        check(&format!("{mode}publish 1; lease; at 4; extend 1+10; at 13; commit 1; is 1"), "1#1 Acked");
        check(&format!("{mode}publish 1; lease; extend 1+2; at 2; commit 1"), "1#1 cannot:1");
    }
    check(
        "publish 2; lease; at 1; lease; at 10; commit 2 1; commit 2; is 1 2",
        "1#1 2#1 cannot:1 Leased Acked",
    );
}

#[test]
fn a_commit_of_a_hand_out_that_is_over_changes_nothing() {
    check(
        "publish 1; lease; at 10; lease; commit 1/1; is 1; commit 1/2; is 1",
        "1#1 1#2 cannot:1 Leased Acked",
    );
    check("publish 1; lease; nack 1; lease; commit 1/1 1/2; is 1", "1#1 1#2 cannot:1 Leased");
    check(
        "publish 1; lease; seek 1; commit 1; is 1; lease; commit 1/1; commit 1/2",
        "1#1 cannot:1 Waiting 1#1 cannot:1",
    );
    check("publish 2; lease 2; drop 1; commit 2 1; is 1 2", "1#1 2#1 cannot:1 Dropped Leased");
    check(
        "publish 1; lease; prepare 1; commit 1; is 1; abort 1; commit 1; is 1",
        "1#1 cannot:1 Leased Acked",
    );
    check("at-most-once; publish 1; lease; commit 1; stats", "1#1 cannot:1 delivered=1 acked=1");
}

#[test]
fn p12_a_commit_of_a_run_takes_its_beginning_in_any_order_and_leaves_no_gap() {
    check(
        "ordered; publish a a a; lease 9; commit 2 1; is 1 2 3; commit 3; is 3",
        "1#1 2#1 3#1 Acked Acked Leased Acked",
    );
    check("ordered; publish a a a; lease 9; commit 3 1 2; stats", "1#1 2#1 3#1 delivered=3 acked=3");
    check(
        "ordered; publish a a a; lease 9; commit 2; commit 3; commit 3 1; is 1 2 3",
        "1#1 2#1 3#1 cannot:1 cannot:1 cannot:1 Leased Leased Leased",
    );
    check(
        "ordered; publish a a a; lease 9; commit 3 1; commit 1; commit 3; commit 2; commit 3; stats",
        "1#1 2#1 3#1 cannot:1 cannot:1 delivered=3 acked=3",
    );
    // What does not commit leaves the run as it is: nobody else gets the later ones meanwhile.
    check(
        "ordered; publish a a; lease 9; commit 2; lease; nack 1; commit 2; lease 9",
        "1#1 2#1 cannot:1 - cannot:1 1#2 2#1",
    );
}

#[test]
fn p12_in_a_commit_the_keys_do_not_count_for_each_other() {
    check(
        "ordered; publish a b a b .; lease 9; commit 3 2 5; commit 4 1; is 2; commit 5 4 3 2 1; stats",
        "1#1 2#1 3#1 4#1 5#1 cannot:1 cannot:1 Leased delivered=5 acked=5",
    );
    check(
        "ordered; publish a b b; lease 9; commit 3 1; commit 3 2; commit 1; stats",
        "1#1 2#1 3#1 cannot:1 delivered=3 acked=3",
    );
}

#[test]
fn p12_an_earlier_message_that_is_not_settled_holds_a_commit_back_wherever_it_stands() {
    check("ordered; publish a a; lease 9; extend 1+2; at 2; commit 2; is 2", "1#1 2#1 cannot:1 Leased");
    check(
        "ordered; dead 5; grave busy; publish a a; lease 9; reject 1; commit 2; grave done; commit 2; stats",
        "1#1 2#1 cannot:1 delivered=2 acked=1 dead_lettered=1",
    );
    check(
        "ordered; publish a a; lease 9; prepare 1; commit 2; finish 1; commit 2; stats",
        "1#1 2#1 cannot:1 delivered=2 acked=2",
    );
}

#[test]
fn p12_a_committed_run_frees_its_key() {
    check("ordered; publish a a a; lease 2; commit 2 1; lease", "1#1 2#1 3#1");
    check("ordered; publish a a a@20; lease 9; commit 1 2; lease; at 20; lease", "1#1 2#1 - 3#1");
    check("ordered; publish a a; lease; commit 1; lease; is 2", "1#1 2#1 Leased");
}

#[test]
fn a_spared_lease_that_runs_out_is_given_back_and_spends_no_attempt() {
    for mode in ["", "exactly-once; ", "looks; ", "ordered; "] {
        let stats = "backlog=1 outstanding=1 delivered=2 released=1";
        check(
            &format!("{mode}publish 1; lease; spare 1; at 9; is 1; at 10; lease; stats"),
            &format!("1#1 Leased 1#1 {stats}"),
        );
    }
    // An attempt before it stays spent, and no retry delay applies.
    check(
        "retry 5; publish 1; lease; nack 1+0; lease; spare 1; at 10; lease; stats",
        "1#1 1#2 1#2 backlog=1 outstanding=1 delivered=3 redelivered=2 nacked=1 released=1",
    );
}

#[test]
fn a_spared_lease_on_its_last_attempt_does_not_bury_its_message() {
    check(
        "dead 1; publish 1; lease; spare 1; at 10; tick; is 1; graves; lease; at 20; tick; graves",
        "1#1 Waiting 1#1 1#1:ack deadline expired",
    );
    check(
        "discard 2; publish 1; lease; nack 1; lease; spare 1; at 10; lease; stats",
        "1#1 1#2 1#2 backlog=1 outstanding=1 delivered=3 redelivered=2 nacked=1 released=1",
    );
}

#[test]
fn a_hand_out_is_spared_and_not_the_message() {
    check(
        "publish 1; lease; spare 1; at 10; lease; at 20; lease; stats",
        "1#1 1#1 1#2 backlog=1 outstanding=1 delivered=3 redelivered=1 released=1 leases_expired=1",
    );
    check(
        "publish 1; lease; spare 1; nack 1; lease; at 10; lease; stats",
        "1#1 1#2 1#3 backlog=1 outstanding=1 delivered=3 redelivered=2 nacked=1 leases_expired=1",
    );
    check("publish 1; lease; spare 1; release 1; lease; at 10; lease", "1#1 1#1 1#2");
    check("publish 1; lease; spare 1; seek 1; lease; at 10; lease", "1#1 1#1 1#2");
    check("publish 1; lease; at 10; lease; spare 1/1; at 20; lease", "1#1 1#2 1#3");
    check("publish 1; lease; nack 1; spare 1; lease; at 10; lease", "1#1 1#2 1#3");
}

#[test]
fn a_spared_lease_is_a_lease_in_all_else() {
    check("publish 1; lease; spare 1; next; lease; commit 1; stats", "1#1 @10 - delivered=1 acked=1");
    check(
        "publish 1; lease; spare 1; nack 1; lease; stats",
        "1#1 1#2 backlog=1 outstanding=1 delivered=2 redelivered=1 nacked=1",
    );
    check("publish 1; lease; spare 1; at 4; extend 1+20; at 23; lease; at 24; lease", "1#1 - 1#1");
    check(
        "publish 1; lease; spare 1; prepare 1; at 20; abort 1; lease; stats",
        "1#1 1#1 backlog=1 outstanding=1 delivered=2 released=1",
    );
    check("publish 1; lease; prepare 1; spare 1; at 20; abort 1; lease", "1#1 1#2");
    check(
        "publish .!5; lease; spare 1; at 10; tick; is 1; stats",
        "1#1 Expired delivered=1 released=1 messages_expired=1",
    );
    check("publish 1; lease; spare 1; at 12; ack 1; stats", "1#1 delivered=1 acked=1");
    check(
        "exactly-once; publish 1; lease; spare 1; at 12; commit 1; ack 1; is 1",
        "1#1 cannot:1 late Waiting",
    );
}

#[test]
fn to_spare_some_of_those_leased_together_spares_no_other() {
    check(
        "publish 3; lease 3; spare 2; at 10; lease 9; stats",
        "1#1 2#1 3#1 1#2 2#1 3#2 backlog=3 outstanding=3 delivered=6 redelivered=2 released=1 leases_expired=2",
    );
    check(
        "ordered; publish a a a; lease 9; spare 1; at 10; lease 9; stats",
        "1#1 2#1 3#1 1#1 2#1 3#1 backlog=3 outstanding=3 delivered=6 released=3",
    );
    check(
        "ordered; publish a a a; lease 9; spare 2; at 10; lease 9; stats",
        "1#1 2#1 3#1 1#2 2#1 3#1 backlog=3 outstanding=3 delivered=6 redelivered=1 released=2 leases_expired=1",
    );
}

fn on_disk(mode: DeliveryMode, ordered: bool, keys: [u64; 5]) -> Rig {
    let mut rig = Rig::new(Rules { mode, ordered, ..rules() });
    rig.be_on_disk();
    for key in keys {
        rig.publish(Letter { key: ordered.then_some(key), ..Letter::default() });
    }
    rig
}

/// What is handed out before the disk has answered.
fn hand_out(rig: &mut Rig, max: u64) -> Vec<Grant> {
    let mut grants = Few::new();
    loop {
        let plain = rig.is_plain();
        let (now, tail) = (rig.tick(), rig.tail());
        let ask = Ask { now, tail, plain, max, look_further: true, nested: false };
        match rig.ledger.poll_lease(ask, &mut grants) {
            Decision::Examine(examination) => rig.finish_look(examination),
            Decision::Granted | Decision::Empty => return grants.as_slice().to_vec(),
        }
    }
}

fn sequences(grants: &[Grant]) -> Vec<u64> {
    grants.iter().flat_map(Grant::tickets).map(|ticket| ticket.sequence.get()).collect()
}

#[test]
fn p13_a_hand_out_that_comes_to_nothing_is_as_if_nobody_had_asked() {
    for (ordered, keys) in [(false, [0; 5]), (true, [7; 5]), (true, [7, 8, 7, 9, 8])] {
        let mut rig = on_disk(DeliveryMode::AtMostOnce, ordered, keys);
        let before = rig.ledger.image();
        for _ in 0..4 {
            let (two, one) = (hand_out(&mut rig, 2), hand_out(&mut rig, 1));
            assert_eq!(sequences(&two), [1, 2], "{keys:?}");
            rig.now += 1_000;
            rig.catch_up();
            assert_eq!(rig.ledger.status(seq(1)), MessageStatus::Leased, "no time ends it");
            assert_eq!(rig.ledger.settled().unsettled_before(rig.tail()), 5);
            rig.ledger.end_hand_out(&one, false);
            rig.ledger.end_hand_out(&two, false);
            assert_eq!(rig.ledger.image(), before, "{keys:?}");
            assert_eq!((rig.ledger.outstanding(), rig.ledger.has_deliverable(rig.tail())), (0, true));
            rig.ledger.check_standings();
        }
        let all = hand_out(&mut rig, 5);
        assert_eq!(sequences(&all), [1, 2, 3, 4, 5], "{keys:?}, in their order");
        let image = rig.ledger.image();
        rig.ledger.end_hand_out(&all, true);
        assert_eq!(rig.ledger.settled().low(), rig.tail());
        assert_eq!((rig.ledger.counts().delivered, rig.ledger.counts().acked), (5, 5));
        rig.reopen(&image);
        rig.recall();
        let again: Vec<_> = hand_out(&mut rig, 5).iter().flat_map(Grant::tickets).collect();
        assert!(again.len() == 5 && again.iter().all(|ticket| ticket.attempt == 1), "{again:?}");
    }
}

#[test]
fn p13_a_hand_out_that_was_sought_back_meanwhile_settles_nothing() {
    let mut rig = on_disk(DeliveryMode::AtMostOnce, false, [0; 5]);
    for is_safe in [true, false] {
        let grants = hand_out(&mut rig, 3);
        rig.ledger.seek_to(seq(2));
        rig.ledger.end_hand_out(&grants, is_safe);
        assert_eq!(rig.ledger.settled().low(), seq(2), "{is_safe}");
        rig.ledger.check_standings();
    }
}

#[test]
fn p08_p12_acks_of_a_key_that_come_to_nothing_bring_its_messages_back_in_order() {
    let mut rig = on_disk(DeliveryMode::ExactlyOnce, true, [7, 8, 7, 7, 8]);
    let held = rig.lease(5);
    let tickets: Vec<Ticket> = rig.tickets[held].to_vec();
    let prepared = rig.ledger.prepare_acks(&tickets[..2]).expect("nothing is before them");
    let later = [tickets[2], tickets[3], tickets[4]];
    for ticket in later {
        assert_eq!(rig.ledger.prepare_acks(&[ticket]), None, "what is before it is being acked");
        assert_eq!(rig.ledger.status(ticket.sequence), MessageStatus::Leased);
    }
    let now = rig.tick();
    rig.ledger.end_acks(&prepared, false, now);
    assert_eq!(rig.ledger.prepare_acks(&later), Some(Vec::new()), "they went back with it");
    rig.ledger.check_standings();
    let again = rig.lease(5);
    let again = rig.tickets[again].iter().map(|ticket| (ticket.sequence.get(), ticket.attempt));
    let (of_eight, of_seven): (Vec<_>, Vec<_>) = again.partition(|again| [2, 5].contains(&again.0));
    assert_eq!((of_seven, of_eight), (vec![(1, 2), (3, 1), (4, 1)], vec![(2, 2), (5, 1)]));
}

#[test]
fn p08_p12_of_one_key_what_is_acked_together_is_settled_together() {
    let mut rig = on_disk(DeliveryMode::ExactlyOnce, true, [7, 8, 7, 7, 8]);
    let held = rig.lease(5);
    let tickets: Vec<Ticket> = rig.tickets[held].to_vec();
    // The fourth, without the third, is before its turn.
    let asked = [tickets[0], tickets[1], tickets[3], tickets[4]];
    let prepared = rig.ledger.prepare_acks(&asked).expect("nothing is before them");
    assert_eq!(prepared, [tickets[0], tickets[1], tickets[4]]);
    let now = rig.tick();
    rig.ledger.end_acks(&prepared, true, now);
    assert!([1, 2, 5].into_iter().all(|n| rig.ledger.settled().is_settled(seq(n))));
    assert_eq!(rig.ledger.status(seq(3)), MessageStatus::Leased);
    assert_eq!(rig.ledger.status(seq(4)), MessageStatus::Waiting);
    rig.ledger.check_standings();
}
