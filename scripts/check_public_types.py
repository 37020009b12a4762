"""Checks with pyright that users are told the type of everything that Pyventus exports.

mypy, run strictly, sees to the rest of the package. Where pyright cannot run, this says so and passes.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PUBLIC_MODULES = ("pyventus", "pyventus.linkers", "pyventus.emitters.celery")
PYRIGHT = [sys.executable, "-m", "pyright"]
# pyright finds the package through the first Python on the PATH.
PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
ENVIRONMENT = {**os.environ, "PATH": PATH, "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"}


def pyright(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*PYRIGHT, *arguments], env=ENVIRONMENT, capture_output=True, text=True, check=False)


def exported() -> Iterator[str]:
    """Yield the names, as pyright writes them, of what the public modules export."""
    for name in PUBLIC_MODULES:
        module = importlib.import_module(name)
        for attribute in getattr(module, "__all__", ()):
            thing = getattr(module, attribute)
            home = getattr(thing, "__module__", name)
            yield f"{home}.{getattr(thing, '__qualname__', attribute)}"


def complaints(symbols: list[dict[str, Any]]) -> list[str]:
    """What pyright says of exported symbols, and of their members, whose types are not known.

    A type that is partially unknown is left out: its unknown part is exported, and named here, or it is not public.
    """
    names = set(exported())
    found = []
    for symbol in symbols:
        parts = symbol["name"].split(".")
        if any(".".join(parts[:length]) in names for length in range(1, len(parts) + 1)):
            found += [f"{symbol['name']}: {each['message']}" for each in symbol["diagnostics"]]
    return sorted(line for line in found if "partially unknown" not in line)


def main() -> int:
    trial = pyright("--version")
    if trial.returncode:
        why = (trial.stderr or trial.stdout).strip().splitlines()[-1:]
        print("pyright: skipped, it needs Node.js, or a network to fetch it from;", *why)
        return 0
    checked = pyright("--verifytypes", "pyventus", "--ignoreexternal", "--outputjson")
    if checked.returncode > 1:  # 1: it has something to say
        print(checked.stdout, checked.stderr)
        return checked.returncode
    found = complaints(json.loads(checked.stdout)["typeCompleteness"]["symbols"])
    print(*(f"pyright: {line}" for line in found or ["the types of all that is exported are known"]), sep="\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
