//! How the messages of one page were settled: as runs or as bit planes, whichever is smaller.
//!
//! A *run* takes 4 bytes and says that places in a row were settled alike. *Planes* give each message a code of as many
//! bits as the page has planes: 0 is unsettled, the others name the outcomes that occur, numbered as they first came.
//! So one outcome costs a bit a message, up to three cost two, up to seven three, and all eight four.

use std::ops::Range;

use super::Outcome;

/// How many messages share a page.
pub(super) const PAGE_LEN: usize = 1_024;

/// How some messages of a page were settled. A settled one stays as it is.
///
/// Invariant: `settled` is how many are. Places are below [`PAGE_LEN`].
#[derive(Clone, Debug, Default)]
pub(super) struct Page {
    settled: u16,
    form: Form,
}

#[derive(Clone, Debug)]
enum Form {
    Runs(Runs),
    Planes(Planes),
}

/// Invariant: sorted, without overlap, and as long as they can be: two that touch differ in their outcome.
#[derive(Clone, Debug, Default)]
struct Runs(Vec<Run>);

/// Places in a row that were settled alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    start: u16,
    /// One less than the length, times 8, and the outcome's index: a `u16` has room for both.
    len_and_outcome: u16,
}

/// Invariant: the codes in use are those of the `palette`, and there are no more planes than it takes to tell them apart.
#[derive(Clone, Debug, Default)]
struct Planes {
    /// The outcomes with code 1, 2, ...; once a `None`, all `None`.
    palette: [Option<Outcome>; Outcome::ALL.len()],
    /// Bit `k` of a message's code stands in plane `k`.
    planes: Vec<[u64; WORDS]>,
}

impl Page {
    pub(super) fn outcome(&self, place: usize) -> Option<Outcome> {
        match &self.form {
            Form::Runs(runs) => runs.outcome(place),
            Form::Planes(planes) => planes.outcome(place),
        }
    }

    /// Settles what is unsettled of `places`, and says how many that were.
    pub(super) fn settle(&mut self, places: Range<usize>, outcome: Outcome) -> usize {
        let newly = match &mut self.form {
            Form::Runs(runs) => runs.settle(places, outcome),
            Form::Planes(planes) => planes.settle(places, outcome),
        };
        let before = usize::from(self.settled);
        self.settled += newly as u16;
        let outgrown = matches!(&self.form, Form::Runs(runs) if runs.outgrown());
        // Not each time: looking for runs costs more than settling does.
        if outgrown || before / FIT_EVERY != (before + newly) / FIT_EVERY {
            self.fit();
        }
        newly
    }

    /// The outcome that all of the page's messages have, if they do.
    pub(super) fn alike(&self) -> Option<Outcome> {
        match &self.form {
            // A page that becomes full takes its smaller form, so planes never are one run.
            Form::Runs(Runs(runs)) if usize::from(self.settled) == PAGE_LEN && runs.len() == 1 => {
                Some(runs[0].outcome())
            }
            _ => None,
        }
    }

    /// Takes every `Acked` back; `true` if nothing else is left.
    pub(super) fn drop_acked(&mut self) -> bool {
        match &mut self.form {
            Form::Runs(Runs(runs)) => {
                runs.retain(|run| run.outcome() != Outcome::Acked);
            }
            Form::Planes(planes) => *planes = planes.without(Outcome::Acked),
        }
        self.fit();
        self.settled = self.settled_within(0..PAGE_LEN) as u16;
        self.settled == 0
    }

    pub(super) fn first_settled(&self, from: usize) -> Option<usize> {
        match &self.form {
            Form::Runs(runs) => runs.first_settled(from),
            Form::Planes(planes) => find(from, |word| planes.settled(word)),
        }
    }

    pub(super) fn first_unsettled(&self, from: usize) -> Option<usize> {
        if usize::from(self.settled) == PAGE_LEN {
            return None;
        }
        match &self.form {
            Form::Runs(runs) => runs.first_unsettled(from),
            Form::Planes(planes) => find(from, |word| !planes.settled(word)),
        }
    }

    pub(super) fn settled_within(&self, places: Range<usize>) -> usize {
        match &self.form {
            Form::Runs(runs) => runs.settled_within(places),
            Form::Planes(planes) => planes.settled_within(places),
        }
    }

    #[cfg(test)]
    pub(super) fn heap_bytes(&self) -> usize {
        match &self.form {
            Form::Runs(Runs(runs)) => runs.capacity() * size_of::<Run>(),
            Form::Planes(Planes { planes, .. }) => planes.capacity() * PLANE_BYTES,
        }
    }

    /// Takes the smaller form, and gives back what has become too much room.
    fn fit(&mut self) {
        match &mut self.form {
            Form::Runs(runs) if runs.outgrown() => self.form = Form::Planes(runs.to_planes()),
            // Powers of two, so that doubling ends at the size of planes and not beyond it.
            Form::Runs(Runs(runs)) => runs.shrink_to(runs.len().next_power_of_two()),
            Form::Planes(planes) => {
                // Half as many as there may be, or a page might go back and forth.
                let runs_max = planes.planes.len() * PLANE_BYTES / size_of::<Run>() / 2;
                if let Some(runs) = planes.to_runs(runs_max) {
                    self.form = Form::Runs(runs);
                }
            }
        }
    }
}

impl Default for Form {
    fn default() -> Self {
        Form::Runs(Runs::default())
    }
}

impl Run {
    fn new(places: Range<usize>, outcome: Outcome) -> Self {
        debug_assert!(places.start < places.end && places.end <= PAGE_LEN);
        Run {
            start: places.start as u16,
            len_and_outcome: (places.len() as u16 - 1) * Outcome::ALL.len() as u16 + outcome as u16,
        }
    }

    fn start(self) -> usize {
        usize::from(self.start)
    }

    fn end(self) -> usize {
        self.start() + usize::from(self.len_and_outcome) / Outcome::ALL.len() + 1
    }

    fn outcome(self) -> Outcome {
        Outcome::ALL[usize::from(self.len_and_outcome) % Outcome::ALL.len()]
    }
}

impl Runs {
    /// The index of the first run that ends after `place`.
    fn after(&self, place: usize) -> usize {
        self.0.partition_point(|run| run.end() <= place)
    }

    fn outcome(&self, place: usize) -> Option<Outcome> {
        let run = self.0.get(self.after(place))?;
        (run.start() <= place).then(|| run.outcome())
    }

    fn settle(&mut self, places: Range<usize>, outcome: Outcome) -> usize {
        let mut newly = 0;
        let mut at = places.start;
        let mut index = self.after(at);
        while at < places.end {
            let gap_end = self.0.get(index).map_or(places.end, |run| run.start().min(places.end));
            if at < gap_end {
                newly += gap_end - at;
                index = self.insert(index, at..gap_end, outcome);
            }
            // The run at `index` holds `at`, be it old or new.
            at = self.0[index].end();
            index += 1;
        }
        newly
    }

    /// Inserts a run before the one at `index`, as one with its neighbours if they are like it, and says where it is.
    fn insert(&mut self, index: usize, gap: Range<usize>, outcome: Outcome) -> usize {
        let alike = |run: &&Run| run.outcome() == outcome;
        let before = index.checked_sub(1).map(|before| &self.0[before]).filter(alike);
        let before = before.filter(|run| run.end() == gap.start).copied();
        let after = self.0.get(index).filter(alike).filter(|run| run.start() == gap.end).copied();
        let start = before.map_or(gap.start, Run::start);
        let end = after.map_or(gap.end, Run::end);
        let run = Run::new(start..end, outcome);
        match (before, after) {
            (None, None) => self.0.insert(index, run),
            (None, Some(_)) => self.0[index] = run,
            (Some(_), None) => self.0[index - 1] = run,
            (Some(_), Some(_)) => {
                self.0[index - 1] = run;
                self.0.remove(index);
            }
        }
        index - usize::from(before.is_some())
    }

    fn first_settled(&self, from: usize) -> Option<usize> {
        self.0.get(self.after(from)).map(|run| run.start().max(from))
    }

    fn first_unsettled(&self, from: usize) -> Option<usize> {
        let mut at = from;
        for run in &self.0[self.after(from)..] {
            if run.start() > at {
                break;
            }
            at = run.end();
        }
        (at < PAGE_LEN).then_some(at)
    }

    fn settled_within(&self, places: Range<usize>) -> usize {
        let runs = self.0[self.after(places.start)..].iter().take_while(|run| run.start() < places.end);
        runs.map(|run| run.end().min(places.end) - run.start().max(places.start)).sum()
    }

    /// Whether planes would take less room.
    fn outgrown(&self) -> bool {
        let bytes = self.0.len() * size_of::<Run>();
        bytes > PLANE_BYTES && {
            let outcomes = self.0.iter().fold(0_u8, |seen, run| seen | 1 << run.outcome() as u8);
            bytes > planes_for(outcomes.count_ones() as usize) * PLANE_BYTES
        }
    }

    fn to_planes(&self) -> Planes {
        let mut planes = Planes::default();
        for run in &self.0 {
            planes.settle(run.start()..run.end(), run.outcome());
        }
        planes
    }
}

impl Planes {
    fn outcome(&self, place: usize) -> Option<Outcome> {
        self.palette[self.code_at(place).checked_sub(1)?]
    }

    fn code_at(&self, place: usize) -> usize {
        let (word, bit) = (place / 64, place % 64);
        let bits = self.planes.iter().enumerate().map(|(k, plane)| ((plane[word] >> bit & 1) as usize) << k);
        bits.sum()
    }

    fn settle(&mut self, places: Range<usize>, outcome: Outcome) -> usize {
        if self.settled_within(places.clone()) == places.len() {
            return 0; // and give no code to an outcome that nothing has
        }
        let code = self.code_of(outcome);
        let words = places.start / 64..places.end.div_ceil(64);
        words.map(|word| self.set(word, mask(word, &places) & !self.settled(word), code)).sum()
    }

    /// Gives the unsettled messages of `bits` a code, and says how many they are.
    fn set(&mut self, word: usize, bits: u64, code: usize) -> usize {
        debug_assert_eq!(bits & self.settled(word), 0, "a settled message stays as it is");
        for (k, plane) in self.planes.iter_mut().enumerate() {
            if code >> k & 1 == 1 {
                plane[word] |= bits;
            }
        }
        bits.count_ones() as usize
    }

    /// The code of an outcome, with the planes it needs.
    fn code_of(&mut self, outcome: Outcome) -> usize {
        let known = self.palette.iter().position(|known| known.is_none_or(|known| known == outcome));
        let index = known.expect("the palette has room for all outcomes");
        self.palette[index] = Some(outcome);
        let planes = planes_for(index + 1);
        if planes > self.planes.len() {
            self.planes.reserve_exact(planes - self.planes.len());
            self.planes.resize(planes, [0; WORDS]);
        }
        index + 1
    }

    /// Which messages of a word are settled.
    fn settled(&self, word: usize) -> u64 {
        self.planes.iter().fold(0, |settled, plane| settled | plane[word])
    }

    /// Which messages of a word have another code than this.
    fn differing(&self, word: usize, code: usize) -> u64 {
        let planes = self.planes.iter().enumerate();
        planes.fold(0, |differing, (k, plane)| {
            differing | if code >> k & 1 == 1 { !plane[word] } else { plane[word] }
        })
    }

    fn settled_within(&self, places: Range<usize>) -> usize {
        let words = places.start / 64..places.end.div_ceil(64);
        words.map(|word| (self.settled(word) & mask(word, &places)).count_ones() as usize).sum()
    }

    /// The same with the messages of one outcome unsettled.
    fn without(&self, dropped: Outcome) -> Planes {
        let mut kept = Planes::default();
        for (index, outcome) in self.palette.iter().flatten().enumerate() {
            if *outcome != dropped {
                let code = kept.code_of(*outcome);
                for word in 0..WORDS {
                    kept.set(word, !self.differing(word, index + 1), code);
                }
            }
        }
        kept
    }

    /// The same as runs, if they are no more than `runs_max`.
    fn to_runs(&self, runs_max: usize) -> Option<Runs> {
        let mut runs = Vec::with_capacity(runs_max);
        let mut at = 0;
        while let Some(start) = find(at, |word| self.settled(word)) {
            if runs.len() == runs_max {
                return None;
            }
            let code = self.code_at(start);
            let end = find(start, |word| self.differing(word, code)).unwrap_or(PAGE_LEN);
            runs.push(Run::new(start..end, self.palette[code - 1]?));
            at = end;
        }
        runs.shrink_to(runs.len().next_power_of_two());
        Some(Runs(runs))
    }
}

/// The first place from `from` on whose bit is set.
fn find(from: usize, word: impl Fn(usize) -> u64) -> Option<usize> {
    let places = from..PAGE_LEN;
    let found = |index| (index, word(index) & mask(index, &places));
    let (index, bits) = (from / 64..WORDS).map(found).find(|&(_, bits)| bits != 0)?;
    Some(index * 64 + bits.trailing_zeros() as usize)
}

/// The bits of a word that stand for `places`.
fn mask(word: usize, places: &Range<usize>) -> u64 {
    let below = |place: usize| match place.saturating_sub(word * 64) {
        bits @ 0..64 => (1_u64 << bits) - 1,
        _ => u64::MAX,
    };
    below(places.end) & !below(places.start)
}

/// How many planes tell this many outcomes, and unsettled, apart.
fn planes_for(outcomes: usize) -> usize {
    (usize::BITS - outcomes.leading_zeros()) as usize
}

const WORDS: usize = PAGE_LEN / 64;
const PLANE_BYTES: usize = WORDS * size_of::<u64>();

/// After how many more settled messages a page looks for its smaller form. A page that becomes full does.
const FIT_EVERY: usize = 64;

const _: () = assert!(PAGE_LEN.is_multiple_of(64) && PAGE_LEN.is_multiple_of(FIT_EVERY));
const _: () = assert!(PAGE_LEN * Outcome::ALL.len() <= 1 << u16::BITS, "length and outcome share a u16");

#[cfg(test)]
impl Page {
    /// Panics where an invariant does not hold.
    pub(super) fn check(&self) {
        assert_eq!(usize::from(self.settled), (0..PAGE_LEN).filter(|&at| self.outcome(at).is_some()).count());
        match &self.form {
            Form::Runs(runs) => runs.check(),
            Form::Planes(planes) => planes.check(),
        }
    }
}

#[cfg(test)]
impl Runs {
    fn check(&self) {
        for pair in self.0.windows(2) {
            assert!(pair[0].end() <= pair[1].start(), "runs are sorted and do not overlap: {pair:?}");
            let alike = pair[0].outcome() == pair[1].outcome();
            assert!(pair[0].end() < pair[1].start() || !alike, "runs are as long as can be: {pair:?}");
        }
        assert!(!self.outgrown(), "planes would be smaller than {} runs", self.0.len());
    }
}

#[cfg(test)]
impl Planes {
    fn check(&self) {
        let known = self.palette.iter().flatten().count();
        assert!(self.palette[known..].iter().all(Option::is_none), "no hole in the palette");
        let codes: std::collections::BTreeSet<_> = (0..PAGE_LEN).map(|place| self.code_at(place)).collect();
        assert!((1..=known).all(|code| codes.contains(&code)), "no code without a message: {codes:?}");
        assert!(codes.last() <= Some(&known), "no message without an outcome: {codes:?}");
        assert_eq!(self.planes.len(), planes_for(known));
        assert_eq!(self.planes.capacity(), planes_for(known));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A page, and what it should be.
    struct Pair(Page, [Option<Outcome>; PAGE_LEN]);

    impl Pair {
        fn new() -> Self {
            Pair(Page::default(), [None; PAGE_LEN])
        }

        fn settle(&mut self, places: Range<usize>, outcome: Outcome) {
            let unsettled = self.1[places.clone()].iter_mut().filter(|known| known.is_none());
            let newly = unsettled.map(|unsettled| *unsettled = Some(outcome)).count();
            assert_eq!(self.0.settle(places, outcome), newly);
        }

        fn drop_acked(&mut self) {
            self.1.iter_mut().filter(|known| **known == Some(Outcome::Acked)).for_each(|acked| *acked = None);
            assert_eq!(self.0.drop_acked(), self.1.iter().all(Option::is_none));
        }

        fn compare(&self) {
            let Pair(page, model) = self;
            page.check();
            let (mut settled, mut unsettled) = (None, None);
            for at in (0..PAGE_LEN).rev() {
                assert_eq!(page.outcome(at), model[at], "at {at}");
                *(if model[at].is_some() { &mut settled } else { &mut unsettled }) = Some(at);
                assert_eq!(page.first_settled(at), settled, "from {at}");
                assert_eq!(page.first_unsettled(at), unsettled, "from {at}");
            }
            let alike = model[0].filter(|_| model.iter().all(|known| *known == model[0]));
            assert_eq!(page.alike(), alike);
            for places in [0..PAGE_LEN, 3..64, 64..65, 100..1_000, 500..500, 1_000..PAGE_LEN] {
                let settled = model[places.clone()].iter().flatten().count();
                assert_eq!(page.settled_within(places.clone()), settled, "within {places:?}");
            }
        }

        fn is_runs(&self) -> bool {
            matches!(self.0.form, Form::Runs(_))
        }
    }

    #[derive(Clone, Debug)]
    enum Act {
        Settle(Range<usize>, Outcome),
        /// From, how many, how far apart.
        Each(usize, usize, usize, Outcome),
        DropAcked,
    }

    fn act(outcomes: usize) -> impl Strategy<Value = Act> {
        let outcome = (0..outcomes).prop_map(|index| Outcome::ALL[index]);
        let range = (0..PAGE_LEN, prop_oneof![1..4_usize, 1..100_usize, 1..=PAGE_LEN]);
        let range = range.prop_map(|(from, len)| from..(from + len).min(PAGE_LEN));
        let each = (0..PAGE_LEN, prop_oneof![1..4_usize, 1..600_usize], 1..6_usize);
        prop_oneof![
            4 => (range, outcome.clone()).prop_map(|(places, outcome)| Act::Settle(places, outcome)),
            6 => (each, outcome).prop_map(|((from, count, step), outcome)| Act::Each(from, count, step, outcome)),
            1 => Just(Act::DropAcked),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, cases: 128, ..ProptestConfig::default() })]

        #[test]
        fn a_page_is_what_a_plain_array_would_be(
            acts in (1..=Outcome::ALL.len()).prop_flat_map(|outcomes| prop::collection::vec(act(outcomes), 0..24))
        ) {
            let mut page = Pair::new();
            for act in acts {
                match act {
                    Act::Settle(places, outcome) => page.settle(places, outcome),
                    Act::Each(from, count, step, outcome) => {
                        let places = (from..PAGE_LEN).step_by(step).take(count);
                        places.for_each(|place| page.settle(place..place + 1, outcome));
                    }
                    Act::DropAcked => page.drop_acked(),
                }
                page.compare();
            }
        }
    }

    #[test]
    fn a_page_takes_the_smaller_form_as_it_fills() {
        let mut page = Pair::new();
        (0..64).step_by(2).for_each(|place| page.settle(place..place + 1, Outcome::Acked));
        assert!(page.is_runs(), "32 runs are no larger than a plane");
        (64..PAGE_LEN).step_by(2).for_each(|place| page.settle(place..place + 1, Outcome::Acked));
        assert!(!page.is_runs());
        assert_eq!(page.0.heap_bytes(), PAGE_LEN / 8, "a bit a message");
        (1..PAGE_LEN).step_by(2).for_each(|place| page.settle(place..place + 1, Outcome::Filtered));
        assert_eq!(page.0.heap_bytes(), PAGE_LEN / 4, "two bits a message");
        page.drop_acked();
        assert_eq!(page.0.heap_bytes(), PAGE_LEN / 8, "one again, for the filtered ones");
        page.settle(1..PAGE_LEN, Outcome::Filtered);
        assert!(page.is_runs());
        assert_eq!(page.0.alike(), None);
        page.compare();
        page.settle(0..1, Outcome::Filtered);
        assert_eq!(page.0.alike(), Some(Outcome::Filtered));
    }

    #[test]
    fn all_eight_outcomes_in_turn_take_four_bits_a_message() {
        let mut page = Pair::new();
        for place in 0..PAGE_LEN {
            page.settle(place..place + 1, Outcome::ALL[place % Outcome::ALL.len()]);
        }
        page.compare();
        assert_eq!(page.0.heap_bytes(), PAGE_LEN / 2);
    }

    #[test]
    fn a_call_that_settles_nothing_takes_no_room() {
        let mut page = Pair::new();
        (0..PAGE_LEN).step_by(2).for_each(|place| page.settle(place..place + 1, Outcome::Acked));
        (0..PAGE_LEN).step_by(2).for_each(|place| page.settle(place..place + 1, Outcome::Expired));
        page.compare();
        assert_eq!(page.0.heap_bytes(), PAGE_LEN / 8);
    }
}
