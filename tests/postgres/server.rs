//! A PostgreSQL server of its own: from the distribution's binaries, in a directory for temporary files, on a socket in it. It ends with the value that stands for it.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use postgres::{Client, Config, NoTls};

/// How long a server may take to start or to end.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often it is looked at meanwhile: a process of the system cannot be waited for otherwise with a limit.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// The user whom the distribution's package creates: the server refuses to run as root.
const USER: &str = "postgres";

static SERVERS: AtomicU32 = AtomicU32::new(0);

pub(crate) struct Server {
    address: Address,
    process: Child,
}

/// Where a server is. It does not keep it running.
#[derive(Clone)]
pub(crate) struct Address {
    directory: PathBuf,
}

impl Server {
    /// None, and a line that says so whatever the test harness captures, when PostgreSQL is not installed.
    pub(crate) fn start(test: &str) -> Option<Server> {
        let Some(binaries) = binaries() else {
            let text = format!("SKIPPED {test}: no PostgreSQL server (initdb, postgres) is installed here\n");
            std::io::stderr().write_all(text.as_bytes()).expect("standard error is there");
            return None;
        };
        let number = SERVERS.fetch_add(1, Ordering::Relaxed);
        let name = format!("eventflow-postgres-{}-{number}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        let made = as_owner(&binaries.join("initdb"))
            .arg("--pgdata")
            .arg(&directory)
            .args(["--username", USER, "--auth", "trust", "--encoding", "UTF8", "--no-locale", "--no-sync"])
            .output()
            .expect("initdb is started");
        assert!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));
        let process = as_owner(&binaries.join("postgres"))
            .arg("-D")
            .arg(&directory)
            .arg("-k")
            .arg(&directory)
            .args(["-c", "listen_addresses=", "-c", "fsync=off", "-c", "log_min_messages=fatal"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("postgres is started");
        let mut server = Server { address: Address { directory }, process };
        server.wait_until_ready(test);
        Some(server)
    }

    pub(crate) fn address(&self) -> Address {
        self.address.clone()
    }

    fn wait_until_ready(&mut self, test: &str) {
        let began = Instant::now();
        loop {
            match self.address.try_connect() {
                Ok(mut client) => {
                    let row = client.query_one("SHOW server_version", &[]).expect("the server has a version");
                    println!("{test}: PostgreSQL {}", row.get::<_, &str>(0));
                    return;
                }
                Err(error) => {
                    let ended = self.process.try_wait().expect("the server's process can be looked at");
                    assert!(ended.is_none(), "the server ended at its start: {ended:?}");
                    assert!(began.elapsed() < PATIENCE, "the server does not answer: {error}");
                    thread::sleep(LOOK_EVERY);
                }
            }
        }
    }

    /// As the server itself has noted it: what was started may be a program that changed the user and started the server.
    fn process_id(&self) -> Option<u32> {
        let note = std::fs::read_to_string(self.address.directory.join("postmaster.pid")).ok()?;
        note.lines().next()?.trim().parse().ok()
    }
}

impl Address {
    /// A connection of its own.
    pub(crate) fn connect(&self) -> Client {
        self.try_connect().expect("the server answers")
    }

    fn try_connect(&self) -> Result<Client, postgres::Error> {
        // On a socket the port is a part of its name.
        Config::new().host_path(&self.directory).port(5432).user(USER).dbname("postgres").connect(NoTls)
    }
}

impl Drop for Server {
    /// Also after a panic of the test, or when its watchdog has given up.
    fn drop(&mut self) {
        if let Some(id) = self.process_id() {
            // At once and without writing anything: its directory goes, too.
            let _gone = Command::new("kill").args(["-QUIT", &id.to_string()]).status();
        }
        let began = Instant::now();
        while matches!(self.process.try_wait(), Ok(None)) {
            if began.elapsed() > PATIENCE {
                let _gone = self.process.kill();
            }
            thread::sleep(LOOK_EVERY);
        }
        let _left = std::fs::remove_dir_all(&self.address.directory);
    }
}

/// Where both programs are: in the newest of the distribution's directories, or on the path.
fn binaries() -> Option<PathBuf> {
    let version = |directory: &PathBuf| -> u32 {
        let name = directory.file_name().map(|name| name.to_string_lossy().into_owned());
        name.and_then(|name| name.parse().ok()).unwrap_or_default()
    };
    let mut versions: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
        .map(|entries| entries.flatten().map(|entry| entry.path()).collect())
        .unwrap_or_default();
    versions.sort_by_key(|directory| std::cmp::Reverse(version(directory)));
    let path = std::env::var_os("PATH").unwrap_or_default();
    versions
        .into_iter()
        .map(|directory| directory.join("bin"))
        .chain(std::env::split_paths(&path))
        .find(|directory| ["initdb", "postgres"].iter().all(|program| directory.join(program).is_file()))
}

/// The program, as another user if this one is root.
fn as_owner(program: &Path) -> Command {
    let id = Command::new("id").arg("-u").output();
    let is_root = id.is_ok_and(|id| id.stdout.trim_ascii() == b"0");
    let mut command = if is_root {
        let mut command = Command::new("runuser");
        command.args(["-u", USER, "--"]).arg(program);
        command
    } else {
        Command::new(program)
    };
    // The directory that the test was started in may be closed to that user.
    command.current_dir("/").stdin(Stdio::null());
    command
}
