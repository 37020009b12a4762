"""The registry of which handlers are linked to which events. It registers and never runs."""

from __future__ import annotations

import itertools
import sys
import warnings
from collections.abc import Callable, Iterable
from types import EllipsisType, TracebackType
from typing import Any, ClassVar, Concatenate, ParamSpec, Protocol, TypedDict, TypeVar, Unpack, overload
from weakref import WeakValueDictionary

from pyventus import events as event_types
from pyventus import native
from pyventus.emission import Emission
from pyventus.errors import ConfigurationError, InvalidEvent, InvalidHandler, InvalidOption, Unhandled
from pyventus.events import EventKey, link_key
from pyventus.handlers import Callback, EventHandler, callback_id, check_callback
from pyventus.retry import Retry, check_retry

E = TypeVar("E")
E1 = TypeVar("E1")
E2 = TypeVar("E2")
E3 = TypeVar("E3")
F = TypeVar("F", bound=Callback)
R = TypeVar("R")
P = ParamSpec("P")

Event = str | type | EllipsisType

_linkers: WeakValueDictionary[str, type[EventLinker]] = WeakValueDictionary()
_link_order = itertools.count()


class LinkOptions(TypedDict, total=False):
    """The options of `EventLinker.subscribe` that its decorators take too."""

    success_callback: Callback | None
    failure_callback: Callback | None
    once: bool
    name: str | None
    timeout: float | None
    retry: Retry | None
    queue: str | None
    priority: int | None
    force_async: bool


class UnstableHandlerIdWarning(UserWarning):
    """A handler's id depends on where it stands in the code; give it a ``name=``."""


class EventLinker:
    """The default namespace of links between events and handlers; every subclass is another one.

    All methods are called on the class. Linking, unlinking and emitting may happen in many threads at once.

    Args of a subclass:
        name: what emissions call the namespace by; default ``module:qualname``.
        max_event_handlers: how many handlers one event may have; None: any number.
        default_success_callback: of the handlers that bring none of their own.
        default_failure_callback: likewise.
        default_retry: likewise; what says when they are run again after a failure.
        debug: without effect, for code of other versions.
    """

    name: ClassVar[str] = "default"
    max_event_handlers: ClassVar[int | None] = None
    default_success_callback: ClassVar[Callback | None] = None
    default_failure_callback: ClassVar[Callback | None] = None
    default_retry: ClassVar[Retry | None] = None

    _lock: ClassVar[Any]
    # Tuples, replaced and never changed, so that emitting reads them without the lock.
    _filed: ClassVar[dict[EventKey, tuple[EventHandler, ...]]]
    _linked: ClassVar[dict[EventKey, Event]]
    _by_id: ClassVar[dict[str, EventHandler]]
    _spent: ClassVar[set[EventKey]]
    _claims: ClassVar[dict[str, tuple[EventHandler, ...]]]
    #: Whether a handler was linked whose callback is defined in the script that was started.
    is_used_in_script: ClassVar[bool]

    def __init_subclass__(
        cls,
        *,
        name: str | None = None,
        max_event_handlers: int | None = None,
        default_success_callback: Callback | None = None,
        default_failure_callback: Callback | None = None,
        default_retry: Retry | None = None,
        debug: bool | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init_subclass__(**kwargs)
        _check_limit(max_event_handlers)
        for role, callback in (
            ("default_success_callback", default_success_callback),
            ("default_failure_callback", default_failure_callback),
        ):
            if callback is not None:
                check_callback(callback, role)
        cls.name = f"{cls.__module__}:{cls.__qualname__}" if name is None else name
        cls.max_event_handlers = max_event_handlers
        cls.default_success_callback = default_success_callback and staticmethod(default_success_callback)
        cls.default_failure_callback = default_failure_callback and staticmethod(default_failure_callback)
        cls.default_retry = check_retry("default_retry", default_retry)
        _open(cls)

    # Any class is an event, so the overloads that look at which class it is overlap with the one for all events.

    # -- Linking ------------------------------------------------------------------------------------------------

    @overload
    @classmethod
    def on(cls, event: type[E], /, **options: Unpack[LinkOptions]) -> ClassLink[E]: ...  # type: ignore[overload-overlap]
    @overload
    @classmethod
    def on(  # type: ignore[overload-overlap]
        cls, event1: type[E1], event2: type[E2], /, **options: Unpack[LinkOptions]
    ) -> ClassLink[E1 | E2]: ...
    @overload
    @classmethod
    def on(  # type: ignore[overload-overlap]
        cls, event1: type[E1], event2: type[E2], event3: type[E3], /, **options: Unpack[LinkOptions]
    ) -> ClassLink[E1 | E2 | E3]: ...
    @overload
    @classmethod
    def on(cls, *events: Event, **options: Unpack[LinkOptions]) -> EventLink: ...

    @classmethod
    def on(cls, *events: Any, **options: Unpack[LinkOptions]) -> Any:
        """Link what it decorates to ``events``; takes the options of `subscribe`.

        As a context manager it gives an `EventLink`, for callbacks that come after success and failure.

        Raises:
            InvalidEvent: no events, or one that is none.
        """
        return EventLink(cls, events, options)

    @overload
    @classmethod
    def once(cls, event: type[E], /, **options: Unpack[LinkOptions]) -> ClassLink[E]: ...  # type: ignore[overload-overlap]
    @overload
    @classmethod
    def once(  # type: ignore[overload-overlap]
        cls, event1: type[E1], event2: type[E2], /, **options: Unpack[LinkOptions]
    ) -> ClassLink[E1 | E2]: ...
    @overload
    @classmethod
    def once(  # type: ignore[overload-overlap]
        cls, event1: type[E1], event2: type[E2], event3: type[E3], /, **options: Unpack[LinkOptions]
    ) -> ClassLink[E1 | E2 | E3]: ...
    @overload
    @classmethod
    def once(cls, *events: Event, **options: Unpack[LinkOptions]) -> EventLink: ...

    @classmethod
    def once(cls, *events: Any, **options: Unpack[LinkOptions]) -> Any:
        """Like `on`, for one that runs for one emission only: in each process, or with a ledger in all workers."""
        return EventLink(cls, events, {**options, "once": True})

    @classmethod
    def subscribe(
        cls,
        *events: Event,
        event_callback: Callback,
        success_callback: Callback | None = None,
        failure_callback: Callback | None = None,
        once: bool = False,
        name: str | None = None,
        timeout: float | None = None,
        retry: Retry | None = None,
        queue: str | None = None,
        priority: int | None = None,
        force_async: bool = False,
    ) -> EventHandler:
        """Link a callback to ``events`` and return its handler.

        Args:
            events: strings, classes (which receive instances of their subclasses too), or ``...`` for every event.
            event_callback: a function or an ``async def`` function, called with the arguments of the emission.
            success_callback: called with what the event callback returned; without arguments if that was None.
            failure_callback: called with the exception that the event callback raised, at the end: not while it is
                retried.
            once: whether it runs for one emission only: in each process, or, where the queue has a ledger, in all its
                workers and for good.
            name: the handler's id; what waits in the broker finds its handler by it, so give one in production code.
            timeout: seconds that one run of the event callback may take; what takes longer has failed.
            retry: when it is run again after a failure, alone; default: the linker's ``default_retry``, or the queue's.
            queue: of the broker, whose workers run it; the first worker forwards it there, alone.
            priority: 0 to 9, 9 first, of the message in which the first worker forwards it.
            force_async: without effect, for code of other versions: a sync callback never blocks a loop here.

        Raises:
            InvalidEvent: no events, or one that is none.
            InvalidHandler: a callback that cannot be called, or is a generator; a name that is taken; one event has
                reached ``max_event_handlers``.
            InvalidOption: an option has a value that it cannot have.
        """
        keys = _keys_of(events)
        check_callback(event_callback, "event_callback")
        with cls._lock:
            cls._check_room(keys)
            _make_known(keys.values())
            handler = EventHandler(
                event_callback,
                cls.default_success_callback if success_callback is None else success_callback,
                cls.default_failure_callback if failure_callback is None else failure_callback,
                id=cls._new_id(event_callback, name),
                order=next(_link_order),
                once=once,
                timeout=timeout,
                retry=cls.default_retry if retry is None else retry,
                queue=queue,
                priority=priority,
            )
            cls._by_id[handler.id] = handler
            cls.is_used_in_script |= getattr(event_callback, "__module__", None) == "__main__"
            for key, event in keys.items():
                cls._linked[key] = event
                cls._filed[key] = (*cls._filed.get(key, ()), handler)
        return handler

    @classmethod
    def register(
        cls,
        event_class: type,
        *,
        encode: Callable[[Any], Any] | None = None,
        decode: Callable[[Any], Any] | None = None,
    ) -> None:
        """Make a class one that values in emissions may have, beyond those that are linked. See `events.register`."""
        event_types.register(event_class, encode=encode, decode=decode)

    @classmethod
    def _check_room(cls, keys: Iterable[EventKey]) -> None:
        for key in keys:
            if cls.max_event_handlers is not None and len(cls._filed.get(key, ())) >= cls.max_event_handlers:
                raise InvalidHandler(
                    f"event {key.name!r} already has {cls.max_event_handlers} handlers, the max_event_handlers of "
                    f"linker {cls.name!r}"
                )

    @classmethod
    def _new_id(cls, callback: Callback, name: str | None) -> str:
        if name is not None:
            return cls._check_free(name)
        base = callback_id(callback)
        handler_id = next(id for n in itertools.count(1) if (id := base if n == 1 else f"{base}#{n}") not in cls._by_id)
        if handler_id != base or "<" in base:
            warnings.warn(
                f"handler {handler_id} has an id that depends on where it stands in the code, so a message that waits "
                f"for it can miss it after a change: give it a name=",
                UnstableHandlerIdWarning,
                stacklevel=_stacklevel_of_user(),
            )
        return handler_id

    @classmethod
    def _check_free(cls, name: object) -> str:
        if not isinstance(name, str) or not name.strip() or not name.isprintable():
            raise InvalidOption(f"the name of a handler must be a printable string, not {name!r}")
        if name in cls._by_id:
            taken = callback_id(cls._by_id[name].event_callback)
            raise InvalidHandler(f"the handler name {name!r} is already taken by {taken} in linker {cls.name!r}")
        return name

    # -- Unlinking ----------------------------------------------------------------------------------------------

    @classmethod
    def unsubscribe(cls, *events: Event, event_handler: EventHandler) -> bool:
        """Unlink a handler from ``events``; whether it was linked to any of them."""
        keys = _keys_of(events)
        with cls._lock:
            return any([cls._unfile(key, event_handler) for key in keys])

    @classmethod
    def remove_event_handler(cls, event_handler: EventHandler) -> bool:
        """Unlink a handler from all its events; whether it was linked to any."""
        with cls._lock:
            was_linked = any([cls._unfile(key, event_handler) for key in list(cls._filed)])
            cls._forget(event_handler)  # A ``once`` handler that has run is linked to nothing and still known.
        return was_linked

    @classmethod
    def remove_event(cls, event: Event) -> bool:
        """Unlink all handlers from an event; whether there were any."""
        key = link_key(event)
        with cls._lock:
            return any([cls._unfile(key, handler) for handler in cls._filed.get(key, ())])

    @classmethod
    def remove_all(cls) -> bool:
        """Unlink everything; whether there was anything."""
        with cls._lock:
            was_linked = bool(cls._filed)
            cls._filed.clear()
            cls._linked.clear()
            cls._by_id.clear()
            cls._spent.clear()
            cls._claims.clear()
        return was_linked

    @classmethod
    def _unfile(cls, key: EventKey, handler: EventHandler, *, forget: bool = True) -> bool:
        filed = cls._filed.get(key, ())
        if handler not in filed:
            return False
        left = tuple(other for other in filed if other is not handler)
        if left:
            cls._filed[key] = left
        else:
            del cls._filed[key], cls._linked[key]
        if forget and not any(handler in others for others in cls._filed.values()):
            cls._forget(handler)
        return True

    @classmethod
    def _forget(cls, handler: EventHandler) -> None:
        if cls._by_id.get(handler.id) is handler:
            del cls._by_id[handler.id]
        for emission_id, claimed in list(cls._claims.items()):
            if handler in claimed:
                cls._claims[emission_id] = tuple(other for other in claimed if other is not handler)

    # -- Looking up ---------------------------------------------------------------------------------------------

    @classmethod
    def get_events(cls) -> list[Event]:
        """All events that have handlers."""
        with cls._lock:
            return list(cls._linked.values())

    @classmethod
    def get_event_handlers(cls) -> list[EventHandler]:
        """All handlers, in link order."""
        with cls._lock:
            return _in_link_order(cls._filed.values())

    @classmethod
    def get_handlers_by_events(cls, *events: Event) -> list[EventHandler]:
        """The handlers that are linked to any of ``events`` themselves, in link order."""
        keys = _keys_of(events)
        with cls._lock:
            return _in_link_order(cls._filed.get(key, ()) for key in keys)

    @classmethod
    def get_events_by_handler(cls, event_handler: EventHandler) -> list[Event]:
        """The events that a handler is linked to."""
        with cls._lock:
            return [cls._linked[key] for key, filed in cls._filed.items() if event_handler in filed]

    # -- What emitters and workers ask ----------------------------------------------------------------------------

    @classmethod
    def find_handlers(cls, emission: Emission) -> list[EventHandler]:
        """The handlers that an emission is for, in link order, each once.

        Raises:
            Unhandled: the emission names a handler that is not linked here.
        """
        if emission.handlers:
            return [cls._find(handler_id, emission) for handler_id in emission.handlers]
        found = []
        for key in emission.keys:
            if filed := cls._filed.get(key):
                found.append(filed)  # noqa: PERF401 - a comprehension is a call, before Python 3.12.
        if cls._claims and (claimed := cls._claims.get(emission.id)):
            # Its message may be delivered again, and their links are gone.
            found.append(claimed)
        return list(found[0]) if len(found) == 1 else _in_link_order(found)

    @classmethod
    def _find(cls, handler_id: str, emission: Emission) -> EventHandler:
        handler = cls._by_id.get(handler_id)
        if handler is None:
            raise Unhandled(
                f"emission {emission.id} of {emission.event!r} is for the handler {handler_id!r}, which is not linked "
                f"in linker {cls.name!r} of this process: import the module that links it, or give it its former name"
            )
        return handler

    @classmethod
    def claim(cls, handler: EventHandler, emission: Emission) -> bool:
        """Whether ``handler`` may start: always, but for a ``once`` handler that another emission has started."""
        if not handler.once or emission.attempt > 1 or emission.replay:
            return True
        with cls._lock:
            # It stays in _by_id: its own retries still have to find it.
            spent = [key for key in list(cls._filed) if cls._unfile(key, handler, forget=False)]
            if spent:
                cls._spent.update(spent)
                cls._claims[emission.id] = (*cls._claims.get(emission.id, ()), handler)
            return handler in cls._claims.get(emission.id, ())

    @classmethod
    def is_spent(cls, emission: Emission) -> bool:
        """Whether a ``once`` handler of the emission's event has run already, so that none being left is no mistake."""
        return any(key in cls._spent for key in emission.keys)


class EventLink:
    """Links callbacks to events, as a decorator or as the ``link`` of a ``with`` statement."""

    def __init__(self, linker: type[EventLinker], events: tuple[Event, ...], options: LinkOptions) -> None:
        _keys_of(events)
        self._linker = linker
        self._events = events
        self._options = options
        self._callbacks: dict[str, Callback] | None = None  # None outside a ``with`` statement.

    def __call__(self, callback: F) -> F:
        if self._callbacks is not None:
            raise InvalidHandler(
                f"inside a with statement callbacks have roles: decorate {callback!r} with @link.on_event"
            )
        self._linker.subscribe(*self._events, event_callback=callback, **self._options)
        return callback

    def __enter__(self) -> EventLink:
        self._callbacks = {}
        return self

    def on_event(self, callback: F) -> F:
        """Take ``callback`` as what runs when an event is emitted."""
        return self._take("event_callback", callback)

    def on_success(self, callback: F) -> F:
        """Take ``callback`` as what runs after the event callback has returned, with what it returned."""
        return self._take("success_callback", callback)

    def on_failure(self, callback: F) -> F:
        """Take ``callback`` as what runs after the event callback has failed, with the exception."""
        return self._take("failure_callback", callback)

    def _take(self, role: str, callback: F) -> F:
        check_callback(callback, role)
        if self._callbacks is None:
            raise InvalidHandler(
                f"{role} {callback_id(callback)} is given outside a with statement: nothing would link it"
            )
        if role in self._callbacks or self._options.get(role) is not None:
            raise InvalidHandler(f"{role} was given twice: {callback_id(callback)} would replace the first")
        self._callbacks[role] = callback
        return callback

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        callbacks, self._callbacks = self._callbacks or {}, None
        if kind is not None:
            return
        if "event_callback" not in callbacks:
            raise InvalidHandler(f"{self!r} has no event callback: decorate one with @link.on_event")
        options: dict[str, Any] = {**self._options, **callbacks}
        self._linker.subscribe(*self._events, **options)

    def __repr__(self) -> str:
        return f"<EventLink of {', '.join(map(repr, self._events))} in linker {self._linker.name!r}>"


class ClassLink(Protocol[E]):
    """What type checkers see of an `EventLink` to classes: the event callback takes an instance first."""

    def __call__(self, callback: Callable[Concatenate[E, P], R], /) -> Callable[Concatenate[E, P], R]: ...
    def __enter__(self) -> ClassLink[E]: ...
    def __exit__(self, *error: object) -> None: ...
    def on_event(self, callback: Callable[Concatenate[E, P], R], /) -> Callable[Concatenate[E, P], R]: ...
    def on_success(self, callback: F, /) -> F: ...
    def on_failure(self, callback: F, /) -> F: ...


def find_linker(name: str) -> type[EventLinker]:
    """The linker of that name, among those already defined in this process.

    Raises:
        Unhandled: there is none.
    """
    linker = _linkers.get(name)
    if linker is None:
        raise Unhandled(f"linker {name!r} is not defined in this process: import the module that defines it")
    return linker


def find_handler(emission: Emission) -> EventHandler | None:
    """The handler of this process that an emission names, if it names just one and this process has it."""
    if len(emission.handlers) != 1:
        return None
    linker = _linkers.get(emission.linker)
    return None if linker is None else linker._by_id.get(emission.handlers[0])


def all_linkers() -> list[type[EventLinker]]:
    """The linkers that are defined in this process."""
    return list(_linkers.values())


def _open(linker: type[EventLinker]) -> None:
    name: object = linker.name
    if not isinstance(name, str) or not name.strip() or not name.isprintable():
        raise InvalidOption(f"the name of linker {linker.__qualname__} must be a printable string, not {name!r}")
    other = _linkers.get(name)
    if other is not None and (other.__module__, other.__qualname__) != (linker.__module__, linker.__qualname__):
        raise ConfigurationError(
            f"the linker name {name!r} of {linker.__module__}:{linker.__qualname__} already belongs to "
            f"{other.__module__}:{other.__qualname__}"
        )
    linker._lock = native.new_lock()
    linker._filed, linker._linked, linker._by_id, linker._spent, linker._claims = {}, {}, {}, set(), {}
    linker.is_used_in_script = False
    _linkers[name] = linker


def _keys_of(events: tuple[Event, ...]) -> dict[EventKey, Event]:
    if not events:
        raise InvalidEvent("no events were given: name at least one, or ... for every event")
    return {link_key(event): event for event in events}


def _make_known(events: Iterable[Event]) -> None:
    for event in events:
        if isinstance(event, type):
            event_types.register(event)


def _in_link_order(found: Iterable[tuple[EventHandler, ...]]) -> list[EventHandler]:
    return sorted({handler for filed in found for handler in filed}, key=lambda handler: handler.order)


def _check_limit(limit: object) -> None:
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise InvalidOption(f"max_event_handlers must be a whole number from 1 up, or None, not {limit!r}")


def _stacklevel_of_user() -> int:
    """How far up the stack the first frame outside this module is."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals.get("__name__") == __name__:
        frame, level = frame.f_back, level + 1
    return level


_open(EventLinker)
