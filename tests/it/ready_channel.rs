//! `ready` and `channel`: the two ways into `select!`.

use std::time::Duration;

use crossbeam_channel::{Receiver, Select};
use eventflow::{Delivery, DeliveryMode, Message, Subscription};

use crate::support::{
    Broker, Checksum, DEADLINE, Desk, NANO, PATIENCE, SECOND, ask, assert_empty, desk, desk_with, drain,
    drain_with, send, take, within,
};

/// A token must be there: at once, for whoever asks.
#[track_caller]
fn token(ready: &Receiver<()>) {
    assert!(ready.try_recv().is_ok(), "expected a token");
}

fn await_token(ready: &Receiver<()>) {
    ready.recv_timeout(Duration::from_secs(PATIENCE)).expect("a token in time");
}

#[test]
fn p09_ready_gives_a_token_for_what_is_there_already() {
    let Desk { topic, sub, .. } = desk::<u64>();
    topic.publish(1).unwrap();
    let ready = sub.ready();
    token(&ready);
    assert_eq!(drain(&sub), [1]);
}

#[test]
fn p09_ready_gives_no_token_while_there_is_nothing_and_one_for_each_arrival() {
    let Desk { topic, sub, .. } = desk::<u64>();
    let ready = sub.ready();
    assert!(ready.is_empty());
    for n in 0..100 {
        topic.publish(n).unwrap();
        token(&ready);
        assert_eq!(drain(&sub), [n]);
    }
}

#[test]
fn ready_leases_nothing() {
    let Desk { clock, topic, sub, .. } = desk::<u64>();
    let ready = sub.ready();
    topic.publish(1).unwrap();
    assert_eq!(sub.stats().outstanding, 0);
    clock.advance(10 * DEADLINE);
    token(&ready);
    let delivery = take(&sub);
    assert_eq!(delivery.attempt(), 1);
    topic.publish(2).unwrap();
    drop(ready);
    assert_eq!(*take(&sub), 2, "a token that nobody fetches keeps nothing back");
}

#[test]
fn p09_while_something_is_left_there_is_another_token() {
    let Desk { topic, sub, .. } = desk::<u64>();
    let ready = sub.ready();
    topic.publish_all(0..100).unwrap();
    for n in 0..100 {
        await_token(&ready);
        let delivery = take(&sub);
        assert_eq!(*delivery, n, "one `try_recv` per token is enough");
        delivery.ack().unwrap();
    }
    assert_empty(&sub);
}

#[test]
fn p09_every_ready_receiver_of_a_subscription_is_told() {
    let Desk { topic, sub, .. } = desk::<u64>();
    let readies = [sub.ready(), sub.clone().ready(), topic.subscription("sub").open().unwrap().ready()];
    topic.publish(1).unwrap();
    readies.iter().for_each(token);
    let other = topic.subscription("other").create().unwrap();
    assert!(other.ready().is_empty());
}

#[test]
fn p09_every_cause_gives_a_token() {
    type Cause = fn(&Desk<u64>, Delivery<u64>);
    let causes: [(&str, Cause); 8] = [
        ("nack", |_, held| held.nack().unwrap()),
        ("release", |_, held| held.release().unwrap()),
        ("drop", |_, held| drop(held)),
        ("extend", |_, held| held.extend(Duration::ZERO).unwrap()),
        ("expiry", |desk, held| {
            std::mem::forget(held);
            desk.clock.advance(DEADLINE - NANO);
            desk.clock.advance(NANO);
        }),
        ("retry", |desk, held| {
            held.nack_after(SECOND).unwrap();
            desk.clock.advance(SECOND);
        }),
        ("resume", |desk, held| {
            desk.sub.pause().unwrap();
            held.nack().unwrap();
            desk.sub.resume().unwrap();
        }),
        ("delay", |desk, held| {
            held.ack().unwrap();
            desk.topic.publish(Message::new(1).deliver_after(SECOND)).unwrap();
            desk.clock.advance(SECOND);
        }),
    ];
    for (name, cause) in causes {
        let desk = desk::<u64>();
        let ready = desk.sub.ready();
        desk.topic.publish(1).unwrap();
        token(&ready);
        let held = take(&desk.sub);
        // A token too many may lie there; none may be missing.
        while ready.try_recv().is_ok() {}
        cause(&desk, held);
        assert!(ready.try_recv().is_ok(), "{name}");
        assert_eq!(*take(&desk.sub), 1, "{name}");
    }
}

#[test]
fn p09_an_ack_that_frees_an_outstanding_place_gives_a_token() {
    let Desk { topic, sub, .. } = desk_with::<u64>(|options| options.max_outstanding(1));
    let ready = sub.ready();
    topic.publish_all(0..50).unwrap();
    for n in 0..50 {
        let delivery = loop {
            await_token(&ready);
            if let Ok(delivery) = sub.try_recv() {
                break delivery;
            }
        };
        assert_eq!(*delivery, n);
        while ready.try_recv().is_ok() {}
        delivery.ack().unwrap();
    }
    assert_empty(&sub);
}

#[test]
fn p09_a_ready_receiver_uses_up_nobody_elses_wake() {
    let Desk { topic, sub, .. } = desk::<u64>();
    let readies: Vec<_> = (0..4).map(|_| sub.ready()).collect();
    let sleeper = ask({
        let sub = sub.clone();
        move || *sub.recv().unwrap()
    });
    sleeper.assert_pending();
    topic.publish(1).unwrap();
    assert_eq!(sleeper.get(), 1);
    drop(readies);
}

#[test]
fn a_dropped_ready_receiver_is_forgotten() {
    let Desk { topic, sub, .. } = desk::<u64>();
    for n in 0..200 {
        drop(sub.ready());
        topic.publish(n).unwrap();
        drop(sub.ready());
    }
    assert_eq!(drain(&sub).len(), 200);
}

#[test]
fn p09_one_thread_selects_over_several_subscriptions_and_a_channel() {
    within(PATIENCE, || {
        let broker = Broker::in_memory();
        let topics: Vec<_> =
            (0..3).map(|n| broker.topic::<u64>(&format!("t{n}")).create().unwrap()).collect();
        let subs: Vec<Subscription<u64>> =
            topics.iter().map(|topic| topic.subscription("sub").create().unwrap()).collect();
        let (sender, numbers) = crossbeam_channel::unbounded::<u64>();
        let mut threads: Vec<_> = topics
            .into_iter()
            .zip(0_u64..)
            .map(|(topic, own)| ask(move || (0..1_000).for_each(|n| send(&topic, own * 1_000 + n))))
            .collect();
        let other = sender.clone();
        threads.push(ask(move || (3_000..4_000).for_each(|n| other.send(n).unwrap())));
        let readies: Vec<_> = subs.iter().map(Subscription::ready).collect();
        let mut select = Select::new();
        for ready in &readies {
            select.recv(ready);
        }
        select.recv(&numbers);
        let mut seen = Checksum::default();
        while seen.count < 4_000 {
            let chosen = select.select_timeout(Duration::from_secs(PATIENCE)).expect("something to do");
            match chosen.index() {
                3 => seen.add(chosen.recv(&numbers).unwrap()),
                own => {
                    chosen.recv(&readies[own]).unwrap();
                    // A token may be one too many, never one too few.
                    if let Ok(delivery) = subs[own].try_recv() {
                        seen.add(*delivery);
                        delivery.ack().unwrap();
                    }
                }
            }
        }
        threads.into_iter().for_each(|thread| thread.get());
        drop(sender);
        assert_eq!(seen, Checksum::of(0..4_000));
    });
}

#[test]
fn ready_wakes_whoever_selects_when_the_subscription_ends() {
    for shutdown in [true, false] {
        let Desk { broker, sub, .. } = desk::<u64>();
        let ready = sub.ready();
        let sleeper = ask({
            let sub = sub.clone();
            move || {
                // A token or a disconnection, but never silence.
                let told = ready.recv_timeout(Duration::from_secs(PATIENCE));
                assert_ne!(told, Err(crossbeam_channel::RecvTimeoutError::Timeout));
                sub.try_recv().map(drop).unwrap_err()
            }
        });
        sleeper.assert_pending();
        if shutdown {
            broker.shutdown(Duration::ZERO).unwrap();
            assert_eq!(sleeper.get(), eventflow::TryRecvError::Closed);
        } else {
            sub.delete().unwrap();
            assert_eq!(sleeper.get(), eventflow::TryRecvError::Deleted);
        }
    }
}

#[test]
fn a_ready_receiver_of_what_has_ended_is_told_at_once() {
    let Desk { sub, .. } = desk::<u64>();
    sub.delete().unwrap();
    let told = sub.ready().recv_timeout(Duration::from_secs(PATIENCE));
    assert_ne!(told, Err(crossbeam_channel::RecvTimeoutError::Timeout));
}

#[test]
fn a_channel_gives_deliveries_in_order() {
    for capacity in [0, 1, 7, 1_000] {
        within(PATIENCE, move || {
            let Desk { topic, sub, .. } = desk::<u64>();
            topic.publish_all(0..100).unwrap();
            let channel = sub.channel(capacity);
            topic.publish_all(100..200).unwrap();
            for n in 0..200 {
                let delivery = channel.recv().unwrap();
                assert_eq!((*delivery, delivery.attempt()), (n, 1));
                delivery.ack().unwrap();
            }
            assert_eq!((sub.stats().acked, sub.stats().backlog), (200, 0));
        });
    }
}

#[test]
fn p09_what_is_unread_in_a_dropped_channel_is_released() {
    for capacity in [0, 3, 50] {
        let attempts = within(PATIENCE, move || {
            let Desk { topic, sub, .. } = desk::<u64>();
            topic.publish_all(0..50).unwrap();
            let channel = sub.channel(capacity);
            channel.recv().unwrap().ack().unwrap();
            drop(channel);
            (1..50)
                .map(|_| {
                    let delivery = sub.recv().unwrap();
                    let attempt = delivery.attempt();
                    delivery.ack().unwrap();
                    attempt
                })
                .collect::<Vec<_>>()
        });
        assert_eq!(attempts, [1; 49], "capacity {capacity}");
    }
}

#[test]
fn p09_a_channel_dropped_while_its_pump_waits_takes_no_later_message() {
    within(PATIENCE, || {
        let Desk { topic, sub, .. } = desk::<u64>();
        for n in 0..50 {
            let channel = sub.channel(4);
            drop(channel);
            topic.publish(n).unwrap();
            let delivery = sub.recv().unwrap();
            assert_eq!((*delivery, delivery.attempt()), (n, 1));
            delivery.ack().unwrap();
        }
    });
}

#[test]
fn a_channel_holds_no_more_leases_than_it_must() {
    within(PATIENCE, || {
        let Desk { topic, sub, .. } = desk::<u64>();
        topic.publish_all(0..100).unwrap();
        let channel = sub.channel(5);
        while channel.len() < 5 {
            std::thread::yield_now();
        }
        // Its buffer, and what the pump may hold in its hand.
        assert!(sub.stats().outstanding <= 6, "{}", sub.stats().outstanding);
        drop(channel);
    });
}

#[test]
fn p06_channels_and_receivers_share_the_messages() {
    within(PATIENCE, || {
        let Desk { topic, sub, .. } = desk::<u64>();
        let channels: Vec<_> = (0..2)
            .map(|_| {
                let channel = sub.channel(8);
                ask(move || {
                    let mut seen = Checksum::default();
                    for delivery in channel {
                        assert_eq!(delivery.attempt(), 1);
                        seen.add(*delivery);
                        delivery.ack().unwrap();
                    }
                    seen
                })
            })
            .collect();
        let plain = ask({
            let sub = sub.clone();
            move || {
                let mut seen = Checksum::default();
                while let Ok(delivery) = sub.recv() {
                    seen.add(*delivery);
                    delivery.ack().unwrap();
                }
                seen
            }
        });
        (0..10_000).for_each(|n| send(&topic, n));
        while sub.stats().backlog > 0 {
            std::thread::yield_now();
        }
        sub.delete().unwrap();
        let mut seen = plain.get();
        channels.into_iter().for_each(|channel| seen.merge(channel.get()));
        assert_eq!(seen, Checksum::of(0..10_000));
    });
}

#[test]
fn a_channel_disconnects_when_its_subscription_or_broker_ends() {
    for shutdown in [true, false] {
        within(PATIENCE, move || {
            let Desk { broker, sub, .. } = desk::<u64>();
            let channel = sub.channel(3);
            let reader = ask(move || channel.recv().map(|_| ()));
            reader.assert_pending();
            if shutdown {
                broker.shutdown(Duration::ZERO).unwrap();
            } else {
                sub.delete().unwrap();
            }
            assert_eq!(reader.get(), Err(crossbeam_channel::RecvError));
        });
    }
}

#[test]
fn p07_a_delivery_that_ages_in_a_channel_comes_back_at_its_deadline() {
    within(PATIENCE, || {
        let Desk { clock, topic, sub, .. } = desk::<u64>();
        let channel = sub.channel(1);
        topic.publish(1).unwrap();
        while channel.is_empty() {
            std::thread::yield_now();
        }
        clock.advance(DEADLINE - NANO);
        assert_eq!(sub.stats().leases_expired, 0);
        clock.advance(NANO);
        assert_eq!(sub.stats().leases_expired, 1);
        let stale = channel.recv().unwrap();
        let again = channel.recv().unwrap();
        assert_eq!((stale.attempt(), again.attempt()), (1, 2));
        assert!(stale.nack().is_err());
        again.ack().unwrap();
    });
}

#[test]
fn a_channel_in_at_most_once_mode_delivers_each_message_at_most_once() {
    within(PATIENCE, || {
        let Desk { topic, sub, .. } = desk_with::<u64>(|options| options.delivery(DeliveryMode::AtMostOnce));
        topic.publish_all(0..20).unwrap();
        let channel = sub.channel(20);
        for n in 0..10 {
            assert_eq!(*channel.recv().unwrap(), n);
        }
        drop(channel);
        let rest = drain_with(&sub, |delivery| **delivery);
        assert!(rest.iter().all(|n| *n >= 10) && rest.is_sorted());
    });
}
