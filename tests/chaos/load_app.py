"""The app of workers under load: its handlers write down when they start and when their effect is there."""

from __future__ import annotations

import asyncio
import json
import os
import time
from functools import cache
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from celery import Celery

from pyventus import EventLinker, Retry, current_emission
from pyventus.emitters.celery import CeleryEventEmitter
from pyventus.ledger import make_ledger
from tests.chaos import notes
from tests.functional.apps.support import SECRET

WORK_SECONDS = 0.05
LEASE_SECONDS = 5.0

app = Celery("load", broker=os.environ["LOAD_BROKER"])
app.conf.update(task_default_queue=os.environ["LOAD_QUEUE"], **json.loads(os.environ.get("LOAD_SETTINGS", "{}")))
file = Path(os.environ["LOAD_NOTES"])
ledger: Any = make_ledger(os.environ["LOAD_LEDGER"]) if os.environ.get("LOAD_LEDGER") else None
if ledger is not None:
    # Not the half a minute for which a live worker may be silent.
    ledger._lease = LEASE_SECONDS
queue = CeleryEventEmitter.Queue(app, secret=SECRET, ledger=ledger)


@cache
def engine(pid: int) -> sa.Engine:
    return sa.create_engine(os.environ["LOAD_LEDGER"])


def take_effect(handler: str, number: int) -> None:
    """With a ledger in a database, in the transaction of its own; else in the file."""
    if not os.environ.get("LOAD_LEDGER", "").startswith("sqlite"):
        return notes.write(file, "effect", handler, number)
    with engine(os.getpid()).begin() as connection:
        connection.execute(sa.text("INSERT INTO effects VALUES (:handler, :number)"), locals())
        ledger.record(connection)
    return None


@EventLinker.on("Load", name="sync")
def sync_handler(number: int) -> None:
    notes.write(file, "start", "sync", number)
    time.sleep(WORK_SECONDS)
    take_effect("sync", number)


@EventLinker.on("Load", name="async")
async def async_handler(number: int) -> None:
    notes.write(file, "start", "async", number)
    await asyncio.sleep(WORK_SECONDS)
    await asyncio.to_thread(take_effect, "async", number)


@EventLinker.on("Load", name="flaky", retry=Retry(max_attempts=2, delay=0.5))
def flaky_handler(number: int) -> None:
    """Has its effect in the second attempt."""
    if current_emission().attempt == 1:
        raise ValueError("not yet")
    notes.write(file, "start", "flaky", number)
    time.sleep(WORK_SECONDS)
    take_effect("flaky", number)
