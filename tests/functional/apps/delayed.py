"""An app whose handler says whether it runs before it is due; workers hold its messages as long as TEST_HELD says."""

from __future__ import annotations

import os
from datetime import UTC, datetime

from celery import Celery
from kombu import Exchange
from kombu import Queue as BrokerQueue

from pyventus import EventLinker, current_emission
from pyventus.emitters.celery import CeleryEventEmitter, delays, task
from tests.functional.apps.support import SECRET


def new_queue(url: str, name: str, exchange: str = "", queue_type: str = "quorum") -> CeleryEventEmitter.Queue:
    """A queue on an app of its own, declared as its users do.

    Args:
        url: of the broker.
        name: of the queue, and of its exchange.
        exchange: type of its exchange; without one the app declares nothing itself.
        queue_type: of RabbitMQ.
    """
    app = Celery("delayed", broker=url)
    app.conf.task_default_queue = name
    app.conf.worker_prefetch_multiplier = 1
    if not url.startswith("amqp"):
        # The last two, from kombu 5.7 on, have Redis' sweep run each second.
        visibility = float(os.environ.get("TEST_VISIBILITY", "3600"))
        app.conf.broker_transport_options = {
            "visibility_timeout": visibility, "unacked_restore_interval": 1, "unacked_restore_throttle": 1,
        }  # fmt: skip
    if exchange:
        arguments = {"x-queue-type": queue_type}
        app.conf.task_queues = [BrokerQueue(name, Exchange(name, exchange), name, queue_arguments=arguments)]
    return CeleryEventEmitter.Queue(app, secret=SECRET)


@EventLinker.on("Due", name="due")
def due(*_: object) -> None:
    emission = current_emission()
    assert emission.due is not None
    early = (emission.due - datetime.now(UTC)).total_seconds()
    print(f"{emission.id} {'EARLY' if early > 0 else 'on time'}")


if "TEST_BROKER" in os.environ:
    # It runs what is early by less than a second: with parts as short as a test's, a busy machine would make it so.
    task.EARLY_SECONDS = 0.05
    delays.LONGEST_HELD = float(os.environ.get("TEST_HELD", delays.LONGEST_HELD))
    queue = new_queue(os.environ["TEST_BROKER"], os.environ["TEST_QUEUE"], os.environ.get("TEST_EXCHANGE", ""))
    app = queue.app
