"""The app of the tests of the asyncio pool: what they see of a task from inside."""

from __future__ import annotations

import asyncio
import threading
import time
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from celery import current_task, signals

from pyventus import EventLinker
from pyventus.running import current_emission
from tests.functional.apps.handlers import say
from tests.functional.apps.service import app, queue

number_inside: ContextVar[int] = ContextVar("number_inside")
task_inside: ContextVar[str] = ContextVar("task_inside")
barriers: dict[int, asyncio.Barrier] = {}


@signals.task_prerun.connect(weak=False)
def enter(task_id: str, **_: object) -> None:
    task_inside.set(task_id)


@signals.task_postrun.connect(weak=False)
def leave(task_id: str, **_: object) -> None:
    """After it waited for others on the same thread."""
    print(f"{task_id} of its own: {task_inside.get() == task_id == current_task.request.id}")


@signals.worker_process_init.connect(weak=False)
def say_init(**_: object) -> None:
    print("process init")


@EventLinker.on("Isolated", name="isolated")
async def isolated(number: int, of: int) -> None:
    """Meets the others in the middle."""
    number_inside.set(number)
    id = current_emission().id
    await barriers.setdefault(of, asyncio.Barrier(of)).wait()
    say("kept its own:", (number_inside.get(), current_emission().id) == (number, id))


@EventLinker.on("Clings", name="clings")
async def clings(file: str) -> None:
    """Outlives the soft time limit, the first time."""
    mark = Path(file)
    if mark.exists():
        return say("ran again")
    mark.touch()
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        say("clings")
        await asyncio.sleep(60)
    return None


@EventLinker.on("Waits", name="waits for ever")
async def waits() -> None:
    say("waits")
    try:
        await asyncio.sleep(600)
    finally:
        say("was cancelled")


@EventLinker.on("Ticks", name="ticks")
async def ticks(file: str) -> None:
    while not Path(file).exists():
        say("ticks")
        await asyncio.sleep(0.02)


@EventLinker.on("Blocks", name="blocks")
async def blocks(file: str) -> None:
    say("blocks")
    wait_for(file)


def wait_for(file: str) -> None:
    while not Path(file).exists():
        time.sleep(0.02)


@app.task(name="tests.ordinary", bind=True)
def ordinary(self: Any, file: str) -> None:
    is_own = current_task.request.id == self.request.id
    print(f"{self.request.id} in a thread: {threading.current_thread() is not threading.main_thread() and is_own}")
    wait_for(file)


@app.task(name="tests.exits")
def exits() -> None:
    raise SystemExit(3)


__all__ = ["app", "queue"]
