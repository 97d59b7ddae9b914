//! What fails again and again goes to a dead-letter topic, with the reason; when the cause is mended, it is
//! sent on its way again.

use eventflow::{Broker, DeadLetter, Message, Subscription};

#[derive(Debug, Clone)]
struct Invoice {
    number: u32,
    cents: i64,
}

fn main() -> eventflow::Result<()> {
    let broker = Broker::in_memory();
    let failed = broker.topic::<Invoice>("invoices.failed").open()?;
    let infirmary = failed.subscription("infirmary").open()?; // first: a topic read by nobody keeps nothing
    let invoices = broker.topic::<Invoice>("invoices").open()?;
    let printer = invoices.subscription("printer").dead_letter(DeadLetter::to(&failed).after(3)).open()?;

    for (number, cents) in [(1, 1999), (2, 0), (3, -500)] {
        let message = Message::new(Invoice { number, cents }).attribute("language", "fr");
        invoices.publish(message.idempotency_id(format!("invoice-{number}")))?;
    }

    // The first release of the printer cannot print zero, and refuses credit notes.
    let printed = print(&printer, |cents| if cents < 0 { Err("credit note") } else { Ok(cents != 0) })?;
    assert_eq!(printed, [1]);

    // A dead letter is the same event, and tells its story in attributes. A second release prints all, so
    // each is sent again.
    let mut reasons = Vec::new();
    while let Ok(letter) = infirmary.try_recv() {
        let message = letter.message();
        let story = |what: &str| message.attribute(&format!("eventflow.dead_letter.{what}")).unwrap_or("?");
        println!("invoice {}: {} after {} attempts", letter.number, story("reason"), story("attempts"));
        reasons.push((letter.number, story("reason").to_owned(), story("attempts").to_owned()));

        let mut again = Message::new(letter.clone());
        for (key, value) in message.attributes().filter(|(key, _)| !key.starts_with("eventflow.")) {
            again = again.attribute(key, value);
        }
        // An id of its own, made of the first: should this loop fail before its ack and come again, the
        // invoice is still printed once.
        again = again.idempotency_id(format!("{}-redriven", story("idempotency_id")));
        assert!(!invoices.publish(again)?.deduplicated);
        letter.ack()?;
    }
    let expected = [(3, "credit note", "1"), (2, "nacked", "3")];
    assert!(
        reasons.len() == 2
            && expected.iter().all(|(number, reason, attempts)| {
                reasons.contains(&(*number, reason.to_string(), attempts.to_string()))
            })
    );

    let mut printed = print(&printer, |_| Ok(true))?;
    printed.sort();
    assert_eq!(printed, [2, 3]);
    assert_eq!(broker.stats().backlog, 0);
    Ok(())
}

/// Prints what is there. `press` says whether a sum came out well, or why it never will.
fn print(
    invoices: &Subscription<Invoice>,
    press: impl Fn(i64) -> Result<bool, &'static str>,
) -> eventflow::Result<Vec<u32>> {
    let mut printed = Vec::new();
    while let Ok(invoice) = invoices.try_recv() {
        match press(invoice.cents) {
            Ok(true) => {
                printed.push(invoice.number);
                invoice.ack()?;
            }
            Ok(false) => invoice.nack()?,           // perhaps the next time
            Err(reason) => invoice.reject(reason)?, // never
        }
    }
    Ok(printed)
}
