//! A process that is killed, again and again: what it was told is true afterwards.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use eventflow::{Broker, DeadLetter, DeliveryMode, Durability, Message, MessageStatus, Subscription, Topic};

use crate::support::{Dir, watched};

/// Makes this test the process that is killed: directory, durability, and where each publisher goes on.
const CHILD: &str = "EVENTFLOW_TEST_KILLED_PROCESS";
const KILLS: u64 = 20;
const PUBLISHERS: u64 = 8;
/// Publisher `p` publishes the ids from `p * IDS_EACH` on.
const IDS_EACH: u64 = 1_000_000;
const PAYLOAD_LEN: usize = 2_048;
/// For one kill, and what is looked at after it, before the test counts as hung.
const PATIENCE: Duration = Duration::from_secs(60);

/// All that the process works with.
struct Desk {
    broker: Broker,
    orders: Topic<Vec<u8>>,
    /// Nobody receives here in the process.
    all: Subscription<Vec<u8>>,
    exactly: Subscription<Vec<u8>>,
    least: Subscription<Vec<u8>>,
    most: Subscription<Vec<u8>>,
    flaky: Subscription<Vec<u8>>,
    letters: Subscription<Vec<u8>>,
}

impl Desk {
    fn open(dir: &Path, durability: Durability) -> Desk {
        let broker = Broker::builder().dir(dir).durability(durability).build().expect("it opens");
        let failed = broker.topic::<Vec<u8>>("failed").open().unwrap();
        let orders = broker.topic::<Vec<u8>>("orders").open().unwrap();
        let book = |name| orders.subscription(name).max_outstanding(IDS_EACH as usize);
        Desk {
            letters: failed.subscription("letters").max_outstanding(IDS_EACH as usize).open().unwrap(),
            all: book("all").open().unwrap(),
            exactly: book("exactly").delivery(DeliveryMode::ExactlyOnce).open().unwrap(),
            least: book("least").open().unwrap(),
            most: book("most").delivery(DeliveryMode::AtMostOnce).open().unwrap(),
            flaky: book("flaky").dead_letter(DeadLetter::to(&failed).after(2)).open().unwrap(),
            orders,
            broker,
        }
    }
}

fn payload(id: u64) -> Vec<u8> {
    let mut payload = id.to_be_bytes().to_vec();
    payload.resize(PAYLOAD_LEN, id as u8);
    payload
}

#[track_caller]
fn id_of(payload: &[u8]) -> u64 {
    let (id, rest) = payload.split_first_chunk().expect("it begins with its number");
    let id = u64::from_be_bytes(*id);
    assert!(rest.len() == PAYLOAD_LEN - 8 && rest.iter().all(|byte| *byte == id as u8), "{id} is not itself");
    id
}

/// One line that its reader gets whole or knows to be cut.
fn tell(what: char, id: u64, sequence: u64) {
    let line = format!("{what} {id} {sequence} .\n");
    std::io::stdout().lock().write_all(line.as_bytes()).expect("somebody listens");
}

/// The process: publishes and settles until it is killed, and tells what it is about to do and what was done.
fn be_killed(order: &str) -> ! {
    // The harness has begun a line.
    println!();
    let mut words = order.split('|');
    let dir = words.next().unwrap().to_owned();
    let durability = match words.next().unwrap() {
        "always" => Durability::Always,
        "os" => Durability::Os,
        _ => Durability::Interval(Duration::from_millis(1)),
    };
    let desk = Desk::open(Path::new(&dir), durability);
    thread::scope(|scope| {
        let desk = &desk;
        for next in words {
            let next: u64 = next.parse().unwrap();
            scope.spawn(move || publish_from(desk, next));
        }
        for _ in 0..3 {
            scope.spawn(|| {
                for order in desk.exactly.iter() {
                    let id = id_of(&order);
                    tell('t', id, 0);
                    order.ack().unwrap();
                    tell('a', id, 0);
                }
            });
        }
        for _ in 0..2 {
            scope.spawn(|| {
                while let Ok(batch) = desk.least.recv_batch(10) {
                    batch.iter().for_each(|order| tell('u', id_of(order.event()), 0));
                    batch.ack().unwrap();
                }
            });
        }
        scope.spawn(|| desk.most.iter().for_each(|order| tell('m', id_of(&order), 0)));
        for _ in 0..2 {
            scope.spawn(|| fail_sometimes(desk));
        }
        // So that there are checkpoints under way.
        scope.spawn(|| {
            let bulk = desk.broker.topic::<Vec<u8>>("bulk").open().unwrap();
            let reader = bulk.subscription("reader").open().unwrap();
            loop {
                bulk.publish(vec![7; 256 << 10]).unwrap();
                reader.recv().unwrap().ack().unwrap();
            }
        });
    });
    unreachable!("it goes on until it is killed")
}

fn publish_from(desk: &Desk, first: u64) {
    let mut id = first;
    loop {
        let message = |id: u64| Message::new(payload(id)).idempotency_id(id.to_string());
        if id.is_multiple_of(10) {
            // A batch that takes the place of five.
            (id..id + 5).for_each(|id| tell('b', id, 0));
            let receipts = desk.orders.publish_all((id..id + 5).map(message)).unwrap();
            (id..).zip(receipts).for_each(|(id, receipt)| tell('p', id, receipt.id.sequence()));
            id += 5;
        } else {
            tell('b', id, 0);
            let receipt = desk.orders.publish(message(id)).unwrap();
            tell('p', id, receipt.id.sequence());
            id += 1;
        }
    }
}

fn fail_sometimes(desk: &Desk) {
    for order in desk.flaky.iter() {
        let id = id_of(&order);
        match id % 5 {
            0 => order.nack().unwrap(),
            1 => order.reject("wrong").unwrap(),
            2 => drop(order),
            _ => {
                tell('f', id, 0);
                order.ack().unwrap();
            }
        }
    }
}

/// What the processes have told.
#[derive(Default)]
struct Told {
    begun: BTreeSet<u64>,
    /// With their sequences.
    published: BTreeMap<u64, u64>,
    ack_begun: BTreeSet<u64>,
    acked: BTreeSet<u64>,
    least: BTreeSet<u64>,
    most: BTreeSet<u64>,
    flaky: BTreeSet<u64>,
}

impl Told {
    fn hear(&mut self, line: &str) {
        let words: Vec<_> = line.split(' ').collect();
        // What the test harness says, and a last line that was cut off.
        let [what, id, sequence, "."] = words[..] else { return };
        let (Ok(id), Ok(sequence)) = (id.parse(), sequence.parse()) else { return };
        match what {
            "b" => drop(self.begun.insert(id)),
            "p" => {
                let before = self.published.insert(id, sequence);
                assert!(before.is_none_or(|before| before == sequence), "{id} has two receipts");
            }
            "t" => {
                assert!(!self.acked.contains(&id), "{id} was acked, and came again");
                self.ack_begun.insert(id);
            }
            "a" => assert!(self.acked.insert(id), "{id} was acked twice"),
            "u" => drop(self.least.insert(id)),
            "m" => assert!(self.most.insert(id), "{id} came twice, where it may come once"),
            "f" => drop(self.flaky.insert(id)),
            _ => unreachable!("{line}"),
        }
    }

    /// Where the publisher goes on: with what may not have been published, as one does who saw no receipt.
    fn next(&self, publisher: u64) -> u64 {
        let first = publisher * IDS_EACH;
        (first..)
            .find(|id| !self.published.contains_key(id))
            .map(|id| {
                // A batch of five begins with a round number, and is repeated whole.
                if id % 10 < 5 { id - id % 10 } else { id }
            })
            .unwrap_or(first)
    }

    /// Compares with what the directory holds. Gives all of that.
    fn verify(&self, dir: &Dir, case: &str) -> BTreeMap<u64, Vec<MessageStatus>> {
        let desk = Desk::open(dir.path(), Durability::Always);
        let there: Vec<_> = std::iter::from_fn(|| desk.all.try_recv().ok()).collect();
        let ids: BTreeMap<_, _> = there.iter().map(|order| (id_of(order), order.id())).collect();
        assert_eq!(ids.len(), there.len(), "{case}: an id was published twice");
        let unknown: Vec<_> = ids.keys().filter(|id| !self.begun.contains(id)).collect();
        assert!(unknown.is_empty(), "{case}: nobody published {unknown:?}");
        for (id, sequence) in &self.published {
            let found = ids.get(id).unwrap_or_else(|| panic!("{case}: {id} was published, and is lost"));
            assert_eq!(found.sequence(), *sequence, "{case}: {id} has another sequence");
        }
        self.verify_batches(&ids, case);
        let letters: Vec<_> = std::iter::from_fn(|| desk.letters.try_recv().ok()).collect();
        let buried: BTreeSet<_> = letters.iter().map(|letter| id_of(letter)).collect();
        assert_eq!(buried.len(), letters.len(), "{case}: a dead letter is there twice");
        let statuses = ids.iter().map(|(&id, &message)| {
            let status = desk.orders.status(message).expect("one subscription has settled none");
            let status: Vec<_> =
                ["exactly", "least", "most", "flaky"].map(|book| status[book]).into_iter().collect();
            self.verify_one(id, &status, &buried, case);
            (id, status)
        });
        statuses.collect()
    }

    fn verify_one(&self, id: u64, status: &[MessageStatus], buried: &BTreeSet<u64>, case: &str) {
        use MessageStatus::{Acked, DeadLettered, Waiting};
        let [exactly, least, most, flaky] = status else { unreachable!("there are four") };
        if self.acked.contains(&id) {
            assert_eq!(*exactly, Acked, "{case}: the ack of {id} is undone");
        } else if !self.ack_begun.contains(&id) {
            assert_eq!(*exactly, Waiting, "{case}: nobody has acked {id}");
        }
        if !self.least.contains(&id) {
            assert_eq!(*least, Waiting, "{case}: nobody has acked {id}");
        }
        if self.most.contains(&id) {
            assert_eq!(*most, Acked, "{case}: {id} was handed out, and will be again");
        }
        if !self.flaky.contains(&id) {
            let expected = if buried.contains(&id) { DeadLettered } else { Waiting };
            assert_eq!(*flaky, expected, "{case}: {id} is a dead letter or waits");
        }
    }

    /// P5: of a batch all is there, or nothing.
    fn verify_batches<T>(&self, ids: &BTreeMap<u64, T>, case: &str) {
        for first in self.begun.iter().copied().filter(|id| id % 10 == 0) {
            let count = ids.range(first..first + 5).count();
            assert!(count == 0 || count == 5, "{case}: {count} of the batch of {first} are there");
        }
    }
}

/// Starts the process, kills it when it has told `lines` lines, and hears it out.
fn run_and_kill(dir: &Dir, durability: &str, lines: u64, told: &mut Told) {
    let next = (0..PUBLISHERS).map(|publisher| told.next(publisher).to_string());
    let words = [dir.path().display().to_string(), durability.to_owned()];
    let order = words.into_iter().chain(next).collect::<Vec<_>>().join("|");
    let name = "kill::p01_what_a_killed_process_was_told_is_true";
    let mut child = Command::new(std::env::current_exe().expect("this test has a file"))
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env(CHILD, order)
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    let stdout = child.stdout.take().expect("it is piped");
    let mut heard = 0;
    for line in BufReader::new(stdout).lines().map_while(Result::ok) {
        told.hear(&line);
        heard += 1;
        if heard == lines {
            child.kill().expect("it runs");
        }
    }
    let status = child.wait().expect("it has ended");
    assert!(status.code().is_none() && heard >= lines, "it ended by itself: {status}");
}

#[test]
fn p01_what_a_killed_process_was_told_is_true() {
    if let Ok(order) = std::env::var(CHILD) {
        be_killed(&order);
    }
    let seed = std::env::var("EVENTFLOW_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(0x5eed_u64);
    let kills = std::env::var("EVENTFLOW_KILLS").ok().and_then(|kills| kills.parse().ok()).unwrap_or(KILLS);
    println!("EVENTFLOW_SEED={seed} EVENTFLOW_KILLS={kills}");
    watched(PATIENCE * kills as u32, move || {
        let dir = Dir::new();
        let mut told = Told::default();
        let mut random = seed;
        for kill in 0..kills {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let lines = 1 + (random >> 33) % 1_500;
            let durability = ["always", "os", "interval"][kill as usize % 3];
            let case = format!("kill {kill} after {lines} lines, {durability}");
            println!("{case}");
            run_and_kill(&dir, durability, lines, &mut told);
            let once = told.verify(&dir, &case);
            let twice = told.verify(&dir, &format!("{case}, opened again"));
            assert_eq!(once, twice, "{case}: the second opening finds something else");
        }
        println!(
            "{} published, {} acked, {} handed out once",
            told.published.len(),
            told.acked.len(),
            told.most.len()
        );
        assert!(told.published.len() as u64 > kills && told.acked.len() as u64 > kills, "it did something");
    });
}
