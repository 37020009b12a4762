"""Real Celery workers for the tests: processes of their own, watched through their log."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from uuid import uuid4

from celery.signals import setup_logging

START_SECONDS = 30.0
WAIT_SECONDS = 20.0
STOP_SECONDS = 15.0
POLL_SECONDS = 0.02

# What a worker spends its first seconds on, and no test here is about. On RabbitMQ a solo worker that waits for
# messages notices a TERM at its next heartbeat, and without heartbeats after ten seconds.
QUICK_START = ("--without-mingle", "--without-gossip", "--heartbeat-interval=1")


def run_script(*arguments: str) -> str:
    """Run Python with these arguments, from the root of the project; returns what it prints."""
    done = subprocess.run(
        [sys.executable, *arguments], cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=50
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextlib.contextmanager
def logging_left_alone() -> Iterator[None]:
    """For a worker in the test's own process.

    One that set logging up would keep hold of a stream that pytest closes, and hide warnings from the tests after it.
    """
    setup_logging.connect(_set_nothing_up)
    try:
        yield
    finally:
        setup_logging.disconnect(_set_nothing_up)


def _set_nothing_up(**_: object) -> None:
    """As a receiver of the signal in place of which Celery sets logging up."""


class Process:
    """A process in a session of its own, with what it writes in a file."""

    def __init__(self, command: Sequence[str], *, cwd: Path, log: Path, env: Mapping[str, str] | None = None) -> None:
        self.command = " ".join(command)
        self._log = log
        bin_folder = Path(sys.executable).parent
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                command,
                cwd=cwd,
                env={
                    **os.environ,
                    "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}",
                    "PYTHONUNBUFFERED": "1",
                    **(env or {}),
                },
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def wait_for(self, *texts: str, count: int = 1, timeout: float = WAIT_SECONDS) -> str:
        """Wait until each text stands in the log ``count`` times, and return the log."""
        deadline = time.monotonic() + timeout
        while True:
            ended = self.process.poll() is not None  # before the log is read, so that its last words count
            log = self.log()
            missing = [text for text in texts if log.count(text) < count]
            if not missing:
                return log
            if ended or time.monotonic() > deadline:
                what = f"ended with {self.process.returncode}" if ended else f"{timeout:g} s passed"
                raise AssertionError(f"{what} without {missing} in the log of `{self.command}`:\n{log}")
            time.sleep(POLL_SECONDS)

    def wait(self, timeout: float = WAIT_SECONDS) -> int:
        """Wait until it ends by itself, and return its exit status."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"`{self.command}` still runs after {timeout:g} s:\n{self.log()}") from None

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def stop(self, timeout: float = STOP_SECONDS) -> int:
        """Ask it to finish what it runs and to end (a warm shutdown); kill what is left after ``timeout``."""
        self.signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout)
        return self.kill()

    def kill(self) -> int:
        """End it and its children on the spot."""
        self._signal_group(signal.SIGKILL)
        return self.process.wait()

    def pause(self) -> None:
        """Stop it and its children where they are, as a machine does that swaps or sleeps."""
        self._signal_group(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal_group(signal.SIGCONT)

    def _signal_group(self, number: int) -> None:
        # The group outlives its leader for as long as it has a member.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)


@contextlib.contextmanager
def run(command: Sequence[str], *, cwd: Path, log: Path, env: Mapping[str, str] | None = None) -> Iterator[Process]:
    """Run a command; nothing of it is left when the block ends."""
    process = Process(command, cwd=cwd, log=log, env=env)
    try:
        yield process
    finally:
        process.kill()


@contextlib.contextmanager
def worker(
    app: str,
    *args: str,
    cwd: Path,
    pool: str = "solo",
    concurrency: int | None = None,
    queues: str | None = None,
    env: Mapping[str, str] | None = None,
    log: Path | None = None,
) -> Iterator[Process]:
    """Start ``celery -A app worker`` in the folder ``cwd`` and wait until it is ready.

    It ends warmly with the block, coldly if the block raised.

    Args:
        app: the app's module, and its attribute after a colon, as for ``-A``.
        *args: further arguments of ``celery worker``.
        log: its log file; one in ``cwd`` by default, which should then be the test's ``tmp_path``.
    """
    name = f"test-{uuid4().hex[:8]}"
    options = ["-l", "INFO", "-n", f"{name}@%h", "-P", pool, *QUICK_START, *args]
    if concurrency is not None:
        options += ["-c", str(concurrency)]
    if queues is not None:
        options += ["-Q", queues]
    command = [sys.executable, "-m", "celery", "-A", app, "worker", *options]
    with run(command, cwd=cwd, log=log or cwd / f"{name}.log", env=env) as process:
        process.wait_for(" ready.", timeout=START_SECONDS)
        yield process
        process.stop()
