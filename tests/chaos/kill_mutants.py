"""What the kills, the duplicates, the wrong clocks and the shutdowns have to notice: see ``scripts/mutants.py``.

Of each: the file, what stands there, what is put in its place, and the test that has to fail then.
"""

from __future__ import annotations

CELERY = "src/pyventus/emitters/celery"
KILLS = "tests/chaos/test_kills.py::test_killed_at_each_point"
# A bare thread would still be running when the task has ended, and been acknowledged.
LATER = '__import__("threading").Timer(0.5, '

MUTANTS: dict[str, tuple[str, str, str, str]] = {
    "acknowledge before the handlers run": (
        f"{CELERY}/task.py",
        '"acks_late": True',
        '"acks_late": False',
        f"{KILLS}[redis-none]",
    ),
    "acknowledge before a retry is stored": (
        f"{CELERY}/delivery.py",
        "insist(partial(self._publish, self._retry(handler, owed.due)), PublishError)",
        f"{LATER}self._publish, [self._retry(handler, owed.due), soon() + 9]).start()",
        f"{KILLS}[amqp-none]",
    ),
    "acknowledge before a forwarded handler is stored": (
        f"{CELERY}/delivery.py",
        "self._unsent = [handler for handler in elsewhere if not self._is_sent(handler)]",
        f"{LATER}lambda: [self._is_sent(handler) for handler in elsewhere]).start()",
        f"{KILLS}[amqp-none]",
    ),
    "acknowledge before a dead letter is kept": (
        f"{CELERY}/delivery.py",
        "self.keep(owed.reason, owed.error, handler.id, traceback=owed.traceback)",
        f"{LATER}self.keep, [owed.reason, owed.error, handler.id], dict(traceback=owed.traceback)).start()",
        f"{KILLS}[redis-none]",
    ),
    "forget what is owed": (
        f"{CELERY}/claims.py",
        "            self.owed[handler] = Owed.read(answer.note)\n",
        "            pass\n",
        f"{KILLS}[redis-redis]",
    ),
    "commit effects without the fact that they are done": (
        "src/pyventus/ledger/sql.py",
        "if connection.execute(self._sql.record, self._held(claim)).rowcount == 1:",
        "if True:",
        f"{KILLS}[amqp-sqlite]",
    ),
    "run without a claim": (
        f"{CELERY}/claims.py",
        "answer = self._ledger.claim(key, turn)\n",
        "answer = self._ledger.claim(key, turn)\n"
        "        answer = answer if isinstance(answer, Claim) else Claim(key, turn, 0)\n",
        "tests/chaos/test_duplicates.py::test_each_effect_once[redis-redis-Order]",
    ),
    "run what somebody else has a lease on": (
        "src/pyventus/ledger/redis.py",
        "local left = state == 'running' and math.max(0, was[7] - now) or 0\n",
        "local left = 0\n",
        "tests/chaos/test_duplicates.py::test_each_effect_once[redis-redis-Order]",
    ),
    "never settle": (
        f"{CELERY}/claims.py",
        "stands = insist(lambda _: self._ledger.settle(claim, state, note), Exception, but=LeaseLost)",
        "stands = state",
        "tests/chaos/test_duplicates.py::test_each_effect_once[redis-redis-Order]",
    ),
    "acknowledge what died with a child": (
        f"{CELERY}/task.py",
        '"reject_on_worker_lost": True',
        '"reject_on_worker_lost": False',
        "tests/chaos/test_kills_of_processes.py::test_killed_one_by_one[redis-none-child]",
    ),
    "no tolerance for clocks": (
        f"{CELERY}/delivery.py",
        "AGE_TOLERANCE = timedelta(days=1)",
        "AGE_TOLERANCE = timedelta(0)",
        "tests/chaos/test_clocks.py::test_a_wrong_clock[ahead]",
    ),
    "keep what is done for a millisecond": (
        "src/pyventus/ledger/redis.py",
        "values = [claim.token, *claim.turn, claim.deaths, state, note, _milliseconds(self._retention)]",
        "values = [claim.token, *claim.turn, claim.deaths, state, note, 1]",
        "tests/chaos/test_clocks.py::test_a_wrong_clock[behind]",
    ),
    "acknowledge what a cold end interrupts": (
        f"{CELERY}/task.py",
        '"acks_late": True',
        '"acks_late": False',
        "tests/chaos/test_shutdowns.py::test_a_worker_that_is_ended[amqp-prefork-cold]",
    ),
}
