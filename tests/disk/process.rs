//! A process with eight publishers and eight subscribers that ends in the midst of it, and what it told until then.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Lines, Write};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::thread;
use std::time::Duration;

use eventflow::{
    Broker, DeadLetter, DeliveryMode, Durability, Message, MessageStatus, SettleError, Subscription, Topic,
};

/// Makes the test that is named in [`Process::start`] the process: directory, durability, ack deadline, and where each publisher goes on.
const ORDER: &str = "EVENTFLOW_TEST_PROCESS";
const PUBLISHERS: u64 = 8;
/// Publisher `p` publishes the ids from `p * IDS_EACH` on.
const IDS_EACH: u64 = 1_000_000;
const PAYLOAD_LEN: usize = 2_048;
/// The harness's own lines, before it comes to the test.
const ENTRY: &str = "kill::p01_what_a_killed_process_was_told_is_true";

/// How a broker is opened.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Manner {
    pub(crate) durability: &'static str,
    /// Of the subscription whose acks are exactly once.
    pub(crate) ack_deadline: Duration,
}

pub(crate) const ALWAYS: Manner = Manner { durability: "always", ack_deadline: Duration::from_secs(10) };

impl Manner {
    fn durability(&self) -> Durability {
        match self.durability {
            "always" => Durability::Always,
            "os" => Durability::Os,
            _ => Durability::Interval(Duration::from_millis(1)),
        }
    }
}

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
    fn open(dir: &Path, manner: Manner) -> Desk {
        let broker = Broker::builder().dir(dir).durability(manner.durability()).build().expect("it opens");
        let failed = broker.topic::<Vec<u8>>("failed").open().unwrap();
        let orders = broker.topic::<Vec<u8>>("orders").open().unwrap();
        let book = |name| orders.subscription(name).max_outstanding(IDS_EACH as usize);
        let exactly = book("exactly").delivery(DeliveryMode::ExactlyOnce).ack_deadline(manner.ack_deadline);
        Desk {
            letters: failed.subscription("letters").max_outstanding(IDS_EACH as usize).open().unwrap(),
            all: book("all").open().unwrap(),
            exactly: exactly.open().unwrap(),
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

/// In the process: publishes and settles until it ends, and tells what it is about to do and what was done. Elsewhere: nothing.
pub(crate) fn be_it_if_told() {
    let Ok(order) = std::env::var(ORDER) else { return };
    // The harness has begun a line.
    println!();
    let mut words = order.split('|');
    let dir = words.next().unwrap().to_owned();
    let durability = ["always", "os", "interval"];
    let durability = durability.into_iter().find(|known| words.clone().next() == Some(known)).unwrap();
    let ack_deadline = Duration::from_millis(words.nth(1).unwrap().parse().unwrap());
    let desk = Desk::open(Path::new(&dir), Manner { durability, ack_deadline });
    thread::scope(|scope| {
        let desk = &desk;
        for next in words {
            let next: u64 = next.parse().unwrap();
            scope.spawn(move || publish_from(desk, next));
        }
        (0..3).for_each(|_| drop(scope.spawn(|| ack_each(desk))));
        for _ in 0..2 {
            scope.spawn(|| {
                while let Ok(batch) = desk.least.recv_batch(10) {
                    batch.iter().for_each(|order| tell('u', id_of(order.event()), 0));
                    batch.ack().or_else(unless_late).unwrap();
                }
            });
        }
        scope.spawn(|| desk.most.iter().for_each(|order| tell('m', id_of(&order), 0)));
        (0..2).for_each(|_| drop(scope.spawn(|| fail_sometimes(desk))));
        scope.spawn(|| keep_the_journal_busy(&desk.broker));
    });
    unreachable!("it goes on until it is ended")
}

fn unless_late(error: SettleError) -> Result<(), SettleError> {
    if let SettleError::LeaseExpired { .. } = error { Ok(()) } else { Err(error) }
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

fn ack_each(desk: &Desk) {
    for order in desk.exactly.iter() {
        let id = id_of(&order);
        tell('t', id, 0);
        match order.ack() {
            Ok(()) => tell('a', id, 0),
            Err(error) => {
                unless_late(error).unwrap();
                tell('x', id, 0);
            }
        }
    }
}

fn fail_sometimes(desk: &Desk) {
    for order in desk.flaky.iter() {
        let id = id_of(&order);
        let done = match id % 5 {
            0 => order.nack(),
            1 => order.reject("wrong"),
            2 => {
                drop(order);
                Ok(())
            }
            _ => {
                tell('f', id, 0);
                order.ack()
            }
        };
        done.or_else(unless_late).unwrap();
    }
}

/// So that there are checkpoints under way.
fn keep_the_journal_busy(broker: &Broker) {
    let bulk = broker.topic::<Vec<u8>>("bulk").open().unwrap();
    let reader = bulk.subscription("reader").open().unwrap();
    loop {
        bulk.publish(vec![7; 256 << 10]).unwrap();
        reader.recv().unwrap().ack().or_else(unless_late).unwrap();
    }
}

/// What the processes of one directory have told.
#[derive(Default)]
pub(crate) struct Told {
    begun: BTreeSet<u64>,
    /// With their sequences.
    published: BTreeMap<u64, u64>,
    ack_begun: BTreeSet<u64>,
    acked: BTreeSet<u64>,
    /// How many acks came too late.
    pub(crate) late: u64,
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
            "x" => self.late += 1,
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

    /// Opens the directory twice, and compares what it holds with what was told.
    pub(crate) fn verify_twice(&self, dir: &Path, manner: Manner, case: &str) {
        let once = self.verify(dir, manner, case);
        let twice = self.verify(dir, manner, &format!("{case}, opened again"));
        assert_eq!(once, twice, "{case}: the second opening finds something else");
    }

    /// Gives all of what the directory holds.
    fn verify(&self, dir: &Path, manner: Manner, case: &str) -> BTreeMap<u64, Vec<MessageStatus>> {
        let desk = Desk::open(dir, Manner { durability: "always", ..manner });
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

    /// As `scripts/torture` adds them up.
    pub(crate) fn figures(&self) -> String {
        let [published, acked, once] = [self.published.len(), self.acked.len(), self.most.len()];
        format!("{published} published, {acked} acked, {once} handed out once")
    }

    /// Else a comparison means nothing.
    pub(crate) fn has_done_something(&self) -> bool {
        !self.published.is_empty() && !self.acked.is_empty()
    }
}

/// The process as its parent has it.
pub(crate) struct Process {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Process {
    /// `before` is what a shell does first: it sets limits, for example.
    pub(crate) fn start(dir: &Path, manner: Manner, told: &Told, before: &str) -> Process {
        let next = (0..PUBLISHERS).map(|publisher| told.next(publisher).to_string());
        let deadline = manner.ack_deadline.as_millis().to_string();
        let words = [dir.display().to_string(), manner.durability.to_owned(), deadline];
        let order = words.into_iter().chain(next).collect::<Vec<_>>().join("|");
        let mut child = test_process(before, ENTRY).env(ORDER, order).spawn().expect("it starts");
        let stdout = child.stdout.take().expect("it is piped");
        Process { child, lines: BufReader::new(stdout).lines() }
    }

    /// Hears so many lines, which must come.
    pub(crate) fn hear(&mut self, told: &mut Told, lines: u64) {
        for _ in 0..lines {
            let Some(Ok(line)) = self.lines.next() else {
                panic!("it ended by itself: {:?}", self.child.wait());
            };
            told.hear(&line);
        }
    }

    #[cfg(unix)]
    pub(crate) fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args([signal, &self.child.id().to_string()]).status();
        assert!(sent.is_ok_and(|sent| sent.success()), "it runs, and takes {signal}");
    }

    /// Kills it, and hears it out.
    pub(crate) fn kill(mut self, told: &mut Told) {
        let status = self.end(told);
        assert!(status.code().is_none(), "it ended by itself: {status}");
    }

    /// The same where it may have met the end of its disk before.
    #[cfg(unix)]
    pub(crate) fn kill_what_may_have_ended(mut self, told: &mut Told) {
        self.end(told);
    }

    fn end(&mut self, told: &mut Told) -> ExitStatus {
        self.child.kill().expect("it can be killed");
        self.lines.by_ref().map_while(Result::ok).for_each(|line| told.hear(&line));
        self.child.wait().expect("it has ended")
    }
}

impl Drop for Process {
    /// When a test fails, its process does not go on without it.
    fn drop(&mut self) {
        let _ended_already = self.child.kill();
        let _ended_already = self.child.wait();
    }
}

/// This test binary as another process that runs one of its tests, from a shell that does `before` first.
pub(crate) fn test_process(before: &str, test: &str) -> Command {
    let this = std::env::current_exe().expect("this test has a file");
    let mut command = if before.is_empty() {
        Command::new(this)
    } else {
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("{before}\nexec \"$0\" \"$@\"")]).arg(this);
        shell
    };
    command.args(["--exact", test, "--nocapture", "--test-threads=1"]).stdout(Stdio::piped());
    command
}

/// Runs it to its end. How it ended, and all that it said.
pub(crate) fn run_through(command: &mut Command) -> (ExitStatus, String) {
    let done = command.output().expect("it starts");
    let said = [done.stdout, done.stderr].map(|said| String::from_utf8_lossy(&said).into_owned());
    (done.status, said.concat())
}

/// A number that the environment may set.
pub(crate) fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// The numbers that one seed gives.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }
}
