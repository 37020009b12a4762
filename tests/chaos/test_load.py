"""Processes of workers are killed at random, under load: what is lost, and what happens twice."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest

from tests.brokers import RabbitMQ, Valkey
from tests.chaos import IS_LONG, times
from tests.chaos.load import (
    HANDLERS,
    PREFORK,
    THREADS,
    Account,
    Balance,
    Killer,
    Unfinished,
    crew,
    dead_effects,
    load_env,
    seed,
    wait_while,
)
from tests.functional.apps.support import new_emitter, new_queue

EMISSIONS = times(200, 3_000)
PER_SECOND = times(25, 50)
WORKERS = (PREFORK, PREFORK, THREADS) if IS_LONG else (PREFORK, THREADS)
RECOVERY_SECONDS = times(40, 600)

LONG = pytest.mark.skipif(not IS_LONG, reason="takes minutes: make chaos")


@dataclass
class Broker:
    url: str
    queue: str

    @property
    def is_stock_redis(self) -> bool:
        """By way of Celery's own transport."""
        return self.url.startswith("redis")


@pytest.fixture(params=["redis", "own", "amqp"])
def broker(request: pytest.FixtureRequest, queue_name: str) -> Iterator[Broker]:
    """RabbitMQ, or a Redis of its own that has written what it has answered."""
    if request.param != "amqp":
        with Valkey(appendonly="yes", appendfsync="always") as server:
            yield Broker(server.url if request.param == "redis" else f"pyventus-{server.url}", queue_name)
    else:
        rabbitmq: RabbitMQ = request.getfixturevalue("rabbitmq")
        yield Broker(rabbitmq.url, queue_name)
        new_queue(rabbitmq.url, queue_name).dead_letters.purge()
        rabbitmq.delete(queue_name)


def run_under_fire(broker: Broker, folder: Path, ledger: str = "", database: Path | None = None) -> Balance:
    """Emit at a steady pace while processes are killed, then let the workers recover."""
    choice = seed()
    account = Account(folder / "notes", HANDLERS, database)
    env = load_env(broker.url, broker.queue, account, ledger)
    emitter = new_emitter(broker.url, broker.queue)
    with crew("tests.chaos.load_app", folder, env, *WORKERS) as workers:
        killer = Killer(workers, Random(choice))
        for number in range(EMISSIONS):
            account.numbers.add(number)
            emitter.emit("Load", number)
            is_early = True
            while is_early:
                killer.strike()
                workers.tend()
                time.sleep(0.001)
                is_early = time.monotonic() - account.began < number / PER_SECOND
        wait_while(Unfinished(broker.url, broker.queue, account), workers, RECOVERY_SECONDS)
        workers.stop()
    balance = account.balance(dead_effects(broker.url, broker.queue), killer.kills)
    names = broker.url.partition(":")[0], ledger.partition(":")[0] or "none"
    print("seed {}, {}, ledger {}: {}".format(choice, *names, balance))
    return balance


@pytest.mark.chaos
@pytest.mark.parametrize("broker", ["amqp"], indirect=True)
def test_nothing_is_lost_on_rabbitmq(broker: Broker, tmp_path: Path) -> None:
    """Without a ledger what was delivered again happens again."""
    balance = run_under_fire(broker, tmp_path)
    assert (balance.lost, balance.unexpected) == ([], [])
    assert balance.kills


# -- Long -------------------------------------------------------------------------------------------------------------


@LONG
@pytest.mark.chaos
@pytest.mark.parametrize("broker", ["own"], indirect=True)
def test_nothing_is_lost_on_redis(broker: Broker, tmp_path: Path) -> None:
    """By way of our own transport, which fetches and records in one step."""
    balance = run_under_fire(broker, tmp_path)
    assert (balance.lost, balance.unexpected) == ([], [])
    assert balance.kills


@LONG
@pytest.mark.chaos
@pytest.mark.parametrize("broker", ["redis"], indirect=True)
def test_what_stock_redis_loses(broker: Broker, tmp_path: Path) -> None:
    """Celery's transport takes a message off the queue with one command and records it with a later one: what a worker
    has fetched and not yet recorded dies with it, whatever is set. So nothing is asserted of what is lost but that it
    is rare: less than one emission a kill.
    """
    balance = run_under_fire(broker, tmp_path)
    assert balance.unexpected == []
    assert len({number for _, number in balance.lost}) < balance.kills


@LONG
@pytest.mark.chaos
def test_a_ledger_in_redis(broker: Broker, valkey: Valkey, redis_url: str, tmp_path: Path) -> None:
    """What has finished is not run again; what died between its effect and the ledger's word is."""
    balance = run_under_fire(broker, tmp_path, ledger=redis_url)
    assert balance.unexpected == []
    assert balance.duplicated < balance.kills
    check_lost(broker, balance)


@LONG
@pytest.mark.chaos
def test_a_ledger_in_the_database_of_the_effects(broker: Broker, tmp_path: Path) -> None:
    """Each effect happens exactly once."""
    database = tmp_path / "effects.db"
    balance = run_under_fire(broker, tmp_path, ledger=f"sqlite:///{database}", database=database)
    assert (balance.duplicated, balance.unexpected) == (0, [])
    check_lost(broker, balance)


def check_lost(broker: Broker, balance: Balance) -> None:
    """A ledger cannot remember what stock Redis loses before a worker has seen it."""
    allowed = balance.kills - 1 if broker.is_stock_redis else 0
    assert len({number for _, number in balance.lost}) <= allowed
