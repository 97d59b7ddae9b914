//! Delays, lives and deadlines over restarts, on a clock that the test sets.

use eventflow::{Broker, ManualClock, Message, Retention, RetryPolicy, Seek, Start, Subscription, Topic};

use crate::support::{Dir, ENDS, End, SECOND, drain, ended, over_restarts, send, take};

const HOUR: std::time::Duration = std::time::Duration::from_secs(3_600);

fn open(broker: &Broker) -> (Subscription<String>, Topic<String>) {
    let topic = broker.topic::<String>("orders").open().unwrap();
    (topic.subscription("billing").open().unwrap(), topic)
}

/// Publishes, ends the broker, lets time pass while nobody looks, and gives the rest to `after`.
fn while_closed(
    before: impl Fn(&Topic<String>),
    passes: std::time::Duration,
    after: impl Fn(&Subscription<String>, &ManualClock, End),
) {
    for end in ENDS {
        let clock = ManualClock::new();
        let dir = Dir::new();
        let broker = dir.open_at(&clock);
        let (billing, topic) = open(&broker);
        before(&topic);
        let dir = ended(end, dir, broker, (billing, topic));
        clock.advance(passes);
        let broker = dir.open_at(&clock);
        let (billing, _topic) = open(&broker);
        after(&billing, &clock, end);
    }
}

#[test]
fn a_delay_lasts_over_a_restart() {
    over_restarts(
        open,
        |(_, topic), clock| {
            send(topic, Message::new("later".to_owned()).deliver_after(HOUR));
            send(topic, "now");
            clock.advance(HOUR / 2);
            ((), ())
        },
        |(billing, _), (), _, clock| {
            assert_eq!(drain(billing), ["now"]);
            assert_eq!(billing.stats().delayed, 1);
            clock.advance(HOUR / 2 - SECOND);
            assert_eq!(drain(billing), [""; 0]);
            clock.advance(SECOND);
            assert_eq!(drain(billing), ["later"]);
        },
    );
}

#[test]
fn a_delay_ends_while_nobody_looks() {
    let before = |topic: &Topic<String>| {
        send(topic, Message::new("later".to_owned()).deliver_after(HOUR));
    };
    while_closed(before, HOUR, |billing, _, end| assert_eq!(drain(billing), ["later"], "{end:?}"));
}

#[test]
fn a_life_ends_while_nobody_looks() {
    let before = |topic: &Topic<String>| {
        send(topic, Message::new("short".to_owned()).expires_in(HOUR));
        send(topic, Message::new("long".to_owned()).expires_in(2 * HOUR));
        let delayed = Message::new("delayed".to_owned()).deliver_after(HOUR).expires_in(HOUR);
        send(topic, delayed);
    };
    while_closed(before, HOUR, |billing, clock, end| {
        assert_eq!(billing.stats().backlog, 2, "{end:?}");
        let held = take(billing);
        assert_eq!(*held, "long", "{end:?}");
        held.ack().unwrap();
        clock.advance(HOUR);
        assert_eq!(drain(billing), [""; 0], "{end:?}: its life counted from when it was due");
        assert_eq!(billing.stats().backlog, 0, "{end:?}");
    });
}

#[test]
fn a_subscriptions_expiry_counts_from_the_publish() {
    over_restarts(
        |broker| {
            let topic = broker.topic::<String>("orders").open().unwrap();
            (topic.subscription("billing").expire_after(HOUR).open().unwrap(), topic)
        },
        |(_, topic), clock| {
            send(topic, "old");
            clock.advance(HOUR / 2);
            send(topic, "young");
            clock.advance(HOUR / 2 - SECOND);
            ((), ())
        },
        |(billing, _), (), _, clock| {
            assert_eq!(billing.stats().backlog, 2);
            clock.advance(SECOND);
            assert_eq!(billing.stats().backlog, 1);
            assert_eq!(drain(billing), ["young"]);
        },
    );
}

#[test]
fn what_expired_is_gone_for_good() {
    over_restarts(
        |broker| {
            let topic = broker.topic::<String>("orders").open().unwrap();
            (topic.subscription("billing").open().unwrap(), topic)
        },
        |(billing, topic), clock| {
            send(topic, Message::new("short".to_owned()).expires_in(SECOND));
            send(topic, "for ever");
            clock.advance(SECOND);
            assert_eq!(billing.stats().messages_expired, 1);
            ((), ())
        },
        |(billing, _), (), _, _| assert_eq!(drain(billing), ["for ever"]),
    );
}

#[test]
fn a_lease_ends_with_its_process_and_not_before_its_deadline() {
    over_restarts(
        |broker| {
            let topic = broker.topic::<String>("orders").open().unwrap();
            let retry = RetryPolicy::immediate();
            (topic.subscription("billing").ack_deadline(HOUR).retry(retry).open().unwrap(), topic)
        },
        |(billing, topic), _| {
            send(topic, "order 1");
            (take(billing), ())
        },
        |(billing, _), (), _, clock| {
            let held = take(billing);
            clock.advance(HOUR - SECOND);
            assert!(billing.try_recv().is_err(), "it is leased anew");
            clock.advance(SECOND);
            assert_eq!(*take(billing), "order 1");
            assert!(held.ack().is_err() || billing.stats().backlog == 0);
        },
    );
}

#[test]
fn what_is_kept_for_a_time_goes_when_that_has_passed() {
    let kept = |broker: &Broker| {
        let topic = broker.topic::<String>("orders").retention(Retention::for_duration(HOUR)).open().unwrap();
        (topic.subscription("billing").open().unwrap(), topic)
    };
    over_restarts(
        kept,
        |(billing, topic), clock| {
            topic.publish_all((0..600).map(|n| format!("old {n}"))).unwrap();
            assert_eq!(drain(billing).len(), 600);
            clock.advance(HOUR / 2);
            send(topic, "young");
            assert_eq!(drain(billing), ["young"]);
            ((), ())
        },
        |(billing, topic), (), end, clock| {
            // A process that was killed has not written the last of its acks.
            drain(billing);
            let late = topic.subscription("late").start(Start::Earliest).open().unwrap();
            assert_eq!(late.stats().backlog, 601, "{end:?}");
            late.delete().unwrap();
            clock.advance(HOUR);
            send(topic, "new");
            let later = topic.subscription("later").start(Start::Earliest).open().unwrap();
            assert_eq!(drain(&later).last().unwrap(), "new");
            assert!(topic.stats().resident_messages < 600, "{:?}", topic.stats());
            assert_eq!(drain(billing), ["new"]);
        },
    );
}

#[test]
fn a_seek_to_a_time_finds_the_same_place() {
    over_restarts(
        |broker| {
            let topic = broker.topic::<String>("orders").retention(Retention::forever()).open().unwrap();
            (topic.subscription("billing").open().unwrap(), topic)
        },
        |(billing, topic), clock| {
            for n in 0..10 {
                send(topic, format!("order {n}"));
                clock.advance(SECOND);
            }
            drain(billing);
            ((), ())
        },
        |(billing, _), (), _, clock| {
            billing.seek(Seek::Time(clock.now() - 3 * SECOND)).unwrap();
            assert_eq!(drain(billing), ["order 7", "order 8", "order 9"]);
        },
    );
}
