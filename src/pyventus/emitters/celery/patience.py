"""What has run must not run again because a broker or a ledger was restarted: it is tried again for a while."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from pyventus.running import off_loop

T = TypeVar("T")

logger = logging.getLogger("pyventus")

# Of one attempt, and of all of them.
ATTEMPT_SECONDS = 5.0
PATIENCE_SECONDS = 30.0
PAUSE_SECONDS = 1.0


def soon() -> float:
    """When an attempt that begins now is to end, by ``time.monotonic()``."""
    return time.monotonic() + ATTEMPT_SECONDS


def insist(attempt: Callable[[float], T], errors: type[Exception], but: type[Exception] | tuple[()] = ()) -> T:
    """Call ``attempt`` with the end of its time until it succeeds, for half a minute.

    Args:
        attempt: what is to succeed.
        errors: after which it is called again.
        but: those of them after which it is not.
    """
    return off_loop(partial(_insist, attempt, errors, but))


def _insist(attempt: Callable[[float], T], errors: type[Exception], but: type[Exception] | tuple[()]) -> T:
    last = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return attempt(soon())
        except but:
            raise
        except errors as error:
            if time.monotonic() >= last:
                raise
            logger.warning("What follows from an emission was not stored, and is tried again: %s", error)
            time.sleep(PAUSE_SECONDS)
