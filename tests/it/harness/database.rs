//! Where a recorder keeps things: a file of SQLite, or a private PostgreSQL server that can be killed and started
//! again.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use sqlx::{AssertSqlSafe, Connection as _, PgConnection, SqliteConnection};
use tempfile::TempDir;

use super::shared::shared;
use super::wait::block_on;
use super::{Certificate, Program, free_port, reaper, signal, within};

const VERSIONS: &str = "/usr/lib/postgresql";
/// The user that Debian's package makes: PostgreSQL refuses to run as root.
const USER: &str = "postgres";
pub(crate) const PASSWORD: &str = "tell-nobody-20117";
/// Making a cluster takes two seconds alone, and recovery after a crash one.
const START: Duration = Duration::from_secs(60);

pub(crate) enum Database {
    Sqlite(TempDir),
    Postgres { server: Arc<Postgres>, name: String },
}

impl Database {
    pub(crate) fn sqlite() -> Self {
        Self::Sqlite(TempDir::new().expect("a directory"))
    }

    /// One on the server that tests share.
    #[track_caller]
    pub(crate) fn postgres() -> Self {
        Self::on(&Postgres::shared())
    }

    /// A new one on a server.
    #[track_caller]
    pub(crate) fn on(server: &Arc<Postgres>) -> Self {
        static DATABASES: AtomicUsize = AtomicUsize::new(0);
        let name = format!("test_{}", DATABASES.fetch_add(1, Ordering::Relaxed));
        server.ask("postgres", &format!("CREATE DATABASE {name}")).expect("a database");
        Self::Postgres { server: Arc::clone(server), name }
    }

    pub(crate) fn url(&self) -> String {
        match self {
            Self::Sqlite(folder) => format!("sqlite:{}", Self::file(folder).display()),
            Self::Postgres { server, name } => server.url(&format!("{USER}:{PASSWORD}"), name),
        }
    }

    /// Its URL, with nobody's password in it.
    pub(crate) fn url_without_password(&self) -> String {
        self.url().replace(&format!(":{PASSWORD}"), "")
    }

    fn file(folder: &TempDir) -> PathBuf {
        folder.path().join("record.db")
    }

    /// The rows of a query with one column, which is text. `time(column)` in it is a moment as text.
    pub(crate) fn rows(&self, query: &str) -> Result<Vec<String>, String> {
        let query = self.with_times(query);
        match self {
            Self::Sqlite(folder) => {
                let url = format!("sqlite:{}?mode=rw", Self::file(folder).display());
                block_on(async {
                    let mut connection = SqliteConnection::connect(&url).await?;
                    let query = sqlx::query_scalar(AssertSqlSafe(query));
                    let rows = query.fetch_all(&mut connection).await?;
                    connection.close().await?;
                    Ok(rows)
                })
                .map_err(|error: sqlx::Error| error.to_string())
            }
            Self::Postgres { server, name } => server.ask(name, &query),
        }
    }

    /// PostgreSQL shows times in its own way; SQLite has them as text.
    fn with_times(&self, query: &str) -> String {
        let (before, after) = match self {
            Self::Sqlite(_) => ("(", ")"),
            Self::Postgres { .. } => {
                ("to_char(", " AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"')")
            }
        };
        let mut parts = query.split("time(");
        let mut text = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            let (column, rest) = part.split_once(')').expect("time(column)");
            text += &format!("{before}{column}{after}{rest}");
        }
        text
    }
}

/// A PostgreSQL server.
pub(crate) struct Postgres {
    folder: PathBuf,
    port: u16,
    speaks_tls: bool,
    server: Mutex<Option<Program>>,
}

impl Postgres {
    /// The one that tests share which do it no harm.
    #[track_caller]
    pub(crate) fn shared() -> Arc<Self> {
        static SHARED: OnceLock<Option<Arc<Postgres>>> = OnceLock::new();
        shared(&SHARED, "PostgreSQL", Self::alone)
    }

    /// One for one test alone.
    #[track_caller]
    pub(crate) fn alone() -> Self {
        Self::with(None)
    }

    /// One that shows a certificate to those who ask for TLS.
    #[track_caller]
    pub(crate) fn with_tls(certificate: &Certificate) -> Self {
        Self::with(Some(certificate))
    }

    #[track_caller]
    fn with(certificate: Option<&Certificate>) -> Self {
        let folder = tempfile::Builder::new()
            .prefix("rabbitline-postgres-")
            .tempdir()
            .expect("a temporary directory")
            .keep();
        reaper::remove(&folder);
        if let Some((user, group)) = other_user() {
            chown(&folder, Some(user), Some(group)).expect("chown");
        }
        let [public, private] = certificate.map_or([""; 2], Certificate::pems);
        for (name, text) in
            [("password", PASSWORD), ("server.crt", public), ("server.key", private)]
        {
            let path = folder.join(name);
            fs::write(&path, text).expect("written");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("chmod");
            if let Some((user, group)) = other_user() {
                chown(&path, Some(user), Some(group)).expect("chown");
            }
        }
        let speaks_tls = certificate.is_some();
        let postgres = Self { folder, port: free_port(), speaks_tls, server: Mutex::new(None) };
        let mut initdb = postgres.command("initdb");
        initdb
            .args(["--no-sync", "--username", USER, "--encoding", "UTF8", "--locale", "C"])
            .args(["--auth", "scram-sha-256", "--pwfile"])
            .arg(postgres.folder.join("password"));
        let made = Program::spawn("initdb", initdb, &[]).finish();
        assert_eq!(made.code, Some(0), "{made:?}");
        postgres.start();
        postgres
    }

    /// Starts it, again with the same files, and waits until it answers.
    #[track_caller]
    pub(crate) fn start(&self) {
        let mut command = self.command("postgres");
        command.args(["-p", &self.port.to_string(), "-c", "listen_addresses=127.0.0.1"]).args([
            "-c",
            "unix_socket_directories=",
            "-c",
            "fsync=off",
        ]);
        if self.speaks_tls {
            let file = |name: &str| self.folder.join(name).display().to_string();
            command
                .args(["-c", "ssl=on", "-c", &format!("ssl_cert_file={}", file("server.crt"))])
                .args(["-c", &format!("ssl_key_file={}", file("server.key"))]);
        }
        let mut server = Program::spawn("postgres", command, &[]);
        within(START, "PostgreSQL answers", || {
            if let Some(status) = server.ended() {
                panic!("postgres ended with {status}: {}", server.stderr.text());
            }
            self.ask("postgres", "SELECT 'here'")
        });
        *self.lock() = Some(server);
    }

    /// Ends it and all that work for it at once, as a crash would.
    #[track_caller]
    pub(crate) fn kill(&self) {
        let mut server = self.lock().take().expect("it runs");
        let id = server.id();
        let workers = fs::read_to_string(format!("/proc/{id}/task/{id}/children"));
        server.kill();
        // Each has a process group of its own.
        for worker in workers.unwrap_or_default().split_whitespace() {
            signal::kill_group(worker.parse().expect("a process id"));
        }
    }

    fn url(&self, user: &str, database: &str) -> String {
        format!("postgres://{user}@127.0.0.1:{}/{database}", self.port)
    }

    fn ask(&self, database: &str, query: &str) -> Result<Vec<String>, String> {
        let url = self.url(&format!("{USER}:{PASSWORD}"), database);
        block_on(async {
            let mut connection = PgConnection::connect(&url).await?;
            let query = sqlx::query_scalar(AssertSqlSafe(query.to_owned()));
            let rows = query.fetch_all(&mut connection).await?;
            connection.close().await?;
            Ok(rows)
        })
        .map_err(|error: sqlx::Error| error.to_string())
    }

    /// A program of PostgreSQL on this server's files.
    #[track_caller]
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(programs().join(program));
        command.arg("-D").arg(self.folder.join("data")).current_dir(&self.folder);
        if let Some((user, group)) = other_user() {
            command.uid(user).gid(group);
        }
        command
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Program>> {
        self.server.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if self.lock().is_some() {
            self.kill();
        }
        if let Err(error) = fs::remove_dir_all(&self.folder) {
            eprintln!("{} stays behind: {error}", self.folder.display());
        }
    }
}

/// The folder of the newest version that is installed.
#[track_caller]
fn programs() -> PathBuf {
    let versions = fs::read_dir(VERSIONS).into_iter().flatten().filter_map(Result::ok);
    let programs = versions.map(|version| version.path().join("bin"));
    let newest = programs.filter(|folder| folder.join("initdb").exists()).max();
    newest.unwrap_or_else(|| panic!("these tests need a real PostgreSQL and there is none in {VERSIONS}: run `apt-get install postgresql`"))
}

/// User and group to run the server as, if this process is root.
#[track_caller]
fn other_user() -> Option<(u32, u32)> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let users = fs::read_to_string(Path::new("/etc/passwd")).expect("/etc/passwd");
    let user = users.lines().find_map(|line| line.strip_prefix(&format!("{USER}:")));
    let user = user.unwrap_or_else(|| {
        panic!("there is no user {USER}: run `apt-get install postgresql`, which makes it")
    });
    let mut fields = user.split(':').skip(1).map(|field| field.parse().expect("a number"));
    Some((fields.next().expect("a user id"), fields.next().expect("a group id")))
}
