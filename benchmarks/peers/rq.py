import os
import sys
import time

from redis import Redis
from rq import Queue

from benchmarks.oracle import note as note_moment


def note(number: int, text: str) -> None:
    note_moment(number)


def nap(number: int, text: str) -> None:
    time.sleep(0.1)
    note_moment(number)


if __name__ == "__main__":
    queue, text = Queue(connection=Redis.from_url(os.environ["BENCH_BROKER"])), "x" * 570
    for number in range(int(sys.argv[2])):
        queue.enqueue(f"benchmarks.peers.rq.{sys.argv[1]}", number, text, result_ttl=0)
