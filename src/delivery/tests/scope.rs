//! Every short life of a small subscription: all sequences of operations up to a depth, on the real ledger.
//!
//! What is expected here is kept apart from the ledger's own books: who was told what, and what follows from that by the promises alone.

use crate::delivery::ledger::Rules;
use crate::delivery::tests::{ACK_DEADLINE, Letter, Rig, rules, seq};
use crate::options::{DeliveryMode, MessageStatus};

const MESSAGES: usize = 3;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Op {
    Publish,
    /// One subscriber takes them one by one.
    LeaseOne,
    /// The other takes what there is.
    LeaseAll,
    /// The ack deadline of all that is leased passes, and nobody has noticed.
    Pass,
    SeekToStart,
    Ack(usize),
    Nack(usize),
    Release(usize),
    /// The deadline is now.
    ExtendZero(usize),
}

#[derive(Clone, Copy, Debug)]
struct Lease {
    message: usize,
    deadline: u64,
    generation: u32,
    /// Ended by a settlement, its own or an earlier one's of its run, or by a seek.
    ended: bool,
}

/// What outsiders know.
struct World {
    rig: Rig,
    ordered: bool,
    leases: Vec<Lease>,
    acked: [bool; MESSAGES],
    generation: u32,
    transitions: u64,
}

impl World {
    fn new(rules: Rules) -> Self {
        let ordered = rules.ordered;
        let mut world = World {
            rig: Rig::new(rules),
            ordered,
            leases: Vec::new(),
            acked: [false; MESSAGES],
            generation: 0,
            transitions: 0,
        };
        world.publish();
        world.publish();
        world
    }

    /// The first two messages share a key, the third has its own.
    fn publish(&mut self) {
        let key = Some(u64::from(self.rig.letters.len() == 2));
        self.rig.publish(Letter { key, ..Letter::default() });
    }

    fn runs(&self, lease: &Lease) -> bool {
        !lease.ended && lease.deadline > self.rig.now
    }

    /// The first of its key that is not acked.
    fn in_turn(&self, message: usize) -> bool {
        !self.ordered || message != 1 || self.acked[0]
    }

    /// The operations that make sense now. Of the hand-outs of a message, the newest and one older: all older ones are as stale.
    fn ops(&self) -> Vec<Op> {
        let mut ops = vec![Op::LeaseOne, Op::LeaseAll, Op::Pass, Op::SeekToStart];
        if self.rig.letters.len() < MESSAGES {
            ops.push(Op::Publish);
        }
        for message in 0..MESSAGES {
            let of_it = (0..self.leases.len()).rev().filter(|&which| self.leases[which].message == message);
            for which in of_it.take(2) {
                ops.extend([Op::Ack(which), Op::Nack(which), Op::Release(which), Op::ExtendZero(which)]);
            }
        }
        ops
    }

    fn act(&mut self, op: Op) {
        self.transitions += 1;
        match op {
            Op::Publish => self.publish(),
            Op::LeaseOne => drop(self.lease(1)),
            Op::LeaseAll => drop(self.lease(MESSAGES as u64)),
            Op::Pass => self.rig.now += ACK_DEADLINE,
            Op::SeekToStart => {
                self.rig.ledger.seek_to(seq(1));
                self.acked = [false; MESSAGES];
                self.generation += 1;
                self.leases.iter_mut().for_each(|lease| lease.ended = true);
            }
            Op::Ack(which) => drop(self.ack(which)),
            Op::Nack(which) => {
                self.notice();
                let done = self.rig.nack(self.rig.tickets[which], None);
                self.end(which, done);
            }
            Op::Release(which) => {
                self.notice();
                let done = self.rig.release(self.rig.tickets[which]);
                self.end(which, done);
            }
            Op::ExtendZero(which) => {
                self.notice();
                self.rig.catch_up();
                let now = self.rig.tick();
                let done = self.rig.ledger.extend(self.rig.tickets[which], now);
                assert_eq!(done, self.runs(&self.leases[which]), "a lease is extended while it runs");
                if done {
                    self.leases[which].deadline = self.rig.now;
                }
            }
        }
    }

    fn lease(&mut self, max: u64) -> usize {
        self.notice();
        let first = self.leases.len();
        for place in self.rig.lease(max) {
            let message = self.rig.tickets[place].sequence.get() as usize - 1;
            let running = self.leases.iter().any(|lease| lease.message == message && self.runs(lease));
            assert!(!running, "P6: message {message} is leased while a lease on it runs");
            assert!(!self.acked[message], "P8, P15: message {message} is delivered after its ack");
            let behind = self.leases[first..].iter().any(|lease| lease.message == 0);
            assert!(self.in_turn(message) || behind, "P12: message 1 overtakes message 0 of its key");
            let deadline = self.rig.now + ACK_DEADLINE;
            self.leases.push(Lease { message, deadline, generation: self.generation, ended: false });
        }
        self.leases.len() - first
    }

    fn ack(&mut self, which: usize) -> bool {
        if self.rig.mode() == DeliveryMode::ExactlyOnce {
            self.notice();
        }
        let Lease { message, generation, .. } = self.leases[which];
        let held = self.runs(&self.leases[which]);
        let others: Vec<_> =
            self.leases.iter().filter(|lease| lease.message == message && !lease.ended).copied().collect();
        let newest = self.leases.iter().rposition(|lease| lease.message == message) == Some(which);
        let done = self.rig.ack(self.rig.tickets[which]);
        let acked = self.rig.ledger.status(seq(message as u64 + 1)) == MessageStatus::Acked;
        assert_eq!(acked, self.acked[message] || done, "P8: the answer is the truth");
        let possible = !self.acked[message] && generation == self.generation && self.in_turn(message);
        if self.rig.mode() == DeliveryMode::ExactlyOnce {
            assert_eq!(done, held && possible, "P8: taken exactly while its lease runs");
        } else if newest || others.is_empty() {
            assert_eq!(done, possible, "P8: taken while nobody else has it");
        } else if others.iter().any(|lease| self.runs(lease)) {
            assert!(!done, "P8: another subscriber holds it");
        } else {
            // The other's lease has run out. Whether that was noticed may decide, in this mode.
            assert!(!done || possible, "P8: not twice, not out of turn, not from before a seek");
        }
        // Out of turn, a running lease is released by the attempt.
        self.acked[message] |= done;
        self.end(which, done || held);
        done
    }

    /// Most calls notice first which leases have run out.
    fn notice(&mut self) {
        for which in 0..self.leases.len() {
            if !self.leases[which].ended && !self.runs(&self.leases[which]) {
                self.end(which, true);
            }
        }
    }

    /// The hand-out has said its last word, if it had one.
    fn end(&mut self, which: usize, had_it: bool) {
        if had_it {
            self.leases[which].ended = true;
            let acked = self.acked[self.leases[which].message];
            if !acked {
                self.end_those_after(which);
            }
        }
    }

    /// Those after it in its run of a key are released with it.
    fn end_those_after(&mut self, which: usize) {
        if self.ordered && self.leases[which].message == 0 {
            self.leases.iter_mut().filter(|lease| lease.message == 1).for_each(|lease| lease.ended = true);
        }
    }

    /// P8, P12, by the clock: what outsiders know says which of the newest hand-outs can be acked together. Asking changes nothing.
    fn ask_of_commits(&self) {
        let newest = |message| self.leases.iter().rposition(|lease| lease.message == message);
        let newest: Vec<_> = (0..MESSAGES).filter_map(newest).collect();
        for members in 1..1_u32 << newest.len() {
            let those = (0..newest.len()).filter(|n| members & (1 << n) != 0).map(|n| newest[n]);
            let has_first = those.clone().any(|which| self.leases[which].message == 0);
            let can = |which: usize| {
                let message = self.leases[which].message;
                let possible = !self.acked[message] && self.leases[which].generation == self.generation;
                possible && self.runs(&self.leases[which]) && (self.in_turn(message) || has_first)
            };
            let refused = those.clone().filter(|&which| !can(which)).count() as u64;
            let tickets = those.map(|which| self.rig.tickets[which]);
            let found = self.rig.ledger.cannot_commit(tickets, self.rig.tick());
            assert_eq!(found, refused, "P8: how many of the hand-outs {members:b} cannot be committed");
        }
    }

    /// Commits these hand-outs, which can be.
    fn commit(&mut self, those: std::ops::Range<usize>) {
        let tickets = &self.rig.tickets[those.clone()].to_vec();
        assert_eq!(self.rig.commit(tickets), 0, "P8: running leases, whole runs");
        for which in those {
            self.acked[self.leases[which].message] = true;
            self.leases[which].ended = true;
        }
    }

    /// All that runs is spared, and runs out: nobody's attempt is spent, and the next hand-out's may be.
    fn spare(&mut self) {
        let spared: Vec<_> = (0..self.leases.len()).filter(|&which| self.runs(&self.leases[which])).collect();
        spared.iter().for_each(|&which| self.rig.ledger.spare(self.rig.tickets[which]));
        let expired = self.rig.ledger.counts().leases_expired;
        let unnoticed = self.rig.ledger.outstanding() - spared.len() as u64;
        for spent in 0..2 {
            self.act(Op::Pass);
            let handed = self.lease(MESSAGES as u64);
            let of_now = &self.rig.tickets[self.rig.tickets.len() - handed..];
            for &which in &spared {
                let before = self.rig.tickets[which];
                let again = of_now.iter().find(|ticket| ticket.sequence == before.sequence);
                // Behind the first of its run it is released, whatever that one's end was.
                let spent = if self.in_turn(self.leases[which].message) { spent } else { 0 };
                assert_eq!(again.map(|ticket| ticket.attempt), Some(before.attempt + spent), "{before:?}");
            }
            if spent == 0 {
                let expired = self.rig.ledger.counts().leases_expired - expired;
                assert!(expired <= unnoticed, "what was spared does not count as expired: {expired}");
            }
        }
    }

    /// P9: whatever happened, all that was published and is not settled comes, is taken, and then there is silence.
    fn drain(&mut self) {
        for _ in 0..10 {
            self.act(Op::Pass);
            let first = self.leases.len();
            if self.lease(MESSAGES as u64) == 0 {
                break;
            }
            // Now one by one, now together.
            if self.transitions.is_multiple_of(2) {
                self.commit(first..self.leases.len());
                continue;
            }
            for which in first..self.leases.len() {
                assert!(self.ack(which), "P8: a running lease, in turn");
            }
        }
        for (message, acked) in self.acked[..self.rig.letters.len()].iter().enumerate() {
            assert!(acked, "P9: message {message} is lost");
        }
        assert_eq!(
            (self.rig.ledger.outstanding(), self.rig.ledger.entries()),
            (0, 0),
            "nothing is left over"
        );
    }
}

/// Tries every continuation of `ops`; each is lived from its beginning. Gives how many were, and of how many
/// operations.
fn explore(rules: &Rules, ops: &mut Vec<Op>, depth: usize) -> (u64, u64) {
    let mut world = World::new(rules.clone());
    ops.iter().for_each(|op| world.act(*op));
    world.ask_of_commits();
    world.rig.ledger.check_standings();
    let next = if ops.len() < depth { world.ops() } else { Vec::new() };
    if !next.is_empty() {
        // Once more, with another end. Not of the longest lives, which are the most by far.
        let mut spared = World::new(rules.clone());
        ops.iter().for_each(|op| spared.act(*op));
        spared.spare();
    }
    world.drain();
    let (mut lives, mut transitions) = (1, world.transitions);
    for op in next {
        ops.push(op);
        let more = explore(rules, ops, depth);
        (lives, transitions) = (lives + more.0, transitions + more.1);
        ops.pop();
    }
    (lives, transitions)
}

/// Says which life it was that broke a promise.
struct Life(Vec<Op>);

impl Drop for Life {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("after {:?}", self.0);
        }
    }
}

fn explore_all(name: &str, rules: Rules) {
    let depth = std::env::var("EVENTFLOW_SCOPE").ok().and_then(|depth| depth.parse().ok()).unwrap_or(5);
    let mut life = Life(Vec::new());
    let (lives, transitions) = explore(&rules, &mut life.0, depth);
    println!("{name}: {lives} lives of up to {depth} operations, {transitions} transitions");
    assert!(lives > 1_000, "the scope is not empty: {lives}");
}

#[test]
fn p6_p8_p9_hold_in_every_short_life_of_a_plain_subscription() {
    explore_all("plain", rules());
}

#[test]
fn p6_p8_p9_p12_hold_in_every_short_life_of_an_ordered_subscription() {
    explore_all("ordered", Rules { ordered: true, ..rules() });
}

#[test]
fn p6_p8_p9_p15_hold_in_every_short_life_of_an_exactly_once_subscription() {
    explore_all("exactly once", Rules { mode: DeliveryMode::ExactlyOnce, ..rules() });
}
