//! P9 with threads: while a message is available and a receiver waits, the receiver gets it.

use std::sync::mpsc;
use std::time::Duration;

use eventflow::{DeadLetter, Delivery, Message, RecvTimeoutError, RetryPolicy, Seek, Subscription};

use crate::support::{
    Answer, Broker, DEADLINE, Desk, PATIENCE, SECOND, ask, assert_empty, desk, desk_with, drain, manual,
    panics, send, take, within,
};

/// One blocked receiver in each of the ways to block; each gives the event that it got and acked.
fn receivers(sub: &Subscription<u64>) -> Vec<(&'static str, Answer<u64>)> {
    let finish = |delivery: Delivery<u64>| {
        let event = *delivery;
        delivery.ack().unwrap();
        event
    };
    let subs = [(); 4].map(|()| sub.clone());
    let [a, b, c, d] = subs;
    let waiting = vec![
        ("recv", ask(move || finish(a.recv().unwrap()))),
        ("recv_timeout", ask(move || finish(b.recv_timeout(Duration::MAX).unwrap()))),
        ("recv_batch", ask(move || finish(c.recv_batch(1).unwrap().pop().unwrap()))),
        ("iter", ask(move || finish(d.iter().next().unwrap()))),
    ];
    waiting.iter().for_each(|(_, receiver)| receiver.assert_pending());
    waiting
}

/// Each way of blocking is woken by `cause`, which makes as many messages available as there are receivers.
#[track_caller]
fn wakes(desk: &Desk<u64>, mut cause: impl FnMut()) {
    let waiting = receivers(&desk.sub);
    cause();
    let mut seen: Vec<u64> = waiting.into_iter().map(|(_, receiver)| receiver.get()).collect();
    seen.sort();
    assert_eq!(seen, [0, 1, 2, 3], "each got one");
    assert_eq!(desk.sub.stats().backlog, 0);
}

/// Four messages, all leased.
fn four_held(desk: &Desk<u64>) -> Vec<Delivery<u64>> {
    desk.topic.publish_all(0..4).unwrap();
    (0..4).map(|_| take(&desk.sub)).collect()
}

#[test]
fn p09_a_publish_wakes_each_kind_of_receiver() {
    let desk = desk();
    wakes(&desk, || (0..4).for_each(|n| send(&desk.topic, n)));
    wakes(&desk, || drop(desk.topic.publish_all(0..4).unwrap()));
    wakes(&desk, || (0..4).for_each(|n| assert!(desk.topic.try_publish(n).is_ok())));
}

#[test]
fn p09_every_end_of_a_lease_wakes_each_kind_of_receiver() {
    type End = fn(Delivery<u64>);
    let ends: [End; 6] = [
        |delivery| delivery.nack().unwrap(),
        |delivery| delivery.nack_after(Duration::ZERO).unwrap(),
        |delivery| delivery.release().unwrap(),
        |delivery| delivery.extend(Duration::ZERO).unwrap(),
        |delivery| {
            panics(|| {
                let _held = delivery;
                panic!("with a delivery in hand");
            });
        },
        drop,
    ];
    for end in ends {
        let desk = desk();
        let held = four_held(&desk);
        let mut held = Some(held);
        wakes(&desk, || held.take().unwrap().into_iter().for_each(end));
    }
}

#[test]
fn p09_every_end_of_a_batch_wakes_each_kind_of_receiver() {
    type End = fn(eventflow::Batch<u64>);
    let ends: [End; 4] = [
        |batch| batch.nack().unwrap(),
        |batch| batch.release().unwrap(),
        |batch| drop(batch.into_iter()),
        drop,
    ];
    for end in ends {
        let desk = desk();
        desk.topic.publish_all(0..4).unwrap();
        let mut batch = Some(desk.sub.try_recv_batch(4).unwrap());
        wakes(&desk, || end(batch.take().unwrap()));
    }
}

#[test]
fn p09_time_wakes_each_kind_of_receiver() {
    let expiry = desk();
    std::mem::forget(four_held(&expiry));
    wakes(&expiry, || expiry.clock.advance(DEADLINE));
    let delay = desk();
    for n in 0..4 {
        delay.topic.publish(Message::new(n).deliver_after(SECOND)).unwrap();
    }
    wakes(&delay, || delay.clock.advance(SECOND));
    let retry = desk_with(|options| options.retry(RetryPolicy::fixed(SECOND)));
    four_held(&retry).into_iter().for_each(|delivery| delivery.nack().unwrap());
    wakes(&retry, || retry.clock.advance(SECOND));
    let asked = desk();
    four_held(&asked).into_iter().for_each(|delivery| delivery.nack_after(SECOND).unwrap());
    wakes(&asked, || asked.clock.advance(100 * DEADLINE));
}

#[test]
fn p09_a_change_of_the_subscription_wakes_each_kind_of_receiver() {
    let paused = desk();
    paused.sub.pause().unwrap();
    paused.topic.publish_all(0..4).unwrap();
    wakes(&paused, || paused.sub.resume().unwrap());
    let sought = desk();
    std::mem::forget(four_held(&sought));
    wakes(&sought, || sought.sub.seek(Seek::Earliest).unwrap());
    let narrow = desk_with(|options| options.max_outstanding(1));
    narrow.topic.publish_all([9, 0, 1, 2, 3]).unwrap();
    let nine = take(&narrow.sub);
    let mut nine = Some(nine);
    wakes(&narrow, || {
        narrow.sub.update().max_outstanding(10).apply().unwrap();
        // Held until the others have passed it by.
        nine.take().unwrap().ack().unwrap();
    });
}

#[test]
fn p09_raising_max_outstanding_alone_wakes_a_blocked_receiver() {
    let Desk { topic, sub, .. } = desk_with::<u64>(|options| options.max_outstanding(1));
    topic.publish_all([1, 2]).unwrap();
    let held = take(&sub);
    let receiver = ask({
        let sub = sub.clone();
        move || *sub.recv().unwrap()
    });
    receiver.assert_pending();
    sub.update().max_outstanding(2).apply().unwrap();
    assert_eq!(receiver.get(), 2);
    held.ack().unwrap();
}

#[test]
fn p09_a_dead_letter_wakes_the_receiver_of_the_dead_letter_topic() {
    let (broker, clock) = manual();
    let dead = broker.topic::<u64>("dead").create().unwrap();
    let morgue = dead.subscription("morgue").create().unwrap();
    let topic = broker.topic::<u64>("topic").create().unwrap();
    let sub = topic.subscription("sub").dead_letter(DeadLetter::to(&dead).after(1)).create().unwrap();
    type End = fn(Delivery<u64>, &eventflow::ManualClock);
    let ends: [End; 3] = [
        |delivery, _| delivery.nack().unwrap(),
        |delivery, _| delivery.reject("bad").unwrap(),
        |delivery, clock| {
            std::mem::forget(delivery);
            clock.advance(DEADLINE);
        },
    ];
    for (n, end) in (0..).zip(ends) {
        let receiver = ask({
            let morgue = morgue.clone();
            move || {
                let letter = morgue.recv().unwrap();
                let event = *letter;
                letter.ack().unwrap();
                event
            }
        });
        receiver.assert_pending();
        topic.publish(n).unwrap();
        end(take(&sub), &clock);
        assert_eq!(receiver.get(), n);
    }
}

#[test]
fn p09_a_message_for_each_of_many_blocked_receivers_wakes_them_all() {
    let Desk { topic, sub, .. } = desk::<u64>();
    for round in 0..20 {
        let receivers: Vec<_> = (0..16)
            .map(|_| {
                let sub = sub.clone();
                ask(move || sub.recv().unwrap().ack().unwrap())
            })
            .collect();
        if round % 2 == 0 {
            receivers[15].assert_pending();
        }
        topic.publish_all(0..16).unwrap();
        receivers.into_iter().for_each(|receiver| receiver.get());
        assert_empty(&sub);
    }
}

#[test]
fn p09_a_batch_too_large_for_one_receiver_wakes_the_next() {
    let Desk { topic, sub, .. } = desk::<u64>();
    let receivers: Vec<_> = (0..4)
        .map(|_| {
            let sub = sub.clone();
            ask(move || {
                let batch = sub.recv_batch(3).unwrap();
                let count = batch.len();
                std::mem::forget(batch);
                count
            })
        })
        .collect();
    receivers.iter().for_each(|receiver| receiver.assert_pending());
    topic.publish_all(0..12).unwrap();
    assert_eq!(receivers.into_iter().map(|receiver| receiver.get()).sum::<usize>(), 12);
}

#[test]
fn p09_no_wake_up_is_lost_over_thousands_of_sleeps() {
    within(PATIENCE, || {
        let broker = Broker::in_memory();
        let there = broker.topic::<u64>("there").create().unwrap();
        let back = broker.topic::<u64>("back").create().unwrap();
        let (ping, pong) =
            (there.subscription("ping").create().unwrap(), back.subscription("pong").create().unwrap());
        let echo = ask(move || {
            for n in 0..5_000 {
                let delivery = ping.recv().unwrap();
                assert_eq!(*delivery, n);
                delivery.ack().unwrap();
                back.publish(n).unwrap();
            }
        });
        for n in 0..5_000 {
            there.publish(n).unwrap();
            let delivery = pong.recv().unwrap();
            assert_eq!(*delivery, n);
            delivery.ack().unwrap();
        }
        echo.get();
    });
}

#[test]
fn p09_bursts_to_many_sleepers_are_received_whole_every_time() {
    within(PATIENCE, || {
        let broker = Broker::in_memory();
        let topic = broker.topic::<u64>("topic").create().unwrap();
        let sub = topic.subscription("sub").create().unwrap();
        let (sender, received) = mpsc::channel();
        let receivers: Vec<_> = (0..4)
            .map(|n| {
                let (sub, sender) = (sub.clone(), sender.clone());
                ask(move || {
                    while let Ok(batch) = sub.recv_batch(1 + n % 2) {
                        let events: Vec<u64> = batch.iter().map(|event| *event).collect();
                        batch.ack().unwrap();
                        events.into_iter().for_each(|event| sender.send(event).unwrap());
                    }
                })
            })
            .collect();
        for round in 0..2_000_u64 {
            let burst = 1 + round % 6;
            if round % 3 == 0 {
                topic.publish_all((0..burst).map(|n| round * 10 + n)).unwrap();
            } else {
                (0..burst).for_each(|n| send(&topic, round * 10 + n));
            }
            let mut seen: Vec<u64> = (0..burst).map(|_| received.recv().unwrap()).collect();
            seen.sort();
            assert_eq!(seen, (0..burst).map(|n| round * 10 + n).collect::<Vec<_>>());
        }
        sub.delete().unwrap();
        receivers.into_iter().for_each(|receiver| receiver.get());
    });
}

#[test]
fn p09_a_receiver_that_times_out_as_it_is_woken_hands_the_wake_on() {
    within(PATIENCE, || {
        let broker = Broker::in_memory();
        let topic = broker.topic::<u64>("topic").create().unwrap();
        let sub = topic.subscription("sub").create().unwrap();
        let (go, rounds) = mpsc::channel::<u64>();
        let (taken, results) = mpsc::channel::<u64>();
        // Waits a moment only, and then not again before the next round.
        let hasty = ask({
            let (sub, taken) = (sub.clone(), taken.clone());
            move || {
                for round in rounds {
                    match sub.recv_timeout(Duration::from_micros(round * 7 % 150)) {
                        Ok(delivery) => {
                            taken.send(*delivery).unwrap();
                            delivery.ack().unwrap();
                        }
                        Err(error) => assert_eq!(error, RecvTimeoutError::Timeout),
                    }
                }
            }
        });
        let patient = ask({
            let sub = sub.clone();
            move || {
                while let Ok(delivery) = sub.recv() {
                    taken.send(*delivery).unwrap();
                    delivery.ack().unwrap();
                }
            }
        });
        for round in 0..4_000 {
            go.send(round).unwrap();
            topic.publish(round).unwrap();
            assert_eq!(results.recv(), Ok(round));
        }
        drop(go);
        hasty.get();
        sub.delete().unwrap();
        patient.get();
    });
}

#[test]
fn p09_nacks_and_releases_between_sleeping_threads_lose_nothing() {
    within(PATIENCE, || {
        let broker = Broker::in_memory();
        let topic = broker.topic::<u64>("topic").create().unwrap();
        let sub = topic.subscription("sub").create().unwrap();
        let (sender, received) = mpsc::channel();
        let receivers: Vec<_> = (0..3)
            .map(|own| {
                let (sub, sender) = (sub.clone(), sender.clone());
                ask(move || {
                    let mut passes = 0;
                    while let Ok(delivery) = sub.recv() {
                        // Each passes a message on some times before it keeps one.
                        passes += 1;
                        match (passes + own) % 3 {
                            0 => {
                                let event = *delivery;
                                delivery.ack().unwrap();
                                sender.send(event).unwrap();
                            }
                            1 => delivery.nack().unwrap(),
                            _ => delivery.release().unwrap(),
                        }
                    }
                })
            })
            .collect();
        for round in 0..3_000_u64 {
            topic.publish(round).unwrap();
            assert_eq!(received.recv(), Ok(round));
        }
        sub.delete().unwrap();
        receivers.into_iter().for_each(|receiver| receiver.get());
    });
}

#[test]
fn p09_a_timer_of_the_system_clock_wakes_a_sleeping_receiver() {
    within(PATIENCE, || {
        let broker = Broker::in_memory();
        let topic = broker.topic::<u64>("topic").create().unwrap();
        let sub = topic.subscription("sub").ack_deadline(Duration::from_millis(3)).create().unwrap();
        // It sleeps already when the time that is to wake it is set.
        let sleeper = ask({
            let sub = sub.clone();
            move || {
                let mut seen = Vec::new();
                while seen.len() < 3 {
                    let delivery = sub.recv().unwrap();
                    seen.push(*delivery);
                    delivery.ack().unwrap();
                }
                seen
            }
        });
        sleeper.assert_pending();
        topic.publish(Message::new(1).deliver_after(Duration::from_millis(5))).unwrap();
        topic.publish(Message::new(2).deliver_after(Duration::from_millis(2))).unwrap();
        topic.publish(Message::new(3).deliver_after(Duration::from_millis(8))).unwrap();
        let mut seen = sleeper.get();
        seen.sort();
        assert_eq!(seen, [1, 2, 3]);
        topic.publish(4).unwrap();
        std::mem::forget(take(&sub));
        assert_eq!(*sub.recv().unwrap(), 4);
    });
}

#[test]
fn p09_every_subscription_with_a_sleeper_is_woken_by_one_publish() {
    let Desk { topic, .. } = desk::<u64>();
    let sleepers: Vec<_> = (0..20)
        .map(|n| {
            let sub = topic.subscription(&format!("s{n}")).create().unwrap();
            ask(move || *sub.recv().unwrap())
        })
        .collect();
    sleepers[19].assert_pending();
    topic.publish(7).unwrap();
    assert!(sleepers.into_iter().all(|sleeper| sleeper.get() == 7));
}

#[test]
fn p06_a_waiting_receiver_is_not_woken_into_what_another_holds() {
    let Desk { topic, sub, .. } = desk::<u64>();
    topic.publish(1).unwrap();
    let held = take(&sub);
    let waiter = ask({
        let sub = sub.clone();
        move || *sub.recv().unwrap()
    });
    waiter.assert_pending();
    held.extend(DEADLINE).unwrap();
    waiter.assert_pending();
    held.ack().unwrap();
    waiter.assert_pending();
    topic.publish(2).unwrap();
    assert_eq!(waiter.get(), 2);
    assert_eq!(drain(&sub), [2], "its temporary delivery was dropped");
}
