#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# Copyright (c) 2026, the postgresml.distributed contributors

from __future__ import annotations

DOCUMENTATION = r"""
module: pgml_schema_change
short_description: Carry out one server's part of a schema change, once
version_added: 1.0.0
author:
  - The postgresml.distributed contributors (@postgresml)
description:
  - Runs statements that change definitions, on the upstream of a publication or on the replica of a subscription, and remembers
    them in the same transaction, so that none runs twice and a run that died at any step is gone on with by the next.
  - It is the tool of the role P(postgresml.distributed.pgml_schema_change#role), which decides on which servers a statement runs
    and in which order. Use the role, unless you make such plans of your own.
  - Returns what such a plan has to know of the server, see RV(facts). Without O(statements) it only reads.
  - What was done is the last line of the comment on the publication or the subscription, which other modules of this collection
    keep. The other lines of the comment stay as they are.
  - For changes that upstream and replica have to make at the same place of the stream, such as renaming a column, there is a
    gate, see O(state=prepared) and O(together).
options:
  publication:
    description:
      - Name of the publication, exact, when this is the upstream.
      - Either this or O(subscription) is needed.
    type: str
  subscription:
    description:
      - Name of the subscription, exact, when this is the replica.
    type: str
  source:
    description:
      - The upstream's database as the subscription reaches it. Needed on the replica with O(state=prepared),
        O(pins) and O(caught_up_within).
  change:
    description:
      - Id of the schema change, 12 hexadecimal digits. It has to be another one when its statements are others.
    type: str
    required: true
  total:
    description:
      - How many statements the change has in all, on all servers.
    type: int
    required: true
  statements:
    description:
      - The next statements of the change, in their order. Those that are done here already are skipped.
    type: list
    elements: dict
    default: []
    suboptions:
      number:
        description:
          - Its place in the change, from 1 on.
        type: int
        required: true
      sql:
        description:
          - One statement. Names without a schema are those of schema C(public).
          - Without it the statement is for other servers, and counted here.
        type: str
      builds:
        description:
          - The index, with its schema, as in SQL, of a C(CREATE INDEX CONCURRENTLY), which runs outside of a transaction. Others
            share one with their neighbours.
          - A run that finds an index of which an earlier one built only a part drops it and builds it anew.
        type: str
      drops:
        description:
          - The same of a C(DROP INDEX CONCURRENTLY).
        type: str
  before:
    description:
      - Statements for the replica that run first, in the first transaction, and do no harm when they run again.
    type: list
    elements: str
    default: []
  together:
    description:
      - Whether all of O(statements) run at the gate, which has to be up, in one transaction.
      - The upstream writes a row into the gate's table in that transaction. The replica waits until its apply worker has come
        to that row and stands there, runs the statements, and lets it go on.
    type: bool
    default: false
  wait_for:
    description:
      - A position in the upstream's WAL, such as RV(lsn). The replica runs nothing before it has applied all that was written
        before that.
    type: str
  pins:
    description:
      - Values that the replica reads from O(source), where the upstream's rows got them when a column was added with a default
        that was computed once, such as C(now(\)). Each takes the place of a literal in O(statements).
    type: list
    elements: dict
    default: []
    suboptions:
      mark:
        description:
          - The literal, without its quotes.
        type: str
        required: true
      table:
        description:
          - The table, with its schema, as in SQL.
        type: str
        required: true
      column:
        description:
          - The column, exact.
        type: str
        required: true
  begin:
    description:
      - Remember that this server takes part in the change, with so many statements done, when it doesn't know of the change yet.
        Then nothing else is done.
      - Tell all servers before the first of them runs a statement. Then one that is lost in between is known to lag, and one
        that doesn't know of the change has joined later, with the definitions that the upstream had by then.
    type: int
  abandon:
    description:
      - Ids of unfinished schema changes that are given up. What they have done stays, and is no longer remembered.
      - Without this another change is refused until the unfinished one has come to its end.
    type: list
    elements: str
    default: []
  abandon_unbegun:
    description:
      - Ids of schema changes of which no server has run a statement, to be given up like those of O(abandon), unless this server
        has run one of theirs by now.
    type: list
    elements: str
    default: []
  settings:
    description:
      - The settings under which the upstream reads and writes values, as RV(settings) has them, which the replica takes over for
        O(statements). Without them C(USING) may make other values of the same rows.
      - When the replica's system lacks the locale of C(lc_monetary), it is left out, unless there is something of type C(money).
    type: dict
    default: {}
  caught_up_within:
    description:
      - Refuse a replica that would stop a change midway. That is one whose subscription is disabled, has tables without all of
        their rows, or does not apply what the upstream has written by now within so many seconds, and one whose server doesn't
        know O(settings).
      - Needs O(source).
    type: int
  relations:
    description:
      - Tables, indexes and the like to return facts about, with their schemas, as in SQL.
    type: list
    elements: str
    default: []
  types:
    description:
      - Types to return facts about, with their schemas, as in SQL.
    type: list
    elements: str
    default: []
  functions:
    description:
      - Functions to return facts about, with or without schemas, as in SQL.
    type: list
    elements: str
    default: []
  lock_timeout:
    description:
      - How many milliseconds a statement may stand in the queue for a lock, where everybody else waits behind it. Then the
        transaction is undone, and tried again after a pause that grows.
      - When the transaction has got a lock already, half of the server's C(deadlock_timeout) is the most.
      - Statements that don't run in a transaction, behind which nobody waits, may wait until O(timeout) is over.
    type: int
    default: 2000
  timeout:
    description:
      - For how many seconds to try to get locks, and to wait for O(wait_for) or the apply worker, in all.
    type: int
    default: 600
  state:
    description:
      - V(present) runs the statements and returns facts.
      - V(prepared) puts the gate up, on the upstream and then on the replicas. That is a table in schema C(pgml_distributed)
        which is published and subscribed to, with a trigger on the replica. It is refused while another published table is not
        subscribed to, or has no first copy.
      - V(finished) takes it away, on the upstream and then on the replicas. Nothing stays but the comment.
    type: str
    choices: [present, prepared, finished]
    default: present
attributes:
  check_mode:
    support: full
    details:
      - An earlier task of the same play might have put the gate up, or run the statements that come before. So what would be
        refused for want of that is predicted as if it had.
  diff_mode:
    support: full
    details:
      - Returns the statements that it runs or would run.
  idempotent:
    support: full
notes:
  - The login role has to own the publication or subscription, and the tables. O(state=prepared) needs C(CREATE) on the
    database, too.
  - On the upstream a waiting replica holds nothing but WAL, as any subscription that is behind, see C(max_slot_wal_keep_size).
  - Every subscription to the publication receives the gate's rows, and needs the gate on its side, or it stops.
  - When a worker has waited at the gate for more than 20 seconds, or a third of the upstream's C(wal_sender_timeout), it is ended
    once it may go on, and the server starts it again. The replica's log tells of an administrator's command then.
seealso:
  - module: postgresml.distributed.pgml_schema
  - module: postgresml.distributed.pgml_publication
  - module: postgresml.distributed.pgml_subscription
extends_documentation_fragment:
  - postgresml.distributed.attributes
  - postgresml.distributed.attributes.action_group
  - postgresml.distributed.login
  - postgresml.distributed.source
"""

EXAMPLES = r"""
- name: Ask a primary about what a change mentions
  postgresml.distributed.pgml_schema_change:
    publication: pgml_shop
    change: 2f9c0a1b4d3e
    total: 1
    relations: [public.users]
    login_db: shop
  become: true
  become_user: postgres

- name: Add a column on a replica, before the primary
  postgresml.distributed.pgml_schema_change:
    subscription: pgml_shop
    change: 2f9c0a1b4d3e
    total: 1
    statements:
      - number: 1
        sql: ALTER TABLE users ADD COLUMN age int
    login_db: ml
  become: true
  become_user: postgres

- name: Drop a column on the primary
  postgresml.distributed.pgml_schema_change:
    publication: pgml_shop
    change: 77aa01bc23de
    total: 1
    statements:
      - number: 1
        sql: ALTER TABLE users DROP COLUMN age
    login_db: shop
  register: primary

- name: Drop it on a replica that has applied all that was written before
  postgresml.distributed.pgml_schema_change:
    subscription: pgml_shop
    change: 77aa01bc23de
    total: 1
    statements:
      - number: 1
        sql: ALTER TABLE users DROP COLUMN age
    wait_for: "{{ primary.lsn }}"
    login_db: ml

- name: Put the gate up on the replica, when the primary has it
  postgresml.distributed.pgml_schema_change:
    subscription: pgml_shop
    change: 0123456789ab
    total: 1
    source:
      host: 10.0.0.5
      db: shop
      user: pgml_distributor
      password: "{{ vault_pgml_distributor_password }}"
    state: prepared
    login_db: ml

- name: Rename a column on the replica, where the primary has renamed it
  postgresml.distributed.pgml_schema_change:
    subscription: pgml_shop
    change: 0123456789ab
    total: 1
    statements:
      - number: 1
        sql: ALTER TABLE users RENAME COLUMN name TO full_name
    together: true
    login_db: ml

- name: Take the gate away
  postgresml.distributed.pgml_schema_change:
    subscription: pgml_shop
    change: 0123456789ab
    total: 1
    state: finished
    login_db: ml
"""

RETURN = r"""
changes:
  description: What was done, or would be done in check mode, in words and in order.
  type: list
  elements: str
  returned: success
  sample: ["Run statement 1: ALTER TABLE users ADD COLUMN age int"]
progress:
  description: How far the change is on this server.
  type: dict
  returned: with O(state=present), and when a statement failed
  contains:
    done:
      description: How many of its first statements are done.
      type: int
      sample: 2
    total:
      description: How many it has.
      type: int
      sample: 5
    begun:
      description: Whether the next one, which can't run in a transaction, was begun.
      type: bool
      sample: false
other:
  description:
    - Another change that is unfinished on this server, with the keys C(change), C(done), C(total) and C(begun); null without one.
  type: dict
  returned: with O(state=present)
  sample: {"change": "77aa01bc23de", "done": 2, "total": 5, "begun": false}
finished:
  description: The changes that are done on this server, by their ids.
  type: list
  elements: str
  returned: with O(state=present)
  sample: [2f9c0a1b4d3e]
known:
  description: Whether this server remembers the change.
  type: bool
  returned: with O(state=present)
settings:
  description: The settings under which the upstream's statements read and write values, for O(settings) of replicas.
  type: dict
  returned: on the upstream, with O(state=present)
  sample: {"TimeZone": "Etc/UTC", "DateStyle": "ISO, MDY", "IntervalStyle": "postgres", "lc_monetary": "C",
    "extra_float_digits": "1", "bytea_output": "hex"}
lsn:
  description: A position in the upstream's WAL after all that O(statements) did there.
  type: str
  returned: on the upstream, with O(statements), outside of check mode
  sample: 0/1C93398
facts:
  description: What a plan needs to know of the server. What doesn't exist is left out.
  type: dict
  returned: with O(state=present)
  contains:
    version:
      description: The server's version as a number.
      type: int
      sample: 150018
    database:
      description: Name of the database.
      type: str
      sample: shop
    publication:
      description:
        - On the upstream, with the keys C(all_tables), C(schemas), C(via_partition_root), C(publish), and C(others) with the
          publications beside it that take in tables by themselves.
      type: dict
      sample: {"all_tables": false, "schemas": [], "via_partition_root": false, "publish": ["insert", "update"]}
    relations:
      description:
        - Of O(relations), with the keys C(kind) as in C(pg_class.relkind), C(distributed), C(listed) with the columns that the
          publication lists, C(columns), C(key) with the columns of the replica identity, C(identity) as in
          C(pg_class.relreplident), C(identity_index), C(indexes), C(constraints), C(table) of an index, C(unique), C(parent) of
          a partition, C(default) with the default partition of a table and C(parent_default) with that beside a partition,
          C(partitioned_by), C(within) with what partitions forbid by themselves, C(publications) with the others that carry it,
          and C(empty).
      type: dict
      sample: {}
    types:
      description:
        - Of O(types), with the keys C(kind) as in C(pg_type.typtype), C(has_default), C(distributed), C(tables) with the
          distributed tables that have columns of it, and C(publications) with the others that carry these.
      type: dict
      sample: {"public.mood": {"kind": "e", "has_default": false, "distributed": true}}
    functions:
      description: Of O(functions), the volatility as in C(pg_proc.provolatile), of the most volatile when there are several.
      type: dict
      sample: {"now": "s"}
option:
  description: The options with which no connection could be opened, V(login) or V(source).
  type: str
  returned: when a server can't be reached
  sample: source
sqlstate:
  description: PostgreSQL's error code, see U(https://www.postgresql.org/docs/current/errcodes-appendix.html).
  type: str
  returned: when a server refused a statement
  sample: "55P03"
"""

from ansible_collections.postgresml.distributed.plugins.module_utils import task
from ansible_collections.postgresml.distributed.plugins.module_utils.resources import schema_change


def main() -> None:
    task.run(schema_change.OPTIONS, schema_change.manage, **schema_change.CONSTRAINTS)


if __name__ == "__main__":
    main()
