"""An app whose process is killed at an exact call, the first time that an emission gets there which asks for it.

The id of an emission says so: the point, how many are to be at their points when the process is killed, and whether it
is the process that is there, or the main process of its worker. The calls are wrapped here, from the outside.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from celery import Celery

from pyventus import Emission, EventHandler, EventLinker, Retry, current_emission
from pyventus.emitters.celery import CeleryEventEmitter
from pyventus.emitters.celery.claims import Claims
from pyventus.emitters.celery.delivery import Delivery
from pyventus.emitters.celery.request import EmissionRequest
from pyventus.emitters.celery.task import EmissionTask
from pyventus.ledger import make_ledger
from tests.chaos.oracle import write
from tests.functional.apps.support import SECRET

FOLDER = Path(os.environ["TEST_FOLDER"])
FILE = FOLDER / "happened"
LEDGER_URL = os.environ.get("TEST_LEDGER", "")
# Not the half a minute for which a live worker may be silent.
LEASE = float(os.environ.get("TEST_LEASE", "1"))
SLOW_SECONDS = 0.2

app = Celery("kills", broker=os.environ["TEST_BROKER"])
app.conf.task_default_queue = os.environ["TEST_QUEUE"]
app.conf.worker_enable_remote_control = False
app.conf.update(json.loads(os.environ.get("TEST_SETTINGS", "{}")))
if os.environ["TEST_BROKER"].startswith("pyventus-"):
    app.conf.broker_transport_options = {"dead_after": 1.5}
elif os.environ["TEST_BROKER"].startswith("redis"):
    # Of what a dead worker had, `begin` sees to; what a living one has is never delivered twice. A connection for
    # each of many threads that acknowledge at once.
    app.conf.broker_transport_options = {"visibility_timeout": 3600, "max_connections": 1000}


# -- Being killed -----------------------------------------------------------------------------------------------------


class Meeting:
    """Those who wait at their points for the others, all to be killed at once."""

    def __init__(self) -> None:
        self._arrived = 0
        self._lock = threading.Lock()

    def arrive(self, of: int, process: int) -> None:
        with self._lock:
            self._arrived += 1
            is_last = self._arrived == of
        if is_last:
            os.kill(process, signal.SIGKILL)
        if process == os.getpid():
            threading.Event().wait()


meeting = Meeting()
main_process = 0


def at(point: str, emission: str) -> None:
    """Get to a point, where the process is killed if the emission asks for it, the first time."""
    asked, _, rest = emission.partition(".")
    if asked != point:
        return
    of, who, *_ = rest.split(".")
    process = main_process if who == "main" else os.getpid()
    # Not from a child that has outlived its main process.
    if process in (os.getpid(), os.getppid()) and _is_first_time(emission):
        write(FILE, "killed", emission, point)
        meeting.arrive(int(of), process)


def _is_first_time(emission: str) -> bool:
    try:
        (FOLDER / f"killed-{emission}").touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def wrap(owner: Any, name: str, wrapper: Any) -> None:
    """Have ``wrapper`` called, with the original before its arguments."""
    original = getattr(owner, name)
    setattr(owner, name, lambda *args, **kwargs: wrapper(original, *args, **kwargs))


def on_request(original: Any, self: Any, *args: Any, **kwargs: Any) -> None:
    original(self, *args, **kwargs)
    write(FILE, "received", self.id)
    at("fetched", self.id)


def on_run(original: Any, self: Any, *args: Any) -> None:
    at("received", self.request.id)
    original(self, *args)


def on_take(original: Any, self: Any, handlers: Any) -> Any:
    taken = original(self, handlers)
    at("claimed", self._emission.id)
    return taken


def on_publish(original: Any, self: Any, message: Any, end: float) -> None:
    id = self._emission.id
    for what in ("retry", "forward", "split"):
        at(f"before-{what}", id)
    original(self, message, end)
    for what in ("retry", "forward"):
        at(f"after-{what}", id)
    at("amid-split", id)


def on_forward(original: Any, self: Any, handlers: list[EventHandler]) -> list[EventHandler]:
    here: list[EventHandler] = original(self, handlers)
    if len(handlers) - len(here) > 1:
        at("after-split", self._emission.id)
    return here


def on_acknowledge(original: Any, self: Any) -> None:
    at("before-acknowledging", self.id)
    original(self)
    write(FILE, "acknowledged", self.id)
    at("after-acknowledging", self.id)


def on_reject(original: Any, self: Any, requeue: bool = False) -> None:
    original(self, requeue)
    write(FILE, "rejected", self.id)


def on_keep(original: Any, envelope: Any, *args: Any, **kwargs: Any) -> None:
    at("before-letter", envelope.emission.id)
    original(envelope, *args, **kwargs)
    at("after-letter", envelope.emission.id)


def on_settle(original: Any, claim: Any, state: str, note: str = "") -> Any:
    at(f"before-{state}", claim.key.emission)
    stands = original(claim, state, note)
    write(FILE, "settled", claim.key.emission, claim.key.handler, stands)
    at(f"after-{state}", claim.key.emission)
    return stands


@contextlib.contextmanager
def around(emission: Emission, handler: EventHandler) -> Iterator[None]:
    write(FILE, "start", emission.id, handler.id)
    if handler.id == "steady":
        yield
        return
    at("before-handler", emission.id)
    yield
    at("after-handler", emission.id)


wrap(EmissionRequest, "__init__", on_request)
wrap(EmissionRequest, "acknowledge", on_acknowledge)
wrap(EmissionRequest, "reject", on_reject)
wrap(EmissionTask, "run", on_run)
wrap(Claims, "take", on_take)
wrap(Delivery, "_publish", on_publish)
wrap(Delivery, "_forward", on_forward)

ledger: Any = make_ledger(LEDGER_URL) if LEDGER_URL else None
if ledger is not None:
    ledger._lease = LEASE
    wrap(ledger, "settle", on_settle)
queue = CeleryEventEmitter.Queue(app, secret=SECRET, ledger=ledger, middleware=[around])
wrap(queue.dead_letters, "keep", on_keep)


def begin() -> None:
    """Put back what a dead worker had fetched from Redis, as another one does after the visibility timeout."""
    global main_process
    main_process = os.getpid()
    write(FILE, "started", main_process)
    with app.connection_for_read() as connection:
        if connection.transport.driver_name == "redis":
            channel = connection.default_channel
            for tag in channel.client.zrange(channel.unacked_index_key, 0, -1):
                channel.qos.restore_by_tag(tag)


# -- Handlers ---------------------------------------------------------------------------------------------------------


def have_effect(handler: str) -> None:
    write(FILE, "effect", current_emission().id, handler)


@EventLinker.on("Order", "Retried", "Forwarded", "Doomed", "Shared", name="steady")
async def steady() -> None:
    have_effect("steady")


@EventLinker.on("Order", name="plain")
def plain() -> None:
    have_effect("plain")


@EventLinker.on("Slow", name="slow")
async def slow() -> None:
    await asyncio.sleep(SLOW_SECONDS)
    have_effect("slow")


@EventLinker.on("Slow", name="slow-too")
def slow_too() -> None:
    time.sleep(SLOW_SECONDS)
    have_effect("slow-too")


@EventLinker.on("Retried", name="flaky", retry=Retry(max_attempts=2, delay=0.05, jitter=0))
def flaky() -> None:
    if current_emission().attempt == 1:
        raise ValueError("not yet")
    have_effect("flaky")


@EventLinker.on("Forwarded", name="elsewhere", queue=f"{app.conf.task_default_queue}-other")
def elsewhere() -> None:
    have_effect("elsewhere")


def give_up(error: Exception) -> None:
    write(FILE, "gave-up", current_emission().id, "doomed")


@EventLinker.on("Doomed", name="doomed", failure_callback=give_up)
def doomed() -> None:
    raise ValueError("never")


if LEDGER_URL.startswith("sqlite"):
    engine = sa.create_engine(LEDGER_URL, connect_args={"timeout": 10})

    @EventLinker.on("Shared", name="shared")
    def shared() -> None:
        """Its effect is stored with the fact that it has run, or not at all."""
        emission = current_emission().id
        with engine.begin() as connection:
            connection.execute(sa.text("INSERT INTO effects VALUES (:emission)"), {"emission": emission})
            at("before-record", emission)
            ledger.record(connection)
            at("before-commit", emission)
        write(FILE, "settled", emission, "shared", "done")
        at("after-commit", emission)
