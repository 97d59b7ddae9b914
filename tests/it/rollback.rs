//! What a transaction that was not committed leaves behind: nothing.

use eventflow::{Capacity, CommitReason, Message};

use crate::support::{assert_empty, drain, manual, send};

#[test]
fn p05_p14_a_commit_without_space_in_one_topic_publishes_nothing_to_the_others_and_records_no_id() {
    let (broker, _clock) = manual();
    let notes = broker.topic::<String>("notes").create().expect("a new topic");
    let results = broker.topic::<u32>("results").capacity(Capacity::messages(1)).create().expect("new");
    let note_reader = notes.subscription("reader").create().expect("a new subscription");
    let reader = results.subscription("reader").create().expect("a new subscription");
    send(&results, 0);
    let note = |text: &str| Message::new(text.to_owned()).idempotency_id("a");
    let mut tx = broker.transaction();
    tx.publish(&notes, note("never seen"));
    tx.publish(&results, 1);
    let failed = tx.try_commit().expect_err("the topic is full");
    assert_eq!(failed.reason, CommitReason::Full);
    assert_empty(&note_reader);
    failed.transaction.rollback();

    // Another message under its id: the first was never published.
    let receipt = notes.publish(note("seen")).expect("nothing stands against it");
    assert_eq!((receipt.deduplicated, receipt.id.sequence()), (false, 1));
    assert_eq!(drain(&note_reader), ["seen"]);
    assert_eq!(drain(&reader), [0]);
}
