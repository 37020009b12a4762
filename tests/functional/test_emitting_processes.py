"""Emitters under forks, greenlets, threads and loops: what is emitted is stored once."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
from pathlib import Path
from typing import Literal

import pytest
from celery import Celery

from pyventus.emitters.celery import CeleryEventEmitter
from tests.brokers import RabbitMQ, Valkey, hanging_broker
from tests.workers import run

ROOT = Path(__file__).parents[2]


def stored_ids(url: str, queue: str, valkey: Valkey) -> list[str]:
    """Ids of the messages in a queue."""
    if not url.startswith("amqp"):
        with valkey.client() as client:
            return [json.loads(text)["headers"]["id"] for text in client.lrange(queue, 0, -1)]
    ids = []
    with RabbitMQ(url).channel() as channel:
        while (message := channel.basic_get(queue, no_ack=True)) is not None:
            ids.append(message.headers["id"])
    return ids


def check_script(module: str, *args: str, url: str, queue: str, valkey: Valkey, folder: Path, **env: str) -> None:
    """Run a script of ``emitting``, and compare what it says with what is stored."""
    env = {"TEST_QUEUE": queue, **(env or {"CELERY_BROKER_URL": url})}
    # From Python 3.12 on, any fork of a process with threads draws a warning.
    quiet = ["-W", "ignore::DeprecationWarning", "-X", "faulthandler"]
    command = [sys.executable, *quiet, "-m", f"tests.functional.emitting.{module}", *args]
    with run(command, cwd=ROOT, log=folder / "log", env=env) as script:
        assert script.wait(40) == 0, script.log()
        log = script.log()
    assert log.strip().isdigit(), log
    ids = stored_ids(url, queue, valkey)
    assert len(ids) == len(set(ids)) == int(log)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("way", ["forked", "grandchildren", "multiprocessed", "preforked", "untold", "amid_emits"])
def test_forks(way: str, broker_url: str, queue_name: str, valkey: Valkey, tmp_path: Path) -> None:
    """An emitter that was made and used before a fork works in the child and still in the parent."""
    check_script("forks", way, url=broker_url, queue=queue_name, valkey=valkey, folder=tmp_path)


@pytest.mark.parametrize("scheme", ["redis", "amqp"])
def test_greenlets(
    scheme: Literal["redis", "amqp"], request: pytest.FixtureRequest, queue_name: str, valkey: Valkey, tmp_path: Path
) -> None:
    """Under gevent the hub goes on while a broker hangs."""
    url = request.getfixturevalue(f"{scheme}_url")
    with hanging_broker() as broker:
        brokers = {"TEST_WORKING": url, "TEST_HANGING": broker.url(scheme)}
        try:
            check_script("greenlets", url=url, queue=queue_name, valkey=valkey, folder=tmp_path, **brokers)
        finally:
            if scheme == "amqp":
                RabbitMQ(url).delete(queue_name)


def make_emitter(url: str, queue: str) -> CeleryEventEmitter:
    app = Celery("many", broker=url, set_as_current=False)
    return CeleryEventEmitter(CeleryEventEmitter.Queue(app, queue), timeout=20)


def test_threads(broker_url: str, queue_name: str, valkey: Valkey) -> None:
    emitter, emitted = make_emitter(broker_url, queue_name), []

    def emit() -> None:
        emitted.extend(emitter.emit("Event").id for _ in range(5))

    threads = [threading.Thread(target=emit) for _ in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(emitted) == 160
    assert sorted(stored_ids(broker_url, queue_name, valkey)) == sorted(emitted)


def test_concurrent_aemits(broker_url: str, queue_name: str, valkey: Valkey) -> None:
    emitter = make_emitter(broker_url, queue_name)

    async def emit_all() -> list[str]:
        emissions = await asyncio.gather(*(emitter.aemit("Event") for _ in range(200)))
        return [emission.id for emission in emissions]

    emitted = asyncio.run(emit_all())
    assert sorted(stored_ids(broker_url, queue_name, valkey)) == sorted(emitted)


EXITING = """
import os, threading
from celery import Celery
from pyventus.emitters.celery import CeleryEventEmitter
app = Celery("exiting", set_as_current=False)
emitter = CeleryEventEmitter(CeleryEventEmitter.Queue(app, os.environ["TEST_QUEUE"]), timeout=20)
emitter.emit("Event")  # From Python 3.12 on, no thread for a first one starts at the exit.
threading.Thread(target=emitter.emit, args=("Event",)).start()
"""

SIGNALLED = """
import os, signal
from celery import Celery
from pyventus.emitters.celery import CeleryEventEmitter
app = Celery("signalled", set_as_current=False)
emitter = CeleryEventEmitter(CeleryEventEmitter.Queue(app, os.environ["TEST_QUEUE"]), timeout=20)
signal.signal(signal.SIGALRM, lambda *_: emitter.emit("Event"))
for _ in range(3):
    signal.setitimer(signal.ITIMER_REAL, 0.01)
    signal.pause()
    emitter.emit("Event")
"""


@pytest.mark.parametrize(("script", "at_least"), [(EXITING, 2), (SIGNALLED, 6)])
def test_exits_and_signal_handlers(
    script: str, at_least: int, broker_url: str, queue_name: str, valkey: Valkey, tmp_path: Path
) -> None:
    """The interpreter's exit waits for an emit in another thread; a signal handler emits."""
    env = {"CELERY_BROKER_URL": broker_url, "TEST_QUEUE": queue_name}
    with run([sys.executable, "-c", script], cwd=ROOT, log=tmp_path / "log", env=env) as process:
        assert process.wait(40) == 0, process.log()
        assert process.log() == ""
    ids = stored_ids(broker_url, queue_name, valkey)
    assert len(ids) == len(set(ids)) >= at_least
