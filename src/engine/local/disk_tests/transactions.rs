//! Transactions, and a crash at every call: what one acks and publishes is there whole, or not at all.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::audit::{Found, audit, event};
use super::eventflow::{Broker, CommitReason, DeliveryMode, ManualClock, Retention, Subscription, Topic};
use super::workloads::copy;
use super::{open, setting};
use crate::journal::disk::Disk;
use crate::journal::disk::explore::{Bounds, Scenario, crashes};
use crate::journal::disk::sim::Tear;

const INPUTS: usize = 3;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Committed,
    /// Nobody knows yet.
    Open,
    Nothing,
}

/// By the number of the message that is acked, and that both outputs carry.
type History = BTreeMap<usize, Fate>;

struct Desk {
    broker: Broker,
    input: Topic<String>,
    outputs: [Topic<String>; 2],
    work: Subscription<String>,
}

impl Desk {
    /// None: the disk failed.
    fn open(disk: Arc<dyn Disk>) -> Option<Desk> {
        let broker = open(disk, &ManualClock::new()).ok()?;
        let topic = |name: &str| broker.topic::<String>(name).retention(Retention::forever()).open().ok();
        let (input, outputs) = (topic("in")?, [topic("out1")?, topic("out2")?]);
        let work = input.subscription("work").delivery(DeliveryMode::ExactlyOnce).open().ok()?;
        Some(Desk { broker, input, outputs, work })
    }
}

struct Transfers;

impl Scenario for Transfers {
    type History = History;
    /// Those that were committed.
    type Image = Vec<usize>;

    fn work(&self, disk: Arc<dyn Disk>, round: u32, history: &mut History) {
        if round > 0 {
            // To open is to look.
            let Ok(image) = self.look(disk.clone(), history) else { return };
            self.served(&image, history);
        }
        let Some(desk) = Desk::open(disk) else { return };
        let first = round as usize * INPUTS;
        let numbers = (first..first + INPUTS).map(|number| event(number, 40));
        if desk.input.publish_all(numbers).is_err() {
            return;
        }
        while let Ok(delivery) = desk.work.try_recv() {
            let number = number_of(&delivery);
            let mut tx = desk.broker.transaction();
            for output in &desk.outputs {
                tx.publish(output, event(number, 40));
            }
            tx.ack(delivery);
            history.insert(number, Fate::Open);
            match tx.commit() {
                Ok(_) => drop(history.insert(number, Fate::Committed)),
                Err(failed) => {
                    if !matches!(failed.reason, CommitReason::Indeterminate { .. }) {
                        history.insert(number, Fate::Nothing);
                    }
                    return;
                }
            }
        }
    }

    fn look(&self, disk: Arc<dyn Disk>, history: &History) -> Result<Vec<usize>, String> {
        let broker = open(disk.clone(), &ManualClock::new()).map_err(|error| format!("P18: {error}"))?;
        let copy = copy(&*disk).map_err(|error| error.to_string())?;
        drop(broker);
        committed(&audit(&copy, 0, false)?, history)
    }

    fn served(&self, image: &Vec<usize>, history: &mut History) {
        for (number, fate) in history {
            *fate = if image.contains(number) { Fate::Committed } else { Fate::Nothing };
        }
    }
}

fn number_of(event: &str) -> usize {
    event.split(':').next().and_then(|number| number.parse().ok()).expect("it begins with its number")
}

fn committed(found: &Found, history: &History) -> Result<Vec<usize>, String> {
    let kept = |topic: &str| -> Vec<usize> {
        let topic = found.topics.get(topic);
        topic.map(|topic| topic.kept.iter().map(|seen| seen.message).collect()).unwrap_or_default()
    };
    let (input, outputs) = (kept("in"), [kept("out1"), kept("out2")]);
    let work = found.topics.get("in").and_then(|topic| topic.subscriptions.get("work"));
    let left: Vec<usize> =
        work.map(|work| work.deliveries.iter().map(|seen| seen.message).collect()).unwrap_or_default();
    let mut committed = Vec::new();
    for number in input {
        let is_acked = work.is_some() && !left.contains(&number);
        let in_outputs =
            outputs.each_ref().map(|output| output.iter().filter(|seen| **seen == number).count());
        let fate = history.get(&number).copied().unwrap_or(Fate::Nothing);
        match (is_acked, in_outputs, fate) {
            (true, [1, 1], Fate::Committed | Fate::Open) => committed.push(number),
            (false, [0, 0], Fate::Nothing | Fate::Open) => {}
            what => return Err(format!("P5: {number} is acked, in the outputs, and was: {what:?}")),
        }
    }
    match history.iter().find(|(number, fate)| **fate == Fate::Committed && !committed.contains(number)) {
        Some((gone, _)) => Err(format!("P1: {gone} was committed, and is gone")),
        None => Ok(committed),
    }
}

#[test]
fn p5_p16_a_crash_anywhere_leaves_a_transaction_whole_or_nothing_of_it() {
    let seed = setting("EVENTFLOW_DISK_SEED", 1);
    let tear = [Tear::Never, Tear::Mixes][seed as usize % 2];
    let bounds = Bounds { seed, cuts: 2, recoveries: 0, cuts_again: 1, tear };
    let report = crashes(&Transfers, &bounds).unwrap_or_else(|wrong| panic!("{tear:?}: {wrong:?}"));
    println!("figures: {report}");
}
