//! Attempts are counted over the ends of processes, and dead letters are where they belong, once.

use std::collections::BTreeMap;

use eventflow::{Broker, DeadLetter, ManualClock, Message, Subscription, Topic};

use crate::support::{
    Dir, ENDS, End, Order, OrderCodec, SECOND, drain, ended, order, over_restarts, send, take,
};

struct Desk {
    inspection: Subscription<String>,
    billing: Subscription<String>,
    orders: Topic<String>,
}

fn open_desk(broker: &Broker) -> Desk {
    let failed = broker.topic::<String>("failed").open().unwrap();
    let inspection = failed.subscription("inspection").open().unwrap();
    let orders = broker.topic::<String>("orders").open().unwrap();
    let dead_letter = DeadLetter::to(&failed).after(3);
    let billing = orders.subscription("billing").dead_letter(dead_letter).open().unwrap();
    Desk { inspection, billing, orders }
}

#[test]
fn p10_attempts_survive_every_end() {
    for end in ENDS {
        let clock = ManualClock::new();
        let mut dir = Dir::new();
        for attempt in 1..=3 {
            let broker = dir.open_at(&clock);
            let desk = open_desk(&broker);
            if attempt == 1 {
                send(&desk.orders, "poison");
            }
            let delivery = take(&desk.billing);
            assert_eq!((&**delivery, delivery.attempt()), ("poison", attempt), "{end:?}");
            dir = ended(end, dir, broker, (delivery, desk));
        }
        let broker = dir.open_at(&clock);
        let desk = open_desk(&broker);
        assert!(desk.billing.try_recv().is_err(), "{end:?}: three attempts are spent");
        assert_eq!(desk.billing.stats().backlog, 0, "{end:?}");
        assert_eq!(drain(&desk.inspection), ["poison"], "{end:?}");
    }
}

#[test]
fn p10_a_nack_spends_an_attempt() {
    over_restarts(
        open_desk,
        |desk, _| {
            desk.orders.publish_all(["nacked", "fresh"]).unwrap();
            take(&desk.billing).nack().unwrap();
            ((), ())
        },
        |desk, (), _, _| {
            let held: Vec<_> = std::iter::from_fn(|| desk.billing.try_recv().ok()).collect();
            let attempts: BTreeMap<_, _> =
                held.iter().map(|delivery| (delivery.as_str(), delivery.attempt())).collect();
            assert_eq!(attempts, BTreeMap::from([("nacked", 2), ("fresh", 1)]));
        },
    );
}

#[test]
fn p10_a_release_spends_no_attempt_over_a_restart() {
    over_restarts(
        open_desk,
        |desk, _| {
            desk.orders.publish_all(["released", "fresh"]).unwrap();
            take(&desk.billing).release().unwrap();
            ((), ())
        },
        |desk, (), end, _| {
            let held: Vec<_> = std::iter::from_fn(|| desk.billing.try_recv().ok()).collect();
            let attempts: BTreeMap<_, _> =
                held.iter().map(|delivery| (delivery.as_str(), delivery.attempt())).collect();
            // That it was released need not be waited for: a process that is killed may not have written it.
            if end != End::Killed {
                assert_eq!(attempts["released"], 1, "{end:?}");
            }
        },
    );
}

#[test]
fn p11_a_rejected_message_is_a_dead_letter_once() {
    over_restarts(
        open_desk,
        |desk, _| {
            let message = Message::new("order 7".to_owned());
            let message = message.attribute("region", "eu").ordering_key("customer 7").idempotency_id("7");
            let receipt = send(&desk.orders, message);
            take(&desk.billing).reject("no such customer").unwrap();
            ((), receipt.id)
        },
        |desk, id, _, _| {
            assert!(desk.billing.try_recv().is_err(), "it is settled");
            let letter = take(&desk.inspection);
            let message = letter.message();
            let of = |what: &str| message.attribute(&format!("eventflow.dead_letter.{what}"));
            assert_eq!(*letter, "order 7");
            assert_eq!(message.attribute("region"), Some("eu"));
            assert_eq!(message.ordering_key(), Some("customer 7"));
            assert_eq!(message.idempotency_id(), None);
            assert_eq!(of("topic"), Some("orders"));
            assert_eq!(of("subscription"), Some("billing"));
            assert_eq!(of("reason"), Some("no such customer"));
            assert_eq!(of("attempts"), Some("1"));
            assert_eq!(of("message_id"), Some(&*id.to_string()));
            assert_eq!(of("idempotency_id"), Some("7"));
            assert_eq!(of("publish_time"), Some("2026-01-01T00:00:00.000000000Z"));
            letter.ack().unwrap();
            assert!(desk.inspection.try_recv().is_err(), "there is one");
        },
    );
}

/// Out of attempts by the end of a process: both topics are opened, in either order, and the letter is there.
#[test]
fn p10_the_dead_letter_is_there_whichever_topic_is_opened_first() {
    for end in ENDS {
        for is_failed_first in [true, false] {
            let clock = ManualClock::new();
            let dir = Dir::new();
            let broker = dir.open_at(&clock);
            let desk = open_desk(&broker);
            send(&desk.orders, Message::new("poison".to_owned()).attribute("region", "eu"));
            take(&desk.billing).nack().unwrap();
            take(&desk.billing).nack().unwrap();
            let last = take(&desk.billing);
            let dir = ended(end, dir, broker, (last, desk));

            // Twice, so that what was parked in between is found as well.
            let broker = dir.open_at(&clock);
            let orders = broker.topic::<String>("orders").open().unwrap();
            assert!(orders.subscription("billing").open().unwrap().try_recv().is_err());
            let dir = ended(end, dir, broker, orders);

            let broker = dir.open_at(&clock);
            let open_failed = || {
                let failed = broker.topic::<String>("failed").open().unwrap();
                failed.subscription("inspection").open().unwrap()
            };
            let open_orders = || {
                let orders = broker.topic::<String>("orders").open().unwrap();
                orders.subscription("billing").open().unwrap()
            };
            let (inspection, billing) = if is_failed_first {
                let inspection = open_failed();
                (inspection, open_orders())
            } else {
                let billing = open_orders();
                (open_failed(), billing)
            };
            let case = format!("{end:?}, failed first: {is_failed_first}");
            assert!(billing.try_recv().is_err(), "{case}");
            let letter = take(&inspection);
            assert_eq!(*letter, "poison", "{case}");
            assert_eq!(letter.message().attribute("region"), Some("eu"), "{case}");
            assert_eq!(letter.message().attribute("eventflow.dead_letter.attempts"), Some("3"), "{case}");
            letter.ack().unwrap();
            assert!(inspection.try_recv().is_err(), "{case}: there is one");
            let stats = billing.stats();
            assert_eq!((stats.backlog, stats.parked), (0, 0), "{case}");
        }
    }
}

#[test]
fn p11_many_dead_letters_are_all_there_once() {
    over_restarts(
        |broker| {
            let codec = || OrderCodec("order/1");
            let failed = broker.topic::<Order>("failed").codec(codec()).open().unwrap();
            let inspection = failed.subscription("inspection").open().unwrap();
            let orders = broker.topic::<Order>("orders").codec(codec()).open().unwrap();
            let dead_letter = DeadLetter::to(&failed).after(1);
            (inspection, orders.subscription("billing").dead_letter(dead_letter).open().unwrap(), orders)
        },
        |(inspection, billing, orders), _| {
            orders.publish_all((0..100).map(order)).unwrap();
            for n in 0..100 {
                let delivery = take(billing);
                match n % 4 {
                    0 => delivery.ack().unwrap(),
                    1 => delivery.nack().unwrap(),
                    2 => drop(delivery),
                    _ => delivery.reject("wrong").unwrap(),
                }
            }
            // One of the letters is done with.
            let done = take(inspection);
            assert_eq!(*done, order(1));
            done.ack().unwrap();
            ((), ())
        },
        |(inspection, billing, _), (), end, _| {
            if end != End::Killed {
                assert_eq!(billing.stats().backlog, 0);
            }
            drain(billing);
            let mut letters = drain(inspection);
            if end == End::Killed && letters.first() == Some(&order(1)) {
                // Its ack was not waited for.
                letters.remove(0);
            }
            letters.sort_by_key(|order| order.number);
            let expected: Vec<_> = (2..100).filter(|n| n % 4 != 0).map(order).collect();
            assert_eq!(letters, expected);
        },
    );
}

#[test]
fn p11_a_parked_message_waits_for_its_topic() {
    over_restarts(
        |broker| {
            let orders = broker.topic::<String>("orders").open().unwrap();
            (broker.clone(), orders)
        },
        |(broker, orders), _| {
            let failed = broker.topic::<String>("failed").open().unwrap();
            let inspection = failed.subscription("inspection").open().unwrap();
            let dead_letter = DeadLetter::to(&failed).after(1);
            let billing = orders.subscription("billing").dead_letter(dead_letter).open().unwrap();
            inspection.delete().unwrap();
            broker.delete_topic("failed").unwrap();
            send(orders, "poison");
            take(&billing).nack().unwrap();
            assert_eq!(billing.stats().parked, 1);
            ((billing, inspection), ())
        },
        |(broker, orders), (), _, clock| {
            let billing = orders.subscription("billing").open().unwrap();
            assert!(billing.try_recv().is_err(), "its one attempt is spent");
            assert_eq!(billing.stats().backlog, 1);
            let failed = broker.topic::<String>("failed").open().unwrap();
            let inspection = failed.subscription("inspection").open().unwrap();
            clock.advance(SECOND);
            assert_eq!(drain(&inspection), ["poison"]);
            assert_eq!(billing.stats().backlog, 0);
        },
    );
}

#[test]
fn p10_out_of_attempts_without_a_topic_it_is_discarded() {
    over_restarts(
        |broker| {
            let orders = broker.topic::<String>("orders").open().unwrap();
            let discard = DeadLetter::discard().after(2);
            (orders.subscription("billing").dead_letter(discard).open().unwrap(), orders)
        },
        |(billing, orders), _| {
            orders.publish_all(["poison", "good"]).unwrap();
            take(billing).nack().unwrap();
            let held = (take(billing), take(billing));
            (held, ())
        },
        |(billing, _), (), _, _| {
            assert_eq!(drain(billing), ["good"]);
            assert_eq!(billing.stats().backlog, 0);
        },
    );
}

#[test]
fn keys_delays_lives_and_attempts_hold_together() {
    over_restarts(
        |broker| {
            let failed = broker.topic::<String>("failed").open().unwrap();
            let inspection = failed.subscription("inspection").open().unwrap();
            let orders = broker.topic::<String>("orders").open().unwrap();
            let dead_letter = DeadLetter::to(&failed).after(3);
            (
                inspection,
                orders.subscription("billing").ordered().dead_letter(dead_letter).open().unwrap(),
                orders,
            )
        },
        |(_, billing, orders), _| {
            let keyed = |key: &str, n| Message::new(format!("{key} {n}")).ordering_key(key);
            for n in 0..3 {
                orders.publish_all([keyed("a", n), keyed("b", n)]).unwrap();
            }
            send(orders, keyed("c", 0).deliver_after(5 * SECOND));
            send(orders, keyed("c", 1).expires_in(5 * SECOND));
            let first = take(billing);
            take(billing).nack().unwrap();
            let again = take(billing);
            assert_eq!((&**first, &**again, again.attempt()), ("a 0", "b 0", 2));
            ((first, again), ())
        },
        |(inspection, billing, _), (), _, clock| {
            let held: Vec<_> = std::iter::from_fn(|| billing.try_recv().ok()).collect();
            let attempts: BTreeMap<_, _> =
                held.iter().map(|delivery| (delivery.as_str(), delivery.attempt())).collect();
            assert_eq!(attempts, BTreeMap::from([("a 0", 2), ("b 0", 3)]), "the others of their keys wait");
            held.into_iter().for_each(|delivery| delivery.release().unwrap());
            clock.advance(5 * SECOND);
            let mut rest = drain(billing);
            rest.sort();
            assert_eq!(rest, ["a 0", "a 1", "a 2", "b 0", "b 1", "b 2", "c 0"], "the life of c 1 is over");
            assert_eq!(drain(inspection), [""; 0]);
        },
    );
}

#[test]
fn p10_a_release_does_not_count_after_a_crash_either() {
    over_restarts(
        |broker| {
            let failed = broker.topic::<String>("failed").open().unwrap();
            let letters = failed.subscription("letters").open().unwrap();
            let topic = broker.topic::<String>("orders").open().unwrap();
            let billing = topic.subscription("billing").dead_letter(DeadLetter::to(&failed).after(3));
            (billing.open().unwrap(), topic, letters)
        },
        |(billing, topic, _), _| {
            send(topic, "order");
            take(billing).nack().unwrap();
            for _ in 0..5 {
                take(billing).release().unwrap();
            }
            ((), ())
        },
        |(billing, ..), (), end, _| assert_eq!(take(billing).attempt(), 2, "{end:?}"),
    );
}

#[test]
fn a_retry_that_is_delayed_is_delayed_after_a_restart_too() {
    over_restarts(
        |broker| {
            let topic = broker.topic::<String>("orders").open().unwrap();
            (topic.subscription("billing").open().unwrap(), topic)
        },
        |(billing, topic), _| {
            send(topic, "order");
            take(billing).nack_after(10 * SECOND).unwrap();
            // Somebody commits, so that a kill does not undo it.
            send(topic, "another");
            ((), ())
        },
        |(billing, _), (), end, clock| {
            assert_eq!(drain(billing), ["another"], "{end:?}");
            clock.advance(11 * SECOND);
            let order = take(billing);
            assert_eq!((order.as_str(), order.attempt()), ("order", 2), "{end:?}");
        },
    );
}
