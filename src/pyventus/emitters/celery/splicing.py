"""Messages made from one that Celery and kombu have made: what does not change from emit to emit is not made again.

The first message of a kind goes Celery's own way and is remembered as it left; the next ones differ from it in their
ids and their text alone. Many of them take one round trip.
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, NamedTuple

from amqp import Message as RawMessage
from celery import Celery, signals
from kombu.transport.redis import dumps

from pyventus.emission import new_id

if TYPE_CHECKING:
    from pyventus.emitters.celery.publisher import Message

MAX_KINDS = 1000
ID_LENGTH = 36
BODY = "pyventus-body-of-the-message"
TAG = "pyventus-tag-of-the-message"

Kind = tuple[str, str, int | None, str]
Call = Callable[..., Any]


class Splicer:
    """Remembers messages that were sent over one channel, and sends others like them.

    Args:
        app: whose messages they are.
        channel: of kombu, over which Celery sends.
        call: makes a call that may take long.
    """

    #: The method of the channel through which each message leaves.
    method: str

    def __init__(self, app: Celery, channel: Any, call: Call) -> None:
        self._app = app
        self._channel = channel
        self._call = call
        self._templates: dict[Kind, Any] = {}

    def template(self, message: Message) -> Any:
        """What a message can be made from; None: Celery has to make it."""
        kind = self._kind(message)
        return None if kind is None else self._templates.get(kind)

    @contextmanager
    def recorded(self, message: Message) -> Generator[None]:
        """Remember what leaves in this block, where Celery sends the message."""
        kind = self._kind(message)
        if kind is None or kind in self._templates:
            yield
            return
        left: list[tuple[Any, ...]] = []
        original = getattr(self._channel, self.method)

        def record(*args: Any, **options: Any) -> Any:
            left.append((args, options))
            return original(*args, **options)

        setattr(self._channel, self.method, record)
        try:
            yield
        finally:
            delattr(self._channel, self.method)
        if len(left) == 1:
            self._remember(kind, message, *left[0])

    def _remember(self, kind: Kind, message: Message, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        if len(self._templates) >= MAX_KINDS:
            self._templates.clear()
        # None: it does not come out the same, such as with compression.
        self._templates[kind] = self._made(message, args, options)

    def _made(self, message: Message, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        raise NotImplementedError

    def _kind(self, message: Message) -> Kind | None:
        if message.options or len(message.id) != ID_LENGTH or self._is_watched():
            return None
        return message.task, message.queue, message.priority, message.shadow

    def _is_watched(self) -> bool:
        """Whether somebody is to be told of each message, or makes it in a way of his own."""
        return bool(
            signals.before_task_publish.receivers
            or signals.after_task_publish.receivers
            or self._app.conf.task_send_sent_event
            or type(self._app).send_task is not Celery.send_task
        )

    def send(self, messages: Sequence[tuple[Message, Any]]) -> set[str]:
        """Send messages with their templates; returns the ids of those that have not reached a queue."""
        raise NotImplementedError


def splicer_of(driver: str, app: Celery, channel: Any, call: Call) -> Splicer | None:
    """What sends many messages at once with a driver; None: nothing does."""
    kind = {"redis": RedisSplicer, "amqp": RabbitMQSplicer}.get(driver)
    return None if kind is None else kind(app, channel, call)


class _Body(NamedTuple):
    """The body of a message around its one argument."""

    before: str
    after: str

    @classmethod
    def around(cls, text: str, body: str) -> _Body:
        before, _, after = body.partition(json.dumps(text))
        return cls(before, after)

    def of(self, text: str) -> str:
        return f"{self.before}{json.dumps(text)}{self.after}"


# -- Redis ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Entry:
    """An entry of a Redis list: what stands before its body, its delivery tag and its end, without the id."""

    key: str
    body: _Body
    head: str
    middle: tuple[str, ...]
    tail: tuple[str, ...]

    def splice(self, message: Message, tag: str) -> str:
        body = b64encode(self.body.of(message.text).encode()).decode()
        return f"{self.head}{body}{message.id.join(self.middle)}{tag}{message.id.join(self.tail)}"


class RedisSplicer(Splicer):
    """Pushes all that goes to one list at once."""

    method = "_put"

    def _made(self, message: Message, args: tuple[Any, ...], options: dict[str, Any]) -> _Entry | None:
        queue, payload = args
        if queue in (getattr(self._channel, "_expires", None) or ()):
            return None
        priority = self._channel._get_message_priority(payload, reverse=False)
        tag = payload["properties"]["delivery_tag"]
        text = dumps({**payload, "body": BODY, "properties": {**payload["properties"], "delivery_tag": TAG}})
        head, _, rest = text.partition(BODY)
        middle, _, tail = rest.partition(TAG)
        entry = _Entry(
            self._channel._q_for_pri(queue, priority), _Body.around(message.text, _decoded(payload["body"])),
            head, tuple(middle.split(message.id)), tuple(tail.split(message.id)),
        )  # fmt: skip
        return entry if entry.splice(message, tag) == dumps(payload) else None

    def send(self, messages: Sequence[tuple[Message, Any]]) -> set[str]:
        lists: dict[str, list[str]] = {}
        for message, entry in messages:
            lists.setdefault(entry.key, []).append(entry.splice(message, new_id()))
        for key, entries in lists.items():
            self._call(self._client.lpush, key, *entries)
        return set()

    @cached_property
    def _client(self) -> Any:
        # kombu makes one for each message, which takes longer than to push it.
        return self._channel._create_client()


def _decoded(body: Any) -> str:
    return b64decode(body).decode("utf-8", "replace")


# -- RabbitMQ ---------------------------------------------------------------------------------------------------------


class _Spliced(RawMessage):
    """A message whose properties are bytes already."""

    raw: bytes

    def _serialize_properties(self) -> bytes:
        return self.raw


@dataclass(frozen=True, slots=True)
class _Publish:
    """A message of RabbitMQ and where it goes."""

    body: _Body
    properties: tuple[bytes, ...]
    where: dict[str, Any]

    def splice(self, message: Message) -> RawMessage:
        made = _Spliced(self.body.of(message.text).encode())
        made.raw = message.id.encode().join(self.properties)
        return made


class RabbitMQSplicer(Splicer):
    """Publishes many, and waits for the confirmation of all."""

    method = "_basic_publish"

    def __init__(self, app: Celery, channel: Any, call: Call) -> None:
        super().__init__(app, channel, call)
        self._own: Any = None
        self._sent = 0
        self._unconfirmed: dict[int, str] = {}
        self._lost: set[str] = set()

    def _made(self, message: Message, args: tuple[Any, ...], options: dict[str, Any]) -> _Publish | None:
        raw, *rest = args
        if rest or set(options) - {"exchange", "routing_key", "mandatory", "immediate", "timeout"}:
            return None
        properties = raw._serialize_properties()
        text = raw.body if isinstance(raw.body, str) else raw.body.decode("utf-8", "replace")
        where: dict[str, Any] = {
            name: options[name] for name in ("exchange", "routing_key", "mandatory") if name in options
        }
        publish = _Publish(_Body.around(message.text, text), tuple(properties.split(message.id.encode())), where)
        made = publish.splice(message)
        return publish if made.raw == properties and made.body.decode() == text else None

    def send(self, messages: Sequence[tuple[Message, Any]]) -> set[str]:
        self._lost.clear()
        self._call(self._publish, messages)
        return set(self._lost)

    def _publish(self, messages: Sequence[tuple[Message, Any]]) -> None:
        channel = self._confirming()
        for message, publish in messages:
            self._sent += 1
            self._unconfirmed[self._sent] = message.id
            channel._basic_publish(publish.splice(message), **publish.where)
        while self._unconfirmed:
            channel.connection.drain_events()

    def _confirming(self) -> Any:
        """A channel of its own, whose tags nobody else counts."""
        if self._own is None:
            channel = self._channel.connection.channel()
            channel.confirm_select()
            channel.events["basic_ack"].add(partial(self._on_confirmed, True))
            channel.events["basic_nack"].add(partial(self._on_confirmed, False))
            channel.events["basic_return"].add(self._on_returned)
            self._own = channel
        return self._own

    def _on_confirmed(self, is_stored: bool, tag: int, multiple: bool) -> None:
        for each in [each for each in self._unconfirmed if each <= tag] if multiple else [tag]:
            id = self._unconfirmed.pop(each, None)
            if not is_stored and id is not None:
                self._lost.add(id)

    def _on_returned(self, error: BaseException, exchange: str, routing_key: str, message: Any) -> None:
        self._lost.add(message.properties["correlation_id"])
