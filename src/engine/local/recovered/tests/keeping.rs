//! What stays, and what is dropped at the end.

use super::*;

#[test]
fn what_all_have_settled_is_dropped() {
    let mut recovered = state(&[topic_and_book().book(1, 2, 1).topic(2, "u").book(2, 3, 1)]);
    let forever = TopicOptions { retention: Retention::forever(), ..topic_options() };
    apply(
        &mut recovered,
        &[unit().put(&Record::TopicUpdated { topic: 2, next: seq(1), oldest: seq(1), options: forever })],
    );
    for n in 1..1_000 {
        let both = unit().publish(1, n, 1).publish(2, n, 1).settle(2, 3, n, n + 1).settle(1, 1, n, n + 1);
        let stuck = if n % 100 == 50 { both } else { both.settle(1, 2, n, n + 1) };
        recovered.unit(&stuck.0).expect("a unit");
    }
    let kept = kept(&finished(recovered));
    assert_eq!(kept[..10], [50, 150, 250, 350, 450, 550, 650, 750, 850, 950]);
    assert_eq!(kept.len(), 10 + 999, "the other topic keeps all");
}

#[test]
fn where_there_is_no_book_nothing_is_kept() {
    let mut recovered = state(&[unit().topic(1, "t")]);
    (1..200).for_each(|n| recovered.unit(&unit().publish(1, n, 1).0).expect("a unit"));
    assert_eq!(kept(&finished(recovered)), [0; 0]);
}

#[test]
fn a_snapshot_keeps_what_it_needs() {
    let snapshot = Settled::starting_at(seq(3));
    let deleted = unit().put(&Record::SnapshotDeleted { topic: 1, book: 2 });
    let all = [topic_and_book().publish(1, 1, 4), unit().snapshot(1, 2, &snapshot).settle(1, 1, 1, 5)];
    assert_eq!(kept(&finished(state(&all))), [3, 4]);
    assert_eq!(kept(&finished(state(&[&all[..], &[deleted]].concat()))), [0; 0]);
    let sought = unit().seek_to_image(1, 1, 1, &snapshot);
    assert_eq!(backlog(&finished(state(&[&all[..], &[sought]].concat()))), [3, 4]);
}

/// The image of one book was taken when it had settled a message, that of the other when the seek that brought it back to the first was over, and the second had settled it too.
#[test]
fn nothing_is_dropped_before_the_stream_has_come_to_where_the_image_was_taken() {
    let begin = [topic_and_book().book(1, 2, 1).publish(1, 1, 1), unit().settle(1, 1, 1, 2)];
    let later = [
        unit().publish(1, 2, 40).settle(1, 1, 2, 42).settle(1, 2, 2, 42),
        unit().seek(1, 1, 1, 1).settle(1, 1, 2, 42),
        unit().settle(1, 2, 1, 2),
    ];
    let all = [&begin[..], &later[..]].concat();
    let (early, late) = (state(&begin), state(&all));
    let (old, new) = (early.topics().next().expect("a topic"), late.topics().next().expect("a topic"));
    let mut archives = Archives::of_nothing();
    let mut image = ImageWriter::new(&mut archives);
    image.records(&unit().numbers(2, 3).0);
    old.write_head(&mut image);
    old.books[&1].write(1, &mut image);
    new.books[&2].write(1, &mut image);
    old.write_messages(&mut image);
    let image = image.finish().expect("nothing fails").concat();
    let truth = told(state(&all));
    assert!(truth.contains("#1 @1"), "{truth}");
    assert_eq!(told(over(std::slice::from_ref(&image), &later)), truth);
    assert_eq!(told(over(&[image], &[&later[..], &[unit().numbers_done()]].concat())), truth);
}

#[test]
fn a_seek_finds_what_nobody_needed_before_it() {
    let begin = [topic_and_book(), unit().publish(1, 1, 600).settle(1, 1, 1, 601)];
    let sought = [unit().seek(1, 1, 1, 3).settle_as(1, 1, 10, 600, Outcome::Removed)];
    let recovered = finished(state(&[&begin[..], &sought].concat()));
    assert_eq!(
        (kept(&recovered), backlog(&recovered)),
        (vec![3, 4, 5, 6, 7, 8, 9, 600], vec![3, 4, 5, 6, 7, 8, 9, 600])
    );
}

#[test]
fn what_was_let_go_of_does_not_come_back_by_being_kept_longer() {
    let forever = TopicOptions { retention: Retention::forever(), ..topic_options() };
    let begin = [topic_and_book(), unit().publish(1, 1, 600).settle(1, 1, 1, 601)];
    let longer = [unit()
        .put(&Record::TopicUpdated { topic: 1, next: seq(601), oldest: seq(1), options: forever })
        .publish(1, 601, 1)];
    let kept = kept(&finished(state(&[&begin[..], &longer].concat())));
    assert_eq!(kept, [599, 600, 601], "the last few may be in the segment that is still there");
}

#[test]
fn a_message_that_is_published_again_is_there_again() {
    let begin = [topic_and_book(), unit().publish(1, 1, 30).settle(1, 1, 1, 31), unit().publish(1, 31, 1)];
    let mut recovered = state(&begin);
    apply(
        &mut recovered,
        &[unit().publish(1, 5, 1).seek(1, 1, 1, 5).settle_as(1, 1, 6, 31, Outcome::Removed)],
    );
    let recovered = finished(recovered);
    assert_eq!((kept(&recovered), backlog(&recovered)), (vec![5, 31], vec![5, 31]));
    assert_eq!(recovered.topics().next().map(|topic| topic.next), Some(seq(32)));
}

#[test]
fn what_lies_below_the_oldest_that_was_kept_stays_gone() {
    let image = unit().numbers(2, 2).topic(1, "t").put(&Record::TopicImage {
        topic: 1,
        next: seq(5),
        oldest: seq(4),
        last_published: at(9),
        dedup: Part { bytes: &[], more: false },
    });
    let recovered = over(std::slice::from_ref(&image.0), &[unit().publish(1, 2, 4).book(1, 1, 2)]);
    assert_eq!(kept(&finished(recovered)), [4, 5]);
    let wrong = unit().topic(1, "t").put(&Record::TopicImage {
        topic: 1,
        next: seq(5),
        oldest: seq(6),
        last_published: at(9),
        dedup: Part { bytes: &[], more: false },
    });
    let error = Recovered::new().image_chunk(&wrong.0).expect_err("it keeps what never was");
    assert_eq!(error, "topic 1 keeps #6 before it has come to #5");
}
