"""An app with two queues; its handlers write what they got, one line of JSON for each run, to a file."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from celery import Celery, current_task
from kombu import Queue as BrokerQueue

from pyventus import EventLinker
from pyventus.emitters.celery import CeleryEventEmitter
from pyventus.running import current_emission

SECRET = "the secret of the queues of emitting" * 2
NAMES = json.loads(os.environ.get("TEST_QUEUES", '["first", "second"]'))

app = Celery("emitting")  # its broker comes from CELERY_BROKER_URL
app.conf.update(
    task_queue_max_priority=9,
    worker_prefetch_multiplier=1,
    broker_connection_retry_on_startup=True,
    task_queues=[BrokerQueue(name, routing_key=name) for name in NAMES],
)
queues = [CeleryEventEmitter.Queue(app, name, secret=SECRET) for name in NAMES]
emitter = CeleryEventEmitter(queues[0])


def write(**found: Any) -> None:
    line = json.dumps(found).encode() + b"\n"
    with Path(os.environ["TEST_OUTPUT"]).open("ab", buffering=0) as file:
        file.write(line)


@EventLinker.on("Record")
def record(*args: Any, **kwargs: Any) -> None:
    emission, request = current_emission(), current_task.request
    write(
        args=args, kwargs=kwargs, id=emission.id, headers=dict(emission.headers), task_id=request.id,
        parent_id=request.parent_id, root_id=request.root_id, time=time.time(),
    )  # fmt: skip


@EventLinker.on("Sync")
def emit_from_sync() -> None:
    write(emitted=emitter.emit("Record", "from sync").id)


@EventLinker.on("Async")
async def emit_from_async() -> None:
    write(emitted=emitter.emit("Record", "from async").id)


@EventLinker.on("Awaiting")
async def aemit_from_async() -> None:
    write(emitted=(await emitter.aemit("Record", "from async")).id)


@EventLinker.on("Block")
def block(file: str) -> None:
    """Hold the worker's one thread until the file exists."""
    write(blocking=file)
    end = time.monotonic() + 30
    while not Path(file).exists() and time.monotonic() < end:
        time.sleep(0.01)
