"""The other task queues: each in a virtual environment of its own, with the releases that its ``.txt`` pins.

Each module here runs in its peer's environment, knows its peer alone, and is both its worker's code and, started
as a module, what fills its queue: ``python -m benchmarks.peers.huey note 10000``.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Peer:
    """How a peer works off its queue in one process.

    Attributes:
        worker: its command line for work that does nothing.
        sleeper: the same for 500 tasks that each sleep; empty where one process does one task at a time.
        how: in words.
    """

    name: str
    worker: str
    sleeper: str
    how: str

    @property
    def bin(self) -> Path:
        return ROOT / ".venvs" / self.name / "bin"

    def command(self, line: str) -> list[str]:
        program, *arguments = line.split()
        return [str(self.bin / program), *arguments]

    def fill(self, what: str, count: int) -> list[str]:
        return self.command(f"python -m benchmarks.peers.{self.name} {what} {count}")


PEERS = (
    Peer(
        "dramatiq",
        "dramatiq benchmarks.peers.dramatiq --processes 1 --threads 8",
        "dramatiq benchmarks.peers.dramatiq --processes 1 --threads 500",
        "one process, 8 threads (500 for the sleepers, whose actor is async), its default middleware",
    ),
    Peer(
        "taskiq",
        "taskiq worker benchmarks.peers.taskiq:broker --workers 1 --max-async-tasks 1000 --log-level ERROR",
        "taskiq worker benchmarks.peers.taskiq:broker --workers 1 --max-async-tasks 1000 --log-level ERROR",
        "a Redis stream, one process, async tasks, up to 1,000 at once",
    ),
    Peer(
        "arq",
        "arq benchmarks.peers.arq.Worker",
        "arq benchmarks.peers.arq.Worker",
        "one process, 500 jobs at once, polling every 10 ms, no results kept",
    ),
    Peer(
        "saq",
        "saq benchmarks.peers.saq.settings --quiet",
        "saq benchmarks.peers.saq.sleeping --quiet",
        "one process, 20 jobs at once (500 for the sleepers), no results kept",
    ),
    Peer(
        "huey",
        "huey_consumer benchmarks.peers.huey.huey -k thread -w 4 -n -q",
        "huey_consumer benchmarks.peers.huey.huey -k thread -w 500 -n -q",
        "one process, 4 threads (500 for the sleepers), blocking pops, no results, no scheduler",
    ),
    Peer(
        "faststream",
        "faststream run benchmarks.peers.faststream:app --log-level error",
        "faststream run benchmarks.peers.faststream:app --log-level error",
        "a Redis list, one process, up to 500 messages at once",
    ),
    Peer(
        "rq",
        "rq worker --worker-class rq.worker.SimpleWorker --path . -q",
        "",
        "its SimpleWorker, which forks for no job and runs one at a time; no results kept",
    ),
)
IN_PROCESS = ("pyee", "blinker")


def install(name: str) -> None:
    """Make the environment of a peer, unless it is there and as old as its pins."""
    folder, pins = ROOT / ".venvs" / name, Path(__file__).with_name(f"{name}.txt")
    stamp = folder / ".made"
    if stamp.exists() and stamp.read_text() == pins.read_text():
        return
    print(f"Installing {name} in .venvs/{name}", flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--no-deps", "--requirement", str(pins)], check=True)
    stamp.write_text(pins.read_text())


def versions() -> dict[str, str]:
    """The pinned release of each peer."""
    found = {}
    for name in [*(peer.name for peer in PEERS), *IN_PROCESS]:
        pins = dict(line.split("==") for line in Path(__file__).with_name(f"{name}.txt").read_text().split())
        found[name] = pins[name]
    return found
