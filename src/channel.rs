//! Subscriptions beside other channels in a `select!`: tokens, and deliveries through a pump.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};

use crate::engine::local::subscription::SubscriptionCore;
use crate::engine::waiters::Waiter;
use crate::handles::Delivery;
use crate::sync::thread;

const CAPACITY_MAX: usize = 65_536;

/// A token whenever there is something to take.
pub(crate) fn ready<E: Send + Sync + 'static>(core: &Arc<SubscriptionCore<E>>) -> Receiver<()> {
    let (sender, receiver) = bounded(1);
    if core.ended().is_some() {
        // A last token, and then no more: whoever looks is told why.
        let _fits = sender.send(());
        return receiver;
    }
    let waiter = Waiter::token(sender);
    core.topic.receivers.enter(core.id, &waiter);
    // What was there before gets its token here, what comes later gets it from whoever makes it available.
    core.run_timeouts();
    core.renew_tokens();
    core.watch_time();
    receiver
}

/// Deliveries through a channel, fed by a thread that ends with the broker, the subscription or the receivers.
///
/// The channel itself has no bound, and the pump keeps to the capacity: only such a channel drops what is unread when its last receiver goes (a bounded one
/// keeps it for as long as there is a sender), and that is how the pump of an idle subscription hears of it.
pub(crate) fn pump<E: Send + Sync + 'static>(
    core: &Arc<SubscriptionCore<E>>,
    capacity: usize,
) -> Receiver<Delivery<E>> {
    let (sender, receiver) = unbounded();
    let core = core.clone();
    let capacity = capacity.clamp(1, CAPACITY_MAX);
    // Without a thread the sender is dropped, and the receiver says at once that nothing will come.
    let _pump = thread::Builder::new().name("eventflow-channel".into()).spawn(move || {
        let line = PumpLine { sender, sent: AtomicU64::new(0), pump: thread::current() };
        run(&core, &Arc::new(line), capacity);
    });
    receiver
}

fn run<E: Send + Sync + 'static>(core: &Arc<SubscriptionCore<E>>, line: &Arc<PumpLine<E>>, capacity: usize) {
    let mut number = 0;
    // Room first: no lease is to age in the pump's hand.
    while line.wait_for_room(core, capacity) {
        let Ok(held) = core.wait_one(None) else { return };
        number += 1;
        let mark = Mark { number, line: Arc::downgrade(line), touched: AtomicBool::new(false) };
        if let Err(unsent) = line.sender.send(Delivery::new(core.clone(), held).marked(mark)) {
            let _stale = unsent.into_inner().release();
            return;
        }
        line.sent.store(number, Ordering::SeqCst);
    }
}

struct PumpLine<E: Send + Sync + 'static> {
    sender: Sender<Delivery<E>>,
    sent: AtomicU64,
    pump: thread::Thread,
}

impl<E: Send + Sync + 'static> PumpLine<E> {
    /// Readers tell when they look at a delivery. One that only takes deliveries out tells nothing, so now and then the pump looks for itself.
    fn wait_for_room(&self, core: &SubscriptionCore<E>, capacity: usize) -> bool {
        let mut pause = PAUSE_MIN;
        while self.sender.len() >= capacity {
            if core.ended().is_some() {
                return false;
            }
            thread::park_timeout(pause);
            pause = (pause * 2).min(PAUSE_MAX);
        }
        true
    }
}

const PAUSE_MIN: Duration = Duration::from_micros(100);
const PAUSE_MAX: Duration = Duration::from_millis(10);

/// Tells a delivery that is dropped unread in a channel's buffer (it is released) from one that a subscriber dropped (it is nacked).
///
/// A channel does not say to its contents that they are thrown away. But it is first in, first out: of the `sent` deliveries the last `len` are in the
/// buffer, and that count stands still while the buffer of the last receiver is emptied.
pub(crate) struct Mark<E: Send + Sync + 'static> {
    number: u64,
    /// Weak: a subscriber that keeps deliveries must not keep the channel open.
    line: Weak<PumpLine<E>>,
    touched: AtomicBool,
}

impl<E: Send + Sync + 'static> Mark<E> {
    /// Somebody looked at the delivery: it was read.
    pub(crate) fn touch(&self) {
        if !self.touched.swap(true, Ordering::Relaxed)
            && let Some(line) = self.line.upgrade()
        {
            line.pump.unpark();
        }
    }

    pub(crate) fn is_unread(&self) -> bool {
        if self.touched.load(Ordering::Relaxed) {
            return false;
        }
        // The pump has ended, most likely because the last receiver is emptying the buffer.
        let Some(line) = self.line.upgrade() else { return true };
        line.pump.unpark();
        // A reader may be faster than the count.
        let sent = line.sent.load(Ordering::SeqCst).max(self.number);
        self.number > sent.saturating_sub(line.sender.len() as u64)
    }
}
