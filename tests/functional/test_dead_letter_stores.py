"""A store keeps letters in order and within its bounds, and looking at them changes nothing."""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
import redis
from amqp.exceptions import NotFound
from celery import Celery

from pyventus.dead_letters.base import DeadLetter, DeadLetterStore
from pyventus.dead_letters.places import Place
from pyventus.dead_letters.records import write_record
from pyventus.emitters.celery import dead_amqp, dead_letters
from pyventus.emitters.celery.dead_amqp import RabbitShelf
from pyventus.emitters.celery.dead_letters import BrokerDeadLetters, RedisDeadLetters, make_store
from pyventus.emitters.celery.publisher import PublishError
from pyventus.errors import ConfigurationError, InvalidOption, PyventusError
from tests.brokers import FreezableProxy, RabbitMQ, Valkey, hanging_broker
from tests.functional.apps.support import wait_until

DAY = 24 * 60 * 60
PREFIX = "of-this-app:"


def app_of(url: str, **settings: Any) -> Celery:
    app = Celery("keeping", broker=url)
    app.conf.update(settings)
    return app


def letter_of(queue: str, number: int = 0, **changes: Any) -> DeadLetter:
    return DeadLetter(
        **{"queue": queue, "reason": "failed", "text": f"pv1.{number}", "message_id": f"m{number}", **changes}
    )


def ids(letters: Any) -> list[str]:
    return [letter.id for letter in letters]


@dataclass
class Kind:
    """A store under test, and a way to put something else into it."""

    queue: str
    make: Callable[..., DeadLetterStore]
    forge: Callable[[bytes, str], None]


def redis_kind(queue: str, client: redis.Redis, make: Callable[..., DeadLetterStore], prefix: str = "") -> Kind:
    def forge(record: bytes, id: str) -> None:
        client.hset(f"{prefix}pyventus:dead:{{{queue}}}:records", id, record)
        client.zadd(f"{prefix}pyventus:dead:{{{queue}}}:ids", {id: time.time() * 1e6})

    return Kind(queue, make, forge)


@pytest.fixture(params=["redis", "prefixed redis", "url", "rabbitmq"])
def kind(request: pytest.FixtureRequest, queue_name: str) -> Iterator[Kind]:
    if request.param == "rabbitmq":
        rabbitmq: RabbitMQ = request.getfixturevalue("rabbitmq")

        def forge(record: bytes, _: str) -> None:
            with rabbitmq.channel() as channel:
                message = channel.prepare_message(record, content_encoding="utf-16", properties={"delivery_mode": 2})
                channel.basic_publish(message, "", f"{queue_name}.dead")

        yield Kind(queue_name, lambda **bounds: BrokerDeadLetters(app_of(rabbitmq.url), **bounds), forge)
        rabbitmq.delete(f"{queue_name}.dead", f"{queue_name}.refused")
        return
    url: str = request.getfixturevalue("redis_url")
    with request.getfixturevalue("valkey").client() as client:
        if request.param == "url":
            yield redis_kind(queue_name, client, lambda **bounds: RedisDeadLetters(url, **bounds))
        else:
            prefix = PREFIX if request.param == "prefixed redis" else ""
            app = app_of(url, broker_transport_options={"global_keyprefix": prefix})
            yield redis_kind(queue_name, client, lambda **bounds: BrokerDeadLetters(app, **bounds), prefix)


# -- Any store ----------------------------------------------------------------------------------------------------


def test_keeps_letters_in_order(kind: Kind) -> None:
    """Whole, and each once, however often it is added."""
    store = kind.make()
    assert list(store.letters(kind.queue)) == []
    added = [letter_of(kind.queue, number, handlers=("a", "b"), traceback="line\nline") for number in range(5)]
    for letter in (*added, added[1]):
        store.add(letter)
    assert list(store.letters(kind.queue)) == added


def test_listing_changes_nothing(kind: Kind) -> None:
    """However often: a queue that counts deliveries would be empty after twenty."""
    store = kind.make()
    added = [letter_of(kind.queue, number) for number in range(3)]
    for letter in added:
        store.add(letter)
    for _ in range(30):
        assert list(store.letters(kind.queue)) == added


def test_removes_only_what_is_chosen(kind: Kind) -> None:
    store = kind.make()
    added = [letter_of(kind.queue, number) for number in range(5)]
    for letter in added:
        store.add(letter)
    assert store.remove(kind.queue, []) == 0
    assert store.remove(kind.queue, [added[1].id, added[3].id, "no such"]) == 2
    assert store.remove(kind.queue, [added[1].id]) == 0
    assert ids(store.letters(kind.queue)) == ids([added[0], added[2], added[4]])


def test_removes_every_copy(kind: Kind) -> None:
    """Of what was added again because it was not known to be stored."""
    store = kind.make()
    letter = letter_of(kind.queue)
    store.add(letter)
    store.add(letter)
    assert store.remove(kind.queue, [letter.id]) == 1
    assert list(store.letters(kind.queue)) == []


def test_purges(kind: Kind) -> None:
    store = kind.make()
    assert store.purge(kind.queue) == 0
    for number in range(3):
        store.add(letter_of(kind.queue, number))
    store.add(letter_of(kind.queue, 9, reason="refused"))
    assert store.purge(kind.queue) == 3
    assert list(store.letters(kind.queue)) == []
    assert len(list(store.letters(kind.queue, refused=True))) == 1
    assert store.purge(kind.queue, refused=True) == 1


def test_refused_ones_are_kept_apart(kind: Kind) -> None:
    """Whatever is sent to the queue by somebody else, no letter leaves because of it."""
    store = kind.make(limit=2)
    letter = letter_of(kind.queue)
    store.add(letter)
    refused = [letter_of(kind.queue, number, reason="refused") for number in range(5)]
    for each in refused:
        store.add(each)
    assert list(store.letters(kind.queue)) == [letter]
    assert list(store.letters(kind.queue, refused=True)) == refused[3:]
    assert store.remove(kind.queue, [refused[4].id]) == 0
    assert store.remove(kind.queue, [refused[4].id], refused=True) == 1


def test_other_queues_are_kept_apart(kind: Kind) -> None:
    store = kind.make()
    store.add(letter_of(kind.queue))
    assert list(store.letters(f"{kind.queue}-other")) == []
    assert store.purge(f"{kind.queue}-other") == 0


def test_bounded_by_count(kind: Kind) -> None:
    """The oldest leave first."""
    store = kind.make(limit=3)
    added = [letter_of(kind.queue, number) for number in range(7)]
    for letter in added:
        store.add(letter)
    assert list(store.letters(kind.queue)) == added[4:]


def test_concurrent_adders(kind: Kind) -> None:
    """None of them loses another's letter, and together they keep to the limit."""
    wide, narrow = kind.make(), kind.make(limit=40)
    added = [letter_of(kind.queue, number) for number in range(40)]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map((wide if isinstance(wide, RedisDeadLetters) else narrow).add, added))
    assert sorted(ids(narrow.letters(kind.queue))) == sorted(ids(added))
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda number: narrow.add(letter_of(kind.queue, number)), range(20)))
    assert len(list(narrow.letters(kind.queue))) == 40


def test_garbage_breaks_no_list(kind: Kind) -> None:
    """It is shown as what it is, and can be removed."""
    store = kind.make()
    letter = letter_of(kind.queue)
    store.add(letter)
    foreign = letter_of("another-queue", id="foreign")
    for number, record in enumerate((b"\xff\xfea\0", b"[]", b"{", b"", write_record(foreign).encode())):
        kind.forge(record, f"forged-{number}")
    shown = list(store.letters(kind.queue))
    assert [each.reason for each in shown] == ["failed"] + ["unreadable"] * 5
    assert shown[0] == letter
    assert store.remove(kind.queue, ids(shown[1:])) == 5
    assert list(store.letters(kind.queue)) == [letter]


def test_after_the_connection_broke(kind: Kind, request: pytest.FixtureRequest) -> None:
    """As when the broker is restarted."""
    of_rabbitmq = "rabbitmq" in request.node.name
    url = request.getfixturevalue("rabbitmq").url if of_rabbitmq else request.getfixturevalue("redis_url")
    with FreezableProxy(url) as proxy:
        by_url = "url" in request.node.name
        store = (RedisDeadLetters if by_url else lambda url: BrokerDeadLetters(app_of(url)))(proxy.proxied_url)
        letter = letter_of(kind.queue)
        store.add(letter)
        proxy.cut()

        def is_listed() -> bool:
            with contextlib.suppress(PublishError, redis.ConnectionError):
                return list(store.letters(kind.queue)) == [letter]
            return False

        wait_until(is_listed, "a list again")
        store.purge(kind.queue)


# -- Redis --------------------------------------------------------------------------------------------------------


def test_redis_bounded_by_age(redis_url: str, valkey: Valkey) -> None:
    """By the server's clock; what is too old is not listed, and leaves with the next letter."""
    store = RedisDeadLetters(redis_url, max_days=2)
    old, young = letter_of("orders", 1), letter_of("orders", 2)
    with valkey.client() as client:
        store.add(old)
        keys = sorted(client.keys())
        client.zincrby(keys[0], -2 * DAY * 1e6, old.id)
        assert list(store.letters("orders")) == []
        assert client.hlen(keys[1]) == 1
        store.add(young)
        assert client.hkeys(keys[1]) == [young.id.encode()]
        assert client.zrange(keys[0], 0, -1) == [young.id.encode()]
        client.zincrby(keys[0], -1.9 * DAY * 1e6, young.id)
        assert list(store.letters("orders")) == [young]


def test_redis_forgets_a_queue_without_new_letters(redis_url: str, valkey: Valkey) -> None:
    """When its last letter is too old, nothing of it is left, though nobody looks."""
    store = RedisDeadLetters(redis_url, max_days=2)
    store.add(letter_of("orders"))
    store.add(letter_of("orders", reason="refused"))
    with valkey.client() as client:
        assert sorted(client.keys()) == [
            b"pyventus:dead:{orders}:ids", b"pyventus:dead:{orders}:records",
            b"pyventus:refused:{orders}:ids", b"pyventus:refused:{orders}:records",
        ]  # fmt: skip
        assert all(0 < client.ttl(key) <= 2 * DAY for key in client.keys("*"))


def test_redis_keeps_the_order_when_its_clock_goes_back(redis_url: str, valkey: Valkey) -> None:
    store = RedisDeadLetters(redis_url)
    added = [letter_of("orders", number, id=f"{9 - number}") for number in range(3)]
    with valkey.client() as client:
        store.add(added[0])
        client.zincrby("pyventus:dead:{orders}:ids", 3600 * 1e6, added[0].id)
        for letter in added[1:]:
            store.add(letter)
    assert list(store.letters("orders")) == added


def test_redis_ids_that_are_no_text(redis_url: str, valkey: Valkey) -> None:
    """They can be removed by what they are shown as."""
    store = RedisDeadLetters(redis_url)
    with valkey.client() as client:
        client.hset("pyventus:dead:{orders}:records", b"\xff\xfe", b"{}")
        client.zadd("pyventus:dead:{orders}:ids", {b"\xff\xfe": time.time() * 1e6})
    (letter,) = store.letters("orders")
    assert letter.reason == "unreadable"
    assert store.remove("orders", [letter.id]) == 1


def test_redis_keys_have_the_app_s_prefix(redis_url: str, valkey: Valkey) -> None:
    """All of them, once; and two apps that only it tells apart do not see each other's letters."""
    stores = [
        BrokerDeadLetters(app_of(redis_url, broker_transport_options={"global_keyprefix": prefix}))
        for prefix in ("one:", "two:")
    ]
    letter = letter_of("orders")
    stores[0].add(letter)
    assert list(stores[0].letters("orders")) == [letter]
    assert list(stores[1].letters("orders")) == []
    assert stores[1].purge("orders") == 0
    with valkey.client() as client:
        assert sorted(client.keys("*pyventus*")) == [
            b"one:pyventus:dead:{orders}:ids",
            b"one:pyventus:dead:{orders}:records",
        ]
    assert stores[0].remove("orders", [letter.id]) == 1


def test_redis_letters_are_no_queue(redis_url: str, valkey: Valkey) -> None:
    """For kombu there is nothing of them, not even when the app's queues are purged."""
    app = app_of(redis_url)
    store = BrokerDeadLetters(app)
    letter = letter_of("celery")
    store.add(letter)
    with valkey.client() as client:
        assert client.keys("_kombu*") == []
    app.control.purge()
    assert list(store.letters("celery")) == [letter]


def test_a_redis_of_its_own_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is bounded, and nothing is repeated behind the caller's back."""
    monkeypatch.setattr(dead_letters, "SOCKET_SECONDS", 0.3)
    with hanging_broker() as broker:
        started = time.monotonic()
        with pytest.raises(redis.TimeoutError):
            RedisDeadLetters(broker.url("redis")).add(letter_of("orders"))
        assert time.monotonic() - started < 5
        assert broker.accepted == 1


def test_a_broker_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dead_letters, "ADD_SECONDS", 0.3)
    with hanging_broker() as broker, pytest.raises(PublishError, match="did not answer within the deadline"):
        BrokerDeadLetters(app_of(broker.url("amqp"))).add(letter_of("orders"))


# -- RabbitMQ -----------------------------------------------------------------------------------------------------


@pytest.fixture
def dead_queue(rabbitmq: RabbitMQ, queue_name: str) -> Iterator[str]:
    yield f"{queue_name}.dead"
    rabbitmq.delete(f"{queue_name}.dead", f"{queue_name}.refused")


def test_rabbitmq_messages_survive_a_restart(rabbitmq: RabbitMQ, queue_name: str, dead_queue: str) -> None:
    """A durable classic queue, bounded by RabbitMQ itself, with persistent messages."""
    BrokerDeadLetters(app_of(rabbitmq.url)).add(letter_of(queue_name))
    with rabbitmq.channel() as channel:
        arguments = {
            "x-queue-type": "classic",
            "x-max-length": 10_000,
            "x-message-ttl": 14 * DAY * 1000,
            "x-overflow": "drop-head",
        }
        channel.queue_declare(dead_queue, durable=True, auto_delete=False, arguments=arguments)
        message = channel.basic_get(dead_queue)
        assert message.properties["delivery_mode"] == 2
        assert json.loads(message.body)["text"] == "pv1.0"


def test_rabbitmq_refused_ones_are_bounded_more(rabbitmq: RabbitMQ, queue_name: str, dead_queue: str) -> None:
    BrokerDeadLetters(app_of(rabbitmq.url)).add(letter_of(queue_name, reason="refused"))
    with rabbitmq.channel() as channel:
        arguments = {
            "x-queue-type": "classic",
            "x-max-length": 1_000,
            "x-message-ttl": 7 * DAY * 1000,
            "x-overflow": "drop-head",
        }
        channel.queue_declare(f"{queue_name}.refused", durable=True, auto_delete=False, arguments=arguments)


def test_rabbitmq_bounded_by_age(rabbitmq: RabbitMQ, queue_name: str, dead_queue: str) -> None:
    with rabbitmq.channel() as channel:
        shelf = RabbitShelf(channel.connection, Place(queue_name, refused=False, limit=9, seconds=1))
        shelf.add(letter_of(queue_name))
        wait_until(lambda: shelf.letters() == [], "the letter's end")


def test_rabbitmq_listing_leaves_all_ready(rabbitmq: RabbitMQ, queue_name: str, dead_queue: str) -> None:
    """Everything is back, in its order, before the list is returned; and the lock is gone."""
    store = BrokerDeadLetters(app_of(rabbitmq.url))
    for number in range(20):
        store.add(letter_of(queue_name, number))
    with rabbitmq.channel() as channel:
        for _ in range(5):
            assert len(list(store.letters(queue_name))) == 20
            assert channel.queue_declare(dead_queue, passive=True).message_count == 20
    assert [letter.message_id for letter in store.letters(queue_name)] == [f"m{number}" for number in range(20)]


def test_rabbitmq_listing_makes_no_queue(rabbitmq: RabbitMQ, queue_name: str) -> None:
    store = BrokerDeadLetters(app_of(rabbitmq.url))
    assert list(store.letters(queue_name)) == []
    assert store.remove(queue_name, ["a"]) == 0
    with pytest.raises(NotFound):
        rabbitmq.depth(f"{queue_name}.dead")


def test_rabbitmq_several_readers_see_everything(rabbitmq: RabbitMQ, queue_name: str, dead_queue: str) -> None:
    """One after the other: what one has in hand would be missing from another's list."""
    stores = [BrokerDeadLetters(app_of(rabbitmq.url)) for _ in range(4)]
    for number in range(50):
        stores[0].add(letter_of(queue_name, number))
    with ThreadPoolExecutor(4) as threads:
        lists = [*threads.map(lambda store: [len(list(store.letters(queue_name))) for _ in range(3)], stores)]
    assert lists == [[50] * 3] * 4


def test_rabbitmq_a_reader_that_stays(
    rabbitmq: RabbitMQ, queue_name: str, dead_queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever comes then is told so, and shown nothing that would be a half; adding goes on."""
    monkeypatch.setattr(dead_amqp, "LOCK_SECONDS", 0.2)
    store = BrokerDeadLetters(app_of(rabbitmq.url))
    store.add(letter_of(queue_name))
    with rabbitmq.channel() as channel:
        channel.queue_declare(f"{dead_queue}.reading", exclusive=True)
        for read in (store.letters, store.purge, lambda queue: store.remove(queue, ["a"])):
            with pytest.raises(PyventusError, match="somebody else is reading these dead letters"):
                read(queue_name)
        store.add(letter_of(queue_name, 1))
    wait_until(lambda: _length(store, queue_name) == 2, "the reader's end")


def _length(store: DeadLetterStore, queue: str) -> int:
    with contextlib.suppress(PyventusError):
        return len(list(store.letters(queue)))
    return 0


def test_rabbitmq_a_queue_made_with_other_bounds(rabbitmq: RabbitMQ, queue_name: str, dead_queue: str) -> None:
    """Is used as it is: a new limit must not cost a letter."""
    BrokerDeadLetters(app_of(rabbitmq.url), limit=5).add(letter_of(queue_name))
    for bounds in ({"limit": 7}, {"limit": 5, "max_days": 3}):
        store = BrokerDeadLetters(app_of(rabbitmq.url), **bounds)
        store.add(letter_of(queue_name, 1))
        assert [letter.message_id for letter in store.letters(queue_name)][:2] == ["m0", "m1"]
        assert store.remove(queue_name, []) == 0


@pytest.mark.parametrize(
    "arguments", [None, {"x-queue-type": "quorum"}, {"x-queue-type": "quorum", "x-max-length": 10_000}]
)
def test_rabbitmq_a_queue_made_for_something_else(
    rabbitmq: RabbitMQ, queue_name: str, dead_queue: str, arguments: dict[str, Any] | None
) -> None:
    """A letter would be lost in it, or be counted to its death: that is said, with what to do."""
    store = BrokerDeadLetters(app_of(rabbitmq.url))
    with rabbitmq.channel() as channel:
        channel.queue_declare(dead_queue, durable=True, auto_delete=False, arguments=arguments)
    for use in (lambda: store.add(letter_of(queue_name)), lambda: store.letters(queue_name)):
        with pytest.raises(
            ConfigurationError, match=r"was not made for dead letters.*delete or rename it, or have dead"
        ):
            use()
    assert rabbitmq.depth(dead_queue) == 0


@pytest.mark.parametrize("kind", ["deleted", "full"])
def test_rabbitmq_a_letter_that_no_queue_takes(
    rabbitmq: RabbitMQ, queue_name: str, dead_queue: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when somebody deletes the queue at the wrong moment: it is not taken for stored."""
    monkeypatch.setattr(RabbitShelf, "_declare", lambda self: None)
    store = BrokerDeadLetters(app_of(rabbitmq.url))
    if kind == "full":
        with rabbitmq.channel() as channel:
            arguments = {"x-max-length": 1, "x-overflow": "reject-publish"}
            channel.queue_declare(dead_queue, durable=True, auto_delete=False, arguments=arguments)
        store.add(letter_of(queue_name))
    expected = f"has no queue '{dead_queue}' any more" if kind == "deleted" else "RabbitMQ refused it"
    with pytest.raises(PublishError, match=expected):
        store.add(letter_of(queue_name, 1))


def test_rabbitmq_channels_are_closed(rabbitmq: RabbitMQ, queue_name: str, dead_queue: str) -> None:
    """After refusals too: a connection has 2,047 of them."""
    with rabbitmq.channel() as channel:
        shelf = RabbitShelf(channel.connection, Place(queue_name, refused=False, limit=5, seconds=60))
        open_before = len(channel.connection.channels)
        shelf.letters()
        shelf.add(letter_of(queue_name))
        other = RabbitShelf(channel.connection, Place(queue_name, refused=False, limit=6, seconds=60))
        other.letters()
        other.remove(["a"])
        other.purge()
        assert len(channel.connection.channels) == open_before


# -- Other transports and options -----------------------------------------------------------------------------------


def test_other_transports_keep_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """An error would have the message come back for ever, so the log says that the letter is lost."""
    store = BrokerDeadLetters(app_of("memory://"))
    with caplog.at_level(logging.ERROR, "pyventus"):
        store.add(letter_of("orders", emission="e1", event="Asked"))
    assert caplog.messages == [
        "Dead letter of emission e1 of 'Asked' is lost: transport 'memory' keeps none; make the queue with "
        "dead_letters='redis://...'"
    ]
    for use in (store.letters, store.purge, lambda queue: store.remove(queue, ["a"])):
        with pytest.raises(ConfigurationError, match="transport 'memory' keeps no dead letters: make the queue with"):
            use("orders")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("orders", "must be a URL that begins with redis:// or rediss://"),
        ("amqp://guest:s3krit@localhost", "must be a URL that begins with redis:// or rediss://"),
        ("redis://:s3krit@localhost:port/0", "is no URL that redis-py can read"),
        (5, "must be a URL, or have add, letters, remove and purge as a DeadLetterStore, not 5"),
        (object(), "must be a URL, or have add"),
    ],
)
def test_refuses(value: Any, message: str) -> None:
    with pytest.raises(InvalidOption, match=message) as caught:
        make_store(value, app_of("memory://"))
    assert "s3krit" not in str(caught.value)


@pytest.mark.parametrize("bounds", [{"limit": 0}, {"limit": True}, {"limit": 1.5}, {"max_days": 0}, {"max_days": 50}])
def test_refuses_bounds(bounds: dict[str, Any]) -> None:
    with pytest.raises(InvalidOption, match="of a dead letter store must be a whole number from 1 to"):
        BrokerDeadLetters(app_of("memory://"), **bounds)


def test_makes_stores() -> None:
    app = app_of("memory://")
    store = make_store(None, app)
    assert isinstance(store, BrokerDeadLetters)
    assert make_store(store, app) is store
    assert isinstance(make_store("rediss://localhost/1", app), RedisDeadLetters)
    assert isinstance(make_store("redis://localhost/1", app), DeadLetterStore)
