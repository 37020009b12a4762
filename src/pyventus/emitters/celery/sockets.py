"""Sockets of which every wait ends by a deadline, however slowly the peer takes or sends its bytes."""

from __future__ import annotations

import os
import ssl
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

WOULD_BLOCK = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
# Seconds by which a wait may end too early or too late.
TOLERANCE = 0.01
# To be woken takes about so long.
WAKE_SECONDS = 50e-6
# Who looks for longer offers the processor to others meanwhile, and is in somebody's way if back later than that.
CROWDED_SECONDS = 100e-6
_offer_processor: Callable[[], object] = getattr(os, "sched_yield", partial(time.sleep, 0))


def send_all(sock: Any, data: bytes, end: float) -> None:
    """Send all of ``data``, at the latest by ``end``, a moment of ``time.monotonic()``.

    Raises:
        OSError: the connection failed; TimeoutError: it took too long.
    """
    _check(end)
    # To wait until it can be sent takes a system call, and it nearly always can.
    sent = _try(sock, sock.send, data) or 0
    while sent < len(data):
        _set_timeout(sock, end)
        sent += sock.send(memoryview(data)[sent:])


def receive(sock: Any, most: int, end: float) -> bytes:
    """Some bytes, at the most so many, as soon as there are any.

    Raises:
        OSError: as `send_all`, or the peer has closed the connection.
    """
    _set_timeout(sock, end)
    return _some(sock.recv(most))


def look(sock: Any, most: int, until: float) -> bytes | None:
    """The same if they come soon, for which the thread is not put to sleep; None: there are none yet.

    Args:
        sock: from which.
        most: how many.
        until: when to look no more, by ``time.perf_counter()``, which on Windows is the finer clock; it ends earlier if
            somebody else has a use for the processor.

    Raises:
        OSError: as `receive`.
    """
    now = time.perf_counter()
    offers = until - now > WAKE_SECONDS
    while now < until:
        data = _try(sock, sock.recv, most)
        if data is not None:
            return _some(data)
        if offers:
            _offer_processor()
        before, now = now, time.perf_counter()
        if now - before > CROWDED_SECONDS:
            break
    return None


@cache
def is_rationed(root: Path = Path("/")) -> bool:
    """Whether Linux limits the processor time of this process, as a container's CPU limit does.

    None of it is idle then: what is spent on looking is missing later, and the process is stopped for so long.

    Args:
        root: of the file system.
    """
    try:
        memberships = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return False
    return any(_limits(root / "sys/fs/cgroup", *membership.split(":", 2)) for membership in memberships)


def _limits(mounted: Path, _: str, controllers: str, group: str) -> bool:
    """Whether a group, or one that it is in, has a limit of processor time."""
    if not controllers:
        top, file = mounted, "cpu.max"
    elif "cpu" in controllers.split(","):
        top, file = mounted / "cpu", "cpu.cfs_quota_us"  # Of version 1.
    else:
        return False
    # In a container it may be called as outside, where it is not to be found; its own limit is at the top then.
    path = Path(group.lstrip("/"))
    return any(_is_limit(top / each / file) for each in (path, *path.parents))


def _is_limit(file: Path) -> bool:
    try:
        return not file.read_text().startswith(("max", "-1"))
    except OSError:
        return False


def is_quiet(sock: Any) -> bool:
    """Whether it is open, and nothing has come; it is of no use afterwards if not."""
    timeout = sock.gettimeout()
    sock.settimeout(0)
    try:
        sock.recv(1)
    except WOULD_BLOCK:
        sock.settimeout(timeout)
        return True
    except OSError:
        pass
    return False


def is_past(end: float) -> bool:
    """Whether a wait that had to end then may have."""
    return time.monotonic() > end - TOLERANCE


def _some(data: bytes) -> bytes:
    if not data:
        raise ConnectionError("the broker closed the connection")
    return data


def _check(end: float) -> float:
    left = end - time.monotonic()
    if left <= 0:
        raise TimeoutError("timed out")
    return left


def _set_timeout(sock: Any, end: float) -> None:
    left = _check(end)
    timeout = sock.gettimeout()
    # To set it takes a system call.
    if not timeout or not left - TOLERANCE < timeout < left + TOLERANCE:
        sock.settimeout(left)


def _try(sock: Any, call: Callable[[Any], T], value: Any) -> T | None:
    if sock.gettimeout() != 0:
        sock.settimeout(0)
    try:
        return call(value)
    except WOULD_BLOCK:
        return None
