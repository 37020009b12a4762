"""What emission queues add to the workers of their app: checks at the start, a closed side door, a tidy end."""

from __future__ import annotations

import gc
import logging
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from celery import Celery, bootsteps, signals
from celery.apps.worker import Worker
from celery.exceptions import SecurityError
from kombu.serialization import prepare_accept_content, registry

from pyventus.emitters.celery.intake import guard
from pyventus.emitters.celery.lifespan import leave_lifespans
from pyventus.emitters.celery.task import EmissionTask, hold_invariants
from pyventus.errors import ConfigurationError
from pyventus.linkers import all_linkers
from pyventus.running import close_process_loop

if TYPE_CHECKING:
    from pyventus.emitters.celery.queue import Queue

logger = logging.getLogger("pyventus")

PICKLE_CONTENT = "application/x-python-serialize"

_workers: WeakSet[Celery] = WeakSet()


def install(app: Celery) -> None:
    """Add our steps to the app's workers; adding them twice changes nothing."""
    app.steps["worker"].add(Checks)
    app.steps["consumer"].add(SideDoor)


def is_worker(app: Celery) -> bool:
    """Whether this process is a worker of ``app``, or a child of one."""
    return app in _workers


def emission_tasks(app: Celery) -> list[EmissionTask]:
    """The tasks of the app's emission queues."""
    return [task for task in app.tasks.values() if isinstance(task, EmissionTask)]


def has_side_door(queue: Queue) -> bool:
    """Whether its secret is there to keep others from running code, and nobody has opted out."""
    return queue.keyring.signs and not queue.allow_pickled_tasks


class Checks(bootsteps.Step):
    """Checks, before a worker starts, what its queues rely on."""

    def __init__(self, parent: Any, **options: Any) -> None:
        app = parent.app
        _workers.add(app)
        queues = [task.emission_queue for task in emission_tasks(app)]
        for task in emission_tasks(app):
            hold_invariants(task)
        check_app(app, queues)
        if _is_closed(queues):
            check_pickled(app)
            # The mailbox of remote control unpickles whatever it accepts, before any command is looked up.
            mailbox = app.control.mailbox
            mailbox.accept = _without_pickle(mailbox.accept)
            if PICKLE_CONTENT in prepare_accept_content(app.conf.accept_content or ()):
                logger.info("Pickled messages are refused by this worker, because its emission queue has a secret")
        _check_consumed(app, queues)
        if isinstance(parent, Worker):  # Which owns its process, as celery.contrib.testing's does not.
            _freeze()


class SideDoor(bootsteps.StartStopStep):
    """Makes the consumer of tasks refuse pickled messages, which kombu would unpickle before any task runs, and drop
    what would end it.
    """

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def start(self, parent: Any) -> None:
        """Called after each connection to the broker, before any message is taken."""
        queues = [task.emission_queue for task in emission_tasks(parent.app)]
        if any(queue.keyring.signs for queue in queues):
            guard(parent, is_ours={queue.task_name for queue in queues}.__contains__)
        if _is_closed(queues):
            consumer = parent.task_consumer
            consumer.accept = _without_pickle(consumer.accept)


def _freeze() -> None:
    """Have the garbage collector leave alone what is loaded, before any process is forked.

    To look through all of it stops a worker for 20 to 40 ms every few thousand messages, and forked processes copy it.
    """
    gc.collect()
    gc.freeze()


def _is_closed(queues: list[Queue]) -> bool:
    return any(has_side_door(queue) for queue in queues)


def _without_pickle(accept: Any) -> set[str]:
    if accept is None:  # All that are not disabled in kombu.
        accept = set(registry._decoders) - registry._disabled_content_types
    return set(prepare_accept_content(accept)) - {PICKLE_CONTENT}


def check_app(app: Celery, queues: list[Queue]) -> None:
    """Check what an app with emission queues needs.

    Raises:
        SecurityError: which ends a worker.
    """
    # SecurityError is the one exception that Celery's command line shows without a traceback.
    if queues and app.conf.task_protocol != 2:
        raise SecurityError(
            f"app {app.main!r} has task_protocol={app.conf.task_protocol!r}, and emissions travel in messages of "
            "Celery's protocol 2 only: remove that setting"
        )
    try:
        for queue in queues:
            queue.check_app()
    except ConfigurationError as error:
        raise SecurityError(str(error)) from error


def check_pickled(app: Celery) -> None:
    """Check that an app whose workers refuse pickled messages sends none.

    Raises:
        SecurityError: which ends a worker.
    """
    # Workers read each other's events. Celery's own tasks have the serializer of the app.
    settings = [name for name in ("task_serializer", "event_serializer") if _is_pickle(app.conf[name])]
    tasks = sorted(name for name, task in app.tasks.items() if _is_pickle(task.serializer))
    pickled = [f"{name}={app.conf[name]!r}" for name in settings]
    pickled += [f"task {name!r}" for name in tasks if not name.startswith("celery.")]
    if pickled:
        raise SecurityError(
            f"app {app.main!r} pickles its own messages ({', '.join(pickled)}), and its emission queue has a secret, "
            "so that this worker would refuse them: change them to json, or make the queue with "
            "allow_pickled_tasks=True, which lets whoever can write to the broker run code here"
        )


def _is_pickle(serializer: str | None) -> bool:
    return bool(registry.name_to_type.get(serializer, serializer) == PICKLE_CONTENT)


def _check_consumed(app: Celery, queues: list[Queue]) -> None:
    consumed = list(app.amqp.queues.consume_from)
    missing = [queue.name for queue in queues if queue.name not in consumed]
    if not handlers_queues().isdisjoint(consumed):
        return
    if missing and len(missing) == len(queues):
        logger.error(
            "This worker consumes %s but not %s, where its app's emissions go, so it will run none of them: start it "
            "with -Q %s, or make the queue with name=%r",
            ", ".join(consumed), " and ".join(missing), ",".join([*consumed, *missing]), next(iter(consumed), "..."),
        )  # fmt: skip


def handlers_queues() -> set[str]:
    """Names of the queues that handlers of this process bring along."""
    handlers = (handler for linker in all_linkers() for handler in linker.get_event_handlers())
    return {handler.queue for handler in handlers if handler.queue is not None}


# -- Tidying up -------------------------------------------------------------------------------------------------


def _close(**_: object) -> None:
    leave_lifespans()
    close_process_loop()


# Prefork sends the first in each child; the other pools run handlers in the main process, which sends the second.
signals.worker_process_shutdown.connect(_close, weak=False, dispatch_uid="pyventus")
signals.worker_shutdown.connect(_close, weak=False, dispatch_uid="pyventus")
