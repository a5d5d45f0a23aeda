#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# Copyright (c) 2026, the postgresml.distributed contributors

from __future__ import annotations

DOCUMENTATION = r"""
module: pgml_models
short_description: Ship trained models between PostgresML servers, so that they are served
version_added: 1.0.0
author:
  - The postgresml.distributed contributors (@postgresml)
description:
  - Copies trained models of extension C(pgml) from a source to the target, deploys them there, and compares what both predict.
  - C(pg_dump) leaves out the rows of an extension's tables, and rows that are copied by hand are not served, because the server
    remembers in shared memory which model a project has deployed, and each session which one it has loaded.
  - Each model comes in one transaction, with its project if that is new, its snapshot and its files, under ids of the target's
    own. In the same transaction it is loaded, and must predict the same as on the source, before anybody sees it. Then
    C(pgml.deploy) has all sessions of the server serve it, those included that have an older model in memory.
  - A project is known by its name. A model that was shipped before is recognised by its SHA-256 digest, and is not shipped again.
options:
  source:
    description:
      - The database that has the models, as it is reached from where the module runs. Needed with O(state=present).
      - Its role needs C(USAGE) on schema C(pgml), and C(SELECT) on C(projects), C(snapshots), C(models), C(files) and
        C(deployments) there.
  projects:
    description:
      - Names of the projects whose models are shipped, exact. Without it, all of the source's projects that have a model which
        O(which) selects, and with O(state=absent) all projects to which models were shipped.
    type: list
    elements: str
  which:
    description:
      - V(deployed) is the model that each project serves on the source, V(latest) the one with the highest id, and V(best)
        the one with the best C(r2), C(f1), C(silhouette) or C(cumulative_explained_variance), as its task has it.
      - A list of ids that models have on the source means these.
    type: raw
    default: deployed
  deploy:
    description:
      - Whether the target serves the models. With V(false) they come and can be asked by their ids, RV(models[].model), and
        several of one project can come at once.
      - A project that serves another model on the target is changed to this one, also when it came before. So a rollback on the
        source is repeated on the target by the next run.
    type: bool
    default: true
  prune:
    description:
      - How many shipped models of each project stay on the target. The oldest others are removed, but none that is served and
        none that was trained there. Without it, all stay.
    type: int
  verify:
    description:
      - Whether what a model predicts is compared with the source, when it comes and, in a new session, on each run.
      - It is done for models of regression, classification and clustering. For others RV(models[].verified) is V(false), and
        C(pgml.deploy) is the first to load them.
      - Numbers may differ by a hundred thousandth of the largest one, since processors do.
      - Both servers load the models for it, into the memory of one session.
    type: bool
    default: true
  trust_source:
    description:
      - Whether models may come that run code when they are loaded. Those with C(runtime) V(python) are pickles, and whoever can
        write C(pgml.files) on the source has them run anything as the target's operating system user.
      - With V(false), only models with C(runtime) V(rust) can be shipped.
    type: bool
    default: false
  state:
    description:
      - V(absent) removes the models that were shipped. A project goes back to the newest deployment of a model of its own, if it
        has one. Projects stay, because sessions remember them by their ids.
    type: str
    choices: [present, absent]
    default: present
attributes:
  check_mode:
    support: full
    details:
      - What a model predicts is not compared then, for it would have to come first.
  diff_mode:
    support: full
    details:
      - Models are shown by their digests.
  idempotent:
    support: full
notes:
  - Source and target need the same version of C(pgml), and for Python models the same versions of Python and of the packages
    that the model needs. Otherwise nothing is changed.
  - What is remembered is in table C(pgml_distributed.models) of the target's database, from the same transaction as the model.
  - A project of the target that has models of its own is refused, for it would alternate between them and those that are
    shipped. Delete them there, rename the project on the source, or use O(deploy=false). After a rename, sessions that have asked
    for the old name have to reconnect.
  - On the source, one transaction reads what is shipped, from one moment, with C(ACCESS SHARE) locks on these five tables, and
    holds back C(VACUUM) until the models are served. Each run has both servers compute the digests of the models that O(which)
    selects, for which they read their files.
  - Models with several files are refused, as language models have them, because C(pgml.deploy) can't load them by their ids.
  - A server remembers by the ids of projects alone which models are deployed, so it must have C(pgml) in one database only, and
    1023 projects that serve a model at most. Source and target can't be on one server.
  - Deployments are dated without a time zone, and the latest is served. This module dates them in UTC, and warns when sessions of
    the target have another time zone by default.
  - A superuser can log in for it, or a role with C(SELECT), C(INSERT) and C(DELETE) on the five tables and C(USAGE) on their
    sequences, that may create a schema in the database. A sequence that is behind can be advanced by its owner only.
  - What fails for one model doesn't keep the others waiting. The task fails in the end and says what it was.
  - A session that has loaded a model keeps it in memory until it ends, also when the model was removed.
  - A read-only standby is refused. It gets what is shipped to its primary with the WAL.
  - One run at a time ships to a database. Another one waits for it, 60 seconds at most.
seealso:
  - module: postgresml.distributed.pgml_dump_restore
  - ref: ansible_collections.postgresml.distributed.docsite.guide_models
    description: Why other ways don't work, and what is done instead.
extends_documentation_fragment:
  - postgresml.distributed.attributes
  - postgresml.distributed.attributes.action_group
  - postgresml.distributed.login
  - postgresml.distributed.source
"""

EXAMPLES = r"""
- name: Serve here what the trainer serves
  postgresml.distributed.pgml_models:
    source: &trainer
      host: 10.0.0.9
      db: ml
      user: pgml_shipper
      password: "{{ vault_pgml_shipper_password }}"
    trust_source: true
    prune: 3
    login_db: ml
  become: true
  become_user: postgres

- name: Ship the best model of one project, and look at it before it is served
  postgresml.distributed.pgml_models:
    source: *trainer
    projects: [churn]
    which: best
    deploy: false
    trust_source: true
    login_db: ml
  become: true
  become_user: postgres
  register: candidate

- name: Serve a model by the id that it has on the trainer
  postgresml.distributed.pgml_models:
    source: *trainer
    which: [42]
    trust_source: true
    login_db: ml
  become: true
  become_user: postgres

- name: Remove what was shipped
  postgresml.distributed.pgml_models:
    state: absent
    login_db: ml
  become: true
  become_user: postgres
"""

RETURN = r"""
changes:
  description: What was done, or would be done in check mode, in words and in order. Models have the ids of the source.
  type: list
  elements: str
  returned: success
  sample:
    - Ship model 42 of project "churn" (random_forest, 3 MB)
    - Deploy model 42 of project "churn"
models:
  description: The models that O(which) selects.
  type: list
  elements: dict
  returned: when O(state=present) and the source has the extension
  contains:
    project:
      description: Name of its project.
      type: str
      sample: churn
    source_model:
      description: Its id on the source.
      type: int
      sample: 42
    model:
      description: Its id on the target. In check mode none, when it has not come yet.
      type: int
      sample: 7
    algorithm:
      description: What it was trained by.
      type: str
      sample: random_forest
    runtime:
      description: V(python) or V(rust).
      type: str
      sample: python
    bytes:
      description: Size of its file.
      type: int
      sample: 3145728
    digest:
      description: SHA-256 of its file and of what says how it is asked, in hexadecimal.
      type: str
      sample: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
    shipped:
      description: Whether it came now.
      type: bool
      sample: true
    deployed:
      description: Whether it was deployed now.
      type: bool
      sample: true
    verified:
      description: Whether a new session was seen to predict the same as the source.
      type: bool
      sample: true
option:
  description: The options with which no connection could be opened, V(login) or V(source).
  type: str
  returned: when a server can't be reached
  sample: source
sqlstate:
  description: PostgreSQL's error code, see U(https://www.postgresql.org/docs/current/errcodes-appendix.html).
  type: str
  returned: when a server refused a statement
  sample: "42501"
"""

from ansible_collections.postgresml.distributed.plugins.module_utils import task
from ansible_collections.postgresml.distributed.plugins.module_utils.resources import models


def main() -> None:
    task.run(models.OPTIONS, models.manage)


if __name__ == "__main__":
    main()
