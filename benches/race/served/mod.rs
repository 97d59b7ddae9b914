//! W6: brokers that run as programs of their own, started here on the loopback where they are installed, and stopped at the end.

mod nats;
mod redis;

use std::env::temp_dir;
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::contender::{Entry, EntryKind};
use crate::payload::Raw;

/// What is sent: the only payload of this workload.
type Payload = Raw<100>;

/// How many messages a client has under way before it waits for an answer, and how many it asks for at once.
const PIPELINE_LEN: u64 = 256;

/// Waiting longer than this is an error.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(60);

const REDIS: &str = "redis-server";
const NATS: &str = "nats-server";

pub(crate) fn entries() -> Vec<Entry> {
    let entry = |name, run| Entry { name, kind: EntryKind::Server, workloads: "W6", run };
    vec![
        entry("Redis Streams", redis::run),
        entry("JetStream in memory", nats::run_in_memory),
        entry("JetStream on disk", nats::run_on_disk),
    ]
}

/// The program that this contender needs.
pub(crate) fn server_of(contender: &str) -> Option<&'static str> {
    match contender {
        "Redis Streams" => Some(REDIS),
        "JetStream in memory" | "JetStream on disk" => Some(NATS),
        _ => None,
    }
}

/// A running server with a folder of its own. Dropping it stops it and removes the folder.
pub(crate) struct Server {
    process: Child,
    port: u16,
    folder: PathBuf,
}

impl Server {
    pub(crate) fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// Each server, or why there is none.
pub(crate) fn start() -> Vec<(&'static str, Result<Server, String>)> {
    vec![
        (
            REDIS,
            start_one(REDIS, |port| format!("--bind 127.0.0.1 --port {port} --appendonly no --save"), &[""]),
        ),
        (
            NATS,
            start_one(NATS, |port| format!("--addr 127.0.0.1 --port {port} --jetstream --store_dir ."), &[]),
        ),
    ]
}

/// `arguments` are separated by spaces; `more` may be empty words.
fn start_one(program: &str, arguments: fn(u16) -> String, more: &[&str]) -> Result<Server, String> {
    let listener = TcpListener::bind("127.0.0.1:0").map_err(|error| format!("no free port: {error}"))?;
    let port = listener.local_addr().map_err(|error| error.to_string())?.port();
    drop(listener);
    let folder = temp_dir().join(format!("eventflow-race-{program}-{}", std::process::id()));
    std::fs::create_dir_all(&folder).map_err(|error| error.to_string())?;
    let process = Command::new(program)
        .args(arguments(port).split(' '))
        .args(more)
        .current_dir(&folder)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let process = match process {
        Ok(process) => process,
        Err(error) => {
            let _ = std::fs::remove_dir_all(&folder);
            return Err(match error.kind() {
                std::io::ErrorKind::NotFound => "it is not installed".into(),
                _ => error.to_string(),
            });
        }
    };
    let server = Server { process, port, folder };
    let limit = Instant::now() + Duration::from_secs(10);
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        if Instant::now() > limit {
            return Err("it did not answer within 10 s".into());
        }
        sleep(Duration::from_millis(20));
    }
    Ok(server)
}

fn connect(port: u16) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", port)).expect("the server listens");
    stream.set_nodelay(true).expect("a TCP option");
    stream.set_read_timeout(Some(ANSWER_TIME_MAX)).expect("a TCP option");
    stream
}
