"""How a channel waits: on sockets that a loop watches, each of which says what to do when it can be read."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import Any

from redis.exceptions import ConnectionError, ResponseError

from pyventus.emitters.celery.redis_transport.link import send

#: Seconds after which Redis answers that nothing came, so that a connection that has broken silently is noticed.
WAIT_SECONDS = 30.0
LATE_SECONDS = 10.0


class Waiter:
    """Waits for one queue: what comes is moved to its landing list, in one step, and is then there to be fetched.

    It takes a connection for each queue and priority: what blocks for several lists at once cannot also move.

    Args:
        connection: for it alone.
        queue: list to wait for.
        landing: where to move what comes.
        wake: called when something has come.
    """

    def __init__(self, connection: Any, queue: str, landing: str, wake: Callable[[], Any]) -> None:
        self.connection = connection
        self._command = ("BLMOVE", queue, landing, "RIGHT", "LEFT", WAIT_SECONDS)
        self._wake = wake
        self._since: float | None = None

    def start(self) -> None:
        """Wait, if it does not yet."""
        if self._since is None:
            send(self.connection, *self._command)
            self._since = time.monotonic()
        elif time.monotonic() - self._since > WAIT_SECONDS + LATE_SECONDS:
            raise ConnectionError("Redis has not answered BLMOVE in its time")

    def on_readable(self) -> Any:
        """Read the answer; what was moved is fetched with all else."""
        self._since = None
        try:
            has_come = self.connection.read_response() is not None
        except ResponseError as error:
            # A full Redis refuses BLMOVE, and lets what is there be fetched.
            raise Refused(error) from error
        return self._wake() if has_come else False

    def close(self) -> None:
        """Stop waiting. What Redis moves at this very moment is put back with the next heartbeat of a worker."""
        self.connection.disconnect()


class Refused(Exception):
    """Redis does not let us wait."""


class Bell:
    """Can be read for as long as there is something to do.

    Args:
        answer: called then.
    """

    def __init__(self, answer: Callable[[], Any]) -> None:
        self.on_readable = answer
        self._sock, self._other = socket.socketpair()  # kombu registers `.connection._sock`
        self._rings = False

    @property
    def connection(self) -> Bell:
        """As kombu's poller expects it of a client."""
        return self

    def ring(self, rings: bool) -> None:
        """Ring, or stop ringing."""
        if rings and not self._rings:
            self._other.send(b"\0")
        elif self._rings and not rings:
            self._sock.recv(1)
        self._rings = rings

    def close(self) -> None:
        """Close both ends."""
        self._sock.close()
        self._other.close()
