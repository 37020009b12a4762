"""An app whose handlers say nothing of what they are given."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from celery import Celery

from pyventus import EventLinker
from pyventus.emitters.celery import CeleryEventEmitter
from pyventus.running import current_emission
from tests.functional.apps.support import SECRET

app = Celery("quiet", broker=os.environ["TEST_BROKER"], backend=os.environ.get("TEST_BACKEND"))
app.conf.task_default_queue = os.environ["TEST_QUEUE"]
SECRETS: Any = os.environ.get("TEST_SECRETS", SECRET).split("|")
queue = CeleryEventEmitter.Queue(app, secret=SECRETS)


@dataclass
class Card:
    number: Any


class Pin:
    """Travels by a codec, and its decoding fails with what it was given."""

    def __init__(self, digits: str) -> None:
        self.digits = digits


def refuse(digits: str) -> Pin:
    raise ValueError(f"not a pin: {digits}")


EventLinker.register(Card)
EventLinker.register(Pin, encode=lambda pin: pin.digits, decode=refuse)


def done() -> None:
    print(f"{current_emission().id} done")


@EventLinker.on("Quiet", name="quiet")
def quiet(*args: object, **kwargs: object) -> object:
    done()
    return args, kwargs


@EventLinker.on("Quiet", name="quiet-async")
async def quiet_too(*args: object, **kwargs: object) -> object:
    done()
    return args, kwargs


@EventLinker.on("QuietFails", name="quiet-fails")
def quiet_fails(*args: object, **kwargs: object) -> None:
    done()
    raise ValueError("nothing of it")


@EventLinker.on("QuietFails", name="quiet-fails-async")
async def quiet_fails_too(*args: object, **kwargs: object) -> None:
    done()
    raise ValueError("nothing of it")


@EventLinker.on("QuietWaits", name="quiet-waits")
async def quiet_waits(file: str, *args: object, **kwargs: object) -> None:
    print(f"{current_emission().id} waits")
    while not Path(file).exists():
        await asyncio.sleep(0.02)
    done()
