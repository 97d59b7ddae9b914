//! Subscriptions beside other channels in a `select!`: tokens, and deliveries through a pump.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use crossbeam_channel::{Receiver, Sender, bounded};

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
pub(crate) fn pump<E: Send + Sync + 'static>(
    core: &Arc<SubscriptionCore<E>>,
    capacity: usize,
) -> Receiver<Delivery<E>> {
    let (sender, receiver) = bounded(capacity.min(CAPACITY_MAX));
    let core = core.clone();
    let line = Arc::new(PumpLine { sender, sent: AtomicU64::new(0) });
    let gone = Arc::new(AtomicBool::new(false));
    // Without a thread the sender is dropped, and the receiver says at once that nothing will come.
    let _pump =
        thread::Builder::new().name("eventflow-channel".into()).spawn(move || run(&core, &line, &gone));
    receiver
}

fn run<E: Send + Sync + 'static>(
    core: &Arc<SubscriptionCore<E>>,
    line: &Arc<PumpLine<E>>,
    gone: &Arc<AtomicBool>,
) {
    let mut number = 0;
    let mut held = Vec::with_capacity(1);
    while core.wait(1, None, &mut held).is_ok() {
        for held in held.drain(..) {
            number += 1;
            let mark = Mark {
                number,
                line: Arc::downgrade(line),
                receiver_gone: gone.clone(),
                touched: AtomicBool::new(false),
            };
            let delivery = Delivery::new(core.clone(), held).marked(mark);
            match line.sender.send(delivery) {
                Ok(()) => line.sent.store(number, Ordering::SeqCst),
                Err(unsent) => {
                    gone.store(true, Ordering::SeqCst);
                    let _stale = unsent.into_inner().release();
                    return;
                }
            }
        }
    }
}

struct PumpLine<E: Send + Sync + 'static> {
    sender: Sender<Delivery<E>>,
    sent: AtomicU64,
}

/// Tells a delivery that is dropped unread in a channel's buffer (it is released) from one that a subscriber dropped (it is nacked).
///
/// A channel does not say to its contents that they are thrown away. But it is first in, first out: of the `sent` deliveries the last `len` are in the
/// buffer, and that count stands still while the last receiver empties it.
pub(crate) struct Mark<E: Send + Sync + 'static> {
    number: u64,
    /// Weak: a subscriber that keeps deliveries must not keep the channel open.
    line: Weak<PumpLine<E>>,
    receiver_gone: Arc<AtomicBool>,
    touched: AtomicBool,
}

impl<E: Send + Sync + 'static> Mark<E> {
    /// Somebody looked at the delivery: it was read.
    pub(crate) fn touch(&self) {
        self.touched.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_unread(&self) -> bool {
        if self.touched.load(Ordering::Relaxed) {
            return false;
        }
        match self.line.upgrade() {
            Some(line) => {
                let read = line.sent.load(Ordering::SeqCst).max(self.number) - line.sender.len() as u64;
                self.number > read
            }
            None => self.receiver_gone.load(Ordering::SeqCst),
        }
    }
}
