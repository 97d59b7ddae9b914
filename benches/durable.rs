//! What it costs that a message survives: publishing to a directory beside the least that any program could do for the same bytes, and opening a directory
//! beside reading it.
//!
//! The bare minimum appends as many bytes to a file that was filled with zeros before, and calls `fdatasync` as often: no checksum, no sequence, no subscription.
//! Both take turns; each message is made within the measured time; afterwards, off the clock, the file is read and the directory is opened again, and every message
//! is counted and checksummed.
//!
//! ```text
//! cargo bench --bench durable                    the quick size; `-- publish` or `-- recovery` runs one part
//! cargo bench --bench durable -- --full          recovery of 5 million messages, more rounds
//! EVENTFLOW_DIR=/mnt/disk cargo bench --bench durable
//! ```
//!
//! The files lie in the build's own directory unless `EVENTFLOW_DIR` names another: what is synced to a file system in memory says nothing.

mod harness;

use std::fs::{self, File};
use std::hint::black_box;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use bytes::Bytes;
use eventflow::{Broker, Durability, Subscription, Topic};
use harness::{Spread, Watchdog, is_asked_for, load, parameter, print_figure, print_machine};

fn main() {
    let _watchdog = Watchdog::start(Duration::from_secs(parameter("limit_seconds", 300, 3_600)));
    print_machine();
    println!("directory: {}", root().display());
    if is_asked_for("publish") {
        publish();
    }
    if is_asked_for("recovery") {
        recovery();
    }
    fs::remove_dir_all(root()).ok();
}

/// As the harness has it, and a larger one still for `--full`.
fn size(name: &str, small: u64, quick: u64, full: u64) -> u64 {
    let is_larger = std::env::args().any(|argument| argument == "--full");
    parameter(name, small, if is_larger { full } else { quick })
}

fn root() -> PathBuf {
    let dir =
        std::env::var_os("EVENTFLOW_DIR").map_or(PathBuf::from(env!("CARGO_TARGET_TMPDIR")), PathBuf::from);
    dir.join(format!("durable-{}", std::process::id()))
}

/// A name in the root that is free.
fn fresh(name: &str) -> PathBuf {
    let path = root().join(name);
    fs::create_dir_all(root()).expect("the root can be made");
    fs::remove_dir_all(&path).ok();
    fs::remove_file(&path).ok();
    path
}

const PAYLOAD_LEN: usize = 100;
/// What a message is told apart by, at both ends of its payload.
const NUMBER_LEN: usize = 8;

fn payload(number: u64) -> Bytes {
    let mut bytes = vec![0x5A; PAYLOAD_LEN];
    bytes[..NUMBER_LEN].copy_from_slice(&number.to_le_bytes());
    bytes[PAYLOAD_LEN - NUMBER_LEN..].copy_from_slice(&(!number).to_le_bytes());
    bytes.into()
}

/// The number at both ends.
fn number_of(payload: &[u8]) -> u64 {
    assert_eq!(payload.len(), PAYLOAD_LEN, "a payload is as long as it was");
    let at = |from: usize| u64::from_le_bytes(payload[from..][..NUMBER_LEN].try_into().expect("eight bytes"));
    let number = at(0);
    assert_eq!(!at(PAYLOAD_LEN - NUMBER_LEN), number, "both ends are of one message");
    number
}

/// What of all numbers below `count` must come out.
fn expected(count: u64) -> (u64, u64) {
    (count, (0..count).map(mixed).fold(0, u64::wrapping_add))
}

/// So that no two errors make up for each other.
fn mixed(number: u64) -> u64 {
    (number + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29)
}

/// How messages come.
#[derive(Clone, Copy)]
struct Shape {
    name: &'static str,
    durability: Durability,
    threads: u64,
    batch: u64,
    messages: u64,
}

/// What one frame, one unit and one message take on disk beside the payloads, as the guide's page on the format says.
const FRAME_LEN: usize = 40;
const UNIT_LEN: usize = 18;
const MESSAGE_LEN: usize = 2;
/// The bare minimum's file is filled in pieces of this length, as the journal fills its own.
const ZEROS_LEN: usize = 1 << 16;

impl Shape {
    fn syncs(&self) -> bool {
        self.durability == Durability::Always
    }

    /// What `publish` of one batch adds to a frame.
    fn unit(&self, first: u64, out: &mut Vec<u8>) {
        out.resize(out.len() + UNIT_LEN, 1);
        for number in first..first + self.batch {
            out.resize(out.len() + MESSAGE_LEN, 1);
            out.extend_from_slice(&payload(number));
        }
    }

    /// Each thread's numbers, in steps of a batch.
    fn batches_of(&self, thread: u64) -> impl Iterator<Item = u64> + use<> {
        let (batch, each) = (self.batch, self.messages / self.threads);
        (thread * each..(thread + 1) * each).step_by(batch as usize)
    }
}

fn shapes() -> [Shape; 4] {
    let always = Durability::Always;
    let one = size("one_by_one", 50, 2_000, 10_000);
    let batches = size("batches", 5, 800, 1_500) * 100;
    let shared = size("each_of_64", 5, 300, 800) * 64;
    let os = size("unsynced", 500, 20_000, 100_000);
    [
        Shape { name: "Always, one by one", durability: always, threads: 1, batch: 1, messages: one },
        Shape {
            name: "Always, batches of 100",
            durability: always,
            threads: 1,
            batch: 100,
            messages: batches,
        },
        Shape { name: "Always, 64 threads", durability: always, threads: 64, batch: 1, messages: shared },
        Shape { name: "Os, one by one", durability: Durability::Os, threads: 1, batch: 1, messages: os },
    ]
}

/// 0.95 of the bare minimum's rate.
const TIME_MAX: f64 = 1.05;

fn publish() {
    let rounds = size("rounds", 1, 9, 15);
    println!(
        "\npublish: {PAYLOAD_LEN} bytes as Bytes, one subscription that nobody reads; {rounds} interleaved rounds"
    );
    let shapes = shapes();
    let mut bare = shapes.map(|_| vec![]);
    let mut ours = shapes.map(|_| vec![]);
    let mut ratios = shapes.map(|_| vec![]);
    for round in 0..=rounds {
        for (place, shape) in shapes.iter().enumerate() {
            // Each goes first in every other round.
            let (bare_now, ours_now) = if round % 2 == 0 {
                let bare_now = time_bare(shape);
                (bare_now, time_ours(shape))
            } else {
                let ours_now = time_ours(shape);
                (time_bare(shape), ours_now)
            };
            if round == 0 {
                continue; // the first one warms up
            }
            let rate = |time: Duration| shape.messages as f64 / time.as_secs_f64();
            let (bare_now, ours_now) = (rate(bare_now), rate(ours_now));
            println!(
                "run={round} shape={:?} messages={} bare={bare_now:.0}/s ours={ours_now:.0}/s ratio={:.3} load={:.1}",
                shape.name,
                shape.messages,
                ours_now / bare_now,
                load().unwrap_or(f64::NAN)
            );
            bare[place].push(bare_now / 1e3);
            ours[place].push(ours_now / 1e3);
            ratios[place].push(ours_now / bare_now);
        }
    }
    println!("  thousand messages/s");
    for (place, shape) in shapes.iter().enumerate() {
        println!("  {:<24} bare {}", shape.name, Spread::of(&bare[place]));
        println!("  {:<24} ours {}", "", Spread::of(&ours[place]));
        println!("  {:<24} ours of bare {}", "", Spread::of(&ratios[place]));
    }
    for (place, shape) in shapes.iter().enumerate() {
        let ratio = Spread::of(&ratios[place]).median;
        if ratio > 1.1 {
            println!("  {}: DOUBTFUL: ours does more, and yet is {ratio:.2} times as fast", shape.name);
        }
    }
    for (place, shape) in shapes.iter().enumerate().filter(|(_, shape)| shape.syncs()) {
        let inverse: Vec<f64> = ratios[place].iter().map(|ratio| 1.0 / ratio).collect();
        let what = format!("{}, time of the bare minimum's, median", shape.name);
        print_figure(what, Spread::of(&inverse).median, TIME_MAX, "times");
    }
}

/// Runs each of the shape's threads at the same time.
fn time_threads(shape: &Shape, run: impl Fn(u64) + Sync) -> Duration {
    let start = Instant::now();
    if shape.threads == 1 {
        run(0);
    } else {
        thread::scope(|scope| {
            for thread in 0..shape.threads {
                let run = &run;
                scope.spawn(move || run(thread));
            }
        });
    }
    start.elapsed()
}

/// The least that is to be done: one buffer, one write, one sync for all who wait.
struct Bare {
    file: File,
    syncs: bool,
    group: Mutex<Group>,
}

#[derive(Default)]
struct Group {
    frame: Vec<u8>,
    spare: Vec<u8>,
    waiters: Vec<Waiter>,
    is_led: bool,
    offset: u64,
}

struct Waiter {
    thread: Thread,
    is_done: Arc<AtomicBool>,
}

impl Bare {
    fn new(path: &Path, shape: &Shape) -> Bare {
        let file = File::options().read(true).write(true).create_new(true).open(path).expect("a new file");
        let units = shape.messages / shape.batch;
        let len = units as usize * (FRAME_LEN + UNIT_LEN + 8)
            + shape.messages as usize * (MESSAGE_LEN + PAYLOAD_LEN);
        // In pieces: one large write leaves large pages in the system's memory, and each small write into one of those takes several times as long.
        let piece = vec![0; ZEROS_LEN];
        for at in (0..len).step_by(ZEROS_LEN) {
            file.write_all_at(&piece[..ZEROS_LEN.min(len - at)], at as u64).expect("there is space");
        }
        file.sync_all().expect("it is synced");
        Bare { file, syncs: shape.syncs(), group: Mutex::new(Group::default()) }
    }

    fn write(&self, frame: &mut Vec<u8>, offset: u64) -> u64 {
        frame.resize(frame.len().next_multiple_of(8), 0);
        self.file.write_all_at(frame, offset).expect("it is written");
        if self.syncs {
            self.file.sync_data().expect("it is synced");
        }
        let len = frame.len() as u64;
        frame.clear();
        offset + len
    }

    fn publish_alone(&self, shape: &Shape) {
        let (mut frame, mut offset) = (Vec::new(), 0);
        for first in shape.batches_of(0) {
            frame.resize(FRAME_LEN, 2);
            shape.unit(first, &mut frame);
            offset = self.write(&mut frame, offset);
        }
    }

    /// Writes what all have gathered, or waits until another has.
    fn publish_together(&self, shape: &Shape, thread: u64) {
        for first in shape.batches_of(thread) {
            let mut unit = Vec::with_capacity(UNIT_LEN + MESSAGE_LEN + PAYLOAD_LEN);
            shape.unit(first, &mut unit);
            let mut group = self.group.lock().expect("nobody panicked");
            if group.frame.is_empty() {
                group.frame.resize(FRAME_LEN, 2);
            }
            group.frame.extend_from_slice(&unit);
            let is_done = Arc::new(AtomicBool::new(false));
            if group.is_led {
                group.waiters.push(Waiter { thread: thread::current(), is_done: is_done.clone() });
                drop(group);
                // Woken: written, or to lead for all that have come since.
                loop {
                    thread::park();
                    if is_done.load(Ordering::Acquire) {
                        break;
                    }
                    let mut group = self.group.lock().expect("nobody panicked");
                    if !is_done.load(Ordering::Acquire) && !std::mem::replace(&mut group.is_led, true) {
                        drop(group);
                        self.lead();
                        break;
                    }
                }
            } else {
                group.is_led = true;
                drop(group);
                self.lead();
            }
        }
    }

    fn lead(&self) {
        let mut group = self.group.lock().expect("nobody panicked");
        let spare = std::mem::take(&mut group.spare);
        let mut frame = std::mem::replace(&mut group.frame, spare);
        let waiters = std::mem::take(&mut group.waiters);
        let offset = group.offset;
        drop(group);
        let end = self.write(&mut frame, offset);
        let mut group = self.group.lock().expect("nobody panicked");
        group.offset = end;
        group.spare = frame;
        group.is_led = false;
        // Before the others, so that the disk is busy while they wake.
        let next = group.waiters.first().map(|waiter| waiter.thread.clone());
        waiters.iter().for_each(|waiter| waiter.is_done.store(true, Ordering::Release));
        drop(group);
        next.iter().for_each(Thread::unpark);
        waiters.iter().for_each(|waiter| waiter.thread.unpark());
    }

    /// Looks for the messages' numbers, wherever they lie.
    fn check(&self, shape: &Shape) {
        let mut bytes = Vec::new();
        (&self.file).read_to_end(&mut bytes).expect("it is read");
        let (mut count, mut sum, mut at) = (0, 0_u64, 0);
        while let Some(rest) = bytes.get(at..at + PAYLOAD_LEN) {
            if rest[NUMBER_LEN..PAYLOAD_LEN - NUMBER_LEN].iter().all(|byte| *byte == 0x5A) {
                sum = sum.wrapping_add(mixed(number_of(rest)));
                count += 1;
                at += PAYLOAD_LEN;
            } else {
                at += 1;
            }
        }
        assert_eq!((count, sum), expected(shape.messages), "the bare minimum has each message once");
    }
}

fn time_bare(shape: &Shape) -> Duration {
    let path = fresh("bare");
    let bare = Bare::new(&path, shape);
    let elapsed = time_threads(shape, |thread| {
        if shape.threads == 1 { bare.publish_alone(shape) } else { bare.publish_together(shape, thread) }
    });
    bare.check(shape);
    fs::remove_file(path).expect("it is there");
    elapsed
}

fn open(dir: &Path, durability: Durability) -> Broker {
    Broker::builder().dir(dir).durability(durability).build().expect("it opens")
}

fn handles(broker: &Broker) -> (Topic<Bytes>, Subscription<Bytes>) {
    let topic = broker.topic::<Bytes>("orders").open().expect("the topic opens");
    let subscription = topic.subscription("billing").open().expect("the subscription opens");
    (topic, subscription)
}

fn time_ours(shape: &Shape) -> Duration {
    let dir = fresh("ours");
    let broker = open(&dir, shape.durability);
    let (topic, subscription) = handles(&broker);
    let elapsed = time_threads(shape, |thread| {
        for first in shape.batches_of(thread) {
            if shape.batch == 1 {
                black_box(topic.publish(payload(first)).expect("it is published"));
            } else {
                let batch = (first..first + shape.batch).map(payload);
                black_box(topic.publish_all(batch).expect("it is published"));
            }
        }
    });
    drop((topic, subscription));
    broker.shutdown(Duration::ZERO).expect("it is synced");
    drop(broker);
    let broker = open(&dir, shape.durability);
    let (_topic, subscription) = handles(&broker);
    check(&subscription, shape.messages);
    drop(subscription);
    drop(broker);
    fs::remove_dir_all(dir).expect("it is there");
    elapsed
}

/// Takes all that is there, without acknowledging it.
fn check(subscription: &Subscription<Bytes>, messages: u64) {
    assert_eq!(subscription.stats().backlog, messages, "all are there");
    let (mut count, mut sum) = (0, 0_u64);
    while count < messages {
        let batch = subscription.recv_batch(1_000).expect("the broker runs");
        for delivery in batch.iter() {
            sum = sum.wrapping_add(mixed(number_of(delivery.event())));
            count += 1;
        }
        batch.ack().expect("the leases are ours");
    }
    assert_eq!((count, sum), expected(messages), "each message once");
}

/// How long it takes to open a directory, beside reading and checksumming its files.
fn recovery() {
    let messages = size("recovered", 2_000, 1_000_000, 5_000_000);
    let rounds = size("recovery_rounds", 1, 5, 5);
    println!(
        "\nrecovery: {messages} messages of {PAYLOAD_LEN} bytes, one subscription; {rounds} rounds, files in memory"
    );
    let dir = fresh("recovered");
    fill(&dir, messages);
    let (mut read_ms, mut open_ms, mut topic_ms, mut ratios) = (vec![], vec![], vec![], vec![]);
    for round in 0..=rounds {
        let start = Instant::now();
        let (bytes, checksum) = read(&dir);
        let read = start.elapsed();
        let start = Instant::now();
        let broker = open(&dir, Durability::Os);
        let opened = start.elapsed();
        let (_topic, subscription) = handles(&broker);
        let ready = start.elapsed();
        if round == 0 || round == rounds {
            let stats = subscription.stats();
            assert_eq!(stats.backlog, messages, "all are there");
        }
        drop((_topic, subscription));
        let report = broker.recovery();
        broker.shutdown(Duration::ZERO).expect("it is synced");
        drop(broker);
        if round == 0 {
            continue; // the first one warms up
        }
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        println!(
            "run={round} read={:.1}ms open={:.1}ms with_handles={:.1}ms megabytes={:.1} units={} checksum={checksum:08x} load={:.1}",
            ms(read),
            ms(opened),
            ms(ready),
            bytes as f64 / 1e6,
            report.replayed,
            load().unwrap_or(f64::NAN)
        );
        read_ms.push(ms(read));
        open_ms.push(ms(opened));
        topic_ms.push(ms(ready));
        ratios.push(ready.as_secs_f64() / read.as_secs_f64());
    }
    let broker = open(&dir, Durability::Os);
    check(&handles(&broker).1, messages);
    println!("  milliseconds; all {messages} messages counted and checksummed");
    println!("  read and checksum:               {}", Spread::of(&read_ms));
    println!("  the broker is open:              {}", Spread::of(&open_ms));
    println!("  and its topic and subscription:  {}", Spread::of(&topic_ms));
    print_figure(
        "recovery, of reading and checksumming, median",
        Spread::of(&ratios).median,
        0.2 / 0.12,
        "times",
    );
}

fn fill(dir: &Path, messages: u64) {
    let broker = open(dir, Durability::Os);
    let (topic, subscription) = handles(&broker);
    let mut first = 0;
    while first < messages {
        let end = messages.min(first + 1_000);
        topic.publish_all((first..end).map(payload)).expect("it is published");
        first = end;
    }
    drop((topic, subscription));
    broker.shutdown(Duration::ZERO).expect("it is synced");
}

/// Every byte of what an opening needs: the newest checkpoint, what it says to be in topics' own files, and the segments.
fn read(dir: &Path) -> (u64, u32) {
    let names = |dir: &Path| {
        let entries = fs::read_dir(dir).expect("it is there").map(|entry| entry.expect("an entry").path());
        let mut paths: Vec<PathBuf> = entries.collect();
        paths.sort();
        paths
    };
    let begins = |path: &Path, with: &str| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(with))
    };
    let all = names(dir);
    let newest = all.iter().rfind(|path| begins(path, "checkpoint-")).cloned();
    let own = all.iter().filter(|path| begins(path, "topic-")).flat_map(|folder| names(folder));
    let stream = all.iter().filter(|path| begins(path, "segment-")).cloned();
    let mut buffer = vec![0; 256 << 10];
    let (mut bytes, mut checksum) = (0, 0);
    for path in newest.into_iter().chain(own).chain(stream) {
        let mut file = File::open(path).expect("it is there");
        loop {
            let read = file.read(&mut buffer).expect("it is read");
            if read == 0 {
                break;
            }
            checksum = crc32c::crc32c_append(checksum, &buffer[..read]);
            bytes += read as u64;
        }
    }
    (bytes, checksum)
}
