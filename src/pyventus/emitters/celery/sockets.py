"""Sockets of which every wait ends by a deadline, however slowly the peer takes or sends its bytes."""

from __future__ import annotations

import ssl
import time
from typing import Any

# Seconds by which a wait may end too early or too late.
TOLERANCE = 0.01


def send_all(sock: Any, data: bytes, end: float) -> None:
    """Send all of ``data``, at the latest by ``end``, a moment of ``time.monotonic()``.

    Raises:
        OSError: the connection failed; TimeoutError: it took too long.
    """
    _set_timeout(sock, end)
    sent = sock.send(data)
    while sent < len(data):
        _set_timeout(sock, end)
        sent += sock.send(memoryview(data)[sent:])


def receive(sock: Any, most: int, end: float) -> bytes:
    """Some bytes, at the most so many, as soon as there are any.

    Raises:
        OSError: as `send_all`, or the peer has closed the connection.
    """
    _set_timeout(sock, end)
    data: bytes = sock.recv(most)
    if not data:
        raise ConnectionError("the broker closed the connection")
    return data


def is_quiet(sock: Any) -> bool:
    """Whether it is open, and nothing has come; it is of no use afterwards if not."""
    timeout = sock.gettimeout()
    sock.settimeout(0)
    try:
        sock.recv(1)
    except (BlockingIOError, ssl.SSLWantReadError):
        sock.settimeout(timeout)
        return True
    except OSError:
        pass
    return False


def is_past(end: float) -> bool:
    """Whether a wait that had to end then may have."""
    return time.monotonic() > end - TOLERANCE


def _set_timeout(sock: Any, end: float) -> None:
    left = end - time.monotonic()
    if left <= 0:
        raise TimeoutError("timed out")
    timeout = sock.gettimeout()
    # To set it takes a system call.
    if timeout is None or not left - TOLERANCE < timeout < left + TOLERANCE:
        sock.settimeout(left)
