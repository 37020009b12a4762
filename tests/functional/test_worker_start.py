"""What a worker checks before it starts, and apps with more than one queue or a configuration that comes later."""

from __future__ import annotations

import gc
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery.contrib.testing.worker import start_worker

from tests.brokers import Valkey
from tests.functional.apps.support import SECRETS, new_emitter, service
from tests.workers import Process, logging_left_alone


@pytest.fixture(scope="module")
def broker() -> Iterator[Valkey]:
    with Valkey() as server:
        yield server


# -- Checks ---------------------------------------------------------------------------------------------------------


def test_default_queue_that_is_not_consumed_is_an_error(broker: Valkey, tmp_path: Path) -> None:
    with service(broker.url, "mine", tmp_path, queues="yours,hers") as worker:
        log = worker.log()
    (line,) = [line for line in log.splitlines() if "ERROR" in line]
    assert "This worker consumes yours, hers but not mine" in line
    assert "-Q yours,hers,mine" in line
    assert "name='yours'" in line


def test_default_queue_that_is_consumed_is_none(broker: Valkey, tmp_path: Path) -> None:
    with service(broker.url, "mine", tmp_path, queues="yours,mine") as worker:
        pass
    assert "ERROR" not in worker.log()


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ({"accept_content": ["pickle"]}, "'application/json'"),
        ({"task_protocol": 1}, "task_protocol"),
    ],
    ids=str,
)
def test_does_not_start_with_an_app_that_cannot_receive_emissions(
    setting: dict[str, Any], named: str, broker: Valkey, tmp_path: Path
) -> None:
    """Set after the queue was made, which would have refused the first itself."""
    env = {"TEST_LATER": json.dumps(setting)}
    with (
        pytest.raises(AssertionError, match="ended with 1") as end,
        service(broker.url, "late", tmp_path, env=env),
    ):
        pass
    assert named in str(end.value)
    assert "Traceback" not in str(end.value)


# -- Several queues ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_queues(broker: Valkey, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    folder = tmp_path_factory.mktemp("two")
    with service(broker.url, "", folder, app="two_queues:app", queues="first,second") as worker:
        yield worker


@pytest.mark.parametrize("name", ["first", "second"])
def test_each_queue_has_its_own_secret(name: str, two_queues: Process, broker: Valkey) -> None:
    emission = new_emitter(broker.url, "", name=name, secret=SECRETS[name]).emit("Plain", name)
    two_queues.wait_for(f"{emission.id} plain {name}")


def test_the_secret_of_one_queue_does_not_open_the_other(two_queues: Process, broker: Valkey) -> None:
    emission = new_emitter(broker.url, "", name="first", secret=SECRETS["second"]).emit("Plain")
    two_queues.wait_for(f"Message '{emission.id}' refused on queue 'first', and not run: it is signed with another key")


def test_unhandled_events_are_ignored_where_the_queue_says_so(two_queues: Process, broker: Valkey) -> None:
    emission = new_emitter(broker.url, "", name="second", secret=SECRETS["second"]).emit("NobodyIsLinked")
    log = two_queues.wait_for(f"NobodyIsLinked[{emission.id}] succeeded")
    assert not [line for line in log.splitlines() if emission.id in line and "ERROR" in line]


def test_another_app_in_the_same_module(broker: Valkey, tmp_path: Path) -> None:
    with service(broker.url, "", tmp_path, app="two_queues:other_app", queues="other") as worker:
        emission = new_emitter(broker.url, "", name="other", secret=SECRETS["other"]).emit("Plain")
        worker.wait_for(f"{emission.id} plain")
    assert "pyventus.first" not in worker.log()


# -- Garbage ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pool", ["solo", "prefork"])
def test_what_is_loaded_is_left_alone_by_the_garbage_collector(pool: str, broker: Valkey, tmp_path: Path) -> None:
    """In the process that runs handlers, whether it was forked or not."""
    with service(broker.url, f"frozen-{pool}", tmp_path, pool=pool) as worker:
        new_emitter(broker.url, f"frozen-{pool}").emit("Frozen")
        log = worker.wait_for("objects are frozen")
    (count,) = re.findall(r"(\d+) objects are frozen", log)
    assert int(count) > 10_000


def test_a_worker_in_a_process_of_others_leaves_their_garbage_alone(broker: Valkey) -> None:
    before = gc.get_freeze_count()
    emitter = new_emitter(broker.url, "embedded")
    with logging_left_alone(), start_worker(emitter._queues[0].app, pool="solo", perform_ping_check=False):
        assert gc.get_freeze_count() == before


# -- A configuration that comes later ---------------------------------------------------------------------------------

LAZY = """
from celery import Celery
from pyventus.emitters.celery import CeleryEventEmitter

called = []
app = Celery("lazy")
app.config_from_object("{settings}")
queue = CeleryEventEmitter.Queue(app, secret="s" * 32)
emitter = CeleryEventEmitter(queue)
assert not app.configured and not app.finalized
app.on_after_configure.connect(lambda **_: called.append("configure"), weak=False)
app.on_after_finalize.connect(lambda **_: called.append("finalize"), weak=False)
assert called == []
app.finalize()
app.conf.broker_url
assert sorted(called) == ["configure", "finalize"], called
assert queue.name == "lazy-queue"
assert queue.task_name in app.tasks, sorted(app.tasks)
assert app.tasks[queue.task_name].acks_late is True
"""


def test_making_a_queue_loads_no_configuration(tmp_path: Path) -> None:
    """Receivers that are connected further down in the user's module still hear of it."""
    settings = tmp_path / "lazy_settings.py"
    settings.write_text("task_default_queue = 'lazy-queue'\ntask_acks_late = False\n")
    run = subprocess.run(
        [sys.executable, "-c", LAZY.format(settings=settings.stem)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr


def test_changes_after_binding_are_undone_at_the_start(broker: Valkey, tmp_path: Path) -> None:
    """By an app that sets what it likes on all its tasks."""
    env = {"TEST_TASKS_LATER": json.dumps({"acks_late": False, "reject_on_worker_lost": False})}
    with service(broker.url, "late", tmp_path, pool="prefork", concurrency=1, env=env) as worker:
        emission = new_emitter(broker.url, "late").emit("Killed", str(tmp_path / "killed"))
        worker.wait_for(f"{emission.id} is killed", f"{emission.id} ran again")
