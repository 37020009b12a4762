"""What can be a handler, what it is called, and what warns."""

from __future__ import annotations

import pickle
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pyventus import EventHandler, EventLinker
from pyventus.errors import InvalidHandler, InvalidOption, PyventusError
from pyventus.handlers import callback_id, is_async
from pyventus.linkers import UnstableHandlerIdWarning

from . import callables as c

HERE = __name__


@pytest.mark.parametrize("callback", c.SYNC.values(), ids=c.SYNC)
def test_sync_callables(callback: Callable[..., Any]) -> None:
    """Callables of every kind can be handlers, and these run in a thread."""
    assert EventHandler(callback, callback, callback, id="x").event_callback is callback
    assert not is_async(callback)


@pytest.mark.parametrize("callback", c.ASYNC.values(), ids=c.ASYNC)
def test_async_callables(callback: Callable[..., Any]) -> None:
    """Whatever gives a coroutine when called is awaited, however it is wrapped."""
    assert EventHandler(callback, callback, callback, id="x").event_callback is callback
    assert is_async(callback)


@pytest.mark.parametrize("role", ["event_callback", "success_callback", "failure_callback"])
@pytest.mark.parametrize("callback", c.GENERATORS.values(), ids=c.GENERATORS)
def test_generators_are_refused(linker: type[EventLinker], callback: Callable[..., Any], role: str) -> None:
    """Calling one would run nothing of it; the error names role and function."""
    callbacks = {"event_callback": print, role: callback}
    with pytest.raises(InvalidHandler, match=rf"{role} .*:\S+ is a generator.*use a function without yield"):
        linker.subscribe("x", **callbacks)  # type: ignore[arg-type]
    assert not linker.get_event_handlers()


@pytest.mark.parametrize("role", ["event_callback", "success_callback", "failure_callback"])
@pytest.mark.parametrize("wrong", [3, "function", [], object()], ids=type)
def test_what_is_not_callable_is_refused(linker: type[EventLinker], wrong: Any, role: str) -> None:
    """The error names the role and what was given."""
    callbacks = {"event_callback": print, role: wrong}
    with pytest.raises(InvalidHandler, match=rf"{role} must be a function or another callable, not "):
        linker.subscribe("x", **callbacks)
    assert not linker.get_event_handlers()


@pytest.mark.parametrize("role", ["event_callback", "success_callback", "failure_callback"])
def test_coroutines_are_refused(linker: type[EventLinker], role: str) -> None:
    """The superfluous parentheses are named, and no warning follows about a coroutine that was never awaited."""
    callbacks = {"event_callback": print, role: c.async_function()}
    with pytest.raises(
        InvalidHandler, match=rf"{role} is a coroutine, .* async_function\(\): link the function itself"
    ):
        linker.subscribe("x", **callbacks)  # type: ignore[arg-type]


def test_refusals_can_be_caught_as_builtin_errors(linker: type[EventLinker]) -> None:
    """They are TypeErrors, and all are PyventusErrors."""
    with pytest.raises(TypeError) as caught:
        linker.subscribe("x", event_callback=3)  # type: ignore[arg-type]
    assert isinstance(caught.value, PyventusError)


@pytest.mark.parametrize("timeout", [0, -1, True, "1", float("nan"), float("inf"), threading.TIMEOUT_MAX * 2])
def test_timeouts_are_positive_seconds(linker: type[EventLinker], timeout: Any) -> None:
    """Anything else is refused, with its value."""
    with pytest.raises(InvalidOption, match=r"timeout must be a positive number of seconds, or None, not "):
        linker.subscribe("x", event_callback=print, timeout=timeout)
    assert not linker.get_event_handlers()


@pytest.mark.parametrize("timeout", [None, 1, 0.001, threading.TIMEOUT_MAX])
def test_timeouts_that_are_taken(linker: type[EventLinker], timeout: float | None) -> None:
    """Whole numbers, fractions, and none."""
    assert linker.subscribe("x", event_callback=print, timeout=timeout).timeout == timeout


def test_repr_tells_id_and_options(linker: type[EventLinker]) -> None:
    """And nothing that is not set."""
    plain = linker.subscribe("x", event_callback=print, name="plain")
    optional = linker.subscribe("x", event_callback=print, name="other", once=True, timeout=3)
    assert repr(plain) == "<EventHandler plain>"
    assert repr(optional) == "<EventHandler other once=True timeout=3>"


def test_a_handler_goes_to_another_process(linker: type[EventLinker]) -> None:
    """With all that it needs to run there."""
    handler = linker.subscribe(
        "x", event_callback=c.function, success_callback=c.async_function, name="x", once=True, timeout=3
    )
    copy = pickle.loads(pickle.dumps(handler))
    assert all(getattr(copy, name) == getattr(handler, name) for name in EventHandler.__slots__ if name[0] != "_")


# -- Ids --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("callback", "expected"),
    [
        (c.function, ":function"),
        (c.SYNC["partial"], ":function"),
        (c.Service().method, ":Service.method"),
        (c.Service.class_method, ":Service.class_method"),
        (c.Instance(), ":Instance"),
        (c.Made, ":Made"),
        (c.wrapped, ":function"),
    ],
)
def test_id_is_module_and_qualname_of_the_callback(callback: Callable[..., Any], expected: str) -> None:
    """Through partials; of an instance it is the class's."""
    assert callback_id(callback) == c.__name__ + expected


def test_id_of_builtins() -> None:
    """Their methods know no module."""
    assert callback_id(print) == "builtins:print"
    assert callback_id([].append) == "builtins:list.append"
    assert callback_id("".__str__) == "builtins:str.__str__"


@pytest.fixture
def warned() -> Iterator[list[warnings.WarningMessage]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield caught


def test_a_name_is_the_id(linker: type[EventLinker], warned: list[Any]) -> None:
    """And warns of nothing, whatever it names."""
    assert linker.subscribe("x", event_callback=lambda: None, name="orders.charge").id == "orders.charge"
    assert not warned


def test_further_links_of_a_callback_are_numbered(linker: type[EventLinker], warned: list[Any]) -> None:
    """In link order, with a warning for each, because inserting one would shift those behind it."""
    ids = [linker.subscribe("x", event_callback=c.function).id for _ in range(3)]
    first = f"{c.__name__}:function"
    assert ids == [first, f"{first}#2", f"{first}#3"]
    assert [type(warning.message) for warning in warned] == [UnstableHandlerIdWarning] * 2
    assert f"handler {first}#2 has an id that depends on where it stands" in str(warned[0].message)
    assert "give it a name=" in str(warned[0].message)


def test_numbers_fill_gaps(linker: type[EventLinker], warned: list[Any]) -> None:
    """A number is free again when its handler was removed."""
    handlers = [linker.subscribe("x", event_callback=c.function) for _ in range(3)]
    linker.remove_event_handler(handlers[1])
    assert linker.subscribe("x", event_callback=c.function).id.endswith("#2")


def test_ids_in_other_linkers_are_others(linker: type[EventLinker], warned: list[Any]) -> None:
    """The same callback may be linked in two namespaces without a warning."""

    class Other(linker, name=f"{linker.name}-other"):  # type: ignore[valid-type,misc]
        pass

    assert linker.subscribe("x", event_callback=c.function).id == Other.subscribe("x", event_callback=c.function).id
    assert not warned


def line_of(text: str) -> int:
    lines = Path(__file__).read_text().splitlines()
    return next(number for number, line in enumerate(lines, 1) if line.endswith(text))


def test_warnings_point_at_the_users_line(linker: type[EventLinker], warned: list[warnings.WarningMessage]) -> None:
    """However the callback is linked, and not at a line of Pyventus."""

    @linker.on("x")  # decorator
    def local() -> None: ...

    with linker.on("x") as link:  # statement
        link.on_event(lambda: None)

    linker.subscribe("x", event_callback=lambda: None)  # call

    assert [Path(warning.filename) for warning in warned] == [Path(__file__)] * 3
    decorated, statement, called = (warning.lineno for warning in warned)
    assert decorated in (line_of('@linker.on("x")  # decorator'), line_of("def local() -> None: ..."))
    assert statement == line_of("as link:  # statement")
    assert called == line_of("lambda: None)  # call")


def test_a_module_function_needs_no_name(linker: type[EventLinker], warned: list[Any]) -> None:
    """Its first link in a linker has an id that stays."""
    linker.on("x")(c.function)
    assert not warned


@pytest.mark.parametrize("name", ["", " ", "a\nb", 3])
def test_names_are_printable(linker: type[EventLinker], name: Any) -> None:
    """They stand in logs."""
    with pytest.raises(InvalidOption, match="name of a handler must be a printable string, not "):
        linker.subscribe("x", event_callback=print, name=name)
    assert not linker.get_event_handlers()


def test_a_name_is_taken_once(linker: type[EventLinker]) -> None:
    """The error says by whom."""
    linker.subscribe("x", event_callback=c.function, name="charge")
    with pytest.raises(InvalidHandler, match=rf"'charge' is already taken by {c.__name__}:function in linker 'test-"):
        linker.subscribe("y", event_callback=print, name="charge")
    assert linker.get_events() == ["x"]
