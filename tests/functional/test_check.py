"""``celery -A app pyventus check``: each finding where it is deserved, and not where it is not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from click.testing import CliRunner
from kombu import Exchange
from kombu import Queue as BrokerQueue

from pyventus.emitters.celery import CeleryEventEmitter
from pyventus.emitters.celery import check as checking
from pyventus.emitters.celery.check import Broker, Facts, Finding, Workers, check, check_command
from pyventus.handlers import EventHandler
from tests.brokers import RabbitMQ, Valkey, hanging_broker, refused_port, trickling_broker
from tests.functional.apps.support import ROOT, SECRET, new_emitter, new_queue, service

PASSWORD = "s3krit-of-the-broker"
WEAK = "ignore::pyventus.emitters.celery.queue.WeakSecretWarning"


def handle() -> None: ...


def handler(name: str = "named", **options: Any) -> EventHandler:
    """As the linker makes it; with options that it may not know yet."""
    known = {option: options.pop(option) for option in ("timeout", "once") if option in options}
    made = type("Handler", (EventHandler,), {})(handle, id=name, **known)
    for option, value in options.items():
        setattr(made, option, value)
    return made


def facts(
    *handlers: EventHandler,
    driver: str = "redis",
    workers: Workers | None = None,
    broker: dict[str, Any] | None = None,
    queue: dict[str, Any] | None = None,
    **settings: Any,
) -> Facts:
    app = Celery("shop", broker="memory://", set_as_current=False)
    app.conf.update(settings)
    queues = [CeleryEventEmitter.Queue(app, **{"secret": SECRET, **(queue or {})})]
    return Facts(app, queues, list(handlers), Broker(driver, **(broker or {})), workers or Workers())


def found(given: Facts) -> list[Finding]:
    return [finding for each in checking.CHECKS for finding in each(given)]


def of_level(findings: list[Finding], *levels: str) -> list[str]:
    return [f"{finding.subject}: {finding.fact}" for finding in findings if finding.level in levels]


HEALTHY: dict[str, Any] = {
    "workers": Workers(stats={"w": {}}, queues={"w": ["celery"]}, tasks={"w": ["pyventus.celery"]}),
    "broker": {"info": {"aof_enabled": 1}, "settings": {"save": "", "appendfsync": "always"}},
}


def bad(*handlers: EventHandler, **changes: Any) -> list[str]:
    """What is said beyond what is ok of something healthy with these changes."""
    return of_level(
        found(facts(*(handlers or (handler(timeout=5),)), **{**HEALTHY, **changes})), "error", "warning", "unknown"
    )


# -- Settings, handlers, and what worker and broker have told ---------------------------------------------------------


def test_healthy() -> None:
    assert bad() == []
    assert bad(driver="amqp", broker={"version": "4", "queues": {"celery": (0, 1)}}) == []


@pytest.mark.parametrize(
    ("broker", "said"),
    [
        ({}, "redis transport: Celery's own can lose what a worker that is killed has just fetched"),
        ({"transport": "pyventus-redis"}, "redis transport: a worker that is killed loses nothing"),
        ({"transport": "pyventus-redis"}, "running time: however long a handler runs"),
        ({"transport": "pyventus-redis"}, "delays: Redis holds delayed emissions"),
    ],
)
def test_redis_transports(broker: dict[str, Any], said: str) -> None:
    """Ours has no visibility timeout that a handler or a delay could pass, and acknowledges over one connection."""
    given = facts(
        handler(timeout=7200), broker=broker, workers=Workers(stats={"w": GEVENT}), broker_transport_options=TIGHT
    )
    assert [line for line in of_level(found(given), "ok") if line.startswith(said)]
    problems = of_level(found(given), "error", "warning", "unknown")
    assert any(line.startswith(("running time:", "delays:", "connections:")) for line in problems) == (not broker)


TIGHT = {"visibility_timeout": 8}
GEVENT = {"pool": {"implementation": "celery.concurrency.gevent:TaskPool", "max-concurrency": 11}}
THREADS = {"pool": {"implementation": "celery.concurrency.thread:TaskPool", "max-concurrency": 50}}
CONSUMED = {"queues": {"w": ["celery"]}, "tasks": {"w": ["pyventus.celery"]}}


@pytest.mark.filterwarnings(WEAK)
@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"task_always_eager": True}, "eager: task_always_eager is on"),
        ({"queue": {"secret": None}}, "secret: queue 'celery' has no secret"),
        ({"queue": {"secret": "x" * 31}}, "secret: queue 'celery' has a secret of 31 bytes"),
        ({"queue": {"secret": "x" * 32}}, None),
        ({"accept_content": ["json", "pickle"]}, None),
        (
            {"accept_content": ["json", "pickle"], "queue": {"allow_pickled_tasks": True}},
            "pickle: the app accepts pickled messages, and none of its queues closes its workers to them",
        ),
        (
            {"accept_content": ["json", "pickle"], "task_serializer": "pickle"},
            "pickle: app 'shop' pickles its own messages (task_serializer='pickle'",
        ),
        ({"task_protocol": 1}, "queues: app 'shop' has task_protocol=1"),
        ({"worker_send_task_events": True}, "events: worker_send_task_events is on"),
        ({"worker_prefetch_multiplier": 0}, "prefetch: worker_prefetch_multiplier=0"),
        ({"worker_cancel_long_running_tasks_on_connection_loss": True}, "connection loss: worker_cancel"),
        ({"enable_utc": False}, "clock: enable_utc is off"),
        ({"task_default_delivery_mode": "transient"}, "durability: task_default_delivery_mode is transient"),
        ({"task_default_delivery_mode": 2}, None),
        ({"task_acks_late": True, "task_reject_on_worker_lost": True}, None),
        ({"broker_transport_options": {"visibility_timeout": 8}}, "delays: a visibility timeout of 8 s has every"),
        ({"broker_transport_options": {"visibility_timeout": 60}}, None),
        ({"workers": Workers(stats={"w": GEVENT}, **CONSUMED)}, "connections: w runs 11 greenlets over 10 connections"),
        ({"workers": Workers(stats={"w": THREADS}, **CONSUMED)}, None),
        (
            {
                "workers": Workers(stats={"w": GEVENT}, **CONSUMED),
                "broker_transport_options": {"max_connections": 20},
            },
            None,
        ),
        (
            {"workers": Workers(stats={"w": {}}, queues={"w": ["other"]}, tasks={"w": []})},
            "consumers: no worker that answers consumes queue 'celery', where 0 wait",
        ),
        (
            {"workers": Workers(stats={"w": {}}, queues={"w": ["celery"]}, tasks={"w": ["shop.task"]})},
            "workers: w consume 'celery' and do not know 'pyventus.celery'",
        ),
    ],
)
def test_app_and_workers(changes: dict[str, Any], expected: str | None) -> None:
    said = bad(**changes)
    assert len(said) == (expected is not None), said
    assert expected is None or said[0].startswith(expected)


@pytest.mark.parametrize(
    ("options", "settings", "expected"),
    [
        ({}, {}, "running time: no timeout and no time limit bounds named"),
        ({}, {"task_time_limit": 60}, None),
        ({}, {"task_soft_time_limit": 60}, None),
        (
            {},
            {"task_time_limit": 3600},
            "running time: the visibility timeout of 3600 s is not above Celery's time limit",
        ),
        (
            {"timeout": 3600},
            {},
            "running time: the visibility timeout of 3600 s is not above the timeout of named (3600 s)",
        ),
        ({"timeout": 3600}, {"broker_transport_options": {"visibility_timeout": 3601}}, None),
        (
            {"timeout": 1800},
            {"driver": "amqp"},
            "running time: the consumer timeout (RabbitMQ's default) of 1800 s is not",
        ),
        (
            {"timeout": 60},
            {"task_time_limit": 60},
            "time limits: task_time_limit=60 is not above the timeout of named (60 s)",
        ),
        ({"timeout": 60}, {"task_soft_time_limit": 50}, "time limits: task_soft_time_limit=50 is not above"),
        ({"timeout": 60}, {"task_time_limit": 70, "task_soft_time_limit": 61}, None),
    ],
)
def test_times(options: dict[str, Any], settings: dict[str, Any], expected: str | None) -> None:
    if settings.get("driver") == "amqp":
        settings = {**settings, "broker": {"queues": {"celery": (0, 1)}}}
    said = bad(handler(**options), **settings)
    assert len(said) == (expected is not None), said
    assert expected is None or said[0].startswith(expected)


class Policy:
    max_delay = 7200.0


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("named", {"retry": Policy()}, None),
        (f"{__name__}:handle", {}, None),
        (f"{__name__}:handle", {"retry": Policy()}, "handlers: handlers with retries and without a name"),
        (f"{__name__}:handle#2", {}, "handlers: ids depend on the order or place of the code"),
    ],
)
def test_handlers(name: str, options: dict[str, Any], expected: str | None) -> None:
    said = bad(handler(name, timeout=5, **options))
    assert len(said) == (expected is not None), said
    assert expected is None or said[0].startswith(expected)


def test_longest_delay_is_told() -> None:
    told = of_level(found(facts(handler(retry=Policy()), **HEALTHY)), "ok")
    assert "delays: workers hold delayed emissions 900 s at a time; the longest retry delay is 7200 s" in told


def test_rabbitmq_delays_on_quorum_queues() -> None:
    told = found(facts(handler(retry=Policy()), driver="amqp", task_default_queue_type="quorum"))
    assert "delays: RabbitMQ itself delays emissions; the longest retry delay is 7200 s" in of_level(told, "ok")


def test_no_handler_and_no_queue() -> None:
    given = facts(**HEALTHY)
    given.queues = []
    said = of_level(found(given), "error", "warning")
    assert said == ["queues: the app has no emission queue", "handlers: no handler is linked in this process"]


def test_secret_of_several_queues() -> None:
    given = facts(handler(timeout=5), **HEALTHY)
    given.queues.append(CeleryEventEmitter.Queue(given.app, "other", secret=["y" * 32, SECRET]))
    given.workers.queues["w"] = ["celery", "other"]
    given.workers.tasks["w"] = ["pyventus.celery", "pyventus.other"]
    try:
        assert of_level(found(given), "error", "warning") == ["secret: queues 'celery', 'other' have the same secret"]
    finally:
        given.workers.queues["w"], given.workers.tasks["w"] = ["celery"], ["pyventus.celery"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"durable": False}, "durability: queue 'celery' is declared not durable"),
        ({"auto_delete": True}, "durability: queue 'celery' is declared not durable, or to be deleted"),
        ({"queue_arguments": {"x-queue-type": "quorum"}}, None),
        (
            {"queue_arguments": {"x-queue-type": "quorum"}, "max_priority": 9},
            "durability: queue 'celery' is declared as a quorum queue with",
        ),
    ],
)
def test_declarations(arguments: dict[str, Any], expected: str | None) -> None:
    queues = [BrokerQueue("celery", Exchange("celery"), "celery", **arguments)]
    said = bad(driver="amqp", broker={"queues": {"celery": (0, 1)}}, task_queues=queues)
    assert len(said) == (expected is not None), said
    assert expected is None or said[0].startswith(expected)


def test_queue_of_a_handler_that_cannot_be_sent_to() -> None:
    changes = {"task_queues": [BrokerQueue("celery")], "task_create_missing_queues": False}
    said = bad(handler(timeout=5, queue="slow"), driver="amqp", broker={"queues": {"celery": (0, 1)}}, **changes)
    assert said == [
        "consumers: no worker that answers consumes queue 'slow', where 0 wait",
        "durability: queue 'slow' is not in task_queues, and task_create_missing_queues is off",
    ]


# -- Brokers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {"warning": "redis disk: it keeps nothing on disk"}),
        ({"save": "60 1"}, {"warning": "redis disk: appendonly is off, and only snapshots are taken"}),
        ({"appendonly": "yes"}, {"ok": "loses up to about a second of what was emitted"}),
        ({"appendonly": "yes", "appendfsync": "always"}, {"ok": "loses nothing of what was emitted"}),
        (
            {"appendonly": "yes", "maxmemory": "100mb", "maxmemory_policy": "allkeys-lru"},
            {"error": "redis memory: maxmemory-policy is allkeys-lru"},
        ),
        (
            {"appendonly": "yes", "maxmemory_policy": "allkeys-lru"},
            {"warning": "redis memory: maxmemory-policy is allkeys-lru, though maxmemory has no limit yet"},
        ),
        ({"appendonly": "yes", "maxmemory_policy": "volatile-lru"}, {"ok": "maxmemory-policy is volatile-lru"}),
        ({"appendonly": "yes", "replicaof": "127.0.0.1 1"}, {"error": "redis role: it is a replica"}),
    ],
)
def test_redis(options: dict[str, str], expected: dict[str, str]) -> None:
    with Valkey(**{"save": "", **options}) as server:
        app = Celery("shop", broker=server.url, set_as_current=False)
        findings = [finding for finding in check_broker(app) if finding.subject.startswith(("redis", "broker"))]
    for level in ("error", "warning", "ok"):
        said = of_level(findings, level)
        if level in expected:
            assert any(expected[level] in line for line in said), said
        else:
            assert level == "ok" or not said
    assert any(finding.fact.startswith("Redis or Valkey 9.") for finding in findings)


def check_broker(app: Celery) -> list[Finding]:
    """Without asking workers, of which there are none."""
    given = facts(driver="")
    given.broker = checking._ask_broker(app, [])
    return list(checking._check_broker(given))


def test_hosted_redis_that_refuses_config() -> None:
    findings = list(checking._check_persistence(has_log=False, settings=None))
    assert of_level(findings, "unknown") == [
        "redis disk: appendonly is off, and whether snapshots are taken is not told"
    ]


def test_unknown_transport() -> None:
    assert "broker: a transport of type 'sqs' answers, of which nothing is known here" in bad(driver="sqs")


@pytest.mark.parametrize("how", ["refused", "hangs", "trickles"])
@pytest.mark.parametrize("scheme", ["redis", "amqp"])
def test_broker_that_does_not_answer(scheme: Any, how: str) -> None:
    """It is said within the time that is given, and workers are not said to have been silent."""
    peer = {"refused": refused_port, "hangs": hanging_broker, "trickles": lambda: trickling_broker(scheme)}[how]
    with peer() as broker:
        port = getattr(broker, "port", broker)
        app = Celery("shop", broker=f"{scheme}://user:{PASSWORD}@127.0.0.1:{port}/0", set_as_current=False)
        CeleryEventEmitter.Queue(app, secret=SECRET)
        findings = check(app, seconds=8 if how == "refused" else 0.5)
    (said,) = [finding for finding in findings if finding.level == "error"]
    assert said.fact.startswith("it cannot be asked: ")
    assert ("refused" if how == "refused" else "no answer in time") in said.fact
    assert not [finding for finding in findings if finding.subject in ("workers", "consumers", "delays")]
    assert PASSWORD not in str(findings)


@pytest.mark.parametrize(
    "url", [f"redis://:{PASSWORD}/x@127.0.0.1:1/0", f"amqp://user:{PASSWORD}#1@127.0.0.1:1//", f"redis://:{PASSWORD}@["]
)
def test_broker_url_that_is_none(url: str) -> None:
    app = Celery("shop", broker=url, set_as_current=False)
    CeleryEventEmitter.Queue(app, secret=SECRET)
    findings = check(app, seconds=5.0)
    assert of_level(findings, "error")
    assert PASSWORD not in str(findings)
    assert PASSWORD[:5] not in str(findings)


def test_passwords_are_masked_however_they_are_written() -> None:
    app = Celery("shop", broker="redis://:a%2Fb%40c@h;redis://:third@h", set_as_current=False)
    app.conf.result_backend = "redis://:third:3@h"
    finding = Finding("error", "broker", "a%2Fb%40c a/b@c", "third third:3")
    assert checking._masked(finding, checking._passwords(app)) == Finding("error", "broker", "**** ****", "**** ****")


# -- The command, with a worker ---------------------------------------------------------------------------------------


@pytest.fixture
def own_valkey() -> Iterator[Valkey]:
    with Valkey(PASSWORD, appendonly="yes", save="") as server:
        yield server


def run_check(url: str, queue: str, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "celery", "-A", "tests.functional.apps.service", "pyventus", "check", *options],
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]),
            "TEST_BROKER": url,
            "TEST_QUEUE": queue,
        },
        capture_output=True,
        text=True,
        timeout=30,
    )


def test_command(own_valkey: Valkey, queue_name: str, tmp_path: Path) -> None:
    with service(own_valkey.url, queue_name, tmp_path, pool="threads", concurrency=2):
        good = run_check(own_valkey.url, queue_name)
        elsewhere = run_check(own_valkey.url, "nobody-consumes-it", "--json")
    assert good.returncode == 0, good.stdout + good.stderr
    assert f"ok      consumers: queue '{queue_name}': 1 consumer, 0 waiting" in good.stdout
    assert "ok      workers: 1 worker answered: test-" in good.stdout
    assert "\n0 error, " in good.stdout
    assert elsewhere.returncode == 1
    (error,) = [each for each in json.loads(elsewhere.stdout) if each["level"] == "error"]
    assert error == {
        "level": "error",
        "subject": "consumers",
        "fact": "no worker that answers consumes queue 'nobody-consumes-it', where 0 wait",
        "advice": "start one with -Q nobody-consumes-it: what is emitted there runs nowhere",
    }
    for run in (good, elsewhere):
        assert PASSWORD not in run.stdout + run.stderr
        assert SECRET not in run.stdout + run.stderr


def test_command_imports_what_a_worker_would(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "linked_late.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    app = Celery("shop", broker="memory://", set_as_current=False)
    app.conf.imports = ["linked_late"]
    result = CliRunner().invoke(check_command, obj=SimpleNamespace(app=app))
    assert "linked_late" in sys.modules
    assert result.exit_code == 1
    assert "ERROR   queues: the app has no emission queue\n        → make a CeleryEventEmitter.Queue" in result.output


def test_rabbitmq(amqp_url: str, rabbitmq: RabbitMQ, queue_name: str, tmp_path: Path) -> None:
    """What waits and who consumes, with a worker and without."""
    queue = new_queue(amqp_url, queue_name)
    new = new_emitter(amqp_url, queue_name)
    new.emit("Plain")
    alone = of_level(check(queue.app), "error", "warning", "ok")
    with service(amqp_url, queue_name, tmp_path, pool="threads", concurrency=1) as worker:
        worker.wait_for("plain")
        attended = of_level(check(queue.app), "ok", "warning")
    assert f"consumers: no worker that answers consumes queue {queue_name!r}, where 1 wait" in alone
    assert f"consumers: queue {queue_name!r}: 1 consumer, 0 waiting" in attended
    assert f"durability: queue {queue_name!r} is declared as a durable classic queue" in attended
