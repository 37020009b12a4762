"""What an event loop sends by itself over a connection that is lent to it, without a switch of threads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from pyventus.emitters.celery.sockets import WOULD_BLOCK
from pyventus.emitters.celery.splicing import ANSWER_BYTES

if TYPE_CHECKING:
    from pyventus.emitters.celery.publisher import Message, Publishing, Sender


class Flight:
    """Messages on their way from a loop to the broker, and the answer on its way back.

    Args:
        loop: that runs.
        land: called once, by the loop, with what ended it; None: the broker has answered.

    Attributes:
        publishings: what is on its way.
        sender: that has lent its connection.
        end: when the last of them gives up, by ``time.monotonic()``.
    """

    sender: Sender

    def __init__(self, loop: asyncio.AbstractEventLoop, land: Callable[[Flight, BaseException | None], None]) -> None:
        self.loop = loop
        self.publishings: Sequence[Publishing] = ()
        self.end = 0.0
        self._land = land
        self._is_writing = self._is_over = False

    def begin(self, sender: Sender, publishings: Sequence[Publishing], messages: Sequence[Message]) -> bool:
        """Send, and have the loop go on when the broker takes more of it or answers.

        Returns:
            False, with nothing sent: the loop cannot wait for a socket, as on Windows.
        """
        splicer = sender.splicer
        assert splicer is not None
        self._socket, self._take = splicer.socket, splicer.take
        self._file = self._socket.fileno()
        try:
            self.loop.add_reader(self._file, self._read)
        except NotImplementedError:
            return False
        self.sender, self.end = sender, max(each.end for each in publishings)
        for each in publishings:
            each.sender = sender
        # Last: other threads look at a flight that has some.
        self.publishings = publishings
        self._timeout = self._socket.gettimeout()
        self._socket.settimeout(0)
        try:
            self._left = memoryview(splicer.request(messages))
            self._write()
        except BaseException:
            self._leave_loop()
            raise
        return True

    def _write(self) -> None:
        try:
            while self._left:
                self._left = self._left[self._socket.send(self._left) :]
        except WOULD_BLOCK:
            self.loop.remove_reader(self._file)
            self._is_writing = True
            self.loop.add_writer(self._file, self._go_on_writing)
        except Exception as error:
            self.finish(error)
        else:
            if self._take(b""):
                self.finish(None)

    def _go_on_writing(self) -> None:
        self._is_writing = False
        self.loop.remove_writer(self._file)
        self.loop.add_reader(self._file, self._read)
        self._write()

    def _read(self) -> None:
        try:
            data = self._socket.recv(ANSWER_BYTES)
            # Of TLS there may be more than the loop knows of.
            while data and not self._take(data):
                data = self._socket.recv(ANSWER_BYTES)
        except WOULD_BLOCK:
            return
        except Exception as error:
            self.finish(error)
        else:
            self.finish(None if data else ConnectionError("the broker closed the connection"))

    def finish(self, error: BaseException | None) -> None:
        """Wait no more, because of an error, or because the broker has answered."""
        if self._is_over:
            return
        try:
            self._leave_loop()
            if error is None:
                self._socket.settimeout(self._timeout)
        finally:
            self._land(self, error)

    def _leave_loop(self) -> None:
        self._is_over = True
        (self.loop.remove_writer if self._is_writing else self.loop.remove_reader)(self._file)
