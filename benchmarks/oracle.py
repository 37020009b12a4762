"""When each message was handled, in a file that all processes share; so nothing counts that was not handled.

It needs the standard library only: workers of every peer import it.
"""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

VARIABLE = "BENCH_TIMES"


class Times:
    """A moment of ``time.monotonic()``, which all processes of a machine share, for each message by its number."""

    def __init__(self, path: Path, count: int = 0) -> None:
        if count:
            path.write_bytes(bytes(8 * count))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)
        self.moments: Any = memoryview(self._map).cast("d")

    def reset(self) -> None:
        self._map[:] = bytes(len(self._map))

    def missing(self, count: int) -> int:
        """How many of the first ``count`` messages have not been handled."""
        return sum(1 for moment in self.moments[:count] if not moment)

    def seconds(self, count: int) -> float:
        """From the first handled message to the last."""
        moments = self.moments[:count].tolist()
        return float(max(moments) - min(moments))


_times: Times | None = None


def note(number: int, *, clock: Callable[[], float] = time.monotonic) -> None:
    """Called by handlers, in any process and thread."""
    global _times
    moment = clock()
    if _times is None:
        _times = Times(Path(os.environ[VARIABLE]))
    _times.moments[number] = moment
