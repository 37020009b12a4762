"""The tutorial's three files, exactly as printed, started with the commands that it prints."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pytest

from tests.workers import START_SECONDS, run

EXAMPLES = Path(__file__).parents[2] / "examples"
WORKER = "celery -A quickstart.worker worker -l INFO"
MAIN = "python -m quickstart.main"
STARTING = {"Starting the async slow process...", "Starting the sync slow process..."}
FINISHING = {"Finishing the async slow process!", "Finishing the sync slow process!"}


def check_quickstart(examples: Path, logs: Path, broker_url: str, backend_url: str, worker_command: str) -> None:
    """Start the worker, run main.py, and check who ran, how often and in which order."""
    env = {"CELERY_BROKER_URL": broker_url, "CELERY_RESULT_BACKEND": backend_url}
    with run(shlex.split(worker_command), cwd=examples, log=logs / "worker.log", env=env) as worker:
        worker.wait_for(" ready.", timeout=START_SECONDS)
        with run(shlex.split(MAIN), cwd=examples, log=logs / "main.log", env=env) as main:
            assert main.wait() == 0, main.log()
        assert "Finishing" not in worker.log(), "main.py waited for its handlers"
        worker.wait_for(*FINISHING)
        worker.stop()
        log = worker.log()
    assert [log.count(line) for line in STARTING | FINISHING] == [1, 1, 1, 1], log
    order = sorted(STARTING | FINISHING, key=log.index)
    assert set(order[:2]) == STARTING, f"the handlers did not run side by side:\n{log}"


def copy_quickstart(folder: Path, before: str, after: str) -> Path:
    """Copy the files with one change to ``worker.py``."""
    shutil.copytree(EXAMPLES / "quickstart", folder / "quickstart", ignore=shutil.ignore_patterns("__pycache__"))
    file = folder / "quickstart" / "worker.py"
    text = file.read_text()
    assert text.count(before) == 1
    file.write_text(text.replace(before, after))
    return folder


@pytest.mark.parametrize("pool", ["", "--pool=solo", "-P threads", "-P gevent"])
def test_runs_as_printed_on_redis(pool: str, redis_url: str, tmp_path: Path) -> None:
    check_quickstart(EXAMPLES, tmp_path, redis_url, redis_url, f"{WORKER} {pool}")


def test_runs_on_rabbitmq(amqp_url: str, redis_url: str, queue_name: str, tmp_path: Path) -> None:
    """With a default queue of its own: the server may be shared."""
    line = "# Create the celery event emitter queue."
    examples = copy_quickstart(tmp_path, line, f"app.conf.task_default_queue = {queue_name!r}\n{line}")
    check_quickstart(examples, tmp_path, amqp_url, redis_url, f"{WORKER} -n {queue_name}@%h")


def test_runs_on_the_queue_that_is_specified(broker_url: str, redis_url: str, queue_name: str, tmp_path: Path) -> None:
    examples = copy_quickstart(tmp_path, "Queue(celery=app, ", f"Queue(celery=app, name={queue_name!r}, ")
    command = f"{WORKER} -Q {queue_name} -n {queue_name}@%h"
    check_quickstart(examples, tmp_path, broker_url, redis_url, command)
