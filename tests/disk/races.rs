//! Shutdowns beside those who publish, ack and open.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use eventflow::*;

use crate::support::*;

#[test]
fn p20_a_directory_is_free_when_the_broker_has_ended() {
    for how in [End::Shutdown, End::Dropped] {
        let dir = Dir::new();
        for n in 0..100 {
            let durability = Durability::Interval(Duration::from_nanos(1));
            let broker = Broker::builder().dir(dir.path()).durability(durability).build();
            let broker = broker.unwrap_or_else(|error| panic!("{how:?}, opened {n} times: {error}"));
            let topic = broker.topic::<String>("orders").open().unwrap();
            (0..20).for_each(|_| {
                send(&topic, "order");
            });
            if how == End::Shutdown {
                end(broker);
            }
        }
    }
}

#[test]
fn p08_an_ack_during_a_shutdown_answers_the_truth() {
    let dir = Dir::new();
    for n in 0..60 {
        let broker = dir.open();
        let topic = broker.topic::<String>("orders").open().unwrap();
        let billing = topic.subscription("billing").delivery(DeliveryMode::ExactlyOnce).open().unwrap();
        send(&topic, "order");
        let held = take(&billing);
        std::thread::scope(|scope| {
            let shutdown = scope.spawn(|| broker.shutdown(Duration::from_secs(60)).unwrap());
            while !matches!(topic.try_publish("more"), Err(PublishError::Closed(_))) {}
            let acked = held.ack();
            assert_eq!(acked, Ok(()), "after {n} shutdowns, which found {:?} left", shutdown.join().unwrap());
        });
    }
}

#[test]
fn p02_a_publish_during_a_shutdown_answers_the_truth() {
    let mut untrue = Vec::new();
    let mut panics = 0;
    for n in 0..40_u64 {
        let dir = Dir::new();
        let broker = dir.open();
        let topic = broker.topic::<String>("orders").open().unwrap();
        topic.subscription("billing").open().unwrap();
        let is_ready = AtomicBool::new(false);
        let outcomes: Vec<_> = std::thread::scope(|scope| {
            let publishers: Vec<_> = (0..4)
                .map(|publisher| {
                    let (topic, is_ready) = (topic.clone(), &is_ready);
                    scope.spawn(move || {
                        let mut outcomes = Vec::new();
                        for m in 0.. {
                            let text = format!("{publisher} {m}");
                            match topic.publish(text.clone()) {
                                Ok(_) => outcomes.push((text, Ok(()))),
                                Err(error) => {
                                    outcomes.push((text, Err(format!("{error:?}"))));
                                    return outcomes;
                                }
                            }
                            if m == 5 {
                                is_ready.store(true, Ordering::SeqCst);
                            }
                        }
                        unreachable!()
                    })
                })
                .collect();
            while !is_ready.load(Ordering::SeqCst) {
                std::thread::yield_now();
            }
            broker.shutdown(Duration::from_secs(5)).unwrap();
            let mut all = Vec::new();
            for publisher in publishers {
                match publisher.join() {
                    Ok(outcomes) => all.extend(outcomes),
                    Err(_) => panics += 1,
                }
            }
            all
        });
        drop((topic, broker));
        let broker = dir.open();
        let billing =
            broker.topic::<String>("orders").open().unwrap().subscription("billing").open().unwrap();
        let there = drain(&billing);
        for (text, outcome) in outcomes {
            if outcome.is_ok() != there.contains(&text) {
                untrue.push((n, text, outcome));
            }
        }
    }
    assert!(
        untrue.is_empty() && panics == 0,
        "{panics} panics, {} untrue: {:?}",
        untrue.len(),
        untrue.first()
    );
}
