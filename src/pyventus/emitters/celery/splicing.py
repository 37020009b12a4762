"""Messages made from one that Celery and kombu have made: what does not change from emit to emit is not made again.

The first message of a kind goes Celery's own way and is remembered as it left; the next ones differ from it in their
ids and their text alone. Many of them take one round trip.
"""

from __future__ import annotations

import math
import re
import struct
import time
from base64 import b64decode
from binascii import b2a_base64
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain, count, takewhile
from json.encoder import encode_basestring_ascii
from operator import itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple

from amqp.serialization import dumps as dumps_arguments
from celery import Celery, signals
from kombu.utils.json import dumps

from pyventus.emission import new_id
from pyventus.emitters.celery.sockets import WAKE_SECONDS, is_quiet, is_rationed, look, receive, send_all

if TYPE_CHECKING:
    from pyventus.emitters.celery.publisher import Message

MAX_KINDS = 1000
ANSWER_BYTES = 16384
# A firewall may have forgotten a connection that was idle for longer, without a word.
IDLE_SECONDS = 25.0
# What was seen to be open so long ago is taken to be so: to look takes a twentieth of an emit.
MOMENT_SECONDS = 0.01
# Where the answer does not come so soon, it is looked for ever more seldom, at last each 63rd time.
MAX_LATE = 6
# What the broker takes while the next ones are made.
PART = 64
# What stands in a template where messages differ. Nobody who emits can know these, and so have them anywhere else.
BODY, TAG, SIZE, CHANNEL, ID, PARENT, ROOT = (new_id() for _ in range(7))
# Of a UUID; ours have to be as long.
TAG_LENGTH = 36
# What differs where the message comes from a task.
ORIGIN = {"parent_id", "root_id"}

Kind = tuple[str, str, int | None, str, bool]
# Others have another length in the bytes around them, or would have to be escaped.
_is_plain = re.compile(r"[0-9A-Za-z-]{36}").fullmatch


class NotStored(Exception):
    """Redis has answered with an error: what it did not confirm is not stored."""


class Splicer:
    """Remembers messages that were sent over one channel, and sends others like them.

    Args:
        app: whose messages they are.
        channel: of kombu, over which Celery sends.
    """

    #: The method of the channel through which each message leaves.
    method: str
    #: How long to look for the answer before the thread is put to sleep.
    spin_seconds: float

    def __init__(self, app: Celery, channel: Any) -> None:
        self._app = app
        self._channel = channel
        self._sends_events = bool(app.conf.task_send_sent_event)
        self._producer = app.amqp.Producer
        self._is_wrapped = _is_wrapped(Celery.send_task) or _is_wrapped(self._producer.publish)
        self._calls = Celery.send_task, self._producer.publish
        self._templates: dict[Kind, Any] = {}
        self._seen_at = -math.inf
        # Answers in a row that came too late, and answers for which not to look because of them: the broker is too far
        # away, or there is no processor to spare.
        self._late = self._naps = 0

    def can_make(self, *messages: Message) -> bool:
        """Find for each message an earlier one to make it from; False: Celery has to make one of them."""
        for message in messages:
            message.template = self._templates.get(_kind(message))
            if message.template is None or not _is_common(message):
                return False
        return True

    @contextmanager
    def recorded(self, message: Message) -> Generator[None]:
        """Remember what leaves in this block, where Celery sends the message."""
        kind = _kind(message)
        if not _is_common(message) or kind in self._templates or self.is_watched():
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

    def is_watched(self) -> bool:
        """Whether somebody is to be told of each message, or makes it in a way of his own."""
        return bool(
            signals.before_task_publish.receivers
            or signals.after_task_publish.receivers
            or self._sends_events
            or self._is_wrapped
            or self._calls != (type(self._app).send_task, self._producer.publish)
        )

    def is_ready(self) -> bool:
        """Whether messages can be sent at once, because the connection is open and at rest."""
        raise NotImplementedError

    def make_ready(self) -> None:
        """Connect if that has to be, which may take as long as the broker likes."""

    def close(self) -> None:
        """Close what it has opened, without a word to the broker."""

    def request(self, messages: Sequence[Message]) -> bytes:
        """The bytes that have messages stored, all of which it can make; several requests are answered together."""
        raise NotImplementedError

    def take(self, data: bytes) -> bool:
        """Take what the broker sends: say of each copy that it is stored, and never of what is refused.

        Args:
            data: what has come; nothing: the request has just been written.

        Returns:
            Whether it is known what became of all.

        Raises:
            NotStored: none of the others is stored.
            Exception: what became of the others is unknown, and the connection is of no use any more.
        """
        raise NotImplementedError

    @property
    def socket(self) -> Any:
        """Of the connection that is ready."""
        raise NotImplementedError

    def send(self, messages: Sequence[Message], end: float, spins: bool = False) -> None:
        """Send messages, all of which it can make, and wait for the answer to all.

        Args:
            messages: which ones.
            end: when to give up, by ``time.monotonic()``.
            spins: look for the answer before the thread sleeps, unless several in a row came too late for that.

        Raises:
            Exception: as `take`; TimeoutError: it took too long.
        """
        sock = self.socket
        for start in range(0, len(messages), PART):
            send_all(sock, self.request(messages[start : start + PART]), end)
        if self.take(b""):
            return
        data = self._look() if spins else None
        while not self.take(data or receive(sock, ANSWER_BYTES, end)):
            data = None

    def _look(self) -> bytes | None:
        """The answer, if it comes before the thread has to be put to sleep for it."""
        if self._naps:
            self._naps -= 1
            return None
        data = look(self.socket, ANSWER_BYTES, time.perf_counter() + self.spin_seconds)
        if data is None:
            self._late = min(self._late + 1, MAX_LATE)
            self._naps = 2**self._late - 2
        else:
            self._late = 0
        return data


def splicer_of(driver: str, app: Celery, channel: Any) -> Splicer | None:
    """What sends many messages at once with a driver; None: nothing does."""
    kind = {"redis": RedisSplicer, "amqp": RabbitMQSplicer}.get(driver)
    return None if kind is None else kind(app, channel)


def _is_wrapped(call: Any) -> bool:
    """Whether a tracer has put a function of its own in the place of Celery's or kombu's."""
    return hasattr(call, "__wrapped__") or call.__module__ not in ("celery.app.base", "kombu.messaging")


def _kind(message: Message) -> Kind:
    return message.task, message.queue, message.priority, message.shadow, bool(message.options)


def _is_common(message: Message) -> bool:
    """Whether it differs from others in its text and plain ids only."""
    options = message.options
    is_plain = not options or (options.keys() == ORIGIN and all(map(_is_plain, options.values())))
    return is_plain and _is_plain(message.id) is not None


class _Body(NamedTuple):
    """The body of a message around the text of its one argument."""

    before: bytes
    after: bytes

    @classmethod
    def around(cls, text: str, body: bytes) -> _Body:
        before, _, after = body.partition(encode_basestring_ascii(text).encode())
        return cls(before + b'"', b'"' + after)

    def of(self, text: str) -> bytes:
        return b"".join((self.before, _escaped(text), self.after))


def _escaped(text: str) -> bytes:
    """As in JSON. What is sealed is ASCII and has nothing else to escape; of a batch an id may be of any script."""
    if not text.isascii():
        return encode_basestring_ascii(text)[1:-1].encode()
    return text.encode().replace(b"\\", b"\\\\").replace(b'"', b'\\"')


class _Gaps:
    """Bytes with gaps to be filled, which are where marks stand.

    Args:
        text: the bytes, in which at least one mark stands.
        *marks: each may stand there any number of times.
    """

    def __init__(self, text: bytes, *marks: str) -> None:
        pieces = re.split(f"({'|'.join(marks)})".encode(), text)
        self._kept = tuple(pieces[::2])
        gaps = [len(self._kept) + marks.index(mark.decode()) for mark in pieces[1::2]]
        # What is kept and what fills a gap, by turns.
        self._in_order = itemgetter(*chain(*enumerate(gaps)), len(gaps))

    def filled(self, *values: bytes) -> bytes:
        """The bytes with a value for each mark, in the order of the marks; none for the last ones if they do not stand
        there.
        """
        return b"".join(self._in_order(self._kept + values))

    def keeps(self, text: str) -> bool:
        """Whether it stands between the gaps."""
        return any(text.encode() in piece for piece in self._kept)


def _ids(message: Message) -> tuple[bytes, ...]:
    """In the places of ID, and of PARENT and ROOT if it comes from a task."""
    id, options = message.id.encode(), message.options
    return (id, options["parent_id"].encode(), options["root_id"].encode()) if options else (id,)


def _with_marks(headers: dict[str, Any], message: Message) -> dict[str, Any]:
    """The headers of a message with marks in the places of ids."""
    own = {name: ID for name in ("id", "root_id") if headers.get(name) == message.id}
    return {**headers, **own, **({"parent_id": PARENT, "root_id": ROOT} if message.options else {})}


# -- Redis ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Entry:
    """The command that pushes an entry of a list.

    Attributes:
        command: with gaps for the size of the entry, its body, its delivery tag and its ids.
        body: of the entry.
        length: of the entry without its body, in bytes.
    """

    command: _Gaps
    body: _Body
    length: int

    def splice(self, message: Message, tag: bytes) -> bytes:
        """The command that pushes the entry of a message."""
        body = b2a_base64(self.body.of(message.text), newline=False)
        return self.command.filled(b"%d" % (self.length + len(body)), body, tag, *_ids(message))


def _lpush(key: bytes, size: bytes, entry: bytes) -> bytes:
    return b"*3\r\n$5\r\nLPUSH\r\n$%d\r\n%b\r\n$%b\r\n%b\r\n" % (len(key), key, size, entry)


class RedisSplicer(Splicer):
    """Pushes many at once.

    The commands are written and their replies read here: redis-py takes longer for it than Redis, waits for each read
    anew, so that a deadline passes, and what it sends again by itself is stored twice.
    """

    method = "_put"
    # Redis on the same machine mostly takes less to answer.
    spin_seconds = WAKE_SECONDS

    def __init__(self, app: Celery, channel: Any) -> None:
        super().__init__(app, channel)
        self._connection: Any = None
        # A delivery tag is a random UUID, of which one is enough for a connection; then what is sent is counted.
        self._tag = new_id()[:24].encode()
        self._count = count()
        self._pushed: list[Message] = []
        self._replies = b""

    def _made(self, message: Message, args: tuple[Any, ...], options: dict[str, Any]) -> _Entry | None:
        queue, payload = args
        if queue in (getattr(self._channel, "_expires", None) or ()):
            return None
        tag = payload["properties"]["delivery_tag"]
        if payload["properties"].get("body_encoding") != "base64" or len(tag) != TAG_LENGTH:
            return None
        priority = self._channel._get_message_priority(payload, reverse=False)
        properties = {**payload["properties"], "delivery_tag": TAG, "correlation_id": ID}
        gaps = {"body": BODY, "properties": properties, "headers": _with_marks(payload["headers"], message)}
        text, whole = dumps({**payload, **gaps}).encode(), dumps(payload).encode()
        key = f"{self._channel.global_keyprefix}{self._channel._q_for_pri(queue, priority)}".encode()
        entry = _Entry(
            _Gaps(_lpush(key, SIZE.encode(), text), SIZE, BODY, TAG, ID, PARENT, ROOT),
            _Body.around(message.text, b64decode(payload["body"])),
            len(whole) - len(payload["body"]),
        )
        is_same = entry.splice(message, tag.encode()) == _lpush(key, b"%d" % len(whole), whole)
        # Where an id is a part of a name, another one would be put in its place, or not be where Celery has it.
        return entry if is_same and not entry.command.keeps(message.id) else None

    def is_ready(self) -> bool:
        if self._connection is None or self._connection._sock is None:
            return False
        rested = time.monotonic() - self._seen_at
        return rested < MOMENT_SECONDS or (rested < IDLE_SECONDS and is_quiet(self._connection._sock))

    def make_ready(self) -> None:
        if self._connection is None:
            pool = self._channel._create_client().connection_pool
            kept = {name: value for name, value in pool.connection_kwargs.items() if not name.startswith("maint_")}
            self._connection = pool.connection_class(**kept)
            # In RESP3 there come messages between the replies. A redis-py too old for it takes no such argument.
            if getattr(self._connection, "protocol", 2) != 2:
                self._connection = pool.connection_class(**{**kept, "protocol": 2})
        if not (self.is_ready() or self._answers()):
            self._connection.disconnect()
            self._connection.connect()
        self._seen_at = time.monotonic()

    def close(self) -> None:
        if self._connection is not None:
            self._connection.disconnect()

    def _answers(self) -> bool:
        """Whether the connection is in use, although it was idle for long."""
        if self._connection._sock is None or not is_quiet(self._connection._sock):
            return False
        self._connection._sock.settimeout(self._connection.socket_timeout)
        try:
            self._connection.send_command("PING", check_health=False)
            self._connection.read_response()
        except Exception:
            return False
        return True

    @property
    def socket(self) -> Any:
        return self._connection._sock

    def request(self, messages: Sequence[Message]) -> bytes:
        self._pushed += messages
        tagged = zip(messages, self._count, strict=False)
        return b"".join([message.template.splice(message, self._tag + b"%012x" % number) for message, number in tagged])

    def take(self, data: bytes) -> bool:
        self._replies += data
        if self._replies.count(b"\r\n") < len(self._pushed):
            return False
        refusal = b""
        for message, reply in zip(self._pushed, self._replies.split(b"\r\n"), strict=False):
            if reply.startswith(b":"):
                message.is_stored = True
            elif reply.startswith(b"-"):
                refusal = refusal or reply
            else:
                raise ConnectionError("what came from the broker is not what Redis answers")
        self._pushed, self._replies = [], b""
        if refusal:
            raise NotStored(refusal[1:].decode("utf-8", "replace"))
        self._seen_at = time.monotonic()
        return True


# -- RabbitMQ ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Publish:
    """A message of RabbitMQ.

    Attributes:
        head: the frames before those of its body, with gaps for the channel, the size of the body and the ids.
        body: of the message.
    """

    head: _Gaps
    body: _Body

    def frames(self, message: Message, channel: int, frame_max: int) -> bytes:
        body, step, number = self.body.of(message.text), frame_max - FRAME_OVERHEAD, _channel(channel)
        head = self.head.filled(number, _size(len(body)), *_ids(message))
        if len(body) <= step:
            return head + _frame(BODY_PART, number, body, len(body))
        parts = [body[at : at + step] for at in range(0, len(body), step)]
        return b"".join([head, *[_frame(BODY_PART, number, part, len(part)) for part in parts]])


METHOD, HEADER, BODY_PART = 1, 2, 3
BASIC = 60
PUBLISH = struct.pack(">HH", BASIC, 40)
CONTENT = struct.pack(">HH", BASIC, 0)
SIZE_BYTES = 8
FRAME_OVERHEAD = 8
FRAME_END = 0xCE
_start = struct.Struct(">BHI")
_channel = struct.Struct(">H").pack
_length = struct.Struct(">I").pack
_size = struct.Struct(">Q").pack


def _frame(kind: int, channel: bytes, payload: bytes, length: int) -> bytes:
    """A frame; ``length`` is that of the payload when its gaps are filled."""
    return b"%c%b%b%b\xce" % (kind, channel, _length(length), payload)


def _head(arguments: bytes, properties: bytes, channel: bytes, size: bytes) -> bytes:
    """The frames of a message before those of its body, for a channel and the size of the body, or with marks."""
    method, header = PUBLISH + arguments, CONTENT + size + properties
    length = len(CONTENT) + SIZE_BYTES + len(properties)
    return _frame(METHOD, channel, method, len(method)) + _frame(HEADER, channel, header, length)


class RabbitMQSplicer(Splicer):
    """Publishes many at once, and waits for the confirmation of all.

    The frames are written and read here: py-amqp takes longer to write them than RabbitMQ to store them, and waits for
    each read anew, so that a deadline passes. What they mean is left to py-amqp.
    """

    method = "_basic_publish"
    # RabbitMQ on the same machine takes 0.3 to 0.5 ms. A thread that has slept then takes up to a fifth of that to be
    # woken, and to do with cold caches what follows.
    spin_seconds = 750e-6

    def __init__(self, app: Celery, channel: Any) -> None:
        super().__init__(app, channel)
        if is_rationed():
            self.spin_seconds = WAKE_SECONDS
        self._own: Any = None
        self._unconfirming: Any = None
        self._sent = 0
        self._unconfirmed: dict[int, Message] = {}
        self._returned: set[str] = set()
        self._written: list[Message] = []
        self._data = b""

    def _made(self, message: Message, args: tuple[Any, ...], options: dict[str, Any]) -> _Publish | None:
        raw, *rest = args
        if rest or set(options) - {"exchange", "routing_key", "mandatory", "immediate", "timeout"}:
            return None
        properties, given = raw._serialize_properties(), raw.properties
        headers = _with_marks(given["application_headers"], message)
        raw.properties = {**given, "application_headers": headers, "correlation_id": ID}
        gaps = raw._serialize_properties()
        raw.properties = given
        body = raw.body.encode() if isinstance(raw.body, str) else raw.body
        where = [options.get(name, default) for name, default in WHERE]
        arguments = dumps_arguments("Bssbb", [0, *where])
        head = _Gaps(_head(arguments, gaps, CHANNEL.encode(), SIZE.encode()), CHANNEL, SIZE, ID, PARENT, ROOT)
        publish = _Publish(head, _Body.around(message.text, body))
        around = _channel(1), _size(len(body))
        is_same = head.filled(*around, *_ids(message)) == _head(arguments, properties, *around)
        is_same = is_same and publish.body.of(message.text) == body
        return publish if is_same and not head.keeps(message.id) else None

    def is_ready(self) -> bool:
        connection = self._channel.connection
        if self._own is None or not connection.connected:
            return False
        if time.monotonic() - self._seen_at < MOMENT_SECONDS:
            return True
        if not is_quiet(connection.transport.sock):
            return False
        self._seen_at = time.monotonic()
        return True

    def make_ready(self) -> None:
        """Open channels of its own: one whose tags nobody else counts, and one that confirms nothing."""
        if self._own is None:
            self._unconfirming = self._channel.connection.channel()
            self._unconfirming.events["basic_return"].add(self._on_lost)
            channel = self._channel.connection.channel()
            channel.confirm_select()
            channel.events["basic_ack"].add(partial(self._on_confirmed, True))
            channel.events["basic_nack"].add(partial(self._on_confirmed, False))
            channel.events["basic_return"].add(self._on_returned)
            for each in (channel, self._unconfirming):
                # What RabbitMQ closes py-amqp opens again, and waits for it; ours are of no use then.
                each._do_revive = _leave_closed
            self._own = channel

    @property
    def socket(self) -> Any:
        return self._own.connection.transport.sock

    def request(self, messages: Sequence[Message]) -> bytes:
        self._returned.clear()
        self._written += messages
        frame_max = self._own.connection.frame_max
        return b"".join([self._frames(message, frame_max) for message in messages])

    def take(self, data: bytes) -> bool:
        if data:
            # Not after what is only written: nobody would ever look for what RabbitMQ says of it.
            self._seen_at = time.monotonic()
        for message in self._written:
            message.is_stored = not message.confirm
        self._written = []
        self._data += data
        while len(self._data) >= FRAME_OVERHEAD:
            kind, channel, size = _start.unpack_from(self._data)
            whole = size + FRAME_OVERHEAD
            if len(self._data) < whole:
                break
            if self._data[whole - 1] != FRAME_END:
                raise ConnectionError("what came from the broker is not AMQP")
            payload, self._data = self._data[_start.size : whole - 1], self._data[whole:]
            self._own.connection.on_inbound_frame((kind, channel, payload))
        # Of a frame that is cut in two py-amqp, which reads the next one, must not get the rest.
        return not self._unconfirmed and not self._data

    def send(self, messages: Sequence[Message], end: float, spins: bool = False) -> None:
        sock = self.socket
        timeout = sock.gettimeout()
        super().send(messages, end, spins)
        sock.settimeout(timeout)

    def _frames(self, message: Message, frame_max: int) -> bytes:
        channel = self._unconfirming
        if message.confirm:
            channel = self._own
            self._sent += 1
            self._unconfirmed[self._sent] = message
        frames: bytes = message.template.frames(message, channel.channel_id, frame_max)
        return frames

    def _on_confirmed(self, is_stored: bool, tag: int, multiple: bool) -> None:
        for each in list(takewhile(tag.__ge__, self._unconfirmed)) if multiple else [tag]:
            message = self._unconfirmed.pop(each, None)
            # RabbitMQ returns what it cannot route before it confirms it.
            if is_stored and message is not None and message.id not in self._returned:
                message.is_stored = True

    def _on_lost(self, *_: object) -> None:
        """What nobody waits for had no queue: have the next message declare it."""
        self._templates.clear()
        self._channel.connection.client.declared_entities.clear()

    def _on_returned(self, error: BaseException, exchange: str, routing_key: str, message: Any) -> None:
        self._returned.add(message.properties["correlation_id"])


def _leave_closed() -> None:
    pass


# The arguments of a publishing, and what they are by themselves.
WHERE: tuple[tuple[str, Any], ...] = (("exchange", ""), ("routing_key", ""), ("mandatory", False), ("immediate", False))
