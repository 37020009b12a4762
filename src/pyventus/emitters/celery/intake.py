"""What a worker takes from the broker before any task sees it: nothing that stands in a queue may end the worker.

A stock worker ends at an entry of a Redis list that is no JSON, at a message whose task is a list or whose body is
``null``, at a time limit of one number; on RabbitMQ it gets the same message again when it is started again. It also
decompresses a megabyte into a gigabyte where a header says so.
"""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable
from logging import getLogger
from typing import Any
from uuid import uuid4

from amqp import Message as RawMessage
from kombu import compression
from kombu.message import Message
from kombu.utils import json

logger = getLogger("pyventus")

#: Bytes that one compressed message may have when it is decompressed.
MAX_DECOMPRESSED = 64 * 1024 * 1024

#: What Celery and kombu raise on a message that is not what they expect. Errors of connections are none of these, but
#: kombu's Redis transport takes a KeyError for one.
_MALFORMED = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


class Malformed(ValueError):
    """What was taken from the queue is no message of Celery's."""


def guard(consumer: Any, is_ours: Callable[[str], bool]) -> None:
    """Make a consumer drop what would end it. Called after each connection to the broker.

    Args:
        consumer: Celery's, whose ``task_consumer`` exists.
        is_ours: whether a task is one of an emission queue; those see to themselves, and lose nothing to a guard.
    """
    channel = consumer.task_consumer.channel
    channel.Message = _guarded(channel.Message)
    handlers = getattr(channel, "handlers", {})
    if "BRPOP" in handlers:
        handlers["BRPOP"] = _skipping(handlers["BRPOP"])
    if "create_task_handler" not in vars(consumer):
        make = consumer.create_task_handler
        consumer.create_task_handler = lambda: _tolerant(make(), consumer, is_ours)


def _tolerant(handle: Callable[[Any], Any], consumer: Any, is_ours: Callable[[str], bool]) -> Callable[[Any], Any]:
    def drop(message: Any) -> None:
        if not message.acknowledged:
            message.reject_log_error(logger, consumer.connection_errors)
            # Celery may have put its acknowledgement on the same list, in no order.
            message.ack = message.reject = _nothing

    def receive(message: Any) -> Any:
        task = message.headers.get("task")
        try:
            if not (isinstance(task, str) and is_ours(task)):
                _check_headers(message.headers)
            return handle(message)
        except _MALFORMED as error:
            if isinstance(task, str) and is_ours(task):
                raise
            logger.error("A message that Celery cannot take was dropped: %s", type(error).__name__)
            return consumer.call_soon(drop, message)

    return receive


def _nothing(*_: object, **__: object) -> None: ...


def _check_headers(headers: dict[str, Any]) -> None:
    """What Celery would stumble over only when a process of its pool is already taken, and never given back."""
    limits = headers.get("timelimit") or (None, None)
    if not isinstance(limits, (list, tuple)) or len(limits) != 2 or not all(map(_is_limit, limits)):
        raise Malformed("time limits")
    if not isinstance(headers.get("stamped_headers") or [], list) or not isinstance(headers.get("stamps") or {}, dict):
        raise Malformed("stamps")


def _is_limit(limit: object) -> bool:
    return limit is None or isinstance(limit, (int, float))


def _skipping(read: Callable[..., Any]) -> Callable[..., Any]:
    """What is no JSON has left the list when kombu's Redis transport finds out, and ends the worker."""

    def read_next(**options: Any) -> Any:
        try:
            return read(**options)
        except _MALFORMED as error:
            if not _was_raised_in(json.loads, error):
                raise
            logger.error("An entry of the queue that is no JSON was dropped: %s", type(error).__name__)
            return True

    return read_next


def _was_raised_in(function: Any, error: BaseException) -> bool:
    """Whether what the transport called itself, and nothing further down the road, is the function that failed."""
    traceback = error.__traceback__
    for _ in range(2):
        traceback = traceback and traceback.tb_next
    return traceback is not None and traceback.tb_frame.f_code is function.__code__


# -- Messages ---------------------------------------------------------------------------------------------------------


def _guarded(base: Any) -> Any:
    """A transport's class of messages, which kombu makes of whatever was in the queue."""
    if issubclass(base, _Bounded):
        return base

    class Guarded(base, _Bounded):
        def __init__(self, payload: Any, channel: Any = None, **options: Any) -> None:
            try:
                _check_virtual(payload)
                super().__init__(payload, channel=channel, **options)
            except _MALFORMED as error:
                # Celery's consumer logs and acknowledges what has errors, if it looks like a message at all.
                super().__init__(_stand_in(), channel=channel, **options)
                self.errors.append((Malformed, Malformed(f"no message of Celery's: {type(error).__name__}"), None))

    return Guarded


class _Bounded(Message):
    """A message that is decompressed here, and not in kombu, up to a limit."""

    def __init__(self, body: Any = None, headers: Any = None, **options: Any) -> None:
        error: Exception | None = None
        if headers and headers.get("compression"):
            try:
                body = _decompressed(body, headers["compression"])
            except Exception as failure:
                error = failure
            headers = {**headers, "compression": None}
        super().__init__(body=body, headers=headers, **options)
        if error is not None:
            self.errors.append((type(error), error, None))


def _check_virtual(payload: Any) -> None:
    """What kombu's virtual transports, such as Redis, need; RabbitMQ's messages are made by py-amqp."""
    if isinstance(payload, RawMessage):
        return
    properties = payload["properties"]
    delivery = properties["delivery_info"]
    texts = properties["delivery_tag"], delivery["exchange"], delivery["routing_key"]
    if not all(isinstance(text, str) for text in texts) or not isinstance(payload.get("headers") or {}, dict):
        raise Malformed("headers or properties")


def _stand_in() -> dict[str, Any]:
    delivery = {"exchange": "", "routing_key": ""}
    return {"body": "", "headers": {}, "properties": {"delivery_tag": str(uuid4()), "delivery_info": delivery}}


def _decompressed(body: bytes, name: str) -> bytes:
    decoder = compression.get_decoder(name)
    make = _DECOMPRESSORS.get(decoder)
    if make is None:  # One that an extra package brings, or the user has registered.
        return bytes(decoder(body))
    decompressor = make()
    data: bytes = decompressor.decompress(body, MAX_DECOMPRESSED)
    if not decompressor.eof:
        raise Malformed(f"it ends too early, or is larger than {MAX_DECOMPRESSED:,} bytes when it is decompressed")
    return data


_DECOMPRESSORS: dict[Any, Callable[[], Any]] = {
    zlib.decompress: zlib.decompressobj,
    bz2.decompress: bz2.BZ2Decompressor,
    lzma.decompress: lambda: lzma.LZMADecompressor(memlimit=2 * MAX_DECOMPRESSED),
}
if hasattr(compression, "zstd"):
    _DECOMPRESSORS[compression.zstd.decompress] = compression.zstd.ZstdDecompressor
