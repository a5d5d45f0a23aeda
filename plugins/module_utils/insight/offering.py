# SPDX-License-Identifier: GPL-3.0-or-later
"""What a subscription would receive, and whether the replica can take it."""

from __future__ import annotations

from typing import Any, Collection, Mapping, NamedTuple, Sequence

from ansible_collections.postgresml.distributed.plugins.module_utils.errors import Changed, Refused
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.session import Session
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.statement import (
    arrays,
    compose,
    enumerate_names,
    identifier,
    literal,
    quoted,
    raw,
    union_all,
)

LOOKS_AT_ONCE = 50
"""Tables looked into by one query: planning more takes longer than they are worth, and a lock for each."""
COLUMN_LISTS_SINCE = SCHEMAS_SINCE = 150000
GENERATED_COLUMNS_SINCE = 180000
"""Before 18 generated columns are never published, though pg_publication_tables lists them."""


class Offer(NamedTuple):
    """A table as a set of publications offers it."""

    oid: int
    kind: str
    """pg_class.relkind: C(r), or C(p) for one that is published via its root"""
    columns: tuple[str, ...]
    where: str | None
    """the row filters of all publications together"""
    readable: bool
    """whether the connecting user may SELECT those columns"""
    hidden: bool
    """whether row security hides rows from that user"""


def offered(source: Session, publications: Sequence[str], target_version: int) -> dict[Any, Offer]:
    """The tables that *publications* offer, by (schema, name); refuses publications that can't be taken as they are."""
    known = {
        row.pubname
        for row in source.rows("SELECT pubname FROM pg_publication WHERE pubname = ANY(%s)", [list(publications)])
    }
    missing = [name for name in publications if name not in known]
    if missing:
        raise Refused(
            "There is no publication {0} in {1}.".format(enumerate_names(map(quoted, missing)), source.endpoint)
        )
    if target_version < COLUMN_LISTS_SINCE <= source.version:
        _refuse_parts(source, publications)
    if source.version >= COLUMN_LISTS_SINCE:
        _refuse_unlike_lists(source, publications)
    listed = " AND a.attname = ANY(pt.attnames)" if source.version >= COLUMN_LISTS_SINCE else ""
    filter_ = "pt.rowfilter" if source.version >= COLUMN_LISTS_SINCE else "NULL::text"
    stored = " AND a.attgenerated = ''" if source.version < GENERATED_COLUMNS_SINCE else ""
    return {
        (row.schema, row.name): Offer(
            row.oid,
            row.kind,
            tuple(row.columns),
            None if None in row.filters else " OR ".join("({0}\n)".format(each) for each in row.filters),
            row.readable,
            row.hidden,
        )
        for row in source.rows(
            "SELECT pt.schemaname AS schema, pt.tablename AS name, c.oid, c.relkind AS kind,"
            " array_remove(array_agg(DISTINCT a.attname::text), NULL) AS columns, array_agg(DISTINCT "
            + filter_
            + ") AS filters,"
            " has_schema_privilege(n.oid, 'USAGE')"
            "  AND coalesce(bool_and(has_column_privilege(c.oid, a.attnum, 'SELECT')), has_table_privilege(c.oid, 'SELECT'))"
            " AS readable, row_security_active(c.oid) AS hidden FROM pg_publication_tables AS pt"
            " JOIN pg_namespace AS n ON n.nspname = pt.schemaname"
            " JOIN pg_class AS c ON c.relnamespace = n.oid AND c.relname = pt.tablename"
            " LEFT JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped"
            + listed
            + stored
            + " WHERE pt.pubname = ANY(%s) GROUP BY n.oid, c.oid, c.relkind, 1, 2",
            [list(publications)],
        )
    }


def digest(source: Session, publications: Sequence[str], offer: Mapping[Any, Offer]) -> dict[str, Any]:
    """What *publications* offer, which is *offer*, for refuse_changes() later."""
    return {
        "tables": {
            quoted(*key): [table.oid, sorted(table.columns), table.where] for key, table in sorted(offer.items())
        },
        "others": _unpublished(source, [table.oid for table in offer.values()]),
        "edition": _edition(source, publications),
    }


def refuse_changes(name: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise Changed when the publications of subscription *name* don't offer what they did *before*. Tables that didn't exist
    then come with all of their rows."""
    old, new, others = before["tables"], now["tables"], set(before["others"])
    changed = [label for label in old if new.get(label) != old[label]]
    changed += [label for label in new if label not in old and new[label][0] in others]
    if not changed and before["edition"] == now["edition"]:
        return
    what = ""
    if changed:
        what = ": {0} {1} published otherwise now".format(
            enumerate_names(changed), "is" if len(changed) == 1 else "are"
        )
    raise Changed("The publications of subscription {0} were altered meanwhile{1}.".format(quoted(name), what))


def _edition(source: Session, publications: Sequence[str]) -> str:
    """Another text when *publications* have been altered, even if they are as before again: what was written between may not
    have been published."""
    members = ["pg_publication_rel"] + ["pg_publication_namespace"] * (source.version >= SCHEMAS_SINCE)
    columns = {"pg_publication_rel": "prpubid", "pg_publication_namespace": "pnpubid"}
    queries = [raw("SELECT 'pg_publication' AS catalog, oid, xmin, oid AS publication FROM pg_publication")]
    queries += [raw("SELECT '{0}', oid, xmin, {1} FROM {0}".format(name, columns[name])) for name in members]
    return str(
        source.value(
            compose(
                "SELECT string_agg(concat_ws(' ', r.catalog, r.oid, r.xmin), ',' ORDER BY r.catalog, r.oid)"
                " FROM ({rows}) AS r JOIN pg_publication AS p ON p.oid = r.publication"
                " WHERE p.pubname = ANY({names}::text[])",
                rows=union_all(queries),
                names=literal(list(publications)),
            )
        )
    )


def _unpublished(source: Session, published: Sequence[int]) -> list[int]:
    """The oids of all other tables."""
    return [
        row.oid
        for row in source.rows(
            "SELECT oid FROM pg_class WHERE relkind IN ('r', 'p') AND oid >= 16384 AND NOT oid = ANY(%s::oid[]) ORDER BY 1",
            [list(published)],
        )
    ]


def _refuse_parts(source: Session, publications: Sequence[str]) -> None:
    """A subscriber before 15 copies whole tables at first, whatever the publication's row filters and column lists say."""
    rows = source.rows(
        "SELECT DISTINCT n.nspname AS schema, c.relname AS name FROM pg_publication_rel AS pr"
        " JOIN pg_publication AS p ON p.oid = pr.prpubid JOIN pg_class AS c ON c.oid = pr.prrelid"
        " JOIN pg_namespace AS n ON n.oid = c.relnamespace"
        " WHERE p.pubname = ANY(%s) AND (pr.prqual IS NOT NULL OR pr.prattrs IS NOT NULL)",
        [list(publications)],
    )
    if rows:
        raise Refused(
            "{0} has a row filter or a column list, which replicas before PostgreSQL {1} ignore in the first copy.".format(
                enumerate_names(quoted(row.schema, row.name) for row in rows), COLUMN_LISTS_SINCE // 10000
            )
        )


def _refuse_unlike_lists(source: Session, publications: Sequence[str]) -> None:
    """Lists of one table that differ between publications are an error of every subscriber, after the first copy."""
    rows = source.rows(
        "SELECT schemaname AS schema, tablename AS name, array_agg(pubname::text ORDER BY pubname) AS publications"
        " FROM pg_publication_tables WHERE pubname = ANY(%s) GROUP BY 1, 2 HAVING count(DISTINCT attnames) > 1",
        [list(publications)],
    )
    if rows:
        raise Refused(
            "Publications {0} list different columns of {1}, which no subscription can take: list the same in "
            "each.".format(
                enumerate_names(sorted({quoted(name) for row in rows for name in row.publications})),
                enumerate_names(quoted(row.schema, row.name) for row in rows),
            )
        )


def check_offer(source: Session, session: Session, offer: Mapping[Any, Offer], name: str) -> None:
    """Refuse tables that the source's user can't read, that the target can't take, or that it takes from elsewhere."""
    unreadable = [quoted(*key) for key, table in offer.items() if not table.readable]
    if unreadable:
        raise Refused(
            'The source would answer permission denied for table {0}: grant user "{1}" SELECT on it and USAGE on its '
            "schema.".format(enumerate_names(unreadable), source.endpoint.keywords.get("user"))
        )
    hidden = [quoted(*key) for key, table in offer.items() if table.hidden]
    if hidden:
        raise Refused(
            'Row security would hide rows of {0} from user "{1}" on the source, and nobody would notice: give it '
            "BYPASSRLS.".format(enumerate_names(hidden), source.endpoint.keywords.get("user"))
        )
    target = _target_tables(session, offer)
    missing = [quoted(*key) for key in offer if key not in target]
    if missing:
        raise Refused(
            "{0} lacks table {1}: create what is missing with pgml_schema first.".format(
                session.endpoint.title, enumerate_names(missing)
            )
        )
    lacking = [
        "{0} ({1})".format(quoted(*key), enumerate_names(quoted(c) for c in table.columns if c not in target[key]))
        for key, table in offer.items()
        if not set(table.columns) <= target[key]
    ]
    if lacking:
        raise Refused(
            "{0} lacks columns that are published, or generates them: {1}.".format(
                session.endpoint.title, enumerate_names(lacking)
            )
        )
    _check_single_feed(session, offer, name)


def _target_tables(session: Session, keys: Any) -> dict[Any, set[str]]:
    """The columns that can be written, of those of *keys* that exist."""
    return {
        (row.schema, row.name): set(row.columns)
        for row in session.rows(
            "SELECT n.nspname AS schema, c.relname AS name, array(SELECT attname::text FROM pg_attribute"
            "  WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped AND attgenerated = '') AS columns"
            " FROM unnest(%s::text[], %s::text[]) AS wanted(schema, name)"
            " JOIN pg_namespace AS n ON n.nspname = wanted.schema"
            " JOIN pg_class AS c ON c.relnamespace = n.oid AND c.relname = wanted.name AND c.relkind IN ('r', 'p')",
            arrays(keys),
        )
    }


def _check_single_feed(session: Session, keys: Any, name: str) -> None:
    rows = session.rows(
        "SELECT n.nspname AS schema, c.relname AS name, s.subname FROM pg_subscription_rel AS sr"
        " JOIN (SELECT oid, subname FROM pg_subscription) AS s ON s.oid = sr.srsubid"
        " JOIN pg_class AS c ON c.oid = sr.srrelid JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE s.subname <> %s",
        [name],
    )
    twice = {quoted(row.schema, row.name): row.subname for row in rows if (row.schema, row.name) in keys}
    if twice:
        raise Refused(
            "{0} takes {1} from subscription {2} already: two distributions must not fill the same table.".format(
                session.endpoint.title,
                enumerate_names(twice),
                enumerate_names(map(quoted, set(twice.values()))),
            )
        )


def filled(session: Session, keys: Collection[Any]) -> list[Any]:
    """Those of the tables *keys* that hold rows."""
    ordered = sorted(keys)
    found: list[Any] = []
    for start in range(0, len(ordered), LOOKS_AT_ONCE):
        looks = union_all(map(_look, ordered[start : start + LOOKS_AT_ONCE]))
        query = "SELECT schema, name FROM ({looks}) AS looks(schema, name, filled) WHERE filled"
        found += [(row.schema, row.name) for row in session.rows(compose(query, looks=looks))]
    return found


def check_empty(session: Session, keys: Collection[Any]) -> None:
    """Refuse tables that hold rows already: the first copy would add its own to them."""
    found = filled(session, keys)
    if found:
        raise Refused(
            "Table {0} holds rows in {1}, and the first copy would add to them: empty it, or set initial_copy to none if "
            "the rows are right.".format(enumerate_names(quoted(*key) for key in found), session.endpoint)
        )


def _look(key: Any) -> Any:
    return compose(
        "SELECT {schema}, {name}, EXISTS (SELECT FROM {table})",
        schema=literal(key[0]),
        name=literal(key[1]),
        table=identifier(*key),
    )
