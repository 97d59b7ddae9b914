//! Whatever has happened, and whenever each part of an image was taken: what is read is what was written.

use proptest::prelude::*;
use proptest::test_runner::TestCaseResult;

use super::history::{Model, Op, ops};
use super::*;

/// A state after each number of units.
fn states(units: &[Unit]) -> Vec<Recovered> {
    (0..=units.len()).map(|taken| state(&units[..taken])).collect()
}

/// A checkpoint that counts for `cut`, each part of which was taken some time from then on, as `times` says; and when the last was.
fn image_from(states: &[Recovered], cut: usize, times: &mut impl Iterator<Item = usize>) -> (Vec<u8>, usize) {
    let mut last = cut;
    let mut some_time = |from: usize| {
        let time = from + times.next().unwrap_or(0) % (states.len() - from);
        last = last.max(time);
        time
    };
    let numbers = &states[some_time(cut)];
    let head = unit().put(&Record::Clock { now: numbers.now }).numbers(numbers.next_topic, numbers.next_book);
    let mut archives = Archives::of_nothing();
    let mut image = ImageWriter::new(&mut archives);
    image.records(&head.0);
    // Every topic that has ever been, if it was there when it was looked at.
    for number in 0..states.last().map_or(0, |state| state.next_topic) {
        let found = |at: usize| states[at].topics().find(|topic| topic.number == number);
        let (taken, sent) = (some_time(cut), some_time(cut));
        let (Some(head), Some(messages)) = (found(taken), found(sent)) else { continue };
        head.write_head(&mut image);
        let seen = some_time(cut);
        let snapshots = found(seen).into_iter().flat_map(|topic| topic.snapshots.values());
        snapshots.for_each(|snapshot| snapshot.write(number, &mut image));
        for book in 0..states.last().map_or(0, |state| state.next_book) {
            // Not before the snapshots.
            let book = found(some_time(seen)).and_then(|topic| topic.books.get(&book));
            if let Some(book) = book {
                book.write(number, &mut image);
            }
        }
        messages.write_messages(&mut image);
    }
    (image.finish().expect("nothing fails").concat(), last)
}

fn agrees_with_the_model(ops: &[Op]) -> TestCaseResult {
    let model = Model::of(ops);
    let recovered = finished(state(&model.units));
    let numbers: Vec<_> = recovered.topics().map(|topic| topic.number).collect();
    prop_assert_eq!(numbers, model.topics.keys().copied().collect::<Vec<_>>());
    for topic in recovered.topics() {
        let expected = &model.topics[&topic.number];
        prop_assert_eq!(topic.next.get(), expected.next);
        let kept: Vec<_> = topic.messages.sequences().map(|sequence| sequence.get()).collect();
        match topic.retention == Retention::forever() {
            true => prop_assert_eq!(kept, (1..expected.next).collect::<Vec<_>>()),
            false => prop_assert_eq!(kept, expected.needed().into_iter().collect::<Vec<_>>()),
        }
        let books =
            topic.books.values().map(|book| (book.number, unsettled(book.ledger.settled(), topic.next)));
        let expected =
            expected.books.iter().map(|(&book, of)| (book, of.unsettled.iter().copied().collect()));
        prop_assert_eq!(books.collect::<Vec<_>>(), expected.collect::<Vec<_>>());
    }
    Ok(())
}

fn agrees_with_every_image(ops: &[Op], times: &[usize]) -> TestCaseResult {
    let units = Model::of(ops).units;
    let truth = told(state(&units));
    let states = states(&units);
    let mut times = times.iter().copied().cycle();
    for cut in 0..=units.len() {
        let (image, last) = image_from(&states, cut, &mut times);
        let read = over(std::slice::from_ref(&image), &units[cut..]);
        prop_assert_eq!(&told(read), &truth, "cut at {} of {}", cut, units.len());
        let marked = [&units[cut..last], &[unit().numbers_done()], &units[last..]].concat();
        let read = over(&[image], &marked);
        prop_assert_eq!(&told(read), &truth, "cut at {} of {}, taken until {}", cut, units.len(), last);
        // An image of one moment, marked at once.
        let image = image_of(&states[cut]);
        let marked = [&[unit().numbers_done()], &units[cut..]].concat();
        prop_assert_eq!(&told(over(&image, &marked)), &truth, "cut clean at {} of {}", cut, units.len());
    }
    Ok(())
}

fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(100)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, max_shrink_iters: 20_000, ..ProptestConfig::default() })]

    #[test]
    fn what_is_read_is_what_a_model_has(ops in prop::collection::vec(ops(), 0..120)) {
        agrees_with_the_model(&ops)?;
    }

    #[test]
    fn an_image_whose_parts_were_taken_at_any_times_and_all_units_since_come_to_the_same(
        ops in prop::collection::vec(ops(), 0..60), times in prop::collection::vec(0..1_000_usize, 1..200),
    ) {
        agrees_with_every_image(&ops, &times)?;
    }
}
