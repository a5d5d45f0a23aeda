# SPDX-License-Identifier: GPL-3.0-or-later
"""The gate: a replica stops applying exactly where the upstream changed a definition, and goes on when it has changed it too.

The upstream changes its tables and, in the same transaction, writes a row into the gate's table, which is published. The locks of
the change part what was written to these tables before from what is written after it, and a replica applies in commit order.
There a trigger on the gate's table keeps the apply worker waiting, in a transaction that has locked no other table, until the
replica has made the change too. Nobody waits on the upstream. A run that dies leaves the worker where it is, for the next run.
"""

from __future__ import annotations

import hashlib
import time
from typing import Any, Collection, NamedTuple, Sequence

from ansible_collections.postgresml.distributed.plugins.module_utils.errors import Refused, TimedOut
from ansible_collections.postgresml.distributed.plugins.module_utils.insight import offering, subscribed
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.session import Session
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.statement import (
    NAME_BYTES,
    Change,
    compose,
    enumerate_names,
    identifier,
    literal,
    quoted,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.resources import change_following
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.change_following import Subscriber
from ansible_collections.postgresml.distributed.plugins.module_utils.transfer import ledger

SCHEMA = ledger.SCHEMA
GATE, PASSED, WAIT = "_gate", "_passed", "_wait"
_LONGEST_BASE = NAME_BYTES - len(PASSED)
PATIENCE_SECONDS = 20
"""How long the worker trusts a connection that it doesn't serve. The upstream cuts it after wal_sender_timeout, 60 s by default,
which the worker would take for an error."""


class Gate(NamedTuple):
    """What makes a publication's gate."""

    base: str

    @property
    def table(self) -> tuple[str, str]:
        return (SCHEMA, self.base + GATE)

    @property
    def passed(self) -> tuple[str, str]:
        """The replica's own table, of the rows at which its worker may go on."""
        return (SCHEMA, self.base + PASSED)

    @property
    def function(self) -> tuple[str, str]:
        return (SCHEMA, self.base + WAIT)


def of_publication(name: str) -> Gate:
    """The gate of publication *name*, whose name is cut where PostgreSQL would cut it."""
    data = name.encode("utf-8")
    if len(data) <= _LONGEST_BASE:
        return Gate(name)
    digest = hashlib.sha256(data).hexdigest()[:12]
    return Gate("{0}_{1}".format(data[: _LONGEST_BASE - 13].decode("utf-8", "ignore"), digest))


def of_subscription(session: Session, publications: Sequence[str]) -> Gate | None:
    """The gate that there is on a replica, if any."""
    gates = [of_publication(name) for name in sorted(publications)]
    return next((gate for gate in gates if _exists(session, gate.table)), None)


def refuse_foreign(session: Session, publications: Sequence[str], owner: str | None = None) -> None:
    """Refuse what somebody else has put in a gate's place: its triggers would run with the rights of whoever writes there.

    :param owner: the subscription's, to whom a gate on a replica belongs
    """
    for name in publications:
        ledger.has(session, of_publication(name).table[1], owner)


def _exists(session: Session, key: tuple[str, str]) -> bool:
    return bool(
        session.value(
            "SELECT count(*) FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace"
            " WHERE n.nspname = %s AND c.relname = %s",
            list(key),
        )
    )


def plan_upstream(session: Session, publication: str) -> list[Change]:
    """The statements that put the gate up on the upstream."""
    row = session.row("SELECT puballtables, pubinsert FROM pg_publication WHERE pubname = %s", [publication])
    if not row.pubinsert:
        raise Refused(
            "Publication {0} doesn't publish inserts, so that replicas can't be told where a definition changes. Let it publish "
            "them.".format(quoted(publication))
        )
    _refuse_synchronous(session)
    gate = of_publication(publication)
    changes = []
    if not _exists(session, gate.table):
        changes += _schema(session) + [_table(gate.table, "Create table {0}")]
    published = session.value(
        "SELECT count(*) FROM pg_publication_tables WHERE pubname = %s AND schemaname = %s AND tablename = %s",
        [publication, *gate.table],
    )
    if not published and not row.puballtables:
        statement = compose(
            "ALTER PUBLICATION {name} ADD TABLE {table}", name=identifier(publication), table=identifier(*gate.table)
        )
        changes.append(Change(statement, "Add {0} to publication {1}".format(quoted(*gate.table), quoted(publication))))
    return changes


def _refuse_synchronous(session: Session) -> None:
    """Every commit would wait for a replica that stands at the gate, also that of the change, after which it may go on."""
    rows = session.rows(
        "SELECT r.application_name AS name FROM pg_stat_replication AS r JOIN pg_replication_slots AS s ON s.active_pid = r.pid"
        " WHERE s.slot_type = 'logical' AND s.database = current_database() AND r.sync_state <> 'async'"
    )
    if rows:
        raise Refused(
            "Commits of {0} wait for {1}, which would wait at the gate for the commit of the change: take it out of "
            "synchronous_standby_names until the change is done.".format(
                session.endpoint.title, enumerate_names(quoted(row.name) for row in rows)
            )
        )


def _schema(session: Session) -> list[Change]:
    if session.value("SELECT to_regnamespace(%s)", [SCHEMA]):
        return []
    return [Change(compose("CREATE SCHEMA {schema}", schema=identifier(SCHEMA)), "Create schema {0}".format(SCHEMA))]


def _table(key: tuple[str, str], words: str) -> Change:
    statement = "CREATE TABLE {table} (change text, statement int, PRIMARY KEY (change, statement))"
    return Change(compose(statement, table=identifier(*key)), words.format(quoted(*key)))


def plan_replica(session: Session, source: Session | None, subscriber: Subscriber) -> list[Change]:
    """The statements that put the gate up on the replica; the upstream has it already, unless *source* is None."""
    change_following.refuse_unready(session, subscriber)
    _refuse_isolation(session)
    gate = of_publication(sorted(subscriber.publications)[0])
    patience: float = PATIENCE_SECONDS
    if source:
        offer = offering.offered(source, subscriber.publications, session.version)
        gates = [of_publication(name) for name in sorted(subscriber.publications)]
        found = [each for each in gates if each.table in offer]
        if not found:
            raise Refused(
                "No publication of subscription {0} has a gate yet: run state=prepared on the upstream first.".format(
                    quoted(subscriber.name)
                )
            )
        gate = found[0]
        if gate.table not in subscribed.subscribed(session, subscriber.oid):
            _refuse_others(session, subscriber, [key for key in offer if key != gate.table])
        patience = _patience(source)
    changes = []
    if not _exists(session, gate.table):
        changes += _schema(session)
        changes.append(Change(_statements(session, gate, subscriber, patience), _words("Create", gate)))
    if gate.table not in subscribed.subscribed(session, subscriber.oid):
        statement = compose(
            "ALTER SUBSCRIPTION {name} REFRESH PUBLICATION WITH (copy_data = false)", name=identifier(subscriber.name)
        )
        words = "Take {0} into subscription {1}".format(quoted(*gate.table), quoted(subscriber.name))
        changes.append(Change(statement, words, transactional=False))
    return changes


def _refuse_isolation(session: Session) -> None:
    """The worker looks for the row that opens the gate in one transaction, and has to see what others have committed since."""
    level = session.value("SELECT current_setting('default_transaction_isolation')")
    if level in ("repeatable read", "serializable"):
        raise Refused(
            "{0} has default_transaction_isolation = '{1}', under which the worker would wait at the gate for ever: set it to "
            "'read committed' there, and let the subscription's worker connect anew.".format(
                session.endpoint.title, level
            )
        )


def _words(verb: str, gate: Gate) -> str:
    return "{0} tables {1} and {2}".format(verb, quoted(*gate.table), quoted(*gate.passed))


def _refuse_others(session: Session, subscriber: Subscriber, published: Sequence[tuple[str, str]]) -> None:
    """To take the gate in without a copy would take every other new table in without its rows."""
    known = subscribed.subscribed(session, subscriber.oid)
    new = [quoted(*key) for key in published if key not in known]
    if new:
        raise Refused(
            "{0} is published and subscription {1} has not taken it in yet: run distribute.yml first, which copies its "
            "rows.".format(enumerate_names(new), quoted(subscriber.name))
        )


def refuse_taken_for_copied(session: Session, subscriber: Subscriber, before: Collection[tuple[str, str]]) -> None:
    """Name the tables that were published in the very moment in which the gate was taken in."""
    after = subscribed.subscribed(session, subscriber.oid)
    new = [quoted(*key) for key in after if key not in before and key[0] != SCHEMA]
    if new:
        raise Refused(
            "{0} was published at this moment, and subscription {1} took it in without its rows: take it out of the publication, "
            "run distribute.yml, and add it again.".format(enumerate_names(new), quoted(subscriber.name))
        )


def _patience(source: Session) -> float:
    """Seconds after which the upstream may be about to cut the connection; it counts from the last answer, and asks for one when
    half of the time is over."""
    timeout = source.value("SELECT setting::int FROM pg_settings WHERE name = 'wal_sender_timeout'") / 1000
    return min(PATIENCE_SECONDS, timeout / 3) if timeout else PATIENCE_SECONDS


_BODY = """
DECLARE
    started timestamptz := clock_timestamp();
BEGIN
    -- Says at which row it waits to whoever looks into pg_locks.
    PERFORM pg_advisory_xact_lock_shared(hashtext(NEW.change), NEW.statement);
    WHILE NOT EXISTS (SELECT FROM {passed} AS p WHERE p.change = NEW.change AND p.statement = NEW.statement) LOOP
        PERFORM pg_sleep(0.02);
    END LOOP;
    IF clock_timestamp() > started + {patience} THEN
        -- The upstream may have cut the connection. A worker that ends here is started anew, and passes at once; one that went on
        -- would find an error, count it, and disable the subscription where it was told to.
        BEGIN
            PERFORM pg_terminate_backend(coalesce((SELECT (to_jsonb(w) ->> 'leader_pid')::int FROM pg_stat_subscription AS w
                WHERE w.pid = pg_backend_pid()), pg_backend_pid()));
            PERFORM pg_sleep(10);
        EXCEPTION WHEN insufficient_privilege THEN
            NULL;
        END;
    END IF;
    RETURN NEW;
END
"""


def _statements(session: Session, gate: Gate, subscriber: Subscriber, patience: float) -> Any:
    body = compose(
        _BODY,
        passed=identifier(*gate.passed),
        patience=compose("interval {patience}", patience=literal("{0:.1f} s".format(patience))),
    )
    parts = {
        "schema": identifier(SCHEMA),
        "gate": identifier(*gate.table),
        "passed": identifier(*gate.passed),
        "function": identifier(*gate.function),
        "body": literal(session.text_of(body)),
        "owner": identifier(subscriber.owner),
    }
    made = (
        "CREATE TABLE {gate} (change text, statement int, PRIMARY KEY (change, statement));"
        " CREATE TABLE {passed} (change text, statement int, PRIMARY KEY (change, statement));"
        " CREATE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql AS {body};"
        " CREATE TRIGGER wait BEFORE INSERT ON {gate} FOR EACH ROW EXECUTE FUNCTION {function}();"
        " ALTER TABLE {gate} ENABLE ALWAYS TRIGGER wait"
    )
    if subscriber.owner != session.value("SELECT current_user"):
        # Workers write as the table's owner or as the subscription's, depending on the version and run_as_owner.
        made += (
            "; GRANT USAGE ON SCHEMA {schema} TO {owner}; GRANT SELECT ON {passed} TO {owner};"
            " ALTER FUNCTION {function}() OWNER TO {owner}; ALTER TABLE {gate} OWNER TO {owner}"
        )
    return compose(made, **parts)


def close(session: Session, gate: Gate, change: str, statement: int) -> None:
    """On the upstream, in the transaction of the change: replicas stop here."""
    _write(session, gate.table, change, statement)


def open_(session: Session, gate: Gate, change: str, statement: int) -> None:
    """On the replica, in the transaction of the change: the worker goes on."""
    _write(session, gate.passed, change, statement)


def _write(session: Session, table: tuple[str, str], change: str, statement: int) -> None:
    session.execute(
        compose(
            "INSERT INTO {table} VALUES ({change}, {statement}) ON CONFLICT DO NOTHING",
            table=identifier(*table),
            change=literal(change),
            statement=literal(statement),
        )
    )


def wait_for_worker(session: Session, subscriber: Subscriber, change: str, statement: int, end: float) -> None:
    """Return when the subscription's worker stands at the row, so that it has applied all that came before.

    :param end: until when to wait, of time.monotonic()
    """
    pause = 0.01
    errors = change_following.Errors(session, subscriber)
    while not _stands_at(session, subscriber, change, statement):
        errors.refuse()
        if time.monotonic() > end:
            raise TimedOut(
                "Subscription {0} has not applied what the upstream wrote before statement {1}, when the time was over: look at "
                "the replica's log, or allow a longer timeout.".format(quoted(subscriber.name), statement)
            )
        time.sleep(pause)
        pause = min(pause * 1.3, 0.5)


def _stands_at(session: Session, subscriber: Subscriber, change: str, statement: int) -> bool:
    return bool(
        session.value(
            "SELECT count(*) FROM pg_locks AS l JOIN pg_stat_subscription AS w ON w.pid = l.pid"
            " WHERE w.subid = %s AND l.locktype = 'advisory' AND l.granted AND l.objsubid = 2"
            " AND l.classid = hashtext(%s)::oid AND l.objid = %s::oid",
            [subscriber.oid, change, statement],
        )
    )


def is_waited_at(session: Session, subscriber: Subscriber) -> bool:
    """Whether the subscription's worker stands at a row of the gate, of whatever change."""
    return of_subscription(session, subscriber.publications) is not None and bool(
        session.value(
            "SELECT count(*) FROM pg_locks AS l JOIN pg_stat_subscription AS w ON w.pid = l.pid"
            " WHERE w.subid = %s AND l.locktype = 'advisory' AND l.granted AND l.objsubid = 2",
            [subscriber.oid],
        )
    )


def wait_until_passed(session: Session, subscriber: Subscriber, gate: Gate, end: float) -> None:
    """Return when the worker has left the gate behind: a row that came later would find no table."""
    behind = compose(
        "SELECT count(*) FROM (TABLE {passed} EXCEPT TABLE {gate}) AS left_over",
        passed=identifier(*gate.passed),
        gate=identifier(*gate.table),
    )
    pause = 0.01
    errors = change_following.Errors(session, subscriber)
    while session.value(behind) or _held(session, gate):
        errors.refuse()
        if time.monotonic() > end:
            raise TimedOut(
                "The worker of subscription {0} still stands at the gate: a schema change is unfinished, or the replica's log "
                "says what hinders the worker.".format(quoted(subscriber.name))
            )
        time.sleep(pause)
        pause = min(pause * 1.3, 0.5)


def _held(session: Session, gate: Gate) -> bool:
    return bool(
        session.value(
            "SELECT count(*) FROM pg_locks WHERE locktype = 'relation' AND mode = 'RowExclusiveLock' AND pid <> pg_backend_pid()"
            " AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) AND relation = ("
            "  SELECT c.oid FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace"
            "  WHERE n.nspname = %s AND c.relname = %s)",
            list(gate.table),
        )
    )


def plan_removal(session: Session, gate: Gate, replica: bool) -> list[Change]:
    """The statements that take the gate away."""
    if not _exists(session, gate.table):
        return []
    statement, words = "DROP TABLE {gate}", "Drop table {0}".format(quoted(*gate.table))
    if replica:
        statement, words = "DROP TABLE {gate}, {passed}; DROP FUNCTION {function}()", _words("Drop", gate)
    parts = {
        "gate": identifier(*gate.table),
        "passed": identifier(*gate.passed),
        "function": identifier(*gate.function),
    }
    changes = [Change(compose(statement, **parts), words)]
    if ledger.holds_only(session, [], [gate.table[1], gate.passed[1], gate.function[1]]):
        changes.append(ledger.removal())
    return changes
