//! A message that is out of attempts is in one place, whatever happens to the topic it goes to.

use std::time::Duration;

use eventflow::{DeadLetter, Retention, Subscription, Topic};

use crate::{DEADLINE, Scene, drain, explore, join, recv, send, spawn};

/// A subscription that dead-letters after one attempt, and the topic that takes them.
fn mortal(retention: Retention) -> (Scene, Subscription<u64>, Topic<u64>, Subscription<u64>) {
    let scene = Scene::new();
    let failed = scene.broker.topic("failed").retention(retention).create().expect("a new topic");
    let inspection = failed.subscription("inspection").create().expect("a new subscription");
    let dead_letter = DeadLetter::to(&failed).after(1);
    let sub = scene.subscription_with("sub", |options| options.dead_letter(dead_letter));
    (scene, sub, failed, inspection)
}

#[test]
fn p11_a_message_whose_dead_letter_topic_is_deleted_is_there_or_parked() {
    explore(|| {
        let (scene, sub, _failed, inspection) = mortal(Retention::forever());
        send(&scene.topic, 7);
        let held = recv(&sub);
        let nacker = spawn(move || held.nack());
        let broker = scene.broker.clone();
        let deleter = spawn(move || broker.delete_topic("failed"));
        assert_eq!(join(nacker), Ok(()));
        assert_eq!(join(deleter), Ok(()));
        let stats = sub.stats();
        assert_eq!(stats.parked + stats.dead_lettered, 1, "P11: in one place");
        assert_eq!(stats.backlog, stats.parked);
        assert!(inspection.try_recv().is_err(), "its topic is deleted");
        let failed = scene.broker.topic::<u64>("failed").create().expect("the name is free");
        let inspection = failed.subscription("inspection").create().expect("a new subscription");
        assert_eq!(drain(&inspection).len() as u64, stats.parked, "P11: parked, it goes where it should");
        assert_eq!(sub.stats().parked, 0);
    });
}

#[test]
fn p11_a_subscription_that_is_made_meanwhile_gets_the_dead_letter() {
    explore(|| {
        let (scene, sub, failed, inspection) = mortal(Retention::until_acked());
        inspection.delete().expect("it is there");
        send(&scene.topic, 7);
        let held = recv(&sub);
        let nacker = spawn(move || held.nack());
        let subscriber = spawn(move || failed.subscription("later").create().expect("a new subscription"));
        assert_eq!(join(nacker), Ok(()));
        assert_eq!(drain(&join(subscriber)), [7], "P11: once, and not forgotten where it was parked");
        let stats = sub.stats();
        assert_eq!((stats.parked, stats.dead_lettered, stats.backlog), (0, 1, 0));
    });
}

#[test]
fn p11_a_nack_and_an_expiry_bury_a_message_once() {
    explore(|| {
        let (scene, sub, _failed, inspection) = mortal(Retention::until_acked());
        send(&scene.topic, 7);
        let held = recv(&sub);
        let nacker = spawn(move || held.nack());
        let clock = scene.clock.clone();
        let time = spawn(move || clock.advance(DEADLINE));
        let receiver = spawn(move || {
            let letter = recv(&inspection);
            assert!(letter.message().attribute("eventflow.dead_letter.reason").is_some());
            letter.ack().expect("the lease runs");
            inspection
        });
        let _either = join(nacker);
        join(time);
        assert_eq!(drain(&join(receiver)), [], "P11: once");
        assert_eq!(sub.stats().dead_lettered, 1);
    });
}

#[test]
fn p11_a_seek_and_a_burial_leave_the_message_somewhere() {
    explore(|| {
        let (scene, sub, _failed, inspection) = mortal(Retention::until_acked());
        send(&scene.topic, 7);
        let held = recv(&sub);
        let rejecter = spawn(move || held.reject("no such customer"));
        let seeker = sub.clone();
        let seeker = spawn(move || seeker.seek(eventflow::Seek::Earliest).is_ok());
        let rejected = join(rejecter);
        assert!(join(seeker));
        let (letters, again) = (drain(&inspection).len(), drain(&sub).len());
        assert!(letters + again > 0, "in neither");
        assert_eq!(letters, usize::from(rejected.is_ok()), "P8: rejected, or not");
    });
}

#[test]
fn p11_a_burial_while_the_broker_closes_hurts_nobody() {
    explore(|| {
        let (scene, sub, _failed, _inspection) = mortal(Retention::until_acked());
        send(&scene.topic, 7);
        let held = recv(&sub);
        let nacker = spawn(move || held.nack().is_ok());
        let broker = scene.broker.clone();
        let closer = spawn(move || broker.shutdown(Duration::ZERO).is_ok());
        join(nacker);
        assert!(join(closer));
    });
}
