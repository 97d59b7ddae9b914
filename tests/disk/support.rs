//! What the tests share.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use eventflow::{Broker, Subscription};

static NUMBER: AtomicU64 = AtomicU64::new(0);

/// A directory of a test's own, gone with it.
pub(crate) struct Dir(PathBuf);

impl Dir {
    pub(crate) fn new() -> Dir {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("eventflow-test-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("a temporary directory");
        Dir(dir)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    pub(crate) fn open(&self) -> Broker {
        Broker::open(&self.0).expect("it opens")
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

/// Ends the broker in good order.
pub(crate) fn end(broker: Broker) {
    broker.shutdown(Duration::ZERO).expect("it is synced");
}

/// Takes and acks all that is there.
pub(crate) fn drain<E: Clone + Send + Sync + 'static>(subscription: &Subscription<E>) -> Vec<E> {
    let mut events = Vec::new();
    while let Ok(delivery) = subscription.try_recv() {
        events.push(E::clone(&delivery));
        delivery.ack().expect("we hold it");
    }
    events
}
