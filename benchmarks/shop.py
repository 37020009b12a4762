"""The app under test: the same work as an emission of ours and as a task of stock Celery.

The environment says which broker, pool and size of message.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from typing import Any

from celery import Celery

from benchmarks import features
from benchmarks.oracle import note
from pyventus import EventLinker
from pyventus.emitters.celery import CeleryEventEmitter

BROKER = os.environ.get("BENCH_BROKER", "redis://127.0.0.1:6379/0")
NAME = os.environ.get("BENCH_NAME", "bench")
TEXT = "x" * int(os.environ.get("BENCH_BYTES", "570"))
CONFIRM = os.environ.get("BENCH_CONFIRM", "on") == "on"
NAPS = 0.1

app = Celery("bench", broker=BROKER)
app.conf.update(
    broker_connection_retry_on_startup=True,
    task_default_queue=f"{NAME}-tasks",
    task_ignore_result=True,
    worker_prefetch_multiplier=int(os.environ.get("BENCH_PREFETCH", "64")),
    worker_send_task_events=False,
    task_send_sent_event=False,
)
if BROKER.startswith("amqp"):
    # Of stock Celery only: the emitter of ours asks for confirms by itself.
    app.conf.broker_transport_options = {"confirm_publish": CONFIRM}
if pool := os.environ.get("BENCH_POOL"):
    app.conf.worker_pool = pool

_off: dict[str, Any] = (None if CONFIRM else features.unconfirmed()) or {"queue": {}, "emitter": {}}
queue = CeleryEventEmitter.Queue(
    celery=app, name=f"{NAME}-emissions", secret="0123456789abcdef0123456789abcdef", **_off["queue"]
)
emitter = CeleryEventEmitter(queue=queue, timeout=30.0, **_off["emitter"])
logging.getLogger("pyventus").setLevel(logging.ERROR)


@EventLinker.on("order.placed", name="note")
def note_event(number: int, text: str) -> None:
    note(number)


@EventLinker.on("order.checked", name="nap")
async def nap_event(number: int, text: str) -> None:
    await asyncio.sleep(NAPS)
    note(number)


@app.task(name="bench.note")
def note_task(number: int, text: str) -> None:
    note(number)


@app.task(name="bench.nap")
def nap_task(number: int, text: str) -> None:
    time.sleep(NAPS)
    note(number)
