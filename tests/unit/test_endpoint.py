# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a database is: awkward values survive every form that they take on the way."""

from __future__ import annotations

import os
import stat
from typing import Any

import pytest
from ansible_collections.postgresml.distributed.plugins.module_utils.errors import Refused
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.endpoint import Endpoint
from psycopg2.extensions import parse_dsn

AWKWARD = [
    "plain",
    " spaces around ",
    "it's",
    "'",
    '"double"',
    "\\",
    "ends with \\",
    "\\'",
    "a=b host=elsewhere",
    "%s %(x)s %%",
    "{brace} {{ jinja }}",
    "$$ $1",
    "Grüße 密码 😀",
    "tab\tnew\nline\r",
    "postgresql://a:b@c/d",
]
LOGIN: dict[str, Any] = {
    "login_host": "db",
    "login_port": 5433,
    "login_user": "me",
    "login_password": None,
    "login_unix_socket": None,
    "login_db": "shop",
    "ssl_mode": None,
    "ca_cert": None,
    "ssl_cert": None,
    "ssl_key": None,
    "connect_params": {},
}
SOURCE: dict[str, Any] = {
    "host": "db",
    "port": 5433,
    "db": "shop",
    "user": "me",
    "password": None,
    "passfile": None,
    **{key: LOGIN[key] for key in ("ssl_mode", "ca_cert", "ssl_cert", "ssl_key", "connect_params")},
}


@pytest.mark.parametrize("value", AWKWARD)
@pytest.mark.parametrize("option", ["password", "db", "user"])
def test_values_survive_the_connection_string(option: str, value: str) -> None:
    endpoint = Endpoint.from_source({**SOURCE, option: value})
    keyword = {"db": "dbname"}.get(option, option)
    assert parse_dsn(endpoint.conninfo)[keyword] == value
    assert Endpoint.from_conninfo(endpoint.conninfo).keywords == endpoint.keywords


@pytest.mark.parametrize("password", AWKWARD)
def test_passwords_are_in_no_text(password: str) -> None:
    endpoint = Endpoint.from_source({**SOURCE, "password": password + "core"})
    assert "core" not in str(endpoint) and "core" not in repr(endpoint) and "core" not in f"{endpoint}"


def test_an_endpoint_says_where_it_is() -> None:
    assert str(Endpoint.from_login(LOGIN)) == 'database "shop" at db:5433 as user "me"'
    local = Endpoint.from_login({**LOGIN, "login_host": None, "login_unix_socket": "/run/pg"})
    assert "/run/pg:5433" in str(local)


def test_options_become_libpq_keywords() -> None:
    tls = {"ssl_mode": "verify-full", "ca_cert": "/ca", "ssl_cert": "/cert", "ssl_key": "/key"}
    endpoint = Endpoint.from_source({**SOURCE, **tls, "passfile": "/pass", "connect_params": {"keepalives_idle": 1}})
    assert endpoint.keywords == {
        "host": "db",
        "port": "5433",
        "dbname": "shop",
        "user": "me",
        "passfile": "/pass",
        "sslmode": "verify-full",
        "sslrootcert": "/ca",
        "sslcert": "/cert",
        "sslkey": "/key",
        "keepalives_idle": "1",
        "keepalives_interval": "10",
        "keepalives_count": "3",
    }


def test_equal_values_in_another_form_are_equal() -> None:
    probes = "keepalives_idle=30 keepalives_interval=10 keepalives_count=3"
    one = Endpoint.from_conninfo(f"host=db port=5433 dbname='shop' user=me password='a b' {probes}")
    other = Endpoint.from_source({**SOURCE, "port": "5433", "password": "a b"})
    assert one.keywords == other.keywords
    url = "postgresql://me:a%20b@db:5433/shop?" + probes.replace(" ", "&")
    assert one.keywords == Endpoint.from_conninfo(url).keywords


@pytest.mark.parametrize("keyword", ["password", "sslpassword"])
def test_secrets_among_the_connection_parameters_are_refused(keyword: str) -> None:
    for make, params, where in (
        (Endpoint.from_login, LOGIN, "connect_params"),
        (Endpoint.from_source, SOURCE, "source.connect_params"),
    ):
        with pytest.raises(Refused) as caught:
            make({**params, "connect_params": {keyword: "hush"}})
        assert str(caught.value).startswith(f"{where} holds {keyword}") and "hush" not in str(caught.value)


def test_with_keywords_replaces_and_removes() -> None:
    endpoint = Endpoint.from_login({**LOGIN, "login_password": "x"})
    changed = endpoint.with_keywords(host="/nowhere", password=None)
    assert changed.keywords == {"host": "/nowhere", "port": "5433", "user": "me", "dbname": "shop"}
    assert endpoint.keywords["password"] == "x"


@pytest.mark.parametrize("password", AWKWARD[:-2])
def test_the_environment_has_the_password_in_a_private_file(password: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPASSWORD", "somebody else's")
    monkeypatch.setenv("PGSERVICE", "elsewhere")
    old = os.umask(0)
    try:
        with Endpoint.from_login({**LOGIN, "login_password": password + ":core"}).environment() as env:
            assert not any("core" in value for value in env.values())
            assert "PGPASSWORD" not in env and "PGSERVICE" not in env
            assert (env["PGHOST"], env["PGPORT"], env["PGUSER"], env["PGDATABASE"]) == ("db", "5433", "me", "shop")
            file = env["PGPASSFILE"]
            assert stat.S_IMODE(os.stat(file).st_mode) == 0o600
            with open(file, encoding="utf-8", newline="") as lines:
                entry = lines.read()
            escaped = (password + ":core").replace("\\", "\\\\").replace(":", "\\:")
            assert entry == f"*:*:*:*:{escaped}\n"
    finally:
        os.umask(old)
    assert not os.path.exists(file)


def test_the_environment_without_a_password_makes_no_file() -> None:
    with Endpoint.from_login(LOGIN).environment() as env:
        assert "PGPASSFILE" not in env
    with Endpoint.from_source({**SOURCE, "passfile": "/mine"}).environment() as env:
        assert env["PGPASSFILE"] == "/mine"
