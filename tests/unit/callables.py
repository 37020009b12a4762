"""Callables of every kind that a user may link, and of every kind that is refused."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Iterator
from typing import Any
from unittest.mock import AsyncMock


def function(*args: Any) -> Any:
    return args


async def async_function(*args: Any) -> Any:
    return args


class Service:
    def method(self, *args: Any) -> Any:
        return args

    async def async_method(self, *args: Any) -> Any:
        return args

    @classmethod
    def class_method(cls, *args: Any) -> Any:
        return args

    @staticmethod
    async def static_method(*args: Any) -> Any:
        return args

    def generator_method(self) -> Iterator[int]:
        yield 1


class Instance:
    def __call__(self, *args: Any) -> Any:
        return args


class AsyncInstance:
    async def __call__(self, *args: Any) -> Any:
        return args


class GeneratorInstance:
    def __call__(self) -> Iterator[int]:
        yield 1


class Made:
    """A class is called like a function."""

    def __init__(self, *args: Any) -> None:
        self.args = args


def generator() -> Iterator[int]:
    yield 1


async def async_generator() -> AsyncIterator[int]:
    yield 1


@functools.wraps(function)
def wrapped(*args: Any) -> Any:
    return function(*args)


SYNC = {
    "function": function,
    "partial": functools.partial(function, 1),
    "method": Service().method,
    "class method": Service.class_method,
    "instance": Instance(),
    "partial of an instance": functools.partial(Instance(), 1),
    "class": Made,
    "builtin": print,
    "builtin method": [].append,
    "cached": functools.lru_cache(function),
    "wrapped": wrapped,
    "lambda": lambda *args: args,
}
ASYNC = {
    "async function": async_function,
    "async partial": functools.partial(async_function, 1),
    "partial of a partial": functools.partial(functools.partial(async_function, 1), 2),
    "async method": Service().async_method,
    "static method": Service.static_method,
    "async instance": AsyncInstance(),
    "partial of an async instance": functools.partial(AsyncInstance(), 1),
    "async mock": AsyncMock(),
}
GENERATORS = {
    "generator": generator,
    "async generator": async_generator,
    "partial generator": functools.partial(generator),
    "generator method": Service().generator_method,
    "generator instance": GeneratorInstance(),
}
