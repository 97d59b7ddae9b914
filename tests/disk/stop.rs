//! A process that stands still for a while, as one does that is suspended, swapped out or starved: nothing is lost, and what ran out meanwhile has run out.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use eventflow::{Broker, DeliveryMode, OpenError, SettleError};

use crate::process::{ALWAYS, Manner, Process, Random, Told, setting, test_process};
use crate::support::{Dir, drain, send, take, watched};

const PATIENCE: Duration = Duration::from_secs(60);
const ACK_DEADLINE: Duration = Duration::from_millis(100);

fn signal(pid: u32, signal: &str) {
    let sent = Command::new("kill").args([signal, &pid.to_string()]).status().expect("there is a kill");
    assert!(sent.success(), "it runs, and takes {signal}");
}

#[test]
fn p01_p07_a_process_that_stood_still_under_load_goes_on_and_loses_nothing() {
    let (seed, stops) = (setting("EVENTFLOW_SEED", 0x5109), setting("EVENTFLOW_STOPS", 4));
    println!("EVENTFLOW_SEED={seed} EVENTFLOW_STOPS={stops}");
    watched(PATIENCE * stops as u32, move || {
        let dir = Dir::new();
        let mut told = Told::default();
        let mut random = Random(seed);
        let manner = Manner { ack_deadline: ACK_DEADLINE, ..ALWAYS };
        let mut process = Process::start(dir.path(), manner, &told, "");
        for stop in 0..stops {
            process.hear(&mut told, 100 + random.below(400));
            process.signal("-STOP");
            let opened = Broker::open(dir.path()).map(drop);
            assert!(matches!(opened, Err(OpenError::AlreadyOpen)), "it still has the directory: {opened:?}");
            // Shorter than a lease, or longer.
            thread::sleep(ACK_DEADLINE * (1 + 3 * random.below(2) as u32) / 2);
            process.signal("-CONT");
            process.hear(&mut told, 100 + random.below(400));
            if stop % 2 == 1 {
                process.signal("-STOP");
                process.kill(&mut told);
                told.verify_twice(dir.path(), manner, &format!("stop {stop}"));
                process = Process::start(dir.path(), manner, &told, "");
            }
        }
        process.kill(&mut told);
        told.verify_twice(dir.path(), manner, "at the end");
        println!("figures: {stops} stops, {} acks too late, {}", told.late, told.figures());
        assert!(told.has_done_something());
    });
}

/// Makes the test below the process that stands still.
const HOLDS: &str = "EVENTFLOW_TEST_HOLDS_A_LEASE";

fn hold_a_lease(dir: &str) {
    let broker = Broker::open(dir).unwrap();
    let orders = broker.topic::<String>("orders").open().unwrap();
    let billing =
        orders.subscription("billing").delivery(DeliveryMode::ExactlyOnce).ack_deadline(ACK_DEADLINE);
    let billing = billing.open().unwrap();
    send(&orders, "held while nobody runs");
    let held = take(&billing);
    println!("\nheld");
    // The lease runs on while this waits.
    std::io::stdin().read_line(&mut String::new()).unwrap();
    assert_eq!(held.ack(), Err(SettleError::LeaseExpired { count: 1 }));
    let again = take(&billing);
    assert_eq!(again.attempt(), 2);
    again.ack().unwrap();
    println!("acked the second time");
}

#[test]
fn p07_p08_a_lease_runs_out_while_its_process_stands_still() {
    if let Ok(dir) = std::env::var(HOLDS) {
        return hold_a_lease(&dir);
    }
    watched(PATIENCE, || {
        let dir = Dir::new();
        let mut child = test_process("", "stop::p07_p08_a_lease_runs_out_while_its_process_stands_still")
            .env(HOLDS, dir.path())
            .stdin(Stdio::piped())
            .spawn()
            .expect("it starts");
        let mut stdin = child.stdin.take().expect("it is piped");
        let mut lines = BufReader::new(child.stdout.take().expect("it is piped")).lines();
        assert!(lines.by_ref().map_while(Result::ok).any(|line| line == "held"));
        signal(child.id(), "-STOP");
        thread::sleep(ACK_DEADLINE * 2);
        signal(child.id(), "-CONT");
        writeln!(stdin, "go on").expect("it listens");
        let said = lines.map_while(Result::ok).collect::<Vec<_>>();
        assert!(child.wait().expect("it ends").success(), "{said:?}");
        assert!(said.iter().any(|line| line == "acked the second time"), "{said:?}");
        let broker = dir.open();
        let orders = broker.topic::<String>("orders").open().unwrap();
        assert_eq!(drain(&orders.subscription("billing").open().unwrap()), [""; 0]);
    });
}
