"""With a ledger what is delivered again has its effects once, and what died is run again, but not for ever."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pyventus.emitters.celery import CeleryEventEmitter
from pyventus.emitters.celery.suspects import MAX_STARTS
from tests.brokers import Valkey
from tests.functional.apps.support import ASYNCIO, new_emitter, service, wait_until


@pytest.fixture(params=["redis", "sqlite"])
def ledger(request: pytest.FixtureRequest, valkey: Valkey, tmp_path: Path) -> dict[str, Any]:
    """Options for a worker with a ledger whose leases are short."""
    url = valkey.url if request.param == "redis" else f"sqlite:///{tmp_path / 'ledger.db'}"
    return {"env": {"TEST_QUEUE_OPTIONS": json.dumps({"ledger": url}), "TEST_LEASE": "1"}}


def send_again(emitter: CeleryEventEmitter, emission: Any, times: int) -> None:
    for _ in range(times):
        emitter.send(emission)


@pytest.mark.parametrize("pool", [{"pool": "threads"}, ASYNCIO], ids=["threads", "asyncio"])
def test_what_has_run_is_skipped(
    pool: dict[str, Any], broker_url: str, queue_name: str, ledger: dict[str, Any], tmp_path: Path
) -> None:
    """However often its message is delivered; what failed to the end stays failed."""
    emitter = new_emitter(broker_url, queue_name)
    options = {**pool, "env": {**pool.get("env", {}), **ledger["env"]}}
    with service(broker_url, queue_name, tmp_path, concurrency=5, **options) as worker:
        plain, flaky = emitter.prepare("Plain"), emitter.prepare("Flaky", 2)
        fails = emitter.prepare("Fails", "x")
        for emission in (plain, flaky, fails):
            send_again(emitter, emission, 8)
        # The last of each come after whatever was copied because another ran meanwhile.
        wait_until(lambda: worker.log().count(" received") >= 25, "all messages")
        worker.wait_for(f"{flaky.id} attempt 2", f"FAILURE of {fails.id}")
        for emission in (plain, flaky, fails):
            send_again(emitter, emission, 1)
        worker.wait_for(
            f"Handler plain is not run again on emission {plain.id} of 'Plain': the ledger says that it is done",
            f"Handler fails is not run again on emission {fails.id} of 'Fails': the ledger says that it is dead",
        )
    log = worker.log()
    assert log.count(f"{plain.id} plain") == 1
    assert [log.count(f"{flaky.id} {text}") for text in ("attempt 1", "attempt 2", "steady")] == [1, 1, 1]
    assert log.count(f"Handler fails failed on emission {fails.id}") == 1
    assert len(emitter._queues[0].dead_letters.list()) == 2


def test_what_runs_elsewhere_is_looked_at_again(
    broker_url: str, queue_name: str, ledger: dict[str, Any], tmp_path: Path
) -> None:
    """For as long as its process renews the lease it is left alone."""
    emitter, file = new_emitter(broker_url, queue_name), tmp_path / "go"
    with (
        service(broker_url, queue_name, tmp_path, pool="threads", concurrency=3, **ledger) as first,
        service(broker_url, queue_name, tmp_path, pool="threads", concurrency=3, **ledger) as second,
    ):
        emission = emitter.emit("HoldsOn", str(file))
        wait_until(lambda: f"{emission.id} waits, too" in first.log() + second.log(), "the first run")
        emitter.send(emission)
        wait_until(lambda: (first.log() + second.log()).count(f"HoldsOn[{emission.id}] received") >= 4, "looking again")
        file.touch()
        wait_until(lambda: f"{emission.id} of 'HoldsOn': the ledger says" in first.log() + second.log(), "the skip")
    log = first.log() + second.log()
    assert log.count(f"{emission.id} finished, too") == 2


def test_what_died_with_its_worker_is_run_again(
    amqp_url: str, queue_name: str, ledger: dict[str, Any], tmp_path: Path
) -> None:
    """When its lease has run out; the handler beside it that had finished is not."""
    emitter, file = new_emitter(amqp_url, queue_name), tmp_path / "go"
    with service(amqp_url, queue_name, tmp_path, **ledger) as first:
        emission = emitter.emit("Halves", str(file))
        first.wait_for(f"{emission.id} quick half", f"{emission.id} waits, too")
        first.kill()
    file.touch()
    with service(amqp_url, queue_name, tmp_path, **ledger) as second:
        second.wait_for(f"{emission.id} finished, too", timeout=40)
    assert f"{emission.id} quick half" not in second.log()


@pytest.mark.parametrize("event", ["DiesAfterSuccess", "DiesAfterFailure"])
def test_a_callback_that_kills_its_process_is_not_called_again(
    event: str, broker_url: str, queue_name: str, ledger: dict[str, Any], tmp_path: Path
) -> None:
    """Nor does its handler run again: what became of it was recorded first, and its dead letter still follows."""
    emitter, file = new_emitter(broker_url, queue_name), tmp_path / "calls"
    letters = emitter._queues[0].dead_letters
    with service(broker_url, queue_name, tmp_path, pool="prefork", concurrency=1, **ledger) as worker:
        emission = emitter.with_options(headers={"file": str(file)}).emit(event)
        if event == "DiesAfterSuccess":
            worker.wait_for(f"Handler dies afterwards is not run again on emission {emission.id}", timeout=40)
        else:
            wait_until(lambda: len(letters.list()) == 1, "the dead letter")
    assert file.read_text().split("\n") == ["ran", "called back", ""]
    assert len(letters.list()) == (event == "DiesAfterFailure")


def test_a_poisonous_handler_is_given_up(
    broker_url: str, queue_name: str, ledger: dict[str, Any], tmp_path: Path
) -> None:
    """After as many starts as without a ledger."""
    file, emitter = tmp_path / "starts", new_emitter(broker_url, queue_name)
    with service(broker_url, queue_name, tmp_path, pool="prefork", concurrency=1, **ledger) as worker:
        emission = emitter.emit("PoisonInTea", str(file))
        worker.wait_for(f"{emission.id} gave up because of WorkerLost", f"{emission.id} tea", timeout=40)
    assert len(file.read_text()) == MAX_STARTS
    (letter,) = emitter._queues[0].dead_letters.list()
    assert (letter.reason, letter.handlers) == ("lost", ("poison",))


def test_a_once_handler_that_died_is_run_by_the_worker_that_was_denied(
    amqp_url: str, queue_name: str, ledger: dict[str, Any], tmp_path: Path
) -> None:
    """It belongs to the first emission, wherever that is run in the end."""
    emitter, file = new_emitter(amqp_url, queue_name), tmp_path / "go"
    with (
        service(amqp_url, queue_name, tmp_path, **ledger) as second,
        service(amqp_url, queue_name, tmp_path, **ledger) as first,
    ):
        owners = [emitter.emit("OnceWaits", str(file)) for _ in range(6)]
        wait_until(lambda: "the once handler waits" in first.log() + second.log(), "the first run")
        runs, idles = (first, second) if "the once handler waits" in first.log() else (second, first)
        wait_until(lambda: "OnceWaits" in idles.log(), "the other worker's share")
        runs.kill()
        file.touch()
        (owner,) = [each for each in owners if f"{each.id} the once handler waits" in runs.log()]
        idles.wait_for(f"{owner.id} the once handler is done", timeout=40)
    assert (first.log() + second.log()).count("the once handler is done") == 1


def test_once_is_for_all_workers(redis_url: str, queue_name: str, ledger: dict[str, Any], tmp_path: Path) -> None:
    emitter = new_emitter(redis_url, queue_name)
    with (
        service(redis_url, queue_name, tmp_path, pool="prefork", concurrency=2, **ledger) as first,
        service(redis_url, queue_name, tmp_path, **ledger) as second,
    ):
        emissions = [emitter.emit("OnlyOnce") for _ in range(12)]
        wait_until(
            lambda: all(f"OnlyOnce[{each.id}] succeeded" in first.log() + second.log() for each in emissions), "all"
        )
    assert (first.log() + second.log()).count("the only one") == 1
