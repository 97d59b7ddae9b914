//! An image that was taken later than the units that are replayed over it.

use super::*;
use crate::delivery::dedup::Admission::Repeat;

#[test]
fn what_was_created_is_not_created_again() {
    let history = [topic_and_book().snapshot(1, 2, &Settled::starting_at(seq(1))), unit().publish(1, 1, 3)];
    let later = [unit().settle(1, 1, 1, 3).publish(1, 4, 1)];
    let all = [&history[..], &later[..]].concat();
    assert_eq!(told(over(&image_of(&state(&all)), &all)), told(state(&all)));
}

#[test]
fn what_the_image_knows_as_deleted_stays_deleted() {
    let history = [topic_and_book().book(1, 2, 1).topic(2, "u").book(2, 3, 1)];
    let later = [
        unit().publish(1, 1, 2).publish(2, 1, 1).settle(1, 2, 1, 2).seek(1, 2, 1, 1).settle(2, 3, 1, 2),
        unit()
            .snapshot(2, 4, &Settled::starting_at(seq(1)))
            .put(&Record::SnapshotDeleted { topic: 2, book: 4 }),
        unit().put(&Record::BookDeleted { topic: 1, book: 2 }).put(&Record::TopicDeleted { topic: 2 }),
        unit().settle(1, 2, 1, 2).topic(3, "u"),
    ];
    let all = [&history[..], &later[..]].concat();
    let truth = told(state(&all));
    assert!(!truth.contains("book 2") && truth.contains("topic 3") && !truth.contains("topic 2"), "{truth}");
    assert_eq!(told(over(&image_of(&state(&all)), &later)), truth);
}

#[test]
fn a_seek_to_the_image_s_generation_brings_the_image_back() {
    let history = [topic_and_book().publish(1, 1, 4), unit().settle(1, 1, 1, 2).seek(1, 1, 1, 1)];
    let later = [unit().settle(1, 1, 2, 4), unit().seek(1, 1, 2, 2), unit().settle(1, 1, 4, 5)];
    let all = [&history[..], &later[..]].concat();
    let truth = told(state(&all));
    assert_eq!(backlog(&finished(state(&all))), [2, 3]);
    for taken in history.len()..=all.len() {
        assert_eq!(told(over(&image_of(&state(&all[..taken])), &later)), truth, "taken after {taken} units");
    }
}

#[test]
fn nothing_of_an_earlier_generation_reaches_a_later_image() {
    let begin = [topic_and_book().publish(1, 1, 4)];
    let later = [
        unit().settle(1, 1, 1, 3),
        unit().seek(1, 1, 1, 1),
        unit().settle(1, 1, 3, 4).attempt(1, 1, 1, 2, 3).put(&Record::Paused {
            topic: 1,
            book: 1,
            paused: true,
        }),
        unit().seek(1, 1, 2, 1),
        unit().settle(1, 1, 4, 5).put(&Record::Paused { topic: 1, book: 1, paused: false }),
    ];
    let all = [&begin[..], &later[..]].concat();
    let image = image_of(&state(&all));
    assert_eq!(backlog(&finished(over(&image, &later))), [1, 2, 3]);
    assert_eq!(told(over(&image, &later)), told(state(&all)));
    // As far as the stream goes, all is in the image.
    assert_eq!(told(over(&image, &later[..3])), told(over(&image, &[])));
    // A seek past the image's generation: it was done, whatever became of the one before.
    let past = [&later[..3], &[unit().seek(1, 1, 3, 4)]].concat();
    assert_eq!(backlog(&finished(over(&image, &past))), [4]);
}

#[test]
fn options_are_the_last_that_the_stream_says() {
    let updated = |book: bool, n: u64| {
        let topic = TopicOptions { capacity: Capacity::messages(n), ..topic_options() };
        let options =
            BookOptions { outstanding_max: n, expire_after: Some(Duration::from_secs(n)), ..book_options() };
        if book {
            unit().put(&Record::BookUpdated { topic: 1, book: 1, options })
        } else {
            unit().put(&Record::TopicUpdated { topic: 1, next: seq(1), oldest: seq(1), options: topic })
        }
    };
    let later = [updated(true, 5), updated(false, 6), updated(true, 7), updated(false, 8)];
    let all = [&[topic_and_book()][..], &later[..]].concat();
    for taken in 1..=all.len() {
        assert_eq!(told(over(&image_of(&state(&all[..taken])), &later)), told(state(&all)));
    }
    let recovered = state(&all);
    let topic = recovered.topics().next().expect("a topic");
    assert_eq!((topic.capacity.messages_max, topic.books[&1].options().outstanding_max), (Some(8), 7));
}

#[test]
fn what_becomes_of_a_message_ends_as_the_stream_says_whatever_the_image_knew() {
    let begin = [topic_and_book().publish(1, 1, 4)];
    let later = [
        unit().attempt(1, 1, 1, 4, 1),
        unit().delay(1, 1, 1, 70, 1).settle(1, 1, 2, 3),
        unit().attempt(1, 1, 1, 2, 2).park(1, 1, 3, 1),
        unit().delay(1, 1, 1, 80, 2).settle_as(1, 1, 3, 4, Outcome::DeadLettered),
        unit().attempt(1, 1, 4, 5, 1),
        unit().attempt(1, 1, 4, 5, 0),
    ];
    let all = [&begin[..], &later[..]].concat();
    let truth = told(state(&all));
    for taken in 1..=all.len() {
        assert_eq!(told(over(&image_of(&state(&all[..taken])), &later)), truth, "taken after {taken} units");
    }
    assert!(truth.contains("Some(DeadLettered)") || truth.contains("[1, 4]"), "{truth}");
}

#[test]
fn an_id_counts_once_and_in_its_order() {
    let window = |ids: usize| TopicOptions { dedup: DedupWindow::default().max_ids(ids), ..topic_options() };
    let begin = [topic_and_book().put(&Record::TopicUpdated {
        topic: 1,
        next: seq(1),
        oldest: seq(1),
        options: window(2),
    })];
    let later = [
        unit().publish_ids(1, 1, &[Some("a"), Some("b")]),
        unit().publish_ids(1, 3, &[Some("c")]),
        unit().put(&Record::TopicUpdated { topic: 1, next: seq(4), oldest: seq(1), options: window(3) }),
        unit().publish_ids(1, 4, &[Some("a")]),
    ];
    let all = [&begin[..], &later[..]].concat();
    let truth = told(state(&all));
    for taken in 1..=all.len() {
        assert_eq!(told(over(&image_of(&state(&all[..taken])), &later)), truth, "taken after {taken} units");
    }
    let mut recovered = finished(state(&all));
    let mut dedup = recovered.take_topic("t").expect("a topic").take_dedup(at(4));
    let known = ["a", "b", "c"].map(|id| dedup.admit(&id.into(), 5, at(4)));
    assert_eq!(known, [Repeat(seq(4)), Repeat(seq(2)), Repeat(seq(3))]);
}

#[test]
fn a_shorter_window_in_between_forgets_nothing_that_the_image_remembers() {
    let window =
        |nanos| TopicOptions { dedup: DedupWindow::time(Duration::from_nanos(nanos)), ..topic_options() };
    let begin = [topic_and_book(), unit().publish_ids(1, 1, &[Some("a")])];
    let later = [
        unit().put(&Record::TopicUpdated { topic: 1, next: seq(2), oldest: seq(1), options: window(1) }),
        unit().put(&Record::TopicUpdated { topic: 1, next: seq(2), oldest: seq(1), options: window(1_000) }),
        unit().publish_ids(1, 9, &[Some("b")]),
    ];
    let all = [&begin[..], &later[..]].concat();
    let mut recovered = finished(over(&image_of(&state(&all)), &later));
    let mut dedup = recovered.take_topic("t").expect("a topic").take_dedup(at(9));
    assert_eq!(dedup.admit(&"a".into(), 5, at(9)), Repeat(seq(1)));
}

#[test]
fn an_id_that_is_published_again_counts_from_then() {
    let recovered = state(&[topic_and_book(), unit().publish_ids(1, 1, &[Some("a"), Some("b"), Some("a")])]);
    let mut dedup = finished(recovered).take_topic("t").expect("a topic").take_dedup(at(1));
    assert_eq!(dedup.admit(&"a".into(), 5, at(1)), Repeat(seq(3)));
}

#[test]
fn a_book_may_have_been_sought_to_a_snapshot_when_the_image_knows_neither_any_more() {
    let snapshot = Settled::starting_at(seq(2));
    let begin = [topic_and_book().publish(1, 1, 3).snapshot(1, 2, &snapshot)];
    let later = [
        unit().book(1, 3, 1).seek_to_image(1, 3, 1, &snapshot),
        unit().put(&Record::SnapshotDeleted { topic: 1, book: 2 }),
        unit().put(&Record::BookDeleted { topic: 1, book: 3 }),
    ];
    let all = [&begin[..], &later[..]].concat();
    assert_eq!(told(over(&image_of(&state(&all)), &later)), told(state(&all)));
}

#[test]
fn of_what_is_settled_no_attempts_are_remembered() {
    let begin = topic_and_book().publish(1, 1, 4).settle(1, 1, 2, 3);
    let (all, others) = (unit().attempt(1, 1, 1, 4, 2), unit().attempt(1, 1, 1, 2, 2).attempt(1, 1, 3, 4, 2));
    assert_eq!(told(state(&[begin.clone(), all])), told(state(&[begin, others])));
}
