"""What the tests of workers share: workers of the app ``service``, emitters to them, and messages made by hand."""

from __future__ import annotations

import contextlib
import json
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import kombu
from celery import Celery

from pyventus import EventLinker
from pyventus.emitters.celery import CeleryEventEmitter
from tests.workers import Process, worker

ROOT = Path(__file__).parents[3]
SECRET = "the secret of the tests' queues, " * 2
SECRETS = {name: f"the secret of the queue {name}, which is long" for name in ("first", "second", "other")}
WAIT_SECONDS = 20.0
# The two arguments of `service` that start a worker with the asyncio pool.
ASYNCIO: dict[str, Any] = {
    "pool": "custom",
    "env": {"CELERY_CUSTOM_WORKER_POOL": "pyventus.emitters.celery.pool:AsyncIOPool"},
}
# How many handlers of "Meets" wait for one another.
BARRIER = 20


@contextlib.contextmanager
def service(
    url: str,
    queue: str,
    folder: Path,
    *args: str,
    app: str = "service",
    settings: dict[str, Any] | None = None,
    env: dict[str, str] | None = None,
    **options: Any,
) -> Iterator[Process]:
    """A worker of an app of this package, on a queue of its own."""
    variables = {
        "TEST_BROKER": url,
        "TEST_QUEUE": queue,
        "TEST_SETTINGS": json.dumps(settings or {}),
        # Celery lets no superuser, who runs tests in containers, start a worker that accepts pickle.
        "C_FORCE_ROOT": "1",
        **(env or {}),
    }
    log = folder / f"worker-{uuid4().hex[:8]}.log"
    module = f"tests.functional.apps.{app}"
    with worker(module, *args, cwd=ROOT, log=log, env=variables, **options) as process:
        yield process


def new_queue(url: str, queue: str, secret: Any = SECRET, **options: Any) -> CeleryEventEmitter.Queue:
    """The same queue as a process sees it that never imports the handlers."""
    app = Celery("emitting", broker=url)
    app.conf.task_default_queue = queue
    return CeleryEventEmitter.Queue(app, secret=secret, **options)


def new_emitter(url: str, queue: str, linker: type[EventLinker] = EventLinker, **options: Any) -> CeleryEventEmitter:
    return CeleryEventEmitter(new_queue(url, queue, **options), linker)


# -- Messages made by hand ----------------------------------------------------------------------------------------


def task_message(text: object, message_id: str, *, task: str, **changes: Any) -> dict[str, Any]:
    """Headers and body of a task of Celery's protocol 2, as ``publish`` takes them.

    Args:
        text: the only argument.
        message_id: id of the task.
        task: its name.
        **changes: ``embed`` and ``body``, or else headers.
    """
    embed = {"callbacks": None, "errbacks": None, "chain": None, "chord": None, **changes.pop("embed", {})}
    body = changes.pop("body", [[text], {}, embed])
    headers = {
        "lang": "py",
        "task": task,
        "id": message_id,
        "root_id": message_id,
        "parent_id": None,
        "group": None,
        "retries": 0,
        "eta": None,
        "expires": None,
        "timelimit": [None, None],
        **changes,
    }
    return {"headers": headers, "body": body}


def publish(
    url: str,
    queue: str,
    message: dict[str, Any],
    *,
    content_type: str = "application/json",
    encode: Callable[[Any], bytes] = lambda body: json.dumps(body).encode(),
) -> None:
    """Put a message into a queue as no library would."""
    body = encode(message["body"])
    headers = message["headers"]
    encoding = "utf-8" if content_type == "application/json" else "binary"
    if not url.startswith("amqp"):
        _push(url, queue, body, headers, content_type, encoding)
        return
    with kombu.Connection(url) as connection:
        connection.Producer().publish(
            body, routing_key=queue, headers=headers, content_type=content_type, content_encoding=encoding,
            correlation_id=str(headers.get("id"))[:200],
        )  # fmt: skip


def _push(url: str, queue: str, body: bytes, headers: Any, content_type: str, encoding: str) -> None:
    envelope = {
        "body": b64encode(body).decode(),
        "content-type": content_type,
        "content-encoding": encoding,
        "headers": headers,
        "properties": {
            "correlation_id": headers.get("id"),
            "reply_to": str(uuid4()),
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": queue},
            "priority": 0,
            "body_encoding": "base64",
            "delivery_tag": str(uuid4()),
        },
    }
    with kombu.Connection(url) as connection:
        connection.default_channel.client.lpush(queue, json.dumps(envelope))


def wait_until(condition: Callable[[], Any], what: str, timeout: float = WAIT_SECONDS) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"{timeout:g} s passed without {what}"
        time.sleep(0.05)
