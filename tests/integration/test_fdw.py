# SPDX-License-Identifier: GPL-3.0-or-later
"""Foreign servers: their options, mappings and privileges, the proof that the source can be read, and their removal."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import psycopg2
import pytest
from psycopg2.sql import SQL, Identifier

from tests.conftest import Servers
from tests.support import copies, foreign
from tests.support.foreign import (
    MODULE,
    SERVER,
    absent,
    as_role,
    converge,
    local_role,
    mappings,
    ok,
    options,
    prepare,
    refused,
    relations,
    server_options,
)
from tests.support.pair import Pair, pair_of

MAJORS = [13, 14, 16, 18]
ALL = [{"remote_schema": "public"}]


@pytest.fixture
def shop(pair: Pair) -> Pair:
    """A source with the tables users, orders and stock, and a target that has the wrapper."""
    return prepare(pair)


@pytest.fixture
def role(shop: Pair) -> Iterator[str]:
    with local_role(shop.target) as name:
        yield name


@pytest.fixture
def other_role(shop: Pair) -> Iterator[str]:
    with local_role(shop.target) as name:
        yield name


def of_major(servers: Servers, major: int) -> Any:
    return pair_of(servers.get(major, "primary"), servers.get(major, "replica"))


# Options of the server: what is asked for first and then, what the catalog has then, and since which version.
NAMED: dict[str, tuple[Any, Any, str, str, int]] = {
    "fetch_size": (50, 200, "50", "200", 13),
    "batch_size": (10, 20, "10", "20", 14),
    "use_remote_estimate": (False, True, "false", "true", 13),
    "extensions": (["plpgsql"], ["postgres_fdw"], "plpgsql", "postgres_fdw", 13),
    "async_capable": (True, False, "true", "false", 14),
    "analyze_sampling": ("random", "off", "random", "off", 16),
    "keep_connections": (False, True, "false", "true", 14),
    "application_name": ("training", "it's = \\ other", "training", "it's = \\ other", 13),
    "connect_timeout": (3, 7, "3", "7", 13),
}
FREE: dict[str, tuple[Any, Any, str, str, int]] = {
    "fdw_startup_cost": (50, 70.5, "50", "70.5", 13),
    "fdw_tuple_cost": ("0.2", "0.3", "0.2", "0.3", 13),
    "updatable": (False, True, "false", "true", 13),
    "truncatable": ("false", "true", "false", "true", 14),
    "parallel_commit": (True, False, "true", "false", 15),
    "parallel_abort": (True, False, "true", "false", 16),
    "options": ("-c work_mem=8MB", "-c work_mem=9MB -c statement_timeout=60s", "-c work_mem=8MB",
                "-c work_mem=9MB -c statement_timeout=60s", 13),
    "target_session_attrs": ("any", "read-write", "any", "read-write", 13),
}  # fmt: skip


def asked(name: str, value: Any) -> dict[str, Any]:
    return {name: value} if name in NAMED else {"options": {name: value}}


def assert_follows(pair: Pair, name: str) -> None:
    """An option is set, changed and dropped, and no other is touched."""
    first, then, has_first, has_then, _since = {**NAMED, **FREE}[name]
    before = server_options(pair)
    for value, has in ((first, has_first), (then, has_then)):
        result = converge(pair, **asked(name, value))
        there = {**before, name: has}
        assert server_options(pair) == there == result["server"]["options"]
        assert result["changed"] and len(result["changes"]) == 1 and name in result["changes"][0]
        assert has in result["changes"][0] or str(value) in result["changes"][0]
    back = converge(pair)
    assert back["changed"] == (before.get(name) != has_then)
    assert server_options(pair) == before


@pytest.mark.parametrize("name", [name for name, option in {**NAMED, **FREE}.items() if option[4] <= 15])
def test_an_option_is_set_changed_and_dropped(shop: Pair, name: str) -> None:
    created = converge(shop)
    assert created["changed"] and created["server"]["name"] == SERVER
    assert_follows(shop, name)


@pytest.mark.parametrize("major", MAJORS)
def test_all_options_of_a_version_together(servers: Servers, major: int) -> None:
    known = {name: option for name, option in {**NAMED, **FREE}.items() if option[4] <= major}

    def wanted(number: int) -> dict[str, Any]:
        free = {name: option[number] for name, option in known.items() if name in FREE}
        return {"options": free, **{name: option[number] for name, option in known.items() if name in NAMED}}

    with of_major(servers, major) as pair:
        prepare(pair)
        converge(pair, imports=ALL)
        plain = server_options(pair)
        for number in (0, 1):
            converge(pair, imports=ALL, **wanted(number))
            assert server_options(pair) == {**plain, **{name: option[number + 2] for name, option in known.items()}}
            assert pair.target.value("SELECT count(*) FROM shop_public.users") == 20
        converge(pair, imports=ALL)
        assert server_options(pair) == plain
        for name, option in {**NAMED, **FREE}.items():
            if option[4] > major:
                message = refused(pair, imports=ALL, **asked(name, option[0]))
                assert name in message, message
                assert f"PostgreSQL {option[4]}" in message or name in FREE, message
        assert absent(pair)["changed"]


def test_the_defaults(shop: Pair) -> None:
    converge(shop)
    there = server_options(shop)
    address = {"host": "127.0.0.1", "port": str(shop.source.cluster.port), "dbname": shop.source.database}
    assert {key: there.get(key) for key in address} == address
    ours = {"fetch_size": "10000", "use_remote_estimate": "true", "connect_timeout": "10"}
    assert {key: there.get(key) for key in ours} == ours
    assert not {"user", "password"} & set(there)


def test_several_extensions(shop: Pair) -> None:
    converge(shop, extensions=["plpgsql", "postgres_fdw"])
    assert server_options(shop)["extensions"].replace(" ", "") == "plpgsql,postgres_fdw"
    message = refused(shop, extensions=["plpgsql", "not_there"])
    assert "not_there" in message


def test_the_server_follows_the_source(shop: Pair) -> None:
    converge(shop, imports=ALL)
    before = server_options(shop)
    elsewhere = {**shop.endpoint, "host": "localhost", "ssl_mode": "prefer", "connect_params": {"keepalives_idle": 77}}
    converge(shop, imports=ALL, source=elsewhere)
    assert server_options(shop) == {**before, "host": "localhost", "sslmode": "prefer", "keepalives_idle": "77"}
    converge(shop, imports=ALL, source={**elsewhere, "ssl_mode": "disable"})
    assert server_options(shop)["sslmode"] == "disable"
    converge(shop, imports=ALL)
    assert server_options(shop) == before
    message = refused(shop, imports=ALL, source={**shop.endpoint, "ssl_mode": "require"})
    assert "server does not support SSL" in message


def test_an_option_that_somebody_changed_is_set_again(shop: Pair) -> None:
    converge(shop)
    before = server_options(shop)
    shop.sql_target("ALTER SERVER shop OPTIONS (SET fetch_size '7', DROP connect_timeout)")
    assert converge(shop)["changed"]
    assert server_options(shop) == before


WRONG_OPTIONS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "no rows at a time": ({"fetch_size": 0}, ["fetch_size"]),
    "negative rows at a time": ({"fetch_size": -5}, ["fetch_size"]),
    "no rows per insert": ({"batch_size": 0}, ["batch_size"]),
    "no jobs": ({"jobs": 0}, ["jobs"]),
    "unknown": ({"options": {"fetch_sizes": 1}}, ["fetch_sizes"]),
    "unknown and quoted": ({"options": {"a'b \"c": 1}}, ["a'b \"c"]),
    "of the module": ({"options": {"fetch_size": 1}}, ["fetch_size"]),
    "of the module and given": ({"options": {"batch_size": 1}, "batch_size": 2}, ["batch_size"]),
    "user": ({"options": {"user": "me"}}, ["user"]),
    "password": ({"options": {"password": "Zq7core4Tz"}}, ["password"]),
    "sslpassword": ({"options": {"sslpassword": "Zq7core4Tz"}}, ["sslpassword"]),
    "host": ({"options": {"host": "elsewhere"}}, ["host"]),
    "database": ({"options": {"dbname": "elsewhere"}}, ["dbname"]),
    "not a number": ({"options": {"fdw_tuple_cost": "cheap"}}, ["fdw_tuple_cost"]),
    "no role": ({"usage": ["public"]}, ["usage", "public"]),
    "no name": ({"server": ""}, ["server"]),
    "long name": ({"server": "x" * 64}, ["63"]),
    "no source": ({"source": None}, ["source"]),
    "password in connect_params": ({"connect": {"password": "Zq7core4Tz"}}, ["password"]),
}  # fmt: skip


@pytest.mark.sampled(10)
@pytest.mark.parametrize("kind", WRONG_OPTIONS)
@pytest.mark.parametrize("there", [False, True], ids=["new", "there"])
def test_wrong_options_get_one_clear_sentence(shop: Pair, kind: str, there: bool) -> None:
    params, words = WRONG_OPTIONS[kind]
    if "connect" in params:
        params = {"source": {**shop.endpoint, "connect_params": params["connect"]}}
    if there:
        ok(shop, imports=ALL)
    message = refused(shop, imports=ALL, **params)
    assert all(word in message for word in words), message
    assert "Zq7core4Tz" not in message


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    "kind", ["no jobs", "of the module", "user", "password", "host", "no name", "long name", "no source"]
)
def test_what_no_earlier_task_makes_right_fails_in_check_mode_too(shop: Pair, kind: str) -> None:
    params, words = WRONG_OPTIONS[kind]
    before = shop.target.fingerprint()
    result = shop.target.run(MODULE, check=True, **options(shop, imports=ALL, **params))
    assert result.get("failed") and all(word in result["msg"] for word in words), result
    assert shop.target.fingerprint() == before


def test_without_the_extension(pair: Pair) -> None:
    pair.sql_source(foreign.SHOP)
    pair.grant()
    assert "postgres_fdw" in refused(pair, imports=ALL)
    before = pair.target.fingerprint()
    predicted = ok(pair, check=True, imports=ALL)
    assert predicted["changed"] and any("postgres_fdw" in each for each in predicted["warnings"])
    assert pair.target.fingerprint() == before


def test_a_database_that_is_yet_to_come(pair: Pair) -> None:
    pair.sql_source(foreign.SHOP)
    pair.grant()
    assert ok(pair, check=True, imports=ALL, login_db="to_come")["changed"]
    assert "to_come" in refused(pair, imports=ALL, login_db="to_come")
    assert not absent(pair, login_db="to_come")["changed"]


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", ['Quo"ted', "with, comma", "per%cent", "ro{le}", "größe", "SELECT", "a.b", "'"])
def test_awkward_names(shop: Pair, name: str) -> None:
    """Of the server, the schema and two roles."""
    with local_role(shop.target, name=name):
        users = [{"role": name}]
        imports = [{"remote_schema": "public", "local_schema": name}]
        result = converge(shop, server=name, user_mappings=users, imports=imports, usage=[name])
        assert result["server"]["name"] == name
        assert set(mappings(shop, name)) == {"postgres", name}
        table = SQL("SELECT count(*) FROM {}").format(Identifier(name, "users"))
        with closing(shop.target.cluster.connect()) as connection:
            assert as_role(shop, name, table.as_string(connection)) == [(20,)]
        converge(shop, server=name, imports=imports)
        assert set(mappings(shop, name)) == {"postgres"}
        assert shop.target.converge(MODULE, server=name, state="absent")["changed"]
        assert relations(shop.target) == set()


# Mappings


def own(pair: Pair) -> dict[str, str]:
    return {"user": pair.distributor, "password": pair.password}


def said(result: dict[str, Any]) -> dict[str, tuple[str, bool]]:
    """The mappings that a result tells of."""
    for each in result["user_mappings"]:
        assert set(each) == {"role", "user", "password_required"}
    return {each["role"]: (each["user"], each["password_required"]) for each in result["user_mappings"]}


def test_mappings_are_added_changed_and_dropped(shop: Pair, role: str, other_role: str) -> None:
    plain = {"imports": ALL, "usage": [role, other_role]}
    result = converge(shop, **plain)
    assert mappings(shop) == {"postgres": own(shop)}
    assert said(result) == {"postgres": (shop.distributor, True)}
    result = converge(shop, **plain, user_mappings=[{"role": role}])
    assert mappings(shop) == {"postgres": own(shop), role: own(shop)}
    assert said(result) == {"postgres": (shop.distributor, True), role: (shop.distributor, True)}
    assert as_role(shop, role, "SELECT count(*) FROM shop_public.users") == [(20,)]
    with foreign.remote_role(shop) as another:
        theirs = {"role": role, "user": another, "password": "another's"}
        result = converge(shop, **plain, user_mappings=[theirs, {"role": other_role}])
        assert result["changed"] and said(result)[role] == (another, True)
        assert mappings(shop)[role] == {"user": another, "password": "another's"}
        assert mappings(shop)[other_role] == mappings(shop)["postgres"] == own(shop)
        foreign.set_password(shop.source.cluster, another, "rotated")
        theirs["password"] = "rotated"
        assert len(converge(shop, **plain, user_mappings=[theirs, {"role": other_role}])["changes"]) == 1
        assert mappings(shop)[role] == {"user": another, "password": "rotated"}
    assert converge(shop, **plain, user_mappings=[{"role": other_role}])["changed"]
    assert set(mappings(shop)) == {"postgres", other_role}
    with pytest.raises(psycopg2.Error, match="user mapping not found"):
        as_role(shop, role, "SELECT count(*) FROM shop_public.users")


def test_a_mapping_for_all(shop: Pair, role: str) -> None:
    everybody = [{"role": "public"}]
    result = converge(shop, imports=ALL, usage=[role], user_mappings=everybody)
    assert mappings(shop) == {"postgres": own(shop), "public": own(shop)}
    assert "public" in said(result)
    assert as_role(shop, role, "SELECT count(*) FROM shop_public.users") == [(20,)]
    assert converge(shop, imports=ALL, usage=[role])["changed"]
    assert set(mappings(shop)) == {"postgres"}


def test_the_login_role_may_have_another_identity(shop: Pair) -> None:
    with foreign.remote_role(shop) as another:
        entry = {"role": "postgres", "user": another, "password": "another's"}
        converge(shop, imports=ALL, user_mappings=[entry])
        assert mappings(shop) == {"postgres": {"user": another, "password": "another's"}}
        converge(shop, imports=ALL)
        assert mappings(shop) == {"postgres": own(shop)}


def test_mappings_that_others_changed_are_set_right(shop: Pair, role: str) -> None:
    entries = [{"role": role}]
    converge(shop, user_mappings=entries)
    for statement in (
        "ALTER USER MAPPING FOR {} SERVER shop OPTIONS (SET password 'wrong')",
        "ALTER USER MAPPING FOR {} SERVER shop OPTIONS (DROP password)",
        "ALTER USER MAPPING FOR {} SERVER shop OPTIONS (SET \"user\" 'other')",
        "ALTER USER MAPPING FOR {} SERVER shop OPTIONS (ADD password_required 'false')",
        "DROP USER MAPPING FOR {} SERVER shop",
        "DROP USER MAPPING FOR CURRENT_USER SERVER shop",
    ):
        shop.sql_target(SQL(statement).format(Identifier(role)))
        assert converge(shop, user_mappings=entries)["changed"], statement
        assert mappings(shop) == {"postgres": own(shop), role: own(shop)}


def test_without_a_password_the_servers_own_identity_serves(shop: Pair, role: str) -> None:
    """A pass file of the server's, which only superusers and whom they allow it may use."""
    file = pass_file(shop, f"*:*:*:*:{shop.password}\n")
    source = {**shop.endpoint, "password": None, "passfile": file}
    allowed = [{"role": role, "password_required": False}]
    result = converge(shop, source=source, imports=ALL, usage=[role], user_mappings=allowed)
    assert said(result)[role] == (shop.distributor, False)
    assert mappings(shop)[role] == {"user": shop.distributor, "password_required": "false"}
    assert server_options(shop)["passfile"] == file
    assert as_role(shop, role, "SELECT count(*) FROM shop_public.users") == [(20,)]
    message = refused(shop, source=source, imports=ALL, usage=[role], user_mappings=[{"role": role}])
    assert "password" in message and role in message
    converge(shop, imports=ALL, usage=[role], user_mappings=[{"role": role}])
    assert mappings(shop)[role] == own(shop)
    assert "passfile" not in server_options(shop)


def pass_file(pair: Pair, text: str) -> str:
    """A file that only the target's server may read, and this process when it is root."""
    file = pair.target.cluster.directory / "passfile"
    file.write_text(text, encoding="utf-8")
    file.chmod(0o600)
    owner = pair.target.cluster.directory.stat()
    os.chown(file, owner.st_uid, owner.st_gid)
    return str(file)


def test_certificates_are_options_of_the_mapping(shop: Pair, role: str) -> None:
    """They are not used by a source without TLS."""
    files = {"ssl_cert": "/somewhere/client.crt", "ssl_key": "/somewhere/client.key"}
    converge(shop, user_mappings=[{"role": role, **files}])
    assert mappings(shop)[role] == {**own(shop), "sslcert": files["ssl_cert"], "sslkey": files["ssl_key"]}
    converge(shop, user_mappings=[{"role": role}])
    assert mappings(shop)[role] == own(shop)


WRONG_MAPPINGS: dict[str, tuple[list[dict[str, Any]], list[str]]] = {
    "no such role": ([{"role": "nobody there"}], ['no role "nobody there"']),
    "twice": ([{"role": "postgres"}, {"role": "postgres"}], ["postgres", "once"]),
    "empty": ([{"role": ""}], ["role"]),
    "long": ([{"role": "x" * 64}], ["x" * 63]),
}


@pytest.mark.parametrize("kind", WRONG_MAPPINGS)
def test_wrong_mappings_get_one_clear_sentence(shop: Pair, kind: str) -> None:
    entries, words = WRONG_MAPPINGS[kind]
    message = refused(shop, imports=ALL, user_mappings=entries)
    assert all(word in message for word in words), message
    ok(shop, imports=ALL)
    assert refused(shop, imports=ALL, user_mappings=entries) == message


def test_a_role_that_is_yet_to_come(shop: Pair) -> None:
    result = ok(shop, check=True, imports=ALL, user_mappings=[{"role": "yet_to_come"}], usage=["yet_to_come"])
    assert result["changed"] and any("yet_to_come" in each for each in result["warnings"])


# A login role that is no superuser


@pytest.fixture
def owner(shop: Pair) -> Iterator[dict[str, Any]]:
    """The login of a role that may create servers, and nothing more."""
    with local_role(shop.target) as name:
        shop.sql_target(SQL("GRANT USAGE ON FOREIGN DATA WRAPPER postgres_fdw TO {}").format(Identifier(name)))
        database = Identifier(shop.target.database)
        shop.sql_target(SQL("GRANT CREATE ON DATABASE {} TO {}").format(database, Identifier(name)))
        yield {"login_user": name, "login_password": foreign.PASSWORD}


def test_a_login_role_that_is_no_superuser(shop: Pair, owner: dict[str, Any]) -> None:
    name = owner["login_user"]
    result = converge(shop, imports=ALL, **owner)
    assert result["changed"] and mappings(shop) == {name: own(shop)}
    assert as_role(shop, name, "SELECT count(*) FROM shop_public.orders") == [(60,)]
    converge(shop, imports=ALL, fetch_size=77, **owner)
    assert server_options(shop)["fetch_size"] == "77"
    assert absent(shop, **owner)["changed"]
    assert relations(shop.target) == set() and mappings(shop) == {}


def test_passwords_that_a_login_role_may_not_read_are_not_compared(
    shop: Pair, owner: dict[str, Any], role: str
) -> None:
    """It may read its own."""
    shop.sql_target(SQL("GRANT {} TO {}").format(Identifier(role), Identifier(owner["login_user"])))
    entries = [{"role": role}]
    assert "warnings" not in ok(shop, imports=ALL, user_mappings=entries, **owner)
    converge(shop, imports=ALL, user_mappings=entries, usage=[role], **owner)
    assert as_role(shop, role, "SELECT count(*) FROM shop_public.orders") == [(60,)]
    foreign.set_password(shop.source.cluster, shop.distributor, "rotated")
    shop.password = "rotated"
    before = mappings(shop)[role]
    result = shop.target.run(MODULE, **options(shop, imports=ALL, user_mappings=entries, usage=[role], **owner))
    if result.get("failed"):
        assert "password authentication failed" in result["msg"] and role in result["msg"]
    else:
        assert any(role in each for each in result["warnings"]) and mappings(shop)[role] == before


def test_what_a_login_role_that_is_no_superuser_may_not(shop: Pair, owner: dict[str, Any], role: str) -> None:
    entries = [{"role": owner["login_user"], "password_required": False}]
    message = refused(shop, imports=ALL, user_mappings=entries, **owner)
    assert "password_required" in message and "superuser" in message
    entries = [{"role": owner["login_user"], "ssl_cert": "/x", "ssl_key": "/y"}]
    message = refused(shop, imports=ALL, user_mappings=entries, **owner)
    assert "superuser" in message
    # The mapping of a role that it can't become can't be proven.
    result = converge(shop, imports=ALL, user_mappings=[{"role": role}], **owner)
    assert any(role in each and "not tried" in each for each in result["warnings"])


def test_a_login_role_without_the_right_to_make_servers(shop: Pair, role: str) -> None:
    message = refused(shop, imports=ALL, login_user=role, login_password=foreign.PASSWORD)
    assert "permission denied for foreign-data wrapper postgres_fdw" in message
    converge(shop, imports=ALL)
    login: dict[str, Any] = {"login_user": role, "login_password": foreign.PASSWORD}
    assert "permission denied" in refused(shop, imports=ALL, fetch_size=5, **login)
    assert "permission denied" in shop.target.refused(MODULE, server=SERVER, state="absent", **login)


# The proof


def lose(statement: str) -> Callable[[Pair], dict[str, Any]]:
    """Something that the source's administrator does, as far as the distributor is concerned."""

    def do(pair: Pair) -> dict[str, Any]:
        pair.sql_source(SQL(statement).format(Identifier(pair.distributor)))
        return {}

    return do


def source_with(**changes: Any) -> Callable[[Pair], dict[str, Any]]:
    return lambda pair: {"source": {**pair.endpoint, **changes}}


THREE = [{"tables": ["users", "public.orders", "stock"]}]
UNPROVEN: dict[str, tuple[Callable[[Pair], dict[str, Any]], list[str]]] = {
    "wrong password": (source_with(password="wrong"), ["password authentication failed for user"]),
    "no password": (source_with(password=None), ["password"]),
    "unknown role": (source_with(user="stranger"), ['password authentication failed for user "stranger"']),
    "closed port": (source_with(port=1), ["Connection refused"]),
    "unknown host": (source_with(host="no-such-host.invalid"), ["no-such-host.invalid"]),
    "unknown database": (source_with(db="nowhere"), ['database "nowhere" does not exist']),
    "no SELECT": (lose("REVOKE SELECT ON stock FROM {}"), ["permission denied for table stock"]),
    "no USAGE": (
        lose("CREATE SCHEMA shut; ALTER TABLE stock SET SCHEMA shut; GRANT SELECT ON shut.stock TO {}"),
        ["permission denied for schema shut"],
    ),
    "no table": (lose("DROP TABLE stock"), ["stock"]),
    "no schema": (lose("DROP TABLE stock"), ["nowhere"]),
}
ASKED = {"no USAGE": "shut.stock", "no schema": "nowhere.stock"}


@pytest.mark.sampled(10)
@pytest.mark.parametrize("there", [False, True], ids=["new", "there"])
@pytest.mark.parametrize("kind", UNPROVEN)
def test_what_is_not_proven_is_not_done(shop: Pair, kind: str, there: bool) -> None:
    """The error is in the source's own words."""
    if there:
        converge(shop, imports=THREE)
    spoil, words = UNPROVEN[kind]
    params = {"imports": [{"tables": ["users", "orders", ASKED.get(kind, "stock")]}], "fetch_size": 7, **spoil(shop)}
    message = refused(shop, **params)
    assert all(word in message for word in words), message
    predicted = shop.target.run(MODULE, check=True, **options(shop, **params))
    assert all(word in predicted.get("msg", "") + " ".join(predicted.get("warnings", [])) for word in words), predicted


def test_a_schema_that_is_missing(shop: Pair) -> None:
    assert "nowhere" in refused(shop, imports=[{"remote_schema": "nowhere"}])
    shop.sql_source("CREATE SCHEMA empty; CREATE SCHEMA shut; CREATE TABLE shut.t ()")
    assert "permission denied for schema shut" in refused(shop, imports=[{"remote_schema": "shut"}])


def test_check_mode_without_the_source(shop: Pair) -> None:
    """An earlier task may be about to start it."""
    converge(shop, imports=ALL)
    before = shop.target.fingerprint()
    result = ok(shop, check=True, imports=ALL, source={**shop.endpoint, "port": 1})
    assert result["changed"] and any("Connection refused" in each for each in result["warnings"])
    assert "tables" not in result and "drift" not in result
    assert shop.target.fingerprint() == before


def test_every_mapping_is_proven(shop: Pair, role: str) -> None:
    with foreign.remote_role(shop) as another:
        entry = {"role": role, "user": another, "password": "another's"}
        message = refused(shop, imports=ALL, user_mappings=[{**entry, "password": "wrong"}])
        assert "password authentication failed" in message and another in message and role in message
        shop.sql_source(SQL("REVOKE SELECT ON orders FROM {}").format(Identifier(another)))
        message = refused(shop, imports=ALL, user_mappings=[entry])
        assert "permission denied for table orders" in message and role in message
        converge(shop, imports=[{"remote_schema": "public", "except": ["orders"]}], user_mappings=[entry])


def test_a_run_that_changes_nothing_is_a_proof_too(shop: Pair) -> None:
    converge(shop, imports=ALL)
    shop.sql_source(SQL("REVOKE SELECT ON orders FROM {}").format(Identifier(shop.distributor)))
    assert "permission denied for table orders" in refused(shop, imports=ALL)


def test_columns_that_may_be_read_are_enough(shop: Pair) -> None:
    name = Identifier(shop.distributor)
    shop.sql_source(SQL("REVOKE SELECT ON users FROM {0}; GRANT SELECT (id, born) ON users TO {0}").format(name))
    assert "permission denied for table users" in refused(shop, imports=[{"tables": ["users"]}])
    converge(shop, imports=[{"tables": [{"name": "users", "columns": ["id", "born"]}]}])
    assert len(shop.sql_target("SELECT * FROM shop_public.users")) == 20


# Privileges


def privileges(pair: Pair, role: str) -> dict[str, str]:
    """Everything that the access control lists of the target say of a role."""
    query = (
        "SELECT object, string_agg(a.privilege_type || CASE WHEN a.is_grantable THEN '*' ELSE '' END, ' '"
        " ORDER BY a.privilege_type) FROM ("
        " SELECT format('%%I.%%I', nspname, relname), relacl"
        "  FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = relnamespace"
        " UNION ALL SELECT nspname, nspacl FROM pg_namespace"
        " UNION ALL SELECT format('server %%I', srvname), srvacl FROM pg_foreign_server"
        " UNION ALL SELECT 'wrapper', fdwacl FROM pg_foreign_data_wrapper"
        " UNION ALL SELECT 'default', defaclacl FROM pg_default_acl"
        " UNION ALL SELECT format('%%I %%I', attrelid::regclass, attname), attacl FROM pg_attribute) AS o (object, acl),"
        " aclexplode(o.acl) AS a WHERE a.grantee = (SELECT oid FROM pg_authid WHERE rolname = %s) GROUP BY 1"
    )
    return dict(pair.sql_target(query, [role]))


def test_roles_get_and_lose_what_they_need(shop: Pair, role: str, other_role: str) -> None:
    shop.sql_source("CREATE SCHEMA s; CREATE TABLE s.t (id int)")
    shop.grant()
    imports = [
        {"tables": ["users", {"name": "orders", "where": "id > 10"}]},
        {"remote_schema": "s", "local_schema": "S, too"},
    ]
    entries = [{"role": role}]
    converge(shop, imports=imports, usage=[role], user_mappings=entries)
    assert privileges(shop, role) == {
        "shop_public": "USAGE",
        "S, too": "USAGE",
        "shop_public.users": "SELECT",
        "shop_public.orders": "SELECT",
        "shop_public.orders_unfiltered": "SELECT",
        '"S, too".t': "SELECT",
    }
    assert as_role(shop, role, "SELECT count(*) FROM shop_public.orders") == [(50,)]
    assert as_role(shop, role, 'SELECT count(*) FROM "S, too".t') == [(0,)]
    assert privileges(shop, other_role) == privileges(shop, "public") == {}
    assert converge(shop, imports=imports[1:], usage=[other_role, role], user_mappings=entries)["changed"]
    assert privileges(shop, other_role) == privileges(shop, role) == {"S, too": "USAGE", '"S, too".t': "SELECT"}
    assert converge(shop, imports=imports[1:], usage=[other_role])["changed"]
    assert privileges(shop, role) == {}
    assert converge(shop, imports=imports[1:])["changed"]
    assert privileges(shop, other_role) == {}


def test_what_others_granted_stays(shop: Pair, role: str, other_role: str) -> None:
    converge(shop, imports=ALL, usage=[role])
    name = Identifier(other_role)
    shop.sql_target(
        SQL("GRANT SELECT ON shop_public.users TO {0}; GRANT USAGE ON SCHEMA shop_public TO {0}").format(name)
    )
    assert not converge(shop, imports=ALL, usage=[role])["changed"]
    held = {"shop_public": "USAGE", "shop_public.users": "SELECT"}
    converge(shop, imports=ALL)
    assert privileges(shop, other_role) == held and privileges(shop, role) == {}


def test_a_role_that_lost_its_privilege_gets_it_again(shop: Pair, role: str) -> None:
    converge(shop, imports=ALL, usage=[role])
    held = privileges(shop, role)
    shop.sql_target(SQL("REVOKE SELECT ON shop_public.users FROM {}").format(Identifier(role)))
    assert converge(shop, imports=ALL, usage=[role])["changed"]
    assert privileges(shop, role) == held


def test_a_role_without_a_mapping_reads_nothing(shop: Pair, role: str) -> None:
    imports = [{"tables": ["users", {"name": "orders", "where": "id > 10"}]}]
    converge(shop, imports=imports, usage=[role])
    for relation in ("users", "orders", "orders_unfiltered"):
        with pytest.raises(psycopg2.Error, match="user mapping not found"):
            as_role(shop, role, f"SELECT * FROM shop_public.{relation}")


def test_a_usage_role_that_is_missing(shop: Pair) -> None:
    assert 'no role "nobody there"' in refused(shop, imports=ALL, usage=["nobody there"])


# Removal


def test_nothing_is_left(shop: Pair, role: str) -> None:
    before = foreign.catalogs(shop.target), copies.definitions(shop.target)
    shop.sql_source("CREATE SCHEMA s; CREATE TABLE s.t (id int)")
    shop.grant()
    imports = [{"remote_schema": "public"}, {"tables": [{"name": "s.t", "where": "id > 1"}], "local_schema": "x"}]
    converge(shop, imports=imports, usage=[role], user_mappings=[{"role": role}, {"role": "public"}])
    assert foreign.catalogs(shop.target) != before[0]
    predicted = ok(shop, check=True, source=None, state="absent")
    assert predicted["changed"]
    shop.source.cluster.stop()
    try:
        assert absent(shop)["changed"]
    finally:
        shop.source.cluster.start()
    assert foreign.catalogs(shop.target) == before[0]
    assert copies.changed_lines(before[1], copies.definitions(shop.target)) == ""
    assert not absent(shop)["changed"]


def test_other_servers_of_the_module_stay(shop: Pair) -> None:
    converge(shop, imports=ALL)
    before = foreign.catalogs(shop.target)
    converge(shop, server="second", imports=ALL)
    assert relations(shop.target, "f") >= {"shop_public.users", "second_public.users"}
    assert shop.target.converge(MODULE, server="second", state="absent")["changed"]
    assert foreign.catalogs(shop.target) == before
    assert not converge(shop, imports=ALL)["changed"]


def test_a_schema_that_was_there_stays(shop: Pair) -> None:
    shop.sql_target("CREATE SCHEMA kept; CREATE SCHEMA shop_public; CREATE TABLE kept.own ()")
    imports = [{"remote_schema": "public"}, {"tables": ["stock"], "local_schema": "kept"}]
    converge(shop, imports=imports)
    assert "kept.stock" in relations(shop.target)
    absent(shop)
    assert shop.sql_target("SELECT 1 FROM pg_namespace WHERE nspname IN ('kept', 'shop_public')") == [(1,), (1,)]
    assert "kept.own" in relations(shop.target, "r")


def test_a_schema_that_others_use_stays(shop: Pair) -> None:
    converge(shop, imports=ALL)
    shop.sql_target("CREATE TABLE shop_public.mine (id int)")
    absent(shop)
    assert relations(shop.target) == set() and relations(shop.target, "r") >= {"shop_public.mine"}


OTHERS = {
    "a view": ("CREATE VIEW mine AS SELECT id FROM shop_public.orders", "mine"),
    "a materialized view": ('CREATE MATERIALIZED VIEW "My Own" AS SELECT id FROM shop_public.users', '"My Own"'),
    "a foreign table": ("CREATE FOREIGN TABLE mine (id int) SERVER shop OPTIONS (table_name 'users')", "mine"),
    "a function": (
        "CREATE FUNCTION mine() RETURNS bigint BEGIN ATOMIC SELECT count(*) FROM shop_public.stock; END",
        "mine",
    ),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_what_others_built_prevents_removal_and_is_named(shop: Pair, kind: str) -> None:
    statement, name = OTHERS[kind]
    imports = [{"tables": ["users", "stock", {"name": "orders", "where": "id > 10"}]}]
    converge(shop, imports=imports)
    shop.sql_target(statement)
    before = shop.target.fingerprint()
    assert name in shop.target.refused(MODULE, server=SERVER, state="absent")
    predicted = shop.target.run(MODULE, check=True, server=SERVER, state="absent")
    assert name in predicted.get("msg", "") + " ".join(predicted.get("warnings", []))
    assert shop.target.fingerprint() == before
    if kind != "a foreign table":
        # Neither goes what is no longer asked for.
        message = refused(shop, imports=[])
        assert name in message


def test_a_mapping_of_somebody_elses(shop: Pair, role: str) -> None:
    """A mapping that this module didn't make, on its own server, is not what it was asked for."""
    converge(shop, imports=ALL)
    shop.sql_target(SQL("CREATE USER MAPPING FOR {} SERVER shop OPTIONS (user 'x')").format(Identifier(role)))
    result = converge(shop, imports=ALL)
    if role in mappings(shop):
        assert not result["changed"]
    absent(shop)
    assert mappings(shop) == {}


@pytest.mark.parametrize("wrapper", ["postgres_fdw", "another"])
def test_a_server_that_others_made_is_refused(shop: Pair, wrapper: str) -> None:
    shop.sql_target("CREATE FOREIGN DATA WRAPPER another")
    shop.sql_target(f"CREATE SERVER shop FOREIGN DATA WRAPPER {wrapper}")
    message = refused(shop, imports=ALL)
    assert "shop" in message
    before = shop.target.fingerprint()
    result = shop.target.run(MODULE, server=SERVER, state="absent")
    assert result.get("failed") and "shop" in result["msg"]
    assert shop.target.fingerprint() == before
