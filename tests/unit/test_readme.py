# SPDX-License-Identifier: GPL-3.0-or-later
"""What the README, the other pages and the guides say of this repository is so."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from urllib.parse import unquote

import pytest
import yaml
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.session import OLDEST_VERSION
from ansible_collections.postgresml.distributed.plugins.plugin_utils import request

from tests.support.majors import REPOSITORY, VERSIONS

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
PAGES = sorted([*REPOSITORY.glob("*.md"), *REPOSITORY.glob("roles/*/README.md"), *REPOSITORY.glob("benchmarks/*.md")])
GUIDES = sorted((REPOSITORY / "docs" / "docsite" / "rst").glob("*.rst"))
BADGE = re.compile(r"!\[([^]:]+): ([^]]+)]\(https://img\.shields\.io/badge/(\S+)-blue\)")


def text(*path: str) -> str:
    return REPOSITORY.joinpath(*path).read_text(encoding="utf-8")


def badges() -> dict[str, str]:
    """What each badge shows, by its label."""
    shown = {}
    for label, alternative, path in BADGE.findall(README):
        # A single hyphen separates, two stand for one.
        left, right = unquote(path).replace("--", "\0").split("-")
        shown[label] = right.replace("\0", "-")
        assert left.replace("\0", "-") == label
        assert re.findall(r"[\d.]+", alternative) == re.findall(r"[\d.]+", right)
    return shown


def test_badges_show_what_is_declared_elsewhere() -> None:
    galaxy, runtime = yaml.safe_load(text("galaxy.yml")), yaml.safe_load(text("meta", "runtime.yml"))
    (python,) = re.findall(r"sys\.version_info < \((\d+), (\d+)\)", text("scripts", "venv.sh"))
    assert badges() == {
        "licence": galaxy["license"][0],
        "ansible-core": "≥ " + runtime["requires_ansible"].removeprefix(">=").removesuffix(".0"),
        "PostgreSQL": f"{OLDEST_VERSION // 10000}–{max(VERSIONS)}",
        "Python": "≥ " + ".".join(python),
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_relative_links_lead_to_files(page: Path) -> None:
    for target in re.findall(r"]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" not in target and not target.startswith("#"):
            assert (page.parent / target.partition("#")[0]).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_make_has_the_targets_that_are_named(page: str) -> None:
    named = set(re.findall(r"(?:^|`)make ([a-z-]+)", text(page), re.MULTILINE))
    there = set(re.findall(r"^([a-z-]+):", text("Makefile"), re.MULTILINE))
    assert named and named <= there


def test_every_variable_of_the_playbooks_is_in_the_guide() -> None:
    guide = text("docs", "docsite", "rst", "guide_variables.rst")
    mapping = text("playbooks", "vars", "mapping.yml")
    playbooks = [
        text("playbooks", name)
        for name in (
            "distribute.yml",
            "verify.yml",
            "schema_change.yml",
            "ship_models.yml",
            "status.yml",
            "teardown.yml",
            "tasks/check.yml",
        )
    ]
    read = set(re.findall(r"\b(pgml_[a-z_]+) \| default", mapping + "".join(playbooks)))
    read |= set(re.findall(r"hostvars\[[^]]+]\.(pgml_[a-z_]+)", mapping))
    missing = {name for name in read if not name.startswith("pgml__") and f"``{name}``" not in guide}
    assert read and not missing


@pytest.mark.parametrize("page", ["README.md", "docs/docsite/rst/guide_start.rst"])
def test_the_inventory_that_is_shown_is_sound(page: str) -> None:
    (block,) = re.findall(r"^( *)all:\n((?:\1 .*\n)+)", text(page), re.MULTILINE)
    hosts = yaml.safe_load(textwrap.dedent(f"{block[0]}all:\n{block[1]}"))["all"]
    assert list(hosts["children"]) == ["pgml_primary", "pgml_replicas"]
    assert (
        request.problems(hosts["vars"]["pgml_distributions"], list(hosts["children"]["pgml_replicas"]["hosts"])) == []
    )


def test_every_guide_is_listed_and_has_its_label() -> None:
    listed = yaml.safe_load(text("docs", "docsite", "extra-docs.yml"))["sections"][0]["toctree"]
    assert sorted(listed) == [guide.stem for guide in GUIDES]
    for guide in GUIDES:
        label = f".. _ansible_collections.postgresml.distributed.docsite.{guide.stem}:"
        assert label in guide.read_text(encoding="utf-8")


def test_sentences_in_the_guides_are_those_of_the_code() -> None:
    """Quoted messages go stale otherwise; what varies in them is left out."""
    patterns = ("plugins/**/*.py", "roles/*/tasks/*.yml", "playbooks/**/*.yml")
    sources = [path for pattern in patterns for path in REPOSITORY.glob(pattern)]
    code = _flat(" ".join(path.read_text(encoding="utf-8") for path in sources))
    trouble = (REPOSITORY / "docs" / "docsite" / "rst" / "guide_trouble.rst").read_text(encoding="utf-8")
    for block in re.findall(r"code-block:: text\n\n((?:    .*\n)+)", trouble):
        assert any(_flat(fragment) in _flat(block) for fragment in SENTENCES), block
    for fragment in SENTENCES:
        assert _flat(fragment) in code, fragment
        assert any(_flat(fragment) in _flat(guide.read_text(encoding="utf-8")) for guide in GUIDES), fragment


SENTENCES = [
    "Can't connect to",
    "The connection to",
    "was lost:",
    "must be restarted before",
    "restart it yourself, or allow it with",
    "No lock within",
    "Try again when that has ended.",
    "transactions kept running for",
    "Nothing was changed; try again when they have ended.",
    "UPDATE and DELETE would fail on the primary once published",
    "Nothing was changed, for this stands against it:",
    "which takes a restart:",
    "and the first copy would add to them: empty",
    "or set pgml_logical_seed to none if the rows are right.",
    "Tables exist on the target and don't fit the source",
    "The subscription and its slot stay, and a rerun goes on where it stopped.",
    "The subscription and its slot were removed again.",
    "were cloned from one cluster (system identifier",
    "Give each of them a cluster that initdb made.",
    "may be left on the upstream, where it holds back WAL until it is dropped",
    "the replica's log says why. Rows that the tables already hold are the usual reason.",
    "it is disabled, after an error that the replica's log tells.",
    "The copy goes on.",
    "has lost its WAL",
    "changes since then are missing here. Remove the subscription with state=absent, empty its tables, and create it again.",
    "Slots of distributions that are not listed any more, which hold back WAL when nobody reads them",
    "which doesn't exist: use",
    "it is managed, so set them where its service is.",
    "and has physical standbys, which stop when theirs is lower",
    "was not filled in this run, and",
    "takes its rows from there: let --limit include it, or run with pgml_dump_fan_out=primary.",
    "on tables that are to be exchanged: drop",
    ", or use replace=truncate, which keeps tables",
    "The tables need extension",
    "doesn't have: install its package there.",
    "let it end first.",
    "in which the source writes",
    "of which half may be used: make room, or copy when less is written.",
    "it would be lost. Raise that, or copy when less is written.",
    "A database of the source has rows that are",
    "are the most for a snapshot that is held for long: let VACUUM freeze them first.",
    "Connections (max_connections, or the role's limit) to the source",
    "The first copy is made by PostgreSQL itself, because",
    "the role that logs in to the target may not set session_replication_role",
    "which is not possible because",
    "by TRUNCATE, a rewrite or another name: nothing was copied.",
    "were altered meanwhile",
    "What is written while it isn't published is never sent: remove the copy with state=absent and begin anew.",
    "idle_replication_slot_timeout): allow more there and run it again, which begins anew.",
    "could not be",
    "What was copied stays, and a rerun goes on where this one stopped, within",
    "minutes if rows are still to come; state=absent removes it.",
    "All sessions that keep the snapshot at",
    "were lost, so that what is not copied yet can't be read any more.",
    "What was begun is still there, because:",
    "The next run removes it, or state=absent.",
    "was left NOT VALID, because the rows that are replicated violate it",
    "has its rows, and is",
    "can't read",
    "Foreign tables are not like the source's any more:",
    "on_drift=reimport replaces them.",
    "Something here depends on what is to be dropped:",
    "The source doesn't evaluate all of the condition of",
    "so that more rows come than it selects.",
    "there already and",
    "or choose another local_schema.",
    "on the target: add it there with ALTER TYPE ... ADD VALUE.",
    "It goes on.",
    "The statements can't be read",
    "The schema change can't be rolled out",
    "Nothing of it stays",
    "no statement of it is done",
    "Mend what stopped it and run the same again, which goes on from there, or give it up with -e pgml_schema_change_abandon=",
    "and a change that takes back what is done.",
    "has stopped, with",
    "statements done. The failure above says why.",
    "It has to catch up before definitions are changed, since the change would wait for it midway.",
    "can't apply changes",
    "can't apply what the upstream wrote: it failed",
    "These statements were run before",
    "and others since. To run them once more, give that another name, with -e pgml_schema_change_id=NAME.",
    "What was committed until then is remembered: running the same schema change again goes on from there.",
    "had not applied the changes before",
    "allow a longer timeout. Running the same again goes on from there.",
    "Another schema change comes first",
    "is unfinished, with",
    "A schema change is for all servers of a distribution at once, and --limit leaves out",
]


def _flat(written: str) -> str:
    """One line, in which Python's and YAML's ways to break strings don't show."""
    joined = re.sub(r"""["']\s*\n\s*["']""", "", written)
    return re.sub(r"\s+", " ", joined.replace("\\'", "'")).replace("`", "").replace("*", "")
