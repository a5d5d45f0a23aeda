# SPDX-License-Identifier: GPL-3.0-or-later
"""Passwords of mappings: the awkward ones work, are compared as values and show nowhere, and nobody reads another's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import psycopg2
import pytest
from psycopg2.sql import SQL, Identifier

from tests.conftest import Servers, program_of
from tests.integration.test_subscription_secrets import CORE, PASSWORDS, sought, watched
from tests.support import foreign
from tests.support.cluster import Cluster, make_directory
from tests.support.foreign import MODULE, SERVER, as_role, local_role, mappings, options, prepare, refused
from tests.support.pair import Pair, Place, pair_of

ALL = [{"remote_schema": "public"}]
LOUD = {
    "log_statement": "all",
    "log_min_messages": "debug1",
    "log_min_error_statement": "debug1",
    "log_min_duration_statement": "0",
    "log_duration": "on",
    "log_connections": "on",
    "log_parameter_max_length_on_error": "-1",
}


@pytest.fixture
def shop(pair: Pair) -> Pair:
    return prepare(pair)


@pytest.fixture
def role(shop: Pair) -> Iterator[str]:
    with local_role(shop.target) as name:
        yield name


@pytest.fixture
def loud(replica: Cluster) -> Iterator[Cluster]:
    """The replica, when it logs all that it can."""
    for name, value in LOUD.items():
        replica.sql(SQL("ALTER SYSTEM SET {} = %s").format(SQL(name)), [value])
    replica.sql("SELECT pg_reload_conf()")
    yield replica
    replica.sql("ALTER SYSTEM RESET ALL")
    replica.sql("SELECT pg_reload_conf()")


def shown(seen: list[str]) -> list[str]:
    """What sessions have shown of the password, but that of the test that changes it at the source."""
    return [text for text in seen if CORE in text and "ALTER ROLE" not in text]


def whole_life(pair: Pair, role: str) -> list[dict[str, Any]]:
    """Everything that is ever done to mappings, and what the module says about it."""

    def run(check: bool = False, **params: Any) -> dict[str, Any]:
        given = {"imports": ALL, "usage": [role], **params}
        results.append(pair.target.run(MODULE, check=check, **options(pair, **given)))
        return results[-1]

    results: list[dict[str, Any]] = []
    entry = {"role": role, "user": pair.distributor, "password": pair.password}
    assert run(check=True, user_mappings=[entry])["changed"]
    assert run(user_mappings=[entry])["changed"]
    assert not run(user_mappings=[entry])["changed"]
    assert mappings(pair)[role] == {"user": pair.distributor, "password": pair.password}
    assert as_role(pair, role, "SELECT count(*) FROM shop_public.users") == [(20,)]
    other = pair.password + " and more"
    foreign.set_password(pair.source.cluster, pair.distributor, other)
    for check in (True, False):
        message = json.dumps(run(check, user_mappings=[entry], fetch_size=5), ensure_ascii=False)
        assert "password authentication failed" in message
    source = {**pair.endpoint, "password": other}
    entry["password"] = other
    assert run(check=True, source=source, user_mappings=[entry])["changed"]
    assert run(source=source, user_mappings=[entry])["changed"]
    assert not run(source=source, user_mappings=[entry])["changed"]
    assert as_role(pair, role, "SELECT count(*) FROM shop_public.users") == [(20,)]
    assert run(source=source, user_mappings=[entry], imports=[{"tables": ["no such"]}])["failed"]
    assert run(source=source, user_mappings=[{"role": "no such", "password": other}])["failed"]
    assert run(source=source, user_mappings=[entry, {"role": role, "password": other}])["failed"]
    assert run(source=source, user_mappings=[{**entry, "password": other + CORE}])["failed"]
    assert run(source=source, options={"password": other})["failed"]
    assert run(source=source)["changed"]
    results.append(pair.target.run(MODULE, server=SERVER, state="absent"))
    assert results[-1]["changed"]
    return results


@pytest.mark.sampled(4)
@pytest.mark.slow
@pytest.mark.parametrize("kind", PASSWORDS)
def test_awkward_passwords_work_and_show_nowhere(primary: Cluster, loud: Cluster, kind: str) -> None:
    with (
        pair_of(primary, loud, PASSWORDS[kind]) as pair,
        local_role(prepare(pair).target) as role,
        watched(primary, loud) as seen,
        sought(pair.target) as remembered,
    ):
        results = whole_life(pair, role)
    assert CORE not in json.dumps(results, ensure_ascii=False)
    assert shown(seen) == []
    assert not any(CORE in text for text in remembered.values())
    for cluster in (primary, loud):
        assert CORE not in cluster.log()


@pytest.mark.sampled(2)
@pytest.mark.parametrize("major", [13, 14, 16, 17, 18])
def test_passwords_stay_hidden_on_every_major(servers: Servers, major: int) -> None:
    clusters = servers.get(major, "primary"), servers.get(major, "replica")
    with (
        pair_of(*clusters, PASSWORDS["all"]) as pair,
        local_role(prepare(pair).target) as role,
        watched(*clusters) as seen,
    ):
        results = whole_life(pair, role)
    assert CORE not in json.dumps(results, ensure_ascii=False)
    assert shown(seen) == []
    for cluster in clusters:
        assert CORE not in cluster.log()


def test_a_login_role_that_is_no_superuser_shows_no_password(primary: Cluster, loud: Cluster) -> None:
    """Neither when it succeeds nor when the server refuses the statement that holds it."""
    with pair_of(primary, loud, PASSWORDS["all"]) as pair, local_role(prepare(pair).target) as name:
        names = {"role": Identifier(name), "database": Identifier(pair.target.database)}
        pair.sql_target(
            SQL(
                "GRANT USAGE ON FOREIGN DATA WRAPPER postgres_fdw TO {role}; GRANT CREATE ON DATABASE {database} TO {role}"
            ).format(**names)
        )
        login = {"login_user": name, "login_password": foreign.PASSWORD}
        with watched(loud) as seen:
            results = [pair.target.run(MODULE, **options(pair, imports=ALL, **login)) for _ in range(2)]
            wrong = [{"role": name, "password_required": False}]
            results.append(pair.target.run(MODULE, **options(pair, user_mappings=wrong, **login)))
    assert [bool(each.get("failed")) for each in results] == [False, False, True]
    assert CORE not in json.dumps(results, ensure_ascii=False)
    assert shown(seen) == []
    assert CORE not in loud.log()


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
def test_the_encoding_of_the_target_does_not_spoil_the_password(
    primary: Cluster, replica: Cluster, encoding: str
) -> None:
    with pair_of(primary, replica, f"Grüße {CORE}") as pair:
        replica.drop_database(pair.target.database)
        statement = "CREATE DATABASE {} ENCODING %s LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
        replica.sql(SQL(statement).format(Identifier(pair.target.database)), [encoding])
        prepare(pair)
        result = pair.target.run(MODULE, **options(pair, imports=ALL))
        if result.get("failed"):
            # postgres_fdw hands the password over in the encoding of the database.
            assert encoding == "LATIN1" and "password authentication failed" in result["msg"]
        else:
            assert not pair.target.ok(MODULE, **options(pair, imports=ALL))["changed"]


def test_statistics_of_statements_hold_no_password(default_major: int, pair: Pair) -> None:
    """With track = all they hold what functions run, too."""
    settings = {"shared_preload_libraries": "pg_stat_statements", "pg_stat_statements.track": "all"}
    try:
        cluster = Cluster(make_directory(), program_of(default_major), settings)
        cluster.create()
        cluster.start()
    except RuntimeError:
        pytest.skip("no pg_stat_statements")
    try:
        pair.sql_source(foreign.SHOP)
        pair.grant()
        pair.password = CORE
        foreign.set_password(pair.source.cluster, pair.distributor, CORE)
        cluster.sql("CREATE EXTENSION pg_stat_statements; CREATE EXTENSION postgres_fdw")
        place = Place(cluster, "postgres")
        place.ok(MODULE, **options(pair, imports=ALL))
        place.ok(MODULE, **options(pair, imports=ALL, user_mappings=[{"role": "public"}]))
        queries = [query for (query,) in cluster.sql("SELECT query FROM pg_stat_statements")]
        assert any("IMPORT FOREIGN SCHEMA" in query for query in queries)
        assert not [query for query in queries if CORE in query]
    finally:
        cluster.destroy()


LOOKS = [
    "SELECT t::text FROM pg_user_mappings AS t",
    "SELECT t::text FROM information_schema.user_mapping_options AS t",
    "SELECT t::text FROM information_schema.foreign_server_options AS t",
    "SELECT t::text FROM information_schema.user_mappings AS t",
    "SELECT umoptions::text FROM pg_user_mapping",
    "SELECT pg_catalog.array_to_string(umoptions, ',') FROM pg_catalog.pg_user_mappings",
    "SELECT setting FROM pg_settings",
    "SELECT current_setting('pgml_distributed.secret', true)",
    "SELECT query FROM pg_stat_activity",
]


def visible(pair: Pair, role: str) -> str:
    """All that a role can read of mappings, in catalogs, views and what the module remembers."""
    seen = []
    remembered = pair.sql_target(
        "SELECT format('SELECT t::text FROM %I.%I AS t', schemaname, tablename) FROM pg_tables"
        " WHERE schemaname = 'pgml_distributed'"
    )
    for query in [*LOOKS, *(each for (each,) in remembered)]:
        try:
            seen += [str(row) for row in as_role(pair, role, query)]
        except psycopg2.Error as error:
            seen.append(str(error))
    return "\n".join(seen)


@pytest.mark.parametrize("major", [13, 15, 18])
def test_nobody_reads_anybodys_password(servers: Servers, major: int) -> None:
    """A mapped role that is no superuser can't read another's, nor its own, nor that for all."""
    with pair_of(servers.get(major, "primary"), servers.get(major, "replica"), CORE) as pair:
        prepare(pair)
        with local_role(pair.target) as one, local_role(pair.target) as other, local_role(pair.target) as nobody:
            entries = [{"role": one}, {"role": other}, {"role": "public"}]
            pair.target.ok(MODULE, **options(pair, imports=ALL, usage=[one, other, nobody], user_mappings=entries))
            for name in (one, other, nobody):
                assert as_role(pair, name, "SELECT count(*) FROM shop_public.users") == [(20,)]
                assert SERVER in visible(pair, name)
                assert CORE not in visible(pair, name)
            # What keeps a role from its own is that it has no privilege on the server.
            pair.sql_target(SQL("GRANT USAGE ON FOREIGN SERVER shop TO {}").format(Identifier(one)))
            assert CORE in visible(pair, one) and CORE not in visible(pair, other)
            pair.target.ok(MODULE, server=SERVER, state="absent")


def test_a_role_cant_go_elsewhere_with_its_mapping(shop: Pair, role: str) -> None:
    """It can alter neither its mapping nor a foreign table, nor make another, on a server that it has no privilege on."""
    shop.target.ok(MODULE, **options(shop, imports=ALL, usage=[role], user_mappings=[{"role": role}]))
    for statement in (
        "ALTER USER MAPPING FOR CURRENT_USER SERVER shop OPTIONS (SET user 'x')",
        "DROP USER MAPPING FOR CURRENT_USER SERVER shop",
        "CREATE FOREIGN TABLE pg_temp.x () SERVER shop",
        "IMPORT FOREIGN SCHEMA public FROM SERVER shop INTO public",
        "ALTER SERVER shop OPTIONS (SET host 'elsewhere')",
        "INSERT INTO shop_public.users VALUES (100, 'x')",
        "DELETE FROM shop_public.users",
    ):
        with pytest.raises(psycopg2.Error, match="permission denied|must be owner"):
            as_role(shop, role, statement)


def test_the_distributor_may_only_read(shop: Pair) -> None:
    shop.target.ok(MODULE, **options(shop, imports=ALL))
    with pytest.raises(psycopg2.Error, match="permission denied for table users"):
        shop.sql_target("DELETE FROM shop_public.users")


def test_a_missing_password_is_no_empty_one(shop: Pair, role: str) -> None:
    """Without any, the source asks for one; the server's own environment doesn't help a role that is no superuser."""
    message = refused(shop, imports=ALL, source={**shop.endpoint, "password": ""})
    assert "password" in message
