"""What really happened, kept outside of the system that is broken: lines that handlers append to one file.

One write each to a file opened for appending: lines of other processes do not get into it, none is lost with the
process that wrote it, and their order is the order in which things happened.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Self

Pair = tuple[str, str]
"""An emission's id and a handler's."""


def write(file: str | Path, *words: object) -> None:
    """Append one line."""
    line = " ".join(map(str, words)) + "\n"
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


def read(file: str | Path) -> list[list[str]]:
    try:
        return [line.split() for line in Path(file).read_text().splitlines()]
    except FileNotFoundError:
        return []


@dataclass
class Counts:
    """Of one kill point, or of several.

    Attributes:
        emissions: how many there were.
        killed: of how many the process was killed at the point.
        effects: how many pairs of emission and handler were to have an effect.
        lost: how many of them had none.
        duplicated: how many had more than one.
        unexpected: how many pairs had an effect that were to have none.
        recovered: how many had theirs only after the process had been killed.
        again: how often a handler was started after the ledger had said that it is done or dead.
    """

    emissions: int = 0
    killed: int = 0
    effects: int = 0
    lost: int = 0
    duplicated: int = 0
    unexpected: int = 0
    recovered: int = 0
    again: int = 0

    def __add__(self, other: Self) -> Counts:
        return Counts(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(self)))

    def __str__(self) -> str:
        return ", ".join(f"{getattr(self, each.name)} {each.name}" for each in fields(self))


@dataclass
class Oracle:
    """Compares what was to happen with what did.

    Attributes:
        file: with a line for each effect, and for whatever else is asked for below.
        expected: handlers that are to have one effect, by emission.
    """

    file: Path
    expected: dict[str, frozenset[str]] = field(default_factory=dict)

    def expect(self, emission: str, handlers: Iterable[str]) -> None:
        self.expected[emission] = frozenset(handlers)

    @property
    def pairs(self) -> set[Pair]:
        return {(emission, handler) for emission, handlers in self.expected.items() for handler in handlers}

    def missing(self) -> set[Pair]:
        """Pairs without an effect in the file."""
        return self.pairs - {_pair(line) for line in read(self.file) if line[0] == "effect"}

    def unacknowledged(self) -> set[str]:
        """Ids of messages that the worker that started last has received, and not settled with the broker since."""
        held: Counter[str] = Counter()  # Of a message that is looked at again later there are two for a while.
        for what, *words in read(self.file):
            if what == "started":
                held.clear()
            elif what == "received":
                held[words[0]] += 1
            elif what in ("acknowledged", "rejected"):
                held[words[0]] -= 1
        return {id for id, count in held.items() if count > 0}

    def killed(self) -> set[str]:
        return {line[1] for line in read(self.file) if line[0] == "killed"}

    def counts(self, emissions: Collection[str], *, elsewhere: Iterable[Pair] = ()) -> Counts:
        """What became of ``emissions``."""
        lines = [line for line in read(self.file) if line[1] in emissions]
        effects = Counter(_pair(line) for line in lines if line[0] == "effect")
        effects.update(pair for pair in elsewhere if pair[0] in emissions)
        pairs = {pair for pair in self.pairs if pair[0] in emissions}
        return Counts(
            emissions=len(emissions),
            killed=len({line[1] for line in lines if line[0] == "killed"}),
            effects=len(pairs),
            lost=len(pairs - set(effects)),
            duplicated=sum(effects[pair] > 1 for pair in pairs),
            unexpected=len(set(effects) - pairs),
            recovered=len(pairs & set(effects) - _before_the_kill(lines)),
            again=_started_again(lines),
        )


def _pair(line: list[str]) -> Pair:
    return line[1], line[2]


def _before_the_kill(lines: list[list[str]]) -> set[Pair]:
    """Pairs whose effect came before the process was killed at the emission's point."""
    done: set[Pair] = set()
    killed: set[str] = set()
    for line in lines:
        if line[0] == "killed":
            killed.add(line[1])
        elif line[0] == "effect" and line[1] not in killed:
            done.add(_pair(line))
    return done


def _started_again(lines: list[list[str]]) -> int:
    settled: set[Pair] = set()
    again = 0
    for line in lines:
        if line[0] == "settled" and line[3] in ("done", "dead"):
            settled.add(_pair(line))
        elif line[0] == "start":
            again += _pair(line) in settled
    return again
