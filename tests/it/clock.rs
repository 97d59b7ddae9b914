//! Time that passes only when told to: P23, as a `ManualClock` shows it; and two brokers that do not know each other.

use std::time::Duration;

use eventflow::{
    Capacity, DeadLetter, ManualClock, Message, PublishError, Retention, RetryPolicy, Start, Topic,
};

use crate::support::{
    Answer, Broker, Counted, DEADLINE, Drops, NANO, SECOND, ask, assert_empty, desk, desk_with, drain,
    manual, take, within,
};

const CENTURY: Duration = Duration::from_secs(100 * 365 * 86_400);

#[test]
fn p23_a_manual_clock_starts_at_a_fixed_date_and_stands_still() {
    let (first, second) = (ManualClock::new(), ManualClock::new());
    assert_eq!(first.now(), second.now());
    let start = first.now();
    first.advance(SECOND);
    assert_eq!(first.now(), start + SECOND);
    assert_eq!(second.now(), start, "two clocks are two");
    let clone = first.clone();
    clone.advance(NANO);
    assert_eq!(first.now(), start + SECOND + NANO, "a clone is the same clock");
    first.advance(Duration::ZERO);
    assert_eq!(first.now(), start + SECOND + NANO);
}

#[test]
fn p23_publish_times_are_the_clocks_and_never_go_back() {
    let desk = desk::<u64>();
    let start = desk.clock.now();
    for number in 0..100u64 {
        desk.topic.publish(number).unwrap();
        if number % 10 == 9 {
            desk.clock.advance(SECOND);
        }
    }
    let batch = desk.sub.try_recv_batch(100).unwrap();
    for message in batch.iter() {
        let tens = u32::try_from(*message / 10).unwrap();
        assert_eq!(message.publish_time(), start + SECOND * tens);
    }
}

#[test]
fn p23_the_system_clocks_publish_times_never_go_back_either() {
    let broker = Broker::in_memory();
    let topic = broker.topic::<u64>("t").create().unwrap();
    let sub = topic.subscription("s").create().unwrap();
    let before = std::time::SystemTime::now();
    (0..1_000u64).for_each(|number| _ = topic.publish(number).unwrap());
    let batch = sub.try_recv_batch(1_000).unwrap();
    let times: Vec<_> = batch.iter().map(|message| message.publish_time()).collect();
    assert!(times.is_sorted());
    // The broker's line starts at the wall clock's reading; a machine that sets its clock meanwhile may be an hour off.
    let hour = Duration::from_secs(3_600);
    assert!(times[0] > before - hour && times[0] < before + hour);
}

#[test]
fn p23_without_advance_no_lease_ends_and_no_delay_is_over() {
    let desk = desk_with::<u64>(|options| options.ack_deadline(Duration::from_millis(1)));
    desk.topic.publish(1u64).unwrap();
    desk.topic.publish(Message::new(2u64).deliver_after(Duration::from_nanos(1))).unwrap();
    let held = take(&desk.sub);
    let real = std::time::Instant::now();
    while real.elapsed() < Duration::from_millis(20) {
        assert_empty(&desk.sub);
    }
    held.ack().unwrap();
    desk.clock.advance(NANO);
    assert_eq!(drain(&desk.sub), [2]);
}

#[test]
fn p23_a_retry_counts_from_the_expiry_also_when_one_advance_passes_both() {
    let desk = desk_with::<u64>(|options| options.retry(RetryPolicy::fixed(SECOND * 5)));
    desk.topic.publish_all([1u64, 2]).unwrap();
    let held = [take(&desk.sub), take(&desk.sub)];
    held[1].extend(SECOND * 14).unwrap();
    // One call: the leases end at 10 s and at 14 s, and the retries are due at 15 s and at 19 s.
    desk.clock.advance(SECOND * 15 - NANO);
    assert_empty(&desk.sub);
    assert_eq!(desk.sub.stats().delayed, 2);
    desk.clock.advance(NANO);
    let again = take(&desk.sub);
    assert_eq!((*again, again.attempt()), (1, 2));
    assert_empty(&desk.sub);
    desk.clock.advance(SECOND * 4);
    assert_eq!(*take(&desk.sub), 2);
    drop(held);
}

#[test]
fn p23_what_happened_on_the_way_carries_the_time_at_which_it_happened() {
    let (broker, clock) = manual();
    let start = clock.now();
    let dead = broker.topic::<u64>("dead").retention(Retention::forever()).create().unwrap();
    let reader = dead.subscription("reader").create().unwrap();
    let topic = broker.topic::<u64>("t").create().unwrap();
    let sub = topic.subscription("s").dead_letter(DeadLetter::to(&dead).after(1)).create().unwrap();
    topic.publish_all([1u64, 2, 3]).unwrap();
    let held = [take(&sub), take(&sub), take(&sub)];
    held[0].extend(SECOND * 30).unwrap();
    held[1].extend(SECOND * 20).unwrap();
    clock.advance(Duration::from_secs(3_600));
    let letters = reader.try_recv_batch(10).unwrap();
    let seen: Vec<_> = letters.iter().map(|letter| (*letter, letter.publish_time())).collect();
    assert_eq!(seen, [(3, start + SECOND * 10), (2, start + SECOND * 20), (1, start + SECOND * 30)]);
    drop(held);
}

#[test]
fn p23_a_consequence_has_consequences_of_its_own_in_the_same_advance() {
    let (broker, clock) = manual();
    let drops = Drops::default();
    let dead =
        broker.topic::<Counted>("dead").retention(Retention::for_duration(SECOND * 5)).create().unwrap();
    let slow = dead.subscription("slow").expire_after(SECOND * 60).create().unwrap();
    let topic = broker.topic::<Counted>("t").create().unwrap();
    let sub = topic.subscription("s").dead_letter(DeadLetter::to(&dead).after(1)).create().unwrap();
    topic.publish(drops.event(7)).unwrap();
    let held = take(&sub);
    // The lease ends at 10 s: the letter is published then, leaves `slow` at 70 s, and nobody needs it any more.
    clock.advance(SECOND * 70 - NANO);
    assert_eq!((slow.stats().backlog, slow.stats().messages_expired), (1, 0));
    drop(held);
    assert_eq!(drops.count(), 0);
    clock.advance(NANO);
    assert_eq!((slow.stats().backlog, slow.stats().messages_expired), (0, 1));
    assert_eq!(drops.count(), 1);
}

#[test]
fn p23_a_letter_that_dies_and_expires_within_one_advance_is_seen_to_do_both() {
    let (broker, clock) = manual();
    let dead = broker.topic::<u64>("dead").create().unwrap();
    let slow = dead.subscription("slow").expire_after(SECOND * 60).create().unwrap();
    let topic = broker.topic::<u64>("t").create().unwrap();
    let sub = topic.subscription("s").dead_letter(DeadLetter::to(&dead).after(1)).create().unwrap();
    topic.publish(7u64).unwrap();
    let held = take(&sub);
    clock.advance(Duration::from_secs(3_600));
    assert_eq!((dead.stats().published, slow.stats().messages_expired, slow.stats().backlog), (1, 1, 0));
    assert_eq!((sub.stats().dead_lettered, sub.stats().leases_expired), (1, 1));
    drop(held);
}

/// A morning of every kind of deadline; what the broker shows at its end.
fn morning(advance: impl Fn(&ManualClock, Duration)) -> String {
    let (broker, clock) = manual();
    let dead = broker.topic::<u64>("dead").retention(Retention::for_duration(SECOND * 40)).create().unwrap();
    let undertaker = dead.subscription("undertaker").expire_after(SECOND * 25).create().unwrap();
    let topic = broker.topic::<u64>("t").retention(Retention::for_duration(SECOND * 20)).create().unwrap();
    let options = topic.subscription("s").retry(RetryPolicy::fixed(SECOND * 3)).expire_after(SECOND * 50);
    let sub = options.dead_letter(DeadLetter::to(&dead).after(2)).create().unwrap();
    let mut held = Vec::new();
    let mut story = String::new();
    for minute in 0..12u64 {
        for number in 0..7 {
            let message = Message::new(minute * 7 + number);
            let message = match number {
                1 => message.deliver_after(SECOND * 4),
                2 => message.expires_in(SECOND * 9),
                3 => message.deliver_after(SECOND * 2).expires_in(SECOND),
                _ => message,
            };
            topic.publish(message).unwrap();
        }
        while let Ok(delivery) = sub.try_recv() {
            story += &format!("{}#{} ", *delivery, delivery.attempt());
            match *delivery % 5 {
                0 => delivery.nack().unwrap(),
                1 => delivery.nack_after(SECOND * 6).unwrap(),
                2 => delivery.extend(SECOND * 17).map(|()| held.push(delivery)).unwrap(),
                3 => held.push(delivery),
                _ => delivery.ack().unwrap(),
            }
        }
        advance(&clock, SECOND * 11);
    }
    story += &format!("{:?} {:?} {:?}", sub.stats(), undertaker.stats(), broker.stats());
    let letters = dead.subscription("late").start(Start::Earliest).create().unwrap();
    while let Ok(letter) = letters.try_recv() {
        story += &format!(" {}@{:?}", *letter, letter.message().publish_time());
        letter.ack().unwrap();
    }
    story
}

#[test]
fn p23_one_long_advance_is_as_many_short_ones() {
    let at_once = morning(|clock, time| clock.advance(time));
    let by_steps = morning(|clock, time| {
        (0..1_100).for_each(|_| clock.advance(time / 1_100));
    });
    let unevenly = morning(|clock, time| {
        clock.advance(time / 3);
        clock.advance(time - time / 3 - NANO);
        clock.advance(NANO);
    });
    assert_eq!(at_once, by_steps);
    assert_eq!(at_once, unevenly);
}

#[test]
fn p23_a_blocked_receiver_gets_a_delayed_message_when_its_time_comes() {
    let desk = desk::<u64>();
    desk.topic.publish(Message::new(7u64).deliver_after(SECOND)).unwrap();
    let waiting = ask({
        let sub = desk.sub.clone();
        move || *sub.recv().unwrap()
    });
    desk.clock.advance(SECOND - NANO);
    waiting.assert_pending();
    desk.clock.advance(NANO);
    assert_eq!(waiting.get(), 7);
}

#[test]
fn p23_a_timeout_of_receiving_runs_on_the_brokers_clock() {
    let desk = desk::<u64>();
    let waiting = ask({
        let sub = desk.sub.clone();
        move || sub.recv_timeout(Duration::from_millis(1)).map(|delivery| *delivery)
    });
    waiting.assert_pending();
    let outcome = loop {
        // The thread may begin to wait at any moment; a millisecond on the clock after that it has waited long enough.
        desk.clock.advance(Duration::from_millis(1));
        if let Some(outcome) = waiting.poll() {
            break outcome;
        }
    };
    assert!(outcome.is_err());
}

#[test]
fn p23_a_timeout_of_publishing_runs_on_the_brokers_clock() {
    let (broker, clock) = manual();
    let topic = broker.topic::<u64>("t").capacity(Capacity::messages(1)).create().unwrap();
    let sub = topic.subscription("s").create().unwrap();
    topic.publish(1u64).unwrap();
    let waiting = ask({
        let topic = topic.clone();
        move || topic.publish_timeout(2u64, Duration::from_millis(1))
    });
    waiting.assert_pending();
    let outcome = loop {
        clock.advance(Duration::from_millis(1));
        if let Some(outcome) = waiting.poll() {
            break outcome;
        }
    };
    assert!(matches!(outcome, Err(PublishError::Timeout(_))), "{outcome:?}");
    assert_eq!(drain(&sub), [1]);
}

#[cfg(feature = "async")]
#[test]
fn p23_advance_wakes_who_waits_for_what_it_brings_before_it_returns() {
    use crate::support::Task;
    let desk = desk::<u64>();
    desk.topic.publish(Message::new(1u64).deliver_after(SECOND)).unwrap();
    let mut receiver = Task::pending(desk.sub.recv_async());
    desk.clock.advance(SECOND - NANO);
    assert!(receiver.poll().is_pending());
    receiver.renew();
    assert!(receiver.poll().is_pending());
    desk.clock.advance(NANO);
    assert!(receiver.wakes() > 0);
    let held = receiver.ready().unwrap();
    assert_eq!(*held, 1);

    let mut receiver = Task::pending(desk.sub.recv_async());
    desk.clock.advance(DEADLINE);
    assert!(receiver.wakes() > 0, "the expiry brought it back");
    assert_eq!(receiver.ready().unwrap().attempt(), 2);

    let (broker, clock) = manual();
    let topic = broker.topic::<u64>("t").capacity(Capacity::messages(1)).create().unwrap();
    let sub = topic.subscription("s").expire_after(SECOND).create().unwrap();
    topic.publish(1u64).unwrap();
    let mut publisher = Task::pending(topic.publish_async(2u64));
    clock.advance(SECOND);
    assert!(publisher.wakes() > 0, "the expired message made room");
    publisher.ready().unwrap();
    assert_eq!(drain(&sub), [2]);
}

#[test]
fn p23_ready_shows_a_token_when_advance_returns() {
    let desk = desk::<u64>();
    let ready = desk.sub.ready();
    desk.topic.publish(Message::new(1u64).deliver_after(SECOND)).unwrap();
    while ready.try_recv().is_ok() {
        assert_empty(&desk.sub);
    }
    assert_empty(&desk.sub);
    desk.clock.advance(SECOND);
    ready.try_recv().expect("there is something to receive");
    assert_eq!(*take(&desk.sub), 1);
}

#[test]
fn p23_several_threads_may_advance_one_clock() {
    within(60, || {
        let desk = desk_with::<u64>(|options| options.retry(RetryPolicy::fixed(SECOND)));
        let start = desk.clock.now();
        desk.topic.publish_all(0..100u64).unwrap();
        let advancing: Vec<_> = (0..4)
            .map(|_| {
                let clock = desk.clock.clone();
                ask(move || (0..500).for_each(|_| clock.advance(SECOND / 10)))
            })
            .collect();
        let receiving = ask({
            let sub = desk.sub.clone();
            move || {
                for _ in 0..2_000 {
                    drop(sub.try_recv());
                }
            }
        });
        advancing.into_iter().for_each(Answer::get);
        receiving.get();
        assert_eq!(desk.clock.now(), start + SECOND * 200);
        desk.clock.advance(SECOND * 11);
        let mut seen = drain(&desk.sub);
        seen.sort_unstable();
        assert_eq!(seen, (0..100).collect::<Vec<_>>());
    });
}

#[test]
fn p23_two_brokers_may_share_a_clock() {
    let clock = ManualClock::new();
    let brokers = [(); 2].map(|()| Broker::builder().clock(clock.clone()).build().unwrap());
    let subs = brokers.each_ref().map(|broker| {
        let topic = broker.topic::<u64>("t").create().unwrap();
        let sub = topic.subscription("s").create().unwrap();
        topic.publish(1u64).unwrap();
        sub
    });
    let held = subs.each_ref().map(take);
    clock.advance(DEADLINE);
    for sub in &subs {
        assert_eq!(take(sub).attempt(), 2);
    }
    drop(held);
    let [gone, stays] = brokers;
    drop((gone, subs));
    clock.advance(DEADLINE);
    assert_eq!(stays.topics(), ["t"]);
}

#[test]
fn p24_time_that_runs_beyond_every_bound_saturates() {
    let desk = desk_with::<u64>(|options| options.retry(RetryPolicy::exponential(SECOND, Duration::MAX)));
    desk.topic.publish(1u64).unwrap();
    for _ in 0..5 {
        take(&desk.sub).nack().unwrap();
        desk.clock.advance(CENTURY);
    }
    within(60, move || {
        let before = desk.clock.now();
        desk.clock.advance(Duration::MAX);
        assert!(desk.clock.now() >= before);
        desk.clock.advance(Duration::MAX);
        // At the end of the line nothing is promised but that calls return.
        desk.topic.publish(2u64).unwrap();
        for _ in 0..10 {
            drop(desk.sub.try_recv());
        }
        desk.broker.shutdown(Duration::ZERO).unwrap();
    });
}

#[test]
fn the_age_of_the_oldest_unsettled_message_is_measured_by_the_clock() {
    let desk = desk::<u64>();
    assert_eq!(desk.sub.stats().oldest_unsettled_age, None);
    desk.topic.publish(1u64).unwrap();
    desk.clock.advance(SECOND * 3);
    desk.topic.publish(2u64).unwrap();
    assert_eq!(desk.sub.stats().oldest_unsettled_age, Some(SECOND * 3));
    take(&desk.sub).ack().unwrap();
    assert_eq!(desk.sub.stats().oldest_unsettled_age, Some(Duration::ZERO));
    let held = take(&desk.sub);
    desk.clock.advance(SECOND);
    assert_eq!(desk.sub.stats().oldest_unsettled_age, Some(SECOND));
    held.ack().unwrap();
    assert_eq!(desk.sub.stats().oldest_unsettled_age, None);
}

fn lively(broker: &Broker) -> Topic<u64> {
    let topic = broker.topic::<u64>("t").retention(Retention::forever()).create().unwrap();
    topic.subscription("s").create().unwrap();
    topic
}

#[test]
fn two_brokers_do_not_know_each_other() {
    let (a, _clock_of_a) = manual();
    let (b, clock_of_b) = manual();
    let (topic_of_a, topic_of_b) = (lively(&a), lively(&b));
    let sub_of_a = topic_of_a.subscription("s").open().unwrap();
    let sub_of_b = topic_of_b.subscription("s").open().unwrap();
    let once = |number: u64| Message::new(number).idempotency_id("same");
    assert!(!topic_of_a.publish(once(1)).unwrap().deduplicated);
    assert!(!topic_of_b.publish(once(2)).unwrap().deduplicated);
    sub_of_a.snapshot("x").unwrap();
    assert!(b.snapshots().is_empty());
    sub_of_b.snapshot("x").unwrap();
    let held = take(&sub_of_a);
    clock_of_b.advance(DEADLINE * 10);
    assert_empty(&sub_of_a);
    held.ack().unwrap();
    assert_eq!((a.stats().published, b.stats().published, b.stats().backlog), (1, 1, 1));
    a.delete_topic("t").unwrap();
    assert_eq!(b.topics(), ["t"]);
    a.shutdown(Duration::ZERO).unwrap();
    assert!(a.topic::<u64>("t").open().is_err());
    assert_eq!(drain(&sub_of_b), [2]);
    topic_of_b.publish(3u64).unwrap();
    assert_eq!(drain(&sub_of_b), [3]);
}
