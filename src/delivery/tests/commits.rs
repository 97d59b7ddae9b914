//! What a transaction asks of the ledger, and what it leaves behind.

use crate::delivery::hand_out::Ticket;
use crate::delivery::tests::Rig;
use crate::delivery::tests::language::check;

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
