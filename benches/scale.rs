//! What size costs: bytes a message, a new subscription on a long backlog, publishing beside very many topics and subscriptions, and
//! topics that do nothing.
//!
//! Each part runs in a process of its own, so that none finds the memory that another has freed. Resident memory is what the kernel says
//! (Linux only); how many events are alive is counted by their own `Drop`. `cargo bench --bench scale -- memory` runs one part.

pub(crate) mod harness;

use std::hint::black_box;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use eventflow::{Broker, Start, Subscription, Topic};
use harness::{Spread, Watchdog, is_asked_for, is_full, parameter, print_figure, print_machine, resident};

/// By name; the race runs them too.
pub(crate) const PARTS: [(&str, fn()); 4] =
    [("memory", memory), ("ninth", ninth_subscription), ("publish", publish_beside), ("topics", idle_topics)];

fn main() {
    let asked: Vec<_> = PARTS.iter().filter(|(name, _)| is_asked_for(name)).collect();
    if let [(_, part)] = asked[..] {
        let _watchdog = Watchdog::start(Duration::from_secs(parameter("limit_seconds", 120, 300)));
        return part();
    }
    print_machine();
    for (name, _) in asked {
        let this = std::env::current_exe().expect("this program has a path");
        let status = Command::new(this).arg(name).arg(if is_full() { "--bench" } else { "--test" }).status();
        assert!(status.expect("this program starts again").success(), "part {name} failed");
    }
}

fn mega(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

/// As large as a `u64`, and counted while it is alive.
struct Event(u64);

static ALIVE: AtomicU64 = AtomicU64::new(0);

impl Event {
    fn new(number: u64) -> Event {
        ALIVE.fetch_add(1, Ordering::Relaxed);
        Event(number)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        ALIVE.fetch_sub(1, Ordering::Relaxed);
    }
}

const SUBSCRIPTIONS: u64 = 8;
const STUCK_ONE_IN: u64 = 1_000;
/// What a stuck message may keep with it: its segment.
const SEGMENT_LEN: u64 = 256;

/// Opens a topic with eight subscriptions and a backlog of `messages` in each.
fn backlog(broker: &Broker, name: &str, messages: u64) -> (Topic<Event>, Vec<Subscription<Event>>) {
    let topic = broker.topic::<Event>(name).create().expect("a new topic");
    let subscription =
        |n| topic.subscription(&format!("subscription-{n}")).create().expect("a new subscription");
    let subscriptions = (1..=SUBSCRIPTIONS).map(subscription).collect();
    publish(&topic, 0..messages);
    (topic, subscriptions)
}

fn publish(topic: &Topic<Event>, numbers: std::ops::Range<u64>) {
    for number in numbers {
        topic.publish(Event::new(number)).expect("the topic has no limit");
    }
}

/// A long backlog with eight subscriptions lives once; when all but a few are settled, the memory of the rest is free again.
fn memory() {
    let messages = parameter("backlog", 100_000, 10_000_000);
    println!("\nmemory: {messages} messages of 8 bytes, {SUBSCRIPTIONS} subscriptions");
    let broker = Broker::in_memory();
    let before = resident();
    let (topic, subscriptions) = backlog(&broker, "backlog", messages);
    let full = resident();
    assert_eq!(ALIVE.load(Ordering::Relaxed), messages, "one copy a message, however many subscriptions");
    print_figure("bytes a message", (full - before) as f64 / messages as f64, 40.0, "bytes");

    let start = Instant::now();
    for subscription in &subscriptions {
        settle_most(subscription, messages);
    }
    let rate = (messages * SUBSCRIPTIONS) as f64 / start.elapsed().as_secs_f64() / 1e6;
    println!("  all but 1 in {STUCK_ONE_IN} acknowledged on each subscription: {rate:.2} million/s");
    let alive = ALIVE.load(Ordering::Relaxed);
    let stuck = messages / STUCK_ONE_IN;
    let most = (stuck + 2) * SEGMENT_LEN; // and the segments at both ends
    println!(
        "  events alive: {alive} for {stuck} stuck ones; the broker says {}",
        topic.stats().resident_messages
    );
    assert!(alive <= most, "a stuck message keeps at most its segment: {alive} are alive, {most} may be");
    println!("  resident: {:.1} MB, before {:.1} MB", mega(resident()), mega(full));

    // The allocator keeps freed memory for the next user: that it is free shows when as many messages again take no more.
    publish(&topic, 0..messages - alive);
    let grown = resident().saturating_sub(full);
    println!("  {} more messages take {:.1} MB more than the first ones did", messages - alive, mega(grown));
    assert_eq!(ALIVE.load(Ordering::Relaxed), messages);
}

/// Acknowledges the whole backlog but for one message in a thousand, which fails and waits for its retry.
fn settle_most(subscription: &Subscription<Event>, messages: u64) {
    let mut seen = 0;
    let mut checksum = 0_u64;
    while seen < messages {
        let stuck = subscription.recv().expect("the broker runs");
        checksum += stuck.0;
        stuck.nack_after(Duration::from_secs(3_600)).expect("the lease is ours");
        seen += 1;
        let end = messages.min(seen + STUCK_ONE_IN - 1);
        while seen < end {
            let batch = subscription.recv_batch((end - seen) as usize).expect("the broker runs");
            checksum += batch.iter().map(|message| message.event().0).sum::<u64>();
            seen += batch.len() as u64;
            batch.ack().expect("the leases are ours");
        }
    }
    assert_eq!(checksum, messages * (messages - 1) / 2, "each message once");
}

const CACHE_LINE_LEN: usize = 64;
/// More than any cache of one core holds.
const CACHE_LEN: usize = 64 << 20;

/// What it costs to create one more subscription from the start of a backlog and to receive its first message.
fn ninth_subscription() {
    let (short, long) = (parameter("short_backlog", 1_000, 1_000), parameter("backlog", 100_000, 10_000_000));
    let runs = parameter("ninth_runs", 10, 200);
    println!("\nninth subscription: create from the start, then the first message, caches cold; {runs} runs");
    let mut cold = vec![0_u8; CACHE_LEN];
    let broker = Broker::in_memory();
    let (on_short, _keep_short) = backlog(&broker, "short", short);
    let (on_long, _keep_long) = backlog(&broker, "long", long);
    let (mut short_us, mut long_us) = (vec![], vec![]);
    for _ in 0..runs {
        for (topic, times) in [(&on_short, &mut short_us), (&on_long, &mut long_us)] {
            // Deleting the subscription of the run before has left the caches full of one topic or the other: let both start cold.
            black_box(
                cold.iter_mut().step_by(CACHE_LINE_LEN).map(|byte| *byte = byte.wrapping_add(1)).count(),
            );
            times.push(create_and_receive(topic).as_secs_f64() * 1e6);
        }
    }
    let (short_us, long_us) = (Spread::of(&short_us), Spread::of(&long_us));
    println!("  on {short:>9} messages: {short_us} µs");
    println!("  on {long:>9} messages: {long_us} µs");
    print_figure("ratio of the medians", long_us.median / short_us.median, 2.0, "times");
}

fn create_and_receive(topic: &Topic<Event>) -> Duration {
    let start = Instant::now();
    let subscription =
        topic.subscription("ninth").start(Start::Earliest).create().expect("a new subscription");
    let first = subscription.recv().expect("there is a backlog");
    let elapsed = start.elapsed();
    assert_eq!(first.id().sequence(), 1);
    first.release().expect("the lease is ours");
    subscription.delete().expect("it exists");
    elapsed
}

/// What a publish costs alone, beside very many topics, and with very many subscriptions of the same topic that nobody reads.
fn publish_beside() {
    let many = parameter("many", 100, 10_000);
    let messages = parameter("messages", 1_000, 200_000);
    let runs = parameter("publish_runs", 2, 15);
    println!("\npublish: {runs} interleaved runs of {messages} messages of 8 bytes; ns a message");
    let brokers = [Broker::in_memory(), Broker::in_memory(), Broker::in_memory()];
    let [alone, beside, idle] =
        [with_topics(&brokers[0], 1), with_topics(&brokers[1], many), with_topics(&brokers[2], 1)];
    for n in 1..many {
        let _ = idle.subscription(&format!("idle-{n}")).create().expect("a new subscription");
    }
    let mut times = [vec![], vec![], vec![]];
    let mut ratios = [vec![], vec![], vec![]];
    for run in 0..=runs {
        let now = [&alone, &beside, &idle].map(|topic| time_publishes(topic, messages));
        if run == 0 {
            continue; // the first one warms up
        }
        for place in 0..3 {
            times[place].push(now[place]);
            ratios[place].push(now[place] / now[0]);
        }
        println!(
            "run={run} alone={:.1} beside_topics={:.1} idle_subscriptions={:.1}",
            now[0], now[1], now[2]
        );
    }
    let [alone, beside, idle] = times.map(|times| Spread::of(&times));
    println!("  1 topic, 1 subscription:          {alone}");
    println!("  beside {many:>6} topics:             {beside}");
    println!("  to a topic with {many:>6} idle ones:  {idle}");
    let [_, beside, idle] = ratios.map(|ratios| Spread::of(&ratios).median);
    print_figure("beside many topics, median ratio", beside, 1.1, "times");
    print_figure("with many idle subscriptions, median ratio", idle, 1.1, "times");
}

/// `count` topics with one subscription each, and the handle of the middle one.
fn with_topics(broker: &Broker, count: u64) -> Topic<u64> {
    let topic = |n| {
        let topic = broker.topic::<u64>(&format!("topic-{n}")).create().expect("a new topic");
        let _ = topic.subscription("only").create().expect("a new subscription");
        topic
    };
    let topics: Vec<_> = (0..count).map(topic).collect();
    topics[topics.len() / 2].clone()
}

fn time_publishes(topic: &Topic<u64>, messages: u64) -> f64 {
    let start = Instant::now();
    for number in 0..messages {
        let receipt = topic.publish(black_box(number)).expect("the topic has no limit");
        black_box(receipt.id.sequence());
    }
    start.elapsed().as_nanos() as f64 / messages as f64
}

/// What a topic costs that nothing happens in.
fn idle_topics() {
    let many = parameter("many", 100, 10_000);
    println!("\nidle topics: {many}");
    let broker = Broker::in_memory();
    let before = resident();
    let create = |n| broker.topic::<u64>(&format!("topic-{n}")).create().expect("a new topic");
    let topics: Vec<_> = (0..many).map(create).collect();
    print_megabytes("idle topics", before, many);
    let create = |topic: &Topic<u64>| topic.subscription("only").create().expect("a new subscription");
    let subscriptions: Vec<_> = topics.iter().map(create).collect();
    print_megabytes("with one subscription each", before, many);
    for (n, topic) in topics.iter().enumerate() {
        topic.publish(n as u64).expect("the topic has no limit");
    }
    print_megabytes("with one message waiting in each", before, many);
    for (n, subscription) in subscriptions.iter().enumerate() {
        let delivery = subscription.try_recv().expect("one message waits");
        assert_eq!(*delivery, n as u64);
        delivery.ack().expect("the lease is ours");
    }
    print_megabytes("once that message is acknowledged", before, many);
}

fn print_megabytes(what: &str, before: u64, topics: u64) {
    let taken = resident() - before;
    print_figure(what, mega(taken), 40.0, "MB");
    println!("    {} bytes a topic", taken / topics);
}
