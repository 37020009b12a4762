"""The broker itself is killed and comes back, again and again, while emissions are sent and run."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol
from uuid import uuid4

import kombu
import pytest

from pyventus import Emission
from pyventus.emitters.celery import CeleryEventEmitter
from pyventus.errors import EmitError
from tests.brokers import Valkey, refused_port
from tests.chaos import IS_LONG, times
from tests.chaos.load import (
    HANDLERS,
    PREFORK,
    THREADS,
    Account,
    Balance,
    Unfinished,
    crew,
    dead_effects,
    load_env,
    wait_while,
)
from tests.functional.apps.support import new_emitter
from tests.workers import Process

EMISSIONS = times(200, 3_000)
DEATHS = times(2, 8)
EMITTERS = 4
PACE_SECONDS = 0.02
# Workers that fetch at the same time.
FETCHERS = 3
RECOVERY_SECONDS = times(30, 300)
LONG = pytest.mark.skipif(not IS_LONG, reason="takes minutes: make chaos")

pytestmark = pytest.mark.chaos


class Mortal(Protocol):
    """A broker that can be killed and started again with what it has stored."""

    @property
    def url(self) -> str: ...

    def kill(self) -> None: ...

    def restart(self) -> None: ...


class OwnValkey:
    """A Valkey that is reached by way of our own transport."""

    def __init__(self, server: Valkey) -> None:
        self.url = f"pyventus-{server.url}"
        self.kill, self.restart = server.kill, server.restart


class RabbitNode:
    """A RabbitMQ of one's own, as Debian and the generic packages install it."""

    def __init__(self, program: str, folder: Path) -> None:
        with refused_port() as port, refused_port() as peers:
            self.url = f"amqp://guest:guest@127.0.0.1:{port}//"
        (folder / "plugins").touch()
        (folder / "rabbitmq.conf").write_text(f"listeners.tcp.1 = 127.0.0.1:{port}\n")
        self._program = program
        self._folder = folder
        self._env = {
            "HOME": str(folder),
            "RABBITMQ_NODENAME": f"chaos-{uuid4().hex[:8]}@localhost",
            "RABBITMQ_DIST_PORT": str(peers),
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
            "RABBITMQ_CONF_ENV_FILE": str(folder / "none"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
            "RABBITMQ_MNESIA_BASE": str(folder / "data"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_PID_FILE": str(folder / "pid"),
        }
        self.restart()

    def kill(self) -> None:
        self._process.kill()

    def restart(self) -> None:
        self._process = Process([self._program], cwd=self._folder, log=self._folder / "console.log", env=self._env)
        deadline = time.monotonic() + 60
        while not self._answers():
            assert time.monotonic() < deadline, self._process.log()
            time.sleep(0.2)

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), kombu.Connection(self.url, connect_timeout=2) as connection:
            connection.connect()
            return True
        return False


def rabbitmq_program() -> str | None:
    """The script itself: Debian's wrapper would start it as another user."""
    candidates = ["/usr/lib/rabbitmq/bin/rabbitmq-server", shutil.which("rabbitmq-server") or ""]
    return next((each for each in candidates if os.access(each, os.X_OK)), None)


@pytest.fixture
def valkey_that_writes() -> Iterator[Valkey]:
    """What it has answered stands in its append-only file."""
    with Valkey(appendonly="yes", appendfsync="always") as server:
        yield server


@pytest.fixture
def rabbit_node(tmp_path: Path) -> Iterator[RabbitNode]:
    program = rabbitmq_program()
    if program is None:
        pytest.skip("no rabbitmq-server here")
    folder = tmp_path / "rabbitmq"
    folder.mkdir()
    node = RabbitNode(program, folder)
    yield node
    node.kill()


@dataclass
class Emitters:
    """Several threads that emit the numbers of an account; what is refused is sent again under the same id."""

    emitter: CeleryEventEmitter
    account: Account
    errors: int = 0
    failed: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self) -> None:
        """Until each is confirmed."""
        with ThreadPoolExecutor(EMITTERS) as pool:
            for _ in pool.map(self._emit, range(EMISSIONS)):
                pass

    def _emit(self, number: int) -> None:
        emission = self.emitter.prepare("Load", number)
        while not self._send(emission):
            time.sleep(0.1)
        with self._lock:
            self.account.numbers.add(number)

    def _send(self, emission: Emission) -> bool:
        time.sleep(PACE_SECONDS)
        try:
            self.emitter.send(emission)
        except EmitError:
            with self._lock:
                self.errors += 1
            self.failed.set()
            return False
        return True


def reap(broker: Mortal, emitters: Emitters) -> None:
    """Kill a broker each time that a share of the emissions is confirmed; start it when somebody has missed it."""
    for turn in range(1, DEATHS + 1):
        while len(emitters.account.numbers) < EMISSIONS * turn // (DEATHS + 1):
            time.sleep(0.005)
        emitters.failed.clear()
        broker.kill()
        assert emitters.failed.wait(30), "nobody missed the broker"
        broker.restart()


def emit_to_a_mortal(broker: Mortal, queue: str, account: Account, tend: Callable[[], None] = lambda: None) -> int:
    """Emit all while the broker dies now and then; returns how many errors there were."""
    emitters = Emitters(new_emitter(broker.url, queue), account)
    with ThreadPoolExecutor(2) as threads:
        running = [threads.submit(reap, broker, emitters), threads.submit(emitters.run)]
        while not all(each.done() for each in running):
            tend()
            time.sleep(0.05)
        for each in running:
            each.result()
    return emitters.errors


def say(broker: Mortal, queue: str, account: Account, errors: int) -> Balance:
    balance = account.balance(dead_effects(broker.url, queue), DEATHS)
    print(f"{type(broker).__name__}, {errors} EmitErrors: {balance}")
    return balance


def test_what_valkey_has_confirmed_is_there(valkey_that_writes: Valkey, queue_name: str, tmp_path: Path) -> None:
    """With an append-only file. No worker has fetched anything yet: between fetching and recording what was fetched
    stock Redis transports lose messages.
    """
    account = Account(tmp_path / "notes", HANDLERS)
    errors = emit_to_a_mortal(valkey_that_writes, queue_name, account)
    assert errors
    env = load_env(valkey_that_writes.url, queue_name, account)
    with crew("tests.chaos.load_app", tmp_path, env, THREADS, THREADS) as workers:
        wait_while(lambda: bool(account.missing()), workers, RECOVERY_SECONDS)
    balance = say(valkey_that_writes, queue_name, account, errors)
    assert (balance.lost, balance.unexpected) == ([], [])


def run_on_a_mortal(broker: Mortal, queue: str, folder: Path) -> Balance:
    account = Account(folder / "notes", HANDLERS)
    env = load_env(broker.url, queue, account)
    with crew("tests.chaos.load_app", folder, env, PREFORK, PREFORK, THREADS) as workers:
        errors = emit_to_a_mortal(broker, queue, account, workers.tend)
        wait_while(Unfinished(broker.url, queue, account), workers, RECOVERY_SECONDS)
        workers.stop()
    assert errors
    return say(broker, queue, account, errors)


@LONG
def test_workers_on_valkey_outlive_it(valkey_that_writes: Valkey, queue_name: str, tmp_path: Path) -> None:
    """What a worker was fetching when the server died can be lost, see above: asserted is only that it is rare."""
    balance = run_on_a_mortal(valkey_that_writes, queue_name, tmp_path)
    assert balance.unexpected == []
    assert len({number for _, number in balance.lost}) <= DEATHS * FETCHERS


@LONG
def test_workers_on_our_transport_outlive_it(valkey_that_writes: Valkey, queue_name: str, tmp_path: Path) -> None:
    """Nothing is lost that Redis has stored, also of what workers were just fetching."""
    balance = run_on_a_mortal(OwnValkey(valkey_that_writes), queue_name, tmp_path)
    assert (balance.lost, balance.unexpected) == ([], [])


@LONG
def test_workers_on_rabbitmq_outlive_it(rabbit_node: RabbitNode, queue_name: str, tmp_path: Path) -> None:
    """Nothing that was confirmed is lost: queues are durable and messages persistent."""
    balance = run_on_a_mortal(rabbit_node, queue_name, tmp_path)
    assert (balance.lost, balance.unexpected) == ([], [])
