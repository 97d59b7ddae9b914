use super::*;

fn restored(settled: &Settled) -> Settled {
    let image = settled.image();
    let restored = Settled::from_image(&image).expect("an image is read back");
    assert_eq!(restored.image(), image, "what was read says the same again");
    restored
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn an_image_tells_all_that_a_plain_map_would(start in sequence(), acts in prop::collection::vec(act(), 0..30)) {
        let mut settled = Settled::starting_at(at(start));
        let mut model = Model::starting_at(start);
        for (n, act) in acts.into_iter().enumerate() {
            apply(&mut settled, &mut model, act);
            let again = restored(&settled);
            compare(&again, &model);
            let last = model.settled.last_key_value().map_or(0, |(&last, _)| last + 1);
            assert_eq!(again.end(), at(last.max(model.low)));
            // A book that was restored lives on as well as one that was not.
            if n % 3 == 0 {
                settled = again;
            }
        }
    }

    #[test]
    fn bytes_that_are_no_image_are_refused_or_are_something_settled(acts in prop::collection::vec(act(), 0..12), skip in 0..97_usize) {
        let mut settled = Settled::starting_at(at(3));
        let mut model = Model::starting_at(3);
        acts.into_iter().for_each(|act| apply(&mut settled, &mut model, act));
        let image = settled.image();
        let read = |bytes: &[u8]| {
            if let Ok(settled) = Settled::from_image(bytes) {
                settled.check();
                assert_eq!(restored(&settled).image(), settled.image());
            }
        };
        (0..image.len()).skip(skip).step_by(97).for_each(|end| read(&image[..end]));
        for bit in (0..image.len() * 8).skip(skip).step_by(97) {
            let mut flipped = image.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            read(&flipped);
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn an_image_is_these_bytes() {
    let mut settled = Settled::starting_at(at(5));
    assert_eq!(hex(&settled.image()), "050005");
    settled.settle_range(at(5), at(7), Outcome::Acked);
    assert_eq!(hex(&settled.image()), "050007", "what was acked below low water needs no word");
    settled.settle_range(at(7), at(9), Outcome::Filtered);
    settled.settle_range(at(10), at(3_000), Outcome::Acked);
    settled.settle(at(4_000), Outcome::DeadLettered);
    let parts = ["010702", "0001f607", "00008008", "0000b807", "03e80701"];
    assert_eq!(hex(&settled.image()), format!("050009{}", parts.concat()));
}

#[test]
fn what_is_forgotten_of_a_stretch_leaves_the_same_bytes_however_it_is_held() {
    let mut settled = Settled::starting_at(at(1));
    settled.settle_range(at(1), at(6_144), Outcome::Filtered);
    settled.forget_before(at(1_025));
    let parts = ["018108ff07", "01008020"];
    assert_eq!(hex(&settled.image()), format!("0181088030{}", parts.concat()));
    assert_eq!(restored(&settled).outcome(at(1_025)), Some(Outcome::Filtered));
    settled.forget_before(at(6_143));
    assert_eq!(hex(&restored(&settled).image()), "01ff2f803001ff2f01", "one of the last page");
}

#[test]
fn a_page_with_many_outcomes_is_these_bytes() {
    let mut settled = Settled::starting_at(at(0));
    for place in (1..1_024).step_by(2) {
        settled.settle(at(1_024 + place), if place % 4 == 1 { Outcome::Acked } else { Outcome::Expired });
    }
    let (odd, every_fourth) = ("22".repeat(128), "88".repeat(128));
    assert_eq!(hex(&settled.image()), format!("000000808008020005{odd}{every_fourth}"));
}

#[test]
fn a_million_acked_in_no_order_take_a_bit_each_and_one_stuck_message_nothing() {
    let mut settled = Settled::starting_at(at(1));
    for sequence in (2..=1_000_000).step_by(2) {
        settled.settle(at(sequence), Outcome::Acked);
    }
    let image = settled.image();
    assert!(image.len() <= 1_000_000 / 8 + 977 * 8, "{} bytes", image.len());
    compare_some(&restored(&settled), &settled);
    let mut settled = Settled::starting_at(at(1));
    settled.settle_range(at(2), at(TEN_MILLION), Outcome::Acked);
    assert!(settled.image().len() < 20, "{:?}", settled.image());
    compare_some(&restored(&settled), &settled);
}

fn compare_some(restored: &Settled, settled: &Settled) {
    restored.check();
    assert_eq!(restored.heap_bytes(), settled.heap_bytes());
    for sequence in (0..TEN_MILLION).step_by(7_919) {
        assert_eq!(restored.outcome(at(sequence)), settled.outcome(at(sequence)), "{sequence}");
    }
}

#[test]
fn marks_that_contradict_each_other_are_refused() {
    let refused = |bytes: &[u8]| Settled::from_image(bytes).expect_err("no image").to_string();
    let marks = "a mark of what is settled has a value that means nothing, at byte 0";
    assert_eq!(refused(&[5, 0, 4]), marks, "the start above low water");
    assert_eq!(refused(&[5, 7, 6]), marks, "more forgotten than is settled");
    assert_eq!(refused(&[5, 0, 6, 0, 6, 1]), marks, "low water is settled");
    let part = "a part of what is settled has a value that means nothing, at byte 3";
    assert_eq!(refused(&[5, 0, 6, 8, 6, 1]), part, "no such outcome");
    assert_eq!(refused(&[5, 0, 6, 0, 9, 0]), part, "a part of nothing");
    assert_eq!(refused(&[5, 0, 6, 0, 9]), "ends too early, at byte 5");
    let beyond = [&[5, 0, 6, 0, 9][..], &[0xFF; 9], &[1]].concat();
    assert_eq!(refused(&beyond), part, "beyond all sequences");
}
