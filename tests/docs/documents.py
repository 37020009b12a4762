"""Reads README and docs with Sybil and executes every Python example in them.

What a fence's info line says decides what becomes of the block:

- ``python``: executed, in a module of the document's own.
- ``python title="name.py"``: a whole file. Written and imported; without a folder it belongs to ``quickstart``.
- ``text title="prints"``: what the Python block before it has printed.
- ``text title="the worker prints"``: what handlers print when a worker of each Celery app of the document runs.
- anything else is not executed.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from celery import Celery
from celery.contrib.testing.worker import start_worker
from kombu.asynchronous import set_event_loop
from sybil import Document, Example, Region
from sybil.parsers.markdown.lexers import RawFencedCodeBlockLexer

from pyventus.emitters.celery.worker import emission_tasks, handlers_queues
from tests.workers import logging_left_alone

ROOT = Path(__file__).parents[2]
PATHS = [ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")] + sorted(ROOT.glob("docs/**/*.md"))
NAMES = [str(path.relative_to(ROOT)) for path in PATHS]
WAIT_SECONDS = 10.0

_fences = RawFencedCodeBlockLexer(re.compile(r"(?P<info>[^\n]*)\n"))
_INFO = re.compile(r'(?P<language>\w*)(?:\s+title="(?P<title>[^"]+)")?\s*')


def parse(name: str) -> Document:
    """A document with one example for each of its fenced blocks."""
    return Document.parse(str(ROOT / name), _regions)


def _regions(document: Document) -> Iterator[Region]:
    for region in _fences(document):
        match = _INFO.fullmatch(region.lexemes["info"])
        assert match, f"{document.path}: unknown info line {region.lexemes['info']!r}"
        yield Region(region.start, region.end, parsed={**match.groupdict(), "source": str(region.lexemes["source"])})


def blocks(name: str, language: str) -> list[dict[str, str]]:
    """The parsed blocks of one language, in the document's order."""
    return [example.parsed for example in parse(name).examples() if example.parsed["language"] == language]


class Reader:
    """Goes through one document as someone would who types its examples in."""

    def __init__(self, name: str, folder: Path) -> None:
        self.module = ModuleType(f"document_{re.sub(r'[^a-z]', '_', name.lower())}")
        self.document = parse(name)
        self.folder = folder
        self.executed = 0
        self._printed = ""

    @contextlib.contextmanager
    def at_the_desk(self) -> Iterator[None]:
        """With the document's module and files importable, and nothing of them left afterwards."""
        before = set(sys.modules)
        sys.modules[self.module.__name__] = self.module
        sys.path.insert(0, str(self.folder))
        importlib.invalidate_caches()
        try:
            with logging_left_alone():
                yield
        finally:
            sys.path.remove(str(self.folder))
            for name in set(sys.modules) - before:
                if name == self.module.__name__ or self._is_ours(sys.modules[name]):
                    del sys.modules[name]

    def _is_ours(self, module: ModuleType) -> bool:
        return str(getattr(module, "__file__", None) or "").startswith(str(self.folder))

    def read(self) -> None:
        with self.at_the_desk():
            for example in self.document.examples():
                try:
                    self._evaluate(example)
                except Exception as error:
                    error.add_note(f"in the example at {example.path}:{example.line}")
                    raise

    def _evaluate(self, example: Example) -> None:
        language, title, source = example.parsed["language"], example.parsed["title"], example.parsed["source"]
        if language == "python":
            self._write(title, source) if title else self._execute(source, example)
            self.executed += 1
        elif title == "prints":
            assert self._printed == source
        elif title == "the worker prints":
            self._run_workers(source)

    def _execute(self, source: str, example: Example) -> None:
        with contextlib.redirect_stdout(io.StringIO()) as output:
            # Line numbers of a traceback are those of the document.
            code = compile("\n" * example.line + source, example.path, "exec")
            exec(code, vars(self.module))
        self._printed = output.getvalue()

    def _write(self, title: str, source: str) -> None:
        path = self.folder / (title if "/" in title else f"quickstart/{title}")
        path.parent.mkdir(parents=True, exist_ok=True)
        (path.parent / "__init__.py").touch()
        path.write_text(source)
        importlib.invalidate_caches()
        importlib.import_module(".".join(path.relative_to(self.folder).with_suffix("").parts))

    def _run_workers(self, expected: str) -> None:
        wanted = sorted(expected.splitlines())
        with contextlib.redirect_stdout(io.StringIO()) as output:
            with contextlib.ExitStack() as workers:
                for app in self._apps():
                    # Celery 5.5 would take the loop that the worker before it has left, with that one's timer
                    # (celery.worker.components.Hub), and what is delayed would never come up.
                    set_event_loop(None)
                    queues = [*(task.emission_queue.name for task in emission_tasks(app)), *handlers_queues()]
                    workers.enter_context(
                        start_worker(app, pool="solo", perform_ping_check=False, queues=queues, shutdown_timeout=30.0)
                    )
                deadline = time.monotonic() + WAIT_SECONDS
                while len(output.getvalue().splitlines()) < len(wanted) and time.monotonic() < deadline:
                    time.sleep(0.02)
            assert sorted(output.getvalue().splitlines()) == wanted

    def _apps(self) -> list[Celery]:
        modules = [self.module, *(module for module in list(sys.modules.values()) if self._is_ours(module))]
        found = [value for module in modules for value in vars(module).values() if isinstance(value, Celery)]
        return list(dict.fromkeys(found))
