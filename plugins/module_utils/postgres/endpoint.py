# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a database is: module parameters, libpq keywords, and pass files for child processes."""

from __future__ import annotations

import contextlib
import os
import tempfile
from typing import Any, Iterator, Mapping

from ansible_collections.postgresml.distributed.plugins.module_utils.errors import Refused

try:
    from psycopg2.extensions import make_dsn, parse_dsn
except ImportError:  # task.py reports it
    pass

_SSL_MODES = ["allow", "disable", "prefer", "require", "verify-ca", "verify-full"]

KEEPALIVES = {"keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3}
"""libpq's settings with which a silent server is given up after a minute. A first copy only listens, and by most systems'
own settings it would listen for two hours more to a source whose network was cut."""

SECRETS = ("password", "sslpassword")
"""libpq keywords whose values are never shown."""

_TLS_OPTIONS: dict[str, Any] = {
    "ssl_mode": {"type": "str", "choices": _SSL_MODES},
    "ca_cert": {"type": "path", "aliases": ["ssl_rootcert"]},
    "ssl_cert": {"type": "path"},
    "ssl_key": {"type": "path", "no_log": False},
    "connect_params": {"type": "dict", "default": {}},
}

LOGIN_OPTIONS: dict[str, Any] = {
    "login_host": {"type": "str"},
    "login_port": {"type": "int", "default": 5432},
    "login_user": {"type": "str", "default": "postgres"},
    "login_password": {"type": "str", "no_log": True},
    "login_unix_socket": {"type": "path"},
    "login_db": {"type": "str", "required": True},
    **_TLS_OPTIONS,
}

SOURCE_OPTIONS: dict[str, Any] = {
    "host": {"type": "str", "required": True},
    "port": {"type": "int", "default": 5432},
    "db": {"type": "str", "required": True},
    "user": {"type": "str", "required": True},
    "password": {"type": "str", "no_log": True},
    "passfile": {"type": "path"},
    **_TLS_OPTIONS,
}


class Endpoint:
    """One database as libpq keywords, and the name of the option group it came from; empty when it came from none."""

    def __init__(self, keywords: Mapping[str, Any], option: str) -> None:
        self.keywords = {key: str(value) for key, value in keywords.items() if value not in (None, "")}
        self.option = option

    @classmethod
    def from_login(cls, params: Mapping[str, Any]) -> Endpoint:
        """The endpoint of the C(login_*) options."""
        return cls(
            {
                "host": params["login_host"] or params["login_unix_socket"],
                "port": params["login_port"],
                "user": params["login_user"],
                "password": params["login_password"],
                "dbname": params["login_db"],
                **_tls_keywords(params, "connect_params"),
            },
            "login",
        )

    @classmethod
    def from_source(cls, source: Mapping[str, Any]) -> Endpoint:
        """The endpoint of a C(source) option, which is what a subscription stores."""
        return cls(
            {
                "host": source["host"],
                "port": source["port"],
                "user": source["user"],
                "password": source["password"],
                "passfile": source["passfile"],
                "dbname": source["db"],
                **KEEPALIVES,
                **_tls_keywords(source, "source.connect_params"),
            },
            "source",
        )

    @classmethod
    def from_conninfo(cls, conninfo: str) -> Endpoint:
        """The endpoint that a subscription stores; libpq itself takes the string apart."""
        return cls(parse_dsn(conninfo), "source")

    def with_keywords(self, **keywords: Any) -> Endpoint:
        """A copy in which *keywords* replace or, when None, remove what was there."""
        return Endpoint({**self.keywords, **keywords}, self.option)

    @property
    def conninfo(self) -> str:
        """A libpq connection string, quoted by libpq's rules. It holds the password."""
        return make_dsn(**self.keywords)

    def __str__(self) -> str:
        keywords = self.keywords
        place = "{0}:{1}".format(keywords.get("host", "the local socket"), keywords.get("port", "5432"))
        return 'database "{0}" at {1} as user "{2}"'.format(keywords.get("dbname", ""), place, keywords.get("user", ""))

    __repr__ = __str__

    @property
    def title(self) -> str:
        """The same at the beginning of a sentence."""
        return "D" + str(self)[1:]

    @property
    def pass_line(self) -> str:
        """The line of a pass file, see https://www.postgresql.org/docs/current/libpq-pgpass.html."""
        escaped = self.keywords["password"].replace("\\", "\\\\").replace(":", "\\:")
        return "*:*:*:*:{0}\n".format(escaped)

    @contextlib.contextmanager
    def environment(self) -> Iterator[dict[str, str]]:
        """The environment in which a client program connects here: the password in a file that only we can read.

        Environment variables can be read by the same user's other processes and argv by everybody, see
        https://www.postgresql.org/docs/current/libpq-envars.html.
        """
        env = {key: value for key, value in os.environ.items() if not key.startswith("PG")}
        env.update({_ENVIRONMENT[key]: value for key, value in self.keywords.items() if key in _ENVIRONMENT})
        with contextlib.ExitStack() as stack:
            if "password" in self.keywords:
                handle = stack.enter_context(tempfile.NamedTemporaryFile("w", prefix="pgml-", encoding="utf-8"))
                handle.write(self.pass_line)
                handle.flush()
                env["PGPASSFILE"] = handle.name
            yield env


_ENVIRONMENT = {
    "host": "PGHOST",
    "hostaddr": "PGHOSTADDR",
    "port": "PGPORT",
    "user": "PGUSER",
    "dbname": "PGDATABASE",
    "passfile": "PGPASSFILE",
    "sslmode": "PGSSLMODE",
    "sslrootcert": "PGSSLROOTCERT",
    "sslcert": "PGSSLCERT",
    "sslkey": "PGSSLKEY",
    "connect_timeout": "PGCONNECT_TIMEOUT",
    "target_session_attrs": "PGTARGETSESSIONATTRS",
    "options": "PGOPTIONS",
    "service": "PGSERVICE",
    "requirepeer": "PGREQUIREPEER",
    "require_auth": "PGREQUIREAUTH",
    "sslcrl": "PGSSLCRL",
    "sslcrldir": "PGSSLCRLDIR",
    "sslcertmode": "PGSSLCERTMODE",
    "sslnegotiation": "PGSSLNEGOTIATION",
    "sslsni": "PGSSLSNI",
    "ssl_min_protocol_version": "PGSSLMINPROTOCOLVERSION",
    "ssl_max_protocol_version": "PGSSLMAXPROTOCOLVERSION",
    "krbsrvname": "PGKRBSRVNAME",
    "load_balance_hosts": "PGLOADBALANCEHOSTS",
    "gssencmode": "PGGSSENCMODE",
    "channel_binding": "PGCHANNELBINDING",
}


def _tls_keywords(params: Mapping[str, Any], where: str) -> dict[str, Any]:
    extra = dict(params["connect_params"] or {})
    for secret in SECRETS:
        if secret in extra:
            raise Refused(
                "{0} holds {1}, which would show in Ansible's output: use the password option, "
                "or a pass file, instead.".format(where, secret)
            )
    return {
        "sslmode": params["ssl_mode"],
        "sslrootcert": params["ca_cert"],
        "sslcert": params["ssl_cert"],
        "sslkey": params["ssl_key"],
        **extra,
    }
