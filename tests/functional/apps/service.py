"""The app of most tests' workers; what differs between them comes from the environment."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from celery import Celery, signals

from pyventus import Emission, EventHandler, Retry
from pyventus.emitters.celery import CeleryEventEmitter, patience
from pyventus.ledger import make_ledger
from tests.functional.apps import handlers
from tests.functional.apps.support import SECRET

settings: dict[str, Any] = json.loads(os.environ.get("TEST_SETTINGS", "{}"))
app = Celery("service", broker=os.environ["TEST_BROKER"])
app.conf.update(task_default_queue=os.environ["TEST_QUEUE"], **settings)

inside: ContextVar[str] = ContextVar("inside")


@contextlib.contextmanager
def middleware(emission: Emission, handler: EventHandler) -> Iterator[None]:
    inside.set(f"middleware of {handler.id}")
    yield


@contextlib.asynccontextmanager
async def lifespan() -> AsyncIterator[dict[str, Any]]:
    """Opens after the seconds of TEST_SLOW, while the file of TEST_FAILS is missing; says so if it is left in peace."""
    file = os.environ.get("TEST_FAILS")
    if file and Path(file).exists():
        print("lifespan fails")
        raise RuntimeError("not yet")
    await asyncio.sleep(float(os.environ.get("TEST_SLOW", "0")))
    print(f"lifespan entered in {os.getpid()}")
    yield {"opened": os.getpid()}
    print(f"lifespan left in {os.getpid()}")


patience.PATIENCE_SECONDS = float(os.environ.get("TEST_PATIENCE", "30"))
options: dict[str, Any] = json.loads(os.environ.get("TEST_QUEUE_OPTIONS", "{}"))
if "retry" in options:
    options["retry"] = Retry(**options["retry"])
if "ledger" in options:
    ledger: Any = make_ledger(options["ledger"])
    # Not the half a minute for which a live worker may be silent.
    ledger._lease = float(os.environ.get("TEST_LEASE", "30"))
    options["ledger"] = ledger
queue = CeleryEventEmitter.Queue(app, **{"secret": SECRET, "lifespan": lifespan, "middleware": [middleware], **options})


app.conf.update(json.loads(os.environ.get("TEST_LATER", "{}")))


@signals.celeryd_init.connect(weak=False)
def change_tasks(**_: object) -> None:
    """What its users may do to all tasks of an app."""
    for task in app.tasks.values():
        vars(task).update(json.loads(os.environ.get("TEST_TASKS_LATER", "{}")))


@app.task(name="service.attacked", **json.loads(os.environ.get("TEST_TASK_OPTIONS", "{}")))
def attacked(*args: object) -> None:
    """What a message must not be able to call through the emission queue's task."""
    Path(str(args[-1])).touch()


@signals.task_failure.connect(weak=False)
def record_failure(*, task_id: str, exception: Exception, **_: object) -> None:
    print(f"FAILURE of {task_id} {type(exception).__name__} {exception}")


__all__ = ["app", "handlers", "queue"]
