"""Workers under load that are started again when they die, and the account of what became of each emission."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any
from uuid import uuid4

import kombu

from tests.brokers import RabbitMQ
from tests.chaos.notes import count
from tests.functional.apps.support import ROOT, new_queue
from tests.workers import QUICK_START, Process

PREFORK = ("-P", "prefork", "-c", "2")
THREADS = ("-P", "threads", "-c", "4")
# Celery's own options, so that what a killed worker had comes back after seconds, and not after an hour. A worker that
# is killed while it restores leaves a lock behind that keeps all others from restoring, by default for five minutes.
QUICK_RESTORES: dict[str, Any] = {
    "broker_transport_options": {
        "visibility_timeout": 10,
        "unacked_restore_interval": 1,
        "unacked_restore_throttle": 1,
        "unacked_mutex_expire": 2,
        "dead_after": 1.5,
    }
}
POLL_SECONDS = 0.05
# Looks at a Redis that has nothing left, one after the other, before what is missing counts as lost.
LOOKS = 40
KILL_SECONDS = (0.3, 1.5)
# Of load_app.
HANDLERS = ("sync", "async", "flaky")

Effect = tuple[str, int]


# -- Workers ----------------------------------------------------------------------------------------------------------


class Crew:
    """Workers of one app; `tend` starts those again that have ended, as a supervisor does."""

    def __init__(self, app: str, folder: Path, env: Mapping[str, str]) -> None:
        self.deaths = 0
        self._app = app
        self._folder = folder
        self._env = env
        self._workers: dict[Process, tuple[str, ...]] = {}
        self._ended: list[Process] = []

    def start(self, *options: str) -> Process:
        name = f"chaos-{uuid4().hex[:8]}"
        command = [sys.executable, "-m", "celery", "-A", self._app, "worker", "-n", f"{name}@%h", "-l", "INFO"]
        log = self._folder / f"{name}.log"
        process = Process([*command, *QUICK_START, *options], cwd=ROOT, log=log, env=self._env)
        self._workers[process] = options
        return process

    def tend(self) -> None:
        for process, options in list(self._workers.items()):
            if process.process.poll() is not None:
                self.deaths += 1
                self._ended.append(process)
                del self._workers[process]
                self.start(*options)

    def victims(self) -> list[int]:
        """The ids of all processes, those of the pools included."""
        mains = [process.pid for process in self._workers if process.process.poll() is None]
        return mains + [child for main in mains for child in _children(main)]

    def stop(self) -> None:
        """A warm shutdown of all, side by side."""
        for process in self._workers:
            process.signal(signal.SIGTERM)
        for process in self._workers:
            process.stop(timeout=20)
        self._ended += self._workers
        self._workers.clear()

    def close(self) -> None:
        """End what is left of them, orphans included."""
        for process in (*self._workers, *self._ended):
            process.kill()

    def log(self) -> str:
        return "".join(process.log() for process in (*self._ended, *self._workers))


def _children(pid: int) -> list[int]:
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False)
    return [int(child) for child in found.stdout.split()]


@contextlib.contextmanager
def crew(app: str, folder: Path, env: Mapping[str, str], *workers: tuple[str, ...]) -> Iterator[Crew]:
    """Start workers, and wait until they are ready; nothing of them is left when the block ends."""
    made = Crew(app, folder, env)
    try:
        for process in [made.start(*options) for options in workers]:
            process.wait_for(" ready.", timeout=60)
        yield made
    finally:
        made.close()


@dataclass
class Killer:
    """Kills one of a crew's processes now and then, whichever it is and whatever it is at."""

    crew: Crew
    random: Random
    kills: int = 0
    _due: float = field(default_factory=time.monotonic)

    def strike(self) -> None:
        """Kill if it is time."""
        if time.monotonic() < self._due:
            return
        self._due = time.monotonic() + self.random.uniform(*KILL_SECONDS)
        # None: all are being started.
        with contextlib.suppress(ProcessLookupError, IndexError):
            os.kill(self.random.choice(self.crew.victims()), signal.SIGKILL)
            self.kills += 1


# -- Brokers ----------------------------------------------------------------------------------------------------------


def waiting(url: str, queue: str) -> int:
    """How many messages wait in a queue, or on Redis have not been acknowledged."""
    if url.startswith("amqp"):
        return RabbitMQ(url).depth(queue)
    with kombu.Connection(url) as connection:
        client: Any = connection.default_channel.client
        of_priorities = client.keys(f"{queue}\x06\x16*")
        ours = sum(client.hlen(name) for name in client.keys("pyventus:in-flight:*"))
        ours += sum(client.llen(name) for name in client.keys("pyventus:landing:*"))
        ours += sum(client.zcard(name) for name in client.keys("pyventus:delayed:*"))
        return client.hlen("unacked") + ours + sum(client.llen(name) for name in (queue, *of_priorities))


# -- The account ------------------------------------------------------------------------------------------------------


@dataclass
class Account:
    """What should happen, and what the handlers say has happened.

    Args:
        notes: the file that they write to.
        handlers: that each emission has.
        database: an SQLite file with the effects, for a ledger that records them in the same transaction.
    """

    notes: Path
    handlers: tuple[str, ...]
    database: Path | None = None
    numbers: set[int] = field(default_factory=set)
    began: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        if self.database is not None:
            with contextlib.closing(sqlite3.connect(self.database)) as connection:
                connection.execute("PRAGMA journal_mode=WAL")
                connection.execute("CREATE TABLE effects (handler TEXT, number INTEGER)")

    @property
    def expected(self) -> set[Effect]:
        return {(handler, number) for handler in self.handlers for number in self.numbers}

    def effects(self) -> Counter[Effect]:
        return self._of_database() if self.database is not None else count(self.notes, "effect")

    def _of_database(self) -> Counter[Effect]:
        with contextlib.closing(sqlite3.connect(self.database or "", timeout=20)) as connection:
            return Counter(connection.execute("SELECT handler, number FROM effects"))

    def missing(self) -> set[Effect]:
        return self.expected - self.effects().keys()

    def balance(self, dead: Iterable[Effect], kills: int) -> Balance:
        effects, starts = self.effects(), count(self.notes, "start")
        return Balance(
            emitted=len(self.numbers),
            kills=kills,
            lost=sorted(self.missing() - set(dead)),
            dead=sorted(set(dead)),
            duplicated=effects.total() - len(effects),
            unexpected=sorted(effects.keys() - self.expected),
            recovered=len(starts - effects),
            seconds=round(time.monotonic() - self.began),
        )


@dataclass
class Balance:
    """What became of what was emitted.

    Attributes:
        emitted: emissions.
        kills: of processes.
        lost: handlers of emissions that neither had their effect nor are dead letters.
        dead: handlers of emissions that are dead letters.
        duplicated: effects beyond the first.
        unexpected: effects of what was not emitted.
        recovered: handlers of emissions that were started, died, and had their effect when they were started again.
        seconds: in all.
    """

    emitted: int
    kills: int
    lost: list[Effect]
    dead: list[Effect]
    duplicated: int
    unexpected: list[Effect]
    recovered: int
    seconds: int

    def __str__(self) -> str:
        counts = {name: len(value) if isinstance(value, list) else value for name, value in vars(self).items()}
        return ", ".join(f"{name} {value}" for name, value in counts.items())


def load_env(url: str, queue: str, account: Account, ledger: str = "") -> dict[str, str]:
    """The environment of ``load_app``."""
    return {
        "LOAD_BROKER": url,
        "LOAD_QUEUE": queue,
        "LOAD_NOTES": str(account.notes),
        "LOAD_LEDGER": ledger,
        "LOAD_SETTINGS": json.dumps(QUICK_RESTORES if not url.startswith("amqp") else {}),
    }


def dead_effects(url: str, queue: str) -> list[Effect]:
    """Handler and first argument of the dead letters of a queue."""
    letters = new_queue(url, queue).dead_letters
    return [
        (handler, letters.open(letter).decode().args[0]) for letter in letters.list() for handler in letter.handlers
    ]


class Unfinished:
    """Whether something is still to happen: an effect is missing, and could come."""

    def __init__(self, url: str, queue: str, account: Account) -> None:
        self._url = url
        self._queue = queue
        self._account = account
        self._looks = 0

    def __call__(self) -> bool:
        if not self._account.missing():
            return False
        if self._url.startswith("amqp"):
            return True  # RabbitMQ does not tell what it has delivered.
        self._looks = 0 if waiting(self._url, self._queue) else self._looks + 1
        return self._looks < LOOKS


def wait_while(busy: Callable[[], bool], crew: Crew, seconds: float) -> None:
    """Tend the crew until it is no longer busy, or the time is over."""
    deadline = time.monotonic() + seconds
    while busy() and time.monotonic() < deadline:
        crew.tend()
        time.sleep(POLL_SECONDS)


def seed() -> int:
    """Of this run; PYVENTUS_SEED repeats another one's choices, if not what they meet."""
    return int(os.environ.get("PYVENTUS_SEED") or Random().randrange(10**6))
