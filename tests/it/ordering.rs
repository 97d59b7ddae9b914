//! Ordered subscriptions: P12.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use eventflow::{
    DeadLetter, Delivery, DeliveryMode, Message, Receipt, Retention, RetryPolicy, Seek, SettleError,
    Subscription, Topic, TryRecvError,
};

use crate::support::{
    Answer, DEADLINE, Desk, NANO, Numbers, SECOND, ask, assert_empty, desk, desk_with, drain, manual, take,
};

const EXPIRED: Result<(), SettleError> = Err(SettleError::LeaseExpired { count: 1 });

/// An event is its key and a number: `a1` has the key `a`.
fn publish(topic: &Topic<String>, events: &str) -> Vec<Receipt> {
    topic.publish_all(events.split(' ').map(keyed)).unwrap()
}

fn keyed(event: &str) -> Message<String> {
    let message = Message::new(event.to_owned());
    match event.chars().next() {
        Some('-') | None => message,
        Some(key) => message.ordering_key(key),
    }
}

fn ordered() -> Desk<String> {
    desk_with(|options| options.ordered())
}

#[track_caller]
fn expect(sub: &Subscription<String>, event: &str, attempt: u32) -> Delivery<String> {
    let delivery = take(sub);
    assert_eq!((delivery.as_str(), delivery.attempt()), (event, attempt));
    delivery
}

/// Takes a run of three messages of one key in one batch.
fn run_of_three(desk: &Desk<String>) -> [Delivery<String>; 3] {
    publish(&desk.topic, "a1 a2 a3");
    let batch = desk.sub.try_recv_batch(10).unwrap();
    assert_eq!(batch.iter().map(|message| message.event().clone()).collect::<Vec<_>>(), ["a1", "a2", "a3"]);
    let deliveries: Vec<Delivery<String>> = batch.into_iter().collect();
    deliveries.try_into().unwrap()
}

#[track_caller]
fn expect_all(sub: &Subscription<String>, events: &[(&str, u32)]) {
    for (event, attempt) in events {
        expect(sub, event, *attempt).ack().unwrap();
    }
    assert_empty(sub);
}

#[test]
fn p12_while_one_is_outstanding_later_ones_of_its_key_wait_and_other_keys_go_on() {
    let desk = ordered();
    let rival = desk.sub.clone();
    publish(&desk.topic, "a1 a2 b1 b2 c1");
    let a1 = expect(&desk.sub, "a1", 1);
    let b1 = expect(&rival, "b1", 1);
    let c1 = expect(&desk.sub, "c1", 1);
    assert_empty(&desk.sub);
    assert_empty(&rival);
    b1.ack().unwrap();
    let b2 = expect(&desk.sub, "b2", 1);
    assert_empty(&rival);
    a1.ack().unwrap();
    let a2 = expect(&rival, "a2", 1);
    for delivery in [a2, b2, c1] {
        delivery.ack().unwrap();
    }
    assert_empty(&desk.sub);
    assert_eq!(desk.sub.stats().backlog, 0);
}

#[test]
fn p12_messages_without_a_key_wait_for_nobody() {
    let desk = ordered();
    publish(&desk.topic, "a1 -1 a2 -2 -3");
    let held: Vec<_> = ["a1", "-1", "-2", "-3"].iter().map(|event| expect(&desk.sub, event, 1)).collect();
    assert_empty(&desk.sub);
    drop(held);
}

#[test]
fn p12_an_unordered_subscription_of_the_same_topic_takes_no_notice_of_keys() {
    let desk = ordered();
    let free = desk.topic.subscription("free").create().unwrap();
    publish(&desk.topic, "a1 a2");
    let a1 = expect(&desk.sub, "a1", 1);
    let held = [expect(&free, "a1", 1), expect(&free, "a2", 1)];
    assert_empty(&desk.sub);
    drop(held);
    assert_empty(&desk.sub);
    a1.ack().unwrap();
    expect_all(&desk.sub, &[("a2", 1)]);
}

#[test]
fn p12_a_nacked_message_comes_again_before_the_next_of_its_key() {
    let desk = ordered();
    publish(&desk.topic, "a1 a2");
    for attempt in 1..=4 {
        expect(&desk.sub, "a1", attempt).nack().unwrap();
    }
    expect_all(&desk.sub, &[("a1", 5), ("a2", 1)]);
}

#[test]
fn p12_a_dropped_released_or_expired_message_comes_again_before_the_next_of_its_key() {
    let desk = ordered();
    publish(&desk.topic, "a1 a2");
    drop(expect(&desk.sub, "a1", 1));
    expect(&desk.sub, "a1", 2).release().unwrap();
    expect(&desk.sub, "a1", 2).extend(Duration::ZERO).unwrap();
    let expiring = expect(&desk.sub, "a1", 3);
    desk.clock.advance(DEADLINE);
    expect_all(&desk.sub, &[("a1", 4), ("a2", 1)]);
    drop(expiring);
}

#[test]
fn p12_a_message_that_awaits_its_redelivery_holds_its_key_and_no_other() {
    let desk: Desk<String> = desk_with(|options| options.ordered().retry(RetryPolicy::fixed(SECOND)));
    publish(&desk.topic, "a1 a2 b1");
    expect(&desk.sub, "a1", 1).nack().unwrap();
    expect(&desk.sub, "b1", 1).ack().unwrap();
    assert_empty(&desk.sub);
    desk.clock.advance(SECOND - NANO);
    assert_empty(&desk.sub);
    desk.clock.advance(NANO);
    expect(&desk.sub, "a1", 2).nack_after(SECOND * 5).unwrap();
    desk.clock.advance(SECOND * 5 - NANO);
    assert_empty(&desk.sub);
    desk.clock.advance(NANO);
    expect_all(&desk.sub, &[("a1", 3), ("a2", 1)]);
}

#[test]
fn p12_a_delayed_publish_holds_back_the_later_ones_of_its_key() {
    let desk = ordered();
    desk.topic.publish(keyed("a1").deliver_after(SECOND)).unwrap();
    publish(&desk.topic, "a2 b1");
    expect(&desk.sub, "b1", 1).ack().unwrap();
    assert_empty(&desk.sub);
    desk.clock.advance(SECOND - NANO);
    assert_empty(&desk.sub);
    desk.clock.advance(NANO);
    expect_all(&desk.sub, &[("a1", 1), ("a2", 1)]);
}

#[test]
fn p12_a_run_goes_to_one_subscriber_in_one_batch() {
    let desk = ordered();
    let rival = desk.sub.clone();
    publish(&desk.topic, "a1 b1 a2 a3 -1");
    let batch = desk.sub.try_recv_batch(4).unwrap();
    let events: Vec<String> = batch.iter().map(|message| message.event().clone()).collect();
    assert_eq!(events, ["a1", "b1", "a2", "a3"]);
    publish(&desk.topic, "a4 b2");
    expect(&rival, "-1", 1).ack().unwrap();
    assert_empty(&rival);
    batch.ack().unwrap();
    expect_all(&rival, &[("a4", 1), ("b2", 1)]);
}

#[test]
fn p12_a_run_is_acked_in_order() {
    let desk = ordered();
    let [a1, a2, a3] = run_of_three(&desk);
    a1.ack().unwrap();
    a2.ack().unwrap();
    assert_empty(&desk.sub);
    a3.ack().unwrap();
    assert_eq!((desk.sub.stats().backlog, desk.sub.stats().acked), (0, 3));
}

#[test]
fn p12_a_nacked_head_of_a_run_releases_those_after_it() {
    let desk = ordered();
    let [a1, a2, a3] = run_of_three(&desk);
    a1.nack().unwrap();
    assert_eq!(a2.ack(), EXPIRED);
    assert_eq!(a3.ack(), EXPIRED);
    expect_all(&desk.sub, &[("a1", 2), ("a2", 1), ("a3", 1)]);
}

#[test]
fn p12_a_nack_in_the_middle_of_a_run_keeps_what_was_acked_before_it() {
    let desk = ordered();
    let [a1, a2, a3] = run_of_three(&desk);
    a1.ack().unwrap();
    a2.nack().unwrap();
    assert_eq!(a3.extend(SECOND), EXPIRED);
    assert_eq!(a3.ack(), EXPIRED);
    expect_all(&desk.sub, &[("a2", 2), ("a3", 1)]);
}

#[test]
fn p12_a_released_member_of_a_run_releases_those_after_it_and_spends_no_attempt() {
    let desk = ordered();
    let [a1, a2, a3] = run_of_three(&desk);
    a1.release().unwrap();
    assert_eq!(a2.nack(), EXPIRED);
    drop(a3);
    assert_eq!(desk.sub.stats().nacked, 0, "a stale drop is no nack");
    expect_all(&desk.sub, &[("a1", 1), ("a2", 1), ("a3", 1)]);
}

#[test]
fn p12_a_dropped_member_of_a_run_releases_those_after_it() {
    let desk = ordered();
    let [a1, a2, a3] = run_of_three(&desk);
    drop(a2);
    assert_eq!(a3.ack(), EXPIRED);
    assert_empty(&desk.sub);
    a1.ack().unwrap();
    expect_all(&desk.sub, &[("a2", 2), ("a3", 1)]);
}

#[test]
fn p12_a_rejected_member_of_a_run_is_settled_and_leaves_those_after_it_leased() {
    let desk = ordered();
    let [a1, a2, a3] = run_of_three(&desk);
    a1.reject("unwanted").unwrap();
    assert_empty(&desk.sub);
    a2.ack().unwrap();
    a3.ack().unwrap();
    assert_empty(&desk.sub);
    assert_eq!((desk.sub.stats().discarded, desk.sub.stats().acked), (1, 2));
}

#[test]
fn p12_a_member_whose_deadline_is_set_to_now_releases_those_after_it() {
    let desk = ordered();
    let [a1, a2, a3] = run_of_three(&desk);
    a1.extend(Duration::ZERO).unwrap();
    assert_eq!(a2.ack(), EXPIRED);
    assert_eq!(a3.reject("too late"), EXPIRED);
    expect_all(&desk.sub, &[("a1", 2), ("a2", 1), ("a3", 1)]);
}

#[test]
fn p12_an_expired_member_of_a_run_releases_those_after_it_though_their_own_leases_run() {
    let desk = ordered();
    let [a1, a2, a3] = run_of_three(&desk);
    a2.extend(SECOND * 60).unwrap();
    a3.extend(SECOND * 60).unwrap();
    desk.clock.advance(DEADLINE);
    assert_eq!(a3.ack(), EXPIRED);
    assert_eq!(a2.ack(), EXPIRED, "an earlier message of its key is unsettled, so that no late ack is taken");
    drop(a1);
    expect_all(&desk.sub, &[("a1", 2), ("a2", 1), ("a3", 1)]);
}

#[test]
fn p12_a_run_that_expires_whole_comes_again_in_order() {
    let desk = ordered();
    let run = run_of_three(&desk);
    desk.clock.advance(DEADLINE);
    for event in ["a1", "a2", "a3"] {
        let delivery = take(&desk.sub);
        assert_eq!(delivery.as_str(), event);
        delivery.ack().unwrap();
    }
    assert_empty(&desk.sub);
    drop(run);
    assert_empty(&desk.sub);
}

#[test]
fn p08_a_late_ack_of_a_key_is_taken_for_its_earliest_message_only() {
    let desk = ordered();
    let [a1, a2, a3] = run_of_three(&desk);
    desk.clock.advance(DEADLINE);
    assert_eq!(a2.ack(), EXPIRED, "a1 is unsettled");
    a1.ack().unwrap();
    a3.ack().expect_err("a2 is unsettled");
    let again = take(&desk.sub);
    assert_eq!(again.as_str(), "a2");
    again.ack().unwrap();
    let again = take(&desk.sub);
    assert_eq!(again.as_str(), "a3");
    again.ack().unwrap();
    assert_empty(&desk.sub);
}

#[test]
fn p12_acking_a_later_one_of_a_run_first_is_refused_and_releases_it() {
    let desk = ordered();
    let [a1, a2, a3] = run_of_three(&desk);
    assert_eq!(a2.ack(), EXPIRED);
    assert_eq!(a3.ack(), EXPIRED, "it was released with the one before it");
    assert_empty(&desk.sub);
    a1.ack().unwrap();
    expect_all(&desk.sub, &[("a2", 1), ("a3", 1)]);
}

#[test]
fn p12_a_batch_acked_around_its_popped_head_settles_the_other_keys() {
    let desk = ordered();
    publish(&desk.topic, "a1 a2 b1 a3 b2");
    let mut batch = desk.sub.try_recv_batch(10).unwrap();
    let a1 = batch.pop().unwrap();
    assert_eq!(a1.as_str(), "a1");
    assert_eq!(batch.ack(), Err(SettleError::LeaseExpired { count: 2 }));
    a1.ack().unwrap();
    expect_all(&desk.sub, &[("a2", 1), ("a3", 1)]);
}

#[test]
fn p12_a_batch_that_is_nacked_or_dropped_comes_again_in_order() {
    let desk = ordered();
    publish(&desk.topic, "a1 a2 b1 a3");
    desk.sub.try_recv_batch(10).unwrap().nack().unwrap();
    drop(desk.sub.try_recv_batch(10).unwrap());
    desk.sub.try_recv_batch(10).unwrap().release().unwrap();
    drop(desk.sub.try_recv_batch(10).unwrap().into_iter());
    let mut seen = drain(&desk.sub);
    seen.retain(|event| event != "b1");
    assert_eq!(seen, ["a1", "a2", "a3"]);
}

#[test]
fn p12_an_abandoned_iterator_over_a_run_keeps_the_order() {
    let desk = ordered();
    publish(&desk.topic, "a1 a2 a3");
    let a1 = desk.sub.try_recv_batch(10).unwrap().into_iter().next().unwrap();
    assert_empty(&desk.sub);
    a1.ack().unwrap();
    expect_all(&desk.sub, &[("a2", 1), ("a3", 1)]);
}

#[test]
fn p12_a_dead_letter_frees_its_key() {
    let (broker, clock) = manual();
    let dead = broker.topic::<String>("dead").create().unwrap();
    let undertaker = dead.subscription("undertaker").create().unwrap();
    let topic = broker.topic::<String>("t").create().unwrap();
    let options = topic.subscription("s").ordered().dead_letter(DeadLetter::to(&dead).after(2));
    let sub = options.create().unwrap();
    publish(&topic, "a1 a2 a3 a4");
    expect(&sub, "a1", 1).nack().unwrap();
    expect(&sub, "a1", 2).nack().unwrap();
    expect(&sub, "a2", 1).reject("at once").unwrap();
    let a3 = expect(&sub, "a3", 1);
    clock.advance(DEADLINE);
    drop(a3);
    let a3 = expect(&sub, "a3", 2);
    clock.advance(DEADLINE);
    drop(a3);
    expect_all(&sub, &[("a4", 1)]);
    expect_all(&undertaker, &[("a1", 1), ("a2", 1), ("a3", 1)]);
}

#[test]
fn p12_a_discarded_message_frees_its_key() {
    let desk: Desk<String> =
        desk_with(|options| options.ordered().dead_letter(DeadLetter::discard().after(1)));
    publish(&desk.topic, "a1 a2 a3");
    expect(&desk.sub, "a1", 1).nack().unwrap();
    expect(&desk.sub, "a2", 1).reject("no").unwrap();
    expect_all(&desk.sub, &[("a3", 1)]);
}

#[test]
fn p12_a_message_that_reached_its_age_frees_its_key() {
    let desk: Desk<String> = desk_with(|options| options.ordered().expire_after(SECOND * 30));
    publish(&desk.topic, "a1");
    desk.clock.advance(SECOND);
    publish(&desk.topic, "a2");
    expect(&desk.sub, "a1", 1).nack_after(SECOND * 3_600).unwrap();
    assert_empty(&desk.sub);
    desk.clock.advance(SECOND * 29 - NANO);
    assert_empty(&desk.sub);
    desk.clock.advance(NANO);
    expect_all(&desk.sub, &[("a2", 1)]);
    assert_eq!(desk.sub.stats().messages_expired, 1);
}

#[test]
fn p12_a_message_whose_own_life_is_over_frees_its_key() {
    let desk = ordered();
    desk.topic.publish(keyed("a1").expires_in(SECOND)).unwrap();
    publish(&desk.topic, "a2");
    expect(&desk.sub, "a1", 1).nack_after(SECOND * 60).unwrap();
    desk.clock.advance(SECOND);
    expect_all(&desk.sub, &[("a2", 1)]);
}

#[test]
fn p12_a_message_that_is_filtered_out_holds_nobody_up() {
    let desk: Desk<String> = desk_with(|options| options.ordered().filter("NOT attributes:skip"));
    desk.topic.publish(keyed("a1").attribute("skip", "")).unwrap();
    publish(&desk.topic, "a2");
    desk.topic.publish(keyed("a3").attribute("skip", "")).unwrap();
    publish(&desk.topic, "a4");
    let a2 = expect(&desk.sub, "a2", 1);
    assert_empty(&desk.sub);
    a2.ack().unwrap();
    expect_all(&desk.sub, &[("a4", 1)]);
}

#[test]
fn p12_at_most_once_frees_a_key_at_hand_out() {
    let desk: Desk<String> = desk_with(|options| options.ordered().delivery(DeliveryMode::AtMostOnce));
    publish(&desk.topic, "a1 a2 b1");
    let held = ["a1", "a2", "b1"].map(|event| expect(&desk.sub, event, 1));
    drop(held);
    assert_empty(&desk.sub);
}

#[test]
fn p12_a_seek_begins_every_key_anew() {
    let (broker, _clock) = manual();
    let topic = broker.topic::<String>("t").retention(Retention::forever()).create().unwrap();
    let sub = topic.subscription("s").ordered().create().unwrap();
    publish(&topic, "a1 a2 a3 b1");
    expect(&sub, "a1", 1).ack().unwrap();
    let a2 = expect(&sub, "a2", 1);
    sub.seek(Seek::Earliest).unwrap();
    assert_eq!(a2.ack(), EXPIRED);
    let a1 = expect(&sub, "a1", 1);
    let b1 = expect(&sub, "b1", 1);
    assert_empty(&sub);
    a1.ack().unwrap();
    b1.ack().unwrap();
    sub.seek(Seek::Sequence(3)).unwrap();
    expect_all(&sub, &[("a3", 1), ("b1", 1)]);
}

#[test]
fn p12_a_key_that_comes_back_after_a_rest_is_free() {
    let desk = ordered();
    for round in 0..600 {
        publish(&desk.topic, "a1 b1");
        let attempt = if round % 3 == 0 {
            expect(&desk.sub, "a1", 1).nack().unwrap();
            2
        } else {
            1
        };
        let mut seen = [take(&desk.sub), take(&desk.sub)].map(|delivery| {
            let seen = (delivery.to_string(), delivery.attempt());
            delivery.ack().unwrap();
            seen
        });
        seen.sort();
        assert_eq!(seen, [("a1".to_owned(), attempt), ("b1".to_owned(), 1)]);
        assert_empty(&desk.sub);
    }
}

#[test]
fn p12_a_waiting_receiver_wakes_when_its_key_is_freed() {
    let desk = ordered();
    publish(&desk.topic, "a1 a2");
    let a1 = expect(&desk.sub, "a1", 1);
    let waiting = ask({
        let sub = desk.sub.clone();
        move || sub.recv().unwrap().to_string()
    });
    waiting.assert_pending();
    a1.ack().unwrap();
    assert_eq!(waiting.get(), "a2");
}

#[test]
fn without_ordered_a_key_is_only_a_label() {
    let desk = desk::<String>();
    publish(&desk.topic, "a1 a2");
    let held = [expect(&desk.sub, "a1", 1), expect(&desk.sub, "a2", 1)];
    assert_eq!(held[1].message().ordering_key(), Some("a"));
}

/// What four workers settled, per key, in the order in which they held the leases.
type Settled = Arc<Mutex<HashMap<String, Vec<u64>>>>;

/// Works until nothing is left; `release`s, nacks and drops one delivery in three, singly and in batches.
fn work(sub: &Subscription<u64>, settled: &Settled, mut numbers: Numbers) {
    while sub.stats().backlog > 0 {
        let max = 1 + numbers.below(8) as usize;
        let batch = match sub.try_recv_batch(max) {
            Ok(batch) => batch,
            Err(TryRecvError::Empty) => {
                std::thread::yield_now();
                continue;
            }
            Err(error) => panic!("{error:?}"),
        };
        for delivery in batch {
            match numbers.below(9) {
                0 => _ = delivery.nack(),
                1 => _ = delivery.release(),
                2 => drop(delivery),
                _ => {
                    let (key, number) = (delivery.message().ordering_key().unwrap().to_owned(), *delivery);
                    // Under the lock until it is recorded: once it is acked, another worker may settle the next of the key.
                    let mut settled = settled.lock().unwrap();
                    if delivery.ack().is_ok() {
                        settled.entry(key).or_default().push(number);
                    }
                }
            }
        }
    }
}

#[test]
fn p12_workers_that_fail_at_random_settle_every_key_in_its_order() {
    const KEYS: u64 = 16;
    const MESSAGES: u64 = 4_000;
    let (broker, _clock) = manual();
    let topic = broker.topic::<u64>("t").create().unwrap();
    let sub = topic.subscription("s").ordered().create().unwrap();
    let messages = (0..MESSAGES).map(|n| Message::new(n).ordering_key((n / 3 % KEYS).to_string()));
    topic.publish_all(messages).unwrap();
    let settled = Settled::default();
    let workers: Vec<_> = (0..4u64)
        .map(|worker| {
            let (sub, settled) = (sub.clone(), settled.clone());
            ask(move || work(&sub, &settled, Numbers(worker)))
        })
        .collect();
    workers.into_iter().for_each(|worker| Answer::get_within(worker, 120));
    let settled = settled.lock().unwrap();
    let mut total = 0;
    for (key, numbers) in settled.iter() {
        assert!(numbers.is_sorted_by(|a, b| a < b), "key {key} was settled out of order");
        total += numbers.len() as u64;
    }
    assert_eq!(total, MESSAGES);
}
