-- {time} and {exact} are the types of the database for a moment, and for text that sorts by its bytes.

CREATE TABLE bridges (
    name {exact} PRIMARY KEY,
    run {exact} NOT NULL,
    started {time},
    seq bigint NOT NULL,
    heard {time},
    expires_ms bigint,
    devices bigint,
    state text NOT NULL
);

CREATE TABLE devices (
    address {exact} PRIMARY KEY,
    state text NOT NULL,
    online boolean GENERATED ALWAYS AS (state = 'online') STORED,
    silent boolean NOT NULL,
    epoch bigint NOT NULL,
    since {time},
    last_seen {time},
    reason text NOT NULL,
    bridge {exact} NOT NULL,
    run {exact} NOT NULL,
    seq bigint NOT NULL,
    peer text
);
CREATE INDEX devices_of_bridge ON devices (bridge, state, run);

CREATE TABLE connections (
    address {exact} NOT NULL,
    epoch bigint NOT NULL,
    bridge {exact} NOT NULL,
    run {exact} NOT NULL,
    peer text,
    since {time},
    until {time},
    reason text,
    PRIMARY KEY (address, epoch, bridge)
);
CREATE INDEX connections_open ON connections (bridge, run) WHERE until IS NULL;
CREATE INDEX connections_ended ON connections (until) WHERE until IS NOT NULL;

CREATE TABLE commands (
    bridge {exact} NOT NULL,
    run {exact} NOT NULL,
    number bigint NOT NULL,
    address {exact} NOT NULL,
    id text,
    cmd text,
    confirm text,
    outcome text NOT NULL,
    reason text,
    answer text,
    answer_base64 text,
    published {time},
    taken {time},
    written {time},
    settled {time} NOT NULL,
    trace text,
    PRIMARY KEY (bridge, run, number, address)
);
CREATE INDEX commands_of_device ON commands (address, settled);
CREATE INDEX commands_settled ON commands (settled);

CREATE TABLE lines (
    bridge {exact} NOT NULL,
    run {exact} NOT NULL,
    number bigint NOT NULL,
    at {time} NOT NULL,
    address {exact} NOT NULL,
    epoch bigint NOT NULL,
    line text,
    line_base64 text,
    late boolean NOT NULL,
    PRIMARY KEY (bridge, run, number)
);
CREATE INDEX lines_of_device ON lines (address, at);
CREATE INDEX lines_by_time ON lines (at);
