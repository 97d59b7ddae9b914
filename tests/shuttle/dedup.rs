//! One idempotency id, several publishers.

use eventflow::{Capacity, Message, PublishError};

use crate::{Scene, ack, drain, explore, join, recv, send, spawn};

fn payment(cents: u64) -> Message<u64> {
    Message::new(cents).idempotency_id("payment-7")
}

#[test]
fn p14_of_two_publishers_with_one_id_one_publishes() {
    explore(|| {
        let scene = Scene::new();
        let sub = scene.subscription("sub");
        let publishers = [(); 2].map(|()| {
            let topic = scene.topic.clone();
            spawn(move || topic.publish(payment(7)).expect("an open topic"))
        });
        let [one, other] = publishers.map(join);
        assert_eq!(one.id, other.id, "P14: the first receipt");
        assert_ne!(one.deduplicated, other.deduplicated);
        assert_eq!(drain(&sub), [7]);
    });
}

#[test]
fn p14_a_repeat_that_waits_for_space_is_still_a_repeat() {
    explore(|| {
        let scene = Scene::with(|options| options.capacity(Capacity::messages(1)));
        let sub = scene.subscription("sub");
        send(&scene.topic, 1);
        let publishers = [(); 2].map(|()| {
            let topic = scene.topic.clone();
            spawn(move || topic.publish(payment(7)).expect("an open topic"))
        });
        ack(recv(&sub));
        let [one, other] = publishers.map(join);
        assert_eq!(one.id, other.id, "P14: the first receipt");
        assert_ne!(one.deduplicated, other.deduplicated);
        assert_eq!(drain(&sub), [7]);
    });
}

#[test]
fn p14_one_id_with_two_messages_is_a_conflict_for_one_of_them() {
    explore(|| {
        let scene = Scene::with(|options| options.fingerprint(|event| *event));
        let sub = scene.subscription("sub");
        let publishers = [7, 8].map(|cents| {
            let topic = scene.topic.clone();
            spawn(move || match topic.publish(payment(cents)) {
                Ok(receipt) => !receipt.deduplicated,
                Err(PublishError::IdempotencyConflict(message)) => {
                    assert_eq!(message.into_event(), cents, "P2: the message comes back");
                    false
                }
                Err(error) => panic!("while publishing: {error:?}"),
            })
        });
        let [seven, eight] = publishers.map(join);
        assert_ne!(seven, eight);
        assert_eq!(drain(&sub), [if seven { 7 } else { 8 }]);
    });
}
