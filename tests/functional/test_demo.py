"""``make demo``: shows the quickstart, ends by itself, leaves nothing behind."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.workers import Process, run

EXAMPLES = Path(__file__).parents[2] / "examples"
DEMO = (sys.executable, str(EXAMPLES / "demo.py"))
PROC = Path("/proc")

needs_proc = pytest.mark.skipif(not PROC.exists(), reason="reads the list of processes from /proc")


def living() -> dict[int, int]:
    """The parent of each process that has not ended."""
    parents = {}
    for stat in PROC.glob("[0-9]*/stat"):
        try:
            state, parent, *_ = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended meanwhile
        if state != "Z":
            parents[int(stat.parent.name)] = int(parent)
    return parents


def descendants(pid: int) -> set[int]:
    """The processes that a process has started, and those that these have started."""
    parents = living()
    found: set[int] = set()
    while fresh := {each for each, parent in parents.items() if parent in found | {pid}} - found:
        found |= fresh
    return found


def assert_gone(processes: set[int]) -> None:
    deadline = time.monotonic() + 5
    while left := processes & living().keys():
        assert time.monotonic() < deadline, [(PROC / str(pid) / "cmdline").read_bytes() for pid in left]
        time.sleep(0.02)


def interrupt_group(demo: Process) -> None:
    os.killpg(demo.pid, signal.SIGINT)


def interrupt_alone(demo: Process) -> None:
    demo.signal(signal.SIGINT)


def terminate(demo: Process) -> None:
    demo.signal(signal.SIGTERM)


def test_shows_every_handler_and_ends_by_itself(tmp_path: Path) -> None:
    with run(DEMO, cwd=tmp_path, log=tmp_path / "demo.log") as demo:
        assert demo.wait(timeout=55) == 0, demo.log()
        log = demo.log()
    in_order = ["broker ", "worker ", "emitter ", "returned after", "Starting the sync slow process...", "side by side"]
    assert sorted(in_order, key=log.index) == in_order, log
    assert log.count("Finishing the") == 2, log


@needs_proc
@pytest.mark.parametrize("stage", ["broker ", "worker ", "Starting the sync slow process..."])
@pytest.mark.parametrize("end", [interrupt_group, interrupt_alone, terminate])
def test_leaves_nothing_behind_when_ended(end: Callable[[Process], None], stage: str, tmp_path: Path) -> None:
    with run(DEMO, cwd=tmp_path, log=tmp_path / "demo.log") as demo:
        demo.wait_for(stage)
        started = descendants(demo.pid)
        assert started
        end(demo)
        number = signal.SIGTERM if end is terminate else signal.SIGINT
        assert demo.wait(timeout=5) == 128 + number, demo.log()
        assert_gone(started)


@needs_proc
def test_leaves_nothing_behind_when_it_fails(tmp_path: Path) -> None:
    """Here because the worker does not know the broker's protocol, and ends."""
    env = {"PYVENTUS_BROKER_URL": "nonsense://localhost"}
    with run(DEMO, cwd=tmp_path, log=tmp_path / "demo.log", env=env) as demo:
        demo.wait_for("broker ")
        started = descendants(demo.pid)
        assert demo.wait() == 1, demo.log()
        assert "the worker ended" in demo.log()
        assert_gone(started)
