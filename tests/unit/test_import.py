"""What ``import pyventus`` brings in."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import pyventus

SOURCE = Path(pyventus.__file__).parents[1]


def fresh(code: str) -> str:
    """What a program prints that knows nothing but the standard library and this package."""
    setup = f"import sys; sys.path.append({str(SOURCE)!r}); "
    command = [sys.executable, "-I", "-S", "-c", setup + code]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout


def modules_after(statement: str) -> set[str]:
    return set(json.loads(fresh(f"{statement}; import json; print(json.dumps(list(sys.modules)))")))


@pytest.mark.parametrize(
    "statement",
    [
        "import pyventus", "from pyventus import *", "import pyventus.emitters.executor", "import pyventus.wire",
        "import pyventus.ledger", "import pyventus.ledger.leases",
    ],
)  # fmt: skip
def test_nothing_outside_the_standard_library(statement: str) -> None:
    """Whatever of the core is imported."""
    names = {name.partition(".")[0] for name in modules_after(statement)}
    assert "pyventus" in names
    # Modules that belong to one platform or build, such as _sysconfigdata, start with an underscore.
    assert {name for name in names - sys.stdlib_module_names - {"pyventus"} if not name.startswith("_")} == set()


def test_linking_does_not_wait_for_asyncio() -> None:
    """It and the executors take longer to import than all the rest, and come when they are asked for."""
    loaded = modules_after("import pyventus; pyventus.EventLinker")
    assert not {"asyncio", "concurrent.futures", "multiprocessing"} & loaded
    assert "asyncio" in modules_after("import pyventus; pyventus.AsyncIOEventEmitter")


def test_every_public_name_is_there() -> None:
    """Those that come late too, and a name that does not exist is the usual error."""
    public = json.loads(fresh("import json, pyventus; print(json.dumps([pyventus.__all__, dir(pyventus)]))"))
    assert set(public[0]) <= set(public[1])
    assert all(getattr(pyventus, name) is not None for name in pyventus.__all__)
    with pytest.raises(AttributeError, match="module 'pyventus' has no attribute 'Emiter'"):
        pyventus.Emiter  # type: ignore[attr-defined]  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'Emiter'"):
        from pyventus import Emiter  # type: ignore[attr-defined]  # noqa: F401
