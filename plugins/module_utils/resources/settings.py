# SPDX-License-Identifier: GPL-3.0-or-later
"""Server settings that are raised to what is needed and never lowered."""

from __future__ import annotations

from typing import Any, Mapping, NamedTuple

from ansible_collections.postgresml.distributed.plugins.module_utils.errors import Refused
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.session import Session
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.statement import (
    Change,
    compose,
    enumerate_names,
    identifier,
    literal,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.task import Task

OPTIONS: dict[str, Any] = {
    "minimum": {"type": "dict", "required": True},
    "write": {"type": "bool", "default": True},
}

_ORDER = {"wal_level": ["minimal", "replica", "logical"]}
"""Settings whose values are words, from the least to the most."""

_UNLIMITED = {"max_slot_wal_keep_size": "-1"}


class Setting(NamedTuple):
    """A setting: what runs, what the files say for the next start, and the minimum in the server's own unit."""

    name: str
    running: str
    configured: str
    minimum: str
    needs_restart: bool

    @property
    def too_low(self) -> bool:
        """Whether the next start would still have too little."""
        return self._below(self.configured)

    @property
    def waits(self) -> bool:
        """Whether the server must be restarted before it has enough."""
        return self.needs_restart and self._below(self.running)

    def _below(self, value: str) -> bool:
        if self.name in _ORDER:
            return _ORDER[self.name].index(value) < _ORDER[self.name].index(self.minimum)
        if _UNLIMITED.get(self.name) in (value, self.minimum):
            return self.minimum != value
        return int(value) < int(self.minimum)


def manage(task: Task) -> None:
    """Raise the settings of the task's options with ALTER SYSTEM; say which of them wait for a restart."""
    with task.session() as session:
        settings = read(session, task.params["minimum"])
        too_low = [setting for setting in settings if setting.too_low]
        if too_low and not task.params["write"]:
            raise Refused(
                "The server of {0} needs {1}; it is managed, so set them where its service is.".format(
                    session.endpoint, enumerate_names("{0} = {1}".format(s.name, s.minimum) for s in too_low)
                )
            )
        task.describe(
            {setting.name: setting.configured for setting in settings},
            {setting.name: setting.minimum if setting.too_low else setting.configured for setting in settings},
        )
        task.result["pending_restart"] = sorted(setting.name for setting in settings if setting.waits)
        task.apply(session, plan(settings))


def read(session: Session, minimum: Mapping[str, Any]) -> list[Setting]:
    """The settings named by *minimum*, whose values may have units.

    What the files say is shown to superusers and whom they allow it; others see what runs. Units are those of
    https://www.postgresql.org/docs/current/config-setting.html.
    """
    rows = {
        row.name: row
        for row in session.rows(
            "SELECT name, setting, unit, context, vartype FROM pg_settings WHERE name = ANY(%s)", [list(minimum)]
        )
    }
    unknown = set(minimum) - set(rows)
    if unknown:
        raise Refused("The server of {0} has no setting {1}.".format(session.endpoint, enumerate_names(unknown)))
    _refuse_unordered(minimum, rows)
    files = _configured(session, list(minimum)) if _may_read_files(session) else {}
    return [
        Setting(
            name=name,
            running=row.setting,
            configured=_in_unit(files.get(name, row.setting), row),
            minimum=_in_unit(str(minimum[name]), row),
            needs_restart=row.context == "postmaster",
        )
        for name, row in sorted(rows.items())
    ]


def _refuse_unordered(minimum: Mapping[str, Any], rows: Mapping[str, Any]) -> None:
    for name, value in minimum.items():
        if name in _ORDER:
            if value not in _ORDER[name]:
                raise Refused("{0} = {1!r} is none of {2}.".format(name, value, ", ".join(_ORDER[name])))
        elif rows[name].vartype != "integer":
            raise Refused("{0} can't be raised: its values have no order that is known here.".format(name))


def _may_read_files(session: Session) -> bool:
    return bool(
        session.value(
            "SELECT has_table_privilege('pg_file_settings', 'SELECT')"
            " AND has_function_privilege('pg_show_all_file_settings()', 'EXECUTE')"
        )
    )


def _configured(session: Session, names: list[str]) -> dict[str, str]:
    """The last word of the configuration files on each setting, be it applied already or waiting for a restart."""
    return {
        row.name: row.setting
        for row in session.rows(
            "SELECT DISTINCT ON (name) name, setting FROM pg_file_settings WHERE name = ANY(%s)"
            " ORDER BY name, seqno DESC",
            [names],
        )
    }


_SYNONYMS = {"archive": "replica", "hot_standby": "replica"}
"""Spellings of wal_level from before 9.6, which the files may still have."""
_UNITS = {"B": 1, "kB": 1024, "8kB": 8192, "MB": 1024**2, "16MB": 16 * 1024**2, "GB": 1024**3, "TB": 1024**4}


def _in_unit(value: str, row: Any) -> str:
    """*value*, such as C(50GB), as a plain number of the setting's unit."""
    if row.vartype != "integer":
        return _SYNONYMS.get(value.lower(), value.lower())
    digits = value.rstrip("kMGTB ").strip()
    suffix = value[len(digits) :].strip()
    try:
        number = int(digits)
    except ValueError:
        raise Refused("{0} = {1!r} is not a whole number, with or without a unit.".format(row.name, value)) from None
    if not suffix:
        return str(number)
    if suffix not in _UNITS or row.unit not in _UNITS:
        raise Refused("{0} = {1!r} has a unit that the setting doesn't take.".format(row.name, value))
    return str(-(-number * _UNITS[suffix] // _UNITS[row.unit]))


def plan(settings: list[Setting]) -> list[Change]:
    """ALTER SYSTEM for what is too low, then a reload for what takes one; ALTER SYSTEM allows no transaction."""
    changes = [
        Change(
            compose("ALTER SYSTEM SET {name} = {value}", name=identifier(setting.name), value=literal(setting.minimum)),
            "{0} {1} from {2} to {3}".format(
                "Bound" if setting.configured == _UNLIMITED.get(setting.name) else "Raise",
                setting.name,
                setting.configured,
                setting.minimum,
            ),
            transactional=False,
        )
        for setting in settings
        if setting.too_low
    ]
    if changes:
        changes.append(Change(compose("SELECT pg_reload_conf()"), "Reload the configuration"))
    return changes
