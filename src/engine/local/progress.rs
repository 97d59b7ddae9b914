//! How far the opening of a directory has come, told to whoever asked.

use std::sync::Arc;

use crate::contain::contained;
use crate::journal::Replayed;
use crate::stats::RecoveryProgress;

/// Who is told. The user's code: it is called with nothing locked, and may panic.
pub(crate) type Listener = Arc<dyn Fn(RecoveryProgress) + Send + Sync>;

/// It is told so often at most, beside the beginning and the end.
const STEPS_MAX: u64 = 100;

#[derive(Default)]
pub(crate) struct Progress {
    listener: Option<Listener>,
    now: RecoveryProgress,
    /// How much was read when it was last told.
    told: u64,
}

impl Progress {
    pub(crate) fn new(listener: Option<Listener>) -> Self {
        Progress { listener, ..Progress::default() }
    }

    /// `beside`: how much is to be read that is no part of the stream.
    pub(super) fn note(&mut self, replayed: &Replayed<'_>, beside: impl FnOnce() -> u64) {
        match replayed {
            Replayed::Begin { bytes, .. } if self.listener.is_some() => {
                self.now.total = bytes.saturating_add(beside());
                self.tell();
            }
            Replayed::Chunk(bytes) | Replayed::Unit { bytes, .. } => self.advance(bytes.len()),
            Replayed::Begin { .. } | Replayed::Imaged | Replayed::Lost { .. } => {}
        }
    }

    /// So many bytes more were read.
    pub(super) fn advance(&mut self, bytes: usize) {
        let read = self.now.read.saturating_add(bytes as u64);
        // What was announced was an estimate.
        self.now.read = read.min(self.now.total);
        if self.now.read - self.told >= (self.now.total / STEPS_MAX).max(1) {
            self.tell();
        }
    }

    /// All is read.
    pub(super) fn end(&mut self) {
        self.now.read = self.now.total;
        self.tell();
    }

    fn tell(&mut self) {
        self.told = self.now.read;
        let now = self.now;
        if let Some(listener) = &self.listener
            && contained(|| listener(now)).is_none()
        {
            // It panicked once: a recovery is no place to see whether it does so again.
            self.listener = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::Position;
    use crate::sync::Mutex;

    fn told(total: u64, lens: &[usize]) -> Vec<(u64, u64)> {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let listener: Listener = {
            let seen = seen.clone();
            Arc::new(move |progress| seen.lock().push((progress.read, progress.total)))
        };
        let mut progress = Progress::new(Some(listener));
        progress.note(&Replayed::Begin { checkpoint: None, bytes: total - total / 2 }, || total / 2);
        for &len in lens {
            progress.note(&Replayed::Unit { position: Position(0), bytes: &vec![0; len] }, || 0);
        }
        progress.end();
        seen.lock().clone()
    }

    #[test]
    fn it_is_told_at_each_hundredth_from_nothing_to_all() {
        let seen = told(100_000, &[10; 9_000]);
        assert_eq!(seen.len(), 92);
        assert_eq!((seen[0], seen[1], seen[91]), ((0, 100_000), (1_000, 100_000), (100_000, 100_000)));
        assert!(seen.is_sorted());
    }

    #[test]
    fn an_estimate_that_was_wrong_is_not_passed() {
        assert_eq!(told(10, &[4, 4, 4]), [(0, 10), (4, 10), (8, 10), (10, 10), (10, 10)]);
        assert_eq!(told(0, &[4]), [(0, 0), (0, 0)]);
    }
}
