# SPDX-License-Identifier: GPL-3.0-or-later
"""Physical seeds that are cut off, run out of room, are given up or don't start: the old cluster serves, and nothing is left."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest

from tests.support import copies, physical, rooms
from tests.support.cluster import Cluster, server_account
from tests.support.copies import Process
from tests.support.pair import wait_for
from tests.support.physical import Seeding, identifier, programs_on
from tests.support.steps import PAUSED, Plan

pytestmark = pytest.mark.slow

COPYING = "SELECT 1 FROM pg_stat_progress_basebackup WHERE phase = 'streaming database files'"
SLOWLY = "1M"
BEFORE_RECOVERY = "server.log"


@pytest.fixture(scope="module")
def templates() -> Iterator[list[Cluster]]:
    with physical.templates() as made:
        yield made


@pytest.fixture
def two(templates: list[Cluster]) -> Iterator[Seeding]:
    with physical.seeding(templates) as made:
        made.replica.sql("CREATE TABLE old AS SELECT 42 AS answer")
        yield made


def serves_the_old(two: Seeding) -> None:
    assert two.replica.sql("SELECT answer FROM old") == [(42,)]
    two.assert_nothing_left()


def failure(process: Process, *words: str) -> str:
    result = process.finish()
    assert result.get("failed"), result
    message: str = result["msg"]
    assert any(word in message for word in words), message
    assert message.endswith(".") and "\n" not in message, message
    return message


def paused(process: Process) -> Path:
    file = process.notes / PAUSED
    copies.until(process, file.exists, "the pause")
    return file


def files_come(two: Seeding, process: Process) -> None:
    """Wait until they do; a slow copy waits for a spread checkpoint before."""
    copies.until(process, lambda: two.primary.sql("SELECT 1 FROM pg_stat_progress_basebackup"), "the base backup")
    two.primary.sql("CHECKPOINT")
    copies.until(process, lambda: two.primary.sql(COPYING), "the files")


def test_primary_restarts_while_files_come(two: Seeding, tmp_path: Path) -> None:
    with two.process(tmp_path, "prepared", max_rate=SLOWLY) as process:
        files_come(two, process)
        two.primary.restart()
        failure(process, "was not copied: pg_basebackup said: ")
        serves_the_old(two)
    two.seed()
    two.assert_done()


def test_primary_restarts_while_the_copy_recovers(two: Seeding, tmp_path: Path) -> None:
    two.source.sql("INSERT INTO t (v) SELECT 'early' FROM generate_series(1, 9)")
    with two.process(tmp_path, "prepared", Plan("", pause=BEFORE_RECOVERY)) as process:
        file = paused(process)
        two.primary.stop("immediate")
        file.unlink()
        time.sleep(1)
        assert not process.ended and programs_on(two.work)
        two.primary.start()
        two.source.sql("INSERT INTO t (v) SELECT 'late' FROM generate_series(1, 9)")
        result = process.finish()
        assert not result.get("failed"), result["msg"]
        two.swap()
        two.step("finished")
    two.assert_done()


@pytest.mark.sampled(0)
def test_primary_goes_away_for_good(two: Seeding, tmp_path: Path) -> None:
    """The slots are dropped when it is back, by the process that guards them."""
    quick = {"resources.physical_copy._PROBE_SECONDS": 0.2, "insight.subscribed.SILENCE_SECONDS": 1}
    with two.process(tmp_path, "prepared", Plan("", pause=BEFORE_RECOVERY, constants=quick)) as process:
        file = paused(process)
        two.primary.stop("immediate")
        file.unlink()
        failure(process, "Connection refused")
        assert programs_on(two.work) == []
        two.primary.start()
        wait_for(lambda: not two.slots(), 20, "the slots to go")
        two.resume()
    two.assert_done()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_ended_while_files_come(two: Seeding, tmp_path: Path, how: signal.Signals) -> None:
    with two.process(tmp_path, "prepared", max_rate=SLOWLY) as process:
        files_come(two, process)
        os.kill(process.pid, how)
        process.wait(20)
        wait_for(lambda: not two.slots(), 10, "the slots to go")
        if how == signal.SIGINT:
            serves_the_old(two)
        two.resume()
        assert programs_on(two.work) == []
    two.assert_done()


@pytest.mark.sampled(0)
def test_interrupted_while_the_copy_recovers(two: Seeding, tmp_path: Path) -> None:
    with two.process(tmp_path, "prepared", Plan("", pause="ran: pg_ctl start")) as process:
        paused(process)
        assert two.slots() and programs_on(two.work)
        os.kill(process.pid, signal.SIGINT)
        process.wait(20)
        serves_the_old(two)


@pytest.mark.sampled(0)
def test_killed_and_given_up(two: Seeding, tmp_path: Path) -> None:
    """A server that a dead run has left on the copy is ended with it."""
    with two.process(tmp_path, "prepared", Plan("", kill="ran: pg_ctl start")) as process:
        process.wait(20)
        assert programs_on(two.work)
        assert two.step("absent", check=True)["changed"] and two.work.exists()
        assert two.step("absent")["changed"]
        serves_the_old(two)
        assert not two.step("absent")["changed"]
        wait_for(lambda: not process.outliving(), 20, "what it has started to end")


def test_a_copy_that_is_ready_is_given_up(two: Seeding) -> None:
    two.prepare()
    two.step("absent", subscriptions=None)
    serves_the_old(two)
    two.seed()
    two.assert_done()


@pytest.mark.sampled(0)
def test_a_ready_copy_is_made_anew_for_other_slots(two: Seeding) -> None:
    two.prepare()
    two.slot = "another"
    two.prepare()
    assert two.slots() == {"another"}
    two.swap()
    assert (
        "was copied for other slots (another)"
        in two.run("prepared", subscriptions=[two.subscription(slot_name="b")])["msg"]
    )
    two.step("finished")
    two.assert_done()


def test_a_ready_copy_that_has_lost_its_slot_is_made_anew(two: Seeding) -> None:
    two.prepare()
    two.primary.sql("SELECT pg_drop_replication_slot(%s)", [two.slot])
    two.source.sql("INSERT INTO t (v) VALUES ('meanwhile')")
    two.seed()
    two.assert_done()


def test_nobody_goes_on_with_a_ready_copy(two: Seeding, tmp_path: Path) -> None:
    short = {"transfer.slot_guard.GRACE_SECONDS": 1}
    with two.process(tmp_path, "prepared", Plan("", constants=short)) as process:
        assert process.finish()["phase"] == "ready"
        wait_for(lambda: not two.slots(), 20, "the slots to go")
        wait_for(lambda: not process.outliving(), 10, "their guard to end")
    two.resume()
    two.assert_done()


@pytest.mark.parametrize("broken", ["pg_hba.conf", "global/pg_control"])
def test_the_new_cluster_does_not_start(two: Seeding, broken: str) -> None:
    before = identifier(two.replica)
    two.prepare()
    two.replica.stop()
    two.step("exchanged")
    (two.replica.data / broken).unlink()
    with pytest.raises(RuntimeError, match="pg_ctl start failed"):
        two.replica.start()
    two.step("absent")
    two.replica.start()
    assert identifier(two.replica) == before
    serves_the_old(two)
    two.seed()
    two.assert_done()


def test_a_server_that_runs_is_not_turned_back(two: Seeding) -> None:
    two.prepare()
    two.swap()
    assert two.run("absent")["msg"] == f"A server runs on {two.replica.data}: stop it first."
    two.step("finished")
    two.assert_done()


def test_the_slot_is_lost_after_the_exchange(two: Seeding) -> None:
    two.prepare()
    two.replica.stop()
    two.step("exchanged")
    two.primary.sql("SELECT pg_drop_replication_slot(%s)", [two.slot])
    two.replica.start()
    assert two.step("prepared")["phase"] == "lost"
    message = two.run("finished")["msg"]
    assert f'Slot "{two.slot}" of subscription sub is gone' in message
    two.replica.stop()
    two.step("absent")
    two.replica.start()
    serves_the_old(two)


@pytest.mark.sampled(0)
def test_the_old_cluster_is_half_removed(two: Seeding) -> None:
    two.prepare()
    two.swap()
    for name in ("PG_VERSION", "base"):
        path = two.work / "data" / name
        path.unlink() if path.is_file() else shutil.rmtree(path)
    two.step("finished")
    two.assert_done()


@pytest.mark.sampled(0)
def test_the_old_cluster_is_kept_by_a_run_that_ended_there(two: Seeding) -> None:
    two.prepare(keep_old_cluster=True)
    two.swap(keep_old_cluster=True)
    (two.work / "data").rename(two.kept)
    two.step("finished", keep_old_cluster=True)
    assert two.kept.exists()
    two.assert_done()


def test_a_transaction_that_never_ends_on_the_primary(two: Seeding, tmp_path: Path) -> None:
    with closing(two.primary.connect("shop", autocommit=False)) as connection, connection.cursor() as cursor:
        cursor.execute("INSERT INTO t (v) VALUES ('long')")
        impatient = Plan("", constants={"resources.slot._PATIENCE": "500 ms"})
        with two.process(tmp_path, "prepared", impatient) as process:
            message = failure(process, "transaction")
            assert str(connection.get_backend_pid()) in message, message
        serves_the_old(two)


@contextmanager
def small_disk(templates: list[Cluster], size: str) -> Iterator[tuple[Seeding, Path]]:
    """A replica whose file system is small."""
    directory = Path(tempfile.mkdtemp(prefix="pgml-small-"))
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=0755", "pgml-small", str(directory)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        directory.rmdir()
        pytest.skip("a small file system can't be mounted by this user")
    try:
        account = server_account()
        shutil.chown(directory, account["user"], account["group"])
        with physical.seeding(templates) as two:
            two.replica.stop()
            moved = two.replica.directory
            two.replica.directory = directory / "replica"
            two.replica.data = two.replica.directory / "data"
            subprocess.run(["cp", "-a", moved, two.replica.directory], check=True)
            shutil.rmtree(moved)
            two.replica.start()
            two.replica.sql("CREATE TABLE old AS SELECT 42 AS answer")
            yield two, directory
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=True)
        directory.rmdir()


def leave_nothing(disk: Path) -> None:
    """Take all the room there is, while a server may take some, too."""
    for room in (50_000, 1 << 20, 4 << 20):
        with suppress(OSError):
            rooms.fill(disk, room)
            return


def test_disk_runs_full(templates: list[Cluster], tmp_path: Path) -> None:
    with small_disk(templates, "256m") as (two, disk):
        rooms.fill(disk, 20 << 20)
        (problem,) = two.run("prepared")["problems"]
        assert problem.startswith("The cluster takes ") and problem.endswith(
            "the old one stays until the new one streams."
        )
        rooms.clear(disk)
        for pause in ("pg_create_physical", "slot guard: created", "ran: pg_ctl start"):
            with two.process(tmp_path, "prepared", Plan("", pause=pause)) as process:
                file = paused(process)
                leave_nothing(disk)
                file.unlink()
                result = process.finish()
            rooms.clear(disk)
            if result.get("failed"):
                # The log of the copy's server has no room either, so that it may lack the reason.
                reasons = ("No space left", "could not extend", "could not write", "The copied cluster ")
                assert any(words in result["msg"] for words in reasons), result["msg"]
            else:
                # What the copy had yet to write may have found room in its own files.
                assert pause == "ran: pg_ctl start"
                two.step("absent")
            serves_the_old(two)
        two.seed()
        two.assert_done()


def test_a_run_while_another_one_is_at_it(two: Seeding, tmp_path: Path) -> None:
    with two.process(tmp_path, "prepared", Plan("", pause=BEFORE_RECOVERY)) as process:
        file = paused(process)
        message = two.run("prepared")["msg"]
        assert message == f"Another run is about to replace the cluster in {two.replica.data}."
        file.unlink()
        assert process.finish()["phase"] == "ready"
    assert two.prepare()["changes"] == ["Go on with the copied cluster, which is ready"]
    two.swap()
    two.step("finished")
    two.assert_done()


def test_a_copy_whose_slot_has_gone_takes_no_place(two: Seeding) -> None:
    two.prepare()
    two.primary.sql("SELECT pg_drop_replication_slot(%s)", [two.slot])
    two.replica.stop()
    message = two.run("exchanged")["msg"]
    assert message == "The slots of the copy are gone, so that it is of no use any more: begin anew."
    two.replica.start()
    assert two.replica.sql("SELECT answer FROM old") == [(42,)]
    two.seed()
    two.assert_done()
