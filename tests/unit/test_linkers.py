"""The registry: linking, unlinking, looking up, namespaces, and many threads at once."""

from __future__ import annotations

import random
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from pyventus import AsyncIOEventEmitter, Emission, EventHandler, EventLinker, ExecutorEventEmitter, event
from pyventus.errors import ConfigurationError, InvalidEvent, InvalidHandler, InvalidOption, Unhandled
from pyventus.linkers import find_linker

from . import event_classes as c
from .callables import function

pytestmark = pytest.mark.filterwarnings("ignore::pyventus.linkers.UnstableHandlerIdWarning")

THREADS = 32


def other() -> None: ...


def found(linker: type[EventLinker], emitted: object) -> list[EventHandler]:
    return linker.find_handlers(AsyncIOEventEmitter(linker).prepare(emitted))


def in_threads(work: Callable[[int], Any], count: int = THREADS) -> list[Any]:
    """What ``work`` returned in each of many threads that started at once."""
    barrier = threading.Barrier(count)

    def run(n: int) -> Any:
        barrier.wait(20)
        return work(n)

    with ThreadPoolExecutor(count) as threads:
        return list(threads.map(run, range(count)))


# -- Linking ----------------------------------------------------------------------------------------------------


def test_the_decorator_links_and_returns_the_function(linker: type[EventLinker]) -> None:
    """It can still be called, linked again, and tested by itself."""

    @linker.on("a", c.OrderPlaced, ValueError)
    def handle(*args: object) -> object:
        return args

    assert handle(1) == (1,)
    (handler,) = linker.get_event_handlers()
    assert handler.event_callback is handle
    assert linker.get_events() == ["a", c.OrderPlaced, ValueError]
    assert not handler.once


def test_decorators_stack(linker: type[EventLinker]) -> None:
    """Each link is a handler of its own, with its own options."""

    @linker.once("a")
    @linker.on("b", timeout=3)
    def handle() -> None: ...

    assert [(h.once, h.timeout) for h in linker.get_event_handlers()] == [(False, 3), (True, None)]


def test_options_of_the_decorators(linker: type[EventLinker]) -> None:
    """They are those of subscribe."""
    linker.on("a", success_callback=print, failure_callback=other, name="n", timeout=1, force_async=True)(function)
    (handler,) = linker.get_event_handlers()
    assert (handler.success_callback, handler.failure_callback, handler.id, handler.timeout) == (print, other, "n", 1)
    with pytest.raises(TypeError):
        linker.on("a", unknown=1)(function)  # type: ignore[call-overload]


def test_subscribe_returns_the_handler(linker: type[EventLinker]) -> None:
    """All its options are on it."""
    handler = linker.subscribe(
        "a",
        ...,
        event_callback=function,
        success_callback=print,
        failure_callback=other,
        once=True,
        timeout=2,
        name="n",
    )
    assert linker.get_event_handlers() == [handler]
    assert linker.get_events() == ["a", ...]
    assert (handler.event_callback, handler.success_callback, handler.failure_callback) == (function, print, other)
    assert (handler.once, handler.timeout, handler.id) == (True, 2, "n")


def test_one_event_named_twice_is_linked_once(linker: type[EventLinker]) -> None:
    """In one call."""
    handler = linker.subscribe("a", "a", event_callback=function)
    assert linker.get_handlers_by_events("a") == [handler]


def test_with_statement(linker: type[EventLinker]) -> None:
    """Response logic in one place, linked when the block ends."""
    with linker.on("a", timeout=4) as link:

        @link.on_event
        def charge() -> str:
            return ""

        @link.on_success
        def charged(receipt: str) -> None: ...

        @link.on_failure
        def failed(error: Exception) -> None: ...

        assert not linker.get_events()

    (handler,) = linker.get_event_handlers()
    assert (handler.event_callback, handler.success_callback, handler.failure_callback) == (charge, charged, failed)
    assert handler.timeout == 4


def test_with_once(linker: type[EventLinker]) -> None:
    """Once works in both forms."""
    with linker.once("a") as link:
        link.on_event(function)
    assert linker.get_event_handlers()[0].once


def test_a_with_block_that_raises_links_nothing(linker: type[EventLinker]) -> None:
    """And lets its error through."""
    with pytest.raises(ZeroDivisionError), linker.on("a") as link:
        link.on_event(function)
        raise ZeroDivisionError
    assert not linker.get_events()


def misuse_no_event(linker: type[EventLinker]) -> None:
    with linker.on("a") as link:
        link.on_success(function)


def misuse_twice(linker: type[EventLinker]) -> None:
    with linker.on("a") as link:
        link.on_event(function)
        link.on_event(other)


def misuse_option_and_decorator(linker: type[EventLinker]) -> None:
    with linker.on("a", success_callback=print) as link:
        link.on_event(function)
        link.on_success(other)


def misuse_called_inside(linker: type[EventLinker]) -> None:
    with linker.on("a") as link:
        link(function)


def misuse_outside(linker: type[EventLinker]) -> None:
    linker.on("a").on_event(function)


def misuse_afterwards(linker: type[EventLinker]) -> None:
    with linker.on("b") as link:
        link.on_event(function)
    linker.remove_all()
    link.on_success(other)


@pytest.mark.parametrize(
    ("misuse", "message"),
    [
        (
            misuse_no_event,
            r"<EventLink of 'a' in linker 'test-.*has no event callback: decorate one with @link.on_event",
        ),
        (misuse_twice, r"event_callback was given twice: .*:other would replace the first"),
        (misuse_option_and_decorator, r"success_callback was given twice: .*:other would replace"),
        (misuse_called_inside, r"inside a with statement .* with @link.on_event"),
        (misuse_outside, r"event_callback .*:function is given outside a with statement"),
        (misuse_afterwards, r"success_callback .*:other is given outside a with statement"),
    ],
)
def test_misuse_of_the_with_form(linker: type[EventLinker], misuse: Callable[..., None], message: str) -> None:
    """What would link nothing, or something else than it says, is refused."""
    with pytest.raises(InvalidHandler, match=message):
        misuse(linker)
    assert not linker.get_events()


def test_a_link_may_be_used_again(linker: type[EventLinker]) -> None:
    """Each with statement starts afresh."""
    link = linker.on("a")
    for callback in (function, other):
        with link:
            link.on_event(callback)
    assert [handler.event_callback for handler in linker.get_event_handlers()] == [function, other]


def test_nothing_is_half_linked(linker: type[EventLinker]) -> None:
    """When subscribe raises, for whatever reason, everything is as it was."""

    linker.subscribe("full", event_callback=function, name="taken")
    linker.max_event_handlers = 1
    before = (linker.get_events(), linker.get_event_handlers(), dict(linker._by_id))
    wrong: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
        (("new", "full"), {}),
        (("new",), {"name": "taken"}),
        (("new", 3), {}),
        (("new",), {"success_callback": 3}),
        (("new",), {"timeout": -1}),
        (("new",), {"event_callback": 3}),
    ]
    for events, options in wrong:
        with pytest.raises((InvalidEvent, InvalidHandler, InvalidOption)):
            linker.subscribe(*events, **{"event_callback": other, **options})
        assert (linker.get_events(), linker.get_event_handlers(), dict(linker._by_id)) == before


def test_a_class_whose_name_is_taken_is_not_half_linked(linker: type[EventLinker]) -> None:
    """The other events of the call stay without the handler, and its name stays free."""

    class Stranger:
        pass

    event(f"{Stranger.__module__}:{Stranger.__qualname__}")(type("Owner", (), {"__module__": "owners"}))
    with pytest.raises(InvalidEvent, match="already belongs to owners:Owner"):
        linker.subscribe("new", Stranger, event_callback=other, name="other")
    assert not linker.get_events()
    assert linker.subscribe("new", event_callback=other, name="other")


def test_a_warning_that_is_an_error_links_nothing(linker: type[EventLinker]) -> None:
    """As in test suites that turn warnings into errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning):
            linker.subscribe("a", event_callback=lambda: None)
    assert not linker.get_events()


# -- Unlinking --------------------------------------------------------------------------------------------------


@pytest.fixture
def handler(linker: type[EventLinker]) -> EventHandler:
    return linker.subscribe("a", "b", c.Base, event_callback=function, name="handler")


def test_unsubscribe(linker: type[EventLinker], handler: EventHandler) -> None:
    """Takes a handler from some events, and says whether it was linked to any of them."""
    assert linker.unsubscribe("a", "unknown", event_handler=handler) is True
    assert linker.unsubscribe("a", event_handler=handler) is False
    assert linker.get_events_by_handler(handler) == ["b", c.Base]
    assert linker.unsubscribe("b", c.Base, event_handler=handler) is True
    assert linker.get_events() == []
    with pytest.raises(InvalidEvent):
        linker.unsubscribe(event_handler=handler)


def test_remove_event_handler(linker: type[EventLinker], handler: EventHandler) -> None:
    """Takes a handler from all its events, and frees its name."""
    assert linker.remove_event_handler(handler) is True
    assert linker.remove_event_handler(handler) is False
    assert linker.get_event_handlers() == []
    assert linker.subscribe("a", event_callback=other, name="handler")


def test_remove_event(linker: type[EventLinker], handler: EventHandler) -> None:
    """Takes all handlers from an event; those of other events stay."""
    second = linker.subscribe("a", event_callback=other)
    assert linker.remove_event("a") is True
    assert linker.remove_event("a") is False
    assert linker.get_event_handlers() == [handler]
    assert linker.get_events_by_handler(second) == []


def test_remove_all(linker: type[EventLinker], handler: EventHandler) -> None:
    """Leaves nothing, names included."""
    assert linker.remove_all() is True
    assert linker.remove_all() is False
    assert (linker.get_events(), linker.get_event_handlers()) == ([], [])
    assert linker.subscribe("a", event_callback=other, name="handler")


def test_a_partly_unlinked_handler_keeps_its_name(linker: type[EventLinker], handler: EventHandler) -> None:
    """Until its last event is gone."""
    linker.remove_event("a")
    with pytest.raises(InvalidHandler, match="already taken"):
        linker.subscribe("x", event_callback=other, name="handler")


# -- Looking up -------------------------------------------------------------------------------------------------


def test_get_handlers_by_events(linker: type[EventLinker], handler: EventHandler) -> None:
    """Those linked to the events themselves, each once, in link order; subclasses and `...` are for emissions."""
    second = linker.subscribe("b", "z", event_callback=other)
    assert linker.get_handlers_by_events("z", "b", "a") == [handler, second]
    assert linker.get_handlers_by_events(c.Middle) == []
    assert linker.get_handlers_by_events("unknown") == []
    with pytest.raises(InvalidEvent):
        linker.get_handlers_by_events()


def test_handlers_of_an_emission_come_in_link_order_each_once(linker: type[EventLinker]) -> None:
    """However many of its events match."""
    links: list[tuple[Any, ...]] = [(...,), (c.Base, c.Last), (c.Last,), ("Last",), (c.Middle, ...), (c.OrderPlaced,)]
    handlers = [linker.subscribe(*events, event_callback=function) for events in links]
    assert found(linker, c.Last()) == [handlers[n] for n in (0, 1, 2, 4)]
    assert found(linker, "Last") == [handlers[n] for n in (0, 3, 4)]


def test_lists_are_copies(linker: type[EventLinker], handler: EventHandler) -> None:
    """Changing one changes no registry."""
    for each in (
        linker.get_events(),
        linker.get_event_handlers(),
        linker.get_handlers_by_events("a"),
        linker.get_events_by_handler(handler),
        found(linker, "a"),
    ):
        each.clear()
    assert found(linker, "a") == [handler]


def test_an_emission_for_one_handler(linker: type[EventLinker], handler: EventHandler) -> None:
    """A follow-up names the handlers that are still to run; one that is gone is named with the cure."""
    linker.subscribe("a", event_callback=other)
    assert linker.find_handlers(Emission(event="a", handlers=("handler",))) == [handler]
    with pytest.raises(Unhandled, match=r"for the handler 'gone', which is not linked.*give it its former name"):
        linker.find_handlers(Emission(event="a", handlers=("gone",)))


# -- Namespaces -------------------------------------------------------------------------------------------------


def test_a_subclass_is_a_namespace(linker: type[EventLinker]) -> None:
    """Nothing linked in one is seen in another, nor in a subclass of it."""

    class Child(linker, name=f"{linker.name}-child"):  # type: ignore[valid-type,misc]
        pass

    handler = linker.subscribe("a", event_callback=function)
    assert not Child.get_events()
    Child.subscribe("b", event_callback=function)
    assert linker.get_events() == ["a"]
    assert Child.remove_all()
    assert linker.get_event_handlers() == [handler]
    assert not EventLinker.get_handlers_by_events("a")


def test_names_of_linkers() -> None:
    """Given, or module and qualname; the default namespace is the default one."""

    class Unnamed(EventLinker):
        pass

    class Named(EventLinker, name="test.named"):
        pass

    assert EventLinker.name == "default"
    assert Unnamed.name == f"{__name__}:test_names_of_linkers.<locals>.Unnamed"
    assert find_linker("test.named") is Named
    assert find_linker(Unnamed.name) is Unnamed
    assert find_linker("default") is EventLinker
    with pytest.raises(Unhandled, match="linker 'gone' is not defined in this process: import the module"):
        find_linker("gone")


def test_a_linkers_name_belongs_to_one_linker(linker: type[EventLinker]) -> None:
    """The default one's included; defining the same class again is no clash."""

    def define(name: str) -> type[EventLinker]:
        class Clash(EventLinker, name=name):
            pass

        return Clash

    with pytest.raises(ConfigurationError, match=rf"'{linker.name}' of .*Clash already belongs to .*Fresh"):
        define(linker.name)
    with pytest.raises(ConfigurationError, match=r"already belongs to pyventus.linkers:EventLinker"):
        define("default")
    first, second = define("test.again"), define("test.again")
    assert first is not second
    assert find_linker("test.again") is second


@pytest.mark.parametrize("name", ["", " ", "a\n", 3])
def test_a_linkers_name_is_printable(name: Any) -> None:
    """It stands in logs."""
    with pytest.raises(InvalidOption, match=r"name of linker .*Wrong must be a printable string"):

        class Wrong(EventLinker, name=name):
            pass


def test_max_event_handlers() -> None:
    """Counts the handlers of one event, and says which event and linker are full."""

    class Two(EventLinker, name="test.two", max_event_handlers=2):
        pass

    first = Two.subscribe("a", event_callback=function)
    Two.subscribe("a", "b", event_callback=other)
    with pytest.raises(
        InvalidHandler, match=r"event 'a' already has 2 handlers, the max_event_handlers of linker 'test"
    ):
        Two.subscribe("b", "a", event_callback=print)
    Two.subscribe("b", event_callback=print)
    Two.remove_event_handler(first)
    assert Two.subscribe("a", event_callback=repr)


@pytest.mark.parametrize("limit", [0, -1, True, 1.5, "2"])
def test_max_event_handlers_is_a_whole_number(limit: Any) -> None:
    """Anything else is refused when the linker is defined."""
    with pytest.raises(InvalidOption, match="max_event_handlers must be a whole number from 1 up, or None, not "):

        class Wrong(EventLinker, max_event_handlers=limit):
            pass


def test_default_callbacks() -> None:
    """Handlers that bring none of their own get them; an own one goes first, even one that is falsy."""

    class Falsy(list[Any]):
        def __call__(self) -> None: ...

    class Defaults(
        EventLinker, name="test.defaults", default_success_callback=function, default_failure_callback=other, debug=True
    ):
        pass

    mine = Falsy()
    handlers = [
        Defaults.subscribe("a", event_callback=print),
        Defaults.subscribe("a", event_callback=print, success_callback=mine),
        Defaults.subscribe("a", event_callback=print, failure_callback=mine),
    ]
    callbacks = [(handler.success_callback, handler.failure_callback) for handler in handlers]
    assert callbacks == [(function, other), (mine, other), (function, mine)]
    assert callbacks[1][0] is mine


@pytest.mark.parametrize("role", ["default_success_callback", "default_failure_callback"])
def test_default_callbacks_are_callable(role: str) -> None:
    """They are checked when the linker is defined, not when something is linked."""
    with pytest.raises(InvalidHandler, match=f"{role} must be a function"):
        type("Wrong", (EventLinker,), {}, **{role: 3})


# -- Once -------------------------------------------------------------------------------------------------------


def test_once_runs_once(linker: type[EventLinker]) -> None:
    """For one of its events, then for none."""
    ran: list[str] = []
    handler = linker.subscribe("a", "b", ..., event_callback=lambda: ran.append("x"), once=True)
    emitter = AsyncIOEventEmitter(linker)
    for name in ("a", "a", "b", "c"):
        emitter.emit(name)
    assert ran == ["x"]
    assert linker.get_event_handlers() == []
    assert linker.get_events_by_handler(handler) == []


def test_an_event_whose_once_handler_has_run_is_spent(linker: type[EventLinker]) -> None:
    """So that no later emission of it is reported as one that nobody handles."""
    emission = Emission(event="a", linker=linker.name)
    handler = linker.subscribe("a", event_callback=function, once=True)
    assert not linker.is_spent(emission)
    assert linker.claim(handler, emission)
    assert linker.is_spent(emission)
    assert not linker.is_spent(Emission(event="b", linker=linker.name))
    linker.remove_all()
    assert not linker.is_spent(emission)


def test_an_event_whose_once_handler_has_run_is_no_mistake(
    linker: type[EventLinker], caplog: pytest.LogCaptureFixture
) -> None:
    """That nothing is left to run is not warned of, until everything is removed."""
    linker.subscribe("a", event_callback=function, once=True)
    emitter = AsyncIOEventEmitter(linker)
    emitter.emit("a")
    emitter.emit("a")
    assert not caplog.messages
    linker.remove_all()
    emitter.emit("a")
    assert len(caplog.messages) == 1


def test_once_is_not_used_up_by_preparing(linker: type[EventLinker]) -> None:
    """It is claimed when the handler starts."""
    linker.subscribe("a", event_callback=function, once=True)
    AsyncIOEventEmitter(linker).prepare("a")
    assert found(linker, "a") == found(linker, "a") != []


def test_a_once_handler_that_has_run_is_found_by_its_own_follow_ups(linker: type[EventLinker]) -> None:
    """Until it is removed, which frees its name."""
    handler = linker.subscribe("a", event_callback=function, once=True, name="one")
    assert linker.claim(handler, Emission(event="a"))
    assert linker.find_handlers(Emission(event="a", handlers=("one",))) == [handler]
    assert linker.remove_event_handler(handler) is False
    assert linker.subscribe("a", event_callback=other, name="one")


def test_a_once_handler_is_found_again_by_the_emission_that_has_it(linker: type[EventLinker]) -> None:
    """Its message may be delivered again; to every other emission it is gone."""
    handler = linker.subscribe("a", event_callback=function, once=True, name="one")
    other_handler = linker.subscribe("a", event_callback=other, name="two")
    mine, others = Emission(event="a", linker=linker.name), Emission(event="a", linker=linker.name)
    for _ in range(2):
        assert linker.claim(handler, mine)
        assert not linker.claim(handler, others)
    assert linker.find_handlers(mine) == [handler, other_handler]
    assert linker.find_handlers(others) == [other_handler]
    assert linker.claim(handler, Emission(event="a", attempt=2)), "a retry of another process"
    assert linker.claim(handler, Emission(event="a", replay=1)), "a dead letter"
    linker.remove_event_handler(handler)
    assert linker.find_handlers(mine) == [other_handler]
    assert not linker.claim(handler, mine)


@pytest.mark.usefixtures("busy_threads")
@pytest.mark.parametrize("emitter", [AsyncIOEventEmitter, ExecutorEventEmitter])
def test_once_under_many_threads_runs_once(linker: type[EventLinker], emitter: Callable[..., Any]) -> None:
    """Emitted by 32 threads in the same moment, ten times over."""
    ran: list[int] = []
    for n in range(10):
        linker.subscribe("a", ..., event_callback=lambda n=n: ran.append(n), once=True)
        shared = emitter(event_linker=linker)
        in_threads(lambda _, shared=shared: shared.emit("a"))
        if isinstance(shared, ExecutorEventEmitter):
            shared.shutdown()
    assert ran == list(range(10))


# -- Threads ----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("busy_threads")
def test_linking_in_many_threads_loses_nothing(linker: type[EventLinker]) -> None:
    """Every handler of every thread is there, with an id of its own, filed in link order."""
    in_threads(lambda n: [linker.subscribe("shared", f"own-{n}", event_callback=function) for _ in range(20)])
    handlers = linker.get_event_handlers()
    assert len(handlers) == len({handler.id for handler in handlers}) == THREADS * 20
    assert linker.get_handlers_by_events("shared") == handlers == found(linker, "shared")
    assert len(linker.get_events()) == THREADS + 1


@pytest.mark.usefixtures("busy_threads")
def test_names_and_limits_hold_under_many_threads() -> None:
    """Of 32 that want one name one gets it, and no event gets more handlers than it may have."""

    class Limited(EventLinker, name="test.limited", max_event_handlers=5):
        pass

    def link(n: int) -> bool:
        try:
            Limited.subscribe("a", event_callback=function, name=f"name-{n % 16}")
        except InvalidHandler:
            return False
        return True

    assert sum(in_threads(link)) == 5
    assert len(Limited.get_handlers_by_events("a")) == 5


@pytest.mark.usefixtures("busy_threads")
def test_everything_at_once_in_many_threads(linker: type[EventLinker]) -> None:
    """Linking, unlinking, looking up and emitting neither fail nor disturb a handler that stays."""
    ran: list[int] = []
    stays = linker.subscribe("shared", event_callback=lambda: ran.append(1), name="stays")
    emitter = AsyncIOEventEmitter(linker)

    def hammer(n: int) -> None:
        dice = random.Random(n)
        for _ in range(100):
            handler = linker.subscribe("shared", f"own-{n}", c.Base, event_callback=other, once=dice.random() < 0.3)
            emitter.emit("shared")
            assert stays in linker.get_event_handlers()
            linker.get_events(), linker.get_events_by_handler(handler), found(linker, c.Last())
            dice.choice(
                [
                    lambda handler=handler: linker.remove_event_handler(handler),
                    lambda: linker.remove_event(f"own-{n}"),
                    lambda handler=handler: linker.unsubscribe("shared", c.Base, event_handler=handler),
                ]
            )()
            linker.remove_event_handler(handler)

    in_threads(hammer, 8)
    assert len(ran) == 800
    assert linker.get_event_handlers() == [stays]
    assert linker.get_events() == ["shared"]
