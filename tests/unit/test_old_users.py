"""Code that was written for the existing package still runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HAPPENED = """\
first ()
second
first ()
first (OrderCreated(order_id=5),)
divided 0.5
not divided ZeroDivisionError
error ZeroDivisionError('no')
third
default success (3,)
default failure ValueError(-3)
third
passing on Third of str
third
refused InvalidEvent
"""


def test_a_program_written_for_0_4() -> None:
    """With its imports, keywords and names, linkers and emitters of all kinds; nothing in it warns."""
    root = Path(__file__).resolve().parents[2]
    # Imported, because the handlers of Celery workers cannot be in the script that is started.
    program = "from tests.unit import written_for_0_4 as program; program.main(); print(*program.happened, sep='\\n')"
    command = [sys.executable, "-W", "error", "-c", program]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=50, check=False)
    assert result.returncode == 0, result.stderr
    lines, expected = result.stdout.splitlines(), HAPPENED.splitlines()
    # Handlers of one emission run side by side.
    assert sorted(lines[:2]) == sorted(expected[:2])
    assert lines[2:] == expected[2:]
