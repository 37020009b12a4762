"""README and docs say what is so: their examples run, their files are the quickstart's, their tables are complete."""

from __future__ import annotations

import ast
import inspect
import json
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

import pyventus
from benchmarks.page import PAGE, PLOTS, RESULTS, page, plots
from pyventus import EventLinker, errors
from pyventus.emitters.celery import CeleryEventEmitter
from pyventus.emitters.celery.queue import WeakSecretWarning
from tests.brokers import Valkey
from tests.docs import frameworks
from tests.docs.documents import NAMES, ROOT, Reader, blocks

WITH_THE_TUTORIAL = ("README.md", "docs/tutorial.md")
# It is about brokers in memory, and CELERY_BROKER_URL would take their place.
ON_ITS_OWN_BROKER = "docs/how-to/test.md"
# What handlers of the examples fail with on purpose.
EXPECTED_ERRORS = {
    "docs/how-to/timeouts.md": "its timeout of",
    "docs/how-to/test.md": "no such order",
    "docs/how-to/retries.md": "nobody is no address",
}
REFERENCE = (ROOT / "docs/reference.md").read_text()

# However somebody may write one; the reader knows but one way.
PYTHON_FENCE = re.compile(r"^[ \t>*-]*(?:```|~~~)\s*(?:py|python|python3|pycon)\b", re.IGNORECASE | re.MULTILINE)

# As the tutorial prints them.
WORKER_COMMANDS = (
    "celery -A [package-name].worker worker -l INFO",
    "celery -A [package-name].worker worker -l INFO --pool=solo",
    "celery -A [package-name].worker worker -l INFO -Q [queue-name]",
)


@pytest.fixture
def desk(valkey: Valkey, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """An empty broker at the address that Celery prefers to any in the code, and nothing linked."""
    frameworks.provide(monkeypatch)
    for variable in ("CELERY_BROKER_URL", "CELERY_RESULT_BACKEND", "COUNTERS_URL"):
        monkeypatch.setenv(variable, valkey.url)
    for variable in ("PYVENTUS_SECRET", "PYVENTUS_OLD_SECRET"):
        monkeypatch.setenv(variable, variable * 4)
    EventLinker.remove_all()
    yield monkeypatch
    EventLinker.remove_all()
    with valkey.client() as client:
        client.flushall()


@pytest.mark.parametrize("name", NAMES)
def test_examples_run(name: str, desk: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Each document from its first example to its last, on a real broker, and no handler fails."""
    if name == ON_ITS_OWN_BROKER:
        desk.delenv("CELERY_BROKER_URL")
        desk.delenv("CELERY_RESULT_BACKEND")
    desk.chdir(tmp_path)  # For files that examples make.
    reader = Reader(name, tmp_path)
    with warnings.catch_warnings():
        if name in WITH_THE_TUTORIAL:
            warnings.simplefilter("ignore", WeakSecretWarning)
        reader.read()
    errors_logged = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert not [line for line in errors_logged if EXPECTED_ERRORS.get(name, "nothing") not in line]
    fences = re.findall(
        r"^[ \t>*-]*(?:```|~~~)\s*(?:py|python|pycon|python3)\b", (ROOT / name).read_text(), re.I | re.M
    )
    assert reader.executed == len(fences), f"a Python example of {name} was not executed"


@pytest.mark.parametrize("name", WITH_THE_TUTORIAL)
def test_files_are_those_of_the_quickstart(name: str) -> None:
    """All three, and in the order in which one needs them."""
    files = {block["title"]: block["source"] for block in blocks(name, "python") if block["title"]}
    assert list(files) == ["event_handlers.py", "worker.py", "main.py"]
    for title, source in files.items():
        assert source == (ROOT / "examples/quickstart" / title).read_text(), title


def test_commands_are_those_of_the_tutorial() -> None:
    """With nothing but the placeholder replaced."""
    commands = [line for block in blocks("docs/tutorial.md", "console") for line in block["source"].splitlines()]
    expected = [command.replace("[package-name]", "quickstart") for command in WORKER_COMMANDS]
    assert [command for command in commands if command.startswith("celery ")] == expected
    in_readme = [line for block in blocks("README.md", "console") for line in block["source"].splitlines()]
    assert [command for command in in_readme if command.startswith("celery ")] == expected[:1]
    assert "python -m quickstart.main" in commands
    assert "python -m quickstart.main" in in_readme


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name: str) -> None:
    """Every relative link of a document is a file, and its anchor a heading of that file."""
    folder = (ROOT / name).parent
    for target in re.findall(r"\]\(([^)\s]+)\)", (ROOT / name).read_text()):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        file = (folder / path).resolve() if path else ROOT / name
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", file.read_text(), re.M)
            assert anchor in {_anchor(heading) for heading in headings}, target


def test_tests_that_are_named_exist() -> None:
    """Whoever doubts a promise looks for the test that shows it."""
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", (ROOT / "docs/guarantees.md").read_text())
    assert len(named) > 50
    for path, test in named:
        assert f"def {test}" in (ROOT / path).read_text(), f"{path}::{test}"


def test_the_page_of_performance_is_what_its_results_make() -> None:
    """Nobody edits it, or its plots."""
    results = json.loads(RESULTS.read_text())
    assert PAGE.read_text() == page(results)
    assert {path.name: path.read_text() for path in PLOTS.iterdir()} == plots(results)


def _anchor(heading: str) -> str:
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def _parameters(function: object) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name not in ("self", "args", "kwargs")]  # type: ignore[arg-type]


def test_reference_lists_every_public_name() -> None:
    """So that a name without a word of explanation does not appear."""
    names = set(pyventus.__all__) | {name for name, each in vars(errors).items() if inspect.isclass(each)}
    names -= {"TYPE_CHECKING", "Any"}
    names |= {
        f"{name}("
        for owner in (EventLinker, CeleryEventEmitter)
        for name in dir(owner)
        if not name.startswith(("_", "default_", "max_")) and inspect.isroutine(getattr(owner, name))
    } - {"claim(", "find_handlers(", "is_spent("}
    assert not [name for name in names if name not in REFERENCE]


@pytest.mark.parametrize(
    "function",
    [
        CeleryEventEmitter,
        CeleryEventEmitter.Queue,
        CeleryEventEmitter.with_options,
        EventLinker.subscribe,
        EventLinker.register,
        EventLinker.__init_subclass__,
        pyventus.event,
        pyventus.Emission,
        pyventus.ExecutorEventEmitter,
    ],
)
def test_reference_lists_every_option(function: object) -> None:
    """So that an option without a word of explanation does not appear."""
    defined = " ".join(_defined())
    assert not [name for name in _parameters(function) if not re.search(rf"\b{name}\b", defined)]


def _defined() -> list[str]:
    """What stands in the first columns of tables, or opens a paragraph in bold."""
    return re.findall(r"^(?:\| |\*\*)(`.*?`)(?: \||\*\*)", REFERENCE, re.M)


def test_reference_lists_every_log_line() -> None:
    """Somebody looks for what stands in the log: the words of each line stand in the table too."""
    assert not [line for line in _log_lines() if _beginning(line) not in REFERENCE]


def test_reference_lists_no_other_log_line() -> None:
    """One that is gone is not looked for in vain."""
    lines = [_as_printed(line) for line in _log_lines()]
    table = REFERENCE.partition("## Log lines")[2]
    listed = re.findall(r"^\| (?:ERROR|WARNING|INFO) \| `([^`]+)`", table, re.M)
    assert len(listed) >= len(lines)
    assert not [each for each in listed if not any(_is_same(each, line) for line in lines)]


def _is_same(listed: str, line: str) -> bool:
    """One of the two may break off where the other goes on."""
    short, long = sorted((listed.rstrip(" …"), line.rstrip(" …")), key=len)
    return long.startswith(short)


def _as_printed(line: str) -> str:
    return re.sub(r"%[.\d]*[a-z]", "…", line)


def _beginning(line: str) -> str:
    """As the table prints it, and long enough to tell it from the others."""
    return _as_printed(line)[:30].rstrip()


def _log_lines() -> Iterator[str]:
    for path in sorted((ROOT / "src").glob("**/*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and isinstance(node.func.value, ast.Name)
                and node.func.value.id == "logger"
                and isinstance(node.args[0], ast.Constant)
            ):
                yield str(node.args[0].value)
