"""Two queues with secrets of their own on one app, and one on another app."""

from __future__ import annotations

import os

from celery import Celery

from pyventus.emitters.celery import CeleryEventEmitter
from tests.functional.apps import handlers
from tests.functional.apps.support import SECRETS

app = Celery("two_queues", broker=os.environ["TEST_BROKER"])
first = CeleryEventEmitter.Queue(app, name="first", secret=SECRETS["first"])
second = CeleryEventEmitter.Queue(app, name="second", secret=SECRETS["second"], unhandled="ignore")

other_app = Celery("other", broker=os.environ["TEST_BROKER"], set_as_current=False)
other = CeleryEventEmitter.Queue(other_app, name="other", secret=SECRETS["other"])

__all__ = ["handlers"]
