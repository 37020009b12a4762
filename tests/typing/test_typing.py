"""What type checkers say about the public API as a user uses it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]

# pyright finds the package through the first Python on the PATH.
ENV = {
    **os.environ,
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1",
}


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, env=ENV, capture_output=True, text=True, check=False)


def lines_that_mypy_rejects(path: Path) -> dict[int, str]:
    # Users have a configuration of their own; ours says only which packages have no types.
    result = python("-m", "mypy", "--strict", "--no-error-summary", "--hide-error-context", str(path))
    assert result.returncode in (0, 1), result.stderr
    found = re.findall(rf"^{re.escape(str(path.relative_to(ROOT)))}:(\d+): error: (.*)$", result.stdout, re.MULTILINE)
    assert bool(found) == bool(result.returncode), result.stdout
    return {int(line): message for line, message in found}


def lines_that_pyright_rejects(path: Path) -> dict[int, str]:
    version = python("-m", "pyright", "--version")
    if version.returncode:
        pytest.skip(f"pyright needs Node.js or a network to fetch it from: {version.stderr.strip()[-200:]}")
    result = python("-m", "pyright", "--outputjson", str(path))
    found = json.loads(result.stdout)["generalDiagnostics"]
    return {each["range"]["start"]["line"] + 1: each["message"] for each in found if each["severity"] == "error"}


@pytest.fixture(params=[lines_that_mypy_rejects, lines_that_pyright_rejects], ids=["mypy", "pyright"])
def checker(request: pytest.FixtureRequest) -> Callable[[Path], dict[int, str]]:
    chosen: Callable[[Path], dict[int, str]] = request.param
    return chosen


def test_what_is_right_is_accepted(checker: Callable[[Path], dict[int, str]]) -> None:
    """Types survive decorators, and each call has the type that it should have."""
    assert checker(HERE / "accepted.py") == {}


def test_what_is_wrong_is_rejected(checker: Callable[[Path], dict[int, str]]) -> None:
    """Each marked line, and no other."""
    path = HERE / "rejected.py"
    marked = {n for n, line in enumerate(path.read_text().splitlines(), 1) if line.endswith("# error")}
    rejected = checker(path)
    assert marked - set(rejected) == set()
    assert {line: message for line, message in rejected.items() if line not in marked} == {}


def test_what_is_accepted_also_runs() -> None:
    """The examples of the type checkers are programs."""
    result = python("-W", "ignore", str(HERE / "accepted.py"))
    assert result.returncode == 0, result.stderr
