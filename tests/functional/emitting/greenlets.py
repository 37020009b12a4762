"""Emits from many greenlets at once, first to a broker that works, then to one that hangs."""

from gevent import monkey

monkey.patch_all()

import os  # noqa: E402 - nothing may be imported before it is patched
import time  # noqa: E402

import gevent  # noqa: E402
from celery import Celery  # noqa: E402

from pyventus import EmitError  # noqa: E402
from pyventus.emitters.celery import CeleryEventEmitter  # noqa: E402

COUNT = 50
ticks = 0


def make_emitter(url: str, **options: float) -> CeleryEventEmitter:
    app = Celery("greenlets", broker=url, set_as_current=False)
    return CeleryEventEmitter(CeleryEventEmitter.Queue(app, os.environ["TEST_QUEUE"]), **options)


def tick() -> None:
    global ticks
    while True:
        gevent.sleep(0.01)
        ticks += 1


def emit_to_hanging(emitter: CeleryEventEmitter) -> None:
    try:
        emitter.emit("Event")
    except EmitError:
        return
    raise AssertionError("it was stored by a broker that hangs")


gevent.spawn(tick)
working = make_emitter(os.environ["TEST_WORKING"], timeout=20)
gevent.joinall([gevent.spawn(working.emit, "Event") for _ in range(COUNT)], raise_error=True)
# From a native thread too, as handlers on the loop of a worker emit.
gevent.get_hub().threadpool.apply(working.emit, ("Event",))

hanging = make_emitter(os.environ["TEST_HANGING"], timeout=1.0)
before, started = ticks, time.monotonic()
gevent.joinall([gevent.spawn(emit_to_hanging, hanging) for _ in range(COUNT)], raise_error=True)
assert time.monotonic() - started < 10
assert ticks - before > 20, f"the hub ticked {ticks - before} times"
print(COUNT + 1, flush=True)
