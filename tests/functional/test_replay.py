"""A replay runs what is signed, for those that failed, and loses nothing whatever interrupts it."""

from __future__ import annotations

import json
import sys
from base64 import b64decode
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from celery import Celery

from pyventus import Emission, EventLinker
from pyventus.dead_letters.base import DeadLetter
from pyventus.emitters.celery import CeleryEventEmitter, dead_letters
from pyventus.emitters.celery import replay as replays
from pyventus.emitters.celery.replay import DeadLetters, make_letter, refused_letter
from pyventus.errors import PyventusError, Refused
from pyventus.wire import Envelope
from tests.brokers import FreezableProxy, RabbitMQ, refused_port
from tests.functional.apps.support import ROOT, SECRET
from tests.workers import run

OTHER_SECRET = "another secret, which is as long as it has to be"


def queue_to(
    url: str, name: str, secret: Any = SECRET, *, store: str | None = None, **options: Any
) -> CeleryEventEmitter.Queue:
    app = Celery("replaying", broker=url)
    return CeleryEventEmitter.Queue(app, name, secret, dead_letters=store, **options)


def letters_of(queue: CeleryEventEmitter.Queue) -> DeadLetters:
    return queue.dead_letters


def envelope_of(queue: CeleryEventEmitter.Queue, *args: object, **changes: Any) -> Envelope:
    """What a worker has in hand when an emission dies there."""
    emission = Emission(
        **{"event": "Asked", "args": args, "kwargs": {"when": datetime(2026, 1, 1, tzinfo=UTC)}, **changes}
    )
    message_id = emission.id if emission.attempt == 1 else queue._derived_id(emission)
    return queue.open(queue.seal(emission, message_id), message_id)


class Sent(NamedTuple):
    id: str
    text: str
    headers: dict[str, Any]


@pytest.fixture
def broker(request: pytest.FixtureRequest, broker_url: str, queue_name: str) -> Iterator[str]:
    yield broker_url
    if broker_url.startswith("amqp"):
        rabbitmq: RabbitMQ = request.getfixturevalue("rabbitmq")
        rabbitmq.delete(f"{queue_name}.dead", f"{queue_name}.refused")


def sent(queue: CeleryEventEmitter.Queue) -> list[Sent]:
    """Take what is in the queue, in its order."""
    with queue.app.connection_for_read() as connection:
        channel, messages = connection.default_channel, []
        if connection.transport.driver_type == "redis":
            # A list for each priority.
            keys = [key for key in channel.client.keys(f"{queue.name}*") if b"binding" not in key]
            while raw := next(filter(None, map(channel.client.rpop, keys)), None):
                message = json.loads(raw)
                messages.append((message["headers"], json.loads(b64decode(message["body"]))))
        else:
            channel.queue_declare(queue.name, durable=True, auto_delete=False)
            while raw := channel.basic_get(queue.name, no_ack=True):
                messages.append((raw.headers, json.loads(raw.body)))
    return [Sent(headers["id"], body[0][0], headers) for headers, body in messages]


def caught(error: Exception) -> Exception:
    try:
        raise error
    except Exception as raised:
        return raised


# -- Letters --------------------------------------------------------------------------------------------------------


def test_a_letter_says_what_happened() -> None:
    queue = queue_to("memory://", "orders")
    envelope = envelope_of(queue, 1, attempt=3, replay=1)
    letter = make_letter(
        queue, envelope, "failed", handlers=["answer"], error=caught(ValueError("no\n such \x1b order"))
    )
    emission = envelope.emission
    assert letter == DeadLetter(
        id=letter.id, queue="orders", reason="failed", text=letter.text, died=letter.died, event="Asked",
        message_id=envelope.message_id, emission=emission.id, linker="default", handlers=("answer",), attempt=3,
        replay=1, timestamp=emission.timestamp, error="ValueError: no such \\x1b order", traceback=letter.traceback,
    )  # fmt: skip
    assert letter.traceback.startswith("Traceback (most recent call last)")
    assert letter.traceback.endswith("ValueError: no\n such \x1b order\n")
    assert "pv1" not in repr(letter)


def test_a_letter_of_the_same_failure_is_the_same_letter() -> None:
    """A worker that dies before it acknowledges makes it again."""
    queue = queue_to("memory://", "orders")
    envelope = envelope_of(queue)
    first, again = (make_letter(queue, envelope, "failed", handlers=["a"]) for _ in range(2))
    assert first.id == again.id
    others = [
        make_letter(queue, envelope, "failed", handlers=["b"]),
        make_letter(queue, envelope, "failed", handlers=["a", "b"]),
        make_letter(queue, envelope_of(queue), "failed", handlers=["a"]),
        make_letter(queue_to("memory://", "mail"), envelope, "failed", handlers=["a"]),
    ]
    assert len({each.id for each in (first, *others)}) == 5


def test_a_letter_is_bounded() -> None:
    queue = queue_to("memory://", "orders")
    letter = make_letter(queue, envelope_of(queue), "failed", error="e" * 9_999, traceback="t" * 99_999 + "end")
    assert (len(letter.error), len(letter.traceback)) == (1_000, 20_000)
    assert letter.traceback.endswith("end")


def test_a_letter_for_all_handlers_of_a_follow_up_is_for_those() -> None:
    queue = queue_to("memory://", "orders")
    letter = make_letter(queue, envelope_of(queue, handlers=("a", "b")), "undecodable", error="why")
    assert letter.handlers == ("a", "b")
    assert make_letter(queue, envelope_of(queue), "unhandled").handlers == ()


def test_the_text_of_a_letter_is_no_message() -> None:
    """Under no id."""
    queue = queue_to("memory://", "orders")
    letter = make_letter(queue, envelope_of(queue), "failed")
    for message_id in (letter.id, letter.message_id):
        with pytest.raises(Refused, match="it is signed for queue 'dead:orders' and not 'orders'"):
            queue.open(letter.text, message_id)


@pytest.mark.parametrize("text", [None, 5, ["pv1"], "x" * 5_000, "é", "\ud800"])
def test_what_can_never_be_verified_is_not_kept(text: object) -> None:
    queue = queue_to("memory://", "orders", max_size=100)
    assert refused_letter(queue, "m", text, "why") is None


def test_a_refused_message_is_kept_as_it_came() -> None:
    queue = queue_to("memory://", "orders", max_size=100)
    letter = refused_letter(queue, "m" * 999, "x" * 100, Refused("it is\nnot"))
    assert letter is not None
    assert (letter.reason, letter.text, letter.message_id, letter.error) == (
        "refused",
        "x" * 100,
        "m" * 255,
        "it is not",
    )
    again = refused_letter(queue, "m" * 999, "x" * 100, "again")
    assert again == replace(letter, error="again", died=again.died)


# -- Replaying ------------------------------------------------------------------------------------------------------


def test_a_replay_is_a_message_for_those_that_failed(broker: str, queue_name: str) -> None:
    """Arguments as they came, attempts anew, and no longer a suspect or too late."""
    queue = queue_to(broker, queue_name)
    past = datetime.now(UTC) - timedelta(days=30)
    times = {"expires": past, "due": past, "timestamp": past}
    envelope = envelope_of(queue, 1, b"\xff", attempt=3, suspect=True, priority=7, headers={"a": "b"}, **times)
    letter = letters_of(queue).keep(envelope, "failed", handlers=["answer"])
    letters_of(queue).keep(envelope_of(queue, 2), "failed")
    before = datetime.now(UTC)
    assert letters_of(queue).replay(letter.id) == replays.Replay((letter.id,), {})
    (message,) = sent(queue)
    emission = queue.open(message.text, message.id).decode()
    assert before <= emission.due <= datetime.now(UTC)
    assert emission == replace(
        envelope.decode(), handlers=("answer",), replay=1, attempt=1, suspect=False, expires=None, due=emission.due
    )
    assert message.id == queue._derived_id(emission)
    assert message.id not in (letter.id, letter.message_id, emission.id)
    assert message.headers["task"] == queue.task_name
    assert message.headers["shadow"] == "Asked"
    assert message.headers["eta"] is None
    assert letters_of(queue).get(letter.id) is None
    assert len(letters_of(queue).list()) == 1


def test_all_are_replayed_in_order(broker: str, queue_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replays, "BATCH", 2)
    queue = queue_to(broker, queue_name)
    kept = [letters_of(queue).keep(envelope_of(queue, number), "failed") for number in range(5)]
    result = letters_of(queue).replay_all()
    assert result == replays.Replay(tuple(letter.id for letter in kept), {})
    assert [queue.open(each.text, each.id).decode().args for each in sent(queue)] == [(0,), (1,), (2,), (3,), (4,)]
    assert letters_of(queue).list() == []


def test_a_replay_that_dies_again_is_another_letter(redis_url: str) -> None:
    """With another message id each time, so that no ledger takes it for one that has run."""
    queue = queue_to(redis_url, "orders")
    envelope, seen = envelope_of(queue, 1), set()
    for number in range(3):
        letter = letters_of(queue).keep(envelope, "failed", handlers=["a"])
        assert letter.replay == number
        letters_of(queue).replay(letter.id)
        (message,) = sent(queue)
        envelope = queue.open(message.text, message.id)
        seen |= {letter.id, message.id}
    assert len(seen) == 6


def test_unknown_ids_are_told(redis_url: str) -> None:
    queue = queue_to(redis_url, "orders")
    letter = letters_of(queue).keep(envelope_of(queue), "failed")
    result = letters_of(queue).replay("no such", letter.id, letter.id)
    assert result == replays.Replay((letter.id,), {"no such": "there is no such letter"})
    assert len(sent(queue)) == 1


def test_removes_and_purges(redis_url: str) -> None:
    queue = queue_to(redis_url, "orders")
    kept = [letters_of(queue).keep(envelope_of(queue), "failed") for _ in range(3)]
    assert letters_of(queue).get(kept[1].id) == kept[1]
    assert letters_of(queue).remove(kept[1].id, "no such") == 1
    assert letters_of(queue).purge() == 2
    assert sent(queue) == []


def test_unsigned_queues_replay_too(redis_url: str) -> None:
    queue = queue_to(redis_url, "orders", None)
    letter = letters_of(queue).keep(envelope_of(queue, 1), "failed")
    assert letters_of(queue).replay(letter.id).failed == {}
    assert len(sent(queue)) == 1


def test_a_store_of_its_own(broker: str, queue_name: str, redis_url: str) -> None:
    queue = queue_to(broker, queue_name, store=redis_url)
    letters_of(queue).keep(envelope_of(queue, 1), "failed")
    assert len(letters_of(queue).replay_all().replayed) == 1
    assert len(sent(queue)) == 1
    assert letters_of(queue).list() == []


# -- Interruptions --------------------------------------------------------------------------------------------------


def test_killed_between_publishing_and_removing(broker: str, queue_name: str, tmp_path: Path) -> None:
    """The letters are still there; replaying them again sends the same message a second time."""
    queue = queue_to(broker, queue_name)
    kept = [letters_of(queue).keep(envelope_of(queue, number), "failed") for number in range(2)]
    command = [sys.executable, "-m", "tests.functional.apps.dead_ends"]
    with run(command, cwd=ROOT, log=tmp_path / "log", env={"TEST_BROKER": broker, "TEST_QUEUE": queue_name}) as process:
        process.wait_for("published")
        assert process.wait() == -9
    assert letters_of(queue).list() == kept
    first = [each.id for each in sent(queue)]
    assert len(first) == 2
    assert len(letters_of(queue).replay_all().replayed) == 2
    assert [each.id for each in sent(queue)] == first
    assert letters_of(queue).list() == []


def test_interrupted_by_hand(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is published is removed, what is not is kept."""
    queue = queue_to(redis_url, "orders")
    kept = [letters_of(queue).keep(envelope_of(queue, number), "failed") for number in range(3)]
    publish = DeadLetters._publish

    def interrupted(self: DeadLetters, letter: DeadLetter, refused: bool) -> None:
        if letter.id == kept[1].id:
            raise KeyboardInterrupt
        publish(self, letter, refused)

    monkeypatch.setattr(DeadLetters, "_publish", interrupted)
    with pytest.raises(KeyboardInterrupt):
        letters_of(queue).replay_all()
    assert letters_of(queue).list() == kept[1:]
    assert len(sent(queue)) == 1


def test_a_message_that_is_not_confirmed_keeps_its_letter(
    broker: str, queue_name: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker may have it, or not; the letter is kept elsewhere, so that it could be removed."""
    monkeypatch.setattr(replays, "PUBLISH_SECONDS", 0.3)
    with FreezableProxy(broker) as proxy:
        letters = letters_of(queue_to(proxy.proxied_url, queue_name, store=redis_url))
        kept = [letters.keep(envelope_of(queue_to("memory://", queue_name), number), "failed") for number in range(2)]
        proxy.freeze()
        result = letters.replay_all()
        assert result.replayed == ()
        assert "whether it was stored is unknown" in result.failed[kept[0].id]
        assert "it was not sent, because the broker failed less than 1 s ago" in result.failed[kept[1].id]
        assert letters.list() == kept


def test_a_letter_that_cannot_be_removed_is_told(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = queue_to(redis_url, "orders")
    letter = letters_of(queue).keep(envelope_of(queue), "failed")

    def fail(*_: object, **__: object) -> int:
        raise OSError("gone")

    monkeypatch.setattr(letters_of(queue).store, "remove", fail)
    result = letters_of(queue).replay(letter.id)
    assert result.replayed == ()
    assert (
        "it was published, but not removed, and would be published again under the same message id"
        in result.failed[letter.id]
    )
    assert "OSError: gone" in result.failed[letter.id]


def test_a_broker_that_is_down() -> None:
    with refused_port() as port:
        letters = letters_of(queue_to(f"redis://:s3krit@127.0.0.1:{port}/0", "orders"))
        for use in (
            letters.list,
            letters.replay_all,
            letters.purge,
            lambda: letters.get("a"),
            lambda: letters.remove("a"),
        ):
            with pytest.raises(PyventusError, match="the dead letters of queue 'orders' cannot be reached: ") as error:
                use()
            assert "s3krit" not in str(error.value)


# -- Forgeries ------------------------------------------------------------------------------------------------------


def forgeries(queue: CeleryEventEmitter.Queue) -> dict[str, DeadLetter]:
    """What somebody might put into the store who has no key, but has seen whatever was in the broker."""
    genuine = make_letter(queue, envelope_of(queue, 1), "failed", handlers=["answer"])
    another = make_letter(queue, envelope_of(queue, 2, event="Other"), "failed", handlers=["answer"])
    mail, unsigned = queue_to("memory://", "mail"), queue_to("memory://", queue.name, None)
    of_mail = make_letter(mail, envelope_of(mail, 1), "failed", handlers=["answer"])
    live = Emission(event="Asked", args=(3,))
    message = queue.seal(live, live.id)
    of_message = replace(genuine, emission=live.id, handlers=(), timestamp=live.timestamp)
    assert '"when"' in genuine.text
    return {
        "handlers": replace(genuine, handlers=("shout",)),
        "all handlers": replace(genuine, handlers=()),
        "event": replace(genuine, event="Other"),
        "linker": replace(genuine, linker="billing"),
        "emission": replace(genuine, emission="another"),
        "attempt": replace(genuine, attempt=9),
        "replay": replace(genuine, replay=9),
        "timestamp": replace(genuine, timestamp=datetime.now(UTC)),
        "handlers in the text": replace(genuine, text=genuine.text.replace('"answer"', '"shout"'), handlers=("shout",)),
        "arguments in the text": replace(genuine, text=genuine.text.replace('"when"', '"then"')),
        "text of another letter": replace(genuine, text=another.text),
        "another letter's content": replace(another, id=genuine.id),
        "another id": replace(genuine, id="another"),
        "live message": replace(of_message, text=message, message_id=live.id),
        "live message under its id": replace(of_message, text=message, message_id=live.id, id=live.id),
        "live message as refused": DeadLetter(queue=queue.name, reason="refused", text=message, message_id=live.id),
        "other queue": replace(of_mail, queue=queue.name),
        "unsigned": make_letter(unsigned, envelope_of(queue, 1), "failed", handlers=["answer"]),
        "empty": replace(genuine, text=""),
        "nonsense": replace(genuine, text="pv1.é.\ud800"),
    }  # fmt: skip


FORGERIES = sorted(forgeries(queue_to("memory://", "orders")))


@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_forged_letter_runs_nothing(redis_url: str, forgery: str) -> None:
    """It is told why, and stays where it is."""
    queue = queue_to(redis_url, "orders")
    letters = letters_of(queue)
    letter = forgeries(queue)[forgery]
    place = letters.store._bounds.place("orders", refused=False)  # type: ignore[attr-defined]
    letters.store._work(place, 5.0, lambda shelf: shelf.add(letter))  # type: ignore[attr-defined]
    assert letters.list() == [letter]
    for result in (letters.replay(letter.id), letters.replay_all()):
        assert result.replayed == ()
        assert list(result.failed) == [letter.id]
    assert sent(queue) == []
    assert letters.list() == [letter]


def test_a_dead_letter_among_the_refused_runs_nothing(redis_url: str) -> None:
    queue = queue_to(redis_url, "orders")
    letters = letters_of(queue)
    letter = make_letter(queue, envelope_of(queue, 1), "failed")
    place = letters.store._bounds.place("orders", refused=True)  # type: ignore[attr-defined]
    letters.store._work(place, 5.0, lambda shelf: shelf.add(letter))  # type: ignore[attr-defined]
    assert letters.replay_all(refused=True).replayed == ()
    assert sent(queue) == []


def test_what_cannot_be_read_is_not_replayed(redis_url: str, valkey: Any) -> None:
    queue = queue_to(redis_url, "orders")
    letter = letters_of(queue).keep(envelope_of(queue), "failed")
    with valkey.client() as client:
        client.hset("pyventus:dead:{orders}:records", letter.id, "garbage")
    result = letters_of(queue).replay_all()
    assert result.failed[letter.id].startswith("its record cannot be read: ")
    assert sent(queue) == []


# -- Keys that have changed -----------------------------------------------------------------------------------------


def test_keys_retired_since(redis_url: str) -> None:
    """A letter of a key that is gone stays, and is replayed once the key is back behind the new one."""
    letters_of(queue_to(redis_url, "orders", OTHER_SECRET)).keep(
        envelope_of(queue_to("memory://", "orders", OTHER_SECRET), 1), "failed"
    )
    rotated = queue_to(redis_url, "orders", SECRET)
    (reason,) = letters_of(rotated).replay_all().failed.values()
    assert "it is signed with another key: not with the key of this queue" in reason
    assert sent(rotated) == []
    both = queue_to(redis_url, "orders", [SECRET, OTHER_SECRET])
    assert len(letters_of(both).replay_all().replayed) == 1
    (message,) = sent(both)
    # By now it is signed with the new one.
    assert rotated.open(message.text, message.id).decode().args == (1,)


def test_a_handler_with_a_queue_of_its_own_is_replayed_there(redis_url: str) -> None:
    """Where this process knows it; otherwise the queue of the emission has it run."""
    queue = queue_to(redis_url, "orders")
    handler = EventLinker.subscribe("Asked", event_callback=print, name="heavy", queue="heavy", priority=9)
    try:
        letters_of(queue).keep(envelope_of(queue), "failed", handlers=["heavy"])
        assert len(letters_of(queue).replay_all().replayed) == 1
    finally:
        EventLinker.remove_event_handler(handler)
    assert sent(queue) == []
    assert len(sent(queue_to(redis_url, "heavy"))) == 1


def test_a_letter_that_is_too_large_by_now(redis_url: str) -> None:
    """Workers would refuse it."""
    queue = queue_to(redis_url, "orders")
    letters_of(queue).keep(envelope_of(queue, "x" * 10_000), "failed")
    small = queue_to(redis_url, "orders", max_size=1_000)
    (reason,) = letters_of(small).replay_all().failed.values()
    assert "of max_size" in reason
    assert sent(queue) == []


# -- Refused messages -----------------------------------------------------------------------------------------------


def test_refused_messages_are_replayed_once_they_verify(broker: str, queue_name: str) -> None:
    """As after a rotation in the wrong order: the same text, under the same message id."""
    emitting, working = queue_to(broker, queue_name, OTHER_SECRET), queue_to(broker, queue_name, SECRET)
    emission = Emission(event="Asked", args=(1,), priority=3)
    text = emitting.seal(emission, emission.id)
    letters_of(working).keep_refused(emission.id, text, Refused("another key"))
    letters_of(working).keep_refused("forged", text, Refused("another message"))
    assert letters_of(working).list() == []
    assert letters_of(working).replay_all(refused=True).replayed == ()
    assert sent(working) == []
    mended = queue_to(broker, queue_name, [SECRET, OTHER_SECRET])
    refused = letters_of(mended).list(refused=True)
    result = letters_of(mended).replay_all(refused=True)
    assert result.replayed == (refused[0].id,)
    assert "it is signed for message" in result.failed[refused[1].id]
    (message,) = sent(mended)
    assert (message.id, message.text, message.headers["eta"]) == (emission.id, text, None)
    assert [letter.id for letter in letters_of(mended).list(refused=True)] == [refused[1].id]


def test_a_refused_message_that_is_not_due_yet(redis_url: str) -> None:
    queue = queue_to(redis_url, "orders")
    due = datetime.now(UTC) + timedelta(minutes=10)
    emission = Emission(event="Asked", due=due)
    letters_of(queue).keep_refused(emission.id, queue.seal(emission, emission.id), "why")
    assert len(letters_of(queue).replay_all(refused=True).replayed) == 1
    (message,) = sent(queue)
    assert abs(datetime.fromisoformat(message.headers["eta"]) - due) < timedelta(seconds=5)


def test_a_store_that_fails_does_not_stop_refusing(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dead_letters, "ADD_SECONDS", 1.0)
    with refused_port() as port:
        queue = queue_to(f"redis://127.0.0.1:{port}/0", "orders")
        letters_of(queue).keep_refused("m\n1", "pv1.", Refused("it is malformed"))
    assert "Refused message 'm\\n1' of queue 'orders' is lost: BrokerDown(" in caplog.text
    assert "pv1" not in caplog.text
