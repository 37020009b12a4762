"""Breaks the source in one exact way at a time, in a copy, and runs the test that has to notice.

A test that has never failed shows nothing. Exit status 0 only if every test named here passes as it is, and fails
against each of its mutants. Arguments: names, or parts of names, of the mutants to run; all by default.
"""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("src", "tests", "scripts", "examples", "docs", "pyproject.toml", "README.md", "CHANGELOG.md", "Makefile")
# A worker waits most of its time.
SIDE_BY_SIDE = 2
# Of pytest: tests were run, and some failed.
FAILED = 1

CELERY = "src/pyventus/emitters/celery"
WIRE = "src/pyventus/wire"
LOSSES = "tests/functional/test_worker_losses.py"
SUSPECTS = "tests/functional/test_suspects.py"
LEDGER = "tests/functional/test_ledger_worker.py"
LOOPS = "tests/functional/test_emitting_in_loops.py"
MESSAGES = "tests/functional/test_worker_messages.py"
LOAD = "tests/chaos/test_load.py"
POISON = "tests/chaos/test_poison.py"
TRANSPORT = "tests/functional/test_redis_transport.py"
TRANSPORT_WORKERS = "tests/functional/test_redis_transport_workers.py"
LATER = '__import__("threading").Timer(2.0, '


class Mutant(NamedTuple):
    """One change of one file, and the test that has to fail then."""

    file: str
    old: str
    new: str
    test: str


MUTANTS: dict[str, Mutant] = {
    "redis transport: fetch and record nothing": Mutant(
        f"{CELERY}/redis_transport/fetch.lua", "redis.call('HSET', KEYS[1], unpack(records))", "local _ = 0",
        f"{TRANSPORT_WORKERS}::test_killed_at_work",
    ),
    "redis transport: leave what landed": Mutant(
        f"{CELERY}/redis_transport/beat.lua", "for number = 4, #KEYS, 2 do", "for number = 4, 0, 2 do",
        f"{TRANSPORT}::test_what_comes_for_a_busy_worker_goes_to_another",
    ),
    "redis transport: look once": Mutant(
        f"{CELERY}/redis_transport/dead.lua", "elseif not since then", "elseif false then",
        f"{TRANSPORT}::test_what_the_dead_had_is_delivered_again",
    ),
    "redis transport: restore what lives again": Mutant(
        f"{CELERY}/redis_transport/restore.lua", "if KEYS[2] and", "if false and",
        f"{TRANSPORT}::test_who_lives_again_keeps_its_messages",
    ),
    "redis transport: restore what is gone": Mutant(
        f"{CELERY}/redis_transport/restore.lua", "ARGV[number]) == 1 then", "ARGV[number]) >= 0 then",
        f"{TRANSPORT}::test_two_restorers_move_each_message_once",
    ),
    "redis transport: wait on when it is full": Mutant(
        f"{CELERY}/redis_transport/channel.py", "or len(self._fetched) >= room", "",
        f"{TRANSPORT}::test_a_full_channel_lets_others_take_what_comes",
    ),
    "redis transport: give back what runs": Mutant(
        f"{CELERY}/redis_transport/session.py", "        return running", "        return set()",
        f"{TRANSPORT_WORKERS}::test_cut_off_at_work",
    ),
    "redis transport: give back what is yet to be acknowledged": Mutant(
        f"{CELERY}/redis_transport/session.py", "elif request.acknowledged or", "elif",
        f"{TRANSPORT}::test_what_celery_has_yet_to_acknowledge_is_not_given_back",
    ),
    "redis transport: a heartbeat that needs memory": Mutant(
        f"{CELERY}/redis_transport/beat.lua", "if redis.call('PEXPIRE', KEYS[1], ARGV[2]) == 0 then", "do",
        f"{TRANSPORT}::test_full_redis_is_emptied",
    ),
    "redis transport: wake nobody for what is due earlier": Mutant(
        f"{CELERY}/redis_transport/park.lua", "or due < tonumber(first)", "and false",
        f"{TRANSPORT}::test_delayed_messages_wait_in_redis",
    ),
    "acknowledge early": Mutant(
        f"{CELERY}/task.py", '"acks_late": True', '"acks_late": False',
        f"{LOAD}::test_nothing_is_lost_on_rabbitmq",
    ),
    "acknowledge what died with its child": Mutant(
        f"{CELERY}/task.py", '"reject_on_worker_lost": True', '"reject_on_worker_lost": False',
        f"{LOSSES}::test_killed_child_has_its_message_delivered_again",
    ),
    # That a request goes back matters before Celery 5.7 alone, which sees to it itself.
    "let solo run on at a cold shutdown": Mutant(
        f"{CELERY}/request.py", "            raise WorkerTerminate(1) from None\n", "            return\n",
        "tests/functional/test_shutdown.py::test_cold_shutdown_ends_what_runs_and_sends_it_back",
    ),
    "verify no signature": Mutant(
        f"{WIRE}/keyring.py", "        return False\n", "        return True\n",
        f"{MESSAGES}::test_a_text_with_a_flipped_bit",
    ),
    "compare no queue": Mutant(
        f"{WIRE}/envelope.py", "    if signed_queue != queue:\n", "    if False:\n",
        f"{MESSAGES}::test_an_envelope_of_another_queue",
    ),
    "compare no message id": Mutant(
        f"{WIRE}/envelope.py", "    if signed_id != message_id:\n", "    if False:\n",
        f"{MESSAGES}::test_an_envelope_under_another_task_id",
    ),
    "claim nothing in the ledger": Mutant(
        f"{CELERY}/delivery.py",
        "        if self._claims is not None:\n            # Of once",
        "        if False:\n            # Of once",
        f"{LEDGER}::test_what_has_run_is_skipped",
    ),
    "settle before running": Mutant(
        f"{CELERY}/delivery.py",
        "        with claims.held():\n            try:\n",
        "        for each in claimed:\n"
        '            claims._ledger.settle(claims.of(each), "done")\n'
        "        with claims.held():\n            try:\n",
        f"{LEDGER}::test_what_died_with_its_worker_is_run_again",
    ),
    "settle only what failed": Mutant(
        f"{CELERY}/claims.py", '            return self._settle(result, "done")\n', "            return result\n",
        f"{LEDGER}::test_what_has_run_is_skipped",
    ),
    "count no deaths in the ledger": Mutant(
        f"{CELERY}/delivery.py", "deaths <= 1 + MAX_DEATHS]", "deaths <= 999]",
        f"{LEDGER}::test_a_poisonous_handler_is_given_up",
    ),
    "confirm no follow-up": Mutant(
        f"{CELERY}/delivery.py",
        "    publishing.wait(end)\n    if publishing.error is not None:\n        raise publishing.error\n",
        "",
        "tests/functional/test_retries.py::test_a_follow_up_waits_for_a_broker_that_comes_back",
    ),
    "count no deaths": Mutant(
        f"{CELERY}/delivery.py", "self._count(count_start) > 1 + MAX_DEATHS", "False",
        f"{SUSPECTS}::test_a_poisonous_handler_is_given_up",
    ),
    "leave the counter of deaths": Mutant(
        f"{CELERY}/delivery.py", "        if not is_hopeless:\n", "        if False:\n",
        f"{SUSPECTS}::test_a_neighbour_in_the_same_emission_is_not_given_up",
    ),
    "count anew what was given up": Mutant(
        f"{CELERY}/delivery.py", "        if not is_hopeless:\n", "        if True:\n",
        f"{POISON}::test_prefork",
    ),
    "run suspects beside others": Mutant(
        f"{CELERY}/delivery.py", "_room.alone() if self._count(read_starts) else _room.shared()", "_room.shared()",
        f"{SUSPECTS}::test_neighbours_in_the_same_process_are_not_given_up",
    ),
    "run suspects of one emission together": Mutant(
        f"{CELERY}/delivery.py", "        if self._is_suspect and len(here) > 1:\n", "        if False:\n",
        f"{SUSPECTS}::test_a_neighbour_in_the_same_emission_is_not_given_up",
    ),
    "keep a dead letter after acknowledging": Mutant(
        f"{CELERY}/delivery.py",
        "self.keep(owed.reason, owed.error, handler.id, traceback=owed.traceback)",
        f"{LATER}lambda: self.keep(owed.reason, owed.error, handler.id)).start()",
        f"{POISON}::test_what_follows_is_stored_before_the_acknowledgement",
    ),
    "publish a retry after acknowledging": Mutant(
        f"{CELERY}/delivery.py",
        "insist(partial(self._publish, self._retry(handler, owed.due)), PublishError)",
        f"{LATER}self._publish, [self._retry(handler, owed.due), soon() + 9]).start()",
        f"{POISON}::test_what_follows_is_stored_before_the_acknowledgement",
    ),
    "call back before recording": Mutant(
        "src/pyventus/running.py",
        "    if job.record is not None:\n        recorded: Result",
        "    if callback is not None and result.again is None:\n"
        "        yield from _call_back(job, callback)\n"
        "        callback = None\n"
        "    if job.record is not None:\n        recorded: Result",
        f"{LEDGER}::test_a_callback_that_kills_its_process_is_not_called_again",
    ),
    "start handlers in another order": Mutant(
        f"{CELERY}/delivery.py", "results = run_jobs(jobs, interrupts", "results = run_jobs(jobs[::-1], interrupts",
        "tests/functional/test_worker.py::test_handlers_start_in_link_order",
    ),
    "take what was returned for stored": Mutant(
        f"{CELERY}/splicing.py", 'self._returned.add(message.properties["correlation_id"])', "pass",
        "tests/functional/test_emitting_many.py::test_a_queue_that_was_deleted_meanwhile_is_made_again",
    ),
    "take what was refused for stored": Mutant(
        f"{CELERY}/splicing.py", "if is_stored and message is not None", "if message is not None",
        "tests/functional/test_emitting_many.py::test_the_error_has_those_that_are_not_stored",
    ),
    "splice what somebody listens to": Mutant(
        f"{CELERY}/splicing.py", "            signals.before_task_publish.receivers\n", "            False\n",
        "tests/functional/test_emitting_many.py::test_who_listens_to_each_message_is_told",
    ),
    "splice the text of the first": Mutant(
        f"{CELERY}/splicing.py", "template.splice(message, self._tag", "template.splice(messages[0], self._tag",
        "tests/functional/test_emitting_many.py::test_all_are_stored_once",
    ),
    "take what Redis refuses for stored": Mutant(
        f"{CELERY}/splicing.py", 'if reply.startswith(b":"):', "if reply:",
        "tests/functional/test_emitting_many.py::test_a_redis_that_is_full_has_stored_some",
    ),
    "leave what waits for a connection without an end": Mutant(
        f"{CELERY}/publisher.py", "                self._waiter.set_result(error)\n", "                pass\n",
        f"{LOOPS}::test_what_waits_for_a_connection_ends_at_its_deadline",
    ),
    "wait for who stands still to find out": Mutant(
        f"{CELERY}/publisher.py", "1 + self._flying()", "1",
        f"{LOOPS}::test_a_loop_that_stands_still_holds_up_nobody_after_a_failure",
    ),
    "open again what RabbitMQ has closed": Mutant(
        f"{CELERY}/splicing.py", "                each._do_revive = _leave_closed\n", "                pass\n",
        f"{LOOPS}::test_why_rabbitmq_closes_a_channel_is_said",
    ),
    "say of all what was the end of the last": Mutant(
        f"{CELERY}/emitter.py",
        "errors.setdefault(publishing.queue, {})[str(publishing.error)]",
        "errors[publishing.queue] = {}\n        errors[publishing.queue][str(publishing.error)]",
        "tests/functional/test_emitting_many.py::test_what_may_be_stored_is_told_beside_what_was_not_sent",
    ),
    "take what the kernel ends for the user's": Mutant(
        f"{CELERY}/publisher.py", "TimeoutError) and error.errno is None", "TimeoutError)",
        "tests/functional/test_emitting_failures.py::test_what_the_kernel_ends_is_a_failure_of_the_broker",
    ),
    "lend all connections to loops": Mutant(
        f"{CELERY}/publisher.py", "self._flying() >= MAX_SENDERS - 1", "False",
        f"{LOOPS}::test_an_emit_on_a_loop_whose_messages_are_on_their_way",
    ),
    "leave what was lent to loops that are closed": Mutant(
        f"{CELERY}/publisher.py", "if flight.loop.is_closed():", "if False:",
        f"{LOOPS}::test_loops_that_end_amid_a_round_trip_take_no_connection_with_them",
    ),
    "leave the thread of what a closed loop had": Mutant(
        f"{CELERY}/publisher.py",
        "                self._give_back(flight.sender, PublishError(INTERRUPTED))\n",
        "                self._take_back(flight)\n",
        f"{LOOPS}::test_a_loop_that_stands_still_and_is_closed_then",
    ),
    "leave what was lent to loops that stand still": Mutant(
        f"{CELERY}/publisher.py", "                self._senders.discard(flight.sender)\n", "                pass\n",
        f"{LOOPS}::test_a_loop_that_stands_still_amid_a_round_trip",
    ),
    "send what was cancelled before its turn was over": Mutant(
        f"{CELERY}/publisher.py", "< each.end and not each.future.done()]", "< each.end]",
        f"{LOOPS}::test_what_is_cancelled_before_its_turn_is_over_is_not_sent",
    ),
    "give all up at the first deadline of a round trip": Mutant(
        f"{CELERY}/publisher.py",
        "isinstance(flight, Flight) and all(each.future.done() for each in flight.publishings)",
        "isinstance(flight, Flight)",
        f"{LOOPS}::test_each_ends_at_its_own_deadline",
    ),
    "send the first part of what the broker takes in parts": Mutant(
        f"{CELERY}/flights.py", "self._left = self._left[self._socket.send(self._left) :]",
        "self._left = self._left[: self._socket.send(self._left) * 0]",
        f"{LOOPS}::test_what_is_large_is_sent_as_the_broker_takes_it",
    ),
    "run again together what a process may have died of": Mutant(
        f"{CELERY}/task.py", "            return self._send_apart(parts)\n", "            pass\n",
        "tests/functional/test_batches.py::test_none_suffers_for_another_that_kills_its_process",
    ),
    "end a batch with its first failure": Mutant(
        f"{CELERY}/task.py", "                failures += error.failures\n", "                raise\n",
        "tests/functional/test_batches.py::test_each_has_its_own_retry_and_dead_letter",
    ),
    "take two events under one id for one": Mutant(
        f"{CELERY}/emitter.py", "[id(message)] = message", "[hash(message.id)] = message",
        "tests/functional/test_emitting_many.py::test_events_under_one_id_are_all_sent",
    ),
    "splice what would have to be escaped": Mutant(
        f"{CELERY}/splicing.py", "[0-9A-Za-z-]{36}", ".{36}",
        "tests/functional/test_emitting_many.py::test_ids_of_the_users_are_escaped",
    ),
    "wait anew for each byte": Mutant(
        f"{CELERY}/sockets.py", "    left = end - time.monotonic()\n", "    left = 5.0\n",
        "tests/functional/test_emitting_failures.py::test_stopped_behind_a_proxy_while_connected",
    ),
    "leave all that is loaded to the garbage collector": Mutant(
        f"{CELERY}/worker.py", "    gc.freeze()\n", "",
        "tests/functional/test_worker_start.py::test_what_is_loaded_is_left_alone_by_the_garbage_collector",
    ),
    "freeze what belongs to others": Mutant(
        f"{CELERY}/worker.py", "if isinstance(parent, Worker):", "if True:",
        "tests/functional/test_worker_start.py::test_a_worker_in_a_process_of_others_leaves_their_garbage_alone",
    ),
    "take a Redis that is loading for one that is up": Mutant(
        f"{CELERY}/publisher.py", 'text.startswith("LOADING ")', "False",
        "tests/functional/test_emitting_many.py::test_a_redis_that_is_not_ready_has_stored_nothing",
    ),
    "hold the loop up with what is large": Mutant(
        f"{CELERY}/publisher.py", "MAX_TOGETHER and size <= room", "MAX_TOGETHER",
        "tests/functional/test_emitting_in_loops.py::test_what_would_hold_the_loop_up_is_left_to_others",
    ),
    "look for an answer that is far away each time": Mutant(
        f"{CELERY}/splicing.py", "        if self._naps:\n", "        if False:\n",
        "tests/unit/test_sockets.py::test_an_answer_is_looked_for_as_long_as_it_comes_soon",
    ),
    "never look again for an answer that came late once": Mutant(
        f"{CELERY}/splicing.py", "            self._late = 0\n", "            pass\n",
        "tests/unit/test_sockets.py::test_an_answer_is_looked_for_as_long_as_it_comes_soon",
    ),
    "look on while somebody else needs the processor": Mutant(
        f"{CELERY}/sockets.py", "if now - before > CROWDED_SECONDS:", "if False:",
        "tests/unit/test_sockets.py::test_looking_ends_where_somebody_else_has_a_use_for_the_processor",
    ),
    "look on what is rationed": Mutant(
        f"{CELERY}/sockets.py", "return not file.read_text()", "return False and not file.read_text()",
        "tests/unit/test_sockets.py::test_a_limit_of_processor_time_is_found",
    ),
    "spend what is rationed on looking": Mutant(
        f"{CELERY}/splicing.py", "        if is_rationed():\n", "        if False:\n",
        "tests/unit/test_sockets.py::test_what_is_rationed_is_not_spent_on_looking_for_rabbitmq_s_answer",
    ),
    "offer the processor to nobody": Mutant(
        f"{CELERY}/sockets.py", "        if offers:\n", "        if False:\n",
        "tests/unit/test_sockets.py::test_the_processor_is_offered_to_others_by_who_looks_for_long",
    ),
    "forget a sender whose waking is interrupted": Mutant(
        f"{CELERY}/publisher.py",
        "            self._idle[-1].changed.notify()\n            self._idle.pop()\n",
        "            self._idle.pop().changed.notify()\n",
        "tests/functional/test_emitting_failures.py::test_an_exception_of_a_signal_handler_as_it_wakes_a_sender",
    ),
    "send only what fits at once": Mutant(
        f"{CELERY}/sockets.py", "    while sent < len(data):\n", "    while False:\n",
        "tests/unit/test_sockets.py::test_what_does_not_fit_at_once_is_sent_all_the_same",
    ),
    "seal control characters as they are": Mutant(
        "src/pyventus/wire/envelope.py", "    if body.translate(None, _AS_IT_IS):\n", "    if not body.isascii():\n",
        "tests/unit/wire/test_envelope.py::test_nothing_sealed_has_to_be_escaped_but_quotes_and_backslashes",
    ),
    "believe what a serializer derives from": Mutant(
        "src/pyventus/wire/envelope.py", 'vars(type(serializer)).get("packs_printable", False)',
        'getattr(serializer, "packs_printable", False)',
        "tests/unit/wire/test_envelope.py::test_what_derives_from_our_json_may_write_otherwise",
    ),
    "reseal control characters as they came": Mutant(
        "src/pyventus/wire/envelope.py", '_code(self._body.encode("ascii")) if self._is_text else ("b", self._body)',
        '("t" if self._is_text else "b", self._body)',
        "tests/unit/wire/test_envelope.py::test_what_came_with_control_characters_is_sent_again_without",
    ),
    "write quotes in a long text as they are": Mutant(
        "src/pyventus/wire/json/__init__.py", ".translate(None, _UNESCAPED)", ".translate(None, bytes(range(128)))",
        "tests/unit/wire/test_round_trip.py::test_a_long_text_is_written_as_json_writes_it",
    ),
    "send a part of many": Mutant(
        f"{CELERY}/splicing.py", "messages[start : start + PART]", "messages[:PART]",
        "tests/functional/test_emitting_many.py::test_all_are_stored_once",
    ),
    "forget the parts before the last": Mutant(
        f"{CELERY}/splicing.py", "        self._pushed += messages\n", "        self._pushed = list(messages)\n",
        "tests/functional/test_emitting_many.py::test_all_are_stored_once",
    ),
    "send the parts before the last again": Mutant(
        f"{CELERY}/splicing.py", "        self._written += messages\n", "        self._written = list(messages)\n",
        "tests/functional/test_emitting_many.py::test_unconfirmed_ones_are_stored_too",
    ),
    "do not wait at all in the last moment": Mutant(
        f"{CELERY}/sockets.py", "    if not timeout or not left", "    if timeout is None or not left",
        "tests/unit/test_sockets.py::test_the_last_moment_is_waited_for_too",
    ),
    "lose what was fetched before what is no list": Mutant(
        f"{CELERY}/redis_transport/fetch.lua", "    if records[1] then", "    if records[1] and number == #KEYS then",
        f"{TRANSPORT}::test_what_is_no_list_loses_nothing_of_other_queues",
    ),
    "take whatever comes for a refusal": Mutant(
        f"{CELERY}/splicing.py", 'elif reply.startswith(b"-"):', "elif True:",
        "tests/functional/test_emitting_many.py::test_what_is_no_answer_of_redis_leaves_it_unknown",
    ),
    "send over what was closed meanwhile": Mutant(
        f"{CELERY}/sockets.py", "    except OSError:\n        pass\n    return False\n", "    return True\n",
        "tests/functional/test_emitting_failures.py::test_a_closed_idle_connection_is_replaced",
    ),
    "send all again that shared a failed round trip": Mutant(
        f"{CELERY}/publisher.py", "for message in publishing.rest():", "for message in publishing.messages:",
        "tests/functional/test_emitting_many.py::test_what_is_stored_is_not_sent_again_with_the_rest",
    ),
    "leave those waiting who shared an abandoned round trip": Mutant(
        f"{CELERY}/publisher.py", "            self._at = ()\n", "",
        "tests/functional/test_emitting_failures.py::test_who_waits_longer_is_served_by_another_connection",
    ),
    "lose the rest of a batch at a time limit": Mutant(
        f"{CELERY}/task.py", "return self._send_apart(parts[at:])", "break",
        "tests/functional/test_batches.py::test_a_time_limit_between_two_of_them",
    ),
    "take no task for a parent": Mutant(
        f"{CELERY}/queue.py", "return _in_tasks is None or bool(_in_tasks)", "return False",
        "tests/functional/test_emitting_many.py::test_a_task_of_the_users_is_named_as_the_parent",
    ),
    "splice what holds the id once more on Redis": Mutant(
        f"{CELERY}/splicing.py", "is_same and not entry.command.keeps(message.id)", "is_same",
        "tests/functional/test_emitting_many.py::test_a_field_of_the_users_that_holds_the_id",
    ),
    "splice what holds the id once more on RabbitMQ": Mutant(
        f"{CELERY}/splicing.py", "is_same and not head.keeps(message.id)", "is_same",
        "tests/functional/test_emitting_many.py::test_a_field_of_the_users_that_holds_the_id",
    ),
    "know neither script nor escapes in a batch": Mutant(
        f"{CELERY}/splicing.py", "    if not text.isascii():\n", "    if False:\n",
        "tests/functional/test_batches.py::test_ids_of_any_script_travel",
    ),
    "take the ids of a task from the first": Mutant(
        f"{CELERY}/splicing.py", "if options else (id,)", "if False else (id, id, id)",
        "tests/functional/test_emitting_many.py::test_what_differs_from_task_to_task",
    ),
    "take a tracer's headers from the first": Mutant(
        f"{CELERY}/splicing.py", "            or self._is_wrapped\n", "",
        "tests/functional/test_emitting_many.py::test_who_wraps_celery_sees_each_message",
    ),
    "never look for what was returned": Mutant(
        f"{CELERY}/splicing.py", "        sock.settimeout(timeout)\n",
        "        sock.settimeout(timeout)\n        self._seen_at = time.monotonic()\n",
        "tests/functional/test_emitting_many.py::test_a_deleted_queue_is_noticed_however_often_is_emitted",
    ),
    "swallow what interrupts an emit": Mutant(
        f"{CELERY}/publisher.py", "if is_timeout and is_past(end)", "if True",
        "tests/functional/test_emitting_failures.py::test_what_interrupts_an_emit_leaves_nothing_half_done",
    ),
    "lend once more what was interrupted": Mutant(
        f"{CELERY}/publisher.py", "            self._take_back(publishing)\n", "            pass\n",
        "tests/functional/test_emitting_failures.py::test_what_interrupts_an_emit_leaves_nothing_half_done",
    ),
}  # fmt: skip


class Run(NamedTuple):
    """How a test ended against one mutant."""

    name: str
    test: str
    result: str
    seconds: float

    @property
    def is_good(self) -> bool:
        return self.result == "killed"


def all_mutants() -> dict[str, Mutant]:
    """Those above, and those that ``tests/chaos/kill_mutants.py`` adds."""
    sys.path.insert(0, str(ROOT))
    others = importlib.import_module("tests.chaos.kill_mutants").MUTANTS
    return MUTANTS | {name: Mutant(*each) for name, each in others.items()}


@contextmanager
def copy_of_the_repository() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="pyventus-mutant-") as name:
        for each in COPIED:
            source, target = ROOT / each, Path(name) / each
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, target)
        yield Path(name)


def pytest_in(folder: Path, *tests: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--color=no", *tests]
    # Before the package that is installed, in the processes that the tests start too.
    env = {**os.environ, "PYTHONPATH": str(folder / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)


def run(name: str, mutant: Mutant) -> Run:
    began = time.monotonic()
    with copy_of_the_repository() as folder:
        file = folder / mutant.file
        text = file.read_text()
        if text.count(mutant.old) != 1:
            result = f"STALE: the text stands {text.count(mutant.old)} times in {mutant.file}"
        else:
            file.write_text(text.replace(mutant.old, mutant.new))
            result = verdict(pytest_in(folder, mutant.test))
    done = Run(name, mutant.test, result, time.monotonic() - began)
    print(f"{done.result}: {name} ({done.seconds:.0f} s)", flush=True)
    return done


def verdict(done: subprocess.CompletedProcess[str]) -> str:
    if done.returncode == FAILED:
        return "killed"
    last = (done.stdout.strip().splitlines() or [done.stderr.strip()])[-1].strip("= ")
    return f"SURVIVED: {last}" if done.returncode == 0 else f"NOT RUN: {last}"


def passes_as_it_is(tests: list[str]) -> bool:
    """Whether the tests pass without a mutant; one that fails anyway kills nothing."""
    with copy_of_the_repository() as folder:
        done = pytest_in(folder, *tests)
    print(done.stdout if done.returncode else f"without mutants: {done.stdout.strip().splitlines()[-1]}", flush=True)
    return done.returncode == 0


def main(parts: list[str]) -> int:
    chosen = {name: each for name, each in all_mutants().items() if not parts or any(part in name for part in parts)}
    if not chosen or not passes_as_it_is(sorted({each.test for each in chosen.values()})):
        return 1
    with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        runs = list(pool.map(run, chosen, chosen.values()))
    print(f"\n{'mutant':<40} {'seconds':>7}  result")
    for each in runs:
        print(f"{each.name:<40} {each.seconds:>7.0f}  {each.result} by {each.test}")
    return 0 if all(each.is_good for each in runs) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
