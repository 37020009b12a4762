"""What all emitters share: building emissions, and the options that are bound to an emitter."""

from __future__ import annotations

import copy
import logging
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar, Self, TypeAlias
from uuid import UUID

from pyventus import native
from pyventus.emission import Emission, make_emission, new_id, now
from pyventus.errors import InvalidOption
from pyventus.events import describe
from pyventus.handlers import EventHandler, check_priority
from pyventus.linkers import EventLinker, find_linker

logger = logging.getLogger("pyventus")

Seconds = float | timedelta

# Emissions in one message.
MAX_BATCH = 1000


@dataclass(frozen=True, slots=True)
class EmitOptions:
    """What `EventEmitter.with_options` binds to an emitter, checked."""

    id: str | None = None
    delay: timedelta | None = None
    at: datetime | None = None
    priority: int | None = None
    expires: timedelta | datetime | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


class EventEmitter(ABC):
    """Emits events. A subclass implements one method, `_process`, which sends an emission on its way.

    Args:
        event_linker: the linker whose handlers run.
        debug: log each emission at INFO, with the logger ``pyventus``.

    Raises:
        InvalidOption: ``event_linker`` is not `EventLinker` or a subclass.
    """

    EventEmission: TypeAlias = Emission
    #: Whether the id of each emission is asked for, or only of some.
    _needs_ids: ClassVar[bool] = False

    def __init__(self, event_linker: type[EventLinker] = EventLinker, debug: bool | None = None) -> None:
        self._linker = _check_linker(event_linker)
        self._debug = bool(debug)
        self._options = EmitOptions()

    def emit(self, event: object, /, *args: Any, **kwargs: Any) -> Emission:
        """Emit an event: a name with arguments for the handlers, or an object, which is their first argument.

        Returns:
            What was emitted, once it is accepted: scheduled in this process, or stored by the broker.

        Raises:
            InvalidEvent: ``event`` is not an event.
            EmitError: it was not, or may not have been, accepted.
        """
        id = self._options.id or (new_id() if self._needs_ids else None)
        emission = self._build(id, event, args, kwargs)
        if self._debug:
            self._say(emission)
        self._process(emission)
        return emission

    async def aemit(self, event: object, /, *args: Any, **kwargs: Any) -> Emission:
        """Like `emit`, without ever blocking the running loop."""
        emission = self.prepare(event, *args, **kwargs)
        await self.asend(emission)
        return emission

    def emit_many(self, events: Iterable[object], /, *, batch: int = 1) -> list[Emission]:
        """Emit several events: all are built before the first is sent, and one emitter sends them together if it can.

        Args:
            events: names, event objects, and emissions that `prepare` made, which is how a name gets arguments.
            batch: how many of them one message may carry, up to 1,000, where they travel in messages; those are as
                large as one emission may be. A worker runs them one after another, each with its own signature,
                ledger row, retry and dead letter, and acknowledges them together.

        Returns:
            What was emitted, in that order, once all are accepted.

        Raises:
            InvalidEvent: one of them is not an event; none is sent.
            InvalidOption: ``batch`` is out of its range, or ``events`` is a single one.
            EmitError: some were not, or may not have been, accepted: its ``emissions``.
        """
        check_batch(batch)
        emissions = self._prepare_all(events)
        self._process_many(emissions, batch)
        return emissions

    async def aemit_many(self, events: Iterable[object], /, *, batch: int = 1) -> list[Emission]:
        """Like `emit_many`, without ever blocking the running loop."""
        return self.emit_many(events, batch=batch)

    def _prepare_all(self, events: object) -> list[Emission]:
        if isinstance(events, (str, Emission)) or not isinstance(events, Iterable):
            raise InvalidOption(f"emit_many() takes several events, such as a list of them, not {events!r}")
        emissions = [each if isinstance(each, Emission) else self.prepare(each) for each in events]
        if self._debug:
            for emission in emissions:
                self._say(emission)
        return emissions

    def prepare(self, event: object, /, *args: Any, **kwargs: Any) -> Emission:
        """Build what `emit` would send, and send nothing."""
        return self._build(self._options.id or new_id(), event, args, kwargs)

    def _build(self, id: str | None, event: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Emission:
        name, version, bases = describe(event)
        options, moment = self._options, datetime.now(UTC)
        due = options.at if options.delay is None else moment + options.delay
        expires = options.expires
        if expires is not None and not isinstance(expires, datetime):
            expires = moment + expires
        return make_emission(
            id,
            name,
            version,
            bases,
            args if version is None else (event, *args),
            kwargs,
            moment,
            due,
            expires,
            options.priority,
            self._linker.name,
            dict(options.headers),
        )

    def send(self, emission: Emission) -> Emission:
        """Send a prepared emission, or that of an `EmitError` again, under its own id."""
        self._accept(emission)
        self._process(emission)
        return emission

    def _accept(self, emission: object) -> None:
        if not isinstance(emission, Emission):
            raise InvalidOption(f"send() takes an emission that prepare() made, not {emission!r}")
        if self._debug:
            self._say(emission)

    def _say(self, emission: Emission) -> None:
        logger.info("Emission %s of %r emitted by %r", emission.id, emission.event, self)

    async def asend(self, emission: Emission) -> Emission:
        """Like `send`, without ever blocking the running loop."""
        return self.send(emission)

    def with_options(
        self,
        *,
        id: str | UUID | None = None,
        delay: Seconds | None = None,
        at: datetime | None = None,
        priority: int | None = None,
        expires: Seconds | datetime | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Self:
        """A new emitter with these options bound; what is not given stays as it is bound to this one.

        Args:
            id: of the emission, for what is one event however often it is emitted: with a ledger it runs once.
            delay: seconds until handlers run; not together with ``at``.
            at: the moment, aware, before which no handler runs.
            priority: 0 to 9, 9 first; what is emitted without one is ordered by the broker's own default.
            expires: seconds from the emit, or an aware moment, after which the emission is dropped.
            headers: strings by name, added to those already bound; handlers find them in ``current_emission()``.

        Raises:
            InvalidOption: a value that the option cannot have.
        """
        if delay is not None and at is not None:
            raise InvalidOption("delay and at exclude one another: give one of them")
        changes: dict[str, Any] = {}
        if id is not None:
            changes["id"] = _check_id(id)
        if delay is not None:
            changes |= {"delay": _seconds("delay", delay), "at": None}
        if at is not None:
            changes |= {"at": _moment("at", at), "delay": None}
        if priority is not None:
            check_priority(priority)
            changes["priority"] = priority
        if expires is not None:
            check = _moment if isinstance(expires, datetime) else _seconds
            changes["expires"] = check("expires", expires)
        if headers is not None:
            changes["headers"] = {**self._options.headers, **_check_headers(headers)}
        emitter = copy.copy(self)
        emitter._options = replace(self._options, **changes)
        return emitter

    @abstractmethod
    def _process(self, emission: Emission) -> None:
        """Send an emission on its way; return when it is accepted.

        Raises:
            EmitError: it was not, or may not have been, accepted.
        """

    def _process_many(self, emissions: list[Emission], batch: int = 1) -> None:
        for emission in emissions:
            self._process(emission)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of linker {self._linker.name!r}>"


def seconds_until(moment: datetime | None) -> float:
    """Seconds from now until ``moment``; 0 when it is past or None."""
    return 0.0 if moment is None else max(0.0, (moment - datetime.now(UTC)).total_seconds())


_warned: dict[str, float] = {}
_warned_lock = native.new_lock()


def first_this_minute(subject: str, *, clock: float | None = None) -> bool:
    """Whether ``subject`` was not asked about within the last minute, so that a log is not flooded with one line."""
    moment = time.monotonic() if clock is None else clock
    with _warned_lock:
        if moment - _warned.get(subject, -math.inf) < 60:
            return False
        if len(_warned) > 1000:
            _warned.clear()
        _warned[subject] = moment
    return True


def linker_of(emission: Emission, own: type[EventLinker]) -> type[EventLinker]:
    """The linker that an emission names: an emitter's own, or another one for what another emitter prepared.

    Raises:
        Unhandled: this process has no linker of that name.
    """
    return own if emission.linker == own.name else find_linker(emission.linker)


def find_handlers_here(linker: type[EventLinker], emission: Emission) -> list[EventHandler]:
    """The handlers of this process for an emission; that there is none is said in the log, once a minute."""
    handlers = linker.find_handlers(emission)
    if not handlers and not linker.is_spent(emission) and first_this_minute(f"{linker.name} {emission.event}"):
        logger.warning(
            "No handler is linked to %r in linker %r: emission %s did nothing; link one, or import what links it",
            emission.event, linker.name, emission.id,
        )  # fmt: skip
    return handlers


def _check_linker(linker: object) -> type[EventLinker]:
    if not (isinstance(linker, type) and issubclass(linker, EventLinker)):
        raise InvalidOption(f"event_linker must be EventLinker or a subclass of it, not {linker!r}")
    return linker


def check_batch(batch: object) -> None:
    """Check how many emissions one message may carry.

    Raises:
        InvalidOption: it is no whole number, or out of its range.
    """
    if isinstance(batch, bool) or not isinstance(batch, int) or not 1 <= batch <= MAX_BATCH:
        raise InvalidOption(f"batch must be a whole number from 1 to {MAX_BATCH:,}, not {batch!r}")


def _check_id(id: object) -> str:
    text = str(id) if isinstance(id, UUID) else id
    if not isinstance(text, str) or not 1 <= len(text) <= 128 or not text.isascii() or not text.isprintable():
        raise InvalidOption(f"id must be a UUID or 1 to 128 printable ASCII characters, not {id!r}")
    return text


def _seconds(option: str, value: object) -> timedelta:
    try:
        duration = value if isinstance(value, timedelta) else timedelta(seconds=value)  # type: ignore[arg-type]
        is_moment = bool(now() + duration)
    except (TypeError, ValueError, OverflowError):
        is_moment = False
    if not is_moment or isinstance(value, bool) or duration < timedelta(0):
        raise InvalidOption(f"{option} must be a number of seconds from 0 up, or a timedelta, not {value!r}")
    return duration


def _moment(option: str, value: object) -> datetime:
    if not isinstance(value, datetime):
        raise InvalidOption(f"{option} must be an aware datetime, not {value!r}")
    if value.utcoffset() is None:
        raise InvalidOption(f"{option} must be an aware datetime, such as datetime.now(UTC), not the naive {value!r}")
    return value.astimezone(UTC)


def _check_headers(headers: object) -> dict[str, str]:
    if not isinstance(headers, Mapping) or not all(
        isinstance(text, str) for header in headers.items() for text in header
    ):
        raise InvalidOption("headers must be a mapping of strings to strings")
    return dict(headers)
