"""The emitter that a program calls: seals an emission for each of its queues and has it stored by their brokers."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextvars import copy_context
from typing import Any, TypeAlias

from pyventus.emission import Emission
from pyventus.emitters.base import EventEmitter, check_batch
from pyventus.emitters.celery import queue as queues
from pyventus.emitters.celery.publisher import MAX_TOGETHER, Message, Publisher, Publishing
from pyventus.errors import EmitError, InvalidEvent, InvalidHandler, InvalidOption
from pyventus.handlers import check_timeout
from pyventus.linkers import EventLinker
from pyventus.running import process_loop

MAIN = "__main__"
# Of messages in one round trip.
MAX_BYTES = 8 * 1024 * 1024
# Of a message among others, beside its id.
PART_OVERHEAD = 16


class CeleryEventEmitter(EventEmitter):
    """Has the handlers of an event run in Celery workers.

    The emitting process needs neither the handlers nor their code. An emitter may be used from many threads and loops
    at once, and after a fork.

    Args:
        queue: where emissions go; of several, each gets a copy under the same emission id.
        event_linker: the linker whose handlers run; it is looked up by name in the worker.
        debug: log each emission at INFO, with the logger ``pyventus``.
        timeout: seconds that an emit may take in all, whatever the broker does.

    Raises:
        InvalidOption: an argument is not what it has to be.
        ConfigurationError: the app of a queue does not accept what the queue sends.
    """

    Queue: TypeAlias = queues.Queue
    _needs_ids = True

    def __init__(
        self,
        queue: queues.Queue | Sequence[queues.Queue],
        event_linker: type[EventLinker] = EventLinker,
        debug: bool | None = None,
        *,
        timeout: float = 5.0,
    ) -> None:
        super().__init__(event_linker, debug)
        self._queues = _check_queues(queue)
        self._timeout = _check_deadline(timeout)
        for each in self._queues:
            each.check_app()

    def _process(self, emission: Emission) -> None:
        end = time.monotonic() + self._timeout
        addressed = self._seal_alone(emission)
        if addressed is None:
            return self._process_many([emission])
        queue, message = addressed
        publishing = queue.publisher.store([message], end)
        if publishing.error is not None:
            _raise_failures([emission], {queue: [message]}, [publishing])

    def _seal_alone(self, emission: Emission) -> Addressed | None:
        """The one message of an emission; None: there are several queues, or it runs in this process."""
        queue = self._queues[0]
        if len(self._queues) > 1 or queue.is_eager:
            return None
        self._check_reachable(emission)
        return queue, queue.message(emission)

    def _process_many(self, emissions: list[Emission], batch: int = 1) -> None:
        end = time.monotonic() + self._timeout
        eager = self._eager_queues()
        sealed = self._seal_all(emissions, eager, batch)
        _raise_failures(emissions, sealed, _store(_batches(sealed, eager), end))
        if eager:
            _run_eager(_messages_to(eager, sealed))

    async def aemit_many(self, events: Iterable[object], /, *, batch: int = 1) -> list[Emission]:
        """Like `emit_many`, without ever blocking the running loop.

        Raises:
            EmitError: as `emit_many`.
        """
        check_batch(batch)
        emissions = self._prepare_all(events)
        await self._asend_all(emissions, batch)
        return emissions

    async def asend(self, emission: Emission) -> Emission:
        """Like `send`, without ever blocking the running loop.

        Raises:
            EmitError: as `send`.
        """
        self._accept(emission)
        end = time.monotonic() + self._timeout
        addressed = self._seal_alone(emission)
        if addressed is None:
            await self._asend_all([emission])
            return emission
        queue, message = addressed
        publishing = queue.publisher.start_soon([message], end)
        await publishing.wait_async()
        if publishing.error is not None:
            _raise_failures([emission], {queue: [message]}, [publishing])
        return emission

    async def _asend_all(self, emissions: list[Emission], batch: int = 1) -> None:
        end = time.monotonic() + self._timeout
        eager = self._eager_queues()
        sealed = self._seal_all(emissions, eager, batch)
        publishings = [publisher.start_soon(messages, end) for publisher, messages in _batches(sealed, eager)]
        await asyncio.gather(*(publishing.wait_async() for publishing in publishings))
        _raise_failures(emissions, sealed, publishings)
        if eager:
            await asyncio.to_thread(_run, _messages_to(eager, sealed))

    def _eager_queues(self) -> list[queues.Queue]:
        return [queue for queue in self._queues if queue.is_eager]

    def _seal_all(self, emissions: list[Emission], eager: list[queues.Queue], batch: int) -> Sealed:
        if len(eager) < len(self._queues):
            for emission in emissions:
                self._check_reachable(emission)
        sealed: Sealed = {}
        for queue in self._queues:
            is_first, origin = not sealed, queue.origin()
            sealed[queue] = [queue.message(each, is_first=is_first, origin=origin) for each in emissions]
        return sealed if batch == 1 else _packed(sealed, batch, eager)

    def _check_reachable(self, emission: Emission) -> None:
        """What only exists in the script that was started cannot be found by a worker, which imports modules."""
        if emission.version is not None and emission.event.startswith(f"{MAIN}:"):
            raise InvalidEvent(
                f"the event class {emission.event.partition(':')[2]} is defined in the script that was started, so a "
                "worker would know it by another name: move it to a module, or name it with @event('...')"
            )
        if not self._linker.is_used_in_script or self._queues[0].is_worker:
            return
        if emission.handlers or emission.linker != self._linker.name:
            return
        for handler in self._linker.find_handlers(emission):
            if getattr(handler.event_callback, "__module__", None) == MAIN:
                raise InvalidHandler(
                    f"handler {handler.id} is linked in the script that was started, which no worker imports: move it "
                    "to a module, and import that module in the worker's"
                )

    def __repr__(self) -> str:
        return f"<CeleryEventEmitter to {', '.join(map(repr, self._queues))} of linker {self._linker.name!r}>"


def _check_queues(queue: object) -> tuple[queues.Queue, ...]:
    given: tuple[Any, ...] = tuple(queue) if isinstance(queue, (list, tuple)) else (queue,)
    if not given or not all(isinstance(each, queues.Queue) for each in given):
        raise InvalidOption(f"queue must be a CeleryEventEmitter.Queue, or a list of them, not {queue!r}")
    if len(set(given)) < len(given):
        raise InvalidOption("queue names the same queue twice: an emission would run its handlers twice there")
    return given


def _check_deadline(timeout: object) -> float:
    check_timeout(timeout)
    if not isinstance(timeout, (int, float)):
        raise InvalidOption("timeout must be a positive number of seconds: without one an emit could wait for minutes")
    return float(timeout)


Addressed = tuple[queues.Queue, Message]


Sealed = dict[queues.Queue, list[Message]]
"""For each queue a message for each emission, in their order. Python's collector would look at a list for each emission
again and again.
"""


Batch = tuple[Publisher, list[Message]]


def _batches(sealed: Sealed, eager: list[queues.Queue]) -> list[Batch]:
    """All that goes to one queue together, as much as goes into a round trip."""
    batches: list[Batch] = []
    for queue, messages in sealed.items():
        if queue not in eager:
            # One that carries several emissions is there for each of them; its id may be that of another one.
            by_name: dict[str, dict[int, Message]] = defaultdict(dict)
            for message in messages:
                by_name[message.queue][id(message)] = message
            for each in by_name.values():
                batches += [(queue.publisher, chunk) for chunk in _chunks(each.values(), MAX_TOGETHER, MAX_BYTES)]
    return batches


def _packed(sealed: Sealed, batch: int, eager: list[queues.Queue]) -> Sealed:
    """The same emissions in fewer messages: those that go the same way in one."""
    return {
        queue: messages if queue in eager else _packed_to(queue, messages, batch) for queue, messages in sealed.items()
    }


def _packed_to(queue: queues.Queue, messages: list[Message], batch: int) -> list[Message]:
    ways: dict[Any, list[Message]] = defaultdict(list)
    for message in messages:
        if "eta" not in message.options:
            ways[message.queue, message.priority, *message.options.items()].append(message)
    carriers: dict[int, Message] = {}
    for together in ways.values():
        for chunk in _chunks(together, batch, queue.max_size):
            if len(chunk) > 1:
                carriers |= dict.fromkeys(map(id, chunk), queue.batch(chunk))
    return [carriers.get(id(message), message) for message in messages]


def _chunks(messages: Iterable[Message], most: int, most_bytes: int) -> Iterator[list[Message]]:
    """Consecutive ones together, up to so many and so many bytes; what is larger by itself goes alone."""
    chunk: list[Message] = []
    size = 0
    for message in messages:
        length = len(message.text) + len(message.id) + PART_OVERHEAD
        if chunk and (len(chunk) == most or size + length > most_bytes):
            yield chunk
            chunk, size = [], 0
        chunk.append(message)
        size += length
    if chunk:
        yield chunk


def _store(batches: list[Batch], end: float) -> list[Publishing]:
    if len(batches) == 1:
        ((publisher, messages),) = batches
        return [publisher.store(messages, end)]
    # All at once, however slow one broker is.
    publishings = [publisher.start(*messages) for publisher, messages in batches]
    for publishing in publishings:
        publishing.wait(end)
    return publishings


def _raise_failures(emissions: list[Emission], sealed: Sealed, publishings: Sequence[Publishing]) -> None:
    failed = [publishing for publishing in publishings if publishing.error is not None]
    if not failed:
        return
    lost = {id(message) for publishing in failed for message in publishing.rest()}
    sent = zip(emissions, *sealed.values(), strict=True)
    failures = [emission for emission, *messages in sent if any(id(message) in lost for message in messages)]
    if not failures:
        return  # The answer came after the deadline, and just before this look.
    # Of what takes several round trips a part may not have been sent, and another one be stored.
    errors: dict[str, dict[str, None]] = {}
    for publishing in failed:
        errors.setdefault(publishing.queue, {})[str(publishing.error)] = None
    reasons = "; ".join(f"queue {name!r}: {', and of others: '.join(texts)}" for name, texts in errors.items())
    stored = dict.fromkeys(publishing.queue for publishing in publishings if publishing.queue not in errors)
    text = _failure(len(emissions), failures, reasons)
    raise EmitError(text, failures[0], stored, failures) from failed[0].error


def _failure(count: int, emissions: list[Emission], reasons: str) -> str:
    first = emissions[0]
    if count == 1:
        return (
            f"emission {first.id} of {first.event!r} was not confirmed by {reasons}; emitter.send(error.emission) "
            "tries again under the same id"
        )
    return (
        f"{len(emissions):,} of {count:,} emissions were not confirmed by {reasons}; "
        "emitter.emit_many(error.emissions) tries those again under the same ids"
    )


# -- task_always_eager --------------------------------------------------------------------------------------------


def _messages_to(eager: list[queues.Queue], sealed: Sealed) -> list[Addressed]:
    by_emission = zip(*(sealed[queue] for queue in eager), strict=True)
    return [addressed for messages in by_emission for addressed in zip(eager, messages, strict=True)]


def _run(messages: list[Addressed]) -> None:
    for queue, message in messages:
        queue.run(message)


def _run_eager(messages: list[Addressed]) -> None:
    """Run handlers before the emit returns, unless that would have the loop that runs them wait for itself."""
    if _is_on_process_loop():
        threading.Thread(target=copy_context().run, args=(_run, messages), name="pyventus", daemon=True).start()
    else:
        _run(messages)


def _is_on_process_loop() -> bool:
    try:
        return asyncio.get_running_loop() is process_loop().loop
    except RuntimeError:
        return False
