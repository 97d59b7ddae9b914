//! What must hold of a ledger at every moment, checked the slow way.

use std::collections::BTreeMap;

use crate::delivery::hand_out::Ticket;
use crate::delivery::ledger::{LeaseId, Ledger, Standing};
use crate::delivery::ordering::Key;
use crate::sequence::Sequence;
use crate::time::Tick;

impl Ledger {
    /// Panics where the books do not balance. O(n).
    pub(in crate::delivery) fn check_books(&self) {
        self.settled.check();
        self.check_standings();
    }

    /// All but the marks of what is settled, which cost the most to check.
    pub(in crate::delivery) fn check_standings(&self) {
        self.check_places();
        self.check_indexes();
        self.check_runs();
        self.check_deadlines();
        self.check_lanes();
    }

    /// Every message before the cursor is in exactly one place, every one after it in none but the settled.
    fn check_places(&self) {
        let mut unplaced = 0;
        for number in 1..self.cursor.get() {
            let sequence = Sequence::new(number);
            let places = usize::from(self.settled.is_settled(sequence))
                + usize::from(self.entries.contains_key(&sequence))
                + self.runs.values().filter(|run| run.holds(sequence)).count();
            assert!(places <= 1, "{sequence:?} is in {places} places: {self:?}");
            unplaced += usize::from(places == 0);
        }
        assert!(unplaced == 0 || self.examining > 0, "{unplaced} messages are in no place: {self:?}");
        assert!(self.entries.keys().all(|&sequence| sequence < self.cursor), "{self:?}");
        let run_ends = self.runs.values().filter_map(|run| run.open_sequences().last());
        assert!(run_ends.into_iter().all(|last| last < self.cursor), "{self:?}");
    }

    fn check_indexes(&self) {
        let mut indexed = [0; 7];
        let mut held = 0;
        for (&sequence, entry) in &self.entries {
            let (index, found) = match entry.standing {
                Standing::Fresh => (0, self.fresh.contains(&sequence)),
                Standing::Again { turn } => (1, self.again.contains(&(turn, sequence))),
                Standing::Delayed { until } => (2, self.delayed.contains(&(until, sequence))),
                Standing::Leased { deadline, .. } => (3, self.deadlines.contains(&(deadline, sequence))),
                Standing::Parked => (4, self.parked.contains_key(&sequence)),
                Standing::Queued | Standing::Committing { .. } | Standing::Burying => (5, true),
            };
            assert!(found, "{sequence:?} is not where it stands: {self:?}");
            indexed[index] += 1;
            let holds = matches!(entry.standing, Standing::Leased { .. } | Standing::Committing { .. });
            held += u64::from(holds);
            if !holds && entry.standing != Standing::Burying && entry.expires != Tick::NEVER {
                indexed[6] += 1;
                assert!(self.expiring.contains(&(entry.expires, sequence)), "{self:?}");
            }
        }
        let lengths = [self.fresh.len(), self.again.len(), self.delayed.len(), self.deadlines.len()];
        assert_eq!(lengths, indexed[..4], "an index holds what does not stand there: {self:?}");
        assert_eq!([self.parked.len(), self.expiring.len()], [indexed[4], indexed[6]], "{self:?}");
        let in_runs: u64 = self.runs.values().map(|run| u64::from(run.open.count_ones())).sum();
        assert_eq!(self.outstanding, held + in_runs, "outstanding is what is leased: {self:?}");
    }

    fn check_runs(&self) {
        self.runs.check();
    }

    /// Who shows the hand-out that holds a message is told when it ends, and nobody else is.
    fn check_deadlines(&self) {
        let ticket = |sequence, lease| Ticket {
            sequence,
            attempt: 1,
            lease: Some(lease),
            generation: self.generation,
        };
        for (&sequence, entry) in &self.entries {
            let (held_by, ends) = match entry.standing {
                Standing::Leased { lease, deadline } => (lease, Some(deadline)),
                Standing::Committing { lease, .. } => (lease, None),
                _ => (LeaseId::of_run(u64::MAX >> 1), None),
            };
            assert_eq!(self.deadline_of(ticket(sequence, held_by)), ends, "{sequence:?}: {self:?}");
            assert_eq!(
                self.deadline_of(ticket(sequence, LeaseId::single(self.leases + 1))),
                None,
                "{sequence:?}"
            );
        }
        for (lease, run) in self.runs.iter() {
            let ends = |sequence| self.deadline_of(ticket(sequence, lease)) == Some(run.deadline);
            assert!(run.open_sequences().all(ends), "{lease:?}: {self:?}");
        }
    }

    /// Per key: the leased ones come first, and only the first of those that wait may be anything but queued.
    fn check_lanes(&self) {
        let mut lanes: BTreeMap<Key, Vec<(Sequence, Standing)>> = BTreeMap::new();
        for (&sequence, entry) in &self.entries {
            if let Some(key) = entry.key {
                lanes.entry(key).or_default().push((sequence, entry.standing));
            }
        }
        for (key, mut lane) in lanes {
            lane.sort_by_key(|member| member.0);
            let in_place =
                |(n, member): (usize, &(Sequence, Standing))| self.lanes.place(key, member.0) == Some(n);
            assert!(lane.iter().enumerate().all(in_place), "{key:?} is out of order: {self:?}");
            if matches!(lane[0].1, Standing::Burying | Standing::Parked) {
                // Rejected, it may have left leased ones behind it; they wait for it if they are given back.
                assert!(self.lanes.is_head(key, lane[0].0), "{key:?} has another head: {self:?}");
                continue;
            }
            let held = |member: &&(Sequence, Standing)| {
                matches!(member.1, Standing::Leased { .. } | Standing::Committing { .. })
            };
            let leased = lane.iter().take_while(held).count();
            assert_eq!(lane.iter().filter(held).count(), leased, "a run of a key has a gap: {self:?}");
            assert!(self.lanes.is_head(key, lane[0].0), "{key:?} has another head: {self:?}");
            assert_eq!(
                self.lanes.follower(key),
                lane.get(leased).map(|m| m.0),
                "{key:?}'s follower: {self:?}"
            );
            let waiting = &lane[leased..];
            let queued = waiting.iter().filter(|member| member.1 == Standing::Queued).count();
            assert!(queued + 1 >= waiting.len(), "two of {key:?} may go: {self:?}");
            let first_waits = waiting.first().is_none_or(|member| member.1 == Standing::Queued);
            assert_eq!(first_waits, leased > 0 || waiting.is_empty(), "{key:?} is stuck: {self:?}");
        }
    }
}
