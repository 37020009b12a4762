"""Notices that something holds up a loop, and says which handler, and where."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
import traceback
from types import FrameType

from pyventus.running import handler_at

logger = logging.getLogger("pyventus")

BLOCKED_SECONDS = 1.0
LOOK_SECONDS = 0.5
SHOWN_FRAMES = 10


class Watchdog:
    """Looks at a loop from a thread of its own."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._thread = 0

    def run(self) -> None:
        """Look again and again, until the loop is closed."""
        while self._look():
            time.sleep(LOOK_SECONDS)

    def _look(self) -> bool:
        began = time.monotonic()
        ticked = threading.Event()
        try:
            self._loop.call_soon_threadsafe(self._tick, ticked)
        except RuntimeError:  # It is closed.
            return False
        if ticked.wait(BLOCKED_SECONDS):
            return True
        culprit = self._accuse()
        while not ticked.wait(BLOCKED_SECONDS):
            if self._loop.is_closed():
                return False
        logger.warning("The loop goes on, which %s held up for %.1f s", culprit, time.monotonic() - began)
        return True

    def _tick(self, ticked: threading.Event) -> None:
        self._thread = threading.get_ident()
        ticked.set()

    def _accuse(self) -> str:
        """Log what the loop's thread is at; returns whose it is."""
        frame = sys._current_frames().get(self._thread)
        if frame is None:
            return "something"
        culprit, frames = _culprit(frame)
        logger.error(
            "The loop is held up by %s at %s:%d, and no async handler goes on meanwhile: await there, or make it a "
            "plain function, which runs in a thread\n%s",
            culprit, frame.f_code.co_filename, frame.f_lineno,
            "".join(traceback.format_list(traceback.extract_stack(frame, -frames))).rstrip(),
        )  # fmt: skip
        return culprit


def _culprit(frame: FrameType) -> tuple[str, int]:
    """Whose code it is, and how many of the innermost frames are its."""
    for frames, (each, _) in enumerate(traceback.walk_stack(frame)):
        if (handler := handler_at(each)) is not None:
            return f"handler {handler.id}", frames
    return "code that is no handler's", SHOWN_FRAMES
