# SPDX-License-Identifier: GPL-3.0-or-later
"""pgml_physical_seed: a physical copy of the primary takes the place of a replica's cluster, and is a logical replica."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support import copies, physical
from tests.support.cluster import Cluster
from tests.support.pair import Place, create_role, wait_for
from tests.support.physical import Seeding, controldata, definitions, files, identifier, own

ROLES = "SELECT rolname, rolcanlogin, rolsuper, rolconnlimit, rolpassword, rolvaliduntil::text FROM pg_authid WHERE oid > 16383"
MEMBERS = "SELECT roleid::regrole::text, member::regrole::text, admin_option FROM pg_auth_members WHERE member > 16383"
SETTINGS = "SELECT setrole::regrole::text, setconfig FROM pg_db_role_setting WHERE setdatabase = 0 ORDER BY 1"


@pytest.fixture(scope="module")
def templates() -> Iterator[list[Cluster]]:
    with physical.templates() as made:
        yield made


@pytest.fixture
def two(templates: list[Cluster]) -> Iterator[Seeding]:
    with physical.seeding(templates) as made:
        yield made


def test_everything_is_as_on_the_primary(two: Seeding) -> None:
    before = identifier(two.replica)
    result = two.prepare()
    assert result["changed"]
    assert two.replica.sql("SELECT datname FROM pg_database WHERE datname = 'ml'") == []
    two.source.sql("INSERT INTO t (v) SELECT 'meanwhile' FROM generate_series(1, 20)")
    two.swap()
    two.source.sql("UPDATE t SET v = 'changed' WHERE id % 9 = 0; DELETE FROM more.p WHERE id % 5 = 0")
    finished = two.step("finished")
    assert finished["changed"] and finished["phase"] == "done"
    two.assert_done()
    ids = [before, identifier(two.primary), identifier(two.replica)]
    assert len(set(ids)) == 3, ids
    assert two.replica.sql("SELECT system_identifier::text FROM pg_control_system()") == [(ids[2],)]
    assert copies.changed_lines(definitions(two.source), definitions(two.target)) == ""
    assert len(definitions(two.target)) > 50, "nothing is compared"
    stands = copies.sequences(two.target)
    assert stands["more", "loose"] == (1028, True) == copies.sequences(two.source)["more", "loose"]
    assert stands["public", "t_id_seq"] == (500, True)  # sequences are not replicated
    assert two.target.sql("SELECT pubname FROM pg_publication") == []
    assert two.replica.sql("SELECT datname FROM pg_database ORDER BY 1") == [
        (name,) for name in ("ml", "postgres", "template0", "template1")
    ]
    assert two.replica.sql("SELECT count(*) FROM pg_replication_slots") == [(0,)]
    two.replica.stop()
    assert controldata(two.replica)["Database cluster state"] == "shut down"
    two.replica.start()
    two.assert_done()


def test_indexes_are_sound(two: Seeding) -> None:
    two.seed()
    two.target.sql("SET enable_seqscan = off")
    query = "SET enable_seqscan = off; SELECT count(*) FROM t WHERE lower(v) = lower(md5('77')) AND id > 3"
    assert two.target.sql(query) == [(1,)]
    two.target.sql("CREATE EXTENSION amcheck")
    two.target.sql(
        "SELECT bt_index_parent_check(c.oid, true) FROM pg_class AS c JOIN pg_am AS a ON a.oid = relam"
        " WHERE relkind = 'i' AND amname = 'btree'"
    )


def test_the_replica_keeps_its_own_files(two: Seeding) -> None:
    mine, theirs = two.replica.data, two.primary.data
    (theirs / "server.key").write_text("primary's key")
    (theirs / "extra.conf").write_text("work_mem = '7MB'")
    two.primary.sql("ALTER SYSTEM SET work_mem = '9MB'")
    (mine / "conf.d").mkdir()
    for path in (mine / "server.crt", mine / "conf.d" / "more.conf"):
        path.write_text(f"# replica's {path.name}\n")
        own(two.replica, path)
    own(two.replica, mine / "conf.d")
    (mine / "link.conf").symlink_to("conf.d/more.conf")
    (mine / "server.crt").chmod(0o640)
    two.replica.sql("ALTER SYSTEM SET work_mem = '5MB'")
    for path in (mine / "pg_hba.conf", theirs / "pg_hba.conf"):
        path.write_text(f"{path.read_text()}# {path}\n")
    own(two.primary, theirs / "server.key")
    own(two.primary, theirs / "extra.conf")
    two.prepare()
    two.replica.stop()
    before = files(mine)
    two.step("exchanged")
    after = files(mine)
    names = [
        "postgresql.conf", "postgresql.auto.conf", "pg_hba.conf", "pg_ident.conf", "server.crt", "conf.d/more.conf", "link.conf",
    ]  # fmt: skip
    assert {name: after[name] for name in names} == {name: before[name] for name in names}
    assert not {"server.key", "extra.conf", "standby.signal", "recovery.signal", "backup_label"} & set(after)
    assert (mine / "link.conf").is_symlink() and (mine / "server.crt").stat().st_mode & 0o777 == 0o640
    assert {path.stat().st_uid for path in mine.rglob("*")} == {mine.stat().st_uid}
    assert mine.stat().st_mode & 0o777 == 0o700
    two.replica.start()
    two.step("finished")
    assert two.replica.sql("SHOW work_mem") == [("5MB",)]
    two.assert_done()


def test_roles(two: Seeding) -> None:
    for name in ("web", "reports", "app"):
        create_role(two.primary, name, "LOGIN", "theirs")
    create_role(two.primary, "quiet", "NOLOGIN", "theirs")
    two.primary.sql("GRANT quiet TO web; CREATE ROLE boss SUPERUSER LOGIN; GRANT pg_read_all_stats TO app")
    create_role(two.replica, "app", "LOGIN CREATEDB CONNECTION LIMIT 7 VALID UNTIL '2099-01-01'", "mine")
    create_role(two.replica, "mine", "LOGIN", "mine")
    two.replica.sql("CREATE ROLE team; GRANT team TO mine WITH ADMIN OPTION; GRANT pg_monitor TO app")
    for setting in ('search_path = public, "Their own"', "app.tenant = 'theirs'"):
        two.primary.sql(f"ALTER ROLE app SET {setting}")
    for setting in (
        'search_path = "$user", "Mine"',
        "role = team",
        "temp_tablespaces = nowhere, 'a \"place\", far'",
        "statement_timeout = 1",
        "default_transaction_read_only = on",
        "app.name = 'it''s \\ mine'",
        '"Auto_explain".log_format = json',
    ):
        two.replica.sql(f"ALTER ROLE mine SET {setting}")
    two.replica.sql("ALTER ROLE team SET search_path = ''")
    settings = two.replica.sql(SETTINGS)
    mine = set(two.replica.sql(ROLES))
    members = set(two.replica.sql(MEMBERS))
    verifier = "SELECT rolpassword FROM pg_authid WHERE rolname = 'postgres'"
    bootstrap = two.replica.sql(verifier)
    kept = {row for row in two.primary.sql(ROLES) if row[0] == "reports"}
    result = two.prepare(login_roles=["reports"])
    assert "Take LOGIN and password from copied role web" in result["taken_away"], result["taken_away"]
    two.swap()
    there = set(two.replica.sql(ROLES))
    assert mine | kept <= there
    others = {row[0]: (row[1], row[4]) for row in there - mine - kept}
    assert others == dict.fromkeys(("web", "quiet", "boss"), (False, None))
    assert two.replica.sql(SETTINGS) == settings
    assert set(two.replica.sql(MEMBERS)) == members | {("quiet", "web", False)}
    assert two.replica.sql(verifier) == bootstrap != two.primary.sql(verifier)
    two.replica.connect("ml", "app", "mine").close()
    two.replica.connect("ml", "reports", "theirs").close()
    two.step("finished")


def test_check_mode_predicts_and_touches_nothing(two: Seeding) -> None:
    def everything() -> Any:
        return two.state(), {name: files(each.data / "global").get("pg_control") for name, each in servers.items()}

    servers = {"primary": two.primary, "replica": two.replica}
    two.primary.sql("CHECKPOINT")
    two.replica.sql("CHECKPOINT")
    before = everything()
    predicted = {"prepared": two.step("prepared", check=True), "finished": two.step("finished", check=True)}
    predicted["exchanged"] = two.step("exchanged", check=True)
    assert everything() == before
    assert two.run("looked")["phase"] == "nothing"
    for state in ("prepared", "exchanged", "finished"):
        if state == "exchanged":
            two.replica.stop()
            before = files(two.replica.directory)
            predicted[state] = two.step(state, check=True)
            assert files(two.replica.directory) == before
        result = two.step(state)
        if state == "exchanged":
            two.replica.start()
        for key in ("changed", "changes", "diff"):
            assert predicted[state][key] == result[key], f"check mode predicted another {key} of {state}"
    settled = two.state()
    again = [two.step("prepared"), two.step("finished"), two.step("absent"), two.step("prepared", check=True)]
    assert [each["changed"] for each in again] == [False] * 4
    assert two.state() == settled
    two.assert_done()


def test_what_a_run_left_is_told_without_a_server(two: Seeding) -> None:
    service = {"name": "postgresql@15-main", "manager": "systemd"}
    assert two.step("looked")["phase"] == "nothing"
    two.prepare(service=service)
    two.replica.stop()
    assert {key: two.step("looked")[key] for key in ("phase", "service", "changed")} == {
        "phase": "ready", "service": service, "changed": False,
    }  # fmt: skip
    two.step("exchanged")
    assert two.step("looked")["phase"] == "in_place"
    two.replica.start()
    assert two.step("prepared")["phase"] == "in_place"
    two.step("finished")
    assert two.step("looked")["phase"] == "done"


def test_the_old_cluster_is_kept(two: Seeding) -> None:
    two.replica.sql("CREATE TABLE old AS SELECT 42 AS answer")
    before = identifier(two.replica)
    two.seed(keep_old_cluster=True)
    two.assert_done()
    assert controldata(two.replica, two.kept)["Database system identifier"] == before
    two.replica.stop()
    two.replica.data.rename(two.replica.directory / "new")
    two.kept.rename(two.replica.data)
    two.replica.start()
    assert two.replica.sql("SELECT answer FROM old") == [(42,)]


@pytest.mark.parametrize("undistributed", ["drop", "keep"])
def test_other_databases(two: Seeding, undistributed: str) -> None:
    two.primary.create_database("Other db")
    two.primary.sql("CREATE TABLE o AS SELECT 1 AS a; CREATE PUBLICATION theirs FOR TABLE o", dbname="Other db")
    two.primary.sql("CREATE TABLE admin AS SELECT 1 AS a")
    for statement in (
        "CREATE DATABASE tmpl IS_TEMPLATE true",
        "CREATE DATABASE closed ALLOW_CONNECTIONS false",
        "REVOKE CONNECT ON DATABASE closed FROM PUBLIC",
    ):
        two.primary.sql(statement)
    result = two.seed(undistributed=undistributed)
    assert result["warnings"] == [
        f"Not counted in the room that is needed, since user {two.distributor} may not ask how large it is: database closed."
    ]
    names = {name for (name,) in two.replica.sql("SELECT datname FROM pg_database")}
    usual = {"ml", "postgres", "template0", "template1"}
    admin = two.replica.sql("SELECT to_regclass('admin') IS NOT NULL")
    if undistributed == "keep":
        assert names == usual | {"Other db", "tmpl", "closed"}
        assert admin == [(True,)]
        other = Place(two.replica, "Other db")
        assert other.sql("SELECT a FROM o") == [(1,)] and other.sql("SELECT pubname FROM pg_publication") == []
    else:
        assert names == usual
        assert admin == [(False,)]
        assert 'Drop copied database "Other db"' in result["taken_away"]
    two.assert_done()


def test_two_databases_in_one_go(two: Seeding) -> None:
    two.publish(
        "stock", "CREATE TABLE s (id int PRIMARY KEY); CREATE TABLE r (id int PRIMARY KEY); CREATE TABLE q (id int)"
    )
    two.primary.sql("INSERT INTO s VALUES (1), (2); CREATE PUBLICATION stock FOR ALL TABLES", dbname="stock")
    second = {"name": "stock", "publications": ["stock"], "slot_name": "stock_r1", "source_db": "stock"}
    both = [two.subscription(), second]
    prepared = two.prepare(subscriptions=both)
    assert len(prepared["changes"]) == 3
    two.primary.sql("INSERT INTO s VALUES (3)", dbname="stock")
    two.source.sql("INSERT INTO t (v) VALUES ('more')")
    two.swap(subscriptions=both)
    two.step("finished", subscriptions=both)
    two.assert_equal((("shop", "ml"), ("stock", "stock")))
    assert two.slots() == {two.slot, "stock_r1"}
    assert not two.step("prepared", subscriptions=both)["changed"]


def test_names_of_databases_exchanged(two: Seeding) -> None:
    """Two databases take each other's names."""
    two.publish(
        "ml", "CREATE TABLE s (id int PRIMARY KEY); CREATE TABLE r (id int PRIMARY KEY); CREATE TABLE q (id int)"
    )
    two.primary.sql("INSERT INTO s VALUES (1), (2); CREATE PUBLICATION stock FOR ALL TABLES", dbname="ml")
    second = {"name": "stock", "publications": ["stock"], "slot_name": "stock_r1", "source_db": "ml", "db": "shop"}
    both = [two.subscription(), second]
    two.seed(subscriptions=both)
    two.assert_equal((("shop", "ml"), ("ml", "shop")))


def test_a_table_is_added_later(two: Seeding) -> None:
    two.seed()
    for place in (two.source, two.target):
        place.sql("CREATE TABLE late (id int PRIMARY KEY)")
    two.source.sql("INSERT INTO late SELECT generate_series(1, 10)")
    options = {"name": "sub", "publications": ["pub"], "slot_name": two.slot, "wait_timeout": 60}
    result = two.target.ok("pgml_subscription", source=two.options()["source"], **options)
    assert result["changed"]
    wait_for(lambda: two.target.sql("SELECT count(*) FROM late") == [(10,)], 20, "the new table's rows")
    assert not two.target.ok("pgml_subscription", source=two.options()["source"], **options)["changed"]
    two.assert_done()


def test_the_subscription_is_as_pgml_subscription_would_make_it(two: Seeding) -> None:
    two.seed()
    options = {"name": "sub", "publications": ["pub"], "slot_name": two.slot, "wait_timeout": 60}
    result = two.target.ok("pgml_subscription", source=two.options()["source"], **options)
    assert not result["changed"], result["changes"]


def test_wal_comes_from_the_archive(two: Seeding) -> None:
    archive = two.primary.directory / "archive"
    archive.mkdir()
    physical.own(two.primary, archive)
    two.primary.settings.update(archive_mode="on", archive_command=f"cp %p {archive}/%f")
    two.primary.restart()
    fetched = two.replica.directory / "fetched"
    fetched.touch()
    physical.own(two.replica, fetched)
    two.seed(restore_command=f"cp {archive}/%f %p && echo %f >> {fetched}")
    two.assert_done()
    assert fetched.read_text().split()
