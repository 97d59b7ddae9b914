//! Topics as bytes, whatever their codecs are.

use bytes::Bytes;
use eventflow::{
    Broker, Codec, CodecError, CreateError, DeadLetter, Encoded, ManualClock, Message, PublishError,
    Subscription, Topic,
};

use crate::support::{Dir, ENDS, Order, OrderCodec, drain, ended, order, send, take, write_much};

fn typed(broker: &Broker) -> (Topic<Order>, Subscription<Order>) {
    let orders = broker.topic::<Order>("orders").codec(OrderCodec("order/1")).open().unwrap();
    let billing = orders.subscription("billing").open().unwrap();
    (orders, billing)
}

fn as_bytes(broker: &Broker) -> (Topic<Encoded>, Subscription<Encoded>) {
    let orders = broker.topic::<Encoded>("orders").open().unwrap();
    let billing = orders.subscription("billing").open().unwrap();
    (orders, billing)
}

fn encoded(number: u32) -> Encoded {
    let mut bytes = Vec::new();
    OrderCodec("order/1").encode(&order(number), &mut bytes).unwrap();
    bytes.into()
}

#[test]
fn a_topic_of_any_codec_opens_as_bytes_and_goes_on_as_what_it_was() {
    for end in ENDS {
        for checkpoints in [false, true] {
            println!("{end:?}, checkpoints {checkpoints}");
            let clock = ManualClock::new();
            let dir = Dir::new();
            let broker = dir.open_at(&clock);
            let (orders, billing) = typed(&broker);
            (0..10).for_each(|n| _ = send(&orders, order(n)));
            let dir = ended(end, dir, broker, (orders, billing));

            let broker = dir.open_at(&clock);
            let (orders, billing) = as_bytes(&broker);
            assert_eq!(drain(&billing), (0..10).map(encoded).collect::<Vec<_>>());
            (10..20).for_each(|n| _ = send(&orders, encoded(n)));
            if checkpoints {
                write_much(&broker);
            }
            let dir = ended(end, dir, broker, (orders, billing));

            let broker = dir.open_at(&clock);
            let (orders, billing) = typed(&broker);
            send(&orders, order(20));
            let left: Vec<_> = drain(&billing).into_iter().filter(|order| order.number >= 10).collect();
            assert_eq!(left, (10..=20).map(order).collect::<Vec<_>>());
        }
    }
}

#[test]
fn raw_bytes_and_text_open_as_bytes_too() {
    let dir = Dir::new();
    let broker = dir.open();
    let text = broker.topic::<String>("text").open().unwrap();
    let raw = broker.topic::<Bytes>("raw").open().unwrap();
    let subscriptions = (text.subscription("a").open().unwrap(), raw.subscription("a").open().unwrap());
    send(&text, "grüezi");
    send(&raw, Bytes::from_static(b"\xFF\0"));
    drop((text, raw, subscriptions, broker));

    let broker = dir.open();
    let text = broker.topic::<Encoded>("text").open().unwrap();
    let raw = broker.topic::<Encoded>("raw").open().unwrap();
    assert_eq!(*take(&text.subscription("a").open().unwrap()), Encoded::from("grüezi".as_bytes().to_vec()));
    assert_eq!(*take(&raw.subscription("a").open().unwrap()), Encoded::from(b"\xFF\0".to_vec()));
    send(&raw, Encoded::from(b"\xFE".to_vec()));
    // Text stays text: what is none would keep the topic from being opened as such.
    let refused = text.publish(Encoded::from(b"\xFF\0".to_vec()));
    let Err(PublishError::Encode { message, error, .. }) = refused else { panic!("{refused:?}") };
    assert_eq!(&message.event()[..], b"\xFF\0");
    assert!(error.to_string().contains("UTF-8"), "{error}");
    drop((text, raw, broker));

    let broker = dir.open();
    let text = broker.topic::<String>("text").open().unwrap();
    assert_eq!(drain(&text.subscription("a").open().unwrap()), ["grüezi"]);
    let raw = broker.topic::<Vec<u8>>("raw").open().unwrap();
    assert_eq!(drain(&raw.subscription("a").open().unwrap()), [b"\xFF\0".to_vec(), b"\xFE".to_vec()]);
}

#[test]
fn one_that_is_made_of_bytes_is_raw() {
    let dir = Dir::new();
    let broker = dir.open();
    let made = broker.topic::<Encoded>("made").create().unwrap();
    made.subscription("a").create().unwrap();
    send(&made, Encoded::from(b"\xFF".to_vec()));
    drop((made, broker));
    let broker = dir.open();
    let mismatch = broker.topic::<String>("made").open().unwrap_err();
    assert!(matches!(&mismatch, CreateError::ConfigMismatch { option: "codec", stored, asked, .. }
        if stored == "raw" && asked == "utf8"));
    let made = broker.topic::<Bytes>("made").open().unwrap();
    assert_eq!(drain(&made.subscription("a").open().unwrap()), [Bytes::from_static(b"\xFF")]);
}

#[test]
fn at_a_time_a_topic_is_open_by_its_type_or_as_bytes() {
    let dir = Dir::new();
    let broker = dir.open();
    let both = typed(&broker);
    let mismatch = broker.topic::<Encoded>("orders").open().unwrap_err();
    assert!(matches!(mismatch, CreateError::TypeMismatch { asked, .. } if asked.ends_with("Encoded")));
    assert!(matches!(broker.topic::<Encoded>("orders").create(), Err(CreateError::AlreadyExists)));
    drop((both, broker));
    let broker = dir.open();
    let _both = as_bytes(&broker);
    let again = broker.topic::<Order>("orders").codec(OrderCodec("order/1")).open().unwrap_err();
    assert!(matches!(again, CreateError::TypeMismatch { stored, .. } if stored.ends_with("Encoded")));
    // Who says nothing of codecs attaches.
    assert!(broker.topic::<Encoded>("orders").open().is_ok());
}

/// Bytes under a name of one's own choice.
struct Named(&'static str);

impl Codec<Encoded> for Named {
    fn name(&self) -> &str {
        self.0
    }

    fn encode(&self, event: &Encoded, out: &mut Vec<u8>) -> Result<(), CodecError> {
        out.extend_from_slice(event);
        Ok(())
    }

    fn decode(&self, bytes: &[u8]) -> Result<Encoded, CodecError> {
        Ok(bytes.to_vec().into())
    }
}

#[test]
fn a_codec_that_is_named_must_be_the_topics_own() {
    let dir = Dir::new();
    let broker = dir.open();
    send(&typed(&broker).0, order(7));
    drop(broker);
    let broker = dir.open();
    let none = broker.topic::<Order>("orders").open().unwrap_err();
    assert!(matches!(&none, CreateError::ConfigMismatch { option: "codec", stored, asked, .. }
        if stored == "order/1" && asked == "none"));
    let other = broker.topic::<Encoded>("orders").codec(Named("order/2")).open().unwrap_err();
    assert!(matches!(&other, CreateError::ConfigMismatch { option: "codec", stored, asked, .. }
        if stored == "order/1" && asked == "order/2"));
    let own = broker.topic::<Encoded>("orders").codec(Named("order/1")).open().unwrap();
    assert_eq!(drain(&own.subscription("billing").open().unwrap()), [encoded(7)]);
}

#[test]
fn closures_that_know_the_typed_event_need_not_be_given_and_stay_asked_for() {
    let dir = Dir::new();
    let open = |broker: &Broker| {
        let orders = broker.topic::<Order>("orders").codec(OrderCodec("order/1"));
        orders.weigh(|_| 3).fingerprint(|order| u64::from(order.number)).open()
    };
    let once = |message: Message<_>| message.idempotency_id("once");
    let broker = dir.open();
    let orders = open(&broker).unwrap();
    orders.subscription("billing").create().unwrap();
    let first = orders.publish(once(Message::new(order(1)))).unwrap();
    drop((orders, broker));

    let broker = dir.open();
    let (orders, billing) = as_bytes(&broker);
    // Whether it is the same payload nobody can say here.
    let refused = orders.publish(Message::new(encoded(1)).idempotency_id("once"));
    assert!(
        matches!(&refused, Err(PublishError::Encode { error, .. }) if error.to_string().contains("fingerprint"))
    );
    send(&orders, encoded(2));
    assert_eq!(drain(&billing), [encoded(1), encoded(2)]);
    write_much(&broker);
    drop((orders, billing, broker));

    let broker = dir.open();
    let without = broker.topic::<Order>("orders").codec(OrderCodec("order/1")).weigh(|_| 3).open();
    assert!(matches!(without, Err(CreateError::ConfigMismatch { option: "fingerprint", .. })));
    let orders = open(&broker).unwrap();
    let again = orders.publish(once(Message::new(order(1)))).unwrap();
    assert_eq!((again.id, again.deduplicated), (first.id, true));
    assert!(matches!(
        orders.publish(once(Message::new(order(2)))),
        Err(PublishError::IdempotencyConflict(_))
    ));
}

#[test]
fn p11_bytes_are_dead_lettered_to_a_topic_that_is_open_as_bytes() {
    let dir = Dir::new();
    let broker = dir.open();
    let failed = broker.topic::<Order>("failed").codec(OrderCodec("order/1")).open().unwrap();
    failed.subscription("inspection").open().unwrap();
    let orders = broker.topic::<Order>("orders").codec(OrderCodec("order/1")).open().unwrap();
    orders.subscription("billing").dead_letter(DeadLetter::to(&failed).after(1)).create().unwrap();
    send(&orders, order(7));
    drop((failed, orders, broker));

    let broker = dir.open();
    let (_orders, billing) = as_bytes(&broker);
    take(&billing).nack().unwrap();
    assert_eq!(billing.stats().parked, 1, "nobody has opened its dead-letter topic yet");
    let failed = broker.topic::<Encoded>("failed").open().unwrap();
    assert_eq!(drain(&failed.subscription("inspection").open().unwrap()), [encoded(7)]);
    assert_eq!(billing.stats().backlog, 0);
}
