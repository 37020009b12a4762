"""Runs a worker of an app of this package, and starts it again whenever it is killed, until a TERM.

``python -m tests.chaos.apps.supervisor APP ARGUMENTS-OF-CELERY-WORKER...``: each worker is a fork of this process,
which has imported the app, so that it starts in a fraction of the time.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from types import FrameType, ModuleType

from tests.chaos.apps import clocks

worker = 0
is_ending = False


def forward(number: int, _: FrameType | None) -> None:
    global is_ending
    is_ending = True
    if worker:
        os.kill(worker, number)


def start(module: ModuleType, arguments: list[str]) -> int:
    pid = os.fork()
    if pid:
        return pid
    for number in (signal.SIGTERM, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)
    module.begin()
    module.app.worker_main(["worker", *arguments, "-n", f"kills-{os.getpid()}@%h"])
    os._exit(0)


def main() -> int:
    global worker
    clocks.shift(float(os.environ.get("TEST_CLOCK", "0")))
    module = importlib.import_module(f"tests.chaos.apps.{sys.argv[1]}")
    for number in (signal.SIGTERM, signal.SIGQUIT):
        signal.signal(number, forward)
    while True:
        worker = start(module, sys.argv[2:])
        _, status = os.waitpid(worker, 0)
        code = os.waitstatus_to_exitcode(status)
        print(f"worker {worker} ended with {code}", flush=True)
        if is_ending or code != -signal.SIGKILL:
            return 0 if is_ending else 1


if __name__ == "__main__":
    sys.exit(main())
