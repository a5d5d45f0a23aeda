# SPDX-License-Identifier: GPL-3.0-or-later
"""Settings by which values are read and written as text: a replica that converts rows has to have those of the upstream."""

from __future__ import annotations

from typing import Any, Mapping, Sequence

from ansible_collections.postgresml.distributed.plugins.module_utils.errors import Refused
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.session import Session
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.statement import compose, literal

_MONEY = "lc_monetary"
NAMES = ("TimeZone", "DateStyle", "IntervalStyle", _MONEY, "extra_float_digits", "bytea_output")


def read(session: Session) -> dict[str, str]:
    """What the session's own statements run under."""
    rows = session.rows("SELECT name, current_setting(name) AS value FROM unnest(%s::text[]) AS name", [list(NAMES)])
    return {row.name: row.value for row in rows}


def check(settings: Mapping[str, Any]) -> None:
    """Refuse names that are not for the user of a plan to set."""
    others = sorted(set(settings) - set(NAMES))
    if others:
        raise Refused("settings can't hold {0}: it takes {1}.".format(", ".join(others), ", ".join(NAMES)))


def take_on(session: Session, settings: Mapping[str, Any], texts: Sequence[str] = ()) -> None:
    """Let the transaction have *settings*, for the statements *texts*.

    Locales are names of the operating system, which may lack the upstream's. Where there is no money, there need be none for it.
    """
    for name, value in settings.items():
        statement = compose("SELECT set_config({name}, {value}, true)", name=literal(name), value=literal(str(value)))
        if name != _MONEY:
            session.execute(statement)
        elif not session.tried(statement) and _has_money(session, texts):
            raise Refused(
                "{0} has no locale {1}, which lc_monetary is on the upstream, and amounts of money would be read and written "
                "otherwise: install it there.".format(session.endpoint.title, value)
            )


def _has_money(session: Session, texts: Sequence[str]) -> bool:
    """Whether a column, or a domain, holds money, or will."""
    return any("money" in text.lower() for text in texts) or bool(
        session.value(
            "SELECT EXISTS (SELECT FROM pg_attribute WHERE attrelid >= 16384 AND NOT attisdropped"
            "  AND atttypid IN ('money'::regtype, 'money[]'::regtype))"
            " OR EXISTS (SELECT FROM pg_type WHERE typbasetype IN ('money'::regtype, 'money[]'::regtype))"
        )
    )


def refuse_foreign(session: Session, settings: Mapping[str, Any]) -> None:
    """Refuse settings that the server doesn't take, before any server has changed."""
    with session.transaction(commit=False):
        take_on(session, settings)
