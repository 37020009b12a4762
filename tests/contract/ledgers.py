"""Ledgers of each kind, and processes of their own that use them.

Run as ``python -m tests.contract.ledgers KIND URL NAME COUNT COMMAND ...`` it starts such processes, which do what the
command says, and prints what came of it.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from pyventus.ledger.base import Claim, Key, Ledger, Turn, current_claim
from pyventus.ledger.redis import RedisLedger
from pyventus.ledger.sql import SQLLedger

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Place:
    """Where rows are kept; every ledger opened here sees the same."""

    kind: str
    url: str
    name: str

    def open(self, lease: float = 60.0, retention: timedelta = timedelta(days=14)) -> Ledger:
        if self.kind == "redis":
            return RedisLedger(self.url, lease=lease, retention=retention, prefix=f"{self.name}:")
        return SQLLedger(self.url, lease=lease, retention=retention, table=self.name)

    def open_sql(self, lease: float = 60.0) -> SQLLedger:
        ledger = self.open(lease)
        assert isinstance(ledger, SQLLedger)
        return ledger

    def run(self, count: int, command: str, *arguments: object) -> list[Any]:
        """What comes of it when ``count`` processes do the same at once."""
        words = [self.kind, self.url, self.name, count, command, *arguments]
        done = subprocess.run(
            [sys.executable, "-m", "tests.contract.ledgers", *map(str, words)],
            cwd=ROOT, text=True, stdout=subprocess.PIPE, timeout=50, check=True,
        )  # fmt: skip
        results: list[Any] = json.loads(done.stdout)
        return results


# -- Effects that are stored beside the ledger ------------------------------------------------------------------------


def effects_table(name: str) -> sa.Table:
    return sa.Table(f"{name}_effects", sa.MetaData(), sa.Column("emission", sa.Text))


class Shop:
    """A handler's own database, which is the ledger's too."""

    def __init__(self, place: Place, ledger: SQLLedger) -> None:
        self.ledger = ledger
        self.engine = sa.create_engine(place.url)
        self.effects = effects_table(place.name)
        self.effects.create(self.engine, checkfirst=True)

    def handle(self, claim: Claim, at: Callable[[str], None] = lambda moment: None) -> None:
        """A handler with one effect, recorded in its transaction; ``at`` is told how far it has come."""
        copy_context().run(self._handle, claim, at)

    def _handle(self, claim: Claim, at: Callable[[str], None]) -> None:
        current_claim.set(claim)
        with Session(self.engine) as session:
            session.execute(self.effects.insert().values(emission=claim.key.emission))
            at("effect")
            self.ledger.record(session)
            at("record")
            session.commit()
        at("commit")
        self.ledger.settle(claim, "done")

    def count(self, emission: str) -> int:
        where = self.effects.c.emission == emission
        with self.engine.connect() as connection:
            return connection.execute(sa.select(sa.func.count()).where(where)).scalar_one()


# -- What the processes do --------------------------------------------------------------------------------------------


def contend(place: Place, emission: str, claims: str, handler: str, emissions: str) -> tuple[int, list[str]]:
    """How many concurrent claims of one key are granted, and which emissions a ``once`` handler; each asks twice."""
    ledger = place.open()
    key = Key("orders", emission, "stock")
    keys = [Key("orders", f"{os.getpid()}-{number}", handler) for number in range(int(emissions))] * 2
    with ThreadPoolExecutor(20) as threads:
        replies = list(threads.map(lambda _: ledger.claim(key, (0, 1)), range(int(claims))))
        are_owners = list(threads.map(ledger.claim_once, keys))
    owners = [key.emission for key, is_owner in zip(keys, are_owners, strict=True) if is_owner]
    return sum(isinstance(reply, Claim) for reply in replies), owners


def crash(place: Place, crashes: str) -> list[int]:
    """Children that each handle one emission and end like a killed process at one moment of it."""
    ledger = place.open_sql(lease=0.05)
    children = []
    for moment, emission in json.loads(crashes):
        children.append(os.fork())
        if children[-1] == 0:
            claim = ledger.claim(Key("orders", emission, "stock"), (0, 1))
            assert isinstance(claim, Claim)
            Shop(place, ledger).handle(claim, lambda reached, moment=moment: os._exit(9) if reached == moment else None)
            os._exit(0)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def fork(place: Place, emission: str) -> list[int]:
    """Parent and children use one ledger that was connected before the forks, and each hears its own replies."""
    ledger = place.open()
    with ThreadPoolExecutor(5) as threads:
        list(threads.map(lambda number: _claim_and_settle(ledger, f"{emission}-{number}", (0, 1)), range(20)))
    children = []
    for child in range(3):
        children.append(os.fork())
        if children[-1] == 0:
            with ThreadPoolExecutor(5) as threads:
                keys = [f"{emission}-{child}-{number}" for number in range(20)]
                ok = all(threads.map(lambda key: _claim_and_settle(ledger, key, (0, 1)), keys))
            os._exit(0 if ok else 1)
    ok = all(_claim_and_settle(ledger, f"{emission}-again-{number}", (0, 1)) for number in range(20))
    return [0 if ok else 1, *(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children)]


def _claim_and_settle(ledger: Ledger, emission: str, turn: Turn) -> bool:
    key = Key("orders", emission, "stock")
    granted = ledger.claim(key, turn)
    return isinstance(granted, Claim) and granted.key == key and ledger.settle(granted, "done") == "done"


COMMANDS: dict[str, Callable[..., object]] = {"contend": contend, "crash": crash, "fork": fork}

forking = multiprocessing.get_context("fork")


def do(barrier: Any, pipe: Any, command: str, place: Place, arguments: list[str]) -> None:
    barrier.wait(30)
    pipe.send(COMMANDS[command](place, *arguments))


def do_at_once(count: int, command: str, place: Place, arguments: list[str]) -> list[Any]:
    """In processes that are forked once all is imported, and so start together."""
    barrier, pipes = forking.Barrier(count), [forking.Pipe() for _ in range(count)]
    for _, pipe in pipes:
        forking.Process(target=do, args=(barrier, pipe, command, place, arguments)).start()
        pipe.close()  # Here; if the process dies, its pipe ends.
    return [pipe.recv() for pipe, _ in pipes]


if __name__ == "__main__":
    kind, url, name, count, command, *rest = sys.argv[1:]
    print(json.dumps(do_at_once(int(count), command, Place(kind, url, name), rest)))
