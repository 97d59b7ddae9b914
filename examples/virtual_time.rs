//! A program that waits for days, tested in no time: with a manual clock, time passes only when it is told
//! to.

use std::time::Duration;

use eventflow::{Broker, ManualClock, Message, RetryPolicy, TryRecvError};

const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

fn main() -> eventflow::Result<()> {
    let clock = ManualClock::new();
    let broker = Broker::builder().clock(clock.clone()).build()?;
    let reminders = broker.topic::<&str>("reminders").open()?;
    let mailer = reminders
        .subscription("mailer")
        .ack_deadline(MINUTE)
        .retry(RetryPolicy::fixed(5 * MINUTE))
        .expire_after(10 * DAY)
        .open()?;

    // Published now, due in a week: no thread sleeps for it.
    reminders.publish(Message::new("renew the passport").deliver_after(7 * DAY))?;
    clock.advance(7 * DAY - Duration::from_nanos(1));
    assert_eq!(mailer.try_recv().err(), Some(TryRecvError::Empty));
    assert_eq!(mailer.stats().delayed, 1);
    clock.advance(Duration::from_nanos(1));
    let mail = mailer.try_recv()?;
    assert_eq!(*mail, "renew the passport");

    // The mail server is down; the retry comes five minutes later, to the nanosecond.
    mail.nack()?;
    clock.advance(5 * MINUTE - Duration::from_nanos(1));
    assert!(mailer.try_recv().is_err());
    clock.advance(Duration::from_nanos(1));
    let mail = mailer.try_recv()?;
    assert_eq!(mail.attempt(), 2);

    // Now it hangs. Its lease ends with the ack deadline, unless it asks for more.
    mail.extend(2 * MINUTE)?;
    clock.advance(MINUTE);
    assert_eq!(mailer.stats().outstanding, 1);
    clock.advance(MINUTE);
    assert_eq!((mailer.stats().outstanding, mailer.stats().leases_expired), (0, 1));
    clock.advance(5 * MINUTE);
    let third = mailer.try_recv()?;
    assert_eq!(third.attempt(), 3);
    assert!(mail.ack().is_err(), "it is somebody else's by now");
    third.release()?; // not for us: costs no attempt, comes back at once

    // Nobody can send it. Ten days after its publish it is no reminder any more.
    clock.advance(10 * DAY);
    assert_eq!(mailer.try_recv().err(), Some(TryRecvError::Empty));
    assert_eq!((mailer.stats().backlog, mailer.stats().messages_expired), (0, 1));
    println!("ten days went by");
    Ok(())
}
