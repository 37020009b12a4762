"""The Celery side of the contract: the app and queue that the tests make for themselves, and the worker's module."""

from __future__ import annotations

import os

from celery import Celery

from pyventus.emitters.celery import CeleryEventEmitter

from . import handlers

BROKER = "PYVENTUS_CONTRACT_BROKER"
QUEUE = "PYVENTUS_CONTRACT_QUEUE"
NAME = "PYVENTUS_CONTRACT_NAME"


def make_queue(broker_url: str, name: str) -> CeleryEventEmitter.Queue:
    celery = Celery("contract", broker=broker_url)
    celery.conf.update(broker_connection_retry_on_startup=True, worker_hijack_root_logger=False)
    return CeleryEventEmitter.Queue(celery=celery, name=name, secret="the contract's secret, of 32 bytes")


if BROKER in os.environ:
    queue = make_queue(os.environ[BROKER], os.environ[QUEUE])
    app = queue.app
    handlers.EMITTERS[os.environ[NAME]] = CeleryEventEmitter(queue=queue, event_linker=handlers.Contract)
    handlers.link_once(os.environ[NAME])
