"""One connection to Redis, for one thread."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from redis.exceptions import ConnectionError, NoPermissionError, NoScriptError, ResponseError


def send(connection: Any, *command: Any) -> None:
    """Send a command over a connection of redis-py, which connects first if it has to."""
    # By itself redis-py 8 would connect to localhost in the place of the primary that a Sentinel names.
    if connection._sock is None:
        connection.connect()
    connection.send_command(*command)


class Link:
    """Sends commands, each once: a client that tries again by itself may have been heard the first time.

    Under gevent a connection belongs to the thread in which it was made, which rules out a pool that threads share.

    Args:
        connect: makes a connection, which connects when it is used.
    """

    def __init__(self, connect: Callable[[], Any]) -> None:
        self._connection = connect()

    def __call__(self, *command: Any) -> Any:
        """Send a command and return the answer.

        Raises:
            ConnectionError: also where Redis has refused it; an error of a channel would end Celery's worker.
            NoPermissionError: the user may not do this, ever.
            NoScriptError: Redis does not know the script.
        """
        try:
            send(self._connection, *command)
            return self._connection.read_response()
        except (NoScriptError, NoPermissionError):
            raise
        except ResponseError as error:
            raise ConnectionError(str(error)) from error
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the connection; a further command opens it again."""
        with suppress(Exception):
            self._connection.disconnect()
