//! The flights example, with the month that comes with the repository: what it prints is true, and what is
//! not true it would say.

// `main` and what it prints with are the example's own.
#[path = "../examples/flights/departures/mod.rs"]
mod departures;

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use departures::{Error, Report, run};

/// How long the watchdog waits before it calls the run hung. A debug build on a busy machine is slow, but not
/// that slow.
const PATIENCE: Duration = Duration::from_secs(180);

fn january() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/data/flights-2013-01.csv")
}

/// Runs the example on a thread of its own, so that a lost wake-up fails the test instead of hanging it.
fn run_watched(data: PathBuf, dir: Option<PathBuf>) -> Result<Report, Error> {
    let (sender, outcome) = mpsc::channel();
    std::thread::spawn(move || {
        // Nobody listens any more when the watchdog has given up.
        let _ = sender.send(run(&data, dir.as_deref(), |_, _| {}));
    });
    outcome.recv_timeout(PATIENCE).expect("the run ends, and does not panic")
}

/// Runs the example on a file with this text.
fn run_text(name: &str, text: &str) -> Result<Report, Error> {
    let path = std::env::temp_dir().join(format!("eventflow-flights-{}-{name}.csv", std::process::id()));
    std::fs::write(&path, text).expect("the temporary directory takes a file");
    let outcome = run_watched(path.clone(), None);
    std::fs::remove_file(path).expect("the file is still there");
    outcome
}

const HEADER: &str = "year,carrier,flight,tailnum,origin,dep_time,dep_delay";

#[test]
fn january_reaches_every_service_once() {
    let report = run_watched(january(), None).expect("January runs");
    assert!(report.differences.is_empty(), "{:?}", report.differences);
    let totals = &report.totals;
    assert_eq!(totals.flights, 27_004);
    assert_eq!(totals.duplicates, 540);
    assert_eq!(totals.cancelled, 521);
    assert_eq!(totals.newark, 9_893);
    assert_eq!(totals.delayed(), 5_091);
    assert_eq!(totals.alerts.len(), 724);
    assert_eq!(totals.keyed, 27_004 - 155);
    assert_eq!(totals.flaky, 27_004);
    assert_eq!((totals.overtaken, totals.acked_twice, totals.wrong_reasons), (0, 0, 0));
    // Chance decides on the deliveries that fail or hang, but not on whether there are some: about one in
    // ten, and one in a thousand.
    assert!((2_000..4_500).contains(&report.nacked), "{} nacked", report.nacked);
    assert!(report.expired >= 5, "{} expired", report.expired);
    assert!(report.redelivered >= report.nacked, "{} of {} redelivered", report.redelivered, report.nacked);
    // Everything was handed out at least once: to four services all of it, to the others their part.
    let handed_out_min = 4 * 27_004 + 9_893 + 521 + 724 + report.redelivered;
    assert!(report.delivered >= handed_out_min, "{} delivered", report.delivered);
    assert!(report.elapsed > Duration::ZERO);
}

#[test]
fn a_total_that_differs_is_named() {
    let report = run_watched(january(), None).expect("January runs");
    let mut wrong = report.totals.clone();
    wrong.newark += 1;
    wrong.carriers.get_mut("UA").expect("United flies in January").delayed -= 1;
    let differences: Vec<_> = report.totals.differences(&wrong).iter().map(ToString::to_string).collect();
    assert_eq!(
        differences,
        [
            "newark: flights: the file says 9893, the broker 9894",
            "punctuality: delayed flights of UA: the file says 770, the broker 769",
        ]
    );
}

#[test]
fn a_file_without_flights_runs() {
    let report = run_text("empty", HEADER).expect("a header is enough");
    assert!(report.differences.is_empty(), "{:?}", report.differences);
    assert_eq!(report.totals.flights, 0);
}

#[test]
fn an_error_in_the_file_names_the_line() {
    let good = "2013,UA,1545,N14228,EWR,517,2";
    for (name, line, problem) in [
        ("fields", "2013,UA,1545", "line 3: 3 fields where the header has 7"),
        (
            "number",
            "2013,UA,many,N14228,EWR,517,2",
            "line 3: `flight` is `many`, not a whole number in range",
        ),
        (
            "delay",
            "2013,UA,1545,N14228,EWR,517,late",
            "line 3: `dep_delay` is `late`, not a whole number in range",
        ),
        ("origin", "2013,UA,1545,N14228,NA,517,2", "line 3: no origin"),
    ] {
        let error =
            run_text(name, &format!("{HEADER}\n{good}\n{line}\n")).expect_err("the third line is wrong");
        assert!(error.to_string().ends_with(problem), "{error}");
    }
    let error = run_text("header", "year,carrier\n").expect_err("columns are missing");
    assert!(error.to_string().ends_with("line 1: the header has no column `flight`"), "{error}");
    let error = run_text("nothing", "").expect_err("there is no header");
    assert!(error.to_string().ends_with("line 1: the header is missing"), "{error}");
}

/// Makes the test below the process that is killed: file and directory.
const KILLED: &str = "EVENTFLOW_TEST_KILLED_FLIGHTS";
const KILLS: u64 = 20;

#[test]
fn killed_again_and_again_it_ends_with_the_same_totals() {
    if let Ok(order) = std::env::var(KILLED) {
        let (data, dir) = order.split_once('|').expect("a file and a directory");
        let tell = |published, _| {
            writeln!(std::io::stdout(), "{published}").expect("somebody listens");
        };
        let report = run(Path::new(data), Some(Path::new(dir)), tell).expect("it goes on");
        assert!(report.differences.is_empty(), "{:?}", report.differences);
        return;
    }
    let dir = tempfile::tempdir().expect("a temporary directory");
    let data = january();
    let store = dir.path().join("store");
    let seed = std::env::var("EVENTFLOW_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1_u64);
    println!("EVENTFLOW_SEED={seed}");
    let mut random = seed;
    let mut ended = 0;
    for kill in 0..KILLS {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        // Later each time, on the whole: so it gets on, and is killed everywhere.
        let lines = 1 + (random >> 33) % (3 * (kill + 1));
        ended += u64::from(!run_and_kill(&data, &store, lines));
    }
    println!("{ended} of {KILLS} were through before they were killed");
    assert!(ended < KILLS, "none was killed on the way");

    let in_memory = run_watched(data.clone(), None).expect("it runs");
    // Twice: what is done is not done again.
    for _ in 0..2 {
        let report = run_watched(data.clone(), Some(store.clone())).expect("it goes on");
        assert!(report.differences.is_empty(), "{:?}", report.differences);
        assert_eq!(report.totals.flights, 27_004);
        assert_eq!(report.totals.differences(&in_memory.totals).len(), 0);
    }
}

/// False: it was through before it was killed.
fn run_and_kill(data: &Path, store: &Path, lines: u64) -> bool {
    let mut child = Command::new(std::env::current_exe().expect("this test has a file"))
        .args(["--exact", "killed_again_and_again_it_ends_with_the_same_totals", "--nocapture"])
        .env(KILLED, format!("{}|{}", data.display(), store.display()))
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    let stdout = child.stdout.take().expect("it is piped");
    let mut heard = 0;
    // The harness says something, too.
    for _line in BufReader::new(stdout).lines().map_while(Result::ok) {
        heard += 1;
        if heard == lines + 3 {
            child.kill().expect("it can be killed");
        }
    }
    let status = child.wait().expect("it has ended");
    assert!(status.success() || status.code().is_none(), "it fails: {status}");
    status.code().is_none()
}
