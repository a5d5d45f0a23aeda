# SPDX-License-Identifier: GPL-3.0-or-later
"""Passwords: the awkward ones work, are compared as values, and show nowhere."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from psycopg2.sql import SQL, Identifier

from tests.conftest import program_of
from tests.support.cluster import Cluster, make_directory
from tests.support.pair import Pair, Place, create_role, forget_subscriptions, pair_of

CORE = "Zq7core4Tz"
"""A part of every password here that no escaping alters, to look for it everywhere."""

PASSWORDS = {
    "plain": CORE,
    "spaces": f" {CORE} with  spaces ",
    "single quotes": f"it's '{CORE}'''",
    "double quotes": f'"{CORE}"',
    "backslashes": f"\\{CORE}\\\\ends\\",
    "equals": f"password={CORE} host=elsewhere",
    "percents": f"%s%{CORE}%(x)s%%",
    "braces": "{name}{" + CORE + "}}{{",
    "dollars": f"$$ $1 {CORE} $BODY$",
    "comment": f"{CORE};--/*",
    "Jinja": "{{ " + CORE + " }}",
    "tabs and newlines": f"\t{CORE}\n{CORE}\r",
    "non-ASCII": f"Grüße 密码 😀 {CORE}",
    "all": f"""p {CORE}'d\\="%{{}}ü\\'""",
}


@contextmanager
def watched(*clusters: Cluster) -> Iterator[list[str]]:
    """Look at what the servers' sessions run, all the time, and collect it."""
    seen: set[str] = set()
    done = threading.Event()

    def look(cluster: Cluster) -> None:
        with closing(cluster.connect()) as connection, connection.cursor() as cursor:
            while not done.is_set():
                cursor.execute("SELECT t::text FROM pg_stat_activity AS t")
                seen.update(row[0] for row in cursor.fetchall())

    threads = [threading.Thread(target=look, args=(cluster,)) for cluster in clusters]
    for thread in threads:
        thread.start()
    collected: list[str] = []
    try:
        yield collected
    finally:
        done.set()
        for thread in threads:
            thread.join()
        collected.extend(seen)


def shop_of(pair: Pair) -> None:
    pair.both("CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY)")
    pair.sql_source("INSERT INTO a SELECT generate_series(1, 10)")
    pair.publish("a")


def set_password(pair: Pair, password: str) -> None:
    with closing(pair.source.cluster.connect()) as connection, connection.cursor() as cursor:
        cursor.execute("SET log_statement = none")
        cursor.execute(SQL("ALTER ROLE {} PASSWORD %s").format(Identifier(pair.distributor)), [password])


def whole_life(pair: Pair) -> list[dict[str, Any]]:
    """Everything that is ever done to a subscription, and what the module says about it."""
    results = [pair.target.run("pgml_subscription", check=True, **pair.subscription())]
    results.append(pair.subscribe())
    assert results[-1]["changed"]
    results.append(pair.subscribe())
    assert not results[-1]["changed"]
    pair.publish("a", "b")
    results.append(pair.subscribe(synchronous_commit="on"))
    assert not pair.subscribe()["changed"]
    other = pair.password + " and more"
    set_password(pair, other)
    results.append(pair.target.run("pgml_subscription", **pair.subscription()))
    assert results[-1]["failed"] and "password authentication failed" in results[-1]["msg"]
    changed = {"source": {**pair.endpoint, "password": other}}
    results.append(pair.target.run("pgml_subscription", check=True, **pair.subscription(**changed)))
    results.append(pair.subscribe(**changed))
    assert results[-1]["changed"] and not pair.subscribe(**changed)["changed"]
    pair.sql_source("INSERT INTO a VALUES (1000)")
    pair.arrived("a")
    pair.source.cluster.stop()
    results.append(pair.unsubscribe())
    pair.source.cluster.start()
    results.append(pair.unsubscribe(slot_name=pair.name, **changed))
    assert results[-1]["changed"] and pair.slots() == set()
    results.append(pair.target.run("pgml_subscription", **pair.subscription(**changed, publications=["none such"])))
    return results


@pytest.mark.sampled(4)
@pytest.mark.parametrize("kind", PASSWORDS)
def test_awkward_passwords_work_and_show_nowhere(primary: Cluster, replica: Cluster, kind: str) -> None:
    with pair_of(primary, replica, PASSWORDS[kind]) as pair:
        shop_of(pair)
        with watched(replica) as seen:
            results = whole_life(pair)
    assert CORE not in json.dumps(results, ensure_ascii=False)
    assert not any(CORE in text for text in seen)
    for cluster in (primary, replica):
        assert CORE not in cluster.log()


@contextmanager
def sought(target: Place) -> Iterator[dict[str, str]]:
    """Collect, all the time, what the target remembers of first copies, and the command lines of all processes."""
    seen: dict[str, set[str]] = {"remembered": set(), "command lines": set()}
    done = threading.Event()
    tables = "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables WHERE schemaname = 'pgml_distributed'"

    def look() -> None:
        while not done.is_set():
            with suppress(psycopg2.Error):
                for (table,) in target.sql(tables):
                    seen["remembered"].update(row for (row,) in target.sql(f"SELECT t::text FROM {table} AS t"))
            for file in Path("/proc").glob("[0-9]*/cmdline"):
                with suppress(OSError):
                    seen["command lines"].add(file.read_bytes().decode("utf-8", "replace"))

    thread = threading.Thread(target=look)
    thread.start()
    collected: dict[str, str] = {}
    try:
        yield collected
    finally:
        done.set()
        thread.join()
        collected.update({what: "\n".join(texts) for what, texts in seen.items()})


SLOWLY = """
    CREATE FUNCTION sleep() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(1.5); RETURN NEW; END $$;
    CREATE TRIGGER sleepy BEFORE INSERT ON a FOR EACH ROW WHEN (NEW.id = 1) EXECUTE FUNCTION sleep();
    ALTER TABLE a ENABLE ALWAYS TRIGGER sleepy;
"""


def test_a_first_copy_shows_no_password_while_it_runs(primary: Cluster, replica: Cluster) -> None:
    """Neither the source's nor the target's, whether it fails or succeeds."""
    with pair_of(primary, replica, PASSWORDS["all"]) as pair:
        shop_of(pair)
        pair.sql_target(SLOWLY + "CREATE UNIQUE INDEX only_one ON a ((1))")
        with watched(primary, replica) as activity, sought(pair.target) as seen:
            failed = pair.target.run("pgml_subscription", **pair.subscription())
            pair.sql_target("DROP INDEX only_one")
            result = pair.subscribe()
    assert failed["failed"] and "only_one" in failed["msg"] and result["initial_copy"]["rows"] == 10
    assert pair.name in seen["remembered"] and "COPY" in "".join(activity)
    assert "pg_dump" in seen["command lines"] and "--section=post-data" in seen["command lines"]
    places = [json.dumps([failed, result], ensure_ascii=False), *seen.values(), *activity, primary.log(), replica.log()]
    for secret in (CORE, replica.password):
        assert not any(secret in place for place in places)


@pytest.mark.sampled(3)
def test_passwords_stay_hidden_on_every_major(each_major: Pair) -> None:
    """With the options that make newer servers warn, and as the owner of little that they may have."""
    pair = each_major
    pair.password = PASSWORDS["all"]
    set_password(pair, pair.password)
    shop_of(pair)
    newer = {"origin": "none", "streaming": "parallel", "run_as_owner": True} if pair.target.cluster.major >= 16 else {}
    with watched(pair.source.cluster, pair.target.cluster) as seen:
        results = [pair.subscribe(**newer), pair.subscribe(), pair.unsubscribe()]
    assert CORE not in json.dumps(results, ensure_ascii=False)
    assert not any(CORE in text for text in seen)
    for cluster in (pair.source.cluster, pair.target.cluster):
        assert CORE not in cluster.log()


@contextmanager
def creator(pair: Pair) -> Iterator[dict[str, str]]:
    """The login of a role that may create subscriptions and is no superuser, whose messages all reach the log."""
    set_password(pair, CORE)
    pair.password = CORE
    shop_of(pair)
    role = f"creator_{pair.name}"
    create_role(pair.target.cluster, role, "LOGIN", "pw")
    names = {"role": Identifier(role), "database": Identifier(pair.target.database)}
    for statement in (
        "GRANT pg_create_subscription TO {role}",
        "GRANT CREATE ON DATABASE {database} TO {role}",
        "ALTER TABLE a OWNER TO {role}",
    ):
        pair.sql_target(SQL(statement).format(**names))
    try:
        yield {"login_user": role, "login_password": "pw"}
        for cluster in (pair.source.cluster, pair.target.cluster):
            assert CORE not in cluster.log()
    finally:
        forget_subscriptions(pair.target)
        pair.sql_target(SQL("DROP OWNED BY {role} CASCADE; DROP ROLE {role}").format(**names))


def test_an_error_of_the_server_does_not_quote_the_password(newest: Pair) -> None:
    """A role that is no superuser may not do without the password: the statement that holds it fails."""
    with creator(newest) as login:
        source, target = newest.source.fingerprint(), newest.target.fingerprint()
        result = newest.target.run("pgml_subscription", **newest.subscription(password_required=False, **login))
        assert result["failed"] and "password_required" in result["msg"]
        assert CORE not in json.dumps(result)
        assert newest.source.fingerprint() == source
        assert newest.target.fingerprint() == target


def test_a_warning_of_the_server_does_not_quote_the_password(newest: Pair) -> None:
    """PostgreSQL warns of origin = none when the source's table takes rows from elsewhere, and quotes what it runs."""
    with creator(newest) as login:
        source = newest.source
        source.sql(
            "CREATE SUBSCRIPTION elsewhere CONNECTION 'dbname=x' PUBLICATION x WITH (connect = false, slot_name = NONE)"
        )
        source.sql(
            "SET allow_system_table_mods = on; INSERT INTO pg_subscription_rel"
            " SELECT oid, 'a'::regclass, 'r', NULL FROM pg_subscription WHERE subname = 'elsewhere'"
        )
        try:
            result = newest.subscribe(origin="none", **login)
        finally:
            forget_subscriptions(source)
        assert result["changed"] and CORE not in json.dumps(result)


def test_a_pass_file_takes_the_place_of_the_password(pair: Pair) -> None:
    """It is the replica's server that reads it, and this session."""
    shop_of(pair)
    file = pair.target.cluster.directory / "passfile"
    escaped = pair.password.replace("\\", "\\\\").replace(":", "\\:")
    file.write_text(f"*:*:*:*:{escaped}\n", encoding="utf-8")
    file.chmod(0o600)
    owner = pair.target.cluster.directory.stat()
    os.chown(file, owner.st_uid, owner.st_gid)
    source = {**pair.endpoint, "password": None, "passfile": str(file)}
    pair.target.converge("pgml_subscription", **pair.subscription(source=source))
    pair.arrived("a", 0.1)


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
def test_the_encoding_of_the_target_does_not_spoil_the_password(
    primary: Cluster, replica: Cluster, encoding: str
) -> None:
    with pair_of(primary, replica, f"Grüße {CORE}") as pair:
        replica.drop_database(pair.target.database)
        statement = "CREATE DATABASE {} ENCODING %s LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
        replica.sql(SQL(statement).format(Identifier(pair.target.database)), [encoding])
        shop_of(pair)
        assert pair.subscribe()["changed"]
        pair.arrived("a", 0.1)
        assert pair.subscribe()["changes"] == []


def test_statistics_of_statements_hold_no_password(default_major: int, pair: Pair) -> None:
    """With track = all they hold what functions run, too."""
    loud = {"shared_preload_libraries": "pg_stat_statements", "pg_stat_statements.track": "all"}
    try:
        cluster = Cluster(make_directory(), program_of(default_major), loud)
        cluster.create()
        cluster.start()
    except RuntimeError:
        pytest.skip("no pg_stat_statements")
    try:
        replica = Place(cluster, "postgres")
        cluster.sql("CREATE EXTENSION pg_stat_statements")
        pair.source.sql(f'CREATE TABLE a (id int PRIMARY KEY); GRANT SELECT ON a TO "{pair.distributor}"')
        cluster.sql("CREATE TABLE a (id int PRIMARY KEY)")
        pair.publish("a")
        replica.ok("pgml_subscription", **pair.subscription())
        queries = [query for (query,) in cluster.sql("SELECT query FROM pg_stat_statements")]
        assert any("ENABLE" in query for query in queries)
        assert not [
            query for query in queries if pair.password.replace("'", "") in query.replace("'", "").replace("\\", "")
        ]
        replica.ok("pgml_subscription", name=pair.name, state="absent")
    finally:
        cluster.destroy()
