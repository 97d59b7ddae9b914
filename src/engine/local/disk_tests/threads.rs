//! Several threads publish and ack while the process, or the machine, ends: what was confirmed is there, what was acked does not come again, and nobody saw what is lost.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use super::audit::{audit, event, seen};
use super::eventflow::{DeliveryMode, ManualClock, Message, PublishError, Retention, Subscription, Topic};
use super::{open, setting};
use crate::journal::disk::sim::{Random, SimDisk, Tear};
use crate::sync::Mutex;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Told {
    confirmed: bool,
    refused: bool,
    seen: bool,
    acked: bool,
    /// An ack was asked for, and the answer is not sure.
    asked: bool,
}

type Account = Mutex<BTreeMap<usize, Told>>;

fn tell(account: &Account, number: usize, what: impl FnOnce(&mut Told)) {
    what(account.lock().entry(number).or_default());
}

/// Until the disk is down.
fn publish(topic: &Topic<String>, account: &Account, first: usize, is_over: &AtomicBool) {
    for number in first.. {
        if is_over.load(Ordering::SeqCst) {
            return;
        }
        tell(account, number, |_| ());
        let message = Message::new(event(number, 40)).idempotency_id(format!("id{number}"));
        match topic.publish(message) {
            Ok(_) => tell(account, number, |told| told.confirmed = true),
            Err(PublishError::Indeterminate { .. }) => return,
            Err(_) => return tell(account, number, |told| told.refused = true),
        }
    }
}

fn receive(subscription: &Subscription<String>, account: &Account, is_over: &AtomicBool) {
    while !is_over.load(Ordering::SeqCst) {
        let Ok(delivery) = subscription.try_recv() else {
            thread::yield_now();
            continue;
        };
        let number = seen(delivery.message(), 1, 0).expect("it is what was published").message;
        tell(account, number, |told| {
            assert!(!told.acked, "P15: {number} was acked, and comes again");
            (told.seen, told.asked) = (true, true);
        });
        if delivery.ack().is_ok() {
            tell(account, number, |told| told.acked = true);
        }
    }
}

/// One life of a broker with three publishers and two subscribers, until its disk goes down.
fn live(disk: &SimDisk, account: &Account, life: usize) {
    let broker = open(Arc::new(disk.clone()), &ManualClock::new()).expect("it opens");
    let topic = broker.topic::<String>("f0").retention(Retention::forever()).open();
    let Ok(topic) = topic else { return };
    let Ok(subscription) = topic.subscription("s0").delivery(DeliveryMode::ExactlyOnce).open() else {
        return;
    };
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let publishers: Vec<_> = (0..3)
            .map(|n| {
                let (topic, is_over) = (topic.clone(), &is_over);
                scope.spawn(move || publish(&topic, account, (life * 3 + n) * 100_000, is_over))
            })
            .collect();
        for _ in 0..2 {
            let (subscription, is_over) = (subscription.clone(), &is_over);
            scope.spawn(move || receive(&subscription, account, is_over));
        }
        publishers.into_iter().for_each(|publisher| publisher.join().expect("publishers do not panic"));
        is_over.store(true, Ordering::SeqCst);
    });
}

fn check(disk: &SimDisk, account: &Account) -> Result<(), String> {
    let found = audit(&disk.fork(), 0, false)?;
    let Some(topic) = found.topics.get("f0") else { return Ok(()) };
    let kept: BTreeMap<_, _> = topic.kept.iter().map(|seen| (seen.message, seen.id)).collect();
    if kept.len() != topic.kept.len() {
        return Err("a message is there twice".to_owned());
    }
    let back: Vec<usize> = topic
        .subscriptions
        .get("s0")
        .map(|found| found.deliveries.iter().map(|seen| seen.message).collect())
        .unwrap_or_default();
    let mut account = account.lock();
    if let Some(stranger) = kept.keys().find(|number| !account.contains_key(*number)) {
        return Err(format!("nobody published {stranger}"));
    }
    for (number, told) in account.iter_mut() {
        let (is_kept, is_back) = (kept.contains_key(number), back.contains(number));
        match told {
            Told { confirmed: true, .. } | Told { seen: true, .. } if !is_kept => {
                return Err(format!("P1: {number} is gone: {told:?}"));
            }
            Told { refused: true, .. } if is_kept => {
                return Err(format!("P2: {number} was refused, and is there"));
            }
            Told { acked: true, .. } if is_back => {
                return Err(format!("P15: {number} was acked, and comes again"));
            }
            Told { asked: false, .. } if is_kept && !is_back => {
                return Err(format!("P1: {number} is not delivered: {told:?}"));
            }
            _ => {}
        }
        // What was found is so from now on.
        (told.confirmed, told.refused) = (is_kept, !is_kept);
        (told.acked, told.asked) = (is_kept && !is_back, is_kept && !is_back);
    }
    Ok(())
}

#[test]
fn threads_lose_nothing_when_the_process_or_the_machine_ends() {
    let first = setting("EVENTFLOW_DISK_SEED", 1);
    let (mut crashes, mut messages) = (0, 0);
    for seed in first..first + setting("EVENTFLOW_DISK_THREADS", 10) {
        let mut random = Random::new(seed);
        let (mut disk, account) = (SimDisk::new(), Account::default());
        // The topic and the subscription are there, whatever comes.
        disk.stop_at(200);
        for life in 0..4 {
            live(&disk, &account, life);
            crashes += 1;
            disk = match random.below(2) {
                0 => disk.kill(),
                _ => {
                    let cuts =
                        disk.cuts(8, random.next(), [Tear::Never, Tear::Mixes][random.below(2) as usize]);
                    disk.restart(&cuts[random.below(cuts.len() as u64) as usize])
                }
            };
            // What is decided, a whole recovery has made safe.
            drop(
                open(Arc::new(disk.clone()), &ManualClock::new())
                    .unwrap_or_else(|error| panic!("seed {seed}: {error}")),
            );
            disk = disk.kill();
            check(&disk, &account).unwrap_or_else(|what| panic!("seed {seed}, life {life}: {what}"));
            disk.stop_at(50 + random.below(400));
        }
        messages += account.lock().len();
    }
    println!("figures: {crashes} crashes, {messages} messages");
}
