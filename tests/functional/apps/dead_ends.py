"""Replays the letters of the app ``dead`` and is killed where an interruption would hurt most."""

from __future__ import annotations

import os
import signal
from typing import Any

from tests.functional.apps.dead import queue

letters = queue.dead_letters


def die(*_: Any, **__: Any) -> None:
    print("published", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


letters.store.remove = die
letters.replay_all()
