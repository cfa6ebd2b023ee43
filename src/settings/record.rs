//! The kinds of value that only the recorder's settings have.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use sqlx::postgres::PgConnectOptions;
use sqlx::sqlite::SqliteConnectOptions;

use super::table::Record;
use super::value::{Secret, Value};

/// Where the recorder keeps what it records. Its text may hold a password.
#[derive(Clone)]
pub enum DatabaseUrl {
    /// A file.
    Sqlite(Box<SqliteConnectOptions>),
    /// A server.
    Postgres(Box<PgConnectOptions>),
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_string())
    }
}

/// Without the password.
impl fmt::Display for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite(options) => write!(f, "sqlite:{}", options.get_filename().display()),
            Self::Postgres(options) => {
                let database = options.get_database().unwrap_or_else(|| options.get_username());
                let host = options.get_socket().map_or_else(
                    || format!("{}:{}", options.get_host(), options.get_port()),
                    |socket| socket.display().to_string(),
                );
                write!(f, "postgres://{}@{host}/{database}", options.get_username())
            }
        }
    }
}

impl Value for DatabaseUrl {
    const SECRET: bool = true;
    fn expected() -> &'static str {
        "sqlite:FILE or postgres://USER@HOST/DATABASE"
    }
    fn read(text: &str) -> Option<Self> {
        match text.split_once(':')? {
            ("sqlite", file)
                if !file.trim_start_matches(['/', ':']).is_empty() && !file.starts_with(':') =>
            {
                let options = SqliteConnectOptions::from_str(text).ok()?;
                Some(Self::Sqlite(Box::new(options)))
            }
            ("postgres" | "postgresql", rest) if rest.starts_with("//") => {
                let options = PgConnectOptions::from_str(text).ok()?;
                Some(Self::Postgres(Box::new(options)))
            }
            _ => None,
        }
    }
}

/// Gives the password to the database where it is kept in a file.
pub(super) fn read_password_file(record: &mut Record, errors: &mut Vec<String>) {
    const NAME: &str = "RECORD_DATABASE_PASSWORD_FILE";
    let Some(path) = &record.database_password_file else {
        return;
    };
    let DatabaseUrl::Postgres(options) = &mut record.database else {
        errors.push(format!(
            "{NAME}: expected RECORD_DATABASE to be postgres://..., a file has no password"
        ));
        return;
    };
    match std::fs::read_to_string(path) {
        Ok(text) => {
            let password = Secret::from(text.trim_end_matches(['\r', '\n']));
            **options = options.as_ref().clone().password(password.expose());
        }
        Err(error) => errors.push(format!("{NAME}: cannot read {}: {error}", path.display())),
    }
}

/// What the recorder records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kinds {
    /// What became of commands.
    pub outcome: bool,
    /// What devices sent.
    pub uplink: bool,
}

impl Value for Kinds {
    fn expected() -> &'static str {
        "words with commas between, of presence, outcome and uplink"
    }
    fn read(text: &str) -> Option<Self> {
        let mut kinds = Self { outcome: false, uplink: false };
        for word in text.split(',') {
            match word.trim() {
                "presence" => {}
                "outcome" => kinds.outcome = true,
                "uplink" => kinds.uplink = true,
                _ => return None,
            }
        }
        Some(kinds)
    }
}

/// How long rows are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keep(pub Duration);

/// A hundred years: what is older than any row, and no clock overflows.
const KEEP_MAX: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

impl Value for Keep {
    fn expected() -> &'static str {
        "a duration above zero and up to a hundred years, with a unit, as in 30d or 2years"
    }
    fn read(text: &str) -> Option<Self> {
        let duration = humantime::parse_duration(text).ok()?;
        (!duration.is_zero() && duration <= KEEP_MAX).then_some(Self(duration))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_is_a_file_or_a_server_and_never_shows_its_password() {
        let shown = |text: &str| DatabaseUrl::read(text).map(|url| url.to_string());
        assert_eq!(shown("sqlite:a/b.db").as_deref(), Some("sqlite:a/b.db"));
        assert_eq!(
            shown("postgres://me:hunter2@db:5433/x").as_deref(),
            Some("postgres://me@db:5433/x")
        );
        for wrong in [
            "",
            "sqlite:",
            "sqlite://",
            "sqlite::memory:",
            "mysql://db/x",
            "postgres:x",
            "rabbitline.db",
        ] {
            assert!(DatabaseUrl::read(wrong).is_none(), "{wrong}");
        }
        let url = DatabaseUrl::read("postgres://me:hunter2@db/x");
        assert!(!format!("{url:?}").contains("hunter2"));
    }

    #[test]
    fn kinds_are_words_and_presence_is_always_there() {
        let kinds = |outcome, uplink| Some(Kinds { outcome, uplink });
        assert_eq!(Kinds::read("presence"), kinds(false, false));
        assert_eq!(Kinds::read("presence, outcome,uplink"), kinds(true, true));
        assert_eq!(Kinds::read("uplink"), kinds(false, true));
        assert_eq!(Kinds::read("lines"), None);
        assert_eq!(Kinds::read("presence,"), None);
    }

    #[test]
    fn rows_may_be_kept_for_longer_than_a_year() {
        assert_eq!(Keep::read("30d"), Some(Keep(Duration::from_secs(30 * 24 * 3600))));
        assert!(Keep::read("2years").is_some());
        assert!(["0s", "30", "200years"].into_iter().all(|wrong| Keep::read(wrong).is_none()));
    }
}
