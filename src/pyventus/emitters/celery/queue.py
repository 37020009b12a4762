"""A queue of emissions on a Celery app: its name, its keys, its serializer, and the task that its workers run."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from datetime import timedelta
from typing import Any, Literal, TypeAlias
from uuid import UUID, uuid5

from celery import Celery
from celery._state import _task_stack
from kombu.serialization import prepare_accept_content

from pyventus import native, wire
from pyventus.dead_letters.base import DeadLetterStore
from pyventus.emission import Emission, new_id
from pyventus.emitters.celery import worker
from pyventus.emitters.celery.dead_letters import make_store
from pyventus.emitters.celery.delivery import current_ids
from pyventus.emitters.celery.lifespan import Lifespan
from pyventus.emitters.celery.publisher import Message, Publisher, publisher_of
from pyventus.emitters.celery.replay import LETTERS_OF, DeadLetters
from pyventus.emitters.celery.settings import Setting
from pyventus.emitters.celery.task import EmissionTask
from pyventus.emitters.celery.worker import PICKLE_CONTENT
from pyventus.errors import ConfigurationError, InvalidOption
from pyventus.ledger import Ledger, make_ledger
from pyventus.ledger.leases import Leases
from pyventus.linkers import find_handler
from pyventus.retry import Retry, check_retry
from pyventus.running import Middleware
from pyventus.wire import Envelope, JSONSerializer, Keyring, PickleSerializer, open_envelope, pack, seal

# Clocks that are wrong by a day, and a day for what was due late.
RETENTION_TOLERANCE = timedelta(days=2)
JSON_CONTENT = "application/json"
STRONG_SECRET_BYTES = 32
# An expiry that is shorter than the worst backlog would itself lose events.
SHORTEST_MAX_AGE = timedelta(days=7)
# By so many bytes a message that has one handler run may be longer than that which came from the emitter.
HEAD_GROWTH = 4096
MESSAGE_IDS = UUID("a5b0b0ee-6c1f-5a7e-9d0c-6f3f4f0a5d11")

LifespanFactory = Callable[[], AbstractAsyncContextManager[Any]]


class WeakSecretWarning(UserWarning):
    """A secret is so short that it may be guessed from one message."""


class Queue:
    """A queue of emissions on a Celery app. It belongs to one service, which makes it once, in one module.

    Args:
        celery: the app whose broker stores the emissions and whose workers run their handlers.
        name: of the queue in the broker; default: the app's ``task_default_queue``.
        secret: signs every emission, so that nothing else runs. Of several, the first signs and any verifies, so that
            it can be changed without a rejected message. 32 random bytes or more; shorter ones work with a warning.
        serializer: "json", "pickle", or a serializer's class or instance.
        retry: when handlers that have no policy of their own or their linker's are run again after a failure; default:
            never.
        ledger: the record of which handler has run for which emission, so that what has finished does not run again
            when it is delivered again: a ledger, or the URL of one; default: none.
        dead_letters: where emissions are kept that finally failed, could not be handled or were refused: a store, or
            the URL of a Redis; default: the app's broker, 10,000 letters for 14 days.
        unhandled: what becomes of an event that no handler of the worker is linked to: "dead_letter" logs an error
            that names the cure and keeps it, "ignore" drops it.
        lifespan: called once per worker process, before its first emission; the async context manager that it returns
            is entered on the loop of the process and left at shutdown. Handlers get what it yields from
            ``current_state()``.
        middleware: called with emission and handler around each call of an event callback, each returning a context
            manager; it is entered where the handler runs, so on the loop for an async one.
        max_size: bytes that one emission may have in the broker.
        max_age: how long after it was due an emission still runs, with a day on top for clocks that are wrong; seven
            days or more.
        confirm: whether an emit waits until RabbitMQ has confirmed what it sends. Without, three times as many a second
            are sent, and those are lost without a word that RabbitMQ refuses, such as for a full queue, or has not yet
            stored when it or the connection fails. What workers send is always confirmed; Redis always answers.
        allow_pickled_tasks: leave the app's own pickled tasks and remote control alone, although a secret is given:
            whoever can write to the broker can then run code in its workers.

    Raises:
        ConfigurationError: the secret is empty, the app does not accept what the queue sends, pickle is asked for
            without a strong secret, the ledger's retention is less than ``max_age`` and two days, or the app already
            has a queue of that name.
        InvalidOption: an argument has a value that it cannot have.
        MissingExtra: what a URL's kind of ledger or store needs is not installed.
    """

    Serializer: TypeAlias = wire.Serializer

    def __init__(
        self,
        celery: Celery,
        name: str | None = None,
        secret: str | bytes | Sequence[str | bytes] | None = None,
        serializer: Literal["json", "pickle"] | type[wire.Serializer] | wire.Serializer | None = None,
        *,
        retry: Retry | None = None,
        ledger: Ledger | str | None = None,
        dead_letters: DeadLetterStore | str | None = None,
        unhandled: Literal["dead_letter", "ignore"] = "dead_letter",
        lifespan: LifespanFactory | None = None,
        middleware: Iterable[Middleware] = (),
        max_size: int = 256 * 1024,
        max_age: timedelta = SHORTEST_MAX_AGE,
        confirm: bool = True,
        allow_pickled_tasks: bool = False,
    ) -> None:
        self.app: Any = _check_celery(celery)
        self._name = _check_name(name)
        self._default_name = Setting(celery, "task_default_queue")
        self._always_eager = Setting(celery, "task_always_eager")
        self.keyring: Keyring = Keyring(secret)
        self.serializer: wire.Serializer = _make_serializer(serializer)
        self.serializers: dict[str, wire.Serializer] = {each.name: each for each in (JSONSerializer(), self.serializer)}
        self.retry: Retry | None = check_retry("retry", retry)
        self.unhandled: str = _check_choice("unhandled", unhandled, ("dead_letter", "ignore"))
        self.lifespan: Lifespan = Lifespan(_check_callable("lifespan", lifespan))
        self.middleware: tuple[Middleware, ...] = tuple(_check_callable("middleware", each) for each in middleware)
        self.max_size: int = _check_positive("max_size", max_size)
        self.max_age: timedelta = _check_age(max_age)
        self.confirm = confirm
        self.allow_pickled_tasks = allow_pickled_tasks
        self._check_secret()
        self.check_app()
        self.publisher: Publisher = publisher_of(celery)
        self.ledger: Ledger | None = None if ledger is None else make_ledger(ledger)
        self._check_retention()
        self.leases: Leases | None = None if self.ledger is None else Leases(self.ledger)
        self.dead_letters: DeadLetters = DeadLetters(self, make_store(dead_letters, self.publisher))
        _add_queue(self)
        _register_task(self)

    @property
    def name(self) -> str:
        """Its name in the broker, which is what its envelopes are signed for."""
        name: str = self._name or self._default_name.read()
        return name

    @property
    def task_name(self) -> str:
        """Name of the Celery task that its workers run."""
        return _task_name(self.name)

    @property
    def max_text(self) -> int:
        """Bytes that a message may have whose head was written anew."""
        return self.max_size + HEAD_GROWTH

    @property
    def is_worker(self) -> bool:
        """Whether this process is a worker of its app, or a child of one."""
        return worker.is_worker(self.app)

    def check_app(self) -> None:
        """Check what can be known of the app's settings without loading them.

        Loading them would send ``on_after_configure``, and receivers that are connected further down in the user's
        module would miss it.

        Raises:
            ConfigurationError: the app does not accept what the queue sends, or has another queue of that name.
        """
        _check_unique(self)
        accepted = _setting(self.app, "accept_content", ["json"])
        if accepted is None:
            return
        contents = prepare_accept_content(accepted)
        if JSON_CONTENT not in contents:
            raise ConfigurationError(
                f"app {self.app.main!r} does not accept {JSON_CONTENT!r}, as which every emission travels: add it to "
                "app.conf.accept_content"
            )
        if isinstance(self.serializer, PickleSerializer) and PICKLE_CONTENT not in contents:
            raise ConfigurationError(
                f"serializer='pickle' needs an app that accepts {PICKLE_CONTENT!r}, and app {self.app.main!r} does "
                "not: add it to app.conf.accept_content, or use the default serializer"
            )

    def _check_retention(self) -> None:
        """A row that is dropped while its emission would still be accepted lets it run once more."""
        least = self.max_age + RETENTION_TOLERANCE
        if self.ledger is not None and self.ledger.retention < least:
            raise ConfigurationError(
                f"the ledger keeps its rows for {self.ledger.retention}, and with max_age={self.max_age} an emission "
                f"can be delivered again for longer: give the ledger a retention of {least} or more"
            )

    def _check_secret(self) -> None:
        weakest = self.keyring.weakest
        if isinstance(self.serializer, PickleSerializer) and weakest < STRONG_SECRET_BYTES:
            raise ConfigurationError(
                f"serializer='pickle' needs a secret of {STRONG_SECRET_BYTES} bytes or more, because who guesses it "
                "can run code in the workers: secret=os.environ['...'], made with secrets.token_hex(32)"
            )
        if 0 < weakest < STRONG_SECRET_BYTES:
            warnings.warn(
                f"a secret of {weakest} bytes may be guessed from one message: use {STRONG_SECRET_BYTES} random bytes "
                "or more, such as secrets.token_hex(32) makes, and keep them out of the code",
                WeakSecretWarning,
                stacklevel=3,
            )

    # -- From an emission to a message and back -------------------------------------------------------------------

    def message(self, emission: Emission, *, is_first: bool = True, origin: dict[str, str] | None = None) -> Message:
        """The message that carries ``emission`` to this queue.

        Args:
            emission: what to carry.
            is_first: whether its id is the emission's; those of further messages are derived from it.
            origin: what `origin` says, if that is known already.

        Raises:
            NotSerializable: it cannot travel.
        """
        message_id = emission.id if is_first and emission.attempt == 1 else self._derived_id(emission)
        text = self.seal(emission, message_id)
        return self._message(message_id, text, emission, _due(emission), origin, self.confirm)

    def follow_up(self, envelope: Envelope, emission: Emission) -> Message:
        """The message of a further emission, with the arguments of ``envelope`` as they came.

        Raises:
            NotSerializable: it is too large.
        """
        message_id = self._derived_id(emission)
        return self._message(message_id, self.reseal(envelope, emission, message_id), emission, _due(emission))

    def message_again(self, envelope: Envelope, emission: Emission, delay: float) -> Message:
        """The message that carried ``envelope`` once more, with ``emission`` in its head, after ``delay`` seconds."""
        text = self.reseal(envelope, emission, envelope.message_id)
        return self._message(envelope.message_id, text, emission, {"countdown": delay})

    def message_apart(self, envelope: Envelope) -> Message:
        """A message of its own for what was in a batch that a process may have died of."""
        emission = replace(envelope.emission, suspect=True)
        return self._message(envelope.message_id, self.reseal(envelope, emission, envelope.message_id), emission, {})

    def batch(self, messages: Sequence[Message]) -> Message:
        """One message that carries several, which go the same way."""
        first = messages[0]
        text = pack((message.id, message.text) for message in messages)
        return Message(
            first.task, first.queue, new_id(), f"{len(messages)} emissions", text, first.priority, first.options,
            first.confirm,
        )  # fmt: skip

    def _message(
        self,
        message_id: str,
        text: str,
        emission: Emission,
        options: dict[str, Any],
        origin: dict[str, str] | None = None,
        confirm: bool = True,
    ) -> Message:
        options |= self.origin() if origin is None else origin
        queue = name = self.name
        priority = emission.priority
        if emission.handlers:
            # What is for one handler goes where that one runs.
            handler = find_handler(emission)
            if handler is not None:
                name = handler.queue or name
                priority = priority if handler.priority is None else handler.priority
        return Message(_task_name(queue), name, message_id, emission.event, text, priority, options, confirm)

    def origin(self) -> dict[str, str]:
        """Which task the message comes from: one that runs handlers, or another of the user's."""
        ids = current_ids.get()
        task = self.app.current_worker_task if ids is None and _may_be_in_task() else None
        if task is not None and task.request.id:
            ids = task.request.id, task.request.root_id or task.request.id
        return {} if ids is None else {"parent_id": ids[0], "root_id": ids[1]}

    def _derived_id(self, emission: Emission) -> str:
        parts = [emission.id, self.name, str(emission.replay), str(emission.attempt), *emission.handlers]
        return str(uuid5(MESSAGE_IDS, "\n".join(parts)))

    @property
    def is_eager(self) -> bool:
        """Whether the app runs its tasks in the process that sends them, as in its users' tests."""
        return bool(self._always_eager.read())

    def run(self, message: Message) -> None:
        """Run a message's handlers here, as ``task_always_eager`` asks for.

        Raises:
            Exception: what the task raises, if ``task_eager_propagates`` asks for it.
        """
        self.app.tasks[message.task].apply(args=(message.text,), task_id=message.id, priority=message.priority)

    def seal(self, emission: Emission, message_id: str) -> str:
        """The signed text of ``emission`` in one message."""
        return seal(
            emission, queue=self.name, message_id=message_id, serializer=self.serializer, keyring=self.keyring,
            max_size=self.max_size,
        )  # fmt: skip

    def reseal(self, envelope: Envelope, emission: Emission, message_id: str) -> str:
        """The signed text of ``emission`` in another message, with the arguments of ``envelope`` as they came.

        Raises:
            NotSerializable: it is too large.
        """
        return envelope.reseal(
            emission, queue=self.name, message_id=message_id, keyring=self.keyring,
            max_size=self.max_text,
        )  # fmt: skip

    def open(self, text: object, message_id: str) -> Envelope:
        """The verified envelope in a message; see `open_envelope`."""
        return open_envelope(
            text, queue=self.name, message_id=message_id, serializers=self.serializers, keyring=self.keyring,
            max_size=self.max_size, slack=HEAD_GROWTH,
        )  # fmt: skip

    def __repr__(self) -> str:
        signed = "signed" if self.keyring.signs else "unsigned"
        return f"<Queue {self._name or 'default'} of app {self.app.main!r}, {self.serializer.name}, {signed}>"

    def __reduce__(self) -> Any:
        raise TypeError("a Queue holds secrets and connections and cannot be pickled: import it where it is needed")


# What Celery keeps for each thread that is in a task.
_in_tasks = getattr(getattr(_task_stack, "_local", None), "__storage__", None)


def _may_be_in_task() -> bool:
    """False where none runs in this process, which Celery's own search takes ten times longer to find out."""
    return _in_tasks is None or bool(_in_tasks)


def _task_name(queue: str) -> str:
    return f"pyventus.{queue}"


def _due(emission: Emission) -> dict[str, Any]:
    return {} if emission.due is None else {"eta": emission.due}


_lock = native.new_lock()
_queues: dict[Celery, list[Queue]] = {}


def _add_queue(queue: Queue) -> None:
    with _lock:
        _check_unique(queue)
        _queues.setdefault(queue.app, []).append(queue)


def _check_unique(queue: Queue) -> None:
    """Which queue is the default one is known when the app's configuration is loaded."""
    default = _setting(queue.app, "task_default_queue", "celery")
    name = queue._name or default
    if any(other is not queue and (other._name or default) == name for other in _queues.get(queue.app, ())):
        raise ConfigurationError(
            f"app {queue.app.main!r} has more than one queue {name or 'of its default name'!r}: make it once, and "
            "import it where it is needed"
        )


def _register_task(queue: Queue) -> None:
    """Register without finalizing the app or loading its configuration, whose signals the user may still connect to."""
    app = queue.app

    def register(**_: object) -> None:
        app.register_task(type("EmissionTask", (EmissionTask,), {"name": queue.task_name, "emission_queue": queue})())

    if not app.finalized:
        app.on_after_finalize.connect(register, weak=False)
    elif queue._name or app.configured:
        register()
    else:
        app.on_after_configure.connect(register, weak=False)
    worker.install(app)


def _setting(app: Celery, name: str, default: Any) -> Any:
    """A setting of the app; None when only loading its configuration would tell."""
    if app.configured:
        return app.conf[name]
    if name in app.conf.changes:
        # Of a configuration that is not loaded yet, this is the one method that reads without loading it.
        return app.conf.changes.setdefault(name, None)
    if f"CELERY_{name.upper()}" in app.conf.changes:
        return None  # under its name of Celery 3
    return default if getattr(app, "_config_source", None) is None else None


# -- Checks -----------------------------------------------------------------------------------------------------


def _check_celery(celery: object) -> Celery:
    if not isinstance(celery, Celery):
        raise InvalidOption(f"celery must be a Celery app, not {celery!r}")
    return celery


def _check_name(name: object) -> str | None:
    if name is None:
        return None
    if not isinstance(name, str) or not name.strip() or not name.isprintable():
        raise InvalidOption(f"the name of a queue must be a printable string, not {name!r}")
    if name.startswith(LETTERS_OF):
        raise InvalidOption(f"the name of a queue must not begin with {LETTERS_OF!r}, as which dead letters are signed")
    return name


def _make_serializer(serializer: object) -> wire.Serializer:
    if serializer is None or serializer == "json":
        return JSONSerializer()
    if serializer == "pickle":
        return PickleSerializer()
    made = serializer() if isinstance(serializer, type) else serializer
    if not isinstance(made, wire.Serializer):
        raise InvalidOption(
            f"serializer must be 'json', 'pickle', or have a name, dumps(emission) and loads(data), not {serializer!r}"
        )
    return made


def _check_choice(option: str, value: str, choices: tuple[str, ...]) -> str:
    if value not in choices:
        raise InvalidOption(f"{option} must be {' or '.join(map(repr, choices))}, not {value!r}")
    return value


def _check_callable(option: str, value: Any) -> Any:
    if value is not None and not callable(value):
        raise InvalidOption(f"{option} must be a function that returns a context manager, not {value!r}")
    return value


def _check_positive(option: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InvalidOption(f"{option} must be a whole number from 1 up, not {value!r}")
    return value


def _check_age(age: object) -> timedelta:
    if not isinstance(age, timedelta) or age < SHORTEST_MAX_AGE:
        raise InvalidOption(
            f"max_age must be a timedelta of {SHORTEST_MAX_AGE.days} days or more, not {age!r}: what waits longer than "
            "it in a backlog never runs"
        )
    return age
