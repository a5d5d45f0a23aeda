# SPDX-License-Identifier: GPL-3.0-or-later
"""The ways to read a table of another server, and to have its rows in a local one."""

from __future__ import annotations

from benchmarks.peers import Job, Peer, Peers, foreign_schema
from tests.support.pair import Place

TABLE = "features"
_COLUMNS = """
    id bigint NOT NULL,
    user_id integer NOT NULL,
    visits integer NOT NULL,
    days_since_visit integer,
    seen_at timestamptz NOT NULL,
    spent numeric(12, 2) NOT NULL,
    discount numeric(5, 4),
    score double precision NOT NULL,
    spread double precision NOT NULL,
    trend double precision,
    country text NOT NULL,
    segment text
"""
_ROWS = f"""
INSERT INTO {TABLE}
SELECT n, 1 + (random() * 500000)::int, (random() * 300)::int, CASE WHEN n % 7 > 0 THEN (random() * 365)::int END,
       '2026-01-01'::timestamptz - random() * interval '1 year', (random() * 10000)::numeric(12, 2),
       CASE WHEN n % 5 = 0 THEN (random() * 0.5)::numeric(5, 4) END, random(), random() * 100,
       CASE WHEN n % 11 > 0 THEN random() - 0.5 END, substr('DEFRUSGBJPINBRNG', 1 + 2 * (random() * 7)::int, 2),
       CASE WHEN n % 3 > 0 THEN 'segment ' || n % 23 END
FROM generate_series(1, {{rows}}) AS n
"""
_SCAN = f"EXPLAIN (ANALYZE, TIMING OFF, FORMAT JSON) SELECT * FROM far.{TABLE}"


def make(place: Place, rows: int) -> None:
    """Make the table in a new database, as a server has it that has been running for a while."""
    place.cluster.create_database(place.database)
    place.sql(f"CREATE TABLE {TABLE} ({_COLUMNS})")
    filling = _ROWS.format(rows=rows)
    place.sql(f"SET synchronous_commit = off; SELECT setseed(0.5); {filling}; ALTER TABLE {TABLE} ADD PRIMARY KEY (id)")
    place.sql(f"VACUUM (ANALYZE) {TABLE}")
    place.cluster.sql("CHECKPOINT")
    place.sql(f"SELECT count(*) FROM {TABLE}")  # now the operating system has it in memory


def size(place: Place) -> int:
    """The bytes of the table, without its index."""
    return int(place.value(f"SELECT pg_table_size('{TABLE}')"))


def by_hand(job: Job) -> None:
    """What is there before the clock starts: foreign tables as they are with nothing but where the source is."""
    foreign_schema(job)


def by_hand_larger(job: Job) -> None:
    foreign_schema(job, fetch_size="10000")


def extension(job: Job) -> None:
    job.target.sql("CREATE EXTENSION postgres_fdw")


def configure(job: Job, **options: object) -> None:
    """Run the module with the options that it needs and no others."""
    source = job.source.cluster.source(job.source.database)
    imports = [{"tables": [f"public.{TABLE}"], "local_schema": "far"}]
    job.module("pgml_fdw", {**job.target.login, "server": "far", "source": source, "imports": imports, **options})


def by_module(job: Job) -> None:
    extension(job)
    configure(job)


def scan(job: Job) -> None:
    """Have the target's server fetch and parse each value of the table, and do no more with them."""
    plan = job.target.value(_SCAN)[0]["Plan"]
    if plan["Node Type"] != "Foreign Scan":
        raise RuntimeError(f"the table was read by a {plan['Node Type']}")
    job.rows = round(plan["Actual Rows"])


def scanned(job: Job) -> list[str]:
    """Whether a scan has read another number of rows than there are."""
    return [] if job.rows == job.source.value(f"SELECT count(*) FROM {TABLE}") else ["numbers of rows"]


def snapshot(job: Job) -> None:
    configure(job, snapshots=[{"relation": f"far.{TABLE}", "into": f"public.{TABLE}"}])


def insert_select(job: Job) -> None:
    job.target.sql(f"CREATE TABLE {TABLE} ({_COLUMNS})")
    job.target.sql(f"INSERT INTO {TABLE} SELECT * FROM far.{TABLE}")
    job.target.sql(f"ANALYZE {TABLE}")


def create_table_as(job: Job) -> None:
    job.target.sql(f"CREATE TABLE {TABLE} AS SELECT * FROM far.{TABLE}")
    job.target.sql(f"ANALYZE {TABLE}")


def copy(job: Job, options: str = "") -> None:
    """Copy the rows from one server to the other by way of two psql and a pipe."""

    def psql(place: Place, command: str) -> list[str]:
        return job.program("psql", place, "--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", f"--command={command}")

    job.target.sql(f"CREATE TABLE {TABLE} ({_COLUMNS})")
    job.pipe(
        psql(job.source, f"COPY {TABLE} TO STDOUT {options}"), psql(job.target, f"COPY {TABLE} FROM STDIN {options}")
    )
    job.target.sql(f"ANALYZE {TABLE}")


def copy_binary(job: Job) -> None:
    copy(job, "WITH (FORMAT binary)")


def copied(job: Job) -> list[str]:
    """What the local table lacks: rows, their contents by samples, statistics, or being a plain table."""
    rows = f"SELECT count(*), sum(id), sum(hashtextextended(t::text, 0)) FILTER (WHERE id % 499 = 0) FROM {TABLE} AS t"
    statistics = f"SELECT attname FROM pg_stats WHERE schemaname = 'public' AND tablename = '{TABLE}' ORDER BY 1"
    lacking = [
        what
        for what, query in {"rows": rows, "statistics": statistics}.items()
        if job.source.sql(query) != job.target.sql(query)
    ]
    kind = "SELECT relkind = 'r' AND relpersistence = 'p' AND NOT relhasindex FROM pg_class WHERE oid = %s::regclass"
    return lacking if job.target.value(kind, [f"public.{TABLE}"]) else [*lacking, "kinds of table"]


SCANS: Peers = {
    "scan": Peer("**`pgml_fdw`**", scan, prepare=by_module),
    "scan-defaults": Peer("`CREATE SERVER`, `postgres_fdw`'s defaults", scan, prepare=by_hand),
}
SNAPSHOTS: Peers = {
    "snapshot": Peer("**`pgml_fdw`**, `snapshots`", snapshot, prepare=by_module),
    "insert": Peer("`postgres_fdw`'s defaults, `INSERT ... SELECT`", insert_select, prepare=by_hand),
    "insert-fetch": Peer("`fetch_size` of 10,000, `INSERT ... SELECT`", insert_select, prepare=by_hand_larger),
    "create-fetch": Peer("`fetch_size` of 10,000, `CREATE TABLE AS`", create_table_as, prepare=by_hand_larger),
    "copy": Peer("`COPY` by `psql \\| psql`", copy),
    "copy-binary": Peer("`COPY` by `psql \\| psql`, `FORMAT binary`", copy_binary),
}
