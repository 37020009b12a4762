"""The errors that Pyventus raises on purpose; each names the offender and the cure."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pyventus.emission import Emission


class PyventusError(Exception):
    """The root of every error that Pyventus raises on purpose."""


class InvalidEvent(PyventusError, TypeError):
    """What was emitted or linked is not an event."""


class InvalidHandler(PyventusError, TypeError):
    """A callback cannot be linked, or cannot run where it would have to."""


class InvalidOption(PyventusError, ValueError):
    """An option has a value that it cannot have."""


class ConfigurationError(PyventusError):
    """Settings that contradict one another or promise what cannot be kept."""


class MissingExtra(PyventusError, ImportError):
    """An optional dependency is not installed."""


def escape(text: str) -> str:
    """Text without anything that a terminal would obey: control characters, escapes, marks that reverse the writing."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def describe_error(error: BaseException) -> str:
    """One line that names an error, for the text of another."""
    text = escape(" ".join(str(error).split()))
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def check_seconds(option: str, value: object) -> None:
    """Raise `InvalidOption` unless ``value`` is a finite number of seconds from 0 up."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        raise InvalidOption(f"{option} must be a number of seconds from 0 up, not {value!r}")


class NotSerializable(PyventusError, TypeError):
    """A value cannot travel in an emission; raised by the call that emits."""


class Refused(PyventusError):
    """Bytes that are not an emission signed for this queue; nothing of them was decoded."""


class Undecodable(PyventusError):
    """A verified emission whose arguments do not fit the code of this process."""


class UnknownClass(Undecodable):
    """An emission carries an instance of a class that this process has neither linked nor registered."""

    def __init__(self, name: str) -> None:
        short = name[:200].rpartition(":")[2].rpartition(".")[2]
        super().__init__(
            f"class {name[:200]!r} is not known in this process: import the module that defines it and link it to a "
            f"handler, or register it with EventLinker.register({short if short.isidentifier() else '...'})"
        )
        self.name = name

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.name,)


class Unhandled(PyventusError):
    """This process has no handler, or no linker, that an emission is for."""


class HandlerTimeout(PyventusError, TimeoutError):
    """A handler took longer than its ``timeout``; a failure as any other, which its policy may retry."""


class WorkerLost(PyventusError):
    """A handler was given up, because worker processes ended each time that it ran; its failure callback gets this."""


class RetryLater(PyventusError):
    """Raised by a handler that wants to be run again after ``seconds``, whatever its policy's delay.

    The attempts of its policy are counted all the same; without a policy those of ``Retry()``.

    Raises:
        InvalidOption: ``seconds`` is not a number from 0 up.
    """

    def __init__(self, seconds: float, reason: str = "") -> None:
        check_seconds("seconds", seconds)
        super().__init__(seconds, reason)
        self.seconds: float = float(seconds)
        self.reason: str = reason

    def __str__(self) -> str:
        return f"again in {self.seconds:g} s" + (f": {self.reason}" if self.reason else "")


class GiveUp(PyventusError):
    """Raised by a handler that has failed and would fail again: it is not retried, whatever its policy."""


class LeaseLost(PyventusError):
    """Another process has taken over a handler, because this one did not renew its lease in time; or its run has been
    counted as failed meanwhile.
    """


class HandlersFailed(PyventusError):
    """Handlers of an emission have failed for the last time; the message names each with its error.

    Attributes:
        failures: handler id and error text of each handler that failed.
    """

    def __init__(self, failures: Iterable[tuple[str, str]]) -> None:
        self.failures = tuple(failures)
        super().__init__(self.failures)

    def __str__(self) -> str:
        return "; ".join(f"handler {handler_id} failed: {error}" for handler_id, error in self.failures)


class EmitError(PyventusError):
    """An emission was not, or may not have been, stored by the broker; of `emit_many`, one or more of them.

    ``emitter.send(error.emission)`` or ``emitter.emit_many(error.emissions)`` tries again under the same ids, by which
    a ledger recognises what was stored after all; without one handlers may run twice.

    Attributes:
        emission: the emission that was to be sent; of several the first that is not known to be stored.
        stored: names of the queues that are known to have stored all that was to be sent.
        emissions: all that are not known to be stored by every queue, in the order in which they were given.
    """

    def __init__(
        self,
        message: str,
        emission: Emission | None = None,
        stored: Iterable[str] = (),
        emissions: Iterable[Emission] | None = None,
    ) -> None:
        super().__init__(message)
        self.emission = emission
        self.stored: tuple[str, ...] = tuple(stored)
        one = () if emission is None else (emission,)
        self.emissions: tuple[Emission, ...] = one if emissions is None else tuple(emissions)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.emission, self.stored, self.emissions)
