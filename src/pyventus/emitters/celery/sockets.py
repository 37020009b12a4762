"""Sockets of which every wait ends by a deadline, however slowly the peer takes or sends its bytes."""

from __future__ import annotations

import math
import ssl
import time
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

WOULD_BLOCK = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
# Seconds by which a wait may end too early or too late.
TOLERANCE = 0.01


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


def receive(sock: Any, most: int, end: float, spin_until: float = -math.inf) -> bytes:
    """Some bytes, at the most so many, as soon as there are any.

    Args:
        sock: from which.
        most: how many.
        end: as of `send_all`.
        spin_until: until when to look again and again before the thread is put to sleep, by ``time.perf_counter()``,
            which on Windows is the finer clock.

    Raises:
        OSError: as `send_all`, or the peer has closed the connection.
    """
    data: bytes | None = None
    while data is None and time.perf_counter() < spin_until:
        data = _try(sock, sock.recv, most)
    if data is None:
        _set_timeout(sock, end)
        data = sock.recv(most)
    if not data:
        raise ConnectionError("the broker closed the connection")
    return data


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
