//! What is appended to several logs becomes visible in all of them at one instant.

use std::sync::Arc;

use crate::sequence::Sequence;
use crate::sync::RwLock;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Shared by the tails that move together. Closed at first; opening it, one store, is the instant.
#[derive(Debug)]
pub(crate) struct Gate {
    open: AtomicBool,
}

impl Gate {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Gate { open: AtomicBool::new(false) })
    }

    /// From now on every reader of every tail behind it sees what is behind it.
    pub(crate) fn open(&self) {
        // Pairs with the load in `Gated::tail`. It comes after every tail behind the gate was marked: who sees it open through one
        // tail finds the mark on the others, or what they were after.
        self.open.store(true, Ordering::Release);
    }

    fn is_open(&self) -> bool {
        self.open.load(Ordering::Acquire)
    }
}

/// Set in a tail that a gate may stand before: look there.
const GATED: u64 = 1 << 63;

/// The end of a log as readers see it: one number, or, for the moment in which a transaction commits, two of which a gate says which.
///
/// Written by one writer at a time; read without a lock, but for that moment.
#[derive(Debug)]
pub(super) struct Tail {
    /// With `GATED` set: the end before the gate opens.
    at: AtomicU64,
    /// Invariant: there while `at` has the mark.
    gated: RwLock<Option<Gated>>,
}

#[derive(Debug)]
struct Gated {
    gate: Arc<Gate>,
    behind: Sequence,
}

impl Tail {
    pub(super) fn new(at: Sequence) -> Self {
        Tail { at: AtomicU64::new(at.get()), gated: RwLock::new(None) }
    }

    pub(super) fn get(&self) -> Sequence {
        // Pairs with the Release in `set`: whoever sees the tail sees the slots before it.
        let at = self.at.load(Ordering::Acquire);
        if at & GATED == 0 { Sequence::new(at) } else { self.look_at_gate() }
    }

    #[cold]
    fn look_at_gate(&self) -> Sequence {
        loop {
            let at = self.at.load(Ordering::Acquire);
            if at & GATED == 0 {
                return Sequence::new(at);
            }
            // The mark may be that of an earlier gate than the one found here: that one has let all through, and this one's `at` is
            // where it ended. So the number is read again, now that the gate is known.
            if let Some(gated) = &*self.gated.read() {
                if gated.gate.is_open() {
                    return gated.behind;
                }
                return Sequence::new(self.at.load(Ordering::Acquire) & !GATED);
            }
            // Taken away since: the number that was set before that has no mark.
        }
    }

    /// The writer's alone: shows readers all up to there.
    pub(super) fn set(&self, at: Sequence) {
        self.at.store(at.get(), Ordering::Release);
    }

    /// The writer's alone: readers see all up to there once the gate opens.
    pub(super) fn set_behind(&self, gate: &Arc<Gate>, behind: Sequence) {
        let at = self.at.load(Ordering::Relaxed);
        debug_assert_eq!(at & GATED, 0, "one gate at a time");
        *self.gated.write() = Some(Gated { gate: gate.clone(), behind });
        self.at.store(at | GATED, Ordering::Release);
    }

    /// The writer's alone, once the gate is open: the tail is one number again.
    pub(super) fn ungate(&self) {
        let Some(behind) = self.gated.read().as_ref().map(|gated| gated.behind) else { return };
        // First the number: who finds no gate any more reads it again.
        self.set(behind);
        *self.gated.write() = None;
    }
}

#[cfg(all(test, not(any(eventflow_loom, eventflow_shuttle))))]
mod tests {
    use super::*;

    #[test]
    fn what_is_behind_a_gate_is_seen_when_it_opens() {
        let (a, b, gate) = (Tail::new(Sequence::new(1)), Tail::new(Sequence::new(5)), Gate::new());
        a.set_behind(&gate, Sequence::new(3));
        b.set_behind(&gate, Sequence::new(9));
        assert_eq!((a.get().get(), b.get().get()), (1, 5));
        gate.open();
        assert_eq!((a.get().get(), b.get().get()), (3, 9));
        a.ungate();
        assert_eq!((a.get().get(), b.get().get()), (3, 9));
        b.ungate();
        assert_eq!((a.get().get(), b.get().get()), (3, 9));
    }
}

#[cfg(all(test, eventflow_loom))]
mod loom_tests {
    use loom::thread;

    use super::*;

    fn seq(n: u64) -> Sequence {
        Sequence::new(n)
    }

    /// Two gates, one after the other, before the same two tails.
    #[test]
    fn loom_no_reader_sees_one_tail_behind_a_gate_and_not_the_other() {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(3);
        builder.check(|| {
            let tails = Arc::new((Tail::new(seq(1)), Tail::new(seq(1))));
            // The reader is the spawned one: where the writer reads what it then writes, loom takes no other thread's earlier read for a race with that.
            let reader = {
                let tails = tails.clone();
                thread::spawn(move || {
                    let first = tails.0.get();
                    let second = tails.1.get();
                    assert!(
                        second >= first,
                        "the other of a pair that was seen is there: {first:?} {second:?}"
                    );
                    assert!(tails.0.get() >= first, "a tail never goes back");
                })
            };
            for end in 2..=3 {
                let gate = Gate::new();
                tails.0.set_behind(&gate, seq(end));
                tails.1.set_behind(&gate, seq(end));
                gate.open();
                tails.0.ungate();
                tails.1.ungate();
            }
            reader.join().expect("the reader ends");
            assert_eq!((tails.0.get(), tails.1.get()), (seq(3), seq(3)));
        });
    }
}
