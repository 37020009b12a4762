"""What greenlets and native threads share; without gevent it is the standard library's own."""

from __future__ import annotations

import os
from concurrent.futures import Future

import pytest

from pyventus import native
from tests.workers import run_script


def test_under_gevent_no_wake_up_is_lost() -> None:
    pytest.importorskip("gevent")
    assert run_script("-m", "tests.unit.native_under_gevent") == "answered\n"


LEAK = """
from gevent import monkey
monkey.patch_all()
import os
from concurrent.futures import Future
from pyventus import native

def wait_in_a_thread():
    ended = native.shared(Future())
    def wait():
        native.shared(Future()).exception(0.001)
    def run():
        try:
            wait()
        except TimeoutError:
            ended.set_result(None)
    native.start_thread(run)
    ended.result(20)

for _ in range(50):
    wait_in_a_thread()
print(len(os.listdir("/proc/self/fd")) < 50)
"""


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts file descriptors in /proc")
def test_a_native_thread_leaves_no_file_descriptors() -> None:
    pytest.importorskip("gevent")
    assert run_script("-c", LEAK) == "True\n"


def test_waiting_for_futures_raises_nothing_of_theirs() -> None:
    done, failed, cancelled = Future[int](), Future[int](), Future[int]()
    done.set_result(1)
    failed.set_exception(KeyError("x"))
    cancelled.cancel()
    native.wait_for([done, failed, cancelled])
