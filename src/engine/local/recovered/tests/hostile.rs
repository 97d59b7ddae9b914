//! Bytes that nobody has written.

use proptest::prelude::*;

use super::history::{Model, ops};
use super::*;

/// Reads all of it, and if it can be so, writes and reads it once more.
fn read(image: &[Vec<u8>], units: &[Vec<u8>], lost_at: usize) -> Result<(), String> {
    let mut recovered = Recovered::new();
    image.iter().try_for_each(|chunk| recovered.image_chunk(chunk))?;
    for (n, unit) in units.iter().enumerate() {
        if n == lost_at {
            recovered.lost();
        }
        recovered.unit(unit)?;
    }
    recovered.finish()?;
    let image = image_of(&recovered);
    let mut again = Recovered::new();
    for chunk in &image {
        again.image_chunk(chunk).expect("what is written is read");
    }
    again.finish().expect("it could be so before");
    let names: Vec<_> = recovered.topics().map(|topic| topic.name.clone()).collect();
    for name in names {
        let topic = recovered.take_topic(name.as_str()).expect("it is there by its name");
        for book in topic.books.values() {
            assert!(book.ledger.reach() <= topic.next);
            let _ = book.ledger.settled().unsettled_before(topic.next);
        }
    }
    Ok(())
}

/// One record, of numbers that may be anything.
fn wild() -> impl Strategy<Value = Vec<u8>> {
    let number = || prop_oneof![8 => 0..4_u64, 1 => Just(u64::MAX), 1 => (1_u64 << 62) - 1..(1 << 62) + 1, 1 => any::<u64>()];
    let place = || prop_oneof![8 => 1..9_u64, 1 => (1_u64 << 62) - 9..(1 << 62) - 4];
    (0..13_u8, number(), number(), number(), place(), 1..4_u64, prop::collection::vec(0..4_u8, 0..30))
        .prop_map(|(which, topic, book, n, from, len, bytes)| {
            let image = Part { bytes: &bytes, more: n % 2 == 1 };
            match which {
                0 => unit().put(&Record::TopicCreated {
                    topic,
                    next: seq(n),
                    name: name("t"),
                    options: topic_options(),
                }),
                1 => unit().book(topic, book, n),
                2 => unit().publish(topic.min(5), from.min(1 << 61), len),
                3 => unit().settle(topic, book, from, from + len),
                4 => unit().attempt(topic, book, from, from + len, n as u32),
                5 => unit().delay(topic, book, n, n, n as u32),
                6 => unit().park(topic, book, n, n as u32),
                7 => unit().seek(topic, book, n as u32, from),
                8 => unit().put(&Record::Sought {
                    topic,
                    book,
                    generation: n as u32,
                    to: SoughtTo::Image(image),
                }),
                9 => unit().put(&Record::BookImage { topic, book, image }),
                10 => unit().put(&Record::TopicImage {
                    topic,
                    next: seq(n),
                    oldest: seq(from),
                    last_published: at(n),
                    dedup: image,
                }),
                11 => unit().snapshot(topic, book, &Settled::starting_at(seq(from))),
                _ => unit().numbers(topic, book),
            }
            .0
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_records_in_any_order_are_read_or_refused(
        image in prop::collection::vec(wild(), 0..6), units in prop::collection::vec(prop::collection::vec(wild(), 0..4), 0..20), lost_at in 0..40_usize,
    ) {
        let units: Vec<_> = units.into_iter().map(|records| records.concat()).collect();
        let _ = read(&[], &units, lost_at);
        let _ = read(&image, &units, lost_at);
    }

    #[test]
    fn a_history_with_flipped_bits_or_missing_units_is_read_or_refused(
        ops in prop::collection::vec(ops(), 0..40), flips in prop::collection::vec(any::<prop::sample::Index>(), 0..4), gone in any::<prop::sample::Index>(),
    ) {
        let mut units: Vec<_> = Model::of(&ops).units.into_iter().map(|unit| unit.0).collect();
        let cut = gone.index(units.len());
        let image = image_of(&state(&units[..cut].iter().cloned().map(Unit).collect::<Vec<_>>()));
        units.remove(cut);
        // With units missing, nothing that the others say is an error.
        prop_assert_eq!(read(&[], &units, cut), Ok(()));
        prop_assert_eq!(read(&image, &units[cut..], 0), Ok(()));
        for flip in flips {
            let n = flip.index(units.len());
            let bits = units[n].len() * 8;
            if bits > 0 {
                let bit = flip.index(bits);
                units[n][bit / 8] ^= 1 << (bit % 8);
            }
        }
        let _ = read(&[], &units, usize::MAX);
        let _ = read(&image, &units[cut..], usize::MAX);
        let mut image = image;
        for chunk in &mut image {
            let bit = gone.index(chunk.len() * 8);
            chunk[bit / 8] ^= 1 << (bit % 8);
        }
        let _ = read(&image, &[], 0);
    }
}
