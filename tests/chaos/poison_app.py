"""The app of workers that are given poison: each handler counts its starts before it does its worst."""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
from pathlib import Path
from typing import NoReturn

from celery import Celery

from pyventus import EventLinker, Retry
from pyventus.emitters.celery import CeleryEventEmitter
from tests.chaos import notes
from tests.functional.apps.support import SECRET

ROOM = 64 * 1024 * 1024
ATTEMPTS = 3

app = Celery("poison", broker=os.environ["POISON_BROKER"])
app.conf.update(task_default_queue=os.environ["POISON_QUEUE"], **json.loads(os.environ["POISON_SETTINGS"]))
queue = CeleryEventEmitter.Queue(app, secret=SECRET)
file = Path(os.environ["POISON_NOTES"])
held: list[bytes] = []


@EventLinker.on("good", name="good")
def good(number: int) -> None:
    notes.write(file, "effect", "good", number)


@EventLinker.on("large", name="large")
def large(number: int) -> None:
    """Outgrows worker_max_memory_per_child, so that its process is replaced afterwards."""
    if held:
        notes.write(file, "spoiled", "large", number)
    held.append(b"x" * 3 * ROOM)
    notes.write(file, "effect", "large", number)


@EventLinker.on("raises", name="raises", retry=Retry(max_attempts=ATTEMPTS, delay=0.1))
def raises(number: int) -> NoReturn:
    notes.write(file, "start", "raises", number)
    raise ValueError(number)


@EventLinker.on("fails", name="fails")
def fails(number: int) -> NoReturn:
    raise ValueError(number)


@EventLinker.on("exhausts", name="exhausts", retry=Retry(max_attempts=ATTEMPTS, delay=0.1))
def exhausts(number: int) -> None:
    """Asks for memory that the system does not give."""
    notes.write(file, "start", "exhausts", number)
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + ROOM, before[1]))
    try:
        bytearray(16 * ROOM)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@EventLinker.on("exits", name="exits")
def exits(number: int) -> None:
    notes.write(file, "start", "exits", number)
    os._exit(1)


@EventLinker.on("leaves", name="leaves")
def leaves(number: int) -> None:
    notes.write(file, "start", "leaves", number)
    sys.exit(1)


@EventLinker.on("dies", name="dies")
def dies(number: int) -> None:
    """As by the kernel's out-of-memory killer."""
    notes.write(file, "start", "dies", number)
    os.kill(os.getpid(), signal.SIGKILL)


@EventLinker.on("hangs", name="hangs")
def hangs(number: int) -> None:
    notes.write(file, "start", "hangs", number)
    time.sleep(3600)
