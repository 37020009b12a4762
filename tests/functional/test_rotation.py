"""A secret is changed while emitters and a worker run, and not one message is rejected."""

from __future__ import annotations

import re
import threading
from collections import Counter
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from pyventus.emitters.celery import CeleryEventEmitter
from tests.functional.apps.support import new_queue, publish, service, task_message, wait_until
from tests.workers import Process

OLD, NEW = "the old secret " * 3, "the new secret " * 3
#: What workers, and after them emitters, are given, step by step.
STEPS = ([OLD], [OLD, NEW], [NEW, OLD], [NEW])


class Emitting:
    """An emitter that goes on emitting in a thread of its own while others are deployed."""

    def __init__(self, url: str, queue: str, secret: list[str]) -> None:
        self._emitter = CeleryEventEmitter(new_queue(url, queue, secret=secret))
        self._stop = threading.Event()
        self.ids: list[str] = []
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(0.02):
            self.ids.append(self._emitter.emit("Quiet").id)

    def stop(self) -> list[str]:
        self._stop.set()
        self._thread.join()
        return self.ids


def start(url: str, queue: str, folder: Path, secret: list[str]) -> Any:
    return service(
        url, queue, folder, app="quiet", pool="threads", concurrency=4, env={"TEST_SECRETS": "|".join(secret)}
    )


def await_handled(workers: list[Process], ids: list[str]) -> None:
    """Each by one of the workers, once by each of its two handlers."""

    def logs() -> str:
        return "".join(worker.log() for worker in workers)

    def runs() -> dict[str, int]:
        counts = Counter(re.findall(r"(\S+) done", logs()))
        return {id: counts[id] for id in ids}

    wait_until(lambda: min(runs().values()) >= 2, "every emission having run")
    assert {id: count for id, count in runs().items() if count > 2} == {}
    assert "refused" not in logs()


def test_in_three_steps_without_a_rejected_message(redis_url: str, queue_name: str, tmp_path: Path) -> None:
    """At each step emitters and workers meet that have made it, and others that have not."""
    ids: list[str] = []
    workers: list[Process] = []
    emitting = Emitting(redis_url, queue_name, STEPS[0])
    for secret in STEPS:
        with start(redis_url, queue_name, tmp_path, secret) as worker:
            workers.append(worker)
            # Emitters of the step before, and what they had put into the queue while no worker ran: all of it has to
            # run before the next step, which may drop their key.
            worker.wait_for(" done", count=10)
            ids += emitting.stop()
            emitting = Emitting(redis_url, queue_name, secret)
            await_handled(workers, ids)
            if secret is STEPS[-1]:
                ids += emitting.stop()
                await_handled(workers, ids)
                late = CeleryEventEmitter(new_queue(redis_url, queue_name, secret=STEPS[0])).emit("Quiet").id
                worker.wait_for(
                    f"Message '{late}' refused on queue '{queue_name}', and not run: it is signed with another"
                )
                assert f"{late} done" not in worker.log()


def test_a_copy_runs_again_until_it_is_too_old(redis_url: str, queue_name: str, tmp_path: Path) -> None:
    """Without a ledger only max_age bounds a replay: seven days, and one of tolerance."""
    queue = new_queue(redis_url, queue_name, secret=NEW)
    young, old = (_replayed(redis_url, queue, timedelta(days=days, minutes=-5)) for days in (8, 9))
    with start(redis_url, queue_name, tmp_path, [NEW]) as worker:
        worker.wait_for(f"{young} done", count=4)
        worker.wait_for(f"[{old}] raised expected: TooOld", count=2)
        # Of what has one cure, one line a minute is an ERROR.
        assert worker.log().count(f"Emission {old} of 'Quiet' was not handled: it was due 8 days ago") == 1
        assert f"{old} done" not in worker.log()


def _replayed(url: str, queue: CeleryEventEmitter.Queue, age: timedelta) -> str:
    """Id of an emission of that age, of which somebody has put a second copy into the queue."""
    emission = CeleryEventEmitter(queue).prepare("Quiet")
    emission = replace(emission, timestamp=emission.timestamp - age)
    message = task_message(queue.seal(emission, emission.id), emission.id, task=queue.task_name)
    for _ in range(2):
        publish(url, queue.name, message)
    return emission.id
