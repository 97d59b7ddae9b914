//! Closed, or dropped, and opened again.

use crate::support::{Dir, drain, end};

#[test]
fn p01_what_was_published_and_not_acked_is_there_again() {
    let dir = Dir::new();
    for is_clean in [true, false] {
        let broker = dir.open();
        let orders = broker.topic::<String>("orders").open().unwrap();
        let billing = orders.subscription("billing").open().unwrap();
        assert_eq!(drain(&billing), [""; 0]);
        orders.publish_all((0..100).map(|n| format!("order {n}"))).unwrap();
        for _ in 0..40 {
            billing.recv().unwrap().ack().unwrap();
        }
        if is_clean {
            end(broker)
        } else {
            drop((broker, orders, billing))
        }

        for _ in 0..2 {
            let broker = dir.open();
            let billing =
                broker.topic::<String>("orders").open().unwrap().subscription("billing").open().unwrap();
            assert_eq!(billing.stats().backlog, 60, "clean: {is_clean}");
            end(broker);
        }
        let broker = dir.open();
        let billing =
            broker.topic::<String>("orders").open().unwrap().subscription("billing").open().unwrap();
        let expected: Vec<_> = (40..100).map(|n| format!("order {n}")).collect();
        assert_eq!(drain(&billing), expected);
        end(broker);
    }
}
