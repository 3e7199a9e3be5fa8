"""One thing is done by one worker, whatever becomes of the others."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from workplace import forked

from duet_unlearn.sweep import claims
from duet_unlearn.sweep.claims import Lost, claim

NOBODY = 2**22 + 1
"""Above the largest process id that Linux gives."""


def write(file: Path, *, place: str, pid: int, silent: float) -> Path:
    """A claim of somebody else."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"place": place, "pid": pid}))
    os.utime(file, (time.time() - silent,) * 2)
    return file


def test_a_claim_excludes_others_until_it_is_given_back(tmp_path: Path) -> None:
    with claim(tmp_path, "run") as first:
        assert first is not None
        assert claims.active(tmp_path) == 1
        with claim(tmp_path, "run") as second, claim(tmp_path, "other") as third:
            assert second is None
            assert third is not None
            assert claims.active(tmp_path) == 2
    with claim(tmp_path, "run") as again:
        assert again is not None
        assert again.died == 0


def test_an_error_gives_a_claim_back(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), claim(tmp_path, "run"):
        raise KeyboardInterrupt
    assert claims.active(tmp_path) == 0


@pytest.mark.parametrize(
    ("elsewhere", "pid", "silent", "taken"),
    [
        (False, NOBODY, 0, True),  # its process is gone
        (False, os.getpid(), 60, False),
        (True, NOBODY, 60, False),  # of another machine's processes nothing is known
        (True, NOBODY, 130, True),  # but they would have touched it
        (False, os.getpid(), 130, True),  # a process id that is another's by now
    ],
    ids=["dead", "alive", "elsewhere", "elsewhere and silent", "silent"],
)
def test_a_dead_workers_claim_is_taken_over(
    elsewhere: bool, pid: int, silent: float, taken: bool, tmp_path: Path
) -> None:
    write(tmp_path / "run" / "1", place="elsewhere" if elsewhere else claims.place(), pid=pid, silent=silent)
    with claim(tmp_path, "run") as mine:
        assert (mine is not None) == taken
        if mine:
            assert mine.died == 1
            assert mine.file.name == "2"


def test_a_claim_that_was_begun_and_never_written_goes_stale(tmp_path: Path) -> None:
    file = write(tmp_path / "run" / "1", place="", pid=0, silent=0)
    file.write_text("")
    with claim(tmp_path, "run") as mine:
        assert mine is None
    os.utime(file, (time.time() - 130,) * 2)
    with claim(tmp_path, "run") as mine:
        assert mine is not None


def test_a_held_claim_is_touched(tmp_path: Path) -> None:
    with claim(tmp_path, "run", beat=0.01) as mine:
        assert mine is not None
        os.utime(mine.file, (0, 0))
        wait(lambda: mine.file.stat().st_mtime > 1)
        mine.check()


def test_a_worker_that_was_only_asleep_lets_go(tmp_path: Path) -> None:
    with claim(tmp_path, "run", beat=0.01) as sleeper:
        assert sleeper is not None
        higher = write(sleeper.file.with_name("2"), place="elsewhere", pid=1, silent=0)
        wait(sleeper.lost.is_set)
        with pytest.raises(Lost):
            sleeper.check()
    assert higher.exists()
    with claim(tmp_path, "run") as mine:
        assert mine is None  # the other's


def test_of_a_finished_run_nothing_is_left(tmp_path: Path) -> None:
    write(tmp_path / "run" / "1", place="elsewhere", pid=1, silent=0)
    claims.forget(tmp_path, "run")
    assert list(tmp_path.iterdir()) == []


def test_many_processes_at_once(tmp_path: Path) -> None:
    """A dead worker's claim lies on each of fifty things; of six processes one gets it, while it is held."""
    names = 50
    for name in range(names):
        write(tmp_path / str(name) / "1", place=claims.place(), pid=NOBODY, silent=0)
    processes = [forked(hold, tmp_path, names) for _ in range(6)]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert sorted(path.name for path in tmp_path.glob("alone-*")) == []
    assert len(list(tmp_path.glob("had-*"))) == names


def hold(folder: Path, names: int) -> None:
    """Inside a claim nobody else is: an exclusive file would say so."""
    for name in range(names):
        with claim(folder, str(name)) as mine:
            if mine:
                inside = folder / f"alone-{name}"
                inside.touch(exist_ok=False)
                time.sleep(0.001)
                inside.unlink()
                (folder / f"had-{name}").touch()


def test_a_killed_process_leaves_a_claim_that_the_next_takes(tmp_path: Path) -> None:
    process = forked(sleep_inside, tmp_path)
    wait(lambda: claims.active(tmp_path) == 1)
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join(10)
    with claim(tmp_path, "run") as mine:
        assert mine is not None
        assert mine.died == 1


def sleep_inside(folder: Path) -> None:
    with claim(folder, "run"):
        time.sleep(60)


def wait(until: Callable[[], object]) -> None:
    start = time.monotonic()
    while not until():
        assert time.monotonic() - start < 20
        time.sleep(0.005)
