//! What a transaction takes part in ends while it is committed.

use std::time::Duration;

use eventflow::{CommitReason, TryRecvError};

use super::{Job, commit, is_published};
use crate::{Scene, drain, explore, join, recv, send, spawn};

#[test]
fn p5_a_commit_settles_a_subscription_that_is_being_deleted_or_does_nothing() {
    explore(|| {
        let Job { scene, sub, readers, tx, .. } = Job::new();
        let deleter = spawn(move || sub.delete());
        let committed = commit(tx);
        assert_eq!(join(deleter), Ok(()));
        assert!(committed == Ok(()) || committed == Err(CommitReason::SubscriptionDeleted), "{committed:?}");
        assert_eq!(is_published(&readers), committed.is_ok(), "P5");
        crate::assert_forgotten(&scene.topic);
    });
}

#[test]
fn p5_a_commit_and_the_deletion_of_its_input_topic_come_one_after_the_other() {
    explore(|| {
        let Job { scene, sub, readers, tx, .. } = Job::new();
        let broker = scene.broker.clone();
        let deleter = spawn(move || broker.delete_topic("topic"));
        let committed = commit(tx);
        assert_eq!(join(deleter), Ok(()));
        assert!(committed == Ok(()) || committed == Err(CommitReason::TopicDeleted), "{committed:?}");
        assert_eq!(is_published(&readers), committed.is_ok(), "P5");
        assert_eq!(sub.try_recv().map(|delivery| *delivery), Err(TryRecvError::Deleted));
    });
}

/// One of the output topics is deleted: what is in the other, and what is settled, says whether it was committed.
fn delete_output(which: usize) {
    let Job { scene, sub, outputs, readers, tx } = Job::new();
    let broker = scene.broker.clone();
    let name = outputs[which].name().to_owned();
    let deleter = spawn(move || broker.delete_topic(&name));
    let watcher = readers[which].clone();
    let watcher = spawn(move || watcher.recv().map(|delivery| *delivery));
    let committed = commit(tx);
    assert_eq!(join(deleter), Ok(()));
    assert!(committed == Ok(()) || committed == Err(CommitReason::TopicDeleted), "{committed:?}");
    let seen = join(watcher);
    assert!(seen.is_err() || (seen == Ok(1) && committed.is_ok()), "P5: seen, not committed");
    let published = drain(&readers[1 - which]).len();
    assert_eq!(published, usize::from(committed.is_ok()), "P5: a half");
    assert_eq!(drain(&sub).len(), 1 - published, "P16");
    crate::assert_forgotten(&scene.topic);
}

#[test]
fn p5_a_commit_and_the_deletion_of_its_first_output_topic_come_one_after_the_other() {
    explore(|| delete_output(0));
}

#[test]
fn p5_a_commit_and_the_deletion_of_its_last_output_topic_come_one_after_the_other() {
    explore(|| delete_output(1));
}

#[test]
fn p8_what_is_outstanding_is_committed_while_the_broker_shuts_down() {
    explore(|| {
        let Job { scene, tx, .. } = Job::new();
        let committer = spawn(move || commit(tx));
        let report = scene.broker.shutdown(Duration::MAX).expect("the first shutdown");
        assert_eq!(join(committer), Ok(()), "there was time");
        assert_eq!((report.outstanding, report.backlog), (0, 2), "the outputs are left");
    });
}

#[test]
fn p8_a_commit_while_the_broker_closes_is_whole_or_closed() {
    explore(|| {
        let Job { scene, sub, readers, tx, .. } = Job::new();
        let broker = scene.broker.clone();
        let closer = spawn(move || broker.shutdown(Duration::ZERO).is_ok());
        let watcher = readers[0].clone();
        let watcher = spawn(move || watcher.recv().map(|delivery| *delivery));
        let committed = commit(tx);
        assert!(join(closer));
        assert!(committed == Ok(()) || committed == Err(CommitReason::Closed), "{committed:?}");
        let seen = join(watcher);
        assert!(seen.is_err() || committed.is_ok(), "P5: seen, not committed");
        assert_eq!(sub.try_recv().map(|delivery| *delivery), Err(TryRecvError::Closed));
        assert_eq!(commit(scene.broker.transaction()), Err(CommitReason::Closed));
    });
}

#[test]
fn p2_what_only_publishes_is_counted_or_refused_when_the_broker_shuts_down() {
    explore(|| {
        let Job { scene, sub, outputs, tx, .. } = Job::new();
        tx.rollback();
        let mut tx = scene.broker.transaction();
        outputs.iter().for_each(|output| tx.publish(output, 1));
        let committer = spawn(move || commit(tx));
        let report = scene.broker.shutdown(Duration::MAX).expect("the first shutdown");
        let committed = join(committer);
        assert!(committed == Ok(()) || committed == Err(CommitReason::Closed), "{committed:?}");
        assert_eq!(report.backlog, 1 + 2 * u64::from(committed.is_ok()));
        drop(sub);
    });
}

#[test]
fn p5_a_transaction_outlives_the_last_handle() {
    explore(|| {
        let Job { scene, sub, outputs, readers, tx } = Job::new();
        let committer = spawn(move || commit(tx));
        let droppers = (spawn(move || drop((scene, sub))), spawn(move || drop((outputs, readers))));
        let committed = join(committer);
        assert!(committed == Ok(()) || committed == Err(CommitReason::Closed), "{committed:?}");
        join(droppers.0);
        join(droppers.1);
    });
}

#[test]
fn p5_a_transaction_is_rolled_back_while_everything_is_dropped() {
    explore(|| {
        let Job { scene, sub, outputs, readers, tx } = Job::new();
        let dropper = spawn(move || drop((scene, outputs, readers)));
        let receiver = spawn(move || sub.recv().map(|delivery| delivery.attempt()));
        drop(tx);
        // The subscription is the last handle, and keeps the broker open.
        assert_eq!(join(receiver), Ok(2));
        join(dropper);
    });
}

#[test]
fn p5_transactions_and_a_topic_that_is_deleted_and_made_again_do_not_mix() {
    explore(|| {
        let scene = Scene::new();
        let old = super::topic(&scene, "results");
        let sub = scene.subscription("sub");
        send(&scene.topic, 7);
        let mut tx = scene.broker.transaction();
        tx.ack(recv(&sub));
        tx.publish(&old, 1);
        let broker = scene.broker.clone();
        let maker = spawn(move || {
            broker.delete_topic("results").expect("it is there");
            let new = broker.topic::<u64>("results").create().expect("the name is free");
            let reader = super::reader(&new);
            (new, reader)
        });
        let committed = commit(tx);
        let (_new, reader) = join(maker);
        assert!(committed == Ok(()) || committed == Err(CommitReason::TopicDeleted), "{committed:?}");
        assert_eq!(drain(&reader), [], "it named the old one");
        assert_eq!(drain(&sub).len(), usize::from(committed.is_err()));
    });
}
