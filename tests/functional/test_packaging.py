"""What is installed is what pyproject.toml says, and needs nothing else."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version

import pyventus

NEWLY_IMPORTED = """
import sys
before = set(sys.modules)
import pyventus
print(*{name.partition(".")[0] for name in set(sys.modules) - before})
"""


def test_importing_the_core_imports_only_the_standard_library() -> None:
    done = subprocess.run([sys.executable, "-c", NEWLY_IMPORTED], capture_output=True, text=True, check=True)
    # multiprocessing, of the standard library, gives the main module this second name.
    assert set(done.stdout.split()) <= sys.stdlib_module_names | {"pyventus", "__mp_main__"}


def test_version_is_told_in_one_voice() -> None:
    assert version("pyventus") == pyventus.__version__
