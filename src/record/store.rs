//! `Store`: the database, of either kind. One connection, opened when it is needed and again after any
//! trouble; what is written is written in one transaction.

use std::time::Duration;

use sqlx::migrate::{MigrateError, Migration, MigrationType, Migrator};
use sqlx::postgres::PgConnection;
use sqlx::sqlite::{SqliteConnection, SqliteJournalMode, SqliteSynchronous};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection as _, SqlSafeStr};
use tokio::time::timeout;
use tracing::info;

use super::sql::{self, Dialect, Statement};
use crate::settings::DatabaseUrl;

/// A database that does not answer for this long is tried again on a new connection: a transaction
/// takes milliseconds, and recovery after a crash some seconds.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// How long another process may hold the file: a backup, or a reader who should not.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// Why something could not be kept.
#[derive(Debug, thiserror::Error)]
pub(super) enum StoreError {
    /// The database cannot be used now.
    #[error(
        "cannot use the database {database}: {said}; check RECORD_DATABASE, and that it runs and lets the recorder write"
    )]
    Away {
        /// Which one, without its password.
        database: String,
        /// What it said.
        said: String,
    },
    /// The database will not have these rows, now or later.
    #[error("{0}")]
    Refused(String),
}

/// The database.
#[derive(Debug)]
pub(super) struct Store {
    url: DatabaseUrl,
    /// Taken out while it is used: what ends in the middle of something leaves no connection behind.
    connection: Option<Connection>,
}

#[derive(Debug)]
enum Connection {
    Sqlite(SqliteConnection),
    Postgres(PgConnection),
}

/// The same on a connection of either kind.
macro_rules! on {
    ($connection:expr, $this:ident => $work:expr) => {
        match $connection {
            Connection::Sqlite($this) => $work,
            Connection::Postgres($this) => $work,
        }
    };
}

impl Store {
    pub(super) fn new(url: DatabaseUrl) -> Self {
        Self { url, connection: None }
    }

    /// Whether it could be used, as a sentence; changes nothing.
    pub(super) async fn look(&self) -> Result<String, StoreError> {
        let looking = async {
            match &self.url {
                DatabaseUrl::Sqlite(options) if !options.get_filename().exists() => {
                    return Ok(format!("{} does not exist; the recorder makes it", self.url));
                }
                DatabaseUrl::Sqlite(options) => {
                    let mut file = options.as_ref().clone().read_only(true).connect().await?;
                    sqlx::query("SELECT 1 FROM sqlite_schema").fetch_optional(&mut file).await?;
                    file.close().await?;
                }
                DatabaseUrl::Postgres(options) => options.connect().await?.close().await?,
            }
            Ok(format!("{} can be used", self.url))
        };
        match timeout(ANSWER_TIMEOUT, looking).await {
            Ok(looked) => looked.map_err(|error: sqlx::Error| self.away(error.to_string())),
            Err(_) => Err(self.silent()),
        }
    }

    /// Bridges that were alive when they were last heard of: name, run, how long one may be silent.
    pub(super) async fn bridges(&mut self) -> Result<Vec<(String, String, i64)>, StoreError> {
        self.working(async |connection| {
            on!(connection, it => sqlx::query_as(sql::ALIVE).fetch_all(it).await)
        })
        .await
    }

    /// Runs the statements, all or none; gives how many rows they changed.
    pub(super) async fn write(
        &mut self,
        steps: &[(&Statement, String)],
    ) -> Result<u64, StoreError> {
        self.working(async |connection| connection.write(steps).await).await
    }

    /// Does some work on the connection, opened if there is none, and keeps it unless it is the connection
    /// that failed.
    async fn working<T>(
        &mut self,
        work: impl AsyncFnOnce(&mut Connection) -> Result<T, sqlx::Error>,
    ) -> Result<T, StoreError> {
        let connection = self.connection.take();
        let working = async {
            let mut connection = match connection {
                Some(connection) => connection,
                None => self.connect().await?,
            };
            let result = work(&mut connection).await;
            Ok((connection, result))
        };
        match timeout(ANSWER_TIMEOUT, working).await {
            Ok(Ok((connection, result))) => {
                let result = result.map_err(|error| self.judged(&error));
                if !matches!(result, Err(StoreError::Away { .. })) {
                    self.connection = Some(connection);
                }
                result
            }
            Ok(Err(error)) => Err(self.away(sqlx::Error::to_string(&error))),
            Err(_) => Err(self.silent()),
        }
    }

    /// Closes it in good order: SQLite then leaves one file.
    pub(super) async fn close(&mut self) {
        if let Some(connection) = self.connection.take() {
            on!(connection, it => timeout(ANSWER_TIMEOUT, it.close()).await.map(drop).ok());
        }
    }

    async fn connect(&self) -> Result<Connection, sqlx::Error> {
        // What it is asked is said in `sql`, and how long that took is no news.
        let mut connection = match &self.url {
            DatabaseUrl::Sqlite(options) => {
                let options = options
                    .as_ref()
                    .clone()
                    .create_if_missing(true)
                    .journal_mode(SqliteJournalMode::Wal)
                    // What is acknowledged is on the disk, whatever becomes of the machine.
                    .synchronous(SqliteSynchronous::Full)
                    .busy_timeout(BUSY_TIMEOUT)
                    .disable_statement_logging();
                Connection::Sqlite(options.connect().await?)
            }
            DatabaseUrl::Postgres(options) => {
                let options = options.as_ref().clone().application_name("rabbitline record");
                Connection::Postgres(options.disable_statement_logging().connect().await?)
            }
        };
        let migrator = Migrator::with_migrations(migrations(connection.dialect()));
        let migrated = on!(&mut connection, it => migrator.run_direct(None, it, false).await);
        migrated.map_err(|error| {
            if let MigrateError::Execute(error) = error {
                error
            } else {
                sqlx::Error::Migrate(Box::new(error))
            }
        })?;
        info!(database = %self.url, "using the database");
        Ok(connection)
    }

    fn judged(&self, error: &sqlx::Error) -> StoreError {
        match error.as_database_error() {
            Some(said) if is_refusal(said.code().as_deref(), &self.url) => {
                StoreError::Refused(said.message().to_owned())
            }
            _ => self.away(error.to_string()),
        }
    }

    fn silent(&self) -> StoreError {
        let limit = humantime::format_duration(ANSWER_TIMEOUT);
        self.away(format!("it did not answer within {limit}"))
    }

    fn away(&self, said: String) -> StoreError {
        StoreError::Away { database: self.url.to_string(), said }
    }
}

impl Connection {
    fn dialect(&self) -> Dialect {
        match self {
            Self::Sqlite(_) => Dialect::Sqlite,
            Self::Postgres(_) => Dialect::Postgres,
        }
    }

    async fn write(&mut self, steps: &[(&Statement, String)]) -> Result<u64, sqlx::Error> {
        let dialect = self.dialect();
        on!(self, it => {
            let mut changed = 0;
            let mut transaction = it.begin().await?;
            for (statement, rows) in steps {
                // Its text is ours, and what comes from outside is a parameter.
                let query = sqlx::query(AssertSqlSafe(statement.text(dialect))).bind(rows);
                changed += query.execute(&mut *transaction).await?.rows_affected();
            }
            transaction.commit().await?;
            Ok(changed)
        })
    }
}

/// The tables as they came to be. What has been released is never changed here, only added to.
fn migrations(dialect: Dialect) -> Vec<Migration> {
    let schema = AssertSqlSafe(dialect.schema()).into_sql_str();
    vec![Migration::new(1, "tables".into(), MigrationType::Simple, schema, false)]
}

/// Whether the database refuses the rows themselves, and not the work as such.
fn is_refusal(code: Option<&str>, url: &DatabaseUrl) -> bool {
    let Some(code) = code else { return false };
    match url {
        // Data exceptions, constraints, program limits.
        DatabaseUrl::Postgres(_) => ["22", "23", "54"].iter().any(|class| code.starts_with(class)),
        // SQLITE_TOOBIG, SQLITE_CONSTRAINT, SQLITE_MISMATCH, in the lowest byte.
        DatabaseUrl::Sqlite(_) => {
            code.parse::<u32>().is_ok_and(|code| matches!(code & 0xff, 18..=20))
        }
    }
}
