"""A queue refuses at once what could not work later, and says how to cure it; its secrets never show."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from pyventus import Emission, EventLinker
from pyventus.emitters.celery import CeleryEventEmitter
from pyventus.emitters.celery.queue import Queue, WeakSecretWarning
from pyventus.errors import ConfigurationError, InvalidEvent, InvalidHandler, InvalidOption, Refused
from pyventus.wire import JSONSerializer, PickleSerializer

STRONG = "0123456789abcdef" * 2
PICKLING = {"accept_content": ["json", "pickle"]}


def make_app(**settings: Any) -> Celery:
    app = Celery("shop", broker="memory://", set_as_current=False)
    app.conf.update(settings)
    return app


# -- Arguments ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"celery": "app"}, InvalidOption, "celery must be a Celery app, not 'app'"),
        ({"celery": Celery}, InvalidOption, "celery must be a Celery app"),
        ({"name": ""}, InvalidOption, "the name of a queue must be a printable string, not ''"),
        ({"name": " "}, InvalidOption, "printable string"),
        ({"name": "a\nb"}, InvalidOption, "printable string"),
        ({"name": 1}, InvalidOption, "printable string, not 1"),
        ({"name": "dead:orders"}, InvalidOption, "must not begin with 'dead:', as which dead letters are signed"),
        ({"dead_letters": "amqp://"}, InvalidOption, "dead_letters must be a URL that begins with redis://"),
        ({"retry": 3}, InvalidOption, "retry must be a Retry, such as"),
        ({"ledger": "mysql://"}, InvalidOption, "the URL of a ledger begins with one of redis://"),
        ({"ledger": 5}, InvalidOption, "ledger must be a Ledger or its URL"),
        (
            {"ledger": "redis://", "max_age": timedelta(days=13)},
            ConfigurationError,
            "a retention of 15 days",
        ),
        ({"secret": ""}, ConfigurationError, "a secret is empty: is the setting or environment variable"),
        ({"secret": b""}, ConfigurationError, "a secret is empty"),
        ({"secret": [STRONG, ""]}, ConfigurationError, "a secret is empty"),
        ({"secret": []}, ConfigurationError, "secret is an empty sequence"),
        ({"secret": 5}, ConfigurationError, "secret must be text, bytes or a sequence of them, not int"),
        ({"serializer": "pickle"}, ConfigurationError, "serializer='pickle' needs a secret of 32 bytes or more"),
        ({"serializer": "pickle", "secret": "short"}, ConfigurationError, r"secrets.token_hex\(32\)"),
        ({"serializer": "pickle", "secret": [STRONG, "short"]}, ConfigurationError, "32 bytes or more"),
        (
            {"serializer": "pickle", "secret": STRONG},
            ConfigurationError,
            "needs an app that accepts 'application/x-python-serialize', and app 'shop' does not: add it to app.conf",
        ),
        ({"serializer": "yaml"}, InvalidOption, "serializer must be 'json', 'pickle', or have a name, dumps"),
        ({"serializer": object()}, InvalidOption, "serializer must be"),
        ({"unhandled": "drop"}, InvalidOption, "unhandled must be 'dead_letter' or 'ignore', not 'drop'"),
        ({"lifespan": "open"}, InvalidOption, "lifespan must be a function that returns a context manager"),
        ({"middleware": [1]}, InvalidOption, "middleware must be a function that returns a context manager, not 1"),
        ({"max_size": 0}, InvalidOption, "max_size must be a whole number from 1 up, not 0"),
        ({"max_size": True}, InvalidOption, "max_size must be"),
        ({"max_size": 1.5}, InvalidOption, "max_size must be"),
        ({"max_age": timedelta(days=6)}, InvalidOption, "max_age must be a timedelta of 7 days or more"),
        ({"max_age": 10**9}, InvalidOption, "max_age must be a timedelta"),
    ],
)
def test_refuses(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Queue(**{"celery": make_app(), **arguments})


@pytest.mark.parametrize("accepted", [["pickle"], ["application/x-python-serialize"], ["yaml"]])
def test_refuses_an_app_that_does_not_accept_json(accepted: list[str]) -> None:
    with pytest.raises(ConfigurationError, match="app 'shop' does not accept 'application/json'"):
        Queue(make_app(accept_content=accepted))


def test_accepts_pickle_where_all_is_given() -> None:
    queue = Queue(make_app(**PICKLING), secret=STRONG, serializer="pickle")
    assert isinstance(queue.serializer, PickleSerializer)


def test_an_app_that_is_configured_late_is_checked_by_the_emitter() -> None:
    """What the queue could not know without loading the configuration, the emitter says."""
    app = make_app()
    queue = Queue(app)
    app.conf.accept_content = ["pickle"]
    with pytest.raises(ConfigurationError, match="does not accept 'application/json'"):
        CeleryEventEmitter(queue)


def test_making_a_queue_loads_no_configuration() -> None:
    """Receivers of on_after_configure and on_after_finalize may be connected below the queue."""
    app = Celery("late", broker="memory://", set_as_current=False)
    app.config_from_object({"task_default_queue": "late"})
    queue = Queue(app)
    CeleryEventEmitter(queue)
    assert not app.configured
    assert not app.finalized
    assert repr(queue) == "<Queue default of app 'late', json, unsigned>"
    assert not app.configured


# -- Secrets ------------------------------------------------------------------------------------------------------


def test_a_weak_secret_warns_where_the_user_wrote_it() -> None:
    with pytest.warns(WeakSecretWarning, match="a secret of 10 bytes may be guessed") as caught:
        Queue(make_app(), secret="secret-key")
    assert caught[0].filename == __file__
    assert "secret-key" not in str(caught[0].message)


@pytest.mark.parametrize("secret", [None, STRONG, [STRONG.encode(), STRONG * 2]])
def test_no_warning_without_a_weak_secret(secret: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Queue(make_app(), secret=secret)


def test_its_repr_holds_no_secret() -> None:
    queue = Queue(make_app(), "orders", secret=STRONG)
    assert repr(queue) == "<Queue orders of app 'shop', json, signed>"
    assert STRONG not in repr(vars(queue))


def test_cannot_be_pickled() -> None:
    with pytest.raises(TypeError, match="holds secrets and connections and cannot be pickled"):
        pickle.dumps(Queue(make_app(), secret=STRONG))


# -- Names --------------------------------------------------------------------------------------------------------


def test_its_default_name_follows_the_app() -> None:
    """Also when the app is configured after the queue was made."""
    app = make_app()
    queue = Queue(app)
    app.conf.task_default_queue = "late"
    assert (queue.name, queue.task_name) == ("late", "pyventus.late")


def test_a_name_and_the_default_of_that_name_are_one_queue() -> None:
    """Emitters and workers may spell the same queue differently."""
    emitting, working = Queue(make_app(), "celery", secret=STRONG), Queue(make_app(), secret=STRONG)
    message = emitting.message(CeleryEventEmitter(emitting).prepare("Event"))
    assert message.task in working.app.tasks
    assert working.open(message.text, message.id).emission.event == "Event"


@pytest.mark.parametrize("is_finalized", [False, True])
def test_its_task_is_registered_under_the_name_that_is_configured_late(is_finalized: bool) -> None:
    app = Celery("late", broker="memory://", set_as_current=False)
    app.config_from_object({"task_default_queue": "late"})
    if is_finalized:
        app.finalize()
    queue = Queue(app)
    assert app.tasks
    assert app.conf.task_default_queue == "late"
    assert app.tasks["pyventus.late"].emission_queue is queue


@pytest.mark.parametrize(("first", "second"), [("a", "a"), (None, None), (None, "celery"), ("celery", None)])
def test_refuses_a_second_queue_of_one_name(first: str | None, second: str | None) -> None:
    app = make_app()
    Queue(app, first)
    with pytest.raises(ConfigurationError, match="app 'shop' has more than one queue '(a|celery)': make it once"):
        Queue(app, second)


def test_refuses_a_second_queue_of_the_default_name_that_is_configured_late() -> None:
    """Then the emitter says it, and the worker."""
    app = make_app()
    default, named = Queue(app), Queue(app, "orders")
    app.conf.task_default_queue = "orders"
    for queue in (default, named):
        with pytest.raises(ConfigurationError, match="more than one queue 'orders'"):
            CeleryEventEmitter(queue)


def test_several_queues_share_an_app() -> None:
    app = make_app()
    names = {Queue(app, name).task_name for name in (None, "a", "b")}
    assert names <= set(app.tasks)
    assert len(names) == 3


# -- Serializers --------------------------------------------------------------------------------------------------


class Lines:
    name = "lines"

    def dumps(self, emission: Emission) -> bytes:
        return "\n".join(emission.args).encode()

    def loads(self, data: bytes) -> Emission:
        return Emission(event="", args=tuple(data.decode().split("\n")))


class Explicit(CeleryEventEmitter.Queue.Serializer):
    """A subclass of the protocol, as its users may write it."""

    name = "explicit"  # type: ignore[assignment]

    def dumps(self, emission: Emission, /) -> bytes:
        return json.dumps(emission.args).encode()

    def loads(self, data: bytes, /) -> Emission:
        return Emission(event="", args=tuple(json.loads(data)))


@pytest.mark.parametrize(
    ("serializer", "name"),
    [
        (None, "json"),
        ("json", "json"),
        (JSONSerializer, "json"),
        (Lines, "lines"),
        (Lines(), "lines"),
        (Explicit, "explicit"),
    ],
)
def test_takes_a_serializer_in_any_form(serializer: Any, name: str) -> None:
    queue = Queue(make_app(), secret=STRONG, serializer=serializer)
    emission = CeleryEventEmitter(queue).prepare("Event", "a", "é")
    message = queue.message(emission)
    assert queue.serializer.name == name
    assert queue.open(message.text, message.id).decode().args == ("a", "é")


def test_refuses_the_message_of_another_queue_or_id() -> None:
    app = make_app()
    queue, other = Queue(app, "a", secret=STRONG), Queue(app, "b", secret=STRONG)
    message = queue.message(CeleryEventEmitter(queue).prepare("Event"))
    with pytest.raises(Refused, match="signed for queue 'a'"):
        other.open(message.text, message.id)
    with pytest.raises(Refused, match="signed for message"):
        queue.open(message.text, "another")


# -- Messages -----------------------------------------------------------------------------------------------------


def test_message_ids() -> None:
    """The first message has the emission's id; those of others are derived, and always the same."""
    app = make_app()
    queue, other = Queue(app, "a"), Queue(app, "b")
    emission = CeleryEventEmitter(queue).with_options(id="order-7").prepare("Event")
    assert queue.message(emission).id == "order-7"
    derived = [each.message(emission, is_first=False).id for each in (queue, other, other)]
    assert derived[0] != derived[1] == derived[2]
    assert "order-7" not in derived


def test_a_message_has_its_moment_and_its_priority() -> None:
    """So that it waits in the worker once, and is not sent back by it."""
    queue = Queue(make_app())
    emission = CeleryEventEmitter(queue).with_options(delay=60, priority=7).prepare("Event")
    message = queue.message(emission)
    assert (message.options, message.priority) == ({"eta": emission.due}, 7)


def test_a_message_hides_its_text() -> None:
    queue = Queue(make_app(), secret=STRONG)
    assert "hidden" not in repr(queue.message(CeleryEventEmitter(queue).prepare("Event", "hidden")))


# -- The emitter --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("queue", [None, "orders", [], [None], Queue])
def test_emitter_refuses_what_is_no_queue(queue: Any) -> None:
    with pytest.raises(InvalidOption, match=r"queue must be a CeleryEventEmitter\.Queue, or a list of them"):
        CeleryEventEmitter(queue)


def test_emitter_refuses_a_queue_twice() -> None:
    queue = Queue(make_app())
    with pytest.raises(InvalidOption, match="names the same queue twice"):
        CeleryEventEmitter([queue, queue])


@pytest.mark.parametrize("timeout", [0, -1, None, "5", True, float("inf"), float("nan")])
def test_emitter_refuses_a_timeout(timeout: Any) -> None:
    with pytest.raises(InvalidOption, match="timeout must be a positive number of seconds"):
        CeleryEventEmitter(Queue(make_app()), timeout=timeout)


async def _send(emitter: CeleryEventEmitter, emission: Any) -> None:
    await emitter.asend(emission)


def test_emitter_sends_emissions_only() -> None:
    import asyncio

    emitter = CeleryEventEmitter(Queue(make_app()))
    bad: Any = "Event"
    with pytest.raises(InvalidOption, match=r"send\(\) takes an emission"):
        emitter.send(bad)
    with pytest.raises(InvalidOption, match=r"send\(\) takes an emission"):
        asyncio.run(_send(emitter, bad))


@pytest.fixture
def main_linker() -> type[EventLinker]:
    class Linker(EventLinker, name="of the main script"):
        pass

    return Linker


def test_emitter_refuses_a_handler_of_the_main_script(main_linker: type[EventLinker]) -> None:
    def handle() -> None: ...

    handle.__module__ = "__main__"
    main_linker.subscribe("Event", event_callback=handle, name="main")
    emitter = CeleryEventEmitter(Queue(make_app()), main_linker)
    with pytest.raises(InvalidHandler, match="handler main is linked in the script that was started, which no worker"):
        emitter.emit("Event")


def test_emitter_refuses_an_event_class_of_the_main_script() -> None:
    placed = type("Placed", (Exception,), {"__module__": "__main__"})
    with pytest.raises(InvalidEvent, match="the event class Placed is defined in the script that was started"):
        CeleryEventEmitter(Queue(make_app())).emit(placed())


def test_emitter_repr() -> None:
    emitter = CeleryEventEmitter(Queue(make_app(), "orders", secret=STRONG))
    assert repr(emitter) == ("<CeleryEventEmitter to <Queue orders of app 'shop', json, signed> of linker 'default'>")


# -- Without Celery -----------------------------------------------------------------------------------------------

BLOCKED = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocker())
import pyventus
import pyventus.emitters.celery
"""


@pytest.mark.parametrize(
    ("blocked", "last_line"),
    [
        (
            "celery",
            "pyventus.errors.MissingExtra: CeleryEventEmitter needs Celery, which is not installed: "
            "pip install 'pyventus[celery]'",
        ),
        ("vine", "ModuleNotFoundError: No module named 'vine'"),
    ],
)
def test_without_celery_it_says_what_to_install(blocked: str, last_line: str, tmp_path: Path) -> None:
    """In one error; a Celery that is broken in another way says so itself."""
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED.format(blocked=blocked)], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1] == last_line
    if blocked == "celery":
        assert done.stderr.count("Traceback") == 1
