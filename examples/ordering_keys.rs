//! Messages of one ordering key are settled in the order of their publish, also when one of them fails; other
//! keys do not wait for it.

use eventflow::{Broker, Message, TryRecvError};

#[derive(Debug, Clone, Copy, PartialEq)]
enum Movement {
    Deposit(u64),
    Withdraw(u64),
}
use Movement::{Deposit, Withdraw};

fn main() -> eventflow::Result<()> {
    let broker = Broker::in_memory();
    let movements = broker.topic::<Movement>("movements").open()?;
    let ledger = movements.subscription("ledger").ordered().open()?;

    for (account, movement) in
        [("anna", Deposit(100)), ("anna", Withdraw(80)), ("ben", Deposit(50)), ("anna", Withdraw(20))]
    {
        movements.publish(Message::new(movement).ordering_key(account))?;
    }

    // One subscriber books Anna's deposit. Until it has, nobody is given her withdrawals; Ben's deposit is
    // for anybody.
    let annas = ledger.recv()?;
    assert_eq!(*annas, Deposit(100));
    let bens = ledger.recv()?;
    assert_eq!((bens.message().ordering_key(), *bens), (Some("ben"), Deposit(50)));
    assert_eq!(ledger.try_recv().err(), Some(TryRecvError::Empty));
    bens.ack()?;

    // The booking fails. It comes back, and still before the withdrawals: the account is never overdrawn.
    annas.nack()?;
    let mut balance = 0;
    for expected in [Deposit(100), Withdraw(80), Withdraw(20)] {
        let movement = ledger.recv()?;
        assert_eq!(*movement, expected);
        balance = match *movement {
            Deposit(cents) => balance + cents,
            Withdraw(cents) => u64::checked_sub(balance, cents).expect("money is there before it is taken"),
        };
        println!("anna: {:?}, attempt {}, balance {balance}", *movement, movement.attempt());
        movement.ack()?;
    }
    assert_eq!(balance, 0);
    assert_eq!(ledger.stats().backlog, 0);
    Ok(())
}
