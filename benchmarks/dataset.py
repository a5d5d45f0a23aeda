# SPDX-License-Identifier: GPL-3.0-or-later
"""Mixed data of a size that is named, the same rows each time: wide features, events and users."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from tests.support.pair import Place

GB = 10**9
FEATURES = 64
TABLES = ("features", "events", "users")
ROWS_PER_GB = {"features": 990_000, "events": 850_000, "users": 430_000}
"""Makes the features about 60 % of a database's bytes and the events about 30 %, indexes included."""

_TABLES = f"""
CREATE TABLE users (
    id bigint NOT NULL,
    email text NOT NULL,
    name text NOT NULL,
    country char(2) NOT NULL,
    credit numeric(12, 2) NOT NULL,
    joined_at timestamptz NOT NULL,
    active boolean NOT NULL
);
CREATE TABLE events (
    id bigint NOT NULL,
    user_id bigint NOT NULL,
    kind text NOT NULL,
    happened_at timestamptz NOT NULL,
    received_at timestamptz,
    payload jsonb NOT NULL,
    message text
);
CREATE TABLE features (
    id bigint NOT NULL,
    computed_at timestamptz NOT NULL,
    {", ".join(f"f{number:02d} double precision" for number in range(1, FEATURES + 1))}
);
"""

_ROWS = {
    "users": """
INSERT INTO users
SELECT n, 'user' || n || '@example.com', md5(n::text), substr('DEFRUSGBJPINBRNG', 1 + 2 * (random() * 7)::int, 2),
       (random() * 10000)::numeric(12, 2), '2026-01-01'::timestamptz - random() * interval '5 years', random() < 0.8
FROM generate_series(1, {users}) AS n
""",
    "events": """
INSERT INTO events
SELECT n, 1 + (random() * ({users} - 1))::bigint, (ARRAY['view', 'click', 'cart', 'order', 'refund'])[1 + (random() * 4)::int],
       '2025-01-01'::timestamptz + n * interval '20 seconds', '2025-01-01'::timestamptz + n * interval '20 seconds'
       + random() * interval '3 seconds', jsonb_build_object('page', '/products/' || (random() * 5000)::int, 'price',
       (random() * 500)::numeric(8, 2), 'tags', jsonb_build_array('tag' || n % 17, 'tag' || n % 23), 'session', md5(n::text)),
       CASE WHEN n % 3 > 0 THEN repeat('the customer looked at it ', 1 + (random() * 3)::int) END
FROM generate_series(1, {events}) AS n
""",
    "features": f"""
INSERT INTO features
SELECT n, '2026-01-01'::timestamptz + n * interval '1 second', {", ".join(["random()"] * FEATURES)}
FROM generate_series(1, {{features}}) AS n
""",
}

_KEYS = {
    "users": """
ALTER TABLE users ADD PRIMARY KEY (id);
CREATE UNIQUE INDEX users_email ON users (email);
CREATE INDEX users_joined_at ON users (joined_at);
""",
    "events": """
ALTER TABLE events ADD PRIMARY KEY (id);
CREATE INDEX events_user_id ON events (user_id);
CREATE INDEX events_kind_happened_at ON events (kind, happened_at);
CREATE INDEX events_received_at ON events (received_at);
""",
    "features": "ALTER TABLE features ADD PRIMARY KEY (id);",
}

_FOREIGN_KEY = "ALTER TABLE events ADD FOREIGN KEY (user_id) REFERENCES users (id)"


def make(place: Place, gigabytes: float) -> None:
    """Make the tables in an empty database, as a server has them that has been running for a while."""
    counts = {table: round(per_gb * gigabytes) for table, per_gb in ROWS_PER_GB.items()}

    def fill(table: str) -> None:
        rows = _ROWS[table].format(**counts)
        place.sql(f"SET synchronous_commit = off; SELECT setseed(0.5); {rows}; {_KEYS[table]}")
        place.sql(f"VACUUM (ANALYZE) {table}")

    place.sql(_TABLES)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(fill, TABLES))
    place.sql(_FOREIGN_KEY)
    place.cluster.sql("CHECKPOINT")
    for table in TABLES:
        place.sql(f"SELECT count(*) FROM {table}")  # now the operating system has them in memory


def size(place: Place) -> int:
    """The bytes of a database, indexes included."""
    return int(place.value("SELECT pg_database_size(current_database())"))


def differences(source: Place, target: Place) -> list[str]:
    """What a copy lacks: rows, their contents by samples, indexes and constraints."""
    queries = {
        f"rows of {table}": f"SELECT count(*), sum(hashtextextended(t::text, 0)) FILTER (WHERE id % 499 = 0) FROM {table} AS t"
        for table in TABLES
    }
    queries["indexes"] = (
        "SELECT pg_get_indexdef(indexrelid), indisvalid FROM pg_index JOIN pg_class AS c ON c.oid = indrelid"
        " WHERE c.relnamespace = 'public'::regnamespace ORDER BY 1"
    )
    queries["constraints"] = (
        "SELECT conname, conrelid::regclass::text, pg_get_constraintdef(oid), convalidated FROM pg_constraint"
        " WHERE connamespace = 'public'::regnamespace ORDER BY 1"
    )
    return [what for what, query in queries.items() if source.sql(query) != target.sql(query)]
