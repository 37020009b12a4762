"""Emits before and after forks, in the way that its argument names; prints how many emissions there should be."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import sys
import threading
import time

from celery import Celery

from pyventus.emitters.celery import CeleryEventEmitter

app = Celery("forks", set_as_current=False)  # its broker comes from CELERY_BROKER_URL
emitter = CeleryEventEmitter(CeleryEventEmitter.Queue(app, os.environ["TEST_QUEUE"]), timeout=20)


def emit(count: int) -> None:
    for _ in range(count):
        emitter.emit("Event")


def wait_for(child: int) -> None:
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def fork(*, softly: bool) -> int:
    """Fork a child that emits, ends, and takes nothing of the parent's with it."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        emit(3)
        status = 0
    finally:
        if softly:
            sys.exit(status)  # with all destructors
        os._exit(status)


def forked() -> int:
    """Used before, in the children, and in the parent afterwards."""
    emit(3)
    for softly in (False, True):
        wait_for(fork(softly=softly))
        emit(3)
    return 3 + 2 * 6


def grandchildren() -> int:
    emit(1)
    child = os.fork()
    if not child:
        emit(1)
        wait_for(fork(softly=True))
        emit(1)
        sys.exit(0)
    wait_for(child)
    emit(1)
    return 7


def multiprocessed() -> int:
    emit(3)
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=emit, args=(5,)) for _ in range(3)]
    for child in children:
        child.start()
    emit(3)
    for child in children:
        child.join(30)
        assert child.exitcode == 0
    emit(3)
    return 9 + 15


def preforked() -> int:
    """As gunicorn with a preloaded app: children with threads, side by side with their parent."""
    emit(1)
    children = []
    for _ in range(4):
        child = os.fork()
        if not child:
            threads = [threading.Thread(target=emit, args=(5,)) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            sys.exit(0)
        children.append(child)
    emit(10)
    for child in children:
        wait_for(child)
    emit(10)
    return 21 + 4 * 20


def untold() -> int:
    """As uwsgi, which forks without a word to Python."""
    emit(3)
    child = ctypes.PyDLL(None).fork()
    if not child:
        emit(3)
        os._exit(0)
    wait_for(child)
    emit(3)
    return 9


def amid_emits() -> int:
    """While other threads are in the middle of an emit."""
    emit(1)  # A fork amid the first one, which imports kombu's transport, leaves the import locked in the child.
    done, counts = threading.Event(), [0] * 3

    def keep_emitting(index: int) -> None:
        while not done.is_set():
            emitter.emit("Event")
            counts[index] += 1

    threads = [threading.Thread(target=keep_emitting, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    forks = 20
    for _ in range(forks):
        time.sleep(0.01)
        wait_for(fork(softly=False))
    done.set()
    for thread in threads:
        thread.join()
    return 1 + sum(counts) + forks * 3


if __name__ == "__main__":
    print(globals()[sys.argv[1]](), flush=True)
