"""Runs the tests on every supported Python found here, with the oldest and the newest supported Celery.

Each pair has an environment of its own in ``.venvs``. Arguments go to pytest.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENTS = ROOT / ".venvs"
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
CELERIES = {"oldest": "celery[redis]==5.5.0", "newest": "celery[redis]<6"}

# What a release of Celery or kombu brings in at a version of its own choice; all else is held by constraints.txt.
CELERYS_OWN = {
    "amqp", "billiard", "celery", "click", "click-didyoumean", "click-plugins", "click-repl", "kombu", "packaging",
    "python-dateutil", "redis", "tzlocal", "vine",
}  # fmt: skip


class Cell(NamedTuple):
    """One run of the tests, and how it ended."""

    python: str
    celery: str
    result: str
    passed: bool


def output_of(*command: str) -> str | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def find_python(minor: str) -> str | None:
    """Find a Python on the PATH, or among those that pyenv has installed and not put there."""
    candidates = [shutil.which(f"python{minor}")]
    if root := output_of("pyenv", "root"):
        candidates += [str(path) for path in Path(root).glob(f"versions/{minor}.*/bin/python")]
    checked = (path for path in candidates if path and output_of(path, "-c", "import venv; print('works')"))
    return next(checked, None)


def install(python: str, requirement: str, environment: Path) -> str | None:
    """Install into an environment, made if need be; return what went wrong, if anything."""
    environment.mkdir(parents=True, exist_ok=True)
    constraints = environment / "constraints.txt"
    with (ROOT / "constraints.txt").open() as lines:
        constraints.write_text("".join(line for line in lines if line.partition("==")[0] not in CELERYS_OWN))
    pip = [str(environment / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    for command in (
        [python, "-m", "venv", str(environment)],
        [*pip, "--upgrade", "--constraint", str(constraints), "--editable", f"{ROOT}[dev]", requirement],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            return done.stderr.strip()
    return None


def run_tests(minor: str, python: str, celery: str, arguments: list[str]) -> Cell:
    environment = ENVIRONMENTS / f"python{minor}-{celery}-celery"
    if trouble := install(python, CELERIES[celery], environment):
        return Cell(minor, celery, f"could not be installed:\n{trouble}", passed=False)
    interpreter = str(environment / "bin" / "python")
    find_version = "from importlib.metadata import version; print(version('celery'))"
    celery_version = output_of(interpreter, "-c", find_version) or "?"
    log = environment / "tests.log"
    with log.open("w") as output:
        side_by_side = ["--numprocesses=4", "--dist=loadfile"]
        command = [interpreter, "-m", "pytest", *side_by_side, "-p", "no:cacheprovider", "--color=no", *arguments]
        done = subprocess.run(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, check=False)
    summary = (log.read_text().strip().splitlines() or [""])[-1].strip("= ")
    if done.returncode:
        summary += f"  (see {log.relative_to(ROOT)})"
    return Cell(minor, celery_version, summary, passed=done.returncode == 0)


def main() -> int:
    cells = []
    for minor in PYTHONS:
        python = find_python(minor)
        if python is None:
            print(f"Python {minor}: not found here", flush=True)
            continue
        for celery in CELERIES:
            started = time.monotonic()
            print(f"Python {minor}, {celery} Celery ... ", end="", flush=True)
            cells.append(run_tests(minor, python, celery, sys.argv[1:]))
            print(f"{'passed' if cells[-1].passed else 'FAILED'} after {time.monotonic() - started:.0f} s", flush=True)
    print("\nPython  Celery  result")
    for cell in cells:
        print(f"{cell.python:<8}{cell.celery:<8}{'' if cell.passed else 'FAILED: '}{cell.result}")
    return 0 if cells and all(cell.passed for cell in cells) else 1


if __name__ == "__main__":
    sys.exit(main())
