"""When a handler that failed is run again: pure policy, which neither waits nor reads a clock."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pyventus.errors import GiveUp, InvalidOption, RetryLater, check_seconds

Errors = type[BaseException] | tuple[type[BaseException], ...]

# More would overflow somebody's clock.
LONGEST_SECONDS = 365 * 24 * 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """Which failures of a handler are retried, how often, and after how long.

    The n-th retry waits ``delay * backoff ** (n - 1)`` seconds, at most ``max_delay``, of which up to the share
    ``jitter`` is taken off at random, so that what failed together does not come back together.

    Attributes:
        max_attempts: how often the handler runs in all, the first time included; from 1 up.
        delay: seconds before the first retry.
        backoff: what each further delay is multiplied with; from 1 up.
        max_delay: the longest delay in seconds.
        jitter: 0 to 1.
        on: the exception classes that are retried.
        never: those of them that are not.

    Raises:
        InvalidOption: a value that the option cannot have.
    """

    max_attempts: int = 5
    delay: float = 1.0
    backoff: float = 2.0
    max_delay: float = 600.0
    jitter: float = 0.5
    on: Errors = Exception
    never: Errors = ()

    def __post_init__(self) -> None:
        attempts: object = self.max_attempts
        if isinstance(attempts, bool) or not isinstance(attempts, int) or attempts < 1:
            raise InvalidOption(f"max_attempts must be a whole number from 1 up, not {attempts!r}")
        for option in ("delay", "max_delay"):
            check_seconds(option, getattr(self, option))
        if self.max_delay > LONGEST_SECONDS:
            raise InvalidOption(f"max_delay must be {LONGEST_SECONDS:.0f} seconds, a year, or less")
        _check_number("backoff", self.backoff, 1.0, 1e6)
        _check_number("jitter", self.jitter, 0.0, 1.0)
        for option in ("on", "never"):
            _check_errors(option, getattr(self, option))

    def next_delay(
        self, attempt: int, error: BaseException, *, uniform: Callable[[], float] = random.random
    ) -> float | None:
        """Seconds until the handler is run again after its ``attempt``-th run ended in ``error``; None: it is not.

        Args:
            attempt: 1 for the first run.
            error: what the handler raised.
            uniform: a random number from 0 up to 1, for the jitter.
        """
        if attempt >= self.max_attempts or isinstance(error, GiveUp):
            return None
        if isinstance(error, RetryLater):
            return min(error.seconds, LONGEST_SECONDS)
        if not isinstance(error, self.on) or isinstance(error, self.never):
            return None
        return self._delay(attempt) * (1 - self.jitter * uniform())

    def _delay(self, attempt: int) -> float:
        try:
            return min(self.max_delay, self.delay * float(self.backoff) ** (attempt - 1))
        except OverflowError:
            return self.max_delay


def next_delay(policy: Retry | None, attempt: int, error: BaseException) -> float | None:
    """As `Retry.next_delay`; without a policy only `RetryLater` has it run again, as often as ``Retry()`` does."""
    if policy is None:
        return _DEFAULT.next_delay(attempt, error) if isinstance(error, RetryLater) else None
    return policy.next_delay(attempt, error)


def check_retry(option: str, value: Any) -> Retry | None:
    """``value`` if it is a policy or None.

    Raises:
        InvalidOption: it is neither.
    """
    if value is not None and not isinstance(value, Retry):
        raise InvalidOption(f"{option} must be a Retry, such as Retry(max_attempts=5), or None, not {value!r}")
    return value


def _check_number(option: str, value: object, least: float, most: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
        raise InvalidOption(f"{option} must be a number from {least:g} to {most:g}, not {value!r}")


def _check_errors(option: str, value: object) -> None:
    errors = value if isinstance(value, tuple) else (value,)
    if not all(isinstance(error, type) and issubclass(error, BaseException) for error in errors):
        raise InvalidOption(f"{option} must be an exception class or a tuple of them, not {value!r}")


_DEFAULT = Retry()
