import os
import sys
import time

from huey import RedisHuey
from redis import ConnectionPool

from benchmarks.oracle import note as note_moment

# By default redis-py allows fewer connections than there are threads.
pool = ConnectionPool.from_url(os.environ["BENCH_BROKER"], max_connections=600)
huey = RedisHuey("bench", connection_pool=pool, results=False)


@huey.task(name="note")
def note(number: int, text: str) -> None:
    note_moment(number)


@huey.task(name="nap")
def nap(number: int, text: str) -> None:
    time.sleep(0.1)
    note_moment(number)


if __name__ == "__main__":
    # Messages name the task with its module, which has another name here than in the worker.
    from benchmarks.peers import huey as known

    task, text = {"note": known.note, "nap": known.nap}[sys.argv[1]], "x" * 570
    for number in range(int(sys.argv[2])):
        task(number, text)
