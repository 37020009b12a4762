"""Lanes of kills: a broker, perhaps a ledger, a pool, and the points at which the worker there is killed."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import sys
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import redis

from pyventus import Emission
from pyventus.emitters.celery import CeleryEventEmitter
from tests import workers
from tests.brokers import RabbitMQ
from tests.chaos import times
from tests.chaos.oracle import Counts, Oracle, Pair
from tests.functional.apps.support import ROOT, new_queue, wait_until
from tests.workers import Process

WAIT_SECONDS = times(100, 240)

#: The event whose emission gets to each point.
ANYWHERE = {
    "received": "Order",
    "before-handler": "Order",
    "after-handler": "Order",
    "before-acknowledging": "Order",
    "after-acknowledging": "Order",
    "before-retry": "Retried",
    "after-retry": "Retried",
    "before-forward": "Forwarded",
    "after-forward": "Forwarded",
    "before-letter": "Doomed",
    "after-letter": "Doomed",
}
#: Of emissions that a process has died with before.
SPLITTING = {"before-split": "Order", "amid-split": "Order", "after-split": "Order"}
WITH_A_LEDGER = {
    "claimed": "Order",
    "before-done": "Order",
    "after-done": "Order",
    "before-owed": "Retried",
    "after-owed": "Retried",
    "before-dead": "Doomed",
    "after-dead": "Doomed",
}
RECORDED = {"after-commit": "Shared"}
#: In a transaction that nobody else can write beside.
IN_A_TRANSACTION = {"before-record": "Shared", "before-commit": "Shared"}

#: What each event's emission is to have an effect of.
HANDLERS = {
    "Order": ("steady", "plain"),
    "Retried": ("steady", "flaky"),
    "Forwarded": ("steady", "elsewhere"),
    "Doomed": ("steady", "doomed"),
    "Shared": ("steady", "shared"),
    "Slow": ("slow", "slow-too"),
}

LedgerKind = Literal["none", "redis", "sqlite"]


@dataclass
class Lane:
    """Where emissions are killed.

    Attributes:
        url: of the broker.
        folder: of its files.
        ledger: its kind.
        ledger_url: of a ledger in Redis.
        pool: of the worker; "asyncio" is our own.
        concurrency: of the worker.
        lease: of the ledger, in seconds.
        clock: seconds by which that of the worker is ahead.
        settings: of the app.
        who: is killed: the process that is at the point, or the main process of its worker.
        points: the point of each emission.
    """

    url: str
    folder: Path
    ledger: LedgerKind = "none"
    ledger_url: str = ""
    pool: str = "threads"
    concurrency: int = 250
    who: Literal["process", "main"] = "process"
    lease: float = 1.0
    clock: float = 0.0
    settings: dict[str, Any] = field(default_factory=dict)
    name: str = field(default_factory=lambda: f"pyventus-kills-{uuid4().hex[:12]}")
    points: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder.mkdir(exist_ok=True)
        self.queue = new_queue(self.url, self.name)
        self.emitter = CeleryEventEmitter(self.queue)
        self.oracle = Oracle(self.folder / "happened")
        if self.ledger == "sqlite":
            self.ledger_url = f"sqlite:///{self.folder / 'ledger.db'}"
            with contextlib.closing(sqlite3.connect(self.folder / "ledger.db")) as database:
                database.execute("CREATE TABLE effects (emission TEXT)")

    # -- What is killed -----------------------------------------------------------------------------------------------

    def kill_together(self, points: Mapping[str, str], each: int, *, suspect: bool = False) -> None:
        """Kill the process once, when so many emissions for each point are there."""
        count = each * len(points)
        for point, event in points.items():
            for _ in range(each):
                self._emit(point, event, of=count, suspect=suspect)

    def kill_each(self, points: Mapping[str, str], each: int) -> None:
        """Kill the process as often as there are emissions, which may be while others are elsewhere in it."""
        for point, event in points.items():
            for _ in range(each):
                self._emit(point, event, of=1)

    def _emit(self, point: str, event: str, of: int, *, suspect: bool = False) -> None:
        emission = self.prepare(event, f"{point}.{of}.{self.who}")
        self.points[emission.id] = point
        self.emitter.send(replace(emission, suspect=suspect))

    def prepare(self, event: str, prefix: str = "nowhere", **options: Any) -> Emission:
        """An emission whose handlers are to have their effects."""
        emission = self.emitter.with_options(id=f"{prefix}.{uuid4().hex[:12]}", **options).prepare(event)
        self.oracle.expect(emission.id, HANDLERS[event])
        return emission

    # -- The worker ---------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def worker(self, *options: str) -> Iterator[Process]:
        """One that is started again whenever it is killed; it ends warmly with the block."""
        with self._run(["tests.chaos.apps.supervisor", "kills"], *options) as process:
            yield process
            process.stop()

    @contextlib.contextmanager
    def plain_worker(self, *options: str) -> Iterator[Process]:
        """One that is what its users start; nothing of it is left when the block ends."""
        with self._run(["celery", "-A", "tests.chaos.apps.kills", "worker"], *options) as process:
            yield process

    @contextlib.contextmanager
    def _run(self, module: list[str], *options: str) -> Iterator[Process]:
        command = [
            sys.executable, "-m", *module, "-P", "custom" if self.pool == "asyncio" else self.pool,
            "-c", str(self.concurrency),
            "-l", "INFO", "-Q", f"{self.name},{self.name}-other", *workers.QUICK_START, *options,
        ]  # fmt: skip
        env = {
            "TEST_BROKER": self.url,
            "TEST_QUEUE": self.name,
            "TEST_FOLDER": str(self.folder),
            "TEST_LEDGER": self.ledger_url,
            "TEST_LEASE": str(self.lease),
            "TEST_CLOCK": str(self.clock),
            "TEST_SETTINGS": json.dumps(self.settings),
            "CELERY_CUSTOM_WORKER_POOL": "pyventus.emitters.celery.pool:AsyncIOPool",
            "C_FORCE_ROOT": "1",
        }
        with workers.run(command, cwd=ROOT, log=self.folder / f"log-{uuid4().hex[:6]}", env=env) as process:
            process.wait_for(" ready.")
            yield process

    def wait_for_all(self, process: Process, timeout: float = WAIT_SECONDS) -> None:
        """Wait until all that was emitted was killed at its point, has had its effects and was acknowledged."""
        try:
            wait_until(lambda: self.oracle.killed() == set(self.points), "each emission at its point", timeout)
            wait_until(lambda: not self._missing(), "all effects", timeout)
            wait_until(lambda: not self.oracle.unacknowledged() and not self.waiting(), "an end", timeout)
        except AssertionError as error:
            never = sorted(set(self.points) - self.oracle.killed())
            lost = sorted(self.oracle.missing() - set(self.elsewhere()))
            error.add_note(f"lost: {lost}\nnever at its point: {never}\n{process.log()[-5000:]}")
            raise

    def _missing(self) -> set[Pair]:
        missing = self.oracle.missing()
        # To look into the broker costs more than to read a file.
        return (
            missing
            if {"steady", "plain", "flaky"} & set(map(itemgetter(1), missing))
            else missing - set(self.elsewhere())
        )

    def finish(self) -> None:
        """Run workers until nothing is left, for a message that waited for its moment goes back when one ends."""
        while self.waiting():
            with self.worker() as process:
                self.wait_for_all(process)

    def waiting(self) -> int:
        """How many messages wait in the broker."""
        queues = (self.name, f"{self.name}-other")
        if self.url.startswith("amqp"):
            return sum(RabbitMQ(self.url).depth(queue) for queue in queues)
        with redis.Redis.from_url(self.url.removeprefix("pyventus-")) as client:
            return sum(int(client.llen(queue)) for queue in queues)

    # -- What became of it --------------------------------------------------------------------------------------------

    def elsewhere(self) -> list[Pair]:
        """Effects that are not in the oracle's file: dead letters, and rows in the ledger's own database."""
        return [*self._letters(), *self._rows()]

    def _letters(self) -> Iterator[Pair]:
        for letter in self.queue.dead_letters.list():
            for handler in letter.handlers:
                yield letter.emission, handler if letter.reason == "failed" else f"{handler} {letter.reason}"

    def _rows(self) -> list[Pair]:
        if self.ledger != "sqlite":
            return []
        with contextlib.closing(sqlite3.connect(self.folder / "ledger.db", timeout=10)) as database:
            return [(emission, "shared") for (emission,) in database.execute("SELECT emission FROM effects")]

    def counts(self) -> dict[str, Counts]:
        """By point."""
        emissions: dict[str, set[str]] = defaultdict(set)
        for id, point in self.points.items():
            emissions[point].add(id)
        elsewhere = self.elsewhere()
        return {point: self.oracle.counts(ids, elsewhere=elsewhere) for point, ids in emissions.items()}

    def shared(self) -> Counts:
        """Of the handler alone whose effect is in the ledger's database."""
        ids = {pair[0] for pair in self.oracle.pairs if pair[1] == "shared"}
        oracle = Oracle(self.oracle.file, dict.fromkeys(ids, frozenset({"shared"})))
        counts = oracle.counts(ids, elsewhere=self._rows())
        # The others' lines are in the same file.
        return replace(counts, unexpected=0)

    def clean(self, rabbitmq: RabbitMQ) -> None:
        """Delete what it has left in RabbitMQ, its crash counters among it."""
        names = [self.name, f"{self.name}-other", f"{self.name}.dead", f"{self.name}.refused"]
        rabbitmq.delete(*names, *(f"{self.name}.starts.{id}" for id in self._suspects()))

    def _suspects(self) -> Iterator[str]:
        for id in self.points:
            yield id
            for handler in self.oracle.expected[id]:
                for attempt in (1, 2):
                    emission: Any = self.emitter.with_options(id=id).prepare("Order")
                    yield self.queue._derived_id(replace(emission, attempt=attempt, handlers=(handler,)))


def report(lane: str, counts: Mapping[str, Counts]) -> str:
    """A table of what became of the emissions of each point."""
    lines = [f"{lane}: killed at", *(f"  {point:22} {each}" for point, each in counts.items())]
    return "\n".join([*lines, f"  {'all':22} {total(counts.values())}"])


def total(counts: Collection[Counts]) -> Counts:
    return sum(counts, Counts())
