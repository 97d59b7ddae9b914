//! What the ledger does, one thing at a time. [`language`](super::language) says how to read a script.

use crate::delivery::tests::language::check;

#[test]
fn p4_messages_are_handed_out_first_time_in_publish_order() {
    check("publish 5; lease 2; lease; lease 9; lease", "1#1 2#1 3#1 4#1 5#1 -");
    check("looks; publish 5; lease 2; lease; lease 9; lease", "1#1 2#1 3#1 4#1 5#1 -");
}

#[test]
fn p4_a_delayed_message_comes_when_its_time_does_and_the_others_do_not_wait() {
    check(
        "publish .@5 .; is 1; lease 9; is 1; lease; next; at 4; lease; at 5; lease",
        "Waiting 2#1 Delayed - @5 - 1#1",
    );
    check("publish .@5 . .; at 6; lease 9", "1#1 2#1 3#1");
    check("publish .@5 . .; lease; at 6; lease 9", "2#1 1#1 3#1");
}

#[test]
fn filtered_and_missing_messages_are_settled_by_the_look() {
    check(
        "publish .x . .- .; lease 9; is 1 2 3; stats",
        "2#1 4#1 Filtered Leased Skipped backlog=2 outstanding=2 delivered=2 filtered=1",
    );
    check("publish .x .x; lease 9; stats", "- filtered=2");
}

#[test]
fn a_life_that_ended_before_the_look_is_settled_by_it() {
    check(
        "publish .!5 .; at 5; lease 9; is 1; stats",
        "2#1 Expired backlog=1 outstanding=1 delivered=1 messages_expired=1",
    );
    check("publish .!6 .; at 5; lease 9", "1#1 2#1");
}

#[test]
fn p8_an_ack_settles_once_and_for_all() {
    check(
        "publish 2; lease 2; ack 1; is 1; ack 1; lease; ack 2; stats",
        "1#1 2#1 Acked late - delivered=2 acked=2",
    );
    check("looks; publish 2; lease 2; ack 2 1; at 99; lease; stats", "1#1 2#1 - delivered=2 acked=2");
}

#[test]
fn p8_a_late_ack_is_taken_while_nobody_else_holds_the_message() {
    check("publish 1; lease; at 12; ack 1; is 1; lease", "1#1 Acked -");
    check("publish 1; lease; at 12; tick; ack 1; is 1; lease", "1#1 Acked -");
    check("retry 5; publish 1; lease; at 12; tick; is 1; ack 1; is 1; at 99; lease", "1#1 Delayed Acked -");
}

#[test]
fn p8_a_late_ack_is_refused_while_somebody_else_holds_the_message() {
    check("publish 1; lease; at 12; lease; ack 1/1; is 1; ack 1/2; is 1", "1#1 1#2 late Leased Acked");
    check(
        "publish 1; lease; at 12; lease; ack 1/2 1/1; stats",
        "1#1 1#2 late delivered=2 redelivered=1 acked=1 leases_expired=1",
    );
}

#[test]
fn p8_a_late_ack_of_a_message_that_was_parked_is_taken() {
    check(
        "dead 1; grave shut; publish 1; lease; at 12; tick; is 1; ack 1; is 1; stats",
        "1#1 Parked Acked delivered=1 acked=1 leases_expired=1",
    );
    check(
        "dead 1; grave busy; publish 1; lease; at 12; tick; ack 1; grave done; is 1",
        "1#1 late DeadLettered",
    );
}

#[test]
fn p8_a_late_ack_in_exactly_once_mode_is_refused_by_the_clock() {
    check("exactly-once; publish 1; lease; at 9; ack 1; is 1", "1#1 Acked");
    check("exactly-once; publish 1; lease; at 10; ack 1; is 1; lease", "1#1 late Waiting 1#2");
    check("exactly-once; retry 5; publish 1; lease; at 11; ack 1; is 1", "1#1 late Delayed");
}

#[test]
fn p8_a_late_ack_from_before_a_seek_is_refused() {
    check("publish 1; lease; seek 1; ack 1; is 1; lease; ack 1/1; ack 1/2", "1#1 late Waiting 1#1 late");
    check(
        "looks; publish 1; lease; at 12; tick; seek 1; lease; nack 1/2; ack 1/1; is 1",
        "1#1 1#1 late Waiting",
    );
}

#[test]
fn p8_a_stale_nack_release_reject_or_extend_changes_nothing() {
    let late = "late late late late";
    check(
        "publish 1; lease; at 10; nack 1; release 1; reject 1; extend 1+5; is 1; stats",
        &format!("1#1 {late} Waiting backlog=1 delivered=1 leases_expired=1"),
    );
    check(
        "publish 1; lease; at 10; lease; nack 1/1; release 1/1; reject 1/1; extend 1/1+50; is 1; next",
        &format!("1#1 1#2 {late} Leased @20"),
    );
    check(
        "publish 1; lease; ack 1; nack 1; release 1; reject 1; extend 1+5; is 1",
        &format!("1#1 {late} Acked"),
    );
    check(
        "publish 1; lease; seek 1; nack 1; release 1; reject 1; extend 1+5; stats",
        &format!("1#1 {late} backlog=1 delivered=1"),
    );
}

#[test]
fn p7_a_lease_ends_at_its_deadline_and_not_before() {
    check("publish 1; lease; next; at 9; lease; at 10; lease", "1#1 @10 - 1#2");
    check("publish 1; lease; at 9; nack 1; lease", "1#1 1#2");
    check(
        "publish 1; lease; at 11; lease; stats",
        "1#1 1#2 backlog=1 outstanding=1 delivered=2 redelivered=1 leases_expired=1",
    );
}

#[test]
fn p7_the_members_of_a_run_end_together_unless_they_were_settled_or_extended() {
    check(
        "publish 4; lease 4; ack 2; extend 3+15; at 10; lease 9; at 15; lease 9",
        "1#1 2#1 3#1 4#1 1#2 4#2 3#2",
    );
}

#[test]
fn p7_extend_moves_the_deadline_both_ways_and_zero_is_a_nack() {
    check("publish 1; lease; at 4; extend 1+10; at 13; lease; at 14; lease", "1#1 - 1#2");
    check("publish 1; lease; extend 1+2; at 1; lease; at 2; lease", "1#1 - 1#2");
    check("publish 1; lease; extend 1+0; stats; lease", "1#1 backlog=1 delivered=1 nacked=1 1#2");
    check("exactly-once; publish 1; lease; extend 1+20; at 19; ack 1; is 1", "1#1 Acked");
}

#[test]
fn p6_a_running_lease_is_exclusive() {
    check("publish 1; lease; lease 9; at 9; lease; extend 1+10; at 18; lease", "1#1 - - -");
}

#[test]
fn p9_a_nack_brings_the_message_back_at_once_or_after_a_delay() {
    check("publish 1; lease; nack 1; is 1; lease; is 1", "1#1 Waiting 1#2 Leased");
    check("publish 1; lease; nack 1+5; is 1; at 4; lease; at 5; lease", "1#1 Delayed - 1#2");
    check("retry 5; publish 1; lease; nack 1; at 4; lease; at 5; lease", "1#1 - 1#2");
    check("retry 5; publish 1; lease; nack 1+0; lease", "1#1 1#2");
}

#[test]
fn a_retry_delay_is_counted_from_the_moment_of_the_failure() {
    check("retry 5; publish 1; lease; at 3; nack 1; next", "1#1 @8");
    // The lease ended at 10, however late that was noticed.
    check("retry 5; publish 1; lease; at 14; tick; next; at 15; lease", "1#1 @15 1#2");
    check("retry 5; publish 1; lease; at 15; lease", "1#1 1#2");
}

#[test]
fn p10_a_release_spends_no_attempt() {
    check("publish 1; lease; release 1; lease; nack 1; lease; release 1; lease", "1#1 1#1 1#2 1#2");
    check("discard 2; publish 1; lease; release 1; lease; release 1; lease; is 1", "1#1 1#1 1#1 Leased");
}

#[test]
fn a_released_message_keeps_its_place() {
    check("publish 3; lease 2; release 1; lease", "1#1 2#1 1#1");
    check("publish 3; lease 2; release 2; release 1; lease 9", "1#1 2#1 1#1 2#1 3#1");
}

#[test]
fn a_message_that_is_released_over_and_over_takes_turns() {
    check("publish 3; lease; release 1; lease; release 1; lease; release 1; lease", "1#1 1#1 1#1 2#1");
    check(
        "looks; publish 3; lease; release 1; lease; release 1; lease; release 1; lease; lease",
        "1#1 1#1 1#1 2#1 1#1",
    );
}

#[test]
fn fairness_a_poison_message_gets_every_other_hand_out() {
    check(
        "publish 4; lease; nack 1; lease; nack 1; lease; lease; nack 1; lease; lease; nack 1; lease; lease",
        "1#1 1#2 2#1 1#3 3#1 1#4 4#1 1#5",
    );
}

#[test]
fn fairness_a_batch_alternates_too() {
    check("publish 7; lease 4; nack 1 2 3 4; lease 6", "1#1 2#1 3#1 4#1 1#2 5#1 2#2 6#1 3#2 7#1");
    check("looks; publish 7; lease 4; nack 1 2 3 4; lease 6", "1#1 2#1 3#1 4#1 1#2 5#1 2#2 6#1 3#2 7#1");
}

#[test]
fn fairness_new_messages_that_nobody_has_looked_at_count_as_waiting() {
    check("looks; publish 1; lease; publish 2; nack 1; lease; nack 1; lease", "1#1 1#2 2#1");
    check(
        "looks; publish 3; lease 3; publish 3; nack 1 2 3; lease 3; lease 3",
        "1#1 2#1 3#1 1#2 4#1 2#2 5#1 3#2 6#1",
    );
}

#[test]
fn fairness_redeliveries_of_one_key_do_not_hide_behind_each_other() {
    check("ordered; publish a a a b c; lease 3; nack 3 2 1; lease 4", "1#1 2#1 3#1 1#2 4#1 2#2 5#1");
}

#[test]
fn redeliveries_come_first_come_first_served() {
    check("publish 3; lease 3; nack 2; nack 1; nack 3; lease 9", "1#1 2#1 3#1 2#2 1#2 3#2");
    check("publish 3; lease 3; nack 3+4; nack 1+5; at 4; tick; at 5; lease 9", "1#1 2#1 3#1 3#2 1#2");
}

#[test]
fn a_last_attempt_goes_alone() {
    check("discard 2; publish 3; lease; nack 1; lease 9; lease 9", "1#1 1#2 2#1 3#1");
    check("discard 2; publish 3; lease 3; nack 2 3; lease 9; lease 9", "1#1 2#1 3#1 2#2 3#2");
    check("discard 1; publish 2; lease 9; lease 9; lease 9", "1#1 2#1 -");
    check("looks; discard 1; publish 2; lease 9; lease 9; lease 9", "1#1 2#1 -");
}

#[test]
fn out_of_attempts_without_a_grave_is_discarded_and_counted() {
    check(
        "discard 2; publish 1; lease; nack 1; lease; nack 1; is 1; lease; stats",
        "1#1 1#2 Discarded - delivered=2 redelivered=1 nacked=2 discarded=1",
    );
    check("discard 1; publish 1; lease; at 10; tick; is 1; ack 1", "1#1 Discarded late");
}

#[test]
fn p11_out_of_attempts_goes_to_the_dead_letters_once() {
    check(
        "dead 2; publish 1; lease; nack 1; lease; nack 1; is 1; graves; lease",
        "1#1 1#2 DeadLettered 1#2:nacked -",
    );
    check(
        "dead 1; publish 1; lease; at 10; tick; graves; at 99; tick; graves",
        "1#1 1#1:ack deadline expired 1#1:ack deadline expired",
    );
    check("dead 1; publish 1; lease; extend 1+0; graves", "1#1 1#1:nacked");
}

#[test]
fn p11_on_its_way_to_the_grave_a_message_is_nobodys() {
    check(
        "dead 1; grave busy; publish 1; lease; nack 1; is 1; lease; ack 1; nack 1; at 99; lease; grave done; is 1; stats",
        "1#1 Parked - late late - DeadLettered delivered=1 nacked=1 dead_lettered=1",
    );
}

#[test]
fn p11_a_shut_grave_parks_and_an_open_one_takes() {
    check(
        "dead 1; grave shut; publish 1; lease; nack 1; is 1; stats; at 99; lease; retry-parked; is 1; grave open; retry-parked; is 1; graves",
        "1#1 Parked backlog=1 parked=1 delivered=1 nacked=1 - Parked DeadLettered 1#1:nacked",
    );
}

#[test]
fn p11_a_burial_under_way_is_void_after_a_seek() {
    check(
        "dead 1; grave busy; publish 1; lease; nack 1; seek 1; lease; reject 1; grave done; graves; stats",
        "1#1 1#1 1#1:no delivered=2 nacked=1 dead_lettered=1",
    );
    check(
        "dead 1; grave busy; publish 1; lease; nack 1; seek 1; grave done; is 1; graves; lease",
        "1#1 Waiting 1#1",
    );
    check(
        "dead 1; grave shut; publish 1; lease; nack 1; seek 1; stats; retry-parked; lease",
        "1#1 backlog=1 delivered=1 nacked=1 1#1",
    );
}

#[test]
fn reject_settles_at_once_whatever_attempts_are_left() {
    check("dead 5; publish 1; lease; reject 1; is 1; graves", "1#1 DeadLettered 1#1:no");
    check("publish 1; lease; reject 1; is 1; lease; stats", "1#1 Discarded - delivered=1 discarded=1");
    check(
        "dead 5; grave shut; publish 1; lease; reject 1; is 1; grave open; retry-parked; graves",
        "1#1 Parked 1#1:no",
    );
}

#[test]
fn p12_a_busy_key_waits_and_the_others_go_on() {
    check("ordered; publish a a b; lease; lease; lease; is 2; ack 1; lease", "1#1 3#1 - Waiting 2#1");
    check(
        "ordered; publish a a .; lease; nack 1+5; lease 9; is 2; at 5; lease; ack 1; lease",
        "1#1 3#1 Waiting 1#2 2#1",
    );
}

#[test]
fn p12_a_delay_of_the_first_holds_its_key_and_one_of_a_later_is_kept() {
    check("ordered; publish a@5 a b; lease 9; at 5; lease 9", "3#1 1#1 2#1");
    check("ordered; publish a a@5; lease 9; ack 1; is 2; lease; at 5; lease", "1#1 Delayed - 2#1");
    check("ordered; publish a a@5; lease 9; at 7; ack 1; lease", "1#1 2#1");
}

#[test]
fn p12_a_run_of_one_key_goes_to_one_subscriber() {
    check(
        "ordered; publish a a b a; lease 9; lease; ack 1 2 4 3; stats",
        "1#1 2#1 3#1 4#1 - delivered=4 acked=4",
    );
    check("ordered; publish a a a; lease 2; lease; ack 1 2; lease", "1#1 2#1 - 3#1");
}

#[test]
fn p12_what_ends_one_of_a_run_releases_those_after_it() {
    check("ordered; publish a a a; lease 9; nack 2; ack 3; ack 1; lease 9", "1#1 2#1 3#1 late 2#2 3#1");
    check("ordered; publish a a a; lease 9; release 2; ack 1; lease 9", "1#1 2#1 3#1 2#1 3#1");
    check(
        "ordered; publish a a a; lease 9; at 10; lease 9; stats",
        "1#1 2#1 3#1 1#2 2#1 3#1 backlog=3 outstanding=3 delivered=6 redelivered=1 released=2 leases_expired=1",
    );
    check("ordered; publish a a a; lease 9; extend 1+20; at 10; ack 1; lease 9", "1#1 2#1 3#1 2#2 3#1");
}

#[test]
fn p12_acking_a_later_one_of_a_run_first_is_late_and_releases_it() {
    check(
        "ordered; publish a a a; lease 9; ack 2; ack 3; ack 1; lease 9; stats",
        "1#1 2#1 3#1 late late 2#1 3#1 backlog=2 outstanding=2 delivered=5 acked=1 released=2",
    );
    check(
        "ordered; publish a a; lease 9; reject 2; is 2; ack 1; lease; reject 2; is 2",
        "1#1 2#1 late Waiting 2#1 Discarded",
    );
}

#[test]
fn p12_a_late_ack_is_taken_in_turn_only() {
    check("ordered; publish a a; lease 9; at 10; tick; ack 2; ack 1; ack 2; lease", "1#1 2#1 late -");
}

#[test]
fn p12_a_settled_message_frees_its_key_however_it_was_settled() {
    check("ordered; discard 1; publish a a; lease; nack 1; lease", "1#1 2#1");
    check("ordered; dead 1; publish a a; lease; nack 1; is 1; lease", "1#1 DeadLettered 2#1");
    check(
        "ordered; dead 1; grave shut; publish a a; lease; nack 1; lease; grave open; retry-parked; lease",
        "1#1 - 2#1",
    );
    check("ordered; publish a!20 a; lease; nack 1+50; at 20; lease", "1#1 2#1");
    check("ordered; publish a a a; lease; drop 1; lease; ack 1", "1#1 2#1 late");
    check("ordered; publish a a a; lease 9; drop 2; ack 1; ack 3; lease; is 3", "1#1 2#1 3#1 - Acked");
    check("ordered; publish a a a; lease; drop 2; ack 1; lease", "1#1 3#1");
}

#[test]
fn p12_those_behind_a_dropped_one_of_a_run_are_released() {
    check(
        "ordered; publish a a a; lease 9; drop 1; is 1 2 3; nack 2; lease 9",
        "1#1 2#1 3#1 Dropped Waiting Waiting late 2#1 3#1",
    );
}

#[test]
fn p12_without_ordering_a_key_says_nothing() {
    check("publish a a a; lease; lease; ack 2; ack 1; lease", "1#1 2#1 3#1");
}

#[test]
fn a_life_ends_where_nobody_holds_the_message() {
    check(
        "publish .!5; is 1; lease 0; look; looked; at 4; tick; is 1; at 5; tick; is 1; stats",
        "Waiting - Waiting Expired messages_expired=1",
    );
    check("retry 30; publish .!20; lease; nack 1; at 20; tick; is 1; lease", "1#1 Expired -");
    check(
        "dead 1; grave shut; publish .!20; lease; nack 1; at 20; tick; is 1; stats",
        "1#1 Expired delivered=1 nacked=1 messages_expired=1",
    );
    check("ordered; publish a a!5; lease; at 5; tick; is 2; ack 1; lease", "1#1 Expired -");
}

#[test]
fn a_life_does_not_end_a_lease_but_the_lease_ends_it() {
    check("publish .!5; lease; at 7; tick; is 1; ack 1; is 1", "1#1 Leased Acked");
    check(
        "publish .!5; lease; at 7; nack 1; is 1; stats",
        "1#1 Expired delivered=1 nacked=1 messages_expired=1",
    );
    check("publish .!5; lease; at 10; tick; is 1", "1#1 Expired");
    check("publish .!5; lease; at 7; release 1; lease; is 1", "1#1 - Expired");
    check("dead 1; publish .!5; lease; at 7; nack 1; is 1; graves", "1#1 Expired");
    check("publish .!5; lease; at 4; nack 1; is 1", "1#1 Waiting");
    check("retry 3; publish .!5; lease; at 5; nack 1; is 1", "1#1 Expired");
}

#[test]
fn a_life_can_end_unseen() {
    check(
        "publish .!5 .; at 5; unseen 1; is 1; lease 9; stats",
        "Expired 2#1 backlog=1 outstanding=1 delivered=1 messages_expired=1",
    );
    check("publish .!5 .; lease 9; at 5; unseen 1; is 1", "1#1 2#1 Leased");
    check(
        "publish . .!5 .; at 5; unseen 2; unseen 2; lease 9; ack 1; lease; stats",
        "1#1 3#1 - backlog=1 outstanding=1 delivered=2 acked=1 messages_expired=1",
    );
    check(
        "publish .!5 .; look; at 5; unseen 1; looked; lease 9; stats",
        "2#1 backlog=1 outstanding=1 delivered=1 messages_expired=1",
    );
}

#[test]
fn another_end_of_life_holds_for_all_that_are_in_the_book() {
    check(
        "publish 2; lease 2; nack 2; expiries 5; next; at 5; tick; is 1 2; ack 1; is 1",
        "1#1 2#1 @5 Leased Expired Acked",
    );
    check(
        "dead 1; grave shut; publish .; lease; nack 1; expiries 5; is 1; grave open; retry-parked; graves",
        "1#1 Parked 1#1:nacked",
    );
}

#[test]
fn what_is_dropped_to_make_room_is_held_no_more() {
    check(
        "publish 3; lease 2; drop 1; is 1; ack 1; nack 1; lease 9; stats",
        "1#1 2#1 Dropped late late 3#1 backlog=2 outstanding=2 delivered=3 discarded=1",
    );
    check(
        "publish 3; drop 1 2; lease 9; drop 1; stats",
        "3#1 backlog=1 outstanding=1 delivered=1 discarded=2",
    );
    check("publish 1; lease; nack 1; drop 1; lease", "1#1 -");
    check(
        "dead 1; grave shut; publish 1; lease; nack 1; drop 1; stats",
        "1#1 delivered=1 nacked=1 discarded=1",
    );
    check("dead 1; grave busy; publish 1; lease; nack 1; drop 1; grave done; is 1; graves", "1#1 Dropped");
    check("looks; publish 2; look; drop 1; looked; lease 9", "2#1");
}

#[test]
fn what_the_log_does_not_have_any_more_is_held_no_more() {
    check("publish 3; removed 1 2; lease 9; is 1; stats", "3#1 Skipped backlog=1 outstanding=1 delivered=1");
    check(
        "publish 3; lease 3; removed 1 2; stats; at 10; lease 9",
        "1#1 2#1 3#1 backlog=1 outstanding=1 delivered=3 3#2",
    );
    check("ordered; publish a a a; lease 2; nack 2; removed 1 2; lease 9; ack 3", "1#1 2#1 3#1");
    check("dead 1; grave shut; publish 1; lease; nack 1; removed 1 1; stats", "1#1 delivered=1 nacked=1");
}

#[test]
fn a_seek_begins_a_new_generation() {
    check(
        "publish 3; lease 3; ack 1; nack 2; seek 1; stats; lease 9; ack 1; is 1",
        "1#1 2#1 3#1 backlog=3 delivered=3 acked=1 nacked=1 1#1 2#1 3#1 Acked",
    );
    check("publish 3; lease 2; seek 3; is 1; lease 9; ack 1", "1#1 2#1 Skipped 3#1 late");
    check("publish 3; seek 4; lease; publish 1; lease", "- 4#1");
    check("retry 5; publish .@20; lease; at 20; lease; nack 1; seek 1; lease", "- 1#1 1#1");
    check("publish .@20 .; lease; seek 1; lease 9; is 1", "2#1 2#1 Delayed");
    check("looks; publish 2; look; seek 2; looked; lease 9", "2#1");
}

#[test]
fn a_seek_to_an_image_brings_back_what_was_unsettled_then() {
    check(
        "publish 3; lease 3; ack 2; snapshot; ack 1 3; restore; lease 9; is 2",
        "1#1 2#1 3#1 1#1 3#1 Acked",
    );
}

#[test]
fn p15_what_a_transaction_prepares_no_deadline_ends() {
    check(
        "exactly-once; publish 1; lease; prepare 1; at 99; lease; ack 1; nack 1; extend 1+5; finish 1; is 1; stats",
        "1#1 - late late late Acked delivered=1 acked=1",
    );
    check("exactly-once; publish 1; lease; at 10; prepare 1; finish 1; is 1", "1#1 late Waiting");
    check("publish .!5; lease; prepare 1; at 20; tick; is 1; finish 1; is 1", "1#1 Leased Acked");
}

#[test]
fn p15_a_transaction_that_fails_leaves_the_lease_as_it_was() {
    check("publish 1; lease; prepare 1; at 5; abort 1; at 9; lease; at 10; lease", "1#1 - 1#2");
    check("publish 1; lease; prepare 1; at 15; abort 1; lease; ack 1/1", "1#1 1#2 late");
    check("publish 1; lease; prepare 1; abort 1; abort 1; finish 1; is 1; ack 1", "1#1 Leased");
    check(
        "publish 1; lease; prepare 1; seek 1; finish 1; is 1; lease; abort 1/1; is 1",
        "1#1 Waiting 1#1 Leased",
    );
    check(
        "publish 1; lease; prepare 1; drop 1; abort 1; finish 1; is 1; stats",
        "1#1 Dropped delivered=1 discarded=1",
    );
}

#[test]
fn p12_a_transaction_settles_in_turn() {
    check(
        "ordered; publish a a; lease 9; prepare 2; is 2; prepare 1; finish 1; prepare 2; finish 2; stats",
        "1#1 2#1 late Leased delivered=2 acked=2",
    );
    check("ordered; publish a a; lease; prepare 1; at 99; lease; finish 1; lease", "1#1 - 2#1");
}

#[test]
fn outstanding_is_bounded_over_all_subscribers() {
    check("outstanding 2; publish 4; lease 9; lease; ack 1; lease 9; nack 2; lease 9", "1#1 2#1 - 3#1 2#2");
    check("outstanding 2; publish 4; lease 9; prepare 1; lease; finish 1; lease 9", "1#1 2#1 - 3#1");
    check("outstanding 1; ordered; publish a a b; lease 9; ack 1; lease 9", "1#1 2#1");
}

#[test]
fn a_pause_stops_hand_outs_and_nothing_else() {
    check("publish 2; lease; pause; lease; ack 1; is 1; resume; lease", "1#1 - Acked 2#1");
    check("publish 1; lease; pause; at 10; lease; is 1; resume; lease", "1#1 - Waiting 1#2");
}

#[test]
fn p13_at_most_once_settles_at_hand_out() {
    check(
        "at-most-once; publish 3; lease 2; is 1; ack 1; nack 1; release 2; reject 2; extend 2+5; at 99; lease 9; stats",
        "1#1 2#1 Acked late late late late 3#1 delivered=3 acked=3",
    );
    check("at-most-once; ordered; publish a a b; lease 9; lease; stats", "1#1 2#1 3#1 - delivered=3 acked=3");
    check("at-most-once; outstanding 1; publish 3; lease; lease; lease", "1#1 2#1 3#1");
}

#[test]
fn p21_a_filter_that_panics_spends_the_attempt() {
    check("publish .? .; lease 9; stats", "1#2 2#1 backlog=2 outstanding=2 delivered=2 redelivered=1");
    check("dead 1; publish .? .; lease 9; is 1; graves", "2#1 DeadLettered 1#1:filter panicked");
    check("retry 5; publish .? .; lease 9; is 1; at 5; lease", "2#1 Delayed 1#2");
    check("ordered; discard 1; publish a? a; lease 9; is 1", "2#1 Discarded");
}

#[test]
fn p21_a_filter_that_panics_does_not_end_a_publish_delay() {
    check("publish .?@5 .; lease 9; is 1; next; at 4; lease; at 5; lease", "2#1 Delayed @5 - 1#2");
    check("ordered; publish a?@5 a; lease; is 1 2; at 5; lease 9", "- Delayed Waiting 1#2 2#1");
    check("ordered; publish a a?@5; lease 9; ack 1; is 2; at 4; lease; at 5; lease", "1#1 Delayed - 2#2");
    check("publish .?@5; at 5; lease", "1#2");
    // The retry delay begins when the message is due.
    check("retry 3; publish .?@5; lease; next; at 7; lease; at 8; lease", "- @8 - 1#2");
    check("publish .?@5; lease; at 1; restart; is 1; next; at 4; lease; at 5; lease", "- Delayed @5 - 1#3");
}

#[test]
fn a_look_under_way_hides_what_it_looks_at_and_what_is_after_it() {
    check("looks; publish 2; look; publish 1; lease 9; is 1; looked; lease 9", "- Waiting 1#1 2#1 3#1");
    check("looks; publish 1; lease; publish 1; nack 1; look; lease 9; looked; lease 9", "1#1 1#2 2#1");
}

#[test]
fn p12_a_later_look_does_not_overtake_an_earlier_one() {
    check("ordered; publish a; look; publish a b; look; looked backwards; lease 9", "1#1 2#1 3#1");
    check("ordered; publish a; look; publish a b; look; lease; looked; lease; lease", "- 1#1 3#1");
    check("ordered; publish a; look; publish a; look; seek 2; looked backwards; lease 9", "2#1");
    // Without keys there is nothing to overtake.
    check("looks; publish a; look; publish a b; look; looked backwards; lease 9", "1#1 2#1 3#1");
}

#[test]
fn an_acked_gap_is_passed_over() {
    check(
        "publish 6; lease 6; ack 3 4; snapshot; restore; lease 9; lease",
        "1#1 2#1 3#1 4#1 5#1 6#1 1#1 2#1 5#1 6#1 -",
    );
    check(
        "looks; publish 3; lease 3; ack 2; snapshot; restore; lease; lease; lease",
        "1#1 2#1 3#1 1#1 3#1 -",
    );
}
