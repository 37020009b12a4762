"""An app whose dead letters the command line is tried on; what differs comes from the environment."""

from __future__ import annotations

import os

from celery import Celery

from pyventus import EventLinker
from pyventus.emitters.celery import CeleryEventEmitter
from tests.functional.apps.support import SECRET

app = Celery("dead", broker=os.environ["TEST_BROKER"])
app.conf.task_default_queue = os.environ["TEST_QUEUE"]
secrets = os.environ.get("TEST_SECRETS", SECRET).split("|")


def new_queue(name: str | None = None) -> CeleryEventEmitter.Queue:
    return CeleryEventEmitter.Queue(app, name, secrets, dead_letters=os.environ.get("TEST_STORE"))


queue = new_queue()
if os.environ.get("TEST_OTHER_QUEUE"):
    other = new_queue(os.environ["TEST_OTHER_QUEUE"])


@EventLinker.on("Asked", name="answer")
def answer(*args: object, **kwargs: object) -> None:
    print(f"answered {args} {kwargs}", flush=True)


@EventLinker.on("Asked", name="shout")
def shout(*args: object, **kwargs: object) -> None:
    print(f"shouted {args} {kwargs}", flush=True)
