//! What is delivered after a restart equals what was published before it.

use std::time::SystemTime;

use bytes::Bytes;
use eventflow::{Delivery, IdempotencyId, Message, MessageId};
use uuid::Uuid;

use crate::support::{Order, OrderCodec, SECOND, drain, order, over_restarts, send, take};

/// All that a message says of itself beside its event.
#[derive(Debug, PartialEq)]
struct Envelope {
    id: MessageId,
    publish_time: SystemTime,
    attributes: Vec<(String, String)>,
    ordering_key: Option<String>,
    idempotency_id: Option<IdempotencyId>,
}

fn envelope<E: Send + Sync + 'static>(delivery: &Delivery<E>) -> Envelope {
    let message = delivery.message();
    let mut attributes: Vec<_> =
        message.attributes().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
    attributes.sort();
    Envelope {
        id: message.id(),
        publish_time: message.publish_time(),
        attributes,
        ordering_key: message.ordering_key().map(str::to_owned),
        idempotency_id: message.idempotency_id().cloned(),
    }
}

#[test]
fn p03_a_text_is_what_was_published() {
    let texts = ["", "order 7", "grüezi 🦀 \0 \r\n", &"long ".repeat(20_000)];
    over_restarts(
        |broker| {
            let topic = broker.topic::<String>("orders").open().unwrap();
            (topic.subscription("billing").open().unwrap(), topic)
        },
        |(_, topic), _| {
            texts.iter().for_each(|text| {
                send(topic, *text);
            });
            ((), ())
        },
        |(billing, _), (), _, _| assert_eq!(drain(billing), texts),
    );
}

#[test]
fn p03_raw_bytes_are_what_was_published() {
    let payloads = [vec![], vec![0], vec![0; 100_000], (0..=255).collect::<Vec<u8>>()];
    over_restarts(
        |broker| {
            let shared = broker.topic::<Bytes>("shared").open().unwrap();
            let owned = broker.topic::<Vec<u8>>("owned").open().unwrap();
            (shared.subscription("a").open().unwrap(), owned.subscription("a").open().unwrap(), shared, owned)
        },
        |(_, _, shared, owned), _| {
            for payload in &payloads {
                send(shared, Bytes::from(payload.clone()));
                send(owned, payload.clone());
            }
            ((), ())
        },
        |(shared, owned, ..), (), _, _| {
            assert_eq!(drain(shared), payloads);
            assert_eq!(drain(owned), payloads);
        },
    );
}

#[test]
fn p03_an_event_with_a_codec_is_what_was_published() {
    over_restarts(
        |broker| {
            let topic = broker.topic::<Order>("orders").codec(OrderCodec("order/1")).open().unwrap();
            (topic.subscription("billing").open().unwrap(), topic)
        },
        |(_, topic), _| {
            (0..300).for_each(|n| {
                send(topic, order(n));
            });
            ((), ())
        },
        |(billing, _), (), _, _| assert_eq!(drain(billing), (0..300).map(order).collect::<Vec<_>>()),
    );
}

#[test]
fn p03_attributes_key_ids_and_publish_time_are_as_they_were() {
    over_restarts(
        |broker| {
            let topic = broker.topic::<String>("orders").open().unwrap();
            (topic.subscription("billing").open().unwrap(), topic)
        },
        |(billing, topic), clock| {
            let many = (0..100).fold(Message::new("many".to_owned()), |message, n| {
                message.attribute(format!("key {n}"), "v".repeat(n))
            });
            let uuid = Uuid::from_u128(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef);
            for message in [
                Message::new("plain".to_owned()),
                Message::new("with".to_owned()).attribute("region", "eu").attribute("empty", ""),
                Message::new("keyed".to_owned()).ordering_key("customer 7").idempotency_id("a text as an id"),
                Message::new("uuid".to_owned()).idempotency_id(uuid),
                many,
            ] {
                clock.advance(SECOND);
                send(topic, message);
            }
            // Seen before, and not settled.
            let deliveries: Vec<_> = std::iter::from_fn(|| billing.try_recv().ok()).collect();
            let envelopes: Vec<_> = deliveries.iter().map(envelope).collect();
            assert_eq!(envelopes.len(), 5);
            (deliveries, envelopes)
        },
        |(billing, topic), envelopes, _, clock| {
            clock.advance(SECOND);
            let again: Vec<_> = std::iter::from_fn(|| billing.try_recv().ok()).collect();
            assert_eq!(again.iter().map(envelope).collect::<Vec<_>>(), envelopes);
            assert_eq!(again[2].message().ordering_key(), Some("customer 7"));
            assert_eq!(send(topic, "next").id.sequence(), 6);
        },
    );
}

#[test]
fn p04_a_sequence_once_seen_is_never_given_again() {
    over_restarts(
        |broker| {
            let topic = broker.topic::<String>("orders").open().unwrap();
            let unread = broker.topic::<String>("unread").open().unwrap();
            (topic.subscription("billing").open().unwrap(), topic, unread)
        },
        |(billing, topic, unread), _| {
            let last = (0..10).fold(None, |_, n| Some(send(topic, format!("order {n}")).id)).unwrap();
            assert_eq!(drain(billing).len(), 10);
            // Kept for nobody, but seen.
            let unread = (0..5).fold(None, |_, n| Some(send(unread, format!("order {n}")).id)).unwrap();
            ((), (last, unread))
        },
        |(_, topic, unread), (last, last_unread), _, _| {
            let next = send(topic, "next").id;
            assert!(next > last, "{next} after {last}");
            assert_eq!(next.sequence(), 11);
            let next = send(unread, "next").id;
            assert!(next > last_unread, "{next} after {last_unread}");
            assert_eq!(next.incarnation(), last_unread.incarnation());
        },
    );
}

#[test]
fn p04_messages_come_in_their_order() {
    over_restarts(
        |broker| {
            let topic = broker.topic::<String>("orders").open().unwrap();
            (topic.subscription("billing").open().unwrap(), topic)
        },
        |(billing, topic), _| {
            for n in 0..600 {
                send(topic, format!("order {n}"));
            }
            ((take(billing), take(billing)), ())
        },
        |(billing, topic), (), _, _| {
            send(topic, "order 600");
            // Those that were leased are to be delivered again, which is in order too, as nobody else waits.
            let all: Vec<_> = std::iter::from_fn(|| billing.try_recv().ok()).collect();
            let mut sequences: Vec<_> = all.iter().map(|delivery| delivery.id().sequence()).collect();
            let first_time: Vec<_> = sequences.iter().copied().filter(|sequence| *sequence > 2).collect();
            assert!(first_time.is_sorted(), "{first_time:?}");
            sequences.sort_unstable();
            assert_eq!(sequences, (1..=601).collect::<Vec<_>>());
        },
    );
}

#[test]
fn p05_a_batch_is_there_whole() {
    over_restarts(
        |broker| {
            let topic = broker.topic::<Order>("orders").codec(OrderCodec("order/1")).open().unwrap();
            (topic.subscription("billing").open().unwrap(), topic)
        },
        |(_, topic), _| {
            for batch in 0..10 {
                let receipts = topic.publish_all((0..50).map(|n| order(batch * 50 + n))).unwrap();
                assert_eq!(receipts.len(), 50);
            }
            let mixed = [
                Message::new(order(500)).attribute("a", "b"),
                Message::new(order(501)).idempotency_id("501"),
                Message::new(order(501)).idempotency_id("501"),
            ];
            let receipts = topic.publish_all(mixed).unwrap();
            assert!(receipts[2].deduplicated && receipts[2].id == receipts[1].id);
            ((), ())
        },
        |(billing, topic), (), _, _| {
            let batch = billing.recv_batch(1_000).unwrap();
            let numbers: Vec<_> = batch.iter().map(|message| message.event().number).collect();
            assert_eq!(numbers, (0..502).collect::<Vec<_>>());
            batch.ack().unwrap();
            // A batch with one that conflicts publishes nothing, and gives no numbers.
            let conflict = [Message::new(order(1)), Message::new(order(2)).idempotency_id("501")];
            assert!(topic.publish_all(conflict).is_err());
            assert_eq!(drain(billing), []);
        },
    );
}
