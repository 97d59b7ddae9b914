//! Transactions: together or not at all, also over a restart.

use std::time::Duration;

use eventflow::{Broker, CommitReason, ManualClock, Message};

use crate::support::{Dir, drain, end};

#[test]
fn p05_p16_what_a_transaction_acked_and_published_is_so_after_a_restart() {
    let dir = Dir::new();
    for is_clean in [true, false] {
        let broker = dir.open();
        let orders = broker.topic::<String>("orders").open().unwrap();
        let invoices = broker.topic::<String>("invoices").open().unwrap();
        let letters = broker.topic::<String>("letters").open().unwrap();
        let billing = orders.subscription("billing").open().unwrap();
        let printing = invoices.subscription("printing").open().unwrap();
        let posting = letters.subscription("posting").open().unwrap();
        orders.publish_all((0..10).map(|n| n.to_string())).unwrap();
        for n in 0..6 {
            let mut tx = broker.transaction();
            let order = billing.recv().unwrap();
            tx.publish(&invoices, format!("invoice {}", *order));
            tx.publish(&letters, format!("letter {}", *order));
            tx.ack(order);
            if n < 4 {
                assert_eq!(tx.commit().unwrap().len(), 2);
            } else {
                tx.rollback();
            }
        }
        assert_eq!(printing.stats().backlog, 4);
        if is_clean {
            end(broker);
        } else {
            drop((broker, orders, invoices, letters, billing, printing, posting));
        }
        let broker = dir.open();
        let billing =
            broker.topic::<String>("orders").open().unwrap().subscription("billing").open().unwrap();
        let printing =
            broker.topic::<String>("invoices").open().unwrap().subscription("printing").open().unwrap();
        let posting =
            broker.topic::<String>("letters").open().unwrap().subscription("posting").open().unwrap();
        let mut left = drain(&billing);
        left.sort();
        assert_eq!(left, ["4", "5", "6", "7", "8", "9"], "clean: {is_clean}");
        assert_eq!(drain(&printing), ["invoice 0", "invoice 1", "invoice 2", "invoice 3"]);
        assert_eq!(drain(&posting), ["letter 0", "letter 1", "letter 2", "letter 3"]);
        end(broker);
    }
}

#[test]
fn p05_a_transaction_that_fails_leaves_nothing_and_gives_itself_back() {
    let dir = Dir::new();
    let clock = ManualClock::new();
    let broker = Broker::builder().clock(clock.clone()).dir(dir.path()).build().unwrap();
    let orders = broker.topic::<String>("orders").open().unwrap();
    let invoices = broker.topic::<String>("invoices").open().unwrap();
    let billing = orders.subscription("billing").open().unwrap();
    let printing = invoices.subscription("printing").open().unwrap();
    orders.publish("7").unwrap();
    let mut tx = broker.transaction();
    tx.ack(billing.recv().unwrap());
    tx.publish(&invoices, "invoice 7");
    clock.advance(Duration::from_secs(11));
    let failed = tx.commit().unwrap_err();
    assert_eq!(failed.reason, CommitReason::LeaseExpired { count: 1 });
    drop(failed);
    assert_eq!((drain(&printing), drain(&billing)), (vec![], vec!["7".to_owned()]));
}

#[test]
fn p14_a_repeat_within_a_transaction_is_one_after_a_restart_too() {
    let dir = Dir::new();
    let publish = |broker: &Broker| {
        let invoices = broker.topic::<String>("invoices").open().unwrap();
        let printing = invoices.subscription("printing").open().unwrap();
        let mut tx = broker.transaction();
        tx.publish(&invoices, Message::new("invoice 7".to_owned()).idempotency_id("7"));
        (tx.commit().unwrap()[0], printing)
    };
    let broker = dir.open();
    let (first, printing) = publish(&broker);
    assert!(!first.deduplicated);
    let repeat = publish(&broker).0;
    assert!(repeat.deduplicated && repeat.id == first.id, "{repeat:?}");
    drop((broker, printing));
    let broker = dir.open();
    let (again, printing) = publish(&broker);
    assert!(again.deduplicated && again.id == first.id, "{again:?}");
    assert_eq!(drain(&printing), ["invoice 7"]);
}
