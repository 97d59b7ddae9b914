//! What the tests share: directories, and every way in which a broker ends and comes again.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use bytes::Bytes;
use eventflow::{Broker, Codec, CodecError, Delivery, ManualClock, Message, Receipt, Subscription, Topic};

pub(crate) const SECOND: Duration = Duration::from_secs(1);

static NUMBER: AtomicU64 = AtomicU64::new(0);

/// A directory of a test's own, gone with it.
pub(crate) struct Dir(PathBuf);

impl Dir {
    pub(crate) fn new() -> Dir {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("eventflow-test-{}-{number}", std::process::id()));
        fs::create_dir_all(&dir).expect("a temporary directory");
        Dir(dir)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    #[track_caller]
    pub(crate) fn open(&self) -> Broker {
        Broker::open(&self.0).expect("it opens")
    }

    /// Opens it on a clock that stands where the test has set it.
    #[track_caller]
    pub(crate) fn open_at(&self, clock: &ManualClock) -> Broker {
        Broker::builder().dir(&self.0).clock(clock.clone()).build().expect("it opens")
    }

    /// What a process leaves that ends now, while nobody writes.
    pub(crate) fn copy(&self) -> Dir {
        let copy = Dir::new();
        copy_all(&self.0, &copy.0);
        copy
    }
}

fn copy_all(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).expect("it is a directory") {
        let entry = entry.expect("it has a name");
        let target = to.join(entry.file_name());
        if entry.file_type().expect("it is something").is_dir() {
            fs::create_dir(&target).expect("a new directory");
            copy_all(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).expect("it is copied");
        }
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).ok();
    }
}

/// How a broker ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// `shutdown`.
    Shutdown,
    /// All handles are dropped.
    Dropped,
    /// The process is gone at once: what it had written is there.
    Killed,
}

pub(crate) const ENDS: [End; 3] = [End::Shutdown, End::Dropped, End::Killed];

/// What comes between an end and the look at what is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Between {
    Nothing,
    /// The directory is opened, nothing in it, and it ends again.
    Untouched,
    /// Topics and subscriptions are opened, and it ends again.
    Opened,
    /// Checkpoints are taken, of what is open, and then of what is not.
    Checkpoints,
}

/// Ends the broker; what is held goes with it. Gives the directory to go on with.
pub(crate) fn ended<T>(end: End, dir: Dir, broker: Broker, held: T) -> Dir {
    match end {
        End::Shutdown => {
            broker.shutdown(Duration::ZERO).expect("it is synced");
            drop((held, broker));
            dir
        }
        End::Dropped => {
            drop((held, broker));
            dir
        }
        End::Killed => {
            let left = dir.copy();
            drop((held, broker));
            left
        }
    }
}

/// Opens what `open` opens, does `before`, ends the broker in every way, once and twice, and lets `after` look at what is there then.
///
/// `before` gives what it holds, to the broker's end, and what `after` is to know.
pub(crate) fn over_restarts<T, H, M>(
    open: impl Fn(&Broker) -> T,
    before: impl Fn(&T, &ManualClock) -> (H, M),
    after: impl Fn(&T, M, End, &ManualClock),
) {
    for end in ENDS {
        for between in [Between::Nothing, Between::Untouched, Between::Opened, Between::Checkpoints] {
            // A directory that was left in good order is nothing but less than one that was not.
            if end == End::Shutdown && matches!(between, Between::Untouched | Between::Checkpoints) {
                continue;
            }
            // Shown when the test fails.
            println!("{end:?}, then {between:?}");
            let clock = ManualClock::new();
            let dir = Dir::new();
            let broker = dir.open_at(&clock);
            let opened = open(&broker);
            let (held, known) = before(&opened, &clock);
            if between == Between::Checkpoints {
                write_much(&broker);
            }
            let mut dir = ended(end, dir, broker, (held, opened));
            if between != Between::Nothing {
                let broker = dir.open_at(&clock);
                let opened = (between == Between::Opened).then(|| open(&broker));
                if between == Between::Checkpoints {
                    write_much(&broker);
                }
                dir = ended(end, dir, broker, opened);
            }
            let broker = dir.open_at(&clock);
            let opened = open(&broker);
            after(&opened, known, end, &clock);
        }
    }
}

/// So much that checkpoints are taken of what else there is. Nothing of it is kept.
pub(crate) fn write_much(broker: &Broker) {
    let bulk = broker.topic::<Bytes>("bulk-for-checkpoints").create().expect("a new topic");
    let blob = Bytes::from(vec![7; 4 << 20]);
    for _ in 0..5 {
        send(&bulk, blob.clone());
    }
    broker.delete_topic("bulk-for-checkpoints").expect("it is there");
}

/// Ends the broker in good order.
#[track_caller]
pub(crate) fn end(broker: Broker) {
    broker.shutdown(Duration::ZERO).expect("it is synced");
}

/// Publishes what must be taken.
#[track_caller]
pub(crate) fn send<E: Send + Sync + 'static>(topic: &Topic<E>, message: impl Into<Message<E>>) -> Receipt {
    match topic.publish(message) {
        Ok(receipt) => receipt,
        Err(error) => panic!("while publishing: {error:?}"),
    }
}

/// The next message, which must be there.
#[track_caller]
pub(crate) fn take<E: Send + Sync + 'static>(subscription: &Subscription<E>) -> Delivery<E> {
    match subscription.try_recv() {
        Ok(delivery) => delivery,
        Err(error) => panic!("expected a message, found: {error:?}"),
    }
}

/// The next messages, which must be there.
#[track_caller]
pub(crate) fn take_many<E: Send + Sync + 'static>(
    subscription: &Subscription<E>,
    count: usize,
) -> Vec<Delivery<E>> {
    (0..count).map(|_| take(subscription)).collect()
}

/// Takes and acks all that is there.
#[track_caller]
pub(crate) fn drain<E: Clone + Send + Sync + 'static>(subscription: &Subscription<E>) -> Vec<E> {
    let mut events = Vec::new();
    while let Ok(delivery) = subscription.try_recv() {
        events.push(E::clone(&delivery));
        delivery.ack().expect("we hold it");
    }
    events
}

/// `order 1` to `order n`.
pub(crate) fn orders(numbers: impl IntoIterator<Item = u64>) -> Vec<String> {
    numbers.into_iter().map(|n| format!("order {n}")).collect()
}

/// Runs it on a thread of its own: one that hangs fails the test.
#[track_caller]
pub(crate) fn watched<T: Send + 'static>(patience: Duration, work: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, result) = mpsc::channel();
    let worker = std::thread::spawn(move || {
        let outcome = work();
        // Nobody listens any more when the watchdog has given up.
        let _ = sender.send(outcome);
    });
    match result.recv_timeout(patience) {
        Ok(outcome) => outcome,
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("it hangs"),
        Err(mpsc::RecvTimeoutError::Disconnected) => match worker.join() {
            Err(panic) => std::panic::resume_unwind(panic),
            Ok(()) => unreachable!("who returns has sent"),
        },
    }
}

/// An event that knows nothing of bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Order {
    pub(crate) number: u32,
    pub(crate) customer: String,
}

pub(crate) fn order(number: u32) -> Order {
    Order { number, customer: format!("customer {}", number % 7) }
}

/// Makes bytes of orders. Its name is its version's.
pub(crate) struct OrderCodec(pub(crate) &'static str);

impl Codec<Order> for OrderCodec {
    fn name(&self) -> &str {
        self.0
    }

    fn encode(&self, order: &Order, out: &mut Vec<u8>) -> Result<(), CodecError> {
        out.extend_from_slice(&order.number.to_be_bytes());
        out.extend_from_slice(order.customer.as_bytes());
        Ok(())
    }

    fn decode(&self, bytes: &[u8]) -> Result<Order, CodecError> {
        let (number, customer) =
            bytes.split_first_chunk().ok_or_else(|| CodecError::new("shorter than a number"))?;
        let customer = std::str::from_utf8(customer).map_err(|_| CodecError::new("no text"))?;
        Ok(Order { number: u32::from_be_bytes(*number), customer: customer.to_owned() })
    }
}
