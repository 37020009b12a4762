"""A file in which handlers write down what they do, in processes that may be killed at any moment."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path


def write(file: Path, *words: object) -> None:
    """Add one line, whole or not at all."""
    opened = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(opened, (" ".join(map(str, words)) + "\n").encode())
    finally:
        os.close(opened)


def count(file: Path, word: str) -> Counter[tuple[str, int]]:
    """How often a name and a number were written after ``word``."""
    text = file.read_text() if file.exists() else ""
    lines = [line.split() for line in text.splitlines()]
    return Counter((name, int(number)) for first, name, number in lines if first == word)
