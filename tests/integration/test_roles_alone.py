# SPDX-License-Identifier: GPL-3.0-or-later
"""Each role works alone, in somebody else's playbook, with that playbook's own groups and variables."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import pgml, playbooks
from tests.support.cluster import Cluster
from tests.support.playbooks import Ansible, Unsafe, count, differences, login, snapshot

pytestmark = pytest.mark.slow

ROLE = "postgresml.distributed."
PASSWORD = "it's {{ alone }}"
TABLES = ["public.products", {"name": "public.orders", "where": "order_id > 10"}]
PARTS = ("globals", "schemas", "slots", "subscriptions", "pg_hba.conf", "pg_hba.conf's mode", "data")

Servers = tuple[Cluster, Cluster]


@pytest.fixture(scope="module")
def servers() -> Iterator[Servers]:
    with playbooks.cluster() as shop, playbooks.cluster() as analytics:
        playbooks.load_shop(shop)
        yield shop, analytics


class Playbook:
    """Somebody else's playbook over somebody else's groups."""

    def __init__(self, ansible: Ansible, servers: Servers) -> None:
        self._ansible = ansible
        named = zip(("billing", "analytics"), servers, strict=True)
        hosts = {name: {"hosts": {f"{name}-db": playbooks.host(server)}} for name, server in named}
        for group in hosts.values():
            for variables in group["hosts"].values():
                for key in [key for key in variables if key.startswith("pgml_")]:
                    del variables[key]
        self._inventory = {"all": {"children": hosts}}

    def run(self, *plays: tuple[str, dict[str, Any]], check: bool = False) -> playbooks.Run:
        """Run tasks, each (host, include_role with its vars) in a play of its own."""
        content = [{"hosts": host, "gather_facts": False, "tasks": [task]} for host, task in plays]
        path = self._ansible.write("site.yml", content)
        return self._ansible.run(path, self._inventory, *(["--check"] if check else []))

    def converge(self, *plays: tuple[str, dict[str, Any]]) -> playbooks.Run:
        """Run them, and see that a second time changes nothing."""
        first = self.run(*plays)
        assert first.ok, first.output
        second = self.run(*plays)
        assert second.ok and not second.changed, second.output
        return first


@pytest.fixture
def playbook(servers: Servers, tmp_path: Path) -> Playbook:
    return Playbook(Ansible(tmp_path), servers)


def role(name: str, entry: str | None = None, /, **variables: Any) -> dict[str, Any]:
    """A task that includes a role of the collection."""
    include = {"name": ROLE + name, **({"tasks_from": entry} if entry else {})}
    prefixed = {f"{name}_{key}": value for key, value in variables.items()}
    return {"name": f"Use {name}", "include_role": include, "vars": {**prefixed, f"{name}_become_user": ""}}


ROOM = "{{ hostvars['billing-db'].pgml_logical_published.wal_space }}"


def plays_of(servers: Servers, state: str = "present", wal_space: Any = ROOM) -> list[tuple[str, dict[str, Any]]]:
    """All that two roles take to bring a part of the shop from one server to the other, or to take it back."""
    shop, analytics = servers
    source = {
        "host": shop.host,
        "port": shop.port,
        "db": "shop",
        "user": "courier",
        "password": Unsafe(PASSWORD),
    }
    primary = role(
        "pgml_primary",
        state=state,
        login=login(shop),
        distributor="courier",
        distributor_password=Unsafe(PASSWORD),
        replicas=[analytics.host],
        grants=[{"database": "shop", "tables": TABLES}],
        slots=["goods_slot"],
        restart=True,
    )
    logical = {"name": "goods", "tables": TABLES, "state": state, "publication": "goods"}
    publish = role("pgml_logical", "publish", login=login(shop, login_db="shop"), **logical)
    subscribe = role(
        "pgml_logical",
        login=login(analytics, login_db="warehouse"),
        source=source,
        subscription="goods_in",
        slot="goods_slot",
        **({"drop_tables": True} if state == "absent" else {"seed": "snapshot", "wal_space": wal_space}),
        jobs=1,
        **logical,
    )
    replica = role("pgml_replica", login=login(analytics), databases=["warehouse"], subscriptions=["goods_in"])
    if state == "absent":
        return [("analytics", subscribe), ("billing", publish), ("billing", primary)]
    return [("billing", primary), ("billing", publish), ("analytics", replica), ("analytics", subscribe)]


def schema_change_of(servers: Servers, *statements: str) -> tuple[str, dict[str, Any]]:
    """One play over both sides, in which each knows its own login."""
    shop, analytics = servers
    task = role(
        "pgml_schema_change",
        name="goods",
        primary="billing-db",
        replicas=["analytics-db"],
        tables=TABLES,
        statements=list(statements),
        publication="goods",
        subscription="goods_in",
        slot="goods_slot",
        login="{{ logins[inventory_hostname] }}",
        source={"host": shop.host, "port": shop.port, "db": "shop", "user": "courier", "password": Unsafe(PASSWORD)},
    )
    logins = {"billing-db": login(shop, login_db="shop"), "analytics-db": login(analytics, login_db="warehouse")}
    return "billing:analytics", {**task, "vars": {**task["vars"], "logins": logins}}


@pytest.mark.sampled(0)
def test_the_roles_together_bring_a_table_and_take_it_back(servers: Servers, playbook: Playbook) -> None:
    shop, analytics = servers
    before = snapshot(shop)
    refused = playbook.run(*plays_of(servers, wal_space=1))
    assert not refused.ok and "only 0 MB are free there" in refused.message
    assert shop.sql("SELECT slot_name FROM pg_replication_slots") == []
    playbook.converge(*plays_of(servers))
    assert count(analytics, "warehouse", "products") == count(shop, "shop", "products") > 0
    assert count(analytics, "warehouse", "orders") == count(shop, "shop", "orders WHERE order_id > 10") > 0
    assert shop.sql("SELECT slot_name FROM pg_replication_slots") == [("goods_slot",)]
    assert analytics.sql("SELECT subname FROM pg_subscription") == [("goods_in",)]
    assert shop.sql("SELECT rolsuper, rolcreaterole, rolcreatedb FROM pg_roles WHERE rolname = 'courier'") == [
        (False, False, False)
    ]
    assert shop.sql("SELECT pubname FROM pg_publication", dbname="shop") == [("goods",)]
    playbook.converge(schema_change_of(servers, "ALTER TABLE products ADD COLUMN colour text NOT NULL DEFAULT 'red'"))
    for server, dbname in ((shop, "shop"), (analytics, "warehouse")):
        assert server.sql("SELECT DISTINCT colour FROM products", dbname=dbname) == [("red",)]
    again = playbook.run(*plays_of(servers), schema_change_of(servers, "ALTER TABLE products DROP COLUMN colour"))
    assert again.ok and not [task for _, task, _ in again.changed if "pgml_schema_change" not in task], again.output
    playbook.converge(*plays_of(servers, "absent"))
    assert [part for part in differences(before, snapshot(shop)) if part in PARTS] == []
    assert analytics.sql("SELECT count(*) FROM pg_subscription") == [(0,)]
    assert analytics.sql("SELECT to_regclass('products') IS NULL", dbname="warehouse") == [(True,)]


def test_dumps_alone(servers: Servers, playbook: Playbook) -> None:
    """Who only reads a server may not replicate, and what is copied from it is forgotten when it goes."""
    shop, analytics = servers
    before = snapshot(shop)
    primary = {
        "login": login(shop),
        "distributor": "reader",
        "distributor_password": Unsafe(PASSWORD),
        "replicas": [analytics.host],
        "grants": [{"database": "shop", "tables": TABLES}],
        "replication": False,
    }
    dump = {
        "name": "goods",
        "tables": TABLES,
        "login": login(analytics, login_db="depot"),
        "source": {"host": shop.host, "port": shop.port, "db": "shop", "user": "reader", "password": Unsafe(PASSWORD)},
        "jobs": 1,
        "owner": "keeper",
    }
    analytics.sql("CREATE ROLE keeper")
    playbook.converge(
        ("billing", role("pgml_primary", **primary)),
        ("analytics", role("pgml_replica", login=login(analytics), databases=["depot"])),
        ("analytics", role("pgml_dump", **dump)),
    )
    assert count(analytics, "depot", "orders") == count(shop, "shop", "orders WHERE order_id > 10") > 0
    owner = "SELECT DISTINCT relowner::regrole::text FROM pg_class WHERE relname IN ('orders', 'products')"
    assert analytics.sql(owner, dbname="depot") == [("keeper",)]
    assert shop.sql("SELECT rolreplication FROM pg_roles WHERE rolname = 'reader'") == [(False,)]
    changed = {part for part in differences(before, snapshot(shop)) if part != "schemas"}
    assert changed == {"globals", "pg_hba.conf"}
    playbook.converge(
        ("analytics", role("pgml_dump", state="absent", drop_tables=True, **dump)),
        ("billing", role("pgml_primary", state="absent", **primary)),
    )
    assert differences(before, snapshot(shop)) == []
    assert analytics.sql("SELECT to_regclass('orders')", dbname="depot") == [(None,)]
    assert analytics.sql("SELECT 1 FROM pg_namespace WHERE nspname ~ 'pgml'", dbname="depot") == []


LOCAL = "SELECT relname, relkind::text FROM pg_class WHERE relnamespace = '\"shop now\"'::regnamespace ORDER BY 1"
SERVER = "SELECT srvname, srvoptions @> '{fetch_size=500,use_remote_estimate=false}' FROM pg_foreign_server"


@pytest.mark.sampled(0)
def test_foreign_tables_alone(servers: Servers, playbook: Playbook) -> None:
    """In a schema of one's choice, for whom one lets in, and gone with the extension when nobody else uses that."""
    shop, analytics = servers
    analytics.sql("CREATE ROLE watcher")
    analytics.create_database("lake")
    before = snapshot(shop), snapshot(analytics)
    primary = {
        "login": login(shop),
        "distributor": "looker",
        "distributor_password": Unsafe(PASSWORD),
        "replicas": [analytics.host],
        "grants": [{"database": "shop", "foreign": {"tables": [*TABLES, "order_totals"], "schemas": ["warehouse"]}}],
        "replication": False,
    }
    foreign = {
        "name": "now",
        "server": "shop's own",
        "tables": [*TABLES, "order_totals"],
        "schemas": ["warehouse"],
        "local_schema": "shop now",
        "import": {"import_not_null": False},
        "fetch_size": 500,
        "use_remote_estimate": False,
        "login": login(analytics, login_db="lake"),
        "source": {"host": shop.host, "port": shop.port, "db": "shop", "user": "looker", "password": Unsafe(PASSWORD)},
        "user_mappings": [{"role": "watcher"}],
        "usage": ["watcher"],
        "snapshots": [{"relation": '"shop now".orders', "into": "orders_now"}],
    }
    plays = (("billing", role("pgml_primary", **primary)), ("analytics", role("pgml_foreign", **foreign)))
    playbook.converge(*plays)
    assert analytics.sql(LOCAL, dbname="lake") == [
        ("order_totals", "f"),
        ("orders", "v"),
        ("orders_unfiltered", "f"),
        ("products", "f"),
        ("stock", "f"),
    ]
    assert analytics.sql(SERVER, dbname="lake") == [("shop's own", True)]
    required = "SELECT count(*) FROM pg_attribute WHERE attrelid = '\"shop now\".stock'::regclass AND attnotnull AND attnum > 0"
    assert analytics.sql(required, dbname="lake") == [(0,)]
    for table, theirs in (("orders_now", "orders WHERE order_id > 10"), ('"shop now".stock', "warehouse.stock")):
        rows = analytics.sql(f"SET ROLE watcher; SELECT count(*) FROM {table}", dbname="lake")[0][0]
        assert rows == count(shop, "shop", theirs) > 0
    absent = [
        ("analytics", role("pgml_foreign", state="absent", **foreign)),
        ("billing", role("pgml_primary", state="absent", **primary)),
    ]
    other = "CREATE SERVER other FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '127.0.0.1')"
    analytics.sql(other, dbname="lake")
    predicted = playbook.run(*absent, check=True).changed
    assert playbook.converge(*absent).changed == predicted
    assert analytics.sql("SELECT srvname FROM pg_foreign_server", dbname="lake") == [("other",)]
    analytics.sql("DROP SERVER other", dbname="lake")
    assert playbook.run(absent[0], check=True).changed == playbook.converge(absent[0]).changed
    assert differences(before[0], snapshot(shop)) == []
    assert differences(before[1], snapshot(analytics)) == ["schemas"]
    brought = "SELECT typname FROM pg_type WHERE oid >= 16384 AND typtype IN ('d', 'e')"
    assert analytics.sql(brought, dbname="lake") == [("order_status",)]
    assert analytics.sql("SELECT 1 FROM pg_extension WHERE extname = 'postgres_fdw'", dbname="lake") == []


def test_settings_alone(servers: Servers, playbook: Playbook) -> None:
    """Raised, never lowered, and restarted only with permission."""
    _, analytics = servers
    settings = {
        "login": login(analytics),
        "minimum": {"max_wal_senders": 25, "work_mem": "1MB"},
        "restart_variable": "my_restart",
    }
    refused = playbook.run(("analytics", role("pgml_settings", **settings)))
    assert not refused.ok
    assert "analytics-db must be restarted before max_wal_senders takes effect" in refused.message
    assert "my_restart: true" in refused.message
    assert analytics.sql("SHOW max_wal_senders") == [("10",)]
    restarted = playbook.converge(("analytics", role("pgml_settings", restart=True, **settings)))
    assert "Restart with pg_ctl for max_wal_senders" in restarted.output
    assert analytics.sql("SHOW max_wal_senders") == [("25",)]
    assert analytics.sql("SHOW work_mem") == [("4MB",)]
    started = "SELECT pg_postmaster_start_time()"
    before = analytics.sql(started)
    settings |= {"minimum": {"shared_preload_libraries": ["auto_explain"]}, "restart_for": ["the library pgml.so"]}
    refused = playbook.run(("analytics", role("pgml_settings", **settings)))
    assert "must be restarted before shared_preload_libraries, the library pgml.so take effect" in refused.message
    assert analytics.sql(started) == before
    restarted = playbook.run(("analytics", role("pgml_settings", restart=True, **settings)))
    assert restarted.ok and "Restart with pg_ctl for shared_preload_libraries, the library pgml.so" in restarted.output
    assert analytics.sql("SHOW shared_preload_libraries") == [("auto_explain",)]
    assert analytics.sql(started) != before


def test_models_alone(tmp_path: Path) -> None:
    with pgml.cluster() as shop, pgml.cluster() as analytics:
        for server in (shop, analytics):
            pgml.create_database(server, "ml")
        pgml.train(shop, "ml", "price", 3)
        tables = [f"pgml.{name}" for name in ("projects", "snapshots", "models", "files", "deployments")]
        opened = role(
            "pgml_primary",
            login=login(shop),
            distributor="feed",
            distributor_password=Unsafe(PASSWORD),
            replication=False,
            replicas=[analytics.host],
            grants=[{"database": "ml", "tables": tables}],
        )
        source = {"host": shop.host, "port": shop.port, "db": "ml", "user": "feed", "password": Unsafe(PASSWORD)}
        options: dict[str, Any] = {"login": login(analytics, login_db="ml"), "source": source, "projects": ["price"]}
        playbook = Playbook(Ansible(tmp_path), (shop, analytics))
        # A slot that nobody lists any more is no reason to let a role replicate that never did.
        shop.sql("SELECT pg_create_logical_replication_slot('pgml_left_behind', 'pgoutput')", dbname="ml")
        # The inventory has no such address.
        refused = playbook.run(("billing", opened), ("analytics", role("pgml_model_shipping", **options)))
        assert not refused.ok and "has runtime python" in refused.message, refused.output
        assert shop.sql("SELECT rolreplication FROM pg_roles WHERE rolname = 'feed'") == [(False,)]
        playbook.converge(("analytics", role("pgml_model_shipping", trust_source=True, **options)))
        query = "SELECT pgml.predict('price'::text, ARRAY[5]::real[])"
        assert analytics.sql(query, dbname="ml")[0][0] == pytest.approx(15)
        run = playbook.run(("analytics", role("pgml_model_shipping", login=login(analytics))))
        assert not run.ok and "login_db" in run.message
        playbook.converge(("analytics", role("pgml_model_shipping", login=options["login"], state="absent")))
        assert analytics.sql("SELECT count(*) FROM pgml.models", dbname="ml") == [(0,)]


def test_a_database_may_have_an_awkward_name(servers: Servers, playbook: Playbook) -> None:
    _, analytics = servers
    names = ["sin'gle", "{{ x }}", "Ünï.cødé, =x"]
    playbook.converge(
        ("analytics", role("pgml_replica", login=login(analytics), databases=[Unsafe(name) for name in names]))
    )
    assert set(names) <= set(playbooks.databases(analytics))


@pytest.mark.parametrize("name", ['Dou"ble', "pa%s"])
def test_a_name_that_community_postgresql_does_not_quote_must_exist(
    servers: Servers, playbook: Playbook, name: str
) -> None:
    _, analytics = servers
    play = ("analytics", role("pgml_replica", login=login(analytics), databases=[Unsafe(name)]))
    run = playbook.run(play)
    assert not run.ok and "create it first" in run.message
    assert name not in playbooks.databases(analytics)
    analytics.create_database(name)
    run = playbook.run(play)
    assert run.ok and not run.changed, run.output


def test_a_slot_that_no_replica_could_drop_goes_with_the_distributor(servers: Servers, playbook: Playbook) -> None:
    shop, _ = servers
    shop.sql("SELECT pg_create_logical_replication_slot('left_behind', 'pgoutput')", dbname="shop")
    absent = role("pgml_primary", login=login(shop), state="absent", distributor="nobody_yet", slots=["left_behind"])
    assert playbook.run(("billing", absent)).ok
    assert shop.sql("SELECT slot_name FROM pg_replication_slots WHERE slot_name = 'left_behind'") == []
    run = playbook.run(("billing", absent))
    assert run.ok and not run.changed, run.output


def test_publish_refuses_what_the_role_does_not_know(servers: Servers, playbook: Playbook) -> None:
    """The roles say which of their variables is missing or wrong."""
    shop, _ = servers
    before = snapshot(shop)
    run = playbook.run(("billing", role("pgml_logical", "publish", login=login(shop, login_db="shop"))))
    assert not run.ok and "pgml_logical_name" in run.message
    run = playbook.run(("billing", role("pgml_primary", login=login(shop), grants=[{"database": "shop"}])))
    assert not run.ok and "pgml_primary_distributor_password is not set" in run.message
    run = playbook.run(("billing", role("pgml_primary", login=login(shop), state="gone")))
    assert not run.ok and "pgml_primary_state" in run.message
    assert differences(before, snapshot(shop)) == []
