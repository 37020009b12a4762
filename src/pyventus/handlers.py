"""A handler: a linked callback with its success and failure callbacks, its options and its id."""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable
from typing import Any

from pyventus.errors import InvalidHandler, InvalidOption
from pyventus.retry import Retry, check_retry

Callback = Callable[..., Any]


class EventHandler:
    """What runs when one of its events is emitted. Made by `EventLinker.subscribe` and its decorators.

    Attributes:
        is_async: whether calling the event callback gives a coroutine.
        id: the ``name=``, or else ``module:qualname`` of the event callback, with ``#2`` and so on for a further link
            of the same callback to the same linker.
        event_callback: called with the emission's arguments.
        success_callback: called with what the event callback returned; without arguments if that was None.
        failure_callback: called with the exception that the event callback raised, at the end: not while it is retried.
        once: whether it runs for one emission only; in each process, or with a ledger in all workers.
        timeout: seconds that one run of the event callback may take, or None.
        retry: when it is run again after a failure; None: as its queue says, or never.
        queue: name of the broker's queue whose workers run it; None: that of the emission.
        priority: 0 to 9, 9 first, of the message that has it run; None: that of the emission.
    """

    __slots__ = (
        "__weakref__",
        "event_callback",
        "failure_callback",
        "id",
        "is_async",
        "once",
        "order",
        "priority",
        "queue",
        "retry",
        "success_callback",
        "timeout",
    )

    def __init__(
        self,
        event_callback: Callback,
        success_callback: Callback | None = None,
        failure_callback: Callback | None = None,
        *,
        id: str,
        order: int = 0,
        once: bool = False,
        timeout: float | None = None,
        retry: Retry | None = None,
        queue: str | None = None,
        priority: int | None = None,
    ) -> None:
        check_callback(event_callback, "event_callback")
        for role, callback in (("success_callback", success_callback), ("failure_callback", failure_callback)):
            if callback is not None:
                check_callback(callback, role)
        check_timeout(timeout)
        check_queue(queue)
        check_priority(priority)
        self.event_callback: Callback = event_callback
        self.success_callback: Callback | None = success_callback
        self.failure_callback: Callback | None = failure_callback
        self.id: str = id
        self.is_async: bool = is_async(event_callback)
        self.order: int = order
        self.once: bool = once
        self.timeout: float | None = timeout
        self.retry: Retry | None = check_retry("retry", retry)
        self.queue: str | None = queue
        self.priority: int | None = priority

    def __repr__(self) -> str:
        shown = ((option, getattr(self, option)) for option in ("once", "timeout", "retry", "queue", "priority"))
        options = [f"{option}={value!r}" for option, value in shown if value is not None and value is not False]
        return f"<EventHandler {' '.join([self.id, *options])}>"


def check_callback(callback: object, role: str) -> None:
    """Raise `InvalidHandler` for what cannot be called, or would run nothing when called."""
    if inspect.iscoroutine(callback):
        callback.close()
        raise InvalidHandler(
            f"{role} is a coroutine, the result of calling {callback.__qualname__}(): link the function itself, "
            "without ()"
        )
    if not callable(callback):
        raise InvalidHandler(f"{role} must be a function or another callable, not {callback!r}")
    functions = _functions_of(callback)
    if any(inspect.isgeneratorfunction(each) or inspect.isasyncgenfunction(each) for each in functions):
        raise InvalidHandler(
            f"{role} {callback_id(callback)} is a generator: calling it would run nothing; use a function without yield"
        )


def check_timeout(timeout: object) -> None:
    """Raise `InvalidOption` unless ``timeout`` is None or a positive number of seconds."""
    if timeout is None:
        return
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not 0 < timeout <= threading.TIMEOUT_MAX:
        raise InvalidOption(f"timeout must be a positive number of seconds, or None, not {timeout!r}")


def check_queue(queue: object) -> None:
    """Raise `InvalidOption` unless ``queue`` is None or may name a queue."""
    if queue is not None and (not isinstance(queue, str) or not queue.strip() or not queue.isprintable()):
        raise InvalidOption(f"queue must be the name of a queue of the broker, or None, not {queue!r}")


def check_priority(priority: object) -> None:
    """Raise `InvalidOption` unless ``priority`` is None or a whole number from 0 to 9."""
    if priority is None:
        return
    if isinstance(priority, bool) or not isinstance(priority, int) or not 0 <= priority <= 9:
        raise InvalidOption(f"priority must be a whole number from 0 to 9, 9 first, not {priority!r}")


def is_async(callback: Callback) -> bool:
    """Whether calling it gives a coroutine: an ``async def`` function, partial, method or ``__call__``."""
    return any(inspect.iscoroutinefunction(each) for each in _functions_of(callback))


def _functions_of(callback: Callback) -> tuple[Callback, Callback]:
    """What may say that it is a coroutine function or a generator: the callable itself, or its ``__call__``."""
    callback = _unwrap(callback)
    return callback, type(callback).__call__


def _unwrap(callback: Callback) -> Callback:
    while isinstance(callback, (functools.partial, staticmethod)):
        callback = callback.func if isinstance(callback, functools.partial) else callback.__func__
    return callback


def callback_id(callback: Callback) -> str:
    """``module:qualname`` of a callback."""
    callback = _unwrap(callback)
    named = callback if hasattr(callback, "__qualname__") else type(callback)
    # Methods of builtin types have no module, or None.
    return f"{getattr(named, '__module__', None) or 'builtins'}:{named.__qualname__}"
