"""A clock that is wrong, for a process that has not imported anything yet that looks at it."""

from __future__ import annotations

import datetime
import time
from typing import Any

REAL = datetime.datetime


class _Meta(type):
    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, REAL)

    def __subclasscheck__(cls, other: type) -> bool:
        return issubclass(other, REAL)

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        return REAL(*args, **kwargs)

    def __getattr__(cls, name: str) -> Any:
        return getattr(REAL, name)


def shift(seconds: float) -> None:
    """Have all that asks Python for the time hear one that is so many seconds ahead."""
    if not seconds:
        return
    real_time = time.time

    class Shifted(metaclass=_Meta):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> REAL:
            return REAL.now(tz) + datetime.timedelta(seconds=seconds)

        @classmethod
        def utcnow(cls) -> REAL:
            return REAL.now(datetime.UTC).replace(tzinfo=None) + datetime.timedelta(seconds=seconds)

    time.time = lambda: real_time() + seconds
    datetime.datetime = Shifted  # type: ignore[assignment,misc]
