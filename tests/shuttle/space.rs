//! A topic with a capacity: who waits for space gets it.

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Waker};
use std::time::Duration;

use eventflow::{Capacity, Message, Overflow, PublishError, Seek};

use crate::{EXPIRED, Scene, ack, assert_forgotten, drain, explore, join, join_all, recv, send, spawn};

fn full_after_one() -> Scene {
    Scene::with(|options| options.capacity(Capacity::messages(1)))
}

#[test]
fn p9_publishers_that_wait_for_space_take_turns() {
    explore(|| {
        let scene = full_after_one();
        let sub = scene.subscription("sub");
        let publishers = [[1, 2], [3, 4]].map(|events| {
            let topic = scene.topic.clone();
            spawn(move || events.map(|event| send(&topic, event)))
        });
        let receiver = spawn(move || {
            for _ in 0..4 {
                let batch = sub.recv_batch(10).expect("an open broker");
                assert_eq!(batch.len(), 1, "more than the capacity");
                assert_eq!(batch.ack(), Ok(()));
            }
        });
        join_all(publishers);
        join(receiver);
        assert_forgotten(&scene.topic);
    });
}

#[test]
fn p9_space_for_a_small_message_is_not_kept_by_a_large_one_that_waits() {
    explore(|| {
        let scene = Scene::with(|options| options.capacity(Capacity::bytes(2)).weigh(|event| *event));
        let sub = scene.subscription("sub");
        scene.topic.publish_all([1, 1]).expect("they fit");
        let large = scene.topic.clone();
        let large = spawn(move || send(&large, 2));
        let small = scene.topic.clone();
        let small = spawn(move || send(&small, 1));
        let receiver = spawn(move || {
            // One ack makes room for the small one only; the large one may be in the way of neither.
            for _ in 0..4 {
                ack(recv(&sub));
            }
        });
        join(small);
        join(large);
        join(receiver);
    });
}

#[test]
fn p2_a_publish_that_ran_out_of_time_published_nothing() {
    explore(|| {
        let scene = full_after_one();
        let sub = scene.subscription("sub");
        send(&scene.topic, 1);
        let topic = scene.topic.clone();
        let publisher = spawn(move || match topic.publish_timeout(2, Duration::from_secs(1)) {
            Ok(_) => true,
            Err(PublishError::Timeout(message)) => {
                assert_eq!(message.into_event(), 2, "the message comes back");
                false
            }
            Err(error) => panic!("while publishing: {error:?}"),
        });
        let acker = sub.clone();
        let acker = spawn(move || ack(recv(&acker)));
        scene.clock.advance(Duration::from_secs(1));
        join(acker);
        let published = join(publisher);
        assert_eq!(drain(&sub), if published { vec![2] } else { vec![] });
    });
}

#[test]
fn p8_what_drop_oldest_drops_is_not_acked_as_well() {
    explore(|| {
        let scene =
            Scene::with(|options| options.capacity(Capacity::messages(1).overflow(Overflow::DropOldest)));
        let (sub, other) = (scene.subscription("sub"), scene.subscription("other"));
        send(&scene.topic, 1);
        let held = recv(&sub);
        ack(recv(&other));
        let acker = spawn(move || held.ack());
        let topic = scene.topic.clone();
        let publisher = spawn(move || send(&topic, 2));
        let acked = join(acker);
        join(publisher);
        assert!(acked == Ok(()) || acked == EXPIRED, "{acked:?}");
        assert_eq!(scene.topic.stats().dropped, u64::from(acked.is_err()), "dropped or acked, not both");
        assert_eq!((drain(&sub), drain(&other)), (vec![2], vec![2]));
        assert_forgotten(&scene.topic);
    });
}

#[test]
fn p1_of_what_drop_oldest_makes_room_for_the_newest_stays() {
    explore(|| {
        let scene =
            Scene::with(|options| options.capacity(Capacity::messages(1).overflow(Overflow::DropOldest)));
        let sub = scene.subscription("sub");
        let publishers = [1, 2, 3].map(|event| {
            let topic = scene.topic.clone();
            spawn(move || (send(&topic, event), event))
        });
        let newest = publishers.map(join).into_iter().max().expect("three were published").1;
        assert_eq!(drain(&sub), [newest]);
        assert_eq!(scene.topic.stats().dropped, 2);
    });
}

#[test]
fn p9_the_end_of_a_subscription_makes_room() {
    explore(|| {
        let scene = full_after_one();
        let (slow, quick) = (scene.subscription("slow"), scene.subscription("quick"));
        send(&scene.topic, 1);
        let topic = scene.topic.clone();
        let publisher = spawn(move || send(&topic, 2));
        let held = recv(&slow);
        // Deleted with a lease running, whose ack may be anywhere in it.
        let acker = spawn(move || held.ack().is_ok());
        let deleter = spawn(move || slow.delete());
        assert_eq!(drain(&quick).first(), Some(&1));
        join(acker);
        assert_eq!(join(deleter), Ok(()));
        join(publisher);
        drain(&quick);
        assert_forgotten(&scene.topic);
    });
}

#[test]
fn p9_a_seek_to_the_end_makes_room() {
    explore(|| {
        let scene = full_after_one();
        let sub = scene.subscription("sub");
        send(&scene.topic, 1);
        let topic = scene.topic.clone();
        let publisher = spawn(move || send(&topic, 2));
        let held = recv(&sub);
        let acker = spawn(move || held.ack().is_ok());
        let seeker = sub.clone();
        let seeker = spawn(move || seeker.seek(Seek::Latest));
        assert_eq!(join(seeker), Ok(()));
        join(acker);
        join(publisher);
        // A seek that came last settled the second one too, and in any case there is room again.
        drain(&sub);
        send(&scene.topic, 3);
        assert_eq!(drain(&sub), [3]);
        assert_forgotten(&scene.topic);
    });
}

#[test]
fn p9_a_dropped_publish_future_leaves_the_space_to_others() {
    explore(|| {
        let scene = full_after_one();
        let sub = scene.subscription("sub");
        send(&scene.topic, 1);
        let topic = scene.topic.clone();
        let fickle = spawn(move || {
            let mut future = pin!(topic.publish_async(2));
            future.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready()
        });
        let topic = scene.topic.clone();
        let patient = spawn(move || shuttle::future::block_on(topic.publish_async(3)).is_ok());
        let mut events = Vec::new();
        while events.last() != Some(&3) {
            let delivery = recv(&sub);
            events.push(*delivery);
            ack(delivery);
        }
        assert!(join(patient), "an open topic");
        let fickle = join(fickle);
        events.extend(drain(&sub));
        assert_eq!(events.contains(&2), fickle, "P2: dropped, it published nothing");
        assert_eq!(events.len(), 2 + usize::from(fickle));
    });
}

#[test]
fn p22_what_a_filter_lets_go_takes_no_room_whoever_subscribes_meanwhile() {
    explore(|| {
        let scene = full_after_one();
        let topic = scene.topic.clone();
        let filtered = spawn(move || {
            topic.subscription("filtered").filter_fn(|_| false).create().expect("a new subscription")
        });
        let topic = scene.topic.clone();
        let plain = spawn(move || topic.subscription("plain").create().expect("a new subscription"));
        let (_filtered, plain) = (join(filtered), join(plain));
        send(&scene.topic, 1);
        ack(recv(&plain));
        send(&scene.topic, Message::new(2));
    });
}
