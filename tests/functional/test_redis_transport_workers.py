"""``pyventus-redis://`` in Celery's workers: what dies, freezes, is cut off or ends loses nothing of any task."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import celery
import pytest
import redis
from celery import Celery

from tests.brokers import FreezableProxy, Valkey
from tests.functional.apps.plain import new_app
from tests.functional.apps.support import service, wait_until
from tests.functional.test_redis_transport import KEYS, in_flight, is_quiet
from tests.workers import Process

Start = Callable[..., contextlib.AbstractContextManager[Process]]
POOLS = [("solo", None), ("prefork", 2), ("threads", 3), ("gevent", 3)]


@pytest.fixture
def app(own_url: str, queue_name: str) -> Celery:
    return new_app(own_url, queue_name)


@pytest.fixture
def start(own_url: str, queue_name: str, tmp_path: Path) -> Start:
    def start(*args: str, broker: str = own_url, **options: Any) -> contextlib.AbstractContextManager[Process]:
        return service(broker, queue_name, tmp_path, *args, app="plain", **options)

    return start


def send(app: Celery, task: str, *args: Any, **options: Any) -> str:
    id: str = app.send_task(task, args=args, **options).id
    return id


@pytest.mark.parametrize(("pool", "concurrency"), POOLS)
def test_pools(app: Celery, start: Start, client: redis.Redis, queue_name: str, pool: str, concurrency: int) -> None:
    with start(pool=pool, concurrency=concurrency) as worker:
        for number in range(30):
            send(app, "note", f"[{number}]")
        worker.wait_for(*[f"note [{number}]" for number in range(30)])
        wait_until(lambda: is_quiet(client, queue_name), "all are acknowledged")
    assert "again" not in worker.log()
    assert worker.process.returncode == 0


@pytest.mark.parametrize("pool", ["solo", "prefork", "threads"])
def test_killed_in_the_fetch_window(app: Celery, start: Start, client: redis.Redis, queue_name: str, pool: str) -> None:
    """What Redis gives to a worker that is stopped and then killed: stock Celery loses it."""
    for number in range(3):
        with start(pool=pool, concurrency=2) as worker:
            wait_until(lambda: client.info("clients")["blocked_clients"] >= 4, "it waits")
            worker.pause()
            send(app, "note", f"<{number}>")
            wait_until(lambda: client.llen(queue_name) == 0, "Redis has given it to the worker")
            worker.kill()
            with start() as other:
                other.wait_for(f"note <{number}>")
                wait_until(lambda: is_quiet(client, queue_name), "it is acknowledged")


@pytest.mark.parametrize("pool", ["solo", "prefork", "threads"])
def test_killed_at_work(
    app: Celery, start: Start, client: redis.Redis, queue_name: str, tmp_path: Path, pool: str
) -> None:
    """What was running, and what was fetched, comes back within seconds, marked."""
    file = tmp_path / "go"
    with start(pool=pool, concurrency=1) as worker:
        send(app, "wait", "one", str(file))
        send(app, "note", "two")
        worker.wait_for("began one")
        worker.kill()
    file.touch()
    with start() as other:
        other.wait_for("began one again", "ended one", "note two")
        wait_until(lambda: is_quiet(client, queue_name), "both are acknowledged")


def test_a_slow_task_is_not_repeated(
    app: Celery, start: Start, client: redis.Redis, queue_name: str, tmp_path: Path
) -> None:
    """A solo worker can do nothing else meanwhile; what comes then is for others."""
    file = tmp_path / "go"
    with start() as slow, start() as other:
        send(app, "wait", "it", str(file))
        wait_until(lambda: "began it" in slow.log() + other.log(), "it runs")
        for number in range(10):
            send(app, "note", f"<{number}>")
        for _ in range(12):  # each in its turn, for longer than a silent worker counts as alive
            send(app, "note", "more", countdown=0.3)
            wait_until(lambda: client.zcard(KEYS.delays) == 0, "it is due")
        file.touch()
        wait_until(lambda: is_quiet(client, queue_name), "all are acknowledged")
    log = slow.log() + other.log()
    assert log.count("began it") == 1
    assert log.count("note more") == 12
    assert "again" not in log


def test_frozen_and_thawed(app: Celery, start: Start, client: redis.Redis, queue_name: str, tmp_path: Path) -> None:
    """Others take what it had; what it acknowledges then harms nothing, and it goes on working."""
    file = tmp_path / "go"
    with start(pool="threads", concurrency=2) as frozen:
        send(app, "wait", "it", str(file))
        frozen.wait_for("began it")
        frozen.pause()
        with start() as other:
            other.wait_for("began it again")
            # For this it had asked before it was frozen.
            send(app, "note", "urgent", priority=0)
            frozen.resume()
            frozen.wait_for("was taken for dead")
            file.touch()
            for worker in (frozen, other):
                worker.wait_for("ended it")
            wait_until(lambda: is_quiet(client, queue_name), "all is acknowledged")
            wait_until(lambda: "note urgent" in frozen.log() + other.log(), "what it had asked for has run")
        send(app, "note", "after")
        frozen.wait_for("note after")
        wait_until(lambda: is_quiet(client, queue_name), "it is acknowledged")


def test_a_message_moved_for_a_frozen_worker_goes_to_another(
    app: Celery, start: Start, client: redis.Redis, queue_name: str
) -> None:
    with start() as frozen:
        wait_until(lambda: client.info("clients")["blocked_clients"] >= 4, "it waits")
        frozen.pause()
        with start() as other:
            wait_until(lambda: client.info("clients")["blocked_clients"] >= 8, "both wait")
            # Redis gives it to who has waited longest, and nothing comes after it that would have the other one look.
            send(app, "note", "<0>")
            other.wait_for("note <0>")
            for number in range(1, 6):
                send(app, "note", f"<{number}>")
            other.wait_for(*[f"note <{number}>" for number in range(1, 6)])
            wait_until(lambda: is_quiet(client, queue_name), "all are acknowledged")


@pytest.mark.parametrize(("pool", "concurrency"), [("threads", 1), ("prefork", 1), ("gevent", 2)])
def test_cut_off_at_work(
    app: Celery, start: Start, own_url: str, client: redis.Redis, queue_name: str, tmp_path: Path, pool: str,
    concurrency: int,
) -> None:  # fmt: skip
    """What runs is acknowledged over the next connection, and nobody else gets it; what waited is run."""
    file = tmp_path / "go"
    with (
        FreezableProxy(own_url) as proxy,
        start(pool=pool, concurrency=concurrency, broker=proxy.proxied_url) as worker,
        start() as other,
    ):
        other.wait_for("ready")
        send(app, "wait", "it", str(file))
        wait_until(lambda: "began it" in worker.log() + other.log(), "it runs")
        if "began it" in other.log():
            pytest.skip("the other one has it")
        for number in range(6):
            send(app, "note", f"<{number}>")
        proxy.cut()
        worker.wait_for("Connection to broker lost")
        # For longer than a silent worker counts as alive.
        send(app, "note", "later", countdown=4)
        wait_until(lambda: client.zcard(KEYS.delays) == 0, "that is due")
        file.touch()
        worker.wait_for("ended it")
        if pool == "prefork" and celery.VERSION < (5, 7):
            # Prefork has forgotten that it runs this, and Redis has not.
            wait_until(lambda: in_flight(client) == 1, "all others are acknowledged")
        else:
            wait_until(lambda: is_quiet(client, queue_name), "it is acknowledged")
        assert all(f"note <{number}>" in worker.log() + other.log() for number in range(6))
    assert (worker.log() + other.log()).count("began it") == 1


def test_server_restarted_at_work(queue_name: str, tmp_path: Path, start: Start) -> None:
    """It knows no scripts then, and the heartbeats may have expired."""
    file = tmp_path / "go"
    with Valkey(appendonly="yes", appendfsync="always") as server:
        url = f"pyventus-{server.url}"
        app = new_app(url, queue_name)
        with start(pool="threads", concurrency=1, broker=url) as worker:
            send(app, "wait", "it", str(file))
            send(app, "note", "next")
            worker.wait_for("began it")
            server.kill()
            worker.wait_for("Connection to broker lost")
            server.restart()
            send(app, "note", "later")
            file.touch()
            worker.wait_for("ended it", "note next", "note later", timeout=40)
            with server.client() as client:
                wait_until(lambda: is_quiet(client, queue_name), "all are acknowledged")
    assert worker.log().count("began it") == 1


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_warm_shutdown(
    app: Celery, start: Start, client: redis.Redis, queue_name: str, tmp_path: Path, pool: str
) -> None:
    """It ends what it runs, and gives the rest back at once."""
    file = tmp_path / "go"
    with start(pool=pool, concurrency=1) as worker:
        for number in range(8):
            send(app, "wait", f"<{number}>", str(file))
        worker.wait_for("began <0>")
        worker.signal(signal.SIGTERM)
        worker.wait_for("Warm shutdown")
        file.touch()
        worker.wait()
    ended = sum(f"ended <{number}>" in worker.log() for number in range(8))
    assert ended >= 1
    assert in_flight(client) == 0
    assert client.llen(queue_name) == 8 - ended


def test_cold_shutdown(app: Celery, start: Start, client: redis.Redis, queue_name: str, tmp_path: Path) -> None:
    """What it has killed is given back at once."""
    with start(pool="prefork", concurrency=1) as worker:
        send(app, "wait", "it", str(tmp_path / "never"))
        send(app, "note", "x")
        worker.wait_for("began it")
        worker.signal(signal.SIGQUIT)
        worker.wait()
    wait_until(lambda: client.llen(queue_name) == 2 and in_flight(client) == 0, "both are back")


def test_delays(app: Celery, start: Start, client: redis.Redis, queue_name: str) -> None:
    with start() as worker:
        send(app, "note", "far", countdown=3600)
        send(app, "note", "near", countdown=1.5)
        send(app, "retry", "it", 1.5)
        worker.wait_for("first it", "second it", "note near")
        wait_until(lambda: is_quiet(client, queue_name), "all are acknowledged")
    assert client.zcard(KEYS.delayed(queue_name)) == 1
    assert "again" not in worker.log()
    assert "note far" not in worker.log()


@pytest.mark.parametrize(("pool", "concurrency"), [("prefork", 1), ("gevent", 2)])
def test_remote_control(
    app: Celery, start: Start, client: redis.Redis, queue_name: str, tmp_path: Path, pool: str, concurrency: int
) -> None:
    with start(pool=pool, concurrency=concurrency) as worker:
        # Under gevent it says that it is ready before it listens.
        wait_until(app.control.ping, "it listens")
        (queues,) = app.control.inspect().active_queues().values()
        assert [queue["name"] for queue in queues] == [queue_name]
        send(app, "wait", "first", str(tmp_path / "go"))
        if pool == "prefork":
            revoked = send(app, "note", "revoked")
            app.control.revoke(revoked, reply=True)
        (tmp_path / "go").touch()
        send(app, "note", "next")
        worker.wait_for("note next")
        app.control.cancel_consumer(queue_name, reply=True)
        worker.wait_for("Canceling queue")
        send(app, "note", "unread")
        app.control.add_consumer(f"{queue_name}.more", reply=True)
        send(app, "note", "read", queue=f"{queue_name}.more")
        worker.wait_for("note read")
        assert "note unread" not in worker.log()
        app.control.add_consumer(queue_name, reply=True)
        worker.wait_for("note unread")
        assert "note revoked" not in worker.log()


def test_autoscale(app: Celery, start: Start, client: redis.Redis, queue_name: str, tmp_path: Path) -> None:
    with start("--autoscale=3,1", pool="prefork") as worker:
        for number in range(3):
            send(app, "wait", f"<{number}>", str(tmp_path / "go"))
        worker.wait_for(*[f"began <{number}>" for number in range(3)])
        (tmp_path / "go").touch()
        wait_until(lambda: is_quiet(client, queue_name), "all are acknowledged")


def test_what_is_no_message_ends_no_worker(app: Celery, start: Start, client: redis.Redis, queue_name: str) -> None:
    with start() as worker:
        for entry in (b"no JSON", b'{"properties": {"delivery_info": {"exchange": "", "routing_key": ""}}}', b"[]"):
            client.lpush(queue_name, entry)
        send(app, "note", "next")
        worker.wait_for("note next")
        wait_until(lambda: is_quiet(client, queue_name), "nothing is left of them")


def test_user_with_few_rights(client: redis.Redis, queue_name: str, start: Start, redis_url: str) -> None:
    """Those that docs/security.md names."""
    rights = (
        "~pyventus:* ~_kombu.binding* ~*.pidbox* ~celeryev.* &* -@all +ping +hello +client|setinfo +lpush +rpush +llen "
        "+multi +exec +sadd +srem +smembers +zadd +zrem +zcard +zrange +zrevrange +zrangebyscore +hset +hsetnx +hget "
        "+hmget +hdel +set +get +incrby +expire +del +eval +evalsha +script|load +time +publish +subscribe "
        "+unsubscribe +psubscribe +punsubscribe +blmove +lmove +blpop +rpop +ltrim +exists +pexpire +hexists +hkeys "
        "+hgetall +zscore"
    )
    client.execute_command("ACL", "SETUSER", "few", "on", ">pw", f"~{queue_name}*", *rights.split())
    url = f"pyventus-{redis_url}".replace("default:redispw", "few:pw")
    with start(broker=url) as worker:
        few = new_app(url, queue_name)
        send(few, "note", "x")
        send(few, "note", "y", countdown=1.2)
        worker.wait_for("note x", "note y")
        assert few.control.ping()
        wait_until(lambda: is_quiet(client, queue_name), "both are acknowledged")
