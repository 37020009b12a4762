"""An app without emissions: what the transport does for all of Celery's tasks."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from celery import Celery
from celery.utils.log import get_task_logger

import pyventus.emitters.celery  # noqa: F401 - the scheme of the broker's URL

logger = get_task_logger("plain")


def new_app(url: str, queue: str, **settings: Any) -> Celery:
    """An app with one queue, which takes a worker that is silent for two seconds for dead."""
    app = Celery("plain", broker=url)
    app.conf.update(
        task_default_queue=queue,
        task_acks_late=True,
        task_ignore_result=True,
        broker_transport_options={"dead_after": 2},
    )
    app.conf.update(settings)
    return app


app = new_app(
    os.environ.get("TEST_BROKER", "memory://"),
    os.environ.get("TEST_QUEUE", "plain"),
    **json.loads(os.environ.get("TEST_SETTINGS", "{}")),
)


@app.task(name="note", bind=True)
def note(self: Any, text: str) -> None:
    """Say it, and whether it was delivered before."""
    again = " again" if self.request.delivery_info.get("redelivered") else ""
    logger.warning("note %s%s", text, again)


@app.task(name="wait", bind=True)
def wait(self: Any, text: str, file: str) -> None:
    """Say it, and again once there is a file."""
    again = " again" if self.request.delivery_info.get("redelivered") else ""
    logger.warning("began %s%s", text, again)
    while not Path(file).exists():
        time.sleep(0.02)
    logger.warning("ended %s", text)


@app.task(name="retry", bind=True, max_retries=3)
def retry(self: Any, text: str, countdown: float) -> None:
    """Fail once."""
    if not self.request.retries:
        logger.warning("first %s", text)
        raise self.retry(countdown=countdown)
    logger.warning("second %s", text)
