//! All the SQL there is, for both databases. They differ in the types of columns and in how rows are
//! given: each statement has one parameter, its rows as a JSON array, which both can read as a table.
//!
//! A row never takes the place of a later one. Which that is the rows say themselves, see `batch`, so
//! that events may come again and in another order.

/// What the recorder can write to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    Sqlite,
    Postgres,
}

/// What a column of the given rows holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Text,
    Number,
    Bool,
    Time,
}

/// A statement on given rows.
#[derive(Debug)]
pub(super) struct Statement {
    /// What it is called in tests and logs.
    pub(super) name: &'static str,
    /// The columns of the rows, those that it uses.
    columns: &'static [(&'static str, Kind)],
    /// Its text, with `{given}` for the rows.
    text: &'static str,
}

use Kind::{Bool, Number, Text, Time};

impl Statement {
    /// Its text in the words of one database.
    pub(super) fn text(&self, dialect: Dialect) -> String {
        let columns: Vec<String> =
            self.columns.iter().map(|(name, kind)| dialect.column(name, *kind)).collect();
        let columns = columns.join(", ");
        let given = match dialect {
            Dialect::Sqlite => format!("(SELECT {columns} FROM json_each($1)) AS given"),
            Dialect::Postgres => format!("json_to_recordset($1::json) AS given ({columns})"),
        };
        self.text.replace("{given}", &given)
    }
}

impl Dialect {
    /// The tables.
    pub(super) fn schema(self) -> String {
        // Times are text in SQLite, in the one form that events have, which sorts as the times do.
        let (time, exact) = match self {
            Self::Sqlite => ("text", "text"),
            Self::Postgres => ("timestamptz", "text COLLATE \"C\""),
        };
        include_str!("schema.sql").replace("{time}", time).replace("{exact}", exact)
    }

    fn column(self, name: &str, kind: Kind) -> String {
        match self {
            Self::Sqlite => format!("value ->> '{name}' AS {name}"),
            Self::Postgres => {
                let kind = match kind {
                    Text => "text",
                    Number => "bigint",
                    Bool => "boolean",
                    Time => "timestamptz",
                };
                format!("{name} {kind}")
            }
        }
    }
}

/// What a device is ended with whose bridge has begun anew without telling.
macro_rules! gone {
    () => {
        "'bridge gone'"
    };
}

/// Whether a given row about a bridge says more than the one that is there.
macro_rules! fresh {
    () => {
        "(excluded.run > bridges.run OR excluded.heard > bridges.heard OR (bridges.heard IS NULL AND excluded.heard IS NOT NULL))"
    };
}

/// Bridges of which there were events.
pub(super) const BRIDGES: Statement = Statement {
    name: "bridges",
    columns: &[
        ("name", Text),
        ("run", Text),
        ("started", Time),
        ("seq", Number),
        ("heard", Time),
        ("expires_ms", Number),
        ("devices", Number),
        ("state", Text),
    ],
    text: concat!(
        "INSERT INTO bridges (name, run, started, seq, heard, expires_ms, devices, state)
SELECT name, run, started, seq, heard, expires_ms, devices, state FROM {given} WHERE true
ON CONFLICT (name) DO UPDATE SET
    run = excluded.run,
    started = excluded.started,
    seq = CASE WHEN excluded.run > bridges.run OR excluded.seq > bridges.seq THEN excluded.seq ELSE bridges.seq END,
    heard = CASE WHEN ", fresh!(), " THEN excluded.heard ELSE bridges.heard END,
    expires_ms = CASE WHEN ", fresh!(), " THEN excluded.expires_ms ELSE bridges.expires_ms END,
    devices = CASE WHEN ", fresh!(), " THEN excluded.devices ELSE bridges.devices END,
    state = CASE WHEN ", fresh!(), " THEN excluded.state ELSE bridges.state END
WHERE excluded.run >= bridges.run"
    ),
};

/// How far the life of a connection has come: a told end is behind one that was concluded.
macro_rules! stage {
    ($table:literal) => {
        concat!(
            "CASE WHEN ",
            $table,
            ".state <> 'offline' THEN 0 WHEN ",
            $table,
            ".reason = ",
            gone!(),
            " THEN 1 ELSE 2 END"
        )
    };
}

/// Whether a given row about a device is later than the one that is there.
macro_rules! later {
    () => {
        concat!(
            "(excluded.epoch, ",
            stage!("excluded"),
            ", excluded.seq) > (devices.epoch, ",
            stage!("devices"),
            ", devices.seq)"
        )
    };
}

/// A column of a device, as the later row has it.
macro_rules! device {
    ($column:literal) => {
        concat!(
            $column,
            " = CASE WHEN ",
            later!(),
            " THEN excluded.",
            $column,
            " ELSE devices.",
            $column,
            " END, "
        )
    };
}

/// Devices that came, went or fell silent.
pub(super) const DEVICES: Statement = Statement {
    name: "devices",
    columns: &[
        ("address", Text),
        ("state", Text),
        ("silent", Bool),
        ("epoch", Number),
        ("since", Time),
        ("last_seen", Time),
        ("reason", Text),
        ("bridge", Text),
        ("run", Text),
        ("seq", Number),
        ("peer", Text),
    ],
    text: concat!(
        "INSERT INTO devices (address, state, silent, epoch, since, last_seen, reason, bridge, run, seq, peer)
SELECT address, state, silent, epoch, since, last_seen, reason, bridge, run, seq, peer FROM {given} WHERE true
ON CONFLICT (address) DO UPDATE SET ",
        device!("state"), device!("silent"), device!("epoch"), device!("reason"),
        device!("bridge"), device!("run"), device!("seq"), device!("peer"), "
    since = CASE
        WHEN excluded.epoch > devices.epoch OR devices.since IS NULL OR excluded.since < devices.since
        THEN excluded.since ELSE devices.since END,
    last_seen = CASE
        WHEN devices.last_seen IS NULL OR excluded.last_seen > devices.last_seen
        THEN excluded.last_seen ELSE devices.last_seen END
WHERE ", later!(), "
    OR (excluded.epoch = devices.epoch AND (excluded.since < devices.since OR devices.since IS NULL AND excluded.since IS NOT NULL))"
    ),
};

/// Whether a given end of a connection counts: it has none yet, or one that was only concluded.
macro_rules! ends {
    () => {
        concat!(
            "(excluded.until IS NOT NULL AND (connections.until IS NULL OR connections.reason = ",
            gone!(),
            "))"
        )
    };
}

/// Connections that began or ended.
pub(super) const CONNECTIONS: Statement = Statement {
    name: "connections",
    columns: &[
        ("address", Text),
        ("epoch", Number),
        ("bridge", Text),
        ("run", Text),
        ("peer", Text),
        ("since", Time),
        ("until", Time),
        ("reason", Text),
    ],
    text: concat!(
        "INSERT INTO connections (address, epoch, bridge, run, peer, since, until, reason)
SELECT address, epoch, bridge, run, peer, since, until, reason FROM {given} WHERE true
ON CONFLICT (address, epoch, bridge) DO UPDATE SET
    since = CASE
        WHEN connections.since IS NULL OR excluded.since < connections.since
        THEN excluded.since ELSE connections.since END,
    until = CASE WHEN ",
        ends!(),
        " THEN excluded.until ELSE connections.until END,
    reason = CASE WHEN ",
        ends!(),
        " THEN excluded.reason ELSE connections.reason END
WHERE ",
        ends!(),
        " OR excluded.since < connections.since OR (connections.since IS NULL AND excluded.since IS NOT NULL)"
    ),
};

const NAMES: &[(&str, Kind)] = &[("name", Text)];

/// Devices that an earlier process of their bridge held, which has not told their end.
pub(super) const DEVICES_GONE: Statement = Statement {
    name: "devices gone",
    columns: NAMES,
    text: concat!(
        "UPDATE devices SET state = 'offline', silent = false, reason = ", gone!(), "
FROM bridges
WHERE devices.bridge = bridges.name AND devices.state IN ('online', 'unknown') AND devices.run < bridges.run
    AND bridges.name IN (SELECT name FROM {given})"
    ),
};

/// Their connections.
pub(super) const CONNECTIONS_GONE: Statement = Statement {
    name: "connections gone",
    columns: NAMES,
    text: concat!(
        "UPDATE connections SET until = bridges.started, reason = ", gone!(), "
FROM bridges
WHERE connections.bridge = bridges.name AND connections.until IS NULL AND connections.run < bridges.run
    AND bridges.name IN (SELECT name FROM {given})"
    ),
};

const ENDED: &[(&str, Kind)] = &[("name", Text), ("run", Text), ("state", Text)];

/// Devices whose bridge has said that it ends, and has not told their end.
pub(super) const DEVICES_ENDED: Statement = Statement {
    name: "devices ended",
    columns: ENDED,
    text: concat!(
        "UPDATE devices SET state = 'offline', silent = false, reason = ",
        gone!(),
        "
FROM {given}
WHERE given.state = 'offline' AND devices.bridge = given.name AND devices.run = given.run
    AND devices.state IN ('online', 'unknown')"
    ),
};

/// Their connections.
pub(super) const CONNECTIONS_ENDED: Statement = Statement {
    name: "connections ended",
    columns: &[("name", Text), ("run", Text), ("state", Text), ("heard", Time)],
    text: concat!(
        "UPDATE connections SET until = given.heard, reason = ",
        gone!(),
        "
FROM {given}
WHERE given.state = 'offline' AND connections.bridge = given.name AND connections.run = given.run
    AND connections.until IS NULL"
    ),
};

/// Devices whose bridge was not heard for a while, and is again.
pub(super) const DEVICES_BACK: Statement = Statement {
    name: "devices back",
    columns: &[("name", Text), ("heard", Time)],
    text: "UPDATE devices SET state = 'online'
FROM bridges
WHERE devices.bridge = bridges.name AND devices.state = 'unknown' AND devices.run = bridges.run
    AND bridges.state = 'online' AND bridges.name IN (SELECT name FROM {given} WHERE heard IS NOT NULL)",
};

/// Bridges that were alive when they were last heard of.
pub(super) const ALIVE: &str = "SELECT name, run, expires_ms FROM bridges
WHERE state = 'online' AND expires_ms IS NOT NULL";

/// Bridges whose heartbeats are missing.
pub(super) const BRIDGES_UNKNOWN: Statement = Statement {
    name: "bridges unknown",
    columns: &[("name", Text), ("run", Text)],
    text: "UPDATE bridges SET state = 'unknown'
FROM {given}
WHERE bridges.name = given.name AND bridges.run = given.run AND bridges.state = 'online'",
};

/// Their devices.
pub(super) const DEVICES_UNKNOWN: Statement = Statement {
    name: "devices unknown",
    columns: &[("name", Text), ("run", Text)],
    text: "UPDATE devices SET state = 'unknown'
FROM {given}
WHERE devices.bridge = given.name AND devices.run = given.run AND devices.state = 'online'",
};

/// How final an outcome is, as `Fate::rank` has it.
macro_rules! rank {
    ($table:literal) => {
        concat!(
            "CASE ", $table, ".outcome WHEN 'parked' THEN 0 WHEN 'written' THEN 1 WHEN 'received' THEN 2 WHEN 'answered' THEN 3 ELSE 4 END"
        )
    };
}

/// Whether a given outcome is later than the one that is there.
macro_rules! last {
    () => {
        concat!(
            "(excluded.settled, ",
            rank!("excluded"),
            ") > (commands.settled, ",
            rank!("commands"),
            ")"
        )
    };
}

/// A column of a command, as its last outcome has it.
macro_rules! command {
    ($column:literal) => {
        concat!(
            $column,
            " = CASE WHEN ",
            last!(),
            " THEN excluded.",
            $column,
            " ELSE commands.",
            $column,
            " END, "
        )
    };
}

/// Outcomes of commands.
pub(super) const COMMANDS: Statement = Statement {
    name: "commands",
    columns: &[
        ("bridge", Text),
        ("run", Text),
        ("number", Number),
        ("id", Text),
        ("address", Text),
        ("cmd", Text),
        ("confirm", Text),
        ("outcome", Text),
        ("reason", Text),
        ("answer", Text),
        ("answer_base64", Text),
        ("published", Time),
        ("taken", Time),
        ("written", Time),
        ("settled", Time),
        ("trace", Text),
    ],
    text: concat!(
        "INSERT INTO commands (bridge, run, number, id, address, cmd, confirm, outcome, reason, answer, answer_base64, published, taken, written, settled, trace)
SELECT bridge, run, number, id, address, cmd, confirm, outcome, reason, answer, answer_base64, published, taken, written, settled, trace FROM {given} WHERE true
ON CONFLICT (bridge, run, number, address) DO UPDATE SET ",
        command!("outcome"), command!("reason"), command!("answer"), command!("answer_base64"),
        "written = coalesce(excluded.written, commands.written), ",
        "settled = CASE WHEN ", last!(), " THEN excluded.settled ELSE commands.settled END
WHERE ", last!(), " OR (commands.written IS NULL AND excluded.written IS NOT NULL)"
    ),
};

/// Lines from devices.
pub(super) const LINES: Statement = Statement {
    name: "lines",
    columns: &[
        ("bridge", Text),
        ("run", Text),
        ("number", Number),
        ("at", Time),
        ("address", Text),
        ("epoch", Number),
        ("line", Text),
        ("line_base64", Text),
        ("late", Bool),
    ],
    text: "INSERT INTO lines (bridge, run, number, at, address, epoch, line, line_base64, late)
SELECT bridge, run, number, at, address, epoch, line, line_base64, late FROM {given} WHERE true
ON CONFLICT (bridge, run, number) DO NOTHING",
};

/// Devices that sent something.
pub(super) const SEEN: Statement = Statement {
    name: "seen",
    columns: &[("address", Text), ("epoch", Number), ("at", Time)],
    text: "UPDATE devices SET last_seen = given.at
FROM {given}
WHERE devices.address = given.address AND devices.epoch = given.epoch
    AND (devices.last_seen IS NULL OR devices.last_seen < given.at)",
};

/// The oldest thousand rows that ended before a moment: a transaction that deletes more would keep others
/// waiting. More go only if they ended in the same millisecond as the last of them.
macro_rules! portion {
    ($name:literal, $table:literal, $ended:literal) => {
        Statement {
            name: $name,
            columns: &[("before", Time)],
            text: concat!(
                "DELETE FROM ",
                $table,
                " WHERE ",
                $ended,
                " <= (SELECT max(",
                $ended,
                ") FROM (
    SELECT ",
                $ended,
                " FROM ",
                $table,
                " WHERE ",
                $ended,
                " < (SELECT before FROM {given})
    ORDER BY ",
                $ended,
                " LIMIT 1000) AS oldest)"
            ),
        }
    };
}

/// What is not kept for ever.
pub(super) const OLD: [Statement; 3] = [
    portion!("old connections", "connections", "until"),
    portion!("old commands", "commands", "settled"),
    portion!("old lines", "lines", "at"),
];
