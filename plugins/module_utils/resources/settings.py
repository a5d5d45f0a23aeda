# SPDX-License-Identifier: GPL-3.0-or-later
"""Server settings that are raised to what is needed and never lowered; lists of libraries get what they lack."""

from __future__ import annotations

from typing import Any, Mapping, NamedTuple, Sequence, Union

from ansible_collections.postgresml.distributed.plugins.module_utils.errors import Refused
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.session import Session
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.statement import (
    Change,
    compose,
    enumerate_names,
    identifier,
    literal,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.resources import libraries
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.libraries import Libraries
from ansible_collections.postgresml.distributed.plugins.module_utils.task import Task

OPTIONS: dict[str, Any] = {
    "minimum": {"type": "dict", "required": True},
    "remove": {"type": "dict", "default": {}},
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
    def differs(self) -> bool:
        """Whether the next start would still have too little."""
        return self._below(self.configured)

    @property
    def wanted(self) -> str:
        """What the next start is to have."""
        return self.minimum if self.differs else self.configured

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


AnySetting = Union[Setting, Libraries]


def manage(task: Task) -> None:
    """Raise the settings of the task's options with ALTER SYSTEM; say which of them wait for a restart."""
    with task.session() as session:
        settings = read(session, task.params["minimum"], task.params["remove"])
        differing = [setting for setting in settings if setting.differs]
        if differing and not task.params["write"]:
            raise Refused(
                "The server of {0} needs {1}; it is managed, so set them where its service is.".format(
                    session.endpoint, enumerate_names("{0} = {1}".format(s.name, shown(s.wanted)) for s in differing)
                )
            )
        for problem in (s.problem(session.endpoint) for s in settings if isinstance(s, Libraries)):
            if problem:
                raise Refused(problem)
        task.describe(
            {setting.name: shown(setting.configured) for setting in settings},
            {setting.name: shown(setting.wanted if setting.differs else setting.configured) for setting in settings},
        )
        task.result["pending_restart"] = sorted(setting.name for setting in settings if setting.waits)
        task.apply(session, plan(settings))


def shown(value: Union[str, list[str]]) -> str:
    """A value as people read it."""
    return value if isinstance(value, str) else ", ".join(value)


def read(session: Session, minimum: Mapping[str, Any], remove: Mapping[str, Any]) -> list[AnySetting]:
    """The settings named by *minimum*, whose values may have units, and by *remove*.

    What the files say is shown to superusers and whom they allow it; others see what runs. Units are those of
    https://www.postgresql.org/docs/current/config-setting.html.
    """
    names = list(dict.fromkeys([*minimum, *remove]))
    rows = {
        row.name: row
        for row in session.rows(
            "SELECT name, setting, unit, context, vartype, source FROM pg_settings WHERE name = ANY(%s::text[])",
            [names],
        )
    }
    unknown = set(names) - set(rows)
    if unknown:
        raise Refused("The server of {0} has no setting {1}.".format(session.endpoint, enumerate_names(unknown)))
    _refuse_unordered(minimum, rows)
    for name in remove:
        if name not in libraries.SETTINGS:
            raise Refused("Nothing can be removed from {0}, which is no list of libraries.".format(name))
    readable = _may_read_files(session)
    files = _configured(session, names) if readable else {}
    return [
        _libraries(row, files.get(name, []) if readable else None, minimum.get(name, []), remove.get(name, []))
        if name in libraries.SETTINGS
        else Setting(
            name=name,
            running=row.setting,
            configured=_in_unit(files[name][-1].setting if name in files else row.setting, row),
            minimum=_in_unit(str(minimum[name]), row),
            needs_restart=row.context == "postmaster",
        )
        for name, row in sorted(rows.items())
    ]


def _libraries(row: Any, lines: Sequence[Any] | None, add: Any, remove: Any) -> Libraries:
    # What no line sets has no library at the next start, unless the command line has said so.
    silent = lines is not None and row.source != "command line"
    configured, beneath = libraries.last_word(lines or [], "" if silent else row.setting)
    return Libraries(
        name=row.name,
        running=libraries.split(row.setting),
        configured=configured,
        beneath=beneath,
        add=libraries.asked_for(row.name, add),
        remove=libraries.asked_for(row.name, remove),
        needs_restart=row.context == "postmaster",
    )


def _refuse_unordered(minimum: Mapping[str, Any], rows: Mapping[str, Any]) -> None:
    for name, value in minimum.items():
        if name in libraries.SETTINGS:
            continue
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


def _configured(session: Session, names: list[str]) -> dict[str, list[Any]]:
    """The lines of the configuration files on each setting, be they applied already or waiting for a restart.

    The last has the last word.
    """
    lines: dict[str, list[Any]] = {}
    for row in session.rows(
        "SELECT name, setting, sourcefile FROM pg_file_settings WHERE name = ANY(%s::text[]) ORDER BY seqno", [names]
    ):
        lines.setdefault(row.name, []).append(row)
    return lines


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


def plan(settings: Sequence[AnySetting]) -> list[Change]:
    """ALTER SYSTEM for what differs, then a reload for what takes one; ALTER SYSTEM allows no transaction."""
    changes = [
        setting.change() if isinstance(setting, Libraries) else _raise(setting)
        for setting in settings
        if setting.differs
    ]
    if changes:
        changes.append(Change(compose("SELECT pg_reload_conf()"), "Reload the configuration"))
    return changes


def _raise(setting: Setting) -> Change:
    return Change(
        compose("ALTER SYSTEM SET {name} = {value}", name=identifier(setting.name), value=literal(setting.minimum)),
        "{0} {1} from {2} to {3}".format(
            "Bound" if setting.configured == _UNLIMITED.get(setting.name) else "Raise",
            setting.name,
            setting.configured,
            setting.minimum,
        ),
        transactional=False,
    )
