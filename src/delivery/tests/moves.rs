//! The table of moves in the ledger's own words, against what the ledger does.

use std::collections::{BTreeMap, BTreeSet};

use crate::delivery::ledger::{Ledger, Standing};
use crate::delivery::tests::language::Stage;
use crate::delivery::tests::seq;

const UNSEEN: &str = "not looked at";
const RUN: &str = "leased (in a run)";
const SETTLED: &str = "settled";

/// One way into each standing: the script, and the message that then stands there.
const WAYS: [(&str, &str, u64); 10] = [
    (UNSEEN, "publish 1", 1),
    (RUN, "publish 1; lease", 1),
    ("Fresh", "looks; publish 1; look; looked", 1),
    ("Again", "looks; publish 1; lease; nack 1", 1),
    ("Delayed", "publish .@50; look; looked", 1),
    ("Queued", "ordered; publish a a; look; looked", 2),
    ("Leased", "looks; publish 1; lease", 1),
    ("Committing", "publish 1; lease; prepare 1", 1),
    ("Burying", "dead 1; grave busy; publish 1; lease; nack 1", 1),
    ("Parked", "dead 1; grave shut; publish 1; lease; nack 1", 1),
];

/// News, as the table says it; what comes before; the message; the news itself. The standings are observed.
const MOVES: &[(&str, &str, u64, &str)] = &[
    ("handed out, nothing to examine", "publish 2", 2, "lease 2"),
    ("handed out, nothing to examine", "at-most-once; publish 2", 2, "lease 2"),
    ("examined: taken", "publish .", 1, "look; looked"),
    ("examined: taken", "publish .@5", 1, "look; looked"),
    ("examined: taken", "ordered; publish a a", 2, "look; looked"),
    ("examined: the filter panicked", "publish .?", 1, "look; looked"),
    ("examined: the filter panicked", "retry 5; publish .?", 1, "look; looked"),
    ("examined: the filter panicked", "ordered; publish a a?", 2, "look; looked"),
    ("examined: the filter panicked", "dead 1; grave busy; publish .?", 1, "look; looked"),
    ("examined: the filter panicked", "discard 1; publish .?", 1, "look; looked"),
    ("examined: filtered out, gone; its life over", "publish .x", 1, "look; looked"),
    ("examined: filtered out, gone; its life over", "publish .-", 1, "look; looked"),
    ("examined: filtered out, gone; its life over", "publish .!5; at 5", 1, "look; looked"),
    ("examined: filtered out, gone; its life over", "publish .!5; at 5", 1, "unseen 1"),
    ("handed out", "looks; publish 1; look; looked", 1, "lease"),
    ("handed out", "publish 1; lease; nack 1", 1, "lease"),
    ("handed out", "at-most-once; looks; publish 1; look; looked", 1, "lease"),
    ("handed out behind those of its key, in one batch", "ordered; publish a a; look; looked", 2, "lease 2"),
    ("its time comes", "publish .@5; look; looked; at 5", 1, "tick"),
    ("its time comes", "publish .; lease; nack 1+5; at 5", 1, "tick"),
    ("it is first of its key", "ordered; publish a a; lease", 2, "ack 1"),
    ("it is first of its key", "ordered; publish a a@9; lease", 2, "ack 1"),
    ("it is first of its key", "ordered; publish a a; lease 2; nack 2", 2, "ack 1"),
    ("it is first of its key", "ordered; retry 5; publish a a; lease 2; nack 2", 2, "ack 1"),
    ("it is first of its key", "ordered; publish a!5 a; lease; nack 1+9; at 5", 2, "tick"),
    ("it is first of its key", "ordered; publish a a; lease", 2, "drop 1"),
    ("ack", "publish 1; lease", 1, "ack 1"),
    ("ack", "looks; publish 1; lease", 1, "ack 1"),
    ("ack", "ordered; publish a a; lease 2; ack 1", 2, "ack 2"),
    ("ack or reject before it is first of its key", "ordered; publish a a; lease 2", 2, "ack 2"),
    ("ack or reject before it is first of its key", "ordered; publish a a; lease 2", 2, "reject 2"),
    ("nack, drop, deadline", "publish 1; lease", 1, "nack 1"),
    ("nack, drop, deadline", "looks; publish 1; lease", 1, "nack 1"),
    ("nack, drop, deadline", "publish 1; lease", 1, "nack 1+5"),
    ("nack, drop, deadline", "ordered; publish a a; lease 2", 2, "nack 2"),
    ("nack, drop, deadline", "dead 1; grave busy; publish 1; lease", 1, "nack 1"),
    ("nack, drop, deadline", "discard 1; publish 1; lease", 1, "nack 1"),
    ("nack, drop, deadline", "looks; publish .!5; lease; at 5", 1, "nack 1"),
    ("nack, drop, deadline", "publish 1; lease; at 10", 1, "tick"),
    ("nack, drop, deadline", "looks; retry 5; publish 1; lease; at 10", 1, "tick"),
    ("nack, drop, deadline", "discard 1; publish 1; lease; at 10", 1, "tick"),
    ("release; an earlier member of its run is given back", "publish 1; lease", 1, "release 1"),
    (
        "release; an earlier member of its run is given back",
        "publish 1; lease; nack 1; lease",
        1,
        "release 1",
    ),
    ("release; an earlier member of its run is given back", "ordered; publish a a; lease 2", 2, "release 1"),
    ("release; an earlier member of its run is given back", "ordered; publish a a; lease 2", 2, "nack 1"),
    ("reject", "dead 5; grave busy; publish 1; lease", 1, "reject 1"),
    ("reject", "looks; publish 1; lease", 1, "reject 1"),
    ("a transaction prepares", "publish 1; lease", 1, "prepare 1"),
    ("the transaction commits, or fails", "publish 1; lease; prepare 1; at 99", 1, "finish 1"),
    ("the transaction commits, or fails", "publish 1; lease; prepare 1; at 99", 1, "abort 1"),
    ("it is in the dead-letter topic", "dead 1; grave busy; publish 1; lease; nack 1", 1, "grave done"),
    (
        "the dead-letter topic is gone, or would keep nothing",
        "dead 1; grave busy; grave shut; publish 1; lease; nack 1",
        1,
        "grave done",
    ),
    (
        "a subscription is created on the dead-letter topic",
        "dead 1; grave shut; publish 1; lease; nack 1; grave busy",
        1,
        "retry-parked",
    ),
    (
        "a late ack (`AtLeastOnce`, nobody holds it, first of its key)",
        "publish 1; lease; release 1",
        1,
        "ack 1",
    ),
    ("a late ack (`AtLeastOnce`, nobody holds it, first of its key)", "publish 1; lease; nack 1", 1, "ack 1"),
    (
        "a late ack (`AtLeastOnce`, nobody holds it, first of its key)",
        "publish 1; lease; nack 1+5",
        1,
        "ack 1",
    ),
    (
        "a late ack (`AtLeastOnce`, nobody holds it, first of its key)",
        "dead 1; grave shut; publish 1; lease; nack 1",
        1,
        "ack 1",
    ),
    ("its life is over", "publish .!5; at 5", 1, "unseen 1"),
    ("its life is over", "publish .!5; look; looked; at 5", 1, "tick"),
    ("its life is over", "publish .!5; lease; nack 1; at 5", 1, "tick"),
    ("its life is over", "publish .!5@9; look; looked; at 5", 1, "tick"),
    ("its life is over", "ordered; publish a a!5; look; looked; at 5", 2, "tick"),
    ("its life is over", "dead 1; grave shut; publish .!5; lease; nack 1; at 5", 1, "tick"),
];

type Sets = (BTreeSet<String>, BTreeSet<String>);

fn stand(ledger: &Ledger, number: u64) -> String {
    let sequence = seq(number);
    if ledger.settled().is_settled(sequence) {
        return SETTLED.to_owned();
    }
    match ledger.entries.get(&sequence).map(|entry| entry.standing) {
        Some(standing) => {
            let debug = format!("{standing:?}");
            debug.split(' ').next().unwrap_or_default().to_owned()
        }
        None if ledger.runs.values().any(|run| run.holds(sequence)) => RUN.to_owned(),
        None => UNSEEN.to_owned(),
    }
}

/// News to the standings it was seen to lead from and to.
fn observed() -> BTreeMap<String, Sets> {
    let mut seen: BTreeMap<String, Sets> = BTreeMap::new();
    let mut drive = |news: &str, before: &str, message: u64, act: &str| {
        let mut stage = Stage::perform(before);
        let from = stand(&stage.rig.ledger, message);
        stage.play(act);
        let to = stand(&stage.rig.ledger, message);
        println!("{from:18} | {act:14} | {to}");
        let sets = seen.entry(news.to_owned()).or_default();
        sets.0.insert(if from == RUN { "Leased".to_owned() } else { from });
        sets.1.insert(to);
    };
    for (standing, way, message) in WAYS {
        assert_eq!(stand(&Stage::perform(way).rig.ledger, message), standing, "{way}");
        drive("`Overflow::DropOldest` drops it, or the log does", way, message, &format!("drop {message}"));
        let removal = format!("removed {message} {message}");
        drive("`Overflow::DropOldest` drops it, or the log does", way, message, &removal);
        drive("a seek before it; behind it", way, message, "seek 1");
        drive("a seek before it; behind it", way, message, &format!("seek {}", message + 1));
    }
    for (news, before, message, act) in MOVES {
        drive(news, before, *message, act);
    }
    seen
}

/// The names of standings in one cell of the table.
fn names(cell: &str) -> BTreeSet<String> {
    let all = WAYS.iter().map(|way| way.0).chain([SETTLED]);
    let named =
        |name: &&str| cell.contains(&format!("`{name}`")) || (name.contains(' ') && cell.contains(*name));
    let found: BTreeSet<String> = all
        .clone()
        .filter(|name| named(name) || (*name == SETTLED && cell.contains(name)))
        .map(str::to_owned)
        .collect();
    if cell.trim().starts_with("any") {
        return all
            .filter(|name| ![RUN, SETTLED].contains(name) && !found.contains(*name))
            .map(str::to_owned)
            .collect();
    }
    found
}

fn table() -> BTreeMap<String, Sets> {
    let rows = include_str!("../ledger.rs").lines().filter_map(|line| line.strip_prefix("//! | "));
    let rows = rows.map(|row| row.trim_end_matches('|').split(" | ").map(str::trim).collect::<Vec<_>>());
    let rows = rows.filter(|cells| cells.len() == 3 && cells[0] != "from");
    let mut table = BTreeMap::new();
    for cells in rows {
        let before = table.insert(cells[1].to_owned(), (names(cells[0]), names(cells[2])));
        assert_eq!(before, None, "one row for: {}", cells[1]);
    }
    table
}

#[test]
fn the_table_of_moves_says_what_the_ledger_does() {
    let (table, observed) = (table(), observed());
    assert_eq!(
        table.keys().collect::<Vec<_>>(),
        observed.keys().collect::<Vec<_>>(),
        "rows, and news driven"
    );
    for (news, sets) in &table {
        assert_eq!(sets, &observed[news], "from and to, in the table and as observed, of: {news}");
    }
}

#[test]
fn every_standing_is_in_the_table() {
    // Fails to compile when a standing is added, so that the list above is thought of.
    let known = |standing: Standing| match standing {
        Standing::Fresh | Standing::Again { .. } | Standing::Delayed { .. } | Standing::Queued => true,
        Standing::Leased { .. } | Standing::Committing { .. } | Standing::Burying | Standing::Parked => true,
    };
    assert!(known(Standing::Fresh));
    let from: BTreeSet<String> = table().into_values().flat_map(|sets| sets.0).collect();
    let to: BTreeSet<String> = table().into_values().flat_map(|sets| sets.1).collect();
    for (standing, ..) in WAYS.iter().filter(|way| way.0 != RUN) {
        assert!(from.contains(*standing) && to.contains(*standing), "{standing} has no way in or none out");
    }
}
