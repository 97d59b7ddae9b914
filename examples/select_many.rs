//! One thread that waits for several subscriptions and a plain channel at once, with crossbeam's `select!`.

use std::thread;
use std::time::Duration;

use crossbeam_channel::{bounded, never, select};
use eventflow::Broker;

const READINGS: u32 = 100;

fn main() -> eventflow::Result<()> {
    let broker = Broker::in_memory();
    let temperatures = broker.topic::<f64>("temperatures").open()?;
    let alarms = broker.topic::<String>("alarms").open()?;
    let warmth = temperatures.subscription("panel").open()?;
    let trouble = alarms.subscription("panel").open()?;

    // Two ways into a `select!`. `ready` hands out no message, only the news that there is one: nothing is
    // leased while it waits.
    let warmth_ready = warmth.ready();
    // `channel` hands out deliveries, which a thread of the broker's leases ahead: here up to four.
    let troubles = trouble.channel(4);
    let (stop, mut stopped) = bounded(1);

    let sensor = thread::spawn(move || -> eventflow::Result<()> {
        for reading in 1..=READINGS {
            temperatures.publish(f64::from(reading))?;
            if reading % 40 == 0 {
                alarms.publish(format!("{reading} degrees"))?;
            }
        }
        stop.send(()).expect("the panel waits for it");
        Ok(())
    });

    let (mut shown, mut rung, mut switched_off) = (0, Vec::new(), false);
    while !switched_off || shown < READINGS || rung.len() < 2 {
        select! {
            recv(warmth_ready) -> news => {
                news.expect("the broker is open");
                // Perhaps more than one, and perhaps none: another subscriber may have been quicker.
                while let Ok(degrees) = warmth.try_recv() {
                    shown += 1;
                    degrees.ack()?;
                }
            }
            recv(troubles) -> alarm => {
                let alarm = alarm.expect("the broker is open");
                println!("alarm: {}", *alarm);
                rung.push(alarm.clone());
                alarm.ack()?;
            }
            recv(stopped) -> _ => {
                switched_off = true;
                stopped = never(); // or its end would be news for ever
            }
            default(Duration::from_secs(30)) => panic!("something should have come by now"),
        }
    }
    sensor.join().expect("the sensor does not panic")?;

    assert_eq!(shown, READINGS);
    assert_eq!(rung, ["40 degrees", "80 degrees"]);
    assert_eq!(broker.stats().backlog, 0);
    Ok(())
}
