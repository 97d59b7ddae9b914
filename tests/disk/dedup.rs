//! An idempotency id is published once, whatever ends in between.

use std::time::Duration;

use eventflow::{DedupWindow, ManualClock, Message, PublishError};
use uuid::Uuid;

use crate::support::{Dir, ENDS, Order, OrderCodec, SECOND, drain, ended, order, over_restarts, send};

fn with_id(text: &str, id: &str) -> Message<String> {
    Message::new(text.to_owned()).idempotency_id(id)
}

#[test]
fn p14_a_repeat_after_a_restart_gets_the_first_receipt() {
    over_restarts(
        |broker| {
            let topic = broker.topic::<String>("orders").open().unwrap();
            (topic.subscription("billing").open().unwrap(), topic)
        },
        |(billing, topic), _| {
            let first = send(topic, with_id("order 1", "1"));
            let uuid = Uuid::from_u128(7);
            let second = send(topic, Message::new("order 2".to_owned()).idempotency_id(uuid));
            // What is settled, and gone, is remembered all the same.
            assert_eq!(drain(billing).len(), 2);
            ((), (first.id, second.id, uuid))
        },
        |(billing, topic), (first, second, uuid), _, _| {
            drain(billing);
            let again = send(topic, with_id("order 1", "1"));
            assert!(again.deduplicated);
            assert_eq!(again.id, first);
            let again = send(topic, Message::new("order 2".to_owned()).idempotency_id(uuid.to_string()));
            assert!(again.deduplicated, "a uuid and its text are one id");
            assert_eq!(again.id, second);
            assert!(!send(topic, with_id("order 1", "other")).deduplicated);
            assert_eq!(drain(billing), ["order 1"], "the last alone is new");
        },
    );
}

#[test]
fn p14_another_message_under_a_known_id_is_a_conflict() {
    over_restarts(
        |broker| {
            let topic = broker.topic::<String>("orders").open().unwrap();
            let coded = broker.topic::<Order>("coded").codec(OrderCodec("order/1")).open().unwrap();
            let by_print = broker.topic::<Order>("by-fingerprint");
            let by_print = by_print.codec(OrderCodec("order/1")).fingerprint(|order| u64::from(order.number));
            (topic, coded, by_print.open().unwrap())
        },
        |(topic, coded, by_print), _| {
            let message = with_id("order 1", "1").attribute("region", "eu").ordering_key("a");
            send(topic, message);
            send(coded, Message::new(order(1)).idempotency_id("1"));
            send(by_print, Message::new(order(1)).idempotency_id("1"));
            ((), ())
        },
        |(topic, coded, by_print), (), _, _| {
            let known = || with_id("order 1", "1");
            for (message, case) in [
                (known().ordering_key("a"), "no attribute"),
                (known().attribute("region", "eu"), "no key"),
                (known().attribute("region", "us").ordering_key("a"), "another attribute"),
                (known().attribute("region", "eu").ordering_key("b"), "another key"),
                (with_id("order 2", "1").attribute("region", "eu").ordering_key("a"), "another payload"),
            ] {
                let outcome = topic.publish(message);
                assert!(matches!(outcome, Err(PublishError::IdempotencyConflict(_))), "{case}: {outcome:?}");
            }
            assert!(send(topic, known().ordering_key("a").attribute("region", "eu")).deduplicated);

            let outcome = coded.publish(Message::new(order(2)).idempotency_id("1"));
            assert!(matches!(outcome, Err(PublishError::IdempotencyConflict(_))), "{outcome:?}");
            assert!(send(coded, Message::new(order(1)).idempotency_id("1")).deduplicated);

            let outcome = by_print.publish(Message::new(order(2)).idempotency_id("1"));
            assert!(matches!(outcome, Err(PublishError::IdempotencyConflict(_))), "{outcome:?}");
            let alike = Order { customer: "somebody else".into(), ..order(1) };
            assert!(send(by_print, Message::new(alike).idempotency_id("1")).deduplicated);
        },
    );
}

#[test]
fn p14_the_window_ends_when_it_would_have_ended() {
    for end in ENDS {
        let clock = ManualClock::new();
        let window = DedupWindow::time(SECOND * 60);
        let dir = Dir::new();
        let broker = dir.open_at(&clock);
        let topic = broker.topic::<String>("orders").dedup(window).open().unwrap();
        let first = send(&topic, with_id("order 1", "1"));
        clock.advance(SECOND * 30);
        let second = send(&topic, with_id("order 2", "2"));
        let dir = ended(end, dir, broker, topic);

        clock.advance(SECOND * 30 - Duration::from_nanos(1));
        let broker = dir.open_at(&clock);
        let topic = broker.topic::<String>("orders").dedup(window).open().unwrap();
        let again = send(&topic, with_id("order 1", "1"));
        assert!(again.deduplicated && again.id == first.id, "{end:?}: a nanosecond before its end");
        let dir = ended(end, dir, broker, topic);

        clock.advance(Duration::from_nanos(1));
        let broker = dir.open_at(&clock);
        let topic = broker.topic::<String>("orders").dedup(window).open().unwrap();
        let anew = send(&topic, with_id("order 1", "1"));
        assert!(!anew.deduplicated && anew.id > second.id, "{end:?}: the repeat did not renew it");
        let again = send(&topic, with_id("order 2", "2"));
        assert!(again.deduplicated && again.id == second.id, "{end:?}: its window is not over");
    }
}

#[test]
fn p14_the_window_holds_so_many_ids() {
    over_restarts(
        |broker| {
            let window = DedupWindow::time(SECOND * 3_600).max_ids(100);
            (broker.topic::<String>("orders").dedup(window).open().unwrap(), ())
        },
        |(topic, ()), _| {
            let ids = (0..250).map(|n| send(topic, with_id("order", &n.to_string())).id);
            ((), ids.collect::<Vec<_>>())
        },
        |(topic, ()), ids, _, _| {
            for n in (150..250).rev() {
                let again = send(topic, with_id("order", &n.to_string()));
                assert!(again.deduplicated && again.id == ids[n], "{n} is one of the last hundred");
            }
            assert!(!send(topic, with_id("order", "149")).deduplicated, "149 is not");
            assert!(!send(topic, with_id("order", "150")).deduplicated, "and was remembered in place of 150");
        },
    );
}

#[test]
fn p14_a_publish_that_failed_has_recorded_no_id() {
    over_restarts(
        |broker| {
            let topic = broker.topic::<String>("orders").open().unwrap();
            (topic.subscription("billing").open().unwrap(), topic)
        },
        |(_, topic), _| {
            send(topic, with_id("order 1", "1"));
            let batch = [with_id("order 2", "2"), with_id("another", "1")];
            assert!(topic.publish_all(batch).is_err(), "one of them conflicts");
            ((), ())
        },
        |(billing, topic), (), _, _| {
            assert!(!send(topic, with_id("order 2", "2")).deduplicated);
            assert_eq!(drain(billing), ["order 1", "order 2"]);
        },
    );
}

#[test]
fn p14_a_window_that_is_off_remembers_nothing() {
    over_restarts(
        |broker| (broker.topic::<String>("orders").dedup(DedupWindow::off()).open().unwrap(), ()),
        |(topic, ()), _| ((), send(topic, with_id("order 1", "1")).id),
        |(topic, ()), first, _, _| {
            let again = send(topic, with_id("order 1", "1"));
            assert!(!again.deduplicated && again.id > first);
        },
    );
}

#[test]
fn p14_a_clock_that_was_set_back_forgets_nothing() {
    for end in ENDS {
        let clock = ManualClock::new();
        clock.advance(3_600 * SECOND);
        let dir = Dir::new();
        let broker = dir.open_at(&clock);
        let topic = broker.topic::<String>("orders").open().unwrap();
        topic.subscription("billing").open().unwrap();
        let first = send(&topic, with_id("order 1", "1"));
        let dir = ended(end, dir, broker, topic);
        let broker = dir.open_at(&ManualClock::new());
        let topic = broker.topic::<String>("orders").open().unwrap();
        let again = send(&topic, with_id("order 1", "1"));
        assert!(again.deduplicated && again.id == first.id, "{end:?}");
        send(&topic, "order 2");
        assert_eq!(drain(&topic.subscription("billing").open().unwrap()), ["order 1", "order 2"], "{end:?}");
    }
}

#[test]
fn p14_a_longer_window_does_not_bring_back_what_was_forgotten() {
    over_restarts(
        |broker| (broker.topic::<String>("orders").open().unwrap(), ()),
        |(topic, ()), clock| {
            for n in 0..10 {
                send(topic, with_id("order", &n.to_string()));
                clock.advance(SECOND);
            }
            topic.update().dedup(DedupWindow::time(3 * SECOND)).apply().unwrap();
            topic.update().dedup(DedupWindow::time(300 * SECOND)).apply().unwrap();
            ((), ())
        },
        |(topic, ()), (), _, _| {
            let known: Vec<_> =
                (0..10).filter(|n| send(topic, with_id("order", &n.to_string())).deduplicated).collect();
            assert_eq!(known, [8, 9]);
        },
    );
}
