"""Clients that hold sockets: one for each process and, under gevent, for each native thread."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from pyventus import native

T = TypeVar("T")


class Clients(Generic[T]):
    """The client of whoever asks; made by ``make`` where there is none yet.

    A forked child must neither use nor close its parent's sockets: it keeps the parent's client and leaves it alone.
    Under gevent a socket belongs to the native thread that opened it.

    No lock, which a fork could leave locked: of two clients made at once, one is dropped before it has connected.
    """

    def __init__(self, make: Callable[[], T], first: T) -> None:
        self._make = make
        self._clients = {_here(): first}

    def get(self) -> T:
        here = _here()
        client = self._clients.get(here)
        return self._clients.setdefault(here, self._make()) if client is None else client


def _here() -> tuple[int, int]:
    return os.getpid(), threading.get_native_id() if native.is_patched() else 0
