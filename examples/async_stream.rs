//! The same subscriptions from asynchronous code. The crate has no runtime of its own and takes any; this one
//! is tokio's.

use std::time::Duration;

use eventflow::{Broker, Subscription, Topic};
use futures::StreamExt;

const NUMBERS: u64 = 1_000;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> eventflow::Result<()> {
    let broker = Broker::in_memory();
    let numbers = broker.topic::<u64>("numbers").open()?;
    let squares = broker.topic::<u64>("squares").open()?;
    let squarer = numbers.subscription("squarer").open()?;
    let adder = squares.subscription("adder").open()?;

    // Two tasks share one subscription, as threads would; tasks and threads may share one too.
    let tasks: Vec<_> = (0..2).map(|_| tokio::spawn(square(squarer.clone(), squares.clone()))).collect();

    for number in 1..=NUMBERS {
        numbers.publish_async(number).await?; // waits for room without blocking the thread
    }

    let mut sum = 0;
    for _ in 0..NUMBERS {
        let square = adder.recv_async().await?;
        sum += *square;
        square.ack_async().await?;
    }
    assert_eq!(sum, (1..=NUMBERS).map(|number| number * number).sum::<u64>());
    println!("the squares of 1 to {NUMBERS} add up to {sum}");

    // A future of `recv_async` may be dropped at any time, as `timeout` does here: it has taken no message
    // with it.
    let nothing = tokio::time::timeout(Duration::from_millis(1), adder.recv_async()).await;
    assert!(nothing.is_err());

    broker.shutdown(Duration::from_secs(1))?; // ends the streams
    let mut squared = 0;
    for task in tasks {
        squared += task.await.expect("no task panics")?;
    }
    assert_eq!(squared, NUMBERS);
    Ok(())
}

/// Squares until the stream ends, and says how many.
async fn square(numbers: Subscription<u64>, squares: Topic<u64>) -> eventflow::Result<u64> {
    let mut squared = 0;
    let mut stream = numbers.stream();
    while let Some(number) = stream.next().await {
        squares.publish_async(*number * *number).await?;
        number.ack_async().await?;
        squared += 1;
    }
    Ok(squared)
}
