mod image;

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

impl Settled {
    /// Panics where an invariant does not hold. O(n).
    pub(crate) fn check(&self) {
        assert!(
            self.forgotten <= self.low && self.start <= self.low && self.low < self.next_settled,
            "{self:?}"
        );
        let mut settled_above = 0;
        let mut next_settled = NONE;
        let mut before: Option<(u64, Option<Outcome>)> = None;
        for (&first, part) in &self.parts {
            let alike = match part {
                Part::Page(_) => None,
                Part::Stretch { outcome, .. } => Some(*outcome),
            };
            let end = part.end(first);
            assert!(first < end, "no part is empty");
            if let Some((before_end, before_alike)) = before {
                assert!(before_end <= first, "parts do not overlap");
                assert!(
                    before_end < first || alike.is_none() || alike != before_alike,
                    "touching stretches differ"
                );
            }
            before = Some((end, alike));
            assert!(first >= page_of(self.forgotten), "what is forgotten is freed");
            if let Part::Page(page) = part {
                page.check();
                assert!(page.first_settled(0).is_some(), "no page is empty");
                assert_eq!(page.alike(), None, "a page settled alike throughout is a stretch");
            }
            let (from, to) = (start_of(first), start_of(end));
            assert!(
                self.settled_in(part, from, to.min(self.start)).next().is_none(),
                "nothing of what was skipped"
            );
            if to <= self.low {
                assert!(!part.clone().drop_acked(), "nothing but acked");
                assert!(self.settled_in(part, from, to).all(|(_, outcome)| outcome != Outcome::Acked));
            } else if let Some((sequence, _)) = self.settled_in(part, from.max(self.low), to).next() {
                next_settled = next_settled.min(sequence);
                settled_above += match part {
                    Part::Stretch { .. } => to - from,
                    Part::Page(_) => self.settled_in(part, from.max(self.low), to).count() as u64,
                };
            }
        }
        assert_eq!((self.settled_above, self.next_settled), (settled_above, next_settled));
        assert_eq!(self.written(self.low).filter(|_| self.low < NONE), None, "low water is not settled");
    }

    fn settled_in(
        &self,
        part: &Part,
        from: Sequence,
        to: Sequence,
    ) -> impl Iterator<Item = (Sequence, Outcome)> {
        let (to, page) = match part {
            Part::Page(page) => (to, Some(page)),
            // One message speaks for a stretch.
            Part::Stretch { .. } => (to.min(from.next()), None),
        };
        let outcome = move |at| page.map_or_else(|| self.written(at), |page| page.outcome(place_of(at)));
        (from.get()..to.get()).map(Sequence::new).filter_map(move |at| Some((at, outcome(at)?)))
    }
}

fn at(sequence: u64) -> Sequence {
    Sequence::new(sequence)
}

/// The same the plain way: each message by itself.
#[derive(Debug)]
struct Model {
    start: u64,
    forgotten: u64,
    low: u64,
    settled: BTreeMap<u64, Outcome>,
}

impl Model {
    fn starting_at(start: u64) -> Self {
        Model { start, forgotten: 0, low: start, settled: BTreeMap::new() }
    }

    fn settle(&mut self, sequence: u64, outcome: Outcome) -> bool {
        if self.outcome(sequence).is_some() {
            return false;
        }
        self.settled.insert(sequence, outcome);
        while self.settled.contains_key(&self.low) {
            self.low += 1;
        }
        true
    }

    fn outcome(&self, sequence: u64) -> Option<Outcome> {
        if sequence < self.forgotten {
            Some(Outcome::Acked)
        } else if sequence < self.start {
            Some(Outcome::Skipped)
        } else {
            self.settled.get(&sequence).copied()
        }
    }

    fn forget_before(&mut self, floor: u64) {
        self.forgotten = self.forgotten.max(floor.min(self.low));
    }
}

/// Where an operation begins.
#[derive(Clone, Debug)]
enum Place {
    At(u64),
    /// This far above low water.
    Above(u64),
}

#[derive(Clone, Debug)]
enum Act {
    /// From, how many, how far apart.
    Each(Place, usize, usize, Outcome),
    Range(Place, u64, Outcome),
    Forget(Place),
    Restart(u64),
}

/// What the tests settle lies below.
const LAST: u64 = 6 * PAGE_LEN as u64;
const TAIL: u64 = LAST + 99;

fn sequence() -> impl Strategy<Value = u64> {
    // The borders of pages are where the mistakes are.
    let border = (1..6_u64, 0..5_u64).prop_map(|(page, place)| page * PAGE_LEN as u64 + place - 2);
    prop_oneof![1..LAST, border]
}

fn place() -> impl Strategy<Value = Place> {
    prop_oneof![
        2 => sequence().prop_map(Place::At),
        2 => Just(Place::Above(0)),
        1 => (0..70_u64).prop_map(Place::Above),
        1 => (0..2_000_u64).prop_map(Place::Above),
    ]
}

fn act() -> impl Strategy<Value = Act> {
    let index = prop_oneof![3 => Just(0), 1 => Just(1), 2 => 0..Outcome::ALL.len()];
    let outcome = index.prop_map(|index| Outcome::ALL[index]);
    let each = (place(), prop_oneof![1..3_usize, 1..100_usize, 1..1_500_usize], 1..5_usize);
    let len = prop_oneof![0..70_u64, 0..LAST, Just(PAGE_LEN as u64), Just(LAST)];
    prop_oneof![
        8 => (each, outcome.clone()).prop_map(|((from, count, step), outcome)| Act::Each(from, count, step, outcome)),
        6 => (place(), len, outcome).prop_map(|(from, len, outcome)| Act::Range(from, len, outcome)),
        2 => place().prop_map(Act::Forget),
        1 => sequence().prop_map(Act::Restart),
    ]
}

fn apply(settled: &mut Settled, model: &mut Model, act: Act) {
    let place = |model: &Model, place| match place {
        Place::At(sequence) => sequence,
        Place::Above(more) => model.low + more,
    };
    match act {
        Act::Each(from, count, step, outcome) => {
            for sequence in (place(model, from)..LAST).step_by(step).take(count) {
                assert_eq!(
                    settled.settle(at(sequence), outcome),
                    model.settle(sequence, outcome),
                    "{sequence}"
                );
            }
        }
        Act::Range(from, len, outcome) => {
            let from = place(model, from);
            let to = (from + len).min(LAST);
            let newly = (from..to).filter(|&sequence| model.settle(sequence, outcome)).count();
            assert_eq!(settled.settle_range(at(from), at(to), outcome), newly as u64, "{from}..{to}");
        }
        Act::Forget(floor) => {
            let floor = place(model, floor);
            settled.forget_before(at(floor));
            model.forget_before(floor);
        }
        Act::Restart(start) => {
            settled.restart_at(at(start));
            *model = Model::starting_at(start);
        }
    }
}

fn compare(settled: &Settled, model: &Model) {
    settled.check();
    assert_eq!(settled.low(), at(model.low));
    // A tail as near as it may be, and one beyond.
    let last = model.settled.last_key_value().map_or(0, |(&last, _)| last + 1);
    for tail in [last.max(model.low), TAIL] {
        let unsettled = tail - model.low - model.settled.range(model.low..).count() as u64;
        assert_eq!(settled.unsettled_before(at(tail)), unsettled, "before {tail}");
    }
    let mut run = None;
    for from in (0..TAIL).rev() {
        let outcome = model.outcome(from);
        assert_eq!(settled.outcome(at(from)), outcome, "{from}");
        assert_eq!(settled.is_settled(at(from)), outcome.is_some(), "{from}");
        if outcome.is_none() {
            let end = run.filter(|&(first, _)| first == from + 1).map_or(from + 1, |(_, end)| end);
            run = Some((from, end));
        }
        if from % 17 == 0 {
            let alike_to = settled.alike_to(at(from)).get().min(TAIL);
            assert!(from < alike_to, "{from}");
            let some =
                [from, from.midpoint(alike_to), alike_to - 1].into_iter().chain(from..alike_to.min(from + 3));
            assert!(some.into_iter().all(|n| model.outcome(n) == outcome), "{from}..{alike_to}");
        }
        if from % 17 == 0 || run.is_some_and(|(first, _)| first == from) {
            compare_run(settled, from, run);
        }
    }
}

/// `run` is the first one from `from` on.
fn compare_run(settled: &Settled, from: u64, run: Option<(u64, u64)>) {
    for tail in [from, TAIL.min(from + 70), TAIL] {
        let expected =
            run.filter(|&(first, _)| first < tail).map(|(first, end)| (at(first), at(end.min(tail))));
        assert_eq!(settled.next_unsettled_run(at(from), at(tail)), expected, "{from}..{tail}");
    }
    let first = run.map_or(TAIL, |(first, _)| first);
    assert!(settled.all_settled(at(from), at(first)), "{from}..{first}");
    assert!(!settled.all_settled(at(from), at(first + 1)), "{from}..={first}");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn settled_is_what_a_plain_map_would_be(start in sequence(), acts in prop::collection::vec(act(), 0..30)) {
        let mut settled = Settled::starting_at(at(start));
        let mut model = Model::starting_at(start);
        for act in acts {
            apply(&mut settled, &mut model, act);
            compare(&settled, &model);
        }
    }
}

const TEN_MILLION: u64 = 10_000_000;

/// Bits of heap a message.
fn bits_of(settled: &Settled, messages: u64) -> f64 {
    settled.heap_bytes() as f64 * 8.0 / messages as f64
}

#[test]
fn acks_in_order_write_nothing_down() {
    let mut settled = Settled::starting_at(at(1));
    let (_, looked) = cost::of(|| {
        for sequence in 1..=1_000_000 {
            assert!(settled.settle(at(sequence), Outcome::Acked));
        }
        assert_eq!(
            settled.settle_range(at(1_000_001), at(TEN_MILLION + 1), Outcome::Acked),
            TEN_MILLION - 1_000_000
        );
    });
    assert_eq!(settled.low(), at(TEN_MILLION + 1));
    assert_eq!((settled.parts.len(), settled.heap_bytes(), looked), (0, 0, 0));
    assert_eq!(settled.outcome(at(TEN_MILLION)), Some(Outcome::Acked));
}

#[test]
fn acks_in_order_look_at_a_page_only_where_they_leave_it() {
    let mut settled = Settled::starting_at(at(0));
    settled.settle(at(1), Outcome::Filtered);
    settled.settle(at(3), Outcome::Acked);
    settled.settle_range(at(0), at(5), Outcome::Acked);
    assert_eq!(settled.parts.len(), 1);
    let page_len = PAGE_LEN as u64;
    let (_, looked) =
        cost::of(|| (5..page_len - 1).for_each(|each| assert!(settled.settle(at(each), Outcome::Acked))));
    assert_eq!(looked, 0);
    let (_, looked) = cost::of(|| settled.settle(at(page_len - 1), Outcome::Acked));
    assert_eq!((looked, settled.parts.len()), (1, 1), "what was filtered is still known");
    assert_eq!(settled.outcome(at(1)), Some(Outcome::Filtered));
    settled.check();
}

#[test]
fn pages_that_are_all_acked_go_when_low_water_passes_them() {
    let mut settled = Settled::starting_at(at(1));
    for sequence in (2..50_000).rev() {
        assert!(settled.settle(at(sequence), Outcome::Acked));
    }
    assert_eq!((settled.low(), settled.unsettled_before(at(50_000))), (at(1), 1));
    assert_eq!(settled.parts.len(), 3, "the first page, a stretch, and the last page");
    settled.check();
    assert!(settled.settle(at(1), Outcome::Acked));
    assert_eq!(settled.low(), at(50_000));
    settled.settle_range(at(50_000), at(51_200), Outcome::Acked);
    assert_eq!(settled.heap_bytes(), 0);
}

#[test]
fn every_other_ack_of_ten_million_costs_at_most_2_2_bits_a_message() {
    let mut settled = Settled::starting_at(at(0));
    for sequence in (1..TEN_MILLION).step_by(2) {
        assert!(settled.settle(at(sequence), Outcome::Acked));
    }
    assert_eq!((settled.low(), settled.unsettled_before(at(TEN_MILLION))), (at(0), TEN_MILLION / 2));
    assert!(bits_of(&settled, TEN_MILLION) <= 2.2, "{}", bits_of(&settled, TEN_MILLION));
}

#[test]
fn acked_and_filtered_in_turn_cost_two_bits_a_message_and_a_constant_a_page() {
    let messages = 500 * PAGE_LEN as u64;
    let mut settled = Settled::starting_at(at(0));
    for sequence in 1..messages {
        let outcome = [Outcome::Acked, Outcome::Filtered][sequence as usize % 2];
        assert!(settled.settle(at(sequence), outcome));
    }
    assert_eq!(settled.low(), at(0));
    let constant = map_bytes(500);
    assert!(settled.heap_bytes() - constant <= messages as usize / 4, "{}", bits_of(&settled, messages));
    assert!(settled.settle(at(0), Outcome::Filtered));
    assert_eq!(settled.low(), at(messages));
    settled.check();
    assert!(settled.heap_bytes() - constant <= messages as usize / 8, "{}", bits_of(&settled, messages));
}

#[test]
fn a_few_stuck_messages_cost_a_few_runs() {
    let messages = 200 * PAGE_LEN as u64;
    let mut settled = Settled::starting_at(at(0));
    for sequence in (0..messages).filter(|sequence| sequence % 500 != 0) {
        settled.settle(at(sequence), Outcome::Acked);
    }
    settled.check();
    assert!(settled.heap_bytes() <= map_bytes(200) + 200 * 16, "{}", settled.heap_bytes());
}

#[test]
fn messages_settled_alike_one_by_one_become_one_stretch() {
    let messages = 300 * PAGE_LEN as u64;
    let mut settled = Settled::starting_at(at(0));
    for sequence in 0..messages {
        assert!(settled.settle(at(sequence), Outcome::Filtered));
        assert_eq!(settled.low(), at(sequence + 1));
    }
    assert_eq!(settled.parts.len(), 1);
    assert_eq!((settled.outcome(at(0)), settled.outcome(at(messages))), (Some(Outcome::Filtered), None));
}

#[test]
fn a_range_costs_a_look_a_part_however_many_messages_it_holds() {
    let mut settled = Settled::starting_at(at(0));
    settled.settle(at(5_000_000), Outcome::Acked);
    let (newly, looked) = cost::of(|| settled.settle_range(at(100), at(TEN_MILLION), Outcome::Removed));
    assert_eq!(newly, TEN_MILLION - 100 - 1);
    assert!(looked < 20, "{looked}");
    assert_eq!(settled.parts.len(), 5, "its ends, the page that was there, and the stretches between");
    assert_eq!(settled.outcome(at(5_000_000)), Some(Outcome::Acked), "an earlier outcome stays");
    let (_, looked) = cost::of(|| {
        assert!(settled.all_settled(at(100), at(TEN_MILLION)));
        assert!(!settled.all_settled(at(100), at(TEN_MILLION + 1)));
        let run = settled.next_unsettled_run(at(100), at(u64::MAX - 1));
        assert_eq!(run, Some((at(TEN_MILLION), at(u64::MAX - 1))));
    });
    assert!(looked < 20, "{looked}");
    let (_, looked) = cost::of(|| settled.settle_range(at(0), at(100), Outcome::Acked));
    assert_eq!(settled.low(), at(TEN_MILLION));
    assert!(looked < 20, "{looked}");
}

#[test]
fn what_differs_everywhere_is_passed_over_a_page_at_a_time() {
    let pages = 1_000;
    let messages = pages * PAGE_LEN as u64;
    let mut settled = Settled::starting_at(at(0));
    (2..messages).step_by(2).for_each(|sequence| assert!(settled.settle(at(sequence), Outcome::Acked)));
    let (newly, looked) = cost::of(|| settled.settle_range(at(1), at(messages), Outcome::Expired));
    assert_eq!(newly, messages / 2);
    assert!(looked <= 3 * pages, "{looked}");
    let (run, looked) = cost::of(|| settled.next_unsettled_run(at(1), at(messages + 1)));
    assert_eq!(run, Some((at(messages), at(messages + 1))));
    assert!(looked <= pages + 1, "{looked}");
    let (_, looked) = cost::of(|| settled.settle(at(0), Outcome::Acked));
    assert_eq!((settled.low(), settled.unsettled_before(at(messages))), (at(messages), 0));
    assert!(looked <= 2 * pages + 1, "{looked}");
}

#[test]
fn outcomes_are_known_below_low_water_until_they_are_forgotten() {
    let mut settled = Settled::starting_at(at(10));
    settled.settle_range(at(10), at(5_000), Outcome::Expired);
    settled.settle(at(5_000), Outcome::DeadLettered);
    settled.settle_range(at(5_001), at(9_000), Outcome::Acked);
    let outcomes = |settled: &Settled, sequences: [u64; 5]| sequences.map(|each| settled.outcome(at(each)));
    let of = [9, 10, 4_999, 5_000, 8_999];
    use Outcome::*;
    assert_eq!(outcomes(&settled, of), [Skipped, Expired, Expired, DeadLettered, Acked].map(Some));
    settled.forget_before(at(3_000));
    settled.check();
    assert_eq!(outcomes(&settled, of), [Acked, Acked, Expired, DeadLettered, Acked].map(Some));
    settled.forget_before(at(2_000));
    assert_eq!(settled.outcome(at(2_500)), Some(Acked), "what was forgotten stays so");
    settled.forget_before(at(u64::MAX));
    assert_eq!(settled.low(), at(9_000), "nothing is settled by being forgotten");
    assert_eq!((settled.heap_bytes(), settled.outcome(at(9_000))), (0, None));
}

#[test]
fn a_subscription_that_has_caught_up_and_forgotten_keeps_no_memory() {
    let mut settled = Settled::starting_at(at(1));
    settled.settle_range(at(1), at(100), Outcome::Filtered);
    settled.settle(at(101), Outcome::Acked);
    settled.forget_before(at(u64::MAX));
    assert!(settled.heap_bytes() > 0, "it has not caught up");
    settled.settle(at(100), Outcome::Acked);
    settled.forget_before(at(u64::MAX));
    assert_eq!((settled.low(), settled.heap_bytes()), (at(102), 0));
    settled.check();
}

#[test]
fn forgetting_keeps_what_is_settled_above_low_water() {
    let mut settled = Settled::starting_at(at(1));
    settled.settle_range(at(2), at(4_000), Outcome::Discarded);
    settled.forget_before(at(3_000));
    settled.check();
    assert_eq!((settled.outcome(at(1)), settled.outcome(at(2))), (None, Some(Outcome::Discarded)));
    assert_eq!(settled.unsettled_before(at(4_001)), 2);
}

#[test]
fn a_restart_unsettles_what_is_from_there_on() {
    for start in [1, 2_000, 4_000, 9_000] {
        let mut settled = Settled::starting_at(at(100));
        settled.settle_range(at(100), at(3_000), Outcome::Filtered);
        settled.settle_range(at(5_000), at(7_000), Outcome::Acked);
        settled.forget_before(at(2_500));
        settled.restart_at(at(start));
        settled.check();
        assert_eq!((settled.low(), settled.unsettled_before(at(9_500))), (at(start), 9_500 - start));
        assert_eq!(settled.outcome(at(start - 1)), Some(Outcome::Skipped));
        assert_eq!(settled.outcome(at(start)), None);
        assert_eq!(settled.heap_bytes(), 0);
    }
}

#[test]
fn the_largest_numbers_do_no_harm() {
    let mut settled = Settled::starting_at(at(1));
    assert_eq!(settled.settle_range(at(1_000), at(u64::MAX), Outcome::Removed), u64::MAX - 1_000);
    assert!(!settled.settle(at(u64::MAX - 1), Outcome::Acked));
    assert!(!settled.settle(at(u64::MAX), Outcome::Acked));
    assert_eq!(settled.unsettled_before(at(u64::MAX)), 999);
    assert_eq!(settled.next_unsettled_run(at(500), at(u64::MAX)), Some((at(500), at(1_000))));
    assert_eq!(settled.next_unsettled_run(at(1_000), at(u64::MAX)), None);
    settled.check();
    assert_eq!(settled.settle_range(at(5_000), at(4_000), Outcome::Acked), 0);
    assert_eq!(settled.settle_range(at(0), at(u64::MAX), Outcome::Acked), 999);
    assert_eq!((settled.low(), settled.unsettled_before(at(u64::MAX))), (at(u64::MAX), 0));
    assert!(!settled.settle(at(u64::MAX), Outcome::Acked));
    settled.forget_before(at(u64::MAX));
    settled.restart_at(at(u64::MAX));
    assert_eq!(settled.next_unsettled_run(at(0), at(u64::MAX)), None);
}
